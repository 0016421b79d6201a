// pool.h: what Inception-v3 (common/models/inception.h) has beside convolutions: its 3x3 maxima and means, the resize
// of its input, and its features on their way out. Forward only: the network is never trained here.
//
//   maxpool3         out[i, j] = max of x[s i + u - p, s j + v - p],  u, v in {0, 1, 2},  of the cells that exist
//   avgpool3         the mean of those cells at s = 1, p = 1: what lies outside is not counted
//   mean_positions   out[c] = mean over i, j of x[i, j, c], summed in double
//   features_matmul  a product in full precision, each row in the same order: it does not go through a BLAS, whose sums
//                    may depend on the number of rows
//   bytes_resize     rows and columns interpolated between two neighbours each
//
// The resize is not that of dev/cpu/embed.h. TensorFlow's graph of 2015 puts sample i at i r without the half pixel
// that everybody else has, and scores depend on it in their third digit; so where a sample lies is computed as the
// reference programs do, in the precision of the map.
// (pytorch-fid inception.py; TensorFlow's resize_bilinear with align_corners = false.)
//
// All are limited by memory; in the network they take 3 % of the time. Threads share the rows. Look next at
// dev/cpu/conv.h.
#pragma once
// defines: floatX, floatS, stream_t
#include "common/device.h"
// defines: inception_input_t
#include "common/ops.h"
// defines: maxpool_larger
#include "dev/cpu/resample.h"
// defines: worth_sharing
#include "dev/cpu/threads.h"

// The cells of an axis that the window of output i covers: [begin, end).
typedef struct { int begin, end; } pool_span_t;
static inline pool_span_t pool_span(int i, int stride, int pad, int size) {
    int begin = i * stride - pad, end = begin + 3;
    pool_span_t span = {begin < 0 ? 0 : begin, end > size ? size : end};
    return span;
}

void maxpool3_forward(floatX* out,     // (B, OH, OW, row), C of them
                      const floatX* x, // (B, H, W, C)
                      int B, int H, int W, int C, int stride, int pad, int row, stream_t s) {
    (void)s;
    int OH = (H + 2 * pad - 3) / stride + 1, OW = (W + 2 * pad - 3) / stride + 1;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * OH * OW * C * 3))
    for (size_t line = 0; line < (size_t)B * OH; line++) {
        const floatX* image = x + line / OH * H * W * C;
        pool_span_t rows = pool_span((int)(line % OH), stride, pad, H);
        for (int j = 0; j < OW; j++) {
            floatX* y = out + (line * OW + j) * row;
            pool_span_t columns = pool_span(j, stride, pad, W);
            memcpy(y, image + ((size_t)rows.begin * W + columns.begin) * C, C * sizeof(floatX));
            for (int u = rows.begin; u < rows.end; u++) {
                for (int v = columns.begin; v < columns.end; v++) {
                    const floatX* cell = image + ((size_t)u * W + v) * C;
                    for (int c = 0; c < C; c++) y[c] = maxpool_larger(y[c], cell[c]);
                }
            }
        }
    }
}

void avgpool3_forward(floatX* out,     // (B, H, W, C)
                      const floatX* x, // (B, H, W, C)
                      int B, int H, int W, int C, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * H * W * C * 3))
    for (size_t line = 0; line < (size_t)B * H; line++) {
        const floatX* image = x + line / H * H * W * C;
        pool_span_t rows = pool_span((int)(line % H), 1, 1, H);
        for (int j = 0; j < W; j++) {
            floatX* y = out + (line * W + j) * C;
            pool_span_t columns = pool_span(j, 1, 1, W);
            floatX cells = (floatX)((rows.end - rows.begin) * (columns.end - columns.begin));
            memset(y, 0, C * sizeof(floatX));
            for (int u = rows.begin; u < rows.end; u++) {
                for (int v = columns.begin; v < columns.end; v++) {
                    const floatX* cell = image + ((size_t)u * W + v) * C;
                    for (int c = 0; c < C; c++) y[c] += cell[c];
                }
            }
            for (int c = 0; c < C; c++) y[c] /= cells;
        }
    }
}

