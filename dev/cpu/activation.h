// activation.h: GELU, the activation of every MLP here, and its derivative.
//
// GELU weighs a value by the chance that a normal variable lies below it:
//   exact   gelu(u) = u Phi(u),   Phi(u) = 0.5 (1 + erf(u / sqrt 2))                   Hendrycks & Gimpel 2016
//   tanh    gelu(u) = 0.5 u (1 + tanh(w)),   w = sqrt(2/pi) (u + 0.044715 u^3)         (SigLIP, T5)
//   quick   gelu(u) = u sigmoid(1.702 u)                                               (CLIP)
// As 0.5 (1 + tanh(w)) = sigmoid(2 w), the second is u sigmoid(2 w): all forms need a single exp.
// The first two differ by at most 4.7e-4, the third by 2e-2: weights trained with one do not quite fit another.
//
// The forward mostly stands at the end of matmul_gelu_forward, on values that are still in cache; here are its helper,
// the forward by itself, and the backward. ReLU, LeakyReLU and swish are part of the convolutions and norms that they follow.
// Look next at dev/cpu/matmul.h.
#pragma once
// defines: floatX, stream_t
#include "common/device.h"
// defines: activation_t
#include "common/ops.h"
// defines: fast_normal_cdf, fast_sigmoid
#include "dev/cpu/fastmath.h"
// defines: worth_sharing
#include "dev/cpu/threads.h"

// w' = sqrt(2/pi) (1 + 3 c u^2) and 2 w, for the tanh form.
static inline floatX gelu_twice_w(floatX u) { return (floatX)1.5957691216057308 * (u + (floatX)0.044715 * u * u * u); }
static inline floatX gelu_w_slope(floatX u) { return (floatX)0.7978845608028654 * (1 + (floatX)0.134145 * u * u); }
#define QUICK_GELU 1.702

// out = gelu(pre) for n values, on the calling thread.
static inline void gelu_values(floatX* out, const floatX* pre, size_t n, activation_t act) {
    if (act == ACT_GELU) {
        #pragma omp simd
        for (size_t i = 0; i < n; i++) {
            floatX density;
            out[i] = pre[i] * fast_normal_cdf(pre[i], &density);
        }
    } else if (act == ACT_QUICK_GELU) {
        #pragma omp simd
        for (size_t i = 0; i < n; i++) out[i] = pre[i] * fast_sigmoid((floatX)QUICK_GELU * pre[i]);
    } else {
        #pragma omp simd
        for (size_t i = 0; i < n; i++) out[i] = pre[i] * fast_sigmoid(gelu_twice_w(pre[i]));
    }
}

static const size_t GELU_PIECE = 8192; // values that a thread takes at once

void gelu_forward(floatX* out,       // (n)
                  const floatX* pre, // (n)
                  size_t n, activation_t act, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing(n * WORK_OF_EXP))
    for (size_t i = 0; i < n; i += GELU_PIECE) {
        gelu_values(out + i, pre + i, n - i < GELU_PIECE ? n - i : GELU_PIECE, act);
    }
}

// exact: gelu' = Phi(u) + u phi(u), because Phi' = phi, the normal density.
// tanh:  gelu' = s + u s' with s = sigmoid(2 w), s' = s (1 - s) 2 w'. 1 - s is computed as sigmoid(-2 w): where s is
//        close to 1 the difference has few digits left, and u w' is large.
// quick: the same with 1.702 u in the place of 2 w.
static inline void gelu_backward_values(floatX* dpre, const floatX* dout, const floatX* pre, size_t n,
                                        activation_t act) {
    if (act == ACT_GELU) {
        #pragma omp simd
        for (size_t i = 0; i < n; i++) {
            floatX density;
            floatX cdf = fast_normal_cdf(pre[i], &density);
            dpre[i] = dout[i] * (cdf + pre[i] * density);
        }
    } else if (act == ACT_QUICK_GELU) {
        #pragma omp simd
        for (size_t i = 0; i < n; i++) {
            floatX w = (floatX)QUICK_GELU * pre[i], s = fast_sigmoid(w);
            dpre[i] = dout[i] * (s + w * s * fast_sigmoid(-w));
        }
    } else {
        #pragma omp simd
        for (size_t i = 0; i < n; i++) {
            floatX u = pre[i], s = fast_sigmoid(gelu_twice_w(u)), rest = fast_sigmoid(-gelu_twice_w(u));
            dpre[i] = dout[i] * (s + u * s * rest * 2 * gelu_w_slope(u));
        }
    }
}

void gelu_backward(floatX* dpre,       // (n)
                   const floatX* dout, // (n)
                   const floatX* pre,  // (n)
                   size_t n, activation_t act, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing(n * WORK_OF_EXP))
    for (size_t i = 0; i < n; i += GELU_PIECE) {
        gelu_backward_values(dpre + i, dout + i, pre + i, n - i < GELU_PIECE ? n - i : GELU_PIECE, act);
    }
}
