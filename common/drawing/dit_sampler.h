// dit_sampler.h: pictures from a LightningDiT and the tokenizer whose latents it has learnt.
//
//     noise --flow_sampler.h: LightningDiT is the field--> normalised latent --x std + mean--> latent --decoder-->
//     bytes
//
// A network like DiT's, which predicts noise, takes ddpm_sampler.h's way instead, and one that predicts a velocity may.
//
// An image is numbered. Its noise depends on the seed and on this number alone. In the CPU build the bits of an image
// do not depend on what is drawn beside it: every operation computes an image alike in any batch (dev/cpu/gemm.h). Look
// next at common/drawing/flow_sampler.h (guidance and solvers) and sample.cu, the program.
#pragma once
// defines: flow_network_t, flow_sampler_t, flow_guidance_t, flow_noise, flow_sample, flow_guided_velocity
#include "common/drawing/flow_sampler.h"
// defines: ddpm_sampler_t, ddpm_sampler_plan, ddpm_sample
#include "common/drawing/ddpm_sampler.h"
// defines: lightningdit_t, lightningdit_forward
#include "common/models/lightningdit.h"
// defines: autoencoder_t, autoencoder_decode
#include "common/drawing/autoencoder.h"
// defines: image_bytes_from_floats
#include "common/data/image.h"

// What the output of a network means. Files do not tell: those with 2 C channels are DiT's, noise, or SiT's, a
// velocity.
typedef enum { PREDICTS_UNKNOWN, PREDICTS_VELOCITY, PREDICTS_NOISE } dit_prediction_t;

typedef struct {
    flow_solver_t solver;     // of a velocity
    int points;     // of the time grid; one step less
    double shift;
    flow_guidance_t guidance; // channels 0: all
    int batch;      // most images drawn at once
    uint64_t seed;
    dit_prediction_t predicts; // PREDICTS_UNKNOWN: a velocity, if the network has C channels
    ddpm_kind_t process;      // of noise, or DDPM_SDE of a velocity; `points` is then the number of steps
    double eta;
} dit_sampler_options_t;

typedef struct {
    dit_sampler_options_t options;
    lightningdit_t* net; // planned for dit_sampler_pass() images; for fewer, it is called more often
    const params_t* params;
    autoencoder_t* tokenizer;
    flow_network_t network;
    flow_sampler_t sampler; // one of the two
    ddpm_sampler_t ddpm;
    plan_t plan;
    size_t n;           // numbers of a latent
    floatS* x;          // (batch, S, S, C)
    floatX* z;          // (batch, S, S, C)
    floatS *mean, *std; // (C) on the device
} dit_sampler_t;

// Images drawn at once. A CPU has its full speed with a thousand tokens, and more would only need more memory.
static inline int dit_sampler_batch(int batch, const lightningdit_config_t* c) {
#ifdef USE_CUDA
    (void)c;
    return batch;
#else
    enum { TOKENS = 1024 };
    int most = lightningdit_tokens(c) < TOKENS ? TOKENS / lightningdit_tokens(c) : 1;
    return batch < most ? batch : most;
#endif
}

// Images that the network evaluates at once: those of a batch, and again without their labels.
static inline int dit_sampler_pass(int batch, const lightningdit_config_t* c, const flow_guidance_t* guidance) {
    return dit_sampler_batch(batch, c) * (guidance->w > 1 ? 2 : 1);
}

// A network_fn.
static inline void dit_sampler_evaluate(void* sampler, floatX* v, const floatX* xt, const floatS* t, const int* labels,
                                        int B, stream_t s) {
    dit_sampler_t* d = (dit_sampler_t*)sampler;
    lightningdit_forward(d->net, d->params, xt, t, labels, B, s);
    size_t out = d->n / d->net->config.C * lightningdit_out_channels(&d->net->config);
    copy_on_device(v, d->net->v, B * out * sizeof(floatX), s);
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
    if (noise && o->process == DDPM_SDE) {
        fatal("-process sde: it follows a velocity, and this network predicts noise; choose ddpm or ddim");
    }
    if (noise && o->guidance.start > 0) {
        fatal("-cfg_start %g: a network that predicts noise is guided at all times; leave it out", o->guidance.start);
    }
    return noise;
}

// Does drawing follow a stochastic process, or else a solver?
static inline int dit_sampler_in_process(const dit_sampler_options_t* o) {
    return o->predicts == PREDICTS_NOISE || o->process == DDPM_SDE;
}

