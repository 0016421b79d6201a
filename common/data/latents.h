// latents.h: latents on a disk, in LightningDiT's format (its extract_features.py and datasets/img_latent_dataset.py):
// a folder of safetensors files, each with
//
//     latents       F32 (n, C, S, S)      of the images
//     latents_flip  F32 (n, C, S, S)      of the mirrored images
//     labels        I64 (n)
//     metadata      total_size, dtype, device as LightningDiT writes them; and ours: tokenizer, the fingerprint of the
//                   one that made them, data (name of the image set), data_images (how many it has) and images (the
//                   fingerprint of which), chosen (how many of them were taken by lot, where not all), classes and
//                   class_names (a JSON array), world
//                   (processes), total (images that were to be in the shard), finite (all of its numbers have been
//                   looked at)
//
// Files are (C, S, S), the device wants (S, S, C): readers transpose one latent at a time. Files are mapped, so that
// opening costs their headers alone and the system's page cache holds what is used.
//
// Shards of images with captions differ a little (common/data/bucket_latents.h), and are written here too.
//
// Statistics: mean and unbiased standard deviation of each channel over positions and up to 10,000 images, kept in
// latents_stats.st beside the shards: a safetensors file whose suffix LightningDiT's own reader does not take up.
// Look next at common/drawing/extract.h, which writes shards, and common/data/latent_loader.h, which makes batches of
// them.
#pragma once
#include <dirent.h>

// defines: path_is_folder, dataset_join, string_list_t, string_list_add, string_list_sort
#include "common/data/dataset.h"
// defines: safetensors_t, safetensors_open_or_die
#include "common/files/safetensors.h"
// defines: st_writer_t, safetensors_writer_*
#include "common/files/safetensors_writer.h"
// defines: progress_t, progress_begin, progress_say
#include "common/program/progress.h"
// defines: random_permute
#include "common/program/rng.h"

#define LATENT_SUFFIX ".safetensors"
#define LATENT_STATS "latents_stats.st"
#define LATENT_STATS_STEP 0xFFFFFFu // of RANDOM_DATA_ORDER: an epoch that no training comes to

// ---------------------------------------------------------------------------------------------------------------------
// Writing a shard

// Which images, encoded by what: the same for all shards of a folder.
typedef struct {
    const char* tokenizer; // its fingerprint
    const char* data;      // the image set
    size_t data_images;    // images in it
    size_t chosen;         // how many of them are taken; fewer than all: by lot
    int classes, world;    // its classes; processes that share the work
    const char* class_names; // a JSON array
    const char* images;    // fingerprint of the image set
    const char* captions;  // and of its captions; NULL: images of classes
} latent_origin_t;

typedef struct {
    int capacity, n, C, h, w;
    float *latents, *flipped; // (capacity, C, h, w); flipped NULL: of images with captions
    int64_t* labels;          // (capacity) classes; numbers of images with captions
} latent_shard_t;

static inline const char* latent_shard_path(char* path, size_t size, const char* folder, int rank, int number) {
    snprintf(path, size, "%s/latents_rank%02d_shard%03d" LATENT_SUFFIX, folder, rank, number);
    return path;
}

void latent_shard_open(latent_shard_t* shard, int capacity, int C, int h, int w, int twins) {
    size_t values = (size_t)capacity * C * h * w;
    shard->capacity = capacity;
    shard->n = 0;
    shard->C = C;
    shard->h = h;
    shard->w = w;
    shard->latents = (float*)malloc_check(values * sizeof(float), "a shard of latents");
    shard->flipped = twins ? (float*)malloc_check(values * sizeof(float), "a shard of latents") : NULL;
    shard->labels = (int64_t*)malloc_check(capacity * sizeof(int64_t), "a shard's labels");
}

static inline void latent_to_file_order(float* out, const floatS* z, int C, int positions) { // (C, P) <- (P, C)
    for (int p = 0; p < positions; p++) {
        for (int c = 0; c < C; c++) out[(size_t)c * positions + p] = (float)z[(size_t)p * C + c];
    }
}

