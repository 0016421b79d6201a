// swiglu.h: SiLU, the activation of the small networks around a transformer's condition, and SwiGLU, that of its MLPs.
//
//   silu(a) = a s,   s = sigmoid(a) = 1 / (1 + exp(-a))
//   silu'(a) = s + a s',   s' = s (1 - s),   so  silu'(a) = s (1 + a (1 - s))
//
// A gated linear unit multiplies two linear maps of the same input, one of them through an activation. Here the
// activation is SiLU, and both maps are one matrix product, whose rows are (a, b):               Shazeer 2020
//   out = silu(a) b,   da = dout b silu'(a),   db = dout silu(a)
// The gradient of that product's bias is the sum of (da, db) over the rows. GEGLU (T5) has GELU in the place of SiLU.
//
// Look next at dev/cpu/condition.h.
#pragma once
// defines: floatX, stream_t
#include "common/device.h"
// defines: gelu_values
#include "dev/cpu/activation.h"
// defines: fast_sigmoid
#include "dev/cpu/fastmath.h"
// defines: add_column_sums
#include "dev/cpu/rows.h"
// defines: worth_sharing
#include "dev/cpu/threads.h"

static inline floatX silu(floatX a) { return a * fast_sigmoid(a); }
static inline floatX silu_slope(floatX a) {
    floatX s = fast_sigmoid(a);
    return s * (1 + a * (1 - s));
}

// Threads share pieces of this many values.
enum { SILU_PIECE = 8192 };
static inline size_t silu_piece_end(size_t first, size_t n) { return n - first < SILU_PIECE ? n : first + SILU_PIECE; }

void silu_forward(floatX* out, const floatX* x, size_t n, stream_t s) { // (n)
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing(n * WORK_OF_EXP))
    for (size_t first = 0; first < n; first += SILU_PIECE) {
        size_t end = silu_piece_end(first, n);
        #pragma omp simd
        for (size_t i = first; i < end; i++) out[i] = silu(x[i]);
    }
}

void silu_backward(floatX* dx, const floatX* dout, const floatX* x, size_t n, stream_t s) { // (n) dx may be dout
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing(n * WORK_OF_EXP))
    for (size_t first = 0; first < n; first += SILU_PIECE) {
        size_t end = silu_piece_end(first, n);
        #pragma omp simd
        for (size_t i = first; i < end; i++) dx[i] = dout[i] * silu_slope(x[i]);
    }
}

void swiglu_forward(floatX* out,     // (N, F)
                    const floatX* x, // (N, 2F)
                    size_t N, int F, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)N * F * WORK_OF_EXP))
    for (size_t row = 0; row < N; row++) {
        const floatX *a = x + row * 2 * F, *b = a + F;
        floatX* o = out + row * F;
        #pragma omp simd
        for (int f = 0; f < F; f++) o[f] = silu(a[f]) * b[f];
    }
}

void geglu_forward(floatX* out,     // (N, F)
                   const floatX* x, // (N, 2F)
                   size_t N, int F, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)N * F * WORK_OF_EXP))
    for (size_t row = 0; row < N; row++) {
        const floatX *a = x + row * 2 * F, *b = a + F;
        floatX* o = out + row * F;
        gelu_values(o, a, F, ACT_GELU_TANH);
        #pragma omp simd
        for (int f = 0; f < F; f++) o[f] *= b[f];
    }
}

void swiglu_backward(floatX* dx,         // (N, 2F)
                     floatS* dbias,      // (2F) of the linear layer in front, or NULL
                     const floatX* dout, // (N, F)
                     const floatX* x,    // (N, 2F)
                     size_t N, int F, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)N * F * WORK_OF_EXP * 2))
    for (size_t row = 0; row < N; row++) {
        const floatX *a = x + row * 2 * F, *b = a + F, *d = dout + row * F;
        floatX *da = dx + row * 2 * F, *db = da + F;
        #pragma omp simd
        for (int f = 0; f < F; f++) { // both before a store: behind it a, d would be loaded and silu computed again
            floatX to_a = d[f] * b[f] * silu_slope(a[f]), to_b = d[f] * silu(a[f]);
            da[f] = to_a;
            db[f] = to_b;
        }
    }
    if (dbias) add_column_sums(dbias, dx, N, 2 * F);
}
