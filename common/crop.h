// crop.h: the centre crop of ADM (Dhariwal & Nichol 2021, guided_diffusion/image_datasets.py), which LightningDiT's
// latents and ImageNet's reference statistics are made with, to the bit.
//
//     while the short side is at least twice the target: halve the image (box filter)
//     resize so that the short side is the target (bicubic), then cut the square out of the middle
//
// Resizing is Pillow's (src/libImaging/Resample.c): one axis at a time, columns first, each pass rounded to bytes; a
// pass that would not change the size is left out. Pillow 13 takes rows first where an image is tall, which moves bytes
// by some units; ADM's statistics and LightningDiT's latents are older than it.
// For n -> m samples, with s = n / m and f = max(s, 1):
//     centre of target k = (k + 1/2) s;   weight of source j = filter((j - centre + 1/2) / f), normalised to 1
// computed in double, then in integers with 22 fraction bits, so that the bytes do not depend on the compiler.
// Look next at common/extract.h, its user.
#pragma once
#include <math.h>

// defines: image_t, image_create, image_free
#include "common/image.h"

typedef enum { FILTER_BOX, FILTER_BICUBIC } filter_t;

static inline double filter_support(filter_t filter) { return filter == FILTER_BOX ? 0.5 : 2; }

static inline double filter_weight(filter_t filter, double x) {
    if (filter == FILTER_BOX) return x > -0.5 && x <= 0.5;
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return a * (((x - 5) * x + 8) * x - 4);
    return 0;
}

// Where the samples of one axis come from: target k is the sum over i < count[k] of source first[k] + i times
// weight[k * most + i] / 2^22.
typedef struct {
    int most;
    int *first, *count; // (m)
    int* weight;        // (m, most)
} filter_taps_t;

static inline filter_taps_t filter_taps(filter_t filter, int n, int m) {
    double scale = (double)n / m, stretch = scale > 1 ? scale : 1, support = filter_support(filter) * stretch;
    filter_taps_t t;
    t.most = 2 * (int)ceil(support) + 1;
    t.first = (int*)malloc_check(2 * m * sizeof(int), "the resize table");
    t.count = t.first + m;
    t.weight = (int*)malloc_check((size_t)m * t.most * sizeof(int), "the resize table");
    double* w = (double*)malloc_check(t.most * sizeof(double), "the resize table");
    for (int k = 0; k < m; k++) {
        double centre = (k + 0.5) * scale, sum = 0;
        int low = (int)(centre - support + 0.5), high = (int)(centre + support + 0.5);
        if (low < 0) low = 0;
        if (high > n) high = n;
        t.first[k] = low;
        t.count[k] = high - low;
        for (int i = 0; i < high - low; i++) {
            w[i] = filter_weight(filter, (low + i - centre + 0.5) / stretch);
            sum += w[i];
        }
        for (int i = 0; i < high - low; i++) {
            double fixed = w[i] / sum * (1 << 22);
            t.weight[(size_t)k * t.most + i] = (int)(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
        }
    }
    free(w);
    return t;
}

static inline void filter_taps_free(filter_taps_t* t) {
    free(t->first);
    free(t->weight);
}

// Resizes one axis: `lines` lines of samples that lie `step` bytes apart, from `in` to `out`; a line begins in_line (or
// out_line) bytes behind the one before.
static inline void filter_axis(uint8_t* out, const uint8_t* in, const filter_taps_t* t, int m, int lines, size_t step,
                               size_t out_step, size_t in_line, size_t out_line) {
    for (int line = 0; line < lines; line++) {
        for (int k = 0; k < m; k++) {
            const int* weight = t->weight + (size_t)k * t->most;
            for (int c = 0; c < 3; c++) {
                const uint8_t* at = in + line * in_line + t->first[k] * step + c;
                int sum = 1 << 21;
                for (int i = 0; i < t->count[k]; i++) sum += weight[i] * at[i * step];
                int value = sum >> 22;
                out[line * out_line + k * out_step + c] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
            }
        }
    }
}

// A new image of the given size. The old one stays.
static inline image_t image_resize_filtered(const image_t* in, int height, int width, filter_t filter) {
    image_t wide = image_create(in->height, width), out = image_create(height, width);
    size_t in_row = (size_t)in->width * 3, row = (size_t)width * 3;
    filter_taps_t across = filter_taps(filter, in->width, width), down = filter_taps(filter, in->height, height);
    if (width == in->width) memcpy(wide.pixels, in->pixels, in->height * row);
    else filter_axis(wide.pixels, in->pixels, &across, width, in->height, 3, 3, in_row, row);
    if (height == in->height) memcpy(out.pixels, wide.pixels, height * row);
    else filter_axis(out.pixels, wide.pixels, &down, height, width, row, row, 3, 3);
    filter_taps_free(&across);
    filter_taps_free(&down);
    image_free(&wide);
    return out;
}

// ADM's centre crop of `size` x `size` pixels.
static inline void image_centre_crop_adm(uint8_t* out, // (size, size, 3)
                                         const image_t* in, int size) {
    image_t image = image_create(in->height, in->width);
    memcpy(image.pixels, in->pixels, (size_t)in->height * in->width * 3);
    while ((image.height < image.width ? image.height : image.width) >= 2 * size) {
        image_t half = image_resize_filtered(&image, image.height / 2, image.width / 2, FILTER_BOX);
        image_free(&image);
        image = half;
    }
    double scale = (double)size / (image.height < image.width ? image.height : image.width);
    int height = (int)nearbyint(image.height * scale), width = (int)nearbyint(image.width * scale); // ties to even
    image_t fit = image_resize_filtered(&image, height, width, FILTER_BICUBIC);
    int top = (height - size) / 2, left = (width - size) / 2;
    for (int y = 0; y < size; y++) {
        memcpy(out + (size_t)y * size * 3, fit.pixels + ((size_t)(top + y) * width + left) * 3, (size_t)size * 3);
    }
    image_free(&image);
    image_free(&fit);
}
