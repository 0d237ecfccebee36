"""Files of saved pages and states: a head that says of which model they are, then records, each checked by itself.

    head     magic, version, length of the text; the text: JSON; digest of all before
    record   kind, number, tokens, bytes of data, parent's digest; the tokens, int32; the data; digest of all before

All numbers are little-endian, digests are BLAKE2b of 16 bytes. A page comes after the one before it, which it names by
its digest (`pool.digest_of`). A state has no tokens, comes after its page and names it in the place of the parent. A
record of a kind that is not known is checked and passed over. Files are untrusted: sizes are those that the reader
expects, else nothing is read.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pyllm.cache.pool import digest_of
from pyllm.errors import CacheError
from pyllm.records import dataclass

_MAGIC = b"pyllm kv"
_VERSION = 1
_HEAD = struct.Struct("<8sII")
_RECORD = struct.Struct("<IIIIQ16s")
"""Kind, number, number of tokens, 0, bytes of data, parent."""
_PAGE, _STATE = 1, 2
_DIGEST = 16
_MOST_TEXT = 1 << 16
_CHUNK = 1 << 20
"""Bytes of what is passed over that are read at once."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What pages depend on: those of one layout serve wherever it is equal."""

    identity: Mapping[str, str]
    """The model, the type of the cache and whatever else the numbers depend on, by name."""
    page_size: int
    """Positions of a page."""
    page_bytes: int
    state_bytes: int = 0
    """Of the recurrent states after a page; 0: the model has none."""

    @property
    def key(self) -> str:
        """Names the layout; 32 hexadecimal digits."""
        return blake2b(self.text, digest_size=16).hexdigest()

    @property
    def text(self) -> bytes:
        """As it is in a file's head."""
        return json.dumps({"identity": dict(self.identity), **self.sizes}, sort_keys=True).encode()

    @property
    def sizes(self) -> dict[str, int]:
        """By name; that of states where there are some."""
        sizes = {"page_size": self.page_size, "page_bytes": self.page_bytes}
        return {**sizes, "state_bytes": self.state_bytes} if self.state_bytes else sizes

    @property
    def file_bytes(self) -> int:
        """Bytes of a file with a single page."""
        return self._file_bytes(4 * self.page_size + self.page_bytes)

    @property
    def state_file_bytes(self) -> int:
        """Bytes of a file with a single state."""
        return self._file_bytes(self.state_bytes)

    def _file_bytes(self, content: int) -> int:
        return _HEAD.size + len(self.text) + _DIGEST + _RECORD.size + content + _DIGEST


@dataclass(frozen=True, slots=True)
class SavedPage:
    """A page apart from any pool."""

    number: int
    """Pages before it."""
    parent: bytes
    """Digest of the page before it, or ROOT_DIGEST."""
    tokens: bytes
    """int32 [page_size]."""
    data: NDArray[np.uint8]
    """As `Executable.read_page` gives it."""

    @property
    def digest(self) -> bytes:
        return digest_of(self.parent, self.tokens)


@dataclass(frozen=True, slots=True)
class SavedState:
    """The recurrent states after a page, apart from any pool."""

    number: int
    """Pages before the page."""
    page: bytes
    """The page's digest."""
    data: NDArray[np.uint8]
    """As `Executable.read_slot` gives it."""


Saved = SavedPage | SavedState


def write_head(file: BinaryIO, layout: Layout) -> None:
    """Write what a file begins with. Raises OSError, as `write_record`."""
    head = _HEAD.pack(_MAGIC, _VERSION, len(layout.text)) + layout.text
    file.write(head + _digest(head))


