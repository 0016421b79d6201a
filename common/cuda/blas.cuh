// blas.cuh: matrix products by NVIDIA's cuBLASLt, whose kernels reach 80 to 90 % of what the tensor cores can do: what
// a product is, how the library is told, and which of its algorithms it takes.
//
//   matmul_blas(call, s)   1: the product is queued; 0: the library has no algorithm, and nothing was done
//
// bf16 operands, fp32 sums; partial sums of a split product stay fp32 (its other schemes round them to bf16). In the
// FP32 build operands and products are fp32, not TF32. An algorithm gives the same bits for the same call.
//
// The library is asked once for each problem; answers stay in a table (matmul_cache). Where it has no algorithm, or
// wants an alignment that is not there, or fails, common/cuda/matmul.cuh has a kernel of its own. Whatever the library
// answers, a run goes on; an error of CUDA itself ends it, because nothing can be computed after one.
//
// Which algorithm:
//   in a training step   the fastest of the MATMUL_CANDIDATES best by the library's estimate, measured when a problem
//                        first comes up, on the call's own matrices. The host waits then, and never again. Several
//                        processes add up their times, so that all choose alike: a first use in a step is a collective.
//                        The choices are kept beside the checkpoint (common/training/algorithms.h): a measurement
//                        depends on chance, and another algorithm adds up in another order.
//   elsewhere            the best by the library's estimate. Sampling and evaluation never measure: what they write is
//                        a function of weights, inputs, library and GPU alone, whatever ran before.
// The two have tables of their own. So what a process does besides the steps (only the first one draws pictures) has no
// influence on them.
//
// Look next at common/cuda/matmul.cuh.
#pragma once
// defines: floatX, stream_t, CUDA_CHECK, DEVICE_BLAS_WORKSPACE
#include "common/device.h"

// D_i = alpha op(A_i) op(B_i) + beta D_i for i < batch. Everything is row-major: a row of D has N values, and the next
// row begins ldd values further. op(A) is (M, K): A as it lies, or the transpose of an A that lies as (K, M). op(B) is
// (K, N): B as it lies, or the transpose of a B that lies as (N, K). Where beta is 0, D need not be initialised.
typedef struct {
    int M, N, K;
    int transpose_a, transpose_b;
    size_t lda, ldb, ldd;                // values from one row of A, B, D, as they lie, to the next
    int batch;
    size_t stride_a, stride_b, stride_d; // values from one matrix to the next
    float alpha, beta;
} matmul_shape_t;

// One product of matrices without gaps, alpha = 1, beta = 0; the caller changes what differs. For example q k^T of
// every image, where q and k lie inside a (B, T, 3, C) tensor:
//     matmul_shape_t m = matmul_shape(T, T, C, 0, 1);
//     m.lda = m.ldb = 3 * C, m.alpha = scale;
//     m.batch = B, m.stride_a = m.stride_b = (size_t)T * 3 * C, m.stride_d = (size_t)T * T;
//     matmul_batched_float(scores, qkv, qkv + C, m, s);
static inline matmul_shape_t matmul_shape(int M, int N, int K, int transpose_a, int transpose_b) {
    matmul_shape_t m = {};
    m.M = M, m.N = N, m.K = K, m.transpose_a = transpose_a, m.transpose_b = transpose_b;
    m.lda = transpose_a ? M : K, m.ldb = transpose_b ? K : N, m.ldd = N;
    m.batch = 1, m.alpha = 1;
    return m;
}

// A product with all that can be attached to it.
typedef struct {
    matmul_shape_t shape;
    void* d;            // floatX, or float where float_d
    int float_d;
    const floatX *a, *b;
    const void* c;      // what beta multiplies, laid out as D; may be D. Not read where beta is 0
    const floatX* bias; // (N), added to every row, or NULL
    floatX* pre;        // not NULL: D = gelu(pre), tanh form; pre, laid out as D, receives the product plus bias
} matmul_call_t;

// ---------------------------------------------------------------------------------------------------------------------
// How the library is told

enum {
    MATMUL_CANDIDATES = 8, // algorithms that are measured
    MATMUL_ROUNDS = 3      // times each
};

static inline void blas_check(cublasStatus_t status, const char* call, const char* file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS)
        fatal("%s failed: %s (%s:%d)", call, cublasLtGetStatusString(status), file, line);
}
#define BLAS_CHECK(call) blas_check((call), #call, __FILE__, __LINE__)

