"""Arrays of strings: finding their end and decoding them, a hundred thousand in a few milliseconds.

A string is a uint64 length and that many bytes, so the next one is found only by reading this one. But nearly all
lengths are below 256: seven zero bytes follow the length's first byte, which does not occur in text. So all places
before seven zeros are taken for lengths at once, and the guess is checked by following the lengths; from the first
failure on, some strings are read one by one. The result is exact either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from pyllm.gguf.mapped import MappedFile

_U64 = Struct("<Q")
_CHUNK = 1 << 17  # bytes looked at in one guess
_SHORT = 256  # a guess that finds fewer strings does not pay
_MAX_PLAIN = 1 << 13

Heads = NDArray[np.int64]
"""Offsets in the file at which consecutive strings begin (their lengths, that is)."""


def skip(file: MappedFile, start: int, count: int) -> int:
    """Offset after the `count` strings that begin at `start`. Raises GGUFError where one leaves the file."""
    end = start
    for _, after in _chunks(file, start, count):
        end = after
    return end


def decode(file: MappedFile, start: int, count: int) -> list[str]:
    """The `count` strings that begin at `start`. Bytes that are not UTF-8 become lone surrogates ("surrogateescape"),
    so that `s.encode("utf-8", "surrogateescape")` gives back every string's exact bytes."""
    out: list[str] = []
    for heads, end in _chunks(file, start, count):
        out += _texts(file.bytes[heads[0] : end], heads - heads[0])
    return out


def _chunks(file: MappedFile, pos: int, count: int) -> Iterator[tuple[Heads, int]]:
    """Runs of consecutive strings: (heads, offset after the last one)."""
    plain = 32
    while count > 0:
        heads = _guess(file.bytes, pos, count)
        if len(heads) > 1:
            # The last head is certain, its string's end is not: it begins the next run.
            yield heads[:-1], (pos := int(heads[-1]))
            count -= len(heads) - 1
        if count == 0 or len(heads) > _SHORT:
            plain = 32
            continue
        heads, pos = _read(file, pos, min(count, plain))
        plain = min(2 * plain, _MAX_PLAIN)
        yield heads, pos
        count -= len(heads)


def _guess(data: NDArray[np.uint8], pos: int, count: int) -> Heads:
    """Heads from `pos` on, at most count + 1, as far as the guess is right; empty if it is wrong at once."""
    chunk = data[pos : pos + _CHUNK]
    zero = chunk == 0
    two = zero[1:-1] & zero[2:]  # two[i]: bytes i + 1, i + 2
    four = two[:-2] & two[2:]
    seven = four[:-3] & four[3:]  # seven[i]: bytes i + 1 .. i + 7
    heads = np.flatnonzero(seven)[: count + 1]
    if not len(heads) or heads[0] != 0:
        return heads[:0]
    follows = heads[:-1] + chunk[heads[:-1]] + 8 == heads[1:]
    n = len(follows) if follows.all() else int(follows.argmin())
    return heads[: n + 1] + pos


def _read(file: MappedFile, pos: int, count: int) -> tuple[Heads, int]:
    """`count` strings from `pos` on, one by one: (heads, offset after the last)."""
    heads = np.empty(count, np.int64)
    unpack, buffer, limit = _U64.unpack_from, file.map, file.size
    for i in range(count):
        heads[i] = pos
        if pos + 8 > limit:
            file.need(pos, 8, "the length of a string in an array")
        (n,) = unpack(buffer, pos)
        if pos + 8 + n > limit:
            file.need(pos, 8 + n, "a string in an array")
        pos += 8 + n
    return heads, pos


def _texts(region: NDArray[np.uint8], heads: Heads) -> list[str]:
    """The strings of a region that begins with a head and ends after a string; `heads` relative to it."""
    # Every length becomes one NUL; then the whole is decoded and split at once.
    keep = np.ones(len(region), np.bool_)
    for k in range(1, 8):
        keep[heads + k] = False
    joined = region.copy()
    joined[heads] = 0
    texts = joined[keep].tobytes().decode("utf-8", "surrogateescape").split("\0")
    if len(texts) == len(heads) + 1:
        return texts[1:]
    raw = region.tobytes()  # some text holds NULs itself
    ends = [*heads[1:].tolist(), len(raw)]
    return [raw[h + 8 : e].decode("utf-8", "surrogateescape") for h, e in zip(heads.tolist(), ends, strict=True)]
