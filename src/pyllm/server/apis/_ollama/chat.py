"""POST /api/chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from pyllm.server.api import Exchange
from pyllm.server.apis._ollama import form
from pyllm.server.apis._ollama.answers import (
    CHAT,
    PLAIN,
    Answer,
    AnswerBody,
    ask_options,
    load_only,
    refuse_images,
    thinking,
)
from pyllm.server.asks import Ask
from pyllm.server.live import Reply
from pyllm.server.problems import refuse


class ChatBody(AnswerBody):
    """A chat."""

    messages: list[dict[str, Any]] = []  # noqa: RUF012 - msgspec copies it
    tools: list[dict[str, Any]] | None = None


@form.API.post("/api/chat")
async def chat(exchange: Exchange) -> Response:
    """Answer a chat; without messages, load or unload the model."""
    body = exchange.read(ChatBody)
    if not body.messages:
        return Reply(await load_only(exchange, body, CHAT))
    messages = [_message(f"messages[{i}]", message) for i, message in enumerate(body.messages)]
    ask = Ask(
        body.called,
        messages=messages,
        tools=_tools(body.tools),
        variables=thinking(body.think),
        continues=_continues(messages),
        options=ask_options(exchange, body),
        fallback=PLAIN,
        truncate="oldest" if body.truncate else None,
        keep_alive=form.seconds_of(body.keep_alive),
    )
    answer = Answer(exchange, body, ask, CHAT)
    if body.stream:
        return await exchange.live(answer.lines(), answer.framing())
    return await exchange.whole(answer.whole())


def _message(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A message in OpenAI's form. Raises ProblemError."""
    if not isinstance(given.get("role"), str):
        raise refuse(f"{where}.role must be a text: system, user, assistant or tool", f"{where}.role")
    if not isinstance(given.get("content"), str | None):
        raise refuse(f"{where}.content must be a text", f"{where}.content")
    refuse_images(given.get("images"), f"{where}.images")
    found = {key: value for key, value in given.items() if value is not None and key not in ("images", "tool_name")}
    if isinstance(given.get("tool_name"), str):
        found["name"] = given["tool_name"]
    return found


def _tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools, without fields that are null. Raises ProblemError."""
    for i, tool in enumerate(tools or ()):
        function = tool.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise refuse(f"tools[{i}].function must be an object with a name", f"tools[{i}].function")
    return [_without_nulls(tool) for tool in tools] if tools else None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


def _continues(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last message is an answer that was begun."""
    last = messages[-1]
    return last["role"] == "assistant" and bool(last.get("content")) and not last.get("tool_calls")
