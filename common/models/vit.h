// vit.h: the vision transformer that turns an image into a map of features. One code path for DINOv2 (with and without
// register tokens), DINOv3, MAE and SigLIP 2; a configuration says which.
//
//   pixels    = the image, resized so that the `factor` pixels that are to make a token (16 in the tokenizer) become
//               the `patch` pixels that the weights expect, and normalised as in the model's own training
//   tokens    = [class token, registers, patch embedding] + position embedding
//   block     : x <- x + gamma1 proj(attention(qkv(norm1(x))));   x <- x + gamma2 fc2(gelu(fc1(norm2(x))))
//   features  = norm(x) without the class token and the registers: (B, GH, GW, D), the input of the adapter
//
// (Dosovitskiy et al. 2021; LayerScale gamma: Touvron et al. 2021; registers: Darcet et al. 2024.) Every addition to
// the residual stream is followed by a LayerNorm, so the two are one operation: block i ends by writing the stream
// and norm1 of block i + 1. The final norm stands where block `depth` would have its norm1, so no block is special.
//
// The position table keeps the size it has in the checkpoint (37 x 37 for DINOv2) and is resampled in every forward: so
// all image sizes train the same table.
//
// DINOv3 has no table: its queries and keys are rotated by where their patch lies in the image, from -1 to 1 along each
// axis (rope_grid); those of class token and registers are not. As in timm, queries, keys and values have no bias (the
// distilled models are published with biases that are zero), and the periods of the rotation are computed in full
// precision (facebook's files hold them too, rounded to bfloat16).
//
// The residual stream is floatS, as it is under the reference's autocast: in bf16 each of its 2 depth additions would
// round all of it.
//
// The backward walks the same chain from the end; `dstream` is the gradient of the residual stream, to which each
// norm adds its part. It needs what the forward saved, about 18 D numbers a token and block. With `recompute` only
// the stream (D) is kept and each block's forward is run again just before its backward: a third more arithmetic.
//
// A frozen encoder can be folded (`fold`, then vit_fold once its weights are there), the same function with less work:
//   - resize and normalisation go into the patch embedding. Token (gy, gx) of the resized image reads nothing but the
//     factor x factor pixels that it stands for, and that linearly: with R (patch, factor) the bilinear interpolation
//     of one axis, W'[d,c] = a_c R^T W[d,c] R and bias'[d] = bias[d] + sum_c b_c sum W[d,c], colours a_c x + b_c.
//   - LayerScale goes into the projections before it: W'[o,:] = gamma[o] W[o,:], bias'[o] = gamma[o] bias[o].
//
// What stands behind the patch embedding is the trunk (vit_trunk_forward, ...). It has functions of its own, for tokens
// that come from elsewhere: common/models/large_decoder.h.
//
// With low-rank pairs (lora.h; set lora.config, call vit_register_lora behind vit_register) all of the above is frozen,
// and the four linear layers of each block learn beside themselves: by one line behind each product, which does nothing
// without them.
//
// Left out: dropout and stochastic depth (zero in these models), and the gradient of the image, which nothing asks for.
// Names are those of timm (vision_transformer.py; DINOv3: eva.py). Look next at common/models/weights.h, which reads
// the public files, and at common/models/adapter.h, which follows the features.
#pragma once
#include <assert.h>

// defines: params_t, param_table_t, param_add, param_vector, param_matrix, params_at, params_grad, init_*, ...
#include "common/models/params.h"
// defines: plan_t, plan_floatX, plan_floatS, plan_mark, plan_rewind
#include "common/models/plan.h"
// defines: lora_t, lora_pair_t, lora_register, lora_plan_work, lora_forward, lora_backward
#include "common/models/lora.h"
// defines: matmul_*, gelu_*, layernorm_*, residual_layernorm_*, attention_*, qknorm_rope_*, tokens_*, ...
#include "common/ops.h"

// ---------------------------------------------------------------------------------------------------------------------
// Configurations

typedef enum {
    NORMALISE_NONE,     // the image in [-1, 1] as it is
    NORMALISE_IMAGENET, // mean and standard deviation of ImageNet's colours
} normalise_t;

typedef struct {
    const char* id;
    int patch;         // pixels a token and axis in what the ViT is fed
    int dim, depth, heads, mlp_dim;
    int cls;           // 1: a class token comes first
    int registers;     // register tokens behind it
    int pos_class;     // 1: the position table has a row for the class token, before the grid
    int pos_grid;      // rows and columns of the position table; 0: rotary positions
    double layerscale; // initial gamma of LayerScale; 0: the model has none
    activation_t gelu; // ACT_GELU or ACT_GELU_TANH
    normalise_t normalise;
    int qkv_bias;      // 1: queries, keys and values have a bias
    double norm_eps;   // of every LayerNorm
} vit_config_t;

#define VIT_ROPE_BASE 100.0 // of the periods of rotary positions

