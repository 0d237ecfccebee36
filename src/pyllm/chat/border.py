"""The border before a chat's last turn: what comes before it is what later prompts of that chat begin with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm.chat.plain import texts_in
from pyllm.tokenizers.vocab import CONTROL

if TYPE_CHECKING:
    from pyllm.tokenizers import Tokenizer


def n_before_last_turn(
    tokenizer: Tokenizer, tokens: Sequence[int], messages: Sequence[Mapping[str, Any]]
) -> int | None:
    """The number of a prompt's tokens before the last control token that precedes the last text of the user.

    None where nothing precedes it, or that is not known: the prompt has no control tokens, the template changes the
    text, or a later message holds it too. The prompt is read as it is: without its last turn, templates show a history
    in another way.
    """
    last = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=None)
    if last is None or not (said := _last_text(messages[last].get("content"))):
        return None
    if any(_holds(text, said) for text in texts_in(messages[last + 1 :])):
        return None
    for start, text in _reversed_pieces(tokenizer, tokens):
        if _holds(text, said):
            return start or None
    return None


def _last_text(content: Any) -> str:
    """The last text of a content; "" where it ends with another part."""
    if isinstance(content, list | tuple) and content:
        content = content[-1]
    if isinstance(content, Mapping):
        content = content.get("text")
    return content.strip() if isinstance(content, str) else ""


def _reversed_pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Control tokens from the last to the first: the place of each, and the text up to the next one."""
    places = np.flatnonzero(tokenizer.vocab.types[np.asarray(tokens)] == CONTROL).tolist()
    for start, end in reversed(list(pairwise([*places, len(tokens)]))):
        yield start, tokenizer.decode(tokens[start + 1 : end], skip_special=False)


def _holds(text: str, said: str) -> bool:
    """Whether a text holds another one, which neither begins nor ends within a word of it."""
    start = text.find(said)
    while start >= 0:
        end = start + len(said)
        if not text[start - 1 : start].isalnum() and not text[end : end + 1].isalnum():
            return True
        start = text.find(said, start + 1)
    return False
