// zip.h: reads zip archives of any origin from memory, numpy's .npz, PyTorch's .pt; and writes the frames of new ones.
//
// A zip is read from its end:
//
//     local header   "PK\3\4", lengths of name and extra field, both, then the bytes of the entry    \  one for each
//     directory      "PK\1\2", method, CRC-32, sizes, where the local header is, name, extra field   /  entry
//     ZIP64 record   "PK\6\6", number of entries, size and place of the directory with 64 bits  \  only where they are
//     ZIP64 locator  "PK\6\7", where that record is                                             /  needed
//     end record     "PK\5\6", the same with 16 and 32 bits, a comment of up to 65,535 bytes
//
// A number of 32 bits that is all ones says that the true one, of 64 bits, stands in the extra field 1 of the entry.
// Entries are stored (method 0: can be used where they lie) or deflated (method 8: streamed through zlib).
//
// The bytes are a stranger's: each length and offset is checked before it is followed, errors are texts. The CRC-32 is
// compared when an entry is read to its end, not when the archive is opened: a file of 10 GB opens at once. A CRC of 0
// in the directory means "not computed" (PyTorch writes it so with set_crc32_options(False)).
// (PKWARE's APPNOTE 6.3, sections 4.3 to 4.5.)
//
// Left out: encryption, other methods, archives in several pieces, bytes in front of the archive (self-extracting
// programs). Look next at common/files/npz.h and common/files/pytorch_file.h, which read what is inside.
//
// Writing: the headers around contents that somebody else writes. Entries are stored, not compressed. Sizes have 64
// bits always ("zip64"), since one way of writing is tested more than two.
#pragma once
#include <stdlib.h>
#include <zlib.h>

// defines: file_fail, file_number
#include "common/files/file_map.h"
// defines: malloc_check, calloc_check
#include "common/program/log.h"

typedef struct {
    const char* name;
    int method, flags;
    uint32_t crc;
    uint64_t packed, size; // bytes in the archive, and of the content
    uint64_t header;       // where the local header is
} zip_entry_t;

typedef struct {
    const unsigned char* bytes; // of the whole archive; must stay there
    size_t size;
    int n;
    zip_entry_t* entries;        // (n) in the order of the directory
    const zip_entry_t** by_name; // (n) the same, sorted by name
    char* names;
} zip_t;

enum { ZIP_STORED = 0, ZIP_DEFLATED = 8, ZIP_END = 22, ZIP_LOCATOR = 20, ZIP_RECORD = 56, ZIP_DIRECTORY = 46,
       ZIP_LOCAL = 30 };

// ---------------------------------------------------------------------------------------------------------------------
// Opening

static inline void zip_close(zip_t* z) {
    free(z->entries);
    free(z->by_name);
    free(z->names);
    memset(z, 0, sizeof *z);
}

static inline int zip_is(const unsigned char* at, char a, char b) {
    return at[0] == 'P' && at[1] == 'K' && at[2] == a && at[3] == b;
}

