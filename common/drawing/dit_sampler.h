// dit_sampler.h: pictures from a diffusion transformer and the tokenizer whose latents it has learnt.
//
//     noise --flow_sampler.h: the network is the field--> normalised latent --x std + mean--> latent --decoder-->
//     bytes
//
// Two networks draw so. LightningDiT is told a class: an image's label is its number. The text-to-image transformer is
// told a caption: the label is a row of a batch of encoded captions, whose row 0 takes the place of the null class: the
// empty caption, or a negative prompt, which says what is not wanted. The size of its images may change from one batch
// to the next, and it counts time the other way, which flow_network_t takes into account.
//
//     dit_sampler_open(&d, &net, &params, &tokenizer, mean, std, options);
//     dit_sampler_draw(&d, pixels, numbers, labels, n, s);
//     dit_sampler_open_captions(&d, &mmdit, &params, &tokenizer, mean, std, options);
//     dit_sampler_show(&d, &captions, h, w);                      captions of latents of h x w, until the next call
//     dit_sampler_draw(&d, pixels, numbers, labels, n, s);
//
// A network like DiT's, which predicts noise, takes ddpm_sampler.h's way instead, and one that predicts a velocity may.
//
// An image is numbered. Its noise depends on the seed and on this number alone. In the CPU build the bits of an image
// do not depend on what is drawn beside it: every operation computes an image alike in any batch (dev/cpu/gemm.h), and
// the padding in front of a caption is left out of all sums. Look next at common/drawing/flow_sampler.h (guidance and
// solvers), common/models/caption_encoder.h and sample.cu, the program.
#pragma once
// defines: flow_network_t, flow_sampler_t, flow_guidance_t, flow_noise, flow_sample, flow_guided_velocity
#include "common/drawing/flow_sampler.h"
// defines: ddpm_sampler_t, ddpm_sampler_plan, ddpm_sample
#include "common/drawing/ddpm_sampler.h"
// defines: lightningdit_t, lightningdit_forward
#include "common/models/lightningdit.h"
// defines: mmdit_t, mmdit_forward, mmdit_set_size, mmdit_time_shift
#include "common/models/mmdit.h"
// defines: text_batch_t
#include "common/text/text_batch.h"
// defines: autoencoder_t, autoencoder_decode, autoencoder_resize
#include "common/drawing/autoencoder.h"
// defines: image_bytes_from_floats
#include "common/data/image.h"

// What the output of a network means. Files do not tell: those with 2 C channels are DiT's, noise, or SiT's, a
// velocity.
typedef enum { PREDICTS_UNKNOWN, PREDICTS_VELOCITY, PREDICTS_NOISE } dit_prediction_t;

#define SHIFT_BY_SIZE (-1.0)

typedef struct {
    flow_solver_t solver;     // of a velocity
    int points;     // of the time grid; one step less
    double shift;   // of the time grid; SHIFT_BY_SIZE: as the text-to-image transformer is trained, by its tokens
    flow_guidance_t guidance; // channels 0: all
    int batch;      // most images drawn at once
    uint64_t seed;
    dit_prediction_t predicts; // PREDICTS_UNKNOWN: a velocity, if the network has C channels
    ddpm_kind_t process;      // of noise; of a velocity, but for DDPM_ANCESTRAL; `points` is then the number of steps
    double eta;
} dit_sampler_options_t;

typedef struct {
    dit_sampler_options_t options;
    lightningdit_t* net; // one of the two; planned for dit_sampler_pass() images; for fewer, it is called more often
    mmdit_t* mmdit;
    const params_t* params;
    autoencoder_t* tokenizer;
    flow_network_t network;
    flow_sampler_t sampler; // one of the two
    ddpm_sampler_t ddpm;
    plan_t plan;
    int h, w, C;        // of a latent
    floatS* x;          // (batch, h, w, C)
    floatX* z;          // (batch, h, w, C)
    floatS *mean, *std; // (C) on the device
    int* label;         // (pass) classes
    const text_batch_t* text; // the captions that labels are rows of
    floatX* rows;       // (pass, L, text) of captions
    int* first;         // (pass)
    floatX* pooled;     // (pass, vector)
    floatS* guidance;   // (pass) of a distilled network, which is told it
} dit_sampler_t;

