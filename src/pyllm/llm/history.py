"""Chats that are longer than the context: which of the oldest turns are left out.

Turns go whole, the system's messages and the last turn stay. Rather than one more turn with every message, some go at
a time: what is left then begins alike from one message to the next, and is not computed anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pyllm.chat.messages import turns, without

Truncate = Literal["oldest"]


def room_for_answer(n_ctx: int, max_tokens: int | None) -> int:
    """Tokens of the context that a prompt is shortened for: `max_tokens`, at most half of them; else a quarter."""
    return n_ctx // 4 if max_tokens is None else min(max_tokens, n_ctx // 2)


def shortened(
    messages: Sequence[Mapping[str, Any]], most: int, encode: Callable[[Sequence[Mapping[str, Any]]], list[int]]
) -> tuple[list[int], int]:
    """The prompt without as many of the oldest turns as it takes to have `most` tokens, and how many messages went.

    Where the last turn alone has more tokens, that is the prompt. The turns are found by bisection.
    """
    tokens = encode(messages)
    found = turns(messages)
    last = len(found) - 1
    if len(tokens) <= most or last < 1:
        return tokens, 0
    prompts: dict[int, list[int]] = {}

    def prompt(n: int) -> list[int]:
        """Without the first n turns."""
        if n not in prompts:
            prompts[n] = encode(without(messages, found[:n]))
        return prompts[n]

    low, high = 1, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(prompt(middle)) <= most else (middle + 1, high)
    step = _step(len(found) - low)
    n = min(-(-low // step) * step, last)
    return prompt(n), len(messages) - len(without(messages, found[:n]))


def _step(n_kept: int) -> int:
    """Turns that go at a time, where so many fit: a quarter of them, as a power of 2."""
    return 1 << max(0, (n_kept // 4).bit_length() - 1)
