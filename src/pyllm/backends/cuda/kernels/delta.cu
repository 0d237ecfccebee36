// S <- exp(decay) * S;  S <- S + k (beta * (v - S.T k)).T;  out = scale * S.T q.
//
// N_KEY_HEADS; TILED: head h reads key head h % N_KEY_HEADS, else h * N_KEY_HEADS / N_HEADS; BY_ROW: each row of S has
// its own decay; and those of heads.cuh.
#include "heads.cuh"

struct Args {
    Scan scan;
    const float* q;
    const float* k;
    const float* v;
    const float* decay;
    const float* beta;
    int q_ld, k_ld, v_ld, decay_ld, beta_ld;
    float scale;
};

struct Delta {
    static constexpr int N_VECTORS = 2 + BY_ROW, N_NUMBERS = 2;
    enum { QUERY, KEY, FACTORS };
    enum { BETA, FACTOR };

    DEVICE float vector(const Args& a, s64 token, int head, int which, int row) {
        if (which == FACTORS) return expf(a.decay[token * a.decay_ld + head * KEY_DIM + row]);
        int key_head = TILED ? head % N_KEY_HEADS : head * N_KEY_HEADS / N_HEADS;
        const float* x = which == KEY ? a.k + token * a.k_ld : a.q + token * a.q_ld;
        return x[key_head * KEY_DIM + row];
    }

    DEVICE float number(const Args& a, s64 token, int head, int which) {
        if (which == BETA) return a.beta[token * a.beta_ld + head];
        return BY_ROW ? 1.0f : expf(a.decay[token * a.decay_ld + head]);
    }

    DEVICE float value(const Args& a, s64 token, int head, int column) {
        return a.v[token * a.v_ld + head * VALUE_DIM + column];
    }

    template <class Token> DEVICE float advance(const Args& a, int head, State& s, const Token& x, float value) {
#pragma unroll
        for (int i = 0; i < FOURS; i++)
#if BY_ROW
            s.rows[i] = scaled(s.rows[i], x.vectors[FACTORS][4 * i + part_of()]);
#else
            s.rows[i] = scaled(s.rows[i], x.numbers[FACTOR]);
#endif
        float error = x.numbers[BETA] * (value - project(s, x.vectors[KEY]));
#pragma unroll
        for (int i = 0; i < FOURS; i++) s.rows[i] = plus(s.rows[i], x.vectors[KEY][4 * i + part_of()], error);
        return a.scale * project(s, x.vectors[QUERY]);
    }
};

KERNEL(delta_rule, Args, THREADS) { scan_heads<Delta>(a); }