// Images drawn at once, of so many tokens. A CPU has its full speed with a thousand, and more would only need more
// memory.
static inline int dit_sampler_batch(int batch, int tokens) {
#ifdef USE_CUDA
    (void)tokens;
    return batch;
#else
    enum { TOKENS = 1024 };
    int most = tokens < TOKENS ? TOKENS / tokens : 1;
    return batch < most ? batch : most;
#endif
}

// Images that the network evaluates at once: those of a batch, and again without their labels.
static inline int dit_sampler_pass(int batch, int tokens, const flow_guidance_t* guidance) {
    return dit_sampler_batch(batch, tokens) * (guidance->w > 1 ? 2 : 1);
}

// A network_fn.
static inline void dit_sampler_evaluate(void* sampler, floatX* v, const floatX* xt, const floatS* t, const int* labels,
                                        int B, stream_t s) {
    dit_sampler_t* d = (dit_sampler_t*)sampler;
    copy_to_device(d->label, labels, B * sizeof(int), s);
    lightningdit_forward(d->net, d->params, xt, t, d->label, B, s);
    size_t out = (size_t)d->h * d->w * lightningdit_out_channels(&d->net->config);
    copy_on_device(v, d->net->v, B * out * sizeof(floatX), s);
}

// The same of captions.
static inline void dit_sampler_evaluate_captions(void* sampler, floatX* v, const floatX* xt, const floatS* t,
                                                 const int* labels, int B, stream_t s) {
    dit_sampler_t* d = (dit_sampler_t*)sampler;
    const mmdit_config_t* c = &d->mmdit->config;
    size_t rows = (size_t)d->text->L * c->text, vector = c->vector;
    for (int b = 0; b < B; b++) {
        copy_on_device(d->rows + b * rows, d->text->rows + labels[b] * rows, rows * sizeof(floatX), s);
        copy_on_device(d->first + b, d->text->first + labels[b], sizeof(int), s);
        if (!vector) continue;
        copy_on_device(d->pooled + b * vector, d->text->pooled + labels[b] * vector, vector * sizeof(floatX), s);
    }
    mmdit_input_t in = {B, d->text->L, xt, t, d->rows, d->first, vector ? d->pooled : NULL,
                        c->guidance ? d->guidance : NULL};
    mmdit_forward(d->mmdit, d->params, in, s);
    copy_on_device(v, d->mmdit->v, B * (size_t)d->h * d->w * d->C * sizeof(floatX), s);
}

// Does this network predict noise? What cannot be ends the program.
static inline int dit_sampler_of_noise(const lightningdit_config_t* c, const dit_sampler_options_t* o) {
    if (c->sigma && o->predicts == PREDICTS_UNKNOWN) {
        fatal("the network has %d channels of output for %d of the latent: DiT's (noise) and SiT's (a velocity) look "
              "so, and their files do not tell which it is; give -preset dit or -preset sit",
              2 * c->C, c->C);
    }
    if (!c->sigma && o->predicts == PREDICTS_NOISE) {
        fatal("the network predicts a velocity, %d channels for a latent of %d; -predicts noise is for DiT's, which "
              "has twice as many", c->C, c->C);
    }
    int noise = o->predicts == PREDICTS_NOISE;
    if (noise && o->process != DDPM_ANCESTRAL && o->process != DDPM_DDIM) {
        fatal("-process %s: it follows a velocity, and this network predicts noise; choose ddpm or ddim",
              o->process == DDPM_SDE ? "sde" : "ddim_song");
    }
    if (noise && o->guidance.energy) {
        fatal("-cfg_energy 1: it keeps the length of a velocity, and this network predicts noise; leave it out");
    }
    if (noise && o->guidance.start > 0) {
        fatal("-cfg_start %g: a network that predicts noise is guided at all times; leave it out", o->guidance.start);
    }
    return noise;
}

