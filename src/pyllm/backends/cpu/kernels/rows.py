"""What kernels that go row by row share: how many rows are one work item, which row of the input is meant."""

from __future__ import annotations

from numba.extending import register_jitable

from pyllm.jit.simd import load_i32, load_i64


@register_jitable
def row_of(step, t, selects_rows):
    """Row of the input: t itself, or the step's rows[t] where rows are selected (`SelectRows`)."""
    return load_i32(load_i64(step + 88) + 4 * t) if selects_rows != 0 else t


@register_jitable
def rows_at_once(n, n_threads):
    """Rows of a work item: taking one costs up to a tenth of a microsecond, as much as a short row."""
    return max(1, min(16, n // (4 * n_threads)))
