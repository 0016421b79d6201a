// unigram.h: T5's tokenizer: SentencePiece's unigram model (Kudo 2018; google/sentencepiece), from its `spiece.model`.
//
//   normalise   replacements by the model's own table (NFKC and more), the longest that fits at each place; blanks
//               become U+2581, one stands in front, runs of them become one
//   segment     of all ways to cut the text into pieces the one with the largest sum of scores (logarithms of their
//               probabilities), found from left to right (Viterbi); a character that is no piece is unknown, at 10
//               less than the least score
//   numbers     the pieces' places in the file; neighbouring unknowns are one; the mark of the end behind them
//
// The file is a protocol buffer (sentencepiece_model.proto): fields of a number and a kind, 0 a number in groups of 7
// bits, 1 and 5 eight and four bytes, 2 a length and as many bytes. It is a stranger's: every length is checked.
//
// The replacements are a double-array trie of 32-bit units and a list of strings: unit u of a node holds in its low
// byte the byte that leads to it, in bit 8 whether a text ends here (then its first child holds where the replacement
// stands), and where its children are (unigram_children).
//
// The sums are float, as in the original: where two ways are nearly equal, rounding decides, and it must decide alike.
// Look next at common/models/t5.h, which reads the numbers.
#pragma once
#include <math.h>

// defines: file_map, file_fail
#include "common/files/file_map.h"
// defines: text_table_t, text_table_entry, text_table_find, text_table_add
#include "common/text/text_table.h"
// defines: utf8_next
#include "common/text/utf8.h"
// defines: HASH_START, hash_word
#include "common/program/hash.h"

typedef enum {
    PIECE_NORMAL = 1, PIECE_UNKNOWN, PIECE_CONTROL, PIECE_USER_DEFINED, PIECE_UNUSED, PIECE_BYTE,
} unigram_kind_t;

enum { UNIGRAM_LONGEST = 1024 }; // bytes of a piece; T5's have up to 20

typedef struct {
    const unsigned char* text; // in the file
    size_t length;
    float score;
    unigram_kind_t kind;
} unigram_piece_t;

typedef struct {
    unsigned char* file;       // a copy, which pieces and replacements lie in
    unigram_piece_t* pieces;   // (n)
    int n;
    int unknown, end;          // numbers of the pieces
    size_t longest;            // bytes of the longest piece that texts are cut into
    float least, most;         // scores of the pieces of kind NORMAL
    int user_defined;          // are there such pieces? They are not normalised
    int dummy_prefix, one_blank, escape; // of the normaliser: a blank in front; runs become one; blanks are U+2581
    int model_type;            // 1: unigram
    const unsigned char* trie; // (units) of 4 bytes, any alignment; NULL: nothing is replaced
    size_t units;
    const unsigned char* strings; // (strings_size), ends with a 0
    size_t strings_size;
    text_table_t table;        // from a piece to its number
} unigram_t;

// ---------------------------------------------------------------------------------------------------------------------
// The file

typedef struct {
    const unsigned char *at, *end;
    int failed; // a length or number that does not fit: nothing behind it is read
} unigram_reader_t;

static inline uint64_t unigram_varint(unigram_reader_t* r) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && r->at < r->end; shift += 7) {
        unsigned char byte = *r->at++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) return value;
    }
    r->failed = 1;
    return 0;
}

// The next field's number, or 0 at the end; its value is `number`, or the bytes of `inner`.
static inline int unigram_field(unigram_reader_t* r, uint64_t* number, unigram_reader_t* inner) {
    if (r->failed || r->at == r->end) return 0;
    uint64_t key = unigram_varint(r);
    int kind = (int)(key & 7);
    *number = 0;
    inner->at = inner->end = r->at;
    inner->failed = 0;
    if (kind == 0) {
        *number = unigram_varint(r);
    } else {
        uint64_t size = kind == 2 ? unigram_varint(r) : kind == 1 ? 8 : 4;
        if ((kind != 1 && kind != 2 && kind != 5) || size > (uint64_t)(r->end - r->at)) r->failed = 1;
        if (r->failed) return 0;
        inner->at = r->at;
        inner->end = r->at += size;
        if (kind != 2) memcpy(number, inner->at, (size_t)size);
    }
    if (key >> 3 == 0 || key >> 3 > 1 << 29) r->failed = 1;
    return r->failed ? 0 : (int)(key >> 3);
}

