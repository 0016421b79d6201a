// cnn_encoder.h: the CNN encoder of the baselines, from an image (B, H, W, 3) to the moments of a latent (B, h, w, 2
// z).
//
// The vanilla VAE and VA-VAE encode with a CNN where AlignTok has a ViT and an adapter. It is the encoder of the LDM
// autoencoder (Rombach et al. 2022), the mirror image of common/models/decoder.h:
//
//   conv_in 3x3
//   for each level, full resolution first: res_blocks ResBlocks (with AttnBlocks at some levels), downsample x1/2
//   middle (ResBlock, AttnBlock, ResBlock)  norm_out + swish  conv_out 3x3  [quant_conv 1x1]
//
// The moments are mean and log-variance of a Gaussian, one behind the other along the channels; posterior_forward
// (common/ops.h) draws the latent. At f16 with 32 latent channels there are 28,413,248 parameters in 144 tensors, not
// counting quant_conv, and an image of 256 x 256 costs 68.97 G multiply-accumulates.
//
// The image gets no gradient. As in the decoder, the gradient of conv_out's weight can be had for a part of the batch:
// VA-VAE weighs its alignment loss by it.
//
// Names: LDM, ldm/modules/diffusionmodules/model.py, class Encoder. The blocks stand in common/models/blocks.h.
#pragma once
// defines: autoencoder_config_t, layer_stack_t, conv_layer_t, groupnorm_layer_t and their functions
#include "common/models/blocks.h"

typedef autoencoder_config_t cnn_encoder_config_t; // the same numbers describe encoder and decoder

typedef struct {
    cnn_encoder_config_t config;
    conv_layer_t conv_in, conv_out, quant_conv;
    layer_stack_t stack;
    groupnorm_layer_t norm_out;
    int B, H, W;         // of the plan
    const floatX* image; // (B, H, W, 3) of the last forward; the backward reads it again
    floatX* first;       // (B, H, W, ch) conv_in's output
    floatX* last;        // (B, h, w, C) swish(norm_out), conv_out's input
    floatX* conv_out_y;  // (B, h, w, 2 z_channels) conv_out's output, where a quant_conv follows
    floatX* moments;     // (B, h, w, 2 z_channels)
    floatX* dconv_out_y; // (B, h, w, 2 z_channels)
} cnn_encoder_t;

static inline int encoder_latent(const cnn_encoder_t* e, int size) { return size >> (e->config.levels - 1); }

// Registers the tensors of e->config: prefix + "encoder.", prefix + "quant_conv.".
void cnn_encoder_register(cnn_encoder_t* e, param_table_t* table, const char* prefix) {
    const cnn_encoder_config_t* c = &e->config;
    char path[80];
    int C = c->ch, moments = 2 * c->z_channels;
    e->stack.n = 0;
    snprintf(path, sizeof path, "%sencoder.", prefix);
    e->conv_in = conv_layer_register(table, path, "conv_in", conv_same(3, C, 3));
    for (int level = 0; level < c->levels; level++) {
        int OC = c->ch * c->ch_mult[level];
        snprintf(path, sizeof path, "%sencoder.down.%d.", prefix, level);
        stack_add_level(&e->stack, table, path, c->res_blocks, C, OC, c->attn_levels >> level & 1, c->groups);
        if (level < c->levels - 1) stack_add_downsample(&e->stack, table, path, OC);
        C = OC;
    }
    snprintf(path, sizeof path, "%sencoder.mid.", prefix);
    stack_add_middle(&e->stack, table, path, C, c->groups);
    snprintf(path, sizeof path, "%sencoder.", prefix);
    e->norm_out = groupnorm_layer_register(table, path, "norm_out", C, c->groups);
    e->conv_out = conv_layer_register(table, path, "conv_out", conv_same(C, moments, 3));
    if (c->quant_conv) e->quant_conv = conv_layer_register(table, prefix, "quant_conv", conv_same(moments, moments, 1));
}

// Plans what outlives the forward, for B images of H x W pixels.
void cnn_encoder_plan(cnn_encoder_t* e, plan_t* keep, int B, int H, int W) {
    autoencoder_check_size(&e->config, H, W);
    e->B = B;
    e->H = H;
    e->W = W;
    size_t latents = (size_t)B * encoder_latent(e, H) * encoder_latent(e, W);
    plan_floatX(keep, &e->first, (size_t)B * H * W * e->config.ch, "encoder conv_in");
    stack_plan(&e->stack, keep, B, H, W);
    groupnorm_layer_plan(&e->norm_out, keep, B);
    plan_floatX(keep, &e->last, latents * e->norm_out.C, "encoder norm_out");
    plan_floatX(keep, &e->moments, latents * e->conv_out.shape.OC, "encoder moments");
    if (e->config.quant_conv) plan_floatX(keep, &e->conv_out_y, latents * e->conv_out.shape.OC, "encoder conv_out");
}

// Plans what lives only while the encoder runs.
void cnn_encoder_plan_work(cnn_encoder_t* e, plan_t* work) {
    size_t latents = (size_t)e->B * encoder_latent(e, e->H) * encoder_latent(e, e->W);
    stack_plan_work(&e->stack, work, 0);
    if (e->config.quant_conv) {
        plan_floatX(work, &e->dconv_out_y, latents * e->conv_out.shape.OC, "encoder conv_out gradient");
    }
}

