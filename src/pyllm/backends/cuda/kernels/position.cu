// Rows times a factor of their token's position: a table has one each `length` positions, the last one for all beyond.
#include "common.cuh"

#define THREADS 256

struct Args {
    const float* x;
    float* y;
    const float* factors;
    const int* positions;
    const int* count;
    int ldx, ldy, width, n_factors, length, offset;
};

KERNEL(scale, Args, THREADS) {
    int token = blockIdx.y, column = blockIdx.x * THREADS + threadIdx.x;
    if (token >= *a.count || column >= a.width) return;
    int which = min((a.positions[token] + a.offset) / a.length, a.n_factors - 1);
    a.y[(s64)token * a.ldy + column] = a.x[(s64)token * a.ldx + column] * a.factors[which];
}
