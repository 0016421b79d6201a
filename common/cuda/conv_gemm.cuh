// conv_gemm.cuh: the matrix product of a convolution (common/cuda/conv_job.cuh) on tensor cores, for numbers of
// channels that are multiples of 8: pixels and weights are then read 8 channels, 16 bytes, at a time.
//
//   sum (windows, OC) = windows (windows, taps C) w (taps C, OC)
//
// The matrix of windows never exists, not even a tile of it. A block owns 256, 128 or 64 windows of one image, in rows
// of 16 or 8, and 64 output channels. All taps of these windows read the same pixels, shifted: with 16 x 16 windows a
// patch of (15 + KH) x (15 + KW). So the block brings 32 channels of the patch to shared memory, then goes through the
// taps. A step is one tap: 64 x 32 weights. 8 neighbouring windows see, at any tap, 8 neighbouring pixels, and the rows
// that ldmatrix reads may begin anywhere: the patch, with its pixels numbered row by row, is a tile of
// common/cuda/mma_tile.cuh.
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
// either as they lie in memory: (64, 32) for the forward, whose weights (OC, K, K, C) have c as the last index, and
// (32, 64) for the gradient of x, where that index is the output. ldmatrix turns the second: there is no other copy of
// the weights. Patches lie in a ring of two where each has at least three taps, as no more are then in use or on their
// way.
//
// The tensor cores must not wait for anything. So the fragments of the next 16 channels are loaded while the last 16
// multiply, across the barrier too; and copies and addresses stand between two products, in one stretch of code without
// a branch: which weights and pixels belong to a tap is read from a table that the host made. A step of the large tile
// is 64 mma in some 190 instructions, with at most 24 others in a row (sm_90). Only a new patch, once in KH KW steps,
// has a loop of its own: 20 instructions for each of a thread's 11 pieces.
//
// A warp owns WM windows and WN output channels, its sums in registers. At the end they pass through shared memory, 32
// windows at a time, to get from fragments to rows: bias, activation and residual or mask are applied in fp32 and one
// thread stores 8 neighbouring channels, 16 bytes.
//
// Tiles. What limits them is the tensor cores or shared memory, 128 bytes a cycle. For 16 channels of a step a warp of
// 64 x 64 reads 4 KB of fragments, a warp of 64 x 32 reads 3 KB for half the products. An H100's tensor cores do 2048
// MAC a cycle and multiprocessor, by mma.sync about 1280. In cycles for these 16 channels, at 3 x 3 taps:
//
//     windows x channels   4 warps of   fragments   copies   tensor cores   shared memory   registers   blocks
//     256 x 64             64 x 64      128         25       205            57 KB           255         2
//     128 x 64             64 x 32      96          21       102            39 KB           168         3
//      64 x 64             32 x 32      64          19        51            30 KB           128         4
//
// The large tile is worth its registers: the tensor cores are its limit. It runs with 8 warps a multiprocessor, in two
// blocks, so that one computes while the other starts, ends or waits. The smaller tiles serve where there would be
// fewer large ones than multiprocessors, where a multiprocessor has memory for one large block only (100 KB: RTX 30, 40
// and 50, A10, L4, L40S), or where maps are low. Rows of 8 windows serve maps whose width is not near a multiple of 16:
// of 8 x 8 they waste nothing, where rows of 16 waste half.
//
// Blocks with the same windows and neighbouring output channels are neighbours: pixels, which are many, come from
// device memory once and from L2 for the other OC / 64 - 1 blocks; the weights, at most 4.7 MB in these models, stay
// in L2. Look next at common/cuda/conv_narrow.cuh.
#pragma once
// defines: conv_job_t, conv_class_t, conv_taps, conv_finish
#include "common/cuda/conv_job.cuh"
// defines: tile_at, tile_load_b, tile_load_b_transposed, tile_multiply
#include "common/cuda/mma_tile.cuh"

// Channels of a step, steps in shared memory; threads and output channels of a block.
enum { CONV_SLAB = 32, CONV_STAGES = 4, CONV_THREADS = 128, CONV_BN = 64, CONV_MOST_TAPS = 64 };

// A tap: its weights, as an offset from those of the class, and the block's first window's pixel in the patch. Where a
// patch begins, `phase` says which, else it is -1.
typedef struct {
    int weight;
    short pixel, phase;
} conv_tap_t;

