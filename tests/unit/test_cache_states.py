"""The pool of slots: nothing is lost, nothing that is held is given away, the least useful checkpoint goes first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyllm.cache import ROOT, PagePool, StatePool

SIZE = 2


def published(pages: PagePool, n: int, first: int = 0) -> list[int]:
    """Held pages of one sequence, published."""
    found = pages.allocate(n)
    for i, page in enumerate(found):
        assert pages.publish(page, found[i - 1] if i else ROOT, np.full(SIZE, first + i, np.int32)) == page
    return found


def test_a_checkpoint_ends_with_its_page() -> None:
    pages = PagePool(4, SIZE)
    states = StatePool(2, pages)
    first = published(pages, 3)
    (slot,) = states.allocate(1)
    states.keep(first[1], slot)
    states.release(slot)
    assert states.deepest(first) == 2
    assert states.n_available == 2
    pages.release(first)
    pages.allocate(3)  # a free one, and the last two of the sequence
    assert states.deepest(first) == 0
    states.check([])


def test_a_held_checkpoint_is_not_given_up() -> None:
    pages = PagePool(4, SIZE)
    states = StatePool(2, pages)
    first = published(pages, 2)
    (slot,) = states.allocate(1)
    states.keep(first[1], slot)
    assert states.n_available == 1
    states.allocate(1)
    with pytest.raises(ValueError, match="1 slots are wanted, 0 are available"):
        states.allocate(1)
    assert states.deepest(first) == 2
    states.release(slot)
    assert states.allocate(1) == [slot]
    assert states.deepest(first) == 0


def test_the_one_with_the_least_to_compute_again_goes_first() -> None:
    pages = PagePool(16, SIZE)
    states = StatePool(3, pages)
    chain = published(pages, 12)
    for n in (4, 5, 12):
        (slot,) = states.allocate(1)
        states.keep(chain[n - 1], slot)
        states.release(slot)
    states.allocate(1)
    assert [n for n in range(1, 13) if states.has(chain[n - 1])] == [4, 12]
    states.allocate(1)
    assert [n for n in range(1, 13) if states.has(chain[n - 1])] == [12]


def test_what_was_used_long_ago_goes_before_what_was_used_now() -> None:
    pages = PagePool(60, SIZE)
    states = StatePool(40, pages)
    chains = [published(pages, 1, 100 * i) for i in range(40)]
    for chain in chains:
        (slot,) = states.allocate(1)
        states.keep(chain[0], slot)
        states.release(slot)
    for chain in chains[:10]:
        states.release(states.take(chain[0]))
    states.allocate(30)
    assert [states.has(chain[0]) for chain in chains] == [True] * 10 + [False] * 30


class Machine(RuleBasedStateMachine):
    """Sequences that compute one page at a time, keep states at random, end, and begin where others were."""

    @initialize()
    def begin(self) -> None:
        self.pages = PagePool(10, SIZE)
        self.states = StatePool(6, self.pages)
        self.running: list[tuple[list[int], int]] = []
        """Pages, and the slot of the state behind them."""
        self.known: dict[int, tuple[int, ...]] = {}
        """What each slot holds, as the pages' tokens before it."""
        self.tokens: dict[int, tuple[int, ...]] = {}

    @rule(token=st.integers(0, 2), keeps=st.booleans(), which=st.integers(0, 3))
    @precondition(lambda self: len(self.running) < 3)
    def start(self, token: int, keeps: bool, which: int) -> None:
        if self.pages.n_available and self.states.n_available:
            self.running.append(([], -1))
            self.advance(len(self.running) - 1, token, keeps)

    @rule(index=st.integers(0, 2), token=st.integers(0, 2), keeps=st.booleans())
    def advance(self, index: int, token: int, keeps: bool) -> None:
        if index >= len(self.running) or not self.pages.n_available or not self.states.n_available:
            return
        pages, slot = self.running[index]
        before = self.tokens[pages[-1]] if pages else ()
        assert (() if slot < 0 else self.known[slot]) == before
        (new,) = self.states.allocate(1)
        assert new != slot
        (page,) = self.pages.allocate(1)
        page = self.pages.publish(page, pages[-1] if pages else ROOT, np.full(SIZE, token, np.int32))
        self.tokens[page] = self.known[new] = (*before, token)
        if slot >= 0:
            self.states.release(slot)
        if keeps:
            self.states.keep(page, new)
        self.running[index] = [*pages, page], new

    @rule(index=st.integers(0, 2))
    def end(self, index: int) -> None:
        if index < len(self.running):
            pages, slot = self.running.pop(index)
            self.states.release(slot)
            self.pages.release(pages)

    @rule(wanted=st.lists(st.integers(0, 2), min_size=1, max_size=5))
    @precondition(lambda self: len(self.running) < 3)
    def resume(self, wanted: list[int]) -> None:
        pages = self.pages.match(np.repeat(np.int32(wanted), SIZE), 5)
        if n := self.states.deepest(pages):
            self.pages.acquire(pages[:n])
            slot = self.states.take(pages[n - 1])
            assert self.known[slot] == tuple(wanted[:n])
            self.running.append((pages[:n], slot))

    @invariant()
    def holds(self) -> None:
        self.pages.check([pages for pages, _ in self.running])
        self.states.check([slot for _, slot in self.running])


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
