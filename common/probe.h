// probe.h: the linear probe: how much of the class can a linear classifier read off frozen features?
//
//     logits = W f + b,  mean cross-entropy,  Adam (0.9, 0.999), constant learning rate, a fresh order each epoch
//
// The paper's protocol (AlignTok, App. A): learning rate 1e-3, batch 256, 3 epochs. It does not say what f is; two
// readings are in use and eval.cu prints both: the whole latent map, and its mean over positions. Features are scaled
// to unit deviation in each latent channel, so that the same learning rate suits latents of any scale. Features are
// computed once and kept on the host in full precision. Look next at eval.cu.
#pragma once
// defines: matmul_forward, matmul_backward, cross_entropy, adam_update
#include "common/ops.h"
// defines: params_t, param_matrix, params_init
#include "common/params.h"
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

static inline int probe_argmax(const floatX* logits, int classes) {
    int best = 0;
    for (int k = 1; k < classes; k++) {
        if (logits[k] > logits[best]) best = k;
    }
    return best;
}

// Trains on `train` and returns the part of `held_out` that is recognised.
double probe_accuracy(const probe_set_t* train, const probe_set_t* held_out, probe_options_t o) {
    int dim = train->dim, classes = train->classes, B = o.batch < train->n ? o.batch : train->n;
    params_t p;
    memset(&p, 0, sizeof p);
    size_t weight = param_matrix(&p.table, "", "weight", classes, dim, init_fan_in(dim));
    size_t bias = param_vector(&p.table, "", "bias", classes, init_fan_in(dim));
    params_allocate(&p, 0, 0, "the probe");
    params_init(&p, o.seed);
    floatX* x = (floatX*)malloc_check((size_t)B * dim * sizeof(floatX), "the probe's batch");
    floatX* logits = (floatX*)malloc_check((size_t)B * classes * sizeof(floatX), "logits");
    floatS* loss = (floatS*)malloc_check((size_t)B * sizeof(floatS), "losses");
    int* labels = (int*)malloc_check((size_t)B * sizeof(int), "labels");
    for (int epoch = 0; epoch < o.epochs; epoch++) {
        for (int first = 0; first < train->n; first += B) {
            int count = train->n - first < B ? train->n - first : B;
            for (int b = 0; b < count; b++) {
                size_t i = random_permute(o.seed, RANDOM_DATA_ORDER, (uint64_t)epoch, (uint64_t)(first + b),
                                          (uint64_t)train->n);
                for (int k = 0; k < dim; k++) x[(size_t)b * dim + k] = (floatX)train->features[i * dim + k];
                labels[b] = train->labels[i];
            }
            matmul_forward(logits, x, params_at(&p, weight), params_at(&p, bias), count, dim, classes, 0);
            cross_entropy(loss, logits, logits, labels, 1.0 / count, count, classes, 0);
            params_zero_grads(&p, 0);
            matmul_backward(NULL, params_grad(&p, weight), params_grad(&p, bias), logits, x, params_at(&p, weight),
                            count, dim, classes, 0);
            adam_t adam = {o.lr, 0.9, 0.999, 1e-8, 0, ++p.t, {0, 0}};
            adam_update(p.values, p.master, p.m, p.v, NULL, NULL, p.grads, p.table.total, adam, 0);
        }
    }
    int right = 0;
    for (int i = 0; i < held_out->n; i++) {
        for (int k = 0; k < dim; k++) x[k] = (floatX)held_out->features[(size_t)i * dim + k];
        matmul_forward(logits, x, params_at(&p, weight), params_at(&p, bias), 1, dim, classes, 0);
        right += probe_argmax(logits, classes) == held_out->labels[i];
    }
    free(x);
    free(logits);
    free(loss);
    free(labels);
    params_free(&p);
    return (double)right / held_out->n;
}