// What the host knows before the launch.
typedef struct {
    int columns, shift;            // windows in a row of a block: 1 << shift, 16 or 8
    int patch_pixels, patch_slots; // the ring of patches
    int first[5];                  // taps of class k: [first[k], first[k + 1])
    conv_tap_t taps[CONV_MOST_TAPS];
} conv_plan_t;

// The windows of a block: (i, j) is the first of them.
typedef struct { int image, i, j; } conv_place_t;

// A thread's part in copying. Its pieces of a patch are those of every 32nd pixel; the first is at (h, w) of the image
// in phase 0, the next `down` rows and `across` columns further, and where that is not before column `end`, a row more
// and a patch's width less.
typedef struct {
    const bf16 *image, *weight;  // its first pieces, of pixel (0, 0), tap 0 and channels 0 to 31
    int pixels, pitch;           // of a patch
    int h, w, down, across, end;
    int column;                  // output channel of its first piece of weights
} conv_copier_t;

template <int WINDOWS, bool DATA>
__device__ static inline conv_copier_t conv_copier(const conv_job_t& job, const conv_class_t& at,
                                                   const conv_plan_t& plan, conv_place_t place, int n) {
    constexpr int pieces = CONV_SLAB / 8, apart = CONV_THREADS / pieces, along = DATA ? CONV_BN / 8 : pieces;
    conv_copier_t copier;
    int t = threadIdx.x, pixel = t / pieces;
    copier.pitch = plan.columns - 1 + conv_taps(at.KW, 0, job.stride);
    copier.pixels = ((WINDOWS >> plan.shift) - 1 + conv_taps(at.KH, 0, job.stride)) * copier.pitch;
    copier.h = job.stride * (place.i + pixel / copier.pitch) - at.pad_top;
    copier.w = job.stride * (place.j + pixel % copier.pitch) - at.pad_left;
    copier.down = apart / copier.pitch * job.stride, copier.across = apart % copier.pitch * job.stride;
    copier.end = job.stride * (place.j + copier.pitch) - at.pad_left;
    copier.image = job.x + (size_t)place.image * job.H * job.W * job.C + t % pieces * 8;
    copier.column = DATA ? n + t % along * 8 : n + t / along;
    copier.weight = job.weight + at.weight + (ptrdiff_t)copier.column * job.by_output
                    + (ptrdiff_t)(DATA ? t / along : t % along * 8) * job.by_channel;
    return copier;
}

// The patch of a phase, 2 row + column, channels [c, c + CONV_SLAB).
__device__ static inline void conv_copy_patch(shared<bf16> patch, const conv_job_t& job, const conv_copier_t& copier,
                                              int phase, int c) {
    constexpr int pieces = CONV_SLAB / 8, apart = CONV_THREADS / pieces;
    int pixel = threadIdx.x / pieces, piece = threadIdx.x % pieces, column = phase & 1;
    int h = copier.h + (phase >> 1), w = copier.w + column, end = copier.end + column;
    int width = copier.pitch * job.stride;
    bool channel = c + piece * 8 < job.C;
    shared<bf16> to = patch + tile_at<CONV_SLAB>(pixel, piece);
    for (; pixel < copier.pixels; pixel += apart) {
        bool valid = (unsigned)h < (unsigned)job.H && (unsigned)w < (unsigned)job.W && channel;
        cp_async_16(to, copier.image + (ptrdiff_t)(h * job.W + w) * job.C + c, valid);
        to = to + apart * CONV_SLAB;
        h += copier.down, w += copier.across;
        if (w >= end) w -= width, h += job.stride;
    }
}

