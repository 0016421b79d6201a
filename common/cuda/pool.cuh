// pool.cuh: what Inception-v3 (common/models/inception.h) has beside convolutions: its 3x3 maxima and means, the resize
// of its input, and its features on their way out. Forward only; formulas and their sources stand in dev/cpu/pool.h.
//
// In the pools a thread owns N channels (8 in one access, or 1: common/cuda/rows.cuh) of one place of out and reads the
// nine cells of its window: they overlap, so x comes once from device memory and else from L2. All of them together
// move 11 MB an image in bf16, 4 us at 3 TB/s, where the convolutions take some 50 us.
//
// Look next at common/cuda/conv.cuh.
#pragma once
// defines: resample_grid, resample_place, maxpool_larger, RESAMPLE_THREADS; launch, load_values, store_values, packable
#include "common/cuda/resample.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// 3x3 windows

// The cells that exist in the window of output (i, j), in reading order; those outside are left out.
template <int N, bool MAXIMUM>
__global__ static void pool3_kernel(floatX* out,     // (B, OH, OW, row)
                                    const floatX* x, // (B, H, W, C)
                                    int H, int W, int C, int OH, int OW, int stride, int pad, int row) {
    resample_place_t p = resample_place<N>(OH, C);
    if (p.j >= OW) return;
    const floatX* image = x + p.b * H * W * C + p.c;
    int top = p.i * stride - pad, left = p.j * stride - pad, cells = 0;
    float value[N], result[N];
    for (int c = 0; c < N; c++) result[c] = MAXIMUM ? -INFINITY : 0;
    for (int k = 0; k < 9; k++) {
        int h = top + k / 3, w = left + k % 3;
        if (h < 0 || h >= H || w < 0 || w >= W) continue;
        load_values<N>(value, image + ((size_t)h * W + w) * C);
        for (int c = 0; c < N; c++) result[c] = MAXIMUM ? maxpool_larger(result[c], value[c]) : result[c] + value[c];
        cells++;
    }
    for (int c = 0; c < N; c++) result[c] = MAXIMUM ? result[c] : result[c] / (float)cells;
    store_values<N>(out + ((p.b * OH + p.i) * OW + p.j) * row + p.c, result);
}

template <bool MAXIMUM>
static inline void pool3(floatX* out, const floatX* x, int B, int H, int W, int C, int stride, int pad, int row,
                         stream_t s) {
    int OH = (H + 2 * pad - 3) / stride + 1, OW = (W + 2 * pad - 3) / stride + 1;
    if (packable(C, out, x) && row % PACKED == 0) {
        launch<pool3_kernel<PACKED, MAXIMUM>>(resample_grid<PACKED>(B, OH, OW, C), RESAMPLE_THREADS, 0, s, out, x, H, W,
                                              C, OH, OW, stride, pad, row);
    } else {
        launch<pool3_kernel<1, MAXIMUM>>(resample_grid<1>(B, OH, OW, C), RESAMPLE_THREADS, 0, s, out, x, H, W, C, OH,
                                         OW, stride, pad, row);
    }
}

void maxpool3_forward(floatX* out,     // (B, OH, OW, row), C of them
                      const floatX* x, // (B, H, W, C)
                      int B, int H, int W, int C, int stride, int pad, int row, stream_t s) {
    pool3<true>(out, x, B, H, W, C, stride, pad, row, s);
}

