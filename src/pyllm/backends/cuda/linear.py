"""Launches of matrix products and table look-ups.

Products of few rows (`Count.few`) take matrix-vector kernels, which are bound by memory: kernels for up to 1, 2, 4 and
8 rows. Larger ones take tensor cores, in tiles of 16 to 128 rows. All are planned side by side; `Launch.when` says
which one a step takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyllm.backends.cuda import matrices
from pyllm.backends.cuda.launch import (
    FEW,
    GROUP,
    TOKENS,
    Count,
    Forms,
    Launch,
    StepArrays,
    StepShape,
    View,
    fill,
    struct,
)
from pyllm.backends.cuda.matrices import MatrixPlan, blocks, codebook, defines
from pyllm.backends.layouts import LAYOUTS
from pyllm.backends.plan.memory import Buffer
from pyllm.gguf.tensor import TensorInfo
from pyllm.quant import formats
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.backends.cuda.experts import Routing
    from pyllm.backends.cuda.launcher import Launcher

plan, pack = matrices.plan, matrices.pack
_WARPS = 4
_BLOCK_ROWS, _FLOAT_TILE = 128, 64
_SCALE_ROWS = _BLOCK_ROWS + 4
_EMBED_THREADS, _EMBED_FLOATS = 128, 256
_MOST_PARTS = 16
_STATIC_SHARED, _TWO_BLOCKS = 4 << 10, 128 << 10
"""Bytes of static shared memory of a matrix-matrix block; shared memory of a multiprocessor from which two blocks are
preferred."""
_DECODED_AT_ONCE = 1 << 20
"""Weights of a table decoded at a time."""

_WEIGHTS = {
    "matrices": "ptr",
    "stride": "int",
    "low": "int",
    "high": "int",
    "scales": "int",
    "floats": "int",
    "rows": "int",
    "n_groups": "int",
    "columns": "int",
}
_RESULTS = {"out": "ptr", "bias": "ptr", "residual": "ptr", "scale": "ptr", "ld": "int", "ld_residual": "int"}
_TOKENS = {"count": "ptr", "offsets": "ptr", "slots": "ptr", "n_matrices": "int", "slots_per_row": "int"}
_PARTS = {"sums": "ptr", "arrived": "ptr"}
_FEW_END = {"count": "ptr", "ids": "ptr", "ld_x": "int", "slots_per_row": "int", "parts": "int"}

_MATVEC = struct(**_WEIGHTS, **_RESULTS, x="ptr", x_scales="ptr", x_sums="ptr", **_FEW_END)
_MATVEC_FLOAT = struct(**_WEIGHTS, **_RESULTS, x="ptr", **_FEW_END)
_MATMUL = struct(**_WEIGHTS, **_RESULTS, **_TOKENS, **_PARTS, x="ptr", factors="ptr", ld_x="int")
_MATMUL_FLOAT = struct(**_WEIGHTS, **_RESULTS, **_TOKENS, **_PARTS, x="ptr", ld_x="int")
_EMBED = struct(
    table="ptr", book="ptr", which="ptr", count="ptr", out="ptr", row_bytes="int", n_groups="int", ld="int",
    scale="float",
)  # fmt: skip
_EMBED_FLOAT = struct(table="ptr", which="ptr", count="ptr", out="ptr", columns="int", ld="int", scale="float")


@dataclass(frozen=True, slots=True)
class Parts:
    """Work memory of products whose columns are divided among blocks, so that few rows still fill a card."""

    n_sm: int
    max_shared: int
    sums: Buffer
    arrived: Buffer
    """Zero between products."""

    @staticmethod
    def of(n_sm: int, max_shared: int) -> Parts:
        """For a card of this many multiprocessors, whose blocks can have this much shared memory."""
        tiles = 2 * n_sm
        return Parts(n_sm, max_shared, Buffer(4 * _BLOCK_ROWS * 128 * tiles), Buffer(4 * tiles, keep=True))

    def number(self, n_tiles: int, n_stretches: int, most_tiles: int) -> int:
        """Number of parts, where one part makes `n_tiles` blocks: about `most_tiles` blocks in all, none without
        columns."""
        return max(1, min(most_tiles // n_tiles, n_stretches, _MOST_PARTS))


@dataclass(frozen=True, slots=True)
class _Tile:
    """Shape of a block of a matrix-matrix kernel: warps by rows and by tokens, and 8-token tiles of a warp."""

    tokens: int
    warps_m: int
    warps_n: int

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    @property
    def defines(self) -> dict[str, int | str]:
        return {
            "WARPS_M": self.warps_m,
            "WARPS_N": self.warps_n,
            "TILES_M": _BLOCK_ROWS // (16 * self.warps_m),
            "TILES_N": self.tokens // (8 * self.warps_n),
        }


_TILES = (_Tile(16, 4, 1), _Tile(32, 4, 1), _Tile(64, 4, 2), _Tile(128, 4, 2))


@dataclass(frozen=True, slots=True)
class _Product:
    """Shared inputs of one product's launches."""

    arrays: StepArrays
    count: Count
    plan: MatrixPlan
    weight: Buffer
    x: Forms
    y: View
    bias: Buffer | None
    residual: View | None
    scale: Buffer | None
    routing: Routing | None
    parts: Parts

    @property
    def slots_per_row(self) -> int:
        """Slots per row of x: 1, or the experts of a token where its slots share the row."""
        return self.count.few // self.x.few

    def common(self) -> dict[str, Any]:
        """Members of `Weights` and `Results`."""
        p, residual = self.plan, self.residual
        low, high, scales, floats, stride = p.planes
        return {
            "matrices": self.weight,
            "stride": stride,
            "low": low,
            "high": high,
            "scales": scales,
            "floats": floats,
            "rows": p.rows,
            "n_groups": p.n_groups,
            "columns": p.columns,
            "out": self.y,
            "bias": self.bias,
            "residual": residual,
            "scale": self.scale,
            "ld": self.y.ld,
            "ld_residual": residual.ld if residual else 0,
        }

    def buffers(self, *x: Buffer) -> tuple[Buffer, ...]:
        """Buffers read besides weights."""
        routed = (self.routing.chosen, self.routing.offsets, self.routing.slots) if self.routing else ()
        counted = (self.count.buffer,) if self.count.buffer else ()
        return (*x, *routed, *counted, *((self.residual.buffer,) if self.residual else ()))


