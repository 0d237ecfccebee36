// From GGUF blocks to planes (unpack.cuh): a thread packs one block of one row. The first float of a matrix becomes a
// bound of its weights' magnitudes; it must be zero before.
#include "blocks.cuh"

#define THREADS 128

struct Args {
    const u8* source;  // rows of blocks
    u8* matrix;
    const u8* book;
    int row_bytes;
    int n_rows;
    int first_row;  // where the first of them goes
    int n_blocks;   // of a row
    int low, high, scales, floats;  // where planes begin, in units of 256 bytes
};

// Bits `shift` … of each quad's bytes, `bits` of them, as quads are stored.
template <int bits> DEVICE void store_quads(u8* p, const u32 (&q)[8], int shift) {
    constexpr u32 mask = 0x01010101u * ((1 << bits) - 1);
    constexpr int per_word = 8 / bits;
#pragma unroll
    for (int w = 0; w < bits; w++) {
        u32 word = 0;
#pragma unroll
        for (int i = 0; i < per_word; i++) word |= (q[per_word * w + i] >> shift & mask) << (bits * i);
        store4(p + 4 * w, word);
    }
}

DEVICE u32 nibble_word(u32 a, u32 b) {  // eight bytes below 16 as eight nibbles
    a = (a | a >> 4) & 0x00ff00ffu, b = (b | b >> 4) & 0x00ff00ffu;
    return ((a | a >> 8) & 0xffff) | (b | b >> 8) << 16;
}

DEVICE void store_group(u8* low, u8* high, s64 group, const u32 (&q)[8]) {
    low += group * LOW_BYTES, high += group * HIGH_BYTES;
#if N_VALUES
    u32 n[4];
#pragma unroll
    for (int h = 0; h < 4; h++) n[h] = nibble_word(q[2 * h], q[2 * h + 1]);
#if N_VALUES == 16
#pragma unroll
    for (int h = 0; h < 4; h++) store4(low + 4 * h, n[h]);
#else
    u32 top = 0;
#pragma unroll
    for (int h = 0; h < 4; h++) top |= (n[h] >> 2 & 0x11111111u) << h;
    store4(low, (n[0] & 0x33333333u) | (n[1] & 0x33333333u) << 2);
    store4(low + 4, (n[2] & 0x33333333u) | (n[3] & 0x33333333u) << 2);
    store4(high, top);
#endif
#else
    store_quads<LOW_BITS>(low, q, 0);
    if constexpr (HIGH_BITS > 0) store_quads<(HIGH_BITS ? HIGH_BITS : 1)>(high, q, LOW_BITS);
#endif
}

KERNEL(pack, Args, THREADS) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    float peak = 0.0f;
    if (i < a.n_rows * a.n_blocks) {
        int row = i / a.n_blocks, block = i % a.n_blocks;
        const u8* b = a.source + (s64)row * a.row_bytes + (s64)block * BLOCK_BYTES;
        s64 at = (s64)(a.first_row + row) * a.n_blocks + block;
        u8 *scales = a.matrix + (s64)a.scales * 256, *floats = a.matrix + (s64)a.floats * 256;
        RawScale raw{0, block_floats(b)};
        if constexpr (FLOAT_BYTES == 2) reinterpret_cast<u16*>(floats)[at] = (u16)raw.floats;
        if constexpr (FLOAT_BYTES == 4) reinterpret_cast<u32*>(floats)[at] = raw.floats;
        for (int g = 0; g < BLOCK_GROUPS; g++) {
            s64 group = at * BLOCK_GROUPS + g;
            raw.bytes = block_scale(b, g);
            if constexpr (SCALE_BYTES == 1) scales[group] = (u8)raw.bytes;
            if constexpr (SCALE_BYTES == 2) reinterpret_cast<u16*>(scales)[group] = (u16)raw.bytes;
            u32 q[8];
            block_group(b, g, a.book, q);
            store_group(a.matrix + (s64)a.low * 256, a.matrix + (s64)a.high * 256, group, q);
            for (int half = 0; half < HALVES; half++) {
                float2 s = scale_of(raw, half);
                peak = fmaxf(peak, fabsf(s.x) * LARGEST + fabsf(s.y));
            }
        }
    }
    peak = warp_max(peak) * FACTOR;
    if (lane_id() == 0) atomicMax(reinterpret_cast<int*>(a.matrix), __float_as_int(peak));
}
