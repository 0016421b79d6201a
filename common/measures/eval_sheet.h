// eval_sheet.h: a picture of the images that a tokenizer reconstructs worst, middling and best.
//
//     columns: the worst, those nearest the median, the best; each group from worse to better
//     rows:    original, reconstruction, 128 + SHEET_GAIN (reconstruction - original) in each channel
//
// Which images those are is known only at the end, and then their pixels should not have to be made again. So while the
// images pass by, pixels are kept of the `columns` worst and best so far, and of SHEET_SAMPLE images by lot, among
// which those nearest the median of all are found: they lie within some percent of it, and the picture says where.
// The lot is a hash of the image's index, and the sample the smallest ones. So the picture does not depend on the order
// of the images, nor on batches or processes. Look next at common/data/image.h, which writes it.
//
//     eval_sheet_open(&sheet, 4, H, W, 1);
//     for each image:  eval_sheet_offer(&sheet, index, score, original, reconstruction);
//     eval_sheet_merge(&sheet, &comm);          several processes: each has offered its own images
//     eval_sheet_write(&sheet, path, "PSNR in dB", scores, n, error);
//     eval_sheet_close(&sheet);
#pragma once
// defines: image_t, image_grid, image_write_png, image_text_t
#include "common/data/image.h"
// defines: json_text_t, json_append, json_text_free
#include "common/program/json.h"
// defines: philox, RANDOM_SHEET
#include "common/program/rng.h"
// defines: comm_t, comm_sum_host, comm_sum_floats_host
#include "common/training/comm.h"

enum { SHEET_SAMPLE = 64, SHEET_GAIN = 4 };

typedef struct {
    double key;      // the smallest keys stay
    double goodness; // score, or minus score
    size_t index;
    uint8_t* pixels; // (2, H, W, 3) original, reconstruction
} sheet_image_t;

typedef struct {
    int n, room;
    sheet_image_t* images; // (room), the first n in use
} sheet_keep_t;

typedef struct {
    int columns, height, width, higher_is_better;
    sheet_keep_t worst, best, sample;
} eval_sheet_t;

static inline sheet_keep_t sheet_keep_create(int room, size_t pixels) {
    sheet_keep_t k = {0, room, (sheet_image_t*)calloc_check(room, sizeof(sheet_image_t), "the sheet of images")};
    for (int i = 0; i < room; i++) {
        k.images[i].pixels = (uint8_t*)malloc_check(2 * pixels, "the sheet of images");
    }
    return k;
}

static inline void sheet_keep_free(sheet_keep_t* k) {
    for (int i = 0; i < k->room; i++) free(k->images[i].pixels);
    free(k->images);
}

// `columns` images in each group.
static inline void eval_sheet_open(eval_sheet_t* sheet, int columns, int height, int width, int higher_is_better) {
    size_t pixels = (size_t)height * width * 3;
    if (columns < 1) fatal("a sheet of %d columns for each group; choose 1 or more", columns);
    sheet->columns = columns;
    sheet->height = height;
    sheet->width = width;
    sheet->higher_is_better = higher_is_better;
    sheet->worst = sheet_keep_create(columns, pixels);
    sheet->best = sheet_keep_create(columns, pixels);
    sheet->sample = sheet_keep_create(columns > SHEET_SAMPLE ? columns : SHEET_SAMPLE, pixels);
}

static inline void eval_sheet_close(eval_sheet_t* sheet) {
    sheet_keep_free(&sheet->worst);
    sheet_keep_free(&sheet->best);
    sheet_keep_free(&sheet->sample);
}

// A score that is not a number is the worst.
static inline double sheet_goodness(const eval_sheet_t* sheet, double score) {
    return isnan(score) ? -INFINITY : sheet->higher_is_better ? score : -score;
}

static inline int sheet_comes_before(double key, size_t index, const sheet_image_t* other) {
    return key < other->key || (key == other->key && index < other->index);
}

static inline void sheet_keep(sheet_keep_t* k, double key, double goodness, size_t index, const uint8_t* original,
                              const uint8_t* reconstruction, size_t pixels) {
    sheet_image_t* place = &k->images[0];
    if (k->n < k->room) {
        place = &k->images[k->n++];
    } else {
        for (int i = 1; i < k->room; i++) {
            if (sheet_comes_before(place->key, place->index, &k->images[i])) place = &k->images[i];
        }
        if (!sheet_comes_before(key, index, place)) return;
    }
    place->key = key;
    place->goodness = goodness;
    place->index = index;
    memcpy(place->pixels, original, pixels);
    memcpy(place->pixels + pixels, reconstruction, pixels);
}

