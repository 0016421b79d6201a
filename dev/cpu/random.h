// random.h: tensors of random numbers. The numbers themselves are those of common/program/rng.h.
//
// Row r of a tensor with n values a row holds elements r n ... r n + n - 1 of the random stream. With `first_row` the
// place of this process's rows in the whole batch, a sample gets the same noise however many processes share the
// batch.
#pragma once
// defines: the contract of normal_rows
#include "common/ops.h"
// defines: philox, normal4_from_bits
#include "common/program/rng.h"
// defines: worth_sharing
#include "dev/cpu/threads.h"

// One call of the generator makes four neighbouring numbers. Rows need not begin at a multiple of four.
void normal_rows(floatS* out, // (B, n)
                 int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step, uint64_t first_row, stream_t s) {
    (void)s;
    uint64_t begin = first_row * n, end = begin + (uint64_t)B * n;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * n * 20))
    for (uint64_t four = begin / 4; four < (end + 3) / 4; four++) {
        normal4_t value = normal4_from_bits(philox(seed, stream_id, step, four));
        for (uint64_t word = 0; word < 4; word++) {
            uint64_t element = 4 * four + word;
            if (element >= begin && element < end) out[element - begin] = (floatS)value.v[word];
        }
    }
}
