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
// First come these formulas as loops, the truth that tests hold the fast form against; then the fast form, which runs
// through gemm() and is shared among threads. Look next at dev/cpu/gemm.h, or at dev/cpu/layernorm.h.
#pragma once
// defines: floatX, floatS, stream_t
#include "common/device.h"
// defines: activation_t
#include "common/ops.h"
// defines: gelu_values
#include "dev/cpu/activation.h"
// defines: gemm, gemm_pack, gemm_stretch, GEMM_ROWS, GEMM_PANEL, GEMM_DEPTH
#include "dev/cpu/gemm.h"
// defines: add_column_sums
#include "dev/cpu/rows.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"
// defines: vector_t, vector_load, vector_store, vector_transpose
#include "dev/cpu/vector.h"

static inline void matmul_forward_naive(floatX* out,          // (N, OC)
                                        const floatX* x,      // (N, C)
                                        const floatX* weight, // (OC, C)
                                        const floatX* bias,   // (OC) or NULL
                                        size_t N, size_t C, size_t OC) {
    for (size_t n = 0; n < N; n++) {
        for (size_t o = 0; o < OC; o++) {
            floatX sum = bias ? bias[o] : 0;
            for (size_t c = 0; c < C; c++) sum += x[n * C + c] * weight[o * C + c];
            out[n * OC + o] = sum;
        }
    }
}

