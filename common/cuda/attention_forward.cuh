// attention_forward.cuh: out = softmax(q k^T / sqrt(HS)) v, in tiles (attention_tiles.cuh).
//
//   a warp owns        32 queries: their out, maximum and sum in registers, q in shared memory
//   a block is         at most 4 warps of one head
//   it goes through    keys and values, 64 at a time, two stages of each
//
//   Softmax. A row's maximum is known only behind its last key. It grows on the way; whenever it does, what was summed
//   so far is scaled by exp(old - new). exp(x) is 2^(x log2 e), and log2 e is multiplied into the scale of S.
//   Blocks. The ceil(T / 32) warps of a head are cut evenly into blocks: 257 tokens are 9 warps in 3 blocks. Where
//   heads are few, blocks are smaller, so that the whole GPU has work. What a warp computes does not depend on it.
//   Registers. Up to 64 channels leave room for three blocks of 128 threads (168 registers each), more for two (255).
//   Shared memory. 48 KB for 64 channels, 60 for 80, 96 for 128: every GPU has it.
//
// Cost of a layer of ViT-L at B = 64, T = 257, 16 heads of 64: 135 MB of memory, 45 us at 3 TB/s; 288 x 272 scores a
// head, edges included, 20.5 GFLOP. 1024 scores are 64 mma (an H100's part of a multiprocessor takes 413 cycles), 24
// ldmatrix_x4 (384 cycles, for all four parts), and some 400 instructions: tensor cores, shared memory and issue are
// near balance; with what is copied to shared memory, 44 us in all. Look next at common/cuda/attention_backward.cuh.
#pragma once
// defines: attention_tile, attention_copy, attention_scores, attention_operand, attention_accumulate, attention_store
#include "common/cuda/attention_tiles.cuh"

enum {
    ATTENTION_QUERIES = 32,       // of a warp
    ATTENTION_FORWARD_WARPS = 4,  // of a block, at most
    ATTENTION_KEYS = 64,          // of a tile
};

// N more keys for the warp's queries: S = q k^T; the maximum grows, and out and sum are scaled to it; P = exp(S -
// maximum); sum += P; out += P v. The first `keys` of the N lie before T, at least one of them. Row r of a thread is
// row 8 r + lane / 4 of the warp.
template <int D, int N>
__device__ static inline void attention_attend(float out[2][D / 8][4], float most[4], float sum[4],
                                               shared<const bf16> q, int own_row, shared<const bf16> k,
                                               shared<const bf16> v, int row, int keys, float scale_log2) {
    float p[2][N / 8][4] = {};
    own_row = opaque(own_row), row = opaque(row);
    attention_scores<attention_columns(D), ATTENTION_QUERIES, N>(p, q, own_row, k, row);
    if (keys < N) {
        for (int j = 0; j < N / 8; j++) {
            for (int i = 0; i < 8; i++) {
                if (8 * j + (int)(threadIdx.x % 4) * 2 + i % 2 >= keys) p[i / 4][j][i % 4] = -INFINITY;
            }
        }
    }
    float rescale[4];
    for (int r = 0; r < 4; r++) {
        float m = most[r];
        for (int j = 0; j < N / 8; j++) {
            const float* pair = p[r / 2][j] + r % 2 * 2;
            m = fmaxf(m, fmaxf(pair[0], pair[1]));
        }
        m = quad_max(m);
        rescale[r] = exp2_fast((most[r] - m) * scale_log2);
        most[r] = m;
        sum[r] *= rescale[r];
    }
    for (int j = 0; j < D / 8; j++) {
        for (int i = 0; i < 8; i++) out[i / 4][j][i % 4] *= rescale[i / 2];
    }
    for (int j = 0; j < N / 8; j++) {
        for (int i = 0; i < 8; i++) {
            float* value = &p[i / 4][j][i % 4];
            *value = exp2_fast(fmaf(*value, scale_log2, -most[i / 2] * scale_log2));
            sum[i / 2] += *value; // of this thread's columns
        }
    }
    UNROLL
    for (int k = 0; k < N / 16; k++) {
        uint32_t operand[2][4];
        attention_operand<ATTENTION_QUERIES, N>(operand, p, k);
        attention_accumulate<D, ATTENTION_QUERIES>(out, operand, v, row + 16 * k);
    }
}

// A tile of keys and values of a head to a stage, behind the block's own queries. q is that of the head's first key, of
// T keys.
template <int COLS> __device__ static inline int attention_keys_at(int own, int stage) {
    return (own + stage * 2 * ATTENTION_KEYS) * COLS;
}
template <int COLS>
__device__ static inline void attention_copy_keys(int own, int stage, const bf16* q, int first, int T, int C, int HS) {
    shared<bf16> to = attention_tile<COLS>(attention_keys_at<COLS>(own, stage), 2 * ATTENTION_KEYS);
    attention_copy<COLS>(to, q + C, 3 * C, first, ATTENTION_KEYS, T, HS);
    attention_copy<COLS>(to + ATTENTION_KEYS * COLS, q + 2 * C, 3 * C, first, ATTENTION_KEYS, T, HS);
    cp_async_commit();
}

