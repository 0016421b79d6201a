// winograd.h: convolutions with stride 1 in fewer products, where maps and channels are large: 3x3, and 5x5, 1x3, 3x1,
// 1x7 and 7x1, which Inception has.
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
//
// The rows of G are 1, a, a^2 at the points a = 0, 1, -1 and "infinity" (the last tap alone), each divided by a number:
// polynomials are multiplied by multiplying their values. With the points 0, r, -r, 1/r, -1/r and infinity, r the root
// of 2, six products give four outputs of 3 taps, three of 4, or two of 5:
//          1   0  -5/2  0   1  0
//          0 -r/2 -1/2  r   1  0          1  1   1     1      1    0          a    0   r   -r   1/r  -1/r
//   B^T =  0  r/2 -1/2 -r   1  0   A^T =  0  r  -r    1/r   -1/r   0   of G:  1, 1/6, 1/6, -2/3, -2/3 times 1, a, a^2
//          0 -r   -2   1/r  1  0          0  2   2    1/2    1/2   0
//          0  r   -2  -1/r  1  0          0 2r -2r  1/(2r) -1/(2r) 1  (of fewer outputs the first rows, with this 1
//          0  1    0  -5/2  0  1                                       in the last)
// With the customary points 0, 1, -1, 2, -2 the powers are larger, and so is the error in float: twice this one.
// 3x3 then takes 36 products for 144, 5x5 36 for 100. Seven taps are two kernels, w0 w1 w2 0 and w3 w4 w5 w6: as the
// outputs come in threes, the second one's inputs are those of the next three outputs' first. 12 products for 21.
//
// The sum over input channels may be taken before A, which is linear. So the convolution becomes matrix products, one
// for each place p of the square of points (and each of the two kernels):
//   M[p] (squares, OC) = V[p] (squares, C) U[p] (C, OC),   V = B^T d B of each square,   U = G g G^T of each kernel
//
// The truth is conv2d_forward_naive, and conv_run the fast form without this. What B and A multiply by is small, so
// that in float the error stays near that of the direct form (tests/test_winograd.c).
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
    WINOGRAD_POINTS = 6,        // most in one direction
    WINOGRAD_PLACES = WINOGRAD_POINTS * WINOGRAD_POINTS,
    WINOGRAD_SQUARES = 128,     // about what a task takes, at 16 places: each number of U is used so often
    WINOGRAD_CHANNELS = 64,     // with fewer, on either side, four points cost what the products save
    WINOGRAD_PIXELS = 16 * 16,  // on smaller maps U, 16/9 of the weights and more, is made for too few squares; of a
                                // kernel of one line it is less, and so are the maps
    WINOGRAD_LARGE = 35 * 35,   // from such maps on, 3x3 is done by six points, four outputs at a time
};

// One direction of a kernel: so many outputs and taps at a time, by so many points, and how many kernels of that length
// its taps are cut into. Both directions of a job: down, across.
typedef struct { int outputs, taps, points, kernels; } winograd_axis_t;
typedef struct { winograd_axis_t down, across; } winograd_form_t;

static inline winograd_axis_t winograd_axis(int taps, int large) {
    static const winograd_axis_t one = {1, 1, 1, 1}, three = {2, 3, 4, 1}, three_large = {4, 3, 6, 1};
    static const winograd_axis_t five = {2, 5, 6, 1}, seven = {3, 4, 6, 2};
    if (taps == 3) return large ? three_large : three;
    return taps == 1 ? one : taps == 5 ? five : seven;
}

static inline int winograd_is_line(const conv_job_t* job) { return (job->KH == 1) != (job->KW == 1); }
static inline winograd_form_t winograd_form(const conv_job_t* job) {
    int large = winograd_is_line(job) || (long)job->OH * job->OW >= WINOGRAD_LARGE;
    winograd_form_t form = {winograd_axis(job->KH, large), winograd_axis(job->KW, large)};
    return form;
}

