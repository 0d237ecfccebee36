// Rows of float32 to the forms that products read (forms.cuh).
#include "forms.cuh"

#define THREADS 128

struct Q8Args {
    const float* x;
    s8* values;
    float* scales;
    u32* sums;
    const int* count;
    int ldx, ld, width;
};

struct HalfArgs {
    const float* x;
    u16* values;
    float* factors;
    const int* count;
    int ldx, ld, width;
};

DEVICE float4 columns_of(const float* row, int column, int width) {  // four, zeros from the width on
    if (column + 4 <= width) return *reinterpret_cast<const float4*>(row + column);
    return make_float4(column < width ? row[column] : 0.0f, column + 1 < width ? row[column + 1] : 0.0f,
                       column + 2 < width ? row[column + 2] : 0.0f, 0.0f);
}

KERNEL(quantize_q8, Q8Args, THREADS) {
    int row = blockIdx.y, column = 4 * (blockIdx.x * THREADS + threadIdx.x);
    if (row >= *a.count) return;
    write_q8(a.values, a.scales, a.sums, a.ld, row, column, columns_of(a.x + (s64)row * a.ldx, column, a.width));
}

KERNEL(quantize_half, HalfArgs, THREADS) {
    __shared__ float scratch[32];
    int row = blockIdx.x;
    if (row >= *a.count) return;
    const float* x = a.x + (s64)row * a.ldx;
    float peak = 0.0f;
    for (int column = 4 * threadIdx.x; column < a.ld; column += 4 * THREADS) {
        float4 v = columns_of(x, column, a.width);
        peak = fmaxf(peak, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
    }
    float factor = half_factor(block_max(peak, scratch)), inverse = half_inverse(factor);
    for (int column = 4 * threadIdx.x; column < a.ld; column += 4 * THREADS)
        write_half(a.values, a.ld, row, column, columns_of(x, column, a.width), inverse);
    if (threadIdx.x == 0) a.factors[row] = factor;
}
