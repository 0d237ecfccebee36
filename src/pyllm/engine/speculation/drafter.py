"""The contract of drafters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Many
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch
from pyllm.engine.sequence import Sequence


class Offer(NamedTuple):
    """What a drafter could guess of a sequence's next tokens."""

    kind: int
    """Which estimate of its being right applies, below `Drafter.n_kinds`."""
    n: int
    """Most tokens; 0: none."""


class Drafter(ABC):
    """Guesses the next tokens of sequences. Called by the computing thread between two steps."""

    priors: tuple[float, ...]
    """For each kind of offers, how likely a guess is right whose predecessors are, before anything was measured."""
    is_free: bool
    """Whether guesses take no time, so that their being right is learned where they are not verified, too."""
    reads_features = False
    """Whether it follows each step (`follow`)."""

    @abstractmethod
    def offer(self, seq: Sequence) -> Offer:
        """What it could guess of a sequence, all of whose tokens but the last one are computed."""

    @abstractmethod
    def draft(self, wanted: Many[tuple[Sequence, int]]) -> list[list[int]]:
        """Guesses for sequences, of each at most so many as were offered."""

    def follow(self, steps: Many[Sequence], batch: Batch, features: NDArray[np.float32]) -> None:  # noqa: B027
        """Read along: a step is computed and not committed yet. `features` [n_tokens, n_embd]: what heads read of each
        token (`Program.features`); the next step overwrites them."""

    def seconds(self, n_seqs: int) -> float:
        """How long it takes to guess one more token of so many sequences."""
        return 0.0

    def memory(self) -> dict[str, int]:
        """Bytes held, by purpose, as `Executable.memory` has them."""
        return {}

    def close(self) -> None:  # noqa: B027
        """Free what it holds."""
