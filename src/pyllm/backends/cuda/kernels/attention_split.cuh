// Attention of few rows, positions split over blocks and warps: how a block finds its part, and how its warps' results
// become one. A block has WARPS warps and ROWS rows of one KV head; its results go to `partial` and `stats`, which
// attention_combine.cu reads.
#pragma once
#include "attention.cuh"

#define WARPS 4

struct Args {
    Inputs in;
    float* partial;  // [row][n_splits][V_HEAD], sums of values, weighted by 2^(score - largest)
    float* stats;    // [row][n_splits][2], largest score and sum of weights
    int n_splits;    // blocks.x is the split, and n_splits times which ROWS rows; .y the KV head, .z the sequence
    int most;        // tokens of a sequence that has its rows here; with more it has them elsewhere
    int slots;       // tokens that partial has room for per sequence; 0: it has a row for every token of the step
};

// Positions begin .. end - 1 of a block; `begin` is a multiple of 16, nothing is to be done where begin >= end.
struct Part {
    Rows rows;
    int seq, kv_head, split, begin, end;
};

DEVICE bool find_part(const Args& a, Part& part) {
    part.seq = blockIdx.z;
    if (part.seq >= a.in.step->n_seqs) return false;
    int n = a.in.spans[2 * part.seq + 1], first = (int)blockIdx.x / a.n_splits * ROWS;
    if (n > a.most || first >= n * GROUP) return false;
    part.kv_head = blockIdx.y;
    part.split = (int)blockIdx.x % a.n_splits;
    part.rows = rows_of(a.in, part.seq, first, ROWS);
    int low = part.rows.low / 16, tiles = part.rows.high / 16 + 1 - low;
    int each = max(ceil_div(tiles, a.n_splits), 2 * WARPS);
    part.begin = (low + each * part.split) * 16;
    part.end = min(part.begin + each * 16, part.rows.high + 1);
    return true;
}

// The row of `partial` that has row `row` of the block.
DEVICE u64 partial_row(const Args& a, const Part& part, int row) {
    int at = part.rows.first_row + row, token = at / GROUP;
    u64 slot = a.slots ? (u64)part.seq * a.slots + token : (u64)(part.rows.token + token);
    return slot * a.in.n_kv * GROUP + part.kv_head * GROUP + at % GROUP;
}

// Shared memory of a block, in floats: two warps' sums, everybody's largest scores and sums of weights.
struct Merge {
    float sums[WARPS / 2][ROWS][V_WIDTH + 2];
    float largest[WARPS][ROWS], weights[WARPS][ROWS];
};

// The largest score of a row over all warps; `largest` and `weights` are written, and all threads have met.
DEVICE float largest_of(const Merge& m, int row) {
    float x = m.largest[0][row];
#pragma unroll
    for (int w = 1; w < WARPS; w++) x = fmaxf(x, m.largest[w][row]);
    return x;
}

// Writes what the block has found; the first two warps' `sums` hold everything.
DEVICE void write_part(const Args& a, const Part& part, const Merge& m) {
    for (int row = warp_id(); row < part.rows.n; row += WARPS) {
        u64 at = partial_row(a, part, row) * a.n_splits + part.split;
        for (int d = lane_id(); d < V_HEAD; d += 32) a.partial[at * V_HEAD + d] = m.sums[0][row][d] + m.sums[1][row][d];
        if (lane_id() == 0) {
            float largest = largest_of(m, row), weights = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) weights += m.weights[w][row] * fast_exp2(m.largest[w][row] - largest);
            a.stats[2 * at] = largest;
            a.stats[2 * at + 1] = weights;
        }
    }
}

// A block without positions.
DEVICE void write_nothing(const Args& a, const Part& part) {
    for (int row = threadIdx.x; row < part.rows.n; row += WARPS * 32) {
        u64 at = partial_row(a, part, row) * a.n_splits + part.split;
        a.stats[2 * at] = NOTHING;
        a.stats[2 * at + 1] = 0.0f;
    }
}
