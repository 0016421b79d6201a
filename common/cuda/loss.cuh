// loss.cuh: what the tokenizer is trained for, each loss beside its derivative. Formulas: dev/cpu/loss.h.
//
//   here                       L1 of the image, mean of logits (the generator's loss), hinge (the discriminator's),
//                              semantic preservation in its two variants, cross entropy (the classifiers of the
//                              miniature world)
//   common/cuda/lpips_tap.cuh  the perceptual distance, one feature map at a time
//   common/cuda/posterior.cuh  the sampled latent of a variational autoencoder and its KL divergence
//   common/cuda/vf.cuh         VA-VAE's alignment of a latent with a vision encoder
//
// A forward is a sum over a group of values, a term each: common/cuda/reduce.cuh. A backward gives every thread one
// pack (16 bytes) of the result; in the cosine and the cross entropy, a row belongs to a warp or a block.
//
// All of it is bound by memory, and small. At 256 x 256 an image is 0.39 MB in bf16, its latent 16 KB, its logits 2 KB.
// For 64 images L1 reads 50 MB forward (17 us at 3 TB/s) and moves 101 MB backward (34 us); the other losses cost no
// more than their launches.
//
// Look next at common/cuda/optimizer.cuh, which weighs the losses against each other and uses their gradients.
#pragma once
// defines: reduce_groups, finish_sums, load_upto, store_upto, pack_begin, pack_blocks; launch, warp_sum
#include "common/cuda/reduce.cuh"
// defines: the contract of each function below
#include "common/ops.h"
// defines: lpips_tap_forward, lpips_tap_backward
#include "common/cuda/lpips_tap.cuh"
// defines: posterior_forward, posterior_backward
#include "common/cuda/posterior.cuh"
// defines: vf_forward, vf_backward
#include "common/cuda/vf.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// L1

__device__ static inline float l1_term(float a, float b) { return fabsf(a - b); }

void l1_forward(floatS* loss,       // (B)
                const floatX* xhat, // (B, n)
                const floatX* x,    // (B, n)
                int B, size_t n, stream_t s) {
    reduce_groups<l1_term, 2>(loss, xhat, x, 1, B, n, s);
}

typedef struct { float red, green, blue; } colour_scale_t;

// dxhat = l1_scale sign(xhat - x) + scale_c dscaled. 4 passes, or 3 without dscaled.
__global__ static void l1_backward_kernel(floatX* dxhat,         // (n), three colours in turn
                                          const floatX* xhat,    // (n)
                                          const floatX* x,       // (n)
                                          const floatX* dscaled, // (n) or NULL
                                          colour_scale_t scale, float l1_scale, size_t n) {
    size_t i = pack_begin<floatX>();
    if (i >= n) return;
    pack<floatX> a = load_upto(xhat + i, n - i), b = load_upto(x + i, n - i), out;
    pack<floatX> d = load_upto(dscaled ? dscaled + i : x, dscaled ? n - i : 0); // zeros for NULL
    int colour = (int)(i % 3); // of the pack's first value
    float first = colour == 0 ? scale.red : colour == 1 ? scale.green : scale.blue;
    float second = colour == 0 ? scale.green : colour == 1 ? scale.blue : scale.red;
    float third = colour == 0 ? scale.blue : colour == 1 ? scale.red : scale.green;
    for (int j = 0; j < pack<floatX>::size; j++) {
        float difference = (float)a[j] - (float)b[j];
        float sign = (float)((difference > 0) - (difference < 0));
        float channel = j % 3 == 0 ? first : j % 3 == 1 ? second : third;
        out[j] = (floatX)(l1_scale * sign + channel * (float)d[j]);
    }
    store_upto(dxhat + i, out, n - i);
}

