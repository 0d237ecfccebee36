"""Look-up of guesses, and how long drafts are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.engine.scoring import StreamedRows
from pyllm.engine.sequence import Sequence
from pyllm.engine.speculation.lengths import Acceptance, Prospect, StepTimes, lengths
from pyllm.engine.speculation.lookup import Index, Lookup

REACH, PLACES = 20, 12
"""Tokens that are compared, and earlier places that are looked at."""


def common(tokens: Many[int], place: int) -> int:
    """How many tokens before `place` are those at the end."""
    n = 0
    while n < min(place, REACH) and tokens[place - 1 - n] == tokens[len(tokens) - 1 - n]:
        n += 1
    return n


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=120), st.lists(st.integers(1, 60), max_size=20))
def test_a_match_is_what_it_says_and_the_longest_of_the_latest(tokens: list[int], pieces: list[int]) -> None:
    """Tokens come in pieces of any size, as a prompt, single tokens and accepted drafts do."""
    index, n = Index(), 0
    for piece in pieces:
        n = min(n + piece, len(tokens))
        going_on = index.length
        length = index.follow(np.array(tokens, np.int32), n)
        known = tokens[:n]
        places = [place for place in range(n - 1, 1, -1) if common(known, place) >= 2]
        assert (length > 0) == bool(places)
        if not places:
            continue
        assert length == common(known, index.at) >= 2
        best = max(common(known, place) for place in places[:PLACES])
        assert length == best or length > going_on >= 2, "only a match that goes on may be shorter"
        draft = index.continuation(7)
        made = known.copy()
        for token in draft:
            assert token == made[index.at + len(made) - n]
            made.append(token)


def test_tokens_that_a_shift_has_dropped_are_forgotten() -> None:
    lookup = Lookup()
    seq = Sequence(0, np.array([1, 2, 3, 4, 1, 2], np.int32), StreamedRows(lambda at, rows: None), 0)
    assert lookup.offer(seq).n > 0
    assert lookup.draft([(seq, 2)]) == [[3, 4]]
    seq.tokens[:4] = [5, 6, 1, 2]
    seq.n_tokens = 4
    assert lookup.offer(seq).n == 0


@st.composite
def choices(draw: st.DrawFn) -> tuple[list[Prospect], int, list[float], float]:
    prospects = [Prospect(draw(st.floats(0.01, 0.99)), draw(st.integers(0, 3))) for _ in range(draw(st.integers(1, 3)))]
    times = sorted(draw(st.lists(st.floats(1, 5), min_size=16, max_size=16)))
    return prospects, draw(st.integers(0, 9)), times, draw(st.sampled_from([0.0, 0.1, 0.5]))


class Fixed(StepTimes):
    def __init__(self, times: list[float]) -> None:
        super().__init__(len(times))
        self.times, self.known = times, True

    def seconds(self, n: int) -> float:
        return self.times[n]


@settings(max_examples=300, deadline=None)
@given(choices())
def test_drafts_are_as_long_as_is_best(choice: tuple[list[Prospect], int, list[float], float]) -> None:
    """Compared with all ways to choose lengths."""
    prospects, most, times, drafting = choice
    prospects = [replace(p, drafting=drafting) for p in prospects]
    n_seqs = len(prospects)

    def rate(chosen: Many[int]) -> float:
        tokens = n_seqs + sum(p.likelihood**i for p, n in zip(prospects, chosen, strict=True) for i in range(1, n + 1))
        return tokens / (times[n_seqs + sum(chosen)] + max(chosen) * drafting)

    found = lengths(prospects, most, Fixed(times))
    assert all(n <= p.n for n, p in zip(found, prospects, strict=True))
    assert sum(found) <= most
    ways = itertools.product(*(range(p.n + 1) for p in prospects))
    best = max(rate(way) for way in ways if sum(way) <= most)
    none = rate([0] * n_seqs)
    if best > 1.03 * none * (1 + 1e-9):
        # A token less likely than others is never drafted before them, which may be better where drafting takes time.
        assert rate(found) >= (best if not drafting else 1.03 * none) * (1 - 1e-9) or (drafting and not any(found))
    else:
        assert not any(found)


def test_measured_times_are_found_on_a_machine_that_changes_its_speed() -> None:
    times, random = StepTimes(64), np.random.default_rng(0)
    true = {1: 1.0, 2: 1.02, 5: 1.3, 6: 2.0, 10: 2.1, 16: 4.0}
    for i in range(3000):
        n = int(random.choice(list(true)))
        speed = 0.03 * (1.5 if i // 500 % 2 else 1.0)
        times.note(n, speed * true[n] * float(random.lognormal(0, 0.1)))
    for n, factor in true.items():
        assert times.seconds(n) / times.seconds(1) == pytest.approx(factor, rel=0.2)
    assert times.seconds(40) >= times.seconds(16)


def test_acceptance_is_a_sequences_own_after_a_while() -> None:
    acceptance = Acceptance([0.5, 0.9])
    own, other = acceptance.of_one(), acceptance.of_one()
    for _ in range(60):
        own.note(0, 0, 1)
        other.note(0, 5, 0)
    assert own.likelihood(0) < 0.1
    assert other.likelihood(0) > 0.9
    assert own.likelihood(1) == pytest.approx(0.9)
    for _ in range(300):
        acceptance.note(0, 0, 1)
    assert acceptance.of_one().likelihood(0) < 0.1
