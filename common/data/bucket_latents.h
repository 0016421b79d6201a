// bucket_latents.h: latents of images with captions on a disk: the shards of common/data/latents.h, but of several
// sizes (the buckets of common/data/aspect.h), with the number of the image in the place of a label, and without mirror
// images: captions say left and right. A folder holds, for each size h x w of latents,
//
//     latents_HHHxWWW_rankRR_shardSSS.safetensors
//         latents      F32 or F16 (n, C, h, w)
//         caption_id   I64 (n)      the image, and with it its caption, in the data set
//         metadata     as in common/data/latents.h, and captions, the fingerprint of all captions of the data set
//
// A folder whose captions are not those of the data set is refused: the numbers would lead to other captions. Batches
// come in the order of common/data/aspect.h: those of a step have one size, the same in all processes, and the step
// alone tells which they are.
// Look next at common/data/text_cache.h, which keeps the captions, and common/data/latent_loader.h, the same for
// classes.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// defines: aspect_t, aspect_step_t, aspect_of_step
#include "common/data/aspect.h"
// defines: latent_file_t, latent_text_is, latent_metadata, latents_list, latents_normalise, LATENT_SUFFIX
#include "common/data/latents.h"
// defines: caption_hash
#include "common/data/text_cache.h"
// defines: HASH_START, hash_word
#include "common/program/hash.h"

// The fingerprint of a data set's captions, in their order; 17 bytes.
static inline const char* captions_fingerprint(char text[17], const dataset_t* set) {
    uint64_t h = HASH_START;
    for (size_t i = 0; i < set->count; i++) {
        char* caption = dataset_caption(set, i);
        if (!caption) fatal("%s has no captions; give -data scenes or captions:FOLDER", set->folder);
        uint64_t one = caption_hash(caption);
        for (int k = 0; k < 8; k++) h = hash_word(h, one >> 8 * k & 255);
        free(caption);
    }
    snprintf(text, 17, "%016llx", (unsigned long long)h);
    return text;
}