void latent_shard_add(latent_shard_t* shard,
                      const floatS* z,       // (h, w, C)
                      const floatS* flipped, // (h, w, C), where the shard has twins
                      int64_t label) {
    int positions = shard->h * shard->w;
    size_t at = (size_t)shard->n * shard->C * positions;
    assert(shard->n < shard->capacity);
    latent_to_file_order(shard->latents + at, z, shard->C, positions);
    if (shard->flipped) latent_to_file_order(shard->flipped + at, flipped, shard->C, positions);
    shard->labels[shard->n++] = label;
}

static inline void latent_number(st_writer_t* w, const char* key, size_t value) {
    char text[24];
    snprintf(text, sizeof text, "%zu", value);
    safetensors_writer_metadata(w, key, text);
}

// The metadata of a shard of n latents. `total`: images that were to be in it, the unreadable ones included.
static inline void latent_write_origin(st_writer_t* w, const latent_origin_t* origin, size_t n, size_t total) {
    latent_number(w, "total_size", n);
    safetensors_writer_metadata(w, "dtype", "torch.float32");
    safetensors_writer_metadata(w, "device", "cpu");
    safetensors_writer_metadata(w, "tokenizer", origin->tokenizer);
    safetensors_writer_metadata(w, "data", origin->data);
    latent_number(w, "data_images", origin->data_images);
    safetensors_writer_metadata(w, "images", origin->images);
    if (origin->chosen < origin->data_images) latent_number(w, "chosen", origin->chosen);
    latent_number(w, "classes", (size_t)origin->classes);
    safetensors_writer_metadata(w, "class_names", origin->class_names);
    latent_number(w, "world", (size_t)origin->world);
    latent_number(w, "total", total);
    safetensors_writer_metadata(w, "finite", "1"); // whoever encodes has looked at each latent
    if (origin->captions) safetensors_writer_metadata(w, "captions", origin->captions);
}

// Writes the file and frees the shard.
void latent_shard_write(latent_shard_t* shard, const char* path, const latent_origin_t* origin, size_t total) {
    size_t n = (size_t)shard->n, values = n * shard->C * shard->h * shard->w;
    size_t shape[4] = {n, (size_t)shard->C, (size_t)shard->h, (size_t)shard->w};
    st_writer_t w;
    safetensors_writer_init(&w);
    latent_write_origin(&w, origin, n, total);
    safetensors_writer_tensor(&w, "latents", ST_F32, 4, shape);
    if (shard->flipped) safetensors_writer_tensor(&w, "latents_flip", ST_F32, 4, shape);
    safetensors_writer_tensor(&w, shard->flipped ? "labels" : "caption_id", ST_I64, 1, shape);
    safetensors_writer_begin(&w, path);
    safetensors_writer_raw(&w, shard->latents, values * sizeof(float));
    if (shard->flipped) safetensors_writer_raw(&w, shard->flipped, values * sizeof(float));
    safetensors_writer_raw(&w, shard->labels, n * sizeof(int64_t));
    safetensors_writer_finish_or_die(&w);
    free(shard->latents);
    free(shard->flipped);
    free(shard->labels);
}

// Does the file's metadata have this value?
static inline int latent_text_is(const safetensors_t* f, const char* key, const char* wanted) {
    const char* value = safetensors_metadata(f, key);
    return value && !strcmp(value, wanted);
}
static inline int latent_number_is(const safetensors_t* f, const char* key, size_t wanted) {
    const char* value = safetensors_metadata(f, key);
    return value && strtoull(value, NULL, 10) == wanted;
}
static inline const char* latent_metadata(const safetensors_t* f, const char* key) {
    const char* value = safetensors_metadata(f, key);
    return value ? value : "?";
}

