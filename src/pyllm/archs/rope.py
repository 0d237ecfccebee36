"""Rotary positions and their scalings: linear, YaRN (arXiv:2309.00071), llama 3's factors, longrope's factors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pyllm.archs.hparams import HParams
from pyllm.errors import ModelError
from pyllm.program import as_inv_freq
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotation of a layer's queries and keys: frequencies [n_rot / 2], the factor of cos and sin, and whether rotated
    pairs are neighbours (else halves apart within the first n_rot columns)."""

    inv_freq: tuple[float, ...]
    mscale: float
    interleaved: bool
    base: float
    """Base of the frequencies and `scaling`, its kind and factor (empty: none); for description only."""
    scaling: str = ""

    def __str__(self) -> str:
        pairs = "neighbours" if self.interleaved else "halves"
        return ", ".join(filter(None, (f"{self.n_rot} columns", pairs, f"base {self.base:g}", self.scaling)))

    @property
    def n_rot(self) -> int:
        return 2 * len(self.inv_freq)

    @classmethod
    def read(
        cls,
        hp: HParams,
        *,
        interleaved: bool = False,
        base: float | None = None,
        scaled: bool = True,
        factors: bool = True,
        windowed: bool = False,
        share: float = 1.0,
        log_multiplier: float | None = None,
    ) -> Self:
        """Read from the metadata keys `rope.*` and the tensors of factors.

        `base` None: the file's. `scaled` False: frequencies are not scaled, except by the tensors' `factors`, unless
        these are disabled too. `windowed`: rotate as many columns as the file's windowed layers do.
        `share`: of the file's number of columns that is rotated. `log_multiplier`: YaRN's, None: the file's.
        """
        head_dim, _ = hp.head_dims(windowed)
        n_rot = hp.integer("rope.dimension_count", hp.head_dims()[0], most=1 << 16)
        if windowed:
            n_rot = hp.integer("rope.dimension_count_swa", n_rot, most=1 << 16)
        n_rot = int(n_rot * share)
        if n_rot > head_dim:
            raise ModelError(f"{hp.arch}.rope.dimension_count is {n_rot}, more than a head's {head_dim}")
        read = Scaling.read(hp, hp.n_ctx_train)
        if log_multiplier is not None:
            read = replace(read, log_multiplier=log_multiplier)
        scaling = read if scaled else Scaling.none()
        base = hp.rope_base if base is None else base
        inv_freq, mscale = scaling.apply(base, n_rot, _factors(hp, n_rot, read) if factors else None)
        return cls(inv_freq, mscale, interleaved, base, str(scaling))


def _factors(hp: HParams, n_rot: int, scaling: Scaling) -> NDArray[np.float32] | None:
    """Divisors of the frequencies [n_rot / 2]: llama 3's, or longrope's for the requested context."""
    long = hp.n_ctx > scaling.n_ctx_orig
    for name in ("rope_freqs.weight", f"rope_factors_{'long' if long else 'short'}.weight"):
        if hp.has(name):
            n = max(n_rot // 2, *hp.tensors[name].shape)  # of layers that rotate more columns
            return hp.read(name, n)[: n_rot // 2]
    return None


@dataclass(frozen=True, slots=True)
class Scaling:
    """Scaling of rotary frequencies beyond the original context.

    `kind` is "none", "linear", "yarn" or "longrope"; positions are divided by `factor`. `attn_factor` multiplies cos
    and sin. The rest is YaRN's: between `beta_fast` and `beta_slow` turns over `n_ctx_orig` positions, frequencies
    change gradually from kept to divided; the columns of these bounds are rounded outwards unless `whole` is False (as
    gpt-oss was trained; a key of pyllm's own, unknown to llama.cpp).
    """

    kind: str
    factor: float
    attn_factor: float
    n_ctx_orig: int
    beta_fast: float
    beta_slow: float
    log_multiplier: float
    whole: bool = True

    @classmethod
    def read(cls, hp: HParams, n_ctx_train: int) -> Scaling:
        """Read from the metadata keys `rope.scaling.*`."""
        kind = hp.text("rope.scaling.type", "linear")
        if kind not in ("none", "linear", "yarn", "longrope"):
            raise ModelError(f"rope scaling {kind!r} is unknown; known are none, linear, yarn and longrope")
        factor = hp.number("rope.scaling.factor", hp.number("rope.scale_linear", 1.0))
        scaling = cls(
            kind=kind,
            factor=1.0 if kind in ("none", "longrope") else factor,
            attn_factor=hp.number("rope.scaling.attn_factor", 1.0),
            n_ctx_orig=hp.integer("rope.scaling.original_context_length", n_ctx_train),
            beta_fast=hp.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=hp.number("rope.scaling.yarn_beta_slow", 1.0),
            log_multiplier=hp.number("rope.scaling.yarn_log_multiplier", 0.0),
            whole=hp.flag("rope.scaling.yarn_truncate", True),
        )
        if min(scaling.factor, scaling.attn_factor, scaling.beta_fast, scaling.beta_slow) <= 0:
            raise ModelError(f"a rope scaling is negative: {scaling!r}")
        return scaling

    def __str__(self) -> str:
        return f"{self.kind} by {self.factor:g}" if self.factor != 1 else self.kind if self.kind == "longrope" else ""

    @classmethod
    def none(cls) -> Scaling:
        """Unscaled frequencies."""
        return cls("none", 1.0, 1.0, 1, 32.0, 1.0, 0.0)

    def apply(self, base: float, n_rot: int, factors: NDArray[np.floating] | None) -> tuple[tuple[float, ...], float]:
        """Returns (frequencies [n_rot / 2], the factor of cos and sin). `factors` [n_rot / 2] divide frequencies."""
        if not base > 1 or n_rot < 2 or n_rot % 2:
            raise ModelError(f"rotary positions on {n_rot} columns with base {base} make no sense")
        kept = base ** -(np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
        with np.errstate(all="ignore"):
            if factors is not None:
                kept = kept / factors
            scaled, mscale = self._scaled(kept, base, n_rot)
            if not np.isfinite(scaled.astype(np.float32)).all():
                raise ModelError("rotary frequencies are not finite: the file's rope factors or scaling are broken")
        return as_inv_freq(scaled), mscale * self.attn_factor

    def _scaled(self, kept: NDArray[np.floating], base: float, n_rot: int) -> tuple[NDArray[np.floating], float]:
        divided = kept / self.factor
        if self.kind != "yarn":
            return divided, 1.0
        share = self._share_kept(base, n_rot)
        return divided * (1 - share) + kept * share, self._yarn_mscale()

    def _share_kept(self, base: float, n_rot: int) -> NDArray[np.float64]:
        """Share kept of each frequency, [n_rot / 2]: 1: kept, 0: divided, with a ramp in between."""

        def column(turns: float) -> float:
            return n_rot * math.log(self.n_ctx_orig / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = column(self.beta_fast), column(self.beta_slow)
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        low, high = max(0.0, first), min(n_rot - 1.0, last)
        ramp = (np.arange(n_rot // 2) - low) / max(0.001, high - low)
        return 1.0 - np.clip(ramp, 0.0, 1.0)

    def _yarn_mscale(self) -> float:
        if self.factor <= 1:
            return 1.0
        grown = 0.1 * math.log(self.factor)
        return (1 + grown) / (1 + self.log_multiplier * grown)
