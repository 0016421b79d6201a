// op_types.h: the small types in the arguments of the operations (common/ops.h): what an activation, a convolution, a
// colour map and an optimiser's step are. The same in every build.
#pragma once
#include <stdint.h>

typedef enum { ACT_NONE, ACT_RELU, ACT_LEAKY, ACT_SWISH, ACT_GELU, ACT_GELU_TANH } activation_t;
#define LEAKY_SLOPE 0.2 // of every LeakyReLU here (PatchGAN)

// A convolution's shape. Output size: (H + pad_lo + pad_hi - K) / stride + 1, rounded down; pad_lo is above and left,
// pad_hi is below and right.
typedef struct {
    int C, OC;          // input and output channels
    int K;              // kernel size, K x K
    int stride;         // 1 or 2
    int pad_lo, pad_hi; // rows and columns of zeros before and after
} conv_t;

static inline int conv_out_size(int size, conv_t c) { return (size + c.pad_lo + c.pad_hi - c.K) / c.stride + 1; }

// An affine map of the three colour channels: y_c = scale_c x_c + shift_c.
typedef struct { double scale[3], shift[3]; } channel_affine_t;

// One step of Adam (adam_update).
typedef struct {
    double lr, beta1, beta2, eps, decay;
    int64_t t;          // this step's number, from 1
    double ema_beta[2]; // used where the average's pointer is given
    double grad_scale;  // the gradient is multiplied by it; 1 leaves it alone
} adam_t;
