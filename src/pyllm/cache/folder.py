"""A folder of saved pages and states, a file each, of all models and processes that use it; what was used longest
ago is removed.

A file is named by its page's digest and gets its name when it is complete, so a process that is killed leaves no
damage. It is read as any other file of pages: checked, and for one model. Of a model with recurrent states, pages are
read up to the last one that has a state.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyllm.cache.pool import ROOT_DIGEST, digest_of
from pyllm.cache.saved import Layout, Saved, SavedFile, SavedPage, SavedState, write_head, write_record
from pyllm.errors import CacheError, PyllmWarning
from pyllm.temporary import TemporaryFile, remove_leftovers
from pyllm.units import size as in_words

_PAGE, _STATE = ".page", ".state"
_LOCK = "lock"
_COUNT = "bytes"
"""Name of the file that says how many bytes there are, so that files need not be counted for each page."""
_SLACK = 0.05
"""Share of the folder that is free after files were removed, so that they need not be removed for each page."""
_LEAST = 1 << 16
"""Bytes that a small file counts for, so that there are never too many to look through."""
_PATIENCE = 30.0
"""Seconds to wait for other processes that write."""
_NO_DATA = np.empty(0, np.uint8)


class CacheFolder:
    """The pages and states of one layout in a folder that holds at most `size` bytes; `layout.key` names its own folder
    therein.

    `read` and `write` may be called by two threads.
    """

    def __init__(self, folder: Path, size: int, layout: Layout) -> None:
        """Raises CacheError where the folder cannot be made, or cannot hold a page with its state."""
        self.layout = layout
        self.size = size
        self.folder = folder
        self._own = folder / layout.key
        self._fails = False
        self._page_cost = max(_LEAST, layout.file_bytes)
        self._state_cost = max(_LEAST, layout.state_file_bytes) if layout.state_bytes else 0
        least = self._page_cost + self._state_cost
        if least > size:
            what = "page with its state" if layout.state_bytes else "page"
            raise CacheError(f"a prefix cache of {in_words(size)} holds no {what}, which takes {in_words(least)}")
        try:
            # Prompts can be read from pages: they are nobody else's.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._own.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CacheError(f"{folder} cannot hold a prefix cache: {error.strerror or error}") from error
        for own in _owners(folder):
            remove_leftovers(Path(own))

    def read(self, tokens: Sequence[bytes], first: int) -> Iterator[Saved]:
        """The pages of a sequence, given by their tokens, from number `first` on, as far as they are here, and the last
        one's state; to be taken to the end."""
        before = [*_chain(tokens)]
        n_known = self._n_useful([digest for digest, _ in before], first)
        n = first
        for n, (digest, parent) in enumerate(before[first:n_known], start=first):
            page = self._load(SavedPage(n, parent, tokens[n], _NO_DATA), digest)
            if page is None:
                break
            yield page
        else:
            n = n_known
            if self.layout.state_bytes and n > first:
                state = self._load(SavedState(n - 1, before[n - 1][0], _NO_DATA), before[n - 1][0])
                if state is not None:
                    yield state
                    _touch([self._path(n - 1, before[n - 1][0], _STATE)])
        self.touch((number, digest) for number, (digest, _) in enumerate(before[:n]))

    def write(self, items: Sequence[Saved], before: Iterable[tuple[int, bytes]] = ()) -> None:
        """Keep pages and states; `before` are number and digest of the pages that come before them in their sequences.

        A folder that cannot be written costs a warning, once.
        """
        if self._fails:
            return
        try:
            with self._locked():
                self.touch(before)
                named = [(item, self._path_of(item)) for item in items]
                new, needed = [], 0
                for item, path in named:
                    cost = self._page_cost if isinstance(item, SavedPage) else self._state_cost
                    if needed + cost <= self.size and not path.exists():
                        new.append((item, path))
                        needed += cost
                self._make_room(needed)
                for item, path in new:
                    self._store(item, path)
                _touch(path for _, path in named)
        except OSError as error:
            self._fails = True
            reason = error.strerror or str(error)
            warnings.warn(f"the prefix cache in {self.folder} is not written: {reason}", PyllmWarning, stacklevel=2)

    def touch(self, pages: Iterable[tuple[int, bytes]]) -> None:
        """Count pages, by number and digest, as used now."""
        _touch(self._path(*page) for page in pages)

    def _n_useful(self, digests: Sequence[bytes], first: int) -> int:
        """Pages of a sequence up to the last one worth reading: all, or those up to the last state."""
        if not self.layout.state_bytes:
            return len(digests)
        n = first
        for number, digest in enumerate(digests[first:], start=first):
            if not self._path(number, digest).exists():
                break
            if self._path(number, digest, _STATE).exists():
                n = number + 1
        return n

    def _path(self, number: int, digest: bytes, end: str = _PAGE) -> Path:
        return self._own / f"{number:06x}-{digest.hex()}{end}"

    def _path_of(self, item: Saved) -> Path:
        if isinstance(item, SavedPage):
            return self._path(item.number, item.digest)
        return self._path(item.number, item.page, _STATE)

    def _load(self, wanted: Saved, digest: bytes) -> Saved | None:
        """A page or state, if it is whole and the wanted one; a damaged file is removed."""
        path = self._path(wanted.number, digest, _PAGE if isinstance(wanted, SavedPage) else _STATE)
        damage = "it holds another page"
        try:
            with SavedFile(path, self.layout) as file:
                found = next(iter(file), None)
                damage = file.damage or damage
        except FileNotFoundError:
            return None
        except OSError as error:
            damage = error.strerror or str(error)
        except CacheError as error:
            damage = str(error)
        else:
            if found is not None and _is_same(found, wanted):
                return found
        warnings.warn(f"{path} is damaged ({damage}); it is not used", PyllmWarning, stacklevel=2)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def _store(self, item: Saved, path: Path) -> None:
        temporary = TemporaryFile(self._own)
        try:
            with open(temporary.fileno(), "wb", closefd=False) as file:
                write_head(file, self.layout)
                write_record(file, item)
            # Not synchronised with the disk: what a crash of the system damages is found by its digest.
            temporary.place(path)
        except BaseException:
            temporary.remove()
            raise

    def _make_room(self, needed: int) -> None:
        """Count so many bytes more; where there is no room, remove the files used longest ago, of any model."""
        total = self._counted()
        if total is None or total + needed > self.size:
            kept = sorted(_kept(self.folder))
            total = sum(file.cost for file in kept)
            if total + needed > self.size:
                room = max(0, int(self.size * (1 - _SLACK)) - needed)
                for file in kept:
                    if total <= room:
                        break
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(file.path)
                    total -= file.cost
        # Before they are written: a process that is killed meanwhile has counted too much, not too little.
        (self.folder / _COUNT).write_text(str(total + needed))

    def _counted(self) -> int | None:
        """Bytes that all pages take; at most some less are there. None: that has to be counted."""
        try:
            return int((self.folder / _COUNT).read_text())
        except (OSError, ValueError):
            return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes. Raises OSError where that takes too long."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(self.folder / _LOCK, timeout=_PATIENCE):
                yield
        except Timeout:
            raise OSError(f"another process has held its lock for {_PATIENCE:.0f} seconds") from None
        except NotImplementedError:
            raise OSError("its file system has no locks") from None


