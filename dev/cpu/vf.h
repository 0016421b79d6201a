// vf.h: VA-VAE's vision-foundation loss (Yao et al. 2025; LightningDiT vavae/ldm/modules/losses/contperceptual.py):
// the tokens of a projected latent shall be alike wherever a frozen vision encoder's tokens are alike, and point the
// same way.
//
// For one image with N tokens, with zhat_i = z_i / max(|z_i|, 1e-12) and that_i likewise:
//
//   D_ij = zhat_i zhat_j - that_i that_j     l1 = mean_ij relu(|D_ij| - margin_distance)
//   cos_i = that_i zhat_i                    l2 = mean_i relu(1 - margin_cosine - cos_i)
//
// The margins let small disagreements pass. Two matrix products of N N C an image; one more in the backward. Threads
// share the images. (The reference floors the norms inside cos_i at 1e-8; the difference is that of a latent of length
// zero.)
#pragma once
// defines: the contract of each function below
#include "common/ops.h"
// defines: gemm
#include "dev/cpu/gemm.h"
// defines: sum_in_order
#include "dev/cpu/reduce.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"

#define VF_NORM_FLOOR 1e-12

// What both directions need of one image, in the thread's working memory.
typedef struct {
    floatX* z_unit;       // (N, C)
    floatX* teacher_unit; // (N, C)
    floatX* difference;   // (N, N)
    floatS* norm;         // (N) |z_i|
} vf_image_t;

// Scales rows to unit length. Norms are summed in double: a row is normalised once and used in N products.
static inline void vf_unit_rows(floatX* unit, floatS* norm, const floatX* x, int N, int C) {
    for (int i = 0; i < N; i++) {
        const floatX* row = x + (size_t)i * C;
        double sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (int c = 0; c < C; c++) sum += (double)row[c] * row[c];
        norm[i] = (floatS)sqrt(sum);
        floatX inverse = (floatX)(1 / fmax(sqrt(sum), VF_NORM_FLOOR));
        for (int c = 0; c < C; c++) unit[(size_t)i * C + c] = row[c] * inverse;
    }
}

static inline vf_image_t vf_compare(const floatX* z, const floatX* teacher, int N, int C) {
    size_t rows = (size_t)N * C;
    vf_image_t image;
    image.z_unit = (floatX*)cpu_scratch(1, rows * sizeof(floatX));
    image.teacher_unit = (floatX*)cpu_scratch(2, rows * sizeof(floatX));
    image.difference = (floatX*)cpu_scratch(3, (size_t)N * N * sizeof(floatX));
    image.norm = (floatS*)cpu_scratch(4, (size_t)N * sizeof(floatS));
    vf_unit_rows(image.teacher_unit, image.norm, teacher, N, C); // its norms are not needed and overwritten
    vf_unit_rows(image.z_unit, image.norm, z, N, C);
    gemm(PLAIN, TRANSPOSED, N, N, C, 1, image.z_unit, C, image.z_unit, C, 0, image.difference, N);
    gemm(PLAIN, TRANSPOSED, N, N, C, -1, image.teacher_unit, C, image.teacher_unit, C, 1, image.difference, N);
    return image;
}

static inline double vf_dot(const floatX* a, const floatX* b, int C) {
    double sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += (double)a[c] * b[c];
    return sum;
}

// l1 + l2 of one image.
static inline double vf_image_loss(vf_image_t image, double margin_distance, double margin_cosine, int N, int C) {
    double distance = 0, cosine = 0;
    #pragma omp simd reduction(+ : distance)
    for (size_t k = 0; k < (size_t)N * (size_t)N; k++) {
        double excess = (double)xabs(image.difference[k]) - margin_distance;
        distance += excess > 0 ? excess : 0;
    }
    for (int i = 0; i < N; i++) {
        double cos_i = vf_dot(image.teacher_unit + (size_t)i * C, image.z_unit + (size_t)i * C, C);
        cosine += fmax(1 - margin_cosine - cos_i, 0);
    }
    return distance / ((double)N * N) + cosine / N;
}

void vf_forward(floatS* loss,          // (B / chunk)
                const floatX* z,       // (B, N, C) projected latent
                const floatX* teacher, // (B, N, C)
                double margin_distance, double margin_cosine, int B, int N, int C, int chunk, stream_t s) {
    (void)s;
    double* of_image = (double*)cpu_scratch(0, (size_t)B * sizeof(double));
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * N * N * C / (MACS_OF_WORK / 2)))
    for (int b = 0; b < B; b++) {
        size_t at = (size_t)b * N * C;
        of_image[b] = vf_image_loss(vf_compare(z + at, teacher + at, N, C), margin_distance, margin_cosine, N, C);
    }
    for (int k = 0; k < B / chunk; k++) {
        loss[k] = (floatS)(sum_in_order(of_image + (size_t)k * chunk, (size_t)chunk) / chunk);
    }
}

// Let T_ij = sign(D_ij) [|D_ij| > margin_distance], a symmetric matrix. zhat_i stands in row i and in column i of D:
//
//   dl1/dzhat_i = 2 / N^2 sum_j T_ij zhat_j         dl2/dzhat_i = -1/N [1 - margin_cosine - cos_i > 0] that_i
//
// and from zhat = z / |z|:  dz_i = (dzhat_i - zhat_i (zhat_i dzhat_i)) / |z_i|, the part perpendicular to z. A row
// that is shorter than the floor is divided by a constant, and nothing is taken away. `share` is an image's part of
// the objective.
static inline void vf_image_backward(floatX* dz, vf_image_t image, double margin_distance, double margin_cosine,
                                     double share, int N, int C) {
    floatX* T = image.difference;
    for (size_t k = 0; k < (size_t)N * (size_t)N; k++) {
        int over = (double)xabs(T[k]) > margin_distance;
        T[k] = (floatX)(over * ((T[k] > 0) - (T[k] < 0)));
    }
    gemm(PLAIN, PLAIN, N, C, N, (floatX)(2 * share / ((double)N * N)), T, N, image.z_unit, C, 0, dz, C);
    for (int i = 0; i < N; i++) {
        floatX* d = dz + (size_t)i * C;
        const floatX* unit = image.z_unit + (size_t)i * C;
        const floatX* teacher = image.teacher_unit + (size_t)i * C;
        int pulled = 1 - margin_cosine - vf_dot(teacher, unit, C) > 0;
        floatX pull = pulled ? (floatX)(share / N) : 0;
        for (int c = 0; c < C; c++) d[c] -= pull * teacher[c];
        int floored = (double)image.norm[i] < VF_NORM_FLOOR;
        floatX along = floored ? 0 : (floatX)vf_dot(unit, d, C);
        floatX inverse = (floatX)(1 / fmax((double)image.norm[i], VF_NORM_FLOOR));
        for (int c = 0; c < C; c++) d[c] = inverse * (d[c] - along * unit[c]);
    }
}

void vf_backward(floatX* dz,            // (B, N, C)
                 const floatX* z,       // (B, N, C)
                 const floatX* teacher, // (B, N, C)
                 double margin_distance, double margin_cosine, double scale, int B, int N, int C, int chunk,
                 stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * N * N * C / (MACS_OF_WORK / 3)))
    for (int b = 0; b < B; b++) {
        size_t at = (size_t)b * N * C;
        vf_image_t image = vf_compare(z + at, teacher + at, N, C);
        vf_image_backward(dz + at, image, margin_distance, margin_cosine, scale / chunk, N, C);
    }
}
