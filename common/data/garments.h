// garments.h: a small world in colour, for a tokenizer to show what its encoder knows and what it forgets.
//
// Real: the garments' shapes, shades and classes, those of Fashion-MNIST (28 x 28, grey). Drawn: everything of colour.
// Each garment is dyed, and laid on a coloured ground with a faint weave and grain, 32 x 32. Colours are drawn from
// (split, index) alone, whatever the class, so that to know the class is one thing and to know the colours another;
// garment_style tells them. The i-th garment of a split always wears the same.
//
// A colour is a brightness, the mean of R, G and B, and a hue and a saturation, its place in the plane across the grey
// axis. Brightness shows the garment, whatever the hues:
//
//     dye      hue uniform, brightness 140 to 160, saturation 70 to 90; the garment's own shade darkens it
//     ground   hue uniform, brightness 60 to 80, saturation 35 to 55
//     weave    a triangular wave of 4 to 10 pixels in any direction, +-6 levels; grain: noise of +-4 levels
//
// Look next at common/data/dataset.h, which opens it as "garments".
#pragma once
#include <math.h>
#include <stdint.h>

// defines: smaller, larger
#include "common/data/shapes.h"
// defines: philox, random_uniform, uniform_from_bits, RANDOM_GARMENTS
#include "common/program/rng.h"

#define GARMENTS_SIZE 32     // pixels of a drawn image
#define GARMENTS_SOURCE 28   // of a grey one
#define GARMENTS_SEED 20261129u
#define GARMENTS_EDGE 40.0f  // grey level from which a garment covers its ground wholly
#define GARMENTS_GRAIN 4.0f
#define GARMENTS_WEAVE 6.0f

// What is drawn by lot for one image.
typedef struct {
    float dye[3], ground[3];       // in 0..255; a garment's brightest pixels have the colour of its dye
    float wave_x, wave_y, phase;   // the weave, in periods a pixel
} garment_style_t;

// The colour of a hue (in turns), in 0..255: the three channels swing about the brightness, a third of a turn apart.
static inline void garment_colour(float* rgb, float hue, float brightness, float saturation) { // (3)
    for (int c = 0; c < 3; c++) {
        float sine, cosine, turn = hue + 1 - c / 3.0f;
        rng_sin_cos((uint32_t)((turn - floorf(turn)) * 0x1p24f) << 8, &sine, &cosine);
        rgb[c] = brightness + saturation * sine;
    }
}

static inline garment_style_t garment_style(int split, uint64_t i) {
    garment_style_t style;
    float u[12];
    for (uint64_t e = 0; e < 12; e++) u[e] = random_uniform(GARMENTS_SEED, RANDOM_GARMENTS, 2 * split, i * 12 + e);
    garment_colour(style.dye, u[0], 140 + 20 * u[1], 70 + 20 * u[2]);
    garment_colour(style.ground, u[3], 60 + 20 * u[4], 35 + 20 * u[5]);
    float frequency = 0.1f + 0.15f * u[6], sine, cosine;
    rng_sin_cos((uint32_t)(u[7] * 0x1p24f) << 8, &sine, &cosine);
    style.wave_x = frequency * cosine;
    style.wave_y = frequency * sine;
    style.phase = u[8];
    return style;
}

// Draws garment i of a split over its ground. Coverage is min(1, grey / EDGE); the dye is darkened to 0.4 + 0.6 grey /
// 255 of itself, so that folds, seams and prints are seen.
static inline void garment_draw(uint8_t* out,        // (GARMENTS_SIZE, GARMENTS_SIZE, 3)
                                const uint8_t* grey, // (GARMENTS_SOURCE, GARMENTS_SOURCE)
                                int split, uint64_t i) {
    enum { SIZE = GARMENTS_SIZE, SOURCE = GARMENTS_SOURCE, MARGIN = (SIZE - SOURCE) / 2 };
    garment_style_t style = garment_style(split, i);
    for (int p = 0; p < SIZE * SIZE; p++) {
        int column = p % SIZE, row = p / SIZE, x = column - MARGIN, y = row - MARGIN;
        int inside = x >= 0 && x < SOURCE && y >= 0 && y < SOURCE;
        float shade = inside ? grey[y * SOURCE + x] : 0;
        float coverage = smaller(shade / GARMENTS_EDGE, 1.0f);
        float turn = style.wave_x * column + style.wave_y * row + style.phase;
        float weave = GARMENTS_WEAVE * (4.0f * fabsf(turn - floorf(turn) - 0.5f) - 1.0f);
        philox4_t bits = philox(GARMENTS_SEED, RANDOM_GARMENTS, 2 * split + 1, i * SIZE * SIZE + p);
        for (int c = 0; c < 3; c++) {
            float grain = GARMENTS_GRAIN * (2.0f * uniform_from_bits(bits.v[c]) - 1.0f);
            float ground = style.ground[c] + weave + grain;
            float dyed = style.dye[c] * (0.4f + 0.6f * shade / 255.0f);
            float value = ground + coverage * (dyed - ground) + 0.5f;
            out[p * 3 + c] = (uint8_t)smaller(larger(value, 0.0f), 255.0f);
        }
    }
}
