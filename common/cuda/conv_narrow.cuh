// conv_narrow.cuh: convolutions with a narrow side of at most four channels: images, and the logits of PatchGAN.
//
// One of the two tensors is wide (64 to 512 channels), the other nearly free to read. All of these are bound by
// memory: what counts is that the wide tensor passes once. So the product is formed at its pixels, not at the narrow
// ones. Let a tap of a channel be n = (u, v, k), k the narrow channel: N = K K narrow of them, 27 for 3 x 3 and three
// colours. In
//
//     input pixel = stride * output pixel + tap - pad                                           (rows, columns alike)
//
// each pixel p of the wide tensor and each tap have at most one partner pixel(p, n) in the narrow tensor, whichever of
// the two is the input. With the weights as a matrix w (N, wide) all six convolutions are three products:
//
//   expand      out[p, c] = sum_n narrow[pixel(p, n), k] w[n, c]         forward of narrow input, dx of narrow output
//   contract    y[p, n] = sum_c x[p, c] w[n, c], then out[r, k] = sum of y[p, n] over all p, n with pixel(p, n) = r
//                                                                        forward of narrow output, dx of narrow input
//   correlate   dw[n, c] = sum_p narrow[pixel(p, n), k] wide[p, c]       both weight gradients
//
// Tensor cores form them (bf16, mma_m16n8k16 with N rounded up), so arithmetic is no limit: conv_out of the decoder,
// 128 -> 3 at 256 x 256, is 27 * 128 multiply-accumulates a pixel: 64 images would take 0.5 ms of FFMA, against 0.32
// ms for their 1.07 GB at 3.35 TB/s. On tensor cores they are 17 GMAC with N = 32: 0.06 ms, hidden behind the memory.
// A product with K = 9 * 128 and the three outputs as one tile of 8 would read every x nine times from shared memory
// and multiply 9216 times a pixel instead of 4096.
//
// The wide tensor goes from device memory to registers and back without a stop in shared memory. A thread reads or
// writes 16 bytes, 8 neighbouring channels, where a fragment of mma wants 2 and 2 more: but which channel is which
// column or which k is free, as long as both operands agree. The order is told at each kernel.
//
// Sizes that are no multiple of 8 and the fp32 build take the plain kernels at the end. Next:
// common/cuda/conv_weight.cuh.
#pragma once
#include <assert.h>
// defines: launch, shared_array, pack, load16, store16, mma_m16n8k16, bf16, WARP
#include "common/cuda/launch.cuh"
// defines: conv_t, activation_t, LEAKY_SLOPE
#include "common/ops.h"

enum { NARROW_MOST = 4, NARROW_THREADS = 256, NARROW_WARPS = NARROW_THREADS / WARP };

// A convolution seen from its wide side.
typedef struct {
    int B;
    int wide, wide_H, wide_W;       // channels and size of the wide tensor
    int narrow, narrow_H, narrow_W; // and of the narrow one
    int K, stride, pad;
    int narrow_is_input;
    int N;                          // K K narrow
} conv_narrow_t;

static inline conv_narrow_t conv_narrow(int B, int H, int W, conv_t conv, int narrow_is_input) {
    int OH = conv_out_height(H, conv), OW = conv_out_width(W, conv);
    assert(conv_is_square(conv));
    conv_narrow_t c = {B, conv.C, H, W, conv.OC, OH, OW, conv.KH, conv.stride, conv.pad_top, narrow_is_input, 0};
    if (narrow_is_input) {
        c.wide = conv.OC, c.wide_H = OH, c.wide_W = OW;
        c.narrow = conv.C, c.narrow_H = H, c.narrow_W = W;
    }
    c.N = c.K * c.K * c.narrow;
    return c;
}

// What is read and written, from the side of the product: `out` is wide in expand, narrow in contract, and x the other
// way.
typedef struct {
    floatX* out;
    const floatX* x;
    const floatX* weight;   // (OC, K, K, C)
    const floatX* bias;     // (channels of out) or NULL
    const floatX* residual; // as out, or NULL
    const floatX* mask;     // as out, or NULL
    float slope;            // of the activation for negative sums, or where the mask is not positive
} conv_narrow_io_t;

static inline float conv_narrow_slope(activation_t act) {
    return act == ACT_NONE ? 1.0f : act == ACT_RELU ? 0.0f : (float)LEAKY_SLOPE;
}

// Where w[n, channel] lies in the weights (OC, K, K, C).
__device__ static inline size_t conv_narrow_weight_at(const conv_narrow_t& c, int n, int channel) {
    if (c.narrow_is_input) return (size_t)channel * c.N + n;
    return (size_t)(n % c.narrow * c.K * c.K + n / c.narrow) * c.wide + channel;
}

// Row (or column) of the output that meets row `at` of the input in tap u: an integer, or else -1.
__device__ static inline int conv_narrow_output_row(const conv_narrow_t& c, int at, int u) {
    int t = at + c.pad - u;
    return t >= 0 && t % c.stride == 0 ? t / c.stride : -1;
}
__device__ static inline int conv_narrow_input_row(const conv_narrow_t& c, int at, int u) {
    return at * c.stride + u - c.pad;
}
__device__ static inline int conv_narrow_from_wide(const conv_narrow_t& c, int at, int u) {
    return c.narrow_is_input ? conv_narrow_input_row(c, at, u) : conv_narrow_output_row(c, at, u);
}
__device__ static inline int conv_narrow_to_wide(const conv_narrow_t& c, int at, int u) {
    return c.narrow_is_input ? conv_narrow_output_row(c, at, u) : conv_narrow_input_row(c, at, u);
}

