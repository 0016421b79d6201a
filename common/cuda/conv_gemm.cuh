// conv_gemm.cuh: the matrix product of a convolution (common/cuda/conv_job.cuh) on tensor cores, for numbers of
// channels that are multiples of 8: pixels and weights are then read 8 channels, 16 bytes, at a time.
//
//   sum (windows, OC) = windows (windows, taps C) w (taps C, OC)
//
// The matrix of windows never exists, not even a tile of it. A block owns PH x 16 windows of one image and BN output
// channels. All taps of these windows read the same pixels, shifted: a patch of (PH + KH - 1) x (16 + KW - 1). So the
// block brings 32 channels of the patch to shared memory, then goes through the taps. A step is one tap: BN x 32
// weights. 16 neighbouring windows see, at any tap, 16 neighbouring pixels, and the rows that ldmatrix reads may begin
// anywhere: the patch, with its pixels numbered row by row, is a tile of common/cuda/mma_tile.cuh.
//
//   L2. What a block of 16 x 16 windows and 64 channels copies for 32 channels and 3 x 3 taps is 18 x 18 pixels and
//   9 x 64 rows of weights, 58 KB for 4.7 M MAC. At 250 T MAC/s that is 3.0 TB/s; the L2 of an H100 gives about 5.5.
//   A tile of 128 x 128 that copied its windows tap by tap would want 7.8 TB/s.
//
// Stride 2 falls apart into four phases: taps (u, v) of one parity read pixels of one parity, which are an image of
// half the size seen by a window of half the size at stride 1. Each phase has its patch.
//
// Patches and weights come by cp_async, three steps ahead of the tensor cores, zeros where a pixel is outside the
// image and behind the last channel: the product need not know of borders. Weights lie in a ring of four stages,
// either as they lie in memory: (BN, 32) for the forward, whose weights (OC, K, K, C) have c as the last index, and
// (32, BN) for the gradient of x, where that index is the output. ldmatrix turns the second: there is no other copy of
// the weights. Patches lie in a ring of two where each has at least three taps, as no more are then in use or on their
// way.
//
// A warp owns WM windows, in rows of 16, and WN output channels, its sums in registers. At the end they pass through
// shared memory, 32 windows at a time, to get from fragments to rows: bias, activation and residual or mask are applied
// in fp32 and one thread stores 8 neighbouring channels, 16 bytes.
//
// Tiles. What limits them is the tensor cores or shared memory, 128 bytes a cycle. For 16 channels of a step a warp of
// 64 x 64 reads 4 KB of fragments, a warp of 64 x 32 reads 3 KB for half the products. An H100's tensor cores do 2048
// MAC a cycle and multiprocessor, by mma.sync about 1280. In cycles for these 16 channels, at 3 x 3 taps:
//
//     windows x channels   4 warps of   fragments   copies   tensor cores   shared memory   registers   blocks
//     16 x 16 x 64         64 x 64      128         25       205            58 KB           224         2
//      8 x 16 x 64         64 x 32       96         21       102            39 KB           128         4
//      4 x 16 x 64         32 x 32       64         19        51            31 KB            72         7
//
// The large tile is worth its registers: the tensor cores are its limit. It runs with 8 warps a multiprocessor, in two
// blocks, so that one computes while the other starts, ends or waits; 32 independent mma behind 8 loads hide their
// latency. A step is 64 mma in about 225 instructions of a warp: two warps a scheduler need 450 issue slots in the 820
// cycles that the mma take. The smaller tiles serve where there would be fewer large ones than multiprocessors, or
// where maps are low.
//
// Blocks with the same windows and neighbouring output channels are neighbours: pixels, which are many, come from
// device memory once and from L2 for the other OC / 64 - 1 blocks; the weights, at most 4.7 MB in these models, stay
// in L2. Look next at common/cuda/conv_narrow.cuh.
#pragma once
// defines: conv_job_t, conv_class_t, conv_finish
#include "common/cuda/conv_job.cuh"
// defines: tile_at, tile_load_a, tile_load_b, tile_load_b_transposed, tile_multiply
#include "common/cuda/mma_tile.cuh"

enum { CONV_SLAB = 32, CONV_STAGES = 4, CONV_COLUMNS = 16, CONV_THREADS = 128 };

// Where the product has got to: channels [c, c + CONV_SLAB), a phase, and the tap (u, v) of its rows x columns.
typedef struct {
    int c, phase, u, v, rows, columns;
    int slot; // of the patch
} conv_step_t;

