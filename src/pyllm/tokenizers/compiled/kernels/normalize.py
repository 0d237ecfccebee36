"""Normalizing text before it is cut: BERT's words, SentencePiece's listed replacements."""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import register_jitable

from pyllm.jit.simd import load_i32, load_i64, load_u8, store_i8, store_i32, store_i64
from pyllm.tokenizers.compiled.kernels.split import code_at, width_of

DONE, FULL, NEEDS_CLASS = 0, 1, 2
BLANK, DROPPED, ALONE, LETTER = 1, 2, 3, 4
_SPACE = 0x2581


@register_jitable
def _write(out, at, code):
    """A character in UTF-8; where it ends."""
    if code < 0x80:
        store_i8(out + at, code)
        return at + 1
    if code < 0x800:
        store_i8(out + at, 0xC0 | (code >> 6))
        store_i8(out + at + 1, 0x80 | (code & 0x3F))
        return at + 2
    if code < 0x10000:
        store_i8(out + at, 0xE0 | (code >> 12))
        store_i8(out + at + 1, 0x80 | ((code >> 6) & 0x3F))
        store_i8(out + at + 2, 0x80 | (code & 0x3F))
        return at + 3
    store_i8(out + at, 0xF0 | (code >> 18))
    store_i8(out + at + 1, 0x80 | ((code >> 12) & 0x3F))
    store_i8(out + at + 2, 0x80 | ((code >> 6) & 0x3F))
    store_i8(out + at + 3, 0x80 | (code & 0x3F))
    return at + 4


def words() -> Callable[[int, int, int], None]:
    """Words of texts, each with the vocabulary's sign for a space before it.

    Slots: text (UTF-8), ends of texts (int32), number of texts, classes of characters (uint8 [0x110000]; 0 unknown,
    BLANK, DROPPED, ALONE, LETTER), lower case of letters (int32 [0x110000]), words made (UTF-8), their ends (int32),
    words up to the end of each text (int32); then what is carried over: text, place, bytes made, words made, whether a
    word is open; then why it stopped, character.
    """

    def k(args, thread, n_threads):
        text, ends, n_texts = load_i64(args), load_i64(args + 8), load_i64(args + 16)
        classes, lower = load_i64(args + 24), load_i64(args + 32)
        out, word_ends, counts = load_i64(args + 40), load_i64(args + 48), load_i64(args + 56)
        which, at, made = load_i64(args + 64), load_i64(args + 72), load_i64(args + 80)
        n_words, is_open = load_i64(args + 88), load_i64(args + 96)
        why, what = DONE, 0
        while which < n_texts and why == DONE:
            end = load_i32(ends + 4 * which)
            while at < end:
                width = width_of(load_u8(text + at))
                code = code_at(text + at, width)
                kind = load_u8(classes + code)
                if kind == 0:
                    why, what = NEEDS_CLASS, code
                    break
                at += width
                if kind == DROPPED:
                    continue
                if kind == LETTER:
                    if is_open == 0:
                        made, is_open = _write(out, made, _SPACE), 1
                    made = _write(out, made, load_i32(lower + 4 * code))
                    continue
                if is_open != 0:
                    store_i32(word_ends + 4 * n_words, made)
                    n_words, is_open = n_words + 1, 0
                if kind == ALONE:
                    made = _write(out, _write(out, made, _SPACE), code)
                    store_i32(word_ends + 4 * n_words, made)
                    n_words += 1
            if why == DONE:
                if is_open != 0:
                    store_i32(word_ends + 4 * n_words, made)
                    n_words, is_open = n_words + 1, 0
                store_i32(counts + 4 * which, n_words)
                which += 1
        store_i64(args + 64, which)
        store_i64(args + 72, at)
        store_i64(args + 80, made)
        store_i64(args + 88, n_words)
        store_i64(args + 96, is_open)
        store_i64(args + 104, why)
        store_i64(args + 112, what)

    return k


@register_jitable
def _below(unit):
    """What the place of a unit's branches is found by, in darts-clone's double arrays."""
    return (unit >> 10) << ((unit & 0x200) >> 6)


@register_jitable
def _listed(units, n_units, text, at, end):
    """The longest listed beginning of text[at:end]: length << 32 | place of its replacement, 0 for none."""
    found = 0
    place = _below(load_i32(units) & 0xFFFFFFFF)
    i = at
    while i < end:
        byte = load_u8(text + i)
        place ^= byte
        if place >= n_units:
            break
        unit = load_i32(units + 4 * place) & 0xFFFFFFFF
        if unit & 0x800000FF != byte:
            break
        place ^= _below(unit)
        i += 1
        if (unit >> 8) & 1 != 0 and place < n_units:
            found = ((i - at) << 32) | (load_i32(units + 4 * place) & 0x7FFFFFFF)
    return found


@register_jitable
def _put(out, at, byte):
    """A byte; of a space the three of the vocabulary's sign for one. Where it ends."""
    if byte == 32:
        return _write(out, at, _SPACE)
    store_i8(out + at, byte)
    return at + 1


def replace() -> Callable[[int, int, int], None]:
    """Replace what a table lists, the longest first; then blanks, if asked for: one for several, none at the ends.

    Slots: text (UTF-8), ends of texts (int32), number of texts, units of the table (uint32), their number, replacements
    (each ends with a zero byte), their bytes, whether to merge blanks, whether to put one before each text; text made,
    its room, ends of the texts made (int32); then what is carried over: text, place, bytes made, start of the text
    made, whether a blank waits; then why it stopped.
    """

    def k(args, thread, n_threads):
        text, ends, n_texts = load_i64(args), load_i64(args + 8), load_i64(args + 16)
        units, n_units = load_i64(args + 24), load_i64(args + 32)
        texts, n_bytes = load_i64(args + 40), load_i64(args + 48)
        merge, prefix = load_i64(args + 56) != 0, load_i64(args + 64) != 0
        out, room, new_ends = load_i64(args + 72), load_i64(args + 80), load_i64(args + 88)
        which, at, made = load_i64(args + 96), load_i64(args + 104), load_i64(args + 112)
        begin, waits = load_i64(args + 120), load_i64(args + 128)
        why = DONE
        while which < n_texts and why == DONE:
            end = load_i32(ends + 4 * which)
            while at < end:
                found = _listed(units, n_units, text, at, end) if n_units > 0 else 0
                source, n = text + at, width_of(load_u8(text + at))
                step = n
                if found > 0:
                    first = found & 0xFFFFFFFF
                    last = first
                    while last < n_bytes and load_u8(texts + last) != 0:
                        last += 1
                    source, n, step = texts + first, last - first, found >> 32
                if made + 3 * n + 6 > room:
                    why = FULL
                    break
                for i in range(n):
                    byte = load_u8(source + i)
                    if merge and byte == 32:
                        waits = 1 if made > begin else 0
                        continue
                    if made == begin and prefix:
                        made = _put(out, made, 32)
                    if waits != 0:
                        made, waits = _put(out, made, 32), 0
                    made = _put(out, made, byte)
                at += step
            if why == DONE:
                store_i32(new_ends + 4 * which, made)
                which += 1
                begin, waits = made, 0
        store_i64(args + 96, which)
        store_i64(args + 104, at)
        store_i64(args + 112, made)
        store_i64(args + 120, begin)
        store_i64(args + 128, waits)
        store_i64(args + 136, why)

    return k
