"""Top-k."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class TopK(Step):
    """Keeps the k most likely tokens, most likely first; equally likely ones by id."""

    settings: ClassVar = (
        Setting(
            "top_k",
            "int",
            40,
            "Choose among the k most likely tokens (0 or -1: all).",
            low=0,
            must="1 or more, or 0 for no limit",
            key="top_k",
            minus_one=0,
        ),
    )
    default_place = 40
    source = "Fan et al. 2018, https://arxiv.org/abs/1805.04833"

    @staticmethod
    def is_on(params: Any) -> bool:
        return bool(params.top_k > 0)

    @staticmethod
    def is_local(params: Any) -> bool:
        return True

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return (min(params.top_k, 1 << 30),)

    @staticmethod
    def n_needed(params: Any) -> int | None:
        k: int = params.top_k
        return k

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64
        from pyllm.sampling.compiled.largest import keep_largest

        @register_jitable
        def apply(s, p):
            keep_largest(s, int(load_f64(p)))

        return apply