// Each image once.
static inline void eval_sheet_offer(eval_sheet_t* sheet, size_t index, double score,
                                    const uint8_t* original, const uint8_t* reconstruction) { // (H, W, 3)
    size_t pixels = (size_t)sheet->height * sheet->width * 3;
    double goodness = sheet_goodness(sheet, score);
    philox4_t lot = philox(0, RANDOM_SHEET, 0, index);
    sheet_keep(&sheet->worst, goodness, goodness, index, original, reconstruction, pixels);
    sheet_keep(&sheet->best, -goodness, goodness, index, original, reconstruction, pixels);
    sheet_keep(&sheet->sample, lot.v[0] * 0x1p32 + lot.v[1], goodness, index, original, reconstruction, pixels);
}

static inline int sheet_by_key(const void* a, const void* b) {
    const sheet_image_t *x = (const sheet_image_t*)a, *y = (const sheet_image_t*)b;
    return x->key != y->key ? (x->key < y->key ? -1 : 1) : x->index < y->index ? -1 : x->index > y->index;
}

// Bytes that one process has, and all others as zeros, go to all.
static inline void sheet_share(comm_t* c, uint8_t* bytes, size_t n) { // (n)
    floatS* values = (floatS*)malloc_check(n * sizeof(floatS), "a picture");
    for (size_t i = 0; i < n; i++) values[i] = bytes[i];
    comm_sum_floats_host(c, values, n);
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)values[i];
    free(values);
}

// Of what all processes have kept, the smallest keys stay, everywhere.
static inline void sheet_keep_merge(sheet_keep_t* k, comm_t* c, size_t pixels) {
    int all = c->size * k->room, own = c->rank * k->room, n = 0;
    double* table = (double*)calloc_check(4 * all, sizeof(double), "the sheet of images"); // (all, 4), the last: in use
    sheet_image_t* images = (sheet_image_t*)calloc_check(all, sizeof *images, "the sheet of images");
    for (int i = 0; i < k->n; i++) {
        double* row = table + 4 * (own + i);
        row[0] = k->images[i].key, row[1] = k->images[i].goodness, row[2] = (double)k->images[i].index, row[3] = 1;
    }
    comm_sum_host(c, table, 4 * all);
    for (int i = 0; i < all; i++) {
        const double* row = table + 4 * i;
        if (row[3] == 0) continue;
        images[n].key = row[0], images[n].goodness = row[1], images[n].index = (size_t)row[2];
        images[n++].pixels = i >= own && i < own + k->room ? k->images[i - own].pixels : NULL;
    }
    qsort(images, n, sizeof *images, sheet_by_key);
    sheet_keep_t merged = sheet_keep_create(k->room, pixels);
    for (merged.n = 0; merged.n < n && merged.n < k->room; merged.n++) {
        sheet_image_t* to = &merged.images[merged.n];
        uint8_t* bytes = to->pixels;
        *to = images[merged.n];
        if (to->pixels) memcpy(bytes, to->pixels, 2 * pixels);
        else memset(bytes, 0, 2 * pixels);
        sheet_share(c, bytes, 2 * pixels);
        to->pixels = bytes;
    }
    sheet_keep_free(k);
    *k = merged;
    free(images);
    free(table);
}

// All processes get what one would have that had been offered all images. A collective.
static inline void eval_sheet_merge(eval_sheet_t* sheet, comm_t* c) {
    size_t pixels = (size_t)sheet->height * sheet->width * 3;
    if (c->size == 1) return;
    sheet_keep_merge(&sheet->worst, c, pixels);
    sheet_keep_merge(&sheet->best, c, pixels);
    sheet_keep_merge(&sheet->sample, c, pixels);
}

// The part of all images that are worse; of those as good, half.
static inline double sheet_quantile(const eval_sheet_t* sheet, double goodness, const double* scores, size_t n) {
    double below = 0;
    for (size_t i = 0; i < n; i++) {
        double g = sheet_goodness(sheet, scores[i]);
        below += g < goodness ? 1 : g == goodness ? 0.5 : 0;
    }
    return below / (double)n;
}

