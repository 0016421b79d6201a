// test_image.c: reading every kind of image, refusing damaged ones, resizing, and writing PNG files with text.
//
// The images are made here: by stb_image_write where it can, from bytes below where it cannot (CMYK, progressive, 16
// bits, palette; made once with Pillow 13). Files go to a temporary folder that is removed at the end.
// Look next at common/data/image.h.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// defines: image_t, image_load, image_decode, image_resize_crop, image_grid, image_write_png
#include "common/data/image.h"
// defines: temporary_begin, temporary_path, temporary_read, temporary_write, temporary_end
#include "tests/temporary.h"
// defines: test_begin, test_case, check, check_error, test_uniform, test_end_case, test_finish
#include "tests/test.h"

// 8 x 8, left half red (200, 40, 20), right half blue (20, 60, 180); progressive, no chroma subsampling, quality 60.
// Pillow decodes pixel (3, 1) as (202, 35, 16) and pixel (3, 6) as (20, 66, 188).
static uint8_t progressive_jpeg[530] = {
    255, 216, 255, 224, 0, 16, 74, 70, 73, 70, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 255, 219, 0, 67, 0, 13, 9, 10, 11, 10, 8,
    13, 11, 10, 11, 14, 14, 13, 15, 19, 32, 21, 19, 18, 18, 19, 39, 28, 30, 23, 32, 46, 41, 49, 48, 46, 41, 45, 44,
    51, 58, 74, 62, 51, 54, 70, 55, 44, 45, 64, 87, 65, 70, 76, 78, 82, 83, 82, 50, 62, 90, 97, 90, 80, 96, 74, 81,
    82, 79, 255, 219, 0, 67, 1, 14, 14, 14, 19, 17, 19, 38, 21, 21, 38, 79, 53, 45, 53, 79, 79, 79, 79, 79, 79, 79,
    79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79,
    79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 255, 194, 0, 17, 8, 0, 8, 0, 8, 3, 1, 17, 0, 2, 17, 1,
    3, 17, 1, 255, 196, 0, 20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 255, 196, 0, 20, 1, 1, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 255, 218, 0, 12, 3, 1, 0, 2, 16, 3, 16, 0, 0, 1, 57, 31, 255, 196, 0, 21,
    16, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 255, 218, 0, 8, 1, 1, 0, 1, 5, 2, 167, 255, 196, 0, 22,
    17, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 66, 255, 218, 0, 8, 1, 3, 1, 1, 63, 1, 122, 79, 255,
    196, 0, 22, 17, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 65, 255, 218, 0, 8, 1, 2, 1, 1, 63, 1, 74,
    159, 255, 196, 0, 20, 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 218, 0, 8, 1, 1, 0, 6, 63, 2,
    127, 255, 196, 0, 21, 16, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 65, 255, 218, 0, 8, 1, 1, 0, 1, 63,
    33, 151, 255, 218, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 0, 16, 255, 0, 255, 196, 0, 21, 17, 1, 1, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 193, 0, 255, 218, 0, 8, 1, 3, 1, 1, 63, 16, 98, 255, 196, 0, 21, 17, 1, 1, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 193, 0, 255, 218, 0, 8, 1, 2, 1, 1, 63, 16, 54, 255, 196, 0, 21, 16, 1, 1, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 193, 255, 218, 0, 8, 1, 1, 0, 1, 63, 16, 163, 255, 217};

