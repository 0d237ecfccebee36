"""The reference backend's rules: `rule(executable, op, batch, state)` computes an op's value from those in `state`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.rules import Rules

F32 = NDArray[np.float32]
State = dict[int, F32]
"""Values by id."""
Rule = Callable[..., F32]

rule: Rules[Rule] = Rules("pyllm.backends.reference.ops", "reference")
