// safetensors.h: reads safetensors files, the format of every weight, checkpoint and latent here.
//
// A file is a length, a JSON header of that length, and the values of all tensors one after another:
//
//     8 bytes       N, the length of the header, little-endian
//     N bytes       {"__metadata__": {"key": "text", ...},
//                    "conv_in.weight": {"dtype": "F32", "shape": [512, 32, 3, 3], "data_offsets": [0, 589824]}, ...}
//     the rest      the data; offsets count from its first byte, tensors lie end to end, last index fastest
//
// The header is a stranger's text, so nothing in it is believed: each length, number, escape, offset and product is
// checked before it is used, and a refusal names the field. Refused is what the official Rust implementation refuses
// (https://github.com/huggingface/safetensors), and also doubled names, more than 8 dimensions, "__metadata__": null
// and NUL characters inside of names.
//
// The reader maps the file: opening costs the header alone, and tensors come from the page cache when they are read.
// Tensors need not be aligned within a file, hence the memcpy of single values.
//
// A table may also hold the tensors of several files (common/files/tensor_file.h).
//
// Left out: arithmetic on 8-bit and smaller floats (found and handed out as raw bytes), big-endian machines, and a file
// that somebody shortens while it is mapped (the system ends the program then).
// Reading order: the tensor table, opening, values. The header is read by common/program/json.h. Look next at
// common/files/safetensors_writer.h, and at common/models/params.h and common/models/weights.h, which use both.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// defines: floatS
#include "common/device.h"
// defines: file_map, file_number
#include "common/files/file_map.h"
// defines: json_reader_t, json_key, json_string
#include "common/program/json.h"
// defines: fatal, malloc_check
#include "common/program/log.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors files are little-endian, and so must this machine be"
#endif

// ------------------------------------------------------------------------------------------------------------------
// The tensor table

#define ST_MAX_HEADER 100000000 // bytes; the official limit
#define ST_MAX_DIMENSIONS 8

// Element types, in the order of st_dtype_info.
typedef enum {
    ST_F64, ST_F32, ST_F16, ST_BF16, ST_I64, ST_I32, ST_I16, ST_I8, ST_U8, ST_BOOL, ST_U64, ST_U32, ST_U16, ST_C64,
    ST_F8_E5M2, ST_F8_E4M3, ST_F8_E8M0, ST_F8_E4M3FNUZ, ST_F8_E5M2FNUZ, ST_F6_E2M3, ST_F6_E3M2, ST_F4, ST_DTYPE_COUNT
} st_dtype_t;

typedef struct {
    const char* name;
    size_t bits; // of one element
} st_dtype_info_t;

static inline st_dtype_info_t st_dtype_info(st_dtype_t dtype) {
    static const st_dtype_info_t table[ST_DTYPE_COUNT] = {
        {"F64", 64}, {"F32", 32}, {"F16", 16}, {"BF16", 16}, {"I64", 64}, {"I32", 32}, {"I16", 16}, {"I8", 8},
        {"U8", 8}, {"BOOL", 8}, {"U64", 64}, {"U32", 32}, {"U16", 16}, {"C64", 64}, {"F8_E5M2", 8}, {"F8_E4M3", 8},
        {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}};
    return table[dtype];
}

static inline int st_dtype_is_float(st_dtype_t d) { return d == ST_F64 || d == ST_F32 || d == ST_F16 || d == ST_BF16; }

typedef struct {
    const char* name;
    const char* file; // the path, for messages
    st_dtype_t dtype;
    int ndim;
    size_t shape[ST_MAX_DIMENSIONS];
    size_t numel;              // product of the shape; 1 for ndim 0
    size_t begin, end;         // bytes within the data
    const unsigned char* data; // end - begin bytes, of any alignment
} st_tensor_t;

typedef struct {
    const char* key;
    const char* value;
} st_metadata_t;

typedef struct safetensors {
    char* path;
    int n;
    st_tensor_t* tensors; // in the order of their data
    const st_tensor_t** by_name; // the same, sorted by name
    int n_metadata;
    st_metadata_t* metadata;
    char* strings;  // names, keys and values
    void* map;      // the mapped file, NULL for a file in memory
    size_t map_size;
    struct safetensors* parts; // (n_parts) the files that hold the tensors, where these are several; else NULL
    int n_parts;
} safetensors_t;

// Array growth by doubling: room for one more element beyond `count`.
static inline void* st_grow(void* array, int count, size_t element_size) {
    if (count & (count - 1)) return array; // between powers of two there is room
    void* grown = realloc(array, (count ? 2 * (size_t)count : 1) * element_size);
    if (!grown) fatal("no memory for the table of %d tensors; free memory and start again", count);
    return grown;
}

