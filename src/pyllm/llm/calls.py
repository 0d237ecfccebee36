"""A call of `LLM.complete` or `LLM.chat`: its prompt and settings as requests, its answers as a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from queue import SimpleQueue

from pyllm.config import GenerateSettings
from pyllm.engine import Engine, GenerationRequest
from pyllm.errors import QueueFullError, RequestError
from pyllm.llm.constraining import Held
from pyllm.llm.results import Completion
from pyllm.llm.streams import Reading, chosen
from pyllm.llm.writing import Parser, Writer
from pyllm.records import dataclass
from pyllm.sampling import Vocabulary
from pyllm.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Call:
    """A prompt with what is asked of it."""

    tokens: list[int]
    settings: GenerateSettings
    tokenizer: Tokenizer | None
    vocabulary: Vocabulary | None = None
    continues: bool = False
    """The answer continues a text, so a space at its beginning belongs to it."""
    n_dropped: int = 0
    n_prefix: int | None = None
    """Tokens before the last turn of a chat, which its next prompt begins with; see `GenerationRequest`."""
    echo: str = ""
    """Text that the result begins with."""
    held: Held | None = None
    """What the answers are held to."""
    parser: Callable[[], Parser] | None = None
    """Makes the parser of an answer; without one it is text."""

    @property
    def n_answers(self) -> int:
        return self.settings.best_of or self.settings.n

    def stream(self, engine: Engine) -> Reading:
        """One answer, read as it comes."""
        if self.n_answers > 1:
            raise RequestError("n and best_of give whole answers; start a stream for each one instead")
        return self._start(engine, streamed=True)[0]

    def start(self, engine: Engine) -> list[Reading]:
        """All answers, each to be read when it is whole."""
        return self._start(engine, streamed=False)

    def result(self, completions: list[Completion]) -> Completion:
        """The call's result from all its answers."""
        return chosen(completions, self.settings.n, self.settings.logprobs is not None)

    def _start(self, engine: Engine, streamed: bool) -> list[Reading]:
        settings = self.settings
        if self.tokenizer is None and settings.stop:
            raise RequestError("stop strings need a tokenizer, and this model has none that is usable")
        ranked = self.n_answers > settings.n
        logprobs = 0 if ranked and settings.logprobs is None else settings.logprobs
        stop_ids: frozenset[int] = frozenset()
        if self.tokenizer is not None and (self.held is not None or not settings.ignore_eos):
            stop_ids = self.tokenizer.stop_ids
        request = GenerationRequest(
            tokens=self.tokens,
            sampling=settings.sampling,
            max_tokens=settings.max_tokens,
            stop_ids=stop_ids,
            constrain=self.held.constrain if self.held is not None else None,
            logprobs=logprobs,
            prompt_logprobs=settings.prompt_logprobs,
            context_shift=settings.context_shift,
            n_keep=settings.n_keep,
            n_prefix=self.n_prefix,
            priority=settings.priority,
            timeout=settings.timeout,
            vocabulary=self.vocabulary,
        )
        request = replace(request, paced=True) if streamed else replace(request, unread=None)
        writers = [
            Writer(
                self.tokenizer,
                settings.stop,
                continues=self.continues,
                logprobs=logprobs is not None,
                parser=self.parser() if self.parser is not None else None,
            )
            for _ in range(self.n_answers)
        ]
        generations = engine.submit_all(zip(self._seeded(request), writers, strict=False))
        return [
            Reading(generation, writer, self.n_dropped, self.echo, self.held, self.tokens)
            for generation, writer in zip(generations, writers, strict=True)
        ]

    def _seeded(self, request: GenerationRequest) -> Iterator[GenerationRequest]:
        """The request again and again; the answers' seeds differ."""
        yield request
        seed = request.sampling.seed
        while True:
            if seed is not None:
                seed += 1
                request = replace(request, sampling=replace(request.sampling, seed=seed))
            yield request


WHOLE = 1 << 62
"""Items to wait for where a whole answer is: more than it has."""


def whole(call: Call, readings: list[Reading]) -> Completion:
    """A call's result, waited for."""
    try:
        for reading in readings:
            while reading.next(WHOLE) is not None:
                pass
    finally:
        for reading in readings:
            reading.close()
    return call.result([reading.completion() for reading in readings])


async def whole_async(call: Call, readings: list[Reading]) -> Completion:
    """`whole` in an event loop."""
    try:
        for reading in readings:
            while await reading.next_async(WHOLE) is not None:
                pass
    finally:
        for reading in readings:
            reading.close()
    return call.result([reading.completion() for reading in readings])


def batch(
    engine: Engine,
    calls: Iterator[Call],
    side: int,
    total: int | None,
    progress: Callable[[int, int | None], object] | None,
) -> Iterator[tuple[int, Completion]]:
    """Results with the numbers of their calls, as they are done; at most `side` answers are under way.

    Calls are taken, and so made, as there is room. An error in one ends all.
    """
    numbered = enumerate(calls)
    running: dict[int, tuple[Call, list[Reading]]] = {}
    ended: SimpleQueue[int] = SimpleQueue()
    n_done = n_running = 0
    refused: tuple[int, Call] | None = None
    try:
        while True:
            while n_running < side and (following := refused or next(numbered, None)) is not None:
                number, call = following
                refused = None
                try:
                    running[number] = call, call.start(engine)
                except QueueFullError:
                    if not running:
                        raise
                    refused = following
                    break
                n_running += call.n_answers
                for reading in running[number][1]:
                    reading.generation.when_done(partial(ended.put, number))
            if not running:
                return
            number = ended.get()
            if number in running and all(reading.generation.is_done for reading in running[number][1]):
                call, readings = running.pop(number)
                n_running -= call.n_answers
                result = whole(call, readings)
                n_done += 1
                if progress is not None:
                    progress(n_done, total)
                yield number, result
    finally:
        for _, readings in running.values():
            for reading in readings:
                reading.close()
