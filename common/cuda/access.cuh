// access.cuh: 16 bytes at a time from and to arrays whose length or address may not allow it. Two ways:
//
//   load_values, store_values   N values, N known to the compiler: PACKED where rows and tensors allow 16-byte accesses
//                               (packable), else 1. A kernel takes N as a template argument and is one text for both.
//                               For kernels that keep rows in registers: neither tests nor tails cost any.
//   load_upto, store_upto       one pack, or what is left of the array, tested at each access. For elementwise kernels,
//                               which have registers to spare and are compiled once.
//
// Look next at common/cuda/rows.cuh and common/cuda/reduce.cuh.
#pragma once
// defines: pack, load16, store16, UNROLL, blocks_for
#include "common/cuda/launch.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// Known to the compiler

constexpr int PACKED = 16 / sizeof(floatX); // 8 values of bf16, 4 of fp32

template <typename... T> static inline int packable(int C, const T*... tensors) {
    return C % PACKED == 0 && (((uintptr_t)tensors % 16 == 0) && ...);
}

// Memory holds floatX, or floatS where it is the residual stream, a sum or a statistic: N values of bf16 are one
// access, of fp32 N / 4. T is float, or floatX for values that wait in registers: bf16 takes half as many.
template <int N, typename T, typename M> __device__ static inline void load_values(T to[N], const M* from) {
    if constexpr (N == 1) {
        to[0] = (T)from[0];
    } else {
        UNROLL
        for (int i = 0; i < N; i += pack<M>::size) {
            pack<M> p = load16(from + i);
            for (int k = 0; k < pack<M>::size; k++) to[i + k] = (T)p[k];
        }
    }
}
template <int N, typename M> __device__ static inline void store_values(M* to, const float from[N]) {
    if constexpr (N == 1) {
        to[0] = (M)from[0];
    } else {
        UNROLL
        for (int i = 0; i < N; i += pack<M>::size) {
            pack<M> p;
            for (int k = 0; k < pack<M>::size; k++) p[k] = (M)from[i + k];
            store16(to + i, p);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Known to the kernel

// The next `count` values of an array as one pack; behind the end of the array the pack holds zeros. One 16-byte access
// where all are there and p allows it; the test comes out alike for nearly all threads. The values pass through whole
// words: taking the halves of words apart in the two branches would wait for the load, and loads that follow each other
// in a kernel would no longer be under way together.
template <typename T> __device__ static inline pack<T> load_upto(const T* p, size_t count) {
    uint32_t words[4] = {};
    pack<T> out;
    if (count >= (size_t)pack<T>::size && (uintptr_t)p % 16 == 0) {
        out = load16(p);
        memcpy(words, (const void*)&out, sizeof words);
    } else {
        for (int i = 0; i < pack<T>::size; i++) {
            if ((size_t)i >= count) continue;
            T value = p[i];
            uint32_t bits = 0;
            memcpy(&bits, (const void*)&value, sizeof value);
            words[i * sizeof(T) / 4] |= bits << (i * sizeof(T) % 4 * 8);
        }
    }
    memcpy((void*)&out, words, sizeof words);
    return out;
}
template <typename T> __device__ static inline void store_upto(T* p, pack<T> value, size_t count) {
    if (count >= (size_t)pack<T>::size && (uintptr_t)p % 16 == 0) {
        store16(p, value);
        return;
    }
    for (int i = 0; i < pack<T>::size; i++) {
        if ((size_t)i < count) p[i] = value[i];
    }
}

// The first value of this thread's pack, and the blocks that give each of n values to one thread, a pack at a time.
enum { PACK_THREADS = 256 };
template <typename T> __device__ static inline size_t pack_begin(void) {
    return ((size_t)blockIdx.x * PACK_THREADS + threadIdx.x) * (size_t)pack<T>::size;
}
template <typename T> static inline unsigned pack_blocks(size_t n) {
    return blocks_for(n, (size_t)PACK_THREADS * (size_t)pack<T>::size);
}
