"""What a request asks of a model, whichever API it came by, and the answers to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pyllm.config import GenerateSettings
from pyllm.errors import ContextFullError
from pyllm.llm.events import Event, Finish, TokenLogprobs, ToolCallArguments, ToolCallBegin, ToolCallEnd
from pyllm.llm.history import room_for_answer
from pyllm.llm.infill import Infill
from pyllm.llm.recipes import Recipe
from pyllm.llm.results import Completion, Usage
from pyllm.llm.streams import AsyncEventStream
from pyllm.server.api import Exchange
from pyllm.server.known import Known
from pyllm.server.models import Served
from pyllm.server.problems import ProblemError, problem_of, refuse

if TYPE_CHECKING:
    from pyllm.chat import ChatTemplate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """A chat, or a text to continue."""

    model: str
    """"" for the server's default."""
    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | list[int] | Infill | None = None
    """The text, or token ids, to continue where there are no messages; or a gap to fill."""
    parse_special: bool = False
    """Texts such as <|im_start|> in `prompt` are tokens."""
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """For the model's chat template."""
    continues: bool = False
    """The last message is the assistant's, and unfinished."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`pyllm.config.options.GenerateOptions`, without `n`."""
    n: int = 1
    """Number of answers."""
    template: str = ""
    """A chat template in place of the model's own."""
    fallback: str = ""
    """A chat template for models without one; "" refuses such a chat."""
    before: Sequence[int] = ()
    """Token ids that come before a chat's: an earlier exchange. The answer is then text alone."""
    truncate: Literal["oldest"] | None = None
    """What is left out of a chat that is too long."""
    keep_alive: float | None = None
    """Seconds for which the model stays loaded afterwards; see `Models.lease`."""


