// clip_input.h: how a picture of any size becomes the square that CLIP and its relatives take, exactly as their own
// programs do it: a score is compared with published ones, and these move in the third digit with the way of resizing.
//
//     CLIP_INPUT_CROP  Pillow's bicubic filter makes the shorter side S (the longer one is rounded down), and the
//                      square is cut out of the middle (half a pixel to even, as torchvision; Hugging Face's rounds
//                      down, which differs for some shapes that are no squares). CLIP, PickScore, aesthetic score
//     CLIP_INPUT_PAD   in floats, torchvision's bicubic filter with antialias makes the longer side S (both sides are
//                      rounded half to even), and black fills the square around the middle. HPSv2
//
// Out comes [-1, 1]; CLIP's mean and deviation are applied in common/models/clip.h.
#pragma once
// defines: image_resize_filtered, image_resize_floats, FILTER_BICUBIC
#include "common/data/crop.h"

typedef enum { CLIP_INPUT_CROP, CLIP_INPUT_PAD } clip_input_t;
static const char* const clip_inputs[] = {"Pillow's bicubic to the shorter side, centre crop",
                                          "float bicubic with antialias to the longer side, black around"};

static inline void clip_input_crop(floatS* out, const image_t* in, int S) { // (S, S, 3)
    int side = in->height < in->width ? in->height : in->width;
    int height = (int)((int64_t)S * in->height / side), width = (int)((int64_t)S * in->width / side);
    int top = (int)nearbyint((height - S) / 2.0), left = (int)nearbyint((width - S) / 2.0);
    image_t fit = image_resize_filtered(in, height, width, FILTER_BICUBIC);
    for (int y = 0; y < S; y++) {
        const uint8_t* from = fit.pixels + ((size_t)(top + y) * width + left) * 3;
        for (int k = 0; k < S * 3; k++) out[(size_t)y * S * 3 + k] = (floatS)(from[k] / 127.5 - 1);
    }
    image_free(&fit);
}

static inline void clip_input_pad(floatS* out, const image_t* in, int S) { // (S, S, 3)
    double scale = (double)S / (in->height > in->width ? in->height : in->width);
    int height = (int)nearbyint(in->height * scale), width = (int)nearbyint(in->width * scale);
    if (height < 1) height = 1;
    if (width < 1) width = 1;
    int top = (S - height) / 2, left = (S - width) / 2;
    float* fit = (float*)malloc_check((size_t)height * width * 3 * sizeof(float), "a picture");
    image_resize_floats(fit, in, FILTER_BICUBIC, height, width, 0, 0, height, width);
    for (size_t i = 0; i < (size_t)S * S * 3; i++) out[i] = -1;
    for (int y = 0; y < height; y++) {
        floatS* to = out + ((size_t)(top + y) * S + left) * 3;
        for (int k = 0; k < width * 3; k++) to[k] = (floatS)(2 * fit[(size_t)y * width * 3 + k] - 1);
    }
    free(fit);
}

static inline void clip_input(floatS* out, const image_t* in, int S, clip_input_t how) { // (S, S, 3)
    if (how == CLIP_INPUT_CROP) clip_input_crop(out, in, S);
    else clip_input_pad(out, in, S);
}
