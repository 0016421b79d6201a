// dataset.h: a data set is a numbered list of images, each with a label, and the names of the classes.
//
//   folder    images below a folder; the class is the first-level folder, in strcmp order of the names; or one class
//             when the folder has images but no folders. Subfolders train/ and val/ are the two splits: classes are
//             numbered by the names in train, whichever of them val has. A val without class folders (ImageNet's, as
//             it is unpacked) has no labels until somebody needs them (dataset_need_labels, from a label file).
//   tar       ImageNet's ILSVRC2012_img_train.tar and _val.tar in the folder, in place of train/ and val/, or one of
//             them by its own name: read where the images lie, without unpacking (common/data/tar_index.h).
//   IDX       the files of MNIST and its relatives: train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-... for
//             the validation split, each gzipped (.gz) or not. Grey becomes RGB.
//   garments  Fashion-MNIST's garments dyed and laid on coloured grounds, 32 x 32, drawn on demand
//             (common/data/garments.h). The colours are drawn, the garments real.
//   captions  captions:FOLDER, images with captions: tar archives as img2dataset writes them, or files with a text file
//             for each (common/data/captions.h). All are of one class.
//   scenes    coloured shapes on plain grounds, each with a caption, 48 x 48, drawn on demand (common/data/scenes.h).
//             The class is the kind of scene. scenes:64 has canvases of 64 pixels, scenes:mixed also wide and tall
//             ones, scenes:64:mixed both.
//   shapes    ten classes of coloured shapes on textured grounds, 32 x 32, drawn on demand (common/data/shapes.h), for
//             machines that have no data at all.
//
// Opening a data set lists files, checks what can be checked without decoding, and ends the program with a message on
// whatever the user can mend; what is left out (other kinds of images, what is no ordinary file) is counted and named
// once. Names that begin with a dot are no data. Decoding one image (dataset_load) returns an error instead: among a
// million files a few are damaged, and common/data/dataloader.h goes on without them.
#pragma once
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// defines: captions_t, captions_open, captions_load, captions_line, captions_text, captions_name, captions_close
#include "common/data/captions.h"
// defines: garment_draw, GARMENTS_SIZE, GARMENTS_SOURCE
#include "common/data/garments.h"
// defines: idx_find, idx_load
#include "common/data/idx.h"
// defines: image_t, image_create, image_load
#include "common/data/image.h"
// defines: label_file_find, label_file_read
#include "common/data/label_file.h"
// defines: listing_t, dataset_list_folder, dataset_list_tree, string_list_t, string_copy, dataset_join, path_*
#include "common/data/listing.h"
// defines: scene_t, scene_of, scene_draw, scene_caption, scene_kinds, SCENE_*, SCENES_*
#include "common/data/scenes.h"
// defines: shapes_draw, SHAPES_SIZE, SHAPES_CLASSES
#include "common/data/shapes.h"
// defines: tar_index_t, tar_index_open, tar_index_close, tar_index_is_tar, tar_entry_class
#include "common/data/tar_index.h"
// defines: HASH_START, hash_word, hash_string, hash_text
#include "common/program/hash.h"
// defines: fatal, warn_once, malloc_check, calloc_check
#include "common/program/log.h"
// defines: progress_t, progress_begin, progress_say
#include "common/program/progress.h"

enum { SPLIT_TRAIN = 0, SPLIT_VAL = 1 };
enum { DATASET_FOLDER = 0, DATASET_IDX = 1, DATASET_SHAPES = 2, DATASET_GARMENTS = 3, DATASET_SCENES = 4,
       DATASET_CAPTIONS = 5 };

#define FASHION_MNIST_FOLDER "/usr/share/datasets/fashion-mnist" // Debian's package dataset-fashion-mnist

typedef struct {
    int kind;
    int split;
    size_t count;
    int class_count;
    char** class_names; // [class_count]
    int* labels;        // [count]; NULL: the label is i % class_count; -1: unknown
    int unlabelled;     // the images lie flat, beside a train that has classes: all labels are -1
    char* folder;       // where the files are
    char** paths;       // [count] whole paths; folder only; in an archive, its path and the member's
    tar_index_t archive; // entry i is image i; folder only, and only where it is one
    captions_t captions; // captions only
    uint8_t* named;     // [count] damaged files that a warning has named; folder and captions only
    uint8_t* pixels;    // (count, rows, columns) grey; IDX and garments only
    int rows, columns;  // scenes: of the square canvas
    int mixed;          // scenes: also on wide and tall canvases
} dataset_t;

