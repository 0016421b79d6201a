// aspect.h: images that keep their aspect ratio, in batches of one size.
//
// The shorter side becomes `side`. The longer one keeps its proportion, up to `longest`, and is cropped to a multiple
// of `step`, so that no more than step - 1 pixels are lost and nothing is distorted. With side 256, step 16 and a ratio
// of 2 there are 33 sizes: 256 x 256, ..., 256 x 512 and 512 x 256. What is longer than that loses its ends. The images
// of one size are a bucket, and the images of a step come from one bucket: networks take all of them in one pass.
//
// Which bucket. Bucket k of n_k images is an endless stream, epoch behind epoch, each in another order. Epoch e over
// all images takes from it the batches floor((e n_k + r_k) / B) up to floor(((e + 1) n_k + r_k) / B), and the batches
// of all buckets in an order by lot. So a step is a function of the seed and its number alone, found without going
// through the steps before; each image is seen as often as any other; batches run across the end of an epoch, and
// nothing is left over. The lot r_k in [0, B) gives a bucket of one image its turn in one epoch of B, whichever. A
// bucket of fewer images than a batch fills it with further epochs of itself: an image then is in that batch more than
// once, as with any data set that is smaller than a batch.
//
// With a ratio of 1 there is one bucket, of squares: then batch s is the batch of step s.
//
// Buckets of one area are another table of sizes, for what costs by the pixel (text to image). In units of `step` the
// square is n x n; the others are (n - 1) x floor(n n / (n - 1)), (n - 2) x floor(n n / (n - 2)), ..., as long as they
// keep to the ratio, and the same ones upright; from 32 units on n = 16 m, and they are those of 16, m times as large.
// With step 16 and a ratio of 2.1, 256 pixels have 11 buckets of 247 to 256 units: 16 x 16, 15 x 17, ..., 11 x 23; 512
// pixels the same ones twice as large. An image belongs to the bucket of the nearest aspect ratio, by its logarithm. It
// is resized (Pillow's bicubic filter) until it covers the bucket, and what stands out is cropped.
// Look next at common/data/image_sizes.h, which tells the images' sizes, and at common/data/dataloader.h, the user.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// defines: fatal, malloc_check, calloc_check
#include "common/program/log.h"
// defines: random_permute, random_below, RANDOM_BUCKETS
#include "common/program/rng.h"

typedef struct {
    int H, W;
    size_t first, count; // its images are members[first], ..., members[first + count - 1]
} aspect_bucket_t;

typedef struct {
    int by_area;              // 1: buckets of one area; 0: of one shorter side
    int side, step, longest;  // pixels: the shorter (square's) side; what sides are multiples of; the longest side
    int count;                // sizes
    aspect_bucket_t* buckets; // (count) the square, then wide ones, then tall ones, each from short to long; or sorted
    size_t images;            // in all buckets
    uint32_t* members;        // (images) their numbers in the data set; NULL: all of it, in its own order
    size_t cut;               // images that lose their ends, since they are longer than any bucket
} aspect_t;

// A step's batch: number `batch` of the endless stream of a bucket.
typedef struct {
    int bucket;
    uint64_t batch;
} aspect_step_t;

static inline void aspect_close(aspect_t* a) {
    free(a->buckets);
    free(a->members);
    memset(a, 0, sizeof *a);
}

// The sizes, without images. `ratio` is that of the longest to the shortest side, at least 1.
static inline void aspect_open(aspect_t* a, int side, int step, double ratio) {
    memset(a, 0, sizeof *a);
    a->side = side;
    a->step = step;
    a->longest = side + (int)((side * ratio - side) / step) * step;
    int more = (a->longest - side) / step;
    a->count = 1 + 2 * more;
    a->buckets = (aspect_bucket_t*)calloc_check((size_t)a->count, sizeof *a->buckets, "the sizes of images");
    for (int k = 0; k < a->count; k++) {
        int tall = k > more, size = side + (tall ? k - more : k) * step;
        a->buckets[k].H = tall ? size : side;
        a->buckets[k].W = tall ? side : size;
    }
}