// 13 x 19, pixel (y, x) about (13 x, 19 y, 128); baseline, chroma halved both ways, restart markers, quality 60.
// Pillow decodes pixel (3, 4) as (60, 52, 138) and pixel (9, 15) as (194, 171, 127).
static uint8_t baseline_jpeg[353] = {
    255, 216, 255, 224, 0, 16, 74, 70, 73, 70, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 255, 219, 0, 67, 0, 13, 9, 10, 11, 10, 8,
    13, 11, 10, 11, 14, 14, 13, 15, 19, 32, 21, 19, 18, 18, 19, 39, 28, 30, 23, 32, 46, 41, 49, 48, 46, 41, 45, 44,
    51, 58, 74, 62, 51, 54, 70, 55, 44, 45, 64, 87, 65, 70, 76, 78, 82, 83, 82, 50, 62, 90, 97, 90, 80, 96, 74, 81,
    82, 79, 255, 219, 0, 67, 1, 14, 14, 14, 19, 17, 19, 38, 21, 21, 38, 79, 53, 45, 53, 79, 79, 79, 79, 79, 79, 79,
    79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79,
    79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 79, 255, 192, 0, 17, 8, 0, 13, 0, 19, 3, 1, 34, 0, 2, 17,
    1, 3, 17, 1, 255, 196, 0, 23, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 6, 3, 255, 196, 0, 29, 16,
    0, 1, 3, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 34, 1, 2, 5, 33, 49, 17, 255, 196, 0, 22, 1, 1, 1, 1, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 2, 5, 255, 196, 0, 28, 17, 0, 2, 1, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 1, 5, 2, 3, 4, 17, 20, 33, 255, 221, 0, 4, 0, 1, 255, 218, 0, 12, 3, 1, 0, 2, 17, 3, 17, 0, 63, 0, 154, 111,
    139, 228, 70, 109, 241, 124, 136, 249, 187, 52, 180, 52, 110, 205, 45, 21, 123, 61, 133, 142, 146, 171, 195, 255,
    208, 206, 220, 92, 105, 16, 44, 173, 102, 159, 148, 0, 157, 236, 220, 82, 111, 71, 255, 217};

// 8 x 8 of full cyan ink (255, 0, 0, 0), in Adobe's inverted form.
static const uint8_t cmyk_jpeg[176] = {
    255, 216, 255, 238, 0, 14, 65, 100, 111, 98, 101, 0, 100, 0, 0, 0, 0, 0, 255, 219, 0, 67, 0, 16, 11, 12, 14, 12,
    10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61, 60, 57, 51, 56,
    55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100,
    120, 92, 101, 103, 99, 255, 192, 0, 20, 8, 0, 8, 0, 8, 4, 67, 17, 0, 77, 17, 0, 89, 17, 0, 75, 17, 0, 255, 196, 0,
    20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 255, 196, 0, 20, 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 255, 218, 0, 14, 4, 67, 0, 77, 0, 89, 0, 75, 0, 0, 63, 0, 63, 32, 16, 8, 15, 255, 217};

// 2 x 2 grey, 16 bits: 0x0000 0x1234 / 0x8000 0xffff.
static const uint8_t grey16_png[75] = {
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 2, 0, 0, 0, 2, 16, 0, 0, 0, 0, 7, 77, 142,
    187, 0, 0, 0, 18, 73, 68, 65, 84, 120, 156, 99, 96, 96, 16, 50, 97, 104, 96, 248, 255, 31, 0, 6, 189, 2, 197, 203,
    206, 58, 56, 0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96, 130};

// 1 x 3 with a palette: blue, green, red.
static const uint8_t palette_png[88] = {
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3, 0, 0, 0, 102, 142,
    252, 39, 0, 0, 0, 9, 80, 76, 84, 69, 255, 0, 0, 0, 255, 0, 0, 0, 255, 45, 74, 205, 138, 0, 0, 0, 10, 73, 68, 65,
    84, 120, 156, 99, 152, 0, 0, 0, 146, 0, 145, 18, 34, 251, 123, 0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96, 130};

// Bytes of a file that is being made.
typedef struct {
    uint8_t* bytes;
    size_t size;
} buffer_t;

static inline void buffer_append(void* context, void* data, int size) {
    buffer_t* buffer = (buffer_t*)context;
    buffer->bytes = (uint8_t*)realloc(buffer->bytes, buffer->size + (size_t)size);
    memcpy(buffer->bytes + buffer->size, data, (size_t)size);
    buffer->size += (size_t)size;
}

enum { KIND_PNG, KIND_BMP, KIND_PPM, KIND_BASELINE, KIND_PROGRESSIVE, KIND_COUNT };

// An image file: smooth noise of that size, or one of the JPEGs above.
static inline buffer_t make_file(int kind, int height, int width, int channels) {
    buffer_t buffer = {NULL, 0};
    size_t n = (size_t)height * width * channels;
    uint8_t* pixels = (uint8_t*)malloc(n);
    for (size_t i = 0; i < n; i++) pixels[i] = (uint8_t)(128 + 100 * sin(0.13 * (double)i) + 20 * test_uniform());
    if (kind == KIND_BASELINE) buffer_append(&buffer, baseline_jpeg, sizeof baseline_jpeg);
    if (kind == KIND_PROGRESSIVE) buffer_append(&buffer, progressive_jpeg, sizeof progressive_jpeg);
    if (kind == KIND_PNG) stbi_write_png_to_func(buffer_append, &buffer, width, height, channels, pixels, 0);
    if (kind == KIND_BMP) stbi_write_bmp_to_func(buffer_append, &buffer, width, height, channels, pixels);
    if (kind == KIND_PPM) {
        char head[32];
        int length = snprintf(head, sizeof head, "P%d\n%d %d\n255\n", channels == 1 ? 5 : 6, width, height);
        buffer_append(&buffer, head, length);
        buffer_append(&buffer, pixels, (int)n);
    }
    free(pixels);
    return buffer;
}

