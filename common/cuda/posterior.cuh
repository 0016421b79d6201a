// posterior.cuh: the sampled latent of a variational autoencoder and its KL divergence, as in dev/cpu/posterior.h.
//
//   sigma = exp(lambda / 2)    z = mu + sigma noise    kl = (mu^2 + sigma^2 - 1 - lambda) / 2
//
// sigma^2 - 1 is taken as expm1(lambda): near lambda = 0, where the KL term draws it, the difference would lose its
// digits. A thread owns a latent value. 64 images of 256 tokens of 32 channels are 0.5 M values, 4 MB: the cost is that
// of the launches.
// Look next at common/cuda/vf.cuh, the other part of the VA-VAE baseline.
#pragma once
// defines: finish_sums; launch, shared_array, block_sum
#include "common/cuda/reduce.cuh"
// defines: the contract of each function below
#include "common/ops.h"

#define LOGVAR_MIN (-30.0f)
#define LOGVAR_MAX 20.0f
enum { POSTERIOR_THREADS = 256, POSTERIOR_ROUNDS = 4 };

__device__ static inline float posterior_clamp(float logvar) {
    return logvar < LOGVAR_MIN ? LOGVAR_MIN : logvar > LOGVAR_MAX ? LOGVAR_MAX : logvar;
}

// Block i sums piece i % pieces of image i / pieces.
__global__ static void posterior_kernel(floatX* z,             // (B, T, C)
                                        float* partial,        // (B, pieces) of the KL divergence
                                        const floatX* moments, // (B, T, 2C)
                                        const floatS* noise,   // (B, T, C) or NULL
                                        size_t n, int C, unsigned pieces) { // n = T C
    shared<float> work = shared_array<float>(0, WARP);
    size_t image = blockIdx.x / pieces;
    size_t first = (size_t)(blockIdx.x % pieces) * POSTERIOR_THREADS * POSTERIOR_ROUNDS;
    float kl = 0;
    for (int round = 0; round < POSTERIOR_ROUNDS; round++) {
        size_t i = first + (size_t)round * POSTERIOR_THREADS + threadIdx.x, at = image * n + i;
        if (i >= n) continue;
        const floatX* mean = moments + at + at / C * C; // token at / C, channel at % C of 2C
        float mu = (float)mean[0], lambda = posterior_clamp((float)mean[C]);
        z[at] = noise ? (floatX)(mu + expf(lambda / 2) * noise[at]) : mean[0];
        kl += 0.5f * (mu * mu + (expm1f(lambda) - lambda));
    }
    kl = block_sum(kl, work);
    if (threadIdx.x == 0) partial[blockIdx.x] = kl;
}

void posterior_forward(floatX* z,             // (B, T, C)
                       floatS* kl,            // (B)
                       const floatX* moments, // (B, T, 2C)
                       const floatS* noise,   // (B, T, C), or NULL for z = mu
                       int B, int T, int C, stream_t s) {
    size_t n = (size_t)T * C;
    unsigned pieces = blocks_for(n, POSTERIOR_THREADS * POSTERIOR_ROUNDS);
    float* partial = (float*)device_scratch(s, (size_t)B * pieces * sizeof(float));
    launch<posterior_kernel>(B * pieces, POSTERIOR_THREADS, WARP * sizeof(float), s, z, partial, moments, noise, n, C,
                             pieces);
    finish_sums(kl, partial, B, pieces, 1, WRITE_SUM, s);
}

// dmu = dz + kl_scale mu;  dlambda = (dz noise sigma + kl_scale (sigma^2 - 1)) / 2, zero outside the clamp's range.
__global__ static void posterior_backward_kernel(floatX* dmoments,      // (N, 2C)
                                                 const floatX* dz,      // (N, C)
                                                 const floatX* moments, // (N, 2C)
                                                 const floatS* noise,   // (N, C) or NULL
                                                 float kl_scale, size_t n, int C) { // n = N C
    size_t i = (size_t)blockIdx.x * POSTERIOR_THREADS + threadIdx.x;
    if (i >= n) return;
    size_t mean = i + i / C * C, logvar = mean + C; // token i / C, channel i % C of 2C
    float mu = (float)moments[mean], lambda = (float)moments[logvar], d = (float)dz[i];
    float through_z = noise ? d * noise[i] * expf(posterior_clamp(lambda) / 2) : 0;
    float dlambda = 0.5f * (through_z + kl_scale * expm1f(posterior_clamp(lambda)));
    bool inside = lambda >= LOGVAR_MIN && lambda <= LOGVAR_MAX;
    dmoments[mean] = (floatX)(d + kl_scale * mu);
    dmoments[logvar] = (floatX)(inside ? dlambda : 0.0f);
}

void posterior_backward(floatX* dmoments,      // (B, T, 2C)
                        const floatX* dz,      // (B, T, C)
                        const floatX* moments, // (B, T, 2C)
                        const floatS* noise,   // (B, T, C), or NULL for z = mu
                        double kl_scale, int B, int T, int C, stream_t s) {
    size_t n = (size_t)B * T * C;
    launch<posterior_backward_kernel>(blocks_for(n, POSTERIOR_THREADS), POSTERIOR_THREADS, 0, s, dmoments, dz, moments,
                                      noise, (float)kl_scale, n, C);
}
