// Rows of a table out of its blocks as they are in the file: a thread decodes a group of 32 columns of a token.
#include "blocks.cuh"

#define THREADS 128

struct Args {
    const u8* table;
    const u8* book;
    const int* which;  // row of each token: its id or its position
    const int* count;
    float* out;
    int row_bytes;
    int n_groups;
    int ld;
    float scale;
};

CONSTANT s8 table_values[16] = {TABLE};

KERNEL(embed, Args, THREADS) {
    int token = blockIdx.y, group = blockIdx.x * THREADS + threadIdx.x;
    if (token >= *a.count || group >= a.n_groups) return;
    const u8* b = a.table + (s64)a.which[token] * a.row_bytes + (s64)(group / BLOCK_GROUPS) * BLOCK_BYTES;
    int g = group % BLOCK_GROUPS;
    RawScale raw{block_scale(b, g), block_floats(b)};
    u32 q[8];
    block_group(b, g, a.book, q);
    float* out = a.out + (s64)token * a.ld + 32 * group;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        float2 s = scale_of(raw, HALVES == 2 ? i / 16 : 0);
        u32 code = q[i / 4] >> (8 * (i % 4)) & 255;
        int value = N_VALUES ? table_values[code & 15] : BITS == 8 ? (s8)code : STEP * (int)code - OFFSET;
        out[i] = (s.x * (float)value + s.y) * FACTOR * a.scale;
    }
}
