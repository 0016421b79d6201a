// groupnorm.cuh: GroupNorm with or without the swish behind it, and the passes over memory that it shares with
// BatchNorm (common/cuda/batchnorm.cuh).
//
//   mean = (1/n) sum x    var = (1/n) sum (x - mean)^2    rstd = 1 / sqrt(var + eps)
//   xhat = (x - mean) rstd    h = weight_c xhat + bias_c    out = f(h),  f(h) = h sigmoid(h) or h
//   dx = rstd (t - mean(t) - xhat mean(t xhat)),  t = weight_c dout f'(h)               derived in dev/cpu/groupnorm.h
//
// The n values that share mean and rstd are a set of rows (the positions of an image; for BatchNorm those of a chunk of
// images) in C/G neighbouring channels, 4 to 16 of 128 to 512. Reading them group by group would be reading 8 to 32
// bytes here and there. So a block reads whole rows, a slice of a set; each thread owns the same N channels in every
// row and sums for each of its channels alone. Only where slices are added up do channels come together in groups,
// which may therefore have any width.
//
//   forward    moments: a slice's mean and squared deviation of each channel -> parts (sets, slices, 2, C)
//              statistics: the parts of a group -> mean, rstd (sets, G)
//              apply: out
//   backward   sums: a slice's sums of dy = dout f'(h) and of dy xhat for each channel -> parts (sets, slices, 2, C)
//              means: the parts of a group -> its means of t and t xhat; the parts of a channel -> totals (sets, 2, C)
//              dx
//              add_parts: totals of all sets -> dweight, dbias; where each set has its own, they are these totals
//
// Cost. Forward 3 passes: x twice, out (2 would be the floor, if a set stayed on the chip meanwhile); apply 2; backward
// 6: dout and x twice, add, dx (floor 4), or 5 without add. In bf16 and at 3 TB/s a pass over 64 images of (256 x 256,
// 128) is 1.07 GB, 0.36 ms: 1.07 ms forward, 0.72 ms apply, 2.15 ms backward. Over 64 of (16 x 16, 512) it is 16.8 MB,
// 5.6 us. Parts are 1% (C = 128) to 3% (C = 512) of a pass, 12% in small maps. What fits into the cache (50 MB) is read
// there the second time: the second pass runs from the end to the start, and so begins with what the first read last.
// With swish a value costs 11 instructions in apply, 18 in sums, 23 in dx: a third to a half of what an H100 can do in
// the time that the memory takes.
//
// Digits. E[x^2] - E[x]^2 loses them all where the mean is large. A thread measures from an origin, its own first value
// of the channel: with D = origin - mean over its n values, their squares are M2 + n D^2, and since the origin is one
// of them M2 >= D^2. So the sum is at most n + 1 times M2, and n <= NORM_MOST_ROWS = 32: a few bits are lost, and only
// if the origin lies far off. Everything above a thread is combined from means and squared deviations (Chan, Golub &
// LeVeque 1979).
//
// Look next at common/cuda/batchnorm.cuh.
#pragma once
// defines: floatX, floatS, launch, shared_array, warp_sum, blocks_for, exp2_fast, reciprocal_fast
#include "common/cuda/launch.cuh"
// defines: activation_t, LEAKY_SLOPE, groupnorm_*, adaptive_groupnorm_*
#include "common/ops.h"
// defines: PACKED, packable, load_values, store_values, add_parts
#include "common/cuda/rows.cuh"

constexpr int NORM_THREADS = 256;                        // of a block, at most
constexpr int NORM_MOST_ROWS = 32, NORM_LEAST_ROWS = 4;  // that a thread visits
constexpr int NORM_BLOCKS = 4;                           // wanted for each multiprocessor

// The sizes of a normalisation: `sets` images or chunks of `rows` rows, cut into `slices` of slice_rows each, of which
// the last may be shorter.
typedef struct {
    int sets, C, G, width; // width = C / G, the channels of a group
    int packed;            // a thread owns PACKED channels, else 1
    unsigned slices, slice_rows;
    size_t rows;
    size_t own; // weight and bias of a set begin so many values behind those of the set before; 0: all share them
} norm_sizes_t;