// "[512, 32, 3, 3]"
static inline const char* st_shape_text(const st_tensor_t* t, char* text, size_t text_size) {
    size_t used = (size_t)snprintf(text, text_size, "[");
    for (int i = 0; i < t->ndim && used < text_size; i++) {
        used += (size_t)snprintf(text + used, text_size - used, "%s%zu", i ? ", " : "", t->shape[i]);
    }
    if (used < text_size) snprintf(text + used, text_size - used, "]");
    return text;
}

static inline void st_read_dtype(json_reader_t* r, st_tensor_t* t) {
    const char* name = json_string(r);
    int i = 0;
    while (i < ST_DTYPE_COUNT && strcmp(name, st_dtype_info((st_dtype_t)i).name)) i++;
    if (i == ST_DTYPE_COUNT) json_fail(r, "\"%.40s\" is no known type; known are F64, F32, F16, BF16, I64, ...", name);
    else t->dtype = (st_dtype_t)i;
}

static inline void st_read_shape(json_reader_t* r, st_tensor_t* t) {
    t->ndim = 0;
    json_expect(r, '[');
    for (int first = 1; json_more(r, ']', first); first = 0) {
        if (t->ndim == ST_MAX_DIMENSIONS) json_fail(r, "there are more than %d dimensions", ST_MAX_DIMENSIONS);
        else t->shape[t->ndim++] = json_size(r);
    }
}

static inline void st_read_offsets(json_reader_t* r, st_tensor_t* t) {
    json_expect(r, '[');
    t->begin = json_size(r);
    json_expect(r, ',');
    t->end = json_size(r);
    json_expect(r, ']');
    if (!r->failed && t->end < t->begin) json_fail(r, "the end, %zu, lies before the begin, %zu", t->end, t->begin);
}

// numel * bits of the type == bytes between the offsets, where no product may overflow.
static inline void st_check_size(json_reader_t* r, st_tensor_t* t) {
    char shape[256];
    size_t bits = 0;
    int overflow = 0;
    t->numel = 1;
    for (int i = 0; i < t->ndim; i++) overflow |= __builtin_mul_overflow(t->numel, t->shape[i], &t->numel);
    overflow |= __builtin_mul_overflow(t->numel, st_dtype_info(t->dtype).bits, &bits);
    const char* dtype = st_dtype_info(t->dtype).name;
    st_shape_text(t, shape, sizeof shape);
    if (overflow) json_fail(r, "%s values of shape %s are more bytes than can be counted", dtype, shape);
    else if (bits % 8) json_fail(r, "%s values of shape %s do not fill whole bytes", dtype, shape);
    else if (bits / 8 != t->end - t->begin) {
        json_fail(r, "%s values of shape %s are %zu bytes, but the field data_offsets [%zu, %zu] gives %zu",
                  dtype, shape, bits / 8, t->begin, t->end, t->end - t->begin);
    }
}

// {"dtype": ..., "shape": ..., "data_offsets": ...}; other fields are skipped, as the official implementation does.
static inline void st_read_tensor(json_reader_t* r, st_tensor_t* t) {
    static const char* const fields[3] = {"dtype", "shape", "data_offsets"};
    int found[3] = {0, 0, 0};
    json_expect(r, '{');
    for (int first = 1; json_more(r, '}', first); first = 0) {
        const char* field = json_key(r);
        if (r->failed) return;
        json_where(r, "tensor \"%.120s\", field %.40s", t->name, field);
        int i = 0;
        while (i < 3 && strcmp(field, fields[i])) i++;
        if (i < 3) found[i]++;
        if (i == 0) st_read_dtype(r, t);
        else if (i == 1) st_read_shape(r, t);
        else if (i == 2) st_read_offsets(r, t);
        else json_skip_value(r, 0);
    }
    if (r->failed) return;
    for (int i = 0; i < 3; i++) {
        json_where(r, "tensor \"%.120s\", field %s", t->name, fields[i]);
        if (found[i] != 1) json_fail(r, "%s", found[i] ? "it stands there twice" : "it is missing");
    }
    json_where(r, "tensor \"%.120s\", field shape", t->name);
    if (!r->failed) st_check_size(r, t);
}

