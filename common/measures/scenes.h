// scenes.h: looks at a picture, and says whether it shows the scene that its caption names (common/data/scenes.h).
//
// A program with no network in it, so that a miniature text-to-image model is measured as GenEval measures a large one:
//
//     ground        that of the three nearest to the median, in each channel, of the pixels at the picture's border
//     pixels        each becomes the nearest in RGB of that ground and the six colours
//     objects       the regions of one colour, connected by edges, of at least 50 pixels on a canvas of 48 x 48, a
//                   quarter of which have four neighbours in it: the rim of a yellow square on black looks red
//     shape         of the three, drawn with the region's area and centre of mass, and moved by -0.7, 0 and 0.7 pixels
//                   both ways: the one with the largest intersection over union
//
// A picture is correct if it shows the wanted objects: of `single`, `two` and `position` each once and no other, of
// `counting` exactly the wanted number; and of `position` in the wanted direction, more than half of the way between
// the centres of their boxes. The ground is a measure of its own, as are the number of objects, and their colours
// whatever the shapes. The overall score is the mean of the four kinds.
//
// Chance is what a picture scores that shows another scene of the same kind:
//     single 1/18      counting 1/54      two 1/135      position 1/540
// Look next at common/measures/geneval.h, the rules for photographs.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// defines: scene_t, scene_distance, scene_rgb, scene_ground_grey
#include "common/data/scenes.h"
// defines: malloc_check
#include "common/program/log.h"

enum { SCENE_FOUND = 16 }; // objects that are looked at; a picture with more is wrong in any case

typedef struct {
    int shape, colour, area; // area in pixels
    float x, y;              // centre of the bounding box
} scene_found_t;

// What a picture shows.
typedef struct {
    int ground, count; // count may be more than SCENE_FOUND
    scene_found_t objects[SCENE_FOUND];
} scene_seen_t;

// 1 where it is as wanted.
typedef struct {
    int correct, ground;
    int number, colours; // of the objects, whatever their shapes
} scene_verdict_t;

typedef struct {
    size_t pictures[SCENE_KINDS], correct[SCENE_KINDS], ground, number, colours;
} scene_scores_t;

static inline int scene_colour_distance(const uint8_t* a, const uint8_t* b) {
    int sum = 0;
    for (int c = 0; c < 3; c++) sum += (a[c] - b[c]) * (a[c] - b[c]);
    return sum;
}

// The median of a channel over the border pixels.
static inline int scene_border_median(const uint8_t* pixels, int H, int W, int channel) { // (H, W, 3)
    int counts[256] = {0}, border = 0, below = 0, value = 0;
    for (int p = 0; p < H * W; p++) {
        if (p / W && p / W != H - 1 && p % W && p % W != W - 1) continue;
        counts[pixels[p * 3 + channel]]++;
        border++;
    }
    while ((below += counts[value]) * 2 < border) value++;
    return value;
}

static inline int scene_ground_of(const uint8_t* pixels, int H, int W) {
    uint8_t median[3];
    int best = 0, least = 0;
    for (int c = 0; c < 3; c++) median[c] = (uint8_t)scene_border_median(pixels, H, W, c);
    for (int g = 0; g < SCENE_GROUNDS; g++) {
        uint8_t grey[3] = {scene_ground_grey[g], scene_ground_grey[g], scene_ground_grey[g]};
        int distance = scene_colour_distance(median, grey);
        if (!g || distance < least) best = g, least = distance;
    }
    return best;
}

// The colour of a pixel; SCENE_COLOURS: the ground's.
static inline int scene_colour_of(const uint8_t* pixel, int ground) {
    uint8_t grey[3] = {scene_ground_grey[ground], scene_ground_grey[ground], scene_ground_grey[ground]};
    int best = SCENE_COLOURS, least = scene_colour_distance(pixel, grey);
    for (int k = 0; k < SCENE_COLOURS; k++) {
        int distance = scene_colour_distance(pixel, scene_rgb[k]);
        if (distance < least) best = k, least = distance;
    }
    return best;
}

