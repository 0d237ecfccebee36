"""The engine's sequences: tokens, pages, and the consumer of their rows."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence as Many
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllm.cache import ROOT
from pyllm.engine.request import FinishReason

if TYPE_CHECKING:
    from pyllm.engine.mailbox import Mailbox
    from pyllm.engine.rows import SequenceRows


class Consumer(ABC):
    """Takes a sequence's rows. Called by the computing thread."""

    hidden = False
    """Whether hidden states are wanted, not logits."""
    shares = False
    """Whether pages are shared with other sequences of a common prefix."""
    limit = sys.maxsize
    """Tokens that the context holds; when there are more, it is shifted. The last one generated need not be in it."""
    paced = False
    """Whether a reader follows it as it comes, so that prompts may not hold it up for long."""
    n_keep = 0
    """Tokens that a context shift keeps."""
    mailbox: Mailbox[Any]
    """Items that the reader has not taken yet."""

    @property
    def back_pressured(self) -> bool:
        """Whether its queue is full: then the sequence does not run, and is preempted first."""
        return False

    def content_with(self, seq: Sequence, n: int) -> bool:
        """Whether the n largest logits of each row do as well as all."""
        return False

    def most_drafts(self, seq: Sequence) -> int:
        """How many guesses of its next tokens may be verified together."""
        return 0

    def admits(self, seq: Sequence, draft: Many[int]) -> int:
        """How many of these guesses, at most `most_drafts`, are worth it."""
        return len(draft)

    @abstractmethod
    def take(self, seq: Sequence, rows: SequenceRows) -> FinishReason | None:
        """Take the rows of the tokens from `seq.next_row` on; the next step overwrites them. Returns why the sequence
        ends, or None: it goes on. Advances `seq.next_row`; may append a token."""

    def finish(self, reason: FinishReason) -> None:  # noqa: B027
        """Put what was held back until the end."""


