"""Rotary positions: cases."""

from __future__ import annotations

from pyllm.program import as_inv_freq
from pyllm.program.ops.rope import Rope
from pyllm.testing.models import Record

_INV_FREQ = as_inv_freq([1000.0 ** (-i / 16) for i in range(16)])

CASES: dict[str, Record] = {
    "halves": lambda b, x: b(Rope(x=x, head_dim=32, inv_freq=_INV_FREQ)),
    "interleaved": lambda b, x: b(Rope(x=x, head_dim=32, inv_freq=_INV_FREQ, interleaved=True)),
    "part": lambda b, x: b(Rope(x=x, head_dim=64, inv_freq=_INV_FREQ, mscale=1.2)),
    "part_interleaved": lambda b, x: b(Rope(x=x, head_dim=64, inv_freq=_INV_FREQ[:5], mscale=0.8, interleaved=True)),
}