static inline int decodes(const uint8_t* bytes, size_t size) {
    image_t image;
    char error[IMAGE_ERROR_SIZE];
    int loaded = image_decode(&image, bytes, size, "memory", error);
    image_free(&image);
    return loaded;
}

static inline void test_kinds(void) {
    char error[IMAGE_ERROR_SIZE];
    for (int kind = 0; kind < KIND_BASELINE; kind++) {
        for (int size = 1; size < 40; size += 6) {
            buffer_t file = make_file(kind, size, 41 - size, 3);
            image_t image;
            check(image_decode(&image, file.bytes, file.size, "memory", error), "a whole file is read");
            check(image.height == size && image.width == 41 - size, "its size");
            image_free(&image);
            free(file.bytes);
        }
    }
    static const uint8_t commented[] = "P5 # 3 5\n2\n1 255 ab";
    check(decodes(commented, sizeof commented - 1), "a PGM with a comment in its header");
    check(!decodes(commented, sizeof commented - 2), "one byte less is refused");
    check(!decodes((const uint8_t*)"P6 1 1 65535 \1\0\2\0\3\0", 19), "a 16-bit PPM is refused");
}

// Grey becomes RGB; alpha is dropped, whatever it says.
static inline void test_channels(void) {
    static const uint8_t samples[8] = {10, 0, 200, 128, 30, 255, 40, 7};
    char error[IMAGE_ERROR_SIZE];
    for (int channels = 1; channels <= 4; channels++) {
        buffer_t file = {NULL, 0};
        stbi_write_png_to_func(buffer_append, &file, 2, 1, channels, samples, 0);
        image_t image;
        int loaded = image_decode(&image, file.bytes, file.size, "memory", error);
        check(loaded, "it is read");
        for (int i = 0; loaded && i < 6; i++) {
            int want = channels < 3 ? samples[i / 3 * channels] : samples[i / 3 * channels + i % 3];
            check(image.pixels[i] == want, "the colour of a pixel");
        }
        image_free(&image);
        free(file.bytes);
    }
}

static inline void check_pixel(const image_t* image, int y, int x, int red, int green, int blue, int tolerance) {
    const uint8_t* p = image->pixels + ((size_t)y * image->width + x) * 3;
    check(abs(p[0] - red) <= tolerance && abs(p[1] - green) <= tolerance && abs(p[2] - blue) <= tolerance, "a pixel");
}

// Without Adobe's marker four inks are CMYK, as with it; with a transform that is none they are YCCK, as with 2.
static inline void test_inks(void) {
    uint8_t bytes[sizeof cmyk_jpeg];
    char error[IMAGE_ERROR_SIZE];
    image_t image, other;
    enum { MARKER = 16, TRANSFORM = 2 + 15 }; // bytes of the marker, which comes first; the place of its last
    memcpy(bytes, cmyk_jpeg, 2);
    memcpy(bytes + 2, cmyk_jpeg + 2 + MARKER, sizeof cmyk_jpeg - 2 - MARKER);
    check(image_decode(&image, bytes, sizeof cmyk_jpeg - MARKER, "cmyk", error), "it is read without the marker");
    check_pixel(&image, 3, 3, 0, 255, 255, 2);
    image_free(&image);
    memcpy(bytes, cmyk_jpeg, sizeof bytes);
    bytes[TRANSFORM] = 2;
    check(image_decode(&image, bytes, sizeof bytes, "ycck", error), "as YCCK");
    bytes[TRANSFORM] = 1;
    check(image_decode(&other, bytes, sizeof bytes, "ycck", error), "with a transform for three colours");
    check(!memcmp(image.pixels, other.pixels, 8 * 8 * 3), "the same");
    check(bytes[TRANSFORM] == 1, "the file's bytes are left alone");
    image_free(&image);
    image_free(&other);
}