static inline int unigram_read_piece(unigram_t* t, unigram_reader_t r, char* error, size_t error_size) {
    unigram_piece_t piece = {NULL, 0, 0, PIECE_NORMAL};
    unigram_reader_t inner;
    uint64_t number, kind = PIECE_NORMAL;
    for (int field; (field = unigram_field(&r, &number, &inner)) != 0;) {
        if (field == 1) piece.text = inner.at, piece.length = (size_t)(inner.end - inner.at);
        if (field == 2) memcpy(&piece.score, &number, sizeof piece.score);
        if (field == 3) kind = number;
    }
    if (r.failed || piece.length == 0 || piece.length > UNIGRAM_LONGEST || !isfinite(piece.score) || kind < 1 ||
        kind > PIECE_BYTE) {
        return file_fail(error, error_size, "piece %d is damaged", t->n);
    }
    piece.kind = (unigram_kind_t)kind;
    t->pieces[t->n++] = piece;
    return 1;
}

static inline int unigram_read_normaliser(unigram_t* t, unigram_reader_t r, char* error, size_t error_size) {
    unigram_reader_t inner, map = {NULL, NULL, 0};
    uint64_t number;
    for (int field; (field = unigram_field(&r, &number, &inner)) != 0;) {
        if (field == 2) map = inner;
        if (field == 3) t->dummy_prefix = number != 0;
        if (field == 4) t->one_blank = number != 0;
        if (field == 5) t->escape = number != 0;
    }
    if (r.failed) return file_fail(error, error_size, "the normaliser is damaged");
    size_t size = (size_t)(map.end - map.at), bytes = 0;
    if (size == 0) return 1;
    if (size > 4) bytes = (size_t)file_number(map.at, 4);
    if (bytes == 0 || bytes % 4 || bytes > size - 4 || bytes == size - 4 || map.end[-1] != 0) {
        return file_fail(error, error_size, "the normaliser's replacements are damaged");
    }
    t->trie = map.at + 4;
    t->units = bytes / 4;
    t->strings = t->trie + bytes;
    t->strings_size = size - 4 - bytes;
    return 1;
}

static inline int unigram_read_trainer(unigram_t* t, unigram_reader_t r, char* error, size_t error_size) {
    unigram_reader_t inner;
    uint64_t number;
    for (int field; (field = unigram_field(&r, &number, &inner)) != 0;) {
        if (field == 3) t->model_type = (int)number;
    }
    return r.failed ? file_fail(error, error_size, "the description of its training is damaged") : 1;
}

// Puts the pieces into the table and takes what all of them say.
static inline int unigram_index(unigram_t* t, char* error, size_t error_size) {
    t->unknown = t->end = -1;
    t->least = INFINITY;
    t->most = -INFINITY;
    text_table_begin(&t->table, (size_t)t->n);
    for (int i = 0; i < t->n; i++) {
        const unigram_piece_t* p = &t->pieces[i];
        if (!text_table_add(&t->table, p->text, p->length, i)) {
            return file_fail(error, error_size, "piece %d (%.*s) is there twice", i, (int)p->length,
                             (const char*)p->text);
        }
        if (p->kind == PIECE_UNKNOWN && t->unknown >= 0) return file_fail(error, error_size, "it has two unknown pieces");
        if (p->kind == PIECE_UNKNOWN) t->unknown = i;
        if (p->kind == PIECE_CONTROL && p->length == 4 && !memcmp(p->text, "</s>", 4)) t->end = i;
        if (p->kind == PIECE_USER_DEFINED) t->user_defined = 1;
        if (p->kind == PIECE_NORMAL) t->least = fminf(t->least, p->score), t->most = fmaxf(t->most, p->score);
        int cut_into = p->kind == PIECE_NORMAL || p->kind == PIECE_USER_DEFINED;
        if (cut_into && p->length > t->longest) t->longest = p->length;
    }
    if (t->model_type != 1) return file_fail(error, error_size, "its model is of type %d, not unigram", t->model_type);
    if (t->unknown < 0 || t->end < 0) return file_fail(error, error_size, "it has no unknown piece, or no </s>");
    return isfinite(t->least) ? 1 : file_fail(error, error_size, "it has no pieces");
}