// The sizes of about one area, side * side, without images.
static inline void aspect_open_area(aspect_t* a, int side, int step, double ratio) {
    int units = side / step, times = units > 16 && units % 16 == 0 ? units / 16 : 1, n = units / times, more = 0;
    while (more + 1 < n && n * n / (n - more - 1) <= ratio * (n - more - 1)) more++;
    memset(a, 0, sizeof *a);
    a->by_area = 1;
    a->side = side;
    a->step = step;
    a->count = 1 + 2 * more;
    a->buckets = (aspect_bucket_t*)calloc_check((size_t)a->count, sizeof *a->buckets, "the sizes of images");
    for (int k = 0; k < a->count; k++) {
        int tall = k > more, shorter = n - (tall ? k - more : k), longer = n * n / shorter;
        a->buckets[k].H = (tall ? longer : shorter) * times * step;
        a->buckets[k].W = (tall ? shorter : longer) * times * step;
    }
    a->longest = a->buckets[more].W;
}

// Squares of all images of a data set.
static inline void aspect_open_squares(aspect_t* a, int side, size_t images) {
    aspect_open(a, side, 1, 1);
    a->images = a->buckets[0].count = images;
}

// What the longer side of an image becomes with the shorter one at a->side, before it is cropped.
static inline double aspect_long_side(const aspect_t* a, int height, int width) {
    int shorter = height < width ? height : width, longer = height < width ? width : height;
    return nearbyint(longer * ((double)a->side / shorter));
}

// The bucket of the nearest aspect ratio; of several, the first.
static inline int aspect_nearest(const aspect_t* a, int height, int width) {
    int best = 0;
    double least = INFINITY;
    for (int k = 0; k < a->count; k++) {
        const aspect_bucket_t* b = &a->buckets[k];
        double distance = fabs(log((double)width * b->H / ((double)height * b->W)));
        if (distance < least) best = k, least = distance;
    }
    return best;
}

// The bucket of an image of this size; a->count where it is none of those that aspect_sort has kept.
static inline int aspect_bucket(const aspect_t* a, int height, int width) {
    if (a->by_area) return aspect_nearest(a, height, width);
    int more = (a->longest - a->side) / a->step;
    double steps = floor((aspect_long_side(a, height, width) - a->side) / a->step);
    int longer = a->side + (steps > more ? more : (int)steps) * a->step, k = 0, tall = height > width;
    while (k < a->count && (a->buckets[k].H != (tall ? longer : a->side) ||
                            a->buckets[k].W != (tall ? a->side : longer))) k++;
    return k;
}

// Is an image of this size longer than any bucket?
static inline int aspect_cuts(const aspect_t* a, int height, int width) {
    if (!a->by_area) return aspect_long_side(a, height, width) >= a->longest + a->step;
    const aspect_bucket_t* b = &a->buckets[a->count / 2]; // the widest; the tallest is the same upright
    int shorter = height < width ? height : width, longer = height < width ? width : height;
    return (int64_t)longer * b->H > (int64_t)shorter * b->W;
}

// Fills the buckets with the images of these sizes. Those without a size are in none.
static inline void aspect_fill(aspect_t* a, const int* sizes, size_t count) { // (count, 2) height, width; 0: unknown
    if (count > UINT32_MAX) fatal("%zu images are too many for batches by aspect ratio", count);
    a->images = a->cut = 0;
    for (int k = 0; k < a->count; k++) a->buckets[k].count = 0;
    for (size_t i = 0; i < count; i++) {
        int height = sizes[2 * i], width = sizes[2 * i + 1];
        if (!height) continue;
        a->buckets[aspect_bucket(a, height, width)].count++;
        a->cut += aspect_cuts(a, height, width);
        a->images++;
    }
    a->members = (uint32_t*)malloc_check(a->images * sizeof(uint32_t), "the images of each size");
    size_t at = 0;
    for (int k = 0; k < a->count; k++) {
        a->buckets[k].first = at;
        at += a->buckets[k].count;
        a->buckets[k].count = 0;
    }
    for (size_t i = 0; i < count; i++) {
        if (!sizes[2 * i]) continue;
        aspect_bucket_t* b = &a->buckets[aspect_bucket(a, sizes[2 * i], sizes[2 * i + 1])];
        a->members[b->first + b->count++] = (uint32_t)i;
    }
}

