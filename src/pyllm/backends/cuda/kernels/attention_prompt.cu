// Attention of many rows of a sequence, of f16 and 8-bit caches, by tensor cores.
//
// A block has WARPS x 16 x M_TILES rows of one KV head and walks through the positions they see, KEYS at a time. Values
// of a tile come while its scores are computed, keys of the next while its values are summed. Sequences with up to
// `few` tokens in the step are attention_split.cu's.
// M_TILES: tiles of 16 rows per warp; KEYS: 16, 32 or 64; SINKS: whether there are some.
#include "attention.cuh"

#define WARPS 4
#define THREADS (WARPS * 32)

struct Args {
    Inputs in;
    const float* sinks;
    float* out;
    int out_ld;
    int few;
};

constexpr int ROWS = WARPS * 16 * M_TILES;
constexpr int K_LD = WIDTH + 8, V_LD = V_WIDTH + 8;  // halves; 16 bytes more, so that ldmatrix meets no bank twice
constexpr int K_STEPS = WIDTH / 16, KEY_TILES = KEYS / 8, V_TILES = V_WIDTH / 8;

// Shared memory, in bytes from its start; the host knows the sum.
constexpr int Q_AT = 0, K_AT = Q_AT + ROWS * K_LD * 2, V_AT = K_AT + KEYS * K_LD * 2, RAW_K_AT = V_AT + KEYS * V_LD * 2;
constexpr int RAW_V_AT = RAW_K_AT + KEYS * (WIDTH + scale_bytes(WIDTH));

// Which sequence and which of its tiles of rows; the last tiles, which see most, come first.
DEVICE bool find_tile(const Args& a, int& seq, int& first_row) {
    int tile = blockIdx.x, n_seqs = a.in.step->n_seqs;
    for (seq = 0; seq < n_seqs; seq++) {
        int n = a.in.spans[2 * seq + 1], tiles = n > a.few ? ceil_div(n * GROUP, ROWS) : 0;
        if (tile < tiles) {
            first_row = (tiles - 1 - tile) * ROWS;
            return true;
        }
        tile -= tiles;
    }
    return false;
}

DEVICE void load_queries(const Args& a, const Rows& rows, int kv_head, u16* q) {
    float factor = query_factor(a.in);
#pragma unroll 4
    for (int row = warp_id(); row < ROWS; row += WARPS) {
        const float* x = queries_of(a.in, rows, row, kv_head);
#pragma unroll
        for (int column = 4 * lane_id(); column < WIDTH; column += 128)
            store8(q + row * K_LD + column, four_queries(x, column, factor));
    }
}

// Starts copying positions `from` .. `from` + KEYS - 1 of a head; past the last one come zeros. `head`: where its part
// of page 0 is.
template <int width> DEVICE void fetch(const Inputs& in, const Rows& rows, const u8* head, int from, u8* to) {
    constexpr int row_bytes = width * KV_BYTES, units = row_bytes / 16, ld = KV == KV_Q8 ? row_bytes : row_bytes + 16;
#pragma unroll
    for (int block = 0; block < KEYS / 16; block++) {
        int position = from + 16 * block, start = min(position, rows.high & ~15);
        const u8* page = head + head_offset<width>(rows.pages[start / PAGE], in.n_kv, 0);
        const u8* source = page + start % PAGE * row_bytes;
#pragma unroll
        for (int i = 0; i < (16 * units + THREADS - 1) / THREADS; i++) {
            int unit = threadIdx.x + i * THREADS, key = unit / units;
            if (16 * units % THREADS && unit >= 16 * units) break;
            cp_async16_or_zero(to + (16 * block + key) * ld + unit % units * 16, source + unit * 16,
                               position + key <= rows.high);
        }
#if KV == KV_Q8
        constexpr int scale_units = scale_bytes(width);  // 16 positions have 16 times as many bytes
        if (threadIdx.x < scale_units)
            cp_async16_or_zero(to + KEYS * width + (block * scale_units + threadIdx.x) * 16,
                               page + scales_at<width>(start % PAGE) + threadIdx.x * 16, position <= rows.high);
#endif
    }
    cp_async_commit();
}

#if KV == KV_Q8
// What `fetch` brought, as halves.
template <int width> DEVICE void expand(const u8* raw, u16* to) {
    const u16* scales = reinterpret_cast<const u16*>(raw + KEYS * width);
    for (int i = threadIdx.x; i < KEYS * width / 8; i += THREADS) {
        int key = i / (width / 8), column = i % (width / 8) * 8;
        uint2 bytes = load8(raw + key * width + column);
        u32 scale = h2_set(scales[key * (width / 32) + column / 32]);
        uint2 low = bytes_to_halves(bytes.x, scale), high = bytes_to_halves(bytes.y, scale);
        store16(to + key * (width + 8) + column, make_uint4(low.x, low.y, high.x, high.y));
    }
}
#endif

