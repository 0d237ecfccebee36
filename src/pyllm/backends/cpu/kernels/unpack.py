"""Code that reads packed weights (`layouts.py`): lines of kernels, in which i numbers panels.

Kernels know a panel by w (its address), s (its scales' address), g (the group), block and k (the group in its block).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyllm.backends.cpu.layouts import PANEL, Layout
from pyllm.backends.layouts import GROUP
from pyllm.jit import simd

SCOPE: dict[str, Any] = {name: getattr(simd, name) for name in simd.__all__} | {"float32": np.float32}
"""Names that the lines use."""


def tables(spec: Layout) -> list[str]:
    """values: the table of a layout that has one, as unsigned bytes."""
    if not spec.values:
        return []
    entries = bytes(v + spec.offset for v in spec.values) * (16 // len(spec.values))
    low, high = (int.from_bytes(entries[i : i + 8], "little", signed=True) for i in (0, 8))
    return [f"values = table_i8({low}, {high})"]


def block_scales(spec: Layout, i: int) -> list[str]:
    """d and e: a block's floats, of its scales and of its minima."""
    if spec.scales == "e4m3":
        return []
    at = f"s{i} + block * {spec.scale_bytes} + {spec.byte_scale_bytes}"
    load = "load_bf16x16" if spec.scales == "bf16" else "load_f16x16"
    lines = [f"d{i} = {load}({at})"]
    return [*lines, f"e{i} = {load}({at} + {2 * PANEL})"] if spec.minima else lines


def group_scales(spec: Layout, i: int, half: int = 0) -> list[str]:
    """a and m: scales and minima of a group, or of the half of it that has its own."""
    if not spec.byte_scales:
        return [f"a{i} = d{i}", f"m{i} = e{i}"] if spec.minima else [f"a{i} = d{i}"]
    at = f"s{i} + block * {spec.scale_bytes} + {PANEL} * ({GROUP // spec.scale_columns} * k + {half})"
    if spec.scales == "e4m3":
        return [f"a{i} = load_e4m3x16({at})"]
    if spec.scales == "u4":
        lines = [f"both = load_u8x16({at})", f"a{i} = to_f32(both & splat_i32(15)) * d{i}"]
        return [*lines, f"m{i} = to_f32(shift_right_i32(both, 4)) * e{i}"]
    lines = [f"a{i} = to_f32(load_i8x16({at})) * d{i}"]
    return [*lines, f"m{i} = to_f32(load_u8x16({at} + {PANEL * spec.byte_scales})) * e{i}"] if spec.minima else lines


def group(spec: Layout, i: int) -> list[str]:
    """u: address of a group's integers; of 3 bits, t: the nibbles that the others' top bits make up."""
    lines = [f"u{i} = w{i} + g * {spec.group_bytes}"]
    if spec.bits == 3:
        moved = [f"(shift_right_i8(load_i8x64(u{i} + {64 * b}), {3 - b}) & splat_i8({0x11 << b}))" for b in range(3)]
        lines += [f"t{i} = {' | '.join(moved)}"]
    return lines


def quad(spec: Layout, i: int, c: int) -> str:
    """The unsigned bytes of quad c, as an expression."""
    if spec.bits == 8:
        return f"load_i8x64(u{i} + {64 * c})"
    up = spec.step - 1
    if spec.bits == 1:
        return _moved(f"load_i8x64(u{i})", c, up, 1)
    if spec.bits == 2:
        return _moved(f"load_i8x64(u{i} + {64 * (c // 4)})", 2 * (c % 4), up, 2)
    nibbles = f"t{i}" if spec.bits == 3 and c % 4 == 3 else f"load_i8x64(u{i} + {64 * (c % 4)})"
    if spec.values:
        return f"lookup_i8(values, {nibbles if c < 4 else f'shift_right_i8({nibbles}, 4)'})"
    low = _moved(nibbles, 4 * (c // 4), up, min(4, spec.bits))
    if spec.bits == 5:
        return f"{low} | {_moved(f'load_i8x64(u{i} + 256)', c, 4, 1)}"
    if spec.bits == 6:
        return f"{low} | {_moved(f'load_i8x64(u{i} + {256 + 64 * (c // 4)})', 2 * (c % 4), 4, 2)}"
    return low


def _moved(vector: str, start: int, target: int, bits: int) -> str:
    """Some bits of each byte at `start`, brought to `target`, alone."""
    if start > target:
        vector = f"shift_right_i8({vector}, {start - target})"
    elif target > start:
        vector = f"shift_left_i8({vector}, {target - start})"
    return f"({vector} & splat_i8({((1 << bits) - 1) << target}))"


def order(spec: Layout) -> list[list[int]]:
    """Quads of a group by the scales that they have, each list in an order that loads memory once."""
    halves = [[0, 1, 2, 3], [4, 5, 6, 7]]
    if spec.scale_columns == PANEL:
        return halves
    if spec.bits in (1, 2, 8):
        return [halves[0] + halves[1]]
    return [[c for pair in zip(*halves, strict=True) for c in pair]]
