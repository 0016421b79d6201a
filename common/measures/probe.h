// probe.h: the linear probe: how much of the class can a linear classifier read off frozen features?
//
//     logits = W f + b,  mean cross-entropy,  Adam (0.9, 0.999, eps 1e-8), constant learning rate
//     W, b ~ U(+-1/sqrt(D)) at the start; a fresh order each epoch, the last batch of an epoch may be smaller
//
// The paper's protocol (AlignTok, App. A): learning rate 1e-3, batch 256, 3 epochs of ImageNet. It does not say what f
// is; two readings are in use: the whole latent map, and its mean over positions. Features go in raw, or with the mean
// and deviation of each latent channel taken out (probe_norm_t), so that one learning rate suits latents of any scale.
//
// Features come batch by batch, because those of ImageNet (1.28 million maps of 8,192 numbers) do not fit in memory:
//
//     probe_open(&probe, dim, classes, &options);
//     for each batch of each epoch: probe_step(&probe, features, labels, n, stream);
//     for each batch held out:      probe_evaluate(&probe, &count, features, labels, n, stream);
//     probe_close(&probe);
//
// Of a set that lies in memory probe_epoch takes one epoch. Weights and moments are floatS; the products read W, f
// and write the logits as floatX, so the GPU build in bf16 rounds them (PRECISION=FP32 does not). Sums are in double.
// A label's rank is the number of classes before it: larger logit, or as large and a lower index. top-1 is rank 0,
// top-5 a rank below 5. Look next at common/models/params.h, where the weights lie, and at
// common/measures/eval_probe.h.
#pragma once
// defines: matmul_forward, matmul_backward, cross_entropy, adam_update
#include "common/ops.h"
// defines: params_t, param_matrix, params_init
#include "common/models/params.h"
// defines: plan_t, plan_floatX, plan_allocate
#include "common/models/plan.h"
// defines: random_permute, RANDOM_DATA_ORDER
#include "common/program/rng.h"

enum { PROBE_RECENT = 1000, PROBE_TOP = 5 };

// Feature i belongs to channel i % channels.
typedef struct {
    int channels;
    const double *mean, *deviation; // (channels)
} probe_norm_t;

typedef struct {
    int batch;  // most images of a call
    double lr;
    uint64_t seed;
    const probe_norm_t* norm; // NULL: raw features. Has to live as long as the probe
} probe_options_t;

// What a number of images came to.
typedef struct {
    uint64_t images, top1, top5;
    double loss; // sum over the images
} probe_count_t;

typedef struct {
    int dim, classes;
    probe_options_t options;
    params_t params;
    size_t weight, bias; // offsets of W (classes, dim) and b (classes)
    plan_t plan;
    floatX* x;           // (batch, dim)
    floatX* logits;      // (batch, classes)
    floatS* loss;        // (batch)
    int* labels;         // (batch)
    floatS* features;    // (batch, dim) on the host, to normalise in; as all below
    floatS* answers;     // (batch, classes)
    floatS* losses;      // (batch)
    probe_count_t recent[PROBE_RECENT]; // the last training steps, each before its update; step t at t % PROBE_RECENT
} probe_t;

// ---------------------------------------------------------------------------------------------------------------------
// Batch by batch

void probe_open(probe_t* p, int dim, int classes, const probe_options_t* options) {
    size_t B = (size_t)options->batch;
    if (dim < 1 || classes < 2 || options->batch < 1) {
        fatal("a probe of %d features, %d classes, batch %d; it needs at least 1, 2 and 1", dim, classes,
              options->batch);
    }
    if (options->norm && (options->norm->channels < 1 || dim % options->norm->channels)) {
        fatal("a probe of %d features cannot be normalised by %d channels: not a multiple", dim,
              options->norm->channels);
    }
    memset(p, 0, sizeof *p);
    p->dim = dim;
    p->classes = classes;
    p->options = *options;
    p->weight = param_matrix(&p->params.table, "", "weight", classes, dim, init_fan_in(dim));
    p->bias = param_vector(&p->params.table, "", "bias", classes, init_fan_in(dim));
    params_allocate(&p->params, 0, 0, "the probe");
    params_init(&p->params, options->seed);
    plan_floatX(&p->plan, &p->x, B * dim, "the probe's batch");
    plan_floatX(&p->plan, &p->logits, B * classes, "logits");
    plan_floatS(&p->plan, &p->loss, B, "losses");
    plan_int(&p->plan, &p->labels, B, "labels");
    plan_allocate(&p->plan, "the probe");
    p->features = (floatS*)malloc_check(B * dim * sizeof(floatS), "the probe's batch");
    p->answers = (floatS*)malloc_check(B * classes * sizeof(floatS), "logits");
    p->losses = (floatS*)malloc_check(B * sizeof(floatS), "losses");
}

void probe_close(probe_t* p) {
    params_free(&p->params);
    plan_free(&p->plan);
    free(p->features);
    free(p->answers);
    free(p->losses);
    memset(p, 0, sizeof *p);
}

// Number of classes that come before `label`.
static inline int probe_rank(const floatS* logits, int classes, int label) { // (classes)
    int rank = 0;
    for (int k = 0; k < classes; k++) {
        rank += logits[k] > logits[label] || (logits[k] == logits[label] && k < label);
    }
    return rank;
}

