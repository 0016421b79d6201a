// gemm.h: the matrix product that every CPU operation is built on, and the memory that it works in.
//
// gemm() runs on the thread that calls it. Operations cut their work into pieces of a fixed size, share the pieces
// among OpenMP threads, and call gemm() for each: so a result does not depend on the number of threads, and the
// gathering of a convolution's tile runs in parallel too. With -DBLAS=1 it is OpenBLAS, told to use one thread;
// without, a portable loop nest that a compiler vectorises.
//
// Look next at dev/cpu/matmul.h, the simplest user, and dev/cpu/conv.h, the largest.
#pragma once
#include <pthread.h>
#include <stdlib.h>

// defines: floatX, floatS, device_malloc, calloc_check
#include "common/device.h"

#ifdef BLAS
#include <cblas.h>
// defines: blas_prepare, which runs before main
#include "dev/cpu/blas.h"
#endif

typedef enum { PLAIN, TRANSPOSED } gemm_op_t;

#ifndef BLAS
// C (M, N) += alpha a B' for one row block; B' is read along its rows when it is plain, by dot products when
// transposed.
static inline void gemm_rows(gemm_op_t ta, gemm_op_t tb, int M, int N, int K, floatX alpha, const floatX* A, int lda,
                             const floatX* B, int ldb, floatX* C, int ldc) {
    enum { BLOCK_K = 128, BLOCK_N = 512 };
    for (int n0 = 0; n0 < N; n0 += BLOCK_N) {
        int n1 = n0 + BLOCK_N < N ? n0 + BLOCK_N : N;
        for (int k0 = 0; k0 < K; k0 += BLOCK_K) {
            int k1 = k0 + BLOCK_K < K ? k0 + BLOCK_K : K;
            for (int i = 0; i < M; i++) {
                floatX* c = C + (size_t)i * ldc;
                if (tb == TRANSPOSED) {
                    for (int j = n0; j < n1; j++) {
                        const floatX* b = B + (size_t)j * ldb;
                        floatX sum = 0;
                        for (int k = k0; k < k1; k++) {
                            sum += (ta == PLAIN ? A[(size_t)i * lda + k] : A[(size_t)k * lda + i]) * b[k];
                        }
                        c[j] += alpha * sum;
                    }
                } else {
                    for (int k = k0; k < k1; k++) {
                        floatX a = alpha * (ta == PLAIN ? A[(size_t)i * lda + k] : A[(size_t)k * lda + i]);
                        const floatX* b = B + (size_t)k * ldb;
                        for (int j = n0; j < n1; j++) c[j] += a * b[j];
                    }
                }
            }
        }
    }
}
#endif

// C = alpha op(A) op(B) + beta C, all row-major: op(A) is (M, K), op(B) is (K, N), C is (M, N); ld* are row strides.
// beta = 0 does not read C.
static inline void gemm(gemm_op_t ta, gemm_op_t tb, int M, int N, int K, floatX alpha, const floatX* A, int lda,
                        const floatX* B, int ldb, floatX beta, floatX* C, int ldc) {
#ifdef BLAS
    CBLAS_TRANSPOSE a = ta == PLAIN ? CblasNoTrans : CblasTrans, b = tb == PLAIN ? CblasNoTrans : CblasTrans;
#ifdef DOUBLE
    cblas_dgemm(CblasRowMajor, a, b, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc);
#else
    cblas_sgemm(CblasRowMajor, a, b, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc);
#endif
#else
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) C[(size_t)i * ldc + j] = beta == 0 ? 0 : beta * C[(size_t)i * ldc + j];
    }
    gemm_rows(ta, tb, M, N, K, alpha, A, lda, B, ldb, C, ldc);
#endif
}

enum { SCRATCH_SLOTS = 6 };

typedef struct {
    void* memory[SCRATCH_SLOTS];
    size_t size[SCRATCH_SLOTS];
} cpu_scratch_t;

static pthread_key_t cpu_scratch_key; // gives a thread's working memory back when the thread ends
static inline void cpu_scratch_free(void* thread_memory) {
    cpu_scratch_t* scratch = (cpu_scratch_t*)thread_memory;
    for (int i = 0; i < SCRATCH_SLOTS; i++) device_free(scratch->memory[i]);
    free(scratch);
}
__attribute__((constructor)) static void cpu_scratch_start(void) {
    pthread_key_create(&cpu_scratch_key, cpu_scratch_free);
}

// Working memory of the calling thread, kept and grown as needed: so a training loop allocates in its first step only.
// An operation that needs several buffers at once uses several slots; what is in a slot is lost when the operation
// ends.
static inline void* cpu_scratch(int slot, size_t bytes) {
    static __thread cpu_scratch_t* scratch;
    if (!scratch) {
        scratch = (cpu_scratch_t*)calloc_check(1, sizeof *scratch, "a thread's working memory");
        pthread_setspecific(cpu_scratch_key, scratch);
    }
    if (bytes > scratch->size[slot]) {
        device_free(scratch->memory[slot]);
        scratch->memory[slot] = device_malloc(bytes, "a CPU operation's working memory");
        scratch->size[slot] = bytes;
    }
    return scratch->memory[slot];
}