// By the sizes of one image alone: its numbers do not depend on its batch.
static inline int winograd_suits(const conv_job_t* job) {
    int KH = job->KH, KW = job->KW, longer = conv_max(KH, KW), line = winograd_is_line(job);
    int known = KH == KW ? KH == 3 || KH == 5 : line && (longer == 3 || longer == 7);
    int four = winograd_form(job).down.points == 4, channels = conv_min(job->C, job->OC);
    return known && job->stride == 1 && job->step == 1 && job->C % 16 == 0 && job->OC % 16 == 0 &&
           channels >= (four ? WINOGRAD_CHANNELS : WINOGRAD_CHANNELS / 2) &&
           (long)job->OH * job->OW >= (line ? WINOGRAD_PIXELS / 4 : WINOGRAD_PIXELS);
}

// The factor of tap t in row p of G.
static inline floatX winograd_factor(winograd_axis_t axis, int p, int t) {
    static const floatX of_4[3][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}};
    static const double at[5] = {0, M_SQRT2, -M_SQRT2, M_SQRT1_2, -M_SQRT1_2}, divided_by[5] = {1, 6, 6, -1.5, -1.5};
    if (axis.points == 1) return 1;
    if (p == axis.points - 1) return t == axis.taps - 1;
    return axis.points == 4 ? of_4[p][t] : (floatX)(pow(at[p], t) / divided_by[p]);
}

// G, of one direction, for both kernels: each row sums the taps [begin, begin + count).
enum { WINOGRAD_ROWS = 2 * WINOGRAD_POINTS };
typedef struct {
    floatX factor[WINOGRAD_ROWS][5];
    int begin[WINOGRAD_ROWS], count[WINOGRAD_ROWS];
} winograd_G_t;

static inline winograd_G_t winograd_G(winograd_axis_t axis) {
    winograd_G_t G;
    for (int row = 0; row < axis.kernels * axis.points; row++) {
        int last = row / axis.points == axis.kernels - 1;
        G.begin[row] = row / axis.points * axis.outputs;
        G.count[row] = last ? axis.taps : axis.outputs;
        for (int t = 0; t < axis.taps; t++) G.factor[row][t] = winograd_factor(axis, row % axis.points, t);
    }
    return G;
}

// U of `width` output channels and one input channel, at places that lie `next` apart, from the taps of the direct
// form's panel, `by_tap` apart.
static inline void winograd_weight(floatX* U, size_t next, const floatX* taps, size_t by_tap, int width, int KW,
                                   const winograd_G_t* down, int rows, const winograd_G_t* across, int cols) {
    for (int lane = 0; lane < width; lane += VECTOR_LANES) {
        for (int i = 0; i < rows; i++) {
            vector_t t[7];
            for (int v = 0; v < KW; v++) {
                const floatX* g = taps + ((size_t)down->begin[i] * KW + v) * by_tap + lane;
                t[v] = vector_load(g) * down->factor[i][0];
                for (int u = 1; u < down->count[i]; u++) t[v] += vector_load(g + u * KW * by_tap) * down->factor[i][u];
            }
            for (int j = 0; j < cols; j++) {
                const vector_t* g = t + across->begin[j];
                vector_t sum = g[0] * across->factor[j][0];
                for (int v = 1; v < across->count[j]; v++) sum += g[v] * across->factor[j][v];
                vector_store(U + (i * cols + j) * next + lane, sum);
            }
        }
    }
}

// U from the panels of the direct form, [u][v][c][channel]: for each place, stretch of GEMM_DEPTH of C and panel of
// channels what gemm_stretch reads, [c][channel].
static inline floatX* winograd_weights(const conv_job_t* job) {
    winograd_axis_t down = winograd_form(job).down, across = winograd_form(job).across;
    winograd_G_t G_down = winograd_G(down), G_across = winograd_G(across);
    int rows = down.kernels * down.points, cols = across.kernels * across.points;
    size_t C = job->C, OC = job->OC, place = C * OC;
    floatX* U = (floatX*)cpu_scratch(CONV_SCRATCH_SUMS, rows * cols * place * sizeof(floatX));
    #pragma omp parallel for collapse(2) schedule(static) if (worth_sharing((double)(rows * cols * place)))
    for (size_t o = 0; o < OC; o += GEMM_PANEL) {
        for (size_t c = 0; c < C; c++) {
            int width = OC - o < GEMM_PANEL ? (int)(OC - o) : (int)GEMM_PANEL;
            size_t k0 = c / GEMM_DEPTH * GEMM_DEPTH, depth = C - k0 < GEMM_DEPTH ? C - k0 : (size_t)GEMM_DEPTH;
            const floatX* from = job->panels + o / GEMM_PANEL * conv_panel_size(job) + (c + 1) * width;
            winograd_weight(U + k0 * OC + o * depth + (c - k0) * width, place, from, C * width, width, job->KW, &G_down,
                            rows, &G_across, cols);
        }
    }
    return U;
}

