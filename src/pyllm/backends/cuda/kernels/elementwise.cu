// Ops that compute each number from those at its place: sums, scalings, copies of rows and columns, gates.
//
// KIND: 0 x, 1 x + z, 2 x * factor, 3 factor * tanh(x / factor), 4 act(x) * z; ACT: which activation, in the order of
// `program.ACTIVATIONS`. ALIGNED: rows of x start at 16 aligned bytes (z's always do). THREADS; PER_THREAD: fours of
// columns that a thread has. Where halves are wanted a block has a whole row.
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
};

#if KIND == 4
DEVICE float activated(float x) {
#if ACT == 0
    return x * fast_sigmoid(x);
#elif ACT == 1
    return 0.5f * x * (1.0f + fast_tanh(0.7978845608028654f * x * (1.0f + 0.044715f * x * x)));
#elif ACT == 2
    return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
#elif ACT == 3
    return fmaxf(x, 0.0f);
#else
    x = fminf(x, 7.0f);
    return x * fast_sigmoid(1.702f * x);
#endif
}
#endif

DEVICE float result(float x, float z, float factor) {
#if KIND == 0
    return x;
#elif KIND == 1
    return x + z;
#elif KIND == 2
    return x * factor;
#elif KIND == 3
    return factor * tanhf(x / factor);
#elif ACT == 4
    return activated(x) * (fminf(fmaxf(z, -7.0f), 7.0f) + 1.0f);
#else
    return activated(x) * z;
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

KERNEL_MIN(elementwise, Args, THREADS, 1) {
    int row = blockIdx.x, first = 4 * (threadIdx.x + blockIdx.y * PER_THREAD * THREADS);
    if (row >= *a.count) return;
    const float* x_row = a.x + (s64)(a.rows ? a.rows[row] : row) * a.x_ld;
    float4 y[PER_THREAD];
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        int column = first + 4 * i * THREADS;
        float4 x = load_x(x_row, column, a.out.width), z = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (KIND == 1 || KIND == 4) z = load_columns(a.z + (s64)row * a.z_ld, column, a.out.width);
        y[i] = make_float4(result(x.x, z.x, a.factor), result(x.y, z.y, a.factor), result(x.z, z.z, a.factor),
                           result(x.w, z.w, a.factor));
    }
    write_forms(a.out, row, first, 4 * THREADS, y);
}
