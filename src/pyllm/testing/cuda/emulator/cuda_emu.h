// CUDA on the CPU: enough of it that the kernels of ../kernels run unchanged, for tests and machines without a card.
//
// Every thread of a block is a fiber with its own stack; one block runs at a time. A thread runs until it must wait: at
// __syncthreads, or at something that lanes do together (a shuffle, a matrix product). Each lane leaves a pointer to
// its arguments there and the lane that comes last does the work for all: a switch of stacks for each lane.
// State is that of the shared object: several copies of it run blocks side by side on several threads of the host.
//
// What is reported as an error instead of running on: threads that wait for each other forever (some at a barrier, some
// at a collective), collectives or masks that differ within a warp, barriers at different lines, a grid or block that
// cannot be, writes behind dynamic shared memory, stacks that overflow. Shared memory starts as NaN bytes, and a
// cp.async copies only when it is waited for. With a seed, much more: stress.h.
#pragma once

#ifdef __APPLE__
#define _XOPEN_SOURCE 600  // for ucontext, which Apple hides otherwise
#define _DARWIN_C_SOURCE
#endif
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS  // C's own headers: those of C++ take longer to read than most kernels
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if !(defined(__x86_64__) && defined(__linux__))
#define EMULATE_UCONTEXT
#endif
#ifdef EMULATE_PORTABLE  // for tests: what other processors take, here
#define EMULATE_UCONTEXT
#endif
#ifdef EMULATE_UCONTEXT
#include <ucontext.h>
#endif

#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __shared__ static __attribute__((section("emu_shared")))
#define __align__(n) __attribute__((aligned(n)))
#define DEVICE static inline __attribute__((always_inline, unused))
#define CONSTANT static const

struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
DEVICE int2 make_int2(int x, int y) { return {x, y}; }
DEVICE int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
DEVICE uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
DEVICE uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
DEVICE float2 make_float2(float x, float y) { return {x, y}; }
DEVICE float3 make_float3(float x, float y, float z) { return {x, y, z}; }
DEVICE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#include "fibers.h"
#include "blocks.h"

// A kernel's entry in the shared object: 0, or 1 with the reason in emu_error().
#define KERNEL(name, Args, threads)                                                                           \
    static void name(const Args& a);                                                                          \
    extern "C" {                                                                                              \
    int emu_size_##name = sizeof(Args);                                                                       \
    }                                                                                                         \
    extern "C" int emu_##name(const emu::Launch* launch, const void* args) {                                  \
        return emu::run(*launch, #name, threads, [](const void* p) { name(*static_cast<const Args*>(p)); }, args); \
    }                                                                                                         \
    static __attribute__((noinline)) void name(const Args& a)
#define KERNEL_MIN(name, Args, threads, blocks) KERNEL(name, Args, threads)
extern "C" __attribute__((unused)) const char* emu_error() { return emu::state.error; }
extern "C" __attribute__((unused)) uint64_t emu_fault() { return emu::state.fault; }

#define SHARED_AT(T, name, bytes) T* name = reinterpret_cast<T*>(emu::state.shared + (bytes))
#define threadIdx (emu::me->thread)
#define blockIdx (emu::state.block)
#define blockDim (emu::state.block_size)
#define gridDim (emu::state.grid_size)
#define warpSize 32
#define __syncthreads() emu::barrier(__LINE__)

#include "intrinsics.h"
#include "collectives.h"