// threadIdx.x is the thread within the row, threadIdx.y the row of those that a block reads at once; blockIdx.x is the
// slice, of all sets; blockIdx.y counts on where a row has more than NORM_THREADS threads' channels.
static inline dim3 norm_block(norm_sizes_t z) {
    int columns = z.C / (z.packed ? PACKED : 1), x = columns < NORM_THREADS ? columns : NORM_THREADS;
    return dim3(x, NORM_THREADS / x);
}
static inline dim3 norm_grid(norm_sizes_t z) {
    int columns = z.C / (z.packed ? PACKED : 1);
    return dim3(z.sets * z.slices, blocks_for(columns, norm_block(z).x));
}

// Slices small enough to fill the machine, and for the digits; but not smaller than NORM_LEAST_ROWS rows a thread, and
// no more than the scratch memory has room for.
static inline norm_sizes_t norm_sizes(int sets, size_t rows, int C, int G, int packed, stream_t s) {
    norm_sizes_t z = {sets, C, G, C / G, packed, 1, 0, rows, 0};
    size_t y = norm_block(z).y, blocks = norm_grid(z).x * norm_grid(z).y; // with one slice a set
    size_t slices = blocks_for((size_t)NORM_BLOCKS * s->multiprocessors, blocks);
    size_t least = blocks_for(rows, NORM_MOST_ROWS * y), most = blocks_for(rows, NORM_LEAST_ROWS * y);
    size_t room = DEVICE_SCRATCH_BYTES / ((size_t)sets * 2 * C * sizeof(float)); // slices, totals, means
    if (slices < least) slices = least;
    if (slices > most) slices = most;
    if (slices + 2 > room) slices = room > 3 ? room - 2 : 1;
    z.slice_rows = blocks_for(blocks_for(rows, slices), y) * y;
    z.slices = blocks_for(rows, z.slice_rows);
    return z;
}

// The rows of a slice, and of thread y of those that share them.
__device__ static inline unsigned norm_slice_rows(norm_sizes_t z, unsigned slice) {
    size_t left = z.rows - (size_t)slice * z.slice_rows;
    return left < z.slice_rows ? left : z.slice_rows;
}
__device__ static inline unsigned norm_thread_rows(unsigned rows, unsigned y) {
    return rows / blockDim.y + (y < rows % blockDim.y);
}

// What a thread owns: channels c .. c + N - 1 of `rows` rows. The first begins at element `at`, the next is `step`
// elements further on. A thread that no channels are left for has no rows.
//
// The rows are visited a few at once, ROWS, so that as many reads are under way: all are asked for before the first is
// used. What remains is visited one by one. __launch_bounds__ tells the compiler how few blocks have to fit on a
// multiprocessor; aiming at more of them it would save registers by reading later.
typedef struct {
    int c;
    unsigned rows;
    size_t set, at, step;
} norm_place_t;

template <int N> __device__ static inline norm_place_t norm_place(norm_sizes_t z, unsigned index) {
    unsigned slice = index % z.slices;
    norm_place_t p;
    p.c = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    p.set = index / z.slices;
    p.rows = p.c < z.C ? norm_thread_rows(norm_slice_rows(z, slice), threadIdx.y) : 0;
    p.at = (p.set * z.rows + (size_t)slice * z.slice_rows + threadIdx.y) * z.C + p.c;
    p.step = (size_t)blockDim.y * z.C;
    return p;
}

// In shared memory the value of channel k of thread (x, y) lies at (y N + k) blockDim.x + x: those of one channel are
// N blockDim.x apart, and neighbouring threads meet different banks. Of the N blockDim.x channels of a block, number j
// is this channel of the row:
template <int N> __device__ static inline int norm_channel(int j) {
    return (blockIdx.y * blockDim.x + j % blockDim.x) * N + j / blockDim.x;
}
static inline size_t norm_shared_bytes(norm_sizes_t z) {
    dim3 block = norm_block(z);
    return (size_t)2 * block.x * block.y * (z.packed ? PACKED : 1) * sizeof(float);
}

// ---------------------------------------------------------------------------------------------------------------------
// Statistics

template <int N, int ROWS>
__device__ static inline void norm_add_moments(float sum[N], float squares[N], const float origin[N], const floatX* x,
                                               size_t step) {
    float value[ROWS][N];
    for (int i = 0; i < ROWS; i++) load_values<N>(value[i], x + i * step);
    for (int i = 0; i < ROWS; i++) {
        for (int k = 0; k < N; k++) {
            float d = value[i][k] - origin[k];
            sum[k] += d;
            squares[k] += d * d;
        }
    }
}