static inline int sheet_by_goodness(const void* a, const void* b) {
    const sheet_image_t *x = (const sheet_image_t*)a, *y = (const sheet_image_t*)b;
    return x->goodness != y->goodness ? (x->goodness < y->goodness ? -1 : 1) : x->index < y->index ? -1 : 1;
}

// The `columns` images of smallest key among n, from worse to better. Reorders them.
static inline void sheet_choose(sheet_image_t* out, sheet_image_t* images, int n, int columns) { // (columns), (n)
    qsort(images, n, sizeof *images, sheet_by_key);
    memcpy(out, images, columns * sizeof *out);
    qsort(out, columns, sizeof *out, sheet_by_goodness);
}

// Those of the sample that lie nearest the median of all.
static inline void sheet_choose_median(sheet_image_t* out, const eval_sheet_t* sheet, const double* scores, size_t n,
                                       int columns) { // (columns)
    int count = sheet->sample.n;
    sheet_image_t* images = (sheet_image_t*)malloc_check(count * sizeof *images, "the sheet of images");
    memcpy(images, sheet->sample.images, count * sizeof *images);
    for (int i = 0; i < count; i++) {
        images[i].key = fabs(sheet_quantile(sheet, images[i].goodness, scores, n) - 0.5);
    }
    sheet_choose(out, images, count, columns);
    free(images);
}

// Column i of 3 rows of `columns` cells.
static inline void sheet_column(uint8_t* cells, const sheet_image_t* image, int i, int columns, size_t pixels) {
    const uint8_t *original = image->pixels, *reconstruction = image->pixels + pixels;
    uint8_t* difference = cells + (2 * columns + i) * pixels;
    memcpy(cells + i * pixels, original, pixels);
    memcpy(cells + (columns + i) * pixels, reconstruction, pixels);
    for (size_t k = 0; k < pixels; k++) {
        int value = 128 + SHEET_GAIN * (reconstruction[k] - original[k]);
        difference[k] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
    }
}

// Draws what was kept of n images (fewer columns where n is small) into a PNG, whose text tells index, score and
// quantile of each column. `scores` are those of all images, in any order. Returns 1; or 0 with a sentence in `error`.
static inline int eval_sheet_write(eval_sheet_t* sheet, const char* path, const char* score_name,
                                   const double* scores, size_t n, // (n)
                                   char* error) {
    size_t pixels = (size_t)sheet->height * sheet->width * 3;
    int kept = sheet->worst.n, group = (size_t)kept <= n / 3 ? kept : n < 3 ? 1 : (int)(n / 3);
    int columns = 3 * group;
    if (kept < 1 || n < 1) fatal("a sheet of no images; offer some first");
    sheet_image_t* chosen = (sheet_image_t*)malloc_check(columns * sizeof *chosen, "the sheet of images");
    uint8_t* cells = (uint8_t*)malloc_check(3 * columns * pixels, "the sheet of images"); // (3, columns, H, W, 3)
    json_text_t list = {NULL, 0, 0}, title = {NULL, 0, 0};
    sheet_choose(chosen, sheet->worst.images, kept, group);
    sheet_choose_median(chosen + group, sheet, scores, n, group);
    sheet_choose(chosen + 2 * group, sheet->best.images, kept, group);
    for (int i = 0; i < columns; i++) {
        sheet_column(cells, &chosen[i], i, columns, pixels);
        json_append(&list, "%s%zu: %.6g (%.1f%%)", i ? ", " : "", chosen[i].index,
                    sheet->higher_is_better ? chosen[i].goodness : -chosen[i].goodness,
                    100 * sheet_quantile(sheet, chosen[i].goodness, scores, n));
    }
    json_append(&title, "%d worst, %d near the median, %d best of %zu images; index: %s (part that is worse)", group,
                group, group, n, score_name);
    image_t grid = image_grid(cells, 3, columns, sheet->height, sheet->width, sheet->height < 100 ? 3 : 1);
    image_text_t texts[3] = {{"Rows", "original, reconstruction, 128 + 4 (reconstruction - original)"},
                             {"Columns", title.text},
                             {"Images", list.text}};
    int written = image_write_png(path, &grid, texts, 3, error);
    image_free(&grid);
    json_text_free(&list);
    json_text_free(&title);
    free(cells);
    free(chosen);
    return written;
}