// What is written: the forward's activation and residual, or the backward's derivative of an activation.
__device__ static inline float conv_narrow_finish(const conv_narrow_io_t& io, float v, size_t at) {
    if (io.mask) return v * ((float)io.mask[at] > 0 ? 1.0f : io.slope);
    v = v > 0 ? v : io.slope * v;
    return io.residual ? v + (float)io.residual[at] : v;
}

// The tensors are cut into tiles of rows x cols pixels, image by image. Blocks take tiles in turn.
typedef struct {
    int rows, cols;   // of a tile
    int down, across; // tiles of an image
    int tiles;        // in all
} conv_narrow_grid_t;

static inline conv_narrow_grid_t conv_narrow_grid(int B, int H, int W, int rows, int cols) {
    conv_narrow_grid_t g = {rows, cols, (H + rows - 1) / rows, (W + cols - 1) / cols, 0};
    g.tiles = B * g.down * g.across;
    return g;
}

typedef struct { int image, row, col; } conv_narrow_tile_t; // image, and the tile's first pixel

__device__ static inline conv_narrow_tile_t conv_narrow_tile(const conv_narrow_grid_t& g, int index) {
    conv_narrow_tile_t t = {index / (g.down * g.across), index / g.across % g.down * g.rows, index % g.across * g.cols};
    return t;
}

#ifndef FP32 // ---------------------------------------------------------------------------------- tensor cores, bf16

// A row of weights in shared memory: n values and room to a multiple of 32, so that eight threads which read four
// pieces of 16 bytes in each of two neighbouring rows meet all banks.
static inline __host__ __device__ int conv_narrow_pitch(int n) {
    int groups = (n + 31) / 32;
    return 32 * (groups + 1 - groups % 2);
}

// Eight neighbouring values in four registers; zeros where there are none.
__device__ static inline void conv_narrow_load8(uint32_t r[4], const bf16* from, bool valid) {
    r[0] = r[1] = r[2] = r[3] = 0;
    if (!valid) return;
    pack<bf16> v = load16(from);
    memcpy(r, &v, sizeof v);
}

// d += a b, 32 long: x0, x1 are eight neighbouring k of rows g and g + 8 of a, and w those of column g of b, for
// thread 4 g + q the k from 8 q on. The first mma takes the first four of each thread's eight k, the second the others.
__device__ static inline void conv_narrow_multiply32(float d[4], const uint32_t x0[4], const uint32_t x1[4],
                                                     const uint32_t w[4]) {
    uint32_t first[4] = {x0[0], x1[0], x0[1], x1[1]}, second[4] = {x0[2], x1[2], x0[3], x1[3]};
    mma_m16n8k16(d, first, w);
    mma_m16n8k16(d, second, w + 2);
}

// The part of the narrow tensor that belongs to rows x 32 wide pixels, in shared memory, filled up with zeros so that
// nobody has to ask for borders any more: rows of `pitch` virtual pixels, in which tap (u, v) of wide pixel (i, j) is
// at
//   narrow input    (stride i + u, stride j + v)            narrow output   (i + K-1-u, j + K-1-v):
// there the pixels that no output has, because of the stride, are zeros too.
enum { NARROW_COLS = 32 };
static inline __host__ __device__ int conv_narrow_virtual(const conv_narrow_t& c, int n) {
    return c.narrow_is_input ? (n - 1) * c.stride + c.K : n + c.K - 1;
}

__device__ static inline void conv_narrow_stage(shared<bf16> to, const bf16* x, const conv_narrow_t& c,
                                                conv_narrow_tile_t tile, int rows) {
    int high = conv_narrow_virtual(c, rows), pitch = conv_narrow_virtual(c, NARROW_COLS);
    int lane = threadIdx.x % WARP, step = c.narrow_is_input ? 1 : c.stride;
    int top = c.narrow_is_input ? tile.row * c.stride - c.pad : tile.row + c.pad - (c.K - 1);
    int left = c.narrow_is_input ? tile.col * c.stride - c.pad : tile.col + c.pad - (c.K - 1);
    for (int i = threadIdx.x / WARP; i < high; i += NARROW_WARPS) {
        int row = top + i;
        bool row_valid = row >= 0 && row % step == 0 && row / step < c.narrow_H;
        const bf16* line = x + ((size_t)tile.image * c.narrow_H + (row_valid ? row / step : 0)) * c.narrow_W * c.narrow;
        for (int j = lane; j < pitch; j += WARP) {
            int col = left + j;
            bool valid = row_valid && col >= 0 && col % step == 0 && col / step < c.narrow_W;
            const bf16* from = line + (valid ? (size_t)(col / step) * c.narrow : 0);
            for (int k = 0; k < c.narrow; k++) to[(i * pitch + j) * c.narrow + k] = valid ? from[k] : (bf16)0.0f;
        }
    }
}