def write_record(file: BinaryIO, item: Saved) -> None:
    if isinstance(item, SavedPage):
        head = _RECORD.pack(_PAGE, item.number, len(item.tokens) // 4, 0, item.data.nbytes, item.parent) + item.tokens
    else:
        head = _RECORD.pack(_STATE, item.number, 0, 0, item.data.nbytes, item.page)
    file.write(head)
    file.write(item.data.data)
    file.write(_digest(head, item.data.data))


class SavedFile:
    """An open file of pages and states, to be iterated over once.

    Raises CacheError where it is no such file, or of another layout, OSError where it cannot be read. Damage is no
    error: what is not whole is left out, and `damage` says so.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self._layout = path, layout
        self.damage = ""
        """What is wrong with the file, in words; known when all of it was taken."""
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115
        try:
            self._left = os.fstat(self._file.fileno()).st_size
            self._read_head()
        except _DamagedError as error:
            self.damage = str(error)
        except BaseException:
            self._file.close()
            raise

    def __iter__(self) -> Iterator[Saved]:
        n_damaged = 0
        while not self.damage and self._left:
            try:
                item = self._read_record()
            except _DamagedError as error:
                n_damaged += 1
                if error.is_last:
                    self.damage = str(error)
                continue
            if item is not None:
                yield item
        if n_damaged and not self.damage:
            what = "pages and states" if self._layout.state_bytes else "pages"
            self.damage = f"{n_damaged} of its {what} {'is' if n_damaged == 1 else 'are'} not as written"

    def __enter__(self) -> SavedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _read_head(self) -> None:
        start = self._take(min(_HEAD.size, self._left))
        if start and start[: len(_MAGIC)] != _MAGIC[: len(start)]:
            raise CacheError(f"{self.path} is no prefix cache of pyllm; name another file")
        if len(start) < _HEAD.size:
            self.damage = "its end is missing"
            return
        _, version, n = _HEAD.unpack(start)
        if n > _MOST_TEXT or n + _DIGEST > self._left:
            self.damage = "its head is not as written"
            return
        text = self._take(n)
        if self._take(_DIGEST) != _digest(start + text):
            self.damage = "its head is not as written"
            return
        if version != _VERSION:
            raise CacheError(f"{self.path} is a prefix cache of form {version}; this pyllm reads form {_VERSION}")
        if text != self._layout.text:
            raise CacheError(f"{self.path} is a prefix cache of {_difference(text, self._layout)}")

    def _read_record(self) -> Saved | None:
        """The next page or state; None where the record is neither. Raises _DamagedError."""
        layout = self._layout
        if self._left < _RECORD.size:
            raise _DamagedError("its end is missing", is_last=True)
        head = self._take(_RECORD.size)
        kind, number, n_tokens, _, n_bytes, parent = _RECORD.unpack(head)
        if 4 * n_tokens + n_bytes + _DIGEST > self._left:
            raise _DamagedError("its end is missing", is_last=True)
        sizes = {_PAGE: (layout.page_size, layout.page_bytes)}
        if layout.state_bytes:
            sizes[_STATE] = 0, layout.state_bytes
        if kind not in sizes:
            self._pass(head, 4 * n_tokens + n_bytes)
            return None
        if (n_tokens, n_bytes) != sizes[kind]:
            raise _DamagedError("a record in it has another size", is_last=True)
        tokens = self._take(4 * n_tokens)
        data = np.empty(n_bytes, np.uint8)
        self._fill(data)
        if self._take(_DIGEST) != _digest(head + tokens, data.data):
            raise _DamagedError("a record in it is not as written")
        return SavedPage(number, parent, tokens, data) if kind == _PAGE else SavedState(number, parent, data)

    def _take(self, n: int) -> bytes:
        data = np.empty(n, np.uint8)
        self._fill(data)
        return data.tobytes()

    def _fill(self, data: NDArray[np.uint8]) -> None:
        self._left -= len(data)
        # A file that gets shorter meanwhile is damaged as any other.
        if len(data) and self._file.readinto(data.data) != len(data):  # type: ignore[attr-defined]
            raise _DamagedError("its end is missing", is_last=True)

    def _pass(self, head: bytes, n: int) -> None:
        """Read a record on, and keep nothing of it."""
        digest = blake2b(head, digest_size=_DIGEST)
        for start in range(0, n, _CHUNK):
            digest.update(self._take(min(_CHUNK, n - start)))
        if self._take(_DIGEST) != digest.digest():
            raise _DamagedError("a record in it is not as written")


class _DamagedError(Exception):
    """A record is not whole; `is_last`: nor can the next one be found."""

    def __init__(self, text: str, is_last: bool = False) -> None:
        super().__init__(text)
        self.is_last = is_last


def _digest(*parts: Any) -> bytes:
    digest = blake2b(digest_size=_DIGEST)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _difference(text: bytes, layout: Layout) -> str:
    """In words: what a file's layout has that this one has not."""
    try:
        fields = json.loads(text)
        there = {**fields.pop("identity"), **fields}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "another form; name another file, or delete it"
    here = {**layout.identity, **layout.sizes}
    different = [
        f"{name} {_shown(there.get(name))}, not {_shown(here.get(name))}"
        for name in dict.fromkeys([*here, *there])
        if there.get(name) != here.get(name)
    ]
    if not different:
        return "another form; name another file, or delete it"
    return f"{'; '.join(different)}; load the model as it was, name another file, or delete it"


def _shown(value: object) -> str:
    return "none" if value is None else str(value)[:200]
