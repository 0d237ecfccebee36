"""Files of saved pages: a head that says of which model they are, then records, each checked by itself.

    head     magic, version, length of the text; the text: JSON; digest of all before
    record   kind, number, tokens, bytes of data, parent's digest; the tokens, int32; the data; digest of all before

All numbers are little-endian, digests are BLAKE2b of 16 bytes. A page comes after the one before it, which it names by
its digest (`pool.digest_of`). A record of a kind that is not known is checked and passed over, so that what belongs to
a page, such as a recurrent state after it, can be kept beside it. Files are untrusted: sizes are those that the reader
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
_PAGE = 1
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

    @property
    def key(self) -> str:
        """Names the layout; 32 hexadecimal digits."""
        return blake2b(self.text, digest_size=16).hexdigest()

    @property
    def text(self) -> bytes:
        """As it is in a file's head."""
        fields = {"identity": dict(self.identity), "page_size": self.page_size, "page_bytes": self.page_bytes}
        return json.dumps(fields, sort_keys=True).encode()

    @property
    def file_bytes(self) -> int:
        """Bytes of a file with a single page."""
        head = _HEAD.size + len(self.text) + _DIGEST
        return head + _RECORD.size + 4 * self.page_size + self.page_bytes + _DIGEST


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


def write_head(file: BinaryIO, layout: Layout) -> None:
    """Write what a file begins with. Raises OSError, as `write_page`."""
    head = _HEAD.pack(_MAGIC, _VERSION, len(layout.text)) + layout.text
    file.write(head + _digest(head))


def write_page(file: BinaryIO, page: SavedPage) -> None:
    head = _RECORD.pack(_PAGE, page.number, len(page.tokens) // 4, 0, page.data.nbytes, page.parent) + page.tokens
    file.write(head)
    file.write(page.data.data)
    file.write(_digest(head, page.data.data))


class SavedFile:
    """An open file of pages, to be iterated over once.

    Raises CacheError where it is no such file, or of another layout, OSError where it cannot be read. Damage is no
    error: what is not whole is left out, and `damage` says so.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self._layout = path, layout
        self.damage = ""
        """What is wrong with the file, in words; known when all pages were taken."""
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115
        try:
            self._left = os.fstat(self._file.fileno()).st_size
            self._read_head()
        except _DamagedError as error:
            self.damage = str(error)
        except BaseException:
            self._file.close()
            raise

    def __iter__(self) -> Iterator[SavedPage]:
        n_damaged = 0
        while not self.damage and self._left:
            try:
                page = self._read_record()
            except _DamagedError as error:
                n_damaged += 1
                if error.is_last:
                    self.damage = str(error)
                continue
            if page is not None:
                yield page
        if n_damaged and not self.damage:
            self.damage = f"{n_damaged} of its pages {'is' if n_damaged == 1 else 'are'} not as written"

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

    def _read_record(self) -> SavedPage | None:
        """The next page; None where the record is none. Raises _DamagedError."""
        layout = self._layout
        if self._left < _RECORD.size:
            raise _DamagedError("its end is missing", is_last=True)
        head = self._take(_RECORD.size)
        kind, number, n_tokens, _, n_bytes, parent = _RECORD.unpack(head)
        if 4 * n_tokens + n_bytes + _DIGEST > self._left:
            raise _DamagedError("its end is missing", is_last=True)
        if kind != _PAGE:
            self._pass(head, 4 * n_tokens + n_bytes)
            return None
        if (n_tokens, n_bytes) != (layout.page_size, layout.page_bytes):
            raise _DamagedError("a page in it has another size", is_last=True)
        tokens = self._take(4 * n_tokens)
        data = np.empty(n_bytes, np.uint8)
        self._fill(data)
        if self._take(_DIGEST) != _digest(head + tokens, data.data):
            raise _DamagedError("a page in it is not as written")
        return SavedPage(number, parent, tokens, data)

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
        there = {**fields["identity"], "page_size": fields["page_size"], "page_bytes": fields["page_bytes"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return "another form; name another file, or delete it"
    here = {**layout.identity, "page_size": layout.page_size, "page_bytes": layout.page_bytes}
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
