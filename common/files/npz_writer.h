// npz_writer.h: writes .npz files, numpy's (common/files/npz.h has their form): images one at a time, and arrays.
//
//     npz_writer_t writer;
//     npz_begin(&writer, "samples.npz", N, H, W);                  // N images as the array arr_0, (N, H, W, 3) of |u1
//     npz_image(&writer, pixels);                                  // each, which is not kept
//     npz_end(&writer);
//
//     npz_item_t items[] = {npz_values("mu", mu, 1, 2048, 0), npz_string("protocol", text)};
//     npz_write_arrays("statistics.npz", items, 2);
//
// Entries are stored: images hardly shrink, and readers can then map them. The size of the file is known from the start
// and is reserved; the CRC of images is known at the end, and is written back into the local header. The file is
// PATH.tmp until it is complete. Errors end the program.
// Look next at common/files/zip.h.
#pragma once
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

// defines: zip_bytes_t, zip_put_local, zip_put_directory, zip_put_end, zip_put_text, zip_put_number, ZIP_BYTES
#include "common/files/zip.h"
// defines: json_utf8_length
#include "common/program/json.h"
// defines: fatal, malloc_check, calloc_check
#include "common/program/log.h"

// ---------------------------------------------------------------------------------------------------------------------
// The file

#define NPZ_NAME "arr_0.npy"

typedef struct {
    char *path, *temporary;
    FILE* file;
    size_t images, written, image_bytes;
    uint64_t size; // of arr_0.npy, or about that of all arrays
    uint32_t crc;
} npz_writer_t;

// Everything in front of the values of the array.
static inline void npz_header(zip_bytes_t* to, const char* name, zip_bytes_t* npy, uint64_t size, uint32_t crc) {
    zip_put_local(to, name, size, crc);
    zip_put_text(to, npy->bytes, npy->length);
}

// The beginning of an .npy; `shape` as Python writes it, "(3, 4)".
static inline void npz_array_header(zip_bytes_t* to, const char* type, const char* shape) {
    char text[256];
    int length = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': %s, }", type, shape);
    int padded = (10 + length + 1 + 63) / 64 * 64 - 10;
    zip_put_text(to, "\x93NUMPY\1\0", 8);
    zip_put_number(to, (uint64_t)padded, 2);
    zip_put_text(to, text, (size_t)length);
    while (length++ < padded - 1) zip_put_number(to, ' ', 1);
    zip_put_number(to, '\n', 1);
}

__attribute__((noreturn)) static inline void npz_fail(const npz_writer_t* w, const char* action) {
    int reason = errno;
    if (w->file) unlink(w->temporary);
    fatal("%s: cannot %s: %s; make its folder exist and writable, with %.1f MiB free, or choose another", w->path,
          action, strerror(reason), w->size / 1048576.0);
}

static inline void npz_write(npz_writer_t* w, const void* bytes, size_t size) {
    if (fwrite(bytes, 1, size, w->file) != size) npz_fail(w, "write it");
}

