"""Matrix products of the prefill path on AMX: weights decoded to bfloat16 tiles, sums in float32.

A work item is some pairs of panels by some tokens. For each stretch of columns its panels are decoded into scratch
memory that stays in the second-level cache; then every 32 tokens are multiplied by every pair in four accumulator
tiles, whose sums are kept in memory between stretches. Activations are the bfloat16 records of `activation.py`.

Y = X W.T + bias + residual.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.wide import Wide
from pyllm.backends.cpu.kernels.elementwise import gate_of
from pyllm.backends.cpu.kernels.unpack import SCOPE, block_scales, group, group_scales, order, quad, tables
from pyllm.backends.cpu.layouts import LAYOUTS, WIDE_BUFFER, WIDE_PAIRS, WIDE_SHAPES, WIDE_STRETCH, WIDE_TOKENS, Layout
from pyllm.jit.reader import reader
from pyllm.jit.simd import (
    amx,
    atomic_add,
    load_f32x16,
    load_i64,
    store_bf16x16,
    store_f32x16,
    zero_f32,
)
from pyllm.jit.simd.amx import tile_dot_bf16, tile_load, tile_release, tile_shapes, tile_store, tile_zero

read = reader(Wide)

_TILE = 1024
_SUMS = 128 * WIDE_TOKENS  # bytes of one pair's sums in scratch memory: tokens one after another, without gaps


def linear_wide(layout: str) -> Any:
    """The plain product."""
    return _kernel(LAYOUTS[layout], None)


def gated_wide(layout: str, act: str) -> Any:
    """Fused gate and up projection, for a matrix whose first half of rows are gates: act(gate) * up, stored as bfloat16
    records in Y."""
    return _kernel(LAYOUTS[layout], gate_of(act))


def _kernel(spec: Layout, act: Any) -> Any:
    block = _block(spec)
    gated = act is not None
    block_columns, block_bytes = spec.block_columns, spec.block_bytes

    @register_jitable
    def finish(sums, y, ldy, n_pairs, n):
        for i in range(n_pairs):
            for t in range(n):
                s = sums + i * _SUMS + 128 * t
                store_bf16x16(y + t * ldy + 32 * i, act(load_f32x16(s), load_f32x16(s + 64)))

    def kernel(args, thread, n_threads):
        a = read(args)
        scratch = a.scratch + thread * a.ld_scratch
        blocks = a.columns // block_columns
        panel_bytes = (blocks * block_bytes + 63) // 64 * 64
        # Gate and up panels are a pair, half a matrix apart; otherwise neighbours are.
        apart = a.n_panels // 2 if gated else 1
        n_pairs = (a.n_panels + 1) // 2
        n_tokens = load_i64(a.rows + 8)
        # As many items as threads, or a multiple: equal shares. Tokens are divided where panels are too few.
        rounds = (n_pairs + n_threads * WIDE_PAIRS - 1) // (n_threads * WIDE_PAIRS)
        share = (n_pairs + n_threads * rounds - 1) // (n_threads * rounds)
        items = (n_pairs + share - 1) // share
        slices = max((n_tokens + WIDE_TOKENS - 1) // WIDE_TOKENS, n_threads // items)
        slice_tokens = ((n_tokens + slices - 1) // slices + 31) // 32 * 32
        first = load_i64(a.rows)
        while True:
            item = atomic_add(a.counter, 1)
            if item >= items * slices:
                break
            pair = item // slices * share
            n_item = min(share, n_pairs - pair)
            t = item % slices * slice_tokens
            n = min(slice_tokens, n_tokens - t)
            if n <= 0:
                continue
            t += first
            if gated:
                sums = scratch + WIDE_BUFFER + WIDE_SHAPES
                block(
                    a.w, panel_bytes, pair, n_item, apart, a.n_panels, blocks, a.x + t * a.ld_x, a.ld_x, sums, _SUMS,
                    64, 128, a.bias, 0, n, scratch,
                )  # fmt: skip
                finish(sums, a.y + t * a.ld_y + 32 * pair, a.ld_y, n_item, n)
            else:
                block(
                    a.w, panel_bytes, pair, n_item, apart, a.n_panels, blocks, a.x + t * a.ld_x, a.ld_x,
                    a.y + t * a.ld_y + 128 * pair, 128, 64, a.ld_y, a.bias, a.residual - a.y if a.residual != 0 else 0,
                    n, scratch,
                )  # fmt: skip
        tile_release()

    return kernel


def _block(spec: Layout) -> Any:
    """Some pairs by some tokens. Sums of pair i are at y + i * pair_step and `step` further on."""
    decode = _decoder(spec)
    gpb = spec.groups_per_block

    @register_jitable
    def block(
        w, panel_bytes, pair, n_pairs, apart, n_panels, blocks, x, ldx, y, pair_step, step, ldy, bias, delta, n, scratch
    ):
        shapes = scratch + WIDE_BUFFER
        groups = blocks * gpb
        for g0 in range(0, groups, WIDE_STRETCH):
            count = min(WIDE_STRETCH, groups - g0)
            for i in range(2 * n_pairs):
                p = min(n_panels - 1, _panel(pair + i // 2, i % 2, apart))
                for g in range(count):
                    decode(w + p * panel_bytes, blocks, g0 + g, scratch + (i * WIDE_STRETCH + g) * _TILE)
            for t in range(0, n, 32):
                m = min(32, n - t)
                if t == 0 or m < 32:
                    tile_shapes(shapes, min(16, m), max(1, m - 16))
                for i in range(n_pairs):
                    p0 = _panel(pair + i, 0, apart)
                    p1 = min(n_panels - 1, _panel(pair + i, 1, apart))
                    y0 = y + t * ldy + i * pair_step
                    y1 = y0 + (step if p1 > p0 else 0)
                    carried = g0 > 0
                    if not carried and (bias != 0 or delta != 0):
                        b0 = load_f32x16(bias + 64 * p0) if bias != 0 else zero_f32()
                        b1 = load_f32x16(bias + 64 * p1) if bias != 0 else zero_f32()
                        _start(y0, y1, ldy, b0, b1, delta, m)
                        carried = True
                    b = scratch + 2 * i * WIDE_STRETCH * _TILE
                    if m > 16:
                        _tiles(x + t * ldx + g0 * 64, ldx, b, y0, y1, ldy, count, carried)
                    else:
                        _half_tiles(x + t * ldx + g0 * 64, ldx, b, y0, y1, ldy, count, carried)

    return block


@register_jitable
def _panel(pair, which, apart):
    return 2 * pair + which if apart == 1 else pair + which * apart


@register_jitable
def _start(y0, y1, ldy, b0, b1, delta, n):
    """Sums begin as bias and residual."""
    for t in range(n):
        v0 = b0
        v1 = b1
        if delta != 0:
            v0 = v0 + load_f32x16(y0 + t * ldy + delta)
            v1 = v1 + load_f32x16(y1 + t * ldy + delta)
        store_f32x16(y0 + t * ldy, v0)
        store_f32x16(y1 + t * ldy, v1)


@register_jitable
def _tiles(x, ldx, b, y0, y1, ldy, count, carried):
    """32 tokens (or as many as configured) by two panels."""
    x1 = x + 16 * ldx
    b1 = b + WIDE_STRETCH * _TILE
    if carried:
        tile_load(0, y0, ldy)
        tile_load(1, y1, ldy)
        tile_load(2, y0 + 16 * ldy, ldy)
        tile_load(3, y1 + 16 * ldy, ldy)
    else:
        tile_zero(0)
        tile_zero(1)
        tile_zero(2)
        tile_zero(3)
    for k in range(count):
        tile_load(4, x + 64 * k, ldx)
        tile_load(6, b + _TILE * k, 64)
        tile_load(7, b1 + _TILE * k, 64)
        tile_load(5, x1 + 64 * k, ldx)
        tile_dot_bf16(0, 4, 6)
        tile_dot_bf16(1, 4, 7)
        tile_dot_bf16(2, 5, 6)
        tile_dot_bf16(3, 5, 7)
    tile_store(0, y0, ldy)
    tile_store(1, y1, ldy)
    tile_store(2, y0 + 16 * ldy, ldy)
    tile_store(3, y1 + 16 * ldy, ldy)


@register_jitable
def _half_tiles(x, ldx, b, y0, y1, ldy, count, carried):
    """Up to 16 tokens by two panels."""
    b1 = b + WIDE_STRETCH * _TILE
    if carried:
        tile_load(0, y0, ldy)
        tile_load(1, y1, ldy)
    else:
        tile_zero(0)
        tile_zero(1)
    for k in range(count):
        tile_load(4, x + 64 * k, ldx)
        tile_load(6, b + _TILE * k, 64)
        tile_load(7, b1 + _TILE * k, 64)
        tile_dot_bf16(0, 4, 6)
        tile_dot_bf16(1, 4, 7)
    tile_store(0, y0, ldy)
    tile_store(1, y1, ldy)


def _decoder(spec: Layout) -> Any:
    """Function (panel, blocks, group, target): 32 columns as a weight tile [16 column pairs][16 rows][2]."""
    gpb = spec.groups_per_block
    body = [*tables(spec), f"s0 = w0 + blocks * {gpb * spec.group_bytes}", f"block = g // {gpb}", f"k = g % {gpb}"]
    body += block_scales(spec, 0) + group(spec, 0)
    for half, quads in enumerate(order(spec)):
        body += group_scales(spec, 0, half)
        if not spec.minima:
            body += [f"m0 = a0 * splat_f32(float32({-spec.offset * spec.factor}))"]
        elif spec.factor != 1:
            body += [f"m0 = m0 * splat_f32(float32({spec.factor}))"]
        if spec.factor != 1:
            body += [f"a0 = a0 * splat_f32(float32({spec.factor}))"]
        for c in quads:
            body += [f"v = as_i32({quad(spec, 0, c)})"]
            for j in range(2):
                first, second = (f"fma(byte_f32(v, {2 * j + i}), a0, m0)" for i in range(2))
                body += [f"store_i32x16(out + {64 * (2 * c + j)}, pair_bf16({first}, {second}))"]
    scope = SCOPE | {"byte_f32": amx.byte_f32, "pair_bf16": amx.pair_bf16, "as_i32": amx.as_i32}
    exec("\n".join(["def decode(w0, blocks, g, out):", *("  " + line for line in body)]), scope)
    return register_jitable(scope["decode"])
