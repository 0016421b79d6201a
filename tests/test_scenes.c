// test_scenes.c: the drawn scenes with captions, the program that judges pictures of them, and the way of a scene
// through data set, buckets and loader. Look next at common/data/scenes.h and common/measures/scenes.h.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// defines: aspect_t, aspect_open_area, aspect_fill, aspect_close
#include "common/data/aspect.h"
// defines: dataloader_t, dataloader_open, dataloader_next, dataloader_close
#include "common/data/dataloader.h"
// defines: dataset_t, dataset_open, dataset_scene, dataset_load, dataset_close
#include "common/data/dataset.h"
// defines: image_sizes_create, image_sizes_read
#include "common/data/image_sizes.h"
// defines: scene_look, scene_judge, scene_scores_*
#include "common/measures/scenes.h"
// defines: check_message
#include "tests/temporary.h"
// defines: test_begin, test_case, check, test_uniform, test_end_case, test_finish
#include "tests/test.h"

enum { MOST = 112 * 112 * 3 }; // bytes of the largest canvas

// ---------------------------------------------------------------------------------------------------------------------
// Scenes

// What a caption says is read back; with a letter more or less it is no caption.
static void check_read(const scene_t* s, const char* text) {
    scene_t read;
    char other[SCENE_CAPTION + 1];
    check(scene_of_caption(&read, text), text);
    check(read.kind == s->kind && read.ground == s->ground && read.count == s->count, "kind, ground, number");
    check(s->kind != SCENE_POSITION || read.relation == s->relation, "the relation");
    for (int k = 0; k < s->count && k < 2; k++) {
        if (k && s->kind == SCENE_COUNTING) break;
        const scene_object_t *a = &read.objects[k], *b = &s->objects[k];
        check(a->shape == b->shape && a->colour == b->colour, "objects");
    }
    snprintf(other, sizeof other, "%sx", text);
    check(!scene_of_caption(&read, other), "something behind it");
    snprintf(other, sizeof other, "%s", text + 1);
    check(!scene_of_caption(&read, other), "something missing");
    other[0] = 0;
    check(!scene_of_caption(&read, other), "nothing");
}

static void test_captions(void) {
    static const char* const words[] = {
        "a", "above", "and", "background", "below", "black", "blue", "circle", "circles", "cyan", "four", "gray",
        "green", "left", "of", "on", "purple", "red", "right", "square", "squares", "three", "triangle", "triangles",
        "two", "white", "yellow"};
    enum { WORDS = sizeof words / sizeof *words };
    int seen[WORDS] = {0}, most = 0;
    scene_t s = {48, 48, SCENE_POSITION, 0, 2, SCENE_LEFT_OF, {{0, 0, 10, 10, 7}, {1, 2, 38, 10, 7}}};
    char text[SCENE_CAPTION];
    check(!strcmp(scene_caption(text, &s), "a red circle left of a blue square on a white background"), "position");
    s.kind = SCENE_TWO;
    s.ground = 2;
    check(!strcmp(scene_caption(text, &s), "a red circle and a blue square on a black background"), "two");
    s.kind = SCENE_COUNTING;
    s.count = 3;
    s.ground = 1;
    check(!strcmp(scene_caption(text, &s), "three red circles on a gray background"), "counting");
    s.kind = SCENE_SINGLE;
    check(!strcmp(scene_caption(text, &s), "a red circle on a gray background"), "single");
    for (int i = 0; i < 4000; i++) {
        s = scene_of(i % 2, (uint64_t)i / 2, 48, 1);
        scene_caption(text, &s);
        check_read(&s, text);
        int n = 0;
        for (char *rest = text, *word; (word = strsep(&rest, " ")); n++) {
            int k = 0;
            while (k < WORDS && strcmp(words[k], word)) k++;
            check(k < WORDS, "a known word");
            if (k < WORDS) seen[k] = 1;
        }
        most = n > most ? n : most;
    }
    check(most == 12, "at most 12 words");
    for (int k = 0; k < WORDS; k++) check(seen[k], words[k]);
}

static int cell_of(const scene_t* s, int k) {
    return 2 * (s->objects[k].y > s->H / 2.0f) + (s->objects[k].x > s->W / 2.0f);
}

