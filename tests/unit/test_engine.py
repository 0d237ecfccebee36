"""The engine against an executable whose logits show every token that a sequence really sees."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from engine_fakes import N_EMBD, FakeExecutable, expected_greedy, expected_row, submit_all
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.config import SamplingParams
from pyllm.engine import Engine, GenerationRequest
from pyllm.errors import BackendError, ClosedError, ContextFullError, RequestError
from pyllm.testing.models import transformer
from pyllm.testing.splitting import SMALL

GREEDY = SamplingParams(temperature=0)
N_VOCAB = 50


LONG = 300.0
"""Seconds after which a test is taken to hang."""


def make(n_ctx: int = 128, **options: int) -> tuple[Engine, FakeExecutable]:
    executable = FakeExecutable(N_VOCAB, **options)
    return Engine(executable, n_ctx=n_ctx, n_vocab=N_VOCAB), executable


def ask(tokens: list[int], n: int | None = 10, **more: object) -> GenerationRequest:
    return GenerationRequest(tokens=tokens, sampling=GREEDY, max_tokens=n, **more)  # type: ignore[arg-type]


def all_free(engine: Engine) -> bool:
    engine.check()
    return engine.pool.n_available == engine.pool.n_pages


@pytest.mark.parametrize("n_prompt", [1, 3, 4, 5, 16, 17, 40])
def test_one_request(n_prompt: int) -> None:
    engine, _ = make()
    prompt = list(range(n_prompt))
    generation = engine.submit(ask(prompt))
    expected = expected_greedy(prompt, 10, N_VOCAB)
    assert next(generation).id == expected[0]
    assert generation.finish_reason is None
    assert [t.id for t in generation] == expected[1:]
    assert generation.finish_reason == "length"
    assert (generation.n_prompt, generation.n_cached) == (n_prompt, 0)
    assert 0 < generation.prompt_seconds <= generation.seconds
    assert next(generation, None) is None
    assert all_free(engine)


def test_eight_at_once_give_what_each_gives_alone_and_share_their_beginning() -> None:
    common = list(range(23))
    prompts = [[*common, 30 + i, *range(i)] for i in range(8)]
    engine, executable = make()
    generations = submit_all(engine, [ask(p, 12) for p in prompts])
    answers = [[t.id for t in g] for g in generations]
    assert answers == [expected_greedy(p, 12, N_VOCAB) for p in prompts]
    # 5 full pages of the 23 tokens are computed by the first alone.
    assert [g.n_cached for g in generations] == [0] + [20] * 7
    assert executable.n_tokens == sum(len(p) + 11 for p in prompts) - 7 * 20
    assert max(seqs for _, seqs, _ in executable.sizes) == 8
    assert all_free(engine)


def test_a_conversation_computes_only_what_is_new() -> None:
    engine, executable = make()
    prompt = list(range(10))
    answer = [t.id for t in engine.submit(ask(prompt, 9))]
    before = executable.n_tokens
    second = engine.submit(ask([*prompt, *answer, 1, 2, 3], 1))
    next(second)
    # The last token of the answer was never computed: 18 were, 4 pages are full.
    assert second.n_cached == 16
    assert executable.n_tokens - before == 22 - 16


def test_the_hint_of_a_prefix_goes_with_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = make()
    seen: list[int | None] = []
    add = engine.scheduler.add
    monkeypatch.setattr(engine.scheduler, "add", lambda seq: (seen.append(seq.n_prefix), add(seq)))
    tokens = [1, 2, 3, 4, 5]
    for n in (None, 0, 3, 5):
        assert [t.id for t in engine.submit(ask(tokens, n_prefix=n))] == expected_greedy(tokens, 10, N_VOCAB)
    assert seen == [None, 0, 3, 5]
    for wrong in (-1, 6):
        with pytest.raises(RequestError, match=f"n_prefix is {wrong}; the prompt has 5 tokens"):
            engine.submit(ask(tokens, n_prefix=wrong))


def test_prompts_are_cut_and_mixed_with_answers_under_way() -> None:
    engine, executable = make(max_tokens=8)
    second = []

    def submit(batch: object) -> None:
        if not second:
            second.append(engine.submit(ask(list(range(30)), 5)))

    executable.on_run = submit
    first = engine.submit(ask([1, 2, 3], 20))
    assert [t.id for t in first] == expected_greedy([1, 2, 3], 20, N_VOCAB)
    assert [t.id for t in second[0]] == expected_greedy(list(range(30)), 5, N_VOCAB)
    assert (8, 2, 1) in executable.sizes  # one token of the first, seven of the second's prompt
    assert max(n for n, _, _ in executable.sizes) <= 8


def test_generated_tokens_are_marked_whatever_the_company() -> None:
    """A backend may compute them in another way, so that a mark must depend on the token's own sequence alone."""
    engine, executable = make(max_tokens=5, max_rows=4, max_seqs=4)
    prompts = [list(range(n)) for n in (1, 9, 12)]
    generations = submit_all(engine, [ask(p, 6) for p in prompts])
    engine.logits([7] * 9)
    engine.hidden([8] * 10)
    list(engine.score([([9] * 11, lambda at, rows: None)], first=10))
    answers = [[t.id for t in g] for g in generations]
    expected = {(*p, *a[: n + 1]) for p, a in zip(prompts, answers, strict=True) for n in range(5)}
    assert executable.generated == expected
    assert not executable.generated & executable.given


