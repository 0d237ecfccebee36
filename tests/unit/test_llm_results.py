"""Streams of text over a generation that is played from a list, with real vocabularies."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm import load_tokenizer
from pyllm.engine import FinishReason, GeneratedToken
from pyllm.llm.events import Finish, TextDelta, TokenLogprobs
from pyllm.llm.results import Completion
from pyllm.llm.streams import CompletionStream, EventStream, Reading
from pyllm.llm.writing import Piece, Writer
from pyllm.tokenizers import Tokenizer

TEXT = "Grüße aus 東京, 🦙🧑‍🚀 say hello.\n\nSecond paragraph: END of it. "


class Played:
    """A generation whose tokens are known; `fails_at` raises KeyboardInterrupt in place of that token.

    As the engine does, it asks the writer at each token, ahead of the reader, and ends where that has finished.
    """

    n_prompt, n_cached, n_matched, n_drafted, n_accepted = 7, 3, 5, 4, 2
    prompt_seconds, seconds, prompt_logprobs = 0.5, 2.5, None

    def __init__(self, tokens: Sequence[int], fails_at: int = -1, finish_reason: FinishReason = "length") -> None:
        self._tokens = [GeneratedToken(t, -0.5, [(t, -0.5), (0, -3.0)]) for t in tokens]
        self._fails_at = fails_at
        self._at = 0
        self._last = finish_reason
        self.pieces: deque[Piece] = deque()
        self.finish_reason: str | None = None

    def play(self, writer: Writer) -> None:
        for token in self._tokens:
            self.pieces.append(writer.push(token))
            if writer.finished:
                self._last = "stop"
                return
        if (rest := writer.end(self._last)) is not None:
            self.pieces.append(rest)

    def take(self, enough: int = 1) -> Piece | None:
        if self._at == self._fails_at:
            raise KeyboardInterrupt
        self._at += 1
        if self.pieces:
            return self.pieces.popleft()
        self.finish_reason = self.finish_reason or self._last
        return None

    def cancel(self) -> None:
        self.finish_reason = "cancelled"
        self.pieces.clear()


@pytest.fixture(scope="module", params=["qwen2", "llama-spm"])
def tokenizer(request: pytest.FixtureRequest, shared_data: Path) -> Tokenizer:
    return load_tokenizer(shared_data / "vocabs" / f"ggml-vocab-{request.param}.gguf")


def stream_of(
    generation: Played, tokenizer: Tokenizer | None, stop: Sequence[str] = (), logprobs: int | None = None
) -> CompletionStream:
    return CompletionStream(reading_of(generation, tokenizer, stop, logprobs))


def reading_of(
    generation: Played, tokenizer: Tokenizer | None, stop: Sequence[str] = (), logprobs: int | None = None
) -> Reading:
    writer = Writer(tokenizer, stop, logprobs=logprobs is not None)
    generation.play(writer)
    return Reading(generation, writer)  # type: ignore[arg-type]


def test_pieces_make_the_text_and_split_no_character(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT, add_special=False)
    stream = stream_of(Played(tokens), tokenizer)
    pieces = list(stream)
    assert "".join(pieces) == TEXT == stream.result.text
    assert len(pieces) > 5
    assert all(pieces), "no empty pieces"
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.result.tokens == tuple(tokens)
    assert stream.result.finish_reason == "length"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, len(TEXT) - 1), st.integers(1, 12))
def test_stop_strings_cut_exactly_across_tokens(tokenizer: Tokenizer, start: int, length: int) -> None:
    stop = TEXT[start : start + length]
    generation = Played(tokenizer.encode(TEXT, add_special=False))
    stream = stream_of(generation, tokenizer, stop=(stop,))
    shown = ""
    for piece in stream:
        shown += piece
        assert TEXT[: TEXT.index(stop)].startswith(shown)
    result = stream.result
    assert shown == result.text == TEXT[: TEXT.index(stop)]
    assert (result.finish_reason, result.stop_string) == ("stop", stop)
    # The tokens are those up to the one that completed the stop string.
    text = tokenizer.decode(result.tokens)
    assert stop in text
    assert stop not in tokenizer.decode(result.tokens[:-1])


def test_text_held_back_for_a_stop_that_never_comes_is_given_at_the_end(tokenizer: Tokenizer) -> None:
    stream = stream_of(Played(tokenizer.encode(TEXT, add_special=False)), tokenizer, stop=(TEXT[-20:] + "more",))
    assert stream.result.text == TEXT
    assert stream.result.finish_reason == "length"


def test_closing_early(tokenizer: Tokenizer) -> None:
    generation = Played(tokenizer.encode(TEXT, add_special=False))
    with stream_of(generation, tokenizer) as stream:
        first = next(stream)
    assert generation.finish_reason == stream.result.finish_reason == "cancelled"
    assert stream.result.text == first
    assert list(stream) == []


def test_dropping_a_stream_cancels_it(tokenizer: Tokenizer) -> None:
    generation = Played(tokenizer.encode(TEXT, add_special=False))
    stream = stream_of(generation, tokenizer)
    next(stream)
    del stream
    assert generation.finish_reason == "cancelled"


def test_ctrl_c_keeps_what_there_is(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT, add_special=False)
    generation = Played(tokens, fails_at=12)
    stream = stream_of(generation, tokenizer)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert generation.finish_reason == stream.result.finish_reason == "cancelled"
    assert stream.result.tokens == tuple(tokens[:12])
    assert TEXT.startswith(stream.result.text)


def test_logprobs_and_usage(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("Hello world", add_special=False)
    result = stream_of(Played(tokens, finish_reason="stop"), tokenizer, logprobs=2).result
    assert result.logprobs is not None
    assert [t.id for t in result.logprobs] == tokens
    assert [t.text for t in result.logprobs] == [tokenizer.token_text(t) for t in tokens]
    assert result.logprobs[0].top[0] == (tokens[0], tokenizer.token_text(tokens[0]), -0.5)
    usage = result.usage
    assert (usage.n_prompt, usage.n_cached, usage.n_generated) == (7, 3, len(tokens))
    assert (usage.n_matched, usage.n_drafted, usage.n_accepted) == (5, 4, 2)
    assert result.usage.prompt_rate == pytest.approx(4 / 0.5)
    assert result.usage.rate == pytest.approx((len(tokens) - 1) / 2.0)
    assert result.message == {"role": "assistant", "content": "Hello world"}


def test_without_a_tokenizer_there_are_tokens_only() -> None:
    stream = stream_of(Played([5, 6, 7], finish_reason="stop"), None, logprobs=0)
    assert list(stream) == []
    result = stream.result
    assert isinstance(result, Completion)
    assert (result.text, result.tokens, result.finish_reason) == ("", (5, 6, 7), "stop")
    assert result.logprobs is not None
    assert [t.text for t in result.logprobs] == ["", "", ""]


def test_events_are_the_text_with_its_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT, add_special=False)
    stop = "END"
    generation = Played(tokens)
    stream = EventStream(reading_of(generation, tokenizer, stop=(stop,), logprobs=1))
    events = list(stream)
    result = stream.result
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == result.text == TEXT[: TEXT.index(stop)]
    described = [e.token for e in events if isinstance(e, TokenLogprobs)]
    assert [d.id for d in described] == list(result.tokens) == tokens[: len(described)]
    assert result.logprobs == tuple(described)
    assert b"".join(d.bytes for d in described).decode("utf-8", "ignore").lstrip().startswith(result.text)
    assert events[-1] == Finish("stop", result.usage, stop)
    assert sum(isinstance(e, Finish) for e in events) == 1
    assert list(stream) == []
