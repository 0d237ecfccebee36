// Attention of float32 caches, in float32 throughout, positions split over blocks and warps.
//
// For scores a lane has a position and all columns; for sums it has columns lane, lane + 32, … and all positions.
// ROWS: any.
#include "attention_split.cuh"

constexpr int COLUMNS = (V_WIDTH + 31) / 32;

struct State {
    float sums[ROWS][COLUMNS];
    float largest[ROWS], weights[ROWS];
};

DEVICE void load_queries(const Args& a, const Part& part, float (&q)[ROWS][WIDTH]) {
    float factor = query_factor(a.in);
    for (int i = threadIdx.x; i < ROWS * WIDTH; i += WARPS * 32) {
        const float* row = queries_of(a.in, part.rows, i / WIDTH, part.kv_head);
        q[i / WIDTH][i % WIDTH] = row && i % WIDTH < HEAD ? row[i % WIDTH] * factor : 0.0f;
    }
}

// Scores of the lane's position.
DEVICE void score(const float (&q)[ROWS][WIDTH], const float* key, float (&scores)[ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) scores[r] = 0.0f;
#pragma unroll 4
    for (int i = 0; i < WIDTH; i += 4) {
        float4 k = *reinterpret_cast<const float4*>(key + i);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float4 x = *reinterpret_cast<const float4*>(&q[r][i]);
            scores[r] = fmaf(x.x, k.x, fmaf(x.y, k.y, fmaf(x.z, k.z, fmaf(x.w, k.w, scores[r]))));
        }
    }
}

// Scores of 32 positions become weights in `out` [row][position]; what was found before is scaled to the new largest.
DEVICE void weigh(State& s, const Inputs& in, const Rows& rows, int kv_head, int position, float (&scores)[ROWS],
                  float (*out)[32]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float x = by_distance(in, rows, r, kv_head, position, capped(in, scores[r]));
        if (!sees(in, rows, position_of(rows, r), position)) x = -infinity();
        float most = fmaxf(s.largest[r], warp_max(x)), factor = fast_exp2(s.largest[r] - most);
        float weight = fast_exp2(x - most);
        s.largest[r] = most;
        s.weights[r] = fmaf(s.weights[r], factor, weight);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) s.sums[r][j] *= factor;
        out[r][lane_id()] = weight;
    }
    __syncwarp();
}

DEVICE void add_value(State& s, const float* value, const float (*weights)[32], int at) {
    float v[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) v[j] = lane_id() + 32 * j < V_WIDTH ? value[lane_id() + 32 * j] : 0.0f;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) s.sums[r][j] = fmaf(weights[r][at], v[j], s.sums[r][j]);
}

// The warps' results into `m`, added up in the sums of the first two.
DEVICE void merge(State& s, Merge& m) {
    int warp = warp_id(), half = WARPS / 2;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float weights = warp_sum(s.weights[r]);
        m.largest[warp][r] = s.largest[r];
        m.weights[warp][r] = weights;
    }
    __syncthreads();
#pragma unroll
    for (int turn = 0; turn < 2; turn++) {
        if (warp / half != turn)
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float factor = fast_exp2(s.largest[r] - largest_of(m, r));
#pragma unroll
                for (int j = 0; j < COLUMNS; j++)
                    if (lane_id() + 32 * j < V_WIDTH) {
                        float* out = &m.sums[warp % half][r][lane_id() + 32 * j];
                        *out = fmaf(s.sums[r][j], factor, turn ? *out : 0.0f);
                    }
            }
        __syncthreads();
    }
}

template <int width> DEVICE const float* row_at(const Args& a, const Part& part, const u8* cache, int position) {
    u64 head = head_offset<width>(part.rows.pages[position / PAGE], a.in.n_kv, part.kv_head);
    return reinterpret_cast<const float*>(cache + head) + position % PAGE * width;
}

KERNEL(attention_float, Args, WARPS * 32) {
    __shared__ Merge m;
    __shared__ __align__(16) float q[ROWS][WIDTH];
    __shared__ float weights[WARPS][ROWS][32];
    Part part;
    if (!find_part(a, part)) return;
    if (part.begin >= part.end) return write_nothing(a, part);
    load_queries(a, part, q);
    __syncthreads();
    State s = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++) s.largest[r] = NOTHING;
    for (int at = part.begin + 32 * warp_id(); at < part.end; at += 32 * WARPS) {
        int position = at + lane_id(), n = min(32, part.end - at);
        float scores[ROWS];
        score(q, row_at<WIDTH>(a, part, a.in.keys, min(position, part.end - 1)), scores);
        if (position >= part.end) position = 0x7fffffff;
        weigh(s, a.in, part.rows, part.kv_head, position, scores, weights[warp_id()]);
        for (int i = 0; i < n; i++)
            add_value(s, row_at<V_WIDTH>(a, part, a.in.values, at + i), weights[warp_id()], i);
        __syncwarp();
    }
    merge(s, m);
    write_part(a, part, m);
}
