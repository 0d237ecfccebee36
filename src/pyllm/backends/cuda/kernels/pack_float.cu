// Rows of floats to rows of `ld` floats, zeros behind. The first float of the matrix becomes a bound of magnitudes, of
// halves and bfloat16; it must be zero before. WORD: u16 or u32; BRAIN: bfloat16.
#include "common.cuh"

#define THREADS 256

struct Args {
    const WORD* source;
    u8* matrix;
    int n_rows;
    int first_row;
    int columns;
    int ld;
    int low;  // where the rows begin, in units of 256 bytes
};

KERNEL(pack, Args, THREADS) {
    int column = blockIdx.x * THREADS + threadIdx.x;
    float peak = 0.0f;
    for (int row = blockIdx.y; row < a.n_rows && column < a.ld; row += gridDim.y) {
        WORD x = column < a.columns ? a.source[(s64)row * a.columns + column] : 0;
        reinterpret_cast<WORD*>(a.matrix + (s64)a.low * 256)[(s64)(a.first_row + row) * a.ld + column] = x;
        if (BRAIN) peak = fmaxf(peak, fabsf(bf16_to_f32((u16)x)));
    }
    if (!BRAIN) return;
    peak = warp_max(peak);
    if (lane_id() == 0) atomicMax(reinterpret_cast<int*>(a.matrix), __float_as_int(peak));
}
