// winograd.h: the 3x3 convolution with stride 1 in 2.25 times fewer products, where maps and channels are large.
//
// In one dimension two neighbouring outputs of a kernel g of 3 taps are, with 4 inputs d,
//   y0 = d0 g0 + d1 g1 + d2 g2,   y1 = d1 g0 + d2 g1 + d3 g2:   6 products.
// With m0 = (d0 - d2) g0,  m1 = (d1 + d2) (g0 + g1 + g2) / 2,  m2 = (d2 - d1) (g0 - g1 + g2) / 2,  m3 = (d1 - d3) g2
//   y0 = m0 + m1 + m2,   y1 = m1 - m2 - m3:                     4 products, as multiplying out shows.
// As matrices: y = A^T ((G g) * (B^T d)), * being the product of each two numbers that stand at the same place, and
//         1   0   0             1  0 -1  0            1  1  1  0
//   G = 1/2 1/2 1/2    B^T =    0  1  1  0    A^T =   0  1 -1 -1
//       1/2 -1/2 1/2            0 -1  1  0
//         0   0   1             0  1  0 -1
// In two dimensions this is done to rows and to columns: a square of 2 x 2 outputs sees 4 x 4 inputs, and
//   Y = A^T ((G g G^T) * (B^T d B)) A:   16 products for 36.                    Winograd 1980; Lavin & Gray 2016
// The sum over input channels may be taken before A, which is linear. So the convolution becomes 16 matrix products,
// one for each place p of the 4 x 4:
//   M[p] (squares, OC) = V[p] (squares, C) U[p] (C, OC),   V = B^T d B of each square,   U = G g G^T of each kernel
//
// The truth is conv2d_forward_naive, and conv_run the fast form without this. B has only 0 and 1 and -1, so that V and
// Y are sums of a few numbers: in float the error stays near that of the direct form (tests/test_winograd.c). 4 x 4
// outputs from 6 x 6 inputs would save 4 times, but its matrices have numbers up to 8, and errors grow with them.
//
// Squares are shared among threads, some rows of them of one image at a time. How a square is rounded depends on
// nothing beside it. Look next at dev/cpu/conv.h.
#pragma once
// defines: floatX
#include "common/device.h"
// defines: conv_job_t, conv_pieces, conv_min, conv_max, conv_panel_size, conv_position, conv_write, CONV_SCRATCH_*
#include "dev/cpu/conv_tile.h"
// defines: gemm_stretch, GEMM_DEPTH, GEMM_PANEL
#include "dev/cpu/gemm.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"
// defines: vector_t, vector_load, vector_store
#include "dev/cpu/vector.h"

enum {
    WINOGRAD_PLACES = 16,
    WINOGRAD_SQUARES = 128,     // about what a task takes: each number of U is used so often
    WINOGRAD_CHANNELS = 64,     // with fewer, on either side, the transforms cost what the products save
    WINOGRAD_PIXELS = 16 * 16,  // on smaller maps U, 16/9 of the weights, is made for too few squares
};

// By the sizes of one image alone: its numbers do not depend on its batch.
static inline int winograd_suits(const conv_job_t* job) {
    return job->KH == 3 && job->KW == 3 && job->stride == 1 && job->step == 1 && job->C >= WINOGRAD_CHANNELS &&
           job->OC >= WINOGRAD_CHANNELS && job->C % 16 == 0 && job->OC % 16 == 0 &&
           (long)job->OH * job->OW >= WINOGRAD_PIXELS;
}

