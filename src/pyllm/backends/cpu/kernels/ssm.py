"""Scans of selective state spaces: columns of a state, each of which depends on no other, token by token.

One sweep over a state's rows replaces them by those after a token, and adds up the token's output: a state is read and
written once for each token. A state goes from where it was last written, slot or scratch, to where it is to be saved,
or else to scratch.
"""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.ssm import MOST_VECTORS, Scan1, Scan2
from pyllm.backends.cpu.kernels.elementwise import softplus
from pyllm.backends.cpu.kernels.recurrent import (
    access,
    first_save,
    save_of,
    state_before,
    tokens_of,
    vectors_at_once,
)
from pyllm.jit.reader import reader
from pyllm.jit.simd import (
    atomic_add,
    exp_f32,
    fma,
    load_f32,
    load_f32x16,
    load_i64,
    splat_f32,
    store_f32x16,
    zero_f32,
)

read_1, read_2 = reader(Scan1), reader(Scan2)

_ROW = 64 * MOST_VECTORS
"""Bytes between rows of a state in scratch."""


@register_jitable
def _zeros(scratch):
    """Make a row of zeros at the beginning of scratch; a state's own rows are after it."""
    for i in range(MOST_VECTORS):
        store_f32x16(scratch + 64 * i, zero_f32())


# --- Mamba 1: every number of a state has a decay of its own


def _channels(whole: bool) -> Callable[..., object]:
    """All tokens of a sequence, for the channels of one vector."""
    load, store = access(whole)

    @register_jitable
    def channels(a, seq, column, lanes, scratch):
        at = 4 * column
        first, n = tokens_of(a.step, seq)
        save = first_save(a.step, seq)
        before = state_before(a.step, seq, a.states, a.ld_states)
        src, ld_src = (before + at, 4 * a.columns) if before != 0 else (scratch, 0)
        d = load(a.d + at, lanes)
        for t in range(first, first + n):
            slot = save_of(a.step, save, t + 1 - first, a.states, a.ld_states)
            dst, ld_dst = (slot + at, 4 * a.columns) if slot != 0 else (scratch + _ROW, _ROW)
            save += 1 if slot != 0 else 0
            step = softplus(load(a.dt + t * a.ld_dt + at, lanes))
            x = load(a.x + t * a.ld_x + at, lanes)
            y = d * x
            x = step * x
            b, c = a.b + t * a.ld_b, a.c + t * a.ld_c
            for i in range(a.state_dim):
                decay = exp_f32(step * load(a.a + i * a.ld_a + at, lanes))
                s = fma(splat_f32(load_f32(b + 4 * i)), x, load(src + i * ld_src, lanes) * decay)
                store(dst + i * ld_dst, s, lanes)
                y = fma(splat_f32(load_f32(c + 4 * i)), s, y)
            store(a.y + t * a.ld_y + at, y, lanes)
            src, ld_src = dst, ld_dst

    return channels


