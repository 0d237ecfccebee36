// Rotary positions and the norms of heads before them, and storing keys and values: one warp for a head of a token.
//
// Heads 0 .. n_q - 1 are queries, which go to `q_out`; then n_k keys and n_k values, which go into the cache.
// HEAD, V_HEAD: columns of a head; PAIRS: rotated pairs of columns, 0 for none; INTERLEAVED: pairs are neighbours;
// Q_NORM, K_NORM: heads are normed before, with weights every q_norm_step and k_norm_step floats, or without.
#include "kv.cuh"

#define WARPS 4

struct Args {
    const Step* step;
    const int* positions;
    const int* seqs;
    const int* page_tables;
    const float* q;
    const float* k;
    const float* v;
    float* q_out;
    u8* keys;
    u8* values;
    const float* inv_freq;
    const float* q_norm;
    const float* k_norm;
    int page_stride;
    int q_ld;
    int k_ld;
    int v_ld;
    int q_out_ld;
    int q_norm_step;
    int k_norm_step;
    int n_q;
    int n_k;
    float mscale;
    float q_eps;
    float k_eps;
};

// Sine and cosine with an absolute error of 1e-7 for angles below 2^21: what pi / 2 takes out of the angle is exact to
// its first 24 bits, and beyond them to 24 more.
DEVICE float2 cos_sin(float angle) {
    float n = rintf(angle * 0.636619772f);
    float r = fmaf(n, -1.57079637f, angle);
    r = fmaf(n, 4.37113883e-8f, r);
    float s = r * r;
    float sine = fmaf(fmaf(fmaf(-1.9515295891e-4f, s, 8.3321608736e-3f), s, -1.6666654611e-1f), s * r, r);
    float cosine =
        fmaf(fmaf(fmaf(2.443315711e-5f, s, -1.388731625e-3f), s, 4.166664568e-2f), s * s, fmaf(-0.5f, s, 1.0f));
    int quarter = (int)n & 3;
    float x = quarter & 1 ? sine : cosine, y = quarter & 1 ? cosine : sine;
    return make_float2(quarter == 1 || quarter == 2 ? -x : x, quarter & 2 ? -y : y);
}

// Lane l has columns l, l + 32, … of a head.
template <int size> DEVICE void load_head(const float* x, float (&out)[(size + 31) / 32]) {
#pragma unroll
    for (int j = 0; j < (size + 31) / 32; j++) out[j] = lane_id() + 32 * j < size ? x[lane_id() + 32 * j] : 0.0f;
}

DEVICE void norm_head(float (&x)[(HEAD + 31) / 32], const float* weight, float eps) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < (HEAD + 31) / 32; j++) sum = fmaf(x[j], x[j], sum);
    float factor = 1.0f / sqrtf(warp_sum(sum) / HEAD + eps);
#pragma unroll
    for (int j = 0; j < (HEAD + 31) / 32; j++) {
        int column = lane_id() + 32 * j;
        x[j] *= factor;
        if (weight && column < HEAD) x[j] *= weight[column];
    }
}

// `row`: the warp's own shared memory.
DEVICE void rotate_head(float (&x)[(HEAD + 31) / 32], float position, const float* inv_freq, float mscale, float* row) {
#pragma unroll
    for (int j = 0; j < (HEAD + 31) / 32; j++)
        if (lane_id() + 32 * j < 2 * PAIRS) row[lane_id() + 32 * j] = x[j];
    __syncwarp();
#pragma unroll
    for (int j = 0; j < (HEAD + 31) / 32; j++) {
        int column = lane_id() + 32 * j;
        if (column >= 2 * PAIRS) break;
#if INTERLEAVED
        int pair = column >> 1, partner = column ^ 1;
#else
        int pair = column < PAIRS ? column : column - PAIRS, partner = column < PAIRS ? column + PAIRS : pair;
#endif
        bool second = partner < column;
        float other = row[partner];
        float2 turn = cos_sin(position * inv_freq[pair]);
        float cosine = turn.x * mscale, sine = turn.y * mscale;
        x[j] = second ? fmaf(other, sine, x[j] * cosine) : fmaf(-other, sine, x[j] * cosine);
    }
}

// A row of the cache: `row` of a head's part of a page.
template <int size> DEVICE void store_head(const float (&x)[(size + 31) / 32], u8* head, int row) {
    constexpr int width = padded(size);
#pragma unroll
    for (int j = 0; j < (size + 31) / 32; j++) {
        int column = lane_id() + 32 * j;
#if KV == KV_F32
        if (column < width) reinterpret_cast<float*>(head)[row * width + column] = x[j];
#elif KV == KV_F16
        if (column < width) reinterpret_cast<u16*>(head)[row * width + column] = f32_to_f16(finite_half(x[j]));
#else
        float value = finite_half(x[j]), most = warp_max(fabsf(value));
        u16 scale = f32_to_f16(most / 127.0f);
        float inverse = f16_to_f32(scale) > 0.0f ? 1.0f / f16_to_f32(scale) : 0.0f;
        reinterpret_cast<s8*>(head)[row * width + column] = (s8)max(-127, min(127, __float2int_rn(value * inverse)));
        if (lane_id() == 0) reinterpret_cast<u16*>(head + scales_at<width>(row))[j] = scale;
#endif
    }
}

// A query's or key's head, as the attention wants it.
DEVICE void turned_head(const Args& a, const float* x, float (&out)[(HEAD + 31) / 32], int position, bool is_q, int h) {
    __shared__ float rows[WARPS][PAIRS ? 2 * PAIRS : 1];
    load_head<HEAD>(x, out);
    if (is_q ? Q_NORM : K_NORM) {
        const float* weight = is_q ? a.q_norm : a.k_norm;
        if (weight) weight += h * (is_q ? a.q_norm_step : a.k_norm_step);
        norm_head(out, weight, is_q ? a.q_eps : a.k_eps);
    }
    if (PAIRS) rotate_head(out, (float)position, a.inv_freq, a.mscale, rows[warp_id()]);
}

KERNEL(rope_store, Args, WARPS * 32) {
    int token = blockIdx.x, head = blockIdx.y * WARPS + warp_id();
    if (token >= a.step->n_tokens || head >= a.n_q + 2 * a.n_k) return;
    int position = a.positions[token];
    float x[(HEAD + 31) / 32];
    if (head < a.n_q) {
        turned_head(a, a.q + (u64)token * a.q_ld + head * HEAD, x, position, true, head);
        float* out = a.q_out + (u64)token * a.q_out_ld + head * HEAD;
#pragma unroll
        for (int j = 0; j < (HEAD + 31) / 32; j++)
            if (lane_id() + 32 * j < HEAD) out[lane_id() + 32 * j] = x[j];
        return;
    }
    head -= a.n_q;
    int page = a.page_tables[(u64)a.seqs[token] * a.page_stride + position / PAGE], row = position % PAGE;
    if (head < a.n_k) {
        turned_head(a, a.k + (u64)token * a.k_ld + head * HEAD, x, position, false, head);
        store_head<HEAD>(x, a.keys + head_offset<padded(HEAD)>(page, a.n_k, head), row);
    } else {
        head -= a.n_k;
        float value[(V_HEAD + 31) / 32];
        load_head<V_HEAD>(a.v + (u64)token * a.v_ld + head * V_HEAD, value);
        store_head<V_HEAD>(value, a.values + head_offset<padded(V_HEAD)>(page, a.n_k, head), row);
    }
}
