"""Top-n-sigma."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class TopNSigma(Step):
    """Keeps the tokens whose logits are at most n standard deviations below the largest; those of -inf do not
    count."""

    settings: ClassVar = (
        Setting(
            "top_n_sigma",
            "float",
            0.0,
            "Leave out tokens whose logits are more than n standard deviations below the largest (0 or -1: none).",
            low=0,
            flags=("--top-n-sigma", "--top-nsigma"),
            minus_one=0.0,
        ),
    )
    default_place = 30
    source = "Tang et al. 2024, https://arxiv.org/abs/2411.07641"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.top_n_sigma > 0)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return (params.top_n_sigma,)

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        import math

        import numpy as np
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64, load_i64
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.keeping import keep_at_least
        from pyllm.sampling.compiled.state import top_of
        from pyllm.sampling.compiled.sums import moments

        @register_jitable
        def apply(s, p):
            top = top_of(s)
            count, total, squares = moments(load_i64(s + slots.X), load_i64(s + slots.N), np.float32(top))
            mean = total / count
            threshold = top - load_f64(p) * math.sqrt(max(squares / count - mean * mean, 0.0))
            if threshold > -np.inf:  # else the logits are so far apart that squares of distances are infinite
                keep_at_least(s, threshold)

        return apply
