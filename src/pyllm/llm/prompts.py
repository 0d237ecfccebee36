"""Prompts as the methods of `LLM` accept them: texts or token ids, one or several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pyllm.arguments import Kind, TokenIds, decode_hint, entries_of, kind_of, refusal
from pyllm.chat.messages import Message, messages_of

_ONE = "a text or a list of token ids"
_SEVERAL = "a list of prompts, each a text or a list of token ids"
_CHATS = "a list of prompts or chats, each a text, a list of token ids or a list of messages"
_IDS = kind_of(TokenIds)


def one_prompt(name: str, value: Any, hint: str = "generate() takes several prompts") -> str | list[int]:
    """A prompt as text or a list of ids. `hint` is added to the error for several prompts. Raises RequestError."""
    if isinstance(value, str):
        return value
    entries = entries_of(value)
    if entries is None:
        raise refusal(name, value, _ONE, decode_hint(value))
    if entries and _is_prompt(entries[0]):
        raise refusal(name, value, _ONE, hint)
    ids: list[int] = _IDS.take(name, entries)
    return ids


def several_prompts(name: str, value: Any) -> list[str | list[int]]:
    """Prompts as texts or lists of ids. Raises RequestError."""
    if isinstance(value, str):
        raise refusal(name, value, _SEVERAL, "complete() takes one prompt")
    entries = entries_of(value)
    if entries is None:
        raise refusal(name, value, _SEVERAL, decode_hint(value))
    if entries and all(isinstance(entry, int) for entry in entries):
        raise refusal(name, value, _SEVERAL, "complete() takes the token ids of one prompt")
    return [one_prompt(f"{name}[{i}]", entry, "lists within it are one too many") for i, entry in enumerate(entries)]


def prompts_or_chats(name: str, value: Any) -> Iterable[str | list[int] | list[dict[str, Any]]]:
    """Prompts, and chats as lists of messages; of an iterator each one is checked when it is taken. Raises
    RequestError."""
    if is_iterator(value):
        return (_prompt_or_chat(f"{name}[{i}]", entry) for i, entry in enumerate(value))
    if isinstance(value, Mapping):
        raise refusal(name, value, _CHATS, "chat() answers one chat")
    entries = None if isinstance(value, str) else entries_of(value)
    if entries is None or not any(_is_chat(entry) for entry in entries):
        if entries and isinstance(entries[0], Mapping):
            raise refusal(name, value, _CHATS, "chat() answers one chat")
        return several_prompts(name, value if entries is None else entries)
    return [_prompt_or_chat(f"{name}[{i}]", entry) for i, entry in enumerate(entries)]


def _prompt_or_chat(name: str, entry: Any) -> str | list[int] | list[dict[str, Any]]:
    if _is_chat(entry):
        return messages_of(name, entry)
    return one_prompt(name, entry, "lists within it are one too many")


def _is_chat(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) > 0 and isinstance(entry[0], Mapping)


def is_iterator(value: Any) -> bool:
    """Whether a value gives its entries one by one, and once."""
    return isinstance(value, Iterator)


def one_or_several(name: str, value: Any) -> str | list[int] | list[str | list[int]]:
    """One prompt or several, judged by the first entry; an empty list is no prompts."""
    entries = None if isinstance(value, str) else entries_of(value)
    if entries is not None and (not entries or _is_prompt(entries[0])):
        return several_prompts(name, entries)
    return one_prompt(name, value if entries is None else entries)


def _is_prompt(entry: Any) -> bool:
    return isinstance(entry, str | bytes) or entries_of(entry) is not None


Prompt = Annotated[str | Iterable[int], Kind(_ONE, one_prompt)]
"""A text, or token ids. Methods get it as a text or a list."""
Prompts = Annotated[Iterable[str | Iterable[int]], Kind(_SEVERAL, several_prompts)]
"""Several of them."""
PromptsOrChats = Annotated[Iterable[str | Iterable[int] | Iterable[Message]], Kind(_CHATS, prompts_or_chats)]
"""Several prompts, or chats as lists of messages. Methods get a list, or an iterator for an iterator."""
PromptOrPrompts = Annotated[
    str | Iterable[int] | Iterable[str | Iterable[int]], Kind(f"{_ONE}, or several of them", one_or_several)
]
