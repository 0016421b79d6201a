// extract.h: images become latents on a disk (`./train_dit -extract 1`).
//
// Each image is cut to the tokenizer's square as ADM does it (image_centre_crop_adm) and encoded twice, as it is and
// mirrored: no latent is ever mirrored, since the encoder is not symmetric. Latents are stored as they come; training
// normalises them. Of an encoder that gives a distribution (VA-VAE) they are draws, one for the image and another for
// its twin, as in LightningDiT. The file format is LightningDiT's too (common/data/latents.h).
//
// Process r of W takes the images r, r + W, r + 2W, ... (a part of a folder by lot: extract_image); a shard is so many
// of them. A shard that is there already, of the same tokenizer, image set and size, is kept: so an extraction that was
// stopped goes on where it was. While the device encodes one batch, the host reads and cuts the next.
//
// Images with captions keep their aspect ratio: they are sorted into sizes (common/data/aspect.h), resized until they
// cover theirs, and cut to it. They have no mirrored twins, which would make captions wrong, and their shards have one
// size each (common/data/bucket_latents.h). Look next at common/data/latents.h, and at common/drawing/image_latents.h,
// which encodes the same beside the training.
#pragma once
#include <errno.h>
#include <unistd.h>

// defines: autoencoder_t, autoencoder_open, autoencoder_sample, autoencoder_resize, autoencoder_factor
#include "common/drawing/autoencoder.h"
// defines: clock_seconds, clock_duration
#include "common/program/clock.h"
// defines: comm_t, comm_is_first, comm_wait_for_all
#include "common/training/comm.h"
// defines: bucket_shard_path, captions_fingerprint
#include "common/data/bucket_latents.h"
// defines: dataloader_crop, dataloader_options_t
#include "common/data/dataloader.h"
// defines: dataset_t, dataset_open, dataset_load, dataset_label
#include "common/data/dataset.h"
// defines: make_folder
#include "common/files/folder.h"
// defines: image_centre_crop_adm
#include "common/data/crop.h"
// defines: random_permute, RANDOM_DATA_ORDER
#include "common/program/rng.h"
// defines: latent_shard_t, latent_shard_*
#include "common/data/latents.h"
// defines: json_text_t, json_append_string
#include "common/program/json.h"
// defines: dit_options_t, BUCKETS_AREA
#include "common/training/dit_options.h"
// defines: machine_cores
#include "common/training/rendezvous.h"
// defines: run_try_folder
#include "common/training/run.h"
// defines: shared_sizes
#include "common/training/shared_sizes.h"

typedef struct {
    const dit_options_t* options;
    int threads;         // that decode
    comm_t* comm;
    stream_t stream;
    dataset_t data;
    char* class_names;   // a JSON array
    autoencoder_t tokenizer;
    int twins;           // rows of an image: 2 with its mirrored twin
    aspect_t sizes;      // where images have captions
    const aspect_bucket_t* bucket; // the size that is being encoded; NULL: squares
    char captions[17];   // fingerprint of all captions
    char images[17];     // and of the image set
    size_t total, mine;  // images in all; this process's
    size_t kept, done, damaged; // of them: in shards that were there; encoded; unreadable
    double start;
    uint8_t* pixels[2];  // (twins batch, H, W, 3) of the batch that is being encoded and of the next
    int* labels[2];      // (batch) -1: the image cannot be read
    uint64_t* numbers;   // (twins batch) of the draws
    floatS* host;        // (twins batch, GH, GW, z)
} extract_t;

// Threads that decode images, where nothing trains beside them.
static inline int extract_threads(const dit_options_t* o, const comm_t* comm) {
    return o->run.workers > 0 ? o->run.workers : machine_cores(comm->local_size);
}

// How many images of a data set are encoded.
static inline size_t extract_total(const dit_options_t* o, const dataset_t* set) {
    return o->images && (size_t)o->images < set->count ? (size_t)o->images : set->count;
}

