// flow.cuh: flow matching. Formulas and derivations: dev/cpu/flow.h.
//
// All of it is bound by memory, and small beside the network. Latents of 128 images (128, 256, 32) are 1.05 M values:
//   flow_path     reads x1, writes xt and u       10 bytes a value   10 MB, 4 us at 3 TB/s
//   flow_loss     reads v and u, writes dv         8 bytes            8 MB, 3 us
//   flow_guide    reads cond and null              8 bytes            8 MB, 3 us
//   flow_guide_energy  reads cond and out twice   14 bytes           14 MB, 5 us
//   flow_combine  reads x and each k, writes out  12 bytes and more  13 MB, 4 us with one stage
//
// flow_loss gives an image to one block, so that no sum leaves it: nothing is left for a second kernel, and the order
// of the sum is that of the threads. A latent of (256, 32) is one step of 1024 threads in bf16: 4 neighbouring threads,
// the `lanes` of a position, hold 8 channels each and add the three products by shuffles. dv needs v and u again, from
// the first-level cache.
//
// The others give N neighbouring values to a thread; N is PACKED where rows allow it, else 1 (common/cuda/rows.cuh).
// The noise of flow_path is that of normal_kernel (common/cuda/random.cuh), made where it is used.
#pragma once
// defines: launch, shared_array, block_sum, blocks_for
#include "common/cuda/launch.cuh"
// defines: FLOW_STAGES; the contracts of flow_path, flow_loss, flow_guide, flow_combine, diffusion_step, ...
#include "common/ops.h"
// defines: PACKED, packable, load_values, store_values
#include "common/cuda/rows.cuh"
// defines: philox, normal4_from_bits, random_normal
#include "common/program/rng.h"

enum { FLOW_THREADS = 256 };
constexpr float FLOW_SMALL = 1e-8f; // e: the least norm that the cosine divides by

// The first value of a thread's N, and the blocks for n values, N a thread.
template <int N> __device__ static inline size_t flow_begin(void) {
    return ((size_t)blockIdx.x * FLOW_THREADS + threadIdx.x) * N;
}
template <int N> static inline unsigned flow_blocks(size_t n) { return blocks_for(n, (size_t)FLOW_THREADS * N); }

// packable for rows of n values, of which only the remainder matters.
template <typename... T> static inline int flow_packable(size_t n, const T*... tensors) {
    return packable((int)(n % PACKED), tensors...);
}

// ---------------------------------------------------------------------------------------------------------------------
// Path

// Where N is PACKED rows have a multiple of four values, and so `first`, the element of the stream that x1[0] belongs
// to, is one. A single value costs a call of Philox of its own.
template <int N>
__global__ static void flow_path_kernel(floatX* xt,       // (B, n)
                                        floatS* u,        // (B, n)
                                        const floatS* x1, // (B, n)
                                        const floatS* t,  // (B)
                                        size_t size, size_t n, uint64_t first, uint64_t seed, uint32_t stream_id,
                                        uint64_t step) {
    size_t i = flow_begin<N>();
    if (i >= size) return;
    float x0[N], data[N], time = t[i / n];
    if constexpr (N == 1) {
        x0[0] = random_normal(seed, stream_id, step, first + i);
    } else {
        for (int four = 0; four < N / 4; four++) {
            normal4_t value = normal4_from_bits(philox(seed, stream_id, step, (first + i) / 4 + four));
            for (int k = 0; k < 4; k++) x0[4 * four + k] = value.v[k];
        }
    }
    load_values<N>(data, x1 + i);
    float velocity[N], point[N];
    for (int k = 0; k < N; k++) {
        velocity[k] = data[k] - x0[k];
        point[k] = time * data[k] + (1 - time) * x0[k];
    }
    store_values<N>(u + i, velocity);
    store_values<N>(xt + i, point);
}

