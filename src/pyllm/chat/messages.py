"""A chat's messages: accepted types, and the turns by which a long history is shortened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from typing import Annotated, Any

from pyllm.arguments import Kind, entries_of, refusal
from pyllm.chat.plain import plain
from pyllm.errors import RequestError

Message = Mapping[str, Any]
"""One message of a chat: "role" ("system", "user", "assistant", "tool") and "content"."""

_WORDS = "a text or a list of messages such as {'role': 'user', 'content': '...'}"
_ALWAYS = ("system", "developer")
"""Roles of messages that are never left out."""


def messages_of(name: str, value: Any) -> list[dict[str, Any]]:
    """Messages as dictionaries; a text is one message of the user. Raises RequestError for other values."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, Mapping):
        raise refusal(name, value, _WORDS, "put it into a list")
    entries = entries_of(value)
    if entries is None:
        raise refusal(name, value, _WORDS)
    return [_message(f"{name}[{i}]", entry) for i, entry in enumerate(entries)]


Messages = Annotated[str | Iterable[Message], Kind("a list of messages", messages_of)]
"""Messages of a chat; a text alone is one message of the user. Functions get them as a list of dictionaries."""


def _tools_of(name: str, value: Any) -> list[dict[str, Any]]:
    entries = entries_of(value)
    if entries is None:
        raise refusal(name, value, "a list of dictionaries")
    return [_dictionary(f"{name}[{i}]", entry, "a dictionary") for i, entry in enumerate(entries)]


Tools = Annotated[Sequence[Mapping[str, Any]], Kind("a list of dictionaries", _tools_of)]
"""Functions that a model may call, as JSON schemas. Functions get them as a list of dictionaries."""


def turns(messages: Sequence[Message]) -> list[range]:
    """The turns of a chat: a message of the user with its answers, up to the next one.

    Messages before the first one of the user are a turn too, except the system's.
    """
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
    first = next((i for i, message in enumerate(messages) if message["role"] not in _ALWAYS), len(messages))
    if first < len(messages) and first not in starts:
        starts.insert(0, first)
    return [range(a, b) for a, b in pairwise([*starts, len(messages)])]


def without(messages: Sequence[Message], left_out: Sequence[range]) -> list[Message]:
    """The messages without some turns; the system's messages stay."""
    gone = {i for turn in left_out for i in turn}
    return [message for i, message in enumerate(messages) if i not in gone or message["role"] in _ALWAYS]


def _message(name: str, value: Any) -> dict[str, Any]:
    message = _dictionary(name, value, "a dictionary with a 'role' and a 'content'")
    if not isinstance(message.get("role"), str):
        raise RequestError(f"{name} must have a 'role', which is a text: system, user, assistant or tool")
    content = message.get("content")
    if content is not None and not isinstance(content, str | Mapping) and entries_of(content) is None:
        raise refusal(f"the content of {name}", content, "a text or a list of parts")
    if "content" not in message and len(message) == 1:
        raise RequestError(f"{name} has no 'content', which is a text")
    return message


def _dictionary(name: str, value: Any, words: str) -> dict[str, Any]:
    """A dictionary, or the equivalent of a dataclass or pydantic model."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(getattr(value, "message", None), Mapping):
        raise refusal(name, value, words, "its property 'message' is one")
    if (is_dataclass(value) and not isinstance(value, type)) or callable(getattr(value, "model_dump", None)):
        return dict(plain(value))
    raise refusal(name, value, words)
