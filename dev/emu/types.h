// types.h: the words of CUDA C++ that are not functions of the emulator: qualifiers, vectors, bf16, and the names that
// CUDA has in the global namespace beside those of math.h.
//
// bf16 is the upper half of a float: 1 sign, 8 exponent, 7 mantissa bits. Only conversions exist; arithmetic is
// float's.
// Look next at dev/emu/fiber.h.
#pragma once
#include <bit>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define UNROLL

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }

// The thread that runs, as kernels see it; dev/emu/block.h sets them.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x) { // to nearest, ties to even
        uint32_t u;
        memcpy(&u, &x, sizeof u);
        if ((u & 0x7fffffffu) > 0x7f800000u) bits = 0x7fff; // NaN, as the hardware writes it
        else bits = (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
    }
    __nv_bfloat16(double x) : __nv_bfloat16((float)x) {}
    template <typename I> requires(std::is_integral_v<I>) __nv_bfloat16(I x) : __nv_bfloat16((float)x) {}
    operator float() const {
        uint32_t u = (uint32_t)bits << 16;
        float x;
        memcpy(&x, &u, sizeof x);
        return x;
    }
};

// Sixteen bytes.
template <typename T> struct alignas(16) pack {
    static constexpr int size = 16 / sizeof(T);
    T v[size];
    T& operator[](int i) { return v[i]; }
    const T& operator[](int i) const { return v[i]; }
};

#define EMU_MIN_MAX(T)                                         \
    static inline T min(T a, T b) { return b < a ? b : a; }    \
    static inline T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
static inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
static inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
static inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
static inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

static inline float emu_rsqrtf(float x) { return 1 / sqrtf(x); }
#define rsqrtf emu_rsqrtf // newer C libraries have one of their own

// 2^x, with 0 for what is not a normal number, as the instruction gives it.
static inline float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0 : y;
}
// 1 / x, likewise.
static inline float reciprocal_fast(float x) {
    float y = 1 / x;
    return fabsf(y) < 0x1p-126f ? 0 : y;
}

static inline int opaque(int x) { return x; } // common/cuda/launch.cuh
static inline int opaque_thread(void) { return (int)threadIdx.x; }