void avgpool3_forward(floatX* out,     // (B, H, W, C)
                      const floatX* x, // (B, H, W, C)
                      int B, int H, int W, int C, stream_t s) {
    pool3<false>(out, x, B, H, W, C, 1, 1, C, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Features

// A block owns 32 channels of an image; a warp adds up every eighth position, then warp 0 adds the sums in order.
constexpr int POOL_WARPS = 8;
__global__ static void mean_positions_kernel(floatS* out,     // (B, C)
                                             const floatX* x, // (B, HW, C)
                                             int HW, int C) {
    shared<float> sums = shared_array<float>(0, POOL_WARPS * WARP);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.y * WARP + lane;
    size_t image = blockIdx.x;
    float sum = 0;
    for (int k = warp; k < HW && c < C; k += POOL_WARPS) sum += (float)x[(image * HW + k) * C + c];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || c >= C) return;
    for (int w = 1; w < POOL_WARPS; w++) sum += sums[w * WARP + lane];
    out[image * C + c] = sum / (float)HW;
}

void mean_positions_forward(floatS* out,     // (B, C)
                            const floatX* x, // (B, HW, C)
                            int B, int HW, int C, stream_t s) {
    launch<mean_positions_kernel>(dim3(B, blocks_for(C, WARP)), POOL_WARPS * WARP, POOL_WARPS * WARP * sizeof(float), s,
                                  out, x, HW, C);
}

__global__ static void first_channels_kernel(floatS* out,     // (N, n)
                                             const floatX* x, // (N, C)
                                             size_t count, int C, int n) {
    size_t k = (size_t)blockIdx.x * RESAMPLE_THREADS + threadIdx.x;
    if (k < count) out[k] = (float)x[k / n * C + k % n];
}

void first_channels_forward(floatS* out,     // (N, n)
                            const floatX* x, // (N, C)
                            size_t N, int C, int n, stream_t s) {
    launch<first_channels_kernel>(blocks_for(N * n, RESAMPLE_THREADS), RESAMPLE_THREADS, 0, s, out, x, N * n, C, n);
}

// A warp owns one value: its lanes' sums of every 32nd product, then a tree.
__global__ static void features_matmul_kernel(floatS* out,          // (N, OC)
                                              const floatS* x,      // (N, C)
                                              const floatX* weight, // (OC, C)
                                              size_t count, int C, int OC) {
    size_t i = (size_t)blockIdx.x * POOL_WARPS + threadIdx.x / WARP;
    if (i >= count) return;
    const floatS* row = x + i / OC * C;
    const floatX* w = weight + i % OC * C;
    float sum = 0;
    for (int c = threadIdx.x % WARP; c < C; c += WARP) sum = fmaf(row[c], (float)w[c], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) out[i] = sum;
}

void features_matmul_forward(floatS* out,          // (N, OC)
                             const floatS* x,      // (N, C)
                             const floatX* weight, // (OC, C)
                             size_t N, int C, int OC, stream_t s) {
    unsigned blocks = blocks_for(N * OC, POOL_WARPS);
    launch<features_matmul_kernel>(blocks, POOL_WARPS * WARP, 0, s, out, x, weight, N * OC, C, OC);
}

// ---------------------------------------------------------------------------------------------------------------------
// The input

// Sample i of an axis lies between cells `lo` and `hi`, at `fraction` of the way.
typedef struct {
    int lo, hi;
    float fraction;
} bytes_tap_t;

__device__ static inline bytes_tap_t bytes_tap(int i, int size, int out_size, inception_input_t input) {
    float ratio = (float)size / (float)out_size;
    float at = input == INCEPTION_TF ? (float)i * ratio : ((float)i + 0.5f) * ratio - 0.5f;
    if (at < 0) at = 0;
    bytes_tap_t tap;
    tap.lo = (int)at < size - 1 ? (int)at : size - 1;
    tap.hi = tap.lo + 1 < size ? tap.lo + 1 : size - 1;
    tap.fraction = at - (float)tap.lo;
    return tap;
}

// A thread owns one value; the bytes come from the caches.
__global__ static void bytes_resize_kernel(floatX* out,          // (B, OH, OW, 3)
                                           const uint8_t* bytes, // (B, H, W, 3)
                                           inception_input_t input, size_t count, int H, int W, int OH, int OW) {
    size_t k = (size_t)blockIdx.x * RESAMPLE_THREADS + threadIdx.x;
    if (k >= count) return;
    int c = (int)(k % 3), j = (int)(k / 3 % OW), i = (int)(k / 3 / OW % OH);
    const uint8_t* image = bytes + k / 3 / OW / OH * H * W * 3 + c;
    bytes_tap_t y = bytes_tap(i, H, OH, input), x = bytes_tap(j, W, OW, input);
    float unit = input == INCEPTION_PT ? 255.0f : 1.0f, centre = input == INCEPTION_PT ? 0.5f : 128.0f, row[2];
    for (int r = 0; r < 2; r++) {
        const uint8_t* from = image + (size_t)(r ? y.hi : y.lo) * W * 3;
        float left = (float)from[x.lo * 3] / unit, right = (float)from[x.hi * 3] / unit;
        row[r] = (1.0f - x.fraction) * left + x.fraction * right;
    }
    float value = (1.0f - y.fraction) * row[0] + y.fraction * row[1];
    out[k] = (floatX)((value - centre) / centre);
}

void bytes_resize_forward(floatX* out,          // (B, OH, OW, 3)
                          const uint8_t* bytes, // (B, H, W, 3)
                          inception_input_t input, int B, int H, int W, int OH, int OW, stream_t s) {
    size_t count = (size_t)B * OH * OW * 3;
    launch<bytes_resize_kernel>(blocks_for(count, RESAMPLE_THREADS), RESAMPLE_THREADS, 0, s, out, bytes, input, count,
                                H, W, OH, OW);
}