static inline void test_embedded(void) {
    char error[IMAGE_ERROR_SIZE];
    image_t image;
    check(image_decode(&image, cmyk_jpeg, sizeof cmyk_jpeg, "cmyk", error), "the CMYK JPEG is read");
    check_pixel(&image, 3, 3, 0, 255, 255, 2);
    image_free(&image);
    check(image_decode(&image, progressive_jpeg, sizeof progressive_jpeg, "progressive", error), "the JPEG is read");
    check_pixel(&image, 3, 1, 202, 35, 16, 3);
    check_pixel(&image, 3, 6, 20, 66, 188, 3);
    image_free(&image);
    check(image_decode(&image, baseline_jpeg, sizeof baseline_jpeg, "baseline", error), "the JPEG is read");
    check_pixel(&image, 3, 4, 60, 52, 138, 3);
    check_pixel(&image, 9, 15, 194, 171, 127, 3);
    image_free(&image);
    check(image_decode(&image, grey16_png, sizeof grey16_png, "16 bits", error), "the 16-bit PNG is read");
    check_pixel(&image, 0, 0, 0, 0, 0, 0);
    check_pixel(&image, 0, 1, 0x12, 0x12, 0x12, 0);
    check_pixel(&image, 1, 0, 0x80, 0x80, 0x80, 0);
    check_pixel(&image, 1, 1, 255, 255, 255, 0);
    image_free(&image);
    check(image_decode(&image, palette_png, sizeof palette_png, "palette", error), "the palette PNG is read");
    check_pixel(&image, 0, 0, 0, 0, 255, 0);
    check_pixel(&image, 0, 2, 255, 0, 0, 0);
    image_free(&image);
}

// No proper beginning of a file passes for the whole.
static inline void test_every_truncation(void) {
    for (int kind = 0; kind < KIND_COUNT; kind++) {
        buffer_t file = make_file(kind, 9, 13, 3);
        int accepted = 0;
        for (size_t size = 0; size < file.size; size++) {
            uint8_t* cut = (uint8_t*)malloc(size + 1); // its own block, so that the sanitizer sees reads beyond the end
            memcpy(cut, file.bytes, size);
            accepted += decodes(cut, size);
            free(cut);
        }
        check(decodes(file.bytes, file.size), "the whole file is read");
        check(accepted == 0, "every truncation is refused");
        free(file.bytes);
    }
}

// An end marker inside a segment (a thumbnail's) is not the image's, and bytes after the end do no harm.
static inline void test_jpeg_thumbnail(void) {
    static uint8_t thumbnail[12] = {0xFF, 0xE1, 0, 10, 0xFF, 0xD8, 0xFF, 0xDA, 0xFF, 0xD9, 0xFF, 0xD9};
    buffer_t plain = make_file(KIND_BASELINE, 0, 0, 0), file = {NULL, 0};
    buffer_append(&file, plain.bytes, 2);
    buffer_append(&file, thumbnail, sizeof thumbnail);
    buffer_append(&file, plain.bytes + 2, (int)plain.size - 2);
    check(decodes(file.bytes, file.size), "a JPEG with a thumbnail is read");
    check(!decodes(file.bytes, file.size - 40), "cut off, it is refused though the thumbnail is whole");
    buffer_append(&file, thumbnail, sizeof thumbnail);
    check(decodes(file.bytes, file.size), "bytes after the end are ignored");
    free(plain.bytes);
    free(file.bytes);
}

// The message for a JPEG that is cut off; and one with a Huffman table of more than 256 codes is refused before
// stb_image sees it, be the table before or behind the frame header.
static inline void test_jpeg_damage(void) {
    char error[IMAGE_ERROR_SIZE];
    image_t image;
    check(!image_decode(&image, baseline_jpeg, sizeof baseline_jpeg - 2, "x", error), "no end marker");
    check(strstr(error, "cut off") != NULL, "it says that it is cut off");
    static uint8_t table[4 + 17 + 300] = {0xFF, 0xC4, 1, 63}; // marker, length 319 = 2 + 17 + 300
    table[4 + 15] = table[4 + 16] = 150;
    size_t scan = 0;
    while (!(baseline_jpeg[scan] == 0xFF && baseline_jpeg[scan + 1] == 0xDA)) scan++;
    size_t places[2] = {2, scan};
    for (int k = 0; k < 2; k++) {
        buffer_t file = {NULL, 0};
        buffer_append(&file, baseline_jpeg, (int)places[k]);
        buffer_append(&file, table, sizeof table);
        buffer_append(&file, baseline_jpeg + places[k], (int)(sizeof baseline_jpeg - places[k]));
        check(!image_decode(&image, file.bytes, file.size, "x", error), "an impossible Huffman table");
        check(strstr(error, "Huffman") != NULL, "it says so");
        free(file.bytes);
    }
}

