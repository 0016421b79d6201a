// ops.h: THE CATALOGUE. Every operation of the project once, forward beside backward.
//
// An operation is one C function on raw pointers with explicit sizes. Its text here is its contract. It is implemented
// twice: in plain C in dev/cpu/*.h, the reference, and as CUDA kernels in common/cuda/*.cuh, file by file alike; common/ops.cu
// takes the one or the other. Models (common/models/vit.h, ...) are written in these operations only, so that they are the
// same text on every kind of machine.
//
// Letters       B batch, T tokens, C channels, OC output channels, H W height and width, NH heads, HS head size, N rows
// Layout        images and feature maps (B, H, W, C), so that tokens (B, T, C) *are* a feature map; all row-major
// Arguments     outputs, inputs, weights, saved values, sizes, stream
// Accumulation  gradients of parameters (`dweight`, `dbias`, `dgamma`, ...) accumulate: +=. Gradients of activations
//               are written: =. Exceptions are marked "+=" at the argument. A gradient pointer that may be NULL is not
//               computed.
// Aliasing      outputs must not overlap inputs, unless the text says "in place".
// Numbers       sums and statistics are floatS (fp32) or better, whatever floatX is
// Cost          MAC = multiply-accumulate; `pass` = one read or write of the main tensor
// Chunk         the tokenizer's recipe is defined per group of 8 images ("chunk": what one GPU held in the reference
//               runs). Operations that compute a statistic per chunk take `chunk`, the number of images of one group,
//               inside one pass over the batch. B is a multiple of chunk.
//
// Reading order: matmul, layernorm (with its derivation in dev/cpu/norm.h), attention, conv2d, then the losses.
#ifndef OPS_H // not `pragma once`: tests/reference.h reads the catalogue a second time, for the reference
#define OPS_H
// defines: floatX, floatS, stream_t
#include "common/device.h"
// defines: activation_t, conv_t, channel_affine_t, adam_t
#include "common/op_types.h"

// ---------------------------------------------------------------------------------------------------------------------
// Matrix products                                                                                     dev/cpu/matmul.h

// out = x weight^T + bias                                                                            N C OC MAC
void matmul_forward(floatX* out,          // (N, OC)
                    const floatX* x,      // (N, C)
                    const floatX* weight, // (OC, C)
                    const floatX* bias,   // (OC) or NULL
                    size_t N, int C, int OC, stream_t s);

// dx = dout weight;  dweight += dout^T x;  dbias += sum over rows of dout                            2 N C OC MAC
void matmul_backward(floatX* dx,           // (N, C) or NULL
                     floatS* dweight,      // (OC, C) or NULL
                     floatS* dbias,        // (OC) or NULL
                     const floatX* dout,   // (N, OC)
                     const floatX* x,      // (N, C), needed for dweight
                     const floatX* weight, // (OC, C), needed for dx
                     size_t N, int C, int OC, stream_t s);

// out += x weight^T. The backward is that of matmul_forward.                                         N C OC MAC
void matmul_add_forward(floatX* out,          // (N, OC) +=
                        const floatX* x,      // (N, C)
                        const floatX* weight, // (OC, C)
                        size_t N, int C, int OC, stream_t s);

// The backward of a layer that reads what another one reads too: dx += dout weight, the rest as matmul_backward.
void matmul_add_backward(floatX* dx,           // (N, C) +=
                         floatS* dweight,      // (OC, C) or NULL
                         floatS* dbias,        // (OC) or NULL
                         const floatX* dout,   // (N, OC)
                         const floatX* x,      // (N, C), needed for dweight
                         const floatX* weight, // (OC, C)
                         size_t N, int C, int OC, stream_t s);

// pre = x weight^T + bias;  out = gelu(pre). `act` is ACT_GELU: 0.5 u (1 + erf(u / sqrt 2)), ACT_GELU_TANH:
// 0.5 u (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3))), or ACT_QUICK_GELU: u sigmoid(1.702 u).
void matmul_gelu_forward(floatX* out,          // (N, OC)
                         floatX* pre,          // (N, OC), kept for the backward
                         const floatX* x,      // (N, C)
                         const floatX* weight, // (OC, C)
                         const floatX* bias,   // (OC) or NULL
                         size_t N, int C, int OC, activation_t act, stream_t s);

// out = gelu(pre), where something stands between a product and its GELU. 2 passes.                dev/cpu/activation.h
void gelu_forward(floatX* out,       // (n)
                  const floatX* pre, // (n)
                  size_t n, activation_t act, stream_t s);

// dpre = dout gelu'(pre). In place: dpre may be dout. 3 passes.                                    dev/cpu/activation.h
void gelu_backward(floatX* dpre,       // (n)
                   const floatX* dout, // (n)
                   const floatX* pre,  // (n)
                   size_t n, activation_t act, stream_t s);

// ---------------------------------------------------------------------------------------------------------------------
// Normalisation                                                                                         dev/cpu/norm.h

// The residual stream (x, sum, and their gradients) is floatS in the LayerNorms: it collects what all blocks add.
//
// LayerNorm: mean and variance over C; rstd = 1 / sqrt(var + eps); out = (x - mean) rstd weight + bias.       2 passes
// Forward only: `mean` NULL is RMSNorm (mean 0), `bias` NULL is 0; here and in residual_layernorm_forward.
void layernorm_forward(floatX* out,                   // (N, C)
                       floatS* mean, floatS* rstd,    // (N)
                       const floatS* x,               // (N, C)
                       const floatX* weight,          // (C)
                       const floatX* bias,            // (C)
                       size_t N, int C, double eps, stream_t s);

// dx += the gradient through the norm: the residual stream collects. dweight += sum dout xhat; dbias += sum dout.
void layernorm_backward(floatS* dx,                               // (N, C) +=
                        floatS* dweight, floatS* dbias,           // (C) or both NULL
                        const floatX* dout,                       // (N, C)
                        const floatS* x,                          // (N, C)
                        const floatX* weight,                     // (C)
                        const floatS* mean, const floatS* rstd,   // (N)
                        size_t N, int C, stream_t s);

