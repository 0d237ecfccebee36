// Products of float32 matrices with many tokens, in float32: 64 rows and 64 tokens a block, 4 x 4 of them a thread.
#include "matmul.cuh"

#define TILE 64
#define DEPTH 32
#define THREADS 256
#define LD (TILE + 4)

struct Args {
    Weights w;
    Results r;
    Tokens t;
    Parts parts;
    const float* x;
    int ld_x;
};

// 32 columns from `column` on, transposed: to[column][i]. `row`: which row of 64 a thread has, columns by fours.
DEVICE void copy(float* to, const float* row, int i, int column, int n_columns) {
#pragma unroll
    for (int k = 0; k < DEPTH / 4; k++) {
        int c = threadIdx.x % 4 + 4 * k;
        to[c * LD + i] = row && column + c < n_columns ? row[column + c] : 0.0f;
    }
}

KERNEL(matmul, Args, THREADS) {
    __shared__ __align__(16) float w[DEPTH * LD];
    __shared__ __align__(16) float x[DEPTH * LD];
    Tile tile;
    if (!find_tile<TILE>(a.t, tile)) return;
    __shared__ int x_rows[TILE], out_rows[TILE];
    find_rows<TILE, THREADS>(a.t, tile, x_rows, out_rows);
    __syncthreads();
    int first_row = blockIdx.x * TILE, mine = threadIdx.x / 4;
    const float* w_row = reinterpret_cast<const float*>(plane(a.w, tile.matrix, a.w.low)) +
                         (s64)min(first_row + mine, a.w.rows - 1) * a.w.n_groups * 32;
    const float* x_from = mine < tile.n ? a.x + (s64)x_rows[mine] * a.ld_x : nullptr;
    int begin = (u32)a.w.n_groups * blockIdx.z / gridDim.z, end = (u32)a.w.n_groups * (blockIdx.z + 1) / gridDim.z;
    int row0 = threadIdx.x % 16 * 4, token0 = threadIdx.x / 16 * 4;
    float4 sums[4] = {};
    for (int group = begin; group < end; group++) {
        __syncthreads();
        copy(w, w_row, mine, 32 * group, a.w.columns);
        copy(x, x_from, mine, 32 * group, a.w.columns);
        __syncthreads();
#pragma unroll
        for (int c = 0; c < DEPTH; c++) {
            float4 v = *reinterpret_cast<const float4*>(w + c * LD + row0);
            float4 y = *reinterpret_cast<const float4*>(x + c * LD + token0);
            float ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int k = 0; k < 4; k++) {
                sums[k].x = fmaf(v.x, ys[k], sums[k].x), sums[k].y = fmaf(v.y, ys[k], sums[k].y);
                sums[k].z = fmaf(v.z, ys[k], sums[k].z), sums[k].w = fmaf(v.w, ys[k], sums[k].w);
            }
        }
    }
    if (!add_parts<4, THREADS>(a.parts, sums)) return;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (token0 + k >= tile.n) continue;
        int out = out_rows[token0 + k];
        float y[4] = {sums[k].x, sums[k].y, sums[k].z, sums[k].w};
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (first_row + row0 + i < a.w.rows) store_result(a.w, a.r, tile.matrix, first_row + row0 + i, out, y[i]);
    }
}