// parts: for each channel the mean of a slice, and the sum of the squared deviations from it.
template <int N>
__launch_bounds__(NORM_THREADS, 4)
__global__ static void norm_moments_kernel(float* parts,    // (sets, slices, 2, C)
                                           const floatX* x, // (sets, rows, C)
                                           norm_sizes_t z) {
    constexpr int ROWS = 4;
    norm_place_t p = norm_place<N>(z, blockIdx.x);
    float origin[N] = {}, sum[N] = {}, squares[N] = {};
    size_t at = p.at;
    unsigned i = 0;
    if (p.rows > 0) load_values<N>(origin, x + at);
    for (; i + ROWS <= p.rows; i += ROWS, at += ROWS * p.step) {
        norm_add_moments<N, ROWS>(sum, squares, origin, x + at, p.step);
    }
    for (; i < p.rows; i++, at += p.step) norm_add_moments<N, 1>(sum, squares, origin, x + at, p.step);

    int width = blockDim.x * N, height = blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
    shared<float> mean = shared_array<float>(0, height * width);
    shared<float> deviation = shared_array<float>(height * width * sizeof(float), height * width);
    float inverse = p.rows > 0 ? 1 / (float)p.rows : 0;
    for (int k = 0; k < N; k++) {
        int to = threadIdx.y * width + k * blockDim.x + threadIdx.x;
        mean[to] = origin[k] + sum[k] * inverse;
        deviation[to] = fmaxf(squares[k] - sum[k] * sum[k] * inverse, 0);
    }
    __syncthreads();
    unsigned rows = norm_slice_rows(z, blockIdx.x % z.slices);
    for (int j = thread; j < width; j += blockDim.x * height) { // thread y has n values of mean[y, j]
        float m = 0, d = 0, rest = 0, n;
        for (int y = 0; y < height; y++) {
            n = (float)norm_thread_rows(rows, y);
            m += n * (mean[y * width + j] - mean[j]);
        }
        m = mean[j] + m / (float)rows;
        for (int y = 0; y < height; y++) {
            float off = mean[y * width + j] - m;
            n = (float)norm_thread_rows(rows, y);
            d += deviation[y * width + j] + n * off * off;
            rest += n * off;
        }
        m += rest / (float)rows; // what the first sum lost to rounding
        int c = norm_channel<N>(j);
        if (c >= z.C) continue;
        parts[(size_t)blockIdx.x * 2 * z.C + c] = m;
        parts[((size_t)blockIdx.x * 2 + 1) * z.C + c] = d;
    }
}

// One warp a group: its threads share the slices and channels. Slices i with n_i rows have mean m_i and squared
// deviations d_i in a channel; together sum n_i m_i / n and sum d_i + n_i (m_i - mean)^2. Means are measured from the
// first of them.
__global__ static void norm_statistics_kernel(floatS* mean, floatS* rstd, // (sets, G)
                                              const float* parts,         // (sets, slices, 2, C)
                                              norm_sizes_t z, float eps) {
    unsigned set = blockIdx.x / z.G, count = z.slices * z.width;
    const float* first = parts + (size_t)set * z.slices * 2 * z.C + blockIdx.x % z.G * z.width;
    float n = (float)z.rows * z.width, total = 0, squares = 0;
    for (unsigned i = threadIdx.x; i < count; i += WARP) {
        const float* part = first + (size_t)(i / z.width) * 2 * z.C + i % z.width;
        total += (float)norm_slice_rows(z, i / z.width) * (part[0] - first[0]);
    }
    float m = first[0] + warp_sum(total) / n;
    for (unsigned i = threadIdx.x; i < count; i += WARP) {
        const float* part = first + (size_t)(i / z.width) * 2 * z.C + i % z.width;
        squares += part[z.C] + (float)norm_slice_rows(z, i / z.width) * (part[0] - m) * (part[0] - m);
    }
    float r = 1 / sqrtf(warp_sum(squares) / n + eps);
    if (threadIdx.x > 0) return;
    mean[blockIdx.x] = m;
    rstd[blockIdx.x] = r;
}