// Is this shard there, whole, and what this extraction would write, with latents of (C, h, w)? Another tokenizer's,
// image set's or split's ends the program, and other captions do: a folder is for one extraction.
int latent_shard_is_made(const char* path, size_t total, int C, int h, int w, const latent_origin_t* origin) {
    if (access(path, F_OK)) return 0;
    safetensors_t f;
    char error[1280];
    if (!safetensors_open(&f, path, error, sizeof error)) {
        warn("%s: %s; it is made again", path, error);
        return 0;
    }
    const st_tensor_t* t = safetensors_find(&f, "latents");
    int all = origin->chosen == origin->data_images && !safetensors_metadata(&f, "chosen");
    int same = latent_text_is(&f, "tokenizer", origin->tokenizer) && latent_text_is(&f, "data", origin->data) &&
               (all || latent_number_is(&f, "chosen", origin->chosen)) &&
               latent_number_is(&f, "data_images", origin->data_images) &&
               (!safetensors_metadata(&f, "images") || latent_text_is(&f, "images", origin->images)) &&
               latent_text_is(&f, "class_names", origin->class_names) &&
               latent_number_is(&f, "world", (size_t)origin->world) && latent_number_is(&f, "total", total) && t &&
               t->ndim == 4 && t->shape[1] == (size_t)C && t->shape[2] == (size_t)h && t->shape[3] == (size_t)w;
    if (!same) {
        fatal("%s is of another extraction (tokenizer %s, %s of the %s images of %s, %s processes, %s images a "
              "shard); this one is of tokenizer %s, %zu of %zu images of %s, %d processes, %zu images a shard: give "
              "another -latents folder, or empty this one", path, latent_metadata(&f, "tokenizer"),
              safetensors_metadata(&f, "chosen") ? latent_metadata(&f, "chosen") : "all",
              latent_metadata(&f, "data_images"), latent_metadata(&f, "data"), latent_metadata(&f, "world"),
              latent_metadata(&f, "total"), origin->tokenizer, origin->chosen, origin->data_images, origin->data,
              origin->world, total);
    }
    if (origin->captions && !latent_text_is(&f, "captions", origin->captions)) {
        fatal("%s is of other captions (%s) than the data set (%s); give another -latents folder, or empty this one",
              path, latent_metadata(&f, "captions"), origin->captions);
    }
    safetensors_close(&f);
    return 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading a folder

typedef struct {
    safetensors_t file;
    const st_tensor_t *latents, *flipped;
    size_t first, n; // number of its first latent in the folder; how many
} latent_file_t;

typedef struct {
    char* folder;
    latent_file_t* files;  // sorted by name
    int n_files;
    size_t count;          // latents in all
    int C, side;
    int* labels;           // [count]
    const char* tokenizer; // fingerprint of the tokenizer that made them; "" where the files do not say
    const char* class_names; // a JSON array; "" where the files do not say
} latents_t;

// What a folder's first shard tells of all.
typedef struct {
    int C, side, classes; // classes 0: it does not say
} latents_shape_t;

// Ends the program where shards say that they are of other images than those of the data set. Shards without a
// fingerprint, as others write them, do not say.
static inline void latent_files_check_images(const latent_file_t* files, int n, const dataset_t* set) {
    char images[17];
    dataset_fingerprint(images, set);
    for (int i = 0; i < n; i++) {
        const safetensors_t* f = &files[i].file;
        if (!safetensors_metadata(f, "images") || latent_text_is(f, "images", images)) continue;
        fatal("%s holds latents of other images (%s of %s) than those of -data (%zu of %s); give the data that they "
              "were made of, or make latents of these in another -latents folder", f->path,
              latent_metadata(f, "data_images"), latent_metadata(f, "data"), set->count, set->folder);
    }
}

// Says where shards are missing: those of ours tell how many images each was to have, and how many all.
static inline void latent_files_warn_of_missing(const latent_file_t* files, int n, const char* folder) {
    size_t there = 0, all = 0;
    for (int i = 0; i < n; i++) {
        const char* total = safetensors_metadata(&files[i].file, "total");
        const char* chosen = safetensors_metadata(&files[i].file, "chosen");
        if (!chosen) chosen = safetensors_metadata(&files[i].file, "data_images");
        if (!total || !chosen) return;
        there += strtoull(total, NULL, 10);
        all = strtoull(chosen, NULL, 10);
    }
    if (there >= all || log_rank) return;
    warn_once("-latents %s: shards of %zu images are there, of %zu: the others are missing; -extract 1 makes them",
              folder, there, all);
}

static inline void latents_list(const char* folder, string_list_t* names) {
    DIR* d = opendir(folder);
    if (!d) {
        fatal("-latents %s: there is no such folder; `./train_dit -extract 1` with the same -latents makes it", folder);
    }
    for (struct dirent* e = readdir(d); e; e = readdir(d)) {
        size_t length = strlen(e->d_name), suffix = strlen(LATENT_SUFFIX);
        if (e->d_name[0] == '.') continue; // what a Mac leaves beside each file is none
        if (length > suffix && !strcmp(e->d_name + length - suffix, LATENT_SUFFIX)) {
            string_list_add(names, dataset_join(folder, e->d_name));
        }
    }
    closedir(d);
    string_list_sort(names);
}

// One of the tensors with latents: it must be F32 (n, C, S, S), the same in all files.
static inline const st_tensor_t* latents_tensor(const latent_file_t* f, const char* path, const char* name, int C,
                                                int side) {
    const st_tensor_t* t = safetensors_find(&f->file, name);
    char shape[160];
    if (!t) fatal("%s: tensor %s is missing; it is no shard of latents, move it out of the folder", path, name);
    st_shape_text(t, shape, sizeof shape);
    if (t->dtype != ST_F32 || t->ndim != 4 || t->shape[2] != t->shape[3]) {
        fatal("%s: tensor %s is %s %s, wanted F32 (n, channels, side, side)", path, name,
              st_dtype_info(t->dtype).name, shape);
    }
    if (t->shape[1] != (size_t)C || t->shape[2] != (size_t)side) {
        fatal("%s: tensor %s is %s; wanted %d channels and side %d (-z_channels, -latent_side, which the tokenizer "
              "decides)", path, name, shape, C, side);
    }
    return t;
}

static inline void latents_open_labels(latents_t* l, const latent_file_t* f, const char* path, int classes) {
    const st_tensor_t* t = safetensors_find(&f->file, "labels");
    if (!t) fatal("%s: tensor labels is missing; the file is damaged", path);
    if (t->dtype != ST_I64 || t->ndim != 1 || t->numel != f->n) {
        fatal("%s: tensor labels is not I64 (%zu), one for each latent; the file is damaged", path, f->n);
    }
    l->labels = (int*)realloc(l->labels, (f->first + f->n + 1) * sizeof(int));
    if (!l->labels) fatal("no memory for %zu labels", f->first + f->n);
    for (size_t i = 0; i < f->n; i++) {
        int64_t label;
        memcpy(&label, t->data + i * sizeof label, sizeof label);
        if (label < 0 || label > 1 << 24) {
            fatal("%s: label %lld of latent %zu is no class; the file is damaged", path, (long long)label, i);
        }
        if (classes && label >= classes) {
            fatal("%s: label %lld of latent %zu is not below %d, the number of classes; give the right -classes", path,
                  (long long)label, i, classes);
        }
        l->labels[f->first + i] = (int)label;
    }
}

// Ends the program where a number of latent i is none.
static inline void latents_check_finite(const latents_t* l, const latent_file_t* f, const st_tensor_t* t, size_t i) {
    size_t positions = (size_t)l->side * l->side, values = l->C * positions, bad = values;
    const unsigned char* at = t->data + i * values * sizeof(float);
    for (size_t k = 0; k < values && bad == values; k++) {
        uint32_t bits;
        memcpy(&bits, at + k * sizeof bits, sizeof bits);
        if ((bits & 0x7F800000u) == 0x7F800000u) bad = k; // an exponent of all ones
    }
    if (bad == values) return;
    fatal("%s: the %s of image %zu (label %d) hold a NaN or an infinity, in channel %zu at position %zu; make the "
          "shard again, or take it out of the folder", f->file.path, t->name, i, l->labels[f->first + i],
          bad / positions, bad % positions);
}

// Looks at all numbers of the shards that others wrote; ours were looked at then. The processes share the shards.
static inline void latents_check(const latents_t* l) {
    progress_t progress = progress_begin("check", (double)l->count, log_rank == 0);
    for (int i = log_rank; i < l->n_files; i += log_size) {
        const latent_file_t* f = &l->files[i];
        if (latent_text_is(&f->file, "finite", "1")) continue;
        for (size_t k = 0; k < f->n; k++) {
            latents_check_finite(l, f, f->latents, k);
            latents_check_finite(l, f, f->flipped, k);
            progress_say(&progress, (double)(f->first + k + 1));
        }
    }
}

static inline void latents_open_file(latents_t* l, latent_file_t* f, const char* path, int classes) {
    safetensors_open_or_die(&f->file, path);
    if (safetensors_find(&f->file, "caption_id")) {
        fatal("%s holds latents of images with captions: give latents of classes, or with -model a text-to-image "
              "transformer", path);
    }
    f->latents = latents_tensor(f, path, "latents", l->C, l->side);
    f->flipped = latents_tensor(f, path, "latents_flip", l->C, l->side);
    f->n = f->latents->shape[0];
    f->first = l->count;
    if (f->flipped->shape[0] != f->n) {
        fatal("%s: %zu latents, but %zu of mirrored images; the file is damaged", path, f->n, f->flipped->shape[0]);
    }
    latents_open_labels(l, f, path, classes);
    const char* tokenizer = safetensors_metadata(&f->file, "tokenizer");
    const char* names = safetensors_metadata(&f->file, "class_names");
    if (!tokenizer) tokenizer = "";
    if (!names) names = "";
    if (f == l->files) l->tokenizer = tokenizer, l->class_names = names;
    if (names[0] && l->class_names[0] && strcmp(names, l->class_names)) {
        fatal("%s has other classes (metadata field \"class_names\") than %s; a folder is for the latents of one set "
              "of images", path, l->files[0].file.path);
    }
    if (strcmp(tokenizer, l->tokenizer)) {
        fatal("%s was made by tokenizer %s, %s by %s; a folder is for the latents of one", path,
              tokenizer[0] ? tokenizer : "(unknown)", l->files[0].file.path,
              l->tokenizer[0] ? l->tokenizer : "(unknown)");
    }
    l->count += f->n;
}

// Bytes of the shards that are there.
static inline size_t latents_bytes(const char* folder) {
    string_list_t names;
    struct stat file;
    size_t bytes = 0;
    memset(&names, 0, sizeof names);
    latents_list(folder, &names);
    for (size_t i = 0; i < names.count; i++) bytes += stat(names.items[i], &file) ? 0 : (size_t)file.st_size;
    string_list_free(&names);
    return bytes;
}

// Does the folder hold a shard? Looks at names only.
static inline int latents_are_there(const char* folder) {
    string_list_t names;
    memset(&names, 0, sizeof names);
    if (!path_is_folder(folder)) return 0;
    latents_list(folder, &names);
    int there = names.count > 0;
    string_list_free(&names);
    return there;
}

// The shape of the latents of a folder that has some, so that nobody has to say it.
static inline latents_shape_t latents_shape(const char* folder) {
    string_list_t names;
    latents_shape_t shape = {0, 0, 0};
    safetensors_t f;
    memset(&names, 0, sizeof names);
    latents_list(folder, &names);
    safetensors_open_or_die(&f, names.items[0]);
    const st_tensor_t* t = safetensors_find(&f, "latents");
    const char* classes = safetensors_metadata(&f, "classes");
    if (t && t->ndim == 4 && t->shape[1] <= 1024 && t->shape[2] <= 256) { // else latents_open says what is wrong
        shape.C = (int)t->shape[1];
        shape.side = (int)t->shape[2];
    }
    if (classes) shape.classes = atoi(classes);
    safetensors_close(&f);
    string_list_free(&names);
    return shape;
}

// Opens all shards of a folder. `classes`: labels must be below; 0: any.
void latents_open(latents_t* l, const char* folder, int C, int side, int classes) {
    string_list_t names;
    memset(&names, 0, sizeof names);
    memset(l, 0, sizeof *l);
    l->folder = string_copy(folder);
    l->C = C;
    l->side = side;
    latents_list(folder, &names);
    if (names.count == 0) {
        fatal("-latents %s: there is no " LATENT_SUFFIX " file in it; `./train_dit -extract 1` with the same -latents "
              "makes them", folder);
    }
    l->n_files = (int)names.count;
    l->files = (latent_file_t*)calloc_check(names.count, sizeof(latent_file_t), "the list of shards");
    for (int i = 0; i < l->n_files; i++) latents_open_file(l, &l->files[i], names.items[i], classes);
    if (l->count == 0) fatal("-latents %s: its shards are empty", folder);
    latent_files_warn_of_missing(l->files, l->n_files, folder);
    latents_check(l);
    string_list_free(&names);
}

void latents_close(latents_t* l) {
    for (int i = 0; i < l->n_files; i++) safetensors_close(&l->files[i].file);
    free(l->files);
    free(l->labels);
    free(l->folder);
    memset(l, 0, sizeof *l);
}

// The bytes of latent i, F32 (C, S, S) of any alignment.
static inline const unsigned char* latents_at(const latents_t* l, size_t i, int flip) {
    int low = 0, high = l->n_files - 1;
    while (low < high) { // the last file that begins at or before i
        int middle = (low + high + 1) / 2;
        if (l->files[middle].first <= i) low = middle;
        else high = middle - 1;
    }
    const latent_file_t* f = &l->files[low];
    const st_tensor_t* t = flip ? f->flipped : f->latents;
    return t->data + (i - f->first) * (size_t)l->C * l->side * l->side * sizeof(float);
}

// A value of a latent as training takes it.
static inline floatS latents_normalise(float value, floatS mean, floatS std) { return (value - mean) / std; }

// out = (latent i - mean) / std, in the order of the device.
static inline void latents_read(const latents_t* l, size_t i, int flip, const floatS* mean, const floatS* std,
                                floatS* out) { // (S, S, C)
    const unsigned char* at = latents_at(l, i, flip);
    size_t positions = (size_t)l->side * l->side;
    for (int c = 0; c < l->C; c++) {
        for (size_t p = 0; p < positions; p++) {
            float value;
            memcpy(&value, at + (c * positions + p) * sizeof value, sizeof value);
            out[p * l->C + c] = latents_normalise(value, mean[c], std[c]);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Statistics

static inline void latents_measure(const latents_t* l, uint64_t seed, size_t images, floatS* mean, floatS* std) {
    size_t positions = (size_t)l->side * l->side, n = images * positions;
    double* sums = (double*)calloc_check(2 * l->C, sizeof(double), "latent statistics");
    floatS* z = (floatS*)malloc_check(positions * l->C * sizeof(floatS), "a latent");
    for (int c = 0; c < l->C; c++) mean[c] = 0, std[c] = 1;
    for (int pass = 0; pass < 2; pass++) { // the mean first, so that the variance is a sum of squares near zero
        for (size_t k = 0; k < images; k++) {
            latents_read(l, random_permute(seed, RANDOM_DATA_ORDER, LATENT_STATS_STEP, k, l->count), 0, mean, std, z);
            double* sum = sums + pass * l->C;
            for (size_t i = 0; i < positions * l->C; i++) sum[i % l->C] += pass ? (double)z[i] * z[i] : z[i];
        }
        for (int c = 0; c < l->C; c++) {
            if (!pass) mean[c] = (floatS)(sums[c] / n);
            else std[c] = (floatS)sqrt(sums[l->C + c] / (n > 1 ? n - 1 : 1));
        }
    }
    for (int c = 0; c < l->C; c++) {
        if (!isfinite((double)mean[c]) || !(std[c] > 0)) {
            fatal("-latents %s: channel %d has mean %g and deviation %g; the shards hold no latents", l->folder, c,
                  (double)mean[c], (double)std[c]);
        }
    }
    free(sums);
    free(z);
}

static inline void latents_save_statistics(const latents_t* l, const char* path, uint64_t seed, size_t images,
                                           const floatS* mean, const floatS* std) {
    st_writer_t w;
    char text[32], error[1024];
    size_t shape[4] = {1, (size_t)l->C, 1, 1};
    safetensors_writer_init(&w);
    snprintf(text, sizeof text, "%zu", l->count);
    safetensors_writer_metadata(&w, "total", text);
    snprintf(text, sizeof text, "%zu", images);
    safetensors_writer_metadata(&w, "images", text);
    snprintf(text, sizeof text, "%llu", (unsigned long long)seed);
    safetensors_writer_metadata(&w, "seed", text);
    safetensors_writer_metadata(&w, "tokenizer", l->tokenizer);
    safetensors_writer_tensor(&w, "mean", ST_F32, 4, shape);
    safetensors_writer_tensor(&w, "std", ST_F32, 4, shape);
    safetensors_writer_begin(&w, path);
    safetensors_writer_data(&w, mean, l->C);
    safetensors_writer_data(&w, std, l->C);
    if (!safetensors_writer_finish(&w, error, sizeof error)) warn("%s; the statistics are not kept", error);
}

// Mean and deviation of each channel over `images` latents, chosen by the seed, or over all where there are fewer. They
// are kept in the folder and taken from there when they are of as many latents of the same tokenizer, the same seed and
// number.
void latents_statistics(const latents_t* l, uint64_t seed, int images, floatS* mean, floatS* std) { // (C) each
    size_t n = (size_t)images < l->count ? (size_t)images : l->count;
    char* path = dataset_join(l->folder, LATENT_STATS);
    char error[1280];
    safetensors_t f;
    if (!access(path, F_OK) && safetensors_open(&f, path, error, sizeof error)) {
        const char* total = safetensors_metadata(&f, "total");
        const char* used = safetensors_metadata(&f, "images");
        const char* by = safetensors_metadata(&f, "seed");
        const char* tokenizer = safetensors_metadata(&f, "tokenizer");
        const st_tensor_t *m = safetensors_find(&f, "mean"), *s = safetensors_find(&f, "std");
        int same = total && used && by && tokenizer && m && s && m->numel == (size_t)l->C &&
                   s->numel == (size_t)l->C && strtoull(total, NULL, 10) == l->count &&
                   strtoull(used, NULL, 10) == n && strtoull(by, NULL, 10) == seed &&
                   !strcmp(tokenizer, l->tokenizer);
        if (same) {
            safetensors_read(m, mean);
            safetensors_read(s, std);
            same = first_not_finite(mean, (size_t)l->C) == (size_t)l->C &&
                   first_not_finite(std, (size_t)l->C) == (size_t)l->C;
        }
        safetensors_close(&f);
        if (same) {
            free(path);
            return;
        }
    }
    latents_measure(l, seed, n, mean, std);
    if (log_rank == 0) latents_save_statistics(l, path, seed, n, mean, std); // all ranks have the same
    free(path);
}
