// Super-blocks with codebooks as they are in GGUF files: part of blocks.cuh. Layouts: pyllm.quant.formats.
// `book` has a byte for each value of the codebook: its rank among the values that there are. Signs become a bit above.
#pragma once

// Eight codes at p and four bits above each: two words.
DEVICE void eight(const u8* p, u32 signs, int bit, u32& a, u32& b) {
    a = u32_at(p) | spread_bits(signs & 15) << bit;
    b = u32_at(p + 4) | spread_bits(signs >> 4 & 15) << bit;
}
// Eight signs out of seven bits: the number of ones becomes even.
DEVICE u32 even_signs(u32 code) { return code | (__popc(code) & 1) << 7; }
// Scales of four bits that stand for 2 s + 1, those of both halves.
DEVICE u32 odd_scales(u32 byte) { return 2 * (byte & 15) + 1 | (2 * (byte >> 4) + 1) << 8; }

#if defined(FORMAT_IQ2_XXS)
#define BLOCK_BYTES 66
DEVICE u32 block_floats(const u8* b) { return u16_at(b); }
DEVICE u32 block_scale(const u8* b, int g) { return 2 * (b[2 + 8 * g + 7] >> 4) + 1; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
    const u8* p = b + 2 + 8 * g;
    u32 x = u32_at(p + 4);
#pragma unroll
    for (int i = 0; i < 4; i++) eight(book + 8 * p[i], even_signs(x >> (7 * i) & 127), 2, q[2 * i], q[2 * i + 1]);
}

#elif defined(FORMAT_IQ2_XS)
#define BLOCK_BYTES 74
DEVICE u32 block_floats(const u8* b) { return u16_at(b); }
DEVICE u32 block_scale(const u8* b, int g) { return odd_scales(b[66 + g]); }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 x = u16_at(b + 2 + 8 * g + 2 * i);
        eight(book + 8 * (x & 511), even_signs(x >> 9), 2, q[2 * i], q[2 * i + 1]);
    }
}

#elif defined(FORMAT_IQ2_S)
#define BLOCK_BYTES 82
DEVICE u32 block_floats(const u8* b) { return u16_at(b); }
DEVICE u32 block_scale(const u8* b, int g) { return odd_scales(b[74 + g]); }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 index = b[2 + 4 * g + i] | (b[66 + g] >> (2 * i) & 3) << 8;
        eight(book + 8 * index, b[34 + 4 * g + i], 2, q[2 * i], q[2 * i + 1]);
    }
}

#elif defined(FORMAT_IQ3_XXS)
#define BLOCK_BYTES 98
DEVICE u32 block_floats(const u8* b) { return u16_at(b); }
DEVICE u32 block_scale(const u8* b, int g) { return 2 * (b[66 + 4 * g + 3] >> 4) + 1; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
    u32 x = u32_at(b + 66 + 4 * g);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 signs = even_signs(x >> (7 * (i / 2)) & 127) >> (4 * (i % 2)) & 15;
        q[i] = u32_at(book + 4 * b[2 + 8 * g + i]) | spread_bits(signs) << 3;
    }
}

#elif defined(FORMAT_IQ3_S)
#define BLOCK_BYTES 110
DEVICE u32 block_floats(const u8* b) { return u16_at(b); }
DEVICE u32 block_scale(const u8* b, int g) { return 2 * (b[106 + g / 2] >> (4 * (g % 2)) & 15) + 1; }
// Odd numbers from -15 to 15, as halves of what they are above -15.
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 index = b[2 + 8 * g + i] | (b[66 + g] >> i & 1) << 8;
        u32 signs = b[74 + 4 * g + i / 2] >> (4 * (i % 2)) & 15;
        q[i] = (u32_at(book + 4 * index) | 0x08080808u) ^ 15 * spread_bits(signs);
    }
}

#elif defined(FORMAT_IQ1_S)
#define BLOCK_BYTES 50
// weight = d / 8 * (8 n q - n (8 -+ 1)) with n = 2 s + 1 and q in 0 .. 2: integers and minima.
DEVICE u32 block_floats(const u8* b) { return u16_at(b) | (u16_at(b) ^ 0x8000u) << 16; }
DEVICE u32 block_scale(const u8* b, int g) {
    u32 x = u16_at(b + 34 + 2 * g), n = 2 * (x >> 12 & 7) + 1;
    return 8 * n | n * (x >> 15 ? 9 : 7) << 8;
}
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
    u32 x = u16_at(b + 34 + 2 * g);
#pragma unroll
    for (int i = 0; i < 4; i++)
        eight(book + 8 * (b[2 + 4 * g + i] | (x >> (3 * i) & 7) << 8), 0, 2, q[2 * i], q[2 * i + 1]);
}

#elif defined(FORMAT_IQ1_M)
#define BLOCK_BYTES 56
DEVICE u32 block_floats(const u8* b) {
    u32 d = 0;
    for (int i = 0; i < 4; i++) d |= u16_at(b + 48 + 2 * i) >> 12 << (4 * i);
    return d;
}
DEVICE u32 block_scale(const u8* b, int g) {
    u32 x = u16_at(b + 48 + 2 * (g / 2)) >> (6 * (g % 2));
    return 2 * (x & 7) + 1 | (2 * (x >> 3 & 7) + 1) << 8;
}
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 x = b[32 + 2 * g + i / 2] >> (4 * (i % 2));
        eight(book + 8 * (b[4 * g + i] | (x & 7) << 8), x & 8 ? 255 : 0, 2, q[2 * i], q[2 * i + 1]);
    }
}
#endif
