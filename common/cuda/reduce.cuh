// reduce.cuh: sums over many values by the whole GPU, always in the same order.
//
//   out_k = scale sum_i term(a_ki, b_ki)        for groups k (an image, a chunk, a whole gradient) of n values each
//
// A group is cut into pieces of REDUCE_PIECE values, and a block sums one piece: a thread its 32 values, a warp its
// threads, the block its warps. finish_sums, one block a group, adds the pieces in the same way. So no float sum is
// longer than a few dozen terms (relative error about 1e-7 times the root of that), a single image already fills 24
// blocks, and the tree depends on n alone: neither on the number of multiprocessors nor on the alignment of the arrays.
//
// Cost: one read of a and b. The largest sum, of the squares of 348.62 M gradients (42,600 pieces, 166 KiB of partial
// sums), is 1.39 GB: 0.46 ms at 3 TB/s.
//
// The term is a function given at compile time, as dev/cpu/reduce.h is given one: see l1_term in common/cuda/loss.cuh,
// the file to read next.
#pragma once
// defines: load_upto; launch, shared_array, pack, load16, block_sum, blocks_for
#include "common/cuda/access.cuh"
// defines: finish_sums, WRITE_SUM
#include "common/cuda/parts.cuh"

enum {
    REDUCE_THREADS = 256,
    REDUCE_BATCH = 4,    // packs of each array that a thread asks for at once, so that enough of them are under way
    REDUCE_PIECE = 8192, // values: a multiple of REDUCE_THREADS REDUCE_BATCH packs of 4 or 8
};

// Block i sums piece i % pieces of group i / pieces. A thread's packs are REDUCE_THREADS packs apart. Where all of a
// batch is inside the piece, its loads stand in one run of code, so that none waits for another to arrive.
template <float (*term)(float a, float b), int ARRAYS, typename T>
__global__ static void reduce_pieces(float* partial, // (groups, pieces)
                                     const T* a,     // (groups, n)
                                     const T* b,     // (groups, n), not read when ARRAYS is 1
                                     size_t n, unsigned pieces) {
    constexpr int size = pack<T>::size, step = REDUCE_THREADS * size;
    shared<float> work = shared_array<float>(0, WARP);
    size_t group = blockIdx.x / pieces, begin = (size_t)(blockIdx.x % pieces) * REDUCE_PIECE;
    size_t end = n - begin < REDUCE_PIECE ? n : begin + REDUCE_PIECE;
    a += group * n;
    b += group * n;
    bool aligned = (uintptr_t)(a + begin) % 16 == 0 && (ARRAYS == 1 || (uintptr_t)(b + begin) % 16 == 0);
    float sum = 0;
    for (size_t first = begin + threadIdx.x * size; first < end; first += REDUCE_BATCH * step) {
        pack<T> x[REDUCE_BATCH], y[REDUCE_BATCH] = {};
        if (aligned && end - first >= (size_t)((REDUCE_BATCH - 1) * step + size)) {
            for (int k = 0; k < REDUCE_BATCH; k++) {
                x[k] = load16(a + first + k * step);
                if (ARRAYS == 2) y[k] = load16(b + first + k * step);
            }
        } else {
            for (int k = 0; k < REDUCE_BATCH; k++) {
                size_t i = first + k * step, count = i < end ? end - i : 0;
                x[k] = load_upto(a + i, count);
                if (ARRAYS == 2) y[k] = load_upto(b + i, count);
            }
        }
        for (int k = 0; k < REDUCE_BATCH; k++) {
            for (int j = 0; j < size; j++) {
                if (first + k * step + j < end) sum += term((float)x[k][j], (float)y[k][j]);
            }
        }
    }
    sum = block_sum(sum, work);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// ARRAYS is 2 for terms in a and b, and 1 for terms in a alone, where b is given as a and not read.
template <float (*term)(float a, float b), int ARRAYS, typename T>
static inline void reduce_groups(float* out, // (groups)
                                 const T* a, // (groups, n)
                                 const T* b, // (groups, n)
                                 double scale, int groups, size_t n, stream_t s) {
    unsigned pieces = n > 0 ? blocks_for(n, REDUCE_PIECE) : 1, grid = groups * pieces;
    float* partial = (float*)device_scratch(s, (size_t)grid * sizeof(float));
    launch<reduce_pieces<term, ARRAYS, T>>(grid, REDUCE_THREADS, WARP * sizeof(float), s, partial, a, b, n, pieces);
    finish_sums(out, partial, groups, pieces, scale, WRITE_SUM, s);
}
