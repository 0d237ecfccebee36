// The largest logits of a row and the logarithm of its sum of exponentials: first of slices of it, each by a block of its
// own, so that one row keeps many multiprocessors busy; then of what the slices found.
#include "common.cuh"

#define THREADS 256
#define EACH 16
#define SLICE (THREADS * EACH)
#define MOST 128  // of `n`
#define HEADS 1024
#define MERGERS 512

// Larger logits have larger keys, of equal logits the lower id; no two keys are equal and none is 0. NaN counts as -inf.
DEVICE u64 key_of(float x, int id) {
    u32 bits = __float_as_uint(x != x ? -infinity() : x + 0.0f);  // the sum makes 0 of -0
    bits ^= (u32)((s32)bits >> 31) | 0x80000000u;
    return (u64)bits << 32 | (u32)~id;
}

DEVICE float logit_of(u64 key) {
    u32 bits = (u32)(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits ^ 0x80000000u : ~bits);
}

DEVICE int id_of(u64 key) { return (int)~(u32)key; }

DEVICE int larger(const u64* keys, int n, u64 key) {
    int count = 0;
#pragma unroll 8
    for (int i = 0; i < n; i++) count += keys[i] > key;
    return count;
}

// sum of e^(x - top), where `top` may be -inf: then of nothing. NaN and inf make it NaN.
DEVICE float relative(float x, float top) { return fast_exp(x - (top == -infinity() ? 0.0f : top)); }

struct Slices {
    const float* logits;
    u64* keys;    // [rows][n_slices][n], descending, 0 where there are fewer
    float* sums;  // [rows][n_slices][2]: the largest, and the sum of e^(logit - largest)
    const int* n_rows;
    int ld, n_vocab, n;
};

KERNEL(candidates_of_slices, Slices, THREADS) {
    const int row = blockIdx.y, start = blockIdx.x * SLICE, t = threadIdx.x;
    if (row >= *a.n_rows) return;
    __shared__ u64 maxima[THREADS];
    __shared__ u64 found[SLICE];
    __shared__ float scratch[32];
    __shared__ u64 bound;
    __shared__ int n_found;
    if (t == 0) {
        bound = 0;
        n_found = 0;
    }
    const float* logits = a.logits + (s64)row * a.ld;
    float x[EACH], top = -infinity();
    u64 best = 0;
#pragma unroll
    for (int i = 0; i < EACH; i += 4) {
        const int id = start + i * THREADS + 4 * t;
        float4 four = make_float4(-infinity(), -infinity(), -infinity(), -infinity());
        if (id < a.n_vocab) four = *reinterpret_cast<const float4*>(logits + id);
        const float part[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const bool there = id + j < a.n_vocab;
            x[i + j] = there ? part[j] : -infinity();
            top = fmaxf(top, x[i + j]);
            if (there) best = max(best, key_of(x[i + j], id + j));
        }
    }
    maxima[t] = best;
    top = block_max(top, scratch);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) sum += relative(x[i], top);
    sum = block_sum(sum, scratch);

    // The n-th largest of the threads' own largest: at least n of the slice are as large, and seldom many more.
    if (larger(maxima, THREADS, best) == a.n - 1) bound = best;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int id = start + i / 4 * 4 * THREADS + 4 * t + i % 4;
        const u64 key = key_of(x[i], id);
        if (id < a.n_vocab && key >= bound) found[atomicAdd(&n_found, 1)] = key;
    }
    __syncthreads();
    const int slice = row * gridDim.x + blockIdx.x, count = n_found;
    u64* keys = a.keys + (s64)slice * a.n;
    for (int i = t; i < count; i += THREADS) {
        const int rank = larger(found, count, found[i]);
        if (rank < a.n) keys[rank] = found[i];
    }
    for (int i = count + t; i < a.n; i += THREADS) keys[i] = 0;
    if (t == 0) {
        a.sums[2 * slice] = top;
        a.sums[2 * slice + 1] = sum;
    }
}

struct Merge {
    const u64* keys;
    const float* sums;
    u32* out;  // [rows][stride]: n ids, n logits, the logarithm of the sum
    const int* n_rows;
    int n_slices, n, stride;
};

DEVICE float log_of(const float* sums, int n_slices) {  // of the sum of e^logit; every lane of a warp gets it
    const int lane = lane_id();
    float top = -infinity(), sum = 0;
    for (int i = lane; i < n_slices; i += 32) top = fmaxf(top, sums[2 * i]);
    top = warp_max(top);
    for (int i = lane; i < n_slices; i += 32) sum += sums[2 * i + 1] * relative(sums[2 * i], top);
    return top + logf(warp_sum(sum));
}

KERNEL(candidates_of_row, Merge, MERGERS) {
    const int row = blockIdx.x, t = threadIdx.x, n_keys = a.n_slices * a.n;
    if (row >= *a.n_rows) return;
    // Whole slices are as large as the bound only where all their heads are; there are at most n of those.
    __shared__ u64 heads[HEADS];
    __shared__ u64 found[MOST * MOST / 4 + MOST];
    __shared__ u64 bound;
    __shared__ int n_found;
    if (t == 0) {
        bound = 0;
        n_found = 0;
    }
    const u64* keys = a.keys + (s64)row * n_keys;
    u32* out = a.out + (s64)row * a.stride;
    const int depth = min(a.n, max(4, ceil_div(2 * a.n, a.n_slices))), n_heads = a.n_slices * depth;
    for (int i = t; i < n_heads; i += MERGERS) heads[i] = keys[i / depth * a.n + i % depth];
    __syncthreads();
    for (int i = t; i < n_heads; i += MERGERS)
        if (heads[i] && larger(heads, n_heads, heads[i]) == a.n - 1) bound = heads[i];
    __syncthreads();
    for (int i = t; i < n_keys; i += MERGERS) {
        const u64 key = keys[i];
        if (key && key >= bound) found[atomicAdd(&n_found, 1)] = key;
    }
    __syncthreads();
    const int count = n_found;
    for (int i = t; i < count; i += MERGERS) {
        const int rank = larger(found, count, found[i]);
        if (rank >= a.n) continue;
        out[rank] = (u32)id_of(found[i]);
        out[a.n + rank] = __float_as_uint(logit_of(found[i]));
    }
    if (warp_id() == 0) {
        const float log_sum = log_of(a.sums + (s64)2 * row * a.n_slices, a.n_slices);
        if (t == 0) out[2 * a.n] = __float_as_uint(log_sum);
    }
}