// Does drawing follow a stochastic process, or else a solver?
static inline int dit_sampler_in_process(const dit_sampler_options_t* o) {
    return o->predicts == PREDICTS_NOISE || o->process != DDPM_ANCESTRAL;
}

// How is drawn: "euler, 50 times, shift 0.3", "ddim, eta 0.5, 50 steps".
static inline void dit_sampler_text(char* text, size_t size, const dit_sampler_options_t* o) {
    static const char* const processes[DDPM_KINDS] = {"ddpm", "ddim", "sde", "ddim_song"};
    int used = 0, velocity = o->predicts != PREDICTS_NOISE, in_process = dit_sampler_in_process(o);
    if (in_process) {
        used = snprintf(text, size, "%s", processes[o->process]);
        if (o->process == DDPM_DDIM || o->process == DDPM_DDIM_SONG) {
            used += snprintf(text + used, size - (size_t)used, ", eta %g", o->eta);
        }
        used += snprintf(text + used, size - (size_t)used, ", %d steps", o->points);
        if (!velocity || o->process == DDPM_SDE) return; // without a grid
    } else if (o->solver == FLOW_DOPRI5) {
        snprintf(text, size, "dopri5, each image with its own steps");
        return;
    } else {
        used = snprintf(text, size, "%s, %d times", flow_methods[o->solver].name, o->points);
    }
    if (o->shift == SHIFT_BY_SIZE) snprintf(text + used, size - (size_t)used, ", shift by the size");
    else snprintf(text + used, size - (size_t)used, ", shift %g", o->shift);
}

// What guidance does: "4 on the first 3 of 32 channels, from t = 0.1 on, energy kept".
static inline void dit_sampler_guidance_text(char* text, size_t size, const dit_sampler_t* d) {
    const flow_guidance_t* g = &d->network.guidance;
    if (d->guidance) {
        snprintf(text, size, "%g, which the distilled network is told", d->options.guidance.w);
    } else if (g->w > 1) {
        snprintf(text, size, "%g on the first %d of %d channels, from t = %g on%s", g->w, g->channels, d->C, g->start,
                 g->energy ? ", energy kept" : "");
    } else {
        snprintf(text, size, "none");
    }
}

// The shift of the time grid for latents of h x w.
static inline double dit_sampler_shift(const dit_sampler_options_t* o, int h, int w) {
    return o->shift == SHIFT_BY_SIZE ? 1 / mmdit_time_shift(h * w) : o->shift;
}

// Memory for latents of up to d->h x d->w, d->C channels, that a network with OC channels of output makes, of which
// `taken` count, `pass` at once.
static inline void dit_sampler_plan(dit_sampler_t* d, network_fn run, int null_label, int pass, int OC, int taken,
                                    const floatS* mean, const floatS* std) { // (C) on the host
    const dit_sampler_options_t* o = &d->options;
    int HW = d->h * d->w, C = d->C;
    size_t n = (size_t)HW * C;
    double shift = dit_sampler_shift(o, d->h, d->w);
    flow_network_plan(&d->network, &d->plan, run, d, null_label, o->guidance, o->batch, pass, HW, C, OC, taken);
    if (dit_sampler_in_process(o)) {
        ddpm_sampler_plan(&d->ddpm, &d->plan, o->process, o->points, o->eta, shift, o->batch, HW, C, taken);
    } else {
        flow_sampler_plan(&d->sampler, &d->plan, o->solver, o->points, shift, o->batch, n);
    }
    plan_floatS(&d->plan, &d->x, o->batch * n, "sampler.x");
    plan_floatX(&d->plan, &d->z, o->batch * n, "sampler.z");
    plan_floatS(&d->plan, &d->mean, (size_t)C, "sampler.mean");
    plan_floatS(&d->plan, &d->std, (size_t)C, "sampler.std");
    plan_allocate(&d->plan, "sampling");
    copy_to_device(d->mean, mean, C * sizeof(floatS), 0);
    copy_to_device(d->std, std, C * sizeof(floatS), 0);
}

