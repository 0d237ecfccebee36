"""Linear layers on the CPU: layout and kernel of a tensor, its packing, and arguments."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

import numpy as np

from pyllm.backends.cpu.arguments import linear as arguments
from pyllm.backends.cpu.arguments.pack import Pack
from pyllm.backends.cpu.arguments.wide import Wide
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.layouts import LAYOUTS, PANEL, Layout
from pyllm.gguf.tensor import TensorInfo
from pyllm.jit.arguments import Address, Place, Rows
from pyllm.jit.compiler import LIBRARY, Kernel
from pyllm.jit.target import Target, host
from pyllm.quant import formats
from pyllm.records import dataclass

RunParallel = Callable[[int, int], None]
"""run_parallel(kernel address, args address): runs the kernel on all threads and waits."""

# Register tiles (panels, tokens) by instruction set: what 32, or 16, vector registers hold.
_TILES = {"avx512vnni": (2, 5), "avx512": (2, 4), "dotprod": (1, 3)}
_FLOAT_TILES = {"avx512vnni": (2, 8), "avx512": (2, 8), "dotprod": (1, 4)}
_SMALL_TILE = (1, 3)

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """Layout and kernels of matrices [rows, columns] of one format."""

    format: str
    rows: int
    columns: int
    layout: Layout
    kernel: Kernel
    pack_kernel: Kernel
    wide_kernel: Kernel | None
    """Prefill kernel, whose activations are bfloat16 records; None without AMX."""
    decoded: bool
    """The format has no kernel for such inputs: it is decoded to float16 when packed."""

    @property
    def x_form(self) -> str:
        """Activation dtype of the kernel's input: "q8" (quantized activations) or "f32"."""
        return "f32" if self.layout.is_float else "q8"

    @property
    def n_panels(self) -> int:
        return (self.rows + PANEL - 1) // PANEL

    @property
    def n_bytes(self) -> int:
        """Bytes of one packed matrix."""
        return self.layout.matrix_bytes(self.rows, self.columns)

    def args(
        self,
        *,
        w: Address,
        x: Rows,
        y: Rows,
        bias: Address | None = None,
        residual: Address | None = None,
        ranges: Address,
        n_groups: int = 1,
        bias_stride: int = 0,
        x_stride: int = 0,
        y_stride: int = 0,
        range_stride: int = 16,
    ) -> arguments.Linear:
        """Arguments of `kernel`; the residual has y's layout."""
        return arguments.Linear(
            w=w, n_panels=self.n_panels, columns=self.columns, x=x, y=y, bias=bias, residual=residual, ranges=ranges,
            n_groups=n_groups, w_stride=self.n_bytes, bias_stride=bias_stride, x_stride=x_stride, y_stride=y_stride,
            range_stride=range_stride,
        )  # fmt: skip

    def wide_args(
        self,
        *,
        w: Address,
        x: Rows,
        y: Rows,
        bias: Address | None = None,
        residual: Address | None = None,
        rows: Address,
        scratch: Rows,
    ) -> Wide:
        """Arguments of prefill kernels."""
        return Wide(
            w=w, n_panels=self.n_panels, columns=self.columns, x=x, y=y, bias=bias, residual=residual, rows=rows,
            scratch=scratch,
        )  # fmt: skip

    def gated_kernel(self, act: str) -> Kernel | None:
        """Prefill kernel fused with act(gate) * up, for a matrix whose first half of rows are gates."""
        whole = self.n_panels % 2 == 0 and self.rows % (2 * PANEL) == 0
        return kernel("wide", "gated_wide", layout=self.layout.name, act=act) if self.wide_kernel and whole else None


def plan(format: str, rows: int, columns: int, *, floats: bool = False) -> LinearPlan:
    """Choose layout and kernels. Any known format works: one without kernels is decoded to float16 when packed, and
    where the input is `floats`, any that isn't of floats."""
    own = LAYOUTS.get(format.lower())
    if own and floats and not own.is_float:
        own = None
    layout = own or LAYOUTS["f16"]
    isa = host().isa
    panels, tokens = (_FLOAT_TILES if layout.is_float else _TILES).get(isa, _SMALL_TILE)
    return LinearPlan(
        format, rows, columns, layout,
        kernel("linear", "linear", layout=layout.name, panels=panels, tokens=tokens),
        kernel("pack", "pack", layout=layout.name),
        kernel("wide", "linear_wide", layout=layout.name) if wide_supported(host()) and not layout.is_float else None,
        decoded=own is None,
    )  # fmt: skip


@cache
def wide_supported(target: Target) -> bool:
    """Whether the prefill path uses bfloat16 activations: the processor has AMX tiles, and the system allows this
    process to use them (Linux requires a request, once per process)."""
    if not (target.is_x86 and target.has("amx-tile", "amx-bf16", "avx512f") and sys.platform == "linux"):
        return False
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return syscall(ctypes.c_long(arch_prctl), ctypes.c_long(request_permission), ctypes.c_long(tile_data)) == 0


def pack(p: LinearPlan, tensor: TensorInfo, out: int, run_parallel: RunParallel) -> None:
    """Pack a tensor [rows, columns] or [experts, rows, columns] to address `out`, p.n_bytes for each matrix."""
    n_matrices = tensor.n_elements // (p.rows * p.columns)
    row_bytes = tensor.n_bytes // (n_matrices * p.rows)
    if not p.decoded:
        _pack(p, tensor.data.ctypes.data, row_bytes, p.rows, n_matrices, out, run_parallel)
        return
    decode, panel = formats.get(tensor.format).decode, p.layout.panel_bytes(p.columns)
    rows = max(1, _CHUNK_BYTES // (4 * p.columns) // PANEL) * PANEL
    source = tensor.data.reshape(n_matrices, p.rows, row_bytes)
    for m in range(n_matrices):
        for r in range(0, p.rows, rows):
            part = source[m, r : r + rows]
            with np.errstate(over="ignore"):
                halves = np.ascontiguousarray(decode(part).astype(np.float16))
            _pack(
                p,
                halves.ctypes.data,
                2 * p.columns,
                len(part),
                1,
                out + m * p.n_bytes + r // PANEL * panel,
                run_parallel,
            )


def _pack(
    p: LinearPlan, src: int, row_bytes: int, rows: int, n_matrices: int, out: int, run_parallel: RunParallel
) -> None:
    args = Pack(
        source=Place(src, row_bytes), n_rows=rows, columns=p.columns, target=Place(out), n_matrices=n_matrices,
        source_stride=row_bytes * rows, target_stride=p.n_bytes,
    )  # fmt: skip
    counter = np.zeros(1, np.int64)
    block = args.block(0, counter.ctypes.data)
    run_parallel(LIBRARY.load([p.pack_kernel])[p.pack_kernel], block.ctypes.data)
