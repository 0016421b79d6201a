// cusolver.h: the part of cuBLAS and cuSOLVER that common/cuda/linear_algebra.cuh calls, over the host's BLAS and
// LAPACK. Names and the order of arguments are those of <cublas_v2.h> and <cusolverDn.h>, so that the caller compiles
// unchanged.
//
// Matrices must lie on the device, scalars on the host. The workspace has the size that was asked for, or more; it is
// overwritten. What is not emulated (other triangles, vectors of singular values) is refused with a message.
#pragma once
// defines: dgemm_, dsyevd_, dgesdd_
#include "dev/cpu/blas.h"
// defines: cublasStatus_t, cublasOperation_t, emu_open, emu_close, emu_is_no_device_memory, emu_report
#include "dev/emu/emu.h"

typedef enum { CUBLAS_FILL_MODE_LOWER = 0, CUBLAS_FILL_MODE_UPPER = 1 } cublasFillMode_t;
typedef enum { CUSOLVER_EIG_MODE_NOVECTOR = 0, CUSOLVER_EIG_MODE_VECTOR = 1 } cusolverEigMode_t;
typedef enum { CUSOLVER_STATUS_SUCCESS = 0, CUSOLVER_STATUS_INVALID_VALUE = 3 } cusolverStatus_t;
typedef struct { int opened; } *cublasHandle_t;
typedef struct { int opened; } *cusolverDnHandle_t;

static inline cublasStatus_t cublasCreate(cublasHandle_t* handle) {
    *handle = (cublasHandle_t)calloc(1, sizeof **handle);
    return CUBLAS_STATUS_SUCCESS;
}
static inline cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle) {
    *handle = (cusolverDnHandle_t)calloc(1, sizeof **handle);
    return CUSOLVER_STATUS_SUCCESS;
}

static inline void emu_solver_need(int holds, const char* call, const char* what) {
    if (!holds) emu_report(call, "%s", what);
}
static inline void emu_solver_need_device(const void* p, const char* call) {
    emu_solver_need(p && !emu_is_no_device_memory(p), call, "a matrix or workspace that is not on the device");
}

// C (m, n) = alpha op(A) op(B) + beta C
static inline cublasStatus_t cublasDgemm(cublasHandle_t handle, cublasOperation_t transpose_a,
                                         cublasOperation_t transpose_b, int m, int n, int k, const double* alpha,
                                         const double* a, int lda, const double* b, int ldb, const double* beta,
                                         double* c, int ldc) {
    if (!handle || m < 0 || n < 0 || k < 0 || lda < (transpose_a == CUBLAS_OP_N ? m : k) ||
        ldb < (transpose_b == CUBLAS_OP_N ? k : n) || ldc < m) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    emu_solver_need_device(a, "cublasDgemm"), emu_solver_need_device(b, "cublasDgemm");
    emu_solver_need_device(c, "cublasDgemm");
    emu_open();
    dgemm_(transpose_a == CUBLAS_OP_N ? "N" : "T", transpose_b == CUBLAS_OP_N ? "N" : "T", &m, &n, &k, alpha, a, &lda,
           b, &ldb, beta, c, &ldc);
    emu_close();
    return CUBLAS_STATUS_SUCCESS;
}

// One triangle of C (n, n) = alpha op(A) op(A)^T + beta C; the other keeps what it has.
static inline cublasStatus_t cublasDsyrk(cublasHandle_t handle, cublasFillMode_t triangle, cublasOperation_t transpose,
                                         int n, int k, const double* alpha, const double* a, int lda,
                                         const double* beta, double* c, int ldc) {
    if (!handle || n < 0 || k < 0 || lda < (transpose == CUBLAS_OP_N ? n : k) || ldc < n) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    emu_solver_need_device(a, "cublasDsyrk"), emu_solver_need_device(c, "cublasDsyrk");
    emu_open();
    dsyrk_(triangle == CUBLAS_FILL_MODE_LOWER ? "L" : "U", transpose == CUBLAS_OP_N ? "N" : "T", &n, &k, alpha, a, &lda,
           beta, c, &ldc);
    emu_close();
    return CUBLAS_STATUS_SUCCESS;
}

