// conv_tile.h: the machine behind the convolutions: a product of pixels' windows with weights, in tiles, panels and
// blocks.
//
// A convolution is the product of a matrix with one row a pixel, the K K C values of that pixel's window ("im2col"),
// and of the weights. The rows overlap, so storing that matrix would multiply the traffic by K K. It is never stored.
// Instead:
//
//   tile    The part of x, with its border of zeros, that a rectangle of output pixels sees is copied once into memory
//           that stays in the level-2 cache. In it the window of a pixel is K runs of K C consecutive values.
//   panel   The weights of 2 vectors' worth of output channels, rearranged once a call into the order in which they are
//           read: [u][v][c][channel].
//   block   8 pixels (6 without AVX-512) x 2 vectors of channels are held in registers. Each step multiplies one value
//           of each pixel's window by one row of the panel: 2 vector loads and 8 scalars for 16 multiply-adds. So
//           arithmetic is the limit, from 3 channels to 512, and x is not rearranged again as a general matrix product
//           would do.
//
// Up to 4 output channels (the last layer of a decoder, the gradient of an image) would leave most of a vector empty:
// see conv_is_narrow. A 1x1 convolution with stride 1 has no overlap: its tiles are x itself.
//
// Threads share the tiles. Every number is summed in an order that depends on the sizes alone.
// Look next at dev/cpu/conv.h, which states the three operations as jobs for this machine.
#pragma once
#include <assert.h>

// defines: floatX
#include "common/device.h"
// defines: activation_t, LEAKY_SLOPE
#include "common/ops.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"
// defines: vector_t, vector_load, vector_store, vector_splat, vector_add_product
#include "dev/cpu/vector.h"

// How many pixels a block has beside its vectors, or channels of dout in the weight gradient: the sums of a block must
// fit into 32 registers with AVX-512, into 16 elsewhere. Where fewer are left, a block has one or two parts, or half.
enum {
#if defined(__AVX512F__)
    CONV_BLOCK = 8, CONV_PART = 4, CONV_CHANNELS = 8,
#else
    CONV_BLOCK = 6, CONV_PART = 2, CONV_CHANNELS = 4,
#endif
    CONV_HALF_CHANNELS = CONV_CHANNELS / 2,
    CONV_PANEL = 2 * VECTOR_LANES,    // output channels of a panel
    CONV_NARROW = 4,                  // so few output channels take the narrow form, see there
    CONV_MAX_VECTORS = 3,             // of a block; 3 in the weight gradient
    CONV_TILE_BYTES = 384 << 10,      // aim for a tile of x
    CONV_TILE_PIXELS = 1024,          // its most output pixels: there must be enough tiles to share
    CONV_TASKS = 32,                  // pieces of work that occupy 16 threads evenly enough
};
// Slots of cpu_scratch.
enum { CONV_SCRATCH_PANELS = 0, CONV_SCRATCH_TILE = 1, CONV_SCRATCH_EXTRA = 2, CONV_SCRATCH_SUMS = 3 };

static inline int conv_min(int a, int b) { return a < b ? a : b; }
static inline int conv_max(int a, int b) { return a > b ? a : b; }
static inline int conv_pieces(int n, int size) { return (n + size - 1) / size; }
static inline int conv_round_up(int n, int multiple) { return conv_pieces(n, multiple) * multiple; }

// One convolution in its most general form here: the kernel may be a rectangle, paddings may be negative, and the
// OH x OW pixels that are computed may be a regular part of a larger output map.
typedef struct {
    int B, H, W, C;            // the map x that is read
    int OC, KH, KW, stride;
    int pad_top, pad_left;
    int OH, OW;                // pixels to compute; pixel (i, j) is written at (row + step i, column + step j) of
    int out_H, out_W;          // the output map
    int row, column, step;
    const floatX* x;           // (B, H, W, C)
    const floatX* panels;      // the weights, see conv_pack_panels
    const floatX* bias;        // (OC) or NULL
    int out_row;               // values from pixel to pixel of out: OC, or more
    floatX* out;               // (B, out_H, out_W, out_row), of which it writes OC
    const floatX* residual;    // like out, added; or NULL
    const floatX* mask;        // like out; or NULL
    floatX slope;              // factor of negative sums, or where the mask is not positive: 1 none, 0 ReLU, else leaky
} conv_job_t;