// The weights of a step. Thread t has piece t % 4 of every 32nd output, or with o as the last index piece t % 8 of
// every 16th channel. A thread's rows are a multiple of 8 apart, so that its places in the tile are, too. Behind the
// last channel all are zeros.
template <bool DATA>
__device__ static inline void conv_copy_weights(shared<bf16> tile, const conv_job_t& job, const conv_copier_t& copier,
                                                int tap, int c) {
    constexpr int pieces = DATA ? CONV_BN / 8 : CONV_SLAB / 8, apart = CONV_THREADS / pieces;
    constexpr int rows = DATA ? CONV_SLAB : CONV_BN, cols = DATA ? CONV_BN : CONV_SLAB;
    static_assert(apart % 8 == 0, "the swizzle repeats after 8 rows");
    int row = threadIdx.x / pieces, piece = threadIdx.x % pieces, by_row = DATA ? job.by_channel : job.by_output;
    const bf16* from = copier.weight + (tap + c * job.by_channel);
    shared<bf16> to = tile + tile_at<cols>(row, piece);
    for (int k = 0; k < rows; k += apart) {
        bool valid = DATA ? c + row + k < job.C && copier.column < job.OC
                          : c + piece * 8 < job.C && copier.column + k < job.OC;
        cp_async_16(to + k * cols, from + (ptrdiff_t)k * by_row, valid);
    }
}

// Where the copies have got to: channels [c, c + CONV_SLAB) of a tap, and in which slot of the ring its patch lies.
// Pixels are counted through all slots.
typedef struct {
    int number, c, slot; // of the tap; first channel; the slot's first pixel
    conv_tap_t tap;
} conv_step_t;

__device__ static inline void conv_next_step(conv_step_t* step, const conv_plan_t& plan, int first, int last) {
    if (++step->number == last) step->number = first, step->c += CONV_SLAB;
    step->tap = plan.taps[step->number];
    int next = step->slot + plan.patch_pixels;
    if (step->tap.phase >= 0) step->slot = next < plan.patch_slots * plan.patch_pixels ? next : 0;
}

// The patch of a step, where one begins, unless it is behind the last channel.
__device__ static inline void conv_copy_step_patch(shared<bf16> patches, const conv_job_t& job,
                                                   const conv_copier_t& copier, const conv_step_t& step) {
    if (step.tap.phase < 0 || step.c >= job.C) return;
    conv_copy_patch(patches + step.slot * CONV_SLAB, job, copier, step.tap.phase, step.c);
}

// As tile_load_a, for 16 windows each that lie in one row of a patch, or in two. `pixel`: of the block's first window.
template <int WM>
__device__ static inline void conv_windows(int from[WM / 16], const conv_plan_t& plan, int window, int pitch,
                                           int pixel) {
    int lane = threadIdx.x % WARP, first = window + lane % 16;
    pixel += (first >> plan.shift) * pitch + (first & (plan.columns - 1));
    int apart = (16 >> plan.shift) * pitch;
    for (int m = 0; m < WM / 16; m++) from[m] = tile_at<CONV_SLAB>(pixel + m * apart, lane / 16);
}

// Fragments of 16 channels. 16 channels on is two pieces on: c / 8 changes that bit of a window's place.
template <int WM, int WN, bool DATA>
__device__ static inline void conv_load(uint32_t a[WM / 16][4], uint32_t b[WN / 16][4], shared<const bf16> patches,
                                        const int from[WM / 16], shared<const bf16> w, int warp_n, int c) {
    for (int m = 0; m < WM / 16; m++) ldmatrix_x4(a[m], patches + (from[m] ^ c));
    if (DATA) tile_load_b_transposed<WN, CONV_BN>(b, w, warp_n, c);
    else tile_load_b<WN, CONV_SLAB>(b, w, warp_n, c);
}

