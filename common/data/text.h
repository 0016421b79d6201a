// text.h: letters on pictures, in a bitmap font drawn for this project: labels of picture grids and of charts.
//
// A glyph has 9 rows of up to 5 columns: 7 rows above the baseline, as high as a capital, and 2 below for g, j, p, q,
// y. It is kept in 45 bits, row by row from the top, the left column first; all of printable ASCII (32 to 126) and a
// box for anything else (one for each character of a UTF-8 text, not one for each byte). Letters are as wide as their
// ink and one empty column follows each; digits are all 5 wide, so that numbers stand in columns.
//
// A larger scale draws every dot of the glyph as a square of scale x scale pixels. Slanted strokes would become stairs;
// so where two dots touch only at a corner, the two empty dots at that corner are filled half a dot deep, as teletext
// decoders round their characters:
//      . #      the corner in the middle gets the triangle          at (dx, dy) from it: the cover is
//      # .      |dx| + |dy| < scale / 2 in both empty dots          scale / 2 - |dx| - |dy| + 1/2, clamped to [0, 1]
// Pixels outside of the picture are left out. Look next at common/data/chart.h.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

// defines: image_t
#include "common/data/image.h"

#define TEXT_HEIGHT 7 // rows from the top of a capital to the baseline
#define TEXT_DEPTH 2  // rows below the baseline

enum { TEXT_ROWS = TEXT_HEIGHT + TEXT_DEPTH, TEXT_COLUMNS = 5, TEXT_SPACE = 3, TEXT_FIRST = 32, TEXT_BOX = 127 };

static const uint64_t text_font[TEXT_BOX - TEXT_FIRST + 1] = {
    0x000000000000ull, 0x108421004000ull, 0x14a500000000ull, 0x0a57d5f52800ull, 0x047d1c5f1000ull, //   ! " # $
    0x19c88889cc00ull, 0x0c9511593400ull, 0x108000000000ull, 0x044421041000ull, 0x104108444000ull, // % & ' ( )
    0x00255d520000ull, 0x00213e420000ull, 0x000000002110ull, 0x000038000000ull, 0x000000004000ull, // * + , - .
    0x010888884000ull, 0x0e8c6318b800ull, 0x046108423800ull, 0x0e8844447c00ull, 0x0e884c18b800ull, // / 0 1 2 3
    0x0232a5f10800ull, 0x1f878218b800ull, 0x06443d18b800ull, 0x1f0884421000ull, 0x0e8c5d18b800ull, // 4 5 6 7 8
    0x0e8c5e113000ull, 0x000400080000ull, 0x000200042200ull, 0x022220820800ull, 0x0007c1f00000ull, // 9 : ; < =
    0x104104444000ull, 0x0e8844401000ull, 0x0e8deb783800ull, 0x0e8c7f18c400ull, 0x1e8c7d18f800ull, // > ? @ A B
    0x0e8c2108b800ull, 0x1e8c6318f800ull, 0x1f843d087c00ull, 0x1f843d084000ull, 0x0e8c2f18b800ull, // C D E F G
    0x118c7f18c400ull, 0x1c4210847000ull, 0x07084218b800ull, 0x119531494400ull, 0x108421087c00ull, // H I J K L
    0x11dd6b18c400ull, 0x118e6b38c400ull, 0x0e8c6318b800ull, 0x1e8c7d084000ull, 0x0e8c63593400ull, // M N O P Q
    0x1e8c7d494400ull, 0x0f841c10f800ull, 0x1f2108421000ull, 0x118c6318b800ull, 0x118c54a51000ull, // R S T U V
    0x118c6b5dc400ull, 0x118a88a8c400ull, 0x118a88421000ull, 0x1f0888887c00ull, 0x1c8421087000ull, // W X Y Z [
    0x108208208400ull, 0x1c2108427000ull, 0x045440000000ull, 0x0000000003e0ull, 0x104000000000ull, // \ ] ^ _ `
    0x000382f8bc00ull, 0x1085b318f800ull, 0x0003a108b800ull, 0x010b6718bc00ull, 0x0003a3f83800ull, // a b c d e
    0x064790842000ull, 0x0003e318bc2eull, 0x1085b318c400ull, 0x100421084000ull, 0x040108421098ull, // f g h i j
    0x1084a98a4800ull, 0x108421082000ull, 0x0006ab5ad400ull, 0x0005b318c400ull, 0x0003a318b800ull, // k l m n o
    0x0007a318fa10ull, 0x0003e318bc21ull, 0x0005b1084000ull, 0x0003e0e0f800ull, 0x084790841800ull, // p q r s t
    0x00046319b400ull, 0x000462a51000ull, 0x0004635aa800ull, 0x000454454400ull, 0x00046317842eull, // u v w x y
    0x0007c4447c00ull, 0x064220841800ull, 0x108421084210ull, 0x182104426000ull, 0x00022a200000ull, // z { | } ~
    0x1f8c6318fc00ull, // a box
};

// Colours are 0xRRGGBB.