// B^T of one direction, in place, to numbers that lie `by` apart.
VECTOR_INLINE void winograd_points(vector_t* d, const int by, const int points) {
    vector_t d0 = d[0], d1, d2, d3, d4, d5;
    if (points == 1) return;
    d1 = d[by], d2 = d[2 * by], d3 = d[3 * by];
    if (points == 4) {
        d[0] = d0 - d2, d[by] = d1 + d2, d[2 * by] = d2 - d1, d[3 * by] = d1 - d3;
        return;
    }
    d4 = d[4 * by], d5 = d[5 * by];
    const floatX r = (floatX)M_SQRT2, half = (floatX)0.5;
    vector_t even = d4 - half * d2, odd = r * (d3 - half * d1), even2 = d4 - 2 * d2, odd2 = half * r * (d3 - 2 * d1);
    d[0] = d0 - (2 + half) * d2 + d4;
    d[by] = even + odd, d[2 * by] = even - odd, d[3 * by] = even2 + odd2, d[4 * by] = even2 - odd2;
    d[5 * by] = d1 - (2 + half) * d3 + d5;
}

// A^T of one direction, in place: afterwards the first `outputs` numbers are its.
VECTOR_INLINE void winograd_outputs(vector_t* m, const int by, const int points, const int outputs) {
    vector_t m0 = m[0], m1, m2, m3, m4, m5;
    if (points == 1) return;
    m1 = m[by], m2 = m[2 * by], m3 = m[3 * by];
    if (points == 4) {
        m[0] = m0 + m1 + m2, m[by] = m1 - m2 - m3;
        return;
    }
    m4 = m[4 * by], m5 = m[5 * by];
    const floatX r = (floatX)M_SQRT2, half = (floatX)0.5;
    vector_t even = m1 + m2, odd = r * (m1 - m2), even2 = m3 + m4, odd2 = half * r * (m3 - m4);
    m[0] = m0 + even + even2;
    m[by] = odd + odd2;
    m[2 * by] = 2 * even + half * even2;
    m[3 * by] = 2 * odd + half * odd2;
    m[(outputs - 1) * by] += m5;
}

// V of one square, whose places lie `next` apart: B^T d B of its pixels d, each C channels. So many points down and
// across: constants at the call.
VECTOR_INLINE void winograd_square_input(floatX* V, size_t next, const floatX** d, int C, const int down,
                                         const int across) {
    for (int c = 0; c < C; c += VECTOR_LANES) {
        vector_t t[WINOGRAD_PLACES];
        #pragma GCC unroll 6
        for (int j = 0; j < across; j++) {
            #pragma GCC unroll 6
            for (int i = 0; i < down; i++) t[i * across + j] = vector_load(d[i * across + j] + c);
            winograd_points(t + j, across, down);
        }
        #pragma GCC unroll 6
        for (int i = 0; i < down; i++) {
            winograd_points(t + i * across, 1, across);
            #pragma GCC unroll 6
            for (int j = 0; j < across; j++) vector_store(V + (i * across + j) * next + c, t[i * across + j]);
        }
    }
}

// sum (down.outputs, across.outputs, OC) = A^T M A + bias.
VECTOR_INLINE void winograd_square_output(floatX* sum, const floatX* M, size_t next, const floatX* bias, int OC,
                                          const int down, const int rows, const int across, const int cols) {
    for (int o = 0; o < OC; o += VECTOR_LANES) {
        vector_t t[WINOGRAD_PLACES], start = {0};
        if (bias) start = vector_load(bias + o);
        #pragma GCC unroll 6
        for (int j = 0; j < across; j++) {
            #pragma GCC unroll 6
            for (int i = 0; i < down; i++) t[i * across + j] = vector_load(M + (i * across + j) * next + o);
            winograd_outputs(t + j, across, down, rows);
        }
        #pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            winograd_outputs(t + i * across, 1, across, cols);
            #pragma GCC unroll 4
            for (int j = 0; j < cols; j++) vector_store(sum + (i * cols + j) * OC + o, t[i * across + j] + start);
        }
    }
}

