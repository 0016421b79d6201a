// scenes.h: a small world with captions: coloured shapes on a plain ground, and a sentence that says what there is.
//
// Three shapes, six colours, three grounds, four kinds of scenes, those that GenEval asks for (Ghosh et al. 2023):
//
//     single     a red circle on a gray background
//     counting   two red circles on a gray background                                            (two, three or four)
//     two        a red circle and a blue square on a black background
//     position   a red circle left of a blue square on a white background            (left of, right of, above, below)
//
// The canvas is divided into 2 x 2 cells. An object lies inside of its own, and no cell holds two. Those of `position`
// lie in one row or column. Two objects that a caption names one by one have different colours, so that each can be told
// from the other. Scene i of a split is a function of (split, i) and the canvas alone; its kind is i % 4, everything else
// from Philox.
//
// Canvases are squares of 48 pixels, or of another multiple of 8 from 32 to 96, and all lengths are in proportion. A
// mixed set also has wide and tall ones, each one third of all, with nearly the pixels of the square: 40 x 56 beside
// 48 x 48. They are buckets of common/data/aspect.h.
//
// Nothing is mirrored or cropped: captions say left and right, and count.
// Look next at common/data/dataset.h, which opens it as "scenes", and at common/measures/scenes.h, which looks at a
// picture and says whether it shows what the caption says.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

// defines: shape_box, smaller, larger
#include "common/data/shapes.h"
// defines: random_below, random_uniform, RANDOM_SCENES
#include "common/program/rng.h"

#define SCENES_SEED 20261204u
#define SCENES_SIDE 48 // pixels of a square canvas
#define SCENES_LEAST_SIDE 32
#define SCENES_MOST_SIDE 96
#define SCENES_STEP 8

enum { SCENE_SHAPES = 3, SCENE_COLOURS = 6, SCENE_GROUNDS = 3, SCENE_OBJECTS = 4, SCENE_CAPTION = 96 };
enum { SCENE_SINGLE, SCENE_COUNTING, SCENE_TWO, SCENE_POSITION, SCENE_KINDS };
enum { SCENE_LEFT_OF, SCENE_RIGHT_OF, SCENE_ABOVE, SCENE_BELOW, SCENE_RELATIONS };

static const char* const scene_kinds[SCENE_KINDS] = {"single", "counting", "two", "position"};
static const char* const scene_shapes[SCENE_SHAPES] = {"circle", "square", "triangle"};
static const char* const scene_colours[SCENE_COLOURS] = {"red", "green", "blue", "yellow", "purple", "cyan"};
static const char* const scene_grounds[SCENE_GROUNDS] = {"white", "gray", "black"};
static const char* const scene_relations[SCENE_RELATIONS] = {"left of", "right of", "above", "below"};

static const uint8_t scene_rgb[SCENE_COLOURS][3] = {{220, 40, 40},  {40, 160, 60},  {50, 80, 220},
                                                    {240, 210, 40}, {150, 60, 180}, {60, 200, 210}};
static const uint8_t scene_ground_grey[SCENE_GROUNDS] = {245, 128, 20};

// How far a shape of unit radius reaches from its centre: to either side, up, down.
static const float scene_reach[SCENE_SHAPES][3] = {{0.92f, 0.92f, 0.92f}, {0.82f, 0.82f, 0.82f}, {1.149f, 1.24f, 0.75f}};

typedef struct {
    int shape, colour;
    float x, y, radius; // in pixels
} scene_object_t;

typedef struct {
    int H, W, kind, ground, count;
    int relation; // SCENE_POSITION: of the first object to the second
    scene_object_t objects[SCENE_OBJECTS];
} scene_t;

// Distance of the point (x, y) to a shape of about unit radius, negative inside.
static inline float scene_distance(int shape, float x, float y) {
    if (shape == 0) return sqrtf(x * x + y * y) - 0.92f;
    if (shape == 1) return shape_box(x, y, 0.82f, 0.82f);
    return larger(y - 0.75f, 0.866025f * fabsf(x) - 0.5f * y - 0.62f);
}

// What a wide or tall canvas has less on one side than the square, and more on the other.
static inline int scene_difference(int side) {
    int steps = (int)nearbyint((double)side / SCENES_SIDE);
    return SCENES_STEP * (steps > 1 ? steps : 1);
}

enum { SCENE_CANVASES = 3 };

