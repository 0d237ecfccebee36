// A product for each head with a matrix of its own, in float32: a warp per row of a matrix, over some tokens at a time.
// Defines: WARPS, TOKENS.
#include "common.cuh"

struct Args {
    const float* x;       // [tokens][ldx], of it [n_heads][columns]
    const float* weight;  // [n_heads][rows][columns]
    float* y;             // [tokens][ldy], of it [n_heads][rows]
    const int* count;
    int ldx, ldy, rows, columns;
};

KERNEL(linear_heads, Args, 32 * WARPS) {
    const int row = blockIdx.x * WARPS + warp_id(), head = blockIdx.y, first = blockIdx.z * TOKENS;
    const int n = min(TOKENS, *a.count - first);
    if (row >= a.rows || n <= 0) return;
    const float* weight = a.weight + ((s64)head * a.rows + row) * a.columns;
    const float* x = a.x + (s64)first * a.ldx + head * a.columns;
    float total[TOKENS] = {};
    for (int c = lane_id(); c < a.columns; c += 32) {
        const float w = weight[c];
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            if (t < n) total[t] += w * x[(s64)t * a.ldx + c];
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        const float sum = warp_sum(total[t]);
        if (t < n && lane_id() == 0) a.y[(s64)(first + t) * a.ldy + head * a.rows + row] = sum;
    }
}