// What a warp works on.
typedef struct {
    int head;
    int first;   // query of the block
    int own_row; // the warp's first query, from there
    int rows;    // before T, from its first on; 0 or less: none
} attention_task_t;

__device__ static inline attention_task_t attention_task(int blocks, int T) {
    attention_task_t task;
    int block = opaque(blockIdx.x);
    task.head = block / blocks;
    task.first = block % blocks * (blockDim.x / WARP) * ATTENTION_QUERIES;
    task.own_row = opaque_thread() / WARP * ATTENTION_QUERIES;
    task.rows = T - task.first - task.own_row;
    return task;
}

// The task is found anew where it is used (opaque): the registers are out's and P's.
template <int D>
__global__ __launch_bounds__(ATTENTION_FORWARD_WARPS * WARP, D <= 64 ? 3 : 2)
void attention_forward_kernel(bf16* out,            // (B, T, NH, HS)
                              float* lse,           // (B, NH, T)
                              const bf16* qkv,      // (B, T, 3, NH, HS)
                              const int* first_key, // (B) or NULL for 0
                              int T, int NH, int HS, int blocks, float scale_log2) {
    constexpr int COLS = attention_columns(D), N = D % 64 == 0 ? 32 : 64; // as registers allow
    const int own = blockDim.x / WARP * ATTENTION_QUERIES, C = NH * HS;
    const shared<bf16> q = attention_tile<COLS>(0, own);
    attention_task_t task = attention_task(blocks, T);
    attention_copy<COLS>(q, qkv + attention_head_at(task.head, 3, T, NH, HS), 3 * C, task.first, own, T, HS);
    const int padding = attention_padding(first_key, task.head, NH), K = T - padding; // keys
    attention_copy_keys<COLS>(own, 0, qkv + attention_head_at(task.head, 3, T, NH, HS) + (size_t)padding * 3 * C, 0, K,
                              C, HS);

    float sums[2][D / 8][4] = {}, sum[4] = {};
    float most[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    for (int first = 0; first < K; first += ATTENTION_KEYS) {
        int stage = first / ATTENTION_KEYS % 2, next = first + ATTENTION_KEYS, keys = K - first;
        shared<bf16> k = attention_tile<COLS>(attention_keys_at<COLS>(own, stage), 2 * ATTENTION_KEYS);
        shared<bf16> v = k + ATTENTION_KEYS * COLS;
        cp_async_wait<0>();
        __syncthreads(); // this tile is there, and every warp is done with the one before it
        task = attention_task(blocks, T);
        if (next < K) {
            const bf16* head = qkv + attention_head_at(task.head, 3, T, NH, HS);
            attention_copy_keys<COLS>(own, !stage, head + (size_t)(T - K) * 3 * C, next, K, C, HS);
        }
        if (task.rows <= 0) continue;
        if (keys >= ATTENTION_KEYS) {
            for (int i = 0; i < ATTENTION_KEYS; i += N) {
                attention_attend<D, N>(sums, most, sum, q, task.own_row, k, v, i, N, scale_log2);
            }
        } else {
            for (int i = 0; i < keys; i += 16) {
                attention_attend<D, 16>(sums, most, sum, q, task.own_row, k, v, i, keys - i, scale_log2);
            }
        }
    }
    if (task.rows <= 0) return;

    task = attention_task(blocks, T);
    float scale[4];
    for (int r = 0; r < 4; r++) {
        int row = threadIdx.x % WARP / 4 + 8 * r;
        float total = quad_sum(sum[r]);
        scale[r] = 1 / total;
        if (threadIdx.x % 4 == 0 && row < task.rows) {
            lse[(size_t)task.head * T + task.first + task.own_row + row] =
                most[r] * scale_log2 / (float)ATTENTION_LOG2E + logf(total);
        }
    }
    bf16* to = out + attention_head_at(task.head, 1, T, NH, HS) + (size_t)(task.first + task.own_row) * C;
    attention_store<COLS, ATTENTION_QUERIES, D>(to, C, 0, task.own_row, 0, sums, scale, task.rows, HS);
}

template <int D>
static void attention_tiles_forward(bf16* out, float* lse, const bf16* qkv, const int* first_key, int B, int T, int NH,
                                    int HS, stream_t s) {
    size_t heads = (size_t)B * NH;
    int needed = (T + ATTENTION_QUERIES - 1) / ATTENTION_QUERIES, warps = ATTENTION_FORWARD_WARPS;
    while (warps > 1 && heads * ((needed + warps - 1) / warps) < 2 * (size_t)s->multiprocessors) warps--;
    int blocks = (needed + warps - 1) / warps;
    warps = (needed + blocks - 1) / blocks;
    size_t bytes = (size_t)(warps * ATTENTION_QUERIES + 4 * ATTENTION_KEYS) * attention_columns(D) * sizeof(bf16);
    launch<attention_forward_kernel<D>>(heads * blocks, warps * WARP, bytes, s, out, lse, qkv, first_key, T, NH, HS,
                                        blocks, (float)(ATTENTION_LOG2E / sqrt(HS)));
}
