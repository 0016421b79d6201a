// activation.cuh: GELU and its derivative, elementwise. Formulas and their derivation: dev/cpu/activation.h.
//
// A thread owns one pack of 16 bytes (8 values of bf16). The forward reads and writes once, the backward reads twice
// and writes once: 4 and 6 bytes a value in bf16, about 25 and 45 instructions. At 64 images of DINOv2-L, (16448,
// 4096), that is 270 and 404 MB: 0.09 and 0.14 ms at 3 TB/s. The instructions take about as long on an H100, in the
// shadow of the memory.
//
// Look next at common/cuda/matmul.cuh, where the forward is called.
#pragma once
// defines: load_upto, store_upto, pack_begin, pack_blocks, PACK_THREADS; launch, pack
#include "common/cuda/access.cuh"
// defines: activation_t
#include "common/ops.h"

// ---------------------------------------------------------------------------------------------------------------------
// One value

// 2 w of the tanh form. 0.5 (1 + tanh w) = sigmoid(2 w).
__device__ static inline float gelu_twice_w(float u) { return 1.5957691216f * (u + 0.044715f * u * u * u); }
__device__ static inline float gelu_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ static inline float gelu(float u, activation_t act) {
    if (act == ACT_GELU) return 0.5f * u * (1.0f + erff(0.7071067812f * u));
    if (act == ACT_QUICK_GELU) return u * gelu_sigmoid(1.702f * u);
    return u * gelu_sigmoid(gelu_twice_w(u));
}

__device__ static inline float gelu_grad(float u, activation_t act) {
    if (act == ACT_GELU) {
        float density = 0.3989422804f * expf(-0.5f * u * u);
        return 0.5f * (1.0f + erff(0.7071067812f * u)) + u * density;
    }
    if (act == ACT_QUICK_GELU) {
        float w = 1.702f * u, s = gelu_sigmoid(w);
        return s + w * s * gelu_sigmoid(-w);
    }
    float s = gelu_sigmoid(gelu_twice_w(u));
    float rest = gelu_sigmoid(-gelu_twice_w(u)); // 1 - s, without cancellation
    float twice_w_slope = 1.5957691216f * (1.0f + 0.134145f * u * u);
    return s + u * s * rest * twice_w_slope;
}

// ---------------------------------------------------------------------------------------------------------------------
// Many values

__global__ void gelu_forward_kernel(floatX* out, const floatX* pre, size_t n, activation_t act) {
    size_t i = pack_begin<floatX>();
    if (i >= n) return;
    pack<floatX> u = load_upto(pre + i, n - i);
    for (int k = 0; k < pack<floatX>::size; k++) u[k] = (floatX)gelu((float)u[k], act);
    store_upto(out + i, u, n - i);
}

__global__ void gelu_backward_kernel(floatX* dpre, const floatX* dout, const floatX* pre, size_t n, activation_t act) {
    size_t i = pack_begin<floatX>();
    if (i >= n) return;
    pack<floatX> u = load_upto(pre + i, n - i), d = load_upto(dout + i, n - i);
    for (int k = 0; k < pack<floatX>::size; k++) d[k] = (floatX)((float)d[k] * gelu_grad((float)u[k], act));
    store_upto(dpre + i, d, n - i);
}

// By itself, or as the second half of matmul_gelu_forward.
void gelu_forward(floatX* out,       // (n)
                  const floatX* pre, // (n)
                  size_t n, activation_t act, stream_t s) {
    if (n > 0) launch<gelu_forward_kernel>(pack_blocks<floatX>(n), PACK_THREADS, 0, s, out, pre, n, act);
}

void gelu_backward(floatX* dpre,       // (n)
                   const floatX* dout, // (n)
                   const floatX* pre,  // (n)
                   size_t n, activation_t act, stream_t s) {
    if (n > 0) launch<gelu_backward_kernel>(pack_blocks<floatX>(n), PACK_THREADS, 0, s, dpre, dout, pre, n, act);
}