static inline floatX conv_slope(activation_t act) {
    assert(act == ACT_NONE || act == ACT_RELU || act == ACT_LEAKY);
    return (floatX)(act == ACT_NONE ? 1 : act == ACT_RELU ? 0 : LEAKY_SLOPE);
}

// A matrix product's pixels are one row (conv_is_matmul).
static inline void conv_flatten(conv_job_t* job) {
    job->OW = job->out_W = job->W = job->B * job->H * job->W;
    job->OH = job->out_H = job->H = job->B = 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tiles

// How the output is cut: tiles of rows x cols pixels, `down` x `across` of them an image.
typedef struct {
    int rows, cols, down, across;
    size_t tiles; // of all images
} conv_grid_t;

static inline conv_grid_t conv_grid(const conv_job_t* job) {
    conv_grid_t g = {0, 0, 0, 0, 0};
    if (job->OH <= 0 || job->OW <= 0 || job->B <= 0) return g;
    g.across = conv_pieces(job->OW, job->OH == 1 ? 512 : 64);
    g.cols = conv_round_up(conv_pieces(job->OW, g.across), CONV_BLOCK);
    size_t row_bytes = (size_t)(g.cols * job->stride + job->KW) * job->C * sizeof(floatX);
    int input_rows = (int)(CONV_TILE_BYTES / row_bytes);
    g.rows = conv_max(1, conv_min((input_rows - job->KH) / job->stride + 1, CONV_TILE_PIXELS / g.cols));
    g.down = conv_pieces(job->OH, g.rows);
    g.rows = conv_pieces(job->OH, g.down);
    g.tiles = (size_t)job->B * g.down * g.across;
    return g;
}

// For worth_sharing.
static inline double conv_work(const conv_job_t* job) {
    double macs = (double)job->B * job->OH * job->OW * job->OC * job->KH * job->KW * job->C;
    return macs / MACS_OF_WORK;
}

// One tile: output pixels [i, i + rows) x [j, j + cols) of an image, and what they see.
typedef struct {
    int image, i, j, rows, cols;
    const floatX* x; // the first pixel's window
    size_t pitch;    // from one row of x to the next
} conv_tile_t;

// Copies rows x cols pixels of x from (row, col) on, with zeros where they lie outside the image.
static inline void conv_gather(floatX* tile, const conv_job_t* job, int image, int row, int col, int rows, int cols) {
    size_t C = job->C;
    int begin = conv_min(conv_max(-col, 0), cols), end = conv_max(conv_min(job->W - col, cols), begin);
    for (int r = 0; r < rows; r++, tile += cols * C) {
        if (row + r < 0 || row + r >= job->H) {
            memset(tile, 0, cols * C * sizeof(floatX));
            continue;
        }
        const floatX* x = job->x + ((size_t)image * job->H + row + r) * job->W * C;
        memset(tile, 0, begin * C * sizeof(floatX));
        if (end > begin) memcpy(tile + begin * C, x + (col + begin) * C, (end - begin) * C * sizeof(floatX));
        memset(tile + end * C, 0, (cols - end) * C * sizeof(floatX));
    }
}

// The tile of this index, gathered into the calling thread's scratch. Blocks may read past a tile's last pixel, never
// to use what they find there; so the scratch is a little longer, and the last tile of x is read in place only where no
// block is ragged.
static inline conv_tile_t conv_tile(const conv_job_t* job, conv_grid_t grid, size_t index) {
    conv_tile_t t;
    t.image = (int)(index / ((size_t)grid.down * grid.across));
    t.i = (int)(index / grid.across % grid.down) * grid.rows;
    t.j = (int)(index % grid.across) * grid.cols;
    t.rows = conv_max(0, conv_min(grid.rows, job->OH - t.i));
    t.cols = conv_max(0, conv_min(grid.cols, job->OW - t.j));
    size_t last = ((size_t)t.image * job->H + t.i + t.rows - 1) * job->W + t.j + conv_round_up(t.cols, CONV_PART);
    int in_place = job->KH == 1 && job->KW == 1 && job->stride == 1 && job->pad_top == 0 && job->pad_left == 0 &&
                   job->OH == job->H && job->OW == job->W && last <= (size_t)job->B * job->H * job->W;
    if (in_place) {
        t.pitch = (size_t)job->W * job->C;
        t.x = job->x + ((size_t)t.image * job->H + t.i) * t.pitch + (size_t)t.j * job->C;
        return t;
    }
    int rows = conv_max(0, (t.rows - 1) * job->stride + job->KH);
    int cols = conv_max(0, (t.cols - 1) * job->stride + job->KW);
    t.pitch = (size_t)cols * job->C;
    size_t slack = (size_t)CONV_BLOCK * job->stride * job->C + CONV_MAX_VECTORS * VECTOR_LANES;
    floatX* tile = (floatX*)cpu_scratch(CONV_SCRATCH_TILE, (rows * t.pitch + slack) * sizeof(floatX));
    conv_gather(tile, job, t.image, t.i * job->stride - job->pad_top, t.j * job->stride - job->pad_left, rows, cols);
    t.x = tile;
    return t;
}

// ---------------------------------------------------------------------------------------------------------------------
// Panels and blocks

// Where the weight of (output channel o, tap u, v, input channel c) lies: first + o by_o + u by_u + v by_v + c by_c.
typedef struct {
    ptrdiff_t first, by_o, by_u, by_v, by_c;
} conv_strides_t;

// Few output channels fill a small part of a vector. Where the stride is 1, a narrow job therefore computes for each
// column of x what it contributes to its neighbours, y[i, q, (v, o)] = sum_{u,c} x[i+u, q, c] w[o,u,v,c]: a K x 1
// convolution with K OC channels. Then out[i, j, o] = sum_v y[i, j + v, (v, o)].
static inline int conv_is_narrow(const conv_job_t* job) {
    return job->OC <= CONV_NARROW && job->stride == 1 && job->KW > 1 && job->KW * job->OC <= CONV_PANEL;
}
static inline int conv_narrow_width(const conv_job_t* job) { return conv_round_up(job->KW * job->OC, VECTOR_LANES); }

static inline size_t conv_panel_size(const conv_job_t* job) {
    if (conv_is_narrow(job)) return ((size_t)job->KH * job->C + 1) * conv_narrow_width(job);
    return ((size_t)job->KH * job->KW * job->C + 1) * CONV_PANEL;
}

// One tap of a panel: dst (C, width) from `valid` channels; the rest is zero.
static inline void conv_pack_tap(floatX* dst, const floatX* weight, conv_strides_t strides, int C, int width,
                                 int valid) {
    enum { RUN = 16 }; // input channels between two visits of a cache line of dst
    if (valid < width) memset(dst, 0, (size_t)C * width * sizeof(floatX));
    if (strides.by_o == 1) {
        for (int c = 0; c < C; c++) memcpy(dst + (size_t)c * width, weight + c * strides.by_c, valid * sizeof(floatX));
        return;
    }
    for (int c0 = 0; c0 < C; c0 += RUN) {
        int c1 = conv_min(C, c0 + RUN);
        for (int o = 0; o < valid; o++) {
            for (int c = c0; c < c1; c++) dst[(size_t)c * width + o] = weight[o * strides.by_o + c * strides.by_c];
        }
    }
}

// The single panel of a narrow job: channel v OC + o of tap u, and no biases.
static inline void conv_pack_narrow(conv_job_t* job, const floatX* weight, conv_strides_t strides) {
    int width = conv_narrow_width(job);
    size_t bytes = conv_panel_size(job) * sizeof(floatX);
    floatX* panel = (floatX*)cpu_scratch(CONV_SCRATCH_PANELS, bytes);
    memset(panel, 0, bytes);
    for (int u = 0; u < job->KH; u++) {
        for (int k = 0; k < job->KW * job->OC; k++) {
            ptrdiff_t at = strides.first + u * strides.by_u + k / job->OC * strides.by_v + k % job->OC * strides.by_o;
            for (int c = 0; c < job->C; c++) {
                panel[((size_t)u * job->C + c + 1) * width + k] = weight[at + c * strides.by_c];
            }
        }
    }
    job->panels = panel;
}

// panels: for each CONV_PANEL output channels (the last panel may be one vector narrower) the biases [channel], then
// the weights [u][v][c][channel].
static inline void conv_pack_panels(conv_job_t* job, const floatX* weight, conv_strides_t strides, const floatX* bias) {
    job->bias = bias;
    if (conv_is_narrow(job)) {
        conv_pack_narrow(job, weight, strides);
        return;
    }
    int count = conv_pieces(job->OC, CONV_PANEL), taps = job->KH * job->KW;
    size_t size = conv_panel_size(job);
    floatX* panels = (floatX*)cpu_scratch(CONV_SCRATCH_PANELS, count * size * sizeof(floatX));
    #pragma omp parallel for schedule(static) if (worth_sharing((double)count * size))
    for (int index = 0; index < count * (taps + 1); index++) {
        int o = index / (taps + 1) * CONV_PANEL, tap = index % (taps + 1) - 1;
        int valid = conv_min(CONV_PANEL, job->OC - o), width = conv_round_up(valid, VECTOR_LANES);
        floatX* panel = panels + index / (taps + 1) * size;
        if (tap < 0) {
            for (int k = 0; k < width; k++) panel[k] = bias && k < valid ? bias[o + k] : 0;
            continue;
        }
        ptrdiff_t at = strides.first + o * strides.by_o + tap / job->KW * strides.by_u + tap % job->KW * strides.by_v;
        conv_pack_tap(panel + ((size_t)tap * job->C + 1) * width, weight + at, strides, job->C, width, valid);
    }
    job->panels = panels;
}

// sum (P, V vectors) of P neighbouring pixels, whose windows start at x, x + step, ... P and V are constants wherever
// this is called, so that the sums are registers.
VECTOR_INLINE void conv_block(floatX* sum, const int P, const int V, const floatX* x, size_t pitch, size_t step,
                              const floatX* panel, int KH, int run) {
    vector_t total[CONV_BLOCK][2];
    #pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
        #pragma GCC unroll 2
        for (int k = 0; k < V; k++) total[p][k] = vector_load(panel + k * VECTOR_LANES);
    }
    panel += V * VECTOR_LANES;
    for (int u = 0; u < KH; u++, x += pitch) {
        for (int t = 0; t < run; t++, panel += V * VECTOR_LANES) {
            #pragma GCC unroll 8
            for (int p = 0; p < P; p++) {
                #pragma GCC unroll 2
                for (int k = 0; k < V; k++) {
                    vector_t weight = vector_load(panel + k * VECTOR_LANES);
                    vector_add_product(&total[p][k], vector_splat(x[p * step + t]), weight);
                }
            }
        }
    }
    #pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
        #pragma GCC unroll 2
        for (int k = 0; k < V; k++) vector_store(sum + (p * V + k) * VECTOR_LANES, total[p][k]);
    }
}

