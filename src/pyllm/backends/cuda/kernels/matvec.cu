// Products of quantized matrices with few tokens: dot products of integers, activations as q8 (forms.cuh).
//
// A lane takes a group of 32 columns of ROWS rows at a time: activations are read once for all of them, and the next
// groups are on their way while it computes. Defines: those of unpack.cuh, ROWS, TOKENS (products of both: powers of
// two up to 32).
#include "product.cuh"
#include "unpack.cuh"

#define WARPS 4

struct Args {
    Weights w;
    Results r;
    const s8* x;
    const float* x_scales;
    const u32* x_sums;
    const int* count;
    const int* ids;  // the matrix of each slot, or null
    int ld_x;
    int slots_per_row;
    int parts;
};

struct Rows {
    Words words[ROWS];
    RawScale scales[ROWS];
};

struct Planes {
    const u8 *low, *high, *scales, *floats;
    u32 first[ROWS];  // each row's first group
};

DEVICE void load_rows(const Planes& p, int group, Rows& rows) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        u32 at = p.first[r] + group;
        load_words(p.low, p.high, at, rows.words[r]);
        rows.scales[r] = load_scale(p.scales, p.floats, at, BLOCK_GROUPS == 1 ? at : at / BLOCK_GROUPS);
    }
}

// A row's sum over a group, of the sums of products of its halves and those of the activations alone; over their scale.
DEVICE float scaled(RawScale raw, int dot0, int dot1, int sum0, int sum1) {
    dot0 -= DOT_OFFSET * sum0, dot1 -= DOT_OFFSET * sum1;
    float d = scale_float(raw.floats & 0xffff), e = MINIMA ? scale_float(raw.floats >> 16) : 0.0f;
    if constexpr (SCALES == SCALES_I8 && HALVES == 1) {
        float y = d * (float)((s8)raw.bytes * (dot0 + dot1));
        return MINIMA ? fmaf(e, (float)((int)(raw.bytes >> 8) * (sum0 + sum1)), y) : y;
    } else if constexpr (SCALES == SCALES_I8) {
        return d * (float)((s8)raw.bytes * dot0 + (s8)(raw.bytes >> 8) * dot1);
    } else if constexpr (SCALES == SCALES_U4) {
        int scales = (int)(raw.bytes & 15) * dot0 + (int)(raw.bytes >> 8 & 15) * dot1;
        int minima = (int)(raw.bytes >> 4 & 15) * sum0 + (int)(raw.bytes >> 12) * sum1;
        return fmaf(d, (float)scales, e * (float)minima);
    } else if constexpr (SCALES == SCALES_E4M3) {
        return fmaf(scale_of(raw, 0).x, (float)dot0, scale_of(raw, 1).x * (float)dot1);
    } else {
        float y = d * (float)(dot0 + dot1);
        return MINIMA ? fmaf(e, (float)(sum0 + sum1), y) : y;
    }
}

DEVICE void multiply(const Args& a, const Work& work, int group, const Rows& rows, float (&sums)[ROWS * TOKENS]) {
    int q[ROWS][8];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int h = 0; h < 4; h++) {
            u32 low, high;
            octet_of<false>(rows.words[r], h, low, high);
            q[r][2 * h] = (int)low, q[r][2 * h + 1] = (int)high;
        }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        u32 at = (work.first_x + (TOKENS == 1 ? 0 : min(t, work.n_tokens - 1))) * (a.ld_x / 32) + group;
        const s8* x = a.x + 32 * (u64)at;
        float scale = a.x_scales[at];
        u32 both = a.x_sums[at];
        uint4 x0 = load16(x), x1 = load16(x + 16);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            int dot0 = __dp4a(q[r][0], (int)x0.x, 0), dot1 = __dp4a(q[r][4], (int)x1.x, 0);
            dot0 = __dp4a(q[r][1], (int)x0.y, dot0), dot1 = __dp4a(q[r][5], (int)x1.y, dot1);
            dot0 = __dp4a(q[r][2], (int)x0.z, dot0), dot1 = __dp4a(q[r][6], (int)x1.z, dot1);
            dot0 = __dp4a(q[r][3], (int)x0.w, dot0), dot1 = __dp4a(q[r][7], (int)x1.w, dot1);
            float y = scaled(rows.scales[r], dot0, dot1, (s16)both, (s16)(both >> 16));
            sums[r * TOKENS + t] = fmaf(scale, y, sums[r * TOKENS + t]);
        }
    }
}

#if TOKENS < 4
KERNEL(matvec, Args, 32 * WARPS) {
#else
KERNEL_MIN(matvec, Args, 32 * WARPS, 3) {  // more registers than its default, which would spill
#endif

    Work work;
    if (!find_work<ROWS>(a.w, a.ids, a.count, a.slots_per_row, a.parts, WARPS, work)) return;
    Planes p{plane(a.w, work.matrix, a.w.low), plane(a.w, work.matrix, a.w.high), plane(a.w, work.matrix, a.w.scales),
             plane(a.w, work.matrix, a.w.floats), {}};
#pragma unroll
    for (int r = 0; r < ROWS; r++) p.first[r] = (u32)min(work.first_row + r, a.w.rows - 1) * a.w.n_groups;
    float sums[ROWS * TOKENS] = {};
    int step = 32 * a.parts, group = lane_id() + 32 * work.part;
    if (group < a.w.n_groups) {
        Rows now, next;
        load_rows(p, group, now);
        for (; group + step < a.w.n_groups; group += step) {
            load_rows(p, group + step, next);
            multiply(a, work, group, now, sums);
            now = next;
        }
        multiply(a, work, group, now, sums);
    }
#pragma unroll
    for (int i = 0; i < ROWS * TOKENS; i++) sums[i] *= FACTOR;
    finish_work<ROWS, TOKENS, WARPS>(a.w, a.r, work, a.parts, sums);
}
