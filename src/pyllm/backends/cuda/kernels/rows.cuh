// Kernels of rows: a thread has four columns at a time, and what it computes is written in the forms that are wanted.
#pragma once
#include "forms.cuh"

// A row in each of its forms; null where it is not wanted.
struct Forms {
    float* f32;
    s8* q8;
    float* scales;
    u32* sums;
    u16* half;
    float* factors;
    int f32_ld;
    int q8_ld;
    int half_ld;
    int width;
};
static_assert(sizeof(Forms) == 64, "no gap behind it in the host's layout");

// Columns `column` .. `column` + 3 of a row of `width`; zeros past it. Rows start at 16 aligned bytes.
DEVICE float4 load_columns(const float* row, int column, int width) {
    if (column + 4 <= width) return *reinterpret_cast<const float4*>(row + column);
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (column < width) x.x = row[column];
    if (column + 1 < width) x.y = row[column + 1];
    if (column + 2 < width) x.z = row[column + 2];
    return x;
}

DEVICE void store_columns(float* row, int column, int width, float4 x) {
    if (column + 4 <= width) {
        *reinterpret_cast<float4*>(row + column) = x;
        return;
    }
    if (column < width) row[column] = x.x;
    if (column + 1 < width) row[column + 1] = x.y;
    if (column + 2 < width) row[column + 2] = x.z;
}

DEVICE float peak_of(float4 x) { return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))); }

// Four columns from `column` on, and from each `stride` after it: x[n], zeros past the width. All threads of the block
// call it; where halves are wanted, they have the whole row.
template <int n> DEVICE void write_forms(const Forms& f, int row, int column, int stride, const float4 (&x)[n]) {
    if (f.f32)
#pragma unroll
        for (int i = 0; i < n; i++) store_columns(f.f32 + (s64)row * f.f32_ld, column + i * stride, f.width, x[i]);
    if (f.q8)
#pragma unroll
        for (int i = 0; i < n; i++) write_q8(f.q8, f.scales, f.sums, f.q8_ld, row, column + i * stride, x[i]);
    if (f.half) {
        __shared__ float scratch[32];
        float peak = 0.0f;
#pragma unroll
        for (int i = 0; i < n; i++) peak = fmaxf(peak, peak_of(x[i]));
        float factor = half_factor(block_max(peak, scratch));
        if (threadIdx.x == 0) f.factors[row] = factor;
#pragma unroll
        for (int i = 0; i < n; i++)
            write_half(f.half, f.half_ld, row, column + i * stride, x[i], half_inverse(factor));
    }
}
