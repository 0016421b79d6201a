// tokenizer.h: the AlignTok tokenizer, the baselines it is compared with, and one training step of them.
//
//     image x --ViT encoder E--> tokens e --adapter A--> latent z --decoder D--> reconstruction xhat
//
// Three stages train it (AlignTok, section 3):
//     1  latent alignment      A, D learn to reconstruct; E (DINOv2) is frozen: z is semantic, xhat is poor
//     2  perceptual alignment  E, A, D learn; a semantic loss holds z at z0, the latent of the frozen stage-1 E0, A0
//     3  decoder refinement    D alone learns on the latents of stage 2's averaged E, A
//
// The loss of a chunk of images (8: what one GPU of the reference held), all terms at once:
//     nll = 1/B sum |x - xhat| + 3HW w_lpips LPIPS / B          a sum over pixels, as in VA-VAE
//     L   = nll + omega_g L_g + omega_s L_sem
//     omega_g = w_gan clip(|d nll / d W_c| / (|d L_g   / d W_c| + 1e-4), 0, 1e4)      W_c = decoder.conv_out.weight
//     omega_s = w_sem clip(|d nll / d W_e| / (|d L_sem / d W_e| + 1e-4), 0, 1e8)      W_e = adapter.fc2.weight, or the
//                                                                                     last ViT block's mlp.fc2.weight
// Variations of stage 2: L_sem may compare E's tokens with E0's instead (before the adapter, whose weights it then does
// not reach: W_e lies in the ViT); and the ViT may stay frozen and learn through low-rank pairs (common/models/lora.h).
//
// The baselines have one stage, in which all that they have learns from random weights (common/models/latent_encoder.h
// says what encodes). Their latent is drawn from a Gaussian, and KL is its divergence from N(0, 1):
//     VAE      L = nll + omega_g L_g + w_kl KL                                          (LDM: Rombach et al. 2022)
//     VA-VAE   L = nll + omega_g L_g + w_kl KL + omega_s L_vf                           (Yao et al. 2025)
// L_vf pulls the latent towards a frozen vision model (common/models/vf_head.h). It takes the place of L_sem in
// omega_s, whose W_e is the encoder's conv_out.weight where that is a CNN.
//
// omega are constants in the derivative. A batch is several chunks in one pass; BatchNorm statistics and both omega are
// taken per chunk, and chunks' gradients are averaged.
//
// Why one backward is enough. For fixed activations the decoder's backward is linear in d xhat. So two gradients are
// formed at the image, a_nll = d nll / d xhat and a_gan = d L_g / d xhat; the gradient of W_c for each gives omega_g;
// and only a_nll + omega_g a_gan goes down the decoder. Where the latent is held (stage 2, VA-VAE), |d nll / d W_e| is
// needed too, that is a_nll alone at z: a second stream of data gradients (no weight gradients) goes down beside it.
//
// Images of a step have one size, but steps may differ in it: whoever plans several sizes before the memory is
// allocated turns from one to another with tokenizer_resize. Nothing of the model changes but the position table, which
// the encoder resamples in every forward anyway.
//
// What a step does: tokenizer_gradients (forward, both backwards: of the tokenizer and of the discriminator), then
// tokenizer_update. Nothing in it allocates or waits; tokenizer_read brings the losses to the host.
// Look next at train_tokenizer.cu, the loop around it; the models stand in latent_encoder.h, decoder.h, patchgan.h,
// lpips.h, vf_head.h.
#pragma once
// defines: the operations
#include "common/ops.h"
// defines: plan_t, plan_floatX, plan_mark, plan_rewind, plan_again, plan_set
#include "common/models/plan.h"
// defines: params_t, params_at, params_grad
#include "common/models/params.h"
// defines: comm_t, replicas_t, replicas_open, replicas_mean_grads, replicas_sum_squares, replicas_update
#include "common/training/replicas.h"
// defines: ema_gamma, ema_power_beta
#include "common/training/ema.h"
// defines: vit_plan_folded, vit_fold, vit_backward, vit_last_fc2_gradient, vit_trunk_macs
#include "common/models/vit.h"
// defines: lora_config_t, lora_draw, lora_rest
#include "common/models/lora.h"
// defines: latent_encoder_t, latent_encoder_forward, latent_encoder_backward, latent_encoder_last_gradients
#include "common/models/latent_encoder.h"
// defines: decoder_t, decoder_forward, decoder_backward, decoder_conv_out_gradient
#include "common/models/decoder.h"
// defines: patchgan_t, patchgan_acts_t, patchgan_forward, patchgan_backward
#include "common/models/patchgan.h"
// defines: lpips_t, lpips_forward, lpips_backward
#include "common/models/lpips.h"
// defines: vf_head_t, vf_head_loss, vf_head_projection_gradient
#include "common/models/vf_head.h"

#define ADAPTIVE_MAX_GAN 1e4      // clip of the raw ratio, VA-VAE's value for its GAN term
#define ADAPTIVE_MAX_SEMANTIC 1e8 // and for its alignment term

typedef enum { RECIPE_ALIGNTOK, RECIPE_VAE, RECIPE_VAVAE } recipe_t;
typedef enum { SEMANTIC_L2, SEMANTIC_COSINE } semantic_kind_t;
typedef enum { SEMANTIC_OF_LATENT, SEMANTIC_OF_TOKENS } semantic_place_t;    // what is held: z, or the encoder's tokens
typedef enum { SEMANTIC_AT_ADAPTER, SEMANTIC_AT_FC2 } semantic_tensor_t;     // W_e
typedef enum { SEMANTIC_EXACT, SEMANTIC_FIRST_CHUNK } semantic_measure_t;    // chunks in which omega_s is measured

