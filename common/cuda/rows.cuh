// rows.cuh: what kernels over the rows of a matrix (rows, C) share: sums down the columns.
//
// A thread owns the same few columns in every row that it visits, N neighbouring ones at a time (access.cuh).
//
// Sums down the columns (gradients of weights and biases) have two steps: each block leaves the sums over its rows, one
// `part`, in device_scratch; add_parts adds the parts.
//
// Look next at common/cuda/layernorm.cuh and common/cuda/groupnorm.cuh, the users.
#pragma once
// defines: PACKED, packable, load_values, store_values; launch, shared_array, blocks_for
#include "common/cuda/access.cuh"
// defines: add_parts
#include "common/cuda/parts.cuh"

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