class _Kept(NamedTuple):
    """A file in the order of removal: by the time of its last use, later pages of a sequence before earlier ones, a
    state before its page."""

    used: int
    later: tuple[int, bool]
    path: str
    cost: int


def _owners(folder: Path) -> list[str]:
    """The folders of all layouts."""
    with os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _kept(folder: Path) -> Iterator[_Kept]:
    """All pages and states in a folder."""
    for owner in _owners(folder):
        with contextlib.suppress(OSError), os.scandir(owner) as files:
            for entry in files:
                if not entry.name.endswith((_PAGE, _STATE)):
                    continue
                with contextlib.suppress(OSError, ValueError):
                    found = entry.stat(follow_symlinks=False)
                    number = int(entry.name.partition("-")[0], 16)
                    later = -number, not entry.name.endswith(_STATE)
                    yield _Kept(found.st_mtime_ns, later, entry.path, max(_LEAST, found.st_size))


def _is_same(found: Saved, wanted: Saved) -> bool:
    """Whether a file holds what its name says."""
    if isinstance(found, SavedPage) and isinstance(wanted, SavedPage):
        return (found.parent, found.tokens) == (wanted.parent, wanted.tokens)
    return isinstance(found, SavedState) and isinstance(wanted, SavedState) and found.page == wanted.page


def _touch(paths: Iterable[Path]) -> None:
    now = time.time_ns()
    for path in paths:
        with contextlib.suppress(OSError):
            os.utime(path, ns=(now, now))


def _chain(tokens: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Digest and parent's digest of each page of a sequence."""
    parent = ROOT_DIGEST
    for own in tokens:
        digest = digest_of(parent, own)
        yield digest, parent
        parent = digest
