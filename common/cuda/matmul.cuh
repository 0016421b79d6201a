// matmul.cuh: the matrix products of linear layers. Formulas and the backward's derivation: dev/cpu/matmul.h.
//
//   matmul_forward, matmul_backward, matmul_gelu_forward   the operations of common/ops.h
//   matmul_residual_forward                                out = x weight^T + bias + residual: 1x1 convolutions
//   matmul_batched, matmul_batched_float                   D_i = alpha op(A_i) op(B_i) + beta D_i
//   add_column_sums                                        sums += sum over rows
//
// Products go through NVIDIA's cuBLASLt, whose kernels reach 80 to 90 % of what the tensor cores can do; everything
// around them is ours. bf16 operands, fp32 sums; partial sums of a split product stay fp32 (its other schemes round
// them to bf16). In the FP32 build operands and products are fp32, not TF32. The library gives the same bits for the
// same call.
//
// The library is asked once for the algorithm of each problem; answers stay in a table (matmul_cache). Where it has
// none, or wants an alignment that is not there, a small kernel of ours computes the product, at any size, slowly.
//
// Bias and residual are added in the product's epilogue, on sums that are still in registers. GELU behind the product:
//   tanh form   the library's epilogue GELU_AUX_BIAS writes `pre` and `out` at once
//   erf form    the library has none: an elementwise kernel follows, which reads `pre` and writes `out`. At 64 images
//               of DINOv2-L, (16448, 1024) x (4096, 1024), the product takes 0.17 ms at 800 TFLOP/s and the kernel
//               0.09 ms. A product of ours on mma instructions with the erf inside would lose as much: on Hopper they
//               reach two thirds of the wgmma instructions that the library uses.
//
// dweight is fp32 and accumulates: beta = 1. dbias is one more read of dout, 135 MB and 0.045 ms at the size above, in
// two kernels that add in a fixed order. (The library's epilogue for it cannot add to what is there.)
//
// Look next at common/cuda/activation.cuh and common/cuda/layernorm.cuh.
#pragma once
#include <limits.h>

// defines: launch, shared_array, pack, load16, blocks_for
#include "common/cuda/launch.cuh"
// defines: activation_t, the operations' contracts
#include "common/ops.h"
// defines: load_upto
#include "common/cuda/reduce.cuh"
// defines: gelu_forward
#include "common/cuda/activation.cuh"

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
// cuBLASLt

static inline void blas_check(cublasStatus_t status, const char* call, const char* file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS)
        fatal("%s failed: %s (%s:%d)", call, cublasLtGetStatusString(status), file, line);
}
#define BLAS_CHECK(call) blas_check((call), #call, __FILE__, __LINE__)

// The algorithm that the library proposes for a problem. A training run has a few dozen problems, so the table is never
// full; were it, an answer would make room for the next.
enum { MATMUL_CACHE_SIZE = 512, MATMUL_CACHE_PROBES = 8, MATMUL_KEY_WORDS = 12 };
typedef enum { MATMUL_EMPTY, MATMUL_FOUND, MATMUL_NONE } matmul_answer_t; // NONE: the library has no algorithm
typedef struct {
    uint64_t key[MATMUL_KEY_WORDS];
    matmul_answer_t answer;
    size_t workspace;
    cublasLtMatmulAlgo_t algo;
} matmul_entry_t;
struct matmul_cache { matmul_entry_t entries[MATMUL_CACHE_SIZE]; };

