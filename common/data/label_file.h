// label_file.h: the classes of images that lie in one folder, without class folders: ImageNet's val as it is unpacked.
//
// Their labels come as a text file, which is looked for beside the images and in the folders above them:
//
//     LOC_val_solution.csv      Kaggle's:       ILSVRC2012_val_00048981,n03995372 85 1 499 272
//     val.txt and others        Caffe's:        ILSVRC2012_val_00000001.JPEG 65
//     val_annotations.txt       Tiny ImageNet:  val_0.JPEG    n03444034  0  32  44  62
//     ..._synset_labels.txt     TensorFlow's:   n01751748                              one line for each image, in the
//     ..._ground_truth.txt      the devkit's:   490                                    order of their names
//
// A class is written by the name of its folder in train, or by its number there, from 0 on, in the order of the names.
// The devkit's numbers have another order, which map_clsloc.txt beside it tells ("n02119789 1 kit_fox"; the devkits of
// 2015 and later have it): without it they are refused.
// Look next at common/data/dataset.h, the user.
#pragma once
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// defines: image_read_file
#include "common/data/image.h"
// defines: fatal, malloc_check, calloc_check
#include "common/program/log.h"

// Folders that are looked through: the images', and those above. Kaggle's ILSVRC/Data/CLS-LOC/val has its file in the
// fourth above.
enum { LABEL_FILE_PATH = 1200, LABEL_FILE_ABOVE = 5 };

// One line: the image that it is of ("": the one whose turn it is), and its class as it is written.
typedef struct {
    const char *image, *value;
} label_line_t;

typedef struct {
    const char* path;
    char* text; // of the file, cut into words
    label_line_t* lines;
    size_t count;
    int named;  // lines name their image
} label_file_t;

static const char* const label_file_names[] = {
    "LOC_val_solution.csv", "val.txt", "val_labels.txt", "val_label.txt", "val_map.txt", "labels.txt",
    "ILSVRC2012_val.txt", "ILSVRC2012_val_labels.txt", "val_annotations.txt",
    "imagenet_2012_validation_synset_labels.txt", "ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2015_clsloc_validation_ground_truth.txt"};

// The first label file in `folder` or above it, in `path`. 0 where there is none.
static inline int label_file_find(const char* folder, char path[LABEL_FILE_PATH]) {
    static const char* const rooms[] = {"", "ILSVRC2012_devkit_t12/data/", "devkit/data/"};
    for (int up = 0; up < LABEL_FILE_ABOVE; up++) {
        for (size_t r = 0; r < sizeof rooms / sizeof *rooms; r++) {
            for (size_t i = 0; i < sizeof label_file_names / sizeof *label_file_names; i++) {
                int n = snprintf(path, LABEL_FILE_PATH, "%s/", folder);
                for (int k = 0; k < up && n < LABEL_FILE_PATH; k++) {
                    n += snprintf(path + n, (size_t)(LABEL_FILE_PATH - n), "../");
                }
                if (n >= LABEL_FILE_PATH) return 0;
                n += snprintf(path + n, (size_t)(LABEL_FILE_PATH - n), "%s%s", rooms[r], label_file_names[i]);
                if (n < LABEL_FILE_PATH && !access(path, R_OK)) return 1;
            }
        }
    }
    return 0;
}

static inline int label_is_number(const char* text) {
    return *text && strspn(text, "0123456789") == strlen(text) && strlen(text) < 9;
}

// "val/a.JPEG" -> "a", in place
static inline const char* label_image_name(char* text) {
    char* slash = strrchr(text, '/');
    char* name = slash ? slash + 1 : text;
    char* dot = strrchr(name, '.');
    if (dot && dot != name) *dot = 0;
    return name;
}

static inline int label_line_compare(const void* a, const void* b) {
    return strcmp(((const label_line_t*)a)->image, ((const label_line_t*)b)->image);
}

// Reads the lines of a file. A line of one word is a class; of more, an image and its class.
static inline void label_file_open(label_file_t* f, const char* path) {
    size_t size = 0, room = 0;
    uint8_t* bytes = image_read_file(path, &size);
    if (!bytes) fatal("the label file %s cannot be read: %s", path, strerror(errno));
    memset(f, 0, sizeof *f);
    f->path = path;
    f->text = (char*)malloc_check(size + 1, "a label file");
    memcpy(f->text, bytes, size);
    f->text[size] = 0;
    free(bytes);
    for (size_t i = 0; i < size; i++) {
        if (!f->text[i]) f->text[i] = ' ';
        room += f->text[i] == '\n';
    }
    f->lines = (label_line_t*)calloc_check(room + 1, sizeof *f->lines, "a label file");
    for (char *line = f->text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        char *rest = NULL, *first = strtok_r(line, " \t\r,", &rest), *second = strtok_r(NULL, " \t\r,", &rest);
        if (!first || !strcmp(first, "ImageId")) continue; // empty, or Kaggle's heading
        int named = second != NULL;
        if (f->count && named != f->named) {
            fatal("the label file %s: line %zu has another form than the one before; want \"IMAGE CLASS\" in each, or "
                  "\"CLASS\"", path, f->count + 1);
        }
        f->named = named;
        f->lines[f->count].image = named ? label_image_name(first) : "";
        f->lines[f->count++].value = named ? second : first;
    }
    if (f->named) qsort(f->lines, f->count, sizeof *f->lines, label_line_compare);
}

