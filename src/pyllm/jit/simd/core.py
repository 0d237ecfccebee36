"""Vector types for numba, the decorator that makes an operation of a few lines of LLVM IR, and the current target."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

from pyllm.jit.target import Target, host

LANES = 16


class Vec(types.Type):
    """A SIMD vector: `lanes` values of a numba scalar type."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"vec<{dtype},{lanes}>")


def llvm_type(t: Any) -> Any:
    """LLVM type of a numba scalar or Vec."""
    if isinstance(t, Vec):
        return ir.VectorType(llvm_type(t.dtype), t.lanes)
    if t == types.float32:
        return ir.FloatType()
    if t == types.float64:
        return ir.DoubleType()
    return ir.IntType(t.bitwidth)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, llvm_type(fe_type))


F32X16 = Vec(types.float32, 16)
I32X16 = Vec(types.int32, 16)
I8X64 = Vec(types.int8, 64)

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
VF16, VF32, VI8, VI16, VI32 = (ir.VectorType(t, LANES) for t in (F16, F32, I8, I16, I32))
VB64 = ir.VectorType(I8, 64)

_target: Target | None = None


def set_target(target: Target) -> None:
    """Emit operations for this target from now on."""
    global _target
    _target = target


def target() -> Target:
    return _target or host()


def op(result: Any, *args: Any) -> Callable[[Callable[[Any, Any], Any]], Any]:
    """Make a numba intrinsic of fixed signature from a function (builder, llvm arguments) -> llvm value."""

    def wrap(emit: Callable[[Any, Any], Any]) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            out = emit(builder, values)
            return context.get_dummy_value() if result is types.void else out

        names = ", ".join(f"a{i}" for i in range(len(args)))
        scope: dict[str, Any] = {"sig": result(*args), "codegen": codegen}
        # numba reads an intrinsic's parameters off its signature, so it needs one of the right length.
        exec(f"def {emit.__name__}(typingctx{', ' + names if names else ''}):\n    return sig, codegen", scope)
        scope[emit.__name__].__doc__ = emit.__doc__
        return intrinsic(scope[emit.__name__])

    return wrap


def call(b: Any, name: str, result: Any, args: Any) -> Any:
    """Call an LLVM intrinsic or external function by name."""
    f = b.module.globals.get(name)
    if f is None:
        f = ir.Function(b.module, ir.FunctionType(result, [a.type for a in args]), name)
    return b.call(f, args)


def const(t: Any, value: Any) -> Any:
    """A constant, the same in every lane of a vector."""
    if isinstance(t, ir.VectorType):
        return ir.Constant(t, [value] * t.count)
    return ir.Constant(t, value)


def splat(b: Any, x: Any, n: int = LANES) -> Any:
    """A scalar in every lane."""
    t = ir.VectorType(x.type, n)
    v = b.insert_element(ir.Constant(t, ir.Undefined), x, ir.Constant(I32, 0))
    return b.shuffle_vector(v, ir.Constant(t, ir.Undefined), ir.Constant(ir.VectorType(I32, n), [0] * n))


def shuffle(b: Any, v: Any, w: Any, lanes: list[int]) -> Any:
    return b.shuffle_vector(v, w, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def split(b: Any, v: Any, parts: int) -> list[Any]:
    """A vector as equal parts, lowest lanes first."""
    n = v.type.count // parts
    undef = ir.Constant(v.type, ir.Undefined)
    return [shuffle(b, v, undef, list(range(i * n, (i + 1) * n))) for i in range(parts)]


def join(b: Any, parts: list[Any]) -> Any:
    """The reverse of `split`; the number of parts is a power of two."""
    while len(parts) > 1:
        n = parts[0].type.count
        parts = [shuffle(b, parts[i], parts[i + 1], list(range(2 * n))) for i in range(0, len(parts), 2)]
    return parts[0]


_OPERATORS = {
    operator.add: ("fadd", "add"),
    operator.sub: ("fsub", "sub"),
    operator.mul: ("fmul", "mul"),
    operator.truediv: ("fdiv", None),
    operator.and_: (None, "and_"),
    operator.or_: (None, "or_"),
    operator.xor: (None, "xor"),
}


def _register_operator(key: Any, float_name: str | None, int_name: str | None) -> None:
    def generic(self: Any, args: Any, kws: Any) -> Any:
        if len(args) == 2 and isinstance(args[0], Vec) and args[0] == args[1]:
            return signature(args[0], *args)
        return None

    infer_global(key)(type("VecOperator", (AbstractTemplate,), {"key": key, "generic": generic}))

    @lower_builtin(key, Vec, Vec)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        name = float_name if isinstance(sig.return_type.dtype, types.Float) else int_name
        if name is None:
            raise TypeError(f"{key.__name__} is not defined for {sig.return_type}")
        return getattr(builder, name)(*args)


for _key, (_f, _i) in _OPERATORS.items():
    _register_operator(_key, _f, _i)
