// What every kernel includes: one source, built by NVRTC for a card and by g++ (-DEMULATED) for the emulator.
//
// Manual
//   KERNEL(name, Args, threads) { … a.member … }   an entry point; Args holds pointers, int and float only. The host
//       passes a numpy structured array of the same (aligned) layout. KERNEL_MIN(…, blocks) also asks for that many
//       blocks on a multiprocessor. Threads that have nothing to do may return, before or between barriers.
//   DEVICE float f(…)            a device function, inlined. CONSTANT T table[n] = {…};  a table in constant memory.
//   SHARED(T, name);             dynamic shared memory as T*, 16-byte aligned, sized by the launch;
//   SHARED_AT(T, name, bytes);   the same from a byte offset. `__shared__ T name[n];` is static shared memory.
//   Include nothing but our .cuh files: no cuda_fp16.h, no mma.h, no <cstdint>. Inline PTX belongs in this file, with
//       its twin in ../emulator/cuda_emu.h; tests/backends/test_cuda_emulator.py compares each with numpy.
//   Compile-time facts come as -D defines; ARCH is 750, 800, 900, … (the emulator's is 800).
//   CUDA's own names that work in both: threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, the
//       __shfl_*_sync, __ballot_sync, __any_sync, __all_sync, __activemask (the whole warp, emulated), __dp4a,
//       __byte_perm, __popc, __clz, __ffs, __brev, __funnelshift_{l,r}, __umulhi, __ldg, __float_as_int & co,
//       __float2int_{rn,rz,rd,ru}, __fmaf_rn, rsqrtf, rintf, atomics on int, unsigned, u64 and float, __threadfence,
//       min, max, int2/4, uint2/4, float2/3/4 and make_*, the math functions of float.
//   What takes PTX is in device.cuh, each with what it does: f16_to_f32, h2_fma & co, lop3, stream16, cp_async16,
//       mma_f16, mma_s8, ldmatrix4, fast_exp2, …; this file adds reductions and what else both sides share.
//   Halves are raw bits: u16, and two in a u32 (low half first).
#pragma once

typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef short s16;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long long u64;
typedef long long s64;

#define FULL_WARP 0xffffffffu

#ifdef EMULATED
#define ARCH 800
#include "cuda_emu.h"
#else
#include "device.cuh"
#endif

// What a step has, in device memory so that a captured graph serves many steps.
struct Step {
    int n_tokens, n_rows, n_seqs, n_generated;
};
static_assert(sizeof(Step) == 16, "the host's layout");

#define SHARED(T, name) SHARED_AT(T, name, 0)

// --- small things

DEVICE int lane_id() { return threadIdx.x & 31; }
DEVICE int warp_id() { return threadIdx.x >> 5; }
template <typename T> DEVICE T ceil_div(T a, T b) { return (a + b - 1) / b; }
DEVICE float infinity() { return __int_as_float(0x7f800000); }
DEVICE float bf16_to_f32(u16 bits) { return __uint_as_float((u32)bits << 16); }

DEVICE u16 f32_to_bf16(float x) {  // nearest, ties to even; no NaN
    u32 bits = __float_as_uint(x);
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// --- halves

DEVICE float2 f16x2_to_f32(u32 pair) { return make_float2(f16_to_f32((u16)pair), f16_to_f32((u16)(pair >> 16))); }
DEVICE u32 h2_set(u16 h) { return (u32)h << 16 | h; }
DEVICE u32 h2_set(float x) { return f32_to_f16x2(x, x); }

// 16 bits in each half of a word as 1024 + value: the integer to half conversion by bits, for values below 1024.
#define H2_1024 0x64006400u

// --- fast math: errors of a few units in the last place

DEVICE float fast_exp(float x) { return fast_exp2(x * 1.4426950408889634f); }
DEVICE float fast_sigmoid(float x) { return fast_divide(1.0f, 1.0f + fast_exp(-x)); }

DEVICE float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(fast_exp(-fabsf(x))); }

DEVICE float fast_tanh(float x) {  // absolute error 2e-7; saturates without overflow
    float t = fast_exp(-2.0f * fabsf(x));
    return copysignf(fast_divide(1.0f - t, 1.0f + t), x);
}

// --- reductions; every lane gets the result

template <int width = 32> DEVICE float warp_sum(float x) {
#pragma unroll
    for (int o = width / 2; o > 0; o >>= 1) x += __shfl_xor_sync(FULL_WARP, x, o);
    return x;
}

template <int width = 32> DEVICE float warp_max(float x) {
#pragma unroll
    for (int o = width / 2; o > 0; o >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, o));
    return x;
}

template <int width = 32> DEVICE int warp_sum_int(int x) {
#pragma unroll
    for (int o = width / 2; o > 0; o >>= 1) x += __shfl_xor_sync(FULL_WARP, x, o);
    return x;
}

template <int width = 32> DEVICE int warp_max_int(int x) {
#pragma unroll
    for (int o = width / 2; o > 0; o >>= 1) x = max(x, __shfl_xor_sync(FULL_WARP, x, o));
    return x;
}

// All threads of a one-dimensional block of whole warps call these; `scratch` is shared memory for 32 values, free
// again when the call returns.
DEVICE float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    if (blockDim.x <= 32) return x;
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();
    x = warp_sum(lane_id() < (int)blockDim.x >> 5 ? scratch[lane_id()] : 0.0f);
    __syncthreads();
    return x;
}

DEVICE float block_max(float x, float* scratch) {
    x = warp_max(x);
    if (blockDim.x <= 32) return x;
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();
    x = warp_max(lane_id() < (int)blockDim.x >> 5 ? scratch[lane_id()] : -infinity());
    __syncthreads();
    return x;
}
