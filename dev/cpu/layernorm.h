// layernorm.h: LayerNorm, alone and behind a residual branch.
//
//   mean = sum_c x_c / C,   var = sum_c (x_c - mean)^2 / C,   rstd = 1 / sqrt(var + eps)
//   xhat_c = (x_c - mean) rstd,   out_c = xhat_c weight_c + bias_c                           Ba, Kiros, Hinton 2016
//
// Backward. out depends on x through xhat; let h_c = dL/dxhat_c = dout_c weight_c. Each xhat_j depends on all x_c:
//   d xhat_j / d x_c = rstd [j = c]               through x_j itself
//                    - rstd / C                   through the mean:  d mean / d x_c = 1 / C
//                    - rstd xhat_j xhat_c / C     through rstd:      d var / d x_c = 2 (x_c - mean) / C (the mean's
//                                                 share is sum (x - mean) = 0), d rstd / d var = -rstd^3 / 2
// Summed with h_j over j:
//   dx_c = rstd (h_c - mean(h) - xhat_c mean(h xhat))
//   dweight_c = sum over rows of dout_c xhat_c,   dbias_c = sum over rows of dout_c
//
// A residual block is sum = x + gamma y, and the next norm reads sum at once: one pass does both. The gradient of the
// residual stream, dsum, first collects the norm's share. It then is also the gradient of x (sum = x + ..., so nothing
// is left to compute), while the branch gets dy = gamma dsum, and LayerScale dgamma_c = sum over rows of dsum_c y_c.
//
// Statistics take two passes over a row, which is in cache: the one-pass form E[x^2] - E[x]^2 cancels.
// Look next at dev/cpu/attention.h.
#pragma once
// defines: floatX, floatS, stream_t, xsqrt
#include "common/device.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"
// defines: ROW_BLOCK, row_blocks, row_block_end, add_row_blocks
#include "dev/cpu/rows.h"

// One row of the forward; mean NULL: RMSNorm.
static inline void layernorm_row(floatX* out, floatS* mean, floatS* rstd, const floatS* x, const floatX* weight,
                                 const floatX* bias, int C, double eps) {
    floatS sum = 0, squares = 0;
    #pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += x[c];
    floatS m = mean ? sum / C : 0;
    #pragma omp simd reduction(+ : squares)
    for (int c = 0; c < C; c++) squares += (x[c] - m) * (x[c] - m);
    floatS r = 1 / xsqrt(squares / C + (floatS)eps);
    #pragma omp simd
    for (int c = 0; c < C; c++) out[c] = (x[c] - m) * r * weight[c] + (bias ? bias[c] : 0);
    if (mean) *mean = m;
    *rstd = r;
}

// One row of the backward: dx += its gradient. dweight and dbias collect this row's share, unless NULL.
static inline void layernorm_row_backward(floatS* dx, floatS* dweight, floatS* dbias, const floatX* dout,
                                          const floatS* x, const floatX* weight, floatS mean, floatS rstd, int C) {
    floatS sum = 0, sum_xhat = 0;
    #pragma omp simd reduction(+ : sum, sum_xhat)
    for (int c = 0; c < C; c++) {
        floatS h = dout[c] * weight[c];
        sum += h;
        sum_xhat += h * (x[c] - mean) * rstd;
    }
    floatS mean_h = sum / C, mean_h_xhat = sum_xhat / C;
    #pragma omp simd
    for (int c = 0; c < C; c++) {
        floatS xhat = (x[c] - mean) * rstd;
        dx[c] += rstd * (dout[c] * weight[c] - mean_h - xhat * mean_h_xhat);
    }
    if (!dweight) return;
    #pragma omp simd
    for (int c = 0; c < C; c++) {
        dweight[c] += dout[c] * (x[c] - mean) * rstd;
        dbias[c] += dout[c];
    }
}

// One row of the residual branch's backward, when dsum is complete: dy = gamma dsum; dgamma, unless NULL, += dsum y.
static inline void residual_row_backward(floatX* dy, floatS* dgamma, const floatS* dsum, const floatX* y,
                                         const floatX* gamma, int C) {
    if (!gamma) {
        for (int c = 0; c < C; c++) dy[c] = dsum[c];
        return;
    }
    #pragma omp simd
    for (int c = 0; c < C; c++) dy[c] = gamma[c] * dsum[c];
    if (!dgamma) return;
    #pragma omp simd
    for (int c = 0; c < C; c++) dgamma[c] += dsum[c] * y[c];
}

