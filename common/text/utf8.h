// utf8.h: texts as code points and back. A byte that begins no character (overlong forms and surrogates are none either)
// counts as U+FFFD by itself, so that any bytes at all are a text; sentencepiece has the same rule.
// Look next at common/text/unicode.h.
#pragma once
#include <stddef.h>
#include <stdint.h>

// defines: json_utf8_length
#include "common/program/json.h"

#define UTF8_INVALID 0xFFFDu

// The bytes of the character at `text`, of which `available` are there, at least one; its code point in *code.
static inline int utf8_next(const unsigned char* text, size_t available, uint32_t* code) {
    static const unsigned char first_bits[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    int length = json_utf8_length(text, available);
    *code = UTF8_INVALID;
    if (length == 0) return 1;
    *code = text[0] & first_bits[length];
    for (int i = 1; i < length; i++) *code = *code << 6 | (text[i] & 0x3F);
    return length;
}

// Writes a code point's bytes (at most 4) and returns their number.
static inline int utf8_put(unsigned char* out, uint32_t code) {
    if (code < 0x80) {
        out[0] = (unsigned char)code;
        return 1;
    }
    int length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--, code >>= 6) out[i] = (unsigned char)(0x80 | (code & 0x3F));
    out[0] = (unsigned char)(0xF00 >> length | code);
    return length;
}
