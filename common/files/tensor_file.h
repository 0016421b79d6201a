// tensor_file.h: opens any file of weights as one table of tensors: safetensors, and PyTorch's .pt, .pth, .ckpt, .bin,
// new and old. What a file is shows in its first bytes, never in its name.
//
//     PK\3\4                           a zip archive: PyTorch since 1.6 (common/files/pytorch_file.h)
//     \x80 and 2 to 5                  a pickle: PyTorch before 1.6, the same reader
//     8 bytes of length and a '{'      safetensors (common/files/safetensors.h)
//
// Whoever opens a model's file finds its tensors by their plain names, without "module." and the like.
//
// The rest is refused by name: arrays of numpy, tar files, web pages and Git LFS pointers that were downloaded in place
// of the file. Look next at common/models/weights.h, which puts the tensors into a model, and common/files/inspect.h,
// which lists them.
#pragma once
// defines: file_map, file_fail, file_number
#include "common/files/file_map.h"
// defines: pytorch_parse
#include "common/files/pytorch_file.h"
// defines: safetensors_t, safetensors_parse
#include "common/files/safetensors.h"

typedef enum { FILE_SAFETENSORS, FILE_ZIP, FILE_PICKLE, FILE_NPY, FILE_TAR, FILE_PAGE, FILE_POINTER } file_kind_t;

// What a file is, from its first bytes. What is like nothing here is left to the reader of safetensors.
static inline file_kind_t file_kind(const unsigned char* bytes, size_t size) {
    if (size > 8 && bytes[8] == '{' && file_number(bytes, 8) <= ST_MAX_HEADER) return FILE_SAFETENSORS;
    if (size >= 4 && bytes[0] == 'P' && bytes[1] == 'K') return FILE_ZIP;
    if (size >= 4 && bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5) return FILE_PICKLE;
    if (size >= 6 && !memcmp(bytes, "\x93NUMPY", 6)) return FILE_NPY;
    if (size >= 262 && !memcmp(bytes + 257, "ustar", 5)) return FILE_TAR;
    if (size >= 4 && (bytes[0] == '<' || (bytes[0] == '\n' && bytes[1] == '<'))) return FILE_PAGE;
    if (size >= 23 && !memcmp(bytes, "version https://git-lfs", 23)) return FILE_POINTER;
    return FILE_SAFETENSORS;
}

// A whole file that lies in memory and must stay there until safetensors_close. `path` is for messages.
// 1, or 0 with a message; nothing is left to close then.
int tensor_file_parse(safetensors_t* f, const unsigned char* bytes, size_t size, const char* path, char* error,
                      size_t error_size) {
    memset(f, 0, sizeof *f);
    switch (file_kind(bytes, size)) {
    case FILE_ZIP:
    case FILE_PICKLE: return pytorch_parse(f, bytes, size, path, error, error_size);
    case FILE_NPY: return file_fail(error, error_size, "it is one array of numpy, which has no name");
    case FILE_TAR: return file_fail(error, error_size, "it is a tar file, as PyTorch 0.1 wrote them");
    case FILE_PAGE: return file_fail(error, error_size, "it is a web page, not the file that it should be");
    case FILE_POINTER: return file_fail(error, error_size, "it is a pointer of Git LFS, not the file: `git lfs pull`");
    case FILE_SAFETENSORS: break;
    }
    char reason[1024];
    if (safetensors_parse(f, bytes, size, path, reason, sizeof reason)) return 1;
    return file_fail(error, error_size, "%s; the file is damaged or of another format: copy or make it again", reason);
}

// Maps and checks a file. 1, or 0 with a message (without the path) that says what to do. safetensors_close ends it.
int tensor_file_open(safetensors_t* f, const char* path, char* error, size_t error_size) {
    size_t size = 0;
    memset(f, 0, sizeof *f);
    void* map = file_map(path, "a file of weights (.safetensors, .pt, .pth)", &size, error, error_size);
    if (!map) return 0;
    if (!tensor_file_parse(f, (const unsigned char*)map, size, path, error, error_size)) {
        munmap(map, size);
        return 0;
    }
    f->map = map;
    f->map_size = size;
    return 1;
}

// What the ways of running a module on several devices, of compiling and of recomputing it put into the names of its
// tensors: "module.encoder.conv_in.weight", "state_dict._orig_mod.blocks.0.norm1.weight".
static const char* const tensor_file_wrappers[] = {"module.", "_orig_mod.", "_fsdp_wrapped_module.",
                                                   "_checkpoint_wrapped_module.", NULL};

// Takes the wrappers out of a name, in place. 1 where there were any.
static inline int tensor_file_unwrap_name(char* name) {
    int found = 0;
    for (char* at = name; at;) { // each component of the name
        int wrapped = 0;
        for (int i = 0; tensor_file_wrappers[i] && !wrapped; i++) {
            size_t length = strlen(tensor_file_wrappers[i]);
            if (strncmp(at, tensor_file_wrappers[i], length)) continue;
            memmove(at, at + length, strlen(at + length) + 1);
            wrapped = found = 1;
        }
        if (wrapped) continue;
        at = strchr(at, '.');
        if (at) at++;
    }
    return found;
}

// Takes the wrappers out of all names, unless two would become one.
static inline void tensor_file_unwrap(safetensors_t* f) {
    for (int i = 0; i < f->n; i++) {
        char* plain = strdup(f->tensors[i].name);
        if (!plain) fatal("no memory for the name of a tensor");
        int free_name = tensor_file_unwrap_name(plain) && !safetensors_find(f, plain);
        free(plain);
        if (free_name) tensor_file_unwrap_name((char*)f->tensors[i].name);
    }
    if (f->n) qsort(f->by_name, (size_t)f->n, sizeof(st_tensor_t*), st_compare_names);
}

// Opens a file of a model, whose tensors are found by their plain names.
void tensor_file_open_or_die(safetensors_t* f, const char* path) {
    char error[1280];
    if (!tensor_file_open(f, path, error, sizeof error)) fatal("%s: %s", path, error);
    tensor_file_unwrap(f);
}