// Where tap n is, from the pixel's first element on; the weights beyond N are zeros and may meet any value.
__device__ static inline int conv_narrow_offset(const conv_narrow_t& c, int pitch, int n) {
    if (n >= c.N) return 0;
    int tap = n / c.narrow, u = tap / c.K, v = tap % c.K;
    if (!c.narrow_is_input) u = c.K - 1 - u, v = c.K - 1 - v;
    return (u * pitch + v) * c.narrow + n % c.narrow;
}

__device__ static inline uint32_t conv_narrow_pair(bf16 low, bf16 high) {
    bf16 pair[2] = {low, high};
    uint32_t r;
    memcpy(&r, pair, sizeof r);
    return r;
}

// Eight channels of one pixel are finished and written: v (8) holds the sums.
__device__ static inline void conv_narrow_write8(const conv_narrow_io_t& io, const float v[8], size_t at) {
    pack<bf16> result, other = {};
    if (io.residual) other = load16(io.residual + at);
    if (io.mask) other = load16(io.mask + at);
    for (int i = 0; i < 8; i++) {
        float f = v[i];
        if (io.mask) f *= (float)other[i] > 0 ? 1.0f : io.slope;
        else f = f > 0 ? f : io.slope * f;
        if (io.residual) f += (float)other[i];
        result[i] = (bf16)f;
    }
    store16(io.out + at, result);
}

// expand. A warp forms 16 neighbouring wide pixels (rows of the product) times 32 channels at a time, a thread in the
// end eight neighbouring channels of two pixels, g and g + 8: column 2 q + e of the j-th mma is channel 8 q + 2 j + e,
// so that its registers are what it writes in one piece. Rows of weights in shared memory lie along n; GROUPS = N /
// 32, rounded up.
template <int GROUPS>
__global__ void __launch_bounds__(NARROW_THREADS, 2)
conv_narrow_expand_kernel(conv_narrow_io_t io, conv_narrow_t c, conv_narrow_grid_t grid) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, q = lane % 4;
    int channels = (c.wide + 31) / 32 * 32, w_pitch = conv_narrow_pitch(32 * GROUPS);
    int pitch = conv_narrow_virtual(c, NARROW_COLS), high = conv_narrow_virtual(c, grid.rows);
    int step = c.narrow_is_input ? c.stride : 1; // virtual pixels from one wide pixel to the next
    size_t w_bytes = (size_t)channels * w_pitch * sizeof(bf16), bias_bytes = channels * sizeof(float);
    shared<bf16> w = shared_array<bf16>(0, (size_t)channels * w_pitch);
    shared<float> b = shared_array<float>(w_bytes, channels);
    shared<bf16> staged = shared_array<bf16>(w_bytes + bias_bytes, (size_t)high * pitch * c.narrow);

    for (int i = threadIdx.x; i < channels * w_pitch; i += NARROW_THREADS) {
        int channel = i / w_pitch, n = i % w_pitch;
        w[i] = channel < c.wide && n < c.N ? io.weight[conv_narrow_weight_at(c, n, channel)] : (bf16)0.0f;
    }
    for (int i = threadIdx.x; i < channels; i += NARROW_THREADS) b[i] = io.bias && i < c.wide ? (float)io.bias[i] : 0;
    int offset[GROUPS][8];
    for (int k = 0; k < GROUPS; k++) {
        for (int i = 0; i < 8; i++) offset[k][i] = conv_narrow_offset(c, pitch, 32 * k + 8 * q + i);
    }

    for (int index = blockIdx.x; index < grid.tiles; index += gridDim.x) {
        conv_narrow_tile_t tile = conv_narrow_tile(grid, index);
        conv_narrow_stage(staged, io.x, c, tile, grid.rows);
        __syncthreads();
        for (int strip = warp; strip < grid.rows * (NARROW_COLS / 16); strip += NARROW_WARPS) {
            int i = strip / (NARROW_COLS / 16), j = strip % (NARROW_COLS / 16) * 16 + g;
            int row = tile.row + i, col = tile.col + j;
            if (row >= c.wide_H || col - g >= c.wide_W) continue;
            uint32_t a[GROUPS][2][4];
            int base = (i * step * pitch + j * step) * c.narrow, next = 8 * step * c.narrow;
            for (int k = 0; k < GROUPS; k++) {
                for (int h = 0; h < 2; h++) {
                    for (int r = 0; r < 4; r++) {
                        a[k][h][r] = conv_narrow_pair(staged[base + h * next + offset[k][2 * r]],
                                                      staged[base + h * next + offset[k][2 * r + 1]]);
                    }
                }
            }
            size_t pixel = ((size_t)tile.image * c.wide_H + row) * c.wide_W + col;
            for (int first = 0; first < c.wide; first += 32) {
                float d[4][4];
                for (int t = 0; t < 4; t++) { // the bias is where the sums begin
                    d[t][0] = d[t][2] = b[first + 8 * q + 2 * t];
                    d[t][1] = d[t][3] = b[first + 8 * q + 2 * t + 1];
                }
                for (int k = 0; k < GROUPS; k++) {
                    for (int t = 0; t < 4; t++) {
                        int channel = first + 8 * (g / 2) + 2 * t + g % 2;
                        pack<bf16> piece = load16(w + channel * w_pitch + 32 * k + 8 * q);
                        uint32_t weights[4];
                        memcpy(weights, &piece, sizeof piece);
                        conv_narrow_multiply32(d[t], a[k][0], a[k][1], weights);
                    }
                }
                if (first + 8 * q >= c.wide) continue;
                for (int h = 0; h < 2; h++) {
                    if (col + 8 * h >= c.wide_W) continue;
                    float v[8];
                    for (int t = 0; t < 4; t++) v[2 * t] = d[t][2 * h], v[2 * t + 1] = d[t][2 * h + 1];
                    conv_narrow_write8(io, v, (pixel + 8 * h) * c.wide + first + 8 * q);
                }
            }
        }
        __syncthreads(); // the staged pixels are replaced
    }
}

