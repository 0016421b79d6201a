// modulate.h: a norm with the modulation of a diffusion transformer, alone and behind a gated branch. The norm is
// RMSNorm or LayerNorm; either may be without a weight (DiT's LayerNorm is).
//
//   mean = 0 (RMSNorm) or sum_c x_c / C (LayerNorm),   rstd = 1 / sqrt(sum_c (x_c - mean)^2 / C + eps)
//   xhat_c = (x_c - mean) rstd,   n_c = xhat_c weight_c,   out_c = n_c (1 + scale_c) + shift_c
//                                              Ba et al. 2016; Zhang & Sennrich 2019; Peebles & Xie 2023
// Backward. Modulation is elementwise: dn = dout (1 + scale), and of each image's vectors, used by all its tokens,
//   dscale_c = sum_t dout_c n_c,   dshift_c = sum_t dout_c
// The norm: with h_c = dn_c weight_c, and [j = c] standing for 1 where j is c and else 0,
//   d xhat_j / d x_c = rstd ([j = c] - xhat_j xhat_c / C)  of RMSNorm, since d rstd / d x_c = -rstd^2 xhat_c / C;
//   in LayerNorm x_c also moves the mean, which takes rstd / C from every xhat_j. Summed over j,
//   dx_c = rstd (h_c - xhat_c mean(h xhat) - [LayerNorm] mean(h)),   dweight_c = sum over rows of dn_c xhat_c
//
// A gated branch is sum = x + gate branch, and the next norm reads sum at once. dsum collects the norm's share and then
// is the gradient of x too, while dbranch = gate dsum and dgate_c = sum_t dsum_c branch_c.
//
// The backward runs image by image, threads sharing the images; the shares of dweight are kept apart for each image and
// added in their order. Look next at dev/cpu/rope.h.
#pragma once
// defines: floatX, floatS, stream_t, xsqrt
#include "common/device.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"

static inline floatX weight_at(const floatX* weight, int c) { return weight ? weight[c] : (floatX)1; }

static inline void norm_modulate_row(floatX* out, floatS* mean, floatS* rstd, const floatS* x, const floatX* weight,
                                     const floatX* shift, const floatX* scale, int C, double eps) {
    floatS centre = 0, squares = 0;
    if (mean) {
        #pragma omp simd reduction(+ : centre)
        for (int c = 0; c < C; c++) centre += x[c];
        *mean = centre /= C;
    }
    #pragma omp simd reduction(+ : squares)
    for (int c = 0; c < C; c++) squares += (x[c] - centre) * (x[c] - centre);
    floatS r = 1 / xsqrt(squares / C + (floatS)eps);
    #pragma omp simd
    for (int c = 0; c < C; c++) {
        out[c] = (x[c] - centre) * r * weight_at(weight, c) * (1 + scale[c]) + (shift ? shift[c] : 0);
    }
    *rstd = r;
}

void gated_norm_modulate_forward(floatS* sum,          // (B, T, C)
                                 floatX* out,          // (B, T, C)
                                 floatS* mean,         // (B, T) LayerNorm, or NULL: RMSNorm
                                 floatS* rstd,         // (B, T)
                                 const floatS* x,      // (B, T, C)
                                 const floatX* branch, // (B, T, C)
                                 const floatX* gate,   // (B, C)
                                 const floatX* weight, // (C) or NULL for 1
                                 const floatX* shift,  // (B, C) or NULL
                                 const floatX* scale,  // (B, C)
                                 size_t stride, int B, int T, int C, double eps, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C * 2))
    for (size_t row = 0; row < (size_t)B * T; row++) {
        size_t at = row * C, image = row / T * stride;
        #pragma omp simd
        for (int c = 0; c < C; c++) sum[at + c] = x[at + c] + gate[image + c] * branch[at + c];
        if (!out) continue;
        norm_modulate_row(out + at, mean ? mean + row : NULL, rstd + row, sum + at, weight,
                          shift ? shift + image : NULL, scale + image, C, eps);
    }
}

void norm_modulate_forward(floatX* out,          // (B, T, C)
                           floatS* mean,         // (B, T) LayerNorm, or NULL: RMSNorm
                           floatS* rstd,         // (B, T)
                           const floatS* x,      // (B, T, C)
                           const floatX* weight, // (C) or NULL for 1
                           const floatX* shift,  // (B, C) or NULL
                           const floatX* scale,  // (B, C)
                           size_t stride, int B, int T, int C, double eps, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C))
    for (size_t row = 0; row < (size_t)B * T; row++) {
        size_t image = row / T * stride;
        norm_modulate_row(out + row * C, mean ? mean + row : NULL, rstd + row, x + row * C, weight,
                          shift ? shift + image : NULL, scale + image, C, eps);
    }
}

