"""Perplexity of a text, computed as llama.cpp's perplexity tool does, so that numbers can be compared.

The text is cut into windows of n_ctx tokens that do not overlap. Each is read from an empty context, its first token
replaced by BOS where the model adds one, and only the second half is scored: positions n_ctx/2 .. n_ctx-2 predict the
token after them, each with at least n_ctx/2 tokens before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import RequestError

if TYPE_CHECKING:
    from pyllm.llm import LLM


@dataclass(frozen=True, slots=True)
class PerplexityEstimate:
    """Where the estimate stands after some windows; the last one is the result."""

    n_windows: int
    """Windows scored so far."""
    n_total: int
    """Windows that will be scored."""
    n_scored: int
    """Tokens scored so far."""
    nll: float
    """Mean negative log likelihood per token, natural logarithm."""
    nll_variance: float
    """Of a single token's."""

    @property
    def ppl(self) -> float:
        return math.exp(self.nll)

    @property
    def error(self) -> float:
        """Standard error of `ppl`."""
        return self.ppl * math.sqrt(self.nll_variance / (self.n_scored - 1)) if self.n_scored > 1 else 0.0

    def __str__(self) -> str:
        return f"Final estimate: PPL = {self.ppl:.4f} +/- {self.error:.5f}"


def perplexity(
    llm: LLM, text: str | Sequence[int], n_ctx: int = 512, n_windows: int | None = None
) -> Iterator[PerplexityEstimate]:
    """Estimates after each window; `n_windows` None: as many as the text holds. Token ids are taken in place of text.

    Raises RequestError when the text is too short or n_ctx does not fit the model as it was loaded.
    """
    if not 4 <= n_ctx <= llm.n_ctx:
        raise RequestError(f"windows of {n_ctx} tokens do not fit: the model was loaded for 4 to {llm.n_ctx} positions")
    if n_windows is not None and n_windows < 1:
        raise RequestError(f"there must be at least one window, not {n_windows}")
    tokens = llm.tokenizer.encode(text, add_special=True) if isinstance(text, str) else list(text)
    if len(tokens) < 2 * n_ctx:
        raise RequestError(f"the text has {len(tokens)} tokens; at least {2 * n_ctx} are needed for windows of {n_ctx}")
    return _estimates(llm, tokens, n_ctx, min(n_windows or len(tokens), len(tokens) // n_ctx))


def window_nll(logits: Iterable[NDArray[np.float32]], targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """Negative log likelihood of each target, float64 [n]; `logits` are blocks of rows [.., n_vocab] that together
    have n rows or more, row i predicting `targets[i]`."""
    nll = np.empty(len(targets), np.float64)
    i = 0
    for block in logits:
        for row in block[: len(targets) - i]:
            # A row at a time stays in the processor's cache, which makes this as fast as it gets.
            wide = row.astype(np.float64)
            top = wide.max()
            target = wide[targets[i]]
            wide -= top
            nll[i] = math.log(np.exp(wide, out=wide).sum()) + top - target
            i += 1
    if i < len(targets):
        raise ValueError(f"{i} rows of logits for {len(targets)} targets")
    return nll


def _estimates(llm: LLM, tokens: list[int], n_ctx: int, n_windows: int) -> Iterator[PerplexityEstimate]:
    bos = _leading_token(llm)
    first = n_ctx // 2
    total = squares = 0.0
    n_scored = 0
    for k in range(n_windows):
        window = tokens[k * n_ctx : (k + 1) * n_ctx]
        targets = np.asarray(window[first + 1 :])
        if bos is not None:
            window[0] = bos
        nll = window_nll(_rows_from(llm.engine.iter_logits(window), first), targets)
        total += float(nll.sum())
        squares += float(np.square(nll).sum())
        n_scored += len(nll)
        mean = total / n_scored
        yield PerplexityEstimate(k + 1, n_windows, n_scored, mean, max(0.0, squares / n_scored - mean * mean))


def _rows_from(blocks: Iterable[NDArray[np.float32]], first: int) -> Iterator[NDArray[np.float32]]:
    """The blocks without the first rows."""
    for block in blocks:
        if first < len(block):
            yield block[first:]
        first = max(0, first - len(block))


def _leading_token(llm: LLM) -> int | None:
    """BOS, where the model's tokenizer adds one."""
    return llm.tokenizer.bos_id if llm.has_tokenizer and llm.tokenizer.add_bos else None
