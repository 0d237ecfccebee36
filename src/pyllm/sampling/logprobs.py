"""Log probabilities of the model's own distribution, before any step of sampling changed it."""

from __future__ import annotations

import math

import numpy as np

from pyllm.sampling.select import Floats, Peaks


def logprobs(logits: Floats, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural logarithms of probabilities: that of `token`, and (id, that) of the `n_top` most likely, in order.

    NaN where the logits hold no distribution (NaN or inf among them).
    """
    peaks = Peaks(logits)
    with np.errstate(invalid="ignore"):
        total = float(np.exp(logits - np.float32(peaks.top)).sum())
    norm = peaks.top + math.log(total) if total > 0 else math.nan
    top = peaks.largest(n_top) if n_top else ()
    return float(logits[token]) - norm, [(int(i), float(logits[i]) - norm) for i in top]