// Plans an encoder of which only the forward will run: `moments` outlives it, all else shares memory.
void cnn_encoder_plan_forward(cnn_encoder_t* e, plan_t* keep, plan_t* work, int B, int H, int W) {
    autoencoder_check_size(&e->config, H, W);
    e->B = B;
    e->H = H;
    e->W = W;
    size_t latents = (size_t)B * encoder_latent(e, H) * encoder_latent(e, W);
    plan_floatX(keep, &e->moments, latents * e->conv_out.shape.OC, "encoder moments");
    if (e->config.quant_conv) plan_floatX(work, &e->conv_out_y, latents * e->conv_out.shape.OC, "encoder conv_out");
    plan_floatX(work, &e->first, (size_t)B * H * W * e->config.ch, "encoder conv_in");
    size_t mark = plan_mark(work);
    stack_plan_forward(&e->stack, work, B, H, W);
    groupnorm_layer_plan(&e->norm_out, work, B);
    size_t end = plan_mark(work);
    plan_rewind(work, mark); // where the stack has its activations in passing
    plan_floatX(work, &e->last, latents * e->norm_out.C, "encoder norm_out");
    plan_rewind(work, end);
}

// e->moments = encoder(image). The image must stay unchanged until the backward.
void cnn_encoder_forward(cnn_encoder_t* e, const params_t* p,
                     const floatX* image, // (B, H, W, 3)
                     stream_t s) {
    int B = e->B, h = encoder_latent(e, e->H), w = encoder_latent(e, e->W), quant_conv = e->config.quant_conv;
    e->image = image;
    conv_layer_forward(e->first, image, NULL, &e->conv_in, p, B, e->H, e->W, ACT_NONE, s);
    const floatX* x = stack_forward(&e->stack, p, e->first, s);
    groupnorm_layer_forward(e->last, x, &e->norm_out, p, B, h * w, ACT_SWISH, s);
    conv_layer_forward(quant_conv ? e->conv_out_y : e->moments, e->last, NULL, &e->conv_out, p, B, h, w, ACT_NONE, s);
    if (quant_conv) conv_layer_forward(e->moments, e->conv_out_y, NULL, &e->quant_conv, p, B, h, w, ACT_NONE, s);
}

// The gradient at conv_out's output from the one at the moments: dmoments itself, or taken through quant_conv.
const floatX* cnn_encoder_conv_out_upstream(const cnn_encoder_t* e, const params_t* p,
                                        const floatX* dmoments, // (images, h, w, 2 z_channels)
                                        int images, stream_t s) {
    if (!e->config.quant_conv) return dmoments;
    int h = encoder_latent(e, e->H), w = encoder_latent(e, e->W);
    conv_layer_backward_data(e->dconv_out_y, dmoments, NULL, &e->quant_conv, p, images, h, w, ACT_NONE, s);
    return e->dconv_out_y;
}

// The gradient of conv_out for `images` images from `first_image` on.
void cnn_encoder_conv_out_gradient(const cnn_encoder_t* e, const params_t* p,
                               floatS* dweight,        // (2 z_channels, 3, 3, C) +=
                               floatS* dbias,          // (2 z_channels) += or NULL
                               const floatX* dmoments, // (images, h, w, 2 z_channels) of these images
                               int first_image, int images, stream_t s) {
    int h = encoder_latent(e, e->H), w = encoder_latent(e, e->W);
    size_t at = (size_t)first_image * h * w;
    const floatX* dout = cnn_encoder_conv_out_upstream(e, p, dmoments, images, s);
    conv2d_backward_weight(dweight, dbias, dout, e->last + at * e->norm_out.C, images, h, w, e->conv_out.shape, s);
}

// All parameter gradients. conv_out_done: the gradient of conv_out's weight and bias was formed by the caller.
void cnn_encoder_backward(cnn_encoder_t* e, const params_t* p,
                      const floatX* dmoments, // (B, h, w, 2 z_channels)
                      int conv_out_done, stream_t s) {
    int B = e->B, h = encoder_latent(e, e->H), w = encoder_latent(e, e->W);
    block_work_t work = e->stack.work;
    if (e->config.quant_conv) conv_layer_backward_weight(&e->quant_conv, p, dmoments, e->conv_out_y, B, h, w, s);
    const floatX* dout = cnn_encoder_conv_out_upstream(e, p, dmoments, B, s);
    if (!conv_out_done) conv_layer_backward_weight(&e->conv_out, p, dout, e->last, B, h, w, s);
    conv_layer_backward_data(work.grad[1], dout, NULL, &e->conv_out, p, B, h, w, ACT_NONE, s);
    const floatX* x = e->stack.layers[e->stack.n - 1].out;
    groupnorm_layer_backward(work.grad[0], work.grad[1], NULL, x, &e->norm_out, p, B, h * w, 0, ACT_SWISH, s);
    stack_backward(&e->stack, &work, p, e->first, s);
    conv_layer_backward_weight(&e->conv_in, p, work.grad[0], e->image, B, e->H, e->W, s);
}

// Multiply-accumulates of encoding one image of H x W pixels.
uint64_t cnn_encoder_macs(const cnn_encoder_t* e, int H, int W) {
    int h = encoder_latent(e, H), w = encoder_latent(e, W);
    uint64_t quant = e->config.quant_conv ? conv_macs(e->quant_conv.shape, h, w) : 0;
    return conv_macs(e->conv_in.shape, H, W) + stack_macs(&e->stack, H, W) + conv_macs(e->conv_out.shape, h, w) + quant;
}
