// image_source.h: a numbered set of images of one size as bytes, whatever they come from: a data set, an .npz file of
// samples, or a pipeline that draws them, of classes or of captions, when they are asked for.
//
//     image_source_dataset(&set, "fashion-mnist", SPLIT_VAL, CROP_ADM, 32);
//     int n = image_source_read(&set, &batch, first, count, stride);
//
// Images are read by number, in any order and by several processes (`stride` apart), and always have the same bytes;
// what is computed from them does not depend on batches or ranks. A damaged file is named, counted and left out.
//
// With CROP_ASPECT images keep their aspect ratio, as in training (common/data/aspect.h), and those of one size are
// read together: image_source_turn gives the set's H and W one size after the other, and which places have it.
//
// Hash. A score names its images by a 64-bit number: the sum of the FNV-1a hashes of (number, bytes) of each image, so
// that neither order nor the number of processes matters. Look next at common/measures/image_features.h, which reads
// them.
#pragma once
// defines: aspect_t, aspect_pixels
#include "common/data/aspect.h"
// defines: image_centre_crop_adm, image_centre_crop_tv
#include "common/data/crop.h"
// defines: dataset_t, dataset_open, dataset_load, dataset_label, dataset_caption
#include "common/data/dataset.h"
// defines: pipeline_t, pipeline_label, pipeline_draw, pipeline_draw_captions
#include "common/drawing/pipeline.h"
// defines: random_permute, RANDOM_DATA_ORDER
#include "common/program/rng.h"
// defines: npz_reader_t, npz_array_t, npz_*
#include "common/files/npz.h"
// defines: shared_sizes
#include "common/training/shared_sizes.h"
// defines: HASH_START, hash_bytes, hash_word
#include "common/program/hash.h"

typedef enum { CROP_ADM, CROP_TORCHVISION, CROP_ASPECT, CROP_NONE } crop_t;
typedef enum { SOURCE_DATASET, SOURCE_NPZ, SOURCE_PIPELINE } image_source_kind_t;

typedef struct {
    image_source_kind_t kind;
    char name[400];     // for people
    int H, W;           // of every image; of CROP_ASPECT, those that it has turned to
    size_t count;       // images
    aspect_t aspect;    // CROP_ASPECT: the sizes; members are the numbers of the images of each
    size_t begin, end;  // CROP_ASPECT: the members of the size that it has turned to
    size_t damaged;     // of those asked for, could not be read
    dataset_t data;     // SOURCE_DATASET; of a pipeline that draws captions, whose they are
    crop_t crop;
    int permuted;       // 1: image i is that at place i of a fixed permutation
    npz_reader_t npz;   // SOURCE_NPZ
    const npz_array_t *pixels, *labels; // arr_0 (N, H, W, 3) uint8; arr_1 (N) or NULL
    pipeline_t* pipeline; // SOURCE_PIPELINE
    int balanced;
    stream_t stream;
} image_source_t;

// What a read gives: `count` images that could be read.
typedef struct {
    int count, room;
    uint8_t* pixels; // (room, H, W, 3)
    int* labels;     // (room) -1: unknown
    size_t* numbers; // (room)
} image_batch_t;

// Pixels of the largest image.
static inline size_t image_source_pixels(const image_source_t* set) {
    return set->aspect.members ? aspect_pixels(&set->aspect) : (size_t)set->H * set->W;
}

static inline image_batch_t image_batch_create(const image_source_t* set, int room) {
    image_batch_t b;
    memset(&b, 0, sizeof b);
    b.room = room;
    b.pixels = (uint8_t*)malloc_check((size_t)room * image_source_pixels(set) * 3, "images");
    b.labels = (int*)malloc_check(room * sizeof(int), "labels");
    b.numbers = (size_t*)malloc_check(room * sizeof(size_t), "numbers");
    return b;
}

static inline void image_batch_free(image_batch_t* b) {
    free(b->pixels);
    free(b->labels);
    free(b->numbers);
    memset(b, 0, sizeof *b);
}

// A data set as common/data/dataset.h opens it, each image cut to a square of `size` pixels. Those of a folder come in
// a fixed random order.
static inline void image_source_dataset(image_source_t* set, const char* spec, int split, crop_t crop, int size) {
    memset(set, 0, sizeof *set);
    set->kind = SOURCE_DATASET;
    dataset_open(&set->data, spec, split);
    set->crop = crop;
    set->H = set->W = size;
    set->count = set->data.count;
    set->permuted = set->data.kind == DATASET_FOLDER; // its order is that of the classes, and the first are shown
    snprintf(set->name, sizeof set->name, "%.300s, %s split", spec, split == SPLIT_VAL ? "val" : "train");
}

