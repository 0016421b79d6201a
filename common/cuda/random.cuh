// random.cuh: tensors of random numbers. The numbers are those of common/program/rng.h: functions of their place alone,
// made of operations that every machine rounds alike, so that they are the CPU build's bit for bit. (nvcc may fuse a
// product and a sum into one rounding; rng.h leaves it none to fuse. It must not get --use_fast_math.)
//
// A thread makes the four neighbours that one call of Philox gives: about 40 instructions a value, 0.01 ms for the
// noise of 64 images (64, 256, 32).
#pragma once
// defines: floatS, launch, blocks_for
#include "common/cuda/launch.cuh"
// defines: the contract of normal_rows
#include "common/ops.h"
// defines: philox, normal4_from_bits
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