static inline void test_refusals(void) {
    char path[TEMPORARY_PATH], error[IMAGE_ERROR_SIZE];
    image_t image;
    temporary_write("renamed.jpg", "this is a text", 14);
    check(!image_load(&image, temporary_path(path, "renamed.jpg"), error), "a renamed text file is refused");
    check(strstr(error, path) && strstr(error, "not a JPEG"), "the message names the file and the reason");
    check(image.pixels == NULL, "nothing is left to free");
    temporary_write("empty.png", "", 0);
    check(!image_load(&image, temporary_path(path, "empty.png"), error) && strstr(error, "empty"), "an empty file");
    check(!image_load(&image, temporary_path(path, "none.png"), error) && strstr(error, "No such"), "a missing file");
    check(!image_load(&image, temporary_folder, error), "a folder");
    static const uint8_t huge[] = "P6 30000 30000 255 abc";
    check(!image_decode(&image, huge, sizeof huge, "huge", error) && strstr(error, "absurd"), "an absurd size");
    buffer_t file = make_file(KIND_PNG, 20, 20, 3);
    temporary_write("really_a_png.jpg", file.bytes, file.size);
    check(image_load(&image, temporary_path(path, "really_a_png.jpg"), error), "a PNG called .jpg is read");
    image_free(&image);
    file.bytes[file.size / 2] ^= 4;
    check(!image_decode(&image, file.bytes, file.size, "x", error), "a PNG with a flipped bit is refused");
    check(strstr(error, "checksum") != NULL, "for its checksum");
    free(file.bytes);
}

// Puts right the checksums of a PNG, so that damage inside chunks reaches the decoder.
static inline void mend_checksums(uint8_t* bytes, size_t size) {
    for (size_t at = 8; size > 12 && at <= size - 12;) {
        size_t length = image_big_endian(bytes + at);
        if (length > size - at - 12) return;
        image_put_big_endian(bytes + at + 8 + length, (uint32_t)crc32(0, bytes + at + 4, (uInt)(4 + length)));
        at += 12 + length;
    }
}

// What the loader does with a file, on damaged bytes: no crash, no sanitizer report; and whatever decodes can be
// cropped.
static inline void test_fuzz(void) {
    buffer_t files[KIND_COUNT];
    for (int kind = 0; kind < KIND_COUNT; kind++) files[kind] = make_file(kind, 11, 9, 3);
    int decoded = 0, refused = 0;
    for (int round = 0; round < 5000; round++) {
        const buffer_t* file = &files[round % KIND_COUNT];
        size_t size = file->size;
        if (round % 3 == 0) size = 1 + (size_t)((test_uniform() + 1) / 2 * (double)(size - 1));
        uint8_t* bytes = (uint8_t*)malloc(size);
        memcpy(bytes, file->bytes, size);
        for (int k = round % 4; k >= 0; k--) {
            bytes[(size_t)((test_uniform() + 1) / 2 * (double)size)] = (uint8_t)((test_uniform() + 1) * 128);
        }
        if (round % KIND_COUNT == KIND_PNG && round % 4 != 3) mend_checksums(bytes, size);
        image_t image;
        char error[IMAGE_ERROR_SIZE] = "";
        if (image_decode(&image, bytes, size, "damaged", error)) {
            uint8_t out[8 * 8 * 3];
            int height, width;
            cover_size(image.height, image.width, 8, 8, &height, &width);
            image_resize_crop(out, &image, height, width, (height - 8) / 2, (width - 8) / 2, 8, 8, round & 1);
            decoded++;
        } else {
            check(strstr(error, "damaged: ") == error, "the message begins with the name");
            refused++;
        }
        image_free(&image);
        free(bytes);
    }
    for (int kind = 0; kind < KIND_COUNT; kind++) free(files[kind].bytes);
    check(decoded > 500 && refused > 500, "both outcomes occur");
}

