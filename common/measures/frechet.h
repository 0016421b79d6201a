// frechet.h: the Frechet distance between two sets of features, FID, rFID, gFID, sFID: their moments, and the distance
// of the two Gaussians that have these.
//
// Moments: mean and covariance of features that come a few rows at a time, on one process or several.
//
//     s = sum (x - c),  M = sum (x - c)(x - c)^T          c: a fixed shift, the mean of the first rows
//     mu = c + s/n,     Sigma = (M - s s^T / n) / (n - 1)  the unbiased estimate, numpy.cov
//
// All sums are in double: summed in float32, the covariance of 1,000 rows moved a Frechet distance by 2.5e-3. The shift
// keeps the subtraction harmless: without it, features with means far from zero would lose digits to their own squares.
//
// Rows are collected until there are MOMENTS_ROWS, whoever brings them; then M grows by one product of matrices. So the
// sums do not know how the rows were cut into batches, and a run with another batch size gives the same bits. M is
// symmetric: its upper triangle is kept.
//
// Several processes: each has its own shift. Their n, means and centred sums are put together by Chan, Golub and
// LeVeque (1979): M = sum_r M_r + sum_r n_r (mu_r - mu)(mu_r - mu)^T. That agrees with one process to 1e-12.
//
// Distance (Dowson and Landau 1982; Heusel et al. 2017):
//
//     d^2 = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)
//
// The usual programs take the square root of the matrix S1 S2, which is not symmetric: with fewer images than
// dimensions it is singular, the root loses half its digits, becomes complex, or fails, and 1e-6 is added to the
// diagonals. None of that is needed. With S = V L V^T (rows of W = V^T are eigenvectors)
//
//     tr (S1 S2)^(1/2) = sum of the singular values of  A = L1^(1/2) (W1 W2^T) L2^(1/2)
//
// since A A^T is similar to S1 S2. No negative number comes under a root but the rounding of the eigenvalues, which is
// set to 0. At 2048 dimensions and 5,000 images this agrees with an exact evaluation to 1e-12; the matrix root of scipy
// to 3e-12, and for 1,000 images to 3e-6 where this has 2e-8.
//
// The result is not clamped: two identical sets may give -1e-10, and that is a measure of the error.
// The estimate is biased upwards for few images, so that values for 10,000 and 50,000 cannot be compared.
// Look next at common/measures/image_features.h, which collects the moments of sets of images.
#pragma once
// defines: matrix_products, matrix_squares, symmetric_eigen, singular_values, matrix_doubles
#include "common/measures/linear_algebra.h"
// defines: comm_t, comm_sum_host
#include "common/training/comm.h"

// ---------------------------------------------------------------------------------------------------------------------
// Moments

enum { MOMENTS_ROWS = 1024, MOMENTS_MAX_DIM = 16384 };

typedef struct {
    int dim, waiting; // rows in `rows` that are not in the sums
    double n;         // rows in the sums
    double* rows;     // (dim, MOMENTS_ROWS): transposed, so that products read along it
    double* shift;    // (dim)
    double* sum;      // (dim)
    double* product;  // (dim, dim) the upper triangle of M
} moments_t;

static inline void moments_open(moments_t* m, int dim) {
    if (dim < 1 || dim > MOMENTS_MAX_DIM)
        fatal("moments of features of %d dimensions; 1 to %d are possible", dim, MOMENTS_MAX_DIM);
    memset(m, 0, sizeof *m);
    m->dim = dim;
    m->rows = matrix_doubles((size_t)dim * MOMENTS_ROWS, "rows of features");
    m->shift = (double*)calloc_check(dim, sizeof(double), "a mean");
    m->sum = (double*)calloc_check(dim, sizeof(double), "a sum of features");
    m->product = (double*)calloc_check((size_t)dim * dim, sizeof(double), "a covariance");
}

static inline void moments_free(moments_t* m) {
    free(m->rows), free(m->shift), free(m->sum), free(m->product);
    memset(m, 0, sizeof *m);
}

// The rows that wait go into the sums.
static inline void moments_flush(moments_t* m) {
    int rows = m->waiting, dim = m->dim;
    if (rows == 0) return;
    for (int j = 0; j < dim; j++) {
        double *x = m->rows + (size_t)j * MOMENTS_ROWS, sum = 0;
        if (m->n == 0) {
            for (int i = 0; i < rows; i++) sum += x[i];
            m->shift[j] = sum / rows;
            sum = 0;
        }
        for (int i = 0; i < rows; i++) {
            x[i] -= m->shift[j];
            sum += x[i];
        }
        m->sum[j] += sum;
    }
    matrix_squares(dim, rows, m->rows, MOMENTS_ROWS, m->product, 1);
    m->n += rows;
    m->waiting = 0;
}

// One feature of the row that comes next.
static inline void moments_put(moments_t* m, int column, double value) {
    if (!isfinite(value)) {
        fatal("feature %d of row %.0f is %g: the network's input or weights are not finite; the metrics would be "
              "worthless", column, m->n + m->waiting, value);
    }
    m->rows[(size_t)column * MOMENTS_ROWS + m->waiting] = value;
}

static inline void moments_row_complete(moments_t* m) {
    if (++m->waiting == MOMENTS_ROWS) moments_flush(m);
}

static inline void moments_add(moments_t* m,
                               const float* features, // (N, dim)
                               int N) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < m->dim; j++) moments_put(m, j, features[(size_t)i * m->dim + j]);
        moments_row_complete(m);
    }
}

