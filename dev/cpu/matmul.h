// matmul.h: the matrix products of linear layers, and the GELU that follows the first one of an MLP.
//
//   out = x W^T + bias,  x (N, C) with one row a token, W (OC, C)
//
// Backward. Entry by entry out[n,o] = sum_c x[n,c] W[o,c] + bias[o]. With dout = dL/dout the chain rule gives
//   dx[n,c]   = sum_o dout[n,o] d out[n,o] / d x[n,c]  = sum_o dout[n,o] W[o,c]         dx    = dout W
//   dW[o,c]   = sum_n dout[n,o] d out[n,o] / d W[o,c]  = sum_n dout[n,o] x[n,c]         dW    = dout^T x
//   dbias[o]  = sum_n dout[n,o]
// so that the backward is two products of the forward's size.
//
// Each product is cut into pieces of its output. Every piece is one call of gemm(), and threads share the pieces. Where
// the output is too small to occupy several threads but the sum is long (dW of a narrow layer), the sum is cut as well:
// every stretch of rows adds up in a matrix of its own, and these are added in order. How things are cut depends on the
// sizes alone, so the result does not depend on the number of threads.
//
// Look next at dev/cpu/layernorm.h.
#pragma once
// defines: floatX, floatS, stream_t
#include "common/device.h"
// defines: activation_t
#include "common/ops.h"
// defines: gelu_values
#include "dev/cpu/activation.h"
// defines: gemm, cpu_scratch
#include "dev/cpu/gemm.h"
// defines: add_column_sums
#include "dev/cpu/rows.h"

// A grid of pieces over an (M, N) output; the pieces of the last row and column may be smaller, or empty.
typedef struct {
    size_t M;             // rows of the output
    int N;                // columns of the output
    size_t rows;          // rows of a piece
    int cols;             // columns of a piece
    size_t row_pieces;
    int col_pieces;
} matmul_grid_t;

// Each gemm() call first rearranges its operands, which is paid once a piece: so pieces are large, about 256 x 512.
// As long as there are fewer than MATMUL_PIECES of them, they are halved to give several threads work; but never below
// 128 rows or columns, nor below MATMUL_GRAIN multiply-accumulates (about 80 microseconds).
enum { MATMUL_PIECES = 8, MATMUL_GRAIN = 1 << 22 };

// Whether `total` multiply-accumulates in `pieces` pieces should be cut once more.
static inline int matmul_should_halve(size_t pieces, double total) {
    return pieces < MATMUL_PIECES && total / (double)pieces >= 2 * (int)MATMUL_GRAIN;
}

static inline matmul_grid_t matmul_grid(size_t M, int N, size_t K) {
    matmul_grid_t g;
    g.M = M;
    g.N = N;
    g.row_pieces = (M + 128) / 256 > 1 ? (M + 128) / 256 : 1;
    g.col_pieces = (N + 511) / 512;
    while (matmul_should_halve(g.row_pieces * g.col_pieces, (double)M * N * K)) {
        if (N / g.col_pieces >= 256) g.col_pieces *= 2;
        else if (M / g.row_pieces >= 256) g.row_pieces *= 2;
        else break;
    }
    g.rows = (M + g.row_pieces - 1) / g.row_pieces;
    g.cols = (N + g.col_pieces - 1) / g.col_pieces;
    return g;
}

// Where a piece begins and how large it is.
typedef struct {
    size_t row;
    int col, rows, cols;
} matmul_piece_t;

static inline matmul_piece_t matmul_piece(matmul_grid_t g, size_t index) {
    matmul_piece_t p;
    p.row = index / g.col_pieces * g.rows;
    p.col = (int)(index % g.col_pieces) * g.cols;
    p.rows = p.row >= g.M ? 0 : (int)(g.M - p.row < g.rows ? g.M - p.row : g.rows);
    p.cols = p.col >= g.N ? 0 : (g.N - p.col < g.cols ? g.N - p.col : g.cols);
    return p;
}

