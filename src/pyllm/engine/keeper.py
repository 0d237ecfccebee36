"""A prefix cache beyond memory: pages and checkpoints are written to a folder, and read from there before a prompt is
computed.

Files are read and written by threads of their own; the computing thread only copies pages. It copies them where it has
nothing else to do, and beside steps for a fiftieth of their time. What is given up before that is not written.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import groupby
from operator import itemgetter
from threading import BoundedSemaphore
from time import monotonic, perf_counter

from pyllm.backends.base import Executable
from pyllm.cache import ROOT, CacheFolder, PagePool, Saved, SavedPage, SavedState
from pyllm.engine import pages
from pyllm.engine.sequence import Sequence
from pyllm.engine.states import States
from pyllm.errors import PyllmWarning

_SHARE = 0.02
"""Of a step's time, for copying beside it."""
_MOST_OWED = 0.02
"""Seconds that may be copied at once beside a step."""
_BATCH = 1 << 24
"""Bytes that are written together, and brought in at once."""
_LEAST = 4096
"""Bytes that an item counts for at least."""
_AHEAD = 2
"""Batches that wait for the disk, or come from there."""
_PATIENCE = 30.0
"""Seconds that an end waits for the disk."""
_Item = tuple[Sequence, Saved | None]


class Keeper:
    """Between an engine's pages and a folder; without a folder it does nothing. Only for the computing thread."""

    def __init__(
        self,
        folder: CacheFolder | None,
        pool: PagePool,
        states: States | None,
        executable: Executable,
        wake: Callable[[], None],
    ) -> None:
        self._folder, self._pool, self._states, self._executable = folder, pool, states, executable
        self._at_once = max(1, _BATCH // max(_LEAST, executable.page_bytes, executable.slot_bytes))
        self.begin(wake)

    def begin(self, wake: Callable[[], None]) -> None:
        """Begin, or begin anew in a process that was forked. `wake` is called by other threads, where there is
        something to `receive`, or room to `keep` more."""
        self._wake = wake
        self._ended = self._folder is None
        self.fetching: set[Sequence] = set()
        """Sequences that wait for the folder."""
        self._found: deque[_Item] = deque()
        """What was read, each sequence's in order, None at its end."""
        self._room = BoundedSemaphore(_AHEAD * self._at_once)
        self._batch: list[Saved] = []
        self._before: dict[bytes, int] = {}
        """Digest and number of the pages before those of the batch."""
        self._writing: set[Future[None]] = set()
        self._owed = 0.0
        if self._folder is not None:
            self._reader = ThreadPoolExecutor(1, "pyllm-cache-read")
            self._writer = ThreadPoolExecutor(1, "pyllm-cache-write")

    def fetch(self, seq: Sequence) -> bool:
        """Begin to read the pages that continue what is in memory of a sequence; whether it waits for them."""
        if self._ended or not seq.consumer.shares:
            return False
        pool, size = self._pool, self._pool.page_size
        n = seq.next_row // size
        known = pool.match(seq.tokens[: seq.n_tokens], n)
        first = len(known) if self._states is None else self._states.pool.deepest(known)
        n = min(n, first + pool.n_available)
        if first >= n:
            return False
        self.fetching.add(seq)
        self._reader.submit(self._read, seq, [seq.tokens[i * size : (i + 1) * size].tobytes() for i in range(n)], first)
        return True

    def receive(self, spare: int) -> list[Sequence]:
        """Bring in what was read, some of it; returns the sequences that wait no more. `spare`: pages to leave."""
        ready: list[Sequence] = []
        found = [self._found.popleft() for _ in range(min(self._at_once, len(self._found)))]
        for seq, items in groupby(found, itemgetter(0)):
            read = [item for _, item in items]
            for _ in range(len(read) - read.count(None)):
                self._room.release()
            if seq not in self.fetching:
                continue
            whole = [item for item in read if isinstance(item, SavedPage)]
            if whole:
                pages.bring(self._pool, self._executable, whole, spare)
            for item in read:
                if isinstance(item, SavedState) and self._states is not None:
                    pages.bring_state(self._pool, self._states.pool, self._executable, item, self._states.spare)
            if read[-1] is None:
                self.fetching.discard(seq)
                ready.append(seq)
        return ready

    @property
    def has_found(self) -> bool:
        """Whether there is something to receive."""
        return bool(self._found)

    def forget(self, seq: Sequence) -> None:
        """A sequence has ended."""
        self.fetching.discard(seq)

    def keep_beside(self, seconds: float) -> None:
        """Copy pages and checkpoints after a step that took so long, for a small share of that."""
        if self._ended or not self._is_fresh:
            return
        self._owed = min(self._owed + _SHARE * seconds, _MOST_OWED)
        while self._owed > 0 and self._copy_one():
            pass

    def keep(self) -> bool:
        """Copy pages and checkpoints where there is nothing else to do; whether there may be more."""
        if self._ended:
            return False
        while self._copy_one():
            if not self._batch:
                return True
        self._write_batch()
        return False

    def end(self) -> None:
        """Write what is left, for some seconds at most; nothing is read or kept any more."""
        if self._ended:
            return
        self._ended = True
        until = monotonic() + _PATIENCE
        while self._is_fresh and monotonic() < until:
            wait(self._writing, timeout=0.0 if self._has_room else until - monotonic(), return_when=FIRST_COMPLETED)
            self._copy_one()
        for page in self._pool.recent():  # what is in memory now was used last
            self._note_before(page)
        self._write_batch()
        wait(self._writing, timeout=max(0.0, until - monotonic()))
        for thread in (self._reader, self._writer):
            thread.shutdown(wait=False, cancel_futures=True)

    @property
    def _is_fresh(self) -> bool:
        """Whether there is something that is not saved."""
        return bool(self._pool.fresh or (self._states is not None and self._states.pool.fresh))

    @property
    def _has_room(self) -> bool:
        self._writing = {written for written in self._writing if not written.done()}
        return len(self._writing) < _AHEAD

    def _copy_one(self) -> bool:
        """Copy the page published first, or else the oldest checkpoint, if there is one and room for it."""
        pool = self._pool
        if not self._is_fresh or not self._has_room:
            return False
        began = perf_counter()
        if pool.fresh:
            page = next(iter(pool.fresh))
            del pool.fresh[page]
            self._batch.append(pages.copy(pool, self._executable, page))
        else:
            assert self._states is not None
            states = self._states.pool
            page = next(iter(states.fresh))
            del states.fresh[page]
            self._batch.append(pages.copy_state(pool, states, self._executable, page))
        self._note_before(page)
        if len(self._batch) >= self._at_once:
            self._write_batch()
        self._owed -= perf_counter() - began
        return True

    def _note_before(self, page: int) -> None:
        known = self._pool.published(page)
        while known is not None and known.digest not in self._before:
            self._before[known.digest] = known.number
            known = self._pool.published(known.parent) if known.parent != ROOT else None

    def _write_batch(self) -> None:
        if self._batch or self._before:
            self._writing.add(self._writer.submit(self._write, self._batch, self._before))
            self._batch, self._before = [], {}

    # Other threads.

    def _write(self, batch: Many[Saved], before: dict[bytes, int]) -> None:
        assert self._folder is not None
        self._folder.write(batch, [(number, digest) for digest, number in before.items()])
        self._wake()

    def _read(self, seq: Sequence, tokens: Many[bytes], first: int) -> None:
        assert self._folder is not None
        try:
            for item in self._folder.read(tokens, first):
                while not self._room.acquire(timeout=0.1):
                    if self._ended:
                        return
                self._found.append((seq, item))
                self._wake()
                if seq.cancelled or self._ended:
                    return
        except Exception as error:
            warnings.warn(f"the prefix cache cannot be read: {error}", PyllmWarning, stacklevel=1)
        finally:
            self._found.append((seq, None))
            self._wake()
