"""Whether a prompt says what its messages say: a template must not leave out a message in silence."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any


def left_out(
    messages: Sequence[dict[str, Any]], text: str, render: Callable[[list[dict[str, Any]]], str]
) -> list[dict[str, Any]]:
    """Messages whose words are not in the prompt. `render` is asked only where words are not found as they are.

    A template may write them otherwise (trimmed, as JSON): then another text in their place shows as well. The
    assistant's own words are the template's business: it leaves out what was reasoned.
    """
    suspects, at = [], 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            at = max(at, found := _place(message["content"], text, at))
            suspects += [i] if found < 0 else []
    if not suspects:
        return []
    needles = {i: f"pyllmword{n}end" for n, i in enumerate(suspects)}
    changed = [dict(message) for message in messages]
    for i, needle in needles.items():
        in_parts = isinstance(changed[i]["content"], list)
        changed[i]["content"] = [{"type": "text", "text": needle}] if in_parts else needle
    written = render(changed)
    return [messages[i] for i in suspects if needles[i] not in written]


def _place(content: Any, text: str, at: int) -> int:
    """Where the words of a content are in the text, looked for from a place on, then anywhere; -1 if they are not."""
    if isinstance(content, list):
        for part in content:
            at = _place(part.get("text") if isinstance(part, dict) else part, text, at)
            if at < 0:
                break
        return at
    if not isinstance(content, str):
        return at  # in a form that only this template knows
    said = content.strip()
    for words in (said, json.dumps(said, ensure_ascii=False)[1:-1]):
        for start in (at, 0):
            if (place := text.find(words, start)) >= 0:
                return place
    return -1
