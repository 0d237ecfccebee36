"""Merging a word's symbols, cheapest pair first, of equal ones the leftmost: byte-pair encoding and SentencePiece's.

A symbol is where its bytes are and a token's id, or -1. What two symbols become is asked of a table of pairs of ids
(BPE) or of the table of tokens, by the bytes of both (SentencePiece).
"""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import register_jitable

from pyllm.jit.simd import load_i32, load_i64, load_u8, store_i8, store_i32, store_i64
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

SLOTS = 32
"""Slots before those of `encode`: the vocabulary's, the same in all calls."""
SYMBOL = 48
"""Bytes of a symbol: start, length, before, after, id, cost and id of the pair that it begins (int32), unused, hash
(int64), unused."""
NEVER = 0x7FFFFFFF
DONE, LONG, PAUSED = 0, 1, 2
_NONE = -1
_FEW = 40
"""Symbols up to which looking at all of them finds the next pair sooner than a heap does."""
_LOW = 0xFFFFFFFF


@register_jitable
def _pair_of(pairs, mask, a, b):
    """Rank << 32 | id of a pair of ids, -1 for none. Slots are two int64: both ids + 1, and that."""
    key = ((a + 1) << 32) | (b + 1)
    at = slot_of(key) & mask
    while True:
        found = load_i64(pairs + 16 * at)
        if found == key:
            return load_i64(pairs + 16 * at + 8)
        if found == 0:
            return -1
        at = (at + 1) & mask


@register_jitable
def _find_token(args, h, text, n):
    i = find(load_i64(args), load_i64(args + 8), load_i64(args + 24), load_i64(args + 32), h, text, n)
    return i if i < 0 else load_i32(load_i64(args + 40) + 4 * i)


@register_jitable
def _look(args, text, a, b, joined_by_text):
    """Store what the pair of the symbols `a` and `b` becomes."""
    cost, token = NEVER, _NONE
    if joined_by_text:
        n = load_i32(a + 4) + load_i32(b + 4)
        if n <= load_i64(args + 88):
            power = load_i64(load_i64(args + 80) + 8 * load_i32(b + 4))
            h = times_plus(load_i64(a + 32), power, load_i64(b + 32))
            start = text + load_i32(a)
            i = find(load_i64(args), load_i64(args + 8), load_i64(args + 24), load_i64(args + 32), h, start, n)
            if i >= 0:
                cost, token = load_i32(load_i64(args + 72) + 4 * i), load_i32(load_i64(args + 40) + 4 * i)
    elif load_i32(a + 16) >= 0 and load_i32(b + 16) >= 0:
        found = _pair_of(load_i64(args + 48), load_i64(args + 56), load_i32(a + 16), load_i32(b + 16))
        if found >= 0:
            cost, token = found >> 32, found & _LOW
    store_i32(a + 20, cost)
    store_i32(a + 24, token)


@register_jitable
def _push(heap, n, key):
    i = n
    while i > 0:
        parent = (i - 1) >> 1
        above = load_i64(heap + 8 * parent)
        if above <= key:
            break
        store_i64(heap + 8 * i, above)
        i = parent
    store_i64(heap + 8 * i, key)


@register_jitable
def _pop(heap, n):
    """Take the least of `n` away; the others are a heap again."""
    key = load_i64(heap + 8 * (n - 1))
    n -= 1
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and load_i64(heap + 8 * child + 8) < load_i64(heap + 8 * child):
            child += 1
        below = load_i64(heap + 8 * child)
        if below >= key:
            break
        store_i64(heap + 8 * i, below)
        i = child
    store_i64(heap + 8 * i, key)


@register_jitable
def _join(args, text, symbols, i, joined_by_text):
    """Merge symbol `i` with the one after it, and look at the pairs on both sides."""
    a = symbols + SYMBOL * i
    b = symbols + SYMBOL * load_i32(a + 12)
    if joined_by_text:
        power = load_i64(load_i64(args + 80) + 8 * load_i32(b + 4))
        store_i64(a + 32, times_plus(load_i64(a + 32), power, load_i64(b + 32)))
    store_i32(a + 4, load_i32(a + 4) + load_i32(b + 4))
    store_i32(a + 16, load_i32(a + 24))
    store_i32(b + 20, NEVER)
    after, before = load_i32(b + 12), load_i32(a + 8)
    store_i32(a + 12, after)
    store_i32(a + 20, NEVER)
    if after >= 0:
        store_i32(symbols + SYMBOL * after + 8, i)
        _look(args, text, a, symbols + SYMBOL * after, joined_by_text)
    if before >= 0:
        _look(args, text, symbols + SYMBOL * before, a, joined_by_text)


@register_jitable
def _merge_few(args, text, symbols, joined_by_text):
    while True:
        best, chosen, i = NEVER, _NONE, 0
        while i >= 0:
            cost = load_i32(symbols + SYMBOL * i + 20)
            if cost < best:
                best, chosen = cost, i
            i = load_i32(symbols + SYMBOL * i + 12)
        if chosen < 0:
            return
        _join(args, text, symbols, chosen, joined_by_text)


