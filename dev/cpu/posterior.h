// posterior.h: the latent of a variational autoencoder: a diagonal Gaussian, a sample of it, its distance from N(0, 1).
//
// The encoder emits a mean mu and a log variance lambda for each latent value, side by side along the channels. A
// sample is written as a function of noise that has no parameters (Kingma & Welling 2014), so that gradients pass
// through it:
//
//   sigma = exp(lambda / 2)    z = mu + sigma noise    kl = (mu^2 + sigma^2 - 1 - lambda) / 2
//
// lambda is clamped to [-30, 20] first, as in latent-diffusion's distributions.py. Only the baselines (VAE, VA-VAE) use
// this: AlignTok's latent is the mean itself and has no KL term.
#pragma once
// defines: the contract of each function below
#include "common/ops.h"
// defines: sum_in_order
#include "dev/cpu/reduce.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"

#define LOGVAR_MIN (-30.0)
#define LOGVAR_MAX 20.0

static inline double posterior_clamp(double logvar) {
    return logvar < LOGVAR_MIN ? LOGVAR_MIN : logvar > LOGVAR_MAX ? LOGVAR_MAX : logvar;
}

void posterior_forward(floatX* z,             // (B, T, C)
                       floatS* kl,            // (B)
                       const floatX* moments, // (B, T, 2C)
                       const floatS* noise,   // (B, T, C), or NULL for z = mu
                       int B, int T, int C, stream_t s) {
    (void)s;
    size_t N = (size_t)B * (size_t)T;
    double* kl_token = (double*)cpu_scratch(0, N * sizeof(double));
    #pragma omp parallel for schedule(static) if (worth_sharing((double)N * C * 20))
    for (size_t i = 0; i < N; i++) {
        const floatX* mean = moments + i * 2 * (size_t)C;
        double sum = 0;
        for (int c = 0; c < C; c++) {
            double mu = mean[c], lambda = posterior_clamp(mean[C + c]), sigma = exp(lambda / 2);
            size_t at = i * (size_t)C + (size_t)c;
            z[at] = (floatX)(noise ? mu + sigma * noise[at] : mu);
            sum += 0.5 * (mu * mu + sigma * sigma - 1 - lambda);
        }
        kl_token[i] = sum;
    }
    for (int b = 0; b < B; b++) kl[b] = (floatS)sum_in_order(kl_token + (size_t)b * (size_t)T, (size_t)T);
}

// dz/dmu = 1 and dkl/dmu = mu;  dz/dlambda = noise sigma / 2 and dkl/dlambda = (sigma^2 - 1) / 2.
// Outside the clamp's range lambda has no influence, and its gradient is zero.
void posterior_backward(floatX* dmoments,      // (B, T, 2C)
                        const floatX* dz,      // (B, T, C)
                        const floatX* moments, // (B, T, 2C)
                        const floatS* noise,   // (B, T, C), or NULL for z = mu
                        double kl_scale, int B, int T, int C, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C * 20))
    for (size_t i = 0; i < (size_t)B * (size_t)T; i++) {
        const floatX* mean = moments + i * 2 * (size_t)C;
        floatX* dmean = dmoments + i * 2 * (size_t)C;
        for (int c = 0; c < C; c++) {
            size_t at = i * (size_t)C + (size_t)c;
            double lambda = mean[C + c], sigma = exp(posterior_clamp(lambda) / 2);
            int inside = lambda >= LOGVAR_MIN && lambda <= LOGVAR_MAX;
            double through_z = noise ? 0.5 * dz[at] * noise[at] * sigma : 0;
            dmean[c] = (floatX)(dz[at] + kl_scale * mean[c]);
            dmean[C + c] = inside ? (floatX)(through_z + 0.5 * kl_scale * (sigma * sigma - 1)) : 0;
        }
    }
}
