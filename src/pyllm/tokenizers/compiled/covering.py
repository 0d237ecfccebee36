"""WordPiece and Unigram by compiled code."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pyllm.jit.compiler import kernel
from pyllm.tokenizers.compiled.code import Arguments, Strings, as_list, joined, kept_words, numbers, room_for

_TABLE = kernel("tokenizers.compiled.kernels.table", "build")
_PREFIXES = kernel("tokenizers.compiled.kernels.cover", "prefixes")
_LONGEST = kernel("tokenizers.compiled.kernels.cover", "longest")
_BEST = kernel("tokenizers.compiled.kernels.cover", "best")
_WORDS = kernel("tokenizers.compiled.kernels.normalize", "words")
_REPLACE = kernel("tokenizers.compiled.kernels.normalize", "replace")
WPM_KERNELS = [_TABLE, _PREFIXES, _LONGEST, _WORDS]
UGM_KERNELS = [_TABLE, _PREFIXES, _BEST, _REPLACE]
_FULL, _NEEDS_CLASS = 1, 2
_LONG, _PAUSED = 1, 2
_MOST_BYTES = 1 << 12  # of a word, before more room is made
_SLICE = 1 << 20  # bytes after which signal handlers may run
_NFD_SLICE = 1 << 15  # characters that are decomposed at once
_BLOCK = 256

Ids = tuple[list[int], list[int]]


class _Table:
    """Strings to find, and what they begin with."""

    def __init__(self, texts: Mapping[str, int]) -> None:
        strings = Strings(texts)
        n, bits = room_for(len(strings)), max(room_for(8 * len(strings.blob)), 1 << 16)
        slots, filter_ = np.zeros(n, np.int64), np.zeros(bits // 8, np.uint8)
        Arguments(_TABLE, slots, n - 1, len(strings), strings.offsets, strings.blob)()
        Arguments(_PREFIXES, len(strings), strings.offsets, strings.blob, filter_, bits - 1)()
        ids = np.fromiter(texts.values(), np.int32, len(texts))
        self.slots = (slots, n - 1, strings.offsets, strings.blob, ids, filter_, bits - 1)


class WPM:
    """Encodes as `WPMTokenizer` does. `kind` of a character as that has it, 1 to 4."""

    def __init__(
        self, ids: Mapping[str, int], unknown: int | None, kind: Callable[[str], int], lowercase: bool, decompose: bool
    ) -> None:
        self._table = _Table({text: i for text, i in ids.items() if text})
        self._unknown = -1 if unknown is None else unknown
        self._kind, self._lowercase, self._decompose = kind, lowercase, decompose
        self._classes = np.zeros(0x110000, np.uint8)
        self._lower = np.zeros(0x110000, np.int32)

    def encode(self, texts: Sequence[str]) -> Ids:
        if self._decompose:
            texts = [text if text.isascii() else _decomposed(text) for text in texts]
        if self._lowercase:  # the one character whose lower case is two
            texts = [text.replace("\u0130", "i\u0307") for text in texts]
        words, ends, counts = self._words(*joined(texts, spaces=False))
        out, made = np.empty(len(words) + 1, np.int32), np.zeros(len(ends) + 1, np.int32)
        kept = kept_words(len(words))
        call = Arguments(
            _LONGEST, *self._table.slots, self._unknown, words, ends, len(ends), kept, len(kept) - 1,
            out, made[1:], _SLICE, 0, 0,
        )  # fmt: skip
        call()
        while call.slots[16] < len(ends):
            call()
        return as_list(out[: int(call.slots[17])]), made[counts].tolist()

    def _words(
        self, data: bytes, ends: NDArray[np.int32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int32]]:
        """Words, their ends, and the number of words up to the end of each text."""
        # A character alone gets the three bytes of a sign before it, a letter may be one byte longer in lower case.
        out, word_ends = np.empty(4 * len(data) + 16, np.uint8), np.empty(len(data) + 1, np.int32)
        counts = np.empty(len(ends), np.int32)
        call = Arguments(
            _WORDS, data, ends, len(ends), self._classes, self._lower, out, word_ends, counts, *[0] * 7
        )  # fmt: skip
        call()
        while call.slots[13] == _NEEDS_CLASS:
            self._add_class(int(call.slots[14]))
            call()
        return out[: int(call.slots[10])], word_ends[: int(call.slots[11])], counts

    def _add_class(self, code: int) -> None:
        first = code // _BLOCK * _BLOCK
        chars = [chr(c) for c in range(first, first + _BLOCK)]
        self._lower[first : first + _BLOCK] = [
            ord(c.lower()) if self._lowercase and len(c.lower()) == 1 else ord(c) for c in chars
        ]
        self._classes[first : first + _BLOCK] = [self._kind(c) for c in chars]


class UGM:
    """Encodes as `UGMTokenizer` does.

    `scores`: of the tokens that a text may be split into; `charsmap`: the normalizer's units and replacements, or None;
    `crossing`: characters from which a token continues into a space. Raises ValueError for cases that need the plain
    code.
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        scores: Mapping[str, float],
        unknown: int | None,
        unknown_score: float,
        byte_ids: Mapping[int, int] | None,
        charsmap: tuple[NDArray[np.uint32], bytes] | None,
        crossing: Iterable[str],
        merge_blanks: bool,
        prefix: bool,
    ) -> None:
        if any(ids[text] == unknown for text in scores):
            raise ValueError("the unknown token is one that text may become")
        table = _Table({text: ids[text] for text in scores})
        crossing_codes = np.array([ord(c) for c in crossing], np.int32)
        self._shared = (
            *table.slots,
            np.array(list(scores.values()), np.float64),
            np.array([unknown_score], np.float64).view(np.int64)[0],
            None if byte_ids is None else numbers(byte_ids[b] for b in range(256)),
            -1 if unknown is None else unknown,
            crossing_codes,
            len(crossing_codes),
        )
        self._units, self._replacements = (np.zeros(0, np.uint32), b"") if charsmap is None else charsmap
        self._merge_blanks, self._prefix = merge_blanks, prefix

    def encode(self, texts: Sequence[str]) -> Ids:
        data, ends = self._normalized(*joined(texts, spaces=False))
        n = len(data)
        out, counts, kept = np.empty(n + 1, np.int32), np.empty(len(ends), np.int32), kept_words(n)
        most = min(n, _MOST_BYTES)
        at = [0, 0, 0, 0]  # text, place, start of the text's ids, ids made
        while True:
            call = Arguments(
                _BEST, *self._shared, data, ends, len(ends), kept, len(kept) - 1, out, counts, _SLICE,
                np.empty(most + 1, np.float64), np.empty(most + 1, np.int32), np.empty(most + 1, np.int32), most,
                *at, 0, 0,
            )  # fmt: skip
            call()
            while call.slots[29] == _PAUSED:
                call()
            if call.slots[29] != _LONG:
                return as_list(out[: int(call.slots[28])]), counts.tolist()
            at, most = call.slots[25:29].tolist(), int(call.slots[30])

    def _normalized(self, data: bytes, ends: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        made = np.empty(len(ends), np.int32)
        at = [0] * 5  # text, place, bytes made, start of the text made, whether a blank waits
        out = np.empty(2 * len(data) + 1024, np.uint8)
        while True:
            call = Arguments(
                _REPLACE, data, ends, len(ends), self._units, len(self._units), self._replacements,
                len(self._replacements), int(self._merge_blanks), int(self._prefix), out, len(out), made, *at, 0,
            )  # fmt: skip
            call()
            at = call.slots[12:17].tolist()
            if call.slots[17] != _FULL:
                break
            if len(out) > 1 << 30:
                raise ValueError("the normalized text is too long")
            out = np.concatenate([out, np.empty(len(out) + len(self._replacements) * 3, np.uint8)])
        out = out[: at[2]]
        out.tobytes().decode()  # what the plain code replaces, a damaged table's work, is left to it
        return out, made


def _decomposed(text: str) -> str:
    """Unicode's form D, a stretch at a time, so that other threads can run."""
    return "".join(unicodedata.normalize("NFD", part) for part in _stretches(text))


def _stretches(text: str) -> Iterator[str]:
    """Parts of a text that begin with ASCII characters, which no others combine with."""
    start = 0
    while start < len(text):
        end = start + _NFD_SLICE
        while end < len(text) and not text[end].isascii():
            end += 1
        yield text[start:end]
        start = end
