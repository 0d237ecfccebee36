"""The loop of every encoder: rows are taken one by one, widened, encoded, decoded again, and their error is summed.

Slots: step, counter, source, bytes between source rows, rows, columns, importance (float32 [columns], 0: none), target,
bytes between target rows, errors (float64 [rows][2]), scratch, bytes of scratch per thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    atomic_add,
    hsum_f32,
    load_bf16x16,
    load_f16,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i64,
    load_u16,
    store_f32,
    store_f32x16,
    store_f64,
    store_i32,
)
from pyllm.quant.kernels.decoders import BLOCKS


def encode_rows(row: Any, format: str, source: str) -> Any:
    """Kernel around `row(x, w, columns, target, scratch)`, which encodes one row.

    x: float32 [columns], finite; w: importance, float32 [columns], not negative, or 0 for none; target: the row's
    blocks; scratch: `pyllm.quant.encoder.EXTRA_SCRATCH` bytes. All addresses. `source` is the format of the rows that
    are read: "f32", "f16" or "bf16". Errors per row: sum of w (decoded - x)², sum of w x² (w = 1 without importance),
    not-a-number where the row has values that are none; such a row is not encoded.
    """
    decode, block_size, block_bytes = BLOCKS[format]
    widen = {"f32": _from_f32, "f16": _from_f16, "bf16": _from_bf16}[source]

    def kernel(args, thread, n_threads):
        counter = load_i64(args + 8)
        src, src_stride = load_i64(args + 16), load_i64(args + 24)
        n_rows, columns = load_i64(args + 32), load_i64(args + 40)
        importance = load_i64(args + 48)
        dst, dst_stride = load_i64(args + 56), load_i64(args + 64)
        errors = load_i64(args + 72)
        x = load_i64(args + 80) + thread * load_i64(args + 88)
        decoded = x + 4 * columns
        scratch = decoded + 4 * columns
        while True:
            r = atomic_add(counter, 1)
            if r >= n_rows:
                break
            out = dst + r * dst_stride
            widen(src + r * src_stride, x, columns)
            power = _power(x, importance, columns)
            error = power - power  # not a number, if a weight is none or infinite
            if error == 0.0:
                row(x, importance, columns, out, scratch)
                for b in range(columns // block_size):
                    decode(out + b * block_bytes, decoded + 4 * block_size * b)
                error = _error(x, decoded, importance, columns)
            store_f64(errors + 16 * r, error)
            store_f64(errors + 16 * r + 8, power)

    return kernel


@register_jitable
def _from_f32(src, dst, n):
    for c in range(0, n - 15, 16):
        store_f32x16(dst + 4 * c, load_f32x16(src + 4 * c))
    for c in range(n // 16 * 16, n):
        store_f32(dst + 4 * c, load_f32(src + 4 * c))


@register_jitable
def _from_f16(src, dst, n):
    for c in range(0, n - 15, 16):
        store_f32x16(dst + 4 * c, load_f16x16(src + 2 * c))
    for c in range(n // 16 * 16, n):
        store_f32(dst + 4 * c, load_f16(src + 2 * c))


@register_jitable
def _from_bf16(src, dst, n):
    for c in range(0, n - 15, 16):
        store_f32x16(dst + 4 * c, load_bf16x16(src + 2 * c))
    for c in range(n // 16 * 16, n):
        store_i32(dst + 4 * c, load_u16(src + 2 * c) << 16)


@register_jitable
def _power(x, w, n):
    """Sum of w x²; each 16 columns in float32, these sums in float64."""
    total = np.float64(0)
    for c in range(0, n - 15, 16):
        v = load_f32x16(x + 4 * c)
        weighted = v * load_f32x16(w + 4 * c) if w != 0 else v
        total += np.float64(hsum_f32(v * weighted))
    for c in range(n // 16 * 16, n):
        v = np.float64(load_f32(x + 4 * c))
        total += v * v * (np.float64(load_f32(w + 4 * c)) if w != 0 else 1.0)
    return total


@register_jitable
def _error(x, decoded, w, n):
    total = np.float64(0)
    for c in range(0, n - 15, 16):
        e = load_f32x16(x + 4 * c) - load_f32x16(decoded + 4 * c)
        weighted = e * load_f32x16(w + 4 * c) if w != 0 else e
        total += np.float64(hsum_f32(e * weighted))
    for c in range(n // 16 * 16, n):
        e = np.float64(load_f32(x + 4 * c)) - np.float64(load_f32(decoded + 4 * c))
        total += e * e * (np.float64(load_f32(w + 4 * c)) if w != 0 else 1.0)
    return total
