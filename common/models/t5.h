// t5.h: the encoder of T5 v1.1, which turns a text into rows that a diffusion transformer attends to. Frozen: forward
// alone.
//
//   x = table[number]                                          no positions
//   block : x <- x + Wo attention(Wq h, Wk h, Wv h), h = norm(x);   x <- x + W2 (gelu(W0 h) W1 h), h = norm(x)
//   rows  = norm(x)                                            RMSNorm everywhere, no biases
//
// Attention is not scaled by 1 / sqrt(head size). To a score is added a number that each head has learnt for the
// distance from query to key, in 32 buckets: exact up to 7, then ever wider, both directions apart (t5_bucket). The
// first block's table serves all blocks.                                            (Raffel et al. 2020; Shazeer 2020)
//
// Texts of a batch are right-aligned: the numbers of text b are the last ones of its T, and its first row is `first`_b.
// Keys in front of it are masked; rows in front of it hold finite numbers that mean nothing. As distances alone count, a
// text's rows do not depend on how long the others are.
//
// Every addition to the residual stream is followed by a norm, so the two are one operation, as in vit.h. All blocks
// use the same memory. Look next at common/models/text_weights.h, which reads the public files.
#pragma once
#include <assert.h>

// defines: params_t, param_table_t, param_vector, param_matrix, params_at
#include "common/models/params.h"
// defines: plan_t, plan_floatX, plan_floatS, plan_int
#include "common/models/plan.h"
// defines: embedding_rows, layernorm_forward, residual_layernorm_forward, text_attention_forward, geglu_forward, ...
#include "common/ops.h"

typedef struct {
    const char* id;
    int dim, mlp_dim, depth, heads, head_size, vocabulary;
} t5_config_t;

static const t5_config_t t5_configs[] = {
    {"t5-v1_1-small",  512,  1024,  8,  6, 64, 32128},
    {"t5-v1_1-base",   768,  2048, 12, 12, 64, 32128},
    {"t5-v1_1-large", 1024,  2816, 24, 16, 64, 32128},
    {"t5-v1_1-xl",    2048,  5120, 24, 32, 64, 32128},
    {"t5-v1_1-xxl",   4096, 10240, 24, 64, 64, 32128},
};
enum { T5_CONFIGS = sizeof t5_configs / sizeof *t5_configs, T5_MAX_DEPTH = 48, T5_BUCKETS = 32 };
#define T5_NORM_EPS 1e-6

typedef struct {
    size_t q, k, v, o, norm1; // offsets of the parameters; q, k, v lie behind one another, as do wi_0 and wi_1
    size_t wi_0, wi_1, wo, norm2;
} t5_block_t;

// The memory plan holds addresses of this struct's members: it must stay where it is once it is planned.
typedef struct {
    t5_config_t config;
    size_t table, distances, norm; // offsets: (vocabulary, D), (T5_BUCKETS, NH), (D)
    t5_block_t blocks[T5_MAX_DEPTH];
    int B, T;          // as planned
    int* ids;          // (B, T)
    int* first;        // (B) where a text begins
    int* buckets;      // (2 T - 1) of the distances -(T - 1) .. T - 1
    floatS* bias;      // (2 T - 1, NH)
    floatS *x, *middle; // (B, T, D) the residual stream
    floatS* rstd;      // (B, T)
    floatX* normed;    // (B, T, D)
    floatX* qkv;       // (B, T, 3, NH, HS)
    floatX* attention; // (B, T, NH, HS)
    floatX* branch;    // (B, T, D) what is added to the stream
    floatX* wide;      // (B, T, 2 F)
    floatX* hidden;    // (B, T, F)
    floatX* rows;      // (B, T, D) the output
} t5_t;