// ---------------------------------------------------------------------------------------------------------------------
// Folders and archives

// Appends the images of one class, sorted by path.
static inline void dataset_add_class(dataset_t* dataset, int label, string_list_t* images, string_list_t* all) {
    string_list_sort(images);
    dataset->labels = (int*)realloc(dataset->labels, (all->count + images->count) * sizeof(int));
    if (!dataset->labels) fatal("no memory for %zu labels", all->count + images->count);
    for (size_t i = 0; i < images->count; i++) {
        dataset->labels[all->count] = label;
        string_list_add(all, images->items[i]);
    }
    free(images->items); // the strings are in `all` by now
}

// The names of the folders in a list, sorted.
static inline void dataset_names(const string_list_t* folders, string_list_t* names) {
    for (size_t i = 0; i < folders->count; i++) string_list_add(names, string_copy(path_name(folders->items[i])));
    string_list_sort(names);
}

// Folders 0, 1, ..., 10, 11 are sorted as text, as ImageFolder sorts them: 0, 1, 10, 11, 2. Whoever asks for class 2
// must know.
static inline void dataset_warn_of_numbers(const dataset_t* d) {
    int first = -1;
    for (int i = 0; i < d->class_count; i++) {
        const char* name = d->class_names[i];
        if (!*name || strspn(name, "0123456789") != strlen(name)) return;
        if (first < 0 && i && strtoull(name, NULL, 10) < strtoull(d->class_names[i - 1], NULL, 10)) first = i;
    }
    if (first < 0) return;
    warn_once("the class folders are numbers, and sorted as text, as ImageFolder does it: folder %s is class %d; names "
              "of equal length (02) keep their order", d->class_names[first], first);
}

// The label of a class folder by the names of train; what train does not have ends the program.
static inline int dataset_label_of(const dataset_t* d, const char* folder) {
    int label = label_of_class(path_name(folder), d->class_names, d->class_count);
    if (label >= 0) return label;
    fatal("%s: the training images have no class of this name (theirs are %s ... %s); rename the folder, or take it "
          "out", folder, d->class_names[0], d->class_names[d->class_count - 1]);
}

// Lists the class folders, which have their number by d->class_names. Returns how many hold images; in training images
// all have to.
static inline size_t dataset_list_classes(dataset_t* d, listing_t* l, string_list_t* all, int may_lack) {
    size_t found = 0;
    string_list_sort(&l->folders);
    progress_t progress = progress_begin("list", (double)l->folders.count, log_rank == 0); // of classes
    for (size_t i = 0; i < l->folders.count; i++) {
        char text[600];
        const char* folder = l->folders.items[i];
        memset(&l->images, 0, sizeof l->images);
        dataset_list_tree(folder, NULL, l);
        found += l->images.count > 0;
        if (l->images.count == 0 && !may_lack) {
            listing_others(l, text, sizeof text);
            fatal("the class folder %s holds no images (" DATASET_ENDINGS ")%s%s; each folder in %s is a class: remove "
                  "it or fill it", folder, *text ? "; other files so far: " : "", text, d->folder);
        }
        dataset_add_class(d, dataset_label_of(d, folder), &l->images, all);
        progress_say(&progress, (double)(i + 1));
    }
    return found;
}

// Images that lie in no class folder: all of one class, or of unknown ones.
static inline void dataset_list_flat(dataset_t* d, const char* folder, listing_t* l, string_list_t* all) {
    string_list_free(&l->folders);
    string_list_free(&l->images);
    memset(l->others, 0, sizeof l->others);
    dataset_list_tree(folder, NULL, l);
    dataset_add_class(d, d->unlabelled ? -1 : 0, &l->images, all);
}

