"""Locally typical sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class TypicalP(Step):
    """Keeps the tokens whose surprise is closest to the expected one, as few as exceed probability p."""

    settings: ClassVar = (
        Setting(
            "typical_p",
            "float",
            1.0,
            "Choose among tokens of typical surprise, up to probability p (1: all).",
            low=0,
            high=1,
            flags=("--typical-p", "--typical"),
        ),
    )
    default_place = 60
    aliases = ("typical", "typ_p")
    source = "Meister et al. 2022, https://arxiv.org/abs/2202.00666"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.typical_p < 1)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return (params.typical_p,)

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64, load_i64
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.mass import keep_nearest
        from pyllm.sampling.compiled.state import top_of
        from pyllm.sampling.compiled.sums import weighted_distance

        @register_jitable
        def apply(s, p):
            top = top_of(s)
            total, below = weighted_distance(load_i64(s + slots.X), load_i64(s + slots.N), top)
            # The surprise of a logit x is (top - x) + log(total); that of the expected one is below / total + the same.
            keep_nearest(s, top - below / total, load_f64(p))

        return apply