class Asked:
    """An ask with its model: `async with Asked(exchange, ask) as asked`, then `whole` or `events`."""

    def __init__(self, exchange: Exchange, ask: Ask) -> None:
        self._exchange = exchange
        self._ask = ask
        self._has_one_call = ask.options.get("parallel_tool_calls") is False
        """Further calls are left out, where no grammar keeps the model from them."""
        self._stack = AsyncExitStack()
        self._served: Served | None = None
        self._begun: AsyncEventStream | None = None
        self._read: AsyncEventStream | None = None
        self._template: ChatTemplate | None = None
        self._is_noted = False
        """Its prompt was counted."""
        self.model = ask.model
        """The model's name."""

    async def __aenter__(self) -> Asked:
        """Raises ProblemError where there is no such model, or it cannot be loaded."""
        exchange = self._exchange
        models = exchange.house.models
        known = models.shelf.find(self._ask.model)
        self.model = exchange.log["model"] = known.name
        ask = self._ask = _limited(exchange, _with_own(known, self._ask))
        exchange.asks("text_completion" if ask.messages is None else "chat", ask.model, {"n": ask.n, **ask.options})
        self._served = await self._stack.enter_async_context(models.lease(known, ask.keep_alive))
        exchange.said("asked", ask.messages if ask.messages is not None else ask.prompt)
        try:
            await self._prepare(ask)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _prepare(self, ask: Ask) -> None:
        """What needs the model and its tokenizer."""
        if isinstance(ask.prompt, Infill):
            self._ask = replace(ask, prompt=await asyncio.to_thread(self._gap, ask.prompt))
        if ask.messages is None:
            return
        text = ask.template
        if not text and ask.fallback and self.served.llm.llm.chat_template is None:
            text = ask.fallback
        if text:
            self._template = await asyncio.to_thread(self.served.template, text)
        if ask.before:
            self._ask = replace(ask, messages=None, prompt=await asyncio.to_thread(self._following, ask))

    def _following(self, ask: Ask) -> list[int]:
        """The prompt of a chat after an earlier exchange."""
        llm = self.served.llm.llm
        tokens = llm.chat_tokens(
            list(ask.messages or ()), tools=ask.tools, variables=ask.variables, chat_template=self._template
        )
        begins = bool(tokens) and tokens[0] == llm.tokenizer.bos_id
        return [*ask.before, *tokens[begins:]]

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template that counts."""
        return self._template or self.served.llm.llm.chat_template

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self._stack.aclose()
        if isinstance(error, ContextFullError) and self._ask.messages is None:
            raise ProblemError(replace(problem_of(error), param="prompt")) from error

    @property
    def served(self) -> Served:
        """The model."""
        assert self._served is not None
        return self._served

    @property
    def prompt(self) -> str | list[int]:
        """The text, or token ids, that are continued where there are no messages."""
        assert not isinstance(self._ask.prompt, Infill)
        return self._ask.prompt or ""

    @property
    def n(self) -> int:
        """The number of answers."""
        return self._ask.n

    @property
    def settings(self) -> GenerateSettings:
        """How answers are generated, complete: the model's own, below what was asked for."""
        return GenerateSettings.of("complete", None, self._ask.options, self.served.llm.llm.sampling)

    def _gap(self, infill: Infill) -> list[int]:
        """The prompt of a gap: files, then the outer ends of prefix and suffix give way to the answer."""
        llm = self.served.llm.llm
        asked = self._ask.options.get("max_tokens")
        room = room_for_answer(llm.n_ctx, None if asked == -1 else asked)
        return infill.tokens(llm.tokenizer, llm.n_ctx - room)

    async def tokens(self) -> list[int]:
        """The prompt."""
        ask, llm = self._ask, self.served.llm.llm
        if ask.messages is None:
            return (await asyncio.to_thread(llm.completing, self.prompt, ask.parse_special, {})).tokens
        return await asyncio.to_thread(
            llm.chat_tokens,
            list(ask.messages),
            tools=ask.tools,
            variables=ask.variables,
            continue_final_message=ask.continues,
            chat_template=self._template,
        )

    async def begin(self) -> int:
        """Start the answer that `events` gives, of an ask for one; the number of its prompt's tokens."""
        assert self._ask.n == 1
        self._begun = self._stream(0)
        self._stack.push_async_callback(self._begun.aclose)
        return await self._begun.begin()

    async def whole(self) -> Completion:
        """All answers, each when it is whole; those after the first are `others`."""
        completion: Completion = await self._call({**self._ask.options, "n": self._ask.n})
        if self._has_one_call:
            completion = _with_one_call(completion)
        for choice in completion.choices:
            self._note(choice.finish_reason, choice.usage, None)
            self._exchange.said("answered", choice.message)
        return completion

    async def events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """The events of all answers as they come, each with the number of its answer."""
        ask = self._ask
        if ask.n > 1:
            async for found in merged([self._answer(number) for number in range(ask.n)]):
                yield found
            return
        async for event in self._answer(0):
            yield 0, event

    async def result(self) -> Completion:
        """The answer of an ask for one, whose events were read."""
        assert self._read is not None
        return await self._read.result()

    async def _answer(self, number: int) -> AsyncGenerator[Event, None]:
        """The events of one answer, counted."""
        async with self._stream(number) as stream:
            self._read = stream
            async for event in self._noted(stream):
                yield event

    def _stream(self, number: int) -> AsyncEventStream:
        """One answer; with a seed, each has its own."""
        if self._begun is not None:
            return self._begun
        options = dict(self._ask.options)
        if options.get("seed") is not None:
            options["seed"] += number
        stream: AsyncEventStream = self._call({**options, "stream": "events"})
        return stream

    def _call(self, options: Mapping[str, Any]) -> Any:
        """The library's call for the ask, with these options."""
        ask, llm = self._ask, self.served.llm
        if ask.messages is None:
            return llm.complete(self.prompt, parse_special=ask.parse_special, **options)
        return llm.chat(
            list(ask.messages),
            tools=ask.tools,
            variables=ask.variables,
            continue_final_message=ask.continues,
            chat_template=self._template,
            truncate=ask.truncate,
            **options,
        )

    async def _noted(self, stream: AsyncEventStream) -> AsyncIterator[Event]:
        """The events, counted."""
        first: float | None = None
        async for event in stream:
            if first is None and not isinstance(event, TokenLogprobs):
                first = perf_counter() - self._exchange.began
            if isinstance(event, Finish):
                self._note(event.reason, event.usage, first)
            if self._has_one_call and isinstance(event, _OF_CALLS) and event.index:
                continue
            yield event
        if self._exchange.house.logs.prompts:
            self._exchange.said("answered", (await stream.result()).message)

    def _note(self, reason: str, usage: Usage, first: float | None) -> None:
        exchange = self._exchange
        whole = perf_counter() - exchange.began
        if first is None and usage.n_generated:
            first = max(0.0, whole - usage.seconds)
        exchange.house.metrics.answered(self.model, reason, usage, first, whole)
        exchange.finish_reasons.append(reason)
        if first is not None:
            exchange.first_token = min(first, exchange.first_token or first)
        log = exchange.log
        if not self._is_noted:  # a prompt counts once, however many answers it has
            self._is_noted = True
            log["prompt"] = log.get("prompt", 0) + usage.n_prompt
            log["cached"] = log.get("cached", 0) + usage.n_cached
        log["generated"] = log.get("generated", 0) + usage.n_generated
        log["finish"] = reason


