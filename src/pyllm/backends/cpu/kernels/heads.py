"""What kernels share whose state is a matrix [key_dim, value_dim] of each head, each column for itself.

A work item is some columns of a head, over all of a sequence's tokens. Scratch begins with sums of a row's vectors,
then zeros for as many, from which a state without a slot is read (`kernels/heads_scratch.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import register_jitable

from pyllm.backends.cpu.kernels.heads_scratch import ONE_TOKEN, TOKENS, padded_bytes
from pyllm.backends.cpu.kernels.recurrent import access, vectors_at_once
from pyllm.jit.simd import (
    atomic_add,
    fma,
    load_f32,
    load_i64,
    splat_f32,
    store_f32x16,
    zero_f32,
)

padded = register_jitable(padded_bytes)


def projection(whole: bool) -> Callable[..., object]:
    """S.T k for the columns of one vector, as sums of even and of odd rows."""
    load, _ = access(whole)

    @register_jitable
    def project(src, ld, k, n_rows, lanes):
        even, odd = zero_f32(), zero_f32()
        for i in range(0, n_rows - 1, 2):
            even = fma(splat_f32(load_f32(k + 4 * i)), load(src + i * ld, lanes), even)
            odd = fma(splat_f32(load_f32(k + 4 * i + 4)), load(src + i * ld + ld, lanes), odd)
        if n_rows % 2 != 0:
            i = n_rows - 1
            even = fma(splat_f32(load_f32(k + 4 * i)), load(src + i * ld, lanes), even)
        return even + odd

    return project


def columns_kernel(read: Any, scan: Any) -> Callable[[int, int, int], None]:
    """The kernel whose items are scan(arguments, sequence, head, first column, last column + 1, scratch).

    Arguments have `n_heads`, `value_dim` and `scratch`.
    """

    def k(args, thread, n_threads):
        a = read(args)
        n_seqs = load_i64(a.step + 32)
        n_vectors = (a.value_dim + 15) // 16
        most = ONE_TOKEN if n_seqs == load_i64(a.step + 8) else TOKENS
        at_once = vectors_at_once(n_vectors, n_seqs * a.n_heads, n_threads, most)
        blocks = (n_vectors + at_once - 1) // at_once
        scratch = a.scratch + thread * a.ld_scratch
        for j in range(ONE_TOKEN):
            store_f32x16(scratch + 64 * (ONE_TOKEN + j), zero_f32())
        while True:
            item = atomic_add(a.counter, 1)
            if item >= n_seqs * a.n_heads * blocks:
                break
            low = item % blocks * at_once * 16
            high = min(low + at_once * 16, a.value_dim)
            scan(a, item // (a.n_heads * blocks), item // blocks % a.n_heads, low, high, scratch)

    return k
