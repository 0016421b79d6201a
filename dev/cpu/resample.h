// resample.h: changes of a feature map's resolution that have no weights: 2x2 maximum, and nearest neighbour to twice
// the size.
//
//   maxpool    out[i, j] = max of x[2i + a, 2j + b],  a, b in {0, 1}        (VGG16)
//   upsample   out[2i + a, 2j + b] = x[i, j]                                (the decoder, before a 3x3 convolution)
//
// Both are limited by memory: one pass over input and output. Threads share the rows. Look next at dev/cpu/conv.h.
#pragma once
// defines: floatX, stream_t
#include "common/device.h"
// defines: worth_sharing
#include "dev/cpu/threads.h"

// The maximum of a window. A NaN in the first place or met on the way stays: a broken map must not look sound.
static inline floatX maxpool_larger(floatX best, floatX value) { return value > best || value != value ? value : best; }

void maxpool_forward(floatX* out,     // (B, H/2, W/2, C)
                     const floatX* x, // (B, H, W, C)
                     int B, int H, int W, int C, stream_t s) {
    (void)s;
    int OH = H / 2, OW = W / 2;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * H * W * C))
    for (size_t row = 0; row < (size_t)B * OH; row++) {
        const floatX* upper = x + (row / OH * H + row % OH * 2) * W * C;
        const floatX* lower = upper + (size_t)W * C;
        floatX* y = out + row * OW * C;
        for (int j = 0; j < OW; j++, y += C, upper += 2 * C, lower += 2 * C) {
            for (int c = 0; c < C; c++) {
                floatX best = maxpool_larger(upper[c], upper[C + c]);
                y[c] = maxpool_larger(maxpool_larger(best, lower[c]), lower[C + c]);
            }
        }
    }
}

// out is x at the place of the maximum, so dL/dx is dout there and 0 elsewhere. Where several places hold the maximum,
// the first in reading order gets it all, as in PyTorch. The place is found again from x, which costs less than storing
// it. Behind the maximum is the ReLU that made x, and `add` is a gradient that reaches x by another way. The truth,
// which tests hold the fast form against:
static inline void maxpool_relu_backward_naive(floatX* dx,         // (B, H, W, C)
                                               const floatX* dout, // (B, H/2, W/2, C)
                                               const floatX* add,  // (B, H, W, C) or NULL
                                               const floatX* x,    // (B, H, W, C)
                                               size_t B, size_t H, size_t W, size_t C) {
    for (size_t at = 0; at < B * H * W * C; at++) dx[at] = add ? add[at] : 0;
    for (size_t at = 0; at < B * (H / 2) * (W / 2) * C; at++) {
        size_t c = at % C, j = at / C % (W / 2), i = at / C / (W / 2) % (H / 2), b = at / C / (W / 2) / (H / 2);
        size_t best = 0;
        for (size_t k = 0; k < 4; k++) {
            size_t place = ((b * H + 2 * i + k / 2) * W + 2 * j + k % 2) * C + c;
            if (k == 0 || x[place] > x[best]) best = place;
        }
        dx[best] += dout[at];
    }
    for (size_t at = 0; at < B * H * W * C; at++) dx[at] = x[at] > 0 ? dx[at] : 0;
}

// The fast form, without a branch, so that it becomes vector code. One window of all channels; `below` is the distance
// of its second row. `tap`, constant at the call: add is read.
__attribute__((always_inline)) static inline void maxpool_relu_backward_window(floatX* to, const floatX* dout,
                                                                               const floatX* add, const floatX* x,
                                                                               size_t below, int C, const int tap) {
    size_t right = C, corner = below + C;
    #pragma omp simd
    for (int c = 0; c < C; c++) {
        floatX x0 = x[c], x1 = x[right + c], x2 = x[below + c], x3 = x[corner + c], share = dout[c];
        int up = (x0 >= x1 ? x0 : x1) >= (x2 >= x3 ? x2 : x3);
        floatX above = up ? share : 0, under = up ? 0 : share;
        floatX d0 = (x0 >= x1 ? above : 0) + (tap ? add[c] : 0);
        floatX d1 = (x0 >= x1 ? 0 : above) + (tap ? add[right + c] : 0);
        floatX d2 = (x2 >= x3 ? under : 0) + (tap ? add[below + c] : 0);
        floatX d3 = (x2 >= x3 ? 0 : under) + (tap ? add[corner + c] : 0);
        to[c] = x0 > 0 ? d0 : 0;
        to[right + c] = x1 > 0 ? d1 : 0;
        to[below + c] = x2 > 0 ? d2 : 0;
        to[corner + c] = x3 > 0 ? d3 : 0;
    }
}