// mean, rstd (sets, G) of x (sets, rows, C).
static inline void norm_statistics(floatS* mean, floatS* rstd, const floatX* x, norm_sizes_t z, double eps,
                                   stream_t s) {
    float* parts = (float*)device_scratch(s, (size_t)z.sets * z.slices * 2 * z.C * sizeof(float));
    dim3 grid = norm_grid(z), block = norm_block(z);
    if (z.packed) launch<norm_moments_kernel<PACKED>>(grid, block, norm_shared_bytes(z), s, parts, x, z);
    else launch<norm_moments_kernel<1>>(grid, block, norm_shared_bytes(z), s, parts, x, z);
    launch<norm_statistics_kernel>(z.sets * z.G, WARP, 0, s, mean, rstd, parts, z, (float)eps);
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

__device__ static inline float norm_sigmoid(float h) { return reciprocal_fast(1 + exp2_fast(-1.44269504f * h)); }

template <activation_t act> __device__ static inline float norm_activate(float h) {
    if (act == ACT_SWISH) return h * norm_sigmoid(h);
    if (act == ACT_LEAKY) return h > 0 ? h : (float)LEAKY_SLOPE * h;
    return h;
}

// f'(h). Swish: with a = sigmoid(h), f' = a + h a (1 - a).
template <activation_t act> __device__ static inline float norm_slope(float h) {
    if (act == ACT_SWISH) {
        float a = norm_sigmoid(h);
        return a * (1 + h * (1 - a));
    }
    if (act == ACT_LEAKY) return h > 0 ? 1 : (float)LEAKY_SLOPE;
    return 1;
}

// Statistics and parameters of a thread's channels.
template <int N> struct norm_channels { float mean[N], rstd[N], weight[N], bias[N]; };

// to_k = what `from` has for the group of channel k; the groups' values are `step` apart.
template <int N>
__device__ static inline void norm_load_groups(float to[N], const float* from, int step, norm_place_t p,
                                               norm_sizes_t z) {
    size_t group = p.set * z.G + p.c / z.width;
    int within = p.c % z.width;
    for (int k = 0; k < N; k++) {
        to[k] = from[group * step];
        if (++within == z.width) within = 0, group++;
    }
}

template <int N>
__device__ static inline norm_channels<N> norm_load_channels(norm_place_t p, const floatS* mean, const floatS* rstd,
                                                             const floatX* weight, const floatX* bias, norm_sizes_t z) {
    norm_channels<N> a;
    norm_load_groups<N>(a.mean, mean, 1, p, z);
    norm_load_groups<N>(a.rstd, rstd, 1, p, z);
    load_values<N>(a.weight, weight + p.set * z.own + p.c);
    load_values<N>(a.bias, bias + p.set * z.own + p.c);
    return a;
}

template <int N, activation_t act, int ROWS>
__device__ static inline void norm_apply_rows(floatX* out, const floatX* x, const norm_channels<N>& a, size_t step) {
    float value[ROWS][N];
    for (int i = 0; i < ROWS; i++) load_values<N>(value[i], x + i * step);
    for (int i = 0; i < ROWS; i++) {
        for (int k = 0; k < N; k++) {
            float xhat = (value[i][k] - a.mean[k]) * a.rstd[k];
            value[i][k] = norm_activate<act>(xhat * a.weight[k] + a.bias[k]);
        }
        store_values<N>(out + i * step, value[i]);
    }
}

template <int N, activation_t act>
__launch_bounds__(NORM_THREADS, 3)
__global__ static void norm_apply_kernel(floatX* out,                            // (sets, rows, C)
                                         const floatX* x,                        // (sets, rows, C)
                                         const floatX* weight,                   // (C)
                                         const floatX* bias,                     // (C)
                                         const floatS* mean, const floatS* rstd, // (sets, G)
                                         norm_sizes_t z) {
    constexpr int ROWS = 4;
    norm_place_t p = norm_place<N>(z, gridDim.x - 1 - blockIdx.x);
    if (p.rows == 0) return;
    norm_channels<N> a = norm_load_channels<N>(p, mean, rstd, weight, bias, z);
    size_t at = p.at;
    unsigned i = 0;
    for (; i + ROWS <= p.rows; i += ROWS, at += ROWS * p.step) {
        norm_apply_rows<N, act, ROWS>(out + at, x + at, a, p.step);
    }
    for (; i < p.rows; i++, at += p.step) norm_apply_rows<N, act, 1>(out + at, x + at, a, p.step);
}

// out = f(weight xhat + bias) from given statistics.
template <int N>
static inline void norm_apply_n(floatX* out, const floatX* x, const floatX* weight, const floatX* bias,
                                const floatS* mean, const floatS* rstd, norm_sizes_t z, activation_t act, stream_t s) {
    dim3 grid = norm_grid(z), block = norm_block(z);
    if (act == ACT_SWISH) {
        launch<norm_apply_kernel<N, ACT_SWISH>>(grid, block, 0, s, out, x, weight, bias, mean, rstd, z);
    } else if (act == ACT_LEAKY) {
        launch<norm_apply_kernel<N, ACT_LEAKY>>(grid, block, 0, s, out, x, weight, bias, mean, rstd, z);
    } else {
        launch<norm_apply_kernel<N, ACT_NONE>>(grid, block, 0, s, out, x, weight, bias, mean, rstd, z);
    }
}
static inline void norm_apply(floatX* out, const floatX* x, const floatX* weight, const floatX* bias,
                              const floatS* mean, const floatS* rstd, norm_sizes_t z, activation_t act, stream_t s) {
    if (z.packed) norm_apply_n<PACKED>(out, x, weight, bias, mean, rstd, z, act, s);
    else norm_apply_n<1>(out, x, weight, bias, mean, rstd, z, act, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward

template <int N, activation_t act, int ROWS>
__device__ static inline void norm_add_sums(float sum[N], float sum_xhat[N], const floatX* dout, const floatX* x,
                                            const norm_channels<N>& a, size_t step) {
    float d[ROWS][N], value[ROWS][N];
    for (int i = 0; i < ROWS; i++) load_values<N>(d[i], dout + i * step);
    for (int i = 0; i < ROWS; i++) load_values<N>(value[i], x + i * step);
    for (int i = 0; i < ROWS; i++) {
        for (int k = 0; k < N; k++) {
            float xhat = (value[i][k] - a.mean[k]) * a.rstd[k];
            float dy = d[i][k] * norm_slope<act>(xhat * a.weight[k] + a.bias[k]);
            sum[k] += dy;
            sum_xhat[k] += dy * xhat;
        }
    }
}

// parts: for each channel a slice's sums of dy and of dy xhat.
template <int N, activation_t act>
__launch_bounds__(NORM_THREADS, 2)
__global__ static void norm_sums_kernel(float* parts,                           // (sets, slices, 2, C)
                                        const floatX* dout,                     // (sets, rows, C)
                                        const floatX* x,                        // (sets, rows, C)
                                        const floatX* weight,                   // (C)
                                        const floatX* bias,                     // (C)
                                        const floatS* mean, const floatS* rstd, // (sets, G)
                                        norm_sizes_t z) {
    constexpr int ROWS = 2;
    norm_place_t p = norm_place<N>(z, blockIdx.x);
    float sum[N] = {}, sum_xhat[N] = {};
    if (p.rows > 0) {
        norm_channels<N> a = norm_load_channels<N>(p, mean, rstd, weight, bias, z);
        size_t at = p.at;
        unsigned i = 0;
        for (; i + ROWS <= p.rows; i += ROWS, at += ROWS * p.step) {
            norm_add_sums<N, act, ROWS>(sum, sum_xhat, dout + at, x + at, a, p.step);
        }
        for (; i < p.rows; i++, at += p.step) norm_add_sums<N, act, 1>(sum, sum_xhat, dout + at, x + at, a, p.step);
    }

    int width = blockDim.x * N, height = blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
    shared<float> sums = shared_array<float>(0, height * width);
    shared<float> sums_xhat = shared_array<float>(height * width * sizeof(float), height * width);
    for (int k = 0; k < N; k++) {
        int at = threadIdx.y * width + k * blockDim.x + threadIdx.x;
        sums[at] = sum[k];
        sums_xhat[at] = sum_xhat[k];
    }
    __syncthreads();
    for (int j = thread; j < width; j += blockDim.x * height) {
        float total = 0, total_xhat = 0;
        for (int y = 0; y < height; y++) {
            total += sums[y * width + j];
            total_xhat += sums_xhat[y * width + j];
        }
        int c = norm_channel<N>(j);
        if (c >= z.C) continue;
        parts[(size_t)blockIdx.x * 2 * z.C + c] = total;
        parts[((size_t)blockIdx.x * 2 + 1) * z.C + c] = total_xhat;
    }
}

// One block a group. Thread (x, y) adds the slices y, y + MEANS_ROWS, ... of channel x, and where the group is wider,
// in the next round of channel x + MEANS_COLUMNS; 8 neighbouring floats are the 32 bytes that memory gives at least.
// `fixed`: the statistics do not depend on x, so that the two means are left out.
constexpr int MEANS_COLUMNS = 8, MEANS_ROWS = 32;
__global__ static void norm_means_kernel(float* totals,        // (sets, 2, C) sums of dy, of dy xhat
                                         float* means,         // (sets, G, 2) means of t, of t xhat
                                         const float* parts,   // (sets, slices, 2, C)
                                         const floatX* weight, // (C), or each set's
                                         norm_sizes_t z, int fixed) {
    constexpr int threads = MEANS_COLUMNS * MEANS_ROWS;
    shared<float> sums = shared_array<float>(0, threads);
    shared<float> sums_xhat = shared_array<float>(threads * sizeof(float), threads);
    size_t set = blockIdx.x / z.G;
    int x = threadIdx.x, y = threadIdx.y;
    float t = 0, t_xhat = 0; // of thread (x, 0): the sums over its channels
    for (int begin = 0; begin < z.width; begin += MEANS_COLUMNS) {
        int c = blockIdx.x % z.G * z.width + begin + x, mine = begin + x < z.width;
        float sum = 0, sum_xhat = 0;
        for (unsigned i = y; mine && i < z.slices; i += MEANS_ROWS) {
            const float* part = parts + (set * z.slices + i) * 2 * z.C + c;
            sum += part[0];
            sum_xhat += part[z.C];
        }
        sums[y * MEANS_COLUMNS + x] = sum;
        sums_xhat[y * MEANS_COLUMNS + x] = sum_xhat;
        __syncthreads();
        if (y == 0 && mine) {
            for (int i = 1; i < MEANS_ROWS; i++) {
                sum += sums[i * MEANS_COLUMNS + x];
                sum_xhat += sums_xhat[i * MEANS_COLUMNS + x];
            }
            totals[set * 2 * z.C + c] = sum;
            totals[(set * 2 + 1) * z.C + c] = sum_xhat;
            t += (float)weight[set * z.own + c] * sum;
            t_xhat += (float)weight[set * z.own + c] * sum_xhat;
        }
        __syncthreads();
    }
    if (y == 0) {
        sums[x] = t;
        sums_xhat[x] = t_xhat;
    }
    __syncthreads();
    if (x > 0 || y > 0) return;
    for (int i = 1; i < MEANS_COLUMNS; i++) {
        t += sums[i];
        t_xhat += sums_xhat[i];
    }
    float n = (float)z.rows * z.width;
    means[(size_t)blockIdx.x * 2] = fixed ? 0 : t / n;
    means[(size_t)blockIdx.x * 2 + 1] = fixed ? 0 : t_xhat / n;
}

// The means of t and t xhat over the groups of a thread's channels.
template <int N> struct norm_mean_gradients { float t[N], t_xhat[N]; };

template <int N, activation_t act, int ROWS>
__device__ static inline void norm_dx_rows(floatX* dx, const floatX* dout, const floatX* add, const floatX* x,
                                           const norm_channels<N>& a, const norm_mean_gradients<N>& mean, size_t step) {
    float d[ROWS][N], value[ROWS][N], other[ROWS][N] = {};
    for (int i = 0; i < ROWS; i++) load_values<N>(d[i], dout + i * step);
    for (int i = 0; i < ROWS; i++) load_values<N>(value[i], x + i * step);
    for (int i = 0; add && i < ROWS; i++) load_values<N>(other[i], add + i * step);
    for (int i = 0; i < ROWS; i++) {
        for (int k = 0; k < N; k++) {
            float xhat = (value[i][k] - a.mean[k]) * a.rstd[k];
            float dy = d[i][k] * norm_slope<act>(xhat * a.weight[k] + a.bias[k]);
            other[i][k] += a.rstd[k] * (a.weight[k] * dy - mean.t[k] - xhat * mean.t_xhat[k]);
        }
        store_values<N>(dx + i * step, other[i]);
    }
}

template <int N, activation_t act>
__launch_bounds__(NORM_THREADS, 2)
__global__ static void norm_dx_kernel(floatX* dx,                             // (sets, rows, C), may be add
                                      const floatX* dout,                     // (sets, rows, C)
                                      const floatX* add,                      // (sets, rows, C) or NULL
                                      const floatX* x,                        // (sets, rows, C)
                                      const floatX* weight,                   // (C)
                                      const floatX* bias,                     // (C)
                                      const floatS* mean, const floatS* rstd, // (sets, G)
                                      const float* means,                     // (sets, G, 2)
                                      norm_sizes_t z) {
    constexpr int ROWS = 2;
    norm_place_t p = norm_place<N>(z, gridDim.x - 1 - blockIdx.x);
    if (p.rows == 0) return;
    norm_channels<N> a = norm_load_channels<N>(p, mean, rstd, weight, bias, z);
    norm_mean_gradients<N> m;
    norm_load_groups<N>(m.t, means, 2, p, z);
    norm_load_groups<N>(m.t_xhat, means + 1, 2, p, z);
    size_t at = p.at;
    unsigned i = 0;
    for (; i + ROWS <= p.rows; i += ROWS, at += ROWS * p.step) {
        norm_dx_rows<N, act, ROWS>(dx + at, dout + at, add ? add + at : nullptr, x + at, a, m, p.step);
    }
    for (; i < p.rows; i++, at += p.step) {
        norm_dx_rows<N, act, 1>(dx + at, dout + at, add ? add + at : nullptr, x + at, a, m, p.step);
    }
}

template <int N, activation_t act>
static inline const float* norm_backward_act(floatX* dx, const floatX* dout, const floatX* add, const floatX* x,
                                             const floatX* weight, const floatX* bias, const floatS* mean,
                                             const floatS* rstd, norm_sizes_t z, int fixed, stream_t s) {
    size_t count = (size_t)z.sets * z.slices * 2 * z.C, total = (size_t)z.sets * 2 * z.C;
    float* parts = (float*)device_scratch(s, (count + total + (size_t)z.sets * z.G * 2) * sizeof(float));
    float *totals = parts + count, *means = totals + total;
    dim3 grid = norm_grid(z), block = norm_block(z), means_block = dim3(MEANS_COLUMNS, MEANS_ROWS);
    size_t means_bytes = 2 * MEANS_COLUMNS * MEANS_ROWS * sizeof(float);
    launch<norm_sums_kernel<N, act>>(grid, block, norm_shared_bytes(z), s, parts, dout, x, weight, bias, mean, rstd, z);
    launch<norm_means_kernel>(z.sets * z.G, means_block, means_bytes, s, totals, means, parts, weight, z, fixed);
    launch<norm_dx_kernel<N, act>>(grid, block, 0, s, dx, dout, add, x, weight, bias, mean, rstd, means, z);
    return totals;
}

// dx = add + gradient. Returns the sums (sets, 2, C) of dy and of dy xhat over each set, in device_scratch.
static inline const float* norm_backward(floatX* dx, const floatX* dout, const floatX* add, const floatX* x,
                                         const floatX* weight, const floatX* bias, const floatS* mean,
                                         const floatS* rstd, norm_sizes_t z, activation_t act, int fixed, stream_t s) {
    return (z.packed ? act == ACT_SWISH   ? norm_backward_act<PACKED, ACT_SWISH>
                       : act == ACT_LEAKY ? norm_backward_act<PACKED, ACT_LEAKY>
                                          : norm_backward_act<PACKED, ACT_NONE>
            : act == ACT_SWISH ? norm_backward_act<1, ACT_SWISH>
            : act == ACT_LEAKY ? norm_backward_act<1, ACT_LEAKY>
                               : norm_backward_act<1, ACT_NONE>)
        (dx, dout, add, x, weight, bias, mean, rstd, z, fixed, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// GroupNorm

void groupnorm_forward(floatX* out,                // (B, HW, C)
                       floatS* mean, floatS* rstd, // (B, G)
                       const floatX* x,            // (B, HW, C)
                       const floatX* weight,       // (C)
                       const floatX* bias,         // (C)
                       int B, int HW, int C, int G, double eps, activation_t act, stream_t s) {
    norm_sizes_t z = norm_sizes(B, HW, C, G, packable(C, out, x, weight, bias), s);
    norm_statistics(mean, rstd, x, z, eps, s);
    norm_apply(out, x, weight, bias, mean, rstd, z, act, s);
}

void groupnorm_apply(floatX* out,                            // (B, HW, C)
                     const floatX* x,                        // (B, HW, C)
                     const floatX* weight,                   // (C)
                     const floatX* bias,                     // (C)
                     const floatS* mean, const floatS* rstd, // (B, G)
                     int B, int HW, int C, int G, activation_t act, stream_t s) {
    norm_sizes_t z = norm_sizes(B, HW, C, G, packable(C, out, x, weight, bias), s);
    norm_apply(out, x, weight, bias, mean, rstd, z, act, s);
}

void groupnorm_backward(floatX* dx,                             // (B, HW, C)
                        floatS* dweight, floatS* dbias,         // (C) or both NULL
                        const floatX* dout,                     // (B, HW, C)
                        const floatX* add,                      // (B, HW, C) or NULL
                        const floatX* x,                        // (B, HW, C)
                        const floatX* weight,                   // (C)
                        const floatX* bias,                     // (C)
                        const floatS* mean, const floatS* rstd, // (B, G)
                        int B, int HW, int C, int G, activation_t act, stream_t s) {
    norm_sizes_t z = norm_sizes(B, HW, C, G, packable(C, dx, dout, add, x, weight, bias), s);
    const float* totals = norm_backward(dx, dout, add, x, weight, bias, mean, rstd, z, act, 0, s);
    add_parts(dbias, dweight, NULL, totals, z.sets, 2, C, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Adaptive GroupNorm: each image has its own weight and bias

static inline norm_sizes_t adaptive_sizes(size_t stride, int B, int HW, int C, int G, int packed, stream_t s) {
    norm_sizes_t z = norm_sizes(B, HW, C, G, packed && stride % PACKED == 0, s);
    z.own = stride;
    return z;
}

void adaptive_groupnorm_forward(floatX* out,                // (B, HW, C)
                                floatS* mean, floatS* rstd, // (B, G)
                                const floatX* x,            // (B, HW, C)
                                const floatX* scale,        // (B, C)
                                const floatX* shift,        // (B, C)
                                size_t stride, int B, int HW, int C, int G, double eps, stream_t s) {
    norm_sizes_t z = adaptive_sizes(stride, B, HW, C, G, packable(C, out, x, scale, shift), s);
    norm_statistics(mean, rstd, x, z, eps, s);
    norm_apply(out, x, scale, shift, mean, rstd, z, ACT_NONE, s);
}

// One value a thread: from the totals to rows that are `stride` apart.
__global__ static void adaptive_gradients_kernel(floatX* dscale, floatX* dshift, // (B, C)
                                                 const float* totals,            // (B, 2, C)
                                                 size_t stride, size_t count, int C) {
    size_t i = (size_t)blockIdx.x * NORM_THREADS + threadIdx.x, b = i / C, c = i % C;
    if (i >= count) return;
    dshift[b * stride + c] = (floatX)totals[b * 2 * C + c];
    dscale[b * stride + c] = (floatX)totals[(b * 2 + 1) * C + c];
}

void adaptive_groupnorm_backward(floatX* dx,                             // (B, HW, C)
                                 floatX* dscale, floatX* dshift,         // (B, C)
                                 const floatX* dout,                     // (B, HW, C)
                                 const floatX* x,                        // (B, HW, C)
                                 const floatX* scale,                    // (B, C)
                                 const floatS* mean, const floatS* rstd, // (B, G)
                                 size_t stride, int B, int HW, int C, int G, stream_t s) {
    norm_sizes_t z = adaptive_sizes(stride, B, HW, C, G, packable(C, dx, dout, x, scale), s);
    const floatX* shift = scale; // only an activation's slope would depend on it
    const float* totals = norm_backward(dx, dout, NULL, x, scale, shift, mean, rstd, z, ACT_NONE, 0, s);
    size_t count = (size_t)B * C;
    launch<adaptive_gradients_kernel>(blocks_for(count, NORM_THREADS), NORM_THREADS, 0, s, dscale, dshift, totals,
                                      stride, count, C);
}
