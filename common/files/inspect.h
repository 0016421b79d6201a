// inspect.h: lists what is in a file of weights or arrays: `./eval -inspect FILE` for safetensors, PyTorch, .npz, .npy.
//
//     name                    type   shape              mean  deviation        min        max  not finite
//     cls_token               F32    [1, 1, 1024]  -0.0003157    0.01872    -0.2143     0.1986
//     ...
//     344 tensors, 304368640 values, 1161.1 MiB: 344 F32
//
// Mean and (population) deviation are over the finite values, those that are not are counted: a broken checkpoint shows
// at once. Sums run over pieces of fixed size, in double, and pieces are joined in their order (Chan et al. 1979), so
// that the numbers do not depend on the number of threads. A file is read once for this, and a zip archive once more to
// compare its CRC-32s, which nobody else does for the tensors of PyTorch's files.
// Look next at common/files/tensor_file.h and common/files/npz.h, which open the files.
#pragma once
#include <math.h>

// defines: npz_reader_t, npz_array_t, npz_open_or_die, npz_type_text, npz_read_text
#include "common/files/npz.h"
// defines: file_kind, file_kind_t, pytorch_prefix, safetensors_t
#include "common/files/tensor_file.h"

enum { INSPECT_PIECE = 65536, INSPECT_NAME = 60, INSPECT_METADATA = 40 }; // values; widest column of names; lines

// Count, mean and summed squares of deviations of the finite values, and how many others there are.
typedef struct {
    double n, mean, squares, min, max, others;
} inspect_stats_t;

static inline inspect_stats_t inspect_piece(st_dtype_t dtype, const unsigned char* data, size_t n) {
    size_t bytes = st_dtype_info(dtype).bits / 8;
    inspect_stats_t s = {0, 0, 0, INFINITY, -INFINITY, 0};
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double x = st_value(dtype, data + i * bytes);
        if (!isfinite(x)) continue;
        s.n++;
        sum += x;
        if (x < s.min) s.min = x;
        if (x > s.max) s.max = x;
    }
    s.others = (double)n - s.n;
    s.mean = s.n ? sum / s.n : 0;
    for (size_t i = 0; i < n; i++) {
        double x = st_value(dtype, data + i * bytes);
        if (isfinite(x)) s.squares += (x - s.mean) * (x - s.mean);
    }
    return s;
}

static inline void inspect_join(inspect_stats_t* to, const inspect_stats_t* s) {
    double n = to->n + s->n, d = s->mean - to->mean;
    to->others += s->others;
    if (s->n == 0) return;
    to->squares += s->squares + d * d * (to->n * s->n / n);
    to->mean += d * (s->n / n);
    to->n = n;
    to->min = fmin(to->min, s->min);
    to->max = fmax(to->max, s->max);
}

// Of values that lie in memory.
static inline inspect_stats_t inspect_values(st_dtype_t dtype, const unsigned char* data, size_t numel) {
    size_t pieces = (numel + INSPECT_PIECE - 1) / INSPECT_PIECE, bytes = st_dtype_info(dtype).bits / 8;
    inspect_stats_t total = {0, 0, 0, INFINITY, -INFINITY, 0};
    inspect_stats_t* parts = (inspect_stats_t*)malloc_check(pieces * sizeof *parts, "sums");
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < pieces; i++) {
        size_t first = i * INSPECT_PIECE, n = numel - first;
        parts[i] = inspect_piece(dtype, data + first * bytes, n < INSPECT_PIECE ? n : (size_t)INSPECT_PIECE);
    }
    for (size_t i = 0; i < pieces; i++) inspect_join(&total, &parts[i]);
    free(parts);
    return total;
}

