"""What sampling asks of a vocabulary: which tokens hold a text, or begin or end with a part of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.sampling.compiled.slots import LONG_BREAKER

if TYPE_CHECKING:
    from pyllm.tokenizers import Tokenizer

Ids = NDArray[np.int32]


class Vocabulary:
    """The bytes of a model's tokens. Answers are kept, so that all requests of a model share them."""

    def __init__(
        self, n_vocab: int, token_bytes: Callable[[int], bytes], encode: Callable[[str], Sequence[int]]
    ) -> None:
        """`token_bytes`: what a token adds to a text, nothing for control tokens. `encode`: ids of a text."""
        self.n_vocab = n_vocab
        self._token_bytes = token_bytes
        self._encode = encode
        self._pieces: list[bytes] | None = None
        self._breakers: dict[tuple[str, ...], tuple[NDArray[np.uint8], Ids]] = {}
        self._endings: dict[str, Endings] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer, n_vocab: int) -> Vocabulary:
        """That of a tokenizer; a model may have rows for more tokens than there are."""

        def token_bytes(token: int) -> bytes:
            known = token < tokenizer.n_vocab and not tokenizer.is_special(token)
            return tokenizer.token_bytes(token) if known else b""

        return cls(n_vocab, token_bytes, lambda text: tokenizer.encode(text, add_special=False))

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text."""
        return self._token_bytes(token)

    def breakers(self, texts: Sequence[str]) -> tuple[NDArray[np.uint8], Ids]:
        """The tokens that hold a text, or begin one: flags [n_vocab] (1: holds one, 2: ends with the beginning of one),
        and [n, LONG_BREAKER]: the tokens of such a beginning and what follows, their number first."""
        key = tuple(texts)
        if key not in self._breakers:
            flags = np.zeros(self.n_vocab, np.uint8)
            long: list[list[int]] = []
            for text in key:
                flags[self._holding(text.encode())] |= 1
                for i in range(1, len(text)):
                    rest = list(self._encode(text[i:]))[: LONG_BREAKER - 2]
                    head = text[:i].encode()
                    for token in self._where(lambda piece, head=head: piece.endswith(head)):  # type: ignore[misc]
                        if not flags[token] & 1:
                            flags[token] |= 2
                            long.append([1 + len(rest), token, *rest])
            table = np.zeros((len(long), LONG_BREAKER), np.int32)
            for row, entry in zip(table, long, strict=True):
                row[: len(entry)] = entry
            self._breakers[key] = flags, table
        return self._breakers[key]

    def endings(self, text: str) -> Endings:
        """Which tokens complete a text."""
        if text not in self._endings:
            data = text.encode()
            rests = {
                data[:i]: np.array(self._where(lambda piece, i=i: piece.startswith(data[i:])), np.int32)  # type: ignore[misc]
                for i in range(1, len(data))
            }
            self._endings[text] = Endings(self._holding(data), {k: v for k, v in rests.items() if len(v)}, len(data))
        return self._endings[text]

    def _all(self) -> list[bytes]:
        if self._pieces is None:
            self._pieces = [self._token_bytes(i) for i in range(self.n_vocab)]
        return self._pieces

    def _holding(self, text: bytes) -> Ids:
        return np.array(self._where(lambda piece: text in piece), np.int32)

    def _where(self, fits: Callable[[bytes], bool]) -> list[int]:
        return [i for i, piece in enumerate(self._all()) if fits(piece)]


class Endings:
    """The tokens that complete a text: those that hold it, and those that begin with its rest."""

    def __init__(self, holding: Ids, rests: dict[bytes, Ids], n_bytes: int) -> None:
        self.holding = holding
        self.n_bytes = n_bytes
        self._rests = rests

    def after(self, tail: bytes) -> Iterator[Ids]:
        """Tokens that complete the text after these bytes, besides those that hold it."""
        for beginning, tokens in self._rests.items():
            if tail.endswith(beginning):
                yield tokens
