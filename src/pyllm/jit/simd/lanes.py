"""Operations across the lanes of a vector: transposes, sums and maxima over runs of lanes, a bit from each lane."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from pyllm.jit.simd.core import F32X16, I32X16, I64, LANES, VF32, VI32, const, op, shuffle


@op(types.void, types.int64, types.int64, types.int64)
def transpose_f32(b, a):
    """16 rows of 16 floats, a1 bytes apart from a0 on, to columns: row i at a2 + 64 * i holds lane i of each."""
    rows = []
    for i in range(LANES):
        p = b.inttoptr(b.add(a[0], b.mul(a[1], const(I64, i))), VF32.as_pointer())
        v = b.load(p)
        v.align = 1
        rows.append(v)
    # Swap ever smaller off-diagonal squares: of 8 by 8, of 4 by 4 and so on.
    step = LANES // 2
    while step:
        low = [i & step == 0 for i in range(LANES)]
        take = [i if low[i] else i - step + LANES for i in range(LANES)]
        take_high = [i + step if low[i] else i + LANES for i in range(LANES)]
        for i in range(LANES):
            if low[i]:
                x, y = rows[i], rows[i + step]
                rows[i], rows[i + step] = shuffle(b, x, y, take), shuffle(b, x, y, take_high)
        step //= 2
    for i, v in enumerate(rows):
        b.store(v, b.inttoptr(b.add(a[2], const(I64, 64 * i)), VF32.as_pointer())).align = 1


def _runs(b: Any, v: Any, length: int, combine: Any) -> Any:
    """Each lane gets its run's lanes combined; runs are of `length` lanes, a power of two."""
    step = 1
    while step < length:
        v = combine(v, shuffle(b, v, ir.Constant(v.type, ir.Undefined), [i ^ step for i in range(LANES)]))
        step *= 2
    return v


@op(F32X16, F32X16)
def sum4_f32(b, a):
    """Sum over each run of 4 lanes, in all of its lanes."""
    return _runs(b, a[0], 4, b.fadd)


@op(F32X16, F32X16)
def sum8_f32(b, a):
    """Sum over each half, in all of its lanes."""
    return _runs(b, a[0], 8, b.fadd)


@op(F32X16, F32X16)
def sum16_f32(b, a):
    """Sum over the lanes, in all of them."""
    return _runs(b, a[0], 16, b.fadd)


def _max(b: Any) -> Any:
    return lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y)


@op(F32X16, F32X16)
def max4_f32(b, a):
    """Maximum over each run of 4 lanes, in all of its lanes."""
    return _runs(b, a[0], 4, _max(b))


@op(F32X16, F32X16)
def max8_f32(b, a):
    """Maximum over each half, in all of its lanes."""
    return _runs(b, a[0], 8, _max(b))


@op(F32X16, F32X16)
def max16_f32(b, a):
    """Maximum over the lanes, in all of them."""
    return _runs(b, a[0], 16, _max(b))


@op(types.int64, I32X16)
def lane_bits(b, a):
    """Bit i is set where lane i is not 0."""
    mask = b.icmp_signed("!=", a[0], const(VI32, 0))
    return b.zext(b.bitcast(mask, ir.IntType(LANES)), I64)


@op(I32X16, I32X16, types.int64)
def shift_right_i32(b, a):
    """Each lane, unsigned, shifted right."""
    n = b.insert_element(ir.Constant(VI32, ir.Undefined), b.trunc(a[1], ir.IntType(32)), const(ir.IntType(32), 0))
    return b.lshr(a[0], shuffle(b, n, ir.Constant(VI32, ir.Undefined), [0] * LANES))
