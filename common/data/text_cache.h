// text_cache.h: what the text encoders make of captions, kept in a file: they are frozen, and a caption is met in every
// epoch. A safetensors file holds a set of rows for each distinct caption, the sets one behind the other:
//
//     t5        BF16 (sum of L, dt)   the rows of all sets
//     offsets   I64 (n + 1)           set k is rows offsets[k], ..., offsets[k + 1] - 1
//     clip      F32 (n, dv)           the pooled vectors
//     hash      I64 (n)               of the caption, FNV-1a of 64 bits
//     metadata  encoder, the fingerprint of what made them
//
// Set 0 is the empty caption, which takes the place of those that are dropped. A caption is found by its hash, so that
// one file serves any order of the images; a caption that is not there ends the program: the file is of other captions.
// A row of T5-XXL takes 8 KB and a caption of 14 tokens 115 KB: this is for sets of up to some million captions.
//
//     string_list_t captions = text_cache_captions(&set);      // what is to be encoded, "" first
//     text_cache_begin(&w, path, encoder, lengths, captions.count, dt, dv);
//     for each: text_cache_add(&w, caption, rows, pooled);
//     text_cache_end(&w);
//     text_cache_open(&cache, path, encoder);
//     int* sets = text_cache_sets(&cache, &set);                // (images) the set of each
//     text_cache_batch(&cache, sets_of_batch, B, Lm, rows, first, pooled);
// Look next at common/data/bucket_latents.h, which keeps the images of the same training.
#pragma once
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// defines: dataset_t, dataset_caption, string_list_t, string_list_add
#include "common/data/dataset.h"
// defines: floatS
#include "common/device.h"
// defines: safetensors_t, safetensors_open_or_die, safetensors_find, safetensors_metadata, st_from_bf16
#include "common/files/safetensors.h"
// defines: st_writer_t, safetensors_writer_*
#include "common/files/safetensors_writer.h"
// defines: fatal, malloc_check, calloc_check
#include "common/program/log.h"
// defines: HASH_START, hash_string
#include "common/program/hash.h"

static inline uint64_t caption_hash(const char* caption) {
    return hash_string(HASH_START, caption);
}

// ---------------------------------------------------------------------------------------------------------------------
// Distinct captions

// The place of a hash in a table of a power of two places: its own, or an empty one. `taken`: number + 1, 0: empty.
static inline size_t text_cache_place(const uint64_t* hashes, const uint32_t* taken, size_t places, uint64_t hash) {
    size_t at = (size_t)hash & (places - 1);
    while (taken[at] && hashes[at] != hash) at = (at + 1) & (places - 1);
    return at;
}