// Both with their constants filled in.
static inline void winograd_input(floatX* V, size_t next, const floatX** d, int C, winograd_form_t form) {
    if (form.across.points == 1) winograd_square_input(V, next, d, C, 6, 1);
    else if (form.down.points == 1) winograd_square_input(V, next, d, C, 1, 6);
    else if (form.down.points == 4) winograd_square_input(V, next, d, C, 4, 4);
    else winograd_square_input(V, next, d, C, 6, 6);
}
static inline void winograd_output(floatX* sum, const floatX* M, size_t next, const floatX* bias, int OC,
                                   winograd_form_t form) {
    int rows = form.down.outputs, cols = form.across.outputs;
    if (cols == 1 && rows == 3) winograd_square_output(sum, M, next, bias, OC, 6, 3, 1, 1);
    else if (cols == 1) winograd_square_output(sum, M, next, bias, OC, 6, 4, 1, 1);
    else if (rows == 1 && cols == 3) winograd_square_output(sum, M, next, bias, OC, 1, 1, 6, 3);
    else if (rows == 1) winograd_square_output(sum, M, next, bias, OC, 1, 1, 6, 4);
    else if (form.down.points == 4) winograd_square_output(sum, M, next, bias, OC, 4, 2, 4, 2);
    else if (rows == 2) winograd_square_output(sum, M, next, bias, OC, 6, 2, 6, 2);
    else winograd_square_output(sum, M, next, bias, OC, 6, 4, 6, 4);
}

// A task: squares [i, i + rows) x [j, j + cols) of an image, output channels [o, o + channels). The square (i, j) has
// the outputs from (i down.outputs, j across.outputs) on; those of the last row and column may be outside.
typedef struct { int image, i, j, rows, cols, o, channels; } winograd_task_t;

// Squares are numbered row by row; in 1x7 column by column, so that the square which has the second kernel's inputs is
// always `line` further on, one of the line of squares behind the last.
typedef struct { int i, j; } winograd_square_t;
static inline int winograd_line(const conv_job_t* job, winograd_task_t t) { return job->KW == 7 ? t.rows : t.cols; }
static inline winograd_square_t winograd_square(const conv_job_t* job, winograd_task_t t, int index) {
    winograd_square_t s = {t.i + index / t.cols, t.j + index % t.cols};
    if (job->KW == 7) s.i = t.i + index % t.rows, s.j = t.j + index / t.rows;
    return s;
}

// V of a task. Pixels outside the image are `zeros`.
static inline void winograd_task_input(floatX* V, size_t next, const conv_job_t* job, winograd_task_t task,
                                       const floatX* zeros) {
    size_t C = job->C;
    winograd_form_t form = winograd_form(job);
    winograd_axis_t down = form.down, across = form.across;
    const floatX* x = job->x + (size_t)task.image * job->H * job->W * C;
    int squares = task.rows * task.cols + (down.kernels * across.kernels - 1) * winograd_line(job, task);
    for (int index = 0; index < squares; index++, V += C) {
        const floatX* d[WINOGRAD_PLACES];
        winograd_square_t square = winograd_square(job, task, index);
        int row = down.outputs * square.i - job->pad_top, col = across.outputs * square.j - job->pad_left;
        for (int p = 0; p < down.points * across.points; p++) {
            int r = row + p / across.points, c = col + p % across.points;
            int inside = r >= 0 && r < job->H && c >= 0 && c < job->W;
            d[p] = inside ? x + ((size_t)r * job->W + c) * C : zeros;
        }
        winograd_input(V, next, d, job->C, form);
    }
}

// The outputs of a task from its M, as conv_write has them.
static inline void winograd_task_output(const conv_job_t* job, winograd_task_t task, const floatX* M, size_t next,
                                        floatX* sum) {
    winograd_form_t form = winograd_form(job);
    int channels = task.channels, rows = form.down.outputs, cols = form.across.outputs;
    conv_tile_t whole = {task.image, 0, 0, job->OH, job->OW, NULL, 0};
    for (int index = 0; index < task.rows * task.cols; index++, M += channels) {
        winograd_square_t square = winograd_square(job, task, index);
        int row = rows * square.i, col = cols * square.j;
        winograd_output(sum, M, next, job->bias ? job->bias + task.o : NULL, channels, form);
        for (int i = 0; i < conv_min(rows, job->OH - row); i++) {
            size_t at = conv_position(job, &whole, row + i, col) + task.o;
            conv_write(job, at, sum + i * cols * channels, conv_min(cols, job->OW - col), channels, channels);
        }
    }
}

