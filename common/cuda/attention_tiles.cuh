// attention_tiles.cuh: what the forward (attention_forward.cuh) and the backward (attention_backward.cuh) of attention
// in tiles share. For bf16 and heads of at most 128 channels, a multiple of 8; S and P exist in registers only.
// Formulas and derivation: dev/cpu/attention.h.                            FlashAttention (Dao et al. 2022; Dao 2023)
//
// A warp owns some rows (queries in the forward, keys in the backward) and goes with its block through the other side
// in tiles, which cp.async brings one tile ahead of their use.
//
// The result of a product lies in a warp's registers just as the left operand of the next one has to lie (launch.cuh,
// mma_m16n8k16), so P goes from softmax into P v without moving: two floats become a pair of bf16.
//
//   Reuse. One ldmatrix_x4 brings 16 x 16 elements: 512 bytes, 4 cycles of a multiprocessor's shared memory. Of a
//   product (M, N) a step of 16 in K loads (M + N) / 16 of them for M N / 128 mma, or N / 16 where the left operand is
//   in registers already. An mma takes 2 cycles of an A100's tensor cores and 1.6 of an H100's (mma.sync reaches 62% of
//   them), so what loads less than 2 to 2.5 mma each waits for shared memory. 32 rows a warp make it 2.7 for S (32,
//   64), 2 for S (32, 32), and 4 for P v.
//   Edges. Rows beyond T and channels beyond HS are zero in shared memory, so they add nothing to a sum over them.
//   Columns of S beyond T do get a value; the forward makes it -infinity. Groups of 16 rows of a tile that lie wholly
//   beyond T are left out.
//   Padding. Where an image's first keys are padding, its keys and values are those behind them, fewer than T: pointers
//   move, and no score is masked.
//   Head sizes. D is HS rounded up to 32, 64, 72, 80 or 128. Tensor cores sum over 16 channels at a time, but give
//   results for 8: so for 72 (SigLIP, LightningDiT) tiles have 80 columns, and out, dk and dv have 72.
//   Determinism. No two blocks add to one value, and what a sum adds, and in which order, depends on T and HS alone:
//   not on the number of warps, nor on the size of the tiles.
//
// Look next at common/cuda/attention_forward.cuh.
#pragma once
// defines: shared_array, load16, store16, bf16x2, mma_m16n8k16, cp_async_16
#include "common/cuda/launch.cuh"
// defines: tile_at, tile_load_a, tile_load_b, tile_load_b_transposed
#include "common/cuda/mma_tile.cuh"

enum { ATTENTION_MOST_CHANNELS = 128 };
#define ATTENTION_LOG2E 1.4426950408889634

// A row of 80 is 10 pieces, so row r begins 2 r slots on. Rows r and r + 4 begin in the same slot, and p ^ 1 keeps them
// apart. Only the lowest bit of p changes, so steps of 16 channels lie at a constant distance.
template <> __device__ inline int tile_at<80>(int row, int piece) {
    return row * 80 + piece / 2 * 16 + ((piece ^ (unsigned)row / 4) & 1) * 8;
}

// Columns of a tile of q, k, v, out and dout.
__host__ __device__ constexpr int attention_columns(int D) { return (D + 15) / 16 * 16; }

// Where a head begins, its number counted over all images: in qkv (B, T, 3, NH, HS) with parts = 3, in out with 1.
__device__ static inline size_t attention_head_at(int head, int parts, int T, int NH, int HS) {
    return ((size_t)(head / NH) * T * parts * NH + head % NH) * HS;
}

// How many of the first tokens of a head's image are padding as keys; its number is counted over all images.
__device__ static inline int attention_padding(const int* first_key, int head, int NH) { // (B) or NULL for 0
    return first_key ? first_key[head / NH] : 0;
}

// The tile (rows, COLS) that begins `at` elements behind the beginning of the block's shared memory; and the same as
// pairs of elements, of which the threads of a warp hold neighbouring ones.
template <int COLS> __device__ static inline shared<bf16> attention_tile(int at, int rows) {
    return shared_array<bf16>(at * sizeof(bf16), rows * COLS);
}
template <int COLS> __device__ static inline shared<uint32_t> attention_pairs(int at, int rows) {
    return shared_array<uint32_t>(at * sizeof(bf16), rows * COLS / 2);
}

