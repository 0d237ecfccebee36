// Rows of a table of floats: WORD is u16 or u32, BRAIN bfloat16.
#include "common.cuh"

#define THREADS 256

struct Args {
    const WORD* table;
    const int* which;  // row of each token: its id or its position
    const int* count;
    float* out;
    int columns;
    int ld;
    float scale;
};

KERNEL(embed, Args, THREADS) {
    int token = blockIdx.y, column = blockIdx.x * THREADS + threadIdx.x;
    if (token >= *a.count || column >= a.columns) return;
    WORD x = a.table[(s64)a.which[token] * a.columns + column];
    float value = sizeof(WORD) == 4 ? __uint_as_float(x) : BRAIN ? bf16_to_f32((u16)x) : f16_to_f32((u16)x);
    a.out[(s64)token * a.ld + column] = value * a.scale;
}