void layernorm_forward(floatX* out,                   // (N, C)
                       floatS* mean, floatS* rstd,    // (N)
                       const floatS* x,               // (N, C)
                       const floatX* weight,          // (C)
                       const floatX* bias,            // (C)
                       size_t N, int C, double eps, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)N * C * 2))
    for (size_t i = 0; i < N; i++) {
        layernorm_row(out + i * C, mean ? mean + i : NULL, rstd + i, x + i * C, weight, bias, C, eps);
    }
}

void residual_layernorm_forward(floatS* sum,                // (N, C)
                                floatX* out,                // (N, C)
                                floatS* mean, floatS* rstd, // (N)
                                const floatS* x,            // (N, C)
                                const floatX* y,            // (N, C)
                                const floatX* gamma,        // (C) or NULL
                                const floatX* weight,       // (C)
                                const floatX* bias,         // (C)
                                size_t N, int C, double eps, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)N * C * 3))
    for (size_t i = 0; i < N; i++) {
        floatS* row = sum + i * C;
        if (gamma) {
            for (int c = 0; c < C; c++) row[c] = x[i * C + c] + gamma[c] * y[i * C + c];
        } else {
            for (int c = 0; c < C; c++) row[c] = x[i * C + c] + y[i * C + c];
        }
        layernorm_row(out + i * C, mean ? mean + i : NULL, rstd + i, row, weight, bias, C, eps);
    }
}

// Both backwards: the norm's gradient reaches dx; then, if there is a residual branch, dy is not NULL.
// A block of rows collects (dweight, dbias, dgamma) in a row of its own, and the blocks are added in order.
static inline void layernorm_blocks_backward(floatS* dx, floatX* dy, floatS* dgamma, floatS* dweight, floatS* dbias,
                                             const floatX* dout, const floatS* x, const floatX* y,
                                             const floatX* gamma, const floatX* weight,
                                             const floatS* mean, const floatS* rstd, size_t N, int C) {
    size_t blocks = row_blocks(N), stride = 3 * (size_t)C;
    floatS* partial = (floatS*)cpu_scratch(0, blocks * stride * sizeof(floatS));
    #pragma omp parallel for schedule(static) if (worth_sharing((double)N * C * 4))
    for (size_t k = 0; k < blocks; k++) {
        floatS* p = partial + k * stride;
        memset(p, 0, stride * sizeof(floatS));
        for (size_t i = k * ROW_BLOCK; i < row_block_end(k, N); i++) {
            layernorm_row_backward(dx + i * C, dweight ? p : NULL, p + C, dout + i * C, x + i * C, weight,
                                   mean[i], rstd[i], C);
            if (!dy) continue;
            residual_row_backward(dy + i * C, dgamma ? p + 2 * C : NULL, dx + i * C, dgamma ? y + i * C : NULL,
                                  gamma, C);
        }
    }
    if (dweight) add_row_blocks(dweight, partial, blocks, stride, C);
    if (dweight) add_row_blocks(dbias, partial + C, blocks, stride, C);
    if (dgamma) add_row_blocks(dgamma, partial + 2 * C, blocks, stride, C);
}

void layernorm_backward(floatS* dx,                               // (N, C) +=
                        floatS* dweight, floatS* dbias,           // (C) or both NULL
                        const floatX* dout,                       // (N, C)
                        const floatS* x,                          // (N, C)
                        const floatX* weight,                     // (C)
                        const floatS* mean, const floatS* rstd,   // (N)
                        size_t N, int C, stream_t s) {
    (void)s;
    layernorm_blocks_backward(dx, NULL, NULL, dweight, dbias, dout, x, NULL, NULL, weight, mean, rstd, N, C);
}

void residual_layernorm_backward(floatS* dsum,                             // (N, C) +=
                                 floatX* dy,                               // (N, C)
                                 floatS* dgamma,                           // (C) or NULL
                                 floatS* dweight, floatS* dbias,           // (C) or both NULL
                                 const floatX* dout,                       // (N, C)
                                 const floatS* sum,                        // (N, C)
                                 const floatX* y,                          // (N, C), needed for dgamma
                                 const floatX* gamma,                      // (C) or NULL
                                 const floatX* weight,                     // (C)
                                 const floatS* mean, const floatS* rstd,   // (N)
                                 size_t N, int C, stream_t s) {
    (void)s;
    layernorm_blocks_backward(dsum, dy, dgamma, dweight, dbias, dout, sum, y, gamma, weight, mean, rstd, N, C);
}
