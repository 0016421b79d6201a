// attention_products.cuh: attention as a sequence of matrix products, for what attention_tiles.cuh does not take: heads
// of many channels (the decoder's AttnBlock has one of 512) or of no multiple of 8 channels, and the FP32 build.
//
//   forward     S = q k^T / sqrt(HS);  lse, P = softmax(S);  out = P v
//   backward    S and dP = dout v^T;  P = exp(S - lse), dS = P (dP - delta), delta = dout out;
//               dv = P^T dout;  dq = dS k / sqrt(HS);  dk = dS^T q / sqrt(HS)
//
// S and dP are fp32; P and dS are floatX, as operands of products must be. They live in the stream's scratch memory: as
// many (T, T) matrices at a time as fit. Where not even one fits (T > 3344 in the backward), a block of queries at a
// time, and dk and dv add up block by block, rounded to floatX each time.
//
// A batch of products goes over the images where there is one head, else over the heads of an image. In both cases the
// matrices lie at one distance from each other, and lse is contiguous: below, both are called heads.
//
// AttnBlock at B = 64, T = 256, HS = 512: forward 8.6 GFLOP and 50 MB for S and P, backward 21 GFLOP and 150 MB.
// Look next at common/cuda/attention.cuh.
#pragma once
// defines: launch, warp_sum, warp_max, blocks_for
#include "common/cuda/launch.cuh"
// defines: matmul_shape, matmul_batched, matmul_batched_float
#include "common/cuda/matmul.cuh"

// The two kernels below have one row of scores a warp. Row i of the scores is row i of lse too, for scores are
// (heads, T, T), or a few rows of one head.
enum { ATTENTION_ROWS = 8 }; // of a block

// Where an image's first keys are padding, their scores are computed like others and not looked at: P and dS are 0.

// One row of scores a warp: lse = log sum_j exp(S_j), P_j = exp(S_j - lse). S is read three times, once from memory.
__global__ static void attention_softmax_kernel(floatX* p,            // (heads, rows, T)
                                                float* lse,           // (heads, T), from the first of the rows on
                                                const float* scores,  // (heads, rows, T)
                                                const int* first_key, // of the first image, or NULL for 0
                                                size_t image,         // rows of an image
                                                size_t total, int T) {
    size_t i = (size_t)blockIdx.x * ATTENTION_ROWS + threadIdx.x / WARP;
    if (i >= total) return;
    const float* row = scores + i * T;
    float most = -INFINITY, sum = 0;
    int padding = first_key ? first_key[i / image] : 0, first = threadIdx.x % WARP;
    for (int j = first; j < T; j += WARP) most = j < padding ? most : fmaxf(most, row[j]);
    most = warp_max(most);
    for (int j = first; j < T; j += WARP) sum += j < padding ? 0 : expf(row[j] - most);
    sum = warp_sum(sum);
    for (int j = first; j < T; j += WARP) p[i * T + j] = (floatX)(j < padding ? 0 : expf(row[j] - most) / sum);
    if (threadIdx.x % WARP == 0) lse[i] = most + logf(sum);
}

// One row a warp: delta = sum_c dout_c out_c, P_j = exp(S_j - lse), dS_j = P_j (dP_j - delta).
__global__ static void attention_weights_kernel(floatX* p, floatX* ds,                 // (heads, rows, T)
                                                const float* scores, const float* dp,  // (heads, rows, T)
                                                const float* lse,                      // (heads, T), from the first row
                                                const floatX* dout, const floatX* out, // likewise (heads, T, HS), with
                                                size_t head_stride, size_t row_stride, // these strides
                                                const int* first_key, size_t image,    // as above
                                                size_t total, int rows, int T, int HS) {
    size_t i = (size_t)blockIdx.x * ATTENTION_ROWS + threadIdx.x / WARP;
    if (i >= total) return;
    size_t head = i / rows, row = i % rows, at = head * head_stride + row * row_stride;
    float delta = 0, lse_row = lse[i];
    for (int c = threadIdx.x % WARP; c < HS; c += WARP) delta += (float)dout[at + c] * (float)out[at + c];
    delta = warp_sum(delta);
    int padding = first_key ? first_key[i / image] : 0;
    for (int j = threadIdx.x % WARP; j < T; j += WARP) {
        float weight = j < padding ? 0 : expf(scores[i * T + j] - lse_row);
        p[i * T + j] = (floatX)weight;
        ds[i * T + j] = (floatX)(weight * (dp[i * T + j] - delta));
    }
}

// How the work is cut: `heads` matrices of scores at a time, `rows` of the T queries of each.
typedef struct {
    int T, HS;
    size_t C;                   // NH HS
    int one_head;               // NH is 1
    int batches, batch_heads;   // B, NH; or 1, B where NH is 1
    size_t head_qkv, head_out;  // values from a head to the next, in qkv and in out
    int heads, rows;
    size_t values;              // of a buffer of scores, a multiple of 8
} attention_cut_t;