_OF_CALLS = (ToolCallBegin, ToolCallArguments, ToolCallEnd)


def _with_one_call(completion: Completion) -> Completion:
    others = tuple(map(_with_one_call, completion.others))
    return replace(completion, tool_calls=completion.tool_calls[:1], others=others)


async def wholes_of(asked: Sequence[Asked]) -> list[Completion]:
    """All answers of several asks. An error of one ends all."""
    tasks = [asyncio.create_task(one.whole()) for one in asked]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def events_of(asked: Sequence[Asked]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of all answers of several asks for equally many, with the number of the answer among them all."""
    if len(asked) == 1:
        async for found in asked[0].events():
            yield found
        return
    async for prompt, (number, event) in merged([one.events() for one in asked]):
        yield prompt * asked[0].n + number, event


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncIterator[tuple[int, T]]:
    """What several streams give, as it comes, each with the number of its stream. An error of one ends all."""
    queue: asyncio.Queue[tuple[int, T | BaseException | None]] = asyncio.Queue(maxsize=64)

    async def read(number: int, stream: AsyncIterator[T]) -> None:
        try:
            async for found in stream:
                await queue.put((number, found))
            await queue.put((number, None))
        except Exception as error:
            await queue.put((number, error))

    tasks = [asyncio.create_task(read(number, stream)) for number, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            number, found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                running -= 1
            else:
                yield number, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


def _with_own(known: Known, ask: Ask) -> Ask:
    """The ask with what a named model has of its own, below what the request says. Raises HubError."""
    if known.named is None:
        return ask
    known.named.check()
    recipe = Recipe(known.named)
    messages = ask.messages
    if messages is not None and not ask.before:
        messages = recipe.messages(messages)
    template = ask.template or known.named.template
    return replace(ask, options=recipe.options(ask.options), messages=messages, template=template)


def _limited(exchange: Exchange, ask: Ask) -> Ask:
    """The ask within the server's limits. Raises ProblemError."""
    options, limits = dict(ask.options), exchange.house.options
    if not 1 <= ask.n <= limits.max_choices:
        raise refuse(f"n must be from 1 to {limits.max_choices}, not {ask.n}", "n")
    if limits.max_tokens is not None:
        asked = options.get("max_tokens")
        options["max_tokens"] = limits.max_tokens if asked in (None, -1) else min(asked, limits.max_tokens)
    if limits.timeout is not None:
        options["timeout"] = min(limits.timeout, options.get("timeout") or limits.timeout)
    if ask.messages is None and "max_tokens" not in options:
        options["max_tokens"] = None  # until the model ends the text, as everywhere on the wire
    return replace(ask, options=options)
