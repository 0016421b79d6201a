// clip.h: CLIP: a text and an image as vectors that point the same way where they belong together. Frozen: forward
// alone. The text's vector also tells a diffusion transformer what to draw.
//
//   text    x = table[number] + position; blocks, causal; norm; the row of the end mark: `pooled`; times a matrix:
//           `projected`
//   image   x = norm([class token, patches] + positions); blocks; norm; the class token's row; times a matrix
//
// (Radford et al. 2021; OpenCLIP: Cherti et al. 2023.) The blocks of both are those of vit.h, without LayerScale;
// OpenAI's models have GELU in its quick form. The image has one norm more, in front of its blocks, and its patches'
// embedding has no bias.
//
// The two towers are described, registered and run apart: who needs the text alone registers that alone, and its
// projection only where it is wanted. Sizes and activations are in clip_configs; what a file holds, not what it is
// called, tells which it is (common/models/text_weights.h). The caller resizes and crops an image, and makes it [-1, 1].
// Look next at common/models/text_weights.h.
#pragma once
// defines: vit_t, vit_config_t, vit_register_block, vit_plan_shared_block, vit_blocks_forward
#include "common/models/vit.h"

typedef struct {
    const char* id;
    int embed;               // values of a projected vector
    activation_t gelu;
    int patch, grid;         // pixels a side of a patch, patches a side of an image
    int image_dim, image_depth, image_heads, image_mlp;
    int text_dim, text_depth, text_heads, text_mlp;
    int context, vocabulary; // of the text: most numbers, and how many there are
} clip_config_t;

//   id            embed  GELU          patch grid   image: dim depth heads mlp   text: dim depth heads mlp  context vocabulary
static const clip_config_t clip_configs[] = {
    {"clip-b32",      512, ACT_QUICK_GELU, 32,  7,  768, 12, 12, 3072,   512, 12,  8, 2048,  77, 49408},
    {"clip-b16",      512, ACT_QUICK_GELU, 16, 14,  768, 12, 12, 3072,   512, 12,  8, 2048,  77, 49408},
    {"clip-l14",      768, ACT_QUICK_GELU, 14, 16, 1024, 24, 16, 4096,   768, 12, 12, 3072,  77, 49408},
    {"clip-l14-336",  768, ACT_QUICK_GELU, 14, 24, 1024, 24, 16, 4096,   768, 12, 12, 3072,  77, 49408},
    {"openclip-h14", 1024, ACT_GELU,       14, 16, 1280, 32, 16, 5120,  1024, 24, 16, 4096,  77, 49408},
    // As small as a test can use; its vocabulary has two merges.
    {"clip-tiny",      12, ACT_QUICK_GELU,  4,  3,   16,  2,  2,   24,    16,  2,  2,   40,  77,   516},
};
enum { CLIP_CONFIGS = sizeof clip_configs / sizeof *clip_configs };

// The towers as vit.h describes them. Texts have no patches: a grid of 1 says that their positions are added, not
// rotated.
static inline vit_config_t clip_image_blocks(const clip_config_t* c) {
    vit_config_t v = {c->id, c->patch, c->image_dim, c->image_depth, c->image_heads, c->image_mlp, 1, 0, 1, c->grid, 0,
                      c->gelu, NORMALISE_NONE, 1, 1e-5};
    return v;
}
static inline vit_config_t clip_text_blocks(const clip_config_t* c) {
    vit_config_t v = {c->id, 1, c->text_dim, c->text_depth, c->text_heads, c->text_mlp, 0, 0, 0, 1, 0, c->gelu,
                      NORMALISE_NONE, 1, 1e-5};
    return v;
}

// The memory plan holds addresses of these structs' members: they must stay where they are once they are planned.
typedef struct {
    vit_t blocks;
    int context, vocabulary, embed;
    int project;               // set before registering: is there a projection?
    size_t table, positions, projection; // offsets: (vocabulary, D), (context, D), (embed, D)
    int* ids;                  // (B, T)
    int* ends;                 // (B) rows of the end marks
    floatS* pooled;            // (B, D) the outputs
    floatS* projected;         // (B, embed)
} clip_text_t;

typedef struct {
    vit_t blocks;
    int embed;
    size_t cls_token, patch_weight, positions, pre_weight, pre_bias, projection; // offsets
    floatX* pixels;            // (B, S, S, 3)
    floatX* columns;           // (B, N, 3 patch^2)
    floatX* patches;           // (B, N, D)
    floatS* tokens;            // (B, T, D)
    floatX* first_norm;        // (B, T, D)
    int* ends;                 // (B) rows of the class tokens
    floatS* pooled;            // (B, D) the outputs
    floatS* projected;         // (B, embed)
} clip_image_t;

