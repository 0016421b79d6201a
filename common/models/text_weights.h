// text_weights.h: public weight files of T5's encoder and of CLIP into a parameter table, by rules as in weights.h. A
// file, or several with an index: its tensors tell the sizes.
//
//   T5     transformers' names: T5 v1.1's encoder, or the whole model, whose decoder is left
//   CLIP   Hugging Face's names (text and image, or the text alone, which since transformers 5 lacks `text_model.`),
//          OpenAI's and OpenCLIP's
//
// Where heads do not show in a file, they are those of the published model of that width (clip_configs). Neither does the
// activation: OpenCLIP's own training of B/32 or L/14, with exact GELU, cannot be told from OpenAI's.
// Look next at common/text/unigram.h and common/text/clip_bpe.h, the tokenizers.
#pragma once
// defines: clip_config_t, clip_configs
#include "common/models/clip.h"
// defines: t5_config_t, t5_configs
#include "common/models/t5.h"
// defines: weights_rule_t, weights_loader_t, weights_begin, weights_take, weights_check, weights_find_anchor
#include "common/models/weights.h"

// Values along one dimension of a tensor; 0 where it is not there.
static inline int text_weights_size(const safetensors_t* f, const char* prefix, const char* name, int dimension) {
    char full[WEIGHTS_NAME];
    const st_tensor_t* t = safetensors_find(f, param_name(full, prefix, name));
    return t && t->ndim > dimension && t->shape[dimension] < 1u << 30 ? (int)t->shape[dimension] : 0;
}