def test_stop_tokens_end_an_answer_and_are_not_part_of_it() -> None:
    expected = expected_greedy([5, 6], 10, N_VOCAB)
    cut = next(i for i in range(1, 10) if expected[i] not in expected[:i])
    engine, _ = make()
    generation = engine.submit(ask([5, 6], 10, stop_ids=frozenset([expected[cut]])))
    assert [t.id for t in generation] == expected[:cut]
    assert generation.finish_reason == "stop"


def test_logprobs_are_of_the_models_own_distribution() -> None:
    engine, _ = make()
    params = SamplingParams(temperature=0, logit_bias={7: 100.0})
    request = GenerationRequest([1, 2], params, max_tokens=2, logprobs=3)
    tokens = list(engine.submit(request))
    assert [t.id for t in tokens] == [7, 7]
    logits = expected_row([1, 2], N_VOCAB).astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum())
    assert tokens[0].logprob == pytest.approx(logp[7], abs=1e-5)
    top = np.argsort(-logp)[:3]
    assert tokens[0].top is not None
    assert [i for i, _ in tokens[0].top] == top.tolist()
    assert [p for _, p in tokens[0].top] == pytest.approx(logp[top], abs=1e-5)


def test_seeds_make_answers_repeatable_in_any_company() -> None:
    params = SamplingParams(seed=7, temperature=1.3, top_k=0, repeat_penalty=1.2)
    request = GenerationRequest([1, 2, 3], params, max_tokens=15)
    engine, _ = make()
    alone = [t.id for t in engine.submit(request)]
    company = submit_all(engine, [replace(request, sampling=replace(params, seed=s)) for s in (1, 7, 2)])
    answers = [[t.id for t in g] for g in company]
    assert answers[1] == alone
    assert answers[0] != alone


# Context full.


def test_a_prompt_that_is_too_long_is_refused() -> None:
    engine, _ = make(n_ctx=20)
    with pytest.raises(ContextFullError, match=r"21 tokens.*holds 20"):
        engine.submit(ask(list(range(21))))
    with pytest.raises(ContextFullError):
        engine.logits(list(range(21)))
    assert len(list(engine.submit(ask(list(range(20)), 1)))) == 1


