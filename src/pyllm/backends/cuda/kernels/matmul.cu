// Products of many tokens on tensor cores: activations as half (forms.cuh), weights as halves made in registers.
//
// A block goes through the columns in tiles of 64. The next STAGES - 1 tiles are on their way to shared memory as they
// are, packed; a lane of a warp makes of them just the halves that it multiplies. Scales of 256 columns at a time are
// decoded by all threads together. In a group of 32 columns lane t of four has columns 8t … 8t + 7, of weights and of
// activations alike, whatever number a matrix product calls them by.
//
// Warps are WARPS_M x WARPS_N, each with 16 * TILES_M rows and 8 * TILES_N tokens. Other defines: STAGES, those of
// unpack.cuh; for float formats WORD and BRAIN instead.
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

// 16 aligned bytes of a row of 128, so that eight lanes with four columns of two neighbouring rows meet no bank twice.
DEVICE int swizzled(int row, int piece) { return 128 * row + 16 * (piece ^ (row & 1) << 2); }

#ifdef WORD

#define W_BYTES (BLOCK_ROWS * 128)
#define SCALE_WORDS 0

DEVICE void copy_weights(u8* to, const Weights& w, const Tile& tile, int first_row, int tile_of_columns) {
    const u8* low = plane(w, tile.matrix, w.low);
#pragma unroll
    for (int i = threadIdx.x; i < BLOCK_ROWS * 8; i += THREADS) {
        int row = i / 8, piece = i % 8, group = min(2 * tile_of_columns + piece / 4, w.n_groups - 1);
        s64 at = (s64)min(first_row + row, w.rows - 1) * w.n_groups + group;
        cp_async16(to + swizzled(row, piece), low + at * 64 + piece % 4 * 16);
    }
}

DEVICE u32 half_pair(u32 pair, float factor) {
#if BRAIN
    return f32_to_f16x2(__uint_as_float(pair << 16) * factor, __uint_as_float(pair & 0xffff0000u) * factor);
#else
    return pair;
#endif
}

// Four pairs of halves of a row: columns 8t … 8t + 7 of a group.
DEVICE void weights_of(const u8* tile, const u32* scales, int row, int group, float factor, u32 (&pairs)[4]) {
    uint4 v = load16(tile + swizzled(row, 4 * group + lane_id() % 4));
    pairs[0] = half_pair(v.x, factor), pairs[1] = half_pair(v.y, factor);
    pairs[2] = half_pair(v.z, factor), pairs[3] = half_pair(v.w, factor);
}

#else

#define W_BYTES (BLOCK_ROWS * 2 * (LOW_BYTES + HIGH_BYTES))
#define SCALE_ROWS (BLOCK_ROWS + 4)  // padded, so that rows and groups lie in different banks
#define SCALE_WORDS (8 * HALVES * SCALE_ROWS)

template <int bytes> DEVICE void copy_plane(u8* to, const u8* from, const Weights& w, int first_row, int group0) {
    constexpr int piece = bytes < 16 ? bytes : 16, per_group = bytes / piece;
#pragma unroll
    for (int i = threadIdx.x; i < BLOCK_ROWS * 2 * per_group; i += THREADS) {
        int row = i / (2 * per_group), g = i / per_group % 2, k = i % per_group;
        s64 at = (s64)min(first_row + row, w.rows - 1) * w.n_groups + min(group0 + g, w.n_groups - 1);
        cp_async<piece>(to + (g * BLOCK_ROWS + row) * bytes + k * piece, from + at * bytes + k * piece);
    }
}

DEVICE void copy_weights(u8* to, const Weights& w, const Tile& tile, int first_row, int tile_of_columns) {
    copy_plane<LOW_BYTES>(to, plane(w, tile.matrix, w.low), w, first_row, 2 * tile_of_columns);
    if constexpr (HIGH_BITS > 0)
        copy_plane<(HIGH_BITS ? HIGH_BYTES : 16)>(to + BLOCK_ROWS * 2 * LOW_BYTES, plane(w, tile.matrix, w.high), w,
                                                  first_row, 2 * tile_of_columns);
}

// Scales of 8 groups of all rows, as words of two halves: the scale twice, or scale and minimum.
#define SCALES_EACH (BLOCK_ROWS * 8 / THREADS)

