// random.cuh: tensors of random numbers, and dropout. The numbers are those of common/program/rng.h: functions of their
// place alone, made of operations that every machine rounds alike, so that they are the CPU build's bit for bit. (nvcc
// may fuse a product and a sum into one rounding; rng.h leaves it none to fuse. It must not get --use_fast_math.)
//
// A thread makes the four neighbours that one call of Philox gives: about 40 instructions a value, 0.01 ms for the
// noise of 64 images (64, 256, 32). Dropout takes the same four for its mask: some 25 instructions a value, of which
// the input of the qkv layer of DINOv2-L, 64 images (64, 257, 1024), has 17 million: 67 MB in and out in bf16, 0.02 ms.
#pragma once
// defines: floatS, launch, blocks_for
#include "common/cuda/launch.cuh"
// defines: the contracts of normal_rows, dropout_forward, dropout_backward
#include "common/ops.h"
// defines: philox, normal4_from_bits, uniform_from_bits
#include "common/program/rng.h"

// Block y is a row, elements [begin, begin + n) of the random stream. Neither end needs be a multiple of four.
__global__ void normal_kernel(floatS* out,          // (B, n)
                              const uint64_t* rows, // (B)
                              uint64_t n, uint64_t seed, uint32_t stream_id, uint64_t step) {
    uint64_t begin = rows[blockIdx.y] * n, four = begin / 4 + (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (4 * four >= begin + n) return;
    normal4_t value = normal4_from_bits(philox(seed, stream_id, step, four));
    for (int word = 0; word < 4; word++) {
        uint64_t element = 4 * four + word - begin; // wraps around in front of the row
        if (element < n) out[blockIdx.y * n + element] = value.v[word];
    }
}

enum { NORMAL_THREADS = 256, NORMAL_ROWS = 65535 }; // rows: the most that a grid has along y
void normal_rows(floatS* out,          // (B, n)
                 const uint64_t* rows, // (B) device memory
                 int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step, stream_t s) {
    if (B > NORMAL_ROWS) fatal("noise for %d images at once, of at most %d; use a smaller -batch", B, NORMAL_ROWS);
    if (B == 0 || n == 0) return;
    launch<normal_kernel>(dim3(blocks_for((n + 3) / 4 + 1, NORMAL_THREADS), B), NORMAL_THREADS, 0, s, out, rows,
                          (uint64_t)n, seed, stream_id, step);
}

// out = factor x where a value is kept, else 0; or out += that. Elements as above.
template <bool accumulate>
__global__ void dropout_kernel(floatX* out, const floatX* x, float p, float factor, uint64_t begin, uint64_t end,
                               uint64_t seed, uint32_t stream_id, uint64_t step) {
    uint64_t four = begin / 4 + (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (4 * four >= end) return;
    philox4_t bits = philox(seed, stream_id, step, four);
    for (int word = 0; word < 4; word++) {
        uint64_t element = 4 * four + word, i = element - begin;
        if (element < begin || element >= end) continue;
        float value = uniform_from_bits(bits.v[word]) >= p ? factor * (float)x[i] : 0;
        out[i] = (floatX)(accumulate ? (float)out[i] + value : value);
    }
}

template <bool accumulate>
static inline void dropout_rows(floatX* out, const floatX* x, double p, double scale, uint64_t begin, uint64_t end,
                                uint64_t seed, uint32_t stream_id, uint64_t step, stream_t s) {
    uint64_t fours = (end + 3) / 4 - begin / 4;
    if (end == begin) return;
    launch<dropout_kernel<accumulate>>(blocks_for(fours, NORMAL_THREADS), NORMAL_THREADS, 0, s, out, x, (float)p,
                                       (float)(scale / (1 - p)), begin, end, seed, stream_id, step);
}

void dropout_forward(floatX* out,     // (B, n)
                     const floatX* x, // (B, n)
                     double p, double scale, int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step,
                     uint64_t first_row, stream_t s) {
    dropout_rows<false>(out, x, p, scale, first_row * n, (first_row + B) * n, seed, stream_id, step, s);
}

void dropout_backward(floatX* dx,         // (B, n) +=
                      const floatX* dout, // (B, n)
                      double p, double scale, int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step,
                      uint64_t first_row, stream_t s) {
    dropout_rows<true>(dx, dout, p, scale, first_row * n, (first_row + B) * n, seed, stream_id, step, s);
}
