"""What kernels that go row by row share: which row of the input belongs to a row of the output."""

from __future__ import annotations

from numba.extending import register_jitable

from pyllm.backends.cpu.simd import load_i32, load_i64


@register_jitable
def row_of(step, t, picked):
    """Row of the input: t itself, or the step's rows[t] where rows are picked (`SelectRows`)."""
    return load_i32(load_i64(step + 88) + 4 * t) if picked != 0 else t
