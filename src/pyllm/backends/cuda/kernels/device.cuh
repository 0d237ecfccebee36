// The card's side of common.cuh: launch macros and PTX. Each name here has a twin in ../emulator/cuda_emu.h.
#pragma once

#define ARCH __CUDA_ARCH__
#define DEVICE static __device__ __forceinline__
#define CONSTANT static __constant__ const
#define KERNEL(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads) name(const Args a)
#define KERNEL_MIN(name, Args, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Args a)

extern __shared__ uint4 dynamic_shared_[];
#define SHARED_AT(T, name, bytes) T* name = reinterpret_cast<T*>(reinterpret_cast<u8*>(dynamic_shared_) + (bytes))

// --- halves

DEVICE float f16_to_f32(u16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

DEVICE u16 f32_to_f16(float x) {  // nearest, ties to even; too large becomes infinity
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}

DEVICE u32 f32_to_f16x2(float low, float high) {
#if ARCH >= 800
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return (u32)f32_to_f16(high) << 16 | f32_to_f16(low);
#endif
}

#define H2_OP(name, instruction)                                              \
    DEVICE u32 name(u32 a, u32 b) {                                           \
        u32 d;                                                                \
        asm(instruction " %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));           \
        return d;                                                             \
    }
H2_OP(h2_add, "add.rn.f16x2")  // .rn: not contracted into an fma, so that the emulator computes the same
H2_OP(h2_sub, "sub.rn.f16x2")
H2_OP(h2_mul, "mul.rn.f16x2")
#undef H2_OP

DEVICE u32 h2_fma(u32 a, u32 b, u32 c) {  // a * b + c, rounded once
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

DEVICE u32 h2_max(u32 a, u32 b) {
#if ARCH >= 800
    u32 d;
    asm("max.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
#else
    return f32_to_f16x2(fmaxf(f16_to_f32((u16)a), f16_to_f32((u16)b)),
                        fmaxf(f16_to_f32((u16)(a >> 16)), f16_to_f32((u16)(b >> 16))));
#endif
}

// --- bits, math

// Any function of three bits: table 0xf0 is a, 0xcc b, 0xaa c.
template <int table> DEVICE u32 lop3(u32 a, u32 b, u32 c) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(table));
    return d;
}

DEVICE int opaque(int x) {  // the same; what follows from it is computed where it is used, not once and kept
    asm volatile("" : "+r"(x));
    return x;
}

DEVICE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float fast_log2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float fast_divide(float a, float b) { return __fdividef(a, b); }  // 0 where 2^126 < |b|

// --- memory: 16, 8 and 4 aligned bytes; `stream` is for weights, read once in a step and kept out of the first cache

DEVICE uint4 load16(const void* p) { return *reinterpret_cast<const uint4*>(p); }
DEVICE uint2 load8(const void* p) { return *reinterpret_cast<const uint2*>(p); }
DEVICE u32 load4(const void* p) { return *reinterpret_cast<const u32*>(p); }
DEVICE void store16(void* p, uint4 v) { *reinterpret_cast<uint4*>(p) = v; }
DEVICE void store8(void* p, uint2 v) { *reinterpret_cast<uint2*>(p) = v; }
DEVICE void store4(void* p, u32 v) { *reinterpret_cast<u32*>(p) = v; }

DEVICE uint4 stream16(const void* p) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
}

DEVICE uint2 stream8(const void* p) {
    uint2 v;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

DEVICE u32 stream4(const void* p) {
    u32 v;
    asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes from global to shared memory, both aligned, while the thread goes on. What was committed more than `pending`
// groups ago is there after cp_async_wait<pending>(), for this thread; __syncthreads() shows it to the others.
DEVICE void cp_async16(void* shared, const void* global) {
#if ARCH >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
    *reinterpret_cast<uint4*>(shared) = *reinterpret_cast<const uint4*>(global);
#endif
}

template <int bytes> DEVICE void cp_async(void* shared, const void* global) {  // 4, 8 or 16 bytes, aligned to as many
#if ARCH >= 800
    if constexpr (bytes == 16)
        cp_async16(shared, global);
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(bytes)
                     : "memory");
#else
#pragma unroll
    for (int i = 0; i < bytes / 4; i++) reinterpret_cast<u32*>(shared)[i] = reinterpret_cast<const u32*>(global)[i];
#endif
}

DEVICE void cp_async16_or_zero(void* shared, const void* global, bool take) {  // zeros unless `take`; then not read
#if ARCH >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(take ? 16 : 0)
                 : "memory");
#else
    *reinterpret_cast<uint4*>(shared) = take ? *reinterpret_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}

DEVICE void cp_async_commit() {
#if ARCH >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int pending> DEVICE void cp_async_wait() {
#if ARCH >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// --- matrices. With g = lane / 4 and t = lane % 4, the fragments of the lanes of a warp are
//   half A [16 x 16], row major  a[0] = A[g][2t, 2t+1]  a[1] = A[g+8][2t …]  a[2] = A[g][2t+8 …]  a[3] = A[g+8][2t+8 …]
//   half B [16 x 8]              b[0] = B[2t, 2t+1][g]  b[1] = B[2t+8, 2t+9][g]
//   s8   A [16 x 32]             a[0] = A[g][4t … 4t+3] a[1] = A[g+8][4t …] a[2] = A[g][4t+16 …] a[3] = A[g+8][4t+16 …]
//   s8   B [32 x 8]              b[0] = B[4t … 4t+3][g] b[1] = B[4t+16 …][g]
//   D [16 x 8], float or int     d[0] = D[g][2t]        d[1] = D[g][2t+1]   d[2] = D[g+8][2t]    d[3] = D[g+8][2t+1]

// d += A B for halves, sums in float. All lanes of the warp call it.
DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if ARCH >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
    for (int k = 0; k < 2; k++)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
#endif
}

// d += A B for signed bytes, exact in 32 bits. All lanes of the warp call it.
DEVICE void mma_s8(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if ARCH >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
    for (int k = 0; k < 4; k++)
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
            : "+r"(d[k % 2 * 2]), "+r"(d[k % 2 * 2 + 1])
            : "r"(a[k]), "r"(b[k / 2]));
#endif
}

// 1, 2 or 4 matrices of 8 x 8 halves from shared memory: lane 8m + i names row i of matrix m (16 aligned bytes; for one
// or two matrices the addresses of the other lanes are not used). Afterwards r[m] = M[g][2t, 2t+1], or, transposed,
// M[2t, 2t+1][g]. A row-major A in rows of `ld` halves is ldmatrix4(a, A + (lane % 16) * ld + lane / 16 * 8).
#define LDMATRIX(suffix, kind)                                                                                    \
    DEVICE void ldmatrix1##suffix(u32 (&r)[1], const void* p) {                                                   \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" kind ".shared.b16 {%0}, [%1];"                               \
                     : "=r"(r[0])                                                                                 \
                     : "r"(shared_address(p))                                                                     \
                     : "memory");                                                                                 \
    }                                                                                                             \
    DEVICE void ldmatrix2##suffix(u32 (&r)[2], const void* p) {                                                   \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" kind ".shared.b16 {%0,%1}, [%2];"                            \
                     : "=r"(r[0]), "=r"(r[1])                                                                     \
                     : "r"(shared_address(p))                                                                     \
                     : "memory");                                                                                 \
    }                                                                                                             \
    DEVICE void ldmatrix4##suffix(u32 (&r)[4], const void* p) {                                                   \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" kind ".shared.b16 {%0,%1,%2,%3}, [%4];"                      \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                             \
                     : "r"(shared_address(p))                                                                     \
                     : "memory");                                                                                 \
    }
LDMATRIX(, "")
LDMATRIX(_trans, ".trans")
#undef LDMATRIX
