// lpips_tap.cuh: one feature map's share of LPIPS. Formulas and derivation: dev/cpu/lpips_tap.h.
//
//   u = f / (|f| + 1e-10)    v = g / (|g| + 1e-10)    distance = sum_c weight_c (u_c - v_c)^2,    mean over positions
//
// A position is owned by LANES neighbouring threads of a warp, of which each holds PACKS packs (16 bytes: 8 channels in
// bf16) of f and g in registers: 64 channels take 8 threads, 512 take 32 threads with two packs. So both maps are read
// from memory once, and the norms and the product with u are sums over LANES threads by shuffles.
//
// WHOLE: the channels are exactly LANES PACKS packs, and every access is one of 16 bytes; this is so at all taps of
// VGG16. Other numbers of channels go to a warp a position, value by value, with zeros behind the last channel.
//
// Cost: forward 2 passes (f, g), backward 3 (f, g, df). The five taps of VGG16 at 256 x 256 are 8.0 M values an image,
// 32 MB forward and 48 MB backward in bf16: for 64 images 0.68 ms and 1.02 ms at 3 TB/s.
//
// Look next at common/models/lpips.h, which runs VGG16 around this.
#pragma once
// defines: load_upto, store_upto, finish_sums; launch, pack, block_sum
#include "common/cuda/reduce.cuh"
// defines: the contract of each function below
#include "common/ops.h"

#define LPIPS_EPS 1e-10f
enum {
    LPIPS_THREADS = 256,
    LPIPS_ROUNDS = 4, // positions that a group of lanes takes one behind the other
    LPIPS_PACK = pack<floatX>::size,
    LPIPS_MOST_CHANNELS = 128 * LPIPS_PACK, // what a warp keeps in registers: 1024 in bf16, 512 in fp32
};

