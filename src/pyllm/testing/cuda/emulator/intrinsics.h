// What one thread does alone: conversions, half arithmetic, bits, math, memory, atomics. Twins of device.cuh's PTX and
// of those CUDA functions that kernels use.
#pragma once

// --- bits

template <typename To, typename From> DEVICE To emu_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
DEVICE float __int_as_float(int x) { return emu_bits<float>(x); }
DEVICE int __float_as_int(float x) { return emu_bits<int>(x); }
DEVICE float __uint_as_float(u32 x) { return emu_bits<float>(x); }
DEVICE u32 __float_as_uint(float x) { return emu_bits<u32>(x); }
DEVICE double __longlong_as_double(s64 x) { return emu_bits<double>(x); }
DEVICE s64 __double_as_longlong(double x) { return emu_bits<s64>(x); }

DEVICE int __popc(u32 x) { return __builtin_popcount(x); }
DEVICE int __popcll(u64 x) { return __builtin_popcountll(x); }
DEVICE int __clz(int x) { return x ? __builtin_clz((u32)x) : 32; }
DEVICE int __clzll(s64 x) { return x ? __builtin_clzll((u64)x) : 64; }
DEVICE int __ffs(int x) { return __builtin_ffs(x); }
DEVICE u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
DEVICE int __mulhi(int a, int b) { return (int)((s64)a * b >> 32); }
DEVICE u32 __funnelshift_l(u32 low, u32 high, u32 n) { return (u32)((((u64)high << 32 | low) << (n & 31)) >> 32); }
DEVICE u32 __funnelshift_r(u32 low, u32 high, u32 n) { return (u32)(((u64)high << 32 | low) >> (n & 31)); }

DEVICE u32 __brev(u32 x) {
    u32 y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}

DEVICE u32 __byte_perm(u32 a, u32 b, u32 selector) {  // a selector's bit 3 repeats the byte's sign
    u64 both = (u64)b << 32 | a;
    u32 y = 0;
    for (int i = 0; i < 4; i++) {
        u32 byte = both >> (8 * (selector >> (4 * i) & 7)) & 255;
        if (selector >> (4 * i + 3) & 1) byte = byte >> 7 ? 255 : 0;
        y |= byte << (8 * i);
    }
    return y;
}

template <int table> DEVICE u32 lop3(u32 a, u32 b, u32 c) {
    u32 y = 0;
    for (int i = 0; i < 8; i++)
        if (table >> i & 1) y |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return y;
}

DEVICE int opaque(int x) { return x; }

DEVICE int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (s8)(a >> (8 * i)) * (s8)(b >> (8 * i));
    return c;
}
DEVICE u32 __dp4a(u32 a, u32 b, u32 c) {
    for (int i = 0; i < 4; i++) c += (u8)(a >> (8 * i)) * (u8)(b >> (8 * i));
    return c;
}

DEVICE u32 __vadd4(u32 a, u32 b) { return ((a & 0x7f7f7f7fu) + (b & 0x7f7f7f7fu)) ^ ((a ^ b) & 0x80808080u); }
DEVICE u32 __vsub4(u32 a, u32 b) { return ((a | 0x80808080u) - (b & 0x7f7f7f7fu)) ^ (~(a ^ b) & 0x80808080u); }

// --- conversions and float math

