"""Matrices in device memory: their layout, and packing from the blocks of a file.

A matrix is a header of 256 bytes, whose first float bounds its weights' magnitudes, then planes of integers and scales
(kernels/unpack.cuh), or rows of floats padded to whole groups of 32 columns. Matrices of experts follow one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cuda.launch import ALIGNMENT, GROUP, fill, struct
from pyllm.backends.layouts import LAYOUTS, Layout
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.quant import formats
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.backends.cuda.launch import Defines
    from pyllm.backends.cuda.launcher import Launcher

STAGING = 32 << 20
"""Device bytes of staging memory while packing, unless a row is larger."""
_SCALES = {"f16": 0, "bf16": 1, "i8": 2, "u4": 3, "e4m3": 4}
_WORDS = {"f32": "u32", "f16": "u16", "bf16": "u16"}
_THREADS, _FLOAT_THREADS = 128, 256

_PACK = struct(
    source="ptr", matrix="ptr", book="ptr", row_bytes="int", n_rows="int", first_row="int", n_blocks="int",
    low="int", high="int", scales="int", floats="int",
)  # fmt: skip
_PACK_FLOAT = struct(
    source="ptr", matrix="ptr", n_rows="int", first_row="int", columns="int", ld="int", low="int"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """Layout and kernels of `n_matrices` matrices [rows, columns] of one format."""

    format: str
    rows: int
    columns: int
    n_matrices: int
    layout: Layout
    decoded: bool
    """The format has no layout of its own: it is decoded to float16 when packed."""

    @property
    def few_form(self) -> str:
        """Activation dtype of the input in products of few rows: "q8" or "f32"."""
        return "f32" if self.layout.is_float else "q8"

    @property
    def many_form(self) -> str:
        """Activation dtype of the input in larger products: "half" or "f32"."""
        return "f32" if self.layout.bits == 32 else "half"

    @property
    def n_groups(self) -> int:
        """Groups of a row; floats are padded to whole pairs, which tensor cores read."""
        step = 2 * GROUP if self.layout.is_float else GROUP
        return -(-self.columns // step) * step // GROUP

    @property
    def planes(self) -> tuple[int, int, int, int, int]:
        """Offsets of the planes low, high, scales and floats, and the end of the matrix, in units of 256 bytes."""
        spec = self.layout
        high = {3: 1, 5: 1, 6: 2}.get(spec.bits, 0)
        n, starts = self.rows * self.n_groups, [1]
        sizes = (4 * (spec.bits - high) * n, 4 * high * n, scale_bytes(spec) * n, float_bytes(spec) * n)
        for size in (*sizes[:3], sizes[3] // spec.groups_per_block):
            starts.append(starts[-1] + -(-size // ALIGNMENT))
        return starts[0], starts[1], starts[2], starts[3], starts[4]

    @property
    def n_bytes(self) -> int:
        """Bytes of all matrices."""
        return self.n_matrices * self.planes[4] * ALIGNMENT


def scale_bytes(spec: Layout) -> int:
    """Bytes of the byte scales of a group, with their minima."""
    if spec.is_float or not spec.byte_scales:
        return 0
    return GROUP // spec.scale_columns * (2 if spec.minima and spec.scales != "u4" else 1)


def float_bytes(spec: Layout) -> int:
    """Bytes of the float scales of a block, with their minima."""
    return 0 if spec.is_float or spec.scales == "e4m3" else 4 if spec.minima else 2


def plan(format: str, rows: int, columns: int, n_matrices: int = 1) -> MatrixPlan:
    """Plan matrices. Any known format works: one without a layout is decoded to float16 when packed."""
    own = LAYOUTS.get(format.lower())
    return MatrixPlan(format, rows, columns, n_matrices, own or LAYOUTS["f16"], decoded=own is None)


def defines(spec: Layout) -> Defines:
    """Defines of kernels for a layout."""
    if spec.is_float:
        return {"WORD": _WORDS[spec.name], "BRAIN": int(spec.name == "bf16")}
    values = np.zeros(16, np.int8)
    values[: len(spec.values)] = spec.values
    out: dict[str, int | str] = {
        "BITS": spec.bits, "OFFSET": spec.offset, "STEP": spec.step, "N_VALUES": len(spec.values),
        "MINIMA": int(spec.minima), "BLOCK_GROUPS": spec.groups_per_block, "SCALES": _SCALES[spec.scales],
        "SCALE_COLUMNS": spec.scale_columns, "FACTOR": f"{spec.factor}f",
    }  # fmt: skip
    if spec.values:
        out |= {f"VALUES{i}": f"{int(w):#010x}u" for i, w in enumerate(values.view("<u4"))}
    return out


def codebook(format: str) -> NDArray[np.uint8]:
    """A format's codebook as ranks among its distinct values, which packing reads; empty without one."""
    from pyllm.quant.codebooks import codebook as values

    name = "IQ1_S" if format == "IQ1_M" else format
    if name not in ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"):
        return np.zeros(0, np.uint8)
    return np.unique(values(name), return_inverse=True)[1].astype(np.uint8).reshape(-1)


