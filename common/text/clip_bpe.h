// clip_bpe.h: CLIP's tokenizer: byte pairs (Sennrich et al. 2016; GPT-2; openai/CLIP clip/simple_tokenizer.py).
//
//   text to words    clean, small letters, then from left to right: 's 't 're 've 'm 'll 'd; a run of letters; one
//                    digit; a run of anything else that is no white space
//   word to symbols  its UTF-8 bytes, the last one marked as the end; then the pair of neighbours that stands first in
//                    the list of merges becomes one symbol wherever it stands, again and again until no pair is listed
//   numbers          0 to 255 the bytes in an order of their own (clip_byte_order), 256 to 511 the same at a word's
//                    end, 512 + r what merge r makes, then the marks of start and end
//
// Clean is NFC, with straight quotation marks for U+2018, 2019, 201C, 201D. openai/CLIP repairs a text with ftfy,
// which does this and more, and takes HTML's entities apart; Hugging Face's does NFC alone. Of capitals, a Greek sigma
// at a word's end has a small form of its own in openai's, not in Hugging Face's nor here. Captions without such
// characters are the same for all three.
//
// The file is openai's bpe_simple_vocab_16e6.txt.gz or Hugging Face's merges.txt: a line of heading, then a pair of
// symbols a line. In it a byte that is no visible character is written as U+0100 and those behind it, a word's end as
// </w>. Look next at common/text/unigram.h, T5's tokenizer, and common/models/clip.h, which reads the numbers.
#pragma once
#include <zlib.h>

// defines: file_fail
#include "common/files/file_map.h"
// defines: text_table_t, text_table_find, text_table_add
#include "common/text/text_table.h"
// defines: unicode_nfc, unicode_is_letter, unicode_is_number, unicode_is_space, unicode_lower
#include "common/text/unicode.h"
// defines: utf8_next, utf8_put
#include "common/text/utf8.h"

enum {
    CLIP_LENGTH = 77,      // of the models' context
    CLIP_MERGES = 48894,   // what the models use of openai's longer file
    CLIP_BYTES = 256,
    CLIP_SYMBOLS = 512,    // before the first merge
    CLIP_FILE = 64 << 20,  // bytes of a file, unpacked; openai's has 3.2 MB
};

typedef struct {
    int merges;            // so many; symbol 512 + r is made by merge r
    int start, end;        // the marks' numbers; the vocabulary has end + 1
    int bytes[CLIP_BYTES]; // the symbol of a byte
    uint32_t (*pairs)[2];  // (merges) the keys of `ranks`
    text_table_t ranks;    // from a pair of symbols to its merge
} clip_bpe_t;

// ---------------------------------------------------------------------------------------------------------------------
// The file

// The bytes in the order of their symbols: visible ones first. Returns how many are visible: 188.
static inline int clip_byte_order(unsigned char order[CLIP_BYTES]) {
    int n = 0, visible = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int b = 0; b < CLIP_BYTES; b++) {
            int seen = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
            if (seen == !pass) order[n++] = (unsigned char)b;
        }
        if (!pass) visible = n;
    }
    return visible;
}

// The symbols' names while the file is read: `text` is where the next one is put.
typedef struct {
    text_table_t names;
    unsigned char* text;
} clip_names_t;

// The name of `length` bytes that stands at `text` is a symbol's.
static inline int clip_keep_name(clip_names_t* names, size_t length, int symbol) {
    if (!text_table_add(&names->names, names->text, length, symbol)) return 0;
    names->text += length;
    return 1;
}

static inline void clip_name_bytes(clip_bpe_t* t, clip_names_t* names) {
    unsigned char order[CLIP_BYTES];
    int visible = clip_byte_order(order);
    for (int i = 0; i < CLIP_BYTES; i++) {
        uint32_t code = i < visible ? order[i] : 0x100u + (unsigned)(i - visible);
        t->bytes[order[i]] = i;
        clip_keep_name(names, (size_t)utf8_put(names->text, code), i);
        size_t length = (size_t)utf8_put(names->text, code);
        memcpy(names->text + length, "</w>", 4);
        clip_keep_name(names, length + 4, CLIP_BYTES + i);
    }
}