def scan_1() -> Callable[[int, int, int], None]:
    """One item is 16 channels of a sequence, over all of its tokens."""
    whole, part = _channels(True), _channels(False)

    def k(args, thread, n_threads):
        a = read_1(args)
        scratch = a.scratch + thread * a.ld_scratch
        _zeros(scratch)
        blocks = (a.columns + 15) // 16
        n = blocks * load_i64(a.step + 32)
        while True:
            item = atomic_add(a.counter, 1)
            if item >= n:
                break
            column = 16 * (item % blocks)
            if column + 16 <= a.columns:
                whole(a, item // blocks, column, 16, scratch)
            else:
                part(a, item // blocks, column, a.columns - column, scratch)

    return k


# --- Mamba 2: a head's state has one decay


@register_jitable
def _row(src, dst, x, b, decay):
    """A vector of a row: s <- decay s + b x."""
    s = fma(b, x, load_f32x16(src) * decay)
    store_f32x16(dst, s)
    return s


@register_jitable
def _four(src, dst, x, b, c, y, step, decay, d, n_rows):
    """One token for the columns of four vectors; `src` and `dst` are addresses and bytes between rows."""
    x0, x1, x2, x3 = load_f32x16(x), load_f32x16(x + 64), load_f32x16(x + 128), load_f32x16(x + 192)
    y0, y1, y2, y3 = d * x0, d * x1, d * x2, d * x3
    x0, x1, x2, x3 = step * x0, step * x1, step * x2, step * x3
    for i in range(n_rows):
        old, new = src[0] + i * src[1], dst[0] + i * dst[1]
        into, out = splat_f32(load_f32(b + 4 * i)), splat_f32(load_f32(c + 4 * i))
        y0 = fma(out, _row(old, new, x0, into, decay), y0)
        y1 = fma(out, _row(old + 64, new + 64, x1, into, decay), y1)
        y2 = fma(out, _row(old + 128, new + 128, x2, into, decay), y2)
        y3 = fma(out, _row(old + 192, new + 192, x3, into, decay), y3)
    store_f32x16(y, y0)
    store_f32x16(y + 64, y1)
    store_f32x16(y + 128, y2)
    store_f32x16(y + 192, y3)


def _one(whole: bool) -> Callable[..., object]:
    """One token for the columns of one vector; the same sums as for four."""
    load, store = access(whole)

    @register_jitable
    def one(src, dst, x, b, c, y, step, decay, d, n_rows, lanes):
        x0 = load(x, lanes)
        y0 = d * x0
        x0 = step * x0
        for i in range(n_rows):
            s = fma(splat_f32(load_f32(b + 4 * i)), x0, load(src[0] + i * src[1], lanes) * decay)
            store(dst[0] + i * dst[1], s, lanes)
            y0 = fma(splat_f32(load_f32(c + 4 * i)), s, y0)
        store(y, y0, lanes)

    return one


def _scan() -> Callable[..., object]:
    """All tokens of a sequence, for columns low .. high - 1 of a head."""
    whole, part = _one(True), _one(False)

    @register_jitable
    def scan(a, seq, head, low, high, scratch):
        first, n = tokens_of(a.step, seq)
        save = first_save(a.step, seq)
        at = 4 * (head * a.state_dim * a.head_dim + low)  # of a slot
        before = state_before(a.step, seq, a.states, a.ld_states)
        src = (before + at, 4 * a.head_dim) if before != 0 else (scratch, 0)
        of_head = a.of_heads + 4 * head
        decay_rate, d = load_f32(of_head), splat_f32(load_f32(of_head + 4 * a.n_heads))
        bias = load_f32(of_head + 8 * a.n_heads)
        group = 4 * a.state_dim * (head * a.n_groups // a.n_heads)
        column = 4 * (head * a.head_dim + low)
        for t in range(first, first + n):
            slot = save_of(a.step, save, t + 1 - first, a.states, a.ld_states)
            dst = (slot + at, 4 * a.head_dim) if slot != 0 else (scratch + _ROW, _ROW)
            save += 1 if slot != 0 else 0
            step = softplus(splat_f32(load_f32(a.dt + t * a.ld_dt + 4 * head) + bias))
            decay = exp_f32(step * splat_f32(decay_rate))
            x, y = a.x + t * a.ld_x + column, a.y + t * a.ld_y + column
            b, c = a.b + t * a.ld_b + group, a.c + t * a.ld_c + group
            if high - low == 16 * MOST_VECTORS:
                _four(src, dst, x, b, c, y, step, decay, d, a.state_dim)
            else:
                for i in range(0, high - low, 16):
                    old, new, lanes = (src[0] + 4 * i, src[1]), (dst[0] + 4 * i, dst[1]), high - low - i
                    if lanes >= 16:
                        whole(old, new, x + 4 * i, b, c, y + 4 * i, step, decay, d, a.state_dim, 16)
                    else:
                        part(old, new, x + 4 * i, b, c, y + 4 * i, step, decay, d, a.state_dim, lanes)
            src = dst

    return scan


def scan_2() -> Callable[[int, int, int], None]:
    """One item is some columns of a head of a sequence, over all of its tokens."""
    scan = _scan()

    def k(args, thread, n_threads):
        a = read_2(args)
        scratch = a.scratch + thread * a.ld_scratch
        _zeros(scratch)
        n_seqs = load_i64(a.step + 32)
        n_vectors = (a.head_dim + 15) // 16
        at_once = vectors_at_once(n_vectors, n_seqs * a.n_heads, n_threads, MOST_VECTORS)
        blocks = (n_vectors + at_once - 1) // at_once
        n = n_seqs * a.n_heads * blocks
        while True:
            item = atomic_add(a.counter, 1)
            if item >= n:
                break
            low = item % blocks * at_once * 16
            high = min(low + at_once * 16, a.head_dim)
            scan(a, item // (a.n_heads * blocks), item // blocks % a.n_heads, low, high, scratch)

    return k