// Of an array that is compressed: the same pieces, one after another.
static inline inspect_stats_t inspect_packed(const npz_array_t* a) {
    char error[512];
    inspect_stats_t total = {0, 0, 0, INFINITY, -INFINITY, 0};
    unsigned char* piece = (unsigned char*)malloc_check(INSPECT_PIECE * a->bytes + a->header, "a piece of an array");
    zip_stream_t s;
    int good = zip_stream_open(&s, a->zip, a->entry, error, sizeof error) &&
               zip_stream_read(&s, piece, a->header, error, sizeof error);
    for (size_t done = 0; good && done < a->numel;) {
        size_t n = a->numel - done < INSPECT_PIECE ? a->numel - done : (size_t)INSPECT_PIECE;
        good = zip_stream_read(&s, piece, n * a->bytes, error, sizeof error);
        inspect_stats_t part = inspect_piece(a->dtype, piece, n);
        if (good) inspect_join(&total, &part);
        done += n;
    }
    zip_stream_close(&s);
    free(piece);
    return total; // what is damaged is reported by inspect_archive
}

// ---------------------------------------------------------------------------------------------------------------------
// The table

// A name or text of a stranger, without control characters and at most `room` bytes.
static inline const char* inspect_text(char* out, size_t room, const char* text) {
    snprintf(out, room, "%s", text);
    for (char* c = out; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7F) *c = '?';
    }
    if (strlen(text) >= room) memcpy(out + room - 4, "...", 4);
    return out;
}

typedef struct {
    int width;    // of the column of names
    size_t counts[ST_DTYPE_COUNT];
    double values, bytes, others;
} inspect_table_t;

static inline void inspect_head(inspect_table_t* t, size_t longest) {
    memset(t, 0, sizeof *t);
    t->width = longest < 4 ? 4 : longest > INSPECT_NAME ? INSPECT_NAME : (int)longest;
    printf("%-*s  %-6s %-20s %11s %10s %10s %10s  %s\n", t->width, "name", "type", "shape", "mean", "deviation", "min",
           "max", "not finite");
}

// One line; a name that is wider than its column has one of its own.
static inline void inspect_row(inspect_table_t* t, const char* name, const char* type, const char* shape,
                               const inspect_stats_t* s) {
    char shown[1024];
    inspect_text(shown, sizeof shown, name);
    if ((int)strlen(shown) > t->width) printf("%s\n%-*s  ", shown, t->width, "");
    else printf("%-*s  ", t->width, shown);
    printf("%-6s %-*s", type, s && s->n + s->others > 0 ? 20 : 0, shape);
    if (s && s->n > 0) printf(" %11.4g %10.4g %10.4g %10.4g", s->mean, sqrt(s->squares / s->n), s->min, s->max);
    if (s && s->others > 0) printf("%*s  %.0f", s->n > 0 ? 0 : 44, "", s->others);
    printf("\n");
    if (s) t->others += s->others;
}

static inline void inspect_foot(const inspect_table_t* t, const char* what, int n) {
    printf("%d %s, %.0f values, %.1f MiB", n, what, t->values, t->bytes / 1048576.0);
    for (int i = 0, first = 1; i < ST_DTYPE_COUNT; i++) {
        if (t->counts[i] == 0) continue;
        printf("%s %zu %s", first ? ":" : ",", t->counts[i], st_dtype_info((st_dtype_t)i).name);
        first = 0;
    }
    if (t->others > 0) printf("; %.0f values are not finite", t->others);
    printf("\n");
}

