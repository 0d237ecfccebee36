"""The consumer of a generated answer: samples tokens, ends the answer, fills its mailbox."""

from __future__ import annotations

import sys
from collections.abc import Sequence as Many
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllm.engine.mailbox import Mailbox
from pyllm.engine.request import FinishReason, GeneratedToken, GenerationRequest
from pyllm.engine.rows import SequenceRows
from pyllm.engine.sequence import Consumer, Sequence
from pyllm.engine.transformer import Transformer
from pyllm.errors import PyllmError, RequestError
from pyllm.sampling import Sampler, TopLogits, choose, logprobs

if TYPE_CHECKING:
    from pyllm.constraints.constraint import Constraint
    from pyllm.constraints.pool import Masks


class Answer(Consumer):
    """Continues a prompt until a stop token, the transformer, `max_tokens` or the context's end."""

    shares = True

    def __init__(
        self, request: GenerationRequest, n_prompt: int, sampler: Sampler, n_ctx: int, transformer: Transformer[Any]
    ) -> None:
        room = n_ctx + 1 - n_prompt
        asked = room if request.max_tokens is None else request.max_tokens
        self.capacity = min(n_ctx, n_prompt + asked) + 1
        """Tokens that the sequence may come to hold."""
        self.request = request
        self.sampler = sampler
        self.transformer = transformer
        self.limit = n_ctx
        self.n_keep = request.n_keep
        self.paced = request.paced
        self.n_generated = 0
        self.n_most: int | None = min(asked, room)
        """Tokens to generate at most; None: no end, because the context is shifted."""
        if request.context_shift:
            self.n_most = request.max_tokens
        self.mailbox: Mailbox[Any] = Mailbox(sys.maxsize if request.unread is None else min(n_ctx, request.unread))
        self.prompt_logprobs: list[GeneratedToken] | None = None if request.prompt_logprobs is None else []
        """Of the prompt's tokens from the second on."""

        self.constraint = None if request.constrain is None else request.constrain()
        self.chosen: int | PyllmError = -1
        """The next token, which `choose_tokens` has chosen from this step's rows, or why there is none."""
        self.mask_row = -1
        """Which of the step's masks is for its next token; -1: none."""

    @property
    def back_pressured(self) -> bool:
        return self.mailbox.full

    def content_with(self, seq: Sequence, n: int) -> bool:
        if seq.next_row < seq.n_prompt - 1:
            return False  # rows of the prompt: any token may come next in it
        if self.constraint is not None and (seq.n_draft or not self.constraint.free):
            return False  # what is allowed may be none of the largest
        return all(self._does(seq.tokens[: seq.n_tokens + i], i, n) for i in range(seq.n_draft + 1))

    def _does(self, seen: NDArray[np.int32], n_ahead: int, n: int) -> bool:
        """Whether the n largest logits do after `seen`, of which the last `n_ahead` are drafts."""
        needed = self.sampler.n_needed(seen, n_ahead)
        return needed is not None and max(needed, self.request.logprobs or 0) <= n

    def most_drafts(self, seq: Sequence) -> int:
        n = self.limit - seq.n_tokens
        return max(0, n if self.n_most is None else min(n, self.n_most - self.n_generated - 1))

    def admits(self, seq: Sequence, draft: Many[int]) -> int:
        stops = self.request.stop_ids  # nothing follows them
        n = next((i for i, token in enumerate(draft) if token in stops), len(draft))
        return n if self.constraint is None or not n else self._allowed(self.constraint, draft[:n])

    def _allowed(self, constraint: Constraint, draft: Many[int]) -> int:
        """How many of these tokens the constraint allows, up to one after which it forces others, or the end."""
        n = 0
        try:
            for token in draft:
                constraint.advance(token)
                n += 1
                if constraint.finished or (self.request.logprobs is None and constraint.forced()):
                    break
        except RequestError:
            pass  # what it doesn't allow is not drafted
        with suppress(RequestError):  # its mask will tell
            constraint.rollback(n)
        return n

    def take(self, seq: Sequence, rows: SequenceRows) -> FinishReason | None:
        for i in range(rows.n):
            at = seq.next_row
            if at < seq.n_tokens - 1:
                self._note_prompt(int(seq.tokens[at + 1]), rows.row(i))
                seq.next_row = at + 1
            elif self.n_most == 0:
                return "length"
            else:
                return self._extend(seq, rows, i)
        return None

    def finish(self, reason: FinishReason) -> None:
        rest = self.transformer.end(reason) if reason != "cancelled" else None
        if rest is not None:
            self.mailbox.put(rest)

    def extends(self, seq: Sequence, n_rows: int) -> bool:
        """Whether the last of so many rows, not counting those of drafts, is what the next token is chosen from."""
        return n_rows > 0 and self.n_most != 0 and seq.next_row + n_rows == seq.n_tokens + seq.n_draft

    def _note_prompt(self, token: int, logits: NDArray[np.float32] | TopLogits) -> None:
        assert self.prompt_logprobs is not None
        self.prompt_logprobs.append(GeneratedToken(token, *logprobs(logits, token, self.request.prompt_logprobs or 0)))

    def _extend(self, seq: Sequence, rows: SequenceRows, i: int) -> FinishReason | None:
        """Take the next token, chosen from the i-th row."""
        request = self.request
        token = self.chosen
        if isinstance(token, PyllmError):
            raise token
        self.sampler.accept(token)
        if seq.first_token_at is None:
            seq.first_token_at = perf_counter()
        if token in request.stop_ids:
            return "stop"
        if request.logprobs is None:
            made = GeneratedToken(token)
        else:
            made = GeneratedToken(token, *logprobs(rows.row(i), token, request.logprobs))
        reason = self._put(seq, made)
        if reason is None and self.constraint is not None:
            reason = self._follow(seq, self.constraint, token)
        return reason

    def _put(self, seq: Sequence, made: GeneratedToken) -> FinishReason | None:
        seq.append(made.id)
        self.n_generated += 1
        self.mailbox.put(self.transformer.push(made))
        if self.transformer.finished:
            return "stop"
        return "length" if self.n_generated == self.n_most else None

    def _follow(self, seq: Sequence, constraint: Constraint, token: int) -> FinishReason | None:
        """Advance the constraint, and take the tokens that alone may follow: their rows are never needed."""
        constraint.advance(token)
        if self.request.logprobs is None:  # which rows are needed for
            for forced in constraint.forced():
                if forced in self.request.stop_ids or seq.n_tokens >= self.limit:
                    break
                constraint.advance(forced)
                self.sampler.accept(forced, chosen=False)
                reason = self._put(seq, GeneratedToken(forced))
                seq.n_given = seq.n_tokens  # computed as a prompt's, however many fit into the step
                if reason is not None:
                    return reason
        return "stop" if constraint.finished else None