// Reads a file in memory. 1, or 0 with a message; unigram_close frees it in both cases.
static inline int unigram_parse(unigram_t* t, const unsigned char* bytes, size_t size, char* error, size_t error_size) {
    memset(t, 0, sizeof *t);
    t->dummy_prefix = t->one_blank = t->escape = t->model_type = 1;
    t->file = (unsigned char*)malloc_check(size, "a tokenizer's file");
    memcpy(t->file, bytes, size);
    t->pieces = (unigram_piece_t*)malloc_check((size / 5 + 1) * sizeof(unigram_piece_t), "a tokenizer's pieces");
    unigram_reader_t r = {t->file, t->file + size, 0}, inner;
    uint64_t number;
    int right = 1;
    for (int field; right && (field = unigram_field(&r, &number, &inner));) {
        if (field == 1) right = unigram_read_piece(t, inner, error, error_size);
        if (field == 2) right = unigram_read_trainer(t, inner, error, error_size);
        if (field == 3) right = unigram_read_normaliser(t, inner, error, error_size);
    }
    if (right && r.failed) {
        return file_fail(error, error_size, "it is damaged at byte %zu, or no SentencePiece model",
                         (size_t)(r.at - t->file));
    }
    return right && unigram_index(t, error, error_size);
}

static inline void unigram_close(unigram_t* t) {
    free(t->file);
    free(t->pieces);
    text_table_free(&t->table);
    memset(t, 0, sizeof *t);
}

// Opens a file; what is wrong with it ends the program.
static inline void unigram_open(unigram_t* t, const char* path) {
    char error[512];
    size_t size;
    void* map = file_map(path, "a SentencePiece model (T5's spiece.model)", &size, error, sizeof error);
    if (!map || !unigram_parse(t, (const unsigned char*)map, size, error, sizeof error)) {
        fatal("%s: %s; give T5's spiece.model as it was published", path, error);
    }
    munmap(map, size);
}

// ---------------------------------------------------------------------------------------------------------------------
// Normalising

// A place in memory and its bytes.
typedef struct { const unsigned char* at; size_t length; } unigram_span_t;

static inline uint32_t unigram_unit(const unigram_t* t, size_t node) {
    return node < t->units ? (uint32_t)file_number(t->trie + 4 * node, 4) : 0x80000000u; // which no byte leads to
}
static inline size_t unigram_children(uint32_t unit) { return (size_t)(unit >> 10) << ((unit & 0x200) >> 6); }

// The longest text of the table of replacements that stands here: its length, or 0, and what replaces it.
static inline size_t unigram_replacement(const unigram_t* t, unigram_span_t text, unigram_span_t* replacement) {
    size_t longest = 0, node = unigram_children(unigram_unit(t, 0));
    for (size_t i = 0; t->units && i < text.length; i++) {
        node ^= text.at[i];
        uint32_t unit = unigram_unit(t, node);
        if ((unit & 0x800000FF) != text.at[i]) break;
        node ^= unigram_children(unit);
        size_t value = unigram_unit(t, node) & 0x7FFFFFFF;
        if (!(unit >> 8 & 1) || value >= t->strings_size) continue;
        longest = i + 1;
        replacement->at = t->strings + value;
        replacement->length = strlen((const char*)replacement->at);
    }
    return longest;
}

// The longest piece of kind USER_DEFINED that stands here; 0: none.
static inline size_t unigram_user_defined(const unigram_t* t, unigram_span_t text) {
    size_t longest = 0;
    for (size_t length = 1; t->user_defined && length <= t->longest && length <= text.length; length++) {
        int id = text_table_find(&t->table, text.at, length);
        if (id >= 0 && t->pieces[id].kind == PIECE_USER_DEFINED) longest = length;
    }
    return longest;
}

// What the beginning of the text becomes; returns how many bytes of the text that is.
static inline size_t unigram_next(const unigram_t* t, unigram_span_t text, unigram_span_t* out) {
    static const unsigned char invalid[] = "\xEF\xBF\xBD"; // U+FFFD
    uint32_t code;
    size_t length = unigram_user_defined(t, text);
    if (!length && (length = unigram_replacement(t, text, out))) return length;
    if (!length) length = (size_t)utf8_next(text.at, text.length, &code);
    out->at = length == 1 && text.at[0] >= 0x80 ? invalid : text.at;
    out->length = out->at == invalid ? 3 : length;
    return length;
}

// A string of bytes that grows.
typedef struct { unsigned char* text; size_t length, capacity; } unigram_text_t;
static inline void unigram_put(unigram_text_t* t, const void* bytes, size_t n) {
    if (t->length + n > t->capacity) {
        t->capacity = 2 * (t->length + n) + 64;
        t->text = (unsigned char*)realloc(t->text, t->capacity);
        if (!t->text) fatal("no memory for a text of %zu bytes; give a shorter one", t->capacity);
    }
    memcpy(t->text + t->length, bytes, n);
    t->length += n;
}

