// test_rng.c: Philox against its published vectors, the distributions made from it, and the point-wise permutation.
//
// Statistical bounds are five standard deviations of the statistic under the right distribution; the generator has no
// state, so a case either always holds or never.
// Look next at common/program/rng.h.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

// defines: philox, philox_rounds, normal4_from_bits, random_uniform, random_normal, random_below, random_permute
#include "common/program/rng.h"
// defines: test_begin, test_case, check, check_error, test_end_case, test_finish
#include "tests/test.h"

// The three vectors of "kat_vectors" in the Random123 distribution for philox4x32-10.
static inline void test_known_answers(void) {
    static const uint32_t vectors[3][10] = {
        // counter, key, answer
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff,
         0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0,
         0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
    };
    for (int i = 0; i < 3; i++) {
        philox4_t counter;
        memcpy(counter.v, vectors[i], sizeof counter.v);
        philox4_t got = philox_rounds(counter, vectors[i][4], vectors[i][5]);
        check(!memcmp(got.v, vectors[i] + 6, sizeof got.v), "the published answer");
        // the same through the named arguments
        uint64_t seed = (uint64_t)vectors[i][5] << 32 | vectors[i][4];
        uint64_t index = (uint64_t)vectors[i][1] << 32 | vectors[i][0];
        uint64_t step = (uint64_t)(vectors[i][3] & 0xffffff) << 32 | vectors[i][2];
        got = philox(seed, vectors[i][3] >> 24, step, index);
        check(!memcmp(got.v, vectors[i] + 6, sizeof got.v), "the published answer by (seed, stream, step, index)");
    }
}

// Every argument matters, each of its bits.
static inline void test_arguments(void) {
    philox4_t base = philox(5, 3, 7, 11);
    for (int bit = 0; bit < 64; bit++) {
        uint64_t one = (uint64_t)1 << bit;
        philox4_t others[4];
        others[0] = philox(5 ^ one, 3, 7, 11);
        others[1] = philox(5, 3, 7, 11 ^ one);
        others[2] = philox(5, 3, 7 ^ one, 11);
        others[3] = philox(5, 3 ^ (uint32_t)one, 7, 11);
        for (int i = 0; i < (bit < 8 ? 4 : bit < 56 ? 3 : 2); i++) {
            int differing = 0;
            for (int w = 0; w < 4; w++) differing += __builtin_popcount(base.v[w] ^ others[i].v[w]);
            check(differing > 32 && differing < 96, "one bit of the arguments changes about half of the block");
        }
    }
}

static inline void test_uniform_moments(void) {
    const int n = 1 << 20;
    double sum = 0, squares = 0, neighbours = 0, previous = 0;
    int histogram[16] = {0};
    for (int i = 0; i < n; i++) {
        float u = random_uniform(1, RANDOM_TIMES, 2, (uint64_t)i);
        if (!(u >= 0 && u < 1)) check(0, "0 <= u < 1");
        histogram[(int)(u * 16)]++;
        sum += u;
        squares += (double)u * u;
        neighbours += (u - 0.5) * (previous - 0.5);
        previous = u;
    }
    check_error("mean", fabs(sum / n - 0.5), 5 * sqrt(1.0 / 12 / n));
    check_error("second moment", fabs(squares / n - 1.0 / 3), 5 * sqrt(4.0 / 45 / n));
    check_error("correlation of neighbours", fabs(neighbours / n), 5.0 / 12 / sqrt(n));
    double chi = 0;
    for (int k = 0; k < 16; k++) chi += (histogram[k] - n / 16.0) * (histogram[k] - n / 16.0) / (n / 16.0);
    check(chi < 15 + 5 * sqrt(30.0), "chi-square over 16 bins");
    check(uniform_from_bits(0) == 0 && uniform_from_bits(0xffffffffu) < 1, "the ends of the range");
}