struct State {
    float sums[M_TILES][V_TILES][4];
    float largest[M_TILES][2], weights[M_TILES][2];  // of rows g and g + 8 of a tile; weights of the lane's positions
};

// Scores [rows, positions] of the warp's rows: q [ROWS][K_LD], k [KEYS][K_LD].
DEVICE void score(const u16* q, const u16* k, float (&scores)[M_TILES][KEY_TILES][4]) {
    int lane = lane_id(), first = warp_id() * 16 * M_TILES;
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int e = 0; e < 4 * KEY_TILES; e++) scores[m][e / 4][e % 4] = 0.0f;
#pragma unroll
    for (int i = 0; i < K_STEPS; i++) {
        u32 x[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; m++)
            ldmatrix4(x[m], q + (first + 16 * m + lane % 16) * K_LD + 16 * i + lane / 16 * 8);
#pragma unroll
        for (int t = 0; t < KEY_TILES; t += 2) {
            u32 y[4];
            ldmatrix4(y, k + (8 * t + lane / 16 * 8 + lane % 8) * K_LD + 16 * i + lane / 8 % 2 * 8);
            u32 y0[2] = {y[0], y[1]}, y1[2] = {y[2], y[3]};
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                mma_f16(scores[m][t], x[m], y0);
                mma_f16(scores[m][t + 1], x[m], y1);
            }
        }
    }
}

#if SLOPES || BIASES
DEVICE void add_by_distance(const Inputs& in, const Rows& rows, int kv_head, int from,
                            float (&scores)[M_TILES][KEY_TILES][4]) {
    int g = lane_id() >> 2, c = lane_id() & 3;
#pragma unroll
    for (int i = 0; i < M_TILES * KEY_TILES * 4; i++) {
        int m = i / (KEY_TILES * 4), t = i / 4 % KEY_TILES, j = i % 4;
        int row = (warp_id() * M_TILES + m) * 16 + g + j / 2 * 8, key = from + 8 * t + 2 * c + j % 2;
        scores[m][t][j] = by_distance(in, rows, row, kv_head, key, scores[m][t][j]);
    }
}
#endif

DEVICE void hide(const Inputs& in, const Rows& rows, int from, float (&scores)[M_TILES][KEY_TILES][4]) {
    int g = lane_id() >> 2, c = lane_id() & 3;
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int position = position_of(rows, (warp_id() * M_TILES + m) * 16 + g + 8 * i);
#pragma unroll
            for (int t = 0; t < KEY_TILES; t++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    if (!sees(in, rows, position, from + 8 * t + 2 * c + j)) scores[m][t][2 * i + j] = -infinity();
        }
}

// Scores become weights; what was found before is scaled to the new largest score, if that is a new one for any row.
DEVICE void weigh(State& s, float (&scores)[M_TILES][KEY_TILES][4]) {
    float factors[M_TILES][2];
    bool scaled = false;
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float most = s.largest[m][i], sum = 0.0f;
#pragma unroll
            for (int t = 0; t < KEY_TILES; t++) most = fmaxf(most, fmaxf(scores[m][t][2 * i], scores[m][t][2 * i + 1]));
            most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 1));
            most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 2));
            scaled |= most > s.largest[m][i];
            factors[m][i] = fast_exp2(s.largest[m][i] - most);
            s.largest[m][i] = most;
#pragma unroll
            for (int t = 0; t < KEY_TILES; t++)
#pragma unroll
                for (int j = 0; j < 2; j++) sum += scores[m][t][2 * i + j] = fast_exp2(scores[m][t][2 * i + j] - most);
            s.weights[m][i] = fmaf(s.weights[m][i], factors[m][i], sum);
        }
    if (!__any_sync(FULL_WARP, scaled)) return;
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int v = 0; v < V_TILES; v++)
#pragma unroll
            for (int e = 0; e < 4; e++) s.sums[m][v][e] *= factors[m][e / 2];
}

