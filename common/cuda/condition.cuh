// condition.cuh: time and label, and the two ends of the residual stream. What they are for: dev/cpu/condition.h.
//
// Time and label are one vector an image, (128, 1152): what counts is that a launch takes some 3 us, not how fast the
// kernel is. So a thread owns one value, and no sum is spread over blocks: the gradient of a row of the label table
// belongs to the first image with that label, which adds those of all images with it, in order.
//
// The residual stream is large: at 128 images of 256 tokens of 1152 channels, x (bf16) and out (fp32) are 226 MB, and
// as much on the way back: 0.08 ms each at 3 TB/s. There a thread owns a pack of floatX and the fp32 values of it.
//
// Look next at common/cuda/flow.cuh.
#pragma once
// defines: floatX, floatS, launch, pack, blocks_for
#include "common/cuda/launch.cuh"
// defines: the operations' contracts
#include "common/ops.h"
// defines: load_upto, store_upto, pack_begin, pack_blocks, PACK_THREADS
#include "common/cuda/reduce.cuh"
// defines: silu, silu_slope
#include "common/cuda/swiglu.cuh"

enum { CONDITION_THREADS = 128 };

// ---------------------------------------------------------------------------------------------------------------------
// Time

// A thread owns a frequency of an image. Cosine and sine are the library's, with their full reduction of the angle: a
// sampler with its own steps may ask for times beyond 1.
__global__ static void timestep_features_kernel(floatX* out, const floatS* t, float scale, int half) {
    int k = blockIdx.y * CONDITION_THREADS + threadIdx.x;
    if (k >= half) return;
    float angle = t[blockIdx.x] * scale * expf(-9.210340372f * (float)k / (float)half); // log 10000
    floatX* row = out + (size_t)blockIdx.x * 2 * half;
    row[k] = (floatX)cosf(angle);
    row[half + k] = (floatX)sinf(angle);
}

void timestep_features(floatX* out,     // (B, 2 half)
                       const floatS* t, // (B)
                       double scale, int B, int half, stream_t s) {
    dim3 grid(B, blocks_for(half, CONDITION_THREADS));
    launch<timestep_features_kernel>(grid, CONDITION_THREADS, 0, s, out, t, (float)scale, half);
}

// ---------------------------------------------------------------------------------------------------------------------
// Time and label. Block x is an image, y a piece of its channels.

__global__ static void condition_kernel(floatX* out,         // (B, C)
                                        floatS* c,           // (B, C)
                                        const floatX* time,  // (B, C)
                                        const floatX* table, // (rows, C)
                                        const int* labels,   // (B)
                                        int C) {
    int i = blockIdx.y * CONDITION_THREADS + threadIdx.x;
    if (i >= C) return;
    size_t at = (size_t)blockIdx.x * C + i;
    float sum = (float)time[at] + (float)table[(size_t)labels[blockIdx.x] * C + i];
    c[at] = sum;
    out[at] = (floatX)silu(sum);
}

// The row of the table gets dtime before it is rounded to floatX.
__global__ static void condition_backward_kernel(floatX* dtime,      // (B, C)
                                                 floatS* dtable,     // (rows, C) += or NULL
                                                 const floatX* dout, // (B, C)
                                                 const floatS* c,    // (B, C)
                                                 const int* labels,  // (B)
                                                 int B, int C) {
    int i = blockIdx.y * CONDITION_THREADS + threadIdx.x, image = blockIdx.x, label = labels[image];
    if (i >= C) return;
    size_t at = (size_t)image * C + i;
    float sum = (float)dout[at] * silu_slope(c[at]);
    dtime[at] = (floatX)sum;
    if (!dtable) return;
    for (int b = 0; b < image; b++) {
        if (labels[b] == label) return; // that image's thread does it
    }
    for (int b = image + 1; b < B; b++) {
        if (labels[b] != label) continue;
        at = (size_t)b * C + i;
        sum += (float)dout[at] * silu_slope(c[at]);
    }
    dtable[(size_t)label * C + i] += sum;
}

void condition_forward(floatX* out,         // (B, C)
                       floatS* c,           // (B, C)
                       const floatX* time,  // (B, C)
                       const floatX* table, // (rows, C)
                       const int* labels,   // (B)
                       int rows, int B, int C, stream_t s) {
    (void)rows;
    dim3 grid(B, blocks_for(C, CONDITION_THREADS));
    launch<condition_kernel>(grid, CONDITION_THREADS, 0, s, out, c, time, table, labels, C);
}