// The image of the data set that is number `number` of `total`. Fewer than all are chosen by lot: a folder's images are
// in the order of their classes. (IDX files and the drawn set are mixed as they are.)
static inline size_t extract_choose(const dataset_t* set, size_t total, size_t number) {
    int by_lot = total < set->count && set->kind == DATASET_FOLDER;
    return by_lot ? random_permute(0, RANDOM_DATA_ORDER, 0, number, set->count) : number;
}

// The image of the data set that is this process's k-th, of the size that is being encoded.
static inline size_t extract_image(const extract_t* e, size_t k) {
    size_t number = (size_t)e->comm->rank + k * e->comm->size;
    if (e->bucket) return aspect_member(&e->sizes, e->bucket->first + number);
    return extract_choose(&e->data, e->total, number);
}

// This process's share of n images.
static inline size_t extract_share(const extract_t* e, size_t n) {
    return (n + e->comm->size - 1 - e->comm->rank) / e->comm->size;
}

// Cuts an image to H x W; the mirrored twin, if there is one, stands `twin` bytes behind.
static inline void extract_cut(const extract_t* e, uint8_t* at, const image_t* image, size_t twin) { // (H, W, 3)
    int H = e->tokenizer.H, W = e->tokenizer.W;
    if (e->bucket) {
        dataloader_options_t crop;
        memset(&crop, 0, sizeof crop);
        crop.aspect = &e->sizes;
        dataloader_crop(at, image, H, W, &crop, 0);
    } else {
        image_centre_crop_adm(at, image, H);
        image_mirror(at + twin, at, H, W);
    }
}

// Reads `count` of this process's images, from number `first` on, into buffer `which`: images, then their mirrored
// twins.
static inline void extract_read(extract_t* e, int which, size_t first, int count) {
    size_t size = autoencoder_image_values(&e->tokenizer);
    #pragma omp parallel for schedule(dynamic) num_threads(e->threads)
    for (int i = 0; i < count; i++) {
        size_t number = extract_image(e, first + i);
        char error[IMAGE_ERROR_SIZE];
        image_t image;
        uint8_t* at = e->pixels[which] + i * size;
        e->labels[which][i] = -1;
        if (!dataset_load(&e->data, number, &image, error)) {
            warn("%s; it is left out", error);
            for (int twin = 0; twin < e->twins; twin++) memset(at + twin * count * size, 0, size);
            continue;
        }
        extract_cut(e, at, &image, count * size);
        image_free(&image);
        e->labels[which][i] = dataset_label(&e->data, number);
    }
}

static inline void extract_progress(extract_t* e, int shard, int shards) {
    char left[24];
    double seconds = clock_seconds() - e->start, speed = (double)e->done / (seconds > 0 ? seconds : 1);
    clock_duration(left, sizeof left, speed > 0 ? (double)(e->mine - e->kept - e->done) / speed : 0);
    printf("extract        shard %d of %d   %zu of %zu images   %.*f img/s   %s left\n", shard + 1, shards,
           e->kept + e->done, e->mine, speed < 10 ? 2 : 0, speed, left);
    fflush(stdout);
}

// Encodes this process's images [first, first + count) into a shard.
static inline void extract_shard(extract_t* e, latent_shard_t* shard, size_t first, size_t count) {
    size_t latent = autoencoder_latent_values(&e->tokenizer), batch = (size_t)e->options->extract_batch;
    int which = 0;
    extract_read(e, which, first, (int)(count < batch ? count : batch));
    for (size_t at = 0; at < count; at += batch, which = !which) {
        int n = (int)(count - at < batch ? count - at : batch), rows = e->twins * n;
        for (int i = 0; i < rows; i++) e->numbers[i] = 2 * extract_image(e, first + at + i % n) + (i >= n);
        const floatX* z = autoencoder_sample(&e->tokenizer, e->pixels[which], rows, 0, 0, e->numbers, e->stream);
        size_t next = at + batch;
        if (next < count) extract_read(e, !which, first + next, (int)(count - next < batch ? count - next : batch));
        stream_wait(e->stream);
        copy_floats_to_host(e->host, z, rows * latent);
        size_t bad = first_not_finite(e->host, rows * latent) / latent;
        if (bad < (size_t)rows) {
            char image[1200];
            dataset_image_name(&e->data, extract_image(e, first + at + bad % n), image, sizeof image);
            autoencoder_not_finite(&e->tokenizer, "latent", image);
        }
        for (int i = 0; i < n; i++) {
            const floatS *one = e->host + i * latent, *twin = e->bucket ? NULL : one + n * latent;
            int64_t label = e->bucket ? (int64_t)extract_image(e, first + at + i) : e->labels[which][i];
            if (e->labels[which][i] < 0) e->damaged++;
            else latent_shard_add(shard, one, twin, label);
        }
        e->done += n;
    }
}

