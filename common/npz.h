// npz.h: writes generated images as numpy's .npz, what the evaluators of ImageNet samples read (ADM's guided-diffusion:
// one uint8 array `arr_0` of shape (N, H, W, 3)).
//
// An .npz is a zip archive whose entries are .npy files; an .npy is a line of text about the array, and its values:
//
//     local header     "PK\3\4", CRC-32, sizes, the name arr_0.npy
//     arr_0.npy        "\x93NUMPY" 1 0, length, {'descr': '|u1', 'fortran_order': False, 'shape': (N, H, W, 3), }
//                      padded with spaces to a multiple of 64 bytes, then N H W 3 bytes
//     directory        "PK\1\2", the same as the local header, and where that is
//     end              "PK\6\6" and "PK\6\7" (sizes of 64 bits), "PK\5\6"
//
// The entry is stored, not compressed: images hardly shrink, and readers can then map them. Sizes have 64 bits always
// ("zip64"): 50,000 images of 256 x 256 are 9.8 GB, and one way of writing is tested more than two.
//
// Images come one at a time and are not kept. The size of the file is known from the start and is reserved; the
// CRC is known at the end, and is written back into the local header. The file is PATH.tmp until it is complete.
// Errors end the program. (PKWARE's APPNOTE 6.3, sections 4.3 and 4.5.3; numpy.lib.format.)
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

// defines: fatal, malloc_check
#include "common/log.h"

#define NPZ_NAME "arr_0.npy"
enum { NPZ_CRC_OFFSET = 14, NPZ_BYTES = 512 }; // where the CRC stands in the file; room for any of the headers

typedef struct {
    char *path, *temporary;
    FILE* file;
    size_t images, written, image_bytes;
    uint64_t size; // of arr_0.npy
    uint32_t crc;
} npz_writer_t;

// Bytes of a header, numbers little-endian.
typedef struct {
    uint8_t bytes[NPZ_BYTES];
    size_t length;
} npz_bytes_t;

static inline void npz_number(npz_bytes_t* to, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) to->bytes[to->length++] = (uint8_t)(value >> 8 * i);
}
static inline void npz_text(npz_bytes_t* to, const void* text, size_t length) {
    memcpy(to->bytes + to->length, text, length);
    to->length += length;
}

// What local header and directory share: version to extract, flags, method, time, date (1 January 1980), CRC, sizes
// (in the extra field, since they have 64 bits) and lengths of name and extra field.
static inline void npz_entry(npz_bytes_t* to, uint32_t crc) {
    npz_number(to, 45, 2), npz_number(to, 0, 2), npz_number(to, 0, 2), npz_number(to, 0, 2), npz_number(to, 0x21, 2);
    npz_number(to, crc, 4), npz_number(to, 0xFFFFFFFF, 4), npz_number(to, 0xFFFFFFFF, 4);
    npz_number(to, strlen(NPZ_NAME), 2), npz_number(to, 20, 2);
}
static inline void npz_name_and_sizes(npz_bytes_t* to, uint64_t size) {
    npz_text(to, NPZ_NAME, strlen(NPZ_NAME));
    npz_number(to, 1, 2), npz_number(to, 16, 2), npz_number(to, size, 8), npz_number(to, size, 8);
}

// Everything in front of the values of the array.
static inline void npz_header(npz_bytes_t* to, npz_bytes_t* npy, uint64_t size, uint32_t crc) {
    npz_text(to, "PK\3\4", 4);
    npz_entry(to, crc);
    npz_name_and_sizes(to, size);
    npz_text(to, npy->bytes, npy->length);
}

// The beginning of arr_0.npy.
static inline void npz_array_header(npz_bytes_t* to, size_t N, int H, int W) {
    char text[256];
    int length = snprintf(text, sizeof text, "{'descr': '|u1', 'fortran_order': False, 'shape': (%zu, %d, %d, 3), }", N,
                          H, W);
    int padded = (10 + length + 1 + 63) / 64 * 64 - 10;
    npz_text(to, "\x93NUMPY\1\0", 8);
    npz_number(to, (uint64_t)padded, 2);
    npz_text(to, text, (size_t)length);
    while (length++ < padded - 1) npz_number(to, ' ', 1);
    npz_number(to, '\n', 1);
}