static inline void st_read_metadata(json_reader_t* r, safetensors_t* f) {
    json_where(r, "header, field __metadata__");
    if (f->metadata) {
        json_fail(r, "it stands there twice");
        return;
    }
    f->metadata = (st_metadata_t*)st_grow(f->metadata, 0, sizeof(st_metadata_t)); // marks it as seen, even when empty
    json_expect(r, '{');
    for (int first = 1; json_more(r, '}', first); first = 0) {
        f->metadata = (st_metadata_t*)st_grow(f->metadata, f->n_metadata, sizeof(st_metadata_t));
        st_metadata_t* entry = &f->metadata[f->n_metadata];
        entry->key = json_key(r);
        entry->value = json_string(r);
        if (!r->failed) f->n_metadata++;
    }
}

static inline int st_compare_offsets(const void* left, const void* right) {
    const st_tensor_t* a = (const st_tensor_t*)left;
    const st_tensor_t* b = (const st_tensor_t*)right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    if (a->end != b->end) return a->end < b->end ? -1 : 1;
    return strcmp(a->name, b->name);
}

static inline int st_compare_names(const void* left, const void* right) {
    return strcmp((*(const st_tensor_t* const*)left)->name, (*(const st_tensor_t* const*)right)->name);
}

static inline int st_compare_keys(const void* left, const void* right) {
    return strcmp(((const st_metadata_t*)left)->key, ((const st_metadata_t*)right)->key);
}

// Sorts tensors and metadata for lookup, and refuses doubled names and keys.
static inline void st_sort(safetensors_t* f, json_reader_t* r) {
    if (r->failed) return;
    json_where(r, "header");
    f->by_name = (const st_tensor_t**)malloc_check((size_t)f->n * sizeof(st_tensor_t*), "the index of tensor names");
    if (f->n) qsort(f->tensors, (size_t)f->n, sizeof(st_tensor_t), st_compare_offsets);
    for (int i = 0; i < f->n; i++) f->by_name[i] = &f->tensors[i];
    if (f->n) qsort(f->by_name, (size_t)f->n, sizeof(st_tensor_t*), st_compare_names);
    if (f->n_metadata) qsort(f->metadata, (size_t)f->n_metadata, sizeof(st_metadata_t), st_compare_keys);
    for (int i = 1; i < f->n; i++) {
        const char* name = f->by_name[i]->name;
        if (!strcmp(f->by_name[i - 1]->name, name)) json_fail(r, "tensor \"%.120s\" stands there twice", name);
    }
    for (int i = 1; i < f->n_metadata; i++) {
        const char* key = f->metadata[i].key;
        if (!strcmp(f->metadata[i - 1].key, key)) json_fail(r, "__metadata__ has the key \"%.120s\" twice", key);
    }
}

// The tensors must fill the data from the first byte to the last, without gap or overlap.
static inline void st_check_layout(const safetensors_t* f, json_reader_t* r, size_t data_size) {
    size_t filled = 0;
    for (int i = 0; i < f->n && !r->failed; i++) {
        const st_tensor_t* t = &f->tensors[i];
        json_where(r, "tensor \"%.120s\", field data_offsets", t->name);
        if (t->begin != filled) {
            json_fail(r, "it begins at byte %zu of the data, but the tensor before it ends at byte %zu; %s", t->begin,
                      filled, t->begin < filled ? "tensors may not overlap" : "there may be no gap");
        }
        if (t->end > data_size) {
            json_fail(r, "it ends at byte %zu, but the file has only %zu bytes of data: the file is truncated", t->end,
                      data_size);
        }
        filled = t->end;
    }
    json_where(r, "data");
    if (filled < data_size) json_fail(r, "%zu bytes follow the end of the last tensor", data_size - filled);
}

void safetensors_close(safetensors_t* f) {
    for (int i = 0; i < f->n_parts; i++) safetensors_close(&f->parts[i]);
    free(f->parts);
    if (f->map) munmap(f->map, f->map_size);
    free(f->path);
    free(f->tensors);
    free(f->by_name);
    free(f->metadata);
    free(f->strings);
    memset(f, 0, sizeof *f);
}

