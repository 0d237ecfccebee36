// Recurrences whose state is a matrix S [KEY_DIM, VALUE_DIM] of each head, each column for itself.
//
// A block computes COLUMNS columns of a head over all tokens of a sequence, one after another, so that results do not
// depend on how a sequence is cut. A warp has 8 columns, a column 4 lanes, a lane every fourth four of its rows, in
// registers: memory is read in sectors of 8 columns, once, and written once for each save. What tokens bring is staged
// in shared memory, some tokens at a time.
//
// KEY_DIM, VALUE_DIM; N_HEADS.
#pragma once
#include "recurrent.cuh"

constexpr int THREADS = 128, COLUMNS = THREADS / 4, BLOCKS = (VALUE_DIM + COLUMNS - 1) / COLUMNS;
constexpr int FOURS = (KEY_DIM + 15) / 16, PADDED = 16 * FOURS, STAGED = 24 << 10;

// A lane's rows of its column: rows 16 * i + 4 * part and the three after it.
struct State {
    float4 rows[FOURS];
};

// What a token brings to a head: vectors [KEY_DIM] with zeros after them, numbers, and a value for each column.
template <int n_vectors, int n_numbers> struct Token {
    float4 vectors[n_vectors][PADDED / 4];
    float numbers[n_numbers];
    float values[COLUMNS];
};

DEVICE int part_of() { return lane_id() >> 3; }
DEVICE int column_of() { return warp_id() * 8 + (lane_id() & 7); }

DEVICE float4 scaled(float4 x, float f) { return make_float4(x.x * f, x.y * f, x.z * f, x.w * f); }
DEVICE float4 scaled(float4 x, float4 f) { return make_float4(x.x * f.x, x.y * f.y, x.z * f.z, x.w * f.w); }
DEVICE float4 plus(float4 x, float4 y, float f) {  // x + y * f
    return make_float4(fmaf(y.x, f, x.x), fmaf(y.y, f, x.y), fmaf(y.z, f, x.z), fmaf(y.w, f, x.w));
}
DEVICE float4 complement(float4 x) { return make_float4(1.0f - x.x, 1.0f - x.y, 1.0f - x.z, 1.0f - x.w); }

// S.T x of the lane's column.
DEVICE float project(const State& s, const float4* x) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        float4 row = s.rows[i], y = x[4 * i + part_of()];
        sum = make_float4(fmaf(row.x, y.x, sum.x), fmaf(row.y, y.y, sum.y), fmaf(row.z, y.z, sum.z),
                          fmaf(row.w, y.w, sum.w));
    }
    float total = (sum.x + sum.y) + (sum.z + sum.w);
    total += __shfl_xor_sync(FULL_WARP, total, 8);
    return total + __shfl_xor_sync(FULL_WARP, total, 16);
}

DEVICE float state_number(const float* from, int row, int column) {
    return from && row < KEY_DIM && column < VALUE_DIM ? from[row * VALUE_DIM + column] : 0.0f;
}

DEVICE void load_state(State& s, const float* from, int column) {
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        int row = 16 * i + 4 * part_of();
        s.rows[i] = make_float4(state_number(from, row, column), state_number(from, row + 1, column),
                                state_number(from, row + 2, column), state_number(from, row + 3, column));
    }
}

DEVICE void store_state(const State& s, float* to, int column) {
    if (column >= VALUE_DIM) return;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        int row = 16 * i + 4 * part_of();
        if (row < KEY_DIM) to[row * VALUE_DIM + column] = s.rows[i].x;
        if (row + 1 < KEY_DIM) to[(row + 1) * VALUE_DIM + column] = s.rows[i].y;
        if (row + 2 < KEY_DIM) to[(row + 2) * VALUE_DIM + column] = s.rows[i].z;
        if (row + 3 < KEY_DIM) to[(row + 3) * VALUE_DIM + column] = s.rows[i].w;
    }
}

// A kernel's body. `Rule` has N_VECTORS, N_NUMBERS, and, of a token and head:
//   vector(a, token, head, i, row), number(a, token, head, i), value(a, token, head, column)
//   advance(a, head, s, x, value)   the token's result in a column, given what it brings; changes the state
template <class Rule, class Args> DEVICE void scan_heads(const Args& a) {
    using Brought = Token<Rule::N_VECTORS, Rule::N_NUMBERS>;
    constexpr int fitting = STAGED / (int)sizeof(Brought), TILE = fitting < 1 ? 1 : fitting > 8 ? 8 : fitting;
    __shared__ Brought staged[TILE];
    const Scan& scan = a.scan;
    if ((int)blockIdx.y >= scan.step->n_seqs) return;
    Sequence seq = sequence_of(scan, blockIdx.y);
    int head = blockIdx.x / BLOCKS, first = blockIdx.x % BLOCKS * COLUMNS, column = first + column_of(), save = 0;
    State s;
    load_state(s, seq.before ? seq.before + head * KEY_DIM * VALUE_DIM : nullptr, column);
    for (int start = 0; start < seq.n_tokens; start += TILE) {
        int n = min(TILE, seq.n_tokens - start), from = seq.first + start;
        __syncthreads();
        for (int i = threadIdx.x; i < n * Rule::N_VECTORS * PADDED; i += THREADS) {
            int t = i / (Rule::N_VECTORS * PADDED), which = i / PADDED % Rule::N_VECTORS, row = i % PADDED;
            reinterpret_cast<float*>(staged[t].vectors[which])[row] =
                row < KEY_DIM ? Rule::vector(a, from + t, head, which, row) : 0.0f;
        }
        for (int i = threadIdx.x; i < n * Rule::N_NUMBERS; i += THREADS)
            staged[i / Rule::N_NUMBERS].numbers[i % Rule::N_NUMBERS] =
                Rule::number(a, from + i / Rule::N_NUMBERS, head, i % Rule::N_NUMBERS);
        for (int i = threadIdx.x; i < n * COLUMNS; i += THREADS) {
            int c = first + i % COLUMNS;
            staged[i / COLUMNS].values[i % COLUMNS] =
                c < VALUE_DIM ? Rule::value(a, from + i / COLUMNS, head, c) : 0.0f;
        }
        __syncthreads();
        for (int t = 0; t < n; t++) {
            float out = Rule::advance(a, head, s, staged[t], staged[t].values[column_of()]);
            if (part_of() == 0 && column < VALUE_DIM)
                scan.out[(s64)(from + t) * scan.out_ld + head * VALUE_DIM + column] = out;
            if (save < seq.n_saves && seq.afters[save] == start + t + 1)
                store_state(s, save_of(scan, seq, save++) + head * KEY_DIM * VALUE_DIM, column);
        }
    }
}
