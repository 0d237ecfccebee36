// x / sqrt(mean(x^2) + eps) * weight over groups of columns: one block for a row.
//
// WIDTH: columns; GROUP: columns that are normed together; THREADS.
#include "rows.cuh"

constexpr int PER_THREAD = (WIDTH + 4 * THREADS - 1) / (4 * THREADS), N_GROUPS = WIDTH / GROUP;

struct Args {
    Forms out;
    const int* count;     // rows that there are
    const int* rows;      // which row of x and z is row i of out; null: row i
    const float* x;
    const float* z;       // added to x first, or null
    float* total;         // where x + z goes, or null
    const float* weight;  // or null
    int x_ld;
    int z_ld;
    int total_ld;
    int weight_step;      // floats from one group's weights to the next's: 0 or GROUP
    float eps;
};

DEVICE float norm_factor(float squares, float eps) { return 1.0f / sqrtf(squares / GROUP + eps); }

// x + z of the thread's columns.
DEVICE void load_row(const Args& a, int row, float4 (&x)[PER_THREAD]) {
    s64 source = a.rows ? a.rows[row] : row;
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        int column = 4 * (threadIdx.x + i * THREADS);
        x[i] = load_columns(a.x + source * a.x_ld, column, WIDTH);
        if (a.z) {
            float4 z = load_columns(a.z + source * a.z_ld, column, WIDTH);
            x[i] = make_float4(x[i].x + z.x, x[i].y + z.y, x[i].z + z.z, x[i].w + z.w);
        }
        if (a.total) store_columns(a.total + (s64)row * a.total_ld, column, WIDTH, x[i]);
    }
}

// What each group is multiplied by: factors[n_groups], in shared memory.
DEVICE void group_factors(const Args& a, int row, const float4 (&x)[PER_THREAD], float* factors) {
    if (N_GROUPS == 1) {
        __shared__ float scratch[32];
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++)
            squares = fmaf(x[i].x, x[i].x, fmaf(x[i].y, x[i].y, fmaf(x[i].z, x[i].z, fmaf(x[i].w, x[i].w, squares))));
        squares = block_sum(squares, scratch);
        if (threadIdx.x == 0) factors[0] = norm_factor(squares, a.eps);
    } else {
        s64 source = a.rows ? a.rows[row] : row;
        for (int group = warp_id(); group < N_GROUPS; group += THREADS / 32) {
            float squares = 0.0f;
            for (int i = group * GROUP + lane_id(); i < (group + 1) * GROUP; i += 32) {
                float value = a.x[source * a.x_ld + i] + (a.z ? a.z[source * a.z_ld + i] : 0.0f);
                squares = fmaf(value, value, squares);
            }
            squares = warp_sum(squares);
            if (lane_id() == 0) factors[group] = norm_factor(squares, a.eps);
        }
    }
    __syncthreads();
}

DEVICE float normed(const Args& a, const float* factors, int column, float x) {
    if (column >= WIDTH) return 0.0f;
    int group = column / GROUP;
    return x * factors[group] * (a.weight ? a.weight[group * a.weight_step + column % GROUP] : 1.0f);
}

KERNEL_MIN(rms_norm, Args, THREADS, 1) {
    __shared__ float factors[N_GROUPS];
    int row = blockIdx.x;
    if (row >= *a.count) return;
    float4 x[PER_THREAD];
    load_row(a, row, x);
    group_factors(a, row, x, factors);
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        int column = 4 * (threadIdx.x + i * THREADS);
        x[i].x = normed(a, factors, column, x[i].x);
        x[i].y = normed(a, factors, column + 1, x[i].y);
        x[i].z = normed(a, factors, column + 2, x[i].z);
        x[i].w = normed(a, factors, column + 3, x[i].w);
    }
    write_forms(a.out, row, 4 * threadIdx.x, 4 * THREADS, x);
}
