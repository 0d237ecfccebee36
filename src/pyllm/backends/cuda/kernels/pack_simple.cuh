// Blocks of a float scale and small integers as they are in GGUF files: part of blocks.cuh.
// Layouts: pyllm.quant.formats.
#pragma once

#if defined(FORMAT_Q4_0) || defined(FORMAT_IQ4_NL)
#define BLOCK_BYTES 18
DEVICE u32 block_floats(const u8* b) { return u16_at(b); }
DEVICE u32 block_scale(const u8* b, int g) { return 0; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) { nibbles(b + 2, q); }

#elif defined(FORMAT_Q4_1)
#define BLOCK_BYTES 20
DEVICE u32 block_floats(const u8* b) { return u32_at(b); }
DEVICE u32 block_scale(const u8* b, int g) { return 0; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) { nibbles(b + 4, q); }

#elif defined(FORMAT_Q5_0) || defined(FORMAT_Q5_1)
#ifdef FORMAT_Q5_0
#define FLOATS 2
DEVICE u32 block_floats(const u8* b) { return u16_at(b); }
#else
#define FLOATS 4
DEVICE u32 block_floats(const u8* b) { return u32_at(b); }
#endif
#define BLOCK_BYTES (FLOATS + 20)
DEVICE u32 block_scale(const u8* b, int g) { return 0; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
    u32 fifths = u32_at(b + FLOATS);
    nibbles(b + FLOATS + 4, q);
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] |= spread_bits(fifths >> (4 * i) & 15) << 4;
}

#elif defined(FORMAT_Q8_0)
#define BLOCK_BYTES 34
DEVICE u32 block_floats(const u8* b) { return u16_at(b); }
DEVICE u32 block_scale(const u8* b, int g) { return 0; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = u32_at(b + 2 + 4 * i);
}

#elif defined(FORMAT_MXFP4)
#define BLOCK_BYTES 17
// The exponent as a bfloat16, half as large, for values are doubled: 2^-128 and 2^-127 are subnormal.
DEVICE u32 block_floats(const u8* b) { return b[0] < 2 ? 32u << b[0] : (b[0] - 1u) << 7; }
DEVICE u32 block_scale(const u8* b, int g) { return 0; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) { nibbles(b + 1, q); }

#elif defined(FORMAT_NVFP4)
#define BLOCK_BYTES 36
DEVICE u32 block_floats(const u8* b) { return 0; }
DEVICE u32 e4m3(u32 code) { return (code & 127) == 127 ? 0 : code & 127; }
DEVICE u32 block_scale(const u8* b, int g) { return e4m3(b[2 * g]) | e4m3(b[2 * g + 1]) << 8; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {  // 16 columns in 8 bytes: the first 8 columns low
        u32 x = u32_at(b + 4 + 16 * g + 8 * (i / 4) + 4 * (i % 2));
        q[i] = x >> (i / 2 % 2 * 4) & 0x0f0f0f0fu;
    }
}

#elif defined(FORMAT_Q1_0)
#define BLOCK_BYTES 18
DEVICE u32 block_floats(const u8* b) { return u16_at(b); }
DEVICE u32 block_scale(const u8* b, int g) { return 0; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
    u32 bits = u32_at(b + 2 + 4 * g);
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = spread_bits(bits >> (4 * i) & 15);
}

#elif defined(FORMAT_Q2_0)
#define BLOCK_BYTES 18
DEVICE u32 block_floats(const u8* b) { return u16_at(b); }
DEVICE u32 block_scale(const u8* b, int g) { return 0; }
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 x = b[2 + 8 * g + i];
        q[i] = (x | x << 6 | x << 12 | x << 18) & 0x03030303u;
    }
}

#elif defined(FORMAT_TQ1_0)
#define BLOCK_BYTES 54
DEVICE u32 block_floats(const u8* b) { return u16_at(b + 52); }
DEVICE u32 block_scale(const u8* b, int g) { return 0; }
// Digit n of four bytes, each of which is a fraction to the base 3 whose first digit is the highest.
DEVICE u32 digits(const u8* p, int n) {
    u32 y = 0;
    for (int i = 0; i < 4; i++) {
        u32 x = p[i];
        for (int k = 0; k < n; k++) x *= 3;
        y |= ((x & 255) * 3 >> 8) << (8 * i);
    }
    return y;
}
DEVICE void block_group(const u8* b, int g, const u8* book, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int column = 32 * g + 4 * i, rest = column - 160, last = column - 240;
        q[i] = rest < 0   ? digits(b + column % 32, column / 32)
               : last < 0 ? digits(b + 32 + rest % 16, rest / 16)
                          : digits(b + 48, last / 4);
    }
}
#endif
