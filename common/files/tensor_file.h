// tensor_file.h: opens any file of weights as one table of tensors: safetensors, and PyTorch's .pt, .pth, .ckpt, .bin,
// new and old. What a file is shows in its first bytes, never in its name.
//
//     PK\3\4                           a zip archive: PyTorch since 1.6 (common/files/pytorch_file.h)
//     \x80 and 2 to 5                  a pickle: PyTorch before 1.6, the same reader
//     8 bytes of length and a '{'      safetensors (common/files/safetensors.h)
//
// Whoever opens a model's file finds its tensors by their plain names, without "module." and the like. A large model
// may be published in several files with an index, "model.safetensors.index.json": {"weight_map": {"tensor": "file",
// ...}}. Its path, or that of the folder, opens all of them as one table.
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

// ---------------------------------------------------------------------------------------------------------------------
// Several files with an index

// Reads an index into pairs (tensor, file), which point into `strings`. 1, or 0 with a message.
static inline int tensor_index_parse(const unsigned char* bytes, size_t size, char* strings, st_metadata_t** pairs,
                                     int* n, char* error, size_t error_size) {
    json_reader_t r;
    memset(&r, 0, sizeof r);
    r.begin = r.at = bytes;
    r.end = bytes + size;
    r.strings = strings;
    r.error = error;
    r.error_size = error_size;
    json_where(&r, "index");
    json_expect(&r, '{');
    for (int first = 1; json_more(&r, '}', first); first = 0) {
        if (strcmp(json_key(&r), "weight_map")) {
            json_skip_value(&r, 0);
            continue;
        }
        json_expect(&r, '{');
        for (int inner = 1; json_more(&r, '}', inner); inner = 0) {
            st_metadata_t pair = {json_key(&r), NULL};
            pair.value = json_string(&r);
            if (strchr(pair.value, '/')) json_fail(&r, "the file %.120s lies in another folder", pair.value);
            if (r.failed) break;
            *pairs = (st_metadata_t*)st_grow(*pairs, *n, sizeof(st_metadata_t));
            (*pairs)[(*n)++] = pair;
        }
    }
    json_end(&r);
    if (!r.failed && *n == 0) json_fail(&r, "there is no weight_map with files in it");
    return !r.failed;
}

// Opens the file of each pair that is not open yet, and puts its tensors into the table. 1, or 0 with a message.
static inline int tensor_index_open(safetensors_t* f, const st_metadata_t* pairs, int n, char* error,
                                    size_t error_size) {
    const char* slash = strrchr(f->path, '/');
    int folder = slash ? (int)(slash + 1 - f->path) : 0;
    for (int i = 0; i < n; i++) {
        char path[1024], reason[1280];
        snprintf(path, sizeof path, "%.*s%s", folder, f->path, pairs[i].value);
        int k = 0;
        while (k < f->n_parts && strcmp(f->parts[k].path, path)) k++;
        if (k < f->n_parts) continue;
        f->parts = (safetensors_t*)st_grow(f->parts, f->n_parts, sizeof(safetensors_t));
        safetensors_t* part = &f->parts[f->n_parts];
        if (!tensor_file_open(part, path, reason, sizeof reason)) {
            return file_fail(error, error_size, "its file %.200s: %.900s", pairs[i].value, reason);
        }
        f->n_parts++;
        for (int t = 0; t < part->n; t++) {
            f->tensors = (st_tensor_t*)st_grow(f->tensors, f->n, sizeof(st_tensor_t));
            f->tensors[f->n++] = part->tensors[t];
        }
    }
    f->by_name = (const st_tensor_t**)malloc_check((size_t)f->n * sizeof(st_tensor_t*), "the index of tensor names");
    for (int i = 0; i < f->n; i++) f->by_name[i] = &f->tensors[i];
    qsort(f->by_name, (size_t)f->n, sizeof(st_tensor_t*), st_compare_names);
    for (int i = 1; i < f->n; i++) {
        const char* name = f->by_name[i]->name;
        if (!strcmp(f->by_name[i - 1]->name, name)) {
            return file_fail(error, error_size, "tensor %.120s stands in two of its files", name);
        }
    }
    for (int i = 0; i < n; i++) {
        if (safetensors_find(f, pairs[i].key)) continue;
        return file_fail(error, error_size, "tensor %.120s is not in its file %.120s", pairs[i].key, pairs[i].value);
    }
    return 1;
}

// All files of an index as one table. 1, or 0 with a message; nothing is left to close then.
static inline int tensor_index_file(safetensors_t* f, const char* path, char* error, size_t error_size) {
    size_t size = 0;
    memset(f, 0, sizeof *f);
    void* map = file_map(path, "an index of files (.index.json)", &size, error, error_size);
    if (!map) return 0;
    char* strings = (char*)malloc_check(size, "an index of files");
    st_metadata_t* pairs = NULL;
    int n = 0;
    f->path = strdup(path);
    int right = tensor_index_parse((const unsigned char*)map, size, strings, &pairs, &n, error, error_size) &&
                tensor_index_open(f, pairs, n, error, error_size);
    if (!right) safetensors_close(f);
    free(pairs);
    free(strings);
    munmap(map, size);
    return right;
}

// The weights in a folder, under the names that Hugging Face gives them; else `path` itself.
static inline const char* tensor_file_in_folder(const char* path, char* inside, size_t size) {
    static const char* const names[] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                        "pytorch_model.bin.index.json", "diffusion_pytorch_model.safetensors",
                                        "diffusion_pytorch_model.safetensors.index.json"};
    struct stat info;
    if (stat(path, &info) || !S_ISDIR(info.st_mode)) return path;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (snprintf(inside, size, "%s/%s", path, names[i]) < (int)size && !access(inside, R_OK)) return inside;
    }
    return path;
}

// ---------------------------------------------------------------------------------------------------------------------
// Names

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

// Opens the file of a model, or the folder or index of one in several files. Tensors are found by their plain names.
void tensor_file_open_or_die(safetensors_t* f, const char* path) {
    char error[1280], inside[1024];
    const char* file = tensor_file_in_folder(path, inside, sizeof inside);
    size_t length = strlen(file);
    int index = length > 11 && !strcmp(file + length - 11, ".index.json");
    int right = (index ? tensor_index_file : tensor_file_open)(f, file, error, sizeof error);
    if (!right) fatal("%s: %s", file, error);
    tensor_file_unwrap(f);
}