__device__ static inline int conv_phase_row(const conv_job_t& job, int phase) {
    return job.stride == 2 ? phase / 2 : 0;
}
__device__ static inline int conv_phase_column(const conv_job_t& job, int phase) {
    return job.stride == 2 ? phase % 2 : 0;
}
__device__ static inline void conv_enter_phase(conv_step_t* step, const conv_job_t& job, const conv_class_t& at) {
    step->rows = conv_taps(at.KH, conv_phase_row(job, step->phase), job.stride);
    step->columns = conv_taps(at.KW, conv_phase_column(job, step->phase), job.stride);
}
__device__ static inline void conv_next_step(conv_step_t* step, const conv_job_t& job, const conv_class_t& at) {
    if (++step->v < step->columns) return;
    step->v = 0;
    if (++step->u < step->rows) return;
    step->u = 0;
    step->slot = step->slot + 1 < job.patch_slots ? step->slot + 1 : 0;
    do { // phase 0 has taps
        if (++step->phase == job.stride * job.stride) step->phase = 0, step->c += CONV_SLAB;
        conv_enter_phase(step, job, at);
    } while (step->rows * step->columns == 0);
}

// The patch of the windows from (i, j) on. A thread copies the same piece of every 32nd pixel.
template <int PH>
__device__ static inline void conv_copy_patch(shared<bf16> patch, const conv_job_t& job, const conv_class_t& at,
                                              const bf16* image, int i, int j, conv_step_t step) {
    constexpr int pieces = CONV_SLAB / 8, apart = CONV_THREADS / pieces;
    int pitch = CONV_COLUMNS - 1 + step.columns, pixels = (PH - 1 + step.rows) * pitch;
    int h = job.stride * i + conv_phase_row(job, step.phase) - at.pad_top;
    int w = job.stride * j + conv_phase_column(job, step.phase) - at.pad_left;
    int pixel = threadIdx.x / pieces, piece = threadIdx.x % pieces, channel = step.c + piece * 8;
    h += pixel / pitch * job.stride, w += pixel % pitch * job.stride;
    int end = w + (pitch - pixel % pitch) * job.stride; // where the patch's row ends
    for (; pixel < pixels; pixel += apart) {
        bool valid = h >= 0 && h < job.H && w >= 0 && w < job.W && channel < job.C;
        const bf16* from = image + (ptrdiff_t)(h * job.W + w) * job.C + channel;
        cp_async_16(patch + tile_at<CONV_SLAB>(pixel, piece), from, valid);
        w += apart * job.stride;
        while (w >= end) w -= pitch * job.stride, h += job.stride;
    }
}

// The weights of a step. Thread t has piece t % 4 of every 32nd output, or with o as the last index piece t % (BN / 8)
// of some channels; `weight` and `column` are those of its first piece. Rows of one thread are a multiple of 8 apart,
// so that its places in the tile are, too.
template <int BN, bool DATA>
__device__ static inline void conv_copy_weights(shared<bf16> tile, const conv_job_t& job, const bf16* weight,
                                                int column, conv_step_t step) {
    constexpr int pieces = DATA ? BN / 8 : CONV_SLAB / 8, apart = CONV_THREADS / pieces;
    static_assert(apart % 8 == 0, "the swizzle repeats after 8 rows");
    int row = threadIdx.x / pieces, piece = threadIdx.x % pieces;
    int u = conv_phase_row(job, step.phase) + step.u * job.stride;
    int v = conv_phase_column(job, step.phase) + step.v * job.stride;
    weight += u * job.by_row + v * job.by_column + step.c * job.by_channel;
    if (DATA) {
        shared<bf16> to = tile + tile_at<BN>(row, piece);
        for (int k = 0; k < CONV_SLAB; k += apart) {
            bool valid = step.c + row + k < job.C && column < job.OC;
            cp_async_16(to + k * BN, weight + (ptrdiff_t)k * job.by_channel, valid);
        }
    } else {
        shared<bf16> to = tile + tile_at<CONV_SLAB>(row, piece);
        for (int k = 0; k < BN; k += apart) {
            bool valid = step.c + piece * 8 < job.C && column + k < job.OC;
            cp_async_16(to + k * CONV_SLAB, weight + (ptrdiff_t)k * job.by_output, valid);
        }
    }
}

