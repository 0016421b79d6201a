// parts.cuh: sums whose terms come from many blocks, always in the same order.
//
// Each block of a kernel leaves its sums, one `part`, in device_scratch, and a second kernel adds the parts: so no
// block waits for another, no atomic addition makes the order a matter of chance, and the result is the same bits every
// time.
//
//   add_parts     gradients of weights and biases: neighbouring threads own neighbouring values
//   finish_sums   few values with thousands of parts each (losses, norms): neighbouring threads own neighbouring parts
//
// Cost: one read of the parts, which are a few percent of what the first kernel read.
//
// Look next at common/cuda/rows.cuh and common/cuda/reduce.cuh, whose kernels leave the parts.
#pragma once
// defines: launch, shared_array, blocks_for
#include "common/cuda/launch.cuh"

// Value v of part i lies at parts[i part_stride + v value_stride]. The values go to up to three arrays of C.
typedef struct {
    float *out0, *out1, *out2; // NULL: nobody wants these values
    size_t values, C;
    const float* parts;
    size_t count, part_stride, value_stride;
    float scale;
    int accumulate;            // 1: +=; 0: =
} part_sums_t;

// Thread (x, y) adds parts y, y + rows, ... of one value; then halves of the rows are added until one is left. Few
// values with many parts need the rows, or a sum would be one long chain of loads. Their number is a power of two.
__global__ static void add_parts_kernel(part_sums_t p) {
    shared<float> work = shared_array<float>(0, blockDim.x * blockDim.y);
    int y = threadIdx.y, here = y * blockDim.x + threadIdx.x;
    size_t value = (size_t)blockIdx.x * blockDim.x + threadIdx.x, array = value / p.C;
    float *out = array == 0 ? p.out0 : array == 1 ? p.out1 : p.out2, sum = 0;
    bool mine = out && value < p.values;
    const float* from = p.parts + value * p.value_stride;
    for (size_t i = y; mine && i < p.count; i += blockDim.y) sum += from[i * p.part_stride];
    work[here] = sum;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (y >= half) continue;
        sum += work[here + half * blockDim.x];
        work[here] = sum;
    }
    if (y > 0 || !mine) return;
    float* to = out + value % p.C;
    *to = p.accumulate ? *to + p.scale * sum : p.scale * sum;
}

static inline void launch_parts(part_sums_t p, dim3 block, stream_t s) {
    launch<add_parts_kernel>(blocks_for(p.values, block.x), block, block.x * block.y * sizeof(float), s, p);
}

// out_k[c] += the sum of parts[i, k, c] over i, for the K <= 3 arrays, where they are not NULL.
static inline void add_parts(float* out0, float* out1, float* out2, // (C) +=
                             const float* parts,                    // (count, K, C)
                             size_t count, int K, int C, stream_t s) {
    if (!out0 && !out1 && !out2) return;
    unsigned rows = count >= 32 ? 16 : count >= 8 ? 4 : 1;
    size_t values = (size_t)K * C;
    launch_parts({out0, out1, out2, values, (size_t)C, parts, count, values, 1, 1, 1}, dim3(512 / rows, rows), s);
}

// out = scale times the sum of each group's parts, or += it.
enum { WRITE_SUM = 0, ADD_SUM = 1 };
static inline void finish_sums(float* out,         // (groups)
                               const float* parts, // (groups, pieces)
                               int groups, unsigned pieces, double scale, int accumulate, stream_t s) {
    unsigned rows = WARP;
    while (rows < pieces && rows < 1024) rows *= 2;
    size_t n = (size_t)groups;
    launch_parts({out, NULL, NULL, n, n, parts, pieces, 1, pieces, (float)scale, accumulate}, dim3(1, rows), s);
}
