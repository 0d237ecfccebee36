"""A folder of saved pages, a file each, of all models and processes that use it; what was used longest ago is removed.

A file is named by its page's digest and gets its name when it is complete, so a process that is killed leaves no
damage. It is read as any other file of pages: checked, and for one model.
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
from pyllm.cache.saved import Layout, SavedFile, SavedPage, write_head, write_page
from pyllm.errors import CacheError, PyllmWarning
from pyllm.temporary import TemporaryFile, remove_leftovers
from pyllm.units import size as in_words

_END = ".page"
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
    """The pages of one layout in a folder that holds at most `size` bytes; `layout.key` names its own folder therein.

    `read` and `write` may be called by two threads.
    """

    def __init__(self, folder: Path, size: int, layout: Layout) -> None:
        """Raises CacheError where the folder cannot be made, or cannot hold a page."""
        self.layout = layout
        self.size = size
        self.folder = folder
        self._own = folder / layout.key
        self._fails = False
        self._cost = max(_LEAST, layout.file_bytes)
        if self._cost > size:
            raise CacheError(f"a prefix cache of {in_words(size)} holds no page, which takes {in_words(self._cost)}")
        try:
            # Prompts can be read from pages: they are nobody else's.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._own.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CacheError(f"{folder} cannot hold a prefix cache: {error.strerror or error}") from error
        for own in _owners(folder):
            remove_leftovers(Path(own))

    def read(self, tokens: Sequence[bytes], first: int) -> Iterator[SavedPage]:
        """The pages of a sequence, given by their tokens, from number `first` on, as far as they are here; to be taken
        to the end."""
        before = [*_chain(tokens)]
        n = first
        for n, (digest, parent) in enumerate(before[first:], start=first):
            page = self._load(SavedPage(n, parent, tokens[n], _NO_DATA), digest)
            if page is None:
                break
            yield page
        else:
            n = len(tokens)
        self.touch((number, digest) for number, (digest, _) in enumerate(before[:n]))

    def write(self, pages: Sequence[SavedPage], before: Iterable[tuple[int, bytes]] = ()) -> None:
        """Keep pages; `before` are number and digest of those that come before them in their sequences.

        A folder that cannot be written costs a warning, once.
        """
        if self._fails:
            return
        try:
            with self._locked():
                self.touch(before)
                named = [(page, self._path(page.number, page.digest)) for page in pages]
                new = [(page, path) for page, path in named if not path.exists()][: self.size // self._cost]
                self._make_room(len(new))
                for page, path in new:
                    self._store(page, path)
                _touch(path for _, path in named)
        except OSError as error:
            self._fails = True
            reason = error.strerror or str(error)
            warnings.warn(f"the prefix cache in {self.folder} is not written: {reason}", PyllmWarning, stacklevel=2)

    def touch(self, pages: Iterable[tuple[int, bytes]]) -> None:
        """Count pages, by number and digest, as used now."""
        _touch(self._path(*page) for page in pages)

    def _path(self, number: int, digest: bytes) -> Path:
        return self._own / f"{number:06x}-{digest.hex()}{_END}"

    def _load(self, wanted: SavedPage, digest: bytes) -> SavedPage | None:
        """A page, if it is whole and the wanted one; a damaged file is removed."""
        path = self._path(wanted.number, digest)
        damage = "it holds another page"
        try:
            with SavedFile(path, self.layout) as file:
                page = next(iter(file), None)
                damage = file.damage or damage
        except FileNotFoundError:
            return None
        except OSError as error:
            damage = error.strerror or str(error)
        except CacheError as error:
            damage = str(error)
        else:
            if page is not None and (page.parent, page.tokens) == (wanted.parent, wanted.tokens):
                return page
        warnings.warn(f"{path} is damaged ({damage}); it is not used", PyllmWarning, stacklevel=2)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def _store(self, page: SavedPage, path: Path) -> None:
        temporary = TemporaryFile(self._own)
        try:
            with open(temporary.fileno(), "wb", closefd=False) as file:
                write_head(file, self.layout)
                write_page(file, page)
            # Not synchronised with the disk: what a crash of the system damages is found by its digest.
            temporary.place(path)
        except BaseException:
            temporary.remove()
            raise

    def _make_room(self, n: int) -> None:
        """Count n pages more; where there is no room for them, remove the files used longest ago, of any model."""
        needed = n * self._cost
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
    """A file in the order of removal: by the time of its last use, later pages of a sequence before earlier ones."""

    used: int
    later: int
    path: str
    cost: int


def _owners(folder: Path) -> list[str]:
    """The folders of all layouts."""
    with os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _kept(folder: Path) -> Iterator[_Kept]:
    """All pages in a folder."""
    for owner in _owners(folder):
        with contextlib.suppress(OSError), os.scandir(owner) as files:
            for entry in files:
                if not entry.name.endswith(_END):
                    continue
                with contextlib.suppress(OSError, ValueError):
                    found = entry.stat(follow_symlinks=False)
                    number = int(entry.name.partition("-")[0], 16)
                    yield _Kept(found.st_mtime_ns, -number, entry.path, max(_LEAST, found.st_size))


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