// Registers all tensors behind `prefix` under their public names, in their order. t->config is set beforehand.
void t5_register(t5_t* t, param_table_t* table, const char* prefix) {
    const t5_config_t* c = &t->config;
    int D = c->dim, inner = c->heads * c->head_size, F = c->mlp_dim;
    init_t one = init_constant(1), by_dim = init_fan_in(D);
    if (c->depth > T5_MAX_DEPTH) fatal("a T5 encoder of %d blocks, of at most %d", c->depth, T5_MAX_DEPTH);
    t->table = param_matrix(table, prefix, "shared.weight", c->vocabulary, D, init_normal(0, 1));
    for (int i = 0; i < c->depth; i++) {
        t5_block_t* b = &t->blocks[i];
        char attention[PARAM_NAME], mlp[PARAM_NAME];
        snprintf(attention, sizeof attention, "%sencoder.block.%d.layer.0.", prefix, i);
        snprintf(mlp, sizeof mlp, "%sencoder.block.%d.layer.1.", prefix, i);
        b->q = param_matrix(table, attention, "SelfAttention.q.weight", inner, D, by_dim);
        b->k = param_matrix(table, attention, "SelfAttention.k.weight", inner, D, by_dim);
        b->v = param_matrix(table, attention, "SelfAttention.v.weight", inner, D, by_dim);
        b->o = param_matrix(table, attention, "SelfAttention.o.weight", D, inner, init_fan_in(inner));
        if (i == 0) {
            const char* name = "SelfAttention.relative_attention_bias.weight";
            t->distances = param_matrix(table, attention, name, T5_BUCKETS, c->heads, by_dim);
        }
        b->norm1 = param_vector(table, attention, "layer_norm.weight", D, one);
        b->wi_0 = param_matrix(table, mlp, "DenseReluDense.wi_0.weight", F, D, by_dim);
        b->wi_1 = param_matrix(table, mlp, "DenseReluDense.wi_1.weight", F, D, by_dim);
        b->wo = param_matrix(table, mlp, "DenseReluDense.wo.weight", D, F, init_fan_in(F));
        b->norm2 = param_vector(table, mlp, "layer_norm.weight", D, one);
        assert(b->v - b->q == 2 * (size_t)inner * D && b->wi_1 - b->wi_0 == (size_t)F * D);
    }
    t->norm = param_vector(table, prefix, "encoder.final_layer_norm.weight", D, one);
}

// Plans the memory of a forward over B texts of at most T numbers. The output lives in it.
void t5_plan(t5_t* t, plan_t* plan, int B, int T) {
    const t5_config_t* c = &t->config;
    size_t rows = (size_t)B * T, D = c->dim, inner = (size_t)c->heads * c->head_size, F = c->mlp_dim;
    t->B = B;
    t->T = T;
    plan_int(plan, &t->ids, rows, "t5.ids");
    plan_int(plan, &t->first, B, "t5.first");
    plan_int(plan, &t->buckets, 2 * (size_t)T - 1, "t5.buckets");
    plan_floatS(plan, &t->bias, (2 * (size_t)T - 1) * c->heads, "t5.bias");
    plan_floatS(plan, &t->x, rows * D, "t5.x");
    plan_floatS(plan, &t->middle, rows * D, "t5.middle");
    plan_floatS(plan, &t->rstd, rows, "t5.rstd");
    plan_floatX(plan, &t->normed, rows * D, "t5.normed");
    plan_floatX(plan, &t->qkv, rows * 3 * inner, "t5.qkv");
    plan_floatX(plan, &t->attention, rows * inner, "t5.attention");
    plan_floatX(plan, &t->branch, rows * D, "t5.branch");
    plan_floatX(plan, &t->wide, rows * 2 * F, "t5.wide");
    plan_floatX(plan, &t->hidden, rows * F, "t5.hidden");
    plan_floatX(plan, &t->rows, rows * D, "t5.rows");
}

// The bucket of a distance, key behind query positive: 16 for each direction, those from 8 on at powers of 16^(1/8),
// where 64-bit logarithms round as the original's 32-bit ones do for all distances below 700.
static inline int t5_bucket(int distance) {
    static const int begin[8] = {8, 12, 16, 23, 32, 46, 64, 91}; // of buckets 8 to 15
    int size = distance < 0 ? -distance : distance, bucket = size < 8 ? size : 8;
    while (size >= 8 && bucket < 15 && size >= begin[bucket + 1 - 8]) bucket++;
    return bucket + (distance > 0 ? T5_BUCKETS / 2 : 0);
}

