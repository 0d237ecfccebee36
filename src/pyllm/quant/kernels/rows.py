"""The loop of every encoder: rows are taken one by one, widened, encoded, decoded again, and their error is summed.

Slots: step, counter, source, bytes between source rows, rows, columns, importance (float32 [columns], 0: none), the
same as encoders take it, target, bytes between target rows, errors (float64 [rows][2]), scratch, bytes of scratch per
thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    atomic_add,
    fma,
    hsum_f32,
    load_bf16x16,
    load_f16,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i64,
    load_u16,
    max_f32,
    min_f32,
    splat_f32,
    sqrt_f32,
    store_f32,
    store_f32x16,
    store_f64,
    store_i32,
    zero_f32,
)
from pyllm.quant.kernels.decoders import BLOCKS

_MOST = np.float32(1e15)  # beyond what blocks can hold, but for MXFP4; its square is still a float32


def encode_rows(row: Any, format: str, source: str, level: bool = False) -> Any:
    """Kernel around `row(x, w, columns, target, scratch)`, which encodes one row.

    x: float32 [columns], finite, from -1e15 to 1e15 if the format has blocks; w: what squared errors are weighed by,
    made of importance and x (`_weigh`; importance alone if `level`), float32 [columns], positive, or 0 for none;
    target: the row's blocks; scratch: `pyllm.quant.encoder.EXTRA_SCRATCH` bytes. All addresses. `source` is the format
    of the rows that are read, in lower case ("f16", "q4_k"). Errors per row, importance w: sum of w (decoded - x)², sum
    of w x² (w = 1 without importance), in which magnitudes above 1e15 count as that; not-a-number where the row has
    values that are none or infinite; such a row is not encoded.
    """
    decode, block_size, block_bytes = BLOCKS[format]
    widen = _PLAIN.get(source) or _from_blocks(source.upper())
    blocks = block_size > 1
    weigh = blocks and not level

    def kernel(args, thread, n_threads):
        counter = load_i64(args + 8)
        src, src_stride = load_i64(args + 16), load_i64(args + 24)
        n_rows, columns = load_i64(args + 32), load_i64(args + 40)
        importance, weights = load_i64(args + 48), load_i64(args + 56)
        dst, dst_stride = load_i64(args + 64), load_i64(args + 72)
        errors = load_i64(args + 80)
        x = load_i64(args + 88) + thread * load_i64(args + 96)
        decoded = x + 4 * columns
        scratch = decoded + 4 * columns
        while True:
            r = atomic_add(counter, 1)
            if r >= n_rows:
                break
            out = dst + r * dst_stride
            widen(src + r * src_stride, x, columns)
            error = _finite(x, columns)
            if error == 0.0:
                if blocks:
                    _hold(x, columns)
                if weigh and weights != 0:
                    _weigh(x, weights, decoded, columns)
                    row(x, decoded, columns, out, scratch)
                else:
                    row(x, weights, columns, out, scratch)
                for b in range(columns // block_size):
                    decode(out + b * block_bytes, decoded + 4 * block_size * b)
                error = _error(x, decoded, importance, columns)
            store_f64(errors + 16 * r, error)
            store_f64(errors + 16 * r + 8, _power(x, importance, columns))

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


_PLAIN = {"f32": _from_f32, "f16": _from_f16, "bf16": _from_bf16}


def _from_blocks(format: str) -> Any:
    """As those above, for a quantized format."""
    decode, block_size, block_bytes = BLOCKS[format]

    @register_jitable
    def widen(src, dst, n):
        for b in range(n // block_size):
            decode(src + b * block_bytes, dst + 4 * block_size * b)

    return widen


@register_jitable
def _finite(x, n):
    """0, or not a number if a value is infinite or none."""
    zeros = zero_f32()
    for c in range(0, n - 15, 16):
        v = load_f32x16(x + 4 * c)
        zeros = zeros + (v - v)
    total = np.float64(hsum_f32(zeros))
    for c in range(n // 16 * 16, n):
        v = load_f32(x + 4 * c)
        total += np.float64(v - v)
    return total


@register_jitable
def _held(v):
    return min_f32(max_f32(v, splat_f32(-_MOST)), splat_f32(_MOST))


@register_jitable
def _hold(x, n):
    for c in range(0, n, 16):
        store_f32x16(x + 4 * c, _held(load_f32x16(x + 4 * c)))


@register_jitable
def _weigh(x, w, out, n):
    """What squared errors of a row's elements are weighed by: w √(1 + x² / mean square of the block of 256).

    Importance alone assumes small errors, and text like what it was measured on. Files of three models predict better
    with weight on large elements (docs/quantize.md); one of them, Qwen2.5, is far worse without, in all formats.
    """
    one = splat_f32(np.float32(1))
    for first in range(0, n, 256):
        end = min(n, first + 256)
        squares = zero_f32()
        for c in range(first, end - 15, 16):
            v = load_f32x16(x + 4 * c)
            squares = fma(v, v, squares)
        mean = hsum_f32(squares) * np.float32(1 / (end - first))
        inverse = splat_f32(np.float32(1) / mean if mean > np.float32(1e-30) else np.float32(0))
        for c in range(first, end - 15, 16):
            v = load_f32x16(x + 4 * c)
            store_f32x16(out + 4 * c, load_f32x16(w + 4 * c) * sqrt_f32(fma(v * inverse, v, one)))


@register_jitable
def _power(x, w, n):
    """Sum of w x²; each 16 columns in float32, these sums in float64."""
    total = np.float64(0)
    for c in range(0, n - 15, 16):
        v = _held(load_f32x16(x + 4 * c))
        weighted = v * load_f32x16(w + 4 * c) if w != 0 else v
        total += np.float64(hsum_f32(v * weighted))
    for c in range(n // 16 * 16, n):
        total += _square(load_f32(x + 4 * c), w, c)
    return total


@register_jitable
def _error(x, decoded, w, n):
    """Sum of w (x - decoded)²."""
    total = np.float64(0)
    for c in range(0, n - 15, 16):
        e = _held(load_f32x16(x + 4 * c) - load_f32x16(decoded + 4 * c))
        weighted = e * load_f32x16(w + 4 * c) if w != 0 else e
        total += np.float64(hsum_f32(e * weighted))
    for c in range(n // 16 * 16, n):
        total += _square(load_f32(x + 4 * c) - load_f32(decoded + 4 * c), w, c)
    return total


@register_jitable
def _square(v, w, c):
    held = np.float64(min(max(v, -_MOST), _MOST))
    return held * held * (np.float64(load_f32(w + 4 * c)) if w != 0 else 1.0)
