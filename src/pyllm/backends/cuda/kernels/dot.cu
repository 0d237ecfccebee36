// out[t, g] = sum of x[t, c] * z[t, c] over the columns c of group g: a warp for each group.
//
// GROUP: columns of a group; WARPS: groups of a block.
#include "common.cuh"

struct Args {
    const int* count;  // rows that there are
    const float* x;
    const float* z;
    float* out;
    int x_ld;
    int z_ld;
    int out_ld;
    int n_groups;
};

KERNEL(dot, Args, 32 * WARPS) {
    int row = blockIdx.x, group = blockIdx.y * WARPS + warp_id();
    if (row >= *a.count || group >= a.n_groups) return;
    const float *x = a.x + (s64)row * a.x_ld + group * GROUP, *z = a.z + (s64)row * a.z_ld + group * GROUP;
    float sum = 0.0f;
    for (int c = lane_id(); c < GROUP; c += 32) sum = fmaf(x[c], z[c], sum);
    sum = warp_sum(sum);
    if (lane_id() == 0) a.out[(s64)row * a.out_ld + group] = sum;
}
