"""Loads of a kernel's arguments, generated from their declaration. Imported where kernels are compiled."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pyllm.jit.arguments import PREFIX, Arguments
from pyllm.jit.simd.core import I64, const


def reader(kind: type[Arguments]) -> Any:
    """The function read(args) -> a named tuple of the slots of `kind`: floats are float64, all else int64.

    Each call loads every slot; the compiler removes unused loads.
    """
    floats = {slot for field in kind.declared if field.kind is float for slot in field.slots}
    names = [*PREFIX, *kind.slots()]
    named = namedtuple(kind.__name__, names)  # type: ignore[misc]
    kinds = [types.float64 if name in floats else types.int64 for name in names]
    result = types.NamedTuple(kinds, named) if floats else types.NamedUniTuple(types.int64, len(names), named)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        loads = []
        for i, t in enumerate(kinds):
            llvm = ir.DoubleType() if t == types.float64 else I64
            pointer = builder.inttoptr(builder.add(values[0], const(I64, 8 * i)), llvm.as_pointer())
            loads.append(builder.load(pointer))
            loads[-1].align = 8
        return context.make_tuple(builder, signature.return_type, loads)

    def read(typingctx: Any, args: Any) -> Any:
        return result(types.int64), codegen

    return intrinsic(read)
