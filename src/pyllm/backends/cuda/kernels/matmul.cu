// Products of many tokens on tensor cores: activations as half (forms.cuh), weights as halves made in registers.
//
// A block goes through the columns in tiles of 64, two groups. The next STAGES - 1 tiles are on their way to shared
// memory, weights as they are packed; a lane of a warp makes of them just the halves that it multiplies. Scales of 256
// columns at a time are decoded by all threads together. Of a group of packed weights, and of activations with them,
// lane t of four takes columns 8t to 8t + 7 and calls them 2t, 2t + 1, 2t + 8, 2t + 9 of two products of 16: what a product
// calls its columns is all the same.
//
// Warps are WARPS_M x WARPS_N, each with 16 * TILES_M rows and 8 * TILES_N tokens; BLOCKS of them should fit on a
// multiprocessor. Other defines: STAGES, those of unpack.cuh; for float formats WORD and BRAIN instead.
#include "matmul.cuh"
#ifndef WORD
#include "unpack.cuh"
#endif

#define THREADS (32 * WARPS_M * WARPS_N)
#define BLOCK_ROWS (16 * TILES_M * WARPS_M)
#define BLOCK_TOKENS (8 * TILES_N * WARPS_N)
#define X_BYTES (BLOCK_TOKENS * 128)

struct Args {
    Weights w;
    Results r;
    Tokens t;
    Parts parts;
    const u16* x;
    const float* factors;
    int ld_x;
};

// A power of two that brings the matrix's largest weights to below 2^15, by the bound that packing left.
DEVICE float weight_factor(const Weights& w, int matrix) {
    int exponent = __float_as_int(*reinterpret_cast<const float*>(plane(w, matrix, 0))) >> 23;
    return __int_as_float((127 + 14 + 127 - min(max(exponent, 15), 250)) << 23);
}

// Rows of x, and of float weights, have 128 bytes in shared memory. What lanes read together must lie in different
// banks: 16 bytes of eight rows where ldmatrix reads, else all 64 bytes of a group of two rows.
#ifdef WORD
DEVICE int swizzled(int row, int byte) { return 128 * row + (byte ^ (row & 7) << 4); }
#else
DEVICE int swizzled(int row, int byte) { return 128 * row + (byte ^ (row & 1) << 6); }
#endif

// Where a lane finds what it multiplies, in each tile.
struct Lane {
    int x, low, high, scales;
};

// Where sums take most registers, the compiler must not keep what it can compute again.
DEVICE int this_thread() { return BLOCK_TOKENS < 128 ? threadIdx.x : opaque(threadIdx.x); }

#ifdef WORD

#define W_BYTES (BLOCK_ROWS * 128)
#define SCALE_WORDS 0
#define COPIES (BLOCK_ROWS * 8 / THREADS)

DEVICE void copy_weights(u8* to, const Weights& w, int matrix, const u32* w_from, int column_tile) {
    int thread = this_thread();
    const u8* from = plane(w, matrix, w.low) + column_tile * 128 + thread % 8 * 16;
    to += swizzled(thread / 8, thread % 8 * 16);
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        u32 group = w_from[thread / 8 + i * (THREADS / 8)];
        cp_async16(to + i * (THREADS / 8) * 128, from + 64 * (u64)group);
    }
}

DEVICE u32 half_pair(u32 pair, float factor) {
#if BRAIN
    return f32_to_f16x2(__uint_as_float(pair << 16) * factor, __uint_as_float(pair & 0xffff0000u) * factor);
#else
    return pair;
#endif
}

// Fragments of 32 columns of 16 rows from `row` after the warp's first.
DEVICE void load_fragments(const u8* tile, const u32* scales, const Lane& lane, int row, int group, float factor,
                           u32 (&first)[4], u32 (&second)[4]) {
    ldmatrix4(first, tile + (lane.low ^ 64 * group) + 128 * row);
    ldmatrix4(second, tile + (lane.low ^ (64 * group + 32)) + 128 * row);
#pragma unroll
    for (int i = 0; i < 4; i++) first[i] = half_pair(first[i], factor), second[i] = half_pair(second[i], factor);
}

