"""pyllm's Metal kernel: products of few rows with matrices that mlx has no quantized product for (`formats.Coded`).

Its reference in plain mlx operations is `CodedMatrix.decode` and a float product; the tests compare the two, with the
kernel's source compiled as C++ where there is no Metal.

A SIMD group of 32 lanes computes ROWS rows of the result for up to M rows of x. A lane takes 16 columns at a time: BITS
words of 16 bits, which share a scale, since groups have 16 or 32 columns.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx

from pyllm.backends.mlx.formats import Coded

MOST_ROWS = 8
"""Rows of x that one launch takes."""
ROWS = 4
"""Rows of the matrix that a SIMD group computes."""
GROUPS = 2
"""SIMD groups of a threadgroup."""
IN_CONSTANT_MEMORY = 8
"""Elements from which mlx passes an array in device memory: the address space is part of the source."""

HEADER = """
// arrays of a thread are registers only where every index is known
#define UNROLL _Pragma("clang loop unroll(full)")

template <int BITS>
inline uint code_at(const thread ushort* words, int i) {
    const int bit = i * BITS, at = bit / 16, shift = bit % 16;
    uint pair = words[at];
    if (shift + BITS > 16) pair |= uint(words[at + 1]) << 16;
    return (pair >> shift) & ((1u << BITS) - 1u);
}
"""

SOURCE = """
    // x T [rows of x, K], codes ushort [matrices * N, K * BITS / 16], scales [matrices * N, K / GROUP],
    // halves [matrices * N, K / BLOCK * (MINIMA ? 2 : 1)], ids [z] (matrix of each slot), values [16]; out [z * M, N]
    const uint lane = thread_index_in_simdgroup;
    const uint first = (threadgroup_position_in_grid.x * GROUPS + simdgroup_index_in_threadgroup) * ROWS;
    const uint slot = threadgroup_position_in_grid.z;
    const uint matrix = ids[slot];
    threadgroup float known[16];
    if (TABLE) {
        if (lane < 16) known[lane] = values[lane];
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    float sums[ROWS * M];
    UNROLL for (int i = 0; i < ROWS * M; i++) sums[i] = 0.0f;
    for (uint column = lane * 16; column < uint(K); column += 32 * 16) {
        UNROLL for (int r = 0; r < ROWS; r++) {
            const uint in_matrix = first + r < uint(N) ? first + r : uint(N) - 1;
            const ulong row = ulong(matrix) * N + in_matrix;
            const ulong at = (row * K + column) / 16 * BITS;
            ushort words[BITS];
            UNROLL for (int i = 0; i < BITS; i++) words[i] = codes[at + i];
            const ulong half_at = (row * (K / BLOCK) + column / BLOCK) * (MINIMA ? 2 : 1);
            float scale = float(halves[half_at]);
            float minimum = 0.0f;
            if (MINIMA) {
                const uint both = uint(scales[row * (K / GROUP) + column / GROUP]) & 255u;
                scale *= float(both & 15u);
                minimum = float(halves[half_at + 1]) * float(both >> 4);
            } else if (BYTES) {
                scale *= float(scales[row * (K / GROUP) + column / GROUP]);
            }
            float w[16];
            UNROLL for (int i = 0; i < 16; i++) {
                const uint code = code_at<BITS>(words, i);
                w[i] = scale * (TABLE ? known[code] : float(int(code) - OFFSET)) - minimum;
            }
            UNROLL for (int m = 0; m < M; m++) {
                const ulong from = (ulong(slot / SHARE) * M + m) * K + column;
                float sum = 0.0f;
                UNROLL for (int i = 0; i < 16; i++) sum += w[i] * float(x[from + i]);
                sums[r * M + m] += sum;
            }
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++) {
        UNROLL for (int m = 0; m < M; m++) {
            const float sum = simd_sum(sums[r * M + m]);
            if (lane == 0 && first + r < uint(N)) out[(ulong(slot) * M + m) * N + first + r] = sum * FACTOR;
        }
    }
"""
INPUTS = ("x", "codes", "scales", "halves", "ids", "values")


@cache
def available() -> bool:
    """Whether there is a device that the kernel runs on."""
    return bool(mx.metal.is_available())


def define(layout: Coded) -> str:
    """Definitions in front of the source for a layout."""
    return f"#define FACTOR {layout.factor!r}f\n{HEADER}"


def constants(layout: Coded, rows: int, columns: int, n_rows_x: int, share: int) -> dict[str, int | bool]:
    """Template constants of the kernel, by name."""
    return {
        "K": columns, "N": rows, "M": n_rows_x, "SHARE": share, "ROWS": ROWS, "GROUPS": GROUPS,
        "BITS": layout.bits, "GROUP": layout.group, "BLOCK": layout.block, "OFFSET": layout.offset,
        "MINIMA": layout.scales == "u4", "BYTES": layout.scales == "i8", "TABLE": bool(layout.values),
    }  # fmt: skip


def table(layout: Coded) -> mx.array:
    """Values by code, float32 [16]; zeros where there are none."""
    return mx.array((*layout.values, *[0] * 16)[:16], mx.float32)


def n_threadgroups(rows: int) -> int:
    return -(-rows // (ROWS * GROUPS))


def product(
    layout: Coded, arrays: dict[str, mx.array], x: mx.array, rows: int, ids: mx.array | None, share: int
) -> mx.array:
    """x [m, columns] with one matrix, m at most `MOST_ROWS` → float32 [m, rows]; or, where `ids` [slots] names
    matrices, row s // share of x with matrix ids[s] → [slots, rows]."""
    which = mx.zeros((1,), mx.uint32) if ids is None else ids.astype(mx.uint32)
    m = x.shape[0] if ids is None else 1
    few = which.size < IN_CONSTANT_MEMORY  # mlx knows a compiled kernel by its name and constants alone
    halves = arrays["halves"]
    (out,) = _kernel(layout)(
        inputs=[x, mx.view(arrays["codes"], mx.uint16), arrays.get("scales", halves), halves, which, table(layout)],
        template=[("T", x.dtype), *constants(layout, rows, x.shape[-1], m, share).items(), ("FEW", few)],
        grid=(n_threadgroups(rows) * 32 * GROUPS, 1, which.size),
        threadgroup=(32 * GROUPS, 1, 1),
        output_shapes=[(which.size * m, rows)],
        output_dtypes=[mx.float32],
    )
    return out


@cache
def _kernel(layout: Coded) -> Any:
    return mx.fast.metal_kernel(
        name=f"pyllm_coded_{round(1 / layout.factor)}", input_names=list(INPUTS), output_names=["out"],
        source=SOURCE, header=define(layout),
    )  # fmt: skip
