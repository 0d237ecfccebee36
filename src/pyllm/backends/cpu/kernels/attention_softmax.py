"""The online softmax of attention, row by row. Scores are exponents of 2: their scale includes log2(e)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from pyllm.backends.cpu.kernels.attention_reach import first_seen, last_seen
from pyllm.backends.cpu.kernels.attention_scratch import BLOCK, Scratch
from pyllm.jit.simd import (
    abs_f32,
    first_lane,
    fma,
    hmax_f32,
    load_f32,
    load_f32x16,
    max_f32,
    select_lt,
    splat_f32,
    store_f32,
    store_f32x16,
    tanh_f32,
    zero_f32,
)
from pyllm.jit.simd.core import F32X16, I16, I64, VF32, VI16, VI32, call, const, op, target
from pyllm.jit.simd.math import _fma
from pyllm.jit.simd.memory import _store

LOG2_E = 1.4426950408889634
LOWEST = -1e30
"""Start of a running maximum. Finite, so that masked scores, -inf, are always below it."""

# 2^f - 1 = f * (...) on [-1/2, 1/2], relative error at most 1.1e-7, and 2^0 is exactly 1.
_EXP2 = (1.3264727065e-03, 9.6715126489e-03, 5.5507337437e-02, 2.4022242085e-01, 6.9314697760e-01)


@op(F32X16, F32X16)
def exp2_f32(b, a):
    """2^x for x up to 0; 0 below -127 and for NaN."""
    x = b.select(b.fcmp_ordered(">", a[0], const(VF32, -127.0)), a[0], const(VF32, -127.0))
    magic = const(VF32, 12582912.0)  # 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
    shifted = b.fadd(x, magic)
    f = b.fsub(x, b.fsub(shifted, magic))
    p = const(VF32, _EXP2[0])
    for c in (*_EXP2[1:], 1.0):
        p = _fma(b, p, f, const(VF32, c))
    return b.bitcast(b.add(b.bitcast(p, VI32), b.shl(b.bitcast(shifted, VI32), const(VI32, 23))), VF32)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


@op(types.void, types.int64, F32X16, F32X16)
def store_bf16x32(b, a):
    """a1, then a2, rounded to bfloat16."""
    address, x, y = a
    if target().is_x86 and target().has("avx512bf16"):
        both = call(b, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", ir.VectorType(_BFloat(), 32), [y, x])
        _store(b, b.bitcast(both, ir.VectorType(I16, 32)), address)
    else:
        for i, v in enumerate((x, y)):
            bits = b.bitcast(v, VI32)
            odd = b.and_(b.lshr(bits, const(VI32, 16)), const(VI32, 1))
            rounded = b.lshr(b.add(bits, b.add(odd, const(VI32, 0x7FFF))), const(VI32, 16))
            _store(b, b.trunc(rounded, VI16), b.add(address, const(I64, 32 * i)))


@register_jitable
def exp2(x):
    return first_lane(exp2_f32(splat_f32(x)))


@register_jitable
def fill(dst, n, value):
    """n vectors."""
    for i in range(n):
        store_f32x16(dst + 64 * i, splat_f32(value))


@register_jitable
def write_scaled(dst, src, n, factor):
    """n columns of src times a factor."""
    whole = n // 16 * 16
    wide = splat_f32(factor)
    for i in range(0, whole, 16):
        store_f32x16(dst + 4 * i, load_f32x16(src + 4 * i) * wide)
    for i in range(whole, n):
        store_f32(dst + 4 * i, load_f32(src + 4 * i) * factor)


@register_jitable
def _mask(row, n, low, high, iota):
    """Of n vectors of scores, those before `low` and from `high` on become -inf."""
    never = splat_f32(np.float32(-np.inf))
    for v in range(max(high, 0) // 16, n):
        x = load_f32x16(row + 64 * v)
        store_f32x16(row + 64 * v, select_lt(iota, splat_f32(np.float32(high - 16 * v)), x, never))
    for v in range(min((low + 15) // 16, n)):
        x = load_f32x16(row + 64 * v)
        store_f32x16(row + 64 * v, select_lt(iota, splat_f32(np.float32(low - 16 * v)), never, x))


@register_jitable
def _cap(row, n, softcap):
    """Scores as they are, capped and in units of a power of two."""
    cap = splat_f32(np.float32(softcap * LOG2_E))
    inverse = splat_f32(np.float32(1.0 / softcap))
    for v in range(n):
        store_f32x16(row + 64 * v, cap * tanh_f32(load_f32x16(row + 64 * v) * inverse))


@register_jitable
def _slope(row, n, slope, token, iota):
    """Scores less the slope times the distance of their positions to the block's position `token`."""
    steepness = splat_f32(slope)
    for v in range(n):
        distance = abs_f32(iota + splat_f32(np.float32(16 * v - token)))
        store_f32x16(row + 64 * v, load_f32x16(row + 64 * v) - steepness * distance)