typedef struct {
    // the models
    recipe_t recipe;
    int cnn;            // the encoder is the decoder's mirror image, and `encoder` counts for nothing
    vit_config_t encoder;
    vit_config_t teacher; // of VA-VAE
    decoder_config_t decoder;
    vit_config_t decoder_vit; // of the larger decoder (large_decoder.h); depth 0: none, the decoder is LDM's
    patchgan_config_t disc;
    lpips_config_t lpips;
    int adapter_hidden;
    // the run
    int stage;          // 1, 2 or 3; of a baseline 1
    int batch, chunk;   // images a step of this process; images of a group, a divisor of batch
    int zero;           // several processes share the optimiser's state (replicas.h)
    int H, W;           // image size of a step, multiples of the down-sampling factor
    int64_t disc_start; // the GAN acts from this step on
    double w_lpips, w_gan, w_sem, w_kl, w_vf;
    double margin_distance, margin_cosine; // of L_vf
    semantic_kind_t semantic_kind;
    semantic_place_t semantic_place;
    semantic_tensor_t semantic_tensor;
    semantic_measure_t semantic_measure;
    lora_config_t lora; // stage 2: the ViT learns through low-rank pairs alone
    int recompute;      // transformers keep one tensor a block and recompute the rest in the backward
    int fold;           // a frozen encoder works with folded weights (vit.h)
    double lr, disc_lr, beta1, beta2, eps;
    double ema_sigma[2]; // relative widths of the two power-function averages
    uint64_t seed;       // of what is drawn in a step: noise of a latent, dropout
} tokenizer_config_t;

// What a step measured; device memory, one value an image or a chunk.
typedef struct {
    floatS* l1;           // (B) sum over pixels
    floatS* lpips;        // (B)
    floatS* kl;           // (B)
    floatS* fake_mean;    // (chunks) mean logit of reconstructions; L_g = -fake_mean
    floatS* real_mean;    // (chunks)
    floatS* hinge;        // (chunks) discriminator loss
    floatS* semantic;     // (chunks) L_sem, or L_vf
    floatS* squares_rec_out;  // (chunks) |d nll / d W_c|^2, gradients averaged over the batch
    floatS* squares_gan;  // (chunks) |d L_g / d W_c|^2
    floatS* squares_rec_latent; // (chunks) |d nll / d W_e|^2
    floatS* squares_sem;  // (chunks) the same of L_sem, or L_vf
    floatS* omega_g;      // (chunks)
    floatS* omega_s;      // (chunks)
    floatS* clamped_g;    // (chunks) 1 where the clip of omega_g acted
    floatS* clamped_s;    // (chunks)
    floatS* squares;      // (4) gradient of encoder, adapter (VA-VAE: with P), decoder, discriminator
} tokenizer_measures_t;

typedef struct {
    tokenizer_config_t config;
    comm_t* comm;         // set before tokenizer_allocate where several processes train together, else NULL
    replicas_t replicas, disc_replicas;
    int chunks;           // groups of the batch
    int GH, GW, z;        // latent size and channels
    int extra;            // images of the second stream: batch, one chunk, or 0
    // Parameters: encoder | its low-rank pairs | adapter | decoder in one table, so that what a stage trains is a tail
    // of it (stage 3: decoder, stage 1: adapter and decoder, stage 2: all, or all from the pairs on; baselines: all).
    // VA-VAE's projection follows the adapter; a CNN has no adapter.
    params_t params, disc_params, lpips_params;
    params_t target_params; // frozen: E0 | A0 of stage 2, VA-VAE's teacher
    size_t lora_begin, adapter_begin, decoder_begin;
    // models
    latent_encoder_t encoder;
    latent_encoder_t target; // of stage 2
    vf_head_t vf;            // of VA-VAE
    decoder_t decoder;
    patchgan_t disc;
    patchgan_acts_t fake, real;
    lpips_t lpips;
    // memory
    uint64_t* rows;            // (B) places of this process's images in the whole batch, for what is drawn
    plan_t plan, work;         // what lives through a step; what lives while one model runs, shared by all of them
    plan_t folded;             // folded weights of a frozen encoder or teacher, the same for all sizes of images
    uint8_t* bytes;            // (B, H, W, 3) as loaded
    floatX* x;                 // (B, H, W, 3) in [-1, 1]
    floatX* z0;                // (B, GH, GW, z) of the frozen copy, or (B, GH, GW, D) its tokens: what is held to
    floatX* a_nll;             // (B, H, W, 3) d nll / d xhat
    floatX* a_gan;             // (B, H, W, 3) d L_g / d xhat
    floatX* dscaled;           // (B, H, W, 3) LPIPS's gradient at its scaled input
    floatX* dxhat;             // (extra + B, H, W, 3) a_nll of the measured images, then a_nll + omega_g a_gan
    floatX* dz;                // (extra + B, GH, GW, z)
    floatX* dz_sem;            // like z0: gradient of L_sem at z, or at the tokens; of L_vf at z
    floatX* dfake, *dreal;     // gradients at the logits
    floatS* dout_nll, *dout_gan;   // (chunks, conv_out's weight)
    floatS* dbias_nll, *dbias_gan; // (chunks, 3)
    floatS* dlast_nll, *dlast_sem; // (chunks, W_e)
    floatS* measure_block;         // all of measures, one behind the other
    tokenizer_measures_t measures;
    double ema_exponent[2];
} tokenizer_t;

static inline size_t tokenizer_pixels(const tokenizer_t* t) { return (size_t)t->config.H * t->config.W; }
static inline size_t tokenizer_latents(const tokenizer_t* t) { return (size_t)t->GH * t->GW; }

// ---------------------------------------------------------------------------------------------------------------------
// Building

// Pixels of a latent position, each way.
static inline int tokenizer_factor(const tokenizer_config_t* c) { return 1 << (c->decoder.levels - 1); }

static inline int tokenizer_is_baseline(const tokenizer_config_t* c) { return c->recipe != RECIPE_ALIGNTOK; }

// What is trained, and what holds the latent.
static inline int tokenizer_trains_encoder(const tokenizer_config_t* c) {
    return tokenizer_is_baseline(c) || c->stage == 2;
}
static inline int tokenizer_trains_adapter(const tokenizer_config_t* c) {
    return tokenizer_is_baseline(c) || c->stage <= 2;
}
static inline int tokenizer_has_semantic_loss(const tokenizer_config_t* c) {
    return !tokenizer_is_baseline(c) && c->stage == 2 && c->w_sem != 0;
}
static inline int tokenizer_has_vf_loss(const tokenizer_config_t* c) { return c->recipe == RECIPE_VAVAE; }
static inline int tokenizer_is_aligned(const tokenizer_config_t* c) {
    return tokenizer_has_semantic_loss(c) || tokenizer_has_vf_loss(c);
}

