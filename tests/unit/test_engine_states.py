"""Recurrent states in the engine: where prompts go on, what is computed again, and that failures leave nothing."""

from __future__ import annotations

import pytest
from engine_fakes import FakeExecutable, expected_greedy, submit_all

from pyllm.backends.base import Batch
from pyllm.config import SamplingParams
from pyllm.engine import Engine, GeneratedToken, Generation, GenerationRequest
from pyllm.errors import BackendError

N_VOCAB = 50
PAGE = 4
GREEDY = SamplingParams(temperature=0)


def make(**options: int) -> tuple[Engine, FakeExecutable]:
    executable = FakeExecutable(N_VOCAB, **{"n_slots": 24, "max_seqs": 4, "page_size": PAGE, **options})
    return Engine(executable, n_ctx=200, n_vocab=N_VOCAB), executable


def ask(tokens: list[int], n: int = 3, n_prefix: int | None = None) -> GenerationRequest:
    return GenerationRequest(tokens, GREEDY, max_tokens=n, n_prefix=n_prefix)


def answer(engine: Engine, tokens: list[int], n: int = 3, n_prefix: int | None = None) -> Generation[GeneratedToken]:
    """A finished generation, whose tokens are right."""
    generation = engine.submit(ask(tokens, n, n_prefix))
    assert [token.id for token in generation] == expected_greedy(tokens, n, N_VOCAB)
    engine.check()
    return generation


def test_the_same_prompt_goes_on_at_its_last_page() -> None:
    engine, executable = make()
    prompt = list(range(23))
    assert answer(engine, prompt).n_cached == 0
    before = executable.n_tokens
    again = answer(engine, prompt)
    assert (again.n_cached, again.n_matched) == (20, 20)
    assert executable.n_tokens - before == 3 + 2  # the prompt's rest, and answers but the last


def test_a_chat_goes_on_before_its_last_turn() -> None:
    """The template drops what the last answer thought: the next prompt differs from there on."""
    engine, _ = make()
    history = list(range(18))
    answer(engine, [*history, 30, 31, 32, 33, 34, 35], 9, n_prefix=len(history))
    following = answer(engine, [*history, 40, 41, 42, 43, 44], n_prefix=len(history))
    assert (following.n_cached, following.n_matched) == (16, 16)


def test_a_branch_is_computed_once() -> None:
    """Without a hint the first visitor of a branch computes it, and leaves a checkpoint there for the next one."""
    engine, _ = make()
    common = list(range(40))
    answer(engine, [*common, *range(10, 22)])
    first = answer(engine, [*common, *range(20, 32)])
    second = answer(engine, [*common, *range(30, 42)])
    assert (first.n_cached, first.n_matched) == (0, 40)
    assert (second.n_cached, second.n_matched) == (40, 40)


def test_prompts_side_by_side_share_their_beginning() -> None:
    engine, executable = make()
    common = list(range(24))
    prompts = [[*common, i] for i in (30, 31, 32)]
    for prompt, generation in zip(prompts, submit_all(engine, [ask(p) for p in prompts]), strict=True):
        assert [token.id for token in generation] == expected_greedy(prompt, 3, N_VOCAB)
    engine.check()
    assert executable.n_tokens == 25 + 2 * 1 + 3 * 2


def test_long_prompts_and_answers_leave_checkpoints() -> None:
    engine, _ = make(page_size=32, n_pages=64, max_tokens=100)
    engine.n_ctx = 1500
    prompt = [i * i % N_VOCAB for i in range(700)]
    answer(engine, prompt, 400)
    whole = [*prompt, *expected_greedy(prompt, 400, N_VOCAB)]
    branch = answer(engine, [*whole[:600], 1])
    assert (branch.n_cached, branch.n_matched) == (512, 576)
    assert answer(engine, [*whole[:1000], 1]).n_cached == 928


def test_a_failed_step_leaves_nothing() -> None:
    engine, executable = make()
    fail = [True]

    def on_run(batch: Batch) -> None:
        if fail and batch.n_tokens > 3:
            fail.pop()
            raise KeyboardInterrupt

    executable.on_run = on_run
    answer(engine, list(range(30)), 5)
    executable.on_run = lambda batch: (_ for _ in ()).throw(ValueError("broken"))
    with pytest.raises(BackendError, match="broken"):
        list(engine.submit(ask(list(range(20)))))
    executable.on_run = lambda batch: None
    engine.check()
    assert answer(engine, list(range(30)), 5).n_cached == 28
    assert engine.scheduler.states is not None
    assert engine.scheduler.states.pool.n_available == executable.options.n_slots


def test_few_slots_do_for_many_sequences() -> None:
    engine, _ = make(n_slots=9, n_pages=200, max_tokens=64)
    prompts = [[*range(i % 3, 20), i] for i in range(30)]
    for prompt, generation in zip(prompts, submit_all(engine, [ask(p, 12) for p in prompts]), strict=True):
        assert [token.id for token in generation] == expected_greedy(prompt, 12, N_VOCAB)
    engine.check()
