"""Top-a."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class TopA(Step):
    """Keeps the tokens whose probability is at least a times the square of the largest one; always the most likely."""

    settings: ClassVar = (
        Setting(
            "top_a",
            "float",
            0.0,
            "Leave out tokens less likely than a times the square of the largest probability (0: none).",
            low=0,
            high=1,
        ),
    )
    default_place = 80
    source = "BlinkDL 2022, https://github.com/BlinkDL/RWKV-LM#the-top-a-sampling-method"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.top_a > 0)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return (math.log(params.top_a),)

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
            # p >= a * p_max^2, where p = p_max * e^(x - top) and p_max = 1 / total.
            keep_at_least(s, top_of(s) + min(load_f64(p) - math.log(total_of(s)), 0.0))

        return apply