void l1_backward(floatX* dxhat,         // (B, HW, 3)
                 const floatX* xhat,    // (B, HW, 3)
                 const floatX* x,       // (B, HW, 3)
                 const floatX* dscaled, // (B, HW, 3) or NULL
                 channel_affine_t affine, double scale, int B, size_t HW, stream_t s) {
    size_t n = (size_t)B * HW * 3;
    colour_scale_t colours = {(float)affine.scale[0], (float)affine.scale[1], (float)affine.scale[2]};
    launch<l1_backward_kernel>(pack_blocks<floatX>(n), PACK_THREADS, 0, s, dxhat, xhat, x, dscaled, colours,
                               (float)scale, n);
}

// ---------------------------------------------------------------------------------------------------------------------
// The adversarial pair

__device__ static inline float value_term(float a, float) { return a; }

void group_mean_forward(floatS* mean,    // (groups)
                        const floatX* x, // (groups, n)
                        int groups, size_t n, stream_t s) {
    reduce_groups<value_term, 1>(mean, x, x, 1.0 / (double)n, groups, n, s);
}

__global__ static void fill_kernel(floatX* x, float value, size_t n) {
    size_t i = pack_begin<floatX>();
    if (i >= n) return;
    pack<floatX> out;
    for (int j = 0; j < pack<floatX>::size; j++) out[j] = (floatX)value;
    store_upto(x + i, out, n - i);
}

// Each of the n values has the share 1/n in its mean.
void group_mean_backward(floatX* dx, // (groups, n)
                         double scale, int groups, size_t n, stream_t s) {
    size_t all = (size_t)groups * n;
    launch<fill_kernel>(pack_blocks<floatX>(all), PACK_THREADS, 0, s, dx, (float)(scale / (double)n), all);
}

__device__ static inline float hinge_term(float real, float fake) { return fmaxf(1 - real, 0) + fmaxf(1 + fake, 0); }

void hinge_forward(floatS* loss,       // (groups)
                   const floatX* real, // (groups, n)
                   const floatX* fake, // (groups, n)
                   int groups, size_t n, stream_t s) {
    reduce_groups<hinge_term, 2>(loss, real, fake, 0.5 / (double)n, groups, n, s);
}

// Each half of the loss passes its share on where it is not satisfied.
__global__ static void hinge_backward_kernel(floatX* dreal, floatX* dfake, // (n)
                                             const floatX* real,           // (n)
                                             const floatX* fake,           // (n)
                                             float share, size_t n) {
    size_t i = pack_begin<floatX>();
    if (i >= n) return;
    pack<floatX> r = load_upto(real + i, n - i), f = load_upto(fake + i, n - i);
    for (int j = 0; j < pack<floatX>::size; j++) {
        r[j] = (floatX)((float)r[j] < 1 ? -share : 0.0f);
        f[j] = (floatX)((float)f[j] > -1 ? share : 0.0f);
    }
    store_upto(dreal + i, r, n - i);
    store_upto(dfake + i, f, n - i);
}

void hinge_backward(floatX* dreal, floatX* dfake, // (groups, n)
                    const floatX* real,           // (groups, n)
                    const floatX* fake,           // (groups, n)
                    double scale, int groups, size_t n, stream_t s) {
    size_t all = (size_t)groups * n;
    launch<hinge_backward_kernel>(pack_blocks<floatX>(all), PACK_THREADS, 0, s, dreal, dfake, real, fake,
                                  (float)(0.5 * scale / (double)n), all);
}

// ---------------------------------------------------------------------------------------------------------------------
// Semantic preservation

__device__ static inline float square_difference_term(float a, float b) { return (a - b) * (a - b); }

void semantic_l2_forward(floatS* loss,     // (groups)
                         const floatX* z,  // (groups, n)
                         const floatX* z0, // (groups, n)
                         int groups, size_t n, stream_t s) {
    reduce_groups<square_difference_term, 2>(loss, z, z0, 1.0 / (double)n, groups, n, s);
}

__global__ static void semantic_l2_backward_kernel(floatX* dz,       // (n)
                                                   const floatX* z,  // (n)
                                                   const floatX* z0, // (n)
                                                   float twice_share, size_t n) {
    size_t i = pack_begin<floatX>();
    if (i >= n) return;
    pack<floatX> a = load_upto(z + i, n - i), b = load_upto(z0 + i, n - i), out;
    for (int j = 0; j < pack<floatX>::size; j++) out[j] = (floatX)(twice_share * ((float)a[j] - (float)b[j]));
    store_upto(dz + i, out, n - i);
}

