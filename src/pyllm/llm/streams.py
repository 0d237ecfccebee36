"""Answers as they come: text piece by piece, or events; for threads and for event loops."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pyllm.chat.events import ReasoningDelta, TextDelta, ToolCall, ToolCallEnd
from pyllm.errors import ClosedError
from pyllm.llm.events import Event, Finish, TokenLogprobs
from pyllm.llm.results import Completion, FinishReason, TokenLogprob, Usage

if TYPE_CHECKING:
    from pyllm.engine import Generation
    from pyllm.llm.constraining import Held
    from pyllm.llm.writing import Piece, Writer

T = TypeVar("T")


class Reading:
    """One answer, as far as it was read."""

    def __init__(
        self,
        generation: Generation[Piece],
        writer: Writer,
        n_dropped: int = 0,
        echo: str = "",
        held: Held | None = None,
        prompt: Sequence[int] = (),
    ) -> None:
        """`echo`: text that comes before the answer's."""
        self._prompt = prompt
        self.n_dropped = n_dropped
        self.finish_reason: FinishReason | None = None
        self.generation = generation
        self._writer = writer
        self._held = held
        self._n_echo = len(echo)
        self._echo = echo
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._calls: list[ToolCall] = []

    def next(self, enough: int = 1) -> Sequence[Event] | None:
        """The next token's events, maybe none; None after the end, whose event is `Finish`."""
        if self.finish_reason is not None:
            return None
        if (first := self._first()) is not None:
            return first
        try:
            return self._add(self.generation.take(enough))
        except BaseException:
            self.close()
            raise

    async def next_async(self, enough: int = 1) -> Sequence[Event] | None:
        """`next` in an event loop."""
        if self.finish_reason is not None:
            return None
        if (first := self._first()) is not None:
            return first
        try:
            return self._add(await self.generation.take_async(enough))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop generating; what was read stays. After the end this does nothing."""
        if self.finish_reason is None:
            self.finish_reason = "cancelled"
            self.generation.cancel()

    def completion(self) -> Completion:
        """What was read so far."""
        prompt = self.generation.prompt_logprobs
        return Completion(
            text="".join(self._text),
            tokens=tuple(self._tokens),
            finish_reason=self.finish_reason or "cancelled",
            usage=self._usage(),
            stop_string=self._stop_string(),
            logprobs=tuple(self._logprobs) if self._writer.logprobs else None,
            n_dropped=self.n_dropped,
            reasoning="".join(self._reasoning),
            tool_calls=tuple(self._calls),
            parsed=self._parsed(),
            warnings=self._held.warnings if self._held is not None else (),
            prompt_tokens=tuple(self._prompt),
            prompt_logprobs=None if prompt is None else self._writer.described_all(prompt),
        )

    def _parsed(self) -> Any:
        """The answer as a value; None where it was cut, or has no other form than its text."""
        if self._held is None or self._held.parse is None or self.finish_reason != "stop" or self._stop_string():
            return None
        return self._held.parse("".join(self._text)[self._n_echo :])

    def _first(self) -> Sequence[Event] | None:
        if not self._echo:
            return None
        event = TextDelta(self._echo)
        self._text.append(self._echo)
        self._echo = ""
        return (event,)

    def _add(self, piece: Piece | None) -> Sequence[Event]:
        if piece is None:
            self.finish_reason = self._reason()
            return (Finish(self.finish_reason, self._usage(), self._stop_string()),)
        if piece.token is not None:
            self._tokens.append(piece.token)
        for event in piece.events:
            if isinstance(event, TextDelta):
                self._text.append(event.text)
            elif isinstance(event, TokenLogprobs):
                self._logprobs.append(event.token)
            elif isinstance(event, ReasoningDelta):
                self._reasoning.append(event.text)
            elif isinstance(event, ToolCallEnd) and event.call is not None:
                self._calls.append(event.call)
        return piece.events

    def _reason(self) -> FinishReason:
        reason = self.generation.finish_reason or "cancelled"
        if self._writer.finished and reason == "length":
            return "stop"  # the last token's text completed a stop string
        return "tool_calls" if self._calls and reason == "stop" else reason

    def _stop_string(self) -> str | None:
        return self._writer.stop_string if self.finish_reason in ("stop", "tool_calls") else None

    def _usage(self) -> Usage:
        g = self.generation
        seconds = g.prompt_seconds, g.seconds - g.prompt_seconds
        return Usage(g.n_prompt, g.n_cached, len(self._tokens), *seconds, g.n_matched, g.n_drafted, g.n_accepted)


class _ThreadStream(Iterator[T], Generic[T]):
    """Iterates over the items that an answer's events give."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._items: deque[T] = deque()

    def __next__(self) -> T:
        while not self._items:
            events = self._reading.next()
            if events is None:
                raise StopIteration
            self._items.extend(self._items_of(events))
        return self._items.popleft()

    def _items_of(self, events: Sequence[Event]) -> list[T]:
        raise NotImplementedError

    @property
    def n_dropped(self) -> int:
        """As `Completion.n_dropped`."""
        return self._reading.n_dropped

    @property
    def finished(self) -> bool:
        return self._reading.finish_reason is not None

    @property
    def result(self) -> Completion:
        """What was generated; reads the stream to its end first, if it has not ended."""
        for _ in self:
            pass
        return self._reading.completion()

    def close(self) -> None:
        """Stop generating; `result` keeps what was read. After the end this does nothing."""
        self._reading.close()
        self._items.clear()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if (reading := getattr(self, "_reading", None)) is not None:
            reading.close()


