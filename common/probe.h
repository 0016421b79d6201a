// probe.h: the linear probe: how much of the class can a linear classifier read off frozen features?
//
//     logits = W f + b,  mean cross-entropy,  Adam (0.9, 0.999), constant learning rate, a fresh order each epoch
//
// The paper's protocol (AlignTok, App. A): learning rate 1e-3, batch 256, 3 epochs. It does not say what f is; two
// readings are in use and eval.cu prints both: the whole latent map, and its mean over positions. Features are scaled
// to unit deviation in each latent channel, so that the same learning rate suits latents of any scale. Features are
// computed once and kept on the host in full precision (floatX on the device). Look next at eval.cu.
#pragma once
// defines: matmul_forward, matmul_backward, cross_entropy, adam_update
#include "common/ops.h"
// defines: params_t, param_matrix, params_init
#include "common/params.h"
// defines: plan_t, plan_floatX, plan_allocate
#include "common/plan.h"
// defines: random_permute, RANDOM_DATA_ORDER
#include "common/rng.h"

typedef struct {
    int n, dim, classes;
    floatS* features; // (n, dim)
    int* labels;      // (n)
} probe_set_t;

typedef struct {
    int epochs, batch;
    double lr;
    uint64_t seed;
} probe_options_t;

static inline int probe_argmax(const floatS* logits, int classes) {
    int best = 0;
    for (int k = 1; k < classes; k++) {
        if (logits[k] > logits[best]) best = k;
    }
    return best;
}

// Trains on `train` and returns the part of `held_out` that is recognised.
double probe_accuracy(const probe_set_t* train, const probe_set_t* held_out, probe_options_t o, stream_t s) {
    int dim = train->dim, classes = train->classes, B = o.batch < train->n ? o.batch : train->n;
    params_t p;
    memset(&p, 0, sizeof p);
    size_t weight = param_matrix(&p.table, "", "weight", classes, dim, init_fan_in(dim));
    size_t bias = param_vector(&p.table, "", "bias", classes, init_fan_in(dim));
    params_allocate(&p, 0, 0, "the probe");
    params_init(&p, o.seed);
    floatS* batch = (floatS*)malloc_check((size_t)B * dim * sizeof(floatS), "the probe's batch");
    int* batch_labels = (int*)malloc_check((size_t)B * sizeof(int), "labels");
    floatS* answer = (floatS*)malloc_check((size_t)B * classes * sizeof(floatS), "logits");
    plan_t plan;
    memset(&plan, 0, sizeof plan);
    floatX *x, *logits;
    floatS* loss;
    int* labels;
    plan_floatX(&plan, &x, (size_t)B * dim, "the probe's batch");
    plan_floatX(&plan, &logits, (size_t)B * classes, "logits");
    plan_floatS(&plan, &loss, B, "losses");
    plan_int(&plan, &labels, B, "labels");
    plan_allocate(&plan, "the probe");
    for (int epoch = 0; epoch < o.epochs; epoch++) {
        for (int first = 0; first < train->n; first += B) {
            int count = train->n - first < B ? train->n - first : B;
            for (int b = 0; b < count; b++) {
                size_t i = random_permute(o.seed, RANDOM_DATA_ORDER, (uint64_t)epoch, (uint64_t)(first + b),
                                          (uint64_t)train->n);
                memcpy(batch + (size_t)b * dim, train->features + i * dim, dim * sizeof(floatS));
                batch_labels[b] = train->labels[i];
            }
            copy_floats_to_device(x, batch, (size_t)count * dim);
            copy_to_device(labels, batch_labels, count * sizeof(int), 0);
            matmul_forward(logits, x, params_at(&p, weight), params_at(&p, bias), count, dim, classes, s);
            cross_entropy(loss, logits, logits, labels, 1.0 / count, count, classes, s);
            params_zero_grads(&p, s);
            matmul_backward(NULL, params_grad(&p, weight), params_grad(&p, bias), logits, x, params_at(&p, weight),
                            count, dim, classes, s);
            adam_t adam = {o.lr, 0.9, 0.999, 1e-8, 0, ++p.t, {0, 0}, 1};
            adam_update(p.values, p.master, p.m, p.v, NULL, NULL, p.grads, p.table.total, adam, s);
        }
    }
    int right = 0;
    for (int first = 0; first < held_out->n; first += B) {
        int count = held_out->n - first < B ? held_out->n - first : B;
        copy_floats_to_device(x, held_out->features + (size_t)first * dim, (size_t)count * dim);
        matmul_forward(logits, x, params_at(&p, weight), params_at(&p, bias), count, dim, classes, s);
        copy_floats_to_host(answer, logits, (size_t)count * classes);
        for (int b = 0; b < count; b++) {
            right += probe_argmax(answer + (size_t)b * classes, classes) == held_out->labels[first + b];
        }
    }
    free(batch);
    free(batch_labels);
    free(answer);
    plan_free(&plan);
    params_free(&p);
    return (double)right / held_out->n;
}
