"""What becomes of an answer's tokens before its reader sees them: text, stop strings, events."""

from __future__ import annotations

from typing import Protocol, TypeVar

from pyllm.engine.request import FinishReason, GeneratedToken

T_co = TypeVar("T_co", covariant=True)


class Transformer(Protocol[T_co]):
    """Turns each token into the reader's items, when the token is committed: no answer runs past its end."""

    def push(self, token: GeneratedToken) -> T_co:
        """One more token."""

    @property
    def finished(self) -> bool:
        """Whether what came ends the answer, as a stop string does."""

    def end(self, reason: FinishReason) -> T_co | None:
        """What was held back until the end; None: nothing."""


class Plain:
    """The tokens themselves."""

    finished = False

    def push(self, token: GeneratedToken) -> GeneratedToken:
        return token

    def end(self, reason: FinishReason) -> None:
        return None
