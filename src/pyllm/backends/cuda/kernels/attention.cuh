// What the attention kernels share: which rows a block computes, and which positions they see.
//
// A row is one head of one token: row r of a sequence and KV head is token r / GROUP of the sequence's tokens in this
// step, and head r % GROUP of the GROUP query heads that read the KV head. Scores are kept times log2(e).
//
// HEAD, V_HEAD: columns of a head; GROUP; SOFTCAP, WINDOW, SLOPES: whether there are such; BIASES: those of a head, by
// distance, 0: none; REACH: what a token sees, see `Sight` of program/ops/attention.py; KV, PAGE: see kv.cuh.
#pragma once
#include "kv.cuh"

#define LOG2_E 1.4426950408889634f
#define CHUNKED 1
#define WHOLE 2
#define NOTHING -1e30f  // below every score, and yet a number: the largest of none

constexpr int WIDTH = padded(HEAD), V_WIDTH = padded(V_HEAD);

struct Inputs {
    const Step* step;
    const int* positions;
    const int* spans;
    const int* page_tables;
    const float* q;
    const u8* keys;
    const u8* values;
    const float* slopes;  // [heads], or [heads][BIASES]
    int page_stride;
    int q_ld;
    int n_kv;
    int window;
    float scale;
    float softcap;
};
static_assert(sizeof(Inputs) == 88, "no gap behind it in the host's layout");

// Rows first_row .. first_row + n - 1 of a sequence. `position` is that of its first token in this step, `token` that
// token; `end` follows that of its last token; `low` and `high` are the first and last positions that any of the rows
// sees.
struct Rows {
    const int* pages;
    int token, position, end, first_row, n, low, high;
};

// The first and the last position that a token sees.
DEVICE int first_seen(const Inputs& in, int position) {
    if (!WINDOW) return 0;
    if (REACH == CHUNKED) return position / in.window * in.window;
    return max(0, position - (REACH == WHOLE ? in.window / 2 : in.window - 1));
}
DEVICE int last_seen(const Inputs& in, const Rows& r, int position) {
    if (REACH != WHOLE) return position;
    return WINDOW ? min(r.end - 1, position + in.window / 2) : r.end - 1;
}

DEVICE int position_of(const Rows& r, int row) { return r.position + (r.first_row + row) / GROUP; }

DEVICE Rows rows_of(const Inputs& in, int seq, int first_row, int most) {
    Rows r;
    r.pages = in.page_tables + (u64)seq * in.page_stride;
    r.token = in.spans[2 * seq];
    r.position = in.positions[r.token];
    r.end = r.position + in.spans[2 * seq + 1];
    r.first_row = first_row;
    r.n = min(most, in.spans[2 * seq + 1] * GROUP - first_row);
    r.low = first_seen(in, position_of(r, 0));
    r.high = last_seen(in, r, position_of(r, r.n - 1));
    return r;
}

// Queries of one row, or null past the last row.
DEVICE const float* queries_of(const Inputs& in, const Rows& r, int row, int kv_head) {
    if (row >= r.n) return nullptr;
    int at = r.first_row + row;
    return in.q + (u64)(r.token + at / GROUP) * in.q_ld + (kv_head * GROUP + at % GROUP) * HEAD;
}

// Four columns of a row of queries as halves; zeros past the head, and where there is no row.
DEVICE uint2 four_queries(const float* q, int column, float factor) {
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (HEAD % 4 == 0) {
        if (q && column < HEAD) x = *reinterpret_cast<const float4*>(q + column);
    } else if (q) {
        if (column < HEAD) x.x = q[column];
        if (column + 1 < HEAD) x.y = q[column + 1];
        if (column + 2 < HEAD) x.z = q[column + 2];
        if (column + 3 < HEAD) x.w = q[column + 3];
    }
    return make_uint2(f32_to_f16x2(x.x * factor, x.y * factor), f32_to_f16x2(x.z * factor, x.w * factor));
}

// What queries are multiplied by before they meet keys, and what a score becomes after that.
DEVICE float query_factor(const Inputs& in) { return SOFTCAP ? in.scale / in.softcap : in.scale * LOG2_E; }
DEVICE float capped(const Inputs& in, float score) {
    return SOFTCAP ? in.softcap * LOG2_E * fast_tanh(score) : score;
}


// A score with what its key's distance adds to it, for a row of the head's.
DEVICE float by_distance(const Inputs& in, const Rows& r, int row, int kv_head, int key, float score) {
#if BIASES
    int after = max(-(BIASES / 2), min(BIASES / 2, key - position_of(r, row)));
    int head = kv_head * GROUP + (r.first_row + row) % GROUP;
    return score + in.slopes[head * BIASES + after + BIASES / 2] * LOG2_E;
#elif SLOPES
    float slope = in.slopes[kv_head * GROUP + (r.first_row + row) % GROUP] * LOG2_E;
    return score - slope * abs(position_of(r, row) - key);
#else
    return score;
#endif
}

DEVICE bool sees(const Inputs& in, const Rows& r, int position, int key) {
    return key <= last_seen(in, r, position) && (!WINDOW || key >= first_seen(in, position));
}

// Is anything hidden from some row among `n` keys from `key` on?
DEVICE bool any_hidden(const Inputs& in, const Rows& r, int key, int n) {
    return key + n - 1 > last_seen(in, r, position_of(r, 0)) ||
           (WINDOW && key < first_seen(in, position_of(r, r.n - 1)));
}

#if KV == KV_Q8
// Four bytes as two pairs of halves, times a scale.
DEVICE uint2 bytes_to_halves(u32 bytes, u32 scale) {
    u32 biased = bytes ^ 0x80808080;  // value + 128, which makes 1024 + 128 + value as a half's bits
    u32 low = __byte_perm(biased, H2_1024, 0x5150), high = __byte_perm(biased, H2_1024, 0x5352);
    constexpr u32 offset = 0x64806480;  // 1152
    return make_uint2(h2_mul(h2_sub(low, offset), scale), h2_mul(h2_sub(high, offset), scale));
}
#endif