// The entry of a key, or an empty one that carries the key.
static inline matmul_entry_t* matmul_cache_entry(stream_t s, const uint64_t* key) { // (MATMUL_KEY_WORDS)
    if (!s->matmul)
        s->matmul = (struct matmul_cache*)calloc_check(1, sizeof(struct matmul_cache), "the table of products");
    uint64_t hash = 1469598103934665603ull;
    for (int i = 0; i < MATMUL_KEY_WORDS; i++) {
        hash = (hash ^ key[i]) * 1099511628211ull;
        hash ^= hash >> 32;
    }
    matmul_entry_t* home = &s->matmul->entries[hash % MATMUL_CACHE_SIZE];
    matmul_entry_t* entry = home;
    for (int i = 0; i < MATMUL_CACHE_PROBES; i++) {
        entry = &s->matmul->entries[(hash + i) % MATMUL_CACHE_SIZE];
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

// Asks the library.
static inline void matmul_query(matmul_entry_t* entry, const matmul_plan_t* plan, stream_t s) {
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
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(s->blas, plan->desc, plan->b, plan->a, plan->d, plan->d,
                                                           preference, 1, &result, &found);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) BLAS_CHECK(status);
    int usable = status == CUBLAS_STATUS_SUCCESS && found > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    entry->answer = usable ? MATMUL_FOUND : MATMUL_NONE;
    if (usable) {
        entry->algo = result.algo;
        entry->workspace = result.workspaceSize;
    }
    cublasLtMatmulPreferenceDestroy(preference);
}

// The product by the library. 0: it has no algorithm, and nothing was done.
static inline int matmul_blas(const matmul_call_t* call, stream_t s) {
    const matmul_shape_t* m = &call->shape;
    if (m->K == 0 || (uintptr_t)call->bias % 16 || (uintptr_t)call->pre % 16) return 0; // it reads the bias in vectors
    matmul_plan_t plan = matmul_plan(call);
    uint64_t key[MATMUL_KEY_WORDS];
    matmul_key(key, call, &plan);
    matmul_entry_t* entry = matmul_cache_entry(s, key);
    if (entry->answer == MATMUL_EMPTY) matmul_query(entry, &plan, s);
    if (entry->answer == MATMUL_FOUND) {
        BLAS_CHECK(cublasLtMatmul(s->blas, plan.desc, &m->alpha, call->b, plan.b, call->a, plan.a, &m->beta,
                                  m->beta != 0 ? call->c : call->d, plan.d, call->d, plan.d, &entry->algo,
                                  s->blas_workspace, DEVICE_BLAS_WORKSPACE, s->cuda));
    }
    matmul_plan_free(&plan);
    return entry->answer == MATMUL_FOUND;
}

// ---------------------------------------------------------------------------------------------------------------------
// Our own product, for what the library does not take

// A block computes a tile of 64 x 64, each of its 256 threads 4 x 4 values that lie 16 apart. The sum runs in steps of
// 16, whose pieces of A and B wait in shared memory, both with the sum's index first, so that threads of a warp read
// neighbours.
enum { TILE = 64, TILE_K = 16, TILE_THREADS = 256, TILE_PITCH = TILE + 1 };

// Copies 64 rows of op(A) (or columns of op(B)), 16 steps of the sum deep, from element (row, k) on; zeros outside.
// `along` is 1 where memory runs along the rows, and neighbouring threads then take neighbouring rows.
__device__ static inline void matmul_tile_load(shared<float> to, const floatX* from, size_t ld, int along, int row,
                                               int rows, int k, int K) {
    for (int i = threadIdx.x; i < TILE * TILE_K; i += TILE_THREADS) {
        int r = along ? i % TILE : i / TILE_K, l = along ? i / TILE : i % TILE_K;
        size_t at = along ? (size_t)(k + l) * ld + row + r : (size_t)(row + r) * ld + k + l;
        to[l * TILE_PITCH + r] = row + r < rows && k + l < K ? (float)from[at] : 0.0f;
    }
}

template <typename T>
__global__ void matmul_tile_kernel(T* d, const floatX* a, const floatX* b, const T* c, const floatX* bias,
                                   matmul_shape_t m) {
    shared<float> tile_a = shared_array<float>(0, TILE_K * TILE_PITCH);
    shared<float> tile_b = shared_array<float>(TILE_K * TILE_PITCH * sizeof(float), TILE_K * TILE_PITCH);
    int row = blockIdx.x * TILE, column = blockIdx.y * TILE, y = threadIdx.x / 16, x = threadIdx.x % 16;
    for (int index = blockIdx.z; index < m.batch; index += gridDim.z) {
        float sum[4][4] = {};
        for (int k = 0; k < m.K; k += TILE_K) {
            matmul_tile_load(tile_a, a + index * m.stride_a, m.lda, m.transpose_a, row, m.M, k, m.K);
            matmul_tile_load(tile_b, b + index * m.stride_b, m.ldb, !m.transpose_b, column, m.N, k, m.K);
            __syncthreads();
            for (int l = 0; l < TILE_K; l++) {
                float left[4], right[4];
                for (int i = 0; i < 4; i++) left[i] = tile_a[l * TILE_PITCH + y + 16 * i];
                for (int j = 0; j < 4; j++) right[j] = tile_b[l * TILE_PITCH + x + 16 * j];
                for (int i = 0; i < 4; i++) {
                    for (int j = 0; j < 4; j++) sum[i][j] += left[i] * right[j];
                }
            }
            __syncthreads();
        }
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 4; j++) {
                int r = row + y + 16 * i, o = column + x + 16 * j;
                if (r >= m.M || o >= m.N) continue;
                size_t at = index * m.stride_d + r * m.ldd + o;
                float value = m.alpha * sum[i][j];
                if (m.beta != 0) value += m.beta * (float)c[at];
                if (bias) value += (float)bias[o];
                d[at] = (T)value;
            }
        }
    }
}

