"""Log probabilities of the model's own distribution, before any step of sampling changed it."""

from __future__ import annotations

import math

import numpy as np

from pyllm.sampling.select import Floats, Peaks
from pyllm.sampling.top_logits import TopLogits


def logprobs(logits: Floats | TopLogits, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
    """Log probabilities (natural): that of `token`, and (id, log probability) of the `n_top` most likely, in order.

    NaN where a logit is NaN or inf. Given the largest logits alone, `token` must be among them, and n_top at most as
    many.
    """
    if isinstance(logits, TopLogits):
        norm = float(logits.log_sum)
        own = float(logits.logits[logits.ids == token][0])
        return own - norm, [
            (int(i), float(x) - norm) for i, x in zip(logits.ids[:n_top], logits.logits[:n_top], strict=True)
        ]
    peaks = Peaks(logits)
    with np.errstate(invalid="ignore"):
        total = float(np.exp(logits - np.float32(peaks.top)).sum())
    norm = peaks.top + math.log(total) if total > 0 else math.nan
    top = peaks.largest(n_top) if n_top else ()
    return float(logits[token]) - norm, [(int(i), float(logits[i]) - norm) for i in top]
