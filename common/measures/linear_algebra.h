// linear_algebra.h: products, symmetric eigenvectors and singular values of matrices of doubles, for statistics. The
// libraries do the work:
//
//                         what                              CPU (dev/cpu)        GPU (common/cuda)
//     matrix_products     C = A B^T                         BLAS' dgemm          cuBLAS' Dgemm
//     matrix_squares      C = A A^T or C += A A^T           BLAS' dgemm          cuBLAS' Dsyrk
//     symmetric_eigen     A = V diag(values) V^T            LAPACK's dsyevd      cuSOLVER's Dsyevd
//     singular_values     of a square A, without vectors    LAPACK's dgesdd      cuSOLVER's Dgesvd
//
// All matrices are row-major and on the host. Eigenvectors are ROWS: row k of `vectors` belongs to values[k]. Errors
// are those of backward stable methods: a value is off by a few 1e-16 of the largest, whatever its own size. Bits do
// not depend on the number of threads. All threads, or the GPU, work on one call, so none is made by several threads at
// once. Look next at common/measures/frechet.h, the first to use all four.
#pragma once
#if !defined LAPACK && (!defined USE_CUDA || defined EMU)
#error "eval, and what else measures distributions, needs LAPACK: install libopenblas-dev or liblapack-dev (make deps)"
#endif
#include <math.h>

// defines: fatal, malloc_check
#include "common/program/log.h"

// C (M, N) = A B^T
static inline void matrix_products(int M, int N, int K,
                                   const double* A, // (M, K)
                                   const double* B, // (N, K)
                                   double* C);      // (M, N)

// The upper triangle of C (n, n) = A A^T, or, with `add`, what is added to it. Below it C is not defined.
static inline void matrix_squares(int n, int K,
                                  const double* A, int lda, // n rows of K numbers, one each lda
                                  double* C, int add);      // (n, n)

// In place: A (n, n), of which the upper triangle is read, becomes its eigenvectors; values (n) ascending.
static inline void matrix_eigen(int n, double* A, double* values);

// values (n) descending; A (n, n) is lost.
static inline void matrix_singular(int n, double* A, double* values);

#ifdef USE_CUDA
#include "common/cuda/linear_algebra.cuh"
#else
#include "dev/cpu/linear_algebra.h"
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

// For qsort: ascending.
static inline int compare_doubles(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

// All entries are finite; `upper`: those of the upper triangle.
static inline void matrix_check(int n, const double* A, int upper, const char* what) { // (n, n)
    if (n < 1) fatal("%s: a matrix of %d rows", what, n);
    for (size_t i = 0; i < (size_t)n; i++) {
        for (size_t j = upper ? i : 0; j < (size_t)n; j++) {
            if (!isfinite(A[i * n + j]))
                fatal("%s holds %g in row %zu, column %zu; what it was computed from is not finite either", what,
                      A[i * n + j], i, j);
        }
    }
}

// values ascending; the upper triangle of A is read, and A is kept.
static inline void symmetric_eigen(int n,
                                   const double* A, // (n, n)
                                   double* values,  // (n)
                                   double* vectors) { // (n, n)
    matrix_check(n, A, 1, "the matrix whose eigenvectors are asked for");
    memcpy(vectors, A, (size_t)n * n * sizeof(double));
    matrix_eigen(n, vectors, values);
}

// values descending. A is lost.
static inline void singular_values(int n,
                                   double* A,        // (n, n)
                                   double* values) { // (n)
    matrix_check(n, A, 0, "the matrix whose singular values are asked for");
    matrix_singular(n, A, values);
}
