// safetensors_writer.h: writes safetensors files (common/files/safetensors.h has their form), as a stream: the header,
// then the data in pieces, so that several gigabytes are never held twice.
//
//     st_writer_t w;
//     safetensors_writer_init(&w);
//     safetensors_writer_metadata(&w, "format", "pt");                 // all metadata first,
//     safetensors_writer_tensor(&w, "weight", ST_F32, 2, shape);       // then all tensors,
//     safetensors_writer_begin(&w, "folder/model.safetensors");
//     safetensors_writer_data(&w, values, n);                          // then their values, in the same order
//     safetensors_writer_finish_or_die(&w);
//
// Everything goes to PATH.tmp, which is renamed to PATH after it has reached the disk: whoever looks finds the old file
// or the new one, never a part. After the first failure the temporary file is gone and further calls do nothing; finish
// reports it. A wrong number of values is a bug of the caller and stops at an assert. Some PyTorch libraries open a
// file only when its metadata say "format": "pt".
// Look next at common/training/state_file.h and common/data/latents.h, which use it.
#pragma once
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

// defines: floatS
#include "common/device.h"
// defines: safetensors_t, st_tensor_t, st_dtype_t, st_dtype_info, st_dtype_is_float, st_store, st_parse_header
#include "common/files/safetensors.h"
// defines: json_text_t, json_append, json_append_string, json_text_free
#include "common/program/json.h"
// defines: fatal
#include "common/program/log.h"

typedef struct {
    json_text_t header;
    int n_metadata;
    size_t data_size;     // bytes of all declared tensors
    safetensors_t layout; // the header, read back
    char* path;
    char* temporary; // PATH.tmp
    int file;        // descriptor of the temporary file; -1 before begin and after a failure
    int current;     // tensor of the layout that is being written
    size_t filled;   // bytes of it that are written
    char error[1024]; // "" as long as nothing failed
} st_writer_t;

void safetensors_writer_init(st_writer_t* w) {
    memset(w, 0, sizeof *w);
    w->file = -1;
    json_append(&w->header, "{");
}

void safetensors_writer_metadata(st_writer_t* w, const char* key, const char* value) {
    assert(w->layout.path == NULL && "metadata come before begin");
    assert((w->n_metadata > 0 || w->header.length == 1) && "metadata come before tensors");
    json_append(&w->header, w->n_metadata ? "," : "\"__metadata__\":{");
    json_append_string(&w->header, key);
    json_append(&w->header, ":");
    json_append_string(&w->header, value);
    w->n_metadata++;
}

void safetensors_writer_tensor(st_writer_t* w, const char* name, st_dtype_t dtype, int ndim, const size_t* shape) {
    assert(w->layout.path == NULL && "tensors come before begin");
    size_t numel = 1;
    if (w->n_metadata > 0) json_append(&w->header, "}"); // closes __metadata__
    w->n_metadata = -1;
    if (w->header.length > 1) json_append(&w->header, ",");
    json_append_string(&w->header, name);
    json_append(&w->header, ":{\"dtype\":\"%s\",\"shape\":[", st_dtype_info(dtype).name);
    for (int i = 0; i < ndim; i++) {
        json_append(&w->header, "%s%zu", i ? "," : "", shape[i]);
        numel *= shape[i];
    }
    size_t end = w->data_size + numel * st_dtype_info(dtype).bits / 8;
    json_append(&w->header, "],\"data_offsets\":[%zu,%zu]}", w->data_size, end);
    w->data_size = end;
}

// The folder of the file, "." where the path names none. The caller frees it.
static inline char* st_folder(const char* path) {
    const char* slash = strrchr(path, '/');
    if (!slash) return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

// Gives up: notes why (from errno) and what to do, and removes the temporary file.
static inline void st_writer_fail(st_writer_t* w, const char* action) {
    int reason = errno;
    if (w->error[0]) return;
    char advice[256];
    char* folder = st_folder(w->path);
    if (reason == ENOSPC || reason == EDQUOT || reason == EFBIG) {
        struct statvfs disk;
        unsigned long long available = 0;
        if (!statvfs(folder, &disk)) available = (unsigned long long)disk.f_bavail * disk.f_frsize;
        snprintf(advice, sizeof advice,
                 "the file needs %zu bytes, its disk has %llu free; free space or choose another folder",
                 8 + w->header.length + w->data_size, available);
    } else {
        snprintf(advice, sizeof advice, "make the folder exist and writable, or choose another folder");
    }
    int old_file_is_there = access(w->path, F_OK) == 0;
    snprintf(w->error, sizeof w->error, "%.500s: cannot %s: %s; %s%s", w->path, action, strerror(reason), advice,
             old_file_is_there ? " (the earlier file of this name is unharmed)" : "");
    if (w->file >= 0) {
        close(w->file);
        unlink(w->temporary);
    }
    w->file = -1;
    free(folder);
}

static inline void st_writer_bytes(st_writer_t* w, const void* bytes, size_t size) {
    const char* at = (const char*)bytes;
    while (size > 0 && w->file >= 0) {
        ssize_t n = write(w->file, at, size < (1u << 30) ? size : (1u << 30));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            if (n == 0) errno = EIO;
            st_writer_fail(w, "write the file");
            return;
        }
        at += n;
        size -= (size_t)n;
    }
}