// Sets the classes: those of `names`, or "all".
static inline void dataset_set_classes(dataset_t* d, const string_list_t* names) {
    d->class_count = names->count ? (int)names->count : 1;
    d->class_names = (char**)malloc_check(d->class_count * sizeof(char*), "the class names");
    d->class_names[0] = string_copy("all");
    for (size_t i = 0; i < names->count; i++) {
        if (!i) free(d->class_names[0]);
        d->class_names[i] = string_copy(names->items[i]);
    }
}

// The classes of an archive, in the order of its entries.
static inline void dataset_archive_names(const tar_index_t* x, string_list_t* names) {
    for (size_t i = 0; i < x->count; i++) {
        int length = tar_entry_class(&x->entries[i]);
        const char* last = names->count ? names->items[names->count - 1] : "";
        if (!length || ((size_t)length == strlen(last) && !memcmp(last, x->entries[i].path, (size_t)length))) continue;
        string_list_add(names, string_copy(x->entries[i].path));
        names->items[names->count - 1][length] = 0;
    }
}

// The classes of the training images, in a folder or an archive.
static inline void dataset_train_names(const char* train, string_list_t* names) {
    listing_t l;
    tar_index_t x;
    if (tar_index_is_tar(train)) {
        tar_index_open(&x, train);
        dataset_archive_names(&x, names);
        tar_index_close(&x);
        return;
    }
    memset(&l, 0, sizeof l);
    dataset_list_folder(train, &l);
    dataset_names(&l.folders, names);
    string_list_free(&l.folders);
    string_list_free(&l.images);
}

// Opens an archive of images; `train` as below.
static inline void dataset_open_archive(dataset_t* d, const char* train) {
    listing_t l;
    string_list_t names = {NULL, 0, 0};
    tar_index_t* x = &d->archive;
    d->kind = DATASET_FOLDER;
    memset(&l, 0, sizeof l);
    tar_index_open(x, d->folder);
    size_t n = 0;
    for (size_t i = 0; i < x->count; i++) { // what is no image is taken out, and counted where it is of another kind
        size_t before = l.images.count;
        listing_add_file(&l, dataset_join(d->folder, x->entries[i].path), 1);
        if (l.images.count > before) x->entries[n++] = x->entries[i];
        else free(x->entries[i].path);
    }
    x->count = n;
    if (!n) fatal("the archive %s holds no images (" DATASET_ENDINGS ")", d->folder);
    if (train) dataset_train_names(train, &names);
    else dataset_archive_names(x, &names);
    dataset_set_classes(d, &names);
    d->labels = (int*)malloc_check(n * sizeof(int), "labels");
    d->unlabelled = names.count > 0;
    for (size_t i = 0; i < n; i++) d->unlabelled &= !tar_entry_class(&x->entries[i]);
    for (size_t i = 0; i < n; i++) {
        int length = tar_entry_class(&x->entries[i]);
        char* name = string_copy(x->entries[i].path);
        name[length] = 0;
        int stray = names.count && !length && !d->unlabelled;
        if (stray) fatal("%s lies in no class, and others in the archive do; pack it again", l.images.items[i]);
        d->labels[i] = d->unlabelled ? -1 : names.count ? dataset_label_of(d, name) : 0;
        free(name);
    }
    dataset_warn_of_numbers(d);
    listing_warn_of_others(d->folder, &l);
    string_list_free(&names);
    d->paths = l.images.items;
    d->count = n;
    d->named = (uint8_t*)calloc_check(n, 1, "the list of damaged files");
}

