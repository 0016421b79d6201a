// moments.h: mean and covariance of features that come a few rows at a time, on one process or several.
//
//     s = sum (x - c),  M = sum (x - c)(x - c)^T          c: a fixed shift, the mean of the first rows
//     mu = c + s/n,     Sigma = (M - s s^T / n) / (n - 1)  the unbiased estimate, numpy.cov
//
// All sums are in double: summed in float32, the covariance of 1,000 rows moved a Frechet distance by 2.5e-3. The shift
// keeps the subtraction harmless: without it, features with means far from zero would lose digits to their own squares.
//
// Rows are collected until there are MOMENTS_ROWS, whoever brings them; then M grows by one product of matrices. So the
// sums do not know how the rows were cut into batches, and a run with another batch size gives the same bits. M is
// symmetric: its upper blocks are kept, and shared among the threads.
//
// Several processes: each has its own shift. Their n, means and centred sums are put together by Chan, Golub and
// LeVeque (1979): M = sum_r M_r + sum_r n_r (mu_r - mu)(mu_r - mu)^T. That agrees with one process to 1e-12.
// Look next at common/measures/frechet.h, which compares two sets of moments.
#pragma once
// defines: comm_t, comm_sum_host
#include "common/training/comm.h"
// defines: matrix_products, matrix_doubles
#include "common/measures/linear_algebra.h"

enum { MOMENTS_ROWS = 256, MOMENTS_BLOCK = 256, MOMENTS_MAX_DIM = 16384 };

typedef struct {
    int dim, waiting; // rows in `rows` that are not in the sums
    double n;         // rows in the sums
    double* rows;     // (dim, MOMENTS_ROWS): transposed, so that products read along it
    double* shift;    // (dim)
    double* sum;      // (dim)
    double* product;  // (dim, dim) upper blocks of M
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
    int rows = m->waiting, dim = m->dim, blocks = (dim + MOMENTS_BLOCK - 1) / MOMENTS_BLOCK;
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
#pragma omp parallel for schedule(dynamic)
    for (int b = 0; b < blocks * blocks; b++) {
        int i = b / blocks * MOMENTS_BLOCK, j = b % blocks * MOMENTS_BLOCK;
        if (i > j) continue;
        int height = dim - i < MOMENTS_BLOCK ? dim - i : MOMENTS_BLOCK;
        int width = dim - j < MOMENTS_BLOCK ? dim - j : MOMENTS_BLOCK;
        matrix_products(height, width, rows, m->rows + (size_t)i * MOMENTS_ROWS, MOMENTS_ROWS,
                        m->rows + (size_t)j * MOMENTS_ROWS, MOMENTS_ROWS, m->product + (size_t)i * dim + j, dim);
    }
    m->n += rows;
    m->waiting = 0;
}

static inline void moments_row_complete(moments_t* m) {
    if (++m->waiting == MOMENTS_ROWS) moments_flush(m);
}

__attribute__((noreturn)) static inline void moments_not_finite(const moments_t* m, int column, double value) {
    fatal("feature %d of row %.0f is %g: the network's input or weights are not finite; the metrics would be worthless",
          column, m->n + m->waiting, value);
}

static inline void moments_add(moments_t* m,
                               const float* features, // (N, dim)
                               int N) {
    for (int i = 0; i < N; i++) {
        const float* row = features + (size_t)i * m->dim;
        for (int j = 0; j < m->dim; j++) {
            if (!isfinite(row[j])) moments_not_finite(m, j, row[j]);
            m->rows[(size_t)j * MOMENTS_ROWS + m->waiting] = row[j];
        }
        moments_row_complete(m);
    }
}

static inline void moments_add_double(moments_t* m,
                                      const double* features, // (N, dim)
                                      int N) {
    for (int i = 0; i < N; i++) {
        const double* row = features + (size_t)i * m->dim;
        for (int j = 0; j < m->dim; j++) {
            if (!isfinite(row[j])) moments_not_finite(m, j, row[j]);
            m->rows[(size_t)j * MOMENTS_ROWS + m->waiting] = row[j];
        }
        moments_row_complete(m);
    }
}

// How many rows were added, those that wait included.
static inline double moments_count(const moments_t* m) { return m->n + m->waiting; }

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
        comm_sum_host(c, row + i, dim - i);
    }
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