static inline attention_cut_t attention_cut(int B, int T, int NH, int HS, size_t score_bytes, size_t scratch_bytes) {
    size_t most = scratch_bytes / score_bytes / 8 * 8, matrices = most / T / T;
    if (most < (size_t)T) fatal("attention over %d tokens does not fit the scratch memory; use smaller images", T);
    attention_cut_t cut = {};
    cut.T = T, cut.HS = HS, cut.C = (size_t)NH * HS;
    cut.one_head = NH == 1;
    cut.batches = NH == 1 ? 1 : B, cut.batch_heads = NH == 1 ? B : NH;
    cut.head_qkv = NH == 1 ? T * 3 * cut.C : HS;
    cut.head_out = NH == 1 ? T * cut.C : HS;
    cut.heads = matrices < 1 ? 1 : matrices < (size_t)cut.batch_heads ? (int)matrices : cut.batch_heads;
    cut.rows = matrices < 1 ? (int)(most / T) : T;
    cut.values = ((size_t)cut.heads * cut.rows * T + 7) / 8 * 8;
    return cut;
}

// One step of the work: heads [head, head + heads) of a batch, queries [first, first + rows) of each.
typedef struct {
    int batch, head, first;
    int heads, rows;
    size_t key, query; // where in qkv the heads' first token stands, and the first query
    size_t out, lse;   // where in out and in lse the first query stands
} attention_step_t;

// The next step behind `step`, whose sizes are zero before the first; 0 when there is none.
static inline int attention_next(attention_step_t* step, attention_cut_t cut) {
    step->first += step->rows;
    if (step->first == cut.T) step->first = 0, step->head += step->heads;
    if (step->head == cut.batch_heads) step->head = 0, step->batch++;
    if (step->batch == cut.batches) return 0;
    step->heads = cut.batch_heads - step->head < cut.heads ? cut.batch_heads - step->head : cut.heads;
    step->rows = cut.T - step->first < cut.rows ? cut.T - step->first : cut.rows;
    step->key = (size_t)step->batch * cut.T * 3 * cut.C + step->head * cut.head_qkv;
    step->query = step->key + step->first * 3 * cut.C;
    step->out = ((size_t)step->batch * cut.T + step->first) * cut.C + step->head * cut.head_out;
    step->lse = ((size_t)step->batch * cut.batch_heads + step->head) * cut.T + step->first;
    return 1;
}

// For the kernels: the first_key of the step's first image, and how many of the step's rows an image has.
static inline const int* attention_step_keys(const int* first_key, attention_cut_t cut, attention_step_t step) {
    return first_key ? first_key + (cut.one_head ? step.head : step.batch) : NULL;
}
static inline size_t attention_step_image(attention_cut_t cut, attention_step_t step) {
    return (size_t)(cut.one_head ? 1 : step.heads) * step.rows;
}

// Where the rows and the heads' matrices of an operand lie.
typedef struct { size_t row, head; } attention_place_t; // values from one to the next
static inline attention_place_t attention_in_qkv(attention_cut_t cut) { return {3 * cut.C, cut.head_qkv}; }
static inline attention_place_t attention_in_out(attention_cut_t cut) { return {cut.C, cut.head_out}; }
static inline attention_place_t attention_in_scores(attention_cut_t cut, attention_step_t step) {
    return {(size_t)cut.T, (size_t)step.rows * cut.T};
}

// A product of several heads, d = scale a b.
static inline matmul_shape_t attention_shape(matmul_shape_t m, attention_place_t d, attention_place_t a,
                                             attention_place_t b, int heads, double scale) {
    m.ldd = d.row, m.lda = a.row, m.ldb = b.row;
    m.stride_d = d.head, m.stride_a = a.head, m.stride_b = b.head;
    m.batch = heads, m.alpha = (float)scale;
    return m;
}

// out = P v, where softmax(p, scores, cut, step) writes P of S = scale q k^T; in so much scratch memory.
template <typename SOFTMAX>
static void attention_products(floatX* out,       // (B, T, NH, HS)
                               const floatX* qkv, // (B, T, 3, NH, HS)
                               double scale, int B, int T, int NH, int HS, size_t scratch_bytes, stream_t s,
                               SOFTMAX softmax) {
    const size_t bytes = sizeof(float) + sizeof(floatX); // of a score: S, P
    attention_cut_t cut = attention_cut(B, T, NH, HS, bytes, scratch_bytes);
    attention_step_t step = {};
    float* scores = (float*)device_scratch(s, cut.values * bytes);
    floatX* p = (floatX*)(scores + cut.values);
    while (attention_next(&step, cut)) {
        attention_place_t in_qkv = attention_in_qkv(cut), in_out = attention_in_out(cut);
        attention_place_t in_scores = attention_in_scores(cut, step);
        const floatX* k = qkv + step.key + cut.C;
        const floatX* v = k + cut.C;
        matmul_shape_t qk = matmul_shape(step.rows, T, HS, 0, 1), pv = matmul_shape(step.rows, HS, T, 0, 0);
        qk = attention_shape(qk, in_scores, in_qkv, in_qkv, step.heads, scale);
        pv = attention_shape(pv, in_out, in_scores, in_qkv, step.heads, 1);
        matmul_batched_float(scores, qkv + step.query, k, qk, s);
        softmax(p, (const float*)scores, cut, step);
        matmul_batched(out + step.out, p, v, pv, s);
    }
}

