"""Packed matrices for mlx: shapes of their arrays, and filling them from a file's blocks. numpy only, no mlx.

`plan` gives exact sizes beforehand; `pack` makes the arrays. Integers are laid out for mlx's quantized products: a
row's codes as one bit string, the first weight lowest, in words of 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.mlx.formats import LAYOUTS, Affine, Coded, Mode
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.quant import formats
from pyllm.records import dataclass

Arrays = dict[str, NDArray[Any]]

_CHUNK = 1 << 19
"""Weights that a thread unpacks at a time, to bound temporaries."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Layout of a tensor's matrices [n, rows, columns]; n is 1 except for experts, as `shape` says.

    `layout` None: floats of `dtype`.
    """

    format: str
    shape: tuple[int, ...]
    layout: Affine | Mode | Coded | None
    dtype: str
    """"float16" or "float32": type of floats, and of an affine layout's scales and biases."""

    @property
    def rows(self) -> int:
        """Rows of all matrices."""
        return int(np.prod(self.shape[:-1]))

    @property
    def columns(self) -> int:
        return self.shape[-1]

    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape, without the axes before the columns, and type of each array."""
        layout, columns = self.layout, self.columns
        if layout is None:
            return {"w": ((columns,), self.dtype)}
        out: dict[str, tuple[tuple[int, ...], str]] = {"codes": ((columns * layout.bits // 32,), "uint32")}
        groups = columns // layout.group
        if isinstance(layout, Affine):
            return out | {"scales": ((groups,), self.dtype), "biases": ((groups,), self.dtype)}
        if isinstance(layout, Mode):
            return out | {"scales": ((groups,), "uint8")}
        if layout.scales != "none":
            out["scales"] = (groups,), "int8" if layout.scales == "i8" else "uint8"
        return out | {"halves": ((columns // layout.block * layout.n_halves,), "float16")}

    @property
    def n_bytes(self) -> int:
        each = (int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.arrays().values())
        return self.rows * sum(each)


def plan(tensor: TensorInfo, half: bool) -> Plan:
    """Layout of a matrix, or of a layer's experts. `half`: products and scales are float16.

    mlx requires columns in multiples of 32 and of the group; other matrices are kept as floats. So are coded ones
    without a kernel: decoding them in each step dominates the time of mlx's CPU build.
    """
    formats.get(tensor.format)  # raises FormatError for an unknown format
    layout = LAYOUTS.get(tensor.format)
    if layout is not None and (tensor.shape[-1] % max(32, layout.group) or (isinstance(layout, Coded) and not half)):
        layout = None
    wide = tensor.format == "F32" if layout is None else not half
    return Plan(tensor.format, tensor.shape, layout, "float32" if wide else "float16")


def pack(planned: Plan, data: NDArray[np.uint8], n_threads: int = 1) -> tuple[Plan, Arrays]:
    """Arrays of a plan from a tensor's bytes, of shape [..., as `Plan.arrays` says].

    Values that overflow float16 are kept as float32; the returned plan says so. Raises BackendError where the number of
    bytes is wrong.
    """
    quant = formats.get(planned.format)
    row_bytes = planned.columns // quant.block_size * quant.block_bytes
    if data.nbytes != planned.rows * row_bytes:
        raise BackendError(f"a {planned.format} tensor {list(planned.shape)} does not have {data.nbytes} bytes")
    rows = data.reshape(planned.rows, row_bytes)
    out = {name: np.empty((planned.rows, *shape), dtype) for name, (shape, dtype) in planned.arrays().items()}
    fits = [True]

    def work(part: slice) -> None:
        for name, values in _unpacked(planned, rows[part]).items():
            with np.errstate(over="ignore"):
                out[name][part] = values
            if out[name].dtype == np.float16 and values.dtype == np.float32 and not np.isfinite(out[name][part]).all():
                fits[0] = False

    if n_threads > 1:
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(work, _parts(planned)))
    else:
        for part in _parts(planned):
            work(part)
    if not fits[0]:
        return pack(Plan(planned.format, planned.shape, planned.layout, "float32"), data, n_threads)
    return planned, {name: a.reshape(*planned.shape[:-1], *a.shape[1:]) for name, a in out.items()}


def _parts(planned: Plan) -> Iterator[slice]:
    step = max(1, _CHUNK // planned.columns)
    for first in range(0, planned.rows, step):
        yield slice(first, min(first + step, planned.rows))


def _unpacked(planned: Plan, rows: NDArray[np.uint8]) -> Arrays:
    """The arrays of some rows; floats as float32."""
    layout, quant = planned.layout, formats.get(planned.format)
    if layout is None:
        return {"w": quant.decode(rows)}
    blocks = np.ascontiguousarray(rows).reshape(-1).view(quant.layout)
    with np.errstate(all="ignore"):  # NaN scales give NaN weights
        codes, *others = layout.unpack(blocks)
    names = ("scales", "biases") if isinstance(layout, Affine) else ("scales", "halves")
    out: Arrays = {"codes": pack_bits(codes.reshape(len(rows), -1), layout.bits)}
    for name, values in zip(names, others, strict=False):
        if values is not None:
            out[name] = values.reshape(len(rows), -1)
    return out


def pack_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Integers below 2^bits [rows, columns] → words [rows, columns * bits / 32], the first lowest."""
    if bits == 8:
        return np.ascontiguousarray(codes).view(np.uint32)
    together = {1: 8, 2: 4, 3: 8, 4: 2, 5: 8, 6: 4}[bits]  # codes that fill whole bytes
    n_bytes = together * bits // 8
    word: type[np.unsignedinteger[Any]] = np.uint8 if n_bytes == 1 else np.uint32 if n_bytes < 4 else np.uint64
    words = codes[:, ::together].astype(word)
    for i in range(1, together):
        words |= codes[:, i::together].astype(word) << word(bits * i)
    data = words.astype(word, copy=False).view(np.uint8).reshape(len(codes), -1, words.itemsize)[:, :, :n_bytes]
    return np.ascontiguousarray(data).reshape(len(codes), -1).view(np.uint32)
