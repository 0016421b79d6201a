// text_table.h: from a string of bytes to a number: a hash table with open addressing. The tokenizers' vocabularies.
// Look next at common/text/clip_bpe.h and common/text/unigram.h.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// defines: calloc_check
#include "common/program/log.h"

typedef struct {
    const void* key; // NULL: empty. Whoever puts a key in keeps its bytes.
    size_t length;
    int value;
} text_entry_t;

typedef struct {
    text_entry_t* entries;
    size_t size; // a power of two, at least twice as many as there are entries
    size_t n;
} text_table_t;

// The hash of a string grows byte by byte (FNV-1a): who looks for all prefixes of a text goes through it once.
#define TEXT_HASH 14695981039346656037ull
static inline uint64_t text_hash_byte(uint64_t hash, unsigned char byte) { return (hash ^ byte) * 1099511628211ull; }
static inline uint64_t text_hash(const void* key, size_t length) {
    uint64_t hash = TEXT_HASH;
    for (size_t i = 0; i < length; i++) hash = text_hash_byte(hash, ((const unsigned char*)key)[i]);
    return hash;
}

// Room for `most` entries.
static inline void text_table_begin(text_table_t* t, size_t most) {
    t->n = 0;
    for (t->size = 16; t->size < 2 * most; t->size *= 2) {}
    t->entries = (text_entry_t*)calloc_check(t->size, sizeof(text_entry_t), "a vocabulary");
}
static inline void text_table_free(text_table_t* t) {
    free(t->entries);
    memset(t, 0, sizeof *t);
}

// The entry of a key, or the empty one where it would stand.
static inline text_entry_t* text_table_entry(const text_table_t* t, const void* key, size_t length, uint64_t hash) {
    size_t at = (hash ^ hash >> 32) & (t->size - 1);
    while (t->entries[at].key && (t->entries[at].length != length || memcmp(t->entries[at].key, key, length))) {
        at = (at + 1) & (t->size - 1);
    }
    return &t->entries[at];
}

// The number of a key; -1: none.
static inline int text_table_find(const text_table_t* t, const void* key, size_t length) {
    text_entry_t* entry = text_table_entry(t, key, length, text_hash(key, length));
    return entry->key ? entry->value : -1;
}

// Adds a key; 0 where it is there already.
static inline int text_table_add(text_table_t* t, const void* key, size_t length, int value) {
    text_entry_t* entry = text_table_entry(t, key, length, text_hash(key, length));
    if (entry->key) return 0;
    entry->key = key;
    entry->length = length;
    entry->value = value;
    t->n++;
    return 1;
}
