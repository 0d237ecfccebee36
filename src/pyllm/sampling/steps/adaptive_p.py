"""Adaptive-p: probabilities near a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class AdaptiveP(Step):
    """Chooses tokens whose probability is near a target, which moves so that the mean of what was chosen, weighted by
    `adaptive_decay`, comes to `adaptive_target`. It works well after min-p alone."""

    settings: ClassVar = (
        Setting(
            "adaptive_target",
            "float",
            -1.0,
            "Choose tokens whose probability is near this one (-1: off).",
            low=-1,
            high=1,
            must="between 0 and 1, or negative for none",
        ),
        Setting(
            "adaptive_decay",
            "float",
            0.9,
            "How long `adaptive_target` remembers: about 1 / (1 - decay) tokens.",
            low=0,
            high=0.99,
        ),
    )
    kind = "last"
    default_place = 210
    source = "MrJackSpade and ddh0 2025, https://github.com/ggml-org/llama.cpp/pull/17927"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.adaptive_target >= 0)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return params.adaptive_target, params.adaptive_decay

    @staticmethod
    def memory(params: Any) -> tuple[float, float]:
        n = 1 / (1 - params.adaptive_decay)
        return params.adaptive_target * n, n

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        import math

        import numpy as np
        from numba.extending import register_jitable

        from pyllm.jit.simd import (
            abs_f32,
            exp_f32,
            load_f64,
            load_i64,
            max_f32,
            select_lt,
            splat_f32,
            store_f64,
            store_i64,
        )
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.drawing import draw
        from pyllm.sampling.compiled.mapping import mapper
        from pyllm.sampling.compiled.state import logit, top_of
        from pyllm.sampling.compiled.sums import total_of

        peak, sharpness, width = np.float32(5), np.float32(10), np.float32(0.3)
        one, nothing = np.float32(1), np.float32(-np.inf)

        @register_jitable
        def near(x, shift, target, unused):
            """A logit by how near the probability e^(x - shift) is to the target."""
            d = abs_f32(
                (exp_f32(max_f32(x - splat_f32(shift), splat_f32(np.float32(-200)))) - splat_f32(target))
                / splat_f32(width)
            )
            y = splat_f32(peak) - splat_f32(sharpness) * d * d / (splat_f32(one) + d)
            return select_lt(splat_f32(nothing), x, y, splat_f32(nothing))

        transform = mapper(near)

        @register_jitable
        def apply(s, p):
            target, decay = load_f64(p), load_f64(p + 8)
            weighted, weight = load_f64(s + slots.MEMORY), load_f64(s + slots.MEMORY + 16)
            aim = target if weight == 0 else 2 * target - weighted / weight
            shift = np.float32(top_of(s) + math.log(total_of(s)))
            transform(s, shift, np.float32(min(max(aim, 0.0), 1.0)), np.float32(0))
            store_i64(s + slots.ORDER, slots.AS_THEY_ARE)
            place = draw(s)
            if place >= 0:
                # The transformed logit does not tell the probability; what was there before does.
                own = math.exp(min(logit(load_i64(s + slots.BEFORE), place) - np.float64(shift), 0.0))
                store_f64(s + slots.MEMORY + 8, own + decay * weighted)
                store_f64(s + slots.MEMORY + 24, 1 + decay * weight)

        return apply
