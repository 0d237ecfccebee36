"""From GGUF blocks to panels (`layouts.py`): one work item is one panel of 16 rows.

Slots: step, counter, source, bytes between source rows, rows, columns, target, matrices, bytes between source matrices,
bytes between target matrices. Rows past the last are packed as zeros.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from pyllm.backends.cpu.layouts import LAYOUTS
from pyllm.jit.simd import (
    atomic_add,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    store_i8,
    store_i16,
    store_i32,
)

_LOW = 0x0F0F0F0F


@register_jitable
def _u32(p):
    return load_i32(p) & 0xFFFFFFFF


@register_jitable
def _gather_fifth_bits(bits, j):
    """Bits j, 4 + j, 8 + j, … 28 + j as one byte."""
    x = (bits >> j) & 0x11111111
    x = (x | (x >> 3)) & 0x03030303
    x = (x | (x >> 6)) & 0x000F000F
    return (x | (x >> 12)) & 0xFF


# One block of one row: `src` the GGUF block, `q` the integers of the panel's block, `s` its scales, r the row in it.


@register_jitable
def _q4_0(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    for h in range(4):
        store_i32(q + 64 * h + 4 * r, load_i32(src + 2 + 4 * h))


@register_jitable
def _q4_1(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    store_i16(s + 32 + 2 * r, load_u16(src + 2))
    for h in range(4):
        store_i32(q + 64 * h + 4 * r, load_i32(src + 4 + 4 * h))


@register_jitable
def _q5_0(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    bits = _u32(src + 2)
    for j in range(4):
        store_i8(q + 256 + 4 * r + j, _gather_fifth_bits(bits, j))
    for h in range(4):
        store_i32(q + 64 * h + 4 * r, load_i32(src + 6 + 4 * h))


@register_jitable
def _q5_1(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    store_i16(s + 32 + 2 * r, load_u16(src + 2))
    bits = _u32(src + 4)
    for j in range(4):
        store_i8(q + 256 + 4 * r + j, _gather_fifth_bits(bits, j))
    for h in range(4):
        store_i32(q + 64 * h + 4 * r, load_i32(src + 8 + 4 * h))


@register_jitable
def _q8_0(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    for h in range(8):
        store_i32(q + 64 * h + 4 * r, load_i32(src + 2 + 4 * h) ^ 0x80808080)


@register_jitable
def _k_scales(src, s, r):
    """d, dmin and the sixteen 6-bit numbers of Q4_K and Q5_K; minima are stored negated."""
    for g in range(4):
        low, mid, high = load_u8(src + 4 + g), load_u8(src + 8 + g), load_u8(src + 12 + g)
        store_i8(s + 16 * g + r, low & 63)
        store_i8(s + 128 + 16 * g + r, mid & 63)
        store_i8(s + 16 * (g + 4) + r, (high & 15) | ((low >> 6) << 4))
        store_i8(s + 128 + 16 * (g + 4) + r, (high >> 4) | ((mid >> 6) << 4))
    store_i16(s + 256 + 2 * r, load_u16(src))
    store_i16(s + 288 + 2 * r, load_u16(src + 2) ^ 0x8000)


@register_jitable
def _k_nibbles(qs, q, r, group_bytes):
    """128 bytes of nibbles, 64 columns in each 32: the low ones a group, the high ones the next."""
    for c in range(4):
        p = q + 2 * c * group_bytes + 4 * r
        for h in range(4):
            a = _u32(qs + 32 * c + 4 * h)
            b = _u32(qs + 32 * c + 16 + 4 * h)
            store_i32(p + 64 * h, (a & _LOW) | ((b & _LOW) << 4))
            store_i32(p + group_bytes + 64 * h, ((a >> 4) & _LOW) | (b & 0xF0F0F0F0))


@register_jitable
def _q4_k(src, q, s, r):
    _k_scales(src, s, r)
    _k_nibbles(src + 16, q, r, 256)


@register_jitable
def _q5_k(src, q, s, r):
    _k_scales(src, s, r)
    _k_nibbles(src + 48, q, r, 320)
    for g in range(8):
        bits = 0
        for h in range(8):
            bits |= ((_u32(src + 16 + 4 * h) >> g) & 0x01010101) << h
        store_i32(q + 320 * g + 256 + 4 * r, bits)


@register_jitable
def _q6_k(src, q, s, r):
    for half in range(2):
        ql, qh = src + 64 * half, src + 128 + 32 * half
        for j in range(4):
            p = q + 384 * (4 * half + j) + 4 * r
            shift, low = 4 * (j >> 1), ql + 32 * (j & 1)
            first, second = 0, 0
            for h in range(4):
                a = (_u32(low + 4 * h) >> shift) & _LOW
                b = (_u32(low + 16 + 4 * h) >> shift) & _LOW
                store_i32(p + 64 * h, a | (b << 4))
                first |= ((_u32(qh + 4 * h) >> (2 * j)) & 0x03030303) << (2 * h)
                second |= ((_u32(qh + 16 + 4 * h) >> (2 * j)) & 0x03030303) << (2 * h)
            store_i32(p + 256, first)
            store_i32(p + 320, second)
    for i in range(16):
        store_i8(s + 16 * i + r, load_u8(src + 192 + i))
    store_i16(s + 256 + 2 * r, load_u16(src + 208))


_BLOCKS: dict[str, tuple[Any, int]] = {
    "q4_0": (_q4_0, 18),
    "q4_1": (_q4_1, 20),
    "q5_0": (_q5_0, 22),
    "q5_1": (_q5_1, 24),
    "q8_0": (_q8_0, 34),
    "q4_k": (_q4_k, 144),
    "q5_k": (_q5_k, 176),
    "q6_k": (_q6_k, 210),
}
"""Packs one block; bytes of a GGUF block."""


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
        counter = load_i64(args + 8)
        src = load_i64(args + 16)
        row_bytes = load_i64(args + 24)
        n_rows = load_i64(args + 32)
        n_columns = load_i64(args + 40)
        dst = load_i64(args + 48)
        n_matrices = load_i64(args + 56)
        src_stride = load_i64(args + 64)
        dst_stride = load_i64(args + 72)
        n_panels = (n_rows + 15) // 16
        panel_bytes = (n_columns // columns * block_bytes + 63) // 64 * 64
        while True:
            i = atomic_add(counter, 1)
            if i >= n_panels * n_matrices:
                break
            m, p = i // n_panels, i % n_panels
            panel(
                src + m * src_stride + 16 * p * row_bytes, row_bytes, min(16, n_rows - 16 * p), n_columns,
                dst + m * dst_stride + p * panel_bytes, panel_bytes,
            )  # fmt: skip

    return kernel
