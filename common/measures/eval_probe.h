// eval_probe.h: `./eval -probe`: how much of the class a linear classifier reads off a tokenizer's frozen latent
// (AlignTok, "L. P. Acc.").
//
//     whole latent    f = the whole latent map: the adapter's output as it is
//     mean latent     f = the mean over positions
//
// The paper does not say which; the whole latent is the primary reading, and both are always printed. Training: Adam,
// 1e-3, batch 256, 3 epochs of the train split; validation on the val split, centre crop. Training images come in one
// of two ways:
//
//     -probe_augment 1    as the tokenizer was trained: random crop, mirrored half of the time, encoded in each epoch;
//                         batches run across the ends of epochs
//     -probe_augment 0    centre crop, encoded once, latents kept in memory; for sets that fit there (the miniature)
//
// With several processes each encodes its share; features are put together, and all take the same steps.
// Look next at common/measures/probe.h.
#pragma once
// defines: dataloader_t, dataloader_next, dataloader_print_speed
#include "common/data/dataloader.h"
// defines: eval_t
#include "common/measures/eval_options.h"
// defines: image_source_t, image_source_read
#include "common/measures/image_source.h"
// defines: probe_t, probe_set_t, probe_open, probe_epoch, probe_step, ...
#include "common/measures/probe.h"
// defines: progress_t, progress_begin, progress_say
#include "common/program/progress.h"
// defines: workers_chosen
#include "common/training/run_options.h"

typedef enum { PROBE_WHOLE, PROBE_MEAN, PROBE_READINGS } probe_reading_t;

typedef struct {
    eval_t* e;
    autoencoder_t* tokenizer;
    int dim[PROBE_READINGS];
    probe_t probe[PROBE_READINGS];
    probe_norm_t norm;
    double *mean, *deviation; // (z) of each latent channel, from the checkpoint
    floatS* latents;          // (batch, values of the whole latent) on the host
} eval_probe_t;

// The mean over positions of n latents.
static inline void eval_probe_means(const eval_probe_t* p, floatS* means, const floatS* latents, int n) {
    size_t values = (size_t)p->dim[PROBE_WHOLE], z = (size_t)p->dim[PROBE_MEAN], positions = values / z;
    memset(means, 0, n * z * sizeof(floatS));
    for (size_t i = 0; i < n * values; i++) means[i / values * z + i % z] += latents[i] / positions;
}

