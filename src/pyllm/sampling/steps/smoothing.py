"""Quadratic and cubic smoothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class Smoothing(Step):
    """Bends logits: one that is d below the largest goes to d^2 (k + s d) below it, with k = factor (3 - curve) / 2
    and s = factor (curve - 1) / 2. With curve 1 that is factor * d^2."""

    settings: ClassVar = (
        Setting(
            "smoothing_factor",
            "float",
            0.0,
            "Makes near tokens more alike and far ones less likely: distances from the largest logit are squared, and "
            "multiplied by this (0: off).",
            low=0,
        ),
        Setting(
            "smoothing_curve",
            "float",
            1.0,
            "Above 1, `smoothing_factor` works by the cube of the distance, too.",
            low=1,
        ),
    )
    kind = "shape"
    default_place = 110
    aliases = ("quadratic", "smoothing_factor")
    source = "kalomaze 2024, https://github.com/oobabooga/text-generation-webui/pull/5403 and 5551"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.smoothing_factor > 0)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        f, c = params.smoothing_factor, params.smoothing_curve
        return f * (3 - c) / 2, f * (c - 1) / 2

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        import numpy as np
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64, max_f32, min_f32, select_lt, splat_f32, store_i64
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.mapping import mapper
        from pyllm.sampling.compiled.state import top_of

        nothing, least = np.float32(-np.inf), np.float32(-3e38)

        @register_jitable
        def bent(x, top, k, c):
            # Held where its cube is a number: what is further away has no chance in either case.
            d = min_f32(splat_f32(top) - x, splat_f32(np.float32(1e12)))
            y = splat_f32(top) - d * d * (splat_f32(k) + splat_f32(c) * d)
            return select_lt(splat_f32(nothing), x, max_f32(y, splat_f32(least)), splat_f32(nothing))

        bend = mapper(bent)

        @register_jitable
        def apply(s, p):
            bend(s, np.float32(top_of(s)), np.float32(load_f64(p)), np.float32(load_f64(p + 8)))
            if load_f64(p) < 0:  # a curve above 3 lifts what is near the largest above it
                store_i64(s + slots.ORDER, slots.AS_THEY_ARE)

        return apply
