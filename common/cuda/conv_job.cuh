// conv_job.cuh: what is multiplied in a convolution: one description that the forward and the gradient of x share.
//
// Both are a matrix product of windows with weights, over taps and channels:
//
//   sum[b,i,j,o] = sum_{u,v,c} x[b, stride i + u - pad_top, stride j + v - pad_left, c] w[u,v,c,o]
//   out[b, step i + row, step j + column, o] = finish(sum[b,i,j,o])
//
//   forward         x is x, w[u,v,c,o] = weight[o,u,v,c], step 1
//   gradient of x   x is dout, w[u,v,c,o] = weight[c, u0 + s (KH-1-u), v0 + s (KW-1-v), o], stride 1, step s: one such
//                   product for each parity class (row, column) of the pixels of dx, with the taps that reach it. No
//                   product with a structural zero is formed. Derived in dev/cpu/conv.h.
//
// Look next at common/cuda/conv_gemm.cuh, the product on tensor cores.
#pragma once
#include <assert.h>
// defines: floatX
#include "common/cuda/launch.cuh"
// defines: conv_t, activation_t, LEAKY_SLOPE
#include "common/ops.h"

// The pixels of out that see the same taps.
typedef struct {
    int KH, KW;             // taps; none where there are fewer than the stride and nothing reaches the class
    int pad_top, pad_left;
    int OH, OW;             // windows of an image
    int row, column;        // where the first window's sums go
    int weight;             // w[0,0,0,0] from the beginning of the weights
} conv_class_t;

typedef struct {
    floatX* out;               // (B, out_H, out_W, out_row), of which it writes OC
    const floatX* x;           // (B, H, W, C)
    const floatX* weight;
    const floatX* bias;        // (OC) or NULL
    const floatX* beside;      // like out, or NULL: the residual, or the mask
    int aligned;               // rows of out and beside are multiples of 16 bytes
    float slope;               // factor of negative sums, or where the mask is not positive: 1, 0 or LEAKY_SLOPE
    int B, H, W, C, OC, out_H, out_W, out_row;
    int stride, step;
    int by_row, by_column;     // steps in the weights from tap to tap
    int by_channel, by_output; // and from channel to channel: one of them is 1
    int classes;               // 1, or 4
    conv_class_t at[4];        // the first has the most windows
} conv_job_t;

static inline float conv_slope(activation_t act) {
    assert(act == ACT_NONE || act == ACT_RELU || act == ACT_LEAKY);
    return act == ACT_NONE ? 1.0f : act == ACT_RELU ? 0.0f : (float)LEAKY_SLOPE;
}

// Of K taps, those from tap `first` on, `stride` apart.
static inline __host__ __device__ int conv_taps(int K, int first, int stride) {
    return stride == 1 ? K - first : (K - first + 1) / 2;
}

// A pixel's number in its image and an offset in the weights are ints.
static inline void conv_check(int H, int W, conv_t conv) {
    assert(conv.stride == 1 || conv.stride == 2);
    assert((double)(H + conv.KH) * (W + conv.KW) < 2147483648.0);
    assert((double)conv.OC * conv.KH * conv.KW * conv.C < 2147483648.0);
}
static inline int conv_is_aligned(const void* p) { return (uintptr_t)p % 16 == 0; }

static inline conv_job_t conv_forward_job(floatX* out, const floatX* x, const floatX* weight, const floatX* bias,
                                          const floatX* residual, int B, int H, int W, conv_t conv, activation_t act) {
    int OH = conv_out_height(H, conv), OW = conv_out_width(W, conv);
    conv_check(H, W, conv);
    conv_job_t job = {};
    job.out = out, job.x = x, job.weight = weight, job.bias = bias, job.beside = residual;
    job.slope = conv_slope(act);
    job.out_row = conv_out_row(conv);
    job.aligned = conv.OC % 8 == 0 && job.out_row % 8 == 0 && conv_is_aligned(out) && conv_is_aligned(residual);
    job.B = B, job.H = H, job.W = W, job.C = conv.C, job.OC = conv.OC, job.out_H = OH, job.out_W = OW;
    job.stride = conv.stride, job.step = 1;
    job.by_row = conv.KW * conv.C, job.by_column = conv.C;
    job.by_channel = 1, job.by_output = conv.KH * conv.KW * conv.C;
    job.classes = 1;
    job.at[0] = {conv.KH, conv.KW, conv.pad_top, conv.pad_left, OH, OW, 0, 0, 0};
    return job;
}

static inline conv_job_t conv_data_job(floatX* dx, const floatX* dout, const floatX* weight, const floatX* mask, int B,
                                       int H, int W, conv_t conv, activation_t act) {
    int stride = conv.stride, row = conv.KW * conv.C, column = conv.C;
    conv_check(H, W, conv);
    conv_job_t job = {};
    job.out = dx, job.x = dout, job.weight = weight, job.beside = mask;
    job.slope = mask ? conv_slope(act) : 1;
    job.aligned = conv.C % 8 == 0 && conv_is_aligned(dx) && conv_is_aligned(mask);
    job.B = B, job.H = conv_out_height(H, conv), job.W = conv_out_width(W, conv), job.C = conv.OC, job.OC = conv.C;
    job.out_H = H, job.out_W = W, job.out_row = conv.C;
    job.stride = 1, job.step = stride;
    job.by_row = -stride * row, job.by_column = -stride * column;
    job.by_channel = conv.KH * row, job.by_output = 1;
    job.classes = stride * stride;
    for (int parity = 0; parity < job.classes; parity++) {
        conv_class_t* at = &job.at[parity];
        at->row = parity / stride, at->column = parity % stride;
        int u0 = (at->row + conv.pad_top) % stride, v0 = (at->column + conv.pad_left) % stride;
        at->KH = conv_taps(conv.KH, u0, stride), at->KW = conv_taps(conv.KW, v0, stride);
        at->pad_top = at->KH - 1 - (at->row + conv.pad_top - u0) / stride;
        at->pad_left = at->KW - 1 - (at->column + conv.pad_left - v0) / stride;
        at->OH = conv_taps(H, at->row, stride), at->OW = conv_taps(W, at->column, stride);
        at->weight = (u0 + stride * (at->KH - 1)) * row + (v0 + stride * (at->KW - 1)) * column;
    }
    return job;
}

// Where the sums of window (b, i, j) go in out.
__device__ static inline size_t conv_out_at(const conv_job_t& job, const conv_class_t& at, int b, int i, int j) {
    int pixel = (i * job.step + at.row) * job.out_W + j * job.step + at.column;
    return ((size_t)b * job.out_H * job.out_W + pixel) * job.out_row;
}

// The way from a sum, with its bias, to an output; `beside` is the value of the residual or mask, 0 without one. DATA:
// the gradient of x.
template <bool DATA> __device__ static inline float conv_finish(const conv_job_t& job, float sum, float beside) {
    if (DATA) return sum * (beside > 0 ? 1.0f : job.slope);
    return (sum > 0 ? sum : job.slope * sum) + beside;
}
