// decoder.h: the decoder of the tokenizer, from a latent (B, h, w, z) to an image (B, H, W, 3).
//
// It is a CNN, the decoder of the LDM autoencoder (Rombach et al. 2022) as VA-VAE and AlignTok use it:
//
//   [post_quant_conv 1x1]  conv_in 3x3  middle (ResBlock, AttnBlock, ResBlock)
//   for each level, the lowest resolution first: res_blocks + 1 ResBlocks (with AttnBlocks at some levels), upsample x2
//   norm_out + swish  conv_out 3x3
//
// The image is 2^(levels - 1) times larger than the latent, of whatever size, and is not clamped: no output activation.
// The attention stays at its level. At f16 with 32 latent channels there are 41,417,603 parameters in 194 tensors, and
// an image of 256 x 256 costs 126.09 G multiply-accumulates.
//
// The larger decoder of AlignTok's ablation, GigaTok's, has a transformer in front of such a CNN, and another way of
// upsampling and norms that know the latent in the place of attention (common/models/large_decoder.h):
//
//   tokens  conv_in 3x3  middle (ResBlock, ResBlock)
//   for each level: adaptive norm, res_blocks + 1 ResBlocks, conv 3x3 and depth-to-space x2
//   norm_out + swish  conv_out 3x3
//
// The gradient of conv_out's weight is a quantity of its own in the training recipe: its norm for each loss and each
// chunk of images sets the loss weights. decoder_conv_out_gradient() gives it for a part of the batch, and
// decoder_backward() can leave it out. How two gradients go down together is told in common/models/blocks.h.
//
// Names: LDM, ldm/modules/diffusionmodules/model.py, class Decoder; GigaTok, tokenizer/tokenizer_image/vq/blocks.py.
// Look next at common/training/tokenizer.h, the user.
#pragma once
// defines: autoencoder_config_t, layer_stack_t, conv_layer_t, groupnorm_layer_t and their functions
#include "common/models/blocks.h"
// defines: token_decoder_t, style_t and their functions
#include "common/models/large_decoder.h"

typedef autoencoder_config_t decoder_config_t; // the same numbers describe encoder and decoder

// The memory plans hold addresses of this struct's members: it must stay where it is once it is planned.
typedef struct {
    decoder_config_t config;
    token_decoder_t tokens; // of the larger decoder: tokens.vit.config.depth > 0, set before registering
    style_t style;          // of the larger decoder
    conv_layer_t post_quant_conv, conv_in, conv_out;
    layer_stack_t stack;
    groupnorm_layer_t norm_out;
    int B, h, w;         // images and latent size of the plan
    const floatX* z;     // (B, h, w, z_channels) the latent of the last forward; the backward reads it again
    floatX* conv_in_x;   // (B, h, w, z_channels) post_quant_conv's output, where there is one
    floatX* first;       // (B, h, w, C) conv_in's output
    floatX* last;        // (B, H, W, ch) swish(norm_out), conv_out's input
    floatX* out;         // (B, H, W, 3)
    floatX* dconv_in_x;  // (extra + B, h, w, z_channels)
} decoder_t;

static inline int decoder_is_large(const decoder_t* d) { return d->tokens.vit.config.depth > 0; }

static inline int decoder_channels(const decoder_config_t* c, int level) { return c->ch * c->ch_mult[level]; }

// Registers the larger decoder: prefix + "s2ddecoder.", prefix + "decoder.".
void decoder_register_large(decoder_t* d, param_table_t* table, const char* prefix) {
    const decoder_config_t* c = &d->config;
    layer_stack_t* stack = &d->stack;
    char path[80], name[80];
    int zc = c->z_channels, C = decoder_channels(c, c->levels - 1);
    assert(!c->quant_conv);
    snprintf(path, sizeof path, "%ss2ddecoder.", prefix);
    token_decoder_register(&d->tokens, table, path, zc);
    int first = table->n;
    snprintf(path, sizeof path, "%sdecoder.", prefix);
    d->conv_in = conv_layer_register(table, path, "conv_in", conv_same(zc, C, 3));
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%sdecoder.mid.%d.", prefix, i);
        resblock_register(&stack_add(stack, LAYER_RES, C, C)->res, table, name, C, C, c->groups);
    }
    for (int k = 0; k < c->levels; k++) {
        int level = c->levels - 1 - k, OC = decoder_channels(c, level);
        stack_add_adaptive_norm(stack, C, c->groups);
        for (int i = 0; i <= c->res_blocks; i++, C = OC) {
            snprintf(name, sizeof name, "%sdecoder.conv_blocks.%d.res.%d.", prefix, k, i);
            resblock_register(&stack_add(stack, LAYER_RES, C, OC)->res, table, name, C, OC, c->groups);
        }
        snprintf(name, sizeof name, "%sdecoder.conv_blocks.%d.", prefix, k);
        if (level) stack_add_to_space(stack, table, name, OC);
    }
    d->norm_out = groupnorm_layer_register(table, path, "norm_out", C, c->groups);
    d->conv_out = conv_layer_register(table, path, "conv_out", conv_same(C, 3, 3));
    style_register(&d->style, table, path, stack, zc);
    large_decoder_init(table, first);
}

