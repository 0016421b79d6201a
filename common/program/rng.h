// rng.h: every random number of a run, as a function of (seed, stream, step, index).
//
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a keyed
// bijection of 128-bit counters that passes the usual statistical batteries. It has no state. Any thread, rank or GPU
// can ask for any number at any time and gets the same bits, so a run does not depend on the number of threads or
// ranks, and a run resumed at step s needs nothing but s.
//
//   key     = seed                                        (64 bits)
//   counter = index (64 bits), step (56 bits), stream (8 bits)
//
// The packing is injective: two different (seed, stream, step, index) never share a block of four words. A tensor of
// random numbers takes index = element / 4 and word = element % 4, counted over the global batch.
//
// Normal deviates use their own logarithm, sine and cosine, made of correctly rounded operations only (+ - * / sqrt and
// explicit fma). The C library's and CUDA's versions differ in the last bit; these are the same bits on both, so long
// as nvcc is not told --use_fast_math.
//
// Look next at common/data/dataloader.h, which draws the order of the data and the crops from here.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define DEVICE_FN __host__ __device__ static inline
#else
#define DEVICE_FN static inline
#endif

// One stream for each purpose, so that asking for more numbers of one kind never moves those of another.
// The values are part of what a seed means: add at the end, never renumber. At most 256.
enum {
    RANDOM_DATA_ORDER = 0, // the permutation of the data set in each epoch
    RANDOM_CROP = 1,
    RANDOM_FLIP = 2,
    RANDOM_INIT = 3,       // initial weights
    RANDOM_DROPOUT = 4,
    RANDOM_POSTERIOR = 5,  // the noise of the variational posterior
    RANDOM_TIMES = 6,      // flow matching: the time of each sample
    RANDOM_NOISE = 7,      // flow matching: the noise end of the path; the start of sampling
    RANDOM_LABEL_DROP = 8, // classifier-free guidance: which labels are replaced by the null class
    RANDOM_SHAPES = 9,     // the drawn data set
    RANDOM_LABELS = 10,    // labels drawn for generated images
    RANDOM_SUBSETS = 11,   // subsets of images that a metric is computed on
    RANDOM_POSITIONS = 12, // the position, and the flip, at which an image's latent is looked at
    RANDOM_SHEET = 13,     // the images that a picture of middling ones is chosen from
    RANDOM_REPLACEMENT = 14, // the images that take the place of damaged ones
    RANDOM_GARMENTS = 15,  // the colours and grounds of the garments
    RANDOM_VIEWS = 16,     // the crops and colours in which a pretrained encoder sees an image
    RANDOM_BUCKETS = 17,   // which size of images a step has
    RANDOM_SCENES = 18,    // the drawn scenes with captions
    RANDOM_WORDS = 19      // the rows of words where no text encoder is trained
};

typedef struct { uint32_t v[4]; } philox4_t; // four words of 32 random bits
typedef struct { float v[4]; } normal4_t;    // four independent standard normal deviates

// The ten rounds on a raw counter and key. Multipliers and key increments are those of the paper (table 2, section
// 3.3).
DEVICE_FN philox4_t philox_rounds(philox4_t c, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c.v[0];
        uint64_t product1 = (uint64_t)0xCD9E8D57u * c.v[2];
        c.v[0] = (uint32_t)(product1 >> 32) ^ c.v[1] ^ key0;
        c.v[1] = (uint32_t)product1;
        c.v[2] = (uint32_t)(product0 >> 32) ^ c.v[3] ^ key1;
        c.v[3] = (uint32_t)product0;
        key0 += 0x9E3779B9u; // golden ratio
        key1 += 0xBB67AE85u; // sqrt(3) - 1
    }
    return c;
}

