"""Register tiles of attention: C[rows][vectors] = A[rows][k] x B[k][vectors], for scores and for weighted values alike.

Rows of A and C lie `ld` bytes apart, a constant of the kernel, so that a tile needs one base register for all its
rows. B is half precision or float32 in the KV cache, in segments found through a list of addresses: the dimensions of
one group of 16 keys, or the values of 16 positions. Written as LLVM IR: as Python, numba would need seconds for them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from pyllm.jit.simd.core import I8, I32, I64, VF32, VI16, call, const, op, splat, target
from pyllm.jit.simd.math import _fma
from pyllm.jit.simd.memory import _load, _store, _widen_f16
from pyllm.records import dataclass

SEGMENT = 16
"""Positions of a segment."""


@dataclass(frozen=True, slots=True)
class TileShape:
    """What the registers hold: tiles of `rows` (ascending) rows by `vectors` vectors."""

    vectors: int
    rows: tuple[int, ...]
    registers: int
    """Registers of a vector."""


def tile_shape() -> TileShape:
    isa = target().isa
    if isa.startswith("avx512"):
        return TileShape(2, (1, 2, 3, 4, 6, 8, 12), 1)
    if isa in ("sse2", "generic"):
        return TileShape(1, (1, 2, 3), 4)
    return TileShape(1, (1, 2, 3, 4, 6), 2 if target().is_x86 else 4)


_PARAMETERS = ("a", "list", "list_step", "offset", "vector_step", "n_k", "step", "c", "alpha", "ahead", "ahead_offset")


def build(shape: TileShape, kv: str, ld: int) -> Any:
    """Function tile(n, a, list, list_step, offset, vector_step, n_k, step, c, alpha, ahead, ahead_offset).

    n <= shape.rows[-1] rows; vector v of element k of segment s is at list[s * 8 + v * list_step] + offset +
    v * vector_step + k * step bytes; n_k elements in segments of 16, or in one segment where list_step is not 0.
    alpha 0: C is overwritten; else C = C * alpha[row] + product. Meanwhile as many bytes are fetched ahead, for each
    segment from list[s * 8 + ahead] + ahead_offset on.
    """
    arguments = (types.int64,) * (1 + len(_PARAMETERS))

    @op(types.void, *arguments)
    def tile(b, a):
        after = b.append_basic_block("after")
        blocks = {r: b.append_basic_block(f"rows{r}") for r in shape.rows}
        switch = b.switch(a[0], blocks[shape.rows[-1]])
        for n in range(1, shape.rows[-1]):
            switch.add_case(const(I64, n), blocks[min(r for r in shape.rows if r >= n)])
        for r, block in blocks.items():
            b.position_at_end(block)
            b.call(_function(b.module, shape, r, kv, ld), a[1:])
            b.branch(after)
        b.position_at_end(after)

    return tile


def _function(module: Any, shape: TileShape, rows: int, kv: str, ld: int) -> Any:
    """The tile of a number of rows as a function of the module."""
    name = f"attention_tile{rows}"
    if name in module.globals:
        return module.globals[name]
    f = ir.Function(module, ir.FunctionType(ir.VoidType(), (I64,) * len(_PARAMETERS)), name)
    f.linkage = "internal"
    f.attributes.add("noinline")
    b = ir.IRBuilder(f.append_basic_block())
    _Tile(b, dict(zip(_PARAMETERS, f.args, strict=True)), shape, rows, kv, ld).emit()
    b.ret_void()
    return f


class _Tile:
    """Emits one tile. Variables are stack slots, which LLVM turns into registers.

    An element is summed in one accumulator, in the order of k: so a row's result does not depend on how many rows are
    computed with it.
    """

    def __init__(self, b: Any, p: dict[str, Any], shape: TileShape, rows: int, kv: str, ld: int) -> None:
        self.b, self.p, self.shape, self.rows, self.ld = b, p, shape, rows, ld
        self.half, self.vectors = kv == "f16", shape.vectors
        self.cells = [(r, v) for r in range(rows) for v in range(self.vectors)]
        self.fetch = rows != shape.rows[-1]  # many rows take longer than memory does
        self.acc = {cell: b.alloca(VF32) for cell in self.cells}
        self.at = {name: b.alloca(I64) for name in ("a", "list", "ahead", *(f"b{v}" for v in range(self.vectors)))}

    def emit(self) -> None:
        b, p = self.b, self.p
        self._begin()
        b.store(p["a"], self.at["a"])
        b.store(p["list"], self.at["list"])
        whole = b.icmp_signed("!=", p["list_step"], const(I64, 0))
        segments = b.ashr(b.add(p["n_k"], const(I64, SEGMENT - 1)), const(I64, 4))
        with cgutils.for_range(b, b.select(whole, const(I64, 1), segments)) as loop:
            left = b.sub(p["n_k"], b.shl(loop.index, const(I64, 4)))
            short = b.or_(whole, b.icmp_signed("<", left, const(I64, SEGMENT)))
            self._segment(b.select(short, left, const(I64, SEGMENT)))
        for r, v in self.cells:
            _store(b, b.load(self.acc[r, v]), self._cell(r, v))

    def _begin(self) -> None:
        """Accumulators start at zero, or at C scaled by row."""
        b, alpha = self.b, self.p["alpha"]
        for place in self.acc.values():
            b.store(const(VF32, 0.0), place)
        with b.if_then(b.icmp_signed("!=", alpha, const(I64, 0))):
            for r in range(self.rows):
                scale = splat(b, _load(b, b.add(alpha, const(I64, 4 * r)), ir.FloatType()))
                for v in range(self.vectors):
                    b.store(b.fmul(_load(b, self._cell(r, v), VF32), scale), self.acc[r, v])

    def _cell(self, r: int, v: int) -> Any:
        return self.b.add(self.p["c"], const(I64, r * self.ld + 64 * v))

    def _segment(self, n: Any) -> None:
        b, p = self.b, self.p
        here = b.load(self.at["list"])
        for v in range(self.vectors):
            first = _load(b, b.add(here, b.mul(p["list_step"], const(I64, v))), I64)
            first = b.add(first, b.add(p["offset"], b.mul(p["vector_step"], const(I64, v))))
            b.store(first, self.at[f"b{v}"])
        if self.fetch:
            b.store(b.add(_load(b, b.add(here, p["ahead"]), I64), p["ahead_offset"]), self.at["ahead"])
        with cgutils.for_range(b, n):
            self._step()
        b.store(b.add(here, const(I64, 8)), self.at["list"])

    def _step(self) -> None:
        """One element of k."""
        b, step = self.b, self.p["step"]
        a = b.load(self.at["a"])
        vectors = []
        for v in range(self.vectors):
            place = self.at[f"b{v}"]
            vectors.append(self._load_b(b.load(place)))
            b.store(b.add(b.load(place), step), place)
        for r in range(self.rows):
            x = splat(b, _load(b, b.add(a, const(I64, r * self.ld)), ir.FloatType()))
            for v in range(self.vectors):
                place = self.acc[r, v]
                b.store(_fma(b, x, vectors[v], b.load(place)), place)
        if self.fetch:
            self._fetch()
        b.store(b.add(a, const(I64, 4)), self.at["a"])

    def _load_b(self, address: Any) -> Any:
        if self.half:
            return _widen_f16(self.b, _load(self.b, address, VI16))
        return _load(self.b, address, VF32)

    def _fetch(self) -> None:
        b = self.b
        place = b.load(self.at["ahead"])
        pointer = b.inttoptr(place, I8.as_pointer())
        call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, const(I32, 0), const(I32, 2), const(I32, 1)])
        size = (32 if self.half else 64) * self.vectors
        b.store(b.add(place, const(I64, size)), self.at["ahead"])
