"""Helpers of row-wise kernels: rows of a work item, and the input row of an output row."""

from __future__ import annotations

from numba.extending import register_jitable

from pyllm.jit.simd import load_i32, load_i64


@register_jitable
def row_of(step, t, selects_rows):
    """Input row of row t: t, or the step's rows[t] where output rows are selected (`SelectRows`)."""
    return load_i32(load_i64(step + 88) + 4 * t) if selects_rows != 0 else t


@register_jitable
def rows_at_once(n, n_threads):
    """Rows of a work item. Taking an item costs up to 0.1 us, as much as a short row."""
    return max(1, min(16, n // (4 * n_threads)))
