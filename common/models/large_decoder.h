// large_decoder.h: what the larger decoder of the paper's ablation has that LDM's has not (common/models/decoder.h,
// which puts the two together). It is the decoder of GigaTok's two-dimensional tokenizer (Xiong et al. 2025):
//
//     z --tokens: LayerNorm, Linear to D, + position table, pre-norm transformer, LayerNorm, conv 3x3 to z--> u
//     u --CNN: LDM's without attention, upsampling by depth-to-space, an adaptive norm before each level--> image
//
// The transformer is the trunk of common/models/vit.h on the latent's positions: MLP of 4 D with the exact GELU, norms
// with epsilon 1e-5, no LayerScale, no class token. Its position table keeps the grid that it has in the checkpoint,
// and is resampled to other latents in every forward, as the ViT encoder's is.
//
// Style. The adaptive norm before a level of C channels is, with the mean m and the deviation d of each channel of u
// over the positions of the image,
//     y = (Gamma d + b_Gamma) GN(x) + (Beta m + b_Beta),   Gamma, Beta (C, z)
// Gammas of all levels are registered one behind the other, and so are the Betas: two matrix products give the scales
// and the shifts of all levels, and the backward's products add up the gradients of m and d over the levels.
//
// Backward. The second stream of gradients (common/models/blocks.h) goes through the transformer by itself, before the
// main one, with parameters that have no gradients. With vit.recompute each of the two runs the blocks' forward again.
//
// At width 1024, 24 blocks, z = 32 and LDM's channels there are 302,902,368 parameters in the tokens' part, 48,383,491
// behind it, and an image of 256 x 256 costs 205.4 G multiply-accumulates.
// Names: GigaTok, tokenizer/tokenizer_image/vq/blocks.py, classes ViTDecoder2D, Decoder and AdaptiveGroupNorm, and its
// initial values (vq_vit_model.py; their truncation at 100 standard deviations is left out).
#pragma once
// defines: layer_stack_t, style_rows_t, conv_layer_t and their functions
#include "common/models/blocks.h"
// defines: vit_t, vit_config_t, vit_plan_trunk, vit_plan_trunk_work, vit_trunk_forward, vit_trunk_backward, ...
#include "common/models/vit.h"

#define LARGE_NORM_EPS 1e-5 // of its LayerNorms
#define LARGE_INIT_STD 0.02 // of the weights of its linear and convolution layers; their biases start at 0

// The transformer that the tokens' part has. depth 0: there is none, the decoder is LDM's.
static inline vit_config_t large_decoder_vit(int dim, int depth, int heads, int grid) {
    vit_config_t c = {"decoder", 1, dim, depth, heads, 4 * dim, 0, 0, 0, grid, 0, ACT_GELU, NORMALISE_NONE, 1,
                      LARGE_NORM_EPS};
    return c;
}