// What the library answered for a problem. A training run has a few dozen problems, and where steps differ in the size
// of their images as many again for each size: some 700 for 33 sizes, half of which are the other half lying down. So a
// table is never full; were it, an answer would make room for the next.
enum { MATMUL_CACHE_SIZE = 4096, MATMUL_CACHE_PROBES = 8, MATMUL_KEY_WORDS = 12 };
typedef enum {
    MATMUL_EMPTY,
    MATMUL_READ,  // the choice of an earlier process, which the library has not seen yet
    MATMUL_FOUND, // an algorithm
    MATMUL_NONE   // the library has none
} matmul_answer_t;
typedef struct {
    uint64_t key[MATMUL_KEY_WORDS];
    matmul_answer_t answer;
    cublasLtMatmulAlgo_t algo;
} matmul_entry_t;
typedef struct { matmul_entry_t entries[MATMUL_CACHE_SIZE]; } matmul_table_t;
struct matmul_cache {
    matmul_table_t tables[2]; // of products elsewhere, and of those in a training step
    int in_step;
    void (*add_up)(void* context, double* values, int n); // values <- their sums over all processes; NULL: there is one
    void* context;
};

static inline struct matmul_cache* matmul_cache(stream_t s) {
    if (!s->matmul)
        s->matmul = (struct matmul_cache*)calloc_check(1, sizeof(struct matmul_cache), "the table of products");
    return s->matmul;
}

// The entry of a key, or an empty one that carries the key.
static inline matmul_entry_t* matmul_table_entry(matmul_table_t* table, const uint64_t* key) { // (MATMUL_KEY_WORDS)
    uint64_t hash = 1469598103934665603ull;
    for (int i = 0; i < MATMUL_KEY_WORDS; i++) {
        hash = (hash ^ key[i]) * 1099511628211ull;
        hash ^= hash >> 32;
    }
    matmul_entry_t* home = &table->entries[hash % MATMUL_CACHE_SIZE];
    matmul_entry_t* entry = home;
    for (int i = 0; i < MATMUL_CACHE_PROBES; i++) {
        entry = &table->entries[(hash + i) % MATMUL_CACHE_SIZE];
        if (entry->answer == MATMUL_EMPTY || !memcmp(entry->key, key, sizeof entry->key)) break;
        if (i == MATMUL_CACHE_PROBES - 1) entry = home;
    }
    if (memcmp(entry->key, key, sizeof entry->key)) entry->answer = MATMUL_EMPTY;
    memcpy(entry->key, key, sizeof entry->key);
    return entry;
}

// The power of two, 16 at most, that an address and all its rows and matrices are multiples of: what the library may
// rely on.
static inline uint32_t matmul_alignment(const void* p, size_t row_bytes, size_t stride_bytes) {
    uint64_t bits = (uint64_t)(uintptr_t)p | row_bytes | stride_bytes | 16;
    return (uint32_t)(bits & (~bits + 1));
}

// The library's description of a call, which lives for one call. Its matrices are column-major, so that it sees our
// rows as columns: it computes D^T = op(B)^T op(A)^T, our B is its first operand, and a transpose stays a transpose.
typedef struct {
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    uint32_t alignment_a, alignment_b, alignment_d;
} matmul_plan_t;

static inline void matmul_layout(cublasLtMatrixLayout_t* layout, cudaDataType_t type, int row_length, int rows,
                                 size_t ld, int batch, size_t stride) {
    BLAS_CHECK(cublasLtMatrixLayoutCreate(layout, type, row_length, rows, ld));
    if (batch <= 1) return;
    int32_t count = batch;
    int64_t offset = stride;
    BLAS_CHECK(cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
    BLAS_CHECK(
        cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &offset, sizeof offset));
}