DEVICE void load_x(const u8* x, u32 (&first)[2], u32 (&second)[2]) {
    u32 v[4];
    ldmatrix4(v, x);
    first[0] = v[0], first[1] = v[1], second[0] = v[2], second[1] = v[3];
}

#else

#define W_BYTES (BLOCK_ROWS * 2 * (LOW_BYTES + HIGH_BYTES))
#define SCALE_ROWS (BLOCK_ROWS + 4)  // padded, so that rows and groups lie in different banks
#define SCALE_WORDS (8 * HALVES * SCALE_ROWS)

// Of one plane: two groups of each row. The second may be behind a row's end: other weights, multiplied by zeros.
template <int bytes> DEVICE void copy_plane(u8* to, const u8* from, const u32* w_from, int column_tile) {
    constexpr int piece = bytes < 16 ? bytes : 16, per_group = bytes / piece, per_row = 2 * per_group;
    int thread = this_thread();
#pragma unroll
    for (int i = 0; i < (BLOCK_ROWS * per_row + THREADS - 1) / THREADS; i++) {
        int item = thread + i * THREADS, row = item / per_row, rest = item % per_row;
        if (BLOCK_ROWS * per_row % THREADS && item >= BLOCK_ROWS * per_row) break;
        u32 at = w_from[row] + 2 * column_tile;
        cp_async<piece>(to + (rest / per_group * BLOCK_ROWS + row) * bytes + rest % per_group * piece,
                        from + piece * (u64)(at * per_group + rest));
    }
}

DEVICE void copy_weights(u8* to, const Weights& w, int matrix, const u32* w_from, int column_tile) {
    copy_plane<LOW_BYTES>(to, plane(w, matrix, w.low), w_from, column_tile);
    if constexpr (HIGH_BITS > 0)
        copy_plane<(HIGH_BITS ? HIGH_BYTES : 4)>(to + BLOCK_ROWS * 2 * LOW_BYTES, plane(w, matrix, w.high), w_from,
                                                 column_tile);
}

// Scales of 8 groups of all rows, as words of two halves: the scale twice, or scale and minimum. Those of the next 8
// are on their way while 4 tiles are multiplied; where registers are all taken by sums, a block waits for them, twice.
#define SCALES_WAIT (BLOCK_TOKENS >= 128)
#define SCALES_EACH (BLOCK_ROWS * 8 / THREADS / (SCALES_WAIT ? 2 : 1))

DEVICE void load_scales(const Weights& w, int matrix, const u32* w_from, int first_group, int step,
                        RawScale (&raw)[SCALES_EACH]) {
    const u8 *scales = plane(w, matrix, w.scales), *floats = plane(w, matrix, w.floats);
    int thread = this_thread();
    u32 group = min(first_group + thread % 8, w.n_groups - 1);
#pragma unroll
    for (int i = 0; i < SCALES_EACH; i++) {
        u32 at = w_from[(thread + (step * SCALES_EACH + i) * THREADS) / 8] + group;
        raw[i] = load_scale(scales, floats, at, at / BLOCK_GROUPS);
    }
}

DEVICE void store_scales(u32* to, int step, const RawScale (&raw)[SCALES_EACH], float factor) {
    int thread = this_thread();
#pragma unroll
    for (int i = 0; i < SCALES_EACH; i++)
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            float2 s = scale_of(raw[i], half);
            to[(thread % 8 * SCALE_ROWS + (thread + (step * SCALES_EACH + i) * THREADS) / 8) * HALVES + half] =
                f32_to_f16x2(s.x * factor, (MINIMA ? s.y : s.x) * factor);
        }
}