DEVICE void load_scales(const Weights& w, const Tile& tile, int first_row, int first_group,
                        RawScale (&raw)[SCALES_EACH]) {
    const u8 *scales = plane(w, tile.matrix, w.scales), *floats = plane(w, tile.matrix, w.floats);
#pragma unroll
    for (int i = 0; i < SCALES_EACH; i++) {
        int item = threadIdx.x + i * THREADS, group = min(first_group + item % 8, w.n_groups - 1);
        s64 row = min(first_row + item / 8, w.rows - 1);
        raw[i] = load_scale(scales, floats, row * w.n_groups + group,
                            row * (w.n_groups / BLOCK_GROUPS) + group / BLOCK_GROUPS);
    }
}

DEVICE void store_scales(u32* to, const RawScale (&raw)[SCALES_EACH], float factor) {
#pragma unroll
    for (int i = 0; i < SCALES_EACH; i++) {
        int item = threadIdx.x + i * THREADS;
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            float2 s = scale_of(raw[i], half);
            to[(item % 8 * SCALE_ROWS + item / 8) * HALVES + half] =
                f32_to_f16x2(s.x * factor, (MINIMA ? s.y : s.x) * factor);
        }
    }
}

DEVICE u32 weight_pair(u32 integers, u32 scale) {
#if MINIMA
    return h2_fma(integers, __byte_perm(scale, 0, 0x1010), __byte_perm(scale, 0, 0x3232));
#else
    return h2_mul(integers, scale);
#endif
}

// Four pairs of halves of a row: columns 8t … 8t + 7 of a group. `scales`: those of the group.
DEVICE void weights_of(const u8* tile, const u32* scales, int row, int group, float factor, u32 (&pairs)[4]) {
    int t = lane_id() % 4;
    const u8 *low = tile + (group * BLOCK_ROWS + row) * LOW_BYTES,
             *high = tile + BLOCK_ROWS * 2 * LOW_BYTES + (group * BLOCK_ROWS + row) * HIGH_BYTES;
    u32 first, second = 0, above = 0, a, b;
    if constexpr (BITS == 8) {
        uint2 both = load8(low + 8 * t);
        first = both.x, second = both.y;
    } else {
        first = load4(low + 4 * LOW_WORD(t)) >> LOW_SHIFT(t);
    }
    if constexpr (HIGH_BITS > 0) above = load4(high + 4 * HIGH_WORD(t)) >> HIGH_SHIFT(t);
    octet<true>(first, second, above, a, b);
    u32 scale = scales[row * HALVES + (HALVES == 2 ? t / 2 : 0)];
    pairs[0] = weight_pair(halves_low(a, HALF_OFFSET), scale);
    pairs[1] = weight_pair(halves_high(a, HALF_OFFSET), scale);
    pairs[2] = weight_pair(halves_low(b, HALF_OFFSET), scale);
    pairs[3] = weight_pair(halves_high(b, HALF_OFFSET), scale);
}

#endif

#define STAGE_BYTES (X_BYTES + W_BYTES)
#define ROWS_EACH (BLOCK_TOKENS * 8 / THREADS)

// Which rows of x a thread copies: the same piece of each; -1 for zeros.
DEVICE void find_rows(const Args& a, const Tile& tile, int (&rows)[ROWS_EACH]) {
#pragma unroll
    for (int i = 0; i < ROWS_EACH; i++) {
        int token = threadIdx.x / 8 + i * (THREADS / 8);
        rows[i] = token < tile.n ? x_row(a.t, tile, token) : -1;
    }
}

DEVICE void copy_x(u8* to, const Args& a, const int (&rows)[ROWS_EACH], int tile_of_columns) {
    int piece = threadIdx.x % 8, column = 64 * tile_of_columns + 8 * piece;
#pragma unroll
    for (int i = 0; i < ROWS_EACH; i++) {
        bool take = rows[i] >= 0 && column < 32 * a.w.n_groups;
        const u16* from = a.x + (take ? (s64)rows[i] * a.ld_x + column : 0);
        cp_async16_or_zero(to + swizzled(threadIdx.x / 8 + i * (THREADS / 8), piece), from, take);
    }
}

