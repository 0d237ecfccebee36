"""Min-p."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class MinP(Step):
    """Keeps the tokens that are at least p times as likely as the most likely one."""

    settings: ClassVar = (
        Setting(
            "min_p",
            "float",
            0.05,
            "Leave out tokens less than p times as likely as the most likely one (0: none).",
            low=0,
            high=1,
            key="min_p",
        ),
    )
    default_place = 90
    source = "Nguyen et al. 2024, https://arxiv.org/abs/2407.01082"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.min_p > 0)

    @staticmethod
    def is_local(params: Any) -> bool:
        return True

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return (math.log(params.min_p),)

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64
        from pyllm.sampling.compiled.keeping import keep_at_least
        from pyllm.sampling.compiled.state import top_of

        @register_jitable
        def apply(s, p):
            keep_at_least(s, top_of(s) + load_f64(p))

        return apply