DEVICE void decode_scales(u32* to, const Weights& w, int matrix, const u32* w_from, int first_group, float factor) {
#pragma unroll 1
    for (int step = 0; step < (SCALES_WAIT ? 2 : 1); step++) {
        RawScale raw[SCALES_EACH];
        load_scales(w, matrix, w_from, first_group, step, raw);
        store_scales(to, step, raw, factor);
    }
}

DEVICE u32 weight_pair(u32 integers, u32 scale) {
#if MINIMA
    return h2_fma(integers, __byte_perm(scale, 0, 0x1010), __byte_perm(scale, 0, 0x3232));
#else
    return h2_mul(integers, scale);
#endif
}

// Four pairs of halves of row `row` after the lane's first: columns 8t … 8t + 7 of a group.
DEVICE void weights_of(const u8* tile, const u32* scales, const Lane& lane, int row, int group, u32 (&pairs)[4]) {
    int t = lane_id() % 4, at = group * BLOCK_ROWS + row;
    const u8* low = tile + lane.low + at * LOW_BYTES;
    u32 first, second = 0, above = 0, a, b;
    if constexpr (BITS == 8) {
        uint2 both = load8(low);
        first = both.x, second = both.y;
    } else {
        first = load4(low) >> LOW_SHIFT(t);
    }
    if constexpr (HIGH_BITS > 0) above = load4(tile + lane.high + at * HIGH_BYTES) >> HIGH_SHIFT(t);
    octet<true>(first, second, above, a, b);
    u32 scale = scales[lane.scales + (group * SCALE_ROWS + row) * HALVES];
    pairs[0] = weight_pair(halves_low(a, HALF_OFFSET), scale);
    pairs[1] = weight_pair(halves_high(a, HALF_OFFSET), scale);
    pairs[2] = weight_pair(halves_low(b, HALF_OFFSET), scale);
    pairs[3] = weight_pair(halves_high(b, HALF_OFFSET), scale);
}

// Fragments of 32 columns of 16 rows from `row` after the warp's first. `scales`: those of the tile's first group.
DEVICE void load_fragments(const u8* tile, const u32* scales, const Lane& lane, int row, int group, float factor,
                           u32 (&first)[4], u32 (&second)[4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 pairs[4];
        weights_of(tile, scales, lane, row + 8 * half, group, pairs);
        first[half] = pairs[0], first[2 + half] = pairs[1];
        second[half] = pairs[2], second[2 + half] = pairs[3];
    }
}

DEVICE void load_x(const u8* x, u32 (&first)[2], u32 (&second)[2]) {
    uint4 v = load16(x);
    first[0] = v.x, first[1] = v.y, second[0] = v.z, second[1] = v.w;
}

#endif

#define STAGE_BYTES (X_BYTES + W_BYTES)
#define X_COPIES (BLOCK_TOKENS * 8 / THREADS)

DEVICE Lane find_lane() {
    int thread = this_thread(), l = thread % 32, warp = thread / 32;
    int row = warp % WARPS_M * 16 * TILES_M, token = warp / WARPS_M * 8 * TILES_N;
#ifdef WORD
    return {swizzled(token + l % 8, l / 8 * 16), swizzled(row + l % 16, l / 16 * 16), 0, 0};
#else
    int g = l / 4, t = l % 4;
    return {swizzled(token + g, 16 * t), (row + g) * LOW_BYTES + 4 * LOW_WORD(t),
            BLOCK_ROWS * 2 * LOW_BYTES + (row + g) * HIGH_BYTES + 4 * HIGH_WORD(t),
            (row + g) * HALVES + (HALVES == 2 ? t / 2 : 0)};
#endif
}

#define NO_ROW 0xffffffffu

// Where rows of weights begin, and the rows of x that a tile needs, lies in shared memory: registers are for sums.
//
// Where the rows of x begin, counted in pieces of 16 bytes; NO_ROW for zeros.
DEVICE void find_x(const Args& a, const Tile& tile, const int* x_rows, u32* x_from) {
    for (int i = threadIdx.x; i < BLOCK_TOKENS; i += THREADS)
        x_from[i] = i < tile.n ? (u32)x_rows[i] * (a.ld_x / 8) : NO_ROW;
}

