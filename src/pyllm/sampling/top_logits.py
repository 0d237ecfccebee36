"""The largest logits of a row, or of several rows, in place of all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm.sampling.select import Floats as Floats


class TopLogits(NamedTuple):
    """The n largest logits of a vocabulary, largest first, equal ones by id; NaN is replaced by -inf.

    A token's probability is exp(logit - log_sum). Fields are of one row, or have an axis of rows before the others.
    """

    ids: NDArray[np.int32]
    """[n]"""
    logits: Floats
    """[n]"""
    log_sum: float | np.float32 | Floats
    """Logarithm of the sum of e^logit over the whole vocabulary; NaN where a logit is NaN or inf."""

    def row(self, i: int) -> TopLogits:
        """One of several rows."""
        assert isinstance(self.log_sum, np.ndarray), "these are of one row"
        return TopLogits(self.ids[i], self.logits[i], float(self.log_sum[i]))
