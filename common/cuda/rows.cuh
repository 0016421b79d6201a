// rows.cuh: what kernels over the rows of a matrix (rows, C) share: how a thread reads and writes its columns, and sums
// down the columns.
//
// A thread owns the same few columns in every row that it visits, N neighbouring ones at a time. N is PACKED, one
// 16-byte access, where C is a multiple of it and all tensors start at a multiple of 16 bytes (packable); else 1.
// Kernels take N as a template argument and are otherwise one text for both.
//
// Sums down the columns (gradients of weights and biases) have two steps: each block leaves the sums over its rows, one
// `part`, in device_scratch; add_parts adds the parts.
//
// Look next at common/cuda/layernorm.cuh and common/cuda/groupnorm.cuh, the users.
#pragma once
// defines: launch, shared_array, pack, load16, store16, blocks_for
#include "common/cuda/launch.cuh"
// defines: add_parts
#include "common/cuda/parts.cuh"

constexpr int PACKED = 16 / sizeof(floatX); // 8 values of bf16, 4 of fp32

template <typename... T> static inline int packable(int C, const T*... tensors) {
    return C % PACKED == 0 && (((uintptr_t)tensors % 16 == 0) && ...);
}

// Memory holds floatX, or floatS where it is the residual stream, a sum or a statistic: N values of bf16 are one
// access, of fp32 N / 4. T is float, or floatX for values that wait in registers: bf16 takes half as many.
template <int N, typename T, typename M> __device__ static inline void load_values(T to[N], const M* from) {
    if constexpr (N == 1) {
        to[0] = (T)from[0];
    } else {
        UNROLL
        for (int i = 0; i < N; i += pack<M>::size) {
            pack<M> p = load16(from + i);
            for (int k = 0; k < pack<M>::size; k++) to[i + k] = (T)p[k];
        }
    }
}
template <int N, typename M> __device__ static inline void store_values(M* to, const float from[N]) {
    if constexpr (N == 1) {
        to[0] = (M)from[0];
    } else {
        UNROLL
        for (int i = 0; i < N; i += pack<M>::size) {
            pack<M> p;
            for (int k = 0; k < pack<M>::size; k++) p[k] = (M)from[i + k];
            store16(to + i, p);
        }
    }
}

// Sums down all columns. A block of COLUMN_WARPS warps adds up the rows of one slab, for 32 groups of K columns: a lane
// owns the columns of one group, the warps take the rows in turn.
constexpr int COLUMN_WARPS = 8, COLUMN_THREADS = COLUMN_WARPS * WARP;

// Rows of a slab, at least `least`, with which a grid of (columns, slabs) has about `each` blocks a multiprocessor.
static inline size_t column_slab_rows(size_t N, unsigned columns, size_t least, unsigned each, stream_t s) {
    unsigned most = blocks_for(N, least), slabs = blocks_for((size_t)each * s->multiprocessors, columns);
    return blocks_for(N, slabs < most ? slabs : most);
}

// The sums of a block's warps, added in order, become the block's columns of a part. All threads call.
template <int K>
__device__ static inline void column_sums_write(float* part, // (C)
                                                const float sum[K], int C) {
    shared<float> work = shared_array<float>(0, COLUMN_THREADS * K); // (warp, column within the group, lane)
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    __syncthreads(); // a call before may still be reading
    for (int k = 0; k < K; k++) work[(warp * K + k) * WARP + lane] = sum[k];
    __syncthreads();
    for (int i = threadIdx.x; i < WARP * K; i += COLUMN_THREADS) {
        int to = (blockIdx.x * WARP + i % WARP) * K + i / WARP;
        float total = 0;
        for (int w = 0; w < COLUMN_WARPS; w++) total += work[w * WARP * K + i];
        if (to < C) part[to] = total;
    }
}