static inline int aspect_compare(const void* a, const void* b) {
    const aspect_bucket_t *x = (const aspect_bucket_t*)a, *y = (const aspect_bucket_t*)b;
    return x->H != y->H ? (x->H > y->H) - (x->H < y->H) : (x->W > y->W) - (x->W < y->W);
}

// Leaves out the sizes that no image has, and puts the others in the order of their height, then of their width: that
// of the files of latents, whose batches then come in the same order as those of the images.
static inline void aspect_sort(aspect_t* a) {
    int n = 0;
    for (int k = 0; k < a->count; k++) {
        if (a->buckets[k].count) a->buckets[n++] = a->buckets[k];
    }
    a->count = n;
    qsort(a->buckets, (size_t)n, sizeof *a->buckets, aspect_compare);
}

// Member i of all buckets: a number in the data set.
static inline size_t aspect_member(const aspect_t* a, size_t i) { return a->members ? a->members[i] : i; }

// Pixels of the largest size.
static inline size_t aspect_pixels(const aspect_t* a) { return (size_t)a->side * (a->by_area ? a->side : a->longest); }

// The bucket of the most pixels (of latents: positions), and how many they are.
static inline const aspect_bucket_t* aspect_largest(const aspect_t* a) {
    const aspect_bucket_t* most = a->buckets;
    for (int k = 1; k < a->count; k++) {
        const aspect_bucket_t* b = &a->buckets[k];
        if ((size_t)b->H * b->W > (size_t)most->H * most->W) most = b;
    }
    return most;
}
static inline size_t aspect_most_positions(const aspect_t* a) {
    const aspect_bucket_t* b = aspect_largest(a);
    return (size_t)b->H * b->W;
}

// ---------------------------------------------------------------------------------------------------------------------
// The order of batches

// Batches of bucket k before epoch e.
static inline uint64_t aspect_batches_before(const aspect_t* a, int k, uint64_t seed, int batch, uint64_t e) {
    const uint64_t lots = (uint64_t)1 << 55; // no epoch, so that these lots are not those of an epoch's order
    uint64_t lot = a->count > 1 ? random_below(seed, RANDOM_BUCKETS, lots, (uint64_t)k, (uint32_t)batch) : 0;
    return (e * a->buckets[k].count + lot) / (uint64_t)batch;
}

static inline uint64_t aspect_steps_before(const aspect_t* a, uint64_t seed, int batch, uint64_t e) {
    uint64_t steps = 0;
    for (int k = 0; k < a->count; k++) steps += aspect_batches_before(a, k, seed, batch, e);
    return steps;
}

// The batch of step s, of `batch` images over all processes.
static inline aspect_step_t aspect_of_step(const aspect_t* a, uint64_t seed, int batch, uint64_t s) {
    aspect_step_t at = {0, s};
    if (a->count == 1) return at;
    uint64_t e = 0, end = 1; // the epoch e that has step s: the last one with no more than s steps before it
    while (aspect_steps_before(a, seed, batch, end) <= s) end *= 2;
    while (end - e > 1) {
        uint64_t middle = e + (end - e) / 2;
        if (aspect_steps_before(a, seed, batch, middle) <= s) e = middle;
        else end = middle;
    }
    uint64_t before = aspect_steps_before(a, seed, batch, e), n = aspect_steps_before(a, seed, batch, e + 1) - before;
    uint64_t place = random_permute(seed, RANDOM_BUCKETS, e, s - before, n);
    for (int k = 0; k < a->count; k++) {
        uint64_t first = aspect_batches_before(a, k, seed, batch, e);
        uint64_t batches = aspect_batches_before(a, k, seed, batch, e + 1) - first;
        at.bucket = k;
        at.batch = first + place;
        if (place < batches) break;
        place -= batches;
    }
    return at;
}