// Latents of n images, on the host. Returns n, or the first that is not finite.
static inline int eval_probe_encode(eval_probe_t* p, floatS* latents, const uint8_t* pixels, int n) {
    const floatX* z = autoencoder_encode(p->tokenizer, pixels, n, p->e->stream);
    stream_wait(p->e->stream);
    copy_floats_to_host(latents, z, (size_t)n * p->dim[PROBE_WHOLE]);
    return (int)(first_not_finite(latents, (size_t)n * p->dim[PROBE_WHOLE]) / p->dim[PROBE_WHOLE]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sets in memory

static inline void probe_set_free(probe_set_t sets[PROBE_READINGS]) {
    free(sets[PROBE_WHOLE].features);
    free(sets[PROBE_MEAN].features);
    free(sets[PROBE_WHOLE].labels);
}

// Both readings of the images of a source; what cannot be read is left out.
static inline void eval_probe_collect(eval_probe_t* p, probe_set_t sets[PROBE_READINGS], image_source_t* set,
                                      const char* what) {
    comm_t* c = &p->e->comm;
    int B = p->e->options.batch;
    size_t values = (size_t)p->dim[PROBE_WHOLE], z = (size_t)p->dim[PROBE_MEAN], n = set->count, kept = 0;
    floatS* latents = (floatS*)calloc_check(n * values, sizeof(floatS), "latents");
    double* labels = (double*)calloc_check(n, sizeof(double), "labels"); // plus 1; 0: not read
    image_batch_t b = image_batch_create(set, B);
    progress_t progress = progress_begin(what, (double)n, comm_is_first(c));
    for (size_t first = c->rank; first < n; first += (size_t)B * c->size) {
        if (!image_source_read(set, &b, first, B, c->size)) continue;
        int good = eval_probe_encode(p, p->latents, b.pixels, b.count);
        if (good < b.count) {
            char image[1200];
            autoencoder_not_finite(p->tokenizer, "latent",
                                   image_source_image(set, b.numbers[good], image, sizeof image));
        }
        for (int i = 0; i < b.count; i++) {
            memcpy(latents + b.numbers[i] * values, p->latents + i * values, values * sizeof(floatS));
            labels[b.numbers[i]] = b.labels[i] + 1;
        }
        progress_say(&progress, (double)(first + (size_t)B * c->size));
    }
    comm_sum_floats_host(c, latents, n * values);
    comm_sum_host(c, labels, (int)n);
    int* kept_labels = (int*)malloc_check(n * sizeof(int), "labels");
    for (size_t i = 0; i < n; i++) {
        if (labels[i] == 0) continue;
        if (kept != i) memcpy(latents + kept * values, latents + i * values, values * sizeof(floatS));
        kept_labels[kept++] = (int)labels[i] - 1;
    }
    floatS* means = (floatS*)malloc_check(kept * z * sizeof(floatS), "means");
    for (size_t i = 0; i < kept; i++) eval_probe_means(p, means + i * z, latents + i * values, 1);
    probe_set_t whole = {(int)kept, (int)values, set->data.class_count, latents, kept_labels};
    probe_set_t mean = {(int)kept, (int)z, set->data.class_count, means, kept_labels};
    sets[PROBE_WHOLE] = whole;
    sets[PROBE_MEAN] = mean;
    image_batch_free(&b);
    free(labels);
}

// ---------------------------------------------------------------------------------------------------------------------
// Training

static inline void eval_probe_train_memory(eval_probe_t* p, image_source_t* train) {
    const eval_options_t* o = &p->e->options;
    probe_set_t sets[PROBE_READINGS];
    eval_probe_collect(p, sets, train, "encode");
    for (int r = 0; r < PROBE_READINGS; r++) {
        for (int epoch = 0; epoch < o->probe_epochs; epoch++) {
            probe_epoch(&p->probe[r], &sets[r], epoch, p->e->stream);
        }
    }
    train->count = (size_t)sets[0].n; // what could be read
    probe_set_free(sets);
}

// Each process encodes its share of a batch; then all have all features.
static inline void eval_probe_train_augmented(eval_probe_t* p, const dataset_t* train, size_t n) {
    const eval_options_t* o = &p->e->options;
    comm_t* c = &p->e->comm;
    int B = o->probe_batch, share = B / c->size, values = p->dim[PROBE_WHOLE], z = p->dim[PROBE_MEAN];
    if (B % c->size) fatal("-probe_batch %d is no multiple of the %d processes; choose another", B, c->size);
    size_t steps = (n * o->probe_epochs + B - 1) / B;
    floatS* latents = (floatS*)malloc_check((size_t)B * values * sizeof(floatS), "latents");
    floatS* means = (floatS*)malloc_check((size_t)B * z * sizeof(floatS), "means");
    double* numbers = (double*)malloc_check(B * sizeof(double), "labels");
    int* labels = (int*)malloc_check(B * sizeof(int), "labels");
    dataloader_t loader;
    dataloader_options_t options = {B, p->tokenizer->H, 1, 1, 1, c->rank, c->size, workers_chosen(c->local_size),
                                    o->seed, NULL};
    dataloader_open(&loader, train, &options, 0);
    progress_t progress = progress_begin("probe", (double)steps, comm_is_first(c));
    for (size_t step = 0; step < steps; step++) {
        const batch_t* batch = dataloader_next(&loader);
        memset(latents, 0, (size_t)B * values * sizeof(floatS));
        memset(numbers, 0, B * sizeof(double));
        for (int at = 0; at < share; at += o->batch) {
            int count = share - at < o->batch ? share - at : o->batch, to = c->rank * share + at;
            int good = eval_probe_encode(p, latents + (size_t)to * values,
                                         batch->pixels + at * autoencoder_image_values(p->tokenizer), count);
            if (good < count) {
                char image[1200];
                dataset_image_name(train, (size_t)batch->ids[at + good], image, sizeof image);
                autoencoder_not_finite(p->tokenizer, "latent", image);
            }
            for (int i = 0; i < count; i++) numbers[to + i] = batch->labels[at + i];
        }
        comm_sum_floats_host(c, latents, (size_t)B * values);
        comm_sum_host(c, numbers, B);
        for (int i = 0; i < B; i++) labels[i] = (int)numbers[i];
        eval_probe_means(p, means, latents, B);
        probe_step(&p->probe[PROBE_WHOLE], latents, labels, B, p->e->stream);
        probe_step(&p->probe[PROBE_MEAN], means, labels, B, p->e->stream);
        if (step == 0) dataloader_print_speed(&loader);
        progress_say(&progress, (double)(step + 1));
    }
    dataloader_close(&loader);
    free(latents);
    free(means);
    free(numbers);
    free(labels);
}

static inline probe_count_t eval_probe_held_out(eval_probe_t* p, int reading, const probe_set_t* set) {
    probe_count_t count = {0, 0, 0, 0};
    int B = p->e->options.probe_batch;
    for (int first = 0; first < set->n; first += B) {
        int n = set->n - first < B ? set->n - first : B;
        probe_evaluate(&p->probe[reading], &count, set->features + (size_t)first * set->dim, set->labels + first, n,
                       p->e->stream);
    }
    return count;
}

// ---------------------------------------------------------------------------------------------------------------------

static inline void eval_probe_open(eval_probe_t* p, eval_t* e, autoencoder_t* a, int classes) {
    const eval_options_t* o = &e->options;
    memset(p, 0, sizeof *p);
    p->e = e;
    p->tokenizer = a;
    p->dim[PROBE_WHOLE] = (int)autoencoder_latent_values(a);
    p->dim[PROBE_MEAN] = a->z;
    p->mean = (double*)malloc_check(2 * a->z * sizeof(double), "latent statistics");
    p->deviation = p->mean + a->z;
    for (int c = 0; c < a->z; c++) {
        p->mean[c] = a->mean[c];
        p->deviation[c] = a->std[c] > 0 ? a->std[c] : 1;
    }
    probe_norm_t norm = {a->z, p->mean, p->deviation};
    p->norm = norm;
    p->latents = (floatS*)malloc_check((size_t)o->batch * p->dim[PROBE_WHOLE] * sizeof(floatS), "latents");
    probe_options_t options = {o->probe_batch, o->probe_lr, o->seed, o->probe_norm ? &p->norm : NULL};
    for (int r = 0; r < PROBE_READINGS; r++) probe_open(&p->probe[r], p->dim[r], classes, &options);
}

static inline void eval_probe_protocol(const eval_probe_t* p, result_t* result, const image_source_t* train,
                                       const image_source_t* val, int val_images) {
    const eval_options_t* o = &p->e->options;
    report_protocol(result, "train", "%zu images of %s", train->count, train->name);
    report_protocol(result, "val", "%d images of %s", val_images, val->name);
    report_protocol(result, "training images", "%s",
                    o->probe_augment ? "random crop, mirrored" : "centre crop, encoded once");
    report_protocol(result, "features", "%s", o->probe_norm ? "latent channels scaled by the checkpoint's statistics"
                                                            : "raw latents");
    report_protocol(result, "optimiser", "Adam, lr %g, batch %d, %d epochs, seed %zu", o->probe_lr, o->probe_batch,
                    o->probe_epochs, o->seed);
    report_protocol(result, "tokenizer", "%s, stage %d, step %lld", p->tokenizer->fingerprint,
                    p->tokenizer->info.stage, (long long)p->tokenizer->info.step);
    report_protocol(result, "weights", "%s", p->tokenizer->weights);
    report_protocol(result, "precision", "%s", PRECISION_NAME);
}

static inline void eval_probe(eval_t* e, const char* path, autoencoder_t* tokenizer) {
    static eval_probe_t p;
    static image_source_t train, val;
    const eval_options_t* o = &e->options;
    const char* data = eval_data(o, tokenizer->data);
    result_t* result = report_begin(&e->report, "probe", "tokenizer", path);
    image_source_dataset(&train, data, SPLIT_TRAIN, (crop_t)o->crop, tokenizer->H);
    image_source_dataset(&val, data, SPLIT_VAL, (crop_t)o->crop, tokenizer->H);
    image_source_limit(&val, (size_t)o->images);
    dataset_need_labels(&train.data);
    dataset_need_labels(&val.data);
    if (val.data.class_count > train.data.class_count) {
        fatal("%s has %d classes, %s only %d; they do not belong together", val.name, val.data.class_count, train.name,
              train.data.class_count);
    }
    eval_probe_open(&p, e, tokenizer, train.data.class_count);
    if (o->probe_augment && o->probe_images) {
        fatal("-probe_augment 1 draws from the whole train split; leave -probe_images out, or give -probe_augment 0");
    }
    image_source_limit(&train, (size_t)o->probe_images);
    if (o->probe_augment) eval_probe_train_augmented(&p, &train.data, train.count);
    else eval_probe_train_memory(&p, &train);
    probe_set_t sets[PROBE_READINGS];
    eval_probe_collect(&p, sets, &val, "encode val");
    static const char* const names[PROBE_READINGS][4] = {
        {"probe whole latent %", "whole latent top-5 %", "whole latent train %", "whole latent train loss"},
        {"probe mean latent %", "mean latent top-5 %", "mean latent train %", "mean latent train loss"}};
    for (int r = 0; r < PROBE_READINGS; r++) {
        probe_count_t held_out = eval_probe_held_out(&p, r, &sets[r]), recent = probe_recent(&p.probe[r]);
        report_score(result, names[r][0], "%.2f", 100.0 * held_out.top1 / held_out.images);
        report_detail(result, names[r][1], "%.2f", 100.0 * held_out.top5 / held_out.images);
        report_detail(result, names[r][2], "%.2f", 100.0 * recent.top1 / recent.images);
        report_detail(result, names[r][3], "%.4f", recent.loss / recent.images);
        probe_close(&p.probe[r]);
    }
    eval_probe_protocol(&p, result, &train, &val, sets[0].n);
    report_end(&e->report, result);
    probe_set_free(sets);
    image_source_close(&train);
    image_source_close(&val);
    free(p.mean);
    free(p.latents);
}