void semantic_l2_backward(floatX* dz,       // (groups, n)
                          const floatX* z,  // (groups, n)
                          const floatX* z0, // (groups, n)
                          double scale, int groups, size_t n, stream_t s) {
    size_t all = (size_t)groups * n;
    launch<semantic_l2_backward_kernel>(pack_blocks<floatX>(all), PACK_THREADS, 0, s, dz, z, z0,
                                        (float)(2 * scale / (double)n), all);
}

// Training starts with rows that point nearly the same way. There 1 - cos and the gradient are small differences of
// large numbers. With unit rows a = z / n and b = z0 / n0 and d = a - b they are exactly
//
//   1 - a b = (|d|^2 + (1 - |a|^2) + (1 - |b|^2)) / 2            the brackets are 0 unless a norm is at its floor
//   dcos/dz = (b - (a b) a) / n = -(d - (1 - a b) a) / n         and -(d - a) / n where n is at its floor
//
// which keeps the digits of d, and needs no double precision.
#define COSINE_FLOOR 1e-8f // of a norm, as in torch.nn.functional.cosine_similarity
enum {
    COSINE_WARPS = 8, // of a block
    COSINE_THREADS = COSINE_WARPS * (int)WARP,
    COSINE_ROUNDS = 4, // rows that a warp takes one behind the other
};

typedef struct {
    float inverse, inverse0; // 1 / n, 1 / n0
    float distance;          // 1 - cos
    bool floored;            // n is a constant
} cosine_t;

// One row by one warp; every thread gets the result.
__device__ static inline cosine_t cosine_row(const floatX* z,  // (C)
                                             const floatX* z0, // (C)
                                             int C) {
    int lane = (int)threadIdx.x % WARP;
    float zz = 0, zz0 = 0, dd = 0, floor_squared = COSINE_FLOOR * COSINE_FLOOR;
    for (int c = lane; c < C; c += WARP) {
        zz += (float)z[c] * (float)z[c];
        zz0 += (float)z0[c] * (float)z0[c];
    }
    zz = warp_sum(zz);
    zz0 = warp_sum(zz0);
    cosine_t row;
    row.floored = zz <= floor_squared;
    row.inverse = 1 / sqrtf(fmaxf(zz, floor_squared));
    row.inverse0 = 1 / sqrtf(fmaxf(zz0, floor_squared));
    for (int c = lane; c < C; c += WARP) {
        float d = (float)z[c] * row.inverse - (float)z0[c] * row.inverse0;
        dd += d * d;
    }
    float missing = row.floored ? 1 - zz * row.inverse * row.inverse : 0;
    float missing0 = zz0 <= floor_squared ? 1 - zz0 * row.inverse0 * row.inverse0 : 0;
    row.distance = 0.5f * (warp_sum(dd) + missing + missing0);
    return row;
}

