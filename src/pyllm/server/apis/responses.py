"""OpenAI's Responses, without state: the whole conversation comes with each request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from pyllm.server.api import Api, Exchange
from pyllm.server.apis._openai import form as openai
from pyllm.server.apis._responses.answer import ResponseForm
from pyllm.server.apis._responses.given import ResponsesBody, ask_of, echoed
from pyllm.server.apis._responses.stream import ResponseEvents
from pyllm.server.asks import Ask, Asked
from pyllm.server.live import COMMENT, EVENT_STREAM, Framing
from pyllm.server.problems import Problem

_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}
"""Fields of this API, by those that errors of other rooms name."""


def _error(problem: Problem) -> dict[str, Any]:
    """OpenAI's form of an error."""
    return openai.error(replace(problem, param=_NAMES.get(problem.param or "", problem.param)))


API = Api("responses", _error, named_events=True)


@API.post("/v1/responses", "/responses")
async def respond(exchange: Exchange) -> Response:
    """Answer a conversation."""
    body = exchange.read(ResponsesBody)
    ask = ask_of(exchange, body)
    if not body.stream:
        return await exchange.whole(_whole(exchange, body, ask))
    streamed = _Streamed(exchange, body, ask)
    return await exchange.live(streamed.frames(), Framing(EVENT_STREAM, lambda: COMMENT, streamed.failed))


@API.post("/v1/responses/input_tokens", "/responses/input_tokens")
async def count(exchange: Exchange) -> Response:
    """The number of tokens of what is given."""
    return await exchange.whole(_count(exchange, ask_of(exchange, exchange.read(ResponsesBody))))


async def _count(exchange: Exchange, ask: Ask) -> dict[str, Any]:
    async with Asked(exchange, ask) as asked:
        return {"object": "response.input_tokens", "input_tokens": len(await asked.tokens())}


async def _whole(exchange: Exchange, body: ResponsesBody, ask: Ask) -> dict[str, Any]:
    async with Asked(exchange, ask) as asked:
        completion = await asked.whole()
        form = ResponseForm(exchange, asked.model, echoed(body, exchange.fields), asked.served.llm.llm.tokenizer)
        return form.ended(completion.finish_reason, form.items(completion), completion.usage)


class _Streamed:
    """A response as a stream; the same object writes what fails."""

    def __init__(self, exchange: Exchange, body: ResponsesBody, ask: Ask) -> None:
        self._exchange = exchange
        self._body = body
        self._ask = ask
        self._events: ResponseEvents | None = None

    async def frames(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        async with Asked(exchange, self._ask) as asked:
            await asked.begin()
            tokenizer = asked.served.llm.llm.tokenizer
            form = ResponseForm(exchange, asked.model, echoed(self._body, exchange.fields), tokenizer)
            self._events = events = ResponseEvents(form)
            yield events.begin()
            async for _, event in asked.events():
                if frames := events.frames(event):
                    yield frames

    def failed(self, problem: Problem) -> bytes:
        """The last frame of a response that fails after its headers."""
        if self._events is not None:
            return self._events.failed(problem)
        body = self._body
        events = ResponseEvents(ResponseForm(self._exchange, body.model, echoed(body, self._exchange.fields), None))
        return events.begin() + events.failed(problem)
