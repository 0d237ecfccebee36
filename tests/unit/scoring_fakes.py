"""An engine that answers from a table, for what is computed from logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

BOS = 1
Rows = np.ndarray[Any, np.dtype[np.float32]]


class TableEngine:
    """The logits after a token depend on that token and on the one at the start of its sequence; `block` rows at a
    time, of the `side` sequences that are computed together in turn."""

    def __init__(self, n_vocab: int, block: int, side: int = 1, seed: int = 5) -> None:
        self.table = np.random.default_rng(seed).normal(0, 1.5, (n_vocab, n_vocab)).astype(np.float32)
        self.block, self.side = block, side

    def logits(self, tokens: Any) -> Rows:
        return self.table[np.asarray(tokens)] + self.table[tokens[0]]

    def score(self, sequences: Iterable[tuple[Any, Callable[[int, Rows], None]]], *, first: int = 0) -> Iterator[int]:
        todo = list(sequences)
        for start in range(0, len(todo), self.side):
            side = todo[start : start + self.side]
            n = max(len(tokens) for tokens, _ in side)
            for at in range(first, n, self.block):
                for tokens, take in side:
                    rows = self.logits(tokens)[at : at + self.block]
                    take(at, rows)
                    rows[:] = np.nan
            yield from range(start, start + len(side))


def fake_llm(block: int, adds_bos: bool, n_vocab: int = 11, side: int = 1, seed: int = 5) -> Any:
    tokenizer = SimpleNamespace(bos_id=BOS, add_bos=adds_bos)
    engine = TableEngine(n_vocab, block, side, seed)
    return SimpleNamespace(
        n_ctx=64, n_vocab=n_vocab, n_threads=2, engine=engine, tokenizer=tokenizer, has_tokenizer=True
    )