// Where the directory is, from the end of the archive.
static inline int zip_find_directory(const zip_t* z, uint64_t* offset, uint64_t* size, uint64_t* entries, char* error,
                                     size_t error_size) {
    if (z->size < ZIP_END) return file_fail(error, error_size, "%zu bytes are too few for a zip archive", z->size);
    size_t at = z->size - ZIP_END, first = at > 65535 ? at - 65535 : 0;
    while (!zip_is(z->bytes + at, 5, 6)) {
        if (at == first) {
            return file_fail(error, error_size, "the end of the zip archive is not there: the file is truncated");
        }
        at--;
    }
    const unsigned char* end = z->bytes + at;
    *entries = file_number(end + 10, 2), *size = file_number(end + 12, 4), *offset = file_number(end + 16, 4);
    int long_numbers = *entries == 0xFFFF || *size == 0xFFFFFFFF || *offset == 0xFFFFFFFF;
    size_t limit = at;
    if (long_numbers && at >= ZIP_LOCATOR && zip_is(end - ZIP_LOCATOR, 6, 7)) {
        uint64_t place = file_number(end - ZIP_LOCATOR + 8, 8);
        if (at < ZIP_LOCATOR + ZIP_RECORD || place > at - ZIP_LOCATOR - ZIP_RECORD || !zip_is(z->bytes + place, 6, 6)) {
            return file_fail(error, error_size, "the zip archive's ZIP64 record is not where its locator says");
        }
        const unsigned char* record = z->bytes + place;
        *entries = file_number(record + 32, 8), *size = file_number(record + 40, 8);
        *offset = file_number(record + 48, 8);
        limit = (size_t)place;
    }
    if (*offset > limit || *size > limit - *offset) {
        return file_fail(error, error_size, "the zip directory (%llu bytes at %llu) does not fit in the file: it is "
                         "truncated or has bytes in front", (unsigned long long)*size, (unsigned long long)*offset);
    }
    if (*entries > *size / ZIP_DIRECTORY) {
        return file_fail(error, error_size, "%llu entries do not fit in a zip directory of %llu bytes",
                         (unsigned long long)*entries, (unsigned long long)*size);
    }
    return 1;
}

// The numbers of 64 bits that replace those of 32 that are all ones, in their order.
static inline int zip_read_long_numbers(zip_entry_t* e, const unsigned char* extra, size_t length) {
    uint64_t* numbers[3] = {&e->size, &e->packed, &e->header};
    while (length >= 4) {
        size_t id = (size_t)file_number(extra, 2), n = (size_t)file_number(extra + 2, 2);
        if (n > length - 4) return 0;
        if (id == 1) {
            size_t used = 0;
            for (int i = 0; i < 3; i++) {
                if (*numbers[i] != 0xFFFFFFFF) continue;
                if (used + 8 > n) return 0;
                *numbers[i] = file_number(extra + 4 + used, 8);
                used += 8;
            }
            return 1;
        }
        extra += 4 + n;
        length -= 4 + n;
    }
    return 1; // a size that happens to be all ones
}

static inline int zip_compare_names(const void* left, const void* right) {
    return strcmp((*(const zip_entry_t* const*)left)->name, (*(const zip_entry_t* const*)right)->name);
}

// One entry of the directory at `at`, whose name goes to `name`. The bytes it takes, or 0 with a message.
static inline size_t zip_read_entry(zip_entry_t* e, const unsigned char* at, size_t room, char* name, char* error,
                                    size_t error_size) {
    size_t name_length = 0, extra = 0, total = 0;
    if (room >= ZIP_DIRECTORY && zip_is(at, 1, 2)) {
        name_length = (size_t)file_number(at + 28, 2), extra = (size_t)file_number(at + 30, 2);
        total = ZIP_DIRECTORY + name_length + extra + (size_t)file_number(at + 32, 2);
    }
    if (total == 0 || total > room) return (size_t)file_fail(error, error_size, "the zip directory is damaged");
    e->flags = (int)file_number(at + 8, 2), e->method = (int)file_number(at + 10, 2);
    e->crc = (uint32_t)file_number(at + 16, 4);
    e->packed = file_number(at + 20, 4), e->size = file_number(at + 24, 4), e->header = file_number(at + 42, 4);
    memcpy(name, at + ZIP_DIRECTORY, name_length);
    name[name_length] = 0;
    e->name = name;
    if (strlen(name) != name_length || !zip_read_long_numbers(e, at + ZIP_DIRECTORY + name_length, extra)) {
        return (size_t)file_fail(error, error_size, "the zip entry \"%.80s\" is damaged", name);
    }
    return total;
}

