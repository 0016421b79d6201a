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
//   shapes    ten classes of coloured shapes on textured grounds, 32 x 32, drawn on demand (shapes_draw below), for
//             machines that have no data at all.
//
// Opening a data set lists files, checks what can be checked without decoding, and ends the program with a message on
// whatever the user can mend; what is left out (other kinds of images, what is no ordinary file) is counted and named
// once. Names that begin with a dot are no data. Decoding one image (dataset_load) returns an error instead: among a
// million files a few are damaged, and common/data/dataloader.h goes on without them.
#pragma once
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

// defines: image_t, image_create, image_load, image_big_endian
#include "common/data/image.h"
// defines: label_file_find, label_file_read
#include "common/data/label_file.h"
// defines: tar_index_t, tar_index_open, tar_index_close, tar_index_is_tar, tar_entry_class
#include "common/data/tar_index.h"
// defines: fatal, warn, warn_once, malloc_check, calloc_check
#include "common/program/log.h"
// defines: progress_t, progress_begin, progress_say
#include "common/program/progress.h"
// defines: philox, uniform_from_bits, random_uniform, RANDOM_SHAPES
#include "common/program/rng.h"

enum { SPLIT_TRAIN = 0, SPLIT_VAL = 1 };
enum { DATASET_FOLDER = 0, DATASET_IDX = 1, DATASET_SHAPES = 2 };

#define FASHION_MNIST_FOLDER "/usr/share/datasets/fashion-mnist" // Debian's package dataset-fashion-mnist

typedef struct {
    int kind;
    int split;
    size_t count;
    int class_count;
    char** class_names; // [class_count]
    int* labels;        // [count]; NULL for shapes, whose label is i % 10; -1: unknown
    int unlabelled;     // the images lie flat, beside a train that has classes: all labels are -1
    char* folder;       // where the files are
    char** paths;       // [count] whole paths; folder only; in an archive, its path and the member's
    tar_index_t archive; // entry i is image i; folder only, and only where it is one
    uint8_t* named;     // [count] damaged files that a warning has named; folder only
    uint8_t* pixels;    // (count, rows, columns) grey; IDX only
    int rows, columns;
} dataset_t;

// A list of strings that grows.
typedef struct {
    char** items;
    size_t count, room;
} string_list_t;

static inline char* string_copy(const char* string) {
    size_t size = strlen(string) + 1;
    return (char*)memcpy(malloc_check(size, "a string"), string, size);
}

// folder/name, for the caller to free.
static inline char* dataset_join(const char* folder, const char* name) {
    size_t head = strlen(folder), tail = strlen(name) + 1;
    char* path = (char*)malloc_check(head + 1 + tail, "a file name");
    memcpy(path, folder, head);
    path[head] = '/';
    memcpy(path + head + 1, name, tail);
    return path;
}

// Takes over `item`.
static inline void string_list_add(string_list_t* list, char* item) {
    if (list->count == list->room) {
        list->room = list->room ? list->room * 2 : 16;
        list->items = (char**)realloc(list->items, list->room * sizeof *list->items);
        if (!list->items) fatal("no memory for a list of %zu file names", list->room);
    }
    list->items[list->count++] = item;
}

static inline int string_list_compare(const void* a, const void* b) {
    return strcmp(*(char* const*)a, *(char* const*)b);
}

static inline void string_list_sort(string_list_t* list) {
    if (list->count) qsort(list->items, list->count, sizeof *list->items, string_list_compare);
}

static inline void string_list_free(string_list_t* list) {
    for (size_t i = 0; i < list->count; i++) free(list->items[i]);
    free(list->items);
    memset(list, 0, sizeof *list);
}