// Windows (i, j) to (i + 1, j + 15) of an image and WN channels from o on, from a warp's fragments to out. All shared
// memory is free for this; each warp has a piece of it.
template <int WN>
__device__ static inline void conv_write(const conv_job_t& job, const conv_class_t& at, const float d[2][WN / 8][4],
                                         int image, int i, int j, int o) {
    constexpr int windows = 2 * CONV_COLUMNS, pitch = WN + 8, pieces = WN / 8; // rows g and g + 1 are 8 banks apart
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    shared<float> sums = shared_array<float>(threadIdx.x / WARP * windows * pitch * sizeof(float), windows * pitch);
    for (int k = 0; k < 2; k++) {
        for (int n = 0; n < WN / 8; n++) {
            for (int e = 0; e < 4; e++) sums[(16 * k + g + e / 2 * 8) * pitch + 8 * n + 2 * q + e % 2] = d[k][n][e];
        }
    }
    __syncwarp();
    int column = lane % pieces * 8, channels = job.OC - o - column;
    float bias[8];
    for (int e = 0; e < 8; e++) bias[e] = job.bias && e < channels ? (float)job.bias[o + column + e] : 0;
    for (int row = lane / pieces; row < windows; row += WARP / pieces) {
        int r = i + row / CONV_COLUMNS, c = j + row % CONV_COLUMNS;
        if (channels <= 0 || r >= at.OH || c >= at.OW) continue;
        size_t to = conv_out_at(job, at, image, r, c) + o + column;
        pack<float> low = load16(sums + row * pitch + column), high = load16(sums + row * pitch + column + 4);
        pack<bf16> beside, out;
        if (job.beside && job.aligned) beside = load16(job.beside + to);
        else for (int e = 0; e < 8; e++) beside[e] = job.beside && e < channels ? job.beside[to + e] : (bf16)0.0f;
        for (int e = 0; e < 8; e++) {
            out[e] = (bf16)conv_finish(job, (e < 4 ? low[e % 4] : high[e % 4]) + bias[e], (float)beside[e]);
        }
        if (job.aligned) store16(job.out + to, out);
        else for (int e = 0; e < 8; e++) if (e < channels) job.out[to + e] = out[e];
    }
    __syncwarp();
}

// Blocks: x runs over output channels, then columns and rows of patches, then images; y over parity classes. DATA: o is
// the last index of the weights.
template <int PH, int BN, int WM, int WN, bool DATA> __global__ void conv_gemm_kernel(conv_job_t job) {
    const conv_class_t at = job.at[blockIdx.y];
    int across = (at.OW + CONV_COLUMNS - 1) / CONV_COLUMNS, down = (at.OH + PH - 1) / PH;
    int tiles_n = (job.OC + BN - 1) / BN, tile = blockIdx.x / tiles_n, n = blockIdx.x % tiles_n * BN;
    int image = tile / across / down, i = tile / across % down * PH, j = tile % across * CONV_COLUMNS;
    if (image >= job.B) return; // this class has fewer windows than the first

    constexpr int pieces = DATA ? BN / 8 : CONV_SLAB / 8; // of a row of weights: see conv_copy_weights
    int t = threadIdx.x, column = DATA ? n + t % pieces * 8 : n + t / pieces;
    const bf16* x = job.x + (size_t)image * job.H * job.W * job.C;
    const bf16* weight = job.weight + at.weight + (ptrdiff_t)column * job.by_output
                         + (ptrdiff_t)(DATA ? t / pieces : t % pieces * 8) * job.by_channel;

    int patch = job.patch_pixels * CONV_SLAB, steps = at.KH * at.KW * ((job.C + CONV_SLAB - 1) / CONV_SLAB), copied = 0;
    shared<bf16> patches = shared_array<bf16>(0, job.patch_slots * patch);
    shared<bf16> weights = shared_array<bf16>(job.patch_slots * patch * sizeof(bf16), CONV_STAGES * BN * CONV_SLAB);
    conv_step_t ahead = {}, now = {};
    conv_enter_phase(&ahead, job, at), conv_enter_phase(&now, job, at);

    int warp = t / WARP, warp_n = warp % (BN / WN) * WN;  // the warp's first output channel
    int warp_m = warp / (BN / WN) * (WM / CONV_COLUMNS);  // and first row of windows
    float d[WM / 16][WN / 8][4] = {};
    for (int k = 1 - CONV_STAGES; k < steps; k++) {
        if (k >= 0) {
            cp_async_wait<CONV_STAGES - 2>(); // step k is there,
            __syncthreads();                  // for all threads, and all have done with step k - 1: its stage is free
        }
        if (copied < steps) {
            if (ahead.u == 0 && ahead.v == 0) {
                conv_copy_patch<PH>(patches + ahead.slot * patch, job, at, x, i, j, ahead);
            }
            shared<bf16> to = weights + copied % CONV_STAGES * (BN * CONV_SLAB);
            conv_copy_weights<BN, DATA>(to, job, weight, column, ahead);
            if (++copied < steps) conv_next_step(&ahead, job, at);
        }
        cp_async_commit();
        if (k < 0) continue;
        shared<const bf16> pixels = patches + now.slot * patch, w = weights + k % CONV_STAGES * (BN * CONV_SLAB);
        // As tile_load_a, for rows of windows that are `pitch` pixels apart. 16 channels on is two pieces on: c / 8
        // changes that bit of the place.
        int pitch = CONV_COLUMNS - 1 + now.columns, first = (warp_m + now.u) * pitch + now.v + t % 16, from[WM / 16];
        for (int m = 0; m < WM / 16; m++) from[m] = tile_at<CONV_SLAB>(first + m * pitch, t % WARP / 16);
        for (int c = 0; c < CONV_SLAB; c += 16) {
            uint32_t fa[WM / 16][4], fb[WN / 16][4];
            for (int m = 0; m < WM / 16; m++) ldmatrix_x4(fa[m], pixels + (from[m] ^ c));
            if (DATA) tile_load_b_transposed<WN, BN>(fb, w, warp_n, c);
            else tile_load_b<WN, CONV_SLAB>(fb, w, warp_n, c);
            tile_multiply<WM, WN>(d, fa, fb);
        }
        if (k + 1 < steps) conv_next_step(&now, job, at);
    }
    __syncthreads();
    conv_write<WN>(job, at, d, image, i + warp_m, j, n + warp_n);
    if (WM == 64) conv_write<WN>(job, at, d + WM / 32, image, i + warp_m + 2, j, n + warp_n);
}

