// lightningdit.h: LightningDiT, the diffusion transformer that learns the tokenizer's latents: from a noised latent, a
// time and a class to the velocity of the flow (common/ops.h, "Flow matching").
//
//   c         = time MLP(features of t) + class table[label];   s = SiLU(c)
//   modulation of every block = W s + b: (shift1, scale1, gate1, shift2, scale2, gate2), D numbers each
//   tokens    x = patch embedding of the latent + position table
//   block     : x <- x + gate1 proj(attention(rotate(qkv(n1))));    n1 = rmsnorm1(x) (1 + scale1) + shift1
//               x <- x + gate2 w3(SiLU(a) b), (a, b) = w12(n2);     n2 = rmsnorm2(x) (1 + scale2) + shift2
//   v         = linear(rmsnorm(x) (1 + scale) + shift), tokens back in the shape of the latent
//
// (Peebles & Xie 2023; Yao et al. 2025; RMSNorm: Zhang & Sennrich 2019; SwiGLU: Shazeer 2020; rotary positions: Su et
// al. 2021.) Variants: an MLP with tanh GELU for SwiGLU, a modulation without shifts, and QK-norm.
//
// DiT (Peebles & Xie 2023) and SiT (Ma et al. 2024) are the same transformer with the settings `classic` and `sigma`:
// LayerNorm without weight, an MLP with tanh GELU, no rotation; and twice as many output channels as the latent has,
// the second half for a variance. SiT's is not used. DiT predicts the noise of a diffusion process of 1000 times 0 to
// 999 instead of a velocity: what an output means is no matter of this file (common/drawing/ddpm_sampler.h).
//
// One matrix product each way. s is the same for all blocks, so the modulation matrices of all blocks and of the final
// layer stand one behind the other in memory, as do their biases, and are multiplied at once: (B, D) x (D, M), with
// M = 6 D depth + 2 D. Block i's six vectors are a piece of each row of the result, and so are their gradients.
//
// Every gated branch is followed by a norm, so the two are one operation, as in common/models/vit.h: block i ends by
// writing the stream and norm1 of block i + 1; the final norm, with the final layer's shift and scale, stands where
// block `depth` would have its norm1.
//
// Two position systems: a sine table that is added to the tokens (the column comes first in it), and the rotation of
// queries and keys (where the row comes first; not in classic networks). Both are tables in device memory, written by
// lightningdit_set_tables.
//
// SwiGLU is F = 8/3 D wide, rounded down; in memory each half of w12 has rows of zeros, and w3 columns of zeros, up to
// Fp, a multiple of 8. The hidden values there are SiLU(0) 0 = 0 and so are the gradients: the zeros stay.
//
// The residual stream is floatS. The backward needs about 15 D + 3 F numbers a token and block; with `recompute` only
// the stream where each block begins is kept, and the block's forward is run again just before its backward: a third
// more arithmetic. Nothing needs the gradient of the latent.
//
// Names are those of the published checkpoints. Look next at common/ops.h, "The diffusion transformer".
#pragma once
#include <assert.h>

// defines: params_t, param_table_t, param_add, param_add_padded, param_vector, param_matrix, params_at, ...
#include "common/models/params.h"
// defines: plan_t, plan_floatX, plan_floatS, plan_mark, plan_rewind
#include "common/models/plan.h"
// defines: embedder_t, embedder_*, EMBEDDER_FREQUENCIES, EMBEDDER_FEATURES
#include "common/models/embedder.h"
// defines: rotary_table, ROTARY_THETA
#include "common/models/rotary_table.h"
// defines: matmul_*, norm_modulate_*, gated_norm_modulate_*, qknorm_rope_*, attention_*, swiglu_*, ...
#include "common/ops.h"

// ---------------------------------------------------------------------------------------------------------------------
// Configurations

typedef struct {
    const char* id;
    int depth, dim, heads;
    int patch;            // a token is patch x patch positions of the latent
    int mlp_gelu;         // 1: fc2(gelu(fc1)) of width 4 dim; 0: SwiGLU
    int no_shift;         // 1: four modulation vectors a block, without the two shifts
    int qk_norm;          // 1: RMSNorm of each head's query and key
    int classic;          // 1: as DiT: LayerNorm without weight for RMSNorm, no rotation; comes with mlp_gelu
    int sigma;            // 1: 2 C channels come out
    int C, side, classes; // channels and side of the latent, number of classes: set by the caller
} lightningdit_config_t;

#define LIGHTNINGDIT_NORM_EPS 1e-6 // of every norm

//   id        depth  dim heads patch mlp_gelu no_shift qk_norm classic sigma
static const lightningdit_config_t lightningdit_configs[] = {
    {"B/1",      12,  768, 12, 1, 0, 0, 0, 0, 0, 0, 0, 0},
    {"B/2",      12,  768, 12, 2, 0, 0, 0, 0, 0, 0, 0, 0},
    {"L/2",      24, 1024, 16, 2, 0, 0, 0, 0, 0, 0, 0, 0},
    {"XL/1",     28, 1152, 16, 1, 0, 0, 0, 0, 0, 0, 0, 0},
    {"XL/2",     28, 1152, 16, 2, 0, 0, 0, 0, 0, 0, 0, 0},
    {"1p0B/1",   24, 1536, 24, 1, 0, 0, 0, 0, 0, 0, 0, 0},
    {"1p0B/2",   24, 1536, 24, 2, 0, 0, 0, 0, 0, 0, 0, 0},
    {"1p6B/1",   28, 1792, 28, 1, 0, 0, 0, 0, 0, 0, 0, 0},
    {"1p6B/2",   28, 1792, 28, 2, 0, 0, 0, 0, 0, 0, 0, 0},
    // SiT and DiT, on the latents of a Stable Diffusion autoencoder
    {"SiT-S/2",  12,  384,  6, 2, 1, 0, 0, 1, 1, 0, 0, 0},
    {"SiT-B/2",  12,  768, 12, 2, 1, 0, 0, 1, 1, 0, 0, 0},
    {"SiT-L/2",  24, 1024, 16, 2, 1, 0, 0, 1, 1, 0, 0, 0},
    {"SiT-XL/2", 28, 1152, 16, 2, 1, 0, 0, 1, 1, 0, 0, 0},
    // for the latents of the miniature tokenizer
    {"mini",      6,  128,  4, 1, 0, 0, 0, 0, 0, 0, 0, 0},
    // As small as a test can use. SwiGLU is 106 wide: no multiple of 8.
    {"tiny/1",    2,   40,  2, 1, 0, 0, 0, 0, 0, 0, 0, 0},
    {"tiny/2",    2,   40,  2, 2, 0, 0, 0, 0, 0, 0, 0, 0},
    {"SiT-tiny/2", 2,  40,  2, 2, 1, 0, 0, 1, 1, 0, 0, 0},
};
enum { LIGHTNINGDIT_CONFIGS = sizeof lightningdit_configs / sizeof lightningdit_configs[0] };