// out = x weight^T + bias and, where activated is given, activated = gelu(out): on each piece while it is in cache.
// The bias is laid down first and gemm() adds to it.
static inline void matmul_pieces(floatX* out, floatX* activated, const floatX* x, const floatX* weight,
                                 const floatX* bias, size_t N, int C, int OC, activation_t act) {
    matmul_grid_t grid = matmul_grid(N, OC, C);
    #pragma omp parallel for schedule(dynamic)
    for (size_t index = 0; index < grid.row_pieces * grid.col_pieces; index++) {
        matmul_piece_t p = matmul_piece(grid, index);
        if (p.rows == 0 || p.cols == 0) continue;
        size_t corner = p.row * OC + p.col;
        for (int i = 0; bias && i < p.rows; i++) {
            memcpy(out + corner + (size_t)i * OC, bias + p.col, p.cols * sizeof(floatX));
        }
        gemm(PLAIN, TRANSPOSED, p.rows, p.cols, C, 1, x + p.row * C, C, weight + (size_t)p.col * C, C,
             bias ? 1 : 0, out + corner, OC);
        for (int i = 0; activated && i < p.rows; i++) {
            gelu_values(activated + corner + (size_t)i * OC, out + corner + (size_t)i * OC, p.cols, act);
        }
    }
}

void matmul_forward(floatX* out,          // (N, OC)
                    const floatX* x,      // (N, C)
                    const floatX* weight, // (OC, C)
                    const floatX* bias,   // (OC) or NULL
                    size_t N, int C, int OC, stream_t s) {
    (void)s;
    matmul_pieces(out, NULL, x, weight, bias, N, C, OC, ACT_NONE);
}

void matmul_gelu_forward(floatX* out,          // (N, OC)
                         floatX* pre,          // (N, OC)
                         const floatX* x,      // (N, C)
                         const floatX* weight, // (OC, C)
                         const floatX* bias,   // (OC) or NULL
                         size_t N, int C, int OC, activation_t act, stream_t s) {
    (void)s;
    matmul_pieces(pre, out, x, weight, bias, N, C, OC, act);
}

// dx = dout weight
static inline void matmul_backward_data(floatX* dx, const floatX* dout, const floatX* weight,
                                        size_t N, int C, int OC) {
    matmul_grid_t grid = matmul_grid(N, C, OC);
    #pragma omp parallel for schedule(dynamic)
    for (size_t index = 0; index < grid.row_pieces * grid.col_pieces; index++) {
        matmul_piece_t p = matmul_piece(grid, index);
        if (p.rows == 0 || p.cols == 0) continue;
        gemm(PLAIN, PLAIN, p.rows, p.cols, OC, 1, dout + p.row * OC, OC, weight + p.col, C,
             0, dx + p.row * C + p.col, C);
    }
}

// dweight += dout^T x. The N rows are cut into `slots` stretches: the first adds to dweight itself, each other one
// fills a matrix in scratch.
static inline void matmul_backward_weight(floatS* dweight, const floatX* dout, const floatX* x,
                                          size_t N, int C, int OC) {
    matmul_grid_t grid = matmul_grid(OC, C, N);
    size_t pieces = grid.row_pieces * grid.col_pieces, weights = (size_t)OC * C;
    size_t slots = 1;
    while (matmul_should_halve(pieces * slots, (double)weights * N)) slots *= 2;
    size_t stretch = (N + slots - 1) / slots;
    floatS* sums = (floatS*)cpu_scratch(0, (slots - 1) * weights * sizeof(floatS));
    #pragma omp parallel for schedule(dynamic)
    for (size_t index = 0; index < pieces * slots; index++) {
        size_t slot = index / pieces, first = slot * stretch < N ? slot * stretch : N;
        size_t rows = N - first < stretch ? N - first : stretch;
        matmul_piece_t p = matmul_piece(grid, index % pieces);
        if (p.rows == 0 || p.cols == 0) continue;
        floatS* target = slot ? sums + (slot - 1) * weights : dweight;
        gemm(TRANSPOSED, PLAIN, p.rows, p.cols, (int)rows, 1, dout + first * OC + p.row, OC, x + first * C + p.col, C,
             slot ? 0 : 1, target + p.row * C + p.col, C);
    }
    if (slots == 1) return;
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < weights; i++) {
        floatS sum = dweight[i];
        for (size_t slot = 1; slot < slots; slot++) sum += sums[(slot - 1) * weights + i];
        dweight[i] = sum;
    }
}

void matmul_backward(floatX* dx,           // (N, C) or NULL
                     floatS* dweight,      // (OC, C) or NULL
                     floatS* dbias,        // (OC) or NULL
                     const floatX* dout,   // (N, OC)
                     const floatX* x,      // (N, C)
                     const floatX* weight, // (OC, C)
                     size_t N, int C, int OC, stream_t s) {
    (void)s;
    if (dx) matmul_backward_data(dx, dout, weight, N, C, OC);
    if (dweight) matmul_backward_weight(dweight, dout, x, N, C, OC);
    if (dbias) add_column_sums(dbias, dout, N, OC);
}
