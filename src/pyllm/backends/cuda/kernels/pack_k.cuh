// Super-blocks of 256 columns as they are in GGUF files: part of blocks.cuh. Layouts: pyllm.quant.formats.
#pragma once

// Quad i of group g of 256 integers of two bits, in runs of 32 bytes.
DEVICE u32 pairs(const u8* b, int g, int i) { return u32_at(b + 32 * (g / 4) + 4 * i) >> (2 * (g % 4)) & 0x03030303u; }
// The same of 256 nibbles.
DEVICE u32 halves_of(const u8* b, int g, int i) {
    return u32_at(b + 32 * (g / 2) + 4 * i) >> (4 * (g % 2)) & 0x0f0f0f0fu;
}

#if defined(FORMAT_TQ2_0)
#define BLOCK_BYTES 66
DEVICE u32 block_floats(const u8* b) { return u16_at(b + 64); }
DEVICE u32 block_scale(const u8* b, int g) { return 0; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = pairs(b, g, i);
}

#elif defined(FORMAT_Q2_K)
#define BLOCK_BYTES 84
DEVICE u32 block_floats(const u8* b) { return u32_at(b + 80) ^ 0x80000000u; }  // minima are subtracted
DEVICE u32 block_scale(const u8* b, int g) { return u16_at(b + 2 * g); }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = pairs(b + 16, g, i);
}

#elif defined(FORMAT_Q3_K)
#define BLOCK_BYTES 110
DEVICE u32 block_floats(const u8* b) { return u16_at(b + 108); }
DEVICE u32 scale6(const u8* b, int i) {
    u32 low = b[96 + i % 8] >> (4 * (i / 8)) & 15, high = b[104 + i % 4] >> (2 * (i / 4)) & 3;
    return ((low | high << 4) - 32) & 255;
}
DEVICE u32 block_scale(const u8* b, int g) { return scale6(b, 2 * g) | scale6(b, 2 * g + 1) << 8; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = pairs(b + 32, g, i) | (u32_at(b + 4 * i) >> g & 0x01010101u) << 2;
}

#elif defined(FORMAT_Q4_K) || defined(FORMAT_Q5_K)
DEVICE u32 block_floats(const u8* b) { return u32_at(b) ^ 0x80000000u; }  // minima are subtracted
DEVICE u32 block_scale(const u8* b, int g) {  // scale and minimum of 6 bits
    const u8* s = b + 4;
    if (g < 4) return (s[g] & 63) | (u32)(s[g + 4] & 63) << 8;
    return (s[g + 4] & 15) | (s[g - 4] >> 6) << 4 | (u32)(s[g + 4] >> 4 | (s[g] >> 6) << 4) << 8;
}
#ifdef FORMAT_Q4_K
#define BLOCK_BYTES 144
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = halves_of(b + 16, g, i);
}
#else
#define BLOCK_BYTES 176
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = halves_of(b + 48, g, i) | (u32_at(b + 16 + 4 * i) >> g & 0x01010101u) << 4;
}
#endif

#elif defined(FORMAT_Q6_K)
#define BLOCK_BYTES 210
DEVICE u32 block_floats(const u8* b) { return u16_at(b + 208); }
DEVICE u32 block_scale(const u8* b, int g) { return u16_at(b + 192 + 2 * g); }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
    int half = g / 4, part = g % 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 low = u32_at(b + 64 * half + 32 * (part % 2) + 4 * i) >> (4 * (part / 2)) & 0x0f0f0f0fu;
        q[i] = low | (u32_at(b + 128 + 32 * half + 4 * i) >> (2 * part) & 0x03030303u) << 4;
    }
}

#elif defined(FORMAT_IQ4_XS)
#define BLOCK_BYTES 136
DEVICE u32 block_floats(const u8* b) { return u16_at(b); }
DEVICE u32 block_scale(const u8* b, int g) {
    u32 low = b[4 + g / 2] >> (4 * (g % 2)) & 15, high = u16_at(b + 2) >> (2 * g) & 3;
    return ((low | high << 4) - 32) & 255;
}
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) { nibbles(b + 8 + 16 * g, q); }
#endif
