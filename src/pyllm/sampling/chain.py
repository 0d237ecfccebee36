"""A request's sampler: validated settings, a chain of steps, and its random numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pyllm.config import SamplingParams
from pyllm.errors import BackendError, RequestError
from pyllm.sampling import steps
from pyllm.sampling.largest import Largest
from pyllm.sampling.select import Floats, Peaks

_Bias = tuple[NDArray[np.intp], Floats]


class Sampler:
    """Samples one request's tokens. The same seed and logits give the same tokens, whatever the rest of the batch.

    Random numbers are those of `numpy.random.Generator(numpy.random.PCG64(seed)).random()`, one for each token (none at
    temperature 0).
    """

    def __init__(self, params: SamplingParams, n_vocab: int) -> None:
        """Raises RequestError for invalid settings."""
        check(params, n_vocab)
        self.params = p = params
        self.n_vocab = n_vocab
        self.greedy = p.temperature == 0
        self._bias = _bias_arrays(p.logit_bias)
        self._penalized = p.repeat_last_n != 0 and (p.repeat_penalty, p.presence_penalty, p.frequency_penalty) != (
            1.0,
            0.0,
            0.0,
        )
        # Raising a logit may bring up any token; lowering some keeps the order of the others.
        self._lowers = p.repeat_penalty >= 1 and p.presence_penalty >= 0 and p.frequency_penalty >= 0
        self._lowers = (self._lowers or not self._penalized) and all(b <= 0 for b in p.logit_bias.values())
        # np.random is loaded at first use; greedy requests never use it.
        self._random = None if self.greedy else np.random.Generator(np.random.PCG64(p.seed))

    def n_needed(self, seen: NDArray[np.int32]) -> int | None:
        """Number of largest logits that determine the token after `seen` as all logits would; None: all are needed.

        One for greedy sampling, k for `top_k`, and one more for each token whose logit a penalty or bias may lower.
        Without `top_k`, sums over the whole vocabulary decide; where a token's logit may be raised, that logit is
        needed.
        """
        k = 1 if self.greedy else self.params.top_k
        if not k or not self._lowers:
            return None
        if self._penalized:
            k += len(np.unique(self._window(seen)))
        return min(k + len(self.params.logit_bias), self.n_vocab)

    def __call__(self, logits: Floats | Largest, seen: NDArray[np.int32]) -> int:
        """The next token after `seen` (prompt and answer so far). `logits` [n_vocab] are not changed.

        Given the largest logits alone, at least `n_needed`, it chooses the same token, with the same random numbers.
        Raises BackendError where logits are all NaN or -inf, RequestError where logit_bias forbids every token.
        """
        if isinstance(logits, Largest):
            return self._choose_of_largest(logits, seen)
        changed = self._changed(logits, self._window(seen), self._bias)
        if self._random is None:
            best = int(changed.argmax())
            return best if math.isfinite(changed[best]) else int(self._repaired(logits, changed).argmax())
        peaks = Peaks(changed)
        if not math.isfinite(peaks.top):
            peaks = Peaks(self._repaired(logits, changed))
        c = steps.Candidates(peaks.logits, None, peaks.top)
        return self._draw(steps.top_k(c, self.params.top_k, peaks) if self.params.top_k else c, peaks)

    def _choose_of_largest(self, given: Largest, seen: NDArray[np.int32]) -> int:
        k = 1 if self._random is None else self.params.top_k
        ids, logits = given.ids, given.logits
        if self._bias is not None or self._penalized:
            logits = self._changed_largest(given, seen)
        if not math.isfinite(logits.max()):
            logits = self._repaired(given.logits, logits)
        if logits is given.logits:
            ids, logits = ids[:k], logits[:k]
        else:
            order = np.lexsort((ids, -logits))[:k]
            ids, logits = ids[order], logits[order]
        if self._random is None:
            return int(ids[0])
        return self._draw(steps.Candidates(logits, ids, float(logits[0]), ordered=True))

    def _changed_largest(self, given: Largest, seen: NDArray[np.int32]) -> Floats:
        """`_changed` for the largest logits, by their places; other tokens stay behind them."""
        bias = None
        if self._bias is not None:
            places, there = given.places(self._bias[0])
            bias = places[there], self._bias[1][there]
        places, there = given.places(self._window(seen))
        return self._changed(given.logits, places[there], bias)

    def _window(self, seen: NDArray[np.int32]) -> NDArray[np.int32]:
        """The tokens that penalties look back at."""
        n = self.params.repeat_last_n
        return seen if n < 0 else seen[len(seen) - n :] if n < len(seen) else seen

    def _changed(self, logits: Floats, window: NDArray[np.integer], bias: _Bias | None) -> Floats:
        p = self.params
        if bias is not None:
            logits = steps.logit_bias(logits, *bias)
        if self._penalized:
            logits = steps.penalties(logits, window, p.repeat_penalty, p.presence_penalty, p.frequency_penalty)
        return logits

    def _draw(self, c: steps.Candidates, peaks: Peaks | None = None) -> int:
        """Draw one of the candidates, by the steps after top_k. `peaks`: of their logits, where these are all."""
        assert self._random is not None
        # Distances between huge logits may overflow to infinity, which is harmless.
        with np.errstate(over="ignore"):
            return steps.draw(self._narrowed(c, peaks), self._random.random())

    def _narrowed(self, c: steps.Candidates, peaks: Peaks | None) -> steps.Candidates:
        p = self.params
        if p.typical_p < 1:
            c = steps.typical(c, p.typical_p)
        if p.top_p < 1:
            c = steps.top_p(c, p.top_p, peaks if c.ids is None else None)
        if p.min_p > 0:
            c = steps.min_p(c, p.min_p, peaks if c.ids is None else None)
        return steps.temperature(c, p.temperature) if p.temperature != 1 else c

    def _repaired(self, raw: Floats, changed: Floats) -> Floats:
        """Logits with NaN replaced by -inf, and inf by the largest number. Raises BackendError where no candidate is
        left."""
        repaired = np.nan_to_num(changed, nan=-np.inf, posinf=steps.LARGEST, neginf=-np.inf)
        if repaired.max() == -np.inf:
            if np.isnan(raw).all() or not (raw > -np.inf).any():
                raise BackendError("the model's logits are all NaN or -inf; the file may be damaged")
            raise RequestError("logit_bias forbids every token; leave at least one")
        return repaired


def check(params: SamplingParams, n_vocab: int) -> None:
    """Raise RequestError for invalid settings."""
    p = params
    for name in ("typical_p", "top_p", "min_p"):
        if not 0 <= getattr(p, name) <= 1:
            raise RequestError(f"{name} must be between 0 and 1, not {getattr(p, name)}")
    for name in ("presence_penalty", "frequency_penalty"):
        if not math.isfinite(getattr(p, name)):
            raise RequestError(f"{name} must be a finite number, not {getattr(p, name)}")
    if not (0 <= p.temperature < math.inf):
        raise RequestError(f"temperature must be 0 (greedy) or a positive number, not {p.temperature}")
    if not (0 < p.repeat_penalty < math.inf):
        raise RequestError(f"repeat_penalty must be a positive number (1: off), not {p.repeat_penalty}")
    if p.top_k < 0:
        raise RequestError(f"top_k must be 1 or more, or 0 for no limit, not {p.top_k}")
    if p.repeat_last_n < -1:
        raise RequestError(f"repeat_last_n must be 0 or more, or -1 for all, not {p.repeat_last_n}")
    if p.seed is not None and p.seed < 0:
        raise RequestError(f"seed must be 0 or more, or None for a fresh one, not {p.seed}")
    for token, bias in p.logit_bias.items():
        if not 0 <= token < n_vocab:
            raise RequestError(f"logit_bias names token {token}; the vocabulary has 0 to {n_vocab - 1}")
        if not bias < math.inf:
            raise RequestError(f"logit_bias of token {token} must be a number or -inf, not {bias}")


def _bias_arrays(bias: Mapping[int, float]) -> _Bias | None:
    if not bias:
        return None
    values = np.array(list(bias.values()), np.float64)
    # Larger ones have the same effect, and their sum with a logit stays finite.
    values = np.where(values == -np.inf, values, np.clip(values, -1e30, 1e30))
    return np.fromiter(bias.keys(), np.intp, len(bias)), values.astype(np.float32)
