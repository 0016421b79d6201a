// linear_algebra.h: the products, eigenvectors and singular values of common/measures/linear_algebra.h by the host's
// BLAS and LAPACK.
//
// Threads share blocks of a product, never a sum, and the library has one thread: bits do not depend on their number.
// Look next at dev/cpu/blas.h.
#pragma once
#include <stddef.h>

// defines: dgemm_, dsyevd_, dgesdd_
#include "dev/cpu/blas.h"
// defines: fatal, malloc_check
#include "common/program/log.h"

enum { MATRIX_BLOCK = 256 };

// C = beta C + A B^T; `upper`: of square C the blocks that touch the upper triangle. ld*: row strides.
static inline void matrix_blocks(int M, int N, int K, const double* A, int lda, const double* B, int ldb, double beta,
                                 double* C, int ldc, int upper) {
    const double one = 1;
    int across = (N + MATRIX_BLOCK - 1) / MATRIX_BLOCK, blocks = (M + MATRIX_BLOCK - 1) / MATRIX_BLOCK * across;
#pragma omp parallel for schedule(dynamic)
    for (int b = 0; b < blocks; b++) {
        int i = b / across * MATRIX_BLOCK, j = b % across * MATRIX_BLOCK;
        int rows = M - i < MATRIX_BLOCK ? M - i : MATRIX_BLOCK, columns = N - j < MATRIX_BLOCK ? N - j : MATRIX_BLOCK;
        if (upper && i > j) continue;
        // what is row-major here is its transpose to the library: C^T = B A^T
        dgemm_("T", "N", &columns, &rows, &K, &one, B + (size_t)j * ldb, &ldb, A + (size_t)i * lda, &lda, &beta,
               C + (size_t)i * ldc + j, &ldc);
    }
}

static inline void matrix_products(int M, int N, int K, const double* A, const double* B, double* C) {
    matrix_blocks(M, N, K, A, K, B, K, 0, C, N, 0);
}

static inline void matrix_squares(int n, int K, const double* A, int lda, double* C, int add) {
    matrix_blocks(n, n, K, A, lda, A, lda, add, C, n, 1);
}

static inline void matrix_eigen(int n, double* A, double* values) {
    double work_size;
    int integers_size, info, ask = -1;
    dsyevd_("V", "L", &n, A, &n, values, &work_size, &ask, &integers_size, &ask, &info);
    int size = (int)work_size;
    double* work = (double*)malloc_check((size_t)size * sizeof(double), "LAPACK's working memory");
    int* integers = (int*)malloc_check((size_t)integers_size * sizeof(int), "LAPACK's working memory");
    dsyevd_("V", "L", &n, A, &n, values, work, &size, integers, &integers_size, &info);
    if (info) fatal("LAPACK's dsyevd has not converged (%d): eigenvectors of %d x %d; try another", info, n, n);
    free(work);
    free(integers);
}

static inline void matrix_singular(int n, double* A, double* values) {
    double work_size, none;
    int info, ask = -1, one = 1;
    int* integers = (int*)malloc_check((size_t)8 * n * sizeof(int), "LAPACK's working memory");
    dgesdd_("N", &n, &n, A, &n, values, &none, &one, &none, &one, &work_size, &ask, integers, &info);
    int size = (int)work_size;
    double* work = (double*)malloc_check((size_t)size * sizeof(double), "LAPACK's working memory");
    dgesdd_("N", &n, &n, A, &n, values, &none, &one, &none, &one, work, &size, integers, &info);
    if (info) fatal("LAPACK's dgesdd has not converged (%d): singular values of %d x %d; try another", info, n, n);
    free(work);
    free(integers);
}
