"""The largest logits of a row, in place of all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm.sampling.select import Floats as Floats


class Largest(NamedTuple):
    """The n largest logits of a vocabulary, largest first, equal ones by id; NaN is replaced by -inf."""

    ids: NDArray[np.int32]
    logits: Floats
    log_sum: float
    """Logarithm of the sum of e^logit over the whole vocabulary; NaN where a logit is NaN or inf."""

    def places(self, tokens: NDArray[np.integer]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Place of each token among the ids, and whether it is there; the place of a missing one is arbitrary."""
        order = self.ids.argsort()
        places = order[np.minimum(self.ids.searchsorted(tokens, sorter=order), len(order) - 1)]
        return places, self.ids[places] == tokens
