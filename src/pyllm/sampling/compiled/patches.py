"""Changing the logits of some tokens: in the caller's row, where it may be written to, and put back at the end."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    store_f32,
    store_f32x16,
    store_i32,
    store_i64,
)
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.state import LARGEST, NOTHING, logit, set_dense


@register_jitable
def clipped(before, after):
    """A changed logit: a large number does not become an infinite one, and what is forbidden stays so."""
    if not before > NOTHING:
        return NOTHING
    return np.float32(min(max(after, np.float64(-LARGEST)), np.float64(LARGEST)))


@register_jitable
def copy_row(s):
    """Go on with a copy of the logits of all tokens."""
    x, n, to = load_i64(s + slots.X), load_i64(s + slots.N), load_i64(s + slots.COPY)
    full = n // 16 * 16
    for i in range(0, full, 16):
        store_f32x16(to + 4 * i, load_f32x16(x + 4 * i))
    for i in range(full, n):
        store_f32(to + 4 * i, load_f32(x + 4 * i))
    set_dense(s, to, n)
    store_i64(s + slots.OWN, 1)


@register_jitable
def prepare(s, n):
    """Make sure that n logits can be patched. Looks X up anew who held it."""
    if n == 0 or load_i64(s + slots.OWN) != 0:
        return
    row = load_i64(s + slots.ROW)
    if load_i64(row + slots.R_WRITABLE) == 0 or load_i64(s + slots.N_SAVED) + n > slots.MOST_SAVED:
        copy_row(s)


@register_jitable
def patch(s, place, value):
    """Change the logit at a place; what it was is noted where the row is the caller's."""
    at = load_i64(s + slots.X) + 4 * place
    if load_i64(s + slots.OWN) == 0:
        n = load_i64(s + slots.N_SAVED)
        note = load_i64(s + slots.SAVED) + 8 * n
        store_i32(note, place)
        store_f32(note + 4, load_f32(at))
        store_i64(s + slots.N_SAVED, n + 1)
    store_f32(at, value)
    store_i64(s + slots.TOP_KNOWN, 0)
    store_i64(s + slots.ORDER, slots.AS_THEY_ARE)


@register_jitable
def put_back(s):
    """The caller's row as it was."""
    x, saved = load_i64(load_i64(s + slots.ROW) + slots.R_X), load_i64(s + slots.SAVED)
    for i in range(load_i64(s + slots.N_SAVED) - 1, -1, -1):
        store_f32(x + 4 * load_i32(saved + 8 * i), load_f32(saved + 8 * i + 4))


@register_jitable
def count_window(s, most):
    """COUNTS of the last `most` tokens seen; how many different ones there are, which TOUCHED lists."""
    row = load_i64(s + slots.ROW)
    seen, n = load_i64(row + slots.R_SEEN), load_i64(row + slots.R_N_SEEN)
    counts, touched, found = load_i64(s + slots.COUNTS), load_i64(s + slots.TOUCHED), 0
    first = 0 if most >= n else n - np.int64(most)
    for i in range(first, n):
        token = load_i32(seen + 4 * i)
        count = load_i32(counts + 4 * token)
        if count == 0:
            store_i32(touched + 4 * found, token)
            found += 1
        store_i32(counts + 4 * token, count + 1)
    return found


@register_jitable
def forget_counts(s, found):
    """COUNTS are 0 again."""
    counts, touched = load_i64(s + slots.COUNTS), load_i64(s + slots.TOUCHED)
    for i in range(found):
        store_i32(counts + 4 * load_i32(touched + 4 * i), 0)


@register_jitable
def add_biases(s):
    """What the row's settings add to logits, and what they forbid."""
    row = load_i64(s + slots.ROW)
    ids, bias, n = load_i64(row + slots.R_BIAS_IDS), load_i64(row + slots.R_BIAS), load_i64(row + slots.R_N_BIAS)
    banned, n_banned = load_i64(row + slots.R_BANNED), load_i64(row + slots.R_N_BANNED)
    if n + n_banned == 0:
        return
    prepare(s, n + n_banned)
    if load_i64(s + slots.IDS) == 0:
        for i in range(n):
            token = load_i32(ids + 4 * i)
            patch(s, token, logit(load_i64(s + slots.X), token) + load_f32(bias + 4 * i))
        for i in range(n_banned):
            patch(s, load_i32(banned + 4 * i), NOTHING)
        return
    # Candidates by their tokens: the number of each token's bias, or -1.
    counts, tokens, x = load_i64(s + slots.COUNTS), load_i64(s + slots.IDS), load_i64(s + slots.X)
    for i in range(n):
        store_i32(counts + 4 * load_i32(ids + 4 * i), i + 1)
    for i in range(n_banned):
        store_i32(counts + 4 * load_i32(banned + 4 * i), -1)
    for i in range(load_i64(s + slots.N)):
        number = load_i32(counts + 4 * load_i32(tokens + 4 * i))
        if number > 0:
            patch(s, i, logit(x, i) + load_f32(bias + 4 * number - 4))
        elif number < 0:
            patch(s, i, NOTHING)
    for i in range(n):
        store_i32(counts + 4 * load_i32(ids + 4 * i), 0)
    for i in range(n_banned):
        store_i32(counts + 4 * load_i32(banned + 4 * i), 0)