template <int LANES> __device__ static inline float lanes_sum(float x) {
    for (int lane = LANES / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// Pack k of a lane holds LPIPS_PACK channels from this one on.
template <int LANES> __device__ static inline int first_channel(int k) {
    return (k * LANES + (int)threadIdx.x % LANES) * LPIPS_PACK;
}

template <int LANES, int PACKS, bool WHOLE>
__device__ static inline void load_channels(pack<floatX> out[PACKS],
                                            const floatX* x, // (C)
                                            int C) {
    for (int k = 0; k < PACKS; k++) {
        int c = first_channel<LANES>(k);
        out[k] = WHOLE ? load16(x + c) : load_upto(x + c, c < C ? (size_t)(C - c) : 0);
    }
}

template <int LANES, int PACKS> __device__ static inline float channels_norm(const pack<floatX> x[PACKS]) {
    float sum = 0;
    for (int k = 0; k < PACKS; k++) {
        for (int j = 0; j < LPIPS_PACK; j++) sum += (float)x[k][j] * (float)x[k][j];
    }
    return sqrtf(lanes_sum<LANES>(sum));
}

// Block i sums the positions of piece i % pieces of image i / pieces. Lanes without a position read the last one again,
// for the shuffles, and add nothing.
template <int LANES, int PACKS, bool WHOLE>
__global__ static void lpips_tap_kernel(float* partial,       // (B, pieces)
                                        const floatX* f,      // (B, HW, C)
                                        const floatX* g,      // (B, HW, C)
                                        const floatX* weight, // (C)
                                        int HW, int C, unsigned pieces) {
    constexpr int at_once = LPIPS_THREADS / LANES;
    shared<float> work = shared_array<float>(0, WARP);
    size_t image = (size_t)(blockIdx.x / pieces) * HW;
    int first = (int)(blockIdx.x % pieces) * at_once * LPIPS_ROUNDS + (int)threadIdx.x / LANES;
    pack<floatX> w[PACKS], x[PACKS], y[PACKS];
    load_channels<LANES, PACKS, WHOLE>(w, weight, C);
    float sum = 0;
    for (int round = 0; round < LPIPS_ROUNDS; round++) {
        int position = first + round * at_once;
        size_t at = (image + (size_t)(position < HW ? position : HW - 1)) * C;
        load_channels<LANES, PACKS, WHOLE>(x, f + at, C);
        load_channels<LANES, PACKS, WHOLE>(y, g + at, C);
        float scale_f = 1 / (channels_norm<LANES, PACKS>(x) + LPIPS_EPS);
        float scale_g = 1 / (channels_norm<LANES, PACKS>(y) + LPIPS_EPS);
        float distance = 0; // this lane's channels of it
        for (int k = 0; k < PACKS; k++) {
            for (int j = 0; j < LPIPS_PACK; j++) {
                float difference = (float)x[k][j] * scale_f - (float)y[k][j] * scale_g;
                distance += (float)w[k][j] * difference * difference;
            }
        }
        if (position < HW) sum += distance;
    }
    sum = block_sum(sum, work);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// df_c = [f_c > 0] (e_c - f_c / n sum_k e_k u_k) / (n + eps) with n = |f|, e_c = factor weight_c (u_c - v_c).
template <int LANES, int PACKS, bool WHOLE>
__global__ static void lpips_tap_backward_kernel(floatX* df,           // (N, C)
                                                 const floatX* f,      // (N, C)
                                                 const floatX* g,      // (N, C)
                                                 const floatX* weight, // (C)
                                                 float factor, size_t N, int C) {
    constexpr int at_once = LPIPS_THREADS / LANES;
    size_t first = (size_t)blockIdx.x * at_once * LPIPS_ROUNDS + threadIdx.x / LANES;
    pack<floatX> w[PACKS], x[PACKS], y[PACKS];
    load_channels<LANES, PACKS, WHOLE>(w, weight, C);
    for (int round = 0; round < LPIPS_ROUNDS; round++) {
        size_t position = first + (size_t)(round * at_once), at = (position < N ? position : N - 1) * C;
        load_channels<LANES, PACKS, WHOLE>(x, f + at, C);
        load_channels<LANES, PACKS, WHOLE>(y, g + at, C);
        float n = channels_norm<LANES, PACKS>(x), scale_f = 1 / (n + LPIPS_EPS);
        float scale_g = 1 / (channels_norm<LANES, PACKS>(y) + LPIPS_EPS);
        float along = 0; // sum_k e_k u_k
        for (int k = 0; k < PACKS; k++) {
            for (int j = 0; j < LPIPS_PACK; j++) {
                float u = (float)x[k][j] * scale_f;
                along += factor * (float)w[k][j] * (u - (float)y[k][j] * scale_g) * u;
            }
        }
        along = lanes_sum<LANES>(along);
        float radial = n > 0 ? along / n : 0;
        for (int k = 0; k < PACKS; k++) {
            for (int j = 0; j < LPIPS_PACK; j++) {
                float fj = (float)x[k][j];
                float e = factor * (float)w[k][j] * (fj * scale_f - (float)y[k][j] * scale_g);
                x[k][j] = (floatX)(fj > 0 ? (e - fj * radial) * scale_f : 0.0f);
            }
            int c = first_channel<LANES>(k);
            if (position < N && WHOLE) store16(df + at + c, x[k]);
            if (position < N && !WHOLE && c < C) store_upto(df + at + c, x[k], (size_t)(C - c));
        }
    }
}

// The packs of a position if both maps and the weights can be read in whole packs, else 0.
static inline int lpips_whole_packs(const floatX* df, const floatX* f, const floatX* g, const floatX* weight, int C) {
    if (C > LPIPS_MOST_CHANNELS) fatal("lpips_tap: %d channels; there can be %d", C, LPIPS_MOST_CHANNELS);
    uintptr_t together = (uintptr_t)df | (uintptr_t)f | (uintptr_t)g | (uintptr_t)weight;
    return together % 16 == 0 && C % LPIPS_PACK == 0 ? C / LPIPS_PACK : 0;
}

template <int LANES, int PACKS, bool WHOLE>
static inline void launch_lpips_tap(floatS* loss, const floatX* f, const floatX* g, const floatX* weight,
                                    int B, int HW, int C, stream_t s) {
    unsigned pieces = blocks_for((size_t)HW, LPIPS_THREADS / LANES * LPIPS_ROUNDS), grid = B * pieces;
    float* partial = (float*)device_scratch(s, (size_t)grid * sizeof(float));
    launch<lpips_tap_kernel<LANES, PACKS, WHOLE>>(grid, LPIPS_THREADS, WARP * sizeof(float), s, partial, f, g, weight,
                                                  HW, C, pieces);
    finish_sums(loss, partial, B, pieces, 1.0 / HW, ADD_SUM, s);
}

void lpips_tap_forward(floatS* loss,         // (B) +=
                       const floatX* f,      // (B, HW, C)
                       const floatX* g,      // (B, HW, C)
                       const floatX* weight, // (C)
                       int B, int HW, int C, stream_t s) {
    switch (lpips_whole_packs(f, f, g, weight, C)) {
    case 8: launch_lpips_tap<8, 1, true>(loss, f, g, weight, B, HW, C, s); break;
    case 16: launch_lpips_tap<16, 1, true>(loss, f, g, weight, B, HW, C, s); break;
    case 32: launch_lpips_tap<32, 1, true>(loss, f, g, weight, B, HW, C, s); break;
    case 64: launch_lpips_tap<32, 2, true>(loss, f, g, weight, B, HW, C, s); break;
    case 128: launch_lpips_tap<32, 4, true>(loss, f, g, weight, B, HW, C, s); break;
    default: launch_lpips_tap<32, 4, false>(loss, f, g, weight, B, HW, C, s);
    }
}

template <int LANES, int PACKS, bool WHOLE>
static inline void launch_lpips_tap_backward(floatX* df, const floatX* f, const floatX* g, const floatX* weight,
                                             double scale, int B, int HW, int C, stream_t s) {
    size_t N = (size_t)B * HW;
    launch<lpips_tap_backward_kernel<LANES, PACKS, WHOLE>>(blocks_for(N, LPIPS_THREADS / LANES * LPIPS_ROUNDS),
                                                           LPIPS_THREADS, 0, s, df, f, g, weight,
                                                           (float)(2 * scale / HW), N, C);
}

void lpips_tap_backward(floatX* df,           // (B, HW, C)
                        const floatX* f,      // (B, HW, C)
                        const floatX* g,      // (B, HW, C)
                        const floatX* weight, // (C)
                        double scale, int B, int HW, int C, stream_t s) {
    switch (lpips_whole_packs(df, f, g, weight, C)) {
    case 8: launch_lpips_tap_backward<8, 1, true>(df, f, g, weight, scale, B, HW, C, s); break;
    case 16: launch_lpips_tap_backward<16, 1, true>(df, f, g, weight, scale, B, HW, C, s); break;
    case 32: launch_lpips_tap_backward<32, 1, true>(df, f, g, weight, scale, B, HW, C, s); break;
    case 64: launch_lpips_tap_backward<32, 2, true>(df, f, g, weight, scale, B, HW, C, s); break;
    case 128: launch_lpips_tap_backward<32, 4, true>(df, f, g, weight, scale, B, HW, C, s); break;
    default: launch_lpips_tap_backward<32, 4, false>(df, f, g, weight, scale, B, HW, C, s);
    }
}
