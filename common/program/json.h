// json.h: JSON as the headers of safetensors files and saved configurations need it: a text that grows, and a reader.
//
// The text is a string to which pieces and quoted strings are added. The reader walks a text once, from left to right:
// the caller asks for what it expects (a key, a string, a number), and skips what it does not know. The text is a
// stranger's, so each escape, number and bound is checked; a failure is noted once, with the place, and all later calls
// do nothing.
// Look next at common/files/safetensors.h and common/program/cli.h, its two users.
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// defines: fatal
#include "common/program/log.h"

// ------------------------------------------------------------------------------------------------------------------
// JSON text: a string that grows

typedef struct {
    char* text; // ends with NUL; NULL while nothing has been added
    size_t length, capacity;
} json_text_t;

// Makes room for `more` bytes and the closing NUL.
static inline void json_reserve(json_text_t* t, size_t more) {
    if (t->length + more + 1 <= t->capacity) return;
    t->capacity = 2 * t->capacity + more + 64;
    t->text = (char*)realloc(t->text, t->capacity);
    if (!t->text) fatal("no memory for a text of %zu bytes; free memory and start again", t->capacity);
}

// Adds text as printf would print it.
__attribute__((format(printf, 2, 3))) static inline void json_append(json_text_t* t, const char* format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    json_reserve(t, (size_t)n);
    va_start(args, format);
    vsnprintf(t->text + t->length, (size_t)n + 1, format, args);
    va_end(args);
    t->length += (size_t)n;
}

static inline void json_text_free(json_text_t* t) {
    free(t->text);
    memset(t, 0, sizeof *t);
}

// Length in bytes of the UTF-8 character at p, or 0 where none stands (overlong forms and surrogates are none).
static inline int json_utf8_length(const unsigned char* p, size_t available) {
    if (p[0] < 0x80) return 1;
    int n = p[0] >= 0xF0 ? 4 : p[0] >= 0xE0 ? 3 : 2;
    if (p[0] < 0xC2 || p[0] > 0xF4 || available < (size_t)n) return 0;
    for (int i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80) return 0;
    }
    int overlong = (p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xF0 && p[1] < 0x90);
    int surrogate = p[0] == 0xED && p[1] > 0x9F;
    int beyond = p[0] == 0xF4 && p[1] > 0x8F;
    return overlong || surrogate || beyond ? 0 : n;
}

// Adds `s` as a JSON string with its quotes. Bytes that are no UTF-8 become U+FFFD: JSON has no way to hold them.
static inline void json_append_string(json_text_t* t, const char* s) {
    const unsigned char* p = (const unsigned char*)s;
    const unsigned char* end = p + strlen(s);
    json_append(t, "\"");
    while (p < end) {
        int n = json_utf8_length(p, (size_t)(end - p));
        if (n == 0) json_append(t, "\\ufffd");
        else if (*p == '"' || *p == '\\') json_append(t, "\\%c", *p);
        else if (*p < 0x20) json_append(t, "\\u%04x", *p);
        else json_append(t, "%.*s", n, (const char*)p);
        p += n ? n : 1;
    }
    json_append(t, "\"");
}

// ------------------------------------------------------------------------------------------------------------------
// JSON reader: a cursor over a text. The first error stays, and every later call does nothing, so that a caller reads
// on without a check after each step and asks `failed` at the end.

typedef struct {
    const unsigned char* begin;
    const unsigned char* at;
    const unsigned char* end;
    char* strings;   // decoded strings go here; a buffer as long as the text holds them all
    char where[256]; // what is being read, for messages
    char* error;     // receives the message
    size_t error_size;
    int failed;
} json_reader_t;

// Notes the first error as "where: message", with control characters of hostile names made harmless for terminals.
__attribute__((format(printf, 2, 3))) static inline void json_fail(json_reader_t* r, const char* format, ...) {
    if (r->failed) return;
    r->failed = 1;
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    snprintf(r->error, r->error_size, "%s: %s", r->where, message);
    for (char* c = r->error; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7F) *c = '?';
    }
}

