"""Cutting text into words by an automaton (`pyllm.tokenizers.compiled.automaton`), whose tables grow on demand."""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import register_jitable

from pyllm.jit.simd import load_i32, load_i64, load_u8, store_i32, store_i64

STRIDE = 64
"""Entries of a state: one for each class of characters."""
DONE, FULL, NEEDS_CLASS, NEEDS_START, NEEDS_STEP = 0, 1, 2, 3, 4


@register_jitable
def width_of(byte):
    """Bytes of the character that begins with this one."""
    if byte < 0x80:
        return 1
    if byte < 0xE0:
        return 2
    if byte < 0xF0:
        return 3
    return 4


@register_jitable
def code_at(text, width):
    b = load_u8(text)
    if width == 1:
        return b
    if width == 2:
        return ((b & 0x1F) << 6) | (load_u8(text + 1) & 0x3F)
    if width == 3:
        return ((b & 0x0F) << 12) | ((load_u8(text + 1) & 0x3F) << 6) | (load_u8(text + 2) & 0x3F)
    return (
        ((b & 0x07) << 18)
        | ((load_u8(text + 1) & 0x3F) << 12)
        | ((load_u8(text + 2) & 0x3F) << 6)
        | (load_u8(text + 3) & 0x3F)
    )


def split() -> Callable[[int, int, int], None]:
    """Cut pieces of a text: matches and the gaps between them are pieces of their own.

    Slots: text (UTF-8), ends of pieces (int32), number of pieces, classes of characters (uint8 [0x110000], 0 unknown,
    1 is both ends of a piece), start states by the class before (int32 [STRIDE]), steps (int32 [states, STRIDE]: next
    state * 4 + 2 for a match that ends before the character + 1 for known), ends of the pieces made (int32), most of
    them; then what is carried over from call to call: place, class before it, start of the gap, piece, start of the
    piece, pieces made; then what is missing when it stops: why, state or character, class.
    """

    def k(args, thread, n_threads):
        text, ends, n_pieces = load_i64(args), load_i64(args + 8), load_i64(args + 16)
        classes, starts, steps = load_i64(args + 24), load_i64(args + 32), load_i64(args + 40)
        out, capacity = load_i64(args + 48), load_i64(args + 56)
        at, before, gap = load_i64(args + 64), load_i64(args + 72), load_i64(args + 80)
        piece, begin, made = load_i64(args + 88), load_i64(args + 96), load_i64(args + 104)
        why, what, which = DONE, 0, 0
        while piece < n_pieces and why == DONE:
            end = load_i32(ends + 4 * piece)
            while at < end:
                if made + 2 >= capacity:
                    why = FULL
                    break
                state = load_i32(starts + 4 * before)
                if state == 0:
                    why, what = NEEDS_START, before
                    break
                place, last, class_at_last, previous, first, first_width = at, -1, 0, before, 0, 0
                while True:
                    kind, width = 1, 0
                    if place < end:
                        width = width_of(load_u8(text + place))
                        code = code_at(text + place, width)
                        kind = load_u8(classes + code)
                        if kind == 0:
                            why, what = NEEDS_CLASS, code
                            break
                    if place == at:
                        first, first_width = kind, width
                    step = load_i32(steps + 4 * (state * STRIDE + kind))
                    if step == 0:
                        why, what, which = NEEDS_STEP, state, kind
                        break
                    if step & 2:
                        last, class_at_last = place, previous
                    state = step >> 2
                    if state == 0 or width == 0:
                        break
                    previous = kind
                    place += width
                if why != DONE:
                    break
                if last > at:
                    if gap < at:
                        store_i32(out + 4 * made, at)
                        made += 1
                    store_i32(out + 4 * made, last)
                    made += 1
                    at, gap, before = last, last, class_at_last
                else:
                    at, before = at + first_width, first
            if why == DONE:
                if gap < end:
                    store_i32(out + 4 * made, end)
                    made += 1
                piece += 1
                begin, gap, at, before = end, end, end, 1
        store_i64(args + 64, at)
        store_i64(args + 72, before)
        store_i64(args + 80, gap)
        store_i64(args + 88, piece)
        store_i64(args + 96, begin)
        store_i64(args + 104, made)
        store_i64(args + 112, why)
        store_i64(args + 120, what)
        store_i64(args + 128, which)

    return k
