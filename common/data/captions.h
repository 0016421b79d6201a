// captions.h: images with captions, in one of two forms.
//
//     tars     FOLDER/00000.tar, ... as img2dataset writes them ("webdataset"), or one of them: read where the images
//              lie, without unpacking. A sample is what neighbouring members share up to the first dot of their names:
//              000000012.jpg, .txt (the caption) and .json (what is known about the image)
//     folder   images with the caption of NAME.jpg in NAME.txt, and NAME.json where there is one; or one captions.jsonl
//              with a line {"file": "a/b.jpg", "caption": "..."} for each. Folders in it are looked through too
//
// The caption is the text file, or the json's "caption" where there is none. White space around it and a byte order
// mark before it are taken off, control characters inside (line ends too) become blanks, bytes that are no UTF-8 become
// U+FFFD, and of a text of more than 64 KiB the beginning is kept: no encoder reads as far.
//
// A sample that lacks its image, its caption, or a header that tells the image's size is left out, counted and named;
// so is what lies behind the place where an archive is cut off. An archive without the zeros at its end counts as cut
// off there. What is found is kept as a text, a line for each sample, so that all of this is read once. Beside each
// archive stands that text, ARCHIVE.captions, which is good as long as the archive keeps its size and date:
//
//     aligntok captions 2 SIZE DATE LINES
//     BEGIN LENGTH HEIGHT WIDTH PUNSAFE PWATERMARK AESTHETIC NAME CAPTION       tabs between them; a column can lack: -
//     - REASON NAME                                                             a sample that is left out
//     ! MESSAGE                                                                 the archive is damaged
//
// The order is that of the archives' names and of the members in them (of a folder: of the paths; of a captions.jsonl:
// its own), whatever threads and processes looked at them. Several processes share the first look: each begins with
// its own archives and writes their indexes, takes those that others have written by then, and looks at the rest itself;
// so a look that was stopped goes on where it was. The index is mapped: Linux allows a process about 65,000 of them.
//
// Filters are those of LAION's users, by the json's columns punsafe, pwatermark and aesthetic and by the image's size;
// what a sample does not tell lets it pass.
// Look next at common/data/dataset.h, which opens all this as "captions:FOLDER".
#pragma once
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// defines: image_t, image_decode, image_load, image_read_file, image_write_file, image_read_size, image_error
#include "common/data/image.h"
// defines: listing_t, dataset_list_tree, dataset_join, dataset_ending, string_list_t
#include "common/data/listing.h"
// defines: file_map
#include "common/files/file_map.h"
// defines: tar_t, tar_open, tar_next
#include "common/files/tar.h"
// defines: json_text_t, json_append, json_reader_t, json_utf8_length
#include "common/program/json.h"
// defines: fatal, warn, malloc_check, log_rank, log_size
#include "common/program/log.h"
// defines: progress_t, progress_begin, progress_say
#include "common/program/progress.h"

// Why a sample is left out.
enum { CAPTION_NO_IMAGE, CAPTION_OTHER_KIND, CAPTION_NO_SIZE, CAPTION_NONE, CAPTION_BAD_JSON, CAPTION_BAD_NAME,
       CAPTION_DOTS, CAPTION_REASONS };
static const char* const caption_reasons[CAPTION_REASONS] = {
    "have no image", "have an image of a kind that is not read (webp and others: make it a jpg or png)",
    "have an image whose header tells no size", "have no caption", "have a damaged .json",
    "have a control character in their names", "have a dot in their names, where archives have the ending"};

// What is known about a sample; NAN: its json does not tell.
typedef struct {
    double punsafe, pwatermark, aesthetic;
} caption_columns_t;

// One line of an index.
typedef struct {
    uint64_t begin, length; // of the image, in the archive
    int height, width;
    caption_columns_t columns;
    const char *name, *caption; // in the index; not ended by a 0
    int name_length, caption_length;
} caption_line_t;

enum { CAPTION_LONGEST = 1 << 16 }; // bytes

typedef struct {
    uint32_t shard, line; // which index; byte where its line begins
} caption_record_t;

