// mmdit_bed.h: a text-to-image transformer with its memory, inputs and an upstream gradient, for tests of the model.
//
// All activations are poisoned, so that a number that was never written shows; what lives only inside forward or
// backward is poisoned again between the two. Look next at tests/test_mmdit.c and tests/test_mmdit_gradient.c.
#pragma once
// defines: mmdit_t, mmdit_config_t, mmdit_register, mmdit_plan, mmdit_plan_work, mmdit_set_size, mmdit_forward, ...
#include "common/models/mmdit.h"
// defines: test_normal, test_uniform
#include "tests/test.h"

typedef struct {
    mmdit_t net;
    params_t params;
    plan_t keep, work;
    mmdit_input_t in; // whose arrays are these:
    floatX *xt, *text, *pooled;
    floatS *t, *guidance;
    int* first;
    floatX* dv;       // (B, h, w, C)
    size_t values;    // of all latents
} bed_t;

static inline void bed_poison(plan_t* plan) { memset(plan->memory, 0xFF, plan_bytes(plan)); } // NaN in every type

// As small as a test can use: latents of 2 x 3 x 5.
static inline mmdit_config_t bed_config(int doubles, int singles, int vector, int guidance) {
    mmdit_config_t c = {"nano", 24, 3, doubles, singles, {2, 2, 4}, 7, vector, guidance, 5, 2, 3};
    return c;
}

// Weights are the initialisers'; inputs are random; images have 0, 2, 1, 0, 2, 1, ... rows of padding, of L text rows.
// It must not be moved: the plans know its address.
static inline void bed_make(bed_t* m, mmdit_config_t config, int B, int L, int train, int recompute) {
    memset(m, 0, sizeof *m);
    m->net.config = config;
    m->net.recompute = recompute;
    mmdit_register(&m->net, &m->params.table, "");
    params_allocate(&m->params, train ? 0 : m->params.table.total, 0, "parameters");
    m->values = (size_t)B * config.h * config.w * config.C;
    mmdit_plan(&m->net, &m->keep, B, L, train);
    plan_floatX(&m->keep, &m->xt, m->values, "xt");
    plan_floatX(&m->keep, &m->dv, m->values, "dv");
    plan_floatX(&m->keep, &m->text, (size_t)B * L * config.text, "text");
    plan_floatX(&m->keep, &m->pooled, (size_t)B * config.vector, "pooled");
    plan_floatS(&m->keep, &m->t, (size_t)B, "t");
    plan_floatS(&m->keep, &m->guidance, (size_t)B, "guidance");
    plan_int(&m->keep, &m->first, (size_t)B, "first");
    mmdit_plan_work(&m->net, &m->work);
    plan_allocate(&m->keep, "activations");
    plan_allocate(&m->work, "work");
    bed_poison(&m->keep);
    bed_poison(&m->work);
    params_init(&m->params, 11);
    mmdit_set_size(&m->net, m->net.config.h, m->net.config.w);
    for (size_t i = 0; i < m->values; i++) m->xt[i] = (floatX)test_normal(), m->dv[i] = (floatX)test_normal();
    for (size_t i = 0; i < (size_t)B * L * config.text; i++) m->text[i] = (floatX)test_normal();
    for (size_t i = 0; i < (size_t)B * config.vector; i++) m->pooled[i] = (floatX)test_normal();
    for (int b = 0; b < B; b++) {
        m->t[b] = (floatS)(0.5 * test_uniform() + 0.5);
        m->guidance[b] = (floatS)(3 + test_uniform());
        m->first[b] = b * 2 % 3 < L ? b * 2 % 3 : 0;
    }
    m->in = (mmdit_input_t){B, L, m->xt, m->t, m->text, m->first, m->pooled, m->guidance};
}

static inline void bed_free(bed_t* m) {
    params_free(&m->params);
    plan_free(&m->keep);
    plan_free(&m->work);
}

// Noise on every tensor, so that nothing is zero or one.
static inline void bed_randomise(bed_t* m) {
    params_t* p = &m->params;
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        double amplitude = t->ndim >= 2 ? 0.15 : 0.2;
        for (size_t k = 0; k < t->count; k++) p->values[t->offset + k] += (floatX)(amplitude * test_normal());
    }
}

// Weights and inputs of another model of this configuration, with as many text rows and at least as many images.
static inline void bed_copy(bed_t* to, const bed_t* from) {
    const mmdit_config_t* c = &to->net.config;
    size_t B = to->in.B;
    memcpy(to->params.values, from->params.values, from->params.table.total * sizeof(floatX));
    memcpy(to->xt, from->xt, to->values * sizeof(floatX));
    memcpy(to->dv, from->dv, to->values * sizeof(floatX));
    memcpy(to->text, from->text, B * to->in.L * c->text * sizeof(floatX));
    memcpy(to->pooled, from->pooled, B * c->vector * sizeof(floatX));
    memcpy(to->t, from->t, B * sizeof(floatS));
    memcpy(to->guidance, from->guidance, B * sizeof(floatS));
    memcpy(to->first, from->first, B * sizeof(int));
}

static inline void bed_forward(bed_t* m) { mmdit_forward(&m->net, &m->params, m->in, 0); }

static inline void bed_backward(bed_t* m) {
    bed_poison(&m->work);
    mmdit_backward(&m->net, &m->params, m->dv, 0);
}