static inline int path_is_folder(const char* path) {
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

static inline int path_is_file(const char* path) { // an ordinary one: a named pipe would be waited for
    struct stat status;
    return stat(path, &status) == 0 && S_ISREG(status.st_mode);
}

// The last component of a path.
static inline const char* path_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

// ---------------------------------------------------------------------------------------------------------------------
// Folder trees

#define DATASET_ENDINGS "jpg, jpeg, jpe, jfif, png, bmp, ppm, pgm, pnm" // of the files that are read
static const char* const dataset_endings[] = {"jpg", "jpeg", "jpe", "jfif", "png", "bmp", "ppm", "pgm", "pnm", NULL};

// Other kinds of images. What ends otherwise is none, and nobody misses it.
static const char* const dataset_other_endings[] = {"webp", "gif", "tif", "tiff", "avif", "heic", "heif", "jxl",
                                                    "jp2", "j2k", "tga", "exr", "hdr", "dng", "cr2", "nef", NULL};
enum { DATASET_OTHERS = sizeof dataset_other_endings / sizeof *dataset_other_endings }; // the last: no ordinary files

// Number of the name's ending in a list, or -1.
static inline int dataset_ending(const char* name, const char* const* endings) {
    const char* dot = strrchr(name, '.');
    for (int i = 0; dot && endings[i]; i++) {
        if (!strcasecmp(dot + 1, endings[i])) return i;
    }
    return -1;
}

// What a look into folders finds, as whole paths, and how many files are left out, by their kind.
typedef struct {
    string_list_t folders, images;
    size_t others[DATASET_OTHERS];
} listing_t;

// ".webp (9), .tif (2), no ordinary files (1)"; "" where nothing is left out
static inline const char* listing_others(const listing_t* l, char* text, size_t size) {
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < DATASET_OTHERS && used < size; i++) {
        if (!l->others[i]) continue;
        const char* kind = dataset_other_endings[i];
        used += (size_t)snprintf(text + used, size - used, "%s%s%s (%zu)", used ? ", " : "", kind ? "." : "",
                                 kind ? kind : "no ordinary files", l->others[i]);
    }
    return text;
}

// Takes a file up among the images, or counts it. Takes over `path`.
static inline void listing_add_file(listing_t* l, char* path, int is_file) {
    int other = dataset_ending(path_name(path), dataset_other_endings);
    if (dataset_ending(path_name(path), dataset_endings) < 0) {
        if (other >= 0) l->others[other]++;
    } else if (is_file) {
        string_list_add(&l->images, path);
        return;
    } else {
        l->others[DATASET_OTHERS - 1]++;
    }
    free(path);
}

// Adds the folders and the images directly inside `folder`. Links are followed, names that begin with a dot, and what a
// Mac packs beside its files, are left out.
static inline void dataset_list_folder(const char* folder, listing_t* l) {
    DIR* directory = opendir(folder);
    if (!directory) {
        fatal("the data folder %s cannot be read: %s; check its name and permissions", folder, strerror(errno));
    }
    for (struct dirent* entry; (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] == '.' || !strcmp(entry->d_name, "__MACOSX")) continue;
        char* path = dataset_join(folder, entry->d_name);
        int asks = entry->d_type == DT_LNK || entry->d_type == DT_UNKNOWN;
        if (entry->d_type == DT_DIR || (asks && path_is_folder(path))) string_list_add(&l->folders, path);
        else listing_add_file(l, path, entry->d_type == DT_REG || (asks && path_is_file(path)));
    }
    closedir(directory);
}

// The folders from the class folder down to the one being read, to notice a link that leads back.
typedef struct folder_chain {
    const struct folder_chain* parent;
    dev_t device;
    ino_t inode;
} folder_chain_t;

// Adds all images below `folder`, in no particular order.
static inline void dataset_list_tree(const char* folder, const folder_chain_t* parent, listing_t* l) {
    struct stat status;
    if (stat(folder, &status)) fatal("the data folder %s cannot be read: %s", folder, strerror(errno));
    for (const folder_chain_t* above = parent; above; above = above->parent) {
        if (above->device == status.st_dev && above->inode == status.st_ino) {
            fatal("the data folder %s is a link back to a folder above it; remove the link", folder);
        }
    }
    folder_chain_t here;
    here.parent = parent;
    here.device = status.st_dev;
    here.inode = status.st_ino;
    string_list_t outer = l->folders;
    memset(&l->folders, 0, sizeof l->folders);
    dataset_list_folder(folder, l);
    string_list_t inner = l->folders;
    l->folders = outer;
    for (size_t i = 0; i < inner.count; i++) dataset_list_tree(inner.items[i], &here, l);
    string_list_free(&inner);
}

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

