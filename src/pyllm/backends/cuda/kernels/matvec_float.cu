// Products of float matrices with few tokens, in float32. A lane takes 16 bytes of ROWS rows at a time.
//
// Defines: WORD u16 or u32, BRAIN for bfloat16, ROWS, TOKENS (products of both: powers of two up to 32).
#include "product.cuh"

#define WARPS 4
#define COLUMNS (int)(16 / sizeof(WORD))

struct Args {
    Weights w;
    Results r;
    const float* x;
    const int* count;
    const int* ids;  // the matrix of each slot, or null
    int ld_x;
    int slots_per_row;
    int parts;
};

DEVICE void floats(uint4 v, float (&out)[COLUMNS]) {
    u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (sizeof(WORD) == 4) {
            out[i] = __uint_as_float(words[i]);
        } else {
            u32 w = words[i];
            out[2 * i % COLUMNS] = BRAIN ? __uint_as_float(w << 16) : f16_to_f32((u16)w);
            out[(2 * i + 1) % COLUMNS] = BRAIN ? __uint_as_float(w & 0xffff0000u) : f16_to_f32((u16)(w >> 16));
        }
    }
}

DEVICE void multiply(const Args& a, const Work& work, int column, const uint4 (&rows)[ROWS],
                     float (&sums)[ROWS * TOKENS]) {
    float w[ROWS][COLUMNS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) floats(rows[r], w[r]);
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        const float* row = a.x + (s64)(work.first_x + (TOKENS == 1 ? 0 : min(t, work.n_tokens - 1))) * a.ld_x + column;
        float x[COLUMNS];
#pragma unroll
        for (int i = 0; i < COLUMNS; i += 4) {
            if (column + i + 4 <= a.w.columns) {
                float4 v = *reinterpret_cast<const float4*>(row + i);
                x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
            } else {  // what is behind a row is anything
#pragma unroll
                for (int k = i; k < i + 4; k++) x[k] = column + k < a.w.columns ? row[k] : 0.0f;
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int i = 0; i < COLUMNS; i++)
                sums[r * TOKENS + t] = fmaf(w[r][i], x[i], sums[r * TOKENS + t]);
    }
}

KERNEL(matvec, Args, 32 * WARPS) {
    Work work;
    if (!find_work<ROWS>(a.w, a.ids, a.count, a.slots_per_row, a.parts, WARPS, work)) return;
    const u8* low = plane(a.w, work.matrix, a.w.low);
    const u8* first[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        first[r] = low + (s64)min(work.first_row + r, a.w.rows - 1) * a.w.n_groups * 32 * sizeof(WORD);
    float sums[ROWS * TOKENS] = {};
    int n_columns = 32 * a.w.n_groups, step = 32 * COLUMNS * a.parts;
    int column = COLUMNS * (lane_id() + 32 * work.part);
    if (column < n_columns) {
        uint4 now[ROWS], next[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) now[r] = stream16(first[r] + column * sizeof(WORD));
        for (; column + step < n_columns; column += step) {
#pragma unroll
            for (int r = 0; r < ROWS; r++) next[r] = stream16(first[r] + (column + step) * sizeof(WORD));
            multiply(a, work, column, now, sums);
#pragma unroll
            for (int r = 0; r < ROWS; r++) now[r] = next[r];
        }
        multiply(a, work, column, now, sums);
    }
    finish_work<ROWS, TOKENS, WARPS>(a.w, a.r, work, a.parts, sums);
}
