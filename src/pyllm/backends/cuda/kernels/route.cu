// Which experts a token goes to, and with what weights: a warp per token. Defines: GATING, PER_LANE (experts of a lane).
#include "common.cuh"

#define SOFTMAX 0
#define SIGMOID 1
#define SOFTMAX_CHOSEN 2
#define WARPS 4
#define LEAST_SUM 6.103515625e-5f  // what weights sum to at least, as llama.cpp has it

struct Route {
    const float* logits;       // [tokens][ld]
    const float* choice_bias;  // [n_experts] or null
    int* chosen;               // [tokens][n_used], best first, of equals the lower number
    float* weights;            // [tokens][n_used]
    int* n_slots;
    const int* n_tokens;
    int ld, n_experts, n_used;
    int sharing;  // experts that share matrices: what is chosen is these' number, and its weight that number's
    int normalize;
    float weight_scale;
};

// Larger numbers have larger ones; none has 0. NaN counts as -inf.
DEVICE u32 order_of(float x) {
    const u32 bits = __float_as_uint(x != x ? -infinity() : x + 0.0f);
    return bits ^ ((u32)((s32)bits >> 31) | 0x80000000u);
}

// weights [n] that the lanes see to softmax of them, in place.
DEVICE void softmax_of(float* weights, int n) {
    float top = -infinity(), total = 0;
    for (int j = lane_id(); j < n; j += 32) top = fmaxf(top, weights[j]);
    top = warp_max(top);
    for (int j = lane_id(); j < n; j += 32) total += weights[j] = expf(weights[j] - top);
    total = warp_sum(total);
    for (int j = lane_id(); j < n; j += 32) weights[j] /= total;
}

DEVICE void scores_of(const float* logits, int n, float (&score)[PER_LANE]) {
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int e = lane_id() + 32 * i;
        score[i] = e < n ? logits[e] : -infinity();
    }
    if (GATING == SOFTMAX) {
        float top = -infinity(), total = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) top = fmaxf(top, score[i]);
        top = warp_max(top);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) total += score[i] = expf(score[i] - top);
        total = warp_sum(total);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) score[i] /= total;
    } else if (GATING == SIGMOID) {
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) score[i] = 1.0f / (1.0f + expf(-score[i]));
    }
}

KERNEL(route, Route, 32 * WARPS) {
    const int token = blockIdx.x * WARPS + warp_id(), lane = lane_id();
    if (token >= *a.n_tokens) return;
    float score[PER_LANE];
    u32 order[PER_LANE];  // 0: not to be chosen
    scores_of(a.logits + (s64)token * a.ld, a.n_experts, score);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int e = lane + 32 * i;
        order[i] = e < a.n_experts ? order_of(a.choice_bias ? score[i] + a.choice_bias[e] : score[i]) : 0;
    }
    int* chosen = a.chosen + token * a.n_used;
    float* weights = a.weights + token * a.n_used;
    for (int j = 0; j < a.n_used; j++) {
        u32 best = 0;
        int expert = a.n_experts;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (order[i] > best) {
                best = order[i];
                expert = lane + 32 * i;
            }
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) {
            const u32 other = __shfl_xor_sync(FULL_WARP, best, o);
            const int other_expert = __shfl_xor_sync(FULL_WARP, expert, o);
            if (other > best || (other == best && other_expert < expert)) {
                best = other;
                expert = other_expert;
            }
        }
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (expert == lane + 32 * i) order[i] = 0;
        expert /= a.sharing;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (expert == lane + 32 * i) {
                chosen[j] = expert;
                weights[j] = score[i];
            }
    }
    __syncwarp();
    if (GATING == SOFTMAX_CHOSEN) softmax_of(weights, a.n_used);
    float scale = a.weight_scale;
    if (a.normalize) {
        float total = 0;
        for (int j = lane; j < a.n_used; j += 32) total += weights[j];
        scale /= fmaxf(warp_sum(total), LEAST_SUM);
    }
    for (int j = lane; j < a.n_used; j += 32) weights[j] *= scale;
    if (token == 0 && lane == 0) *a.n_slots = *a.n_tokens * a.n_used;
}