def product(
    arrays: StepArrays,
    count: Count,
    plan: MatrixPlan,
    weight: Buffer,
    x: Forms,
    y: View,
    parts: Parts,
    *,
    bias: Buffer | None = None,
    residual: View | None = None,
    scale: Buffer | None = None,
    routing: Routing | None = None,
    label: str = "product",
) -> list[Launch]:
    """y = x @ weight.T * scale + bias + residual; `x` in the forms that `plan` asks for.

    With `routing`, `count` counts slots and y has a row for each: its matrix is its expert's, its row of x the slot's
    or (where `x.few` is that of tokens) its token's. bias [n_matrices][rows], scale [n_matrices].
    """
    p = _Product(arrays, count, plan, weight, x, y, bias, residual, scale, routing, parts)
    label = f"{label} {plan.format} {plan.rows} x {plan.columns}"
    if routing:
        return [_few(p, 1, 0, count.few, label), *_many(p, label)]
    return [*(_few(p, n, n // 2, n, label) for n in (1, 2, 4, FEW)), *_many(p, label)]


def _few(p: _Product, tokens: int, more_than: int, up_to: int, label: str) -> Launch:
    """A matrix-vector product of more than `more_than` and up to `up_to` rows, `tokens` of them at once."""
    spec = p.plan.layout
    rows = 4 if spec.bits > 2 or tokens > 1 else 8
    parts = _column_parts(p, rows)
    grid_x = -(-p.plan.rows // (rows * _WARPS // parts))

    def args(shape: StepShape) -> Any:
        end = {
            "count": p.arrays.count(p.count),
            "ids": p.routing.chosen if p.routing else None,
            "slots_per_row": p.slots_per_row,
            "parts": parts,
        }
        if spec.is_float:
            assert p.x.f32 is not None
            return fill(_MATVEC_FLOAT, **p.common(), x=p.x.f32, ld_x=p.x.f32.ld, **end)
        assert p.x.q8 is not None
        q8 = p.x.q8
        return fill(_MATVEC, **p.common(), x=q8.values, x_scales=q8.scales, x_sums=q8.sums, ld_x=q8.ld, **end)

    x = p.x.q8.buffers if p.x.q8 and not spec.is_float else (p.x.f32.buffer,) if p.x.f32 else ()
    return Launch(
        "matvec_float.cu" if spec.is_float else "matvec.cu",
        "matvec",
        lambda shape: (grid_x, p.count.of(shape) if p.routing else 1, 1),
        32 * _WARPS,
        args,
        f"{label}, {tokens} at once",
        defines={**defines(spec), "ROWS": rows, "TOKENS": tokens},
        when=lambda shape: more_than < p.count.of(shape) <= up_to,
        reads=p.buffers(*x),
        writes=(p.y.buffer,),
    )


def _column_parts(p: _Product, rows: int) -> int:
    """Warps that share the columns of a stretch of rows, for about 16 warps per multiprocessor."""
    per_lane = p.plan.n_groups if not p.plan.layout.is_float else p.plan.n_groups * p.plan.layout.bits // 4
    stretches = -(-p.plan.rows // rows)
    parts = 1
    while parts < _WARPS and stretches * parts < 16 * p.parts.n_sm and per_lane >= 2 * 32 * parts:
        parts *= 2
    return parts


def _many(p: _Product, label: str) -> list[Launch]:
    """Matrix-matrix products of more than `count.few` rows."""
    if p.plan.many_form == "f32":
        return [_matmul_float(p, label)]
    tiles = [t for t in _TILES if _stages(p, t)[0] >= 2]
    most = [t.tokens for t in tiles[:-1]] + [1 << 31]
    return [_matmul(p, t, low, high, label) for t, low, high in zip(tiles, [0, *most], most, strict=False)]


def _grid(p: _Product, shape: StepShape, rows: int, tokens: int, most_tiles: int, stretch: int) -> tuple[int, int, int]:
    x, y = -(-p.plan.rows // rows), _token_tiles(p, shape, tokens)
    return x, y, p.parts.number(x * y, -(-p.plan.n_groups // stretch), most_tiles)


def _token_tiles(p: _Product, shape: StepShape, tokens: int) -> int:
    n = p.count.of(shape)
    return n // tokens + p.plan.n_matrices if p.routing else -(-n // tokens)


def _rows_each(p: _Product, shape: StepShape) -> int:
    """Expected rows of a matrix: those of the step, or an expert's mean and some more."""
    n = p.count.of(shape)
    return -(-5 * n // (4 * p.plan.n_matrices)) if p.routing else n


def _tokens_args(p: _Product) -> dict[str, Any]:
    r = p.routing
    return {
        "count": p.arrays.count(p.count),
        "offsets": r.offsets if r else None,
        "slots": r.slots if r else None,
        "n_matrices": p.plan.n_matrices,
        "slots_per_row": p.slots_per_row,
        "sums": p.parts.sums,
        "arrived": p.parts.arrived,
    }


def _matmul(p: _Product, tile: _Tile, more_than: int, up_to: int, label: str) -> Launch:
    """Tensor-core launches, for more than `more_than` and up to `up_to` rows of a matrix."""
    half, spec = p.x.half, p.plan.layout
    stages, shared = _stages(p, tile)
    blocks_each = 2 if p.parts.max_shared > _TWO_BLOCKS else 1  # of 256 threads on a multiprocessor
    # with large tiles of tokens, splitting columns pays only to fill every multiprocessor
    most_tiles = p.parts.n_sm * (1 if tile.tokens == 128 else 2)

    def args(shape: StepShape) -> Any:
        assert half is not None
        return fill(_MATMUL, **p.common(), **_tokens_args(p), x=half.values, factors=half.factors, ld_x=half.ld)

    return Launch(
        "matmul.cu",
        "matmul",
        lambda shape: _grid(p, shape, _BLOCK_ROWS, tile.tokens, most_tiles, 8),
        tile.threads,
        args,
        f"{label}, tiles of {tile.tokens}",
        defines={**defines(spec), **tile.defines, "STAGES": stages, "BLOCKS": blocks_each * 256 // tile.threads},
        shared=shared,
        when=lambda shape: p.count.of(shape) > p.count.few and more_than < _rows_each(p, shape) <= up_to,
        reads=p.buffers(*(half.buffers if half else ())),
        writes=(p.y.buffer, p.parts.sums, p.parts.arrived),
    )


def _stages(p: _Product, tile: _Tile) -> tuple[int, int]:
    """Tiles of columns in shared memory at a time, and the bytes of them and of scales; two blocks should fit, if a
    multiprocessor has memory for that. Fewer than 2: this tile does not suit the card."""
    spec, most = p.plan.layout, p.parts.max_shared
    stage = tile.tokens * 128 + _BLOCK_ROWS * (128 if spec.is_float else 8 * spec.bits)
    scales = 0 if spec.is_float else 2 * 4 * 8 * (GROUP // spec.scale_columns) * _SCALE_ROWS
    room = (most // 2 if most > _TWO_BLOCKS else most) - _STATIC_SHARED - scales
    stages = min(4, room // stage)
    return stages, stages * stage + scales


def _matmul_float(p: _Product, label: str) -> Launch:
    """In float32, for more than `count.few` rows."""

    def args(shape: StepShape) -> Any:
        assert p.x.f32 is not None
        return fill(_MATMUL_FLOAT, **p.common(), **_tokens_args(p), x=p.x.f32, ld_x=p.x.f32.ld)

    return Launch(
        "matmul_float.cu",
        "matmul",
        lambda shape: _grid(p, shape, _FLOAT_TILE, _FLOAT_TILE, 2 * p.parts.n_sm, 2),
        256,
        args,
        label,
        when=lambda shape: p.count.of(shape) > p.count.few,
        reads=p.buffers(*((p.x.f32.buffer,) if p.x.f32 else ())),
        writes=(p.y.buffer, p.parts.sums, p.parts.arrived),
    )


def table_bytes(tensor: TensorInfo) -> int:
    """Device bytes of a looked-up table: its blocks as in the file, and a codebook if the format has one.

    Formats without a layout are decoded to float32.
    """
    if tensor.format.lower() in LAYOUTS:
        return tensor.n_bytes + len(codebook(tensor.format))
    return 4 * tensor.n_elements


def load_table(launcher: Launcher, tensor: TensorInfo, address: int) -> None:
    """Upload a table to a buffer of `table_bytes`; its data has been read on return."""
    if tensor.format.lower() in LAYOUTS:
        launcher.upload(address, tensor.data, wait=True)
        if len(book := codebook(tensor.format)):
            launcher.upload(address + tensor.n_bytes, book, wait=True)
        return
    rows, columns = tensor.shape[-2:]
    data, step = tensor.data.reshape(rows, -1), max(1, _DECODED_AT_ONCE // columns)
    for first in range(0, rows, step):
        values = formats.get(tensor.format).decode(data[first : first + step])
        launcher.upload(address + 4 * columns * first, values, wait=True)


def embed(
    arrays: StepArrays, tensor: TensorInfo, table: Buffer, y: View, scale: float, of_positions: bool = False
) -> Launch:
    """y = rows of a table by the step's tokens, or positions, times `scale`; the table is as `load_table` left it."""
    columns = tensor.shape[-1]
    spec = LAYOUTS.get(tensor.format.lower(), LAYOUTS["f32"])
    which = arrays.positions if of_positions else arrays.tokens
    common: dict[str, Any] = {"table": table, "which": which, "out": y, "ld": y.ld, "scale": scale}
    if spec.is_float:
        return Launch(
            "embed_float.cu",
            "embed",
            lambda shape: (-(-columns // _EMBED_FLOATS), shape.n_tokens, 1),
            _EMBED_FLOATS,
            lambda shape: fill(_EMBED_FLOAT, **common, count=arrays.count(TOKENS), columns=columns),
            f"embed {spec.name}",
            defines=defines(spec),
            writes=(y.buffer,),
        )
    n_groups = columns // GROUP
    return Launch(
        "embed.cu",
        "embed",
        lambda shape: (-(-n_groups // _EMBED_THREADS), shape.n_tokens, 1),
        _EMBED_THREADS,
        lambda shape: fill(
            _EMBED, **common, book=table.address + tensor.n_bytes, count=arrays.count(TOKENS),
            row_bytes=tensor.n_bytes // tensor.shape[-2], n_groups=n_groups,
        ),
        f"embed {spec.name}",
        defines={**defines(spec), **blocks(tensor.format)},
        writes=(y.buffer,),
    )  # fmt: skip
