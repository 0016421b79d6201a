// cublaslt.h: the part of NVIDIA's cuBLASLt that common/cuda/matmul.cuh calls, in plain loops on the host.
// dev/emu/emu.h includes it behind cudaStream_t. Types, names and the order of arguments are those of <cublasLt.h>, so
// that the callers compile unchanged.
//
//   D = epilogue(alpha op(A) op(B) + beta C),  column-major, m x n, sums over k in fp32, one rounding to D's type
//
// What is emulated: fp32 and bf16 matrices, CUBLAS_COMPUTE_32F, transposes, strided batches, scalars on the host, and
// the epilogues DEFAULT, BIAS and GELU_AUX_BIAS (GELU in its tanh form; the auxiliary matrix receives what goes into
// it). A wider use of the library is refused with a message, not computed.
//
// What the library demands is checked, as strictly as the GPU would punish it:
//   - an algorithm comes from cublasLtMatmulAlgoGetHeuristic, now or in an earlier process, and is used for the problem
//     that it was asked for alone;
//   - pointers keep the alignment that the preference claimed; a bias vector is 16-byte aligned (kernels of the A100
//     read it in vectors); the auxiliary matrix too, and its leading dimension is a multiple of 8;
//   - a workspace of the size that the algorithm asked for. It is overwritten, as by a product whose sum is split;
//   - D does not overlap A or B, and is C itself or apart from it.
// Misuse returns the library's status after a line on stderr. A problem that the heuristic has no algorithm for is no
// misuse: it returns CUBLAS_STATUS_NOT_SUPPORTED, as the library does, and the caller has to have another way.
//
// A problem has up to EMU_BLAS_ALGORITHMS algorithms. They cut the sum over k into more and more pieces, so that each
// may give other last bits; and they take different times on the device's clock (emu_elapse), which are a function of
// the problem, the slowest being the one that the heuristic estimates as the best.
//
// Handles for tests: emu_blas_queries counts the heuristic's calls; emu_blas_answer, emu_blas_empty and emu_blas_broken
// let it and the products fail in the ways that the library can.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// defines: cudaStream_t, emu_open, emu_close, emu_elapse
#include "dev/emu/runtime.h"

typedef enum { CUDA_R_32F = 0, CUDA_R_16BF = 14 } cudaDataType;
typedef cudaDataType cudaDataType_t;
typedef enum { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 } cublasOperation_t;
typedef enum { CUBLAS_COMPUTE_32F = 68 } cublasComputeType_t;
typedef enum {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_ARCH_MISMATCH = 8,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_INTERNAL_ERROR = 14,
    CUBLAS_STATUS_NOT_SUPPORTED = 15
} cublasStatus_t;
typedef enum {
    CUBLASLT_EPILOGUE_DEFAULT = 1,
    CUBLASLT_EPILOGUE_BIAS = 4,
    CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 32 | 128 | 4
} cublasLtEpilogue_t;
typedef enum {
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER = 11,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 12
} cublasLtMatmulDescAttributes_t;
typedef enum {
    CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5,
    CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6
} cublasLtMatrixLayoutAttribute_t;
typedef enum {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
} cublasLtMatmulPreferenceAttributes_t;
typedef enum {
    CUBLASLT_REDUCTION_SCHEME_NONE = 0,
    CUBLASLT_REDUCTION_SCHEME_INPLACE = 1,
    CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2,
    CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE = 4,
    CUBLASLT_REDUCTION_SCHEME_MASK = 7
} cublasLtReductionScheme_t;

typedef struct { int opened; } *cublasLtHandle_t;
typedef struct {
    cublasComputeType_t compute;
    cudaDataType scale;
    int32_t transpose_a, transpose_b;
    uint32_t epilogue;
    const void* bias;
    void* auxiliary;
    int64_t auxiliary_ld;
} emu_blas_desc_t, *cublasLtMatmulDesc_t;
typedef struct {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t ld, batch_stride;
    int32_t batch;
} emu_blas_layout_t, *cublasLtMatrixLayout_t;
typedef struct {
    uint64_t workspace;
    uint32_t reduction_mask;
    uint32_t alignment[4]; // of A, B, C, D in bytes; the library assumes 256 unless told otherwise
} emu_blas_preference_t, *cublasLtMatmulPreference_t;
typedef struct { uint64_t data[8]; } cublasLtMatmulAlgo_t; // here: emu_blas_algo_t
typedef struct {
    uint64_t problem;      // its number
    uint64_t alignment[4]; // of A, B, C, D
    uint64_t workspace;    // bytes
    uint64_t number;       // of the algorithm among those of the problem
    uint64_t unused;
} emu_blas_algo_t;
typedef struct {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    int reserved[4];
} cublasLtMatmulHeuristicResult_t;

