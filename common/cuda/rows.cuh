// rows.cuh: what kernels over the rows of a matrix (rows, C) share: how a thread reads and writes its columns, and sums
// down the columns.
//
// A thread owns the same few columns in every row that it visits, N neighbouring ones at a time. N is PACKED, one
// 16-byte access, where C is a multiple of it and all tensors start at a multiple of 16 bytes (packable); else 1.
// Kernels take N as a template argument and are otherwise one text for both.
//
// Sums down the columns (gradients of weights and biases) have two steps, so that their order is fixed and no block
// waits for another: each block leaves the sums over its rows, one `part`, in device_scratch; add_parts adds the parts.
//
// Look next at common/cuda/layernorm.cuh and common/cuda/groupnorm.cuh, the users.
#pragma once
// defines: launch, shared_array, pack, load16, store16, blocks_for
#include "common/cuda/launch.cuh"

constexpr int PACKED = 16 / sizeof(floatX); // 8 values of bf16, 4 of fp32

template <typename... T> static inline int packable(int C, const T*... tensors) {
    return C % PACKED == 0 && (((uintptr_t)tensors % 16 == 0) && ...);
}

// T is float, or floatX for values that wait in registers: bf16 takes half as many.
template <int N, typename T> __device__ static inline void load_values(T to[N], const floatX* from) {
    if constexpr (N == 1) {
        to[0] = (T)from[0];
    } else {
        pack<floatX> p = load16(from);
        for (int k = 0; k < N; k++) to[k] = (T)p[k];
    }
}
template <int N> __device__ static inline void store_values(floatX* to, const float from[N]) {
    if constexpr (N == 1) {
        to[0] = (floatX)from[0];
    } else {
        pack<floatX> p;
        for (int k = 0; k < N; k++) p[k] = (floatX)from[k];
        store16(to, p);
    }
}

// A block adds PART_ROWS parts at a time, of WARP columns: thread (x, y) the parts y, y + PART_ROWS, ... of its column;
// then the sums of the y are added in order. blockIdx.y = k.
constexpr int PART_ROWS = 16;
__global__ static void add_parts_kernel(floatS* out0, floatS* out1, floatS* out2, // (C) += or NULL
                                        const floatS* parts,                      // (count, gridDim.y, C)
                                        size_t count, int C) {
    shared<float> sums = shared_array<float>(0, PART_ROWS * WARP);
    floatS* out = blockIdx.y == 0 ? out0 : blockIdx.y == 1 ? out1 : out2;
    int x = threadIdx.x, y = threadIdx.y, c = blockIdx.x * WARP + x;
    int mine = out && c < C;
    float sum = 0;
    for (size_t i = y; mine && i < count; i += PART_ROWS) sum += parts[(i * gridDim.y + blockIdx.y) * C + c];
    sums[y * WARP + x] = sum;
    __syncthreads();
    if (y > 0 || !mine) return;
    for (int i = 1; i < PART_ROWS; i++) sum += sums[i * WARP + x];
    out[c] += sum;
}

// out_k[c] += sum over i of parts[i, k, c], for the K outputs, of which any may be NULL.
static inline void add_parts(floatS* out0, floatS* out1, floatS* out2, // (C) +=
                             const floatS* parts,                      // (count, K, C)
                             size_t count, int K, int C, stream_t s) {
    if (!out0 && !out1 && !out2) return;
    launch<add_parts_kernel>(dim3(blocks_for(C, WARP), K), dim3(WARP, PART_ROWS), PART_ROWS * WARP * sizeof(float), s,
                             out0, out1, out2, parts, count, C);
}
