// geneval.h: GenEval's rules (Ghosh, Hajishirzi, Schmidt: "GenEval: an object-focused framework for evaluating
// text-to-image alignment", 2023): does a picture show the objects that its prompt names? What is in the picture, a
// detector and a classifier of colours have said before (Mask2Former and CLIP in the paper), in a file of JSON lines,
// one for each picture: the prompt's own fields, as GenEval's list of prompts has them, and the boxes, in pixels:
//
//     {"filename": "0.png", "tag": "position", "prompt": "a photo of a dog right of a teddy bear",
//      "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
//      "objects": [{"class": "dog", "score": 0.97, "box": [80, 20, 160, 120], "color": "brown"}]}
//
// Of each class those boxes count whose score is above 0.3 (for the task `counting`, 0.9), the 16 most certain ones.
//     include    at least `count` boxes of the class, of which the most certain `count` are looked at; with "color", all
//                of these have it; with "position", all of these are in that relation to all boxes of the wish whose
//                number it gives, which must itself be fulfilled
//     exclude    fewer than `count` boxes of the class
// Relation of boxes a and b with centres p, q and sizes s, t: on each axis
//     d = sign(p - q) max(|p - q| - (s + t) / 10, 0);   none if both are below 0.001
// divided by the distance of the centres: left of if d_x < -1/2, right of if > 1/2, above if d_y < -1/2, below if > 1/2.
//
// The score of a task is the share of its pictures that are right; the overall score is the mean of the six tasks, which
// are not of the same size. The file of results has a line for each picture, of which "tag" and "correct" are read.
// Look next at common/measures/scenes.h, the same questions in a world that needs no detector.
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

// defines: scene_relations, SCENE_RELATIONS
#include "common/data/scenes.h"
// defines: json_reader_t, json_text_t
#include "common/program/json.h"
// defines: malloc_check
#include "common/program/log.h"

enum { GENEVAL_TASKS = 6, GENEVAL_WISHES = 8, GENEVAL_MOST = 16 };
static const char* const geneval_tasks[GENEVAL_TASKS] = {"single_object", "two_object", "counting",
                                                         "colors",        "position",   "color_attr"};
enum { GENEVAL_COUNTING = 2 };

typedef struct {
    const char *name, *colour; // colour NULL: not said
    double score, box[4];      // left, top, right, bottom
} geneval_object_t;

typedef struct {
    const char *name, *colour; // colour NULL: any
    int count;
    int relation, target;      // relation -1: anywhere; else to the objects of include[target]
} geneval_wish_t;

// One line of the detector's file. Strings are in `buffer`.
typedef struct {
    const char *filename, *prompt;
    int task, includes, excludes, objects;
    geneval_wish_t include[GENEVAL_WISHES], exclude[GENEVAL_WISHES];
    geneval_object_t* object; // (objects)
    char* buffer;
} geneval_picture_t;

typedef struct {
    size_t pictures[GENEVAL_TASKS], correct[GENEVAL_TASKS];
} geneval_scores_t;

// ---------------------------------------------------------------------------------------------------------------------
// The rules

// The relations of a to b, bit k for scene_relations[k].
static inline int geneval_relations(const double a[4], const double b[4]) {
    double offset[2], revised[2];
    for (int k = 0; k < 2; k++) {
        offset[k] = (a[k] + a[k + 2]) / 2 - (b[k] + b[k + 2]) / 2;
        double most = fabs(offset[k]) - 0.1 * (fabs(a[k + 2] - a[k]) + fabs(b[k + 2] - b[k]));
        revised[k] = most > 0 ? copysign(most, offset[k]) : 0;
    }
    if (fabs(revised[0]) < 1e-3 && fabs(revised[1]) < 1e-3) return 0;
    double half = hypot(offset[0], offset[1]) / 2;
    return (revised[0] < -half) << SCENE_LEFT_OF | (revised[0] > half) << SCENE_RIGHT_OF |
           (revised[1] < -half) << SCENE_ABOVE | (revised[1] > half) << SCENE_BELOW;
}

// The boxes of a class that count, the most certain first; of equal ones, the earlier. Returns how many.
static inline int geneval_find(const geneval_picture_t* p, const char* name,
                               const geneval_object_t* found[GENEVAL_MOST]) {
    double least = p->task == GENEVAL_COUNTING ? 0.9 : 0.3;
    int n = 0;
    for (int i = 0; i < p->objects; i++) {
        const geneval_object_t* o = &p->object[i];
        if (!(o->score > least) || strcmp(o->name, name)) continue;
        int at = n < GENEVAL_MOST ? n++ : GENEVAL_MOST;
        for (; at && found[at - 1]->score < o->score; at--) {
            if (at < GENEVAL_MOST) found[at] = found[at - 1];
        }
        if (at < GENEVAL_MOST) found[at] = o;
    }
    return n;
}