static inline void dataset_warn_of_others(const char* folder, const listing_t* l) {
    char text[600];
    if (*listing_others(l, text, sizeof text)) {
        warn_once("files below %s are left out: %s; read are " DATASET_ENDINGS, folder, text);
    }
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
    dataset_warn_of_others(d->folder, &l);
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
    dataset_warn_of_others(d->folder, &l);
    string_list_free(&names);
    string_list_free(&l.folders);
    d->paths = all.items;
    d->count = all.count;
    d->named = (uint8_t*)calloc_check(all.count, 1, "the list of damaged files");
}

// ---------------------------------------------------------------------------------------------------------------------
// IDX files (described on the MNIST page of Y. LeCun): two zero bytes, type (8 = unsigned byte), number of dimensions,
// the dimensions as big-endian 32-bit integers, the data.

// The path of `name` or `name`.gz in the folder, or NULL.
static inline char* idx_find(const char* folder, const char* name) {
    char* path = dataset_join(folder, name);
    if (path_is_file(path)) return path;
    size_t size = strlen(path) + 4;
    char* gzipped = (char*)malloc_check(size, "a file name");
    snprintf(gzipped, size, "%s.gz", path);
    free(path);
    if (path_is_file(gzipped)) return gzipped;
    free(gzipped);
    return NULL;
}

// Reads exactly `size` bytes; `what` names them for the message.
static inline void idx_read(gzFile file, const char* path, void* out, size_t size, const char* what) {
    for (size_t done = 0; done < size;) {
        size_t piece = size - done < ((size_t)1 << 28) ? size - done : (size_t)1 << 28;
        int got = gzread(file, (uint8_t*)out + done, (unsigned)piece);
        if (got <= 0) {
            int code = 0;
            const char* reason = gzerror(file, &code);
            fatal("%s ends inside %s, after %zu of %zu bytes (%s); fetch the file again", path, what, done, size,
                  code == Z_OK ? "end of file" : reason);
        }
        done += (size_t)got;
    }
}

// Reads a whole IDX file of bytes with `dimensions` dimensions, whose sizes go to `sizes`. The caller frees the data.
static inline uint8_t* idx_load(const char* path, int dimensions, size_t* sizes) {
    gzFile file = gzopen(path, "rb"); // reads plain files too
    if (!file) fatal("%s cannot be opened: %s", path, strerror(errno));
    gzbuffer(file, 1 << 18);
    uint8_t head[4];
    idx_read(file, path, head, 4, "its header");
    if (head[0] != 0 || head[1] != 0 || head[2] != 8 || head[3] != dimensions) {
        fatal("%s is not an IDX file of bytes with %d dimension%s: it begins with %02x%02x%02x%02x, not 000008%02x",
              path, dimensions, dimensions == 1 ? "" : "s", head[0], head[1], head[2], head[3], dimensions);
    }
    size_t total = 1;
    for (int i = 0; i < dimensions; i++) {
        idx_read(file, path, head, 4, "its header");
        sizes[i] = image_big_endian(head);
        size_t limit = i == 0 ? (size_t)INT32_MAX : 4096; // images, rows, columns
        if (sizes[i] < 1 || sizes[i] > limit) {
            fatal("%s: dimension %d of its header is %zu; it must lie between 1 and %zu", path, i, sizes[i], limit);
        }
        total *= sizes[i];
    }
    uint8_t* data = (uint8_t*)malloc(total);
    if (!data) fatal("%s: no memory for the %.1f MiB that its header gives; is it damaged?", path, total / 1048576.0);
    idx_read(file, path, data, total, "its data");
    if (gzread(file, head, 1) != 0) fatal("%s is longer than its header says; fetch the file again", path);
    gzclose(file);
    return data;
}

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
    char* train = idx_find(folder, "train-images-idx3-ubyte");
    char* val = idx_find(folder, "t10k-images-idx3-ubyte");
    int found = train || val;
    free(train);
    free(val);
    return found;
}

