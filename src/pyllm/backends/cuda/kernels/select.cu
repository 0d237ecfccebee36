// Each head's columns are those of a, then those of b.
#include "common.cuh"

#define THREADS 256

struct Args {
    const float *a, *b;
    float* y;
    const int* count;
    int lda, ldb, ldy, n_heads, a_dim, b_dim;
    int b_step;  // floats from one head's columns of b to the next's; 0: all heads have the same
};

KERNEL(join_heads, Args, THREADS) {
    const int row = blockIdx.y, column = blockIdx.x * THREADS + threadIdx.x, dim = a.a_dim + a.b_dim;
    if (row >= *a.count || column >= a.n_heads * dim) return;
    const int head = column / dim, i = column % dim;
    a.y[(s64)row * a.ldy + column] = i < a.a_dim ? a.a[(s64)row * a.lda + head * a.a_dim + i]
                                                 : a.b[(s64)row * a.ldb + head * a.b_step + i - a.a_dim];
}
