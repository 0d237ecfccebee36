"""Mirostat 1 and 2: a steady surprise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyllm.config.setting import Setting
from pyllm.sampling.steps import Step


class Mirostat(Step):
    """Chooses so that the mean surprise comes to `mirostat_tau` bits: tokens of more surprise than a limit are left
    out, and the limit moves by `mirostat_eta` times what the last surprise was off. Version 1 makes the limit a number
    of tokens, by Zipf's law. The steps that leave out tokens (top-k, top-p, …) do not run with it."""

    settings: ClassVar = (
        Setting(
            "mirostat",
            "int",
            0,
            "Keep the mean surprise constant, by Mirostat 1 or 2; no other step then leaves out tokens (0: off).",
            low=0,
            high=2,
            must="0, 1 or 2",
            key="mirostat",
        ),
        Setting(
            "mirostat_tau",
            "float",
            5.0,
            "Target surprise of `mirostat`, in bits.",
            low=0,
            flags=("--mirostat-ent", "--mirostat-tau"),
            key="mirostat_tau",
        ),
        Setting(
            "mirostat_eta",
            "float",
            0.1,
            "Learning rate of `mirostat`.",
            low=0,
            flags=("--mirostat-lr", "--mirostat-eta"),
            key="mirostat_eta",
        ),
    )
    kind = "last"
    default_place = 200
    source = "Basu et al. 2020, https://arxiv.org/abs/2007.14966; version 2 as their code and llama.cpp"

    @staticmethod
    def is_on(params: Any) -> bool:
        return params.mirostat != 0

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        return params.mirostat, params.mirostat_tau, params.mirostat_eta

    @staticmethod
    def memory(params: Any) -> tuple[float, float]:
        return 2 * params.mirostat_tau, 0.0

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        import math

        import numpy as np
        from numba.extending import register_jitable

        from pyllm.jit.simd import load_f64, load_i64, store_f64
        from pyllm.sampling.compiled import slots
        from pyllm.sampling.compiled.drawing import draw
        from pyllm.sampling.compiled.keeping import keep_at_least
        from pyllm.sampling.compiled.largest import keep_largest
        from pyllm.sampling.compiled.state import logit, set_dense, top_of
        from pyllm.sampling.compiled.sums import total_of

        most = 100  # tokens by which the exponent of Zipf's law is estimated, as the paper's code has it
        log2 = math.log(2.0)

        @register_jitable
        def n_by_zipf(s, mu, n_all, n_vocab):
            """How many tokens have at most `mu` bits of surprise, by Zipf's law fitted to the most likely ones."""
            x, n = load_i64(s + slots.X), load_i64(s + slots.N)
            products, squares = 0.0, 0.0
            for i in range(min(most, n) - 1):
                step = logit(x, i) - logit(x, i + 1)
                if step < np.inf:
                    t = math.log((i + 2) / (i + 1))
                    products += t * step
                    squares += t * t
            if squares == 0 or products <= 0:
                return n_all
            exponent = products / squares
            e = exponent - 1
            rest = 1 - n_vocab ** (-e)
            factor = e / rest if abs(e) > 1e-9 else 1 / math.log(n_vocab)
            k = (factor * 2.0**mu) ** (1 / exponent)
            return n_all if not k < n_all else max(int(k), 1)

        @register_jitable
        def apply(s, p):
            mu = load_f64(s + slots.MEMORY)
            if load_f64(p) == 1:
                x, ids, n = load_i64(s + slots.X), load_i64(s + slots.IDS), load_i64(s + slots.N)
                keep_largest(s, most if ids == 0 else n)
                k = n_by_zipf(s, mu, n, np.float64(load_i64(s + slots.N_VOCAB)))
                if ids == 0 and k > most:
                    set_dense(s, x, n)
                keep_largest(s, k)
            else:
                keep_at_least(s, min(top_of(s) + math.log(total_of(s)) - mu * log2, top_of(s)))
            place = draw(s)
            if place >= 0:
                x = load_i64(s + slots.X)
                surprise = (top_of(s) - logit(x, place) + math.log(total_of(s))) / log2
                store_f64(s + slots.MEMORY + 8, mu - load_f64(p + 16) * (surprise - load_f64(p + 8)))

        return apply