// A thread copies the same piece of several rows.
DEVICE void copy_x(u8* to, const Args& a, const u32* x_from, int column_tile) {
    int thread = this_thread(), first = thread / 8, piece = 8 * column_tile + thread % 8;
    to += swizzled(first, thread % 8 * 16);
#pragma unroll
    for (int i = 0; i < X_COPIES; i++) {
        u32 row = x_from[first + i * (THREADS / 8)];
        bool take = row != NO_ROW && piece < a.ld_x / 8;
        cp_async16_or_zero(to + i * (THREADS / 8) * 128, a.x + 8 * (u64)(take ? row + piece : 0), take);
    }
}

// One tile of columns; `scales`: those of its first group.
DEVICE void multiply(const u8* stage, const u32* scales, float factor, float (&sums)[TILES_M][TILES_N][4]) {
    Lane lane = find_lane();
#pragma unroll 1
    for (int group = 0; group < 2; group++) {
        u32 first[TILES_M][4], second[TILES_M][4];
#pragma unroll
        for (int m = 0; m < TILES_M; m++)
            load_fragments(stage + X_BYTES, scales, lane, 16 * m, group, factor, first[m], second[m]);
        const u8* x = stage + (lane.x ^ 64 * group);
#pragma unroll
        for (int n = 0; n < TILES_N; n++) {
            u32 x0[2], x1[2];
            load_x(x + 1024 * n, x0, x1);
#pragma unroll
            for (int m = 0; m < TILES_M; m++) mma_f16(sums[m][n], first[m], x0);
#pragma unroll
            for (int m = 0; m < TILES_M; m++) mma_f16(sums[m][n], second[m], x1);
        }
    }
}

DEVICE void store_sums(const Args& a, const Tile& tile, const int* x_rows, const int* out_rows, int first_row,
                       float factor, const float (&sums)[TILES_M][TILES_N][4]) {
    int g = lane_id() / 4, t = lane_id() % 4;
    int row0 = first_row + warp_id() % WARPS_M * 16 * TILES_M + g, token0 = warp_id() / WARPS_M * 8 * TILES_N + 2 * t;
    float scale = a.r.scale ? a.r.scale[tile.matrix] : 1.0f, bias[2 * TILES_M];
#pragma unroll
    for (int i = 0; i < 2 * TILES_M; i++) {
        int row = min(row0 + 8 * i, a.w.rows - 1);
        bias[i] = a.r.bias ? a.r.bias[(s64)tile.matrix * a.w.rows + row] : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < TILES_N; n++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            int token = token0 + 8 * n + k;
            if (token >= tile.n) continue;
            float all = a.factors[x_rows[token]] * factor * scale;
            float* out = a.r.out + (s64)out_rows[token] * a.r.ld + row0;
            s64 residual_row = (s64)out_rows[token] * a.r.ld_residual;
            const float* residual = a.r.residual ? a.r.residual + residual_row + row0 : nullptr;
#pragma unroll
            for (int i = 0; i < 2 * TILES_M; i++)
                if (row0 + 8 * i < a.w.rows) {
                    float y = fmaf(sums[i / 2][n][i % 2 * 2 + k], all, bias[i]);
                    out[8 * i] = residual ? y + residual[8 * i] : y;
                }
        }
}

// What all threads of a block know of it; in shared memory, for registers are for sums.
struct Block {
    Tile tile;
    float factor;
    int begin, stop;  // tiles of columns: whole stretches of 4, whose scales are decoded together
};

