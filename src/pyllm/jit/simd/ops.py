"""Arithmetic on vectors that operators do not spell, and integer dot products, each instruction set's own way."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from pyllm.jit.simd.core import (
    F32X16,
    I8,
    I8X64,
    I16,
    I32,
    I32X16,
    I64,
    VB64,
    VF32,
    VI32,
    call,
    const,
    join,
    op,
    shuffle,
    split,
    target,
)


@op(F32X16, F32X16, F32X16, F32X16)
def fma(b, a):
    """a0 * a1 + a2, rounded once where the processor can."""
    t = target()
    if t.is_arm64 or (t.is_x86 and t.has("fma")):
        return call(b, "llvm.fma.v16f32", VF32, a)
    return b.fadd(b.fmul(a[0], a[1]), a[2])


@op(F32X16, F32X16, F32X16)
def max_f32(b, a):
    return b.select(b.fcmp_ordered(">", a[0], a[1]), a[0], a[1])


@op(F32X16, F32X16, F32X16)
def min_f32(b, a):
    return b.select(b.fcmp_ordered("<", a[0], a[1]), a[0], a[1])


@op(F32X16, F32X16)
def abs_f32(b, a):
    return call(b, "llvm.fabs.v16f32", VF32, a)


@op(F32X16, F32X16)
def sqrt_f32(b, a):
    return call(b, "llvm.sqrt.v16f32", VF32, a)


@op(F32X16, F32X16, F32X16, F32X16, F32X16)
def select_lt(b, a):
    """a2 where a0 < a1, else a3."""
    return b.select(b.fcmp_ordered("<", a[0], a[1]), a[2], a[3])


@op(F32X16, I32X16)
def to_f32(b, a):
    return b.sitofp(a[0], VF32)


@op(I32X16, F32X16)
def round_to_i32(b, a):
    """To the nearest integer, ties to even. The values must fit into 22 bits."""
    magic = const(VF32, 12582912.0)  # 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits
    return b.sub(b.bitcast(b.fadd(a[0], magic), VI32), const(VI32, 0x4B400000))


@op(types.float32, F32X16)
def hsum_f32(b, a):
    """Sum of the lanes, as a tree."""
    return _tree(b, a[0], b.fadd)


@op(types.float32, F32X16)
def hmax_f32(b, a):
    return _tree(b, a[0], lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


@op(types.int64, I32X16)
def hsum_i32(b, a):
    return b.sext(_tree(b, a[0], b.add), ir.IntType(64))


@op(types.float32, F32X16)
def first_lane(b, a):
    return b.extract_element(a[0], const(I32, 0))


def _tree(b: Any, v: Any, combine: Any) -> Any:
    while v.type.count > 1:
        low, high = split(b, v, 2)
        v = combine(low, high)
    return b.extract_element(v, const(I32, 0))


# bytes


@op(I8X64, I8X64, types.int64)
def shift_right_i8(b, a):
    """Each byte, unsigned, shifted right."""
    return b.lshr(a[0], _splat_shift(b, a[1]))


@op(I8X64, I8X64, types.int64)
def shift_left_i8(b, a):
    return b.shl(a[0], _splat_shift(b, a[1]))


def _splat_shift(b: Any, n: Any) -> Any:
    v = b.insert_element(ir.Constant(VB64, ir.Undefined), b.trunc(n, I8), const(I32, 0))
    return shuffle(b, v, ir.Constant(VB64, ir.Undefined), [0] * 64)


# tables of 16 bytes


@op(I8X64, types.int64, types.int64)
def table_i8(b, a):
    """A table for `lookup_i8`: 16 bytes, the first in the lowest bits of a0."""
    v = ir.VectorType(I64, 2)
    pair = b.insert_element(ir.Constant(v, ir.Undefined), a[0], const(I32, 0))
    pair = b.insert_element(pair, a[1], const(I32, 1))
    return b.bitcast(shuffle(b, pair, ir.Constant(v, ir.Undefined), [0, 1] * 4), VB64)


@op(I8X64, I8X64, I8X64)
def lookup_i8(b, a):
    """Of the table a0, the byte that the low four bits of each byte of a1 number."""
    values, index = a
    t = target()
    if t.is_x86 and t.has("avx512vbmi"):
        return call(b, "llvm.x86.avx512.permvar.qi.512", VB64, [values, index])  # 64 bytes: of indices, 6 bits count
    index = b.and_(index, const(VB64, 15))
    if t.is_x86 and t.has("avx512bw"):
        return call(b, "llvm.x86.avx512.pshuf.b.512", VB64, [values, index])
    if t.is_x86 and t.has("avx2"):
        return _by_parts(b, 2, lambda x, y: call(b, "llvm.x86.avx2.pshuf.b", x.type, [x, y]), values, index)
    if t.is_arm64:
        return _by_parts(b, 4, lambda x, y: call(b, "llvm.aarch64.neon.tbl1.v16i8", x.type, [x, y]), values, index)
    return _lookup_plain(b, values, index)


def _lookup_plain(b: Any, values: Any, index: Any) -> Any:
    """Any processor: halve the candidates by one bit of the index after the other."""
    undef = ir.Constant(VB64, ir.Undefined)
    left = [shuffle(b, values, undef, [i] * 64) for i in range(16)]
    for bit in (1, 2, 4, 8):
        odd = b.icmp_signed("!=", b.and_(index, const(VB64, bit)), const(VB64, 0))
        left = [b.select(odd, left[i + 1], left[i]) for i in range(0, len(left), 2)]
    return left[0]


# dot products of bytes


@op(I32X16, I32X16, I8X64, I8X64)
def dot4(b, a):
    """Each lane of a0 plus the sum over its four bytes of a1 (0 .. 127) times a2 (-127 .. 127), exactly."""
    return _dot4(b, a, wide=False)


@op(I32X16, I32X16, I8X64, I8X64)
def dot4_wide(b, a):
    """As `dot4`, for unsigned bytes 0 .. 255 in a1."""
    return _dot4(b, a, wide=True)


def _dot4(b: Any, a: Any, wide: bool) -> Any:
    acc, u, s = a
    t = target()
    if t.is_x86:
        if t.has("avx512vnni", "avx512bw"):
            return call(b, "llvm.x86.avx512.vpdpbusd.512", VI32, [acc, u, s])
        if t.has("avxvnni"):
            return _by_parts(
                b, 2, lambda x, y, z: call(b, "llvm.x86.avx512.vpdpbusd.256", x.type, [x, y, z]), acc, u, s
            )
        if t.has("avx2"):
            return _dot4_maddubs(b, acc, u, s, wide, 1 if t.has("avx512bw") else 2)
    if t.is_arm64 and t.has("i8mm"):
        return _by_parts(
            b, 4, lambda x, y, z: call(b, "llvm.aarch64.neon.usdot.v4i32.v16i8", x.type, [x, y, z]), acc, u, s
        )
    if t.is_arm64 and t.has("dotprod"):
        if not wide:
            return _by_parts(b, 4, lambda *v: _sdot(b, *v), acc, u, s)
        # (u - 128) . s + 128 * (1 . s)
        low = b.xor(u, const(VB64, -128))
        ones = _by_parts(b, 4, lambda *v: _sdot(b, *v), const(VI32, 0), const(VB64, 1), s)
        return _by_parts(b, 4, lambda *v: _sdot(b, *v), b.add(acc, b.shl(ones, const(VI32, 7))), low, s)
    return _dot4_plain(b, acc, u, s)


def _by_parts(b: Any, n: int, f: Any, *vectors: Any) -> Any:
    return join(b, [f(*p) for p in zip(*(split(b, v, n) for v in vectors), strict=True)])


def _sdot(b: Any, acc: Any, x: Any, y: Any) -> Any:
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, [acc, x, y])


def _dot4_maddubs(b: Any, acc: Any, u: Any, s: Any, wide: bool, parts: int) -> Any:
    """AVX2 and AVX-512 without VNNI: byte products summed by pairs to int16, then by pairs to int32.

    127 * 127 * 2 fits an int16; of wider bytes the top bit goes separately (128 * 127 * 2 fits as well).
    """
    n = 64 // parts
    bits = 8 * n
    pairs, quads = ir.VectorType(I16, n // 2), ir.VectorType(I32, n // 4)
    ubsw = "llvm.x86.avx512.pmaddubs.w.512" if bits == 512 else "llvm.x86.avx2.pmadd.ub.sw"
    wd = "llvm.x86.avx512.pmaddw.d.512" if bits == 512 else "llvm.x86.avx2.pmadd.wd"

    def one(x: Any, y: Any, z: Any) -> Any:
        halves = [b.and_(y, const(y.type, 127)), b.and_(y, const(y.type, -128))] if wide else [y]
        for h in halves:
            x = b.add(x, call(b, wd, quads, [call(b, ubsw, pairs, [h, z]), const(pairs, 1)]))
        return x

    return _by_parts(b, parts, one, acc, u, s)


def _dot4_plain(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """Any processor: products in 16 bits (255 * 127 fits), added up in 32."""
    wide = ir.VectorType(I16, 64)
    undef = ir.Constant(VB64, ir.Undefined)
    for j in range(4):
        lanes = [4 * i + j for i in range(16)]
        x = b.zext(shuffle(b, u, undef, lanes), ir.VectorType(wide.element, 16))
        y = b.sext(shuffle(b, s, undef, lanes), ir.VectorType(wide.element, 16))
        acc = b.add(acc, b.sext(b.mul(x, y), VI32))
    return acc