enum {
    EMU_BLAS_WORKSPACE = 64 << 10, // what every emulated algorithm asks for
    EMU_BLAS_ALGORITHMS = 3
};

static int emu_blas_queries;           // calls of the heuristic
static cublasStatus_t emu_blas_answer; // what the heuristic answers; CUBLAS_STATUS_SUCCESS: it works
static int emu_blas_empty;             // 1: it finds nothing, and calls that a success
static unsigned emu_blas_broken;       // bit i: algorithm i fails when it is used

static inline cublasStatus_t emu_blas_misuse(const char* what) {
    fflush(stdout);
    fprintf(stderr, "cuBLASLt (emulated): %s\n", what);
    return CUBLAS_STATUS_INVALID_VALUE;
}

static inline const char* cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS: return "success";
        case CUBLAS_STATUS_NOT_INITIALIZED: return "the library was not initialized";
        case CUBLAS_STATUS_ALLOC_FAILED: return "the resource allocation failed";
        case CUBLAS_STATUS_INVALID_VALUE: return "an unsupported value or parameter was passed to the function";
        case CUBLAS_STATUS_ARCH_MISMATCH: return "the requested functionality requires another architecture";
        case CUBLAS_STATUS_EXECUTION_FAILED: return "the function failed to launch on the GPU";
        case CUBLAS_STATUS_INTERNAL_ERROR: return "an internal operation failed";
        case CUBLAS_STATUS_NOT_SUPPORTED: return "the functionality requested is not supported";
    }
    return "unknown status";
}

// ---------------------------------------------------------------------------------------------------------------------
// Handles and descriptors

static inline size_t cublasLtGetVersion(void) { return 1; }
static inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
    *handle = (cublasLtHandle_t)calloc(1, sizeof **handle);
    if (!*handle) return CUBLAS_STATUS_ALLOC_FAILED;
    (*handle)->opened = 1;
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

static inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                                      cudaDataType scale) {
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
        return emu_blas_misuse("only fp32 arithmetic is emulated");
    *desc = (cublasLtMatmulDesc_t)calloc(1, sizeof **desc);
    if (!*desc) return CUBLAS_STATUS_ALLOC_FAILED;
    (*desc)->compute = compute;
    (*desc)->scale = scale;
    (*desc)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    free(desc);
    return CUBLAS_STATUS_SUCCESS;
}

static inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                                        uint64_t rows, uint64_t cols, int64_t ld) {
    if (type != CUDA_R_32F && type != CUDA_R_16BF) return emu_blas_misuse("only fp32 and bf16 matrices are emulated");
    if (rows == 0 || cols == 0 || rows > INT32_MAX || cols > INT32_MAX) {
        return emu_blas_misuse("a matrix has between 1 and 2^31 - 1 rows and columns");
    }
    if (ld < (int64_t)rows)
        return emu_blas_misuse("a leading dimension is smaller than the column-major matrix's rows");
    *layout = (cublasLtMatrixLayout_t)calloc(1, sizeof **layout);
    if (!*layout) return CUBLAS_STATUS_ALLOC_FAILED;
    (*layout)->type = type;
    (*layout)->rows = rows;
    (*layout)->cols = cols;
    (*layout)->ld = ld;
    (*layout)->batch = 1;
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

static inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
    *preference = (cublasLtMatmulPreference_t)calloc(1, sizeof **preference);
    if (!*preference) return CUBLAS_STATUS_ALLOC_FAILED;
    (*preference)->reduction_mask = CUBLASLT_REDUCTION_SCHEME_MASK;
    for (int i = 0; i < 4; i++) (*preference)->alignment[i] = 256;
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}

