// eval_image.h: `./eval -recon -image PHOTO.jpg`: one image of any size and shape, whole, and beside it what each
// tokenizer makes of it.
//
// Networks take multiples of the down-sampling factor. So the image is continued to the right and below by its mirror
// image, and what comes out is cut back: the picture, and PSNR, SSIM and LPIPS, are of the image's own pixels. -side
// resizes it first, bicubic with antialias: that of the training is what a tokenizer knows best, and attention over all
// positions makes the cost of a large image grow with the square of its pixels.
// Look next at common/measures/reconstruction_measures.h for the measures, and eval_recon.h for those of a data set.
#pragma once
// defines: image_resize_filtered, FILTER_BICUBIC
#include "common/data/crop.h"
// defines: image_t, image_load, image_create, image_grid, image_write_png, cover_size
#include "common/data/image.h"
// defines: autoencoder_t, autoencoder_open, autoencoder_plan_size, autoencoder_place, autoencoder_sample, autoencoder_decode
#include "common/drawing/autoencoder.h"
// defines: eval_t
#include "common/measures/eval_options.h"
// defines: json_text_t, json_append, json_text_free
#include "common/program/json.h"
// defines: psnr_bytes, l1_bytes, ssim, SSIM_REACH, perceptual_t, perceptual_resize, perceptual_distance
#include "common/measures/reconstruction_measures.h"

// The image to be looked at, in the size that is wanted.
static inline image_t eval_image_load(const eval_options_t* o) {
    char error[IMAGE_ERROR_SIZE];
    image_t image;
    if (!image_load(&image, o->image, error)) fatal("-image: %s", error);
    if (!o->side) return image;
    int height, width;
    cover_size(image.height, image.width, o->side, o->side, &height, &width);
    image_t resized = image_resize_filtered(&image, height, width, FILTER_BICUBIC);
    image_free(&image);
    return resized;
}

// Where sample i comes from when an axis of n goes on as its mirror image, again and again.
static inline int eval_image_mirror(int i, int n) {
    i %= 2 * n;
    return i < n ? i : 2 * n - 1 - i;
}

// The image continued to H x W.
static inline image_t eval_image_pad(const image_t* in, int H, int W) {
    image_t out = image_create(H, W);
    for (int y = 0; y < H; y++) {
        const uint8_t* from = in->pixels + (size_t)eval_image_mirror(y, in->height) * in->width * 3;
        for (int x = 0; x < W; x++) {
            memcpy(out.pixels + ((size_t)y * W + x) * 3, from + (size_t)eval_image_mirror(x, in->width) * 3, 3);
        }
    }
    return out;
}

// Ends the program where an image takes more memory than is left, before anything is computed.
static inline void eval_image_check_memory(const eval_options_t* o, const image_t* image, size_t bytes) {
    size_t left = device_memory_left();
    int side = image->height < image->width ? image->height : image->width;
    if (bytes <= left) return;
    fatal("-image %s: %d x %d pixels take %.1f GiB, and %.1f are left; resize it first, for example with -side %d",
          o->image, image->width, image->height, bytes / 1073741824.0, left / 1073741824.0,
          (int)(0.8 * side * sqrt((double)left / bytes)));
}

// The reconstruction's values (height, width, 3) in about [-1, 1], on the host; free() it.
static inline floatS* eval_image_values(eval_t* e, autoencoder_t* a, const image_t* image) {
    int factor = autoencoder_factor(a), H = (image->height + factor - 1) / factor * factor;
    int W = (image->width + factor - 1) / factor * factor;
    size_t n = (size_t)H * W * 3, row = (size_t)image->width * 3;
    uint64_t number = 0;
    image_t padded = eval_image_pad(image, H, W);
    eval_image_check_memory(&e->options, image, autoencoder_plan_size(a, H, W));
    autoencoder_place(a);
    const floatX* z = autoencoder_sample(a, padded.pixels, 1, e->options.seed, 0, &number, e->stream);
    const floatX* made = autoencoder_decode(a, z, 1, e->stream);
    floatS* values = (floatS*)malloc_check(n * sizeof(floatS), "a reconstruction");
    stream_wait(e->stream);
    copy_floats_to_host(values, made, n);
    if (first_not_finite(values, n) < n) autoencoder_not_finite(a, "reconstruction", e->options.image);
    for (int y = 0; y < image->height; y++) memmove(values + y * row, values + (size_t)y * W * 3, row * sizeof(floatS));
    image_free(&padded);
    return values;
}

