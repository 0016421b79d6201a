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
// defines: vector_t, vector_load, vector_store, vector_splat, vector_add_product, vector_load_parts, vector_transpose
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
//   level 1     GEMM_ROWS rows of A, GEMM_DEPTH long, rearranged in the order of reading, [k][row]
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
    GEMM_STRIDE = (GEMM_ROWS + VECTOR_LANES - 1) / VECTOR_LANES * VECTOR_LANES, // from k to k of A: whole vectors
    GEMM_SCRATCH = SCRATCH_SLOTS - 1,
};

// panel[k][j] = B[j][k] for j < rows, which is a constant where it is called often; zero for the rest of a vector.
VECTOR_INLINE void gemm_pack_vector(floatX* panel, size_t width, const floatX* B, size_t ldb, int rows, int K) {
    int k = 0;
    for (; k + VECTOR_PART <= K; k += VECTOR_PART) {
        vector_t v[VECTOR_PART];
        #pragma GCC unroll 4
        for (int i = 0; i < VECTOR_PART; i++) {
            int parts = (rows - i + VECTOR_PART - 1) / VECTOR_PART;
            v[i] = vector_load_parts(B + i * ldb + k, VECTOR_PART * ldb, parts);
        }
        vector_transpose(v, VECTOR_PART);
        #pragma GCC unroll 4
        for (int i = 0; i < VECTOR_PART; i++) vector_store(panel + (k + i) * width, v[i]);
    }
    for (; k < K; k++) {
        for (int j = 0; j < VECTOR_LANES; j++) panel[k * width + j] = j < rows ? B[j * ldb + k] : 0;
    }
}

// A panel (K, width) of B, whose `valid` columns begin at B. The rest of a vector is zero.
static inline void gemm_pack(floatX* panel, gemm_op_t tb, const floatX* B, size_t ldb, int width, int valid, int K) {
    if (tb == PLAIN && valid == GEMM_PANEL) { // a constant size: copied in registers
        for (int k = 0; k < K; k++, panel += GEMM_PANEL, B += ldb) memcpy(panel, B, GEMM_PANEL * sizeof(floatX));
        return;
    }
    if (tb == PLAIN) {
        for (int k = 0; k < K; k++, panel += width, B += ldb) {
            memcpy(panel, B, valid * sizeof(floatX));
            if (valid < width) memset(panel + valid, 0, (width - valid) * sizeof(floatX));
        }
        return;
    }
    for (int j = 0; j < width; j += VECTOR_LANES) {
        int rows = valid - j;
        if (rows >= VECTOR_LANES) gemm_pack_vector(panel + j, width, B + j * ldb, ldb, VECTOR_LANES, K);
        else if (rows == GEMM_ROWS) gemm_pack_vector(panel + j, width, B + j * ldb, ldb, GEMM_ROWS, K);
        else gemm_pack_vector(panel + j, width, B + j * ldb, ldb, rows, K);
    }
}

// A block of C: GEMM_ROWS rows of A or fewer times a panel of B.
typedef struct {
    const floatX* a;     // rows of A: [k][row], GEMM_STRIDE apart
    const floatX* panel; // (K, columns) of B
    const floatX* edge;  // one more column, its numbers VECTOR_LANES apart, or NULL
    int K;
    floatX* C;           // (rows, columns) = alpha sum + beta C, ldc apart
    size_t ldc;
    floatX alpha, beta;
    floatX* edge_sum;    // (rows) of the one more column
    // Rows of A that are asked for meanwhile, a line of each at a time, so that what the block reads need not queue
    // behind them: a later block copies them, and they may have to come from memory.
    const floatX* ahead; // (ahead_rows, K), lda apart
    size_t lda;
    int ahead_rows;
} gemm_block_t;

// P rows and V vectors of columns; EDGE: with the column more, whose sums have rows for lanes. These are constants at
// the call, so that the sums are registers.
VECTOR_INLINE void gemm_block(const int P, const int V, const int EDGE, const gemm_block_t* block) {
    enum { LINE = 64 / sizeof(floatX), LANES = VECTOR_LANES, EDGES = GEMM_STRIDE / LANES };
    const floatX *a = block->a, *panel = block->panel, *edge = block->edge;
    vector_t total[GEMM_ROWS][2], column[EDGES], zero = {0};
    #pragma GCC unroll 12
    for (int p = 0; p < P; p++) total[p][0] = total[p][1] = zero;
    #pragma GCC unroll 2
    for (int e = 0; e < EDGES; e++) column[e] = zero;
    for (int line = 0; line < block->K; line += LINE) {
        const int end = block->K - line < LINE ? block->K : line + LINE;
        for (int i = 0; i < block->ahead_rows; i++) __builtin_prefetch(block->ahead + i * block->lda + line);
        #pragma GCC unroll 1
        for (int k = line; k < end; k++, a += GEMM_STRIDE, panel += V * LANES) {
            vector_t b0 = vector_load(panel), b1 = V == 2 ? vector_load(panel + LANES) : zero;
            #pragma GCC unroll 12
            for (int p = 0; p < P; p++) {
                vector_t number = vector_splat(a[p]);
                vector_add_product(&total[p][0], number, b0);
                if (V == 2) vector_add_product(&total[p][1], number, b1);
            }
            #pragma GCC unroll 2
            for (int e = 0; EDGE && e < EDGES; e++) {
                vector_add_product(&column[e], vector_splat(edge[(size_t)k * LANES]), vector_load(a + e * LANES));
            }
        }
    }
    vector_t alpha = vector_splat(block->alpha), beta = vector_splat(block->beta);
    #pragma GCC unroll 12
    for (int p = 0; p < P; p++) {
        #pragma GCC unroll 2
        for (int v = 0; v < V; v++) {
            floatX* to = block->C + p * block->ldc + v * LANES;
            vector_t sum = alpha * total[p][v];
            if (block->beta != 0) sum += beta * vector_load(to);
            vector_store(to, sum);
        }
    }
    #pragma GCC unroll 2
    for (int e = 0; EDGE && e < EDGES; e++) vector_store(block->edge_sum + e * LANES, column[e]);
}

