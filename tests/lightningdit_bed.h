// lightningdit_bed.h: a LightningDiT with its memory, inputs and an upstream gradient, for the tests of the model.
//
// All activations are poisoned, so that a number that was never written shows; what lives only inside forward or
// backward is poisoned again between the two. The position table is frozen, as in training.
#pragma once
// defines: lightningdit_t, lightningdit_config_find, lightningdit_register, lightningdit_plan, lightningdit_forward
#include "common/models/lightningdit.h"
// defines: test_normal, test_uniform
#include "tests/test.h"

typedef struct {
    lightningdit_t dit;
    params_t params;
    plan_t keep, work;
    size_t values;  // of all latents
    size_t outputs; // of the network
    floatX* xt;     // (B, S, S, C)
    floatX* dv;     // (B, S, S, OC)
    floatS* t;      // (B)
    int* labels;    // (B)
    int B;
} bed_t;

static inline void bed_poison(plan_t* plan) { memset(plan->memory, 0xFF, plan_bytes(plan)); } // NaN in every type

// A configuration of the table for small latents; capitals in `options`: D as DiT, G GELU, N no
// shift, Q QK-norm.
static inline lightningdit_config_t bed_config(const char* id, const char* options) {
    lightningdit_config_t c = *lightningdit_config_find(id);
    c.classic = c.sigma = strchr(options, 'D') != NULL;
    c.mlp_gelu = c.classic || strchr(options, 'G');
    c.no_shift = strchr(options, 'N') != NULL;
    c.qk_norm = strchr(options, 'Q') != NULL;
    c.C = 5;
    c.side = 2 * c.patch + c.patch; // 3 x 3 tokens
    c.classes = 4;
    return c;
}

// Weights are the initialisers'; inputs are random. It must not be moved: the plans know its address.
static inline void bed_make(bed_t* m, lightningdit_config_t config, int B, int train, int recompute) {
    memset(m, 0, sizeof *m);
    m->B = B;
    m->dit.config = config;
    m->dit.recompute = recompute;
    lightningdit_register(&m->dit, &m->params.table, "");
    size_t first = train ? lightningdit_first_trained(&m->dit) : m->params.table.total;
    params_allocate(&m->params, first, 0, "parameters");
    m->values = (size_t)B * config.side * config.side * config.C;
    m->outputs = m->values * (config.sigma ? 2 : 1);
    lightningdit_plan(&m->dit, &m->keep, B, train);
    plan_floatX(&m->keep, &m->xt, m->values, "xt");
    plan_floatX(&m->keep, &m->dv, m->outputs, "dv");
    plan_floatS(&m->keep, &m->t, (size_t)B, "t");
    plan_int(&m->keep, &m->labels, (size_t)B, "labels");
    lightningdit_plan_work(&m->dit, &m->work);
    plan_allocate(&m->keep, "activations");
    plan_allocate(&m->work, "work");
    bed_poison(&m->keep);
    bed_poison(&m->work);
    lightningdit_init(&m->dit, &m->params, 11);
    lightningdit_set_tables(&m->dit, &m->params);
    for (size_t i = 0; i < m->values; i++) m->xt[i] = (floatX)test_normal();
    for (size_t i = 0; i < m->outputs; i++) m->dv[i] = (floatX)test_normal();
    for (int b = 0; b < B; b++) m->t[b] = (floatS)(0.5 * test_uniform() + 0.5);
    for (int b = 0; b < B; b++) m->labels[b] = b % 3 == 1 ? config.classes : 2; // a repeated label and no class
}

static inline void bed_free(bed_t* m) {
    params_free(&m->params);
    plan_free(&m->keep);
    plan_free(&m->work);
}

// Noise on every trained tensor, so that nothing is zero or one. Padding stays zero.
static inline void bed_randomise(bed_t* m) {
    params_t* p = &m->params;
    floatS* file = (floatS*)malloc_check(2 * params_longest(&p->table) * sizeof(floatS), "a tensor");
    floatS* memory = file + params_longest(&p->table);
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        if (t->offset == m->dit.pos_embed) continue;
        for (size_t k = 0; k < t->stored; k++) memory[k] = p->values[t->offset + k];
        params_to_file_order(file, memory, t);
        double amplitude = t->ndim >= 2 ? 0.15 : 0.2;
        for (size_t k = 0; k < t->count; k++) file[k] += (floatS)(amplitude * test_normal());
        params_from_file_order(memory, file, t);
        for (size_t k = 0; k < t->stored; k++) p->values[t->offset + k] = (floatX)memory[k];
    }
    free(file);
}

// Weights and inputs of another model of this configuration, of which there are at least as many.
static inline void bed_copy(bed_t* to, const bed_t* from) {
    memcpy(to->params.values, from->params.values, from->params.table.total * sizeof(floatX));
    memcpy(to->xt, from->xt, to->values * sizeof(floatX));
    memcpy(to->dv, from->dv, to->outputs * sizeof(floatX));
    memcpy(to->t, from->t, to->B * sizeof(floatS));
    memcpy(to->labels, from->labels, to->B * sizeof(int));
}

static inline void bed_forward(bed_t* m) {
    lightningdit_forward(&m->dit, &m->params, m->xt, m->t, m->labels, m->B, 0);
}

static inline void bed_backward(bed_t* m) {
    bed_poison(&m->work);
    lightningdit_backward(&m->dit, &m->params, m->dv, 0);
}

// In `buffer`, a tensor in memory order: is everything that is not in the file zero?
static inline int bed_padding_is_zero(const param_t* t, const floatS* buffer) {
    floatS* file = (floatS*)malloc_check((t->count + t->stored) * sizeof(floatS), "a tensor");
    floatS* memory = file + t->count;
    params_to_file_order(file, buffer, t);
    params_from_file_order(memory, file, t);
    int same = 1;
    for (size_t k = 0; k < t->stored; k++) same &= memory[k] == buffer[k];
    free(file);
    return same;
}
