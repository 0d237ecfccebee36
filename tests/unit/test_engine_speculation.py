"""Drafts in the engine: answers are those without, token for token, whatever is guessed; right guesses save steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_fakes import FakeExecutable, PausingExecutable, expected_greedy, expected_row, submit_all
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_candidates import Few
from test_engine_constraints import PLACES, Script

from pyllm.backends.base import Batch
from pyllm.config import SamplingParams
from pyllm.engine import Engine, GenerationRequest
from pyllm.engine import sequence as sequences
from pyllm.engine.speculation import Drafter, DraftModel, Lookup, Offer, likely, speculation
from pyllm.errors import BackendError, RequestError

N_VOCAB = 50
GREEDY = SamplingParams(temperature=0)
DRAFTS = 12


class Told(Drafter):
    """Guesses from what it is told: the next tokens after those that are there."""

    priors = (0.9,)
    is_free = False

    def __init__(self, tell: Callable[[list[int], int], list[int]], n: int = 5) -> None:
        self.tell, self.n = tell, n
        self.closed = 0

    def offer(self, seq: sequences.Sequence) -> Offer:
        assert seq.remaining == 1
        return Offer(0, self.n)

    def draft(self, wanted: Sequence[tuple[sequences.Sequence, int]]) -> list[list[int]]:
        return [self.tell(seq.tokens[: seq.n_tokens].tolist(), n) for seq, n in wanted]

    def close(self) -> None:
        self.closed += 1


def knowing(answers: list[tuple[list[int], list[int]]], wrong: Callable[[], bool]) -> Callable[..., list[int]]:
    """Tells how sequences go on, of which prompts and answers are known, and now and then what is wrong."""

    def tell(tokens: list[int], n: int) -> list[int]:
        following = next((a[len(tokens) - len(p) :] for p, a in answers if [*p, *a][: len(tokens)] == tokens), [])
        draft = (following + [0] * n)[:n]
        return [(token + 1) % N_VOCAB if wrong() else token for token in draft]

    return tell


@pytest.fixture(autouse=True)
def _all_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many drafts as there is room for: not by the clock."""

    def lengths(prospects: Sequence[Any], most: int, times: Any) -> list[int]:
        left, found = most, []
        for prospect in prospects:
            found.append(min(prospect.n, left))
            left -= found[-1]
        return found

    monkeypatch.setattr(speculation, "lengths", lengths)


def run(
    executable: FakeExecutable,
    requests: Sequence[GenerationRequest],
    drafter: Drafter | list[Drafter] | None,
    n_ctx: int = 128,
) -> tuple[list[Any], list[Any]]:
    """Each answer with its end; and the generations."""
    drafters = drafter if isinstance(drafter, list) else [drafter] if drafter is not None else []
    engine = Engine(executable, n_ctx=n_ctx, n_vocab=N_VOCAB, drafters=drafters)
    try:
        generations = submit_all(engine, requests)
        found = [read(generation) for generation in generations]
        engine.check()
        assert engine.pool.n_available == engine.pool.n_pages
        return found, generations
    finally:
        engine.close()


def read(generation: Any) -> tuple[list[Any], str | None]:
    """Its tokens, and its end, or the error that ended it."""
    tokens = []
    try:
        for t in generation:
            tokens.append((t.id, t.logprob, t.top))
    except RequestError as error:
        return tokens, str(error)
    return tokens, generation.finish_reason


def test_right_guesses_save_steps_and_are_counted() -> None:
    prompt = [1, 2, 3]
    answer = expected_greedy(prompt, 13, N_VOCAB)
    executable = FakeExecutable(N_VOCAB, max_drafts=DRAFTS)
    found, (generation,) = run(executable, [ask(prompt, 13)], Told(knowing([(prompt, answer)], lambda: False)))
    assert [t for t, _, _ in found[0][0]] == answer
    # The first token comes with the prompt, six with each of two steps: no draft follows the last one.
    assert executable.sizes == [(3, 1, 1), (6, 1, 6), (6, 1, 6)]
    assert (generation.n_drafted, generation.n_accepted) == (10, 10)