// Gives the linear and convolution layers registered since tensor number `first` their initial values.
static inline void large_decoder_init(param_table_t* table, int first) {
    for (int i = first; i < table->n; i++) {
        param_t* t = &table->items[i];
        if (t->init.kind != INIT_UNIFORM) continue; // a norm's
        t->init = t->ndim > 1 ? init_normal(0, LARGE_INIT_STD) : init_constant(0);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Tokens

// The memory plans hold addresses of this struct's members: it must stay where it is once it is planned.
typedef struct {
    vit_t vit;                                               // config is set before registering; of it, the trunk
    int z;                                                   // channels of the latent
    size_t ln_weight, ln_bias, embed_weight, embed_bias;     // offsets
    conv_layer_t conv_out;
    const floatX* in;     // (B, h, w, z) of the last forward; the backward reads it again
    floatS *mean, *rstd;  // (B, h, w) of the first LayerNorm
    floatX* normed;       // (B, h, w, z) its output
    floatX* out;          // (B, h, w, z)
    floatX* dfeatures;    // (extra + B, h, w, D) of conv_out's input
    floatX* dnormed;      // (B, h, w, z)
} token_decoder_t;

// Registers one block of the trunk under the names of torch.nn.MultiheadAttention and GigaTok's TransformerLayer.
void token_decoder_register_block(vit_block_t* b, const vit_config_t* c, param_table_t* table, const char* prefix) {
    init_t weight = init_normal(0, LARGE_INIT_STD), zero = init_constant(0), one = init_constant(1);
    int D = c->dim, M = c->mlp_dim;
    init_t xavier = init_uniform(sqrt(6.0 / (4.0 * D))); // the packed weight is no linear layer's: it keeps PyTorch's
    b->qkv_weight = param_matrix(table, prefix, "self_attn.in_proj_weight", 3 * D, D, xavier);
    b->qkv_bias = param_vector(table, prefix, "self_attn.in_proj_bias", 3 * D, zero);
    b->proj_weight = param_matrix(table, prefix, "self_attn.out_proj.weight", D, D, weight);
    b->proj_bias = param_vector(table, prefix, "self_attn.out_proj.bias", D, zero);
    b->fc1_weight = param_matrix(table, prefix, "linear1.weight", M, D, weight);
    b->fc1_bias = param_vector(table, prefix, "linear1.bias", M, zero);
    b->fc2_weight = param_matrix(table, prefix, "linear2.weight", D, M, weight);
    b->fc2_bias = param_vector(table, prefix, "linear2.bias", D, zero);
    b->norm1_weight = param_vector(table, prefix, "norm1.weight", D, one);
    b->norm1_bias = param_vector(table, prefix, "norm1.bias", D, zero);
    b->norm2_weight = param_vector(table, prefix, "norm2.weight", D, one);
    b->norm2_bias = param_vector(table, prefix, "norm2.bias", D, zero);
}

// Registers all tensors behind `prefix` ("s2ddecoder."). t->vit.config is set beforehand.
void token_decoder_register(token_decoder_t* t, param_table_t* table, const char* prefix, int z) {
    vit_t* v = &t->vit;
    const vit_config_t* c = &v->config;
    init_t weight = init_normal(0, LARGE_INIT_STD), zero = init_constant(0), one = init_constant(1);
    char name[PARAM_NAME];
    int D = c->dim;
    if (c->depth > VIT_MAX_DEPTH) fatal("a decoder of %d blocks; choose at most %d", c->depth, VIT_MAX_DEPTH);
    t->z = z;
    t->embed_weight = param_matrix(table, prefix, "decoder_embed.weight", D, z, weight);
    t->embed_bias = param_vector(table, prefix, "decoder_embed.bias", D, zero);
    t->ln_weight = param_vector(table, prefix, "ln_pre.weight", z, one);
    t->ln_bias = param_vector(table, prefix, "ln_pre.bias", z, zero);
    v->pos_embed = param_add(table, param_name(name, prefix, "positional_embedding"), 3, c->pos_grid * c->pos_grid, 1,
                             D, 0, LAYOUT_PLAIN, init_normal(0, 1 / sqrt((double)D)));
    for (int i = 0; i < c->depth; i++) {
        snprintf(name, sizeof name, "%stransformer.%d.", prefix, i);
        token_decoder_register_block(&v->blocks[i], c, table, name);
    }
    v->blocks[c->depth].norm1_weight = param_vector(table, prefix, "ln_post.weight", D, one);
    v->blocks[c->depth].norm1_bias = param_vector(table, prefix, "ln_post.bias", D, zero);
    int first = table->n;
    t->conv_out = conv_layer_register(table, prefix, "conv_out", conv_same(D, z, 3));
    large_decoder_init(table, first);
}

// Plans what outlives the forward, for B latents of h x w.
void token_decoder_plan(token_decoder_t* t, plan_t* keep, int B, int h, int w, int train) {
    size_t rows = (size_t)B * h * w;
    plan_floatS(keep, &t->mean, rows, "ln_pre mean");
    plan_floatS(keep, &t->rstd, rows, "ln_pre rstd");
    plan_floatX(keep, &t->normed, rows * t->z, "ln_pre");
    plan_floatX(keep, &t->out, rows * t->z, "tokens out");
    vit_plan_trunk(&t->vit, keep, B, h, w, train);
}

// Plans what lives only while it runs, with up to `extra` images in the backward's extra stream.
void token_decoder_plan_work(token_decoder_t* t, plan_t* work, int extra) {
    const vit_t* v = &t->vit;
    size_t tokens = (size_t)v->GH * v->GW;
    vit_plan_trunk_work(&t->vit, work);
    if (!v->train) return;
    plan_floatX(work, &t->dfeatures, (extra + v->B) * tokens * v->config.dim, "tokens conv_out gradient");
    plan_floatX(work, &t->dnormed, v->B * tokens * t->z, "ln_pre gradient");
}

// Writes t->out. `in` must stay unchanged until the backward. A LayerNorm of floatX is a GroupNorm with one group over
// one position.
void token_decoder_forward(token_decoder_t* t, const params_t* p,
                           const floatX* in, // (B, h, w, z)
                           stream_t s) {
    vit_t* v = &t->vit;
    int rows = v->B * v->GH * v->GW, z = t->z;
    t->in = in;
    groupnorm_forward(t->normed, t->mean, t->rstd, in, params_at(p, t->ln_weight), params_at(p, t->ln_bias), rows, 1, z,
                      1, LARGE_NORM_EPS, ACT_NONE, s);
    matmul_forward(v->patches, t->normed, params_at(p, t->embed_weight), params_at(p, t->embed_bias), rows, z,
                   v->config.dim, s);
    vit_trunk_forward(v, p, s);
    conv_layer_forward(t->out, v->features, NULL, &t->conv_out, p, v->B, v->GH, v->GW, ACT_NONE, s);
}

// One stream of gradients, of the first `images` images of the batch, from conv_out's input down.
void token_decoder_backward_stream(token_decoder_t* t, const params_t* p,
                                   floatX* din,             // (images, h, w, z), or NULL: nobody wants it
                                   const floatX* dfeatures, // (images, h, w, D)
                                   int images, stream_t s) {
    vit_t* v = &t->vit;
    int B = v->B, rows = images * v->GH * v->GW, z = t->z;
    v->B = images;
    vit_trunk_backward(v, p, dfeatures, s);
    v->B = B;
    matmul_backward(t->dnormed, params_grad(p, t->embed_weight), params_grad(p, t->embed_bias), v->dbranch, t->normed,
                    params_at(p, t->embed_weight), rows, z, v->config.dim, s);
    if (!din) din = v->patches; // free in the backward, and large enough
    groupnorm_backward(din, params_grad(p, t->ln_weight), params_grad(p, t->ln_bias), t->dnormed, NULL, t->in,
                       params_at(p, t->ln_weight), params_at(p, t->ln_bias), t->mean, t->rstd, rows, 1, z, 1, ACT_NONE,
                       s);
}

// dout and din hold the extra stream, of the first `extra` images, and then the whole batch, from which the parameter
// gradients (+=) are formed.
void token_decoder_backward(token_decoder_t* t, const params_t* p,
                            floatX* din,        // (extra + B, h, w, z) or NULL
                            const floatX* dout, // (extra + B, h, w, z)
                            int extra, stream_t s) {
    const vit_t* v = &t->vit;
    int B = v->B, h = v->GH, w = v->GW;
    size_t latent = (size_t)h * w * t->z, features = (size_t)h * w * v->config.dim;
    conv_layer_backward_weight(&t->conv_out, p, dout + extra * latent, v->features, B, h, w, s);
    conv_layer_backward_data(t->dfeatures, dout, NULL, &t->conv_out, p, extra + B, h, w, ACT_NONE, s);
    params_t frozen = *p;
    frozen.grads = NULL;
    if (extra && din) token_decoder_backward_stream(t, &frozen, din, t->dfeatures, extra, s);
    token_decoder_backward_stream(t, p, din ? din + extra * latent : NULL, t->dfeatures + extra * features, B, s);
}

// Multiply-accumulates for one latent of h x w.
static inline uint64_t token_decoder_macs(const token_decoder_t* t, int h, int w) {
    uint64_t N = (uint64_t)h * w, embed = N * t->z * t->vit.config.dim;
    return embed + vit_trunk_macs(&t->vit, N) + conv_macs(t->conv_out.shape, h, w);
}

// ---------------------------------------------------------------------------------------------------------------------
// Style: the scales and shifts of the adaptive norms

typedef struct {
    int z, width;                    // channels of u; of all adaptive norms together
    size_t gamma_weight, gamma_bias; // (width, z), (width)
    size_t beta_weight, beta_bias;
    floatS *mean, *deviation;        // (B, z) of u
    floatX *mean_x, *deviation_x;    // (B, z) the same as the products read them
    floatX *dmean, *ddeviation;      // (extra + B, z)
} style_t;

// One tensor for each adaptive norm of the stack, one behind the other: path + "adaptive.0." + name, ... Returns the
// offset of the first.
static inline size_t style_register_part(const style_t* y, param_table_t* table, const char* path,
                                         const layer_stack_t* stack, const char* name, int columns) {
    size_t begin = table->total;
    int level = 0;
    for (int i = 0; i < stack->n; i++) {
        const adaptive_norm_t* n = &stack->layers[i].norm;
        char suffix[60];
        if (stack->layers[i].kind != LAYER_ADAPTIVE_NORM) continue;
        snprintf(suffix, sizeof suffix, "adaptive.%d.%s", level++, name);
        if (columns) param_matrix(table, path, suffix, n->C, columns, init_normal(0, LARGE_INIT_STD));
        else param_vector(table, path, suffix, n->C, init_constant(0));
    }
    assert(table->total - begin == (size_t)y->width * (columns ? columns : 1)); // no padding between them
    return begin;
}

// Registers the tensors of a stack's adaptive norms. z: channels of u.
void style_register(style_t* y, param_table_t* table, const char* path, const layer_stack_t* stack, int z) {
    for (int i = 0; i < stack->n; i++) {
        const layer_t* layer = &stack->layers[i];
        if (layer->kind != LAYER_ADAPTIVE_NORM || layer->C % PARAM_ALIGNMENT == 0) continue;
        fatal("%sadaptive: a norm of %d channels; choose a multiple of %d", path, layer->C, PARAM_ALIGNMENT);
    }
    y->z = z;
    y->width = stack->work.style.width;
    y->gamma_weight = style_register_part(y, table, path, stack, "gamma.weight", z);
    y->gamma_bias = style_register_part(y, table, path, stack, "gamma.bias", 0);
    y->beta_weight = style_register_part(y, table, path, stack, "beta.weight", z);
    y->beta_bias = style_register_part(y, table, path, stack, "beta.bias", 0);
}

// Plans what outlives the forward; `rows` are those of the stack that it serves.
void style_plan(style_t* y, style_rows_t* rows, plan_t* keep, int B) {
    size_t n = (size_t)B * y->z;
    plan_floatS(keep, &y->mean, n, "style mean");
    plan_floatS(keep, &y->deviation, n, "style deviation");
    plan_floatX(keep, &y->mean_x, n, "style mean");
    plan_floatX(keep, &y->deviation_x, n, "style deviation");
    plan_floatX(keep, &rows->scale, (size_t)B * y->width, "style scale");
    plan_floatX(keep, &rows->shift, (size_t)B * y->width, "style shift");
}

// Plans what lives while the decoder's backward runs.
void style_plan_work(style_t* y, style_rows_t* rows, plan_t* work, int images) {
    plan_floatX(work, &y->dmean, (size_t)images * y->z, "style mean gradient");
    plan_floatX(work, &y->ddeviation, (size_t)images * y->z, "style deviation gradient");
    plan_floatX(work, &rows->dscale, (size_t)images * y->width, "style scale gradient");
    plan_floatX(work, &rows->dshift, (size_t)images * y->width, "style shift gradient");
}

void style_forward(style_t* y, const style_rows_t* rows, const params_t* p,
                   const floatX* u, // (B, HW, z)
                   int B, int HW, stream_t s) {
    channel_moments_forward(y->mean, y->deviation, u, B, HW, y->z, GROUPNORM_EPS, s);
    to_floatX(y->mean_x, y->mean, (size_t)B * y->z, s);
    to_floatX(y->deviation_x, y->deviation, (size_t)B * y->z, s);
    matmul_forward(rows->scale, y->deviation_x, params_at(p, y->gamma_weight), params_at(p, y->gamma_bias), B, y->z,
                   y->width, s);
    matmul_forward(rows->shift, y->mean_x, params_at(p, y->beta_weight), params_at(p, y->beta_bias), B, y->z, y->width,
                   s);
}

// From the gradients of scales and shifts to those of Gamma, Beta (+=) and, on top of what du holds, of u.
void style_backward(style_t* y, const style_rows_t* rows, const params_t* p,
                    floatX* du,      // (extra + B, HW, z) in place, or NULL
                    const floatX* u, // (B, HW, z)
                    int extra, int B, int HW, stream_t s) {
    size_t map = (size_t)extra * HW * y->z, main_at = (size_t)extra * y->width;
    matmul_backward(NULL, params_grad(p, y->gamma_weight), params_grad(p, y->gamma_bias), rows->dscale + main_at,
                    y->deviation_x, NULL, B, y->z, y->width, s);
    matmul_backward(NULL, params_grad(p, y->beta_weight), params_grad(p, y->beta_bias), rows->dshift + main_at,
                    y->mean_x, NULL, B, y->z, y->width, s);
    if (!du) return;
    matmul_backward(y->ddeviation, NULL, NULL, rows->dscale, NULL, params_at(p, y->gamma_weight), extra + B, y->z,
                    y->width, s);
    matmul_backward(y->dmean, NULL, NULL, rows->dshift, NULL, params_at(p, y->beta_weight), extra + B, y->z, y->width,
                    s);
    if (extra) {
        channel_moments_backward(du, y->dmean, y->ddeviation, du, u, y->mean, y->deviation, extra, HW, y->z, s);
    }
    size_t row = (size_t)extra * y->z;
    channel_moments_backward(du + map, y->dmean + row, y->ddeviation + row, du + map, u, y->mean, y->deviation, B, HW,
                             y->z, s);
}
