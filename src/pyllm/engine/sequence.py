"""The engine's sequences: tokens, pages, and output that the consumer has not taken yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.cache import ROOT
from pyllm.engine.request import FinishReason, GenerationRequest
from pyllm.sampling import Sampler

RowCallback = Callable[[int, NDArray[np.float32]], None]
"""take(token of the first row, rows [n, n_vocab]); the rows are overwritten by the next step."""


class Sequence:
    """Tokens whose keys and values are (or will be) in pages. Changed only by the thread that holds the turn, except
    where noted.

    tokens[:n_tokens] are known; the KV cache of the first n_computed is in `pages`, and the first n_published pages are
    shared. While it runs, it has pages for all known tokens.
    """

    __slots__ = (
        "cancelled",
        "common",
        "error",
        "finish_reason",
        "finished_at",
        "first_token_at",
        "hidden",
        "leader",
        "n_cached",
        "n_computed",
        "n_given",
        "n_listed",
        "n_prompt",
        "n_published",
        "n_rows",
        "n_step",
        "n_tokens",
        "number",
        "outputs",
        "pages",
        "row",
        "running",
        "started_at",
        "tokens",
    )

    hidden: bool
    """Whether hidden states are wanted, not logits."""
    shares = False
    """Whether it takes part in prefix sharing."""

    def __init__(self, number: int, tokens: NDArray[np.int32], capacity: int) -> None:
        self.number = number
        """Order of arrival."""
        self.tokens = np.empty(capacity, np.int32)
        self.tokens[: len(tokens)] = tokens
        self.n_prompt = self.n_given = self.n_tokens = len(tokens)
        self.n_computed = 0
        self.pages: list[int] = []
        self.n_published = 0
        self.n_cached = 0
        self.running = False
        self.hidden = False
        # Its tokens and output rows in this step.
        self.n_step = 0
        self.n_rows = 0
        # Its row of the batch's page tables, and the number of its pages there.
        self.row = -1
        self.n_listed = 0
        # The sequence whose prompt it waits for, and the number of common pages.
        self.leader: Sequence | None = None
        self.common = 0
        # Any thread may set `cancelled` and take outputs.
        self.cancelled = False
        self.outputs: deque[Any] = deque()
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.finished_at: float | None = None

    @property
    def generates(self) -> bool:
        """Whether the next token to compute is a generated one (decode): not of the prompt, nor kept by a context
        shift."""
        return self.n_computed >= self.n_given

    @property
    def remaining(self) -> int:
        """Number of known tokens that are not computed yet."""
        return self.n_tokens - self.n_computed

    @property
    def back_pressured(self) -> bool:
        """Whether the consumer's queue is full: the sequence does not run, and is preempted first."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether its consumer need not wait."""
        return bool(self.outputs) or self.cancelled or self.finish_reason is not None

    @property
    def parent(self) -> int:
        """The last published page."""
        return self.pages[self.n_published - 1] if self.n_published else ROOT

    def rows_of(self, n: int) -> int:
        """Output rows of the next n tokens."""
        raise NotImplementedError

    def most(self, rows: int) -> int:
        """Most next tokens with at most this many output rows."""
        raise NotImplementedError

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        self.error = error
        self.finished_at = perf_counter()
        self.finish_reason = reason


class Answer(Sequence):
    """A prompt and its generated continuation."""

    __slots__ = ("limit", "n_generated", "n_most", "request", "sampler")

    shares = True

    def __init__(
        self, number: int, tokens: NDArray[np.int32], request: GenerationRequest, sampler: Sampler, limit: int
    ) -> None:
        room = limit + 1 - len(tokens)
        asked = room if request.max_tokens is None else request.max_tokens
        super().__init__(number, tokens, min(limit, len(tokens) + asked) + 1)
        self.request = request
        self.sampler = sampler
        self.limit = limit
        """Tokens that the context holds; the last generated one need not be in it."""
        self.n_generated = 0
        self.n_most: int | None = min(asked, room)
        """Most tokens to generate; None: unlimited, because the context is shifted."""
        if request.context_shift:
            self.n_most = request.max_tokens

    @property
    def back_pressured(self) -> bool:
        # Without a reader, an answer is computed no further than one context.
        return len(self.outputs) >= self.limit

    def content_with(self, n: int) -> bool:
        """Whether the n largest logits determine the next token, and all that is reported of it."""
        needed = self.sampler.n_needed(self.tokens[: self.n_tokens])
        return needed is not None and max(needed, self.request.logprobs or 0) <= n

    def rows_of(self, n: int) -> int:
        return int(n == self.n_tokens - self.n_computed)

    def most(self, rows: int) -> int:
        return self.remaining if rows else self.remaining - 1


class Scoring(Sequence):
    """Tokens whose rows are all wanted, block by block, as the consumer asks for them."""

    __slots__ = ("n_given", "wanted")

    def __init__(self, number: int, tokens: NDArray[np.int32], hidden: bool) -> None:
        super().__init__(number, tokens, len(tokens))
        self.hidden = hidden
        self.n_given = 0
        """Rows handed out."""
        self.wanted = False
        """Whether the consumer waits for a block; set by it, cleared when one is ready."""

    @property
    def back_pressured(self) -> bool:
        return not self.wanted

    def rows_of(self, n: int) -> int:
        return max(0, self.n_computed + n - max(self.n_given, self.n_computed))

    def most(self, rows: int) -> int:
        return min(self.remaining, max(self.n_given, self.n_computed) - self.n_computed + rows)


class StreamedScoring(Scoring):
    """Tokens whose rows, from token `first` on, are passed to a callback in the computing thread."""

    __slots__ = ("take",)

    def __init__(self, number: int, tokens: NDArray[np.int32], first: int, take: RowCallback) -> None:
        super().__init__(number, tokens, hidden=False)
        self.n_given = first
        self.take = take

    @property
    def generates(self) -> bool:
        return False

    @property
    def back_pressured(self) -> bool:
        return False


def common_tokens(a: Sequence, b: Sequence) -> int:
    """Length of the common prefix of two sequences, in tokens."""
    n = min(a.n_tokens, b.n_tokens)
    different = np.flatnonzero(a.tokens[:n] != b.tokens[:n])
    return int(different[0]) if len(different) else n