def test_wrong_guesses_cost_rows_and_no_token() -> None:
    executable = FakeExecutable(N_VOCAB, max_drafts=DRAFTS)
    prompt = [1, 2, 3]
    answer = expected_greedy(prompt, 9, N_VOCAB)
    found, (generation,) = run(executable, [ask(prompt, 9)], Told(knowing([(prompt, answer)], lambda: True)))
    assert [t for t, _, _ in found[0][0]] == answer
    assert generation.n_accepted == 0
    assert generation.n_drafted == 5 * 3 + 4 + 3 + 2 + 1
    assert executable.n_runs == 9


def ask(tokens: list[int], n: int | None = 10, **more: Any) -> GenerationRequest:
    return GenerationRequest(tokens, **{"sampling": GREEDY, "max_tokens": n, **more})


SAMPLINGS = [
    GREEDY,
    SamplingParams(seed=3),
    SamplingParams(temperature=1.5, top_k=20, repeat_penalty=1.3, repeat_last_n=5, seed=4),
    SamplingParams(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.4, seed=5),
    SamplingParams(mirostat=2, seed=6),
    SamplingParams(mirostat=1, temperature=1.2, seed=7),
    SamplingParams(dry_multiplier=2.0, dry_allowed_length=1, temperature=0.7, dry_sequence_breakers=(), seed=8),
    SamplingParams(xtc_probability=0.5, xtc_threshold=0.05, temperature=1.5, seed=9),
    SamplingParams(temperature=0.8, min_tokens=6, seed=10),
    SamplingParams(temperature=0, logits_processors=(lambda seen, logits: np.roll(logits, len(seen)),)),
]


@st.composite
def workloads(draw: st.DrawFn) -> tuple[list[GenerationRequest], dict[str, int], int, int]:
    """Requests, an executable's options, how often a guess is wrong, and how long drafts are."""
    requests = []
    for _ in range(draw(st.integers(1, 4))):
        prompt = draw(st.lists(st.integers(0, 5), min_size=1, max_size=30))
        more: dict[str, Any] = {
            "sampling": draw(st.sampled_from(SAMPLINGS)),
            "logprobs": draw(st.sampled_from([None, None, 0, 2])),
            "stop_ids": frozenset(draw(st.lists(st.integers(0, N_VOCAB - 1), max_size=3))),
            "paced": draw(st.booleans()),
            "context_shift": draw(st.booleans()),
            "prompt_logprobs": draw(st.sampled_from([None, None, 1])),
        }
        if draw(st.booleans()):
            places = draw(st.lists(st.sampled_from([*PLACES, list(range(N_VOCAB))]), min_size=1, max_size=12))
            more["constrain"] = lambda places=places: Refusing(places)
        requests.append(ask(prompt, draw(st.integers(0, 40)), **more))
    options = {
        "n_pages": draw(st.integers(24, 80)),
        "page_size": draw(st.sampled_from([1, 4, 16])),
        "max_tokens": draw(st.integers(4, 40)),
        "max_rows": draw(st.integers(4, 40)),
        "max_seqs": draw(st.integers(1, 4)),
        "max_drafts": draw(st.integers(0, 12)),
    }
    if spare := draw(st.sampled_from([0, 3, 20])):  # with recurrent states, of which a draft may get too few
        options["n_slots"] = 2 * options["max_seqs"] + spare
    return requests, options, draw(st.integers(2, 10)), draw(st.integers(1, 9))


class Refusing(Script):
    """Says so as constraints do."""

    def advance(self, token: int) -> None:
        if self.at >= len(self.places) or token not in self.places[self.at]:
            raise RequestError("the script does not allow that")
        self.at += 1