// Checks the numbers and puts them on the device, right-aligned; and the distances' biases.
static inline void t5_place(t5_t* t, const params_t* p, const int* ids, const int* counts, stream_t s) {
    int B = t->B, T = t->T, *host = (int*)calloc_check((size_t)B * T + B + 2 * T, sizeof(int), "the texts of a batch");
    int *first = host + (size_t)B * T, *buckets = first + B;
    for (int b = 0; b < B; b++) {
        int count = counts ? counts[b] : T;
        if (count < 1 || count > T) fatal("text %d of a batch has %d numbers, of 1 to %d", b, count, T);
        first[b] = T - count;
        for (int i = 0; i < count; i++) {
            int id = ids[(size_t)b * T + i];
            if (id < 0 || id >= t->config.vocabulary) {
                fatal("number %d of a text is beyond the text encoder's vocabulary of %d; give the tokenizer's file and "
                      "the encoder's of one model", id, t->config.vocabulary);
            }
            host[(size_t)b * T + first[b] + i] = id;
        }
    }
    for (int i = 0; i < 2 * T - 1; i++) buckets[i] = t5_bucket(i - (T - 1));
    stream_wait(s);
    copy_to_device(t->ids, host, (size_t)B * T * sizeof(int), 0);
    copy_to_device(t->first, first, B * sizeof(int), 0);
    copy_to_device(t->buckets, buckets, (2 * (size_t)T - 1) * sizeof(int), 0);
    free(host);
    embedding_rows(t->bias, params_at(p, t->distances), NULL, t->buckets, 1, 2 * T - 1, t->config.heads, s);
}

// One block, from its first norm to the norm that follows it.
static inline void t5_block_forward(t5_t* t, const params_t* p, int i, stream_t s) {
    const t5_config_t* c = &t->config;
    const t5_block_t* b = &t->blocks[i];
    int D = c->dim, NH = c->heads, HS = c->head_size, F = c->mlp_dim, last = i + 1 == c->depth;
    size_t rows = (size_t)t->B * t->T, next = last ? t->norm : t->blocks[i + 1].norm1;
    matmul_forward(t->qkv, t->normed, params_at(p, b->q), NULL, rows, D, 3 * NH * HS, s);
    text_attention_forward(t->attention, t->qkv, t->bias, t->first, 1, 0, t->B, t->T, NH, HS, s);
    matmul_forward(t->branch, t->attention, params_at(p, b->o), NULL, rows, NH * HS, D, s);
    residual_layernorm_forward(t->middle, t->normed, NULL, t->rstd, t->x, t->branch, NULL, params_at(p, b->norm2), NULL,
                               rows, D, T5_NORM_EPS, s);
    matmul_forward(t->wide, t->normed, params_at(p, b->wi_0), NULL, rows, D, 2 * F, s);
    geglu_forward(t->hidden, t->wide, rows, F, s);
    matmul_forward(t->branch, t->hidden, params_at(p, b->wo), NULL, rows, F, D, s);
    residual_layernorm_forward(t->x, last ? t->rows : t->normed, NULL, t->rstd, t->middle, t->branch, NULL,
                               params_at(p, next), NULL, rows, D, T5_NORM_EPS, s);
}

// Writes t->rows and t->first. `ids` are as unigram_encode leaves them: a text's numbers come first, `counts` says how
// many. counts NULL: all T count, padding too, and nothing is masked, as FLUX has it.
void t5_forward(t5_t* t, const params_t* p,
                const int* ids,    // (B, T) on the host
                const int* counts, // (B) on the host, or NULL
                stream_t s) {
    int D = t->config.dim;
    t5_place(t, p, ids, counts, s);
    embedding_rows(t->x, params_at(p, t->table), NULL, t->ids, t->B, t->T, D, s);
    layernorm_forward(t->normed, NULL, t->rstd, t->x, params_at(p, t->blocks[0].norm1), NULL, (size_t)t->B * t->T, D,
                      T5_NORM_EPS, s);
    for (int i = 0; i < t->config.depth; i++) t5_block_forward(t, p, i, s);
}
