// listing.h: which images lie below a folder: lists of names, paths, and a look into folders that counts what it leaves
// out. Names that begin with a dot are no data. Look next at common/data/dataset.h, the user.
#pragma once
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

// defines: fatal, malloc_check, warn_once
#include "common/program/log.h"

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
// Folders

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
    const char* also; // an ending such as "txt", whose files are wanted too; NULL: images alone
    string_list_t folders, images, files;
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

static inline void listing_warn_of_others(const char* folder, const listing_t* l) {
    char text[600];
    if (*listing_others(l, text, sizeof text)) {
        warn_once("files below %s are left out: %s; read are " DATASET_ENDINGS, folder, text);
    }
}

// Takes a file up among the images, or counts it. Takes over `path`.
static inline void listing_add_file(listing_t* l, char* path, int is_file) {
    const char* const also[2] = {l->also, NULL};
    if (is_file && dataset_ending(path_name(path), also) == 0) {
        string_list_add(&l->files, path);
        return;
    }
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
