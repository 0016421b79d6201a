// resample.cuh: changes of a feature map's resolution that have no weights: 2x2 maximum, and nearest neighbour to twice
// the size.
//
//   maxpool    out[i, j] = max of x[2i + a, 2j + b],  a, b in {0, 1}        (VGG16)
//   upsample   out[2i + a, 2j + b] = x[i, j]                                (the decoder, before a 3x3 convolution)
//
// A thread owns N channels (8 in one access, or 1: common/cuda/rows.cuh) of one place of the smaller map, so the four
// places that belong to it are its own: each value is read and written once, and a gradient that is added in place is
// read by the thread that writes it. A row of the smaller map is blockIdx.x; its places and channels are cut into
// blocks along y. In units of the larger map's bytes:
//
//   maxpool_forward 1.25   maxpool_relu_backward 2.25 (x, dx, dout), with add 3.25   upsample 1.25 either way
//
// At 64 images in bf16 and 3 TB/s: the maximum over (256 x 256, 64), 537 MB, takes 0.22 ms forward and 0.58 ms backward
// with add; the upsampling to (256 x 256, 128), 1.07 GB, 0.45 ms.
//
// Look next at common/cuda/conv.cuh.
#pragma once
// defines: floatX, launch, blocks_for
#include "common/cuda/launch.cuh"
// defines: maxpool_forward, maxpool_relu_backward, upsample_forward, upsample_backward
#include "common/ops.h"
// defines: PACKED, packable, load_values, store_values
#include "common/cuda/rows.cuh"

constexpr int RESAMPLE_THREADS = 256;

// For H rows in B images of W places with C channels each.
template <int N> static inline dim3 resample_grid(int B, int H, int W, int C) {
    return dim3(B * H, blocks_for((size_t)W * (C / N), RESAMPLE_THREADS));
}

// A thread's place (i, j) of image b of a map with H rows and W columns, and its channels, from c on. At the end of a
// row there are threads without a place: j >= W.
typedef struct {
    size_t b;
    int i, j, c;
} resample_place_t;

template <int N> __device__ static inline resample_place_t resample_place(int H, int C) {
    int packs = C / N, index = blockIdx.y * RESAMPLE_THREADS + threadIdx.x;
    resample_place_t p = {blockIdx.x / H, (int)(blockIdx.x % H), index / packs, index % packs * N};
    return p;
}

// ---------------------------------------------------------------------------------------------------------------------
// Maximum

// The larger of two. A NaN in the first place or met on the way stays: a broken map must not look sound.
__device__ static inline float maxpool_larger(float best, float value) {
    return value > best || value != value ? value : best;
}

template <int N>
__global__ static void maxpool_forward_kernel(floatX* out,     // (B, H/2, W/2, C)
                                              const floatX* x, // (B, H, W, C)
                                              int H, int W, int C) {
    resample_place_t p = resample_place<N>(H / 2, C);
    if (p.j >= W / 2) return;
    const floatX* from = x + ((p.b * H + 2 * p.i) * W + 2 * p.j) * C + p.c;
    float value[4][N]; // the window's places in reading order
    for (int k = 0; k < 4; k++) load_values<N>(value[k], from + ((size_t)(k / 2) * W + k % 2) * C);
    for (int k = 1; k < 4; k++) {
        for (int c = 0; c < N; c++) value[0][c] = maxpool_larger(value[0][c], value[k][c]);
    }
    store_values<N>(out + ((p.b * (H / 2) + p.i) * (W / 2) + p.j) * C + p.c, value[0]);
}

void maxpool_forward(floatX* out,     // (B, H/2, W/2, C)
                     const floatX* x, // (B, H, W, C)
                     int B, int H, int W, int C, stream_t s) {
    if (H < 2 || W < 2) return;
    if (packable(C, out, x)) {
        dim3 grid = resample_grid<PACKED>(B, H / 2, W / 2, C);
        launch<maxpool_forward_kernel<PACKED>>(grid, RESAMPLE_THREADS, 0, s, out, x, H, W, C);
    } else {
        dim3 grid = resample_grid<1>(B, H / 2, W / 2, C);
        launch<maxpool_forward_kernel<1>>(grid, RESAMPLE_THREADS, 0, s, out, x, H, W, C);
    }
}

// The first place of a window, in reading order, that holds the maximum gets dout.
template <int N>
__global__ static void maxpool_relu_backward_kernel(floatX* dx,         // (B, H, W, C), may be add
                                                    const floatX* dout, // (B, H/2, W/2, C)
                                                    const floatX* add,  // (B, H, W, C) or NULL
                                                    const floatX* x,    // (B, H, W, C)
                                                    int H, int W, int C) {
    resample_place_t p = resample_place<N>(H / 2, C);
    if (p.j >= W / 2) return;
    size_t corner = ((p.b * H + 2 * p.i) * W + 2 * p.j) * C + p.c, at[4];
    float value[4][N], d[4][N] = {}, share[N];
    for (int k = 0; k < 4; k++) at[k] = corner + ((size_t)(k / 2) * W + k % 2) * C;
    for (int k = 0; k < 4; k++) load_values<N>(value[k], x + at[k]);
    load_values<N>(share, dout + ((p.b * (H / 2) + p.i) * (W / 2) + p.j) * C + p.c);
    for (int k = 0; add && k < 4; k++) load_values<N>(d[k], add + at[k]);
    for (int c = 0; c < N; c++) { // the upper row has the maximum or the lower one, then the left or the right place
        int left_above = value[0][c] >= value[1][c], left_below = value[2][c] >= value[3][c];
        int above = (left_above ? value[0][c] : value[1][c]) >= (left_below ? value[2][c] : value[3][c]);
        int first = above ? 1 - left_above : 3 - left_below;
        for (int k = 0; k < 4; k++) {
            d[k][c] += k == first ? share[c] : 0;
            d[k][c] = value[k][c] > 0 ? d[k][c] : 0;
        }
    }
    for (int k = 0; k < 4; k++) store_values<N>(dx + at[k], d[k]);
}

