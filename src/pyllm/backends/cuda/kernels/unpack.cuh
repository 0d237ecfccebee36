// Packed weights as kernels read them. A matrix of rows x groups of 32 columns lies in planes, row by row:
//
//   low     the low LOW_BITS of the integers of a group, 4 * LOW_BITS bytes: all of 1, 2, 4, 8 bits, 2 of 3, 4 of 5, 6
//   high    those above, 4 * HIGH_BITS bytes
//   scales  a group's byte scales and minima, SCALE_BYTES
//   floats  a block's floats, FLOAT_BYTES: the scale's, then the minimum's
//
// An octet is 8 columns: what a lane of a matrix product takes. Where integers stand for themselves, each byte of a
// word has parts of 4 columns: quad q (columns 4q to 4q + 3) lies in word q * bits / 8, at bit q * bits % 8 of the
// bytes. Where they are indices of a table, 4-bit integers are nibbles in the columns' order; of 3 bits, octet h's low
// parts are in word h / 2 at bit 2 * (h % 2) of the nibbles, its high parts at bit h of the nibbles of the high word.
// Integers of 8 bits are signed.
//
// Defines: BITS, OFFSET, STEP, N_VALUES with VALUES0 … VALUES3 (four bytes each), MINIMA, BLOCK_GROUPS, SCALES,
// SCALE_COLUMNS, FACTOR. See pyllm/backends/layouts.py for what they mean.
#pragma once
#include "common.cuh"

#define LOW_BITS (BITS == 3 ? 2 : BITS == 5 || BITS == 6 ? 4 : BITS)
#define HIGH_BITS (BITS - LOW_BITS)
#define LOW_BYTES (4 * LOW_BITS)
#define HIGH_BYTES (4 * HIGH_BITS)

#define SCALES_F16 0
#define SCALES_BF16 1
#define SCALES_I8 2
#define SCALES_U4 3
#define SCALES_E4M3 4
#define HALVES (32 / SCALE_COLUMNS)
#define SCALE_BYTES (SCALES == SCALES_I8 ? HALVES * (1 + MINIMA) : SCALES >= SCALES_U4 ? 2 : 0)
#define FLOAT_BYTES (SCALES == SCALES_E4M3 ? 0 : 2 * (1 + MINIMA))
static_assert(SCALE_BYTES <= 2 && BITS <= 8, "scales of a group are at most two bytes");

// --- integers

// Four unsigned bytes below 256 as two pairs of halves, less `offset`; exact.
DEVICE u32 halves_low(u32 bytes, u32 offset) {
    return h2_sub(__byte_perm(bytes, H2_1024, 0x5150), H2_1024 + offset * 0x10001u);
}
DEVICE u32 halves_high(u32 bytes, u32 offset) {
    return h2_sub(__byte_perm(bytes, H2_1024, 0x5352), H2_1024 + offset * 0x10001u);
}

// What is subtracted from the integers of an octet: of those for dot products, and of those for halves.
#define DOT_OFFSET (N_VALUES || BITS == 8 ? 0 : OFFSET)
#define HALF_OFFSET (N_VALUES || BITS == 8 ? 128 : OFFSET)

// Both quads of an octet as bytes, of words that were shifted so that its bits are the lowest: bytes of signed numbers,
// or, where `biased`, of unsigned ones that are HALF_OFFSET too large. `second`: of 8 bits, the second quad's word.
template <bool biased> DEVICE void octet(u32 low, u32 second, u32 high, u32& a, u32& b) {
#if N_VALUES == 16
    constexpr u32 bias = biased ? 0x80808080u : 0;
    u32 index = low & 0x77777777u, top = (low >> 1 & 0x44444444u) | 0x32103210u;
    a = __byte_perm(__byte_perm(VALUES0 ^ bias, VALUES1 ^ bias, index),
                    __byte_perm(VALUES2 ^ bias, VALUES3 ^ bias, index), top);
    b = __byte_perm(__byte_perm(VALUES0 ^ bias, VALUES1 ^ bias, index >> 16),
                    __byte_perm(VALUES2 ^ bias, VALUES3 ^ bias, index >> 16), top >> 16);
#elif N_VALUES == 8
    constexpr u32 bias = biased ? 0x80808080u : 0;
    u32 index = (low & 0x33333333u) | (high << 2 & 0x44444444u);
    a = __byte_perm(VALUES0 ^ bias, VALUES1 ^ bias, index);
    b = __byte_perm(VALUES0 ^ bias, VALUES1 ^ bias, index >> 16);
#elif BITS == 8
    constexpr u32 bias = biased ? 0x80808080u : 0;
    a = low ^ bias;
    b = second ^ bias;
#else
    constexpr u32 low_mask = 0x01010101u * ((1 << LOW_BITS) - 1);
    a = (low & low_mask) * STEP;
    b = (low >> LOW_BITS & low_mask) * STEP;
#if HIGH_BITS
    constexpr u32 high_mask = 0x01010101u * ((1 << HIGH_BITS) - 1);
    a |= (high & high_mask) << LOW_BITS;
    b |= (high >> HIGH_BITS & high_mask) << LOW_BITS;
#endif
#endif
}

