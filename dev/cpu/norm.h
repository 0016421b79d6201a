// norm.h: normalisation. Subtract a mean, divide by a standard deviation, then scale and shift each channel.
//
// The three norms of this project differ only in which values share their mean and variance:
//   LayerNorm   the C channels of one token                                dev/cpu/layernorm.h  (ViT)
//   GroupNorm   all positions of C / G neighbouring channels of an image   dev/cpu/groupnorm.h  (decoder, LDM encoder)
//   BatchNorm   all positions of one channel of a group of images          dev/cpu/batchnorm.h  (PatchGAN)
//
// All have one derivative, which layernorm.h derives: with xhat = (x - mean) rstd and h = dL/dxhat,
//   dL/dx = rstd (h - mean(h) - xhat mean(h xhat)),   means over the values that share their statistics.
#pragma once
// defines: layernorm_forward, layernorm_backward, residual_layernorm_forward, residual_layernorm_backward
#include "dev/cpu/layernorm.h"
// defines: groupnorm_*, and by dev/cpu/batchnorm.h batchnorm_*
#include "dev/cpu/groupnorm.h"