// Opens a folder of images. `train`: the training images whose val this is, or NULL.
static inline void dataset_open_folder(dataset_t* d, const char* train) {
    listing_t l;
    string_list_t names = {NULL, 0, 0}, all = {NULL, 0, 0};
    memset(&l, 0, sizeof l);
    d->kind = DATASET_FOLDER;
    dataset_list_folder(d->folder, &l);
    if (train) dataset_train_names(train, &names);
    else dataset_names(&l.folders, &names);
    dataset_set_classes(d, &names);
    int only = l.folders.count == 1 && !l.images.count; // Tiny ImageNet's val has one folder, images
    int bundle = train && names.count && only && !strcmp(path_name(l.folders.items[0]), "images") &&
                 label_of_class("images", d->class_names, d->class_count) < 0;
    d->unlabelled = train && names.count && (bundle || !l.folders.count);
    if (d->unlabelled || !names.count) {
        char* flat = string_copy(bundle ? l.folders.items[0] : d->folder);
        dataset_list_flat(d, flat, &l, &all);
        free(flat);
    } else {
        if (l.images.count) {
            warn_once("%zu images lie directly in %s, beside the class folders; they have no class and are left out",
                      l.images.count, d->folder);
            string_list_free(&l.images);
        }
        size_t found = dataset_list_classes(d, &l, &all, train != NULL);
        if (found < names.count) {
            warn_once("%s has images of %zu of the %zu classes of %s", d->folder, found, names.count, train);
        }
    }
    if (all.count == 0) {
        char text[600];
        listing_others(&l, text, sizeof text);
        fatal("the data folder %s holds no images (" DATASET_ENDINGS ")%s%s and no folders with images; name another "
              "with -data", d->folder, *text ? "; it holds " : "", text);
    }
    dataset_warn_of_numbers(d);
    listing_warn_of_others(d->folder, &l);
    string_list_free(&names);
    string_list_free(&l.folders);
    d->paths = all.items;
    d->count = all.count;
    d->named = (uint8_t*)calloc_check(all.count, 1, "the list of damaged files");
}

// ---------------------------------------------------------------------------------------------------------------------
// IDX files

// The file `prefix`-`suffix` of a folder that holds IDX files, read whole.
static inline uint8_t* idx_load_member(const char* folder, int split, const char* suffix, int dimensions,
                                       size_t* sizes) {
    char name[64];
    snprintf(name, sizeof name, "%s-%s", split == SPLIT_TRAIN ? "train" : "t10k", suffix);
    char* path = idx_find(folder, name);
    if (!path) fatal("%s has other IDX files but neither %s nor %s.gz; put it there", folder, name, name);
    uint8_t* data = idx_load(path, dimensions, sizes);
    free(path);
    return data;
}

static inline int dataset_has_idx(const char* folder) {
    static const char* names[2] = {"train-images-idx3-ubyte", "t10k-images-idx3-ubyte"};
    int found = 0;
    for (int i = 0; i < 2 && !found; i++) {
        char* path = idx_find(folder, names[i]);
        found = path != NULL;
        free(path);
    }
    return found;
}

static inline void dataset_open_idx(dataset_t* dataset, int are_garments) {
    static const char* const fashion[10] = {"T-shirt", "trouser", "pullover", "dress",   "coat",
                                            "sandal",  "shirt",   "sneaker",  "bag",     "ankle boot"};
    size_t sizes[3], label_count;
    dataset->kind = DATASET_IDX;
    dataset->pixels = idx_load_member(dataset->folder, dataset->split, "images-idx3-ubyte", 3, sizes);
    uint8_t* labels = idx_load_member(dataset->folder, dataset->split, "labels-idx1-ubyte", 1, &label_count);
    if (label_count != sizes[0]) {
        fatal("%s: the image file holds %zu images but the label file %zu labels; they don't belong together",
              dataset->folder, sizes[0], label_count);
    }
    dataset->count = sizes[0];
    dataset->rows = (int)sizes[1];
    dataset->columns = (int)sizes[2];
    dataset->labels = (int*)malloc_check(dataset->count * sizeof(int), "the labels");
    for (size_t i = 0; i < dataset->count; i++) {
        dataset->labels[i] = labels[i];
        if (labels[i] >= dataset->class_count) dataset->class_count = labels[i] + 1;
    }
    free(labels);
    int is_fashion = dataset->class_count == 10 && (strstr(path_name(dataset->folder), "fashion") || are_garments);
    dataset->class_names = (char**)malloc_check(dataset->class_count * sizeof(char*), "the class names");
    for (int i = 0; i < dataset->class_count; i++) {
        char number[16];
        snprintf(number, sizeof number, "%d", i);
        dataset->class_names[i] = string_copy(is_fashion ? fashion[i] : number);
    }
}