static inline void test_normal_moments(void) {
    const int n = 1 << 20;
    double moments[5] = {0}, pairs[3] = {0};
    int tail = 0;
    for (int i = 0; i < n; i += 4) {
        normal4_t x = normal4_from_bits(philox(1, RANDOM_POSTERIOR, 3, (uint64_t)i / 4));
        for (int lane = 0; lane < 4; lane++) {
            float alone = random_normal(1, RANDOM_POSTERIOR, 3, (uint64_t)(i + lane));
            check(x.v[lane] == alone, "one at a time is the same");
            double power = 1;
            for (int k = 1; k < 5; k++) moments[k] += power *= x.v[lane];
            tail += fabsf(x.v[lane]) > 3;
            if (lane) pairs[lane - 1] += (double)x.v[0] * x.v[lane];
        }
    }
    check_error("mean", fabs(moments[1] / n), 5 / sqrt(n));
    check_error("variance", fabs(moments[2] / n - 1), 5 * sqrt(2.0 / n));
    check_error("third moment", fabs(moments[3] / n), 5 * sqrt(15.0 / n));
    check_error("fourth moment", fabs(moments[4] / n - 3), 5 * sqrt(96.0 / n));
    check_error("share beyond 3", fabs((double)tail / n - 0.0026997961), 5 * sqrt(0.0027 / n));
    for (int k = 0; k < 3; k++) check_error("correlation inside a block", fabs(pairs[k] * 4 / n), 5 / sqrt(n / 4.0));
}

// Against Box-Muller in double with the C library's functions.
static inline void test_normal_accuracy(void) {
    const double pi = 3.14159265358979323846;
    double worst = 0;
    for (uint64_t i = 0; i < 200000; i++) {
        philox4_t bits = philox(9, RANDOM_NOISE, 0, i);
        if (i < 4) bits.v[0] = i & 1 ? 0xffffffffu : 0; // the ends of the range
        if (i < 4) bits.v[1] = i & 2 ? 0xffffffffu : 0;
        normal4_t got = normal4_from_bits(bits);
        for (int pair = 0; pair < 2; pair++) {
            float u = fmaf((float)bits.v[2 * pair], 0x1p-32f, 0x1p-33f); // rounded as in the header: the rest is judged
            double angle = ((double)(bits.v[2 * pair + 1] & 0x3fffffff) - 536870912.0) / 1073741824.0 * pi / 2;
            angle += (bits.v[2 * pair + 1] >> 30) * pi / 2;
            double radius = sqrt(-2 * log((double)u));
            double scale = radius > 0 ? radius : 1;
            worst = fmax(worst, fabs(got.v[2 * pair] - radius * cos(angle)) / scale);
            worst = fmax(worst, fabs(got.v[2 * pair + 1] - radius * sin(angle)) / scale);
        }
    }
    check_error("normal deviate over its radius", worst, 4e-7);
}

// The bits of 40000 deviates, to be compared between compilers and machines: FNV-1a over their words.
static inline void test_normal_bits(void) {
    uint64_t hash = 1469598103934665603ull;
    for (uint64_t i = 0; i < 10000; i++) {
        normal4_t x = normal4_from_bits(philox(123, RANDOM_INIT, 0, i));
        for (int lane = 0; lane < 4; lane++) {
            uint32_t word;
            memcpy(&word, &x.v[lane], 4);
            hash = (hash ^ word) * 1099511628211ull;
        }
    }
    if (hash != 0x18899d0cf15cbc1dull) printf("     the hash is %016llx\n", (unsigned long long)hash);
    check(hash == 0x18899d0cf15cbc1dull, "the same bits as with every other compiler");
}

static inline void test_below(void) {
    static const uint32_t sizes[] = {1, 2, 3, 7, 225, 1u << 31, 4294967295u};
    for (int k = 0; k < 7; k++) {
        uint32_t n = sizes[k], largest = 0;
        double sum = 0;
        for (uint64_t i = 0; i < 20000; i++) {
            uint32_t x = random_below(4, RANDOM_CROP, 0, i, n);
            if (x >= n) check(0, "x < n");
            if (x > largest) largest = x;
            sum += (double)x / n;
        }
        double mean = 0.5 - 0.5 / n;
        check_error("mean", fabs(sum / 20000 - mean), 5 * sqrt(1.0 / 12 / 20000) + (n == 1 ? 0 : 1e-12));
        if (n < 1000) check(largest == n - 1, "the largest value comes up");
    }
    check(below_from_bits(0xffffffffu, 0xffffffffu, 10) == 9, "the upper end of the range");
    check(below_from_bits(0, 0, 10) == 0, "the lower end of the range");
    // floor(bits * n / 2^64) exactly, where the low word decides
    check(below_from_bits(0x55555555u, 0x55555555u, 3) == 0 && below_from_bits(0x55555555u, 0x55555556u, 3) == 1,
          "the low word counts");
}

