// matmul.cuh: the matrix products of linear layers. Formulas and the backward's derivation: dev/cpu/matmul.h.
//
//   matmul_forward, _add_forward, _gelu_forward, _backward the operations of common/ops.h
//   matmul_residual_forward                                out = x weight^T + bias + residual: 1x1 convolutions
//   matmul_batched, matmul_batched_float                   D_i = alpha op(A_i) op(B_i) + beta D_i
//   add_column_sums                                        sums += sum over rows
//
// Products go through NVIDIA's cuBLASLt (common/cuda/blas.cuh); everything around them is ours. Where the library does
// not compute one, a small kernel of ours does, at any size, slowly.
//
// Bias and residual are added in the product's epilogue, on sums that are still in registers. GELU behind the product:
//   tanh form   the library's epilogue GELU_AUX_BIAS writes `pre` and `out` at once
//   others      the library has none: an elementwise kernel follows, which reads `pre` and writes `out`. At 64 images
//               of DINOv2-L, (16448, 1024) x (4096, 1024), the product takes 0.17 ms at 800 TFLOP/s and the kernel
//               0.09 ms. A product of ours on mma instructions with the erf inside would lose as much: on Hopper they
//               reach two thirds of the wgmma instructions that the library uses.
//
// dweight is fp32 and accumulates: beta = 1. dbias is one more read of dout, 135 MB and 0.045 ms at the size above, in
// two kernels that add in a fixed order. (The library's epilogue for it cannot add to what is there.)
//
// Look next at common/cuda/activation.cuh and common/cuda/layernorm.cuh.
#pragma once
#include <limits.h>

// defines: launch, shared_array, pack, load16, blocks_for
#include "common/cuda/launch.cuh"
// defines: activation_t, the operations' contracts
#include "common/ops.h"
// defines: matmul_shape_t, matmul_shape, matmul_call_t, matmul_blas
#include "common/cuda/blas.cuh"
// defines: load_upto
#include "common/cuda/access.cuh"
// defines: COLUMN_WARPS, COLUMN_THREADS, column_slab_rows, column_sums_write, add_parts
#include "common/cuda/rows.cuh"
// defines: gelu_forward
#include "common/cuda/activation.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// Our own product, for what the library does not take

// A block computes a tile of 64 x 64, each of its 256 threads 4 x 4 values that lie 16 apart. The sum runs in steps of
// 16, whose pieces of A and B wait in shared memory, both with the sum's index first, so that threads of a warp read
// neighbours.
enum { TILE = 64, TILE_K = 16, TILE_THREADS = 256, TILE_PITCH = TILE + 1 };

// Copies 64 rows of op(A) (or columns of op(B)), 16 steps of the sum deep, from element (row, k) on; zeros outside.
// `along` is 1 where memory runs along the rows, and neighbouring threads then take neighbouring rows.
__device__ static inline void matmul_tile_load(shared<float> to, const floatX* from, size_t ld, int along, int row,
                                               int rows, int k, int K) {
    for (int i = threadIdx.x; i < TILE * TILE_K; i += TILE_THREADS) {
        int r = along ? i % TILE : i / TILE_K, l = along ? i / TILE : i % TILE_K;
        size_t at = along ? (size_t)(k + l) * ld + row + r : (size_t)(row + r) * ld + k + l;
        to[l * TILE_PITCH + r] = row + r < rows && k + l < K ? (float)from[at] : 0.0f;
    }
}

template <typename T>
__global__ void matmul_tile_kernel(T* d, const floatX* a, const floatX* b, const T* c, const floatX* bias,
                                   matmul_shape_t m) {
    shared<float> tile_a = shared_array<float>(0, TILE_K * TILE_PITCH);
    shared<float> tile_b = shared_array<float>(TILE_K * TILE_PITCH * sizeof(float), TILE_K * TILE_PITCH);
    int row = blockIdx.x * TILE, column = blockIdx.y * TILE, y = threadIdx.x / 16, x = threadIdx.x % 16;
    for (int index = blockIdx.z; index < m.batch; index += gridDim.z) {
        float sum[4][4] = {};
        for (int k = 0; k < m.K; k += TILE_K) {
            matmul_tile_load(tile_a, a + index * m.stride_a, m.lda, m.transpose_a, row, m.M, k, m.K);
            matmul_tile_load(tile_b, b + index * m.stride_b, m.ldb, !m.transpose_b, column, m.N, k, m.K);
            __syncthreads();
            for (int l = 0; l < TILE_K; l++) {
                float left[4], right[4];
                for (int i = 0; i < 4; i++) left[i] = tile_a[l * TILE_PITCH + y + 16 * i];
                for (int j = 0; j < 4; j++) right[j] = tile_b[l * TILE_PITCH + x + 16 * j];
                for (int i = 0; i < 4; i++) {
                    for (int j = 0; j < 4; j++) sum[i][j] += left[i] * right[j];
                }
            }
            __syncthreads();
        }
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 4; j++) {
                int r = row + y + 16 * i, o = column + x + 16 * j;
                if (r >= m.M || o >= m.N) continue;
                size_t at = index * m.stride_d + r * m.ldd + o;
                float value = m.alpha * sum[i][j];
                if (m.beta != 0) value += m.beta * (float)c[at];
                if (bias) value += (float)bias[o];
                d[at] = (T)value;
            }
        }
    }
}

