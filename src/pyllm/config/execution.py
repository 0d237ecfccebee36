"""Capacities that a backend compiles a model for."""

from __future__ import annotations

from dataclasses import field

from pyllm.arguments import settle
from pyllm.config.loading import KVDtype, Progress
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class ExecutionOptions:
    """Capacities of an executable. KV memory holds n_pages * page_size positions over all sequences."""

    n_pages: int
    page_size: int = 32
    max_tokens: int = 512
    """Most tokens of one step."""
    max_seqs: int = 16
    """Most sequences of one step."""
    max_rows: int = 128
    """Most output rows of one step."""
    n_slots: int = 0
    """Slots for recurrent states; none for a model without such states."""
    max_drafts: int = 0
    """Most drafted tokens of one step, beside one generated token of each sequence."""
    kv_dtype: KVDtype = "f16"
    """Type of the cache's numbers; a backend has some of them (`Backend.kv_dtypes`)."""
    device: int = 0
    """Which of the backend's devices, in the order of `Backend.devices()`."""
    n_threads: int = 1
    many_rows: bool = False
    """Output rows of prompts take the prefill path, where it differs from decode; scoring sets this."""
    collect_importance: bool = False
    """Sum the squares of every matrix product's input; `Executable.importance` returns the sums."""
    progress: Progress | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        settle(self)

    @property
    def max_saves(self) -> int:
        """Most states that one step saves: at the end of each sequence's tokens, after drafts, checkpoints."""
        return 4 * self.max_seqs + self.max_rows if self.n_slots else 0
