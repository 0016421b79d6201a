// conv.h: two-dimensional convolution, forward and both gradients.
//
//   out[b,i,j,o] = sum_{u,v,c} x[b, s i + u - p, s j + v - q, c] w[o,u,v,c]      s = stride, x = 0 outside,
//                                                                                p, q = pad_top, pad_left
//
// First come this formula and its derivatives as loops, the truth that tests hold the fast forms against; then the fast
// forms. There all three are matrix products over windows that are never stored whole. How a tile of them is multiplied
// stands in dev/cpu/conv_tile.h; here stands what is multiplied. Large ones with stride 1 take fewer products by
// dev/cpu/winograd.h. The gradient of x is a convolution of dout and runs through the same forms. The gradient of w has
// a block of its own: 8 channels of dout (4 without AVX-512) x 3 vectors of a window, summed over the pixels of a tile.
//
// Left out: dilation, groups, FFT forms. Look next at dev/cpu/resample.h and common/models/decoder.h.
#pragma once
// defines: floatX, floatS, stream_t
#include "common/device.h"
// defines: conv_t, activation_t
#include "common/ops.h"
// defines: conv_job_t, conv_tile, conv_pack_panels, conv_run
#include "dev/cpu/conv_tile.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"
// defines: matmul_backward
#include "dev/cpu/matmul.h"
// defines: maxpool_forward, maxpool_relu_backward, upsample_forward, upsample_backward
#include "dev/cpu/resample.h"
// defines: add_column_sums
#include "dev/cpu/rows.h"
// defines: winograd_suits, winograd_run
#include "dev/cpu/winograd.h"

// ---------------------------------------------------------------------------------------------------------------------
// The truth

// The input pixel that tap (u, v) of output pixel (i, j) of image b reads, as an index into (B, H, W); -1: outside.
static inline ptrdiff_t conv_pixel(conv_t conv, int H, int W, int b, int i, int j, int u, int v) {
    int row = conv.stride * i + u - conv.pad_top, column = conv.stride * j + v - conv.pad_left;
    if (row < 0 || row >= H || column < 0 || column >= W) return -1;
    return ((ptrdiff_t)b * H + row) * W + column;
}

static inline void conv2d_forward_naive(floatX* out,            // (B, OH, OW, out_row)
                                        const floatX* x,        // (B, H, W, C)
                                        const floatX* weight,   // (OC, KH, KW, C)
                                        const floatX* bias,     // (OC) or NULL
                                        const floatX* residual, // like out, or NULL
                                        int B, int H, int W, conv_t conv, activation_t act) {
    int OH = conv_out_height(H, conv), OW = conv_out_width(W, conv), OC = conv.OC, C = conv.C;
    for (int b = 0; b < B; b++) for (int i = 0; i < OH; i++) for (int j = 0; j < OW; j++) for (int o = 0; o < OC; o++) {
        floatX sum = bias ? bias[o] : 0;
        for (int u = 0; u < conv.KH; u++) for (int v = 0; v < conv.KW; v++) {
            ptrdiff_t pixel = conv_pixel(conv, H, W, b, i, j, u, v);
            const floatX* w = weight + (((size_t)o * conv.KH + u) * conv.KW + v) * C;
            for (int c = 0; pixel >= 0 && c < C; c++) sum += x[pixel * C + c] * w[c];
        }
        size_t at = (((size_t)b * OH + i) * OW + j) * conv_out_row(conv) + o;
        out[at] = (sum > 0 ? sum : conv_slope(act) * sum) + (residual ? residual[at] : 0);
    }
}