static inline void test_resize_by_hand(void) {
    static uint8_t row[6] = {0, 0, 0, 100, 100, 100};
    static const uint8_t doubled[4] = {0, 25, 75, 100}; // sources -1/4 -> 0, 1/4, 3/4, 5/4 -> 1
    image_t image = {1, 2, row};
    uint8_t out[64 * 3];
    image_resize_crop(out, &image, 2, 4, 0, 0, 2, 4, 0);
    for (int i = 0; i < 8 * 3; i++) check(out[i] == doubled[i / 3 % 4], "two pixels doubled");
    // 3 -> 2: sources 1/4 and 7/4: 8 + (200 - 8) / 4 = 56; 200 + (50 - 200) * 3 / 4 = 87.5 -> 88
    static uint8_t three[9] = {8, 8, 8, 200, 200, 200, 50, 50, 50};
    image_t column = {3, 1, three};
    image_resize_crop(out, &column, 2, 1, 0, 0, 2, 1, 0);
    check(out[0] == 56 && out[3] == 88, "three pixels to two");
    // 4 -> 1 without antialias: source 3/2, the mean of the middle two
    static uint8_t four[12] = {255, 255, 255, 10, 20, 30, 20, 40, 61, 0, 0, 0};
    image_t line = {1, 4, four};
    image_resize_crop(out, &line, 1, 1, 0, 0, 1, 1, 0);
    check(out[0] == 15 && out[1] == 30 && out[2] == 46, "four pixels to one: the middle two, half rounded up");
    static uint8_t one[3] = {7, 77, 177};
    image_t pixel = {1, 1, one};
    image_t large = image_resize_short_side(&pixel, 5);
    check(large.height == 5 && large.width == 5, "a single pixel grows to 5 x 5");
    for (int i = 0; i < 75; i++) check(large.pixels[i] == one[i % 3], "and keeps its colour");
    image_free(&large);
}

// An image of random bytes.
static inline image_t random_image(int height, int width) {
    image_t image = image_create(height, width);
    for (int i = 0; i < height * width * 3; i++) image.pixels[i] = (uint8_t)((test_uniform() + 1) * 128);
    return image;
}

// The defining formula in double.
static inline double resize_reference(const image_t* in, int y, int x, int c, int height, int width) {
    double sy = fmax((y + 0.5) * in->height / height - 0.5, 0), sx = fmax((x + 0.5) * in->width / width - 0.5, 0);
    int y0 = (int)sy, x0 = (int)sx;
    int y1 = y0 + 1 < in->height ? y0 + 1 : y0, x1 = x0 + 1 < in->width ? x0 + 1 : x0;
    double wy = sy - y0, wx = sx - x0;
    const uint8_t* p = in->pixels + c;
    double up = p[(y0 * in->width + x0) * 3] * (1 - wx) + p[(y0 * in->width + x1) * 3] * wx;
    double low = p[(y1 * in->width + x0) * 3] * (1 - wx) + p[(y1 * in->width + x1) * 3] * wx;
    return up * (1 - wy) + low * wy;
}

static inline void test_resize_formula(void) {
    static const int cases[6][3] = {{28, 28, 32}, {17, 31, 8}, {64, 48, 64}, {1, 9, 13}, {3, 2, 20}, {101, 37, 16}};
    double worst = 0;
    for (int k = 0; k < 6; k++) {
        image_t in = random_image(cases[k][0], cases[k][1]);
        image_t out = image_resize_short_side(&in, cases[k][2]);
        for (int i = 0; i < out.height * out.width * 3; i++) {
            double want = resize_reference(&in, i / 3 / out.width, i / 3 % out.width, i % 3, out.height, out.width);
            worst = fmax(worst, fabs(out.pixels[i] - want));
        }
        if (k == 2) check(out.height == 85 && out.width == 64, "48 x 64 to 64 x 85 (85.33)");
        image_free(&in);
        image_free(&out);
    }
    check_error("byte", worst, 0.5 + 2 * 255.0 / 4096); // rounding of the byte and of two weights of 11 bits
}

static inline void test_short_side(void) {
    static const int cases[8][5] = {{375, 500, 256, 256, 341}, {500, 375, 256, 341, 256}, {2, 5, 1, 1, 2},
                                    {2, 7, 1, 1, 4},           {256, 256, 256, 256, 256}, {1, 30000, 256, 256, 7680000},
                                    {333, 500, 256, 256, 384},   {5, 2, 1, 2, 1}};
    for (int k = 0; k < 8; k++) {
        int height, width;
        cover_size(cases[k][0], cases[k][1], cases[k][2], cases[k][2], &height, &width);
        check(height == cases[k][3] && width == cases[k][4], "height and width, halves to even");
    }
}

