"""Loads, stores, splats and atomics. An address is an int64; vectors need no alignment."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from pyllm.jit.simd.core import (
    F16,
    F32,
    F32X16,
    I8,
    I8X64,
    I16,
    I32,
    I32X16,
    I64,
    VB64,
    VF32,
    VI8,
    VI16,
    VI32,
    call,
    const,
    op,
    splat,
    target,
)

ADDR = types.int64


def _load(b: Any, address: Any, t: Any) -> Any:
    v = b.load(b.inttoptr(address, t.as_pointer()))
    v.align = 1
    return v


def _store(b: Any, value: Any, address: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


# scalars


@op(types.int64, ADDR)
def load_i64(b, a):
    return _load(b, a[0], I64)


@op(types.float64, ADDR)
def load_f64(b, a):
    return _load(b, a[0], ir.DoubleType())


@op(types.float32, ADDR)
def load_f32(b, a):
    return _load(b, a[0], F32)


@op(types.float32, ADDR)
def load_f16(b, a):
    """A half, widened."""
    return _widen_f16(b, _load(b, a[0], I16))


@op(types.int64, ADDR)
def load_i32(b, a):
    return b.sext(_load(b, a[0], I32), I64)


@op(types.int64, ADDR)
def load_u16(b, a):
    return b.zext(_load(b, a[0], I16), I64)


@op(types.int64, ADDR)
def load_i8(b, a):
    return b.sext(_load(b, a[0], I8), I64)


@op(types.int64, ADDR)
def load_u8(b, a):
    return b.zext(_load(b, a[0], I8), I64)


@op(types.void, ADDR, types.int64)
def store_i64(b, a):
    _store(b, a[1], a[0])


@op(types.void, ADDR, types.int64)
def store_i32(b, a):
    _store(b, b.trunc(a[1], I32), a[0])


@op(types.void, ADDR, types.int64)
def store_i16(b, a):
    _store(b, b.trunc(a[1], I16), a[0])


@op(types.void, ADDR, types.int64)
def store_i8(b, a):
    _store(b, b.trunc(a[1], I8), a[0])


@op(types.void, ADDR, types.float32)
def store_f32(b, a):
    _store(b, a[1], a[0])


@op(types.void, ADDR, types.float32)
def store_f16(b, a):
    """Rounded to a half, ties to even."""
    _store(b, _narrow_f16(b, a[1]), a[0])


@op(types.void, ADDR, types.float64)
def store_f64(b, a):
    _store(b, a[1], a[0])


# vectors


@op(F32X16, ADDR)
def load_f32x16(b, a):
    return _load(b, a[0], VF32)


@op(F32X16, ADDR)
def load_f16x16(b, a):
    """16 halves, widened."""
    return _widen_f16(b, _load(b, a[0], VI16))


@op(F32X16, ADDR)
def load_bf16x16(b, a):
    """16 bfloat16, widened."""
    return b.bitcast(b.shl(b.zext(_load(b, a[0], VI16), VI32), const(VI32, 16)), VF32)


@op(F32X16, ADDR)
def load_e4m3x16(b, a):
    """16 unsigned 8-bit floats (4 bits of exponent, 3 of mantissa), widened and divided by 256: so they are halves."""
    return _widen_f16(b, b.shl(b.zext(_load(b, a[0], VI8), VI16), const(VI16, 7)))


@op(I32X16, ADDR)
def load_i8x16(b, a):
    """16 signed bytes, widened to int32."""
    return b.sext(_load(b, a[0], VI8), VI32)


@op(I32X16, ADDR)
def load_u8x16(b, a):
    """16 unsigned bytes, widened to int32."""
    return b.zext(_load(b, a[0], VI8), VI32)


@op(I8X64, ADDR)
def load_i8x64(b, a):
    return _load(b, a[0], VB64)


@op(I8X64, ADDR)
def splat4_i8x64(b, a):
    """Four adjacent bytes in each of the 16 lanes."""
    return b.bitcast(splat(b, _load(b, a[0], I32)), VB64)


@op(types.void, ADDR, F32X16)
def store_f32x16(b, a):
    _store(b, a[1], a[0])


def _first_lanes(b: Any, n: Any) -> Any:
    """The mask of the first n lanes."""
    return b.icmp_signed("<", ir.Constant(VI32, list(range(16))), splat(b, b.trunc(n, I32)))


@op(F32X16, ADDR, types.int64)
def load_first_f32(b, a):
    """The first a1 lanes, zeros in the others, whose memory is not read."""
    p = b.inttoptr(a[0], VF32.as_pointer())
    mask = _first_lanes(b, a[1])
    return call(b, "llvm.masked.load.v16f32.p0", VF32, [p, const(I32, 1), mask, const(VF32, 0.0)])


@op(types.void, ADDR, F32X16, types.int64)
def store_first_f32(b, a):
    """The first a2 lanes; the memory of the others is not written."""
    p = b.inttoptr(a[0], VF32.as_pointer())
    call(b, "llvm.masked.store.v16f32.p0", ir.VoidType(), [a[1], p, const(I32, 1), _first_lanes(b, a[2])])


@op(types.void, ADDR, F32X16)
def stream_f32x16(b, a):
    """Stores at a multiple of 64 bytes, and past the caches where the processor can: what nothing reads soon. Visible
    to other threads after an `atomic_add`."""
    stored = b.store(a[1], b.inttoptr(a[0], VF32.as_pointer()))
    stored.align = 64
    stored.set_metadata("nontemporal", b.module.add_metadata([const(I32, 1)]))


@op(types.void, ADDR, I32X16)
def store_i32x16(b, a):
    _store(b, a[1], a[0])


@op(types.void, ADDR, I32X16)
def store_i8x16(b, a):
    """The low byte of each lane."""
    _store(b, b.trunc(a[1], VI8), a[0])


@op(types.void, ADDR, I8X64)
def store_i8x64(b, a):
    _store(b, a[1], a[0])


@op(types.void, ADDR, F32X16)
def store_f16x16(b, a):
    """16 floats, rounded to halves."""
    _store(b, _narrow_f16(b, a[1]), a[0])


@op(types.void, ADDR, F32X16)
def store_bf16x16(b, a):
    """16 floats, rounded to bfloat16, ties to even."""
    u = b.bitcast(a[1], VI32)
    odd = b.and_(b.lshr(u, const(VI32, 16)), const(VI32, 1))
    rounded = b.add(u, b.add(odd, const(VI32, 0x7FFF)))
    _store(b, b.trunc(b.lshr(rounded, const(VI32, 16)), VI16), a[0])


@op(F32X16, types.float32)
def splat_f32(b, a):
    return splat(b, a[0])


@op(I32X16, types.int64)
def splat_i32(b, a):
    return splat(b, b.trunc(a[0], I32))


@op(I8X64, types.int64)
def splat_i8(b, a):
    return splat(b, b.trunc(a[0], I8), 64)


@op(F32X16)
def zero_f32(b, a):
    return const(VF32, 0.0)


@op(I32X16)
def zero_i32(b, a):
    return const(VI32, 0)


@op(types.void, ADDR)
def prefetch(b, a):
    """Bring a cache line into the second-level cache, for reading. Any address will do."""
    p = b.inttoptr(a[0], I8.as_pointer())
    call(b, "llvm.prefetch.p0", ir.VoidType(), [p, const(I32, 0), const(I32, 2), const(I32, 1)])


# atomics


@op(types.int64, ADDR, types.int64)
def atomic_add(b, a):
    """Adds, returns the value before; a full barrier."""
    return b.atomic_rmw("add", b.inttoptr(a[0], I64.as_pointer()), a[1], "seq_cst")


@op(types.int64, ADDR)
def atomic_load(b, a):
    return b.load_atomic(b.inttoptr(a[0], I64.as_pointer()), "acquire", 8)


@op(types.void, ADDR, types.int64)
def atomic_store(b, a):
    b.store_atomic(a[1], b.inttoptr(a[0], I64.as_pointer()), "release", 8)


@op(types.void)
def pause(b, a):
    """Tells the processor that this loop waits."""
    if target().is_x86:
        call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
    elif target().is_arm64:
        call(b, "llvm.aarch64.hint", ir.VoidType(), [const(I32, 1)])


# half precision


@op(types.float32, types.float32)
def round_f16(b, a):
    """The nearest finite half."""
    most = const(F32, 65504.0)
    x = b.select(b.fcmp_ordered(">", a[0], most), most, a[0])
    x = b.select(b.fcmp_ordered("<", x, const(F32, -65504.0)), const(F32, -65504.0), x)
    return _widen_f16(b, _narrow_f16(b, x))


@op(F32X16, F32X16)
def round_f16x16(b, a):
    """The nearest finite halves."""
    most, least = const(VF32, 65504.0), const(VF32, -65504.0)
    x = b.select(b.fcmp_ordered(">", a[0], most), most, a[0])
    x = b.select(b.fcmp_ordered("<", x, least), least, x)
    return _widen_f16(b, _narrow_f16(b, x))


def _native_f16() -> bool:
    t = target()
    return t.is_arm64 or (t.is_x86 and t.has("f16c"))


def _like(v: Any, scalar: Any) -> Any:
    return ir.VectorType(scalar, v.type.count) if isinstance(v.type, ir.VectorType) else scalar


def _widen_f16(b: Any, h: Any) -> Any:
    """int16 bits -> float32. Without an instruction: shift, then rescale, which also mends denormals."""
    f32, i32 = _like(h, F32), _like(h, I32)
    if _native_f16():
        return b.fpext(b.bitcast(h, _like(h, F16)), f32)
    u = b.zext(h, i32)
    magnitude = b.and_(u, const(i32, 0x7FFF))
    scaled = b.fmul(b.bitcast(b.shl(magnitude, const(i32, 13)), f32), const(f32, 2.0**112))
    special = b.or_(b.bitcast(scaled, i32), const(i32, 0x7F800000))
    bits = b.select(b.icmp_unsigned(">=", magnitude, const(i32, 0x7C00)), special, b.bitcast(scaled, i32))
    return b.bitcast(b.or_(bits, b.shl(b.and_(u, const(i32, 0x8000)), const(i32, 16))), f32)


def _narrow_f16(b: Any, v: Any) -> Any:
    """float32 -> int16 bits, to nearest even."""
    i32, i16 = _like(v, I32), _like(v, I16)
    if _native_f16():
        return b.bitcast(b.fptrunc(v, _like(v, F16)), i16)
    u = b.bitcast(v, i32)
    sign = b.lshr(b.and_(u, const(i32, 0x80000000)), const(i32, 16))
    a = b.and_(u, const(i32, 0x7FFFFFFF))
    # Normal: rebias the exponent, round the 13 bits that go. Small: adding 0.5 lets the float unit round to 2^-24.
    odd = b.and_(b.lshr(a, const(i32, 13)), const(i32, 1))
    normal = b.lshr(b.add(b.sub(a, const(i32, (112 << 23) - 0xFFF)), odd), const(i32, 13))
    f32 = _like(v, F32)
    small = b.sub(b.bitcast(b.fadd(b.bitcast(a, f32), const(f32, 0.5)), i32), const(i32, 0x3F000000))
    nan = b.icmp_unsigned(">", a, const(i32, 0x7F800000))
    huge = b.select(nan, const(i32, 0x7E00), const(i32, 0x7C00))
    out = b.select(b.icmp_unsigned("<", a, const(i32, 113 << 23)), small, normal)
    out = b.select(b.icmp_unsigned(">=", a, const(i32, 0x477FF000)), huge, out)
    return b.trunc(b.or_(out, sign), i16)
