"""The result of `Engine.submit`: an answer's tokens, computed on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import copy
from time import perf_counter

from pyllm.engine.request import FinishReason, GeneratedToken
from pyllm.engine.sequence import Answer, Sequence


class Generation(Iterator[GeneratedToken]):
    """An answer, token by token. Iterating drives the engine: each step serves all requests.

    Iterating raises BackendError (a step failed) and ClosedError. Ctrl-C while waiting cancels the answer. A caller
    that does not read to the end should call `cancel` or drop the object, which frees its pages.
    """

    def __init__(self, seq: Answer, advance: Callable[[Sequence], None], drop: Callable[[Sequence], None]) -> None:
        self._seq = seq
        self._advance = advance
        self._drop = drop

    def __next__(self) -> GeneratedToken:
        seq = self._seq
        outputs = seq.outputs
        while not seq.cancelled:
            if outputs:
                with suppress(IndexError):  # Another thread may have taken or cleared them meanwhile.
                    token: GeneratedToken = outputs.popleft()
                    return token
            if seq.finish_reason is None:
                try:
                    self._advance(seq)
                except BaseException:
                    self.cancel()
                    raise
            elif not outputs:  # Checked again: the last token may have come just before the end.
                if seq.error is not None:
                    raise again(seq.error)
                break
        raise StopIteration

    def cancel(self) -> None:
        """Stop, from any thread; no further token comes. After the end this does nothing."""
        seq = self._seq
        if not seq.cancelled and (seq.finish_reason is None or seq.outputs):
            self._drop(seq)

    close = cancel

    def __del__(self) -> None:
        if getattr(self, "_drop", None) is not None:
            self.cancel()

    @property
    def finish_reason(self) -> FinishReason | None:
        """stop: a stop token was sampled; length: `max_tokens` or the context's end was reached. None while tokens may
        come."""
        seq = self._seq
        if seq.cancelled:
            return "cancelled"
        return None if seq.outputs else seq.finish_reason

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return self._seq.n_prompt

    @property
    def n_cached(self) -> int:
        """Tokens of the prompt that came from shared pages and were not computed."""
        return self._seq.n_cached

    @property
    def prompt_seconds(self) -> float:
        """From the first step to the first token."""
        return self._since_start(self._seq.first_token_at or self._seq.finished_at)

    @property
    def seconds(self) -> float:
        """From the first step to the end, or to now."""
        return self._since_start(self._seq.finished_at)

    def _since_start(self, moment: float | None) -> float:
        started = self._seq.started_at
        return 0.0 if started is None else (moment or perf_counter()) - started


def again(error: Exception) -> Exception:
    """A copy of an error for another thread, with its own traceback."""
    new = copy(error)
    new.__cause__ = error
    return new