void condition_backward(floatX* dtime,      // (B, C)
                        floatS* dtable,     // (rows, C) += or NULL
                        const floatX* dout, // (B, C)
                        const floatS* c,    // (B, C)
                        const int* labels,  // (B)
                        int rows, int B, int C, stream_t s) {
    (void)rows;
    dim3 grid(B, blocks_for(C, CONDITION_THREADS));
    launch<condition_backward_kernel>(grid, CONDITION_THREADS, 0, s, dtime, dtable, dout, c, labels, B, C);
}

// n = B C, a thread a value.
__global__ static void condition_sum_kernel(floatX* out, floatS* c, const floatX* a, const floatX* b,
                                            const floatX* g, size_t n) { // (n), b and g or NULL
    size_t i = (size_t)blockIdx.x * CONDITION_THREADS + threadIdx.x;
    if (i >= n) return;
    float sum = (float)a[i] + (b ? (float)b[i] : 0) + (g ? (float)g[i] : 0);
    c[i] = sum;
    out[i] = (floatX)silu(sum);
}

__global__ static void condition_sum_backward_kernel(floatX* dsum, const floatX* dout, const floatS* c, size_t n) {
    size_t i = (size_t)blockIdx.x * CONDITION_THREADS + threadIdx.x;
    if (i < n) dsum[i] = (floatX)((float)dout[i] * silu_slope(c[i]));
}

void condition_sum_forward(floatX* out,     // (B, C)
                           floatS* c,       // (B, C)
                           const floatX* a, // (B, C)
                           const floatX* b, // (B, C) or NULL for 0
                           const floatX* g, // (B, C) or NULL for 0
                           int B, int C, stream_t s) {
    size_t n = (size_t)B * C;
    launch<condition_sum_kernel>(blocks_for(n, CONDITION_THREADS), CONDITION_THREADS, 0, s, out, c, a, b, g, n);
}

void condition_sum_backward(floatX* dsum,       // (B, C)
                            const floatX* dout, // (B, C)
                            const floatS* c,    // (B, C)
                            int B, int C, stream_t s) {
    size_t n = (size_t)B * C;
    launch<condition_sum_backward_kernel>(blocks_for(n, CONDITION_THREADS), CONDITION_THREADS, 0, s, dsum, dout, c, n);
}

// ---------------------------------------------------------------------------------------------------------------------
// The ends of the residual stream

// n = T C. Block x is an image, y a piece of it: blocks that run together then read the same piece of pos.
__global__ static void position_add_kernel(floatS* out,       // (B, n)
                                           const floatX* x,   // (B, n)
                                           const floatS* pos, // (n)
                                           size_t n) {
    constexpr int size = pack<floatX>::size, part = pack<float>::size;
    size_t i = ((size_t)blockIdx.y * PACK_THREADS + threadIdx.x) * size, image = blockIdx.x * n;
    if (i >= n) return;
    pack<floatX> value = load_upto(x + image + i, n - i);
    for (int k = 0; k < size && i + k < n; k += part) {
        pack<float> sum = load_upto(pos + i + k, n - i - k);
        for (int j = 0; j < part; j++) sum[j] += (float)value[k + j];
        store_upto(out + image + i + k, sum, n - i - k);
    }
}

void position_add_forward(floatS* out,       // (B, T, C)
                          const floatX* x,   // (B, T, C)
                          const floatS* pos, // (T, C)
                          int B, int T, int C, stream_t s) {
    size_t n = (size_t)T * C;
    launch<position_add_kernel>(dim3(B, pack_blocks<floatX>(n)), PACK_THREADS, 0, s, out, x, pos, n);
}

__global__ static void to_floatX_kernel(floatX* out, const floatS* x, size_t n) { // (n)
    constexpr int size = pack<floatX>::size, part = pack<float>::size;
    size_t i = pack_begin<floatX>();
    if (i >= n) return;
    pack<floatX> value = {};
    for (int k = 0; k < size && i + k < n; k += part) {
        pack<float> from = load_upto(x + i + k, n - i - k);
        for (int j = 0; j < part; j++) value[k + j] = (floatX)from[j];
    }
    store_upto(out + i, value, n - i);
}

void to_floatX(floatX* out, const floatS* x, size_t n, stream_t s) { // (n)
    if (n > 0) launch<to_floatX_kernel>(pack_blocks<floatX>(n), PACK_THREADS, 0, s, out, x, n);
}
