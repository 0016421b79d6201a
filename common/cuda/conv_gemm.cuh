// conv_gemm.cuh: the matrix product of a convolution (common/cuda/conv_job.cuh) on tensor cores, for numbers of channels
// that are multiples of 8: pixels and weights are then read 8 channels, 16 bytes, at a time.
//
//   sum (windows, OC) = windows (windows, taps C) w (taps C, OC)
//
// A block owns BM windows and BN output channels. It goes through the taps and channels in slabs of 32 channels of one
// tap. A slab's operands come by cp_async into one of four stages of shared memory, three slabs ahead of the tensor
// cores, straight from the image and the weights: the window matrix never exists. Zeros are written where a tap is
// outside the image and behind the last channel, so the product need not know of borders.
//
// A stage holds a tile (BM, 32) of pixels and a tile of weights, either as they lie in memory: (BN, 32) for the forward,
// whose weights (OC, K, K, C) have c as the last index, and (32, BN) for the gradient of x, where that index is the
// output. ldmatrix turns the second, so that no other copy of the weights is needed.
//
// A warp owns WM windows and WN output channels of the block's, its sums in registers. At the end they pass through
// shared memory, 32 windows at a time, to get from fragments to rows: bias, activation and residual or mask are applied
// in fp32 and one thread stores 8 neighbouring channels, 16 bytes.
//
// Tiles. What limits them is shared memory, 128 bytes a cycle. For 16 channels of a slab a warp of 64 x 64 reads 4 KB of
// fragments and a warp of 64 x 32 3 KB, for half the products; in addition the copies write 32 (BM + BN) bytes. An
// H100's tensor cores do 2048 MAC a cycle and multiprocessor, by mma.sync about 1280. In cycles for these 16 channels:
//
//     BM x BN     warps          fragments   copies   shared memory    tensor cores   registers a thread   blocks
//     128 x 128   4 of 64 x 64   128         64       192              205            < 256                2
//     256 x 64    4 of 64 x 64   128         80       208              205            < 256                2
//     128 x 64    4 of 64 x 32   96          48       144              102            < 168                3
//     64 x 64     4 of 32 x 32   64          32       96               51             < 128                4
//
// So the large tiles are worth their registers: 8 warps a multiprocessor, in two blocks, so that one computes while the
// other starts, ends or waits; 16 independent mma behind each load hide its latency. The small ones serve when there
// would be fewer large ones than multiprocessors. conv_gemm() takes the tile with the least
//     ceil(tiles / multiprocessors) x cycles.
//
// Neighbouring blocks have the same windows and neighbouring output channels: the pixels, which are many, come from
// device memory once and from L2 for the at most OC / 64 other blocks; the weights, at most 4.7 MB in these models, stay
// in L2.
#pragma once
// defines: conv_job_t, conv_class_t, conv_window, conv_finish, conv_slab_t
#include "common/cuda/conv_job.cuh"
// defines: tile_at, tile_load_a, tile_load_b, tile_load_b_transposed, tile_multiply
#include "common/cuda/mma_tile.cuh"

enum { CONV_SLAB = 32, CONV_STAGES = 4, CONV_ROWS = 32 }; // channels; stages; windows that leave a warp at a time

template <int BM, int BN> static constexpr size_t conv_stage_bytes() { return (BM + BN) * CONV_SLAB * sizeof(bf16); }

