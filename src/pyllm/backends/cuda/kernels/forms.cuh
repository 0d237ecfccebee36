// The forms in which products read their input, beside float32: written by the op that computes a value, or by one that
// copies it (rows.cuh).
//
//   q8     s8 values [n][ld], a float scale for 32 columns [n][ld / 32], and for each 32 columns the sums of the
//          integers of their first and second 16, as two s16 in a word [n][ld / 32] (first in the low half).
//          value * scale = x.
//   half   f16 values [n][ld] and a float factor for each row [n], a power of two: value * factor = x. The row's
//          largest number becomes one of 2^14 to 2^15, so that none overflows and small ones keep their bits.
//
// ld is a multiple of 32; columns from the width on are zero.
#pragma once
#include "common.cuh"

// Four columns of a row of q8, from `column` (a multiple of 4) on. All lanes of a warp call it, the eight lanes of an
// aligned part of the warp with the 32 columns of a group in order; columns past the width must be given as zeros, and
// groups from ld on are not stored.
DEVICE void write_q8(s8* values, float* scales, u32* sums, int ld, int row, int column, float4 x) {
    float largest = warp_max<8>(fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))));
    float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    int q[4] = {__float2int_rn(x.x * inverse), __float2int_rn(x.y * inverse), __float2int_rn(x.z * inverse),
                __float2int_rn(x.w * inverse)};
    int sum = warp_sum_int<4>(q[0] + q[1] + q[2] + q[3]);
    int second = __shfl_xor_sync(FULL_WARP, sum, 4);
    if (column >= ld) return;
    store4(values + (s64)row * ld + column, (q[0] & 255) | (q[1] & 255) << 8 | (q[2] & 255) << 16 | (u32)q[3] << 24);
    if (lane_id() % 8 == 0) {
        s64 group = ((s64)row * ld + column) / 32;
        scales[group] = largest > 1e-30f ? largest / 127.0f : 0.0f;
        sums[group] = (sum & 0xffff) | (u32)second << 16;
    }
}

// The factor of a row of halves whose largest magnitude is `peak` (at least that: a bound will do), and one over it.
DEVICE float half_factor(float peak) {
    int exponent = __float_as_int(peak) >> 23;
    return __int_as_float((max(exponent, 15) - 14) << 23);
}
DEVICE float half_inverse(float factor) { return __int_as_float((254 << 23) - __float_as_int(factor)); }

// Four columns of a row of halves, from `column` (a multiple of 4) on; those past the width must be given as zeros.
// Any thread may write any part.
DEVICE void write_half(u16* values, int ld, int row, int column, float4 x, float inverse) {
    if (column >= ld) return;
    store8(values + (s64)row * ld + column,
           make_uint2(f32_to_f16x2(x.x * inverse, x.y * inverse), f32_to_f16x2(x.z * inverse, x.w * inverse)));
}