static void test_scenes(void) {
    int canvases[3] = {0}, relations[SCENE_RELATIONS] = {0}, counts[SCENE_OBJECTS + 1] = {0};
    int grounds[SCENE_GROUNDS] = {0};
    enum { N = 12000 };
    for (int i = 0; i < N; i++) {
        scene_t s = scene_of(0, (uint64_t)i, 48, 1), again = scene_of(0, (uint64_t)i, 48, 1);
        check(!memcmp(s.objects, again.objects, sizeof s.objects), "scene and number are one");
        check(s.kind == i % 4, "the kinds take turns");
        canvases[s.H == 48 ? 0 : s.H == 40 ? 1 : 2]++;
        check(s.H + s.W == 96 && (s.H == 48 || s.H == 40 || s.H == 56), "a canvas");
        grounds[s.ground]++;
        if (s.kind == SCENE_COUNTING) counts[s.count]++;
        if (s.kind == SCENE_POSITION) relations[s.relation]++;
        int used = 0;
        for (int k = 0; k < s.count; k++) {
            const scene_object_t* o = &s.objects[k];
            int cell = cell_of(&s, k);
            check(!(used >> cell & 1), "no two in a cell");
            used |= 1 << cell;
            check(o->radius >= 7 && o->radius <= 8.4f, "the size");
            float left = s.W / 2.0f * (cell % 2), top = s.H / 2.0f * (cell / 2);
            const float* reach = scene_reach[o->shape];
            check(o->x - reach[0] * o->radius > left && o->x + reach[0] * o->radius < left + s.W / 2.0f &&
                  o->y - reach[1] * o->radius > top && o->y + reach[2] * o->radius < top + s.H / 2.0f, "in its cell");
        }
        if (s.kind == SCENE_TWO || s.kind == SCENE_POSITION) {
            check(s.objects[0].colour != s.objects[1].colour, "two colours");
        }
        if (s.kind == SCENE_POSITION) {
            int a = cell_of(&s, 0), b = cell_of(&s, 1);
            int wanted[4] = {1, -1, 2, -2}; // left of, right of, above, below
            check(b - a == wanted[s.relation] && (s.relation > 1 || a / 2 == b / 2), "the relation");
        }
    }
    for (int k = 0; k < 3; k++) check(abs(canvases[k] - N / 3) < N / 20 && abs(grounds[k] - N / 3) < N / 20, "thirds");
    for (int k = 0; k < 4; k++) check(abs(relations[k] - N / 16) < N / 80, "quarters");
    for (int k = 2; k < 5; k++) check(abs(counts[k] - N / 12) < N / 60, "counts");
    scene_t train = scene_of(0, 5, 48, 0), val = scene_of(1, 5, 48, 0);
    check(train.H == 48 && train.W == 48, "a square");
    check(train.objects[0].x != val.objects[0].x, "the splits differ");
}