// Directory and end of an archive whose directory begins at `offset`.
static inline void npz_directory(npz_bytes_t* to, uint64_t size, uint32_t crc, uint64_t offset) {
    npz_text(to, "PK\1\2", 4);
    npz_number(to, 45, 2);
    npz_entry(to, crc);
    npz_number(to, 0, 2), npz_number(to, 0, 2), npz_number(to, 0, 2); // comment, disk, kind of content
    npz_number(to, 0, 4), npz_number(to, 0, 4);                       // permissions, offset of the local header
    npz_name_and_sizes(to, size);
    uint64_t directory = to->length;
    npz_text(to, "PK\6\6", 4);
    npz_number(to, 44, 8), npz_number(to, 45, 2), npz_number(to, 45, 2);           // length of the rest, versions
    npz_number(to, 0, 4), npz_number(to, 0, 4), npz_number(to, 1, 8), npz_number(to, 1, 8); // disks, entries
    npz_number(to, directory, 8), npz_number(to, offset, 8);
    npz_text(to, "PK\6\7", 4);
    npz_number(to, 0, 4), npz_number(to, offset + directory, 8), npz_number(to, 1, 4);
    npz_text(to, "PK\5\6", 4);
    npz_number(to, 0, 4);                                             // the old end, which says: see above
    npz_number(to, 0xFFFF, 2), npz_number(to, 0xFFFF, 2), npz_number(to, 0xFFFFFFFF, 4), npz_number(to, 0xFFFFFFFF, 4);
    npz_number(to, 0, 2);
}

__attribute__((noreturn)) static inline void npz_fail(const npz_writer_t* w, const char* action) {
    int reason = errno;
    if (w->file) unlink(w->temporary);
    fatal("%s: cannot %s: %s; make its folder exist and writable, with %.1f MiB free, or choose another", w->path,
          action, strerror(reason), w->size / 1048576.0);
}

static inline void npz_write(npz_writer_t* w, const void* bytes, size_t size) {
    if (fwrite(bytes, 1, size, w->file) != size) npz_fail(w, "write the samples");
}

// Creates PATH.tmp for N images of H x W.
static inline void npz_begin(npz_writer_t* w, const char* path, size_t N, int H, int W) {
    if (N < 1 || H < 1 || W < 1 || H > 65535 || W > 65535 || N > (SIZE_MAX >> 35)) {
        fatal("%s: %zu images of %d x %d; at least one, and at most 65535 pixels a side", path, N, H, W);
    }
    memset(w, 0, sizeof *w);
    npz_bytes_t header = {{0}, 0}, npy = {{0}, 0};
    npz_array_header(&npy, N, H, W);
    w->images = N, w->image_bytes = (size_t)H * W * 3, w->size = npy.length + (uint64_t)N * w->image_bytes;
    w->crc = (uint32_t)crc32(0, npy.bytes, (uInt)npy.length);
    size_t length = strlen(path);
    w->path = (char*)malloc_check(length + 1, "a path");
    w->temporary = (char*)malloc_check(length + 5, "a path");
    memcpy(w->path, path, length + 1);
    snprintf(w->temporary, length + 5, "%s.tmp", path);
    w->file = fopen(w->temporary, "wb");
    if (!w->file) npz_fail(w, "create PATH.tmp");
    // Too little space is better known before the images are drawn than after. Some file systems cannot reserve.
    if (fallocate(fileno(w->file), 0, 0, (off_t)(w->size + 2 * NPZ_BYTES)) &&
        (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
        npz_fail(w, "reserve space for the samples");
    }
    npz_header(&header, &npy, w->size, 0);
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
    npz_bytes_t crc = {{0}, 0}, directory = {{0}, 0};
    off_t offset = ftello(w->file);
    npz_directory(&directory, w->size, w->crc, (uint64_t)offset);
    npz_write(w, directory.bytes, directory.length);
    off_t end = offset + (off_t)directory.length;
    if (fflush(w->file) || ftruncate(fileno(w->file), end)) npz_fail(w, "write the samples");
    if (fseeko(w->file, NPZ_CRC_OFFSET, SEEK_SET)) npz_fail(w, "write the samples");
    npz_number(&crc, w->crc, 4);
    npz_write(w, crc.bytes, crc.length);
    if (fflush(w->file) || fsync(fileno(w->file)) || fclose(w->file)) npz_fail(w, "write the samples");
    if (rename(w->temporary, w->path)) npz_fail(w, "rename PATH.tmp");
    free(w->path), free(w->temporary);
    memset(w, 0, sizeof *w);
}
