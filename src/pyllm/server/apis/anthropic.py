"""Anthropic's API: messages, and their tokens counted. Models are OpenAI's, in a form that both clients read."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from pyllm.errors import ContextFullError
from pyllm.llm.events import Finish
from pyllm.server.api import Api, Exchange
from pyllm.server.apis._anthropic.answer import PING, STOP, Blocks, content_of, end_of, message, usage_of
from pyllm.server.apis._anthropic.given import CountBody, MessagesBody, asked, counted
from pyllm.server.asks import Ask, Asked
from pyllm.server.live import COMMENT, EVENT_STREAM, Framing, event_frame
from pyllm.server.problems import Problem, ProblemError

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error(problem: Problem) -> dict[str, Any]:
    """Anthropic's form of an error."""
    kind = _KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": problem.message},
        "request_id": problem.request_id,
    }


API = Api("anthropic", error, named_events=True)


@API.post("/v1/messages")
async def messages(exchange: Exchange) -> Response:
    """Answer a chat."""
    body = exchange.read(MessagesBody)
    ask = asked(body, exchange.fields)
    if not body.stream:
        return await exchange.whole(_whole(exchange, body, ask))
    begun = False

    async def frames() -> AsyncIterator[bytes]:
        nonlocal begun
        async for frame in _frames(exchange, body, ask):
            begun = True
            yield frame

    def failed(problem: Problem) -> bytes:
        return event_frame("error", error(replace(problem, request_id=exchange.id)))

    # Clients expect message_start before all other events, and ignore comments.
    return await exchange.live(frames(), Framing(EVENT_STREAM, lambda: PING if begun else COMMENT, failed))


@API.post("/v1/messages/count_tokens")
async def count_tokens(exchange: Exchange) -> Response:
    """The tokens of a prompt."""
    ask = counted(exchange.read(CountBody))
    return await exchange.whole(_count(exchange, ask))


async def _count(exchange: Exchange, ask: Ask) -> dict[str, int]:
    async with Asked(exchange, ask) as to_model:
        return {"input_tokens": len(await to_model.tokens())}


async def _whole(exchange: Exchange, body: MessagesBody, ask: Ask) -> dict[str, Any]:
    async with Asked(exchange, ask) as to_model:
        with _lengths_said():
            completion = await to_model.whole()
        usage = completion.usage
        content = content_of(completion, thinking=not body.hides_thinking)
        n_ctx = to_model.served.llm.llm.n_ctx
        return {
            **message(
                exchange.id, to_model.model, content, usage_of(usage.n_prompt, usage.n_cached, usage.n_generated)
            ),
            **end_of(completion.finish_reason, completion.stop_string, usage, body.max_tokens, n_ctx),
        }


async def _frames(exchange: Exchange, body: MessagesBody, ask: Ask) -> AsyncIterator[bytes]:
    blocks = Blocks(body.eager_tools, thinking=not body.hides_thinking)
    async with Asked(exchange, ask) as to_model:
        with _lengths_said():
            n_prompt = await to_model.begin()
        begun = message(exchange.id, to_model.model, [], usage_of(n_prompt, 0, 0))
        yield event_frame("message_start", {"type": "message_start", "message": begun})
        async for _, event in to_model.events():
            if isinstance(event, Finish):
                usage, n_ctx = event.usage, to_model.served.llm.llm.n_ctx
                delta = {
                    "type": "message_delta",
                    "delta": end_of(event.reason, event.stop_string, usage, body.max_tokens, n_ctx),
                    "usage": usage_of(usage.n_prompt, usage.n_cached, usage.n_generated),
                }
                yield blocks.end() + event_frame("message_delta", delta) + STOP
            elif frames := blocks.frames(event):
                yield frames


@contextlib.contextmanager
def _lengths_said() -> Iterator[None]:
    """A prompt that is too long is refused in Anthropic's words: by them clients know that a chat must be shortened."""
    try:
        yield
    except ContextFullError as failure:
        text = f"prompt is too long: {failure.n_tokens} tokens > {failure.n_ctx} maximum"
        raise ProblemError(Problem(400, "context_length_exceeded", text, "messages")) from failure