// The name of a shard of latents of h x w.
static inline const char* bucket_shard_path(char* path, size_t size, const char* folder, int h, int w, int rank,
                                            int number) {
    snprintf(path, size, "%s/latents_%03dx%03d_rank%02d_shard%03d" LATENT_SUFFIX, folder, h, w, rank, number);
    return path;
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

typedef struct {
    char* folder;
    latent_file_t* files;  // (n_files) sorted by name, so that those of one size lie together; `flipped` is NULL
    int n_files;
    int C;
    aspect_t sizes;        // buckets of h x w latents; image k is the k-th of all files
    int64_t* caption_id;   // (sizes.images)
    const char* tokenizer; // fingerprint of the one that made them
} bucket_latents_t;

static inline void bucket_latents_add_file(bucket_latents_t* l, latent_file_t* f, const char* path, const char* captions,
                                           size_t images) {
    char shape[160];
    safetensors_open_or_die(&f->file, path);
    const st_tensor_t *t = safetensors_find(&f->file, "latents"), *ids = safetensors_find(&f->file, "caption_id");
    if (!t || !ids) fatal("%s: tensor %s is missing; it is no shard of images with captions, move it out of the folder",
                          path, t ? "caption_id" : "latents");
    st_shape_text(t, shape, sizeof shape);
    if ((t->dtype != ST_F32 && t->dtype != ST_F16) || t->ndim != 4 || t->shape[1] != (size_t)l->C || t->shape[2] < 1 ||
        t->shape[3] < 1 || t->shape[2] > 4096 || t->shape[3] > 4096) {
        fatal("%s: tensor latents is %s %s, wanted F32 or F16 (n, %d, h, w)", path, st_dtype_info(t->dtype).name, shape,
              l->C);
    }
    if (ids->dtype != ST_I64 || ids->ndim != 1 || ids->numel != t->shape[0]) {
        fatal("%s: tensor caption_id is not I64 (%zu), one for each latent; the file is damaged", path, t->shape[0]);
    }
    if (!latent_text_is(&f->file, "captions", captions)) {
        fatal("%s is of other captions (%s) than the data set (%s); make the latents again, or give that data set with "
              "the filters that it had (-short_side and what follows it in -h)", path,
              latent_metadata(&f->file, "captions"), captions);
    }
    if (f == l->files) l->tokenizer = latent_metadata(&f->file, "tokenizer");
    if (strcmp(l->tokenizer, latent_metadata(&f->file, "tokenizer"))) {
        fatal("%s was made by tokenizer %s, %s by %s; a folder is for the latents of one", path,
              latent_metadata(&f->file, "tokenizer"), l->files[0].file.path, l->tokenizer);
    }
    f->latents = t;
    f->n = t->shape[0];
    f->first = l->sizes.images;
    l->caption_id = (int64_t*)realloc(l->caption_id, (f->first + f->n + 1) * sizeof(int64_t));
    if (!l->caption_id) fatal("no memory for the captions of %zu images", f->first + f->n);
    if (f->n) memcpy(l->caption_id + f->first, ids->data, f->n * sizeof(int64_t));
    for (size_t i = f->first; i < f->first + f->n; i++) {
        if (l->caption_id[i] < 0 || (uint64_t)l->caption_id[i] >= images) {
            fatal("%s: caption_id %lld is of no image of the data set; the file is damaged", path,
                  (long long)l->caption_id[i]);
        }
    }
    l->sizes.images += f->n;
}

// Counts a file's latents to the bucket of their size, which is the last one or a new one.
static inline void bucket_latents_count(bucket_latents_t* l, const latent_file_t* f) {
    int h = (int)f->latents->shape[2], w = (int)f->latents->shape[3];
    for (int k = 0; k < l->sizes.count; k++) {
        aspect_bucket_t* b = &l->sizes.buckets[k];
        if (b->H != h || b->W != w) continue;
        if (b->first + b->count != f->first) fatal("%s: its name is not that of its size; make it again", f->file.path);
        b->count += f->n;
        return;
    }
    aspect_bucket_t* b = &l->sizes.buckets[l->sizes.count++];
    b->H = h;
    b->W = w;
    b->first = f->first;
    b->count = f->n;
}

// Opens all shards of a folder, of C channels. `captions` is the fingerprint of the data set's captions, `images` how
// many images it has.
static inline void bucket_latents_open(bucket_latents_t* l, const char* folder, int C, const char* captions,
                                       size_t images) {
    string_list_t names = {NULL, 0, 0};
    memset(l, 0, sizeof *l);
    l->folder = string_copy(folder);
    l->C = C;
    latents_list(folder, &names);
    l->n_files = (int)names.count;
    l->files = (latent_file_t*)calloc_check(names.count, sizeof(latent_file_t), "the list of shards");
    l->sizes.buckets = (aspect_bucket_t*)calloc_check(names.count, sizeof(aspect_bucket_t), "the sizes of latents");
    for (int i = 0; i < l->n_files; i++) bucket_latents_add_file(l, &l->files[i], names.items[i], captions, images);
    for (int i = 0; i < l->n_files; i++) bucket_latents_count(l, &l->files[i]);
    latent_files_warn_of_missing(l->files, l->n_files, folder);
    string_list_free(&names);
    if (!l->sizes.images) fatal("-latents %s: it holds no latents; make them first", folder);
}

// The sizes of latents that are made when they are wanted, of images in these sizes (in pixels, as aspect_sort leaves
// them), `factor` times as large. There is nothing to read.
static inline void bucket_latents_open_sizes(bucket_latents_t* l, const aspect_t* images, int factor, int C,
                                             const char* tokenizer) {
    memset(l, 0, sizeof *l);
    l->C = C;
    l->tokenizer = tokenizer;
    l->sizes.count = images->count;
    l->sizes.images = images->images;
    l->sizes.buckets = (aspect_bucket_t*)malloc_check(images->count * sizeof(aspect_bucket_t), "the sizes of latents");
    for (int k = 0; k < images->count; k++) {
        l->sizes.buckets[k] = images->buckets[k];
        l->sizes.buckets[k].H /= factor;
        l->sizes.buckets[k].W /= factor;
    }
}

static inline void bucket_latents_close(bucket_latents_t* l) {
    for (int i = 0; i < l->n_files; i++) safetensors_close(&l->files[i].file);
    free(l->files);
    free(l->caption_id);
    free(l->folder);
    aspect_close(&l->sizes);
    memset(l, 0, sizeof *l);
}

// out = (latent i - mean) / std, in the order of the device.
static inline void bucket_latents_read(const bucket_latents_t* l, size_t i, const floatS* mean, const floatS* std, // (C)
                                       floatS* out) { // (h, w, C)
    const latent_file_t* f = l->files;
    while (i >= f->first + f->n) f++;
    const st_tensor_t* t = f->latents;
    size_t positions = t->shape[2] * t->shape[3], bytes = st_dtype_info(t->dtype).bits / 8;
    const unsigned char* at = t->data + (i - f->first) * l->C * positions * bytes;
    for (int c = 0; c < l->C; c++) {
        for (size_t p = 0; p < positions; p++) {
            float value = (float)st_value(t->dtype, at + (c * positions + p) * bytes);
            out[p * l->C + c] = latents_normalise(value, mean[c], std[c]);
        }
    }
}

// Mean and unbiased deviation of each channel, over the positions of so many latents of all sizes, by lot, or of all.
static inline void bucket_latents_statistics(const bucket_latents_t* l, uint64_t seed, size_t images,
                                             floatS* mean, floatS* std) { // (C) each
    size_t most = 0, n = images < l->sizes.images ? images : l->sizes.images, positions = 0;
    for (int k = 0; k < l->sizes.count; k++) {
        size_t size = (size_t)l->sizes.buckets[k].H * l->sizes.buckets[k].W;
        most = size > most ? size : most;
    }
    double* sums = (double*)calloc_check(2 * (size_t)l->C, sizeof(double), "latent statistics");
    floatS* z = (floatS*)malloc_check(most * l->C * sizeof(floatS), "a latent");
    for (int c = 0; c < l->C; c++) mean[c] = 0, std[c] = 1;
    for (int pass = 0; pass < 2; pass++) { // the mean first, so that the variance is a sum of squares near zero
        positions = 0;
        for (size_t i = 0; i < n; i++) {
            size_t which = random_permute(seed, RANDOM_DATA_ORDER, LATENT_STATS_STEP, i, l->sizes.images);
            int k = 0;
            while (which >= l->sizes.buckets[k].first + l->sizes.buckets[k].count) k++;
            size_t size = (size_t)l->sizes.buckets[k].H * l->sizes.buckets[k].W;
            bucket_latents_read(l, which, mean, std, z);
            for (size_t e = 0; e < size * l->C; e++) sums[pass * l->C + e % l->C] += pass ? (double)z[e] * z[e] : z[e];
            positions += size;
        }
        for (int c = 0; c < l->C; c++) {
            if (!pass) mean[c] = (floatS)(sums[c] / positions);
            else std[c] = (floatS)sqrt(sums[l->C + c] / (positions > 1 ? positions - 1 : 1));
        }
    }
    for (int c = 0; c < l->C; c++) {
        if (isfinite((double)mean[c]) && std[c] > 0) continue;
        fatal("-latents %s: channel %d has mean %g and deviation %g; the shards hold no latents", l->folder, c,
              (double)mean[c], (double)std[c]);
    }
    free(sums);
    free(z);
}

// ---------------------------------------------------------------------------------------------------------------------
// Batches

// The size of the latents of step s, in all processes. `batch`: images of a step, over all of them.
static inline const aspect_bucket_t* bucket_latents_size(const bucket_latents_t* l, uint64_t seed, int batch,
                                                         uint64_t s) {
    return &l->sizes.buckets[aspect_of_step(&l->sizes, seed, batch, s).bucket];
}

// Rows [rank, rank + 1) * batch / world of the batch of step s.
static inline void bucket_latents_batch(const bucket_latents_t* l, uint64_t seed, int batch, int rank, int world,
                                        uint64_t s, const floatS* mean, const floatS* std, // (C)
                                        floatS* x,             // (batch / world, h, w, C)
                                        int64_t* caption_id) { // (batch / world)
    aspect_step_t at = aspect_of_step(&l->sizes, seed, batch, s);
    const aspect_bucket_t* b = &l->sizes.buckets[at.bucket];
    int B = batch / world;
    for (int i = 0; i < B; i++) {
        uint64_t g = at.batch * (uint64_t)batch + (uint64_t)rank * B + (uint64_t)i, n = b->count;
        size_t which = b->first + random_permute(seed, RANDOM_DATA_ORDER, g / n, g % n, n);
        bucket_latents_read(l, which, mean, std, x + (size_t)i * b->H * b->W * l->C);
        caption_id[i] = l->caption_id[which];
    }
}