// The wide pixels that a tile of narrow pixels needs: from where, and how many rows (columns alike).
__device__ static inline int conv_narrow_region_first(const conv_narrow_t& c, int first) {
    if (!c.narrow_is_input) return first * c.stride - c.pad;
    int t = first + c.pad - (c.K - 1); // the first output that is not before it: t / stride, rounded up
    return t > 0 ? (t + c.stride - 1) / c.stride : -(-t / c.stride);
}
static inline __host__ __device__ int conv_narrow_region(const conv_narrow_t& c, int n) {
    return c.narrow_is_input ? (n + c.K - 2) / c.stride + 1 : (n - 1) * c.stride + c.K;
}
// y is stored as (N, pixels): the pixels of one n lie side by side, for the writes of the fragments (2 q rows and g
// columns: with 4 modulo 16 floats a row, 32 banks) and for the sums alike.
static inline __host__ __device__ int conv_narrow_y_pitch(int pixels) { return (pixels + 15) / 16 * 16 + 4; }

// y of a region of wide pixels. A warp takes 16 pixels: thread 4 g + q reads of pixels g and g + 8 the eight channels
// from 8 q on of every 32; the rows of w in shared memory are read alike. TILES = N / 8, rounded up.
template <int TILES>
__device__ static inline void conv_narrow_products(shared<float> y, const bf16* x, shared<bf16> w,
                                                   const conv_narrow_t& c, int image, int top, int left, int high,
                                                   int across) {
    enum { BATCH = TILES <= 6 ? 4 : 2 }; // loads of 32 channels under way at a time
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, q = lane % 4;
    int pixels = high * across, y_pitch = conv_narrow_y_pitch(pixels), w_pitch = conv_narrow_pitch(c.wide);
    for (int first = 16 * warp; first < pixels; first += 16 * NARROW_WARPS) {
        const bf16* from[2];
        bool valid[2];
        for (int h = 0; h < 2; h++) {
            int p = first + g + 8 * h, row = top + p / across, col = left + p % across;
            valid[h] = p < pixels && row >= 0 && row < c.wide_H && col >= 0 && col < c.wide_W;
            size_t pixel = ((size_t)image * c.wide_H + (valid[h] ? row : 0)) * c.wide_W + (valid[h] ? col : 0);
            from[h] = x + pixel * c.wide + 8 * q;
        }
        float d[TILES][4];
        for (int t = 0; t < TILES; t++) d[t][0] = d[t][1] = d[t][2] = d[t][3] = 0;
        for (int channel = 0; channel < c.wide; channel += 32 * BATCH) {
            uint32_t a[BATCH][2][4];
            for (int k = 0; k < BATCH; k++) {
                for (int h = 0; h < 2; h++) {
                    int at = channel + 32 * k;
                    conv_narrow_load8(a[k][h], from[h] + at, valid[h] && at + 8 * q < c.wide);
                }
            }
            for (int k = 0; k < BATCH; k++) {
                if (channel + 32 * k >= c.wide) continue;
                for (int t = 0; t < TILES; t++) {
                    pack<bf16> piece = load16(w + (8 * t + g) * w_pitch + channel + 32 * k + 8 * q);
                    uint32_t weights[4];
                    memcpy(weights, &piece, sizeof piece);
                    conv_narrow_multiply32(d[t], a[k][0], a[k][1], weights);
                }
            }
        }
        for (int t = 0; t < TILES; t++) {
            for (int e = 0; e < 2; e++) {
                int n = 8 * t + 2 * q + e;
                if (n >= c.N) continue;
                y[n * y_pitch + first + g] = d[t][e];
                y[n * y_pitch + first + g + 8] = d[t][2 + e];
            }
        }
    }
}