def mask_rows(steps: list[Sequence]) -> tuple[list[Constraint | None], list[int | None]]:
    """The masks that a step which is about to run needs: what holds the next token of each constrained answer, and
    then what holds the one after each of its drafts, with that draft."""
    constraints: list[Constraint | None] = []
    drafts: list[int | None] = []
    for seq in steps:
        answer = seq.consumer
        if not isinstance(answer, Answer):
            continue
        answer.mask_row = -1
        if answer.constraint is not None and answer.extends(seq, seq.n_rows):
            answer.mask_row = len(constraints)
            constraints += [answer.constraint] * (seq.n_draft + 1)
            drafts += [None, *seq.tokens[seq.n_tokens : seq.n_tokens + seq.n_draft].tolist()]
    return constraints, drafts


def choose_tokens(rows: list[tuple[Sequence, SequenceRows]], masks: Masks | None) -> None:
    """Choose the next token of every answer of a step, in one compiled call. `masks`: of `mask_rows`."""
    ready = []
    for seq, own in rows:
        answer = seq.consumer
        if isinstance(answer, Answer) and not seq.cancelled and answer.extends(seq, own.n):
            mask = None
            if (r := answer.mask_row) >= 0 and masks is not None:
                answer.mask_row = r + 1
                mask = masks.bits[r]
                if r in masks.errors:
                    answer.chosen = masks.errors[r]
                    continue
            ready.append((answer, own.row(own.n - 1 - seq.n_draft), seq.tokens[: seq.n_tokens], mask))
    if ready:
        answers, logits, seen, allowed = zip(*ready, strict=True)
        tokens = choose(logits, [a.sampler for a in answers], seen, allowed if masks is not None else None)
        for answer, token in zip(answers, tokens, strict=True):
            answer.chosen = token
