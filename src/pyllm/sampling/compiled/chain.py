"""The kernel: the whole chain of all rows of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    load_f32,
    load_f32x16,
    load_f64,
    load_i32,
    load_i64,
    select_lt,
    splat_f32,
    store_f32,
    store_f32x16,
    store_f64,
    store_i32,
    store_i64,
    zero_f32,
)
from pyllm.sampling import steps
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.drawing import choose_likeliest, draw
from pyllm.sampling.compiled.patches import add_biases, copy_row, put_back
from pyllm.sampling.compiled.state import (
    LARGEST,
    NOTHING,
    choose_lanes,
    has_lane,
    low_zeros,
    ones_of,
    set_dense,
    set_list,
)


def _switch() -> Any:
    """apply(number, state, parameters): the compiled function of each step, by number."""
    scope: dict[str, Any] = {}
    lines = ["def apply(number, s, p):"]
    for number, step in enumerate(steps.all_steps()):
        scope[f"step_{number}"] = step.compiled()
        lines.append(f"    {'el' if number else ''}if number == {number}:\n        step_{number}(s, p)")
    exec("\n".join(lines), scope)
    return register_jitable(scope["apply"])


@register_jitable
def _begin(s, row):
    """The state for a row: all its candidates."""
    store_i64(s + slots.ROW, row)
    set_dense(s, load_i64(row + slots.R_X), load_i64(row + slots.R_N))
    store_i64(s + slots.TOP_KNOWN, 0)
    store_i64(s + slots.OWN, 0)
    store_f64(s + slots.U, load_f64(row + slots.R_U))
    store_f64(s + slots.OFFSET, 0.0)
    store_i64(s + slots.TOKEN, -1)
    store_i64(s + slots.N_SAVED, 0)
    store_i64(s + slots.N_VOCAB, load_i64(row + slots.R_N_VOCAB))
    for i in range(0, 32, 8):
        store_i64(s + slots.MEMORY + i, load_i64(row + slots.R_MEMORY + i))
    ids = load_i64(row + slots.R_IDS)
    if ids != 0:
        _take_list(s, load_i64(row + slots.R_X), ids, load_i64(row + slots.R_N), load_i64(row + slots.R_MASK))
    elif load_i64(row + slots.R_MASK) != 0:
        _apply_mask(s, load_i64(row + slots.R_MASK))


@register_jitable
def _take_list(s, x, ids, n, mask):
    """The candidates that are given with their ids, and allowed."""
    to_x, to_ids, kept = load_i64(s + slots.LIST_X), load_i64(s + slots.LIST_IDS), 0
    for i in range(n):
        token = load_i32(ids + 4 * i)
        if mask == 0 or (load_i32(mask + 4 * (token >> 5)) >> (token & 31)) & 1:
            store_f32(to_x + 4 * kept, load_f32(x + 4 * i))
            store_i32(to_ids + 4 * kept, token)
            kept += 1
    set_list(s, kept, slots.SORTED)


@register_jitable
def _number(x):
    """NaN as impossible, inf as the largest number."""
    return min(x, LARGEST) if x > NOTHING else NOTHING


@register_jitable
def _apply_mask(s, mask):
    """Leave out the tokens whose bit is not set: few that stay become a list."""
    x, n = load_i64(s + slots.X), load_i64(s + slots.N)
    words, allowed = (n + 31) // 32, 0
    for w in range(words):
        allowed += ones_of(load_i32(mask + 4 * w) & 0xFFFFFFFF)
    if allowed * 16 <= n:
        to_x, to_ids, kept = load_i64(s + slots.LIST_X), load_i64(s + slots.LIST_IDS), 0
        for w in range(words):
            bits = load_i32(mask + 4 * w) & 0xFFFFFFFF
            while bits != 0:
                token = 32 * w + low_zeros(bits)
                bits &= bits - 1
                if token < n:
                    store_f32(to_x + 4 * kept, load_f32(x + 4 * token))
                    store_i32(to_ids + 4 * kept, token)
                    kept += 1
        set_list(s, kept, slots.AS_THEY_ARE)
        return
    to, nothing, full = load_i64(s + slots.COPY), splat_f32(NOTHING), n // 16 * 16
    for i in range(0, full, 16):
        bits = load_i32(mask + 4 * (i >> 5)) >> (i & 16)
        store_f32x16(to + 4 * i, choose_lanes(bits, load_f32x16(x + 4 * i), nothing))
    for i in range(full, n):
        bit = (load_i32(mask + 4 * (i >> 5)) >> (i & 31)) & 1
        store_f32(to + 4 * i, load_f32(x + 4 * i) if bit else NOTHING)
    set_dense(s, to, n)
    store_i64(s + slots.OWN, 1)


@register_jitable
def _clean(s):
    """NaN as impossible, inf as the largest number, where there are such."""
    x, n = load_i64(s + slots.X), load_i64(s + slots.N)
    full = n // 16 * 16
    odd, one, limit = zero_f32(), splat_f32(np.float32(1)), splat_f32(np.float32(np.inf))
    for i in range(0, full, 16):
        odd = select_lt(load_f32x16(x + 4 * i), limit, odd, one)
    strange = has_lane(odd) != 0
    for i in range(full, n):
        if not load_f32(x + 4 * i) < np.float32(np.inf):
            strange = True
    if not strange:
        return
    if load_i64(s + slots.OWN) == 0:
        copy_row(s)
        x = load_i64(s + slots.X)
    store_i64(s + slots.TOP_KNOWN, 0)
    for i in range(n):
        store_f32(x + 4 * i, _number(load_f32(x + 4 * i)))


def choose(steps: str) -> Callable[[int, int, int], None]:
    """The next tokens of rows. `steps`: which these are; the same as `pyllm.sampling.steps` has.

    Slots: state, rows (addresses), number of rows. A step's number has bit 8 set where it changes single
    logits, bit 9 where it takes infinite ones and such that are no numbers and leaves none.
    """
    apply = _switch()

    def k(args, thread, n_threads):
        s, rows, n_rows = load_i64(args), load_i64(args + 8), load_i64(args + 16)
        for i in range(n_rows):
            row = load_i64(rows + 8 * i)
            _begin(s, row)
            add_biases(s)
            at, clean = load_i64(row + slots.R_STEPS), load_i64(row + slots.R_GREEDY) != 0
            for _ in range(load_i64(row + slots.R_N_STEPS)):
                number = load_i64(at)
                # What changes single logits takes them as they come, and so does what finds the largest of a row.
                if not clean and number & 256 == 0 and (number & 512 == 0 or load_i64(s + slots.IDS) != 0):
                    _clean(s)
                    clean = True
                apply(number & 255, s, at + 8)
                at += 8 * slots.STEP_SLOTS
                # Nothing is left of a distribution without a possible token.
                if load_i64(s + slots.N) == 0:
                    break
                clean = clean or number & 512 != 0
            if load_i64(s + slots.TOKEN) < 0 and load_i64(s + slots.N) > 0:
                if load_i64(row + slots.R_GREEDY) != 0:
                    choose_likeliest(s)
                else:
                    if not clean:
                        _clean(s)
                    draw(s)
            put_back(s)
            store_i64(row + slots.R_TOKEN, load_i64(s + slots.TOKEN))
            store_i64(row + slots.R_MEMORY + 8, load_i64(s + slots.MEMORY + 8))
            store_i64(row + slots.R_MEMORY + 24, load_i64(s + slots.MEMORY + 24))

    return k