DEVICE int emu_saturate(double x) {
    return x != x ? 0 : x >= 2147483647.0 ? 2147483647 : x <= -2147483648.0 ? -2147483647 - 1 : (int)x;
}
DEVICE int __float2int_rn(float x) { return emu_saturate(rint((double)x)); }
DEVICE int __float2int_rz(float x) { return emu_saturate((double)x); }
DEVICE int __float2int_rd(float x) { return emu_saturate(floor((double)x)); }
DEVICE int __float2int_ru(float x) { return emu_saturate(ceil((double)x)); }
DEVICE float __int2float_rn(int x) { return (float)x; }
DEVICE float __uint2float_rn(u32 x) { return (float)x; }
DEVICE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
// The optimizer may not merge these with a neighbouring addition, as on the card.
DEVICE float __fadd_rn(float a, float b) { volatile float y = a + b; return y; }
DEVICE float __fsub_rn(float a, float b) { volatile float y = a - b; return y; }
DEVICE float __fmul_rn(float a, float b) { volatile float y = a * b; return y; }
DEVICE float __fdiv_rn(float a, float b) { return a / b; }
DEVICE float __frcp_rn(float a) { return 1.0f / a; }
DEVICE float __fsqrt_rn(float a) { return sqrtf(a); }
DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
DEVICE float fast_exp2(float x) { return exp2f(x); }
DEVICE float fast_log2(float x) { return log2f(x); }
DEVICE float fast_divide(float a, float b) { return a / b; }
DEVICE float __fdividef(float a, float b) { return a / b; }
#define __expf expf  // the C library has functions of these names
#define __logf logf
#define __sinf sinf
#define __cosf cosf
#define __powf powf
DEVICE float __saturatef(float x) { return x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f; }

