"""The steps of sampling, one small function each. Their meaning is llama.cpp's (`llama-sampling.cpp`).

The first steps change logits [n_vocab] and return new ones; the others narrow down `Candidates`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm.sampling.select import Floats, Ids, Peaks, heaviest_set, lowest_set

LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = np.finfo(np.float32).tiny
_ROWS = 64
_FEW = 4096


class Candidates(NamedTuple):
    """Tokens that may still be chosen. `ids` None: all of the vocabulary, in order."""

    logits: Floats
    ids: NDArray[np.integer] | None
    top: float
    """The largest of the logits; finite."""
    ordered: bool = False
    """Whether the largest comes first."""

    def take(self, index: Ids | slice, ordered: bool) -> Candidates:
        """The candidates at `index`, which must hold the largest unless `top` is given."""
        logits = self.logits[index]
        if self.ids is not None:
            ids = self.ids[index]
        else:
            ids = np.arange(len(self.logits))[index] if isinstance(index, slice) else index
        return Candidates(logits, ids, float(logits[0] if ordered else logits.max()), ordered)

    def weights(self) -> Floats:
        """Unnormalized probabilities; the largest is 1."""
        return np.exp(self.logits - np.float32(self.top) if self.top else self.logits)


def logit_bias(logits: Floats, ids: Ids, bias: Floats) -> Floats:
    """`bias` added to the logits of `ids`, which are distinct."""
    logits = logits.copy()
    logits[ids] += bias
    return logits


def penalties(logits: Floats, seen: NDArray[np.integer], repeat: float, presence: float, frequency: float) -> Floats:
    """Logits with those of `seen` tokens lowered: divided (multiplied, if negative) by `repeat`, then less `presence`
    and less `frequency` for each occurrence."""
    if not len(seen):
        return logits
    ids, counts = np.unique(seen, return_counts=True)
    x = logits[ids].astype(np.float64)
    y = np.where(x <= 0, x * repeat, x / repeat) - counts * frequency - presence
    logits = logits.copy()
    # A large logit must not overflow, and a forbidden token stays forbidden.
    logits[ids] = np.where(x == -np.inf, x, np.clip(y, -LARGEST, LARGEST))
    return logits


def top_k(c: Candidates, k: int, peaks: Peaks | None = None) -> Candidates:
    """The k most likely, most likely first; equally likely ones by id. `peaks`: of c.logits, where known."""
    return c.take((peaks or Peaks(c.logits)).largest(k), ordered=True)


def typical(c: Candidates, p: float) -> Candidates:
    """The tokens whose surprise is closest to the expected one, the fewest that exceed probability p.

    Meister et al. 2022, "Locally Typical Sampling", https://arxiv.org/abs/2202.00666.
    """
    w = c.weights()
    total = float(w.sum())
    surprise = np.float32(c.top + math.log(total)) - c.logits
    # The largest number replaces inf, the surprise of probability 0, so that 0 times it is 0.
    expected = float(np.dot(w, np.minimum(surprise, np.float32(LARGEST)))) / total
    return c.take(lowest_set(np.abs(surprise - np.float32(expected)), w, p * total), ordered=False)


def top_p(c: Candidates, p: float, peaks: Peaks | None = None) -> Candidates:
    """The fewest most likely tokens that reach probability p. `peaks`: of c.logits, where known.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", https://arxiv.org/abs/1904.09751.
    """
    w = c.weights()
    if c.ordered:
        reached = np.cumsum(w, dtype=np.float64)
        return c.take(slice(int(reached.searchsorted(p * reached[-1])) + 1), ordered=True)
    mass = p * float(w.sum())
    if peaks is not None:
        # A few tokens usually hold most of the probability; finding them is faster than sorting all.
        for distance in (3.0, 6.0, 10.0):
            near = peaks.at_least(c.top - distance)
            if 4 * len(near) > len(w):
                break
            inside = w[near]
            if inside.sum() > mass:
                return c.take(near[heaviest_set(inside, mass)], ordered=False)
    return c.take(heaviest_set(w, mass), ordered=False)


def min_p(c: Candidates, p: float, peaks: Peaks | None = None) -> Candidates:
    """The tokens at least p times as likely as the most likely one. `peaks`: of c.logits, where known."""
    least = c.top + math.log(p)
    if peaks is not None:
        return c.take(peaks.at_least(least), ordered=False)
    return c.take(np.flatnonzero(c.logits >= least), c.ordered)


def temperature(c: Candidates, t: float) -> Candidates:
    """Logits divided by t > 0, shifted so that the largest is 0."""
    logits = c.logits - np.float32(c.top)
    logits /= max(np.float32(t), _SMALLEST)
    return c._replace(logits=logits, top=0.0)


def draw(c: Candidates, u: float) -> int:
    """The token at quantile u (0 <= u < 1) of the candidates' distribution, in their order."""
    w = c.weights()
    n = len(w) // _ROWS if len(w) > _FEW else 0
    if not n:
        index, _ = _at(w, u)
    else:
        # First a column of a matrix of weights, then an entry: a running sum over all takes far longer.
        body, tail = w[: n * _ROWS].reshape(_ROWS, n), w[n * _ROWS :]
        column, u = _at(np.append(body.sum(axis=0), tail.sum()), u)
        index, _ = _at(body[:, column] if column < n else tail, u)
        index = index * n + column if column < n else n * _ROWS + index
    return index if c.ids is None else int(c.ids[index])


def _at(weights: Floats, u: float) -> tuple[int, float]:
    """Index of the weight at quantile u (never one of 0), and the quantile within it."""
    reached = np.cumsum(weights, dtype=np.float64)
    total = float(reached[-1])
    index = min(int(reached.searchsorted(u * total, "right")), int(reached.searchsorted(total)))
    weight = float(weights[index])
    return index, min(max((u * total - (float(reached[index]) - weight)) / weight, 0.0), 1.0)