// One row of windows; `to` and `add` are its two rows of dx and of the tap's gradient.
static inline void maxpool_relu_backward_row(floatX* to, const floatX* dout, const floatX* add, const floatX* x, int W,
                                             int C) {
    size_t below = (size_t)W * C;
    for (int j = 0; j < W / 2; j++) {
        size_t at = (size_t)j * 2 * C;
        const floatX* d = dout + (size_t)j * C;
        if (add) maxpool_relu_backward_window(to + at, d, add + at, x + at, below, C, 1);
        else maxpool_relu_backward_window(to + at, d, NULL, x + at, below, C, 0);
    }
}

// dx = [x > 0] add for n values that no window covers.
static inline void maxpool_relu_uncovered(floatX* dx, const floatX* add, const floatX* x, size_t n) {
    for (size_t i = 0; i < n; i++) dx[i] = add && x[i] > 0 ? add[i] : 0;
}

void maxpool_relu_backward(floatX* dx,         // (B, H, W, C)
                           const floatX* dout, // (B, H/2, W/2, C)
                           const floatX* add,  // (B, H, W, C) or NULL
                           const floatX* x,    // (B, H, W, C)
                           int B, int H, int W, int C, stream_t s) {
    (void)s;
    int OH = H / 2, OW = W / 2, bands = (H + 1) / 2; // an odd last row is a band of its own
    size_t line = (size_t)W * C;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * H * W * C))
    for (size_t index = 0; index < (size_t)B * bands; index++) {
        size_t image = index / bands, band = index % bands, at = (image * H + band * 2) * line;
        const floatX* tap = add ? add + at : NULL;
        if ((int)band == OH) {
            maxpool_relu_uncovered(dx + at, tap, x + at, line);
            continue;
        }
        maxpool_relu_backward_row(dx + at, dout + (image * OH + band) * OW * C, tap, x + at, W, C);
        for (int k = 0; k < (W % 2 ? 2 : 0); k++) {
            size_t last = (k + 1) * line - C;
            maxpool_relu_uncovered(dx + at + last, tap ? tap + last : NULL, x + at + last, C);
        }
    }
}

void upsample_forward(floatX* out,     // (B, 2H, 2W, C)
                      const floatX* x, // (B, H, W, C)
                      int B, int H, int W, int C, stream_t s) {
    (void)s;
    size_t line = (size_t)2 * W * C;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * H * W * C * 4))
    for (size_t row = 0; row < (size_t)B * H; row++) {
        floatX* y = out + row * 2 * line;
        for (int j = 0; j < W; j++) {
            const floatX* from = x + (row * W + j) * C;
            memcpy(y + (size_t)(2 * j) * C, from, C * sizeof(floatX));
            memcpy(y + (size_t)(2 * j + 1) * C, from, C * sizeof(floatX));
        }
        memcpy(y + line, y, line * sizeof(floatX));
    }
}

// A value is read at four places, so its gradient is the sum of theirs.
void upsample_backward(floatX* dx,         // (B, H, W, C)
                       const floatX* dout, // (B, 2H, 2W, C)
                       int B, int H, int W, int C, stream_t s) {
    (void)s;
    size_t line = (size_t)2 * W * C;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * H * W * C * 4))
    for (size_t row = 0; row < (size_t)B * H; row++) {
        for (int j = 0; j < W; j++) {
            const floatX* upper = dout + row * 2 * line + (size_t)2 * j * C;
            const floatX* lower = upper + line;
            floatX* to = dx + (row * W + j) * C;
            for (int c = 0; c < C; c++) to[c] = (upper[c] + upper[C + c]) + (lower[c] + lower[C + c]);
        }
    }
}
