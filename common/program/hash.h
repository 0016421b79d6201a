// hash.h: by what contents are told from one another: captions, weights, pictures, files, settings. FNV-1a, 64 bits:
//     h <- (h xor word) 1099511628211         a word is a byte, or as many bits as there are of one thing
// Nobody is kept out by it: who wants two contents with one hash finds them.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define HASH_START 14695981039346656037ull

static inline uint64_t hash_word(uint64_t h, uint64_t word) { return (h ^ word) * 1099511628211ull; }

static inline uint64_t hash_bytes(uint64_t h, const void* bytes, size_t n) {
    for (size_t i = 0; i < n; i++) h = hash_word(h, ((const unsigned char*)bytes)[i]);
    return h;
}

static inline uint64_t hash_string(uint64_t h, const char* text) {
    for (const char* c = text; *c; c++) h = hash_word(h, (unsigned char)*c);
    return h;
}

// 16 hexadecimal digits.
static inline const char* hash_text(char text[17], uint64_t h) {
    snprintf(text, 17, "%016llx", (unsigned long long)h);
    return text;
}
