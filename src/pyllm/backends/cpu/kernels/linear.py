"""Matrix products: activations [tokens, columns] times packed weights [rows, columns], one kernel per layout.

A tile is R panels (of 16 rows) by T tokens, held in registers over all columns; its code is generated, since it has
to be unrolled. One kernel holds a tile for many tokens, one for two and one for a single token (the matrix-vector
product). Where panels do not divide, the last tile overlaps the one before: it computes the same values once more.

While a tile computes, the next panels are prefetched into the second-level cache: hardware prefetchers learn long rows,
but rows of a few thousand columns end too early (Zen 4, a token, 1536 columns of Q4_K: 14 GB/s a core without, 21
with). Rows longer than `AHEAD` are left to the hardware.

Y = X W.T + bias + residual; each group computes the tokens first .. first + n of its range, in columns of its own
where groups are heads.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.linear import Linear
from pyllm.backends.cpu.kernels.unpack import SCOPE, block_scales, group, group_scales, order, quad, tables
from pyllm.backends.cpu.layouts import LAYOUTS, Layout
from pyllm.jit.reader import reader
from pyllm.jit.simd import atomic_add, load_i64

read = reader(Linear)

AHEAD = 96 << 10
"""Most bytes of a tile's panels that are prefetched."""


def linear(layout: str, panels: int, tokens: int) -> Any:
    """Kernel for a layout with register tiles of `panels` x `tokens`."""
    spec = LAYOUTS[layout]
    r = panels
    many, two, one = (_tile(spec, r, t) for t in (tokens, 2, 1))
    n_many = tokens

    @register_jitable
    def span(w, w1, blocks, ahead, x, ldx, kp, y, y1, ldy, bias, bias1, residual, n):
        """R panels by n tokens."""
        t = 0
        # What is left of whole tiles takes smaller ones, unless it is nearly another whole one.
        while n - t >= n_many or (t > 0 and n - t == n_many - 1):
            t = min(t, n - n_many)
            many(w, w1, blocks, ahead, x + t * ldx, ldx, kp, y + t * ldy, y1 + t * ldy, ldy, bias, bias1, residual)
            t += n_many
            ahead = 0
        while n - t >= 2:
            two(w, w1, blocks, ahead, x + t * ldx, ldx, kp, y + t * ldy, y1 + t * ldy, ldy, bias, bias1, residual)
            t += 2
            ahead = 0
        if n - t == 1:
            one(w, w1, blocks, ahead, x + t * ldx, ldx, kp, y + t * ldy, y1 + t * ldy, ldy, bias, bias1, residual)

    return _driver(spec, r, n_many, span)