// The next merge, from a line "A B". 1, or 0 with a message.
static inline int clip_take_line(clip_bpe_t* t, clip_names_t* names, const char* line, size_t length, int number,
                                 char* error, size_t error_size) {
    const char* blank = (const char*)memchr(line, ' ', length);
    size_t first = blank ? (size_t)(blank - line) : 0, second = blank ? length - first - 1 : 0;
    if (first == 0 || second == 0 || memchr(blank + 1, ' ', second)) {
        return file_fail(error, error_size, "line %d is no pair of symbols with a blank between", number);
    }
    int a = text_table_find(&names->names, line, first), b = text_table_find(&names->names, blank + 1, second);
    if (a < 0 || b < 0) {
        return file_fail(error, error_size, "line %d merges a symbol that no line before it makes: %.*s", number,
                         (int)(length < 80 ? length : 80), line);
    }
    t->pairs[t->merges][0] = (uint32_t)a;
    t->pairs[t->merges][1] = (uint32_t)b;
    memcpy(names->text, line, first);
    memcpy(names->text + first, blank + 1, second);
    if (!clip_keep_name(names, first + second, CLIP_SYMBOLS + t->merges) ||
        !text_table_add(&t->ranks, t->pairs[t->merges], sizeof *t->pairs, t->merges)) {
        return file_fail(error, error_size, "line %d makes a symbol that is there already: %.*s", number,
                         (int)(length < 80 ? length : 80), line);
    }
    t->merges++;
    return 1;
}

// Reads the text of a file, already unpacked. 1, or 0 with a message; clip_bpe_close frees it in both cases.
static inline int clip_bpe_parse(clip_bpe_t* t, const char* text, size_t size, char* error, size_t error_size) {
    memset(t, 0, sizeof *t);
    t->pairs = (uint32_t(*)[2])malloc_check(CLIP_MERGES * sizeof *t->pairs, "CLIP's merges");
    text_table_begin(&t->ranks, CLIP_MERGES);
    unsigned char* memory = (unsigned char*)malloc_check(size + 8 * CLIP_SYMBOLS, "CLIP's symbols");
    clip_names_t names;
    names.text = memory;
    text_table_begin(&names.names, CLIP_SYMBOLS + CLIP_MERGES);
    clip_name_bytes(t, &names);
    int number = 0, right = 1;
    for (size_t at = 0; right && at < size && t->merges < CLIP_MERGES;) {
        const char* newline = (const char*)memchr(text + at, '\n', size - at);
        size_t end = newline ? (size_t)(newline - text) : size, length = end - at;
        if (length && text[end - 1] == '\r') length--;
        if (++number > 1 && length) right = clip_take_line(t, &names, text + at, length, number, error, error_size);
        at = end + 1;
    }
    text_table_free(&names.names);
    free(memory);
    t->start = CLIP_SYMBOLS + t->merges;
    t->end = t->start + 1;
    if (right && t->merges == 0) return file_fail(error, error_size, "it holds no merges");
    return right;
}

static inline void clip_bpe_close(clip_bpe_t* t) {
    free(t->pairs);
    text_table_free(&t->ranks);
    memset(t, 0, sizeof *t);
}

// Opens a file, packed by gzip or not; what is wrong with it ends the program.
static inline void clip_bpe_open(clip_bpe_t* t, const char* path) {
    char error[512];
    gzFile file = gzopen(path, "rb");
    if (!file) fatal("%s: CLIP's vocabulary cannot be opened: %s; check the path", path, strerror(errno));
    char* text = (char*)malloc_check(CLIP_FILE, "CLIP's vocabulary");
    int size = gzread(file, text, CLIP_FILE), damaged = gzclose(file) != Z_OK;
    if (size < 0 || size == CLIP_FILE || damaged) {
        fatal("%s: CLIP's vocabulary cannot be unpacked: %s; copy it again", path,
              size == CLIP_FILE ? "it is too large" : "it is damaged");
    }
    if (!clip_bpe_parse(t, text, (size_t)size, error, sizeof error)) {
        fatal("%s: %s; give CLIP's bpe_simple_vocab_16e6.txt.gz or merges.txt", path, error);
    }
    free(text);
}

// ---------------------------------------------------------------------------------------------------------------------
// Text to numbers

static inline uint32_t clip_plain_quote(uint32_t code) {
    return code == 0x2018 || code == 0x2019 ? '\'' : code == 0x201C || code == 0x201D ? '"' : code;
}

// The text's code points, clean and in small letters. Returns how many; *out is to be freed.
static inline size_t clip_clean(const char* text, uint32_t** out) {
    size_t size = strlen(text), n = 0, length = 0;
    uint32_t *codes = (uint32_t*)malloc_check((size + 1) * sizeof(uint32_t), "a text"), *clean;
    for (size_t at = 0; at < size; n++) at += (size_t)utf8_next((const unsigned char*)text + at, size - at, &codes[n]);
    n = unicode_nfc(codes, n, &clean);
    free(codes);
    uint32_t* small = (uint32_t*)malloc_check((2 * n + 1) * sizeof(uint32_t), "a text");
    for (size_t i = 0; i < n; i++) {
        small[length++] = clean[i] == 0x130 ? 'i' : unicode_lower(clip_plain_quote(clean[i]));
        if (clean[i] == 0x130) small[length++] = 0x307; // the only capital with two small code points
    }
    free(clean);
    *out = small;
    return length;
}

