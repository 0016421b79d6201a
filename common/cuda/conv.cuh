// conv.cuh: two-dimensional convolution, forward and gradient of x. The gradient of the weights stands in
// common/cuda/conv_weight.cuh.
//
//   out[b,i,j,o] = act(bias_o + sum_{u,v,c} x[b, s i + u - p, s j + v - q, c] w[o,u,v,c]) + residual
//
// The gradients are derived in dev/cpu/conv.h. Everything is a matrix product of windows with weights, and which kernel
// forms it depends on the shape:
//
//   path                      when                           where it occurs
//   matmul                    1x1, stride 1, no activation   decoder: q, k, v, the projection behind attention with its
//                             or mask, rows of its own       residual, shortcuts of ResBlocks (512 -> 256)
//   conv_gemm.cuh             channels of the windows a      decoder 3x3 (32 -> 512, 512, 256, 128); VGG 3x3 (64 to
//     (tensor cores)          multiple of 8; in the          512); PatchGAN 4x4 (64 -> 128 -> 256 -> 512); Inception
//                             gradient of x both C and OC    1x1 to 7x1 (32 to 2048)
//   conv_narrow.cuh           C <= 4 or OC <= 4, square      decoder conv_out 128 -> 3; VGG and PatchGAN 3 -> 64;
//                             kernels                        PatchGAN 512 -> 1; Inception 3 -> 32
//   conv_plain.cuh            any other, and the fp32 build  no shape of these models in bf16
//
// The decoder is 126 G MAC an image, nearly all of it in the second row. At 128 channels and 256 x 256 pixels a layer
// is 9.7 G MAC an image against 34 MB: 39 us of an H100's tensor cores at 250 T MAC/s, 10 us of its memory. So these
// layers are bound by arithmetic, and bias, activation, residual and mask cost no pass of their own.
#pragma once
// defines: conv_job_t, conv_forward_job, conv_data_job, conv_is_aligned
#include "common/cuda/conv_job.cuh"
#ifndef FP32
// defines: conv_gemm
#include "common/cuda/conv_gemm.cuh"
#endif
// defines: conv_plain
#include "common/cuda/conv_plain.cuh"
// defines: conv_narrow_in_forward, conv_narrow_out_forward, conv_narrow_in_backward_data, conv_narrow_out_backward_data
#include "common/cuda/conv_narrow.cuh"
// defines: matmul_residual_forward, matmul_backward
#include "common/cuda/matmul.cuh"

// Tensor cores read pixels and weights 16 bytes at a time; a batch that begins in the middle of another one need not
// lie so that this is possible.
static inline void conv_product(const conv_job_t& job, bool data, stream_t s) {
#ifndef FP32
    int contiguous = data ? job.OC : job.C; // of the weights
    int aligned = conv_is_aligned(job.x) && conv_is_aligned(job.weight);
    if (job.C % 8 == 0 && contiguous % 8 == 0 && aligned && conv_gemm(job, data, s)) return;
#endif
    conv_plain(job, data, s);
}

void conv2d_forward(floatX* out,            // (B, OH, OW, out_row)
                    const floatX* x,        // (B, H, W, C)
                    const floatX* weight,   // (OC, KH, KW, C)
                    const floatX* bias,     // (OC) or NULL
                    const floatX* residual, // like out, or NULL
                    int B, int H, int W, conv_t conv, activation_t act, stream_t s) {
    int square = conv_is_square(conv), own_rows = conv_out_row(conv) == conv.OC;
    if (conv.C <= 4 && square) conv_narrow_in_forward(out, x, weight, bias, residual, B, H, W, conv, act, s);
    else if (conv.OC <= 4 && square) conv_narrow_out_forward(out, x, weight, bias, residual, B, H, W, conv, act, s);
    else if (conv_is_matmul(conv) && own_rows && act == ACT_NONE) {
        matmul_residual_forward(out, x, weight, bias, residual, (size_t)B * H * W, conv.C, conv.OC, s);
    } else conv_product(conv_forward_job(out, x, weight, bias, residual, B, H, W, conv, act), false, s);
}

void conv2d_backward_data(floatX* dx,           // (B, H, W, C)
                          const floatX* dout,   // (B, OH, OW, OC)
                          const floatX* weight, // (OC, KH, KW, C)
                          const floatX* mask,   // (B, H, W, C) or NULL
                          int B, int H, int W, conv_t conv, activation_t act, stream_t s) {
    int square = conv_is_square(conv);
    if (conv.C <= 4 && square) conv_narrow_in_backward_data(dx, dout, weight, mask, B, H, W, conv, act, s);
    else if (conv.OC <= 4 && square) conv_narrow_out_backward_data(dx, dout, weight, mask, B, H, W, conv, act, s);
    else if (conv_is_matmul(conv) && !mask) {
        matmul_backward(dx, NULL, NULL, dout, NULL, weight, (size_t)B * H * W, conv.C, conv.OC, s);
    } else conv_product(conv_data_job(dx, dout, weight, mask, B, H, W, conv, act), true, s);
}

// defines: conv2d_backward_weight
#include "common/cuda/conv_weight.cuh"