// Is wish number `number` fulfilled? fulfilled[k]: wish k before it was.
static inline int geneval_wish_holds(const geneval_picture_t* p, int number, const int* fulfilled) {
    const geneval_object_t *found[GENEVAL_MOST], *others[GENEVAL_MOST];
    const geneval_wish_t* w = &p->include[number];
    if (geneval_find(p, w->name, found) < w->count) return 0;
    for (int i = 0; w->colour && i < w->count; i++) {
        if (!found[i]->colour || strcmp(found[i]->colour, w->colour)) return 0;
    }
    if (w->relation < 0) return 1;
    if (!fulfilled[w->target]) return 0;
    geneval_find(p, p->include[w->target].name, others);
    for (int i = 0; i < w->count; i++) {
        for (int k = 0; k < p->include[w->target].count; k++) {
            if (!(geneval_relations(found[i]->box, others[k]->box) >> w->relation & 1)) return 0;
        }
    }
    return 1;
}

static inline int geneval_is_correct(const geneval_picture_t* p) {
    const geneval_object_t* found[GENEVAL_MOST];
    int fulfilled[GENEVAL_WISHES] = {0}, correct = 1;
    for (int i = 0; i < p->includes; i++) {
        fulfilled[i] = geneval_wish_holds(p, i, fulfilled);
        correct &= fulfilled[i];
    }
    for (int i = 0; i < p->excludes; i++) {
        correct &= geneval_find(p, p->exclude[i].name, found) < p->exclude[i].count;
    }
    return correct;
}

// ---------------------------------------------------------------------------------------------------------------------
// The detector's file

static inline int geneval_task(json_reader_t* r, const char* name) {
    for (int k = 0; k < GENEVAL_TASKS; k++) {
        if (!strcmp(name, geneval_tasks[k])) return k;
    }
    json_fail(r, "the tag \"%.40s\" is none of GenEval's tasks", name);
    return 0;
}

// ["right of", 0]
static inline void geneval_read_position(json_reader_t* r, geneval_wish_t* w, int number) {
    json_expect(r, '[');
    const char* name = json_string(r);
    json_expect(r, ',');
    size_t target = json_size(r);
    json_expect(r, ']');
    for (int k = 0; k < SCENE_RELATIONS; k++) {
        if (!strcmp(name, scene_relations[k])) w->relation = k;
    }
    if (w->relation < 0) json_fail(r, "\"%.40s\" is no position", name);
    if (target >= (size_t)number) json_fail(r, "a position to object %zu, which stands not before it", target);
    w->target = (int)target;
}

// The array of "include" or "exclude". Returns how many wishes it has.
static inline int geneval_read_wishes(json_reader_t* r, geneval_wish_t* wishes) { // (GENEVAL_WISHES)
    int n = 0;
    json_expect(r, '[');
    for (int first = 1; json_more(r, ']', first); first = 0, n++) {
        if (n == GENEVAL_WISHES) {
            json_fail(r, "more than %d wishes", GENEVAL_WISHES);
            return 0;
        }
        geneval_wish_t* w = &wishes[n];
        memset(w, 0, sizeof *w);
        w->relation = -1;
        json_expect(r, '{');
        for (int start = 1; json_more(r, '}', start); start = 0) {
            const char* key = json_key(r);
            if (!strcmp(key, "class")) w->name = json_string(r);
            else if (!strcmp(key, "color")) w->colour = json_string(r);
            else if (!strcmp(key, "count")) w->count = (int)json_size(r);
            else if (!strcmp(key, "position")) geneval_read_position(r, w, n);
            else json_skip_value(r, 0);
        }
        if (!w->name || w->count < 1 || w->count > GENEVAL_MOST) {
            json_fail(r, "a wish wants a class, and a count of 1 to %d", GENEVAL_MOST);
        }
    }
    return r->failed ? 0 : n;
}

static inline void geneval_read_object(json_reader_t* r, geneval_object_t* o) {
    int sides = 0;
    memset(o, 0, sizeof *o);
    o->score = NAN;
    json_expect(r, '{');
    for (int first = 1; json_more(r, '}', first); first = 0) {
        const char* key = json_key(r);
        if (!strcmp(key, "class")) o->name = json_string(r);
        else if (!strcmp(key, "color") && json_peek(r) == '"') o->colour = json_string(r);
        else if (!strcmp(key, "score")) o->score = strtod(json_number(r), NULL);
        else if (!strcmp(key, "box")) {
            json_expect(r, '[');
            for (int start = 1; json_more(r, ']', start) && sides < 4; start = 0) {
                o->box[sides++] = strtod(json_number(r), NULL);
            }
        } else json_skip_value(r, 0);
    }
    int whole = o->name && !isnan(o->score) && sides == 4;
    if (!whole) json_fail(r, "an object wants a class, a score and a box of 4 numbers");
}

