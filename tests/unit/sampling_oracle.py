"""What the steps of sampling mean, written plainly in numpy and float64, over the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pyllm.config import SamplingParams

X = NDArray[np.float64]
"""Logits; -inf for what is left out."""


def probabilities(x: X) -> X:
    e = np.exp(x - x.max())
    return e / e.sum()


def by_logit(x: X) -> NDArray[np.intp]:
    return np.lexsort((np.arange(len(x)), -x))


def only(x: X, kept: NDArray[np.integer] | NDArray[np.bool_]) -> X:
    out = np.full(len(x), -np.inf)
    out[kept] = x[kept]
    return out


def first_of(x: X, order: NDArray[np.intp], mass: float, strictly: bool) -> X:
    """The first tokens in this order, as few as reach (or exceed) a mass."""
    total = np.cumsum(probabilities(x)[order])
    return only(x, order[: int(total.searchsorted(mass, "right" if strictly else "left")) + 1])


def entropy(x: X) -> float:
    p = probabilities(x)
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def penalties(p: SamplingParams, x: X, seen: list[int]) -> X:
    x = x.copy()
    window = seen if p.repeat_last_n < 0 else seen[len(seen) - p.repeat_last_n :] if p.repeat_last_n else []
    for token in set(window):
        if x[token] > -np.inf:
            x[token] = x[token] * p.repeat_penalty if x[token] <= 0 else x[token] / p.repeat_penalty
            x[token] -= window.count(token) * p.frequency_penalty + p.presence_penalty
    return x


def dry(p: SamplingParams, x: X, seen: list[int], breakers: Sequence[Sequence[int]]) -> X:
    n = p.dry_penalty_last_n
    window = seen if n < 0 else seen[max(0, len(seen) - n) :]
    # The longest stretch of last tokens that holds no breaker: back to the last breaker's end.
    limit = len(window)
    for back in range(len(window)):
        at = len(window) - 1 - back
        ends = [at + len(b) for b in breakers if window[at : at + len(b)] == list(b)]
        if ends:
            limit = len(window) - max(ends)
            break
    singles = {b[0] for b in breakers if len(b) == 1}
    longest: dict[int, int] = {}
    for at in range(1, len(window)):  # the token at `at` followed a repetition
        length = 0
        while length < at and window[at - 1 - length] == window[len(window) - 1 - length]:
            length += 1
        length = min(length, limit)
        if length >= p.dry_allowed_length and window[at] not in singles:
            longest[window[at]] = max(longest.get(window[at], 0), length)
    x = x.copy()
    for token, length in longest.items():
        x[token] -= p.dry_multiplier * p.dry_base ** (length - p.dry_allowed_length)
    return x


def top_n_sigma(p: SamplingParams, x: X) -> X:
    possible = x[x > -np.inf]
    return only(x, x >= x.max() - p.top_n_sigma * possible.std())


def top_k(p: SamplingParams, x: X) -> X:
    return only(x, by_logit(x)[: p.top_k])


def tfs_z(p: SamplingParams, x: X) -> X:
    order = by_logit(x)[: int((x > -np.inf).sum())]
    if len(order) <= 2:
        return x
    bends = np.abs(np.diff(np.diff(probabilities(x)[order])))
    if not bends.sum():
        return x
    reached = np.cumsum(bends) / bends.sum()
    return only(x, order[: 1 + int((reached <= p.tfs_z).sum())])


def typical_p(p: SamplingParams, x: X) -> X:
    with np.errstate(divide="ignore"):
        surprise = -np.log(probabilities(x))
    return first_of(x, np.argsort(np.abs(surprise - entropy(x)), kind="stable"), p.typical_p, strictly=True)


def top_p(p: SamplingParams, x: X) -> X:
    return first_of(x, by_logit(x), p.top_p, strictly=False)


def at_least(x: X, least: float) -> X:
    """The tokens of that probability, and the most likely one."""
    kept = probabilities(x) >= least
    kept[by_logit(x)[0]] = True
    return only(x, kept)


def top_a(p: SamplingParams, x: X) -> X:
    return at_least(x, p.top_a * probabilities(x).max() ** 2)


def min_p(p: SamplingParams, x: X) -> X:
    return at_least(x, p.min_p * probabilities(x).max())


def epsilon_cutoff(p: SamplingParams, x: X) -> X:
    return at_least(x, p.epsilon_cutoff)


def eta_cutoff(p: SamplingParams, x: X) -> X:
    return at_least(x, min(p.eta_cutoff, math.sqrt(p.eta_cutoff) * math.exp(-entropy(x))))


def xtc(p: SamplingParams, x: X) -> X:
    """What it leaves when it strikes."""
    order = by_logit(x)
    n = int((probabilities(x)[order] >= p.xtc_threshold).sum())
    return only(x, order[n - 1 :]) if n > 1 else x


def smoothing(p: SamplingParams, x: X) -> X:
    d = x - x.max()
    k, s = p.smoothing_factor * (3 - p.smoothing_curve) / 2, p.smoothing_factor * (p.smoothing_curve - 1) / 2
    with np.errstate(invalid="ignore"):
        return np.where(x == -np.inf, -np.inf, x.max() + d * d * (s * d - k))


def temperature(p: SamplingParams, x: X) -> X:
    t = p.temperature
    n = int((x > -np.inf).sum())
    if p.dynatemp_range and n > 1:
        low, high = max(0.0, t - p.dynatemp_range), t + p.dynatemp_range
        t = low + (high - low) * (entropy(x) / math.log(n)) ** p.dynatemp_exponent
    return x / max(t, 1e-30)


def mirostat(p: SamplingParams, x: X, mu: float) -> X:
    order = by_logit(x)
    if p.mirostat == 2:
        kept = -np.log2(np.maximum(probabilities(x), 1e-300)) <= mu
        kept[order[0]] = True
        return only(x, kept)
    chances = probabilities(x)[order][:100]
    ratios = np.log(np.arange(2, len(chances) + 1) / np.arange(1, len(chances)))
    steps = np.log(chances[:-1] / chances[1:])
    s = (ratios * steps).sum() / (ratios**2).sum()
    k = (((s - 1) * 2**mu) / (1 - len(x) ** -(s - 1))) ** (1 / s)
    return only(x, order[: max(1, int(k))])


def adaptive_p(x: X, target: float) -> X:
    d = np.abs(probabilities(x) - target) / 0.3
    return np.where(x > -np.inf, 5 - 10 * d * d / (1 + d), -np.inf)


STEPS: dict[str, Callable[[SamplingParams, X], X]] = {
    f.__name__: f
    for f in (
        top_n_sigma, top_k, tfs_z, typical_p, top_p, top_a, min_p, epsilon_cutoff, eta_cutoff, smoothing, temperature,
    )
}  # fmt: skip
ORDER = (
    "penalties", "dry", "top_n_sigma", "top_k", "tfs_z", "typical_p", "top_p", "top_a", "min_p", "epsilon_cutoff",
    "eta_cutoff", "xtc", "smoothing", "temperature",
)  # fmt: skip
"""llama.cpp's order, where it has a step."""
OFF = SamplingParams(top_k=0, top_p=1.0, min_p=0.0, temperature=1.0, seed=1)


