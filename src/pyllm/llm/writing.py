"""From an answer's tokens to its events: text, stop strings, the parser of the model's dialect."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple, Protocol

from pyllm.chat import events as chat
from pyllm.engine import FinishReason, GeneratedToken
from pyllm.engine.stops import StopFilter
from pyllm.llm.events import Event, TokenLogprobs
from pyllm.llm.results import TokenLogprob
from pyllm.tokenizers import Tokenizer


class Parser(Protocol):
    """Makes of an answer's text its events; those that are certain come at once."""

    @property
    def control(self) -> Container[int]:
        """Control tokens that mean something to it."""

    def push(self, text: str, token_id: int | None = None) -> Sequence[chat.Event]:
        """Parse a token's text, with its id."""

    def finish(self, cut_off: bool = False) -> Sequence[chat.Event]:
        """The remaining events; `cut_off`: the answer is not complete."""


class PlainText:
    """The parser of answers that are text and nothing else."""

    control: Container[int] = ()

    def push(self, text: str, token_id: int | None = None) -> Sequence[chat.Event]:
        return (chat.TextDelta(text),) if text else ()

    def finish(self, cut_off: bool = False) -> Sequence[chat.Event]:
        return ()


class Piece(NamedTuple):
    """What one token adds to an answer; or, without a token, its end."""

    token: int | None
    events: Sequence[Event]


class Writer:
    """Turns tokens into events when they are committed, so that an answer ends with its stop string.

    The engine calls `push` and `end` (`pyllm.engine.Transformer`); its thread alone does.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stop: Sequence[str] = (),
        *,
        continues: bool = False,
        logprobs: bool = False,
        parser: Parser | None = None,
    ) -> None:
        """`continues`: the text follows another, so a space at its beginning belongs to it. `logprobs`: tokens come
        with log probabilities, which become events."""
        self.tokenizer = tokenizer
        self.logprobs = logprobs
        self._decoder = tokenizer.stream(continues=continues) if tokenizer is not None else None
        self._stops = StopFilter(stop)
        self._parser = parser or PlainText()
        self._is_text = not stop and parser is None and not logprobs
        """Whether a token's text is all that it gives."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.stopped

    @property
    def finished(self) -> bool:
        return self._stops.stopped is not None

    def push(self, token: GeneratedToken) -> Piece:
        if self._is_text and self._decoder is not None:
            text = self._decoder.push(token.id)
            return Piece(token.id, (chat.TextDelta(text),) if text else ())
        events: list[Event] = []
        if self.logprobs:
            events.append(TokenLogprobs(self.described(token)))
        if self._decoder is not None:
            text = self._decoder.push(token.id)
            if token.id in self._parser.control:  # no stop string goes on beyond it
                events.extend(self._parser.push(self._stops.push(text) + self._stops.flush()))
                text = ""
            events.extend(self._parser.push(self._stops.push(text), token.id))
            if self.finished:
                events.extend(self._parser.finish())
        return Piece(token.id, events)

    def end(self, reason: FinishReason) -> Piece | None:
        if self._decoder is None or self.finished:
            return None
        text = self._stops.push(self._decoder.flush()) + self._stops.flush()
        events: list[Event] = [*self._parser.push(text), *self._parser.finish(cut_off=reason != "stop")]
        return Piece(None, events) if events else None

    def described(self, token: GeneratedToken) -> TokenLogprob:
        """A token with its log probabilities, which it has."""
        assert token.logprob is not None
        top = tuple((i, self._text_of(i), p) for i, p in token.top or ())
        return TokenLogprob(token.id, self._text_of(token.id), token.logprob, top, self._bytes_of(token.id))

    def described_all(self, tokens: Iterable[GeneratedToken]) -> tuple[TokenLogprob, ...]:
        return tuple(map(self.described, tokens))

    def _text_of(self, token: int) -> str:
        return self.tokenizer.token_text(token) if self.tokenizer is not None else ""

    def _bytes_of(self, token: int) -> bytes:
        return self.tokenizer.token_bytes(token) if self.tokenizer is not None else b""
