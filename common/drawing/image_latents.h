// image_latents.h: latents that are made of images beside the training (`./train_dit -latents none`), for image sets
// too large to keep as latents.
//
// They are those that common/drawing/extract.h would have written: the same crops, mirrored twins, sizes and draws of
// the posterior, for an image the same in all epochs. Threads read, cut and mirror images ahead of the training, in an
// order that depends on seed and step alone (common/data/dataloader.h); one that cannot be read is replaced by another.
// Then the frozen tokenizer encodes them, some at once, on the device that trains.
//
//     image_latents_describe(&l, &options, &comm);    takes no memory: l.tokenizer tells sizes and bytes
//     image_latents_open(&l, &set);                   once the device is there
//     image_latents_start(&l, step);                  from here on l.loader has images
//     const floatS* x1 = image_latents_encode(&l, images, mean, std, s);
//     image_latents_stop(&l);
// Look next at common/drawing/latent_source.h, the user.
#pragma once
// defines: autoencoder_t, autoencoder_describe, autoencoder_open, autoencoder_resize, autoencoder_sample, ...
#include "common/drawing/autoencoder.h"
// defines: extract_total, extract_choose, extract_open_aspect, extract_fill_aspect
#include "common/drawing/extract.h"
// defines: latents_normalise
#include "common/data/latents.h"
// defines: dit_options_t, dit_options_captions, run_options_workers
#include "common/training/dit_options.h"
// defines: dataloader_t, dataloader_open, dataloader_flips, dataloader_close, batch_t, DATALOADER_ADM, ...
#include "common/data/dataloader.h"

// It must stay where it is.
typedef struct {
    const dit_options_t* options;
    comm_t* comm;
    autoencoder_t tokenizer;
    const dataset_t* set;
    int with_captions;
    aspect_t sizes;    // of the images, in pixels; of classes one, the square
    dataloader_t loader;
    floatS* x1;        // (B, h, w, C) of a step, of the largest size
    uint64_t* numbers; // (tokenizer.batch) of the draws
} image_latents_t;

// Plans the tokenizer's memory for all sizes.
static inline void image_latents_plan(image_latents_t* l) {
    for (int k = 0; k < l->sizes.count; k++) {
        autoencoder_plan_size(&l->tokenizer, l->sizes.buckets[k].H, l->sizes.buckets[k].W);
    }
}

// What will be encoded, at most a step's images at once, and the memory for it. The data set need not be there.
void image_latents_describe(image_latents_t* l, const dit_options_t* o, comm_t* comm) {
    int B = o->batch / (int)comm->size, batch = B && B < o->extract_batch ? B : o->extract_batch;
    memset(l, 0, sizeof *l);
    l->options = o;
    l->comm = comm;
    l->with_captions = dit_options_captions(o);
    autoencoder_describe(&l->tokenizer, o->tokenizer, (autoencoder_weights_t)o->tokenizer_weights, batch, 1, 0);
    if (l->with_captions) extract_open_aspect(o, autoencoder_factor(&l->tokenizer), &l->sizes);
    image_latents_plan(l);
}

// The one size of images of classes, and which of them are taken.
static inline void image_latents_open_squares(image_latents_t* l) {
    size_t total = extract_total(l->options, l->set);
    aspect_open_squares(&l->sizes, l->tokenizer.H, total);
    if (total == l->set->count) return;
    l->sizes.members = (uint32_t*)malloc_check(total * sizeof(uint32_t), "the chosen images");
    for (size_t k = 0; k < total; k++) l->sizes.members[k] = (uint32_t)extract_choose(l->set, total, k);
}

// Opens what was described. A collective.
void image_latents_open(image_latents_t* l, const dataset_t* set) {
    const dit_options_t* o = l->options;
    autoencoder_t* a = &l->tokenizer;
    int batch = a->batch, B = o->batch / (int)l->comm->size;
    autoencoder_close(a);
    aspect_close(&l->sizes);
    autoencoder_open(a, o->tokenizer, (autoencoder_weights_t)o->tokenizer_weights, batch, 1, 0);
    l->set = set;
    if (l->with_captions) {
        extract_open_aspect(o, autoencoder_factor(a), &l->sizes);
        extract_fill_aspect(o, l->comm, set, &l->sizes);
        aspect_sort(&l->sizes);
    } else {
        image_latents_open_squares(l);
    }
    image_latents_plan(l);
    autoencoder_place(a);
    size_t factor = (size_t)autoencoder_factor(a), positions = aspect_most_positions(&l->sizes) / (factor * factor);
    l->x1 = (floatS*)host_malloc(B * positions * a->z * sizeof(floatS), "a batch of latents");
    l->numbers = (uint64_t*)malloc_check(a->batch * sizeof(uint64_t), "numbers of images");
}

// Images are read ahead from step `step` on.
void image_latents_start(image_latents_t* l, uint64_t step) {
    const comm_t* c = l->comm;
    const dit_options_t* o = l->options;
    int captions = l->with_captions; // which a mirrored image would make wrong
    int crop = captions ? DATALOADER_CENTRE : DATALOADER_ADM;
    int workers = run_options_workers(&o->run, c->local_size);
    dataloader_options_t options = {o->batch, 0, crop, !captions && o->flip, 1, c->rank, c->size, workers, o->run.seed,
                                    &l->sizes};
    dataloader_open(&l->loader, l->set, &options, step);
}

static inline void image_latents_normalise(image_latents_t* l, size_t n, const floatS* mean, const floatS* std) { // (C)
    int C = l->tokenizer.z;
    for (size_t i = 0; i < n; i++) {
        l->x1[i] = latents_normalise((float)l->x1[i], mean[i % C], std[i % C]); // a float, as shards hold it
    }
}

// The normalised latents of a step's images (B, h, w, C), on the host, which the next call overwrites.
const floatS* image_latents_encode(image_latents_t* l, const batch_t* images, const floatS* mean, const floatS* std,
                                   stream_t s) {
    autoencoder_t* a = &l->tokenizer;
    const dataloader_options_t* o = &l->loader.options;
    autoencoder_resize(a, images->H, images->W);
    size_t image = autoencoder_image_values(a), latent = autoencoder_latent_values(a), n = images->count * latent;
    uint64_t first = images->step * (uint64_t)o->batch + (uint64_t)o->rank * images->count;
    for (int at = 0, rows; at < images->count; at += rows) {
        rows = images->count - at < a->batch ? images->count - at : a->batch;
        for (int i = 0; i < rows; i++) {
            l->numbers[i] = 2 * (uint64_t)images->ids[at + i] + dataloader_flips(o, first + at + i);
        }
        const floatX* z = autoencoder_sample(a, images->pixels + at * image, rows, 0, 0, l->numbers, s);
        stream_wait(s);
        copy_floats_to_host(l->x1 + at * latent, z, rows * latent);
    }
    size_t bad = first_not_finite(l->x1, n);
    if (bad < n) {
        char name[1200];
        dataset_image_name(l->set, (size_t)images->ids[bad / latent], name, sizeof name);
        autoencoder_not_finite(a, "latent", name);
    }
    image_latents_normalise(l, n, mean, std);
    return l->x1;
}

// Ends the reading of images.
void image_latents_stop(image_latents_t* l) {
    size_t damaged = dataloader_damaged_files(&l->loader);
    if (damaged) warn("%zu files could not be read and were replaced by others", damaged);
    dataloader_close(&l->loader);
}
