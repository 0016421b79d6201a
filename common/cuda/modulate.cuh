// modulate.cuh: RMSNorm or LayerNorm with the modulation of a diffusion transformer, alone and behind a gated branch.
//
//   sum = x + gate branch,   mean = 0 (RMSNorm) or mean over c of sum_c (LayerNorm),   xhat_c = (sum_c - mean) rstd
//   rstd = 1 / sqrt(mean over c of (sum_c - mean)^2 + eps),   out_c = xhat_c f_c + shift_c,
//   f_c = weight_c (1 + scale_c)
//   dsum_c += rstd (dout_c f_c - xhat_c mean(dout f xhat) - [LayerNorm] mean(dout f))    derived in dev/cpu/modulate.h
//   dbranch = gate dsum,   dgate_c = sum_t dsum_c branch_c,   dshift_c = sum_t dout_c,   dscale_c = weight_c q_c,
//   dweight_c += sum over images of (1 + scale_c) q_c,   q_c = sum_t dout_c xhat_c
//
// Vectors (f, gate, shift) and sums over t belong to an image. Hence a block walks along a strip of one image's tokens,
// NORM_TOKENS at a time. A thread owns the same 8 columns of all of them: the image's vectors and the three sums (q,
// dshift, dgate) stay in its registers, and no value is read twice. The row's own sum crosses the warps through shared
// memory, with one barrier for all tokens of a step, LayerNorm's two sums with one each. There are about as many blocks
// as the machine holds at once (norm_strips), several on each multiprocessor, so that some read while others wait at a
// barrier.
//
// The sums of a strip are a part (q, dshift, dgate) in device_scratch. A second kernel adds an image's parts in the
// order of its strips and rounds once; add_parts then adds the images' shares of dweight.
//
// Bytes at (128 images of 256 tokens, 1152) in the bf16 build, where a tensor of the stream is 151 MB and any other
// 75.5 MB, and the time that they take at 3 TB/s:
//   norm_modulate_forward          226 MB: x; out                                    75 us
//   gated_norm_modulate_forward    453 MB: x, branch; sum, out                      151 us
//   norm_modulate_backward         528 MB: dout, x, dx; dx                          176 us
//   gated_norm_modulate_backward   679 MB: dout, sum, dsum, branch; dsum, dbranch   226 us
// The parts are 5 MB (3 strips an image of 13.8 KB), written and read once: 2% of the backward.
//
// Look next at common/cuda/rope.cuh.
#pragma once
// defines: floatX, floatS, launch, shared_array, warp_sum, blocks_for
#include "common/cuda/launch.cuh"
// defines: norm_modulate_forward, norm_modulate_backward, gated_norm_modulate_forward, ..._backward
#include "common/ops.h"
// defines: PACKED, packable, load_values, store_values, add_parts
#include "common/cuda/rows.cuh"

constexpr int NORM_COLUMNS = 8;          // of a thread
constexpr int NORM_TOKENS = 2;           // of a step
constexpr int NORM_BLOCK = 384;          // most threads of a block: 3072 columns, 168 registers each
constexpr int NORM_RESIDENT = 512;       // threads that a multiprocessor holds, at 128 registers each
constexpr int NORM_FINISH_THREADS = 128; // of the kernel that adds the parts

// How the tokens of B images are cut: image b has `strips` strips of `tokens` tokens, the last may be shorter.
typedef struct {
    int threads, strips, tokens, T, C;
    size_t stride;
} norm_strips_t;

static inline norm_strips_t norm_strips(size_t stride, int B, int T, int C, stream_t s) {
    int most = NORM_BLOCK * NORM_COLUMNS;
    if (C > most) fatal("a norm over %d values; %d are the most", C, most);
    int threads = WARP * (int)blocks_for(C, WARP * NORM_COLUMNS);
    int steps = (int)blocks_for(T, NORM_TOKENS), strips = s->multiprocessors * (NORM_RESIDENT / threads) / B;
    if (strips > steps) strips = steps;
    if (strips < 1) strips = 1;
    int tokens = NORM_TOKENS * (int)blocks_for(steps, strips);
    return {threads, (int)blocks_for(T, tokens), tokens, T, C, stride};
}
static inline size_t norm_work_bytes(norm_strips_t z) {
    return 2 * NORM_TOKENS * (size_t)z.threads / WARP * sizeof(float);
}

// A thread's i-th group of N neighbouring columns begins here. It may lie behind the end of the row.
template <int N> __device__ static inline int norm_column(int i) { return (i * blockDim.x + threadIdx.x) * N; }