// Block `index` of a stream at a step. step < 2^56, stream < 2^8.
DEVICE_FN philox4_t philox(uint64_t seed, uint32_t stream, uint64_t step, uint64_t index) {
    philox4_t counter;
    counter.v[0] = (uint32_t)index;
    counter.v[1] = (uint32_t)(index >> 32);
    counter.v[2] = (uint32_t)step;
    counter.v[3] = (uint32_t)(step >> 32) | stream << 24;
    return philox_rounds(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
}

// 32 random bits -> uniform in [0, 1), a multiple of 2^-24.
DEVICE_FN float uniform_from_bits(uint32_t bits) { return (float)(bits >> 8) * 0x1p-24f; }

// 64 random bits -> an integer in [0, n), floor(bits * n / 2^64). No value is likelier than another by more than n /
// 2^64.
DEVICE_FN uint32_t below_from_bits(uint32_t high, uint32_t low, uint32_t n) {
    return (uint32_t)(((uint64_t)high * n + ((uint64_t)low * n >> 32)) >> 32);
}

// Natural logarithm of a normal float x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), r = (m-1)/(m+1), and
// log m = 2 (r + r^3/3 + r^5/5 + r^7/7 + r^9/9 + ...), where r^2 < 0.0295 makes the rest smaller than 4e-10.
DEVICE_FN float rng_log(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t shifted = bits - 0x3F3504F3u; // the bits of sqrt(1/2): the exponent field counts from there
    int exponent = (int)(shifted >> 23) - (shifted >> 31 ? 512 : 0);
    bits = (shifted & 0x007FFFFFu) + 0x3F3504F3u;
    float m;
    memcpy(&m, &bits, sizeof m);
    float r = (m - 1.0f) / (m + 1.0f);
    float r2 = r * r;
    float series = fmaf(fmaf(fmaf(fmaf(r2, 1.0f / 9, 1.0f / 7), r2, 1.0f / 5), r2, 1.0f / 3), r2, 1.0f);
    float log_m = 2.0f * r * series;
    return fmaf((float)exponent, 0.693147181f, log_m);
}

// Sine and cosine of a uniform angle: the two high bits give the quadrant, the others an offset x in [-pi/4, pi/4),
// for which the Taylor series to x^9 and x^10 leave less than 2e-9.
DEVICE_FN void rng_sin_cos(uint32_t bits, float* sine, float* cosine) {
    float x = (float)((int32_t)(bits & 0x3FFFFFFFu) - 0x20000000) * (1.57079633f * 0x1p-30f);
    float x2 = x * x;
    float s = fmaf(fmaf(fmaf(fmaf(x2, 1.0f / 362880, -1.0f / 5040), x2, 1.0f / 120), x2, -1.0f / 6), x2, 1.0f) * x;
    float c = fmaf(fmaf(fmaf(fmaf(fmaf(x2, -1.0f / 3628800, 1.0f / 40320), x2, -1.0f / 720), x2, 1.0f / 24), x2, -0.5f),
                   x2, 1.0f);
    uint32_t quadrant = bits >> 30;
    float rotated_s = quadrant & 1 ? c : s;
    float rotated_c = quadrant & 1 ? -s : c;
    *sine = quadrant & 2 ? -rotated_s : rotated_s;
    *cosine = quadrant & 2 ? -rotated_c : rotated_c;
}

// Box and Muller (1958): with u uniform in (0, 1] and an angle a uniform on the circle, sqrt(-2 log u) (cos a, sin a)
// are two independent standard normal deviates. u >= 2^-33, so no deviate is larger than 6.77.
DEVICE_FN normal4_t normal4_from_bits(philox4_t bits) {
    normal4_t out;
    for (int pair = 0; pair < 2; pair++) {
        float u = fmaf((float)bits.v[2 * pair], 0x1p-32f, 0x1p-33f);
        float radius = sqrtf(-2.0f * rng_log(u));
        float sine, cosine;
        rng_sin_cos(bits.v[2 * pair + 1], &sine, &cosine);
        out.v[2 * pair] = radius * cosine;
        out.v[2 * pair + 1] = radius * sine;
    }
    return out;
}

// Element `element` of a tensor of uniform numbers in [0, 1).
DEVICE_FN float random_uniform(uint64_t seed, uint32_t stream, uint64_t step, uint64_t element) {
    return uniform_from_bits(philox(seed, stream, step, element / 4).v[element % 4]);
}

// Element `element` of a tensor of standard normal deviates. A kernel that fills a tensor takes four at a time from
// normal4_from_bits; they are the same numbers.
DEVICE_FN float random_normal(uint64_t seed, uint32_t stream, uint64_t step, uint64_t element) {
    return normal4_from_bits(philox(seed, stream, step, element / 4)).v[element % 4];
}

// Integer in [0, n) from block `index` (a whole block, not a quarter of one).
DEVICE_FN uint32_t random_below(uint64_t seed, uint32_t stream, uint64_t step, uint64_t index, uint32_t n) {
    philox4_t bits = philox(seed, stream, step, index);
    return below_from_bits(bits.v[0], bits.v[1], n);
}

// Image of `position` under a pseudo-random permutation of [0, n) chosen by (seed, stream, step); position < n < 2^62.
//
// A Feistel network permutes the numbers of 2h bits, the smallest such set that holds n numbers: with halves (L, R)
// each round is (L, R) -> (R, L xor F(R)), invertible whatever F is; F is Philox keyed by (seed, stream, step, round).
// An image outside [0, n) is sent through again until it falls inside ("cycle walking": Black and Rogaway, "Ciphers
// with arbitrary finite domains", 2002). This is a bijection of [0, n), and takes less than four passes on average. No
// array is stored.
DEVICE_FN uint64_t random_permute(uint64_t seed, uint32_t stream, uint64_t step, uint64_t position, uint64_t n) {
    int half_bits = 1;
    while (n > (uint64_t)1 << 2 * half_bits) half_bits++;
    uint64_t mask = ((uint64_t)1 << half_bits) - 1;
    uint64_t x = position;
    do {
        uint64_t left = x >> half_bits, right = x & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t mixed = left ^ (philox(seed, stream, step, round << 32 | right).v[0] & mask);
            left = right;
            right = mixed;
        }
        x = left << half_bits | right;
    } while (x >= n);
    return x;
}
