// moments.h: mean and deviation of each channel over the positions of one image: the "style" of a map, from which an
// adaptive GroupNorm takes its scale and shift (common/models/large_decoder.h).
//
//   m = (1/n) sum x    v = sum (x - m)^2 / (n - 1)    d = sqrt(v + eps)    n = HW positions
//
// Backward. dm/dx = 1/n. In v the mean's own change does not count, since sum (x - m) = 0: dv/dx = 2 (x - m) / (n - 1),
// and with dd/dv = 1 / (2 d)
//   dx = dmean / n + ddeviation (x - m) / ((n - 1) d)
//
// The map is small (a latent's); threads share the images. Look next at dev/cpu/groupnorm.h.
#pragma once
// defines: floatX, floatS, stream_t
#include "common/device.h"
// defines: channel_moments_forward, channel_moments_backward
#include "common/ops.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"

void channel_moments_forward(floatS* mean, floatS* deviation, // (B, C)
                             const floatX* x,                 // (B, HW, C)
                             int B, int HW, int C, double eps, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing(2.0 * B * HW * C))
    for (size_t b = 0; b < (size_t)B; b++) {
        const floatX* image = x + b * HW * C;
        double *sum = (double*)cpu_scratch(0, 2 * C * sizeof(double)), *squares = sum + C;
        memset(sum, 0, 2 * C * sizeof(double));
        for (size_t i = 0; i < (size_t)HW; i++) for (int c = 0; c < C; c++) sum[c] += image[i * C + c];
        for (int c = 0; c < C; c++) sum[c] /= HW;
        for (size_t i = 0; i < (size_t)HW; i++) {
            for (int c = 0; c < C; c++) squares[c] += (image[i * C + c] - sum[c]) * (image[i * C + c] - sum[c]);
        }
        for (int c = 0; c < C; c++) {
            mean[b * C + c] = (floatS)sum[c];
            deviation[b * C + c] = (floatS)sqrt(squares[c] / (HW - 1) + eps);
        }
    }
}

void channel_moments_backward(floatX* dx,                                      // (B, HW, C)
                              const floatX* dmean, const floatX* ddeviation,   // (B, C)
                              const floatX* add,                               // (B, HW, C) or NULL
                              const floatX* x,                                 // (B, HW, C)
                              const floatS* mean, const floatS* deviation,     // (B, C)
                              int B, int HW, int C, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * HW * C))
    for (size_t row = 0; row < (size_t)B * HW; row++) {
        for (int c = 0; c < C; c++) {
            size_t at = row * C + c, k = row / HW * C + c;
            floatX slope = ddeviation[k] / ((HW - 1) * deviation[k]);
            dx[at] = (add ? add[at] : 0) + dmean[k] / HW + slope * (x[at] - mean[k]);
        }
    }
}
