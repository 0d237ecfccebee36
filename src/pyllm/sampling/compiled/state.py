"""What the compiled steps do with a state: read logits, find the largest, hold candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from pyllm.jit.simd import (
    first_lane,
    hmax_f32,
    load_f32,
    load_f32x16,
    load_f64,
    load_i64,
    max_f32,
    splat_f32,
    store_f64,
    store_i64,
)
from pyllm.jit.simd.core import F32X16, I32, I64, VF32, VI32, call, const, op
from pyllm.sampling.compiled import slots

NOTHING = np.float32(-np.inf)
LARGEST = np.finfo(np.float32).max


@op(types.int64, types.float32)
def float_bits(b: Any, a: Any) -> Any:
    """The bits of a float32, sign extended."""
    return b.sext(b.bitcast(a[0], I32), I64)


@op(types.float32, types.int64)
def bits_float(b: Any, a: Any) -> Any:
    return b.bitcast(b.trunc(a[0], I32), ir.FloatType())


@op(types.int64, types.int64)
def low_zeros(b: Any, a: Any) -> Any:
    """Number of zero bits below the lowest one."""
    return call(b, "llvm.cttz.i64", I64, [a[0], const(ir.IntType(1), 0)])


@op(types.int64, types.int64)
def ones_of(b: Any, a: Any) -> Any:
    """Number of one bits."""
    return call(b, "llvm.ctpop.i64", I64, [a[0]])


@op(types.int64, F32X16, F32X16)
def lanes_above(b: Any, a: Any) -> Any:
    """Bit i is set where lane i of a0 is greater than that of a1."""
    return b.zext(b.bitcast(b.fcmp_ordered(">", a[0], a[1]), ir.IntType(16)), I64)


@op(types.int64, F32X16, F32X16)
def lanes_from(b: Any, a: Any) -> Any:
    """Bit i is set where lane i of a0 is at least that of a1."""
    return b.zext(b.bitcast(b.fcmp_ordered(">=", a[0], a[1]), ir.IntType(16)), I64)


@op(types.int64, F32X16, F32X16)
def lanes_equal(b: Any, a: Any) -> Any:
    """Bit i is set where lane i of a0 is that of a1."""
    return b.zext(b.bitcast(b.fcmp_ordered("==", a[0], a[1]), ir.IntType(16)), I64)


@op(F32X16, types.int64, F32X16, F32X16)
def choose_lanes(b: Any, a: Any) -> Any:
    """a1 where the bit of a0 is set, else a2."""
    bits = b.bitcast(b.trunc(a[0], ir.IntType(16)), ir.VectorType(ir.IntType(1), 16))
    return b.select(bits, a[1], a[2])


@op(F32X16, F32X16, F32X16, F32X16, F32X16)
def add_within(b: Any, a: Any) -> Any:
    """a0, plus a1 where a2 is at most a3."""
    return b.select(b.fcmp_ordered("<=", a[2], a[3]), b.fadd(a[0], a[1]), a[0])


@op(types.int64, F32X16)
def has_lane(b: Any, a: Any) -> Any:
    """1 where a lane is not 0."""
    bits = b.bitcast(b.icmp_signed("!=", b.bitcast(a[0], VI32), const(VI32, 0)), ir.IntType(16))
    return b.zext(b.icmp_signed("!=", bits, const(ir.IntType(16), 0)), I64)


@op(F32X16, F32X16, F32X16, F32X16)
def distances(b: Any, a: Any) -> Any:
    """How far 16 logits a0 are from the center a1, where the side a2 is 1; where that is -1 and the center 0, the
    logits with their sign turned: exactly in the order of their distance from the largest."""
    bits = b.bitcast(b.fsub(a[0], a[1]), VI32)
    side = b.bitcast(a[2], VI32)
    # 1 and -1 differ by their sign bits: one is cleared, the other turned.
    sign = b.and_(side, const(VI32, -(1 << 31)))
    kept = b.or_(sign, const(VI32, 0x7FFFFFFF))
    return b.bitcast(b.xor(b.and_(bits, kept), sign), VF32)


@register_jitable
def distance(value, center, side):
    """As `distances`, of one."""
    return first_lane(distances(splat_f32(value), splat_f32(center), splat_f32(side)))


@register_jitable
def float_order(a):
    """An integer in the order of floats."""
    bits = float_bits(a)
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


@register_jitable
def ordered_float(order):
    return bits_float(order) if order >= 0 else -bits_float(-order)


@register_jitable
def logit(x, i):
    return load_f32(x + 4 * i)


@register_jitable
def maximum(x, n):
    """The largest of n logits; NaN counts as -inf."""
    a, b, c, d = splat_f32(NOTHING), splat_f32(NOTHING), splat_f32(NOTHING), splat_f32(NOTHING)
    i = 0
    while i + 64 <= n:
        at = x + 4 * i
        a, b = max_f32(load_f32x16(at), a), max_f32(load_f32x16(at + 64), b)
        c, d = max_f32(load_f32x16(at + 128), c), max_f32(load_f32x16(at + 192), d)
        i += 64
    top = hmax_f32(max_f32(max_f32(a, b), max_f32(c, d)))
    while i < n:
        value = load_f32(x + 4 * i)
        if value > top:
            top = value
        i += 1
    return top


@register_jitable
def top_of(s):
    """The largest logit of the candidates, float64."""
    if load_i64(s + slots.TOP_KNOWN) == 0:
        store_f64(s + slots.TOP, np.float64(maximum(load_i64(s + slots.X), load_i64(s + slots.N))))
        store_i64(s + slots.TOP_KNOWN, 1)
    return load_f64(s + slots.TOP)


@register_jitable
def set_list(s, n, order):
    """The candidates are the first n of LIST_X and LIST_IDS; what is known of the largest stays."""
    store_i64(s + slots.X, load_i64(s + slots.LIST_X))
    store_i64(s + slots.IDS, load_i64(s + slots.LIST_IDS))
    store_i64(s + slots.N, n)
    store_i64(s + slots.ORDER, order)
    store_i64(s + slots.OWN, 1)


@register_jitable
def set_dense(s, x, n):
    """The candidates are all tokens."""
    store_i64(s + slots.X, x)
    store_i64(s + slots.IDS, 0)
    store_i64(s + slots.N, n)
    store_i64(s + slots.ORDER, slots.AS_THEY_ARE)