class Sequence:
    """Tokens whose KV is (or will be) in pages. Changed only by the computing thread, except where said.

    tokens[:n_tokens] are known, KV of the first n_computed is in `pages`, of which the first n_published are shared.
    While it is running, it has pages for all known tokens. Rows are wanted of all tokens from `next_row` on. The
    n_draft tokens after the known ones are guesses, which a step computes with the last known one: their rows tell how
    many were right, and what is computed of the others is overwritten.
    """

    __slots__ = (
        "back_pressured",
        "borders",
        "cancelled",
        "common",
        "consumer",
        "deadline",
        "drafting",
        "encoded",
        "error",
        "finish_reason",
        "finished_at",
        "first_token_at",
        "last_checkpoint",
        "leader",
        "n_accepted",
        "n_cached",
        "n_computed",
        "n_draft",
        "n_drafted",
        "n_given",
        "n_listed",
        "n_matched",
        "n_prefix",
        "n_prompt",
        "n_published",
        "n_rows",
        "n_step",
        "n_tokens",
        "next_row",
        "number",
        "pages",
        "rank",
        "row",
        "running",
        "saved_from",
        "saves",
        "slot",
        "source",
        "started_at",
        "tokens",
    )

    def __init__(
        self,
        number: int,
        tokens: NDArray[np.int32],
        consumer: Consumer,
        first_row: int,
        *,
        capacity: int | None = None,
        n_prefix: int | None = None,
        priority: int = 0,
        deadline: float = inf,
    ) -> None:
        """`first_row`: the first token whose row is wanted. `capacity`: tokens that it may come to hold."""
        self.number = number
        self.rank = -priority, number
        """By priority, then in order of arrival."""
        self.deadline = deadline
        """When it ends at the latest, by `perf_counter`."""
        self.consumer = consumer
        self.tokens = np.empty(capacity or len(tokens), np.int32)
        self.tokens[: len(tokens)] = tokens
        self.n_prompt = self.n_given = self.n_tokens = len(tokens)
        """n_given: tokens that it did not make itself since they were last computed: a prompt, or what a shift left."""
        self.n_prefix = n_prefix
        """Tokens of the prompt that later ones are expected to begin with, where that is known; nothing depends on it.

        Pages are reused by their age alone: what follows the prefix is not given up earlier, because the next prompt of
        a chat, or of a loop of tools, mostly begins with all of this one. The hint is for states that cannot be cut off
        at any token, as pages can: a recurrent state is kept where a later prompt may branch off."""
        self.source: NDArray[np.int32] | None = None
        """What the encoder reads before its first step, in a model that has one."""
        self.encoded = False
        """Whether its pages hold what the encoder left."""
        self.next_row = first_row
        self.n_computed = 0
        self.pages: list[int] = []
        self.n_published = 0
        self.n_cached = self.n_matched = 0
        """Tokens that it went on after when it started, and those whose pages were there; with recurrent states these
        may be more."""
        # Recurrent states (`States`): the slot of its state, -1: zeros; what the step saves, as (tokens included,
        # slot), and where these tokens begin; positions where a checkpoint is wanted; the last one.
        self.slot = -1
        self.saves: list[tuple[int, int]] = []
        self.saved_from = 0
        self.borders: set[int] = set()
        self.last_checkpoint = 0
        self.running = False
        self.back_pressured = False
        """The consumer's state when the step began."""
        # Its tokens and output rows in this step, and those of the tokens that are drafts not yet verified.
        self.n_step = 0
        self.n_rows = 0
        self.n_draft = 0
        self.n_drafted = self.n_accepted = 0
        """Drafts that were verified, and those of them that were right."""
        self.drafting: Any = None
        """What a drafter keeps of it."""
        # Its row of a batch's page tables (numbered by `BatchWriter`), and the number of its pages there.
        self.row = -1
        self.n_listed = 0
        # The sequence whose prompt it waits for, and the number of common pages.
        self.leader: Sequence | None = None
        self.common = 0
        # Any thread may set `cancelled`.
        self.cancelled = False
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.finished_at: float | None = None

    @property
    def generates(self) -> bool:
        """Whether the next token to compute is one that it made: not of the prompt, nor of what a shift left."""
        return self.n_computed >= self.n_given

    @property
    def n_source(self) -> int:
        """Tokens of its source."""
        return 0 if self.source is None else len(self.source)

    @property
    def n_held(self) -> int:
        """Positions that its pages hold."""
        return max(self.n_tokens, self.n_source)

    @property
    def remaining(self) -> int:
        """Known tokens that are not computed."""
        return self.n_tokens - self.n_computed

    @property
    def parent(self) -> int:
        """The last published page."""
        return self.pages[self.n_published - 1] if self.n_published else ROOT

    def append(self, token: int) -> None:
        """One more token, whose row is wanted next; where it is the next draft, that is computed."""
        n = self.n_tokens
        if self.n_draft:
            if self.tokens[n] == token:
                self.n_draft -= 1
                self.n_computed += 1
                self.n_accepted += 1
            else:
                self.n_draft = 0
        self.tokens[n] = token
        self.n_tokens = n + 1
        self.next_row = n

    @property
    def row_at_hand(self) -> bool:
        """Whether the row of its last token is computed, as that of a draft that was right."""
        return self.n_computed == self.n_tokens

    def guess(self, draft: Many[int]) -> None:
        """Verify a draft in this step, for which there is room in its pages."""
        n = len(draft)
        self.tokens[self.n_tokens : self.n_tokens + n] = draft
        self.n_draft = n
        self.n_step += n
        self.n_rows += n

    def rows_of(self, n: int) -> int:
        """Rows wanted of the next n tokens."""
        return max(0, self.n_computed + n - max(self.next_row, self.n_computed))

    def most(self, rows: int) -> int:
        """Most tokens of the next that want at most so many rows."""
        return min(self.remaining, max(self.next_row, self.n_computed) - self.n_computed + rows)

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """End it; its reader finds that out when it is notified."""
        self.error = error
        self.finished_at = perf_counter()
        self.finish_reason = reason
        self.consumer.mailbox.closed = True


def common_tokens(a: Sequence, b: Sequence) -> int:
    """How many tokens two sequences have in common at their beginning."""
    n = min(a.n_tokens, b.n_tokens)
    different = np.flatnonzero(a.tokens[:n] != b.tokens[:n])
    return int(different[0]) if len(different) else n
