"""The consumer of a generated answer: samples tokens, ends the answer, fills its mailbox."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.engine.mailbox import Mailbox
from pyllm.engine.request import FinishReason, GeneratedToken, GenerationRequest
from pyllm.engine.rows import SequenceRows
from pyllm.engine.sequence import Consumer, Sequence
from pyllm.engine.transformer import Transformer
from pyllm.errors import PyllmError
from pyllm.sampling import Sampler, TopLogits, choose, logprobs


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

        self.chosen: int | PyllmError = -1
        """The next token, which `choose_tokens` has chosen from this step's rows, or why there is none."""

    @property
    def back_pressured(self) -> bool:
        return self.mailbox.full

    def content_with(self, seq: Sequence, n: int) -> bool:
        if seq.next_row < seq.n_prompt - 1:
            return False  # rows of the prompt: any token may come next in it
        needed = self.sampler.n_needed(seq.tokens[: seq.n_tokens])
        return needed is not None and max(needed, self.request.logprobs or 0) <= n

    def take(self, seq: Sequence, rows: SequenceRows) -> FinishReason | None:
        for i in range(rows.n):
            at = seq.next_row
            if at < seq.n_tokens - 1:
                self._note_prompt(int(seq.tokens[at + 1]), rows.row(i))
                seq.next_row = at + 1
            elif self.n_most == 0:
                return "length"
            else:
                return self._extend(seq, rows.row(i))
        return None

    def finish(self, reason: FinishReason) -> None:
        rest = self.transformer.end(reason) if reason != "cancelled" else None
        if rest is not None:
            self.mailbox.put(rest)

    def extends(self, seq: Sequence, rows: SequenceRows) -> bool:
        """Whether the last of these rows is what the next token is chosen from."""
        return self.n_most != 0 and seq.next_row + rows.n == seq.n_tokens

    def _note_prompt(self, token: int, logits: NDArray[np.float32] | TopLogits) -> None:
        assert self.prompt_logprobs is not None
        self.prompt_logprobs.append(GeneratedToken(token, *logprobs(logits, token, self.request.prompt_logprobs or 0)))

    def _extend(self, seq: Sequence, logits: NDArray[np.float32] | TopLogits) -> FinishReason | None:
        """Take the next token."""
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
            made = GeneratedToken(token, *logprobs(logits, token, request.logprobs))
        seq.append(token)
        self.n_generated += 1
        self.mailbox.put(self.transformer.push(made))
        if self.transformer.finished:
            return "stop"
        return "length" if self.n_generated == self.n_most else None


def choose_tokens(steps: list[Sequence], found: list[SequenceRows]) -> None:
    """Choose the next token of every answer of a step, in one compiled call."""
    ready = []
    for seq, rows in zip(steps, found, strict=True):
        answer = seq.consumer
        if isinstance(answer, Answer) and rows.n and not seq.cancelled and answer.extends(seq, rows):
            ready.append((answer, rows.row(rows.n - 1), seq.tokens[: seq.n_tokens]))
    if ready:
        answers, logits, seen = zip(*ready, strict=True)
        for answer, token in zip(answers, choose(logits, [a.sampler for a in answers], seen), strict=True):
            answer.chosen = token
