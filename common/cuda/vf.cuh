// vf.cuh: VA-VAE's alignment of a latent with a vision encoder. Formulas and derivation: dev/cpu/vf.h.
//
//   D_ij = zhat_i zhat_j - that_i that_j     l1 = mean_ij relu(|D_ij| - margin_distance)
//   cos_i = that_i zhat_i                    l2 = mean_i relu(1 - margin_cosine - cos_i)
//
// forward    vf_rows        norms and cos_i, a warp a token
//            vf_pairs       a tile of 64 x 64 pairs a block: both products, and the sum of what exceeds the margin
//            vf_add         a chunk a block
// backward   vf_rows, vf_pairs, which leaves T_ij = sign(D_ij) [|D_ij| > margin_distance] in a byte, and
//            vf_gradient    a tile of 64 tokens x 64 channels of dz a block
//
// dz_i is the part of dzhat_i that is perpendicular to zhat_i, hence needs zhat_i dzhat_i, over all channels. It is
// sum_j T_ij (zhat_i zhat_j), up to the pull of the teacher, and the products zhat_i zhat_j are in vf_pairs' registers:
// it adds them up by rows, a tile of columns at a time (`along`), and vf_gradient writes its tile at once, without a
// second look at the row.
//
// Plain fp32 multiply-adds, no tensor cores: a cosine rounded to bf16 would put pairs on the wrong side of the margin.
// 2 N^2 C an image forward, 3 N^2 C backward: at N = 256, C = 1024 and 64 images 8.6 and 12.9 GMAC, about 0.7 and 1 ms
// at 12 TMAC/s. A thread reads shared memory 16 times for 32 multiply-adds, which is what bounds it. This is a
// baseline's loss, not the hot path.
#pragma once
// defines: launch, shared_array, warp_sum, block_sum, blocks_for
#include "common/cuda/launch.cuh"
// defines: the contract of each function below
#include "common/ops.h"

#define VF_NORM_FLOOR 1e-12f
enum {
    VF_TILE = 64,                // tokens, or channels, of a side of a block's tile
    VF_STEP = 32,                // length of the products between two barriers
    VF_SIDE = 16,                // threads of a side: thread (y, x) has rows y + 16 i and columns x + 16 j, i, j < 4
    VF_EACH = VF_TILE / VF_SIDE, // values of a thread along a side
    VF_THREADS = VF_SIDE * VF_SIDE,
    VF_WARPS = VF_THREADS / (int)WARP,
    VF_ROW = VF_STEP + 1, // floats from row to row of a tile in shared memory; odd, so that 16 rows are in 16 banks
    VF_SHARED = VF_TILE * VF_ROW,
};

typedef struct {
    float z_inverse, teacher_inverse; // 1 / max(norm, floor)
    float cosine;                     // that_i zhat_i
    int floored;                      // |z_i| is below the floor: zhat_i = z_i / constant
} vf_token_t;

