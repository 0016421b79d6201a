// npz.h: reads numpy's arrays: an .npz file of named ones (samples and statistics of evaluators), or one .npy.
//
//     npz_reader_t file;
//     npz_open_or_die(&file, "VIRTUAL_imagenet256_labeled.npz");
//     const npz_array_t* images = npz_need(&file, "arr_0");        // ends the program where it is not there
//     npz_read_rows(images, pixels, first, count);                 // rows of the first dimension, in the file's type
//     npz_read_doubles(npz_need(&file, "mu"), mu);                 // a whole array, converted
//
// An .npz is a zip archive (common/files/zip.h) of .npy files, whose names without ".npy" are the arrays'. An .npy is
//
//     "\x93NUMPY", major, minor, length of the text (2 bytes in version 1, 4 in 2 and 3), the text, the values
//     {'descr': '<f8', 'fortran_order': False, 'shape': (2048,), }      spaces to a multiple of 64 bytes
//
// numpy.savez stores: the values lie in the mapped file. numpy.savez_compressed deflates: rows come from a stream,
// which is fast for those who read them in order and starts again for those who go back. 50,000 images of 9.8 GB are
// thus read without memory for them. Types: |u1, <f2, <f4, <f8, <i4, <i8, and texts (<U, |S). Arrays of other types,
// and those in Fortran's order of more than one dimension, are known by name and refused when they are read. Headers
// are a stranger's: checked, errors are texts. CRC-32: compared by npz_read_doubles, and by npz_read_rows when all rows
// are read in order. Not for several threads at once. (numpy/lib/format.py.)
// Look next at common/files/zip.h, and at common/files/npz_writer.h, which writes them.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// defines: file_map, file_fail, file_number
#include "common/files/file_map.h"
// defines: st_dtype_t, st_dtype_info, st_value, ST_MAX_DIMENSIONS
#include "common/files/safetensors.h"
// defines: zip_t, zip_entry_t, zip_stream_t, zip_open, zip_stream_*
#include "common/files/zip.h"
// defines: fatal, malloc_check, calloc_check
#include "common/program/log.h"

enum { NPZ_HEADER = 1 << 16 }; // bytes of an .npy header; numpy writes 64 to 192

// Where a sequential reader is.
typedef struct {
    zip_stream_t zip;
    int open;
    size_t row; // that comes next
} npz_stream_t;

typedef struct {
    const char* file;     // the path, for messages
    const char* name;     // without ".npy"; arr_0 for an .npy file
    char descr[24];       // "<f8"
    int readable;         // 0: of a type or order that is not read here
    st_dtype_t dtype;     // of numbers
    size_t text;          // bytes of each element of a text array; 0: numbers
    int fortran;
    int ndim;
    size_t shape[ST_MAX_DIMENSIONS], numel;
    size_t bytes;         // of one element
    const unsigned char* data; // the values in the map; NULL where they are compressed
    const zip_t* zip;          // NULL: an .npy file
    const zip_entry_t* entry;
    size_t header;             // bytes in front of the values
    npz_stream_t* stream;
} npz_array_t;

typedef struct {
    char* path;
    void* map; // NULL for a file in memory
    size_t map_size;
    zip_t zip;
    int n;
    npz_array_t* arrays; // in the order of the file
    char* names;
} npz_reader_t;

// ---------------------------------------------------------------------------------------------------------------------
// The header of an array

// A cursor over the text of a header, which is a Python dictionary.
typedef struct {
    const char *at, *end;
    int failed;
} npz_cursor_t;

static inline int npz_peek(npz_cursor_t* c) {
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n')) c->at++;
    return c->at < c->end && !c->failed ? *c->at : 0;
}

static inline void npz_expect(npz_cursor_t* c, char wanted) {
    if (npz_peek(c) != wanted) c->failed = 1;
    else c->at++;
}

// A quoted text without escapes into `text`, "" after an error.
static inline void npz_take_text(npz_cursor_t* c, char* text, size_t size) {
    char quote = (char)npz_peek(c);
    text[0] = 0;
    if (quote != '\'' && quote != '"') c->failed = 1;
    if (c->failed) return;
    const char* close = (const char*)memchr(c->at + 1, quote, (size_t)(c->end - c->at - 1));
    if (!close || (size_t)(close - c->at) > size) {
        c->failed = 1;
        return;
    }
    snprintf(text, size, "%.*s", (int)(close - c->at - 1), c->at + 1);
    c->at = close + 1;
}

