// lpips_tap.h: one feature map's share of LPIPS, the perceptual distance (Zhang et al. 2018, "The unreasonable
// effectiveness of deep features as a perceptual metric").
//
// A VGG16 turns both images into feature maps, f of the reconstruction and g of the original, at five depths ("taps").
// At each position the channel vectors are scaled to unit length and their squared differences are weighted by
// channel:
//
//   n = |f|    u = f / (n + 1e-10)    v = g / (|g| + 1e-10)    distance = sum_c weight_c (u_c - v_c)^2
//
// and averaged over positions. The 1e-10 is added to the norm, outside the root, as in the lpips package and in
// taming-transformers; some ports differ. Dropout before the weights, active in training only, is left out.
//
// Cost: two reads of f and g from memory and one write of df; the second look at a position finds it in the cache.
// Look next at common/models/lpips.h, which runs the VGG16 around this.
#pragma once
// defines: the contract of each function below
#include "common/ops.h"
// defines: sum_in_order
#include "dev/cpu/reduce.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"

#define LPIPS_EPS 1e-10
enum { LPIPS_BLOCK = 64 }; // positions that are summed together

static inline floatS lpips_norm(const floatX* f, int C) {
    floatS sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += f[c] * f[c];
    return xsqrt(sum);
}

// The distance at one position.
static inline floatS lpips_position(const floatX* f, const floatX* g, const floatX* weight, int C) {
    floatS scale_f = 1 / (lpips_norm(f, C) + (floatS)LPIPS_EPS);
    floatS scale_g = 1 / (lpips_norm(g, C) + (floatS)LPIPS_EPS);
    floatS sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) {
        floatS difference = f[c] * scale_f - g[c] * scale_g;
        sum += weight[c] * difference * difference;
    }
    return sum;
}

void lpips_tap_forward(floatS* loss,         // (B) +=
                       const floatX* f,      // (B, HW, C)
                       const floatX* g,      // (B, HW, C)
                       const floatX* weight, // (C)
                       int B, int HW, int C, stream_t s) {
    (void)s;
    size_t blocks = ((size_t)HW + LPIPS_BLOCK - 1) / LPIPS_BLOCK;
    double* partial = (double*)cpu_scratch(0, (size_t)B * blocks * sizeof(double));
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * HW * C * 2))
    for (size_t i = 0; i < (size_t)B * blocks; i++) {
        int begin = (int)(i % blocks) * LPIPS_BLOCK;
        int end = HW - begin < LPIPS_BLOCK ? HW : begin + LPIPS_BLOCK;
        double sum = 0;
        for (int p = begin; p < end; p++) {
            size_t at = (i / blocks * (size_t)HW + (size_t)p) * (size_t)C;
            sum += lpips_position(f + at, g + at, weight, C);
        }
        partial[i] = sum;
    }
    for (size_t b = 0; b < (size_t)B; b++) loss[b] += (floatS)(sum_in_order(partial + b * blocks, blocks) / HW);
}

// Let e_c = d(objective)/du_c = 2 scale / HW weight_c (u_c - v_c). From dn/df_c = f_c / n,
//
//   du_k/df_c = [k = c] / (n + eps) - f_k f_c / (n (n + eps)^2)
//   df_c      = (e_c - f_c / n sum_k e_k u_k) / (n + eps)
//
// Where n = 0 the formula is 0/0. There f is zero in all channels, the ReLU in front of it passes nothing on: df = 0.
static inline void lpips_position_backward(floatX* df, const floatX* f, const floatX* g, const floatX* weight,
                                           floatS factor, int C) {
    floatS n = lpips_norm(f, C);
    floatS scale_f = 1 / (n + (floatS)LPIPS_EPS);
    floatS scale_g = 1 / (lpips_norm(g, C) + (floatS)LPIPS_EPS);
    floatS along = 0; // sum_k e_k u_k
    #pragma omp simd reduction(+ : along)
    for (int c = 0; c < C; c++) {
        floatS u = f[c] * scale_f;
        along += factor * weight[c] * (u - g[c] * scale_g) * u;
    }
    floatS radial = n > 0 ? along / n : 0;
    #pragma omp simd
    for (int c = 0; c < C; c++) {
        floatS e = factor * weight[c] * (f[c] * scale_f - g[c] * scale_g);
        df[c] = f[c] > 0 ? (floatX)((e - f[c] * radial) * scale_f) : 0;
    }
}

void lpips_tap_backward(floatX* df,           // (B, HW, C)
                        const floatX* f,      // (B, HW, C)
                        const floatX* g,      // (B, HW, C)
                        const floatX* weight, // (C)
                        double scale, int B, int HW, int C, stream_t s) {
    (void)s;
    floatS factor = (floatS)(2 * scale / HW);
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * HW * C * 3))
    for (size_t i = 0; i < (size_t)B * (size_t)HW; i++) {
        size_t at = i * (size_t)C;
        lpips_position_backward(df + at, f + at, g + at, weight, factor, C);
    }
}