static inline void test_permutation_bijection(void) {
    static const uint64_t sizes[] = {1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097, 60000};
    for (int k = 0; k < 13; k++) {
        uint64_t n = sizes[k];
        uint8_t* seen = (uint8_t*)calloc(n, 1);
        uint64_t distinct = 0, fixed = 0;
        for (uint64_t i = 0; i < n; i++) {
            uint64_t x = random_permute(42, RANDOM_DATA_ORDER, 3, i, n);
            check(x < n, "the image lies in [0, n)");
            if (x >= n) break;
            distinct += !seen[x];
            seen[x] = 1;
            fixed += x == i;
        }
        check(distinct == n, "every value is hit once");
        if (n > 16) check(fixed < 12, "few fixed points (one on average)");
        free(seen);
    }
    for (uint64_t i = 0; i < 100; i++) {
        uint64_t n = ((uint64_t)1 << 61) + 12345;
        check(random_permute(42, RANDOM_DATA_ORDER, 3, i, n) < n, "a very large n");
    }
}

// Where element 0 goes, over many epochs, is uniform; and all orders of three elements come up alike.
static inline void test_permutation_uniform(void) {
    static const int sizes[] = {2, 3, 5, 10, 37};
    const int epochs = 20000;
    for (int k = 0; k < 5; k++) {
        int n = sizes[k], first[37] = {0};
        for (int e = 0; e < epochs; e++) first[random_permute(7, RANDOM_DATA_ORDER, (uint64_t)e, 0, (uint64_t)n)]++;
        double chi = 0, expected = (double)epochs / n;
        for (int i = 0; i < n; i++) chi += (first[i] - expected) * (first[i] - expected) / expected;
        check(chi < n - 1 + 5 * sqrt(2.0 * (n - 1)), "the image of 0 is uniform");
    }
    int orders[27] = {0};
    for (int e = 0; e < epochs; e++) {
        int code = 0;
        for (uint64_t i = 0; i < 3; i++) code = code * 3 + (int)random_permute(8, RANDOM_DATA_ORDER, (uint64_t)e, i, 3);
        orders[code]++;
    }
    double chi = 0;
    for (int code = 0; code < 27; code++) {
        if (orders[code]) chi += (orders[code] - epochs / 6.0) * (orders[code] - epochs / 6.0) / (epochs / 6.0);
    }
    check(chi < 5 + 5 * sqrt(10.0), "the six orders of three elements are equally likely");
}

// Neighbouring positions must not stay neighbours: rank correlation of position and image, and of successive images.
static inline void test_permutation_mixes(void) {
    const uint64_t n = 50000;
    double with_position = 0, with_next = 0, previous = 0;
    for (uint64_t i = 0; i < n; i++) {
        double x = (double)random_permute(11, RANDOM_DATA_ORDER, 0, i, n) / n - 0.5;
        with_position += x * ((double)i / n - 0.5);
        with_next += x * previous;
        previous = x;
    }
    check_error("correlation with the position", fabs(with_position / n * 12), 5 / sqrt(n));
    check_error("correlation with the next", fabs(with_next / n * 12), 5 / sqrt(n));
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    if (test_case("philox4x32-10 published vectors")) { test_known_answers(); test_end_case(); }
    if (test_case("philox every bit of seed, stream, step and index counts")) { test_arguments(); test_end_case(); }
    if (test_case("uniform moments and histogram")) { test_uniform_moments(); test_end_case(); }
    if (test_case("normal moments and tail")) { test_normal_moments(); test_end_case(); }
    if (test_case("normal against the C library in double")) { test_normal_accuracy(); test_end_case(); }
    if (test_case("normal the same bits everywhere")) { test_normal_bits(); test_end_case(); }
    if (test_case("bounded integers")) { test_below(); test_end_case(); }
    if (test_case("permutation is a bijection")) { test_permutation_bijection(); test_end_case(); }
    if (test_case("permutation is uniform over epochs")) { test_permutation_uniform(); test_end_case(); }
    if (test_case("permutation mixes positions")) { test_permutation_mixes(); test_end_case(); }
    return test_finish();
}
