// batchnorm.h: BatchNorm (Ioffe & Szegedy 2015) with the LeakyReLU behind it, as in the PatchGAN discriminator.
//
// Per channel, over the n = chunk HW values that one chunk of images has of it:
//
//   xhat = (x - mean) / sqrt(var + eps)    h = weight xhat + bias    out = h > 0 ? h : LEAKY_SLOPE h
//
// A chunk is the group of images that one GPU held in the reference runs; statistics never mix chunks. With train = 0
// mean and variance are the running averages, which then do not depend on x, and the gradient loses the two terms that
// came from them. The passes over memory and the derivation are those of GroupNorm: see dev/cpu/groupnorm.h, where the
// naive loops of both stand, and where one chunk is one "image" of chunk HW positions with a group for each channel.
#pragma once
// defines: norm_sizes, norm_statistics, norm_apply, norm_backward, norm_add_totals
#include "dev/cpu/groupnorm.h"

void batchnorm_leaky_forward(floatX* out,                 // (B, HW, C)
                             floatS* mean, floatS* rstd,  // (B / chunk, C)
                             const floatX* x,             // (B, HW, C)
                             const floatX* weight,        // (C)
                             const floatX* bias,          // (C)
                             const floatS* running_mean, const floatS* running_var, // (C), read when train is 0
                             int B, int HW, int C, int chunk, double eps, int train, stream_t s) {
    (void)s;
    norm_sizes_t z = norm_sizes(B / chunk, (size_t)chunk * HW, C, C);
    if (train) {
        norm_statistics(mean, rstd, x, z, eps);
    } else {
        for (int i = 0; i < z.sets * C; i++) {
            mean[i] = running_mean[i % C];
            rstd[i] = (floatS)(1 / sqrt((double)running_var[i % C] + eps));
        }
    }
    norm_apply(out, x, weight, bias, mean, rstd, z, ACT_LEAKY);
}

void batchnorm_leaky_backward(floatX* dx,                             // (B, HW, C)
                              floatS* dweight, floatS* dbias,         // (C) or both NULL
                              const floatX* dout,                     // (B, HW, C)
                              const floatX* x,                        // (B, HW, C)
                              const floatX* weight,                   // (C)
                              const floatX* bias,                     // (C)
                              const floatS* mean, const floatS* rstd, // (B / chunk, C)
                              int B, int HW, int C, int chunk, int train, stream_t s) {
    (void)s;
    norm_sizes_t z = norm_sizes(B / chunk, (size_t)chunk * HW, C, C);
    const double* totals = norm_backward(dx, dout, NULL, x, weight, bias, mean, rstd, z, ACT_LEAKY, !train);
    norm_add_totals(dweight, dbias, totals, z);
}

void batchnorm_update_running(floatS* running_mean, floatS* running_var, // (C) in place
                              const floatS* mean, const floatS* rstd,    // (C) of the first chunk
                              size_t n, int C, double eps, double momentum, stream_t s) {
    (void)s;
    double unbiased = n > 1 ? (double)n / (double)(n - 1) : 1;
    for (int c = 0; c < C; c++) {
        double var = 1 / ((double)rstd[c] * rstd[c]) - eps;
        running_mean[c] = (floatS)((1 - momentum) * running_mean[c] + momentum * mean[c]);
        running_var[c] = (floatS)((1 - momentum) * running_var[c] + momentum * unbiased * (var > 0 ? var : 0));
    }
}
