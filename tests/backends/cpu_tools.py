"""What the tests of single CPU kernels share: run one on arrays of any shape, as the runtime would."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.table import FIRST_WIDE
from pyllm.jit.compiler import LIBRARY
from pyllm.jit.memory import aligned_zeros
from pyllm.jit.threads import Pool


@cache
def pool() -> Pool:
    return Pool(2)


def padded(x: NDArray[np.float32], filler: float = 3.0) -> NDArray[np.float32]:
    """A value buffer [tokens, columns rounded up to 32]; what the padding holds must not matter."""
    out = aligned_zeros((len(x), (x.shape[1] + 31) // 32 * 32), np.float32)
    out[:] = filler
    out[:, : x.shape[1]] = x
    return out


def step_block(
    n_tokens: int, rows: list[int] | None = None, tokens: NDArray[np.int32] | None = None, first_wide: int = 1 << 62
) -> NDArray[np.int64]:
    """A STEP block; the arrays that it points to are kept in `_keep`."""
    block = aligned_zeros((32,), np.int64)
    picked = np.array(rows or [], np.int32)
    _keep.extend([picked, tokens])
    block[1], block[3], block[11], block[FIRST_WIDE] = n_tokens, len(picked), picked.ctypes.data, first_wide
    if tokens is not None:
        block[5] = tokens.ctypes.data
    return block


_keep: list[object] = []


def call(module: str, name: str, params: dict[str, str | int], step: NDArray[np.int64], slots: list[object]) -> None:
    """Run a kernel on two threads. Arrays among the slots stand for their addresses, floats for themselves."""
    k = kernel(module, name, **params)
    values: list[object] = [step, np.zeros(1, np.int64), *slots]
    block = aligned_zeros((len(values),), np.int64)
    for i, v in enumerate(values):
        if isinstance(v, np.ndarray):
            block[i] = v.ctypes.data
        elif isinstance(v, float):
            block.view(np.float64)[i] = v
        else:
            block[i] = v
    pool().run(LIBRARY.load([k])[k], block.ctypes.data)