// v [KEYS][V_LD].
DEVICE void add_values(State& s, const float (&weights)[M_TILES][KEY_TILES][4], const u16* v) {
    int lane = lane_id();
#pragma unroll
    for (int t = 0; t < KEY_TILES; t += 2) {
        u32 p[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                p[m][i] = f32_to_f16x2(weights[m][t + i / 2][i % 2 * 2], weights[m][t + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int d = 0; d < V_TILES; d += 2) {
            u32 x[4];
            ldmatrix4_trans(x, v + (8 * t + lane % 16) * V_LD + 8 * d + lane / 16 * 8);
            u32 x0[2] = {x[0], x[1]}, x1[2] = {x[2], x[3]};
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                mma_f16(s.sums[m][d], p[m], x0);
                mma_f16(s.sums[m][d + 1], p[m], x1);
            }
        }
    }
}

DEVICE void write_rows(const Args& a, const Rows& rows, int kv_head, State& s) {
    int g = lane_id() >> 2, c = lane_id() & 3;
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float weights = s.weights[m][i], factor = 1.0f;
            weights += __shfl_xor_sync(FULL_WARP, weights, 1);
            weights += __shfl_xor_sync(FULL_WARP, weights, 2);
            int row = (warp_id() * M_TILES + m) * 16 + g + 8 * i, at = rows.first_row + row;
            if (row >= rows.n) continue;
            int head = kv_head * GROUP + at % GROUP;
#if SINKS
            float sink = a.sinks[head] * LOG2_E, most = fmaxf(s.largest[m][i], sink);
            factor = fast_exp2(s.largest[m][i] - most);
            weights = fmaf(weights, factor, fast_exp2(sink - most));
#endif
            factor /= weights;
            float* out = a.out + (u64)(rows.token + at / GROUP) * a.out_ld + head * V_HEAD;
#pragma unroll
            for (int v = 0; v < V_TILES; v++) {
                int column = 8 * v + 2 * c;
                float x = s.sums[m][v][2 * i] * factor, y = s.sums[m][v][2 * i + 1] * factor;
                if (V_HEAD % 2 == 0 && column < V_HEAD) {
                    store8(out + column, make_uint2(__float_as_uint(x), __float_as_uint(y)));
                } else {
                    if (column < V_HEAD) out[column] = x;
                    if (column + 1 < V_HEAD) out[column + 1] = y;
                }
            }
        }
}

// Waits for what was fetched last into `raw`, and makes halves of it where it is bytes; all threads see `tile` then.
template <int width> DEVICE void arrive(const u8* raw, u16* tile) {
    cp_async_wait<0>();
    __syncthreads();
#if KV == KV_Q8
    expand<width>(raw, tile);
    __syncthreads();
#endif
}

KERNEL_MIN(attention_prompt, Args, THREADS, 2) {
    SHARED_AT(u16, q, Q_AT);
    SHARED_AT(u16, k, K_AT);
    SHARED_AT(u16, v, V_AT);
    SHARED_AT(u8, raw_k, KV == KV_Q8 ? RAW_K_AT : K_AT);
    SHARED_AT(u8, raw_v, KV == KV_Q8 ? RAW_V_AT : V_AT);
    int seq, first_row, kv_head = blockIdx.y;
    if (!find_tile(a, seq, first_row)) return;
    Rows rows = rows_of(a.in, seq, first_row, ROWS);
    const u8* keys = a.in.keys + head_offset<WIDTH>(0, 0, kv_head);
    const u8* values = a.in.values + head_offset<V_WIDTH>(0, 0, kv_head);
    int from = rows.low / KEYS * KEYS;
    fetch<WIDTH>(a.in, rows, keys, from, raw_k);
    load_queries(a, rows, kv_head, q);
    State s;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
        s.largest[m][0] = s.largest[m][1] = NOTHING;
        s.weights[m][0] = s.weights[m][1] = 0.0f;
#pragma unroll
        for (int t = 0; t < V_TILES; t++) s.sums[m][t][0] = s.sums[m][t][1] = s.sums[m][t][2] = s.sums[m][t][3] = 0.0f;
    }
    for (; from <= rows.high; from += KEYS) {
        float scores[M_TILES][KEY_TILES][4];
        arrive<WIDTH>(raw_k, k);
        fetch<V_WIDTH>(a.in, rows, values, from, raw_v);
        score(q, k, scores);
#if SOFTCAP
#pragma unroll
        for (int i = 0; i < M_TILES * KEY_TILES * 4; i++) {
            float& x = scores[i / (KEY_TILES * 4)][i / 4 % KEY_TILES][i % 4];
            x = capped(a.in, x);
        }
#endif
#if SLOPES || BIASES
        add_by_distance(a.in, rows, kv_head, from, scores);
#endif
        if (any_hidden(a.in, rows, from, KEYS)) hide(a.in, rows, from, scores);
        weigh(s, scores);
        arrive<V_WIDTH>(raw_v, v);
        if (from + KEYS <= rows.high) fetch<WIDTH>(a.in, rows, keys, from + KEYS, raw_k);
        add_values(s, scores, v);
    }
    write_rows(a, rows, kv_head, s);
}