// (50000, 256, 256, 3), (3,) or ()
static inline void npz_take_shape(npz_cursor_t* c, npz_array_t* a) {
    npz_expect(c, '(');
    while (!c->failed && npz_peek(c) != ')') {
        size_t value = 0;
        int digits = 0;
        for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++, digits++) {
            if (value > (SIZE_MAX - 9) / 10) c->failed = 1;
            else value = value * 10 + (size_t)(*c->at - '0');
        }
        if (digits && c->at < c->end && *c->at == 'L') c->at++; // a long of Python 2
        if (digits == 0 || a->ndim == ST_MAX_DIMENSIONS) c->failed = 1;
        if (c->failed) return;
        a->shape[a->ndim++] = value;
        if (npz_peek(c) != ')') npz_expect(c, ',');
    }
    npz_expect(c, ')');
}

// What `descr` means. Structures (a list in its place) and unknown types stay unreadable.
static inline void npz_set_type(npz_array_t* a) {
    static const struct { const char* descr; st_dtype_t dtype; } types[] = {
        {"|u1", ST_U8}, {"<f2", ST_F16}, {"<f4", ST_F32}, {"<f8", ST_F64}, {"<i4", ST_I32}, {"<i8", ST_I64}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(a->descr, types[i].descr)) continue;
        a->readable = 1;
        a->dtype = types[i].dtype;
        a->bytes = st_dtype_info(a->dtype).bits / 8;
    }
    if (!strncmp(a->descr, "<U", 2) || !strncmp(a->descr, "|S", 2)) {
        size_t length = strtoul(a->descr + 2, NULL, 10);
        a->text = a->bytes = (a->descr[1] == 'U' ? 4 : 1) * (length < 1 << 20 ? length : 0);
        a->readable = a->bytes > 0;
        a->dtype = ST_U8;
    }
    if (a->fortran && a->ndim > 1) a->readable = 0;
}

// The dictionary of a header. 1, or 0 where it is none.
static inline int npz_parse_header(npz_array_t* a, const char* text, size_t length) {
    npz_cursor_t c = {text, text + length, 0};
    int seen = 0;
    npz_expect(&c, '{');
    while (!c.failed && npz_peek(&c) != '}') {
        char key[32];
        npz_take_text(&c, key, sizeof key);
        npz_expect(&c, ':');
        int first = npz_peek(&c);
        if (!strcmp(key, "descr") && first != '[') {
            npz_take_text(&c, a->descr, sizeof a->descr);
            seen |= 1;
        } else if (!strcmp(key, "descr")) {
            snprintf(a->descr, sizeof a->descr, "a structure");
            return 1; // its text has quotes and brackets of all kinds, and nobody reads it
        } else if (!strcmp(key, "shape")) {
            if (seen & 2) return 0;
            npz_take_shape(&c, a);
            seen |= 2;
        } else if (!strcmp(key, "fortran_order") && c.end - c.at > 5) {
            a->fortran = !strncmp(c.at, "True", 4);
            if (!a->fortran && strncmp(c.at, "False", 5)) return 0;
            c.at += a->fortran ? 4 : 5;
            seen |= 4;
        } else {
            return 0;
        }
        if (npz_peek(&c) != '}') npz_expect(&c, ',');
    }
    if (c.failed || seen != 7) return 0;
    npz_set_type(a);
    return 1;
}

// The next bytes of an array's file, from the stream or the map.
static inline int npz_take_bytes(const npz_array_t* a, zip_stream_t* s, void* out, size_t at, size_t n, size_t size,
                                 char* error, size_t error_size) {
    if (a->zip) return zip_stream_read(s, out, n, error, error_size);
    if (at + n > size) return file_fail(error, error_size, "the file is truncated");
    memcpy(out, a->data + at, n);
    return 1;
}