static inline void label_file_close(label_file_t* f) {
    free(f->text);
    free(f->lines);
    memset(f, 0, sizeof *f);
}

static inline int label_compare_texts(const void* a, const void* b) {
    return strcmp(*(char* const*)a, *(char* const*)b);
}

// The number of a class in the sorted list of names, or -1.
static inline int label_of_class(const char* name, char** classes, int class_count) {
    char** found = (char**)bsearch(&name, classes, (size_t)class_count, sizeof *classes, label_compare_texts);
    return found ? (int)(found - classes) : -1;
}

// The line of the image `name`, number `place` of `count` in the order of names. A list without names may be longer
// than the images are: then those must be numbered, as ILSVRC2012_val_00000001 is.
static inline const label_line_t* label_file_line(const label_file_t* f, const char* name, size_t place, size_t count) {
    label_line_t wanted = {name, NULL};
    if (f->named) return (const label_line_t*)bsearch(&wanted, f->lines, f->count, sizeof wanted, label_line_compare);
    if (f->count == count) return &f->lines[place];
    size_t digits = strlen(name);
    while (digits && name[digits - 1] >= '0' && name[digits - 1] <= '9') digits--;
    size_t number = strtoull(name + digits, NULL, 10);
    return strlen(name + digits) >= 5 && number >= 1 && number <= f->count ? &f->lines[number - 1] : NULL;
}

// The devkit's number -> the class; -1 where map_clsloc.txt does not say.
static inline int label_of_devkit(const label_file_t* map, const char* number, char** classes, int class_count) {
    for (size_t i = 0; i < map->count; i++) { // lines "n02119789 1 kit_fox": the class stands where an image does
        if (!strcmp(map->lines[i].value, number)) return label_of_class(map->lines[i].image, classes, class_count);
    }
    return -1;
}

// labels = those of the images by the file at `path`. Ends the program where one has none.
static inline void label_file_read(const char* path, int* labels, char** images, size_t count, // (count), sorted
                                   char** classes, int class_count) {                          // sorted
    label_file_t f, map;
    char beside[LABEL_FILE_PATH + 16];
    memset(&map, 0, sizeof map);
    label_file_open(&f, path);
    int numbers = f.count > 0, zero = 0;
    for (size_t i = 0; i < f.count; i++) {
        numbers &= label_is_number(f.lines[i].value) && label_of_class(f.lines[i].value, classes, class_count) < 0;
        zero |= numbers && !atoi(f.lines[i].value);
    }
    int devkit = numbers && !f.named && !zero;
    const char* slash = strrchr(path, '/');
    snprintf(beside, sizeof beside, "%.*smap_clsloc.txt", slash ? (int)(slash + 1 - path) : 0, path);
    if (devkit && access(beside, R_OK)) {
        fatal("%s: its numbers are the ILSVRC devkit's, in an order that %s would tell (lines \"n02119789 1 kit_fox\", "
              "in the devkits of 2015 and later); put it there, or Kaggle's LOC_val_solution.csv beside val", path,
              beside);
    }
    if (devkit) label_file_open(&map, beside);
    for (size_t i = 0; i < count; i++) {
        char* copy = strdup(images[i]);
        const char* name = label_image_name(copy);
        const label_line_t* line = label_file_line(&f, name, i, count);
        if (!line) fatal("%s has no label for %s (it has %zu lines for %zu images)", path, images[i], f.count, count);
        int label = devkit ? label_of_devkit(&map, line->value, classes, class_count)
                  : numbers ? atoi(line->value) : label_of_class(line->value, classes, class_count);
        if (label < 0 || label >= class_count) {
            fatal("%s: the class of %s is \"%.40s\"; want %s", path, name, line->value,
                  numbers ? "a number from 0 on, below the number of classes in train, in the order of their names"
                          : "the name of a class folder in train");
        }
        labels[i] = label;
        free(copy);
    }
    label_file_close(&f);
    label_file_close(&map);
}
