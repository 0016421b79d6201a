// toy_vocabulary.h: a small SentencePiece model's file, written by hand: pieces, and a table of replacements where one
// is wanted. For tests of common/text/unigram.h and of what reads captions.
#pragma once
#include <stdint.h>
#include <string.h>

// defines: PIECE_NORMAL, PIECE_UNKNOWN, PIECE_CONTROL, ...
#include "common/text/unigram.h"

typedef struct { unsigned char bytes[1 << 15]; size_t size; } blob_t;

static inline void put_number(blob_t* b, uint64_t value) {
    for (; value > 127; value >>= 7) b->bytes[b->size++] = (unsigned char)(value | 128);
    b->bytes[b->size++] = (unsigned char)value;
}
static inline void put_bytes(blob_t* b, int field, const void* bytes, size_t n) {
    put_number(b, (uint64_t)field << 3 | 2);
    put_number(b, n);
    memcpy(b->bytes + b->size, bytes, n);
    b->size += n;
}
static inline void put_field(blob_t* b, int field, uint64_t value) {
    put_number(b, (uint64_t)field << 3);
    put_number(b, value);
}
static inline void put_piece(blob_t* b, const char* text, float score, int kind) {
    static blob_t inner;
    inner.size = 0;
    put_bytes(&inner, 1, text, strlen(text));
    put_number(&inner, 2 << 3 | 5);
    memcpy(inner.bytes + inner.size, &score, 4);
    inner.size += 4;
    if (kind != PIECE_NORMAL) put_field(&inner, 3, (uint64_t)kind);
    put_bytes(b, 1, inner.bytes, inner.size);
}

// A table of replacements: node k has the units from 256 (k + 1) on for its children, by their byte; that of byte 0
// holds where the replacement stands.
static inline void put_replacements(blob_t* b, const char* const (*replacements)[2], int n) {
    enum { NODES = 12 };
    static uint32_t units[256 * (NODES + 1)];
    size_t place[NODES] = {0}, strings_size = 0;
    unsigned char strings[64];
    int nodes = 1;
    memset(units, 0, sizeof units);
    units[0] = 256 << 10;
    for (int i = 0; i < n; i++) {
        int node = 0;
        for (const unsigned char* c = (const unsigned char*)replacements[i][0]; *c; c++) {
            size_t at = 256 * (size_t)(node + 1) + *c;
            for (node = 1; node < nodes && place[node] != at; node++) {}
            if (node == nodes) nodes++;
            place[node] = at;
            units[at] |= *c | (uint32_t)(at ^ 256 * (size_t)(node + 1)) << 10;
        }
        units[place[node]] |= 1 << 8;
        units[256 * (node + 1)] = (uint32_t)strings_size | 0x80000000u;
        strcpy((char*)strings + strings_size, replacements[i][1]);
        strings_size += strlen(replacements[i][1]) + 1;
    }
    static blob_t map;
    uint32_t bytes = 256 * (uint32_t)(nodes + 1) * 4;
    memcpy(map.bytes, &bytes, 4);
    memcpy(map.bytes + 4, units, bytes);
    memcpy(map.bytes + 4 + bytes, strings, strings_size);
    put_bytes(b, 2, map.bytes, 4 + bytes + strings_size);
}

#define BLANK "\u2581"
static inline void put_toy(blob_t* b, const char* const (*replacements)[2], int n) {
    static blob_t inner;
    b->size = inner.size = 0;
    put_piece(b, "<pad>", 0, PIECE_CONTROL), put_piece(b, "</s>", 0, PIECE_CONTROL);
    put_piece(b, "<unk>", 0, PIECE_UNKNOWN);
    put_piece(b, BLANK, -2, 1), put_piece(b, "a", -3, 1), put_piece(b, "b", -3.5f, 1), put_piece(b, "c", -4, 1);
    put_piece(b, BLANK "a", -2.5f, 1), put_piece(b, "ab", -4.5f, 1), put_piece(b, BLANK "ab", -5, 1);
    put_piece(b, "bc", -5.5f, 1), put_piece(b, "abc", -9, 1), put_piece(b, "ca", -6, PIECE_UNUSED);
    put_piece(b, "<x>", 0, PIECE_USER_DEFINED);
    put_field(&inner, 3, 1); // unigram
    put_bytes(b, 2, inner.bytes, inner.size);
    inner.size = 0;
    if (n) put_replacements(&inner, replacements, n);
    put_field(&inner, 3, 1);
    put_bytes(b, 3, inner.bytes, inner.size);
}
