// linear_algebra.cuh: the products, eigenvectors and singular values of common/measures/linear_algebra.h on the GPU, by
// cuBLAS and cuSOLVER of the CUDA Toolkit.
//
// Matrices come from the host and go back to it: at 2048 dimensions a copy takes milliseconds, a decomposition a second
// or so. Both libraries work in double; neither result depends on chance. Both count columns first: a row-major matrix
// is its own transpose to them. Look next at dev/cpu/linear_algebra.h, the same on the host.
#pragma once
#ifdef EMU
// defines: cublasDgemm, cublasDsyrk, cusolverDnDsyevd, cusolverDnDgesvd and what belongs to them
#include "dev/emu/cusolver.h"
#else
#include <cublas_v2.h>
#include <cusolverDn.h>
#endif
// defines: device_malloc, device_free, copy_to_device, copy_to_host
#include "common/device.h"

typedef struct {
    cublasHandle_t blas;
    cusolverDnHandle_t solver;
} matrix_library_t;

static inline void matrix_check_call(int status, const char* call) {
    if (status) fatal("%s failed with status %d; look at nvidia-smi: it needs free memory on the GPU", call, status);
}
#define MATRIX_CALL(call) matrix_check_call((int)(call), #call)

// The handles of both libraries, which are opened at the first call and serve the process to its end.
static inline matrix_library_t* matrix_library(void) {
    static matrix_library_t library;
    if (!library.blas) {
        MATRIX_CALL(cublasCreate(&library.blas));
        MATRIX_CALL(cusolverDnCreate(&library.solver));
    }
    return &library;
}

// n doubles on the device: copies of `host`, or, where it is NULL, not yet written.
static inline double* matrix_on_device(const double* host, size_t n) {
    double* p = (double*)device_malloc(n * sizeof(double), "a matrix");
    if (host) copy_to_device(p, host, n * sizeof(double), 0);
    return p;
}

// Copies n doubles to the host and frees them.
static inline void matrix_from_device(double* host, double* p, size_t n) {
    copy_to_host(host, p, n * sizeof(double), 0);
    device_free(p);
}

static inline void matrix_products(int M, int N, int K, const double* A, const double* B, double* C) {
    const double one = 1, zero = 0;
    double *a = matrix_on_device(A, (size_t)M * K), *b = matrix_on_device(B, (size_t)N * K);
    double* c = matrix_on_device(NULL, (size_t)M * N);
    MATRIX_CALL(cublasDgemm(matrix_library()->blas, CUBLAS_OP_T, CUBLAS_OP_N, N, M, K, &one, b, K, a, K, &zero, c, N));
    matrix_from_device(C, c, (size_t)M * N);
    device_free(b);
    device_free(a);
}

static inline void matrix_squares(int n, int K, const double* A, int lda, double* C, int add) {
    const double one = 1, beta = add;
    double* a = matrix_on_device(A, (size_t)(n - 1) * lda + K);
    double* c = matrix_on_device(add ? C : NULL, (size_t)n * n);
    if (!add) device_zero(c, (size_t)n * n * sizeof(double), 0); // the triangle that is not computed
    MATRIX_CALL(cublasDsyrk(matrix_library()->blas, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_T, n, K, &one, a, lda, &beta, c,
                            n));
    matrix_from_device(C, c, (size_t)n * n);
    device_free(a);
}

// What a decomposition needs on the device, and what it reports there.
typedef struct {
    double *values, *work;
    int size, *info;
} matrix_work_t;

static inline matrix_work_t matrix_work_open(int n, int size) {
    matrix_work_t w = {matrix_on_device(NULL, n), matrix_on_device(NULL, size), size, NULL};
    w.info = (int*)device_malloc(sizeof(int), "a decomposition's report");
    return w;
}

static inline void matrix_work_close(matrix_work_t* w, double* values, int n, const char* what) {
    int info;
    copy_to_host(&info, w->info, sizeof info, 0);
    if (info) fatal("cuSOLVER has not converged (%d): %s of %d x %d; update the CUDA Toolkit", info, what, n, n);
    matrix_from_device(values, w->values, n);
    device_free(w->work);
    device_free(w->info);
}

static inline void matrix_eigen(int n, double* A, double* values) {
    cusolverDnHandle_t solver = matrix_library()->solver;
    int size;
    double* a = matrix_on_device(A, (size_t)n * n);
    MATRIX_CALL(cusolverDnDsyevd_bufferSize(solver, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, n, a, n, NULL,
                                            &size));
    matrix_work_t w = matrix_work_open(n, size);
    MATRIX_CALL(cusolverDnDsyevd(solver, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, n, a, n, w.values, w.work,
                                 w.size, w.info));
    matrix_work_close(&w, values, n, "eigenvectors");
    matrix_from_device(A, a, (size_t)n * n);
}

static inline void matrix_singular(int n, double* A, double* values) {
    cusolverDnHandle_t solver = matrix_library()->solver;
    int size;
    double* a = matrix_on_device(A, (size_t)n * n);
    MATRIX_CALL(cusolverDnDgesvd_bufferSize(solver, n, n, &size));
    matrix_work_t w = matrix_work_open(n, size);
    MATRIX_CALL(cusolverDnDgesvd(solver, 'N', 'N', n, n, a, n, w.values, NULL, n, NULL, n, w.work, w.size, NULL,
                                 w.info));
    matrix_work_close(&w, values, n, "singular values");
    device_free(a);
}