// The sums of a warp: WM windows from `window` on and WN channels from warp_n on, over taps [first, last).
template <int WM, int WN, bool DATA>
__device__ static inline void conv_gemm_sum(float d[WM / 16][WN / 8][4], const conv_job_t& job, const conv_plan_t& plan,
                                            const conv_copier_t& copier, int window, int warp_n, int first, int last) {
    int all = plan.patch_slots * plan.patch_pixels * CONV_SLAB;
    int steps = (last - first) * ((job.C + CONV_SLAB - 1) / CONV_SLAB);
    shared<bf16> patches = shared_array<bf16>(0, all);
    shared<bf16> weights = shared_array<bf16>(all * sizeof(bf16), CONV_STAGES * CONV_BN * CONV_SLAB);
    conv_step_t ahead = {first, 0, 0, plan.taps[first]};
    int pixels[CONV_STAGES - 1]; // of the block's first window, in the steps that are copied but not multiplied
    for (int k = 0; k < CONV_STAGES - 1; k++) {
        conv_copy_weights<DATA>(weights + k * (CONV_BN * CONV_SLAB), job, copier, ahead.tap.weight, ahead.c);
        conv_copy_step_patch(patches, job, copier, ahead);
        cp_async_commit();
        pixels[k] = ahead.slot + ahead.tap.pixel;
        conv_next_step(&ahead, plan, first, last);
    }
    cp_async_wait<CONV_STAGES - 2>();
    __syncthreads();

    int from[WM / 16];
    uint32_t a[2][WM / 16][4], b[2][WN / 16][4];
    conv_windows<WM>(from, plan, window, copier.pitch, pixels[0]);
    conv_load<WM, WN, DATA>(a[0], b[0], patches, from, weights, warp_n, 0);
    for (int k = 0; k < steps; k++) {
        shared<bf16> w = weights + k % CONV_STAGES * (CONV_BN * CONV_SLAB);
        conv_load<WM, WN, DATA>(a[1], b[1], patches, from, w, warp_n, 16);
        if (k + 1 < steps) {
            conv_windows<WM>(from, plan, window, copier.pitch, pixels[1]);
            w = weights + (k + 1) % CONV_STAGES * (CONV_BN * CONV_SLAB);
        }
        shared<bf16> to = weights + (k + CONV_STAGES - 1) % CONV_STAGES * (CONV_BN * CONV_SLAB);
        conv_copy_weights<DATA>(to, job, copier, ahead.tap.weight, ahead.c);
        tile_multiply<WM, WN>(d, a[0], b[0]);
        conv_copy_step_patch(patches, job, copier, ahead);
        cp_async_commit();
        for (int i = 1; i + 1 < CONV_STAGES - 1; i++) pixels[i] = pixels[i + 1];
        pixels[CONV_STAGES - 2] = ahead.slot + ahead.tap.pixel;
        conv_next_step(&ahead, plan, first, last);
        cp_async_wait<CONV_STAGES - 2>(); // step k + 1 is there,
        __syncthreads();                  // for all threads, and all have read step k: its stage is free
        conv_load<WM, WN, DATA>(a[0], b[0], patches, from, w, warp_n, 0); // behind the last step once more, for nothing
        tile_multiply<WM, WN>(d, a[1], b[1]);
    }
}

// Where the sums of a window of the block go, from channel 0 on; false: there is no such window.
__device__ static inline bool conv_window_at(size_t* to, const conv_job_t& job, const conv_class_t& at,
                                             const conv_plan_t& plan, conv_place_t place, int window) {
    int r = place.i + (window >> plan.shift), c = place.j + (window & (plan.columns - 1));
    *to = conv_out_at(job, at, place.image, r, c);
    return r < at.OH && c < at.OW;
}

// Windows [first, first + 32) of the block and WN channels from o on, from a warp's fragments to out. All shared memory
// is free for this; each warp has a piece of it. A thread writes one piece of every (256 / WN)-th window. It asks for
// all that is beside them before it writes: `out` may be `beside`, so that the compiler could not move a load before a
// store.
template <int WN, bool DATA>
__device__ static inline void conv_write(const conv_job_t& job, const conv_class_t& at, const conv_plan_t& plan,
                                         const float d[2][WN / 8][4], conv_place_t place, int first, int o) {
    constexpr int windows = 32, pitch = WN + 8, pieces = WN / 8, apart = WARP / pieces; // rows g and g + 1: 8 banks
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, row = lane / pieces, column = lane % pieces * 8;
    bool in_row = job.aligned && o + column < job.OC;
    size_t to;
    pack<bf16> beside[pieces] = {};
    for (int k = 0; k < pieces; k++) {
        bool valid = conv_window_at(&to, job, at, plan, place, first + row + k * apart) && in_row;
        if (job.beside && valid) beside[k] = load16(job.beside + to + o + column);
    }
    shared<float> sums = shared_array<float>(threadIdx.x / WARP * windows * pitch * sizeof(float), windows * pitch);
    for (int k = 0; k < 2; k++) {
        for (int n = 0; n < pieces; n++) {
            for (int e = 0; e < 4; e++) sums[(16 * k + g + e / 2 * 8) * pitch + 8 * n + 2 * q + e % 2] = d[k][n][e];
        }
    }
    __syncwarp();
    if (job.aligned) {
        float bias[8];
        for (int e = 0; e < 8; e++) bias[e] = !DATA && job.bias && in_row ? (float)job.bias[o + column + e] : 0;
        for (int k = 0; k < pieces; k++) {
            bool valid = conv_window_at(&to, job, at, plan, place, first + row + k * apart) && in_row;
            shared<float> from = sums + (row + k * apart) * pitch + column;
            pack<float> low = load16(from), high = load16(from + 4);
            pack<bf16> out;
            for (int e = 0; e < 8; e++) {
                float sum = (e < 4 ? low[e % 4] : high[e % 4]) + bias[e];
                out[e] = (bf16)conv_finish<DATA>(job, sum, (float)beside[k][e]);
            }
            if (valid) store16(job.out + to + o + column, out);
        }
    } else {
        for (int i = lane; i < windows * WN; i += WARP) {
            int channel = o + i % WN;
            if (!conv_window_at(&to, job, at, plan, place, first + i / WN) || channel >= job.OC) continue;
            float bias = job.bias ? (float)job.bias[channel] : 0;
            float other = job.beside ? (float)job.beside[to + channel] : 0;
            job.out[to + channel] = (bf16)conv_finish<DATA>(job, sums[i / WN * pitch + i % WN] + bias, other);
        }
    }
    __syncwarp();
}