@pytest.mark.parametrize("max_tokens", [None, 6, 30, 1 << 40])
def test_an_answer_that_fills_the_context_ends_with_what_there_is(max_tokens: int | None) -> None:
    """Six tokens follow a prompt of 15 in a context of 20: the last one need not be in it."""
    engine, _ = make(n_ctx=20)
    generation = engine.submit(ask(list(range(15)), max_tokens))
    assert [t.id for t in generation] == expected_greedy(list(range(15)), 6, N_VOCAB)
    assert generation.finish_reason == "length"
    assert all_free(engine)


@pytest.mark.parametrize("n_keep", [0, 3, 4, 9, 19])
def test_context_shift(n_keep: int) -> None:
    prompt = list(range(15))
    tokens, answer = prompt.copy(), []
    for _ in range(60):
        answer.append(int(expected_row(tokens, N_VOCAB).argmax()))
        tokens.append(answer[-1])
        if len(tokens) > 20:
            rest = tokens[n_keep:]
            tokens = tokens[:n_keep] + rest[len(rest) // 2 :]
    engine, _ = make(n_ctx=20)
    generation = engine.submit(ask(prompt, 60, context_shift=True, n_keep=n_keep))
    others = [engine.submit(ask([*prompt, i], 5)) for i in range(3)]
    assert [t.id for t in generation] == answer
    for i, other in enumerate(others):
        assert [t.id for t in other] == expected_greedy([*prompt, i], 5, N_VOCAB)
    assert all_free(engine)


def test_when_pages_run_out_the_youngest_is_computed_again_later() -> None:
    prompts = [[i, *range(6)] for i in range(6)]
    engine, executable = make(n_ctx=64, n_pages=16)
    generations = submit_all(engine, [ask(p, 40) for p in prompts])
    answers = [[t.id for t in g] for g in generations]
    assert answers == [expected_greedy(p, 40, N_VOCAB) for p in prompts]
    assert executable.n_tokens > sum(len(p) + 39 for p in prompts)
    assert all_free(engine)


def test_what_nobody_reads_gives_way() -> None:
    engine, _ = make(n_ctx=32, n_pages=8, max_seqs=1)
    endless = engine.submit(ask([1, 2], None, context_shift=True))
    next(endless)
    assert [t.id for t in engine.submit(ask([3], 5))] == expected_greedy([3], 5, N_VOCAB)
    expected = expected_greedy([1, 2], 31, N_VOCAB)
    assert [next(endless).id for _ in range(30)] == expected[1:]
    assert engine.logits([1, 2, 3]).shape == (3, N_VOCAB)


# All rows.


@pytest.mark.parametrize("hidden", [False, True])
def test_every_row(hidden: bool) -> None:
    engine, _ = make(max_rows=5, max_seqs=3)
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, N_VOCAB, 33)]
    running = engine.submit(ask(tokens, 25))
    next(running)
    rows = engine.hidden(tokens) if hidden else engine.logits(tokens)
    width = N_EMBD if hidden else N_VOCAB
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [expected_row(tokens[: i + 1], width) for i in range(33)])
    assert [t.id for t in running] == expected_greedy(tokens, 25, N_VOCAB)[1:]
    assert all_free(engine)


def test_states_and_logits_come_from_one_step() -> None:
    engine, executable = make(max_tokens=32)
    rows = []

    def add(batch: object) -> None:
        executable.on_run = lambda batch: None
        threads.append(threading.Thread(target=lambda: rows.append(engine.hidden(tokens))))
        threads[0].start()
        until(lambda: engine._arrived)

    threads: list[threading.Thread] = []
    tokens = [3, 1, 4, 1, 5]
    executable.on_run = add
    assert [t.id for t in engine.submit(ask([1, 2], 9))] == expected_greedy([1, 2], 9, N_VOCAB)
    threads[0].join(LONG)
    np.testing.assert_array_equal(rows[0], [expected_row(tokens[: i + 1], N_EMBD) for i in range(5)])
    assert executable.asked == [("logits",), ("hidden", "logits"), *[("logits",)] * 7]


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def test_rows_come_in_blocks_and_may_be_left() -> None:
    engine, executable = make(max_rows=6, max_seqs=2)
    blocks = engine.iter_logits(list(range(20)))
    assert next(blocks).shape == (6, N_VOCAB)
    assert executable.n_tokens == 6
    assert engine.pool.n_available < engine.pool.n_pages
    del blocks
    gc.collect()
    assert all_free(engine)
    assert [len(b) for b in engine.iter_logits(list(range(20)))] == [6, 6, 6, 2]


