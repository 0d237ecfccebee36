"""The most likely tokens of each output row, found on the device: a few logits are downloaded, not the vocabulary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cuda.launch import ROWS, Launch, StepArrays, View, fill, struct
from pyllm.backends.plan.memory import Buffer
from pyllm.sampling.top_logits import TopLogits

MOST = 128
"""Most candidates of the kernels. Enough for the default `top_k` of 40 with penalties over 64 tokens."""
_SLICE, _MOST_SLICES = 4096, 256
_THREADS, _MERGERS = 256, 512

_SLICES = struct(logits="ptr", keys="ptr", sums="ptr", n_rows="ptr", ld="int", n_vocab="int", n="int")
_MERGE = struct(keys="ptr", sums="ptr", out="ptr", n_rows="ptr", n_slices="int", n="int", stride="int")


def n_candidates(n_vocab: int) -> int:
    """Candidates per row; 0 where a vocabulary is too large for the kernels."""
    return min(MOST, n_vocab) if n_vocab <= _SLICE * _MOST_SLICES else 0


def stride(n: int) -> int:
    """Words of a row of results: ids, logits, the logarithm of the sum."""
    return 2 * n + 4


def launches(logits: View, n_vocab: int, arrays: StepArrays, max_rows: int) -> tuple[list[Launch], Buffer]:
    """Launches that find candidates in `logits` [rows, n_vocab], and their buffer: int32 [max_rows, `stride`], for
    `read`."""
    n, n_slices = n_candidates(n_vocab), -(-n_vocab // _SLICE)
    keys, sums = Buffer(8 * max_rows * n_slices * n), Buffer(8 * max_rows * n_slices)
    out = Buffer(4 * max_rows * stride(n))
    of_slices = Launch(
        "candidates.cu",
        "candidates_of_slices",
        lambda shape: (n_slices, shape.n_rows, 1),
        _THREADS,
        lambda shape: fill(
            _SLICES, logits=logits, keys=keys, sums=sums, n_rows=arrays.count(ROWS), ld=logits.ld, n_vocab=n_vocab, n=n
        ),
        "candidates",
        reads=(logits.buffer,),
        writes=(keys, sums),
    )
    of_rows = Launch(
        "candidates.cu",
        "candidates_of_row",
        lambda shape: (shape.n_rows, 1, 1),
        _MERGERS,
        lambda shape: fill(
            _MERGE, keys=keys, sums=sums, out=out, n_rows=arrays.count(ROWS), n_slices=n_slices, n=n, stride=stride(n)
        ),
        "merge candidates",
        reads=(keys, sums),
        writes=(out,),
    )
    return [of_slices, of_rows], out


def read(rows: NDArray[np.int32], n: int) -> TopLogits:
    """Candidates of downloaded results, int32 [n_rows, `stride`(n)]; views of them."""
    return TopLogits(rows[:, :n], rows[:, n : 2 * n].view(np.float32), rows[:, 2 * n].view(np.float32))
