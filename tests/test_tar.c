// test_tar.c: ImageNet as it is downloaded: tar archives, and tars in a tar, read where the images lie.
//
// The archives are made here, by the formats' descriptions. Look next at common/files/tar.h and
// common/data/tar_index.h.

// defines: dataset_open, dataset_load, dataset_need_labels, dataset_close
#include "common/data/dataset.h"
// defines: tar_t, tar_open, tar_next
#include "common/files/tar.h"
// defines: archive_t, put_member, put_end, write_archive
#include "tests/archive.h"
// defines: temporary_*
#include "tests/temporary.h"
// defines: test_begin, test_case, check, test_end_case, test_finish
#include "tests/test.h"

// All that the format has: a folder, a plain file, a prefix, long names of both kinds, an empty file.
static archive_t make_archive(void) {
    archive_t a = {NULL, 0};
    char longer[300], pax[400];
    memset(longer, 'n', 200);
    strcpy(longer + 200, ".jpg");
    put_member(&a, NULL, "folder/", '5', NULL, 0);
    put_member(&a, NULL, "folder/a.jpg", '0', "abc", 3);
    put_member(&a, "some/where", "b.jpg", '0', longer, 204);
    put_member(&a, NULL, "././@LongLink", 'L', longer, 205);
    put_member(&a, NULL, "cut", '0', "long", 4);
    int length = snprintf(pax, sizeof pax, "21 mtime=1234567.890\n%d path=p/%s\n", 12 + 204, longer);
    put_member(&a, NULL, "pax", 'x', pax, (size_t)length);
    put_member(&a, NULL, "cut", 0, "pax", 3);
    put_member(&a, NULL, "empty.jpg", '0', NULL, 0);
    put_member(&a, NULL, "link.jpg", '2', NULL, 0);
    put_end(&a);
    return a;
}

static void test_members(void) {
    static const struct { const char *start, *content; size_t length; } wanted[5] = {
        {"folder/a.jpg", "abc", 3}, {"some/where/b.jpg", "nnn", 204}, {"nnnnnnnn", "long", 4}, {"p/nnnnnn", "pax", 3},
        {"empty.jpg", "", 0}};
    archive_t a = make_archive();
    char error[300] = "";
    tar_t t;
    tar_open(&t, a.bytes, a.size);
    for (int i = 0; i < 5; i++) {
        check(tar_next(&t, error, sizeof error) == 1, error);
        check(!strncmp(t.name, wanted[i].start, strlen(wanted[i].start)), wanted[i].start);
        check(t.length == wanted[i].length, "its length");
        check(!memcmp(a.bytes + t.begin, wanted[i].content, strlen(wanted[i].content)), "its content");
        if (i == 2) check(strlen(t.name) == 204, "a long name of GNU's");
        if (i == 3) check(strlen(t.name) == 206, "a long name of POSIX'");
    }
    check(tar_next(&t, error, sizeof error) == 0, "the end");
    tar_open(&t, a.bytes, a.size - 2 * TAR_BLOCK); // some writers leave the zeros out
    int n = 0, found;
    while ((found = tar_next(&t, error, sizeof error)) > 0) n++;
    check(n == 5 && found == 0, "without the zeros at the end");
    tar_open(&t, a.bytes, 3 * TAR_BLOCK + 100);
    while ((found = tar_next(&t, error, sizeof error)) > 0) {}
    check(found < 0 && strstr(error, "cut off"), "a cut archive");
    a.bytes[TAR_BLOCK + 3] ^= 1;
    tar_open(&t, a.bytes, a.size);
    check(tar_next(&t, error, sizeof error) < 0 && strstr(error, "at byte 512"), "a damaged header");
    free(a.bytes);
}

