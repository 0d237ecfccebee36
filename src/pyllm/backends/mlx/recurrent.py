"""Recurrent ops: the states of sequences in slots, and linear recurrences in chunks of tokens.

A slot's state of an op is an array of its own. A step makes new arrays, which take the places of the saves' old ones
when it is done: nothing is written in place, so no slot is copied for another's sake, and a step that fails leaves all
as it was. Sequences of equal numbers of tokens and saves are computed together.

A chunk is computed by pyllm's Metal kernel, or where that does not run by matrix products: its tokens' effects on each
other, and those of the state before it. Chunks end where pieces of a prompt do, so cuts show by rounding. Exponents are
sums of the decays between two tokens, not differences of running sums, which would lose small decays after large ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from pyllm.backends.base import Batch
from pyllm.backends.mlx import metal, metal_states
from pyllm.program import Recurrent
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step

CHUNK, CHUNK_BY_ROW = 64, 16
"""Tokens of a chunk, where all rows of a head's state share a decay; where each number or row has its own."""

Advance = Callable[..., tuple[mx.array, mx.array]]
"""(state [n_seqs, *shape], each value [n_seqs, tokens, ...]) → (out [n_seqs, tokens, width], the state after them)."""


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences with equal numbers of tokens and saves, computed together."""

    seq: int
    """The first one; the others follow."""
    n_seqs: int
    first: int
    """Its first token; the others follow."""
    n_tokens: int
    """Of each sequence."""
    afters: tuple[int, ...]
    """Numbers of a sequence's tokens after which its state is saved, ascending; the last is all of them."""


def plan_groups(batch: Batch) -> tuple[Group, ...]:
    """Groups of a step's sequences, in order; they hold no slots, so that they may be part of a compiled step's key."""
    groups: list[Group] = []
    for seq in range(batch.n_seqs):
        first, n = batch.spans[seq].tolist()
        save, n_saves = batch.saves[seq].tolist()
        afters = tuple(batch.save_after[save : save + n_saves].tolist())
        if groups and (groups[-1].n_tokens, groups[-1].afters) == (n, afters):
            last = groups.pop()
            groups.append(Group(last.seq, last.n_seqs + 1, last.first, n, afters))
        else:
            groups.append(Group(seq, 1, first, n, afters))
    return tuple(groups)


def scan(s: Step, op: Recurrent, advance: Advance, chunk: int, *values: mx.array) -> mx.array:
    """The op's value [tokens, width] of `values` [tokens, ...], in chunks of at most so many tokens of each sequence;
    saves its states."""
    before, saved, out = s.states[op.state], [], []
    for group in s.groups:
        n, n_seqs = group.n_tokens, group.n_seqs
        state = mx.stack(before[group.seq : group.seq + n_seqs])
        given = [x[group.first : group.first + n_seqs * n].reshape(n_seqs, n, *x.shape[1:]) for x in values]
        pieces, kept, start = [], [], 0
        for after in group.afters:
            for at in range(start, after, chunk):
                piece, state = advance(state, *(x[:, at : min(at + chunk, after)] for x in given))
                state = mx.depends(state, piece)  # else mlx computes all pieces last, and holds what they need
                pieces.append(piece)
            kept.append(state)
            start = after
        saved += [mx.contiguous(states[i]) for i in range(n_seqs) for states in kept]
        out.append(joined(pieces, 1).reshape(n_seqs * n, -1))
    s.saved[op.state] = saved
    return joined(out, 0)


def joined(parts: list[mx.array], axis: int) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis)


def attend(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    decay: mx.array,
    erase: mx.array | None = None,
    insert: mx.array | None = None,
    before: bool = False,
) -> tuple[mx.array, mx.array]:
    """A chunk of S <- exp(decay) S + k v.T [+ insert (S.T erase).T], out = S.T q, as `LinearAttention` has it.

    state [n_seqs, heads, key_dim, value_dim]; q, k, erase, insert [n_seqs, tokens, heads, key_dim], v [n_seqs, tokens,
    heads, value_dim], decay [n_seqs, tokens, heads, 1 or key_dim]. `erase` reads the S before its token; so does `q`
    with `before`. → (out [n_seqs, tokens, heads * value_dim], state)
    """
    compute = metal_states.recurrence if q.shape[-1] <= metal_states.MOST_ROWS and kernel_works() else by_products
    return compute(state, q, k, v, decay, erase, insert, before)