// The tiles of the first class, the largest.
template <int PH, int BN> static inline size_t conv_gemm_tiles(const conv_job_t& job) {
    size_t across = blocks_for(job.at[0].OW, CONV_COLUMNS), down = blocks_for(job.at[0].OH, PH);
    return across * down * job.B * blocks_for(job.OC, BN);
}

template <int PH, int BN, int WM, int WN> static inline void conv_gemm_tile(conv_job_t job, bool data, stream_t s) {
    static_assert(PH * CONV_COLUMNS / WM * (BN / WN) * WARP == CONV_THREADS, "four warps");
    int least = CONV_STAGES; // taps of a patch
    for (int k = 0; k < job.classes; k++) {
        for (int phase = 0; phase < job.stride * job.stride; phase++) {
            int rows = conv_taps(job.at[k].KH, phase / job.stride, job.stride);
            int columns = conv_taps(job.at[k].KW, phase % job.stride, job.stride);
            int pixels = (PH + rows - 1) * (CONV_COLUMNS + columns - 1), taps = rows * columns;
            if (taps > 0 && taps < least) least = taps;
            if (taps > 0 && pixels > job.patch_pixels) job.patch_pixels = pixels;
        }
    }
    job.patch_slots = least >= CONV_STAGES - 1 ? 2 : CONV_STAGES;
    size_t bytes = (size_t)CONV_SLAB * sizeof(bf16) * (job.patch_slots * job.patch_pixels + CONV_STAGES * BN);
    size_t rows = (size_t)CONV_THREADS * CONV_COLUMNS * 2 / WARP * (WN + 8) * sizeof(float); // of conv_write
    dim3 grid((unsigned)conv_gemm_tiles<PH, BN>(job), job.classes);
    if (bytes < rows) bytes = rows;
    if (data) launch<conv_gemm_kernel<PH, BN, WM, WN, true>>(grid, CONV_THREADS, bytes, s, job);
    else launch<conv_gemm_kernel<PH, BN, WM, WN, false>>(grid, CONV_THREADS, bytes, s, job);
}

// The time of a tile size: the cycles of the table above, as often as a multiprocessor gets a tile. A block that is
// alone there has nothing to compute while it waits: a third more, by estimate.
template <int PH, int BN> static inline double conv_gemm_cost(const conv_job_t& job, int cycles, stream_t s) {
    unsigned rounds = blocks_for(conv_gemm_tiles<PH, BN>(job) * job.classes, s->multiprocessors);
    return cycles * (rounds == 1 ? 4.0 / 3 : (double)rounds);
}

static inline void conv_gemm(const conv_job_t& job, bool data, stream_t s) {
    double large = conv_gemm_cost<16, 64>(job, 205, s), middle = conv_gemm_cost<8, 64>(job, 96 + 21, s);
    double small = conv_gemm_cost<4, 64>(job, 64 + 19, s);
    if (large <= middle && large <= small) conv_gemm_tile<16, 64, 64, 64>(job, data, s);
    else if (middle <= small) conv_gemm_tile<8, 64, 64, 32>(job, data, s);
    else conv_gemm_tile<4, 64, 32, 32>(job, data, s);
}
