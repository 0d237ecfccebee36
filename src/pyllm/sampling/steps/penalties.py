"""Repetition, presence and frequency penalties."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class Penalties(Step):
    """Makes tokens less likely that are among the last ones: their logits are divided (multiplied, if negative) by
    `repeat_penalty`, then less `presence_penalty`, and less `frequency_penalty` for each time that they are there."""

    settings: ClassVar = (
        Setting(
            "repeat_penalty",
            "float",
            1.0,
            "Divides positive and multiplies negative logits of tokens in the last `repeat_last_n` (1: off).",
            low=0,
            above_low=True,
            must="a positive number (1: off)",
            key="penalty_repeat",
        ),
        Setting(
            "presence_penalty",
            "float",
            0.0,
            "Subtracted from the logits of tokens in the last `repeat_last_n` (0: off).",
        ),
        Setting(
            "frequency_penalty",
            "float",
            0.0,
            "Subtracted from the logits of tokens for each occurrence in the last `repeat_last_n` (0: off).",
        ),
        Setting(
            "repeat_last_n",
            "int",
            64,
            "Number of last tokens that the penalties look at; -1: all, 0: none.",
            low=-1,
            must="0 or more, or -1 for all",
            key="penalty_last_n",
        ),
    )
    kind = "logits"
    default_place = 10
    source = "Keskar et al. 2019, https://arxiv.org/abs/1909.05858; presence and frequency: OpenAI's API"

    @staticmethod
    def is_on(params: Any) -> bool:
        p = params
        return p.repeat_last_n != 0 and (p.repeat_penalty, p.presence_penalty, p.frequency_penalty) != (1.0, 0.0, 0.0)

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        p = params
        n = math.inf if p.repeat_last_n < 0 else p.repeat_last_n
        return n, p.repeat_penalty, p.presence_penalty, p.frequency_penalty

    @staticmethod
    def lowers_only(params: Any) -> bool:
        return params.repeat_penalty >= 1 and params.presence_penalty >= 0 and params.frequency_penalty >= 0

    @staticmethod
    def look_back(params: Any) -> int:
        n: int = params.repeat_last_n
        return n

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64, load_i32, load_i64
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.patches import clipped, count_window, forget_counts, patch, prepare
        from pyllm.sampling.compiled.state import logit

        @register_jitable
        def less(s, x, count, p):
            offset = load_f64(s + slots.OFFSET)
            whole = x + offset
            y = whole * load_f64(p + 8) if whole <= 0 else whole / load_f64(p + 8)
            return clipped(x, y - count * load_f64(p + 24) - load_f64(p + 16) - offset)

        @register_jitable
        def apply(s, p):
            touched = count_window(s, load_f64(p))
            prepare(s, touched)
            counts, x, ids = load_i64(s + slots.COUNTS), load_i64(s + slots.X), load_i64(s + slots.IDS)
            if ids == 0:
                for i in range(touched):
                    token = load_i32(load_i64(s + slots.TOUCHED) + 4 * i)
                    patch(s, token, less(s, logit(x, token), load_i32(counts + 4 * token), p))
            else:
                for i in range(load_i64(s + slots.N)):
                    count = load_i32(counts + 4 * load_i32(ids + 4 * i))
                    if count != 0:
                        patch(s, i, less(s, logit(x, i), count, p))
            forget_counts(s, touched)

        return apply
