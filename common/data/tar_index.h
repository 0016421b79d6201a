// tar_index.h: the images in a tar archive, read where they lie: ImageNet as it is downloaded.
//
//     ILSVRC2012_img_train.tar   a tar of tars, n01440764.tar and 999 others: each is a class
//     ILSVRC2012_img_val.tar     images in no folders
//     any other                  the class is the first folder, behind train/ or val/
//
// Finding the members means to read a header every 100 KB or so. That is done once: where each image lies is kept in a
// text file beside the archive, ARCHIVE.index, which is good as long as the archive keeps its size and date:
//
//     aligntok tar index 1 SIZE DATE
//     BEGIN LENGTH CLASS/NAME
//
// Look next at common/data/dataset.h, the user.
#pragma once
#include <inttypes.h>

// defines: image_read_file, image_write_file
#include "common/data/image.h"
// defines: file_map
#include "common/files/file_map.h"
// defines: tar_t, tar_open, tar_next
#include "common/files/tar.h"
// defines: json_text_t, json_append
#include "common/program/json.h"
// defines: fatal, warn, malloc_check, log_rank
#include "common/program/log.h"
// defines: progress_t, progress_begin, progress_say
#include "common/program/progress.h"

typedef struct {
    char* path; // "CLASS/NAME", or "NAME"
    uint64_t begin, length;
} tar_entry_t;

typedef struct {
    const char* path;           // of the archive
    const unsigned char* bytes; // mapped
    size_t size;
    long long date;
    tar_entry_t* entries; // (count) sorted by class, then by name
    size_t count, room;
} tar_index_t;

static inline int tar_index_is_tar(const char* name) {
    size_t n = strlen(name);
    return n > 4 && !strcmp(name + n - 4, ".tar");
}

static inline void tar_index_add(tar_index_t* x, const char* class_name, int class_length, const char* name,
                                 uint64_t begin, uint64_t length) {
    if (x->count == x->room) {
        x->room = x->room ? 2 * x->room : 1024;
        x->entries = (tar_entry_t*)realloc(x->entries, x->room * sizeof *x->entries);
        if (!x->entries) fatal("no memory for a list of %zu images", x->room);
    }
    size_t n = (size_t)class_length + strlen(name) + 2;
    tar_entry_t* e = &x->entries[x->count++];
    e->path = (char*)malloc_check(n, "a file name");
    snprintf(e->path, n, "%.*s%s%s", class_length, class_name, class_length ? "/" : "", name);
    e->begin = begin;
    e->length = length;
}

// Adds the members of the archive at [begin, begin + size) of the file; of a class, where one archive is in another.
static inline void tar_index_walk(tar_index_t* x, size_t begin, size_t size, const char* class_name, int class_length,
                                  progress_t* progress) {
    char error[300];
    int found;
    tar_t t;
    tar_open(&t, x->bytes + begin, size);
    while ((found = tar_next(&t, error, sizeof error)) > 0) {
        const char* name = t.name;
        while (!strncmp(name, "./", 2)) name += 2;
        if (!strncmp(name, "train/", 6)) name += 6;
        if (!strncmp(name, "val/", 4)) name += 4;
        const char* slash = strrchr(name, '/');
        const char* last = slash ? slash + 1 : name;
        if (last[0] == '.' || !strncmp(name, "__MACOSX/", 9)) continue;
        if (tar_index_is_tar(last) && !class_length) {
            tar_index_walk(x, begin + t.begin, t.length, last, (int)strlen(last) - 4, progress);
        } else {
            tar_index_add(x, class_name, class_length, class_length ? last : name, begin + t.begin, t.length);
        }
        progress_say(progress, (double)(begin + t.begin) * 1e-6);
    }
    if (found < 0) fatal("%s: %s; fetch it again", x->path, error);
}

// Length of the class in "CLASS/NAME"; 0: there is none.
static inline int tar_entry_class(const tar_entry_t* e) {
    const char* slash = strchr(e->path, '/');
    return slash ? (int)(slash - e->path) : 0;
}

static inline int tar_entry_compare(const void* a, const void* b) {
    const tar_entry_t *x = (const tar_entry_t*)a, *y = (const tar_entry_t*)b;
    int m = tar_entry_class(x), n = tar_entry_class(y), by_class = strncmp(x->path, y->path, (size_t)(m < n ? m : n));
    if (by_class || m != n) return by_class ? by_class : m - n;
    return strcmp(x->path, y->path);
}

static inline void tar_index_save(const tar_index_t* x, const char* path) {
    char error[IMAGE_ERROR_SIZE];
    json_text_t text = {NULL, 0, 0};
    json_append(&text, "aligntok tar index 1 %zu %lld\n", x->size, x->date);
    for (size_t i = 0; i < x->count; i++) {
        const tar_entry_t* e = &x->entries[i];
        json_append(&text, "%" PRIu64 " %" PRIu64 " %s\n", e->begin, e->length, e->path);
    }
    if (!image_write_file(path, (const uint8_t*)text.text, text.length, error)) {
        warn("%s; the archive will be looked through again", error);
    }
    json_text_free(&text);
}

// Reads the index of before. 0 where there is none, or one of another archive.
static inline int tar_index_load(tar_index_t* x, const char* path) {
    size_t size = 0, of_size = 0;
    long long date = 0;
    uint8_t* bytes = image_read_file(path, &size);
    if (!bytes) return 0;
    char* text = (char*)malloc_check(size + 1, "the index of an archive");
    memcpy(text, bytes, size);
    text[size] = 0;
    free(bytes);
    char *rest = NULL, *line = strtok_r(text, "\n", &rest);
    int good = line && sscanf(line, "aligntok tar index 1 %zu %lld", &of_size, &date) == 2 && of_size == x->size &&
               date == x->date;
    while (good && (line = strtok_r(NULL, "\n", &rest))) {
        char *at, *name;
        uint64_t begin = strtoull(line, &at, 10), length = strtoull(at, &name, 10);
        good = *name == ' ' && name[1] && begin <= x->size && length <= x->size - begin;
        if (good) tar_index_add(x, "", 0, name + 1, begin, length);
    }
    free(text);
    return good && x->count;
}

static inline void tar_index_close(tar_index_t* x) {
    for (size_t i = 0; i < x->count; i++) free(x->entries[i].path);
    free(x->entries);
    if (x->bytes) munmap((void*)x->bytes, x->size);
    memset(x, 0, sizeof *x);
}

// Opens an archive, whose path must stay. What cannot be read ends the program.
static inline void tar_index_open(tar_index_t* x, const char* path) {
    char error[300];
    struct stat status;
    memset(x, 0, sizeof *x);
    x->path = path;
    x->bytes = (const unsigned char*)file_map(path, "a tar archive", &x->size, error, sizeof error);
    if (!x->bytes) fatal("%s: %s", path, error);
    if (!stat(path, &status)) x->date = (long long)status.st_mtime;
    size_t n = strlen(path) + 7;
    char* index = (char*)malloc_check(n, "a file name");
    snprintf(index, n, "%s.index", path);
    if (!tar_index_load(x, index)) {
        for (size_t i = 0; i < x->count; i++) free(x->entries[i].path);
        x->count = 0;
        progress_t progress = progress_begin("index, MB", (double)x->size * 1e-6, log_rank == 0);
        tar_index_walk(x, 0, x->size, "", 0, &progress);
        if (x->count) qsort(x->entries, x->count, sizeof *x->entries, tar_entry_compare);
        if (log_rank == 0 && x->count) tar_index_save(x, index);
    }
    free(index);
}