__attribute__((format(printf, 2, 3))) static inline void json_where(json_reader_t* r, const char* format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(r->where, sizeof r->where, format, args);
    va_end(args);
}

static inline size_t json_position(const json_reader_t* r) { return (size_t)(r->at - r->begin); }

static inline void json_fail_wanted(json_reader_t* r, const char* wanted) {
    if (r->at == r->end) json_fail(r, "the text ends at byte %zu where %s is wanted", json_position(r), wanted);
    else json_fail(r, "byte %zu is 0x%02x where %s is wanted", json_position(r), *r->at, wanted);
}

static inline void json_skip_space(json_reader_t* r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\r' || *r->at == '\t')) r->at++;
}

// The next character that is no white space, without taking it; 0 at the end and after an error.
static inline int json_peek(json_reader_t* r) {
    if (r->failed) return 0;
    json_skip_space(r);
    return r->at < r->end ? *r->at : 0;
}

static inline void json_expect(json_reader_t* r, char c) {
    char wanted[4] = {'\'', c, '\'', 0};
    if (r->failed) return;
    if (json_peek(r) == c) r->at++;
    else json_fail_wanted(r, wanted);
}

// What some editors put before a text in UTF-8, the byte order mark, counts as white space there.
static inline void json_skip_mark(json_reader_t* r) {
    if (r->end - r->at >= 3 && !memcmp(r->at, "\xEF\xBB\xBF", 3)) r->at += 3;
}

// The loop over the members of an object or array whose opening bracket has been taken:
//     for (int first = 1; json_more(&r, '}', first); first = 0) { key = json_key(&r); ...read the value... }
static inline int json_more(json_reader_t* r, char close, int first) {
    if (r->failed) return 0;
    if (json_peek(r) == close) {
        r->at++;
        return 0;
    }
    if (!first) json_expect(r, ',');
    return !r->failed;
}

// The text must end here, apart from white space.
static inline void json_end(json_reader_t* r) {
    if (r->failed) return;
    json_skip_space(r);
    if (r->at < r->end) json_fail_wanted(r, "the end of the text");
}

static inline unsigned json_hex4(json_reader_t* r) {
    unsigned value = 0;
    for (int i = 0; i < 4 && !r->failed; i++) {
        int c = r->at < r->end ? *r->at : 0;
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) {
            json_fail_wanted(r, "a hexadecimal digit");
            break;
        }
        value = value * 16 + (unsigned)digit;
        r->at++;
    }
    return value;
}

// \uXXXX, or two of them that form a surrogate pair, as UTF-8.
static inline void json_unicode_escape(json_reader_t* r) {
    unsigned c = json_hex4(r);
    if (c >= 0xD800 && c < 0xDC00 && r->end - r->at >= 2 && r->at[0] == '\\' && r->at[1] == 'u') {
        r->at += 2;
        unsigned low = json_hex4(r);
        c = low >= 0xDC00 && low < 0xE000 ? 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00) : 0xD800;
    }
    if (c == 0) json_fail(r, "a string holds the character NUL (before byte %zu)", json_position(r));
    if (c >= 0xD800 && c < 0xE000) json_fail(r, "half of a surrogate pair stands before byte %zu", json_position(r));
    if (r->failed) return;
    if (c < 0x80) {
        *r->strings++ = (char)c;
        return;
    }
    int followers = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    unsigned lead = followers == 1 ? 0xC0 : followers == 2 ? 0xE0 : 0xF0;
    *r->strings++ = (char)(lead | (c >> (6 * followers)));
    while (followers--) *r->strings++ = (char)(0x80 | ((c >> (6 * followers)) & 0x3F));
}

// What follows a backslash.
static inline void json_escape(json_reader_t* r) {
    const char* letters = "\"\\/bfnrt";
    const char* meanings = "\"\\/\b\f\n\r\t";
    const char* letter = r->at < r->end && *r->at ? strchr(letters, *r->at) : NULL;
    if (letter) {
        *r->strings++ = meanings[letter - letters];
        r->at++;
    } else if (r->at < r->end && *r->at == 'u') {
        r->at++;
        json_unicode_escape(r);
    } else {
        json_fail_wanted(r, "one of the escapes \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\u");
    }
}