// Mixes `cover` (0 to 1) of a colour into a pixel; does nothing outside of the picture.
static inline void image_blend(image_t* image, int x, int y, uint32_t colour, double cover) {
    if (x < 0 || y < 0 || x >= image->width || y >= image->height) return;
    uint8_t* pixel = image->pixels + ((size_t)y * image->width + x) * 3;
    for (int c = 0; c < 3; c++) {
        double target = colour >> (16 - 8 * c) & 255;
        pixel[c] = (uint8_t)(pixel[c] + cover * (target - pixel[c]) + 0.5);
    }
}

static inline int text_dot(uint64_t glyph, int row, int column) {
    if (row < 0 || column < 0 || row >= TEXT_ROWS || column >= TEXT_COLUMNS) return 0;
    return glyph >> (TEXT_ROWS * TEXT_COLUMNS - 1 - row * TEXT_COLUMNS - column) & 1;
}

// The index of the next character's glyph, or -1 at the end; `text` moves on behind the character.
static inline int text_next(const char** text) {
    unsigned char c = (unsigned char)*(*text);
    if (!c) return -1;
    ++*text;
    if (c >= TEXT_FIRST && c < TEXT_BOX) return c - TEXT_FIRST;
    while (c >= 0xC0 && ((unsigned char)**text & 0xC0) == 0x80) ++*text; // the other bytes of one UTF-8 character
    return TEXT_BOX - TEXT_FIRST;
}

// Columns of a glyph without the empty one behind it.
static inline int text_columns(int index) {
    if (index >= '0' - TEXT_FIRST && index <= '9' - TEXT_FIRST) return TEXT_COLUMNS;
    for (int column = TEXT_COLUMNS - 1; column >= 0; column--) {
        for (int row = 0; row < TEXT_ROWS; row++) {
            if (text_dot(text_font[index], row, column)) return column + 1;
        }
    }
    return TEXT_SPACE;
}

// Pixels from the left of the first letter to the right of the last; 0 for an empty text.
static inline int text_width(int scale, const char* text) {
    int columns = 0;
    for (int index; (index = text_next(&text)) >= 0;) columns += text_columns(index) + 1;
    return columns ? (columns - 1) * scale : 0;
}

// How much of pixel (u, v) of a glyph, counted from its top left corner, is ink.
static inline double text_cover(uint64_t glyph, int scale, int u, int v) {
    int column = u / scale, row = v / scale;
    if (text_dot(glyph, row, column)) return 1;
    double cover = 0;
    for (int corner = 0; corner < 4; corner++) {
        int right = corner & 1, below = corner >> 1;
        int side = text_dot(glyph, row, column + 2 * right - 1);
        int other = text_dot(glyph, row + 2 * below - 1, column);
        int opposite = text_dot(glyph, row + 2 * below - 1, column + 2 * right - 1);
        if (!side || !other || opposite) continue;
        double dx = fabs(u + 0.5 - (column + right) * scale), dy = fabs(v + 0.5 - (row + below) * scale);
        cover = fmax(cover, fmin(1, 0.5 * scale - dx - dy + 0.5));
    }
    return cover;
}

// One line of text. Upright: (x, y) is the top left corner of its capitals. Turned: it runs upwards from (x, y), the
// tops of its capitals at column x, its first letter ending above row y.
static inline void text_place(image_t* image, int x, int y, int scale, uint32_t colour, const char* text, int turned) {
    int start = 0;
    for (int index; (index = text_next(&text)) >= 0;) {
        int columns = text_columns(index);
        for (int v = 0; v < TEXT_ROWS * scale; v++) {
            for (int u = 0; u < columns * scale; u++) {
                double cover = text_cover(text_font[index], scale, u, v);
                if (cover <= 0) continue;
                if (turned) image_blend(image, x + v, y - 1 - start - u, colour, cover);
                else image_blend(image, x + start + u, y + v, colour, cover);
            }
        }
        start += (columns + 1) * scale;
    }
}

static inline void text_draw(image_t* image, int x, int y, int scale, uint32_t colour, const char* text) {
    text_place(image, x, y, scale, colour, text, 0);
}

// As text_draw, read from the bottom to the top: the name of a vertical axis.
static inline void text_draw_turned(image_t* image, int x, int y, int scale, uint32_t colour, const char* text) {
    text_place(image, x, y, scale, colour, text, 1);
}

// Copies `text` to `out`, at most `width` pixels wide and `size` bytes long. One that is too long ends in "..", and
// nothing is left where not even that fits. Returns `out`.
static inline const char* text_cut(char* out, size_t size, int scale, int width, const char* text) {
    size_t length = strlen(text), keep = length;
    for (;; keep--) {
        if (keep == length) snprintf(out, size, "%s", text);
        else snprintf(out, size, "%.*s..", (int)keep, text);
        if ((keep == length ? length : keep + 2) < size && text_width(scale, out) <= width) return out;
        if (keep == 0) break;
    }
    out[0] = 0;
    return out;
}
