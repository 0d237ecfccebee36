// Mamba 2: step = softplus(dt + dt_bias);  S <- exp(step * a) * S + outer(b, step * x);  out = S.T c + d * x.
//
// KEY_DIM: numbers in the state of a column; VALUE_DIM: columns of a head; N_GROUPS: head h reads b and c of group
// h * N_GROUPS / N_HEADS; and N_HEADS of heads.cuh.
#include "heads.cuh"

struct Args {
    Scan scan;
    const float* x;
    const float* dt;
    const float* b;
    const float* c;
    const float* rates;  // a [N_HEADS]
    const float* d;      // [N_HEADS]
    const float* bias;   // of dt, or null
    int x_ld, dt_ld, b_ld, c_ld;
};

struct Heads {
    static constexpr int N_VECTORS = 2, N_NUMBERS = 2;
    enum { INTO, OUT };
    enum { STEP, FACTOR };

    DEVICE float vector(const Args& a, s64 token, int head, int which, int row) {
        const float* x = which == INTO ? a.b + token * a.b_ld : a.c + token * a.c_ld;
        return x[head * N_GROUPS / N_HEADS * KEY_DIM + row];
    }

    DEVICE float number(const Args& a, s64 token, int head, int which) {
        float step = softplus(a.dt[token * a.dt_ld + head] + (a.bias ? a.bias[head] : 0.0f));
        return which == STEP ? step : expf(step * a.rates[head]);
    }

    DEVICE float value(const Args& a, s64 token, int head, int column) {
        return a.x[token * a.x_ld + head * VALUE_DIM + column];
    }

    template <class Token> DEVICE float advance(const Args& a, int head, State& s, const Token& x, float value) {
        float brought = x.numbers[STEP] * value;
#pragma unroll
        for (int i = 0; i < FOURS; i++)
            s.rows[i] = plus(scaled(s.rows[i], x.numbers[FACTOR]), x.vectors[INTO][4 * i + part_of()], brought);
        return fmaf(a.d[head], value, project(s, x.vectors[OUT]));
    }
};

KERNEL(ssm_heads, Args, THREADS) { scan_heads<Heads>(a); }
