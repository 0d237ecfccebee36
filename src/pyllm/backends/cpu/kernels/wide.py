"""Matrix products for many tokens on processors with AMX: weights decoded to bfloat16 tiles, sums in float32.

A work item is some panels by some tokens. For each stretch of columns its panels are decoded into a buffer that stays
in the second-level cache; then every 32 tokens meet every two panels in four accumulator tiles, which are carried
between stretches in Y itself. Slots as in `linear.py`; the activations are the bfloat16 records of `activation.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.backends.cpu import simd
from pyllm.backends.cpu.kernels.linear import block_scales, group_scales, planes, unpack
from pyllm.backends.cpu.layouts import LAYOUTS, Layout
from pyllm.backends.cpu.simd import amx, atomic_add, load_f32x16, load_i64, store_f32x16, store_i8, store_i64, zero_f32
from pyllm.backends.cpu.simd.amx import stack_bytes, tile_config, tile_dot_bf16, tile_load, tile_release, tile_store

_PANELS = 8  # of one item; even
_STRETCH = 32
_BUFFER = _PANELS * _STRETCH * 1024


def linear_wide(layout: str) -> Any:
    """Kernel for a layout, for steps with many tokens."""
    spec = LAYOUTS[layout]
    decode = _decoder(spec)
    gpb, block_columns, panel_block = (
        spec.groups_per_block, spec.block_columns, spec.group_bytes * spec.groups_per_block + spec.scale_bytes,
    )  # fmt: skip

    def kernel(args, thread, n_threads):
        counter = load_i64(args + 8)
        w = load_i64(args + 16)
        n_panels = load_i64(args + 24)
        columns = load_i64(args + 32)
        x = load_i64(args + 40)
        ldx = load_i64(args + 48)
        y = load_i64(args + 56)
        ldy = load_i64(args + 64)
        bias = load_i64(args + 72)
        residual = load_i64(args + 80)
        ranges = load_i64(args + 88)
        n_sets = load_i64(args + 96)
        w_stride = load_i64(args + 104)
        bias_stride = load_i64(args + 112)
        blocks = columns // block_columns
        groups = blocks * gpb
        panel_bytes = (blocks * panel_block + 63) // 64 * 64
        delta = residual - y if residual != 0 else 0
        buffer = stack_bytes(_BUFFER)
        config = stack_bytes(64)
        # As many items as threads, or a multiple: equal shares. Tokens are divided where panels are too few.
        rounds = (n_panels + n_threads * _PANELS - 1) // (n_threads * _PANELS)
        share = (n_panels + n_threads * rounds - 1) // (n_threads * rounds)
        share = (share + 1) // 2 * 2
        items = (n_panels + share - 1) // share
        slices = max(1, n_threads // (items * n_sets))
        while True:
            item = atomic_add(counter, 1)
            if item >= items * n_sets * slices:
                break
            g = item // (items * slices)
            p = item // slices % items * share
            n = load_i64(ranges + 16 * g + 8)
            slice_tokens = ((n + slices - 1) // slices + 31) // 32 * 32
            first = item % slices * slice_tokens
            n = min(slice_tokens, n - first)
            if n <= 0:
                continue
            first += load_i64(ranges + 16 * g)
            m = min(share, n_panels - p)
            _block(
                w + g * w_stride + p * panel_bytes, panel_bytes, m, blocks, groups, x + first * ldx, ldx,
                y + first * ldy + 64 * p, ldy, bias + g * bias_stride + 64 * p if bias != 0 else 0, delta, n,
                buffer, config,
            )  # fmt: skip
        tile_release()

    @register_jitable
    def _block(w, panel_bytes, m, blocks, groups, x, ldx, y, ldy, bias, delta, n, buffer, config):
        for g0 in range(0, groups, _STRETCH):
            count = min(_STRETCH, groups - g0)
            for i in range(m):
                for g in range(g0, g0 + count):
                    decode(w + i * panel_bytes, blocks, g, buffer + (i * _STRETCH + g - g0) * 1024)
            t = 0
            while t < n:
                _configure(config, min(16, n - t), max(1, min(16, n - t - 16)))
                if n - t > 16:
                    for i in range(0, m, 2):
                        j = min(i + 1, m - 1)
                        if g0 == 0:
                            _start(
                                y + t * ldy + 64 * i,
                                y + t * ldy + 64 * j,
                                ldy,
                                bias + 64 * i,
                                bias + 64 * j,
                                bias,
                                delta,
                                min(32, n - t),
                            )
                        bi = buffer + i * _STRETCH * 1024
                        if j > i:
                            _tiles4(x + t * ldx + g0 * 64, ldx, bi, y + t * ldy + 64 * i, ldy, count)
                        else:
                            _tiles2(x + t * ldx + g0 * 64, ldx, bi, y + t * ldy + 64 * i, ldy, count)
                else:
                    for i in range(m):
                        if g0 == 0:
                            _start(
                                y + t * ldy + 64 * i,
                                y + t * ldy + 64 * i,
                                ldy,
                                bias + 64 * i,
                                bias + 64 * i,
                                bias,
                                delta,
                                n - t,
                            )
                        _tiles1(
                            x + t * ldx + g0 * 64, ldx, buffer + i * _STRETCH * 1024, y + t * ldy + 64 * i, ldy, count
                        )
                t += 32

    return kernel


@register_jitable
def _configure(config, rows0, rows1):
    """Tiles 0, 1: sums of the first 16 tokens by two panels; 2, 3: of the next 16; 4, 5: activations; 6, 7: weights."""
    for i in range(8):
        store_i64(config + 8 * i, 0)
    store_i8(config, 1)
    for i in range(8):
        store_i8(config + 16 + 2 * i, 64)
        store_i8(config + 48 + i, 16)
    store_i8(config + 48, rows0)
    store_i8(config + 49, rows0)
    store_i8(config + 50, rows1)
    store_i8(config + 51, rows1)
    store_i8(config + 52, rows0)
    store_i8(config + 53, rows1)
    tile_config(config)


@register_jitable
def _start(y0, y1, ldy, bias0, bias1, bias, delta, n):
    """Sums begin as bias and residual."""
    b0 = load_f32x16(bias0) if bias != 0 else zero_f32()
    b1 = load_f32x16(bias1) if bias != 0 else zero_f32()
    for t in range(n):
        v0 = b0
        v1 = b1
        if delta != 0:
            v0 = v0 + load_f32x16(y0 + t * ldy + delta)
            v1 = v1 + load_f32x16(y1 + t * ldy + delta)
        store_f32x16(y0 + t * ldy, v0)
        store_f32x16(y1 + t * ldy, v1)


@register_jitable
def _tiles4(x, ldx, b, y, ldy, count):
    """32 tokens by two panels."""
    x1 = x + 16 * ldx
    y1 = y + 16 * ldy
    b1 = b + _STRETCH * 1024
    tile_load(0, y, ldy)
    tile_load(1, y + 64, ldy)
    tile_load(2, y1, ldy)
    tile_load(3, y1 + 64, ldy)
    for k in range(count):
        tile_load(4, x + 64 * k, ldx)
        tile_load(6, b + 1024 * k, 64)
        tile_load(7, b1 + 1024 * k, 64)
        tile_load(5, x1 + 64 * k, ldx)
        tile_dot_bf16(0, 4, 6)
        tile_dot_bf16(1, 4, 7)
        tile_dot_bf16(2, 5, 6)
        tile_dot_bf16(3, 5, 7)
    tile_store(0, y, ldy)
    tile_store(1, y + 64, ldy)
    tile_store(2, y1, ldy)
    tile_store(3, y1 + 64, ldy)


@register_jitable
def _tiles2(x, ldx, b, y, ldy, count):
    """32 tokens by one panel."""
    x1 = x + 16 * ldx
    y1 = y + 16 * ldy
    tile_load(0, y, ldy)
    tile_load(2, y1, ldy)
    for k in range(count):
        tile_load(4, x + 64 * k, ldx)
        tile_load(6, b + 1024 * k, 64)
        tile_load(5, x1 + 64 * k, ldx)
        tile_dot_bf16(0, 4, 6)
        tile_dot_bf16(2, 5, 6)
    tile_store(0, y, ldy)
    tile_store(2, y1, ldy)


@register_jitable
def _tiles1(x, ldx, b, y, ldy, count):
    """Up to 16 tokens by one panel."""
    tile_load(0, y, ldy)
    for k in range(count):
        tile_load(4, x + 64 * k, ldx)
        tile_load(6, b + 1024 * k, 64)
        tile_dot_bf16(0, 4, 6)
    tile_store(0, y, ldy)


def _decoder(spec: Layout) -> Any:
    """Function (panel, blocks, group, target): 32 columns as a weight tile [16 column pairs][16 rows][2]."""
    gpb = spec.groups_per_block
    body = [f"s0 = w0 + blocks * {gpb * spec.group_bytes}", f"block = g // {gpb}", f"k = g % {gpb}"]
    body += block_scales(spec, 0) + group_scales(spec, 0) + planes(spec, 0)
    halves = {"lo0": ("a0", "m0"), "hi0": ("a0", "m0")}
    if not spec.minima:
        body += [f"m0 = a0 * splat_f32(float32({-spec.offset}))"]
        if spec.scale_columns == 16:
            body += [f"n0 = b0 * splat_f32(float32({-spec.offset}))"]
            halves["hi0"] = ("b0", "n0")
    for h in range(4):
        body += unpack(spec, 0, h)
        for name, (scale, minimum) in halves.items():
            # Columns 4 h + j and 16 + 4 h + j, or 8 h + j and 8 h + 4 + j where integers are whole bytes.
            pair = (4 * h + (2 if name == "hi0" else 0)) if spec.bits == 8 else (2 * h + (8 if name == "hi0" else 0))
            body += [f"v = as_i32({name})"]
            for j in range(2):
                first, second = (f"fma(byte_f32(v, {2 * j + i}), {scale}, {minimum})" for i in range(2))
                body += [f"store_i32x16(out + {64 * (pair + j)}, pair_bf16({first}, {second}))"]
    scope: dict[str, Any] = {name: getattr(simd, name) for name in simd.__all__}
    scope |= {"byte_f32": amx.byte_f32, "pair_bf16": amx.pair_bf16, "as_i32": amx.as_i32, "float32": np.float32}
    exec("\n".join(["def decode(w0, blocks, g, out):", *("  " + line for line in body)]), scope)
    return register_jitable(scope["decode"])