//   id          patch dim depth heads mlp  cls regs pos_class grid  LayerScale  GELU  normalise  qkv_bias  norm_eps
static const vit_config_t vit_configs[] = {
    {"dinov2-s",     14,  384, 12,  6, 1536, 1, 0, 1, 37, 1e-5, ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6},
    {"dinov2-b",     14,  768, 12, 12, 3072, 1, 0, 1, 37, 1e-5, ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6},
    {"dinov2-l",     14, 1024, 24, 16, 4096, 1, 0, 1, 37, 1e-5, ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6},
    {"dinov2-s-reg", 14,  384, 12,  6, 1536, 1, 4, 0, 37, 1e-5, ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6},
    {"dinov2-b-reg", 14,  768, 12, 12, 3072, 1, 4, 0, 37, 1e-5, ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6},
    {"dinov2-l-reg", 14, 1024, 24, 16, 4096, 1, 4, 0, 37, 1e-5, ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6},
    {"dinov3-s",     16,  384, 12,  6, 1536, 1, 4, 0,  0, 1e-5, ACT_GELU, NORMALISE_IMAGENET, 0, 1e-5},
    {"dinov3-b",     16,  768, 12, 12, 3072, 1, 4, 0,  0, 1e-5, ACT_GELU, NORMALISE_IMAGENET, 0, 1e-5},
    {"dinov3-l",     16, 1024, 24, 16, 4096, 1, 4, 0,  0, 1e-5, ACT_GELU, NORMALISE_IMAGENET, 0, 1e-5},
    {"mae-b",        16,  768, 12, 12, 3072, 1, 0, 1, 14, 0,    ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6},
    {"mae-l",        16, 1024, 24, 16, 4096, 1, 0, 1, 14, 0,    ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6},
    {"siglip2-b",    16,  768, 12, 12, 3072, 0, 0, 0, 16, 0,    ACT_GELU_TANH, NORMALISE_NONE, 1, 1e-6},
    {"siglip2-l",    16, 1024, 24, 16, 4096, 0, 0, 0, 16, 0,    ACT_GELU_TANH, NORMALISE_NONE, 1, 1e-6},
    // The stand-in for DINOv2 in the miniature world: 32-pixel images, 8 pixels a token, 4 x 4 tokens.
    {"mini",          7,   96,  4,  3,  384, 1, 0, 1,  4, 1.0,  ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6},
    // As small as a test can use.
    {"tiny",          7,   24,  2,  3,   56, 1, 0, 1,  3, 0.5,  ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6},
    {"tiny-reg",      7,   24,  2,  3,   56, 1, 4, 0,  3, 0.5,  ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6},
    {"tiny-rope",     8,   24,  2,  3,   56, 1, 4, 0,  0, 0.5,  ACT_GELU, NORMALISE_IMAGENET, 0, 1e-5},
    {"tiny-siglip",   8,   24,  2,  3,   56, 0, 0, 0,  3, 0,    ACT_GELU_TANH, NORMALISE_NONE, 1, 1e-6},
};
enum { VIT_CONFIGS = sizeof vit_configs / sizeof vit_configs[0] };

// The configuration of this name; an unknown one ends the program with the list of those there are.
const vit_config_t* vit_config_find(const char* id) {
    char known[512] = "";
    for (int i = 0; i < VIT_CONFIGS; i++) {
        if (!strcmp(vit_configs[i].id, id)) return &vit_configs[i];
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", vit_configs[i].id);
    }
    fatal("there is no encoder named '%s'; choose one of: %s", id, known);
}

// Rotary positions, instead of a position table; and the table's rows.
static inline int vit_is_rotary(const vit_config_t* c) { return c->pos_grid == 0; }
static inline int vit_position_rows(const vit_config_t* c) { return c->pos_class + c->pos_grid * c->pos_grid; }

// What maps the tokenizer's image in [-1, 1] to the model's own input: (((x + 1) / 2) - mean) / std.
static inline channel_affine_t vit_input_affine(normalise_t normalise) {
    channel_affine_t affine = {{1, 1, 1}, {0, 0, 0}};
    if (normalise == NORMALISE_NONE) return affine;
    const double mean[3] = {0.485, 0.456, 0.406}, std[3] = {0.229, 0.224, 0.225};
    for (int c = 0; c < 3; c++) {
        affine.scale[c] = 0.5 / std[c];
        affine.shift[c] = (0.5 - mean[c]) / std[c];
    }
    return affine;
}

// ---------------------------------------------------------------------------------------------------------------------
// The model

enum { VIT_MAX_DEPTH = 48 };

typedef struct {
    // offsets of the parameters
    size_t norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias, gamma1;
    size_t norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, gamma2;
    lora_pair_t qkv_lora, proj_lora, fc1_lora, fc2_lora; // where there are any
    // folded weights, where there are any
    floatX *folded_proj, *folded_proj_bias, *folded_fc2, *folded_fc2_bias; // (D, D), (D), (D, M), (D)
    // activations
    floatS* x;              // (B, T, D) the residual stream where the block begins
    floatS *mean1, *rstd1;  // (B, T)
    floatX* norm1;          // (B, T, D)
    floatX* qkv;            // (B, T, 3, NH, HS), queries and keys rotated where positions are rotary
    floatX* attention;      // (B, T, NH, HS)
    floatS* lse;            // (B, NH, T)
    floatX* proj;           // (B, T, D)
    floatS* middle;         // (B, T, D) the residual stream between attention and MLP
    floatS *mean2, *rstd2;  // (B, T)
    floatX* norm2;          // (B, T, D)
    floatX* pre;            // (B, T, M) before the GELU
    floatX* hidden;         // (B, T, M) behind it
    floatX* fc2;            // (B, T, D)
} vit_block_t;

// The memory plans hold addresses of this struct's members: it must stay where it is once it is planned.
typedef struct {
    vit_config_t config;
    int recompute;          // set before planning: run each block's forward again in the backward
    int fold;               // set before planning, where nothing is trained: use the weights that vit_fold derives
    lora_t lora;            // its config is set before registering
    int causal;             // a token attends to itself and to those before it (clip.h); forward only
    size_t cls_token, reg_token, pos_embed, patch_weight, patch_bias; // offsets
    vit_block_t blocks[VIT_MAX_DEPTH + 1]; // blocks[depth]: the stream at the end and the final norm, as x and norm1
    int B, H, W;            // the images, as planned
    int GH, GW;             // grid of tokens
    int P, T;               // prefix tokens; all tokens
    int train;
    int factor;             // pixels of the image a token and axis
    int side;               // pixels a token and axis of what is embedded: patch, or factor when folded
    floatX* pixels;         // (B, GH patch, GW patch, 3), not used when folded
    floatX* columns;        // (B, N, 3 side^2), N = GH GW
    floatX *folded_patch, *folded_patch_bias; // (D, 3, factor, factor), (D)
    floatX* patches;        // (B, N, D)
    floatX* positions;      // (pos_class + N, D) the resampled table; or
    floatS* rope;           // (T, HS / 2, 2) cosine and sine of rotary positions
    floatX* features;       // (B, GH, GW, D) the output
    floatS* dstream;        // (B, T, D) gradient of the residual stream
    floatX* dnorm;          // (B, T, D) of a norm's output; of the attention's output
    floatX* dbranch;        // (B, T, D) of what a branch adds to the stream
    floatX* dwide;          // (B, T, max(M, 3D)) inside a branch
    floatS* dpositions;     // (pos_class + N, D)
} vit_t;

