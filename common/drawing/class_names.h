// class_names.h: what the numbers of a model's classes mean, and which number a user means.
//
//     class_names_read(&c, json, 1000, 0);                the names that the model's file keeps: those of the folders
//                                                         whose images it was trained on
//     int n = class_names_find(&c, "sneaker", found, 8);  numbers or names, whole or a part
//     class_names_free(&c);
//
// Names come from the training folder, through the shards of latents, and are never guessed. ImageNet's folders are
// named n01440764 and so on; only for those, and for others' files of a thousand classes, which are ImageNet's, the
// English names of common/drawing/imagenet_classes.h are taken, and that is said (`origin`). Look next at sample.cu.
#pragma once
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

// defines: cli_distance, cli_is_near
#include "common/program/cli.h"
// defines: imagenet_class
#include "common/drawing/imagenet_classes.h"
// defines: json_reader_t, json_more, json_string
#include "common/program/json.h"

enum { CLASS_NAME_SIZE = 64 }; // of the text that a user gives

typedef struct {
    int classes;
    const char** names; // [classes], or NULL where nobody knows
    char* strings;      // what they point to
    const char* origin; // where they come from, for people; "" for the training folder
} class_names_t;

// Are these the names of ImageNet's folders?
static inline int class_names_are_folders(const class_names_t* c) {
    if (c->classes != 1000 || !c->names) return 0;
    for (int i = 0; i < c->classes; i++) {
        const char* n = c->names[i];
        if (n[0] != 'n' || strlen(n) != 9 || strspn(n + 1, "0123456789") != 8) return 0;
        if (i && strcmp(c->names[i - 1], n) >= 0) return 0; // their order is that of the classes
    }
    return 1;
}

static inline void class_names_free(class_names_t* c) {
    free(c->names);
    free(c->strings);
    memset(c, 0, sizeof *c);
}

// Reads a JSON array of names; a text that is none of `classes` names counts as no names. `published`: the file is
// others'.
static inline void class_names_read(class_names_t* c, const char* json, int classes, int published) {
    json_reader_t r;
    char error[256];
    memset(c, 0, sizeof *c);
    memset(&r, 0, sizeof r);
    c->classes = classes;
    c->origin = "";
    c->names = (const char**)calloc_check((size_t)classes, sizeof *c->names, "names of classes");
    c->strings = (char*)malloc_check(strlen(json) + 1, "names of classes");
    r.begin = r.at = (const unsigned char*)json;
    r.end = r.begin + strlen(json);
    r.strings = c->strings;
    r.error = error;
    r.error_size = sizeof error;
    int n = 0;
    json_expect(&r, '[');
    for (int first = 1; json_more(&r, ']', first) && n < classes; first = 0) c->names[n++] = json_string(&r);
    json_end(&r);
    int known = !r.failed && n == classes, folders = known && class_names_are_folders(c);
    if (folders || (published && classes == 1000)) {
        for (int i = 0; i < classes; i++) c->names[i] = imagenet_class(i);
        c->origin = folders ? "ImageNet's names of its folders n01440764 to n15075141"
                            : "ImageNet's names, as the file is a published one of a thousand classes";
    } else if (!known) {
        free(c->names);
        c->names = NULL;
    }
}

// The name of a class, or "".
static inline const char* class_name(const class_names_t* c, int label) {
    return c->names && label >= 0 && label < c->classes ? c->names[label] : "";
}

static inline void class_names_lower(char out[CLASS_NAME_SIZE], const char* text) {
    size_t n = 0;
    for (; text[n] && n + 1 < CLASS_NAME_SIZE; n++) out[n] = (char)tolower((unsigned char)text[n]);
    out[n] = 0;
}

// The classes that a text means: that number; else the class of this name, whatever the case; else all whose names hold
// it. The first `most` go to `found`; returns how many there are.
static inline int class_names_find(const class_names_t* c, const char* text, int* found, int most) {
    char wanted[CLASS_NAME_SIZE], name[CLASS_NAME_SIZE], *end;
    long number = strtol(text, &end, 10);
    if (*text && !*end && number >= 0 && number < c->classes) {
        found[0] = (int)number;
        return 1;
    }
    class_names_lower(wanted, text);
    int n = 0;
    for (int whole = 1; whole >= 0 && !n; whole--) {
        for (int i = 0; c->names && *wanted && i < c->classes; i++) {
            class_names_lower(name, c->names[i]);
            if (whole ? strcmp(name, wanted) != 0 : !strstr(name, wanted)) continue;
            if (n < most) found[n] = i;
            n++;
        }
    }
    return n;
}

// The class whose name is nearest to a text that names none, or -1.
static inline int class_names_nearest(const class_names_t* c, const char* text) {
    char wanted[CLASS_NAME_SIZE], name[CLASS_NAME_SIZE];
    int best = -1, least = INT_MAX;
    class_names_lower(wanted, text);
    for (int i = 0; c->names && i < c->classes; i++) {
        class_names_lower(name, c->names[i]);
        int distance = cli_distance(wanted, name);
        if (distance < least && cli_is_near(distance, wanted)) least = distance, best = i;
    }
    return best;
}
