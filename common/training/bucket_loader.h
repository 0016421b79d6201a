// bucket_loader.h: batches for text to image: normalised latents of one size, times, and captions, prepared ahead. Or
// times and captions beside the pixels of images, which the training encodes (common/drawing/image_latents.h).
//
// As in common/data/latent_loader.h all that is drawn for an image is a function of the seed and its number in the
// stream of all images. The sizes and images of a step are those of common/data/bucket_latents.h.
//
//     time      sigmoid(normal), warped towards the noise as mmdit_time_shift says, by the positions of a latent, and
//               turned round: in training 1 is data, as for LightningDiT
//     caption   dropped, that is the empty one, by RANDOM_LABEL_DROP
//
// Text comes as rows out of a cache, or else as captions, which the training encodes.
// Look next at common/training/caption_data.h, which takes the text, and common/drawing/latent_source.h, the user.
#pragma once
// defines: batch_ring_t, batch_ring_open, batch_ring_next, batch_ring_close, BATCH_RING
#include "common/data/batch_ring.h"
// defines: bucket_latents_t, bucket_latents_batch, bucket_latents_size
#include "common/data/bucket_latents.h"
// defines: dataloader_t, dataloader_next, batch_t
#include "common/data/dataloader.h"
// defines: host_malloc, host_free, floatX
#include "common/device.h"
// defines: caption_rows
#include "common/models/caption_encoder.h"
// defines: mmdit_time_shift
#include "common/models/mmdit.h"

typedef struct {
    int batch;                // of a step, over all ranks
    int rank, world;          // this rank gets rows [rank, rank + 1) * batch / world
    int workers;              // 0: bucket_loader_next prepares the batch itself; else a thread does
    uint64_t seed;
    const floatS *mean, *std; // (C)
    double drop;              // part of the captions that become the empty one
    int text_rows;            // most rows of a caption
    dataloader_t* images;     // at the same step, in the place of latents, which then have sizes alone; or NULL
} bucket_loader_options_t;

// Valid until the next call of bucket_loader_next.
typedef struct {
    int h, w;
    floatS* x1;      // (B, h, w, C) of latents
    const batch_t* pixels; // else
    floatS* t;       // (B)
    int64_t* images; // (B) numbers in the data set
    char** captions; // (B) without a cache
    int L;           // with a cache: rows of a caption in this batch,
    floatX* rows;    // (B, L, dt)
    int* first;      // (B)
    floatX* pooled;  // (B, dv)
} bucket_batch_t;

typedef struct {
    const bucket_latents_t* latents;
    const dataset_t* set;
    const text_cache_t* cache; // or NULL
    const int* sets;           // (images) the set of each image's caption in it
    bucket_loader_options_t options;
    int B;                     // rows of this rank
    int* chosen;               // (B) sets of the batch that is being made
    floatS *rows, *pooled;     // of it
    bucket_batch_t batches[BATCH_RING];
    batch_ring_t ring;
} bucket_loader_t;

// A time, in the direction where 0 is data, warped for latents of N positions.
static inline double bucket_warp(double time, int N) {
    double shift = mmdit_time_shift(N);
    return shift * time / (1 + (shift - 1) * time);
}

// Rows of the longest of B captions, as the encoder would make them.
static inline int bucket_loader_length(const bucket_loader_t* loader) {
    return caption_rows(text_cache_longest(loader->cache, loader->chosen, loader->B), loader->options.text_rows);
}

static inline void bucket_loader_cached_text(bucket_loader_t* loader, bucket_batch_t* batch) {
    const text_cache_t* c = loader->cache;
    size_t B = (size_t)loader->B;
    batch->L = bucket_loader_length(loader);
    text_cache_batch(c, loader->chosen, loader->B, batch->L, loader->rows, batch->first, loader->pooled);
    for (size_t i = 0; i < B * batch->L * c->dt; i++) batch->rows[i] = (floatX)loader->rows[i];
    for (size_t i = 0; i < B * c->dv; i++) batch->pooled[i] = (floatX)loader->pooled[i];
}