DEVICE int min(int a, int b) { return a < b ? a : b; }
DEVICE int max(int a, int b) { return a > b ? a : b; }
DEVICE u32 min(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 max(u32 a, u32 b) { return a > b ? a : b; }
DEVICE s64 min(s64 a, s64 b) { return a < b ? a : b; }
DEVICE s64 max(s64 a, s64 b) { return a > b ? a : b; }
DEVICE u64 min(u64 a, u64 b) { return a < b ? a : b; }
DEVICE u64 max(u64 a, u64 b) { return a > b ? a : b; }
DEVICE float min(float a, float b) { return fminf(a, b); }
DEVICE float max(float a, float b) { return fmaxf(a, b); }

// --- halves

#if defined(__F16C__) && !defined(EMULATE_PORTABLE)
typedef float emu_f32x4 __attribute__((vector_size(16)));
typedef short emu_s16x8 __attribute__((vector_size(16)));
DEVICE float f16_to_f32(u16 h) { return __builtin_ia32_vcvtph2ps(emu_s16x8{(short)h})[0]; }
DEVICE u16 f32_to_f16(float x) { return (u16)__builtin_ia32_vcvtps2ph(emu_f32x4{x}, 0)[0]; }
#elif defined(__aarch64__) && !defined(EMULATE_PORTABLE)
DEVICE float f16_to_f32(u16 h) { return (float)emu_bits<__fp16>(h); }
DEVICE u16 f32_to_f16(float x) { return emu_bits<u16>((__fp16)x); }
#else
DEVICE float f16_to_f32(u16 h) {
    u32 sign = (u32)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return emu_bits<float>(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) return emu_bits<float>(sign | emu_bits<u32>((float)mantissa * 0x1p-24f));
    return emu_bits<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}
DEVICE u16 f32_to_f16(float x) {
    u32 bits = emu_bits<u32>(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (u16)(sign | 0x7e00);
    if (size >= 0x477ff000) return (u16)(sign | 0x7c00);
    if (size < 0x38800000)  // subnormal: the sum's last bit is a half's
        return (u16)(sign | (emu_bits<u32>(emu_bits<float>(size) + 0.5f) - 0x3f000000));
    return (u16)(sign | (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13);
}
#endif

DEVICE u32 f32_to_f16x2(float low, float high) { return (u32)f32_to_f16(high) << 16 | f32_to_f16(low); }

// To nearest half in one rounding: the float in between is rounded to odd, which keeps what decides.
DEVICE u16 emu_round_f16(double x) {
    float f = (float)x;
    u32 bits = emu_bits<u32>(f);
    if ((double)f != x && f == f && bits << 1 != 0xff000000u) {
        if (fabs((double)f) > fabs(x)) bits--;
        bits |= 1;
    }
    return f32_to_f16(emu_bits<float>(bits));
}
#define H2_OP(name, expression)                                                                      \
    DEVICE u32 name(u32 left, u32 right) {                                                           \
        u32 y = 0;                                                                                   \
        for (int i = 0; i < 32; i += 16) {                                                           \
            double a = f16_to_f32((u16)(left >> i)), b = f16_to_f32((u16)(right >> i));              \
            y |= (u32)emu_round_f16(expression) << i;                                                \
        }                                                                                            \
        return y;                                                                                    \
    }
H2_OP(h2_add, a + b)
H2_OP(h2_sub, a - b)
H2_OP(h2_mul, a* b)
H2_OP(h2_max, a > b || b != b ? a : b)
#undef H2_OP

DEVICE u32 h2_fma(u32 a, u32 b, u32 c) {
    u32 y = 0;
    for (int i = 0; i < 32; i += 16) {
        double product = (double)f16_to_f32((u16)(a >> i)) * f16_to_f32((u16)(b >> i));
        y |= (u32)emu_round_f16(product + f16_to_f32((u16)(c >> i))) << i;
    }
    return y;
}

// --- memory

template <typename T> DEVICE T emu_load(const void* p) {
    if (reinterpret_cast<uintptr_t>(p) % sizeof(T)) emu::fail("a vector load from an address that is not aligned");
    emu::pause(16);
    return *static_cast<const T*>(p);
}
template <typename T> DEVICE T emu_stream(const void* p) {
    T v = emu_load<T>(p);
    if (__builtin_expect(emu::state.seed != 0, 0)) emu::state.constants.add(p, sizeof v, emu::state.random);
    return v;
}
template <typename T> DEVICE void emu_store(void* p, T v) {
    if (reinterpret_cast<uintptr_t>(p) % sizeof(T)) emu::fail("a vector store to an address that is not aligned");
    emu::pause(16);
    *static_cast<T*>(p) = v;
}
DEVICE uint4 load16(const void* p) { return emu_load<uint4>(p); }
DEVICE uint2 load8(const void* p) { return emu_load<uint2>(p); }
DEVICE u32 load4(const void* p) { return emu_load<u32>(p); }
DEVICE uint4 stream16(const void* p) { return emu_stream<uint4>(p); }
DEVICE uint2 stream8(const void* p) { return emu_stream<uint2>(p); }
DEVICE u32 stream4(const void* p) { return emu_stream<u32>(p); }
DEVICE void store16(void* p, uint4 v) { emu_store(p, v); }
DEVICE void store8(void* p, uint2 v) { emu_store(p, v); }
DEVICE void store4(void* p, u32 v) { emu_store(p, v); }
template <typename T> DEVICE T __ldg(const T* p) { return *p; }
DEVICE void __threadfence() {
    emu::pause(2);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
DEVICE void __threadfence_block() { emu::pause(2); }

// --- atomics: blocks may run on several threads of the host

#define EMU_ATOMICS(T)                                                                                             \
    DEVICE T atomicAdd(T* p, T v) {                                                                                \
        emu::pause(2);                                                                                             \
        return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                                         \
    }                                                                                                              \
    DEVICE T atomicExch(T* p, T v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }                         \
    DEVICE T atomicOr(T* p, T v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }                             \
    DEVICE T atomicAnd(T* p, T v) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }                           \
    DEVICE T atomicXor(T* p, T v) { return __atomic_fetch_xor(p, v, __ATOMIC_SEQ_CST); }                           \
    DEVICE T atomicCAS(T* p, T expected, T v) {                                                                    \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                   \
        return expected;                                                                                           \
    }                                                                                                              \
    DEVICE T atomicMax(T* p, T v) {                                                                                \
        T old = *p;                                                                                                \
        while (old < v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {   \
        }                                                                                                          \
        return old;                                                                                                \
    }                                                                                                              \
    DEVICE T atomicMin(T* p, T v) {                                                                                \
        T old = *p;                                                                                                \
        while (v < old && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {   \
        }                                                                                                          \
        return old;                                                                                                \
    }
EMU_ATOMICS(int)
EMU_ATOMICS(u32)
EMU_ATOMICS(u64)
#undef EMU_ATOMICS

DEVICE int atomicSub(int* p, int v) { return atomicAdd(p, -v); }

DEVICE float atomicAdd(float* p, float v) {
    u32* bits = reinterpret_cast<u32*>(p);
    u32 old = *bits;
    while (!__atomic_compare_exchange_n(bits, &old, emu_bits<u32>(emu_bits<float>(old) + v), false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {
    }
    return emu_bits<float>(old);
}