@register_jitable
def _bias(row, n, biases, far, distance):
    """Scores plus the biases of their positions' distances, of which `distance` is the first; `biases` are those from
    -far - 16 on."""
    unit = splat_f32(np.float32(LOG2_E))
    for v in range(n):
        at = min(max(distance + 16 * v, -far - 16), far) + far + 16
        store_f32x16(row + 64 * v, fma(load_f32x16(biases + 4 * at), unit, load_f32x16(row + 64 * v)))


@register_jitable
def _largest(row, n):
    """Largest of n vectors."""
    best = load_f32x16(row)
    other = load_f32x16(row + 64 * n - 64)
    for v in range(1, n - 1, 2):
        best = max_f32(load_f32x16(row + 64 * v), best)
        other = max_f32(load_f32x16(row + 64 * v + 64), other)
    return hmax_f32(max_f32(best, other))


def softener(places: Scratch, packed: bool) -> Any:
    """Function that turns scores of up to 16 rows from r0 on into weights, those of a block from position b0 on; the
    first row is that of the group's `head` for a token at `position`. Maxima and sums of the online softmax are
    updated; `alpha` in scratch is the factor of earlier sums and outputs. Packed weights are written separately, as
    bfloat16."""
    ld, scores, weights_at, iota_at, alpha_at = places.ld, places.scores, places.weights, places.iota, places.alpha

    @register_jitable
    def weigh(row, n, top, weights):
        """Weights of one row; returns the vector of their sums."""
        total = zero_f32()
        other = zero_f32()
        for v in range(0, n - 1, 2):
            x = exp2_f32(load_f32x16(row + 64 * v) - top)
            y = exp2_f32(load_f32x16(row + 64 * v + 64) - top)
            total = total + x
            other = other + y
            if packed:
                store_bf16x32(weights + 512 * v, x, y)
            else:
                store_f32x16(row + 64 * v, x)
                store_f32x16(row + 64 * v + 64, y)
        if n % 2 == 1:
            x = exp2_f32(load_f32x16(row + 64 * n - 64) - top)
            total = total + x
            if packed:
                store_bf16x32(weights + 512 * n - 512, x, zero_f32())
            else:
                store_f32x16(row + 64 * n - 64, x)
        return total + other

    @register_jitable
    def soften(
        scratch, r0, m, n, maxima, sums, b0, position, end, head, group, window, reach, softcap, slopes, biases,
        ld_biases, far,
    ):  # fmt: skip
        iota = load_f32x16(scratch + iota_at)
        before = load_f32x16(maxima)
        token, h = position, head
        row = scratch + scores + r0 * ld
        for r in range(m):
            low = first_seen(token, window, reach) - b0
            high = last_seen(token, end, window, reach) + 1 - b0
            if softcap > 0.0:
                _cap(row, n, softcap)
            if slopes != 0:
                _slope(row, n, load_f32(slopes + 4 * h) * np.float32(LOG2_E), token - b0, iota)
            if biases != 0:
                _bias(row, n, biases + ld_biases * h, far, b0 - token)
            if high < 16 * n or low > 0:
                _mask(row, n, low, high, iota)
            store_f32(maxima + 4 * r, max(load_f32(maxima + 4 * r), _largest(row, n)))
            row += ld
            h += 1
            if h == group:
                h = 0
                token += 1
        alphas = scratch + alpha_at + 4 * r0
        store_f32x16(alphas, exp2_f32(before - load_f32x16(maxima)))
        row = scratch + scores + r0 * ld
        weights = scratch + weights_at + 2 * BLOCK * r0
        for r in range(m):
            total = weigh(row, n, splat_f32(load_f32(maxima + 4 * r)), weights)
            row += ld
            weights += 64
            alpha = splat_f32(load_f32(alphas + 4 * r))
            store_f32x16(sums + 64 * r, fma(load_f32x16(sums + 64 * r), alpha, total))

    return soften


@register_jitable
def combine(parts, n_parts, part_bytes, tail, n, sink_address, dst):
    """One row from its parts: [output ... | at `tail`: maximum, sum, room for a weight]."""
    sink = load_f32(sink_address) * np.float32(LOG2_E) if sink_address != 0 else np.float32(LOWEST)
    best = sink
    for i in range(n_parts):
        best = max(best, load_f32(parts + i * part_bytes + tail))
    total = exp2(sink - best) if sink_address != 0 else np.float32(0)
    for i in range(n_parts):
        p = parts + i * part_bytes + tail
        weight = exp2(load_f32(p) - best)
        store_f32(p + 8, weight)
        total += weight * load_f32(p + 4)
    for c in range(0, n, 16):
        acc = zero_f32()
        for i in range(n_parts):
            p = parts + i * part_bytes
            acc = fma(splat_f32(load_f32(p + tail + 8)), load_f32x16(p + 4 * c), acc)
        store_f32x16(parts + 4 * c, acc)  # of the first part; its columns c .. are not read again
    write_scaled(dst, parts, n, np.float32(1) / total)