// The same with its constants filled in. Rows come in thirds of a block. A call: the registers hold nothing else.
__attribute__((noinline)) VECTOR_LOOP void gemm_sums(int P, int V, const gemm_block_t* block) {
    enum { THIRD = GEMM_ROWS / 3 };
    if (block->edge) {
        if (P == GEMM_ROWS) gemm_block(GEMM_ROWS, 2, 1, block);
        else if (P == 2 * THIRD) gemm_block(2 * THIRD, 2, 1, block);
        else gemm_block(THIRD, 2, 1, block);
    } else if (V == 2) {
        if (P == GEMM_ROWS) gemm_block(GEMM_ROWS, 2, 0, block);
        else if (P == 2 * THIRD) gemm_block(2 * THIRD, 2, 0, block);
        else gemm_block(THIRD, 2, 0, block);
    } else {
        if (P == GEMM_ROWS) gemm_block(GEMM_ROWS, 1, 0, block);
        else if (P == 2 * THIRD) gemm_block(2 * THIRD, 1, 0, block);
        else gemm_block(THIRD, 1, 0, block);
    }
}

// C (rows, columns) = alpha sum + beta C, where rows of sum are `width` apart. The product with alpha is rounded before
// the rest, as in gemm_block: clang fuses what stands in one expression.
static inline void gemm_write(floatX* C, size_t ldc, const floatX* sum, int rows, int columns, int width, floatX alpha,
                              floatX beta) {
    for (int i = 0; i < rows; i++, C += ldc, sum += width) {
        if (beta == 0) {
            for (int j = 0; j < columns; j++) C[j] = alpha * sum[j];
        } else {
            for (int j = 0; j < columns; j++) {
                floatX scaled = alpha * sum[j];
                C[j] = scaled + beta * C[j];
            }
        }
    }
}

// The next rows of op(A), of depth K, copied to where gemm_block reads them: a block's, or the `left` that are left.
static inline void gemm_copy_rows(floatX* copy, gemm_op_t ta, const floatX* A, size_t lda, int left, int K) {
    if (ta == PLAIN) {
        gemm_pack(copy, TRANSPOSED, A, lda, GEMM_STRIDE, left < GEMM_ROWS ? left : GEMM_ROWS, K);
    } else if (left >= GEMM_STRIDE) { // a constant size: copied in registers
        for (int k = 0; k < K; k++) memcpy(copy + (size_t)k * GEMM_STRIDE, A + k * lda, GEMM_STRIDE * sizeof(floatX));
    } else {
        for (int k = 0; k < K; k++) memcpy(copy + (size_t)k * GEMM_STRIDE, A + k * lda, left * sizeof(floatX));
    }
}

// C (M, N) = alpha op(A) B + beta C for one stretch of K, with B's panels. A block may compute rows and columns that
// are not there, from what the copies hold behind them: it is then summed up aside. A last column alone, which would
// take a vector for itself, goes with the panel before it.
VECTOR_LOOP void gemm_stretch(gemm_op_t ta, int M, int N, int K, floatX alpha, const floatX* A, size_t lda,
                              const floatX* panels, floatX beta, floatX* C, size_t ldc) {
    enum { THIRD = GEMM_ROWS / 3 };
    floatX copy[GEMM_DEPTH * GEMM_STRIDE] __attribute__((aligned(64)));
    floatX aside[GEMM_ROWS * GEMM_PANEL] __attribute__((aligned(64))), edge_sum[GEMM_STRIDE];
    const int wide = N > GEMM_PANEL && N % GEMM_PANEL == 1 ? N - 1 : N, across = (wide + GEMM_PANEL - 1) / GEMM_PANEL;
    for (int i = 0; i < M; i += GEMM_ROWS) {
        int left = M - i - GEMM_ROWS, next = ta != PLAIN || left < 0 ? 0 : left < GEMM_ROWS ? left : (int)GEMM_ROWS;
        int rows = M - i < GEMM_ROWS ? M - i : GEMM_ROWS, P = (rows + THIRD - 1) / THIRD * THIRD;
        gemm_copy_rows(copy, ta, ta == PLAIN ? A + i * lda : A + i, lda, M - i, K);
        for (int j = 0; j < wide; j += GEMM_PANEL) {
            int columns = wide - j < GEMM_PANEL ? wide - j : GEMM_PANEL, V = columns > VECTOR_LANES ? 2 : 1;
            int begin = next * (j / GEMM_PANEL) / across, end = next * (j / GEMM_PANEL + 1) / across;
            gemm_block_t block = {copy, panels + (size_t)j * K, NULL, K, C + i * ldc + j, ldc, alpha, beta, edge_sum,
                                  A + (size_t)(i + GEMM_ROWS + begin) * lda, lda, end - begin};
            if (wide < N && j + GEMM_PANEL == wide) block.edge = panels + (size_t)wide * K;
            int whole = rows == P && columns == V * VECTOR_LANES;
            if (!whole) block.C = aside, block.ldc = V * VECTOR_LANES, block.alpha = 1, block.beta = 0;
            gemm_sums(P, V, &block);
            if (!whole) gemm_write(C + i * ldc + j, ldc, aside, rows, columns, V * VECTOR_LANES, alpha, beta);
            if (block.edge) gemm_write(C + i * ldc + wide, ldc, edge_sum, rows, 1, 1, alpha, beta);
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
