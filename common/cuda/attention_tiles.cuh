// attention_tiles.cuh: attention in tiles on tensor cores, for bf16 and heads of at most 80 channels. S and P exist in
// registers only. Formulas and derivation: dev/cpu/attention.h.             FlashAttention (Dao et al. 2022; Dao 2023)
//
// A warp owns 16 rows, in all three kernels. A block is a few warps that go together through the other side in tiles of
// 64 rows, which cp.async brings one tile ahead of their use:
//
//   kernel               a warp owns       goes through                 has in registers
//   forward              16 queries        keys, values                 q; out, the rows' maximum and sum
//   backward of queries  16 queries        keys, values                 q, dout; dq
//   backward of keys     16 keys, values   queries, dout, lse, delta    k, v; dk, dv
//
// Each warp writes what it owns: nothing is added across blocks, so the same inputs give the same bits. The price: the
// backward makes S and dP = dout v^T twice, 7 products of T^2 HS where 5 would do with atomic additions.
//
// The result of a product lies in a warp's registers just as the left operand of the next one has to lie (launch.cuh,
// mma_m16n8k16), so P goes from softmax into P v without moving: two floats become a pair of bf16.
//
//   Softmax. A row's maximum is known only behind its last key. It grows on the way; whenever it does, what was summed
//   so far is scaled by exp(old - new). exp(x) is 2^(x log2 e), and log2 e is multiplied into the scale of S.
//   Edges. Rows beyond T and channels beyond HS are zero in shared memory, so they add nothing to a sum over them.
//   Columns of S beyond T do get a value: it becomes -infinity in the forward, and P or dS becomes 0 in the backward.
//   Groups of 16 rows or columns that lie wholly beyond T are left out: 257 tokens cost 272 x 272.
//   Head sizes. D is HS rounded up to 32, 64 or 80. 72 (SigLIP, LightningDiT) runs as 80, because tensor cores sum over
//   16 channels at a time.
//   Blocks. The ceil(T / 16) warps of a head are cut evenly into blocks of at most 6: 257 tokens are 17 warps in 3
//   blocks. Where heads are few, blocks are smaller, so that the whole GPU has work.
//
// Cost of a layer of ViT-L at B = 64, T = 257, 16 heads of 64, edges included: forward 19 GFLOP, backward 68 GFLOP;
// 135 MB and 405 MB of memory, which take 45 and 135 us at 3 TB/s. One ldmatrix_x4 (512 bytes, 4 cycles of a
// multiprocessor's shared memory) serves 2 mma (4096 MAC), so 16 rows a warp allow 1024 MAC a cycle and multiprocessor:
// 460 TFLOP/s on an H100. Look next at common/cuda/attention_products.cuh.
#pragma once
// defines: launch, shared_array, load16, store16, bf16x2, mma_m16n8k16, cp_async_16, exp2_fast
#include "common/cuda/launch.cuh"
// defines: tile_swizzle, tile_at, tile_load_a, tile_load_b, tile_load_b_transposed, tile_multiply
#include "common/cuda/mma_tile.cuh"

enum {
    ATTENTION_OWN = 16,   // rows of a warp
    ATTENTION_WARPS = 6,  // of a block, at most: two such blocks on a multiprocessor leave each thread 168 registers
    ATTENTION_TILE = 64,  // rows of a tile that a block goes through
    ATTENTION_MOST_CHANNELS = 80,
};
#define ATTENTION_LOG2E 1.4426950408889634

// A row of 80 is 10 pieces, so row r begins 2 r slots on. Rows r and r + 4 begin in the same slot, and p ^ 1 keeps them
// apart. Only the lowest bit of p changes, so steps of 16 channels lie at a constant distance.
template <> __device__ inline int tile_at<80>(int row, int piece) {
    return row * 80 + piece / 2 * 16 + ((piece ^ row / 4) & 1) * 8;
}

// What a warp works on.
typedef struct {
    int b, h;  // image and head
    int first; // its first row
    int rows;  // how many of its 16 rows lie before T; 0 or less: none
} attention_task_t;

