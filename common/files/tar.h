// tar.h: the members of a tar archive in memory, one after another: ImageNet as it is downloaded.
//
//     header, 512 bytes: name (100), ..., size (12) in octal at 124, checksum (8) at 148, type at 156, "ustar" at 257,
//                        prefix of the name (155) at 345
//     the content, and zeros to the next multiple of 512;   at the end two blocks of zeros
//
// Two kinds of headers come before one whose name is longer: 'L' (GNU), whose content is the name, and 'x' (POSIX),
// whose content is lines such as "30 path=a/b.JPEG". A size of more than 8 GiB has its first bit set and is binary.
//
// The bytes are a stranger's: checksums are compared, and lengths are checked before they are followed.
// (POSIX pax, "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format".)
// Look next at common/data/tar_index.h, the user.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <string.h>

// defines: file_fail
#include "common/files/file_map.h"

enum { TAR_BLOCK = 512, TAR_NAME = 1024 };

typedef struct {
    const unsigned char* bytes; // of the archive; must stay there
    size_t size, at;            // of all; where the next header is
    char name[TAR_NAME];        // of the member that was found
    size_t begin, length;       // its content
    int ended;                  // the zeros at the end have been met
} tar_t;

static inline void tar_open(tar_t* t, const unsigned char* bytes, size_t size) {
    memset(t, 0, sizeof *t);
    t->bytes = bytes;
    t->size = size;
}

// A number in octal, or in binary where the first bit is set. SIZE_MAX where it is neither.
static inline size_t tar_number(const unsigned char* at, int bytes) {
    uint64_t value = 0;
    int i = 0;
    if (at[0] & 0x80) {
        for (i = 1; i < bytes; i++) {
            if (value >> 48) return SIZE_MAX;
            value = value << 8 | at[i];
        }
        return (size_t)value;
    }
    while (i < bytes && at[i] == ' ') i++;
    for (; i < bytes && at[i] >= '0' && at[i] <= '7'; i++) value = value << 3 | (uint64_t)(at[i] - '0');
    return i < bytes && at[i] && at[i] != ' ' ? SIZE_MAX : (size_t)value;
}

// The sum of the header's bytes, with the checksum's own taken as spaces, is its checksum.
static inline int tar_is_header(const unsigned char* h) {
    size_t sum = 0;
    for (int i = 0; i < TAR_BLOCK; i++) sum += i >= 148 && i < 156 ? ' ' : h[i];
    return tar_number(h + 148, 8) == sum;
}

static inline int tar_is_zero(const unsigned char* h) {
    for (int i = 0; i < TAR_BLOCK; i++) {
        if (h[i]) return 0;
    }
    return 1;
}

// The path in the lines "LENGTH key=value\n" of a POSIX header, if there is one.
static inline void tar_read_path(const unsigned char* at, size_t size, char name[TAR_NAME]) {
    while (size) {
        size_t length = 0, digits = 0;
        for (; digits < size && digits < 9 && at[digits] >= '0' && at[digits] <= '9'; digits++) {
            length = 10 * length + at[digits] - '0';
        }
        if (length < digits + 2 || length > size) return;
        const char* line = (const char*)at + digits + 1;
        int room = (int)(length - digits - 2); // without the space and the end of the line
        if (room > 5 && !memcmp(line, "path=", 5)) snprintf(name, TAR_NAME, "%.*s", room - 5, line + 5);
        at += length;
        size -= length;
    }
}

// The next ordinary file. 1; 0 at the end; -1 with a message where the archive is damaged.
static inline int tar_next(tar_t* t, char* error, size_t error_size) {
    char longer[TAR_NAME] = "";
    for (;;) {
        const unsigned char* h = t->bytes + t->at;
        if (t->size - t->at < TAR_BLOCK) { // some writers leave the zeros out
            if (t->at == t->size) return 0;
            return file_fail(error, error_size, "the tar archive ends inside a header, at byte %zu: it is cut off",
                             t->at) - 1;
        }
        if (tar_is_zero(h)) {
            t->ended = 1;
            return 0;
        }
        size_t length = tar_number(h + 124, 12), begin = t->at + TAR_BLOCK;
        size_t padding = (TAR_BLOCK - length % TAR_BLOCK) % TAR_BLOCK;
        if (!tar_is_header(h) || length > t->size - begin || padding > t->size - begin - length) {
            return file_fail(error, error_size, "the tar archive is cut off or damaged at byte %zu", t->at) - 1;
        }
        t->at = begin + length + padding;
        int shown = length < TAR_NAME ? (int)length : TAR_NAME - 1;
        if (h[156] == 'L') snprintf(longer, sizeof longer, "%.*s", shown, t->bytes + begin);
        if (h[156] == 'x') tar_read_path(t->bytes + begin, length, longer);
        if (h[156] != '0' && h[156] != 0 && h[156] != '7') {
            if (h[156] != 'L' && h[156] != 'x' && h[156] != 'K') longer[0] = 0; // the name was a folder's or a link's
            continue;
        }
        int prefix = !memcmp(h + 257, "ustar", 6) && h[345]; // GNU's own magic ends in a space, and has no prefix
        if (longer[0]) snprintf(t->name, sizeof t->name, "%s", longer);
        else snprintf(t->name, sizeof t->name, "%.*s%s%.100s", prefix ? 155 : 0, h + 345, prefix ? "/" : "", h);
        t->begin = begin;
        t->length = length;
        return 1;
    }
}