typedef struct {
    char* path;       // of the archive, or of the folder
    int is_folder;
    char* text;       // the index
    size_t text_size;
    int is_mapped;    // the index is a mapped file
} caption_shard_t;

typedef struct {
    caption_shard_t* shards; // (n_shards) sorted by path
    int n_shards;
    caption_record_t* records; // (count)
    size_t count;
    size_t left_out[CAPTION_REASONS];
    size_t damaged; // archives
} captions_t;

// ---------------------------------------------------------------------------------------------------------------------
// Texts

// Adds a text as captions are kept.
static inline void caption_append(json_text_t* out, const unsigned char* text, size_t size) {
    if (size >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) text += 3, size -= 3;
    while (size && (*text <= ' ' || *text == 0x7F)) text++, size--;
    if (size > CAPTION_LONGEST) { // not inside a character
        for (size = CAPTION_LONGEST; (text[size] & 0xC0) == 0x80 && size > CAPTION_LONGEST - 4;) size--;
    }
    while (size && (text[size - 1] <= ' ' || text[size - 1] == 0x7F)) size--;
    while (size) {
        size_t run = 0;
        int n = 0; // of the character behind the run; 0: it is none
        while (run < size && (n = json_utf8_length(text + run, size - run)) && text[run] >= ' ' && text[run] != 0x7F) {
            run += (size_t)n;
        }
        json_append(out, "%.*s", (int)run, (const char*)text);
        if (run == size) return;
        json_append(out, "%s", n ? " " : "\xEF\xBF\xBD");
        text += run + 1;
        size -= run + 1;
    }
}

static inline int caption_has_control(const char* name) {
    for (; *name; name++) {
        if ((unsigned char)*name < ' ' || *name == 0x7F) return 1;
    }
    return 0;
}

// What a json object tells of a sample. Strings are in `buffer`, which the caller frees.
typedef struct {
    caption_columns_t columns;
    const char *caption, *file; // NULL: it does not say
    char* buffer;
} caption_json_t;

static inline double caption_number_of(const char* text) {
    char* end;
    double value = strtod(text, &end);
    return end == text || *end ? NAN : value;
}

// A number, also as a string, or NAN where something else stands. Python writes NaN, which JSON does not know.
static inline double caption_number(json_reader_t* r) {
    int c = json_peek(r);
    if (c == 'N' && r->end - r->at >= 3 && !memcmp(r->at, "NaN", 3)) r->at += 3;
    else if (c == '-' || (c >= '0' && c <= '9')) return strtod(json_number(r), NULL);
    else if (c == '"') return caption_number_of(json_string(r));
    else json_skip_value(r, 0);
    return NAN;
}

// Reads one object. 1, or 0 with a message; `buffer` is to be freed in both cases.
static inline int caption_read_json(caption_json_t* j, const unsigned char* text, size_t size, char* error,
                                    size_t error_size) {
    json_reader_t r;
    memset(&r, 0, sizeof r);
    memset(j, 0, sizeof *j);
    j->columns.punsafe = j->columns.pwatermark = j->columns.aesthetic = NAN;
    j->buffer = (char*)malloc_check(size + 1, "a json file");
    r.begin = r.at = text;
    r.end = text + size;
    r.strings = j->buffer;
    r.error = error;
    r.error_size = error_size;
    json_where(&r, "the json");
    json_skip_mark(&r);
    json_expect(&r, '{');
    for (int first = 1; json_more(&r, '}', first); first = 0) {
        const char* key = json_key(&r);
        int is_text = json_peek(&r) == '"';
        if (!strcmp(key, "caption") && is_text) j->caption = json_string(&r);
        else if (!strcmp(key, "file") && is_text) j->file = json_string(&r);
        else if (!strcmp(key, "punsafe")) j->columns.punsafe = caption_number(&r);
        else if (!strcmp(key, "pwatermark")) j->columns.pwatermark = caption_number(&r);
        else if (!strcmp(key, "aesthetic")) j->columns.aesthetic = caption_number(&r);
        else caption_number(&r);
    }
    json_end(&r);
    return !r.failed;
}

// ---------------------------------------------------------------------------------------------------------------------
// Lines of an index