__device__ static inline attention_task_t attention_task(int tiles, int T, int NH) {
    attention_task_t t;
    t.b = blockIdx.x / tiles / NH;
    t.h = blockIdx.x / tiles % NH;
    t.first = (int)(blockIdx.x % tiles * (blockDim.x / WARP) + threadIdx.x / WARP) * ATTENTION_OWN;
    t.rows = T - t.first < ATTENTION_OWN ? T - t.first : ATTENTION_OWN;
    return t;
}

// Where a token's first channel of the warp's head stands: in qkv (B, T, 3, NH, HS) and in out (B, T, NH, HS); and the
// token's place in lse (B, NH, row_length).
__device__ static inline size_t attention_qkv_at(attention_task_t t, int token, int T, int NH, int HS) {
    return (((size_t)t.b * T + token) * 3 * NH + t.h) * HS;
}
__device__ static inline size_t attention_out_at(attention_task_t t, int token, int T, int NH, int HS) {
    return (((size_t)t.b * T + token) * NH + t.h) * HS;
}
__device__ static inline size_t attention_row_at(attention_task_t t, int token, size_t row_length, int NH) {
    return ((size_t)t.b * NH + t.h) * row_length + token;
}

// Shared memory of a block: its own rows of OWN matrices (., D), then two stages of two tiles (ATTENTION_TILE, D).
template <int D> __device__ static inline shared<bf16> attention_own(int i) {
    size_t count = blockDim.x / WARP * ATTENTION_OWN * D;
    return shared_array<bf16>(i * count * sizeof(bf16), count);
}
template <int D, int OWN> __device__ static inline shared<bf16> attention_stage(int stage) {
    size_t own = OWN * (blockDim.x / WARP) * ATTENTION_OWN * D, count = 2 * ATTENTION_TILE * D;
    return shared_array<bf16>((own + stage * count) * sizeof(bf16), count);
}
template <int D, int OWN> __device__ static inline shared<bf16> attention_tile(int stage, int i) {
    return attention_stage<D, OWN>(stage) + i * ATTENTION_TILE * D;
}
static inline size_t attention_shared_bytes(int D, int own, int warps) {
    return (size_t)(own * warps * ATTENTION_OWN + 4 * ATTENTION_TILE) * D * sizeof(bf16);
}

// Begins to copy rows [first, first + rows) of x into a tile (rows, D), by the whole block. What lies outside of T rows
// and HS channels becomes zero. Rows of x are `stride` values apart.
template <int D>
__device__ static inline void attention_copy(shared<bf16> tile, const bf16* x, int stride, int first, int rows, int T,
                                             int HS) {
    constexpr int pieces = D / 8;
    for (int i = threadIdx.x; i < rows * pieces; i += blockDim.x) {
        int row = i / pieces, piece = i % pieces;
        bool valid = first + row < T && piece * 8 < HS;
        const bf16* from = valid ? x + (size_t)(first + row) * stride + piece * 8 : x;
        cp_async_16<bf16>(tile + tile_at<D>(row, piece), from, valid);
    }
}

// The warp's 16 rows of a tile as a left operand, D channels.
template <int D>
__device__ static inline void attention_load_own(uint32_t a[D / 16][1][4], shared<const bf16> tile, int row) {
    for (int c = 0; c < D / 16; c++) tile_load_a<16, D>(a[c], tile, row, 16 * c);
}

// d (16, N) += own (16, D) rows [row, row + N) of a tile (., D), transposed
template <int D, int N>
__device__ static inline void attention_scores(float d[1][N / 8][4], const uint32_t own[D / 16][1][4],
                                               shared<const bf16> tile, int row) {
    for (int c = 0; c < D / 16; c++) {
        uint32_t b[N / 16][4];
        tile_load_b<N, D>(b, tile, row, 16 * c);
        tile_multiply<16, N>(d, own[c], b);
    }
}