// What encodes, as the configuration describes it; also that of a trained tokenizer in use.
void tokenizer_configure_encoder(latent_encoder_t* e, const tokenizer_config_t* c) {
    if (c->cnn) latent_encoder_configure_cnn(e, &c->decoder);
    else latent_encoder_configure(e, &c->encoder, c->adapter_hidden, c->decoder.z_channels, tokenizer_is_baseline(c));
}

// Registers all parameters of a configuration. After this the tables can be counted, and nothing is allocated.
void tokenizer_register(tokenizer_t* t, tokenizer_config_t config) {
    memset(t, 0, sizeof *t);
    t->config = config;
    t->z = config.decoder.z_channels;
    tokenizer_configure_encoder(&t->encoder, &config);
    t->encoder.vit.lora.config = config.lora;
    latent_encoder_register(&t->encoder, &t->params.table, "");
    t->lora_begin = t->encoder.pairs_begin;
    t->adapter_begin = config.cnn ? t->params.table.total : t->encoder.adapter.fc1_weight;
    if (tokenizer_has_vf_loss(&config)) {
        t->vf.z = t->z;
        t->vf.teacher.config = config.teacher;
        t->vf.margin_distance = config.margin_distance;
        t->vf.margin_cosine = config.margin_cosine;
        vf_head_register(&t->vf, &t->params.table, &t->target_params.table);
    }
    t->decoder_begin = t->params.table.total;
    t->decoder.config = config.decoder;
    t->decoder.tokens.vit.config = config.decoder_vit;
    decoder_register(&t->decoder, &t->params.table, "");
    t->disc.config = config.disc;
    patchgan_register(&t->disc, &t->disc_params.table, "loss.discriminator.");
    t->lpips.config = config.lpips;
    lpips_register(&t->lpips, &t->lpips_params.table, "");
    if (config.stage == 2) {
        tokenizer_configure_encoder(&t->target, &config);
        latent_encoder_register(&t->target, &t->target_params.table, "target.");
    }
    for (int i = 0; i < 2; i++) t->ema_exponent[i] = ema_gamma(config.ema_sigma[i]);
}

static inline size_t tokenizer_first_trained(const tokenizer_t* t) {
    if (tokenizer_trains_encoder(&t->config)) return t->config.lora.rank ? t->lora_begin : 0;
    return tokenizer_trains_adapter(&t->config) ? t->adapter_begin : t->decoder_begin;
}

// Channels of what the semantic loss holds.
static inline int tokenizer_semantic_channels(const tokenizer_t* t) {
    return t->config.semantic_place == SEMANTIC_OF_TOKENS ? t->config.encoder.dim : t->z;
}

// Number of values of W_e, the tensor at which omega_s is measured.
static inline size_t tokenizer_last_size(const tokenizer_t* t) {
    return latent_encoder_last_size(&t->encoder, t->config.semantic_tensor == SEMANTIC_AT_FC2);
}

// The measures of a step, one behind the other in one block, so that one copy brings all of them to the host.
void tokenizer_plan_measures(tokenizer_t* t) {
    tokenizer_measures_t* m = &t->measures;
    floatS** per_image[3] = {&m->l1, &m->lpips, &m->kl};
    floatS** per_chunk[12] = {
        &m->fake_mean,          &m->real_mean,   &m->hinge,   &m->semantic, &m->squares_rec_out, &m->squares_gan,
        &m->squares_rec_latent, &m->squares_sem, &m->omega_g, &m->omega_s,  &m->clamped_g,       &m->clamped_s};
    floatS* next = t->measure_block;
    for (int i = 0; i < 3; i++, next += t->config.batch) *per_image[i] = next;
    for (int i = 0; i < 12; i++, next += t->chunks) *per_chunk[i] = next;
    m->squares = next;
}
static inline size_t tokenizer_measure_count(const tokenizer_t* t) {
    return 3 * (size_t)t->config.batch + 12 * (size_t)t->chunks + 4;
}

