// dataloader.h: the endless stream of batches, decoded by worker threads ahead of the training step.
//
// The stream is a function of the seed and the step alone. Image i of the global batch of step s has the global index
//     g = s * batch + i,   epoch = g / n,   position = g % n,   sample = permutation of the epoch (position),
// and its crop and flip come from the random numbers of index g. So the bytes do not depend on the number of threads or
// ranks, and a run that resumes at step s starts its loader at s. Batches run across the end of an epoch.
//
// Images that keep their aspect ratio come in batches of one size, which common/data/aspect.h makes out of sizes and
// seed: then `sample` is of the images of that size, and the batch tells its height and width.
//
// A damaged file is named once, counted, and replaced by a sample that is drawn by lot, from a permutation of g's own:
// its neighbours may be damaged too; of images of the same size first, then of all. That depends on the step alone, and
// crop and flip stay those of g. What is drawn by lot also tells how much of the data is damaged: with more than half
// of it the loader gives up.
//
// Threads: a ring of batches, each filled image by image. Workers draw tickets (step, image) in order, wait while the
// ring is full, and fill their image; the last one of a batch wakes the reader. With no threads the reader does the
// work itself. How long images take to make is measured on the way: dataloader_speed says what the threads can give.
//
// Sequential order (`shuffle` 0) is for whoever goes through all images once, and stops at g = n: sample = position.
// A part of a data set is taken with `shuffle` 1, as a folder is in the order of its classes.
// Look next at common/program/rng.h (random_permute) and common/data/dataset.h.
#pragma once
#include <assert.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// defines: aspect_t, aspect_open_squares, aspect_of_step, aspect_member, aspect_bucket
#include "common/data/aspect.h"
// defines: image_resize_filtered, image_centre_crop_adm, FILTER_BICUBIC
#include "common/data/crop.h"
// defines: dataset_t, dataset_load, dataset_label
#include "common/data/dataset.h"
// defines: image_t, image_create, image_error, image_free, image_resize_crop, image_mirror, cover_size
#include "common/data/image.h"
// defines: host_malloc, host_free
#include "common/device.h"
// defines: clock_seconds
#include "common/program/clock.h"
// defines: fatal, warn, malloc_check, calloc_check
#include "common/program/log.h"
// defines: random_permute, random_below, RANDOM_DATA_ORDER, RANDOM_REPLACEMENT, RANDOM_CROP, RANDOM_FLIP
#include "common/program/rng.h"

#define DATALOADER_RING 4         // batches in memory: one with the reader, the others ahead of it
#define DATALOADER_MAX_PROBES 64  // damaged files in the place of one image before giving up
#define DATALOADER_SAME_SIZE 8    // of them, those that are taken from the images of the same size
#define DATALOADER_MAX_THREADS 256

// Where crops are taken from. The last: squares, as ADM cuts them (common/data/crop.h).
enum { DATALOADER_CENTRE = 0, DATALOADER_ANYWHERE = 1, DATALOADER_ADM = 2 };

typedef struct {
    int batch;       // images of a step, over all ranks; a multiple of `world`
    int size;        // side of the square that leaves the loader; not used with `aspect`
    int crop;        // DATALOADER_CENTRE, ...
    int flip;        // 1: mirror half of the images
    int shuffle;     // 1: a fresh permutation each epoch; 0: the data set's own order
    int rank, world; // this rank gets images [rank, rank + 1) * batch / world of each step
    int threads;     // workers; 0: none
    uint64_t seed;
    const aspect_t* aspect; // images keep their aspect ratio, in these sizes, and are shuffled; NULL: squares
} dataloader_options_t;

// What a step gets. Valid until the next call of dataloader_next.
typedef struct {
    int H, W;
    uint8_t* pixels; // (count, H, W, 3)
    int* labels;     // [count]
    int64_t* ids;    // [count] sample numbers in the data set, after replacement of damaged files
    int count;       // batch / world
    uint64_t step;
} batch_t;

typedef struct {
    batch_t batch;
    aspect_step_t from;    // the bucket, and which of its batches this is
    int done;              // images that are ready
    size_t tries, damaged; // samples drawn by lot for this batch, and those of them that cannot be read
    char failure[IMAGE_ERROR_SIZE]; // why the batch cannot be made, or empty
} dataloader_slot_t;