// Reads the directory of an archive in memory, which must stay there. 1, or 0 with a message; nothing is left to close
// then.
static inline int zip_open(zip_t* z, const unsigned char* bytes, size_t size, char* error, size_t error_size) {
    uint64_t offset = 0, room = 0, entries = 0;
    memset(z, 0, sizeof *z);
    z->bytes = bytes, z->size = size;
    if (!zip_find_directory(z, &offset, &room, &entries, error, error_size)) return 0;
    z->entries = (zip_entry_t*)calloc_check((size_t)entries, sizeof(zip_entry_t), "a zip directory");
    z->by_name = (const zip_entry_t**)calloc_check((size_t)entries, sizeof(zip_entry_t*), "a zip directory");
    z->names = (char*)malloc_check((size_t)room, "the names of a zip archive"); // a name and its NUL need less
    size_t at = (size_t)offset, used = 0;
    for (z->n = 0; (uint64_t)z->n < entries; z->n++) {
        size_t taken = zip_read_entry(&z->entries[z->n], bytes + at, (size_t)room, z->names + used, error, error_size);
        if (taken == 0) {
            zip_close(z);
            return 0;
        }
        z->by_name[z->n] = &z->entries[z->n];
        used += strlen(z->names + used) + 1;
        at += taken;
        room -= taken;
    }
    if (z->n) qsort(z->by_name, (size_t)z->n, sizeof(zip_entry_t*), zip_compare_names);
    for (int i = 1; i < z->n; i++) {
        if (strcmp(z->by_name[i - 1]->name, z->by_name[i]->name)) continue;
        file_fail(error, error_size, "the zip archive has the entry \"%.80s\" twice", z->by_name[i]->name);
        zip_close(z);
        return 0;
    }
    return 1;
}

// The entry of this name, or NULL.
static inline const zip_entry_t* zip_find(const zip_t* z, const char* name) {
    zip_entry_t wanted;
    const zip_entry_t* key = &wanted;
    wanted.name = name;
    if (z->n == 0) return NULL;
    const void* found = bsearch(&key, z->by_name, (size_t)z->n, sizeof(zip_entry_t*), zip_compare_names);
    return found ? *(const zip_entry_t* const*)found : NULL;
}

// ---------------------------------------------------------------------------------------------------------------------
// Content

// Where the entry's bytes lie in the archive, `packed` of them. NULL with a message.
static inline const unsigned char* zip_data(const zip_t* z, const zip_entry_t* e, char* error, size_t error_size) {
    const unsigned char* at = z->bytes + (e->header < z->size ? e->header : 0);
    if (e->flags & 1) {
        file_fail(error, error_size, "the zip entry \"%.80s\" is encrypted", e->name);
        return NULL;
    }
    if ((e->method != ZIP_STORED && e->method != ZIP_DEFLATED) || (e->method == ZIP_STORED && e->packed != e->size)) {
        file_fail(error, error_size, "the zip entry \"%.80s\" is packed by method %d; only stored (0) and deflated (8) "
                  "entries are read here", e->name, e->method);
        return NULL;
    }
    if (e->header >= z->size || z->size - e->header < ZIP_LOCAL || !zip_is(at, 3, 4)) {
        file_fail(error, error_size, "the zip entry \"%.80s\" is not where the directory says", e->name);
        return NULL;
    }
    size_t name = (size_t)file_number(at + 26, 2), begin = ZIP_LOCAL + name + (size_t)file_number(at + 28, 2);
    size_t room = z->size - (size_t)e->header;
    if (begin > room || e->packed > room - begin) {
        file_fail(error, error_size, "the zip entry \"%.80s\" ends beyond the file: it is truncated", e->name);
        return NULL;
    }
    if (name != strlen(e->name) || memcmp(at + ZIP_LOCAL, e->name, name)) {
        file_fail(error, error_size, "the zip entry \"%.80s\" has another name in its local header", e->name);
        return NULL;
    }
    return at + begin;
}

// An entry that is read from its beginning to its end, in pieces.
typedef struct {
    const zip_entry_t* entry;
    const unsigned char* data; // packed bytes that zlib has not been given yet
    uint64_t left;             // how many these are
    uint64_t done;             // bytes of content that have been read
    uint32_t crc;              // of these
    z_stream z;
} zip_stream_t;

