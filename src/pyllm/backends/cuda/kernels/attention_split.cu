// Attention of few rows over many positions, of f16 and 8-bit caches, at the speed of memory.
//
// A warp takes 16 positions at a time. Keys are the A of K Q^T -> scores [16 positions x 8 rows], values the A of
// V^T P^T -> sums [columns x 8 rows], so a lane's 16-byte loads go straight into registers: what column of the matrices
// is which column of a head is for us to choose, and is chosen so that a lane's columns are adjacent in memory.
// ROWS: 8 or 16.
#include "attention_split.cuh"

#define WIDE (HEAD > 192)  // a lane has no registers for all that could be loaded ahead

constexpr int TILES = ROWS / 8;                       // of 8 rows
constexpr int K_STEPS = WIDTH / 16;                   // of 16 columns; a lane has 4 of each, of 2 positions
constexpr int V_TILES = V_WIDTH / 16;                 // of 16 columns; a lane has 2 of each, of 4 positions
constexpr int K_WORDS = WIDTH * KV_BYTES / 16;        // that a lane has of a position's key
constexpr int V_WORDS = V_WIDTH * KV_BYTES / 32;      // and value

// A row of `words * lanes * 4` bytes in pieces that `lanes` lanes share: as many of 16 bytes a lane as there are, then
// of 8 and 4. Where word `w` of lane `lane` starts in the row.
template <int words, int lanes> DEVICE int word_offset(int w, int lane) {
    constexpr int wide = words / 4 * 4, middle = words % 4 / 2 * 2;
    if (w < wide) return w / 4 * 16 * lanes + lane * 16 + w % 4 * 4;
    if (w < wide + middle) return wide * 4 * lanes + lane * 8 + (w - wide) * 4;
    return (wide + middle) * 4 * lanes + lane * 4;
}

// In which of those pieces word `w` is.
template <int words> DEVICE int piece_of(int w) {
    return w < words / 4 * 4 ? w / 4 : words / 4 + (w % 4 / 2 && words % 4 == 3);
}

template <int words, int lanes> DEVICE void load_words(u32 (&out)[words], const u8* row, int lane) {
    constexpr int wide = words / 4 * 4, middle = words % 4 / 2 * 2;
#pragma unroll
    for (int w = 0; w < wide; w += 4) {
        uint4 v = stream16(row + word_offset<words, lanes>(w, lane));
        out[w] = v.x, out[w + 1] = v.y, out[w + 2] = v.z, out[w + 3] = v.w;
    }
    if constexpr (middle > 0) {
        uint2 v = stream8(row + word_offset<words, lanes>(wide, lane));
        out[wide] = v.x, out[wide + 1] = v.y;
    }
    if constexpr (words % 2 > 0) out[words - 1] = stream4(row + word_offset<words, lanes>(words - 1, lane));
}

// `rows` rows of one page as a lane has them, loaded ahead of their use; with scales by pieces where there are any.
template <int rows, int width, int words, int lanes> struct Loaded {
    u32 word[rows][words];
    u16 scale[rows][(words + 3) / 4 + 1];
};

template <int rows, int width, int words, int lanes>
DEVICE void load_rows(Loaded<rows, width, words, lanes>& out, const u8* head, const int (&at)[rows], int lane) {
#pragma unroll
    for (int r = 0; r < rows; r++) {
        load_words<words, lanes>(out.word[r], head + at[r] * (width * KV_BYTES), lane);
#if KV == KV_Q8
        const u16* scales = reinterpret_cast<const u16*>(head + scales_at<width>(at[r]));
#pragma unroll
        for (int w = 0; w < words; w++)
            if (w == words - 1 || piece_of<words>(w) != piece_of<words>(w + 1))
                out.scale[r][piece_of<words>(w)] = __ldg(scales + word_offset<words, lanes>(w, lane) / 32);
#endif
    }
}

typedef Loaded<2, WIDTH, K_WORDS, 4> Keys;      // positions g and g + 8 of 16, where g = lane / 4, c = lane % 4
typedef Loaded<4, V_WIDTH, V_WORDS, 8> Values;  // positions 2c, 2c + 1, 2c + 8, 2c + 9

DEVICE void load_keys(Keys& out, const u8* head, int row) {
    int g = lane_id() >> 2, at[2] = {row + g, row + g + 8};
    load_rows(out, head, at, lane_id() & 3);
}

DEVICE void load_values(Values& out, const u8* head, int row) {
    int c = 2 * (lane_id() & 3) + row, at[4] = {c, c + 1, c + 8, c + 9};
    load_rows(out, head, at, lane_id() >> 2);
}

// The lane's columns: of a step the first of four, of a tile the first of two adjacent ones.
DEVICE int key_column(int step) {
    int c = lane_id() & 3;
    return KV == KV_Q8 ? word_offset<K_WORDS, 4>(step, c) : word_offset<K_WORDS, 4>(2 * step, c) / 2;
}
DEVICE int value_column(int tile) {
    int g = lane_id() >> 2;
    return KV == KV_Q8 ? word_offset<V_WORDS, 8>(tile / 2, g) + tile % 2 * 2 : word_offset<V_WORDS, 8>(tile, g) / 2;
}

