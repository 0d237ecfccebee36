// (x - centre) / sqrt(mean((x - centre)^2) + eps) * weight + bias over groups of columns: one block for a row.
//
// WIDTH: columns; GROUP: columns that are normed together; THREADS; CENTRED: the centre is the mean of x, else 0.
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
    const float* bias;    // or null
    int x_ld;
    int z_ld;
    int total_ld;
    int weight_step;      // floats from one group's weights to the next's: 0 or GROUP
    int bias_step;        // the same of biases
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

#if CENTRED
DEVICE float square_of(float x, float centre, int column) {
    float value = column < WIDTH ? x - centre : 0.0f;
    return value * value;
}
#endif

// The centre of each group and what it is multiplied by: [n_groups] each, in shared memory.
DEVICE void group_factors(const Args& a, int row, const float4 (&x)[PER_THREAD], float* centres, float* factors) {
    if (N_GROUPS == 1) {
        __shared__ float scratch[32];
        float centre = 0.0f, squares = 0.0f;
#if CENTRED
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) centre += x[i].x + x[i].y + x[i].z + x[i].w;
        centre = block_sum(centre, scratch) / GROUP;
#endif
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
#if CENTRED
            int column = 4 * (threadIdx.x + i * THREADS);
            squares += square_of(x[i].x, centre, column) + square_of(x[i].y, centre, column + 1) +
                       square_of(x[i].z, centre, column + 2) + square_of(x[i].w, centre, column + 3);
#else
            squares = fmaf(x[i].x, x[i].x, fmaf(x[i].y, x[i].y, fmaf(x[i].z, x[i].z, fmaf(x[i].w, x[i].w, squares))));
#endif
        }
        squares = block_sum(squares, scratch);
        if (threadIdx.x == 0) centres[0] = centre, factors[0] = norm_factor(squares, a.eps);
    } else {
        s64 source = a.rows ? a.rows[row] : row;
        const float *x_row = a.x + source * a.x_ld, *z_row = a.z ? a.z + source * a.z_ld : nullptr;
        for (int group = warp_id(); group < N_GROUPS; group += THREADS / 32) {
            float centre = 0.0f, squares = 0.0f;
#if CENTRED
            for (int i = group * GROUP + lane_id(); i < (group + 1) * GROUP; i += 32)
                centre += x_row[i] + (z_row ? z_row[i] : 0.0f);
            centre = warp_sum(centre) / GROUP;
#endif
            for (int i = group * GROUP + lane_id(); i < (group + 1) * GROUP; i += 32) {
                float value = x_row[i] + (z_row ? z_row[i] : 0.0f) - centre;
                squares = fmaf(value, value, squares);
            }
            squares = warp_sum(squares);
            if (lane_id() == 0) centres[group] = centre, factors[group] = norm_factor(squares, a.eps);
        }
    }
    __syncthreads();
}

DEVICE float normed(const Args& a, const float* centres, const float* factors, int column, float x) {
    if (column >= WIDTH) return 0.0f;
    int group = column / GROUP;
    float y = (x - centres[group]) * factors[group];
    if (a.weight) y *= a.weight[group * a.weight_step + column % GROUP];
    return a.bias ? y + a.bias[group * a.bias_step + column % GROUP] : y;
}

KERNEL_MIN(norm_rows, Args, THREADS, 1) {
    __shared__ float centres[N_GROUPS], factors[N_GROUPS];
    int row = blockIdx.x;
    if (row >= *a.count) return;
    float4 x[PER_THREAD];
    load_row(a, row, x);
    group_factors(a, row, x, centres, factors);
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        int column = 4 * (threadIdx.x + i * THREADS);
        x[i].x = normed(a, centres, factors, column, x[i].x);
        x[i].y = normed(a, centres, factors, column + 1, x[i].y);
        x[i].z = normed(a, centres, factors, column + 2, x[i].z);
        x[i].w = normed(a, centres, factors, column + 3, x[i].w);
    }
    write_forms(a.out, row, 4 * threadIdx.x, 4 * THREADS, x);
}