// contract: y of the region by conv_narrow_products; then each thread adds up narrow pixels.
template <int TILES>
__global__ void __launch_bounds__(NARROW_THREADS, 2)
conv_narrow_contract_kernel(conv_narrow_io_t io, conv_narrow_t c, conv_narrow_grid_t grid) {
    int w_pitch = conv_narrow_pitch(c.wide), high = conv_narrow_region(c, grid.rows);
    int across = conv_narrow_region(c, grid.cols), y_pitch = conv_narrow_y_pitch(high * across);
    shared<bf16> w = shared_array<bf16>(0, (size_t)8 * TILES * w_pitch);
    shared<float> y = shared_array<float>((size_t)8 * TILES * w_pitch * sizeof(bf16), (size_t)c.N * y_pitch);
    for (int i = threadIdx.x; i < 8 * TILES * w_pitch; i += NARROW_THREADS) {
        int n = i / w_pitch, channel = i % w_pitch;
        w[i] = n < c.N && channel < c.wide ? io.weight[conv_narrow_weight_at(c, n, channel)] : (bf16)0.0f;
    }
    __syncthreads();
    for (int index = blockIdx.x; index < grid.tiles; index += gridDim.x) {
        conv_narrow_tile_t tile = conv_narrow_tile(grid, index);
        int top = conv_narrow_region_first(c, tile.row), left = conv_narrow_region_first(c, tile.col);
        conv_narrow_products<TILES>(y, io.x, w, c, tile.image, top, left, high, across);
        __syncthreads();
        for (int p = threadIdx.x; p < grid.rows * grid.cols; p += NARROW_THREADS) {
            int row = tile.row + p / grid.cols, col = tile.col + p % grid.cols;
            if (row >= c.narrow_H || col >= c.narrow_W) continue;
            float sum[NARROW_MOST];
            for (int k = 0; k < NARROW_MOST; k++) sum[k] = io.bias && k < c.narrow ? (float)io.bias[k] : 0;
            for (int u = 0; u < c.K; u++) { // pixels of the region that lie outside are zeros
                int i = conv_narrow_to_wide(c, row, u);
                if (c.narrow_is_input && i < 0) continue;
                for (int v = 0; v < c.K; v++) {
                    int j = conv_narrow_to_wide(c, col, v), n = (u * c.K + v) * c.narrow;
                    if (c.narrow_is_input && j < 0) continue;
                    shared<float> from = y + (n * y_pitch + (i - top) * across + j - left);
                    for (int k = 0; k < NARROW_MOST; k++) {
                        if (k < c.narrow) sum[k] += from[k * y_pitch];
                    }
                }
            }
            size_t at = (((size_t)tile.image * c.narrow_H + row) * c.narrow_W + col) * c.narrow;
            for (int k = 0; k < NARROW_MOST; k++) {
                if (k < c.narrow) io.out[at + k] = (bf16)conv_narrow_finish(io, sum[k], at + k);
            }
        }
        __syncthreads(); // y is replaced
    }
}

// correlate. A block owns 64 wide channels (blockIdx.y) and every gridDim.x-th tile of pixels; a warp takes 16 pixels
// at a time. Rows of the product are n, columns channels, and k runs over the pixels: thread 4 g + q reads the eight
// channels from 8 g on of pixels 4 q to 4 q + 3, which are its four k; channel 8 g + j is column g of the j-th mma.
// Where the wide tensor is dout, a row of ones behind the N taps gives dbias. In the end the warps add their sums one
// by one. ROWS = (N and the ones) / 16, rounded up.
template <int ROWS>
__global__ void __launch_bounds__(NARROW_THREADS, ROWS > 2 ? 1 : 2)
conv_narrow_correlate_kernel(float* partial,      // (gridDim.x, N wide), in the layout of dweight
                             float* partial_bias, // (gridDim.x, wide)
                             const bf16* wide,    // (B, wide_H, wide_W, wide)
                             const bf16* x,       // (B, narrow_H, narrow_W, narrow)
                             conv_narrow_t c, conv_narrow_grid_t grid) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, q = lane % 4;
    int pitch = conv_narrow_virtual(c, NARROW_COLS), high = conv_narrow_virtual(c, grid.rows);
    int step = c.narrow_is_input ? c.stride : 1, channel = 64 * blockIdx.y + 8 * g;
    shared<float> sums = shared_array<float>(0, 16 * ROWS * 64);
    shared<bf16> staged = shared_array<bf16>(16 * ROWS * 64 * sizeof(float), (size_t)high * pitch * c.narrow);
    int offset[ROWS][2];
    for (int m = 0; m < ROWS; m++) {
        for (int h = 0; h < 2; h++) offset[m][h] = conv_narrow_offset(c, pitch, 16 * m + 8 * h + g);
    }
    float d[ROWS][8][4];
    for (int m = 0; m < ROWS; m++) {
        for (int t = 0; t < 8; t++) d[m][t][0] = d[m][t][1] = d[m][t][2] = d[m][t][3] = 0;
    }

    for (int index = blockIdx.x; index < grid.tiles; index += gridDim.x) {
        conv_narrow_tile_t tile = conv_narrow_tile(grid, index);
        conv_narrow_stage(staged, x, c, tile, grid.rows);
        __syncthreads();
        for (int strip = warp; strip < grid.rows * (NARROW_COLS / 16); strip += NARROW_WARPS) {
            int i = strip / (NARROW_COLS / 16), j = strip % (NARROW_COLS / 16) * 16 + 4 * q;
            int row = tile.row + i, col = tile.col + j;
            if (row >= c.wide_H || col - 4 * q >= c.wide_W) continue;
            const bf16* from = wide + (((size_t)tile.image * c.wide_H + row) * c.wide_W + col) * c.wide + channel;
            uint32_t v[4][4];
            for (int k = 0; k < 4; k++) {
                conv_narrow_load8(v[k], from + (size_t)k * c.wide, col + k < c.wide_W && channel < c.wide);
            }
            uint32_t a[ROWS][4];
            int base = (i * step * pitch + j * step) * c.narrow, next = step * c.narrow;
            for (int m = 0; m < ROWS; m++) {
                for (int r = 0; r < 4; r++) { // pixels 2 (r / 2) and the next, n = 8 (r % 2) + g
                    int at = base + r / 2 * 2 * next + offset[m][r % 2];
                    a[m][r] = conv_narrow_pair(staged[at], staged[at + next]);
                    if (16 * m + 8 * (r % 2) + g == c.N) a[m][r] = bf16x2(1, 1);
                }
            }
            for (int t = 0; t < 8; t++) {
                uint32_t b[2];
                for (int h = 0; h < 2; h++) { // the same half of two words: channel 8 g + t of two pixels
                    uint32_t low = v[2 * h][t / 2], high_word = v[2 * h + 1][t / 2];
                    b[h] = t % 2 ? low >> 16 | (high_word & 0xffff0000u) : (low & 0xffffu) | high_word << 16;
                }
                for (int m = 0; m < ROWS; m++) mma_m16n8k16(d[m][t], a[m], b);
            }
        }
        __syncthreads(); // the staged pixels are replaced
    }

    shared<float> mine = sums + g * 64 + 16 * q; // sums (16 ROWS, 64)
    for (int turn = 0; turn < NARROW_WARPS; turn++) {
        if (warp == turn) {
            for (int m = 0; m < ROWS; m++) {
                for (int t = 0; t < 8; t++) {
                    for (int e = 0; e < 4; e++) {
                        int at = (16 * m + 8 * (e / 2)) * 64 + 8 * (e % 2) + t;
                        mine[at] = d[m][t][e] + (turn ? (float)mine[at] : 0);
                    }
                }
            }
        }
        __syncthreads();
    }
    partial += (size_t)blockIdx.x * c.N * c.wide;
    for (int i = threadIdx.x; i < 16 * ROWS * 64; i += NARROW_THREADS) {
        int n = i / 64, to = 64 * blockIdx.y + i % 64;
        if (to >= c.wide) continue;
        if (n < c.N) partial[conv_narrow_weight_at(c, n, to)] = sums[i];
        else if (n == c.N && c.narrow_is_input) partial_bias[blockIdx.x * c.wide + to] = sums[i];
    }
}

