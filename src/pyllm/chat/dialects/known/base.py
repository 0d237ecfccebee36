"""What a hand-written dialect is."""

from __future__ import annotations

from collections.abc import Callable

from pyllm.chat.dialects.spec import DialectSpec
from pyllm.records import dataclass


@dataclass(frozen=True)
class Known:
    """A dialect, and what it is recognised by: all of one of `marks` in the template, or `tokens` of the vocabulary.

    `tokens` decide only where no probe finds calls: a vocabulary may have more than a model uses.
    """

    spec: DialectSpec
    marks: tuple[tuple[str, ...], ...] = ()
    tokens: tuple[str, ...] = ()

    def fits(self, source: str) -> bool:
        return any(all(text in source for text in texts) for texts in self.marks)

    def has_tokens(self, vocabulary: Callable[[str], bool]) -> bool:
        return bool(self.tokens) and all(map(vocabulary, self.tokens))
