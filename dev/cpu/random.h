// random.h: tensors of random numbers. The numbers themselves are those of common/program/rng.h.
//
// Row r of n values holds elements r n ... r n + n - 1 of the random stream: a sample, whose number r is, gets the same
// noise in whatever batch and process.
#pragma once
// defines: the contract of normal_rows
#include "common/ops.h"
// defines: philox, normal4_from_bits
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