// Residual branch with LayerScale and the norm that follows it, in one pass:
//   sum = x + gamma y;  out = layernorm(sum)                                                                  4 passes
void residual_layernorm_forward(floatS* sum,                // (N, C)
                                floatX* out,                // (N, C)
                                floatS* mean, floatS* rstd, // (N)
                                const floatS* x,            // (N, C) the residual stream
                                const floatX* y,            // (N, C) the branch
                                const floatX* gamma,        // (C) LayerScale, or NULL for 1
                                const floatX* weight,       // (C)
                                const floatX* bias,         // (C)
                                size_t N, int C, double eps, stream_t s);

// dsum += the gradient through the norm (dsum then is the gradient of the residual stream, above and below the branch);
// dy = gamma dsum;  dgamma += sum over rows of dsum y;  dweight, dbias as above.
void residual_layernorm_backward(floatS* dsum,                             // (N, C) +=
                                 floatX* dy,                               // (N, C)
                                 floatS* dgamma,                           // (C) or NULL
                                 floatS* dweight, floatS* dbias,           // (C) or both NULL
                                 const floatX* dout,                       // (N, C)
                                 const floatS* sum,                        // (N, C)
                                 const floatX* y,                          // (N, C), needed for dgamma
                                 const floatX* gamma,                      // (C) or NULL
                                 const floatX* weight,                     // (C)
                                 const floatS* mean, const floatS* rstd,   // (N)
                                 size_t N, int C, stream_t s);

// GroupNorm, then nothing or swish (`act` is ACT_NONE or ACT_SWISH): statistics over (H, W, C/G) of one image;
// h = (x - mean) rstd weight + bias;  out = h or h sigmoid(h).                                                3 passes
void groupnorm_forward(floatX* out,                // (B, HW, C)
                       floatS* mean, floatS* rstd, // (B, G)
                       const floatX* x,            // (B, HW, C)
                       const floatX* weight,       // (C)
                       const floatX* bias,         // (C)
                       int B, int HW, int C, int G, double eps, activation_t act, stream_t s);

// The same output again from saved statistics (the backward recomputes it instead of keeping it).            2 passes
void groupnorm_apply(floatX* out,                            // (B, HW, C)
                     const floatX* x,                        // (B, HW, C)
                     const floatX* weight,                   // (C)
                     const floatX* bias,                     // (C)
                     const floatS* mean, const floatS* rstd, // (B, G)
                     int B, int HW, int C, int G, activation_t act, stream_t s);

// dx = add + gradient through activation and norm. `add` is the gradient that reaches x by the block's other branch, or
// NULL. In place: dx may be add.
void groupnorm_backward(floatX* dx,                             // (B, HW, C)
                        floatS* dweight, floatS* dbias,         // (C) or both NULL
                        const floatX* dout,                     // (B, HW, C)
                        const floatX* add,                      // (B, HW, C) or NULL
                        const floatX* x,                        // (B, HW, C)
                        const floatX* weight,                   // (C)
                        const floatX* bias,                     // (C)
                        const floatS* mean, const floatS* rstd, // (B, G)
                        int B, int HW, int C, int G, activation_t act, stream_t s);

// Adaptive GroupNorm: scale and shift are each image's own, activations that come from elsewhere in the network;
// out = scale_bc xhat + shift_bc. Rows of scale, shift and of their gradients are `stride` values apart: pieces of rows
// that hold those of several norms.          (Yu et al. 2024, MAGVIT-v2; GigaTok vq/blocks.py)               3 passes
void adaptive_groupnorm_forward(floatX* out,                // (B, HW, C)
                                floatS* mean, floatS* rstd, // (B, G)
                                const floatX* x,            // (B, HW, C)
                                const floatX* scale,        // (B, C)
                                const floatX* shift,        // (B, C)
                                size_t stride, int B, int HW, int C, int G, double eps, stream_t s);

// dx = the gradient through the norm; dscale = sum over HW of dout xhat; dshift = sum over HW of dout.
void adaptive_groupnorm_backward(floatX* dx,                             // (B, HW, C)
                                 floatX* dscale, floatX* dshift,         // (B, C)
                                 const floatX* dout,                     // (B, HW, C)
                                 const floatX* x,                        // (B, HW, C)
                                 const floatX* scale,                    // (B, C)
                                 const floatS* mean, const floatS* rstd, // (B, G)
                                 size_t stride, int B, int HW, int C, int G, stream_t s);

// What such scales and shifts are made from: mean and deviation of each channel over the positions of an image,
//   mean = sum x / HW;  deviation = sqrt(sum (x - mean)^2 / (HW - 1) + eps),  HW at least 2           dev/cpu/moments.h
void channel_moments_forward(floatS* mean, floatS* deviation, // (B, C)
                             const floatX* x,                 // (B, HW, C)
                             int B, int HW, int C, double eps, stream_t s);

// dx = add + dmean / HW + ddeviation (x - mean) / ((HW - 1) deviation). In place: dx may be add.
void channel_moments_backward(floatX* dx,                                      // (B, HW, C)
                              const floatX* dmean, const floatX* ddeviation,   // (B, C)
                              const floatX* add,                               // (B, HW, C) or NULL
                              const floatX* x,                                 // (B, HW, C)
                              const floatS* mean, const floatS* deviation,     // (B, C)
                              int B, int HW, int C, stream_t s);

// BatchNorm and LeakyReLU. train: mean and biased variance of each channel over the images of one chunk; else the
// running statistics (mean and rstd are then written from them, the same for every chunk).
void batchnorm_leaky_forward(floatX* out,                 // (B, HW, C)
                             floatS* mean, floatS* rstd,  // (B / chunk, C)
                             const floatX* x,             // (B, HW, C)
                             const floatX* weight,        // (C)
                             const floatX* bias,          // (C)
                             const floatS* running_mean, const floatS* running_var, // (C), read when train is 0
                             int B, int HW, int C, int chunk, double eps, int train, stream_t s);

// train: dx = weight rstd (dy - mean(dy) - xhat mean(dy xhat)) with dy = dout masked by the LeakyReLU, means over the
// chunk; else dx = weight rstd dy. dweight += sum dy xhat; dbias += sum dy.
void batchnorm_leaky_backward(floatX* dx,                             // (B, HW, C)
                              floatS* dweight, floatS* dbias,         // (C) or both NULL
                              const floatX* dout,                     // (B, HW, C)
                              const floatX* x,                        // (B, HW, C)
                              const floatX* weight,                   // (C)
                              const floatX* bias,                     // (C)
                              const floatS* mean, const floatS* rstd, // (B / chunk, C)
                              int B, int HW, int C, int chunk, int train, stream_t s);