// Fashion-MNIST from these files, to be drawn in colour.
static inline void dataset_open_garments(dataset_t* dataset) {
    if (!dataset_has_idx(dataset->folder)) {
        fatal("%s has no IDX files; -data garments:FOLDER wants Fashion-MNIST's there", dataset->folder);
    }
    dataset_open_idx(dataset, 1);
    if (dataset->rows != GARMENTS_SOURCE || dataset->columns != GARMENTS_SOURCE || dataset->class_count != 10) {
        fatal("%s: garments are Fashion-MNIST's, 28 x 28 of 10 classes, not %d x %d of %d; give -data garments:FOLDER "
              "with its files", dataset->folder, dataset->rows, dataset->columns, dataset->class_count);
    }
    dataset->kind = DATASET_GARMENTS;
    free(dataset->folder);
    dataset->folder = string_copy("garments");
}

// ---------------------------------------------------------------------------------------------------------------------
// Captions

static inline void dataset_name_classes(dataset_t* dataset, const char* const* names, int count) { // copies
    dataset->class_count = count;
    dataset->class_names = (char**)malloc_check(count * sizeof(char*), "the class names");
    for (int i = 0; i < count; i++) dataset->class_names[i] = string_copy(names[i]);
}

static inline void dataset_open_captions(dataset_t* dataset) {
    static const char* const all[1] = {"all"};
    captions_open(&dataset->captions, dataset->folder);
    dataset->kind = DATASET_CAPTIONS;
    dataset->count = dataset->captions.count;
    dataset->named = (uint8_t*)calloc_check(dataset->count, 1, "the list of damaged files");
    dataset_name_classes(dataset, all, 1);
}

// Leaves out images by what their json tells, and by their sizes. counts[k]: what filter k stopped.
static inline void dataset_filter(dataset_t* dataset, const caption_filter_t* filter, size_t counts[CAPTION_FILTERS]) {
    captions_filter(&dataset->captions, filter, counts);
    dataset->count = dataset->captions.count;
    if (dataset->count) return;
    int most = 0;
    for (int k = 1; k < CAPTION_FILTERS; k++) if (counts[k] > counts[most]) most = k;
    fatal("%s: no image passes the filters; %s stops %zu: loosen %s", dataset->folder, caption_filters[most],
          counts[most], caption_filter_flags[most]);
}

// ---------------------------------------------------------------------------------------------------------------------
// The drawn sets

static inline void dataset_open_shapes(dataset_t* dataset) {
    static const char* const names[SHAPES_CLASSES] = {"disc",  "ring", "square",   "bar",     "triangle",
                                                      "cross", "star", "crescent", "stripes", "checker"};
    dataset->kind = DATASET_SHAPES;
    dataset->folder = string_copy("shapes");
    dataset->count = dataset->split == SPLIT_TRAIN ? 60000 : 10000;
    dataset_name_classes(dataset, names, SHAPES_CLASSES);
}

// "scenes", and in this order, each if it is wanted, ":SIDE" and ":mixed".
static inline void dataset_open_scenes(dataset_t* dataset, const char* spec) {
    char* rest = (char*)spec + strlen("scenes");
    long side = SCENES_SIDE;
    if (rest[0] == ':' && rest[1] >= '0' && rest[1] <= '9') side = strtol(rest + 1, &rest, 10);
    dataset->mixed = !strcmp(rest, ":mixed");
    if ((*rest && !dataset->mixed) || side < SCENES_LEAST_SIDE || side > SCENES_MOST_SIDE || side % SCENES_STEP) {
        fatal("-data %s: it is scenes, scenes:SIDE, scenes:mixed or scenes:SIDE:mixed, with a side of %d to %d "
              "pixels, a multiple of %d", spec, SCENES_LEAST_SIDE, SCENES_MOST_SIDE, SCENES_STEP);
    }
    dataset->kind = DATASET_SCENES;
    dataset->folder = string_copy(spec);
    dataset->count = dataset->split == SPLIT_TRAIN ? 60000 : 10000;
    dataset->rows = dataset->columns = (int)side;
    dataset_name_classes(dataset, scene_kinds, SCENE_KINDS);
}

// Scene i of the set.
static inline scene_t dataset_scene(const dataset_t* dataset, size_t i) {
    return scene_of(dataset->split, i, dataset->rows, dataset->mixed);
}

// ---------------------------------------------------------------------------------------------------------------------
// All kinds

