"""Functions of single logits over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    first_lane,
    load_f32,
    load_f32x16,
    load_i64,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i64,
)
from pyllm.sampling.compiled import slots


def mapper(function: Any) -> Callable[[int, np.float32, np.float32, np.float32], None]:
    """The function of a state that puts function(logits, a, b, c) in place of its logits."""

    @register_jitable
    def run(s, a, b, c):
        x, n = load_i64(s + slots.X), load_i64(s + slots.N)
        target = load_i64(s + slots.COPY)
        if x == target:
            target = load_i64(s + slots.COPY_2)
        full = n // 16 * 16
        for i in range(0, full, 16):
            store_f32x16(target + 4 * i, function(load_f32x16(x + 4 * i), a, b, c))
        for i in range(full, n):
            store_f32(target + 4 * i, first_lane(function(splat_f32(load_f32(x + 4 * i)), a, b, c)))
        store_i64(s + slots.BEFORE, x)
        store_i64(s + slots.X, target)
        store_i64(s + slots.OWN, 1)
        store_i64(s + slots.TOP_KNOWN, 0)

    return run