// Reads the header of an array whose file has `size` bytes.
static inline int npz_read_header(npz_array_t* a, zip_stream_t* s, size_t size, char* error, size_t error_size) {
    unsigned char start[12];
    char* text = NULL;
    int good = npz_take_bytes(a, s, start, 0, 10, size, error, error_size);
    if (!good) return 0;
    if (memcmp(start, "\x93NUMPY", 6) || start[6] < 1 || start[6] > 3) {
        return file_fail(error, error_size, "array \"%.80s\" is no .npy of versions 1 to 3", a->name);
    }
    size_t length = (size_t)file_number(start + 8, 2);
    a->header = 10;
    if (start[6] > 1) {
        if (!npz_take_bytes(a, s, start + 10, 10, 2, size, error, error_size)) return 0;
        length = (size_t)file_number(start + 8, 4);
        a->header = 12;
    }
    if (length > NPZ_HEADER) return file_fail(error, error_size, "array \"%.80s\" has a header too long", a->name);
    text = (char*)malloc_check(length, "an array's header");
    good = npz_take_bytes(a, s, text, a->header, length, size, error, error_size);
    a->header += length;
    if (good && !npz_parse_header(a, text, length)) {
        good = file_fail(error, error_size, "array \"%.80s\" has a header that is damaged", a->name);
    }
    free(text);
    if (!good || !a->readable) return good;
    size_t bytes = 0;
    int overflow = 0;
    a->numel = 1;
    for (int i = 0; i < a->ndim; i++) overflow |= __builtin_mul_overflow(a->numel, a->shape[i], &a->numel);
    overflow |= __builtin_mul_overflow(a->numel, a->bytes, &bytes);
    if (overflow || bytes != size - a->header) {
        return file_fail(error, error_size, "array \"%.80s\" has %zu bytes of values, which is not what its shape and "
                         "type %s say: the file is damaged", a->name, size - a->header, a->descr);
    }
    return 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Opening

static inline void npz_close(npz_reader_t* r) {
    for (int i = 0; i < r->n; i++) {
        if (r->arrays[i].stream->open) zip_stream_close(&r->arrays[i].stream->zip);
        free(r->arrays[i].stream);
    }
    zip_close(&r->zip);
    if (r->map) munmap(r->map, r->map_size);
    free(r->arrays);
    free(r->names);
    free(r->path);
    memset(r, 0, sizeof *r);
}

// The next array of the table, called `name` (`length` bytes, which go to `to`).
static inline npz_array_t* npz_add(npz_reader_t* r, char* to, const char* name, size_t length) {
    npz_array_t* a = &r->arrays[r->n++];
    memcpy(to, name, length);
    to[length] = 0;
    a->name = to;
    a->file = r->path;
    a->stream = (npz_stream_t*)calloc_check(1, sizeof(npz_stream_t), "an array's stream");
    return a;
}

static inline int npz_parse_archive(npz_reader_t* r, const unsigned char* bytes, size_t size, char* error,
                                    size_t error_size) {
    if (!zip_open(&r->zip, bytes, size, error, error_size)) return 0;
    size_t room = 1, used = 0;
    for (int i = 0; i < r->zip.n; i++) room += strlen(r->zip.entries[i].name) + 1;
    r->names = (char*)malloc_check(room, "the names of arrays");
    r->arrays = (npz_array_t*)calloc_check((size_t)r->zip.n, sizeof(npz_array_t), "a table of arrays");
    for (int i = 0; i < r->zip.n; i++) {
        const zip_entry_t* e = &r->zip.entries[i];
        size_t length = strlen(e->name);
        if (length < 4 || strcmp(e->name + length - 4, ".npy")) {
            return file_fail(error, error_size, "it is a zip archive, but its entry \"%.80s\" is no array of numpy",
                             e->name);
        }
        npz_array_t* a = npz_add(r, r->names + used, e->name, length - 4);
        used += length - 3;
        a->zip = &r->zip;
        a->entry = e;
        zip_stream_t s;
        int good = zip_stream_open(&s, &r->zip, e, error, error_size);
        const unsigned char* data = s.data;
        good = good && npz_read_header(a, &s, (size_t)e->size, error, error_size);
        zip_stream_close(&s);
        if (!good) return 0;
        if (e->method == ZIP_STORED) a->data = data + a->header;
    }
    return 1;
}

// A whole file in memory, which must stay there until npz_close. 1, or 0 with a message; nothing is left to close then.
static inline int npz_parse(npz_reader_t* r, const unsigned char* bytes, size_t size, const char* path, char* error,
                            size_t error_size) {
    int good = 0;
    memset(r, 0, sizeof *r);
    r->path = strdup(path);
    if (size >= 6 && !memcmp(bytes, "\x93NUMPY", 6)) {
        r->names = (char*)malloc_check(8, "the name of an array");
        r->arrays = (npz_array_t*)calloc_check(1, sizeof(npz_array_t), "a table of arrays");
        npz_array_t* a = npz_add(r, r->names, "arr_0", 5);
        a->data = bytes;
        good = npz_read_header(a, NULL, size, error, error_size);
        a->data = bytes + a->header;
    } else if (size >= 4 && bytes[0] == 'P' && bytes[1] == 'K') {
        good = npz_parse_archive(r, bytes, size, error, error_size);
    } else {
        file_fail(error, error_size, "it is no .npz or .npy file of numpy");
    }
    if (!good) npz_close(r);
    return good;
}

// Maps and checks a file. 1, or 0 with a message (without the path).
static inline int npz_open(npz_reader_t* r, const char* path, char* error, size_t error_size) {
    size_t size = 0;
    memset(r, 0, sizeof *r);
    void* map = file_map(path, "an .npz or .npy file", &size, error, error_size);
    if (!map) return 0;
    if (!npz_parse(r, (const unsigned char*)map, size, path, error, error_size)) {
        munmap(map, size);
        return 0;
    }
    r->map = map;
    r->map_size = size;
    return 1;
}

static inline void npz_open_or_die(npz_reader_t* r, const char* path) {
    char error[1024];
    if (!npz_open(r, path, error, sizeof error)) fatal("%s: %s", path, error);
}

// The array of this name, or NULL.
static inline const npz_array_t* npz_find(const npz_reader_t* r, const char* name) {
    for (int i = 0; i < r->n; i++) {
        if (!strcmp(r->arrays[i].name, name)) return &r->arrays[i];
    }
    return NULL;
}

// "|u1 (50000, 256, 256, 3)"
static inline const char* npz_type_text(const npz_array_t* a, char* text, size_t size) {
    size_t used = (size_t)snprintf(text, size, "%s (", a->descr);
    for (int i = 0; i < a->ndim && used < size; i++) {
        used += (size_t)snprintf(text + used, size - used, "%s%zu", i ? ", " : "", a->shape[i]);
    }
    const char* comma = a->ndim == 1 ? "," : "";
    if (used < size) snprintf(text + used, size - used, "%s)%s", comma, a->fortran ? ", Fortran's order" : "");
    return text;
}

// The array of this name, which must be there and readable.
static inline const npz_array_t* npz_need(const npz_reader_t* r, const char* name) {
    char text[256];
    const npz_array_t* a = npz_find(r, name);
    if (!a) {
        fatal("%s has no array \"%s\" (%d arrays, the first is %s); give the file that has it", r->path, name, r->n,
              r->n ? r->arrays[0].name : "none");
    }
    if (!a->readable) {
        fatal("%s: array \"%s\" is %s; read are |u1, <f2, <f4, <f8, <i4, <i8 in C order: save it again as one of these",
              r->path, name, npz_type_text(a, text, sizeof text));
    }
    return a;
}

// ---------------------------------------------------------------------------------------------------------------------
// Values

static inline size_t npz_rows(const npz_array_t* a) { return a->ndim ? a->shape[0] : 1; }

// Values of one row of the first dimension.
static inline size_t npz_row_values(const npz_array_t* a) { return npz_rows(a) ? a->numel / npz_rows(a) : 0; }

// Reads on from the stream to the end of a piece of `bytes`, or passes over it where `out` is NULL.
static inline int npz_stream_read(npz_stream_t* s, unsigned char* out, size_t bytes, char* error, size_t error_size) {
    unsigned char skipped[16384];
    while (bytes) {
        size_t n = out || bytes < sizeof skipped ? bytes : sizeof skipped;
        if (!zip_stream_read(&s->zip, out ? out : skipped, n, error, error_size)) return 0;
        bytes -= n;
    }
    return 1;
}

// Puts the stream before `row`.
static inline int npz_stream_seek(const npz_array_t* a, size_t row, char* error, size_t error_size) {
    npz_stream_t* s = a->stream;
    size_t bytes = npz_row_values(a) * a->bytes;
    if (s->open && s->row > row) {
        zip_stream_close(&s->zip);
        s->open = 0;
    }
    if (!s->open) {
        s->open = zip_stream_open(&s->zip, a->zip, a->entry, error, error_size);
        s->row = 0;
        if (!s->open || !npz_stream_read(s, NULL, a->header, error, error_size)) return 0;
    }
    size_t skip = row - s->row;
    s->row = row;
    return npz_stream_read(s, NULL, skip * bytes, error, error_size);
}

// out = `count` rows from `first` on, as they stand in the file. 1, or 0 with a message.
static inline int npz_try_rows(const npz_array_t* a, void* out, size_t first, size_t count, char* error,
                               size_t error_size) { // (count, row values)
    size_t bytes = npz_row_values(a) * a->bytes;
    if (first > npz_rows(a) || count > npz_rows(a) - first) {
        return file_fail(error, error_size, "array \"%.80s\" has %zu rows, but %zu from row %zu on are wanted", a->name,
                         npz_rows(a), count, first);
    }
    if (count == 0 || bytes == 0) return 1;
    int in_order = a->zip && (a->stream->open ? a->stream->row == first : first == 0);
    if (a->data && !in_order) {
        memcpy(out, a->data + first * bytes, count * bytes);
        return 1;
    }
    if (!npz_stream_seek(a, first, error, error_size)) return 0;
    a->stream->row = first + count;
    int good = npz_stream_read(a->stream, (unsigned char*)out, count * bytes, error, error_size);
    if (!good) {
        zip_stream_close(&a->stream->zip);
        a->stream->open = 0;
    }
    return good;
}

static inline void npz_read_rows(const npz_array_t* a, void* out, size_t first, size_t count) {
    char error[512];
    if (!npz_try_rows(a, out, first, count, error, sizeof error)) fatal("%s: %s", a->file, error);
}

// Row `row` of a one-dimensional array, such as a label.
static inline double npz_read_number(const npz_array_t* a, size_t row) {
    unsigned char value[8];
    if (!a->readable || a->text || npz_row_values(a) != 1) {
        fatal("%s: array \"%s\" is no list of numbers; give a file where it is one", a->file, a->name);
    }
    npz_read_rows(a, value, row, 1);
    return st_value(a->dtype, value);
}

// out = the whole array
static inline void npz_read_doubles(const npz_array_t* a, double* out) { // (numel)
    size_t values = npz_row_values(a);
    if (!a->readable || a->text) fatal("%s: array \"%s\" has no numbers", a->file, a->name);
    if (a->stream->open) { // from the beginning, so that the CRC-32 is that of the whole
        zip_stream_close(&a->stream->zip);
        a->stream->open = 0;
    }
    unsigned char* row = (unsigned char*)malloc_check(values * a->bytes, "a row of an array");
    for (size_t i = 0; i < npz_rows(a); i++) {
        npz_read_rows(a, row, i, 1);
        for (size_t j = 0; j < values; j++) out[i * values + j] = st_value(a->dtype, row + j * a->bytes);
    }
    free(row);
}

// A code point as UTF-8; returns its bytes.
static inline size_t npz_encode(char* to, uint32_t code) { // (4)
    size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, code >>= 6) to[i] = (char)(0x80 | (code & 0x3F));
    to[0] = (char)(n == 1 ? code : (0xF00 >> n & 0xFF) | code);
    return n;
}

// A text array's first element as UTF-8, to be freed; NULL where it is no text.
static inline char* npz_read_text(const npz_array_t* a) {
    if (!a->readable || !a->text || a->numel < 1) return NULL;
    size_t unit = a->descr[1] == 'U' ? 4 : 1, used = 0;
    size_t row_bytes = npz_row_values(a) * a->bytes;
    unsigned char* from = (unsigned char*)malloc_check(row_bytes, "a text");
    char* text = (char*)malloc_check(a->text + 1, "a text"); // a code point of 4 bytes is at most 4 bytes of UTF-8
    npz_read_rows(a, from, 0, 1);
    for (size_t i = 0; i < a->text; i += unit) {
        uint32_t c = (uint32_t)file_number(from + i, (int)unit);
        if (c == 0 || c > 0x10FFFF) break;
        if (unit == 1) text[used++] = (char)c;
        else used += npz_encode(text + used, c);
    }
    text[used] = 0;
    free(from);
    return text;
}
