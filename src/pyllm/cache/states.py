"""The pool of slots for recurrent states: holders, checkpoints at pages, and which of them are given up."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from pyllm.cache.pool import ROOT, PagePool

_CHOICE = 16
"""Of the checkpoints unused longest, so many are compared when one is given up."""
_FAR = 64
"""Pages after which the distance to the checkpoint before is taken to be large enough."""


class StatePool:
    """The slots 0 .. n_slots - 1 of an executable.

    A slot is *free*, or *held*: by a sequence whose state it is, by a step that writes it, by a published page whose
    *checkpoint* it is (the state after the page's last position), or by several of them. Held slots are not written, so
    any number of sequences may begin at a checkpoint. Where no slot is free, a checkpoint that nothing else holds is
    given up: of those that were unused longest, the one with the least to compute again without it. A checkpoint ends
    with its page; a page outlives its checkpoint. Not thread-safe.
    """

    def __init__(self, n_slots: int, pages: PagePool) -> None:
        self.n_slots = n_slots
        self._pages = pages
        pages.on_reuse = self.forget
        self.clear()

    def clear(self) -> None:
        """Forget everything: all slots are free."""
        self._holders = [0] * self.n_slots
        self._free = list(range(self.n_slots - 1, -1, -1))
        self._checkpoints: OrderedDict[int, int] = OrderedDict()
        """Slots by page, the one unused longest first."""
        self._page_of: dict[int, int] = {}
        """Pages by the slot of their checkpoint."""
        self._n_idle = 0
        self.fresh: dict[int, None] = {}
        """Pages whose checkpoints nobody has taken from here yet: those to save, the oldest first."""

    @property
    def n_available(self) -> int:
        """Slots that `allocate` can return: free ones, and those of checkpoints that nothing else holds."""
        return len(self._free) + self._n_idle

    @property
    def n_free(self) -> int:
        """Slots that nothing holds."""
        return len(self._free)

    def allocate(self, n: int) -> list[int]:
        """Hold `n` slots of any content. Raises ValueError where fewer are available; then none is taken."""
        if n > self.n_available:
            raise ValueError(f"{n} slots are wanted, {self.n_available} are available")
        while len(self._free) < n:
            self.forget(self._least_useful())
        slots = [self._free.pop() for _ in range(n)]
        for slot in slots:
            self._holders[slot] = 1
        return slots

    def hold(self, slot: int) -> None:
        """Hold a held slot once more."""
        if self._holders[slot] == 1 and slot in self._page_of:
            self._n_idle -= 1
        self._holders[slot] += 1

    def release(self, slot: int) -> None:
        """Release a slot once."""
        left = self._holders[slot] - 1
        if left < 0:
            raise ValueError(f"slot {slot} is released more often than it is held")
        self._holders[slot] = left
        if left == 0:
            self._free.append(slot)
        elif left == 1 and slot in self._page_of:
            self._n_idle += 1

    def keep(self, page: int, slot: int) -> None:
        """Make a held slot, no other page's, the checkpoint of a published page, unless the page has one; it is held
        once more."""
        if page not in self._checkpoints:
            self._holders[slot] += 1
            self._checkpoints[page] = slot
            self._page_of[slot] = page
            self.fresh[page] = None

    def forget(self, page: int) -> None:
        """Give up the checkpoint of a page, if it has one."""
        slot = self._checkpoints.pop(page, None)
        if slot is not None:
            self._n_idle -= self._holders[slot] == 1
            del self._page_of[slot]
            self.fresh.pop(page, None)
            self.release(slot)

    def deepest(self, pages: Sequence[int]) -> int:
        """How many of a sequence's first pages there are up to its last checkpoint; 0 where there is none."""
        for n in range(len(pages), 0, -1):
            if pages[n - 1] in self._checkpoints:
                return n
        return 0

    def take(self, page: int) -> int:
        """The slot of a page's checkpoint, held once more, and used just now."""
        slot = self._checkpoints[page]
        self._checkpoints.move_to_end(page)
        self.hold(slot)
        return slot

    def slot(self, page: int) -> int | None:
        """The slot of a page's checkpoint, not held; None where it has none."""
        return self._checkpoints.get(page)

    def has(self, page: int) -> bool:
        """Whether a page has a checkpoint."""
        return page in self._checkpoints

    def check(self, held: Iterable[int]) -> None:
        """Raise AssertionError where internal state is inconsistent. `held`: slots of sequences and steps, each as
        often as they hold it."""
        counted = Counter(held)
        counted.update(self._checkpoints.values())
        for slot, n in enumerate(self._holders):
            assert counted[slot] == n, f"slot {slot} is held {counted[slot]} times, {n} are counted"
        free = {slot for slot, n in enumerate(self._holders) if not n}
        assert sorted(self._free) == sorted(free), "the free slots are not those that nothing holds"
        assert {slot: page for page, slot in self._checkpoints.items()} == self._page_of, (
            "two pages have one checkpoint"
        )
        assert self.fresh.keys() <= self._checkpoints.keys(), "a checkpoint to save is none"
        idle = sum(self._holders[slot] == 1 for slot in self._checkpoints.values())
        assert idle == self._n_idle, "checkpoints that could be given up are counted wrongly"
        for page in self._checkpoints:
            assert self._pages.is_published(page), f"page {page} has a checkpoint and no content"

    def _least_useful(self) -> int:
        """The page whose checkpoint is given up next."""
        oldest = (page for page, slot in self._checkpoints.items() if self._holders[slot] == 1)
        return min((page for page, _ in zip(oldest, range(_CHOICE), strict=False)), key=self._distance)

    def _distance(self, page: int) -> int:
        """Pages from the checkpoint before a page's to its own, at most `_FAR`."""
        for n in range(1, _FAR):
            page = self._pages.parent(page)
            if page == ROOT or page in self._checkpoints:
                return n
        return _FAR