// running <- (1 - momentum) running + momentum statistic, the variance unbiased: var n / (n - 1), n = values a channel.
// Takes the first chunk's statistics, as distributed training keeps those of rank 0.
void batchnorm_update_running(floatS* running_mean, floatS* running_var, // (C) in place
                              const floatS* mean, const floatS* rstd,    // (C) of the first chunk
                              size_t n, int C, double eps, double momentum, stream_t s);

// ---------------------------------------------------------------------------------------------------------------------
// Attention                                                                                        dev/cpu/attention.h

// For each image and head: out_i = sum_j softmax_j(q_i k_j / sqrt(HS)) v_j. Prefix tokens are ordinary tokens. lse_i =
// log sum_j exp(q_i k_j / sqrt(HS)) is all that the backward needs besides inputs and outputs. (B, NH, T, T) is never
// stored. Where the first tokens of an image are padding, the sum over j begins at its first_key: out does not depend on
// keys and values before it, and their gradients are zero. Every token asks; what padding gets is of no use, and finite
// if its query is.                                                                                  2 B NH T^2 HS MAC
void attention_forward(floatX* out,          // (B, T, NH, HS)
                       floatS* lse,          // (B, NH, T)
                       const floatX* qkv,    // (B, T, 3, NH, HS)
                       const int* first_key, // (B) device memory, each in [0, T); or NULL for 0
                       int B, int T, int NH, int HS, stream_t s);

// With P = exp(S - lse):
//   dv = P^T dout;  dS = P (dout v^T - sum_c dout_c out_c);  dq = dS k / sqrt(HS);  dk = dS^T q / sqrt(HS)
void attention_backward(floatX* dqkv,         // (B, T, 3, NH, HS)
                        const floatX* dout,   // (B, T, NH, HS)
                        const floatX* qkv,    // (B, T, 3, NH, HS)
                        const floatX* out,    // (B, T, NH, HS)
                        const floatS* lse,    // (B, NH, T)
                        const int* first_key, // (B) device memory, or NULL for 0
                        int B, int T, int NH, int HS, stream_t s);

// Attention of text encoders, forward only. Scores S_ij = scale q_i k_j + bias[T - 1 + j - i, h], where there is a bias
// of the distance from query to key, over the keys first_b <= j < T and, where causal, j <= i. A query without a key
// gets zeros.                              (Raffel et al. 2020; Radford et al. 2021)              2 B NH T^2 HS MAC
void text_attention_forward(floatX* out,        // (B, T, NH, HS)
                            const floatX* qkv,  // (B, T, 3, NH, HS)
                            const floatS* bias, // (2 T - 1, NH) or NULL
                            const int* first,   // (B) device memory, or NULL for 0
                            double scale, int causal, int B, int T, int NH, int HS, stream_t s);

// ---------------------------------------------------------------------------------------------------------------------
// From an image to tokens                                                                              dev/cpu/embed.h

// out = bytes / 127.5 - 1
void image_from_bytes(floatX* out, const uint8_t* bytes, size_t n, stream_t s);

// Bilinear, half-pixel centres, no antialias (PyTorch: align_corners=False), with an affine map of the channels behind
// it. Per axis: src = max((o + 1/2) size / out_size - 1/2, 0), in exact integer arithmetic. Equal sizes: the affine map
// alone.
void resize_bilinear_forward(floatX* out,     // (B, OH, OW, 3)
                             const floatX* x, // (B, H, W, 3)
                             channel_affine_t affine, int B, int H, int W, int OH, int OW, stream_t s);

// The columns of a patch embedding, in the order of a [D, C, patch, patch] weight:
//   out[b, gy GW + gx, (c patch + ky) patch + kx] = x[b, gy patch + ky, gx patch + kx, c]
// No backward: what is embedded (an image, a noised latent) needs no gradient.
void patchify_forward(floatX* out,     // (B, (H/patch) (W/patch), C patch^2)
                      const floatX* x, // (B, H, W, C)
                      int B, int H, int W, int C, int patch, stream_t s);

// Tokens become a map; inside a token the order is (ky, kx, c). Of a map it is depth-to-space:
//   out[b, gy patch + ky, gx patch + kx, c] = x[b, gy GW + gx, (ky patch + kx) C + c].  The backward is the way back.
void unpatchify_forward(floatX* out,     // (B, H, W, C)
                        const floatX* x, // (B, (H/patch) (W/patch), patch^2 C)
                        int B, int H, int W, int C, int patch, stream_t s);
void unpatchify_backward(floatX* dx,         // (B, (H/patch) (W/patch), patch^2 C)
                         const floatX* dout, // (B, H, W, C)
                         int B, int H, int W, int C, int patch, stream_t s);

// Position table from grid to (GH, GW): separable bicubic with antialias, a = -0.5 (timm layers/pos_embed.py). The
// first `prefix` rows are copied.
void position_resample_forward(floatX* out,       // (prefix + GH GW, C)
                               const floatX* pos, // (prefix + grid grid, C)
                               int prefix, int grid, int GH, int GW, int C, stream_t s);
void position_resample_backward(floatS* dpos,       // (prefix + grid grid, C) +=
                                const floatS* dout, // (prefix + GH GW, C)
                                int prefix, int grid, int GH, int GW, int C, stream_t s);

// The token sequence: class token (if any), registers, patches. pos has N rows, or N + 1 with pos_class = 1: then its
// first row is added to the class token; pos NULL, and dpos in the backward: nothing is added (with pos_class = 0).
// T = (cls ? 1 : 0) + R + N.
void tokens_forward(floatS* out,           // (B, T, C)
                    const floatX* patches, // (B, N, C)
                    const floatX* cls,     // (C) or NULL
                    const floatX* reg,     // (R, C) or NULL when R is 0
                    const floatX* pos,     // (pos_class + N, C) or NULL
                    int B, int N, int C, int R, int pos_class, stream_t s);
void tokens_backward(floatX* dpatches,           // (B, N, C)
                     floatS* dcls, floatS* dreg, // (C), (R, C) += or NULL
                     floatS* dpos,               // (pos_class + N, C) += or NULL
                     const floatS* dout,         // (B, T, C)
                     int B, int N, int C, int R, int pos_class, stream_t s);