// U from the panels of the direct form, [u][v][c][channel]: for each place, stretch of GEMM_DEPTH of C and panel of
// channels what gemm_stretch reads, [c][channel].
static inline floatX* winograd_weights(const conv_job_t* job) {
    size_t C = job->C, OC = job->OC, place = C * OC;
    floatX* U = (floatX*)cpu_scratch(CONV_SCRATCH_SUMS, WINOGRAD_PLACES * place * sizeof(floatX));
    #pragma omp parallel for collapse(2) schedule(static) if (worth_sharing((double)(WINOGRAD_PLACES * place)))
    for (size_t o = 0; o < OC; o += GEMM_PANEL) {
        for (size_t c = 0; c < C; c++) {
            int width = OC - o < GEMM_PANEL ? (int)(OC - o) : (int)GEMM_PANEL;
            size_t k0 = c / GEMM_DEPTH * GEMM_DEPTH, depth = C - k0 < GEMM_DEPTH ? C - k0 : (size_t)GEMM_DEPTH;
            const floatX* from = job->panels + o / GEMM_PANEL * conv_panel_size(job) + (c + 1) * width;
            floatX* to = U + k0 * OC + o * depth + (c - k0) * width;
            for (int lane = 0; lane < width; lane += VECTOR_LANES) {
                vector_t t[4][3];
                for (int v = 0; v < 3; v++) { // G g
                    vector_t g0 = vector_load(from + (0 + v) * C * width + lane);
                    vector_t g1 = vector_load(from + (3 + v) * C * width + lane);
                    vector_t g2 = vector_load(from + (6 + v) * C * width + lane);
                    t[0][v] = g0;
                    t[1][v] = (g0 + g1 + g2) * (floatX)0.5;
                    t[2][v] = (g0 - g1 + g2) * (floatX)0.5;
                    t[3][v] = g2;
                }
                for (int i = 0; i < 4; i++, to += 4 * place) { // (G g) G^T
                    vector_store(to + lane, t[i][0]);
                    vector_store(to + place + lane, (t[i][0] + t[i][1] + t[i][2]) * (floatX)0.5);
                    vector_store(to + 2 * place + lane, (t[i][0] - t[i][1] + t[i][2]) * (floatX)0.5);
                    vector_store(to + 3 * place + lane, t[i][2]);
                }
                to -= WINOGRAD_PLACES * place;
            }
        }
    }
    return U;
}

// V of one square, whose places lie `next` apart: B^T d B of the 16 pixels d, each C channels.
static inline void winograd_input(floatX* V, size_t next, const floatX** d, int C) {
    for (int c = 0; c < C; c += VECTOR_LANES) {
        vector_t t[4][4];
        #pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            vector_t d0 = vector_load(d[j] + c), d1 = vector_load(d[4 + j] + c);
            vector_t d2 = vector_load(d[8 + j] + c), d3 = vector_load(d[12 + j] + c);
            t[0][j] = d0 - d2, t[1][j] = d1 + d2, t[2][j] = d2 - d1, t[3][j] = d1 - d3;
        }
        #pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            floatX* to = V + 4 * i * next + c;
            vector_store(to, t[i][0] - t[i][2]);
            vector_store(to + next, t[i][1] + t[i][2]);
            vector_store(to + 2 * next, t[i][2] - t[i][1]);
            vector_store(to + 3 * next, t[i][1] - t[i][3]);
        }
    }
}

// sum (2, 2, OC) = A^T M A + bias.
static inline void winograd_output(floatX* sum, const floatX* M, size_t next, const floatX* bias, int OC) {
    for (int o = 0; o < OC; o += VECTOR_LANES) {
        vector_t t[2][4], start = {0};
        if (bias) start = vector_load(bias + o);
        #pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            vector_t m0 = vector_load(M + j * next + o), m1 = vector_load(M + (4 + j) * next + o);
            vector_t m2 = vector_load(M + (8 + j) * next + o), m3 = vector_load(M + (12 + j) * next + o);
            t[0][j] = m0 + m1 + m2, t[1][j] = m1 - m2 - m3;
        }
        #pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            vector_store(sum + 2 * i * OC + o, t[i][0] + t[i][1] + t[i][2] + start);
            vector_store(sum + (2 * i + 1) * OC + o, t[i][1] - t[i][2] - t[i][3] + start);
        }
    }
}

// A task: squares [i, i + rows) x [j, j + cols) of an image, output channels [o, o + channels). The square (i, j) has
// the outputs (2i, 2j) to (2i + 1, 2j + 1); those of the last row and column may be outside.
typedef struct { int image, i, j, rows, cols, o, channels; } winograd_task_t;

// V of a task. Pixels outside the image are `zeros`.
static inline void winograd_task_input(floatX* V, size_t next, const conv_job_t* job, winograd_task_t task,
                                       const floatX* zeros) {
    size_t C = job->C;
    const floatX* x = job->x + (size_t)task.image * job->H * job->W * C;
    for (int square = 0; square < task.rows * task.cols; square++, V += C) {
        const floatX* d[WINOGRAD_PLACES];
        int row = 2 * (task.i + square / task.cols) - job->pad_top;
        int col = 2 * (task.j + square % task.cols) - job->pad_left;
        for (int p = 0; p < WINOGRAD_PLACES; p++) {
            int r = row + p / 4, c = col + p % 4, inside = r >= 0 && r < job->H && c >= 0 && c < job->W;
            d[p] = inside ? x + ((size_t)r * job->W + c) * C : zeros;
        }
        winograd_input(V, next, d, job->C);
    }
}

