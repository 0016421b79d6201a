// mmdit.h: the FLUX-style transformer (MM-DiT) that draws what a caption says: from a noised latent, a time, the rows
// that a text encoder makes of the caption and one pooled vector of it, to the velocity of the flow.
//
//   s          = SiLU(time MLP(features of 1000 t) + vector MLP(pooled) [+ guidance MLP]);   a modulation = W s + b
//   text, image: tokens of two widths become D wide; an image's token is a position of the latent
//   double block, in each stream m with weights of its own:
//     q, k, v  = qkv(n1), n1 = LN(x_m) (1 + scale1) + shift1;   heads of q and k normed, then rotated
//     O        = attention over the rows of both streams
//     x_m     <- x_m + gate1 proj(O_m);   x_m <- x_m + gate2 down(gelu(up(n2))), n2 = LN(x_m) (1 + scale2) + shift2
//   x          = text rows, then image rows
//   single block:  n = LN(x) (1 + scale) + shift;   q, k, v, u = linear1(n);   O = attention as above
//     x       <- x + gate linear2([O, gelu(u)])
//   v          = linear(LN(x) (1 + scale) + shift) of the image rows
//
// (Esser et al. 2024; FLUX: Black Forest Labs 2024; the single blocks are parallel: Dehghani et al. 2023.) LN is a
// LayerNorm without weight. Time is FLUX's: 0 is data, 1 noise, and the velocity is noise - data: the opposite of
// common/ops.h, "Flow matching". Rotation: channels of a head in three axes, of which text rows, and of image rows the
// first, lie at 0; then row and column (common/models/rotary_table.h).
//
// Captions of different lengths. A batch has L text rows an image, a caption's at their end: image b's first `first_b`
// rows are padding, which no query attends to. What padding becomes nobody reads; its gradients are zero.
//
// Products without copies. linear1 is two products with the same input: rows of its matrix that make q, k and v, and
// those that make u. linear2 is the sum of two products: its matrix stands in memory as two, of the columns that read O
// and of those that read gelu(u) (LAYOUT_COLUMNS). As in common/models/lightningdit.h the modulation matrices of all
// blocks stand one behind the other and are multiplied at once, and a gated branch and the norm that follows it are one
// operation; where the streams are joined the norm is done by itself.
//
// In the double blocks a buffer of rows holds first the text rows of all images, then all image rows (mmdit_part); for
// attention, and in the single blocks, an image's text rows stand in front of its own image rows.
//
// Names are FLUX's, which are minFM's. FLUX's own latents, of 2 x 2 positions a token, come as C = 64 channels in the
// order (channel, y, x). Look next at common/models/mmdit_file.h, which reads published files.
#pragma once
#include <assert.h>

// defines: params_t, param_table_t, param_vector, param_matrix, param_matrix_columns, params_at, params_grad, ...
#include "common/models/params.h"
// defines: plan_t, plan_floatX, plan_floatS, plan_mark, plan_rewind
#include "common/models/plan.h"
// defines: embedder_t, embedder_*, EMBEDDER_FREQUENCIES, EMBEDDER_FEATURES
#include "common/models/embedder.h"
// defines: rotary_table
#include "common/models/rotary_table.h"
// defines: matmul_*, norm_modulate_*, gated_norm_modulate_*, qknorm_rope_*, attention_*, concat_*, split_*, ...
#include "common/ops.h"

// ---------------------------------------------------------------------------------------------------------------------
// Configurations

typedef struct {
    const char* id;
    int dim, heads;
    int doubles, singles; // blocks
    int axes[3];          // channels of a head that turn by nothing, by row, by column
    int text;             // width of a text row
    int vector;           // width of the pooled vector; 0: none
    int guidance;         // 1: the guidance that a distilled model is to imitate is an input
    int C, h, w;          // channels and sides of the latent: set by the caller, who may change them (mmdit_set_size)
} mmdit_config_t;

#define MMDIT_NORM_EPS 1e-6   // of every norm
#define MMDIT_TIME_SCALE 1000 // of time and guidance, before their features

//   id         dim heads double single   axes      text vector guidance
static const mmdit_config_t mmdit_configs[] = {
    {"2B",       2048, 16,  8, 16, {16, 56, 56}, 4096, 768, 0, 0, 0, 0},
    {"2B-deep",  1536, 12, 13, 26, {16, 56, 56}, 4096, 768, 0, 0, 0, 0},
    {"2B-short", 2048, 16,  7, 14, {16, 56, 56}, 4096, 768, 0, 0, 0, 0},
    {"flux",     3072, 24, 19, 38, {16, 56, 56}, 4096, 768, 1, 0, 0, 0}, // FLUX.1-dev; schnell has no guidance
    {"tiny",     1024, 16,  8, 16, {8, 28, 28},   768, 768, 0, 0, 0, 0}, // minFM's
    // for the miniature world of captioned scenes
    {"t2i-mini",  128,  4,  2,  4, {8, 12, 12},    64,  64, 0, 0, 0, 0},
    {"t2i-nano",   32,  2,  1,  1, {4,  4,  8},    64,  64, 0, 0, 0, 0}, // for tests
};
enum { MMDIT_CONFIGS = sizeof mmdit_configs / sizeof mmdit_configs[0] };

// The configuration of this name; an unknown one ends the program with the list of those there are.
const mmdit_config_t* mmdit_config_find(const char* id) {
    char known[256] = "";
    for (int i = 0; i < MMDIT_CONFIGS; i++) {
        if (!strcmp(mmdit_configs[i].id, id)) return &mmdit_configs[i];
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", mmdit_configs[i].id);
    }
    fatal("there is no text-to-image transformer named '%s'; choose one of: %s", id, known);
}

// How far the times of a latent with N positions are shifted towards the noise, in training and in drawing: with this
// number a, time t of a uniform or logit-normal law becomes a t / (1 + (a - 1) t). Large images need it more: at the same
// time more of them shows through the noise. (Esser et al. 2024; the numbers are FLUX's.)
static inline double mmdit_time_shift(int N) { return exp(0.5 + 0.65 * (N - 256) / 3840.0); }

// The length M of all modulation vectors of an image: 12 of a double block, 3 of a single one, 2 of the final layer.
static inline int mmdit_modulations(const mmdit_config_t* c) {
    return (12 * c->doubles + 3 * c->singles + 2) * c->dim;
}

// ---------------------------------------------------------------------------------------------------------------------
// The model

enum { MMDIT_MAX_DOUBLES = 32, MMDIT_MAX_SINGLES = 64 };
enum { MMDIT_TEXT, MMDIT_IMAGE, MMDIT_STREAMS };