def _driver(spec: Layout, r: int, n_many: int, span: Any) -> Any:
    """The loop over work items: some panels by some tokens of one group."""
    block_columns, block_bytes = spec.block_columns, spec.block_bytes

    def kernel(args, thread, n_threads):
        a = read(args)
        blocks = a.columns // block_columns
        kp = (a.columns + 31) // 32 * 32
        panel_bytes = (blocks * block_bytes + 63) // 64 * 64
        ahead = r * panel_bytes if r * panel_bytes <= AHEAD else 0
        delta = a.residual - a.y if a.residual != 0 else 0
        # Tokens of an item: as many activations as stay in the second-level cache; experts take all of theirs.
        t_block = max(n_many, min(256, 400_000 // a.ld_x) // n_many * n_many)
        t_blocks = 1
        if a.n_groups == 1:
            t_blocks = max(1, (load_i64(a.ranges + 8) + t_block - 1) // t_block)
        else:
            t_block = 1 << 40
        sets = (a.n_panels + r - 1) // r
        share = max(1, sets * t_blocks * a.n_groups // (n_threads * 8))
        share = min(share, sets)
        items = (sets + share - 1) // share
        while True:
            item = atomic_add(a.counter, 1)
            if item >= items * t_blocks * a.n_groups:
                break
            g = item // (items * t_blocks)
            tb = item // items % t_blocks
            first = load_i64(a.ranges + a.range_stride * g) + tb * t_block
            n = min(t_block, load_i64(a.ranges + a.range_stride * g + 8) - tb * t_block)
            if n <= 0:
                continue
            wg = a.w + g * a.w_stride
            bg = a.bias + g * a.bias_stride
            xg = a.x + g * a.x_stride + first * a.ld_x
            yg = a.y + g * a.y_stride + first * a.ld_y
            for s in range(item % items * share, min(sets, (item % items + 1) * share)):
                p = s * r
                p1 = min(p + r - 1, a.n_panels - 1)
                span(
                    wg + p * panel_bytes, wg + p1 * panel_bytes, blocks, ahead, xg, a.ld_x, kp,
                    yg + 64 * p, yg + 64 * p1, a.ld_y,
                    bg + 64 * p if a.bias != 0 else 0, bg + 64 * p1 if a.bias != 0 else 0, delta, n,
                )  # fmt: skip

    return kernel


def _tile(spec: Layout, r: int, t: int) -> Any:
    """A register tile: w, w1 (first and last panel), blocks, ahead (from a panel to what is to be fetched meanwhile, or
    0), x, ldx, kp, y, y1, ldy, bias, bias1, residual - y."""
    lines = ["def tile(w0, w1, blocks, ahead, x0, ldx, kp, y0, y1, ldy, bias0, bias1, delta):"]
    lines += [f"  x{i} = x0 + {i} * ldx" for i in range(1, t)]
    cells = [(i, j) for j in range(t) for i in range(r)]
    lines += [f"  f{i}_{j} = zero_f32()" for i, j in cells]
    lines += _float_body(spec, r, t) if spec.is_float else _integer_body(spec, r, t)
    lines += ["  if bias0 != 0:"]
    lines += [f"    f{i}_{j} = f{i}_{j} + load_f32x16(bias{i})" for i, j in cells]
    lines += ["  if delta != 0:"]
    lines += [f"    f{i}_{j} = f{i}_{j} + load_f32x16(y{i} + {j} * ldy + delta)" for i, j in cells]
    lines += [f"  store_f32x16(y{i} + {j} * ldy, f{i}_{j})" for i, j in cells]
    scope = dict(SCOPE)
    exec("\n".join(lines), scope)
    return register_jitable(scope["tile"])


def _float_body(spec: Layout, r: int, t: int) -> list[str]:
    load = {"f32": "load_f32x16", "f16": "load_f16x16", "bf16": "load_bf16x16"}[spec.name]
    lines = ["  for c in range(blocks):"]
    lines += [f"    v{i} = {load}(w{i} + c * {spec.group_bytes})" for i in range(r)]
    for j in range(t):
        lines += [f"    s = splat_f32(load_f32(x{j} + 4 * c))"]
        lines += [f"    f{i}_{j} = fma(v{i}, s, f{i}_{j})" for i in range(r)]
    return lines


def _integer_body(spec: Layout, r: int, t: int) -> list[str]:
    gpb = spec.groups_per_block
    panels = range(r)
    lines = ["  " + line for line in tables(spec)]
    lines += [f"  s{i} = w{i} + blocks * {gpb * spec.group_bytes}" for i in panels]
    lines += ["  for block in range(blocks):"]
    lines += ["    " + line for i in panels for line in block_scales(spec, i)]
    lines += _fetch("    ", [f"s{i} + block * {spec.scale_bytes}" for i in panels], spec.scale_bytes)
    pad = "    "
    if gpb > 1:
        lines += [f"{pad}for k in range({gpb}):", f"{pad}  g = block * {gpb} + k"]
        pad += "  "
    else:
        lines += [f"{pad}g = block"]
    lines += _fetch(pad, [f"w{i} + g * {spec.group_bytes}" for i in panels], spec.group_bytes)
    lines += [pad + line for line in _group(spec, r, t)]
    if spec.factor != 1:
        lines += [f"  f{i}_{j} = f{i}_{j} * splat_f32(float32({spec.factor}))" for j in range(t) for i in panels]
    return lines


def _fetch(pad: str, places: list[str], n_bytes: int) -> list[str]:
    """Prefetch the cache lines `ahead` bytes after these addresses."""
    lines = [f"{pad}  prefetch({place} + ahead + {at})" for place in places for at in range(0, n_bytes, 64)]
    return [f"{pad}if ahead != 0:", *lines]


def _group(spec: Layout, r: int, t: int) -> list[str]:
    """32 columns: integer products, then scales. Columns with different scales alternate, to save registers."""
    lines = [line for i in range(r) for line in group(spec, i)]
    parts = order(spec)
    for half, quads in enumerate(parts):
        lines += [line for i in range(r) for line in group_scales(spec, i, half)]
        lines += _columns(spec, r, t, quads, half if len(parts) > 1 else None)
    return lines


def _columns(spec: Layout, r: int, t: int, quads: list[int], half: int | None) -> list[str]:
    """Quads that share a scale: a group (`half` is None), or the first or second half of one."""
    dot = "dot4_wide" if spec.largest > 127 else "dot4"
    cells = [(i, j) for j in range(t) for i in range(r)]
    two = r * t <= 4 and half is None  # sums, where one chain of products would wait for itself
    lines = []
    for j in range(t):
        start = "zero_i32()"
        if spec.offset and not spec.minima:
            sums = " + ".join(_sum16(j, h) for h in ((0, 1) if half is None else (half,)))
            start = f"splat_i32(({sums}) * {-spec.offset})"
        lines += [f"i{j} = {start}"]
    lines += [f"p{i}_{j} = i{j}" + (f"; q{i}_{j} = zero_i32()" if two else "") for i, j in cells]
    for place, c in enumerate(quads):
        s = "q" if two and place % 2 else "p"
        lines += [f"v{i} = {quad(spec, i, c)}" for i in range(r)]
        for j in range(t):
            lines += [f"x = splat4_i8x64(x{j} + 32 * g + {4 * c})"]
            lines += [f"{s}{i}_{j} = {dot}({s}{i}_{j}, v{i}, x)" for i in range(r)]
    for j in range(t):
        lines += [f"xs = splat_f32(load_f32(x{j} + kp + 4 * g))"]
        if spec.minima:
            sums = f"load_f32(x{j} + kp + kp // 8 + 4 * g)"
            if half is not None:
                sums = f"load_f32(x{j} + kp + 4 * g) * float32({_sum16(j, half)})"
            lines += [f"xm = splat_f32({sums})"]
        for i in range(r):
            total = f"p{i}_{j} + q{i}_{j}" if two else f"p{i}_{j}"
            lines += [f"f{i}_{j} = fma(to_f32({total}), a{i} * xs, f{i}_{j})"]
            if spec.minima:
                lines += [f"f{i}_{j} = fma(m{i}, xm, f{i}_{j})"]
    return lines


def _sum16(j: int, half: int) -> str:
    """The sum of a token's integers over half a group."""
    return f"load_i32(x{j} + kp + kp // 4 + 8 * g + {4 * half})"
