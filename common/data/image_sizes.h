// image_sizes.h: the size of every image of a data set, for batches of images of one size (common/data/aspect.h).
//
// Sizes come from the files' headers, a few KB of each. They are kept in a text file, FOLDER/.image_sizes or beside an
// archive ARCHIVE.sizes, so that they are read once. It is good as long as it names the same images in the same order:
//
//     aligntok image sizes 1 COUNT
//     HEIGHT WIDTH NAME
//
// An image whose header tells no size has 0 0; it is left out, counted and named. Where the file cannot be written, the
// headers are read again the next time. An image that is exchanged under its name is noticed when it is loaded.
//
//     int* sizes = image_sizes_create(&set);
//     if (!image_sizes_load(sizes, &set)) {
//         image_sizes_read(sizes, &set, 0, set.count, threads, 1);
//         image_sizes_save(sizes, &set);
//     }
// Look next at common/training/shared_sizes.h, where several processes read them together.
#pragma once
// defines: dataset_t, dataset_size
#include "common/data/dataset.h"
// defines: image_read_file, image_write_file, IMAGE_ERROR_SIZE
#include "common/data/image.h"
// defines: json_text_t, json_append, json_text_free
#include "common/program/json.h"
// defines: warn, calloc_check, malloc_check
#include "common/program/log.h"
// defines: progress_t, progress_begin, progress_say
#include "common/program/progress.h"

// (count, 2) height and width of each image, 0 where nobody knows yet; free() it.
static inline int* image_sizes_create(const dataset_t* set) {
    return (int*)calloc_check(2 * set->count, sizeof(int), "the sizes of images");
}

// The index's path, for the caller to free.
static inline char* image_sizes_path(const dataset_t* set) {
    if (!set->archive.bytes) return dataset_join(set->folder, ".image_sizes");
    size_t n = strlen(set->folder) + 7;
    char* path = (char*)malloc_check(n, "a file name");
    snprintf(path, n, "%s.sizes", set->folder);
    return path;
}

// The name of image i below the data set's folder or in its archive.
static inline const char* image_sizes_name(const dataset_t* set, size_t i) {
    return set->paths[i] + strlen(set->folder) + 1;
}

// Reads the headers of images [first, end) by so many threads. `speaks`: says how far it has come.
static inline void image_sizes_read(int* sizes, const dataset_t* set, size_t first, size_t end, int threads,
                                    int speaks) {
    progress_t progress = progress_begin("image sizes", (double)(end - first), speaks);
    size_t done = 0;
    if (threads < 1) threads = 1;
    #pragma omp parallel for schedule(dynamic, 64) num_threads(threads)
    for (size_t i = first; i < end; i++) {
        int height, width, known = dataset_size(set, i, &height, &width);
        sizes[2 * i] = known ? height : 0;
        sizes[2 * i + 1] = known ? width : 0;
        size_t by_now = __atomic_add_fetch(&done, 1, __ATOMIC_RELAXED);
        #pragma omp critical(image_sizes)
        progress_say(&progress, (double)by_now);
    }
}

static inline void image_sizes_save(const int* sizes, const dataset_t* set) {
    char error[IMAGE_ERROR_SIZE];
    json_text_t text = {NULL, 0, 0};
    if (set->kind != DATASET_FOLDER) return; // nothing was read
    char* path = image_sizes_path(set);
    json_append(&text, "aligntok image sizes 1 %zu\n", set->count);
    for (size_t i = 0; i < set->count; i++) {
        json_append(&text, "%d %d %s\n", sizes[2 * i], sizes[2 * i + 1], image_sizes_name(set, i));
    }
    if (!image_write_file(path, (const uint8_t*)text.text, text.length, error)) {
        warn("%s; the images' headers will be read again", error);
    }
    json_text_free(&text);
    free(path);
}

// Reads the index of before. 0 where there is none, or one of other images; then `sizes` hold nothing of use.
static inline int image_sizes_load(int* sizes, const dataset_t* set) {
    size_t size = 0, count = 0;
    if (set->kind != DATASET_FOLDER) return 0;
    char* path = image_sizes_path(set);
    uint8_t* bytes = image_read_file(path, &size);
    free(path);
    if (!bytes) return 0;
    char* text = (char*)malloc_check(size + 1, "the sizes of images");
    memcpy(text, bytes, size);
    text[size] = 0;
    free(bytes);
    int used = 0;
    int good = sscanf(text, "aligntok image sizes 1 %zu\n%n", &count, &used) == 1 && count == set->count && used > 0;
    const char* at = text + used;
    for (size_t i = 0; good && i < count; i++) { // a name may hold anything but its own end, so it is what is compared
        char *width, *name;
        long h = strtol(at, &width, 10), w = strtol(width, &name, 10);
        const char* want = image_sizes_name(set, i);
        size_t n = strlen(want);
        good = h >= 0 && w >= 0 && !h == !w && h <= INT16_MAX + 1 && w <= INT16_MAX + 1 && *name == ' ' &&
               !strncmp(name + 1, want, n) && name[n + 1] == '\n';
        if (!good) break;
        sizes[2 * i] = (int)h;
        sizes[2 * i + 1] = (int)w;
        at = name + n + 2;
    }
    free(text);
    return good;
}