// The height of the square canvas, of the wide and of the tall one; the width is what it lacks of 2 * side.
static inline int scene_canvas_height(int side, int canvas) {
    int difference = scene_difference(side);
    return side + (canvas == 0 ? 0 : canvas == 1 ? -difference : difference);
}

// Lot k of scene i, in [0, n).
static inline int scene_lot(int split, uint64_t i, int k, int n) {
    return (int)random_below(SCENES_SEED, RANDOM_SCENES, 2 * (uint64_t)split, i * 16 + k, (uint32_t)n);
}

// Which cell each object has, number 2 * row + column: a permutation by lots; in SCENE_POSITION one beside the other.
static inline void scene_cells(const scene_t* s, int split, uint64_t i, int cells[SCENE_OBJECTS]) {
    for (int k = 0; k < SCENE_OBJECTS; k++) cells[k] = k;
    for (int k = 0; k < SCENE_OBJECTS - 1; k++) {
        int other = k + scene_lot(split, i, 8 + k, SCENE_OBJECTS - k), cell = cells[k];
        cells[k] = cells[other];
        cells[other] = cell;
    }
    if (s->kind != SCENE_POSITION) return;
    int lane = scene_lot(split, i, 12, 2), is_row = s->relation <= SCENE_RIGHT_OF;
    int later = s->relation == SCENE_RIGHT_OF || s->relation == SCENE_BELOW; // the first object's place in it
    cells[0] = is_row ? 2 * lane + later : 2 * later + lane;
    cells[1] = is_row ? 2 * lane + !later : 2 * !later + lane;
}

// Puts an object of known shape and radius (at most) into a cell of the canvas: its bounding box anywhere in it, by u in
// [0, 1), but for a part of the room that is left as a gap.
static inline void scene_place(scene_object_t* o, const scene_t* s, int cell, float radius, const float u[2]) {
    const float* reach = scene_reach[o->shape];
    float half_x = 0.25f * s->W, half_y = 0.25f * s->H, upright = 0.5f * (reach[1] + reach[2]);
    o->radius = smaller(radius, smaller((half_x - 0.5f) / reach[0], (half_y - 0.5f) / upright));
    o->x = half_x * (1 + 2 * (cell % 2)) + 0.6f * (2 * u[0] - 1) * (half_x - reach[0] * o->radius);
    o->y = half_y * (1 + 2 * (cell / 2)) + 0.6f * (2 * u[1] - 1) * (half_y - upright * o->radius) +
           0.5f * (reach[1] - reach[2]) * o->radius;
}

// Scene i of a split on a canvas of `side` pixels; `mixed`: or a wide or tall one, by lot.
static inline scene_t scene_of(int split, uint64_t i, int side, int mixed) {
    scene_t s;
    int cells[SCENE_OBJECTS];
    s.H = scene_canvas_height(side, mixed ? scene_lot(split, i, 0, SCENE_CANVASES) : 0);
    s.W = 2 * side - s.H;
    s.kind = (int)(i % SCENE_KINDS);
    s.ground = scene_lot(split, i, 1, SCENE_GROUNDS);
    s.relation = scene_lot(split, i, 7, SCENE_RELATIONS);
    s.count = s.kind == SCENE_SINGLE ? 1 : s.kind == SCENE_COUNTING ? 2 + scene_lot(split, i, 6, 3) : 2;
    scene_cells(&s, split, i, cells);
    int shape = scene_lot(split, i, 2, SCENE_SHAPES), colour = scene_lot(split, i, 3, SCENE_COLOURS);
    int other_shape = scene_lot(split, i, 4, SCENE_SHAPES);
    int other_colour = (colour + 1 + scene_lot(split, i, 5, SCENE_COLOURS - 1)) % SCENE_COLOURS;
    for (int k = 0; k < SCENE_OBJECTS; k++) {
        scene_object_t* o = &s.objects[k];
        float u[3];
        for (int e = 0; e < 3; e++) {
            u[e] = random_uniform(SCENES_SEED, RANDOM_SCENES, 2 * (uint64_t)split + 1, (i * SCENE_OBJECTS + k) * 4 + e);
        }
        int is_other = k && s.kind != SCENE_COUNTING;
        o->shape = is_other ? other_shape : shape;
        o->colour = is_other ? other_colour : colour;
        scene_place(o, &s, cells[k], (7 + 1.4f * u[0]) * side / SCENES_SIDE, u + 1);
    }
    return s;
}