// The configuration of this name; an unknown one ends the program with the list of those there are.
const lightningdit_config_t* lightningdit_config_find(const char* id) {
    char known[512] = "";
    for (int i = 0; i < LIGHTNINGDIT_CONFIGS; i++) {
        if (!strcmp(lightningdit_configs[i].id, id)) return &lightningdit_configs[i];
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", lightningdit_configs[i].id);
    }
    fatal("there is no diffusion transformer named '%s'; choose one of: %s", id, known);
}

// Tokens; hidden width of the MLP, and that in memory; values of a token on both ends of the network.
static inline int lightningdit_tokens(const lightningdit_config_t* c) {
    return (c->side / c->patch) * (c->side / c->patch);
}
static inline int lightningdit_hidden(const lightningdit_config_t* c) {
    return c->mlp_gelu ? 4 * c->dim : (int)(2.0 / 3.0 * (4 * c->dim));
}
static inline int lightningdit_padded_hidden(const lightningdit_config_t* c) {
    return (lightningdit_hidden(c) + PARAM_ALIGNMENT - 1) / PARAM_ALIGNMENT * PARAM_ALIGNMENT;
}
static inline int lightningdit_token_values(const lightningdit_config_t* c) { return c->patch * c->patch * c->C; }
static inline int lightningdit_out_channels(const lightningdit_config_t* c) { return (c->sigma ? 2 : 1) * c->C; }
static inline int lightningdit_out_values(const lightningdit_config_t* c) {
    return c->patch * c->patch * lightningdit_out_channels(c);
}

// Modulation vectors of a block, and the length M of all blocks' and the final layer's together.
static inline int lightningdit_block_vectors(const lightningdit_config_t* c) { return c->no_shift ? 4 : 6; }
static inline int lightningdit_modulations(const lightningdit_config_t* c) {
    return (lightningdit_block_vectors(c) * c->depth + 2) * c->dim;
}

// ---------------------------------------------------------------------------------------------------------------------
// The model

enum { LIGHTNINGDIT_MAX_DEPTH = 48 };

typedef struct {
    // offsets of the parameters; w12 and w3 are fc1 and fc2 in an MLP with GELU
    size_t adaln_weight, adaln_bias, norm1_weight, qkv_weight, qkv_bias, q_norm, k_norm, proj_weight, proj_bias;
    size_t norm2_weight, w12_weight, w12_bias, w3_weight, w3_bias;
    // activations
    floatS* x;         // (B, T, D) the residual stream where the block begins
    floatS *mean1, *rstd1; // (B, T) mean1: of a LayerNorm
    floatX* norm1;     // (B, T, D) normalised and modulated
    floatX* qkv;       // (B, T, 3, NH, HS), queries and keys rotated
    floatX* raw;       // (B, T, 2, NH, HS) queries and keys before QK-norm
    floatS* qk_rstd;   // (B, T, 2, NH)
    floatX* attention; // (B, T, NH, HS)
    floatS* lse;       // (B, NH, T)
    floatX* proj;      // (B, T, D)
    floatS* middle;    // (B, T, D) the residual stream between attention and MLP
    floatS *mean2, *rstd2; // (B, T)
    floatX* norm2;     // (B, T, D)
    floatX* pre;       // (B, T, 2 Fp), or (B, T, F) before the GELU
    floatX* hidden;    // (B, T, Fp)
    floatX* mlp;       // (B, T, D)
} lightningdit_block_t;

// The memory plans hold addresses of this struct's members: it must stay where it is once it is planned.
typedef struct {
    lightningdit_config_t config;
    int recompute;          // set before planning: run each block's forward again in the backward
    size_t pos_embed, patch_weight, patch_bias, table; // offsets
    size_t linear_weight, linear_bias;
    lightningdit_block_t blocks[LIGHTNINGDIT_MAX_DEPTH + 1]; // blocks[depth]: stream at the end, final norm and adaLN
    int capacity;           // images, as planned
    int B;                  // images of the last forward
    int T;                  // tokens
    int M;                  // length of an image's modulation vectors
    int train;
    floatS* positions;      // (T, D) what is added to the tokens
    floatS* rope;           // (T, HS / 2, 2) cosine and sine; not where the network is classic
    floatX* time_features;  // (B, 256)
    embedder_t time;        // the time MLP
    floatS* condition;      // (B, D) c
    floatX* silu;           // (B, D) s = SiLU(c)
    floatX* modulation;     // (B, M)
    floatX* columns;        // (B, T, C patch^2), where patch > 1
    const floatX* embedded; // columns, or the caller's latent, which is the same where patch is 1
    const int* labels;      // (B) the caller's
    floatX* patches;        // (B, T, D)
    floatX* tokens;         // (B, T, patch^2 OC) at the end, and their gradient, where patch > 1
    floatX* v;              // (B, S, S, OC) the output: OC is C, or 2 C with `sigma`
    floatS* dstream;        // (B, T, D) gradient of the residual stream
    floatX* dnorm;          // (B, T, D) of a norm's output; of the attention's output
    floatX* dbranch;        // (B, T, D) of what a branch adds to the stream
    floatX* dwide;          // (B, T, max(2 Fp, 3 D)) inside a branch
    floatX* dhidden;        // (B, T, Fp)
    floatX* dmodulation;    // (B, M)
    floatX* dcondition;     // (B, D) of s, then of the time MLP's hidden layer
    floatX* dtime;          // (B, D)
} lightningdit_t;

