// Blocks of every format as they are in GGUF files: FORMAT_<name> says which one a kernel is compiled for. Each has
//
//   BLOCK_BYTES
//   u32 block_floats(block)       the floats of the packed block, as `RawScale.floats`
//   u32 block_scale(block, g)     the byte scales of group g, as `RawScale.bytes`
//   block_group(block, g, book, q)  32 columns, 4 in a word: unsigned integers, indices of values, or signed bytes
//
// `block` need not be aligned; `book` is the codebook of formats that have one.
#pragma once
#include "unpack.cuh"

DEVICE u32 u16_at(const u8* p) { return p[0] | p[1] << 8; }
DEVICE u32 u32_at(const u8* p) { return u16_at(p) | u16_at(p + 2) << 16; }

// Four bits as the lowest of four bytes.
DEVICE u32 spread_bits(u32 bits) { return (bits | bits << 7 | bits << 14 | bits << 21) & 0x01010101u; }

// 16 bytes: the low nibbles are the first 16 columns.
DEVICE void nibbles(const u8* p, u32 (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 x = u32_at(p + 4 * i);
        q[i] = x & 0x0f0f0f0fu;
        q[4 + i] = x >> 4 & 0x0f0f0f0fu;
    }
}

#include "pack_iq.cuh"
#include "pack_k.cuh"
#include "pack_simple.cuh"
