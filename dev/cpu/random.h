// random.h: tensors of random numbers, and dropout. The numbers themselves are those of common/program/rng.h.
//
// Row r of n values holds elements r n ... r n + n - 1 of the random stream: a sample, whose number r is, gets the same
// noise in whatever batch and process.
//
// Dropout multiplies by a mask m, 0 or 1 / (1 - p): linear in x, so that its backward multiplies by the same mask. The
// mask is drawn anew wherever it is needed, by its place in the stream, and is never stored.
#pragma once
// defines: the contracts of normal_rows, dropout_forward, dropout_backward
#include "common/ops.h"
// defines: philox, normal4_from_bits, uniform_from_bits
#include "common/program/rng.h"
// defines: worth_sharing
#include "dev/cpu/threads.h"

// One call of the generator makes four neighbouring numbers. Rows need not begin at a multiple of four.
void normal_rows(floatS* out,          // (B, n)
                 const uint64_t* rows, // (B)
                 int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step, stream_t s) {
    (void)s;
    uint64_t fours = (n + 3) / 4 + 1; // that a row may touch
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * n * 20))
    for (uint64_t i = 0; i < (uint64_t)B * fours; i++) {
        uint64_t begin = rows[i / fours] * n, four = begin / 4 + i % fours;
        if (4 * four >= begin + n) continue;
        normal4_t value = normal4_from_bits(philox(seed, stream_id, step, four));
        for (uint64_t word = 0; word < 4; word++) {
            uint64_t element = 4 * four + word - begin; // wraps around in front of the row
            if (element < n) out[i / fours * n + element] = (floatS)value.v[word];
        }
    }
}

// out = scale m x, or out += scale m x, for elements [begin, end) of the random stream.
static inline void dropout_rows(floatX* out, const floatX* x, int accumulate, double p, double scale, uint64_t begin,
                                uint64_t end, uint64_t seed, uint32_t stream_id, uint64_t step) {
    floatX factor = (floatX)(scale / (1 - p));
    #pragma omp parallel for schedule(static) if (worth_sharing((double)(end - begin) * 10))
    for (uint64_t four = begin / 4; four < (end + 3) / 4; four++) {
        philox4_t bits = philox(seed, stream_id, step, four);
        for (uint64_t word = 0; word < 4; word++) {
            uint64_t element = 4 * four + word, i = element - begin;
            if (element < begin || element >= end) continue;
            floatX value = uniform_from_bits(bits.v[word]) >= (float)p ? factor * x[i] : 0;
            out[i] = accumulate ? out[i] + value : value;
        }
    }
}

void dropout_forward(floatX* out,     // (B, n)
                     const floatX* x, // (B, n)
                     double p, double scale, int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step,
                     uint64_t first_row, stream_t s) {
    (void)s;
    dropout_rows(out, x, 0, p, scale, first_row * n, (first_row + B) * n, seed, stream_id, step);
}

void dropout_backward(floatX* dx,         // (B, n) +=
                      const floatX* dout, // (B, n)
                      double p, double scale, int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step,
                      uint64_t first_row, stream_t s) {
    (void)s;
    dropout_rows(dx, dout, 1, p, scale, first_row * n, (first_row + B) * n, seed, stream_id, step);
}
