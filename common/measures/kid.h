// kid.h: the kernel inception distance (Binkowski, Sutherland, Arbel, Gretton, 2018).
//
// The squared maximum mean discrepancy of two sets of m rows under the kernel k(a, b) = (a.b / d + 1)^3, estimated
// without bias: a row is not compared with itself.
//
//     KID = [sum_{i != j} k(x_i, x_j) + sum_{i != j} k(y_i, y_j)] / (m (m - 1)) - 2 sum_{i, j} k(x_i, y_j) / m^2
//
// Of large sets, 100 random subsets of 1000 rows each, drawn without replacement, give a mean and a deviation
// (population), as in torch-fidelity and clean-fid. Values near 0 may be negative, and are printed as they are. Other
// programs draw other subsets; that moves the mean by about a tenth of the deviation.
//
// Unlike the Frechet distance it is unbiased for any number of images. Rows are drawn by common/program/rng.h, the
// subsets are shared among the threads, and all sums are in double: the bits depend on the features and the seed alone.
// Look next at common/measures/frechet.h and common/measures/manifold.h.
#pragma once
// defines: matrix_products, matrix_doubles, warn
#include "common/measures/linear_algebra.h"
// defines: random_permute, RANDOM_SUBSETS
#include "common/program/rng.h"

#define KID_SUBSETS 100
#define KID_SIZE 1000
#define KID_SEED 2020

typedef struct {
    double mean, deviation; // over the subsets
    int subsets, size;      // rows in each: less than asked for, if a set has fewer
} kid_t;

// Sum of k(a_i, b_j) over all i and j; with a == b over i != j.
static inline double kid_kernel_sum(const double* a, const double* b, int m, int dim) { // (m, dim), (m, dim)
    enum { BLOCK = 128 };
    double *product = matrix_doubles((size_t)BLOCK * m, "a kernel's values"), total = 0;
    for (int i = 0; i < m; i += BLOCK) {
        int rows = m - i < BLOCK ? m - i : BLOCK;
        int first = a == b ? i : 0, columns = m - first; // a matrix that is symmetric: from its diagonal on
        memset(product, 0, (size_t)rows * columns * sizeof(double));
        matrix_products(rows, columns, dim, a + (size_t)i * dim, dim, b + (size_t)first * dim, dim, product, columns);
        for (int r = 0; r < rows; r++) {
            double sum = 0;
            for (int j = a == b ? r + 1 : 0; j < columns; j++) {
                double k = product[(size_t)r * columns + j] / dim + 1;
                sum += k * k * k;
            }
            total += a == b ? 2 * sum : sum;
        }
    }
    free(product);
    return total;
}

// KID of two sets of m rows each; y may be x, which gives a negative number.
static inline double kid_of_rows(const double* x, const double* y, int m, int dim) { // (m, dim), (m, dim)
    double within = kid_kernel_sum(x, x, m, dim) + kid_kernel_sum(y, y, m, dim), across;
    if (x == y) { // kid_kernel_sum leaves the diagonal out then
        across = within / 2;
        for (int i = 0; i < m; i++) {
            double k = dot_product(x + (size_t)i * dim, x + (size_t)i * dim, dim) / dim + 1;
            across += k * k * k;
        }
    } else {
        across = kid_kernel_sum(x, y, m, dim);
    }
    return within / ((double)m * (m - 1)) - 2 * across / ((double)m * m);
}

// rows (m, dim) <- m different ones of the n; `draw` numbers the drawings.
static inline void kid_draw(double* rows, int m, const float* features, int n, int dim, uint64_t seed, uint64_t draw) {
    for (int i = 0; i < m; i++) {
        const float* from = features + (size_t)random_permute(seed, RANDOM_SUBSETS, draw, i, n) * dim;
        for (int j = 0; j < dim; j++) rows[(size_t)i * dim + j] = from[j];
    }
}

static inline kid_t kid_distance(const float* x, int nx, // (nx, dim)
                                 const float* y, int ny, // (ny, dim)
                                 int dim, int subsets, int size, uint64_t seed) {
    int least = nx < ny ? nx : ny;
    kid_t kid = {0, 0, subsets, size < least ? size : least};
    if (subsets < 1) fatal("KID needs at least one subset, not %d", subsets);
    if (kid.size < 2) fatal("KID needs at least two images in each set; there are %d and %d", nx, ny);
    if (kid.size < size)
        warn("KID: the subsets have %d images, not %d, since one set has no more; name the size when you compare",
             kid.size, size);
    double* values = matrix_doubles(subsets, "the subsets' values");
#pragma omp parallel
    {
        double* a = matrix_doubles((size_t)kid.size * dim, "a subset's features");
        double* b = matrix_doubles((size_t)kid.size * dim, "a subset's features");
#pragma omp for schedule(dynamic)
        for (int s = 0; s < subsets; s++) {
            kid_draw(a, kid.size, x, nx, dim, seed, (uint64_t)2 * s);
            kid_draw(b, kid.size, y, ny, dim, seed, (uint64_t)2 * s + 1);
            values[s] = kid_of_rows(a, b, kid.size, dim);
        }
        free(a);
        free(b);
    }
    double variance = 0;
    for (int s = 0; s < subsets; s++) kid.mean += values[s] / subsets;
    for (int s = 0; s < subsets; s++) variance += (values[s] - kid.mean) * (values[s] - kid.mean) / subsets;
    kid.deviation = sqrt(variance);
    free(values);
    return kid;
}