static inline void geneval_read_objects(json_reader_t* r, geneval_picture_t* p) {
    int room = 0;
    json_expect(r, '[');
    for (int first = 1; json_more(r, ']', first); first = 0) {
        if (p->objects == room) {
            room = room ? 2 * room : 16;
            p->object = (geneval_object_t*)realloc(p->object, room * sizeof *p->object);
            if (!p->object) fatal("no memory for %d boxes", room);
        }
        geneval_read_object(r, &p->object[p->objects]);
        p->objects += !r->failed;
    }
}

static inline void geneval_free(geneval_picture_t* p) {
    free(p->object);
    free(p->buffer);
    memset(p, 0, sizeof *p);
}

// A reader of one line. Its `strings`, as they are at the start, are to be freed.
static inline json_reader_t geneval_reader(const char* line, size_t size, char* error, size_t error_size) {
    json_reader_t r;
    memset(&r, 0, sizeof r);
    r.begin = r.at = (const unsigned char*)line;
    r.end = r.begin + size;
    r.strings = (char*)malloc_check(size + 1, "a line of JSON");
    r.error = error;
    r.error_size = error_size;
    json_where(&r, "the line");
    return r;
}

// Reads a line of the detector's file. 1, or 0 with a message; to be freed in both cases.
static inline int geneval_read(geneval_picture_t* p, const char* line, size_t size, char* error, size_t error_size) {
    json_reader_t r = geneval_reader(line, size, error, error_size);
    memset(p, 0, sizeof *p);
    p->buffer = r.strings;
    p->filename = p->prompt = "";
    p->task = -1;
    json_expect(&r, '{');
    for (int first = 1; json_more(&r, '}', first); first = 0) {
        const char* key = json_key(&r);
        if (!strcmp(key, "filename")) p->filename = json_string(&r);
        else if (!strcmp(key, "prompt")) p->prompt = json_string(&r);
        else if (!strcmp(key, "tag")) p->task = geneval_task(&r, json_string(&r));
        else if (!strcmp(key, "include")) p->includes = geneval_read_wishes(&r, p->include);
        else if (!strcmp(key, "exclude")) p->excludes = geneval_read_wishes(&r, p->exclude);
        else if (!strcmp(key, "objects")) geneval_read_objects(&r, p);
        else json_skip_value(&r, 0);
    }
    json_end(&r);
    if (p->task < 0 || !p->includes) json_fail(&r, "it wants a \"tag\" and an \"include\"");
    return !r.failed;
}

// ---------------------------------------------------------------------------------------------------------------------
// The file of results

// Adds a picture's line to the file of results, and to the scores.
static inline void geneval_add(geneval_scores_t* s, json_text_t* results, const geneval_picture_t* p) {
    int correct = geneval_is_correct(p);
    s->pictures[p->task]++;
    s->correct[p->task] += correct;
    json_append(results, "{\"filename\": ");
    json_append_string(results, p->filename);
    json_append(results, ", \"tag\": \"%s\", \"prompt\": ", geneval_tasks[p->task]);
    json_append_string(results, p->prompt);
    json_append(results, ", \"correct\": %s}\n", correct ? "true" : "false");
}

// Adds a line of a file of results, whoever wrote it. 1, or 0 with a message.
static inline int geneval_add_result(geneval_scores_t* s, const char* line, size_t size, char* error,
                                     size_t error_size) {
    json_reader_t r = geneval_reader(line, size, error, error_size);
    char* buffer = r.strings;
    int task = -1, correct = -1;
    json_expect(&r, '{');
    for (int first = 1; json_more(&r, '}', first); first = 0) {
        const char* key = json_key(&r);
        int is_correct = !strcmp(key, "correct"), c = json_peek(&r);
        if (is_correct && (c == 't' || c == 'f')) correct = c == 't';
        if (!strcmp(key, "tag")) task = geneval_task(&r, json_string(&r));
        else json_skip_value(&r, 0);
    }
    json_end(&r);
    if (task < 0 || correct < 0) json_fail(&r, "it wants a \"tag\", and \"correct\": true or false");
    free(buffer);
    if (r.failed) return 0;
    s->pictures[task]++;
    s->correct[task] += (size_t)correct;
    return 1;
}

// The share of correct pictures of a task; NAN where there are none.
static inline double geneval_score(const geneval_scores_t* s, int task) {
    return s->pictures[task] ? (double)s->correct[task] / s->pictures[task] : NAN;
}

// The mean of the tasks; NAN where one is missing.
static inline double geneval_overall(const geneval_scores_t* s) {
    double sum = 0;
    for (int k = 0; k < GENEVAL_TASKS; k++) sum += geneval_score(s, k);
    return sum / (int)GENEVAL_TASKS;
}