typedef struct {
    const dataset_t* dataset;
    dataloader_options_t options;
    aspect_t squares;              // what options.aspect points to where there are no other sizes
    dataloader_slot_t ring[DATALOADER_RING]; // the batch of step s is in slot s % DATALOADER_RING
    pthread_t* threads;
    pthread_mutex_t mutex;         // guards everything below, and `done`, `tries`, `damaged`, `failure` of the slots
    pthread_cond_t room, ready;    // a slot was given back; a batch is complete
    uint64_t ticket_step;          // the next image to be given to a worker
    int ticket_image;
    uint64_t first_held;           // slots of steps before this one may be overwritten
    uint64_t next_step;            // what dataloader_next returns next
    int holding, stop;             // the reader has a batch; the workers shall end
    uint8_t* is_damaged;           // [dataset count] known not to be readable
    size_t damaged_files;          // how many of them
    size_t tries, damaged;         // of all batches handed out
    double seconds_waited;         // how long the reader has waited for batches, in all
    double seconds_made;           // how long the threads have worked on images, together,
    size_t made;                   // and on how many
} dataloader_t;

// The sample for image i of this rank's part of a batch, which has the global index g; `probe` counts the replacements
// of damaged files.
static inline size_t dataloader_sample(const dataloader_t* loader, const dataloader_slot_t* slot, int i, uint64_t g,
                                       uint64_t probe) {
    const dataloader_options_t* o = &loader->options;
    const aspect_bucket_t* bucket = &o->aspect->buckets[slot->from.bucket];
    uint64_t n = bucket->count, most = n < DATALOADER_SAME_SIZE ? n : DATALOADER_SAME_SIZE;
    if (probe > most) {
        return aspect_member(o->aspect, random_permute(o->seed, RANDOM_REPLACEMENT, g, probe - 1, o->aspect->images));
    }
    uint64_t at = slot->from.batch * (uint64_t)o->batch + (uint64_t)o->rank * slot->batch.count + (uint64_t)i;
    uint64_t place = o->shuffle ? random_permute(o->seed, RANDOM_DATA_ORDER, at / n, at % n, n) : at % n;
    if (probe) place = random_permute(o->seed, RANDOM_REPLACEMENT, g, probe - 1, n);
    return aspect_member(o->aspect, bucket->first + place);
}

// Is the image of index g mirrored?
static inline int dataloader_flips(const dataloader_options_t* options, uint64_t g) {
    return options->flip ? (int)random_below(options->seed, RANDOM_FLIP, 0, g, 2) : 0;
}

// ADM's centre crop, and the mirror image of that.
static inline void dataloader_crop_adm(uint8_t* out, // (size, size, 3)
                                       const image_t* image, int size, int flip) {
    image_t square = image_create(size, size);
    image_centre_crop_adm(square.pixels, image, size);
    if (flip) image_mirror(out, square.pixels, size, size);
    else memcpy(out, square.pixels, (size_t)size * size * 3);
    image_free(&square);
}

// Resizes the image until it just covers H x W, crops and flips by the random numbers of g.
static inline void dataloader_crop(uint8_t* out, // (H, W, 3)
                                   const image_t* image, int H, int W, const dataloader_options_t* options,
                                   uint64_t g) {
    int height, width, flip = dataloader_flips(options, g);
    if (options->crop == DATALOADER_ADM) {
        dataloader_crop_adm(out, image, H, flip);
        return;
    }
    cover_size(image->height, image->width, H, W, &height, &width);
    int top = (height - H) / 2, left = (width - W) / 2;
    if (options->crop == DATALOADER_ANYWHERE) {
        philox4_t bits = philox(options->seed, RANDOM_CROP, 0, g);
        top = (int)below_from_bits(bits.v[0], bits.v[1], (uint32_t)(height - H + 1));
        left = (int)below_from_bits(bits.v[2], bits.v[3], (uint32_t)(width - W + 1));
    }
    if (!options->aspect->by_area) {
        image_resize_crop(out, image, height, width, top, left, H, W, flip);
        return;
    }
    image_t resized = image_resize_filtered(image, height, width, FILTER_BICUBIC); // of the bucket's size from here on:
    image_resize_crop(out, &resized, height, width, top, left, H, W, flip);        // nothing is resized again
    image_free(&resized);
}