// Statistics of the latents that were in the folder before are not those of the latents that will be.
static inline void extract_forget_statistics(const char* folder) {
    char* path = dataset_join(folder, LATENT_STATS);
    if (unlink(path) && errno != ENOENT) fatal("cannot remove %s: %s; remove it", path, strerror(errno));
    free(path);
}

// Writes the shards of this process that are not there yet, of images with captions those of the size that is set.
static inline void extract_shards(extract_t* e) {
    const dit_options_t* o = e->options;
    const autoencoder_t* t = &e->tokenizer;
    latent_origin_t origin = {t->fingerprint, e->data.folder, e->data.count, e->total, e->data.class_count,
                              (int)e->comm->size, e->class_names, e->images, e->bucket ? e->captions : NULL};
    size_t per_shard = (size_t)o->shard_images, mine = extract_share(e, e->bucket ? e->bucket->count : e->total);
    int shards = (int)((mine + per_shard - 1) / per_shard);
    for (int k = 0; k < shards; k++) {
        size_t first = k * per_shard, count = mine - first < per_shard ? mine - first : per_shard;
        char path[1200];
        if (e->bucket) bucket_shard_path(path, sizeof path, o->latents, t->GH, t->GW, e->comm->rank, k);
        else latent_shard_path(path, sizeof path, o->latents, e->comm->rank, k);
        if (latent_shard_is_made(path, count, t->z, t->GH, t->GW, &origin)) {
            e->kept += count;
            printf("kept           %s\n", path);
            continue;
        }
        latent_shard_t shard;
        latent_shard_open(&shard, (int)count, t->z, t->GH, t->GW, e->twins == 2);
        extract_shard(e, &shard, first, count);
        extract_forget_statistics(o->latents);
        latent_shard_write(&shard, path, &origin, count);
        extract_progress(e, k, shards);
    }
}

// The sizes that images with captions come in, in pixels, for a tokenizer of this factor.
static inline void extract_open_aspect(const dit_options_t* o, int factor, aspect_t* sizes) {
    int side = o->image_size;
    if (side % factor) fatal("-image_size %d is no multiple of %d, the tokenizer's factor", side, factor);
    if (o->buckets == BUCKETS_AREA) aspect_open_area(sizes, side, factor, o->aspect);
    else aspect_open(sizes, side, factor, o->aspect);
}

// Sorts images with captions into them. Where fewer than all are wanted, they are chosen by lot. A collective.
static inline void extract_fill_aspect(const dit_options_t* o, comm_t* comm, const dataset_t* set,
                                       aspect_t* aspect) {
    int* sizes = shared_sizes(comm, set, extract_threads(o, comm));
    for (size_t k = extract_total(o, set); k < set->count; k++) { // those that the lot does not choose
        sizes[2 * random_permute(0, RANDOM_DATA_ORDER, 0, k, set->count)] = 0;
    }
    aspect_fill(aspect, sizes, set->count);
    free(sizes);
    if (!aspect->images) fatal("-data %s: no image tells its size; check the data", set->folder);
}

static inline void extract_open_sizes(extract_t* e) {
    extract_open_aspect(e->options, autoencoder_factor(&e->tokenizer), &e->sizes);
    extract_fill_aspect(e->options, e->comm, &e->data, &e->sizes);
    captions_fingerprint(e->captions, &e->data);
    e->mine = 0;
    for (int k = 0; k < e->sizes.count; k++) e->mine += extract_share(e, e->sizes.buckets[k].count);
}

