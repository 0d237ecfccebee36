"""Attention over pages of keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.reference.functions import soft_cap, softmax
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.attention import Attention, Sight

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


_QUERIES = 128
"""Queries of one sequence whose scores are held at a time."""


def store(values: F32, cache: NDArray[np.floating], pages: NDArray[np.integer], position: int) -> None:
    """Write one sequence's keys or values [tokens, n_kv_heads * dim], the first at `position`, into the pages
    cache [n_pages, page_size, n_kv_heads, dim] that its table `pages` names."""
    page_size = cache.shape[1]
    where = np.arange(position, position + len(values))
    cache[pages[where // page_size], where % page_size] = values.reshape(len(values), *cache.shape[2:])


def load(cache: NDArray[np.floating], pages: NDArray[np.integer], start: int, stop: int) -> F32:
    """Positions start .. stop - 1 of one sequence out of its pages → [positions, n_kv_heads, dim]."""
    page_size = cache.shape[1]
    where = np.arange(start, stop)
    return cache[pages[where // page_size], where % page_size].astype(np.float32)


def attention(
    q: F32,
    k: F32,
    v: F32,
    position: int,
    start: int,
    *,
    scale: float,
    window: int = 0,
    reach: str = "causal",
    softcap: float = 0.0,
    slopes: tuple[float, ...] = (),
    biases: F32 | None = None,
    sinks: F32 | None = None,
) -> F32:
    """Attention within one sequence.

    q [tokens, n_heads, head_dim] of the positions from `position` on; k [keys, n_kv_heads, head_dim] and
    v [keys, n_kv_heads, v_head_dim] of the positions from `start` on; biases [n_heads, 2 n + 1] → [tokens, n_heads *
    v_head_dim].
    """
    n_tokens, n_heads, head_dim = q.shape
    n_kv = k.shape[1]
    grouped = q.reshape(n_tokens, n_kv, n_heads // n_kv, head_dim)
    scores = np.einsum("tkgd,skd->kgts", grouped, k, optimize=True) * scale
    if softcap:
        scores = soft_cap(scores, softcap)
    at = np.arange(position, position + n_tokens)[:, None]  # [tokens, 1]
    key = np.arange(start, start + len(k))  # [keys]
    if slopes:
        steepness = np.array(slopes, np.float32).reshape(n_kv, -1, 1, 1)
        scores = scores - steepness * np.abs(at - key).astype(np.float32)
    if biases is not None:
        far = biases.shape[1] // 2
        scores = scores + biases[:, np.clip(key - at, -far, far) + far].reshape(n_kv, -1, n_tokens, len(k))
    sight = Sight(reach, window)
    seen = (key >= sight.first(at)) & (key < sight.stop(at, start + len(k)))
    scores = np.where(seen, scores, -np.inf)
    sink = None if sinks is None else sinks.reshape(n_kv, -1, 1, 1)
    weights = softmax(scores, sink)
    out = np.einsum("kgts,skd->tkgd", weights, v, optimize=True)
    return np.ascontiguousarray(out.reshape(n_tokens, -1), dtype=np.float32)


@rule(Attention)
def _attention(exe: ReferenceExecutable, op: Attention, batch: Batch, state: State) -> F32:
    q = state[op.q.id]
    keys, values = exe.keys[op.cache], exe.values[op.cache]
    biases, sinks = exe.weights.whole(op.biases), exe.weights.whole(op.sinks)
    out = np.empty((batch.n_tokens, op.out.width), np.float32)
    for seq, (first, n) in enumerate(batch.spans[: batch.n_seqs]):
        pages, position = batch.page_tables[seq], int(batch.positions[first])
        if op.k is not None and op.v is not None:
            store(state[op.k.id][first : first + n], keys, pages, position)
            store(state[op.v.id][first : first + n], values, pages, position)
        for i in range(0, n, _QUERIES):
            exe.check_interrupt()
            m, end = min(_QUERIES, n - i), int(batch.sources[seq]) if op.reach == "source" else position + n
            at = np.array([position + i, position + i + m - 1])
            start, stop = int(op.sight.first(at)[0]), int(op.sight.stop(at, end)[1])
            rows = slice(first + i, first + i + m)
            out[rows] = attention(
                q[rows].reshape(m, op.n_heads, op.head_dim),
                load(keys, pages, start, stop),
                load(values, pages, start, stop),
                position + i,
                start,
                scale=op.scale,
                window=op.window,
                reach=op.reach,
                softcap=op.softcap,
                slopes=op.slopes,
                biases=biases,
                sinks=sinks,
            )
    return out