// A stream's part of a double block; R rows an image: L or N.
typedef struct {
    // offsets of the parameters
    size_t mod_weight, mod_bias, qkv_weight, qkv_bias, q_norm, k_norm, proj_weight, proj_bias;
    size_t up_weight, up_bias, down_weight, down_bias;
    // activations
    floatS* x;              // (B, R, D) the stream where the block begins
    floatS *mean1, *rstd1;  // (B, R)
    floatX* norm1;          // (B, R, D)
    floatX* raw;            // (B, R, 2, NH, HS) queries and keys before their norm
    floatS* qk_rstd;        // (B, R, 2, NH)
    floatX* proj;           // (B, R, D)
    floatS* middle;         // (B, R, D) the stream between attention and MLP
    floatS *mean2, *rstd2;  // (B, R)
    floatX* norm2;          // (B, R, D)
    floatX *pre, *hidden;   // (B, R, 4 D) before and behind the GELU
    floatX* mlp;            // (B, R, D)
} mmdit_stream_t;

typedef struct {
    mmdit_stream_t streams[MMDIT_STREAMS];
    floatX* qkv;       // (B, T, 3, NH, HS) of both
    floatX* attention; // (B, T, NH, HS)
    floatS* lse;       // (B, NH, T)
} mmdit_double_t;

typedef struct {
    size_t mod_weight, mod_bias, linear1_weight, linear1_bias, linear2_weight, linear2_bias, q_norm, k_norm; // offsets
    floatS* x;            // (B, T, D) the stream where the block begins
    floatS *mean, *rstd;  // (B, T)
    floatX* norm;         // (B, T, D)
    floatX* qkv;          // (B, T, 3, NH, HS)
    floatX* raw;          // (B, T, 2, NH, HS)
    floatS* qk_rstd;      // (B, T, 2, NH)
    floatX* attention;    // (B, T, NH, HS)
    floatS* lse;          // (B, NH, T)
    floatX *pre, *hidden; // (B, T, 4 D)
    floatX* branch;       // (B, T, D)
} mmdit_single_t;

// What a pass is about, in device memory; the backward reads it too, but for time and guidance.
typedef struct {
    int B, L;               // images; text rows of an image
    const floatX* xt;       // (B, h, w, C) between data (time 0) and noise (time 1)
    const floatS* t;        // (B)
    const floatX* text;     // (B, L, text) finite also where it is padding
    const int* first;       // (B) padding rows of an image, in [0, L); NULL: no padding
    const floatX* pooled;   // (B, vector), or NULL where vector is 0
    const floatS* guidance; // (B), or NULL where the model has none
} mmdit_input_t;

// The memory plans hold addresses of this struct's members: it must stay where it is once it is planned.
typedef struct {
    mmdit_config_t config;
    int recompute;           // set before planning: run each block's forward again in the backward
    size_t in_weight[MMDIT_STREAMS], in_bias[MMDIT_STREAMS], linear_weight, linear_bias; // offsets
    embedder_t time, vector, guidance;
    mmdit_double_t doubles[MMDIT_MAX_DOUBLES];
    mmdit_single_t singles[MMDIT_MAX_SINGLES + 1]; // singles[config.singles]: the stream at the end and the final norm
    int capacity;            // images, as planned
    int text_rows, image_rows; // of an image, as planned
    int N;                   // image rows of the size that is set
    int M;                   // length of an image's modulation vectors
    int train;
    mmdit_input_t in;        // of the last forward
    int T;                   // L + N of it
    floatS* rope;            // (text_rows + image_rows, HS / 2, 2)
    floatX *time_features, *guidance_features; // (B, 256)
    floatS* condition;       // (B, D)
    floatX* silu;            // (B, D) s
    floatX* modulation;      // (B, M)
    floatX* last;            // (B, N, D) image rows of the final norm
    floatX* v;               // (B, h, w, C) the output
    floatX* wide;            // (T B, 3 D) in parts: tokens; q, k and v; the attention's output; gradients of these
    floatS* streams;         // (T B, D) in parts: the streams where they end; their gradient
    floatS* dstream;         // (B, T, D) gradient of the single blocks' stream
    floatX* dnorm;           // (T B, D) of a norm's output, of the attention's output
    floatX* dbranch;         // (T B, D) of what a branch adds; of the attention's output
    floatX* dhidden;         // (T B, 4 D) inside an MLP
    floatX* dqkv;            // (B, T, 3, NH, HS)
    floatX* dmodulation;     // (B, M)
    floatX *dsilu, *dcondition; // (B, D)
} mmdit_t;

