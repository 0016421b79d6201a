// shapes.h: the drawn data set: ten classes of coloured shapes on textured grounds, 32 x 32. Sample i of a split is a
// function of (split, i) alone: class i % 10, everything else from Philox. Look next at common/data/dataset.h, the
// user.
#pragma once
#include <math.h>
#include <stdint.h>

// defines: philox, uniform_from_bits, random_uniform, RANDOM_SHAPES
#include "common/program/rng.h"

#define SHAPES_SIZE 32
#define SHAPES_CLASSES 10
#define SHAPES_SEED 20240801u

// What fminf and fmaxf say of numbers. Those know NaN too, and so are calls, which among vector instructions can take many
// times longer than the rest of a picture.
static inline float smaller(float a, float b) { return a < b ? a : b; }
static inline float larger(float a, float b) { return a > b ? a : b; }

// Signed distances to shapes of about unit radius, negative inside.
static inline float shape_box(float x, float y, float half_width, float half_height) {
    return larger(fabsf(x) - half_width, fabsf(y) - half_height);
}

// A star of five points: folded into one tenth of the turn, where its edge is the line from a tip to the next notch.
// With notch radius .382 the edges are those of a pentagram.
static inline float shape_star(float x, float y) {
    float radius = sqrtf(x * x + y * y);
    float turn = atan2f(x, -y) * (5.0f / 6.28318531f); // 1 from a tip to the next
    float angle = fabsf(turn - nearbyintf(turn)) * (6.28318531f / 5.0f);
    float px = radius * cosf(angle) - 1.0f, py = radius * sinf(angle); // from the tip
    const float ex = 0.382f * 0.809017f - 1.0f, ey = 0.382f * 0.587785f;
    return (px * -ey + py * ex) / -sqrtf(ex * ex + ey * ey);
}

// Distance of the point (x, y) to shape `label`; not exact at corners, which anti-aliasing does not need.
static inline float shape_distance(int label, float x, float y) {
    float radius = sqrtf(x * x + y * y);
    switch (label) {
    case 0: return radius - 0.9f;                                                                        // disc
    case 1: return fabsf(radius - 0.72f) - 0.2f;                                                         // ring
    case 2: return shape_box(x, y, 0.8f, 0.8f);                                                          // square
    case 3: return shape_box(x, y, 1.0f, 0.33f);                                                         // bar
    case 4: return larger(y - 0.55f, fabsf(x) * 0.866025f - y * 0.5f - 0.5f);                            // triangle
    case 5: return smaller(shape_box(x, y, 1.0f, 0.27f), shape_box(x, y, 0.27f, 1.0f));                  // cross
    case 6: return shape_star(x, y);                                                                     // star
    case 7: return larger(radius - 0.95f, 0.75f - sqrtf((x - 0.5f) * (x - 0.5f) + y * y));               // crescent
    case 8: return larger(radius - 1.0f, fabsf(x * 2.5f - nearbyintf(x * 2.5f)) / 2.5f - 0.1f);          // stripes
    default: {                                                                                           // checker
        float u = fabsf(x * 1.1f - nearbyintf(x * 1.1f)) - 0.25f, v = fabsf(y * 1.1f - nearbyintf(y * 1.1f)) - 0.25f;
        float cell = u * v > 0 ? -smaller(fabsf(u), fabsf(v)) : smaller(fabsf(u), fabsf(v));
        return larger(shape_box(x, y, 0.95f, 0.95f), cell / 1.1f);
    }
    }
}

// What varies from one drawn image to the next.
typedef struct {
    float centre_x, centre_y, radius, cosine, sine;
    float ground[3], texture[3], ink[3];     // colours in 0..255; the ground gets texture * wave added
    float wave_x, wave_y, wave_phase, grain; // the wave's frequency in radians a pixel; half the range of the noise
} shape_style_t;

static inline shape_style_t shape_style(int split, uint64_t i) {
    shape_style_t style;
    float u[16];
    for (uint64_t e = 0; e < 16; e++) u[e] = random_uniform(SHAPES_SEED, RANDOM_SHAPES, 2 * split, i * 16 + e);
    style.radius = SHAPES_SIZE * (0.22f + 0.16f * u[0]);
    style.centre_x = style.radius + u[1] * (SHAPES_SIZE - 2 * style.radius);
    style.centre_y = style.radius + u[2] * (SHAPES_SIZE - 2 * style.radius);
    style.cosine = cosf((u[3] - 0.5f) * 1.4f); // up to 40 degrees either way, so that a bar still lies
    style.sine = sinf((u[3] - 0.5f) * 1.4f);
    float angle = 6.28318531f * u[4], frequency = 0.2f + 0.8f * u[5];
    style.wave_x = frequency * cosf(angle);
    style.wave_y = frequency * sinf(angle);
    style.wave_phase = 6.28318531f * u[6];
    style.grain = 4.0f + 12.0f * u[7];
    for (int c = 0; c < 3; c++) {
        style.ground[c] = 255.0f * u[8 + c];
        // at least 90 away from the ground in every channel, on the side that has more room
        style.ink[c] = style.ground[c] < 127.5f ? style.ground[c] + 90 + u[11 + c] * (165 - style.ground[c])
                                                : style.ground[c] - 90 - u[11 + c] * (style.ground[c] - 90);
        // one channel swings less than the others, so that the texture has a colour too
        style.texture[c] = 25.0f * (c == (int)(u[14] * 3) ? u[15] : 1.0f);
    }
    return style;
}

// Draws sample i: ground = colour + wave + grain, over it the shape with the coverage clamp(1/2 - distance in pixels,
// 0, 1).
static inline void shapes_draw(uint8_t* out, int split, uint64_t i) { // (32, 32, 3)
    shape_style_t style = shape_style(split, i);
    int label = (int)(i % SHAPES_CLASSES);
    for (int p = 0; p < SHAPES_SIZE * SHAPES_SIZE; p++) {
        float column = p % SHAPES_SIZE + 0.5f, row = p / SHAPES_SIZE + 0.5f;
        float dx = (column - style.centre_x) / style.radius, dy = (row - style.centre_y) / style.radius;
        float x = dx * style.cosine + dy * style.sine, y = dy * style.cosine - dx * style.sine;
        float coverage = smaller(larger(0.5f - shape_distance(label, x, y) * style.radius, 0.0f), 1.0f);
        float wave = sinf(style.wave_x * column + style.wave_y * row + style.wave_phase);
        philox4_t bits = philox(SHAPES_SEED, RANDOM_SHAPES, 2 * split + 1, i * SHAPES_SIZE * SHAPES_SIZE + p);
        for (int c = 0; c < 3; c++) {
            float grain = style.grain * (2.0f * uniform_from_bits(bits.v[c]) - 1.0f);
            float ground = style.ground[c] + style.texture[c] * wave + grain;
            float value = ground + coverage * (style.ink[c] - ground) + 0.5f;
            out[p * 3 + c] = (uint8_t)smaller(larger(value, 0.0f), 255.0f);
        }
    }
}
