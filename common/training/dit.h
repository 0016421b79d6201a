// dit.h: one training step of a diffusion transformer: flow matching on normalised latents.
//
//     x_t = t x1 + (1 - t) x0,   u = x1 - x0,   v = net(x_t, t, y)        x1 a latent, x0 noise, t = 1 is data
//     loss = mean (v - u)^2 + w_cos mean over positions (1 - cos(v, u))
//     AdamW; an exponential average of the weights, which is what is sampled from
//
// Two networks are trained so. LightningDiT has labels for y, and latents of one square size. The text-to-image
// transformer (mmdit.h) has captions, latents whose size is the step's, no cosine term, and the opposite direction of
// time inside. Which of them it is the configuration says; all that depends on it stands under "Either network".
//
// The latents, times and labels of a batch come from common/data/latent_loader.h, which also draws the times and drops
// labels; those with captions from common/training/bucket_loader.h. The noise is made on the device: a function of
// (seed, step, place in the global batch), like all that is random.
//
// dit_gradients computes, dit_read brings losses and the gradient's norm to the host, dit_update takes the step; a step
// that is to be skipped leaves it out. Nothing in dit_gradients and dit_update allocates or waits.
//
// LightningDiT's output layer starts at zero, so in the first step v = 0 everywhere, where the cosine's gradient is 1e8
// times a unit vector: spec and reference agree, and the published loss curve contains it. Clipping by the norm removes
// it. (Lipman et al. 2023; Ma et al. 2024; LightningDiT transport/transport.py.) Look next at
// common/models/lightningdit.h and common/models/mmdit.h, the networks, common/drawing/flow_sampler.h, which samples
// from them, and train_dit.cu, the loop.
#pragma once
// defines: lightningdit_t, lightningdit_register, lightningdit_plan, lightningdit_forward, lightningdit_backward
#include "common/models/lightningdit.h"
// defines: mmdit_t, mmdit_config_t, mmdit_input_t, mmdit_register, mmdit_plan, mmdit_set_size, mmdit_forward, ...
#include "common/models/mmdit.h"
// defines: replicas_t, replicas_open, replicas_mean_grads, replicas_sum_squares, replicas_update, ...
#include "common/training/replicas.h"

typedef struct {
    lightningdit_config_t net;
    mmdit_config_t mmdit; // of a dim that is not 0: this network instead; h x w are the most positions that are to come
    int text_rows;    // most rows of a caption
    int batch;        // images a step of this process
    int recompute;    // each block's forward again in the backward
    int zero;         // several processes share the optimiser's state (replicas.h)
    double w_cos;     // weight of the cosine term
    double lr, beta1, beta2, eps, decay; // where there are captions, decay acts on matrices only
    int warmup;       // steps in which the learning rate grows to lr, from 1 / warmup of it
    double ema;       // beta of the weights' exponential average
    double clip;      // most that the gradient's norm may be; 0: whatever it is
    uint64_t seed;
} dit_config_t;

typedef struct {
    dit_config_t config;
    comm_t* comm;     // set before dit_allocate where several processes train together, else NULL
    replicas_t replicas;
    params_t params;
    lightningdit_t net; // one of the two
    mmdit_t mmdit;
    plan_t plan, work;
    int h, w, C;      // of the step's latents: dit_set_size
    size_t n;         // numbers of one
    floatS* x1;       // (B, h, w, C) latents, normalised
    floatS* u;        // (B, h, w, C) velocity of the path
    floatS* t;        // (B)
    int* labels;      // (B) the null class is number `classes`
    mmdit_input_t captions; // L, text, first, pooled: set before a step; the rest here
    floatS *ones, *flux_time; // (B) for captions alone
    floatX* xt;       // (B, h, w, C)
    floatX* dv;       // (B, h, w, C)
    floatS* measures; // (2 B + 1) mse, cosine of each image; squared norm of the gradient
} dit_t;

// What a step measured: means over the images of this process, and the norm over all. Doubles only.
typedef struct {
    double mse, cosine; // the two terms of the loss
    double norm;        // of the gradient, before clipping
} dit_report_t;

// ---------------------------------------------------------------------------------------------------------------------
// Either network

static inline int dit_has_captions(const dit_config_t* c) { return c->mmdit.dim != 0; }
static inline const char* dit_model_id(const dit_config_t* c) { return dit_has_captions(c) ? c->mmdit.id : c->net.id; }
static inline const floatX* dit_velocity(const dit_t* d) {
    return dit_has_captions(&d->config) ? d->mmdit.v : d->net.v;
}

// Where the tensors that are trained begin.
static inline size_t dit_first_trained(const dit_t* d) {
    return dit_has_captions(&d->config) ? 0 : lightningdit_first_trained(&d->net);
}