// Creates PATH.tmp for about `size` bytes.
static inline void npz_create(npz_writer_t* w, const char* path, uint64_t size) {
    size_t length = strlen(path);
    w->size = size;
    w->path = (char*)malloc_check(length + 1, "a path");
    w->temporary = (char*)malloc_check(length + 5, "a path");
    memcpy(w->path, path, length + 1);
    snprintf(w->temporary, length + 5, "%s.tmp", path);
    w->file = fopen(w->temporary, "wb");
    if (!w->file) npz_fail(w, "create PATH.tmp");
    // Too little space is better known before the images are drawn than after. Some file systems cannot reserve.
    if (fallocate(fileno(w->file), 0, 0, (off_t)(size + 2 * ZIP_BYTES)) &&
        (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
        npz_fail(w, "reserve space for it");
    }
}

// Gives the file, which is complete on the disk, its name.
static inline void npz_rename(npz_writer_t* w) {
    if (fflush(w->file) || fsync(fileno(w->file)) || fclose(w->file)) npz_fail(w, "write it");
    if (rename(w->temporary, w->path)) npz_fail(w, "rename PATH.tmp");
    free(w->path), free(w->temporary);
    memset(w, 0, sizeof *w);
}

// ---------------------------------------------------------------------------------------------------------------------
// Images, one at a time

// Creates PATH.tmp for N images of H x W.
static inline void npz_begin(npz_writer_t* w, const char* path, size_t N, int H, int W) {
    if (N < 1 || H < 1 || W < 1 || H > 65535 || W > 65535 || N > (SIZE_MAX >> 35)) {
        fatal("%s: %zu images of %d x %d; at least one, and at most 65535 pixels a side", path, N, H, W);
    }
    memset(w, 0, sizeof *w);
    char shape[96];
    zip_bytes_t header = {{0}, 0}, npy = {{0}, 0};
    snprintf(shape, sizeof shape, "(%zu, %d, %d, 3)", N, H, W);
    npz_array_header(&npy, "|u1", shape);
    w->images = N, w->image_bytes = (size_t)H * W * 3;
    w->crc = (uint32_t)crc32(0, npy.bytes, (uInt)npy.length);
    npz_create(w, path, npy.length + (uint64_t)N * w->image_bytes);
    npz_header(&header, NPZ_NAME, &npy, w->size, 0);
    npz_write(w, header.bytes, header.length);
}

// The next image.
static inline void npz_image(npz_writer_t* w, const uint8_t* pixels) { // (H, W, 3)
    if (w->written == w->images) fatal("%s: more images than the %zu it was begun with", w->path, w->images);
    npz_write(w, pixels, w->image_bytes);
    w->crc = (uint32_t)crc32_z(w->crc, pixels, w->image_bytes);
    w->written++;
}

// Completes the archive and gives it its name.
static inline void npz_end(npz_writer_t* w) {
    if (w->written != w->images) fatal("%s: %zu images of the %zu it was begun with", w->path, w->written, w->images);
    zip_bytes_t crc = {{0}, 0}, directory = {{0}, 0};
    off_t offset = ftello(w->file);
    zip_put_directory(&directory, NPZ_NAME, w->size, w->crc, 0);
    zip_put_end(&directory, 1, directory.length, (uint64_t)offset);
    npz_write(w, directory.bytes, directory.length);
    off_t end = offset + (off_t)directory.length;
    if (fflush(w->file) || ftruncate(fileno(w->file), end)) npz_fail(w, "write it");
    if (fseeko(w->file, ZIP_CRC_OFFSET, SEEK_SET)) npz_fail(w, "write it");
    zip_put_number(&crc, w->crc, 4);
    npz_write(w, crc.bytes, crc.length);
    npz_rename(w);
}

// ---------------------------------------------------------------------------------------------------------------------
// Arrays that lie in memory

// One array: float64 values, or, where there are none, a text (numpy reads it back as a str; no pickle).
typedef struct {
    const char* name; // at most 60 bytes
    const double* values;
    int ndim; // 0 to 2
    size_t shape[2];
    const char* text; // UTF-8
} npz_item_t;

static inline npz_item_t npz_values(const char* name, const double* values, int ndim, size_t rows, size_t columns) {
    npz_item_t item = {name, values, ndim, {rows, columns}, NULL};
    return item;
}

static inline npz_item_t npz_string(const char* name, const char* text) {
    npz_item_t item = {name, NULL, 0, {0, 0}, text};
    return item;
}

// The code points of a UTF-8 text, as numpy keeps texts; `codes` has room for one a byte. What is no UTF-8 becomes '?'.
static inline size_t npz_decode(const char* text, uint32_t* codes) {
    const unsigned char* p = (const unsigned char*)text;
    size_t n = 0, left = strlen(text);
    while (left) {
        int bytes = json_utf8_length(p, left);
        uint32_t code = bytes == 1 ? p[0] : bytes == 0 ? '?' : (uint32_t)(p[0] & (0x7F >> bytes));
        for (int i = 1; i < bytes; i++) code = code << 6 | (p[i] & 0x3F);
        codes[n++] = code;
        p += bytes ? bytes : 1;
        left -= (size_t)(bytes ? bytes : 1);
    }
    return n;
}

// Writes one entry at the file's position and adds it to the directory.
static inline void npz_write_item(npz_writer_t* w, const npz_item_t* item, zip_bytes_t* directory) {
    char name[80], type[32] = "<f8", shape[96] = "()";
    uint32_t* codes = NULL;
    size_t size = 8;
    zip_bytes_t header = {{0}, 0}, npy = {{0}, 0};
    if (strlen(item->name) > 60 || directory->length + 200 > ZIP_BYTES) fatal("%s: too many or long names", w->path);
    for (int i = 0; i < item->ndim; i++) size *= item->shape[i];
    if (!item->values) {
        codes = (uint32_t*)calloc_check(strlen(item->text) + 1, sizeof(uint32_t), "a text");
        size_t n = npz_decode(item->text, codes);
        size = 4 * (n ? n : 1); // numpy has no text of no characters
        snprintf(type, sizeof type, "<U%zu", n ? n : 1);
    } else if (item->ndim == 1) {
        snprintf(shape, sizeof shape, "(%zu,)", item->shape[0]);
    } else if (item->ndim == 2) {
        snprintf(shape, sizeof shape, "(%zu, %zu)", item->shape[0], item->shape[1]);
    }
    const void* values = item->values ? (const void*)item->values : (const void*)codes;
    uint64_t offset = (uint64_t)ftello(w->file);
    if (offset > UINT32_MAX) fatal("%s: statistics of more than 4 GiB; use features of fewer dimensions", w->path);
    snprintf(name, sizeof name, "%s.npy", item->name);
    npz_array_header(&npy, type, shape);
    uint32_t crc = (uint32_t)crc32_z(crc32(0, npy.bytes, (uInt)npy.length), (const Bytef*)values, size);
    npz_header(&header, name, &npy, npy.length + size, crc);
    zip_put_directory(directory, name, npy.length + size, crc, offset);
    npz_write(w, header.bytes, header.length);
    npz_write(w, values, size);
    free(codes);
}

// Writes n arrays as PATH, which appears when it is complete.
static inline void npz_write_arrays(const char* path, const npz_item_t* items, int n) {
    npz_writer_t w;
    zip_bytes_t directory = {{0}, 0};
    uint64_t size = 0;
    memset(&w, 0, sizeof w);
    for (int i = 0; i < n; i++) {
        uint64_t bytes = items[i].values ? 8 : 4 * strlen(items[i].text);
        for (int k = 0; k < items[i].ndim; k++) bytes *= items[i].shape[k];
        size += bytes + ZIP_BYTES;
    }
    npz_create(&w, path, size);
    for (int i = 0; i < n; i++) npz_write_item(&w, &items[i], &directory);
    uint64_t offset = (uint64_t)ftello(w.file), length = directory.length;
    zip_put_end(&directory, (uint64_t)n, length, offset);
    npz_write(&w, directory.bytes, directory.length);
    if (fflush(w.file) || ftruncate(fileno(w.file), (off_t)(offset + directory.length))) npz_fail(&w, "write it");
    npz_rename(&w);
}