static inline void test_windows(void) {
    image_t in = random_image(23, 35);
    image_t whole = image_resize_short_side(&in, 19);
    uint8_t out[7 * 5 * 3];
    for (int flip = 0; flip < 2; flip++) {
        image_resize_crop(out, &in, whole.height, whole.width, 12, 24, 7, 5, flip);
        for (int i = 0; i < 7 * 5 * 3; i++) {
            int y = i / 15, x = i / 3 % 5;
            int column = 24 + (flip ? 4 - x : x);
            check(out[i] == whole.pixels[((12 + y) * whole.width + column) * 3 + i % 3], "a window of the whole");
        }
    }
    image_t thin = random_image(1, 30000);
    image_resize_crop(out, &thin, 256, 7680000, 250, 7679995, 5, 5, 0); // the whole would take 5.9 GB
    check(!memcmp(out + 12, thin.pixels + 29999 * 3, 3), "the last pixel of a very thin image");
    image_free(&in);
    image_free(&whole);
    image_free(&thin);
}

static inline void test_bytes_from_floats(void) {
    floatS x[264];
    uint8_t out[264];
    for (int i = 0; i < 256; i++) x[i] = (floatX)(i / 127.5 - 1);
    x[256] = 0;                       // 128
    x[257] = -1;                      // 0.5 -> 0
    x[258] = 1;                       // 255.5 -> 255
    x[259] = (floatX)-1e30;
    x[260] = (floatX)1e30;
    x[261] = (floatX)NAN;
    x[262] = (floatX)(1.9 / 127.5);   // 129.9 -> 129
    x[263] = (floatX)(-1.01);         // below 0
    image_bytes_from_floats(out, x, 264);
    for (int i = 0; i < 256; i++) check(out[i] == i, "the inverse of byte / 127.5 - 1");
    static const uint8_t want[8] = {128, 0, 255, 0, 255, 0, 129, 0};
    check(!memcmp(out + 256, want, 8), "truncated, clamped, NaN to 0");
}

static inline void test_grid(void) {
    uint8_t pixels[6 * 2 * 3 * 3]; // six images of 2 x 3, each of one grey
    for (int i = 0; i < 6 * 18; i++) pixels[i] = (uint8_t)(10 * (i / 18) + i / 3 % 3);
    image_t grid = image_grid(pixels, 2, 3, 2, 3, 4);
    check(grid.height == 2 + 2 * (8 + 2) && grid.width == 2 + 3 * (12 + 2), "its size");
    for (int y = 0; y < grid.height; y++) {
        for (int x = 0; x < grid.width; x++) {
            int row = (y - 2) / 10, column = (x - 2) / 14, inside_y = (y - 2) % 10, inside_x = (x - 2) % 14;
            int in_image = y >= 2 && x >= 2 && inside_y < 8 && inside_x < 12;
            int want = in_image ? 10 * (row * 3 + column) + inside_x / 4 : 255;
            check(grid.pixels[(y * grid.width + x) * 3 + 1] == want, "a pixel of the grid");
        }
    }
    image_free(&grid);
}