static inline matmul_plan_t matmul_plan(const matmul_call_t* call) {
    const matmul_shape_t* m = &call->shape;
    cudaDataType_t type = sizeof(floatX) == 4 ? CUDA_R_32F : CUDA_R_16BF, type_d = call->float_d ? CUDA_R_32F : type;
    size_t size_d = call->float_d ? sizeof(float) : sizeof(floatX);
    matmul_plan_t plan;
    int32_t first = m->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, second = m->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    BLAS_CHECK(cublasLtMatmulDescCreate(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS_CHECK(cublasLtMatmulDescSetAttribute(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    BLAS_CHECK(cublasLtMatmulDescSetAttribute(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    uint32_t epilogue = call->pre    ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS
                        : call->bias ? CUBLASLT_EPILOGUE_BIAS
                                     : CUBLASLT_EPILOGUE_DEFAULT;
    BLAS_CHECK(cublasLtMatmulDescSetAttribute(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (call->bias) {
        BLAS_CHECK(cublasLtMatmulDescSetAttribute(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &call->bias,
                                                  sizeof call->bias));
    }
    if (call->pre) {
        int64_t ld = m->ldd;
        BLAS_CHECK(cublasLtMatmulDescSetAttribute(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &call->pre,
                                                  sizeof call->pre));
        BLAS_CHECK(cublasLtMatmulDescSetAttribute(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &ld, sizeof ld));
    }
    matmul_layout(&plan.b, type, m->transpose_b ? m->K : m->N, m->transpose_b ? m->N : m->K, m->ldb, m->batch,
                  m->stride_b);
    matmul_layout(&plan.a, type, m->transpose_a ? m->M : m->K, m->transpose_a ? m->K : m->M, m->lda, m->batch,
                  m->stride_a);
    matmul_layout(&plan.d, type_d, m->N, m->M, m->ldd, m->batch, m->stride_d);
    plan.alignment_a = matmul_alignment(call->a, m->lda * sizeof(floatX), m->stride_a * sizeof(floatX));
    plan.alignment_b = matmul_alignment(call->b, m->ldb * sizeof(floatX), m->stride_b * sizeof(floatX));
    plan.alignment_d = matmul_alignment(call->d, m->ldd * size_d, m->stride_d * size_d);
    if (call->c) {
        uint32_t alignment_c = matmul_alignment(call->c, m->ldd * size_d, m->stride_d * size_d);
        if (alignment_c < plan.alignment_d) plan.alignment_d = alignment_c;
    }
    return plan;
}

static inline void matmul_plan_free(matmul_plan_t* plan) {
    cublasLtMatrixLayoutDestroy(plan->a);
    cublasLtMatrixLayoutDestroy(plan->b);
    cublasLtMatrixLayoutDestroy(plan->d);
    cublasLtMatmulDescDestroy(plan->desc);
}

// All that the library's choice may depend on.
static inline void matmul_key(uint64_t* key, // (MATMUL_KEY_WORDS)
                              const matmul_call_t* call, const matmul_plan_t* plan) {
    const matmul_shape_t* m = &call->shape;
    uint64_t flags = m->transpose_a << 0 | m->transpose_b << 1 | call->float_d << 2 | (call->bias != nullptr) << 3
                     | (call->pre != nullptr) << 4 | (m->beta != 0) << 5;
    uint64_t alignments = plan->alignment_a << 16 | plan->alignment_b << 8 | plan->alignment_d;
    uint64_t words[MATMUL_KEY_WORDS] = {(uint64_t)m->M, (uint64_t)m->N, (uint64_t)m->K, flags, alignments,
                                        m->lda, m->ldb, m->ldd, 1};
    if (m->batch > 1) words[8] = m->batch, words[9] = m->stride_a, words[10] = m->stride_b, words[11] = m->stride_d;
    memcpy(key, words, sizeof words);
}

static inline cublasStatus_t matmul_launch(const matmul_call_t* call, const matmul_plan_t* plan,
                                           const cublasLtMatmulAlgo_t* algo, stream_t s) {
    const matmul_shape_t* m = &call->shape;
    return cublasLtMatmul(s->blas, plan->desc, &m->alpha, call->b, plan->b, call->a, plan->a, &m->beta,
                          m->beta != 0 ? call->c : call->d, plan->d, call->d, plan->d, algo, s->blas_workspace,
                          DEVICE_BLAS_WORKSPACE, s->cuda);
}

// ---------------------------------------------------------------------------------------------------------------------
// What the library has not

// Says, once for a problem, that the library failed. The failure may be that of an operation before, which then is a
// sticky error of CUDA: the program ends with that. A launch that CUDA refused concerns this product alone.
static inline void matmul_failed(const matmul_call_t* call, const char* reason, stream_t s) {
    CUDA_CHECK(cudaStreamSynchronize(s->cuda));
    cudaGetLastError();
    const matmul_shape_t* m = &call->shape;
    warn("cuBLASLt does not compute a product of (%d, %d) and (%d, %d), batch %d%s: %s. %s", m->M, m->K, m->K, m->N,
         m->batch, call->pre ? ", with GELU" : call->bias ? ", with bias" : "", reason,
         call->pre ? "GELU follows as a pass of its own" : "A kernel of ours does, 30 to 50 times slower");
}

// The library's candidates, the best by its own estimate first. Returns how many.
static inline int matmul_candidates(cublasLtMatmulAlgo_t* algos, // (wanted)
                                    int wanted, const matmul_call_t* call, const matmul_plan_t* plan, stream_t s) {
    cublasLtMatmulPreference_t preference;
    uint64_t workspace = DEVICE_BLAS_WORKSPACE;
    uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; // a split product adds up fp32
    const cublasLtMatmulPreferenceAttributes_t names[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    uint32_t alignments[4] = {plan->alignment_b, plan->alignment_a, plan->alignment_d, plan->alignment_d};
    BLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                    sizeof workspace));
    BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme,
                                                    sizeof scheme));
    for (int i = 0; i < 4; i++) {
        BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, names[i], &alignments[i], sizeof alignments[i]));
    }
    cublasLtMatmulHeuristicResult_t results[MATMUL_CANDIDATES];
    int found = 0, usable = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(s->blas, plan->desc, plan->b, plan->a, plan->d, plan->d,
                                                           preference, wanted, results, &found);
    cublasLtMatmulPreferenceDestroy(preference);
    for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < found; i++) {
        if (results[i].state == CUBLAS_STATUS_SUCCESS) algos[usable++] = results[i].algo;
    }
    if (usable == 0 && status != CUBLAS_STATUS_NOT_SUPPORTED) {
        matmul_failed(call, status == CUBLAS_STATUS_SUCCESS ? "it finds no algorithm" : cublasLtGetStatusString(status),
                      s);
    }
    return usable;
}

// ---------------------------------------------------------------------------------------------------------------------
// Which algorithm

// From the first byte of D to the end of its last matrix.
static inline size_t matmul_d_bytes(const matmul_call_t* call) {
    const matmul_shape_t* m = &call->shape;
    size_t values = (m->batch - 1) * m->stride_d + (m->M - 1) * m->ldd + m->N;
    return values * (call->float_d ? sizeof(float) : sizeof(floatX));
}

// Milliseconds of the candidates on the call's own matrices, each the least of MATMUL_ROUNDS; INFINITY for one that
// does not run. A run in front of the one that is measured keeps the GPU busy until that one and its events are queued.
// All runs write the same D, but where D is what they add to: then it is put aside and back. Returns 0 when there is no
// memory for that, and nothing was measured.
static inline int matmul_time(double* times, // (count)
                              const cublasLtMatmulAlgo_t* algos, int count, const matmul_call_t* call,
                              const matmul_plan_t* plan, stream_t s) {
    void* before = NULL;
    size_t bytes = call->shape.beta != 0 && call->c == call->d ? matmul_d_bytes(call) : 0;
    if (bytes && cudaMalloc(&before, bytes) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    if (bytes) copy_on_device(before, call->d, bytes, s);
    CUDA_CHECK(cudaDeviceSynchronize()); // a mean that was begun (comm_mean_begin) would be in the times of some
    cudaEvent_t begin, end;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    for (int i = 0; i < count; i++) times[i] = 0;
    for (int k = 0; k < MATMUL_ROUNDS * count; k++) {
        int i = k % count;
        if (times[i] == INFINITY) continue;
        int runs = matmul_launch(call, plan, &algos[i], s) == CUBLAS_STATUS_SUCCESS;
        CUDA_CHECK(cudaEventRecord(begin, s->cuda));
        runs = runs && matmul_launch(call, plan, &algos[i], s) == CUBLAS_STATUS_SUCCESS;
        CUDA_CHECK(cudaEventRecord(end, s->cuda));
        CUDA_CHECK(cudaEventSynchronize(end));
        float milliseconds = 0;
        CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
        if (!runs) cudaGetLastError(); // a launch that CUDA refused
        if (!runs) times[i] = INFINITY;
        else if (k < count || milliseconds < times[i]) times[i] = milliseconds;
    }
    if (bytes) copy_on_device(call->d, before, bytes, s);
    if (bytes) CUDA_CHECK(cudaFree(before));
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return 1;
}

// The number of the fastest candidate, the same in all processes; -1 where none runs.
static inline int matmul_fastest(const cublasLtMatmulAlgo_t* algos, int count, const matmul_call_t* call,
                                 const matmul_plan_t* plan, stream_t s) {
    double times[MATMUL_CANDIDATES] = {};
    int best = 0, timed = count > 1 && matmul_time(times, algos, count, call, plan, s);
    for (int i = count; i < MATMUL_CANDIDATES; i++) times[i] = INFINITY;
    if (s->matmul->add_up) s->matmul->add_up(s->matmul->context, times, MATMUL_CANDIDATES);
    for (int i = 1; i < MATMUL_CANDIDATES; i++) {
        if (times[i] < times[best]) best = i;
    }
    if (times[best] < INFINITY) return best;
    if (timed) matmul_failed(call, "none of its algorithms runs", s);
    return -1;
}

// Fills in an entry without an answer.
static inline void matmul_choose(matmul_entry_t* entry, const matmul_call_t* call, const matmul_plan_t* plan,
                                 stream_t s) {
    cublasLtMatmulAlgo_t algos[MATMUL_CANDIDATES];
    int in_step = s->matmul->in_step, best = 0;
    int count = matmul_candidates(algos, in_step ? MATMUL_CANDIDATES : 1, call, plan, s);
    if (in_step) best = matmul_fastest(algos, count, call, plan, s);
    entry->answer = best >= 0 && best < count ? MATMUL_FOUND : MATMUL_NONE;
    if (entry->answer == MATMUL_FOUND) entry->algo = algos[best];
}

// Does the library take an algorithm that was read?
static inline int matmul_check(const matmul_entry_t* entry, const matmul_plan_t* plan, stream_t s) {
    cublasLtMatmulHeuristicResult_t result;
    return cublasLtMatmulAlgoCheck(s->blas, plan->desc, plan->b, plan->a, plan->d, plan->d, &entry->algo, &result)
               == CUBLAS_STATUS_SUCCESS
           && result.workspaceSize <= DEVICE_BLAS_WORKSPACE;
}

// The product by the library. 0: it has no algorithm, and nothing was done.
static inline int matmul_blas(const matmul_call_t* call, stream_t s) {
    const matmul_shape_t* m = &call->shape;
    if (m->K == 0 || (uintptr_t)call->bias % 16 || (uintptr_t)call->pre % 16) return 0; // it reads the bias in vectors
    matmul_plan_t plan = matmul_plan(call);
    uint64_t key[MATMUL_KEY_WORDS];
    matmul_key(key, call, &plan);
    struct matmul_cache* cache = matmul_cache(s);
    matmul_entry_t* entry = matmul_table_entry(&cache->tables[cache->in_step], key);
    if (entry->answer == MATMUL_READ && matmul_check(entry, &plan, s)) entry->answer = MATMUL_FOUND;
    if (entry->answer == MATMUL_EMPTY || entry->answer == MATMUL_READ) matmul_choose(entry, call, &plan, s);
    if (entry->answer == MATMUL_FOUND) {
        cublasStatus_t status = matmul_launch(call, &plan, &entry->algo, s);
        if (status != CUBLAS_STATUS_SUCCESS) {
            matmul_failed(call, cublasLtGetStatusString(status), s);
            entry->answer = MATMUL_NONE;
        }
    }
    matmul_plan_free(&plan);
    return entry->answer == MATMUL_FOUND;
}

// ---------------------------------------------------------------------------------------------------------------------
// What the choices hold for

// An algorithm's numbers mean something to this GPU and library alone.
static inline const char* matmul_identity(char* text, size_t size) {
    int device = 0;
    cudaDeviceProp prop;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaGetDeviceProperties(&prop, device));
    snprintf(text, size, "%s, %d multiprocessors, cuBLASLt %zu, %s", prop.name, prop.multiProcessorCount,
             cublasLtGetVersion(), PRECISION_NAME);
    return text;
}