// Blocks: x runs over output channels, then columns and rows of patches, then images; y over parity classes. DATA: o is
// the last index of the weights.
template <int WINDOWS, int WM, int WN, bool DATA>
__global__ void __launch_bounds__(CONV_THREADS, WINDOWS == 256 ? 2 : WINDOWS == 128 ? 3 : 4)
conv_gemm_kernel(conv_job_t job, conv_plan_t plan) {
    const conv_class_t at = job.at[blockIdx.y];
    int rows = WINDOWS >> plan.shift, down = (at.OH + rows - 1) / rows;
    int across = (at.OW + plan.columns - 1) >> plan.shift;
    int tiles_n = (job.OC + CONV_BN - 1) / CONV_BN, tile = blockIdx.x / tiles_n, n = blockIdx.x % tiles_n * CONV_BN;
    conv_place_t place = {tile / across / down, tile / across % down * rows, tile % across * plan.columns};
    if (place.image >= job.B) return; // this class has fewer windows than the first
    int warp = threadIdx.x / WARP, warp_n = warp % (CONV_BN / WN) * WN; // the warp's first output channel
    int window = warp / (CONV_BN / WN) * WM;                            // and first window
    int first = plan.first[blockIdx.y], last = plan.first[blockIdx.y + 1];
    float d[WM / 16][WN / 8][4] = {};
    if (first < last) {
        conv_copier_t copier = conv_copier<WINDOWS, DATA>(job, at, plan, place, n);
        conv_gemm_sum<WM, WN, DATA>(d, job, plan, copier, window, warp_n, first, last);
    }
    cp_async_wait<0>(); // zeros behind the last channel
    __syncthreads();
    conv_write<WN, DATA>(job, at, plan, d, place, window, n + warp_n);
    if (WM == 64) conv_write<WN, DATA>(job, at, plan, d + WM / 32, place, window + 32, n + warp_n);
}

// ---------------------------------------------------------------------------------------------------------------------
// On the host

static inline conv_plan_t conv_gemm_plan(const conv_job_t& job, int windows, int columns) {
    conv_plan_t plan = {};
    int n = 0, least = CONV_STAGES; // taps of a patch
    plan.columns = columns, plan.shift = columns == 16 ? 4 : 3;
    for (int k = 0; k < job.classes; k++) {
        int KH = job.at[k].KH, KW = job.at[k].KW, pitch = columns - 1 + conv_taps(KW, 0, job.stride);
        int pixels = (windows / columns - 1 + conv_taps(KH, 0, job.stride)) * pitch;
        if (pixels > plan.patch_pixels) plan.patch_pixels = pixels;
        plan.first[k] = n;
        for (int phase = 0; phase < job.stride * job.stride; phase++) {
            int row = phase / job.stride, column = phase % job.stride;
            int rows = conv_taps(KH, row, job.stride), across = conv_taps(KW, column, job.stride);
            if (rows * across > 0 && rows * across < least) least = rows * across;
            for (int tap = 0; tap < rows * across; tap++) {
                int u = tap / across, v = tap % across;
                int weight = (row + u * job.stride) * job.by_row + (column + v * job.stride) * job.by_column;
                plan.taps[n++] = {weight, (short)(u * pitch + v), (short)(tap == 0 ? phase : -1)};
            }
        }
    }
    plan.first[job.classes] = n;
    plan.patch_pixels = (plan.patch_pixels + 7) / 8 * 8; // the swizzle repeats: pixels count through all slots
    plan.patch_slots = least >= CONV_STAGES - 1 ? 2 : CONV_STAGES;
    return plan;
}