// A thread's values of a row, and zeros where there is no row or behind its end. The residual stream's are floatS.
template <int N, typename T, typename M>
__device__ static inline void norm_load(T value[NORM_COLUMNS], const M* row, int C) {
    UNROLL
    for (int i = 0; i < NORM_COLUMNS / N; i++) {
        int c = norm_column<N>(i);
        for (int k = 0; k < N; k++) value[i * N + k] = (T)0.0f;
        if (row && c < C) load_values<N>(value + i * N, row + c);
    }
}
template <int N, typename M> __device__ static inline void norm_store(M* row, const float value[NORM_COLUMNS], int C) {
    UNROLL
    for (int i = 0; i < NORM_COLUMNS / N; i++) {
        int c = norm_column<N>(i);
        if (c < C) store_values<N>(row + c, value + i * N);
    }
}

// The sums over the block of one value a token. Calls take turns with two pieces of shared memory: who writes a piece
// has passed the barrier of the call between, and all threads came there with the piece read.
__device__ static inline void norm_row_sums(float sum[NORM_TOKENS], int call) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    shared<float> work = shared_array<float>(0, 2 * NORM_TOKENS * warps);
    int at = call % 2 * NORM_TOKENS * warps;
    UNROLL
    for (int r = 0; r < NORM_TOKENS; r++) {
        float part = warp_sum(sum[r]);
        if (lane == 0) work[at + r * warps + warp] = part;
    }
    __syncthreads();
    UNROLL
    for (int r = 0; r < NORM_TOKENS; r++) {
        sum[r] = 0;
        for (int i = 0; i < warps; i++) sum[r] += work[at + r * warps + i];
    }
}

// Factors of an image's columns: f = weight (1 + scale).
template <int N>
__device__ static inline void norm_factors(float f[NORM_COLUMNS],
                                           const floatX* weight, // (C) or NULL for 1
                                           const floatX* scale,  // (C) or NULL for 0
                                           int C) {
    float w[NORM_COLUMNS];
    norm_load<N>(w, weight, C);
    norm_load<N>(f, scale, C);
    for (int j = 0; j < NORM_COLUMNS; j++) f[j] = (weight ? w[j] : 1) * (1 + f[j]);
}