@cache
def kernel_works() -> bool:
    """Whether the Metal kernel compiles, runs, and agrees with `by_products` on random numbers; else a warning is
    issued."""
    if not metal.available():
        return False
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape).astype(np.float32))

    works, reason = True, "it computes something else than products do"
    for rows, erases in ((1, False), (20, True)):
        state, v, decay = normal(2, 3, 20, 24), normal(2, 5, 3, 24), -mx.abs(normal(2, 5, 3, rows))
        q, k, erase, insert = (0.2 * normal(2, 5, 3, 20) for _ in range(4))
        given = (state, q, k, v, decay, *((erase, insert, True) if erases else ()))
        try:
            pairs = zip(metal_states.recurrence(*given), by_products(*given), strict=True)
            works = works and all(bool(mx.allclose(got, wanted, 1e-3, 1e-3)) for got, wanted in pairs)
        except (RuntimeError, ValueError) as error:
            works, reason = False, str(error)[:500]
    if not works:
        logging.getLogger("pyllm").warning("mlx: no Metal kernel of our own for recurrent layers: %s", reason)
    return works


def by_products(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    decay: mx.array,
    erase: mx.array | None = None,
    insert: mx.array | None = None,
    before: bool = False,
) -> tuple[mx.array, mx.array]:
    """`attend` by matrix products.

    With P[t, i] = exp(decay[i + 1] + ... + decay[t]) and F[t] = exp(decay[0] + ... + decay[t]), a reader r of the S
    after token t gets S.T r = (F[t] r) S[-1] + sum over i up to t of (r . (P[t, i] k[i])) v[i], and likewise of pairs
    insert[i], erased[i]. What is erased then solves a triangular system.
    """
    n_seqs, n = q.shape[:2]
    q, k, v, decay = (x.swapaxes(1, 2) for x in (q, k, v, decay))
    if erase is not None and insert is not None:
        erase, insert = erase.swapaxes(1, 2), insert.swapaxes(1, 2)
    if n == 1:
        out, state = _token(state, q, k, v, decay, erase, insert, before)
        return out.reshape(n_seqs, 1, -1), state
    between, since = _between(decay), mx.exp(mx.cumsum(decay, axis=2))
    # of the state before each token
    between_before = mx.concatenate([mx.zeros_like(between[:, :, :1]), between[:, :, :-1]], axis=2)
    since_before = mx.concatenate([mx.ones_like(since[:, :, :1]), since[:, :, :-1]], axis=2)
    pairs = [(k, v)]
    if erase is not None and insert is not None:
        known = (erase * since_before) @ state + _products(erase, k, between_before) @ v
        pairs.append((insert, _solved(_products(erase, insert, between_before)) @ known))
    if before:
        out = (q * since_before) @ state
    else:
        out = (q * since) @ state
    state = since[:, :, -1, :, None] * state
    for key, value in pairs:
        out = out + _products(q, key, between_before if before else between) @ value
        state = state + (key * between[:, :, -1]).swapaxes(-1, -2) @ value
    return out.swapaxes(1, 2).reshape(n_seqs, n, -1), state


def _token(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    decay: mx.array,
    erase: mx.array | None,
    insert: mx.array | None,
    before: bool,
) -> tuple[mx.array, mx.array]:
    """`by_products` of a single token, whose arrays have axes 1 and 2 exchanged: the state is read by one or two
    products, and replaced by what `mx.compile` makes one kernel of. → (out [n_seqs, heads, 1, value_dim], state)"""
    new = mx.exp(decay).swapaxes(-1, -2) * state + k.swapaxes(-1, -2) * v
    if erase is not None and insert is not None:
        new = new + insert.swapaxes(-1, -2) * (erase @ state)
    return q @ (state if before else new), new


def _between(decay: mx.array) -> mx.array:
    """decay [..., tokens, rows] → [..., t, i, rows]: exp(decay[i + 1] + ... + decay[t]), 0 for i after t."""
    n = decay.shape[-2]
    t, i = mx.arange(n)[:, None, None], mx.arange(n)[None, :, None]
    sums = mx.cumsum(mx.where(t > i, decay[..., :, None, :], 0.0), axis=-3)
    return mx.where(t >= i, mx.exp(sums), 0.0)


def _products(a: mx.array, b: mx.array, factors: mx.array) -> mx.array:
    """a, b [..., tokens, rows], factors [..., t, i, 1 or rows] → [..., t, i]: a[t] . (factors[t, i] b[i])."""
    if factors.shape[-1] == 1:
        return (a @ b.swapaxes(-1, -2)) * factors[..., 0]
    return (a[..., :, None, :] * b[..., None, :, :] * factors).sum(axis=-1)


def _solved(low: mx.array) -> mx.array:
    """(1 - low) ** -1 of matrices [..., n, n] that are 0 on and above the diagonal: from inverses of blocks on the
    diagonal those of blocks of twice the size."""
    n = low.shape[-1]
    t, i = mx.arange(n)[:, None], mx.arange(n)[None, :]
    inverse, size = mx.eye(n), 1
    while size < n:
        beside = mx.logical_and(t // (2 * size) == i // (2 * size), t // size != i // size)
        inverse = inverse + inverse @ mx.where(beside, low, 0.0) @ inverse
        size *= 2
    return inverse