static inline int dataloader_is_damaged(dataloader_t* loader, size_t sample) {
    pthread_mutex_lock(&loader->mutex);
    int damaged = loader->is_damaged[sample];
    pthread_mutex_unlock(&loader->mutex);
    return damaged;
}

// Remembers a file that cannot be read, and says so the first time that any loader of the data set meets it.
static inline void dataloader_report(dataloader_t* loader, size_t sample, const char* error) {
    pthread_mutex_lock(&loader->mutex);
    int is_fresh = !loader->is_damaged[sample];
    loader->is_damaged[sample] = 1;
    loader->damaged_files += is_fresh;
    pthread_mutex_unlock(&loader->mutex);
    if (!is_fresh || __atomic_exchange_n(&loader->dataset->named[sample], 1, __ATOMIC_RELAXED)) return;
    warn("%s; another image takes its place", error);
}

// Says, once, that an image is not of the size that its bucket was chosen by.
static inline void dataloader_check_size(dataloader_t* loader, const dataloader_slot_t* slot, size_t sample,
                                         const image_t* image) {
    const aspect_t* a = loader->options.aspect;
    char name[1200];
    if (!a->members || aspect_bucket(a, image->height, image->width) == slot->from.bucket) return;
    dataset_image_name(loader->dataset, sample, name, sizeof name);
    pthread_mutex_lock(&loader->mutex);
    warn_once("%s is of %d x %d and was of another shape when the sizes of all images were read; remove the index "
              "(.image_sizes in the folder, or the archive's .sizes), and they are read again", name, image->width,
              image->height);
    pthread_mutex_unlock(&loader->mutex);
}

// Makes image i of a slot, replacing damaged files.
static inline void dataloader_make(dataloader_t* loader, dataloader_slot_t* slot, int i) {
    const dataloader_options_t* options = &loader->options;
    batch_t* batch = &slot->batch;
    uint64_t g = batch->step * (uint64_t)options->batch + (uint64_t)options->rank * batch->count + (uint64_t)i;
    size_t probe = 0, n = options->aspect->images, by_lot = options->shuffle ? 0 : 1; // the first probe that is
    size_t limit = n + 1 < DATALOADER_MAX_PROBES ? n + 1 : DATALOADER_MAX_PROBES;
    char error[IMAGE_ERROR_SIZE] = "";
    double start = clock_seconds();
    for (; probe < limit; probe++) {
        size_t sample = dataloader_sample(loader, slot, i, g, probe);
        if (dataloader_is_damaged(loader, sample)) continue;
        image_t image;
        if (dataset_load(loader->dataset, sample, &image, error)) {
            uint8_t* out = batch->pixels + (size_t)i * batch->H * batch->W * 3;
            dataloader_crop(out, &image, batch->H, batch->W, options, g);
            if (probe <= DATALOADER_SAME_SIZE) dataloader_check_size(loader, slot, sample, &image);
            image_free(&image);
            batch->labels[i] = dataset_label(loader->dataset, sample);
            batch->ids[i] = (int64_t)sample;
            break;
        }
        dataloader_report(loader, sample, error);
    }
    pthread_mutex_lock(&loader->mutex);
    slot->done++;
    loader->made++;
    loader->seconds_made += clock_seconds() - start;
    if (probe >= by_lot) {
        slot->tries += probe - by_lot + (probe < limit);
        slot->damaged += probe - by_lot;
    }
    if (probe == limit) {
        image_error(slot->failure, "%zu images in a row cannot be read in %s", n < limit ? n : limit,
                    loader->dataset->folder);
    }
    if (slot->done == batch->count) pthread_cond_signal(&loader->ready);
    pthread_mutex_unlock(&loader->mutex);
}

// A worker's life.
static inline void* dataloader_worker(void* argument) {
    dataloader_t* loader = (dataloader_t*)argument;
    pthread_mutex_lock(&loader->mutex);
    while (!loader->stop) {
        if (loader->ticket_step >= loader->first_held + DATALOADER_RING) {
            pthread_cond_wait(&loader->room, &loader->mutex);
            continue;
        }
        dataloader_slot_t* slot = &loader->ring[loader->ticket_step % DATALOADER_RING];
        int image = loader->ticket_image++;
        if (loader->ticket_image == slot->batch.count) {
            loader->ticket_image = 0;
            loader->ticket_step++;
        }
        pthread_mutex_unlock(&loader->mutex);
        dataloader_make(loader, slot, image);
        pthread_mutex_lock(&loader->mutex);
    }
    pthread_mutex_unlock(&loader->mutex);
    return NULL;
}