// One warp a token.
__global__ static void vf_rows(vf_token_t* tokens,    // (rows)
                               const floatX* z,       // (rows, C)
                               const floatX* teacher, // (rows, C)
                               size_t rows, int C) {
    size_t row = (size_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    float zz = 0, tt = 0, zt = 0;
    for (int c = (int)threadIdx.x % WARP; c < C; c += WARP) {
        float a = (float)z[row * C + c], b = (float)teacher[row * C + c];
        zz += a * a;
        tt += b * b;
        zt += a * b;
    }
    zz = sqrtf(warp_sum(zz));
    tt = sqrtf(warp_sum(tt));
    zt = warp_sum(zt);
    if (threadIdx.x % WARP) return;
    vf_token_t token;
    token.z_inverse = 1 / fmaxf(zz, VF_NORM_FLOOR);
    token.teacher_inverse = 1 / fmaxf(tt, VF_NORM_FLOOR);
    token.cosine = zt * token.z_inverse * token.teacher_inverse;
    token.floored = zz < VF_NORM_FLOOR;
    tokens[row] = token;
}

// Unit rows [row, row + VF_TILE) and columns [c, c + VF_STEP) of one image's x to shared memory; zeros outside.
__device__ static inline void vf_load_tile(shared<float> tile,       // (VF_TILE, VF_ROW)
                                           const floatX* x,          // (N, C)
                                           const vf_token_t* tokens, // (N)
                                           bool teacher, int row, int c, int N, int C) {
    for (int i = (int)threadIdx.x; i < VF_TILE * VF_STEP; i += VF_THREADS) {
        int r = row + i / VF_STEP, k = c + i % VF_STEP;
        float value = 0;
        if (r < N && k < C) {
            value = (float)x[(size_t)r * C + k] * (teacher ? tokens[r].teacher_inverse : tokens[r].z_inverse);
        }
        tile[i / VF_STEP * VF_ROW + i % VF_STEP] = value;
    }
}

// Grid: (tiles of columns, tiles of rows, images).
__global__ static void vf_pairs(float* partial,           // (B, tiles, tiles) sums of relu(|D| - margin), or NULL
                                signed char* T,           // (B, N, N), or NULL
                                float* along,             // (B, tiles, N) sums of T_ij (zhat_i zhat_j), or NULL
                                const floatX* z,          // (B, N, C)
                                const floatX* teacher,    // (B, N, C)
                                const vf_token_t* tokens, // (B, N)
                                float margin, int N, int C) {
    const size_t tile = VF_SHARED * sizeof(float);
    shared<float> zi = shared_array<float>(0 * tile, VF_SHARED), zj = shared_array<float>(1 * tile, VF_SHARED);
    shared<float> ti = shared_array<float>(2 * tile, VF_SHARED), tj = shared_array<float>(3 * tile, VF_SHARED);
    shared<float> work = shared_array<float>(4 * tile, WARP);
    int x = (int)threadIdx.x % VF_SIDE, y = (int)threadIdx.x / VF_SIDE;
    int row = (int)blockIdx.y * VF_TILE, column = (int)blockIdx.x * VF_TILE;
    size_t image = blockIdx.z;
    z += image * N * C;
    teacher += image * N * C;
    tokens += image * N;
    float zz[VF_EACH][VF_EACH] = {}, tt[VF_EACH][VF_EACH] = {};
    for (int c = 0; c < C; c += VF_STEP) {
        vf_load_tile(zi, z, tokens, false, row, c, N, C);
        vf_load_tile(zj, z, tokens, false, column, c, N, C);
        vf_load_tile(ti, teacher, tokens, true, row, c, N, C);
        vf_load_tile(tj, teacher, tokens, true, column, c, N, C);
        __syncthreads();
        for (int k = 0; k < VF_STEP; k++) {
            for (int i = 0; i < VF_EACH; i++) {
                float z_row = zi[(y + i * VF_SIDE) * VF_ROW + k], t_row = ti[(y + i * VF_SIDE) * VF_ROW + k];
                for (int j = 0; j < VF_EACH; j++) {
                    zz[i][j] += z_row * zj[(x + j * VF_SIDE) * VF_ROW + k];
                    tt[i][j] += t_row * tj[(x + j * VF_SIDE) * VF_ROW + k];
                }
            }
        }
        __syncthreads();
    }
    float sum = 0;
    for (int i = 0; i < VF_EACH; i++) {
        float row_along = 0;
        int r = row + y + i * VF_SIDE;
        for (int j = 0; j < VF_EACH; j++) {
            int q = column + x + j * VF_SIDE;
            if (r >= N || q >= N) continue;
            float difference = zz[i][j] - tt[i][j], excess = fabsf(difference) - margin;
            int sign = excess > 0 ? (difference > 0) - (difference < 0) : 0;
            if (!(excess <= 0)) sum += excess; // a NaN passes
            row_along += (float)sign * zz[i][j];
            if (T) T[image * N * N + (size_t)r * N + q] = (signed char)sign;
        }
        for (int lane = VF_SIDE / 2; lane > 0; lane /= 2) row_along += __shfl_xor_sync(0xffffffffu, row_along, lane);
        if (along && x == 0 && r < N) along[(image * gridDim.x + blockIdx.x) * N + r] = row_along;
    }
    if (!partial) return;
    sum = block_sum(sum, work);
    if (threadIdx.x == 0) partial[(image * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

// Block k: the loss of chunk k. `pairs` and `cosines` are the weights of the two sums.
__global__ static void vf_add(float* loss,              // (B / chunk)
                              const float* partial,     // (B, tiles, tiles)
                              const vf_token_t* tokens, // (B, N)
                              float pairs, float cosines, float margin_cosine,
                              size_t partials, size_t rows) { // of a chunk
    shared<float> work = shared_array<float>(0, WARP);
    float distance = 0, cosine = 0;
    for (size_t i = threadIdx.x; i < partials; i += blockDim.x) distance += partial[blockIdx.x * partials + i];
    for (size_t i = threadIdx.x; i < rows; i += blockDim.x) {
        float excess = 1 - margin_cosine - tokens[blockIdx.x * rows + i].cosine;
        if (!(excess <= 0)) cosine += excess;
    }
    float sum = block_sum(pairs * distance + cosines * cosine, work);
    if (threadIdx.x == 0) loss[blockIdx.x] = sum;
}

static inline size_t vf_pairs_shared_bytes(void) { return (4 * VF_SHARED + (int)WARP) * sizeof(float); }

void vf_forward(floatS* loss,          // (B / chunk)
                const floatX* z,       // (B, N, C) projected latent
                const floatX* teacher, // (B, N, C)
                double margin_distance, double margin_cosine, int B, int N, int C, int chunk, stream_t s) {
    size_t rows = (size_t)B * N;
    unsigned tiles = blocks_for((size_t)N, VF_TILE);
    size_t bytes = rows * sizeof(vf_token_t) + (size_t)B * tiles * tiles * sizeof(float);
    vf_token_t* tokens = (vf_token_t*)device_scratch(s, bytes);
    float* partial = (float*)(tokens + rows);
    launch<vf_rows>(blocks_for(rows, VF_WARPS), VF_THREADS, 0, s, tokens, z, teacher, rows, C);
    launch<vf_pairs>(dim3(tiles, tiles, B), VF_THREADS, vf_pairs_shared_bytes(), s, partial, nullptr, nullptr, z,
                     teacher, tokens, (float)margin_distance, N, C);
    float pairs = (float)(1 / ((double)chunk * N * N)), cosines = (float)(1 / ((double)chunk * N));
    launch<vf_add>(B / chunk, VF_THREADS, WARP * sizeof(float), s, loss, partial, tokens, pairs, cosines,
                   (float)margin_cosine, (size_t)chunk * tiles * tiles, (size_t)chunk * N);
}

//   dz_i = (push sum_j T_ij zhat_j - pull_i that_i - along_i zhat_i) / |z_i|
//   along_i = push sum_j T_ij (zhat_i zhat_j) - pull_i cos_i, or 0 where |z_i| is below the floor
// with push = 2 share / N^2 and pull_i = share / N [1 - margin_cosine - cos_i > 0], share an image's part of the
// objective. Grid: (tiles of channels, tiles of tokens, images); VF_STEP tokens j at a time pass through shared memory.
__global__ static void vf_gradient(floatX* dz,               // (B, N, C)
                                   const signed char* T,     // (B, N, N)
                                   const float* along,       // (B, tiles, N)
                                   const floatX* z,          // (B, N, C)
                                   const floatX* teacher,    // (B, N, C)
                                   const vf_token_t* tokens, // (B, N)
                                   float push, float pull_all, float margin_cosine, int N, int C) {
    shared<float> signs = shared_array<float>(0, VF_SHARED);                                // (VF_TILE, VF_ROW)
    shared<float> unit = shared_array<float>(VF_SHARED * sizeof(float), VF_STEP * VF_TILE); // (VF_STEP, VF_TILE)
    int x = (int)threadIdx.x % VF_SIDE, y = (int)threadIdx.x / VF_SIDE;
    int row = (int)blockIdx.y * VF_TILE, channel = (int)blockIdx.x * VF_TILE, tiles = (int)gridDim.y;
    size_t image = blockIdx.z;
    T += image * N * N;
    z += image * N * C;
    tokens += image * N;
    float sum[VF_EACH][VF_EACH] = {};
    for (int j0 = 0; j0 < N; j0 += VF_STEP) {
        for (int i = (int)threadIdx.x; i < VF_TILE * VF_STEP; i += VF_THREADS) {
            int r = row + i / VF_STEP, q = j0 + i % VF_STEP;
            signs[i / VF_STEP * VF_ROW + i % VF_STEP] = r < N && q < N ? (float)T[(size_t)r * N + q] : 0;
            int j = j0 + i / VF_TILE, c = channel + i % VF_TILE;
            unit[i] = j < N && c < C ? (float)z[(size_t)j * C + c] * tokens[j].z_inverse : 0;
        }
        __syncthreads();
        for (int k = 0; k < VF_STEP; k++) {
            for (int i = 0; i < VF_EACH; i++) {
                float sign = signs[(y + i * VF_SIDE) * VF_ROW + k];
                for (int j = 0; j < VF_EACH; j++) sum[i][j] += sign * unit[k * VF_TILE + x + j * VF_SIDE];
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < VF_EACH; i++) {
        int r = row + y + i * VF_SIDE;
        if (r >= N) continue;
        vf_token_t token = tokens[r];
        float pull = 1 - margin_cosine - token.cosine > 0 ? pull_all : 0, row_along = 0;
        for (int t = 0; t < tiles; t++) row_along += along[(image * tiles + t) * N + r];
        row_along = token.floored ? 0 : push * row_along - pull * token.cosine;
        for (int j = 0; j < VF_EACH; j++) {
            int c = channel + x + j * VF_SIDE;
            if (c >= C) continue;
            size_t at = (size_t)r * C + c;
            float teacher_unit = (float)teacher[image * N * C + at] * token.teacher_inverse;
            float d = push * sum[i][j] - pull * teacher_unit - row_along * ((float)z[at] * token.z_inverse);
            dz[image * N * C + at] = (floatX)(token.z_inverse * d);
        }
    }
}

void vf_backward(floatX* dz,            // (B, N, C)
                 const floatX* z,       // (B, N, C)
                 const floatX* teacher, // (B, N, C)
                 double margin_distance, double margin_cosine, double scale, int B, int N, int C, int chunk,
                 stream_t s) {
    size_t rows = (size_t)B * N;
    unsigned tiles = blocks_for((size_t)N, VF_TILE);
    size_t bytes = rows * (sizeof(vf_token_t) + tiles * sizeof(float) + (size_t)N);
    vf_token_t* tokens = (vf_token_t*)device_scratch(s, bytes);
    float* along = (float*)(tokens + rows);
    signed char* T = (signed char*)(along + rows * tiles);
    launch<vf_rows>(blocks_for(rows, VF_WARPS), VF_THREADS, 0, s, tokens, z, teacher, rows, C);
    launch<vf_pairs>(dim3(tiles, tiles, B), VF_THREADS, vf_pairs_shared_bytes(), s, nullptr, T, along, z, teacher,
                     tokens, (float)margin_distance, N, C);
    double share = scale / chunk;
    launch<vf_gradient>(dim3(blocks_for((size_t)C, VF_TILE), tiles, B), VF_THREADS,
                        (VF_SHARED + VF_STEP * VF_TILE) * sizeof(float), s, dz, T, along, z, teacher, tokens,
                        (float)(2 * share / ((double)N * N)), (float)(share / N), (float)margin_cosine, N, C);
}
