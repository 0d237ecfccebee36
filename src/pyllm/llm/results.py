"""Results of a generation: complete, or as a stream of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pyllm.engine.stops import StopFilter

if TYPE_CHECKING:
    from pyllm.engine import GeneratedToken, Generation
    from pyllm.llm.settings import GenerateSettings
    from pyllm.tokenizers import Tokenizer

FinishReason = Literal["stop", "length", "timeout", "cancelled"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and time of one generation."""

    n_prompt: int
    n_cached: int
    """Prompt tokens whose KV cache was shared with another request."""
    n_generated: int
    prompt_seconds: float
    """Seconds from the first step of the prompt to the first token."""
    seconds: float
    """Seconds from the first token to the last."""

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens computed per second."""
        return (self.n_prompt - self.n_cached) / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def rate(self) -> float:
        """Generated tokens per second, after the first, which comes with the prompt."""
        return (self.n_generated - 1) / self.seconds if self.seconds > 0 and self.n_generated > 1 else 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log probability: the natural logarithm of its probability before sampling options change it."""

    id: int
    text: str
    """The token's text; a replacement character for a part of a character."""
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()
    """The most likely tokens: id, text, logprob."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation."""

    text: str
    """Empty where the model has no usable tokenizer."""
    tokens: tuple[int, ...]
    """All generated tokens, those of a stop string included; the token that ends a text is not."""
    finish_reason: FinishReason
    """stop: the model ended the text, or a stop string came; length: max_tokens reached or the context full."""
    usage: Usage
    stop_string: str | None = None
    """The stop string that ended it."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    n_dropped: int = 0
    """Messages that `truncate` left out of a chat: the oldest, except the system's."""

    @property
    def message(self) -> dict[str, str]:
        """The answer as a message that can be appended to a chat's history."""
        return {"role": "assistant", "content": self.text}


class CompletionStream(Iterator[str]):
    """A generation's text, piece by piece as it is computed; `result` has the rest.

    A piece never splits a character, and never contains a prefix of a stop string that later matches. A caller that
    stops reading early should call `close`, or use a `with` block; Ctrl-C while reading closes the stream too.
    """

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer | None,
        settings: GenerateSettings,
        continues: bool,
        n_dropped: int = 0,
    ) -> None:
        """`continues`: the text follows another, so a space at its beginning belongs to it."""
        self.n_dropped = n_dropped
        """As `Completion.n_dropped`."""
        self._generation = generation
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream(continues=continues) if tokenizer is not None else None
        self._stops = StopFilter(settings.stop)
        self._want_logprobs = settings.logprobs is not None
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: FinishReason | None = None

    def __next__(self) -> str:
        while (piece := self.advance()) is not None:
            if piece:
                return piece
        raise StopIteration

    def advance(self) -> str | None:
        """Add one token; returns the text that can be shown now, maybe empty, or None after the end."""
        if self._finish_reason is not None:
            return None
        try:
            token = next(self._generation, None)
        except BaseException:
            self.close()
            raise
        piece = self._end() if token is None else self._take(token)
        self._pieces.append(piece)
        return piece

    def close(self) -> None:
        """Stop generating; `result` has the text so far. After the end this does nothing."""
        if self._finish_reason is None:
            self._finish_reason = "cancelled"
            self._generation.cancel()

    @property
    def finished(self) -> bool:
        return self._finish_reason is not None

    @property
    def result(self) -> Completion:
        """The result; first reads the stream to its end, unless it has ended."""
        for _ in self:
            pass
        assert self._finish_reason is not None
        g = self._generation
        return Completion(
            text="".join(self._pieces),
            tokens=tuple(self._tokens),
            finish_reason=self._finish_reason,
            usage=Usage(g.n_prompt, g.n_cached, len(self._tokens), g.prompt_seconds, g.seconds - g.prompt_seconds),
            stop_string=self._stops.stopped,
            logprobs=tuple(self._logprobs) if self._want_logprobs else None,
            n_dropped=self.n_dropped,
        )

    def __enter__(self) -> CompletionStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_finish_reason", "") is None:
            self.close()

    def _take(self, token: GeneratedToken) -> str:
        self._tokens.append(token.id)
        if self._want_logprobs and token.logprob is not None:
            top = tuple((i, self._text_of(i), p) for i, p in token.top or ())
            self._logprobs.append(TokenLogprob(token.id, self._text_of(token.id), token.logprob, top))
        if self._decoder is None:
            return ""
        piece = self._stops.push(self._decoder.push(token.id))
        if self._stops.stopped is not None:
            self._finish_reason = "stop"
            self._generation.cancel()
        return piece

    def _end(self) -> str:
        self._finish_reason = self._generation.finish_reason or "cancelled"
        if self._decoder is None:
            return ""
        piece = self._stops.push(self._decoder.flush())
        if self._stops.stopped is not None:
            self._finish_reason = "stop"
        return piece + self._stops.flush()

    def _text_of(self, token: int) -> str:
        return self._tokenizer.token_text(token) if self._tokenizer is not None else ""