// Block i sums the rows of piece i % pieces of group i / pieces.
__global__ static void semantic_cosine_kernel(float* partial,   // (groups, pieces)
                                              const floatX* z,  // (groups, rows, C)
                                              const floatX* z0, // (groups, rows, C)
                                              size_t rows, int C, unsigned pieces) {
    shared<float> work = shared_array<float>(0, WARP);
    size_t group = blockIdx.x / pieces, first = (size_t)(blockIdx.x % pieces) * COSINE_WARPS * COSINE_ROUNDS;
    float sum = 0;
    for (int round = 0; round < COSINE_ROUNDS; round++) {
        size_t row = first + round * COSINE_WARPS + threadIdx.x / WARP, at = (group * rows + row) * C;
        if (row < rows) sum += cosine_row(z + at, z0 + at, C).distance;
    }
    sum = block_sum(threadIdx.x % WARP ? 0 : sum, work); // each warp's sum once
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

void semantic_cosine_forward(floatS* loss,     // (groups)
                             const floatX* z,  // (groups, rows, C)
                             const floatX* z0, // (groups, rows, C)
                             int groups, size_t rows, int C, stream_t s) {
    unsigned pieces = blocks_for(rows, COSINE_WARPS * COSINE_ROUNDS);
    float* partial = (float*)device_scratch(s, (size_t)groups * pieces * sizeof(float));
    launch<semantic_cosine_kernel>(groups * pieces, COSINE_THREADS, WARP * sizeof(float), s, partial, z, z0, rows, C,
                                   pieces);
    finish_sums(loss, partial, groups, pieces, 1.0 / (double)rows, WRITE_SUM, s);
}

// A warp a row.
__global__ static void semantic_cosine_backward_kernel(floatX* dz,       // (N, C)
                                                       const floatX* z,  // (N, C)
                                                       const floatX* z0, // (N, C)
                                                       float share, size_t N, int C) {
    size_t i = (size_t)blockIdx.x * COSINE_WARPS + threadIdx.x / WARP;
    if (i >= N) return;
    const floatX *a = z + i * C, *b = z0 + i * C;
    cosine_t row = cosine_row(a, b, C);
    float along = row.floored ? 1 : row.distance;
    for (int c = (int)threadIdx.x % WARP; c < C; c += WARP) {
        float unit = (float)a[c] * row.inverse, d = unit - (float)b[c] * row.inverse0;
        dz[i * C + c] = (floatX)(share * row.inverse * (d - along * unit));
    }
}

void semantic_cosine_backward(floatX* dz,       // (groups, rows, C)
                              const floatX* z,  // (groups, rows, C)
                              const floatX* z0, // (groups, rows, C)
                              double scale, int groups, size_t rows, int C, stream_t s) {
    size_t N = (size_t)groups * rows;
    launch<semantic_cosine_backward_kernel>(blocks_for(N, COSINE_WARPS), COSINE_THREADS, 0, s, dz, z, z0,
                                            (float)(scale / (double)rows), N, C);
}

// ---------------------------------------------------------------------------------------------------------------------
// Classification

enum { CROSS_ENTROPY_THREADS = 256 };

// A block a row. In place: a thread writes dlogits only where it alone reads, except for the label's logit, which all
// read before the first barrier.
__global__ static void cross_entropy_kernel(float* loss,          // (B)
                                            floatX* dlogits,      // (B, C) or NULL; may be logits
                                            const floatX* logits, // (B, C)
                                            const int* labels,    // (B)
                                            float scale, int C) {
    shared<float> work = shared_array<float>(0, WARP);
    const floatX* row = logits + (size_t)blockIdx.x * C;
    int label = labels[blockIdx.x];
    float of_label = (float)row[label], largest = -INFINITY, sum = 0;
    for (int c = (int)threadIdx.x; c < C; c += CROSS_ENTROPY_THREADS) largest = fmaxf(largest, (float)row[c]);
    largest = block_max(largest, work);
    for (int c = (int)threadIdx.x; c < C; c += CROSS_ENTROPY_THREADS) sum += expf((float)row[c] - largest);
    sum = block_sum(sum, work);
    if (threadIdx.x == 0) loss[blockIdx.x] = logf(sum) + (largest - of_label);
    if (!dlogits) return;
    for (int c = (int)threadIdx.x; c < C; c += CROSS_ENTROPY_THREADS) {
        float p = expf((float)row[c] - largest) / sum;
        dlogits[(size_t)blockIdx.x * C + c] = (floatX)(scale * (c == label ? p - 1 : p));
    }
}

void cross_entropy(floatS* loss,         // (B)
                   floatX* dlogits,      // (B, C) or NULL
                   const floatX* logits, // (B, C)
                   const int* labels,    // (B)
                   double scale, int B, int C, stream_t s) {
    launch<cross_entropy_kernel>(B, CROSS_ENTROPY_THREADS, WARP * sizeof(float), s, loss, dlogits, logits, labels,
                                 (float)scale, C);
}