// The outputs of a task from its M, as conv_write has them.
static inline void winograd_task_output(const conv_job_t* job, winograd_task_t task, const floatX* M, size_t next,
                                        floatX* sum) {
    int channels = task.channels;
    conv_tile_t whole = {task.image, 0, 0, job->OH, job->OW, NULL, 0};
    for (int square = 0; square < task.rows * task.cols; square++, M += channels) {
        int row = 2 * (task.i + square / task.cols), col = 2 * (task.j + square % task.cols);
        winograd_output(sum, M, next, job->bias ? job->bias + task.o : NULL, channels);
        for (int i = 0; i < conv_min(2, job->OH - row); i++) {
            size_t at = conv_position(job, &whole, row + i, col) + task.o;
            conv_write(job, at, sum + 2 * i * channels, conv_min(2, job->OW - col), channels, channels);
        }
    }
}

// How a job is cut into tasks: where there are few squares, the output channels are shared among several tasks too,
// each of which makes V for itself.
typedef struct { int rows, cols, down, across, groups, channels; } winograd_grid_t;

static inline winograd_grid_t winograd_grid(const conv_job_t* job) {
    int height = conv_pieces(job->OH, 2), width = conv_pieces(job->OW, 2), wanted = CONV_TASKS / 2;
    winograd_grid_t g;
    g.cols = conv_pieces(width, conv_pieces(width, WINOGRAD_SQUARES));
    g.rows = conv_min(height, conv_max(1, WINOGRAD_SQUARES / g.cols));
    g.down = conv_pieces(height, g.rows), g.across = conv_pieces(width, g.cols);
    int blocks = conv_min(wanted, job->B * g.down * g.across);
    g.groups = conv_min(conv_pieces(wanted, blocks), conv_pieces(job->OC, WINOGRAD_CHANNELS));
    g.channels = conv_round_up(conv_pieces(job->OC, g.groups), GEMM_PANEL);
    g.groups = conv_pieces(job->OC, g.channels);
    return g;
}

static inline winograd_task_t winograd_task(const conv_job_t* job, winograd_grid_t g, int index) {
    winograd_task_t t;
    int block = index / g.groups;
    t.o = index % g.groups * g.channels, t.channels = conv_min(g.channels, job->OC - t.o);
    t.image = block / g.across / g.down;
    t.i = block / g.across % g.down * g.rows, t.rows = conv_min(g.rows, conv_pieces(job->OH, 2) - t.i);
    t.j = block % g.across * g.cols, t.cols = conv_min(g.cols, conv_pieces(job->OW, 2) - t.j);
    return t;
}

// Runs a job whose panels are packed.
static inline void winograd_run(const conv_job_t* job) {
    int C = job->C, OC = job->OC;
    winograd_grid_t grid = winograd_grid(job);
    const floatX* U = winograd_weights(job);
    // from place to place: no power of two, or their vectors would share the lines of a cache
    size_t squares = (size_t)grid.rows * grid.cols, V_next = squares * C + 16, M_next = squares * grid.channels + 16;
    size_t values = WINOGRAD_PLACES * (V_next + M_next) + C + 4 * (size_t)grid.channels;
    #pragma omp parallel for schedule(dynamic) if (worth_sharing(conv_work(job) / 2))
    for (int index = 0; index < job->B * grid.down * grid.across * grid.groups; index++) {
        winograd_task_t task = winograd_task(job, grid, index);
        floatX* V = (floatX*)cpu_scratch(CONV_SCRATCH_TILE, values * sizeof(floatX));
        floatX *M = V + WINOGRAD_PLACES * V_next, *zeros = M + WINOGRAD_PLACES * M_next, *sum = zeros + C;
        memset(zeros, 0, C * sizeof(floatX));
        winograd_task_input(V, V_next, job, task, zeros);
        for (int p = 0; p < WINOGRAD_PLACES; p++) {
            for (int k0 = 0; k0 < C; k0 += GEMM_DEPTH) {
                int depth = conv_min(GEMM_DEPTH, C - k0);
                const floatX* panels = U + (size_t)p * C * OC + (size_t)k0 * OC + (size_t)task.o * depth;
                gemm_stretch(PLAIN, task.rows * task.cols, task.channels, depth, 1, V + p * V_next + k0, C, panels,
                             k0 ? 1 : 0, M + p * M_next, task.channels);
            }
        }
        winograd_task_output(job, task, M, M_next, sum);
    }
}