// s where it is positive, else slope s, with slope <= 1: the larger of the two, which needs no branch. NaN stays.
static inline floatX conv_bend(floatX s, floatX slope) { return slope * s > s ? slope * s : s; }

// The activation, the residual and the mask, on the way from a block's sums (count, width) to `valid` channels of out.
static inline void conv_write(const conv_job_t* job, size_t at, const floatX* sum, int count, int width, int valid) {
    floatX slope = job->slope;
    for (int p = 0; p < count; p++, sum += width, at += (size_t)job->step * job->out_row) {
        floatX* out = job->out + at;
        if (job->mask) {
            const floatX* mask = job->mask + at;
            for (int o = 0; o < valid; o++) out[o] = sum[o] * (mask[o] > 0 ? 1 : slope);
        } else if (job->residual) {
            const floatX* residual = job->residual + at;
            for (int o = 0; o < valid; o++) out[o] = conv_bend(sum[o], slope) + residual[o];
        } else {
            for (int o = 0; o < valid; o++) out[o] = conv_bend(sum[o], slope);
        }
    }
}

// The sums of `count` pixels, rounded up to whole parts of a block, for `width` channels of a panel: conv_block with
// its constants filled in.
VECTOR_LOOP void conv_sums(floatX* sum, int count, int width, const floatX* x, size_t pitch, size_t step,
                             const floatX* panel, int KH, int run) {
    enum { TWO = 2 * CONV_PART };
    if (width > VECTOR_LANES) {
        if (count > TWO) conv_block(sum, CONV_BLOCK, 2, x, pitch, step, panel, KH, run);
        else if (count > CONV_PART) conv_block(sum, TWO, 2, x, pitch, step, panel, KH, run);
        else conv_block(sum, CONV_PART, 2, x, pitch, step, panel, KH, run);
    } else {
        if (count > TWO) conv_block(sum, CONV_BLOCK, 1, x, pitch, step, panel, KH, run);
        else if (count > CONV_PART) conv_block(sum, TWO, 1, x, pitch, step, panel, KH, run);
        else conv_block(sum, CONV_PART, 1, x, pitch, step, panel, KH, run);
    }
}