// Readies a slot for the batch of `step`.
static inline void dataloader_reset_slot(const dataloader_t* loader, dataloader_slot_t* slot, uint64_t step) {
    const dataloader_options_t* o = &loader->options;
    slot->from = aspect_of_step(o->aspect, o->seed, o->batch, step);
    slot->batch.H = o->aspect->buckets[slot->from.bucket].H;
    slot->batch.W = o->aspect->buckets[slot->from.bucket].W;
    slot->batch.step = step;
    slot->done = 0;
    slot->tries = slot->damaged = 0;
    slot->failure[0] = 0;
}

static inline void dataloader_check_options(const dataloader_options_t* options) {
    if (options->batch < 1 || options->world < 1 || options->batch % options->world) {
        fatal("the batch of %d images cannot be shared by %d ranks; choose a multiple with -batch", options->batch,
              options->world);
    }
    if (!options->aspect && (options->size < 1 || options->size > 8192)) {
        fatal("images of %d pixels a side were asked for; the limits are 1 and 8192", options->size);
    }
    assert(options->shuffle || !options->aspect);
    if (options->threads < 0 || options->threads > DATALOADER_MAX_THREADS) {
        fatal("%d loader threads were asked for; the limits are 0 and %d", options->threads, DATALOADER_MAX_THREADS);
    }
}

// Starts the stream at `first_step`. The data set, and the sizes that it comes in, must outlive the loader.
static inline void dataloader_open(dataloader_t* loader, const dataset_t* dataset, const dataloader_options_t* options,
                                   uint64_t first_step) {
    dataloader_check_options(options);
    memset(loader, 0, sizeof *loader);
    loader->dataset = dataset;
    loader->options = *options;
    if (!options->aspect) {
        aspect_open_squares(&loader->squares, options->size, dataset->count);
        loader->options.aspect = &loader->squares;
    }
    loader->ticket_step = loader->first_held = loader->next_step = first_step;
    loader->is_damaged = (uint8_t*)calloc_check(dataset->count, 1, "the list of damaged files");
    int count = options->batch / options->world;
    for (uint64_t step = first_step; step < first_step + DATALOADER_RING; step++) {
        dataloader_slot_t* slot = &loader->ring[step % DATALOADER_RING];
        slot->batch.count = count;
        size_t bytes = (size_t)count * aspect_pixels(loader->options.aspect) * 3;
        slot->batch.pixels = (uint8_t*)host_malloc(bytes, "a batch of images");
        slot->batch.labels = (int*)malloc_check(count * sizeof(int), "a batch of labels");
        slot->batch.ids = (int64_t*)malloc_check(count * sizeof(int64_t), "a batch of sample numbers");
        dataloader_reset_slot(loader, slot, step);
    }
    pthread_mutex_init(&loader->mutex, NULL);
    pthread_cond_init(&loader->room, NULL);
    pthread_cond_init(&loader->ready, NULL);
    loader->threads = (pthread_t*)malloc_check(options->threads * sizeof(pthread_t), "the loader's threads");
    for (int i = 0; i < options->threads; i++) {
        int code = pthread_create(&loader->threads[i], NULL, dataloader_worker, loader);
        if (code) fatal("loader thread %d cannot be started: %s; use fewer threads", i, strerror(code));
    }
}

// Is the data beyond use: one batch that could not be filled, or more than half of what was drawn by lot? Then `error`
// has a sentence.
static inline int dataloader_is_beyond_use(dataloader_t* loader, const dataloader_slot_t* slot, char* error) {
    loader->tries += slot->tries;
    loader->damaged += slot->damaged;
    int most = loader->damaged >= 16 && loader->damaged * 2 > loader->tries;
    if (slot->failure[0]) {
        image_error(error, "%s; check the data", slot->failure);
    } else if (most) {
        image_error(error, "%zu of %zu images, chosen by lot, cannot be read in %s; check the data", loader->damaged,
                    loader->tries, loader->dataset->folder);
    }
    return most || slot->failure[0];
}

