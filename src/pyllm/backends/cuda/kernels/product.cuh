// What all products share: where a matrix is, and what becomes of a sum.
#pragma once
#include "common.cuh"

struct Weights {
    const u8* matrices;
    int stride;                     // from one matrix to the next
    int low, high, scales, floats;  // where planes begin in a matrix; all in units of 256 bytes
    int rows;
    int n_groups;                   // of 32 columns, the last one filled up with zeros
    int columns;
};
static_assert(sizeof(Weights) == 40, "no gap behind it in the host's layout");

struct Results {
    float* out;
    const float* bias;      // [n_matrices][rows], or null
    const float* residual;  // as out, or null
    const float* scale;     // [n_matrices]: factors of products before the bias; or null
    int ld;
    int ld_residual;
};
static_assert(sizeof(Results) == 40, "no gap behind it in the host's layout");

DEVICE const u8* plane(const Weights& w, int matrix, int start) {
    return w.matrices + ((s64)matrix * w.stride + start) * 256;
}

// The number `row` of output row `token`.
DEVICE void store_result(const Weights& w, const Results& r, int matrix, int row, int token, float sum) {
    if (r.scale) sum *= r.scale[matrix];
    if (r.bias) sum += r.bias[(s64)matrix * w.rows + row];
    if (r.residual) sum += r.residual[(s64)token * r.ld_residual + row];
    r.out[(s64)token * r.ld + row] = sum;
}

// --- products of few tokens: a warp has ROWS rows and TOKENS tokens, and its lanes divide the columns

// Sums over the lanes of a warp of n numbers each, n a power of two up to 32. Lane l gets number l / (32 / n).
template <int n, int distance = 16> DEVICE float fold(const float (&x)[n]) {
    if constexpr (n == 1) {
        float sum = x[0];
#pragma unroll
        for (int d = distance; d > 0; d /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, d);
        return sum;
    } else {
        bool upper = lane_id() & distance;
        float half[n / 2];
#pragma unroll
        for (int i = 0; i < n / 2; i++) {
            float keep = upper ? x[i + n / 2] : x[i], give = upper ? x[i] : x[i + n / 2];
            half[i] = keep + __shfl_xor_sync(FULL_WARP, give, distance);
        }
        return fold<n / 2, distance / 2>(half);
    }
}

// Which rows, tokens and columns a warp has. A block's warps are `parts` parts of the columns of warps / parts
// stretches of rows. blockIdx.y is the slot: of TOKENS tokens that share a matrix, or one token with its own.
struct Work {
    int matrix, first_row, first_x, first_out, n_tokens, part;
};

template <int n_rows> DEVICE bool find_work(const Weights& w, const int* ids, const int* count, int slots_per_row,
                                            int parts, int warps, Work& work) {
    int slot = blockIdx.y, n = *count;
    if (ids ? slot >= n : n == 0) return false;
    work.matrix = ids ? ids[slot] : 0;
    work.first_x = ids ? slot / slots_per_row : 0;
    work.first_out = ids ? slot : 0;
    work.n_tokens = ids ? 1 : n;
    work.part = warp_id() % parts;
    work.first_row = (blockIdx.x * (warps / parts) + warp_id() / parts) * n_rows;
    return true;
}

// Add up the parts and store; all threads of the block call it. `sums`: by row, then token.
template <int n_rows, int n_tokens, int warps> DEVICE void finish_work(const Weights& w, const Results& r,
                                                                       const Work& work, int parts,
                                                                       float (&sums)[n_rows * n_tokens]) {
    constexpr int n = n_rows * n_tokens;
    __shared__ float shared[warps][n];
    float sum = fold(sums);
    int i = lane_id() / (32 / n);
    bool mine = lane_id() % (32 / n) == 0;
    if (parts > 1) {
        if (mine) shared[warp_id()][i] = sum;
        __syncthreads();
        if (work.part) return;
        for (int p = 1; p < parts; p++) sum += shared[warp_id() + p][i];
    }
    int row = work.first_row + i / n_tokens, token = i % n_tokens;
    if (mine && row < w.rows && token < work.n_tokens)
        store_result(w, r, work.matrix, row, work.first_out + token, sum);
}