// A batch_make_fn.
static inline void bucket_loader_make(void* argument, int slot, uint64_t step) {
    bucket_loader_t* loader = (bucket_loader_t*)argument;
    const bucket_loader_options_t* o = &loader->options;
    bucket_batch_t* batch = &loader->batches[slot];
    const aspect_bucket_t* size = bucket_latents_size(loader->latents, o->seed, o->batch, step);
    batch->h = size->H;
    batch->w = size->W;
    if (o->images) {
        batch->pixels = dataloader_next(o->images);
        memcpy(batch->images, batch->pixels->ids, loader->B * sizeof(int64_t));
    } else {
        bucket_latents_batch(loader->latents, o->seed, o->batch, o->rank, o->world, step, o->mean, o->std, batch->x1,
                             batch->images);
    }
    for (int b = 0; b < loader->B; b++) {
        uint64_t g = step * (uint64_t)o->batch + (uint64_t)o->rank * loader->B + b; // number in the stream
        double z = 1 / (1 + exp(-(double)random_normal(o->seed, RANDOM_TIMES, 0, g)));
        int dropped = o->drop > 0 && random_uniform(o->seed, RANDOM_LABEL_DROP, 0, g) < o->drop;
        batch->t[b] = (floatS)(1 - bucket_warp(z, size->H * size->W));
        if (loader->cache) {
            loader->chosen[b] = dropped ? 0 : loader->sets[batch->images[b]];
        } else {
            free(batch->captions[b]);
            batch->captions[b] = dropped ? string_copy("") : dataset_caption(loader->set, (size_t)batch->images[b]);
        }
    }
    if (loader->cache) bucket_loader_cached_text(loader, batch);
}

static inline void bucket_loader_open_batch(bucket_loader_t* loader, bucket_batch_t* batch, size_t positions) {
    size_t B = (size_t)loader->B, L = (size_t)loader->options.text_rows;
    size_t dt = loader->cache ? (size_t)loader->cache->dt : 0, dv = loader->cache ? (size_t)loader->cache->dv : 0;
    batch->x1 = (floatS*)host_malloc(B * positions * loader->latents->C * sizeof(floatS), "a batch of latents");
    batch->t = (floatS*)host_malloc(B * sizeof(floatS), "a batch of times");
    batch->images = (int64_t*)malloc_check(B * sizeof(int64_t), "a batch's images");
    batch->captions = (char**)calloc_check(B, sizeof(char*), "a batch's captions");
    batch->rows = (floatX*)host_malloc(B * L * dt * sizeof(floatX), "a batch's text");
    batch->first = (int*)host_malloc(B * sizeof(int), "a batch's text");
    batch->pooled = (floatX*)host_malloc(B * dv * sizeof(floatX), "a batch's text");
}

// What is given must outlive the loader. `cache` and `sets` NULL: the captions themselves.
static inline void bucket_loader_open(bucket_loader_t* loader, const bucket_latents_t* latents, const dataset_t* set,
                                      const text_cache_t* cache, const int* sets,
                                      const bucket_loader_options_t* options, uint64_t first_step) {
    memset(loader, 0, sizeof *loader);
    loader->latents = latents;
    loader->set = set;
    loader->cache = cache;
    loader->sets = sets;
    loader->options = *options;
    loader->B = options->batch / options->world;
    size_t B = (size_t)loader->B, L = (size_t)options->text_rows;
    size_t positions = options->images ? 0 : aspect_most_positions(&latents->sizes);
    if (cache) {
        loader->chosen = (int*)malloc_check(B * sizeof(int), "a batch's captions");
        loader->rows = (floatS*)malloc_check(B * L * cache->dt * sizeof(floatS), "a batch's text");
        loader->pooled = (floatS*)malloc_check(B * cache->dv * sizeof(floatS), "a batch's text");
    }
    for (int i = 0; i < BATCH_RING; i++) bucket_loader_open_batch(loader, &loader->batches[i], positions);
    int workers = options->images ? 0 : options->workers; // images have their own
    batch_ring_open(&loader->ring, bucket_loader_make, loader, workers, first_step);
}

// The batch of the next step. What was returned before may be overwritten from here on.
static inline const bucket_batch_t* bucket_loader_next(bucket_loader_t* loader) {
    return &loader->batches[batch_ring_next(&loader->ring)];
}

static inline void bucket_loader_close(bucket_loader_t* loader) {
    batch_ring_close(&loader->ring);
    for (int i = 0; i < BATCH_RING; i++) {
        bucket_batch_t* batch = &loader->batches[i];
        for (int b = 0; b < loader->B; b++) free(batch->captions[b]);
        host_free(batch->x1);
        host_free(batch->t);
        host_free(batch->rows);
        host_free(batch->first);
        host_free(batch->pooled);
        free(batch->images);
        free(batch->captions);
    }
    free(loader->chosen);
    free(loader->rows);
    free(loader->pooled);
    memset(loader, 0, sizeof *loader);
}
