// picture.h: the picture that dev/reference/make_crop_fixture.py, make_metric_fixtures.py and make_captions_fixture.py crop
// and resize: smooth, with edges and noise, so that a filter that is a little wrong shows.
#pragma once
// defines: image_t, image_create
#include "common/data/image.h"

static inline image_t make_picture(int height, int width) {
    image_t image = image_create(height, width);
    for (int i = 0; i < height * width * 3; i++) {
        int y = i / 3 / width, x = i / 3 % width, c = i % 3;
        int smooth = (y * (3 + c) + x * (5 - c)) % 511, edge = (x / 37 + y / 29 + c) % 3 == 0 ? 120 : 0;
        int noise = (y * 7919 + x * 104729 + c * 1299709) % 65537 * 31 % 97;
        int value = (smooth > 255 ? 510 - smooth : smooth) + edge + noise - 60;
        image.pixels[i] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
    }
    return image;
}