// A region: the pixels of `region` that have this number.
typedef struct {
    const int* region; // (H, W)
    int number, H, W, area, inner; // pixels; those with four neighbours in it, or at the picture's border
    int top, bottom, left, right; // the first and the last row and column
    float x, y;                   // centre of mass
} scene_region_t;

// The share of the union that a region and a shape at (x, y) have in common.
static inline double scene_overlap(const scene_region_t* r, int shape, float x, float y, float radius) {
    int both = 0, either = 0, reach = (int)ceilf(1.3f * radius);
    int top = r->top < (int)y - reach ? r->top : (int)y - reach, left = r->left < (int)x - reach ? r->left
                                                                                                 : (int)x - reach;
    int bottom = r->bottom > (int)y + reach ? r->bottom : (int)y + reach;
    int right = r->right > (int)x + reach ? r->right : (int)x + reach;
    for (int row = top; row <= bottom; row++) {
        for (int column = left; column <= right; column++) {
            int on_canvas = row >= 0 && row < r->H && column >= 0 && column < r->W;
            int a = on_canvas && r->region[row * r->W + column] == r->number;
            int b = scene_distance(shape, (column + 0.5f - x) / radius, (row + 0.5f - y) / radius) < 0;
            both += a && b;
            either += a || b;
        }
    }
    return (double)both / either;
}

static inline int scene_shape_of(const scene_region_t* r) {
    static const float unit_area[SCENE_SHAPES] = {2.659f, 2.690f, 2.284f};
    static const float unit_below[SCENE_SHAPES] = {0, 0, 0.087f}; // the centre of mass, seen from the shape's centre
    double best = -1;
    int shape = 0;
    for (int k = 0; k < SCENE_SHAPES; k++) {
        float radius = sqrtf((float)r->area / unit_area[k]);
        for (int move = 0; move < 9; move++) {
            double overlap = scene_overlap(r, k, r->x + 0.7f * (move % 3 - 1),
                                           r->y + 0.7f * (move / 3 - 1) - unit_below[k] * radius, radius);
            if (overlap > best) best = overlap, shape = k;
        }
    }
    return shape;
}

// Gives the pixels of one colour that are connected to `first` the number of a region.
static inline scene_region_t scene_fill(const uint8_t* colours, int* region, int* stack, int number, int first, int H,
                                        int W) { // (H, W) each
    scene_region_t r = {region, number, H, W, 0, 0, first / W, first / W, first % W, first % W, 0, 0};
    int waiting = 1;
    double rows = 0, columns = 0;
    stack[0] = first;
    region[first] = number;
    while (waiting) {
        int p = stack[--waiting], row = p / W, column = p % W;
        int near[4] = {row ? p - W : p, row < H - 1 ? p + W : p, column ? p - 1 : p, column < W - 1 ? p + 1 : p};
        int inner = 1;
        r.area++;
        rows += row + 0.5;
        columns += column + 0.5;
        if (row < r.top) r.top = row;
        if (row > r.bottom) r.bottom = row;
        if (column < r.left) r.left = column;
        if (column > r.right) r.right = column;
        for (int k = 0; k < 4; k++) {
            inner &= colours[near[k]] == colours[first];
            if (region[near[k]] || colours[near[k]] != colours[first]) continue;
            region[near[k]] = number;
            stack[waiting++] = near[k];
        }
        r.inner += inner;
    }
    r.x = (float)(columns / r.area);
    r.y = (float)(rows / r.area);
    return r;
}