static void attention_products_forward(floatX* out,          // (B, T, NH, HS)
                                       floatS* lse,          // (B, NH, T)
                                       const floatX* qkv,    // (B, T, 3, NH, HS)
                                       const int* first_key, // (B) or NULL for 0
                                       int B, int T, int NH, int HS, size_t scratch_bytes, stream_t s) {
    auto softmax = [=](floatX* p, const float* scores, attention_cut_t cut, attention_step_t step) {
        size_t total = (size_t)step.heads * step.rows;
        launch<attention_softmax_kernel>(blocks_for(total, ATTENTION_ROWS), ATTENTION_ROWS * (int)WARP, 0, s, p,
                                         lse + step.lse, scores, attention_step_keys(first_key, cut, step),
                                         attention_step_image(cut, step), total, T);
    };
    attention_products(out, qkv, 1 / sqrt(HS), B, T, NH, HS, scratch_bytes, s, softmax);
}

static void attention_products_backward(floatX* dqkv,         // (B, T, 3, NH, HS)
                                        const floatX* dout,   // (B, T, NH, HS)
                                        const floatX* qkv,    // (B, T, 3, NH, HS)
                                        const floatX* out,    // (B, T, NH, HS)
                                        const floatS* lse,    // (B, NH, T)
                                        const int* first_key, // (B) or NULL for 0
                                        int B, int T, int NH, int HS, size_t scratch_bytes, stream_t s) {
    const size_t bytes = 2 * (sizeof(float) + sizeof(floatX)); // of a score: S, dP, P, dS
    const double scale = 1 / sqrt(HS);
    attention_cut_t cut = attention_cut(B, T, NH, HS, bytes, scratch_bytes);
    attention_step_t step = {};
    float* scores = (float*)device_scratch(s, cut.values * bytes);
    float* dp = scores + cut.values;
    floatX* p = (floatX*)(dp + cut.values);
    floatX* ds = p + cut.values;
    while (attention_next(&step, cut)) {
        attention_place_t in_qkv = attention_in_qkv(cut), in_out = attention_in_out(cut);
        attention_place_t in_scores = attention_in_scores(cut, step);
        const floatX* q = qkv + step.query;
        const floatX* k = qkv + step.key + cut.C;
        const floatX* v = k + cut.C;
        floatX* dk = dqkv + step.key + cut.C;
        floatX* dv = dk + cut.C;
        matmul_shape_t by_channel = matmul_shape(step.rows, T, HS, 0, 1); // sums over channels
        matmul_shape_t by_key = matmul_shape(step.rows, HS, T, 0, 0);    // over keys
        matmul_shape_t by_query = matmul_shape(T, HS, step.rows, 1, 0);  // over queries
        by_query.beta = step.first > 0 ? 1 : 0;
        matmul_shape_t qk = attention_shape(by_channel, in_scores, in_qkv, in_qkv, step.heads, scale); // S
        matmul_shape_t dov = attention_shape(by_channel, in_scores, in_out, in_qkv, step.heads, 1);    // dP
        matmul_shape_t dsk = attention_shape(by_key, in_qkv, in_scores, in_qkv, step.heads, scale);    // dq
        matmul_shape_t dsq = attention_shape(by_query, in_qkv, in_scores, in_qkv, step.heads, scale);  // dk
        matmul_shape_t pdo = attention_shape(by_query, in_qkv, in_scores, in_out, step.heads, 1);      // dv
        matmul_batched_float(scores, q, k, qk, s);
        matmul_batched_float(dp, dout + step.out, v, dov, s);
        size_t total = (size_t)step.heads * step.rows;
        launch<attention_weights_kernel>(blocks_for(total, ATTENTION_ROWS), ATTENTION_ROWS * (int)WARP, 0, s, p, ds,
                                         (const float*)scores, (const float*)dp, lse + step.lse, dout + step.out,
                                         out + step.out, cut.head_out, cut.C, attention_step_keys(first_key, cut, step),
                                         attention_step_image(cut, step), total, step.rows, T, HS);
        matmul_batched(dqkv + step.query, ds, k, dsk, s);
        matmul_batched(dk, ds, q, dsq, s);
        matmul_batched(dv, p, dout + step.out, pdo, s);
    }
}
