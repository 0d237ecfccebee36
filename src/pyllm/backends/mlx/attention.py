"""The KV cache, and attention over it.

A layer's keys are one array [slots, n_kv_heads, head_dim]; slot = page * page_size + place in the page. So a sequence
with consecutive pages, as in a fresh conversation, has its keys in one run: a view, and a step copies nothing. Where
pages are not consecutive, or several sequences are computed together, keys are gathered.

Reads are planned before a step (`plan_reads`): as numbers that are part of a compiled step's key (`Group`), and as
arrays that vary from step to step. Compiled steps read a rounded-up number of keys (`bucket`), with the surplus masked,
and gather the keys of a window, so that they are rarely compiled again.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch
from pyllm.backends.mlx.ops.elementwise import soft_cap
from pyllm.program.ops.attention import Attention, Sight
from pyllm.records import dataclass

_FEW = 8
"""Most tokens of a sequence that is computed together with other sequences."""
_LARGEST_HALF = 65504.0


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences with equal numbers of tokens, computed together."""

    first: int
    """Index of the first sequence's first token; the others follow."""
    n_seqs: int
    n_tokens: int
    """Of each sequence."""
    start: int
    """Slot where the keys of a single sequence begin, in one run; -1: keys are gathered."""
    n_keys: int
    """Keys read of each sequence, masked ones included."""
    causal: bool
    """The mask is just causal, so no array varies."""