// Registers one block's tensors behind `prefix` ("blocks.3."), in timm's order. DINOv3 is another class there,
// with other names of the gammas, and these first.
void vit_register_block(vit_block_t* b, const vit_config_t* c, param_table_t* table, const char* prefix) {
    init_t weight = init_normal(0, 0.02), zero = init_constant(0), one = init_constant(1);
    int D = c->dim, M = c->mlp_dim;
    b->norm1_weight = param_vector(table, prefix, "norm1.weight", D, one);
    b->norm1_bias = param_vector(table, prefix, "norm1.bias", D, zero);
    b->qkv_weight = param_matrix(table, prefix, "attn.qkv.weight", 3 * D, D, weight);
    if (c->qkv_bias) b->qkv_bias = param_vector(table, prefix, "attn.qkv.bias", 3 * D, zero);
    b->proj_weight = param_matrix(table, prefix, "attn.proj.weight", D, D, weight);
    b->proj_bias = param_vector(table, prefix, "attn.proj.bias", D, zero);
    if (c->layerscale != 0) {
        const char* name = vit_is_rotary(c) ? "gamma_1" : "ls1.gamma";
        b->gamma1 = param_vector(table, prefix, name, D, init_constant(c->layerscale));
    }
    b->norm2_weight = param_vector(table, prefix, "norm2.weight", D, one);
    b->norm2_bias = param_vector(table, prefix, "norm2.bias", D, zero);
    b->fc1_weight = param_matrix(table, prefix, "mlp.fc1.weight", M, D, weight);
    b->fc1_bias = param_vector(table, prefix, "mlp.fc1.bias", M, zero);
    b->fc2_weight = param_matrix(table, prefix, "mlp.fc2.weight", D, M, weight);
    b->fc2_bias = param_vector(table, prefix, "mlp.fc2.bias", D, zero);
    if (c->layerscale != 0) {
        const char* name = vit_is_rotary(c) ? "gamma_2" : "ls2.gamma";
        b->gamma2 = param_vector(table, prefix, name, D, init_constant(c->layerscale));
    }
}

// A (1, rows, D) tensor of the embedding. timm exempts these from weight decay.
size_t vit_register_token(param_table_t* table, const char* prefix, const char* suffix, int rows, int D, double std) {
    char name[PARAM_NAME];
    param_name(name, prefix, suffix);
    size_t offset = param_add(table, name, 3, 1, rows, D, 0, LAYOUT_PLAIN, init_normal(0, std));
    table->items[table->n - 1].decay = 0;
    return offset;
}

// Registers all tensors under timm's names behind `prefix` ("", "encoder.model.", ...), in timm's order and with its
// initialisers (vision_transformer.py, layers/weight_init.py; its truncation at 100 standard deviations is left out);
// DINOv3's are facebook's. v->config is set beforehand. The patch embedding keeps the file's order (D, 3, patch,
// patch): it is the weight of a matrix product with the columns of patchify_forward, not of a convolution.
void vit_register(vit_t* v, param_table_t* table, const char* prefix) {
    const vit_config_t* c = &v->config;
    int rotary = vit_is_rotary(c), D = c->dim;
    double std = rotary ? 0.02 : 1e-6;
    assert(!rotary || (D / c->heads % 4 == 0 && !c->pos_class));
    if (c->depth > VIT_MAX_DEPTH) fatal("encoder %s has %d blocks, of at most %d", c->id, c->depth, VIT_MAX_DEPTH);
    if (c->cls) v->cls_token = vit_register_token(table, prefix, "cls_token", 1, D, std);
    if (c->registers) v->reg_token = vit_register_token(table, prefix, "reg_token", c->registers, D, std);
    if (!rotary) v->pos_embed = vit_register_token(table, prefix, "pos_embed", vit_position_rows(c), D, 0.02);
    char name[160];
    snprintf(name, sizeof name, "%spatch_embed.proj.weight", prefix);
    init_t fan_in = init_fan_in(3 * c->patch * c->patch);
    v->patch_weight = param_add(table, name, 4, c->dim, 3, c->patch, c->patch, LAYOUT_PLAIN, fan_in);
    v->patch_bias = param_vector(table, prefix, "patch_embed.proj.bias", c->dim, fan_in);
    for (int i = 0; i < c->depth; i++) {
        snprintf(name, sizeof name, "%sblocks.%d.", prefix, i);
        vit_register_block(&v->blocks[i], c, table, name);
    }
    v->blocks[c->depth].norm1_weight = param_vector(table, prefix, "norm.weight", c->dim, init_constant(1));
    v->blocks[c->depth].norm1_bias = param_vector(table, prefix, "norm.bias", c->dim, init_constant(0));
}

// Registers the low-rank pairs, behind all that is frozen then.
void vit_register_lora(vit_t* v, param_table_t* table, const char* prefix) {
    int D = v->config.dim, M = v->config.mlp_dim;
    for (int i = 0; i < v->config.depth; i++) {
        vit_block_t* b = &v->blocks[i];
        char block[PARAM_NAME];
        snprintf(block, sizeof block, "%sblocks.%d.", prefix, i);
        b->qkv_lora = lora_register(&v->lora, table, block, "attn.qkv", D, 3 * D);
        b->proj_lora = lora_register(&v->lora, table, block, "attn.proj", D, D);
        b->fc1_lora = lora_register(&v->lora, table, block, "mlp.fc1", D, M);
        b->fc2_lora = lora_register(&v->lora, table, block, "mlp.fc2", M, D);
    }
}

