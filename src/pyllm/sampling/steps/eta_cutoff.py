"""Eta cutoff."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class EtaCutoff(Step):
    """Keeps the tokens whose probability is at least eta, or sqrt(eta) * e^-entropy where that is less; always the
    most likely."""

    settings: ClassVar = (
        Setting(
            "eta_cutoff",
            "float",
            0.0,
            "Leave out tokens less likely than this probability, or than its root by e^entropy, if less (0: none).",
            low=0,
            high=1,
        ),
    )
    default_place = 94
    source = "Hewitt et al. 2022, https://arxiv.org/abs/2210.15191"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.eta_cutoff > 0)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return (params.eta_cutoff,)

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        import math

        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64, load_i64
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.keeping import keep_at_least
        from pyllm.sampling.compiled.state import top_of
        from pyllm.sampling.compiled.sums import weighted_distance

        @register_jitable
        def apply(s, p):
            top = top_of(s)
            total, below = weighted_distance(load_i64(s + slots.X), load_i64(s + slots.N), top)
            entropy = below / total + math.log(total)
            log_eta = math.log(load_f64(p))
            keep_at_least(s, top + min(min(log_eta, 0.5 * log_eta - entropy) + math.log(total), 0.0))

        return apply