def is_on(name: str, p: SamplingParams) -> bool:
    """Whether a step's settings are not the neutral ones."""
    fields = {"dry": ["dry_multiplier"], "xtc": ["xtc_probability"], "smoothing": ["smoothing_factor"]}
    fields["penalties"] = ["repeat_penalty", "presence_penalty", "frequency_penalty"]
    fields["temperature"] = ["temperature", "dynatemp_range"]
    return any(getattr(p, field) != getattr(OFF, field) for field in fields.get(name, [name]))


def distribution(
    p: SamplingParams, logits: NDArray[np.float32], seen: Sequence[int] = (), breakers: Sequence[Sequence[int]] = ()
) -> X:
    """The probability of each token by the whole chain, for all but the steps that choose by what they remember."""
    x = logits.astype(np.float64)
    for token, bias in p.logit_bias.items():
        x[token] += bias
    x[list(p.banned_tokens)] = -np.inf
    return _after(p, x, [n for n in p.samplers or ORDER if is_on(n, p)], list(seen), breakers)


def _after(p: SamplingParams, x: X, names: list[str], seen: list[int], breakers: Sequence[Sequence[int]]) -> X:
    for at, name in enumerate(names):
        if name == "penalties":
            x = penalties(p, x, seen)
        elif name == "dry":
            x = dry(p, x, seen, breakers)
        elif name == "xtc":
            struck, spared = (_after(p, y, names[at + 1 :], seen, breakers) for y in (xtc(p, x), x))
            return p.xtc_probability * struck + (1 - p.xtc_probability) * spared
        else:
            x = STEPS[name](p, x)
    return probabilities(x)