static inline int zip_stream_open(zip_stream_t* s, const zip_t* z, const zip_entry_t* e, char* error,
                                  size_t error_size) {
    memset(s, 0, sizeof *s);
    s->entry = e;
    s->data = zip_data(z, e, error, error_size);
    s->left = e->packed;
    if (!s->data) return 0;
    if (e->method == ZIP_DEFLATED && inflateInit2(&s->z, -MAX_WBITS) != Z_OK) {
        return file_fail(error, error_size, "no memory to unpack the zip entry \"%.80s\"", e->name);
    }
    return 1;
}

static inline void zip_stream_close(zip_stream_t* s) {
    if (s->data && s->entry->method == ZIP_DEFLATED) inflateEnd(&s->z);
    memset(s, 0, sizeof *s);
}

enum { ZIP_PIECE = 1 << 30 }; // zlib counts with 32 bits

// Unpacks up to `size` bytes; how many came. Fewer only at the end of the entry or where it is damaged.
static inline size_t zip_inflate(zip_stream_t* s, unsigned char* out, size_t size) {
    size_t done = 0;
    while (done < size) {
        if (s->z.avail_in == 0 && s->left) {
            s->z.next_in = (z_const Bytef*)s->data;
            s->z.avail_in = (uInt)(s->left < ZIP_PIECE ? s->left : (uint64_t)ZIP_PIECE);
            s->data += s->z.avail_in;
            s->left -= s->z.avail_in;
        }
        uInt room = (uInt)(size - done < ZIP_PIECE ? size - done : (size_t)ZIP_PIECE);
        s->z.next_out = out + done;
        s->z.avail_out = room;
        int result = inflate(&s->z, Z_NO_FLUSH);
        done += room - s->z.avail_out;
        if (result != Z_OK) break; // the end, damage, or nothing more to read
    }
    return done;
}

// The next `size` bytes of the content, all of them. With the last the CRC-32 is compared. 1, or 0 with a message.
static inline int zip_stream_read(zip_stream_t* s, void* out, size_t size, char* error, size_t error_size) {
    const zip_entry_t* e = s->entry;
    unsigned char more;
    if (size > e->size - s->done) {
        return file_fail(error, error_size, "the zip entry \"%.80s\" has only %llu bytes", e->name,
                         (unsigned long long)e->size);
    }
    if (e->method == ZIP_STORED) {
        if (size) memcpy(out, s->data, size);
        s->data += size;
    } else if (zip_inflate(s, (unsigned char*)out, size) != size) {
        return file_fail(error, error_size, "the zip entry \"%.80s\" cannot be unpacked: it is damaged", e->name);
    }
    if (size) s->crc = (uint32_t)crc32_z(s->crc, (const Bytef*)out, size);
    s->done += size;
    if (s->done < e->size) return 1;
    if (e->method == ZIP_DEFLATED && zip_inflate(s, &more, 1)) {
        return file_fail(error, error_size, "the zip entry \"%.80s\" is longer than the directory says", e->name);
    }
    if (e->crc && s->crc != e->crc) {
        return file_fail(error, error_size, "the zip entry \"%.80s\" is damaged: its CRC-32 is %08x, not %08x", e->name,
                         (unsigned)s->crc, (unsigned)e->crc);
    }
    return 1;
}

// The whole content, e->size bytes.
static inline int zip_read(const zip_t* z, const zip_entry_t* e, void* out, char* error, size_t error_size) {
    zip_stream_t s;
    int good = zip_stream_open(&s, z, e, error, error_size);
    good = good && zip_stream_read(&s, out, (size_t)e->size, error, error_size);
    zip_stream_close(&s);
    return good;
}

