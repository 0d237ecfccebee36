"""Encoders of the formats with one scale to 32 weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    abs_f32,
    hmax_f32,
    load_f32x16,
    max_f32,
    min_f32,
    round_f16,
    round_to_i32,
    splat_f32,
    store_f16,
    store_i8x16,
)
from pyllm.quant.kernels.rows import encode_rows


def encode(format: str, source: str) -> Any:
    """Kernel that encodes rows (`rows.encode_rows`)."""
    return encode_rows(_ROWS[format], format, source)


@register_jitable
def _q8_0(x, w, columns, target, scratch):
    """The largest weight of a block becomes 127: with 8 bits, searching for a better scale gains next to nothing."""
    for b in range(columns // 32):
        v0, v1 = load_f32x16(x + 128 * b), load_f32x16(x + 128 * b + 64)
        d = round_f16(hmax_f32(max_f32(abs_f32(v0), abs_f32(v1))) / np.float32(127))
        store_f16(target + 34 * b, d)
        inverse = splat_f32(np.float32(1) / d if d > np.float32(0) else np.float32(0))
        store_i8x16(target + 34 * b + 2, _byte(v0 * inverse))
        store_i8x16(target + 34 * b + 18, _byte(v1 * inverse))


@register_jitable
def _byte(q):
    """Rounded to -127 .. 127: where the scale is a denormal or the largest half, values may lie outside."""
    return round_to_i32(min_f32(max_f32(q, splat_f32(np.float32(-127))), splat_f32(np.float32(127))))


_ROWS = {"Q8_0": _q8_0}