// How is drawn: "euler, 50 times, shift 0.3", "ddim, eta 0.5, 50 steps".
static inline void dit_sampler_text(char* text, size_t size, const dit_sampler_options_t* o) {
    static const char* const processes[] = {"ddpm", "ddim", "sde"};
    if (dit_sampler_in_process(o)) {
        int used = snprintf(text, size, "%s", processes[o->process]);
        if (o->process == DDPM_DDIM) used += snprintf(text + used, size - (size_t)used, ", eta %g", o->eta);
        snprintf(text + used, size - (size_t)used, ", %d steps", o->points);
    } else if (o->solver == FLOW_DOPRI5) {
        snprintf(text, size, "dopri5, each image with its own steps");
    } else {
        snprintf(text, size, "%s, %d times, shift %g", flow_methods[o->solver].name, o->points, o->shift);
    }
}

// `d` must stay where it is. The tokenizer is opened for dit_sampler_batch() images, with the decoder.
void dit_sampler_open(dit_sampler_t* d, lightningdit_t* net, const params_t* params, autoencoder_t* tokenizer,
                      const floatS* mean, const floatS* std, // (C) on the host
                      dit_sampler_options_t options) {
    memset(d, 0, sizeof *d);
    int C = net->config.C, side = net->config.side;
    if (tokenizer->z != C || tokenizer->GH != side) {
        fatal("the tokenizer makes latents of %d x %d with %d channels, the DiT was trained on %d x %d with %d; give "
              "the tokenizer that made its latents", tokenizer->GH, tokenizer->GW, tokenizer->z, side, side, C);
    }
    options.batch = dit_sampler_batch(options.batch, &net->config);
    if (options.guidance.channels == 0) options.guidance.channels = C;
    d->options = options;
    d->net = net;
    d->params = params;
    d->tokenizer = tokenizer;
    d->n = (size_t)side * side * C;
    int pass = dit_sampler_pass(options.batch, &net->config, &options.guidance);
    if (pass > net->capacity) pass = net->capacity; // in training, by the batch
    int noise = dit_sampler_of_noise(&net->config, &options), OC = lightningdit_out_channels(&net->config);
    flow_network_plan(&d->network, &d->plan, dit_sampler_evaluate, d, net->config.classes, options.guidance,
                      options.batch, pass, side * side, C, OC, noise ? OC : C);
    if (dit_sampler_in_process(&options)) {
        ddpm_sampler_plan(&d->ddpm, &d->plan, options.process, options.points, options.eta, options.batch, side * side,
                          C, noise ? OC : C);
    } else {
        flow_sampler_plan(&d->sampler, &d->plan, options.solver, options.points, options.shift, options.batch, d->n);
    }
    plan_floatS(&d->plan, &d->x, options.batch * d->n, "sampler.x");
    plan_floatX(&d->plan, &d->z, options.batch * d->n, "sampler.z");
    plan_floatS(&d->plan, &d->mean, (size_t)C, "sampler.mean");
    plan_floatS(&d->plan, &d->std, (size_t)C, "sampler.std");
    plan_allocate(&d->plan, "sampling");
    copy_to_device(d->mean, mean, C * sizeof(floatS), 0);
    copy_to_device(d->std, std, C * sizeof(floatS), 0);
}

void dit_sampler_close(dit_sampler_t* d) {
    flow_network_free(&d->network);
    flow_sampler_free(&d->sampler);
    ddpm_sampler_free(&d->ddpm);
    plan_free(&d->plan);
    memset(d, 0, sizeof *d);
}

// d->x = the normalised latents of at most options.batch images: numbers images[b], of classes labels[b].
static inline void dit_sampler_latents(dit_sampler_t* d, const uint64_t* images, const int* labels, int B, stream_t s) {
    d->network.labels = labels;
    flow_noise(d->x, images, B, d->n, d->options.seed, s);
    if (dit_sampler_in_process(&d->options)) {
        ddpm_sample(&d->ddpm, d->x, images, B, flow_guided_velocity, &d->network, d->options.seed, s);
    } else {
        flow_sample(&d->sampler, d->x, B, flow_guided_velocity, &d->network, s);
    }
}

// Draws at most options.batch images. Returns how many, from the first on, are finite.
static inline int dit_sampler_draw_batch(dit_sampler_t* d, uint8_t* pixels, const uint64_t* images, const int* labels,
                                         int B, stream_t s) {
    int HW = d->net->config.side * d->net->config.side, C = d->net->config.C;
    dit_sampler_latents(d, images, labels, B, s);
    latent_denormalise(d->z, d->x, d->mean, d->std, (size_t)B * HW, C, s);
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
