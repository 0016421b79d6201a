// vector.h: a vector register as GCC and Clang write it for any processor: the words in which the fast forms of the
// matrix product (dev/cpu/gemm.h) and of the convolution (dev/cpu/conv_tile.h) are written.
//
// Loops over C arrays leave it to the compiler what is kept in registers. A product is fast only where a block of sums
// stays in them for thousands of multiply-adds, and so it says which numbers form a vector.
#pragma once
#include <stdint.h>
#ifdef __FMA__
#include <immintrin.h>
#endif

// defines: floatX
#include "common/device.h"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define VECTOR_LANES ((int)(VECTOR_BYTES / sizeof(floatX))) // numbers in a vector

// Lanes that are added and multiplied at once, loaded from any address.
typedef floatX vector_t __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(floatX)), may_alias));
// For inner loops. The sanitizers, which would make them a hundred times slower, leave them alone: their bounds are
// those of what was copied or packed for them, and of what is made of their sums.
#ifdef __SANITIZE_ADDRESS__
#define VECTOR_LOOP __attribute__((optimize("O2"), no_sanitize_address, no_sanitize_undefined)) static inline
#else
#define VECTOR_LOOP static inline
#endif
// For the functions within them, whose arguments become constants at the call.
#define VECTOR_INLINE __attribute__((always_inline)) VECTOR_LOOP

VECTOR_INLINE vector_t vector_load(const floatX* p) { return *(const vector_t*)p; }
VECTOR_INLINE void vector_store(floatX* p, vector_t v) { *(vector_t*)p = v; }
VECTOR_INLINE vector_t vector_splat(floatX x) {
    vector_t v = {0};
    for (int i = 0; i < VECTOR_LANES; i++) v[i] = x;
    return v;
}

// a b + c for each lane: one instruction where the machine has it. (ISO C modes do not let the compiler fuse on its
// own.) On x86 by name: gcc 12 makes vectors of AVX2 of the loop in some functions, and eight scalars in others.
VECTOR_INLINE vector_t vector_multiply_add(vector_t a, vector_t b, vector_t c) {
#if defined(__AVX512F__) && defined(DOUBLE)
    return (vector_t)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX512F__)
    return (vector_t)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && defined(DOUBLE)
    return (vector_t)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__FMA__)
    return (vector_t)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(DOUBLE) && defined(__FP_FAST_FMA)
    for (int i = 0; i < VECTOR_LANES; i++) c[i] = __builtin_fma(a[i], b[i], c[i]);
    return c;
#elif !defined(DOUBLE) && defined(__FP_FAST_FMAF)
    for (int i = 0; i < VECTOR_LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

// Lane l of the result is lane from[l] of a, or of b where that is VECTOR_LANES or more.
#ifdef DOUBLE
typedef int64_t vector_lanes_t __attribute__((vector_size(VECTOR_BYTES)));
#else
typedef int32_t vector_lanes_t __attribute__((vector_size(VECTOR_BYTES)));
#endif
VECTOR_INLINE vector_t vector_choose(vector_t a, vector_t b, vector_lanes_t from) {
#ifdef __clang__
    vector_t v = {0};
    for (int l = 0; l < VECTOR_LANES; l++) v[l] = from[l] < VECTOR_LANES ? a[from[l]] : b[from[l] - VECTOR_LANES];
    return v;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// The square matrix in VECTOR_LANES vectors, mirrored at its diagonal. First 2 x 2 blocks of numbers are mirrored, then
// 2 x 2 blocks of those, and so on: in each step vectors i and i + s exchange the lanes that differ in the bit s.
VECTOR_INLINE void vector_transpose(vector_t* v) {
    #pragma GCC unroll 4
    for (int s = 1; s < VECTOR_LANES; s *= 2) {
        vector_lanes_t low, high;
        for (int l = 0; l < VECTOR_LANES; l++) {
            low[l] = l & s ? VECTOR_LANES + l - s : l;
            high[l] = l & s ? VECTOR_LANES + l : l + s;
        }
        #pragma GCC unroll 16
        for (int i = 0; i < VECTOR_LANES; i++) {
            if (i & s) continue;
            vector_t a = v[i], b = v[i + s];
            v[i] = vector_choose(a, b, low);
            v[i + s] = vector_choose(a, b, high);
        }
    }
}