static inline const char* unigram_blank(const unigram_t* t) { return t->escape ? "\xE2\x96\x81" : " "; } // U+2581
static inline void unigram_put_blank(const unigram_t* t, unigram_text_t* out) {
    unigram_put(out, unigram_blank(t), strlen(unigram_blank(t)));
}

// The normalised text, to be freed; empty where the text is nothing but blanks.
static inline unigram_text_t unigram_normalise(const unigram_t* t, const char* text) {
    unigram_text_t out = {NULL, 0, 0};
    unigram_span_t rest = {(const unsigned char*)text, strlen(text)}, piece;
    int begun = 0, behind_blank = t->one_blank;
    while (rest.length) {
        size_t taken = unigram_next(t, rest, &piece);
        rest.at += taken;
        rest.length -= taken;
        int blank = piece.length == 1 && piece.at[0] == ' ';
        if (!begun && t->one_blank && blank) continue;
        if (!begun && t->dummy_prefix) unigram_put_blank(t, &out);
        begun = 1;
        while (behind_blank && piece.length && piece.at[0] == ' ') piece.at++, piece.length--;
        for (size_t i = 0; i < piece.length; i++) {
            if (piece.at[i] == ' ') unigram_put_blank(t, &out);
            else unigram_put(&out, piece.at + i, 1);
        }
        if (piece.length) behind_blank = t->one_blank && piece.at[piece.length - 1] == ' ';
    }
    const char* blank = unigram_blank(t);
    size_t n = strlen(blank);
    while (t->one_blank && out.length >= n && !memcmp(out.text + out.length - n, blank, n)) out.length -= n;
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// Segmenting

// The best way to a place: by which piece, which begins where; `id` -1: none yet.
typedef struct { float score; int id; size_t from; } unigram_way_t;

static inline void unigram_offer(unigram_way_t* way, float score, int id, size_t from) {
    if (way->id >= 0 && score <= way->score) return; // the earlier of two equal ones stays
    way->score = score;
    way->id = id;
    way->from = from;
}

// Continues the best way to `from` by all pieces that stand there, and by one character of `length` bytes.
static inline void unigram_continue(const unigram_t* t, const unigram_text_t* text, unigram_way_t* ways, size_t from,
                                    size_t length) {
    int whole = 0; // is the character itself a piece?
    uint64_t hash = HASH_START;
    for (size_t n = 1; n <= t->longest && from + n <= text->length; n++) {
        hash = hash_word(hash, (unsigned char)text->text[from + n - 1]);
        const text_entry_t* entry = text_table_entry(&t->table, text->text + from, n, hash);
        if (!entry->key) continue;
        const unigram_piece_t* p = &t->pieces[entry->value];
        if (p->kind != PIECE_NORMAL && p->kind != PIECE_USER_DEFINED) continue;
        float score = p->kind == PIECE_USER_DEFINED ? (float)((float)n * t->most - 0.1) : p->score;
        unigram_offer(&ways[from + n], ways[from].score + score, entry->value, from);
        whole |= n == length;
    }
    if (!whole) unigram_offer(&ways[from + length], ways[from].score + (t->least - 10), t->unknown, from);
}

// The numbers of a text and the mark of the end; what is too long is cut, and the mark of the end stays. Returns how
// many there are; behind them are zeros, T5's padding.
static inline int unigram_encode(const unigram_t* t, const char* text, int* ids, int length) { // (length), 1 or more
    unigram_text_t out = unigram_normalise(t, text);
    unigram_way_t* ways = (unigram_way_t*)malloc_check((out.length + 1) * sizeof(unigram_way_t), "a text's pieces");
    int* found = (int*)malloc_check((out.length + 1) * sizeof(int), "a text's pieces"); // from the last on
    uint32_t code;
    for (size_t i = 0; i <= out.length; i++) ways[i].id = -1;
    ways[0].score = 0;
    for (size_t at = 0; at < out.length;) {
        size_t character = (size_t)utf8_next(out.text + at, out.length - at, &code);
        unigram_continue(t, &out, ways, at, character);
        at += character;
    }
    int n = 0, count = 0;
    for (size_t at = out.length; at > 0; at = ways[at].from) {
        int doubled = ways[at].id == t->unknown && n && found[n - 1] == t->unknown;
        if (!doubled) found[n++] = ways[at].id;
    }
    while (n > 0 && count < length - 1) ids[count++] = found[--n];
    ids[count++] = t->end;
    for (int i = count; i < length; i++) ids[i] = 0;
    free(found);
    free(ways);
    free(out.text);
    return count;
}