// Reads the text chunks back with a reader of its own: every checksum, the order, keys and values.
static inline void test_png_text(void) {
    char path[TEMPORARY_PATH], error[IMAGE_ERROR_SIZE], configuration[3000];
    for (int i = 0; i < 2999; i++) configuration[i] = (char)(' ' + i % 95);
    configuration[2999] = 0;
    image_text_t texts[4] = {{"seed", "42"}, {"configuration", configuration}, {"empty", ""},
                             {"prompt", "caf\xC3\xA9 \xF0\x9F\x99\x82"}};
    image_t image = random_image(33, 21), again;
    check(image_write_png(temporary_path(path, "text.png"), &image, texts, 4, error), "it is written");
    for (int i = 0; i < 4; i++) {
        char* value = image_read_text(path, texts[i].key);
        check(value && !strcmp(value, texts[i].value), "a text that is read again");
        free(value);
    }
    check(!image_read_text(path, "see") && !image_read_text(path, "prompt2"), "none of other keys");
    size_t size = 0;
    uint8_t* bytes = (uint8_t*)temporary_read("text.png", &size);
    int found = 0;
    for (size_t at = 8; at + 12 <= size;) {
        size_t length = image_big_endian(bytes + at);
        uint32_t crc = (uint32_t)crc32(0, bytes + at + 4, (uInt)(length + 4));
        check(crc == image_big_endian(bytes + at + 8 + length), "a checksum");
        if (!memcmp(bytes + at + 4, "tEXt", 4) && found < 3) {
            const char* key = (const char*)bytes + at + 8;
            size_t key_length = strlen(texts[found].key);
            check(!memcmp(key, texts[found].key, key_length + 1), "a key");
            check(length == key_length + 1 + strlen(texts[found].value), "a length");
            check(!memcmp(key + key_length + 1, texts[found].value, strlen(texts[found].value)), "a value");
            found++;
        }
        at += 12 + length;
    }
    check(found == 3, "three text chunks");
    check(memmem(bytes, size, "iTXtprompt\0\0\0\0\0caf", 18) != NULL, "and one in UTF-8");
    check(image_load(&again, path, error), "the file is read again");
    check(again.height == 33 && again.width == 21, "the same size");
    check(!memcmp(again.pixels, image.pixels, 33 * 21 * 3), "the same pixels");
    check(temporary_read("text.png.tmp", NULL) == NULL, "no temporary file is left");
    free(bytes);
    image_free(&image);
    image_free(&again);
}

// A failed write says so, leaves the old picture and no temporary file.
static inline void test_write_failures(void) {
    char path[TEMPORARY_PATH], link[TEMPORARY_PATH], error[IMAGE_ERROR_SIZE];
    image_t image = random_image(50, 50);
    check(!image_write_png(temporary_path(path, "no/such/folder.png"), &image, NULL, 0, error), "a missing folder");
    check(strstr(error, path) && strstr(error, "No such file"), "the message names file and reason");
    if (access("/dev/full", W_OK)) {
        printf("     no /dev/full here: the full disk is not tested\n");
    } else {
        temporary_write("full.png", "old", 3);
        if (symlink("/dev/full", temporary_path(link, "full.png.tmp"))) perror(link);
        check(!image_write_png(temporary_path(path, "full.png"), &image, NULL, 0, error), "a full disk");
        check(strstr(error, "No space left") != NULL, "the message says that the disk is full");
        char* old = temporary_read("full.png", NULL);
        check(old && !strcmp(old, "old"), "the old picture is still there");
        check(access(link, F_OK) != 0, "the temporary file is gone");
        free(old);
    }
    temporary_mkdir("folder.png");
    check(!image_write_png(temporary_path(path, "folder.png"), &image, NULL, 0, error), "a folder of that name");
    image_free(&image);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("read PNG BMP PPM of odd sizes")) { test_kinds(); test_end_case(); }
    if (test_case("read grey, grey+alpha, RGB, RGBA")) { test_channels(); test_end_case(); }
    if (test_case("read JPEG, progressive, CMYK, 16-bit, palette")) { test_embedded(); test_end_case(); }
    if (test_case("four inks with and without Adobe's marker")) { test_inks(); test_end_case(); }
    if (test_case("refuse every truncation of every kind")) { test_every_truncation(); test_end_case(); }
    if (test_case("read a JPEG with thumbnail and trailing bytes")) { test_jpeg_thumbnail(); test_end_case(); }
    if (test_case("refuse damaged JPEGs")) { test_jpeg_damage(); test_end_case(); }
    if (test_case("refuse renamed, empty, missing, absurd, damaged files")) { test_refusals(); test_end_case(); }
    if (test_case("fuzz 5000 damaged files")) { test_fuzz(); test_end_case(); }
    if (test_case("resize by hand")) { test_resize_by_hand(); test_end_case(); }
    if (test_case("resize against the formula in double")) { test_resize_formula(); test_end_case(); }
    if (test_case("short side sizes")) { test_short_side(); test_end_case(); }
    if (test_case("crop and flip are windows of the whole")) { test_windows(); test_end_case(); }
    if (test_case("bytes from floats")) { test_bytes_from_floats(); test_end_case(); }
    if (test_case("grid")) { test_grid(); test_end_case(); }
    if (test_case("PNG text chunks")) { test_png_text(); test_end_case(); }
    if (test_case("PNG that cannot be written")) { test_write_failures(); test_end_case(); }
    temporary_end();
    return test_finish();
}
