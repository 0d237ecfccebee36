// What the blocks of attention_split.cu or attention_float.cu found of a token's heads becomes the token's result.
//
// V_HEAD; SINKS: whether logits join a head's weights without a value. TOGETHER: the warps of a block share the splits
// of 128 columns; else each thread takes all splits, of its columns of a whole row. THREADS; PER_THREAD: fours of
// columns that a thread has.
#include "rows.cuh"

#define LOG2_E 1.4426950408889634f

struct Args {
    Forms out;
    const Step* step;
    const int* spans;
    const float* partial;  // [row][n_splits][V_HEAD], see attention_split.cuh
    const float* stats;    // [row][n_splits][2]
    const float* sinks;    // [n_heads]
    int n_heads;
    int n_splits;
    int most;
    int slots;
};

struct Found {
    float sum, largest, weights;
};

DEVICE void join(Found& to, Found x) {
    float largest = fmaxf(to.largest, x.largest);
    float old_factor = fast_exp2(to.largest - largest), factor = fast_exp2(x.largest - largest);
    to.sum = to.sum * old_factor + x.sum * factor;
    to.weights = to.weights * old_factor + x.weights * factor;
    to.largest = largest;
}

// The token that row `slot` of `partial` (without its heads) is of, or -1.
DEVICE int token_of(const Args& a, int slot) {
    if (!a.slots) return slot < a.step->n_tokens ? slot : -1;
    int seq = slot / a.slots, i = slot % a.slots;
    if (seq >= a.step->n_seqs) return -1;
    int n = a.spans[2 * seq + 1];
    return i < n && n <= a.most ? a.spans[2 * seq] + i : -1;
}

// Splits first, first + step, … of four columns.
DEVICE void gather(const Args& a, int slot, int column, int first, int step, Found (&found)[4]) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
        found[e] = {0.0f, -1e30f, 0.0f};
        if (column + e >= a.out.width) continue;
        s64 at = ((s64)slot * a.n_heads + (column + e) / V_HEAD) * a.n_splits;
#pragma unroll 4
        for (int i = first; i < a.n_splits; i += step) {
            float weights = a.stats[2 * (at + i) + 1];
            if (weights > 0.0f)  // a block without positions writes no sums
                join(found[e], {a.partial[(at + i) * V_HEAD + (column + e) % V_HEAD], a.stats[2 * (at + i)], weights});
        }
    }
}

DEVICE float finished(const Args& a, int column, Found x) {
    if (column >= a.out.width) return 0.0f;
#if SINKS
    join(x, {0.0f, a.sinks[column / V_HEAD] * LOG2_E, 1.0f});
#endif
    return x.sum / x.weights;
}

DEVICE float4 finished(const Args& a, int column, const Found (&x)[4]) {
    return make_float4(finished(a, column, x[0]), finished(a, column + 1, x[1]), finished(a, column + 2, x[2]),
                       finished(a, column + 3, x[3]));
}

KERNEL_MIN(combine, Args, THREADS, 1) {
    int slot = blockIdx.x, row = token_of(a, slot);
    if (row < 0) return;
    float4 out[PER_THREAD];
    Found found[4];
#if TOGETHER
    __shared__ Found all[THREADS / 32][4][32];
    int column = 4 * (lane_id() + 32 * blockIdx.y);
    gather(a, slot, column, warp_id(), THREADS / 32, found);
#pragma unroll
    for (int e = 0; e < 4; e++) all[warp_id()][e][lane_id()] = found[e];
    __syncthreads();
    if (warp_id() > 0) return;
    for (int w = 1; w < THREADS / 32; w++)
#pragma unroll
        for (int e = 0; e < 4; e++) join(found[e], all[w][e][lane_id()]);
    out[0] = finished(a, column, found);
    write_forms(a.out, row, column, 0, out);
#else
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        int column = 4 * (threadIdx.x + i * THREADS);
        gather(a, slot, column, 0, 1, found);
        out[i] = finished(a, column, found);
    }
    write_forms(a.out, row, 4 * threadIdx.x, 4 * THREADS, out);
#endif
}