// The distinct captions of a data set, as it has them first, behind the empty one.
static inline string_list_t text_cache_captions(const dataset_t* set) {
    string_list_t captions = {NULL, 0, 0};
    size_t places = 4;
    while (places < 2 * (set->count + 1)) places *= 2;
    uint64_t* hashes = (uint64_t*)calloc_check(places, sizeof(uint64_t), "the captions' hashes");
    uint32_t* taken = (uint32_t*)calloc_check(places, sizeof(uint32_t), "the captions' hashes");
    for (size_t i = 0; i <= set->count; i++) {
        char* caption = i ? dataset_caption(set, i - 1) : string_copy("");
        if (!caption) fatal("%s has no captions; give -data scenes or captions:FOLDER", set->folder);
        uint64_t hash = caption_hash(caption);
        size_t at = text_cache_place(hashes, taken, places, hash);
        if (taken[at]) {
            free(caption);
            continue;
        }
        hashes[at] = hash;
        string_list_add(&captions, caption);
        taken[at] = (uint32_t)captions.count;
    }
    free(hashes);
    free(taken);
    return captions;
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing

typedef struct {
    st_writer_t file;
    size_t n, added;
    int dt, dv;
    int64_t *offsets, *hash; // (n + 1), (n)
    float* clip;             // (n, dv)
} text_cache_writer_t;

// Begins a file of n captions, whose numbers of rows are known.
static inline void text_cache_begin(text_cache_writer_t* w, const char* path, const char* encoder, const int* lengths,
                                    size_t n, int dt, int dv) {
    memset(w, 0, sizeof *w);
    w->n = n;
    w->dt = dt;
    w->dv = dv;
    w->offsets = (int64_t*)calloc_check(n + 1, sizeof(int64_t), "the offsets of captions");
    w->hash = (int64_t*)calloc_check(n, sizeof(int64_t), "the captions' hashes");
    w->clip = (float*)calloc_check(n * (size_t)dv, sizeof(float), "the captions' vectors");
    for (size_t i = 0; i < n; i++) w->offsets[i + 1] = w->offsets[i] + lengths[i];
    size_t rows[2] = {(size_t)w->offsets[n], (size_t)dt}, offsets[1] = {n + 1}, clip[2] = {n, (size_t)dv};
    safetensors_writer_init(&w->file);
    safetensors_writer_metadata(&w->file, "format", "pt");
    safetensors_writer_metadata(&w->file, "encoder", encoder);
    safetensors_writer_tensor(&w->file, "t5", ST_BF16, 2, rows);
    safetensors_writer_tensor(&w->file, "offsets", ST_I64, 1, offsets);
    safetensors_writer_tensor(&w->file, "clip", ST_F32, 2, clip);
    safetensors_writer_tensor(&w->file, "hash", ST_I64, 1, clip);
    safetensors_writer_begin(&w->file, path);
}

// The next caption; the first one is "".
static inline void text_cache_add(text_cache_writer_t* w, const char* caption,
                                  const floatS* rows,      // (L, dt)
                                  const floatS* pooled) {  // (dv)
    size_t i = w->added++;
    assert(i < w->n && (i || !*caption));
    safetensors_writer_data(&w->file, rows, (size_t)(w->offsets[i + 1] - w->offsets[i]) * w->dt);
    for (int k = 0; k < w->dv; k++) w->clip[i * w->dv + k] = (float)pooled[k];
    w->hash[i] = (int64_t)caption_hash(caption);
}

static inline void text_cache_end(text_cache_writer_t* w) {
    assert(w->added == w->n);
    safetensors_writer_raw(&w->file, w->offsets, (w->n + 1) * sizeof(int64_t));
    safetensors_writer_raw(&w->file, w->clip, w->n * w->dv * sizeof(float));
    safetensors_writer_raw(&w->file, w->hash, w->n * sizeof(int64_t));
    safetensors_writer_finish_or_die(&w->file);
    free(w->offsets);
    free(w->hash);
    free(w->clip);
    memset(w, 0, sizeof *w);
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

typedef struct {
    safetensors_t file;
    const st_tensor_t *t5, *clip;
    int64_t *offsets, *hash; // (n + 1), (n)
    uint64_t* hashes;        // (places) a table of hashes, and
    uint32_t* taken;         // their sets + 1
    size_t n, places;
    int dt, dv;
    const char* encoder;     // its fingerprint
} text_cache_t;

// A tensor of this type and shape; the first size may be any where `rows` is SIZE_MAX.
static inline const st_tensor_t* text_cache_tensor(const text_cache_t* c, const char* path, const char* name,
                                                   st_dtype_t dtype, int ndim, size_t rows, size_t columns) {
    const st_tensor_t* t = safetensors_find(&c->file, name);
    char shape[160];
    if (!t) fatal("%s: tensor %s is missing; it is no text cache, make it again", path, name);
    st_shape_text(t, shape, sizeof shape);
    if (t->dtype != dtype || t->ndim != ndim || (rows != SIZE_MAX && t->shape[0] != rows) ||
        (ndim > 1 && t->shape[1] != columns)) {
        fatal("%s: tensor %s is %s %s, and does not fit to the text encoders or to the other tensors; make it again",
              path, name, st_dtype_info(t->dtype).name, shape);
    }
    return t;
}

static inline int64_t* text_cache_integers(const st_tensor_t* t) {
    int64_t* out = (int64_t*)malloc_check(t->numel * sizeof(int64_t), "a text cache");
    if (t->numel) memcpy(out, t->data, t->numel * sizeof(int64_t));
    return out;
}

// The width of a tensor's rows; 0 where there is no such tensor, or none with rows.
static inline int text_cache_width(const text_cache_t* c, const char* name) {
    const st_tensor_t* t = safetensors_find(&c->file, name);
    return t && t->ndim == 2 && t->shape[1] < 1 << 20 ? (int)t->shape[1] : 0;
}

// Opens a file that this encoder made; "": whichever did, and c->encoder tells.
static inline void text_cache_open(text_cache_t* c, const char* path, const char* encoder) {
    memset(c, 0, sizeof *c);
    safetensors_open_or_die(&c->file, path);
    c->encoder = safetensors_metadata(&c->file, "encoder");
    if (!c->encoder) fatal("%s: metadata field \"encoder\" is missing; it is no text cache, make it again", path);
    if (encoder[0] && strcmp(c->encoder, encoder)) {
        fatal("%s was made by text encoder %s, and this is %s; make it again, or give that one", path, c->encoder,
              encoder);
    }
    int dt = c->dt = text_cache_width(c, "t5"), dv = c->dv = text_cache_width(c, "clip");
    c->t5 = text_cache_tensor(c, path, "t5", ST_BF16, 2, SIZE_MAX, (size_t)dt);
    c->clip = text_cache_tensor(c, path, "clip", ST_F32, 2, SIZE_MAX, (size_t)dv);
    c->n = c->clip->shape[0];
    c->offsets = text_cache_integers(text_cache_tensor(c, path, "offsets", ST_I64, 1, c->n + 1, 0));
    c->hash = text_cache_integers(text_cache_tensor(c, path, "hash", ST_I64, 1, c->n, 0));
    int good = c->n && c->n < UINT32_MAX && c->offsets[0] == 0 && (size_t)c->offsets[c->n] == c->t5->shape[0] &&
               (uint64_t)c->hash[0] == caption_hash("");
    for (size_t i = 0; good && i < c->n; i++) good = c->offsets[i] < c->offsets[i + 1];
    c->places = 4;
    while (c->places < 2 * c->n) c->places *= 2;
    c->hashes = (uint64_t*)calloc_check(c->places, sizeof(uint64_t), "a text cache");
    c->taken = (uint32_t*)calloc_check(c->places, sizeof(uint32_t), "a text cache");
    for (size_t i = 0; good && i < c->n; i++) {
        size_t at = text_cache_place(c->hashes, c->taken, c->places, (uint64_t)c->hash[i]);
        good = !c->taken[at];
        c->hashes[at] = (uint64_t)c->hash[i];
        c->taken[at] = (uint32_t)i + 1;
    }
    if (!good) fatal("%s: its offsets or hashes are none of captions, the first of which is empty; make it again", path);
}

static inline void text_cache_close(text_cache_t* c) {
    safetensors_close(&c->file);
    free(c->offsets);
    free(c->hash);
    free(c->hashes);
    free(c->taken);
    memset(c, 0, sizeof *c);
}

// The set of a caption, or -1.
static inline int64_t text_cache_find(const text_cache_t* c, const char* caption) {
    return (int64_t)c->taken[text_cache_place(c->hashes, c->taken, c->places, caption_hash(caption))] - 1;
}

// The set of each image's caption, (count); free() it. A caption that is not there ends the program.
static inline int* text_cache_sets(const text_cache_t* c, const dataset_t* set) {
    int* sets = (int*)malloc_check(set->count * sizeof(int), "the captions of images");
    for (size_t i = 0; i < set->count; i++) {
        char *caption = dataset_caption(set, i), name[1400];
        if (!caption) fatal("%s has no captions; give -data scenes or captions:FOLDER", set->folder);
        int64_t found = text_cache_find(c, caption);
        if (found < 0) {
            fatal("%s is the cache of other captions: it has not that of %s (\"%.200s\"); make it again", c->file.path,
                  dataset_image_name(set, i, name, sizeof name), caption);
        }
        sets[i] = (int)found;
        free(caption);
    }
    return sets;
}

static inline int text_cache_length(const text_cache_t* c, int set) {
    return (int)(c->offsets[set + 1] - c->offsets[set]);
}

// Rows of the longest of B sets.
static inline int text_cache_longest(const text_cache_t* c, const int* sets, int B) { // (B)
    int longest = 0;
    for (int b = 0; b < B; b++) {
        int length = text_cache_length(c, sets[b]);
        longest = length > longest ? length : longest;
    }
    return longest;
}

// The rows and vectors of B sets. The rows of image b end at row Lm - 1 and begin at first[b]; zeros are before them. Of
// a set of more than Lm rows the first Lm - 1 and the last one, the end mark, are taken.
static inline void text_cache_batch(const text_cache_t* c, const int* sets, int B, int Lm, // (B)
                                    floatS* rows,     // (B, Lm, dt)
                                    int* first,       // (B)
                                    floatS* pooled) { // (B, dv)
    for (int b = 0; b < B; b++) {
        int length = text_cache_length(c, sets[b]), L = length < Lm ? length : Lm;
        floatS* out = rows + (size_t)b * Lm * c->dt;
        first[b] = Lm - L;
        for (size_t i = 0; i < (size_t)first[b] * c->dt; i++) out[i] = 0;
        for (int l = 0; l < L; l++) {
            size_t row = (size_t)c->offsets[sets[b]] + (l == L - 1 ? length - 1 : l);
            floatS* to = out + (size_t)(first[b] + l) * c->dt;
            for (int k = 0; k < c->dt; k++) {
                uint16_t half;
                memcpy(&half, c->t5->data + (row * c->dt + k) * sizeof half, sizeof half);
                to[k] = (floatS)st_from_bf16(half);
            }
        }
        for (int k = 0; k < c->dv; k++) {
            float value;
            memcpy(&value, c->clip->data + ((size_t)sets[b] * c->dv + k) * sizeof value, sizeof value);
            pooled[(size_t)b * c->dv + k] = (floatS)value;
        }
    }
}