// folder/train or folder/val (which also goes by other names), or such an archive; or NULL.
static inline char* dataset_split(const char* folder, int split) {
    static const char* const names[2][6] = {
        {"train", "ILSVRC2012_img_train.tar", "train.tar", NULL},
        {"val", "validation", "valid", "ILSVRC2012_img_val.tar", "val.tar", NULL}};
    for (int i = 0; names[split][i]; i++) {
        char* path = dataset_join(folder, names[split][i]);
        if (tar_index_is_tar(path) ? path_is_file(path) : path_is_folder(path)) return path;
        free(path);
    }
    return NULL;
}

// A folder train without a val is the training images, unless it is a class (of vehicles, say): then it holds images
// and other classes lie beside it.
static inline int dataset_train_is_class(const char* folder, const char* train) {
    listing_t above, inside;
    if (tar_index_is_tar(train)) return 0;
    memset(&above, 0, sizeof above);
    memset(&inside, 0, sizeof inside);
    dataset_list_folder(folder, &above);
    dataset_list_folder(train, &inside);
    int is_class = above.folders.count > 1 && inside.images.count && !inside.folders.count;
    for (size_t i = 0; i < above.folders.count; i++) is_class &= strcmp(path_name(above.folders.items[i]), "test") != 0;
    string_list_free(&above.folders), string_list_free(&above.images);
    string_list_free(&inside.folders), string_list_free(&inside.images);
    return is_class;
}

// Ends the program where train and val lie deeper, as in ImageNet's ILSVRC/Data/CLS-LOC: all of it would be one class.
static inline void dataset_look_deeper(const char* root, const char* folder, int depth) {
    enum { DEPTH = 4, BRANCHES = 16 }; // a folder with more folders holds classes
    listing_t l;
    memset(&l, 0, sizeof l);
    dataset_list_folder(folder, &l);
    for (size_t i = 0; i < l.folders.count; i++) {
        const char* at = l.folders.items[i];
        char *train = dataset_split(at, SPLIT_TRAIN), *val = dataset_split(at, SPLIT_VAL);
        if (train && (val || !dataset_train_is_class(at, train))) {
            fatal("the data folder %s has no train and val, but %s has; give -data %s", root, at, at);
        }
        free(train);
        free(val);
        if (depth < DEPTH && l.folders.count <= BRANCHES) dataset_look_deeper(root, at, depth + 1);
    }
    string_list_free(&l.folders);
    string_list_free(&l.images);
}

// The folder that holds the images of a split: folder/train or folder/val, or the folder itself. *train: the training
// images whose val this is, or NULL.
static inline char* dataset_split_folder(const char* folder, int split, char** train) {
    struct stat status;
    *train = NULL;
    if (stat(folder, &status)) {
        fatal("the data folder %s cannot be found: %s; -data takes a folder, captions:FOLDER, garments, "
              "fashion-mnist, scenes, shapes or auto", folder, strerror(errno));
    }
    if (S_ISREG(status.st_mode) && tar_index_is_tar(folder)) return string_copy(folder);
    if (!S_ISDIR(status.st_mode)) {
        fatal("%s is not a folder; -data takes a folder, captions:FOLDER, garments, fashion-mnist, scenes, shapes or "
              "auto", folder);
    }
    if (dataset_has_idx(folder)) return string_copy(folder);
    char *first = dataset_split(folder, SPLIT_TRAIN), *val = dataset_split(folder, SPLIT_VAL);
    if (first && !val && dataset_train_is_class(folder, first)) {
        free(first);
        first = NULL;
    }
    if (val && !first && split == SPLIT_TRAIN) {
        fatal("the data folder %s has a folder %s but none called train; add it, or name the one with the classes",
              folder, path_name(val));
    }
    if (!first && !val) dataset_look_deeper(folder, folder, 1);
    if (split == SPLIT_VAL && !val) {
        warn_once("%s has no folder%s val, so the images that train also validate", folder,
                  first ? "" : "s train and");
    }
    char* chosen = split == SPLIT_VAL && val ? val : first;
    if (!chosen) return string_copy(folder);
    if (chosen == val) *train = first;
    else free(val);
    return chosen;
}