// `d` must stay where it is. The tokenizer is opened for dit_sampler_batch() images, with the decoder.
void dit_sampler_open(dit_sampler_t* d, lightningdit_t* net, const params_t* params, autoencoder_t* tokenizer,
                      const floatS* mean, const floatS* std, // (C) on the host
                      dit_sampler_options_t options) {
    memset(d, 0, sizeof *d);
    const lightningdit_config_t* c = &net->config;
    int C = c->C, side = c->side, tokens = lightningdit_tokens(c);
    if (tokenizer->z != C || tokenizer->GH != side) {
        fatal("the tokenizer makes latents of %d x %d with %d channels, the DiT was trained on %d x %d with %d; give "
              "the tokenizer that made its latents", tokenizer->GH, tokenizer->GW, tokenizer->z, side, side, C);
    }
    if (options.shift == SHIFT_BY_SIZE) fatal("-shift -1 is for text-to-image transformers; LightningDiT has 0.3");
    options.batch = dit_sampler_batch(options.batch, tokens);
    if (options.guidance.channels == 0) options.guidance.channels = C;
    d->options = options;
    d->net = net;
    d->params = params;
    d->tokenizer = tokenizer;
    d->h = d->w = side, d->C = C;
    int pass = dit_sampler_pass(options.batch, tokens, &options.guidance);
    if (pass > net->capacity) pass = net->capacity; // in training, by the batch
    int noise = dit_sampler_of_noise(c, &options), OC = lightningdit_out_channels(c);
    plan_int(&d->plan, &d->label, (size_t)pass, "sampler.label");
    dit_sampler_plan(d, dit_sampler_evaluate, c->classes, pass, OC, noise ? OC : C, mean, std);
}

// The same with a text-to-image transformer, for images of up to the planned size.
void dit_sampler_open_captions(dit_sampler_t* d, mmdit_t* net, const params_t* params, autoencoder_t* tokenizer,
                               const floatS* mean, const floatS* std, // (C) on the host
                               dit_sampler_options_t options) {
    memset(d, 0, sizeof *d);
    const mmdit_config_t* c = &net->config;
    int tokens = net->text_rows + net->image_rows;
    if (tokenizer->z != c->C) {
        fatal("the tokenizer makes latents of %d channels, and the text-to-image transformer was trained on %d%s; give "
              "the tokenizer that made its latents", tokenizer->z, c->C,
              c->C == 4 * tokenizer->z ? " (2 x 2 positions in one, as FLUX's are, which is not drawn here)" : "");
    }
    if (options.predicts == PREDICTS_NOISE) {
        fatal("-predicts noise: text-to-image transformers predict a velocity; leave it out");
    }
    options.predicts = PREDICTS_VELOCITY;
    options.batch = dit_sampler_batch(options.batch, tokens);
    if (options.guidance.channels == 0) options.guidance.channels = c->C;
    double told = options.guidance.w;
    if (c->guidance) options.guidance.w = 1; // of two passes
    d->options = options;
    d->mmdit = net;
    d->params = params;
    d->tokenizer = tokenizer;
    d->h = net->image_rows, d->w = 1, d->C = c->C;
    int pass = dit_sampler_pass(options.batch, tokens, &options.guidance);
    if (pass > net->capacity) pass = net->capacity;
    plan_floatX(&d->plan, &d->rows, (size_t)pass * net->text_rows * c->text, "sampler.rows");
    plan_int(&d->plan, &d->first, (size_t)pass, "sampler.first");
    plan_floatX(&d->plan, &d->pooled, (size_t)pass * c->vector, "sampler.pooled");
    if (c->guidance) plan_floatS(&d->plan, &d->guidance, (size_t)pass, "sampler.guidance");
    dit_sampler_plan(d, dit_sampler_evaluate_captions, 0, pass, c->C, c->C, mean, std);
    d->network.reversed = 1;
    if (!c->guidance) return;
    d->options.guidance.w = told;
    floatS* guidance = (floatS*)malloc_check(pass * sizeof(floatS), "guidance");
    for (int b = 0; b < pass; b++) guidance[b] = (floatS)told;
    copy_to_device(d->guidance, guidance, pass * sizeof(floatS), 0);
    free(guidance);
}