// Where pixel (i, j) of a tile is written.
static inline size_t conv_position(const conv_job_t* job, const conv_tile_t* tile, int i, int j) {
    size_t row = (size_t)tile->image * job->out_H + job->row + (size_t)job->step * (tile->i + i);
    return (row * job->out_W + job->column + (size_t)job->step * (tile->j + j)) * job->out_row;
}

// All pixels of a tile for one panel.
static inline void conv_tile_panel(const conv_job_t* job, const conv_tile_t* tile, int index) {
    int o = index * CONV_PANEL, channels = conv_min(CONV_PANEL, job->OC - o);
    int width = conv_round_up(channels, VECTOR_LANES);
    const floatX* panel = job->panels + index * conv_panel_size(job);
    size_t step = (size_t)job->stride * job->C;
    floatX sum[CONV_BLOCK * CONV_PANEL] __attribute__((aligned(64)));
    for (int i = 0; i < tile->rows; i++) {
        const floatX* x = tile->x + (size_t)i * job->stride * tile->pitch;
        for (int j = 0; j < tile->cols; j += CONV_BLOCK) {
            int count = conv_min(tile->cols - j, CONV_BLOCK);
            conv_sums(sum, count, width, x + j * step, tile->pitch, step, panel, job->KH, job->KW * job->C);
            conv_write(job, conv_position(job, tile, i, j) + o, sum, count, width, channels);
        }
    }
}

