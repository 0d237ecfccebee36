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
        import numpy as np
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64, load_i64, store_f32, store_i64
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.bends import first_beyond, sum_bends
        from pyllm.sampling.compiled.keeping import keep_at_least
        from pyllm.sampling.compiled.largest import sort
        from pyllm.sampling.compiled.state import LARGEST, top_of
        from pyllm.sampling.compiled.sums import moments

        @register_jitable
        def apply(s, p):
            top = top_of(s)
            count = int(moments(load_i64(s + slots.X), load_i64(s + slots.N), np.float32(top))[0])
            keep_at_least(s, top - 11.52)
            sort(s)
            x, n = load_i64(s + slots.X), load_i64(s + slots.N)
            # Two of the tail's tokens bend the line where it begins.
            store_f32(x + 4 * n, -LARGEST)
            store_f32(x + 4 * n + 4, -LARGEST)
            n_bends = min(count, n + 2) - 2
            whole = sum_bends(s, n_bends)
            if n_bends > 0 and whole > 0:
                store_i64(s + slots.N, min(1 + first_beyond(s, n_bends, load_f64(p) * whole), n))

        return apply
