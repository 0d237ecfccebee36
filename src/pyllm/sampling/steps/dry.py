"""DRY: sequences that are there already shall not go on as they did."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class DRY(Step):
    """Makes tokens less likely that would go on with a repetition: where the last n tokens were there before, what
    followed them loses `dry_multiplier` * `dry_base` ^ (n - `dry_allowed_length`). Repetitions do not reach over a
    text of `dry_sequence_breakers`, and a token that holds one never loses anything."""

    settings: ClassVar = (
        Setting(
            "dry_multiplier",
            "float",
            0.0,
            "DRY: subtracted from the logit of a token that continues a repetition (0: off).",
            low=0,
        ),
        Setting("dry_base", "float", 1.75, "Growth of DRY's penalty with each repeated token.", low=1),
        Setting(
            "dry_allowed_length",
            "int",
            2,
            "Length of a repetition from which on DRY's penalty grows; shorter ones are free.",
            low=1,
        ),
        Setting(
            "dry_penalty_last_n",
            "int",
            64,
            "Number of last tokens that DRY searches for repetitions; -1: all, 0: none.",
            low=-1,
            must="0 or more, or -1 for all",
        ),
        Setting(
            "dry_sequence_breakers",
            "Sequence[str]",
            ("\n", ":", '"', "*"),
            "Texts that end a repetition for DRY; giving some replaces the usual ones.",
            flags=("--dry-sequence-breaker",),
        ),
    )
    kind = "logits"
    default_place = 20
    source = "p-e-w 2024, https://github.com/oobabooga/text-generation-webui/pull/5677; the Z-algorithm as pi6am"

    @staticmethod
    def is_on(params: Any) -> bool:
        return params.dry_multiplier != 0 and params.dry_penalty_last_n != 0

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        p = params
        n = math.inf if p.dry_penalty_last_n < 0 else p.dry_penalty_last_n
        # The largest exponent with which the penalty is a float32.
        most = 88.7228391 / math.log(p.dry_base) if p.dry_base > 1.000001 else math.inf
        return n, p.dry_multiplier, p.dry_base, p.dry_allowed_length, float(min(math.floor(min(most, 1e6)), 1e6))

    @staticmethod
    def look_back(params: Any) -> int:
        n: int = params.dry_penalty_last_n
        return n

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64, load_i32, load_i64
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.patches import clipped, forget_counts, patch, prepare
        from pyllm.sampling.compiled.repetitions import longest_repeats
        from pyllm.sampling.compiled.state import logit

        @register_jitable
        def less(x, length, p):
            extra = min(length - load_f64(p + 24), load_f64(p + 32))
            return clipped(x, x - load_f64(p + 8) * load_f64(p + 16) ** extra)

        @register_jitable
        def apply(s, p):
            touched = longest_repeats(s, load_f64(p), load_f64(p + 24))
            prepare(s, touched)
            lengths, x, ids = load_i64(s + slots.COUNTS), load_i64(s + slots.X), load_i64(s + slots.IDS)
            if ids == 0:
                for i in range(touched):
                    token = load_i32(load_i64(s + slots.TOUCHED) + 4 * i)
                    patch(s, token, less(logit(x, token), load_i32(lengths + 4 * token), p))
            elif touched > 0:
                for i in range(load_i64(s + slots.N)):
                    length = load_i32(lengths + 4 * load_i32(ids + 4 * i))
                    if length != 0:
                        patch(s, i, less(logit(x, i), length, p))
            forget_counts(s, touched)

        return apply