// How many blocks there are: tensors `before`, a number from 0 on, `behind`.
static inline int text_weights_depth(const safetensors_t* f, const char* prefix, const char* before,
                                     const char* behind) {
    char name[2 * WEIGHTS_NAME];
    for (int i = 0;; i++) {
        snprintf(name, sizeof name, "%s%s%d%s", prefix, before, i, behind);
        if (!safetensors_find(f, name)) return i;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// T5

// A file has `shared.weight`, or only a copy of it.
static const weights_rule_t weights_t5[] = {
    {"shared.weight", "shared.weight", PART_WHOLE},
    {"encoder.embed_tokens.weight", NULL, PART_WHOLE},
    {"encoder.*", "encoder.*", PART_WHOLE},
    {"decoder.*", NULL, PART_WHOLE},
    {"lm_head.weight", NULL, PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};
static const weights_rule_t weights_t5_copy[] = {
    {"encoder.embed_tokens.weight", "shared.weight", PART_WHOLE},
    {"encoder.*", "encoder.*", PART_WHOLE},
    {"decoder.*", NULL, PART_WHOLE},
    {"lm_head.weight", NULL, PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};

// What stands before T5's names in a file; ends the program where there is no T5 encoder of version 1.1.
static inline void t5_find(const safetensors_t* f, char* prefix) {
    const char* anchor = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    if (!weights_find_anchor(f, anchor, "T5 encoders", prefix)) {
        fatal("%s holds no T5 encoder (%d tensors, the first is %s); give T5 v1.1's weights as published by Google or "
              "beside FLUX", f->path, f->n, f->n ? f->tensors[0].name : "none");
    }
    if (!text_weights_size(f, prefix, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0)) {
        fatal("%s holds a T5 encoder without gated layers (wi_0): the first T5; give one of T5 v1.1", f->path);
    }
}

// The sizes that a file of weights tells.
t5_config_t t5_config_of_file(const char* path) {
    safetensors_t f;
    char prefix[WEIGHTS_NAME];
    tensor_file_open_or_die(&f, path);
    t5_find(&f, prefix);
    const char* q = "encoder.block.0.layer.0.SelfAttention.q.weight";
    t5_config_t c = {"t5", 0, 0, 0, 0, 0, 0};
    c.heads = text_weights_size(&f, prefix, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 1);
    c.head_size = c.heads ? text_weights_size(&f, prefix, q, 0) / c.heads : 0;
    c.dim = text_weights_size(&f, prefix, q, 1);
    c.mlp_dim = text_weights_size(&f, prefix, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0);
    c.depth = text_weights_depth(&f, prefix, "encoder.block.", ".layer.0.layer_norm.weight");
    c.vocabulary = text_weights_size(&f, prefix, "shared.weight", 0);
    if (!c.vocabulary) c.vocabulary = text_weights_size(&f, prefix, "encoder.embed_tokens.weight", 0);
    if (!c.head_size || !c.dim || !c.depth || !c.vocabulary || c.depth > T5_MAX_DEPTH || c.mlp_dim % 8 || c.dim % 8) {
        fatal("%s: the sizes of its T5 encoder do not fit together (width %d, %d blocks, %d heads of %d, vocabulary %d); "
              "copy it again", path, c.dim, c.depth, c.heads, c.head_size, c.vocabulary);
    }
    for (int i = 0; i < T5_CONFIGS; i++) {
        const t5_config_t* known = &t5_configs[i];
        if (known->dim == c.dim && known->depth == c.depth && known->mlp_dim == c.mlp_dim) c.id = known->id;
    }
    safetensors_close(&f);
    return c;
}

// Reads the weights into the tensors that t5_register put behind our_prefix.
void t5_load(params_t* p, const char* our_prefix, const char* path) {
    weights_loader_t l;
    char prefix[WEIGHTS_NAME];
    weights_begin(&l, p, our_prefix, path);
    t5_find(&l.file, prefix);
    l.file_prefix = prefix;
    l.rules = text_weights_size(&l.file, prefix, "shared.weight", 0) ? weights_t5 : weights_t5_copy;
    for (int i = 0; i < l.file.n; i++) weights_take(&l, &l.file.tensors[i]);
    weights_check(&l, "");
    weights_end(&l);
}

// ---------------------------------------------------------------------------------------------------------------------
// CLIP

// transformers modeling_clip.py, behind text_model. and vision_model.; the blocks of both are alike
#define WEIGHTS_CLIP_BLOCKS \
    {"encoder.layers.{i}.layer_norm1.*", "blocks.{i}.norm1.*", PART_WHOLE}, \
    {"encoder.layers.{i}.self_attn.q_proj.*", "blocks.{i}.attn.qkv.*", PART_FIRST}, \
    {"encoder.layers.{i}.self_attn.k_proj.*", "blocks.{i}.attn.qkv.*", PART_MIDDLE}, \
    {"encoder.layers.{i}.self_attn.v_proj.*", "blocks.{i}.attn.qkv.*", PART_LAST}, \
    {"encoder.layers.{i}.self_attn.out_proj.*", "blocks.{i}.attn.proj.*", PART_WHOLE}, \
    {"encoder.layers.{i}.layer_norm2.*", "blocks.{i}.norm2.*", PART_WHOLE}, \
    {"encoder.layers.{i}.mlp.*", "blocks.{i}.mlp.*", PART_WHOLE}, \
    {"embeddings.position_ids", NULL, PART_WHOLE}
static const weights_rule_t weights_clip_text[] = {
    {"embeddings.token_embedding.weight", "token_embedding", PART_WHOLE},
    {"embeddings.position_embedding.weight", "pos_embed", PART_WHOLE},
    {"final_layer_norm.*", "norm.*", PART_WHOLE},
    {"text_projection.weight", NULL, PART_WHOLE}, // clip_take_tops does
    WEIGHTS_CLIP_BLOCKS,
    {NULL, NULL, PART_WHOLE}};
static const weights_rule_t weights_clip_image[] = {
    {"embeddings.class_embedding", "cls_token", PART_WHOLE},
    {"embeddings.patch_embedding.weight", "patch_embed.weight", PART_WHOLE},
    {"embeddings.position_embedding.weight", "pos_embed", PART_WHOLE},
    {"pre_layrnorm.*", "norm_pre.*", PART_WHOLE}, // so written there
    {"post_layernorm.*", "norm.*", PART_WHOLE},
    WEIGHTS_CLIP_BLOCKS,
    {NULL, NULL, PART_WHOLE}};
static const weights_rule_t weights_clip_text_top[] = {{"text_projection.weight", "projection", PART_WHOLE},
                                                       {NULL, NULL, PART_WHOLE}};
static const weights_rule_t weights_clip_image_top[] = {{"visual_projection.weight", "projection", PART_WHOLE},
                                                        {NULL, NULL, PART_WHOLE}};

// openai/CLIP clip/model.py, mlfoundations/open_clip: the image tower stands behind visual., the text tower does not
#define WEIGHTS_OPENAI_BLOCKS \
    {"transformer.resblocks.{i}.ln_1.*", "blocks.{i}.norm1.*", PART_WHOLE}, \
    {"transformer.resblocks.{i}.attn.in_proj_weight", "blocks.{i}.attn.qkv.weight", PART_WHOLE}, \
    {"transformer.resblocks.{i}.attn.in_proj_bias", "blocks.{i}.attn.qkv.bias", PART_WHOLE}, \
    {"transformer.resblocks.{i}.attn.out_proj.*", "blocks.{i}.attn.proj.*", PART_WHOLE}, \
    {"transformer.resblocks.{i}.ln_2.*", "blocks.{i}.norm2.*", PART_WHOLE}, \
    {"transformer.resblocks.{i}.mlp.c_fc.*", "blocks.{i}.mlp.fc1.*", PART_WHOLE}, \
    {"transformer.resblocks.{i}.mlp.c_proj.*", "blocks.{i}.mlp.fc2.*", PART_WHOLE}
static const weights_rule_t weights_openai_text[] = {
    {"token_embedding.weight", "token_embedding", PART_WHOLE},
    {"positional_embedding", "pos_embed", PART_WHOLE},
    {"ln_final.*", "norm.*", PART_WHOLE},
    WEIGHTS_OPENAI_BLOCKS,
    {"visual.*", NULL, PART_WHOLE},
    {"text_projection", NULL, PART_WHOLE}, // clip_take_tops does
    {"logit_scale", NULL, PART_WHOLE},
    {"attn_mask", NULL, PART_WHOLE},
    {"input_resolution", NULL, PART_WHOLE},
    {"context_length", NULL, PART_WHOLE},
    {"vocab_size", NULL, PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};
static const weights_rule_t weights_openai_image[] = {
    {"class_embedding", "cls_token", PART_WHOLE},
    {"conv1.weight", "patch_embed.weight", PART_WHOLE},
    {"positional_embedding", "pos_embed", PART_WHOLE},
    {"ln_pre.*", "norm_pre.*", PART_WHOLE},
    {"ln_post.*", "norm.*", PART_WHOLE},
    {"proj", "projection", PART_TRANSPOSED},
    WEIGHTS_OPENAI_BLOCKS,
    {NULL, NULL, PART_WHOLE}};
static const weights_rule_t weights_openai_text_top[] = {{"text_projection", "projection", PART_TRANSPOSED},
                                                         {NULL, NULL, PART_WHOLE}};

// Where CLIP stands in a file.
typedef struct {
    int openai;               // OpenAI's names, else Hugging Face's
    char text[WEIGHTS_NAME];  // what stands before the names of the text tower,
    char image[WEIGHTS_NAME]; // of the image tower,
    char top[WEIGHTS_NAME];   // and of what belongs to neither
} clip_place_t;

static inline clip_place_t clip_find(const safetensors_t* f) {
    clip_place_t at;
    char prefix[WEIGHTS_NAME];
    memset(&at, 0, sizeof at);
    at.openai = weights_find_anchor(f, "ln_final.weight", "CLIP text towers", prefix);
    if (!at.openai && !weights_find_anchor(f, "final_layer_norm.weight", "CLIP text towers", prefix)) {
        fatal("%s holds no text tower of CLIP (%d tensors, the first is %s); give CLIP's weights as published by OpenAI, "
              "OpenCLIP or Hugging Face", f->path, f->n, f->n ? f->tensors[0].name : "none");
    }
    size_t length = strlen(prefix), tail = strlen("text_model.");
    snprintf(at.text, sizeof at.text, "%s", prefix);
    if (length >= tail && !strcmp(prefix + length - tail, "text_model.")) prefix[length - tail] = 0;
    prefix[WEIGHTS_NAME - 16] = 0; // room for what follows
    snprintf(at.top, sizeof at.top, "%s", prefix);
    snprintf(at.image, sizeof at.image, "%.230s%s", prefix, at.openai ? "visual." : "vision_model.");
    return at;
}

// The published model whose sizes a file's tensors have; an image tower counts where the file has one.
const clip_config_t* clip_config_of_file(const char* path) {
    safetensors_t f;
    tensor_file_open_or_die(&f, path);
    clip_place_t at = clip_find(&f);
    const char* table = at.openai ? "token_embedding.weight" : "embeddings.token_embedding.weight";
    const char* conv = at.openai ? "conv1.weight" : "embeddings.patch_embedding.weight";
    const char* pos = at.openai ? "positional_embedding" : "embeddings.position_embedding.weight";
    const char* before = at.openai ? "transformer.resblocks." : "encoder.layers.";
    const char* behind = at.openai ? ".ln_1.weight" : ".layer_norm1.weight";
    int width = text_weights_size(&f, at.text, table, 1), depth = text_weights_depth(&f, at.text, before, behind);
    int image = text_weights_size(&f, at.image, conv, 0), patch = text_weights_size(&f, at.image, conv, 3);
    int rows = text_weights_size(&f, at.image, pos, 0);
    for (int i = 0; i < CLIP_CONFIGS; i++) {
        const clip_config_t* c = &clip_configs[i];
        int fits = c->image_dim == image && c->patch == patch && 1 + c->grid * c->grid == rows;
        if (c->text_dim != width || c->text_depth != depth || (image && !fits)) continue;
        safetensors_close(&f);
        return c;
    }
    fatal("%s holds a CLIP of other sizes than those known here (text: width %d, %d blocks; image: width %d, patch %d, "
          "%d position rows); give OpenAI's B/32, B/16, L/14, L/14-336 or OpenCLIP's H/14", path, width, depth, image,
          patch, rows);
}

// What a cosine is multiplied with, exp(logit_scale); 0 where the file does not tell.
double clip_scale_of_file(const char* path) {
    safetensors_t f;
    char name[WEIGHTS_NAME];
    floatS value = -INFINITY;
    tensor_file_open_or_die(&f, path);
    clip_place_t at = clip_find(&f);
    const st_tensor_t* t = safetensors_find(&f, param_name(name, at.top, "logit_scale"));
    if (t && t->numel == 1) safetensors_read(t, &value);
    safetensors_close(&f);
    return exp((double)value);
}

// Takes what a tower needs of the tensors that belong to neither: its projection, where it is registered.
static inline void clip_take_tops(weights_loader_t* l, const char* prefix, const weights_rule_t* rules) {
    char ours[WEIGHTS_NAME];
    l->file_prefix = prefix;
    l->rules = rules;
    for (int i = 0; i < l->file.n; i++) {
        const weights_rule_t* rule = weights_find_rule(l, &l->file.tensors[i], ours);
        if (rule && param_find(&l->params->table, ours)) weights_take(l, &l->file.tensors[i]);
    }
}

// Reads one tower's weights into the tensors that clip_register_text or _image put behind our_prefix.
static inline void clip_load(params_t* p, const char* our_prefix, const char* path, int image) {
    weights_loader_t l;
    weights_begin(&l, p, our_prefix, path);
    clip_place_t at = clip_find(&l.file);
    l.file_prefix = image ? at.image : at.text;
    l.rules = image ? (at.openai ? weights_openai_image : weights_clip_image)
                    : (at.openai ? weights_openai_text : weights_clip_text);
    for (int i = 0; i < l.file.n; i++) weights_take(&l, &l.file.tensors[i]);
    if (!image) clip_take_tops(&l, at.top, at.openai ? weights_openai_text_top : weights_clip_text_top);
    else if (!at.openai) clip_take_tops(&l, at.top, weights_clip_image_top);
    weights_check(&l, "");
    weights_end(&l);
}
void clip_load_text(params_t* p, const char* our_prefix, const char* path) { clip_load(p, our_prefix, path, 0); }
void clip_load_image(params_t* p, const char* our_prefix, const char* path) { clip_load(p, our_prefix, path, 1); }