// Does ASCII text stand here?
static inline int clip_stands(const uint32_t* codes, size_t n, const char* ascii) {
    size_t i = 0;
    while (ascii[i] && i < n && codes[i] == (unsigned char)ascii[i]) i++;
    return ascii[i] == 0;
}

typedef enum { CLIP_SPACE, CLIP_LETTER, CLIP_NUMBER, CLIP_OTHER } clip_kind_t;
static inline clip_kind_t clip_kind(uint32_t code) {
    if (unicode_is_space(code)) return CLIP_SPACE;
    return unicode_is_letter(code) ? CLIP_LETTER : unicode_is_number(code) ? CLIP_NUMBER : CLIP_OTHER;
}

// Code points of the word that begins here, with no white space in front.
static inline size_t clip_word_length(const uint32_t* codes, size_t n) {
    static const char* const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (int i = 0; i < 7; i++) {
        if (clip_stands(codes, n, endings[i])) return strlen(endings[i]);
    }
    clip_kind_t kind = clip_kind(codes[0]);
    size_t length = 1;
    while (kind != CLIP_NUMBER && length < n && clip_kind(codes[length]) == kind) length++;
    return length;
}

// Merges the pair (a, b) into `symbol` wherever it stands, from left to right. Returns how many symbols are left.
static inline size_t clip_merge(uint32_t* symbols, size_t n, uint32_t a, uint32_t b, uint32_t symbol) {
    size_t length = 0;
    for (size_t i = 0; i < n; i++) {
        int here = i + 1 < n && symbols[i] == a && symbols[i + 1] == b;
        symbols[length++] = here ? symbol : symbols[i];
        i += (size_t)here;
    }
    return length;
}

// A word's bytes become its symbols, in `symbols` (bytes). Returns how many.
static inline size_t clip_word(const clip_bpe_t* t, const uint32_t* codes, size_t n, uint32_t* symbols) {
    size_t length = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char bytes[4];
        int count = utf8_put(bytes, codes[i]);
        for (int k = 0; k < count; k++) symbols[length++] = (uint32_t)t->bytes[bytes[k]];
    }
    symbols[length - 1] += CLIP_BYTES;
    for (;;) {
        int best = -1;
        for (size_t i = 0; i + 1 < length; i++) {
            int rank = text_table_find(&t->ranks, symbols + i, sizeof *t->pairs);
            if (rank >= 0 && (best < 0 || rank < best)) best = rank;
        }
        if (best < 0) return length;
        length = clip_merge(symbols, length, t->pairs[best][0], t->pairs[best][1], (uint32_t)(CLIP_SYMBOLS + best));
    }
}

// The numbers of a text: the mark of the start, its symbols, the mark of the end, then marks of the end up to `length`.
// What is too long is cut; the mark of the end stays. Returns how many there are with the first mark of the end.
static inline int clip_bpe_encode(const clip_bpe_t* t, const char* text, int* ids, int length) { // (length), 2 or more
    static const char* const marks[2] = {"<|startoftext|>", "<|endoftext|>"}; // of one number, in a text too
    uint32_t* codes;
    size_t n = clip_clean(text, &codes), at = 0;
    uint32_t* symbols = (uint32_t*)malloc_check((4 * n + 1) * sizeof(uint32_t), "a word");
    int count = 0;
    ids[count++] = t->start;
    while (at < n && count < length - 1) {
        int mark = clip_stands(codes + at, n - at, marks[0]) ? 0 : clip_stands(codes + at, n - at, marks[1]) ? 1 : -1;
        if (unicode_is_space(codes[at])) {
            at++;
        } else if (mark >= 0) {
            ids[count++] = t->start + mark;
            at += strlen(marks[mark]);
        } else {
            size_t word = clip_word_length(codes + at, n - at), made = clip_word(t, codes + at, word, symbols);
            for (size_t i = 0; i < made && count < length - 1; i++) ids[count++] = (int)symbols[i];
            at += word;
        }
    }
    free(symbols);
    free(codes);
    for (int i = count; i < length; i++) ids[i] = t->end;
    return count + 1;
}
