// out[t] = x[t - 1] - x[t]; each sequence for itself. A thread for each number.
//
// WIDTH: columns.
#include "recurrent.cuh"

#define THREADS 256

struct Args {
    Scan scan;
    const float* x;
    int x_ld;
};

KERNEL(token_shift, Args, THREADS) {
    int token = blockIdx.y, column = blockIdx.x * THREADS + threadIdx.x;
    if (token >= a.scan.step->n_tokens || column >= WIDTH) return;
    Sequence s = sequence_of(a.scan, a.scan.seqs[token]);
    float before = row_before<1, WIDTH>(s, a.x, a.x_ld, token, 1, column);
    a.scan.out[(s64)token * a.scan.out_ld + column] = before - a.x[(s64)token * a.x_ld + column];
    save_rows<1, WIDTH>(a.scan, s, a.x, a.x_ld, token, column);
}
