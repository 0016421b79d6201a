// latent_loader.h: batches for flow matching: normalised latents, labels and times, prepared ahead of the training. Or
// labels and times beside the pixels of images, which the training encodes (common/drawing/image_latents.h).
//
// Everything that is drawn for an image is a function of the seed and of its number in the stream of all images
// (g = step * batch + place): so step s has the same batch for any number of processes and threads, and a run that goes
// on at step s needs nothing but s.
//
//     which     the permutation of epoch g / N', N' = whole batches of the data set (the rest waits for the next epoch)
//     mirrored  by RANDOM_FLIP        label   dropped (the null class) by RANDOM_LABEL_DROP
//     time      t = sigmoid(z), z normal, by RANDOM_TIMES (logit-normal: Esser et al. 2024); or uniform
//
// Images come in the order of their own loader (common/data/dataloader.h), whose epochs run into one another, and are
// mirrored by the same number. So where N' is all of N, and latents lie as the images do, a step has the same of both.
//
// One thread prepares the next batches while the device works on this one; a latent is some kilobytes copied out of the
// page cache and transposed, so one thread feeds a GPU. Look next at common/training/bucket_loader.h, the same for
// captions, and common/training/dit.h, which takes the batches.
#pragma once
// defines: batch_ring_t, batch_ring_open, batch_ring_next, batch_ring_close, BATCH_RING
#include "common/data/batch_ring.h"
// defines: host_malloc, host_free
#include "common/device.h"
// defines: dataloader_t, dataloader_next, batch_t
#include "common/data/dataloader.h"
// defines: latents_t, latents_read
#include "common/data/latents.h"

typedef struct {
    int batch;                // of a step, over all ranks
    int rank, world;          // this rank gets rows [rank, rank + 1) * batch / world
    int workers;              // 0: latent_loader_next prepares the batch itself; else a thread does (batch_ring.h)
    uint64_t seed;
    int flip;                 // half of the latents are those of the mirrored image
    const floatS *mean, *std; // (C)
    double mult;              // factor behind the normalisation
    double drop;              // part of the labels that become the null class
    int unconditional;        // every label is 0
    int null_label;
    uint64_t uniform_from;    // from this step on times are uniform; 0: never
    int shuffle_labels;       // each image has another one's label, always the same one
    dataloader_t* images;     // at the same step, in the place of latents; NULL: latents
} latent_loader_options_t;

// Valid until the next call of latent_loader_next.
typedef struct {
    floatS* x1;            // (B, S, S, C) of latents
    const batch_t* images; // else
    floatS* t;             // (B)
    int* labels;           // (B)
} latent_batch_t;

typedef struct {
    const latents_t* latents;
    latent_loader_options_t options;
    int B;    // rows of this rank
    size_t n; // values of a latent; 0: images
    latent_batch_t batches[BATCH_RING];
    batch_ring_t ring;
} latent_loader_t;

// Reads the latent of image g of the stream; returns its number.
static inline size_t latent_loader_read(const latent_loader_t* loader, floatS* x1, uint64_t g) { // (S, S, C)
    const latent_loader_options_t* o = &loader->options;
    const latents_t* l = loader->latents;
    uint64_t whole = l->count >= (size_t)o->batch ? l->count / o->batch * o->batch : l->count;
    size_t which = random_permute(o->seed, RANDOM_DATA_ORDER, g / whole, g % whole, l->count);
    int flip = o->flip && random_below(o->seed, RANDOM_FLIP, 0, g, 2);
    size_t n = (size_t)l->side * l->side * l->C;
    latents_read(l, which, flip, o->mean, o->std, x1);
    for (size_t i = 0; o->mult != 1 && i < n; i++) x1[i] *= (floatS)o->mult;
    return which;
}

// Prepares one row. g: number of the image in the stream.
static inline void latent_loader_row(const latent_loader_t* loader, latent_batch_t* batch, int row, uint64_t step) {
    const latent_loader_options_t* o = &loader->options;
    const latents_t* l = loader->latents;
    const dataset_t* set = o->images ? o->images->dataset : NULL;
    uint64_t g = step * (uint64_t)o->batch + (uint64_t)o->rank * loader->B + row;
    size_t which = set ? (size_t)batch->images->ids[row] : latent_loader_read(loader, batch->x1 + row * loader->n, g);
    if (o->shuffle_labels) which = random_permute(o->seed, RANDOM_LABELS, 0, which, set ? set->count : l->count);
    batch->labels[row] = o->unconditional ? 0 : set ? dataset_label(set, which) : l->labels[which];
    if (o->drop > 0 && random_uniform(o->seed, RANDOM_LABEL_DROP, 0, g) < o->drop) batch->labels[row] = o->null_label;
    double t = random_uniform(o->seed, RANDOM_TIMES, 1, g);
    if (!o->uniform_from || step < o->uniform_from) {
        t = 1 / (1 + exp(-(double)random_normal(o->seed, RANDOM_TIMES, 0, g)));
    }
    batch->t[row] = (floatS)t;
}

// A batch_make_fn.
static inline void latent_loader_make(void* argument, int slot, uint64_t step) {
    latent_loader_t* loader = (latent_loader_t*)argument;
    if (loader->options.images) loader->batches[slot].images = dataloader_next(loader->options.images);
    for (int row = 0; row < loader->B; row++) latent_loader_row(loader, &loader->batches[slot], row, step);
}

// The latents, or images, must outlive the loader.
void latent_loader_open(latent_loader_t* loader, const latents_t* latents, const latent_loader_options_t* options,
                        uint64_t first_step) {
    if (options->batch < 1 || options->world < 1 || options->batch % options->world) {
        fatal("the batch of %d latents cannot be shared by %d ranks; choose a multiple with -batch", options->batch,
              options->world);
    }
    memset(loader, 0, sizeof *loader);
    loader->latents = latents;
    loader->options = *options;
    loader->B = options->batch / options->world;
    loader->n = options->images ? 0 : (size_t)latents->side * latents->side * latents->C;
    size_t B = (size_t)loader->B, n = loader->n;
    for (int i = 0; i < BATCH_RING; i++) {
        latent_batch_t* batch = &loader->batches[i];
        batch->x1 = (floatS*)host_malloc(B * n * sizeof(floatS), "a batch of latents");
        batch->t = (floatS*)host_malloc(B * sizeof(floatS), "a batch of times");
        batch->labels = (int*)host_malloc(B * sizeof(int), "a batch of labels");
    }
    int workers = options->images ? 0 : options->workers; // images have their own, and what is left takes no time
    batch_ring_open(&loader->ring, latent_loader_make, loader, workers, first_step);
}

// The batch of the next step. What was returned before may be overwritten from here on.
const latent_batch_t* latent_loader_next(latent_loader_t* loader) {
    return &loader->batches[batch_ring_next(&loader->ring)];
}

void latent_loader_close(latent_loader_t* loader) {
    batch_ring_close(&loader->ring);
    for (int i = 0; i < BATCH_RING; i++) {
        host_free(loader->batches[i].x1);
        host_free(loader->batches[i].t);
        host_free(loader->batches[i].labels);
    }
    memset(loader, 0, sizeof *loader);
}