@settings(max_examples=150, deadline=None)
@given(workloads(), st.sampled_from([FakeExecutable, PausingExecutable, lambda **options: Few(8, **options)]))
def test_answers_are_those_without_drafts(workload: Any, make: Callable[..., FakeExecutable]) -> None:
    requests, options, wrong_every, n = workload
    n_ctx = min(60, options["n_pages"] * options["page_size"])
    requests = [request for request in requests if len(request.tokens) <= n_ctx]
    alone = [run(FakeExecutable(N_VOCAB, **options), [request], None, n_ctx)[0][0] for request in requests]
    answers = [(list(r.tokens), [t for t, _, _ in found]) for r, (found, _) in zip(requests, alone, strict=True)]
    count = itertools.count(1)
    drafter = Told(knowing(answers, lambda: next(count) % wrong_every == 0), n)
    executable = make(**{"n_vocab": N_VOCAB, **options}) if isinstance(make, type) else make(**options)
    found, generations = run(executable, requests, drafter, n_ctx)
    for (tokens, reason), (plain, plain_reason) in zip(found, alone, strict=True):
        assert [t[0] for t in tokens] == [t[0] for t in plain]
        assert reason == plain_reason
        assert [t[1] for t in tokens] == pytest.approx([t[1] for t in plain], abs=1e-5)
    assert all(0 <= g.n_accepted <= g.n_drafted for g in generations)
    assert drafter.closed == 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_samplers_see_the_drafts_before_a_row(sampling: SamplingParams) -> None:
    prompt = [1, 2, 3, 1, 2]
    request = ask(prompt, 40, sampling=sampling, stop_ids=frozenset([9]))
    (plain,), _ = run(FakeExecutable(N_VOCAB), [request], None)
    answer = [t for t, _, _ in plain[0]]
    count = itertools.count(1)
    drafter = Told(knowing([(prompt, answer)], lambda: next(count) % 7 == 0))
    (found,), (generation,) = run(FakeExecutable(N_VOCAB, max_drafts=DRAFTS), [request], drafter)
    assert found == plain
    assert generation.n_accepted > 0


def test_what_a_grammar_refuses_or_forces_is_not_drafted() -> None:
    """A draft ends before a token that is refused, and after one that others must follow: these need no rows."""
    prompt = [1, 2, 3]
    anything = list(range(N_VOCAB))
    places = [[3, 4, 5], [7], [8], [9], anything, [20, 30, 40], [10, 11], [1], [2, 6], [2, 6], [2, 6]]
    request = ask(prompt, 20, constrain=lambda: Refusing(places), stop_ids=frozenset([49]))
    plain_executable = FakeExecutable(N_VOCAB)
    (plain,), _ = run(plain_executable, [request], None)
    answer = [t for t, _, _ in plain[0]]
    executable = FakeExecutable(N_VOCAB, max_drafts=DRAFTS)
    (found,), (generation,) = run(executable, [request], Told(knowing([(prompt, answer)], lambda: False)))
    assert found == plain
    assert 0 < generation.n_accepted == generation.n_drafted
    assert executable.n_runs < plain_executable.n_runs
    refused = Told(lambda tokens, n: [48] * n)
    executable = FakeExecutable(N_VOCAB, max_drafts=DRAFTS)
    (found,), (generation,) = run(executable, [request], refused)
    assert found == plain
    assert generation.n_drafted == 0


def test_drafts_are_marked_as_generated_and_never_beside_a_token_that_was_given() -> None:
    prompts = [[1, 2, 3], [4] * 9]
    answers = [expected_greedy(p, 20, N_VOCAB) for p in prompts]
    executable = FakeExecutable(N_VOCAB, max_drafts=DRAFTS)
    count = itertools.count(1)
    tell = knowing(list(zip(prompts, answers, strict=True)), lambda: next(count) % 3 == 0)
    run(executable, [ask(p, 20) for p in prompts], Told(tell))
    for prompt, answer in zip(prompts, answers, strict=True):
        computed = {(*prompt, *answer[: n + 1]) for n in range(19)}
        assert computed <= executable.generated
        assert not computed & executable.given


def test_rejected_drafts_are_never_shared() -> None:
    """A later prompt that goes on as a rejected draft did must be computed: pages are published of what is right."""
    prompt = list(range(1, 9))
    answer = expected_greedy(prompt, 12, N_VOCAB)
    executable = FakeExecutable(N_VOCAB, max_drafts=DRAFTS, page_size=2)
    wrong = [(t + 1) % N_VOCAB for t in answer]
    engine = Engine(executable, n_ctx=64, n_vocab=N_VOCAB, drafters=[Told(lambda tokens, n: wrong[:n])])
    assert [t.id for t in engine.submit(ask(prompt, 12))] == answer
    for following in (wrong, answer):
        again = [*prompt, *following[:8]]
        assert [t.id for t in engine.submit(ask(again, 6))] == expected_greedy(again, 6, N_VOCAB)
    engine.close()