// Xavier's bound: +-sqrt(6 / (inputs + outputs)).
static inline init_t lightningdit_xavier(int in, int out) { return init_uniform(sqrt(6.0 / (in + out))); }

// The MLP of a block. w12 is two matrices (F, D), w3 is (D, F); all are padded to Fp.
void lightningdit_register_mlp(lightningdit_block_t* b, const lightningdit_config_t* c, param_table_t* table,
                               const char* prefix) {
    int D = c->dim, F = lightningdit_hidden(c), Fp = lightningdit_padded_hidden(c), parts = c->mlp_gelu ? 1 : 2;
    char name[PARAM_NAME];
    int up[2] = {parts * F, D}, bias[1] = {parts * F}, down[2] = {D, F};
    init_t up_init = lightningdit_xavier(D, parts * F), down_init = lightningdit_xavier(F, D), zero = init_constant(0);
    param_name(name, prefix, c->mlp_gelu ? "mlp.fc1.weight" : "mlp.w12.weight");
    b->w12_weight = param_add_padded(table, name, 2, up, parts, F, D, Fp, D, up_init);
    param_name(name, prefix, c->mlp_gelu ? "mlp.fc1.bias" : "mlp.w12.bias");
    b->w12_bias = param_add_padded(table, name, 1, bias, parts, 1, F, 1, Fp, zero);
    param_name(name, prefix, c->mlp_gelu ? "mlp.fc2.weight" : "mlp.w3.weight");
    b->w3_weight = param_add_padded(table, name, 2, down, 1, D, F, D, Fp, down_init);
    b->w3_bias = param_vector(table, prefix, c->mlp_gelu ? "mlp.fc2.bias" : "mlp.w3.bias", D, zero);
}

// A block's tensors but those of its modulation, behind `prefix` ("blocks.3.").
void lightningdit_register_block(lightningdit_block_t* b, const lightningdit_config_t* c, param_table_t* table,
                                 const char* prefix) {
    init_t zero = init_constant(0), one = init_constant(1);
    int D = c->dim, HS = c->dim / c->heads;
    if (!c->classic) b->norm1_weight = param_vector(table, prefix, "norm1.weight", D, one);
    b->qkv_weight = param_matrix(table, prefix, "attn.qkv.weight", 3 * D, D, lightningdit_xavier(D, 3 * D));
    b->qkv_bias = param_vector(table, prefix, "attn.qkv.bias", 3 * D, zero);
    if (c->qk_norm) b->q_norm = param_vector(table, prefix, "attn.q_norm.weight", HS, one);
    if (c->qk_norm) b->k_norm = param_vector(table, prefix, "attn.k_norm.weight", HS, one);
    b->proj_weight = param_matrix(table, prefix, "attn.proj.weight", D, D, lightningdit_xavier(D, D));
    b->proj_bias = param_vector(table, prefix, "attn.proj.bias", D, zero);
    if (!c->classic) b->norm2_weight = param_vector(table, prefix, "norm2.weight", D, one);
    lightningdit_register_mlp(b, c, table, prefix);
}

// What is in front of block i's tensors; the final layer stands behind the last block.
static inline const char* lightningdit_prefix(const lightningdit_config_t* c, char* name, const char* prefix, int i) {
    char block[32] = "final_layer.";
    if (i < c->depth) snprintf(block, sizeof block, "blocks.%d.", i);
    return param_name(name, prefix, block); // (PARAM_NAME)
}

// The modulation of all blocks and the final layer: all weights, then all biases, each without a gap.
void lightningdit_register_modulation(lightningdit_t* m, param_table_t* table, const char* prefix) {
    const lightningdit_config_t* c = &m->config;
    char name[PARAM_NAME];
    size_t D = c->dim, block = lightningdit_block_vectors(c) * D;
    init_t zero = init_constant(0);
    for (int i = 0; i <= c->depth; i++) {
        int rows = i < c->depth ? (int)block : 2 * c->dim;
        lightningdit_prefix(c, name, prefix, i);
        m->blocks[i].adaln_weight = param_matrix(table, name, "adaLN_modulation.1.weight", rows, c->dim, zero);
        assert(m->blocks[i].adaln_weight == m->blocks[0].adaln_weight + i * block * D);
    }
    for (int i = 0; i <= c->depth; i++) {
        int rows = i < c->depth ? (int)block : 2 * c->dim;
        lightningdit_prefix(c, name, prefix, i);
        m->blocks[i].adaln_bias = param_vector(table, name, "adaLN_modulation.1.bias", rows, zero);
        assert(m->blocks[i].adaln_bias == m->blocks[0].adaln_bias + i * block);
    }
}

// A configuration that no memory can be laid out for ends the program.
static inline void lightningdit_check(const lightningdit_config_t* c) {
    if (c->depth < 1 || c->depth > LIGHTNINGDIT_MAX_DEPTH) {
        fatal("diffusion transformer %s has %d blocks; between 1 and %d are possible", c->id, c->depth,
              LIGHTNINGDIT_MAX_DEPTH);
    }
    if (c->dim < 8 || c->dim % 8 || c->heads < 1 || c->dim % c->heads || c->dim / c->heads % 4) {
        fatal("diffusion transformer %s is %d wide with %d heads; the width has to be a multiple of 8, and a head's a "
              "multiple of 4", c->id, c->dim, c->heads);
    }
    if (c->classic && (!c->mlp_gelu || c->qk_norm)) {
        fatal("diffusion transformer %s: a transformer like DiT has an MLP with GELU and no QK-norm", c->id);
    }
    if (c->C < 1 || c->classes < 1 || c->patch < 1 || c->side < c->patch || c->side % c->patch) {
        fatal("diffusion transformer %s cannot take latents of %d x %d x %d values and %d classes; the side has to be "
              "a multiple of %d, channels and classes at least 1", c->id, c->side, c->side, c->C, c->classes, c->patch);
    }
}