// Fills the table from a header text. The data need not be there, only their size be known; `data` stays NULL.
// 1, or 0 with a message.
int st_parse_header(safetensors_t* f, const unsigned char* header, size_t header_size, size_t data_size,
                    const char* path, char* error, size_t error_size) {
    json_reader_t r;
    memset(&r, 0, sizeof r);
    memset(f, 0, sizeof *f);
    f->path = strdup(path);
    f->strings = (char*)malloc_check(header_size, "the names of a safetensors file");
    r.begin = r.at = header;
    r.end = header + header_size;
    r.strings = f->strings;
    r.error = error;
    r.error_size = error_size;
    json_where(&r, "header");
    if (header_size == 0 || header[0] != '{') json_fail_wanted(&r, "'{'");
    json_expect(&r, '{');
    for (int first = 1; json_more(&r, '}', first); first = 0) {
        const char* name = json_key(&r);
        if (r.failed) break;
        if (!strcmp(name, "__metadata__")) {
            st_read_metadata(&r, f);
        } else {
            f->tensors = (st_tensor_t*)st_grow(f->tensors, f->n, sizeof(st_tensor_t));
            st_tensor_t* t = &f->tensors[f->n++];
            memset(t, 0, sizeof *t);
            t->name = name;
            t->file = f->path;
            json_where(&r, "tensor \"%.120s\"", name);
            st_read_tensor(&r, t);
        }
        json_where(&r, "header");
    }
    json_end(&r);
    st_sort(f, &r);
    st_check_layout(f, &r, data_size);
    if (r.failed) safetensors_close(f);
    return !r.failed;
}

// ------------------------------------------------------------------------------------------------------------------
// Opening

// A whole file that lies in memory and must stay there until safetensors_close. `path` is for messages.
// 1, or 0 with a message that names the field; nothing is left to close then.
int safetensors_parse(safetensors_t* f, const unsigned char* bytes, size_t size, const char* path, char* error,
                      size_t error_size) {
    uint64_t header_size = 0;
    memset(f, 0, sizeof *f);
    if (size < 8) {
        snprintf(error, error_size, "header length: the file has %zu bytes, fewer than the 8 of this field", size);
        return 0;
    }
    memcpy(&header_size, bytes, 8);
    if (header_size > ST_MAX_HEADER) {
        snprintf(error, error_size, "header length: %llu bytes is above the limit of %d; this is no safetensors file",
                 (unsigned long long)header_size, ST_MAX_HEADER);
        return 0;
    }
    if (header_size > size - 8) {
        snprintf(error, error_size, "header length: %llu bytes, but only %zu follow: the file is truncated",
                 (unsigned long long)header_size, size - 8);
        return 0;
    }
    size_t data_size = size - 8 - (size_t)header_size;
    if (!st_parse_header(f, bytes + 8, (size_t)header_size, data_size, path, error, error_size)) return 0;
    for (int i = 0; i < f->n; i++) f->tensors[i].data = bytes + 8 + header_size + f->tensors[i].begin;
    return 1;
}

// Maps and checks a file. 1, or 0 with a message (without the path) that says what to do.
int safetensors_open(safetensors_t* f, const char* path, char* error, size_t error_size) {
    char reason[1024];
    size_t size = 0;
    memset(f, 0, sizeof *f);
    void* map = file_map(path, "a .safetensors file", &size, error, error_size);
    if (!map) return 0;
    if (!safetensors_parse(f, (const unsigned char*)map, size, path, reason, sizeof reason)) {
        munmap(map, size);
        snprintf(error, error_size, "%s; the file is damaged or of another format: copy or make it again", reason);
        return 0;
    }
    f->map = map;
    f->map_size = size;
    return 1;
}

void safetensors_open_or_die(safetensors_t* f, const char* path) {
    char error[1280];
    if (!safetensors_open(f, path, error, sizeof error)) fatal("%s: %s", path, error);
}

// The tensor of this name, or NULL.
const st_tensor_t* safetensors_find(const safetensors_t* f, const char* name) {
    st_tensor_t wanted;
    const st_tensor_t* key = &wanted;
    wanted.name = name;
    if (f->n == 0) return NULL;
    const void* found = bsearch(&key, f->by_name, (size_t)f->n, sizeof(st_tensor_t*), st_compare_names);
    return found ? *(const st_tensor_t* const*)found : NULL;
}

// The text stored under this key of __metadata__, or NULL.
const char* safetensors_metadata(const safetensors_t* f, const char* key) {
    st_metadata_t wanted = {key, NULL};
    if (f->n_metadata == 0) return NULL;
    const void* found = bsearch(&wanted, f->metadata, (size_t)f->n_metadata, sizeof(st_metadata_t), st_compare_keys);
    return found ? ((const st_metadata_t*)found)->value : NULL;
}

// ------------------------------------------------------------------------------------------------------------------
// Values: conversion between the float types of files and floatS
//
// F16 is 1 sign, 5 exponent (bias 15) and 10 fraction bits; BF16 is 1, 8 (bias 127) and 7, the upper half of a float.

