// file_map.h: a file as an array of bytes, and the way in which readers of foreign files say what is wrong.
//
// Weights and arrays are mapped, not read: opening costs nothing, and a value comes from the page cache when it is
// looked at. A reader gets the bytes, believes none of them, and answers 1, or 0 with a text. Only who opened the file
// knows whether that ends the program, so that readers can be fed with damaged files by the thousand.
// Look next at common/files/safetensors.h, common/files/zip.h and common/files/pytorch_file.h, the readers.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

// Puts the message into `error` and returns 0. Control characters of hostile names do not reach the terminal.
__attribute__((format(printf, 3, 4))) static inline int file_fail(char* error, size_t error_size, const char* format,
                                                                  ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(error, error_size, format, args);
    va_end(args);
    for (char* c = error; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7F) *c = '?';
    }
    return 0;
}

// `bytes` little-endian bytes as a number.
static inline uint64_t file_number(const unsigned char* at, int bytes) {
    uint64_t value = 0;
    memcpy(&value, at, (size_t)bytes);
    return value;
}

// Maps the file for reading; munmap(map, size) ends that. NULL with a message, which asks for `wanted`
// ("a .safetensors file").
static inline void* file_map(const char* path, const char* wanted, size_t* size, char* error, size_t error_size) {
    struct stat info;
    int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); // a named pipe is not waited for
    if (file < 0 || fstat(file, &info)) {
        file_fail(error, error_size, "the file cannot be opened: %s; check the path and permissions", strerror(errno));
        if (file >= 0) close(file);
        return NULL;
    }
    if (!S_ISREG(info.st_mode) || info.st_size == 0) {
        const char* kind = S_ISDIR(info.st_mode) ? "it is a folder" : "it is no ordinary file";
        if (S_ISREG(info.st_mode)) kind = "the file is empty";
        file_fail(error, error_size, "%s; give the path of %s", kind, wanted);
        close(file);
        return NULL;
    }
    *size = (size_t)info.st_size;
    void* map = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, file, 0);
    int reason = errno;
    close(file);
    if (map != MAP_FAILED) return map;
    file_fail(error, error_size, "the file cannot be mapped: %s; copy it to a local disk", strerror(reason));
    return NULL;
}