// One row: dx +=; the sums over rows collect its share.
static inline void norm_modulate_row_backward(floatS* dx, floatS* dweight, floatS* dshift, floatS* dscale,
                                              const floatX* dout, const floatS* x, const floatX* weight,
                                              const floatX* scale, const floatS* mean, floatS rstd, int C) {
    floatS dot = 0, sum = 0, centre = mean ? *mean : 0;
    #pragma omp simd reduction(+ : dot, sum)
    for (int c = 0; c < C; c++) {
        floatS dn = dout[c] * (1 + scale[c]), xhat = (x[c] - centre) * rstd, h = dn * weight_at(weight, c);
        dot += h * xhat;
        sum += h;
        dshift[c] += dout[c];
        dscale[c] += dout[c] * xhat * weight_at(weight, c);
        dweight[c] += dn * xhat;
    }
    floatS along = dot / C, across = mean ? sum / C : 0;
    #pragma omp simd
    for (int c = 0; c < C; c++) {
        floatS h = dout[c] * (1 + scale[c]) * weight_at(weight, c);
        dx[c] += rstd * (h - (x[c] - centre) * rstd * along - across);
    }
}

// All backwards; branch NULL: the one without a gated branch; dout NULL: the one without a norm.
static inline void norm_modulate_image_backward(floatS* dsum, floatX* dbranch, floatS* dgate, floatS* dweight,
                                                floatS* dshift, floatS* dscale, const floatX* dout,
                                                const floatS* sum, const floatX* branch, const floatX* gate,
                                                const floatX* weight, const floatX* scale, const floatS* mean,
                                                const floatS* rstd, int T, int C) {
    for (int t = 0; t < T; t++) {
        size_t at = (size_t)t * C;
        if (dout) norm_modulate_row_backward(dsum + at, dweight, dshift, dscale, dout + at, sum + at, weight, scale,
                                             mean ? mean + t : NULL, rstd[t], C);
        if (!branch) continue;
        #pragma omp simd
        for (int c = 0; c < C; c++) {
            dgate[c] += dsum[at + c] * branch[at + c];
            dbranch[at + c] = gate[c] * dsum[at + c];
        }
    }
}

void gated_norm_modulate_backward(floatS* dsum,         // (B, T, C) +=
                                  floatX* dbranch,      // (B, T, C)
                                  floatX* dgate,        // (B, C)
                                  floatS* dweight,      // (C) or NULL
                                  floatX* dshift,       // (B, C) or NULL
                                  floatX* dscale,       // (B, C)
                                  const floatX* dout,   // (B, T, C)
                                  const floatS* sum,    // (B, T, C)
                                  const floatX* branch, // (B, T, C)
                                  const floatX* gate,   // (B, C)
                                  const floatX* weight, // (C) or NULL for 1
                                  const floatX* scale,  // (B, C)
                                  const floatS* mean,   // (B, T) LayerNorm, or NULL: RMSNorm
                                  const floatS* rstd,   // (B, T)
                                  size_t stride, int B, int T, int C, stream_t s) {
    (void)s;
    size_t bytes = 4 * (size_t)B * C * sizeof(floatS);
    floatS* sums = (floatS*)cpu_scratch(0, bytes); // (B, 4, C): of weight, shift, scale, gate
    memset(sums, 0, bytes);
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C * 3))
    for (int b = 0; b < B; b++) {
        size_t at = (size_t)b * T * C, image = b * stride, first = (size_t)b * T;
        floatS* own = sums + (size_t)b * 4 * C;
        norm_modulate_image_backward(dsum + at, branch ? dbranch + at : NULL, own + 3 * C, own, own + C, own + 2 * C,
                                     dout ? dout + at : NULL, dout ? sum + at : NULL, branch ? branch + at : NULL,
                                     branch ? gate + image : NULL, weight, dout ? scale + image : NULL,
                                     mean ? mean + first : NULL, dout ? rstd + first : NULL, T, C);
        for (int c = 0; c < C; c++) {
            if (dshift) dshift[image + c] = (floatX)own[C + c];
            if (dscale) dscale[image + c] = (floatX)own[2 * C + c];
            if (branch) dgate[image + c] = (floatX)own[3 * C + c];
        }
    }
    for (int b = 0; dweight && b < B; b++) {
        for (int c = 0; c < C; c++) dweight[c] += sums[(size_t)b * 4 * C + c];
    }
}

void norm_modulate_backward(floatS* dx,           // (B, T, C) +=
                            floatS* dweight,      // (C) or NULL
                            floatX* dshift,       // (B, C) or NULL
                            floatX* dscale,       // (B, C)
                            const floatX* dout,   // (B, T, C)
                            const floatS* x,      // (B, T, C)
                            const floatX* weight, // (C) or NULL for 1
                            const floatX* scale,  // (B, C)
                            const floatS* mean,   // (B, T) LayerNorm, or NULL: RMSNorm
                            const floatS* rstd,   // (B, T)
                            size_t stride, int B, int T, int C, stream_t s) {
    gated_norm_modulate_backward(dx, NULL, NULL, dweight, dshift, dscale, dout, x, NULL, NULL, weight, scale, mean,
                                 rstd, stride, B, T, C, s);
}