static inline float st_from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// With exponent and fraction moved to a float's place the value is 2^(15 - 127) times what it should be, and a
// subnormal F16 has become a subnormal float; one exact multiplication mends both.
static inline float st_from_f16(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7FFF) << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    if ((half & 0x7C00) == 0x7C00) value = half & 0x03FF ? NAN : INFINITY;
    return half & 0x8000 ? -value : value;
}

// The 16-bit float nearest to `value` (ties to even), straight from double so that nothing is rounded twice.
// |value| = m 2^e with m in [1/2, 1); times 2^(fraction + 1 - e) and rounded it is an integer of fraction + 1 bits, the
// top one of which adds 1 to the exponent field. Below the smallest normal, e is held at its least value, the top bit
// is missing, and the field is 0.
static inline uint16_t st_to_16_bits(double value, int fraction, int bias) {
    int sign = signbit(value) ? 0x8000 : 0;
    int infinity = (2 * bias + 1) << fraction;
    int exponent = 0;
    if (isnan(value)) return (uint16_t)(sign | infinity | (1 << (fraction - 1)));
    if (isinf(value)) return (uint16_t)(sign | infinity);
    frexp(value, &exponent);
    if (exponent < 2 - bias || value == 0) exponent = 2 - bias;
    int rounded = (int)nearbyint(ldexp(fabs(value), fraction + 1 - exponent));
    int bits = ((exponent - (2 - bias)) << fraction) + rounded;
    return (uint16_t)(sign | (bits < infinity ? bits : infinity));
}

// Puts one value into a file's bytes as the given float type.
static inline void st_store(st_dtype_t dtype, double value, unsigned char* out) {
    float single = (float)value;
    if (dtype == ST_F64) {
        memcpy(out, &value, 8);
    } else if (dtype == ST_F32) {
        memcpy(out, &single, 4);
    } else {
        uint16_t half = dtype == ST_F16 ? st_to_16_bits(value, 10, 15) : st_to_16_bits(value, 7, 127);
        memcpy(out, &half, 2);
    }
}

// Is it a type of numbers that st_value knows?
static inline int st_dtype_is_number(st_dtype_t dtype) { return dtype <= ST_U16; }

// One value of a file as a double; NaN for types of no or unknown arithmetic. 64-bit integers beyond 2^53 are rounded.
static inline double st_value(st_dtype_t dtype, const unsigned char* at) {
    double real;
    float single;
    switch (dtype) {
    case ST_F64: memcpy(&real, at, 8); return real;
    case ST_F32: memcpy(&single, at, 4); return single;
    case ST_F16: return st_from_f16((uint16_t)file_number(at, 2));
    case ST_BF16: return st_from_bf16((uint16_t)file_number(at, 2));
    case ST_I64: return (double)(int64_t)file_number(at, 8);
    case ST_I32: return (int32_t)file_number(at, 4);
    case ST_I16: return (int16_t)file_number(at, 2);
    case ST_I8: return (int8_t)*at;
    case ST_U8: case ST_BOOL: return *at;
    case ST_U64: return (double)file_number(at, 8);
    case ST_U32: return (double)file_number(at, 4);
    case ST_U16: return (double)file_number(at, 2);
    default: return NAN;
    }
}

// out = the values of a float tensor. Other types have no meaning as weights and end the program.
void safetensors_read(const st_tensor_t* t, floatS* out) { // (numel)
    if (t->dtype == (sizeof(floatS) == 4 ? ST_F32 : ST_F64)) {
        if (t->numel) memcpy(out, t->data, t->numel * sizeof(floatS));
        return;
    }
    switch (t->dtype) {
    case ST_F64:
        for (size_t i = 0; i < t->numel; i++) {
            double value;
            memcpy(&value, t->data + 8 * i, 8);
            out[i] = (floatS)value;
        }
        break;
    case ST_F32:
        for (size_t i = 0; i < t->numel; i++) {
            float value;
            memcpy(&value, t->data + 4 * i, 4);
            out[i] = (floatS)value;
        }
        break;
    case ST_F16:
    case ST_BF16:
        for (size_t i = 0; i < t->numel; i++) {
            uint16_t half;
            memcpy(&half, t->data + 2 * i, 2);
            out[i] = (floatS)(t->dtype == ST_F16 ? st_from_f16(half) : st_from_bf16(half));
        }
        break;
    default:
        fatal("%s: tensor \"%s\", field dtype: %s cannot be read as weights; give a file of F32, F16, BF16 or F64",
              t->file, t->name, st_dtype_info(t->dtype).name);
    }
}
