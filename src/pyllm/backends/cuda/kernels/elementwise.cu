// Ops that compute each number from those at its place: sums, scalings, copies of rows and columns, gates.
//
// KIND: 0 x, 1 x + z, 2 x * factor, 3 factor * tanh(x / factor), 4 act(x) * z, 5 act(x), 6 x * z, 7 x + z, 8 x within
// -factor and factor; ACT: which activation, in the order of `ACTIVATIONS` of program/ops/gate.py, -1 xielu. SPREAD:
// columns that a number holds for: of x where x gates, of z where that is a weight (6, 7; all rows have the same).
// ALIGNED: rows of x start at 16 aligned bytes (z's always do). THREADS; PER_THREAD: fours of columns that a thread has.
// Where halves are wanted a block has a whole row.
#include "rows.cuh"

struct Args {
    Forms out;
    const int* count;
    const int* rows;  // which row of x is row i of out; null: row i
    const float* x;
    const float* z;
    int x_ld;
    int z_ld;
    float factor;
    float alpha_n;  // xielu's
    float alpha_p;
    float beta;
    float eps;
};

#if KIND == 4 || KIND == 5
DEVICE float activated(const Args& a, float x) {
#if ACT == 0
    return x * fast_sigmoid(x);
#elif ACT == 1
    return 0.5f * x * (1.0f + fast_tanh(0.7978845608028654f * x * (1.0f + 0.044715f * x * x)));
#elif ACT == 2
    return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
#elif ACT == 3
    return fmaxf(x, 0.0f);
#elif ACT == 5
    return fmaxf(x, 0.0f) * fmaxf(x, 0.0f);
#elif ACT == 6
    return fast_sigmoid(x);
#elif ACT == 7
    return softplus(x);
#elif ACT == 8
    return fast_tanh(x);
#elif ACT == 9
    return fast_exp(x);
#elif ACT == 10
    return x;
#elif ACT == 11
    x = fminf(x, a.factor);
    return x * fast_sigmoid(x);
#elif ACT == 12
    return fminf(x * fast_sigmoid(x), a.factor);
#elif ACT == -1
    float bent = x > 0.0f ? a.alpha_p * x * x : a.alpha_n * (expm1f(fminf(x, a.eps)) - x);
    return bent + a.beta * x;
#else
    x = fminf(x, 7.0f);
    return x * fast_sigmoid(1.702f * x);
#endif
}
#endif

DEVICE float result(const Args& a, float x, float z) {
#if KIND == 0
    return x;
#elif KIND == 1 || KIND == 7
    return x + z;
#elif KIND == 2
    return x * a.factor;
#elif KIND == 3
    return a.factor * tanhf(x / a.factor);
#elif KIND == 5
    return activated(a, x);
#elif KIND == 6
    return x * z;
#elif KIND == 8
    return fmaxf(fminf(x, a.factor), -a.factor);
#elif ACT == 11 || ACT == 12
    return activated(a, x) * fminf(fmaxf(z, -a.factor), a.factor);
#elif ACT == 4
    return activated(a, x) * (fminf(fmaxf(z, -7.0f), 7.0f) + 1.0f);
#else
    return activated(a, x) * z;
#endif
}

DEVICE float4 load_x(const float* row, int column, int width) {
#if ALIGNED
    return load_columns(row, column, width);
#else
    return make_float4(column < width ? row[column] : 0.0f, column + 1 < width ? row[column + 1] : 0.0f,
                       column + 2 < width ? row[column + 2] : 0.0f, column + 3 < width ? row[column + 3] : 0.0f);
#endif
}

// The first n of four columns, zeros after them.
DEVICE float4 columns_before(float4 x, int n) {
    return make_float4(n > 0 ? x.x : 0.0f, n > 1 ? x.y : 0.0f, n > 2 ? x.z : 0.0f, n > 3 ? x.w : 0.0f);
}

// Four columns of what holds for SPREAD columns each.
DEVICE float4 load_spread(const float* row, int column, int width) {
    int last = (width - 1) / SPREAD;
    return make_float4(row[min(column / SPREAD, last)], row[min((column + 1) / SPREAD, last)],
                       row[min((column + 2) / SPREAD, last)], row[min((column + 3) / SPREAD, last)]);
}

KERNEL_MIN(elementwise, Args, THREADS, 1) {
    int row = blockIdx.x, first = 4 * (threadIdx.x + blockIdx.y * PER_THREAD * THREADS);
    if (row >= *a.count) return;
    const float* x_row = a.x + (s64)(a.rows ? a.rows[row] : row) * a.x_ld;
    float4 y[PER_THREAD];
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        int column = first + 4 * i * THREADS;
        float4 x, z = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (KIND == 4 && SPREAD > 1) x = load_spread(x_row, column, a.out.width);
        else x = load_x(x_row, column, a.out.width);
        if (KIND == 1 || KIND == 4) z = load_columns(a.z + (s64)row * a.z_ld, column, a.out.width);
        if (KIND == 6 || KIND == 7) z = load_spread(a.z, column, a.out.width);
        y[i] = make_float4(result(a, x.x, z.x), result(a, x.y, z.y), result(a, x.z, z.z), result(a, x.w, z.w));
        if (KIND == 5 || KIND == 7) y[i] = columns_before(y[i], a.out.width - column);  // f(0) may be other than 0
    }
    write_forms(a.out, row, first, 4 * THREADS, y);
}
