"""Perplexity of a text, computed as by llama.cpp's perplexity tool, so that numbers are comparable.

The text is cut into non-overlapping windows of n_ctx tokens. Each is read from an empty context, its first token
replaced by BOS where the model adds one, and only the second half is scored: positions n_ctx/2 .. n_ctx-2 predict the
next token, each with at least n_ctx/2 tokens before it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import RequestError
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.engine.scoring import RowCallback
    from pyllm.llm import LLM

TakeWindowRows = Callable[[int, int, NDArray[np.float32], NDArray[np.int32]], None]
N_CTX = 512
"""Default tokens of a window."""


@dataclass(frozen=True, slots=True)
class PerplexityEstimate:
    """The estimate after some windows; the last one is the result."""

    n_windows: int
    """Windows scored so far."""
    n_total: int
    """Windows that will be scored."""
    n_scored: int
    """Tokens scored so far."""
    nll: float
    """Mean negative log likelihood per token, natural logarithm."""
    nll_variance: float
    """Variance of a single token's negative log likelihood."""

    @property
    def ppl(self) -> float:
        return math.exp(self.nll)

    @property
    def error(self) -> float:
        """Standard error of `ppl`."""
        return self.ppl * math.sqrt(self.nll_variance / (self.n_scored - 1)) if self.n_scored > 1 else 0.0

    def figures(self) -> dict[str, float]:
        """The result by name."""
        return {"windows": self.n_windows, "tokens": self.n_scored, "ppl": self.ppl, "ppl_error": self.error}

    def __str__(self) -> str:
        return f"Final estimate: PPL = {self.ppl:.4f} +/- {self.error:.5f}"


def perplexity(
    llm: LLM,
    text: str | Sequence[int],
    n_ctx: int = N_CTX,
    n_windows: int | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Iterator[PerplexityEstimate]:
    """Yields the estimate after each window; `n_windows` None: as many as the text has. Token ids are accepted as text.

    `base`: write the model's distributions to this file, for `kl_divergence` of other models; it exists, complete,
    after the last estimate. It takes 2 bytes for each scored token and token of the vocabulary. Fastest when the model
    was loaded with `load_options`.

    Raises RequestError where the text is too short, n_ctx does not fit the loaded model, or `base` exists already
    (unless `overwrite`) or does not fit on the disk.
    """
    check_window(llm, n_ctx)
    if n_windows is not None and n_windows < 1:
        raise RequestError(f"there must be at least one window, not {n_windows}")
    tokens = np.asarray(llm.tokenizer.encode(text, add_special=True) if isinstance(text, str) else list(text), np.int32)
    if len(tokens) < 2 * n_ctx:
        raise RequestError(
            f"the text has {len(tokens)} tokens, but two windows of {n_ctx} are the least that is worth scoring; "
            "take a longer text or a smaller n_ctx"
        )
    n = min(n_windows or len(tokens), len(tokens) // n_ctx)
    windows = tokens[: n * n_ctx].reshape(n, n_ctx)
    if base is None:
        return _estimates(llm, windows)
    from pyllm.evaluation.kl_divergence import write_base

    return write_base(llm, windows, base, overwrite)


def load_options(n_ctx: int = N_CTX) -> dict[str, int]:
    """Arguments for `pyllm.load` with which windows are scored at the speed of prefill."""
    side = 2 * -(-512 // n_ctx)
    return {"n_ctx": n_ctx, "max_seqs": side, "n_kv": side * (n_ctx + 32), "n_batch": 512, "n_rows": 256}


def check_window(llm: LLM, n_ctx: int) -> None:
    """Raise RequestError where windows of this size cannot be scored."""
    if not 4 <= n_ctx <= llm.n_ctx:
        raise RequestError(f"windows of {n_ctx} tokens do not fit: the model was loaded for 4 to {llm.n_ctx} positions")


def score_windows(llm: LLM, windows: NDArray[np.int32], take: TakeWindowRows) -> Iterator[int]:
    """Compute windows [n, n_ctx] several at a time; yields the number of each finished window, in order.

    take(window, i, rows, targets) gets logits [m, n_vocab] of a window's scored tokens from the i-th on, and the tokens
    that they predict; the rows are overwritten by the next step.
    """
    first = windows.shape[1] // 2
    bos = _leading_token(llm)

    def sequence(k: int) -> tuple[NDArray[np.int32], RowCallback]:
        # The last token predicts nothing that is scored.
        tokens, targets = windows[k, :-1].copy(), windows[k, 1:]
        if bos is not None:
            tokens[0] = bos
        return tokens, lambda at, rows: take(k, at - first, rows, targets[at : at + len(rows)])

    return llm.engine.score((sequence(k) for k in range(len(windows))), first=first)


def n_scored(n_ctx: int) -> int:
    """Number of scored tokens of a window."""
    return n_ctx - 1 - n_ctx // 2


def estimate(nll: NDArray[np.float64], n_total: int) -> PerplexityEstimate:
    """The estimate from negative log likelihoods [windows, tokens]."""
    return PerplexityEstimate(len(nll), n_total, nll.size, float(nll.mean()), float(nll.var()))


def _estimates(llm: LLM, windows: NDArray[np.int32]) -> Iterator[PerplexityEstimate]:
    from pyllm.evaluation.scoring import Scorer

    nll = np.empty((len(windows), n_scored(windows.shape[1])), np.float64)

    def take(k: int, i: int, rows: NDArray[np.float32], targets: NDArray[np.int32]) -> None:
        nll[k, i : i + len(rows)] = scorer.score(rows, targets).nll

    with Scorer(llm.n_threads) as scorer:
        for k in score_windows(llm, windows, take):
            yield estimate(nll[: k + 1], len(windows))


def _leading_token(llm: LLM) -> int | None:
    """BOS, where the model's tokenizer adds one."""
    return llm.tokenizer.bos_id if llm.has_tokenizer and llm.tokenizer.add_bos else None