static inline void dit_register_network(dit_t* d) {
    d->net.config = d->config.net;
    d->mmdit.config = d->config.mmdit;
    d->net.recompute = d->mmdit.recompute = d->config.recompute;
    if (dit_has_captions(&d->config)) mmdit_register(&d->mmdit, &d->params.table, "");
    else lightningdit_register(&d->net, &d->params.table, "");
}

static inline void dit_plan_network(dit_t* d) {
    if (dit_has_captions(&d->config)) {
        mmdit_plan(&d->mmdit, &d->plan, d->config.batch, d->config.text_rows, 1);
        plan_floatS(&d->plan, &d->ones, d->config.batch, "dit.ones");
        plan_floatS(&d->plan, &d->flux_time, d->config.batch, "dit.flux_time");
        mmdit_plan_work(&d->mmdit, &d->work);
    } else {
        lightningdit_plan(&d->net, &d->plan, d->config.batch, 1);
        lightningdit_plan_work(&d->net, &d->work);
    }
}

// The size of the latents from here on; one network has but one.
static inline void dit_set_size(dit_t* d, int h, int w) {
    d->h = h, d->w = w;
    d->n = (size_t)h * w * d->C;
    const mmdit_config_t* c = &d->mmdit.config; // who draws between two steps leaves another size
    if (dit_has_captions(&d->config) && (c->h != h || c->w != w)) mmdit_set_size(&d->mmdit, h, w);
}

// The initial weights, of which the average is one too.
void dit_init(dit_t* d) {
    if (dit_has_captions(&d->config)) params_init(&d->params, d->config.seed);
    else lightningdit_init(&d->net, &d->params, d->config.seed);
    params_start_averages(&d->params);
}

// What neither the weights nor a batch say. Once the memory is there.
void dit_set_tables(dit_t* d) {
    if (!dit_has_captions(&d->config)) {
        lightningdit_set_tables(&d->net, &d->params);
        return;
    }
    size_t bytes = (size_t)d->config.batch * sizeof(floatS);
    floatS* ones = (floatS*)malloc_check(bytes, "the constant 1");
    for (int b = 0; b < d->config.batch; b++) ones[b] = 1;
    copy_to_device(d->ones, ones, bytes, 0);
    free(ones);
    mmdit_set_size(&d->mmdit, d->h, d->w);
}

// The velocity of xt at t. Where there are captions u becomes what the network is to say: noise - data, at time 1 - t.
static inline void dit_forward(dit_t* d, stream_t s) {
    int B = d->config.batch;
    if (!dit_has_captions(&d->config)) {
        lightningdit_forward(&d->net, &d->params, d->xt, d->t, d->labels, B, s);
        return;
    }
    const double minus_one = -1, minus_two = -2;
    flow_combine(d->flux_time, d->ones, d->t, d->ones, &minus_one, 1, B, 1, s);
    flow_combine(d->u, d->u, d->u, d->ones, &minus_two, 1, B, d->n, s);
    d->captions.B = B;
    d->captions.xt = d->xt;
    d->captions.t = d->flux_time;
    mmdit_forward(&d->mmdit, &d->params, d->captions, s);
}

static inline void dit_backward(dit_t* d, stream_t s) {
    if (dit_has_captions(&d->config)) mmdit_backward(&d->mmdit, &d->params, d->dv, s);
    else lightningdit_backward(&d->net, &d->params, d->dv, s);
}