// Multiply-accumulates of the blocks for one image of N tokens and the prefix: matrix products and attention.
size_t vit_trunk_macs(const vit_t* v, size_t N) {
    const vit_config_t* c = &v->config;
    size_t D = c->dim, M = c->mlp_dim, T = c->cls + c->registers + N;
    return ((4 * D * D + 2 * D * M) * T + 2 * T * T * D) * c->depth;
}

// Of the whole forward of one image.
size_t vit_macs(const vit_t* v, int H, int W, int factor) {
    const vit_config_t* c = &v->config;
    size_t N = (size_t)(H / factor) * (W / factor);
    return 3 * (size_t)c->patch * c->patch * c->dim * N + vit_trunk_macs(v, N);
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

// What a block's backward cannot do without: the stream where it begins, and the statistics of its first norm.
void vit_plan_stream(vit_t* v, plan_t* plan, int i) {
    vit_block_t* b = &v->blocks[i];
    size_t rows = (size_t)v->B * v->T;
    plan_floatS(plan, &b->x, rows * v->config.dim, "vit.x");
    plan_floatS(plan, &b->mean1, rows, "vit.mean1");
    plan_floatS(plan, &b->rstd1, rows, "vit.rstd1");
}

// Everything between.
void vit_plan_branches(vit_t* v, plan_t* plan, int i) {
    vit_block_t* b = &v->blocks[i];
    size_t rows = (size_t)v->B * v->T, D = v->config.dim, M = v->config.mlp_dim;
    plan_floatX(plan, &b->norm1, rows * D, "vit.norm1");
    if (i == v->config.depth) return;
    plan_floatX(plan, &b->qkv, rows * 3 * D, "vit.qkv");
    plan_floatX(plan, &b->attention, rows * D, "vit.attention");
    plan_floatS(plan, &b->lse, rows * v->config.heads, "vit.lse");
    plan_floatX(plan, &b->proj, rows * D, "vit.proj");
    plan_floatS(plan, &b->middle, rows * D, "vit.middle");
    plan_floatS(plan, &b->mean2, rows, "vit.mean2");
    plan_floatS(plan, &b->rstd2, rows, "vit.rstd2");
    plan_floatX(plan, &b->norm2, rows * D, "vit.norm2");
    plan_floatX(plan, &b->pre, rows * M, "vit.pre");
    plan_floatX(plan, &b->hidden, rows * M, "vit.hidden");
    plan_floatX(plan, &b->fc2, rows * D, "vit.fc2");
}

// Plans the folded weights, where there are any, after vit_plan. They do not depend on the images' size.
void vit_plan_folded(vit_t* v, plan_t* keep) {
    size_t D = v->config.dim, M = v->config.mlp_dim;
    if (!v->fold) return;
    plan_floatX(keep, &v->folded_patch, D * 3 * v->factor * v->factor, "vit.folded_patch");
    plan_floatX(keep, &v->folded_patch_bias, D, "vit.folded_patch");
    for (int i = 0; v->config.layerscale != 0 && i < v->config.depth; i++) {
        vit_block_t* b = &v->blocks[i];
        plan_floatX(keep, &b->folded_proj, D * D, "vit.folded_proj");
        plan_floatX(keep, &b->folded_proj_bias, D, "vit.folded_proj");
        plan_floatX(keep, &b->folded_fc2, D * M, "vit.folded_fc2");
        plan_floatX(keep, &b->folded_fc2_bias, D, "vit.folded_fc2");
    }
}

// Takes the sizes of a pass over B images of GH x GW tokens, and plans what outlives the trunk's forward: the features
// and, with `train`, what the backward reads.
void vit_plan_trunk(vit_t* v, plan_t* keep, int B, int GH, int GW, int train) {
    v->B = B;
    v->GH = GH;
    v->GW = GW;
    v->P = (v->config.cls ? 1 : 0) + v->config.registers;
    v->T = v->P + GH * GW;
    v->train = train;
    const vit_config_t* c = &v->config;
    plan_floatX(keep, &v->features, (size_t)B * GH * GW * c->dim, "vit.features");
    if (vit_is_rotary(c)) plan_floatS(keep, &v->rope, (size_t)v->T * (c->dim / c->heads), "vit.rope");
    for (int i = 0; train && i <= v->config.depth; i++) {
        vit_plan_stream(v, keep, i);
        if (!v->recompute) vit_plan_branches(v, keep, i);
    }
}

// The same for images of H x W pixels, a token for each factor x factor of them.
void vit_plan(vit_t* v, plan_t* keep, int B, int H, int W, int factor, int train) {
    const vit_config_t* c = &v->config;
    if (H % factor || W % factor || H <= 0 || W <= 0) {
        fatal("encoder %s cannot take images of %d x %d pixels; crop both sides to multiples of %d", c->id, H, W,
              factor);
    }
    v->H = H;
    v->W = W;
    v->factor = factor;
    if (train || factor < c->patch) v->fold = 0; // weights that learn cannot be folded, nor can an enlargement
    v->side = v->fold ? factor : c->patch;
    vit_plan_trunk(v, keep, B, H / factor, W / factor, train);
    size_t N = (size_t)v->GH * v->GW;
    if (train) plan_floatX(keep, &v->columns, B * N * 3 * c->patch * c->patch, "vit.columns");
}

// One block's memory for all blocks: for a forward that no backward follows, or that the backward will run again. All
// have the same buffers in the same order, the last entry only the first of them: hence it comes first.
void vit_plan_shared_block(vit_t* v, plan_t* work) {
    size_t mark = plan_mark(work);
    for (int i = v->config.depth; i >= 0; i--) {
        plan_rewind(work, mark);
        if (!v->train) vit_plan_stream(v, work, i);
        vit_plan_branches(v, work, i);
    }
}

// Plans what lives only inside the trunk's forward or backward, after vit_plan_trunk.
void vit_plan_trunk_work(vit_t* v, plan_t* work) {
    const vit_config_t* c = &v->config;
    size_t N = (size_t)v->GH * v->GW, rows = (size_t)v->B * v->T, D = c->dim;
    plan_floatX(work, &v->patches, v->B * N * D, "vit.patches");
    if (!vit_is_rotary(c)) plan_floatX(work, &v->positions, (c->pos_class + N) * D, "vit.positions");
    if (!v->train || v->recompute) vit_plan_shared_block(v, work);
    lora_plan_work(&v->lora, work, rows);
    if (!v->train) return;
    plan_floatS(work, &v->dstream, rows * D, "vit.dstream");
    plan_floatX(work, &v->dnorm, rows * D, "vit.dnorm");
    plan_floatX(work, &v->dbranch, rows * D, "vit.dbranch");
    plan_floatX(work, &v->dwide, rows * (c->mlp_dim > 3 * c->dim ? c->mlp_dim : 3 * c->dim), "vit.dwide");
    if (!vit_is_rotary(c)) plan_floatS(work, &v->dpositions, (c->pos_class + N) * D, "vit.dpositions");
}

// The same inside vit_forward or vit_backward, after vit_plan.
void vit_plan_work(vit_t* v, plan_t* work) {
    size_t N = (size_t)v->GH * v->GW, patch = v->config.patch;
    if (!v->fold) plan_floatX(work, &v->pixels, v->B * N * patch * patch * 3, "vit.pixels");
    if (!v->train) plan_floatX(work, &v->columns, v->B * N * 3 * v->side * v->side, "vit.columns");
    vit_plan_trunk_work(v, work);
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

// LayerScale's weight and its gradient: NULL where the model has none, or has it folded (then the operations take 1).
static inline const floatX* vit_gamma(const vit_t* v, const params_t* p, size_t offset) {
    return v->config.layerscale != 0 && !v->fold ? params_at(p, offset) : NULL;
}
static inline floatS* vit_gamma_grad(const vit_t* v, const params_t* p, size_t offset) {
    return v->config.layerscale != 0 ? params_grad(p, offset) : NULL;
}

// What depends on where the tokens lie: the resampled position table, or the angles of rotary positions.
static inline void vit_positions_forward(vit_t* v, const params_t* p, stream_t s) {
    const vit_config_t* c = &v->config;
    if (vit_is_rotary(c)) {
        rope_grid(v->rope, v->P, v->GH, v->GW, c->dim / c->heads, VIT_ROPE_BASE, s);
        return;
    }
    position_resample_forward(v->positions, params_at(p, v->pos_embed), c->pos_class, c->pos_grid, v->GH, v->GW, c->dim,
                              s);
}

// The bias of queries, keys and values, and its gradient; NULL where the model has none.
static inline const floatX* vit_qkv_bias(const vit_t* v, const params_t* p, int i) {
    return v->config.qkv_bias ? params_at(p, v->blocks[i].qkv_bias) : NULL;
}
static inline floatS* vit_qkv_bias_grad(const vit_t* v, const params_t* p, int i) {
    return v->config.qkv_bias ? params_grad(p, v->blocks[i].qkv_bias) : NULL;
}

// From the image to v->patches.
void vit_embed_forward(vit_t* v, const params_t* p,
                       const floatX* image, // (B, H, W, 3) in [-1, 1]
                       stream_t s) {
    const vit_config_t* c = &v->config;
    int fed_h = v->GH * v->side, fed_w = v->GW * v->side, N = v->GH * v->GW, D = c->dim;
    if (!v->fold) {
        resize_bilinear_forward(v->pixels, image, vit_input_affine(c->normalise), v->B, v->H, v->W, fed_h, fed_w, s);
        image = v->pixels;
    }
    patchify_forward(v->columns, image, v->B, fed_h, fed_w, 3, v->side, s);
    const floatX* weight = v->fold ? v->folded_patch : params_at(p, v->patch_weight);
    const floatX* bias = v->fold ? v->folded_patch_bias : params_at(p, v->patch_bias);
    matmul_forward(v->patches, v->columns, weight, bias, (size_t)v->B * N, 3 * v->side * v->side, D, s);
}

// From v->patches to the tokens.
void vit_tokens_forward(vit_t* v, const params_t* p, stream_t s) {
    const vit_config_t* c = &v->config;
    int N = v->GH * v->GW, D = c->dim;
    vit_positions_forward(v, p, s);
    vit_block_t* b = &v->blocks[0];
    const floatX* cls = c->cls ? params_at(p, v->cls_token) : NULL;
    const floatX* reg = c->registers ? params_at(p, v->reg_token) : NULL;
    const floatX* positions = vit_is_rotary(c) ? NULL : v->positions;
    tokens_forward(b->x, v->patches, cls, reg, positions, v->B, N, D, c->registers, c->pos_class, s);
}

// Block i from norm1 to the output of fc2, which is not yet added to the stream.
void vit_branches_forward(vit_t* v, const params_t* p, int i, stream_t s) {
    const vit_config_t* c = &v->config;
    vit_block_t* b = &v->blocks[i];
    int D = c->dim, M = c->mlp_dim, NH = c->heads, HS = D / NH;
    size_t rows = (size_t)v->B * v->T;
    int folded = v->fold && c->layerscale != 0;
    const floatX* proj = folded ? b->folded_proj : params_at(p, b->proj_weight);
    const floatX* proj_bias = folded ? b->folded_proj_bias : params_at(p, b->proj_bias);
    const floatX* fc2 = folded ? b->folded_fc2 : params_at(p, b->fc2_weight);
    const floatX* fc2_bias = folded ? b->folded_fc2_bias : params_at(p, b->fc2_bias);
    matmul_forward(b->qkv, b->norm1, params_at(p, b->qkv_weight), vit_qkv_bias(v, p, i), rows, D, 3 * D, s);
    lora_forward(&v->lora, &b->qkv_lora, p, b->qkv, b->norm1, v->B, v->T, s);
    if (vit_is_rotary(c)) {
        qknorm_rope_forward(b->qkv, NULL, NULL, NULL, NULL, v->rope, v->B, v->T, NH, HS, ROPE_HALVES, 0, s);
    }
    if (v->causal) text_attention_forward(b->attention, b->qkv, NULL, NULL, 1 / sqrt(HS), 1, v->B, v->T, NH, HS, s);
    else attention_forward(b->attention, b->lse, b->qkv, NULL, v->B, v->T, NH, HS, s);
    matmul_forward(b->proj, b->attention, proj, proj_bias, rows, D, D, s);
    lora_forward(&v->lora, &b->proj_lora, p, b->proj, b->attention, v->B, v->T, s);
    residual_layernorm_forward(b->middle, b->norm2, b->mean2, b->rstd2, b->x, b->proj, vit_gamma(v, p, b->gamma1),
                               params_at(p, b->norm2_weight), params_at(p, b->norm2_bias), rows, D, c->norm_eps, s);
    const floatX *fc1 = params_at(p, b->fc1_weight), *fc1_bias = params_at(p, b->fc1_bias);
    if (v->lora.config.rank) { // GELU waits for both parts of the sum
        matmul_forward(b->pre, b->norm2, fc1, fc1_bias, rows, D, M, s);
        lora_forward(&v->lora, &b->fc1_lora, p, b->pre, b->norm2, v->B, v->T, s);
        gelu_forward(b->hidden, b->pre, rows * M, c->gelu, s);
    } else {
        matmul_gelu_forward(b->hidden, b->pre, b->norm2, fc1, fc1_bias, rows, D, M, c->gelu, s);
    }
    matmul_forward(b->fc2, b->hidden, fc2, fc2_bias, rows, M, D, s);
    lora_forward(&v->lora, &b->fc2_lora, p, b->fc2, b->hidden, v->B, v->T, s);
}

// From the tokens, blocks[0].x, to the final norm, blocks[depth].norm1. Without `train` blocks[i].x and blocks[i + 1].x
// are the same memory, which is safe: the stream passes through `middle` between the two.
void vit_blocks_forward(vit_t* v, const params_t* p, stream_t s) {
    const vit_config_t* c = &v->config;
    vit_block_t* b = &v->blocks[0];
    size_t rows = (size_t)v->B * v->T;
    layernorm_forward(b->norm1, b->mean1, b->rstd1, b->x, params_at(p, b->norm1_weight), params_at(p, b->norm1_bias),
                      rows, c->dim, c->norm_eps, s);
    for (int i = 0; i < c->depth; i++) {
        vit_block_t* next = &v->blocks[i + 1];
        b = &v->blocks[i];
        vit_branches_forward(v, p, i, s);
        residual_layernorm_forward(next->x, next->norm1, next->mean1, next->rstd1, b->middle, b->fc2,
                                   vit_gamma(v, p, b->gamma2), params_at(p, next->norm1_weight),
                                   params_at(p, next->norm1_bias), rows, c->dim, c->norm_eps, s);
    }
}

// From v->patches to v->features.
void vit_trunk_forward(vit_t* v, const params_t* p, stream_t s) {
    vit_tokens_forward(v, p, s);
    vit_blocks_forward(v, p, s);
    drop_prefix_forward(v->features, v->blocks[v->config.depth].norm1, v->B, v->T, v->P, v->config.dim, s);
}

// Writes v->features.
void vit_forward(vit_t* v, const params_t* p,
                 const floatX* image, // (B, H, W, 3) in [-1, 1]
                 stream_t s) {
    vit_embed_forward(v, p, image, s);
    vit_trunk_forward(v, p, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward

// Block i's forward again, from the stream that was kept: same operations, same numbers.
void vit_block_recompute(vit_t* v, const params_t* p, int i, stream_t s) {
    vit_block_t* b = &v->blocks[i];
    layernorm_forward(b->norm1, b->mean1, b->rstd1, b->x, params_at(p, b->norm1_weight), params_at(p, b->norm1_bias),
                      (size_t)v->B * v->T, v->config.dim, v->config.norm_eps, s);
    vit_branches_forward(v, p, i, s);
}

// The MLP branch of block i: from dnorm, the gradient of the norm that follows the block, to dnorm of norm2.
void vit_mlp_backward(vit_t* v, const params_t* p, int i, stream_t s) {
    vit_block_t* b = &v->blocks[i];
    vit_block_t* next = &v->blocks[i + 1];
    int D = v->config.dim, M = v->config.mlp_dim;
    size_t rows = (size_t)v->B * v->T;
    residual_layernorm_backward(v->dstream, v->dbranch, vit_gamma_grad(v, p, b->gamma2),
                                params_grad(p, next->norm1_weight), params_grad(p, next->norm1_bias), v->dnorm, next->x,
                                b->fc2, vit_gamma(v, p, b->gamma2), params_at(p, next->norm1_weight), next->mean1,
                                next->rstd1, rows, D, s);
    matmul_backward(v->dwide, params_grad(p, b->fc2_weight), params_grad(p, b->fc2_bias), v->dbranch, b->hidden,
                    params_at(p, b->fc2_weight), rows, M, D, s);
    lora_backward(&v->lora, &b->fc2_lora, p, v->dwide, v->dbranch, b->hidden, v->B, v->T, s);
    gelu_backward(v->dwide, v->dwide, b->pre, rows * M, v->config.gelu, s);
    matmul_backward(v->dnorm, params_grad(p, b->fc1_weight), params_grad(p, b->fc1_bias), v->dwide, b->norm2,
                    params_at(p, b->fc1_weight), rows, D, M, s);
    lora_backward(&v->lora, &b->fc1_lora, p, v->dnorm, v->dwide, b->norm2, v->B, v->T, s);
}

// The attention branch of block i: from dnorm of norm2 to dnorm of norm1.
void vit_attention_backward(vit_t* v, const params_t* p, int i, stream_t s) {
    vit_block_t* b = &v->blocks[i];
    int D = v->config.dim, NH = v->config.heads, HS = D / NH;
    size_t rows = (size_t)v->B * v->T;
    residual_layernorm_backward(v->dstream, v->dbranch, vit_gamma_grad(v, p, b->gamma1),
                                params_grad(p, b->norm2_weight), params_grad(p, b->norm2_bias), v->dnorm, b->middle,
                                b->proj, vit_gamma(v, p, b->gamma1), params_at(p, b->norm2_weight), b->mean2, b->rstd2,
                                rows, D, s);
    floatX* dattention = v->dnorm; // whose last reader was the line above
    matmul_backward(dattention, params_grad(p, b->proj_weight), params_grad(p, b->proj_bias), v->dbranch, b->attention,
                    params_at(p, b->proj_weight), rows, D, D, s);
    lora_backward(&v->lora, &b->proj_lora, p, dattention, v->dbranch, b->attention, v->B, v->T, s);
    attention_backward(v->dwide, dattention, b->qkv, b->attention, b->lse, NULL, v->B, v->T, NH, HS, s);
    if (vit_is_rotary(&v->config)) {
        qknorm_rope_backward(v->dwide, NULL, NULL, NULL, NULL, NULL, NULL, v->rope, v->B, v->T, NH, HS, ROPE_HALVES, s);
    }
    matmul_backward(v->dnorm, params_grad(p, b->qkv_weight), vit_qkv_bias_grad(v, p, i), v->dwide, b->norm1,
                    params_at(p, b->qkv_weight), rows, D, 3 * D, s);
    lora_backward(&v->lora, &b->qkv_lora, p, v->dnorm, v->dwide, b->norm1, v->B, v->T, s);
}

// From dnorm of the first norm to the tokens' parameters; leaves the gradient of v->patches in v->dbranch. Each image
// adds its tokens' gradient to the resampled position table; the transpose of the resampling carries that to the table
// itself.
void vit_tokens_backward(vit_t* v, const params_t* p, stream_t s) {
    const vit_config_t* c = &v->config;
    vit_block_t* b = &v->blocks[0];
    int N = v->GH * v->GW, D = c->dim;
    layernorm_backward(v->dstream, params_grad(p, b->norm1_weight), params_grad(p, b->norm1_bias), v->dnorm, b->x,
                       params_at(p, b->norm1_weight), b->mean1, b->rstd1, (size_t)v->B * v->T, D, s);
    floatS* dpositions = vit_is_rotary(c) ? NULL : v->dpositions;
    if (dpositions) device_zero(dpositions, (size_t)(c->pos_class + N) * D * sizeof(floatS), s);
    floatS* dcls = c->cls ? params_grad(p, v->cls_token) : NULL;
    floatS* dreg = c->registers ? params_grad(p, v->reg_token) : NULL;
    floatS* dpos = dpositions ? params_grad(p, v->pos_embed) : NULL;
    tokens_backward(v->dbranch, dcls, dreg, dpositions, v->dstream, v->B, N, D, c->registers, c->pos_class, s);
    if (dpos) position_resample_backward(dpos, dpositions, c->pos_class, c->pos_grid, v->GH, v->GW, D, s);
}

// Adds the gradient of every parameter of the trunk that is trained to p->grads, and leaves that of v->patches in
// v->dbranch: (B, N, D).
void vit_trunk_backward(vit_t* v, const params_t* p,
                        const floatX* dfeatures, // (B, GH, GW, D)
                        stream_t s) {
    int depth = v->config.depth, D = v->config.dim;
    drop_prefix_backward(v->dnorm, dfeatures, v->B, v->T, v->P, D, s);
    device_zero(v->dstream, (size_t)v->B * v->T * D * sizeof(floatS), s);
    for (int i = depth - 1; i >= 0; i--) {
        if (v->recompute) vit_block_recompute(v, p, i, s);
        vit_mlp_backward(v, p, i, s);
        if (i + 1 < depth) params_grads_done(p, v->blocks[i + 1].qkv_weight, s); // whose first norm ends block i
        vit_attention_backward(v, p, i, s);
    }
    int frozen = v->lora.config.rank && !params_grad(p, v->blocks[0].norm1_weight); // low-rank pairs alone learn
    if (!frozen) vit_tokens_backward(v, p, s);
}

// Adds the gradient of every parameter that is trained to p->grads.
void vit_backward(vit_t* v, params_t* p,
                  const floatX* dfeatures, // (B, GH, GW, D)
                  stream_t s) {
    int patch = v->config.patch, D = v->config.dim;
    vit_trunk_backward(v, p, dfeatures, s);
    matmul_backward(NULL, params_grad(p, v->patch_weight), params_grad(p, v->patch_bias), v->dbranch, v->columns,
                    params_at(p, v->patch_weight), (size_t)v->B * v->GH * v->GW, 3 * patch * patch, D, s);
}

// What a given dfeatures would add to the gradient of the last block's mlp.fc2.weight, for each of the first `chunks`
// groups of `chunk` images. The norm of this matrix is how an adaptive weight measures a loss's pull at the last
// layer of the encoder (VQGAN eq. 7). Between vit_forward and vit_backward; leaves p->grads alone. Where the matrix is
// frozen beside a low-rank pair, it is the gradient that it would have.
void vit_last_fc2_gradient(vit_t* v, const params_t* p,
                           floatS* dweight,         // (chunks, D, M) +=
                           const floatX* dfeatures, // (chunks, chunk, GH, GW, D)
                           int chunk, int chunks, stream_t s) {
    int depth = v->config.depth, D = v->config.dim, M = v->config.mlp_dim;
    vit_block_t* b = &v->blocks[depth - 1];
    vit_block_t* end = &v->blocks[depth];
    size_t chunk_rows = (size_t)chunk * v->T, rows = chunks * chunk_rows;
    if (v->recompute) vit_block_recompute(v, p, depth - 1, s);
    drop_prefix_backward(v->dnorm, dfeatures, chunks * chunk, v->T, v->P, D, s);
    device_zero(v->dstream, rows * D * sizeof(floatS), s);
    residual_layernorm_backward(v->dstream, v->dbranch, NULL, NULL, NULL, v->dnorm, end->x, b->fc2,
                                vit_gamma(v, p, b->gamma2), params_at(p, end->norm1_weight), end->mean1, end->rstd1,
                                rows, D, s);
    for (int k = 0; k < chunks; k++) {
        matmul_backward(NULL, dweight + (size_t)k * D * M, NULL, v->dbranch + k * chunk_rows * D,
                        b->hidden + k * chunk_rows * M, NULL, chunk_rows, M, D, s);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Folding

// One frozen tensor on the host, in full precision; free() it.
static inline floatS* vit_read(const params_t* p, size_t offset, size_t n) {
    floatS* host = (floatS*)malloc_check(n * sizeof(floatS), "a tensor to fold");
    params_read_frozen(p, offset, host, n);
    return host;
}

// The rows of a matrix (rows, columns), or a vector with columns = 1, scaled by gamma (rows).
static inline void vit_fold_rows(floatX* out, const params_t* p, size_t offset, const floatS* gamma, int rows,
                                 int columns) {
    floatS* host = vit_read(p, offset, (size_t)rows * columns);
    for (int o = 0; o < rows; o++) {
        for (int i = 0; i < columns; i++) host[(size_t)o * columns + i] *= gamma[o];
    }
    copy_floats_to_device(out, host, (size_t)rows * columns);
    free(host);
}

static inline void vit_fold_layerscale(vit_t* v, const params_t* p) {
    int D = v->config.dim, M = v->config.mlp_dim;
    for (int i = 0; i < v->config.depth; i++) {
        vit_block_t* b = &v->blocks[i];
        floatS* gamma1 = vit_read(p, b->gamma1, D);
        floatS* gamma2 = vit_read(p, b->gamma2, D);
        vit_fold_rows(b->folded_proj, p, b->proj_weight, gamma1, D, D);
        vit_fold_rows(b->folded_proj_bias, p, b->proj_bias, gamma1, D, 1);
        vit_fold_rows(b->folded_fc2, p, b->fc2_weight, gamma2, D, M);
        vit_fold_rows(b->folded_fc2_bias, p, b->fc2_bias, gamma2, D, 1);
        free(gamma1);
        free(gamma2);
    }
}

// out (factor, factor) = scale R^T w R for one channel of one filter w (patch, patch): each weight goes to the four
// pixels that its sample is interpolated from, as resize_bilinear_forward has them: (k + 1/2) factor / patch - 1/2.
static inline void vit_fold_filter(floatS* out, const floatS* w, double scale, int patch, int factor) {
    for (int i = 0; i < factor * factor; i++) out[i] = 0;
    for (int ky = 0; ky < patch; ky++) {
        int y2 = (2 * ky + 1) * factor - patch, y = y2 / (2 * patch);
        double fy = (double)(y2 % (2 * patch)) / (2 * patch);
        for (int kx = 0; kx < patch; kx++) {
            int x2 = (2 * kx + 1) * factor - patch, x = x2 / (2 * patch);
            double fx = (double)(x2 % (2 * patch)) / (2 * patch), value = scale * w[ky * patch + kx];
            int down = fy > 0 ? factor : 0, right = fx > 0; // a neighbour without weight may lie outside
            out[y * factor + x] += (floatS)((1 - fy) * (1 - fx) * value);
            out[y * factor + x + right] += (floatS)((1 - fy) * fx * value);
            out[y * factor + x + down] += (floatS)(fy * (1 - fx) * value);
            out[y * factor + x + down + right] += (floatS)(fy * fx * value);
        }
    }
}

static inline void vit_fold_patch(vit_t* v, const params_t* p) {
    int D = v->config.dim, patch = v->config.patch, f = v->factor, taps = patch * patch;
    channel_affine_t affine = vit_input_affine(v->config.normalise);
    floatS* weight = vit_read(p, v->patch_weight, (size_t)D * 3 * taps);
    floatS* bias = vit_read(p, v->patch_bias, D);
    floatS* folded = (floatS*)malloc_check((size_t)D * 3 * f * f * sizeof(floatS), "the folded patch embedding");
    for (int d = 0; d < D; d++) {
        double shift = bias[d];
        for (int c = 0; c < 3; c++) {
            const floatS* w = weight + ((size_t)d * 3 + c) * taps;
            for (int k = 0; k < taps; k++) shift += affine.shift[c] * w[k];
            vit_fold_filter(folded + ((size_t)d * 3 + c) * f * f, w, affine.scale[c], patch, f);
        }
        bias[d] = (floatS)shift;
    }
    copy_floats_to_device(v->folded_patch, folded, (size_t)D * 3 * f * f);
    copy_floats_to_device(v->folded_patch_bias, bias, D);
    free(weight);
    free(bias);
    free(folded);
}

// Derives the folded weights from p. To be called whenever the weights of a folded encoder have been set; does nothing
// for one that is not folded.
void vit_fold(vit_t* v, const params_t* p) {
    if (!v->fold) return;
    vit_fold_patch(v, p);
    if (v->config.layerscale != 0) vit_fold_layerscale(v, p);
}