// Begins to copy rows [first, first + rows) of x into a tile (rows, COLS), by the whole block. What lies outside of T
// rows and HS channels becomes zero. Rows of x are `stride` values apart. Each row has `attention_lanes` neighbouring
// threads, a thread the same places in each tile that it copies.
template <int COLS> static constexpr int attention_lanes = COLS < 64 ? COLS / 8 : 8;
template <int COLS>
__device__ static inline void attention_copy(shared<bf16> tile, const bf16* x, int stride, int first, int rows, int T,
                                             int HS) {
    constexpr int lanes = attention_lanes<COLS>;
    for (int i = opaque_thread(); i < rows * lanes; i += blockDim.x) {
        int row = i / lanes;
        for (int piece = i % lanes; piece < COLS / 8; piece += lanes) {
            bool valid = first + row < T && piece * 8 < HS;
            const bf16* from = valid ? x + (size_t)(first + row) * stride + piece * 8 : x;
            cp_async_16<bf16>(tile + tile_at<COLS>(row, piece), from, valid);
        }
    }
}

// d (M, N) += rows [own_row, own_row + M) of a tile (., COLS) times rows [row, row + N) of another, transposed
template <int COLS, int M, int N>
__device__ static inline void attention_scores(float d[M / 16][N / 8][4], shared<const bf16> own, int own_row,
                                               shared<const bf16> tile, int row) {
    UNROLL
    for (int c = 0; c < COLS; c += 16) {
        uint32_t a[M / 16][4];
        tile_load_a<M, COLS>(a, own, own_row, c);
        UNROLL
        for (int j = 0; j < N / 8; j += 2) { // 16 rows at a time, so that few registers hold what was loaded
            uint32_t b[1][4];
            tile_load_b<16, COLS>(b, tile, row + 8 * j, c);
            for (int i = 0; i < M / 16; i++) {
                mma_m16n8k16(d[i][j], a[i], b[0]);
                mma_m16n8k16(d[i][j + 1], a[i], b[0] + 2);
            }
        }
    }
}

// Columns [16 k, 16 k + 16) of a product (M, N) as the left operand of the next one, rounded to bf16.
template <int M, int N>
__device__ static inline void attention_operand(uint32_t a[M / 16][4], const float p[M / 16][N / 8][4], int k) {
    for (int i = 0; i < M / 16; i++) {
        const float* left = p[i][2 * k];
        const float* right = p[i][2 * k + 1];
        a[i][0] = bf16x2(left[0], left[1]);
        a[i][1] = bf16x2(left[2], left[3]);
        a[i][2] = bf16x2(right[0], right[1]);
        a[i][3] = bf16x2(right[2], right[3]);
    }
}

// d (M, D) += a (M, 16) times rows [row, row + 16) of a tile, D of its columns
template <int D, int M>
__device__ static inline void attention_accumulate(float d[M / 16][D / 8][4], const uint32_t a[M / 16][4],
                                                   shared<const bf16> tile, int row) {
    UNROLL
    for (int j = 0; j < D / 8; j += 2) {
        constexpr int COLS = attention_columns(D), last = D % 16 ? 8 : 16;
        uint32_t b[1][4];
        if (j + 2 <= D / 8) tile_load_b_transposed<16, COLS>(b, tile, 8 * j, row);
        else tile_load_b_transposed<last, COLS>(b, tile, 8 * j, row);
        for (int i = 0; i < M / 16; i++) {
            mma_m16n8k16(d[i][j], a[i], b[0]);
            if (j + 1 < D / 8) mma_m16n8k16(d[i][j + 1], a[i], b[0] + 2);
        }
    }
}

// Over the four threads that share a row of a product.
__device__ static inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ static inline float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Writes the first `rows` rows of a warp's result d (M, W): to_r = d_r scale[r / 8], from `channel` on, of HS. `to` is
// channel 0 of the first row. The way leads through the tile (., COLS) that begins at `at`, whose rows [row, row + M)
// and channels [channel, channel + W) nobody else uses: pairs go there, and device memory is written by 16 bytes.
template <int COLS, int M, int W>
__device__ static inline void attention_store(bf16* to, int stride, int at, int row, int channel,
                                              const float d[M / 16][W / 8][4], const float scale[M / 8], int rows,
                                              int HS) {
    row = opaque(row);
    int lane = threadIdx.x % WARP;
    shared<bf16> tile = attention_tile<COLS>(at, row + M);
    shared<uint32_t> pairs = attention_pairs<COLS>(at, row + M);
    __syncwarp();
    for (int i = 0; i < M / 8; i++) {
        for (int j = 0; j < W / 8; j++) {
            const float* of = d[i / 2][j] + i % 2 * 2;
            pairs[tile_at<COLS>(row + 8 * i + lane / 4, channel / 8 + j) / 2 + lane % 4] =
                bf16x2(of[0] * scale[i], of[1] * scale[i]);
        }
    }
    __syncwarp();
    for (int i = opaque_thread() % WARP; i < M * W / 8; i += WARP) {
        int r = i / (W / 8), piece = channel / 8 + i % (W / 8);
        if (r >= rows || piece * 8 >= HS) continue;
        store16<bf16>(to + (size_t)r * stride + piece * 8, load16<bf16>(tile + tile_at<COLS>(row + r, piece)));
    }
    __syncwarp();
}