// Registers all tensors under the published names behind `prefix` with their initialisers. m->config is set beforehand.
// The position table comes first, so that it can be frozen (lightningdit_first_trained); then the modulation.
void lightningdit_register(lightningdit_t* m, param_table_t* table, const char* prefix) {
    const lightningdit_config_t* c = &m->config;
    lightningdit_check(c);
    char name[PARAM_NAME];
    int D = c->dim, P = c->patch, values = lightningdit_token_values(c), out = lightningdit_out_values(c);
    init_t zero = init_constant(0), normal = init_normal(0, 0.02);
    param_name(name, prefix, "pos_embed");
    m->pos_embed = param_add(table, name, 3, 1, lightningdit_tokens(c), D, 0, LAYOUT_PLAIN, zero);
    table->items[table->n - 1].decay = 0;
    lightningdit_register_modulation(m, table, prefix);
    param_name(name, prefix, "x_embedder.proj.weight");
    m->patch_weight = param_add(table, name, 4, D, c->C, P, P, LAYOUT_PLAIN, lightningdit_xavier(values, D));
    m->patch_bias = param_vector(table, prefix, "x_embedder.proj.bias", D, zero);
    embedder_register(&m->time, table, prefix, "t_embedder.mlp.0", "t_embedder.mlp.2", EMBEDDER_FEATURES, D);
    m->table = param_matrix(table, prefix, "y_embedder.embedding_table.weight", c->classes + 1, D, normal);
    for (int i = 0; i < c->depth; i++) {
        lightningdit_register_block(&m->blocks[i], c, table, lightningdit_prefix(c, name, prefix, i));
    }
    init_t one = init_constant(1);
    lightningdit_block_t* last = &m->blocks[c->depth];
    if (!c->classic) last->norm1_weight = param_vector(table, prefix, "final_layer.norm_final.weight", D, one);
    m->linear_weight = param_matrix(table, prefix, "final_layer.linear.weight", out, D, zero);
    m->linear_bias = param_vector(table, prefix, "final_layer.linear.bias", out, zero);
}

// Where the trained tensors begin: everything but the position table.
static inline size_t lightningdit_first_trained(const lightningdit_t* m) { return m->blocks[0].adaln_weight; }

// Multiply-accumulates of the forward of one latent: matrix products and attention.
size_t lightningdit_macs(const lightningdit_t* m) {
    const lightningdit_config_t* c = &m->config;
    size_t D = c->dim, T = lightningdit_tokens(c), mlp = (c->mlp_gelu ? 2 : 3) * (size_t)lightningdit_hidden(c) * D;
    size_t token = 4 * D * D + mlp + 2 * T * D;
    size_t ends = D * (lightningdit_token_values(c) + lightningdit_out_values(c));
    return c->depth * T * token + T * ends + lightningdit_modulations(c) * D + EMBEDDER_FEATURES * D + D * D;
}

// ---------------------------------------------------------------------------------------------------------------------
// Position tables

// table[i g + j] = [sin(j w), cos(j w), sin(i w), cos(i w)], w_k = theta^(-k / q), q = D / 4: the column comes first.
static inline void lightningdit_sines(floatS* table, int grid, int D) { // (grid^2, D)
    int q = D / 4;
    for (int n = 0; n < grid * grid; n++) {
        floatS* row = table + (size_t)n * D;
        for (int k = 0; k < q; k++) {
            double w = pow(ROTARY_THETA, -(double)k / q), x = n % grid * w, y = n / grid * w;
            row[k] = (floatS)sin(x);
            row[q + k] = (floatS)cos(x);
            row[2 * q + k] = (floatS)sin(y);
            row[3 * q + k] = (floatS)cos(y);
        }
    }
}

// Every weight by its initialiser, and the sines into the position table. lightningdit_set_tables is to follow.
void lightningdit_init(const lightningdit_t* m, params_t* p, uint64_t seed) {
    const lightningdit_config_t* c = &m->config;
    size_t n = (size_t)lightningdit_tokens(c) * c->dim;
    floatS* table = (floatS*)malloc_check(n * sizeof(floatS), "the position table");
    params_init(p, seed);
    lightningdit_sines(table, c->side / c->patch, c->dim);
    params_store(p, m->pos_embed, table, n);
    free(table);
}

// The stored position table in the best precision there is. A table of parameters that is frozen whole, as for
// sampling, keeps bfloat16 alone; if what it holds is the sines, rounded, they are taken as they were before.
static inline void lightningdit_read_positions(const lightningdit_t* m, const params_t* p, floatS* table) { // (T, D)
    const lightningdit_config_t* c = &m->config;
    size_t n = (size_t)lightningdit_tokens(c) * c->dim, same = 0;
    if (m->pos_embed < p->first) params_read_frozen(p, m->pos_embed, table, n);
    else copy_floats_to_host(table, params_at(p, m->pos_embed), n);
    if (!PARAMS_TWICE || (p->frozen && m->pos_embed < p->first)) return;
    floatS* sines = (floatS*)malloc_check(n * sizeof(floatS), "the position table");
    lightningdit_sines(sines, c->side / c->patch, c->dim);
    while (same < n && fabs(table[same] - sines[same]) <= fabs(sines[same]) / 256) same++;
    if (same == n) memcpy(table, sines, n * sizeof(floatS));
    free(sines);
}

