"""Messages, made fit for a template: what it has no place for is said in a way that it has.

`fitted` gets messages in one form (`pyllm.chat.wire`) and what the template can show (`pyllm.chat.caps`). Where a
template shows all of a chat as it is, nothing is changed, and the prompt is the one that the model was trained on.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pyllm.chat.caps import TemplateCaps
from pyllm.chat.tool_text import calls_text, described, result_text

Message = dict[str, Any]

_BETWEEN = "\n\n"
"""Between two messages that become one."""
_LINE = "\n"
"""Between two parts that become one."""


def fitted(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    caps: TemplateCaps,
    write: Callable[[Sequence[Mapping[str, Any]]], str] | None = None,
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """The messages and tools as the template takes them. The caller's are not changed.

    `write` gives the text of calls where the template shows tools but no calls.
    """
    own = [dict(message) for message in messages]
    given = [dict(tool) for tool in tools] if tools else None
    if not caps.known:
        return own, given
    own = [_reasoned(message, caps, i > _last_user(own)) for i, message in enumerate(own)]
    if given and not caps.bare_tools:
        given = [_with_descriptions(tool) for tool in given]
    instructions = ""
    if given and not caps.tools:
        instructions, given = described(given, caps.call_form if caps.calls else ""), None
    if instructions and not (caps.calls and caps.call_form):
        own = _without_calls(own, results=False)
    elif not caps.calls and any("tool_calls" in m or m["role"] == "tool" for m in own):
        own = _without_calls(own, caps.tools and caps.results, write if caps.tools else None)
    elif any("tool_calls" in m or m["role"] == "tool" for m in own):
        own = _with_calls(own, caps)
    own = _with_systems(own, caps, instructions)
    own = [_with_content(message, caps) for message in own]
    return (own if caps.repeats else _alternating(own)), given


def text_of(content: Any) -> str:
    """A content as one text: parts a line each, dictionaries and lists of other things as JSON."""
    if content is None or isinstance(content, str):
        return content or ""
    if (parts := _listed(content)) is not None:
        return _LINE.join(part["text"] for part in parts)
    return json.dumps(content, ensure_ascii=False)


def _with_descriptions(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool with all that templates ask for: descriptions, empty where there are none."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return dict(tool)
    schema = function.get("parameters") or {}
    if not isinstance(schema, Mapping) or not isinstance(schema.get("properties", {}), Mapping):
        return dict(tool)
    properties = schema.get("properties", {})
    known = {
        name: {"description": "", **entry} if isinstance(entry, Mapping) else entry
        for name, entry in properties.items()
    }
    parameters = {"type": "object", **schema, "properties": known}
    return {**tool, "function": {"description": "", **function, "parameters": parameters}}


# --- the system's words


def _with_systems(messages: list[Message], caps: TemplateCaps, instructions: str) -> list[Message]:
    """System messages where the template takes them: in place, as one at the beginning, or before the user's words."""
    places = [i for i, message in enumerate(messages) if message["role"] in ("system", "developer")]
    if not places and not instructions:
        return messages
    if caps.developer and places == [0] and messages[0]["role"] == "developer" and not instructions:
        return messages
    for i in places:
        messages[i] = {**messages[i], "role": "system"}
    n_first = next((n for n, i in enumerate(places) if n != i), len(places))
    in_place = caps.system and (n_first == len(places) or caps.late_system) and (n_first < 2 or caps.systems)
    if in_place and not instructions:
        return messages
    gathered = places if not in_place else places[:1] if n_first else []
    rest = [message for i, message in enumerate(messages) if i not in gathered]
    contents = [messages[i]["content"] for i in gathered]
    if len(contents) == 1 and not instructions and caps.system:
        return [{**messages[gathered[0]]}, *rest]
    said = _BETWEEN.join(filter(None, [*map(text_of, contents), instructions]))
    if caps.system:
        return [{"role": "system", "content": said}, *rest]
    return _before_the_user(rest, said)


def _before_the_user(messages: list[Message], said: str) -> list[Message]:
    """The system's words at the beginning of the first message of the user."""
    for i, message in enumerate(messages):
        if message["role"] == "user":
            return [*messages[:i], {**message, "content": _joined(said, message["content"])}, *messages[i + 1 :]]
    return [{"role": "user", "content": said}, *messages]


def _joined(first: Any, second: Any) -> Any:
    """Two contents as one; parts stay parts."""
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return first + _BETWEEN + second
    if isinstance(second, list) or isinstance(first, list):
        begun, follows = _listed(first), _listed(second)
        if begun is not None and follows is not None:
            # One part, because what joins parts later puts something of its own between them.
            middle = {**follows[0], **begun[-1], "text": begun[-1]["text"] + _BETWEEN + follows[0]["text"]}
            return [*begun[:-1], middle, *follows[1:]]
    return text_of(first) + _BETWEEN + text_of(second)


