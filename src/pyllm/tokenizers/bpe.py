"""Byte-level BPE (GPT-2, Llama 3, Qwen, …): text is split into words, and a word's bytes are merged by rank.

Words repeat, so ids are cached by word; the rest is splitting text, by a regular expression. This is the code for short
texts, and the reference for `pyllm.tokenizers.compiled.merging`, which does the same for long ones.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any

from pyllm.tokenizers import pretokenizers
from pyllm.tokenizers.base import Tokenizer
from pyllm.tokenizers.compiled.switch import Encoder
from pyllm.tokenizers.vocab import Vocab, string_list

if TYPE_CHECKING:
    from pyllm.jit.compiler import Kernel

_MAX_KEPT = 1 << 17  # words whose ids are kept
_MAX_KEPT_LENGTH = 64  # characters of a word worth keeping
_LONG = 40  # characters from which a heap is faster than scanning for the next merge
_NEVER = 1 << 62  # rank of a pair that does not merge


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's alphabet for bytes: visible Latin-1 characters stand for themselves, the rest are U+0100 and up."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}


_TO_CHAR = _byte_alphabet()
_TO_BYTE = {c: b for b, c in _TO_CHAR.items()}
_TO_LATIN = {ord(c): b for c, b in _TO_BYTE.items()}


class BPETokenizer(Tokenizer):
    """`tokenizer.ggml.model` = "gpt2" or "gemma4".

    Raises TokenizerError without merges, or for a pre-tokenizer that is not known; a missing name means "default",
    with a warning, as in llama.cpp.
    """

    def __init__(self, metadata: Mapping[str, Any], vocab: Vocab) -> None:
        name = "gemma4" if metadata.get("tokenizer.ggml.model") == "gemma4" else metadata.get("tokenizer.ggml.pre")
        if not name:
            logging.getLogger("pyllm").warning(
                "the file names no pre-tokenizer (tokenizer.ggml.pre); answers may be worse than the model's best"
            )
        pre = pretokenizers.get(str(name or "default"))
        super().__init__(vocab, add_bos=pre.add_bos, add_eos=False)
        if pre.add_bos and not pre.byte_level:
            self.add_bos = self.bos_id is not None  # Gemma 4's first files say no, and are wrong
        self._pre = pre
        self._byte_level = pre.byte_level
        self._merges = string_list(metadata, "tokenizer.ggml.merges")
        self._ranks = dict(zip(self._merges, range(len(self._merges)), strict=True))
        if len(self._ranks) < len(self._merges):  # of two equal merges the first counts
            n = len(self._merges)
            self._ranks = dict(zip(reversed(self._merges), range(n - 1, -1, -1), strict=True))
        self._split = pretokenizers.splitter(pre)
        self._kept: dict[str, tuple[int, ...]] = {}

    def _encode_words(self, text: str, ids: list[int]) -> None:
        words = self._split(text if self._byte_level else text.replace(" ", "▁"))
        kept = self._kept
        new = set(words).difference(kept)
        if new:
            if len(kept) + len(new) > _MAX_KEPT:
                kept = self._kept = {}
                new = set(words)
            fresh = {word: self._encode_word(word) for word in new}
            kept.update((w, i) for w, i in fresh.items() if len(w) <= _MAX_KEPT_LENGTH)
            get = (kept | fresh).__getitem__ if len(words) > len(new) else fresh.__getitem__
        else:
            get = kept.__getitem__
        ids.extend(chain.from_iterable(map(get, words)))

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if self._byte_level:
            word = "".join(map(_TO_CHAR.__getitem__, word.encode()))
        if self._pre.ignore_merges or (not self._byte_level and word.strip("\n") == ""):
            token = self.vocab.ids.get(word)
            if token is not None:
                return (token,)
        return self._tokens(merge(word, self._ranks))

    def _tokens(self, symbols: list[str]) -> tuple[int, ...]:
        """Ids of merged symbols; a symbol that is no token is written in bytes; bytes without a token are dropped."""
        ids = self.vocab.ids
        out: list[int] = []
        for symbol in symbols:
            token = ids.get(symbol)
            if token is not None:
                out.append(token)
            else:
                parts = symbol if self._byte_level else [f"<0x{b:02X}>" for b in symbol.encode()]
                out.extend(i for part in parts if (i := ids.get(part)) is not None)
        return tuple(out)

    def _compiled(self) -> tuple[Sequence[Kernel], Callable[[], Encoder]]:
        from pyllm.tokenizers.compiled.merging import BPE, bpe_kernels

        pre, alphabet = self._pre, _TO_BYTE if self._byte_level else None
        patterns = (pre.fused,) if pre.fused else pre.patterns

        def make() -> Encoder:
            return BPE(self.vocab.ids, self._merges, patterns, alphabet, pre.ignore_merges)

        return bpe_kernels(self._byte_level), make

    def _text_bytes(self, text: str) -> bytes:
        if not self._byte_level:
            return super()._text_bytes(text)
        try:
            return bytes([_TO_BYTE[c] for c in text])
        except KeyError:  # not byte-level text; such tokens stand for themselves
            return text.encode("utf-8", "surrogateescape")

    def _texts_bytes(self, texts: list[str]) -> list[bytes]:
        if not self._byte_level:
            return super()._texts_bytes(texts)
        joined = "".join(texts)
        if not _TO_BYTE.keys() >= set(joined):
            return [self._text_bytes(text) for text in texts]
        data = joined.translate(_TO_LATIN).encode("latin-1")  # a byte for each character
        ends = accumulate(map(len, texts), initial=0)
        return [data[start:end] for start, end in pairwise(ends)]


def merge(word: str, ranks: Mapping[str, int]) -> list[str]:
    """Merge a word's characters by rank, lowest first, of equal ranks the leftmost; returns the remaining symbols.

    `ranks` maps "left right" to a rank. n log n in the word's length.
    """
    if len(word) > _LONG:
        return _merge_long(list(word), ranks)
    get, symbols = ranks.get, list(word)
    found = [get(f"{a} {b}", _NEVER) for a, b in pairwise(symbols)]
    while found and (best := min(found)) < _NEVER:
        i = found.index(best)
        symbols[i] += symbols[i + 1]
        del symbols[i + 1], found[i]
        if i < len(found):
            found[i] = get(f"{symbols[i]} {symbols[i + 1]}", _NEVER)
        if i > 0:
            found[i - 1] = get(f"{symbols[i - 1]} {symbols[i]}", _NEVER)
    return symbols


def _merge_long(symbols: list[str], ranks: Mapping[str, int]) -> list[str]:
    """The same with a heap and a linked list, for words of many characters."""
    n = len(symbols)
    before, after = list(range(-1, n - 1)), [*range(1, n), -1]
    heap = [
        (rank, i, a, b) for i, (a, b) in enumerate(pairwise(symbols)) if (rank := ranks.get(f"{a} {b}")) is not None
    ]
    heapq.heapify(heap)
    while heap:
        _, i, a, b = heapq.heappop(heap)
        j = after[i]
        if j < 0 or symbols[i] != a or symbols[j] != b:
            continue  # one of the two was merged meanwhile
        symbols[i], symbols[j] = a + b, ""
        after[i] = k = after[j]
        if k >= 0:
            before[k] = i
        for left, right in ((before[i], i), (i, k)):
            if left >= 0 and right >= 0:
                pair = (symbols[left], symbols[right])
                rank = ranks.get(f"{pair[0]} {pair[1]}")
                if rank is not None:
                    heapq.heappush(heap, (rank, left, *pair))
    return [symbol for symbol in symbols if symbol]
