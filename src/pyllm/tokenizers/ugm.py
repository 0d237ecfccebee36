"""SentencePiece Unigram (T5, XLM-R): the segmentation of a text into tokens with the highest sum of scores.

Source: "Subword Regularization" (Kudo, 2018); details (unknown characters, blanks, the normalizer) as in
sentencepiece's `unigram_model.cc` and `normalizer.cc`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import _SPACE, Tokenizer, _byte_value, _utf8, words_of
from pyllm.tokenizers.compiled.switch import Encoder
from pyllm.tokenizers.vocab import BYTE, NORMAL, USER_DEFINED, Vocab

if TYPE_CHECKING:
    from pyllm.jit.compiler import Kernel

_UNKNOWN_PENALTY = 10.0  # an unknown character is so much worse than the worst token
_MAX_KEPT = 1 << 17
_MAX_KEPT_LENGTH = 64


class UGMTokenizer(Tokenizer):
    """`tokenizer.ggml.model` = "t5". Raises TokenizerError for a damaged normalization table."""

    def __init__(self, metadata: Mapping[str, Any], vocab: Vocab) -> None:
        super().__init__(vocab, add_bos=False, add_eos=True)
        self._prefix = self._strip_first = vocab.flag("add_space_prefix", True)
        self._merge_blanks = vocab.flag("remove_extra_whitespaces", False)
        charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap")
        self._charsmap = None if charsmap is None or len(charsmap) == 0 else _CharsMap(charsmap)
        scores, types = vocab.scores.tolist(), vocab.types.tolist()
        self._scores = {
            t: 0.0 if types[i] == USER_DEFINED else scores[i]
            for t, i in vocab.ids.items()
            if t and types[i] in (NORMAL, USER_DEFINED) and scores[i] > -np.inf
        }
        normal = [scores[i] for t, i in vocab.ids.items() if types[i] == NORMAL and scores[i] > -np.inf]
        self._unknown_score = min(normal, default=0.0) - _UNKNOWN_PENALTY
        self._longest = max(map(len, self._scores), default=1)
        bytes_ = {b: i for t, i in vocab.ids.items() if types[i] == BYTE and (b := _byte_value(t)) is not None}
        self._byte_ids = bytes_ if len(bytes_) == 256 else None
        # Words can be segmented, and cached, separately.
        self._words, self._crossing = words_of(self._scores)
        self._kept: dict[str, list[int]] = {}

    def _encode_words(self, text: str, ids: list[int]) -> None:
        text = self._normalized(text)
        unknown, first = self.vocab.unk_id, len(ids)
        for word in self._words.findall(text):
            tokens = self._kept.get(word)
            if tokens is None:
                tokens = self._cut(word)
                if len(word) <= _MAX_KEPT_LENGTH:
                    if len(self._kept) >= _MAX_KEPT:
                        self._kept = {}
                    self._kept[word] = tokens
            # Adjacent unknown characters are one unknown token, also across words.
            again = bool(tokens) and len(ids) > first and ids[-1] == tokens[0] == unknown
            ids.extend(tokens[again:])

    def _compiled(self) -> tuple[Sequence[Kernel], Callable[[], Encoder]]:
        from pyllm.tokenizers.compiled.covering import UGM, UGM_KERNELS

        def make() -> Encoder:
            tables = None if self._charsmap is None else self._charsmap.tables
            return UGM(
                self.vocab.ids, self._scores, self.vocab.unk_id, self._unknown_score, self._byte_ids,
                tables, self._crossing, self._merge_blanks, self._prefix,
            )  # fmt: skip

        return UGM_KERNELS, make

    def _normalized(self, text: str) -> str:
        if self._charsmap:
            text = self._charsmap.apply(text)
        if self._merge_blanks:
            text = " ".join(part for part in text.split(" ") if part)
        if text and self._prefix:
            text = " " + text
        return text.replace(" ", _SPACE)

    def _cut(self, text: str) -> list[int]:
        """Ids of the best segmentation of a text; of equal ones the first found by a search by length."""
        n, get, ids = len(text), self._scores.get, self.vocab.ids
        best = [0.0, *[-np.inf] * n]
        begin = [0] * (n + 1)
        known = [True] * (n + 1)
        for i in range(n):
            here, single = best[i], False
            for j in range(i + 1, min(i + self._longest, n) + 1):
                score = get(text[i:j])
                if score is None:
                    continue
                single = single or j == i + 1
                if here + score > best[j]:
                    best[j], begin[j], known[j] = here + score, i, True
            if not single and here + self._unknown_score > best[i + 1]:
                best[i + 1], begin[i + 1], known[i + 1] = here + self._unknown_score, i, False
        out: list[int] = []
        j = n
        while j > 0:
            i = begin[j]
            if known[j]:
                out.append(ids[text[i:j]])
            elif self._byte_ids is not None:
                out.extend(self._byte_ids[b] for b in reversed(_utf8(text[i:j])))
            elif self.vocab.unk_id is not None and not (out and out[-1] == self.vocab.unk_id):
                out.append(self.vocab.unk_id)
            j = i
        return out[::-1]


class _CharsMap:
    """SentencePiece's precompiled normalization: the longest listed prefix is replaced.

    The table: uint32 size of a double-array trie (darts-clone) in bytes, the trie's uint32 units, then replacements as
    UTF-8 strings that end in a zero byte. The trie maps bytes to the offset of a replacement.
    """

    def __init__(self, table: Any) -> None:
        raw = np.asarray(table).astype(np.uint8).tobytes()
        size = int.from_bytes(raw[:4], "little")
        if len(raw) < 4 or size % 4 or not 4 <= size <= len(raw) - 4:
            raise TokenizerError("tokenizer.ggml.precompiled_charsmap is damaged: its trie leaves it")
        units = np.frombuffer(raw, "<u4", size // 4, 4)
        self._units: list[int] = units.tolist()
        self._texts = raw[4 + size :]
        self.tables = units.astype(np.uint32), self._texts

    def apply(self, text: str) -> str:
        data, out, at = _utf8(text), bytearray(), 0
        while at < len(data):
            length, value = self._longest(data, at)
            if length:
                end = self._texts.find(b"\0", value)
                out += self._texts[value : end if end >= 0 else None]
                at += length
                continue
            width = 1
            while at + width < len(data) and data[at + width] & 0xC0 == 0x80:
                width += 1
            out += data[at : at + width]
            at += width
        return out.decode("utf-8", "replace")

    def _longest(self, data: bytes, at: int) -> tuple[int, int]:
        """Length of the longest listed prefix of data[at:], and the offset of its replacement; (0, 0) for none."""
        units, n = self._units, len(self._units)
        found = (0, 0)
        place = _offset(units[0])
        for i in range(at, len(data)):
            place ^= data[i]
            if place >= n or units[place] & 0x800000FF != data[i]:
                break
            unit = units[place]
            place ^= _offset(unit)
            if unit >> 8 & 1 and place < n:
                found = (i + 1 - at, units[place] & 0x7FFFFFFF)
        return found


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)