// Puts a batch on the device, normalised, and computes its logits.
static inline void probe_forward(probe_t* p, const floatS* features, const int* labels, int n, stream_t s) {
    size_t dim = (size_t)p->dim;
    const probe_norm_t* norm = p->options.norm;
    if (n < 1 || n > p->options.batch) fatal("a probe's batch of %d images; 1 to %d", n, p->options.batch);
    for (int b = 0; b < n; b++) {
        if (labels[b] < 0 || labels[b] >= p->classes) {
            fatal("label %d of a probe of %d classes; both splits need the same classes", labels[b], p->classes);
        }
    }
    if (norm) {
        #pragma omp parallel for schedule(static)
        for (int b = 0; b < n; b++) {
            for (size_t i = b * dim; i < (b + 1) * dim; i++) {
                size_t c = i % norm->channels;
                p->features[i] = (floatS)((features[i] - norm->mean[c]) / norm->deviation[c]);
            }
        }
    }
    copy_floats_to_device(p->x, norm ? p->features : features, n * dim);
    copy_to_device(p->labels, labels, n * sizeof(int), 0);
    matmul_forward(p->logits, p->x, params_at(&p->params, p->weight), params_at(&p->params, p->bias), n, p->dim,
                   p->classes, s);
    copy_floats_to_host(p->answers, p->logits, (size_t)n * p->classes);
}

// Adds the batch of the last forward to `count`; its losses have been computed.
static inline void probe_add(probe_t* p, probe_count_t* count, const int* labels, int n, stream_t s) {
    copy_to_host(p->losses, p->loss, n * sizeof(floatS), s);
    stream_wait(s);
    size_t bad = first_not_finite(p->losses, n);
    if (bad < (size_t)n) {
        fatal("the probe's loss is not finite at step %lld: features that are not finite, or too large for this "
              "learning rate; choose a smaller -probe_lr, or -probe_norm 1", (long long)p->params.t);
    }
    for (int b = 0; b < n; b++) {
        int rank = probe_rank(p->answers + (size_t)b * p->classes, p->classes, labels[b]);
        count->images++;
        count->top1 += rank == 0;
        count->top5 += rank < PROBE_TOP;
        count->loss += p->losses[b];
    }
}

// One step of training. Returns the batch's mean loss before it.
double probe_step(probe_t* p, const floatS* features, // (n, dim) host
                  const int* labels,                  // (n) host
                  int n, stream_t s) {
    params_t* w = &p->params;
    probe_count_t* count = &p->recent[w->t % PROBE_RECENT];
    memset(count, 0, sizeof *count);
    probe_forward(p, features, labels, n, s);
    cross_entropy(p->loss, p->logits, p->logits, p->labels, 1.0 / n, n, p->classes, s);
    probe_add(p, count, labels, n, s);
    params_zero_grads(w, s);
    matmul_backward(NULL, params_grad(w, p->weight), params_grad(w, p->bias), p->logits, p->x, params_at(w, p->weight),
                    n, p->dim, p->classes, s);
    adam_t adam = {p->options.lr, 0.9, 0.999, 1e-8, 0, ++w->t, {0, 0}, 1};
    adam_update(w->values, w->master, w->m, w->v, NULL, NULL, w->grads, w->table.total, adam, s);
    return count->loss / n;
}

// Adds a batch to `count` and leaves the weights alone.
void probe_evaluate(probe_t* p, probe_count_t* count, const floatS* features, // (n, dim) host
                    const int* labels,                                        // (n) host
                    int n, stream_t s) {
    probe_forward(p, features, labels, n, s);
    cross_entropy(p->loss, NULL, p->logits, p->labels, 0, n, p->classes, s);
    probe_add(p, count, labels, n, s);
}

// The last PROBE_RECENT training steps together: the training loss and accuracy that are reported.
static inline probe_count_t probe_recent(const probe_t* p) {
    probe_count_t total = {0, 0, 0, 0};
    for (int64_t t = p->params.t > PROBE_RECENT ? p->params.t - PROBE_RECENT : 0; t < p->params.t; t++) {
        const probe_count_t* step = &p->recent[t % PROBE_RECENT];
        total.images += step->images;
        total.top1 += step->top1;
        total.top5 += step->top5;
        total.loss += step->loss;
    }
    return total;
}

// ---------------------------------------------------------------------------------------------------------------------
// A set in memory

typedef struct {
    int n, dim, classes;
    floatS* features; // (n, dim)
    int* labels;      // (n)
} probe_set_t;

// One pass over the training set in the order of `epoch`.
static inline void probe_epoch(probe_t* p, const probe_set_t* train, int epoch, stream_t s) {
    int B = p->options.batch;
    floatS* batch = (floatS*)malloc_check((size_t)B * p->dim * sizeof(floatS), "the probe's batch");
    int* labels = (int*)malloc_check(B * sizeof(int), "labels");
    for (int first = 0; first < train->n; first += B) {
        int n = train->n - first < B ? train->n - first : B;
        for (int b = 0; b < n; b++) {
            size_t i = random_permute(p->options.seed, RANDOM_DATA_ORDER, (uint64_t)epoch, (uint64_t)(first + b),
                                      (uint64_t)train->n);
            memcpy(batch + (size_t)b * p->dim, train->features + i * p->dim, p->dim * sizeof(floatS));
            labels[b] = train->labels[i];
        }
        probe_step(p, batch, labels, n, s);
    }
    free(batch);
    free(labels);
}