// The workspace of a decomposition of n columns, in doubles. LAPACK's own need is not the GPU's: it has its own.
static inline int emu_solver_size(int n) { return 8 * n + 64; }

static inline cusolverStatus_t cusolverDnDsyevd_bufferSize(cusolverDnHandle_t handle, cusolverEigMode_t mode,
                                                           cublasFillMode_t, int n, const double*, int lda,
                                                           const double*, int* size) {
    if (!handle || n < 1 || lda < n) return CUSOLVER_STATUS_INVALID_VALUE;
    emu_solver_need(mode == CUSOLVER_EIG_MODE_VECTOR, "cusolverDnDsyevd", "eigenvalues alone are not emulated");
    *size = emu_solver_size(n);
    return CUSOLVER_STATUS_SUCCESS;
}
static inline cusolverStatus_t cusolverDnDgesvd_bufferSize(cusolverDnHandle_t handle, int m, int n, int* size) {
    if (!handle || n < 1 || m < n) return CUSOLVER_STATUS_INVALID_VALUE; // wide matrices are refused
    *size = emu_solver_size(n);
    return CUSOLVER_STATUS_SUCCESS;
}

// A becomes its eigenvectors, a column each; values ascend.
static inline cusolverStatus_t cusolverDnDsyevd(cusolverDnHandle_t handle, cusolverEigMode_t mode,
                                                cublasFillMode_t triangle, int n, double* a, int lda, double* values,
                                                double* work, int size, int* info) {
    const char* call = "cusolverDnDsyevd";
    if (!handle || n < 1 || lda < n || size < emu_solver_size(n)) return CUSOLVER_STATUS_INVALID_VALUE;
    emu_solver_need(mode == CUSOLVER_EIG_MODE_VECTOR, call, "eigenvalues alone are not emulated");
    emu_solver_need_device(a, call), emu_solver_need_device(values, call);
    emu_solver_need_device(work, call), emu_solver_need_device(info, call);
    int integers_size = 3 + 5 * n, doubles_size = 1 + 6 * n + 2 * n * n;
    double* doubles = (double*)malloc((size_t)doubles_size * sizeof *doubles);
    int* integers = (int*)malloc((size_t)integers_size * sizeof *integers);
    emu_open();
    dsyevd_("V", triangle == CUBLAS_FILL_MODE_LOWER ? "L" : "U", &n, a, &lda, values, doubles, &doubles_size, integers,
            &integers_size, info);
    memset(work, 0xff, (size_t)size * sizeof *work);
    emu_close();
    free(doubles);
    free(integers);
    return CUSOLVER_STATUS_SUCCESS;
}

// Singular values, descending; A is lost.
static inline cusolverStatus_t cusolverDnDgesvd(cusolverDnHandle_t handle, signed char left, signed char right, int m,
                                                int n, double* a, int lda, double* values, double*, int, double*, int,
                                                double* work, int size, double*, int* info) {
    const char* call = "cusolverDnDgesvd";
    if (!handle || n < 1 || m < n || lda < m || size < emu_solver_size(n)) return CUSOLVER_STATUS_INVALID_VALUE;
    emu_solver_need(left == 'N' && right == 'N', call, "singular vectors are not emulated");
    emu_solver_need_device(a, call), emu_solver_need_device(values, call);
    emu_solver_need_device(work, call), emu_solver_need_device(info, call);
    int one = 1, doubles_size = 3 * n + (m > 7 * n ? m : 7 * n);
    double *doubles = (double*)malloc((size_t)doubles_size * sizeof *doubles), none;
    int* integers = (int*)malloc((size_t)8 * n * sizeof *integers);
    emu_open();
    dgesdd_("N", &m, &n, a, &lda, values, &none, &one, &none, &one, doubles, &doubles_size, integers, info);
    memset(work, 0xff, (size_t)size * sizeof *work);
    emu_close();
    free(doubles);
    free(integers);
    return CUSOLVER_STATUS_SUCCESS;
}
