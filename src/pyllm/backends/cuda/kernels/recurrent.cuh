// What recurrent ops share: states of sequences in slots. A step reads a sequence's slot and writes others, its saves.
#pragma once
#include "common.cuh"

// A step's sequences, the states of one op and its value; the first part of such kernels' arguments.
struct Scan {
    const Step* step;
    const int* seqs;
    const int* spans;
    const int* state_in;
    const int* saves;
    const int* save_after;
    const int* save_slot;
    float* states;
    float* out;
    int stride;  // floats from one slot's state to the next's
    int out_ld;
};
static_assert(sizeof(Scan) == 80, "no gap behind it in the host's layout");

// A sequence's part of a step.
struct Sequence {
    int first, n_tokens, n_saves;
    const int* afters;    // numbers of its tokens that saves include, ascending
    const int* slots;     // of saves
    const float* before;  // the state before its first token; null: zeros
};

DEVICE Sequence sequence_of(const Scan& scan, int seq) {
    int save = scan.saves[2 * seq], slot = scan.state_in[seq];
    return Sequence{scan.spans[2 * seq], scan.spans[2 * seq + 1], scan.saves[2 * seq + 1], scan.save_after + save,
                    scan.save_slot + save, slot < 0 ? nullptr : scan.states + (s64)slot * scan.stride};
}

DEVICE float* save_of(const Scan& scan, const Sequence& s, int i) {
    return scan.states + (s64)s.slots[i] * scan.stride;
}

// --- states that are the last rows of x, oldest first: [n_rows, width]

// A column of the row `back` before a token, which may lie in the state.
template <int n_rows, int width>
DEVICE float row_before(const Sequence& s, const float* x, int ld, int token, int back, int column) {
    int place = token - s.first - back;
    if (place >= 0) return x[(s64)(token - back) * ld + column];
    return s.before ? s.before[(n_rows + place) * width + column] : 0.0f;
}

// Write a column of the rows up to a token where a save ends with it.
template <int n_rows, int width>
DEVICE void save_rows(const Scan& scan, const Sequence& s, const float* x, int ld, int token, int column) {
    for (int i = 0; i < s.n_saves; i++) {
        if (s.afters[i] != token - s.first + 1) continue;
        float* out = save_of(scan, s, i);
        for (int row = 0; row < n_rows; row++)
            out[row * width + column] = row_before<n_rows, width>(s, x, ld, token, n_rows - 1 - row, column);
    }
}