// What a thread copies: a piece of 8 channels of some windows, and of some rows of the weights. Thread t of T has, of
// windows and forward weights, piece t % 4 of rows t / 4 + i T / 4, and of weights with o last, piece t % (BN / 8) of
// rows t / (BN / 8) + i 8 T / BN. Rows of one thread are a multiple of 8 apart, so that their places in the tiles are, too.
template <int BM, int BN, int THREADS, bool DATA>
__device__ static inline void conv_copy_slab(shared<bf16> a, shared<bf16> b, const conv_job_t& job,
                                             const conv_window_t* windows, const bf16* weight, int column,
                                             conv_slab_t slab) {
    constexpr int pieces = CONV_SLAB / 8, columns = BN / 8, rows = THREADS / pieces, rows_data = THREADS / columns;
    static_assert(rows % 8 == 0 && rows_data % 8 == 0, "the swizzle repeats after 8 rows");
    int row = threadIdx.x / pieces, piece = threadIdx.x % pieces, at = tile_at<CONV_SLAB>(row, piece);
    bool inside = slab.c + piece * 8 < job.C;
    for (int i = 0; i < BM / rows; i++) {
        cp_async_16(a + at + i * rows * CONV_SLAB, windows[i].x + slab.x, inside && (windows[i].taps & slab.bit));
    }
    const bf16* w = weight + slab.w;
    if (!DATA) {
        for (int i = 0; i < BN / rows; i++) {
            bool valid = inside && column + i * rows < job.OC;
            cp_async_16(b + at + i * rows * CONV_SLAB, w + (ptrdiff_t)i * rows * job.by_output, valid);
        }
    } else {
        row = threadIdx.x / columns, at = tile_at<BN>(row, threadIdx.x % columns);
        for (int i = 0; i < CONV_SLAB / rows_data; i++) {
            bool valid = slab.c + row + i * rows_data < job.C && column < job.OC;
            cp_async_16(b + at + i * rows_data * BN, w + (ptrdiff_t)i * rows_data * job.by_channel, valid);
        }
    }
}