// All images of a folder, which have one size and are taken as they are; in a fixed random order where they lie in a
// folder for each class.
static inline void image_source_images(image_source_t* set, const char* folder) {
    image_t first;
    char error[IMAGE_ERROR_SIZE];
    image_source_dataset(set, folder, SPLIT_TRAIN, CROP_NONE, 0);
    size_t i = 0; // the first that can be read gives the size of all
    while (i < set->data.count && !dataset_load(&set->data, i, &first, error)) i++;
    if (i == set->data.count) fatal("%s: none of its %zu images can be read (%s)", folder, i, error);
    set->H = first.height;
    set->W = first.width;
    image_free(&first);
    set->permuted = set->data.class_count > 1;
    snprintf(set->name, sizeof set->name, "%.380s%s", folder, set->permuted ? " (permuted)" : "");
}

// The images of a pipeline: each has its own class, drawn or in turn.
static inline void image_source_pipeline(image_source_t* set, pipeline_t* g, size_t count, int balanced, stream_t s) {
    memset(set, 0, sizeof *set);
    set->kind = SOURCE_PIPELINE;
    set->pipeline = g;
    set->balanced = balanced;
    set->stream = s;
    set->H = g->tokenizer.H;
    set->W = g->tokenizer.W;
    set->count = count;
    snprintf(set->name, sizeof set->name, "%.390s", g->path);
}

// The images of a pipeline that draws captions: one of each held-out caption of a data set, at most `count`, by lot.
static inline void image_source_captions(image_source_t* set, pipeline_t* g, const char* spec, size_t count,
                                         stream_t s) {
    image_source_pipeline(set, g, count, 0, s);
    dataset_open(&set->data, spec, SPLIT_VAL);
    if (set->data.kind != DATASET_CAPTIONS && set->data.kind != DATASET_SCENES) {
        fatal("-data %s has no captions, and %s draws them; give captions:FOLDER or scenes", spec, g->path);
    }
    set->permuted = 1;
    if (count > set->data.count) set->count = set->data.count;
    snprintf(set->name, sizeof set->name, "captions of %.300s, val split, by lot", spec);
}

// Leaves n images, if there are more: not the first ones, for folders are in the order of their classes, but the
// beginning of a fixed permutation of all.
static inline void image_source_limit(image_source_t* set, size_t n) {
    if (n == 0 || n >= set->count) return;
    size_t used = strlen(set->name);
    set->permuted |= set->kind == SOURCE_DATASET;
    snprintf(set->name + used, sizeof set->name - used, " (%zu of %zu%s)", n, set->count,
             set->permuted ? ", permuted" : "");
    set->count = n;
}

static inline size_t image_source_place(const image_source_t* set, size_t i) {
    return set->permuted ? random_permute(0, RANDOM_DATA_ORDER, 0, i, set->data.count) : i;
}

static inline int image_source_is_npz(const char* path) {
    size_t n = strlen(path);
    return n > 4 && (!strcmp(path + n - 4, ".npz") || !strcmp(path + n - 4, ".npy"));
}

// arr_0 and arr_1 of set->npz, which is open.
static inline void image_source_use_npz(image_source_t* set) {
    const npz_array_t* a = npz_need(&set->npz, "arr_0");
    if (a->dtype != ST_U8 || a->ndim != 4 || a->shape[3] != 3 || a->numel == 0) {
        fatal("%s: arr_0 is no set of images: uint8 of the shape (N, H, W, 3) is wanted", set->npz.path);
    }
    set->kind = SOURCE_NPZ;
    set->pixels = a;
    set->labels = npz_find(&set->npz, "arr_1");
    set->count = a->shape[0];
    set->H = (int)a->shape[1];
    set->W = (int)a->shape[2];
    if (set->labels && set->labels->numel != set->count) set->labels = NULL;
    snprintf(set->name, sizeof set->name, "%.390s", set->npz.path);
}

// The samples of an .npz file.
static inline void image_source_npz(image_source_t* set, const char* path) {
    memset(set, 0, sizeof *set);
    npz_open_or_die(&set->npz, path);
    image_source_use_npz(set);
}

