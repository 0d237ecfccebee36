"""Launches that rotate queries and keys and store keys and values, and the KV caches.

A KV cache is one buffer: all pages of keys, then all pages of values; kernels/kv.cuh describes a page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cuda.launch import Launch, StepArrays, StepShape, View, fill, round_up, struct
from pyllm.backends.plan.memory import Buffer
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError
from pyllm.program import KVSpec
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.rope import Rope
from pyllm.records import dataclass

MOST_HEAD = 256
"""Most columns of a head, by the kernels' registers."""

_WARPS = 4
_KINDS = {"f32": 0, "f16": 1, "q8_0": 2}
PAD = {"f32": 4, "f16": 16, "q8_0": 32}
"""Multiple of columns to which heads are padded in a cache."""
_ELEMENT = {"f32": 4, "f16": 2, "q8_0": 1}

_STORE = struct(
    step="ptr", positions="ptr", seqs="ptr", page_tables="ptr", q="ptr", k="ptr", v="ptr", q_out="ptr", keys="ptr",
    values="ptr", inv_freq="ptr", q_norm="ptr", k_norm="ptr", page_stride="int", q_ld="int", k_ld="int", v_ld="int",
    q_out_ld="int", q_norm_step="int", k_norm_step="int", n_q="int", n_k="int", mscale="float", q_eps="float",
    k_eps="float",
)  # fmt: skip


def _head_bytes(size: int, options: ExecutionOptions) -> int:
    """Bytes of one head's keys or values in one page."""
    width = round_up(size, PAD[options.kv_dtype])
    scales = width // 32 * 2 if options.kv_dtype == "q8_0" else 0
    return options.page_size * (width * _ELEMENT[options.kv_dtype] + scales)


def _part_bytes(n_heads: int, size: int, options: ExecutionOptions) -> int:
    return options.n_pages * n_heads * _head_bytes(size, options)


def cache_bytes(op: Attention | KVSpec, options: ExecutionOptions) -> int:
    """Bytes of a layer's cache, a buffer that must be zero at first.

    Raises BackendError for unsupported heads and page sizes.
    """
    widest = max(op.head_dim, op.v_head_dim)
    if widest > MOST_HEAD:
        raise BackendError(
            f"the CUDA backend has attention for heads of up to {MOST_HEAD} columns, not of {widest}; "
            "the CPU takes any (-ngl 0)"
        )
    if options.page_size % 16:
        raise BackendError(f"the CUDA backend needs pages of a multiple of 16 positions, not {options.page_size}")
    sizes = op.head_dim, op.v_head_dim
    return sum(_part_bytes(op.n_kv_heads, size, options) for size in sizes)


def page_parts(spec: KVSpec, options: ExecutionOptions, cache: Buffer, page: int) -> list[tuple[int, int]]:
    """Address and bytes of a page's keys, and of its values."""
    values = cache.address + _part_bytes(spec.n_kv_heads, spec.head_dim, options)
    keys, others = (spec.n_kv_heads * _head_bytes(size, options) for size in (spec.head_dim, spec.v_head_dim))
    return [(cache.address + page * keys, keys), (values + page * others, others)]


def cache_members(op: Attention, options: ExecutionOptions, cache: Buffer) -> dict[str, int]:
    """Addresses for kernels, resolved when `cache` has one."""
    values = cache.address + _part_bytes(op.n_kv_heads, op.head_dim, options)
    return {"keys": cache.address, "values": values}


def cache_defines(op: Attention, options: ExecutionOptions) -> dict[str, int | str]:
    """Defines of kernels/kv.cuh."""
    return {
        "HEAD": op.head_dim, "V_HEAD": op.v_head_dim, "KV": _KINDS[options.kv_dtype], "PAGE": options.page_size
    }  # fmt: skip


# --- rotation and storing


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """A norm of each head before its rotation."""

    weight: Buffer | None
    step: int
    """Floats from one head's weights to the next's: 0 (shared) or head_dim."""
    eps: float


@dataclass(frozen=True, slots=True)
class _Heads:
    """`n` heads of queries or keys on their way into attention."""

    x: View | None = None
    n: int = 0
    norm: HeadNorm | None = None

    def members(self, name: str) -> dict[str, Any]:
        norm = self.norm or HeadNorm(None, 0, 0.0)
        return {
            name: self.x, f"{name}_ld": self.x.ld if self.x else 0, f"n_{name}": self.n, f"{name}_norm": norm.weight,
            f"{name}_norm_step": norm.step, f"{name}_eps": norm.eps,
        }  # fmt: skip


def rope(arrays: StepArrays, op: Rope, x: View, y: View, inv_freq: Buffer) -> Launch:
    """y = x, rotated; `inv_freq` are the op's as float32 on the device."""
    defines: dict[str, int | str] = {"HEAD": op.head_dim, "V_HEAD": op.head_dim, "KV": 0, "PAGE": 16}
    heads = _Heads(x, op.out.width // op.head_dim)
    return _store(
        arrays, defines, lambda: {"keys": 0, "values": 0}, heads, y, _Heads(), None, op, inv_freq, label="rotate"
    )


def store(
    arrays: StepArrays,
    op: Attention,
    options: ExecutionOptions,
    cache: Buffer,
    *,
    q: View,
    k: View | None,
    v: View | None,
    rotated_q: View,
    rope: Rope | None = None,
    inv_freq: Buffer | None = None,
    q_norm: HeadNorm | None = None,
    k_norm: HeadNorm | None = None,
) -> Launch:
    """Store keys, normed and rotated, and values in the cache; write queries, likewise, to `rotated_q` (in place:
    unchanged if there is nothing to do). Without k and v only queries are rotated."""
    queries = _Heads() if rotated_q == q else _Heads(q, op.n_heads, q_norm)
    keys = _Heads(k, op.n_kv_heads, k_norm) if k else _Heads()
    launch = _store(
        arrays, cache_defines(op, options), lambda: cache_members(op, options, cache), queries, rotated_q,
        keys, v, rope, inv_freq, label="store keys" if k else "turn queries",
    )  # fmt: skip
    return replace(launch, writes=(*launch.writes, cache)) if k else launch


def _store(
    arrays: StepArrays,
    defines: dict[str, int | str],
    caches: Callable[[], dict[str, int]],
    q: _Heads,
    q_out: View,
    k: _Heads,
    v: View | None,
    turn: Rope | None,
    inv_freq: Buffer | None,
    *,
    label: str,
) -> Launch:
    def args(shape: StepShape) -> NDArray[np.void]:
        return fill(
            _STORE, step=arrays.step, positions=arrays.positions, seqs=arrays.seqs, page_tables=arrays.page_tables,
            v=v, q_out=q_out, **caches(), inv_freq=inv_freq, page_stride=arrays.page_stride, v_ld=v.ld if v else 0,
            q_out_ld=q_out.ld, **q.members("q"), **k.members("k"), mscale=turn.mscale if turn else 1.0,
        )  # fmt: skip

    return Launch(
        "rope.cu",
        "rope_store",
        lambda shape: (shape.n_tokens, -(-(q.n + 2 * k.n) // _WARPS), 1),
        32 * _WARPS,
        args,
        label,
        defines={
            **defines, "PAIRS": len(turn.inv_freq) if turn else 0, "INTERLEAVED": int(bool(turn and turn.interleaved)),
            "Q_NORM": int(q.norm is not None), "K_NORM": int(k.norm is not None),
        },
        reads=tuple(view.buffer for view in (q.x, k.x, v) if view),
        writes=(q_out.buffer,) if q.n else (),
    )  # fmt: skip