def test_a_failed_step_with_drafts_leaves_nothing_behind() -> None:
    prompt = [1, 2, 3]
    answer = expected_greedy(prompt, 12, N_VOCAB)
    executable = FakeExecutable(N_VOCAB, max_drafts=DRAFTS)

    def fail(batch: Batch) -> None:
        if executable.n_runs == 1 and batch.n_rows > 1:
            executable.on_run = lambda batch: None
            raise BackendError("a step fails")

    executable.on_run = fail
    engine = Engine(executable, n_ctx=64, n_vocab=N_VOCAB, drafters=[Told(knowing([(prompt, answer)], lambda: False))])
    first = engine.submit(ask(prompt, 12))
    assert next(first).id == answer[0]
    with pytest.raises(BackendError, match="a step fails"):
        list(first)
    assert [t.id for t in engine.submit(ask(prompt, 12))] == answer
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages
    engine.close()


def test_drafts_take_no_pages_from_others() -> None:
    """With just the pages that two answers need, drafts preempt nobody."""
    prompts = [[1] * 8, [2] * 8]
    answers = [expected_greedy(p, 8, N_VOCAB) for p in prompts]
    executable = FakeExecutable(N_VOCAB, max_drafts=DRAFTS, n_pages=8, page_size=4)
    tell = knowing(list(zip(prompts, answers, strict=True)), lambda: False)
    found, generations = run(executable, [ask(p, 8) for p in prompts], Told(tell), n_ctx=16)
    assert [[t for t, _, _ in tokens] for tokens, _ in found] == answers
    assert all(g.n_prompt == 8 for g in generations)
    assert sum(n for n, _, _ in executable.sizes) <= 2 * 8 + 2 * 7 + sum(
        g.n_drafted - g.n_accepted for g in generations
    )


def test_drafts_of_several_sequences_share_a_step() -> None:
    prompts = [[1, 2, 3], [4, 5], [6]]
    answers = [expected_greedy(p, 7, N_VOCAB) for p in prompts]
    executable = FakeExecutable(N_VOCAB, max_drafts=DRAFTS, max_tokens=32)
    tell = knowing(list(zip(prompts, answers, strict=True)), lambda: False)
    found, _ = run(executable, [ask(p, 7) for p in prompts], Told(tell, 4))
    assert [[t for t, _, _ in tokens] for tokens, _ in found] == answers
    assert executable.sizes[1] == (15, 3, 15)


class Smaller(FakeExecutable):
    """Another model: it agrees with the first one but for some contexts."""

    def _result(self, batch: Batch, want: Any) -> Any:
        out = super()._result(batch, want)
        for r, t in enumerate(batch.rows[: batch.n_rows].tolist()):
            out[r] = smaller_row(self.context(batch, t).tolist())
        return out


def smaller_row(context: list[int]) -> Any:
    row = expected_row(context, N_VOCAB)
    return np.roll(row, 1) if sum(context) % 4 == 0 else row


class Watched(DraftModel):
    """Checks each guess: it is the most likely token by all before it, so the model has read just those."""

    def draft(self, wanted: Sequence[tuple[sequences.Sequence, int]]) -> list[list[int]]:
        drafts = super().draft(wanted)
        assert len(drafts) == len(wanted)
        for (seq, n), draft in zip(wanted, drafts, strict=True):
            assert len(draft) <= n
            context = seq.tokens[: seq.n_tokens].tolist()
            for token in draft:
                assert token == int(smaller_row(context).argmax())
                context.append(token)
        self.pool.check([shadow.pages for shadow in self._shadows.values()])
        return drafts


@settings(max_examples=100, deadline=None)
@given(workloads(), st.booleans(), st.booleans())
def test_a_draft_model_reads_along(workload: Any, sure: bool, look_up: bool) -> None:
    requests, options, _, _ = workload
    n_ctx = min(60, options["n_pages"] * options["page_size"])
    requests = [request for request in requests if len(request.tokens) <= n_ctx]
    alone = [run(FakeExecutable(N_VOCAB, **options), [request], None, n_ctx)[0][0] for request in requests]
    smaller = Smaller(N_VOCAB, **{**options, "max_drafts": 0, "n_slots": 0, "max_rows": options["max_seqs"]})
    drafter = Watched(smaller, N_VOCAB, smaller.close)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likely, "_LEAST_SURE", 0.0 if sure else 0.15)
        drafters: list[Drafter] = [Lookup(), drafter] if look_up else [drafter]
        found, _ = run(FakeExecutable(N_VOCAB, **options), requests, drafters, n_ctx)
    assert [[t[0] for t in tokens] for tokens, _ in found] == [[t[0] for t in tokens] for tokens, _ in alone]
    assert smaller.closed == 1


