// crop.h: the two centre crops that tokenizers are measured with, and the resizing that they and others stand on.
//
// ADM's (Dhariwal & Nichol 2021, guided_diffusion/image_datasets.py), to the bit: LightningDiT's latents and ImageNet's
// reference statistics are made with it, and reconstruction is measured with it unless `-crop tv` asks for the other.
//
//     while the short side is at least twice the target: halve the image (box filter)
//     resize so that the short side is the target (bicubic), then cut the square out of the middle
//
// torchvision's Resize(size), CenterCrop(size) on a float tensor (LightningDiT's evaluate_tokenizer.py): bilinear with
// antialias, in one step whatever the size; the long side is rounded down, the middle half to even. It is less sharp,
// so that reconstructions come out better: VA-VAE reports 27.96 dB by that script, others 26.3 for the same file with
// ADM's crop. The result is not a byte; where bytes are wanted it is rounded, half up.
//
// ADM's resizing is Pillow's (src/libImaging/Resample.c): one axis at a time, columns first, each pass rounded to
// bytes; a pass that would not change the size is left out. Pillow 13 takes rows first where an image is tall, which
// moves bytes by some units; ADM's statistics and LightningDiT's latents are older than it.
// For n -> m samples, with s = n / m and f = max(s, 1):
//     centre of target k = (k + 1/2) s;   weight of source j = filter((j - centre + 1/2) / f), normalised to 1
// computed in double, then in integers with 22 fraction bits, so that the bytes do not depend on the compiler.
// torchvision's weights are the same with the triangle 1 - |x| as the filter. PyTorch (UpSampleKernel.cpp) has them,
// and their positions, in float, which shows in the fifth digit far from the edge; so they are float here.
// Look next at common/drawing/extract.h, a user, and at common/measures/clip_input.h, CLIP's crops.
#pragma once
#include <math.h>

// defines: image_t, image_create, image_free
#include "common/data/image.h"

typedef enum { FILTER_BOX, FILTER_TRIANGLE, FILTER_BICUBIC } filter_t;

static inline double filter_support(filter_t filter) {
    static const double supports[] = {0.5, 1, 2};
    return supports[filter];
}

static inline double filter_weight(filter_t filter, double x) {
    if (filter == FILTER_BOX) return x > -0.5 && x <= 0.5;
    const double a = -0.5;
    x = fabs(x);
    if (filter == FILTER_TRIANGLE) return x < 1 ? 1 - x : 0;
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

// Where the `size` samples from `from` on come from along an axis that PyTorch resizes from n to m samples.
typedef struct {
    int most;
    int *first, *count; // (size)
    float* weight;      // (size, most)
} float_taps_t;

static inline float_taps_t float_taps(filter_t filter, int n, int m, int from, int size) {
    float scale = (float)n / m, stretch = scale > 1 ? scale : 1, inverse = 1 / stretch;
    float support = (float)filter_support(filter) * stretch;
    float_taps_t t;
    t.most = 2 * (int)ceilf(support) + 1;
    t.first = (int*)malloc_check(2 * size * sizeof(int), "the resize table");
    t.count = t.first + size;
    t.weight = (float*)malloc_check((size_t)size * t.most * sizeof(float), "the resize table");
    for (int k = 0; k < size; k++) {
        float *w = t.weight + (size_t)k * t.most, centre = (float)(scale * (from + k + 0.5)), sum = 0;
        int low = (int)(centre - support + 0.5), high = (int)(centre + support + 0.5);
        if (low < 0) low = 0;
        if (high > n) high = n;
        t.first[k] = low;
        t.count[k] = high - low;
        for (int i = 0; i < high - low; i++) {
            sum += w[i] = (float)filter_weight(filter, (float)((low + i - centre + 0.5) * inverse));
        }
        for (int i = 0; i < high - low; i++) w[i] /= sum;
    }
    return t;
}

static inline void float_taps_free(float_taps_t* t) {
    free(t->first);
    free(t->weight);
}

// What torchvision's resize of a float tensor to height x width has in the window of h x w pixels at (top, left), in
// [0, 1] but for what a bicubic filter overshoots. Columns come first, and only those rows that the window needs.
static inline void image_resize_floats(float* out, // (h, w, 3)
                                       const image_t* in, filter_t filter, int height, int width, int top, int left,
                                       int h, int w) {
    int W = in->width;
    float_taps_t across = float_taps(filter, W, width, left, w), down = float_taps(filter, in->height, height, top, h);
    int low = down.first[0], high = down.first[h - 1] + down.count[h - 1];
    size_t row = (size_t)w * 3;
    float* wide = (float*)malloc_check((high - low) * row * sizeof(float), "a crop"); // (high - low, w, 3)
    for (int y = low; y < high; y++) {
        for (size_t k = 0; k < row; k++) {
            const float* weight = across.weight + k / 3 * across.most;
            const uint8_t* at = in->pixels + ((size_t)y * W + across.first[k / 3]) * 3 + k % 3;
            float sum = 0;
            for (int i = 0; i < across.count[k / 3]; i++) sum += weight[i] * (at[i * 3] / 255.0f);
            wide[(y - low) * row + k] = sum;
        }
    }
    for (int y = 0; y < h; y++) {
        const float *weight = down.weight + (size_t)y * down.most, *at = wide + (down.first[y] - low) * row;
        for (size_t k = 0; k < row; k++) {
            float sum = 0;
            for (int i = 0; i < down.count[y]; i++) sum += weight[i] * at[i * row + k];
            out[y * row + k] = sum;
        }
    }
    free(wide);
    float_taps_free(&across);
    float_taps_free(&down);
}

// torchvision's centre crop, in [-1, 1].
static inline void image_centre_crop_tv_floats(floatS* out, // (size, size, 3)
                                               const image_t* in, int size) {
    int H = in->height, W = in->width, side = H < W ? H : W;
    int height = (int)((int64_t)size * H / side), width = (int)((int64_t)size * W / side);
    int top = (int)nearbyint((height - size) / 2.0), left = (int)nearbyint((width - size) / 2.0); // ties to even
    size_t n = (size_t)size * size * 3;
    float* values = (float*)malloc_check(n * sizeof(float), "a crop");
    image_resize_floats(values, in, FILTER_TRIANGLE, height, width, top, left, size, size);
    for (size_t i = 0; i < n; i++) out[i] = (floatS)((values[i] - 0.5f) / 0.5f);
    free(values);
}

// The same in bytes.
static inline void image_centre_crop_tv(uint8_t* out, // (size, size, 3)
                                        const image_t* in, int size) {
    size_t n = (size_t)size * size * 3;
    floatS* values = (floatS*)malloc_check(n * sizeof(floatS), "a crop");
    image_centre_crop_tv_floats(values, in, size);
    image_bytes_from_floats(out, values, n);
    free(values);
}
