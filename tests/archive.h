// archive.h: makes tar archives for tests, by the format's description. Look next at common/files/tar.h.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// defines: TAR_BLOCK
#include "common/files/tar.h"
// defines: temporary_write
#include "tests/temporary.h"

typedef struct {
    unsigned char* bytes;
    size_t size;
} archive_t;

static inline void put(archive_t* a, const void* bytes, size_t size, size_t zeros) {
    a->bytes = (unsigned char*)realloc(a->bytes, a->size + size + zeros);
    if (size) memcpy(a->bytes + a->size, bytes, size);
    memset(a->bytes + a->size + size, 0, zeros);
    a->size += size + zeros;
}

// A member of a type, with its prefix of the name, or NULL.
static inline void put_member(archive_t* a, const char* prefix, const char* name, char type, const void* bytes,
                              size_t size) {
    unsigned char h[TAR_BLOCK];
    size_t sum = 0;
    memset(h, 0, sizeof h);
    memcpy(h, name, strlen(name));
    snprintf((char*)h + 124, 12, "%011zo", size);
    memset(h + 148, ' ', 8);
    h[156] = (unsigned char)type;
    memcpy(h + 257, "ustar\00000", 8);
    if (prefix) memcpy(h + 345, prefix, strlen(prefix));
    for (int i = 0; i < TAR_BLOCK; i++) sum += h[i];
    snprintf((char*)h + 148, 8, "%06zo", sum);
    put(a, h, sizeof h, 0);
    put(a, bytes, size, (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK);
}

static inline void put_end(archive_t* a) { put(a, NULL, 0, 2 * TAR_BLOCK); }

// Ends the archive, writes it and empties it.
static inline void write_archive(archive_t* a, const char* name) {
    put_end(a);
    temporary_write(name, a->bytes, a->size);
    free(a->bytes);
    memset(a, 0, sizeof *a);
}
