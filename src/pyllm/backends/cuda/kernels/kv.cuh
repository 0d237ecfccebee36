// How keys and values lie in memory, and where a sequence's positions are.
//
// A cache holds pages of PAGE positions (a multiple of 16). A page's heads follow one another; a head's part of a page
// is PAGE rows of `width` elements (head size, padded with zeros to a multiple of 4, 16 or 32), and after them, where
// elements are bytes, a half for each 32 of a row: its scale. KV says what elements are.
#pragma once
#include "common.cuh"

#define KV_F32 0
#define KV_F16 1
#define KV_Q8 2

#if KV == KV_F32
#define KV_PAD 4
#define KV_BYTES 4
#elif KV == KV_F16
#define KV_PAD 16
#define KV_BYTES 2
#else
#define KV_PAD 32
#define KV_BYTES 1
#endif

static_assert(PAGE % 16 == 0, "16 positions that start at a multiple of 16 lie in one page");

DEVICE constexpr int padded(int size) { return (size + KV_PAD - 1) / KV_PAD * KV_PAD; }
DEVICE constexpr int scale_bytes(int width) { return KV == KV_Q8 ? width / 32 * 2 : 0; }

// Bytes of one head in one page.
DEVICE constexpr int head_bytes(int width) { return PAGE * (width * KV_BYTES + scale_bytes(width)); }

// Where one head's rows of a page start in a cache.
template <int width> DEVICE u64 head_offset(int page, int n_heads, int head) {
    constexpr int bytes = head_bytes(width);
    return ((u64)page * n_heads + head) * bytes;
}

// Where the scales of row `row` are, from the start of a head's part of a page.
template <int width> DEVICE int scales_at(int row) { return PAGE * width + row * scale_bytes(width); }

// What a half can hold, NaN included: a page that is used again must not bring anything but numbers.
DEVICE float finite_half(float x) { return fmaxf(fminf(x, 65504.0f), -65504.0f); }
