"""Intel AMX: eight tile registers of 16 rows by 64 bytes, and the product of two bfloat16 tiles into a float32 one.

Only for targets with amx-tile and amx-bf16, in processes that the system has granted the tile registers
(`linear.wide_supported`). Tile numbers are literals.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from pyllm.jit.simd.core import F32X16, I8, I8X64, I32, I32X16, VF32, VI32, call, const, op
from pyllm.jit.simd.memory import store_i8, store_i64

_PTR = I8.as_pointer()
_VOID = ir.VoidType()


def _tile_op(name: str, n_tiles: int, n_args: int) -> Any:
    """An intrinsic whose first arguments are tile numbers, known when compiling."""
    tiles, rest = [f"t{i}" for i in range(n_tiles)], [f"a{i}" for i in range(n_args)]

    def typed(args: tuple[Any, ...]) -> Any:
        numbers = [getattr(a, "literal_value", None) for a in args[:n_tiles]]
        if any(n is None for n in numbers):
            return None

        def codegen(context: Any, b: Any, sig: Any, values: Any) -> Any:
            extra = list(values[n_tiles:])
            if extra:
                extra[0] = b.inttoptr(extra[0], _PTR)
            call(b, f"llvm.x86.{name}", _VOID, [ir.Constant(I8, n) for n in numbers] + extra)
            return context.get_dummy_value()

        return types.void(*args[:n_tiles], *[types.int64] * n_args), codegen

    scope: dict[str, Any] = {"typed": typed}
    params = ", ".join(tiles + rest)
    exec(f"def {name}(typingctx, {params}):\n    return typed(({params},))", scope)
    return intrinsic(prefer_literal=True)(scope[name])


tile_load = _tile_op("tileloadd64", 1, 2)
"""tile_load(tile, address, bytes between rows)."""
tile_store = _tile_op("tilestored64", 1, 2)
tile_zero = _tile_op("tilezero", 1, 0)
tile_dot_bf16 = _tile_op("tdpbf16ps", 3, 0)
"""tile_dot_bf16(c, a, b): c [m][n] += a [m][2 k] * b [k][n][2]."""


@op(types.void, types.int64)
def tile_config(b, a):
    """Set the shape of all tiles from the 64-byte block at an address."""
    call(b, "llvm.x86.ldtilecfg", _VOID, [b.inttoptr(a[0], _PTR)])


@register_jitable
def tile_shapes(block, rows0, rows1):
    """Shape all tiles, through 64 bytes of memory at `block`. 64 bytes a row; 0, 1 (sums) and 4 (activations) have
    `rows0` rows, 2, 3 and 5 have `rows1`, 6 and 7 (weights) have 16."""
    for i in range(8):
        store_i64(block + 8 * i, 0)
    store_i8(block, 1)
    for i in range(8):
        store_i8(block + 16 + 2 * i, 64)
    store_i8(block + 48, rows0)
    store_i8(block + 49, rows0)
    store_i8(block + 50, rows1)
    store_i8(block + 51, rows1)
    store_i8(block + 52, rows0)
    store_i8(block + 53, rows1)
    store_i8(block + 54, 16)
    store_i8(block + 55, 16)
    tile_config(block)


@op(types.void)
def tile_release(b, a):
    call(b, "llvm.x86.tilerelease", _VOID, [])


@op(F32X16, F32X16)
def top_half(b, a):
    """Rounded towards zero to bfloat16."""
    return b.bitcast(b.and_(b.bitcast(a[0], VI32), const(VI32, -65536)), VF32)


def _pair(b: Any, x: Any, y: Any) -> Any:
    """Upper halves: of x in the low half of each lane, of y in the high one. Not as a shuffle of 16-bit lanes, which
    LLVM would choose by itself and which costs three operations."""
    sixteen = const(VI32, 16)
    return call(b, "llvm.fshr.v16i32", VI32, [b.lshr(y, sixteen), x, sixteen])


@op(I32X16, F32X16, F32X16)
def pair_tops(b, a):
    """a0 and a1, rounded towards zero to bfloat16, in each lane."""
    return _pair(b, b.bitcast(a[0], VI32), b.bitcast(a[1], VI32))


@op(I32X16, F32X16, F32X16)
def pair_bf16(b, a):
    """a0 and a1, rounded to bfloat16 (halves away from zero), in each lane."""
    half = const(VI32, 0x8000)
    return _pair(b, b.add(b.bitcast(a[0], VI32), half), b.add(b.bitcast(a[1], VI32), half))


@op(I32X16, I8X64)
def as_i32(b, a):
    """The same bits, four bytes a lane."""
    return b.bitcast(a[0], VI32)


@op(F32X16, I32X16, types.int64)
def byte_f32(b, a):
    """Byte a1 (0 .. 3) of each lane, unsigned, as a float."""
    n = b.shl(b.trunc(a[1], I32), ir.Constant(I32, 3))
    v = b.insert_element(ir.Constant(VI32, ir.Undefined), n, ir.Constant(I32, 0))
    v = b.shuffle_vector(v, ir.Constant(VI32, ir.Undefined), ir.Constant(ir.VectorType(I32, 16), [0] * 16))
    return b.uitofp(b.and_(b.lshr(a[0], v), const(VI32, 255)), VF32)