// Opens the data that `spec` names: a folder (of images or IDX files), "fashion-mnist", "garments" (in colour; or
// "garments:FOLDER", with Fashion-MNIST's files there), "captions:FOLDER" (images with captions), "scenes", "shapes", or
// "auto": garments where Debian's package is installed, shapes elsewhere. `split` is SPLIT_TRAIN or SPLIT_VAL.
static inline void dataset_open(dataset_t* dataset, const char* spec, int split) {
    memset(dataset, 0, sizeof *dataset);
    dataset->split = split;
    int fashion_is_here = dataset_has_idx(FASHION_MNIST_FOLDER);
    if (!strcmp(spec, "shapes") || (!strcmp(spec, "auto") && !fashion_is_here)) {
        dataset_open_shapes(dataset);
        return;
    }
    if (!strcmp(spec, "scenes") || !strncmp(spec, "scenes:", 7)) {
        dataset_open_scenes(dataset, spec);
        return;
    }
    int captioned = !strncmp(spec, "captions:", 9), elsewhere = !strncmp(spec, "garments:", 9);
    int wants_garments = elsewhere || !strcmp(spec, "garments") || !strcmp(spec, "auto");
    int wants_fashion = (wants_garments && !elsewhere) || !strcmp(spec, "fashion-mnist");
    if (wants_fashion && !fashion_is_here) {
        fatal("Fashion-MNIST is not in %s; install it (apt-get install dataset-fashion-mnist) or take -data shapes",
              FASHION_MNIST_FOLDER);
    }
    char* train;
    const char* folder = wants_fashion ? FASHION_MNIST_FOLDER : spec + (elsewhere || captioned ? 9 : 0);
    dataset->folder = dataset_split_folder(folder, split, &train);
    if (captioned) {
        dataset_open_captions(dataset);
    } else if (wants_garments) {
        dataset_open_garments(dataset);
    } else if (dataset_has_idx(dataset->folder)) {
        dataset_open_idx(dataset, 0);
    } else if (tar_index_is_tar(dataset->folder)) {
        dataset_open_archive(dataset, train);
    } else {
        dataset_open_folder(dataset, train);
    }
    free(train);
}

// For what measures by labels: reads those of images that lie flat from their label file, or says what is missing.
static inline void dataset_need_labels(dataset_t* dataset) {
    char path[LABEL_FILE_PATH];
    if (dataset->class_count < 2) {
        fatal("%s has no classes, and this measures by them: it wants a folder for each", dataset->folder);
    }
    if (!dataset->unlabelled) return;
    char* folder = string_copy(dataset->folder); // of an archive: the one that it is in
    if (tar_index_is_tar(folder)) folder[path_name(folder) - folder] = 0;
    if (!label_file_find(*folder ? folder : ".", path)) {
        fatal("the images in %s lie in no class folders, and this needs their labels: put Kaggle's "
              "LOC_val_solution.csv or a val.txt (\"IMAGE CLASS\" a line) there or in a folder above, or move them "
              "into folders named as those of train", dataset->folder);
    }
    free(folder);
    label_file_read(path, dataset->labels, dataset->paths, dataset->count, dataset->class_names, dataset->class_count);
    dataset->unlabelled = 0;
}

static inline void dataset_close(dataset_t* dataset) {
    for (int i = 0; i < dataset->class_count; i++) free(dataset->class_names[i]);
    for (size_t i = 0; dataset->paths && i < dataset->count; i++) free(dataset->paths[i]);
    free(dataset->class_names);
    free(dataset->labels);
    free(dataset->folder);
    free(dataset->paths);
    free(dataset->named);
    tar_index_close(&dataset->archive);
    captions_close(&dataset->captions);
    free(dataset->pixels);
    memset(dataset, 0, sizeof *dataset);
}

static inline int dataset_label(const dataset_t* dataset, size_t i) {
    return dataset->labels ? dataset->labels[i] : (int)(i % dataset->class_count);
}

// Image i, for messages: its file, or its number.
static inline const char* dataset_image_name(const dataset_t* dataset, size_t i, char* text, size_t size) {
    if (dataset->paths) snprintf(text, size, "%s", dataset->paths[i]);
    else if (dataset->kind == DATASET_CAPTIONS) captions_name(&dataset->captions, i, text, size);
    else snprintf(text, size, "image %zu of %s", i, dataset->folder);
    return text;
}