// The tokens of a text: out[b, t] = table[ids[b, t]] + pos[t]. ids are in [0, rows of the table): callers check. Where
// the table is a map, its rows are gathered. Forward only.
void embedding_rows(floatS* out,         // (B, T, C)
                    const floatX* table, // (rows, C)
                    const floatX* pos,   // (T, C) or NULL
                    const int* ids,      // (B, T) device memory
                    int B, int T, int C, stream_t s);

// Leaves out the first P tokens of each image; the backward writes zeros there.
void drop_prefix_forward(floatX* out,     // (B, T - P, C)
                         const floatX* x, // (B, T, C)
                         int B, int T, int P, int C, stream_t s);
void drop_prefix_backward(floatX* dx,         // (B, T, C)
                          const floatX* dout, // (B, T - P, C)
                          int B, int T, int P, int C, stream_t s);

// Two sequences of an image become one, the tokens of a before those of b, and come apart again. Each is the backward
// of the other. Of activations, and of the residual stream.
void concat_tokens(floatX* out,     // (B, P + Q, C)
                   const floatX* a, // (B, P, C)
                   const floatX* b, // (B, Q, C)
                   int B, int P, int Q, int C, stream_t s);
void split_tokens(floatX* a,       // (B, P, C)
                  floatX* b,       // (B, Q, C)
                  const floatX* x, // (B, P + Q, C)
                  int B, int P, int Q, int C, stream_t s);
void concat_stream(floatS* out,     // (B, P + Q, C)
                   const floatS* a, // (B, P, C)
                   const floatS* b, // (B, Q, C)
                   int B, int P, int Q, int C, stream_t s);
void split_stream(floatS* a,       // (B, P, C)
                  floatS* b,       // (B, Q, C)
                  const floatS* x, // (B, P + Q, C)
                  int B, int P, int Q, int C, stream_t s);

// Mean over the tokens of each image (heads of the classifiers).
void mean_tokens_forward(floatX* out, const floatX* x, int B, int T, int C, stream_t s);     // (B, C) <- (B, T, C)
void mean_tokens_backward(floatX* dx, const floatX* dout, int B, int T, int C, stream_t s);  // (B, T, C) <- (B, C)

// ---------------------------------------------------------------------------------------------------------------------
// Convolution and resolution                                                                            dev/cpu/conv.h

//   out[b,i,j,o] = act(bias_o + sum_{u,v,c} x[b, stride i + u - pad_top, stride j + v - pad_left, c] weight[o,u,v,c])
//                  + residual[b,i,j,o]
// `act` is ACT_NONE, ACT_RELU or ACT_LEAKY. An implicit matrix product in tiles: im2col is never stored whole.
// Kernels may be rectangles. Where conv.out_row is larger than OC, out and residual are channels of wider maps: that is
// how branches are concatenated, at no cost. The backwards' maps have rows of their own.         B OH OW OC KH KW C MAC
void conv2d_forward(floatX* out,            // (B, OH, OW, out_row)
                    const floatX* x,        // (B, H, W, C)
                    const floatX* weight,   // (OC, KH, KW, C)
                    const floatX* bias,     // (OC) or NULL
                    const floatX* residual, // like out, or NULL
                    int B, int H, int W, conv_t conv, activation_t act, stream_t s);

// dx = the transposed convolution of dout. Where x itself is the output of a ReLU or LeakyReLU (`act`), `mask` is x and
// the derivative of that activation is applied on the way out: dx *= (x > 0 ? 1 : 0 or LEAKY_SLOPE). mask NULL: not
// applied. (dout is the gradient before this convolution's own activation: its successor has applied it in the same
// way.)
void conv2d_backward_data(floatX* dx,           // (B, H, W, C)
                          const floatX* dout,   // (B, OH, OW, OC)
                          const floatX* weight, // (OC, KH, KW, C)
                          const floatX* mask,   // (B, H, W, C) or NULL
                          int B, int H, int W, conv_t conv, activation_t act, stream_t s);

// dweight += sum over images and positions of dout (x) x;  dbias += sum of dout
void conv2d_backward_weight(floatS* dweight,    // (OC, KH, KW, C)
                            floatS* dbias,      // (OC) or NULL
                            const floatX* dout, // (B, OH, OW, OC)
                            const floatX* x,    // (B, H, W, C)
                            int B, int H, int W, conv_t conv, stream_t s);

// 2x2 maximum, stride 2; an odd last row or column is left out.
void maxpool_forward(floatX* out,     // (B, H/2, W/2, C)
                     const floatX* x, // (B, H, W, C)
                     int B, int H, int W, int C, stream_t s);

// dx = [x > 0] (add + dout at the first maximum of each window): x is the output of a ReLU, whose derivative is applied
// here. `add` is the gradient of a tap at x (LPIPS), or NULL. In place: dx may be add.
void maxpool_relu_backward(floatX* dx,         // (B, H, W, C)
                           const floatX* dout, // (B, H/2, W/2, C)
                           const floatX* add,  // (B, H, W, C) or NULL
                           const floatX* x,    // (B, H, W, C)
                           int B, int H, int W, int C, stream_t s);

// Nearest neighbour, twice the size.
void upsample_forward(floatX* out, const floatX* x, int B, int H, int W, int C, stream_t s); // (B,2H,2W,C) <- (B,H,W,C)
void upsample_backward(floatX* dx, const floatX* dout, int B, int H, int W, int C,
                       stream_t s); // (B,H,W,C) <- (B,2H,2W,C)

// The pools of Inception-v3, forward only.                                                              dev/cpu/pool.h
// 3x3 maximum with `pad` cells of -infinity around x, 0 or 1; OH = (H + 2 pad - 3) / stride + 1, rounded down. A NaN is
// the maximum. `row`: values from pixel to pixel of out, C or more, as conv_t's out_row.                  1 + 1 passes
void maxpool3_forward(floatX* out,     // (B, OH, OW, row), C of them
                      const floatX* x, // (B, H, W, C)
                      int B, int H, int W, int C, int stride, int pad, int row, stream_t s);
// 3x3 mean of the cells that are there, stride 1: of 4 in corners, 6 at edges, 9 inside.
void avgpool3_forward(floatX* out,     // (B, H, W, C)
                      const floatX* x, // (B, H, W, C)
                      int B, int H, int W, int C, stream_t s);