// How far a shape reaches: the farthest points that are inside.
static void test_reach(void) {
    for (int shape = 0; shape < SCENE_SHAPES; shape++) {
        float side = 0, up = 0, down = 0;
        for (int i = 0; i < 700 * 700; i++) {
            float x = (i % 700 - 350) * 0.004f, y = (i / 700 - 350) * 0.004f;
            if (scene_distance(shape, x, y) >= 0) continue;
            side = fmaxf(side, x);
            up = fmaxf(up, -y);
            down = fmaxf(down, y);
        }
        const float* reach = scene_reach[shape];
        check(fabsf(side - reach[0]) < 0.008f && fabsf(up - reach[1]) < 0.008f && fabsf(down - reach[2]) < 0.008f,
              scene_shapes[shape]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The judge

static void draw(uint8_t* pixels, const scene_t* s) {
    memset(pixels, 0xA5, MOST);
    scene_draw(pixels, s);
}

static scene_verdict_t judge(const uint8_t* pixels, const scene_t* wanted) {
    scene_seen_t seen = scene_look(pixels, wanted->H, wanted->W);
    return scene_judge(&seen, wanted);
}

// All that is drawn is recognised, on every canvas.
static void test_drawn(int side, int n) {
    static uint8_t pixels[MOST];
    scene_scores_t scores;
    memset(&scores, 0, sizeof scores);
    for (int i = 0; i < n; i++) {
        scene_t s = scene_of(1, (uint64_t)i, side, 1);
        size_t right = scores.correct[s.kind] + scores.colours;
        draw(pixels, &s);
        scene_scores_add(&scores, pixels, &s);
        if (scores.correct[s.kind] + scores.colours != right + 2) printf("     scene %d of side %d\n", i, side);
    }
    for (int k = 0; k < SCENE_KINDS; k++) check(scene_score(&scores, k) == 1, scene_kinds[k]);
    check(scene_overall(&scores) == 1 && scores.ground == (size_t)n && scores.number == (size_t)n &&
          scores.colours == (size_t)n, "and the rest");
}

// The same with noise as a good decoder leaves it.
static void test_noise(void) {
    static uint8_t pixels[MOST];
    int right = 0;
    for (int i = 0; i < 200; i++) {
        scene_t s = scene_of(1, (uint64_t)i, 48, 1);
        draw(pixels, &s);
        for (int p = 0; p < s.H * s.W * 3; p++) {
            double value = pixels[p] + 12 * test_normal();
            pixels[p] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
        }
        right += judge(pixels, &s).correct;
    }
    check(right >= 198, "99 of 100");
}

// One thing is wrong, and the judge says which.
static void test_wrong(void) {
    static uint8_t pixels[MOST];
    for (int i = 0; i < 200; i++) {
        scene_t s = scene_of(0, (uint64_t)i, 48, 1), other = s;
        for (int k = 0; k < s.count; k++) other.objects[k].shape = (s.objects[k].shape + 1) % SCENE_SHAPES;
        draw(pixels, &other);
        scene_verdict_t v = judge(pixels, &s);
        check(!v.correct && v.number && v.colours && v.ground, "other shapes");
        other = s;
        other.ground = (s.ground + 1) % SCENE_GROUNDS;
        draw(pixels, &other);
        v = judge(pixels, &s);
        check(v.correct && !v.ground, "another ground is a measure of its own");
        other = s;
        other.count--;
        draw(pixels, &other);
        v = judge(pixels, &s);
        check(!v.correct && !v.number && !v.colours, "one too few");
        other = s;
        other.objects[0].colour = (s.objects[0].colour + 1) % SCENE_COLOURS;
        draw(pixels, &other);
        v = judge(pixels, &s);
        check(!v.correct && v.number && !v.colours, "another colour");
        if (s.count != 2 || s.kind == SCENE_COUNTING) continue;
        other = s;
        other.objects[0].shape = s.objects[1].shape, other.objects[1].shape = s.objects[0].shape;
        draw(pixels, &other);
        check(judge(pixels, &s).correct == (s.objects[0].shape == s.objects[1].shape), "the shapes exchanged");
        other = s;
        other.objects[0].x = s.objects[1].x, other.objects[0].y = s.objects[1].y;
        other.objects[1].x = s.objects[0].x, other.objects[1].y = s.objects[0].y;
        draw(pixels, &other);
        v = judge(pixels, &s);
        check(v.correct == (s.kind != SCENE_POSITION) && v.colours, "the places exchanged");
    }
    scene_t s = scene_of(0, 0, 48, 0);
    memset(pixels, 128, sizeof pixels);
    scene_verdict_t v = judge(pixels, &s);
    check(!v.correct && !v.number, "nothing");
    for (int p = 0; p < MOST; p++) pixels[p] = (uint8_t)(128 * (1 + test_uniform()));
    check(!judge(pixels, &s).correct, "noise");
    for (int p = 0; p < MOST; p++) pixels[p] = scene_rgb[0][p % 3];
    scene_seen_t seen = scene_look(pixels, 48, 48);
    check(seen.count == 1 && seen.objects[0].area == 48 * 48 && !judge(pixels, &s).correct, "one colour all over");
}

// Another scene of the same kind is right as often as chance says.
static void test_chance(void) {
    enum { N = 60000 };
    static const double chances[SCENE_KINDS] = {1.0 / 18, 1.0 / 54, 1.0 / 135, 1.0 / 540};
    static scene_t scenes[N];
    static scene_seen_t seen[N];
    for (int i = 0; i < N; i++) { // what was drawn, without drawing it
        scene_t* s = &scenes[i];
        *s = scene_of(0, (uint64_t)i, 48, 0);
        seen[i].ground = s->ground;
        seen[i].count = s->count;
        for (int k = 0; k < s->count; k++) {
            const scene_object_t* o = &s->objects[k];
            seen[i].objects[k] = (scene_found_t){o->shape, o->colour, 100, o->x, o->y};
        }
    }
    for (int kind = 0; kind < SCENE_KINDS; kind++) {
        int right = 0, all = 0;
        for (int pass = 1; pass <= 8; pass++) {
            for (int i = kind; i < N; i += SCENE_KINDS, all++) {
                right += scene_judge(&seen[(i + pass * 4 * 37) % N], &scenes[i]).correct;
            }
        }
        double want = chances[kind] * all;
        check(fabs(right - want) < 5 * sqrt(want), scene_kinds[kind]);
    }
}

static void test_scores(void) {
    scene_scores_t s = {{10, 4, 5, 8}, {5, 1, 1, 2}, 20, 18, 12};
    check(scene_score(&s, SCENE_COUNTING) == 0.25, "a kind");
    check(fabs(scene_overall(&s) - 0.3) < 1e-12, "the mean of the kinds, not of the pictures");
    check(fabs(scene_share(&s, s.ground) - 20.0 / 27) < 1e-12, "a share of all pictures");
}

// ---------------------------------------------------------------------------------------------------------------------
// As a data set

static void child_open(const char* spec) {
    dataset_t set;
    dataset_open(&set, spec, SPLIT_TRAIN);
    dataset_close(&set);
}

static void test_dataset(void) {
    static const char* const wrong[] = {"scenes:", "scenes:47", "scenes:24", "scenes:104", "scenes:48:", "scenes:48:odd",
                                        "scenes:mixed:48", "scenes:-48", "scenes:99999999999999999999"};
    static const char* const right[] = {"scenes", "scenes:48", "scenes:32", "scenes:mixed", "scenes:96:mixed"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        check_message(child_open, wrong[i], wrong[i], "scenes:SIDE:mixed");
    }
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        for (int split = 0; split < 2; split++) {
            dataset_t set;
            image_t image;
            char error[IMAGE_ERROR_SIZE];
            dataset_open(&set, right[i], split);
            check(set.count == (split ? 10000 : 60000) && set.class_count == 4, "a data set");
            check(!strcmp(set.folder, right[i]) && !strcmp(set.class_names[3], "position"), "its names");
            for (size_t k = 0; k < 40; k++) {
                int height, width;
                scene_t s = dataset_scene(&set, k);
                check(dataset_label(&set, k) == s.kind, "the label is the kind");
                check(dataset_size(&set, k, &height, &width) && dataset_load(&set, k, &image, error), "it is there");
                check(image.height == height && image.width == width && s.H == height && s.W == width, "of its size");
                scene_seen_t seen = scene_look(image.pixels, height, width);
                check(scene_judge(&seen, &s).correct, "and shows what it should");
                image_free(&image);
            }
            dataset_close(&set);
        }
    }
}

// Batches of a mixed set, in buckets: each image is its scene, pixel for pixel, for any number of threads and ranks.
static void test_batches(void) {
    enum { BATCH = 6, STEPS = 30 };
    static uint8_t pixels[MOST], whole[STEPS][BATCH][MOST];
    dataset_t set;
    aspect_t aspect;
    dataset_open(&set, "scenes:mixed", SPLIT_VAL);
    int* sizes = image_sizes_create(&set);
    image_sizes_read(sizes, &set, 0, set.count, 1, 0);
    aspect_open_area(&aspect, 48, 8, 2.1);
    aspect_fill(&aspect, sizes, set.count);
    free(sizes);
    check(aspect.images == set.count && !aspect.cut, "all are in buckets");
    int shapes[3] = {0};
    for (int world = 1; world <= 3; world++) {
        for (int rank = 0; rank < world; rank++) {
            dataloader_options_t options = {BATCH, 0, 0, 0, 1, rank, world, world - 1, 11, &aspect};
            dataloader_t loader;
            dataloader_open(&loader, &set, &options, 0);
            for (int s = 0; s < STEPS; s++) {
                const batch_t* b = dataloader_next(&loader);
                size_t bytes = (size_t)b->H * b->W * 3;
                for (int i = 0; i < b->count; i++) {
                    scene_t scene = dataset_scene(&set, (size_t)b->ids[i]);
                    draw(pixels, &scene);
                    check(scene.H == b->H && scene.W == b->W, "an image of the batch's size");
                    check(!memcmp(pixels, b->pixels + i * bytes, bytes), "neither resized nor mirrored");
                    uint8_t* one = whole[s][rank * b->count + i];
                    if (world == 1) memcpy(one, pixels, bytes);
                    else check(!memcmp(one, pixels, bytes), "the same by all ranks and threads");
                }
                shapes[b->H == 48 ? 0 : b->H == 40 ? 1 : 2]++;
            }
            dataloader_close(&loader);
        }
    }
    check(shapes[0] && shapes[1] && shapes[2], "steps of all three");
    aspect_close(&aspect);
    dataset_close(&set);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("captions")) { test_captions(); test_end_case(); }
    if (test_case("scenes")) { test_scenes(); test_end_case(); }
    if (test_case("how far a shape reaches")) { test_reach(); test_end_case(); }
    if (test_case("judge: all drawn scenes, 48 pixels")) { test_drawn(48, 2000); test_end_case(); }
    if (test_case("judge: all drawn scenes, other canvases")) {
        for (int side = 32; side <= 96; side += 8) test_drawn(side, 200);
        test_end_case();
    }
    if (test_case("judge: noise")) { test_noise(); test_end_case(); }
    if (test_case("judge: one thing wrong")) { test_wrong(); test_end_case(); }
    if (test_case("judge: chance")) { test_chance(); test_end_case(); }
    if (test_case("scores")) { test_scores(); test_end_case(); }
    if (test_case("data set")) { test_dataset(); test_end_case(); }
    if (test_case("batches: buckets, threads, ranks")) { test_batches(); test_end_case(); }
    temporary_end();
    return test_finish();
}