// Writes what the operations read of positions. To be called after planning, and whenever the weights have been set.
void lightningdit_set_tables(lightningdit_t* m, const params_t* p) {
    const lightningdit_config_t* c = &m->config;
    size_t T = lightningdit_tokens(c), HS = c->dim / c->heads;
    floatS* table = (floatS*)malloc_check(T * c->dim * sizeof(floatS), "the position table");
    lightningdit_read_positions(m, p, table);
    copy_to_device(m->positions, table, T * c->dim * sizeof(floatS), 0);
    if (!c->classic) { // pairs of a head's first half turn by the row, those of the second half by the column
        int grid = c->side / c->patch, axes[3] = {0, (int)HS / 2, (int)HS / 2};
        rotary_table(table, 0, grid, grid, axes);
        copy_to_device(m->rope, table, T * HS * sizeof(floatS), 0);
    }
    free(table);
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

// What a block's backward cannot do without: the stream where it begins, and the statistic of its first norm.
void lightningdit_plan_stream(lightningdit_t* m, plan_t* plan, int i) {
    lightningdit_block_t* b = &m->blocks[i];
    size_t rows = (size_t)m->capacity * m->T;
    plan_floatS(plan, &b->x, rows * m->config.dim, "dit.x");
    if (m->config.classic) plan_floatS(plan, &b->mean1, rows, "dit.mean1");
    plan_floatS(plan, &b->rstd1, rows, "dit.rstd1");
}

// Everything between.
void lightningdit_plan_branches(lightningdit_t* m, plan_t* plan, int i) {
    const lightningdit_config_t* c = &m->config;
    lightningdit_block_t* b = &m->blocks[i];
    size_t rows = (size_t)m->capacity * m->T, D = c->dim, Fp = lightningdit_padded_hidden(c);
    plan_floatX(plan, &b->norm1, rows * D, "dit.norm1");
    if (i == c->depth) return;
    plan_floatX(plan, &b->qkv, rows * 3 * D, "dit.qkv");
    if (c->qk_norm) plan_floatX(plan, &b->raw, rows * 2 * D, "dit.raw");
    if (c->qk_norm) plan_floatS(plan, &b->qk_rstd, rows * 2 * c->heads, "dit.qk_rstd");
    plan_floatX(plan, &b->attention, rows * D, "dit.attention");
    plan_floatS(plan, &b->lse, rows * c->heads, "dit.lse");
    plan_floatX(plan, &b->proj, rows * D, "dit.proj");
    plan_floatS(plan, &b->middle, rows * D, "dit.middle");
    if (c->classic) plan_floatS(plan, &b->mean2, rows, "dit.mean2");
    plan_floatS(plan, &b->rstd2, rows, "dit.rstd2");
    plan_floatX(plan, &b->norm2, rows * D, "dit.norm2");
    plan_floatX(plan, &b->pre, rows * (c->mlp_gelu ? 1 : 2) * Fp, "dit.pre");
    plan_floatX(plan, &b->hidden, rows * Fp, "dit.hidden");
    plan_floatX(plan, &b->mlp, rows * D, "dit.mlp");
}

// Everything that there is once an image and not once a token.
void lightningdit_plan_condition(lightningdit_t* m, plan_t* keep) {
    size_t n = (size_t)m->capacity * m->config.dim;
    plan_floatX(keep, &m->time_features, (size_t)m->capacity * EMBEDDER_FEATURES, "dit.time_features");
    embedder_plan(&m->time, keep, m->capacity);
    plan_floatS(keep, &m->condition, n, "dit.condition");
    plan_floatX(keep, &m->silu, n, "dit.silu");
    plan_floatX(keep, &m->modulation, (size_t)m->capacity * m->M, "dit.modulation");
}

// Takes the size of a pass, over up to B latents, and plans what outlives the forward: the tables, the velocity and,
// with `train`, what the backward reads.
void lightningdit_plan(lightningdit_t* m, plan_t* keep, int B, int train) {
    const lightningdit_config_t* c = &m->config;
    if (B < 1) fatal("diffusion transformer %s planned for %d latents; give at least 1", c->id, B);
    m->capacity = B;
    m->T = lightningdit_tokens(c);
    m->M = lightningdit_modulations(c);
    m->train = train;
    size_t rows = (size_t)B * m->T;
    plan_floatS(keep, &m->positions, (size_t)m->T * c->dim, "dit.positions");
    if (!c->classic) plan_floatS(keep, &m->rope, (size_t)m->T * (c->dim / c->heads), "dit.rope");
    plan_floatX(keep, &m->v, rows * lightningdit_out_values(c), "dit.v");
    lightningdit_plan_condition(m, keep);
    if (!train) return;
    if (c->patch > 1) plan_floatX(keep, &m->columns, rows * lightningdit_token_values(c), "dit.columns");
    for (int i = 0; i <= c->depth; i++) {
        lightningdit_plan_stream(m, keep, i);
        if (!m->recompute || i == c->depth) lightningdit_plan_branches(m, keep, i);
    }
}

// One block's memory for all blocks: for a forward that no backward follows, or that the backward will run again. All
// have the same buffers in the same order, the last entry only the first of them: hence it comes first.
void lightningdit_plan_shared_block(lightningdit_t* m, plan_t* work) {
    size_t mark = plan_mark(work);
    for (int i = m->train ? m->config.depth - 1 : m->config.depth; i >= 0; i--) {
        plan_rewind(work, mark);
        if (!m->train) lightningdit_plan_stream(m, work, i);
        lightningdit_plan_branches(m, work, i);
    }
}

// Plans what lives only inside lightningdit_forward or lightningdit_backward, after lightningdit_plan.
void lightningdit_plan_work(lightningdit_t* m, plan_t* work) {
    const lightningdit_config_t* c = &m->config;
    size_t B = m->capacity, rows = B * m->T, D = c->dim, Fp = lightningdit_padded_hidden(c);
    size_t wide = (c->mlp_gelu ? 1 : 2) * Fp, values = lightningdit_token_values(c);
    plan_floatX(work, &m->patches, rows * D, "dit.patches");
    if (c->patch > 1) plan_floatX(work, &m->tokens, rows * lightningdit_out_values(c), "dit.tokens");
    if (c->patch > 1 && !m->train) plan_floatX(work, &m->columns, rows * values, "dit.columns");
    if (!m->train || m->recompute) lightningdit_plan_shared_block(m, work);
    if (!m->train) return;
    plan_floatS(work, &m->dstream, rows * D, "dit.dstream");
    plan_floatX(work, &m->dnorm, rows * D, "dit.dnorm");
    plan_floatX(work, &m->dbranch, rows * D, "dit.dbranch");
    plan_floatX(work, &m->dwide, rows * (wide > 3 * D ? wide : 3 * D), "dit.dwide");
    if (!c->mlp_gelu) plan_floatX(work, &m->dhidden, rows * Fp, "dit.dhidden");
    plan_floatX(work, &m->dmodulation, B * m->M, "dit.dmodulation");
    plan_floatX(work, &m->dcondition, B * D, "dit.dcondition");
    plan_floatX(work, &m->dtime, B * D, "dit.dtime");
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

// A block's modulation vectors, in the published order. The final layer has the first two.
typedef enum { DIT_SHIFT1, DIT_SCALE1, DIT_GATE1, DIT_SHIFT2, DIT_SCALE2, DIT_GATE2 } dit_vector_t;

// Image 0's vector of block i in `all` (B, M), the modulation or its gradient; the next image's is M values behind it.
// NULL: a shift that the model does not have.
static inline floatX* lightningdit_vector(const lightningdit_t* m, floatX* all, int i, dit_vector_t vector) {
    const lightningdit_config_t* c = &m->config;
    int place = (int)vector;
    if (c->no_shift && i < c->depth) {
        if (vector == DIT_SHIFT1 || vector == DIT_SHIFT2) return NULL;
        place -= vector < DIT_SHIFT2 ? 1 : 2;
    }
    return all + ((size_t)i * lightningdit_block_vectors(c) + place) * c->dim;
}

// From time and class to the modulation of every block.
void lightningdit_condition_forward(lightningdit_t* m, const params_t* p, const floatS* t, const int* labels,
                                    stream_t s) {
    int D = m->config.dim, B = m->B;
    timestep_features(m->time_features, t, 1, B, EMBEDDER_FREQUENCIES, s);
    embedder_forward(&m->time, p, m->time_features, B, s);
    condition_forward(m->silu, m->condition, m->time.out, params_at(p, m->table), labels, m->config.classes + 1, B, D,
                      s);
    matmul_forward(m->modulation, m->silu, params_at(p, m->blocks[0].adaln_weight),
                   params_at(p, m->blocks[0].adaln_bias), B, D, m->M, s);
}

// The weight of a norm and its gradient: NULL where the norms have none.
static inline const floatX* lightningdit_norm_weight(const lightningdit_t* m, const params_t* p, size_t offset) {
    return m->config.classic ? NULL : params_at(p, offset);
}
static inline floatS* lightningdit_norm_grad(const lightningdit_t* m, const params_t* p, size_t offset) {
    return m->config.classic ? NULL : params_grad(p, offset);
}

// norm1 of block i of the stream that stands in its x.
static inline void lightningdit_norm1_forward(lightningdit_t* m, const params_t* p, int i, stream_t s) {
    lightningdit_block_t* b = &m->blocks[i];
    norm_modulate_forward(b->norm1, b->mean1, b->rstd1, b->x, lightningdit_norm_weight(m, p, b->norm1_weight),
                          lightningdit_vector(m, m->modulation, i, DIT_SHIFT1),
                          lightningdit_vector(m, m->modulation, i, DIT_SCALE1), m->M, m->B, m->T, m->config.dim,
                          LIGHTNINGDIT_NORM_EPS, s);
}

// From the latent to the tokens and their first norm.
void lightningdit_embed_forward(lightningdit_t* m, const params_t* p, const floatX* xt, stream_t s) {
    const lightningdit_config_t* c = &m->config;
    m->embedded = xt;
    if (c->patch > 1) {
        patchify_forward(m->columns, xt, m->B, c->side, c->side, c->C, c->patch, s);
        m->embedded = m->columns;
    }
    matmul_forward(m->patches, m->embedded, params_at(p, m->patch_weight), params_at(p, m->patch_bias),
                   (size_t)m->B * m->T, lightningdit_token_values(c), c->dim, s);
    position_add_forward(m->blocks[0].x, m->patches, m->positions, m->B, m->T, c->dim, s);
    lightningdit_norm1_forward(m, p, 0, s);
}

// QK-norm's weight and its gradient: NULL where the model has none.
static inline const floatX* lightningdit_qk_weight(const lightningdit_t* m, const params_t* p, size_t offset) {
    return m->config.qk_norm ? params_at(p, offset) : NULL;
}
static inline floatS* lightningdit_qk_grad(const lightningdit_t* m, const params_t* p, size_t offset) {
    return m->config.qk_norm ? params_grad(p, offset) : NULL;
}

// Block i from norm2 to what the MLP adds to the stream.
void lightningdit_mlp_forward(lightningdit_t* m, const params_t* p, int i, stream_t s) {
    const lightningdit_config_t* c = &m->config;
    lightningdit_block_t* b = &m->blocks[i];
    int D = c->dim, Fp = lightningdit_padded_hidden(c);
    size_t rows = (size_t)m->B * m->T;
    const floatX *w12 = params_at(p, b->w12_weight), *w12_bias = params_at(p, b->w12_bias);
    if (c->mlp_gelu) {
        matmul_gelu_forward(b->hidden, b->pre, b->norm2, w12, w12_bias, rows, D, Fp, ACT_GELU_TANH, s);
    } else {
        matmul_forward(b->pre, b->norm2, w12, w12_bias, rows, D, 2 * Fp, s);
        swiglu_forward(b->hidden, b->pre, rows, Fp, s);
    }
    matmul_forward(b->mlp, b->hidden, params_at(p, b->w3_weight), params_at(p, b->w3_bias), rows, Fp, D, s);
}

// Block i from norm1 to the output of the MLP, which is not yet added to the stream.
void lightningdit_branches_forward(lightningdit_t* m, const params_t* p, int i, stream_t s) {
    const lightningdit_config_t* c = &m->config;
    lightningdit_block_t* b = &m->blocks[i];
    int D = c->dim, NH = c->heads, HS = D / NH;
    size_t rows = (size_t)m->B * m->T;
    matmul_forward(b->qkv, b->norm1, params_at(p, b->qkv_weight), params_at(p, b->qkv_bias), rows, D, 3 * D, s);
    if (!c->classic) {
        qknorm_rope_forward(b->qkv, b->raw, b->qk_rstd, lightningdit_qk_weight(m, p, b->q_norm),
                            lightningdit_qk_weight(m, p, b->k_norm), m->rope, m->B, m->T, NH, HS, ROPE_NEIGHBOURS,
                            LIGHTNINGDIT_NORM_EPS, s);
    }
    attention_forward(b->attention, b->lse, b->qkv, NULL, m->B, m->T, NH, HS, s);
    matmul_forward(b->proj, b->attention, params_at(p, b->proj_weight), params_at(p, b->proj_bias), rows, D, D, s);
    gated_norm_modulate_forward(b->middle, b->norm2, b->mean2, b->rstd2, b->x, b->proj,
                                lightningdit_vector(m, m->modulation, i, DIT_GATE1),
                                lightningdit_norm_weight(m, p, b->norm2_weight),
                                lightningdit_vector(m, m->modulation, i, DIT_SHIFT2),
                                lightningdit_vector(m, m->modulation, i, DIT_SCALE2), m->M, m->B, m->T, D,
                                LIGHTNINGDIT_NORM_EPS, s);
    lightningdit_mlp_forward(m, p, i, s);
}

// From the final norm to the velocity.
static inline void lightningdit_final_forward(lightningdit_t* m, const params_t* p, stream_t s) {
    const lightningdit_config_t* c = &m->config;
    floatX* tokens = c->patch > 1 ? m->tokens : m->v;
    matmul_forward(tokens, m->blocks[c->depth].norm1, params_at(p, m->linear_weight), params_at(p, m->linear_bias),
                   (size_t)m->B * m->T, c->dim, lightningdit_out_values(c), s);
    if (c->patch == 1) return;
    unpatchify_forward(m->v, tokens, m->B, c->side, c->side, lightningdit_out_channels(c), c->patch, s);
}

// Writes m->v. What the backward needs of the caller's must live until then: labels and, where patch is 1, xt. Without
// `train` blocks[i].x and blocks[i + 1].x are the same memory, which is safe: the stream passes through `middle`.
void lightningdit_forward(lightningdit_t* m, const params_t* p,
                          const floatX* xt,  // (B, S, S, C) latents on their way from noise (time 0) to data (time 1)
                          const floatS* t,   // (B) device memory
                          const int* labels, // (B) device memory, in [0, classes]; `classes` stands for no class
                          int B, stream_t s) {
    if (B < 1 || B > m->capacity) fatal("%d latents for a pass that was planned for up to %d", B, m->capacity);
    m->B = B;
    m->labels = labels;
    lightningdit_condition_forward(m, p, t, labels, s);
    lightningdit_embed_forward(m, p, xt, s);
    for (int i = 0; i < m->config.depth; i++) {
        lightningdit_block_t* b = &m->blocks[i];
        lightningdit_block_t* next = &m->blocks[i + 1];
        lightningdit_branches_forward(m, p, i, s);
        gated_norm_modulate_forward(next->x, next->norm1, next->mean1, next->rstd1, b->middle, b->mlp,
                                    lightningdit_vector(m, m->modulation, i, DIT_GATE2),
                                    lightningdit_norm_weight(m, p, next->norm1_weight),
                                    lightningdit_vector(m, m->modulation, i + 1, DIT_SHIFT1),
                                    lightningdit_vector(m, m->modulation, i + 1, DIT_SCALE1), m->M, B, m->T,
                                    m->config.dim, LIGHTNINGDIT_NORM_EPS, s);
    }
    lightningdit_final_forward(m, p, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward

// The MLP branch of block i: from dnorm, the gradient of the norm that follows the block, to dnorm of norm2.
void lightningdit_mlp_backward(lightningdit_t* m, const params_t* p, int i, stream_t s) {
    const lightningdit_config_t* c = &m->config;
    lightningdit_block_t* b = &m->blocks[i];
    lightningdit_block_t* next = &m->blocks[i + 1];
    int D = c->dim, Fp = lightningdit_padded_hidden(c), wide = (c->mlp_gelu ? 1 : 2) * Fp;
    size_t rows = (size_t)m->B * m->T;
    floatX* dhidden = c->mlp_gelu ? m->dwide : m->dhidden;
    gated_norm_modulate_backward(m->dstream, m->dbranch, lightningdit_vector(m, m->dmodulation, i, DIT_GATE2),
                                 lightningdit_norm_grad(m, p, next->norm1_weight),
                                 lightningdit_vector(m, m->dmodulation, i + 1, DIT_SHIFT1),
                                 lightningdit_vector(m, m->dmodulation, i + 1, DIT_SCALE1), m->dnorm, next->x,
                                 b->mlp, lightningdit_vector(m, m->modulation, i, DIT_GATE2),
                                 lightningdit_norm_weight(m, p, next->norm1_weight),
                                 lightningdit_vector(m, m->modulation, i + 1, DIT_SCALE1), next->mean1, next->rstd1,
                                 m->M, m->B, m->T, D, s);
    matmul_backward(dhidden, params_grad(p, b->w3_weight), params_grad(p, b->w3_bias), m->dbranch, b->hidden,
                    params_at(p, b->w3_weight), rows, Fp, D, s);
    floatS* dbias = params_grad(p, b->w12_bias);
    if (c->mlp_gelu) gelu_backward(m->dwide, dhidden, b->pre, rows * Fp, ACT_GELU_TANH, s);
    else swiglu_backward(m->dwide, dbias, dhidden, b->pre, rows, Fp, s);
    matmul_backward(m->dnorm, params_grad(p, b->w12_weight), c->mlp_gelu ? dbias : NULL, m->dwide, b->norm2,
                    params_at(p, b->w12_weight), rows, D, wide, s);
}

// The attention branch of block i: from dnorm of norm2 to dnorm of norm1.
void lightningdit_attention_backward(lightningdit_t* m, const params_t* p, int i, stream_t s) {
    lightningdit_block_t* b = &m->blocks[i];
    int D = m->config.dim, NH = m->config.heads, HS = D / NH;
    size_t rows = (size_t)m->B * m->T;
    gated_norm_modulate_backward(m->dstream, m->dbranch, lightningdit_vector(m, m->dmodulation, i, DIT_GATE1),
                                 lightningdit_norm_grad(m, p, b->norm2_weight),
                                 lightningdit_vector(m, m->dmodulation, i, DIT_SHIFT2),
                                 lightningdit_vector(m, m->dmodulation, i, DIT_SCALE2), m->dnorm, b->middle, b->proj,
                                 lightningdit_vector(m, m->modulation, i, DIT_GATE1),
                                 lightningdit_norm_weight(m, p, b->norm2_weight),
                                 lightningdit_vector(m, m->modulation, i, DIT_SCALE2), b->mean2, b->rstd2, m->M, m->B,
                                 m->T, D, s);
    floatX* dattention = m->dnorm; // whose last reader was the line above
    matmul_backward(dattention, params_grad(p, b->proj_weight), params_grad(p, b->proj_bias), m->dbranch, b->attention,
                    params_at(p, b->proj_weight), rows, D, D, s);
    attention_backward(m->dwide, dattention, b->qkv, b->attention, b->lse, NULL, m->B, m->T, NH, HS, s);
    if (!m->config.classic) {
        qknorm_rope_backward(m->dwide, lightningdit_qk_grad(m, p, b->q_norm), lightningdit_qk_grad(m, p, b->k_norm),
                             b->raw, b->qk_rstd, lightningdit_qk_weight(m, p, b->q_norm),
                             lightningdit_qk_weight(m, p, b->k_norm), m->rope, m->B, m->T, NH, HS, ROPE_NEIGHBOURS, s);
    }
    matmul_backward(m->dnorm, params_grad(p, b->qkv_weight), params_grad(p, b->qkv_bias), m->dwide, b->norm1,
                    params_at(p, b->qkv_weight), rows, D, 3 * D, s);
}

// From dnorm of the first norm to the patch embedding's parameters.
void lightningdit_embed_backward(lightningdit_t* m, const params_t* p, stream_t s) {
    lightningdit_block_t* b = &m->blocks[0];
    int D = m->config.dim;
    size_t rows = (size_t)m->B * m->T;
    norm_modulate_backward(m->dstream, lightningdit_norm_grad(m, p, b->norm1_weight),
                           lightningdit_vector(m, m->dmodulation, 0, DIT_SHIFT1),
                           lightningdit_vector(m, m->dmodulation, 0, DIT_SCALE1), m->dnorm, b->x,
                           lightningdit_norm_weight(m, p, b->norm1_weight),
                           lightningdit_vector(m, m->modulation, 0, DIT_SCALE1), b->mean1, b->rstd1, m->M, m->B, m->T,
                           D, s);
    floatX* dpatches = m->dbranch;
    to_floatX(dpatches, m->dstream, rows * D, s);
    matmul_backward(NULL, params_grad(p, m->patch_weight), params_grad(p, m->patch_bias), dpatches, m->embedded,
                    params_at(p, m->patch_weight), rows, lightningdit_token_values(&m->config), D, s);
}

// From the gradient of all modulation vectors to class table and time MLP.
void lightningdit_condition_backward(lightningdit_t* m, const params_t* p, stream_t s) {
    int D = m->config.dim, B = m->B;
    size_t weight = m->blocks[0].adaln_weight;
    matmul_backward(m->dcondition, params_grad(p, weight), params_grad(p, m->blocks[0].adaln_bias), m->dmodulation,
                    m->silu, params_at(p, weight), B, D, m->M, s);
    condition_backward(m->dtime, params_grad(p, m->table), m->dcondition, m->condition, m->labels,
                       m->config.classes + 1, B, D, s);
    embedder_backward(&m->time, p, m->dtime, m->dcondition, B, s); // dcondition's last reader was the line above
}

// Adds the gradient of every parameter that is trained to p->grads.
void lightningdit_backward(lightningdit_t* m, params_t* p,
                           const floatX* dv, // (B, S, S, OC)
                           stream_t s) {
    const lightningdit_config_t* c = &m->config;
    size_t rows = (size_t)m->B * m->T;
    if (c->patch > 1) {
        unpatchify_backward(m->tokens, dv, m->B, c->side, c->side, lightningdit_out_channels(c), c->patch, s);
        dv = m->tokens;
    }
    matmul_backward(m->dnorm, params_grad(p, m->linear_weight), params_grad(p, m->linear_bias), dv,
                    m->blocks[c->depth].norm1, params_at(p, m->linear_weight), rows, c->dim,
                    lightningdit_out_values(c), s);
    device_zero(m->dstream, rows * c->dim * sizeof(floatS), s);
    for (int i = c->depth - 1; i >= 0; i--) {
        if (m->recompute) { // the same operations, the same numbers
            lightningdit_norm1_forward(m, p, i, s);
            lightningdit_branches_forward(m, p, i, s);
        }
        lightningdit_mlp_backward(m, p, i, s);
        lightningdit_attention_backward(m, p, i, s);
        params_grads_done(p, m->blocks[i].qkv_weight, s); // before it stands norm1, which block i - 1 ends with
    }
    lightningdit_embed_backward(m, p, s);
    lightningdit_condition_backward(m, p, s);
}
