"""Rows of logits scored by compiled kernels on several threads."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm.jit.compiler import LIBRARY, kernel
from pyllm.jit.threads import Pool
from pyllm.records import dataclass

_DESCRIBE = kernel("evaluation.scoring.kernels", "describe")
_COMPARE = kernel("evaluation.scoring.kernels", "compare")
_STATISTICS = 6
_HEADER = 4
"""uint16s before a row's codes: two float32, the scale of the codes and the log-probability of code 0."""


def coded_width(n_vocab: int) -> int:
    """uint16s of a coded row: the header, and a code for each token, to a multiple of 4 bytes."""
    return _HEADER + -(-n_vocab // 2) * 2


@dataclass(frozen=True, slots=True)
class RowScores:
    """Scores of rows, all [n]."""

    nll: NDArray[np.float64]
    """Negative log likelihood of the target."""
    best: NDArray[np.int64]
    """The most likely token; of equals the first."""
    log_sum: NDArray[np.float64]
    """Log of the sum of the exponentials of all logits."""


class Scorer:
    """A thread pool that scores rows. One caller at a time; `close` ends the threads.

    Distributions are coded as in llama.cpp's perplexity tool: a row is `coded_width` uint16s, two float32 (scale,
    least), then a code for each token, whose log probability is scale * code + least.
    """

    def __init__(self, n_threads: int) -> None:
        self._describe, self._compare = LIBRARY.load([_DESCRIBE, _COMPARE]).values()
        self._pool = Pool(n_threads)

    def score(
        self, rows: NDArray[np.float32], targets: NDArray[np.int32], codes: NDArray[np.uint16] | None = None
    ) -> RowScores:
        """Score rows [n, n_vocab], each contiguous, row i predicting targets[i]; `codes` [n, coded_width] takes the
        distributions. Raises ModelError where logits are NaN or infinite."""
        n, n_vocab = rows.shape
        targets = np.ascontiguousarray(targets, np.int32)
        statistics = np.empty((n, _STATISTICS), np.float64)
        at, ld = (0, 0) if codes is None else (codes.ctypes.data + 2 * _HEADER, codes.strides[0])
        self._run(self._describe, rows, targets.ctypes.data, statistics.ctypes.data, at, ld)
        largest, smallest, total, target, best, strange = statistics.T
        if strange.any() or not np.isfinite(statistics).all():
            raise ModelError("the model's logits are infinite or no numbers; its file may be damaged")
        log_total = np.log(total)
        if codes is not None:
            header = codes[:, :_HEADER].view(np.float32)
            low = np.maximum(smallest.astype(np.float32), largest.astype(np.float32) - np.float32(16))
            header[:, 0] = (largest.astype(np.float32) - low) / np.float32(65535)
            header[:, 1] = low - largest.astype(np.float32) - log_total.astype(np.float32)
            codes[:, _HEADER + n_vocab :] = 0
        return RowScores(largest + log_total - target, best.astype(np.int64), largest + log_total)

    def compare(
        self, rows: NDArray[np.float32], scores: RowScores, codes: NDArray[np.uint16]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Compare rows, with their scores, to coded distributions [n, coded_width] of another model at the same
        positions: KL divergence of the rows from those [n], and the other's most likely tokens [n]."""
        header = np.ascontiguousarray(codes[:, :_HEADER]).view(np.float32)
        parameters = np.column_stack([scores.log_sum, header[:, 0], header[:, 1]]).astype(np.float64)
        results = np.empty((len(rows), 2), np.float64)
        at = codes.ctypes.data + 2 * _HEADER
        self._run(self._compare, rows, at, codes.strides[0], parameters.ctypes.data, results.ctypes.data)
        return results[:, 0], results[:, 1].astype(np.int64)

    def close(self) -> None:
        """End the threads. Further calls do nothing."""
        self._pool.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _run(self, address: int, rows: NDArray[np.float32], *more: int) -> None:
        if rows.dtype != np.float32 or rows.strides[1] != 4:
            raise ValueError("rows of logits must be contiguous float32")
        counter = np.zeros(1, np.int64)
        slots = [0, counter.ctypes.data, rows.ctypes.data, rows.strides[0], *rows.shape, *more]
        args = np.array(slots, np.int64)
        self._pool.run(address, args.ctypes.data)


def coded_nll(codes: NDArray[np.uint16], targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """Negative log likelihood of each target by its coded row, float64 [n]."""
    header = np.ascontiguousarray(codes[:, :_HEADER]).view(np.float32)
    own = codes[np.arange(len(codes)), _HEADER + targets].astype(np.float32)
    return -(header[:, 0] * own + header[:, 1]).astype(np.float64)
