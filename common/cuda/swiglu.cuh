// swiglu.cuh: SiLU and SwiGLU and their derivatives, elementwise. Formulas: dev/cpu/swiglu.h.
//
//   out = silu(a) b;   da = dout b s (1 + a (1 - s)),   db = dout silu(a),   s = sigmoid(a)
//
// SwiGLU: a thread takes packs of 16 bytes: of a, of b and of dout, which lie F apart or in another array. At 32768
// tokens and F = 3072, in bf16, the forward moves 604 MB, 0.20 ms at 3 TB/s, and the backward 1.0 GB, 0.34 ms; some 15
// and 30 instructions a value take a third of that, in the shadow of the memory. A width F that is a multiple of a pack
// keeps all accesses whole.
//
// The backward also adds up its columns, the gradient of the bias in front of it, while they are in registers: the sums
// of the linear layers (add_column_sums) would read 403 MB for it, 0.13 ms. So a thread keeps its columns down a slab
// of rows, as there. In the forward a block owns a row.
//
// Look next at common/cuda/condition.cuh.
#pragma once
// defines: floatX, launch, pack, exp2_fast, reciprocal_fast
#include "common/cuda/launch.cuh"
// defines: the operations' contracts
#include "common/ops.h"
// defines: load_upto, store_upto, pack_begin, pack_blocks, PACK_THREADS
#include "common/cuda/access.cuh"
// defines: gelu
#include "common/cuda/activation.cuh"
// defines: COLUMN_WARPS, COLUMN_THREADS, column_slab_rows, column_sums_write, add_parts
#include "common/cuda/rows.cuh"

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
// SwiGLU. Forward: a block owns a row. Backward: a warp owns columns.

constexpr unsigned SWIGLU_THREADS = 384; // at most: 384 packs of bf16 are a row of 3072

static inline unsigned swiglu_threads(int F) {
    unsigned threads = blocks_for(blocks_for(F, pack<floatX>::size), WARP) * WARP;
    return threads < SWIGLU_THREADS ? threads : SWIGLU_THREADS;
}

// ACT_SWISH: SwiGLU; ACT_GELU_TANH: GEGLU.
template <activation_t act>
__global__ static void swiglu_kernel(floatX* out, const floatX* x, int F) { // (N, F), (N, 2F)
    constexpr int size = pack<floatX>::size;
    const floatX *a = x + (size_t)blockIdx.x * 2 * F, *b = a + F;
    for (int f = threadIdx.x * size; f < F; f += blockDim.x * size) {
        pack<floatX> gate = load_upto(a + f, F - f), value = load_upto(b + f, F - f);
        for (int k = 0; k < size; k++) {
            float open = act == ACT_SWISH ? silu((float)gate[k]) : gelu((float)gate[k], act);
            value[k] = (floatX)(open * (float)value[k]);
        }
        store_upto(out + (size_t)blockIdx.x * F + f, value, F - f);
    }
}

constexpr int SWIGLU_AHEAD = 2; // rows of three packs that a thread asks for at once
__global__ static void swiglu_backward_kernel(floatX* dx,         // (N, 2F)
                                              float* parts,       // (slabs, 2F) or NULL
                                              const floatX* dout, // (N, F)
                                              const floatX* x,    // (N, 2F)
                                              size_t N, int F, size_t slab_rows) {
    constexpr int size = pack<floatX>::size;
    int f = (blockIdx.x * WARP + threadIdx.x % WARP) * size, count = f < F ? F - f : 0;
    size_t first = blockIdx.y * slab_rows, last = first + slab_rows < N ? first + slab_rows : N;
    float sum_a[size] = {}, sum_b[size] = {};
    for (size_t top = first + threadIdx.x / WARP; count && top < last; top += SWIGLU_AHEAD * COLUMN_WARPS) {
        pack<floatX> gate[SWIGLU_AHEAD], value[SWIGLU_AHEAD], d[SWIGLU_AHEAD];
        UNROLL
        for (int i = 0; i < SWIGLU_AHEAD; i++) {
            size_t row = top + i * COLUMN_WARPS;
            int there = row < last ? count : 0; // values; where there are none, zeros
            gate[i] = load_upto(x + row * 2 * F + f, there);
            value[i] = load_upto(x + row * 2 * F + F + f, there);
            d[i] = load_upto(dout + row * F + f, there);
        }
        UNROLL
        for (int i = 0; i < SWIGLU_AHEAD; i++) {
            size_t row = top + i * COLUMN_WARPS;
            for (int k = 0; k < size; k++) {
                float u = (float)gate[i][k], v = (float)value[i][k], g = (float)d[i][k], sigmoid = silu_sigmoid(u);
                float to_a = g * v * sigmoid * (1 + u * (1 - sigmoid)), to_b = g * u * sigmoid;
                gate[i][k] = (floatX)to_a, value[i][k] = (floatX)to_b;
                sum_a[k] += to_a, sum_b[k] += to_b;
            }
            if (row >= last) continue;
            store_upto(dx + row * 2 * F + f, gate[i], count);
            store_upto(dx + row * 2 * F + F + f, value[i], count);
        }
    }
    if (!parts) return;
    float* part = parts + (size_t)blockIdx.y * 2 * F;
    column_sums_write<size>(part, sum_a, F);
    column_sums_write<size>(part + F, sum_b, F);
}

void swiglu_forward(floatX* out,     // (N, F)
                    const floatX* x, // (N, 2F)
                    size_t N, int F, stream_t s) {
    if (N > 0) launch<swiglu_kernel<ACT_SWISH>>((unsigned)N, swiglu_threads(F), 0, s, out, x, F);
}

void geglu_forward(floatX* out,     // (N, F)
                   const floatX* x, // (N, 2F)
                   size_t N, int F, stream_t s) {
    if (N > 0) launch<swiglu_kernel<ACT_GELU_TANH>>((unsigned)N, swiglu_threads(F), 0, s, out, x, F);
}

void swiglu_backward(floatX* dx,         // (N, 2F)
                     floatS* dbias,      // (2F) += or NULL
                     const floatX* dout, // (N, F)
                     const floatX* x,    // (N, 2F)
                     size_t N, int F, stream_t s) {
    if (N == 0) return;
    constexpr int size = pack<floatX>::size;
    unsigned columns = blocks_for(F, WARP * size);
    size_t slab_rows = column_slab_rows(N, columns, SWIGLU_AHEAD * COLUMN_WARPS, 4, s);
    unsigned slabs = blocks_for(N, slab_rows);
    float* parts = dbias ? (float*)device_scratch(s, (size_t)slabs * 2 * F * sizeof(float)) : NULL;
    launch<swiglu_backward_kernel>(dim3(columns, slabs), COLUMN_THREADS, COLUMN_THREADS * size * sizeof(float), s, dx,
                                   parts, dout, x, N, F, slab_rows);
    add_parts(dbias, NULL, NULL, parts, slabs, 1, 2 * F, s);
}