// Tiles of `rows` x 32 wide pixels: large, but enough of them for all multiprocessors.
static inline conv_narrow_grid_t conv_narrow_wide_grid(conv_narrow_t c, int rows, int blocks) {
    conv_narrow_grid_t g = conv_narrow_grid(c.B, c.wide_H, c.wide_W, rows, NARROW_COLS);
    while (g.rows > 4 && (g.tiles < blocks || g.rows >= 2 * c.wide_H)) {
        g = conv_narrow_grid(c.B, c.wide_H, c.wide_W, g.rows / 2, NARROW_COLS);
    }
    return g;
}

static inline size_t conv_narrow_staged_bytes(conv_narrow_t c, int rows) {
    return (size_t)conv_narrow_virtual(c, rows) * conv_narrow_virtual(c, NARROW_COLS) * c.narrow * sizeof(bf16);
}

static inline int conv_narrow_aligned(const void* p) { return (uintptr_t)p % 16 == 0; }

// Each of the following returns 0 where it does not take the sizes.
static inline int conv_narrow_expand_tensor(conv_narrow_io_t io, conv_narrow_t c, stream_t s) {
    if (c.wide % 8 || c.N > 64) return 0;
    if (!conv_narrow_aligned(io.out) || !conv_narrow_aligned(io.residual) || !conv_narrow_aligned(io.mask)) return 0;
    int most = 2 * s->multiprocessors, groups = (c.N + 31) / 32, channels = (c.wide + 31) / 32 * 32;
    conv_narrow_grid_t grid = conv_narrow_wide_grid(c, 16, most);
    size_t bytes = (size_t)channels * (conv_narrow_pitch(32 * groups) * sizeof(bf16) + sizeof(float));
    bytes += conv_narrow_staged_bytes(c, grid.rows);
    if (bytes > (size_t)s->shared_bytes) return 0;
    int blocks = grid.tiles < most ? grid.tiles : most;
    if (groups == 1) launch<conv_narrow_expand_kernel<1>>(blocks, NARROW_THREADS, bytes, s, io, c, grid);
    else launch<conv_narrow_expand_kernel<2>>(blocks, NARROW_THREADS, bytes, s, io, c, grid);
    return 1;
}

static inline size_t conv_narrow_y_bytes(conv_narrow_t c, int rows, int cols) {
    int pixels = conv_narrow_region(c, rows) * conv_narrow_region(c, cols);
    return (size_t)c.N * conv_narrow_y_pitch(pixels) * sizeof(float);
}