// Closes the header, padded with spaces so that the data begin at a multiple of 8 bytes, and checks it with the reader.
static inline void st_writer_close_header(st_writer_t* w, const char* path) {
    char problem[1024];
    json_append(&w->header, w->n_metadata > 0 ? "}}" : "}");
    json_append(&w->header, "%*s", (int)((8 - w->header.length % 8) % 8), "");
    int good = st_parse_header(&w->layout, (const unsigned char*)w->header.text, w->header.length, w->data_size, path,
                               problem, sizeof problem);
    if (!good) fatal("%s: the file would be unreadable: %s; this is a bug, please report it", path, problem);
}

// Creates PATH.tmp, reserves the disk space for the whole file and writes the header.
void safetensors_writer_begin(st_writer_t* w, const char* path) {
    st_writer_close_header(w, path);
    json_text_t temporary = {NULL, 0, 0};
    json_append(&temporary, "%s.tmp", path);
    w->path = strdup(path);
    w->temporary = temporary.text;
    w->file = open(w->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->file < 0) {
        st_writer_fail(w, "create the temporary file beside it");
        return;
    }
    uint64_t header_size = w->header.length;
    // A file system without reservation says so here, and a lack of space shows in the writes instead.
    if (fallocate(w->file, 0, 0, (off_t)(8 + header_size + w->data_size)) &&
        (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
        st_writer_fail(w, "reserve space for the file");
    }
    st_writer_bytes(w, &header_size, sizeof header_size);
    st_writer_bytes(w, w->header.text, w->header.length);
}

// The tensor that is next to be written, after those that are full; NULL when all are.
static inline const st_tensor_t* st_writer_current(st_writer_t* w) {
    while (w->current < w->layout.n) {
        const st_tensor_t* t = &w->layout.tensors[w->current];
        if (w->filled < t->end - t->begin) return t;
        w->current++;
        w->filled = 0;
    }
    return NULL;
}

// The next bytes of the current tensor, as they are to stand in the file.
void safetensors_writer_raw(st_writer_t* w, const void* bytes, size_t size) {
    assert(w->layout.path && "data come after begin");
    if (size == 0) return;
    const st_tensor_t* t = st_writer_current(w);
    assert(t && size <= t->end - t->begin - w->filled && "a piece of data belongs to one tensor");
    st_writer_bytes(w, bytes, size);
    w->filled += size;
}

// The next n values of the current tensor, converted to the type that was declared (a float type).
void safetensors_writer_data(st_writer_t* w, const floatS* values, size_t n) { // (n)
    if (n == 0) return;
    const st_tensor_t* t = st_writer_current(w);
    assert(t && st_dtype_is_float(t->dtype) && "values need a tensor of a float type");
    if (t->dtype == (sizeof(floatS) == 4 ? ST_F32 : ST_F64)) {
        safetensors_writer_raw(w, values, n * sizeof(floatS));
        return;
    }
    size_t bytes = st_dtype_info(t->dtype).bits / 8;
    unsigned char buffer[8192];
    for (size_t done = 0; done < n;) {
        size_t count = n - done < sizeof buffer / bytes ? n - done : sizeof buffer / bytes;
        for (size_t i = 0; i < count; i++) st_store(t->dtype, (double)values[done + i], buffer + bytes * i);
        safetensors_writer_raw(w, buffer, count * bytes);
        done += count;
    }
}

// A rename lasts only when the folder has reached the disk too. File systems that cannot flush folders say EINVAL.
static inline int st_flush_folder(const char* path) {
    char* folder = st_folder(path);
    int file = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    if (file < 0) return -1;
    int result = fsync(file);
    int reason = errno;
    close(file);
    errno = reason;
    return result && reason != EINVAL ? -1 : 0;
}

// Flushes the file, gives it its name and frees the writer. 1, or 0 with a message that starts with the path.
int safetensors_writer_finish(st_writer_t* w, char* error, size_t error_size) {
    assert((w->error[0] || st_writer_current(w) == NULL) && "all values must be written before finish");
    if (w->file >= 0 && fsync(w->file)) st_writer_fail(w, "flush the file to the disk");
    if (w->file >= 0) {
        int file = w->file;
        w->file = -1;
        if (close(file) || rename(w->temporary, w->path)) {
            st_writer_fail(w, "rename the temporary file to it");
            unlink(w->temporary);
        } else if (st_flush_folder(w->path)) {
            snprintf(w->error, sizeof w->error,
                     "%.500s: the file is written, but its folder cannot be flushed: %s; check the disk", w->path,
                     strerror(errno));
        }
    }
    int good = w->error[0] == 0;
    snprintf(error, error_size, "%s", w->error);
    safetensors_close(&w->layout);
    json_text_free(&w->header);
    free(w->path);
    free(w->temporary);
    memset(w, 0, sizeof *w);
    w->file = -1;
    return good;
}

void safetensors_writer_finish_or_die(st_writer_t* w) {
    char error[1024];
    if (!safetensors_writer_finish(w, error, sizeof error)) fatal("%s", error);
}