static inline void matmul_tile(const matmul_call_t* call, stream_t s) {
    matmul_shape_t m = call->shape;
    dim3 grid(blocks_for(m.M, TILE), blocks_for(m.N, TILE), m.batch < 65535 ? m.batch : 65535);
    size_t bytes = 2 * TILE_K * TILE_PITCH * sizeof(float);
    if (call->float_d) {
        launch<matmul_tile_kernel<float>>(grid, TILE_THREADS, bytes, s, (float*)call->d, call->a, call->b,
                                          (const float*)call->c, call->bias, m);
    } else {
        launch<matmul_tile_kernel<floatX>>(grid, TILE_THREADS, bytes, s, (floatX*)call->d, call->a, call->b,
                                           (const floatX*)call->c, call->bias, m);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Products

static inline void matmul_run(const matmul_call_t* call, stream_t s) {
    if (call->shape.M == 0 || call->shape.N == 0) return;
    if (!matmul_blas(call, s)) matmul_tile(call, s);
}

// D in floatX, and D in float.
static inline void matmul_batched(floatX* d, const floatX* a, const floatX* b, matmul_shape_t shape, stream_t s) {
    matmul_call_t call = {};
    call.shape = shape, call.d = d, call.a = a, call.b = b, call.c = d;
    matmul_run(&call, s);
}
static inline void matmul_batched_float(float* d, const floatX* a, const floatX* b, matmul_shape_t shape, stream_t s) {
    matmul_call_t call = {};
    call.shape = shape, call.d = d, call.float_d = 1, call.a = a, call.b = b, call.c = d;
    matmul_run(&call, s);
}

static inline int matmul_rows(size_t N) { // the library counts rows in 32 bits
    if (N > INT_MAX) fatal("a matrix product of %zu rows; 2^31 - 1 is the most: use a smaller batch", N);
    return (int)N;
}

// x weight^T + bias + residual, the last two where they are not NULL
static inline matmul_call_t matmul_linear(floatX* out, const floatX* x, const floatX* weight, const floatX* bias,
                                          const floatX* residual, size_t N, int C, int OC) {
    matmul_call_t call = {};
    call.shape = matmul_shape(matmul_rows(N), OC, C, 0, 1);
    call.d = out, call.a = x, call.b = weight, call.bias = bias, call.c = residual;
    call.shape.beta = residual ? 1 : 0;
    return call;
}

// out = x weight^T + bias + residual. In place: out may be residual.
static inline void matmul_residual_forward(floatX* out,            // (N, OC)
                                           const floatX* x,        // (N, C)
                                           const floatX* weight,   // (OC, C)
                                           const floatX* bias,     // (OC) or NULL
                                           const floatX* residual, // (N, OC) or NULL
                                           size_t N, int C, int OC, stream_t s) {
    matmul_call_t call = matmul_linear(out, x, weight, bias, residual, N, C, OC);
    matmul_run(&call, s);
}

void matmul_forward(floatX* out,          // (N, OC)
                    const floatX* x,      // (N, C)
                    const floatX* weight, // (OC, C)
                    const floatX* bias,   // (OC) or NULL
                    size_t N, int C, int OC, stream_t s) {
    matmul_residual_forward(out, x, weight, bias, nullptr, N, C, OC, s);
}

void matmul_gelu_forward(floatX* out,          // (N, OC)
                         floatX* pre,          // (N, OC)
                         const floatX* x,      // (N, C)
                         const floatX* weight, // (OC, C)
                         const floatX* bias,   // (OC) or NULL
                         size_t N, int C, int OC, activation_t act, stream_t s) {
    if (act == ACT_GELU_TANH && sizeof(floatX) == 2 && bias && OC % 8 == 0 && N > 0) {
        matmul_call_t call = matmul_linear(out, x, weight, bias, nullptr, N, C, OC);
        call.pre = pre;
        if (matmul_blas(&call, s)) return;
    }
    matmul_forward(pre, x, weight, bias, N, C, OC, s);
    gelu_forward(out, pre, N * OC, act, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums over rows

// First kernel: block (i, slab) adds up the rows of one slab, for 32 packs of columns: a lane owns the columns of one
// pack, the 8 warps take every eighth row. Second kernel: the slabs' sums, again dealt to 8 warps. There are about 4
// blocks a multiprocessor; N is cut into as many slabs as that takes. `whole`: every pack is complete and aligned.
enum {
    COLUMN_WARPS = 8,
    COLUMN_THREADS = COLUMN_WARPS * WARP,
    COLUMN_AHEAD = 4,                          // rows that a thread asks for at once
    COLUMN_ROWS = COLUMN_AHEAD * COLUMN_WARPS, // the fewest rows of a slab
    COLUMN_BLOCKS_EACH = 4
};

template <bool whole>
__global__ void column_sums_kernel(float* partial, const floatX* x, size_t N, int C, size_t slab_rows) {
    constexpr int size = pack<floatX>::size;
    shared<float> work = shared_array<float>(0, COLUMN_THREADS * size); // (warp, column within the pack, lane)
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int column = (blockIdx.x * WARP + lane) * size;
    size_t first = blockIdx.y * slab_rows, last = first + slab_rows < N ? first + slab_rows : N;
    float sum[size] = {};
    size_t row = column < C ? first + warp : last;
    for (; row + COLUMN_ROWS - COLUMN_WARPS < last; row += COLUMN_ROWS) {
        pack<floatX> value[COLUMN_AHEAD];
        for (int i = 0; i < COLUMN_AHEAD; i++) {
            const floatX* p = x + (row + i * COLUMN_WARPS) * C + column;
            value[i] = whole ? load16(p) : load_upto(p, C - column);
        }
        for (int i = 0; i < COLUMN_AHEAD; i++) {
            for (int k = 0; k < size; k++) sum[k] += (float)value[i][k];
        }
    }
    for (; row < last; row += COLUMN_WARPS) {
        pack<floatX> value = load_upto(x + row * C + column, C - column);
        for (int k = 0; k < size; k++) sum[k] += (float)value[k];
    }
    for (int k = 0; k < size; k++) work[(warp * size + k) * WARP + lane] = sum[k];
    __syncthreads();
    for (int i = threadIdx.x; i < WARP * size; i += COLUMN_THREADS) {
        int to = (blockIdx.x * WARP + i % WARP) * size + i / WARP;
        float total = 0;
        for (int w = 0; w < COLUMN_WARPS; w++) total += work[w * WARP * size + i];
        if (to < C) partial[(size_t)blockIdx.y * C + to] = total;
    }
}

// sums += the `slabs` rows of partial
__global__ void add_partial_sums_kernel(float* sums, const float* partial, int slabs, int C) {
    shared<float> work = shared_array<float>(0, COLUMN_THREADS);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = blockIdx.x * WARP + lane;
    float sum = 0;
    for (int slab = warp; slab < slabs && column < C; slab += COLUMN_WARPS) sum += partial[(size_t)slab * C + column];
    work[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || column >= C) return;
    float total = 0;
    for (int w = 0; w < COLUMN_WARPS; w++) total += work[w * WARP + lane];
    sums[column] += total;
}

// sums += sum over rows of x. Uses the stream's scratch memory.
static inline void add_column_sums(float* sums,     // (C) +=
                                   const floatX* x, // (N, C)
                                   size_t N, int C, stream_t s) {
    if (N == 0 || C == 0) return;
    constexpr int size = pack<floatX>::size;
    unsigned columns = blocks_for(C, WARP * size), most = blocks_for(N, COLUMN_ROWS);
    unsigned slabs = blocks_for((size_t)COLUMN_BLOCKS_EACH * s->multiprocessors, columns);
    size_t slab_rows = blocks_for(N, slabs < most ? slabs : most);
    slabs = blocks_for(N, slab_rows);
    float* partial = (float*)device_scratch(s, (size_t)slabs * C * sizeof(float));
    size_t bytes = COLUMN_THREADS * size * sizeof(float);
    dim3 grid(columns, slabs);
    if (C % size == 0 && (uintptr_t)x % 16 == 0) {
        launch<column_sums_kernel<true>>(grid, COLUMN_THREADS, bytes, s, partial, x, N, C, slab_rows);
    } else {
        launch<column_sums_kernel<false>>(grid, COLUMN_THREADS, bytes, s, partial, x, N, C, slab_rows);
    }
    launch<add_partial_sums_kernel>(blocks_for(C, WARP), COLUMN_THREADS, COLUMN_THREADS * sizeof(float), s, sums,
                                    (const float*)partial, (int)slabs, C);
}

void matmul_backward(floatX* dx,           // (N, C) or NULL
                     floatS* dweight,      // (OC, C) or NULL
                     floatS* dbias,        // (OC) or NULL
                     const floatX* dout,   // (N, OC)
                     const floatX* x,      // (N, C)
                     const floatX* weight, // (OC, C)
                     size_t N, int C, int OC, stream_t s) {
    int rows = matmul_rows(N);
    if (dx) matmul_batched(dx, dout, weight, matmul_shape(rows, C, OC, 0, 0), s);
    if (dweight && rows > 0) {
        matmul_shape_t shape = matmul_shape(OC, C, rows, 1, 0);
        shape.beta = 1;
        matmul_batched_float(dweight, dout, x, shape, s);
    }
    if (dbias) add_column_sums(dbias, dout, N, OC, s);
}