def test_rows_give_way_and_go_on() -> None:
    engine, _ = make(n_ctx=32, n_pages=8, max_rows=6, max_seqs=2)
    tokens = list(range(20))
    blocks = engine.iter_logits(tokens)
    rows = [next(blocks)]
    assert [t.id for t in engine.submit(ask([3] * 20, 12))] == expected_greedy([3] * 20, 12, N_VOCAB)
    rows.extend(blocks)
    np.testing.assert_array_equal(np.concatenate(rows), [expected_row(tokens[: i + 1], N_VOCAB) for i in range(20)])


# Bad requests.


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": []},
        {"tokens": [50]},
        {"tokens": [-1]},
        {"tokens": [1.5]},
        {"tokens": [[1], [2]]},
        {"max_tokens": -1},
        {"logprobs": -1},
        {"n_keep": -1},
        {"n_keep": 128, "context_shift": True},
        {"sampling": SamplingParams(top_p=2.0)},
        {"sampling": SamplingParams(logit_bias={50: 1.0})},
    ],
)
def test_bad_requests(wrong: dict[str, object]) -> None:
    engine, _ = make()
    with pytest.raises(RequestError):
        engine.submit(replace(ask([1]), **wrong))  # type: ignore[arg-type]
    assert all_free(engine)


def test_no_tokens_wanted() -> None:
    engine, executable = make()
    generation = engine.submit(ask([1], 0))
    assert list(generation) == []
    assert generation.finish_reason == "length"
    assert executable.n_runs == 0


# Ends before the end.


def test_cancel_and_drop_free_pages() -> None:
    engine, _ = make()
    generations = [engine.submit(ask([i, 2, 3, 4, 5], 50)) for i in range(3)]
    first = [next(g) for g in generations]
    assert len(first) == 3
    generations[0].cancel()
    assert generations[0].finish_reason == "cancelled"
    assert next(generations[0], None) is None
    generations.pop()
    gc.collect()
    engine.check()
    assert len(engine.scheduler.running) <= 1
    generations[1].close()
    assert all_free(engine)


def test_an_error_fails_the_requests_of_its_step_only() -> None:
    engine, executable = make(max_seqs=2)

    def fail(batch: object) -> None:
        if executable.n_runs == 1:
            executable.on_run = lambda batch: None
            raise ValueError("no luck")

    executable.on_run = fail
    generations = submit_all(engine, [ask([i], 6) for i in range(3)])
    for i in (0, 1):
        assert next(generations[i]).id == expected_greedy([i], 1, N_VOCAB)[0]
        with pytest.raises(BackendError, match="no luck"):
            list(generations[i])
    assert [t.id for t in generations[2]] == expected_greedy([2], 6, N_VOCAB)
    assert all_free(engine)


def test_a_step_that_was_interrupted_is_computed_again() -> None:
    engine, executable = make()

    def interrupt(batch: object) -> None:
        executable.on_run = lambda batch: None
        raise KeyboardInterrupt

    executable.on_run = interrupt
    assert [t.id for t in engine.submit(ask([9], 5))] == expected_greedy([9], 5, N_VOCAB)
    executable.on_run = interrupt
    assert engine.logits([1, 2, 3]).shape == (3, N_VOCAB)


