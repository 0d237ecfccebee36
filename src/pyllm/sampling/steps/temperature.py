"""Temperature, fixed or by entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class Temperature(Step):
    """Divides logits by the temperature. With `dynatemp_range`, the temperature is between temperature - range and
    temperature + range: by the share that the entropy has of the largest that so many tokens can have, to the power of
    `dynatemp_exponent`."""

    settings: ClassVar = (
        Setting(
            "temperature",
            "float",
            0.8,
            "Randomness of the choice; 0: always the most likely token (greedy).",
            low=0,
            must="0 (greedy) or a positive number",
            flags=("--temp", "--temperature"),
            key="temp",
        ),
        Setting(
            "dynatemp_range",
            "float",
            0.0,
            "Dynamic temperature: how far it moves with the entropy, up and down (0: off).",
            low=0,
        ),
        Setting(
            "dynatemp_exponent",
            "float",
            1.0,
            "Dynamic temperature: exponent of the entropy's share.",
            low=0,
            flags=("--dynatemp-exp", "--dynatemp-exponent"),
        ),
    )
    kind = "shape"
    default_place = 120
    aliases = ("temp",)
    source = "Ackley et al. 1985; by entropy: kalomaze 2023, https://github.com/ggml-org/llama.cpp/pull/4972"

    @staticmethod
    def is_on(params: Any) -> bool:
        return params.temperature != 1 or params.dynatemp_range > 0

    @staticmethod
    def is_local(params: Any) -> bool:
        return bool(params.dynatemp_range == 0)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        p = params
        low = max(0.0, p.temperature - p.dynatemp_range)
        return low, min(p.temperature + p.dynatemp_range, 1e300), p.dynatemp_exponent

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        import numpy as np
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64, splat_f32, store_f64
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.mapping import mapper
        from pyllm.sampling.compiled.state import top_of
        from pyllm.sampling.compiled.sums import evenness

        smallest = np.finfo(np.float32).tiny
        largest = np.finfo(np.float32).max

        @register_jitable
        def divided(x, top, t, unused):
            return (x - splat_f32(top)) / splat_f32(t)

        divide = mapper(divided)

        @register_jitable
        def apply(s, p):
            t, high = load_f64(p), load_f64(p + 8)
            if high > t:
                share = evenness(s)
                if share >= 0:
                    t += (high - t) * share ** load_f64(p + 16)
                else:
                    t = 0.5 * (t + high)
            t = min(max(t, np.float64(smallest)), np.float64(largest))
            top = np.float32(top_of(s))
            store_f64(s + slots.OFFSET, (load_f64(s + slots.OFFSET) + np.float64(top)) / t)
            divide(s, top, np.float32(t), np.float32(0))

        return apply