// Features of an image, in full precision: the mean over its positions; and the first n channels of each position.
void mean_positions_forward(floatS* out,     // (B, C)
                            const floatX* x, // (B, HW, C)
                            int B, int HW, int C, stream_t s);
void first_channels_forward(floatS* out,     // (N, n)
                            const floatX* x, // (N, C)
                            size_t N, int C, int n, stream_t s);
// out = x weight^T in full precision, each row by itself: the same bits whatever N is.                       N C OC MAC
void features_matmul_forward(floatS* out,          // (N, OC)
                             const floatS* x,      // (N, C)
                             const floatX* weight, // (OC, C)
                             size_t N, int C, int OC, stream_t s);
// Bytes to the input of the Inception network: two taps an axis, no antialiasing. With the sizes' ratio r = H / OH in
// fp32, row i lies between lo = floor(i r) and lo + 1 (TF), or floor(max((i + 1/2) r - 1/2, 0)) (PT), cut at H - 1.
void bytes_resize_forward(floatX* out,          // (B, OH, OW, 3)
                          const uint8_t* bytes, // (B, H, W, 3)
                          inception_input_t input, int B, int H, int W, int OH, int OW, stream_t s);

// ---------------------------------------------------------------------------------------------------------------------
// Losses                                                                                                dev/cpu/loss.h
// Forwards write one value an image (B) or one a chunk (B / chunk); backwards take `scale`, the derivative of the
// objective by that value.

// loss_b = sum |xhat - x|
void l1_forward(floatS* loss,       // (B)
                const floatX* xhat, // (B, n)
                const floatX* x,    // (B, n)
                int B, size_t n, stream_t s);

// The gradient of the whole reconstruction term at the image: dxhat = scale sign(xhat - x) + affine.scale_c dscaled,
// where dscaled is the gradient at LPIPS's scaled input (affine is that scaling), or NULL. sign(0) = 0.
void l1_backward(floatX* dxhat,         // (B, HW, 3)
                 const floatX* xhat,    // (B, HW, 3)
                 const floatX* x,       // (B, HW, 3)
                 const floatX* dscaled, // (B, HW, 3) or NULL
                 channel_affine_t affine, double scale, int B, size_t HW, stream_t s);

// One tap of LPIPS: with u = f / (|f| + 1e-10), v = g / (|g| + 1e-10) over channels at each position,
// loss_b += mean over positions of sum_c weight_c (u_c - v_c)^2.
// (lpips package; taming-transformers lpips.py)
void lpips_tap_forward(floatS* loss,         // (B) +=
                       const floatX* f,      // (B, HW, C)
                       const floatX* g,      // (B, HW, C)
                       const floatX* weight, // (C)
                       int B, int HW, int C, stream_t s);

// df = scale d(loss_b)/df, masked by f > 0: f is the output of a ReLU, whose derivative is applied here.
void lpips_tap_backward(floatX* df,           // (B, HW, C)
                        const floatX* f,      // (B, HW, C)
                        const floatX* g,      // (B, HW, C)
                        const floatX* weight, // (C)
                        double scale, int B, int HW, int C, stream_t s);

// mean_k = mean of the n values of group k (logits of a chunk; L_G = -mean of the fake logits).
void group_mean_forward(floatS* mean,    // (groups)
                        const floatX* x, // (groups, n)
                        int groups, size_t n, stream_t s);
void group_mean_backward(floatX* dx,     // (groups, n) = scale / n
                         double scale, int groups, size_t n, stream_t s);

// Hinge loss of the discriminator: loss_k = (mean relu(1 - real) + mean relu(1 + fake)) / 2
void hinge_forward(floatS* loss,        // (groups)
                   const floatX* real,  // (groups, n)
                   const floatX* fake,  // (groups, n)
                   int groups, size_t n, stream_t s);
void hinge_backward(floatX* dreal, floatX* dfake, // (groups, n)
                    const floatX* real,           // (groups, n)
                    const floatX* fake,           // (groups, n)
                    double scale, int groups, size_t n, stream_t s);

// Semantic preservation: mean of (z - z0)^2 over the n values of a chunk.  AlignTok eq. 4
void semantic_l2_forward(floatS* loss,     // (groups)
                         const floatX* z,  // (groups, n)
                         const floatX* z0, // (groups, n)
                         int groups, size_t n, stream_t s);
void semantic_l2_backward(floatX* dz,       // (groups, n)
                          const floatX* z,  // (groups, n)
                          const floatX* z0, // (groups, n)
                          double scale, int groups, size_t n, stream_t s);

// Its cosine variant: mean over the rows of a chunk of 1 - cos(z_t, z0_t), norms floored at 1e-8.
void semantic_cosine_forward(floatS* loss,     // (groups)
                             const floatX* z,  // (groups, rows, C)
                             const floatX* z0, // (groups, rows, C)
                             int groups, size_t rows, int C, stream_t s);
void semantic_cosine_backward(floatX* dz,       // (groups, rows, C)
                              const floatX* z,  // (groups, rows, C)
                              const floatX* z0, // (groups, rows, C)
                              double scale, int groups, size_t rows, int C, stream_t s);

// Diagonal Gaussian posterior (LDM distributions.py): moments = (mu, lambda) along channels, lambda clamped to
// [-30, 20], z = mu + exp(lambda / 2) noise;  kl_b = sum (mu^2 + exp(lambda) - 1 - lambda) / 2.
void posterior_forward(floatX* z,             // (B, T, C)
                       floatS* kl,            // (B)
                       const floatX* moments, // (B, T, 2C)
                       const floatS* noise,   // (B, T, C), or NULL for z = mu
                       int B, int T, int C, stream_t s);
// dmoments from dz and from kl_scale * sum_b kl_b; the clamp passes no gradient outside. noise NULL as in the forward.
void posterior_backward(floatX* dmoments,      // (B, T, 2C)
                        const floatX* dz,      // (B, T, C)
                        const floatX* moments, // (B, T, 2C)
                        const floatS* noise,   // (B, T, C)
                        double kl_scale, int B, int T, int C, stream_t s);

