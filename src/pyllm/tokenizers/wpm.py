"""WordPiece (BERT): words in lower case without accents, each covered from the left by the longest tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyllm.arguments import checked
from pyllm.tokenizers.base import _SPACE, Tokenizer
from pyllm.tokenizers.compiled.switch import Encoder
from pyllm.tokenizers.vocab import Vocab

if TYPE_CHECKING:
    from pyllm.jit.compiler import Kernel

_BLANK, _DROPPED, _ALONE, _LETTER = 1, 2, 3, 4

# CJK ideographs, each a word of its own; 0x2B920 repeats an error of the library that models were trained with.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WPMTokenizer(Tokenizer):
    """`tokenizer.ggml.model` = "bert". Tokens that begin a word are stored with a leading "▁".

    `decode` returns the text in lower case, with one space between words.
    """

    _strip_first = True

    def __init__(self, metadata: Mapping[str, Any], vocab: Vocab) -> None:
        vocab.bos_id = vocab.role("cls") if vocab.role("bos") is None else vocab.bos_id
        super().__init__(vocab, add_bos=True, add_eos=False)
        self._lowercase = vocab.flag("normalizer.lowercase", True)
        self._strip_accents = vocab.flag("normalizer.strip_accents", self._lowercase)
        self._lengths = sorted({len(text) for text in vocab.ids if text}, reverse=True)

    @checked
    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """As `Tokenizer.encode`; the special tokens are CLS before and SEP after."""
        ids = super().encode(text, add_special, parse_special)
        if add_special and self.vocab.sep_id is not None:
            ids.append(self.vocab.sep_id)
        return ids

    @checked
    def encode_pair(self, first: str, second: str) -> list[int]:
        """As `Tokenizer.encode_pair`: CLS, the first text, SEP, the second one, SEP."""
        ids = [*self.encode(first), *self.encode(second, add_special=False)]
        return ids if self.vocab.sep_id is None else [*ids, self.vocab.sep_id]

    def _encode_words(self, text: str, ids: list[int]) -> None:
        for word in self._normalized(text):
            ids.extend(self._cover(_SPACE + word))

    def _cover(self, word: str) -> list[int]:
        find, n, start = self.vocab.ids.get, len(word), 0
        out: list[int] = []
        while start < n:
            for length in self._lengths:
                token = find(word[start : start + length]) if start + length <= n else None
                if token is not None:
                    out.append(token)
                    start += length
                    break
            else:
                return [] if self.vocab.unk_id is None else [self.vocab.unk_id]
        return out

    def _compiled(self) -> tuple[Sequence[Kernel], Callable[[], Encoder]]:
        from pyllm.tokenizers.compiled.covering import WPM, WPM_KERNELS

        def make() -> Encoder:
            return WPM(self.vocab.ids, self.vocab.unk_id, self._kind, self._lowercase, self._strip_accents)

        return WPM_KERNELS, make

    def _kind(self, char: str) -> int:
        """Kind of a character: a blank, dropped, a word alone, or a letter of a word."""
        kind = unicodedata.category(char)
        if char in " \t\n\r" or kind[0] == "Z":
            return _BLANK
        if char in "\0\ufffd" or kind in ("Cc", "Cf", "Co") or (self._strip_accents and kind == "Mn"):
            return _DROPPED
        if kind[0] == "P" or (char < "\x7f" and kind[0] == "S") or _is_ideograph(ord(char)):
            return _ALONE
        return _LETTER

    def _normalized(self, text: str) -> Iterator[str]:
        if self._strip_accents:
            text = unicodedata.normalize("NFD", text)
        word: list[str] = []
        for char in text:
            kind = self._kind(char)
            if kind == _LETTER:
                word.append(char.lower() if self._lowercase else char)
            elif kind != _DROPPED:
                if word:
                    yield "".join(word)
                    word = []
                if kind == _ALONE:
                    yield char
        if word:
            yield "".join(word)


def _is_ideograph(code: int) -> bool:
    return code >= 0x3400 and any(first <= code <= last for first, last in _IDEOGRAPHS)
