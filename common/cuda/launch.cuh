// launch.cuh: the words that kernels are written in: how a kernel is started, shared memory, 16-byte accesses, warps,
// tensor cores, asynchronous copies. Everything that is not plain C stands here, so that the kernels are one text for
// nvcc and for the emulator, which has its own version of the first half (dev/emu/emu.h).
//
//   launch<kernel>(grid, block, shared_bytes, s, arguments...)   starts a kernel on a stream
//   shared<T> a = shared_array<T>(byte_offset, count)            a piece of the block's shared memory: T* on a GPU; in
//                                                                the emulator a pointer that checks bounds, races, and
//                                                                reads of what was never written. All of it is dynamic.
//   load16(p), store16(p, v)                                     16 bytes at once: pack<T>, device or shared memory
//   warp_sum, warp_max, block_sum, block_max                     reductions, the result in every thread
//   ldmatrix, mma, cp_async                                      below, with the layout of their fragments
//   exp2_fast, reciprocal_fast                                   2^x and 1 / x, for softmax and sigmoid
//
// Look next at common/cuda/layernorm.cuh, the simplest family.
#pragma once
// defines: stream_t
#include "common/device.h"

enum { WARP = 32 };
typedef __nv_bfloat16 bf16;

static inline unsigned blocks_for(size_t n, size_t per_block) { return (unsigned)((n + per_block - 1) / per_block); }

#ifndef EMU // --------------------------------------------------------------------------------------------------------

template <auto kernel, typename... A>
static inline void launch(dim3 grid, dim3 block, size_t shared_bytes, stream_t s, A... arguments) {
    static size_t allowed = 48 * 1024; // what a block gets without asking
    if (shared_bytes > allowed) {
        CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes));
        allowed = shared_bytes;
    }
    kernel<<<grid, block, shared_bytes, s->cuda>>>(arguments...);
    CUDA_CHECK(cudaGetLastError());
}

template <typename T> using shared = T*;
template <typename T> __device__ static inline shared<T> shared_array(size_t byte_offset, size_t count) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    (void)count; // the emulator checks it
    return reinterpret_cast<T*>(shared_memory + byte_offset);
}

// Sixteen bytes.
template <typename T> struct alignas(16) pack {
    static constexpr int size = 16 / sizeof(T);
    T v[size];
    __device__ T& operator[](int i) { return v[i]; }
    __device__ const T& operator[](int i) const { return v[i]; }
};
template <typename T> __device__ static inline pack<T> load16(const T* p) { // p is a multiple of 16 bytes
    pack<T> out;
    *reinterpret_cast<uint4*>(&out) = *reinterpret_cast<const uint4*>(p);
    return out;
}
template <typename T> __device__ static inline void store16(T* p, pack<T> value) {
    *reinterpret_cast<uint4*>(p) = *reinterpret_cast<uint4*>(&value);
}

// ldmatrix: matrices of 8 rows of 8 bf16 from shared memory into the registers of a warp. Thread 8 m + r gives the
// address of row r of matrix m (16 bytes, aligned). Afterwards register m of thread t holds, of matrix m, row t / 4,
// columns 2 (t % 4) and the one behind it (low and high half). Transposed: rows and columns exchanged on the way.
__device__ static inline void ldmatrix_x4(uint32_t r[4], shared<const bf16> row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ static inline void ldmatrix_x4_transposed(uint32_t r[4], shared<const bf16> row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
// The same for two matrices; addresses come from threads 0 to 15.
__device__ static inline void ldmatrix_x2(uint32_t r[2], shared<const bf16> row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
}
__device__ static inline void ldmatrix_x2_transposed(uint32_t r[2], shared<const bf16> row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
}

// mma: d (16 x 8, fp32) += a (16 x 16, bf16) b (16 x 8, bf16), by one warp. With g = t / 4 and q = t % 4, thread t
// holds
//   a[0] row g,     columns 2q, 2q + 1      a[1] row g + 8, columns 2q, 2q + 1
//   a[2] row g,     columns 2q + 8, 2q + 9  a[3] row g + 8, columns 2q + 8, 2q + 9
//   b[0] rows 2q, 2q + 1 of column g        b[1] rows 2q + 8, 2q + 9 of column g
//   d[0], d[1] row g, columns 2q, 2q + 1    d[2], d[3] row g + 8, columns 2q, 2q + 1
// So a row-major A is loaded by ldmatrix as it lies, and B too when it lies as (column, row), i.e. K runs contiguously.
__device__ static inline void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// cp_async: 16 bytes from device to shared memory without passing a register; zeros where `valid` is false (the source
// is then not read). Copies since the last commit form a group; wait<N> returns when all but the N newest groups of
// this thread have arrived. Other threads see them after a barrier behind the wait.
template <typename T> __device__ static inline void cp_async_16(shared<T> to, const T* from, bool valid) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(address), "l"(from), "r"(bytes) : "memory");
}
__device__ static inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ static inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

// In front of a loop over an array that has to stay in registers: they have no index at run time, so a loop that the
// compiler leaves a loop sends the array to memory (-Xptxas -v: "stack frame"). Short loops are unrolled without it.
#define UNROLL _Pragma("unroll")

// x itself, but the compiler does not know: what is computed from it in a loop is computed anew in each turn, instead
// of once for all turns, where it would wait in registers.
__device__ static inline int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// threadIdx.x, likewise.
__device__ static inline int opaque_thread() {
    int x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

// 2^x in one instruction, where exp2f takes four to keep results below 2^-126; here they are 0. Relative error 2^-22.
__device__ static inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// 1 / x in one instruction, where a division takes ten; results below 2^-126 are 0. Relative error 2^-23.
__device__ static inline float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif // -------------------------------------------------------------------------------------------------------------

// Two floats as bf16 in one register, `low` in the lower half: the element order of the fragments above.
__device__ static inline uint32_t bf16x2(float low, float high) {
    bf16 pair[2] = {(bf16)low, (bf16)high};
    uint32_t out;
    memcpy(&out, pair, sizeof out);
    return out;
}

// Reductions over the warp; every thread of it must call, and gets the result.
__device__ static inline float warp_sum(float x) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}
__device__ static inline float warp_max(float x) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

// Reductions over a block of whole warps (at most 32), through 32 floats of shared memory; ends with a barrier, so that
// `work` may be used again at once.
__device__ static inline float block_sum(float x, shared<float> work) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) work[warp] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < warps; i++) sum += work[i];
    __syncthreads();
    return sum;
}
__device__ static inline float block_max(float x, shared<float> work) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0) work[warp] = x;
    __syncthreads();
    float most = work[0];
    for (int i = 1; i < warps; i++) most = fmaxf(most, work[i]);
    __syncthreads();
    return most;
}