// Registers the tensors of d->config: prefix + "post_quant_conv.", prefix + "decoder.".
void decoder_register(decoder_t* d, param_table_t* table, const char* prefix) {
    const decoder_config_t* c = &d->config;
    char path[80];
    int zc = c->z_channels, C = decoder_channels(c, c->levels - 1);
    d->stack.n = d->stack.work.style.width = 0;
    if (decoder_is_large(d)) {
        decoder_register_large(d, table, prefix);
        return;
    }
    if (c->quant_conv) d->post_quant_conv = conv_layer_register(table, prefix, "post_quant_conv", conv_same(zc, zc, 1));
    snprintf(path, sizeof path, "%sdecoder.", prefix);
    d->conv_in = conv_layer_register(table, path, "conv_in", conv_same(zc, C, 3));
    snprintf(path, sizeof path, "%sdecoder.mid.", prefix);
    stack_add_middle(&d->stack, table, path, C, c->groups);
    for (int level = c->levels - 1; level >= 0; level--) {
        int OC = decoder_channels(c, level);
        snprintf(path, sizeof path, "%sdecoder.up.%d.", prefix, level);
        stack_add_level(&d->stack, table, path, c->res_blocks + 1, C, OC, c->attn_levels >> level & 1, c->groups);
        if (level) stack_add_upsample(&d->stack, table, path, OC);
        C = OC;
    }
    snprintf(path, sizeof path, "%sdecoder.", prefix);
    d->norm_out = groupnorm_layer_register(table, path, "norm_out", C, c->groups);
    d->conv_out = conv_layer_register(table, path, "conv_out", conv_same(C, 3, 3));
}

static inline int decoder_height(const decoder_t* d) { return d->h << (d->config.levels - 1); }
static inline int decoder_width(const decoder_t* d) { return d->w << (d->config.levels - 1); }

static inline void decoder_set_size(decoder_t* d, int B, int h, int w) {
    if (decoder_is_large(d) && h * w < 2) {
        fatal("the larger decoder takes the deviation of a latent over its positions: it cannot decode a latent of one "
              "position. Give larger images, or the decoder fewer levels");
    }
    d->B = B;
    d->h = h;
    d->w = w;
}

// The images of the forwards to come, at most those planned for.
static inline void decoder_set_batch(decoder_t* d, int B) { d->B = d->stack.B = d->tokens.vit.B = B; }

// Plans what outlives the forward, for B latents of h x w.
void decoder_plan(decoder_t* d, plan_t* keep, int B, int h, int w) {
    decoder_set_size(d, B, h, w);
    size_t latents = (size_t)B * h * w, pixels = (size_t)B * decoder_height(d) * decoder_width(d);
    if (d->config.quant_conv) plan_floatX(keep, &d->conv_in_x, latents * d->config.z_channels, "post_quant_conv");
    if (decoder_is_large(d)) {
        token_decoder_plan(&d->tokens, keep, B, h, w, 1);
        style_plan(&d->style, &d->stack.work.style, keep, B);
    }
    plan_floatX(keep, &d->first, latents * d->conv_in.shape.OC, "decoder conv_in");
    stack_plan(&d->stack, keep, B, h, w);
    groupnorm_layer_plan(&d->norm_out, keep, B);
    plan_floatX(keep, &d->last, pixels * d->norm_out.C, "decoder norm_out");
    plan_floatX(keep, &d->out, pixels * 3, "decoder out");
}

