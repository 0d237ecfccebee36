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
    suspects = [i for i, m in enumerate(messages) if m["role"] != "assistant" and not _found(m["content"], text)]
    if not suspects:
        return []
    needles = {i: f"pyllmword{n}end" for n, i in enumerate(suspects)}
    changed = [dict(message) for message in messages]
    for i, needle in needles.items():
        in_parts = isinstance(changed[i]["content"], list)
        changed[i]["content"] = [{"type": "text", "text": needle}] if in_parts else needle
    written = render(changed)
    return [messages[i] for i in suspects if needles[i] not in written]


def _found(content: Any, text: str) -> bool:
    if content is None:
        return True
    if isinstance(content, list):
        return all(_found(part.get("text") if isinstance(part, dict) else part, text) for part in content)
    if not isinstance(content, str):
        return True  # in a form that only this template knows
    said = content.strip()
    return said in text or json.dumps(said, ensure_ascii=False)[1:-1] in text
