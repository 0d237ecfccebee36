// Products of many tokens: a block computes BLOCK_ROWS rows of BLOCK_TOKENS tokens, all columns or a part of them.
//
// blockIdx.x: stretch of rows; blockIdx.y: tile of tokens; blockIdx.z: part of the columns. Of experts, tiles are those
// of one expert's slots: expert e's begin at tile offsets[e] / BLOCK_TOKENS + e, which leaves room for each.
#pragma once
#include "product.cuh"

struct Tokens {
    const int* count;
    const int* offsets;  // [n_matrices + 1]: where an expert's part of `slots` begins; or null: tokens of one matrix
    const int* slots;    // by expert; the output rows
    int n_matrices;
    int slots_per_row;   // of x
};
static_assert(sizeof(Tokens) == 32, "no gap behind it in the host's layout");

struct Tile {
    int matrix, first, n;  // the first of n tokens, or its place in `slots`
};

template <int block_tokens> DEVICE bool find_tile(const Tokens& t, Tile& tile) {
    int y = blockIdx.y, end;
    if (t.offsets) {
        int e = 0, above = t.n_matrices;  // the last expert whose tiles do not begin behind this one
        while (above - e > 1) {
            int middle = (e + above) / 2;
            if (t.offsets[middle] / block_tokens + middle <= y)
                e = middle;
            else
                above = middle;
        }
        tile.matrix = e;
        tile.first = t.offsets[e] + (y - t.offsets[e] / block_tokens - e) * block_tokens;
        end = t.offsets[e + 1];
    } else {
        tile.matrix = 0;
        tile.first = y * block_tokens;
        end = *t.count;
    }
    tile.n = min(end - tile.first, block_tokens);
    return tile.n > 0;
}

// Rows of x and of the results that a tile's tokens have; all threads call it, and read after a barrier.
template <int block_tokens, int threads> DEVICE void find_rows(const Tokens& t, const Tile& tile, int* x_rows,
                                                               int* out_rows) {
    for (int i = threadIdx.x; i < block_tokens; i += threads) {
        int token = tile.first + min(i, tile.n - 1);
        out_rows[i] = t.offsets ? t.slots[token] : token;
        x_rows[i] = t.offsets ? out_rows[i] / t.slots_per_row : token;
    }
}

// Parts of the columns: each block leaves its sums, and the last one to come adds them up in order.
struct Parts {
    float* sums;    // [tile][part][i][thread] of float4
    int* arrived;   // [tile], zero between steps
};

// Sums n float4 of each thread over the parts; false for all blocks but the last. All threads call it.
template <int n, int threads> DEVICE bool add_parts(const Parts& p, float4 (&x)[n]) {
    int n_parts = gridDim.z;
    if (n_parts == 1) return true;
    __shared__ bool last;
    s64 tile = (s64)blockIdx.y * gridDim.x + blockIdx.x;
    float4* all = reinterpret_cast<float4*>(p.sums) + tile * n_parts * n * threads + threadIdx.x;
    float4* mine = all + blockIdx.z * n * threads;
#pragma unroll
    for (int i = 0; i < n; i++) mine[i * threads] = x[i];
    __syncthreads();
    if (threadIdx.x == 0) {  // between barriers, one thread's fences are the block's
        __threadfence();
        last = atomicAdd(p.arrived + tile, 1) == n_parts - 1;
        if (last) p.arrived[tile] = 0;
        __threadfence();
    }
    __syncthreads();
    if (!last) return false;
#pragma unroll
    for (int i = 0; i < n; i++) x[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int part = 0; part < n_parts; part++, all += n * threads) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            float4 v = all[i * threads];
            x[i].x += v.x, x[i].y += v.y, x[i].z += v.z, x[i].w += v.w;
        }
    }
    return true;
}