// Plans what lives only while the decoder runs, with up to `extra` images (0 to B) in the backward's extra stream.
void decoder_plan_work(decoder_t* d, plan_t* work, int extra) {
    size_t latents = (size_t)(extra + d->B) * d->h * d->w;
    int large = decoder_is_large(d);
    if (d->config.quant_conv || large) {
        plan_floatX(work, &d->dconv_in_x, latents * d->config.z_channels, "conv_in gradient");
    }
    if (large) style_plan_work(&d->style, &d->stack.work.style, work, extra + d->B);
    size_t mark = plan_mark(work);
    stack_plan_work(&d->stack, work, extra);
    size_t end = plan_mark(work);
    if (!large) return;
    plan_rewind(work, mark); // the tokens' part runs when the stack does not
    token_decoder_plan_work(&d->tokens, work, extra);
    if (plan_mark(work) < end) plan_rewind(work, end);
}

// Plans a decoder of which only the forward will run: `out` outlives it, all else shares memory.
void decoder_plan_forward(decoder_t* d, plan_t* keep, plan_t* work, int B, int h, int w) {
    decoder_set_size(d, B, h, w);
    size_t latents = (size_t)B * h * w, pixels = (size_t)B * decoder_height(d) * decoder_width(d);
    size_t tokens_end = 0;
    plan_floatX(keep, &d->out, pixels * 3, "decoder out");
    if (d->config.quant_conv) plan_floatX(work, &d->conv_in_x, latents * d->config.z_channels, "post_quant_conv");
    if (decoder_is_large(d)) {
        style_plan(&d->style, &d->stack.work.style, work, B);
        token_decoder_plan(&d->tokens, work, B, h, w, 0);
        size_t mark = plan_mark(work);
        token_decoder_plan_work(&d->tokens, work, 0);
        tokens_end = plan_mark(work);
        plan_rewind(work, mark); // the stack's memory begins where the transformer has worked
    }
    plan_floatX(work, &d->first, latents * d->conv_in.shape.OC, "decoder conv_in");
    size_t mark = plan_mark(work);
    stack_plan_forward(&d->stack, work, B, h, w);
    groupnorm_layer_plan(&d->norm_out, work, B);
    size_t end = plan_mark(work) > tokens_end ? plan_mark(work) : tokens_end;
    plan_rewind(work, mark); // where the stack has its activations in passing
    plan_floatX(work, &d->last, pixels * d->norm_out.C, "decoder norm_out");
    plan_rewind(work, end);
}

// d->out = decoder(z). z must stay unchanged until the backward.
void decoder_forward(decoder_t* d, const params_t* p,
                     const floatX* z, // (B, h, w, z_channels)
                     stream_t s) {
    int B = d->B, H = decoder_height(d), W = decoder_width(d);
    const floatX* x = z;
    d->z = z;
    if (d->config.quant_conv) {
        conv_layer_forward(d->conv_in_x, z, NULL, &d->post_quant_conv, p, B, d->h, d->w, ACT_NONE, s);
        x = d->conv_in_x;
    }
    if (decoder_is_large(d)) {
        token_decoder_forward(&d->tokens, p, z, s);
        x = d->tokens.out;
        style_forward(&d->style, &d->stack.work.style, p, x, B, d->h * d->w, s);
    }
    conv_layer_forward(d->first, x, NULL, &d->conv_in, p, B, d->h, d->w, ACT_NONE, s);
    x = stack_forward(&d->stack, p, d->first, s);
    groupnorm_layer_forward(d->last, x, &d->norm_out, p, B, H * W, ACT_SWISH, s);
    conv_layer_forward(d->out, d->last, NULL, &d->conv_out, p, B, H, W, ACT_NONE, s);
}

// The gradient of conv_out for `images` images from `first_image` on.
void decoder_conv_out_gradient(const decoder_t* d,
                               floatS* dweight,    // (3, 3, 3, ch) +=
                               floatS* dbias,      // (3) += or NULL
                               const floatX* dout, // (images, H, W, 3) of these images
                               int first_image, int images, stream_t s) {
    int H = decoder_height(d), W = decoder_width(d);
    size_t at = (size_t)first_image * H * W;
    conv2d_backward_weight(dweight, dbias, dout, d->last + at * d->norm_out.C, images, H, W, d->conv_out.shape, s);
}