// One tile of columns; `scales`: those of its first group.
DEVICE void multiply(const u8* x, const u8* w, const u32* scales, float factor,
                     float (&sums)[TILES_M][TILES_N][4]) {
    int g = lane_id() / 4, t = lane_id() % 4;
    int row = warp_id() % WARPS_M * 16 * TILES_M + g, token = warp_id() / WARPS_M * 8 * TILES_N + g;
#pragma unroll
    for (int group = 0; group < 2; group++) {
        u32 first[TILES_M][4], second[TILES_M][4];
#pragma unroll
        for (int m = 0; m < TILES_M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 pairs[4];
                weights_of(w, scales + group * (SCALE_WORDS / 8), row + 16 * m + 8 * half, group, factor, pairs);
                first[m][half] = pairs[0], first[m][2 + half] = pairs[1];
                second[m][half] = pairs[2], second[m][2 + half] = pairs[3];
            }
#pragma unroll
        for (int n = 0; n < TILES_N; n++) {
            uint4 v = load16(x + swizzled(token + 8 * n, 4 * group + t));
            u32 b0[2] = {v.x, v.y}, b1[2] = {v.z, v.w};
#pragma unroll
            for (int m = 0; m < TILES_M; m++) {
                mma_f16(sums[m][n], first[m], b0);
                mma_f16(sums[m][n], second[m], b1);
            }
        }
    }
}

DEVICE void store_sums(const Args& a, const Tile& tile, int first_row, float factor,
                       const float (&sums)[TILES_M][TILES_N][4]) {
    int g = lane_id() / 4, t = lane_id() % 4;
    int row0 = first_row + warp_id() % WARPS_M * 16 * TILES_M + g, token0 = warp_id() / WARPS_M * 8 * TILES_N + 2 * t;
#pragma unroll
    for (int n = 0; n < TILES_N; n++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            int token = token0 + 8 * n + k;
            if (token >= tile.n) continue;
            float x_factor = a.factors[x_row(a.t, tile, token)] * factor;
            int out = out_row(a.t, tile, token);
#pragma unroll
            for (int m = 0; m < TILES_M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int row = row0 + 16 * m + 8 * half;
                    if (row < a.w.rows)
                        store_result(a.w, a.r, tile.matrix, row, out, sums[m][n][2 * half + k] * x_factor);
                }
        }
}

KERNEL_MIN(matmul, Args, THREADS, 512 / THREADS) {
    SHARED(u8, stages);
    Tile tile;
    if (!find_tile<BLOCK_TOKENS>(a.t, tile)) return;
    int first_row = blockIdx.x * BLOCK_ROWS;
    // parts are whole stretches of 8 groups
    int n_stretches = ceil_div(a.w.n_groups, 8);
    int begin = (int)((s64)n_stretches * blockIdx.z / gridDim.z), end = (int)((s64)n_stretches * (blockIdx.z + 1) / gridDim.z);
    int stop = min(4 * end, ceil_div(a.w.n_groups, 2));
#if defined(WORD) && !BRAIN
    float factor = 1.0f;
#else
    float factor = weight_factor(a.w, tile.matrix);
#endif
    int rows[ROWS_EACH];
    find_rows(a, tile, rows);
    float sums[TILES_M][TILES_N][4] = {};

#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        u8* stage = stages + s * STAGE_BYTES;
        if (4 * begin + s < stop) {
            copy_x(stage, a, rows, 4 * begin + s);
            copy_weights(stage + X_BYTES, a.w, tile, first_row, 4 * begin + s);
        }
        cp_async_commit();
    }
    u32* scales = reinterpret_cast<u32*>(stages + STAGES * STAGE_BYTES);
#ifndef WORD
    RawScale raw[SCALES_EACH];
    load_scales(a.w, tile, first_row, 8 * begin, raw);
    store_scales(scales + begin % 2 * SCALE_WORDS, raw, factor * FACTOR);
#endif

    for (int k = 4 * begin; k < stop; k++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        int ahead = k + STAGES - 1;
        if (ahead < stop) {
            u8* stage = stages + (ahead - 4 * begin) % STAGES * STAGE_BYTES;
            copy_x(stage, a, rows, ahead);
            copy_weights(stage + X_BYTES, a.w, tile, first_row, ahead);
        }
        cp_async_commit();
#ifndef WORD
        if (k % 4 == 0 && k + 4 < stop) load_scales(a.w, tile, first_row, 2 * k + 8, raw);
#endif
        const u8* stage = stages + (k - 4 * begin) % STAGES * STAGE_BYTES;
        multiply(stage, stage + X_BYTES, scales + k / 4 % 2 * SCALE_WORDS + k % 4 * 2 * (SCALE_WORDS / 8), factor, sums);
#ifndef WORD
        if (k % 4 == 3 && k + 1 < stop) store_scales(scales + (k / 4 + 1) % 2 * SCALE_WORDS, raw, factor * FACTOR);
#endif
    }
    if (!add_parts<TILES_M * TILES_N, THREADS>(a.parts, reinterpret_cast<float4(&)[TILES_M * TILES_N]>(sums))) return;
    store_sums(a, tile, first_row, 1.0f / factor, sums);
}
