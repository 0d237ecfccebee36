"""Scoring of several sequences side by side, without copies, on an executable that shows what each token sees."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from engine_fakes import FakeExecutable, expected_greedy, expected_row
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.config import SamplingParams
from pyllm.engine import Engine, GenerationRequest
from pyllm.errors import BackendError, ClosedError, ContextFullError, RequestError

N_VOCAB = 50


def make(**options: int) -> tuple[Engine, FakeExecutable]:
    executable = FakeExecutable(N_VOCAB, **options)
    return Engine(executable, n_ctx=128, n_vocab=N_VOCAB), executable


def windows(n: int, length: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, N_VOCAB, (n, length)).tolist()


def taken(engine: Engine, sequences: list[list[int]], first: int) -> list[dict[int, Any]]:
    """Rows of each sequence by token, as they were when they were shown."""
    rows: list[dict[int, Any]] = [{} for _ in sequences]

    def taker(k: int) -> Any:
        def take(at: int, block: Any) -> None:
            for i, row in enumerate(block):
                assert at + i not in rows[k], "a row was shown twice"
                rows[k][at + i] = row.copy()

        return take

    done = list(engine.score(((s, taker(k)) for k, s in enumerate(sequences)), first=first))
    assert done == list(range(len(sequences)))
    return rows


def assert_right(sequences: list[list[int]], rows: list[dict[int, Any]], first: int) -> None:
    for tokens, own in zip(sequences, rows, strict=True):
        assert list(own) == list(range(first, len(tokens)))
        for i, row in own.items():
            np.testing.assert_array_equal(row, expected_row(tokens[: i + 1], N_VOCAB))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 39), st.integers(1, 30), st.integers(1, 20), st.data())
def test_rows_are_right(n: int, length: int, first: int, max_tokens: int, max_rows: int, data: Any) -> None:
    first = min(first, length - 1)
    max_seqs = data.draw(st.integers(1, 5))
    engine, _ = make(max_tokens=max_tokens, max_rows=max_rows, max_seqs=max_seqs)
    sequences = windows(n, length)
    assert_right(sequences, taken(engine, sequences, first), first)
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages


def test_steps_are_full() -> None:
    engine, executable = make(max_tokens=32, max_rows=16, max_seqs=4, n_pages=64)
    taken(engine, windows(8, 32), 16)
    assert executable.n_runs == 8
    assert executable.n_tokens == 8 * 32


def test_few_pages() -> None:
    engine, _ = make(n_pages=9, page_size=4, max_tokens=64, max_rows=64)
    sequences = windows(5, 30)
    assert_right(sequences, taken(engine, sequences, 3), 3)


def test_beside_answers() -> None:
    engine, _ = make()
    request = GenerationRequest(tokens=[1, 2, 3], sampling=SamplingParams(temperature=0), max_tokens=12)
    answers: list[list[int]] = []
    generation = engine.submit(request)
    thread = threading.Thread(target=lambda: answers.append([t.id for t in generation]))
    thread.start()
    sequences = windows(6, 40)
    rows = taken(engine, sequences, 20)
    thread.join(10)
    assert_right(sequences, rows, 20)
    assert answers == [expected_greedy([1, 2, 3], 12, N_VOCAB)]


def test_leaving_early_leaves_nothing() -> None:
    engine, _ = make()
    scoring = engine.score([(w, lambda at, rows: None) for w in windows(5, 40)], first=10)
    assert next(scoring) == 0
    scoring.close()
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting


def test_errors() -> None:
    engine, _ = make()

    def fail(at: int, rows: Any) -> None:
        raise RequestError("not these")

    def break_down(at: int, rows: Any) -> None:
        raise ZeroDivisionError

    for tokens, first, take, error in (
        ([1, 2], 2, fail, RequestError),
        ([1, 2], -1, fail, RequestError),
        ([1, N_VOCAB], 0, fail, RequestError),
        ([], 0, fail, RequestError),
        ([1] * 129, 0, fail, ContextFullError),
        ([1, 2, 3], 0, fail, RequestError),
        ([1, 2, 3], 0, break_down, BackendError),
    ):
        with pytest.raises(error):
            list(engine.score([(tokens, take)], first=first))
        engine.check()
        assert engine.pool.n_available == engine.pool.n_pages
    engine.close()
    with pytest.raises(ClosedError):
        list(engine.score([([1, 2], fail)]))


def test_interrupted_steps_are_computed_again() -> None:
    engine, executable = make(max_tokens=8, max_rows=8)
    count = 0

    def interrupt(batch: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    executable.on_run = interrupt
    sequences = windows(2, 20, 7)
    assert_right(sequences, taken(engine, sequences, 5), 5)
