"""Chats longer than the context: which of the oldest turns are left out.

Turns are left out whole; the system's messages and the last turn stay. Several turns go at a time rather than one more
with every message: the rest then begins alike from message to message, and its prefix need not be computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pyllm.chat.messages import turns, without

Truncate = Literal["oldest"]


def room_for_answer(n_ctx: int, max_tokens: int | None) -> int:
    """Tokens of the context kept for the answer: `max_tokens`, at most half the context; without it a quarter."""
    return n_ctx // 4 if max_tokens is None else min(max_tokens, n_ctx // 2)


def shortened(
    messages: Sequence[Mapping[str, Any]], most: int, encode: Callable[[Sequence[Mapping[str, Any]]], list[int]]
) -> tuple[list[int], int]:
    """The prompt without the oldest turns, in at most `most` tokens, and the number of messages left out.

    Where the last turn alone has more tokens, it is the prompt. The number of turns is found by bisection.
    """
    tokens = encode(messages)
    found = turns(messages)
    last = len(found) - 1
    if len(tokens) <= most or last < 1:
        return tokens, 0
    prompts: dict[int, list[int]] = {}

    def prompt(n: int) -> list[int]:
        """The prompt without the first n turns."""
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
    """Turns left out at a time: a quarter of the turns, as a power of 2."""
    return 1 << max(0, (n_kept // 4).bit_length() - 1)
