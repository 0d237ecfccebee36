"""Register tiles of attention: C[rows][vectors] = A[rows][k] x B[k][vectors], for scores and for weighted values alike.

Rows of A and C lie `ld` bytes apart, a constant of the kernel, so that a tile needs one base register for all its rows.
B is half precision or float32 in the KV cache, in segments found through a list of addresses: the dimensions of one
group of 16 keys, or the values of 16 positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numba.extending import register_jitable

from pyllm.backends.cpu import simd
from pyllm.backends.cpu.simd.core import target

SEGMENT = 16
"""Positions of a segment."""


@dataclass(frozen=True, slots=True)
class TileShape:
    """What the registers hold: tiles of `rows` (ascending) rows by `vectors` vectors."""

    vectors: int
    rows: tuple[int, ...]
    registers: int
    """Registers of a vector."""

    def chains(self, rows: int) -> int:
        """Accumulators per element: few rows need several, or the multipliers wait for their own results."""
        n = 12 // (rows * self.vectors * self.registers)
        return 4 if n >= 4 else 2 if n >= 2 else 1


def tile_shape() -> TileShape:
    isa = target().isa
    if isa.startswith("avx512"):
        return TileShape(2, (1, 2, 3, 4, 6, 8, 12), 1)
    if isa in ("sse2", "generic"):
        return TileShape(1, (1, 2, 3), 4)
    return TileShape(1, (1, 2, 3, 4, 6), 2 if target().is_x86 else 4)


def rounded_rows(shape: TileShape) -> Any:
    """Function n -> the number of rows of the tile that n rows take."""
    lines = ["def rounded(n):"]
    lines += [f"    if n <= {r}: return {r}" for r in shape.rows[:-1]]
    return _compile([*lines, f"    return {shape.rows[-1]}"], "rounded", {})


def build(shape: TileShape, kv: str, ld: int) -> Any:
    """Function tile(n, a, list, list_step, offset, vector_step, n_k, step, c, alpha).

    n <= shape.rows[-1] rows; vector v of element k of segment s is at list[s * 8 + v * list_step] + offset + v *
    vector_step + k * step bytes; n_k elements in segments of 16, or in one segment where list_step is not 0. alpha 0: C
    is overwritten; else C = C * alpha[row] + product.
    """
    scope: dict[str, Any] = {f"tile{r}": _tile(shape, r, kv, ld) for r in shape.rows}
    names = "a, list, list_step, offset, vector_step, n_k, step, c, alpha"
    lines = [f"def tile(n, {names}):"]
    for i, r in enumerate(shape.rows):
        lines += [
            f"    {'if' if i == 0 else 'elif'} n <= {r}:" if r != shape.rows[-1] else "    else:",
            f"        tile{r}({names})",
        ]
    return _compile(lines, "tile", scope)


def _tile(shape: TileShape, rows: int, kv: str, ld: int) -> Any:
    vectors, chains = shape.vectors, shape.chains(rows)
    scope = {name: getattr(simd, name) for name in simd.__all__}
    scope["load_b"] = simd.load_f16x16 if kv == "f16" else simd.load_f32x16
    cells = [(r, v) for r in range(rows) for v in range(vectors)]
    lines = [
        "def tile(a, list, list_step, offset, vector_step, n_k, step, c, alpha):",
        "    if alpha != 0:",
        *(f"        s{r} = splat_f32(load_f32(alpha + {4 * r}))" for r in range(rows)),
        *(f"        x{r}_{v}_0 = load_f32x16(c + {r * ld + 64 * v}) * s{r}" for r, v in cells),
        "    else:",
        *(f"        x{r}_{v}_0 = zero_f32()" for r, v in cells),
        *(f"    x{r}_{v}_{u} = zero_f32()" for r, v in cells for u in range(1, chains)),
        "    done = 0",
        "    while done < n_k:",
        *(f"        b{v} = load_i64(list + {v} * list_step) + offset + {v} * vector_step" for v in range(vectors)),
        f"        n = n_k - done if list_step != 0 else min(n_k - done, {SEGMENT})",
        f"        for i in range(n // {chains}):",
        *_steps(rows, vectors, chains),
    ]
    if chains > 1:
        lines += [f"        for i in range(n % {chains}):", *_steps(rows, vectors, 1)]
    lines += ["        done += n", "        list += 8"]
    for r, v in cells:
        total = " + ".join(f"x{r}_{v}_{u}" for u in range(chains))
        lines.append(f"    store_f32x16(c + {r * ld + 64 * v}, {total})")
    lines = [line.replace("@", str(ld)) for line in lines]
    return _compile(lines, "tile", scope)


def _steps(rows: int, vectors: int, n: int) -> list[str]:
    lines = []
    for u in range(n):
        lines += [f"            w{v} = load_b(b{v} + {u} * step)" for v in range(vectors)]
        for r in range(rows):
            lines.append(f"            y = splat_f32(load_f32(a + {r} * @ + {4 * u}))")
            lines += [f"            x{r}_{v}_{u} = fma(y, w{v}, x{r}_{v}_{u})" for v in range(vectors)]
    lines += [f"            b{v} += {n} * step" for v in range(vectors)]
    return [*lines, f"            a += {4 * n}"]


def _compile(lines: list[str], name: str, scope: dict[str, Any]) -> Any:
    exec("\n".join(lines), scope)
    return register_jitable(scope[name])
