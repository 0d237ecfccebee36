"""From a request of OpenAI's Responses to an ask: items become messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pyllm.chat import reasoning
from pyllm.server.api import Exchange
from pyllm.server.apis._openai import tools as wire_tools
from pyllm.server.asks import Ask
from pyllm.server.bodies import Body
from pyllm.server.logprobs import top_of
from pyllm.server.options import options_of
from pyllm.server.problems import refuse

_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Types of parts, and the key that holds their text."""
LOGPROBS = "message.output_text.logprobs"
"""What `include` asks log probabilities by."""


class ResponsesBody(Body):
    """POST /v1/responses. Options of sampling are read by their names; see `options_of`."""

    input: str | list[dict[str, Any]] = ""
    model: str = ""
    instructions: str | None = None
    stream: bool = False
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool = False
    truncation: Literal["auto", "disabled"] = "disabled"
    """"auto": the oldest turns of a conversation that is too long are left out."""
    chat_template_kwargs: dict[str, Any] | None = None


def ask_of(exchange: Exchange, body: ResponsesBody) -> Ask:
    """What is asked. Raises ProblemError, also for what needs answers that a server keeps."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(body, name) is not None:
            raise refuse(
                f"{name} needs what this server does not keep: it is stateless; send the whole conversation as input",
                name,
                code="unsupported_parameter",
            )
    if body.background:
        raise refuse("background needs answers that are kept, and this server is stateless", "background")
    functions = [tool for tool in body.tools or () if tool.get("type", "function") == "function"]
    tools = wire_tools.checked([_function(tool) for tool in functions])
    choice, tools = wire_tools.chosen(_choice(body.tool_choice, tools), tools)
    top = top_of(body.top_logprobs, "top_logprobs")
    options = {
        **options_of(exchange.fields, ResponsesBody),
        "max_tokens": body.max_output_tokens,
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "logprobs": (top or 0) if top or LOGPROBS in (body.include or ()) else None,
    }
    if (form := _object("text.format", (body.text or {}).get("format"))) is not None:
        options["response_format"] = form
    if choice not in ("auto", "none"):
        options.pop("response_format", None)  # a call has its tool's form
    effort = (body.reasoning or {}).get("effort")
    if effort is not None and not isinstance(effort, str):
        raise refuse("reasoning.effort must be a text, such as low", "reasoning.effort")
    return Ask(
        body.model,
        messages=_messages(body),
        tools=tools,
        variables={**reasoning.of_effort(effort), **(body.chat_template_kwargs or {})},
        options=options,
        truncate="oldest" if body.truncation == "auto" else None,
    )


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in the form of chats."""
    if "function" in tool:
        return dict(tool)
    function = {name: value for name, value in tool.items() if name not in ("type", "strict") and value is not None}
    return {"type": "function", "function": function | ({"strict": True} if tool.get("strict") is True else {})}


def _choice(choice: Any, tools: Any) -> Any:
    """A choice of tools of other kinds, which are left out, is the model's own."""
    if isinstance(choice, Mapping) and choice.get("type") not in ("function", "allowed_tools"):
        return "auto"
    return choice if tools or choice != "none" else "auto"


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
        return messages
    thoughts = ""
    for i, item in enumerate(body.input):
        kind = item.get("type", "message")
        if kind == "message":
            message = {"role": item.get("role", "user"), "content": _content(f"input[{i}]", item.get("content"))}
            messages.append(_thinking(message, thoughts) if message["role"] == "assistant" else message)
            thoughts = ""
        elif kind == "reasoning":
            thoughts = _thoughts(item)
        elif kind == "function_call":
            if thoughts or not messages or messages[-1]["role"] != "assistant":
                messages.append(_thinking({"role": "assistant", "content": None}, thoughts))
                thoughts = ""
            messages[-1].setdefault("tool_calls", []).append(_call(f"input[{i}]", item))
        elif kind == "function_call_output":
            output = item.get("output")
            content = _content(f"input[{i}]", output) if isinstance(output, list) else output
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        elif kind == "item_reference":
            raise refuse(f"input[{i}] refers to an item, and this server keeps none; send it whole", f"input[{i}]")
        # What else there is belongs to tools that are left out, too.
    return messages


def _thinking(message: dict[str, Any], thoughts: str) -> dict[str, Any]:
    return {**message, "reasoning_content": thoughts} if thoughts else message


def _thoughts(item: Mapping[str, Any]) -> str:
    """The text of a reasoning item: the reasoning itself, else its summary."""
    for field in ("content", "summary"):
        parts = item.get(field)
        texts = [part.get("text") for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
        if found := "\n".join(text for text in texts if isinstance(text, str)):
            return found
    return ""


def _call(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(item.get("name"), str):
        raise refuse(f"{name} is a call without a name", f"{name}.name")
    function = {"name": item["name"], "arguments": item.get("arguments") or "{}"}
    return {"id": item.get("call_id") or item.get("id") or "", "type": "function", "function": function}


def _content(name: str, content: Any) -> Any:
    """A text, or parts that are texts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise refuse(f"{name}.content must be a text or a list of parts", f"{name}.content")
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXTS:
            raise refuse(
                f"{name}.content[{j}] is of the type {str(kind)[:60]!r}; this model reads text alone",
                f"{name}.content[{j}]",
            )
    if len(content) == 1 and isinstance(text := content[0].get(_TEXTS[content[0]["type"]]), str):
        return text
    return content


def _object(name: str, value: Any) -> Mapping[str, Any] | None:
    if value is not None and not isinstance(value, Mapping):
        raise refuse(f"{name} must be an object", name)
    return value


def echoed(body: ResponsesBody, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a response repeats of its request."""
    tools: Sequence[Any] = body.tools or ()
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
        "store": False,
        "temperature": fields.get("temperature"),
        "text": {"format": {"type": "text"}, **(body.text or {})},
        "tool_choice": body.tool_choice if body.tool_choice is not None else "auto",
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": fields.get("top_p"),
        "truncation": body.truncation,
        "user": fields.get("user"),
    }