template <int TILES>
static inline int conv_narrow_contract_tiles(conv_narrow_io_t io, conv_narrow_t c, stream_t s) {
    // 16 x 32 pixels of an image need 18 x 34 = 1.2 times as many of the wide tensor; y then has 66 KB (N = 27)
    int rows = 16, cols = c.narrow_is_input ? 32 * c.stride : 32, most = 2 * s->multiprocessors;
    size_t weights = (size_t)8 * TILES * conv_narrow_pitch(c.wide) * sizeof(bf16), room = 80 * 1024;
    if (weights + room > (size_t)s->shared_bytes) {
        if (weights > (size_t)s->shared_bytes) return 0;
        room = s->shared_bytes - weights;
    }
    while (rows > 1 && conv_narrow_y_bytes(c, rows, cols) > room) rows /= 2;
    while (cols > 8 && conv_narrow_y_bytes(c, rows, cols) > room) cols /= 2;
    while (rows > 4 && conv_narrow_grid(c.B, c.narrow_H, c.narrow_W, rows, cols).tiles < most) rows /= 2;
    conv_narrow_grid_t grid = conv_narrow_grid(c.B, c.narrow_H, c.narrow_W, rows, cols);
    size_t bytes = weights + conv_narrow_y_bytes(c, rows, cols);
    if (bytes > (size_t)s->shared_bytes) return 0;
    int blocks = grid.tiles < most ? grid.tiles : most;
    launch<conv_narrow_contract_kernel<TILES>>(blocks, NARROW_THREADS, bytes, s, io, c, grid);
    return 1;
}
static inline int conv_narrow_contract_tensor(conv_narrow_io_t io, conv_narrow_t c, stream_t s) {
    if (c.wide % 8 || c.N > 64 || !conv_narrow_aligned(io.x)) return 0;
    if (c.N <= 16) return conv_narrow_contract_tiles<2>(io, c, s);
    if (c.N <= 32) return conv_narrow_contract_tiles<4>(io, c, s);
    if (c.N <= 48) return conv_narrow_contract_tiles<6>(io, c, s);
    return conv_narrow_contract_tiles<8>(io, c, s);
}

// Partial sums of a weight gradient, at most `most` of them; returns how many.
static inline int conv_narrow_correlate_tensor(float* partial, float* partial_bias, const floatX* wide, const floatX* x,
                                               int most, conv_narrow_t c, stream_t s) {
    int rows = c.N + c.narrow_is_input, chunks = (c.wide + 63) / 64; // a row more for dbias
    if (c.wide % 8 || rows > 64 || !conv_narrow_aligned(wide)) return 0;
    int blocks = (2 * s->multiprocessors + chunks - 1) / chunks;
    if (blocks > most) blocks = most;
    conv_narrow_grid_t grid = conv_narrow_wide_grid(c, 32, blocks);
    if (blocks > grid.tiles) blocks = grid.tiles;
    int height = rows <= 16 ? 1 : rows <= 32 ? 2 : 4;
    size_t bytes = (size_t)16 * height * 64 * sizeof(float) + conv_narrow_staged_bytes(c, grid.rows);
    if (blocks == 0 || bytes > (size_t)s->shared_bytes) return 0;
    dim3 shape(blocks, chunks);
    if (height == 1) {
        launch<conv_narrow_correlate_kernel<1>>(shape, NARROW_THREADS, bytes, s, partial, partial_bias, wide, x, c,
                                                grid);
    } else if (height == 2) {
        launch<conv_narrow_correlate_kernel<2>>(shape, NARROW_THREADS, bytes, s, partial, partial_bias, wide, x, c,
                                                grid);
    } else {
        launch<conv_narrow_correlate_kernel<4>>(shape, NARROW_THREADS, bytes, s, partial, partial_bias, wide, x, c,
                                                grid);
    }
    return blocks;
}

#else // ------------------------------------------------------------------------------------- fp32: plain kernels

static inline int conv_narrow_expand_tensor(conv_narrow_io_t, conv_narrow_t, stream_t) { return 0; }
static inline int conv_narrow_contract_tensor(conv_narrow_io_t, conv_narrow_t, stream_t) { return 0; }
static inline int conv_narrow_correlate_tensor(float*, float*, const floatX*, const floatX*, int, conv_narrow_t,
                                               stream_t) { return 0; }

#endif // ------------------------------------------------------------------------------------------------------------

// expand of any size: a thread forms one value of the wide tensor from the definition.
__global__ void conv_narrow_expand_plain(conv_narrow_io_t io, conv_narrow_t c) {
    size_t n = (size_t)c.B * c.wide_H * c.wide_W * c.wide;
    for (size_t e = (size_t)blockIdx.x * blockDim.x + threadIdx.x; e < n; e += (size_t)gridDim.x * blockDim.x) {
        int channel = (int)(e % c.wide);
        size_t pixel = e / c.wide;
        int col = (int)(pixel % c.wide_W), row = (int)(pixel / c.wide_W % c.wide_H);
        size_t image = pixel / c.wide_W / c.wide_H;
        float sum = io.bias ? (float)io.bias[channel] : 0;
        for (int tap = 0; tap < c.K * c.K; tap++) {
            int i = conv_narrow_from_wide(c, row, tap / c.K), j = conv_narrow_from_wide(c, col, tap % c.K);
            if (i < 0 || i >= c.narrow_H || j < 0 || j >= c.narrow_W) continue;
            const floatX* from = io.x + ((image * c.narrow_H + i) * c.narrow_W + j) * c.narrow;
            for (int k = 0; k < c.narrow; k++) {
                sum += (float)from[k] * (float)io.weight[conv_narrow_weight_at(c, tap * c.narrow + k, channel)];
            }
        }
        io.out[e] = (floatX)conv_narrow_finish(io, sum, e);
    }
}

