"""pyllm's Metal kernel for linear recurrences: a state is read and written once, whatever the number of tokens.

Its reference is `recurrent.by_products`; the tests compare it with single tokens' formulas, with its source compiled as
C++ where there is no Metal.

A SIMD group of 32 lanes computes 8 columns of a head's state, over all tokens of a sequence. A lane holds every fourth
row of a column in registers; sums over rows are its own, and those of three other lanes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx

from pyllm.backends.mlx.metal import IN_CONSTANT_MEMORY

COLUMNS, PARTS = 8, 4
"""Columns of a state that a SIMD group computes, and lanes of a column."""
GROUPS = 4
"""SIMD groups of a threadgroup."""
MOST_ROWS = 256
"""Most rows of a state: a quarter of them are a lane's registers."""

HEADER = """
// arrays of a thread are registers only where every index is known
#define UNROLL _Pragma("clang loop unroll(full)")

// the sum over the lanes of a column
template <int COLUMNS>
inline float of_column(float x) {
    for (int apart = COLUMNS; apart < 32; apart *= 2) x += simd_shuffle_xor(x, ushort(apart));
    return x;
}
"""
SOURCE = """
    // state [sequences * HEADS, D, V], q, k, erase, insert [sequences * n, HEADS, D], v [sequences * n, HEADS, V],
    // factors [sequences * n, HEADS, F], n [1]: tokens of a sequence; y like v, after like state
    const int lane = int(thread_index_in_simdgroup), part = lane / COLUMNS;
    const int block = int(threadgroup_position_in_grid.x) * GROUPS + int(simdgroup_index_in_threadgroup);
    const int column = block * COLUMNS + lane % COLUMNS;
    const ulong head = threadgroup_position_in_grid.z;  // of all sequences
    const bool inside = column < V;
    float s[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) {
        const int row = i * PARTS + part;
        s[i] = inside && row < D ? state[(head * D + row) * V + column] : 0.0f;
    }
    const int n_tokens = n[0];
    for (int t = 0; t < n_tokens; t++) {
        const ulong at = (head / HEADS * n_tokens + t) * HEADS + head % HEADS;
        float erased = 0.0f, sum = 0.0f;
        if (ERASES) {
            UNROLL for (int i = 0; i < ROWS; i++) {
                const int row = i * PARTS + part;
                if (row < D) erased += s[i] * erase[at * D + row];
            }
            erased = of_column<COLUMNS>(erased);
        }
        const float value = inside ? v[at * V + column] : 0.0f;
        UNROLL for (int i = 0; i < ROWS; i++) {
            const int row = i * PARTS + part;
            if (row < D) {
                const float old = s[i];
                float now = old * factors[at * F + (F == 1 ? 0 : row)] + k[at * D + row] * value;
                if (ERASES) now += insert[at * D + row] * erased;
                sum += q[at * D + row] * (BEFORE ? old : now);
                s[i] = now;
            }
        }
        sum = of_column<COLUMNS>(sum);
        if (inside && part == 0) y[at * V + column] = sum;
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
        const int row = i * PARTS + part;
        if (inside && row < D) after[(head * D + row) * V + column] = s[i];
    }
"""
INPUTS = ("state", "q", "k", "v", "factors", "erase", "insert", "n")
OUTPUTS = ("y", "after")


def constants(
    heads: int, rows: int, columns: int, *, by_row: bool, erases: bool, before: bool
) -> dict[str, int | bool]:
    """Template constants of the kernel, by name."""
    return {
        "HEADS": heads, "D": rows, "V": columns, "F": rows if by_row else 1, "ROWS": -(-rows // PARTS),
        "COLUMNS": COLUMNS, "PARTS": PARTS, "GROUPS": GROUPS, "ERASES": erases, "BEFORE": before,
    }  # fmt: skip


def n_threadgroups(columns: int) -> int:
    return -(-columns // (COLUMNS * GROUPS))


def recurrence(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    decay: mx.array,
    erase: mx.array | None = None,
    insert: mx.array | None = None,
    before: bool = False,
) -> tuple[mx.array, mx.array]:
    """What `recurrent.attend` says, of float32 arrays."""
    n_seqs, n, heads, rows = q.shape
    columns = v.shape[-1]
    sizes = constants(heads, rows, columns, by_row=decay.shape[-1] > 1, erases=erase is not None, before=before)
    unused = k if erase is None else erase, k if insert is None else insert
    inputs = [state, q, k, v, mx.exp(decay), *unused, mx.array([n], mx.int32)]
    few = sum(1 << i for i, x in enumerate(inputs) if x.size < IN_CONSTANT_MEMORY)
    out, after = _kernel()(
        inputs=inputs,
        template=[*sizes.items(), ("FEW", few)],  # mlx knows a compiled kernel by its name and constants alone
        grid=(n_threadgroups(columns) * 32 * GROUPS, 1, n_seqs * heads),
        threadgroup=(32 * GROUPS, 1, 1),
        output_shapes=[(n_seqs, n, heads * columns), state.shape],
        output_dtypes=[mx.float32, mx.float32],
    )
    return out, after


@cache
def _kernel() -> Any:
    return mx.fast.metal_kernel(
        name="pyllm_recurrence", input_names=list(INPUTS), output_names=list(OUTPUTS), source=SOURCE, header=HEADER
    )
