"""Launches of attention over KV caches: one kernel for few tokens of a sequence, one for many.

Sequences of up to FEW_TOKENS tokens in a step split their positions over blocks (attention_split.cu), and the results
are combined; longer ones are computed in tiles (attention_prompt.cu). Float32 caches use one float kernel for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cuda import elementwise
from pyllm.backends.cuda.kv import PAD, cache_defines, cache_members
from pyllm.backends.cuda.launch import (
    TOKENS,
    Facts,
    Forms,
    Launch,
    StepArrays,
    StepShape,
    View,
    fill,
    round_up,
    struct,
)
from pyllm.backends.plan.memory import Buffer
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError
from pyllm.program.ops.attention import REACHES, Attention
from pyllm.records import dataclass

FEW_TOKENS = 8
"""Most tokens of a sequence whose positions are split over blocks."""

_WARPS = 4

_INPUTS = {
    "step": "ptr", "positions": "ptr", "spans": "ptr", "page_tables": "ptr", "q": "ptr", "keys": "ptr",
    "values": "ptr", "slopes": "ptr", "page_stride": "int", "q_ld": "int", "n_kv": "int", "window": "int",
    "scale": "float", "softcap": "float",
}  # fmt: skip
_SPLIT = struct(**_INPUTS, partial="ptr", stats="ptr", n_splits="int", most="int", slots="int")
_PROMPT = struct(**_INPUTS, sinks="ptr", out="ptr", out_ld="int", few="int")
_COMBINE = struct(
    **elementwise.FORMS, step="ptr", spans="ptr", partial="ptr", stats="ptr", sinks="ptr", n_heads="int",
    n_splits="int", most="int", slots="int",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Attend:
    """One attention op on a device."""

    arrays: StepArrays
    op: Attention
    options: ExecutionOptions
    facts: Facts
    cache: Buffer
    q: View
    slopes: Buffer | None
    """Or biases."""
    sinks: Buffer | None

    @property
    def group(self) -> int:
        return self.op.n_heads // self.op.n_kv_heads

    @property
    def widest(self) -> int:
        return max(self.op.head_dim, self.op.v_head_dim)

    @property
    def is_float(self) -> bool:
        return self.options.kv_dtype == "f32"

    @property
    def defines(self) -> dict[str, int | str]:
        op = self.op
        return {
            **cache_defines(op, self.options), "GROUP": self.group, "SOFTCAP": int(op.softcap != 0),
            "WINDOW": int(op.window != 0), "REACH": REACHES.index(op.reach), "SLOPES": int(bool(op.slopes)),
            "BIASES": self.slopes.n_bytes // (4 * op.n_heads) if self.slopes and op.biases else 0,
        }  # fmt: skip

    def inputs(self) -> dict[str, Any]:
        """Members of `struct Inputs` of kernels/attention.cuh."""
        a, op = self.arrays, self.op
        return {
            "step": a.step, "positions": a.positions, "spans": a.spans, "page_tables": a.page_tables, "q": self.q,
            **cache_members(op, self.options, self.cache), "slopes": self.slopes, "page_stride": a.page_stride,
            "q_ld": self.q.ld, "n_kv": op.n_kv_heads, "window": op.window, "scale": op.scale, "softcap": op.softcap,
        }  # fmt: skip


def attend(
    arrays: StepArrays,
    op: Attention,
    options: ExecutionOptions,
    cache: Buffer,
    q: View,
    y: Forms,
    slopes: Buffer | None,
    sinks: Buffer | None,
    facts: Facts,
) -> list[Launch]:
    """y [tokens, n_heads * v_head_dim] = attention of queries over what the cache holds, this step's keys included.

    slopes: float32 [n_heads], or biases by distance, [n_heads][2 n + 1].
    """
    a = _Attend(arrays, op, options, facts, cache, q, slopes, sinks)
    if a.is_float:
        return _split_launches(a, y, lambda shape: True)
    only_few = _split_launches(a, y, lambda shape: shape.max_span <= FEW_TOKENS)
    if options.max_tokens <= FEW_TOKENS:
        return only_few
    rows = y.f32 or View.room(options.max_tokens, op.out.width)
    beside = _split_launches(a, Forms(rows), lambda shape: shape.max_span > FEW_TOKENS and shape.n_seqs > 1)
    return [*only_few, *beside, *_prompt_launches(a, y, rows)]


# --- few tokens of a sequence

_LEAST_PART = 2 * _WARPS * 16
"""Positions that a block takes at least, as kernels/attention_split.cuh has it."""
_LONG_PART = 256
"""Positions that justify a block even when other blocks wait for a multiprocessor."""
_WAVES = 4
"""Least number of waves of blocks over all multiprocessors, where one wave does not suffice."""


@dataclass(frozen=True, slots=True)
class _Split:
    """How positions are split over blocks of attention_split.cu or attention_float.cu."""

    a: _Attend

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return 16 if self.a.group > 8 and self.a.widest <= 128 and not self.a.is_float else 8

    @property
    def resident(self) -> int:
        """Resident blocks, by their registers."""
        return self.a.facts.n_sm * (5 if self.a.widest <= 64 else 3 if self.a.widest <= 128 and self.rows == 8 else 2)

    def slots(self, shape: StepShape) -> int:
        """Tokens per sequence with room for results; 0: results have a row for every token."""
        return 0 if self.a.is_float else min(shape.max_span, FEW_TOKENS)

    def n_tokens(self, shape: StepShape) -> int:
        """Tokens with room for results."""
        return shape.n_seqs * self.slots(shape) or shape.n_tokens

    def chunks(self, shape: StepShape) -> int:
        """Blocks for the rows of a sequence and KV head."""
        return -(-(self.slots(shape) or shape.max_span) * self.a.group // self.rows)

    def n_splits(self, shape: StepShape) -> int:
        """Splits: as many as are resident, or several waves where each has enough work."""
        blocks = shape.n_seqs * self.a.op.n_kv_heads * self.chunks(shape)
        visible = min(shape.max_context, self.a.op.window + shape.max_span) if self.a.op.window else shape.max_context
        many = _WAVES * self.resident // blocks
        if many > 1 and visible >= many * _LONG_PART:
            return many
        return max(1, min(self.resident // blocks, -(-visible // _LEAST_PART)))

    def most_results(self) -> int:
        """Largest product of rows and splits of a step."""
        o, op = self.a.options, self.a.op
        n_tokens = o.max_tokens if self.a.is_float else o.max_seqs * min(o.max_tokens, FEW_TOKENS)
        return max(n_tokens * op.n_heads, _WAVES * self.resident * self.rows)

    def grid(self, shape: StepShape) -> tuple[int, int, int]:
        return self.n_splits(shape) * self.chunks(shape), self.a.op.n_kv_heads, shape.n_seqs

    @property
    def most(self) -> int:
        """Most tokens of a sequence that takes this kernel."""
        return self.a.options.max_tokens if self.a.is_float else FEW_TOKENS


def _split_launches(a: _Attend, y: Forms, when: Callable[[StepShape], bool]) -> list[Launch]:
    split = _Split(a)
    partial = Buffer(4 * a.op.v_head_dim * split.most_results())
    stats = Buffer(8 * split.most_results())
    name = "attention_float" if a.is_float else "attention_split"

    def args(shape: StepShape) -> NDArray[np.void]:
        return fill(
            _SPLIT, **a.inputs(), partial=partial, stats=stats, n_splits=split.n_splits(shape), most=split.most,
            slots=split.slots(shape),
        )  # fmt: skip

    first = Launch(
        f"{name}.cu",
        name,
        split.grid,
        32 * _WARPS,
        args,
        "attention of few",
        defines={**a.defines, "ROWS": split.rows},
        when=when,
        reads=(a.q.buffer, a.cache),
        writes=(partial, stats),
    )

    def halves(shape: StepShape) -> bool:
        return y.at(shape.n_tokens).half is not None

    out = [first]
    if y.f32 or y.q8:
        rest = Forms(y.f32, y.q8, None, y.few)
        out.append(_combine(split, partial, stats, rest, lambda shape: when(shape) and not halves(shape)))
    if y.half:
        out.append(_combine(split, partial, stats, y, lambda shape: when(shape) and halves(shape)))
    return out


def _combine(split: _Split, partial: Buffer, stats: Buffer, y: Forms, when: Callable[[StepShape], bool]) -> Launch:
    """The launch that combines splits; in whole rows where float16 rows are wanted."""
    a, width = split.a, split.a.op.out.width
    threads, per_thread = elementwise.whole_row(width) if y.half else (32 * _WARPS, 1)
    blocks = 1 if y.half else -(-width // 128)

    def args(shape: StepShape) -> NDArray[np.void]:
        return fill(
            _COMBINE, **elementwise.form_members(y.at(shape.n_tokens), width), step=a.arrays.step, spans=a.arrays.spans,
            partial=partial, stats=stats, sinks=a.sinks, n_heads=a.op.n_heads, n_splits=split.n_splits(shape),
            most=split.most, slots=split.slots(shape),
        )  # fmt: skip

    return Launch(
        "attention_combine.cu",
        "combine",
        lambda shape: (split.n_tokens(shape), blocks, 1),
        threads,
        args,
        "combine attention",
        defines={
            "V_HEAD": a.op.v_head_dim, "SINKS": int(a.sinks is not None), "TOGETHER": int(y.half is None),
            "THREADS": threads, "PER_THREAD": per_thread,
        },
        when=when,
        reads=(partial, stats),
        writes=y.buffers,
    )  # fmt: skip


# --- many tokens of a sequence


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Rows and positions of a block of attention_prompt.cu."""

    m_tiles: int
    keys: int

    @property
    def rows(self) -> int:
        return 16 * _WARPS * self.m_tiles

    def shared(self, a: _Attend) -> int:
        """Bytes of shared memory, divided as in the kernel."""
        kind = a.options.kv_dtype
        widths = [round_up(size, PAD[kind]) for size in (a.op.head_dim, a.op.v_head_dim)]
        raw = sum(width + width // 32 * 2 for width in widths) if kind == "q8_0" else 0
        return self.rows * 2 * (widths[0] + 8) + self.keys * (2 * (sum(widths) + 16) + raw)


def _tilings(a: _Attend) -> list[_Tiling]:
    """The largest tiles that leave room for a second block, and tiles of fewer rows for steps of few blocks. Raises
    BackendError where no tile fits."""
    found: list[_Tiling] = []
    for m_tiles in (2, 1) if a.widest <= 128 else (1,):
        # more positions than these and a thread's scores do not fit its registers
        most_keys = 64 if a.widest <= 96 or m_tiles == 1 else 32
        sizes = [_Tiling(m_tiles, keys) for keys in (64, 32, 16) if keys <= most_keys]
        roomy = [t for t in sizes if 2 * t.shared(a) <= a.facts.max_shared]
        fitting = [t for t in sizes if t.shared(a) <= a.facts.max_shared]
        found += roomy[:1] or fitting[:1]
    if not found:
        raise BackendError(
            f"attention of heads of {a.widest} columns needs {_Tiling(1, 16).shared(a):,} bytes of shared memory; this "
            f"device has {a.facts.max_shared:,}; the cpu backend computes it, and so does an f32 cache"
        )
    return found


def _prompt_launches(a: _Attend, y: Forms, rows: View) -> list[Launch]:
    """Tiles of more rows where these fill every multiprocessor; then `rows` in y's other dtypes."""
    large, *small = _tilings(a)

    def grid(tiling: _Tiling, shape: StepShape) -> tuple[int, int, int]:
        sequences = min(shape.n_seqs, max(1, shape.n_tokens // (FEW_TOKENS + 1)))
        return shape.n_tokens * a.group // tiling.rows + sequences, a.op.n_kv_heads, 1

    def fills(shape: StepShape) -> bool:
        return not small or shape.n_tokens * a.group // large.rows * a.op.n_kv_heads >= a.facts.n_sm

    def launch(tiling: _Tiling, when: Callable[[StepShape], bool]) -> Launch:
        return Launch(
            "attention_prompt.cu",
            "attention_prompt",
            lambda shape: grid(tiling, shape),
            32 * _WARPS,
            lambda shape: fill(_PROMPT, **a.inputs(), sinks=a.sinks, out=rows, out_ld=rows.ld, few=FEW_TOKENS),
            "attention of prompts",
            defines={**a.defines, "M_TILES": tiling.m_tiles, "KEYS": tiling.keys, "SINKS": int(a.sinks is not None)},
            shared=tiling.shared(a),
            when=when,
            reads=(a.q.buffer, a.cache),
            writes=(rows.buffer,),
        )

    def has_prompt(shape: StepShape) -> bool:
        return shape.max_span > FEW_TOKENS

    out = [launch(large, lambda shape: has_prompt(shape) and fills(shape))]
    out += [launch(t, lambda shape: has_prompt(shape) and not fills(shape)) for t in small]
    if y.q8 or y.half:
        other = Forms(None, y.q8, y.half, y.few)
        for convert in elementwise.convert(a.arrays, TOKENS, rows, other, a.op.out.width):
            out.append(replace(convert, when=_both(has_prompt, convert.when)))
    return out


def _both(a: Callable[[StepShape], bool], b: Callable[[StepShape], bool]) -> Callable[[StepShape], bool]:
    return lambda shape: a(shape) and b(shape)
