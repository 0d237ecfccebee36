"""The few largest of a row of logits, where they stand for all of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm.sampling.select import Floats


class Largest(NamedTuple):
    """The n largest logits of a vocabulary, largest first, equal ones by id; NaN counts as -inf, and is given as it."""

    ids: NDArray[np.int32]
    logits: Floats
    log_sum: float
    """Logarithm of the sum of e^logit over the whole vocabulary; NaN where that has NaN or inf in it."""

    def places(self, tokens: NDArray[np.integer]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where each token is among the ids, and whether it is; the place of one that is not means nothing."""
        order = self.ids.argsort()
        places = order[np.minimum(self.ids.searchsorted(tokens, sorter=order), len(order) - 1)]
        return places, self.ids[places] == tokens
