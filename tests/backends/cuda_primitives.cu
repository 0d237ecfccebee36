// One kernel for each thing that common.cuh offers; test_cuda_emulator.py compares them with numpy.
#include "common.cuh"

struct Pointers {
    const void* a;
    const void* b;
    const void* c;
    void* out;
    int n;
};

DEVICE int global_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

KERNEL(halves, Pointers, 256) {  // a: u16, b: float; out: float [n], then u16 [n], then bf16 [n]
    int i = global_thread();
    if (i >= a.n) return;
    float x = static_cast<const float*>(a.b)[i];
    static_cast<float*>(a.out)[i] = f16_to_f32(static_cast<const u16*>(a.a)[i]);
    u16* out = reinterpret_cast<u16*>(static_cast<float*>(a.out) + a.n);
    out[i] = f32_to_f16(x);
    out[a.n + i] = f32_to_bf16(x);
}

KERNEL(pairs, Pointers, 256) {  // out: add, sub, mul, max, fma, and low of a with high of b, u32 [6][n]
    int i = global_thread();
    if (i >= a.n) return;
    u32 x = static_cast<const u32*>(a.a)[i], y = static_cast<const u32*>(a.b)[i], z = static_cast<const u32*>(a.c)[i];
    u32* out = static_cast<u32*>(a.out);
    out[i] = h2_add(x, y);
    out[a.n + i] = h2_sub(x, y);
    out[2 * a.n + i] = h2_mul(x, y);
    out[3 * a.n + i] = h2_max(x, y);
    out[4 * a.n + i] = h2_fma(x, y, z);
    out[5 * a.n + i] = f32_to_f16x2(f16x2_to_f32(x).x, f16x2_to_f32(y).y);
}

KERNEL(integers, Pointers, 256) {  // out: u32 [14][n]
    int i = global_thread();
    if (i >= a.n) return;
    u32 x = static_cast<const u32*>(a.a)[i], y = static_cast<const u32*>(a.b)[i], z = static_cast<const u32*>(a.c)[i];
    u32* out = static_cast<u32*>(a.out);
    u32 results[] = {(u32)__dp4a((int)x, (int)y, (int)z),
                     __dp4a(x, y, z),
                     __byte_perm(x, y, z),
                     lop3<0x6a>(x, y, z),
                     (u32)__popc(x),
                     (u32)__clz((int)(x >> (z & 31))),
                     (u32)__ffs((int)(x << (z & 31))),
                     __brev(x),
                     __funnelshift_l(x, y, z),
                     __funnelshift_r(x, y, z),
                     __umulhi(x, y),
                     (u32)__float2int_rn(__int_as_float((int)((x & 0x807fffff) | (y & 31) << 23 | 0x3f000000))),
                     (u32)__float2int_rz(__int_as_float((int)((x & 0x807fffff) | (y & 31) << 23 | 0x3f000000))),
                     (u32)max((int)x, (int)y) + min(x, z)};
    for (int k = 0; k < 14; k++) out[k * a.n + i] = results[k];
}

KERNEL(math, Pointers, 256) {  // out: float [8][n]
    int i = global_thread();
    if (i >= a.n) return;
    float x = static_cast<const float*>(a.a)[i];
    float* out = static_cast<float*>(a.out);
    float results[] = {fast_exp(x), fast_tanh(x), fast_sigmoid(x), fast_exp2(x),
                       fast_log2(fabsf(x)), rsqrtf(fabsf(x)), fast_divide(1.0f, x), __fmaf_rn(x, x, 1.0f)};
    for (int k = 0; k < 8; k++) out[k * a.n + i] = results[k];
}

KERNEL(shuffles, Pointers, 32) {  // a: int [32], b: source lanes; out: int [7][32] for each width 32, 16, 8
    int lane = lane_id(), x = static_cast<const int*>(a.a)[lane], source = static_cast<const int*>(a.b)[lane];
    int* out = static_cast<int*>(a.out) + lane;
    for (int width = 32; width >= 8; width /= 2, out += 7 * 32) {
        out[0] = __shfl_sync(FULL_WARP, x, source, width);
        out[32] = __shfl_xor_sync(FULL_WARP, x, 5, width);
        out[64] = __shfl_down_sync(FULL_WARP, x, 3, width);
        out[96] = __shfl_up_sync(FULL_WARP, x, 3, width);
        out[128] = (int)__ballot_sync(FULL_WARP, x % 3 == 0);
        out[160] = __any_sync(FULL_WARP, x == out[0]) * 2 + __all_sync(FULL_WARP, x == x);
        out[192] = (int)__shfl_sync(FULL_WARP, (float)x, 31 - lane, 32);
    }
}