def test_guesses_of_the_same_model_are_all_right_and_prompts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likely, "_LEAST_SURE", 0.0)
    smaller = FakeExecutable(N_VOCAB, max_seqs=2)
    engine = Engine(
        FakeExecutable(N_VOCAB, max_drafts=DRAFTS), n_ctx=64, n_vocab=N_VOCAB,
        drafters=[DraftModel(smaller, N_VOCAB, smaller.close)],
    )  # fmt: skip
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    for again in range(3):
        generation = engine.submit(ask(prompt, 20))
        assert [t.id for t in generation] == expected_greedy(prompt, 20, N_VOCAB)
        assert generation.n_drafted == generation.n_accepted >= 15
        assert smaller.n_tokens <= (10 + 20) + again * (4 + 20), "full pages of a prompt are read once"
    engine.close()


def test_drafts_leave_slots_to_a_sequence_that_starts_at_a_checkpoint() -> None:
    first, longer = [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]
    wanted = [(first, 1), ([8], 30), (longer, 20)]
    told = Told(knowing([(prompt, expected_greedy(prompt, n, N_VOCAB)) for prompt, n in wanted], lambda: False))
    executable = FakeExecutable(N_VOCAB, page_size=1, max_seqs=2, max_drafts=4, n_slots=7)
    found, generations = run(executable, [ask(prompt, n) for prompt, n in wanted], told)
    assert [[t for t, _, _ in tokens] for tokens, _ in found] == [expected_greedy(p, n, N_VOCAB) for p, n in wanted]
    assert generations[2].n_cached > 0


def test_states_follow_the_drafts_that_were_right() -> None:
    """Each state that a step begins with is that of the tokens before, which the executable checks."""
    prompts = [list(range(i, i + 9)) for i in range(3)]
    answers = [expected_greedy(prompt, 30, N_VOCAB) for prompt in prompts]
    count = itertools.count()
    executable = FakeExecutable(N_VOCAB, page_size=4, n_pages=64, max_seqs=3, max_drafts=DRAFTS, n_slots=30)
    told = Told(knowing(list(zip(prompts, answers, strict=True)), lambda: next(count) % 7 == 6), 4)
    found, generations = run(executable, [ask(prompt, 30) for prompt in prompts], told)
    assert [[t for t, _, _ in tokens] for tokens, _ in found] == answers
    assert all(0 < g.n_accepted < g.n_drafted for g in generations)
    assert executable.n_runs < 20


def test_a_distribution_stays_what_it_is() -> None:
    """Sampled with drafts, pairs of tokens are as frequent as the model says."""
    prompt, few = [7, 8], [1, 2, 3, 4, 5]
    params = SamplingParams(
        temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, logit_bias={t: -np.inf for t in range(N_VOCAB) if t not in few}
    )
    executable = FakeExecutable(N_VOCAB, max_drafts=DRAFTS, n_pages=400)
    engine = Engine(executable, n_ctx=64, n_vocab=N_VOCAB, drafters=[Told(lambda tokens, n: [3] * n)])
    n, counts, n_accepted = 2500, np.zeros((len(few), len(few))), 0
    for seed in range(n):
        generation = engine.submit(ask(prompt, 3, sampling=replace(params, seed=seed)))
        first, second, _ = [t.id for t in generation]
        counts[few.index(first), few.index(second)] += 1
        n_accepted += generation.n_accepted
    engine.close()

    def shares(context: list[int]) -> Any:
        p = np.exp(expected_row(context, N_VOCAB)[few].astype(np.float64))
        return p / p.sum()

    expected = n * np.stack([p * shares([*prompt, t]) for t, p in zip(few, shares(prompt), strict=True)])
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 24 + 6 * (2 * 24) ** 0.5, "six standard deviations, of 24 degrees of freedom"
    assert n_accepted == counts[:, few.index(3)].sum()