// Copies an attribute whose size the library checks as well.
static inline cublasStatus_t emu_blas_set(void* field, size_t size, const void* value, size_t bytes) {
    if (!value || bytes != size) return emu_blas_misuse("an attribute is set from a value of the wrong size");
    memcpy(field, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

static inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                                            cublasLtMatmulDescAttributes_t attribute, const void* value,
                                                            size_t bytes) {
    switch (attribute) {
        case CUBLASLT_MATMUL_DESC_TRANSA: return emu_blas_set(&d->transpose_a, sizeof d->transpose_a, value, bytes);
        case CUBLASLT_MATMUL_DESC_TRANSB: return emu_blas_set(&d->transpose_b, sizeof d->transpose_b, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE: return emu_blas_set(&d->epilogue, sizeof d->epilogue, value, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return emu_blas_set(&d->bias, sizeof d->bias, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
            return emu_blas_set(&d->auxiliary, sizeof d->auxiliary, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
            return emu_blas_set(&d->auxiliary_ld, sizeof d->auxiliary_ld, value, bytes);
    }
    return emu_blas_misuse("an attribute of a product that is not emulated");
}
static inline cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                              cublasLtMatrixLayoutAttribute_t attribute,
                                                              const void* value, size_t bytes) {
    switch (attribute) {
        case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
            return emu_blas_set(&layout->batch, sizeof layout->batch, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
            return emu_blas_set(&layout->batch_stride, sizeof layout->batch_stride, value, bytes);
    }
    return emu_blas_misuse("an attribute of a matrix that is not emulated");
}
static inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                                  cublasLtMatmulPreferenceAttributes_t attribute,
                                                                  const void* value, size_t bytes) {
    emu_blas_preference_t* p = preference;
    switch (attribute) {
        case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
            return emu_blas_set(&p->workspace, sizeof p->workspace, value, bytes);
        case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
            return emu_blas_set(&p->reduction_mask, sizeof p->reduction_mask, value, bytes);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
            return emu_blas_set(&p->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], sizeof(uint32_t),
                                value, bytes);
    }
    return emu_blas_misuse("a preference that is not emulated");
}

// ---------------------------------------------------------------------------------------------------------------------
// What is a sound product

static inline size_t emu_blas_size(cudaDataType type) { return type == CUDA_R_32F ? 4 : 2; }

// A number of the problem, so that an algorithm is not used for another one. Pointers do not enter.
static inline uint64_t emu_blas_problem(const emu_blas_desc_t* d, const emu_blas_layout_t* const layouts[4]) {
    uint64_t hash = 1469598103934665603ull;
    uint64_t words[4 + 4 * 6] = {(uint64_t)d->transpose_a, (uint64_t)d->transpose_b, d->epilogue,
                                 (uint64_t)d->auxiliary_ld};
    for (int i = 0; i < 4; i++) {
        const emu_blas_layout_t* m = layouts[i];
        uint64_t* w = words + 4 + 6 * i;
        w[0] = m->type, w[1] = m->rows, w[2] = m->cols, w[3] = m->ld, w[4] = m->batch, w[5] = m->batch_stride;
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) hash = (hash ^ words[i]) * 1099511628211ull;
    return hash;
}

// NULL, or what is wrong with the sizes.
static inline const char* emu_blas_mismatch(const emu_blas_desc_t* d, const emu_blas_layout_t* a,
                                            const emu_blas_layout_t* b, const emu_blas_layout_t* c,
                                            const emu_blas_layout_t* out) {
    if ((d->transpose_a | d->transpose_b) & ~1) return "a transpose is neither CUBLAS_OP_N nor CUBLAS_OP_T";
    if ((d->transpose_a ? a->cols : a->rows) != out->rows) return "A's rows are not D's";
    if ((d->transpose_b ? b->rows : b->cols) != out->cols) return "B's columns are not D's";
    if ((d->transpose_a ? a->rows : a->cols) != (d->transpose_b ? b->cols : b->rows))
        return "A and B sum over different lengths";
    if (c->rows != out->rows || c->cols != out->cols || c->type != out->type) return "C has not D's size and type";
    if (a->batch < 1 || b->batch != a->batch || c->batch != a->batch || out->batch != a->batch)
        return "batch counts differ";
    if (out->batch > 1 && out->batch_stride < (int64_t)out->rows) return "the matrices of D's batch overlap";
    return NULL;
}

static inline int emu_blas_supported(const emu_blas_desc_t* d, const emu_blas_layout_t* a, const emu_blas_layout_t* b,
                                     const emu_blas_layout_t* out, const emu_blas_preference_t* p) {
    if (a->type != b->type) return 0;
    if (a->type == CUDA_R_32F && out->type != CUDA_R_32F) return 0;
    if (p->alignment[3] < emu_blas_size(out->type) || p->alignment[0] < emu_blas_size(a->type)) return 0;
    if (p->workspace < EMU_BLAS_WORKSPACE) return 0;
    if (d->epilogue == CUBLASLT_EPILOGUE_DEFAULT) return 1;
    if (d->epilogue == CUBLASLT_EPILOGUE_BIAS) return 1;
    if (d->epilogue != CUBLASLT_EPILOGUE_GELU_AUX_BIAS) return 0;
    return a->type == CUDA_R_16BF && out->type == CUDA_R_16BF && out->batch == 1 && d->auxiliary_ld % 8 == 0
           && d->auxiliary_ld >= (int64_t)out->rows;
}

static inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                                            cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                            cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                            cublasLtMatmulPreference_t preference, int wanted,
                                                            cublasLtMatmulHeuristicResult_t results[], int* found) {
    const emu_blas_layout_t* layouts[4] = {a, b, c, d};
    if (!handle || !handle->opened) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (wanted < 1) return emu_blas_misuse("the heuristic is asked for no algorithm");
    const char* mismatch = emu_blas_mismatch(desc, a, b, c, d);
    if (mismatch) return emu_blas_misuse(mismatch);
    emu_blas_queries++;
    *found = 0;
    if (emu_blas_answer != CUBLAS_STATUS_SUCCESS) return emu_blas_answer;
    if (emu_blas_empty) return CUBLAS_STATUS_SUCCESS;
    if (!emu_blas_supported(desc, a, b, d, preference)) return CUBLAS_STATUS_NOT_SUPPORTED;
    for (*found = 0; *found < wanted && *found < EMU_BLAS_ALGORITHMS; ++*found) {
        emu_blas_algo_t algo = {emu_blas_problem(desc, layouts), {}, EMU_BLAS_WORKSPACE, (uint64_t)*found, 0};
        for (int i = 0; i < 4; i++) algo.alignment[i] = preference->alignment[i];
        cublasLtMatmulHeuristicResult_t* result = &results[*found];
        memset(result, 0, sizeof *result);
        memcpy(&result->algo, &algo, sizeof algo);
        result->workspaceSize = algo.workspace;
    }
    return CUBLAS_STATUS_SUCCESS;
}

static inline cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     const cublasLtMatmulAlgo_t* algo,
                                                     cublasLtMatmulHeuristicResult_t* result) {
    const emu_blas_layout_t* layouts[4] = {a, b, c, d};
    emu_blas_algo_t mine;
    memcpy(&mine, algo, sizeof mine);
    if (!handle || !handle->opened) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (mine.problem != emu_blas_problem(desc, layouts) || mine.number >= EMU_BLAS_ALGORITHMS) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    memset(result, 0, sizeof *result);
    result->workspaceSize = mine.workspace;
    return CUBLAS_STATUS_SUCCESS;
}

// Matrix i of a batch; and the first byte behind the last.
static inline const void* emu_blas_matrix(const void* p, const emu_blas_layout_t* m, int64_t i) {
    return (const char*)p + i * m->batch_stride * (int64_t)emu_blas_size(m->type);
}
static inline const char* emu_blas_end(const void* p, const emu_blas_layout_t* m) {
    int64_t elements = (m->batch - 1) * m->batch_stride + ((int64_t)m->cols - 1) * m->ld + (int64_t)m->rows;
    return (const char*)p + elements * emu_blas_size(m->type);
}
static inline int emu_blas_overlap(const void* p, const emu_blas_layout_t* m, const void* q,
                                   const emu_blas_layout_t* k) {
    return (const char*)p < emu_blas_end(q, k) && (const char*)q < emu_blas_end(p, m);
}

static inline const char* emu_blas_wrong_call(const emu_blas_desc_t* d, const void* const pointers[4],
                                              const emu_blas_layout_t* const layouts[4],
                                              const emu_blas_algo_t* algo, void* workspace, size_t workspace_size) {
    if (algo->problem != emu_blas_problem(d, layouts)) return "the algorithm was found for another problem";
    if (!workspace || workspace_size < algo->workspace) return "the workspace that the algorithm needs is not passed";
    if ((uintptr_t)workspace % 256) return "the workspace is not 256-byte aligned";
    for (int i = 0; i < 4; i++) {
        if (!pointers[i]) return "a matrix is NULL";
        uint64_t bytes = algo->alignment[i], stride = layouts[i]->batch > 1 ? layouts[i]->batch_stride : 0;
        if ((uintptr_t)pointers[i] % bytes || stride * emu_blas_size(layouts[i]->type) % bytes) {
            return "a matrix is not as aligned as the preference claimed";
        }
    }
    if (d->epilogue & CUBLASLT_EPILOGUE_BIAS && (!d->bias || (uintptr_t)d->bias % 16)) {
        return "the bias vector is NULL or not 16-byte aligned";
    }
    if (d->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS && (!d->auxiliary || (uintptr_t)d->auxiliary % 16)) {
        return "the auxiliary matrix is NULL or not 16-byte aligned";
    }
    if (emu_blas_overlap(pointers[3], layouts[3], pointers[0], layouts[0])) return "D overlaps A";
    if (emu_blas_overlap(pointers[3], layouts[3], pointers[1], layouts[1])) return "D overlaps B";
    if (pointers[3] != pointers[2] && emu_blas_overlap(pointers[3], layouts[3], pointers[2], layouts[2])) {
        return "D overlaps C without being C";
    }
    return NULL;
}

// ---------------------------------------------------------------------------------------------------------------------
// The product

static inline float emu_blas_read(const void* p, cudaDataType type, size_t at) {
    if (type == CUDA_R_32F) return ((const float*)p)[at];
    uint32_t bits = (uint32_t)((const uint16_t*)p)[at] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// To bf16: the nearest, and of two equally near the even one. A NaN stays one.
static inline void emu_blas_write(void* p, cudaDataType type, size_t at, float x) {
    if (type == CUDA_R_32F) {
        ((float*)p)[at] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    ((uint16_t*)p)[at] = x != x ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// op(M) of one matrix as fp32, row by row or column by column of op(M): to[r * cols + c], or to[c * rows + r].
static inline void emu_blas_unpack(float* to, const void* from, const emu_blas_layout_t* m, int transpose,
                                   int by_columns) {
    size_t rows = transpose ? m->cols : m->rows, cols = transpose ? m->rows : m->cols;
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < cols; c++) {
            size_t at = transpose ? r * m->ld + c : c * m->ld + r;
            to[by_columns ? c * rows + r : r * cols + c] = emu_blas_read(from, m->type, at);
        }
    }
}

// sums[j m + i] += a[l m + i] b[j k + l] for four columns j and begin <= l < end. The inner loop becomes vector
// instructions; it works on private memory only, so it goes without sanitizers.
__attribute__((noinline, optimize("O3"), no_sanitize_address, no_sanitize_undefined))
static void emu_blas_columns(float* __restrict__ sums, const float* __restrict__ a, const float* __restrict__ b,
                             size_t m, size_t k, size_t begin, size_t end) {
    float* __restrict__ s0 = sums;
    float* __restrict__ s1 = sums + m;
    float* __restrict__ s2 = sums + 2 * m;
    float* __restrict__ s3 = sums + 3 * m;
    for (size_t l = begin; l < end; l++) {
        const float* __restrict__ column = a + l * m;
        float b0 = b[l], b1 = b[k + l], b2 = b[2 * k + l], b3 = b[3 * k + l];
        for (size_t i = 0; i < m; i++) {
            s0[i] += column[i] * b0;
            s1[i] += column[i] * b1;
            s2[i] += column[i] * b2;
            s3[i] += column[i] * b3;
        }
    }
}

static inline float emu_blas_gelu(float u) { // the tanh form
    return 0.5f * u * (1 + tanhf(0.79788456f * (u + 0.044715f * u * u * u)));
}

// One matrix of the batch; all pointers are this matrix's. The sum over k is that of `pieces` sums.
static inline void emu_blas_product(const emu_blas_desc_t* desc, size_t pieces, float alpha, const void* A,
                                    const emu_blas_layout_t* a, const void* B, const emu_blas_layout_t* b, float beta,
                                    const void* C, const emu_blas_layout_t* c, void* D, const emu_blas_layout_t* d) {
    size_t m = d->rows, n = d->cols, k = desc->transpose_a ? a->rows : a->cols, wide = (n + 3) / 4 * 4;
    float* left = (float*)malloc(m * k * sizeof(float));           // (k, m)
    float* right = (float*)calloc(wide * k, sizeof(float));        // (wide, k), zeros behind the last column
    float* sums = (float*)malloc(4 * m * sizeof(float));           // (4, m)
    float* piece = (float*)malloc(4 * m * sizeof(float));          // (4, m)
    if (!left || !right || !sums || !piece) abort();
    emu_blas_unpack(left, A, a, desc->transpose_a, 1);
    emu_blas_unpack(right, B, b, desc->transpose_b, 1);
    for (size_t j = 0; j < n; j += 4) {
        memset(sums, 0, 4 * m * sizeof(float));
        emu_blas_columns(sums, left, right + j * k, m, k, 0, k / pieces);
        for (size_t p = 1; p < pieces; p++) {
            memset(piece, 0, 4 * m * sizeof(float));
            emu_blas_columns(piece, left, right + j * k, m, k, k * p / pieces, k * (p + 1) / pieces);
            for (size_t i = 0; i < 4 * m; i++) sums[i] += piece[i];
        }
        for (size_t column = j; column < n && column < j + 4; column++) {
            for (size_t i = 0; i < m; i++) {
                float value = alpha * sums[(column - j) * m + i];
                if (beta != 0) value += beta * emu_blas_read(C, c->type, column * c->ld + i); // beta 0: C is not read
                if (desc->epilogue & CUBLASLT_EPILOGUE_BIAS) value += emu_blas_read(desc->bias, d->type, i);
                if (desc->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS) {
                    emu_blas_write(desc->auxiliary, d->type, column * desc->auxiliary_ld + i, value);
                    value = emu_blas_gelu(value);
                }
                emu_blas_write(D, d->type, column * d->ld + i, value);
            }
        }
    }
    free(left), free(right), free(sums), free(piece);
}

// The first takes 4, the others between 1 and 3.
static inline double emu_blas_milliseconds(const emu_blas_algo_t* algo) {
    return algo->number ? 1 + (double)((algo->problem >> 8 * algo->number) % 201) / 100 : 4;
}

static inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                                            const void* A, cublasLtMatrixLayout_t a, const void* B,
                                            cublasLtMatrixLayout_t b, const void* beta, const void* C,
                                            cublasLtMatrixLayout_t c, void* D, cublasLtMatrixLayout_t d,
                                            const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspace_size,
                                            cudaStream_t stream) {
    (void)stream;
    const void* const pointers[4] = {A, B, C, D};
    const emu_blas_layout_t* const layouts[4] = {a, b, c, d};
    if (!handle || !handle->opened) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!algo) return emu_blas_misuse("no algorithm is passed: the library would search for one at every call");
    emu_blas_algo_t mine;
    memcpy(&mine, algo, sizeof mine);
    const char* wrong = emu_blas_mismatch(desc, a, b, c, d);
    if (!wrong) wrong = emu_blas_wrong_call(desc, pointers, layouts, &mine, workspace, workspace_size);
    if (wrong) return emu_blas_misuse(wrong);
    if (emu_blas_broken >> mine.number & 1) return CUBLAS_STATUS_EXECUTION_FAILED;
    emu_elapse(emu_blas_milliseconds(&mine));
    emu_open();
    memset(workspace, 0xff, mine.workspace);
    for (int64_t i = 0; i < d->batch; i++) {
        emu_blas_product(desc, mine.number + 1, *(const float*)alpha, emu_blas_matrix(A, a, i), a,
                         emu_blas_matrix(B, b, i), b, *(const float*)beta, emu_blas_matrix(C, c, i), c,
                         (void*)emu_blas_matrix(D, d, i), d);
    }
    emu_close();
    return CUBLAS_STATUS_SUCCESS;
}
