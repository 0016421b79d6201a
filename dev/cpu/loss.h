// loss.h: what the tokenizer is trained for. Each loss beside its derivative.
//
//   here                  L1 of the image, mean of logits (the generator's loss), hinge (the discriminator's), semantic
//                         preservation in its two variants, cross entropy (the classifiers of the miniature world)
//   dev/cpu/lpips_tap.h   the perceptual distance, one feature map at a time
//   dev/cpu/posterior.h   the sampled latent of a variational autoencoder and its KL divergence
//   dev/cpu/vf.h          VA-VAE's alignment of a latent with a vision encoder
//
// A forward writes one number an image or one a chunk (called a group here), and sums in double. A backward takes
// `scale`, the derivative of the whole objective by each of these numbers: 1/B for a mean over the batch, say.
// A loss with a corner (|x| at 0, relu at 0) has derivative 0 there, as in PyTorch.
//
// Look next at dev/cpu/optimizer.h, which weighs the losses against each other and uses their gradients.
#pragma once
#include <assert.h>
// defines: channel_affine_t; the contract of each function below
#include "common/ops.h"
// defines: reduce_groups, sum_in_order
#include "dev/cpu/reduce.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"
// defines: lpips_tap_forward, lpips_tap_backward
#include "dev/cpu/lpips_tap.h"
// defines: posterior_forward, posterior_backward
#include "dev/cpu/posterior.h"
// defines: vf_forward, vf_backward
#include "dev/cpu/vf.h"

// ---------------------------------------------------------------------------------------------------------------------
// L1

static inline double l1_block(const floatX* a, const floatX* b, size_t n) {
    double sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += xabs(a[i] - b[i]);
    return sum;
}

void l1_forward(floatS* loss,       // (B)
                const floatX* xhat, // (B, n)
                const floatX* x,    // (B, n)
                int B, size_t n, stream_t s) {
    (void)s;
    reduce_groups(loss, xhat, x, l1_block, 1, (size_t)B, n);
}