// Damaged archives by the thousand: members lie inside, or the archive is refused.
static void test_mutations(void) {
    archive_t a = make_archive();
    int ends = 0, refused = 0;
    for (int k = 0; k < 100000; k++) {
        size_t size = a.size;
        unsigned char* bytes = (unsigned char*)malloc(size);
        memcpy(bytes, a.bytes, size);
        for (int n = 1 + k % 3; n--;) {
            size_t at = (size_t)((test_uniform() + 1) / 2 * (double)size);
            bytes[at < size ? at : 0] = (unsigned char)(k % 5 ? (int)(128 * (test_uniform() + 1)) : 0xFF);
        }
        for (int h = 0; k % 2 && h + TAR_BLOCK <= (int)size; h += TAR_BLOCK) { // checksums that fit again
            size_t sum = 0;
            if (memcmp(bytes + h + 257, "ustar", 5)) continue;
            memset(bytes + h + 148, ' ', 8);
            for (int i = 0; i < TAR_BLOCK; i++) sum += bytes[h + i];
            snprintf((char*)bytes + h + 148, 8, "%06zo", sum);
        }
        if (k % 7 == 0) size = (size_t)((test_uniform() + 1) / 2 * (double)size);
        unsigned char* exact = (unsigned char*)malloc(size ? size : 1); // so that a sanitizer sees a byte too many
        memcpy(exact, bytes, size);
        char error[300];
        tar_t t;
        int found;
        tar_open(&t, exact, size);
        while ((found = tar_next(&t, error, sizeof error)) > 0) {
            check(t.begin <= size && t.length <= size - t.begin && strlen(t.name) < TAR_NAME, "a member lies inside");
        }
        ends += found == 0;
        refused += found < 0;
        free(bytes);
        free(exact);
    }
    check(ends > 1000 && refused > 1000, "some open, some do not");
    free(a.bytes);
}

// A PNG of one colour, for the caller to free.
static uint8_t* make_png(int level, size_t* size) {
    image_t image = image_create(3, 5);
    memset(image.pixels, level, 45);
    uint8_t* bytes = image_encode_png(&image, NULL, 0, size);
    image_free(&image);
    return bytes;
}

static void put_png(archive_t* a, const char* name, int level) {
    size_t size = 0;
    uint8_t* bytes = make_png(level, &size);
    put_member(a, NULL, name, '0', bytes, size);
    free(bytes);
}

// train: a tar of tars, whose classes are not in order; val: images, with labels beside.
static void make_imagenet(void) {
    archive_t train = {NULL, 0}, val = {NULL, 0};
    static const char* const classes[3] = {"n02", "n01.b", "n01"};
    char name[64];
    temporary_mkdir("imagenet");
    for (int k = 0; k < 3; k++) {
        archive_t inner = {NULL, 0};
        for (int i = 2; i--;) {
            snprintf(name, sizeof name, "%s_%d.JPEG", classes[k], i);
            put_png(&inner, name, 10 * (2 * k + i));
        }
        put_member(&inner, NULL, "._n.JPEG", '0', "Mac", 3);
        put_member(&inner, NULL, "other.webp", '0', "x", 1);
        put_end(&inner);
        snprintf(name, sizeof name, "%s.tar", classes[k]);
        put_member(&train, NULL, name, '0', inner.bytes, inner.size);
        free(inner.bytes);
    }
    write_archive(&train, "imagenet/ILSVRC2012_img_train.tar");
    for (int i = 3; i--;) {
        snprintf(name, sizeof name, "ILSVRC2012_val_%08d.JPEG", i + 1);
        put_png(&val, name, 100 + i);
    }
    write_archive(&val, "imagenet/ILSVRC2012_img_val.tar");
    temporary_write("imagenet/val.txt", "ILSVRC2012_val_00000001.JPEG 2\nILSVRC2012_val_00000002.JPEG 0\n"
                                        "ILSVRC2012_val_00000003.JPEG 1\n", 93);
}

static void check_image(const dataset_t* d, size_t i, int level) {
    image_t image;
    char error[IMAGE_ERROR_SIZE];
    check(dataset_load(d, i, &image, error), "an image is read");
    check(image.height == 3 && image.width == 5 && image.pixels[7] == level, "it is that one");
    image_free(&image);
}

