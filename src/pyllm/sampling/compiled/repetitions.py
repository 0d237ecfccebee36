"""DRY's search: how long a repetition each token would go on with."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import load_i32, load_i64, load_u8, store_i32
from pyllm.sampling.compiled import slots


@register_jitable
def _back(seen, n, i):
    """The token i places before the last of n."""
    return load_i32(seen + 4 * (n - 1 - i))


@register_jitable
def _length_since_breaker(row, seen, n_seen, n):
    """How many of the last n tokens come after the last breaker."""
    flags = load_i64(row + slots.R_BREAKERS)
    if flags == 0:
        return n
    long, n_long = load_i64(row + slots.R_LONG_BREAKERS), load_i64(row + slots.R_N_LONG_BREAKERS)
    for i in range(n):
        token = _back(seen, n_seen, i)
        flag = load_u8(flags + token)
        longest = 0 if flag & 1 else -1
        if flag & 2:
            for j in range(n_long):
                breaker = long + 4 * slots.LONG_BREAKER * j
                length = load_i32(breaker) - 1
                if load_i32(breaker + 4) != token or length > i or length <= longest:
                    continue
                same = 0
                while same < length and load_i32(breaker + 8 + 4 * same) == _back(seen, n_seen, i - 1 - same):
                    same += 1
                if same == length:
                    longest = length
        if longest >= 0:
            return i - longest
    return n


@register_jitable
def longest_repeats(s, most, allowed):
    """COUNTS of tokens that followed an earlier occurrence of the last tokens: how many these were, at least
    `allowed`. How many tokens have one, which TOUCHED lists. Breakers of a single token have none."""
    row = load_i64(s + slots.ROW)
    seen, n_seen = load_i64(row + slots.R_SEEN), load_i64(row + slots.R_N_SEEN)
    n = n_seen if most >= n_seen else np.int64(most)
    if n <= allowed:
        return 0
    limit = _length_since_breaker(row, seen, n_seen, n)
    if limit < allowed:
        return 0
    flags = load_i64(row + slots.R_BREAKERS)
    repeats, counts, touched = load_i64(s + slots.REPEATS), load_i64(s + slots.COUNTS), load_i64(s + slots.TOUCHED)
    found, left, right = 0, 0, -1
    # The Z-algorithm over the tokens in reverse: repeats[k] is how many of the last tokens also end k places earlier.
    for k in range(1, n):
        length = 0
        if k <= right:
            length = min(load_i32(repeats + 4 * (k - left)), right - k + 1)
        if k > right or k + length > right:
            while k + length < n and _back(seen, n_seen, length) == _back(seen, n_seen, k + length):
                length += 1
            if length > 0:
                left, right = k, k + length - 1
        store_i32(repeats + 4 * k, length)
        length = min(length, limit)
        if length >= allowed:
            token = _back(seen, n_seen, k - 1)
            if flags != 0 and load_u8(flags + token) & 1:
                continue
            longest = load_i32(counts + 4 * token)
            if longest == 0:
                store_i32(touched + 4 * found, token)
                found += 1
            store_i32(counts + 4 * token, max(longest, length))
    return found
