// Sums of streams, parts of a row as wide as each other: out's stream j = sum over i of c[j][i] * stream i, where c is
// the token's coefficients, the same for all tokens, or their sum.
#include "common.cuh"

#define THREADS 256

struct Args {
    const float* x;
    const float* x2;      // further streams, or null
    const float* coefs;   // [tokens][ldc], or null
    const float* weight;  // [n_out][n_first + n_second], or null
    float* out;
    const int* count;
    int ldx, ldx2, ldc, ldo, n_first, n_second, width;
};

KERNEL(mix, Args, THREADS) {
    int row = blockIdx.x, stream = blockIdx.z, column = blockIdx.y * THREADS + threadIdx.x;
    if (row >= *a.count || column >= a.width) return;
    int n = a.n_first + a.n_second;
    const float* coefs = a.coefs ? a.coefs + (s64)row * a.ldc + stream * n : nullptr;
    const float* weight = a.weight ? a.weight + stream * n : nullptr;
    float total = 0.0f;
    for (int i = 0; i < n; i++) {
        const float* from = i < a.n_first ? a.x + (s64)row * a.ldx + i * a.width
                                          : a.x2 + (s64)row * a.ldx2 + (i - a.n_first) * a.width;
        total = fmaf((coefs ? coefs[i] : 0.0f) + (weight ? weight[i] : 0.0f), from[column], total);
    }
    a.out[(s64)row * a.ldo + stream * a.width + column] = total;
}