// Plans the memory of a step. Buffers that only one model needs while it runs share their place with the other models'.
// Called again, with other H and W in t->config, it plans for those too.
void tokenizer_plan(tokenizer_t* t) {
    const tokenizer_config_t* c = &t->config;
    plan_t *plan = &t->plan, *work = &t->work;
    plan_again(plan), plan_again(work), plan_again(&t->folded);
    int B = c->batch, trains_encoder = tokenizer_trains_encoder(c);
    t->chunks = B / c->chunk;
    int factor = tokenizer_factor(c);
    t->GH = c->H / factor;
    t->GW = c->W / factor;
    t->extra = 0;
    if (tokenizer_is_aligned(c)) t->extra = c->semantic_measure == SEMANTIC_EXACT ? B : c->chunk;
    size_t image = tokenizer_pixels(t) * 3, latent = tokenizer_latents(t) * t->z;
    size_t held = tokenizer_latents(t) * tokenizer_semantic_channels(t);

    plan_uint8(plan, &t->bytes, B * image, "images (bytes)");
    plan_floatX(plan, &t->x, B * image, "images");
    plan_floatX(plan, &t->a_nll, B * image, "d nll");
    plan_floatX(plan, &t->a_gan, B * image, "d gan");
    plan_floatX(plan, &t->dscaled, B * image, "d lpips");
    plan_floatX(plan, &t->dxhat, (t->extra + B) * image, "d xhat");
    plan_floatX(plan, &t->dz, (t->extra + B) * latent, "d z");
    plan_floatX(plan, &t->z0, B * held, "z0");
    plan_floatX(plan, &t->dz_sem, B * held, "d semantic");
    size_t out_weight = (size_t)9 * c->decoder.ch * 3;
    plan_floatS(plan, &t->dout_nll, t->chunks * out_weight, "conv_out gradient of nll");
    plan_floatS(plan, &t->dout_gan, t->chunks * out_weight, "conv_out gradient of gan");
    plan_floatS(plan, &t->dbias_nll, t->chunks * 3, "conv_out bias gradient of nll");
    plan_floatS(plan, &t->dbias_gan, t->chunks * 3, "conv_out bias gradient of gan");
    plan_floatS(plan, &t->dlast_nll, t->extra ? t->chunks * tokenizer_last_size(t) : 0, "W_e gradient of nll");
    plan_floatS(plan, &t->dlast_sem, t->extra ? t->chunks * tokenizer_last_size(t) : 0, "W_e gradient of semantic");
    plan_floatS(plan, &t->measure_block, tokenizer_measure_count(t), "measures");

    t->encoder.vit.recompute = t->decoder.tokens.vit.recompute = c->recompute;
    // not so the frozen copy of stage 2: at the first step z and z0 shall be the same bits
    t->encoder.vit.fold = c->fold && !c->cnn;
    t->vf.teacher.fold = tokenizer_has_vf_loss(c) && c->fold;
    latent_encoder_plan(&t->encoder, plan, B, c->H, c->W, factor, trains_encoder);
    vit_plan_folded(&t->encoder.vit, &t->folded);
    patchgan_plan(&t->disc, &t->fake, plan, B, c->H, c->W, c->chunk);
    patchgan_plan(&t->disc, &t->real, plan, B, c->H, c->W, c->chunk);
    size_t logits = (size_t)B * t->fake.logits_count;
    plan_floatX(plan, &t->dfake, logits, "d fake logits");
    plan_floatX(plan, &t->dreal, logits, "d real logits");

    decoder_plan(&t->decoder, plan, B, t->GH, t->GW);
    size_t mark = plan_mark(work);
    decoder_plan_work(&t->decoder, work, t->extra);
    plan_rewind(work, mark);
    latent_encoder_plan_work(&t->encoder, work);
    if (tokenizer_has_vf_loss(c)) vf_head_plan(&t->vf, work, &t->folded, B, c->H, c->W, factor);
    plan_rewind(work, mark);
    if (c->stage == 2) { // the frozen copy runs alone and leaves z0
        latent_encoder_plan_forward(&t->target, work, work, B, c->H, c->W, factor);
        plan_rewind(work, mark);
    }
    lpips_plan(&t->lpips, work, B, c->H, c->W); // forward and backward follow each other: nothing outlives them
    plan_rewind(work, mark);
    patchgan_plan_work(&t->disc, work, B, c->H, c->W);
    plan_rewind(work, mark);
}

// Where a latent is drawn, its noise depends on the image's place in the batch of all processes.
static inline void tokenizer_number_rows(tokenizer_t* t) {
    size_t bytes = t->config.batch * sizeof(uint64_t);
    if (!t->encoder.gaussian) return;
    uint64_t* host = (uint64_t*)malloc_check(bytes, "places in the batch");
    for (int b = 0; b < t->config.batch; b++) {
        host[b] = (uint64_t)(t->comm ? t->comm->rank : 0) * t->config.batch + (uint64_t)b;
    }
    t->rows = (uint64_t*)device_malloc(bytes, "places in the batch");
    copy_to_device(t->rows, host, bytes, 0);
    free(host);
}

// Allocates parameters and step memory. Parameters are zero until initialised or loaded.
void tokenizer_allocate(tokenizer_t* t) {
    if (t->comm && t->config.zero) {
        t->params.ranks = t->disc_params.ranks = t->comm->size;
        t->params.rank = t->disc_params.rank = t->comm->rank;
    }
    params_allocate(&t->params, tokenizer_first_trained(t), 2, "the tokenizer's parameters");
    params_allocate(&t->disc_params, 0, 0, "the discriminator's parameters");
    replicas_open(&t->replicas, &t->params, t->comm);
    replicas_open(&t->disc_replicas, &t->disc_params, t->comm);
    params_allocate(&t->lpips_params, t->lpips_params.table.total, 0, "LPIPS's parameters");
    if (t->target_params.table.n) {
        params_allocate(&t->target_params, t->target_params.table.total, 0, "the frozen encoder");
    }
    // the teacher's fold reads full-precision weights
    if (t->vf.teacher.fold) params_keep_frozen(&t->target_params, "the teacher in full precision");
    patchgan_allocate_buffers(&t->disc);
    plan_allocate(&t->plan, "activations");
    plan_allocate(&t->work, "working memory");
    plan_allocate(&t->folded, "folded weights");
    tokenizer_number_rows(t);
    tokenizer_plan_measures(t);
    device_zero(t->measure_block, tokenizer_measure_count(t) * sizeof(floatS), 0);
}

// Turns to images of H x W, a size that was planned before the allocation. Images, activations and measures of the last
// step are lost.
void tokenizer_resize(tokenizer_t* t, int H, int W) {
    if (t->config.H == H && t->config.W == W) return;
    t->config.H = H;
    t->config.W = W;
    tokenizer_plan(t);
    plan_set(&t->plan), plan_set(&t->work), plan_set(&t->folded);
    tokenizer_plan_measures(t);
}

// The frozen copies E0, A0 of stage 2 are what encoder and adapter are now; no low-rank pairs lie between the copies.
void tokenizer_set_target(tokenizer_t* t, stream_t s) {
    floatX *to = t->target_params.values, *from = t->params.values;
    size_t encoder = t->lora_begin, adapter = t->decoder_begin - t->adapter_begin;
    copy_on_device(to, from, encoder * sizeof(floatX), s);
    copy_on_device(to + encoder, from + t->adapter_begin, adapter * sizeof(floatX), s);
}

// To be called when the weights are in place: derives what a frozen encoder, or teacher, works with.
void tokenizer_freeze(tokenizer_t* t) {
    vit_fold(&t->encoder.vit, &t->params);
    if (!t->vf.teacher.fold) return;
    vit_fold(&t->vf.teacher, &t->target_params);
    device_free(t->target_params.frozen);
    t->target_params.frozen = NULL;
}