// Takes the means of the rows from their values; columns behind the end of a row stay 0.
template <int N>
__device__ static inline void norm_centre(float value[NORM_TOKENS][NORM_COLUMNS], float mean[NORM_TOKENS], int C,
                                          int call) {
    UNROLL
    for (int r = 0; r < NORM_TOKENS; r++) {
        mean[r] = 0;
        for (int j = 0; j < NORM_COLUMNS; j++) mean[r] += value[r][j];
    }
    norm_row_sums(mean, call);
    UNROLL
    for (int r = 0; r < NORM_TOKENS; r++) {
        mean[r] /= C;
        for (int j = 0; j < NORM_COLUMNS; j++) {
            if (norm_column<N>(j / N) < C) value[r][j] -= mean[r];
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

// Block image * strips + i walks along strip i of an image. branch NULL: the norm of x alone; out NULL: the branch
// alone. CENTRED: LayerNorm.
template <int N, bool CENTRED>
__global__ static void __launch_bounds__(NORM_BLOCK)
norm_forward_kernel(floatS* sum,          // (B, T, C), written where there is a branch
                    floatX* out,          // (B, T, C) or NULL
                    floatS* mean,         // (B, T) where CENTRED
                    floatS* rstd,         // (B, T)
                    const floatS* x,      // (B, T, C)
                    const floatX* branch, // (B, T, C) or NULL
                    const floatX* gate,   // (B, C) or NULL, as branch
                    const floatX* weight, // (C) or NULL for 1
                    const floatX* shift,  // (B, C) or NULL
                    const floatX* scale,  // (B, C)
                    norm_strips_t z, float eps) {
    int C = z.C, image = blockIdx.x / z.strips, begin = blockIdx.x % z.strips * z.tokens;
    int end = begin + z.tokens < z.T ? begin + z.tokens : z.T;
    size_t vector = image * z.stride, first = (size_t)image * z.T;
    float f[NORM_COLUMNS], g[NORM_COLUMNS], b[NORM_COLUMNS];
    norm_factors<N>(f, weight, scale ? scale + vector : nullptr, C);
    norm_load<N>(g, gate ? gate + vector : nullptr, C);
    norm_load<N>(b, shift ? shift + vector : nullptr, C);
    for (int t = begin, step = 0; t < end; t += NORM_TOKENS, step++) {
        float value[NORM_TOKENS][NORM_COLUMNS], squares[NORM_TOKENS] = {}, centre[NORM_TOKENS];
        floatX add[NORM_TOKENS][NORM_COLUMNS];
        UNROLL
        for (int r = 0; r < NORM_TOKENS; r++) {
            size_t at = (first + t + r) * C;
            norm_load<N>(value[r], t + r < end ? x + at : nullptr, C);
            norm_load<N>(add[r], branch && t + r < end ? branch + at : nullptr, C);
        }
        UNROLL
        for (int r = 0; r < NORM_TOKENS; r++) {
            for (int j = 0; j < NORM_COLUMNS; j++) value[r][j] += g[j] * (float)add[r][j];
            if (branch && t + r < end) norm_store<N>(sum + (first + t + r) * C, value[r], C);
        }
        if (!out) continue;
        if constexpr (CENTRED) norm_centre<N>(value, centre, C, 2 * step);
        UNROLL
        for (int r = 0; r < NORM_TOKENS; r++) {
            for (int j = 0; j < NORM_COLUMNS; j++) squares[r] += value[r][j] * value[r][j];
        }
        norm_row_sums(squares, CENTRED ? 2 * step + 1 : step);
        UNROLL
        for (int r = 0; r < NORM_TOKENS; r++) {
            if (t + r >= end) continue;
            float scaled = 1 / sqrtf(squares[r] / C + eps);
            for (int j = 0; j < NORM_COLUMNS; j++) value[r][j] = value[r][j] * scaled * f[j] + b[j];
            norm_store<N>(out + (first + t + r) * C, value[r], C);
            if (threadIdx.x == 0) rstd[first + t + r] = scaled;
            if (CENTRED && threadIdx.x == 0) mean[first + t + r] = centre[r];
        }
    }
}

// sum, branch and gate NULL: the norm alone.
template <int N>
static inline void norm_launch_forward(floatS* sum, floatX* out, floatS* mean, floatS* rstd, const floatS* x,
                                       const floatX* branch, const floatX* gate, const floatX* weight,
                                       const floatX* shift, const floatX* scale, size_t stride, int B, int T, int C,
                                       double eps, stream_t s) {
    norm_strips_t z = norm_strips(stride, B, T, C, s);
    unsigned blocks = (unsigned)B * z.strips;
    if (mean) launch<norm_forward_kernel<N, true>>(blocks, z.threads, norm_work_bytes(z), s, sum, out, mean, rstd, x,
                                                   branch, gate, weight, shift, scale, z, (float)eps);
    else launch<norm_forward_kernel<N, false>>(blocks, z.threads, norm_work_bytes(z), s, sum, out, mean, rstd, x,
                                               branch, gate, weight, shift, scale, z, (float)eps);
}

void gated_norm_modulate_forward(floatS* sum,          // (B, T, C)
                                 floatX* out,          // (B, T, C)
                                 floatS* mean,         // (B, T) LayerNorm, or NULL: RMSNorm
                                 floatS* rstd,         // (B, T)
                                 const floatS* x,      // (B, T, C)
                                 const floatX* branch, // (B, T, C)
                                 const floatX* gate,   // (B, C)
                                 const floatX* weight, // (C) or NULL for 1
                                 const floatX* shift,  // (B, C) or NULL
                                 const floatX* scale,  // (B, C)
                                 size_t stride, int B, int T, int C, double eps, stream_t s) {
    int packed = stride % PACKED == 0 && packable(C, sum, out, x, branch, gate, weight, shift, scale);
    (packed ? norm_launch_forward<PACKED> : norm_launch_forward<1>)
        (sum, out, mean, rstd, x, branch, gate, weight, shift, scale, stride, B, T, C, eps, s);
}

void norm_modulate_forward(floatX* out,          // (B, T, C)
                           floatS* mean,         // (B, T) LayerNorm, or NULL: RMSNorm
                           floatS* rstd,         // (B, T)
                           const floatS* x,      // (B, T, C)
                           const floatX* weight, // (C) or NULL for 1
                           const floatX* shift,  // (B, C) or NULL
                           const floatX* scale,  // (B, C)
                           size_t stride, int B, int T, int C, double eps, stream_t s) {
    int packed = stride % PACKED == 0 && packable(C, out, x, weight, shift, scale);
    (packed ? norm_launch_forward<PACKED> : norm_launch_forward<1>)
        (NULL, out, mean, rstd, x, NULL, NULL, weight, shift, scale, stride, B, T, C, eps, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward

// Block image * strips + i walks along strip i of an image, and leaves its part of the sums over tokens. dout NULL: the
// branch alone.
template <int N, bool CENTRED>
__global__ static void __launch_bounds__(NORM_BLOCK)
norm_backward_kernel(floatS* dsum,         // (B, T, C) +=
                     floatX* dbranch,      // (B, T, C) or NULL
                     float* parts,         // (B, strips, 3, C): q, dshift, dgate
                     const floatX* dout,   // (B, T, C) or NULL
                     const floatS* sum,    // (B, T, C) or NULL, as dout
                     const floatX* branch, // (B, T, C) or NULL, as dbranch
                     const floatX* gate,   // (B, C) or NULL, as dbranch
                     const floatX* weight, // (C) or NULL for 1
                     const floatX* scale,  // (B, C) or NULL, as dout
                     const floatS* mean,   // (B, T) where CENTRED
                     const floatS* rstd,   // (B, T) or NULL, as dout
                     norm_strips_t z) {
    int C = z.C, image = blockIdx.x / z.strips, begin = blockIdx.x % z.strips * z.tokens;
    int end = begin + z.tokens < z.T ? begin + z.tokens : z.T;
    size_t vector = image * z.stride, first = (size_t)image * z.T;
    float f[NORM_COLUMNS], q[NORM_COLUMNS] = {}, dshift[NORM_COLUMNS] = {}, dgate[NORM_COLUMNS] = {};
    floatX g[NORM_COLUMNS];
    norm_factors<N>(f, weight, scale ? scale + vector : nullptr, C);
    norm_load<N>(g, gate ? gate + vector : nullptr, C);
    for (int t = begin, step = 0; t < end; t += NORM_TOKENS, step++) {
        float xhat[NORM_TOKENS][NORM_COLUMNS], d[NORM_TOKENS][NORM_COLUMNS];
        floatX in[NORM_TOKENS][NORM_COLUMNS], add[NORM_TOKENS][NORM_COLUMNS];
        float scaled[NORM_TOKENS], centre[NORM_TOKENS], along[NORM_TOKENS] = {}, across[NORM_TOKENS] = {};
        UNROLL
        for (int r = 0; r < NORM_TOKENS; r++) { // a token behind the end is zeros: it adds nothing to any sum
            int there = t + r < end, normed = there && dout;
            size_t at = (first + t + r) * C;
            scaled[r] = normed ? rstd[first + t + r] : 0;
            centre[r] = CENTRED && normed ? mean[first + t + r] : 0;
            norm_load<N>(xhat[r], normed ? sum + at : nullptr, C);
            norm_load<N>(in[r], normed ? dout + at : nullptr, C);
            norm_load<N>(d[r], there ? dsum + at : nullptr, C);
            norm_load<N>(add[r], there && branch ? branch + at : nullptr, C);
        }
        UNROLL
        for (int r = 0; r < NORM_TOKENS; r++) {
            for (int j = 0; j < NORM_COLUMNS; j++) {
                float o = (float)in[r][j];
                xhat[r][j] = (xhat[r][j] - centre[r]) * scaled[r];
                q[j] += o * xhat[r][j];
                dshift[j] += o;
                along[r] += o * f[j] * xhat[r][j];
                if (CENTRED) across[r] += o * f[j];
            }
        }
        norm_row_sums(along, CENTRED ? 2 * step : step);
        if constexpr (CENTRED) norm_row_sums(across, 2 * step + 1);
        UNROLL
        for (int r = 0; r < NORM_TOKENS; r++) {
            if (t + r >= end) continue;
            size_t at = (first + t + r) * C;
            for (int j = 0; j < NORM_COLUMNS; j++) {
                d[r][j] += scaled[r] * ((float)in[r][j] * f[j] - xhat[r][j] * (along[r] / C) - across[r] / C);
                dgate[j] += d[r][j] * (float)add[r][j];
            }
            norm_store<N>(dsum + at, d[r], C);
            if (!branch) continue;
            for (int j = 0; j < NORM_COLUMNS; j++) d[r][j] *= (float)g[j];
            norm_store<N>(dbranch + at, d[r], C);
        }
    }
    float* part = parts + (size_t)blockIdx.x * 3 * C;
    norm_store<N>(part, q, C);
    norm_store<N>(part + C, dshift, C);
    norm_store<N>(part + 2 * C, dgate, C);
}

// Adds the parts of an image, a thread a column: its vectors' gradients, and its share of dweight.
__global__ static void norm_finish_kernel(floatX* dgate,        // (B, C) or NULL
                                          floatX* dshift,       // (B, C) or NULL
                                          floatX* dscale,       // (B, C) or NULL
                                          float* shares,        // (B, C)
                                          const float* parts,   // (B, strips, 3, C)
                                          const floatX* weight, // (C) or NULL for 1
                                          const floatX* scale,  // (B, C) or NULL for 0
                                          norm_strips_t z) {
    int blocks = (z.C + blockDim.x - 1) / blockDim.x, image = blockIdx.x / blocks;
    int c = blockIdx.x % blocks * blockDim.x + threadIdx.x;
    if (c >= z.C) return;
    float sum[3] = {};
    for (int i = 0; i < z.strips; i++) {
        for (int k = 0; k < 3; k++) sum[k] += parts[(((size_t)image * z.strips + i) * 3 + k) * z.C + c];
    }
    size_t at = image * z.stride + c;
    if (dscale) dscale[at] = (floatX)((weight ? (float)weight[c] : 1) * sum[0]);
    if (dshift) dshift[at] = (floatX)sum[1];
    if (dgate) dgate[at] = (floatX)sum[2];
    shares[(size_t)image * z.C + c] = (1 + (scale ? (float)scale[at] : 0)) * sum[0];
}

// dbranch, dgate, branch and gate NULL: the norm alone.
template <int N>
static inline void norm_launch_backward(floatS* dsum, floatX* dbranch, floatX* dgate, floatS* dweight, floatX* dshift,
                                        floatX* dscale, const floatX* dout, const floatS* sum, const floatX* branch,
                                        const floatX* gate, const floatX* weight, const floatX* scale,
                                        const floatS* mean, const floatS* rstd, size_t stride, int B, int T, int C,
                                        stream_t s) {
    norm_strips_t z = norm_strips(stride, B, T, C, s);
    size_t blocks = (size_t)B * z.strips, values = blocks * 3 * C;
    float* parts = (float*)device_scratch(s, (values + (size_t)B * C) * sizeof(float));
    float* shares = parts + values;
    if (mean) launch<norm_backward_kernel<N, true>>((unsigned)blocks, z.threads, norm_work_bytes(z), s, dsum, dbranch,
                                                    parts, dout, sum, branch, gate, weight, scale, mean, rstd, z);
    else launch<norm_backward_kernel<N, false>>((unsigned)blocks, z.threads, norm_work_bytes(z), s, dsum, dbranch,
                                                parts, dout, sum, branch, gate, weight, scale, mean, rstd, z);
    launch<norm_finish_kernel>((unsigned)B * blocks_for(C, NORM_FINISH_THREADS), NORM_FINISH_THREADS, 0, s, dgate,
                               dshift, dscale, shares, parts, weight, scale, z);
    add_parts(dweight, NULL, NULL, shares, B, 1, C, s);
}

void gated_norm_modulate_backward(floatS* dsum,         // (B, T, C) +=
                                  floatX* dbranch,      // (B, T, C)
                                  floatX* dgate,        // (B, C)
                                  floatS* dweight,      // (C) or NULL
                                  floatX* dshift,       // (B, C) or NULL
                                  floatX* dscale,       // (B, C)
                                  const floatX* dout,   // (B, T, C)
                                  const floatS* sum,    // (B, T, C)
                                  const floatX* branch, // (B, T, C)
                                  const floatX* gate,   // (B, C)
                                  const floatX* weight, // (C) or NULL for 1
                                  const floatX* scale,  // (B, C)
                                  const floatS* mean,   // (B, T) LayerNorm, or NULL: RMSNorm
                                  const floatS* rstd,   // (B, T)
                                  size_t stride, int B, int T, int C, stream_t s) {
    int packed = stride % PACKED == 0 && packable(C, dsum, dbranch, dout, sum, branch, gate, weight, scale);
    (packed ? norm_launch_backward<PACKED> : norm_launch_backward<1>)
        (dsum, dbranch, dgate, dweight, dshift, dscale, dout, sum, branch, gate, weight, scale, mean, rstd, stride, B,
         T, C, s);
}

void norm_modulate_backward(floatS* dx,           // (B, T, C) +=
                            floatS* dweight,      // (C) or NULL
                            floatX* dshift,       // (B, C) or NULL
                            floatX* dscale,       // (B, C)
                            const floatX* dout,   // (B, T, C)
                            const floatS* x,      // (B, T, C)
                            const floatX* weight, // (C) or NULL for 1
                            const floatX* scale,  // (B, C)
                            const floatS* mean,   // (B, T) LayerNorm, or NULL: RMSNorm
                            const floatS* rstd,   // (B, T)
                            size_t stride, int B, int T, int C, stream_t s) {
    int packed = stride % PACKED == 0 && packable(C, dx, dout, x, weight, scale);
    (packed ? norm_launch_backward<PACKED> : norm_launch_backward<1>)
        (dx, NULL, NULL, dweight, dshift, dscale, dout, x, NULL, NULL, weight, scale, mean, rstd, stride, B, T, C, s);
}