DEVICE bool find_block(const Args& a, Block& block, int* x_rows, int* out_rows, u32* x_from, u32* w_from) {
    Tile tile;
    if (!find_tile<BLOCK_TOKENS>(a.t, tile)) return false;
    find_rows<BLOCK_TOKENS, THREADS>(a.t, tile, x_rows, out_rows);
    find_x(a, tile, x_rows, x_from);  // of the rows that the thread has just found
    for (int i = threadIdx.x; i < BLOCK_ROWS; i += THREADS)
        w_from[i] = (u32)min((int)blockIdx.x * BLOCK_ROWS + i, a.w.rows - 1) * a.w.n_groups;
    if (threadIdx.x == 0) {
        u32 n_stretches = ceil_div(a.w.n_groups, 8);
        block.tile = tile;
        block.begin = 4 * (n_stretches * blockIdx.z / gridDim.z);
        block.stop = min(4 * (int)(n_stretches * (blockIdx.z + 1) / gridDim.z), ceil_div(a.w.n_groups, 2));
#if defined(WORD) && !BRAIN
        block.factor = 1.0f;
#else
        block.factor = weight_factor(a.w, tile.matrix);
#endif
    }
    __syncthreads();
    return true;
}

KERNEL_MIN(matmul, Args, THREADS, BLOCKS) {
    SHARED(u8, stages);
    __shared__ Block block;
    __shared__ int x_rows[BLOCK_TOKENS], out_rows[BLOCK_TOKENS];
    __shared__ u32 x_from[BLOCK_TOKENS], w_from[BLOCK_ROWS];
    if (!find_block(a, block, x_rows, out_rows, x_from, w_from)) return;
    float sums[TILES_M][TILES_N][4] = {};
    int k = block.begin;

#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (k + s < block.stop) {
            copy_x(stages + s * STAGE_BYTES, a, x_from, k + s);
            copy_weights(stages + s * STAGE_BYTES + X_BYTES, a.w, block.tile.matrix, w_from, k + s);
        }
        cp_async_commit();
    }
    u32* scales = reinterpret_cast<u32*>(stages + STAGES * STAGE_BYTES);
#ifndef WORD
    RawScale raw[SCALES_EACH];
    decode_scales(scales + k / 4 % 2 * SCALE_WORDS, a.w, block.tile.matrix, w_from, 2 * k, block.factor * FACTOR);
#endif

    u8* now = stages;
    for (; k < block.stop; k++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (k + STAGES - 1 < block.stop) {
            u8* ahead = stages + (k - block.begin + STAGES - 1) % STAGES * STAGE_BYTES;
            copy_x(ahead, a, x_from, k + STAGES - 1);
            copy_weights(ahead + X_BYTES, a.w, block.tile.matrix, w_from, k + STAGES - 1);
        }
        cp_async_commit();
#ifndef WORD
        u32* next_scales = scales + (k / 4 + 1) % 2 * SCALE_WORDS;
        if (k % 4 == 0 && k + 4 < block.stop) {
            if (SCALES_WAIT)
                decode_scales(next_scales, a.w, block.tile.matrix, w_from, 2 * k + 8, block.factor * FACTOR);
            else
                load_scales(a.w, block.tile.matrix, w_from, 2 * k + 8, 0, raw);
        }
#endif
        multiply(now, scales + (k / 4 % 2 * 4 + k % 4) * (SCALE_WORDS / 4), block.factor, sums);
#ifndef WORD
        if (k % 4 == 3 && k + 1 < block.stop && !SCALES_WAIT) store_scales(next_scales, 0, raw, block.factor * FACTOR);
#endif
        now = now + STAGE_BYTES == stages + STAGES * STAGE_BYTES ? stages : now + STAGE_BYTES;
    }
    if (!add_parts<TILES_M * TILES_N, THREADS>(a.parts, reinterpret_cast<float4(&)[TILES_M * TILES_N]>(sums))) return;
    store_sums(a, block.tile, x_rows, out_rows, blockIdx.x * BLOCK_ROWS, 1.0f / block.factor, sums);
}