// What a picture shows.
static inline scene_seen_t scene_look(const uint8_t* pixels, int H, int W) { // (H, W, 3)
    scene_seen_t seen;
    int n = H * W, regions = 0;
    uint8_t* colours = (uint8_t*)malloc_check((size_t)n, "the colours of a picture");
    int *region = (int*)calloc_check((size_t)n, sizeof(int), "the regions of a picture");
    int *stack = (int*)malloc_check((size_t)n * sizeof(int), "the regions of a picture");
    memset(&seen, 0, sizeof seen);
    seen.ground = scene_ground_of(pixels, H, W);
    for (int p = 0; p < n; p++) colours[p] = (uint8_t)scene_colour_of(pixels + p * 3, seen.ground);
    for (int p = 0; p < n; p++) {
        if (region[p] || colours[p] == SCENE_COLOURS) continue;
        scene_region_t r = scene_fill(colours, region, stack, ++regions, p, H, W);
        if (r.area * SCENES_SIDE * SCENES_SIDE < 50 * n || 4 * r.inner < r.area) continue;
        if (seen.count < SCENE_FOUND) {
            scene_found_t* o = &seen.objects[seen.count];
            o->colour = colours[p];
            o->area = r.area;
            o->x = 0.5f * (r.left + r.right + 1);
            o->y = 0.5f * (r.top + r.bottom + 1);
            o->shape = scene_shape_of(&r);
        }
        seen.count++;
    }
    free(colours);
    free(region);
    free(stack);
    return seen;
}

// How many of the objects have the colour and, unless it is -1, the shape. *last: one of them.
static inline int scene_count(const scene_seen_t* seen, int shape, int colour, const scene_found_t** last) {
    int n = 0;
    for (int k = 0; k < seen->count && k < SCENE_FOUND; k++) {
        const scene_found_t* o = &seen->objects[k];
        if (o->colour != colour || (shape >= 0 && o->shape != shape)) continue;
        if (last) *last = o;
        n++;
    }
    return n;
}

// Is a in this relation to b?
static inline int scene_is_at(const scene_found_t* a, const scene_found_t* b, int relation) {
    float dx = a->x - b->x, dy = a->y - b->y, half = 0.5f * sqrtf(dx * dx + dy * dy);
    float along[SCENE_RELATIONS] = {-dx, dx, -dy, dy};
    return along[relation] > half;
}

static inline scene_verdict_t scene_judge(const scene_seen_t* seen, const scene_t* wanted) {
    const scene_object_t *a = &wanted->objects[0], *b = &wanted->objects[1];
    const scene_found_t *first = NULL, *second = NULL;
    scene_verdict_t v;
    int names_two = wanted->kind == SCENE_TWO || wanted->kind == SCENE_POSITION;
    int of_first = names_two ? 1 : wanted->count;
    v.ground = seen->ground == wanted->ground;
    v.number = seen->count == wanted->count;
    v.colours = v.number && scene_count(seen, -1, a->colour, NULL) == of_first &&
                (!names_two || scene_count(seen, -1, b->colour, NULL) == 1);
    v.correct = scene_count(seen, a->shape, a->colour, &first) == of_first &&
                (!names_two || scene_count(seen, b->shape, b->colour, &second) == 1);
    if (wanted->kind != SCENE_COUNTING) v.correct &= v.number;
    if (wanted->kind == SCENE_POSITION) v.correct = v.correct && scene_is_at(first, second, wanted->relation);
    return v;
}

// ---------------------------------------------------------------------------------------------------------------------
// Scores

// Adds what a picture shows of the scene that was wanted.
static inline void scene_scores_add(scene_scores_t* s, const uint8_t* pixels, const scene_t* wanted) { // (H, W, 3)
    scene_seen_t seen = scene_look(pixels, wanted->H, wanted->W);
    scene_verdict_t v = scene_judge(&seen, wanted);
    s->pictures[wanted->kind]++;
    s->correct[wanted->kind] += v.correct;
    s->ground += v.ground;
    s->number += v.number;
    s->colours += v.colours;
}

// The share of all pictures; 0 where there are none.
static inline double scene_share(const scene_scores_t* s, size_t part) {
    size_t n = 0;
    for (int k = 0; k < SCENE_KINDS; k++) n += s->pictures[k];
    return n ? (double)part / n : 0;
}

// The share of correct pictures of a kind; 0 where there are none.
static inline double scene_score(const scene_scores_t* s, int kind) {
    return s->pictures[kind] ? (double)s->correct[kind] / s->pictures[kind] : 0;
}

static inline double scene_overall(const scene_scores_t* s) {
    double sum = 0;
    for (int k = 0; k < SCENE_KINDS; k++) sum += scene_score(s, k);
    return sum / (int)SCENE_KINDS;
}