// other_kind: of its image, from 1 on; 0: it is none of those.
static inline void caption_add_left_out(json_text_t* out, int reason, const char* name, int other_kind) {
    json_append(out, "-\t%d\t", reason);
    caption_append(out, (const unsigned char*)name, strlen(name));
    if (other_kind) json_append(out, ".%s", dataset_other_endings[other_kind - 1]);
    json_append(out, "\n");
}

static inline void caption_add_column(json_text_t* out, double value) {
    if (isnan(value)) json_append(out, "-\t");
    else json_append(out, "%.9g\t", value);
}

// A sample as it is found; what is missing is NULL.
typedef struct {
    char name[TAR_NAME];
    const unsigned char *image, *text, *json;
    size_t image_size, text_size, json_size;
    uint64_t begin;    // of the image in its archive
    int other_kind;    // of dataset_other_endings, from 1 on: it has an image that cannot be read
    int has_dots;      // it has an image behind an ending of several dots
} caption_sample_t;

static inline int caption_image_size(const caption_sample_t* s, int* height, int* width) {
    FILE* file = s->image_size ? fmemopen((void*)s->image, s->image_size, "rb") : NULL;
    if (!file) return 0;
    int known = image_read_size(file, height, width);
    fclose(file);
    return known;
}

// WebP images are often called .jpg.
static inline int caption_is_webp(const caption_sample_t* s) {
    return s->image_size >= 12 && !memcmp(s->image, "RIFF", 4) && !memcmp(s->image + 8, "WEBP", 4);
}

// Adds the line of a sample.
static inline void caption_add_sample(json_text_t* out, const caption_sample_t* s) {
    char error[300];
    int height = 0, width = 0, reason = -1;
    caption_json_t j = {{NAN, NAN, NAN}, NULL, NULL, NULL};
    json_text_t caption = {NULL, 0, 0};
    if (s->json && !caption_read_json(&j, s->json, s->json_size, error, sizeof error)) reason = CAPTION_BAD_JSON;
    else if (s->text) caption_append(&caption, s->text, s->text_size);
    else if (j.caption) caption_append(&caption, (const unsigned char*)j.caption, strlen(j.caption));
    if (!s->image && s->other_kind) reason = CAPTION_OTHER_KIND;
    else if (!s->image) reason = s->has_dots ? CAPTION_DOTS : CAPTION_NO_IMAGE;
    else if (reason < 0 && !caption.length) reason = CAPTION_NONE;
    else if (reason < 0 && caption_has_control(s->name)) reason = CAPTION_BAD_NAME;
    else if (reason < 0 && caption_is_webp(s)) reason = CAPTION_OTHER_KIND;
    else if (reason < 0 && !caption_image_size(s, &height, &width)) reason = CAPTION_NO_SIZE;
    if (reason >= 0) {
        caption_add_left_out(out, reason, s->name, reason == CAPTION_OTHER_KIND && !s->image ? s->other_kind : 0);
    } else {
        json_append(out, "%" PRIu64 "\t%zu\t%d\t%d\t", s->begin, s->image_size, height, width);
        caption_add_column(out, j.columns.punsafe);
        caption_add_column(out, j.columns.pwatermark);
        caption_add_column(out, j.columns.aesthetic);
        json_append(out, "%s\t%s\n", s->name, caption.text);
    }
    json_text_free(&caption);
    free(j.buffer);
}

// A number and its tab. Returns what is behind, or NULL; of NULL too, so that a line is read without a check after each.
static inline const char* caption_read_number(const char* at, uint64_t* value) {
    char* end = NULL;
    if (!at || *at < '0' || *at > '9') return NULL;
    *value = strtoull(at, &end, 10);
    return *end == '\t' ? end + 1 : NULL;
}

static inline const char* caption_read_column(const char* at, double* value) {
    char* end = NULL;
    *value = NAN;
    if (!at || (*at != '-' && (*at < '0' || *at > '9'))) return NULL;
    if (at[0] == '-' && at[1] == '\t') return at + 2;
    *value = strtod(at, &end);
    return end != at && *end == '\t' ? end + 1 : NULL;
}

