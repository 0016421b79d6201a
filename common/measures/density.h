// density.h: how evenly do points fill the plane?
//
// A Gaussian kernel density estimate at the n points themselves, with Scott's bandwidth, j = i included:
//
//   S = n^(-1/3) cov(y)      (unbiased covariance)
//   p_i = sum_j exp(-1/2 (y_i - y_j)^T S^-1 (y_i - y_j)) / (n 2 pi sqrt(det S))
//
// and three numbers of it: even points have a small CV and Gini coefficient and an entropy near 1.
//
//   CV = std(p) / mean(p)    (population)
//   Gini = sum_i (2i - n - 1) p_(i) / (n sum p),  p_(1) <= ... <= p_(n)
//   entropy = -sum q log2(q + 1e-10) / log2 n,  q = p / sum p
//
// (VA-VAE's "uniformity": Yao, Yang, Wang 2025, figure 6 and tools/latent_vis.py, on a t-SNE map of latents; SciPy's
// gaussian_kde.) Look next at common/measures/tsne.h, which makes the points.
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

// defines: fatal, malloc_check
#include "common/program/log.h"

typedef struct {
    double cv, gini, entropy;
} density_t;

// Unbiased covariance of points in the plane: xx, xy, yy.
static inline void density_covariance(double* xx, double* xy, double* yy, const double* y, int n) { // y: (n, 2)
    double mean[2] = {0, 0};
    *xx = *xy = *yy = 0;
    for (int i = 0; i < n; i++) mean[0] += y[2 * (size_t)i], mean[1] += y[2 * (size_t)i + 1];
    mean[0] /= n;
    mean[1] /= n;
    for (size_t i = 0; i < (size_t)n; i++) {
        double a = y[2 * i] - mean[0], b = y[2 * i + 1] - mean[1];
        *xx += a * a;
        *xy += a * b;
        *yy += b * b;
    }
    *xx /= n - 1.0;
    *xy /= n - 1.0;
    *yy /= n - 1.0;
}

// Density at each point. The points must span the plane.
static inline void density_estimate(double* p,       // (n)
                                    const double* y, // (n, 2)
                                    int n) {
    if (n < 3) fatal("the density of %d points: at least 3 are needed", n);
    double xx, xy, yy, scott = pow(n, -1.0 / 3);
    density_covariance(&xx, &xy, &yy, y, n);
    double determinant = xx * yy - xy * xy;
    if (!(determinant > 1e-14 * xx * yy)) {
        fatal("the density of %d points that lie on a line (or are not finite) is not defined", n);
    }
    // -1/2 d^T S^-1 d = a dx^2 + b dx dy + c dy^2
    double a = -0.5 * yy / determinant / scott, b = xy / determinant / scott, c = -0.5 * xx / determinant / scott;
    double norm = 1 / (n * 6.283185307179586 * scott * sqrt(determinant));
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < n; j++) {
            double dx = y[2 * (size_t)i] - y[2 * (size_t)j], dy = y[2 * (size_t)i + 1] - y[2 * (size_t)j + 1];
            sum += exp(a * dx * dx + b * dx * dy + c * dy * dy);
        }
        p[i] = sum * norm;
    }
}

static inline int density_compare(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

// p > 0
static inline density_t density_measure(const double* p, int n) { // (n)
    density_t out = {0, 0, 0};
    double sum = 0, squares = 0;
    double* sorted = (double*)malloc_check((size_t)n * sizeof(double), "densities in order");
    memcpy(sorted, p, (size_t)n * sizeof(double));
    qsort(sorted, (size_t)n, sizeof(double), density_compare);
    for (int i = 0; i < n; i++) sum += sorted[i];
    double mean = sum / n;
    for (int i = 0; i < n; i++) {
        double q = sorted[i] / sum;
        squares += (sorted[i] - mean) * (sorted[i] - mean);
        out.gini += (2.0 * (i + 1) - n - 1) * sorted[i];
        out.entropy -= q * log2(q + 1e-10);
    }
    free(sorted);
    out.cv = sqrt(squares / n) / mean;
    out.gini /= n * sum;
    out.entropy = n > 1 ? out.entropy / log2(n) : 1;
    return out;
}
