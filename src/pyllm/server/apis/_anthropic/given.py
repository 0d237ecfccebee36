"""Bodies of Anthropic's Messages API as asks: messages, system, tools, thinking, the form of the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import field

from pyllm.chat.reasoning import SWITCHES, of_effort, off
from pyllm.server.asks import Ask
from pyllm.server.bodies import Body
from pyllm.server.options import options_of
from pyllm.server.problems import refuse

_BILLING = re.compile(r"x-anthropic-billing-header:(?:\s*[\w.-]+=[^;\s]*;?)*\s*")
"""What Claude Code puts before the system's words. It differs from request to request, and no prefix would be found."""
_UNREAD = {"image": "images", "document": "documents of this kind", "container_upload": "uploaded files"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class CountBody(Body, kw_only=True):
    """POST /v1/messages/count_tokens."""

    messages: list[dict[str, Any]]
    model: str = ""
    system: str | list[dict[str, Any]] = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: dict[str, Any] = field(default_factory=dict)
    thinking: dict[str, Any] = field(default_factory=dict)
    output_config: dict[str, Any] = field(default_factory=dict)
    output_format: dict[str, Any] | None = None
    """An older place of output_config.format."""


class MessagesBody(CountBody, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    stream: bool = False
    stop_sequences: list[str] = field(default_factory=list)

    @property
    def hides_thinking(self) -> bool:
        """Whether the client wants no reasoning, even of a model that cannot leave it."""
        return self.thinking.get("type") == "disabled"

    @property
    def eager_tools(self) -> frozenset[str]:
        """Names of the tools whose input is streamed as it is written, not when it is whole and valid."""
        return frozenset(tool["name"] for tool in self.tools if tool.get("eager_input_streaming") and "name" in tool)


def counted(body: CountBody) -> Ask:
    """The prompt of a body. Raises ProblemError."""
    messages, continues = _messages(body)
    return Ask(
        body.model,
        messages=messages,
        tools=_tools(body.tools) or None,
        variables=_variables(body),
        continues=continues,
    )


def asked(body: MessagesBody, fields: Mapping[str, Any]) -> Ask:
    """A body as an ask; `fields`: all that it holds, options of pyllm's own included. Raises ProblemError."""
    ask = counted(body)
    options = options_of(fields, MessagesBody)
    if body.max_tokens < 0:
        raise refuse("max_tokens must be 0 or more", "max_tokens")
    options["max_tokens"] = body.max_tokens
    if body.stop_sequences:
        options["stop"] = body.stop_sequences
    if (form := _form(body)) is not None:
        options["response_format"] = form
    if body.tool_choice:
        options["tool_choice"] = _tool_choice(body, ask.tools or ())
        options["parallel_tool_calls"] = body.tool_choice.get("disable_parallel_tool_use") is not True
    return Ask(
        ask.model, ask.messages, tools=ask.tools, variables=ask.variables, continues=ask.continues, options=options
    )


# --- messages


def _messages(body: CountBody) -> tuple[list[dict[str, Any]], bool]:
    """The messages in OpenAI's form, and whether the last one is to be continued."""
    found = list(_system(body.system))
    for i, message in enumerate(body.messages):
        place, role = f"messages[{i}]", message.get("role")
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list) or not all(
            isinstance(b, dict) and isinstance(b.get("type"), str) for b in blocks
        ):
            raise refuse(f"{place}.content must be a text or a list of blocks, each with its type", f"{place}.content")
        if role == "user":
            found += _user(place, blocks)
        elif role == "assistant":
            found.append(_assistant(place, blocks))
        elif role == "system":
            found.append({"role": "system", "content": _parts(place, blocks)})
        else:
            raise refuse(f"{place}.role must be user, assistant or system", f"{place}.role")
    last = found[-1] if body.messages else {}
    if last.get("role") != "assistant":
        return found, False
    if "tool_calls" in last:
        place = f"messages[{len(body.messages) - 1}]"
        raise refuse(f"{place} has tool_use blocks, and no message with their tool_result blocks follows", place)
    if not last["content"] and "reasoning_content" not in last:
        return found[:-1], False
    return found, True


def _system(system: str | list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    blocks = [{"type": "text", "text": system}] if isinstance(system, str) else system
    parts = _parts("system", blocks)
    for part in parts:
        if begun := _BILLING.match(part["text"]):
            part["text"] = part["text"][begun.end() :]
    if parts := [part for part in parts if part["text"]]:
        yield {"role": "system", "content": parts}


def _user(place: str, blocks: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Results of tools, then what the user says."""
    said = []
    for i, block in enumerate(blocks):
        if block["type"] != "tool_result":
            said.append((f"{place}.content[{i}]", block))
            continue
        text = _result(f"{place}.content[{i}]", block)
        if block.get("is_error") and "error" not in text[:40].lower():
            text = f"Error: {text}"
        yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}
    texts = [read for at, block in said if (read := _text(at, block)) is not None]
    if texts or len(said) == len(blocks):
        yield {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def _result(place: str, block: Mapping[str, Any]) -> str:
    content = block.get("content") or ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(
        isinstance(b, dict) and isinstance(b.get("type"), str) for b in content
    ):
        raise refuse(f"{place}.content must be a text or a list of blocks, each with its type", f"{place}.content")
    return "\n".join(part["text"] for part in _parts(place, content))


def _assistant(place: str, blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the model wrote before. Blocks of tools that ran elsewhere are left out."""
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(blocks):
        at, kind = f"{place}.content[{i}]", block["type"]
        if kind == "text":
            texts.append(_string(at, block, "text"))
        elif kind == "thinking":
            thoughts.append(_string(at, block, "thinking"))
        elif kind == "tool_use":
            function = {"name": _string(at, block, "name"), "arguments": block.get("input") or {}}
            calls.append({"id": _string(at, block, "id"), "type": "function", "function": function})
        elif kind in _UNREAD:
            _text(at, block)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thought := "\n".join(filter(None, thoughts)):
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _parts(place: str, blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Blocks as text parts; what else they say (cache_control, citations) means nothing here."""
    if not all(isinstance(block.get("type"), str) for block in blocks):
        raise refuse(f"{place} must be a text or a list of blocks, each with its type", place)
    found = (_text(f"{place}[{i}]", block) for i, block in enumerate(blocks))
    return [{"type": "text", "text": text} for text in found if text is not None]


def _text(place: str, block: Mapping[str, Any]) -> str | None:
    """A block's text; None for kinds that say nothing to a model here. Raises ProblemError for images."""
    kind = block["type"]
    if kind == "text":
        return _string(place, block, "text")
    if kind == "search_result":
        heading = [block.get("title"), block.get("source")]
        return "\n".join([*filter(None, map(_plain, heading)), _plain(block.get("content"))])
    source = block.get("source")
    if kind == "document" and isinstance(source, dict) and source.get("type") in ("text", "content"):
        said = _plain(source.get("data" if source["type"] == "text" else "content"))
        return "\n".join(filter(None, [_plain(block.get("title")), _plain(block.get("context")), said]))
    if kind == "tool_reference":
        return _plain(block.get("tool_name"))
    if kind in _UNREAD:
        raise refuse(f"{place} is of type {kind}; this model reads text alone, and no {_UNREAD[kind]}", place)
    return None


def _plain(value: Any) -> str:
    """A text, or the texts of text blocks."""
    if isinstance(value, list):
        texts = [block.get("text") for block in value if isinstance(block, dict)]
        return "\n".join(text for text in texts if isinstance(text, str))
    return value if isinstance(value, str) else ""


def _string(place: str, block: Mapping[str, Any], name: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise refuse(f"{place}.{name} must be a text", f"{place}.{name}")
    return value


# --- tools, thinking, forms


def _tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools that the client runs, as functions. Those that Anthropic's servers know or run are left out."""
    found = []
    for i, tool in enumerate(tools):
        if tool.get("type") not in (None, "custom"):
            continue
        place = f"tools[{i}]"
        function: dict[str, Any] = {"name": _string(place, tool, "name")}
        if tool.get("description") is not None:
            function["description"] = _string(place, tool, "description")
        if not isinstance(tool.get("input_schema"), dict):
            raise refuse(f"{place}.input_schema must be a JSON schema", f"{place}.input_schema")
        function["parameters"] = tool["input_schema"]
        if tool.get("strict") is True:
            function["strict"] = True
        found.append({"type": "function", "function": function})
    return found


def _tool_choice(body: MessagesBody, tools: Sequence[Mapping[str, Any]]) -> str:
    kind = body.tool_choice.get("type")
    if kind == "tool":
        name = _string("tool_choice", body.tool_choice, "name")
        if all(tool["function"]["name"] != name for tool in tools):
            raise refuse(f"tool_choice.name is {name[:100]!r}, and there is no such tool", "tool_choice.name")
        return name
    if kind not in _CHOICES:
        raise refuse("tool_choice.type must be auto, any, tool or none", "tool_choice.type")
    if kind == "any" and not tools:
        raise refuse("tool_choice is any, and there are no tools that the model could call", "tool_choice")
    return _CHOICES[kind]


def _variables(body: CountBody) -> dict[str, Any]:
    """What the model's template is told of thinking; nothing where the client says nothing."""
    effort, kind = body.output_config.get("effort"), body.thinking.get("type")
    if effort is not None and not isinstance(effort, str):
        raise refuse("output_config.effort must be a text", "output_config.effort")
    found = {name: value for name, value in of_effort(effort).items() if name not in SWITCHES}
    if kind == "disabled":
        found |= off()
    elif kind in ("enabled", "adaptive"):
        found |= dict.fromkeys(SWITCHES, True)
        budget = body.thinking.get("budget_tokens")
        if isinstance(budget, int):
            found["thinking_budget"] = budget  # Seed-OSS's templates know it
    elif kind not in (None, "between_tools"):
        raise refuse("thinking.type must be enabled, adaptive or disabled", "thinking.type")
    return found


def _form(body: CountBody) -> dict[str, Any] | None:
    """The form of the answer, as OpenAI has it."""
    given = body.output_config.get("format") or body.output_format
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
        raise refuse('output_config.format must be {"type": "json_schema", "schema": {…}}', "output_config.format")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given["schema"], "strict": True}}