// Reads the line at `at`, which ends in a newline. 0 where it is none of a sample.
static inline int caption_read_line(caption_line_t* line, const char* at) {
    uint64_t height = 0, width = 0;
    double columns[3];
    at = caption_read_number(at, &line->begin);
    at = caption_read_number(at, &line->length);
    at = caption_read_number(at, &height);
    at = caption_read_number(at, &width);
    for (int k = 0; k < 3; k++) at = caption_read_column(at, &columns[k]);
    const char* end = at ? strchr(at, '\n') : NULL;
    const char* tab = end ? (const char*)memchr(at, '\t', (size_t)(end - at)) : NULL;
    if (!tab || tab == at || tab + 1 == end || !height || height > INT32_MAX || !width || width > INT32_MAX) return 0;
    line->height = (int)height;
    line->width = (int)width;
    line->columns.punsafe = columns[0];
    line->columns.pwatermark = columns[1];
    line->columns.aesthetic = columns[2];
    line->name = at;
    line->name_length = (int)(tab - at);
    line->caption = tab + 1;
    line->caption_length = (int)(end - tab - 1);
    return 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Archives

// Takes a member up into the sample, by the ending behind its key.
static inline void caption_add_member(caption_sample_t* s, const char* ending, const tar_t* t) {
    const unsigned char* bytes = t->bytes + t->begin;
    int one_dot = strrchr(ending, '.') == ending, is_image = dataset_ending(ending, dataset_endings) >= 0;
    if (!strcasecmp(ending, ".txt")) {
        s->text = bytes;
        s->text_size = t->length;
    } else if (!strcasecmp(ending, ".json")) {
        s->json = bytes;
        s->json_size = t->length;
    } else if (one_dot && is_image) {
        s->image = bytes;
        s->image_size = t->length;
        s->begin = t->begin;
    } else {
        if (one_dot && !s->other_kind) s->other_kind = 1 + dataset_ending(ending, dataset_other_endings);
        s->has_dots |= is_image;
    }
}

static inline void caption_end_sample(json_text_t* out, caption_sample_t* s) {
    if (s->image || s->text || s->json || s->other_kind || s->has_dots) caption_add_sample(out, s);
    memset(s, 0, sizeof *s);
}

// Looks through an archive in memory, and adds its lines. Of an archive that is cut off, the last sample is not whole.
static inline void caption_walk(json_text_t* out, const unsigned char* bytes, size_t size) {
    char error[300];
    int found;
    caption_sample_t s;
    tar_t t;
    memset(&s, 0, sizeof s);
    tar_open(&t, bytes, size);
    while ((found = tar_next(&t, error, sizeof error)) > 0) {
        const char *last = path_name(t.name), *dot = strchr(last, '.');
        size_t n = dot ? (size_t)(dot - t.name) : 0;
        if (!dot || dot == last) continue; // no ending, or hidden
        if (strlen(s.name) != n || memcmp(s.name, t.name, n)) {
            caption_end_sample(out, &s);
            memcpy(s.name, t.name, n);
        }
        caption_add_member(&s, dot, &t);
    }
    if (!found) caption_end_sample(out, &s);
    if (found) json_append(out, "!\t%s\n", error);
    else if (!t.ended) json_append(out, "!\tthe tar archive is cut off at byte %zu: it has no zeros at its end\n", t.at);
}

static inline size_t caption_count_lines(const char* text) {
    size_t lines = 0;
    for (text = strchr(text, '\n'); text; text = strchr(text + 1, '\n')) lines++;
    return lines;
}

// Makes an archive's index.
static inline json_text_t caption_make_index(const char* path, const struct stat* status) {
    char error[300];
    size_t size = 0;
    json_text_t lines = {NULL, 0, 0}, text = {NULL, 0, 0};
    unsigned char* bytes = (unsigned char*)file_map(path, "a tar archive", &size, error, sizeof error);
    if (bytes) caption_walk(&lines, bytes, size);
    else json_append(&lines, "!\t%s\n", error);
    if (bytes) munmap(bytes, size);
    json_append(&text, "aligntok captions 2 %lld %lld %zu\n", (long long)status->st_size, (long long)status->st_mtime,
                lines.text ? caption_count_lines(lines.text) : 0);
    if (lines.text) json_append(&text, "%s", lines.text);
    json_text_free(&lines);
    return text;
}

// Is this the whole index of an archive of this size and date? It need not end in a 0.
static inline int caption_index_is_good(const char* text, size_t size, const struct stat* status) {
    char head[200];
    long long of_size = 0, date = 0;
    size_t lines = 0, found = 0, first = size < sizeof head ? size : sizeof head - 1;
    memcpy(head, text, first);
    head[first] = 0;
    if (sscanf(head, "aligntok captions 2 %lld %lld %zu\n", &of_size, &date, &lines) != 3 || text[size - 1] != '\n' ||
        of_size != status->st_size || date != status->st_mtime) return 0;
    const char *at = (const char*)memchr(text, '\n', size) + 1, *end = text + size;
    for (; at < end; found++) {
        caption_line_t line = {0, 0, 0, 0, {NAN, NAN, NAN}, NULL, NULL, 0, 0};
        int other = !strncmp(at, "!\t", 2) ||
                    (!strncmp(at, "-\t", 2) && at[2] >= '0' && at[2] < '0' + CAPTION_REASONS && at[3] == '\t');
        if (!other && (!caption_read_line(&line, at) || line.begin > (uint64_t)of_size ||
                       line.length > (uint64_t)of_size - line.begin)) return 0;
        at = (const char*)memchr(at, '\n', (size_t)(end - at)) + 1;
    }
    return found == lines;
}

// Maps an index of before. 0 where there is none that is good.
static inline int caption_load_index(caption_shard_t* shard, const char* path, const struct stat* status) {
    char error[300];
    size_t size = 0;
    char* text = (char*)file_map(path, "an index", &size, error, sizeof error);
    if (!text) return 0;
    if (!caption_index_is_good(text, size, status)) {
        munmap(text, size);
        return 0;
    }
    shard->text = text;
    shard->text_size = size;
    shard->is_mapped = 1;
    return 1;
}

// Opens an archive by its index, which is made where there is none, and written where `keeps`. 0 with a message where
// that fails.
static inline int caption_open_archive(caption_shard_t* shard, int keeps, char* error) {
    struct stat status;
    size_t n = strlen(shard->path) + 10;
    char* path = (char*)malloc_check(n, "a file name");
    snprintf(path, n, "%s.captions", shard->path);
    int kept = 1;
    if (stat(shard->path, &status)) fatal("%s cannot be read: %s", shard->path, strerror(errno));
    if (!caption_load_index(shard, path, &status)) {
        json_text_t text = caption_make_index(shard->path, &status);
        shard->text = text.text;
        shard->text_size = text.length;
        if (keeps) kept = image_write_file(path, (const uint8_t*)text.text, text.length, error);
    }
    free(path);
    return kept;
}

// ---------------------------------------------------------------------------------------------------------------------
// Folders

// The path with another ending, for the caller to free.
static inline char* caption_sibling(const char* path, const char* ending) {
    const char* dot = strrchr(path, '.');
    size_t n = dot ? (size_t)(dot - path) : strlen(path);
    char* sibling = (char*)malloc_check(n + strlen(ending) + 1, "a file name");
    memcpy(sibling, path, n);
    strcpy(sibling + n, ending);
    return sibling;
}

// Adds the line of an image file. `text` and `json` are its caption and what is known of it, or NULL; the image's
// header alone is looked at.
static inline void caption_add_file(json_text_t* out, const char* folder, const char* path, const uint8_t* text,
                                    size_t text_size, const uint8_t* json, size_t json_size) {
    char error[300];
    caption_sample_t s;
    memset(&s, 0, sizeof s);
    snprintf(s.name, sizeof s.name, "%s", path + strlen(folder) + 1);
    s.text = text, s.text_size = text_size;
    s.json = json, s.json_size = json_size;
    unsigned char* bytes = (unsigned char*)file_map(path, "an image", &s.image_size, error, sizeof error);
    s.image = bytes;
    caption_add_sample(out, &s);
    if (bytes) munmap(bytes, s.image_size);
}

// Every image with the text file of its name.
static inline void caption_read_text_files(json_text_t* out, const char* folder, listing_t* l) {
    string_list_t wanted = {NULL, 0, 0}; // the text files that images have
    for (size_t i = 0; i < l->images.count; i++) {
        size_t text_size = 0, json_size = 0;
        char *text_path = caption_sibling(l->images.items[i], ".txt");
        char *json_path = caption_sibling(l->images.items[i], ".json");
        uint8_t *text = image_read_file(text_path, &text_size), *json = image_read_file(json_path, &json_size);
        caption_add_file(out, folder, l->images.items[i], text, text_size, json, json_size);
        free(text);
        free(json);
        free(json_path);
        string_list_add(&wanted, text_path);
    }
    string_list_sort(&wanted);
    string_list_sort(&l->files);
    for (size_t i = 0; i < l->files.count; i++) {
        char* path = l->files.items[i];
        if (wanted.count && bsearch(&path, wanted.items, wanted.count, sizeof path, string_list_compare)) continue;
        caption_add_left_out(out, CAPTION_NO_IMAGE, path + strlen(folder) + 1, 0);
    }
    string_list_free(&wanted);
}

// The images that the lines of captions.jsonl name.
static inline void caption_read_list(json_text_t* out, const char* folder, const char* list, const listing_t* l) {
    size_t size = 0, number = 0;
    char error[400];
    uint8_t* text = image_read_file(list, &size);
    if (!text) fatal("%s cannot be read: %s", list, strerror(errno));
    uint8_t* used = (uint8_t*)calloc_check(l->images.count, 1, "the list of images");
    for (const uint8_t *at = text, *end = text + size; at < end; number++) {
        const uint8_t* stop = (const uint8_t*)memchr(at, '\n', (size_t)(end - at));
        size_t length = (size_t)((stop ? stop : end) - at), blank = 0;
        caption_json_t j;
        while (blank < length && at[blank] && strchr(" \t\r", at[blank])) blank++;
        if (blank < length) {
            int good = caption_read_json(&j, at, length, error, sizeof error);
            if (!good) fatal("%s, line %zu: %s", list, number + 1, error);
            if (!j.file || !j.caption) fatal("%s, line %zu: it wants \"file\" and \"caption\"", list, number + 1);
            while (!strncmp(j.file, "./", 2)) j.file += 2;
            char *path = dataset_join(folder, j.file), **found = NULL;
            if (l->images.count) {
                found = (char**)bsearch(&path, l->images.items, l->images.count, sizeof path, string_list_compare);
            }
            if (found) {
                used[found - l->images.items] = 1;
                caption_add_file(out, folder, path, NULL, 0, at, length);
            } else {
                int other = path_is_file(path) && dataset_ending(path, dataset_other_endings) >= 0;
                caption_add_left_out(out, other ? CAPTION_OTHER_KIND : CAPTION_NO_IMAGE, j.file, 0);
            }
            free(path);
            free(j.buffer);
        }
        at += length + 1;
    }
    for (size_t i = 0; i < l->images.count; i++) {
        if (!used[i]) caption_add_left_out(out, CAPTION_NONE, l->images.items[i] + strlen(folder) + 1, 0);
    }
    free(used);
    free(text);
}

// Opens a folder: its index is made each time, and not kept.
static inline void caption_open_folder(caption_shard_t* shard) {
    json_text_t text = {NULL, 0, 0};
    listing_t l;
    char* list = dataset_join(shard->path, "captions.jsonl");
    memset(&l, 0, sizeof l);
    l.also = "txt";
    dataset_list_tree(shard->path, NULL, &l);
    listing_warn_of_others(shard->path, &l);
    string_list_sort(&l.images);
    json_append(&text, "folder\n");
    if (path_is_file(list)) caption_read_list(&text, shard->path, list, &l);
    else caption_read_text_files(&text, shard->path, &l);
    shard->text = text.text;
    shard->text_size = text.length;
    shard->is_folder = 1;
    free(list);
    string_list_free(&l.images);
    string_list_free(&l.files);
}

// ---------------------------------------------------------------------------------------------------------------------
// All of them

static inline void captions_close(captions_t* c) {
    for (int k = 0; k < c->n_shards; k++) {
        free(c->shards[k].path);
        if (c->shards[k].is_mapped) munmap(c->shards[k].text, c->shards[k].text_size);
        else free(c->shards[k].text);
    }
    free(c->shards);
    free(c->records);
    memset(c, 0, sizeof *c);
}

// Opens the shards, by threads, this process's own first.
static inline void captions_open_shards(captions_t* c) {
    progress_t progress = progress_begin("captions, archives", c->n_shards, log_rank == 0);
    int done = 0, lost = 0;
    char first[IMAGE_ERROR_SIZE] = "";
    for (int pass = 0; pass < 2; pass++) {
        #pragma omp parallel for schedule(dynamic)
        for (int k = 0; k < c->n_shards; k++) {
            int own = k % log_size == log_rank;
            char error[IMAGE_ERROR_SIZE] = "";
            if (own == pass) continue;
            int kept = caption_open_archive(&c->shards[k], own, error);
            #pragma omp critical(captions)
            {
                progress_say(&progress, ++done);
                if (!kept && !lost++) memcpy(first, error, sizeof first);
            }
        }
    }
    if (lost) warn("%s; %d archives will be looked through again", first, lost);
}

// Takes up the lines of one index. first[reason]: the first sample that is left out for it.
static inline void captions_take_up(captions_t* c, int shard, size_t* room, char first[][TAR_NAME]) {
    const caption_shard_t* s = &c->shards[shard];
    const char *at = strchr(s->text, '\n') + 1, *end = s->text + s->text_size;
    if (s->text_size > UINT32_MAX) fatal("%s: an index of %zu bytes; divide the images", s->path, s->text_size);
    for (; at < end; at = (const char*)memchr(at, '\n', (size_t)(end - at)) + 1) {
        const char* stop = (const char*)memchr(at, '\n', (size_t)(end - at));
        if (*at == '!') {
            c->damaged++;
            if (log_rank) continue; // one process says what all see
            warn_once("%s: %.*s; what lies behind that is left out: fetch it again", s->path, (int)(stop - at - 2),
                      at + 2);
        } else if (*at == '-') {
            int reason = at[2] - '0';
            if (c->left_out[reason]++) continue;
            snprintf(first[reason], TAR_NAME, "%s/%.*s", s->path, (int)(stop - at - 4), at + 4);
        } else {
            if (c->count == *room) {
                *room = *room ? 2 * *room : 1024;
                c->records = (caption_record_t*)realloc(c->records, *room * sizeof *c->records);
                if (!c->records) fatal("no memory for a list of %zu images", *room);
            }
            c->records[c->count].shard = (uint32_t)shard;
            c->records[c->count++].line = (uint32_t)(at - s->text);
        }
    }
}

// Opens an archive, or a folder of archives or of images with captions. What cannot be used at all ends the program.
static inline void captions_open(captions_t* c, const char* path) {
    char first[CAPTION_REASONS][TAR_NAME];
    size_t room = 0;
    listing_t l;
    memset(c, 0, sizeof *c);
    memset(&l, 0, sizeof l);
    l.also = "tar";
    if (path_is_file(path)) string_list_add(&l.files, string_copy(path));
    else dataset_list_tree(path, NULL, &l);
    string_list_sort(&l.files);
    if (l.files.count && l.images.count && log_rank == 0) {
        warn_once("%s holds tar archives and %zu images beside them, which are left out: keep them in folders of their "
                  "own", path, l.images.count);
    }
    string_list_free(&l.images);
    int of_folder = !l.files.count;
    if (of_folder) string_list_add(&l.files, string_copy(path));
    c->n_shards = (int)l.files.count;
    c->shards = (caption_shard_t*)calloc_check(l.files.count, sizeof *c->shards, "the list of archives");
    for (int k = 0; k < c->n_shards; k++) c->shards[k].path = l.files.items[k];
    free(l.files.items);
    if (of_folder) caption_open_folder(&c->shards[0]);
    else captions_open_shards(c);
    for (int k = 0; k < c->n_shards; k++) captions_take_up(c, k, &room, first);
    for (int k = 0; k < CAPTION_REASONS && log_rank == 0; k++) {
        if (c->left_out[k]) warn_once("%s: %zu samples %s and are left out; the first is %s", path, c->left_out[k],
                                      caption_reasons[k], first[k]);
    }
    if (!c->count) {
        fatal("%s holds no images with captions; it wants tar archives as img2dataset writes them, or NAME.jpg with "
              "NAME.txt, or captions.jsonl (images: " DATASET_ENDINGS ")", path);
    }
}

static inline caption_line_t captions_line(const captions_t* c, size_t i) {
    caption_line_t line = {0, 0, 0, 0, {NAN, NAN, NAN}, NULL, NULL, 0, 0};
    caption_read_line(&line, c->shards[c->records[i].shard].text + c->records[i].line);
    return line;
}

// The caption of image i, for the caller to free.
static inline char* captions_text(const captions_t* c, size_t i) {
    caption_line_t line = captions_line(c, i);
    char* text = (char*)malloc_check((size_t)line.caption_length + 1, "a caption");
    memcpy(text, line.caption, (size_t)line.caption_length);
    text[line.caption_length] = 0;
    return text;
}

// Image i, for messages: its file, or its archive and its name there.
static inline const char* captions_name(const captions_t* c, size_t i, char* text, size_t size) {
    caption_line_t line = captions_line(c, i);
    snprintf(text, size, "%s/%.*s", c->shards[c->records[i].shard].path, line.name_length, line.name);
    return text;
}

// Decodes image i. 1; or 0 with a sentence in `error`, and no image.
static inline int captions_load(const captions_t* c, size_t i, image_t* image, char* error) {
    char name[1400];
    const caption_shard_t* s = &c->shards[c->records[i].shard];
    caption_line_t line = captions_line(c, i);
    captions_name(c, i, name, sizeof name);
    if (s->is_folder) return image_load(image, name, error);
    memset(image, 0, sizeof *image);
    int loaded = 0, file = open(s->path, O_RDONLY | O_CLOEXEC);
    uint8_t* bytes = (uint8_t*)malloc_check((size_t)line.length, "an image file");
    if (file < 0 || pread(file, bytes, (size_t)line.length, (off_t)line.begin) != (ssize_t)line.length) {
        image_error(error, "%s: cannot be read: %s", name,
                    file < 0 ? strerror(errno) : "the archive has become shorter");
    } else {
        loaded = image_decode(image, bytes, (size_t)line.length, name, error);
    }
    if (file >= 0) close(file);
    free(bytes);
    return loaded;
}

// ---------------------------------------------------------------------------------------------------------------------
// Filters

typedef struct {
    double punsafe, pwatermark; // below these
    double aesthetic;           // this or more
    int short_side;             // pixels, or more
    double aspect;              // of the long side to the short one, or less
} caption_filter_t;

enum { CAPTION_FILTERS = 5 };
static const char* const caption_filters[CAPTION_FILTERS] = {"punsafe", "pwatermark", "aesthetic", "short side",
                                                             "aspect ratio"};
static const char* const caption_filter_flags[CAPTION_FILTERS] = {"-punsafe", "-pwatermark", "-aesthetic",
                                                                  "-short_side", "-aspect"};

// The first filter that a sample does not pass, or -1.
static inline int caption_filter_stops(const caption_filter_t* f, const caption_line_t* line) {
    int tall = line->height > line->width, shorter = tall ? line->width : line->height;
    int longer = tall ? line->height : line->width;
    if (line->columns.punsafe >= f->punsafe) return 0; // NAN is neither
    if (line->columns.pwatermark >= f->pwatermark) return 1;
    if (line->columns.aesthetic < f->aesthetic) return 2;
    if (shorter < f->short_side) return 3;
    return longer > f->aspect * shorter ? 4 : -1;
}

// Keeps what passes; counts[k]: what filter k stopped, each sample by the first one.
static inline void captions_filter(captions_t* c, const caption_filter_t* f, size_t counts[CAPTION_FILTERS]) {
    size_t n = 0;
    memset(counts, 0, CAPTION_FILTERS * sizeof *counts);
    for (size_t i = 0; i < c->count; i++) {
        caption_line_t line = captions_line(c, i);
        int k = caption_filter_stops(f, &line);
        if (k < 0) c->records[n++] = c->records[i];
        else counts[k]++;
    }
    c->count = n;
}
