// condition.h: what a diffusion transformer is told besides the noised latent: the time and the label; and the two
// additions that its fp32 residual stream begins and ends with.
//
//   time   t -> features -> linear, SiLU, linear -> `time`; the features are cosines and sines of t at wavelengths from
//          2 pi to nearly 2 pi 10^4                                              (Vaswani et al. 2017, of word order)
//   label  a row of a learned table; its last row stands for "no label", which the guidance of sampling needs
//   c = time + row,   out = silu(c)                             out is the input of every block's modulation matrix
//
// LightningDiT's times lie in [0, 1] and are not stretched: all but the first few features vary little, nearly
// linearly, with t. FLUX stretches its own by 1000.
//
// Backward: dc = dout silu'(c) is the gradient of `time` and, as often as a label occurs in the batch, of its row.
// These are added in the order of the images, so that a sum does not depend on who computes it.
//
// Look next at dev/cpu/flow.h.
#pragma once
#include <assert.h>

// defines: floatX, floatS, stream_t, xexp
#include "common/device.h"
// defines: silu, silu_slope
#include "dev/cpu/swiglu.h"
// defines: worth_sharing
#include "dev/cpu/threads.h"

// Frequencies and angles are rounded to floatS, as the reference has them.
void timestep_features(floatX* out,     // (B, 2 half)
                       const floatS* t, // (B)
                       double scale, int B, int half, stream_t s) {
    (void)s;
    const floatS log_10000 = (floatS)9.210340371976184;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * half * 50))
    for (int b = 0; b < B; b++) {
        floatX* o = out + (size_t)b * 2 * half;
        for (int k = 0; k < half; k++) {
            floatS angle = t[b] * (floatS)scale * xexp(-log_10000 * k / half);
            o[k] = (floatX)cos((double)angle);
            o[half + k] = (floatX)sin((double)angle);
        }
    }
}

void condition_forward(floatX* out,         // (B, C)
                       floatS* c,           // (B, C)
                       const floatX* time,  // (B, C)
                       const floatX* table, // (rows, C)
                       const int* labels,   // (B)
                       int rows, int B, int C, stream_t s) {
    (void)rows, (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * C * WORK_OF_EXP))
    for (size_t b = 0; b < (size_t)B; b++) {
        assert(labels[b] >= 0 && labels[b] < rows);
        const floatX* row = table + (size_t)labels[b] * C;
        for (int i = 0; i < C; i++) {
            c[b * C + i] = time[b * C + i] + row[i];
            out[b * C + i] = silu(c[b * C + i]);
        }
    }
}

// A piece is a few columns of all images.
void condition_backward(floatX* dtime,      // (B, C)
                        floatS* dtable,     // (rows, C) += or NULL
                        const floatX* dout, // (B, C)
                        const floatS* c,    // (B, C)
                        const int* labels,  // (B)
                        int rows, int B, int C, stream_t s) {
    (void)rows, (void)s;
    enum { COLUMNS = 64 };
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * C * WORK_OF_EXP))
    for (int first = 0; first < C; first += COLUMNS) {
        int end = C - first < COLUMNS ? C : first + COLUMNS;
        for (size_t b = 0; b < (size_t)B; b++) {
            assert(labels[b] >= 0 && labels[b] < rows);
            for (int i = first; i < end; i++) dtime[b * C + i] = dout[b * C + i] * silu_slope(c[b * C + i]);
            if (!dtable) continue;
            floatS* row = dtable + (size_t)labels[b] * C;
            for (int i = first; i < end; i++) row[i] += dtime[b * C + i];
        }
    }
}

void condition_sum_forward(floatX* out,     // (B, C)
                           floatS* c,       // (B, C)
                           const floatX* a, // (B, C)
                           const floatX* b, // (B, C) or NULL for 0
                           const floatX* g, // (B, C) or NULL for 0
                           int B, int C, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * C * WORK_OF_EXP))
    for (size_t i = 0; i < (size_t)B * C; i++) {
        c[i] = (floatS)a[i] + (b ? b[i] : 0) + (g ? g[i] : 0);
        out[i] = silu(c[i]);
    }
}

void condition_sum_backward(floatX* dsum,       // (B, C)
                            const floatX* dout, // (B, C)
                            const floatS* c,    // (B, C)
                            int B, int C, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * C * WORK_OF_EXP))
    for (size_t i = 0; i < (size_t)B * C; i++) dsum[i] = dout[i] * silu_slope(c[i]);
}

void position_add_forward(floatS* out,       // (B, T, C)
                          const floatX* x,   // (B, T, C)
                          const floatS* pos, // (T, C)
                          int B, int T, int C, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C))
    for (size_t row = 0; row < (size_t)B * T; row++) {
        const floatS* p = pos + row % T * C;
        for (int i = 0; i < C; i++) out[row * C + i] = x[row * C + i] + p[i];
    }
}

void to_floatX(floatX* out, const floatS* x, size_t n, stream_t s) { // (n)
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing(n))
    for (size_t i = 0; i < n; i++) out[i] = (floatX)x[i];
}