// How a job is cut into tasks: where there are few squares, the output channels are shared among several tasks too,
// each of which makes V for itself.
typedef struct { int rows, cols, down, across, groups, channels, height, width; } winograd_grid_t;

static inline winograd_grid_t winograd_grid(const conv_job_t* job) {
    winograd_form_t form = winograd_form(job);
    int wanted = CONV_TASKS / 2, places = form.down.points * form.across.points;
    int squares = conv_min(WINOGRAD_SQUARES, WINOGRAD_SQUARES * 16 / places); // V and M are to stay in level 2
    winograd_grid_t g;
    g.height = conv_pieces(job->OH, form.down.outputs), g.width = conv_pieces(job->OW, form.across.outputs);
    g.cols = conv_pieces(g.width, conv_pieces(g.width, squares));
    g.rows = conv_min(g.height, conv_max(1, squares / g.cols));
    g.down = conv_pieces(g.height, g.rows), g.across = conv_pieces(g.width, g.cols);
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
    t.i = block / g.across % g.down * g.rows, t.rows = conv_min(g.rows, g.height - t.i);
    t.j = block % g.across * g.cols, t.cols = conv_min(g.cols, g.width - t.j);
    return t;
}

// M of a task, whose places lie M_next apart: a sum over the kernels, and stretches of C.
static inline void winograd_products(floatX* M, size_t M_next, const floatX* V, size_t V_next, const floatX* U,
                                     const conv_job_t* job, winograd_task_t task) {
    winograd_axis_t down = winograd_form(job).down, across = winograd_form(job).across;
    int C = job->C, places = down.points * across.points;
    for (int p = 0; p < places; p++) {
        for (int kernel = 0; kernel < down.kernels * across.kernels; kernel++) {
            const floatX* squares = V + p * V_next + (size_t)kernel * winograd_line(job, task) * C;
            const floatX* weights = U + (size_t)(kernel * places + p) * C * job->OC;
            for (int k0 = 0; k0 < C; k0 += GEMM_DEPTH) {
                int depth = conv_min(GEMM_DEPTH, C - k0);
                const floatX* panels = weights + (size_t)k0 * job->OC + (size_t)task.o * depth;
                gemm_stretch(PLAIN, task.rows * task.cols, task.channels, depth, 1, squares + k0, C, panels,
                             kernel || k0 ? 1 : 0, M + p * M_next, task.channels);
            }
        }
    }
}

// Runs a job whose panels are packed.
static inline void winograd_run(const conv_job_t* job) {
    winograd_axis_t down = winograd_form(job).down, across = winograd_form(job).across;
    winograd_grid_t grid = winograd_grid(job);
    const floatX* U = winograd_weights(job);
    // from place to place: no power of two, or their vectors would share the lines of a cache
    size_t C = job->C, squares = (size_t)grid.rows * grid.cols, places = down.points * across.points;
    size_t behind = down.kernels == 2 ? grid.cols : across.kernels == 2 ? grid.rows : 0; // see winograd_line
    size_t V_next = (squares + behind) * C + 16, M_next = squares * grid.channels + 16;
    size_t values = places * (V_next + M_next) + C + (size_t)down.outputs * across.outputs * grid.channels;
    #pragma omp parallel for schedule(dynamic) if (worth_sharing(conv_work(job) / 2))
    for (int index = 0; index < job->B * grid.down * grid.across * grid.groups; index++) {
        winograd_task_t task = winograd_task(job, grid, index);
        floatX* V = (floatX*)cpu_scratch(CONV_SCRATCH_TILE, values * sizeof(floatX));
        floatX *M = V + places * V_next, *zeros = M + places * M_next, *sum = zeros + C;
        memset(zeros, 0, C * sizeof(floatX));
        winograd_task_input(V, V_next, job, task, zeros);
        winograd_products(M, M_next, V, V_next, U, job, task);
        winograd_task_output(job, task, M, M_next, sum);
    }
}
