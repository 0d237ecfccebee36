"""Constraints in the engine: tokens are chosen among those allowed, forced ones cost no step, errors end one sequence.

The constraint here is written out; the executable's logits are known for every context, so answers are too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_fakes import FakeExecutable, expected_row, submit_all
from test_engine_candidates import Few

from pyllm.config import SamplingParams
from pyllm.engine import Engine, GenerationRequest
from pyllm.engine.generation import Generation
from pyllm.errors import BackendError, RequestError

N_VOCAB = 50
END = 49
GREEDY = SamplingParams(temperature=0)
Allowed = list[int]


class Script:
    """What may come at each place of an answer; where that is one token alone, it is forced. Then the end."""

    matcher = None
    error: BaseException = RequestError("the script is broken")
    n_words = 2

    def __init__(self, places: list[Allowed], broken_at: int = -1) -> None:
        self.places, self.broken_at = places, broken_at
        self.at = 0

    @property
    def free(self) -> bool:
        return not self.finished and len(self.places[self.at]) == N_VOCAB

    @property
    def finished(self) -> bool:
        return self.at == len(self.places)

    @property
    def allows_end(self) -> bool:
        return self.finished

    def mask(self, out: Any) -> None:
        if self.at == self.broken_at:
            raise self.error
        bits = np.zeros(64, np.uint8)
        bits[self.places[self.at]] = 1
        out[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def check(self, mask: Any) -> None:
        raise AssertionError("only masks of a matcher are checked")

    def advance(self, token: int) -> None:
        assert token in self.places[self.at]
        self.at += 1

    def forced(self) -> list[int]:
        found: list[int] = []
        for place in self.places[self.at :]:
            if len(place) > 1:
                break
            found += place
        return found

    def rollback(self, n: int) -> None:
        self.at -= n


PLACES: list[Allowed] = [[3, 4, 5], [7], [8], [9], list(range(N_VOCAB)), [20, 30, 40], [1], [2, 6]]


def expected(prompt: list[int], places: list[Allowed] = PLACES) -> list[int]:
    tokens = list(prompt)
    for place in places:
        row = expected_row(tokens, N_VOCAB)
        tokens.append(max(place, key=lambda token: float(row[token])))
    return tokens[len(prompt) :]


def request(prompt: list[int], places: list[Allowed] = PLACES, broken_at: int = -1, **more: Any) -> GenerationRequest:
    settings: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 20, **more}
    return GenerationRequest(prompt, constrain=lambda: Script(places, broken_at), stop_ids=frozenset({END}), **settings)


def run(executable: FakeExecutable, *requests: GenerationRequest) -> list[tuple[list[int], str | None]]:
    engine = Engine(executable, n_ctx=128, n_vocab=N_VOCAB)
    try:
        return [read(generation) for generation in submit_all(engine, requests)]
    finally:
        engine.check()
        engine.close()


def read(generation: Generation[Any]) -> tuple[list[int], str | None]:
    tokens = [token.id for token in generation]
    return tokens, generation.finish_reason


def test_the_best_of_the_allowed_is_chosen_and_the_end_needs_no_token() -> None:
    executable = FakeExecutable(N_VOCAB)
    assert run(executable, request([1, 2, 3])) == [(expected([1, 2, 3]), "stop")]
    assert executable.n_runs == 4, "a step for each choice, none for what is forced"


def test_several_at_once_are_as_alone() -> None:
    prompts = [[i, i + 1, i + 2, i + 3] for i in range(6)]
    free = GenerationRequest([5, 6, 7], sampling=GREEDY, max_tokens=9)
    found = run(FakeExecutable(N_VOCAB), *map(request, prompts), free)
    assert found[:-1] == [(expected(prompt), "stop") for prompt in prompts]
    assert found[-1] == (expected([5, 6, 7], [list(range(N_VOCAB))] * 9), "length")


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_max_tokens_count_forced_tokens(max_tokens: int) -> None:
    found, reason = run(FakeExecutable(N_VOCAB), request([4, 4], max_tokens=max_tokens))[0]
    assert found == expected([4, 4])[:max_tokens]
    assert reason == "length"


def test_forced_tokens_that_fill_many_steps() -> None:
    places: list[Allowed] = [[1, 2], *([i % 40] for i in range(60)), [5, 6]]
    executable = FakeExecutable(N_VOCAB, max_tokens=16)
    assert run(executable, request([9], places, max_tokens=100))[0] == (expected([9], places), "stop")
    assert executable.n_runs == 1 + 4
    assert not any(len(context) > 2 for context in executable.generated), "all but the first choice are given"


def test_log_probabilities_need_every_row() -> None:
    executable = FakeExecutable(N_VOCAB)
    engine = Engine(executable, n_ctx=128, n_vocab=N_VOCAB)
    made = list(engine.submit(request([1, 2], logprobs=0)))
    engine.close()
    assert [token.id for token in made] == expected([1, 2])
    assert all(token.logprob is not None for token in made)
    assert executable.n_runs == len(PLACES)


def test_candidates_are_not_enough() -> None:
    executable = Few(12)
    assert run(executable, request([1, 2, 3])) == [(expected([1, 2, 3]), "stop")]
    assert executable.asked == [("logits",), ("candidates",), ("logits",), ("logits",)], "candidates where all may come"


def test_an_error_of_a_constraint_ends_its_own_sequence() -> None:
    executable = FakeExecutable(N_VOCAB)
    engine = Engine(executable, n_ctx=128, n_vocab=N_VOCAB)
    broken, fine = submit_all(engine, [request([1, 2], broken_at=5), request([3, 4])])
    with pytest.raises(RequestError, match="the script is broken"):
        list(broken)
    assert read(fine) == (expected([3, 4]), "stop")
    engine.check()
    engine.close()


class Panic(BaseException):
    """As errors of Rust come."""


def test_a_panic_is_one_sequences_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Script, "error", Panic("thread 'main' panicked at src/lib.rs"))
    engine = Engine(FakeExecutable(N_VOCAB), n_ctx=128, n_vocab=N_VOCAB)
    broken, fine = submit_all(engine, [request([1, 2], broken_at=5), request([3, 4])])
    with pytest.raises(BackendError, match=r"^a mask could not be made; Panic$"):
        list(broken)
    assert read(fine) == (expected([3, 4]), "stop")
    engine.close()


def test_a_constraint_that_cannot_be_made_refuses_the_request() -> None:
    def fail() -> Any:
        raise RequestError("no such grammar")

    engine = Engine(FakeExecutable(N_VOCAB), n_ctx=128, n_vocab=N_VOCAB)
    with pytest.raises(RequestError, match="no such grammar"):
        engine.submit(GenerationRequest([1], constrain=fail))
    engine.close()


def test_a_step_that_failed_leaves_the_others_masks_right() -> None:
    executable = FakeExecutable(N_VOCAB)
    failed: list[int] = []

    def once(batch: Any) -> None:
        if not failed:
            failed.append(1)
            raise RuntimeError("out of luck")

    executable.on_run = once
    engine = Engine(executable, n_ctx=128, n_vocab=N_VOCAB)
    with pytest.raises(Exception, match="out of luck"):
        list(engine.submit(request([1, 2])))
    assert read(engine.submit(request([3, 4]))) == (expected([3, 4]), "stop")
    engine.close()


def test_context_shift() -> None:
    places = [[i % 40, i % 40 + 1] if i % 3 else [i % 40] for i in range(60)]
    engine = Engine(FakeExecutable(N_VOCAB, n_pages=6), n_ctx=24, n_vocab=N_VOCAB)
    found, reason = read(engine.submit(request([1, 2], places, max_tokens=100, context_shift=True)))
    assert len(found) == 60
    assert all(token in place for token, place in zip(found, places, strict=True))
    assert reason == "stop"
    engine.check()
    engine.close()