// The fingerprint of which images there are, in their order, with their labels: by their names below the folder, which
// may move, or by what is drawn. 17 bytes.
static inline const char* dataset_fingerprint(char text[17], const dataset_t* dataset) {
    char name[1400];
    int has_names = dataset->paths || dataset->kind == DATASET_CAPTIONS;
    uint64_t h = hash_word(hash_word(HASH_START, (uint64_t)dataset->kind), dataset->count);
    if (!has_names && dataset->kind != DATASET_IDX) h = hash_string(h, dataset->folder);
    for (size_t i = 0; i < dataset->count; i++) {
        if (has_names) h = hash_string(h, dataset_image_name(dataset, i, name, sizeof name) + strlen(dataset->folder));
        h = hash_word(h, (uint64_t)dataset_label(dataset, i));
    }
    return hash_text(text, h);
}

// The caption of image i, for the caller to free; NULL where the data set has none.
static inline char* dataset_caption(const dataset_t* dataset, size_t i) {
    char text[SCENE_CAPTION];
    if (dataset->kind == DATASET_CAPTIONS) return captions_text(&dataset->captions, i);
    if (dataset->kind != DATASET_SCENES) return NULL;
    scene_t scene = dataset_scene(dataset, i);
    return string_copy(scene_caption(text, &scene));
}

// Decodes image i, at its own size, for the caller to free. Returns 1; or 0 with a sentence in `error`, and no image.
static inline int dataset_load(const dataset_t* dataset, size_t i, image_t* image, char* error) {
    if (dataset->kind == DATASET_FOLDER && dataset->archive.bytes) {
        const tar_entry_t* e = &dataset->archive.entries[i];
        return image_decode(image, dataset->archive.bytes + e->begin, (size_t)e->length, dataset->paths[i], error);
    }
    if (dataset->kind == DATASET_FOLDER) return image_load(image, dataset->paths[i], error);
    if (dataset->kind == DATASET_CAPTIONS) return captions_load(&dataset->captions, i, image, error);
    if (dataset->kind == DATASET_SHAPES) {
        *image = image_create(SHAPES_SIZE, SHAPES_SIZE);
        shapes_draw(image->pixels, dataset->split, i);
        return 1;
    }
    if (dataset->kind == DATASET_SCENES) {
        scene_t scene = dataset_scene(dataset, i);
        *image = image_create(scene.H, scene.W);
        scene_draw(image->pixels, &scene);
        return 1;
    }
    size_t area = (size_t)dataset->rows * dataset->columns;
    const uint8_t* grey = dataset->pixels + i * area;
    if (dataset->kind == DATASET_GARMENTS) {
        *image = image_create(GARMENTS_SIZE, GARMENTS_SIZE);
        garment_draw(image->pixels, grey, dataset->split, i);
        return 1;
    }
    *image = image_create(dataset->rows, dataset->columns);
    for (size_t p = 0; p < area; p++) {
        for (int c = 0; c < 3; c++) image->pixels[p * 3 + c] = grey[p];
    }
    return 1;
}

// Height and width of image i, from its file's header alone. Returns 1, or 0 where that tells none.
static inline int dataset_size(const dataset_t* dataset, size_t i, int* height, int* width) {
    *height = *width = SHAPES_SIZE;
    if (dataset->kind == DATASET_IDX) {
        *height = dataset->rows;
        *width = dataset->columns;
    }
    if (dataset->kind == DATASET_SCENES) {
        scene_t scene = dataset_scene(dataset, i);
        *height = scene.H;
        *width = scene.W;
    }
    if (dataset->kind == DATASET_CAPTIONS) {
        caption_line_t line = captions_line(&dataset->captions, i);
        *height = line.height;
        *width = line.width;
    }
    if (dataset->kind != DATASET_FOLDER) return 1;
    const tar_entry_t* e = dataset->archive.bytes ? &dataset->archive.entries[i] : NULL;
    FILE* file = e ? fmemopen((void*)(dataset->archive.bytes + e->begin), (size_t)e->length, "rb")
                   : fopen(dataset->paths[i], "rb");
    if (!file) return 0;
    int known = image_read_size(file, height, width);
    fclose(file);
    return known;
}