// Every rank has added its rows, or none; afterwards all have the moments of all rows, the same bits. A collective.
static inline void moments_merge(moments_t* m, comm_t* c) {
    if (c->size == 1) return;
    moments_flush(m);
    int dim = m->dim;
    double *mean = matrix_doubles(dim, "a mean"), *total = matrix_doubles((size_t)dim + 1, "a mean");
    for (int j = 0; j < dim; j++) {
        mean[j] = m->n > 0 ? m->shift[j] + m->sum[j] / m->n : 0;
        total[j] = m->n * mean[j];
    }
    total[dim] = m->n;
    comm_sum_host(c, total, dim + 1);
    for (int j = 0; j < dim && total[dim] > 0; j++) total[j] /= total[dim];
    for (int i = 0; i < dim; i++) { // M about this rank's mean, and then about the mean of all
        double* row = m->product + (size_t)i * dim;
        for (int j = i; j < dim && m->n > 0; j++)
            row[j] += m->n * (mean[i] - total[i]) * (mean[j] - total[j]) - m->sum[i] * m->sum[j] / m->n;
    }
    comm_sum_host(c, m->product, dim * dim); // below the diagonal nobody reads it
    m->n = total[dim];
    memcpy(m->shift, total, (size_t)dim * sizeof(double));
    memset(m->sum, 0, (size_t)dim * sizeof(double));
    free(mean);
    free(total);
}

// What was added, as the two arrays that statistics files hold. Adding may go on afterwards.
static inline void moments_read(moments_t* m,
                                double* mean,         // (dim)
                                double* covariance) { // (dim, dim)
    moments_flush(m);
    if (m->n < 2) fatal("a covariance needs at least two images; there are %.0f", m->n);
    for (int i = 0; i < m->dim; i++) {
        mean[i] = m->shift[i] + m->sum[i] / m->n;
        for (int j = i; j < m->dim; j++) {
            double centred = m->product[(size_t)i * m->dim + j] - m->sum[i] * m->sum[j] / m->n;
            covariance[(size_t)i * m->dim + j] = covariance[(size_t)j * m->dim + i] = centred / (m->n - 1);
        }
    }
}

// The same as arrays of their own, which the caller frees.
static inline void moments_read_new(moments_t* m, double** mean, double** covariance) {
    *mean = matrix_doubles(m->dim, "a mean");
    *covariance = matrix_doubles((size_t)m->dim * m->dim, "a covariance");
    moments_read(m, *mean, *covariance);
}

// ---------------------------------------------------------------------------------------------------------------------
// Distance

// Are these the mean and covariance of something? `what` names them for the message.
static inline void frechet_check(int dim, const double* mean, const double* covariance, const char* what) {
    double largest = 0;
    for (int i = 0; i < dim; i++) largest = fmax(largest, covariance[(size_t)i * dim + i]);
    for (int i = 0; i < dim; i++) {
        if (!isfinite(mean[i])) fatal("%s: mean %d is %g", what, i, mean[i]);
        double variance = covariance[(size_t)i * dim + i];
        if (!(variance >= -1e-6 * largest)) // statistics files may be float32, and have rounded zeros
            fatal("%s: variance %d is %g, where it should be 0 or more", what, i, variance);
    }
    for (int i = 0; i < dim; i++) {
        for (int j = 0; j < i; j++) {
            double a = covariance[(size_t)i * dim + j], b = covariance[(size_t)j * dim + i];
            if (!(fabs(a - b) <= 1e-6 * largest))
                fatal("%s: the covariance is not symmetric: %g in row %d, column %d, but %g across", what, a, i, j, b);
        }
    }
}

// eigenvectors (dim, dim), rows, each multiplied by the root of its eigenvalue
static inline void frechet_root(int dim, const double* covariance, double* vectors) {
    double* values = matrix_doubles(dim, "eigenvalues");
    symmetric_eigen(dim, covariance, values, vectors);
    for (int k = 0; k < dim; k++) {
        double root = sqrt(fmax(values[k], 0));
        for (int j = 0; j < dim; j++) vectors[(size_t)k * dim + j] *= root;
    }
    free(values);
}

// tr (S1 S2)^(1/2)
static inline double frechet_trace(int dim, const double* covariance1, const double* covariance2) { // (dim, dim)
    double *root1 = matrix_doubles((size_t)dim * dim, "eigenvectors");
    double *root2 = matrix_doubles((size_t)dim * dim, "eigenvectors");
    double *product = matrix_doubles((size_t)dim * dim, "a product"), *values = matrix_doubles(dim, "singular values");
    frechet_root(dim, covariance1, root1);
    frechet_root(dim, covariance2, root2);
    matrix_products(dim, dim, dim, root1, root2, product);
    singular_values(dim, product, values);
    double sum = 0;
    for (int k = dim - 1; k >= 0; k--) sum += values[k];
    free(root1), free(root2), free(product), free(values);
    return sum;
}

static inline double frechet_distance(int dim,
                                      const double* mean1,         // (dim)
                                      const double* covariance1,   // (dim, dim)
                                      const double* mean2,         // (dim)
                                      const double* covariance2) { // (dim, dim)
    frechet_check(dim, mean1, covariance1, "the first set's statistics");
    frechet_check(dim, mean2, covariance2, "the second set's statistics");
    double distance = 0;
    for (int i = 0; i < dim; i++) {
        double difference = mean1[i] - mean2[i];
        distance += difference * difference + covariance1[(size_t)i * dim + i] + covariance2[(size_t)i * dim + i];
    }
    return distance - 2 * frechet_trace(dim, covariance1, covariance2);
}

// Of what was added to `m` and another set's statistics.
static inline double frechet_of_moments(moments_t* m,
                                        const double* mean,         // (dim)
                                        const double* covariance) { // (dim, dim)
    double *own_mean, *own_covariance;
    moments_read_new(m, &own_mean, &own_covariance);
    double distance = frechet_distance(m->dim, own_mean, own_covariance, mean, covariance);
    free(own_mean), free(own_covariance);
    return distance;
}
