// blocks.h: the building blocks of the LDM autoencoder, and a stack that runs them one behind the other.
//
// Encoder and decoder of a latent-diffusion autoencoder (Rombach et al. 2022) are chains of the first four of these
// kinds of layers; a larger decoder (GigaTok, Xiong et al. 2025) has the last two:
//
//   ResBlock    y = S(x) + conv2(swish(norm2(c1))),  c1 = conv1(swish(norm1(x)));  S is the identity, or a 1x1
//               convolution of the raw x where the number of channels changes
//   AttnBlock   y = x + proj(attention(q, k, v)),  q, k, v = 1x1 convolutions of norm(x);  one head over all positions
//   upsample    nearest neighbour twice the size, then conv 3x3
//   downsample  conv 3x3 with stride 2 and a row and column of zeros below and to the right only
//   to space    conv 3x3 to 4C channels, which become 2 x 2 positions of C
//   adaptive    GroupNorm whose scale and shift are each image's own: pieces of rows that hold those of all such
//               layers. Who uses the stack makes these rows and takes their gradients (common/models/large_decoder.h)
//
// Memory. What the backward needs of a ResBlock is x (the output of the layer before), c1 and the statistics of both
// norms; norm and swish are computed again, which is cheap beside a convolution. An AttnBlock keeps q, k, v, the
// attention's output and its log-sum-exp.
//
// Two streams. The backward is linear in the gradient that comes in. The adaptive weights of the tokenizer need two
// gradients at the latent: of the reconstruction alone, and of the whole objective. So the backward can carry a second
// gradient for the first `extra` images of the batch. Gradients are (extra + B, H, W, C): first the extra stream, then
// the main one. An operation that needs no saved activation sees one long batch; the others run once for each stream.
// Parameter gradients come from the main stream.
//
// Names: LDM, ldm/modules/diffusionmodules/model.py. Look next at common/models/decoder.h, which lines the blocks up.
#pragma once
#include <assert.h>
// defines: conv_t, activation_t, every operation
#include "common/ops.h"
// defines: params_t, param_table_t, params_at, params_grad, init_fan_in
#include "common/models/params.h"
// defines: plan_t, plan_floatX, plan_floatS
#include "common/models/plan.h"

#define GROUPNORM_EPS 1e-6
enum { STACK_MAX = 96 }; // layers of one stack

// The shape of an autoencoder. The latent is 2^(levels - 1) times smaller than the image.
typedef struct {
    int ch;               // channels at full resolution
    int levels;           // resolutions
    int ch_mult[8];       // channels at level l are ch * ch_mult[l]; level 0 is the full resolution
    int res_blocks;       // ResBlocks a level of the encoder; the decoder has one more
    unsigned attn_levels; // bit l: an AttnBlock behind each ResBlock of level l
    int z_channels;       // channels of the latent
    int groups;           // of every GroupNorm
    int quant_conv;       // a 1x1 convolution at the latent: quant_conv of the encoder, post_quant_conv of the decoder
} autoencoder_config_t;

// The f16 autoencoder of VA-VAE and AlignTok. z_channels is 32 or 64.
static inline autoencoder_config_t autoencoder_f16(int z_channels, int quant_conv) {
    autoencoder_config_t c = {128, 5, {1, 1, 2, 2, 4, 0, 0, 0}, 2, 1u << 4, z_channels, 32, quant_conv};
    return c;
}