static inline void extract_buckets(extract_t* e) {
    for (int k = 0; k < e->sizes.count; k++) {
        e->bucket = &e->sizes.buckets[k];
        if (!e->bucket->count) continue;
        autoencoder_resize(&e->tokenizer, e->bucket->H, e->bucket->W);
        printf("size           %d x %d pixels: %zu images\n", e->bucket->W, e->bucket->H, e->bucket->count);
        extract_shards(e);
    }
}

// The names of the image set's classes as a JSON array, for the caller to free.
static inline char* extract_class_names(const dataset_t* data) {
    json_text_t json = {NULL, 0, 0};
    for (int i = 0; i < data->class_count; i++) {
        json_append(&json, i ? ", " : "[");
        json_append_string(&json, data->class_names[i]);
    }
    json_append(&json, "]");
    return json.text;
}

// The folder must take all shards that are not there yet.
static inline void extract_try_folder(const extract_t* e) {
    const char* folder = e->options->latents;
    char error[1200];
    make_folder(folder);
    size_t all = e->total * e->twins * autoencoder_latent_values(&e->tokenizer) * sizeof(float);
    size_t there = latents_bytes(folder);
    if (comm_is_first(e->comm) && !run_try_folder(folder, all > there ? all - there : 0, error, sizeof error)) {
        fatal("%s", error);
    }
}

// Encodes the images of `set`, which have captions, or, where it is NULL, those of classes that -data names. All
// processes together. `comm` is attached.
void extract_latents(const dit_options_t* o, const dataset_t* set, comm_t* comm, stream_t s) {
    static extract_t e;
    memset(&e, 0, sizeof e);
    e.options = o;
    e.threads = extract_threads(o, comm);
    e.comm = comm;
    e.stream = s;
    if (set) e.data = *set;
    else dataset_open(&e.data, o->data, SPLIT_TRAIN);
    e.twins = set ? 1 : 2;
    e.class_names = extract_class_names(&e.data);
    dataset_fingerprint(e.images, &e.data);
    int rows = e.twins * o->extract_batch;
    autoencoder_open(&e.tokenizer, o->tokenizer, (autoencoder_weights_t)o->tokenizer_weights, rows, 1, 0);
    e.total = extract_total(o, &e.data);
    e.mine = extract_share(&e, e.total);
    if (set) extract_open_sizes(&e);
    printf("extract        %zu images of %s, %d classes, by tokenizer %s (%s, %s)\n", e.total, e.data.folder,
           e.data.class_count, o->tokenizer, e.tokenizer.fingerprint, e.tokenizer.weights);
    extract_try_folder(&e);
    size_t image = autoencoder_image_values(&e.tokenizer), latent = autoencoder_latent_values(&e.tokenizer);
    if (set) {
        size_t factor = (size_t)autoencoder_factor(&e.tokenizer), most = aspect_most_positions(&e.sizes); // pixels
        image = most * 3;
        latent = most / (factor * factor) * e.tokenizer.z;
    }
    for (int i = 0; i < 2; i++) {
        e.pixels[i] = (uint8_t*)host_malloc(rows * image, "images");
        e.labels[i] = (int*)malloc_check(o->extract_batch * sizeof(int), "labels");
    }
    e.numbers = (uint64_t*)malloc_check(rows * sizeof(uint64_t), "numbers of images");
    e.host = (floatS*)malloc_check(rows * latent * sizeof(floatS), "latents");
    e.start = clock_seconds();
    if (set) extract_buckets(&e);
    else extract_shards(&e);
    if (e.damaged) warn("%zu images could not be read and are left out", e.damaged);
    comm_wait_for_all(comm); // some may have had more to write than others
    printf("latents        %s\n", o->latents);
    for (int i = 0; i < 2; i++) {
        host_free(e.pixels[i]);
        free(e.labels[i]);
    }
    free(e.numbers);
    free(e.host);
    free(e.class_names);
    autoencoder_close(&e.tokenizer);
    if (!set) dataset_close(&e.data);
    else aspect_close(&e.sizes);
}