// VA-VAE's alignment loss (LightningDiT contperceptual.py), per image with N tokens, hats are unit rows:
//   l1 = mean_ij relu(|zhat_i zhat_j - that_i that_j| - margin_distance)
//   l2 = mean_i relu(1 - margin_cosine - that_i zhat_i)
//   loss_k = mean over the images of chunk k of l1 + l2
void vf_forward(floatS* loss,          // (B / chunk)
                const floatX* z,       // (B, N, C) projected latent
                const floatX* teacher, // (B, N, C)
                double margin_distance, double margin_cosine, int B, int N, int C, int chunk, stream_t s);
void vf_backward(floatX* dz,            // (B, N, C)
                 const floatX* z,       // (B, N, C)
                 const floatX* teacher, // (B, N, C)
                 double margin_distance, double margin_cosine, double scale, int B, int N, int C, int chunk,
                 stream_t s);

// loss_b = -log softmax(logits_b)[label_b];  dlogits = scale (softmax - onehot). One pass for both. In place:
// dlogits may be logits.
void cross_entropy(floatS* loss,         // (B)
                   floatX* dlogits,      // (B, C) or NULL
                   const floatX* logits, // (B, C)
                   const int* labels,    // (B)
                   double scale, int B, int C, stream_t s);

// ---------------------------------------------------------------------------------------------------------------------
// The diffusion transformer                                           dev/cpu/modulate.h, rope.h, swiglu.h, condition.h
// Its residual stream is floatS, as in the reference, whose position table in fp32 makes it so. Modulation vectors
// (shift, scale, gate) are pieces of the rows of one matrix that holds those of all blocks: image b's vector begins
// `stride` values behind that of image b - 1, and so do their gradients.

// A norm and modulation: n = (x - mean) rstd weight,  rstd = 1 / sqrt(mean over C of (x - mean)^2 + eps);
// out = n (1 + scale) + shift. LayerNorm where `mean` is given, RMSNorm (mean 0) where it is NULL; weight NULL: 1.
// (Ba et al. 2016; Zhang & Sennrich 2019; Peebles & Xie 2023; LightningDiT models/lightningdit.py)
void norm_modulate_forward(floatX* out,          // (B, T, C)
                           floatS* mean,         // (B, T) LayerNorm, or NULL: RMSNorm
                           floatS* rstd,         // (B, T)
                           const floatS* x,      // (B, T, C)
                           const floatX* weight, // (C) or NULL for 1
                           const floatX* shift,  // (B, C) or NULL for 0
                           const floatX* scale,  // (B, C)
                           size_t stride, int B, int T, int C, double eps, stream_t s);

// dx += the gradient through modulation and norm: the residual stream collects. dweight += over all rows; dshift = sum
// over T of dout; dscale = sum over T of dout n.
void norm_modulate_backward(floatS* dx,                     // (B, T, C) +=
                            floatS* dweight,                // (C) or NULL
                            floatX* dshift,                 // (B, C) or NULL
                            floatX* dscale,                 // (B, C)
                            const floatX* dout,             // (B, T, C)
                            const floatS* x,                // (B, T, C)
                            const floatX* weight,           // (C) or NULL for 1
                            const floatX* scale,            // (B, C)
                            const floatS* mean,             // (B, T) or NULL, as in the forward
                            const floatS* rstd,             // (B, T)
                            size_t stride, int B, int T, int C, stream_t s);

// A gated branch and the norm that follows it, in one pass: sum = x + gate branch;  out = the operation above of sum.
// In place: sum may be x. Where no norm follows, out is NULL, and so are mean, rstd, shift and scale.
void gated_norm_modulate_forward(floatS* sum,          // (B, T, C)
                                 floatX* out,          // (B, T, C)
                                 floatS* mean,         // (B, T) LayerNorm, or NULL: RMSNorm
                                 floatS* rstd,         // (B, T)
                                 const floatS* x,      // (B, T, C) the residual stream
                                 const floatX* branch, // (B, T, C)
                                 const floatX* gate,   // (B, C)
                                 const floatX* weight, // (C) or NULL for 1
                                 const floatX* shift,  // (B, C) or NULL for 0
                                 const floatX* scale,  // (B, C)
                                 size_t stride, int B, int T, int C, double eps, stream_t s);

// dsum += the gradient through modulation and norm (dsum then is the gradient of the stream, above and below the
// branch); dbranch = gate dsum;  dgate = sum over T of dsum branch;  dweight, dshift, dscale as above. Where no norm
// follows, dout is NULL, and so are sum, scale, mean, rstd, dshift and dscale.
void gated_norm_modulate_backward(floatS* dsum,           // (B, T, C) +=
                                  floatX* dbranch,        // (B, T, C)
                                  floatX* dgate,          // (B, C)
                                  floatS* dweight,        // (C) or NULL
                                  floatX* dshift,         // (B, C) or NULL
                                  floatX* dscale,         // (B, C)
                                  const floatX* dout,     // (B, T, C)
                                  const floatS* sum,      // (B, T, C)
                                  const floatX* branch,   // (B, T, C)
                                  const floatX* gate,     // (B, C)
                                  const floatX* weight,   // (C) or NULL for 1
                                  const floatX* scale,    // (B, C)
                                  const floatS* mean,     // (B, T) or NULL, as in the forward
                                  const floatS* rstd,     // (B, T)
                                  size_t stride, int B, int T, int C, stream_t s);

// Queries and keys on their way to attention, in place. With QK-norm each head vector z becomes z rstd weight,
// rstd = 1 / sqrt(mean over HS of z^2 + eps); then pairs are rotated, pair p of token t by the angle whose cosine and
// sine are rope[t, p]:  (a, b) -> (a cos - b sin, b cos + a sin). Values (v) are left alone. `raw` gets z and rstd is
// kept, both for the backward; NULL where there is none. Without QK-norm all four are NULL.        (Su et al. 2021)
void qknorm_rope_forward(floatX* qkv,            // (B, T, 3, NH, HS) in place
                         floatX* raw,            // (B, T, 2, NH, HS) or NULL
                         floatS* rstd,           // (B, T, 2, NH) or NULL, as raw
                         const floatX* q_weight, // (HS) or NULL: no QK-norm
                         const floatX* k_weight, // (HS) or NULL, as q_weight
                         const floatS* rope,     // (T, HS / 2, 2)
                         int B, int T, int NH, int HS, rope_pairs_t pairs, double eps, stream_t s);

