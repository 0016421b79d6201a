// gemm.h: the matrix product that every CPU operation is built on.
//
//   C[i, j] = alpha sum_k A[i, k] B[k, j] + beta C[i, j]
//
// gemm_naive() is that formula, three loops: the truth, which the tests hold gemm() against. gemm() is the same product
// at about the speed of the processor's multiply-adds. It runs on the thread that calls it: operations cut their output
// into pieces and share those.
//
// How a result is rounded depends on K alone: the sum is cut into stretches of GEMM_DEPTH, each is added up in order,
// one multiply-add a term, and the stretches are added in order. So a row of C has the same bits whatever rows stand
// beside it and wherever an output is cut. That is why an image comes out the same in any batch (common/drawing/
// dit_sampler.h), and why there is no BLAS here: those choose the order of a sum by the number of rows.
//
// Look next at dev/cpu/matmul.h, the simplest user.
#pragma once
#include <string.h>

// defines: floatX
#include "common/device.h"
// defines: cpu_scratch
#include "dev/cpu/threads.h"
// defines: vector_t, vector_load, vector_store, vector_splat, vector_multiply_add, vector_transpose
#include "dev/cpu/vector.h"

typedef enum { PLAIN, TRANSPOSED } gemm_op_t;

// C = alpha op(A) op(B) + beta C, all row-major: op(A) is (M, K), op(B) is (K, N), C is (M, N); ld* are row strides.
// beta = 0 does not read C.
static inline void gemm_naive(gemm_op_t ta, gemm_op_t tb, int M, int N, int K, floatX alpha, const floatX* A, int lda,
                              const floatX* B, int ldb, floatX beta, floatX* C, int ldc) {
    for (size_t i = 0; i < (size_t)M; i++) {
        for (size_t j = 0; j < (size_t)N; j++) {
            floatX sum = 0;
            for (size_t k = 0; k < (size_t)K; k++) {
                floatX a = ta == PLAIN ? A[i * lda + k] : A[k * lda + i];
                floatX b = tb == PLAIN ? B[k * ldb + j] : B[j * ldb + k];
                sum += a * b;
            }
            C[i * ldc + j] = alpha * sum + (beta == 0 ? 0 : beta * C[i * ldc + j]);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The fast form (Goto & van de Geijn 2008)
//
// A number from memory must be used many times before it leaves a cache, and one from a cache several times before it
// leaves a register:
//
//   registers   sums of a block of GEMM_ROWS rows x 2 vectors of columns. Each step k multiplies one number of each row
//               of A by 2 vectors of B: 2 vector loads and GEMM_ROWS numbers for 2 GEMM_ROWS multiply-adds
//   level 1     GEMM_ROWS rows of A, GEMM_DEPTH long, copied so that they do not fall on the same cache lines
//   level 2     GEMM_DEPTH x GEMM_COLUMNS numbers of B, rearranged into panels of 2 vectors in the order of reading,
//               [k][column]. All rows of A pass over them
enum {
#if defined(__AVX512F__)
    GEMM_ROWS = 12, // the sums and what a step needs must fit into 32 registers with AVX-512, into 16 elsewhere
#elif defined(__AVX__)
    GEMM_ROWS = 6,
#else
    GEMM_ROWS = 3,
#endif
    GEMM_PANEL = 2 * VECTOR_LANES, // columns of a panel; the last one of a product may be one vector wide
    GEMM_DEPTH = 384,
    GEMM_COLUMNS = 512,
    GEMM_STRIDE = GEMM_DEPTH + 16, // from row to row of A in level 1
    GEMM_SCRATCH = SCRATCH_SLOTS - 1,
};

// A panel (K, width) of B, whose `valid` columns begin at B. The rest of a vector is zero.
static inline void gemm_pack(floatX* panel, gemm_op_t tb, const floatX* B, size_t ldb, int width, int valid, int K) {
    int k = 0;
    if (tb == PLAIN && valid == GEMM_PANEL) { // a constant size: copied in registers
        for (; k < K; k++, panel += GEMM_PANEL, B += ldb) memcpy(panel, B, GEMM_PANEL * sizeof(floatX));
        return;
    }
    if (tb == PLAIN) {
        for (; k < K; k++, panel += width, B += ldb) {
            memcpy(panel, B, valid * sizeof(floatX));
            if (valid < width) memset(panel + valid, 0, (width - valid) * sizeof(floatX));
        }
        return;
    }
    for (; k + VECTOR_LANES <= K; k += VECTOR_LANES) {
        for (int j = 0; j < width; j += VECTOR_LANES) {
            vector_t v[VECTOR_LANES], zero = {0};
            #pragma GCC unroll 16
            for (int i = 0; i < VECTOR_LANES; i++) v[i] = j + i < valid ? vector_load(B + (j + i) * ldb + k) : zero;
            vector_transpose(v);
            #pragma GCC unroll 16
            for (int i = 0; i < VECTOR_LANES; i++) vector_store(panel + (size_t)(k + i) * width + j, v[i]);
        }
    }
    for (; k < K; k++) {
        for (int j = 0; j < width; j++) panel[(size_t)k * width + j] = j < valid ? B[j * ldb + k] : 0;
    }
}

// Rows of A that are asked for while a block is summed up: a later block copies them, and they may have to come from
// memory. A few at a time, so that those of the block's panel need not queue behind them.
typedef struct {
    const floatX* a; // (rows, K), lda apart
    size_t lda;
    int rows;
} gemm_ahead_t;

// sum (P, V vectors) of P rows of A, `by_row` apart, with a panel. P, V and the strides are constants at the call, so
// that the sums are registers.
VECTOR_INLINE void gemm_block(floatX* sum, const int P, const int V, const floatX* a, const size_t by_row,
                              const size_t by_k, const floatX* panel, int K, gemm_ahead_t ahead) {
    enum { LINE = 64 / sizeof(floatX), LEVEL_2 = 2 };
    vector_t total[GEMM_ROWS][2], zero = {0};
    #pragma GCC unroll 12
    for (int p = 0; p < P; p++) total[p][0] = total[p][1] = zero;
    for (int line = 0; line < K; line += LINE) {
        const int end = K - line < LINE ? K : line + LINE;
        for (int i = 0; i < ahead.rows; i++) __builtin_prefetch(ahead.a + i * ahead.lda + line, 0, LEVEL_2);
        for (int k = line; k < end; k++, a += by_k, panel += V * VECTOR_LANES) {
            vector_t b0 = vector_load(panel), b1 = V == 2 ? vector_load(panel + VECTOR_LANES) : zero;
            #pragma GCC unroll 12
            for (int p = 0; p < P; p++) {
                vector_t number = vector_splat(a[p * by_row]);
                total[p][0] = vector_multiply_add(number, b0, total[p][0]);
                if (V == 2) total[p][1] = vector_multiply_add(number, b1, total[p][1]);
            }
        }
    }
    #pragma GCC unroll 12
    for (int p = 0; p < P; p++) {
        vector_store(sum + p * V * VECTOR_LANES, total[p][0]);
        if (V == 2) vector_store(sum + p * V * VECTOR_LANES + VECTOR_LANES, total[p][1]);
    }
}

// The same with its constants filled in. Rows come in thirds of a block.
VECTOR_INLINE void gemm_sums(floatX* sum, int P, int V, const floatX* a, const size_t by_row, const size_t by_k,
                             const floatX* panel, int K, gemm_ahead_t ahead) {
    enum { THIRD = GEMM_ROWS / 3 };
    if (V == 2) {
        if (P == GEMM_ROWS) gemm_block(sum, GEMM_ROWS, 2, a, by_row, by_k, panel, K, ahead);
        else if (P == 2 * THIRD) gemm_block(sum, 2 * THIRD, 2, a, by_row, by_k, panel, K, ahead);
        else gemm_block(sum, THIRD, 2, a, by_row, by_k, panel, K, ahead);
    } else {
        if (P == GEMM_ROWS) gemm_block(sum, GEMM_ROWS, 1, a, by_row, by_k, panel, K, ahead);
        else if (P == 2 * THIRD) gemm_block(sum, 2 * THIRD, 1, a, by_row, by_k, panel, K, ahead);
        else gemm_block(sum, THIRD, 1, a, by_row, by_k, panel, K, ahead);
    }
}

// C (rows, columns) = alpha sum + beta C, where rows of sum are `width` apart.
static inline void gemm_write(floatX* C, size_t ldc, const floatX* sum, int rows, int columns, int width, floatX alpha,
                              floatX beta) {
    for (int i = 0; i < rows; i++, C += ldc, sum += width) {
        if (beta == 0) {
            for (int j = 0; j < columns; j++) C[j] = alpha * sum[j];
        } else {
            for (int j = 0; j < columns; j++) C[j] = alpha * sum[j] + beta * C[j];
        }
    }
}

// `rows` rows of op(A) of depth K, copied to where gemm_block reads them: [row][k], GEMM_STRIDE apart, or [k][row].
static inline void gemm_copy_rows(floatX* copy, gemm_op_t ta, const floatX* A, size_t lda, int rows, int K) {
    if (ta == PLAIN) {
        for (int i = 0; i < rows; i++) memcpy(copy + (size_t)i * GEMM_STRIDE, A + i * lda, K * sizeof(floatX));
    } else if (rows == GEMM_ROWS) {
        for (int k = 0; k < K; k++) memcpy(copy + (size_t)k * GEMM_ROWS, A + k * lda, GEMM_ROWS * sizeof(floatX));
    } else {
        for (int k = 0; k < K; k++) memcpy(copy + (size_t)k * GEMM_ROWS, A + k * lda, rows * sizeof(floatX));
    }
}

// C (M, N) = alpha op(A) B + beta C for one stretch of K, with B's panels. A block may compute rows that are not there,
// from what the copy holds behind them; they are not written.
VECTOR_LOOP void gemm_stretch(gemm_op_t ta, int M, int N, int K, floatX alpha, const floatX* A, size_t lda,
                                const floatX* panels, floatX beta, floatX* C, size_t ldc) {
    enum { THIRD = GEMM_ROWS / 3 };
    floatX copy[GEMM_ROWS * GEMM_STRIDE] __attribute__((aligned(64)));
    floatX sum[GEMM_ROWS * GEMM_PANEL] __attribute__((aligned(64)));
    const int across = (N + GEMM_PANEL - 1) / GEMM_PANEL;
    for (int i = 0; i < M; i += GEMM_ROWS) {
        int left = M - i - GEMM_ROWS, next = ta != PLAIN || left < 0 ? 0 : left < GEMM_ROWS ? left : (int)GEMM_ROWS;
        int rows = M - i < GEMM_ROWS ? M - i : GEMM_ROWS, P = (rows + THIRD - 1) / THIRD * THIRD;
        gemm_copy_rows(copy, ta, ta == PLAIN ? A + i * lda : A + i, lda, rows, K);
        for (int j = 0; j < N; j += GEMM_PANEL) {
            int columns = N - j < GEMM_PANEL ? N - j : GEMM_PANEL, V = columns > VECTOR_LANES ? 2 : 1;
            const floatX* panel = panels + (size_t)j * K;
            int begin = next * (j / GEMM_PANEL) / across, end = next * (j / GEMM_PANEL + 1) / across;
            gemm_ahead_t ahead = {A + (size_t)(i + GEMM_ROWS + begin) * lda, lda, end - begin};
            if (ta == PLAIN) gemm_sums(sum, P, V, copy, GEMM_STRIDE, 1, panel, K, ahead);
            else gemm_sums(sum, P, V, copy, 1, GEMM_ROWS, panel, K, ahead);
            gemm_write(C + i * ldc + j, ldc, sum, rows, columns, V * VECTOR_LANES, alpha, beta);
        }
    }
}

// As gemm_naive. Takes the last slot of cpu_scratch.
static inline void gemm(gemm_op_t ta, gemm_op_t tb, int M, int N, int K, floatX alpha, const floatX* A, int lda,
                        const floatX* B, int ldb, floatX beta, floatX* C, int ldc) {
    floatX* panels = (floatX*)cpu_scratch(GEMM_SCRATCH, (size_t)GEMM_DEPTH * GEMM_COLUMNS * sizeof(floatX));
    for (int j0 = 0; j0 < N; j0 += GEMM_COLUMNS) {
        int columns = N - j0 < GEMM_COLUMNS ? N - j0 : GEMM_COLUMNS;
        for (int k0 = 0; k0 == 0 || k0 < K; k0 += GEMM_DEPTH) {
            int depth = K - k0 < GEMM_DEPTH ? K - k0 : GEMM_DEPTH;
            for (int j = 0; j < columns; j += GEMM_PANEL) {
                int valid = columns - j < GEMM_PANEL ? columns - j : GEMM_PANEL;
                int width = valid > VECTOR_LANES ? GEMM_PANEL : VECTOR_LANES;
                const floatX* from = tb == PLAIN ? B + (size_t)k0 * ldb + j0 + j : B + (size_t)(j0 + j) * ldb + k0;
                gemm_pack(panels + (size_t)j * depth, tb, from, ldb, width, valid, depth);
            }
            gemm_stretch(ta, M, columns, depth, alpha, ta == PLAIN ? A + k0 : A + (size_t)k0 * lda, lda, panels,
                         k0 ? 1 : beta, C + j0, ldc);
        }
    }
}