// A string, decoded. "" after an error. A decoded string and its NUL need no more room than the text with its quotes.
static inline const char* json_string(json_reader_t* r) {
    json_expect(r, '"');
    if (r->failed) return "";
    const char* start = r->strings;
    for (;;) {
        int c = r->at < r->end ? *r->at : -1;
        int n = c < 0x20 ? 0 : json_utf8_length(r->at, (size_t)(r->end - r->at));
        if (n == 0) json_fail_wanted(r, "a string's end or its next UTF-8 character");
        if (r->failed) return "";
        r->at += n;
        if (c == '"') break;
        if (c == '\\') {
            json_escape(r);
        } else {
            memcpy(r->strings, r->at - n, (size_t)n);
            r->strings += n;
        }
    }
    *r->strings++ = 0;
    return start;
}

// The name of an object's member and its colon.
static inline const char* json_key(json_reader_t* r) {
    const char* key = json_string(r);
    json_expect(r, ':');
    return r->failed ? "" : key;
}

static inline void json_digits(json_reader_t* r) {
    if (r->at == r->end || *r->at < '0' || *r->at > '9') json_fail_wanted(r, "a digit");
    while (!r->failed && r->at < r->end && *r->at >= '0' && *r->at <= '9') r->at++;
}

// A number, as the text that stands there. It fits among the strings because a comma or bracket must follow it.
static inline const char* json_number(json_reader_t* r) {
    if (r->failed) return "";
    json_skip_space(r);
    const unsigned char* start = r->at;
    if (r->at < r->end && *r->at == '-') r->at++;
    const unsigned char* first_digit = r->at;
    json_digits(r);
    if (!r->failed && *first_digit == '0' && r->at - first_digit > 1) json_fail(r, "a number begins with a needless 0");
    if (!r->failed && r->at < r->end && *r->at == '.') {
        r->at++;
        json_digits(r);
    }
    if (!r->failed && r->at < r->end && (*r->at | 32) == 'e') {
        r->at++;
        if (r->at < r->end && (*r->at == '+' || *r->at == '-')) r->at++;
        json_digits(r);
    }
    if (!r->failed && r->at == r->end) json_fail_wanted(r, "a comma or bracket");
    if (r->failed) return "";
    char* text = r->strings;
    size_t length = (size_t)(r->at - start);
    memcpy(text, start, length);
    text[length] = 0;
    r->strings += length + 1;
    return text;
}

// A non-negative integer that fits a size_t; "1.0" and "1e3" are none.
static inline size_t json_size(json_reader_t* r) {
    const char* text = json_number(r);
    size_t value = 0;
    for (const char* c = text; *c && !r->failed; c++) {
        if (*c < '0' || *c > '9') json_fail(r, "%.40s is no non-negative whole number", text);
        else if (__builtin_mul_overflow(value, (size_t)10, &value) ||
                 __builtin_add_overflow(value, (size_t)(*c - '0'), &value)) {
            json_fail(r, "%.40s is too large a number", text);
        }
    }
    return value;
}

// Any value, checked and dropped.
static inline void json_skip_value(json_reader_t* r, int depth) {
    int c = json_peek(r);
    if (depth > 32) {
        json_fail(r, "values are nested deeper than 32 levels at byte %zu", json_position(r));
    } else if (c == '"') {
        json_string(r);
    } else if (c == '{' || c == '[') {
        char close = c == '{' ? '}' : ']';
        r->at++;
        for (int first = 1; json_more(r, close, first); first = 0) {
            if (c == '{') json_key(r);
            json_skip_value(r, depth + 1);
        }
    } else if (c == 't' || c == 'f' || c == 'n') {
        const char* word = c == 't' ? "true" : c == 'f' ? "false" : "null";
        size_t length = strlen(word);
        if ((size_t)(r->end - r->at) < length || memcmp(r->at, word, length)) json_fail_wanted(r, "a value");
        else r->at += length;
    } else {
        json_number(r);
    }
}
