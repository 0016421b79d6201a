// op_types.h: the small types in the arguments of the operations (common/ops.h): what an activation, a convolution, a
// colour map, a pair of the rotary embedding and an optimiser's step are. The same in every build.
#pragma once
#include <stdint.h>

typedef enum { ACT_NONE, ACT_RELU, ACT_LEAKY, ACT_SWISH, ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU } activation_t;
#define LEAKY_SLOPE 0.2 // of every LeakyReLU here (PatchGAN)

// A convolution's shape. Output size: (H + pad_top + pad_bottom - KH) / stride + 1, rounded down, and columns alike.
typedef struct {
    int C, OC;                // input and output channels
    int KH, KW;               // kernel size: rows, columns
    int stride;               // 1 or 2
    int pad_top, pad_bottom;  // rows of zeros above and below,
    int pad_left, pad_right;  // and columns
    int out_row;              // of the forward: values from pixel to pixel of its output, so that several convolutions
                              // can write their channels side by side; 0: OC
} conv_t;

// K x K, with pad_lo zeros above and on the left, pad_hi below and on the right.
static inline conv_t conv_square(int C, int OC, int K, int stride, int pad_lo, int pad_hi) {
    conv_t c = {C, OC, K, K, stride, pad_lo, pad_hi, pad_lo, pad_hi, 0};
    return c;
}

static inline int conv_out_height(int H, conv_t c) { return (H + c.pad_top + c.pad_bottom - c.KH) / c.stride + 1; }
static inline int conv_out_width(int W, conv_t c) { return (W + c.pad_left + c.pad_right - c.KW) / c.stride + 1; }
static inline int conv_out_row(conv_t c) { return c.out_row ? c.out_row : c.OC; }
// A 1x1 convolution that moves nothing: a matrix product over the pixels.
static inline int conv_is_matmul(conv_t c) {
    int pads = c.pad_top | c.pad_bottom | c.pad_left | c.pad_right;
    return c.KH == 1 && c.KW == 1 && c.stride == 1 && pads == 0;
}
// Alike in rows and columns, with its output for itself.
static inline int conv_is_square(conv_t c) {
    return c.KH == c.KW && c.pad_top == c.pad_left && c.pad_bottom == c.pad_right && conv_out_row(c) == c.OC;
}

// What the FID Inception network sees of an image of bytes v, at 299 x 299 (bytes_resize_forward):
//   INCEPTION_PT   pytorch-fid: pixels are areas, 2 (v / 255) - 1
//   INCEPTION_TF   TensorFlow's graph (ADM, TTUR): pixels are points from the corner on, (v - 128) / 128
typedef enum { INCEPTION_PT, INCEPTION_TF } inception_input_t;

// An affine map of the three colour channels: y_c = scale_c x_c + shift_c.
typedef struct { double scale[3], shift[3]; } channel_affine_t;

// Which two values of a head the rotary embedding turns together, as pair p: neighbours 2 p and 2 p + 1, or p of both
// halves, p and p + HS / 2.
typedef enum { ROPE_NEIGHBOURS, ROPE_HALVES } rope_pairs_t;

// One step of Adam (adam_update).
typedef struct {
    double lr, beta1, beta2, eps, decay;
    int64_t t;          // this step's number, from 1
    double ema_beta[2]; // used where the average's pointer is given
    double grad_scale;  // the gradient is multiplied by it; 1 leaves it alone
} adam_t;
