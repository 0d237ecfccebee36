"""The result of `Engine.submit`: an answer's tokens, or the items that a transformer makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from time import perf_counter
from typing import Generic, Protocol, TypeVar

from pyllm.engine.answer import Answer
from pyllm.engine.request import FinishReason, GeneratedToken
from pyllm.engine.sequence import Sequence
from pyllm.errors import BackendError, ClosedError, OutOfMemoryError, PyllmError

T = TypeVar("T")


class Owner(Protocol):
    """What computes a sequence."""

    @property
    def closed(self) -> bool: ...
    def drop(self, seq: Sequence) -> None: ...
    def resume(self) -> None: ...


class Generation(Iterator[T], Generic[T]):
    """An answer, item by item, computed up to `request.unread` items ahead of its one reader.

    Reading raises BackendError (a step failed) and ClosedError. Ctrl-C while waiting cancels the answer. A caller that
    does not read to the end should call `cancel` or drop the object, which frees its pages.
    """

    def __init__(self, seq: Sequence, answer: Answer, owner: Owner) -> None:
        self._seq = seq
        self._answer = answer
        self._mailbox = answer.mailbox
        self._owner = owner

    def __next__(self) -> T:
        item = self.take()
        if item is None:
            raise StopIteration
        return item

    def take(self, enough: int = 1) -> T | None:
        """The next item, waiting for it; None after the end. `enough`: wait until there are so many, or the end."""
        try:
            while (item := self._mailbox.take()) is None and not self._is_over():
                self._mailbox.wait(enough)
        except BaseException:
            self.cancel()
            raise
        return self._taken(item)

    async def take_async(self, enough: int = 1) -> T | None:
        """`take` in an event loop. A task that is cancelled cancels the answer."""
        try:
            while (item := self._mailbox.take()) is None and not self._is_over():
                await self._mailbox.wait_async(enough)
        except BaseException:
            self.cancel()
            raise
        return self._taken(item)

    def _taken(self, item: T | None) -> T | None:
        if item is None:
            if not self._seq.cancelled and self._seq.error is not None:
                raise again(self._seq.error)
        elif self._owner.closed:
            self._mailbox.clear()
            self._seq.error = ClosedError("the model was closed")
            raise again(self._seq.error)
        elif not self._seq.finish_reason:
            self._owner.resume()
        return item

    def when_done(self, call: Callable[[], None]) -> None:
        """Call a function once no further item comes: in the computing thread, or now. It must be quick, and may be
        called twice."""
        self._mailbox.on_close = call
        if self._mailbox.closed:
            call()

    @property
    def is_done(self) -> bool:
        """Whether no further item comes; some may be there to take."""
        return self._mailbox.closed

    def _is_over(self) -> bool:
        return self._seq.cancelled or (self._mailbox.closed and not self._mailbox)

    def cancel(self) -> None:
        """Stop, from any thread; no further item comes. After the end this does nothing."""
        seq = self._seq
        if not seq.cancelled and (seq.finish_reason is None or self._mailbox):
            seq.cancelled = True
            self._mailbox.clear()
            self._owner.drop(seq)

    close = cancel

    def __del__(self) -> None:
        if getattr(self, "_owner", None) is not None:
            self.cancel()

    @property
    def finish_reason(self) -> FinishReason | None:
        """stop: a stop token was sampled, or the transformer finished; length: `max_tokens` or the context's end was
        reached; timeout: the deadline passed. None while items may come."""
        if self._seq.cancelled:
            return "cancelled"
        return None if self._mailbox else self._seq.finish_reason

    @property
    def prompt_logprobs(self) -> list[GeneratedToken] | None:
        """Of the prompt's tokens from the second on, when the first token is there."""
        return self._answer.prompt_logprobs

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return self._seq.n_source or self._seq.n_prompt

    @property
    def n_cached(self) -> int:
        """Tokens of the prompt that came from shared pages and were not computed."""
        return self._seq.n_cached

    @property
    def n_matched(self) -> int:
        """Tokens of the prompt whose pages were there: more than `n_cached` where no recurrent state was kept behind
        them."""
        return self._seq.n_matched

    @property
    def n_drafted(self) -> int:
        """Guesses of its tokens that were verified."""
        return self._seq.n_drafted

    @property
    def n_accepted(self) -> int:
        """Guesses that were right: tokens that needed no step of their own."""
        return self._seq.n_accepted

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


def as_ours(error: BaseException) -> PyllmError:
    """What a reader is told of an error in the computing thread."""
    if isinstance(error, PyllmError):
        return again(error)  # type: ignore[return-value]
    kind = OutOfMemoryError if isinstance(error, MemoryError) else BackendError
    ours = kind(f"the step failed: {error!r}")
    ours.__cause__ = error
    return ours