static inline void dataset_open_idx(dataset_t* dataset) {
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
    int is_fashion = dataset->class_count == 10 && strstr(path_name(dataset->folder), "fashion") != NULL;
    dataset->class_names = (char**)malloc_check(dataset->class_count * sizeof(char*), "the class names");
    for (int i = 0; i < dataset->class_count; i++) {
        char number[16];
        snprintf(number, sizeof number, "%d", i);
        dataset->class_names[i] = string_copy(is_fashion ? fashion[i] : number);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The drawn set. Sample i of a split is a function of (split, i) alone: class i % 10, everything else from Philox.

#define SHAPES_SIZE 32
#define SHAPES_CLASSES 10
#define SHAPES_SEED 20240801u

// Signed distances to shapes of about unit radius, negative inside.
static inline float shape_box(float x, float y, float half_width, float half_height) {
    return fmaxf(fabsf(x) - half_width, fabsf(y) - half_height);
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
    case 0: return radius - 0.9f;                                                                     // disc
    case 1: return fabsf(radius - 0.72f) - 0.2f;                                                      // ring
    case 2: return shape_box(x, y, 0.8f, 0.8f);                                                       // square
    case 3: return shape_box(x, y, 1.0f, 0.33f);                                                      // bar
    case 4: return fmaxf(y - 0.55f, fabsf(x) * 0.866025f - y * 0.5f - 0.5f);                          // triangle
    case 5: return fminf(shape_box(x, y, 1.0f, 0.27f), shape_box(x, y, 0.27f, 1.0f));                 // cross
    case 6: return shape_star(x, y);                                                                  // star
    case 7: return fmaxf(radius - 0.95f, 0.75f - sqrtf((x - 0.5f) * (x - 0.5f) + y * y));             // crescent
    case 8: return fmaxf(radius - 1.0f, fabsf(x * 2.5f - nearbyintf(x * 2.5f)) / 2.5f - 0.1f);        // stripes
    default: {                                                                                        // checker
        float u = fabsf(x * 1.1f - nearbyintf(x * 1.1f)) - 0.25f, v = fabsf(y * 1.1f - nearbyintf(y * 1.1f)) - 0.25f;
        float cell = u * v > 0 ? -fminf(fabsf(u), fabsf(v)) : fminf(fabsf(u), fabsf(v));
        return fmaxf(shape_box(x, y, 0.95f, 0.95f), cell / 1.1f);
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
        float coverage = fminf(fmaxf(0.5f - shape_distance(label, x, y) * style.radius, 0.0f), 1.0f);
        float wave = sinf(style.wave_x * column + style.wave_y * row + style.wave_phase);
        philox4_t bits = philox(SHAPES_SEED, RANDOM_SHAPES, 2 * split + 1, i * SHAPES_SIZE * SHAPES_SIZE + p);
        for (int c = 0; c < 3; c++) {
            float grain = style.grain * (2.0f * uniform_from_bits(bits.v[c]) - 1.0f);
            float ground = style.ground[c] + style.texture[c] * wave + grain;
            float value = ground + coverage * (style.ink[c] - ground) + 0.5f;
            out[p * 3 + c] = (uint8_t)fminf(fmaxf(value, 0.0f), 255.0f);
        }
    }
}

static inline void dataset_open_shapes(dataset_t* dataset) {
    static const char* const names[SHAPES_CLASSES] = {"disc",  "ring", "square",   "bar",     "triangle",
                                                      "cross", "star", "crescent", "stripes", "checker"};
    dataset->kind = DATASET_SHAPES;
    dataset->folder = string_copy("shapes");
    dataset->count = dataset->split == SPLIT_TRAIN ? 60000 : 10000;
    dataset->class_count = SHAPES_CLASSES;
    dataset->class_names = (char**)malloc_check(SHAPES_CLASSES * sizeof(char*), "the class names");
    for (int i = 0; i < SHAPES_CLASSES; i++) dataset->class_names[i] = string_copy(names[i]);
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
        fatal("the data folder %s cannot be found: %s; -data takes a folder, fashion-mnist, shapes or auto", folder,
              strerror(errno));
    }
    if (S_ISREG(status.st_mode) && tar_index_is_tar(folder)) return string_copy(folder);
    if (!S_ISDIR(status.st_mode)) {
        fatal("%s is not a folder; -data takes a folder, fashion-mnist, shapes or auto", folder);
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

// Opens the data that `spec` names: a folder (of images or IDX files), "fashion-mnist", "shapes", or "auto", which is
// Fashion-MNIST where Debian's package is installed and shapes elsewhere. `split` is SPLIT_TRAIN or SPLIT_VAL.
static inline void dataset_open(dataset_t* dataset, const char* spec, int split) {
    memset(dataset, 0, sizeof *dataset);
    dataset->split = split;
    int fashion_is_here = dataset_has_idx(FASHION_MNIST_FOLDER);
    if (!strcmp(spec, "shapes") || (!strcmp(spec, "auto") && !fashion_is_here)) {
        dataset_open_shapes(dataset);
        return;
    }
    int wants_fashion = !strcmp(spec, "fashion-mnist") || !strcmp(spec, "auto");
    if (wants_fashion && !fashion_is_here) {
        fatal("Fashion-MNIST is not in %s; install it (apt-get install dataset-fashion-mnist) or take -data shapes",
              FASHION_MNIST_FOLDER);
    }
    char* train;
    dataset->folder = dataset_split_folder(wants_fashion ? FASHION_MNIST_FOLDER : spec, split, &train);
    if (dataset_has_idx(dataset->folder)) {
        dataset_open_idx(dataset);
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
              "LOC_val_solution.csv or a val.txt (\"IMAGE CLASS\" a line) there or beside it, or move them into "
              "folders named as those of train", dataset->folder);
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
    free(dataset->pixels);
    memset(dataset, 0, sizeof *dataset);
}

static inline int dataset_label(const dataset_t* dataset, size_t i) {
    return dataset->labels ? dataset->labels[i] : (int)(i % SHAPES_CLASSES);
}

// Image i, for messages: its file, or its number.
static inline const char* dataset_image_name(const dataset_t* dataset, size_t i, char* text, size_t size) {
    if (dataset->paths) snprintf(text, size, "%s", dataset->paths[i]);
    else snprintf(text, size, "image %zu of %s", i, dataset->folder);
    return text;
}

// Decodes image i, at its own size, for the caller to free. Returns 1; or 0 with a sentence in `error`, and no image.
static inline int dataset_load(const dataset_t* dataset, size_t i, image_t* image, char* error) {
    if (dataset->kind == DATASET_FOLDER && dataset->archive.bytes) {
        const tar_entry_t* e = &dataset->archive.entries[i];
        return image_decode(image, dataset->archive.bytes + e->begin, (size_t)e->length, dataset->paths[i], error);
    }
    if (dataset->kind == DATASET_FOLDER) return image_load(image, dataset->paths[i], error);
    if (dataset->kind == DATASET_SHAPES) {
        *image = image_create(SHAPES_SIZE, SHAPES_SIZE);
        shapes_draw(image->pixels, dataset->split, i);
        return 1;
    }
    size_t area = (size_t)dataset->rows * dataset->columns;
    const uint8_t* grey = dataset->pixels + i * area;
    *image = image_create(dataset->rows, dataset->columns);
    for (size_t p = 0; p < area; p++) {
        for (int c = 0; c < 3; c++) image->pixels[p * 3 + c] = grey[p];
    }
    return 1;
}