// In place: on entry the gradient behind the rotation, on return that in front of the norm. dq_weight, dk_weight +=.
void qknorm_rope_backward(floatX* dqkv,           // (B, T, 3, NH, HS) in place
                          floatS* dq_weight,      // (HS) or NULL
                          floatS* dk_weight,      // (HS) or NULL
                          const floatX* raw,      // (B, T, 2, NH, HS) or NULL: no QK-norm
                          const floatS* rstd,     // (B, T, 2, NH)
                          const floatX* q_weight, // (HS)
                          const floatX* k_weight, // (HS)
                          const floatS* rope,     // (T, HS / 2, 2)
                          int B, int T, int NH, int HS, rope_pairs_t pairs, stream_t s);

// `rope` for P tokens that are not turned and a grid behind them. Token (y, x) lies at ((2 y + 1) / GH - 1,
// (2 x + 1) / GW - 1), whatever the size of the grid; pair p < HS / 4 turns by 2 pi base^(-4 p / HS) times the first,
// pair HS / 4 + p as much times the second. HS is a multiple of 4.                              (Simeoni et al. 2025)
void rope_grid(floatS* rope, // (P + GH GW, HS / 2, 2)
               int P, int GH, int GW, int HS, double base, stream_t s);

// SiLU(a) = a sigmoid(a), and SwiGLU: out = SiLU(first half of the row) * second half.   (Shazeer 2020)       3 passes
void silu_forward(floatX* out, const floatX* x, size_t n, stream_t s);                      // (n)
void silu_backward(floatX* dx, const floatX* dout, const floatX* x, size_t n, stream_t s);  // (n) dx may be dout
void swiglu_forward(floatX* out,     // (N, F)
                    const floatX* x, // (N, 2F)
                    size_t N, int F, stream_t s);
// da = dout b sigmoid(a) (1 + a (1 - sigmoid(a)));  db = dout SiLU(a);  dbias += sum over rows of dx           5 passes
void swiglu_backward(floatX* dx,         // (N, 2F)
                     floatS* dbias,      // (2F) of the linear layer in front, or NULL
                     const floatX* dout, // (N, F)
                     const floatX* x,    // (N, 2F)
                     size_t N, int F, stream_t s);

// The same with the tanh form of GELU in the place of SiLU, forward only.                      (Shazeer 2020)  3 passes
void geglu_forward(floatX* out,     // (N, F)
                   const floatX* x, // (N, 2F)
                   size_t N, int F, stream_t s);

// Features of a time: out_k = cos(u f_k), out_(half + k) = sin(u f_k), u = scale t, f_k = 10000^(-k / half), k < half.
void timestep_features(floatX* out,     // (B, 2 half)
                       const floatS* t, // (B)
                       double scale, int B, int half, stream_t s);

// What all blocks are modulated by: c = time + table[label];  out = SiLU(c). Labels are in [0, rows): callers check.
void condition_forward(floatX* out,         // (B, C)
                       floatS* c,           // (B, C) kept for the backward
                       const floatX* time,  // (B, C)
                       const floatX* table, // (rows, C)
                       const int* labels,   // (B) device memory
                       int rows, int B, int C, stream_t s);
// dtime = dout SiLU'(c);  dtable[label_b] += dtime_b, images of one label in the order of b.
void condition_backward(floatX* dtime,      // (B, C)
                        floatS* dtable,     // (rows, C) += or NULL
                        const floatX* dout, // (B, C)
                        const floatS* c,    // (B, C)
                        const int* labels,  // (B) device memory
                        int rows, int B, int C, stream_t s);

// The same where the conditions are vectors of the image's own: c = a + b + g;  out = SiLU(c).
void condition_sum_forward(floatX* out,     // (B, C)
                           floatS* c,       // (B, C) kept for the backward
                           const floatX* a, // (B, C)
                           const floatX* b, // (B, C) or NULL for 0
                           const floatX* g, // (B, C) or NULL for 0
                           int B, int C, stream_t s);
// dsum = dout SiLU'(c), the gradient of each of them.
void condition_sum_backward(floatX* dsum,       // (B, C)
                            const floatX* dout, // (B, C)
                            const floatS* c,    // (B, C)
                            int B, int C, stream_t s);

// The start of the residual stream: out = x + pos, and the way back, dx = dout rounded to floatX (any rounding at all:
// the input of the network while sampling goes through it too).
void position_add_forward(floatS* out,       // (B, T, C)
                          const floatX* x,   // (B, T, C)
                          const floatS* pos, // (T, C)
                          int B, int T, int C, stream_t s);
void to_floatX(floatX* out, const floatS* x, size_t n, stream_t s); // (n)

// ---------------------------------------------------------------------------------------------------------------------
// Flow matching                                                                                         dev/cpu/flow.h
// Time 1 is data, time 0 is noise; the network predicts the velocity.          (Lipman et al. 2023; SiT; LightningDiT)

// A point of the straight path and its velocity: xt = t x1 + (1 - t) x0;  u = x1 - x0, where x0 are the standard normal
// numbers of (seed, stream_id, step): value i of image b is element (first_row + b) n + i.
void flow_path(floatX* xt,       // (B, n)
               floatS* u,        // (B, n)
               const floatS* x1, // (B, n)
               const floatS* t,  // (B)
               int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step, uint64_t first_row, stream_t s);

// Both losses of an image and their gradient, in one pass:
//   mse_b = mean over the image of (v - u)^2;  cosine_b = mean over positions of 1 - v.u / (max(|v|, e) max(|u|, e)),
//   norms over C, e = 1e-8; both, and so dv, times weight_b
//   dv = scale_mse d mse_b / dv + scale_cosine d cosine_b / dv
// The clamp passes the gradient as PyTorch has it: where |v| = 0, d(1 - cos)/dv = -(u / max(|u|, e)) / e, not 0; where
// 0 < |v| <= e it is -(u / U / e - (v.u / U) v / (|v| e^2)), U = max(|u|, e).
void flow_loss(floatS* mse, floatS* cosine,             // (B)
               floatX* dv,                              // (B, HW, C) or NULL
               const floatX* v,                         // (B, HW, C)
               const floatS* u,                         // (B, HW, C)
               const floatS* weight,                    // (B) or NULL for 1
               double scale_mse, double scale_cosine, int B, int HW, int C, stream_t s);

