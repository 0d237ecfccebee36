"""From GGUF blocks to panels (`layouts.py`): one work item is one panel of 16 rows.

Rows past the last are packed as zeros.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.pack import Pack
from pyllm.backends.cpu.kernels.pack_iq import CODEBOOKS
from pyllm.backends.cpu.kernels.pack_k import SUPER
from pyllm.backends.cpu.kernels.pack_simple import SIMPLE
from pyllm.backends.cpu.layouts import LAYOUTS
from pyllm.jit.reader import reader
from pyllm.jit.simd import atomic_add, load_i32, load_u16, store_i16, store_i32

read = reader(Pack)

_BLOCKS = SIMPLE | SUPER | CODEBOOKS


def pack(layout: str) -> Any:
    """Kernel that packs a GGUF format into its layout."""
    spec = LAYOUTS[layout]
    if spec.is_float:
        return _pack_float(spec.bits)
    block, block_bytes = _BLOCKS[layout]
    columns, groups = spec.block_columns, spec.groups_per_block
    group_bytes, scale_bytes = spec.group_bytes, spec.scale_bytes

    @register_jitable
    def panel(src, row_bytes, n_rows, n_columns, dst, panel_bytes):
        n_blocks = n_columns // columns
        scales = dst + n_blocks * groups * group_bytes
        if n_rows < 16:
            for i in range(panel_bytes // 4):
                store_i32(dst + 4 * i, 0)
        for r in range(n_rows):
            for b in range(n_blocks):
                block(
                    src + r * row_bytes + b * block_bytes, dst + b * groups * group_bytes, scales + b * scale_bytes, r
                )

    return _each_panel(panel, groups * group_bytes + scale_bytes, columns)


def _pack_float(bits: int) -> Any:
    size = bits // 8

    @register_jitable
    def panel(src, row_bytes, n_rows, n_columns, dst, panel_bytes):
        for c in range(n_columns):
            for r in range(16):
                if size == 4:
                    store_i32(dst + 64 * c + 4 * r, load_i32(src + r * row_bytes + 4 * c) if r < n_rows else 0)
                else:
                    store_i16(dst + 32 * c + 2 * r, load_u16(src + r * row_bytes + 2 * c) if r < n_rows else 0)

    return _each_panel(panel, 16 * size, 1)


def _each_panel(panel: Any, block_bytes: int, columns: int) -> Any:
    def kernel(args, thread, n_threads):
        a = read(args)
        n_panels = (a.n_rows + 15) // 16
        panel_bytes = (a.columns // columns * block_bytes + 63) // 64 * 64
        while True:
            i = atomic_add(a.counter, 1)
            if i >= n_panels * a.n_matrices:
                break
            m, p = i // n_panels, i % n_panels
            panel(
                a.source + m * a.source_stride + 16 * p * a.ld_source, a.ld_source, min(16, a.n_rows - 16 * p),
                a.columns, a.target + m * a.target_stride + p * panel_bytes, panel_bytes,
            )  # fmt: skip

    return kernel