// What the labels are from here on: rows of `text`, which has to stay where it is; and how large the latents are.
void dit_sampler_show(dit_sampler_t* d, const text_batch_t* text, int h, int w) {
    d->text = text;
    d->h = h, d->w = w;
    mmdit_set_size(d->mmdit, h, w);
    flow_network_set_size(&d->network, h * w);
    double shift = dit_sampler_shift(&d->options, h, w);
    if (dit_sampler_in_process(&d->options)) ddpm_sampler_set_size(&d->ddpm, h * w, shift);
    else flow_sampler_set_size(&d->sampler, (size_t)h * w * d->C, shift);
    int factor = autoencoder_factor(d->tokenizer);
    autoencoder_resize(d->tokenizer, h * factor, w * factor);
}

void dit_sampler_close(dit_sampler_t* d) {
    flow_network_free(&d->network);
    flow_sampler_free(&d->sampler);
    ddpm_sampler_free(&d->ddpm);
    plan_free(&d->plan);
    memset(d, 0, sizeof *d);
}

// d->x = the normalised latents of at most options.batch images: numbers images[b], that show labels[b].
static inline void dit_sampler_latents(dit_sampler_t* d, const uint64_t* images, const int* labels, int B, stream_t s) {
    d->network.labels = labels;
    flow_noise(d->x, images, B, (size_t)d->h * d->w * d->C, d->options.seed, s);
    if (dit_sampler_in_process(&d->options)) {
        ddpm_sample(&d->ddpm, d->x, images, B, flow_guided_velocity, &d->network, d->options.seed, s);
    } else {
        flow_sample(&d->sampler, d->x, B, flow_guided_velocity, &d->network, s);
    }
}

// Draws at most options.batch images. Returns how many, from the first on, are finite.
static inline int dit_sampler_draw_batch(dit_sampler_t* d, uint8_t* pixels, const uint64_t* images, const int* labels,
                                         int B, stream_t s) {
    dit_sampler_latents(d, images, labels, B, s);
    latent_denormalise(d->z, d->x, d->mean, d->std, (size_t)B * d->h * d->w, d->C, s);
    size_t values = (size_t)B * d->tokenizer->H * d->tokenizer->W * 3;
    floatS* host = (floatS*)malloc_check(values * sizeof(floatS), "drawn images");
    const floatX* image = autoencoder_decode(d->tokenizer, d->z, B, s);
    stream_wait(s);
    copy_floats_to_host(host, image, values);
    image_bytes_from_floats(pixels, host, values);
    size_t finite = first_not_finite(host, values);
    free(host);
    return (int)(finite / (values / B));
}

// Draws `count` images. Returns `count`, or the first that is none: one of its values is a NaN or an infinity.
int dit_sampler_draw(dit_sampler_t* d,
                     uint8_t* pixels,        // (count, H, W, 3)
                     const uint64_t* images, // (count) their numbers
                     const int* labels,      // (count)
                     int count, stream_t s) {
    size_t image = (size_t)d->tokenizer->H * d->tokenizer->W * 3;
    for (int first = 0; first < count; first += d->options.batch) {
        int B = count - first < d->options.batch ? count - first : d->options.batch;
        int good = dit_sampler_draw_batch(d, pixels + first * image, images + first, labels + first, B, s);
        if (good < B) return first + good;
    }
    return count;
}