// All pixels of a tile of a narrow job: a row of y, then its sums along v.
static inline void conv_tile_narrow(const conv_job_t* job, const conv_tile_t* tile) {
    int width = conv_narrow_width(job), OC = job->OC, columns = conv_round_up(tile->cols + job->KW - 1, CONV_BLOCK);
    size_t C = job->C, size = (size_t)columns * width;
    floatX* y = (floatX*)cpu_scratch(CONV_SCRATCH_EXTRA, (size + (size_t)tile->cols * OC) * sizeof(floatX));
    floatX* sum = y + size;
    for (int i = 0; i < tile->rows; i++) {
        const floatX* x = tile->x + i * tile->pitch;
        for (int q = 0; q < columns; q += CONV_BLOCK) {
            floatX* y_block = y + (size_t)q * width;
            conv_sums(y_block, CONV_BLOCK, width, x + q * C, tile->pitch, C, job->panels, job->KH, job->C);
        }
        for (int j = 0; j < tile->cols; j++) {
            for (int o = 0; o < OC; o++) {
                floatX total = job->bias ? job->bias[o] : 0;
                for (int v = 0; v < job->KW; v++) total += y[(size_t)(j + v) * width + v * OC + o];
                sum[j * OC + o] = total;
            }
        }
        conv_write(job, conv_position(job, tile, i, 0), sum, tile->cols, OC, OC);
    }
}

// Runs a job. Where there are few tiles, the panels are shared among several tasks too.
static inline void conv_run(const conv_job_t* job) {
    conv_grid_t grid = conv_grid(job);
    int panels = conv_pieces(job->OC, CONV_PANEL), groups = 1;
    if (grid.tiles > 0 && grid.tiles < CONV_TASKS) groups = conv_min(panels, conv_pieces(CONV_TASKS, (int)grid.tiles));
    #pragma omp parallel for schedule(dynamic) if (worth_sharing(conv_work(job)))
    for (size_t task = 0; task < grid.tiles * groups; task++) {
        int group = (int)(task % groups);
        conv_tile_t tile = conv_tile(job, grid, task / groups);
        if (conv_is_narrow(job)) {
            conv_tile_narrow(job, &tile);
            continue;
        }
        for (int k = panels * group / groups; k < panels * (group + 1) / groups; k++) conv_tile_panel(job, &tile, k);
    }
}
