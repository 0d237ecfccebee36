"""The pool of KV pages: reference counts, prefix sharing, reuse of pages that no sequence holds."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT = -1
"""The parent of a sequence's first page."""
ROOT_DIGEST = bytes(16)
"""What stands for it where pages are named by their digests."""


class Published(NamedTuple):
    """What a published page holds."""

    parent: int
    """The page before it, or ROOT."""
    tokens: bytes
    """Its own tokens, int32 [page_size]."""
    digest: bytes
    """Names its content, in any process: a hash of all tokens from the first on."""
    number: int
    """Pages before it."""


def digest_of(parent: bytes, tokens: bytes) -> bytes:
    """The digest of the page with these tokens, int32 [page_size], after the page of digest `parent`."""
    return blake2b(parent + tokens, digest_size=16).digest()


class PagePool:
    """The pages 0 .. n_pages - 1 of an executable's KV cache, each of `page_size` positions.

    A page is *free* (without content), *held* (by one or more sequences) or *idle* (held by none, but published: its
    content may be reused; the least recently used idle page is taken when no page is free). A page is published once
    all its positions are computed, and is not written afterwards. It is found by its parent page and its own tokens,
    compared in full: two pages are the same only if all tokens from the first on are.

    The holder of a page holds all pages before it, and pages become idle from the last to the first; so no page is
    reused while a published page depends on it. Not thread-safe.
    """

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.n_pages = n_pages
        self.page_size = page_size
        self.on_reuse: Callable[[int], object] | None = None
        """Called with each idle page whose content is given up."""
        self.clear()

    def clear(self) -> None:
        """Forget everything: all pages are free."""
        self._holders = [0] * self.n_pages
        self._free = list(range(self.n_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._index: dict[tuple[int, bytes], int] = {}
        self._published: dict[int, Published] = {}
        self._digests: dict[bytes, int] = {}
        self.fresh: dict[int, None] = {}
        """Published pages that nobody has taken from here yet: those to save, the one published first first."""

    @property
    def n_available(self) -> int:
        """Pages that `allocate` can return: free and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def n_idle(self) -> int:
        """Idle pages, kept for their content."""
        return len(self._idle)

    def is_idle(self, page: int) -> bool:
        return page in self._idle

    def is_published(self, page: int) -> bool:
        return page in self._published

    def parent(self, page: int) -> int:
        """The published page before a published one; `ROOT` before a sequence's first."""
        return self._published[page].parent

    def match(self, tokens: NDArray[np.int32], n_pages: int) -> list[int]:
        """Published pages of the longest prefix of `tokens`, at most `n_pages`; they are not held yet."""
        pages: list[int] = []
        parent = ROOT
        size = self.page_size
        for start in range(0, min(n_pages, len(tokens) // size) * size, size):
            page = self._index.get((parent, tokens[start : start + size].tobytes()))
            if page is None:
                break
            pages.append(page)
            parent = page
        return pages

    def acquire(self, pages: Iterable[int]) -> None:
        """Hold published pages (from `match`) once more."""
        for page in pages:
            if self._holders[page] == 0:
                del self._idle[page]
            self._holders[page] += 1

    def allocate(self, n: int) -> list[int]:
        """Hold `n` pages without content. Raises ValueError where fewer are available; then none is taken."""
        if n > self.n_available:
            raise ValueError(f"{n} pages are wanted, {self.n_available} are available")
        pages = []
        for _ in range(n):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                self._forget(page)
            self._holders[page] = 1
            pages.append(page)
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Release pages once: a sequence's pages in order, or its last ones."""
        for page in reversed(pages):
            left = self._holders[page] - 1
            if left < 0:
                raise ValueError(f"page {page} is released more often than it is held")
            self._holders[page] = left
            if left == 0:
                if page in self._published:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def publish(self, page: int, parent: int, tokens: NDArray[np.int32]) -> int:
        """Publish a held, fully computed page as the continuation of `parent` (or `ROOT`) by `tokens` [page_size].

        Returns the page to use from now on: `page`, or a published page of the same content, which is then held in
        place of `page`.
        """
        key = (parent, tokens.tobytes())
        known = self._index.setdefault(key, page)
        if known == page:
            before = self._published.get(parent)
            digest = digest_of(before.digest if before else ROOT_DIGEST, key[1])
            self._published[page] = Published(*key, digest, before.number + 1 if before else 0)
            self._digests[digest] = page
            self.fresh[page] = None
        else:
            self.acquire((known,))
            self.release((page,))
        return known

    def published(self, page: int) -> Published | None:
        """What a page holds, if it is published."""
        return self._published.get(page)

    def find(self, digest: bytes) -> int | None:
        """The published page of this content, or None."""
        return self._digests.get(digest)

    def path(self, page: int) -> list[int]:
        """A published page and all before it, in order; none for ROOT."""
        pages: list[int] = []
        while page != ROOT:
            pages.append(page)
            page = self._published[page].parent
        return pages[::-1]

    def recent(self) -> list[int]:
        """All published pages, each after the one before it: those of the sequence used last first."""
        parents = {known.parent for known in self._published.values()}
        age = {page: i for i, page in enumerate(self._idle)}
        lasts = [page for page in self._published if page not in parents]
        lasts.sort(key=lambda page: age.get(page, len(age)), reverse=True)
        return list(dict.fromkeys(page for last in lasts for page in self.path(last)))

    def _forget(self, page: int) -> None:
        if self.on_reuse is not None:
            self.on_reuse(page)
        known = self._published.pop(page)
        del self._index[known.parent, known.tokens]
        del self._digests[known.digest]
        self.fresh.pop(page, None)

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError where internal state is inconsistent. `holders`: the pages of each sequence, in
        order."""
        counted: Counter[int] = Counter()
        for pages in holders:
            counted.update(pages)
            parents = [ROOT, *pages]
            for parent, page in zip(parents, pages, strict=False):
                if page in self._published:
                    assert self._published[page].parent == parent, (
                        f"page {page} is known behind another page than {parent}"
                    )
        for page, n in enumerate(self._holders):
            assert counted[page] == n, f"page {page} is held {counted[page]} times, {n} are counted"
        held = {page for page, n in enumerate(self._holders) if n}
        every = [*self._free, *self._idle, *held]
        assert sorted(every) == list(range(self.n_pages)), "each page must be exactly one of free, idle, held"
        assert not self._published.keys() & set(self._free), "a free page is published"
        assert all(page in self._published for page in self._idle), "an idle page is not published"
        assert {known[:2]: page for page, known in self._published.items()} == self._index, "index and pages differ"
        assert {known.digest: page for page, known in self._published.items()} == self._digests, "digests differ"
        assert self.fresh.keys() <= self._published.keys(), "a page to save is not published"
        age = {page: i for i, page in enumerate(self._idle)}
        for page, (parent, _, _, number) in self._published.items():
            assert len(self.path(page)) == number + 1, f"page {page} is not number {number} of its sequence"
            if parent == ROOT:
                continue
            assert parent in self._published, f"page {page} is published behind {parent}, which is not"
            assert not (page in held and parent not in held), f"page {page} is held, {parent} before it is not"
            assert parent in held or age[page] < age[parent], f"page {parent} would be reused before {page} behind it"
