// layernorm.cuh: LayerNorm, alone and behind a residual branch. The first kernels to read: all are written like these.
//
//   mean = sum_c x_c / C,   var = sum_c (x_c - mean)^2 / C,   rstd = 1 / sqrt(var + eps)
//   xhat_c = (x_c - mean) rstd,   out_c = xhat_c weight_c + bias_c
//   dx_c += rstd (h_c - mean(h) - xhat_c mean(h xhat)),   h_c = dout_c weight_c        derived in dev/cpu/layernorm.h
//
// What limits them is memory: the 20 to 50 instructions for a value are less than half of what an H100 can do in the
// time in which it moves the value's bytes (at 3 TB/s). So the thing to do is to read and write each tensor once, and
// to have enough reads under way: a read takes some 700 ns, in which a multiprocessor's share of 3 TB/s is 16 KB.
//
// Who owns what. A row belongs to one warp. Thread x takes the columns 8x .. 8x + 7 with one 16-byte read, the warp
// together 512 consecutive bytes; then the next 256 columns, four times in all: C = 1024 of the ViT-L fills a warp
// exactly. The row then stays in registers until it is done: the variance is taken around the mean by a second look at
// the registers, which costs nothing (E[x^2] - E[x]^2 would cancel). Sums over a row are five exchanges between the
// threads of the warp. A block is ROW_WARPS such warps, which share nothing but their place on the multiprocessor.
// A longer row gets a block of its own, of as many warps as it needs; its sums then cross shared memory (row_sum).
//
// The residual stream (x, sum and their gradients) is floatS, all else floatX. Bytes at (64 images of 257 tokens, 1024)
// in the bf16 build, where a tensor of the stream is 67.4 MB and any other 33.7 MB, and the time at 3 TB/s:
//   layernorm_forward            101 MB: x; out                              34 us
//   residual_layernorm_forward   202 MB: x, y; sum, out                      67 us
//   layernorm_backward           236 MB: dout, x, dx; dx                     79 us
//   residual_layernorm_backward  303 MB: dout, sum, dsum, y; dsum, dy       101 us
// Statistics, weights and the parts of sums are 2% of that or less.
//
// Look next at common/cuda/groupnorm.cuh, where the values that share a mean are more than a block can hold.
#pragma once
// defines: floatX, floatS, launch, shared_array, warp_sum, block_sum, blocks_for
#include "common/cuda/launch.cuh"
// defines: layernorm_forward, layernorm_backward, residual_layernorm_forward, residual_layernorm_backward
#include "common/ops.h"
// defines: PACKED, packable, load_values, store_values, add_parts
#include "common/cuda/rows.cuh"

constexpr int ROW_WARPS = 8;                      // warps of a block, and the most that share a row
constexpr size_t ROW_WORK = WARP * sizeof(float); // bytes of shared memory for row_sum, at the beginning

// Values of a row that a thread holds: four accesses, or 16 values where an access is one value.
template <int N> constexpr int lane_values = N == 1 ? 16 : 4 * N;

// The block for rows of C values: threadIdx.x is the thread within the row, threadIdx.y the row within the block.
template <int N> static inline dim3 layernorm_block(int C) {
    int warps = (int)blocks_for(C, WARP * lane_values<N>);
    if (warps > ROW_WARPS) fatal("a LayerNorm over %d values; %d are the most", C, ROW_WARPS * WARP * lane_values<N>);
    return warps == 1 ? dim3(WARP, ROW_WARPS) : dim3(WARP * warps, 1);
}

// A thread's i-th group of N neighbouring values begins at this column. It may lie behind the end of the row.
template <int N> __device__ static inline int layernorm_column(int i) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    return warp * WARP * lane_values<N> + lane * N + i * WARP * N;
}

// The sum over the threads that share a row, in each of them.
__device__ static inline float row_sum(float x) {
    return blockDim.x == WARP ? warp_sum(x) : block_sum(x, shared_array<float>(0, WARP));
}

