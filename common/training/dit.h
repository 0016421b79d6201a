// dit.h: one training step of LightningDiT: flow matching on normalised latents.
//
//     x_t = t x1 + (1 - t) x0,   u = x1 - x0,   v = net(x_t, t, y)        x1 a latent, x0 noise, t = 1 is data
//     loss = mean (v - u)^2 + w_cos mean over positions (1 - cos(v, u))
//     AdamW; an exponential average of the weights, which is what is sampled from
//
// The latents, times and labels of a batch come from common/data/latent_loader.h, which also draws the times and drops
// labels. The noise is made on the device: a function of (seed, step, place in the global batch), like all that is
// random.
//
// dit_gradients computes, dit_read brings losses and the gradient's norm to the host, dit_update takes the step; a step
// that is to be skipped leaves it out. Nothing in dit_gradients and dit_update allocates or waits.
//
// The output layer starts at zero, so in the first step v = 0 everywhere, where the cosine's gradient is 1e8 times a
// unit vector: spec and reference agree, and the published loss curve contains it. Clipping by the norm removes it.
// (Lipman et al. 2023; Ma et al. 2024; LightningDiT transport/transport.py.) Look next at common/models/lightningdit.h,
// the network, common/drawing/flow_sampler.h, which samples from it, and train_dit.cu, the loop.
#pragma once
// defines: lightningdit_t, lightningdit_register, lightningdit_plan, lightningdit_forward, lightningdit_backward
#include "common/models/lightningdit.h"
// defines: replicas_mean_grads, replicas_sum_squares, replicas_update
#include "common/training/replicas.h"

typedef struct {
    lightningdit_config_t net;
    int batch;        // images a step of this process
    int recompute;    // each block's forward again in the backward
    int zero;         // several processes share the optimiser's state (replicas.h)
    double w_cos;     // weight of the cosine term
    double lr, beta1, beta2, eps, decay;
    double ema;       // beta of the weights' exponential average
    double clip;      // most that the gradient's norm may be; 0: whatever it is
    uint64_t seed;
} dit_config_t;

typedef struct {
    dit_config_t config;
    comm_t* comm;     // set before dit_allocate where several processes train together, else NULL
    params_t params;
    lightningdit_t net;
    plan_t plan, work;
    size_t n;         // numbers of a latent
    floatS* x1;       // (B, S, S, C) latents, normalised
    floatS* u;        // (B, S, S, C) velocity of the path
    floatS* t;        // (B)
    int* labels;      // (B) the null class is number `classes`
    floatX* xt;       // (B, S, S, C)
    floatX* dv;       // (B, S, S, C)
    floatS* measures; // (2 B + 1) mse, cosine of each image; squared norm of the gradient
} dit_t;

// What a step measured: means over the images of this process, and the norm over all. Doubles only.
typedef struct {
    double mse, cosine; // the two terms of the loss
    double norm;        // of the gradient, before clipping
} dit_report_t;

// ---------------------------------------------------------------------------------------------------------------------
// Memory

void dit_register(dit_t* d, dit_config_t config) {
    memset(d, 0, sizeof *d);
    d->config = config;
    d->net.config = config.net;
    d->net.recompute = config.recompute;
    lightningdit_register(&d->net, &d->params.table, "");
    d->n = (size_t)config.net.side * config.net.side * config.net.C;
}

void dit_plan(dit_t* d) {
    size_t B = d->config.batch;
    lightningdit_plan(&d->net, &d->plan, d->config.batch, 1);
    plan_floatS(&d->plan, &d->x1, B * d->n, "dit.x1");
    plan_floatS(&d->plan, &d->u, B * d->n, "dit.u");
    plan_floatS(&d->plan, &d->t, B, "dit.t");
    plan_int(&d->plan, &d->labels, B, "dit.labels");
    plan_floatX(&d->plan, &d->xt, B * d->n, "dit.xt");
    plan_floatX(&d->plan, &d->dv, B * d->n, "dit.dv");
    plan_floatS(&d->plan, &d->measures, 2 * B + 1, "dit.measures");
    lightningdit_plan_work(&d->net, &d->work);
}

void dit_allocate(dit_t* d) {
    if (d->config.zero && d->comm && d->comm->size > 1) {
        d->params.ranks = d->comm->size;
        d->params.rank = d->comm->rank;
    }
    params_allocate(&d->params, lightningdit_first_trained(&d->net), 1, "LightningDiT's weights");
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

// Measures and gradients from xt, u, t and labels, the gradients averaged over all processes.
void dit_gradients_of_path(dit_t* d, stream_t s) {
    const dit_config_t* c = &d->config;
    int B = c->batch, side = c->net.side, C = c->net.C;
    params_zero_grads(&d->params, s);
    lightningdit_forward(&d->net, &d->params, d->xt, d->t, d->labels, B, s);
    flow_loss(d->measures, d->measures + B, d->dv, d->net.v, d->u, NULL, 1.0 / B, c->w_cos / B, B, side * side, C, s);
    lightningdit_backward(&d->net, &d->params, d->dv, s);
    replicas_mean_grads(&d->params, d->comm, s);
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

// One step of AdamW on the averaged gradients, whose norm is `norm`.
void dit_update(dit_t* d, double norm, stream_t s) {
    const dit_config_t* c = &d->config;
    double factor = c->clip > 0 && norm > c->clip ? c->clip / (norm + 1e-6) : 1;
    adam_t adam = {c->lr, c->beta1, c->beta2, c->eps, c->decay, ++d->params.t, {c->ema, 0}, factor};
    replicas_update(&d->params, adam, d->comm, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Cost, and where a number went wrong

// Multiply-accumulates of a step of this process: the backward is two forwards, and with recompute there is a third.
static inline double dit_step_macs(const dit_t* d) {
    return (double)lightningdit_macs(&d->net) * d->config.batch * (d->config.recompute ? 4 : 3);
}

// The first tensor, in the order of the computation, that holds a number that is not finite. 1, or 0 if there is none.
int dit_find_not_finite(const dit_t* d, char* name, size_t size, size_t* where) {
    const params_t* p = &d->params;
    size_t n = d->config.batch * d->n;
    snprintf(name, size, "the latents");
    if ((*where = device_first_not_finite(NULL, d->x1, n)) < n) return 1;
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        snprintf(name, size, "the weight %s", t->name);
        if ((*where = device_first_not_finite(params_at(p, t->offset), NULL, t->stored)) < t->stored) return 1;
    }
    snprintf(name, size, "the predicted velocity");
    if ((*where = device_first_not_finite(d->net.v, NULL, n)) < n) return 1;
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        const floatS* grad = params_grad(p, t->offset);
        snprintf(name, size, "the gradient of %s", t->name);
        if (grad && (*where = device_first_not_finite(NULL, grad, t->stored)) < t->stored) return 1;
    }
    snprintf(name, size, "the measures");
    return 0;
}
