"""Answers to chats and prompts: bodies in common, what is asked, lines of a stream, the last line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from time import perf_counter
from typing import Any

from pyllm.chat import reasoning
from pyllm.chat.dialects import dialect_of
from pyllm.chat.events import ReasoningDelta, TextDelta, ToolCall, ToolCallEnd
from pyllm.llm.events import Finish, TokenLogprobs
from pyllm.llm.results import Completion, TokenLogprob
from pyllm.records import dataclass
from pyllm.server.api import Exchange
from pyllm.server.apis._ollama import form
from pyllm.server.asks import Ask, Asked
from pyllm.server.live import NDJSON, Framing, encode
from pyllm.server.logprobs import described, top_of
from pyllm.server.problems import refuse

PLAIN = "{{ .System }}{{ .Prompt }}{{ .Response }}"
"""The chat template of models without one, as Ollama has it."""
_LEVELS = ("low", "medium", "high", "max")


class AnswerBody(form.ModelBody):
    """What chats and prompts have in common."""

    stream: bool = True
    format: Any = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """Where a line of a route has its text."""

    before: bytes
    after: bytes
    fields: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    """The same for a text and what is beside it."""


CHAT = Shape(
    b'"message":{"role":"assistant","content":',
    b"}",
    lambda text, more: {"message": {"role": "assistant", "content": text, **more}},
)
PROMPT = Shape(b'"response":', b"", lambda text, more: {"response": text, **more})


def ask_options(exchange: Exchange, body: AnswerBody) -> dict[str, Any]:
    """Options of the generation. Raises ProblemError, RequestError."""
    options = form.options_of(exchange, body.options)
    if body.format not in (None, ""):
        options["response_format"] = _format(body.format)
    top = top_of(body.top_logprobs, "top_logprobs")
    options["logprobs"] = (top or 0) if body.logprobs else None
    return options


def _format(given: Any) -> Any:
    if given == "json":
        return {"type": "json_object"}
    if isinstance(given, dict):
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": given}}
    raise refuse('format must be "json" or a JSON schema', "format")


def thinking(think: bool | str | None) -> dict[str, Any]:
    """Variables of the chat template for `think`. Raises ProblemError."""
    if think is None:
        return {}
    if isinstance(think, bool):
        return dict.fromkeys(reasoning.SWITCHES, True) if think else reasoning.off()
    if think not in _LEVELS:
        raise refuse(f"think must be true, false or one of {', '.join(_LEVELS)}", "think")
    return reasoning.of_effort(think)


def refuse_images(images: Any, where: str) -> None:
    """Raise ProblemError where there are images."""
    if images:
        raise refuse("this server reads text alone; leave out the images", where)


async def load_only(exchange: Exchange, body: AnswerBody, shape: Shape) -> dict[str, Any]:
    """Without a prompt: load the model, or unload it where `keep_alive` is 0."""
    models = exchange.house.models
    keep_alive = form.seconds_of(body.keep_alive)
    known = models.shelf.find(body.called)
    reason = "load"
    if keep_alive == 0:
        await models.unload(known.name)
        reason = "unload"
    else:
        async with models.lease(known, keep_alive):
            pass
    line = {"model": body.called, "created_at": form.now(), **shape.fields("", {}), "done": True}
    return {**line, "done_reason": reason}


class Answer:
    """An answer to a body, as lines or whole."""

    def __init__(self, exchange: Exchange, body: AnswerBody, ask: Ask, shape: Shape, *, context: bool = False) -> None:
        """`context`: the last line has the tokens of prompt and answer."""
        self._exchange = exchange
        self._body = body
        self._ask = ask
        self._shape = shape
        self._context = context
        self._began = self._loading = 0.0
        self._n_calls = 0

    def framing(self) -> Framing:
        """Errors as lines; while nothing comes, lines without text."""
        return Framing(NDJSON, lambda: self._line("", {}), form.FRAMING.error)

    async def whole(self) -> dict[str, Any]:
        """The answer in one object."""
        async with self._asked() as asked:
            await self._check(asked)
            completion = await asked.whole()
            more: dict[str, Any] = {}
            if completion.reasoning and self._body.think is not False:
                more["thinking"] = completion.reasoning
            if completion.tool_calls:
                more["tool_calls"] = [self._call(call) for call in completion.tool_calls]
            last = self._last(completion, self._shape.fields(completion.text, more))
            if completion.logprobs is not None:
                tokenizer = asked.served.llm.llm.tokenizer
                last["logprobs"] = [described(token, tokenizer) for token in completion.logprobs]
            return last

    async def lines(self) -> AsyncIterator[bytes]:
        """The answer as it comes."""
        async with self._asked() as asked:
            await self._check(asked)
            scored: list[TokenLogprob] = []
            before = self._before()
            after = self._shape.after + b',"done":false}\n'
            thinks = self._body.think is not False
            async for _, event in asked.events():
                match event:
                    case TextDelta(text) if not scored:
                        yield before + encode(form.now()) + b"," + self._shape.before + encode(text) + after
                    case TextDelta(text):
                        yield self._line(text, {}, self._scores(asked, scored))
                    case ReasoningDelta(text) if thinks:
                        yield self._line("", {"thinking": text}, self._scores(asked, scored))
                    case ToolCallEnd(_, call) if call is not None:
                        yield self._line("", {"tool_calls": [self._call(call)]}, self._scores(asked, scored))
                    case TokenLogprobs(token):
                        scored.append(token)
                    case Finish():
                        completion = await asked.result()
                        last = self._last(completion, self._shape.fields("", {}))
                        yield encode({**last, **self._scores(asked, scored)}) + b"\n"

    def _asked(self) -> Asked:
        self._began = perf_counter()
        return Asked(self._exchange, self._ask)

    async def _check(self, asked: Asked) -> None:
        """Refuse `think` where the model does not; the model is loaded now."""
        self._loading = perf_counter() - self._began
        template = asked.template
        if not self._body.think or self._ask.messages is None or template is None:
            return
        if await asyncio.to_thread(lambda: dialect_of(template).spec.reasoning) is None:
            raise refuse(f"{self._body.called} does not think; leave out think", "think")

    def _before(self) -> bytes:
        return b'{"model":' + encode(self._body.called) + b',"created_at":'

    def _line(self, text: str, more: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> bytes:
        line = {"model": self._body.called, "created_at": form.now(), **self._shape.fields(text, more), "done": False}
        return encode({**line, **(beside or {})}) + b"\n"

    def _scores(self, asked: Asked, scored: list[TokenLogprob]) -> dict[str, Any]:
        """Log probabilities of the tokens that came since the last line."""
        if not scored:
            return {}
        tokenizer = asked.served.llm.llm.tokenizer
        found = [described(token, tokenizer) for token in scored]
        scored.clear()
        return {"logprobs": found}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        index, self._n_calls = self._n_calls, self._n_calls + 1
        return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": call.arguments}}

    def _last(self, completion: Completion, fields: Mapping[str, Any]) -> dict[str, Any]:
        found = {
            "model": self._body.called,
            "created_at": form.now(),
            **fields,
            "done": True,
            "done_reason": form.reason_of(completion.finish_reason),
            **form.durations(completion.usage, perf_counter() - self._exchange.began, self._loading),
        }
        if self._context:
            found["context"] = [*completion.prompt_tokens, *completion.tokens]
        return found