// Every product of the forward sends its gradient to both of its factors.
static inline void conv2d_backward_naive(floatX* dx,           // (B, H, W, C)
                                         floatS* dweight,      // (OC, KH, KW, C) +=
                                         floatS* dbias,        // (OC) +=
                                         const floatX* dout,   // (B, OH, OW, OC)
                                         const floatX* x,      // (B, H, W, C)
                                         const floatX* weight, // (OC, KH, KW, C)
                                         int B, int H, int W, conv_t conv) {
    int OH = conv_out_height(H, conv), OW = conv_out_width(W, conv), OC = conv.OC, C = conv.C;
    memset(dx, 0, (size_t)B * H * W * C * sizeof(floatX));
    for (int b = 0; b < B; b++) for (int i = 0; i < OH; i++) for (int j = 0; j < OW; j++) for (int o = 0; o < OC; o++) {
        floatX d = dout[(((size_t)b * OH + i) * OW + j) * OC + o];
        dbias[o] += d;
        for (int u = 0; u < conv.KH; u++) for (int v = 0; v < conv.KW; v++) {
            ptrdiff_t pixel = conv_pixel(conv, H, W, b, i, j, u, v);
            size_t w = (((size_t)o * conv.KH + u) * conv.KW + v) * C;
            for (int c = 0; pixel >= 0 && c < C; c++) {
                dx[pixel * C + c] += d * weight[w + c];
                dweight[w + c] += d * x[pixel * C + c];
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The fast forms

// Job and strides of the forward; the weight gradient sees the same tiles.
static inline conv_job_t conv_forward_job(const floatX* x, int B, int H, int W, conv_t conv) {
    conv_job_t job;
    memset(&job, 0, sizeof job);
    job.B = B, job.H = H, job.W = W, job.C = conv.C;
    job.OC = job.out_row = conv.OC, job.KH = conv.KH, job.KW = conv.KW, job.stride = conv.stride;
    job.pad_top = conv.pad_top, job.pad_left = conv.pad_left;
    job.OH = job.out_H = conv_out_height(H, conv);
    job.OW = job.out_W = conv_out_width(W, conv);
    job.step = 1;
    job.x = x;
    return job;
}

// One convolution, by whichever of the fast forms suits its sizes.
static inline void conv_product(conv_job_t* job, const floatX* weight, conv_strides_t strides, const floatX* bias) {
    conv_pack_panels(job, weight, strides, bias);
    if (winograd_suits(job)) winograd_run(job);
    else conv_run(job);
}

void conv2d_forward(floatX* out,            // (B, OH, OW, out_row)
                    const floatX* x,        // (B, H, W, C)
                    const floatX* weight,   // (OC, KH, KW, C)
                    const floatX* bias,     // (OC) or NULL
                    const floatX* residual, // like out, or NULL
                    int B, int H, int W, conv_t conv, activation_t act, stream_t s) {
    (void)s;
    conv_job_t job = conv_forward_job(x, B, H, W, conv);
    job.out = out, job.out_row = conv_out_row(conv), job.residual = residual, job.slope = conv_slope(act);
    if (conv_is_matmul(conv)) conv_flatten(&job);
    ptrdiff_t by_row = (ptrdiff_t)conv.KW * conv.C;
    conv_strides_t strides = {0, conv.KH * by_row, by_row, conv.C, 1};
    conv_product(&job, weight, strides, bias);
}

// Derivation. x[r, t, c] enters out[i, j, o] wherever r = s i + u - p for a tap u (columns alike), with the factor
// w[o,u,v,c]:
//   dx[r,t,c] = sum over taps with s | r + p - u and s | t + q - v, and o, of dout[(r+p-u)/s, (t+q-v)/s, o] w[o,u,v,c]
//
// Stride 1. With u' = KH-1-u the row of dout that is read is r + u' - (KH-1-p): a convolution of dout, padded by
// KH-1-p, with the kernel turned by 180 degrees and its in and out channels exchanged.
//
// Stride 2. The rows r = 2m + a of one parity a see only the taps u = u0 + 2k with u0 = (a + p) mod 2, KH of them, and
// read i = m + (a + p - u0)/2 - k. With u' = KH-1-k that is again a stride-1 convolution of dout, with every second
// tap, padded by KH-1 - (a+p-u0)/2. The four parity classes of (r, t) are four such jobs that write every second row
// and column: no product with a structural zero is formed. A class without taps (KH = 1) is written as zeros.
void conv2d_backward_data(floatX* dx,           // (B, H, W, C)
                          const floatX* dout,   // (B, OH, OW, OC)
                          const floatX* weight, // (OC, KH, KW, C)
                          const floatX* mask,   // (B, H, W, C) or NULL
                          int B, int H, int W, conv_t conv, activation_t act, stream_t s) {
    (void)s;
    int stride = conv.stride;
    conv_job_t job;
    memset(&job, 0, sizeof job);
    job.B = B, job.H = conv_out_height(H, conv), job.W = conv_out_width(W, conv), job.C = conv.OC;
    job.OC = job.out_row = conv.C, job.stride = 1, job.step = stride;
    job.out_H = H, job.out_W = W;
    job.x = dout, job.out = dx;
    job.mask = mask, job.slope = mask ? conv_slope(act) : 1;
    for (int parity = 0; parity < stride * stride; parity++) {
        job.row = parity / stride, job.column = parity % stride;
        int u0 = (job.row + conv.pad_top) % stride, v0 = (job.column + conv.pad_left) % stride;
        job.KH = conv_pieces(conv.KH - u0, stride), job.KW = conv_pieces(conv.KW - v0, stride);
        job.pad_top = job.KH - 1 - (job.row + conv.pad_top - u0) / stride;
        job.pad_left = job.KW - 1 - (job.column + conv.pad_left - v0) / stride;
        job.OH = conv_pieces(H - job.row, stride), job.OW = conv_pieces(W - job.column, stride);
        if (conv_is_matmul(conv)) conv_flatten(&job);
        ptrdiff_t by_row = (ptrdiff_t)conv.KW * conv.C, by_column = conv.C;
        conv_strides_t strides = {(u0 + stride * (job.KH - 1)) * by_row + (v0 + stride * (job.KW - 1)) * by_column, 1,
                                  -stride * by_row, -stride * by_column, conv.KH * by_row};
        conv_product(&job, weight, strides, NULL);
    }
}

// One of the two operands of a weight block as it passes over a tile: where it starts, and its steps from row to row
// and from pixel to pixel.
typedef struct {
    const floatX* at;
    size_t pitch, step;
} conv_operand_t;

// sum (P channels of dout, V vectors of a window's run) over the pixels of a tile. P and V are constants at the call.
VECTOR_INLINE void conv_weight_block(floatX* sum, const int P, const int V, conv_operand_t dout, conv_operand_t x,
                                     int rows, int cols) {
    vector_t total[CONV_CHANNELS][CONV_MAX_VECTORS], zero = {0};
    #pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
        #pragma GCC unroll 3
        for (int k = 0; k < V; k++) total[p][k] = zero;
    }
    for (int i = 0; i < rows; i++) {
        const floatX *d = dout.at + i * dout.pitch, *window = x.at + i * x.pitch;
        for (int j = 0; j < cols; j++, d += dout.step, window += x.step) {
            #pragma GCC unroll 8
            for (int p = 0; p < P; p++) {
                #pragma GCC unroll 3
                for (int k = 0; k < V; k++) {
                    vector_t value = vector_load(window + k * VECTOR_LANES);
                    vector_add_product(&total[p][k], vector_splat(d[p]), value);
                }
            }
        }
    }
    #pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
        #pragma GCC unroll 3
        for (int k = 0; k < V; k++) vector_store(sum + (p * V + k) * VECTOR_LANES, total[p][k]);
    }
}

// The part of dout that belongs to a tile. Blocks read CONV_HALF_CHANNELS channels at a time: other numbers of channels
// are copied and filled up with zeros.
static inline conv_operand_t conv_tile_dout(const conv_job_t* job, const conv_tile_t* tile, const floatX* dout) {
    int OC = job->OC;
    dout += (((size_t)tile->image * job->OH + tile->i) * job->OW + tile->j) * OC;
    conv_operand_t result = {dout, (size_t)job->OW * OC, (size_t)OC};
    if (OC % CONV_HALF_CHANNELS == 0) return result;
    int padded = conv_round_up(OC, CONV_HALF_CHANNELS);
    size_t bytes = (size_t)tile->rows * tile->cols * padded * sizeof(floatX);
    floatX* copy = (floatX*)cpu_scratch(CONV_SCRATCH_EXTRA, bytes);
    memset(copy, 0, bytes);
    conv_operand_t filled = {copy, (size_t)tile->cols * padded, (size_t)padded};
    for (int i = 0; i < tile->rows; i++) {
        for (int j = 0; j < tile->cols; j++) {
            const floatX* from = dout + i * result.pitch + j * result.step;
            memcpy(copy + i * filled.pitch + j * filled.step, from, OC * sizeof(floatX));
        }
    }
    return filled;
}

// conv_weight_block with its constants filled in.
VECTOR_LOOP void conv_weight_sums(floatX* sum, int P, int V, conv_operand_t dout, conv_operand_t x, int rows,
                                    int cols) {
    if (P == CONV_CHANNELS) {
        if (V == 1) conv_weight_block(sum, CONV_CHANNELS, 1, dout, x, rows, cols);
        else if (V == 2) conv_weight_block(sum, CONV_CHANNELS, 2, dout, x, rows, cols);
        else conv_weight_block(sum, CONV_CHANNELS, 3, dout, x, rows, cols);
    } else {
        if (V == 1) conv_weight_block(sum, CONV_HALF_CHANNELS, 1, dout, x, rows, cols);
        else if (V == 2) conv_weight_block(sum, CONV_HALF_CHANNELS, 2, dout, x, rows, cols);
        else conv_weight_block(sum, CONV_HALF_CHANNELS, 3, dout, x, rows, cols);
    }
}

// dweight (OC, KH, KW, C) += the products of one tile, for output channels [begin, end).
static inline void conv_tile_weight(floatS* dweight, const conv_job_t* job, const conv_tile_t* tile,
                                    conv_operand_t dout, int begin, int end) {
    int run = job->KW * job->C, KH = job->KH;
    floatX sum[CONV_CHANNELS * CONV_MAX_VECTORS * VECTOR_LANES] __attribute__((aligned(64)));
    for (int u = 0; u < KH; u++) {
        for (int t = 0; t < run;) {
            int V = conv_min(conv_pieces(run - t, VECTOR_LANES), CONV_MAX_VECTORS), width = V * VECTOR_LANES;
            int valid = conv_min(width, run - t);
            conv_operand_t x = {tile->x + u * tile->pitch + t, job->stride * tile->pitch, (size_t)job->stride * job->C};
            for (int o = begin; o < end;) {
                int P = end - o > CONV_HALF_CHANNELS ? CONV_CHANNELS : CONV_HALF_CHANNELS;
                conv_operand_t d = {dout.at + o, dout.pitch, dout.step};
                conv_weight_sums(sum, P, V, d, x, tile->rows, tile->cols);
                for (int p = 0; p < conv_min(P, end - o); p++) {
                    floatS* to = dweight + ((size_t)(o + p) * KH + u) * run + t;
                    for (int k = 0; k < valid; k++) to[k] += sum[p * width + k];
                }
                o += P;
            }
            t += width;
        }
    }
}

// The sum over tiles is cut into `slots` stretches, each with a matrix of sums of its own, and the output channels into
// `groups`: both from the sizes alone. A slot has at least 512 pixels, so that clearing and adding up its matrix
// stays small beside the work, and all slots together have 16 MiB at most.
typedef struct {
    int slots, groups, channels; // channels of a group
} conv_weight_split_t;

static inline conv_weight_split_t conv_weight_split(const conv_job_t* job, size_t tiles, size_t weights) {
    double slots = (double)job->B * job->OH * job->OW / 512;
    double most = (double)(16 << 20) / ((double)weights * sizeof(floatS));
    if (slots > most) slots = most;
    if (slots > tiles) slots = (double)tiles;
    conv_weight_split_t split;
    split.slots = slots < 1 ? 1 : slots > (double)CONV_TASKS ? CONV_TASKS : (int)slots;
    split.groups = conv_pieces(CONV_TASKS / 2, split.slots);
    split.channels = conv_round_up(conv_pieces(job->OC, split.groups), CONV_CHANNELS);
    split.groups = conv_pieces(job->OC, split.channels);
    return split;
}

// out[b,i,j,o] holds w[o,u,v,c] once, with the factor x[b, s i + u - p, s j + v - q, c]. With dout = dL/d out therefore
//   dw[o,u,v,c] = sum over b, i, j of dout[b,i,j,o] x[b, s i + u - p, s j + v - q, c]:
// for each row u of the kernel a product of dout^T with the windows' runs of KW C values, read from the same tiles.
void conv2d_backward_weight(floatS* dweight,    // (OC, KH, KW, C)
                            floatS* dbias,      // (OC) or NULL
                            const floatX* dout, // (B, OH, OW, OC)
                            const floatX* x,    // (B, H, W, C)
                            int B, int H, int W, conv_t conv, stream_t s) {
    if (conv_is_matmul(conv)) {
        matmul_backward(NULL, dweight, dbias, dout, x, NULL, (size_t)B * H * W, conv.C, conv.OC, s);
        return;
    }
    conv_job_t job = conv_forward_job(x, B, H, W, conv);
    conv_grid_t grid = conv_grid(&job);
    if (grid.tiles == 0) return;
    size_t weights = (size_t)conv.OC * conv.KH * conv.KW * conv.C, row = weights / conv.OC;
    conv_weight_split_t split = conv_weight_split(&job, grid.tiles, weights);
    floatS* sums = dweight;
    if (split.slots > 1) sums = (floatS*)cpu_scratch(CONV_SCRATCH_SUMS, split.slots * weights * sizeof(floatS));
    #pragma omp parallel for schedule(dynamic) if (worth_sharing(conv_work(&job)))
    for (int task = 0; task < split.slots * split.groups; task++) {
        size_t slot = task / split.groups;
        int begin = task % split.groups * split.channels, end = conv_min(begin + split.channels, conv.OC);
        floatS* sum = sums + slot * weights;
        if (split.slots > 1) memset(sum + begin * row, 0, (end - begin) * row * sizeof(floatS));
        for (size_t i = grid.tiles * slot / split.slots; i < grid.tiles * (slot + 1) / split.slots; i++) {
            conv_tile_t tile = conv_tile(&job, grid, i);
            conv_tile_weight(sum, &job, &tile, conv_tile_dout(&job, &tile, dout), begin, end);
        }
    }
    enum { CHUNK = 1024 };
    #pragma omp parallel for schedule(static) if (worth_sharing((double)split.slots * weights))
    for (size_t begin = 0; begin < (split.slots > 1 ? weights : 0); begin += CHUNK) {
        size_t end = begin + CHUNK < weights ? begin + CHUNK : weights;
        for (int slot = 0; slot < split.slots; slot++) {
            for (size_t i = begin; i < end; i++) dweight[i] += sums[slot * weights + i];
        }
    }
    if (dbias) add_column_sums(dbias, dout, (size_t)B * job.OH * job.OW, conv.OC);
}
