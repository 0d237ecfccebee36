"""What kernels of recurrent ops share: the tokens of a sequence, the state before them, and where states are saved.

The states are an argument `states: Rows` of the kernel, `Lowering.states(op)`. A work item is a part of one sequence's
state that no other part depends on (columns of a head), over all of the sequence's tokens in the step, one after
another: so a result depends neither on cuts nor on company. It reads the state at `state_before`, keeps it in scratch
memory, and writes it where `save_of` says; a slot's part is written once, by its item.

    n = n_parts * load_i64(a.step + 32)                # parts of a sequence's state, sequences
    while True:
        item = atomic_add(a.counter, 1)
        if item >= n:
            break
        seq = item // n_parts
        first, n_tokens = tokens_of(a.step, seq)
        source = state_before(a.step, seq, a.states, a.ld_states)
        save = first_save(a.step, seq)
        for t in range(n_tokens):
            ...
            slot = save_of(a.step, save, t + 1, a.states, a.ld_states)
            if slot != 0:
                ...                                    # the state after t + 1 tokens
                save += 1

The last token of a sequence always has a save. No kernel writes a slot that a sequence of the step begins at, so
`source` stays as it is throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import register_jitable

from pyllm.backends.cpu.table import STATE_IN
from pyllm.jit.simd import load_f32x16, load_first_f32, load_i32, load_i64, store_f32x16, store_first_f32

_SOURCES, _SAVES, _AFTER, _SLOTS = (8 * (STATE_IN + i) for i in range(4))


@register_jitable
def tokens_of(step, seq):
    """First token of a sequence in the step, and their number."""
    span = load_i64(step + 64) + 8 * seq
    return load_i32(span), load_i32(span + 4)


@register_jitable
def state_before(step, seq, states, ld):
    """Address of the state before a sequence's first token; 0 where it is zeros."""
    slot = load_i32(load_i64(step + _SOURCES) + 4 * seq)
    return states + ld * slot if slot >= 0 else 0


@register_jitable
def first_save(step, seq):
    """Number of a sequence's first save in the step."""
    return load_i32(load_i64(step + _SAVES) + 8 * seq)


@register_jitable
def save_of(step, save, after, states, ld):
    """Address that the state after a sequence's first `after` tokens is to be saved at, 0 if nowhere. `save`: the
    sequence's next save; there is one up to its last token."""
    if load_i32(load_i64(step + _AFTER) + 4 * save) != after:
        return 0
    return states + ld * load_i32(load_i64(step + _SLOTS) + 4 * save)


@register_jitable
def vectors_at_once(n_vectors, n_others, n_threads, most):
    """Vectors of a work item, a power of two up to `most`: few enough for four items to a thread, where `n_others`
    times `n_vectors` allow it."""
    m = most
    while m > 1 and n_others * ((n_vectors + m - 1) // m) < 4 * n_threads:
        m //= 2
    return m


def access(whole: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Loads and stores of vectors: whole ones, or their first lanes."""

    @register_jitable
    def load(address, lanes):
        return load_f32x16(address) if whole else load_first_f32(address, lanes)

    @register_jitable
    def store(address, v, lanes):
        if whole:
            store_f32x16(address, v)
        else:
            store_first_f32(address, v, lanes)

    return load, store
