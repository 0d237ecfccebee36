"""Covering words with tokens: by the longest from the left (WordPiece), or by the best sum of scores (Unigram)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import load_f64, load_i32, load_i64, load_u8, store_f64, store_i8, store_i32, store_i64
from pyllm.tokenizers.compiled.kernels.split import code_at, width_of
from pyllm.tokenizers.compiled.kernels.table import (
    BASE,
    again,
    find,
    hash_of,
    recall,
    remember,
    slot_of,
    times_plus,
)

DONE, LONG, PAUSED = 0, 1, 2
_SPACE = 0x2581


@register_jitable
def _further(h, text, width):
    for i in range(width):
        h = times_plus(h, BASE, load_u8(text + i) + 1)
    return h


@register_jitable
def _begins(filter_, mask, h):
    """Whether a string may begin with what has this hash."""
    bit = slot_of(h) & mask
    return (load_u8(filter_ + (bit >> 3)) >> (bit & 7)) & 1 != 0


def prefixes() -> Callable[[int, int, int], None]:
    """Fill a filter of what strings begin with, themselves included.

    Slots: number of strings, offsets, bytes, filter (bits, zeros), its mask.
    """

    def k(args, thread, n_threads):
        n, offsets, blob = load_i64(args), load_i64(args + 8), load_i64(args + 16)
        filter_, mask = load_i64(args + 24), load_i64(args + 32)
        for i in range(n):
            h = 0
            for at in range(load_i32(offsets + 4 * i), load_i32(offsets + 4 * i + 4)):
                h = times_plus(h, BASE, load_u8(blob + at) + 1)
                bit = slot_of(h) & mask
                store_i8(filter_ + (bit >> 3), load_u8(filter_ + (bit >> 3)) | (1 << (bit & 7)))

    return k


def longest() -> Callable[[int, int, int], None]:
    """Ids of words, each covered from the left by the longest tokens; of a word that is not covered the unknown one.

    Slots: slots and mask of the table of tokens, offsets, bytes, ids (int32), filter of beginnings, its mask, unknown
    token or -1; text, ends of words (int32), number of words, kept words, their mask, ids made (int32), ids made up to
    the end of each word (int32), bytes after which to pause; then what is carried over: word, ids made.
    """

    def k(args, thread, n_threads):
        slots, mask, offsets, blob = load_i64(args), load_i64(args + 8), load_i64(args + 16), load_i64(args + 24)
        ids, filter_, filter_mask, unknown = (
            load_i64(args + 32), load_i64(args + 40), load_i64(args + 48), load_i64(args + 56),
        )  # fmt: skip
        text, ends, n_words = load_i64(args + 64), load_i64(args + 72), load_i64(args + 80)
        kept, kept_mask, out = load_i64(args + 88), load_i64(args + 96), load_i64(args + 104)
        counts, pause = load_i64(args + 112), load_i64(args + 120)
        word, made = load_i64(args + 128), load_i64(args + 136)
        begin = load_i32(ends + 4 * word - 4) if word > 0 else 0
        pause += begin
        while word < n_words and begin < pause:
            end = load_i32(ends + 4 * word)
            h = hash_of(text + begin, end - begin)
            found = recall(kept, kept_mask, h, text, begin, end - begin)
            if found >= 0:
                made += again(out, made, found)
            else:
                first, at = made, begin
                while at < end:
                    part, place, token, stop = 0, at, -1, at
                    while place < end:
                        width = width_of(load_u8(text + place))
                        part = _further(part, text + place, width)
                        if not _begins(filter_, filter_mask, part):
                            break
                        place += width
                        i = find(slots, mask, offsets, blob, part, text + at, place - at)
                        if i >= 0:
                            token, stop = load_i32(ids + 4 * i), place
                    if stop == at:
                        break
                    store_i32(out + 4 * made, token)
                    made += 1
                    at = stop
                if at < end:
                    made = first
                    if unknown >= 0:
                        store_i32(out + 4 * made, unknown)
                        made += 1
                remember(kept, kept_mask, h, begin, end - begin, first, made - first)
            store_i32(counts + 4 * word, made)
            begin = end
            word += 1
        store_i64(args + 128, word)
        store_i64(args + 136, made)

    return k


@register_jitable
def _word_end(text, start, end, crossing, n_crossing):
    """End of the word from `start` on: before a space that follows none, unless a token may go on there."""
    width = width_of(load_u8(text + start))
    before, at = code_at(text + start, width), start + width
    while at < end:
        width = width_of(load_u8(text + at))
        code = code_at(text + at, width)
        if code == _SPACE and before != _SPACE:
            crosses = False
            for i in range(n_crossing):
                crosses = crosses or load_i32(crossing + 4 * i) == before
            if not crosses:
                return at
        before = code
        at += width
    return end


@register_jitable
def _search(args, text, n, best, begin, chosen):
    """The best way to every place of a word: sum of scores, where its last token begins, which string (-1 none)."""
    slots, mask, offsets, blob = load_i64(args), load_i64(args + 8), load_i64(args + 16), load_i64(args + 24)
    filter_, filter_mask = load_i64(args + 40), load_i64(args + 48)
    scores, unknown_score = load_i64(args + 56), load_f64(args + 64)
    for i in range(n + 1):
        store_f64(best + 8 * i, -np.inf)
        store_i32(begin + 4 * i, 0)
        store_i32(chosen + 4 * i, -1)
    store_f64(best, 0.0)
    at = 0
    while at < n:
        here, part, place, single = load_f64(best + 8 * at), 0, at, False
        first = width_of(load_u8(text + at))
        while place < n:
            width = width_of(load_u8(text + place))
            part = _further(part, text + place, width)
            if not _begins(filter_, filter_mask, part):
                break
            place += width
            i = find(slots, mask, offsets, blob, part, text + at, place - at)
            if i >= 0:
                single = single or place == at + first
                total = here + load_f64(scores + 8 * i)
                if total > load_f64(best + 8 * place):
                    store_f64(best + 8 * place, total)
                    store_i32(begin + 4 * place, at)
                    store_i32(chosen + 4 * place, i)
        if not single:
            total = here + unknown_score
            if total > load_f64(best + 8 * (at + first)):
                store_f64(best + 8 * (at + first), total)
                store_i32(begin + 4 * (at + first), at)
                store_i32(chosen + 4 * (at + first), -1)
        at += first


@register_jitable
def _collect(args, text, n, begin, chosen, out):
    """Write the ids of the best way; their number. Unknown characters side by side are one unknown token."""
    ids, byte_ids, unknown = load_i64(args + 32), load_i64(args + 72), load_i64(args + 80)
    made, at = 0, n
    while at > 0:
        start, i = load_i32(begin + 4 * at), load_i32(chosen + 4 * at)
        if i >= 0:
            store_i32(out + 4 * made, load_i32(ids + 4 * i))
            made += 1
        elif byte_ids != 0:
            for j in range(at - 1, start - 1, -1):
                store_i32(out + 4 * made, load_i32(byte_ids + 4 * load_u8(text + j)))
                made += 1
        elif unknown >= 0 and (made == 0 or load_i32(out + 4 * made - 4) != unknown):
            store_i32(out + 4 * made, unknown)
            made += 1
        at = start
    for j in range(made >> 1):  # it was written from the end
        other = made - 1 - j
        token = load_i32(out + 4 * j)
        store_i32(out + 4 * j, load_i32(out + 4 * other))
        store_i32(out + 4 * other, token)
    return made


@register_jitable
def _repeats(out, first, made, count, unknown):
    """Whether the unknown token that the next ids begin with is there already."""
    if count == 0 or made == first or unknown < 0:
        return False
    return load_i32(out + 4 * made) == unknown and load_i32(out + 4 * made - 4) == unknown


def best() -> Callable[[int, int, int], None]:
    """Ids of texts by the best sum of scores, word by word.

    Slots: slots and mask of the table of tokens, offsets, bytes, ids (int32), filter of beginnings, its mask, scores
    (float64), score of an unknown character (float64), ids of bytes (int32 [256]) or 0, unknown token or -1,
    characters from which a token goes on into a space (int32), their number; text, ends of texts (int32), number of
    texts, kept words, their mask, ids made (int32), ids made up to the end of each text (int32), bytes after which to
    pause, sums (float64), beginnings (int32), strings (int32), most bytes of a word; then what is carried over: text,
    place, start of the text in ids, ids made; then why it stopped, bytes of the word.
    """

    def k(args, thread, n_threads):
        unknown, crossing, n_crossing = load_i64(args + 80), load_i64(args + 88), load_i64(args + 96)
        text, ends, n_texts = load_i64(args + 104), load_i64(args + 112), load_i64(args + 120)
        kept, kept_mask, out = load_i64(args + 128), load_i64(args + 136), load_i64(args + 144)
        counts, pause = load_i64(args + 152), load_i64(args + 160)
        sums, begins, chosen, most = (
            load_i64(args + 168), load_i64(args + 176), load_i64(args + 184), load_i64(args + 192),
        )  # fmt: skip
        which, at, first, made = (
            load_i64(args + 200), load_i64(args + 208), load_i64(args + 216), load_i64(args + 224),
        )  # fmt: skip
        pause += at
        why, needed = DONE, 0
        while which < n_texts and why == DONE:
            end = load_i32(ends + 4 * which)
            while at < end:
                if at >= pause:
                    why = PAUSED
                    break
                stop = _word_end(text, at, end, crossing, n_crossing)
                n = stop - at
                h = hash_of(text + at, n)
                found = recall(kept, kept_mask, h, text, at, n)
                if found >= 0:
                    count = again(out, made, found)
                elif n > most:
                    why, needed = LONG, n
                    break
                else:
                    _search(args, text + at, n, sums, begins, chosen)
                    count = _collect(args, text + at, n, begins, chosen, out + 4 * made)
                if _repeats(out, first, made, count, unknown):
                    count -= 1
                    for i in range(count):
                        store_i32(out + 4 * (made + i), load_i32(out + 4 * (made + i + 1)))
                    found = 0  # what was written is not all of the word
                if found < 0:
                    remember(kept, kept_mask, h, at, n, made, count)
                made += count
                at = stop
            if why == DONE:
                store_i32(counts + 4 * which, made)
                which += 1
                first = made
        store_i64(args + 200, which)
        store_i64(args + 208, at)
        store_i64(args + 216, first)
        store_i64(args + 224, made)
        store_i64(args + 232, why)
        store_i64(args + 240, needed)

    return k
