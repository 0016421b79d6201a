// text_table.h: from a string of bytes to a number: a hash table with open addressing. The tokenizers' vocabularies.
// Look next at common/text/clip_bpe.h and common/text/unigram.h.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// defines: calloc_check
#include "common/program/log.h"
// defines: HASH_START, hash_bytes
#include "common/program/hash.h"

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

// The entry of a key with this hash, or the empty one where it would stand. The hash of a string grows byte by byte:
// who looks for all prefixes of a text goes through it once.
static inline text_entry_t* text_table_entry(const text_table_t* t, const void* key, size_t length, uint64_t hash) {
    size_t at = (hash ^ hash >> 32) & (t->size - 1);
    while (t->entries[at].key && (t->entries[at].length != length || memcmp(t->entries[at].key, key, length))) {
        at = (at + 1) & (t->size - 1);
    }
    return &t->entries[at];
}

// The number of a key; -1: none.
static inline int text_table_find(const text_table_t* t, const void* key, size_t length) {
    text_entry_t* entry = text_table_entry(t, key, length, hash_bytes(HASH_START, key, length));
    return entry->key ? entry->value : -1;
}

// Adds a key; 0 where it is there already.
static inline int text_table_add(text_table_t* t, const void* key, size_t length, int value) {
    text_entry_t* entry = text_table_entry(t, key, length, hash_bytes(HASH_START, key, length));
    if (entry->key) return 0;
    entry->key = key;
    entry->length = length;
    entry->value = value;
    t->n++;
    return 1;
}