// LPIPS of two images on the host, or -1 where they are too small for the network.
static inline double eval_image_lpips(eval_t* e, perceptual_t* lpips, const image_t* image,
                                      const floatS* a, const floatS* b) { // (height, width, 3)
    int least = 1 << (lpips->lpips.config.slices - 1);
    size_t n = (size_t)image->height * image->width * 3;
    double distance;
    if (image->height < least || image->width < least) return -1;
    perceptual_resize(lpips, image->height, image->width);
    floatX* device = (floatX*)device_malloc(2 * n * sizeof(floatX), "images");
    copy_floats_to_device(device, a, n);
    copy_floats_to_device(device + n, b, n);
    perceptual_distance(lpips, &distance, device, device + n, 1, e->stream);
    device_free(device);
    return distance;
}

// The scores of one tokenizer; `made` receives its reconstruction (height, width, 3).
static inline void eval_image_measure(eval_t* e, const char* path, autoencoder_t* a, perceptual_t* lpips,
                                      const image_t* image, uint8_t* made) {
    const eval_options_t* o = &e->options;
    size_t n = (size_t)image->height * image->width * 3;
    result_t* result = report_begin(&e->report, "image", "tokenizer", path);
    floatS* original = (floatS*)malloc_check(n * sizeof(floatS), "an image");
    floatS* values = eval_image_values(e, a, image);
    for (size_t i = 0; i < n; i++) original[i] = (floatS)(image->pixels[i] / 127.5 - 1);
    image_bytes_from_floats(made, values, n);
    report_score(result, "PSNR", "%.2f", psnr_bytes(made, image->pixels, n));
    if (image->height > SSIM_REACH && image->width > SSIM_REACH) {
        report_score(result, "SSIM", "%.4f", ssim(values, original, image->height, image->width));
    }
    double distance = lpips ? eval_image_lpips(e, lpips, image, values, original) : -1;
    if (distance >= 0) report_score(result, perceptual_name(lpips), "%.4f", distance);
    report_detail(result, "L1", "%.4f", l1_bytes(made, image->pixels, n));
    report_protocol(result, "image", "%s", o->image);
    report_protocol(result, "size", "%d x %d%s", image->width, image->height, o->side ? ", resized (bicubic)" : "");
    report_protocol(result, "padded", "%d x %d by its mirror image, cut off again", a->W, a->H);
    report_protocol(result, "tokenizer", "%s, stage %d, step %lld", a->fingerprint, a->info.stage,
                    (long long)a->info.step);
    if (a->ldm) report_protocol(result, "latent", "drawn from the posterior, seed %zu", o->seed);
    report_protocol(result, "weights", "%s", a->weights);
    report_protocol(result, "precision", "%s", PRECISION_NAME);
    report_end(&e->report, result);
    free(original);
    free(values);
}

// The picture: -out itself where it names a PNG, else a file in that folder.
static inline void eval_image_write(eval_t* e, const image_t* image, const uint8_t* cells, // (1 + n, height, width, 3)
                                    char** paths, int n) {
    char path[1200], error[IMAGE_ERROR_SIZE];
    size_t length = strlen(e->options.out);
    json_text_t columns = {NULL, 0, 0};
    json_append(&columns, "%s", e->options.image);
    for (int i = 0; i < n; i++) json_append(&columns, ", %s", paths[i]);
    if (length > 4 && !strcmp(e->options.out + length - 4, ".png")) snprintf(path, sizeof path, "%s", e->options.out);
    else eval_output_path(e, path, sizeof path, "image", e->options.image, "png");
    image_t grid = image_grid(cells, 1, 1 + n, image->height, image->width, 1);
    image_text_t text = {"Columns", columns.text};
    if (!image_write_png(path, &grid, &text, 1, error)) fatal("%s; choose another place with -out", error);
    printf("picture: %s (the image, then each tokenizer's reconstruction)\n", path);
    image_free(&grid);
    json_text_free(&columns);
}

// All tokenizers, one after the other. For one process.
static inline void eval_image(eval_t* e, char** paths, int n, perceptual_t* lpips) {
    static autoencoder_t a;
    const eval_options_t* o = &e->options;
    image_t image = eval_image_load(o);
    size_t cell = (size_t)image.height * image.width * 3;
    uint8_t* cells = (uint8_t*)malloc_check((1 + n) * cell, "a picture");
    memcpy(cells, image.pixels, cell);
    for (int i = 0; i < n; i++) {
        autoencoder_open(&a, paths[i], (autoencoder_weights_t)o->tokenizer_weights, 1, 1, 1);
        eval_image_measure(e, paths[i], &a, lpips, &image, cells + (1 + i) * cell);
        autoencoder_close(&a);
    }
    if (o->out[0]) eval_image_write(e, &image, cells, paths, n);
    free(cells);
    image_free(&image);
}
