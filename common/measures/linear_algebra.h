// linear_algebra.h: products, symmetric eigenvectors and singular values of matrices of doubles, for statistics.
//
//     matrix_products     C += A B^T
//     symmetric_eigen     A = V diag(values) V^T
//     singular_values     of a square A: square roots of the eigenvalues of A^T A, without forming it
//
// With -DLAPACK=1 (the Makefile looks for an OpenBLAS that has it) these are dgemm, dsyevd and dgesdd. The functions
// called own_* do the same in plain C. They are always compiled, so that tests can compare the two.
//
// All matrices are row-major. Eigenvectors are ROWS: row k of `vectors` belongs to values[k]. Errors are those of
// backward stable methods: a value is off by a few 1e-16 of the largest, whatever its own size.
//
// How the own ones work (Golub and Van Loan, Matrix Computations, sections 5.4, 8.3 and 8.6). Reflections
// H = I - beta v v^T turn the matrix into three diagonals (symmetric) or two (singular values); implicit QL iterations
// make the off-diagonal small. The two diagonals d, e of a matrix B become a symmetric problem of twice the size: the
// matrix with zeros on its diagonal and d0, e0, d1, e1, ... beside it has the eigenvalues +- sigma of B. So one QL
// serves both.
//
// Speed is that of memory: a step of either reduction must read what is left of the matrix, and that is larger than a
// cache. Hence the reductions put off a step's update and make it while they read for the next step; and QL, which
// needs the vectors for nothing, writes down its rotations, to apply some thousands at a time to columns that fit a
// cache.
//
// Threads share rows or blocks of columns, never a sum, and OpenBLAS is told to use one: bits do not depend on them.
// Look next at common/measures/moments.h and common/measures/frechet.h.
#pragma once
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

// defines: fatal, malloc_check, calloc_check
#include "common/program/log.h"

#ifdef LAPACK
#include <cblas.h>
__attribute__((constructor)) static void matrix_use_one_blas_thread(void) { openblas_set_num_threads(1); }
#ifdef __cplusplus
extern "C" {
#endif
void dsyevd_(const char* vectors, const char* triangle, const int* n, double* a, const int* lda, double* values,
             double* work, const int* work_size, int* integers, const int* integers_size, int* info);
void dgesdd_(const char* vectors, const int* m, const int* n, double* a, const int* lda, double* values, double* u,
             const int* ldu, double* vt, const int* ldvt, double* work, const int* work_size, int* integers, int* info);
#ifdef __cplusplus
}
#endif
#endif

static inline double* matrix_doubles(size_t n, const char* what) {
    return (double*)malloc_check(n * sizeof(double), what);
}

static inline double dot_product(const double* a, const double* b, int n) { // (n)
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// ------------------------------------------------------------------------------------------------------------------
// Products. One thread; callers share blocks of C among theirs.

enum { PRODUCT_ROWS = 64, PRODUCT_DEPTH = 256, PRODUCT_STRIDE = PRODUCT_DEPTH + 8 }; // 128 KiB of A stay in a cache

// Two rows of A with four of B, PRODUCT_STRIDE apart: eight sums for six loads.
static inline void own_products_2x4(int K, const double* A, const double* B, double* C, int ldc) {
    const double *a0 = A, *a1 = a0 + PRODUCT_STRIDE;
    const double *b0 = B, *b1 = b0 + PRODUCT_STRIDE, *b2 = b1 + PRODUCT_STRIDE, *b3 = b2 + PRODUCT_STRIDE;
    double s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
#pragma omp simd reduction(+ : s00, s01, s02, s03, s10, s11, s12, s13)
    for (int k = 0; k < K; k++) {
        s00 += a0[k] * b0[k], s01 += a0[k] * b1[k], s02 += a0[k] * b2[k], s03 += a0[k] * b3[k];
        s10 += a1[k] * b0[k], s11 += a1[k] * b1[k], s12 += a1[k] * b2[k], s13 += a1[k] * b3[k];
    }
    C[0] += s00, C[1] += s01, C[2] += s02, C[3] += s03;
    C += ldc;
    C[0] += s10, C[1] += s11, C[2] += s12, C[3] += s13;
}

// Rows of A, one after another with a stride that spreads them over the cache, whatever theirs was.
static inline void own_products_copy(int rows, int K, const double* A, int lda, double* to) {
    for (int i = 0; i < rows; i++)
        memcpy(to + (size_t)i * PRODUCT_STRIDE, A + (size_t)i * lda, (size_t)K * sizeof(double));
}

// C (M, N) += A (M, K) B (N, K)^T; ld* are row strides.
static inline void own_products(int M, int N, int K, const double* A, int lda, const double* B, int ldb, double* C,
                                int ldc) {
    double a[PRODUCT_ROWS * PRODUCT_STRIDE], b[4 * PRODUCT_STRIDE];
    for (int k = 0; k < K; k += PRODUCT_DEPTH) {
        int depth = K - k < PRODUCT_DEPTH ? K - k : PRODUCT_DEPTH;
        for (int m = 0; m < M; m += PRODUCT_ROWS) {
            int rows = M - m < PRODUCT_ROWS ? M - m : PRODUCT_ROWS;
            own_products_copy(rows, depth, A + (size_t)m * lda + k, lda, a);
            for (int j = 0; j < N; j += 4) {
                int columns = N - j < 4 ? N - j : 4;
                own_products_copy(columns, depth, B + (size_t)j * ldb + k, ldb, b);
                for (int i = 0; i < rows; i += 2) {
                    double* c = C + (size_t)(m + i) * ldc + j;
                    if (i + 2 <= rows && columns == 4) {
                        own_products_2x4(depth, a + i * PRODUCT_STRIDE, b, c, ldc);
                        continue;
                    }
                    for (int p = 0; p < 2 && i + p < rows; p++) {
                        for (int q = 0; q < columns; q++)
                            c[(size_t)p * ldc + q] +=
                                dot_product(a + (i + p) * PRODUCT_STRIDE, b + q * PRODUCT_STRIDE, depth);
                    }
                }
            }
        }
    }
}

static inline void matrix_products(int M, int N, int K, const double* A, int lda, const double* B, int ldb, double* C,
                                   int ldc) {
#ifdef LAPACK
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, M, N, K, 1, A, lda, B, ldb, 1, C, ldc);
#else
    own_products(M, N, K, A, lda, B, ldb, C, ldc);
#endif
}