// The share of pixel (column, row) that an object covers.
static inline float scene_coverage(const scene_object_t* o, int column, int row) {
    float x = (column + 0.5f - o->x) / o->radius, y = (row + 0.5f - o->y) / o->radius;
    return smaller(larger(0.5f - o->radius * scene_distance(o->shape, x, y), 0.0f), 1.0f);
}

static inline void scene_draw(uint8_t* out, const scene_t* s) { // (H, W, 3)
    for (int p = 0; p < s->H * s->W; p++) {
        float value[3];
        for (int c = 0; c < 3; c++) value[c] = scene_ground_grey[s->ground];
        for (int k = 0; k < s->count; k++) {
            float coverage = scene_coverage(&s->objects[k], p % s->W, p / s->W);
            for (int c = 0; c < 3; c++) value[c] += coverage * (scene_rgb[s->objects[k].colour][c] - value[c]);
        }
        for (int c = 0; c < 3; c++) out[p * 3 + c] = (uint8_t)(value[c] + 0.5f);
    }
}

// Writes the scene's caption; at most 12 words, of 27.
static inline const char* scene_caption(char text[SCENE_CAPTION], const scene_t* s) {
    static const char* const numbers[SCENE_OBJECTS + 1] = {"", "a", "two", "three", "four"};
    const scene_object_t *a = &s->objects[0], *b = &s->objects[1];
    int counts = s->kind == SCENE_COUNTING, names_two = s->kind == SCENE_TWO || s->kind == SCENE_POSITION;
    int n = snprintf(text, SCENE_CAPTION, "%s %s %s%s", numbers[counts ? s->count : 1], scene_colours[a->colour],
                     scene_shapes[a->shape], counts ? "s" : "");
    if (names_two) {
        n += snprintf(text + n, SCENE_CAPTION - n, " %s a %s %s",
                      s->kind == SCENE_TWO ? "and" : scene_relations[s->relation], scene_colours[b->colour],
                      scene_shapes[b->shape]);
    }
    snprintf(text + n, SCENE_CAPTION - n, " on a %s background", scene_grounds[s->ground]);
    return text;
}

// The number of the name that stands at *at, behind blanks; *at goes on behind it. -1: none of them does.
static inline int scene_take(const char** at, const char* const* names, int n) {
    while (**at == ' ') ++*at;
    for (int k = 0; k < n; k++) {
        size_t length = strlen(names[k]);
        if (strncmp(*at, names[k], length)) continue;
        *at += length;
        return k;
    }
    return -1;
}

// Reads what a caption says: kind, ground, count, relation, and the objects' shapes and colours. 0 where it is no
// caption of a scene.
static inline int scene_of_caption(scene_t* s, const char* caption) {
    static const char* const numbers[SCENE_OBJECTS] = {"a", "two", "three", "four"};
    static const char *const plural = "s", *const joined = "and", *const on = "on a", *const one = "a";
    const char* at = caption;
    char again[SCENE_CAPTION];
    memset(s, 0, sizeof *s);
    s->count = 1 + scene_take(&at, numbers, SCENE_OBJECTS);
    s->kind = s->count > 1 ? SCENE_COUNTING : SCENE_SINGLE;
    for (int k = 0; k < 2; k++) {
        s->objects[k].colour = scene_take(&at, scene_colours, SCENE_COLOURS);
        s->objects[k].shape = scene_take(&at, scene_shapes, SCENE_SHAPES);
        if (s->kind == SCENE_COUNTING) scene_take(&at, &plural, 1);
        if (k) break;
        s->relation = scene_take(&at, scene_relations, SCENE_RELATIONS);
        int names_two = s->relation >= 0 || !scene_take(&at, &joined, 1);
        if (!names_two) break;
        s->kind = s->relation >= 0 ? SCENE_POSITION : SCENE_TWO;
        s->count = 2;
        scene_take(&at, &one, 1);
    }
    scene_take(&at, &on, 1);
    s->ground = scene_take(&at, scene_grounds, SCENE_GROUNDS);
    int known = s->count > 0 && s->ground >= 0;
    for (int k = 0; k < 2; k++) known = known && s->objects[k].colour >= 0 && s->objects[k].shape >= 0;
    return known && !strcmp(scene_caption(again, s), caption); // nothing else is there
}