// Queries as the B of a step; in shared memory where a lane has no registers for all of them.
struct Queries {
#if WIDE
    uint2 (*step)[K_STEPS][32];
#else
    uint2 step[TILES][K_STEPS];
#endif
};

DEVICE uint2 queries(const Queries& q, int tile, int step) {
#if WIDE
    return q.step[tile][step][lane_id()];
#else
    return q.step[tile][step];
#endif
}

DEVICE uint2 queries_of_step(const Args& a, const Part& part, int tile, int step) {
    const float* q = queries_of(a.in, part.rows, 8 * tile + (lane_id() >> 2), part.kv_head);
    return four_queries(q, key_column(step), query_factor(a.in));
}

DEVICE void load_queries(Queries& q, const Args& a, const Part& part) {
#if WIDE
    __shared__ uint2 shared[TILES][K_STEPS][32];
    q.step = shared;
    for (int i = warp_id(); i < TILES * K_STEPS; i += WARPS)
        shared[i / K_STEPS][i % K_STEPS][lane_id()] = queries_of_step(a, part, i / K_STEPS, i % K_STEPS);
    __syncthreads();
#else
#pragma unroll
    for (int i = 0; i < TILES * K_STEPS; i++)
        q.step[i / K_STEPS][i % K_STEPS] = queries_of_step(a, part, i / K_STEPS, i % K_STEPS);
#endif
}

struct State {
    float sums[TILES][V_TILES][4];
    float largest[TILES][2], weights[TILES][2];  // of rows 2c, 2c + 1; weights of the lane's own positions
};

DEVICE void begin(State& s) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int v = 0; v < V_TILES; v++) s.sums[t][v][0] = s.sums[t][v][1] = s.sums[t][v][2] = s.sums[t][v][3] = 0.0f;
        s.largest[t][0] = s.largest[t][1] = NOTHING;
        s.weights[t][0] = s.weights[t][1] = 0.0f;
    }
}

DEVICE void score(const Queries& q, const Keys& k, float (&scores)[TILES][4]) {
#pragma unroll
    for (int t = 0; t < TILES; t++) scores[t][0] = scores[t][1] = scores[t][2] = scores[t][3] = 0.0f;
#pragma unroll
    for (int i = 0; i < K_STEPS; i++) {
#if KV == KV_Q8
        uint2 x = bytes_to_halves(k.word[0][i], h2_set(k.scale[0][piece_of<K_WORDS>(i)]));
        uint2 y = bytes_to_halves(k.word[1][i], h2_set(k.scale[1][piece_of<K_WORDS>(i)]));
        u32 keys[4] = {x.x, y.x, x.y, y.y};
#else
        u32 keys[4] = {k.word[0][2 * i], k.word[1][2 * i], k.word[0][2 * i + 1], k.word[1][2 * i + 1]};
#endif
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            uint2 step = queries(q, t, i);
            u32 pairs[2] = {step.x, step.y};
            mma_f16(scores[t], keys, pairs);
        }
    }
}

// Scores become weights; what was found before is scaled to the new largest score.
DEVICE void weigh(State& s, const Inputs& in, const Rows& rows, int kv_head, int position, float (&scores)[TILES][4]) {
    bool hidden = any_hidden(in, rows, position, 16);
    int g = lane_id() >> 2, c = lane_id() & 3;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float x = capped(in, scores[t][i]), y = capped(in, scores[t][i + 2]);
            int row = 8 * t + 2 * c + i;
            x = by_distance(in, rows, row, kv_head, position + g, x);
            y = by_distance(in, rows, row, kv_head, position + g + 8, y);
            if (hidden) {
                int at = position_of(rows, row);
                if (!sees(in, rows, at, position + g)) x = -infinity();
                if (!sees(in, rows, at, position + g + 8)) y = -infinity();
            }
            float most = fmaxf(s.largest[t][i], fmaxf(x, y));
#pragma unroll
            for (int o = 4; o < 32; o *= 2) most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, o));
            float factor = fast_exp2(s.largest[t][i] - most);
            s.largest[t][i] = most;
            scores[t][i] = fast_exp2(x - most), scores[t][i + 2] = fast_exp2(y - most);
            s.weights[t][i] = fmaf(s.weights[t][i], factor, scores[t][i] + scores[t][i + 2]);
#pragma unroll
            for (int v = 0; v < V_TILES; v++) s.sums[t][v][i] *= factor, s.sums[t][v][i + 2] *= factor;
        }
}

