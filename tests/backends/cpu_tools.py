"""What the tests of single CPU kernels share: run one on arrays of any shape, as the runtime would."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.table import FIRST_WIDE
from pyllm.jit.arguments import Arguments
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
    output_rows = np.array(rows or [], np.int32)
    _keep.extend([output_rows, tokens])
    block[1], block[3], block[11], block[FIRST_WIDE] = n_tokens, len(output_rows), output_rows.ctypes.data, first_wide
    if tokens is not None:
        block[5] = tokens.ctypes.data
    return block


_keep: list[object] = []


@dataclass(frozen=True)
class Memory:
    """An array as a kernel's argument."""

    array: NDArray[Any]

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    @property
    def ld(self) -> int:
        return int(self.array.strides[0])


def call(module: str, name: str, params: dict[str, str | int], step: NDArray[np.int64], args: Arguments) -> None:
    """Run a kernel on two threads."""
    k, counter = kernel(module, name, **params), np.zeros(1, np.int64)
    block = args.block(step.ctypes.data, counter.ctypes.data)
    pool().run(LIBRARY.load([k])[k], block.ctypes.data)
