"""Families with RMS norms and feed-forwards without a gate: Arcee, PLM, Apertus."""

from __future__ import annotations

import math

from pyllm.archs.decoder import Decoder, Head, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN
from pyllm.archs.mixers.latent import LatentAttention
from pyllm.archs.rope import Rope


def arcee(hp: HParams) -> Decoder:
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, interleaved=True),
        lambda il: FFN.read(hp, il, act="relu2", gated=False),
    )


def plm(hp: HParams) -> Decoder:
    """Latent attention."""
    rope = Rope.read(hp, interleaved=True, factors=False)
    return transformer(
        hp,
        lambda il: LatentAttention.read(hp, il, rope),
        lambda il: FFN.read(hp, il, act="relu2", gated=False),
        head=Head(tied=True),
    )


def apertus(hp: HParams) -> Decoder:
    """xIELU, with parameters by layer; files hold its alphas before their softplus."""
    alpha_n, alpha_p, beta, eps = (hp.numbers(f"xielu.{name}") for name in ("alpha_n", "alpha_p", "beta", "eps"))

    def feed_forward(il: int) -> FFN:
        parameters = beta[il] + _softplus(alpha_n[il]), _softplus(alpha_p[il]), beta[il], eps[il]
        return FFN.read(hp, il, act="xielu", gated=False, parameters=parameters)

    return transformer(hp, lambda il: Attention.read(hp, il, qk_norm="head"), feed_forward)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


ARCHITECTURES = {"arcee": arcee, "plm": plm, "apertus": apertus}
