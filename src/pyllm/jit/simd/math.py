"""Transcendental functions on vectors, to about one unit in the last place of a float32."""

from __future__ import annotations

from typing import Any

from pyllm.jit.simd.core import F32X16, VF32, VI32, call, const, op, target

# exp(r) on [-ln2/2, ln2/2]: the minimax polynomial of degree 6 that Cephes uses (S. Moshier, expf).
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    t = target()
    if t.is_arm64 or (t.is_x86 and t.has("fma")):
        return call(b, "llvm.fma.v16f32", VF32, [x, y, z])
    return b.fadd(b.fmul(x, y), z)


def emit_exp(b: Any, x: Any) -> Any:
    """e^x; 0 below -87.3, e^87 above 87: its inverse is no denormal, which processors are slow with."""
    tiny = b.fcmp_ordered("<", x, const(VF32, -87.33))
    x = b.select(b.fcmp_ordered("<", x, const(VF32, 87.0)), x, const(VF32, 87.0))
    x = b.select(tiny, const(VF32, -87.33), x)
    magic = const(VF32, 12582912.0)
    shifted = _fma(b, x, const(VF32, 1.4426950408889634), magic)
    n = b.fsub(shifted, magic)
    r = _fma(b, n, const(VF32, -0.693359375), x)
    r = _fma(b, n, const(VF32, 2.12194440e-4), r)
    p = const(VF32, _EXP[0])
    for c in _EXP[1:]:
        p = _fma(b, p, r, const(VF32, c))
    p = b.fadd(_fma(b, p, b.fmul(r, r), r), const(VF32, 1.0))
    exponent = b.shl(b.sub(b.bitcast(shifted, VI32), const(VI32, 0x4B400000)), const(VI32, 23))
    return b.select(tiny, const(VF32, 0.0), b.bitcast(b.add(b.bitcast(p, VI32), exponent), VF32))


@op(F32X16, F32X16)
def exp_f32(b, a):
    """e^x; 0 below -87.3, held at e^87 above 87. NaN gives e^87."""
    return emit_exp(b, a[0])


@op(F32X16, F32X16)
def sigmoid_f32(b, a):
    """1 / (1 + e^-x)."""
    return b.fdiv(const(VF32, 1.0), b.fadd(const(VF32, 1.0), emit_exp(b, b.fneg(a[0]))))


@op(F32X16, F32X16)
def tanh_f32(b, a):
    """tanh(x) = 1 - 2 / (e^2x + 1)."""
    e = emit_exp(b, b.fmul(a[0], const(VF32, 2.0)))
    return b.fsub(const(VF32, 1.0), b.fdiv(const(VF32, 2.0), b.fadd(e, const(VF32, 1.0))))