static inline void clip_register_blocks(vit_t* v, param_table_t* table, const char* prefix) {
    char name[PARAM_NAME];
    assert(v->config.depth <= VIT_MAX_DEPTH);
    for (int i = 0; i < v->config.depth; i++) {
        snprintf(name, sizeof name, "%sblocks.%d.", prefix, i);
        vit_register_block(&v->blocks[i], &v->config, table, name);
    }
    vit_block_t* end = &v->blocks[v->config.depth];
    end->norm1_weight = param_vector(table, prefix, "norm.weight", v->config.dim, init_constant(1));
    end->norm1_bias = param_vector(table, prefix, "norm.bias", v->config.dim, init_constant(0));
}

// Registers the text tower behind `prefix`; c->project is set beforehand.
void clip_register_text(clip_text_t* c, const clip_config_t* config, param_table_t* table, const char* prefix) {
    int D = config->text_dim;
    c->blocks.config = clip_text_blocks(config);
    c->blocks.causal = 1;
    c->context = config->context;
    c->vocabulary = config->vocabulary;
    c->embed = config->embed;
    c->table = param_matrix(table, prefix, "token_embedding", c->vocabulary, D, init_normal(0, 0.02));
    c->positions = param_matrix(table, prefix, "pos_embed", c->context, D, init_normal(0, 0.01));
    clip_register_blocks(&c->blocks, table, prefix);
    if (c->project) c->projection = param_matrix(table, prefix, "projection", c->embed, D, init_normal(0, 1 / sqrt(D)));
}

void clip_register_image(clip_image_t* c, const clip_config_t* config, param_table_t* table, const char* prefix) {
    int D = config->image_dim, patch = config->patch, rows = 1 + config->grid * config->grid;
    char name[PARAM_NAME];
    init_t scaled = init_normal(0, 1 / sqrt(D));
    c->blocks.config = clip_image_blocks(config);
    c->embed = config->embed;
    c->cls_token = param_vector(table, prefix, "cls_token", D, scaled);
    param_name(name, prefix, "patch_embed.weight");
    c->patch_weight = param_add(table, name, 4, D, 3, patch, patch, LAYOUT_PLAIN, init_normal(0, 0.02));
    c->positions = param_matrix(table, prefix, "pos_embed", rows, D, scaled);
    c->pre_weight = param_vector(table, prefix, "norm_pre.weight", D, init_constant(1));
    c->pre_bias = param_vector(table, prefix, "norm_pre.bias", D, init_constant(0));
    clip_register_blocks(&c->blocks, table, prefix);
    c->projection = param_matrix(table, prefix, "projection", c->embed, D, scaled);
}

// Plans the memory of a forward over B texts of T numbers, at most `context`. The outputs live in it.
void clip_plan_text(clip_text_t* c, plan_t* plan, int B, int T) {
    size_t D = c->blocks.config.dim;
    if (T > c->context) fatal("a text of %d numbers for CLIP, which takes %d", T, c->context);
    c->blocks.B = B;
    c->blocks.T = T;
    plan_int(plan, &c->ids, (size_t)B * T, "clip.ids");
    plan_int(plan, &c->ends, B, "clip.ends");
    plan_floatS(plan, &c->pooled, B * D, "clip.pooled");
    if (c->project) plan_floatS(plan, &c->projected, (size_t)B * c->embed, "clip.projected");
    vit_plan_shared_block(&c->blocks, plan);
}

// Pixels along a side of the images that the tower takes.
static inline int clip_image_side(const clip_image_t* c) { return c->blocks.config.patch * c->blocks.config.pos_grid; }

void clip_plan_image(clip_image_t* c, plan_t* plan, int B) {
    const vit_config_t* v = &c->blocks.config;
    size_t N = (size_t)v->pos_grid * v->pos_grid, D = v->dim, pixels = N * v->patch * v->patch * 3;
    c->blocks.B = B;
    c->blocks.T = 1 + (int)N;
    plan_floatX(plan, &c->pixels, B * pixels, "clip.pixels");
    plan_floatX(plan, &c->columns, B * pixels, "clip.columns");
    plan_floatX(plan, &c->patches, B * N * D, "clip.patches");
    plan_floatS(plan, &c->tokens, B * (N + 1) * D, "clip.tokens");
    plan_floatX(plan, &c->first_norm, B * (N + 1) * D, "clip.first_norm");
    plan_int(plan, &c->ends, B, "clip.ends");
    plan_floatS(plan, &c->pooled, B * D, "clip.pooled");
    plan_floatS(plan, &c->projected, (size_t)B * c->embed, "clip.projected");
    vit_plan_shared_block(&c->blocks, plan);
}

