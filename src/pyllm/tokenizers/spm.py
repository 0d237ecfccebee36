"""SentencePiece BPE (Llama 2, Mistral, Gemma, Phi-3): pairs that form a token are merged, best score first.

The algorithm is llama.cpp's (`llm_tokenizer_spm`): there is no list of merges, a pair may merge if its text is a token,
the leftmost of equal scores first; symbols that are no token in the end are written as bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm.tokenizers.base import _SPACE, Tokenizer, _utf8, words_of
from pyllm.tokenizers.compiled.switch import Encoder
from pyllm.tokenizers.vocab import BYTE, Vocab

if TYPE_CHECKING:
    from pyllm.jit.compiler import Kernel

_MAX_KEPT = 1 << 17
_MAX_KEPT_LENGTH = 64


class SPMTokenizer(Tokenizer):
    """`tokenizer.ggml.model` = "llama"."""

    def __init__(self, metadata: Mapping[str, Any], vocab: Vocab) -> None:
        super().__init__(vocab, add_bos=True, add_eos=False)
        self._space_prefix = self._strip_first = vocab.flag("add_space_prefix", True)
        self._byte_ids = [
            vocab.find(f"<0x{b:02X}>") if vocab.find(f"<0x{b:02X}>") is not None else vocab.ids.get(chr(b))
            for b in range(256)
        ]
        byte_texts = {text for text, i in vocab.ids.items() if text.startswith("<0x") and vocab.types[i] == BYTE}
        scores = vocab.scores.tolist()
        self._scores = {t: -scores[i] for t, i in vocab.ids.items() if len(t) > 1 and t not in byte_texts}
        # Words can be merged, and cached, separately.
        self._words, _ = words_of(vocab.ids)
        self._kept: dict[str, tuple[int, ...]] = {}

    def _encode_words(self, text: str, ids: list[int]) -> None:
        text = text.replace(" ", _SPACE)
        for word in self._words.findall(text):
            tokens = self._kept.get(word)
            if tokens is None:
                tokens = self._encode_word(word)
                if len(word) <= _MAX_KEPT_LENGTH:
                    if len(self._kept) >= _MAX_KEPT:
                        self._kept = {}
                    self._kept[word] = tokens
            ids.extend(tokens)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        out: list[int] = []
        ids = self.vocab.ids
        for symbol in merge(word, self._scores):
            token = ids.get(symbol)
            if token is not None:
                out.append(token)
                continue
            tokens = [self._byte_ids[b] for b in _utf8(symbol)]
            if None in tokens:
                tokens = [] if self.vocab.unk_id is None else [self.vocab.unk_id]
            out.extend(i for i in tokens if i is not None)
        return tuple(out)

    def _compiled(self) -> tuple[Sequence[Kernel], Callable[[], Encoder]]:
        from pyllm.tokenizers.compiled.merging import SPM, SPM_KERNELS

        def make() -> Encoder:
            ids = self.vocab.ids
            costs = np.array([self._scores.get(text, np.nan) for text in ids])
            return SPM(ids, costs, self._byte_ids, self.vocab.unk_id)

        return SPM_KERNELS, make


def merge(word: str, costs: Mapping[str, float]) -> list[str]:
    """Merge neighbours whose joined text is in `costs`, cheapest first, the leftmost of equal costs; returns the
    remaining symbols."""
    symbols = list(word)
    n = len(symbols)
    before, after = list(range(-1, n - 1)), [*range(1, n), -1]
    heap = [(cost, i, 2) for i, (a, b) in enumerate(pairwise(symbols)) if (cost := costs.get(a + b)) is not None]
    heapq.heapify(heap)
    while heap:
        _, i, size = heapq.heappop(heap)
        j = after[i]
        # Symbols only grow or vanish: a pair of another size was merged meanwhile.
        if j < 0 or not symbols[i] or len(symbols[i]) + len(symbols[j]) != size:
            continue
        symbols[i], symbols[j] = symbols[i] + symbols[j], ""
        after[i] = k = after[j]
        if k >= 0:
            before[k] = i
        for left, right in ((before[i], i), (i, k)):
            if left >= 0 and right >= 0:
                joined = symbols[left] + symbols[right]
                cost = costs.get(joined)
                if cost is not None:
                    heapq.heappush(heap, (cost, left, len(joined)))
    return [symbol for symbol in symbols if symbol]
