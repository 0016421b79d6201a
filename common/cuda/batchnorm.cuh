// batchnorm.cuh: BatchNorm with the LeakyReLU behind it, as in the PatchGAN discriminator.
//
//   xhat = (x - mean) / sqrt(var + eps)    h = weight xhat + bias    out = h > 0 ? h : LEAKY_SLOPE h
//
// Images follow one another in memory, so a chunk of images of HW positions is one "image" of chunk HW positions with a
// group for each channel: passes, costs and digits are those of common/cuda/groupnorm.cuh. With train = 0 mean and
// variance are the running averages; the statistics' pass and, in the gradient, the two means are then left out.
//
// At 64 images the three norms of PatchGAN see (64 x 64, 128), (32 x 32, 256) and (31 x 31, 512): 67, 34 and 63 MB a
// pass in bf16. At 3 TB/s the three forwards take 0.16 ms and the backwards 0.27 ms.
//
// Look next at common/cuda/resample.cuh.
#pragma once
// defines: floatX, floatS, launch, blocks_for
#include "common/cuda/launch.cuh"
// defines: batchnorm_leaky_forward, batchnorm_leaky_backward, batchnorm_update_running
#include "common/ops.h"
// defines: norm_sizes, norm_statistics, norm_apply, norm_backward, packable, add_parts
#include "common/cuda/groupnorm.cuh"

constexpr int RUNNING_THREADS = 128; // a thread takes one channel

// mean, rstd of every set from the running averages.
__global__ static void batchnorm_running_kernel(floatS* mean, floatS* rstd,                             // (sets, C)
                                                const floatS* running_mean, const floatS* running_var, // (C)
                                                int sets, int C, float eps) {
    int c = blockIdx.x * RUNNING_THREADS + threadIdx.x;
    for (int k = 0; k < sets && c < C; k++) {
        mean[(size_t)k * C + c] = running_mean[c];
        rstd[(size_t)k * C + c] = 1 / sqrtf(running_var[c] + eps);
    }
}

void batchnorm_leaky_forward(floatX* out,                 // (B, HW, C)
                             floatS* mean, floatS* rstd,  // (B / chunk, C)
                             const floatX* x,             // (B, HW, C)
                             const floatX* weight,        // (C)
                             const floatX* bias,          // (C)
                             const floatS* running_mean, const floatS* running_var, // (C), read when train is 0
                             int B, int HW, int C, int chunk, double eps, int train, stream_t s) {
    norm_sizes_t z = norm_sizes(B / chunk, (size_t)chunk * HW, C, C, packable(C, out, x, weight, bias), s);
    if (train) {
        norm_statistics(mean, rstd, x, z, eps, s);
    } else {
        launch<batchnorm_running_kernel>(blocks_for(C, RUNNING_THREADS), RUNNING_THREADS, 0, s, mean, rstd,
                                         running_mean, running_var, z.sets, C, (float)eps);
    }
    norm_apply(out, x, weight, bias, mean, rstd, z, ACT_LEAKY, s);
}

void batchnorm_leaky_backward(floatX* dx,                             // (B, HW, C)
                              floatS* dweight, floatS* dbias,         // (C) or both NULL
                              const floatX* dout,                     // (B, HW, C)
                              const floatX* x,                        // (B, HW, C)
                              const floatX* weight,                   // (C)
                              const floatX* bias,                     // (C)
                              const floatS* mean, const floatS* rstd, // (B / chunk, C)
                              int B, int HW, int C, int chunk, int train, stream_t s) {
    norm_sizes_t z = norm_sizes(B / chunk, (size_t)chunk * HW, C, C, packable(C, dx, dout, x, weight, bias), s);
    const float* totals = norm_backward(dx, dout, NULL, x, weight, bias, mean, rstd, z, ACT_LEAKY, !train, s);
    add_parts(dbias, dweight, NULL, totals, z.sets, 2, C, s);
}

__global__ static void batchnorm_update_kernel(floatS* running_mean, floatS* running_var, // (C) in place
                                               const floatS* mean, const floatS* rstd,    // (C)
                                               int C, float eps, float unbiased, float keep, float momentum) {
    int c = blockIdx.x * RUNNING_THREADS + threadIdx.x;
    if (c >= C) return;
    float var = fmaxf(1 / (rstd[c] * rstd[c]) - eps, 0);
    running_mean[c] = keep * running_mean[c] + momentum * mean[c];
    running_var[c] = keep * running_var[c] + momentum * unbiased * var;
}

void batchnorm_update_running(floatS* running_mean, floatS* running_var, // (C) in place
                              const floatS* mean, const floatS* rstd,    // (C) of the first chunk
                              size_t n, int C, double eps, double momentum, stream_t s) {
    double unbiased = n > 1 ? (double)n / (double)(n - 1) : 1;
    launch<batchnorm_update_kernel>(blocks_for(C, RUNNING_THREADS), RUNNING_THREADS, 0, s, running_mean, running_var,
                                    mean, rstd, C, (float)eps, (float)unbiased, (float)(1 - momentum), (float)momentum);
}