// Bits that octet h is shifted by in its low word (number LOW_WORD(h)), and in its high one.
#define LOW_WORD(h) (BITS == 8 ? 2 * (h) : (h) * LOW_BITS / 4)
#define LOW_SHIFT(h) (LOW_BITS == 1 ? 2 * (h) : LOW_BITS == 2 ? (N_VALUES ? 2 : 4) * ((h) % 2) : 0)
#define HIGH_WORD(h) ((h) * HIGH_BITS / 4)
#define HIGH_SHIFT(h) (N_VALUES ? (h) : HIGH_BITS == 1 ? 2 * (h) : 4 * ((h) % 2))

// A group's integers as they lie in memory.
struct Words {
    u32 low[LOW_BITS];
    u32 high[HIGH_BITS ? HIGH_BITS : 1];
};

template <int n> DEVICE void stream_words(const u8* p, u32* words) {
    if constexpr (n == 1) {
        words[0] = stream4(p);
    } else if constexpr (n == 2) {
        uint2 v = stream8(p);
        words[0] = v.x, words[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < n / 4; i++) {
            uint4 v = stream16(p + 16 * i);
            words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
        }
    }
}

// `group`: row * groups + the group in the row; fewer than 2^32, so that an address takes one instruction.
DEVICE void load_words(const u8* low, const u8* high, u32 group, Words& w) {
    stream_words<LOW_BITS>(low + (u64)group * LOW_BYTES, w.low);
    if constexpr (HIGH_BITS > 0) stream_words<HIGH_BITS>(high + (u64)group * HIGH_BYTES, w.high);
}

template <bool biased> DEVICE void octet_of(const Words& w, int h, u32& a, u32& b) {  // h known when compiled
    octet<biased>(w.low[LOW_WORD(h)] >> LOW_SHIFT(h), w.low[BITS == 8 ? 2 * h + 1 : 0],
                  HIGH_BITS ? w.high[HIGH_WORD(h)] >> HIGH_SHIFT(h) : 0, a, b);
}

// --- scales

struct RawScale {
    u32 bytes;   // SCALE_BYTES: scales of both halves, or a scale and its minimum
    u32 floats;  // FLOAT_BYTES
};

// `block`: row * blocks + the block in the row.
DEVICE RawScale load_scale(const u8* scales, const u8* floats, u32 group, u32 block) {
    RawScale r{0, 0};
    if constexpr (SCALE_BYTES == 1) r.bytes = scales[group];
    if constexpr (SCALE_BYTES == 2) r.bytes = reinterpret_cast<const u16*>(scales)[group];
    if constexpr (FLOAT_BYTES == 2) r.floats = reinterpret_cast<const u16*>(floats)[block];
    if constexpr (FLOAT_BYTES == 4) r.floats = reinterpret_cast<const u32*>(floats)[block];
    return r;
}

DEVICE float scale_float(u32 bits) { return SCALES == SCALES_BF16 ? bf16_to_f32((u16)bits) : f16_to_f32((u16)bits); }

// Scale and minimum of a half of a group, or of the whole, without FACTOR.
DEVICE float2 scale_of(RawScale r, int half) {
    float d = scale_float(r.floats & 0xffff), e = MINIMA ? scale_float(r.floats >> 16) : 0.0f;
    u32 byte = HALVES == 2 ? r.bytes >> (8 * half) & 255 : r.bytes & 255;
    if constexpr (SCALES == SCALES_I8)
        return make_float2(d * (float)(s8)byte, MINIMA ? e * (float)(r.bytes >> 8) : 0.0f);
    if constexpr (SCALES == SCALES_U4) return make_float2(d * (float)(byte & 15), e * (float)(byte >> 4));
    if constexpr (SCALES == SCALES_E4M3) return make_float2(f16_to_f32((u16)(byte << 7)), 0.0f);
    return make_float2(d, e);
}
