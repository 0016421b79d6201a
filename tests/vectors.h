// vectors.h: numbers made from integers, the same bits on every machine and in every language, for test vectors.
//
//   mix(s, i)  32 bits from the number i of stream s (uint32, wraps around)
//   U(s, i)    mix / 2^32, uniform in [0, 1)
//   G(s, m)    (U(s, 4m) + U(s, 4m+1) + U(s, 4m+2) + U(s, 4m+3) - 2) sqrt(3), mean 0 and variance 1, close to normal
//
// A vector of data is then a formula, and its metrics can be computed anywhere without a file. mix is two
// xor-shift-multiply rounds, enough that streams and neighbours are unrelated; runs take theirs from
// common/program/rng.h.
#pragma once
#include <math.h>
#include <stdint.h>

static inline uint32_t vector_mix(uint32_t s, uint32_t i) {
    uint32_t x = i * 0x9E3779B1u + s * 0x85EBCA77u + 0x165667B1u;
    x ^= x >> 15;
    x *= 0x2C1B3C6Du;
    x ^= x >> 12;
    x *= 0x297A2D39u;
    return x ^ x >> 15;
}

static inline double vector_u(uint32_t s, uint32_t i) { return vector_mix(s, i) * 0x1p-32; }

static inline double vector_g(uint32_t s, uint32_t m) {
    double sum = vector_u(s, 4 * m) + vector_u(s, 4 * m + 1) + vector_u(s, 4 * m + 2) + vector_u(s, 4 * m + 3);
    return (sum - 2) * sqrt(3.0);
}