static inline void matmul_backward_naive(floatX* dx,           // (N, C)
                                         floatS* dweight,      // (OC, C) +=
                                         floatS* dbias,        // (OC) +=
                                         const floatX* dout,   // (N, OC)
                                         const floatX* x,      // (N, C)
                                         const floatX* weight, // (OC, C)
                                         size_t N, size_t C, size_t OC) {
    memset(dx, 0, N * C * sizeof(floatX));
    for (size_t n = 0; n < N; n++) {
        for (size_t o = 0; o < OC; o++) {
            floatX d = dout[n * OC + o];
            for (size_t c = 0; c < C; c++) {
                dx[n * C + c] += d * weight[o * C + c];
                dweight[o * C + c] += d * x[n * C + c];
            }
            dbias[o] += d;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The fast form

// An (M, N) output is cut into a grid of pieces; those of the last row and column may be smaller, or empty. Each is one
// call of gemm(), which first rearranges its operands: so pieces are large, and their sizes multiples of its blocks.
// How things are cut depends on the number of threads, and the result does not (dev/cpu/gemm.h).
typedef struct {
    size_t M, rows, down;   // rows of the output, rows of a piece, pieces one below the other
    int N, cols, across;    // the same for columns
    int shared;             // worth sharing among threads
} matmul_grid_t;

enum {
    MATMUL_ROWS = 512,      // most rows of a piece: what follows a product finds it in a cache
    MATMUL_TURNS = 3,       // pieces a thread, so that one that is held up takes fewer
    MATMUL_GRAIN = 1 << 21, // multiply-accumulates, about 40 microseconds: what makes a piece
};

static inline size_t matmul_pieces(size_t n, size_t size) { return (n + size - 1) / size; }
static inline size_t matmul_least(size_t a, size_t b) { return a < b ? a : b; }

static inline matmul_grid_t matmul_grid(size_t M, int N, size_t K) {
    matmul_grid_t g = {M, M, 1, N, N, 1, worth_sharing((double)M * N * K / MACS_OF_WORK)};
    if (M == 0 || N == 0) return g;
    size_t wanted = g.shared ? (size_t)MATMUL_TURNS * omp_get_max_threads() : 1;
    wanted = matmul_least(wanted, 1 + M * N * K / MATMUL_GRAIN);
    g.down = matmul_pieces(M, MATMUL_ROWS);
    g.across = (int)matmul_least(matmul_pieces(wanted, g.down), matmul_pieces(N, 2 * GEMM_PANEL));
    size_t down = matmul_least(matmul_pieces(wanted, g.across), matmul_pieces(M, 4 * GEMM_ROWS));
    if (down > g.down) g.down = down;
    g.rows = matmul_pieces(matmul_pieces(M, g.down), GEMM_ROWS) * GEMM_ROWS;
    g.cols = (int)matmul_pieces(matmul_pieces(N, g.across), GEMM_PANEL) * GEMM_PANEL;
    return g;
}

// Where a piece begins and how large it is.
typedef struct {
    size_t row;
    int col, rows, cols;
} matmul_piece_t;

static inline matmul_piece_t matmul_piece(matmul_grid_t g, size_t index) {
    matmul_piece_t p;
    p.row = index / g.across * g.rows;
    p.col = (int)(index % g.across) * g.cols;
    p.rows = p.row >= g.M ? 0 : (int)matmul_least(g.M - p.row, g.rows);
    p.cols = p.col >= g.N ? 0 : (int)matmul_least(g.N - p.col, g.cols);
    return p;
}

// out = x weight^T + bias and, where activated is given, activated = gelu(out): on each piece while it is in cache.
// The bias is laid down first and gemm() adds to it.
static inline void matmul_forward_pieces(floatX* out, floatX* activated, const floatX* x, const floatX* weight,
                                         const floatX* bias, size_t N, int C, int OC, activation_t act) {
    matmul_grid_t grid = matmul_grid(N, OC, C);
    #pragma omp parallel for schedule(dynamic) if (grid.shared)
    for (size_t index = 0; index < grid.down * grid.across; index++) {
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

// Where the rows of x are few beside the columns of out, the product is done mirrored: out^T = weight x^T. Each weight
// is then read once, as it lies, and what is rearranged is x, once for all threads. A number's sum is the same.
enum {
    MATMUL_FEWEST = 8,               // rows of x: with fewer, most of a vector would be empty
    MATMUL_MOST = 4096,              // rows of x: so many are copied at most
    MATMUL_TOKENS = 288,             // rows of x in a piece, about: GEMM_DEPTH of each stay in level 2
    MATMUL_SHARES = 4,               // pieces a thread: divides most widths, so that no thread is idle at the end
    MATMUL_LEAST_CHANNELS = 4 * GEMM_ROWS, // columns of out in a piece, in whole vectors
#if defined(__AVX512F__)
    MATMUL_MOST_CHANNELS = 384,      // as many as lie in level 2 beside x: 1 to 2 MiB where there is AVX-512, else 1/2
#else
    MATMUL_MOST_CHANNELS = 48,
#endif
    MATMUL_AHEAD = 4 * VECTOR_LANES, // numbers of a row of out that are asked for before they are written
    MATMUL_SCRATCH_X = 0, MATMUL_SCRATCH_OUT = 1,
};

static inline int matmul_is_mirrored(size_t N, int OC) {
    return N >= MATMUL_FEWEST && N <= MATMUL_MOST && N <= (size_t)OC;
}

// How the mirrored product is cut: `groups` of rows of x, and `down` pieces of as many channels of out.
typedef struct {
    size_t tokens, groups, channels, down;
    size_t padded; // rows of x, in whole vectors
    int shared;
} matmul_mirror_t;

static inline matmul_mirror_t matmul_mirror(size_t N, size_t C, size_t OC) {
    matmul_mirror_t m;
    m.shared = worth_sharing((double)N * C * OC / MACS_OF_WORK);
    m.padded = matmul_pieces(N, VECTOR_LANES) * VECTOR_LANES;
    m.tokens = matmul_pieces(matmul_pieces(N, matmul_pieces(N, MATMUL_TOKENS)), GEMM_PANEL) * GEMM_PANEL;
    m.groups = matmul_pieces(N, m.tokens);
    size_t wanted = m.shared ? matmul_pieces((size_t)MATMUL_SHARES * omp_get_max_threads(), m.groups) : 1;
    m.channels = matmul_pieces(matmul_pieces(OC, wanted), VECTOR_LANES) * VECTOR_LANES;
    if (m.channels < MATMUL_LEAST_CHANNELS) m.channels = MATMUL_LEAST_CHANNELS;
    if (m.channels > MATMUL_MOST_CHANNELS) m.channels = MATMUL_MOST_CHANNELS;
    m.down = matmul_pieces(OC, m.channels);
    return m;
}

// x^T as gemm_stretch reads it: for each stretch of GEMM_DEPTH of C, and panel of rows of x, [c][row].
static inline floatX* matmul_mirror_x(const floatX* x, matmul_mirror_t m, size_t N, size_t C) {
    floatX* panels = (floatX*)cpu_scratch(MATMUL_SCRATCH_X, m.padded * C * sizeof(floatX));
    size_t across = matmul_pieces(N, GEMM_PANEL), stretches = matmul_pieces(C, GEMM_DEPTH);
    #pragma omp parallel for schedule(dynamic) if (m.shared)
    for (size_t index = 0; index < across * stretches; index++) {
        size_t row = index / stretches * GEMM_PANEL, c = index % stretches * GEMM_DEPTH;
        int depth = (int)matmul_least(GEMM_DEPTH, C - c), valid = (int)matmul_least(GEMM_PANEL, N - row);
        int width = valid > VECTOR_LANES ? GEMM_PANEL : VECTOR_LANES;
        gemm_pack(panels + c * m.padded + row * depth, TRANSPOSED, x + row * C + c, C, width, valid, depth);
    }
    return panels;
}

// out (rows, cols) = mirrored (cols, rows)^T; `by` numbers lie from row to row of mirrored, which has whole vectors of
// rows and columns.
static inline void matmul_mirror_back(floatX* out, size_t ld, const floatX* mirrored, size_t by, int rows, int cols) {
    for (int i = 0; i < rows; i += VECTOR_LANES) {
        for (int j = 0; j < cols; j += VECTOR_LANES) {
            vector_t v[VECTOR_LANES];
            int down = (int)matmul_least(rows - i, VECTOR_LANES), valid = (int)matmul_least(cols - j, VECTOR_LANES);
            for (int k = 0; k < down && j + MATMUL_AHEAD < cols; k++) { // what lies behind is another thread's
                __builtin_prefetch(out + (i + k) * ld + j + MATMUL_AHEAD, 1);
            }
            #pragma GCC unroll 16
            for (int k = 0; k < VECTOR_LANES; k++) v[k] = vector_load(mirrored + (j + k) * by + i);
            vector_transpose(v, VECTOR_LANES);
            for (int k = 0; k < down; k++) {
                floatX* to = out + (i + k) * ld + j;
                if (valid == VECTOR_LANES) vector_store(to, v[k]);
                else memcpy(to, &v[k], valid * sizeof(floatX));
            }
        }
    }
}

// As matmul_forward_pieces.
static inline void matmul_forward_mirrored(floatX* out, floatX* activated, const floatX* x, const floatX* weight,
                                           const floatX* bias, size_t N, int C, int OC, activation_t act) {
    matmul_mirror_t m = matmul_mirror(N, C, OC);
    floatX* panels = matmul_mirror_x(x, m, N, C);
    #pragma omp parallel for schedule(dynamic) if (m.shared)
    for (size_t index = 0; index < m.groups * m.down; index++) { // groups that share weights follow one another
        size_t token = index % m.groups * m.tokens, o = index / m.groups * m.channels, by = m.tokens + VECTOR_LANES;
        int rows = (int)matmul_least(m.tokens, N - token), cols = (int)matmul_least(m.channels, OC - o);
        floatX* mirrored = (floatX*)cpu_scratch(MATMUL_SCRATCH_OUT, m.channels * by * sizeof(floatX)); // (cols, by)
        for (int i = 0; bias && i < cols; i++) {
            for (int j = 0; j < rows; j++) mirrored[i * by + j] = bias[o + i];
        }
        for (size_t c = 0; c < (size_t)C; c += GEMM_DEPTH) {
            int depth = (int)matmul_least(GEMM_DEPTH, C - c);
            gemm_stretch(PLAIN, cols, rows, depth, 1, weight + o * C + c, C, panels + c * m.padded + token * depth,
                         bias || c ? 1 : 0, mirrored, by);
        }
        size_t corner = token * OC + o;
        matmul_mirror_back(out + corner, OC, mirrored, by, rows, cols);
        for (int i = 0; activated && i < rows; i++) {
            gelu_values(activated + corner + (size_t)i * OC, out + corner + (size_t)i * OC, cols, act);
        }
    }
}

void matmul_forward(floatX* out,          // (N, OC)
                    const floatX* x,      // (N, C)
                    const floatX* weight, // (OC, C)
                    const floatX* bias,   // (OC) or NULL
                    size_t N, int C, int OC, stream_t s) {
    (void)s;
    if (matmul_is_mirrored(N, OC)) matmul_forward_mirrored(out, NULL, x, weight, bias, N, C, OC, ACT_NONE);
    else matmul_forward_pieces(out, NULL, x, weight, bias, N, C, OC, ACT_NONE);
}

void matmul_gelu_forward(floatX* out,          // (N, OC)
                         floatX* pre,          // (N, OC)
                         const floatX* x,      // (N, C)
                         const floatX* weight, // (OC, C)
                         const floatX* bias,   // (OC) or NULL
                         size_t N, int C, int OC, activation_t act, stream_t s) {
    (void)s;
    if (matmul_is_mirrored(N, OC)) matmul_forward_mirrored(pre, out, x, weight, bias, N, C, OC, act);
    else matmul_forward_pieces(pre, out, x, weight, bias, N, C, OC, act);
}

void matmul_add_forward(floatX* out,          // (N, OC) +=
                        const floatX* x,      // (N, C)
                        const floatX* weight, // (OC, C)
                        size_t N, int C, int OC, stream_t s) {
    (void)s;
    matmul_grid_t grid = matmul_grid(N, OC, C);
    #pragma omp parallel for schedule(dynamic) if (grid.shared)
    for (size_t index = 0; index < grid.down * grid.across; index++) {
        matmul_piece_t p = matmul_piece(grid, index);
        if (p.rows == 0 || p.cols == 0) continue;
        gemm(PLAIN, TRANSPOSED, p.rows, p.cols, C, 1, x + p.row * C, C, weight + (size_t)p.col * C, C,
             1, out + p.row * OC + p.col, OC);
    }
}

// dx = keep dx + dout weight, keep being 0 or 1
static inline void matmul_backward_data(floatX* dx, const floatX* dout, const floatX* weight, floatX keep,
                                        size_t N, int C, int OC) {
    matmul_grid_t grid = matmul_grid(N, C, OC);
    #pragma omp parallel for schedule(dynamic) if (grid.shared)
    for (size_t index = 0; index < grid.down * grid.across; index++) {
        matmul_piece_t p = matmul_piece(grid, index);
        if (p.rows == 0 || p.cols == 0) continue;
        gemm(PLAIN, PLAIN, p.rows, p.cols, OC, 1, dout + p.row * OC, OC, weight + p.col, C,
             keep, dx + p.row * C + p.col, C);
    }
}

// dweight += dout^T x
static inline void matmul_backward_weight(floatS* dweight, const floatX* dout, const floatX* x,
                                          size_t N, int C, int OC) {
    matmul_grid_t grid = matmul_grid(OC, C, N);
    #pragma omp parallel for schedule(dynamic) if (grid.shared)
    for (size_t index = 0; index < grid.down * grid.across; index++) {
        matmul_piece_t p = matmul_piece(grid, index);
        if (p.rows == 0 || p.cols == 0) continue;
        gemm(TRANSPOSED, PLAIN, p.rows, p.cols, (int)N, 1, dout + p.row, OC, x + p.col, C,
             1, dweight + p.row * C + p.col, C);
    }
}

// The same for a small dweight and many rows, where the output has no pieces to share: the rows are cut into stretches,
// by the sizes alone, each adds up in a matrix of its own, and these are added in order.
enum { MATMUL_STRETCH = 2048, MATMUL_STRETCHES = 16, MATMUL_SMALL = 1 << 13 };

static inline size_t matmul_stretches(size_t N, int C, int OC) {
    return (size_t)OC * C > MATMUL_SMALL ? 1 : matmul_least(1 + N / MATMUL_STRETCH, MATMUL_STRETCHES);
}

static inline void matmul_backward_small_weight(floatS* dweight, const floatX* dout, const floatX* x,
                                                size_t N, int C, int OC) {
    size_t stretches = matmul_stretches(N, C, OC), weights = (size_t)OC * C;
    floatS* sums = (floatS*)cpu_scratch(0, stretches * weights * sizeof(floatS));
    #pragma omp parallel for schedule(dynamic) if (worth_sharing((double)weights * N / MACS_OF_WORK))
    for (size_t k = 0; k < stretches; k++) {
        size_t first = N * k / stretches, rows = N * (k + 1) / stretches - first;
        gemm(TRANSPOSED, PLAIN, OC, C, (int)rows, 1, dout + first * OC, OC, x + first * C, C, 0, sums + k * weights, C);
    }
    for (size_t k = 0; k < stretches; k++) {
        for (size_t i = 0; i < weights; i++) dweight[i] += sums[k * weights + i];
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
    if (dx) matmul_backward_data(dx, dout, weight, 0, N, C, OC);
    if (dweight && matmul_stretches(N, C, OC) > 1) matmul_backward_small_weight(dweight, dout, x, N, C, OC);
    else if (dweight) matmul_backward_weight(dweight, dout, x, N, C, OC);
    if (dbias) add_column_sums(dbias, dout, N, OC);
}

void matmul_add_backward(floatX* dx,           // (N, C) +=
                         floatS* dweight,      // (OC, C) or NULL
                         floatS* dbias,        // (OC) or NULL
                         const floatX* dout,   // (N, OC)
                         const floatX* x,      // (N, C)
                         const floatX* weight, // (OC, C)
                         size_t N, int C, int OC, stream_t s) {
    matmul_backward_data(dx, dout, weight, 1, N, C, OC);
    matmul_backward(NULL, dweight, dbias, dout, x, weight, N, C, OC, s);
}