// Compares the CRC-32s of a zip archive. 1 where all agree.
static inline int inspect_archive(const zip_t* z) {
    int damaged = 0, unknown = 0;
    for (int i = 0; i < z->n; i++) {
        char error[512];
        if (z->entries[i].crc == 0 && z->entries[i].size) unknown++;
        if (zip_check(z, &z->entries[i], error, sizeof error)) continue;
        printf("damaged: %s\n", error);
        damaged++;
    }
    if (damaged) printf("%d of %d zip entries are damaged: copy or make the file again\n", damaged, z->n);
    else if (unknown == z->n) printf("CRC-32: none was written\n");
    else printf("CRC-32: %d entries agree\n", z->n - unknown);
    return damaged == 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Files

static inline void inspect_metadata(const safetensors_t* f) {
    for (int i = 0; i < f->n_metadata && i < INSPECT_METADATA; i++) {
        char key[128], value[256];
        printf("%s = %s\n", inspect_text(key, sizeof key, f->metadata[i].key),
               inspect_text(value, sizeof value, f->metadata[i].value));
    }
    if (f->n_metadata > INSPECT_METADATA) printf("... and %d more\n", f->n_metadata - INSPECT_METADATA);
}

static inline void inspect_tensors(const safetensors_t* f) {
    inspect_table_t table;
    size_t longest = 0;
    for (int i = 0; i < f->n; i++) {
        if (strlen(f->tensors[i].name) > longest) longest = strlen(f->tensors[i].name);
    }
    inspect_metadata(f);
    inspect_head(&table, longest);
    for (int i = 0; i < f->n; i++) {
        const st_tensor_t* t = &f->tensors[i];
        char shape[256];
        inspect_stats_t s;
        int number = st_dtype_is_number(t->dtype);
        if (number) s = inspect_values(t->dtype, t->data, t->numel);
        inspect_row(&table, t->name, st_dtype_info(t->dtype).name, st_shape_text(t, shape, sizeof shape),
                    number ? &s : NULL);
        table.counts[t->dtype]++;
        table.values += (double)t->numel;
        table.bytes += (double)(t->end - t->begin);
    }
    inspect_foot(&table, "tensors", f->n);
}

static inline void inspect_arrays(const npz_reader_t* r) {
    inspect_table_t table;
    size_t longest = 0;
    for (int i = 0; i < r->n; i++) {
        if (strlen(r->arrays[i].name) > longest) longest = strlen(r->arrays[i].name);
    }
    inspect_head(&table, longest);
    for (int i = 0; i < r->n; i++) {
        const npz_array_t* a = &r->arrays[i];
        char shape[300];
        inspect_stats_t s;
        int number = a->readable && !a->text;
        npz_type_text(a, shape, sizeof shape);
        if (number) s = a->data ? inspect_values(a->dtype, a->data, a->numel) : inspect_packed(a);
        inspect_row(&table, a->name, a->descr, strchr(shape, '(') ? strchr(shape, '(') : "", number ? &s : NULL);
        if (a->text && a->readable && a->ndim == 0) {
            char* text = npz_read_text(a);
            char shown[256];
            printf("%*s  \"%s\"\n", table.width, "", inspect_text(shown, sizeof shown, text ? text : ""));
            free(text);
        }
        table.counts[a->dtype] += (size_t)number;
        table.values += (double)a->numel;
        table.bytes += (double)a->numel * a->bytes;
    }
    inspect_foot(&table, "arrays", r->n);
}

// Is it numpy's? And what it is, for people.
static inline int inspect_kind(const unsigned char* bytes, size_t size, const char** kind) {
    char error[512];
    const char* prefix;
    zip_t z;
    file_kind_t k = file_kind(bytes, size);
    *kind = k == FILE_PICKLE ? "PyTorch, before 1.6" : "safetensors";
    if (k == FILE_NPY) *kind = "numpy, one array";
    if (k != FILE_ZIP || !zip_open(&z, bytes, size, error, sizeof error)) return k == FILE_NPY;
    int pytorch = pytorch_prefix(&z, &prefix) >= 0;
    *kind = pytorch ? "PyTorch, zip" : "numpy, zip";
    zip_close(&z);
    return !pytorch;
}

// Prints the table of a file; 1, or 0 where its bytes are damaged. A file that cannot be read ends the program.
static inline int inspect_file(const char* path) {
    char error[1024];
    const char* kind;
    size_t size = 0;
    int good = 1;
    zip_t z;
    unsigned char* map = (unsigned char*)file_map(path, "a file of weights or arrays", &size, error, sizeof error);
    if (!map) fatal("%s: %s", path, error);
    if (inspect_kind(map, size, &kind)) {
        npz_reader_t r;
        npz_open_or_die(&r, path);
        printf("%s: %s\n", path, kind);
        inspect_arrays(&r);
        npz_close(&r);
    } else {
        safetensors_t f;
        if (!tensor_file_open(&f, path, error, sizeof error)) fatal("%s: %s", path, error); // names as they are
        printf("%s: %s\n", path, kind);
        inspect_tensors(&f);
        safetensors_close(&f);
    }
    if (file_kind(map, size) == FILE_ZIP && zip_open(&z, map, size, error, sizeof error)) {
        good = inspect_archive(&z);
        zip_close(&z);
    }
    munmap(map, size);
    return good;
}
