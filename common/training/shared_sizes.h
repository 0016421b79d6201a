// shared_sizes.h: the sizes of a data set's images, read by all processes together: each reads the headers of its
// share, and all know the same sizes, whatever each of them could read. The first one reads and writes the index. Look
// next at common/data/image_sizes.h and common/data/aspect.h.
#pragma once
// defines: aspect_t, aspect_fill
#include "common/data/aspect.h"
// defines: image_sizes_create, image_sizes_load, image_sizes_read, image_sizes_save
#include "common/data/image_sizes.h"
// defines: comm_t, comm_is_first, comm_sum_host, comm_sum_floats_host
#include "common/training/comm.h"

// All processes get the sums of their sizes, of which each has its share and zeros elsewhere.
static inline void shared_sizes_add_up(comm_t* c, int* sizes, size_t n) { // (n)
    if (c->size == 1) return;
    floatS* values = (floatS*)malloc_check(n * sizeof(floatS), "the sizes of images");
    for (size_t i = 0; i < n; i++) values[i] = (floatS)sizes[i];
    comm_sum_floats_host(c, values, n);
    for (size_t i = 0; i < n; i++) sizes[i] = (int)values[i];
    free(values);
}

// Height and width of each image (count, 2), the same in all processes; free() it. A collective.
static inline int* shared_sizes(comm_t* c, const dataset_t* set, int threads) {
    int* sizes = image_sizes_create(set);
    double known = comm_is_first(c) && image_sizes_load(sizes, set);
    comm_sum_host(c, &known, 1);
    if (known == 0) {
        memset(sizes, 0, 2 * set->count * sizeof(int));
        size_t share = (set->count + c->size - 1) / c->size, first = share * c->rank, end = first + share;
        if (first > set->count) first = set->count;
        if (end > set->count) end = set->count;
        image_sizes_read(sizes, set, first, end, threads, comm_is_first(c));
        comm_wait_for_all(c);
    }
    shared_sizes_add_up(c, sizes, 2 * set->count);
    if (known == 0 && comm_is_first(c)) image_sizes_save(sizes, set);
    return sizes;
}

// Sorts the images of a data set into the sizes of `aspect`, and says what is left out. A collective.
static inline void shared_sizes_fill(comm_t* c, aspect_t* aspect, const dataset_t* set, int threads) {
    char name[1200];
    int* sizes = shared_sizes(c, set, threads);
    aspect_fill(aspect, sizes, set->count);
    size_t unknown = set->count - aspect->images, i = 0;
    while (i < set->count && sizes[2 * i]) i++;
    free(sizes);
    if (!unknown) return;
    dataset_image_name(set, i, name, sizeof name);
    if (!aspect->images) {
        fatal("%zu images in a row cannot be read in %s (the first is %s); check the data", unknown, set->folder, name);
    }
    if (!comm_is_first(c)) return;
    warn_once("%zu files have no header that tells an image's size and are left out; the first is %s", unknown, name);
}