// An odd last row or column is in no window: only `add` arrives there. One value a thread; most have nothing to do.
__global__ static void maxpool_relu_edge_kernel(floatX* dx,        // (B, H, W, C), may be add
                                                const floatX* add, // (B, H, W, C) or NULL
                                                const floatX* x,   // (B, H, W, C)
                                                int H, int W, int C) {
    resample_place_t p = resample_place<1>(H, C);
    size_t at = ((p.b * H + p.i) * W + p.j) * C + p.c;
    if (p.j >= W || (p.i < H / 2 * 2 && p.j < W / 2 * 2)) return;
    dx[at] = add && (float)x[at] > 0 ? add[at] : (floatX)0.0f;
}

void maxpool_relu_backward(floatX* dx,         // (B, H, W, C)
                           const floatX* dout, // (B, H/2, W/2, C)
                           const floatX* add,  // (B, H, W, C) or NULL
                           const floatX* x,    // (B, H, W, C)
                           int B, int H, int W, int C, stream_t s) {
    if (H >= 2 && W >= 2 && packable(C, dx, dout, add, x)) {
        dim3 grid = resample_grid<PACKED>(B, H / 2, W / 2, C);
        launch<maxpool_relu_backward_kernel<PACKED>>(grid, RESAMPLE_THREADS, 0, s, dx, dout, add, x, H, W, C);
    } else if (H >= 2 && W >= 2) {
        dim3 grid = resample_grid<1>(B, H / 2, W / 2, C);
        launch<maxpool_relu_backward_kernel<1>>(grid, RESAMPLE_THREADS, 0, s, dx, dout, add, x, H, W, C);
    }
    if (H % 2 == 0 && W % 2 == 0) return;
    launch<maxpool_relu_edge_kernel>(resample_grid<1>(B, H, W, C), RESAMPLE_THREADS, 0, s, dx, add, x, H, W, C);
}

// ---------------------------------------------------------------------------------------------------------------------
// Nearest neighbour

template <int N>
__global__ static void upsample_forward_kernel(floatX* out,     // (B, 2H, 2W, C)
                                               const floatX* x, // (B, H, W, C)
                                               int H, int W, int C) {
    resample_place_t p = resample_place<N>(H, C);
    if (p.j >= W) return;
    floatX* to = out + ((p.b * 2 * H + 2 * p.i) * 2 * W + 2 * p.j) * C + p.c;
    float value[N];
    load_values<N>(value, x + ((p.b * H + p.i) * W + p.j) * C + p.c);
    for (int k = 0; k < 4; k++) store_values<N>(to + ((size_t)(k / 2) * 2 * W + k % 2) * C, value);
}

void upsample_forward(floatX* out,     // (B, 2H, 2W, C)
                      const floatX* x, // (B, H, W, C)
                      int B, int H, int W, int C, stream_t s) {
    if (packable(C, out, x)) {
        dim3 grid = resample_grid<PACKED>(B, H, W, C);
        launch<upsample_forward_kernel<PACKED>>(grid, RESAMPLE_THREADS, 0, s, out, x, H, W, C);
    } else {
        launch<upsample_forward_kernel<1>>(resample_grid<1>(B, H, W, C), RESAMPLE_THREADS, 0, s, out, x, H, W, C);
    }
}

// A value is read at four places, so its gradient is the sum of theirs.
template <int N>
__global__ static void upsample_backward_kernel(floatX* dx,         // (B, H, W, C)
                                                const floatX* dout, // (B, 2H, 2W, C)
                                                int H, int W, int C) {
    resample_place_t p = resample_place<N>(H, C);
    if (p.j >= W) return;
    const floatX* from = dout + ((p.b * 2 * H + 2 * p.i) * 2 * W + 2 * p.j) * C + p.c;
    float value[4][N];
    for (int k = 0; k < 4; k++) load_values<N>(value[k], from + ((size_t)(k / 2) * 2 * W + k % 2) * C);
    for (int c = 0; c < N; c++) value[0][c] = (value[0][c] + value[1][c]) + (value[2][c] + value[3][c]);
    store_values<N>(dx + ((p.b * H + p.i) * W + p.j) * C + p.c, value[0]);
}

void upsample_backward(floatX* dx,         // (B, H, W, C)
                       const floatX* dout, // (B, 2H, 2W, C)
                       int B, int H, int W, int C, stream_t s) {
    if (packable(C, dx, dout)) {
        dim3 grid = resample_grid<PACKED>(B, H, W, C);
        launch<upsample_backward_kernel<PACKED>>(grid, RESAMPLE_THREADS, 0, s, dx, dout, H, W, C);
    } else {
        launch<upsample_backward_kernel<1>>(resample_grid<1>(B, H, W, C), RESAMPLE_THREADS, 0, s, dx, dout, H, W, C);
    }
}
