// out[t, c] = sum over j of x[t - SIZE + 1 + j, c] * weight[c, j] + bias[c]; each sequence for itself. A thread for each
// number.
//
// SIZE: rows that a row depends on; WIDTH: columns.
#include "recurrent.cuh"

#define THREADS 256

struct Args {
    Scan scan;
    const float* x;
    const float* weight;  // [WIDTH, SIZE]
    const float* bias;    // or null
    int x_ld;
};

KERNEL(short_conv, Args, THREADS) {
    int token = blockIdx.y, column = blockIdx.x * THREADS + threadIdx.x;
    if (token >= a.scan.step->n_tokens || column >= WIDTH) return;
    Sequence s = sequence_of(a.scan, a.scan.seqs[token]);
    float sum = a.bias ? a.bias[column] : 0.0f;
#pragma unroll
    for (int j = 0; j < SIZE; j++) {
        float x = row_before<SIZE - 1, WIDTH>(s, a.x, a.x_ld, token, SIZE - 1 - j, column);
        sum = fmaf(x, a.weight[column * SIZE + j], sum);
    }
    a.scan.out[(s64)token * a.scan.out_ld + column] = sum;
    save_rows<SIZE - 1, WIDTH>(a.scan, s, a.x, a.x_ld, token, column);
}
