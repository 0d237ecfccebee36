"""Rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.rope import Rope

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


def rope(
    x: F32,
    positions: NDArray[np.integer],
    head_dim: int,
    inv_freq: tuple[float, ...] | F32,
    mscale: float = 1.0,
    interleaved: bool = False,
) -> F32:
    """x [tokens, heads * head_dim], positions [tokens], inv_freq [n_rot / 2] → like x.

    The angle is a float32 product, as in every engine; its sine and cosine are exact.
    """
    half = len(inv_freq)
    angle = positions.astype(np.float32)[:, None] * np.asarray(inv_freq, np.float32)  # [tokens, half]
    cos = (np.cos(angle, dtype=np.float64) * mscale).astype(np.float32)[:, None]  # [tokens, 1, half]
    sin = (np.sin(angle, dtype=np.float64) * mscale).astype(np.float32)[:, None]
    heads = x.reshape(len(x), x.shape[1] // head_dim, head_dim)
    out = heads.copy()
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(half), slice(half, 2 * half))
    )
    a, b = heads[..., first], heads[..., second]
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out.reshape(x.shape)


@rule(Rope)
def _rope(exe: ReferenceExecutable, op: Rope, batch: Batch, state: State) -> F32:
    positions = batch.positions[: batch.n_tokens]
    return rope(state[op.x.id], positions, op.head_dim, op.inv_freq, op.mscale, op.interleaved)
