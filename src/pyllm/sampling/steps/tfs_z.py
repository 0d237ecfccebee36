"""Tail-free sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class TFSZ(Step):
    """Cuts off the tail of the sorted probabilities: the sizes of their second differences, added up from the most
    likely token on, reach share z where the tail begins. Tokens less than 1e-5 times as likely as the most likely one
    are taken to be of the tail."""

    settings: ClassVar = (
        Setting(
            "tfs_z",
            "float",
            1.0,
            "Leave out the flat tail of the sorted probabilities, where their bends add up to share z (1: nothing).",
            low=0,
            high=1,
            flags=("--tfs-z", "--tfs"),
        ),
    )
    default_place = 50
    aliases = ("tfs",)
    source = "Bricken 2019, https://www.trentonbricken.com/Tail-Free-Sampling; the cut as in Aphrodite"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.tfs_z < 1)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return (params.tfs_z,)

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        import math

        import numpy as np
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64, load_i64, store_i64
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.keeping import keep_at_least
        from pyllm.sampling.compiled.largest import sort
        from pyllm.sampling.compiled.state import logit, top_of
        from pyllm.sampling.compiled.sums import moments

        @register_jitable
        def weight(x, i, n, top):
            return math.exp(logit(x, i) - top) if i < n else 0.0

        @register_jitable
        def bend(x, i, n, top):
            """|p[i] - 2 p[i + 1] + p[i + 2]|, but for a common factor."""
            a, b, c = weight(x, i, n, top), weight(x, i + 1, n, top), weight(x, i + 2, n, top)
            return abs((a - b) - (b - c))

        @register_jitable
        def apply(s, p):
            top = top_of(s)
            count = int(moments(load_i64(s + slots.X), load_i64(s + slots.N), np.float32(top))[0])
            keep_at_least(s, top - 11.52)
            sort(s)
            x, n, whole = load_i64(s + slots.X), load_i64(s + slots.N), 0.0
            # Two of the tail's tokens bend the line where it begins.
            n_bends = min(count, n + 2) - 2
            for i in range(n_bends):
                whole += bend(x, i, n, top)
            if n_bends < 1 or whole <= 0:
                return
            kept, so_far = 1, 0.0
            for i in range(n_bends):
                so_far += bend(x, i, n, top)
                if so_far / whole > load_f64(p):
                    break
                kept += 1
            store_i64(s + slots.N, min(kept, n))

        return apply
