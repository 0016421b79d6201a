// reduce.h: sums over many values that are accurate and do not depend on the number of threads.
//
// A float sum of n terms added one by one loses digits as n grows (relative error up to n 6e-8), and its last bits
// depend on the order. Here every group of values is cut into blocks of a fixed length. A block is summed in double,
// in an order that only the compiler chooses; the sums of the blocks are added in order. Threads share the blocks.
//
// What is summed is a function of two arrays, given by the caller: see l1_block in dev/cpu/loss.h.
#pragma once
// defines: floatX, floatS
#include "common/device.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"

#define REDUCE_BLOCK ((size_t)8192) // values

// The sum of some function of (a_i, b_i) over one block. b may be NULL for functions of one array.
typedef double (*block_sum_t)(const floatX* a, // (n)
                              const floatX* b, // (n) or NULL
                              size_t n);

static inline double sum_in_order(const double* x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

// out_k = scale times the sum of block_sum over group k.
static inline void reduce_groups(floatS* out,     // (groups)
                                 const floatX* a, // (groups, n)
                                 const floatX* b, // (groups, n) or NULL
                                 block_sum_t block_sum, double scale, size_t groups, size_t n) {
    size_t blocks = (n + REDUCE_BLOCK - 1) / REDUCE_BLOCK;
    double* partial = (double*)cpu_scratch(0, groups * blocks * sizeof(double));
    #pragma omp parallel for schedule(static) if (worth_sharing((double)groups * n))
    for (size_t i = 0; i < groups * blocks; i++) {
        size_t begin = i % blocks * REDUCE_BLOCK;
        size_t count = n - begin < REDUCE_BLOCK ? n - begin : REDUCE_BLOCK;
        size_t start = i / blocks * n + begin;
        partial[i] = block_sum(a + start, b ? b + start : NULL, count);
    }
    for (size_t k = 0; k < groups; k++) out[k] = (floatS)(scale * sum_in_order(partial + k * blocks, blocks));
}