// Multiply-accumulates of an image's forward; where sizes differ, at the size of the last step and so many text rows.
static inline double dit_forward_macs(const dit_t* d, int text_rows) {
    return dit_has_captions(&d->config) ? (double)mmdit_macs(&d->mmdit.config, text_rows)
                                        : (double)lightningdit_macs(&d->net);
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

void dit_register(dit_t* d, dit_config_t config) {
    memset(d, 0, sizeof *d);
    d->config = config;
    dit_register_network(d);
    int captions = dit_has_captions(&config);
    d->C = captions ? config.mmdit.C : config.net.C;
    d->h = captions ? config.mmdit.h : config.net.side;
    d->w = captions ? config.mmdit.w : config.net.side;
    d->n = (size_t)d->h * d->w * d->C;
}

void dit_plan(dit_t* d) {
    size_t B = d->config.batch;
    dit_plan_network(d);
    plan_floatS(&d->plan, &d->x1, B * d->n, "dit.x1");
    plan_floatS(&d->plan, &d->u, B * d->n, "dit.u");
    plan_floatS(&d->plan, &d->t, B, "dit.t");
    plan_int(&d->plan, &d->labels, B, "dit.labels");
    plan_floatX(&d->plan, &d->xt, B * d->n, "dit.xt");
    plan_floatX(&d->plan, &d->dv, B * d->n, "dit.dv");
    plan_floatS(&d->plan, &d->measures, 2 * B + 1, "dit.measures");
}

void dit_allocate(dit_t* d) {
    if (d->config.zero && d->comm && d->comm->size > 1) {
        d->params.ranks = d->comm->size;
        d->params.rank = d->comm->rank;
    }
    params_allocate(&d->params, dit_first_trained(d), 1, "the transformer's weights");
    replicas_open(&d->replicas, &d->params, d->comm);
    plan_allocate(&d->plan, "activations");
    plan_allocate(&d->work, "working memory");
}

void dit_free(dit_t* d) {
    params_free(&d->params);
    plan_free(&d->plan);
    plan_free(&d->work);
}

static inline size_t dit_measure_count(const dit_t* d) { return 2 * (size_t)d->config.batch + 1; }

// ---------------------------------------------------------------------------------------------------------------------
// A step

// The path from noise to the latents in x1, at the times in t: xt and u.
static inline void dit_path(dit_t* d, int64_t step, stream_t s) {
    uint64_t first_row = d->comm ? (uint64_t)d->comm->rank * d->config.batch : 0;
    flow_path(d->xt, d->u, d->x1, d->t, d->config.batch, d->n, d->config.seed, RANDOM_NOISE, (uint64_t)step, first_row,
              s);
}

// Measures and gradients from xt, u, t and labels or captions, the gradients averaged over all processes.
void dit_gradients_of_path(dit_t* d, stream_t s) {
    const dit_config_t* c = &d->config;
    int B = c->batch;
    params_zero_grads(&d->params, s);
    dit_forward(d, s);
    flow_loss(d->measures, d->measures + B, d->dv, dit_velocity(d), d->u, NULL, 1.0 / B, c->w_cos / B, B, d->h * d->w,
              d->C, s);
    dit_backward(d, s);
    replicas_mean_grads(&d->replicas, s);
    replicas_sum_squares(d->measures + 2 * B, &d->params, d->comm, 0, params_trained(&d->params), s);
}

// The same of the batch in x1, t and labels.
void dit_gradients(dit_t* d, int64_t step, stream_t s) {
    dit_path(d, step, s);
    dit_gradients_of_path(d, s);
}

// Waits for the step. `host` is working space of dit_measure_count() values.
dit_report_t dit_read(const dit_t* d, floatS* host, stream_t s) {
    int B = d->config.batch;
    copy_to_host(host, d->measures, dit_measure_count(d) * sizeof(floatS), s);
    stream_wait(s);
    dit_report_t r = {0, 0, sqrt((double)host[2 * B] * replicas_square_factor(&d->params))};
    for (int b = 0; b < B; b++) {
        r.mse += (double)host[b] / B;
        r.cosine += (double)host[B + b] / B;
    }
    return r;
}

// The learning rate of a step: it grows evenly in the first ones.
static inline double dit_learning_rate(const dit_config_t* c, int64_t step) {
    return step + 1 < c->warmup ? c->lr * (double)(step + 1) / c->warmup : c->lr;
}

// One step of AdamW, number `step` of the run, on the averaged gradients, whose norm is `norm`.
void dit_update(dit_t* d, int64_t step, double norm, stream_t s) {
    const dit_config_t* c = &d->config;
    double factor = c->clip > 0 && norm > c->clip ? c->clip / (norm + 1e-6) : 1, lr = dit_learning_rate(c, step);
    adam_t adam = {lr, c->beta1, c->beta2, c->eps, c->decay, ++d->params.t, {c->ema, 0}, factor};
    if (dit_has_captions(c) && c->decay > 0) replicas_update_matrices_decay(&d->params, adam, d->comm, s);
    else replicas_update(&d->params, adam, d->comm, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Cost, and where a number went wrong

// Multiply-accumulates of a step of this process: the backward is two forwards, and with recompute there is a third.
static inline double dit_step_macs(const dit_t* d, int text_rows) {
    return dit_forward_macs(d, text_rows) * d->config.batch * (d->config.recompute ? 4 : 3);
}

// The first tensor, in the order of the computation, that holds a number that is not finite. 1, or 0 if there is none.
int dit_find_not_finite(const dit_t* d, char* name, size_t size, size_t* where) {
    const params_t* p = &d->params;
    size_t n = d->config.batch * d->n, text = (size_t)d->config.batch * d->captions.L * d->config.mmdit.text;
    snprintf(name, size, "the latents");
    if ((*where = device_first_not_finite(NULL, d->x1, n)) < n) return 1;
    snprintf(name, size, "the text");
    if (text && (*where = device_first_not_finite(d->captions.text, NULL, text)) < text) return 1;
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        snprintf(name, size, "the weight %s", t->name);
        if ((*where = device_first_not_finite(params_at(p, t->offset), NULL, t->stored)) < t->stored) return 1;
    }
    snprintf(name, size, "the predicted velocity");
    if ((*where = device_first_not_finite(dit_velocity(d), NULL, n)) < n) return 1;
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        const floatS* grad = params_grad(p, t->offset);
        snprintf(name, size, "the gradient of %s", t->name);
        if (grad && (*where = device_first_not_finite(NULL, grad, t->stored)) < t->stored) return 1;
    }
    snprintf(name, size, "the measures");
    return 0;
}
