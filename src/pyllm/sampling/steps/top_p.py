"""Top-p, or nucleus sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class TopP(Step):
    """Keeps the most likely tokens, as few as reach probability p."""

    settings: ClassVar = (
        Setting(
            "top_p",
            "float",
            0.95,
            "Choose among the most likely tokens, until their probabilities add up to p (1: all).",
            low=0,
            high=1,
            key="top_p",
        ),
    )
    default_place = 70
    source = "Holtzman et al. 2019, https://arxiv.org/abs/1904.09751"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.top_p < 1)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return (params.top_p,)

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64
        from pyllm.sampling.compiled.mass import keep_likeliest

        @register_jitable
        def apply(s, p):
            keep_likeliest(s, load_f64(p))

        return apply
