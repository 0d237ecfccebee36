// Kernels with a mistake that a card may forgive at times, each, and one without; test_cuda_stress.py finds them.
#include "common.cuh"

struct Args {
    float *x, *out;
    int n;
};

KERNEL(right, Args, 256) {  // out[i] = x[n - 1 - i]
    SHARED(float, s);
    int t = threadIdx.x;
    s[t] = a.x[t];
    __syncthreads();
    a.out[t] = s[a.n - 1 - t];
}

KERNEL(no_barrier, Args, 256) {
    SHARED(float, s);
    int t = threadIdx.x;
    s[t] = a.x[t];
    __syncwarp();
    a.out[t] = s[a.n - 1 - t];
}

KERNEL(no_warp_barrier, Args, 32) {
    SHARED(float, s);
    int t = threadIdx.x;
    s[t] = a.x[t];
    __shfl_sync(FULL_WARP, t, 0);
    s[t] += s[t ^ 1];
    a.out[t] = s[t];
}

KERNEL(one_barrier_in_a_loop, Args, 256) {  // a warp that is ahead overwrites what others still read
    SHARED(float, s);
    int t = threadIdx.x;
    float sum = 0.0f;
    for (int i = 0; i < 8; i++) {
        s[t] = a.x[t] + (float)i;
        __syncthreads();
        sum += s[a.n - 1 - t];
        __syncwarp();
    }
    a.out[t] = sum;
}

KERNEL(order_of_blocks, Args, 32) {  // each block adds to what the one before left
    if (threadIdx.x == 0) a.out[blockIdx.x] = a.x[blockIdx.x] + (blockIdx.x ? a.out[blockIdx.x - 1] : 0.0f);
}

KERNEL(no_wait, Args, 32) {
    SHARED(float, s);
    int t = threadIdx.x;
    cp_async<4>(s + t, a.x + t);
    cp_async_commit();
    __syncwarp();
    a.out[t] = s[31 - t];
}

KERNEL(early_overwrite, Args, 32) {  // a copy into what is still read
    SHARED(float, s);
    int t = threadIdx.x;
    s[t] = 1.0f;
    __syncwarp();
    cp_async<4>(s + t, a.x + t);
    cp_async_commit();
    a.out[t] = s[t];
    cp_async_wait<0>();
}

KERNEL(beyond, Args, 32) { a.out[threadIdx.x] = a.x[threadIdx.x + a.n]; }

KERNEL(beyond_writing, Args, 32) { a.out[threadIdx.x + a.n] = a.x[threadIdx.x]; }

KERNEL(misaligned, Args, 32) {
    if (threadIdx.x < 8) store16(a.out + 4 * threadIdx.x, load16(a.x + 4 * threadIdx.x + a.n));
}

KERNEL(writes_constants, Args, 32) {
    u32 v = stream4(a.x + threadIdx.x);
    a.x[threadIdx.x] = __uint_as_float(v) + 1.0f;
    a.out[threadIdx.x] = 0.0f;
}

KERNEL(left_over_static, Args, 32) {  // shared memory of the block before
    __shared__ float s[32];
    if (blockIdx.x == 0) s[threadIdx.x] = a.x[threadIdx.x];
    a.out[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];
}