@register_jitable
def _merge_many(args, text, symbols, n, heap, joined_by_text):
    count = 0
    for i in range(n):
        cost = load_i32(symbols + SYMBOL * i + 20)
        if cost != NEVER:
            _push(heap, count, (cost << 32) | i)
            count += 1
    while count > 0:
        key = load_i64(heap)
        _pop(heap, count)
        count -= 1
        i = key & _LOW
        a = symbols + SYMBOL * i
        if load_i32(a + 20) != key >> 32:
            continue  # the pair was merged meanwhile, or is another one
        _join(args, text, symbols, i, joined_by_text)
        if load_i32(a + 20) != NEVER:
            _push(heap, count, (load_i32(a + 20) << 32) | i)
            count += 1
        before = load_i32(a + 8)
        if before >= 0 and load_i32(symbols + SYMBOL * before + 20) != NEVER:
            _push(heap, count, (load_i32(symbols + SYMBOL * before + 20) << 32) | before)
            count += 1


@register_jitable
def _symbols_of(args, text, start, end, symbols, bytes_apart, joined_by_text):
    """Make a symbol of each byte or character; their number."""
    n, at = 0, start
    while at < end:
        width = 1 if bytes_apart else width_of(load_u8(text + at))
        s = symbols + SYMBOL * n
        store_i32(s, at)
        store_i32(s + 4, width)
        store_i32(s + 8, n - 1)
        store_i32(s + 12, n + 1)
        store_i32(s + 20, NEVER)
        h = hash_of(text + at, width)
        store_i64(s + 32, h)
        if width == 1:
            store_i32(s + 16, load_i32(load_i64(args + 64) + 4 * load_u8(text + at)))
        else:
            store_i32(s + 16, _find_token(args, h, text + at, width))
        if n > 0:
            _look(args, text, s - SYMBOL, s, joined_by_text)
        at += width
        n += 1
    store_i32(symbols + SYMBOL * (n - 1) + 12, _NONE)
    return n


@register_jitable
def _emit(args, text, symbols, out):
    """Write the ids of the symbols that remain; their number."""
    made, i = 0, 0
    byte_ids, unknown = load_i64(args + 96), load_i64(args + 104)
    while i >= 0:
        s = symbols + SYMBOL * i
        token = load_i32(s + 16)
        if token >= 0:
            store_i32(out + 4 * made, token)
            made += 1
        elif byte_ids != 0:
            start, n, missing = text + load_i32(s), load_i32(s + 4), 0
            for j in range(n):
                if load_i32(byte_ids + 4 * load_u8(start + j)) < 0:
                    missing += 1
            if missing != 0 and unknown >= -1:
                if unknown >= 0:
                    store_i32(out + 4 * made, unknown)
                    made += 1
            else:
                for j in range(n):
                    token = load_i32(byte_ids + 4 * load_u8(start + j))
                    if token >= 0:
                        store_i32(out + 4 * made, token)
                        made += 1
        i = load_i32(s + 12)
    return made


@register_jitable
def _border(args, text, start, end):
    """End of the symbols from `start` on that may merge with each other: no token has the two characters around it."""
    filter_, mask = load_i64(args + 112), load_i64(args + 120)
    width = width_of(load_u8(text + start))
    left, at = code_at(text + start, width), start + width
    while at < end:
        width = width_of(load_u8(text + at))
        right = code_at(text + at, width)
        bit = slot_of(times_plus(left, BASE, right)) & mask
        if (load_u8(filter_ + (bit >> 3)) >> (bit & 7)) & 1 == 0:
            return at
        left = right
        at += width
    return end