static inline void matmul_tile(const matmul_call_t* call, stream_t s) {
    matmul_shape_t m = call->shape;
    dim3 grid(blocks_for(m.M, TILE), blocks_for(m.N, TILE), m.batch < 65535 ? m.batch : 65535);
    size_t bytes = 2 * TILE_K * TILE_PITCH * sizeof(float);
    if (call->float_d) {
        launch<matmul_tile_kernel<float>>(grid, TILE_THREADS, bytes, s, (float*)call->d, call->a, call->b,
                                          (const float*)call->c, call->bias, m);
    } else {
        launch<matmul_tile_kernel<floatX>>(grid, TILE_THREADS, bytes, s, (floatX*)call->d, call->a, call->b,
                                           (const floatX*)call->c, call->bias, m);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Products

static inline void matmul_run(const matmul_call_t* call, stream_t s) {
    if (call->shape.M == 0 || call->shape.N == 0) return;
    if (!matmul_blas(call, s)) matmul_tile(call, s);
}

// D in floatX, and D in float.
static inline void matmul_batched(floatX* d, const floatX* a, const floatX* b, matmul_shape_t shape, stream_t s) {
    matmul_call_t call = {};
    call.shape = shape, call.d = d, call.a = a, call.b = b, call.c = d;
    matmul_run(&call, s);
}
static inline void matmul_batched_float(float* d, const floatX* a, const floatX* b, matmul_shape_t shape, stream_t s) {
    matmul_call_t call = {};
    call.shape = shape, call.d = d, call.float_d = 1, call.a = a, call.b = b, call.c = d;
    matmul_run(&call, s);
}

static inline int matmul_rows(size_t N) { // the library counts rows in 32 bits
    if (N > INT_MAX) fatal("a matrix product of %zu rows; 2^31 - 1 is the most: use a smaller batch", N);
    return (int)N;
}

// x weight^T + bias + residual, the last two where they are not NULL
static inline matmul_call_t matmul_linear(floatX* out, const floatX* x, const floatX* weight, const floatX* bias,
                                          const floatX* residual, size_t N, int C, int OC) {
    matmul_call_t call = {};
    call.shape = matmul_shape(matmul_rows(N), OC, C, 0, 1);
    call.d = out, call.a = x, call.b = weight, call.bias = bias, call.c = residual;
    call.shape.beta = residual ? 1 : 0;
    return call;
}

// out = x weight^T + bias + residual. In place: out may be residual.
static inline void matmul_residual_forward(floatX* out,            // (N, OC)
                                           const floatX* x,        // (N, C)
                                           const floatX* weight,   // (OC, C)
                                           const floatX* bias,     // (OC) or NULL
                                           const floatX* residual, // (N, OC) or NULL
                                           size_t N, int C, int OC, stream_t s) {
    matmul_call_t call = matmul_linear(out, x, weight, bias, residual, N, C, OC);
    matmul_run(&call, s);
}

void matmul_forward(floatX* out,          // (N, OC)
                    const floatX* x,      // (N, C)
                    const floatX* weight, // (OC, C)
                    const floatX* bias,   // (OC) or NULL
                    size_t N, int C, int OC, stream_t s) {
    matmul_residual_forward(out, x, weight, bias, nullptr, N, C, OC, s);
}

void matmul_add_forward(floatX* out,          // (N, OC) +=
                        const floatX* x,      // (N, C)
                        const floatX* weight, // (OC, C)
                        size_t N, int C, int OC, stream_t s) {
    matmul_residual_forward(out, x, weight, nullptr, out, N, C, OC, s);
}

void matmul_gelu_forward(floatX* out,          // (N, OC)
                         floatX* pre,          // (N, OC)
                         const floatX* x,      // (N, C)
                         const floatX* weight, // (OC, C)
                         const floatX* bias,   // (OC) or NULL
                         size_t N, int C, int OC, activation_t act, stream_t s) {
    if (act == ACT_GELU_TANH && sizeof(floatX) == 2 && bias && OC % 8 == 0 && N > 0) {
        matmul_call_t call = matmul_linear(out, x, weight, bias, nullptr, N, C, OC);
        call.pre = pre;
        if (matmul_blas(&call, s)) return;
    }
    matmul_forward(pre, x, weight, bias, N, C, OC, s);
    gelu_forward(out, pre, N * OC, act, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums over rows

// Block (i, slab) adds up the rows of one slab, for 32 packs of columns. `whole`: every pack is complete and aligned.
enum {
    COLUMN_AHEAD = 4,                         // rows that a thread asks for at once
    COLUMN_ROWS = COLUMN_AHEAD * COLUMN_WARPS // the fewest rows of a slab
};

template <bool whole>
__global__ void column_sums_kernel(float* partial, const floatX* x, size_t N, int C, size_t slab_rows) {
    constexpr int size = pack<floatX>::size;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int column = (blockIdx.x * WARP + lane) * size;
    size_t first = blockIdx.y * slab_rows, last = first + slab_rows < N ? first + slab_rows : N;
    float sum[size] = {};
    size_t row = column < C ? first + warp : last;
    for (; row + COLUMN_ROWS - COLUMN_WARPS < last; row += COLUMN_ROWS) {
        pack<floatX> value[COLUMN_AHEAD];
        for (int i = 0; i < COLUMN_AHEAD; i++) {
            const floatX* p = x + (row + i * COLUMN_WARPS) * C + column;
            value[i] = whole ? load16(p) : load_upto(p, C - column);
        }
        for (int i = 0; i < COLUMN_AHEAD; i++) {
            for (int k = 0; k < size; k++) sum[k] += (float)value[i][k];
        }
    }
    for (; row < last; row += COLUMN_WARPS) {
        pack<floatX> value = load_upto(x + row * C + column, C - column);
        for (int k = 0; k < size; k++) sum[k] += (float)value[k];
    }
    column_sums_write<size>(partial + (size_t)blockIdx.y * C, sum, C);
}

// sums += sum over rows of x. Uses the stream's scratch memory.
static inline void add_column_sums(float* sums,     // (C) +=
                                   const floatX* x, // (N, C)
                                   size_t N, int C, stream_t s) {
    if (N == 0 || C == 0) return;
    constexpr int size = pack<floatX>::size;
    unsigned columns = blocks_for(C, WARP * size);
    size_t slab_rows = column_slab_rows(N, columns, COLUMN_ROWS, 4, s);
    unsigned slabs = blocks_for(N, slab_rows);
    float* partial = (float*)device_scratch(s, (size_t)slabs * C * sizeof(float));
    size_t bytes = COLUMN_THREADS * size * sizeof(float);
    dim3 grid(columns, slabs);
    if (C % size == 0 && (uintptr_t)x % 16 == 0) {
        launch<column_sums_kernel<true>>(grid, COLUMN_THREADS, bytes, s, partial, x, N, C, slab_rows);
    } else {
        launch<column_sums_kernel<false>>(grid, COLUMN_THREADS, bytes, s, partial, x, N, C, slab_rows);
    }
    add_parts(sums, NULL, NULL, partial, slabs, 1, C, s);
}

void matmul_backward(floatX* dx,           // (N, C) or NULL
                     floatS* dweight,      // (OC, C) or NULL
                     floatS* dbias,        // (OC) or NULL
                     const floatX* dout,   // (N, OC)
                     const floatX* x,      // (N, C)
                     const floatX* weight, // (OC, C)
                     size_t N, int C, int OC, stream_t s) {
    int rows = matmul_rows(N);
    if (dx) matmul_batched(dx, dout, weight, matmul_shape(rows, C, OC, 0, 0), s);
    if (dweight && rows > 0) {
        matmul_shape_t shape = matmul_shape(OC, C, rows, 1, 0);
        shape.beta = 1;
        matmul_batched_float(dweight, dout, x, shape, s);
    }
    if (dbias) add_column_sums(dbias, dout, N, OC, s);
}

void matmul_add_backward(floatX* dx,           // (N, C) +=
                         floatS* dweight,      // (OC, C) or NULL
                         floatS* dbias,        // (OC) or NULL
                         const floatX* dout,   // (N, OC)
                         const floatX* x,      // (N, C)
                         const floatX* weight, // (OC, C)
                         size_t N, int C, int OC, stream_t s) {
    matmul_shape_t shape = matmul_shape(matmul_rows(N), C, OC, 0, 0);
    shape.beta = 1;
    matmul_batched(dx, dout, weight, shape, s);
    matmul_backward(nullptr, dweight, dbias, dout, x, weight, N, C, OC, s);
}