static inline void image_source_close(image_source_t* set) {
    dataset_close(&set->data);
    aspect_close(&set->aspect);
    if (set->kind == SOURCE_NPZ) npz_close(&set->npz);
    memset(set, 0, sizeof *set);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sizes

// The images of a data set with CROP_ASPECT into sizes: set->H is their shorter side, the longer one a multiple of
// `step`, at most `ratio` times as long. Behind image_source_limit; a collective.
static inline void image_source_keep_aspect(image_source_t* set, comm_t* c, int step, double ratio) {
    int* all = shared_sizes(c, &set->data, machine_cores(c->local_size));
    int* sizes = (int*)malloc_check(2 * set->count * sizeof(int), "the sizes of images");
    for (size_t i = 0; i < set->count; i++) {
        memcpy(sizes + 2 * i, all + 2 * image_source_place(set, i), 2 * sizeof(int));
    }
    aspect_open(&set->aspect, set->H, step, ratio);
    aspect_fill(&set->aspect, sizes, set->count);
    set->damaged = set->count - set->aspect.images;
    if (!set->aspect.images) fatal("%s: none of its images has a header that can be read", set->name);
    if (set->damaged && comm_is_first(c)) {
        warn("%s: %zu images have no header that can be read; they are left out", set->name, set->damaged);
    }
    size_t used = strlen(set->name);
    snprintf(set->name + used, sizeof set->name - used, ", sides of %d to %d in steps of %d", set->aspect.side,
             set->aspect.longest, step);
    free(all);
    free(sizes);
}

static inline int image_source_sizes(const image_source_t* set) { return set->aspect.members ? set->aspect.count : 1; }

// The size of image i, which is a number and not a place.
static inline void image_source_size(const image_source_t* set, size_t i, int* H, int* W) {
    *H = set->H;
    *W = set->W;
    for (int k = 0; set->aspect.members && k < set->aspect.count; k++) {
        const aspect_bucket_t* b = &set->aspect.buckets[k];
        for (size_t m = b->first; m < b->first + b->count; m++) {
            if (set->aspect.members[m] == i) *H = b->H, *W = b->W;
        }
    }
}

// Height and width that every image fits into.
static inline void image_source_cell(const image_source_t* set, int* H, int* W) {
    *H = set->H;
    *W = set->W;
    for (int k = 0; set->aspect.members && k < set->aspect.count; k++) {
        const aspect_bucket_t* b = &set->aspect.buckets[k];
        if (b->count && b->H > *H) *H = b->H;
        if (b->count && b->W > *W) *W = b->W;
    }
}

// Turns to size k: set->H, set->W, and the places [begin, end) to be read. 0: no image has it. Of other sets all images
// have size 0.
static inline int image_source_turn(image_source_t* set, int k, size_t* begin, size_t* end) {
    *begin = 0;
    *end = set->count;
    if (!set->aspect.members) return 1;
    const aspect_bucket_t* b = &set->aspect.buckets[k];
    set->H = b->H;
    set->W = b->W;
    *begin = set->begin = b->first;
    *end = set->end = b->first + b->count;
    return b->count > 0;
}

// The number of the image at a place.
static inline size_t image_source_number(const image_source_t* set, size_t place) {
    return set->aspect.members ? set->aspect.members[place] : place;
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

// Image first + i stride into place i; ok[i] says whether it could be read.
static inline void image_source_read_dataset(const image_source_t* set, image_batch_t* b, uint8_t* ok, size_t first,
                                             int count, size_t stride) {
    size_t image = (size_t)set->H * set->W * 3;
    #pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < count; i++) {
        image_t loaded;
        char error[IMAGE_ERROR_SIZE];
        size_t place = image_source_place(set, image_source_number(set, first + i * stride));
        ok[i] = (uint8_t)dataset_load(&set->data, place, &loaded, error);
        if (!ok[i]) {
            warn("%s; it is left out", error);
            continue;
        }
        if (set->crop == CROP_NONE && (loaded.height != set->H || loaded.width != set->W)) {
            fatal("%s: image %zu is of %d x %d, the first of %d x %d; samples have one size", set->name, place,
                  loaded.width, loaded.height, set->W, set->H);
        }
        if (set->crop == CROP_NONE) memcpy(b->pixels + i * image, loaded.pixels, image);
        else if (set->crop == CROP_ASPECT) image_centre_cover(b->pixels + i * image, &loaded, set->H, set->W);
        else if (set->crop == CROP_ADM) image_centre_crop_adm(b->pixels + i * image, &loaded, set->H);
        else image_centre_crop_tv(b->pixels + i * image, &loaded, set->H);
        b->labels[i] = dataset_label(&set->data, place);
        image_free(&loaded);
    }
}

static inline void image_source_draw(const image_source_t* set, image_batch_t* b, size_t first, int count,
                                     size_t stride) {
    uint64_t* numbers = (uint64_t*)malloc_check(count * sizeof(uint64_t), "numbers");
    char** captions = (char**)calloc_check(count, sizeof *captions, "captions");
    pipeline_t* g = set->pipeline;
    for (int i = 0; i < count; i++) {
        numbers[i] = first + i * stride;
        b->labels[i] = g->is_text ? -1 : pipeline_label(g, set->balanced, g->options.seed, numbers[i]);
        if (g->is_text) captions[i] = dataset_caption(&set->data, image_source_place(set, numbers[i]));
    }
    if (g->is_text) {
        pipeline_draw_captions(g, b->pixels, numbers, (const char* const*)captions, count, set->stream);
    } else {
        pipeline_draw(g, b->pixels, numbers, b->labels, count, set->stream);
    }
    for (int i = 0; i < count; i++) free(captions[i]);
    free(captions);
    free(numbers);
}

static inline void image_source_read_npz(const image_source_t* set, image_batch_t* b, size_t first, int count,
                                         size_t stride) {
    size_t image = (size_t)set->H * set->W * 3;
    for (int i = 0; i < count; i++) {
        npz_read_rows(set->pixels, b->pixels + i * image, first + i * stride, 1);
        b->labels[i] = set->labels ? (int)npz_read_number(set->labels, first + i * stride) : -1;
    }
}

// Image i, for messages: its file, or its number.
static inline const char* image_source_image(const image_source_t* set, size_t i, char* text, size_t size) {
    if (set->kind == SOURCE_DATASET) return dataset_image_name(&set->data, image_source_place(set, i), text, size);
    snprintf(text, size, "image %zu of %s", i, set->name);
    return text;
}

// The images at places first, first + stride, ... (at most `count` of them, and none beyond the end); returns how many
// were read.
static inline int image_source_read(image_source_t* set, image_batch_t* b, size_t first, int count, size_t stride) {
    size_t image = (size_t)set->H * set->W * 3;
    size_t end = set->aspect.members ? set->end : set->count;
    assert(count <= b->room);
    while (count > 0 && first + (count - 1) * stride >= end) count--;
    uint8_t* ok = (uint8_t*)malloc_check((size_t)count, "flags");
    memset(ok, 1, (size_t)count);
    if (set->kind == SOURCE_DATASET) image_source_read_dataset(set, b, ok, first, count, stride);
    else if (set->kind == SOURCE_NPZ) image_source_read_npz(set, b, first, count, stride);
    else image_source_draw(set, b, first, count, stride);
    b->count = 0;
    for (int i = 0; i < count; i++) {
        if (!ok[i]) {
            set->damaged++;
            continue;
        }
        int to = b->count++;
        if (to != i) memcpy(b->pixels + to * image, b->pixels + i * image, image);
        b->labels[to] = b->labels[i];
        b->numbers[to] = image_source_number(set, first + i * stride);
    }
    free(ok);
    return b->count;
}

// ---------------------------------------------------------------------------------------------------------------------
// Hash

static inline uint64_t image_hash(size_t number, const uint8_t* pixels, size_t n) {
    uint64_t h = HASH_START;
    for (int i = 0; i < 8; i++) h = hash_word(h, number >> 8 * i & 255);
    return hash_bytes(h, pixels, n);
}

static inline uint64_t image_batch_hash(const image_batch_t* b, size_t image) {
    uint64_t sum = 0;
    for (int i = 0; i < b->count; i++) sum += image_hash(b->numbers[i], b->pixels + i * image, image);
    return sum;
}

// The sum over all processes, exactly: in halves, which doubles hold.
static inline uint64_t image_hash_of_all(comm_t* c, uint64_t h) {
    double halves[2] = {(double)(h & 0xFFFFFFFF), (double)(h >> 32)};
    comm_sum_host(c, halves, 2);
    return (uint64_t)halves[0] + ((uint64_t)halves[1] << 32);
}
