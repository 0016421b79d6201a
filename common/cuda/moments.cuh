// moments.cuh: mean and deviation of each channel over the positions of one image (derived in dev/cpu/moments.h).
//
//   forward    a block owns 32 channels of an image, a lane one of them: its warps take every eighth position, and warp
//              0 adds their sums in order; once for the mean, once for the squared deviations from it, so that no
//              digits cancel
//   backward   a thread owns a value
//
// The maps are latents': 64 of (16 x 16, 32) are 1 MB in bf16, a few microseconds all together.
//
// Look next at common/cuda/groupnorm.cuh.
#pragma once
// defines: floatX, floatS, launch, shared_array, blocks_for
#include "common/cuda/launch.cuh"
// defines: channel_moments_forward, channel_moments_backward
#include "common/ops.h"

constexpr int MOMENTS_WARPS = 8, MOMENTS_THREADS = MOMENTS_WARPS * WARP;

// The sum over a block's positions for each of its 32 channels; lane l of every warp receives that of channel l. All
// threads call.
__device__ static inline float moments_sum(float sum) {
    shared<float> sums = shared_array<float>(0, MOMENTS_THREADS);
    sums[threadIdx.x] = sum;
    __syncthreads();
    float total = 0;
    for (int w = 0; w < MOMENTS_WARPS; w++) total += sums[w * WARP + threadIdx.x % WARP];
    __syncthreads(); // a next call will write
    return total;
}

__global__ static void channel_moments_kernel(floatS* mean, floatS* deviation, // (B, C)
                                              const floatX* x,                 // (B, HW, C)
                                              int HW, int C, float eps) {
    int warp = threadIdx.x / WARP, c = blockIdx.y * WARP + threadIdx.x % WARP;
    const floatX* image = x + (size_t)blockIdx.x * HW * C;
    float sum = 0, squares = 0;
    for (int i = warp; i < HW && c < C; i += MOMENTS_WARPS) sum += (float)image[(size_t)i * C + c];
    float m = moments_sum(sum) / (float)HW;
    for (int i = warp; i < HW && c < C; i += MOMENTS_WARPS) {
        float d = (float)image[(size_t)i * C + c] - m;
        squares += d * d;
    }
    squares = moments_sum(squares);
    if (warp > 0 || c >= C) return;
    mean[(size_t)blockIdx.x * C + c] = m;
    deviation[(size_t)blockIdx.x * C + c] = sqrtf(squares / (float)(HW - 1) + eps);
}

void channel_moments_forward(floatS* mean, floatS* deviation, // (B, C)
                             const floatX* x,                 // (B, HW, C)
                             int B, int HW, int C, double eps, stream_t s) {
    launch<channel_moments_kernel>(dim3(B, blocks_for(C, WARP)), MOMENTS_THREADS, MOMENTS_THREADS * sizeof(float), s,
                                   mean, deviation, x, HW, C, (float)eps);
}

__global__ static void channel_moments_backward_kernel(floatX* dx,                                    // (B, HW, C)
                                                       const floatX* dmean, const floatX* ddeviation, // (B, C)
                                                       const floatX* add,                             // or NULL
                                                       const floatX* x,                               // (B, HW, C)
                                                       const floatS* mean, const floatS* deviation,   // (B, C)
                                                       size_t count, int HW, int C) {
    size_t at = (size_t)blockIdx.x * MOMENTS_THREADS + threadIdx.x, k = at / ((size_t)HW * C) * C + at % C;
    if (at >= count) return;
    float slope = (float)ddeviation[k] / ((float)(HW - 1) * deviation[k]);
    float d = (float)dmean[k] / (float)HW + slope * ((float)x[at] - mean[k]);
    dx[at] = (floatX)(add ? (float)add[at] + d : d);
}

void channel_moments_backward(floatX* dx,                                      // (B, HW, C)
                              const floatX* dmean, const floatX* ddeviation,   // (B, C)
                              const floatX* add,                               // (B, HW, C) or NULL
                              const floatX* x,                                 // (B, HW, C)
                              const floatS* mean, const floatS* deviation,     // (B, C)
                              int B, int HW, int C, stream_t s) {
    size_t count = (size_t)B * HW * C;
    launch<channel_moments_backward_kernel>(blocks_for(count, MOMENTS_THREADS), MOMENTS_THREADS, 0, s, dx, dmean,
                                            ddeviation, add, x, mean, deviation, count, HW, C);
}
