"""The page pool: what is shared, what is kept, what is reused first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from pyllm.cache import ROOT, PagePool

SIZE = 2


def tokens(*ids: int) -> NDArray[np.int32]:
    return np.array(ids, np.int32)


def publish_all(pool: PagePool, pages: list[int], ids: NDArray[np.int32]) -> list[int]:
    parent, out = ROOT, []
    for i, page in enumerate(pages):
        parent = pool.publish(page, parent, ids[i * SIZE : (i + 1) * SIZE])
        out.append(parent)
    return out


def test_a_published_beginning_is_found_again() -> None:
    pool = PagePool(4, SIZE)
    ids = tokens(1, 2, 3, 4, 5, 6)
    pages = publish_all(pool, pool.allocate(3), ids)
    assert pool.match(ids, 3) == pages
    assert pool.match(ids, 2) == pages[:2]
    assert pool.match(ids[:5], 3) == pages[:2]
    assert pool.match(tokens(1, 2, 3, 5, 5, 6), 3) == pages[:1]
    assert pool.match(tokens(3, 4, 5, 6), 2) == []  # the same tokens, but not at the beginning
    pool.release(pages)
    assert pool.n_available == 4
    assert pool.match(ids, 3) == pages
    pool.acquire(pages)
    assert pool.n_available == 1
    pool.check([pages])


def test_the_longest_idle_page_goes_first_and_the_last_of_its_sequence_before_others() -> None:
    pool = PagePool(4, SIZE)
    old, new = tokens(1, 2, 3, 4), tokens(5, 6, 7, 8)
    first = publish_all(pool, pool.allocate(2), old)
    second = publish_all(pool, pool.allocate(2), new)
    pool.release(first)
    pool.release(second)
    assert pool.allocate(1) == [first[1]]
    assert pool.match(old, 2) == first[:1]
    assert pool.allocate(2) == [first[0], second[1]]
    assert (pool.match(old, 2), pool.match(new, 2)) == ([], second[:1])


def test_the_same_content_is_kept_once() -> None:
    pool = PagePool(4, SIZE)
    ids = tokens(1, 2, 3, 4)
    one = publish_all(pool, pool.allocate(2), ids)
    two = publish_all(pool, pool.allocate(2), ids)
    assert one == two
    assert pool.n_available == 2
    pool.check([one, two])
    pool.release(one)
    pool.release(two)
    assert pool.n_available == 4
    assert pool.n_idle == 2


def test_more_than_there_is_takes_nothing() -> None:
    pool = PagePool(3, SIZE)
    held = pool.allocate(2)
    with pytest.raises(ValueError, match="2 pages are wanted, 1 are available"):
        pool.allocate(2)
    assert pool.n_available == 1
    pool.release(held)
    with pytest.raises(ValueError, match="more often"):
        pool.release(held)


def test_check_sees_what_is_wrong() -> None:
    pool = PagePool(3, SIZE)
    held = pool.allocate(2)
    pool.check([held])
    for wrong in ([], [held, held], [held[:1]], [[*held, 2]]):
        with pytest.raises(AssertionError):
            pool.check(wrong)


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, grow, publish and go; a page's content, known from outside, is always what is promised."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(8, SIZE)
        self.content: dict[int, tuple[int, ...]] = {}
        self.sequences: list[tuple[list[int], list[int]]] = []

    @rule(ids=st.lists(st.integers(0, 1), min_size=2, max_size=10))
    def start(self, ids: list[int]) -> None:
        array = np.array(ids, np.int32)
        pages = self.pool.match(array, 99)
        n = len(ids) // SIZE
        for i, page in enumerate(pages):
            assert self.content[page] == tuple(ids[: (i + 1) * SIZE])
        idle = sum(map(self.pool.is_idle, pages))
        if n - len(pages) > self.pool.n_available - idle:
            return
        self.pool.acquire(pages)
        known = len(pages)
        pages = pages + self.pool.allocate(n - known)
        for i in range(known, n):
            self.content[pages[i]] = tuple(ids[: (i + 1) * SIZE])
            parent = pages[i - 1] if i else ROOT
            pages[i] = self.pool.publish(pages[i], parent, array[i * SIZE : (i + 1) * SIZE])
            assert self.content[pages[i]] == tuple(ids[: (i + 1) * SIZE])
        self.sequences.append((pages, ids))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def grow_unpublished(self, data: st.DataObject) -> None:
        pages, _ = data.draw(st.sampled_from(self.sequences))
        if self.pool.n_available:
            page = self.pool.allocate(1)[0]
            self.content[page] = (-1,)
            pages.append(page)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        pages, _ = self.sequences.pop(data.draw(st.integers(0, len(self.sequences) - 1)))
        self.pool.release(pages)

    @invariant()
    def books_are_right(self) -> None:
        self.pool.check([pages for pages, _ in self.sequences])
        held = {page for pages, _ in self.sequences for page in pages}
        assert self.pool.n_available == self.pool.n_pages - len(held)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase
