// conv_weight.cuh: the gradients of a convolution's weights and bias.
//
//   dweight[o,u,v,c] += sum over positions m = (b, i, j) of dout[m, o] x[b, stride i + u - pad, stride j + v - pad, c]
//   dbias[o]         += sum over m of dout[m, o]                                           Derived in dev/cpu/conv.h
//
// For each tap (u, v) a matrix product dout^T x' with a result of OC x C, small, and a sum over B OH OW positions,
// long: 4.2 million for 64 images of 256 x 256. So the positions are cut into stretches ("splits"), one a block; each
// leaves a gradient of its own in device_scratch, and a second kernel adds these in order.
//
// A block of the tensor core kernel owns 128 output channels, 64 input channels and the K taps of one row u of the
// kernel. It goes through its positions 64 at a time, a piece of an image: 1 x 64, 2 x 32, 4 x 16 or 8 x 8. From
// device memory come 64 x 128 values of dout and the pixels of x under the row of taps, for 1 x 64 and K = 3 that is
// 66 x 64. All K taps read the same pixels, shifted. Per byte that passes from L2 this makes 64 multiply-accumulates,
// twice what single taps in tiles of 128 x 128 would: at 128 channels, 32 images of 256 x 256 (dout and x 537 MB each,
// 309 GMAC) 4.9 GB pass from L2 instead of 9.7, 0.9 ms at 5.5 TB/s. Device memory is read about once, as the blocks of
// a split run side by side. The product takes 1.2 ms at 500 TFLOP/s, of which mma instructions are capable.
//
// One block of 8 warps runs on a multiprocessor, all in the same step, so that nobody computes while they copy or wait.
// Hence copies are asked for among the products of a step's first 16 positions, two steps ahead, and the fragments of
// the next 16 are loaded while the last 16 multiply, across the barrier too. A step is 96 mma (K = 3) in some 380
// instructions of a warp, at most 13 others in a row (sm_90). Three steps take 84 KB of shared memory. With 4 x 4 taps
// or stride 2 a step has 32 positions, as registers and memory are scarce: four of them take 80 KB.
//
// Both operands lie with the positions as rows, K of the product down a column: ldmatrix turns them.
//
// Where one side has at most four channels, the product of conv_narrow.cuh is bound by one read of the wide tensor. 1x1
// convolutions are linear layers. Everything else, and the fp32 build, takes conv_weight_plain.
// Look next at common/cuda/matmul.cuh.
#pragma once
// defines: launch, shared_array, cp_async_16, ldmatrix_x4_transposed, bf16
#include "common/cuda/launch.cuh"
// defines: tile_at, tile_load_a_transposed, tile_multiply
#include "common/cuda/mma_tile.cuh"
// defines: conv_narrow, conv_narrow_correlate_tensor, NARROW_MOST
#include "common/cuda/conv_narrow.cuh"
// defines: add_parts
#include "common/cuda/parts.cuh"
// defines: matmul_backward, add_column_sums
#include "common/cuda/matmul.cuh"

// Where sums go. With several splits each leaves its own in `partial`, and for dbias `parts` of them in `partial_bias`;
// with one they are added to the gradients at once, and both are NULL.
typedef struct {
    float *partial, *partial_bias; // (splits, weights), (splits, parts, OC)
    float *dweight, *dbias;        // (weights), (OC) or NULL
    size_t weights;
    int OC, parts;
} conv_sums_t;

__device__ static inline float* conv_sums_weights(const conv_sums_t& to, size_t split) {
    return to.partial ? to.partial + split * to.weights : to.dweight;
}
__device__ static inline float* conv_sums_bias(const conv_sums_t& to, size_t split) {
    return to.partial ? to.partial_bias + split * to.parts * to.OC : to.dbias;
}

// Values of one split.
static inline size_t conv_sums_size(conv_sums_t sums) { return sums.weights + (size_t)sums.parts * sums.OC; }

static inline conv_sums_t conv_sums_plan(conv_sums_t sums, int splits, stream_t s) {
    sums.partial = (float*)device_scratch(s, splits * conv_sums_size(sums) * sizeof(float));
    sums.partial_bias = sums.partial + splits * sums.weights;
    return sums;
}

// The gradients += their partial sums.
static inline void conv_sums_add(conv_sums_t sums, int splits, int with_bias, stream_t s) {
    add_parts(sums.dweight, NULL, NULL, sums.partial, splits, 1, (int)sums.weights, s);
    if (with_bias) add_parts(sums.dbias, NULL, NULL, sums.partial_bias, (size_t)splits * sums.parts, 1, sums.OC, s);
}

// How many partial gradients the scratch memory holds.
static inline int conv_sums_most(conv_sums_t sums) {
    size_t most = DEVICE_SCRATCH_BYTES / (conv_sums_size(sums) * sizeof(float));
    return most < (1 << 20) ? (int)most : 1 << 20;
}

// The number of splits that is done first. `tiles` blocks a split take `steps` steps together, `resident` blocks run
// at a time. A block costs some steps to fill its pipeline and to write its sums, a split costs `extra` steps of
// everyone's time for passing through memory.
static inline int conv_weight_splits(size_t steps, int tiles, int resident, double extra, int most) {
    int block_steps = 6;
    double best = 0;
    int splits = 1;
    for (int n = 1; n <= most && (size_t)n <= steps && (n == 1 || (n - 1) * tiles < 4 * resident); n++) {
        size_t rounds = ((size_t)n * tiles + resident - 1) / resident;
        double time = (double)rounds * ((double)((steps + n - 1) / n) + block_steps) + (n > 1 ? n * extra : 0);
        if (n == 1 || time < best) best = time, splits = n;
    }
    return splits;
}

typedef struct {
    int B, H, W, C, OC, OH, OW, KH, KW, stride, pad_top, pad_left;
    int rows, cols, shift;   // a step's piece of an image; cols = 1 << shift
    int down, across;        // pieces of an image
    size_t steps;            // B down across, or pieces of 16 positions
} conv_weight_t;

static inline conv_weight_t conv_weight_sizes(int B, int H, int W, conv_t conv) {
    conv_weight_t c = {B, H, W, conv.C, conv.OC, conv_out_height(H, conv), conv_out_width(W, conv), conv.KH, conv.KW,
                       conv.stride, conv.pad_top, conv.pad_left, 0, 0, 0, 0, 0, 0};
    return c;
}

#ifndef FP32 // ---------------------------------------------------------------------------------- tensor cores, bf16

enum { WEIGHT_OC = 128, WEIGHT_C = 64, WEIGHT_PIXELS = 96, WEIGHT_THREADS = 256 };

// Positions of a step, and steps in shared memory, as many as fit into the 99 KB that every device has. Pixels of x
// under a step: at most 8 x 11 (K = 4, pieces of 4 x 8) or 4 x 18 (with stride 2), 8 x 10 (K = 3), rounded up to what
// all threads copy at a time.
template <int K, int STRIDE> static inline __host__ __device__ constexpr int conv_weight_positions() {
    return K == 3 && STRIDE == 1 ? 64 : 32;
}
template <int K, int STRIDE> static inline __host__ __device__ constexpr int conv_weight_stages() {
    return K == 3 && STRIDE == 1 ? 3 : 4;
}
template <int K, int STRIDE> static inline __host__ __device__ constexpr size_t conv_weight_stage() { // elements
    return conv_weight_positions<K, STRIDE>() * WEIGHT_OC + WEIGHT_PIXELS * WEIGHT_C;
}

// Piece p of a pixel of x, in shared memory: as tile_at, for rows that ldmatrix meets in steps of the stride.
template <int STRIDE> __device__ static inline int conv_weight_at(int pixel, int p) {
    return pixel * WEIGHT_C + (p ^ (pixel / STRIDE & 7)) * 8;
}

// What a thread copies in every step: of dout, piece p of positions m, m + 16, ...; of x, piece p of every 32nd pixel.
template <int STRIDE> struct conv_weight_copy_t {
    enum { APART = WEIGHT_THREADS / (WEIGHT_C / 8), PIXELS = WEIGHT_PIXELS / APART };
    int image, i, j;   // of the step that is copied next: its first position
    int o, channel;    // first of the eight
    int place[PIXELS]; // row and column of the pixels in the piece of x, in one word; -1 behind the last
};

template <int K, int STRIDE>
__device__ static inline conv_weight_copy_t<STRIDE> conv_weight_first(const conv_weight_t& c, size_t step, int first_o,
                                                                      int first_c) {
    conv_weight_copy_t<STRIDE> copy;
    int piece = (int)(step % (c.down * c.across)), length = (c.cols - 1) * STRIDE + K;
    copy.image = (int)(step / (c.down * c.across));
    copy.i = piece / c.across * c.rows, copy.j = piece % c.across * c.cols;
    copy.o = first_o + threadIdx.x % (WEIGHT_OC / 8) * 8;
    copy.channel = first_c + threadIdx.x % (WEIGHT_C / 8) * 8;
    for (int k = 0; k < copy.PIXELS; k++) {
        int pixel = threadIdx.x / (WEIGHT_C / 8) + k * (WEIGHT_THREADS / (WEIGHT_C / 8)), line = pixel / length;
        copy.place[k] = line < c.rows ? line * STRIDE << 16 | (pixel - line * length) : 0x7fff << 16;
    }
    return copy;
}

// Copies a step's dout (positions, 128) and x (pixels, 64) to shared memory, zeros for what is outside and where there
// are no `more` steps, and goes on to the next step.
template <int K, int STRIDE>
__device__ static inline void conv_weight_copy(shared<bf16> stage, const bf16* dout, const bf16* x,
                                               const conv_weight_t& c, int u, conv_weight_copy_t<STRIDE>& copy,
                                               bool more) {
    constexpr int positions = conv_weight_positions<K, STRIDE>(), apart = WEIGHT_THREADS / (WEIGHT_OC / 8);
    const bf16* from = dout + (((size_t)copy.image * c.OH + copy.i) * c.OW + copy.j) * c.OC + copy.o;
    int m = threadIdx.x / (WEIGHT_OC / 8), p = threadIdx.x % (WEIGHT_OC / 8);
    bool inside = more && copy.o < c.OC;
    for (int k = 0; k < positions; k += apart) {
        int line = (m + k) >> c.shift, col = (m + k) & (c.cols - 1);
        bool valid = inside && copy.i + line < c.OH && copy.j + col < c.OW;
        cp_async_16(stage + tile_at<WEIGHT_OC>(m + k, p), from + (ptrdiff_t)(line * c.OW + col) * c.OC, valid);
    }
    shared<bf16> window = stage + positions * WEIGHT_OC;
    int top = copy.i * STRIDE + u - c.pad_top, left = copy.j * STRIDE - c.pad_left;
    inside = more && copy.channel < c.C;
    from = x + (((ptrdiff_t)copy.image * c.H + top) * c.W + left) * c.C + copy.channel; // may be outside
    int pixel = threadIdx.x / (WEIGHT_C / 8);
    for (int k = 0; k < copy.PIXELS; k++) {
        int line = copy.place[k] >> 16, col = copy.place[k] & 0xffff, row = top + line;
        bool valid = inside && (unsigned)row < (unsigned)c.H && (unsigned)(left + col) < (unsigned)c.W;
        cp_async_16(window + conv_weight_at<STRIDE>(pixel + k * copy.APART, threadIdx.x % (WEIGHT_C / 8)),
                    from + (ptrdiff_t)(line * c.W + col) * c.C, valid);
    }
    copy.j += c.cols;
    if (copy.j >= c.OW) copy.j = 0, copy.i += c.rows;
    if (copy.i >= c.OH) copy.i = 0, copy.image++;
}

// The fragments of positions [k, k + 16): 64 channels of dout from warp_o on, and 16 channels of x from warp_c on, for
// each tap.
template <int K, int STRIDE>
__device__ static inline void conv_weight_load(uint32_t a[4][4], uint32_t b[K][1][4], shared<const bf16> stage,
                                               const conv_weight_t& c, int warp_o, int warp_c, int k) {
    shared<const bf16> window = stage + conv_weight_positions<K, STRIDE>() * WEIGHT_OC;
    int lane = threadIdx.x % WARP, m = k + lane % 16; // the position of this thread's row in ldmatrix
    int pixel = (m >> c.shift) * ((c.cols - 1) * STRIDE + K) + (m & (c.cols - 1)) * STRIDE;
    tile_load_a_transposed<64, WEIGHT_OC>(a, stage, warp_o, k);
    for (int v = 0; v < K; v++) {
        ldmatrix_x4_transposed(b[v][0], window + conv_weight_at<STRIDE>(pixel + v, warp_c / 8 + lane / 16));
    }
}

// Eight warps: two times 64 output channels, four times 16 input channels with all K taps, so 64 x 16 K sums a warp.
// The sums of dout itself, for dbias, are a product with ones; the four warps that hold the same dout share it, one
// mma each, and the blocks that do take turns, step by step: each has a part of dbias. blockIdx.x counts input channels
// first, then u, then output channels; blockIdx.y is the split.
template <int K, int STRIDE>
__global__ void __launch_bounds__(WEIGHT_THREADS, 1)
conv_weight_kernel(conv_sums_t sums,
                   const bf16* dout, // (B, OH, OW, OC)
                   const bf16* x,    // (B, H, W, C)
                   conv_weight_t c) {
    constexpr size_t STAGE = conv_weight_stage<K, STRIDE>();
    constexpr int STAGES = conv_weight_stages<K, STRIDE>(), POSITIONS = conv_weight_positions<K, STRIDE>();
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, q = lane % 4;
    int warp_o = warp / 4 * 64, warp_c = warp % 4 * 16;
    int tiles_c = (c.C + WEIGHT_C - 1) / WEIGHT_C, first_c = blockIdx.x % tiles_c * WEIGHT_C;
    int u = blockIdx.x / tiles_c % K, first_o = blockIdx.x / tiles_c / K * WEIGHT_OC;
    size_t step = c.steps * blockIdx.y / gridDim.y, end = c.steps * (blockIdx.y + 1) / gridDim.y;
    int part = blockIdx.x % (tiles_c * K), turn = sums.dbias && part < sums.parts ? part : 1 << 30; // steps until then
    shared<bf16> stages = shared_array<bf16>(0, STAGES * STAGE);

    float d[K][4][2][4] = {}, bias[4] = {0, 0, 0, 0};
    uint32_t ones[2] = {bf16x2(1, 1), bf16x2(1, 1)};

    conv_weight_copy_t<STRIDE> copy = conv_weight_first<K, STRIDE>(c, step, first_o, first_c);
    for (int k = 0; k < STAGES - 1; k++) {
        conv_weight_copy<K, STRIDE>(stages + k * STAGE, dout, x, c, u, copy, step + k < end);
        cp_async_commit();
    }
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    uint32_t a[2][4][4], b[2][K][1][4];
    conv_weight_load<K, STRIDE>(a[0], b[0], stages, c, warp_o, warp_c, 0);
    for (int slot = 0; step < end; step++) {
        shared<bf16> stage = stages + slot * STAGE, free_stage = stages + (slot + STAGES - 1) % STAGES * STAGE;
        slot = (slot + 1) % STAGES;
        for (int k = 0; turn == 0 && k < POSITIONS; k += 16) {
            uint32_t e[1][4];
            tile_load_a_transposed<16, WEIGHT_OC>(e, stage, warp_o + 16 * (warp % 4), k);
            mma_m16n8k16(bias, e[0], ones);
        }
        turn = turn ? turn - 1 : sums.parts - 1;
        UNROLL for (int k = 0; k < POSITIONS; k += 16) {
            int now = k / 16 % 2;
            if (k + 16 < POSITIONS) {
                conv_weight_load<K, STRIDE>(a[1 - now], b[1 - now], stage, c, warp_o, warp_c, k + 16);
            } else {
                cp_async_wait<STAGES - 2>(); // the next step's values are there,
                __syncthreads();             // for all threads, and everyone has read this one's
                conv_weight_load<K, STRIDE>(a[1 - now], b[1 - now], stages + slot * STAGE, c, warp_o, warp_c, 0);
            }
            tile_multiply<64, 16>(d[0], a[now], b[now][0]);
            if (k == 0) {
                conv_weight_copy<K, STRIDE>(free_stage, dout, x, c, u, copy, step + STAGES - 1 < end);
                cp_async_commit();
            }
            for (int v = 1; v < K; v++) tile_multiply<64, 16>(d[v], a[now], b[now][v]);
        }
    }
    cp_async_wait<0>();

    float *weight_sums = conv_sums_weights(sums, blockIdx.y), *bias_sums = conv_sums_bias(sums, blockIdx.y);
    bool add = !sums.partial;
    int channel = first_c + warp_c + 2 * q;
    UNROLL for (int m = 0; m < 4; m++) {
        UNROLL for (int half = 0; half < 2; half++) {
            int o = first_o + warp_o + 16 * m + 8 * half + g;
            if (o >= c.OC) continue;
            float* to = weight_sums + ((size_t)o * K + u) * K * c.C + channel;
            UNROLL for (int v = 0; v < K; v++, to += c.C) {
                for (int j = 0; j < 2; j++) {
                    if (channel + 8 * j >= c.C) continue;
                    to[8 * j] = d[v][m][j][2 * half] + (add ? to[8 * j] : 0);
                    to[8 * j + 1] = d[v][m][j][2 * half + 1] + (add ? to[8 * j + 1] : 0);
                }
            }
        }
    }
    for (int half = 0; half < 2; half++) { // all columns of this product are alike
        int o = first_o + warp_o + 16 * (warp % 4) + 8 * half + g;
        if (sums.dbias && part < sums.parts && o < c.OC && q == 0) {
            bias_sums[part * c.OC + o] = bias[2 * half] + (add ? bias_sums[o] : 0);
        }
    }
}

// Pieces of rows x cols positions that cover an image of the output with the least waste; wide ones are better.
static inline void conv_weight_pieces(conv_weight_t* c, int positions) {
    int least = 0;
    for (int shift = 6; shift >= 3; shift--) {
        int cols = 1 << shift, rows = positions / cols;
        if (rows == 0) continue;
        int pieces = ((c->OH + rows - 1) / rows) * ((c->OW + cols - 1) / cols);
        if (least && pieces >= least) continue;
        least = pieces;
        c->rows = rows, c->cols = cols, c->shift = shift;
    }
    c->down = (c->OH + c->rows - 1) / c->rows;
    c->across = (c->OW + c->cols - 1) / c->cols;
    c->steps = (size_t)c->B * c->down * c->across;
}

template <int K, int STRIDE>
static inline void conv_weight_launch(conv_sums_t sums, const floatX* dout, const floatX* x, conv_weight_t c,
                                      stream_t s) {
    int tiles = (c.C + WEIGHT_C - 1) / WEIGHT_C * K * ((c.OC + WEIGHT_OC - 1) / WEIGHT_OC);
    conv_weight_pieces(&c, conv_weight_positions<K, STRIDE>());
    sums.parts = (c.C + WEIGHT_C - 1) / WEIGHT_C * K;
    // a step of 64 positions takes all multiprocessors 0.8 us; a split's sums are written and read at 3 TB/s
    double bytes_a_split = 2 * (double)conv_sums_size(sums) * sizeof(float);
    double extra = bytes_a_split / 3e12 / (0.8e-6 * conv_weight_positions<K, STRIDE>() / 64);
    int splits = conv_weight_splits(c.steps, tiles, s->multiprocessors, extra, conv_sums_most(sums));
    if (splits > 1) sums = conv_sums_plan(sums, splits, s);
    else sums.parts = 1;
    size_t bytes = conv_weight_stages<K, STRIDE>() * conv_weight_stage<K, STRIDE>() * sizeof(bf16);
    launch<conv_weight_kernel<K, STRIDE>>(dim3(tiles, splits), WEIGHT_THREADS, bytes, s, sums, dout, x, c);
    if (splits > 1) conv_sums_add(sums, splits, sums.dbias != NULL, s);
}

// Returns 0 where it does not take the sizes.
static inline int conv_weight_tensor(conv_sums_t sums, const floatX* dout, const floatX* x, conv_weight_t c,
                                     stream_t s) {
    if (c.C % 8 || c.OC % 8 || !conv_narrow_aligned(dout) || !conv_narrow_aligned(x)) return 0;
    if (c.KH != c.KW) return 0;
    if (c.KH == 3 && c.stride == 1) conv_weight_launch<3, 1>(sums, dout, x, c, s);
    else if (c.KH == 3 && c.stride == 2) conv_weight_launch<3, 2>(sums, dout, x, c, s);
    else if (c.KH == 4 && c.stride == 1) conv_weight_launch<4, 1>(sums, dout, x, c, s);
    else if (c.KH == 4 && c.stride == 2) conv_weight_launch<4, 2>(sums, dout, x, c, s);
    else return 0;
    return 1;
}

#else // -------------------------------------------------------------------------------------------------------------

static inline int conv_weight_tensor(conv_sums_t, const floatX*, const floatX*, conv_weight_t, stream_t) { return 0; }

#endif // ------------------------------------------------------------------------------------------------------------

// Any size, on fp32 units. A block owns 64 output channels x 64 of the columns n = (u, v, c), with a column of ones
// behind them for dbias, and goes through its positions 16 at a time; a thread owns 4 x 4 sums. blockIdx.y is the
// split.
enum { PLAIN_TILE = 64, PLAIN_POSITIONS = 16, PLAIN_THREADS = 256 };
__global__ void __launch_bounds__(PLAIN_THREADS)
conv_weight_plain(conv_sums_t sums,
                  const floatX* dout, // (B, OH, OW, OC)
                  const floatX* x,    // (B, H, W, C)
                  conv_weight_t c) {
    enum { A = PLAIN_POSITIONS * PLAIN_TILE };
    shared<float> a = shared_array<float>(0, A), b = shared_array<float>(A * sizeof(float), A);
    shared<int> where = shared_array<int>(2 * A * sizeof(float), 3 * PLAIN_POSITIONS); // image, row, column
    int N = c.KH * c.KW * c.C, columns = N + (sums.dbias != nullptr), tiles_n = (columns + PLAIN_TILE - 1) / PLAIN_TILE;
    int lane = threadIdx.x % PLAIN_TILE, group = threadIdx.x / PLAIN_TILE; // 4 groups copy
    int n = blockIdx.x % tiles_n * PLAIN_TILE + lane, o = blockIdx.x / tiles_n * PLAIN_TILE + lane;
    int u = n / c.C / c.KW, v = n / c.C % c.KW, channel = n % c.C;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16; // columns tx + 16 i, output channels 4 ty + i
    size_t step = c.steps * blockIdx.y / gridDim.y, end = c.steps * (blockIdx.y + 1) / gridDim.y;
    size_t positions = (size_t)c.B * c.OH * c.OW;
    float d[4][4] = {};
    for (; step < end; step++) {
        size_t first = step * PLAIN_POSITIONS;
        if (threadIdx.x < PLAIN_POSITIONS) {
            size_t m = first + threadIdx.x;
            where[threadIdx.x] = (int)(m / c.OW / c.OH);
            where[threadIdx.x + PLAIN_POSITIONS] = (int)(m / c.OW % c.OH) * c.stride - c.pad_top;
            where[threadIdx.x + 2 * PLAIN_POSITIONS] = (int)(m % c.OW) * c.stride - c.pad_left;
        }
        __syncthreads();
        for (int m = group; m < PLAIN_POSITIONS; m += PLAIN_THREADS / PLAIN_TILE) {
            bool valid = first + m < positions;
            a[m * PLAIN_TILE + lane] = valid && o < c.OC ? (float)dout[(first + m) * c.OC + o] : 0;
            int row = where[m + PLAIN_POSITIONS] + u, col = where[m + 2 * PLAIN_POSITIONS] + v;
            float value = n == N ? 1.0f : 0.0f;
            if (valid && n < N && row >= 0 && row < c.H && col >= 0 && col < c.W) {
                value = (float)x[(((size_t)where[m] * c.H + row) * c.W + col) * c.C + channel];
            }
            b[m * PLAIN_TILE + lane] = value;
        }
        __syncthreads();
        for (int m = 0; m < PLAIN_POSITIONS; m++) {
            float left[4], right[4];
            for (int i = 0; i < 4; i++) {
                left[i] = a[m * PLAIN_TILE + 4 * ty + i];
                right[i] = b[m * PLAIN_TILE + tx + 16 * i];
            }
            for (int i = 0; i < 4; i++) {
                for (int k = 0; k < 4; k++) d[i][k] += left[i] * right[k];
            }
        }
        __syncthreads();
    }
    float *weight_sums = conv_sums_weights(sums, blockIdx.y), *bias_sums = conv_sums_bias(sums, blockIdx.y);
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 4; k++) {
            int to_o = blockIdx.x / tiles_n * PLAIN_TILE + 4 * ty + i;
            int to_n = blockIdx.x % tiles_n * PLAIN_TILE + tx + 16 * k;
            if (to_o >= c.OC || to_n >= columns) continue;
            float* to = to_n < N ? weight_sums + (size_t)to_o * N + to_n : bias_sums + to_o;
            *to = d[i][k] + (sums.partial ? 0 : *to);
        }
    }
}