void tokenizer_free(tokenizer_t* t) {
    params_free(&t->params);
    params_free(&t->disc_params);
    params_free(&t->lpips_params);
    params_free(&t->target_params);
    patchgan_free_buffers(&t->disc);
    device_free(t->rows);
    plan_free(&t->plan);
    plan_free(&t->work);
    plan_free(&t->folded);
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

// The noise of a baseline's latents: of step `step`, the same for any number of processes.
void tokenizer_draw_noise(tokenizer_t* t, uint64_t seed, int64_t step, stream_t s) {
    if (!t->encoder.gaussian) return;
    normal_rows(t->encoder.noise, t->rows, t->config.batch, tokenizer_latents(t) * t->z, seed, RANDOM_POSTERIOR,
                (uint64_t)step, s);
}

// t->x -> latent: returns (B, GH, GW, z), of a baseline a draw.
const floatX* tokenizer_encode(tokenizer_t* t, stream_t s) {
    latent_encoder_forward(&t->encoder, &t->params, t->x, 1, s);
    return latent_encoder_output(&t->encoder);
}

// t->x -> reconstruction: returns (B, H, W, 3), not clamped.
const floatX* tokenizer_reconstruct(tokenizer_t* t, stream_t s) {
    decoder_forward(&t->decoder, &t->params, tokenizer_encode(t, s), s);
    return t->decoder.out;
}

// z0, or the tokens, of the frozen copy on the same images.
void tokenizer_target_latent(tokenizer_t* t, stream_t s) {
    size_t values = t->config.batch * tokenizer_latents(t) * tokenizer_semantic_channels(t);
    int tokens = t->config.semantic_place == SEMANTIC_OF_TOKENS;
    latent_encoder_forward(&t->target, &t->target_params, t->x, 0, s);
    const floatX* held = tokens ? t->target.vit.features : latent_encoder_output(&t->target);
    copy_on_device(t->z0, held, values * sizeof(floatX), s);
}

static inline int tokenizer_gan_is_on(const tokenizer_t* t, int64_t step) {
    return t->config.w_gan != 0 && step >= t->config.disc_start;
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward

// a_nll = d nll / d xhat, with the forward of its two terms. Each chunk's loss is a mean over its images, and chunks
// are averaged: 1/B for every image of the batch.
void tokenizer_reconstruction_loss(tokenizer_t* t, stream_t s) {
    const tokenizer_config_t* c = &t->config;
    const floatX* xhat = t->decoder.out;
    size_t pixels = tokenizer_pixels(t);
    l1_forward(t->measures.l1, xhat, t->x, c->batch, 3 * pixels, s);
    lpips_forward(&t->lpips, &t->lpips_params, t->measures.lpips, xhat, t->x, s);
    if (c->w_lpips != 0) {
        lpips_backward(&t->lpips, &t->lpips_params, t->dscaled, 3.0 * pixels * c->w_lpips / c->batch, s);
    }
    l1_backward(t->a_nll, xhat, t->x, c->w_lpips != 0 ? t->dscaled : NULL, t->lpips.scaling, 1.0 / c->batch,
                c->batch, pixels, s);
}

// a_gan = d L_g / d xhat with L_g = -mean(logits of the reconstruction), averaged over the chunks.
void tokenizer_generator_loss(tokenizer_t* t, stream_t s) {
    size_t per_chunk = (size_t)t->config.chunk * t->fake.logits_count;
    patchgan_forward(&t->disc, &t->disc_params, &t->fake, t->decoder.out, 1, s);
    group_mean_forward(t->measures.fake_mean, t->fake.logits, t->chunks, per_chunk, s);
    group_mean_backward(t->dfake, -1.0 / t->chunks, t->chunks, per_chunk, s);
    patchgan_backward(&t->disc, &t->disc_params, &t->fake, t->a_gan, t->dfake, 0, s);
}

// Gradients of conv_out for each chunk, from one upstream gradient at the image.
void tokenizer_out_gradients(tokenizer_t* t, floatS* dweight, floatS* dbias, const floatX* dxhat, stream_t s) {
    size_t n = (size_t)27 * t->config.decoder.ch;
    device_zero(dweight, t->chunks * n * sizeof(floatS), s);
    device_zero(dbias, t->chunks * 3 * sizeof(floatS), s);
    for (int k = 0; k < t->chunks; k++) {
        int first = k * t->config.chunk;
        decoder_conv_out_gradient(&t->decoder, dweight + k * n, dbias + k * 3, dxhat + first * 3 * tokenizer_pixels(t),
                                  first, t->config.chunk, s);
    }
}

// conv_out's gradient, omega_g, and the upstream gradient(s) that go down the decoder.
void tokenizer_combine_at_image(tokenizer_t* t, int gan, stream_t s) {
    tokenizer_measures_t* m = &t->measures;
    size_t image = 3 * tokenizer_pixels(t), n = (size_t)27 * t->config.decoder.ch;
    floatX* total = t->dxhat + t->extra * image;
    if (t->extra) copy_on_device(t->dxhat, t->a_nll, t->extra * image * sizeof(floatX), s);
    tokenizer_out_gradients(t, t->dout_nll, t->dbias_nll, t->a_nll, s);
    sum_squares(m->squares_rec_out, t->dout_nll, t->chunks, n, s);
    if (gan) {
        tokenizer_out_gradients(t, t->dout_gan, t->dbias_gan, t->a_gan, s);
        sum_squares(m->squares_gan, t->dout_gan, t->chunks, n, s);
        adaptive_weight(m->omega_g, m->clamped_g, m->squares_rec_out, m->squares_gan, t->config.w_gan, ADAPTIVE_MAX_GAN,
                        t->chunks, t->chunks, s);
        add_scaled_groups(total, t->a_nll, t->a_gan, m->omega_g, t->chunks, t->config.chunk * image, s);
    } else {
        copy_on_device(total, t->a_nll, t->config.batch * image * sizeof(floatX), s);
    }
    const floatS* omega = gan ? m->omega_g : NULL;
    accumulate_scaled_groups(params_grad(&t->params, t->decoder.conv_out.weight), t->dout_nll, gan ? t->dout_gan : NULL,
                             omega, t->chunks, n, s);
    accumulate_scaled_groups(params_grad(&t->params, t->decoder.conv_out.bias), t->dbias_nll, gan ? t->dbias_gan : NULL,
                             omega, t->chunks, 3, s);
}

// Gradient of W_e for each of the first `chunks` chunks, from a gradient at the latent.
void tokenizer_last_gradients(tokenizer_t* t, floatS* dweight, const floatX* dz, int chunks, stream_t s) {
    device_zero(dweight, chunks * tokenizer_last_size(t) * sizeof(floatS), s);
    latent_encoder_last_gradients(&t->encoder, &t->params, dweight, dz, t->config.semantic_tensor == SEMANTIC_AT_FC2,
                                  t->config.chunk, chunks, s);
}

// The semantic loss, and its gradient at what it holds.
void tokenizer_semantic_loss(tokenizer_t* t, stream_t s) {
    const tokenizer_config_t* c = &t->config;
    int tokens = c->semantic_place == SEMANTIC_OF_TOKENS, channels = tokenizer_semantic_channels(t);
    size_t rows = c->chunk * tokenizer_latents(t), n = rows * channels;
    const floatX* held = tokens ? t->encoder.vit.features : latent_encoder_output(&t->encoder);
    if (c->semantic_kind == SEMANTIC_L2) {
        semantic_l2_forward(t->measures.semantic, held, t->z0, t->chunks, n, s);
        semantic_l2_backward(t->dz_sem, held, t->z0, 1.0 / t->chunks, t->chunks, n, s);
    } else {
        semantic_cosine_forward(t->measures.semantic, held, t->z0, t->chunks, rows, channels, s);
        semantic_cosine_backward(t->dz_sem, held, t->z0, 1.0 / t->chunks, t->chunks, rows, channels, s);
    }
}

// tokenizer_last_gradients of the alignment loss, whose gradient stands at the latent or at the tokens.
void tokenizer_last_semantic_gradients(tokenizer_t* t, floatS* dweight, int chunks, stream_t s) {
    const tokenizer_config_t* c = &t->config;
    if (c->semantic_place == SEMANTIC_OF_LATENT) {
        tokenizer_last_gradients(t, dweight, t->dz_sem, chunks, s);
        return;
    }
    device_zero(dweight, chunks * tokenizer_last_size(t) * sizeof(floatS), s);
    vit_last_fc2_gradient(&t->encoder.vit, &t->params, dweight, t->dz_sem, c->chunk, chunks, s);
}

// The gradient of VA-VAE's projection: of omega_s z, where dz_sem has been used.
void tokenizer_projection_gradient(tokenizer_t* t, stream_t s) {
    size_t n = t->config.chunk * tokenizer_latents(t) * t->z;
    floatX* scaled = t->dz_sem;
    device_zero(scaled, t->chunks * n * sizeof(floatX), s);
    add_scaled_groups(scaled, scaled, latent_encoder_output(&t->encoder), t->measures.omega_s, t->chunks, n, s);
    vf_head_projection_gradient(&t->vf, &t->params, scaled, s);
}

// What holds the latent, L_sem or L_vf: its gradient dz_sem at what it holds, and omega_s.
void tokenizer_alignment_loss(tokenizer_t* t, stream_t s) {
    const tokenizer_config_t* c = &t->config;
    tokenizer_measures_t* m = &t->measures;
    int vf = tokenizer_has_vf_loss(c), measured = t->extra / c->chunk;
    size_t n = tokenizer_last_size(t);
    if (vf) {
        vf_head_loss(&t->vf, &t->params, &t->target_params, m->semantic, t->dz_sem, t->x,
                     latent_encoder_output(&t->encoder), 1.0 / t->chunks, c->chunk, s);
    } else {
        tokenizer_semantic_loss(t, s);
    }
    tokenizer_last_gradients(t, t->dlast_nll, t->dz, measured, s);
    tokenizer_last_semantic_gradients(t, t->dlast_sem, measured, s);
    sum_squares(m->squares_rec_latent, t->dlast_nll, measured, n, s);
    sum_squares(m->squares_sem, t->dlast_sem, measured, n, s);
    adaptive_weight(m->omega_s, m->clamped_s, m->squares_rec_latent, m->squares_sem, vf ? c->w_vf : c->w_sem,
                    ADAPTIVE_MAX_SEMANTIC, t->chunks, measured, s);
    for (int k = measured; k < t->chunks; k++) copy_on_device(m->omega_s + k, m->omega_s, sizeof(floatS), s);
}

// gradient += omega_s dz_sem, if the latent, or the tokens, are held here.
void tokenizer_add_alignment(tokenizer_t* t, floatX* gradient, semantic_place_t here, stream_t s) {
    const tokenizer_config_t* c = &t->config;
    if (!tokenizer_is_aligned(c) || c->semantic_place != here) return;
    size_t values = c->chunk * tokenizer_latents(t) * tokenizer_semantic_channels(t);
    add_scaled_groups(gradient, gradient, t->dz_sem, t->measures.omega_s, t->chunks, values, s);
}

// From the gradient that the decoder leaves at the latent to all that encodes.
void tokenizer_encoder_backward(tokenizer_t* t, stream_t s) {
    const tokenizer_config_t* c = &t->config;
    latent_encoder_t* e = &t->encoder;
    int down = tokenizer_trains_encoder(c);
    floatX* dz = t->dz + t->extra * tokenizer_latents(t) * t->z;
    tokenizer_add_alignment(t, dz, SEMANTIC_OF_LATENT, s);
    if (tokenizer_has_vf_loss(c)) tokenizer_projection_gradient(t, s);
    latent_encoder_backward(e, &t->params, dz, c->w_kl / c->batch, down, s);
    if (e->is_cnn || !down) return;
    tokenizer_add_alignment(t, e->dfeatures, SEMANTIC_OF_TOKENS, s);
    vit_backward(&e->vit, &t->params, e->dfeatures, s);
}

// Gradients of the discriminator on stored fake logits and on the real images.
void tokenizer_discriminator_loss(tokenizer_t* t, stream_t s) {
    tokenizer_measures_t* m = &t->measures;
    size_t per_chunk = (size_t)t->config.chunk * t->fake.logits_count;
    patchgan_forward(&t->disc, &t->disc_params, &t->real, t->x, 1, s);
    group_mean_forward(m->real_mean, t->real.logits, t->chunks, per_chunk, s);
    hinge_forward(m->hinge, t->real.logits, t->fake.logits, t->chunks, per_chunk, s);
    hinge_backward(t->dreal, t->dfake, t->real.logits, t->fake.logits, 1.0 / t->chunks, t->chunks, per_chunk, s);
    patchgan_backward(&t->disc, &t->disc_params, &t->real, NULL, t->dreal, 1, s);
    patchgan_backward(&t->disc, &t->disc_params, &t->fake, NULL, t->dfake, 1, s);
    // the reference runs fake, real, fake; the third call repeats the first bit for bit
    patchgan_update_running(&t->disc, &t->fake, s);
    patchgan_update_running(&t->disc, &t->real, s);
    patchgan_update_running(&t->disc, &t->fake, s);
}

// Averages the gradients over the processes, and measures |gradient|^2 of encoder, adapter, decoder and discriminator.
void tokenizer_finish_gradients(tokenizer_t* t, int gan, stream_t s) {
    params_t *p = &t->params, *d = &t->disc_params;
    size_t begin[4] = {t->config.lora.rank ? t->lora_begin : 0, t->adapter_begin, t->decoder_begin, p->table.total};
    replicas_mean_grads(&t->replicas, s);
    for (int i = 0; i < 3; i++) {
        if (begin[i] < p->first || begin[i] == begin[i + 1]) continue; // frozen, or none
        replicas_sum_squares(t->measures.squares + i, p, t->comm, begin[i] - p->first, begin[i + 1] - p->first, s);
    }
    if (!gan) return;
    replicas_mean_grads(&t->disc_replicas, s);
    replicas_sum_squares(t->measures.squares + 3, d, t->comm, 0, d->table.total, s);
}

// Forward and both backwards of step number `step` (from 0) on the images in t->x and, of a baseline, the noise. Leaves
// all gradients and measures.
void tokenizer_gradients_of_x(tokenizer_t* t, int64_t step, stream_t s) {
    const tokenizer_config_t* c = &t->config;
    int gan = tokenizer_gan_is_on(t, step);
    params_zero_grads(&t->params, s);
    params_zero_grads(&t->disc_params, s);
    device_zero(t->measure_block, tokenizer_measure_count(t) * sizeof(floatS), s);

    if (tokenizer_has_semantic_loss(c)) tokenizer_target_latent(t, s);
    lora_draw(&t->encoder.vit.lora, c->seed, (uint64_t)step, (uint64_t)c->batch * (t->comm ? t->comm->rank : 0));
    tokenizer_reconstruct(t, s);
    tokenizer_reconstruction_loss(t, s);
    if (gan) tokenizer_generator_loss(t, s);
    tokenizer_combine_at_image(t, gan, s);

    int below = tokenizer_trains_adapter(c);
    decoder_backward(&t->decoder, &t->params, below ? t->dz : NULL, t->dxhat, t->extra, 1, s);
    params_grads_done(&t->params, t->decoder_begin, s);
    if (tokenizer_is_aligned(c)) tokenizer_alignment_loss(t, s);
    if (below) tokenizer_encoder_backward(t, s);
    lora_rest(&t->encoder.vit.lora);
    if (t->encoder.gaussian) copy_on_device(t->measures.kl, t->encoder.kl, c->batch * sizeof(floatS), s);
    if (gan) tokenizer_discriminator_loss(t, s);
    tokenizer_finish_gradients(t, gan, s);
}

// The same on the images in t->bytes.
void tokenizer_gradients(tokenizer_t* t, int64_t step, stream_t s) {
    tokenizer_draw_noise(t, t->config.seed, step, s);
    image_from_bytes(t->x, t->bytes, t->config.batch * 3 * tokenizer_pixels(t), s);
    tokenizer_gradients_of_x(t, step, s);
}

// Optimiser steps of both networks, and the averages. The discriminator's step count advances before it learns, as in
// the reference, where its loss is then multiplied by zero.
void tokenizer_update(tokenizer_t* t, int64_t step, stream_t s) {
    const tokenizer_config_t* c = &t->config;
    params_t* p = &t->params;
    p->t++;
    adam_t adam = {c->lr, c->beta1, c->beta2, c->eps, 0, p->t,
                   {ema_power_beta(t->ema_exponent[0], p->t), ema_power_beta(t->ema_exponent[1], p->t)}, 1};
    replicas_update(p, adam, t->comm, s);
    params_t* d = &t->disc_params;
    d->t++;
    if (!tokenizer_gan_is_on(t, step)) return;
    adam.lr = c->disc_lr;
    adam.t = d->t;
    replicas_update(d, adam, t->comm, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Cost, and where a number went wrong

// Multiply-accumulates of one step. A backward costs a forward for the data and one for the weights, where it computes
// them.
uint64_t tokenizer_step_macs(const tokenizer_t* t) {
    const tokenizer_config_t* c = &t->config;
    int H = c->H, W = c->W;
    uint64_t encoder = latent_encoder_macs(&t->encoder, H, W, tokenizer_factor(c));
    uint64_t adapter = c->cnn ? 0 : adapter_macs(&t->encoder.adapter) * tokenizer_latents(t); // of these
    uint64_t decoder = decoder_macs(&t->decoder, H, W), vgg = vgg_macs(&t->lpips.vgg, H, W);
    uint64_t disc = patchgan_macs(&t->disc, H, W);
    int passes = !tokenizer_trains_encoder(c) ? 1 : c->lora.rank ? 2 : 3; // low-rank pairs: no gradients of its weights
    uint64_t image = (encoder - adapter) * passes + adapter * (tokenizer_trains_adapter(c) ? 3 : 1);
    image += t->encoder.vit.lora.macs * (tokenizer_latents(t) + t->encoder.vit.P);
    image += decoder * 3 + (c->w_lpips != 0 ? 3 * vgg : 2 * vgg);
    if (c->w_gan != 0) image += 7 * disc; // fake: forward, to the image, weights and data; real: forward, weights, data
    if (tokenizer_has_semantic_loss(c)) image += encoder; // the frozen copy
    if (tokenizer_has_vf_loss(c)) image += vf_head_macs(&t->vf, H, W, tokenizer_factor(c));
    uint64_t again = c->recompute ? vit_trunk_macs(&t->decoder.tokens.vit, tokenizer_latents(t)) : 0;
    if (c->recompute && tokenizer_trains_encoder(c) && !c->cnn) image += encoder - adapter;
    return (image + again) * c->batch + (decoder + again) * t->extra;
}

// Names the first tensor, in the order of the computation, that holds a number that is not finite, and says where.
// Leaves `name` alone when all are finite.
int tokenizer_find_not_finite(const tokenizer_t* t, char* name, size_t size, size_t* where) {
    size_t B = t->config.batch, image = 3 * tokenizer_pixels(t), latent = tokenizer_latents(t) * t->z;
    const struct {
        const char* name;
        const floatX* values;
        size_t n;
    } tensors[] = {
        {"the images", t->x, B * image},
        {"the encoder's features", t->encoder.vit.features,
         t->config.cnn ? 0 : B * tokenizer_latents(t) * t->config.encoder.dim},
        {"the moments of the latent", latent_encoder_moments(&t->encoder), t->encoder.gaussian ? 2 * B * latent : 0},
        {"the latent z", latent_encoder_output(&t->encoder), B * latent},
        {"the reconstruction", t->decoder.out, B * image},
        {"the gradient of L1 and LPIPS at the reconstruction", t->a_nll, B * image},
        {"the gradient of the GAN loss at the reconstruction", t->a_gan,
         tokenizer_gan_is_on(t, t->params.t) ? B * image : 0},
    };
    const params_t* tables[2] = {&t->params, &t->disc_params};
    for (int k = 0; k < 2; k++) { // weights come before what is computed with them
        for (int i = 0; i < tables[k]->table.n; i++) {
            const param_t* p = &tables[k]->table.items[i];
            *where = device_first_not_finite(params_at(tables[k], p->offset), NULL, p->stored);
            if (*where == p->stored) continue;
            snprintf(name, size, "the weight %s", p->name);
            return 1;
        }
    }
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        *where = device_first_not_finite(tensors[i].values, NULL, tensors[i].n);
        if (*where == tensors[i].n) continue;
        snprintf(name, size, "%s", tensors[i].name);
        return 1;
    }
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < tables[k]->table.n; i++) {
            const param_t* p = &tables[k]->table.items[i];
            const floatS* grad = params_grad(tables[k], p->offset);
            *where = grad ? device_first_not_finite(NULL, grad, p->stored) : p->stored;
            if (*where == p->stored) continue;
            snprintf(name, size, "the gradient of %s", p->name);
            return 1;
        }
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// What a step measured, on the host. Doubles only, so that reports can be summed.

typedef struct {
    double l1, lpips, nll;            // mean |x - xhat| a value; LPIPS an image; the objective's sum an image
    double generator, discriminator;  // L_g, hinge loss
    double real, fake;                // mean logits
    double semantic, kl;              // L_sem or L_vf; KL divergence of an image's latent
    double norm_rec_out, norm_gan;    // chunk-local gradient norms at W_c, mean over chunks
    double norm_rec_latent, norm_sem; // at W_e, mean over the measured chunks
    double omega_g, omega_s;          // mean over chunks
    double clamped;                   // chunks in which a clip acted
    double norm[4];                   // gradient norms of encoder, adapter, decoder, discriminator
} tokenizer_report_t;

static inline double tokenizer_mean(const floatS* x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    return n ? sum / n : 0;
}

// Mean over chunks of the chunk-local norm: gradients are averaged over the batch, hence the factor.
static inline double tokenizer_mean_norm(const floatS* squares, int n, int chunks) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += sqrt((double)squares[i]) * chunks;
    return n ? sum / n : 0;
}

// Copies the measures of the last step to the host. `host` has room for tokenizer_measure_count values.
tokenizer_report_t tokenizer_read(const tokenizer_t* t, floatS* host, stream_t s) {
    copy_to_host(host, t->measure_block, tokenizer_measure_count(t) * sizeof(floatS), s);
    stream_wait(s);
    tokenizer_t view = *t; // the same layout, in host memory
    view.measure_block = host;
    tokenizer_plan_measures(&view);
    const tokenizer_measures_t* m = &view.measures;
    int B = t->config.batch, n = t->chunks, measured = t->extra / t->config.chunk;
    tokenizer_report_t r;
    memset(&r, 0, sizeof r);
    double values = 3.0 * tokenizer_pixels(t);
    r.l1 = tokenizer_mean(m->l1, B) / values;
    r.lpips = tokenizer_mean(m->lpips, B);
    r.nll = values * (r.l1 + t->config.w_lpips * r.lpips);
    r.fake = tokenizer_mean(m->fake_mean, n);
    r.real = tokenizer_mean(m->real_mean, n);
    r.generator = -r.fake;
    r.discriminator = tokenizer_mean(m->hinge, n);
    r.semantic = tokenizer_mean(m->semantic, n);
    r.kl = tokenizer_mean(m->kl, B);
    r.norm_rec_out = tokenizer_mean_norm(m->squares_rec_out, n, n);
    r.norm_gan = tokenizer_mean_norm(m->squares_gan, n, n);
    r.norm_rec_latent = tokenizer_mean_norm(m->squares_rec_latent, measured, n);
    r.norm_sem = tokenizer_mean_norm(m->squares_sem, measured, n);
    r.omega_g = tokenizer_mean(m->omega_g, n);
    r.omega_s = tokenizer_mean(m->omega_s, n);
    for (int i = 0; i < n; i++) r.clamped += m->clamped_g[i] != 0 || m->clamped_s[i] != 0;
    for (int i = 0; i < 4; i++) {
        r.norm[i] = sqrt((double)m->squares[i] * replicas_square_factor(i < 3 ? &t->params : &t->disc_params));
    }
    return r;
}