// A thread's values of a row, and zeros behind its end.
template <int N, typename T, typename M>
__device__ static inline void load_row(T value[lane_values<N>], const M* row, int C) {
    for (int i = 0; i < lane_values<N> / N; i++) {
        int c = layernorm_column<N>(i);
        for (int k = 0; k < N; k++) value[i * N + k] = (T)0.0f;
        if (c < C) load_values<N>(value + i * N, row + c);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

// sum = x + gamma y, then its norm; with y = NULL the norm of x. One row a warp, or a block.
template <int N>
__global__ static void layernorm_forward_kernel(floatS* sum,                // (rows, C), written where there is a y
                                                floatX* out,                // (rows, C)
                                                floatS* mean, floatS* rstd, // (rows), mean NULL: RMSNorm
                                                const floatS* x,            // (rows, C)
                                                const floatX* y,            // (rows, C) or NULL
                                                const floatX* gamma,        // (C) or NULL
                                                const floatX* weight,       // (C)
                                                const floatX* bias,         // (C) or NULL
                                                size_t rows, int C, float eps) {
    size_t row = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return; // all threads that share the row leave together
    float value[lane_values<N>];
    load_row<N>(value, x + row * C, C);
    if (y) {
        float branch[lane_values<N>];
        load_row<N>(branch, y + row * C, C);
        for (int i = 0; i < lane_values<N> / N; i++) {
            int c = layernorm_column<N>(i);
            if (c >= C) continue;
            float scale[N];
            if (gamma) load_values<N>(scale, gamma + c);
            for (int k = 0; k < N; k++) value[i * N + k] += (gamma ? scale[k] : 1) * branch[i * N + k];
            store_values<N>(sum + row * C + c, value + i * N);
        }
    }
    float total = 0, squares = 0;
    for (int j = 0; j < lane_values<N>; j++) total += value[j];
    float m = mean ? row_sum(total) / C : 0;
    for (int j = 0; j < lane_values<N>; j++) {
        float d = layernorm_column<N>(j / N) < C ? value[j] - m : 0;
        squares += d * d;
    }
    float r = 1 / sqrtf(row_sum(squares) / C + eps);
    for (int i = 0; i < lane_values<N> / N; i++) {
        int c = layernorm_column<N>(i);
        if (c >= C) continue;
        float w[N], b[N] = {};
        load_values<N>(w, weight + c);
        if (bias) load_values<N>(b, bias + c);
        for (int k = 0; k < N; k++) w[k] = (value[i * N + k] - m) * r * w[k] + b[k];
        store_values<N>(out + row * C + c, w);
    }
    if (threadIdx.x == 0) {
        if (mean) mean[row] = m;
        rstd[row] = r;
    }
}

// sum and y NULL: the norm alone.
template <int N>
static inline void layernorm_launch_forward(floatS* sum, floatX* out, floatS* mean, floatS* rstd, const floatS* x,
                                            const floatX* y, const floatX* gamma, const floatX* weight,
                                            const floatX* bias, size_t rows, int C, double eps, stream_t s) {
    dim3 block = layernorm_block<N>(C);
    launch<layernorm_forward_kernel<N>>(blocks_for(rows, block.y), block, ROW_WORK, s, sum, out, mean, rstd, x, y,
                                        gamma, weight, bias, rows, C, (float)eps);
}

void layernorm_forward(floatX* out,                   // (N, C)
                       floatS* mean, floatS* rstd,    // (N)
                       const floatS* x,               // (N, C)
                       const floatX* weight,          // (C)
                       const floatX* bias,            // (C)
                       size_t N, int C, double eps, stream_t s) {
    int packed = packable(C, out, x, weight, bias);
    (packed ? layernorm_launch_forward<PACKED> : layernorm_launch_forward<1>)
        (NULL, out, mean, rstd, x, NULL, NULL, weight, bias, N, C, eps, s);
}

void residual_layernorm_forward(floatS* sum,                // (N, C)
                                floatX* out,                // (N, C)
                                floatS* mean, floatS* rstd, // (N)
                                const floatS* x,            // (N, C)
                                const floatX* y,            // (N, C)
                                const floatX* gamma,        // (C) or NULL
                                const floatX* weight,       // (C)
                                const floatX* bias,         // (C)
                                size_t N, int C, double eps, stream_t s) {
    int packed = packable(C, sum, out, x, y, gamma, weight, bias);
    (packed ? layernorm_launch_forward<PACKED> : layernorm_launch_forward<1>)
        (sum, out, mean, rstd, x, y, gamma, weight, bias, N, C, eps, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward
//
// dx runs along rows, the gradients of the parameters run down columns. A warp visits many rows, and as its threads own
// the same columns in all of them, each thread keeps the three sums of its 32 columns in registers: 96 of its 255. That
// leaves room for one block of 8 warps on a multiprocessor. To keep memory busy with so few, a warp asks for all that
// it needs of a row at once (24 accesses a thread, 12 KB a warp), before it waits for any. The grid is as large as the
// machine; at the end the warps of a block are added in shared memory, and each block writes one part: on an H100 132
// parts of 12 KB, which add_parts adds.

// Adds the three sums of each thread over the warps of the block, one after the other, and writes the block's part.
// Value j of thread x lies at j blockDim.x + x, so that a warp's accesses fall into 32 different banks.
template <int N>
__device__ static inline void layernorm_write_part(float* part,                       // (3, C)
                                                   const float sum[3][lane_values<N>], int C) {
    constexpr int values = lane_values<N>;
    int x = threadIdx.x, width = blockDim.x;
    shared<float> total = shared_array<float>(ROW_WORK, (size_t)3 * values * width);
    for (int turn = 0; turn < (int)blockDim.y; turn++) {
        if (turn == (int)threadIdx.y) {
            for (int k = 0; k < 3; k++) {
                for (int j = 0; j < values; j++) {
                    int at = (k * values + j) * width + x;
                    float before = 0;
                    if (turn > 0) before = total[at];
                    total[at] = before + sum[k][j];
                }
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.y; i < 3 * values; i += blockDim.y) {
        int k = i / values, j = i % values, c = layernorm_column<N>(j / N) + j % N;
        if (c < C) part[(size_t)k * C + c] = total[i * width + x];
    }
}

// A warp (a block, where rows are long) takes row blockIdx.x blockDim.y + threadIdx.y and then every
// (gridDim.x blockDim.y)-th.
template <int N>
__global__ static void layernorm_backward_kernel(floatS* dx,                             // (rows, C) +=
                                                 floatX* dy,                             // (rows, C) or NULL
                                                 float* parts,                           // (blocks, 3, C) or NULL
                                                 const floatX* dout,                     // (rows, C)
                                                 const floatS* x,                        // (rows, C)
                                                 const floatX* y,                        // (rows, C) or NULL
                                                 const floatX* gamma,                    // (C) or NULL
                                                 const floatX* weight,                   // (C)
                                                 const floatS* mean, const floatS* rstd, // (rows)
                                                 size_t rows, int C) {
    constexpr int values = lane_values<N>;
    float sum[3][values] = {}; // of dweight, dbias, dgamma
    size_t step = (size_t)gridDim.x * blockDim.y;
    for (size_t row = (size_t)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += step) {
        float x_row[values], dx_row[values];
        floatX dout_row[values], y_row[values]; // a bf16 is half a register
        float m = mean[row], r = rstd[row], sum_h = 0, sum_h_xhat = 0;
        if (y) load_row<N>(y_row, y + row * C, C); // behind the others nvcc would run out of registers
        load_row<N>(x_row, x + row * C, C);
        load_row<N>(dout_row, dout + row * C, C);
        load_row<N>(dx_row, dx + row * C, C);
        for (int i = 0; i < values / N; i++) { // behind the end of the row dout is 0, and so is every term
            float w[N] = {};
            if (layernorm_column<N>(i) < C) load_values<N>(w, weight + layernorm_column<N>(i));
            for (int k = 0; k < N; k++) {
                int j = i * N + k;
                float d = (float)dout_row[j], h = d * w[k], xhat = (x_row[j] - m) * r;
                sum_h += h;
                sum_h_xhat += h * xhat;
                sum[0][j] += d * xhat;
                sum[1][j] += d;
            }
        }
        float mean_h = row_sum(sum_h) / C, mean_h_xhat = row_sum(sum_h_xhat) / C;
        for (int i = 0; i < values / N; i++) {
            int c = layernorm_column<N>(i);
            if (c >= C) continue;
            float w[N], scale[N], d[N];
            load_values<N>(w, weight + c);
            for (int k = 0; k < N; k++) {
                int j = i * N + k;
                float h = (float)dout_row[j] * w[k], xhat = (x_row[j] - m) * r;
                d[k] = dx_row[j] + r * (h - mean_h - xhat * mean_h_xhat);
                if (y) sum[2][j] += d[k] * (float)y_row[j];
            }
            store_values<N>(dx + row * C + c, d);
            if (!dy) continue;
            if (gamma) load_values<N>(scale, gamma + c);
            for (int k = 0; k < N; k++) d[k] *= gamma ? scale[k] : 1;
            store_values<N>(dy + row * C + c, d);
        }
    }
    if (parts) layernorm_write_part<N>(parts + (size_t)blockIdx.x * 3 * C, sum, C);
}

// dy NULL: there is no branch.
template <int N>
static inline void layernorm_launch_backward(floatS* dx, floatX* dy, floatS* dgamma, floatS* dweight, floatS* dbias,
                                             const floatX* dout, const floatS* x, const floatX* y, const floatX* gamma,
                                             const floatX* weight, const floatS* mean, const floatS* rstd, size_t rows,
                                             int C, stream_t s) {
    dim3 block = layernorm_block<N>(C);
    size_t blocks = blocks_for(rows, block.y), machine = s->multiprocessors * (ROW_WARPS * WARP / (block.x * block.y));
    if (blocks > machine) blocks = machine;
    size_t shared_bytes = ROW_WORK + 3 * lane_values<N> * block.x * sizeof(float);
    float* parts = dweight || dgamma ? (float*)device_scratch(s, blocks * 3 * C * sizeof(float)) : NULL;
    launch<layernorm_backward_kernel<N>>((unsigned)blocks, block, shared_bytes, s, dx, dy, parts, dout, x,
                                         dgamma ? y : NULL, gamma, weight, mean, rstd, rows, C);
    add_parts(dweight, dbias, dgamma, parts, blocks, 3, C, s);
}

void layernorm_backward(floatS* dx,                               // (N, C) +=
                        floatS* dweight, floatS* dbias,           // (C) or both NULL
                        const floatX* dout,                       // (N, C)
                        const floatS* x,                          // (N, C)
                        const floatX* weight,                     // (C)
                        const floatS* mean, const floatS* rstd,   // (N)
                        size_t N, int C, stream_t s) {
    int packed = packable(C, dx, dout, x, weight);
    (packed ? layernorm_launch_backward<PACKED> : layernorm_launch_backward<1>)
        (dx, NULL, NULL, dweight, dbias, dout, x, NULL, NULL, weight, mean, rstd, N, C, s);
}

void residual_layernorm_backward(floatS* dsum,                             // (N, C) +=
                                 floatX* dy,                               // (N, C)
                                 floatS* dgamma,                           // (C) or NULL
                                 floatS* dweight, floatS* dbias,           // (C) or both NULL
                                 const floatX* dout,                       // (N, C)
                                 const floatS* sum,                        // (N, C)
                                 const floatX* y,                          // (N, C), needed for dgamma
                                 const floatX* gamma,                      // (C) or NULL
                                 const floatX* weight,                     // (C)
                                 const floatS* mean, const floatS* rstd,   // (N)
                                 size_t N, int C, stream_t s) {
    int packed = packable(C, dsum, dy, dout, sum, y, gamma, weight);
    (packed ? layernorm_launch_backward<PACKED> : layernorm_launch_backward<1>)
        (dsum, dy, gamma ? dgamma : NULL, dweight, dbias, dout, sum, y, gamma, weight, mean, rstd, N, C, s);
}