// Ends the program unless H and W are multiples of the down-sampling factor.
static inline void autoencoder_check_size(const autoencoder_config_t* c, int H, int W) {
    int f = 1 << (c->levels - 1);
    if (H < f || W < f || H % f || W % f) {
        fatal("an image of %d x %d does not suit an autoencoder with a down-sampling factor of %d; height and width "
              "have to be multiples of %d", H, W, f, f);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Layers with their place in the parameter table

// A convolution. bias is NO_TENSOR where there is none.
typedef struct {
    conv_t shape;
    size_t weight, bias;
} conv_layer_t;
#define NO_TENSOR ((size_t)-1)

// A GroupNorm with its saved statistics.
typedef struct {
    int C, groups;
    size_t weight, bias;
    floatS* mean; // (B, groups)
    floatS* rstd; // (B, groups)
} groupnorm_layer_t;

static inline conv_t conv_same(int C, int OC, int K) {
    return conv_square(C, OC, K, 1, K / 2, K / 2);
}

// Registers path + name + ".weight" and ".bias", both with PyTorch's default initialiser.
conv_layer_t conv_layer_register(param_table_t* table, const char* path, const char* name, conv_t shape) {
    char suffix[80];
    init_t init = init_fan_in(shape.C * shape.KH * shape.KW);
    conv_layer_t layer = {shape, 0, 0};
    snprintf(suffix, sizeof suffix, "%s.weight", name);
    layer.weight = param_conv(table, path, suffix, shape.OC, shape.C, shape.KH, init);
    snprintf(suffix, sizeof suffix, "%s.bias", name);
    layer.bias = param_vector(table, path, suffix, shape.OC, init);
    return layer;
}

static inline uint64_t conv_macs(conv_t c, int H, int W) {
    return (uint64_t)conv_out_height(H, c) * conv_out_width(W, c) * c.OC * c.KH * c.KW * c.C;
}

void conv_layer_forward(floatX* out,            // (B, OH, OW, OC)
                        const floatX* x,        // (B, H, W, C)
                        const floatX* residual, // (B, OH, OW, OC) or NULL
                        const conv_layer_t* layer, const params_t* p, int B, int H, int W, activation_t act,
                        stream_t s) {
    const floatX* bias = layer->bias == NO_TENSOR ? NULL : params_at(p, layer->bias);
    conv2d_forward(out, x, params_at(p, layer->weight), bias, residual, B, H, W, layer->shape, act, s);
}

// Does nothing where the weight is frozen.
void conv_layer_backward_weight(const conv_layer_t* layer, const params_t* p,
                                const floatX* dout, // (B, OH, OW, OC)
                                const floatX* x,    // (B, H, W, C)
                                int B, int H, int W, stream_t s) {
    floatS* dweight = params_grad(p, layer->weight);
    floatS* dbias = layer->bias == NO_TENSOR ? NULL : params_grad(p, layer->bias);
    if (dweight) conv2d_backward_weight(dweight, dbias, dout, x, B, H, W, layer->shape, s);
}

void conv_layer_backward_data(floatX* dx,         // (B, H, W, C)
                              const floatX* dout, // (B, OH, OW, OC)
                              const floatX* mask, // (B, H, W, C) x where x is the output of `act`, or NULL
                              const conv_layer_t* layer, const params_t* p, int B, int H, int W, activation_t act,
                              stream_t s) {
    conv2d_backward_data(dx, dout, params_at(p, layer->weight), mask, B, H, W, layer->shape, act, s);
}

groupnorm_layer_t groupnorm_layer_register(param_table_t* table, const char* path, const char* name, int C,
                                           int groups) {
    if (groups < 1 || C % groups) fatal("%s%s: %d channels cannot be cut into %d groups", path, name, C, groups);
    char suffix[80];
    groupnorm_layer_t layer = {C, groups, 0, 0, NULL, NULL};
    snprintf(suffix, sizeof suffix, "%s.weight", name);
    layer.weight = param_vector(table, path, suffix, C, init_constant(1));
    snprintf(suffix, sizeof suffix, "%s.bias", name);
    layer.bias = param_vector(table, path, suffix, C, init_constant(0));
    return layer;
}

void groupnorm_layer_plan(groupnorm_layer_t* layer, plan_t* keep, int B) {
    plan_floatS(keep, &layer->mean, (size_t)B * layer->groups, "groupnorm mean");
    plan_floatS(keep, &layer->rstd, (size_t)B * layer->groups, "groupnorm rstd");
}

void groupnorm_layer_forward(floatX* out,     // (B, HW, C)
                             const floatX* x, // (B, HW, C)
                             const groupnorm_layer_t* n, const params_t* p, int B, int HW, activation_t act,
                             stream_t s) {
    groupnorm_forward(out, n->mean, n->rstd, x, params_at(p, n->weight), params_at(p, n->bias), B, HW, n->C, n->groups,
                      GROUPNORM_EPS, act, s);
}

// The forward's output again.
void groupnorm_layer_again(floatX* out,     // (B, HW, C)
                           const floatX* x, // (B, HW, C)
                           const groupnorm_layer_t* n, const params_t* p, int B, int HW, activation_t act, stream_t s) {
    groupnorm_apply(out, x, params_at(p, n->weight), params_at(p, n->bias), n->mean, n->rstd, B, HW, n->C, n->groups,
                    act, s);
}

// dx = add + gradient, the extra stream first, then the main one with the parameter gradients. In place: dx may be add.
void groupnorm_layer_backward(floatX* dx,         // (extra + B, HW, C)
                              const floatX* dout, // (extra + B, HW, C)
                              const floatX* add,  // (extra + B, HW, C) or NULL
                              const floatX* x,    // (B, HW, C)
                              const groupnorm_layer_t* n, const params_t* p, int B, int HW, int extra, activation_t act,
                              stream_t s) {
    size_t main_at = (size_t)extra * HW * n->C;
    const floatX* weight = params_at(p, n->weight);
    const floatX* bias = params_at(p, n->bias);
    if (extra) {
        groupnorm_backward(dx, NULL, NULL, dout, add, x, weight, bias, n->mean, n->rstd, extra, HW, n->C, n->groups,
                           act, s);
    }
    groupnorm_backward(dx + main_at, params_grad(p, n->weight), params_grad(p, n->bias), dout + main_at,
                       add ? add + main_at : NULL, x, weight, bias, n->mean, n->rstd, B, HW, n->C, n->groups, act, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// What the layers of a stack share while it runs

// Scales and shifts of all adaptive norms of a stack, and their gradients.
typedef struct {
    int width;               // channels of these norms together
    floatX *scale, *shift;   // (B, width)
    floatX *dscale, *dshift; // (extra + B, width)
} style_rows_t;

// A backward finds the gradient of its output in grad[0] and leaves that of its input in grad[0]; it may exchange the
// three pointers to do so.
typedef struct {
    style_rows_t style;
    int extra;       // images of the extra stream
    floatX* act;     // (B, H, W, C) of the largest layer: an activation in passing
    floatX* grad[3]; // (extra + B, H, W, C) of the largest layer; the forward uses grad[0] for a shortcut
} block_work_t;

static inline void block_work_swap(block_work_t* work, int i, int j) {
    floatX* t = work->grad[i];
    work->grad[i] = work->grad[j];
    work->grad[j] = t;
}

// The main stream in grad[i]; n elements an image.
static inline const floatX* block_work_main(const block_work_t* work, int i, size_t n) {
    return work->grad[i] + work->extra * n;
}

// ---------------------------------------------------------------------------------------------------------------------
// ResBlock

typedef struct {
    int C, OC;
    groupnorm_layer_t norm1, norm2;
    conv_layer_t conv1, conv2;
    conv_layer_t shortcut; // nin_shortcut, where C != OC
    floatX* c1;            // (B, H, W, OC) output of conv1
} resblock_t;

void resblock_register(resblock_t* b, param_table_t* table, const char* path, int C, int OC, int groups) {
    b->C = C;
    b->OC = OC;
    b->norm1 = groupnorm_layer_register(table, path, "norm1", C, groups);
    b->conv1 = conv_layer_register(table, path, "conv1", conv_same(C, OC, 3));
    b->norm2 = groupnorm_layer_register(table, path, "norm2", OC, groups);
    b->conv2 = conv_layer_register(table, path, "conv2", conv_same(OC, OC, 3));
    if (C != OC) b->shortcut = conv_layer_register(table, path, "nin_shortcut", conv_same(C, OC, 1));
}

void resblock_plan(resblock_t* b, plan_t* keep, int B, int H, int W) {
    groupnorm_layer_plan(&b->norm1, keep, B);
    groupnorm_layer_plan(&b->norm2, keep, B);
    plan_floatX(keep, &b->c1, (size_t)B * H * W * b->OC, "resblock c1");
}

void resblock_forward(floatX* out,     // (B, H, W, OC)
                      const floatX* x, // (B, H, W, C)
                      const resblock_t* b, const params_t* p, const block_work_t* work, int B, int H, int W,
                      stream_t s) {
    const floatX* residual = x;
    if (b->C != b->OC) {
        conv_layer_forward(work->grad[0], x, NULL, &b->shortcut, p, B, H, W, ACT_NONE, s);
        residual = work->grad[0];
    }
    groupnorm_layer_forward(work->act, x, &b->norm1, p, B, H * W, ACT_SWISH, s);
    conv_layer_forward(b->c1, work->act, NULL, &b->conv1, p, B, H, W, ACT_NONE, s);
    groupnorm_layer_forward(work->act, b->c1, &b->norm2, p, B, H * W, ACT_SWISH, s);
    conv_layer_forward(out, work->act, residual, &b->conv2, p, B, H, W, ACT_NONE, s);
}

// The branch from the end to the start, then the shortcut's gradient is added in the first norm's backward.
void resblock_backward(block_work_t* work,
                       const floatX* x, // (B, H, W, C)
                       const resblock_t* b, const params_t* p, int B, int H, int W, stream_t s) {
    size_t n = (size_t)H * W * b->OC;
    int extra = work->extra, images = extra + B;
    if (params_grad(p, b->conv2.weight)) {
        groupnorm_layer_again(work->act, b->c1, &b->norm2, p, B, H * W, ACT_SWISH, s);
        conv_layer_backward_weight(&b->conv2, p, block_work_main(work, 0, n), work->act, B, H, W, s);
    }
    conv_layer_backward_data(work->grad[1], work->grad[0], NULL, &b->conv2, p, images, H, W, ACT_NONE, s);
    groupnorm_layer_backward(work->grad[2], work->grad[1], NULL, b->c1, &b->norm2, p, B, H * W, extra, ACT_SWISH, s);
    if (params_grad(p, b->conv1.weight)) {
        groupnorm_layer_again(work->act, x, &b->norm1, p, B, H * W, ACT_SWISH, s);
        conv_layer_backward_weight(&b->conv1, p, block_work_main(work, 2, n), work->act, B, H, W, s);
    }
    conv_layer_backward_data(work->grad[1], work->grad[2], NULL, &b->conv1, p, images, H, W, ACT_NONE, s);
    if (b->C != b->OC) {
        conv_layer_backward_weight(&b->shortcut, p, block_work_main(work, 0, n), x, B, H, W, s);
        conv_layer_backward_data(work->grad[2], work->grad[0], NULL, &b->shortcut, p, images, H, W, ACT_NONE, s);
        block_work_swap(work, 0, 2);
    }
    floatX* add = work->grad[0];
    groupnorm_layer_backward(work->grad[0], work->grad[1], add, x, &b->norm1, p, B, H * W, extra, ACT_SWISH, s);
}

static inline uint64_t resblock_macs(const resblock_t* b, int H, int W) {
    uint64_t shortcut = b->C != b->OC ? conv_macs(b->shortcut.shape, H, W) : 0;
    return conv_macs(b->conv1.shape, H, W) + conv_macs(b->conv2.shape, H, W) + shortcut;
}

// ---------------------------------------------------------------------------------------------------------------------
// AttnBlock

// The weights of q, k and v are registered one behind the other and so form one (3C, C) matrix; the biases likewise.
typedef struct {
    int C;
    groupnorm_layer_t norm;
    size_t qkv_weight, qkv_bias;
    conv_layer_t proj_out;
    floatX* qkv; // (B, T, 3, C)
    floatX* out; // (B, T, C) output of the attention
    floatS* lse; // (B, T)
} attnblock_t;

void attnblock_register(attnblock_t* b, param_table_t* table, const char* path, int C, int groups) {
    if (C % PARAM_ALIGNMENT) fatal("%s: attention over %d channels; choose a multiple of %d", path, C, PARAM_ALIGNMENT);
    b->C = C;
    b->norm = groupnorm_layer_register(table, path, "norm", C, groups);
    b->qkv_weight = param_conv(table, path, "q.weight", C, C, 1, init_fan_in(C));
    param_conv(table, path, "k.weight", C, C, 1, init_fan_in(C));
    param_conv(table, path, "v.weight", C, C, 1, init_fan_in(C));
    b->qkv_bias = param_vector(table, path, "q.bias", C, init_fan_in(C));
    param_vector(table, path, "k.bias", C, init_fan_in(C));
    param_vector(table, path, "v.bias", C, init_fan_in(C));
    assert(b->qkv_bias == b->qkv_weight + 3 * (size_t)C * C && table->total == b->qkv_bias + 3 * (size_t)C);
    b->proj_out = conv_layer_register(table, path, "proj_out", conv_same(C, C, 1));
}

void attnblock_plan(attnblock_t* b, plan_t* keep, int B, int H, int W) {
    size_t rows = (size_t)B * H * W;
    groupnorm_layer_plan(&b->norm, keep, B);
    plan_floatX(keep, &b->qkv, rows * 3 * b->C, "attnblock qkv");
    plan_floatX(keep, &b->out, rows * b->C, "attnblock out");
    plan_floatS(keep, &b->lse, rows, "attnblock lse");
}

void attnblock_forward(floatX* out,     // (B, H, W, C)
                       const floatX* x, // (B, H, W, C)
                       const attnblock_t* b, const params_t* p, const block_work_t* work, int B, int H, int W,
                       stream_t s) {
    int T = H * W, C = b->C;
    groupnorm_layer_forward(work->act, x, &b->norm, p, B, T, ACT_NONE, s);
    size_t rows = (size_t)B * T;
    matmul_forward(b->qkv, work->act, params_at(p, b->qkv_weight), params_at(p, b->qkv_bias), rows, C, 3 * C, s);
    attention_forward(b->out, b->lse, b->qkv, NULL, B, T, 1, C, s);
    conv_layer_forward(out, b->out, x, &b->proj_out, p, B, H, W, ACT_NONE, s);
}

void attnblock_backward(block_work_t* work,
                        const floatX* x, // (B, H, W, C)
                        const attnblock_t* b, const params_t* p, int B, int H, int W, stream_t s) {
    int T = H * W, C = b->C;
    int images = work->extra + B;
    size_t n = (size_t)T * C, main_at = work->extra * n;
    floatX* dout = work->grad[1];
    floatX* dqkv = work->grad[2];
    conv_layer_backward_weight(&b->proj_out, p, block_work_main(work, 0, n), b->out, B, H, W, s);
    conv_layer_backward_data(dout, work->grad[0], NULL, &b->proj_out, p, images, H, W, ACT_NONE, s);
    if (work->extra) attention_backward(dqkv, dout, b->qkv, b->out, b->lse, NULL, work->extra, T, 1, C, s);
    attention_backward(dqkv + 3 * main_at, dout + main_at, b->qkv, b->out, b->lse, NULL, B, T, 1, C, s);
    if (params_grad(p, b->qkv_weight)) {
        groupnorm_layer_again(work->act, x, &b->norm, p, B, T, ACT_NONE, s);
        matmul_backward(NULL, params_grad(p, b->qkv_weight), params_grad(p, b->qkv_bias), dqkv + 3 * main_at, work->act,
                        NULL, (size_t)B * T, C, 3 * C, s);
    }
    floatX* dnormed = work->grad[1];
    matmul_backward(dnormed, NULL, NULL, dqkv, NULL, params_at(p, b->qkv_weight), (size_t)images * T, C, 3 * C, s);
    groupnorm_layer_backward(work->grad[0], dnormed, work->grad[0], x, &b->norm, p, B, T, work->extra, ACT_NONE, s);
}

static inline uint64_t attnblock_macs(const attnblock_t* b, int H, int W) {
    uint64_t T = (uint64_t)H * W, C = (uint64_t)b->C;
    return 4 * T * C * C + 2 * T * T * C;
}

// ---------------------------------------------------------------------------------------------------------------------
// Adaptive norm: no parameters of its own

typedef struct {
    int C, groups, first; // its channels are first ... first + C - 1 of the rows of scales and shifts
    floatS* mean;         // (B, groups)
    floatS* rstd;         // (B, groups)
} adaptive_norm_t;

void adaptive_norm_plan(adaptive_norm_t* n, plan_t* keep, int B) {
    plan_floatS(keep, &n->mean, (size_t)B * n->groups, "adaptive norm mean");
    plan_floatS(keep, &n->rstd, (size_t)B * n->groups, "adaptive norm rstd");
}

void adaptive_norm_forward(floatX* out,     // (B, HW, C)
                           const floatX* x, // (B, HW, C)
                           const adaptive_norm_t* n, const block_work_t* work, int B, int HW, stream_t s) {
    const style_rows_t* r = &work->style;
    adaptive_groupnorm_forward(out, n->mean, n->rstd, x, r->scale + n->first, r->shift + n->first, r->width, B, HW,
                               n->C, n->groups, GROUPNORM_EPS, s);
}

void adaptive_norm_backward(block_work_t* work,
                            const floatX* x, // (B, HW, C)
                            const adaptive_norm_t* n, int B, int HW, stream_t s) {
    const style_rows_t* r = &work->style;
    const floatX *dout = work->grad[0], *scale = r->scale + n->first;
    floatX *dx = work->grad[1], *dscale = r->dscale + n->first, *dshift = r->dshift + n->first;
    for (int stream = work->extra ? 0 : 1; stream < 2; stream++) { // the extra one, then the main one
        size_t at = stream ? work->extra : 0, map = at * HW * n->C, row = at * r->width;
        adaptive_groupnorm_backward(dx + map, dscale + row, dshift + row, dout + map, x, scale, n->mean, n->rstd,
                                    r->width, stream ? B : work->extra, HW, n->C, n->groups, s);
    }
    block_work_swap(work, 0, 1);
}

// ---------------------------------------------------------------------------------------------------------------------
// A stack of layers

typedef enum {
    LAYER_RES, LAYER_ATTN, LAYER_UPSAMPLE, LAYER_DOWNSAMPLE, LAYER_TO_SPACE, LAYER_ADAPTIVE_NORM
} layer_kind_t;

typedef struct {
    layer_kind_t kind;
    int C, OC;         // channels of input and output
    int H, W;          // size of the input
    resblock_t res;    // the member that `kind` names is used
    attnblock_t attn;
    conv_layer_t conv; // of a change of resolution
    adaptive_norm_t norm;
    floatX* out;       // (B, OH, OW, OC)
} layer_t;

typedef struct {
    layer_t layers[STACK_MAX];
    int n;
    int B;
    block_work_t work;
} layer_stack_t;

static inline layer_t* stack_add(layer_stack_t* stack, layer_kind_t kind, int C, int OC) {
    if (stack->n == STACK_MAX) fatal("an autoencoder of over %d layers; choose fewer levels or ResBlocks", STACK_MAX);
    layer_t* layer = &stack->layers[stack->n++];
    memset(layer, 0, sizeof *layer);
    layer->kind = kind;
    layer->C = C;
    layer->OC = OC;
    return layer;
}

// `path` is the name of the level with a dot behind it. `blocks` ResBlocks from C to OC channels, each followed by an
// AttnBlock where `attn` is set: path + "block.0.", "attn.0.", "block.1.", ...
void stack_add_level(layer_stack_t* stack, param_table_t* table, const char* path, int blocks, int C, int OC, int attn,
                     int groups) {
    for (int i = 0; i < blocks; i++) {
        char name[80];
        snprintf(name, sizeof name, "%sblock.%d.", path, i);
        resblock_register(&stack_add(stack, LAYER_RES, C, OC)->res, table, name, C, OC, groups);
        snprintf(name, sizeof name, "%sattn.%d.", path, i);
        if (attn) attnblock_register(&stack_add(stack, LAYER_ATTN, OC, OC)->attn, table, name, OC, groups);
        C = OC;
    }
}

// The middle of either network: path + "block_1.", "attn_1.", "block_2.".
void stack_add_middle(layer_stack_t* stack, param_table_t* table, const char* path, int C, int groups) {
    char name[80];
    snprintf(name, sizeof name, "%sblock_1.", path);
    resblock_register(&stack_add(stack, LAYER_RES, C, C)->res, table, name, C, C, groups);
    snprintf(name, sizeof name, "%sattn_1.", path);
    attnblock_register(&stack_add(stack, LAYER_ATTN, C, C)->attn, table, name, C, groups);
    snprintf(name, sizeof name, "%sblock_2.", path);
    resblock_register(&stack_add(stack, LAYER_RES, C, C)->res, table, name, C, C, groups);
}

void stack_add_upsample(layer_stack_t* stack, param_table_t* table, const char* path, int C) {
    conv_t shape = conv_same(C, C, 3);
    stack_add(stack, LAYER_UPSAMPLE, C, C)->conv = conv_layer_register(table, path, "upsample.conv", shape);
}

void stack_add_downsample(layer_stack_t* stack, param_table_t* table, const char* path, int C) {
    conv_t shape = conv_square(C, C, 3, 2, 0, 1);
    stack_add(stack, LAYER_DOWNSAMPLE, C, C)->conv = conv_layer_register(table, path, "downsample.conv", shape);
}

void stack_add_to_space(layer_stack_t* stack, param_table_t* table, const char* path, int C) {
    conv_t shape = conv_same(C, 4 * C, 3);
    stack_add(stack, LAYER_TO_SPACE, C, C)->conv = conv_layer_register(table, path, "upsample.conv1", shape);
}

void stack_add_adaptive_norm(layer_stack_t* stack, int C, int groups) {
    adaptive_norm_t* n = &stack_add(stack, LAYER_ADAPTIVE_NORM, C, C)->norm;
    n->C = C;
    n->groups = groups;
    n->first = stack->work.style.width;
    stack->work.style.width += C;
}

static inline int layer_out_size(const layer_t* layer, int size) {
    if (layer->kind == LAYER_UPSAMPLE || layer->kind == LAYER_TO_SPACE) return 2 * size;
    if (layer->kind == LAYER_DOWNSAMPLE) return conv_out_height(size, layer->conv.shape);
    return size;
}

// The largest buffer an image needs in the work memory while this layer runs, in elements.
static inline size_t layer_work_size(const layer_t* layer) {
    size_t in = (size_t)layer->H * layer->W;
    size_t out = (size_t)layer_out_size(layer, layer->H) * layer_out_size(layer, layer->W);
    size_t at_in = in * (layer->kind == LAYER_ATTN ? 3 * layer->C : layer->C);
    size_t at_out = out * (layer->OC > layer->C ? layer->OC : layer->C);
    return at_in > at_out ? at_in : at_out;
}

// Plans what outlives the run, for B images whose feature map enters with size H x W. The stack must not move in memory
// between this and plan_allocate().
void stack_plan(layer_stack_t* stack, plan_t* keep, int B, int H, int W) {
    stack->B = B;
    for (int i = 0; i < stack->n; i++) {
        layer_t* layer = &stack->layers[i];
        layer->H = H;
        layer->W = W;
        if (layer->kind == LAYER_RES) resblock_plan(&layer->res, keep, B, H, W);
        if (layer->kind == LAYER_ATTN) attnblock_plan(&layer->attn, keep, B, H, W);
        if (layer->kind == LAYER_ADAPTIVE_NORM) adaptive_norm_plan(&layer->norm, keep, B);
        H = layer_out_size(layer, H);
        W = layer_out_size(layer, W);
        plan_floatX(keep, &layer->out, (size_t)B * H * W * layer->OC, "layer output");
    }
}

// Plans a forward that no backward follows: the layers' outputs take turns in two places, and what else they need
// shares a third. A ResBlock keeps c1 where its output comes: c1's last reader, norm2, is done then.
void stack_plan_forward(layer_stack_t* stack, plan_t* work, int B, int H, int W) {
    plan_t sizes = {NULL, 0, 0, 0, 0, 0, 0, NULL};
    stack_plan(stack, &sizes, B, H, W); // every layer's H and W
    plan_free(&sizes);
    size_t largest = 0;
    for (int i = 0; i < stack->n; i++) {
        size_t n = layer_work_size(&stack->layers[i]);
        if (n > largest) largest = n;
    }
    plan_floatX(work, &stack->work.act, B * largest, "layer activation");
    plan_floatX(work, &stack->work.grad[0], B * largest, "shortcut");
    size_t place[2], inside, end;
    for (int k = 0; k < 2; k++) {
        place[k] = plan_mark(work);
        plan_floatX(work, &stack->work.grad[1 + k], B * largest, "layer output");
    }
    inside = end = plan_mark(work);
    for (int i = 0; i < stack->n; i++) {
        layer_t* layer = &stack->layers[i];
        plan_rewind(work, place[i % 2]);
        plan_floatX(work, &layer->out, B * largest, "layer output");
        plan_rewind(work, place[i % 2]);
        if (layer->kind == LAYER_RES) plan_floatX(work, &layer->res.c1, B * largest, "resblock c1");
        plan_rewind(work, inside);
        if (layer->kind == LAYER_RES) groupnorm_layer_plan(&layer->res.norm1, work, B);
        if (layer->kind == LAYER_RES) groupnorm_layer_plan(&layer->res.norm2, work, B);
        if (layer->kind == LAYER_ATTN) attnblock_plan(&layer->attn, work, B, layer->H, layer->W);
        if (layer->kind == LAYER_ADAPTIVE_NORM) adaptive_norm_plan(&layer->norm, work, B);
        if (plan_mark(work) > end) end = plan_mark(work);
    }
    plan_rewind(work, end);
}

// Plans what lives only while the stack runs, with up to `extra` images in the extra stream of gradients.
void stack_plan_work(layer_stack_t* stack, plan_t* work, int extra) {
    size_t largest = 0, images = extra + stack->B;
    stack->work.extra = extra;
    for (int i = 0; i < stack->n; i++) {
        size_t n = layer_work_size(&stack->layers[i]);
        if (n > largest) largest = n;
    }
    plan_floatX(work, &stack->work.act, stack->B * largest, "layer activation");
    for (int i = 0; i < 3; i++) plan_floatX(work, &stack->work.grad[i], images * largest, "layer gradient");
}

void layer_forward(const layer_t* layer,
                   const floatX* x, // (B, H, W, C)
                   const params_t* p, const block_work_t* work, int B, stream_t s) {
    int H = layer->H, W = layer->W;
    if (layer->kind == LAYER_RES) resblock_forward(layer->out, x, &layer->res, p, work, B, H, W, s);
    if (layer->kind == LAYER_ATTN) attnblock_forward(layer->out, x, &layer->attn, p, work, B, H, W, s);
    if (layer->kind == LAYER_UPSAMPLE) {
        upsample_forward(work->act, x, B, H, W, layer->C, s);
        conv_layer_forward(layer->out, work->act, NULL, &layer->conv, p, B, 2 * H, 2 * W, ACT_NONE, s);
    }
    if (layer->kind == LAYER_DOWNSAMPLE) conv_layer_forward(layer->out, x, NULL, &layer->conv, p, B, H, W, ACT_NONE, s);
    if (layer->kind == LAYER_TO_SPACE) {
        conv_layer_forward(work->act, x, NULL, &layer->conv, p, B, H, W, ACT_NONE, s);
        unpatchify_forward(layer->out, work->act, B, 2 * H, 2 * W, layer->C, 2, s);
    }
    if (layer->kind == LAYER_ADAPTIVE_NORM) adaptive_norm_forward(layer->out, x, &layer->norm, work, B, H * W, s);
}

// A change of resolution backwards. An upsampled map is twice the size of x on each side and is made again.
void resample_backward(block_work_t* work,
                       const floatX* x, // (B, H, W, C)
                       const layer_t* layer, const params_t* p, int B, stream_t s) {
    int up = layer->kind == LAYER_UPSAMPLE, images = work->extra + B;
    int H = layer->H, W = layer->W, conv_H = up ? 2 * H : H, conv_W = up ? 2 * W : W;
    const floatX* conv_x = x;
    size_t n = (size_t)layer_out_size(layer, H) * layer_out_size(layer, W) * layer->C;
    if (up && params_grad(p, layer->conv.weight)) {
        upsample_forward(work->act, x, B, H, W, layer->C, s);
        conv_x = work->act;
    }
    conv_layer_backward_weight(&layer->conv, p, block_work_main(work, 0, n), conv_x, B, conv_H, conv_W, s);
    conv_layer_backward_data(work->grad[1], work->grad[0], NULL, &layer->conv, p, images, conv_H, conv_W, ACT_NONE, s);
    if (up) {
        upsample_backward(work->grad[0], work->grad[1], images, H, W, layer->C, s);
    } else {
        block_work_swap(work, 0, 1);
    }
}

// The gradient goes back from space to depth, then through the convolution.
void to_space_backward(block_work_t* work,
                       const floatX* x, // (B, H, W, C)
                       const layer_t* layer, const params_t* p, int B, stream_t s) {
    int H = layer->H, W = layer->W, images = work->extra + B;
    unpatchify_backward(work->grad[1], work->grad[0], images, 2 * H, 2 * W, layer->C, 2, s);
    const floatX* dconv = block_work_main(work, 1, (size_t)H * W * 4 * layer->C);
    conv_layer_backward_weight(&layer->conv, p, dconv, x, B, H, W, s);
    conv_layer_backward_data(work->grad[0], work->grad[1], NULL, &layer->conv, p, images, H, W, ACT_NONE, s);
}

// Returns the last layer's output.
const floatX* stack_forward(layer_stack_t* stack, const params_t* p,
                            const floatX* x, // (B, H, W, C)
                            stream_t s) {
    for (int i = 0; i < stack->n; i++) {
        layer_forward(&stack->layers[i], x, p, &stack->work, stack->B, s);
        x = stack->layers[i].out;
    }
    return x;
}

// From the gradient of the last layer's output in work->grad[0] to that of x, the stack's input, in work->grad[0].
void stack_backward(const layer_stack_t* stack, block_work_t* work, const params_t* p,
                    const floatX* x, // (B, H, W, C)
                    stream_t s) {
    for (int i = stack->n - 1; i >= 0; i--) {
        const layer_t* layer = &stack->layers[i];
        const floatX* in = i ? stack->layers[i - 1].out : x;
        switch (layer->kind) {
        case LAYER_RES: resblock_backward(work, in, &layer->res, p, stack->B, layer->H, layer->W, s); break;
        case LAYER_ATTN: attnblock_backward(work, in, &layer->attn, p, stack->B, layer->H, layer->W, s); break;
        case LAYER_TO_SPACE: to_space_backward(work, in, layer, p, stack->B, s); break;
        case LAYER_ADAPTIVE_NORM:
            adaptive_norm_backward(work, in, &layer->norm, stack->B, layer->H * layer->W, s);
            break;
        default: resample_backward(work, in, layer, p, stack->B, s);
        }
    }
}

// Multiply-accumulates of one image whose feature map enters with size H x W.
static inline uint64_t stack_macs(const layer_stack_t* stack, int H, int W) {
    uint64_t macs = 0;
    for (int i = 0; i < stack->n; i++) {
        const layer_t* layer = &stack->layers[i];
        int up = layer->kind == LAYER_UPSAMPLE;
        if (layer->kind == LAYER_RES) macs += resblock_macs(&layer->res, H, W);
        else if (layer->kind == LAYER_ATTN) macs += attnblock_macs(&layer->attn, H, W);
        else if (layer->kind == LAYER_ADAPTIVE_NORM) continue; // none, and the size stays
        else macs += conv_macs(layer->conv.shape, up ? 2 * H : H, up ? 2 * W : W);
        H = layer_out_size(layer, H);
        W = layer_out_size(layer, W);
    }
    return macs;
}