// The same by all threads, in blocks of C. C is set, not added to.
static inline void matrix_products_parallel(int M, int N, int K, const double* A, const double* B, double* C) {
    enum { BLOCK = 256 };
    int across = (N + BLOCK - 1) / BLOCK, blocks = (M + BLOCK - 1) / BLOCK * across;
#pragma omp parallel for schedule(dynamic)
    for (int b = 0; b < blocks; b++) {
        int i = b / across * BLOCK, j = b % across * BLOCK;
        int rows = M - i < BLOCK ? M - i : BLOCK, columns = N - j < BLOCK ? N - j : BLOCK;
        for (int r = i; r < i + rows; r++) memset(C + (size_t)r * N + j, 0, (size_t)columns * sizeof(double));
        matrix_products(rows, columns, K, A + (size_t)i * K, K, B + (size_t)j * K, K, C + (size_t)i * N + j, N);
    }
}

// ------------------------------------------------------------------------------------------------------------------
// Reflections and rotations

// The reflection H = I - beta v v^T that sends x to (alpha, 0, 0, ...). x becomes v; returns alpha.
static inline double reflection_of(int n, double* x, double* beta) { // (n), [1]
    double rest = n > 1 ? dot_product(x + 1, x + 1, n - 1) : 0, first = x[0];
    *beta = 0;
    if (rest == 0) return first;
    double alpha = -copysign(sqrt(first * first + rest), first); // away from x[0], so that nothing cancels in v
    x[0] = first - alpha;
    *beta = 2 / (x[0] * x[0] + rest);
    return alpha;
}

enum { PARALLEL_FROM = 384 }; // rows; fewer take less time than threads need to meet
enum { PANEL = 64, ROTATIONS = 1 << 15 }; // columns that are worked on together; rotations that are written down

// Rows i and i + 1 become c row_i - s row_i+1 and s row_i + c row_i+1.
typedef struct { double c, s; int i; } rotation_t;

// The vectors during the iteration. A panel is PANEL columns of a matrix, stored together: (n, PANEL).
typedef struct {
    int n, panels, pending;
    double* panel;       // (panels, n, PANEL)
    rotation_t* rotation; // (ROTATIONS), of which `pending` wait
} rotated_t;

static inline void rotated_flush(rotated_t* r) {
#pragma omp parallel for schedule(dynamic)
    for (int p = 0; p < r->panels; p++) {
        double* panel = r->panel + (size_t)p * r->n * PANEL;
        for (int k = 0; k < r->pending; k++) {
            double c = r->rotation[k].c, s = r->rotation[k].s;
            double *x = panel + (size_t)r->rotation[k].i * PANEL, *y = x + PANEL;
#pragma omp simd
            for (int j = 0; j < PANEL; j++) {
                double a = x[j], b = y[j];
                x[j] = c * a - s * b;
                y[j] = s * a + c * b;
            }
        }
    }
    r->pending = 0;
}