// conv_in, style and tokens of the larger decoder; work->grad[0] is the gradient of conv_in's output.
void decoder_backward_tokens(decoder_t* d, const params_t* p, floatX* dz, const block_work_t* work, stream_t s) {
    int images = work->extra + d->B, h = d->h, w = d->w;
    const floatX *u = d->tokens.out, *dfirst = block_work_main(work, 0, (size_t)h * w * d->conv_in.shape.OC);
    conv_layer_backward_weight(&d->conv_in, p, dfirst, u, d->B, h, w, s);
    floatX* du = dz || params_grad(p, d->tokens.embed_weight) ? d->dconv_in_x : NULL;
    if (du) conv_layer_backward_data(du, work->grad[0], NULL, &d->conv_in, p, images, h, w, ACT_NONE, s);
    style_backward(&d->style, &work->style, p, du, u, work->extra, d->B, h * w, s);
    if (du) token_decoder_backward(&d->tokens, p, dz, du, work->extra, s);
}

// conv_in and post_quant_conv; work->grad[0] is the gradient of conv_in's output.
void decoder_backward_input(decoder_t* d, const params_t* p, floatX* dz, const block_work_t* work, stream_t s) {
    int images = work->extra + d->B, quant_conv = d->config.quant_conv, h = d->h, w = d->w;
    size_t latents = (size_t)h * w, zc = d->config.z_channels;
    const floatX* dfirst = block_work_main(work, 0, latents * d->conv_in.shape.OC);
    conv_layer_backward_weight(&d->conv_in, p, dfirst, quant_conv ? d->conv_in_x : d->z, d->B, h, w, s);
    if (!quant_conv) {
        if (dz) conv_layer_backward_data(dz, work->grad[0], NULL, &d->conv_in, p, images, h, w, ACT_NONE, s);
        return;
    }
    if (!dz && !params_grad(p, d->post_quant_conv.weight)) return;
    conv_layer_backward_data(d->dconv_in_x, work->grad[0], NULL, &d->conv_in, p, images, h, w, ACT_NONE, s);
    const floatX* dmain = d->dconv_in_x + work->extra * latents * zc;
    conv_layer_backward_weight(&d->post_quant_conv, p, dmain, d->z, d->B, h, w, s);
    if (dz) conv_layer_backward_data(dz, d->dconv_in_x, NULL, &d->post_quant_conv, p, images, h, w, ACT_NONE, s);
}

// All gradients below the image. dout holds the extra stream, whose images are the first `extra` of the batch, and then
// the whole batch, from which the parameter gradients (+=) are formed; dz is laid out likewise. conv_out_done: the
// gradient of conv_out's weight and bias was formed by the caller. dz NULL: nothing below the decoder learns.
void decoder_backward(decoder_t* d, const params_t* p,
                      floatX* dz,         // (extra + B, h, w, z_channels) or NULL
                      const floatX* dout, // (extra + B, H, W, 3)
                      int extra, int conv_out_done, stream_t s) {
    int B = d->B, H = decoder_height(d), W = decoder_width(d);
    assert(extra >= 0 && extra <= d->stack.work.extra);
    block_work_t work = d->stack.work;
    work.extra = extra;
    const floatX* dmain = dout + (size_t)extra * H * W * 3;
    if (!conv_out_done) conv_layer_backward_weight(&d->conv_out, p, dmain, d->last, B, H, W, s);
    conv_layer_backward_data(work.grad[1], dout, NULL, &d->conv_out, p, extra + B, H, W, ACT_NONE, s);
    const floatX* x = d->stack.layers[d->stack.n - 1].out;
    groupnorm_layer_backward(work.grad[0], work.grad[1], NULL, x, &d->norm_out, p, B, H * W, extra, ACT_SWISH, s);
    stack_backward(&d->stack, &work, p, d->first, s);
    if (decoder_is_large(d)) decoder_backward_tokens(d, p, dz, &work, s);
    else decoder_backward_input(d, p, dz, &work, s);
}

// Multiply-accumulates of decoding one image of H x W pixels.
uint64_t decoder_macs(const decoder_t* d, int H, int W) {
    int f = 1 << (d->config.levels - 1), h = H / f, w = W / f;
    uint64_t front = d->config.quant_conv ? conv_macs(d->post_quant_conv.shape, h, w) : 0;
    if (decoder_is_large(d)) front += token_decoder_macs(&d->tokens, h, w) + 2 * (uint64_t)d->style.width * d->style.z;
    return front + conv_macs(d->conv_in.shape, h, w) + stack_macs(&d->stack, h, w) + conv_macs(d->conv_out.shape, H, W);
}