def _listed(content: Any) -> list[dict[str, Any]] | None:
    """A content as text parts; None where it is none."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        return None
    is_text = all(isinstance(part, Mapping) and part.get("type") == "text" for part in content)
    return [dict(part) for part in content] if is_text else None


def _alternating(messages: list[Message]) -> list[Message]:
    """Messages of one role in a row as one, for templates that want user and assistant by turns."""
    found: list[Message] = []
    for message in messages:
        before = found[-1] if found else None
        if (
            before is not None
            and message["role"] == before["role"]
            and message["role"] in ("user", "assistant")
            and "tool_calls" not in message
            and "tool_calls" not in before
        ):
            found[-1] = {**before, "content": _joined(before["content"], message["content"])}
        else:
            found.append(message)
    return found


# --- contents


def _with_content(message: Message, caps: TemplateCaps) -> Message:
    content, role = message["content"], message["role"]
    if content is None:
        empty = None if caps.null_content and "tool_calls" in message else ""
        return {**message, "content": empty}
    if isinstance(content, str):
        if caps.text or role == "tool":
            return message
        return {**message, "content": [{"type": "text", "text": content}]}
    if isinstance(content, list) and role not in caps.parts and _listed(content) is not None:
        return {**message, "content": text_of(content)}
    return message


def _last_user(messages: Sequence[Message]) -> int:
    return max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)


def _reasoned(message: Message, caps: TemplateCaps, current: bool) -> Message:
    """Reasoning where the template reads it; what it has no place for at all is left out.

    Templates with a field for it leave out what was reasoned before the last message of the user. So it is here, too,
    where reasoning is written into the content.
    """
    reasoning = message.get("reasoning_content")
    if message["role"] != "assistant" or not isinstance(reasoning, str) or caps.reasoning is None:
        return message
    content = message["content"]
    if caps.reasoning == "text":
        return {**message, "content": _joined(f"<think>\n{reasoning}\n</think>", content)} if current else message
    if caps.reasoning == "parts":
        return {**message, "content": _thought_parts(reasoning, content)}
    if content and "tool_calls" in message and not caps.reasoning_beside_text:
        message, reasoning = {**message, "content": ""}, reasoning + _BETWEEN + text_of(content)
    return {**message, caps.reasoning: reasoning}


def _thought_parts(reasoning: str, content: Any) -> list[dict[str, str]]:
    said = text_of(content)
    return [{"type": "thinking", "thinking": reasoning}, *([{"type": "text", "text": said}] if said else [])]


# --- calls


def _without_calls(
    messages: list[Message], results: bool, write: Callable[[Sequence[Mapping[str, Any]]], str] | None = None
) -> list[Message]:
    """Calls as the text that an assistant writes them as; results as the user's words unless the template has them."""
    found: list[Message] = []
    after_result = False
    for message in messages:
        said = text_of(message["content"])
        is_result = message["role"] == "tool" and not results
        if calls := message.get("tool_calls"):
            kept = {key: value for key, value in message.items() if key != "tool_calls"}
            written = write(calls) if write is not None else calls_text(calls)
            found.append({**kept, "content": said + _LINE + written if said else written})
        elif is_result and after_result:
            found[-1]["content"] += _LINE + result_text(said)
        elif is_result:
            found.append({"role": "user", "content": result_text(said)})
        else:
            found.append(message)
        after_result = is_result
    return found


def _with_calls(messages: list[Message], caps: TemplateCaps) -> list[Message]:
    """Calls and results in the template's own form."""
    own = [_with_function_calls(message, caps) for message in messages]
    own = _identified(own, caps)
    if not caps.text_beside_calls:
        own = [part for message in own for part in _text_apart(message)]
    return own if caps.parallel_calls else _one_by_one(own)


def _with_function_calls(message: Message, caps: TemplateCaps) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        if caps.arguments == "text" and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls}


def _identified(messages: list[Message], caps: TemplateCaps) -> list[Message]:
    """Ids in the form that the template insists on, results with the name of the call that they answer if need be.

    Missing ids are filled in where something depends on them: results without one answer the calls in their order.
    """
    wanted = caps.call_ids != "any" or not caps.parallel_calls or caps.result_names
    names: dict[str, tuple[str, str]] = {}
    """By the id that was given: the id for the template, and the function's name."""
    unanswered: list[str] = []
    n_calls, found = 0, []
    for message in messages:
        if "tool_calls" in message and wanted:
            calls, unanswered = [], []
            for call in message["tool_calls"]:
                given, name = str(call.get("id") or f"call_{n_calls}"), call["function"]["name"]
                names[given] = _id(given, name, n_calls, caps), name
                unanswered.append(given)
                calls.append({**call, "id": names[given][0]})
                n_calls += 1
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool" and wanted:
            given = str(message.get("tool_call_id") or next(iter(unanswered), f"call_{n_calls}"))
            unanswered = [id_ for id_ in unanswered if id_ != given]
            id_, name = names.get(given) or (_id(given, "", n_calls, caps), "")
            message = {**message, "tool_call_id": id_}
            if caps.result_names and name:
                message.setdefault("name", name)
        found.append(message)
    return found


def _id(given: str, name: str, at: int, caps: TemplateCaps) -> str:
    if caps.call_ids == "function":
        return given if given.startswith(f"functions.{name}:") else f"functions.{name}:{at}"
    if caps.call_ids == "any" or (len(given) == 9 and given.isascii() and given.isalnum()):
        return given
    signs = string.ascii_letters + string.digits
    return "".join(signs[byte % len(signs)] for byte in hashlib.sha256(given.encode()).digest()[:9])


def _text_apart(message: Message) -> Iterable[Message]:
    """Text and calls as two messages."""
    if message.get("tool_calls") and message["content"]:
        yield {key: value for key, value in message.items() if key != "tool_calls"}
        message = {**message, "content": ""}
    yield message


def _one_by_one(messages: list[Message]) -> list[Message]:
    """Calls of one message as several, each followed by its result."""
    found: list[Message] = []
    i = 0
    while i < len(messages):
        message = messages[i]
        i += 1
        if len(message.get("tool_calls", ())) < 2:
            found.append(message)
            continue
        results = []
        while i < len(messages) and messages[i]["role"] == "tool":
            results.append(messages[i])
            i += 1
        for n, call in enumerate(message["tool_calls"]):
            found.append({**message, "tool_calls": [call]} if n == 0 else _alone(call))
            found += [result for result in results if result.get("tool_call_id") == call["id"]]
            results = [result for result in results if result.get("tool_call_id") != call["id"]]
        found += results
    return found


def _alone(call: Mapping[str, Any]) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [call]}