// Weights as a lane has them, positions by rows, to weights as the next product wants them: rows by positions.
DEVICE void transpose(const float (&scores)[4], u32 (&out)[2]) {
    int g = lane_id() >> 2, from = 8 * (lane_id() & 3) + g / 2;
    u32 select = g & 1 ? 0x7632 : 0x5410;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 pair = f32_to_f16x2(scores[2 * i], scores[2 * i + 1]);
        out[i] = __byte_perm(__shfl_sync(FULL_WARP, pair, from), __shfl_sync(FULL_WARP, pair, from + 4), select);
    }
}

DEVICE void add_tile(State& s, int tile, u32 v0, u32 v1, u32 v2, u32 v3, const u32 (&p)[TILES][2]) {
    u32 values[4] = {__byte_perm(v0, v1, 0x5410), __byte_perm(v0, v1, 0x7632), __byte_perm(v2, v3, 0x5410),
                     __byte_perm(v2, v3, 0x7632)};
#pragma unroll
    for (int t = 0; t < TILES; t++) mma_f16(s.sums[t][tile], values, p[t]);
}

DEVICE void add_values(State& s, const Values& v, const float (&weights)[TILES][4]) {
    u32 p[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; t++) transpose(weights[t], p[t]);
#pragma unroll
    for (int w = 0; w < V_WORDS; w++) {
#if KV == KV_Q8
        uint2 x[4];
#pragma unroll
        for (int r = 0; r < 4; r++) x[r] = bytes_to_halves(v.word[r][w], h2_set(v.scale[r][piece_of<V_WORDS>(w)]));
        add_tile(s, 2 * w, x[0].x, x[1].x, x[2].x, x[3].x, p);
        add_tile(s, 2 * w + 1, x[0].y, x[1].y, x[2].y, x[3].y, p);
#else
        add_tile(s, w, v.word[0][w], v.word[1][w], v.word[2][w], v.word[3][w], p);
#endif
    }
}

// The warps' results into `m`, added up in the sums of the first two.
DEVICE void merge(State& s, Merge& m) {
    int c = lane_id() & 3, warp = warp_id(), half = WARPS / 2;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float weights = s.weights[t][i];
#pragma unroll
            for (int o = 4; o < 32; o *= 2) weights += __shfl_xor_sync(FULL_WARP, weights, o);
            m.largest[warp][8 * t + 2 * c + i] = s.largest[t][i];
            m.weights[warp][8 * t + 2 * c + i] = weights;
        }
    __syncthreads();
#pragma unroll
    for (int turn = 0; turn < 2; turn++) {
        if (warp / half != turn)
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int row = 8 * t + 2 * c + i;
                    float factor = fast_exp2(s.largest[t][i] - largest_of(m, row));
#pragma unroll
                    for (int v = 0; v < V_TILES; v++) {
                        float* out = &m.sums[warp % half][row][value_column(v)];
                        out[0] = fmaf(s.sums[t][v][i], factor, turn ? out[0] : 0.0f);
                        out[1] = fmaf(s.sums[t][v][i + 2], factor, turn ? out[1] : 0.0f);
                    }
                }
        __syncthreads();
    }
}

DEVICE const u8* keys_at(const Args& a, const Part& part, int page) {
    return a.in.keys + head_offset<WIDTH>(page, a.in.n_kv, part.kv_head);
}
DEVICE const u8* values_at(const Args& a, const Part& part, int page) {
    return a.in.values + head_offset<V_WIDTH>(page, a.in.n_kv, part.kv_head);
}

// All of the warp's positions. Loads are ahead of their use: values come while scores are computed, the next keys while
// values are summed; but for wide heads, where other warps must fill the time.
DEVICE void walk(const Args& a, const Part& part, const Queries& q, State& s) {
    Keys keys;
    Values values;
    float scores[TILES][4];
    int at = part.begin + 16 * warp_id(), page = at < part.end ? part.rows.pages[at / PAGE] : 0;
    if (!WIDE && at < part.end) load_keys(keys, keys_at(a, part, page), at % PAGE);
    while (at < part.end) {
        int next = at + 16 * WARPS, next_page = next < part.end ? part.rows.pages[next / PAGE] : 0;
        if (WIDE) load_keys(keys, keys_at(a, part, page), at % PAGE);
        if (!WIDE) load_values(values, values_at(a, part, page), at % PAGE);
        score(q, keys, scores);
        if (WIDE) load_values(values, values_at(a, part, page), at % PAGE);
        if (!WIDE && next < part.end) load_keys(keys, keys_at(a, part, next_page), next % PAGE);
        weigh(s, a.in, part.rows, part.kv_head, at, scores);
        add_values(s, values, scores);
        at = next, page = next_page;
    }
}

KERNEL(attention_split, Args, WARPS * 32) {
    __shared__ Merge m;
    Part part;
    if (!find_part(a, part)) return;
    if (part.begin >= part.end) return write_nothing(a, part);
    Queries q;
    load_queries(q, a, part);
    State s;
    begin(s);
    walk(a, part, q, s);
    merge(s, m);
    write_part(a, part, m);
}
