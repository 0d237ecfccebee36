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
    int n_groups, n_groups_used;  // of experts, of which the best are chosen from; 0: from all, at most 32
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

// The groups whose two largest scores have the largest sums, as bits; `score` is each lane's, with the bias.
DEVICE u32 best_groups(const float (&score)[PER_LANE], int n_experts, int n_groups, int n_used) {
    const int lane = lane_id(), size = n_experts / n_groups;
    float own = 0;  // the sum of the lane's group
    for (int g = 0; g < n_groups; g++) {
        float first = -infinity(), second = -infinity();
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            const int e = lane + 32 * i;
            if (e >= g * size && e < (g + 1) * size) {
                second = fmaxf(second, fminf(first, score[i]));
                first = fmaxf(first, score[i]);
            }
        }
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) {
            const float other = __shfl_xor_sync(FULL_WARP, first, o);
            second = fmaxf(fminf(first, other), fmaxf(second, __shfl_xor_sync(FULL_WARP, second, o)));
            first = fmaxf(first, other);
        }
        if (lane == g) own = second + first;
    }
    int better = 0;
    for (int g = 0; g < n_groups; g++) {
        const float other = __shfl_sync(FULL_WARP, own, g);
        better += other > own || (other == own && g < lane);
    }
    return __ballot_sync(FULL_WARP, lane < n_groups && better < n_used);
}

KERNEL(route, Route, 32 * WARPS) {
    const int token = blockIdx.x * WARPS + warp_id(), lane = lane_id();
    if (token >= *a.n_tokens) return;
    float score[PER_LANE], biased[PER_LANE];
    u32 order[PER_LANE];  // 0: not to be chosen
    scores_of(a.logits + (s64)token * a.ld, a.n_experts, score);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int e = lane + 32 * i;
        biased[i] = e < a.n_experts && a.choice_bias ? score[i] + a.choice_bias[e] : score[i];
    }
    const u32 groups =
        a.n_groups ? best_groups(biased, a.n_experts, a.n_groups, a.n_groups_used) : FULL_WARP;
    const int size = a.n_groups ? a.n_experts / a.n_groups : a.n_experts;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int e = lane + 32 * i;
        order[i] = e < a.n_experts && groups >> e / size & 1 ? order_of(biased[i]) : 0;
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
