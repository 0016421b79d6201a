// rows.h: sums over the rows of a matrix, the same for any number of threads.
//
// Gradients of biases and of norm weights are sums over all rows (tokens, pixels) of a matrix. The rows are cut into
// blocks of ROW_BLOCK. Each block, by whichever thread, leaves its column sums as one row of a small matrix `partial`;
// then the blocks are added in order, in double. A float sum is thus never longer than ROW_BLOCK terms.
//
// Look next at dev/cpu/matmul.h and dev/cpu/layernorm.h, the users.
#pragma once
// defines: floatX, floatS
#include "common/device.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"

enum { ROW_BLOCK = 32 };

static inline size_t row_blocks(size_t N) { return (N + ROW_BLOCK - 1) / ROW_BLOCK; }
static inline size_t row_block_end(size_t block, size_t N) {
    size_t end = (block + 1) * ROW_BLOCK;
    return end < N ? end : N;
}

// sum_c += sum over blocks of partial[block, c], in order.
static inline void add_row_blocks(floatS* sum,           // (C) +=
                                  const floatS* partial, // (blocks, stride), of which C columns are read
                                  size_t blocks, size_t stride, int C) {
    enum { COLUMNS = 64 };
    #pragma omp parallel for schedule(static) if (worth_sharing((double)blocks * C))
    for (int c0 = 0; c0 < C; c0 += COLUMNS) {
        int n = C - c0 < COLUMNS ? C - c0 : (int)COLUMNS;
        double total[COLUMNS] = {0};
        for (size_t k = 0; k < blocks; k++) {
            for (int c = 0; c < n; c++) total[c] += partial[k * stride + c0 + c];
        }
        for (int c = 0; c < n; c++) sum[c0 + c] += (floatS)total[c];
    }
}

// sum_c += sum over rows of x[row, c]. Takes scratch slot 0 of the calling thread.
static inline void add_column_sums(floatS* sum,     // (C) +=
                                   const floatX* x, // (N, C)
                                   size_t N, int C) {
    size_t blocks = row_blocks(N);
    floatS* partial = (floatS*)cpu_scratch(0, blocks * C * sizeof(floatS));
    #pragma omp parallel for schedule(static) if (worth_sharing((double)N * C))
    for (size_t k = 0; k < blocks; k++) {
        floatS* p = partial + k * C;
        memset(p, 0, C * sizeof(floatS));
        for (size_t i = k * ROW_BLOCK; i < row_block_end(k, N); i++) {
            for (int c = 0; c < C; c++) p[c] += x[i * C + c];
        }
    }
    add_row_blocks(sum, partial, blocks, C, C);
}