static void test_imagenet(void) {
    static const int levels[6] = {40, 50, 20, 30, 0, 10};
    char path[TEMPORARY_PATH];
    dataset_t train, val;
    make_imagenet();
    temporary_path(path, "imagenet");
    int saved = temporary_catch_stderr();
    for (int pass = 0; pass < 2; pass++) { // the second time by the index
        dataset_open(&train, path, SPLIT_TRAIN);
        dataset_open(&val, path, SPLIT_VAL);
        check(train.count == 6 && train.class_count == 3 && !strcmp(train.class_names[1], "n01.b"), "classes in order");
        for (int i = 0; i < 6; i++) check(train.labels[i] == i / 2, "labels");
        for (int i = 0; i < 6; i++) check_image(&train, (size_t)i, levels[i]);
        check(strstr(train.paths[2], "ILSVRC2012_img_train.tar/n01.b/n01.b_0.JPEG") != NULL, "names for messages");
        check(val.count == 3 && val.class_count == 3 && val.unlabelled, "val has no labels");
        for (int i = 0; i < 3; i++) check_image(&val, (size_t)i, 100 + i);
        dataset_need_labels(&val);
        check(val.labels[0] == 2 && val.labels[1] == 0 && val.labels[2] == 1, "but in the file beside it");
        dataset_close(&train);
        dataset_close(&val);
        size_t size;
        char* index = temporary_read("imagenet/ILSVRC2012_img_train.tar.index", &size);
        check(index && !strncmp(index, "aligntok tar index 1 ", 21), "an index is kept");
        check(index && strstr(index, " n01/n01_0.JPEG\n"), "of the images");
        free(index);
    }
    temporary_write("imagenet/ILSVRC2012_img_train.tar.index", "aligntok tar index 1 5 5\n0 99999 n01/a.png\n", 43);
    dataset_open(&train, path, SPLIT_TRAIN); // one of another archive is made again
    check(train.count == 6, "an index of another archive");
    dataset_close(&train);
    temporary_release_stderr(saved);
    char* said = temporary_read("stderr", NULL);
    check(said && strstr(said, "left out: .webp (3)"), "other kinds are named");
    free(said);
}

// Any archive: classes are the first folders behind train/.
static void test_plain(void) {
    char path[TEMPORARY_PATH];
    archive_t a = {NULL, 0};
    dataset_t d;
    put_png(&a, "./train/dog/x/1.png", 1);
    put_png(&a, "./train/cat/2.png", 2);
    write_archive(&a, "pets.tar");
    dataset_open(&d, temporary_path(path, "pets.tar"), SPLIT_TRAIN);
    check(d.count == 2 && d.class_count == 2 && !strcmp(d.class_names[0], "cat") && d.labels[1] == 1, "two classes");
    check_image(&d, 0, 2);
    dataset_close(&d);
}

static void child_open(const char* name) {
    char path[TEMPORARY_PATH];
    dataset_t d;
    dataset_open(&d, temporary_path(path, name), SPLIT_TRAIN);
}

static void test_refused(void) {
    temporary_write("text.tar", "this is no archive of anything at all", 37);
    check_message(child_open, "text.tar", "text.tar: the tar archive ends inside a header", NULL);
    archive_t a = {NULL, 0};
    put_member(&a, NULL, "readme.txt", '0', "x", 1);
    write_archive(&a, "empty.tar");
    check_message(child_open, "empty.tar", "empty.tar holds no images", NULL);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("the members of an archive")) { test_members(); test_end_case(); }
    if (test_case("100,000 damaged archives: refused or read, nothing else")) { test_mutations(); test_end_case(); }
    if (test_case("ImageNet's archives as a data set, with and without an index")) { test_imagenet(); test_end_case(); }
    if (test_case("an archive of folders")) { test_plain(); test_end_case(); }
    if (test_case("refused: what is no archive, and one without images")) { test_refused(); test_end_case(); }
    temporary_end();
    return test_finish();
}