static inline void conv_weight_any(conv_sums_t sums, const floatX* dout, const floatX* x, conv_weight_t c, stream_t s) {
    int columns = c.KH * c.KW * c.C + (sums.dbias != NULL);
    int tiles = (columns + PLAIN_TILE - 1) / PLAIN_TILE * ((c.OC + PLAIN_TILE - 1) / PLAIN_TILE);
    c.steps = ((size_t)c.B * c.OH * c.OW + PLAIN_POSITIONS - 1) / PLAIN_POSITIONS;
    // a step is 64 x 64 x 16 multiply-accumulates in 6 blocks at a time, some 2 us
    double extra = 2 * (double)conv_sums_size(sums) * sizeof(float) / 3e12 / 2e-6;
    int splits = conv_weight_splits(c.steps, tiles, 6 * s->multiprocessors, extra, conv_sums_most(sums));
    if (splits > 1) sums = conv_sums_plan(sums, splits, s);
    size_t bytes = 2 * PLAIN_POSITIONS * PLAIN_TILE * sizeof(float) + 3 * PLAIN_POSITIONS * sizeof(int);
    launch<conv_weight_plain>(dim3(tiles, splits), PLAIN_THREADS, bytes, s, sums, dout, x, c);
    if (splits > 1) conv_sums_add(sums, splits, sums.dbias != NULL, s);
}

// A side of at most four channels. The product gives dbias too where dout is the wide side; else dout is narrow and
// cheap to read again. Returns 0 where the product does not take the sizes.
static inline int conv_weight_narrow(conv_sums_t sums, const floatX* dout, const floatX* x, int B, int H, int W,
                                     conv_t conv, stream_t s) {
    int narrow_is_input = conv.C <= NARROW_MOST, most = conv_sums_most(sums);
    if (!conv_is_square(conv) || (!narrow_is_input && conv.OC > NARROW_MOST)) return 0;
    conv_narrow_t c = conv_narrow(B, H, W, conv, narrow_is_input);
    int splits = 2 * s->multiprocessors < most ? 2 * s->multiprocessors : most;
    sums = conv_sums_plan(sums, splits, s);
    const floatX *wide = narrow_is_input ? dout : x, *narrow = narrow_is_input ? x : dout;
    splits = conv_narrow_correlate_tensor(sums.partial, sums.partial_bias, wide, narrow, splits, c, s);
    if (splits == 0) return 0;
    conv_sums_add(sums, splits, sums.dbias && narrow_is_input, s);
    size_t pixels = (size_t)B * c.narrow_H * c.narrow_W;
    if (sums.dbias && !narrow_is_input) add_column_sums(sums.dbias, dout, pixels, conv.OC, s);
    return 1;
}

void conv2d_backward_weight(floatS* dweight,    // (OC, KH, KW, C)
                            floatS* dbias,      // (OC) or NULL
                            const floatX* dout, // (B, OH, OW, OC)
                            const floatX* x,    // (B, H, W, C)
                            int B, int H, int W, conv_t conv, stream_t s) {
    if (conv_is_matmul(conv)) {
        matmul_backward(nullptr, dweight, dbias, dout, x, nullptr, (size_t)B * H * W, conv.C, conv.OC, s);
        return;
    }
    size_t weights = (size_t)conv.OC * conv.KH * conv.KW * conv.C;
    conv_sums_t sums = {nullptr, nullptr, dweight, dbias, weights, conv.OC, 1};
    conv_weight_t c = conv_weight_sizes(B, H, W, conv);
    if (B == 0 || c.OH <= 0 || c.OW <= 0) return;
    if (conv_weight_narrow(sums, dout, x, B, H, W, conv, s)) return;
    if (conv_weight_tensor(sums, dout, x, c, s)) return;
    conv_weight_any(sums, dout, x, c, s);
}