// CONV_ROWS windows of a warp, from first_m on, from shared memory (CONV_ROWS, pitch) to out: WN channels from first_o.
template <int WN>
__device__ static inline void conv_write_rows(const conv_job_t& job, const conv_class_t& at, shared<const float> sums,
                                              int first_m, int end_m, int first_o) {
    constexpr int pieces = WN / 8, pitch = WN + 8;
    int lane = threadIdx.x % WARP, column = lane % pieces * 8, o = first_o + column;
    int channels = job.OC - o;
    if (channels <= 0) return;
    float bias[8];
    for (int e = 0; e < 8; e++) bias[e] = job.bias && e < channels ? (float)job.bias[o + e] : 0;
    for (int row = lane / pieces; row < CONV_ROWS && first_m + row < end_m; row += WARP / pieces) {
        size_t to = conv_out_at(job, at, first_m + row) + o;
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
}

// The fragments of CONV_ROWS windows to rows to out. All shared memory is free for this; each warp has a piece of it.
template <int WN>
__device__ static inline void conv_write(const conv_job_t& job, const conv_class_t& at, const float d[][WN / 8][4],
                                         int first_m, int end_m, int first_o) {
    constexpr int pitch = WN + 8, floats = CONV_ROWS * pitch; // rows g and g + 1 are 8 banks apart
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    shared<float> sums = shared_array<float>(threadIdx.x / WARP * floats * sizeof(float), floats);
    for (int i = 0; i < CONV_ROWS / 16; i++) {
        for (int j = 0; j < WN / 8; j++) {
            for (int e = 0; e < 4; e++) sums[(16 * i + g + e / 2 * 8) * pitch + 8 * j + 2 * q + e % 2] = d[i][j][e];
        }
    }
    __syncwarp();
    conv_write_rows<WN>(job, at, sums, first_m, end_m, first_o);
    __syncwarp();
}

template <int BM, int BN, int WM, int WN, bool DATA> __global__ void conv_gemm_kernel(conv_job_t job) {
    constexpr int threads = BM / WM * (BN / WN) * WARP, pieces = CONV_SLAB / 8, columns = BN / 8;
    const conv_class_t at = job.at[blockIdx.y];
    int tiles_n = (job.OC + BN - 1) / BN, windows = job.B * at.OH * at.OW;
    int m = blockIdx.x / tiles_n * BM, n = blockIdx.x % tiles_n * BN;
    if (m >= windows) return; // this class has fewer windows than the first

    int t = threadIdx.x;
    conv_window_t window[BM * pieces / threads];
    for (int i = 0; i < BM * pieces / threads; i++) {
        window[i] = conv_window(job, at, m + t / pieces + i * (threads / pieces));
        window[i].x += t % pieces * 8;
    }
    int column = DATA ? n + t % columns * 8 : n + t / pieces; // output channel of this thread's first piece of weights
    const bf16* weight = job.weight + at.weight + (ptrdiff_t)column * job.by_output
                         + (ptrdiff_t)(DATA ? t / columns : t % pieces * 8) * job.by_channel;

    shared<bf16> a = shared_array<bf16>(0, CONV_STAGES * BM * CONV_SLAB);
    shared<bf16> b = shared_array<bf16>(CONV_STAGES * BM * CONV_SLAB * sizeof(bf16), CONV_STAGES * BN * CONV_SLAB);
    int slabs = conv_slabs(job, at, CONV_SLAB), copied = 0;
    conv_slab_t slab = conv_first_slab();
    int warp = t / WARP, warp_m = warp / (BN / WN) * WM, warp_n = warp % (BN / WN) * WN;
    float d[WM / 16][WN / 8][4] = {};
    for (int k = 1 - CONV_STAGES; k < slabs; k++) {
        if (k >= 0) {
            cp_async_wait<CONV_STAGES - 2>(); // slab k is there,
            __syncthreads();                  // for all threads, and all have done with slab k - 1, whose stage is filled
        }
        if (copied < slabs) {
            int stage = copied++ % CONV_STAGES;
            conv_copy_slab<BM, BN, threads, DATA>(a + stage * (BM * CONV_SLAB), b + stage * (BN * CONV_SLAB), job, window,
                                                  weight, column, slab);
            slab = conv_next_slab(slab, job, at, CONV_SLAB);
        }
        cp_async_commit();
        if (k < 0) continue;
        shared<const bf16> x = a + k % CONV_STAGES * (BM * CONV_SLAB), w = b + k % CONV_STAGES * (BN * CONV_SLAB);
        for (int c = 0; c < CONV_SLAB; c += 16) {
            uint32_t fa[WM / 16][4], fb[WN / 16][4];
            tile_load_a<WM, CONV_SLAB>(fa, x, warp_m, c);
            if (DATA) tile_load_b_transposed<WN, BN>(fb, w, warp_n, c);
            else tile_load_b<WN, CONV_SLAB>(fb, w, warp_n, c);
            tile_multiply<WM, WN>(d, fa, fb);
        }
    }
    __syncthreads();
    conv_write<WN>(job, at, d, m + warp_m, windows, n + warp_n);
    if (WM > CONV_ROWS) conv_write<WN>(job, at, d + CONV_ROWS / 16, m + warp_m + CONV_ROWS, windows, n + warp_n);
}

template <int BM, int BN, int WM, int WN> static inline void conv_gemm_tile(const conv_job_t& job, bool data, stream_t s) {
    constexpr int threads = BM / WM * (BN / WN) * WARP;
    constexpr size_t stages = CONV_STAGES * conv_stage_bytes<BM, BN>();
    constexpr size_t rows = threads / WARP * CONV_ROWS * (WN + 8) * sizeof(float);
    dim3 grid(blocks_for(conv_windows(&job, 0), BM) * blocks_for(job.OC, BN), job.classes);
    size_t bytes = stages > rows ? stages : rows;
    if (data) launch<conv_gemm_kernel<BM, BN, WM, WN, true>>(grid, threads, bytes, s, job);
    else launch<conv_gemm_kernel<BM, BN, WM, WN, false>>(grid, threads, bytes, s, job);
}

// The time of a tile size, in the cycles of the table above for 16 channels.
static inline double conv_gemm_cost(const conv_job_t& job, int BM, int BN, int cycles, stream_t s) {
    size_t tiles = (size_t)blocks_for(conv_windows(&job, 0), BM) * blocks_for(job.OC, BN) * job.classes;
    return (double)blocks_for(tiles, s->multiprocessors) * cycles;
}

static inline void conv_gemm(const conv_job_t& job, bool data, stream_t s) {
    double wide = conv_gemm_cost(job, 128, 128, 205, s), tall = conv_gemm_cost(job, 256, 64, 208, s);
    double half = conv_gemm_cost(job, 128, 64, 144, s), small = conv_gemm_cost(job, 64, 64, 96, s);
    double least = fmin(fmin(wide, tall), fmin(half, small));
    if (wide == least) conv_gemm_tile<128, 128, 64, 64>(job, data, s);
    else if (tall == least) conv_gemm_tile<256, 64, 64, 64>(job, data, s);
    else if (half == least) conv_gemm_tile<128, 64, 64, 32>(job, data, s);
    else conv_gemm_tile<64, 64, 32, 32>(job, data, s);
}