static inline void rotated_add(rotated_t* r, double c, double s, int i) {
    if (r->pending == ROTATIONS) rotated_flush(r);
    rotation_t* to = &r->rotation[r->pending++];
    to->c = c, to->s = s, to->i = i;
}

// One implicit QL step on the unreduced block l..m, with Wilkinson's shift. The bulge is chased from m up to l.
static inline void ql_step(double* d, double* e, int l, int m, rotated_t* vectors) {
    double g = (d[l + 1] - d[l]) / (2 * e[l]);
    g = d[m] - d[l] + e[l] / (g + copysign(sqrt(g * g + 1), g));
    double s = 1, c = 1, p = 0;
    for (int i = m - 1; i >= l; i--) {
        double f = s * e[i], b = c * e[i], r = sqrt(f * f + g * g);
        e[i + 1] = r;
        if (r == 0) { // the block falls into two
            d[i + 1] -= p;
            e[m] = 0;
            return;
        }
        s = f / r, c = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * s + 2 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        if (vectors) rotated_add(vectors, c, s, i);
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0;
}

// d <- the eigenvalues of the symmetric matrix with diagonal d and off-diagonal e[0..n-2]; e is lost. Not sorted.
// `vectors` (or NULL) gets the rotations. An e counts as zero when it is so beside the largest number: where many
// values are nothing but rounding (fewer samples than dimensions) that is as small as it gets.
static inline void ql_iterate(int n, double* d, double* e, rotated_t* vectors) { // (n), (n)
    enum { MOST = 80 }; // steps for one value; three are usual
    double norm = 0;
    e[n - 1] = 0;
    for (int i = 0; i < n; i++) norm = fmax(norm, fmax(fabs(d[i]), fabs(e[i])));
    if (norm == 0) return;
    for (int i = 0; i < n; i++) d[i] /= norm, e[i] /= norm; // squares neither overflow nor vanish
    for (int l = 0; l < n; l++) {
        for (int step = 0;; step++) {
            int m = l;
            while (m < n - 1 && fabs(e[m]) > DBL_EPSILON) m++;
            if (m == l) break;
            if (step == MOST) fatal("eigenvalues of a %d x %d matrix have not converged: is it finite?", n, n);
            ql_step(d, e, l, m, vectors);
        }
    }
    if (vectors) rotated_flush(vectors);
    for (int i = 0; i < n; i++) d[i] *= norm;
}

static inline int compare_doubles(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

// ------------------------------------------------------------------------------------------------------------------
// Symmetric eigenvectors, own code

// A (n, n) becomes H_n-2 ... H_0 A H_0 ... H_n-2 with diagonal d and off-diagonal e. Row k of A keeps H_k's v from
// column k + 1 on. One step: with p = beta A v and w = p - (beta/2 v.p) v, the reflected matrix is A - v w^T - w v^T.
static inline void own_tridiagonal(int n, double* A, double* d, double* e, double* beta) {
    double *p = matrix_doubles(n, "a column"), *w = (double*)calloc_check(n, sizeof(double), "a column");
    for (int k = 0; k < n; k++) {
        double* row = A + (size_t)k * n; // its part from k on is still to be reduced
        const double* v = k ? row - n : w; // of the step before; w is 0 in the first
        double vk = v[k], wk = w[k];
        for (int j = k; j < n; j++) row[j] -= vk * w[j] + wk * v[j];
        d[k] = row[k];
        if (k == n - 1) break;
        e[k] = reflection_of(n - k - 1, row + k + 1, &beta[k]);
#pragma omp parallel for schedule(static) if (n - k > PARALLEL_FROM)
        for (int i = k + 1; i < n; i++) {
            double *a = A + (size_t)i * n, vi = v[i], wi = w[i], sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int j = k + 1; j < n; j++) {
                a[j] -= vi * w[j] + wi * v[j];
                sum += a[j] * row[j];
            }
            p[i] = beta[k] * sum;
        }
        double half = 0.5 * beta[k] * dot_product(row + k + 1, p + k + 1, n - k - 1);
        for (int i = k + 1; i < n; i++) w[i] = p[i] - half * row[i];
    }
    free(p);
    free(w);
}

// panel (n, PANEL) <- columns `first` and on of H_n-2 ... H_0
static inline void own_panel(int n, const double* A, const double* beta, int first, double* panel) {
    memset(panel, 0, (size_t)n * PANEL * sizeof(double));
    for (int j = 0; j < PANEL && first + j < n; j++) panel[(size_t)(first + j) * PANEL + j] = 1;
    for (int k = 0; k < n - 1; k++) {
        const double* v = A + (size_t)k * n;
        double sum[PANEL] = {0};
        for (int i = k + 1; i < n; i++) {
            for (int j = 0; j < PANEL; j++) sum[j] += v[i] * panel[(size_t)i * PANEL + j];
        }
        for (int j = 0; j < PANEL; j++) sum[j] *= beta[k];
        for (int i = k + 1; i < n; i++) {
            for (int j = 0; j < PANEL; j++) panel[(size_t)i * PANEL + j] -= v[i] * sum[j];
        }
    }
}

typedef struct { double value; int index; } eigen_order_t;

static inline int compare_eigen_order(const void* a, const void* b) {
    const eigen_order_t *x = (const eigen_order_t*)a, *y = (const eigen_order_t*)b;
    if (x->value != y->value) return x->value < y->value ? -1 : 1;
    return x->index - y->index;
}

static inline void own_symmetric_eigen(int n, const double* A, double* values, double* vectors) {
    double *reduced = matrix_doubles((size_t)n * n, "a matrix"), *e = matrix_doubles(n, "an off-diagonal");
    double* beta = matrix_doubles(n, "reflections");
    rotated_t r;
    r.n = n, r.panels = (n + PANEL - 1) / PANEL, r.pending = 0;
    r.panel = matrix_doubles((size_t)r.panels * n * PANEL, "eigenvectors");
    r.rotation = (rotation_t*)malloc_check(ROTATIONS * sizeof(rotation_t), "rotations");
    memcpy(reduced, A, (size_t)n * n * sizeof(double));
    own_tridiagonal(n, reduced, values, e, beta);
#pragma omp parallel for schedule(dynamic)
    for (int p = 0; p < r.panels; p++) own_panel(n, reduced, beta, p * PANEL, r.panel + (size_t)p * n * PANEL);
    ql_iterate(n, values, e, &r);
    eigen_order_t* order = (eigen_order_t*)malloc_check(n * sizeof(eigen_order_t), "an order");
    for (int k = 0; k < n; k++) order[k].value = values[k], order[k].index = k;
    qsort(order, n, sizeof(eigen_order_t), compare_eigen_order);
    for (int k = 0; k < n; k++) {
        values[k] = order[k].value;
        for (int j = 0; j < n; j++)
            vectors[(size_t)k * n + j] = r.panel[((size_t)(j / PANEL) * n + order[k].index) * PANEL + j % PANEL];
    }
    free(reduced), free(e), free(beta), free(r.panel), free(r.rotation), free(order);
}

// ------------------------------------------------------------------------------------------------------------------
// Singular values, own code

// What a step of own_bidiagonal leaves to the next: the matrix that is left is A - u z^T - w v^T.
typedef struct { double *u, *w, *z, *v; } bidiagonal_step_t; // u, w (rows); z, v (columns)

// Makes the update that is due, in rows k and on and columns k + 1 and on; next->z <- beta times u of the next step
// times the result.
static inline void own_bidiagonal_columns(int n, int k, double* A, const bidiagonal_step_t* due,
                                          bidiagonal_step_t* next, double beta) {
    enum { BLOCK = 128 };
    int blocks = (n - k - 1 + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (n - k > PARALLEL_FROM)
    for (int b = 0; b < blocks; b++) {
        int begin = k + 1 + b * BLOCK, end = begin + BLOCK < n ? begin + BLOCK : n;
        const double *z = due->z, *v = due->v;
        double sum[BLOCK] = {0};
        for (int i = k; i < n; i++) {
            double *a = A + (size_t)i * n, ui = due->u[i], wi = due->w[i], next_ui = next->u[i];
#pragma omp simd
            for (int j = begin; j < end; j++) {
                a[j] -= ui * z[j] + wi * v[j];
                sum[j - begin] += next_ui * a[j];
            }
        }
        for (int j = begin; j < end; j++) next->z[j] = beta * sum[j - begin];
    }
}

// A (n, n) is reflected from both sides until only the diagonal d and the e beside it are left. A is lost.
static inline void own_bidiagonal(int n, double* A, double* d, double* e) {
    double* memory = (double*)calloc_check((size_t)8 * n, sizeof(double), "reflections");
    bidiagonal_step_t step[2];
    for (int s = 0; s < 2; s++) {
        double* m = memory + (size_t)4 * n * s;
        step[s].u = m, step[s].w = m + n, step[s].z = m + 2 * n, step[s].v = m + 3 * n;
    }
    for (int k = 0; k < n; k++) {
        bidiagonal_step_t *due = &step[k % 2], *next = &step[(k + 1) % 2];
        double beta;
        for (int i = k; i < n; i++)
            next->u[i] = A[(size_t)i * n + k] - due->u[i] * due->z[k] - due->w[i] * due->v[k];
        d[k] = reflection_of(n - k, next->u + k, &beta);
        if (k == n - 1) break;
        own_bidiagonal_columns(n, k, A, due, next, beta);
        for (int j = k + 1; j < n; j++) next->v[j] = A[(size_t)k * n + j] - next->u[k] * next->z[j];
        e[k] = reflection_of(n - k - 1, next->v + k + 1, &beta);
        double both = dot_product(next->z + k + 1, next->v + k + 1, n - k - 1);
#pragma omp parallel for schedule(static) if (n - k > PARALLEL_FROM)
        for (int i = k + 1; i < n; i++) {
            double sum = dot_product(A + (size_t)i * n + k + 1, next->v + k + 1, n - k - 1);
            next->w[i] = beta * (sum - next->u[i] * both);
        }
    }
    free(memory);
}

// Descending. A is lost.
static inline void own_singular_values(int n, double* A, double* values) {
    double *d = matrix_doubles(n, "a diagonal"), *e = matrix_doubles(n, "a diagonal");
    double *beside = matrix_doubles((size_t)2 * n, "a diagonal");
    double *both = (double*)calloc_check((size_t)2 * n, sizeof(double), "singular values");
    own_bidiagonal(n, A, d, e);
    for (int k = 0; k < n; k++) beside[2 * k] = d[k], beside[2 * k + 1] = k < n - 1 ? e[k] : 0;
    ql_iterate(2 * n, both, beside, NULL);
    qsort(both, (size_t)2 * n, sizeof(double), compare_doubles);
    for (int k = 0; k < n; k++) values[k] = fmax(both[2 * n - 1 - k], 0);
    free(d), free(e), free(beside), free(both);
}

// ------------------------------------------------------------------------------------------------------------------
// What others call

static inline void matrix_check(int n, const double* A, const char* what) { // (n, n)
    if (n < 1) fatal("%s: a matrix of %d rows", what, n);
    for (size_t i = 0; i < (size_t)n * n; i++) {
        if (!isfinite(A[i]))
            fatal("%s holds %g in row %zu, column %zu; what it was computed from is not finite either", what, A[i],
                  i / n, i % n);
    }
}

// values ascending; A is symmetric and kept.
static inline void symmetric_eigen(int n,
                                   const double* A, // (n, n)
                                   double* values,  // (n)
                                   double* vectors) { // (n, n)
    matrix_check(n, A, "the matrix whose eigenvectors are asked for");
#ifdef LAPACK
    double work_size;
    int integers_size, info, ask = -1;
    memcpy(vectors, A, (size_t)n * n * sizeof(double));
    dsyevd_("V", "L", &n, vectors, &n, values, &work_size, &ask, &integers_size, &ask, &info);
    int size = (int)work_size;
    double* work = matrix_doubles(size, "LAPACK's working memory");
    int* integers = (int*)malloc_check(integers_size * sizeof(int), "LAPACK's working memory");
    dsyevd_("V", "L", &n, vectors, &n, values, work, &size, integers, &integers_size, &info);
    if (info) fatal("LAPACK's dsyevd has not converged (%d); build with LAPACK=0 to use other code", info);
    free(work);
    free(integers);
#else
    own_symmetric_eigen(n, A, values, vectors);
#endif
}

// values descending. A is lost.
static inline void singular_values(int n,
                                   double* A,        // (n, n)
                                   double* values) { // (n)
    matrix_check(n, A, "the matrix whose singular values are asked for");
#ifdef LAPACK
    double work_size, none;
    int info, ask = -1, one = 1;
    int* integers = (int*)malloc_check((size_t)8 * n * sizeof(int), "LAPACK's working memory");
    dgesdd_("N", &n, &n, A, &n, values, &none, &one, &none, &one, &work_size, &ask, integers, &info);
    int size = (int)work_size;
    double* work = matrix_doubles(size, "LAPACK's working memory");
    dgesdd_("N", &n, &n, A, &n, values, &none, &one, &none, &one, work, &size, integers, &info);
    if (info) fatal("LAPACK's dgesdd has not converged (%d); build with LAPACK=0 to use other code", info);
    free(work);
    free(integers);
#else
    own_singular_values(n, A, values);
#endif
}
