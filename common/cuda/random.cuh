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

// Elements [begin, end) of the random stream go to out[0 .. end - begin). Neither needs be a multiple of four.
__global__ void normal_kernel(floatS* out, uint64_t begin, uint64_t end, uint64_t seed, uint32_t stream_id,
                              uint64_t step) {
    uint64_t four = begin / 4 + (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (4 * four >= end) return;
    normal4_t value = normal4_from_bits(philox(seed, stream_id, step, four));
    for (int word = 0; word < 4; word++) {
        uint64_t element = 4 * four + word;
        if (element >= begin && element < end) out[element - begin] = value.v[word];
    }
}

enum { NORMAL_THREADS = 256 };
void normal_rows(floatS* out, // (B, n)
                 int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step, uint64_t first_row, stream_t s) {
    uint64_t begin = first_row * n, end = begin + (uint64_t)B * n, fours = (end + 3) / 4 - begin / 4;
    if (end == begin) return;
    launch<normal_kernel>(blocks_for(fours, NORMAL_THREADS), NORMAL_THREADS, 0, s, out, begin, end, seed, stream_id,
                          step);
}