// Shared memory of a block: patches and weights, or the rows of conv_write.
static inline size_t conv_gemm_bytes(const conv_plan_t& plan, int WN) {
    size_t rings = (plan.patch_slots * plan.patch_pixels + CONV_STAGES * CONV_BN) * CONV_SLAB * sizeof(bf16);
    size_t rows = (size_t)CONV_THREADS * (WN + 8) * sizeof(float);
    return rings > rows ? rings : rows;
}

// Blocks for the first class, the largest.
static inline size_t conv_gemm_blocks(const conv_job_t& job, int windows, int columns) {
    size_t across = blocks_for(job.at[0].OW, columns), down = blocks_for(job.at[0].OH, windows / columns);
    return across * down * job.B * blocks_for(job.OC, CONV_BN);
}

template <int WINDOWS, int WM, int WN>
static inline void conv_gemm_tile(const conv_job_t& job, int columns, bool data, stream_t s) {
    static_assert(WINDOWS / WM * (CONV_BN / WN) * WARP == CONV_THREADS, "four warps");
    conv_plan_t plan = conv_gemm_plan(job, WINDOWS, columns);
    dim3 grid((unsigned)conv_gemm_blocks(job, WINDOWS, columns), job.classes);
    size_t bytes = conv_gemm_bytes(plan, WN);
    if (data) launch<conv_gemm_kernel<WINDOWS, WM, WN, true>>(grid, CONV_THREADS, bytes, s, job, plan);
    else launch<conv_gemm_kernel<WINDOWS, WM, WN, false>>(grid, CONV_THREADS, bytes, s, job, plan);
}

// Which tile: one of 256, 128 or 64 windows, 0 where none fits into a block's shared memory.
typedef struct { int windows, columns; } conv_choice_t;

// By the time that a multiprocessor needs: the cycles of the table above, as often as it gets a tile. A block that is
// alone there has nothing to compute while it waits: a third more, by estimate. A multiprocessor has 1 KB more than a
// block can have, and keeps 1 KB of each block for itself.
static inline conv_choice_t conv_gemm_choose(const conv_job_t& job, int multiprocessors, size_t shared_bytes) {
    static const int windows[3] = {256, 128, 64}, widths[3] = {64, 32, 32}, cycles[3] = {205, 96 + 21, 64 + 19};
    conv_choice_t best = {0, 0};
    double least = 0;
    for (int k = 0; k < 3; k++) {
        for (int columns = 16; columns >= 8; columns /= 2) {
            size_t bytes = conv_gemm_bytes(conv_gemm_plan(job, windows[k], columns), widths[k]);
            if (bytes > shared_bytes) continue;
            unsigned rounds = blocks_for(conv_gemm_blocks(job, windows[k], columns) * job.classes, multiprocessors);
            int alone = rounds == 1 || 2 * (bytes + 1024) > shared_bytes + 1024;
            double cost = cycles[k] * (alone ? 4.0 / 3 : 1.0) * rounds;
            if (best.windows && cost >= least) continue;
            least = cost, best = {windows[k], columns};
        }
    }
    return best;
}

// Returns 0 where it does not take the sizes.
static inline int conv_gemm(const conv_job_t& job, bool data, stream_t s) {
    int taps = 0;
    for (int k = 0; k < job.classes; k++) taps += job.at[k].KH * job.at[k].KW;
    if (taps > CONV_MOST_TAPS) return 0;
    conv_choice_t tile = conv_gemm_choose(job, s->multiprocessors, s->shared_bytes);
    if (tile.windows == 256) conv_gemm_tile<256, 64, 64>(job, tile.columns, data, s);
    else if (tile.windows == 128) conv_gemm_tile<128, 64, 32>(job, tile.columns, data, s);
    else if (tile.windows == 64) conv_gemm_tile<64, 32, 32>(job, tile.columns, data, s);
    return tile.windows > 0;
}