def slots_of(batch: Batch) -> NDArray[np.int32]:
    """Where each token's key is stored: int32 [n_tokens]."""
    n, size = batch.n_tokens, batch.page_size
    positions = batch.positions[:n]
    return batch.page_tables[batch.seqs[:n], positions // size] * np.int32(size) + positions % size


def bucket(n: int) -> int:
    """n rounded up to 64, 128, 192, 256, 320, 384, 448, 512, 640, …: four per octave."""
    step = max(64, 1 << max(0, (n - 1).bit_length() - 3))
    return -(-n // step) * step


def array(what: str, sight: Sight, i: int) -> str:
    """The name of an array that varies with steps: "keys", positions, or "slots" of what group i reads."""
    return f"{what}.{sight.reach}.{sight.window}.{i}"


def plan_reads(
    batch: Batch, sight: Sight, n_slots: int, rounded: bool
) -> tuple[tuple[Group, ...], dict[str, NDArray[np.int32]]]:
    """Groups of a step for layers in which tokens see so far, and by name (`array`) the arrays that vary: "keys"
    [n_seqs, n_keys], the position of each key read, or -1; and "slots", where they are gathered. `rounded`: numbers of
    keys are those of `bucket`."""
    groups: list[Group] = []
    arrays: dict[str, NDArray[np.int32]] = {}
    seq = 0
    while seq < batch.n_seqs:
        first, n = (int(v) for v in batch.spans[seq])
        last = seq + 1
        while last < batch.n_seqs and n <= _FEW and batch.spans[last, 1] == n:
            last += 1
        group, positions, slots = _plan_group(batch, range(seq, last), first, n, sight, n_slots, rounded)
        if not group.causal:
            arrays[array("keys", sight, len(groups))] = positions
        if slots is not None:
            arrays[array("slots", sight, len(groups))] = slots
        groups.append(group)
        seq = last
    return tuple(groups), arrays


def _plan_group(
    batch: Batch, seqs: range, first: int, n: int, sight: Sight, n_slots: int, rounded: bool
) -> tuple[Group, NDArray[np.int32], NDArray[np.int32] | None]:
    size = batch.page_size
    begins = batch.positions[first : first + n * len(seqs) : n]
    from_ = (sight.first(begins) // size * size).astype(np.int32)
    ends = batch.sources[seqs.start : seqs.stop] if sight.reach == "source" else begins + n
    counts = ends - from_  # keys of each sequence, from the page on that the first token sees
    window, n_keys = sight.window, int(counts.max())
    cut = window > 0 and int(begins.max()) + n > (window if sight.reach != "whole" else window // 2)
    moves = rounded and cut  # a view's start would change with every page
    if rounded:
        n_keys = min(bucket(window + n + size if cut else n_keys), n_slots)
    positions = (from_[:, None] + np.arange(n_keys)).astype(np.int32)
    positions[np.arange(n_keys) >= counts[:, None]] = -1
    if len(seqs) == 1 and not moves:
        pages = batch.page_tables[seqs[0], int(from_[0]) // size : -(-int(ends[0]) // size)]
        if (np.diff(pages) == 1).all():
            start = int(pages[0]) * size
            back = max(0, start + n_keys - n_slots)  # a run at the end of the cache: the surplus is read before it
            if back:
                positions = np.concatenate([np.full((1, back), -1, np.int32), positions[:, :-back]], axis=1)
            causal = not rounded and not cut and sight.reach not in ("whole", "source")
            return Group(first, 1, n, start - back, n_keys, causal), positions, None
    slots = np.zeros_like(positions)
    for row, seq in enumerate(seqs):
        known = positions[row, : int(counts[row])]
        slots[row, : len(known)] = batch.page_tables[seq, known // size] * size + known % size
    return Group(first, len(seqs), n, -1, n_keys, False), positions, slots


def store(cache: mx.array, slots: mx.array, x: mx.array) -> None:
    """Store x [tokens, n_kv_heads * dim] in the cache; in place, where nothing else refers to the array."""
    x = x.reshape(len(x), *cache.shape[1:])
    if cache.dtype == mx.float16:
        x = mx.clip(x, -_LARGEST_HALF, _LARGEST_HALF)  # an infinite value would have an effect even where it is masked
    cache[slots] = x.astype(cache.dtype)


def hidden_mask(keys: mx.array, queries: mx.array, sight: Sight) -> mx.array:
    """Attention mask of positions of keys [n_seqs, n_keys], -1: none, and queries [n_seqs, n]: bool
    [n_seqs, 1, n, n_keys], True: visible."""
    k, q, window = keys[:, None, None, :], queries[:, None, :, None], sight.window
    if sight.reach == "source":
        return mx.broadcast_to(k >= 0, (*q.shape[:3], k.shape[3]))
    if sight.reach == "whole":
        near = mx.abs(k - q) <= (window // 2 if window else 1 << 30)
        return mx.logical_and(k >= 0, near)
    seen = mx.logical_and(k >= 0, k <= q)
    if not window:
        return seen
    return mx.logical_and(seen, k >= q // window * window if sight.reach == "chunked" else k > q - window)


def read(cache: mx.array, group: Group, slots: mx.array | None) -> mx.array:
    """Keys of a group, [n_seqs, n_kv_heads, n_keys, dim]."""
    if slots is None:
        return cache[group.start : group.start + group.n_keys].transpose(1, 0, 2)[None]
    n_kv, dim = cache.shape[1:]
    which = slots[:, None, :] * n_kv + mx.arange(n_kv)[None, :, None]
    return cache.reshape(-1, dim)[which]


def distances(group: Group, keys: mx.array | None, positions: mx.array) -> mx.array:
    """Positions of keys less those of a group's tokens, int32 [n_seqs, n, n_keys]. `keys`: their positions, as
    `plan_reads` has them; None: those of a causal group."""
    if keys is None:
        keys = mx.arange(group.n_keys)[None]
    queries = positions[group.first : group.first + group.n_seqs * group.n_tokens].reshape(group.n_seqs, -1)
    return keys[:, None] - queries[:, :, None]


def by_distance(op: Attention, distance: mx.array, biases: mx.array | None) -> mx.array:
    """What is added to scores for `distances`: [n_seqs, n_heads, n, n_keys]."""
    if biases is None:
        return mx.array(op.slopes)[:, None, None] * -mx.abs(distance)[:, None].astype(mx.float32)
    far = biases.shape[1] // 2
    return biases[:, mx.clip(distance, -far, far) + far].swapaxes(0, 1)


def attention(
    op: Attention,
    q: mx.array,
    keys: mx.array,
    values: mx.array,
    mask: mx.array | str,
    sinks: mx.array | None,
    added: mx.array | None = None,
) -> mx.array:
    """q [n_seqs, n, n_heads * head_dim], keys and values of `read` → [n_seqs * n, n_heads * v_head_dim]. `added`: to
    scores, of `by_distance`.

    Operands have q's type, or the keys'. Scores and sums are float32, except that on a GPU mlx rounds scores to that
    type for head sizes without a kernel (below 64; 192 and 256 in prefill; 72 and 80 in decode). Scores that are capped
    or depend on distance are plain float32 operations.
    """
    n_seqs, n, _ = q.shape
    heads = q.reshape(n_seqs, n, op.n_heads, op.head_dim).transpose(0, 2, 1, 3)
    if is_plain(op):
        out = _plain(op, heads, keys, values, mask, sinks, added)
    else:
        if sinks is not None:
            sinks = sinks.astype(heads.dtype)
        out = mx.fast.scaled_dot_product_attention(heads, keys, values, scale=op.scale, mask=mask, sinks=sinks)
    return out.transpose(0, 2, 1, 3).reshape(n_seqs * n, -1)


def is_plain(op: Attention) -> bool:
    """Whether scores are computed one by one, as no kernel of mlx has them."""
    return bool(op.softcap or op.slopes or op.biases)


def _plain(
    op: Attention,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    mask: mx.array | str,
    sinks: mx.array | None,
    added: mx.array | None,
) -> mx.array:
    n_seqs, _, n, _ = q.shape
    n_keys, per_kv = k.shape[2], op.n_heads // op.n_kv_heads
    grouped = q.reshape(n_seqs, op.n_kv_heads, per_kv, n, op.head_dim).astype(mx.float32)
    scores = (grouped * op.scale) @ k[:, :, None].astype(mx.float32).swapaxes(-1, -2)
    if op.softcap:
        scores = soft_cap(scores, op.softcap)
    if added is not None:
        scores = scores + added.reshape(scores.shape)
    if isinstance(mask, str):
        mask = mx.arange(n_keys)[None] <= mx.arange(n_keys - n, n_keys)[:, None]
    else:
        mask = mask[:, :, None]
    scores = mx.where(mask, scores, -mx.inf)
    if sinks is not None:
        sink = mx.broadcast_to(sinks.reshape(1, op.n_kv_heads, per_kv, 1, 1), (*scores.shape[:-1], 1))
        scores = mx.concatenate([scores, sink], axis=-1)
    weights = mx.softmax(scores, axis=-1, precise=True)[..., :n_keys]
    out = weights @ v[:, :, None].astype(mx.float32)
    return out.reshape(n_seqs, op.n_heads, n, op.v_head_dim)


def masks(
    sight: Sight, groups: tuple[Group, ...], arrays: Mapping[str, mx.array], positions: mx.array
) -> list[mx.array | str]:
    """The mask of each group, for layers in which tokens see so far."""
    out: list[mx.array | str] = []
    for i, group in enumerate(groups):
        if group.causal:
            out.append("causal")
            continue
        queries = positions[group.first : group.first + group.n_seqs * group.n_tokens].reshape(group.n_seqs, -1)
        out.append(hidden_mask(arrays[array("keys", sight, i)], queries, sight))
    return out
