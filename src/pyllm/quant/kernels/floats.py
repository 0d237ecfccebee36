"""Encoders of formats without blocks: weights are rounded one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    load_f32,
    load_f32x16,
    load_i32,
    max_f32,
    min_f32,
    round_f16,
    round_f16x16,
    splat_f32,
    store_bf16x16,
    store_f16,
    store_f16x16,
    store_f32,
    store_f32x16,
    store_i16,
)
from pyllm.quant.kernels.rows import encode_rows


def encode(format: str, source: str) -> Any:
    """Kernel that encodes rows (`rows.encode_rows`)."""
    return encode_rows(_ROWS[format], format, source)


@register_jitable
def _f32(x, w, columns, target, scratch):
    for c in range(0, columns - 15, 16):
        store_f32x16(target + 4 * c, load_f32x16(x + 4 * c))
    for c in range(columns // 16 * 16, columns):
        store_f32(target + 4 * c, load_f32(x + 4 * c))


@register_jitable
def _f16(x, w, columns, target, scratch):
    """The nearest finite half."""
    for c in range(0, columns - 15, 16):
        store_f16x16(target + 2 * c, round_f16x16(load_f32x16(x + 4 * c)))
    for c in range(columns // 16 * 16, columns):
        store_f16(target + 2 * c, round_f16(load_f32(x + 4 * c)))


_MOST = np.array([0x7F7F0000], np.uint32).view(np.float32)[0]  # the largest bfloat16


@register_jitable
def _bf16(x, w, columns, target, scratch):
    """The nearest finite bfloat16, ties to even."""
    for c in range(0, columns - 15, 16):
        store_bf16x16(target + 2 * c, min_f32(max_f32(load_f32x16(x + 4 * c), splat_f32(-_MOST)), splat_f32(_MOST)))
    for c in range(columns // 16 * 16, columns):
        store_f32(scratch, min(max(load_f32(x + 4 * c), -_MOST), _MOST))
        bits = load_i32(scratch)
        store_i16(target + 2 * c, bits + 0x7FFF + (bits >> 16 & 1) >> 16)


_ROWS = {"F32": _f32, "F16": _f16, "BF16": _bf16}
