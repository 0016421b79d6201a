// vector.h: a vector register as GCC and Clang write it for any processor: the words in which the fast forms of the
// matrix product (dev/cpu/gemm.h) and of the convolution (dev/cpu/conv_tile.h) are written.
//
// Loops over C arrays leave it to the compiler what is kept in registers. A product is fast only where a block of sums
// stays in them for thousands of multiply-adds, and so it says which numbers form a vector.
#pragma once
#include <stdint.h>
#ifdef __AVX__
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
#define VECTOR_LOOP __attribute__((unused, optimize("O2"), no_sanitize_address, no_sanitize_undefined)) static
#else
#define VECTOR_LOOP __attribute__((unused)) static
#endif
// For the functions within them, whose arguments become constants at the call.
#define VECTOR_INLINE __attribute__((always_inline)) VECTOR_LOOP inline

VECTOR_INLINE vector_t vector_load(const floatX* p) { return *(const vector_t*)p; }
VECTOR_INLINE void vector_store(floatX* p, vector_t v) { *(vector_t*)p = v; }
VECTOR_INLINE vector_t vector_splat(floatX x) {
    vector_t v = {0};
    for (int i = 0; i < VECTOR_LANES; i++) v[i] = x;
    return v;
}

// sum += a b for each lane, a sum that stays in its register for the length of a loop. On x86 it is the instruction
// itself, in writing: where gcc 12 chooses, vectors of AVX2 become eight scalars in some functions, and sums wander
// from register to register, and through memory, in others. (In ISO C modes gcc does not fuse on its own; clang does.)
VECTOR_INLINE void vector_add_product(vector_t* sum, vector_t a, vector_t b) {
#if defined(__FMA__) && defined(DOUBLE)
    __asm__("vfmadd231pd %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
#elif defined(__FMA__)
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
#elif defined(DOUBLE) && defined(__FP_FAST_FMA)
    for (int i = 0; i < VECTOR_LANES; i++) (*sum)[i] = __builtin_fma(a[i], b[i], (*sum)[i]);
#elif !defined(DOUBLE) && defined(__FP_FAST_FMAF)
    for (int i = 0; i < VECTOR_LANES; i++) (*sum)[i] = __builtin_fmaf(a[i], b[i], (*sum)[i]);
#else
    *sum += a * b;
#endif
}

// 16 bytes are what instructions move within a vector as a whole. One vector of the `parts` of 16 bytes that lie `by`
// numbers apart; where there are fewer than a vector has, the rest is zero.
enum { VECTOR_PART = 16 / sizeof(floatX) };
VECTOR_INLINE vector_t vector_load_parts(const floatX* p, size_t by, int parts) {
#if defined(__AVX512F__)
    __m512 v = _mm512_setzero_ps();
    if (parts > 0) v = _mm512_insertf32x4(v, _mm_loadu_ps((const float*)p), 0);
    if (parts > 1) v = _mm512_insertf32x4(v, _mm_loadu_ps((const float*)(p + by)), 1);
    if (parts > 2) v = _mm512_insertf32x4(v, _mm_loadu_ps((const float*)(p + 2 * by)), 2);
    if (parts > 3) v = _mm512_insertf32x4(v, _mm_loadu_ps((const float*)(p + 3 * by)), 3);
    return (vector_t)v;
#elif defined(__AVX__)
    __m256 v = _mm256_setzero_ps();
    if (parts > 0) v = _mm256_insertf128_ps(v, _mm_loadu_ps((const float*)p), 0);
    if (parts > 1) v = _mm256_insertf128_ps(v, _mm_loadu_ps((const float*)(p + by)), 1);
    return (vector_t)v;
#else
    (void)by;
    vector_t zero = {0};
    return parts > 0 ? vector_load(p) : zero;
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

// n vectors as a row of square matrices of n x n numbers, each mirrored at its diagonal; n is a constant at the call.
// First 2 x 2 blocks of numbers are mirrored, then 2 x 2 blocks of those, and so on: in each step vectors i and i + s
// exchange the lanes that differ in the bit s.
VECTOR_INLINE void vector_transpose(vector_t* v, const int n) {
    #pragma GCC unroll 4
    for (int s = 1; s < n; s *= 2) {
        vector_lanes_t low = {0}, high = {0};
        for (int l = 0; l < VECTOR_LANES; l++) {
            low[l] = l & s ? VECTOR_LANES + l - s : l;
            high[l] = l & s ? VECTOR_LANES + l : l + s;
        }
        #pragma GCC unroll 16
        for (int i = 0; i < n; i++) {
            if (i & s) continue;
            vector_t a = v[i], b = v[i + s];
            v[i] = vector_choose(a, b, low);
            v[i + s] = vector_choose(a, b, high);
        }
    }
}