KERNEL(halves_of_a_warp, Pointers, 32) {  // lanes of two masks go different ways; out: int [32]
    int lane = lane_id(), x = static_cast<const int*>(a.a)[lane];
    if (lane < 16) {
        for (int o = 8; o > 0; o /= 2) x += __shfl_xor_sync(0xffffu, x, o);
    } else {
        for (int o = 8; o > 0; o /= 2) x = max(x, __shfl_xor_sync(0xffff0000u, x, o));
        __syncwarp(0xffff0000u);
    }
    __syncwarp();
    static_cast<int*>(a.out)[lane] = x;
}

KERNEL(reductions, Pointers, 1024) {  // a: float [blocks][threads]; out: float [blocks][7], whatever thread writes
    __shared__ float scratch[32];
    float x = static_cast<const float*>(a.a)[global_thread()];
    float results[] = {block_sum(x, scratch), block_max(x, scratch), warp_sum(x), warp_max(x),
                       (float)warp_sum_int((int)(x * 100)), (float)warp_max_int((int)(x * 100)), warp_sum<8>(x)};
    if ((int)threadIdx.x == a.n)
        for (int k = 0; k < 7; k++) static_cast<float*>(a.out)[blockIdx.x * 7 + k] = results[k];
}

KERNEL(products, Pointers, 64) {  // a: half [16][16], b: half [16][8], c: s8 A [16][32] and B [32][8] transposed
    SHARED(u16, tile);            // out: float [16][8] of fragments as documented, of ldmatrix; int [16][8]
    int lane = lane_id(), g = lane / 4, t = lane % 4;
    const u16 *left = static_cast<const u16*>(a.a), *right = static_cast<const u16*>(a.b);
    for (int i = threadIdx.x; i < 256; i += blockDim.x) tile[i] = left[i];
    for (int i = threadIdx.x; i < 128; i += blockDim.x) tile[256 + i] = right[i];
    __syncthreads();
    if (warp_id() == 1) return;
    u32 fa[4], fb[2];
    for (int i = 0; i < 4; i++) fa[i] = load4(left + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8);
    for (int i = 0; i < 2; i++) fb[i] = (u32)right[(2 * t + 1 + 8 * i) * 8 + g] << 16 | right[(2 * t + 8 * i) * 8 + g];
    float d[2][4] = {{1, 1, 1, 1}, {1, 1, 1, 1}};
    mma_f16(d[0], fa, fb);
    ldmatrix4(fa, tile + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix2_trans(fb, tile + 256 + lane % 16 * 8);
    mma_f16(d[1], fa, fb);
    const s8 *a8 = static_cast<const s8*>(a.c), *b8 = a8 + 512;
    for (int i = 0; i < 4; i++) fa[i] = load4(a8 + (g + i % 2 * 8) * 32 + 4 * t + i / 2 * 16);
    for (int i = 0; i < 2; i++) fb[i] = load4(b8 + g * 32 + 4 * t + 16 * i);
    int e[4] = {-5, -5, -5, -5};
    mma_s8(e, fa, fb);
    for (int i = 0; i < 4; i++) {
        int at = (g + i / 2 * 8) * 8 + 2 * t + i % 2;
        for (int k = 0; k < 2; k++) static_cast<float*>(a.out)[k * 128 + at] = d[k][i];
        static_cast<int*>(a.out)[256 + at] = e[i];
    }
}

KERNEL(matrices, Pointers, 32) {  // a: half [32][8]; out: u32 x1, x1t, x2, x2t, x4, x4t: [14][32]
    SHARED(u16, tile);
    int lane = lane_id();
    store16(tile + lane * 8, load16(static_cast<const u16*>(a.a) + lane * 8));
    __syncwarp();
    u32 r1[1], r2[2], r4[4], *out = static_cast<u32*>(a.out) + lane;
    ldmatrix1(r1, tile + lane % 8 * 8);
    *out = r1[0], out += 32;
    ldmatrix1_trans(r1, tile + lane % 8 * 8);
    *out = r1[0], out += 32;
    ldmatrix2(r2, tile + lane % 16 * 8);
    for (u32 r : r2) *out = r, out += 32;
    ldmatrix2_trans(r2, tile + lane % 16 * 8);
    for (u32 r : r2) *out = r, out += 32;
    ldmatrix4(r4, tile + lane * 8);
    for (u32 r : r4) *out = r, out += 32;
    ldmatrix4_trans(r4, tile + lane * 8);
    for (u32 r : r4) *out = r, out += 32;
}

KERNEL(pipeline, Pointers, 128) {  // sums n tiles of 128 x 16 bytes by threads that copied other parts; 3 in flight
    SHARED(float, tiles);          // [3][512]
    const float* in = static_cast<const float*>(a.a);
    float sum = 0;
    for (int i = 0; i < a.n + 2; i++) {
        if (i < a.n) cp_async16(tiles + i % 3 * 512 + threadIdx.x * 4, in + i * 512 + threadIdx.x * 4);
        cp_async_commit();
        if (i < 2) continue;
        cp_async_wait<2>();
        __syncthreads();
        for (int k = 0; k < 4; k++) sum += tiles[(i - 2) % 3 * 512 + k * 128 + (threadIdx.x + 1) % 128];
        __syncthreads();
    }
    cp_async16_or_zero(tiles + threadIdx.x * 4, in + threadIdx.x * 4, threadIdx.x % 2);
    cp_async_commit();
    cp_async_wait<0>();
    static_cast<float*>(a.out)[threadIdx.x] = sum + tiles[threadIdx.x * 4];
}

KERNEL(small_copies, Pointers, 32) {  // 4 and 8 bytes: out[i] = a[i + 1] of 32, then a[i + 2] of 64
    SHARED(float, tile);
    const float* in = static_cast<const float*>(a.a);
    int i = threadIdx.x;
    cp_async<4>(tile + i, in + i + 1);
    cp_async<8>(tile + 32 + 2 * i, in + 2 * i + 2);
    if (i < 8) cp_async<16>(tile + 96 + 4 * i, in + 4 * i);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for (int k = i; k < 128; k += 32) static_cast<float*>(a.out)[k] = tile[k];
}

KERNEL(no_wait, Pointers, 32) {
    SHARED(float, tile);
    cp_async16(tile + threadIdx.x * 4, static_cast<const float*>(a.a) + threadIdx.x * 4);
    cp_async_commit();
    static_cast<float*>(a.out)[threadIdx.x] = tile[threadIdx.x * 4];
}

KERNEL(atomics, Pointers, 256) {  // a: int [threads]; out: int sum, max, min, or, exchanged; float sum; count by CAS
    int i = global_thread(), x = static_cast<const int*>(a.a)[i];
    int* out = static_cast<int*>(a.out);
    atomicAdd(out, x);
    atomicMax(out + 1, x);
    atomicMin(out + 2, x);
    atomicOr(reinterpret_cast<u32*>(out + 3), 1u << (x & 31));
    atomicExch(out + 4, 7);
    atomicAdd(reinterpret_cast<float*>(out + 5), (float)x);
    for (int seen = out[6];;) {
        int old = atomicCAS(out + 6, seen, seen + 1);
        if (old == seen) break;
        seen = old;
    }
}

KERNEL(places, Pointers, 64) {  // out: int [grid z, y, x][3]; the block's place and its threads
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int* out = static_cast<int*>(a.out) + 3 * block;
    if (threadIdx.x == blockDim.x - 1) out[0] = blockIdx.x + 100 * blockIdx.y, out[1] = blockIdx.z, out[2] = threadIdx.x;
}

CONSTANT float table[4] = {1.5f, 2.5f, 3.5f, 4.5f};

struct Mixed {
    const float* x;
    int n;
    float scale;
    float* y;
    int unused;
};

KERNEL_MIN(mixed, Mixed, 96, 2) {  // static and dynamic shared memory at once; the last threads leave early
    __shared__ float still[96];
    SHARED(float, first);
    SHARED_AT(float, second, 96 * 4);
    int i = threadIdx.x;
    if (i >= a.n) return;
    still[i] = a.x[i];
    first[i] = 2 * still[i];
    second[i] = table[i % 4];
    __syncthreads();
    int other = a.n - 1 - i;
    a.y[i] = a.scale * (still[other] + first[other]) + second[other];
}

KERNEL(wrong, Pointers, 64) {  // n says in which way
    SHARED(float, tile);
    int i = threadIdx.x;
    if (a.n == 1 && i < 20) __syncthreads();
    if (a.n == 1 && i < 32) __syncwarp();
    if (a.n == 2) {
        if (i % 2)
            __syncthreads();
        else
            __syncthreads();
    }
    if (a.n == 3 && i < 5) __shfl_sync(FULL_WARP, i, 0);
    if (a.n == 3) __syncthreads();
    if (a.n == 4) i % 2 ? __syncwarp() : (void)__ballot_sync(FULL_WARP, 1);
    if (a.n == 5) __syncwarp(1);
    if (a.n == 6) tile[64 + i] = 1;
    if (a.n == 7) store16(static_cast<float*>(a.out) + 1, make_uint4(0, 0, 0, 0));
    if (a.n == 8 && i < 16) __shfl_sync(0xffff, i, 20);
    if (a.n == 9) {
        volatile char big[200 << 10];
        for (int k = 0; k < (200 << 10); k += 64) big[k] = 1;
    }
    if (i == 0 && a.n == 0) static_cast<float*>(a.out)[0] = 42 + (tile[0] == tile[0]);
}
