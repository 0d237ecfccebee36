"""A head reads along: whatever becomes of sequences and pages, it is given the features of the tokens before, and has
read all of a sequence when it guesses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_fakes import N_EMBD, PROGRAM, FakeExecutable, PausingExecutable, expected_greedy, expected_row
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_engine_speculation import DRAFTS, N_VOCAB, ask, run, smaller_row, workloads

from pyllm.backends.base import Batch, Want
from pyllm.engine import sequence as sequences
from pyllm.engine.speculation import Drafter, Head, Lookup, likely, speculation
from pyllm.program import Stage, Value

_STAGE = Stage(0, len(PROGRAM.ops), (Value(-2, N_EMBD),), PROGRAM.results)


class FakeHead(FakeExecutable):
    """Checks what it is given with each token: the row of the tokens before it, which its own pages hold."""

    def __init__(self, ids: NDArray[np.int64] | None, **options: int) -> None:
        """`ids`: the model's, of the tokens that the head knows."""
        options |= {"max_drafts": 0, "n_slots": 0}
        super().__init__(N_VOCAB, **{**options, "max_rows": options.get("max_seqs", 8)})
        self.program = replace(PROGRAM, cuts=(_STAGE,))
        self.ids = np.arange(N_VOCAB) if ids is None else ids

    def run_all(self, batch: Batch, wants: Sequence[Want], given: Sequence[NDArray[np.float32]] = ()) -> list[Any]:
        found = self._run(batch, wants)
        (rows,) = given
        assert rows.shape == (batch.n_tokens, N_EMBD)
        for t, row in enumerate(rows):
            before = self.context(batch, t)[:-1]
            np.testing.assert_array_equal(row, expected_row(before, N_EMBD) if len(before) else np.zeros(N_EMBD))
        return found

    def _result(self, batch: Batch, want: Want) -> Any:
        if want == "hidden":
            return super()._result(batch, want)
        tokens = batch.rows[: batch.n_rows].tolist()
        return np.stack([smaller_row(self.context(batch, t).tolist())[self.ids] for t in tokens])


class Watched(Head):
    """Checks each guess: it is the most likely token by all before it, of those that the head knows."""

    def draft(self, wanted: Sequence[tuple[sequences.Sequence, int]]) -> list[list[int]]:
        drafts = super().draft(wanted)
        for (seq, n), draft in zip(wanted, drafts, strict=True):
            assert 0 < len(draft) <= n
            context = seq.tokens[: seq.n_tokens].tolist()
            for token in draft:
                known = self.executable.ids  # type: ignore[attr-defined]
                assert token == known[int(smaller_row(context)[known].argmax())]
                context.append(token)
        return drafts


@pytest.fixture(autouse=True)
def _all_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many drafts as there is room for, not by the clock."""

    def lengths(prospects: Sequence[Any], most: int, times: Any) -> list[int]:
        found: list[int] = []
        for prospect in prospects:
            found.append(min(prospect.n, most - sum(found)))
        return found

    monkeypatch.setattr(speculation, "lengths", lengths)
    monkeypatch.setattr(speculation, "best_rate", lambda prospect, *rest: prospect.n * prospect.likelihood)
    monkeypatch.setattr(likely, "_LEAST_SURE", 0.0)


@settings(max_examples=150, deadline=None)
@given(workloads(), st.sampled_from([FakeExecutable, PausingExecutable]), st.booleans(), st.booleans())
def test_a_head_reads_along(workload: Any, make: type[FakeExecutable], look_up: bool, few: bool) -> None:
    requests, options, _, _ = workload
    n_ctx = min(60, options["n_pages"] * options["page_size"])
    requests = [request for request in requests if len(request.tokens) <= n_ctx]
    alone = [run(FakeExecutable(N_VOCAB, **options), [request], None, n_ctx)[0][0] for request in requests]
    ids = np.arange(N_VOCAB - 1, 9, -1) if few else None
    head = FakeHead(ids, **options)
    drafter = Watched(head, N_VOCAB, head.close, ids)
    drafters: list[Drafter] = [Lookup(), drafter] if look_up else [drafter]
    found, _ = run(make(N_VOCAB, **options), requests, drafters, n_ctx)
    assert [[t[0] for t in tokens] for tokens, _ in found] == [[t[0] for t in tokens] for tokens, _ in alone]
    assert head.closed == 1


def test_prefixes_are_read_once() -> None:
    head, prompt = FakeHead(None, max_seqs=2), [1, 2, 3, 4, 5, 6, 7, 8, 9]
    executable = FakeExecutable(N_VOCAB, max_drafts=DRAFTS, max_seqs=2)
    drafter = Watched(head, N_VOCAB, head.close)
    found, _ = run(executable, [ask(prompt, 20), ask([*prompt, 3], 20), ask([*prompt, 4], 9)], drafter)
    assert [t for t, _, _ in found[0][0]] == expected_greedy(prompt, 20, N_VOCAB)
    drafted = sum(n for n, _, n_rows in head.sizes if n_rows)
    assert head.n_tokens - drafted == executable.n_tokens, "it reads what the model computes"
