// blas.h: the libraries of linear algebra on the host: what is called of LAPACK and of BLAS in double, and how
// OpenBLAS, the usual one of them, is set up.
//
// OpenBLAS is told to use one thread: operations cut their work themselves, two levels of threads would fight for the
// cores, and bits would depend on their number. Any other LAPACK with its BLAS serves as well (the Makefile looks).
// Look next at dev/cpu/linear_algebra.h, which calls it.
#pragma once
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif
// Weak: not there where another library is linked.
void openblas_set_num_threads(int threads) __attribute__((weak));
char* openblas_get_corename(void) __attribute__((weak));

// Column-major, every argument by its address: Fortran's. (netlib.org/lapack/explore-html)
void dgemm_(const char* transpose_a, const char* transpose_b, const int* m, const int* n, const int* k,
            const double* alpha, const double* a, const int* lda, const double* b, const int* ldb, const double* beta,
            double* c, const int* ldc);
void dsyrk_(const char* triangle, const char* transpose, const int* n, const int* k, const double* alpha,
            const double* a, const int* lda, const double* beta, double* c, const int* ldc);
void dsyevd_(const char* vectors, const char* triangle, const int* n, double* a, const int* lda, double* values,
             double* work, const int* work_size, int* integers, const int* integers_size, int* info);
void dgesdd_(const char* vectors, const int* m, const int* n, double* a, const int* lda, double* values, double* u,
             const int* ldu, double* vt, const int* ldvt, double* work, const int* work_size, int* integers, int* info);
#ifdef __cplusplus
}
#endif

// OpenBLAS picks its kernels when it is loaded, by the processor's model number. A processor younger than the library
// gets those of 2004, "Prescott", at a quarter of the speed. OPENBLAS_CORETYPE names better ones, but is read before
// anything here runs: so the program sets it and starts itself again, once. (argv: glibc passes main's to
// constructors.)
static inline void blas_choose_kernels(char** argv) {
#if defined(__GLIBC__) && defined(__x86_64__)
    if (!openblas_get_corename || getenv("OPENBLAS_CORETYPE") || strcmp(openblas_get_corename(), "Prescott")) return;
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!wide && !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return;
    setenv("OPENBLAS_CORETYPE", wide ? "SKYLAKEX" : "HASWELL", 1);
    execv("/proc/self/exe", argv); // where it fails, the slow kernels serve
#else
    (void)argv;
#endif
}
__attribute__((constructor)) static void blas_prepare(int argc, char** argv) {
    (void)argc;
    blas_choose_kernels(argv);
    if (openblas_set_num_threads) openblas_set_num_threads(1);
}
