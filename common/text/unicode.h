// unicode.h: what a tokenizer asks of a code point, and NFC: the same text in the same code points, however it was typed
// (e with an accent on it is one code point, or an e and an accent).
//
//   decompose   every code point into what it is canonically made of; marks behind a letter sorted by combining class
//   compose     a letter and a mark that nothing of the same class separates, back into one, from left to right
//                                                                   (Unicode Standard Annex 15; Hangul is arithmetic)
// Look next at common/text/clip_bpe.h.
#pragma once

// defines: malloc_check
#include "common/program/log.h"
// defines: unicode_letters, unicode_numbers, unicode_lowers, unicode_classes, unicode_pairs
#include "common/text/unicode_tables.h"

enum {
    HANGUL = 0xAC00, HANGUL_LEADS = 0x1100, HANGUL_VOWELS = 0x1161, HANGUL_TAILS = 0x11A7, // the first of each kind;
    HANGUL_L = 19, HANGUL_V = 21, HANGUL_T = 28, // and how many: a tail of 0 is none
};

// The range that holds a code point, of n sorted ranges that begin with their first and last; NULL: none.
static inline const void* unicode_find(const void* table, size_t n, size_t size, uint32_t code) {
    size_t low = 0;
    while (low < n) {
        size_t middle = (low + n) / 2;
        const uint32_t* range = (const uint32_t*)((const char*)table + middle * size);
        if (code > range[1]) low = middle + 1;
        else if (code < range[0]) n = middle;
        else return range;
    }
    return NULL;
}
#define UNICODE_FIND(table, code) unicode_find(table, sizeof table / sizeof *table, sizeof *table, code)

static inline int unicode_is_letter(uint32_t code) { return UNICODE_FIND(unicode_letters, code) != NULL; }
static inline int unicode_is_number(uint32_t code) { return UNICODE_FIND(unicode_numbers, code) != NULL; }
static inline int unicode_is_space(uint32_t code) {
    static const unicode_range_t spaces[] = {{9, 13}, {28, 32}, {133, 133}, {160, 160}, {5760, 5760}, {8192, 8202},
                                             {8232, 8233}, {8239, 8239}, {8287, 8287}, {12288, 12288}};
    return UNICODE_FIND(spaces, code) != NULL;
}

static inline uint32_t unicode_class(uint32_t code) {
    const unicode_class_t* range = (const unicode_class_t*)UNICODE_FIND(unicode_classes, code);
    return range ? range->value : 0;
}

// The small letter of a capital, else the code point itself. U+0130 is not among them: it has two.
static inline uint32_t unicode_lower(uint32_t code) {
    const unicode_lower_t* run = (const unicode_lower_t*)UNICODE_FIND(unicode_lowers, code);
    return run && (code - run->first) % (uint32_t)run->step == 0 ? (uint32_t)((int)code + run->add) : code;
}

static inline const unicode_pair_t* unicode_pair(uint32_t code) {
    size_t low = 0, high = sizeof unicode_pairs / sizeof *unicode_pairs;
    while (low < high) {
        size_t middle = (low + high) / 2;
        uint32_t at = unicode_pairs[middle].code & 0x7FFFFFFF;
        if (at == code) return &unicode_pairs[middle];
        if (at < code) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

enum { UNICODE_PARTS = 8 }; // the most that one code point is made of is 4

// Writes what a code point is made of; returns how many.
static inline int unicode_decompose(uint32_t* out, uint32_t code) {
    if (code >= HANGUL && code < HANGUL + HANGUL_L * HANGUL_V * HANGUL_T) {
        uint32_t syllable = code - HANGUL, tail = syllable % HANGUL_T;
        out[0] = HANGUL_LEADS + syllable / (HANGUL_V * HANGUL_T);
        out[1] = HANGUL_VOWELS + syllable / HANGUL_T % HANGUL_V;
        out[2] = HANGUL_TAILS + tail;
        return tail ? 3 : 2;
    }
    const unicode_pair_t* pair = unicode_pair(code);
    if (!pair) {
        out[0] = code;
        return 1;
    }
    int n = unicode_decompose(out, pair->first); // the second part is never made of others
    if (pair->second) out[n++] = pair->second;
    return n;
}

// The code point that two make, or 0.
static inline uint32_t unicode_compose(uint32_t first, uint32_t second) {
    uint32_t lead = first - HANGUL_LEADS, vowel = second - HANGUL_VOWELS, tail = second - HANGUL_TAILS;
    uint32_t syllable = first - HANGUL;
    if (lead < HANGUL_L && vowel < HANGUL_V) return HANGUL + (lead * HANGUL_V + vowel) * HANGUL_T;
    int open = syllable < HANGUL_L * HANGUL_V * HANGUL_T && syllable % HANGUL_T == 0; // has no tail yet
    if (open && tail > 0 && tail < HANGUL_T) return first + tail;
    for (size_t i = 0; second >= 0x300 && i < sizeof unicode_pairs / sizeof *unicode_pairs; i++) {
        const unicode_pair_t* pair = &unicode_pairs[i];
        if (pair->first == first && pair->second == second && pair->code >> 31 == 0) return pair->code;
    }
    return 0;
}

// NFC of n code points. Returns how many there are in *out, which is to be freed.
static inline size_t unicode_nfc(const uint32_t* codes, size_t n, uint32_t** out) {
    uint32_t* text = (uint32_t*)malloc_check((n + 1) * UNICODE_PARTS * sizeof(uint32_t), "a text");
    size_t length = 0;
    for (size_t i = 0; i < n; i++) length += (size_t)unicode_decompose(text + length, codes[i]);
    for (size_t i = 1; i < length; i++) { // marks that stand in a row, by class; equal ones stay in order
        uint32_t code = text[i], own = unicode_class(code);
        size_t to = i;
        while (own && to > 0 && unicode_class(text[to - 1]) > own) text[to] = text[to - 1], to--;
        text[to] = code;
    }
    size_t end = 0, letter = 0; // text[0 .. end) is done; the last letter stands at `letter`
    for (size_t i = 0; i < length; i++) {
        uint32_t own = unicode_class(text[i]), before = end ? unicode_class(text[end - 1]) : 0;
        int next_to = end > 0 && letter == end - 1, unblocked = before != 0 && before < own;
        int may = end > 0 && unicode_class(text[letter]) == 0 && (next_to || unblocked);
        uint32_t whole = may ? unicode_compose(text[letter], text[i]) : 0;
        if (whole) {
            text[letter] = whole;
            continue;
        }
        if (own == 0) letter = end;
        text[end++] = text[i];
    }
    *out = text;
    return end;
}