// d|xhat - x| / dxhat = sign(xhat - x). The perceptual distance sees y = affine(xhat), so dy/dxhat_c = affine.scale_c,
// and the two branches add up at the image.
void l1_backward(floatX* dxhat,         // (B, HW, 3)
                 const floatX* xhat,    // (B, HW, 3)
                 const floatX* x,       // (B, HW, 3)
                 const floatX* dscaled, // (B, HW, 3) or NULL
                 channel_affine_t affine, double scale, int B, size_t HW, stream_t s) {
    (void)s;
    floatX l1_scale = (floatX)scale;
    floatX channel[3] = {(floatX)affine.scale[0], (floatX)affine.scale[1], (floatX)affine.scale[2]};
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * HW * 3))
    for (size_t i = 0; i < (size_t)B * HW; i++) {
        for (size_t c = 0; c < 3; c++) {
            floatX difference = xhat[3 * i + c] - x[3 * i + c];
            floatX sign = (floatX)((difference > 0) - (difference < 0));
            dxhat[3 * i + c] = l1_scale * sign + (dscaled ? channel[c] * dscaled[3 * i + c] : 0);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The adversarial pair

static inline double plain_block(const floatX* x, const floatX* unused, size_t n) {
    (void)unused;
    double sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

void group_mean_forward(floatS* mean,    // (groups)
                        const floatX* x, // (groups, n)
                        int groups, size_t n, stream_t s) {
    (void)s;
    reduce_groups(mean, x, NULL, plain_block, 1.0 / (double)n, (size_t)groups, n);
}

// Each of the n values has the share 1/n in its mean.
void group_mean_backward(floatX* dx, // (groups, n)
                         double scale, int groups, size_t n, stream_t s) {
    (void)s;
    floatX share = (floatX)(scale / (double)n);
    for (size_t i = 0; i < (size_t)groups * n; i++) dx[i] = share;
}

static inline double hinge_block(const floatX* real, const floatX* fake, size_t n) {
    double sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) {
        floatX r = 1 - real[i], f = 1 + fake[i];
        sum += (r > 0 ? r : 0) + (f > 0 ? f : 0);
    }
    return sum;
}

void hinge_forward(floatS* loss,       // (groups)
                   const floatX* real, // (groups, n)
                   const floatX* fake, // (groups, n)
                   int groups, size_t n, stream_t s) {
    (void)s;
    reduce_groups(loss, real, fake, hinge_block, 0.5 / (double)n, (size_t)groups, n);
}

// d/dreal relu(1 - real) = -[real < 1] and d/dfake relu(1 + fake) = [fake > -1], each with the share 1/(2n) in the
// loss: once an image is judged with a margin of 1, it teaches the discriminator nothing more.
void hinge_backward(floatX* dreal, floatX* dfake, // (groups, n)
                    const floatX* real,           // (groups, n)
                    const floatX* fake,           // (groups, n)
                    double scale, int groups, size_t n, stream_t s) {
    (void)s;
    floatX share = (floatX)(0.5 * scale / (double)n);
    for (size_t i = 0; i < (size_t)groups * n; i++) {
        dreal[i] = real[i] < 1 ? -share : 0;
        dfake[i] = fake[i] > -1 ? share : 0;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Semantic preservation

static inline double square_difference_block(const floatX* a, const floatX* b, size_t n) {
    double sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

void semantic_l2_forward(floatS* loss,     // (groups)
                         const floatX* z,  // (groups, n)
                         const floatX* z0, // (groups, n)
                         int groups, size_t n, stream_t s) {
    (void)s;
    reduce_groups(loss, z, z0, square_difference_block, 1.0 / (double)n, (size_t)groups, n);
}

// d/dz of (z - z0)^2 / n = 2 (z - z0) / n; z0 comes from a frozen encoder and takes no gradient.
void semantic_l2_backward(floatX* dz,       // (groups, n)
                          const floatX* z,  // (groups, n)
                          const floatX* z0, // (groups, n)
                          double scale, int groups, size_t n, stream_t s) {
    (void)s;
    floatX twice_share = (floatX)(2 * scale / (double)n);
    #pragma omp parallel for simd schedule(static) if (worth_sharing((double)groups * n))
    for (size_t i = 0; i < (size_t)groups * n; i++) dz[i] = twice_share * (z[i] - z0[i]);
}

#define COSINE_FLOOR 1e-8 // of a norm, as in torch.nn.functional.cosine_similarity

// With n = max(|z|, floor) and n0 likewise, cos = z z0 / (n n0). The products are summed in double because 1 - cos and
// the gradient cancel when z is near z0, which is where training starts.
typedef struct {
    double cosine;
    double inverse;    // 1 / (n n0)
    double projection; // cos / n^2, or 0 where the floor has made n a constant
} cosine_t;

static inline cosine_t cosine_row(const floatX* z, const floatX* z0, int C) {
    double zz = 0, z00 = 0, product = 0;
    #pragma omp simd reduction(+ : zz, z00, product)
    for (int c = 0; c < C; c++) {
        zz += (double)z[c] * z[c];
        z00 += (double)z0[c] * z0[c];
        product += (double)z[c] * z0[c];
    }
    double floor_squared = COSINE_FLOOR * COSINE_FLOOR;
    double norms = sqrt((zz > floor_squared ? zz : floor_squared) * (z00 > floor_squared ? z00 : floor_squared));
    cosine_t row;
    row.cosine = product / norms;
    row.inverse = 1 / norms;
    row.projection = zz > floor_squared ? row.cosine / zz : 0;
    return row;
}

void semantic_cosine_forward(floatS* loss,     // (groups)
                             const floatX* z,  // (groups, rows, C)
                             const floatX* z0, // (groups, rows, C)
                             int groups, size_t rows, int C, stream_t s) {
    (void)s;
    size_t N = (size_t)groups * rows;
    double* distance = (double*)cpu_scratch(0, N * sizeof(double));
    #pragma omp parallel for schedule(static) if (worth_sharing((double)N * C))
    for (size_t i = 0; i < N; i++) distance[i] = 1 - cosine_row(z + i * (size_t)C, z0 + i * (size_t)C, C).cosine;
    for (int k = 0; k < groups; k++) {
        loss[k] = (floatS)(sum_in_order(distance + (size_t)k * rows, rows) / (double)rows);
    }
}

// dn/dz = z / n, hence d cos / dz = z0 / (n n0) - cos z / n^2: the part of z0's direction that is perpendicular to z.
// The loss has -1/rows of it. For z = z0 both terms are the same number: sqrt(zz zz) is exactly zz, and the gradient
// is exactly zero.
void semantic_cosine_backward(floatX* dz,       // (groups, rows, C)
                              const floatX* z,  // (groups, rows, C)
                              const floatX* z0, // (groups, rows, C)
                              double scale, int groups, size_t rows, int C, stream_t s) {
    (void)s;
    double share = scale / (double)rows;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)groups * rows * C * 2))
    for (size_t i = 0; i < (size_t)groups * rows; i++) {
        const floatX* a = z + i * (size_t)C;
        const floatX* b = z0 + i * (size_t)C;
        cosine_t row = cosine_row(a, b, C);
        for (int c = 0; c < C; c++) {
            dz[i * (size_t)C + c] = (floatX)(share * (row.projection * a[c] - row.inverse * b[c]));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Classification

// With p = softmax(l): -log p_y = log sum_j exp(l_j) - l_y, and d/dl_j log sum exp = p_j. Hence dl = p - onehot(y).
// The largest logit is taken out of the exponentials, so that none overflows.
void cross_entropy(floatS* loss,         // (B)
                   floatX* dlogits,      // (B, C) or NULL
                   const floatX* logits, // (B, C)
                   const int* labels,    // (B)
                   double scale, int B, int C, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * C * 10))
    for (int b = 0; b < B; b++) {
        const floatX* row = logits + (size_t)b * C;
        assert(labels[b] >= 0 && labels[b] < C);
        floatX largest = row[0];
        for (int c = 1; c < C; c++) largest = row[c] > largest ? row[c] : largest;
        double sum = 0;
        for (int c = 0; c < C; c++) sum += xexp(row[c] - largest);
        loss[b] = (floatS)(log(sum) + (double)(largest - row[labels[b]]));
        if (!dlogits) continue;
        floatX* drow = dlogits + (size_t)b * C;
        floatX factor = (floatX)(scale / sum);
        for (int c = 0; c < C; c++) drow[c] = factor * xexp(row[c] - largest);
        drow[labels[b]] -= (floatX)scale;
    }
}
