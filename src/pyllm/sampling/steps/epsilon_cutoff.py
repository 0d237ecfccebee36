"""Epsilon cutoff."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class EpsilonCutoff(Step):
    """Keeps the tokens whose probability is at least epsilon; always the most likely."""

    settings: ClassVar = (
        Setting(
            "epsilon_cutoff",
            "float",
            0.0,
            "Leave out tokens less likely than this probability (0: none).",
            low=0,
            high=1,
        ),
    )
    default_place = 92
    source = "Hewitt et al. 2022, https://arxiv.org/abs/2210.15191"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.epsilon_cutoff > 0)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return (math.log(params.epsilon_cutoff),)

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        import math

        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64
        from pyllm.sampling.compiled.keeping import keep_at_least
        from pyllm.sampling.compiled.state import top_of
        from pyllm.sampling.compiled.sums import total_of

        @register_jitable
        def apply(s, p):
            keep_at_least(s, top_of(s) + min(load_f64(p) + math.log(total_of(s)), 0.0))

        return apply
