"""Byte-pair encoding and SentencePiece's merges by compiled code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pyllm.jit.compiler import Kernel, kernel
from pyllm.tokenizers.compiled.code import (
    BASE,
    Arguments,
    Bytes,
    Strings,
    as_list,
    joined,
    kept_words,
    numbers,
    room_for,
)
from pyllm.tokenizers.compiled.words import SPLIT, Splitter

_MODULE = "tokenizers.compiled.kernels.merge"
_TABLE = kernel("tokenizers.compiled.kernels.table", "build")
_NEIGHBOURS = kernel(_MODULE, "neighbours")
_SHARED, _SYMBOL = 32, 48
_LONG, _PAUSED = 1, 2
_MOST_SYMBOLS = 1 << 12  # of a word, before more room is made
_SLICE = 1 << 20  # bytes after which signal handlers may run
_LEFT_OUT = -2
_NEVER = 0x7FFFFFFF


def _encoder(bytes_apart: bool, by_text: bool) -> Kernel:
    return kernel(_MODULE, "encode", bytes_apart=int(bytes_apart), joined_by_text=int(by_text))


def bpe_kernels(byte_level: bool) -> list[Kernel]:
    own = [SPLIT, _TABLE, kernel(_MODULE, "pairs", bytes_apart=int(byte_level)), _encoder(byte_level, False)]
    return own if byte_level else [*own, _NEIGHBOURS]


SPM_KERNELS = [_TABLE, _NEIGHBOURS, _encoder(False, True)]


class _Merger:
    """The tables of a vocabulary, and the loop over a text's words."""

    def __init__(self, strings: Strings, ids: NDArray[np.int32], encoder: Kernel) -> None:
        self._strings, self._encoder = strings, encoder
        n = room_for(len(strings))
        slots = np.zeros(n, np.int64)
        Arguments(_TABLE, slots, n - 1, len(strings), strings.offsets, strings.blob)()
        self._shared: list[object] = [0] * _SHARED
        self._shared[:6] = slots, n - 1, 0, strings.offsets, strings.blob, ids

    def _filter(self, strings: Strings) -> None:
        """Allow splits of texts where no token has both neighbours."""
        bits = max(room_for(64 * len(strings)), 1 << 16)
        found = np.zeros(bits // 8, np.uint8)
        Arguments(_NEIGHBOURS, len(strings), strings.offsets, strings.blob, found, bits - 1)()
        self._shared[14:16] = found, bits - 1

    def _encode(self, data: bytes, ends: NDArray[np.int32], words: NDArray[np.int32]) -> tuple[list[int], list[int]]:
        """Ids of texts with ends `ends`, split into words with ends `words`."""
        n = int(ends[-1])
        out, counts = np.empty(n + 1, np.int32), np.empty(len(words), np.int32)
        kept = kept_words(n)
        most = min(n, _MOST_SYMBOLS)
        at = [0, 0, 0]  # word, place, ids made
        while True:
            symbols, heap = np.empty(most * _SYMBOL, np.uint8), np.empty(3 * most, np.int64)
            call = Arguments(
                self._encoder, *self._shared, data, words, len(words), kept, len(kept) - 1,
                symbols, heap, most, out, counts, _SLICE, *at, 0, 0,
            )  # fmt: skip
            slots = call.slots[_SHARED + 11 :]
            call()
            while slots[3] == _PAUSED:
                call()
            if slots[3] != _LONG:
                break
            at, most = slots[:3].tolist(), int(slots[4])
        last = np.searchsorted(words, ends) if len(words) != len(ends) else slice(None)
        return as_list(out[: int(slots[2])]), counts[last].tolist()


class BPE(_Merger):
    """Encodes as `BPETokenizer` does. Raises ValueError (Unsupported included) for cases that need the plain code."""

    def __init__(
        self,
        ids: Mapping[str, int],
        merges: Sequence[str],
        patterns: tuple[str, ...],
        alphabet: Mapping[str, int] | None,
        ignore_merges: bool,
    ) -> None:
        self._splitter = Splitter(patterns)
        self._spaces = alphabet is None
        if alphabet is None:
            strings = Strings(ids, spaces=True)
        else:
            foreign = set("".join(ids)).difference(alphabet)
            if foreign:  # no text becomes such a token
                ids = {text: i for text, i in ids.items() if foreign.isdisjoint(text)}
            strings = Bytes(ids, alphabet)
        super().__init__(strings, np.fromiter(ids.values(), np.int32, len(ids)), _encoder(not self._spaces, False))
        self._pairs(merges, alphabet or {})
        if alphabet is None:
            self._shared[8] = _ascii_ids(ids)
            self._shared[12] = numbers(ids.get(f"<0x{b:02X}>") for b in range(256))
            self._filter(strings)
        else:
            chars = {byte: char for char, byte in alphabet.items()}
            self._shared[8] = numbers(ids.get(chars[b]) for b in range(256))
        self._shared[13] = _LEFT_OUT
        self._shared[16] = 1 if ignore_merges else 2 if self._spaces else 0

    def _pairs(self, merges: Sequence[str], alphabet: Mapping[str, int]) -> None:
        written = Strings(merges)
        room = np.empty(3 * int(np.diff(written.offsets).max(initial=0)) + 8, np.uint8)
        byte_of = np.full(0x200, -1, np.int32)
        for char, byte in alphabet.items():
            byte_of[ord(char)] = byte
        n = room_for(len(written))
        pairs = np.zeros((n, 2), np.int64)
        call = Arguments(
            kernel(_MODULE, "pairs", bytes_apart=int(bool(alphabet))), *self._shared[:6], pairs, n - 1,
            len(written), written.offsets, written.blob, byte_of, room, 0,
        )  # fmt: skip
        call()
        if call.slots[13]:
            raise ValueError("a merge is not of two tokens that make a third")
        self._shared[6:8] = pairs, n - 1

    def encode(self, texts: Sequence[str]) -> tuple[list[int], list[int]]:
        data, ends = joined(texts, self._spaces)
        return self._encode(data, ends, self._splitter.ends(data, ends))


class SPM(_Merger):
    """Encodes as `SPMTokenizer` does. Raises ValueError for cases that need the plain code.

    `costs` of the tokens that a pair may become, float [n] in the order of `ids`; NaN: none may.
    """

    def __init__(
        self, ids: Mapping[str, int], costs: NDArray[np.float64], byte_ids: Sequence[int | None], unknown: int | None
    ) -> None:
        strings = Strings(ids, spaces=True)
        super().__init__(strings, np.fromiter(ids.values(), np.int32, len(ids)), _encoder(False, True))
        longest = int(np.diff(strings.offsets).max(initial=0))
        powers = [1]
        for _ in range(longest):
            powers.append(powers[-1] * BASE % (1 << 64))
        _, ranks = np.unique(costs, return_inverse=True)  # of equal costs equal ones
        ranks[np.isnan(costs)] = _NEVER
        self._shared[8] = _ascii_ids(ids)
        self._shared[9:12] = ranks.astype(np.int32), np.array(powers, np.uint64).astype(np.int64), longest
        self._shared[12] = numbers(byte_ids)
        self._shared[13] = -1 if unknown is None else unknown
        self._filter(strings)

    def encode(self, texts: Sequence[str]) -> tuple[list[int], list[int]]:
        data, ends = joined(texts, spaces=True)
        return self._encode(data, ends, ends)


def _ascii_ids(ids: Mapping[str, int]) -> NDArray[np.int32]:
    if "▁" not in ids:
        raise ValueError("no token for a space")
    return numbers(ids.get("▁" if b == 32 else chr(b)) if b < 128 else None for b in range(256))
