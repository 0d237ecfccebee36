"""XTC: exclude top choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class XTC(Step):
    """With a chance of `xtc_probability`, leaves out all tokens of probability `xtc_threshold` or more but the least
    likely of them. Whether it does is drawn from the same random number as the token, which stays a fair one."""

    settings: ClassVar = (
        Setting(
            "xtc_probability",
            "float",
            0.0,
            "How often the most likely tokens are left out (0: never).",
            low=0,
            high=1,
            key="xtc_probability",
        ),
        Setting(
            "xtc_threshold",
            "float",
            0.1,
            "From which probability on a token may be left out by `xtc_probability` (above 0.5: none is).",
            low=0,
            high=1,
            key="xtc_threshold",
        ),
    )
    default_place = 100
    source = "p-e-w 2024, https://github.com/oobabooga/text-generation-webui/pull/6335"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.xtc_probability > 0 and params.xtc_threshold <= 0.5)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return params.xtc_probability, params.xtc_threshold

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        import math

        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64, store_f64
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.keeping import drop_all_but_least
        from pyllm.sampling.compiled.state import top_of
        from pyllm.sampling.compiled.sums import total_of

        @register_jitable
        def apply(s, p):
            chance, u = load_f64(p), load_f64(s + slots.U)
            if u >= chance:
                store_f64(s + slots.U, (u - chance) / (1 - chance))
                return
            store_f64(s + slots.U, u / chance)
            least = load_f64(p + 8)
            top, total = top_of(s), total_of(s)
            if least * total <= 1:
                drop_all_but_least(s, top + math.log(least * total) if least > 0 else -math.inf)

        return apply
