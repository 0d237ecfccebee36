"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from pyllm.chat import reasoning
from pyllm.llm.results import Completion
from pyllm.server.api import Exchange
from pyllm.server.apis._openai import tools as wire_tools
from pyllm.server.apis._openai.chunks import ChatStyle, chunks
from pyllm.server.apis._openai.form import API, FRAMING, chat_logprobs, head, n_tokens, reason_of, usage_of
from pyllm.server.asks import Ask, Asked
from pyllm.server.bodies import Body
from pyllm.server.logprobs import top_of
from pyllm.server.options import options_of
from pyllm.server.problems import refuse
from pyllm.tokenizers import Tokenizer


class ChatBody(Body):
    """A chat. Options of sampling and of the answer's form are read by their names; see `options_of`."""

    messages: list[dict[str, Any]]
    model: str = ""
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: int = 1
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    functions: list[dict[str, Any]] | None = None
    """Tools in the form of 2023, with answers in that form."""
    function_call: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning: dict[str, Any] | None = None
    """OpenRouter's form: {"effort": …}."""
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    """The last message is the assistant's, and unfinished; where it is not said, a last message of the assistant is."""
    add_generation_prompt: bool | None = None


@API.post("/v1/chat/completions", "/chat/completions")
async def chat(exchange: Exchange) -> Response:
    """Answer a chat."""
    body = exchange.read(ChatBody)
    ask = _ask(exchange, body)
    style = ChatStyle(
        usage=bool((body.stream_options or {}).get("include_usage")),
        old_calls=_is_old(body),
    )
    if body.stream:
        return await exchange.live(chunks(exchange, ask, style), FRAMING)
    return await exchange.whole(whole(exchange, ask, style))


def _is_old(body: ChatBody) -> bool:
    return body.functions is not None and body.tools is None


def _ask(exchange: Exchange, body: ChatBody) -> Ask:
    old = _is_old(body)
    given = [{"type": "function", "function": f} for f in body.functions or ()] if old else body.tools
    choice, tools = wire_tools.chosen(body.function_call if old else body.tool_choice, wire_tools.checked(given))
    top = top_of(body.top_logprobs, "top_logprobs")
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    options = {
        **options_of(exchange.fields, ChatBody),
        "max_tokens": limit,
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls and not old,
        "logprobs": (top or 0) if body.logprobs or top else None,
    }
    if choice not in ("auto", "none"):
        options.pop("response_format", None)  # a call has its tool's form
    return Ask(
        body.model,
        messages=body.messages,
        tools=tools,
        variables={**reasoning.of_effort(_effort(body)), **(body.chat_template_kwargs or {})},
        continues=_continues(body),
        options=options,
        n=body.n,
    )


def _effort(body: ChatBody) -> str | None:
    if body.reasoning_effort is not None or body.reasoning is None:
        return body.reasoning_effort
    effort = body.reasoning.get("effort")
    if effort is not None and not isinstance(effort, str):
        raise refuse("reasoning.effort must be a text, such as low", "reasoning.effort")
    return effort


def _continues(body: ChatBody) -> bool:
    if body.continue_final_message is not None:
        return body.continue_final_message
    last = body.messages[-1] if body.messages else {}
    return (
        last.get("role") == "assistant"
        and bool(last.get("content"))
        and not last.get("tool_calls")
        and not last.get("function_call")
        and not body.add_generation_prompt
    )


async def whole(exchange: Exchange, ask: Ask, style: ChatStyle) -> dict[str, Any]:
    """The body of an answer that is sent whole."""
    async with Asked(exchange, ask) as asked:
        completion = await asked.whole()
        tokenizer = asked.served.llm.llm.tokenizer
        return {
            **head(exchange, "chatcmpl-", "chat.completion", asked.model),
            "choices": [_choice(i, one, style, tokenizer) for i, one in enumerate(completion.choices)],
            "usage": usage_of(
                [[one.usage for one in completion.choices]],
                n_tokens(tokenizer, [one.reasoning for one in completion.choices]),
            ),
        }


def _choice(index: int, completion: Completion, style: ChatStyle, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "index": index,
        "message": message_of(completion, style),
        "logprobs": chat_logprobs(completion.logprobs, tokenizer) if completion.logprobs is not None else None,
        "finish_reason": style.reason(reason_of(completion.finish_reason)),
    }


def message_of(completion: Completion, style: ChatStyle) -> Mapping[str, Any]:
    """An answer as a message; its content is null where there are calls alone."""
    message = {**completion.message, "refusal": None}
    if calls := message.get("tool_calls"):
        message["content"] = message["content"] or None
        if style.old_calls:
            message["function_call"] = calls[0]["function"]
            del message["tool_calls"]
    return message
