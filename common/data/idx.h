// idx.h: the files of MNIST and its relatives, as the MNIST page of Y. LeCun describes them: two zero bytes, type (8 =
// unsigned byte), number of dimensions, the dimensions as big-endian 32-bit integers, the data. Gzipped or not.
// Look next at common/data/dataset.h, the user.
#pragma once
#include <zlib.h>

// defines: image_big_endian
#include "common/data/image.h"
// defines: dataset_join, path_is_file
#include "common/data/listing.h"
// defines: fatal, malloc_check
#include "common/program/log.h"

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
