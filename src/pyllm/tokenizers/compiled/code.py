"""Calls of kernels, and a vocabulary's strings in their layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.jit.compiler import LIBRARY, Kernel
from pyllm.jit.threads import KERNEL_TYPE

BASE = 0x2545F4914F6CDD1D
_SPACE = "▁"
_NEVER_IN_TEXT = "\ud800"
_MOST_BYTES = 1 << 30
_PIECE = 1 << 15


class Arguments:
    """The slots of a kernel call; the arrays whose addresses they hold stay alive with them."""

    def __init__(self, kernel: Kernel, *values: Any) -> None:
        self._call = KERNEL_TYPE(LIBRARY.load([kernel])[kernel])
        self._kept = values
        self.slots = np.array([address(v) for v in values], np.int64)
        self._at = int(self.slots.ctypes.data)

    def __call__(self) -> None:
        self._call(self._at, 0, 1)


def address(value: Any) -> int:
    """Address of an array or of bytes (0 of None); a number is itself."""
    if value is None:
        return 0
    if isinstance(value, bytes):
        value = np.frombuffer(value, np.uint8)
    return int(value.ctypes.data) if isinstance(value, np.ndarray) else int(value)


def joined(texts: Sequence[str], spaces: bool) -> tuple[bytes, NDArray[np.int32]]:
    """Texts in UTF-8, concatenated, and their ends, int32. `spaces`: "▁" becomes a space."""
    whole = texts[0] if len(texts) == 1 else "".join(texts)
    data = (whole.replace(_SPACE, " ") if spaces else whole).encode()
    if len(data) > _MOST_BYTES:
        raise ValueError("the text is too long for offsets of 32 bits")
    if len(texts) == 1:
        return data, np.array([len(data)], np.int32)
    return data, _byte_ends(data + bytes(1), len(whole), texts).astype(np.int32)


def _byte_ends(data: bytes, n_chars: int, texts: Sequence[str]) -> NDArray[np.int64]:
    """Ends of the texts that are joined in `data`, which may continue after them."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    if np.frombuffer(data, np.uint8).max(initial=0) < 0x80:
        return ends
    begins = np.flatnonzero((np.frombuffer(data, np.uint8) & 0xC0) != 0x80)
    return begins[ends]


class Strings:
    """Concatenated strings: `offsets` int32 [n + 1] into `blob`, which is UTF-8.

    `spaces`: the vocabulary's "▁" is a space, and strings that contain a space themselves are not found.
    """

    def __init__(self, texts: Iterable[str], spaces: bool = False) -> None:
        texts = list(texts)
        whole = "".join(texts)
        if spaces:
            whole = whole.replace(" ", _NEVER_IN_TEXT).replace(_SPACE, " ")
        self.blob = whole.encode("utf-8", "surrogatepass") + bytes(8)
        self._finish(_byte_ends(self.blob, len(whole), texts))

    def _finish(self, ends: NDArray[np.int64]) -> None:
        if len(self.blob) > _MOST_BYTES:
            raise ValueError("the vocabulary is too large for offsets of 32 bits")
        self.offsets = np.zeros(len(ends) + 1, np.int32)
        self.offsets[1:] = ends

    def __len__(self) -> int:
        return len(self.offsets) - 1


class Bytes(Strings):
    """Strings of bytes, each byte written as a character of an alphabet; all characters must belong to it."""

    def __init__(self, texts: Iterable[str], alphabet: Mapping[str, int]) -> None:
        texts = list(texts)
        self.blob = "".join(texts).translate({ord(c): b for c, b in alphabet.items()}).encode("latin-1") + bytes(8)
        self._finish(np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts))))


def as_list(ids: NDArray[np.int32]) -> list[int]:
    """Ids as Python ints, made in pieces so that other threads can run."""
    out: list[int] = []
    for i in range(0, len(ids), _PIECE):
        out += ids[i : i + _PIECE].tolist()
    return out


def kept_words(n: int) -> NDArray[np.int64]:
    """Memory of a text's words and their ids, for a text of `n` bytes; read by `kernels.table.recall`."""
    return np.zeros((1 << min(15, max(6, (n // 8).bit_length())), 4), np.int64)


def room_for(n: int) -> int:
    """Slots of a hash table for n entries: a power of two, at most half full."""
    return 1 << max(4, (2 * n - 1).bit_length())


def numbers(values: Iterable[int | None]) -> NDArray[np.int32]:
    """int32; None is -1."""
    return np.array([-1 if v is None else v for v in values], np.int32)
