"""Quantized activations: a row stored as 8-bit integers with scales and sums, or as bfloat16.

A record is 2 * Kp bytes, Kp = columns rounded up to 32, G = Kp / 32:

    wide 0, decode path    int8 q[Kp] | float32 scale[G] | float32 scale * sum[G] | int32 sum16[2 G]
    wide 1, prefill path   bfloat16 [Kp]

scale is absmax / 127 of 32 columns, q = round(x / scale); sums are of q, over 32 and over 16 columns: they carry the
offsets and minima of the weight formats, whose stored integers are unsigned.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    abs_f32,
    hmax_f32,
    hsum_i32,
    load_f32x16,
    max_f32,
    round_to_i32,
    splat_f32,
    store_bf16x16,
    store_f32,
    store_i8x16,
    store_i32,
)


@register_jitable
def store_activation(src, dst, n_cols, wide):
    """Store a row of `n_cols` float32 (readable and finite up to the next multiple of 32) as a record at `dst`."""
    n_groups = (n_cols + 31) // 32
    if wide != 0:
        for i in range(2 * n_groups):
            store_bf16x16(dst + 32 * i, load_f32x16(src + 64 * i))
        return
    scales = dst + 32 * n_groups
    for g in range(n_groups):
        a = load_f32x16(src + 128 * g)
        b = load_f32x16(src + 128 * g + 64)
        scale = hmax_f32(max_f32(abs_f32(a), abs_f32(b))) * np.float32(1 / 127)
        inverse = splat_f32(np.float32(1) / scale if scale > np.float32(1e-30) else np.float32(0))
        qa = round_to_i32(a * inverse)
        qb = round_to_i32(b * inverse)
        store_i8x16(dst + 32 * g, qa)
        store_i8x16(dst + 32 * g + 16, qb)
        sa = hsum_i32(qa)
        sb = hsum_i32(qb)
        store_f32(scales + 4 * g, scale)
        store_f32(scales + 4 * (n_groups + g), scale * np.float32(sa + sb))
        store_i32(scales + 8 * (n_groups + g), sa)
        store_i32(scales + 8 * (n_groups + g) + 4, sb)