class _LoopStream(AsyncIterator[T], Generic[T]):
    """`_ThreadStream` for event loops; it opens when it is first read."""

    def __init__(self, open_stream: Callable[[], Awaitable[Reading]]) -> None:
        self._open = open_stream
        self._reading: Reading | None = None
        self._items: deque[T] = deque()
        self._closed = False

    async def begin(self) -> int:
        """Start before the first item is asked for; the number of the prompt's tokens. What is refused is raised."""
        if self._reading is None:
            self._reading = await self._open()
        return self._reading.generation.n_prompt

    async def __anext__(self) -> T:
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            if self._reading is None:
                self._reading = await self._open()
            events = await self._reading.next_async()
            if events is None:
                raise StopAsyncIteration
            self._items.extend(self._items_of(events))
        return self._items.popleft()

    def _items_of(self, events: Sequence[Event]) -> list[T]:
        raise NotImplementedError

    async def result(self) -> Completion:
        """What was generated; reads the stream to its end first, if it has not ended."""
        async for _ in self:
            pass
        if self._reading is None:
            raise ClosedError("the stream was closed before it began")
        return self._reading.completion()

    async def aclose(self) -> None:
        """Stop generating; `result` keeps what was read. After the end this does nothing."""
        self._closed = True
        self._items.clear()
        if self._reading is not None:
            self._reading.close()

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if (reading := getattr(self, "_reading", None)) is not None:
            reading.close()


class _Texts:
    """The items of a stream are pieces of text."""

    def _items_of(self, events: Sequence[Event]) -> list[str]:
        return [event.text for event in events if isinstance(event, TextDelta)]


class _Events:
    """The items of a stream are its events."""

    def _items_of(self, events: Sequence[Event]) -> list[Event]:
        return list(events)


class CompletionStream(_Texts, _ThreadStream[str]):
    """A generation's text, piece by piece as it is computed; `result` has the rest.

    A piece never splits a character, and never contains a prefix of a stop string that later matches. A caller that
    stops reading early should call `close`, or use a `with` block; Ctrl-C while reading closes the stream too.
    """

    def __enter__(self) -> CompletionStream:
        return self


class EventStream(_Events, _ThreadStream[Event]):
    """A generation's events (`pyllm.llm.events`) as they are computed; the last one is `Finish`. Else as
    `CompletionStream`."""

    def __enter__(self) -> EventStream:
        return self


class AsyncCompletionStream(_Texts, _LoopStream[str]):
    """`CompletionStream` for an event loop: `async for`, `async with`, `await stream.result()`.

    A task that is cancelled while it reads ends the generation.
    """

    async def __aenter__(self) -> AsyncCompletionStream:
        return self


class AsyncEventStream(_Events, _LoopStream[Event]):
    """`EventStream` for an event loop. Else as `AsyncCompletionStream`."""

    async def __aenter__(self) -> AsyncEventStream:
        return self


def chosen(completions: Sequence[Completion], n: int, logprobs: bool) -> Completion:
    """The `n` answers of the highest mean log probability, or all in order, as one result."""
    ranked = list(completions)
    if n < len(ranked):
        ranked = sorted(ranked, key=lambda one: -one.mean_logprob)[:n]
    if not logprobs:
        ranked = [replace(one, logprobs=None) for one in ranked]
    return replace(ranked[0], others=tuple(ranked[1:]))