def _largest(spec: Layout) -> int:
    """The largest magnitude of an integer's value."""
    if spec.values:
        return max(abs(v) for v in spec.values)
    return max(spec.step * ((1 << spec.bits) - 1) - spec.offset, spec.offset)


def pack(launcher: Launcher, p: MatrixPlan, tensors: Sequence[TensorInfo], address: int) -> None:
    """Pack tensors [(n_matrices,) rows, columns], stacked by rows, to `address`.

    Their data has been read on return. Raises BackendError where they differ from the plan, OutOfMemoryError where
    staging memory does not fit.
    """
    shapes = [(t.n_elements // (t.shape[-2] * t.shape[-1]), t.shape[-1], t.format) for t in tensors]
    if sum(t.shape[-2] for t in tensors) != p.rows or set(shapes) != {(p.n_matrices, p.columns, p.format)}:
        raise BackendError(f"{', '.join(t.name for t in tensors)} do not make {p.n_matrices} matrices of {p.rows} rows")
    row_bytes = 2 * p.columns if p.decoded else _row_bytes(tensors[0])
    rows = max(1, min(max(t.shape[-2] for t in tensors), STAGING // row_bytes))
    book = codebook(p.format)
    staging = launcher.allocate(rows * row_bytes + len(book))
    try:
        if len(book):
            launcher.upload(staging + rows * row_bytes, book, wait=True)
        for m in range(p.n_matrices):
            matrix, start = address + m * p.planes[4] * ALIGNMENT, 0
            launcher.zero(matrix, ALIGNMENT)
            for tensor in tensors:
                for first, part in _parts(tensor, m, rows, p.decoded):
                    launcher.upload(staging, part, wait=p.decoded)  # decoded rows last only until the next
                    _pack_rows(launcher, p, staging, row_bytes, rows, matrix, start + first, len(part))
                start += tensor.shape[-2]
        launcher.synchronize()
    finally:
        launcher.release(staging)


def _row_bytes(tensor: TensorInfo) -> int:
    return tensor.n_bytes // (tensor.n_elements // tensor.shape[-1])


def _parts(tensor: TensorInfo, matrix: int, rows: int, decoded: bool) -> Iterator[tuple[int, NDArray[Any]]]:
    """Pieces (first row, up to `rows` rows as uploaded) of one matrix of a tensor."""
    n = tensor.shape[-2]
    data = tensor.data.reshape(-1, n, _row_bytes(tensor))[matrix]
    for first in range(0, n, rows):
        part = data[first : first + rows]
        if decoded:
            with np.errstate(over="ignore"):
                part = formats.get(tensor.format).decode(part).astype(np.float16)
        yield first, np.ascontiguousarray(part)


def _pack_rows(
    launcher: Launcher, p: MatrixPlan, staging: int, row_bytes: int, room: int, matrix: int, first: int, n: int
) -> None:
    """Pack `n` rows in `staging` to row `first` of a matrix; the codebook follows `room` rows."""
    low, high, scales, floats, _ = p.planes
    if p.layout.is_float:
        (kernel,) = launcher.kernels("pack_float.cu", defines(p.layout), ["pack"])
        ld = GROUP * p.n_groups
        args = fill(
            _PACK_FLOAT, source=staging, matrix=matrix, n_rows=n, first_row=first, columns=p.columns, ld=ld, low=low
        )
        launcher.launch(kernel, (-(-ld // _FLOAT_THREADS), min(n, 4096), 1), _FLOAT_THREADS, args)
        return
    (kernel,) = launcher.kernels("pack.cu", {**defines(p.layout), **blocks(p.format)}, ["pack"])
    n_blocks = p.columns // p.layout.block_columns
    args = fill(
        _PACK, source=staging, matrix=matrix, book=staging + room * row_bytes, row_bytes=row_bytes, n_rows=n,
        first_row=first, n_blocks=n_blocks, low=low, high=high, scales=scales, floats=floats,
    )  # fmt: skip
    launcher.launch(kernel, (-(-n * n_blocks // _THREADS), 1, 1), _THREADS, args)


def blocks(format: str) -> Defines:
    """Defines of kernels that read a format's blocks (kernels/blocks.cuh), besides the layout's."""
    spec = LAYOUTS[format.lower()]
    values = ", ".join(map(str, spec.values)) or "0"
    return {f"FORMAT_{format.upper()}": 1, "LARGEST": f"{_largest(spec)}.0f", "TABLE": values}