def encode(bytes_apart: int, joined_by_text: int) -> Callable[[int, int, int], None]:
    """Ids of words. Equal words of a text are merged once.

    Slots 0..31: slots and mask of the table of tokens, unused, offsets, bytes, ids of its strings (int32); pairs and
    their mask; ids of single bytes (int32 [256]); costs of strings (int32), powers of BASE (int64), longest string in
    bytes; ids for the bytes of what is no token (int32 [256]) or 0; unknown token, -1 for none, -2 for leaving out
    bytes without an id; filter of neighbours (bits) or 0, and its mask; whether a word that is a token is not merged
    (1 all, 2 those of newlines).
    Then: text, ends of words (int32), number of words, kept words (4 int64 each), their mask, symbols, heap, most
    symbols, ids (int32), ids made up to the end of each word (int32), bytes after which to pause; then what is carried
    over: word, place in it, ids made; then why it stopped, symbols needed.
    """

    def k(args, thread, n_threads):
        a = args + 8 * SLOTS
        text, ends, n_words = load_i64(a), load_i64(a + 8), load_i64(a + 16)
        kept, kept_mask = load_i64(a + 24), load_i64(a + 32)
        symbols, heap, most, out = load_i64(a + 40), load_i64(a + 48), load_i64(a + 56), load_i64(a + 64)
        counts, pause = load_i64(a + 72), load_i64(a + 80)
        word, at, made = load_i64(a + 88), load_i64(a + 96), load_i64(a + 104)
        pause += at
        filtered, whole = load_i64(args + 112) != 0, load_i64(args + 128)
        why, needed = DONE, 0
        while word < n_words and why == DONE:
            end = load_i32(ends + 4 * word)
            while at < end:
                if at >= pause:
                    why = PAUSED
                    break
                as_whole = whole == 1 or (whole == 2 and load_u8(text + at) == 10)
                stop = _border(args, text, at, end) if filtered and not as_whole else end
                n = stop - at
                h = hash_of(text + at, n)
                found = recall(kept, kept_mask, h, text, at, n)
                if found >= 0:
                    made += again(out, made, found)
                    at = stop
                    continue
                token = _find_token(args, h, text + at, n) if as_whole else _NONE
                count = 1
                if token >= 0:
                    store_i32(out + 4 * made, token)
                else:
                    if n > most:
                        why, needed = LONG, n
                        break
                    size = _symbols_of(args, text, at, stop, symbols, bytes_apart != 0, joined_by_text != 0)
                    if size <= _FEW:
                        _merge_few(args, text, symbols, joined_by_text != 0)
                    else:
                        _merge_many(args, text, symbols, size, heap, joined_by_text != 0)
                    count = _emit(args, text, symbols, out + 4 * made)
                remember(kept, kept_mask, h, at, n, made, count)
                made += count
                at = stop
            if why == DONE:
                store_i32(counts + 4 * word, made)
                word += 1
        store_i64(a + 88, word)
        store_i64(a + 96, at)
        store_i64(a + 104, made)
        store_i64(a + 112, why)
        store_i64(a + 120, needed)

    return k


def pairs(bytes_apart: int) -> Callable[[int, int, int], None]:
    """Fill a table of pairs from merges, texts "left right" in order of their rank.

    Slots: slots, mask, unused, offsets, bytes and ids of the table of tokens; pairs (two int64 each, zeros) and their
    mask; number of merges, offsets (int32 [n + 1]), bytes (UTF-8), bytes of the characters below 0x200 in the
    byte-level alphabet (int32, -1 none), room for the longest merge; then the number of merges that are no two tokens
    that make a third.
    """

    def k(args, thread, n_threads):
        table, mask = load_i64(args + 48), load_i64(args + 56)
        n, offsets, blob = load_i64(args + 64), load_i64(args + 72), load_i64(args + 80)
        alphabet, room = load_i64(args + 88), load_i64(args + 96)
        wrong = 0
        for rank in range(n):
            at, end = load_i32(offsets + 4 * rank), load_i32(offsets + 4 * rank + 4)
            size, middle, spaces = 0, 0, 0
            while at < end:
                width = width_of(load_u8(blob + at))
                code = code_at(blob + at, width)
                if code == 32:
                    spaces += 1
                    middle = size
                elif bytes_apart != 0:
                    byte = load_i32(alphabet + 4 * code) if code < 0x200 else -1
                    spaces += 2 if byte < 0 else 0
                    store_i8(room + size, byte)
                    size += 1
                elif code == 0x2581:
                    store_i8(room + size, 32)
                    size += 1
                else:
                    for i in range(width):
                        store_i8(room + size + i, load_u8(blob + at + i))
                    size += width
                at += width
            left = _find_token(args, hash_of(room, middle), room, middle)
            right = _find_token(args, hash_of(room + middle, size - middle), room + middle, size - middle)
            both = _find_token(args, hash_of(room, size), room, size)
            if spaces != 1 or left < 0 or right < 0 or both < 0:
                wrong += 1
            elif _pair_of(table, mask, left, right) < 0:
                key = ((left + 1) << 32) | (right + 1)
                slot = slot_of(key) & mask
                while load_i64(table + 16 * slot) != 0:
                    slot = (slot + 1) & mask
                store_i64(table + 16 * slot, key)
                store_i64(table + 16 * slot + 8, (rank << 32) | both)
        store_i64(args + 104, wrong)

    return k


def neighbours() -> Callable[[int, int, int], None]:
    """Fill a filter of the neighbours in strings.

    Slots: number of strings, offsets, bytes (UTF-8), filter (bits, zeros), its mask.
    """

    def k(args, thread, n_threads):
        n, offsets, blob = load_i64(args), load_i64(args + 8), load_i64(args + 16)
        filter_, mask = load_i64(args + 24), load_i64(args + 32)
        for i in range(n):
            at, end, left = load_i32(offsets + 4 * i), load_i32(offsets + 4 * i + 4), -1
            while at < end:
                width = width_of(load_u8(blob + at))
                right = code_at(blob + at, width)
                if left >= 0:
                    bit = slot_of(times_plus(left, BASE, right)) & mask
                    store_i8(filter_ + (bit >> 3), load_u8(filter_ + (bit >> 3)) | (1 << (bit & 7)))
                left = right
                at += width

    return k