// A thread sums a run of channels of one image, position by position: neighbours in memory, one order.
void mean_positions_forward(floatS* out,     // (B, C)
                            const floatX* x, // (B, HW, C)
                            int B, int HW, int C, stream_t s) {
    (void)s;
    enum { RUN = 64 };
    size_t runs = (size_t)(C + RUN - 1) / RUN;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * HW * C))
    for (size_t task = 0; task < B * runs; task++) {
        size_t image = task / runs, begin = task % runs * RUN;
        int n = C - (int)begin < RUN ? C - (int)begin : RUN;
        double sum[RUN] = {0};
        for (int k = 0; k < HW; k++) {
            const floatX* from = x + (image * HW + k) * C + begin;
            for (int c = 0; c < n; c++) sum[c] += from[c];
        }
        for (int c = 0; c < n; c++) out[image * C + begin + c] = (floatS)(sum[c] / HW);
    }
}

void first_channels_forward(floatS* out,     // (N, n)
                            const floatX* x, // (N, C)
                            size_t N, int C, int n, stream_t s) {
    (void)s;
    for (size_t i = 0; i < N; i++) {
        for (int c = 0; c < n; c++) out[i * n + c] = (floatS)x[i * C + c];
    }
}

// Runs of 8 products share a sum.
void features_matmul_forward(floatS* out,          // (N, OC)
                             const floatS* x,      // (N, C)
                             const floatX* weight, // (OC, C)
                             size_t N, int C, int OC, stream_t s) {
    (void)s;
    enum { SUMS = 8 };
    #pragma omp parallel for schedule(static) if (worth_sharing((double)N * OC * C))
    for (size_t i = 0; i < N * OC; i++) {
        const floatS* row = x + i / OC * C;
        const floatX* w = weight + i % OC * C;
        double sum[SUMS] = {0}, total = 0;
        int c = 0;
        for (; c + SUMS <= C; c += SUMS) {
            for (int k = 0; k < SUMS; k++) sum[k] += (double)row[c + k] * w[c + k];
        }
        for (; c < C; c++) total += (double)row[c] * w[c];
        for (int k = 0; k < SUMS; k++) total += sum[k];
        out[i] = (floatS)total;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The input

// Sample i of an axis lies between cells `lo` and `hi`, at `fraction` of the way.
typedef struct {
    int lo, hi;
    floatX fraction;
} bytes_tap_t;

static inline bytes_tap_t bytes_tap(int i, int size, int out_size, inception_input_t input) {
    floatX ratio = (floatX)size / (floatX)out_size;
    if (input == INCEPTION_TF) ratio = (float)ratio; // TensorFlow has it so, whatever the map's precision
    floatX at = input == INCEPTION_TF ? i * ratio : (i + (floatX)0.5) * ratio - (floatX)0.5;
    if (at < 0) at = 0;
    bytes_tap_t tap;
    tap.lo = (int)at < size - 1 ? (int)at : size - 1;
    tap.hi = tap.lo + 1 < size ? tap.lo + 1 : size - 1;
    tap.fraction = at - (floatX)tap.lo;
    return tap;
}

static inline floatX bytes_between(floatX a, floatX b, floatX fraction) { return (1 - fraction) * a + fraction * b; }

void bytes_resize_forward(floatX* out,          // (B, OH, OW, 3)
                          const uint8_t* bytes, // (B, H, W, 3)
                          inception_input_t input, int B, int H, int W, int OH, int OW, stream_t s) {
    (void)s;
    const floatX unit = input == INCEPTION_PT ? 255 : 1, centre = input == INCEPTION_PT ? (floatX)0.5 : 128;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * OH * OW * 20))
    for (size_t line = 0; line < (size_t)B * OH; line++) {
        const uint8_t* image = bytes + line / OH * H * W * 3;
        bytes_tap_t y = bytes_tap((int)(line % OH), H, OH, input);
        for (int j = 0; j < OW; j++) {
            bytes_tap_t x = bytes_tap(j, W, OW, input);
            for (int c = 0; c < 3; c++) {
                const uint8_t *low = image + (size_t)y.lo * W * 3 + c, *high = image + (size_t)y.hi * W * 3 + c;
                floatX above = bytes_between(low[x.lo * 3] / unit, low[x.hi * 3] / unit, x.fraction);
                floatX below = bytes_between(high[x.lo * 3] / unit, high[x.hi * 3] / unit, x.fraction);
                out[(line * OW + j) * 3 + c] = (bytes_between(above, below, y.fraction) - centre) / centre;
            }
        }
    }
}