@pytest.mark.parametrize("place", ["schedule", "commit", "_grow"])
def test_an_error_of_the_engine_ends_what_runs_and_no_more(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = make(max_seqs=4)
    original = getattr(engine.scheduler, place)
    calls = iter(range(1000))

    def failing(*args: object) -> object:
        result = original(*args)
        if next(calls) == 5:
            raise RuntimeError("a mistake")
        return result

    monkeypatch.setattr(engine.scheduler, place, failing)
    for generation in submit_all(engine, [ask([i, *range(9)], 12) for i in range(4)]):
        with pytest.raises(BackendError, match="a mistake"):
            list(generation)
    assert all_free(engine)
    assert [t.id for t in engine.submit(ask([9], 5))] == expected_greedy([9], 5, N_VOCAB)


def test_close() -> None:
    engine, executable = make()
    running = engine.submit(ask([1], 50))
    blocks = engine.iter_logits([1, 2, 3])
    next(running)
    executable.on_run = lambda batch: time.sleep(0.01)
    engine.close()
    engine.close()
    assert executable.closed
    for use in (
        lambda: next(running),
        lambda: next(running),
        lambda: next(blocks),
        lambda: engine.submit(ask([1])),
        lambda: engine.logits([1]),
        lambda: engine.hidden([1]),
    ):
        with pytest.raises(ClosedError):
            use()
    assert engine.pool.n_available == engine.pool.n_pages


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_the_capacities_answers_are_the_same(data: st.DataObject) -> None:
    n_seqs = data.draw(st.integers(1, 5), "max_seqs")
    engine, _ = make(
        n_ctx=24,
        n_pages=data.draw(st.integers(6, 14), "n_pages"),
        n_slots=data.draw(st.sampled_from([0, 2 * n_seqs + 1, 2 * n_seqs + 6]), "n_slots"),
        max_seqs=n_seqs,
        max_tokens=data.draw(st.integers(1, 12), "max_tokens"),
        max_rows=data.draw(st.integers(1, 6), "max_rows"),
    )
    beginning = list(range(12))
    prompt = st.builds(
        lambda n, rest: beginning[:n] + rest, st.integers(0, 12), st.lists(st.integers(0, 2), max_size=5)
    )
    running: list[tuple[object, list[int], list[int]]] = []
    for _ in range(data.draw(st.integers(1, 30), "actions")):
        action = data.draw(st.sampled_from(["submit", "next", "next", "cancel", "logits"]))
        if action == "submit":
            tokens = data.draw(prompt) or [1]
            n = min(data.draw(st.integers(1, 12)), 25 - len(tokens))
            generation = engine.submit(ask(tokens, n))
            running.append((generation, expected_greedy(tokens, n, N_VOCAB), []))
        elif action == "logits":
            tokens = data.draw(prompt) or [1]
            assert engine.logits(tokens)[-1].tolist() == expected_row(tokens, N_VOCAB).tolist()
        elif running:
            i = data.draw(st.integers(0, len(running) - 1))
            generation, expected, got = running[i]
            if action == "cancel":
                generation.cancel()  # type: ignore[attr-defined]
                running.pop(i)
            elif (token := next(generation, None)) is not None:  # type: ignore[call-overload]
                got.append(token.id)
        engine.check()
    for generation, expected, got in running:
        assert got + [t.id for t in generation] == expected  # type: ignore[attr-defined]
    assert all_free(engine)


def test_a_model_without_a_head_gives_states_and_no_text() -> None:
    executable = FakeExecutable(50)
    executable.program = transformer(replace(SMALL, head=False)).program
    engine = Engine(executable, n_ctx=64, n_vocab=50)
    assert len(engine.hidden([1, 2, 3])) == 3
    for ask in (
        lambda: engine.submit(GenerationRequest([1], SamplingParams(), max_tokens=1)),
        lambda: engine.logits([1]),
        lambda: list(engine.score([([1, 2], lambda at, rows: None)])),
    ):
        with pytest.raises(RequestError, match="no output head"):
            ask()
