// word_rows.h: captions as rows of numbers without a trained text encoder: for the miniature world, which has 27 words.
//
//     row of word i = table[word i] + sum_{j < i} 2^(j-i+1) before[word j] + sum_{j > i} 2^(i-j+1) after[word j]
//                     + waves(i)                                          WORD_WIDTH numbers each
//     pooled        = mean of table[word i]
//
// The tables are standard normal deviates; in front of the first word and behind the last stands the mark of padding.
// `before` and `after` are what a trained encoder's layers would put into a row, its context: the row of "circle" knows
// that it is a "red" one, and "left" of something. The waves, sines and cosines of the position, tell order, which the
// transformer does not see otherwise: it gives all text rows one position. The mark of the end is the last word.
// Letters count in lower case; white space and ASCII punctuation part words; whatever else there is belongs to one.
// Words that are not in the table share one row. docs/t2i.md tells what was not learnt from rows that know less.
// Look next at common/models/caption_encoder.h, which has trained encoders too, and common/data/scenes.h.
#pragma once
#include <ctype.h>
#include <math.h>
#include <string.h>

// defines: floatS
#include "common/device.h"
// defines: random_normal, RANDOM_WORDS
#include "common/program/rng.h"

enum { WORD_PAD, WORD_END, WORD_UNKNOWN, WORD_FIRST }; // numbers of rows; the list follows
enum { WORD_WIDTH = 64, WORD_LONGEST = 40 };           // values of a row; bytes of a word that are looked at
enum { TEXT_ROWS_MOST = 512 };                         // of a caption
#define WORDS_SEED 20261205u

static const char* const word_list[] = {
    "a", "above", "and", "background", "below", "black", "blue", "circle", "circles", "cyan", "four", "gray", "green",
    "left", "of", "on", "purple", "red", "right", "square", "squares", "three", "triangle", "triangles", "two", "white",
    "yellow"};
enum { WORDS = sizeof word_list / sizeof word_list[0], WORD_COUNT = WORD_FIRST + (int)WORDS };

typedef struct {
    floatS table[WORD_COUNT][WORD_WIDTH], before[WORD_COUNT][WORD_WIDTH], after[WORD_COUNT][WORD_WIDTH];
    floatS waves[TEXT_ROWS_MOST][WORD_WIDTH];
} word_rows_t;

static inline void word_rows_open(word_rows_t* w) {
    const int half = WORD_WIDTH / 2;
    for (int i = 0; i < WORD_COUNT; i++) {
        for (int k = 0; k < WORD_WIDTH; k++) {
            w->table[i][k] = (floatS)random_normal(WORDS_SEED, RANDOM_WORDS, 0, (uint64_t)i * WORD_WIDTH + k);
            w->before[i][k] = (floatS)random_normal(WORDS_SEED, RANDOM_WORDS, 1, (uint64_t)i * WORD_WIDTH + k);
            w->after[i][k] = (floatS)random_normal(WORDS_SEED, RANDOM_WORDS, 2, (uint64_t)i * WORD_WIDTH + k);
        }
    }
    for (int i = 0; i < TEXT_ROWS_MOST; i++) {
        for (int k = 0; k < half; k++) {
            double angle = i * pow(10000, -(double)k / half);
            w->waves[i][k] = (floatS)sin(angle);
            w->waves[i][half + k] = (floatS)cos(angle);
        }
    }
}

static inline int word_is_gap(char c) { return c > 0 && !isalnum((unsigned char)c); }

// The next word of a text, in lower case and cut to what fits, and its number; 0 where there is none.
static inline int word_next(const char** text, char word[WORD_LONGEST]) {
    const char* c = *text;
    int n = 0;
    while (word_is_gap(*c)) c++;
    for (; *c && !word_is_gap(*c); c++) {
        if (n < WORD_LONGEST - 1) word[n++] = *c >= 'A' && *c <= 'Z' ? (char)(*c + 32) : *c;
    }
    word[n] = 0;
    *text = c;
    for (int i = 0; i < WORDS; i++) if (!strcmp(word_list[i], word)) return WORD_FIRST + i;
    return n ? WORD_UNKNOWN : 0;
}

// The rows of `count` words and their pooled vector. Both sums are carried along, halved at each word.
static inline void word_rows(const word_rows_t* w, const int* ids, int count,
                             floatS* rows,     // (count, WORD_WIDTH)
                             floatS* pooled) { // (WORD_WIDTH)
    for (int k = 0; k < WORD_WIDTH; k++) {
        floatS before = w->before[WORD_PAD][k], after = w->after[WORD_PAD][k], sum = 0;
        for (int i = 0; i < count; i++) {
            rows[i * WORD_WIDTH + k] = w->table[ids[i]][k] + before + w->waves[i][k];
            before = w->before[ids[i]][k] + before / 2;
            sum += w->table[ids[i]][k];
        }
        for (int i = count - 1; i >= 0; i--) {
            rows[i * WORD_WIDTH + k] += after;
            after = w->after[ids[i]][k] + after / 2;
        }
        pooled[k] = sum / count;
    }
}
