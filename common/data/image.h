// image.h: pictures between files and bytes: reading, resizing, cropping, and PNG files of what a model made.
//
// Reading goes through stb_image and always ends in RGB with 8 bits a channel:
//   grey and palette images become RGB; 16-bit samples (PNG) keep their high byte; CMYK and YCCK JPEGs are converted as
//   Adobe's files mean it (inverted inks), also where Adobe's marker is missing, as PIL does; an alpha channel is
//   dropped, not composited, as PIL's convert("RGB") does.
//   EXIF orientation and colour profiles are ignored, as in the usual ImageNet pipelines.
// The kind is taken from the content, never from the name. stb_image trusts a file too much: it checks no checksum of a
// PNG, fills what a cut-off BMP or PPM lacks with anything, and writes beyond a table on some damaged JPEGs. So the
// file is looked over first (JPEG: segments up to the end marker, Huffman tables; PNG: chunks and checksums; BMP, PPM:
// length), and one that is not whole is refused.
//
// Resizing is bilinear without antialias on pixel centres ("half-pixel"), what OpenCV calls INTER_LINEAR:
//   source = (target + 1/2) * n_source / n_target - 1/2, clamped to the image.
// It is computed in integers with weights of 11 bits (OpenCV's), so that the bytes don't depend on the compiler.
//
// Writing: PNG through stb_image_write, with text chunks that say how the picture was made.
// Look next at common/data/dataset.h, which finds the files, and common/data/dataloader.h, which reads them ahead of
// the training.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

// defines: floatS
#include "common/device.h"
// defines: fatal, malloc_check
#include "common/program/log.h"

#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_ONLY_PNM
#define STBI_MAX_DIMENSIONS 32768
#define STB_IMAGE_WRITE_IMPLEMENTATION
#pragma GCC diagnostic push // for an stb outside the system folders, whose warnings the compiler shows
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#ifndef __clang__ // which has no such warning
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <stb/stb_image.h>
#include <stb/stb_image_write.h>
#pragma GCC diagnostic pop

#define IMAGE_MAX_PIXELS ((size_t)1 << 27)     // 400 MB as RGB
#define IMAGE_MAX_FILE_BYTES ((size_t)1 << 30)
#define IMAGE_ERROR_SIZE 1024                  // every `char* error` below has room for this many bytes

// An RGB image with 8 bits a channel. `pixels` (height, width, 3) is owned by the image.
typedef struct {
    int height, width;
    uint8_t* pixels;
} image_t;

// Writes a sentence into `error`, cut off where it is too long.
__attribute__((format(printf, 2, 3))) static inline void image_error(char* error, const char* format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(error, IMAGE_ERROR_SIZE, format, args);
    va_end(args);
}

static inline image_t image_create(int height, int width) {
    image_t image;
    image.height = height;
    image.width = width;
    image.pixels = (uint8_t*)malloc_check((size_t)height * width * 3, "an image");
    return image;
}

