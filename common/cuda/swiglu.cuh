// swiglu.cuh: SiLU and SwiGLU and their derivatives, elementwise. Formulas: dev/cpu/swiglu.h.
//
//   out = silu(a) b;   da = dout b s (1 + a (1 - s)),   db = dout silu(a),   s = sigmoid(a)
//
// SwiGLU: a block owns a row, a thread packs of 16 bytes of it: of a, of b and of dout, which lie F apart or in another
// array. At 32768 tokens and F = 3072, in bf16, the forward moves 604 MB, 0.20 ms at 3 TB/s, and the backward 1.0 GB,
// 0.34 ms; some 15 and 30 instructions a value take a third of that, in the shadow of the memory. A width F that is a
// multiple of a pack keeps all accesses whole.
//
// Look next at common/cuda/condition.cuh.
#pragma once
// defines: floatX, launch, pack, exp2_fast, reciprocal_fast
#include "common/cuda/launch.cuh"
// defines: the operations' contracts
#include "common/ops.h"
// defines: load_upto, store_upto, pack_begin, pack_blocks, PACK_THREADS
#include "common/cuda/reduce.cuh"

// Far below zero the power is infinite and its reciprocal 0, as it should be.
__device__ static inline float silu_sigmoid(float a) { return reciprocal_fast(1 + exp2_fast(-1.4426950409f * a)); }
__device__ static inline float silu(float a) { return a * silu_sigmoid(a); }
__device__ static inline float silu_slope(float a) {
    float s = silu_sigmoid(a);
    return s * (1 + a * (1 - s));
}

// ---------------------------------------------------------------------------------------------------------------------
// SiLU. A thread owns a pack.

__global__ static void silu_kernel(floatX* out, const floatX* x, size_t n) {
    size_t i = pack_begin<floatX>();
    if (i >= n) return;
    pack<floatX> a = load_upto(x + i, n - i);
    for (int k = 0; k < pack<floatX>::size; k++) a[k] = (floatX)silu((float)a[k]);
    store_upto(out + i, a, n - i);
}

__global__ static void silu_backward_kernel(floatX* dx, const floatX* dout, const floatX* x, size_t n) {
    size_t i = pack_begin<floatX>();
    if (i >= n) return;
    pack<floatX> a = load_upto(x + i, n - i), d = load_upto(dout + i, n - i);
    for (int k = 0; k < pack<floatX>::size; k++) d[k] = (floatX)((float)d[k] * silu_slope((float)a[k]));
    store_upto(dx + i, d, n - i);
}

void silu_forward(floatX* out, const floatX* x, size_t n, stream_t s) { // (n)
    if (n > 0) launch<silu_kernel>(pack_blocks<floatX>(n), PACK_THREADS, 0, s, out, x, n);
}

void silu_backward(floatX* dx, const floatX* dout, const floatX* x, size_t n, stream_t s) { // (n) dx may be dout
    if (n > 0) launch<silu_backward_kernel>(pack_blocks<floatX>(n), PACK_THREADS, 0, s, dx, dout, x, n);
}

// ---------------------------------------------------------------------------------------------------------------------
// SwiGLU. A block owns a row.

constexpr unsigned SWIGLU_THREADS = 384; // at most: 384 packs of bf16 are a row of 3072

static inline unsigned swiglu_threads(int F) {
    unsigned threads = blocks_for(blocks_for(F, pack<floatX>::size), WARP) * WARP;
    return threads < SWIGLU_THREADS ? threads : SWIGLU_THREADS;
}

__global__ static void swiglu_kernel(floatX* out, const floatX* x, int F) { // (N, F), (N, 2F)
    constexpr int size = pack<floatX>::size;
    const floatX *a = x + (size_t)blockIdx.x * 2 * F, *b = a + F;
    for (int f = threadIdx.x * size; f < F; f += blockDim.x * size) {
        pack<floatX> gate = load_upto(a + f, F - f), value = load_upto(b + f, F - f);
        for (int k = 0; k < size; k++) value[k] = (floatX)(silu((float)gate[k]) * (float)value[k]);
        store_upto(out + (size_t)blockIdx.x * F + f, value, F - f);
    }
}

__global__ static void swiglu_backward_kernel(floatX* dx,         // (N, 2F)
                                              const floatX* dout, // (N, F)
                                              const floatX* x,    // (N, 2F)
                                              int F) {
    constexpr int size = pack<floatX>::size;
    const floatX *a = x + (size_t)blockIdx.x * 2 * F, *b = a + F;
    floatX *da = dx + (size_t)blockIdx.x * 2 * F, *db = da + F;
    for (int f = threadIdx.x * size; f < F; f += blockDim.x * size) {
        pack<floatX> gate = load_upto(a + f, F - f), value = load_upto(b + f, F - f);
        pack<floatX> d = load_upto(dout + (size_t)blockIdx.x * F + f, F - f);
        for (int k = 0; k < size; k++) {
            float u = (float)gate[k], v = (float)value[k], g = (float)d[k], sigmoid = silu_sigmoid(u);
            gate[k] = (floatX)(g * v * sigmoid * (1 + u * (1 - sigmoid)));
            value[k] = (floatX)(g * u * sigmoid);
        }
        store_upto(da + f, gate, F - f);
        store_upto(db + f, value, F - f);
    }
}

void swiglu_forward(floatX* out,     // (N, F)
                    const floatX* x, // (N, 2F)
                    size_t N, int F, stream_t s) {
    if (N > 0) launch<swiglu_kernel>((unsigned)N, swiglu_threads(F), 0, s, out, x, F);
}

void swiglu_backward(floatX* dx,         // (N, 2F)
                     const floatX* dout, // (N, F)
                     const floatX* x,    // (N, 2F)
                     size_t N, int F, stream_t s) {
    if (N > 0) launch<swiglu_backward_kernel>((unsigned)N, swiglu_threads(F), 0, s, dx, dout, x, F);
}