// Classifier-free guidance: in the first `channels` channels out = null + w_b (cond - null), in the others, and where
// w_b is 1, exactly cond. `null` and w NULL: out = cond. The first C of the OC channels of a network's output are
// taken. (Ho & Salimans 2022; three channels: LightningDiT, as DiT)
void flow_guide(floatS* out,        // (B, HW, C)
                const floatX* cond, // (B, HW, OC)
                const floatX* null, // (B, HW, OC) or NULL
                const floatS* w,    // (B) or NULL
                int channels, int B, int HW, int C, int OC, stream_t s);

// Guidance that keeps the energy of an image's velocity: out <- out |cond| / |out|, norms over the image, of cond over
// its first C channels. Where the norms are equal (w = 1), and where out is zero, out stays as it is, bit for bit.
// (Zhang et al. 2024, EP-CFG)
void flow_guide_energy(floatS* out,        // (B, HW, C) in place
                       const floatX* cond, // (B, HW, OC)
                       int B, int HW, int C, int OC, stream_t s);

// One stage of a Runge-Kutta method, image b with its own step: out = x + h_b sum_i a_i k_i. In place: out may be x.
enum { FLOW_STAGES = 7 };
void flow_combine(floatS* out,       // (B, n)
                  const floatS* x,   // (B, n)
                  const floatS* k,   // (stages, B, n)
                  const floatS* h,   // (B) device memory
                  const double* a,   // (stages) host memory, stages <= FLOW_STAGES
                  int stages, int B, size_t n, stream_t s);

// A step of a stochastic process: x <- x_share x + out_share e + exp(l / 2) noise, where e are the first C channels of
// `out`, and l the logarithm of the step's variance. Where OC is 2 C, the other channels say it by a number f between
// about -1 and 1: l = (1 - f) / 2 log_least + (1 + f) / 2 log_most; where OC is C, l = log_least. noise NULL: without.
// (Ho et al. 2020; the variance: Nichol & Dhariwal 2021)
void diffusion_step(floatS* x,           // (B, HW, C) in place
                    const floatS* out,   // (B, HW, OC)
                    const floatS* noise, // (B, HW, C) or NULL
                    double x_share, double out_share, double log_least, double log_most, int B, int HW, int C, int OC,
                    stream_t s);

// A normalised latent becomes one that the decoder takes: z = x std + mean, per channel.
void latent_denormalise(floatX* z,                            // (N, C)
                        const floatS* x,                      // (N, C)
                        const floatS* mean, const floatS* std, // (C)
                        size_t N, int C, stream_t s);

// ---------------------------------------------------------------------------------------------------------------------
// Adaptive weights, optimiser, random numbers                                          dev/cpu/optimizer.h, random.h

// out_k = sum of the squares of the n values of group k. In floatS from floatS gradients, deterministic.
void sum_squares(floatS* out,     // (groups)
                 const floatS* x, // (groups, n)
                 int groups, size_t n, stream_t s);

// The weight that makes a loss pull as hard at a tensor as the reconstruction does:
//   omega_k = weight clip(|g_rec| / (|g_other| + 1e-4), 0, max_ratio),  |g| = sqrt(squares_k) * gradient_scale
// gradient_scale undoes the averaging over chunks. clamped_k = 1 where the clip acted.  VQGAN eq. 7; contperceptual.py
void adaptive_weight(floatS* omega, floatS* clamped,  // (groups)
                     const floatS* squares_rec,       // (groups)
                     const floatS* squares_other,     // (groups)
                     double weight, double max_ratio, double gradient_scale, int groups, stream_t s);

// out = a + omega_k b for the values of group k. In place: out may be a or b.
void add_scaled_groups(floatX* out,         // (groups, n)
                       const floatX* a,     // (groups, n)
                       const floatX* b,     // (groups, n)
                       const floatS* omega, // (groups)
                       int groups, size_t n, stream_t s);
// The same for parameter gradients: out += a_k + omega_k b_k, summed over the groups. b and
// omega are given both, or neither: out += a_k.
void accumulate_scaled_groups(floatS* out,         // (n) +=
                              const floatS* a,     // (groups, n)
                              const floatS* b,     // (groups, n) or NULL
                              const floatS* omega, // (groups) or NULL
                              int groups, size_t n, stream_t s);

// One step of Adam with decoupled decay, and of two exponential averages, in one pass over flat buffers, where g is
// grad times adam.grad_scale (clipping by the global norm):
//   m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
//   w <- w (1 - lr decay) - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//   ema_i <- w + ema_beta_i (ema_i - w)                     a constant stays exactly constant in this form
// (Kingma & Ba 2015; Loshchilov & Hutter 2019.)
void adam_update(floatX* weight,               // (n) what the operations read; may be the memory of master
                 floatS* master,               // (n)
                 floatS* m, floatS* v,         // (n)
                 floatS* ema0, floatS* ema1,   // (n) or NULL
                 const floatS* grad,           // (n)
                 size_t n, adam_t adam, stream_t s);

// Exchanges the weights with another set of them, a moving average; a second call puts them back, bit for bit.
void exchange_weights(floatX* weight, // (n) written from the new master; may be the memory of master
                      floatS* master, // (n) in place
                      floatS* other,  // (n) in place
                      size_t n, stream_t s);

// Standard normal numbers; value i of row b is a function of (seed, stream_id, step, rows[b], i) alone.
void normal_rows(floatS* out,          // (B, n)
                 const uint64_t* rows, // (B) device memory
                 int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step, stream_t s);

// Dropout (Srivastava et al. 2014): out = scale / (1 - p) x where a value is kept, else 0. Value i of row b is dropped
// with probability p, as a function of (seed, stream_id, step, first_row + b, i) alone: nothing has to be kept for the
// backward.                                                                                                  2 passes
void dropout_forward(floatX* out,     // (B, n)
                     const floatX* x, // (B, n)
                     double p, double scale, int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step,
                     uint64_t first_row, stream_t s);
// dx += scale / (1 - p) dout where the value was kept.                                                       3 passes
void dropout_backward(floatX* dx,         // (B, n) +=
                      const floatX* dout, // (B, n)
                      double p, double scale, int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step,
                      uint64_t first_row, stream_t s);

#endif // OPS_H
