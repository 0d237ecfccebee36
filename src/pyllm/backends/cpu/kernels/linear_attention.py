"""Linear attention: columns of a head's state, each of which depends on no other, token by token.

A token is one sweep over the rows of 16 columns, which replaces the state and adds up the output; with erasing, a sum
over the rows comes before. Sums are divided by even and odd rows, always in the same order. A state goes from where it
was last written, slot or scratch, to where it is to be saved, or else to scratch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.linear_attention import LinearAttention
from pyllm.backends.cpu.kernels.heads import columns_kernel, padded, projection
from pyllm.backends.cpu.kernels.heads_scratch import ONE_TOKEN, TOKENS
from pyllm.backends.cpu.kernels.recurrent import access, first_save, save_of, state_before, tokens_of
from pyllm.jit.reader import reader
from pyllm.jit.simd import (
    exp_f32,
    fma,
    load_f32,
    load_f32x16,
    load_first_f32,
    splat_f32,
    store_f32x16,
    store_first_f32,
    zero_f32,
)

read = reader(LinearAttention)


def _rows(by_row: bool, complement: bool) -> Callable[..., object]:
    """Factors of a token's rows, and its key, maybe times 1 - factor; a factor for all rows is given."""

    @register_jitable
    def rows(decay, factor, k, factors, keys, n_rows):
        one = splat_f32(np.float32(1))
        for i in range(0, n_rows, 16):
            lanes = min(16, n_rows - i)
            f = exp_f32(load_first_f32(decay + 4 * i, lanes)) if by_row else factor
            key = load_first_f32(k + 4 * i, lanes)
            store_f32x16(factors + 4 * i, f)
            store_f32x16(keys + 4 * i, key * (one - f) if complement else key)

    return rows


def _sweep(whole: bool, erases: bool, before: bool) -> Callable[..., object]:
    """S <- factor S + k v [+ insert erased] for the columns of one vector, from `src` to `dst`; returns S.T q, of the S
    before or after."""
    load, store = access(whole)

    @register_jitable
    def row(i, src, dst, rows, v, erased, lanes, total):
        q, k, factors, insert = rows
        old = load(src[0] + i * src[1], lanes)
        s = fma(splat_f32(load_f32(k + 4 * i)), v, old * splat_f32(load_f32(factors + 4 * i)))
        if erases:
            s = fma(splat_f32(load_f32(insert + 4 * i)), erased, s)
        store(dst[0] + i * dst[1], s, lanes)
        return fma(splat_f32(load_f32(q + 4 * i)), old if before else s, total)

    @register_jitable
    def sweep(src, dst, rows, v, erased, n_rows, lanes):
        even, odd = zero_f32(), zero_f32()
        for i in range(0, n_rows - 1, 2):
            even = row(i, src, dst, rows, v, erased, lanes, even)
            odd = row(i + 1, src, dst, rows, v, erased, lanes, odd)
        if n_rows % 2 != 0:
            even = row(n_rows - 1, src, dst, rows, v, erased, lanes, even)
        return even + odd

    return sweep


def _token(whole: bool, erases: bool, before: bool) -> Callable[..., object]:
    """One token for the columns of one vector; returns its output without the scale."""
    project, sweep = projection(whole), _sweep(whole, erases, before)

    @register_jitable
    def token(src, dst, rows, erase, v, n_rows, lanes):
        erased = project(src[0], src[1], erase, n_rows, lanes) if erases else zero_f32()
        return sweep(src, dst, rows, v, erased, n_rows, lanes)

    return token


def _scan(by_row: bool, erases: bool, before: bool, complement: bool) -> Callable[..., object]:
    """All tokens of a sequence, for columns low .. high - 1 of a head."""
    of_rows = _rows(by_row, complement)
    whole_token, token = _token(True, erases, before), _token(False, erases, before)

    @register_jitable
    def scan(a, seq, head, low, high, scratch):
        zeros = scratch + 64 * ONE_TOKEN
        factors = zeros + 64 * ONE_TOKEN
        keys = factors + padded(a.key_dim)
        own = keys + padded(a.key_dim), 64 * TOKENS
        scale = splat_f32(np.float32(a.scale))
        first, n = tokens_of(a.step, seq)
        save = first_save(a.step, seq)
        part = 4 * (head * a.key_dim * a.value_dim + low)  # of a slot
        start = state_before(a.step, seq, a.states, a.ld_states)
        src = (start + part, 4 * a.value_dim) if start != 0 else (zeros, 0)
        factor = zero_f32() if by_row else exp_f32(splat_f32(load_f32(a.decays + 4 * head)))
        key_head, at_rows = head * a.n_key_heads // a.n_heads, 4 * head * a.key_dim
        for t in range(first, first + n):
            slot = save_of(a.step, save, t + 1 - first, a.states, a.ld_states)
            dst = (slot + part, 4 * a.value_dim) if slot != 0 else own
            save += 1 if slot != 0 else 0
            k = a.k + t * a.ld_k + 4 * key_head * a.key_dim
            v = a.v + t * a.ld_v + 4 * key_head * a.value_dim
            out = a.y + t * a.ld_y + 4 * head * a.value_dim
            of_rows(a.decay + t * a.ld_decay + at_rows, factor, k, factors, keys, a.key_dim)
            rows = (a.q + t * a.ld_q + at_rows, keys, factors, a.insert + t * a.ld_insert + at_rows)
            erase = a.erase + t * a.ld_erase + at_rows
            for c in range(low, high, 16):
                at, lanes = 4 * (c - low), min(16, high - c)
                old, new = (src[0] + at, src[1]), (dst[0] + at, dst[1])
                if lanes == 16:
                    y = whole_token(old, new, rows, erase, load_f32x16(v + 4 * c), a.key_dim, lanes)
                    store_f32x16(out + 4 * c, y * scale)
                else:
                    y = token(old, new, rows, erase, load_first_f32(v + 4 * c, lanes), a.key_dim, lanes)
                    store_first_f32(out + 4 * c, y * scale, lanes)
            src = dst

    return scan


def linear_attention(by_row: int, erases: int, before: int, complement: int) -> Callable[[int, int, int], None]:
    """One item is some columns of a head of a sequence, over all of its tokens. `by_row`: each row of the state has its
    own decay."""
    return columns_kernel(read, _scan(bool(by_row), bool(erases), bool(before), bool(complement)))
