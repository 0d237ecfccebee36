"""The gated delta rule: columns of a head's state, each of which depends on no other, token by token.

One sweep over the rows of 16 columns replaces the state by that after a token, and adds up both the token's output and
the next token's product of key and state, so that a state is read and written once for each token. The sums are
divided by even and odd rows, always in the same order. A state goes from where it was last written, slot or scratch,
to where it is to be saved, or else to scratch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.delta import DeltaRule
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
    stream_f32x16,
    zero_f32,
)

read = reader(DeltaRule)


def _sweep(whole: bool, by_row: bool, is_last: bool) -> Callable[..., object]:
    """S <- decay S + k d for the columns of one vector, from `src` to `dst`; stores scale * S.T q at `out` and, unless
    the token is its sequence's last, S.T next_key at `sums`. by_row: `decays` has a number for each row.

    A last state in whole vectors is streamed to memory: nothing reads it in this step, and a slot's old content need
    not be read to be overwritten.
    """
    load, store = access(whole)

    @register_jitable
    def row(i, src, dst, keys, d, decay, decays, lanes):
        factor = splat_f32(load_f32(decays + 4 * i)) if by_row else decay
        s = fma(splat_f32(load_f32(keys[1] + 4 * i)), d, load(src[0] + i * src[1], lanes) * factor)
        if whole and is_last:
            stream_f32x16(dst[0] + i * dst[1], s)
        else:
            store(dst[0] + i * dst[1], s, lanes)
        return s

    @register_jitable
    def dot(x, i, s, total):
        return fma(splat_f32(load_f32(x + 4 * i)), s, total)

    @register_jitable
    def sweep(src, dst, keys, d, decay, decays, n_rows, lanes, out, scale, sums):
        q, _, next_key = keys
        out0, out1, next0, next1 = zero_f32(), zero_f32(), zero_f32(), zero_f32()
        for i in range(0, n_rows - 1, 2):
            s = row(i, src, dst, keys, d, decay, decays, lanes)
            out0 = dot(q, i, s, out0)
            if not is_last:
                next0 = dot(next_key, i, s, next0)
            s = row(i + 1, src, dst, keys, d, decay, decays, lanes)
            out1 = dot(q, i + 1, s, out1)
            if not is_last:
                next1 = dot(next_key, i + 1, s, next1)
        if n_rows % 2 != 0:
            s = row(n_rows - 1, src, dst, keys, d, decay, decays, lanes)
            out0 = dot(q, n_rows - 1, s, out0)
            if not is_last:
                next0 = dot(next_key, n_rows - 1, s, next0)
        store(out, (out0 + out1) * scale, lanes)
        if not is_last:
            store_f32x16(sums, next0 + next1)

    return sweep


@register_jitable
def _decay_rows(decay, k, decays, decayed, n_rows):
    """Factors of a token's rows at `decays`, and its key times them at `decayed`."""
    for i in range(0, n_rows, 16):
        lanes = min(16, n_rows - i)
        factor = exp_f32(load_first_f32(decay + 4 * i, lanes))
        store_f32x16(decays + 4 * i, factor)
        store_f32x16(decayed + 4 * i, load_first_f32(k + 4 * i, lanes) * factor)


def _scan(by_row: bool) -> Callable[..., object]:
    """All tokens of a sequence, for columns low .. high - 1 of a head."""
    project, project_first = projection(True), projection(False)
    sweep, last_sweep = _sweep(True, by_row, False), _sweep(True, by_row, True)
    sweep_first, last_sweep_first = _sweep(False, by_row, False), _sweep(False, by_row, True)

    @register_jitable
    def scan(a, seq, head, low, high, sums):
        zeros = sums + 64 * ONE_TOKEN
        decayed = zeros + 64 * ONE_TOKEN
        decays = decayed + padded(a.key_dim)
        next_decays = decays + padded(a.key_dim)
        own = next_decays + padded(a.key_dim), 64 * TOKENS
        scale = splat_f32(np.float32(a.scale))
        first, n = tokens_of(a.step, seq)
        save = first_save(a.step, seq)
        part = 4 * (head * a.key_dim * a.value_dim + low)  # of a slot
        before = state_before(a.step, seq, a.states, a.ld_states)
        src = (before + part, 4 * a.value_dim) if before != 0 else (zeros, 0)
        key_head = head % a.n_key_heads if a.tiled != 0 else head * a.n_key_heads // a.n_heads
        q = a.q + first * a.ld_q + 4 * key_head * a.key_dim
        k = a.k + first * a.ld_k + 4 * key_head * a.key_dim
        v = a.v + first * a.ld_v + 4 * head * a.value_dim
        out = a.y + first * a.ld_y + 4 * head * a.value_dim
        decay = a.decay + first * a.ld_decay + 4 * head * (a.key_dim if by_row else 1)
        beta = a.beta + first * a.ld_beta + 4 * head
        key = k
        if by_row:
            _decay_rows(decay, k, decays, decayed, a.key_dim)
            key = decayed
        for c in range(low, high, 16):
            at, lanes = 4 * (c - low), high - c
            if lanes >= 16:
                store_f32x16(sums + at, project(src[0] + at, src[1], key, a.key_dim, lanes))
            else:
                store_f32x16(sums + at, project_first(src[0] + at, src[1], key, a.key_dim, lanes))
        for t in range(n):
            is_last = t + 1 == n
            slot = save_of(a.step, save, t + 1, a.states, a.ld_states)
            dst = (slot + part, 4 * a.value_dim) if slot != 0 else own
            save += 1 if slot != 0 else 0
            key = k + a.ld_k
            factor = zero_f32() if by_row else exp_f32(splat_f32(load_f32(decay)))
            if by_row and not is_last:
                _decay_rows(decay + a.ld_decay, k + a.ld_k, next_decays, decayed, a.key_dim)
                key = decayed
            keys = (q, k, key)
            b = splat_f32(load_f32(beta))
            for c in range(low, high, 16):
                at, lanes = 4 * (c - low), min(16, high - c)
                seen = load_f32x16(sums + at)
                d = b * (load_first_f32(v + 4 * c, lanes) - (seen if by_row else factor * seen))
                old, new = (src[0] + at, src[1]), (dst[0] + at, dst[1])
                y = out + 4 * c
                if lanes == 16 and not is_last:
                    sweep(old, new, keys, d, factor, decays, a.key_dim, lanes, y, scale, sums + at)
                elif a.value_dim % 16 == 0:
                    last_sweep(old, new, keys, d, factor, decays, a.key_dim, lanes, y, scale, sums + at)
                elif not is_last:
                    sweep_first(old, new, keys, d, factor, decays, a.key_dim, lanes, y, scale, sums + at)
                else:
                    last_sweep_first(old, new, keys, d, factor, decays, a.key_dim, lanes, y, scale, sums + at)
            src = dst
            decays, next_decays = next_decays, decays
            q, k, v, out = q + a.ld_q, k + a.ld_k, v + a.ld_v, out + a.ld_y
            decay, beta = decay + a.ld_decay, beta + a.ld_beta

    return scan


def delta_rule(by_row: int) -> Callable[[int, int, int], None]:
    """One item is some columns of a head of a sequence, over all of its tokens. `by_row`: each row of the state has its
    own decay."""
    return columns_kernel(read, _scan(bool(by_row)))