void flow_path(floatX* xt,       // (B, n)
               floatS* u,        // (B, n)
               const floatS* x1, // (B, n)
               const floatS* t,  // (B)
               int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step, uint64_t first_row, stream_t s) {
    size_t size = (size_t)B * n;
    if (size == 0) return;
    if (flow_packable(n, xt, u, x1)) {
        launch<flow_path_kernel<PACKED>>(flow_blocks<PACKED>(size), FLOW_THREADS, 0, s, xt, u, x1, t, size, n,
                                         first_row * n, seed, stream_id, step);
    } else {
        launch<flow_path_kernel<1>>(flow_blocks<1>(size), FLOW_THREADS, 0, s, xt, u, x1, t, size, n, first_row * n,
                                    seed, stream_id, step);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Loss

constexpr int FLOW_LOSS_THREADS = 1024; // the most; a whole number of warps

// The sum over `lanes` neighbouring threads, a power of two, in each of them.
__device__ static inline float lanes_sum(float x, int lanes) {
    for (int lane = lanes / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// Block b: image b. Position i + threadIdx.x / lanes in each step; all threads go through all steps, for the shuffles.
template <int N>
__global__ static void __launch_bounds__(FLOW_LOSS_THREADS)
flow_loss_kernel(floatS* mse, floatS* cosine, // (B)
                 floatX* dv,                  // (B, HW, C) or NULL
                 const floatX* v,             // (B, HW, C)
                 const floatS* u,             // (B, HW, C)
                 const floatS* weight,        // (B) or NULL for 1
                 float share_mse, float share_cosine, int HW, int C, int lanes) {
    shared<float> work = shared_array<float>(0, WARP);
    int lane = threadIdx.x % lanes, positions = blockDim.x / lanes;
    float squares = 0, cosines = 0, weigh = weight ? weight[blockIdx.x] : 1;
    share_mse *= weigh, share_cosine *= weigh;
    for (int first = 0; first < HW; first += positions) {
        int i = first + threadIdx.x / lanes, end = i < HW ? C : 0; // this thread's channels are before `end`
        size_t at = ((size_t)blockIdx.x * HW + i) * C;
        float vv = 0, uu = 0, vu = 0, a[N], b[N];
        for (int c = lane * N; c < end; c += lanes * N) {
            load_values<N>(a, v + at + c);
            load_values<N>(b, u + at + c);
            for (int k = 0; k < N; k++) {
                squares += (a[k] - b[k]) * (a[k] - b[k]);
                vv += a[k] * a[k];
                uu += b[k] * b[k];
                vu += a[k] * b[k];
            }
        }
        float V = sqrtf(lanes_sum(vv, lanes)), M = fmaxf(V, FLOW_SMALL);
        float U = fmaxf(sqrtf(lanes_sum(uu, lanes)), FLOW_SMALL), cos_vu = lanes_sum(vu, lanes) / (M * U);
        if (lane == 0 && i < HW) cosines += 1 - cos_vu;
        if (!dv) continue;
        float of_u = share_cosine / (U * M), of_v = V > 0 ? share_cosine * cos_vu / V / M : 0;
        for (int c = lane * N; c < end; c += lanes * N) {
            load_values<N>(a, v + at + c);
            load_values<N>(b, u + at + c);
            for (int k = 0; k < N; k++) a[k] = 2 * share_mse * (a[k] - b[k]) - (of_u * b[k] - of_v * a[k]);
            store_values<N>(dv + at + c, a);
        }
    }
    squares = block_sum(squares, work);
    cosines = block_sum(cosines, work);
    if (threadIdx.x > 0) return;
    mse[blockIdx.x] = weigh * squares / ((float)HW * C);
    cosine[blockIdx.x] = weigh * cosines / HW;
}

template <int N>
static inline void flow_launch_loss(floatS* mse, floatS* cosine, floatX* dv, const floatX* v, const floatS* u,
                                    const floatS* weight, double scale_mse, double scale_cosine, int B, int HW, int C,
                                    stream_t s) {
    int lanes = 1;
    while (lanes < WARP && lanes * N < C) lanes *= 2;
    size_t threads = blocks_for((size_t)HW * lanes, WARP) * WARP;
    if (threads > FLOW_LOSS_THREADS) threads = FLOW_LOSS_THREADS;
    launch<flow_loss_kernel<N>>(B, (unsigned)threads, WARP * sizeof(float), s, mse, cosine, dv, v, u, weight,
                                (float)(scale_mse / ((double)HW * C)), (float)(scale_cosine / HW), HW, C, lanes);
}

void flow_loss(floatS* mse, floatS* cosine,             // (B)
               floatX* dv,                              // (B, HW, C) or NULL
               const floatX* v,                         // (B, HW, C)
               const floatS* u,                         // (B, HW, C)
               const floatS* weight,                    // (B) or NULL for 1
               double scale_mse, double scale_cosine, int B, int HW, int C, stream_t s) {
    (packable(C, dv, v, u) ? flow_launch_loss<PACKED> : flow_launch_loss<1>)
        (mse, cosine, dv, v, u, weight, scale_mse, scale_cosine, B, HW, C, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sampling

template <int N>
__global__ static void flow_guide_kernel(floatS* out,        // (B, HW, C)
                                         const floatX* cond, // (B, HW, OC)
                                         const floatX* null, // (B, HW, OC) or NULL
                                         const floatS* w,    // (B) or NULL
                                         int channels, size_t size, size_t n, int C, int OC) {
    size_t i = flow_begin<N>();
    if (i >= size) return;
    float value[N], other[N], weight = w && null ? w[i / n] : 1;
    int guided = channels - (int)(i % C); // of this thread's N, the first so many
    size_t from = i / C * OC + i % C;
    load_values<N>(value, cond + from);
    if (weight != 1 && guided > 0) {
        load_values<N>(other, null + from);
        for (int k = 0; k < N; k++) {
            if (k < guided) value[k] = other[k] + weight * (value[k] - other[k]);
        }
    }
    store_values<N>(out + i, value);
}

void flow_guide(floatS* out,        // (B, HW, C)
                const floatX* cond, // (B, HW, OC)
                const floatX* null, // (B, HW, OC) or NULL
                const floatS* w,    // (B) or NULL
                int channels, int B, int HW, int C, int OC, stream_t s) {
    size_t n = (size_t)HW * C, size = B * n;
    if (size == 0) return;
    if (OC % PACKED == 0 && packable(C, out, cond, null)) {
        launch<flow_guide_kernel<PACKED>>(flow_blocks<PACKED>(size), FLOW_THREADS, 0, s, out, cond, null, w, channels,
                                          size, n, C, OC);
    } else {
        launch<flow_guide_kernel<1>>(flow_blocks<1>(size), FLOW_THREADS, 0, s, out, cond, null, w, channels, size, n,
                                     C, OC);
    }
}

// Block b: image b, which it goes through twice; the second time it is in a cache. The sums of cond and of out add the
// same places in the same order, so that equal values have equal sums.
template <int N>
__global__ static void __launch_bounds__(FLOW_LOSS_THREADS)
flow_guide_energy_kernel(floatS* out,        // (B, HW, C) in place
                         const floatX* cond, // (B, HW, OC)
                         size_t n, int C, int OC) {
    shared<float> work = shared_array<float>(0, WARP);
    floatS* image = out + blockIdx.x * n;
    const floatX* from = cond + blockIdx.x * (n / C) * OC;
    float wanted = 0, energy = 0, value[N];
    for (size_t i = (size_t)threadIdx.x * N; i < n; i += (size_t)blockDim.x * N) {
        load_values<N>(value, image + i);
        for (int k = 0; k < N; k++) energy += value[k] * value[k];
        load_values<N>(value, from + i / C * OC + i % C);
        for (int k = 0; k < N; k++) wanted += value[k] * value[k];
    }
    wanted = block_sum(wanted, work);
    energy = block_sum(energy, work);
    float factor = energy > 0 ? sqrtf(wanted / energy) : 1;
    for (size_t i = (size_t)threadIdx.x * N; i < n; i += (size_t)blockDim.x * N) {
        load_values<N>(value, image + i);
        for (int k = 0; k < N; k++) value[k] *= factor;
        store_values<N>(image + i, value);
    }
}

void flow_guide_energy(floatS* out,        // (B, HW, C) in place
                       const floatX* cond, // (B, HW, OC)
                       int B, int HW, int C, int OC, stream_t s) {
    size_t n = (size_t)HW * C, bytes = WARP * sizeof(float);
    if (n == 0 || B == 0) return;
    if (OC % PACKED == 0 && packable(C, out, cond)) {
        launch<flow_guide_energy_kernel<PACKED>>(B, FLOW_LOSS_THREADS, bytes, s, out, cond, n, C, OC);
    } else {
        launch<flow_guide_energy_kernel<1>>(B, FLOW_LOSS_THREADS, bytes, s, out, cond, n, C, OC);
    }
}

// A thread a value: 4 channels are what Stable Diffusion's autoencoders have, and 250 steps take 1 ms.
__global__ static void diffusion_step_kernel(floatS* x,           // (B, HW, C) in place
                                             const floatS* out,   // (B, HW, OC)
                                             const floatS* noise, // (B, HW, C) or NULL
                                             float x_share, float out_share, float log_least, float log_most,
                                             size_t size, int C, int OC) {
    size_t i = flow_begin<1>();
    if (i >= size) return;
    const floatS* from = out + i / C * OC + i % C;
    float next = x_share * x[i] + out_share * from[0];
    if (noise) {
        float f = OC > C ? from[C] : 0, l = log_least;
        if (OC > C) l = (1 - f) / 2 * log_least + (1 + f) / 2 * log_most;
        next += expf(l / 2) * noise[i];
    }
    x[i] = next;
}

void diffusion_step(floatS* x,           // (B, HW, C) in place
                    const floatS* out,   // (B, HW, OC)
                    const floatS* noise, // (B, HW, C) or NULL
                    double x_share, double out_share, double log_least, double log_most, int B, int HW, int C, int OC,
                    stream_t s) {
    size_t size = (size_t)B * HW * C;
    if (size == 0) return;
    launch<diffusion_step_kernel>(flow_blocks<1>(size), FLOW_THREADS, 0, s, x, out, noise, (float)x_share,
                                  (float)out_share, (float)log_least, (float)log_most, size, C, OC);
}

typedef struct { float a[FLOW_STAGES]; } flow_weights_t; // travels with the launch, so that the host's array is free

// The loop over stages has a fixed length: weights are then read from where the arguments of kernels lie.
template <int N>
__global__ static void flow_combine_kernel(floatS* out,     // (B, n)
                                           const floatS* x, // (B, n)
                                           const floatS* k, // (stages, B, n)
                                           const floatS* h, // (B)
                                           flow_weights_t weights, size_t size, size_t n) {
    size_t i = flow_begin<N>();
    if (i >= size) return;
    float sum[N] = {}, value[N], step = h[i / n];
    UNROLL for (int stage = 0; stage < FLOW_STAGES; stage++) {
        float a = weights.a[stage];
        if (a == 0) continue; // not read: also the stages behind the last
        load_values<N>(value, k + stage * size + i);
        for (int j = 0; j < N; j++) sum[j] += a * value[j];
    }
    load_values<N>(value, x + i);
    for (int j = 0; j < N; j++) value[j] += step * sum[j];
    store_values<N>(out + i, value);
}

void flow_combine(floatS* out,       // (B, n)
                  const floatS* x,   // (B, n)
                  const floatS* k,   // (stages, B, n)
                  const floatS* h,   // (B) device memory
                  const double* a,   // (stages) host memory
                  int stages, int B, size_t n, stream_t s) {
    if (stages < 1 || stages > FLOW_STAGES) fatal("a Runge-Kutta step of %d stages; 1 to %d", stages, FLOW_STAGES);
    size_t size = (size_t)B * n;
    if (size == 0) return;
    flow_weights_t weights = {};
    for (int i = 0; i < stages; i++) weights.a[i] = (float)a[i];
    if (flow_packable(n, out, x, k)) {
        launch<flow_combine_kernel<PACKED>>(flow_blocks<PACKED>(size), FLOW_THREADS, 0, s, out, x, k, h, weights, size,
                                            n);
    } else {
        launch<flow_combine_kernel<1>>(flow_blocks<1>(size), FLOW_THREADS, 0, s, out, x, k, h, weights, size, n);
    }
}

template <int N>
__global__ static void latent_denormalise_kernel(floatX* z,                             // (N, C)
                                                 const floatS* x,                       // (N, C)
                                                 const floatS* mean, const floatS* std, // (C)
                                                 size_t size, int C) {
    size_t i = flow_begin<N>();
    if (i >= size) return;
    int c = (int)(i % C);
    float value[N], m[N], d[N];
    load_values<N>(value, x + i);
    load_values<N>(m, mean + c);
    load_values<N>(d, std + c);
    for (int k = 0; k < N; k++) value[k] = value[k] * d[k] + m[k];
    store_values<N>(z + i, value);
}

void latent_denormalise(floatX* z,                             // (N, C)
                        const floatS* x,                       // (N, C)
                        const floatS* mean, const floatS* std, // (C)
                        size_t N, int C, stream_t s) {
    size_t size = N * C;
    if (size == 0) return;
    if (packable(C, z, x, mean, std)) {
        launch<latent_denormalise_kernel<PACKED>>(flow_blocks<PACKED>(size), FLOW_THREADS, 0, s, z, x, mean, std, size,
                                                  C);
    } else {
        launch<latent_denormalise_kernel<1>>(flow_blocks<1>(size), FLOW_THREADS, 0, s, z, x, mean, std, size, C);
    }
}