static inline void image_free(image_t* image) {
    free(image->pixels);
    image->pixels = NULL;
    image->height = image->width = 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Is the file whole? Each check returns NULL, or what is wrong in a few words.

static inline uint32_t image_big_endian(const uint8_t* p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint32_t image_little_endian(const uint8_t* p) {
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

// The Huffman tables of a DHT segment at `at` (ITU T.81, B.2.4.2): class, 16 counts of codes, that many symbols. More
// than 256 codes would make stb_image write beyond its table.
static inline int image_huffman_is_sane(const uint8_t* bytes, size_t size, size_t at, size_t length) {
    size_t end = at + length;
    if (end > size) return 0;
    while (at + 17 <= end) {
        size_t codes = 0;
        for (int i = 1; i <= 16; i++) codes += bytes[at + i];
        if (codes > 256) return 0;
        at += 17 + codes;
    }
    return at == end;
}

// JPEG (ITU T.81, annex B): segments "FF marker length data"; after a start of scan (DA) follow coded bytes, in which
// FF is always followed by 00 or by a restart marker (D0 to D7). D9 ends the image. Thumbnails with an end marker of
// their own lie inside segments and are stepped over.
static inline const char* image_check_jpeg(const uint8_t* bytes, size_t size) {
    size_t at = 2;
    while (at + 1 < size) {
        uint8_t marker = bytes[at + 1];
        if (bytes[at] != 0xFF || marker == 0x00 || marker == 0xFF || (marker >= 0xD0 && marker <= 0xD7)) {
            at++; // coded bytes, a restart marker, or padding
            continue;
        }
        if (marker == 0xD9) return NULL;
        if (at + 3 >= size) break;
        size_t length = (size_t)bytes[at + 2] << 8 | bytes[at + 3];
        if (length < 2) return "the JPEG is damaged: a segment has an impossible length";
        if (marker == 0xC4 && !image_huffman_is_sane(bytes, size, at + 4, length - 2)) {
            return "the JPEG is damaged or cut off: a Huffman table is impossible";
        }
        at += 2 + length;
    }
    return "the JPEG is cut off: it has no end marker";
}

// PNG (W3C, section 5): chunks "length type data crc" up to IEND. The checksum covers type and data; those of ancillary
// chunks (lower-case first letter) are not needed to decode and not checked.
static inline const char* image_check_png(const uint8_t* bytes, size_t size) {
    size_t at = 8;
    while (size - at >= 12) {
        size_t length = image_big_endian(bytes + at);
        const uint8_t* type = bytes + at + 4;
        if (length > size - at - 12) break;
        if (type[0] >= 'A' && type[0] <= 'Z') {
            uint32_t stored = image_big_endian(type + 4 + length);
            uint32_t computed = (uint32_t)crc32(0, type, (uInt)(4 + length));
            if (computed != stored) return "the PNG is damaged: a checksum is wrong";
        }
        if (!memcmp(type, "IEND", 4)) return NULL;
        if (!memcmp(type, "CgBI", 4)) return "the PNG is one that Apple's tools have rewritten; convert it";
        at += 12 + length;
    }
    return "the PNG is cut off: it has no end chunk";
}

// BMP: rows of `width` pixels, each padded to 4 bytes, from the offset in the header on.
static inline const char* image_check_bmp(const uint8_t* bytes, size_t size, int height, int width) {
    if (size < 30) return "the BMP is cut off inside its header";
    size_t offset = image_little_endian(bytes + 10);
    int old_header = image_little_endian(bytes + 14) == 12;
    size_t bits = bytes[old_header ? 24 : 28];
    size_t row = (bits * (size_t)width + 31) / 32 * 4;
    return offset > size || size - offset < row * (size_t)height ? "the BMP is cut off" : NULL;
}

// Binary PGM or PPM: the magic, three numbers parted by white space or comments, one white space, the samples.
// stb_image takes the two bytes of a 16-bit sample in the machine's order, which is the wrong one on most machines.
static inline const char* image_check_pnm(const uint8_t* bytes, size_t size, int height, int width, int channels) {
    if (stbi_is_16_bit_from_memory(bytes, (int)size)) return "PPM with 16 bits is not supported; convert it to PNG";
    size_t at = 2;
    for (int number = 0; number < 3; number++) {
        while (at < size && (bytes[at] < '0' || bytes[at] > '9')) {
            if (bytes[at] == '#') {
                while (at < size && bytes[at] != '\n') at++;
            } else {
                at++;
            }
        }
        while (at < size && bytes[at] >= '0' && bytes[at] <= '9') at++;
    }
    return size < at + 1 + (size_t)height * width * channels ? "the PPM is cut off" : NULL;
}

static inline int image_is_jpeg(const uint8_t* bytes, size_t size) {
    return size >= 2 && bytes[0] == 0xFF && bytes[1] == 0xD8;
}

// The checks that come before anything else reads the bytes. Unknown contents are left to the decoder, which refuses
// them.
static inline const char* image_check_container(const uint8_t* bytes, size_t size) {
    static const uint8_t png_signature[8] = {137, 80, 78, 71, 13, 10, 26, 10};
    if (size == 0) return "the file is empty";
    if (size > IMAGE_MAX_FILE_BYTES) return "the file is larger than 1 GiB";
    if (image_is_jpeg(bytes, size)) return image_check_jpeg(bytes, size);
    if (size >= 8 && !memcmp(bytes, png_signature, 8)) return image_check_png(bytes, size);
    return NULL;
}

// The checks that need the size in the header. In a JPEG every 8 x 8 block of every component costs at least one bit,
// so that a byte cannot stand for more than 1024 pixels; a damaged size must not cost gigabytes.
static inline const char* image_check_size(const uint8_t* bytes, size_t size, int height, int width, int channels) {
    if (width < 1 || height < 1 || (size_t)width * height > IMAGE_MAX_PIXELS) {
        return "the header gives an absurd size (limits: 1 to 32768 a side, 134 million pixels)";
    }
    if (image_is_jpeg(bytes, size)) {
        int too_short = (size_t)height * width > size * 1024;
        return too_short ? "the JPEG is far too short for the size in its header" : NULL;
    }
    if (size >= 2 && bytes[0] == 'B' && bytes[1] == 'M') return image_check_bmp(bytes, size, height, width);
    if (size >= 2 && bytes[0] == 'P') return image_check_pnm(bytes, size, height, width, channels);
    return NULL;
}

// A JPEG of four inks says by Adobe's marker (APP14) whether they are CMYK (0) or YCCK (2). Where it has none, or
// another number, stb_image would take them for YCbCr. Then a copy with a marker in front is made, which the caller
// frees: CMYK, or, where the marker stands for some other transform, YCCK, as libjpeg takes it. NULL: the file is good
// as it is.
static inline uint8_t* image_mark_inks(const uint8_t* bytes, size_t size, size_t* marked_size) {
    static const uint8_t marker[16] = {0xFF, 0xEE, 0, 14, 'A', 'd', 'o', 'b', 'e', 0, 100, 0, 0, 0, 0, 0}; // CMYK
    int inks = 0, transform = -1;
    size_t at = 2, own = 0; // where the file's own marker keeps its transform
    while (at + 4 <= size && !inks) {
        uint8_t kind = bytes[at + 1];
        size_t length = (size_t)bytes[at + 2] << 8 | bytes[at + 3], data = at + 4;
        if (bytes[at] != 0xFF || kind == 0xDA || kind == 0xD9) break;
        if (kind == 0xFF || kind == 0x01 || (kind >= 0xD0 && kind <= 0xD7)) {
            at += kind == 0xFF ? 1 : 2; // padding, and markers that have no length
            continue;
        }
        if (length < 2 || length > size - at - 2) break;
        int frame = kind >= 0xC0 && kind <= 0xCF && kind != 0xC4 && kind != 0xC8 && kind != 0xCC;
        if (frame && length >= 8) inks = bytes[data + 5];
        if (kind == 0xEE && length >= 14 && !memcmp(bytes + data, "Adobe", 5)) {
            own = data + 11;
            transform = bytes[own];
        }
        at += 2 + length;
    }
    if (inks != 4 || transform == 0 || transform == 2) return NULL;
    size_t extra = own ? 0 : sizeof marker;
    uint8_t* marked = (uint8_t*)malloc_check(size + extra, "a JPEG file");
    memcpy(marked, bytes, 2);
    if (!own) memcpy(marked + 2, marker, sizeof marker);
    memcpy(marked + 2 + extra, bytes + 2, size - 2);
    if (own) marked[own] = 2;
    *marked_size = size + extra;
    return marked;
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading. The functions return 1; or 0 with a sentence in `error`, and then `image` owns nothing.

// Decodes the bytes of a file. `name` is for messages only. A lack of memory ends the program: a training run that
// skipped images for that would not be reproducible.
static inline int image_decode(image_t* image, const uint8_t* bytes, size_t size, const char* name, char* error) {
    memset(image, 0, sizeof *image);
    int width = 0, height = 0, channels = 0;
    const char* reason = image_check_container(bytes, size);
    if (!reason && !stbi_info_from_memory(bytes, (int)size, &width, &height, &channels)) {
        reason = "this is not a JPEG, PNG, BMP or PPM image, or its header is damaged";
    }
    if (!reason) reason = image_check_size(bytes, size, height, width, channels);
    if (!reason) {
        size_t marked_size = size;
        uint8_t* marked = image_is_jpeg(bytes, size) ? image_mark_inks(bytes, size, &marked_size) : NULL;
        image->pixels = stbi_load_from_memory(marked ? marked : bytes, (int)marked_size, &image->width, &image->height,
                                              &channels, 3);
        free(marked);
        if (image->pixels) return 1;
        reason = stbi_failure_reason();
        if (!reason) reason = "damaged";
        if (!strcmp(reason, "outofmem")) fatal("no memory to decode %s (%d x %d); use fewer threads", name, width,
                                               height);
    }
    memset(image, 0, sizeof *image);
    image_error(error, "%s: cannot be read as an image: %s", name, reason);
    return 0;
}

// Reads a whole file into memory that the caller frees. NULL with errno set on failure.
static inline uint8_t* image_read_file(const char* path, size_t* size) {
    int descriptor = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); // a named pipe is not waited for
    if (descriptor < 0) return NULL;
    struct stat status;
    FILE* file = fdopen(descriptor, "rb");
    if (!file) {
        close(descriptor);
        return NULL;
    }
    if (fstat(descriptor, &status) || !S_ISREG(status.st_mode)) {
        fclose(file);
        errno = EINVAL;
        return NULL;
    }
    if (status.st_size > (off_t)IMAGE_MAX_FILE_BYTES) {
        fclose(file);
        errno = EFBIG;
        return NULL;
    }
    uint8_t* bytes = (uint8_t*)malloc_check((size_t)status.st_size, "an image file");
    errno = EIO;
    *size = fread(bytes, 1, (size_t)status.st_size, file);
    int failed = ferror(file);
    fclose(file);
    if (!failed) return bytes;
    free(bytes);
    return NULL;
}

static inline int image_load(image_t* image, const char* path, char* error) {
    size_t size = 0;
    uint8_t* bytes = image_read_file(path, &size);
    if (!bytes) {
        memset(image, 0, sizeof *image);
        image_error(error, "%s: cannot be opened: %s", path, strerror(errno));
        return 0;
    }
    int loaded = image_decode(image, bytes, size, path, error);
    free(bytes);
    return loaded;
}

// The height and width that the frame header of a JPEG tells: its segments are stepped over up to that one.
static inline int image_read_jpeg_size(FILE* file, int* height, int* width) {
    uint8_t head[9];
    for (int segment = 0; segment < 1000 && fread(head, 1, 4, file) == 4; segment++) {
        while (head[0] == 0xFF && head[1] == 0xFF) { // padding
            memmove(head + 1, head + 2, 2);
            if (fread(head + 3, 1, 1, file) != 1) return 0;
        }
        int marker = head[1], length = head[2] << 8 | head[3];
        int frame = marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
        if (head[0] != 0xFF || marker == 0xDA || length < 2) return 0;
        if (frame) {
            if (fread(head, 1, 5, file) != 5) return 0;
            *height = head[1] << 8 | head[2];
            *width = head[3] << 8 | head[4];
            return 1;
        }
        if (fseek(file, length - 2, SEEK_CUR)) return 0;
    }
    return 0;
}

// Height and width of the image in a file that is open at its beginning, from its header: a few reads, and nothing is
// decoded. 0: the header tells none that image_decode would take.
static inline int image_read_size(FILE* file, int* height, int* width) {
    uint8_t magic[2];
    int channels = 0, known = 0;
    if (fread(magic, 1, 2, file) != 2) return 0;
    if (image_is_jpeg(magic, 2)) known = image_read_jpeg_size(file, height, width);
    else if (!fseek(file, 0, SEEK_SET)) known = stbi_info_from_file(file, width, height, &channels);
    int most = STBI_MAX_DIMENSIONS;
    return known && *height >= 1 && *width >= 1 && *height <= most && *width <= most &&
           (size_t)*height * *width <= IMAGE_MAX_PIXELS;
}

// ---------------------------------------------------------------------------------------------------------------------
// Resizing and cropping

// The size of an image that just covers H x W, aspect kept: one side fits, the other is rounded half to even. To cover
// a square is to give the shorter side its length.
static inline void cover_size(int height, int width, int H, int W, int* new_height, int* new_width) {
    double scale = fmax((double)H / height, (double)W / width);
    *new_height = (int)nearbyint(height * scale);
    *new_width = (int)nearbyint(width * scale);
}

// Where a target pixel takes its two source pixels along one axis: (2048 - weight) * [first] + weight * [second].
typedef struct { int first, second, weight; } resize_tap_t;

// source = (2 target + 1) n_source / (2 n_target) - 1/2 as a fraction with denominator 2 n_target.
static inline resize_tap_t resize_tap(int target, int n_target, int n_source) {
    resize_tap_t tap;
    int64_t numerator = (2 * (int64_t)target + 1) * n_source - n_target;
    int64_t denominator = 2 * (int64_t)n_target;
    if (numerator < 0) numerator = 0;
    tap.first = (int)(numerator / denominator);
    tap.weight = (int)((numerator % denominator * 2048 + n_target) / denominator);
    tap.second = tap.first + 1 < n_source ? tap.first + 1 : tap.first;
    return tap;
}

// One row of target pixels, out (width, 3), from the two source rows that `vertical` names. Rounded half up, once.
static inline void resize_row(uint8_t* out, const image_t* in, resize_tap_t vertical, const resize_tap_t* taps,
                              int width) {
    const uint8_t* upper = in->pixels + (size_t)vertical.first * in->width * 3;
    const uint8_t* lower = in->pixels + (size_t)vertical.second * in->width * 3;
    for (int x = 0; x < width; x++) {
        const resize_tap_t tap = taps[x];
        for (int c = 0; c < 3; c++) {
            int up = upper[tap.first * 3 + c] * (2048 - tap.weight) + upper[tap.second * 3 + c] * tap.weight;
            int low = lower[tap.first * 3 + c] * (2048 - tap.weight) + lower[tap.second * 3 + c] * tap.weight;
            out[x * 3 + c] = (uint8_t)((up * (2048 - vertical.weight) + low * vertical.weight + (1 << 21)) >> 22);
        }
    }
}

// The window of out_height x out_width at (top, left) of `in` resized to full_height x full_width; mirrored left to
// right where `flip`. Only the window is computed, so a very long and thin image costs no more than another.
static inline void image_resize_crop(uint8_t* out, // (out_height, out_width, 3)
                                     const image_t* in, int full_height, int full_width,
                                     int top, int left, int out_height, int out_width, int flip) {
    resize_tap_t* taps = (resize_tap_t*)malloc_check(out_width * sizeof *taps, "the resize table");
    for (int x = 0; x < out_width; x++) {
        taps[x] = resize_tap(left + (flip ? out_width - 1 - x : x), full_width, in->width);
    }
    for (int y = 0; y < out_height; y++) {
        resize_tap_t vertical = resize_tap(top + y, full_height, in->height);
        resize_row(out + (size_t)y * out_width * 3, in, vertical, taps, out_width);
    }
    free(taps);
}

// The middle of the image, resized until it just covers H x W.
static inline void image_centre_cover(uint8_t* out, // (H, W, 3)
                                      const image_t* in, int H, int W) {
    int height, width;
    cover_size(in->height, in->width, H, W, &height, &width);
    image_resize_crop(out, in, height, width, (height - H) / 2, (width - W) / 2, H, W, 0);
}

// The whole image with its shorter side resized to `side`.
static inline image_t image_resize_short_side(const image_t* in, int side) {
    int height, width;
    cover_size(in->height, in->width, side, side, &height, &width);
    image_t out = image_create(height, width);
    image_resize_crop(out.pixels, in, height, width, 0, 0, height, width, 0);
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// From a model's output to a PNG file

// [-1, 1] -> {0, ..., 255}: out = clamp(127.5 x + 128, 0, 255) truncated; the inverse of x = byte / 127.5 - 1.
// A NaN becomes 0.
static inline void image_bytes_from_floats(uint8_t* out, const floatS* x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float value = 127.5f * (float)x[i] + 128.0f;
        out[i] = (uint8_t)(value > 0 ? (value < 255 ? value : 255) : 0);
    }
}

// Left and right exchanged.
static inline void image_mirror(uint8_t* out, const uint8_t* in, int height, int width) { // (height, width, 3)
    for (size_t y = 0; y < (size_t)height; y++) {
        for (int x = 0; x < width; x++) memcpy(out + (y * width + x) * 3, in + (y * width + width - 1 - x) * 3, 3);
    }
}

// A picture of rows x columns images of equal size in reading order, each pixel drawn as scale x scale pixels, with
// white margins of 2 pixels around and between them.
static inline image_t image_grid(const uint8_t* pixels, // (rows * columns, height, width, 3)
                                 int rows, int columns, int height, int width, int scale) {
    const int margin = 2;
    image_t grid = image_create(rows * (height * scale + margin) + margin, columns * (width * scale + margin) + margin);
    memset(grid.pixels, 255, (size_t)grid.height * grid.width * 3);
    for (int i = 0; i < rows * columns; i++) {
        const uint8_t* image = pixels + (size_t)i * height * width * 3;
        int top = margin + i / columns * (height * scale + margin);
        int left = margin + i % columns * (width * scale + margin);
        for (int y = 0; y < height * scale; y++) {
            uint8_t* out = grid.pixels + ((size_t)(top + y) * grid.width + left) * 3;
            for (int x = 0; x < width * scale; x++) {
                memcpy(out + (size_t)x * 3, image + ((size_t)(y / scale) * width + x / scale) * 3, 3);
            }
        }
    }
    return grid;
}

// A pair for a text chunk. The key has 1 to 79 characters of plain ASCII. A value of plain ASCII makes a tEXt chunk,
// which every viewer shows; another one, which is UTF-8, an iTXt chunk (PNG section 11.3.4).
typedef struct { const char* key; const char* value; } image_text_t;

static inline void image_put_big_endian(uint8_t* p, uint32_t value) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(value >> (24 - 8 * i));
}

// What stands between key and value: a zero; in iTXt also "not compressed" and two empty strings.
enum { IMAGE_TEXT_GAP = 1, IMAGE_UTF8_GAP = 5 };

static inline int image_text_is_ascii(const char* text) {
    while (*text && (unsigned char)*text < 0x80) text++;
    return !*text;
}

// Writes the chunk "length, tEXt or iTXt, key, gap, value, crc" at `out`; returns the byte after it.
static inline uint8_t* image_put_text(uint8_t* out, image_text_t text) {
    int ascii = image_text_is_ascii(text.value), gap = ascii ? IMAGE_TEXT_GAP : IMAGE_UTF8_GAP;
    size_t key = strlen(text.key), value = strlen(text.value);
    size_t length = key + gap + value;
    image_put_big_endian(out, (uint32_t)length);
    memcpy(out + 4, ascii ? "tEXt" : "iTXt", 4);
    memcpy(out + 8, text.key, key);
    memset(out + 8 + key, 0, gap);
    memcpy(out + 8 + key + gap, text.value, value);
    image_put_big_endian(out + 8 + length, (uint32_t)crc32(0, out + 4, (uInt)(4 + length)));
    return out + 12 + length;
}

// The value of a text chunk of a PNG file, for the caller to free. NULL where there is none, and no such file.
static inline char* image_read_text(const char* path, const char* key) {
    size_t size = 0, at = 8;
    uint8_t* bytes = image_read_file(path, &size);
    char* value = NULL;
    while (bytes && !value && at + 12 <= size) {
        size_t length = image_big_endian(bytes + at);
        if (length > size - at - 12) break;
        int ascii = !memcmp(bytes + at + 4, "tEXt", 4), utf8 = !memcmp(bytes + at + 4, "iTXt", 4);
        size_t n = strlen(key) + (utf8 ? IMAGE_UTF8_GAP : IMAGE_TEXT_GAP);
        if ((ascii || utf8) && length >= n && !memcmp(bytes + at + 8, key, strlen(key) + 1)) {
            value = (char*)malloc_check(length - n + 1, "a text");
            memcpy(value, bytes + at + 8 + n, length - n);
            value[length - n] = 0;
        }
        at += 12 + length;
    }
    free(bytes);
    return value;
}

// Encodes a PNG with text chunks, in memory that the caller frees. NULL when there is not enough memory.
static inline uint8_t* image_encode_png(const image_t* image, const image_text_t* texts, int count, size_t* size) {
    const size_t head = 33; // signature (8) and IHDR (25), after which other chunks may follow
    int length = 0;
    uint8_t* plain = stbi_write_png_to_mem(image->pixels, 0, image->width, image->height, 3, &length);
    if (!plain) return NULL;
    size_t room = (size_t)length;
    for (int i = 0; i < count; i++) room += 12 + strlen(texts[i].key) + IMAGE_UTF8_GAP + strlen(texts[i].value);
    uint8_t* bytes = (uint8_t*)malloc_check(room, "a PNG file");
    memcpy(bytes, plain, head);
    uint8_t* at = bytes + head;
    for (int i = 0; i < count; i++) at = image_put_text(at, texts[i]);
    memcpy(at, plain + head, (size_t)length - head);
    free(plain);
    *size = (size_t)(at - bytes) + (size_t)length - head;
    return bytes;
}

// Writes bytes to PATH.tmp and renames it, so that PATH is never half a file. Returns 1, or 0 with a sentence in
// `error`.
static inline int image_write_file(const char* path, const uint8_t* bytes, size_t size, char* error) {
    char* temporary = (char*)malloc_check(strlen(path) + 5, "a file name");
    sprintf(temporary, "%s.tmp", path);
    FILE* file = fopen(temporary, "wb");
    int written = file != NULL;
    int reason = errno;
    if (file && fwrite(bytes, 1, size, file) != size) {
        written = 0;
        reason = errno;
    }
    if (file && fclose(file) && written) {
        written = 0;
        reason = errno;
    }
    if (written && rename(temporary, path)) {
        written = 0;
        reason = errno;
    }
    if (!written) {
        image_error(error, "%s: cannot be written: %s", path, strerror(reason));
        if (file) unlink(temporary);
    }
    free(temporary);
    return written;
}

// Writes a PNG with `count` text chunks. Returns 1; or 0 with a sentence in `error`, for the caller to warn and go on:
// a full disk is no reason to lose a training run.
static inline int image_write_png(const char* path, const image_t* image, const image_text_t* texts, int count,
                                  char* error) {
    size_t size = 0;
    uint8_t* bytes = NULL;
    if ((size_t)image->height * image->width <= IMAGE_MAX_PIXELS) bytes = image_encode_png(image, texts, count, &size);
    if (!bytes) {
        image_error(error, "%s: %d x %d pixels are too many for memory", path, image->height, image->width);
        return 0;
    }
    int written = image_write_file(path, bytes, size, error);
    free(bytes);
    return written;
}
