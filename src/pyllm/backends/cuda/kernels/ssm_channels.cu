// Mamba 1: step = softplus(dt);  S[n, c] <- exp(step[c] * a[c, n]) * S[n, c] + b[n] * step[c] * x[c];
// out[c] = sum over n of c[n] * S[n, c] + d[c] * x[c]. A thread has a channel, over all tokens of a sequence; b and c,
// which channels share, are staged in shared memory.
//
// STATE_DIM: numbers in the state of a channel; WIDTH: channels.
#include "recurrent.cuh"

#define THREADS 64
#define TILE 8

struct Args {
    Scan scan;
    const float* x;
    const float* dt;
    const float* b;
    const float* c;
    const float* rates;  // a [WIDTH, STATE_DIM]
    const float* d;      // [WIDTH]
    int x_ld, dt_ld, b_ld, c_ld;
};

KERNEL(ssm_channels, Args, THREADS) {
    __shared__ float into[TILE][STATE_DIM], out[TILE][STATE_DIM];
    const Scan& scan = a.scan;
    if ((int)blockIdx.y >= scan.step->n_seqs) return;
    Sequence seq = sequence_of(scan, blockIdx.y);
    int channel = blockIdx.x * THREADS + threadIdx.x, save = 0;
    bool there = channel < WIDTH;
    float s[STATE_DIM], rates[STATE_DIM], d = there ? a.d[channel] : 0.0f;
#pragma unroll
    for (int n = 0; n < STATE_DIM; n++) {
        s[n] = there && seq.before ? seq.before[n * WIDTH + channel] : 0.0f;
        rates[n] = there ? a.rates[channel * STATE_DIM + n] : 0.0f;
    }
    for (int start = 0; start < seq.n_tokens; start += TILE) {
        int n_staged = min(TILE, seq.n_tokens - start);
        s64 from = seq.first + start;
        float x[TILE], steps[TILE];
#pragma unroll
        for (int t = 0; t < TILE; t++) {
            bool given = there && t < n_staged;
            x[t] = given ? a.x[(from + t) * a.x_ld + channel] : 0.0f;
            steps[t] = given ? softplus(a.dt[(from + t) * a.dt_ld + channel]) : 0.0f;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < n_staged * STATE_DIM; i += THREADS) {
            int t = i / STATE_DIM, n = i % STATE_DIM;
            into[t][n] = a.b[(from + t) * a.b_ld + n];
            out[t][n] = a.c[(from + t) * a.c_ld + n];
        }
        __syncthreads();
        if (!there) continue;
#pragma unroll
        for (int t = 0; t < TILE; t++) {
            if (t >= n_staged) break;
            float sum = d * x[t], brought = steps[t] * x[t];
#pragma unroll
            for (int n = 0; n < STATE_DIM; n++) {
                s[n] = fmaf(into[t][n], brought, expf(steps[t] * rates[n]) * s[n]);
                sum = fmaf(out[t][n], s[n], sum);
            }
            scan.out[(from + t) * scan.out_ld + channel] = sum;
            if (save < seq.n_saves && seq.afters[save] == start + t + 1) {
                float* to = save_of(scan, seq, save++);
#pragma unroll
                for (int n = 0; n < STATE_DIM; n++) to[n * WIDTH + channel] = s[n];
            }
        }
    }
}