// Compares the CRC-32 of an entry with its content, which is not kept. 1, or 0 with a message.
static inline int zip_check(const zip_t* z, const zip_entry_t* e, char* error, size_t error_size) {
    unsigned char piece[65536];
    zip_stream_t s;
    int good = zip_stream_open(&s, z, e, error, error_size);
    do {
        size_t n = e->size - s.done < sizeof piece ? (size_t)(e->size - s.done) : sizeof piece;
        good = good && zip_stream_read(&s, piece, n, error, error_size);
    } while (good && s.done < e->size);
    zip_stream_close(&s);
    return good;
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing

enum { ZIP_BYTES = 2048, ZIP_CRC_OFFSET = 14 }; // room for headers or a directory; place of a local header's CRC

// Bytes of a header, numbers little-endian.
typedef struct {
    uint8_t bytes[ZIP_BYTES];
    size_t length;
} zip_bytes_t;

static inline void zip_put_number(zip_bytes_t* to, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) to->bytes[to->length++] = (uint8_t)(value >> 8 * i);
}
static inline void zip_put_text(zip_bytes_t* to, const void* text, size_t length) {
    memcpy(to->bytes + to->length, text, length);
    to->length += length;
}

// What local header and directory share: version to extract, flags, method, time, date (1 January 1980), CRC, sizes
// (in the extra field, since they have 64 bits) and lengths of name and extra field.
static inline void zip_put_entry(zip_bytes_t* to, const char* name, uint32_t crc) {
    zip_put_number(to, 45, 2), zip_put_number(to, 0, 2), zip_put_number(to, 0, 2), zip_put_number(to, 0, 2);
    zip_put_number(to, 0x21, 2), zip_put_number(to, crc, 4), zip_put_number(to, 0xFFFFFFFF, 4);
    zip_put_number(to, 0xFFFFFFFF, 4), zip_put_number(to, strlen(name), 2), zip_put_number(to, 20, 2);
}
static inline void zip_put_name_and_sizes(zip_bytes_t* to, const char* name, uint64_t size) {
    zip_put_text(to, name, strlen(name));
    zip_put_number(to, 1, 2), zip_put_number(to, 16, 2), zip_put_number(to, size, 8), zip_put_number(to, size, 8);
}

// What stands in front of an entry of `size` bytes.
static inline void zip_put_local(zip_bytes_t* to, const char* name, uint64_t size, uint32_t crc) {
    zip_put_text(to, "PK\3\4", 4);
    zip_put_entry(to, name, crc);
    zip_put_name_and_sizes(to, name, size);
}

// An entry of the directory, whose local header is at `offset`.
static inline void zip_put_directory(zip_bytes_t* to, const char* name, uint64_t size, uint32_t crc, uint64_t offset) {
    zip_put_text(to, "PK\1\2", 4);
    zip_put_number(to, 45, 2);
    zip_put_entry(to, name, crc);
    zip_put_number(to, 0, 2), zip_put_number(to, 0, 2), zip_put_number(to, 0, 2); // comment, disk, kind of content
    zip_put_number(to, 0, 4), zip_put_number(to, offset, 4);                      // permissions, local header
    zip_put_name_and_sizes(to, name, size);
}

// The end of an archive of n entries, whose directory has `directory` bytes and begins at `offset`.
static inline void zip_put_end(zip_bytes_t* to, uint64_t n, uint64_t directory, uint64_t offset) {
    zip_put_text(to, "PK\6\6", 4);
    zip_put_number(to, 44, 8), zip_put_number(to, 45, 2), zip_put_number(to, 45, 2); // length of the rest, versions
    zip_put_number(to, 0, 4), zip_put_number(to, 0, 4);                              // disks
    zip_put_number(to, n, 8), zip_put_number(to, n, 8);                              // entries
    zip_put_number(to, directory, 8), zip_put_number(to, offset, 8);
    zip_put_text(to, "PK\6\7", 4);
    zip_put_number(to, 0, 4), zip_put_number(to, offset + directory, 8), zip_put_number(to, 1, 4);
    zip_put_text(to, "PK\5\6", 4);
    zip_put_number(to, 0, 4); // the old end, which says: see above
    zip_put_number(to, 0xFFFF, 2), zip_put_number(to, 0xFFFF, 2);
    zip_put_number(to, 0xFFFFFFFF, 4), zip_put_number(to, 0xFFFFFFFF, 4);
    zip_put_number(to, 0, 2);
}
