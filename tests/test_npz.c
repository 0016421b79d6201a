// The .npz writer, read back field by field as the formats' descriptions have them.

// defines: npz_writer_t, npz_begin, npz_image, npz_end
#include "common/files/npz_writer.h"
// defines: test_begin, test_case, test_end_case, test_finish, check
#include "tests/test.h"
// defines: temporary_begin, temporary_path, temporary_read, temporary_run_child, check_message, temporary_end
#include "tests/temporary.h"

enum { IMAGES = 5, H = 3, W = 7, VALUES = H * W * 3 };

static void fill(uint8_t* pixels, int image) {
    for (int i = 0; i < VALUES; i++) pixels[i] = (uint8_t)(37 * image + 11 * i + image * i);
}

static void write_images(const char* name, int begun, int written, int end) {
    char path[TEMPORARY_PATH];
    uint8_t pixels[VALUES];
    npz_writer_t w;
    npz_begin(&w, temporary_path(path, name), (size_t)begun, H, W);
    for (int i = 0; i < written; i++) {
        fill(pixels, i);
        npz_image(&w, pixels);
    }
    if (end) npz_end(&w);
}

static uint64_t number(const char* bytes, size_t offset, int size) {
    uint64_t value = 0;
    for (int i = size; i--;) value = value << 8 | (uint8_t)bytes[offset + i];
    return value;
}

// One entry's CRC, sizes, name and extra field, which begin alike in the local header and in the directory.
static void check_entry(const char* file, size_t at, size_t name_at, size_t size, uint32_t crc) {
    check(number(file, at + 4, 2) == 0, "stored, not compressed");
    check(number(file, at + 10, 4) == crc, "CRC-32");
    check(number(file, at + 14, 4) == 0xFFFFFFFF && number(file, at + 18, 4) == 0xFFFFFFFF, "sizes have 64 bits");
    check(number(file, at + 22, 2) == 9 && !memcmp(file + name_at, "arr_0.npy", 9), "name");
    check(number(file, at + 24, 2) == 20 && number(file, name_at + 9, 2) == 1 && number(file, name_at + 11, 2) == 16,
          "extra field");
    check(number(file, name_at + 13, 8) == size && number(file, name_at + 21, 8) == size, "sizes");
}

static void test_file(void) {
    if (!test_case("npz: zip and npy headers, values, directory")) return;
    size_t size, local = 30 + 9 + 20;
    uint8_t pixels[VALUES];
    write_images("a.npz", IMAGES, IMAGES, 1);
    char* file = temporary_read("a.npz", &size);
    check(file != NULL, "the file is there");
    size_t npy = 10 + number(file, local + 8, 2), data = npy + IMAGES * VALUES, directory = local + data;
    uint32_t crc = (uint32_t)crc32(0, (const uint8_t*)file + local, (uInt)data);
    check(!memcmp(file, "PK\3\4", 4), "local header");
    check_entry(file, 4, 30, data, crc);
    check(!memcmp(file + local, "\x93NUMPY\1\0", 8) && npy % 64 == 0 && file[local + npy - 1] == '\n', "npy");
    const char* shape = "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 3, 7, 3), }";
    check(!strncmp(file + local + 10, shape, strlen(shape)), "shape");
    for (int i = 0; i < IMAGES; i++) {
        fill(pixels, i);
        check(!memcmp(file + local + npy + (size_t)i * VALUES, pixels, VALUES), "values");
    }
    check(!memcmp(file + directory, "PK\1\2", 4) && number(file, directory + 42, 4) == 0, "directory");
    check_entry(file, directory + 6, directory + 46, data, crc);
    size_t end = directory + 46 + 9 + 20;
    check(!memcmp(file + end, "PK\6\6", 4) && number(file, end + 4, 8) == 44, "end of 64 bits");
    check(number(file, end + 24, 8) == 1 && number(file, end + 32, 8) == 1, "one entry");
    check(number(file, end + 40, 8) == end - directory && number(file, end + 48, 8) == directory, "where it is");
    check(!memcmp(file + end + 56, "PK\6\7", 4) && number(file, end + 64, 8) == end, "locator");
    check(!memcmp(file + end + 76, "PK\5\6", 4) && size == end + 98, "end, and nothing behind it");
    free(file);
    check(temporary_read("a.npz.tmp", NULL) == NULL, "no temporary file is left");
    test_end_case();
}

static void too_many(const char* name) { write_images(name, 2, 3, 1); }
static void too_few(const char* name) { write_images(name, 3, 2, 1); }
static void unfinished(const char* name) { write_images(name, 3, 2, 0); }
static void empty(const char* name) { write_images(name, 0, 0, 1); }

// The file under this name stays what it was, and the program says why.
static void check_refused(void (*function)(const char*), const char* name, const char* message) {
    check_message(function, name, message, NULL);
}

static void test_refusals(void) {
    if (!test_case("npz: wrong counts, no folder, an end before the time")) return;
    temporary_write("b.npz", "earlier", 7);
    check_refused(too_many, "b.npz", "more images than the 2");
    check_refused(too_few, "b.npz", "2 images of the 3");
    check_refused(empty, "b.npz", "0 images");
    check_refused(too_few, "none/b.npz", "cannot create");
    check(temporary_run_child(unfinished, "b.npz") == 0, "a program that ends early");
    char* file = temporary_read("b.npz", NULL);
    check(file && !strcmp(file, "earlier"), "the earlier file is unharmed");
    free(file);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    test_file();
    test_refusals();
    temporary_end();
    return test_finish();
}