// contract of any size: a warp forms the channels of one narrow pixel, its threads going over the wide channels.
__global__ void conv_narrow_contract_plain(conv_narrow_io_t io, conv_narrow_t c) {
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    size_t pixels = (size_t)c.B * c.narrow_H * c.narrow_W, step = (size_t)gridDim.x * warps;
    for (size_t pixel = (size_t)blockIdx.x * warps + threadIdx.x / WARP; pixel < pixels; pixel += step) {
        int col = (int)(pixel % c.narrow_W), row = (int)(pixel / c.narrow_W % c.narrow_H);
        size_t image = pixel / c.narrow_W / c.narrow_H;
        float sum[NARROW_MOST] = {0, 0, 0, 0};
        for (int tap = 0; tap < c.K * c.K; tap++) {
            int i = conv_narrow_to_wide(c, row, tap / c.K), j = conv_narrow_to_wide(c, col, tap % c.K);
            if (i < 0 || i >= c.wide_H || j < 0 || j >= c.wide_W) continue;
            const floatX* from = io.x + ((image * c.wide_H + i) * c.wide_W + j) * c.wide;
            for (int channel = lane; channel < c.wide; channel += WARP) {
                float value = (float)from[channel];
                for (int k = 0; k < NARROW_MOST; k++) {
                    if (k >= c.narrow) continue;
                    sum[k] += value * (float)io.weight[conv_narrow_weight_at(c, tap * c.narrow + k, channel)];
                }
            }
        }
        for (int k = 0; k < NARROW_MOST; k++) {
            float total = warp_sum(sum[k]);
            size_t at = pixel * c.narrow + k;
            if (lane == 0 && k < c.narrow) {
                io.out[at] = (floatX)conv_narrow_finish(io, total + (io.bias ? (float)io.bias[k] : 0), at);
            }
        }
    }
}

static inline void conv_narrow_expand(conv_narrow_io_t io, conv_narrow_t c, stream_t s) {
    size_t n = (size_t)c.B * c.wide_H * c.wide_W * c.wide, most = (size_t)16 * s->multiprocessors;
    if (n == 0 || conv_narrow_expand_tensor(io, c, s)) return;
    size_t blocks = (n + NARROW_THREADS - 1) / NARROW_THREADS;
    if (blocks > most) blocks = most;
    launch<conv_narrow_expand_plain>((unsigned)blocks, NARROW_THREADS, 0, s, io, c);
}

static inline void conv_narrow_contract(conv_narrow_io_t io, conv_narrow_t c, stream_t s) {
    size_t pixels = (size_t)c.B * c.narrow_H * c.narrow_W, most = (size_t)16 * s->multiprocessors;
    if (pixels == 0 || conv_narrow_contract_tensor(io, c, s)) return;
    size_t blocks = (pixels + NARROW_WARPS - 1) / NARROW_WARPS;
    if (blocks > most) blocks = most;
    launch<conv_narrow_contract_plain>((unsigned)blocks, NARROW_THREADS, 0, s, io, c);
}

// The four of them, as conv2d_forward and conv2d_backward_data (common/ops.h) call them.

// C <= 4
static inline void conv_narrow_in_forward(floatX* out,            // (B, OH, OW, OC)
                                          const floatX* x,        // (B, H, W, C)
                                          const floatX* weight,   // (OC, K, K, C)
                                          const floatX* bias,     // (OC) or NULL
                                          const floatX* residual, // (B, OH, OW, OC) or NULL
                                          int B, int H, int W, conv_t conv, activation_t act, stream_t s) {
    conv_narrow_t c = conv_narrow(B, H, W, conv, 1);
    conv_narrow_io_t io = {out, x, weight, bias, residual, nullptr, conv_narrow_slope(act)};
    conv_narrow_expand(io, c, s);
}

// OC <= 4
static inline void conv_narrow_out_forward(floatX* out,            // (B, OH, OW, OC)
                                           const floatX* x,        // (B, H, W, C)
                                           const floatX* weight,   // (OC, K, K, C)
                                           const floatX* bias,     // (OC) or NULL
                                           const floatX* residual, // (B, OH, OW, OC) or NULL
                                           int B, int H, int W, conv_t conv, activation_t act, stream_t s) {
    conv_narrow_t c = conv_narrow(B, H, W, conv, 0);
    conv_narrow_io_t io = {out, x, weight, bias, residual, nullptr, conv_narrow_slope(act)};
    conv_narrow_contract(io, c, s);
}

// C <= 4
static inline void conv_narrow_in_backward_data(floatX* dx,           // (B, H, W, C)
                                                const floatX* dout,   // (B, OH, OW, OC)
                                                const floatX* weight, // (OC, K, K, C)
                                                const floatX* mask,   // (B, H, W, C) or NULL
                                                int B, int H, int W, conv_t conv, activation_t act, stream_t s) {
    conv_narrow_t c = conv_narrow(B, H, W, conv, 1);
    conv_narrow_io_t io = {dx, dout, weight, nullptr, nullptr, mask, mask ? conv_narrow_slope(act) : 1};
    conv_narrow_contract(io, c, s);
}

// OC <= 4
static inline void conv_narrow_out_backward_data(floatX* dx,           // (B, H, W, C)
                                                 const floatX* dout,   // (B, OH, OW, OC)
                                                 const floatX* weight, // (OC, K, K, C)
                                                 const floatX* mask,   // (B, H, W, C) or NULL
                                                 int B, int H, int W, conv_t conv, activation_t act, stream_t s) {
    conv_narrow_t c = conv_narrow(B, H, W, conv, 0);
    conv_narrow_io_t io = {dx, dout, weight, nullptr, nullptr, mask, mask ? conv_narrow_slope(act) : 1};
    conv_narrow_expand(io, c, s);
}