// The batch of the next step. Gives the previous one back to the workers. Where the data is beyond use: NULL, with a
// sentence in `error`.
static inline const batch_t* dataloader_try_next(dataloader_t* loader, char* error) {
    double start = clock_seconds();
    pthread_mutex_lock(&loader->mutex);
    if (loader->holding) {
        uint64_t old = loader->first_held++;
        dataloader_reset_slot(loader, &loader->ring[old % DATALOADER_RING], old + DATALOADER_RING);
        pthread_cond_broadcast(&loader->room);
    }
    loader->holding = 1;
    dataloader_slot_t* slot = &loader->ring[loader->next_step++ % DATALOADER_RING];
    while (loader->options.threads && slot->done < slot->batch.count) pthread_cond_wait(&loader->ready, &loader->mutex);
    pthread_mutex_unlock(&loader->mutex);
    if (!loader->options.threads) {
        for (int i = 0; i < slot->batch.count; i++) dataloader_make(loader, slot, i);
    }
    loader->seconds_waited += clock_seconds() - start;
    return dataloader_is_beyond_use(loader, slot, error) ? NULL : &slot->batch;
}

// The same for what cannot go on without: the program ends where the data is beyond use.
static inline const batch_t* dataloader_next(dataloader_t* loader) {
    char error[IMAGE_ERROR_SIZE];
    const batch_t* batch = dataloader_try_next(loader, error);
    if (!batch) fatal("%s", error);
    return batch;
}

// Images a second that the threads of all ranks can make when nobody keeps them waiting, if others are as fast as this
// one's have been so far; 0: nothing.
static inline double dataloader_speed(dataloader_t* loader) {
    pthread_mutex_lock(&loader->mutex);
    int threads = (loader->options.threads ? loader->options.threads : 1) * loader->options.world;
    double speed = loader->seconds_made > 0 ? threads * (double)loader->made / loader->seconds_made : 0;
    pthread_mutex_unlock(&loader->mutex);
    return speed;
}

// Who makes them: "7 threads in each of 8 processes".
enum { DATALOADER_THREADS_TEXT = 96 };
static inline const char* dataloader_threads_text(const dataloader_t* loader, char text[DATALOADER_THREADS_TEXT]) {
    int threads = loader->options.threads, world = loader->options.world;
    char beside[48] = "";
    if (world > 1) snprintf(beside, sizeof beside, " in each of %d processes", world);
    snprintf(text, DATALOADER_THREADS_TEXT, "%d thread%s%s%s", threads ? threads : 1, threads > 1 ? "s" : "",
             threads ? "" : " that also trains", beside);
    return text;
}

// Says what the loader can give, once it has made some batches.
static inline void dataloader_print_speed(dataloader_t* loader) {
    char who[DATALOADER_THREADS_TEXT];
    printf("loader         %.0f images/s, by %s\n", dataloader_speed(loader), dataloader_threads_text(loader, who));
}

// How many different files could not be read so far, by the workers, who are ahead of the reader.
static inline size_t dataloader_damaged_files(dataloader_t* loader) {
    pthread_mutex_lock(&loader->mutex);
    size_t count = loader->damaged_files;
    pthread_mutex_unlock(&loader->mutex);
    return count;
}

// Ends the workers, at once if need be, and frees everything.
static inline void dataloader_close(dataloader_t* loader) {
    pthread_mutex_lock(&loader->mutex);
    loader->stop = 1;
    pthread_cond_broadcast(&loader->room);
    pthread_mutex_unlock(&loader->mutex);
    for (int i = 0; i < loader->options.threads; i++) pthread_join(loader->threads[i], NULL);
    for (int i = 0; i < DATALOADER_RING; i++) {
        host_free(loader->ring[i].batch.pixels);
        free(loader->ring[i].batch.labels);
        free(loader->ring[i].batch.ids);
    }
    pthread_mutex_destroy(&loader->mutex);
    pthread_cond_destroy(&loader->room);
    pthread_cond_destroy(&loader->ready);
    free(loader->threads);
    free(loader->is_damaged);
    aspect_close(&loader->squares);
    memset(loader, 0, sizeof *loader);
}
