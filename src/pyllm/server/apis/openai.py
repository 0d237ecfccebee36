"""OpenAI's API: chats."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response

from pyllm.chat.events import ReasoningDelta, TextDelta
from pyllm.llm.events import Finish
from pyllm.llm.results import Completion, Usage
from pyllm.server.api import Api, Exchange
from pyllm.server.asks import Ask, Asked
from pyllm.server.bodies import Body
from pyllm.server.live import COMMENT, EVENT_STREAM, Framing, data_frame
from pyllm.server.problems import Problem


def error(problem: Problem) -> dict[str, Any]:
    """OpenAI's form of an error."""
    return {"error": {"message": problem.message, "type": problem.kind, "param": problem.param, "code": problem.code}}


API = Api("openai", error)
FRAMING = Framing(EVENT_STREAM, lambda: COMMENT, lambda problem: data_frame(error(problem)))


class ChatBody(Body):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    model: str = ""
    stream: bool = False
    max_tokens: int | None = None
    temperature: float | None = None


@API.post("/v1/chat/completions")
async def chat(exchange: Exchange) -> Response:
    """Answer a chat."""
    body = exchange.read(ChatBody)
    options: dict[str, Any] = {"max_tokens": body.max_tokens}
    if body.temperature is not None:
        options["temperature"] = body.temperature
    ask = Ask(body.model, messages=body.messages, options=options)
    if body.stream:
        return await exchange.live(_chunks(exchange, ask), FRAMING)
    return await exchange.whole(_whole(exchange, ask))


async def _whole(exchange: Exchange, ask: Ask) -> dict[str, Any]:
    async with Asked(exchange, ask) as asked:
        completion = await asked.whole()
        return {
            "id": exchange.id.replace("req_", "chatcmpl-"),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": asked.model,
            "choices": [_choice(i, one) for i, one in enumerate(completion.choices)],
            "usage": _usage(completion.usage),
        }


def _choice(index: int, completion: Completion) -> dict[str, Any]:
    return {"index": index, "message": completion.message, "finish_reason": completion.finish_reason, "logprobs": None}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_generated,
        "total_tokens": usage.n_prompt + usage.n_generated,
        "prompt_tokens_details": {"cached_tokens": usage.n_cached},
    }


async def _chunks(exchange: Exchange, ask: Ask) -> AsyncIterator[bytes]:
    async with Asked(exchange, ask) as asked:
        head = {
            "id": exchange.id.replace("req_", "chatcmpl-"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": asked.model,
        }

        def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
            return data_frame({**head, "choices": [{"index": index, "delta": delta, "finish_reason": reason}]})

        async for index, event in asked.events():
            match event:
                case TextDelta(text):
                    yield chunk(index, {"content": text})
                case ReasoningDelta(text):
                    yield chunk(index, {"reasoning_content": text})
                case Finish(reason):
                    yield chunk(index, {}, reason)
        yield b"data: [DONE]\n\n"
