// A mixture of experts around its products: who goes where, and the weighted sum of what comes back. A slot is one token
// at one of its experts: token * n_used + choice.
#include "common.cuh"

struct Sort {
    const int* chosen;   // [slots]
    int* offsets;        // [n_experts + 1]: where each expert's slots begin
    int* slots;          // [slots], by expert
    const int* n_slots;
    int n_experts;
};

#define SORTERS 1024

// One block: a few thousand slots, mostly.
KERNEL(sort_slots, Sort, SORTERS) {
    const int t = threadIdx.x, n = *a.n_slots;
    SHARED(int, next);  // [n_experts]
    for (int e = t; e < a.n_experts; e += SORTERS) next[e] = 0;
    __syncthreads();
    for (int s = t; s < n; s += SORTERS) atomicAdd(&next[a.chosen[s]], 1);
    __syncthreads();
    if (warp_id() == 0) {
        int start = 0;
        for (int first = 0; first < a.n_experts; first += 32) {
            const int e = first + t, count = e < a.n_experts ? next[e] : 0;
            int sum = count;
#pragma unroll
            for (int o = 1; o < 32; o <<= 1) {
                const int before = __shfl_up_sync(FULL_WARP, sum, o);
                if (t >= o) sum += before;
            }
            if (e < a.n_experts) a.offsets[e] = next[e] = start + sum - count;
            start += __shfl_sync(FULL_WARP, sum, 31);
        }
        if (t == 0) a.offsets[a.n_experts] = start;
    }
    __syncthreads();
    for (int s = t; s < n; s += SORTERS) a.slots[atomicAdd(&next[a.chosen[s]], 1)] = s;
}

struct Weigh {
    float* y;              // [slots][ld]
    const float* weights;  // [slots]
    const int* n_slots;
    int ld, width;
};

#define COLUMNS 256

// y times the slots' weights, in place.
KERNEL(weigh, Weigh, COLUMNS) {
    const int column = blockIdx.x * COLUMNS + threadIdx.x, slot = blockIdx.y;
    if (slot < *a.n_slots && column < a.width) a.y[(s64)slot * a.ld + column] *= a.weights[slot];
}

struct Combine {
    const float* y;         // [slots][ldy]
    const float* weights;   // [slots], null: all are 1
    const float* residual;  // [tokens][ldr] or null
    float* out;             // [tokens][ldo]
    const int* n_tokens;
    int ldy, ldr, ldo, n_used, width;
};

// out[token] = residual[token] + sum over its slots of weight * y[slot], always in the order of the choices.
KERNEL(combine, Combine, COLUMNS) {
    const int column = blockIdx.x * COLUMNS + threadIdx.x, token = blockIdx.y;
    if (token >= *a.n_tokens || column >= a.width) return;
    const float* y = a.y + (s64)token * a.n_used * a.ldy + column;
    const float* weights = a.weights ? a.weights + token * a.n_used : nullptr;
    float total = a.residual ? a.residual[(s64)token * a.ldr + column] : 0.0f;
#pragma unroll 4
    for (int j = 0; j < a.n_used; j++) total = fmaf(weights ? weights[j] : 1.0f, y[(s64)j * a.ldy], total);
    a.out[(s64)token * a.ldo + column] = total;
}