// Row ends[b] of all tokens behind the final norm, for each b.
static inline void clip_pool(floatS* pooled, const vit_t* v, const int* ends, stream_t s) {
    embedding_rows(pooled, v->blocks[v->config.depth].norm1, NULL, ends, v->B, 1, v->config.dim, s);
}

// Puts the numbers on the device and notes where the end marks stand: the first of the largest numbers of a text.
static inline void clip_place(clip_text_t* c, const int* ids, stream_t s) {
    int B = c->blocks.B, T = c->blocks.T, *ends = (int*)malloc_check(B * sizeof(int), "the ends of texts");
    for (int b = 0; b < B; b++) {
        ends[b] = b * T;
        for (int i = b * T; i < (b + 1) * T; i++) {
            if (ids[i] < 0 || ids[i] >= c->vocabulary) {
                fatal("number %d of a text is beyond CLIP's vocabulary of %d; give the tokenizer's file and the "
                      "encoder's of one model", ids[i], c->vocabulary);
            }
            if (ids[i] > ids[ends[b]]) ends[b] = i;
        }
    }
    stream_wait(s);
    copy_to_device(c->ids, ids, (size_t)B * T * sizeof(int), 0);
    copy_to_device(c->ends, ends, B * sizeof(int), 0);
    free(ends);
}

// Writes c->pooled and, where there is a projection, c->projected. `ids` are as clip_bpe_encode leaves them: what stands
// behind the end mark changes nothing.
void clip_text_forward(clip_text_t* c, const params_t* p,
                       const int* ids, // (B, T) on the host
                       stream_t s) {
    vit_t* v = &c->blocks;
    int D = v->config.dim;
    clip_place(c, ids, s);
    embedding_rows(v->blocks[0].x, params_at(p, c->table), params_at(p, c->positions), c->ids, v->B, v->T, D, s);
    vit_blocks_forward(v, p, s);
    clip_pool(c->pooled, v, c->ends, s);
    if (c->project) features_matmul_forward(c->projected, c->pooled, params_at(p, c->projection), v->B, D, c->embed, s);
}

// What maps an image in [-1, 1] to CLIP's input.
static inline channel_affine_t clip_input_affine(void) {
    const double mean[3] = {0.48145466, 0.4578275, 0.40821073}, std[3] = {0.26862954, 0.26130258, 0.27577711};
    channel_affine_t affine;
    for (int c = 0; c < 3; c++) {
        affine.scale[c] = 0.5 / std[c];
        affine.shift[c] = (0.5 - mean[c]) / std[c];
    }
    return affine;
}

// Writes c->pooled and c->projected.
void clip_image_forward(clip_image_t* c, const params_t* p,
                        const floatX* image, // (B, S, S, 3) in [-1, 1]
                        stream_t s) {
    vit_t* v = &c->blocks;
    const vit_config_t* f = &v->config;
    int B = v->B, S = clip_image_side(c), N = v->T - 1, D = f->dim;
    size_t rows = (size_t)B * v->T;
    vit_block_t* b = &v->blocks[0];
    int* ends = (int*)malloc_check(B * sizeof(int), "the class tokens of images");
    for (int i = 0; i < B; i++) ends[i] = i * v->T;
    stream_wait(s);
    copy_to_device(c->ends, ends, B * sizeof(int), 0);
    free(ends);
    resize_bilinear_forward(c->pixels, image, clip_input_affine(), B, S, S, S, S, s);
    patchify_forward(c->columns, c->pixels, B, S, S, 3, f->patch, s);
    int values = 3 * f->patch * f->patch;
    matmul_forward(c->patches, c->columns, params_at(p, c->patch_weight), NULL, (size_t)B * N, values, D, s);
    tokens_forward(c->tokens, c->patches, params_at(p, c->cls_token), NULL, params_at(p, c->positions), B, N, D, 0, 1,
                   s);
    layernorm_forward(c->first_norm, b->mean1, b->rstd1, c->tokens, params_at(p, c->pre_weight),
                      params_at(p, c->pre_bias), rows, D, f->norm_eps, s);
    first_channels_forward(b->x, c->first_norm, rows, D, D, s); // the stream is floatS
    vit_blocks_forward(v, p, s);
    clip_pool(c->pooled, v, c->ends, s);
    features_matmul_forward(c->projected, c->pooled, params_at(p, c->projection), B, D, c->embed, s);
}
