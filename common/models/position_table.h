// position_table.h: a position table of one grid into that of another, when weights are loaded.
//
// A ViT keeps the table of its configuration, G x G, and resamples it in every forward to the grid of its tokens,
// g x g: P = R T R' with R (g, G), bicubic with antialias (position_resample_forward in common/ops.h). Weights that
// were trained further at another size bring a table P of their own grid, and are to give the same features there. So
// the table is interpolated, and then corrected by the least change that makes P come out again:
//
//     T0 = U P U',   U (G, g) bicubic;      T = T0 + R+ (P - R T0 R') R+',   R+ = R' (R R')^-1
//
// For g > G no T can hold all of P, and T0 is all there is. Look next at common/models/weights.h, the user.
#pragma once
#include <math.h>

// defines: floatS, malloc_check, calloc_check
#include "common/device.h"

// Keys' cubic kernel with a = -0.5.
static inline double position_kernel(double t) {
    t = fabs(t);
    return t < 1 ? (1.5 * t - 2.5) * t * t + 1 : t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
}

// R (to, from): row i is centred at (i + 1/2) from / to; where the table shrinks, the kernel is as much wider.
static inline void position_matrix(double* R, int from, int to) {
    double scale = (double)from / to, width = scale > 1 ? scale : 1;
    for (int i = 0; i < to; i++) {
        double sum = 0, *row = R + (size_t)i * from;
        for (int j = 0; j < from; j++) sum += row[j] = position_kernel((j + 0.5 - scale * (i + 0.5)) / width);
        for (int j = 0; j < from; j++) row[j] /= sum;
    }
}

// out (n, n, D) = M x M', with M (n, m) and x (m, m, D)
static inline void position_apply(double* out, const double* M, const double* x, int n, int m, int D) {
    double* half = (double*)calloc_check((size_t)n * m * D, sizeof(double), "a position table");
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < m; k++) {
            for (int j = 0; j < m * D; j++) half[(size_t)i * m * D + j] += M[i * m + k] * x[(size_t)k * m * D + j];
        }
    }
    memset(out, 0, (size_t)n * n * D * sizeof(double));
    for (int p = 0; p < n * n; p++) {
        for (int k = 0; k < m; k++) {
            const double *from = half + ((size_t)(p / n) * m + k) * D, weight = M[p % n * m + k];
            for (int d = 0; d < D; d++) out[(size_t)p * D + d] += weight * from[d];
        }
    }
    free(half);
}

// A (n, n), symmetric and positive, is replaced by its inverse (Gauss and Jordan).
static inline void position_invert(double* A, int n) {
    for (int k = 0; k < n; k++) {
        double pivot = 1 / A[k * n + k];
        A[k * n + k] = 1;
        for (int j = 0; j < n; j++) A[k * n + j] *= pivot;
        for (int i = 0; i < n; i++) {
            double factor = A[i * n + k];
            if (i == k) continue;
            A[i * n + k] = 0;
            for (int j = 0; j < n; j++) A[i * n + j] -= factor * A[k * n + j];
        }
    }
}

// R+ (G, g) of R (g, G)
static inline void position_pseudo_inverse(double* inverse, const double* R, int g, int G) {
    double* square = (double*)calloc_check((size_t)g * g, sizeof(double), "a position table");
    for (int i = 0; i < g * g; i++) {
        for (int k = 0; k < G; k++) square[i] += R[i / g * G + k] * R[i % g * G + k];
    }
    position_invert(square, g);
    for (int i = 0; i < G * g; i++) {
        inverse[i] = 0;
        for (int k = 0; k < g; k++) inverse[i] += R[k * G + i / g] * square[k * g + i % g];
    }
    free(square);
}

static inline void position_table_resample(floatS* out,         // (G, G, D)
                                           const floatS* table, // (g, g, D)
                                           int g, int G, int D) {
    size_t small = (size_t)g * g * D, large = (size_t)G * G * D, map = (size_t)g * G;
    double* P = (double*)malloc_check((2 * small + 2 * large + 3 * map) * sizeof(double), "a position table");
    double *rest = P + small, *T = rest + small, *correction = T + large, *U = correction + large, *R = U + map;
    double* inverse = R + map;
    for (size_t i = 0; i < small; i++) P[i] = table[i];
    position_matrix(U, g, G);
    position_apply(T, U, P, G, g, D);
    if (g <= G) {
        position_matrix(R, G, g);
        position_pseudo_inverse(inverse, R, g, G);
        position_apply(rest, R, T, g, G, D);
        for (size_t i = 0; i < small; i++) rest[i] = P[i] - rest[i];
        position_apply(correction, inverse, rest, G, g, D);
        for (size_t i = 0; i < large; i++) T[i] += correction[i];
    }
    for (size_t i = 0; i < large; i++) out[i] = (floatS)T[i];
    free(P);
}