// A configuration that no memory can be laid out for ends the program.
static inline void mmdit_check(const mmdit_config_t* c) {
    if (c->doubles < 1 || c->doubles > MMDIT_MAX_DOUBLES || c->singles < 1 || c->singles > MMDIT_MAX_SINGLES) {
        fatal("text-to-image transformer %s has %d double and %d single blocks; 1 to %d and 1 to %d are possible",
              c->id, c->doubles, c->singles, MMDIT_MAX_DOUBLES, MMDIT_MAX_SINGLES);
    }
    if (c->dim < 8 || c->dim % 8 || c->heads < 1 || c->dim % c->heads) {
        fatal("text-to-image transformer %s is %d wide with %d heads; the width has to be a multiple of 8 and of the "
              "heads", c->id, c->dim, c->heads);
    }
    int sum = c->axes[0] + c->axes[1] + c->axes[2];
    if (sum != c->dim / c->heads || c->axes[0] % 2 || c->axes[1] % 2 || c->axes[2] % 2) {
        fatal("text-to-image transformer %s: rotary axes of %d, %d and %d channels; they have to be even and be a head "
              "of %d", c->id, c->axes[0], c->axes[1], c->axes[2], c->dim / c->heads);
    }
    if (c->C < 1 || c->h < 1 || c->w < 1 || c->text < 1 || c->vector < 0) {
        fatal("text-to-image transformer %s cannot take latents of %d x %d x %d, text rows of %d and vectors of %d "
              "values", c->id, c->h, c->w, c->C, c->text, c->vector);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Parameters

// "double_blocks.3.img_" behind `prefix`: what a stream's tensors of a double block begin with.
static inline const char* mmdit_stream_prefix(char* name, const char* prefix, int i, int k) { // (PARAM_NAME)
    char block[40];
    snprintf(block, sizeof block, "double_blocks.%d.%s_", i, k == MMDIT_TEXT ? "txt" : "img");
    return param_name(name, prefix, block);
}
static inline const char* mmdit_single_prefix(char* name, const char* prefix, int i) { // (PARAM_NAME)
    char block[40];
    snprintf(block, sizeof block, "single_blocks.%d.", i);
    return param_name(name, prefix, block);
}

// A matrix of all modulations, or a bias. Returns its offset, which has to follow on what is there, and moves `at` on.
static inline size_t mmdit_modulation(param_table_t* table, const char* prefix, const char* layer, int bias, int rows,
                                      int D, size_t* at) {
    char name[PARAM_NAME];
    param_name(name, prefix, layer);
    size_t offset = bias ? param_vector(table, name, ".bias", rows, init_constant(0))
                         : param_matrix(table, name, ".weight", rows, D, init_constant(0));
    assert(offset == *at);
    *at += (size_t)rows * (bias ? 1 : D);
    return offset;
}

// The modulation of all blocks and the final layer: all weights, then all biases, each without a gap.
void mmdit_register_modulation(mmdit_t* m, param_table_t* table, const char* prefix) {
    const mmdit_config_t* c = &m->config;
    char name[PARAM_NAME];
    int D = c->dim;
    size_t at = table->total;
    for (int bias = 0; bias < 2; bias++) {
        for (int i = 0; i < c->doubles; i++) for (int k = 0; k < MMDIT_STREAMS; k++) {
            mmdit_stream_t* b = &m->doubles[i].streams[k];
            mmdit_stream_prefix(name, prefix, i, k);
            *(bias ? &b->mod_bias : &b->mod_weight) = mmdit_modulation(table, name, "mod.lin", bias, 6 * D, D, &at);
        }
        for (int i = 0; i <= c->singles; i++) {
            mmdit_single_t* b = &m->singles[i];
            int final = i == c->singles, rows = (final ? 2 : 3) * D;
            const char* layer = final ? "adaLN_modulation.1" : "modulation.lin";
            if (final) param_name(name, prefix, "final_layer.");
            else mmdit_single_prefix(name, prefix, i);
            *(bias ? &b->mod_bias : &b->mod_weight) = mmdit_modulation(table, name, layer, bias, rows, D, &at);
        }
    }
}

void mmdit_register_stream(mmdit_stream_t* b, const mmdit_config_t* c, param_table_t* table, const char* prefix) {
    int D = c->dim, HS = c->dim / c->heads;
    init_t zero = init_constant(0), one = init_constant(1), normal = init_normal(0, 0.02);
    b->qkv_weight = param_matrix(table, prefix, "attn.qkv.weight", 3 * D, D, normal);
    b->qkv_bias = param_vector(table, prefix, "attn.qkv.bias", 3 * D, zero);
    b->q_norm = param_vector(table, prefix, "attn.norm.query_norm.scale", HS, one);
    b->k_norm = param_vector(table, prefix, "attn.norm.key_norm.scale", HS, one);
    b->proj_weight = param_matrix(table, prefix, "attn.proj.weight", D, D, normal);
    b->proj_bias = param_vector(table, prefix, "attn.proj.bias", D, zero);
    b->up_weight = param_matrix(table, prefix, "mlp.0.weight", 4 * D, D, normal);
    b->up_bias = param_vector(table, prefix, "mlp.0.bias", 4 * D, zero);
    b->down_weight = param_matrix(table, prefix, "mlp.2.weight", D, 4 * D, normal);
    b->down_bias = param_vector(table, prefix, "mlp.2.bias", D, zero);
}

void mmdit_register_single(mmdit_single_t* b, const mmdit_config_t* c, param_table_t* table, const char* prefix) {
    int D = c->dim, HS = c->dim / c->heads;
    init_t zero = init_constant(0), one = init_constant(1), normal = init_normal(0, 0.02);
    b->linear1_weight = param_matrix(table, prefix, "linear1.weight", 7 * D, D, normal);
    b->linear1_bias = param_vector(table, prefix, "linear1.bias", 7 * D, zero);
    b->linear2_weight = param_matrix_columns(table, prefix, "linear2.weight", D, 5 * D, D, normal);
    b->linear2_bias = param_vector(table, prefix, "linear2.bias", D, zero);
    b->q_norm = param_vector(table, prefix, "norm.query_norm.scale", HS, one);
    b->k_norm = param_vector(table, prefix, "norm.key_norm.scale", HS, one);
}

// Registers all tensors under the published names behind `prefix`, with minFM's initialisers. m->config is set
// beforehand. Blocks start as the identity, but the velocity does not start at zero.
void mmdit_register(mmdit_t* m, param_table_t* table, const char* prefix) {
    const mmdit_config_t* c = &m->config;
    mmdit_check(c);
    char name[PARAM_NAME];
    int D = c->dim, in[MMDIT_STREAMS] = {c->text, c->C};
    init_t zero = init_constant(0), normal = init_normal(0, 0.02);
    mmdit_register_modulation(m, table, prefix);
    for (int k = 0; k < MMDIT_STREAMS; k++) {
        param_name(name, prefix, k == MMDIT_TEXT ? "txt_in" : "img_in");
        m->in_weight[k] = param_matrix(table, name, ".weight", D, in[k], normal);
        m->in_bias[k] = param_vector(table, name, ".bias", D, zero);
    }
    embedder_register(&m->time, table, prefix, "time_in.in_layer", "time_in.out_layer", EMBEDDER_FEATURES, D);
    if (c->vector) {
        embedder_register(&m->vector, table, prefix, "vector_in.in_layer", "vector_in.out_layer", c->vector, D);
    }
    if (c->guidance) {
        embedder_register(&m->guidance, table, prefix, "guidance_in.in_layer", "guidance_in.out_layer",
                          EMBEDDER_FEATURES, D);
    }
    for (int i = 0; i < c->doubles; i++) for (int k = 0; k < MMDIT_STREAMS; k++) {
        mmdit_register_stream(&m->doubles[i].streams[k], c, table, mmdit_stream_prefix(name, prefix, i, k));
    }
    for (int i = 0; i < c->singles; i++) {
        mmdit_register_single(&m->singles[i], c, table, mmdit_single_prefix(name, prefix, i));
    }
    m->linear_weight = param_matrix(table, prefix, "final_layer.linear.weight", c->C, D, normal);
    m->linear_bias = param_vector(table, prefix, "final_layer.linear.bias", c->C, zero);
}

// Multiply-accumulates of the forward of one latent with L text rows: matrix products and attention.
size_t mmdit_macs(const mmdit_config_t* c, int L) {
    size_t D = c->dim, N = (size_t)c->h * c->w, T = L + N;
    size_t embedders = (EMBEDDER_FEATURES + D) * D * (c->guidance ? 2 : 1) + (c->vector ? (c->vector + D) * D : 0);
    return (c->doubles + c->singles) * (12 * D * D * T + 2 * T * T * D) + mmdit_modulations(c) * D +
           L * c->text * D + 2 * N * D * c->C + embedders;
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

// What a double block's backward cannot do without: the streams where it begins, and statistics of their norms.
void mmdit_plan_double_stream(mmdit_t* m, plan_t* plan, int i) {
    for (int k = 0; k < MMDIT_STREAMS; k++) {
        mmdit_stream_t* b = &m->doubles[i].streams[k];
        size_t rows = (size_t)m->capacity * (k == MMDIT_TEXT ? m->text_rows : m->image_rows);
        plan_floatS(plan, &b->x, rows * m->config.dim, "mmdit.x");
        plan_floatS(plan, &b->mean1, rows, "mmdit.mean1");
        plan_floatS(plan, &b->rstd1, rows, "mmdit.rstd1");
    }
}

// Everything between.
void mmdit_plan_double_branches(mmdit_t* m, plan_t* plan, int i) {
    mmdit_double_t* d = &m->doubles[i];
    size_t D = m->config.dim, heads = m->config.heads, all = (size_t)m->capacity * (m->text_rows + m->image_rows);
    for (int k = 0; k < MMDIT_STREAMS; k++) {
        mmdit_stream_t* b = &d->streams[k];
        size_t rows = (size_t)m->capacity * (k == MMDIT_TEXT ? m->text_rows : m->image_rows);
        plan_floatX(plan, &b->norm1, rows * D, "mmdit.norm1");
        plan_floatX(plan, &b->raw, rows * 2 * D, "mmdit.raw");
        plan_floatS(plan, &b->qk_rstd, rows * 2 * heads, "mmdit.qk_rstd");
        plan_floatX(plan, &b->proj, rows * D, "mmdit.proj");
        plan_floatS(plan, &b->middle, rows * D, "mmdit.middle");
        plan_floatS(plan, &b->mean2, rows, "mmdit.mean2");
        plan_floatS(plan, &b->rstd2, rows, "mmdit.rstd2");
        plan_floatX(plan, &b->norm2, rows * D, "mmdit.norm2");
        plan_floatX(plan, &b->pre, rows * 4 * D, "mmdit.pre");
        plan_floatX(plan, &b->hidden, rows * 4 * D, "mmdit.hidden");
        plan_floatX(plan, &b->mlp, rows * D, "mmdit.mlp");
    }
    plan_floatX(plan, &d->qkv, all * 3 * D, "mmdit.qkv");
    plan_floatX(plan, &d->attention, all * D, "mmdit.attention");
    plan_floatS(plan, &d->lse, all * heads, "mmdit.lse");
}

// The same of a single block; the last entry has the stream and its norm alone.
void mmdit_plan_single_stream(mmdit_t* m, plan_t* plan, int i) {
    mmdit_single_t* b = &m->singles[i];
    size_t rows = (size_t)m->capacity * (m->text_rows + m->image_rows);
    plan_floatS(plan, &b->x, rows * m->config.dim, "mmdit.x");
    plan_floatS(plan, &b->mean, rows, "mmdit.mean");
    plan_floatS(plan, &b->rstd, rows, "mmdit.rstd");
}
void mmdit_plan_single_branches(mmdit_t* m, plan_t* plan, int i) {
    mmdit_single_t* b = &m->singles[i];
    size_t D = m->config.dim, heads = m->config.heads, rows = (size_t)m->capacity * (m->text_rows + m->image_rows);
    plan_floatX(plan, &b->norm, rows * D, "mmdit.norm");
    if (i == m->config.singles) return;
    plan_floatX(plan, &b->qkv, rows * 3 * D, "mmdit.qkv");
    plan_floatX(plan, &b->raw, rows * 2 * D, "mmdit.raw");
    plan_floatS(plan, &b->qk_rstd, rows * 2 * heads, "mmdit.qk_rstd");
    plan_floatX(plan, &b->attention, rows * D, "mmdit.attention");
    plan_floatS(plan, &b->lse, rows * heads, "mmdit.lse");
    plan_floatX(plan, &b->pre, rows * 4 * D, "mmdit.pre");
    plan_floatX(plan, &b->hidden, rows * 4 * D, "mmdit.hidden");
    plan_floatX(plan, &b->branch, rows * D, "mmdit.branch");
}

// Everything that there is once an image and not once a token.
void mmdit_plan_condition(mmdit_t* m, plan_t* keep) {
    const mmdit_config_t* c = &m->config;
    size_t B = m->capacity, n = B * c->dim;
    plan_floatX(keep, &m->time_features, B * EMBEDDER_FEATURES, "mmdit.time_features");
    embedder_plan(&m->time, keep, m->capacity);
    if (c->vector) embedder_plan(&m->vector, keep, m->capacity);
    if (c->guidance) plan_floatX(keep, &m->guidance_features, B * EMBEDDER_FEATURES, "mmdit.guidance_features");
    if (c->guidance) embedder_plan(&m->guidance, keep, m->capacity);
    plan_floatS(keep, &m->condition, n, "mmdit.condition");
    plan_floatX(keep, &m->silu, n, "mmdit.silu");
    plan_floatX(keep, &m->modulation, B * m->M, "mmdit.modulation");
}

// Takes the size of a pass, over up to B latents of config.h x config.w with up to L text rows each, and plans what
// outlives the forward: tables, velocity and, with `train`, what the backward reads.
void mmdit_plan(mmdit_t* m, plan_t* keep, int B, int L, int train) {
    const mmdit_config_t* c = &m->config;
    if (B < 1 || L < 1) {
        fatal("text-to-image transformer %s planned for %d latents with %d text rows; give at least 1", c->id, B, L);
    }
    m->capacity = B;
    m->text_rows = L;
    m->image_rows = c->h * c->w;
    m->M = mmdit_modulations(c);
    m->train = train;
    size_t rows = (size_t)B * m->image_rows;
    plan_floatS(keep, &m->rope, (size_t)(L + m->image_rows) * (c->dim / c->heads), "mmdit.rope");
    plan_floatX(keep, &m->v, rows * c->C, "mmdit.v");
    plan_floatX(keep, &m->last, rows * c->dim, "mmdit.last");
    mmdit_plan_condition(m, keep);
    if (!train) return;
    for (int i = 0; i < c->doubles; i++) {
        mmdit_plan_double_stream(m, keep, i);
        if (!m->recompute) mmdit_plan_double_branches(m, keep, i);
    }
    for (int i = 0; i <= c->singles; i++) {
        mmdit_plan_single_stream(m, keep, i);
        if (!m->recompute || i == c->singles) mmdit_plan_single_branches(m, keep, i);
    }
}

// One block's memory for all blocks of both kinds: for a forward that no backward follows, or that the backward will
// run again. All of a kind have the same buffers in the same order, the last entry only the first of them.
void mmdit_plan_shared_block(mmdit_t* m, plan_t* work) {
    size_t mark = plan_mark(work);
    for (int i = 0; i < m->config.doubles; i++) {
        plan_rewind(work, mark);
        if (!m->train) mmdit_plan_double_stream(m, work, i);
        mmdit_plan_double_branches(m, work, i);
    }
    size_t end = plan_mark(work);
    for (int i = m->train ? m->config.singles - 1 : m->config.singles; i >= 0; i--) {
        plan_rewind(work, mark);
        if (!m->train) mmdit_plan_single_stream(m, work, i);
        mmdit_plan_single_branches(m, work, i);
    }
    if (plan_mark(work) < end) plan_rewind(work, end); // behind the larger of the two
}

// Plans what lives only inside mmdit_forward or mmdit_backward, after mmdit_plan.
void mmdit_plan_work(mmdit_t* m, plan_t* work) {
    size_t B = m->capacity, rows = B * (m->text_rows + m->image_rows), D = m->config.dim;
    plan_floatX(work, &m->wide, rows * 3 * D, "mmdit.wide");
    plan_floatS(work, &m->streams, rows * D, "mmdit.streams");
    if (!m->train || m->recompute) mmdit_plan_shared_block(m, work);
    if (!m->train) return;
    plan_floatS(work, &m->dstream, rows * D, "mmdit.dstream");
    plan_floatX(work, &m->dnorm, rows * D, "mmdit.dnorm");
    plan_floatX(work, &m->dbranch, rows * D, "mmdit.dbranch");
    plan_floatX(work, &m->dhidden, rows * 4 * D, "mmdit.dhidden");
    plan_floatX(work, &m->dqkv, rows * 3 * D, "mmdit.dqkv");
    plan_floatX(work, &m->dmodulation, B * m->M, "mmdit.dmodulation");
    plan_floatX(work, &m->dsilu, B * D, "mmdit.dsilu");
    plan_floatX(work, &m->dcondition, B * D, "mmdit.dcondition");
}

// The latents of the passes that follow are h x w, of no more positions than were planned. Writes the table of
// rotations, so it has to be called after planning, before the first pass.
void mmdit_set_size(mmdit_t* m, int h, int w) {
    mmdit_config_t* c = &m->config;
    if (h < 1 || w < 1 || h > m->image_rows / w) {
        fatal("latents of %d x %d for a text-to-image transformer that was planned for up to %d positions", h, w,
              m->image_rows);
    }
    c->h = h, c->w = w;
    m->N = h * w;
    size_t n = (size_t)(m->text_rows + m->N) * (c->dim / c->heads);
    floatS* table = (floatS*)malloc_check(n * sizeof(floatS), "the table of rotations");
    rotary_table(table, m->text_rows, h, w, c->axes);
    copy_to_device(m->rope, table, n * sizeof(floatS), 0); // behind the passes that read what was there
    free(table);
}

// ---------------------------------------------------------------------------------------------------------------------
// Where things lie

static inline int mmdit_rows(const mmdit_t* m, int k) { return k == MMDIT_TEXT ? m->in.L : m->N; }

// A stream's rows, `width` values each, in a buffer that holds both parts.
static inline size_t mmdit_part(const mmdit_t* m, int k, int width) {
    return k == MMDIT_TEXT ? 0 : (size_t)m->in.B * m->in.L * width;
}

// The rotations of an image's rows, from its first text row on, and of its image rows alone.
static inline const floatS* mmdit_rope(const mmdit_t* m, int k) {
    return m->rope + (size_t)(m->text_rows - (k == MMDIT_TEXT ? m->in.L : 0)) * (m->config.dim / m->config.heads);
}

// A block's modulation vectors, in the published order. Single blocks have the first three, the final layer two.
enum { MMDIT_SHIFT1, MMDIT_SCALE1, MMDIT_GATE1, MMDIT_SHIFT2, MMDIT_SCALE2, MMDIT_GATE2 };

// Image 0's vectors of a stream of double block i in `all` (B, M), the modulation or its gradient, D values each; the
// next image's are M values behind them. And of single block i.
static inline floatX* mmdit_double_vectors(const mmdit_t* m, floatX* all, int i, int k) {
    return all + (size_t)(2 * i + k) * 6 * m->config.dim;
}
static inline floatX* mmdit_single_vectors(const mmdit_t* m, floatX* all, int i) {
    return all + (size_t)(12 * m->config.doubles + 3 * i) * m->config.dim;
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

// From time, pooled text and guidance to the modulation of every block.
void mmdit_condition_forward(mmdit_t* m, const params_t* p, stream_t s) {
    const mmdit_config_t* c = &m->config;
    const mmdit_input_t* in = &m->in;
    timestep_features(m->time_features, in->t, MMDIT_TIME_SCALE, in->B, EMBEDDER_FREQUENCIES, s);
    embedder_forward(&m->time, p, m->time_features, in->B, s);
    if (c->vector) embedder_forward(&m->vector, p, in->pooled, in->B, s);
    if (c->guidance) {
        timestep_features(m->guidance_features, in->guidance, MMDIT_TIME_SCALE, in->B, EMBEDDER_FREQUENCIES, s);
        embedder_forward(&m->guidance, p, m->guidance_features, in->B, s);
    }
    condition_sum_forward(m->silu, m->condition, m->time.out, c->vector ? m->vector.out : NULL,
                          c->guidance ? m->guidance.out : NULL, in->B, c->dim, s);
    const mmdit_stream_t* first = &m->doubles[0].streams[0];
    matmul_forward(m->modulation, m->silu, params_at(p, first->mod_weight), params_at(p, first->mod_bias), in->B,
                   c->dim, m->M, s);
}

// norm1 of both streams of double block i; the norm of single block i.
static inline void mmdit_double_norm_forward(mmdit_t* m, int i, stream_t s) {
    for (int k = 0; k < MMDIT_STREAMS; k++) {
        mmdit_stream_t* b = &m->doubles[i].streams[k];
        int D = m->config.dim;
        const floatX* mod = mmdit_double_vectors(m, m->modulation, i, k);
        norm_modulate_forward(b->norm1, b->mean1, b->rstd1, b->x, NULL, mod + MMDIT_SHIFT1 * D, mod + MMDIT_SCALE1 * D,
                              m->M, m->in.B, mmdit_rows(m, k), D, MMDIT_NORM_EPS, s);
    }
}
static inline void mmdit_single_norm_forward(mmdit_t* m, int i, stream_t s) {
    mmdit_single_t* b = &m->singles[i];
    int D = m->config.dim;
    const floatX* mod = mmdit_single_vectors(m, m->modulation, i);
    norm_modulate_forward(b->norm, b->mean, b->rstd, b->x, NULL, mod + MMDIT_SHIFT1 * D, mod + MMDIT_SCALE1 * D, m->M,
                          m->in.B, m->T, D, MMDIT_NORM_EPS, s);
}

// From text and latent to the streams and their first norms.
void mmdit_embed_forward(mmdit_t* m, const params_t* p, stream_t s) {
    const mmdit_config_t* c = &m->config;
    const floatX* input[MMDIT_STREAMS] = {m->in.text, m->in.xt};
    int width[MMDIT_STREAMS] = {c->text, c->C};
    for (int k = 0; k < MMDIT_STREAMS; k++) {
        int R = mmdit_rows(m, k);
        matmul_forward(m->wide, input[k], params_at(p, m->in_weight[k]), params_at(p, m->in_bias[k]),
                       (size_t)m->in.B * R, width[k], c->dim, s);
        tokens_forward(m->doubles[0].streams[k].x, m->wide, NULL, NULL, NULL, m->in.B, R, c->dim, 0, 0, s);
    }
    mmdit_double_norm_forward(m, 0, s);
}

// Attention of double block i: from norm1 of the streams to what proj reads, in m->wide.
void mmdit_joint_attention_forward(mmdit_t* m, const params_t* p, int i, stream_t s) {
    mmdit_double_t* d = &m->doubles[i];
    int D = m->config.dim, NH = m->config.heads, HS = D / NH, B = m->in.B, L = m->in.L;
    floatX *text = m->wide, *image = m->wide + mmdit_part(m, MMDIT_IMAGE, 3 * D);
    for (int k = 0; k < MMDIT_STREAMS; k++) {
        mmdit_stream_t* b = &d->streams[k];
        floatX* qkv = m->wide + mmdit_part(m, k, 3 * D);
        int R = mmdit_rows(m, k);
        matmul_forward(qkv, b->norm1, params_at(p, b->qkv_weight), params_at(p, b->qkv_bias), (size_t)B * R, D, 3 * D,
                       s);
        qknorm_rope_forward(qkv, b->raw, b->qk_rstd, params_at(p, b->q_norm), params_at(p, b->k_norm), mmdit_rope(m, k),
                            B, R, NH, HS, ROPE_NEIGHBOURS, MMDIT_NORM_EPS, s);
    }
    concat_tokens(d->qkv, text, image, B, L, m->N, 3 * D, s);
    attention_forward(d->attention, d->lse, d->qkv, m->in.first, B, m->T, NH, HS, s);
    split_tokens(m->wide, m->wide + mmdit_part(m, MMDIT_IMAGE, D), d->attention, B, L, m->N, D, s);
}

// Double block i from norm1 to the outputs of the MLPs, which are not yet added to the streams.
void mmdit_double_forward(mmdit_t* m, const params_t* p, int i, stream_t s) {
    int D = m->config.dim;
    mmdit_joint_attention_forward(m, p, i, s);
    for (int k = 0; k < MMDIT_STREAMS; k++) {
        mmdit_stream_t* b = &m->doubles[i].streams[k];
        size_t rows = (size_t)m->in.B * mmdit_rows(m, k);
        const floatX* mod = mmdit_double_vectors(m, m->modulation, i, k);
        matmul_forward(b->proj, m->wide + mmdit_part(m, k, D), params_at(p, b->proj_weight), params_at(p, b->proj_bias),
                       rows, D, D, s);
        gated_norm_modulate_forward(b->middle, b->norm2, b->mean2, b->rstd2, b->x, b->proj, mod + MMDIT_GATE1 * D, NULL,
                                    mod + MMDIT_SHIFT2 * D, mod + MMDIT_SCALE2 * D, m->M, m->in.B, mmdit_rows(m, k), D,
                                    MMDIT_NORM_EPS, s);
        matmul_gelu_forward(b->hidden, b->pre, b->norm2, params_at(p, b->up_weight), params_at(p, b->up_bias), rows, D,
                            4 * D, ACT_GELU_TANH, s);
        matmul_forward(b->mlp, b->hidden, params_at(p, b->down_weight), params_at(p, b->down_bias), rows, 4 * D, D, s);
    }
}

// The MLPs' outputs of double block i are added to the streams: those of block i + 1 with their norms, or, behind the
// last, the stream of the single blocks.
void mmdit_double_end_forward(mmdit_t* m, int i, stream_t s) {
    int D = m->config.dim, B = m->in.B, joined = i == m->config.doubles - 1;
    for (int k = 0; k < MMDIT_STREAMS; k++) {
        mmdit_stream_t *b = &m->doubles[i].streams[k], *next = joined ? NULL : &m->doubles[i + 1].streams[k];
        const floatX* gate = mmdit_double_vectors(m, m->modulation, i, k) + MMDIT_GATE2 * D;
        const floatX* mod = joined ? NULL : mmdit_double_vectors(m, m->modulation, i + 1, k);
        if (joined) {
            gated_norm_modulate_forward(m->streams + mmdit_part(m, k, D), NULL, NULL, NULL, b->middle, b->mlp, gate,
                                        NULL, NULL, NULL, m->M, B, mmdit_rows(m, k), D, MMDIT_NORM_EPS, s);
        } else {
            gated_norm_modulate_forward(next->x, next->norm1, next->mean1, next->rstd1, b->middle, b->mlp, gate, NULL,
                                        mod + MMDIT_SHIFT1 * D, mod + MMDIT_SCALE1 * D, m->M, B, mmdit_rows(m, k), D,
                                        MMDIT_NORM_EPS, s);
        }
    }
    if (!joined) return;
    concat_stream(m->singles[0].x, m->streams, m->streams + mmdit_part(m, MMDIT_IMAGE, D), B, m->in.L, m->N, D, s);
    mmdit_single_norm_forward(m, 0, s);
}

// Single block i from its norm to what it adds to the stream.
void mmdit_single_forward(mmdit_t* m, const params_t* p, int i, stream_t s) {
    mmdit_single_t* b = &m->singles[i];
    int D = m->config.dim, NH = m->config.heads, HS = D / NH, B = m->in.B;
    size_t rows = (size_t)B * m->T;
    const floatX *linear1 = params_at(p, b->linear1_weight), *bias1 = params_at(p, b->linear1_bias);
    const floatX* linear2 = params_at(p, b->linear2_weight);
    matmul_forward(b->qkv, b->norm, linear1, bias1, rows, D, 3 * D, s);
    matmul_gelu_forward(b->hidden, b->pre, b->norm, linear1 + (size_t)3 * D * D, bias1 + 3 * D, rows, D, 4 * D,
                        ACT_GELU_TANH, s);
    qknorm_rope_forward(b->qkv, b->raw, b->qk_rstd, params_at(p, b->q_norm), params_at(p, b->k_norm),
                        mmdit_rope(m, MMDIT_TEXT), B, m->T, NH, HS, ROPE_NEIGHBOURS, MMDIT_NORM_EPS, s);
    attention_forward(b->attention, b->lse, b->qkv, m->in.first, B, m->T, NH, HS, s);
    matmul_forward(b->branch, b->attention, linear2, params_at(p, b->linear2_bias), rows, D, D, s);
    matmul_add_forward(b->branch, b->hidden, linear2 + (size_t)D * D, rows, 4 * D, D, s);
}

// Writes m->v. What `in` points to must live until the backward. Without `train` the blocks of a kind share memory,
// which is safe: a double block's stream passes through `middle`, and a single block's grows in place.
void mmdit_forward(mmdit_t* m, const params_t* p, mmdit_input_t in, stream_t s) {
    const mmdit_config_t* c = &m->config;
    if (in.B < 1 || in.B > m->capacity || in.L < 1 || in.L > m->text_rows) {
        fatal("%d latents with %d text rows for a pass that was planned for up to %d with %d", in.B, in.L, m->capacity,
              m->text_rows);
    }
    m->in = in;
    m->T = in.L + m->N;
    mmdit_condition_forward(m, p, s);
    mmdit_embed_forward(m, p, s);
    for (int i = 0; i < c->doubles; i++) {
        mmdit_double_forward(m, p, i, s);
        mmdit_double_end_forward(m, i, s);
    }
    for (int i = 0; i < c->singles; i++) {
        mmdit_single_t *b = &m->singles[i], *next = &m->singles[i + 1];
        const floatX* gate = mmdit_single_vectors(m, m->modulation, i) + MMDIT_GATE1 * c->dim;
        const floatX* mod = mmdit_single_vectors(m, m->modulation, i + 1);
        mmdit_single_forward(m, p, i, s);
        gated_norm_modulate_forward(next->x, next->norm, next->mean, next->rstd, b->x, b->branch, gate, NULL,
                                    mod + MMDIT_SHIFT1 * c->dim, mod + MMDIT_SCALE1 * c->dim, m->M, in.B, m->T, c->dim,
                                    MMDIT_NORM_EPS, s);
    }
    drop_prefix_forward(m->last, m->singles[c->singles].norm, in.B, m->T, in.L, c->dim, s);
    matmul_forward(m->v, m->last, params_at(p, m->linear_weight), params_at(p, m->linear_bias), (size_t)in.B * m->N,
                   c->dim, c->C, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward

// Single block i: from dnorm, the gradient of the norm that follows it, to dnorm of its own.
void mmdit_single_backward(mmdit_t* m, const params_t* p, int i, stream_t s) {
    mmdit_single_t *b = &m->singles[i], *next = &m->singles[i + 1];
    int D = m->config.dim, NH = m->config.heads, HS = D / NH, B = m->in.B;
    size_t rows = (size_t)B * m->T, qkv_values = (size_t)3 * D * D, out_values = (size_t)D * D;
    const floatX *linear1 = params_at(p, b->linear1_weight), *linear2 = params_at(p, b->linear2_weight);
    floatS *dlinear1 = params_grad(p, b->linear1_weight), *dlinear2 = params_grad(p, b->linear2_weight);
    floatS* dbias1 = params_grad(p, b->linear1_bias);
    const floatX* gate = mmdit_single_vectors(m, m->modulation, i) + MMDIT_GATE1 * D;
    const floatX* scale = mmdit_single_vectors(m, m->modulation, i + 1) + MMDIT_SCALE1 * D;
    floatX* dgate = mmdit_single_vectors(m, m->dmodulation, i) + MMDIT_GATE1 * D;
    floatX* dmod = mmdit_single_vectors(m, m->dmodulation, i + 1);
    gated_norm_modulate_backward(m->dstream, m->dbranch, dgate, NULL, dmod + MMDIT_SHIFT1 * D, dmod + MMDIT_SCALE1 * D,
                                 m->dnorm, next->x, b->branch, gate, NULL, scale, next->mean, next->rstd, m->M, B, m->T,
                                 D, s);
    floatX* dattention = m->dnorm; // whose last reader was the line above
    matmul_backward(dattention, dlinear2, params_grad(p, b->linear2_bias), m->dbranch, b->attention, linear2, rows, D,
                    D, s);
    matmul_backward(m->dhidden, dlinear2 ? dlinear2 + out_values : NULL, NULL, m->dbranch, b->hidden,
                    linear2 + out_values, rows, 4 * D, D, s);
    gelu_backward(m->dhidden, m->dhidden, b->pre, rows * 4 * D, ACT_GELU_TANH, s);
    attention_backward(m->dqkv, dattention, b->qkv, b->attention, b->lse, m->in.first, B, m->T, NH, HS, s);
    qknorm_rope_backward(m->dqkv, params_grad(p, b->q_norm), params_grad(p, b->k_norm), b->raw, b->qk_rstd,
                         params_at(p, b->q_norm), params_at(p, b->k_norm), mmdit_rope(m, MMDIT_TEXT), B, m->T, NH, HS,
                         ROPE_NEIGHBOURS, s);
    matmul_backward(m->dnorm, dlinear1, dbias1, m->dqkv, b->norm, linear1, rows, D, 3 * D, s);
    matmul_add_backward(m->dnorm, dlinear1 ? dlinear1 + qkv_values : NULL, dbias1 ? dbias1 + 3 * D : NULL, m->dhidden,
                        b->norm, linear1 + qkv_values, rows, D, 4 * D, s);
}

// Where the streams were joined: from the gradients of the single blocks' first norm and stream to the streams'.
void mmdit_join_backward(mmdit_t* m, stream_t s) {
    mmdit_single_t* b = &m->singles[0];
    int D = m->config.dim, B = m->in.B;
    const floatX* scale = mmdit_single_vectors(m, m->modulation, 0) + MMDIT_SCALE1 * D;
    floatX* dmod = mmdit_single_vectors(m, m->dmodulation, 0);
    norm_modulate_backward(m->dstream, NULL, dmod + MMDIT_SHIFT1 * D, dmod + MMDIT_SCALE1 * D, m->dnorm, b->x, NULL,
                           scale, b->mean, b->rstd, m->M, B, m->T, D, s);
    split_stream(m->streams, m->streams + mmdit_part(m, MMDIT_IMAGE, D), m->dstream, B, m->in.L, m->N, D, s);
}

// The MLP of a stream of double block i: to dnorm of norm2, from that of the next block's norm1, if there is one.
void mmdit_mlp_backward(mmdit_t* m, const params_t* p, int i, int k, stream_t s) {
    int D = m->config.dim, B = m->in.B, R = mmdit_rows(m, k);
    mmdit_stream_t* b = &m->doubles[i].streams[k];
    size_t rows = (size_t)B * R, part = mmdit_part(m, k, D);
    floatX *dnorm = m->dnorm + part, *dbranch = m->dbranch + part, *dhidden = m->dhidden + 4 * part;
    const floatX* gate = mmdit_double_vectors(m, m->modulation, i, k) + MMDIT_GATE2 * D;
    floatX* dgate = mmdit_double_vectors(m, m->dmodulation, i, k) + MMDIT_GATE2 * D;
    if (i == m->config.doubles - 1) { // joined
        gated_norm_modulate_backward(m->streams + part, dbranch, dgate, NULL, NULL, NULL, NULL, NULL, b->mlp, gate,
                                     NULL, NULL, NULL, NULL, m->M, B, R, D, s);
    } else {
        mmdit_stream_t* next = &m->doubles[i + 1].streams[k];
        const floatX* scale = mmdit_double_vectors(m, m->modulation, i + 1, k) + MMDIT_SCALE1 * D;
        floatX* dmod = mmdit_double_vectors(m, m->dmodulation, i + 1, k);
        gated_norm_modulate_backward(m->streams + part, dbranch, dgate, NULL, dmod + MMDIT_SHIFT1 * D,
                                     dmod + MMDIT_SCALE1 * D, dnorm, next->x, b->mlp, gate, NULL, scale, next->mean1,
                                     next->rstd1, m->M, B, R, D, s);
    }
    matmul_backward(dhidden, params_grad(p, b->down_weight), params_grad(p, b->down_bias), dbranch, b->hidden,
                    params_at(p, b->down_weight), rows, 4 * D, D, s);
    gelu_backward(dhidden, dhidden, b->pre, rows * 4 * D, ACT_GELU_TANH, s);
    matmul_backward(dnorm, params_grad(p, b->up_weight), params_grad(p, b->up_bias), dhidden, b->norm2,
                    params_at(p, b->up_weight), rows, D, 4 * D, s);
}

// The attention of double block i: from dnorm of norm2 to dnorm of norm1, of both streams.
void mmdit_joint_attention_backward(mmdit_t* m, const params_t* p, int i, stream_t s) {
    mmdit_double_t* d = &m->doubles[i];
    int D = m->config.dim, NH = m->config.heads, HS = D / NH, B = m->in.B, L = m->in.L;
    size_t image = mmdit_part(m, MMDIT_IMAGE, D);
    split_tokens(m->wide, m->wide + image, d->attention, B, L, m->N, D, s);
    for (int k = 0; k < MMDIT_STREAMS; k++) {
        mmdit_stream_t* b = &d->streams[k];
        size_t part = mmdit_part(m, k, D);
        const floatX* mod = mmdit_double_vectors(m, m->modulation, i, k);
        floatX *dmod = mmdit_double_vectors(m, m->dmodulation, i, k), *dbranch = m->dbranch + part;
        gated_norm_modulate_backward(m->streams + part, dbranch, dmod + MMDIT_GATE1 * D, NULL, dmod + MMDIT_SHIFT2 * D,
                                     dmod + MMDIT_SCALE2 * D, m->dnorm + part, b->middle, b->proj,
                                     mod + MMDIT_GATE1 * D, NULL, mod + MMDIT_SCALE2 * D, b->mean2, b->rstd2, m->M, B,
                                     mmdit_rows(m, k), D, s);
        matmul_backward(m->dnorm + part, params_grad(p, b->proj_weight), params_grad(p, b->proj_bias), dbranch,
                        m->wide + part, params_at(p, b->proj_weight), (size_t)B * mmdit_rows(m, k), D, D, s);
    }
    floatX* dattention = m->dbranch; // whose last readers were the lines above
    concat_tokens(dattention, m->dnorm, m->dnorm + image, B, L, m->N, D, s);
    attention_backward(m->dqkv, dattention, d->qkv, d->attention, d->lse, m->in.first, B, m->T, NH, HS, s);
    split_tokens(m->wide, m->wide + 3 * image, m->dqkv, B, L, m->N, 3 * D, s);
    for (int k = 0; k < MMDIT_STREAMS; k++) {
        mmdit_stream_t* b = &d->streams[k];
        floatX* dqkv = m->wide + mmdit_part(m, k, 3 * D);
        int R = mmdit_rows(m, k);
        qknorm_rope_backward(dqkv, params_grad(p, b->q_norm), params_grad(p, b->k_norm), b->raw, b->qk_rstd,
                             params_at(p, b->q_norm), params_at(p, b->k_norm), mmdit_rope(m, k), B, R, NH, HS,
                             ROPE_NEIGHBOURS, s);
        matmul_backward(m->dnorm + mmdit_part(m, k, D), params_grad(p, b->qkv_weight), params_grad(p, b->qkv_bias),
                        dqkv, b->norm1, params_at(p, b->qkv_weight), (size_t)B * R, D, 3 * D, s);
    }
}

// From dnorm of the first norms to the parameters of txt_in and img_in.
void mmdit_embed_backward(mmdit_t* m, const params_t* p, stream_t s) {
    const mmdit_config_t* c = &m->config;
    const floatX* input[MMDIT_STREAMS] = {m->in.text, m->in.xt};
    int D = c->dim, width[MMDIT_STREAMS] = {c->text, c->C};
    for (int k = 0; k < MMDIT_STREAMS; k++) {
        mmdit_stream_t* b = &m->doubles[0].streams[k];
        size_t part = mmdit_part(m, k, D), rows = (size_t)m->in.B * mmdit_rows(m, k);
        const floatX* scale = mmdit_double_vectors(m, m->modulation, 0, k) + MMDIT_SCALE1 * D;
        floatX *dmod = mmdit_double_vectors(m, m->dmodulation, 0, k), *dtokens = m->dbranch + part;
        norm_modulate_backward(m->streams + part, NULL, dmod + MMDIT_SHIFT1 * D, dmod + MMDIT_SCALE1 * D,
                               m->dnorm + part, b->x, NULL, scale, b->mean1, b->rstd1, m->M, m->in.B, mmdit_rows(m, k),
                               D, s);
        to_floatX(dtokens, m->streams + part, rows * D, s);
        matmul_backward(NULL, params_grad(p, m->in_weight[k]), params_grad(p, m->in_bias[k]), dtokens, input[k], NULL,
                        rows, width[k], D, s);
    }
}

// From the gradient of all modulation vectors to the embedders.
void mmdit_condition_backward(mmdit_t* m, const params_t* p, stream_t s) {
    const mmdit_stream_t* first = &m->doubles[0].streams[0];
    int D = m->config.dim, B = m->in.B;
    matmul_backward(m->dsilu, params_grad(p, first->mod_weight), params_grad(p, first->mod_bias), m->dmodulation,
                    m->silu, params_at(p, first->mod_weight), B, D, m->M, s);
    condition_sum_backward(m->dcondition, m->dsilu, m->condition, B, D, s);
    embedder_backward(&m->time, p, m->dcondition, m->dsilu, B, s); // dsilu's last reader was the line above
    if (m->config.vector) embedder_backward(&m->vector, p, m->dcondition, m->dsilu, B, s);
    if (m->config.guidance) embedder_backward(&m->guidance, p, m->dcondition, m->dsilu, B, s);
}

// Adds the gradient of every parameter that is trained to p->grads.
void mmdit_backward(mmdit_t* m, params_t* p,
                    const floatX* dv, // (B, h, w, C)
                    stream_t s) {
    const mmdit_config_t* c = &m->config;
    int D = c->dim, B = m->in.B;
    floatX* dlast = m->dbranch;
    matmul_backward(dlast, params_grad(p, m->linear_weight), params_grad(p, m->linear_bias), dv, m->last,
                    params_at(p, m->linear_weight), (size_t)B * m->N, D, c->C, s);
    drop_prefix_backward(m->dnorm, dlast, B, m->T, m->in.L, D, s);
    device_zero(m->dstream, (size_t)B * m->T * D * sizeof(floatS), s);
    for (int i = c->singles - 1; i >= 0; i--) {
        if (m->recompute) { // the same operations, the same numbers
            mmdit_single_norm_forward(m, i, s);
            mmdit_single_forward(m, p, i, s);
        }
        mmdit_single_backward(m, p, i, s);
        params_grads_done(p, m->singles[i].linear1_weight, s);
    }
    mmdit_join_backward(m, s);
    for (int i = c->doubles - 1; i >= 0; i--) {
        if (m->recompute) {
            mmdit_double_norm_forward(m, i, s);
            mmdit_double_forward(m, p, i, s);
        }
        for (int k = 0; k < MMDIT_STREAMS; k++) mmdit_mlp_backward(m, p, i, k, s);
        mmdit_joint_attention_backward(m, p, i, s);
        params_grads_done(p, m->doubles[i].streams[0].qkv_weight, s);
    }
    mmdit_embed_backward(m, p, s);
    mmdit_condition_backward(m, p, s);
}
