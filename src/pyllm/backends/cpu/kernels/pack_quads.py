"""Where the integers of one row and group of 32 columns go in a panel: by bits, as `layouts.py` shows.

They come as eight words, one for each quad of four columns: a byte an integer, the first column's lowest.
`store4(q, r, …)` stores words of 4-bit integers of row r in the group at q.
"""

from __future__ import annotations

from numba.extending import register_jitable

from pyllm.jit.simd import load_i32, store_i32

LOW = 0x0F0F0F0F
TWO = 0x03030303
ONE = 0x01010101


@register_jitable
def u32(p):
    return load_i32(p) & 0xFFFFFFFF


@register_jitable
def spread_bits(x):
    """Four bits as the bytes of a word."""
    return (x * 0x204081) & ONE


@register_jitable
def store1(q, r, a, b, c, d, e, f, g, h):
    store_i32(q + 4 * r, a | b << 1 | c << 2 | d << 3 | e << 4 | f << 5 | g << 6 | h << 7)


@register_jitable
def store2(q, r, a, b, c, d, e, f, g, h):
    store_i32(q + 4 * r, a | b << 2 | c << 4 | d << 6)
    store_i32(q + 64 + 4 * r, e | f << 2 | g << 4 | h << 6)


@register_jitable
def store3(q, r, a, b, c, d, e, f, g, h):
    both = d | h << 4
    for i in range(3):
        x, y = (a, e) if i == 0 else (b, f) if i == 1 else (c, g)
        store_i32(q + 64 * i + 4 * r, x | y << 4 | (both >> i & 0x11111111) << 3)


@register_jitable
def store4(q, r, a, b, c, d, e, f, g, h):
    store_i32(q + 4 * r, a | e << 4)
    store_i32(q + 64 + 4 * r, b | f << 4)
    store_i32(q + 128 + 4 * r, c | g << 4)
    store_i32(q + 192 + 4 * r, d | h << 4)


@register_jitable
def _store_low4(q, r, a, b, c, d, e, f, g, h):
    store4(q, r, a & LOW, b & LOW, c & LOW, d & LOW, e & LOW, f & LOW, g & LOW, h & LOW)


@register_jitable
def store5(q, r, a, b, c, d, e, f, g, h):
    _store_low4(q, r, a, b, c, d, e, f, g, h)
    m = 0x10101010
    store1(
        q + 256, r, (a & m) >> 4, (b & m) >> 4, (c & m) >> 4, (d & m) >> 4, (e & m) >> 4, (f & m) >> 4, (g & m) >> 4,
        (h & m) >> 4,
    )  # fmt: skip


@register_jitable
def store6(q, r, a, b, c, d, e, f, g, h):
    _store_low4(q, r, a, b, c, d, e, f, g, h)
    m = 0x30303030
    store2(
        q + 256, r, (a & m) >> 4, (b & m) >> 4, (c & m) >> 4, (d & m) >> 4, (e & m) >> 4, (f & m) >> 4, (g & m) >> 4,
        (h & m) >> 4,
    )  # fmt: skip


@register_jitable
def store8(q, r, a, b, c, d, e, f, g, h):
    for i, word in enumerate((a, b, c, d, e, f, g, h)):
        store_i32(q + 64 * i + 4 * r, word)
