// S <- exp(decay) * S + k v.T [+ insert (S.T erase).T];  out = scale * S.T q.
//
// N_KEY_HEADS; BY_ROW: each row of S has its own decay, else a head one for all tokens; ERASES; COMPLEMENT: k is
// multiplied by 1 - exp(decay); BEFORE: out is of the S before the token; and those of heads.cuh.
#include "heads.cuh"

struct Args {
    Scan scan;
    const float* q;
    const float* k;
    const float* v;
    const float* decay;   // or null
    const float* erase;   // or null
    const float* insert;  // or null
    const float* decays;  // of heads, or null
    int q_ld, k_ld, v_ld, decay_ld, erase_ld, insert_ld;
    float scale;
};

struct Attention {
    static constexpr int ERASE = 2, INSERT = 3, FACTORS = ERASES ? 4 : 2, N_VECTORS = FACTORS + BY_ROW, N_NUMBERS = 1;
    enum { QUERY, KEY };

    DEVICE int key_head(int head) { return head * N_KEY_HEADS / N_HEADS; }

    DEVICE float vector(const Args& a, s64 token, int head, int which, int row) {
        int column = head * KEY_DIM + row;
        if (which == QUERY) return a.q[token * a.q_ld + column];
        if (which == KEY) return a.k[token * a.k_ld + key_head(head) * KEY_DIM + row];
        if (BY_ROW && which == FACTORS) return expf(a.decay[token * a.decay_ld + column]);
        return which == ERASE ? a.erase[token * a.erase_ld + column] : a.insert[token * a.insert_ld + column];
    }

    DEVICE float number(const Args& a, s64 token, int head, int which) { return BY_ROW ? 1.0f : expf(a.decays[head]); }

    DEVICE float value(const Args& a, s64 token, int head, int column) {
        return a.v[token * a.v_ld + key_head(head) * VALUE_DIM + column];
    }

    template <class Token> DEVICE float4 factor(const Token& x, int i) {
#if BY_ROW
        return x.vectors[FACTORS][4 * i + part_of()];
#else
        float f = x.numbers[0];
        return make_float4(f, f, f, f);
#endif
    }

    template <class Token> DEVICE float advance(const Args& a, int head, State& s, const Token& x, float value) {
        float out = BEFORE ? project(s, x.vectors[QUERY]) : 0.0f, erased = ERASES ? project(s, x.vectors[ERASE]) : 0.0f;
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            float4 f = factor(x, i), key = x.vectors[KEY][4 * i + part_of()];
            s.rows[i] = plus(scaled(s.rows[i], f), COMPLEMENT ? scaled(key, complement(f)) : key, value);
            if (ERASES) s.rows[i] = plus(s.rows[i], x.vectors[INSERT][4 * i + part_of()], erased);
        }
        return a.scale * (BEFORE ? out : project(s, x.vectors[QUERY]));
    }
};

KERNEL(linear_attention, Args, THREADS) { scan_heads<Attention>(a); }