// d (16, D) += p (16, N) rows [row, row + N) of a tile (., D), where p is rounded to bf16
template <int D, int N>
__device__ static inline void attention_accumulate(float d[1][D / 8][4], const float p[1][N / 8][4],
                                                   shared<const bf16> tile, int row) {
    for (int j = 0; j < N / 8; j += 2) {
        const float* left = p[0][j];
        const float* right = p[0][j + 1];
        uint32_t a[1][4] = {{bf16x2(left[0], left[1]), bf16x2(left[2], left[3]), bf16x2(right[0], right[1]),
                             bf16x2(right[2], right[3])}};
        uint32_t b[D / 16][4];
        tile_load_b_transposed<D, D>(b, tile, 0, row + 8 * j);
        tile_multiply<16, D>(d, a, b);
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

// Writes `rows` of a warp's 16 rows: to_i = d_i scale_i, with scale[0] for row g of the product and scale[1] for row
// g + 8. The way leads through the warp's own rows of a tile, so that memory is written 16 bytes at a time.
template <int D>
__device__ static inline void attention_store(bf16* to, int stride, shared<bf16> tile, int row,
                                              const float d[1][D / 8][4], const float scale[2], int rows, int HS) {
    constexpr int pieces = D / 8;
    int lane = threadIdx.x % WARP;
    __syncwarp();
    for (int j = 0; j < pieces; j++) {
        for (int i = 0; i < 4; i++) {
            tile[tile_at<D>(row + lane / 4 + i / 2 * 8, j) + lane % 4 * 2 + i % 2] = (bf16)(d[0][j][i] * scale[i / 2]);
        }
    }
    __syncwarp();
    for (int i = lane; i < ATTENTION_OWN * pieces; i += WARP) {
        int r = i / pieces, piece = i % pieces;
        if (r >= rows || piece * 8 >= HS) continue;
        store16<bf16>(to + (size_t)r * stride + piece * 8, load16<bf16>(tile + tile_at<D>(row + r, piece)));
    }
    __syncwarp();
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

// N more keys for the warp's 16 queries: S = q k^T; the maximum grows, and out and sum are scaled to it; P = exp(S -
// maximum); sum += P; out += P v. The first `keys` of the N lie before T, at least one of them.
template <int D, int N>
__device__ static inline void attention_attend(float out[1][D / 8][4], float most[2], float sum[2],
                                               const uint32_t q[D / 16][1][4], shared<const bf16> k,
                                               shared<const bf16> v, int row, int keys, float scale_log2) {
    float p[1][N / 8][4] = {};
    attention_scores<D, N>(p, q, k, row);
    if (keys < N) {
        for (int j = 0; j < N / 8; j++) {
            for (int i = 0; i < 4; i++) {
                if (8 * j + (int)(threadIdx.x % 4) * 2 + i % 2 >= keys) p[0][j][i] = -INFINITY;
            }
        }
    }
    for (int r = 0; r < 2; r++) { // rows g and g + 8
        float m = most[r], total = 0;
        for (int j = 0; j < N / 8; j++) m = fmaxf(m, fmaxf(p[0][j][2 * r], p[0][j][2 * r + 1]));
        m = quad_max(m);
        float rescale = exp2_fast((most[r] - m) * scale_log2), offset = m * scale_log2;
        for (int j = 0; j < N / 8; j++) {
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                p[0][j][i] = exp2_fast(fmaf(p[0][j][i], scale_log2, -offset));
                total += p[0][j][i];
            }
        }
        most[r] = m;
        sum[r] = sum[r] * rescale + total; // of this thread's columns
        for (int j = 0; j < D / 8; j++) {
            out[0][j][2 * r] *= rescale;
            out[0][j][2 * r + 1] *= rescale;
        }
    }
    attention_accumulate<D, N>(out, p, v, row);
}

template <int D>
__global__ __launch_bounds__(ATTENTION_WARPS * WARP, 2)
void attention_forward_kernel(bf16* out,       // (B, T, NH, HS)
                                         float* lse,      // (B, NH, T)
                                         const bf16* qkv, // (B, T, 3, NH, HS)
                                         int T, int NH, int HS, int tiles, float scale_log2) {
    attention_task_t task = attention_task(tiles, T, NH);
    const int own_rows = blockDim.x / WARP * ATTENTION_OWN, own_row = threadIdx.x / WARP * ATTENTION_OWN;
    const int C = NH * HS;
    const bf16* q = qkv + attention_qkv_at(task, 0, T, NH, HS);
    const bf16* k = q + C;
    const bf16* v = k + C;

    attention_copy<D>(attention_own<D>(0), q, 3 * C, task.first - own_row, own_rows, T, HS);
    cp_async_commit();
    attention_copy<D>(attention_tile<D, 1>(0, 0), k, 3 * C, 0, ATTENTION_TILE, T, HS);
    attention_copy<D>(attention_tile<D, 1>(0, 1), v, 3 * C, 0, ATTENTION_TILE, T, HS);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    uint32_t q_own[D / 16][1][4];
    attention_load_own<D>(q_own, attention_own<D>(0), own_row);

    float sums[1][D / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int first = 0; first < T; first += ATTENTION_TILE) {
        int stage = first / ATTENTION_TILE % 2, next = first + ATTENTION_TILE, keys = T - first;
        cp_async_wait<0>();
        __syncthreads(); // this tile is there, and every warp is done with the one before it
        if (next < T) {
            attention_copy<D>(attention_tile<D, 1>(!stage, 0), k, 3 * C, next, ATTENTION_TILE, T, HS);
            attention_copy<D>(attention_tile<D, 1>(!stage, 1), v, 3 * C, next, ATTENTION_TILE, T, HS);
            cp_async_commit();
        }
        if (task.rows <= 0) continue;
        shared<bf16> k_tile = attention_tile<D, 1>(stage, 0), v_tile = attention_tile<D, 1>(stage, 1);
        if (keys >= ATTENTION_TILE) {
            attention_attend<D, ATTENTION_TILE>(sums, most, sum, q_own, k_tile, v_tile, 0, keys, scale_log2);
        } else {
            for (int i = 0; i < keys; i += 16) {
                attention_attend<D, 16>(sums, most, sum, q_own, k_tile, v_tile, i, keys - i, scale_log2);
            }
        }
    }
    if (task.rows <= 0) return;

    float scale[2];
    for (int r = 0; r < 2; r++) {
        int row = threadIdx.x % WARP / 4 + 8 * r;
        float total = quad_sum(sum[r]);
        scale[r] = 1 / total;
        if (threadIdx.x % 4 == 0 && row < task.rows) {
            lse[attention_row_at(task, task.first + row, T, NH)] =
                most[r] * scale_log2 / (float)ATTENTION_LOG2E + logf(total);
        }
    }
    bf16* to = out + attention_out_at(task, task.first, T, NH, HS);
    attention_store<D>(to, C, attention_own<D>(0), own_row, sums, scale, task.rows, HS);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward. `stats` holds for each query (lse log2 e, delta), in rows padded to a multiple of 16 whose surplus is
// (infinity, 0), which makes P and dS zero. The backward of queries writes it, the backward of keys reads it.

__host__ __device__ static inline size_t attention_padded(int T) { return ((size_t)T + 15) / 16 * 16; }

// Two stages of (ATTENTION_TILE, 2), behind the tiles of the backward of keys.
static constexpr size_t attention_stats_bytes = 2 * ATTENTION_TILE * 2 * sizeof(float);
template <int D> __device__ static inline shared<float> attention_stats_tile(int stage) {
    constexpr int count = ATTENTION_TILE * 2;
    size_t tiles = (2 * (blockDim.x / WARP) * ATTENTION_OWN + 4 * ATTENTION_TILE) * D * sizeof(bf16);
    return shared_array<float>(tiles + stage * count * sizeof(float), count);
}

// P = 2^(S scale - lse), dS = P (dP - delta), in place of S and dP.
__device__ static inline void attention_weight(float* p, float* ds, float scale_log2, float lse_log2, float delta) {
    *p = exp2_fast(fmaf(*p, scale_log2, -lse_log2));
    *ds = *p * (*ds - delta);
}

// Product of the two halves of a register of bf16, summed.
__device__ static inline float attention_pair_product(uint32_t a, uint32_t b) {
    bf16 x[2], y[2];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    return (float)x[0] * (float)y[0] + (float)x[1] * (float)y[1];
}

template <int D>
__global__ __launch_bounds__(ATTENTION_WARPS * WARP, 2)
void attention_backward_queries_kernel(bf16* dqkv,       // (B, T, 3, NH, HS): dq
                                                  float* stats,     // (B, NH, T rounded up to 16, 2)
                                                  const bf16* dout, // (B, T, NH, HS)
                                                  const bf16* qkv,  // (B, T, 3, NH, HS)
                                                  const bf16* out,  // (B, T, NH, HS)
                                                  const float* lse, // (B, NH, T)
                                                  int T, int NH, int HS, int tiles, float scale_log2, float scale) {
    attention_task_t task = attention_task(tiles, T, NH);
    const int own_rows = blockDim.x / WARP * ATTENTION_OWN, own_row = threadIdx.x / WARP * ATTENTION_OWN;
    const int block_first = task.first - own_row;
    const int C = NH * HS;
    const size_t at = attention_out_at(task, 0, T, NH, HS);
    const bf16* q = qkv + attention_qkv_at(task, 0, T, NH, HS);
    const bf16* k = q + C;
    const bf16* v = k + C;

    // `out` is wanted for delta only: it stands where the second tiles will be.
    static_assert(ATTENTION_WARPS * ATTENTION_OWN <= 2 * ATTENTION_TILE);
    attention_copy<D>(attention_own<D>(0), q, 3 * C, block_first, own_rows, T, HS);
    attention_copy<D>(attention_own<D>(1), dout + at, C, block_first, own_rows, T, HS);
    attention_copy<D>(attention_stage<D, 2>(1), out + at, C, block_first, own_rows, T, HS);
    cp_async_commit();
    attention_copy<D>(attention_tile<D, 2>(0, 0), k, 3 * C, 0, ATTENTION_TILE, T, HS);
    attention_copy<D>(attention_tile<D, 2>(0, 1), v, 3 * C, 0, ATTENTION_TILE, T, HS);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    uint32_t q_own[D / 16][1][4], dout_own[D / 16][1][4];
    attention_load_own<D>(q_own, attention_own<D>(0), own_row);
    attention_load_own<D>(dout_own, attention_own<D>(1), own_row);

    float delta[2] = {}, lse_log2[2];
    for (int c = 0; c < D / 16; c++) {
        uint32_t o[1][4];
        tile_load_a<16, D>(o, attention_stage<D, 2>(1), own_row, 16 * c);
        for (int i = 0; i < 4; i++) delta[i % 2] += attention_pair_product(dout_own[c][0][i], o[0][i]);
    }
    for (int r = 0; r < 2; r++) {
        int row = task.first + threadIdx.x % WARP / 4 + 8 * r;
        delta[r] = quad_sum(delta[r]);
        lse_log2[r] = row < T ? lse[attention_row_at(task, row, T, NH)] * (float)ATTENTION_LOG2E : INFINITY;
        if (threadIdx.x % 4 == 0 && task.rows > 0) {
            float* row_stats = stats + 2 * attention_row_at(task, row, attention_padded(T), NH);
            row_stats[0] = lse_log2[r];
            row_stats[1] = delta[r];
        }
    }

    float dq[1][D / 8][4] = {};
    for (int first = 0; first < T; first += ATTENTION_TILE) {
        int stage = first / ATTENTION_TILE % 2, next = first + ATTENTION_TILE;
        int keys = T - first < ATTENTION_TILE ? T - first : ATTENTION_TILE;
        cp_async_wait<0>();
        __syncthreads(); // this tile is there, and every warp is done with the one before it
        if (next < T) {
            attention_copy<D>(attention_tile<D, 2>(!stage, 0), k, 3 * C, next, ATTENTION_TILE, T, HS);
            attention_copy<D>(attention_tile<D, 2>(!stage, 1), v, 3 * C, next, ATTENTION_TILE, T, HS);
            cp_async_commit();
        }
        if (task.rows <= 0) continue;
        shared<bf16> k_tile = attention_tile<D, 2>(stage, 0), v_tile = attention_tile<D, 2>(stage, 1);
        for (int row = 0; row < keys; row += 16) {
            float p[1][2][4] = {}, ds[1][2][4] = {};
            attention_scores<D, 16>(p, q_own, k_tile, row);
            attention_scores<D, 16>(ds, dout_own, v_tile, row);
            for (int j = 0; j < 2; j++) {
                for (int i = 0; i < 4; i++) {
                    attention_weight(&p[0][j][i], &ds[0][j][i], scale_log2, lse_log2[i / 2], delta[i / 2]);
                    if (row + 8 * j + (int)(threadIdx.x % 4) * 2 + i % 2 >= keys) ds[0][j][i] = 0;
                }
            }
            attention_accumulate<D, 16>(dq, ds, k_tile, row);
        }
    }
    if (task.rows <= 0) return;
    float scales[2] = {scale, scale};
    bf16* to = dqkv + attention_qkv_at(task, task.first, T, NH, HS);
    attention_store<D>(to, 3 * C, attention_own<D>(0), own_row, dq, scales, task.rows, HS);
}

// Tile of queries, with their dout and stats, into a stage.
template <int D>
__device__ static inline void attention_copy_queries(int stage, const bf16* q, const bf16* dout, const float* stats,
                                                     int first, int T, int C, int HS) {
    attention_copy<D>(attention_tile<D, 2>(stage, 0), q, 3 * C, first, ATTENTION_TILE, T, HS);
    attention_copy<D>(attention_tile<D, 2>(stage, 1), dout, C, first, ATTENTION_TILE, T, HS);
    shared<float> to = attention_stats_tile<D>(stage);
    for (int i = threadIdx.x; i < ATTENTION_TILE / 2; i += blockDim.x) {
        bool valid = first + 2 * i < T; // two queries at a time, of which the padding has both
        cp_async_16<float>(to + 4 * i, valid ? stats + 2 * first + 4 * i : stats, valid);
    }
    cp_async_commit();
}

template <int D>
__global__ __launch_bounds__(ATTENTION_WARPS * WARP, 2)
void attention_backward_keys_kernel(bf16* dqkv,         // (B, T, 3, NH, HS): dk and dv
                                               const float* stats, // (B, NH, T rounded up to 16, 2)
                                               const bf16* dout,   // (B, T, NH, HS)
                                               const bf16* qkv,    // (B, T, 3, NH, HS)
                                               int T, int NH, int HS, int tiles, float scale_log2, float scale) {
    attention_task_t task = attention_task(tiles, T, NH);
    const int own_rows = blockDim.x / WARP * ATTENTION_OWN, own_row = threadIdx.x / WARP * ATTENTION_OWN;
    const int C = NH * HS;
    const bf16* q = qkv + attention_qkv_at(task, 0, T, NH, HS);
    dout += attention_out_at(task, 0, T, NH, HS);
    stats += 2 * attention_row_at(task, 0, attention_padded(T), NH);

    attention_copy<D>(attention_own<D>(0), q + C, 3 * C, task.first - own_row, own_rows, T, HS);
    attention_copy<D>(attention_own<D>(1), q + 2 * C, 3 * C, task.first - own_row, own_rows, T, HS);
    cp_async_commit();
    attention_copy_queries<D>(0, q, dout, stats, 0, T, C, HS);
    cp_async_wait<1>();
    __syncthreads();
    uint32_t k_own[D / 16][1][4], v_own[D / 16][1][4];
    attention_load_own<D>(k_own, attention_own<D>(0), own_row);
    attention_load_own<D>(v_own, attention_own<D>(1), own_row);

    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
    for (int first = 0; first < T; first += ATTENTION_TILE) {
        int stage = first / ATTENTION_TILE % 2, next = first + ATTENTION_TILE;
        int queries = T - first < ATTENTION_TILE ? T - first : ATTENTION_TILE;
        cp_async_wait<0>();
        __syncthreads(); // this tile is there, and every warp is done with the one before it
        if (next < T) attention_copy_queries<D>(!stage, q, dout, stats, next, T, C, HS);
        if (task.rows <= 0) continue;
        shared<bf16> q_tile = attention_tile<D, 2>(stage, 0), dout_tile = attention_tile<D, 2>(stage, 1);
        shared<float> stats_tile = attention_stats_tile<D>(stage);
        for (int row = 0; row < queries; row += 16) {
            float p[1][2][4] = {}, ds[1][2][4] = {}; // transposed: (keys, queries)
            attention_scores<D, 16>(p, k_own, q_tile, row);
            attention_scores<D, 16>(ds, v_own, dout_tile, row);
            for (int j = 0; j < 2; j++) {
                pack<float> of = load16<float>(stats_tile + 2 * (row + 8 * j + threadIdx.x % 4 * 2)); // two queries
                for (int i = 0; i < 4; i++) {
                    attention_weight(&p[0][j][i], &ds[0][j][i], scale_log2, of[i % 2 * 2], of[i % 2 * 2 + 1]);
                }
            }
            attention_accumulate<D, 16>(dv, p, dout_tile, row);
            attention_accumulate<D, 16>(dk, ds, q_tile, row);
        }
    }
    if (task.rows <= 0) return;
    float scales[2] = {scale, scale}, ones[2] = {1, 1};
    bf16* to = dqkv + attention_qkv_at(task, task.first, T, NH, HS);
    attention_store<D>(to + C, 3 * C, attention_own<D>(0), own_row, dk, scales, task.rows, HS);
    attention_store<D>(to + 2 * C, 3 * C, attention_own<D>(1), own_row, dv, ones, task.rows, HS);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launches

// A head's warps in `tiles` blocks of equal size: at most ATTENTION_WARPS each, fewer (not below 2) where the blocks of
// all heads would not fill the GPU twice. What a warp computes does not depend on it.
typedef struct { int tiles, warps; } attention_blocks_t;
static inline attention_blocks_t attention_blocks(size_t heads, int T, stream_t s) {
    int needed = (T + ATTENTION_OWN - 1) / ATTENTION_OWN, warps = ATTENTION_WARPS;
    while (warps > 2 && heads * ((needed + warps - 1) / warps) < 2 * (size_t)s->multiprocessors) warps--;
    int tiles = (needed + warps - 1) / warps;
    return (attention_blocks_t){tiles, (needed + tiles - 1) / tiles};
}

template <int D>
static void attention_tiles_forward(bf16* out, float* lse, const bf16* qkv, int B, int T, int NH, int HS, stream_t s) {
    size_t heads = (size_t)B * NH;
    attention_blocks_t blocks = attention_blocks(heads, T, s);
    float scale_log2 = (float)(ATTENTION_LOG2E / sqrt(HS));
    launch<attention_forward_kernel<D>>(heads * blocks.tiles, blocks.warps * WARP,
                                        attention_shared_bytes(D, 1, blocks.warps), s, out, lse, qkv, T, NH, HS,
                                        blocks.tiles, scale_log2);
}

template <int D>
static void attention_tiles_backward(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                                     int B, int T, int NH, int HS, size_t scratch_bytes, stream_t s) {
    size_t stats_bytes = (size_t)NH * attention_padded(T) * 2 * sizeof(float); // of an image
    size_t most = scratch_bytes / stats_bytes;
    if ((size_t)B > most) { // images that go together, of which the last are fewer
        int images = most > 0 ? (int)most : 1;
        size_t n = (size_t)images * T * NH * HS;
        attention_tiles_backward<D>(dqkv, dout, qkv, out, lse, images, T, NH, HS, scratch_bytes, s);
        attention_tiles_backward<D>(dqkv + 3 * n, dout + n, qkv + 3 * n, out + n, lse + (size_t)images * NH * T,
                                    B - images, T, NH, HS, scratch_bytes, s);
        return;
    }
    size_t heads = (size_t)B * NH;
    double scale = 1 / sqrt(HS);
    float scale_log2 = (float)(scale * ATTENTION_LOG2E);
    float* stats = (float*)device_scratch(s, B * stats_bytes);
    attention_blocks_t of = attention_blocks(heads, T, s);
    launch<attention_backward_queries_kernel<D>>(heads * of.tiles, of.warps * WARP,
                                                 attention_shared_bytes(D, 2, of.warps), s, dqkv, stats, dout, qkv, out,
                                                 lse, T, NH, HS, of.tiles, scale_log2, (float)scale);
    launch<attention_backward_keys_kernel<D>>(heads * of.tiles, of.warps * WARP,
                                              attention_shared_bytes(D, 2, of.warps) + attention_stats_bytes, s, dqkv,
                                              (const float*)stats, dout, qkv, T, NH, HS, of.tiles, scale_log2,
                                              (float)scale);
}
