// test_captions.c: images with captions: archives as img2dataset writes them, also damaged ones, folders, filters, and
// batches of them.
//
// What is read must not depend on threads, on processes, or on what an earlier look has left on the disk; and each
// sample is either there or counted. The archives are made here. Look next at common/data/captions.h.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utime.h>

// defines: aspect_t, aspect_open_area, aspect_fill, aspect_close
#include "common/data/aspect.h"
// defines: dataloader_t, dataloader_open, dataloader_next, dataloader_close
#include "common/data/dataloader.h"
// defines: dataset_t, dataset_open, dataset_load, dataset_caption, dataset_filter, dataset_close
#include "common/data/dataset.h"
// defines: image_sizes_create, image_sizes_load, image_sizes_read
#include "common/data/image_sizes.h"
// defines: archive_t, put_member, write_archive
#include "tests/archive.h"
// defines: temporary_*, check_message
#include "tests/temporary.h"
// defines: test_begin, test_case, check, test_end_case, test_finish
#include "tests/test.h"

// ---------------------------------------------------------------------------------------------------------------------
// Making archives

// An image of this size, of which byte 7 tells `level`.
static uint8_t* make_png(int height, int width, int level, size_t* size) {
    image_t image = image_create(height, width);
    memset(image.pixels, level, (size_t)height * width * 3);
    uint8_t* bytes = image_encode_png(&image, NULL, 0, size);
    image_free(&image);
    return bytes;
}

static void put_text(archive_t* a, const char* name, const char* text) {
    put_member(a, NULL, name, '0', text, strlen(text));
}

// A sample of an archive; caption or json NULL: without one.
static void put_sample(archive_t* a, const char* key, int height, int width, int level, const char* caption,
                       const char* json) {
    char name[100];
    size_t size;
    uint8_t* bytes = make_png(height, width, level, &size);
    snprintf(name, sizeof name, "%s.png", key);
    put_member(a, NULL, name, '0', bytes, size);
    free(bytes);
    snprintf(name, sizeof name, "%s.json", key);
    if (json) put_text(a, name, json);
    snprintf(name, sizeof name, "%s.txt", key);
    if (caption) put_text(a, name, caption);
}

// Four archives of five samples. Byte 7 of image i is 10 i; the captions are "number i".
static void make_archives(const char* folder) {
    char name[TEMPORARY_PATH / 2], key[40], caption[40];
    temporary_mkdir(folder);
    for (int k = 0; k < 4; k++) {
        archive_t a = {NULL, 0};
        for (int i = 5 * k; i < 5 * k + 5; i++) {
            snprintf(key, sizeof key, "%05d%04d", k, i);
            snprintf(caption, sizeof caption, "  number %d\r\n", i);
            put_sample(&a, key, 3 + i, 20, 10 * i, caption, i % 2 ? NULL : "{\"punsafe\": 0.25, \"width\": 1}");
        }
        snprintf(name, sizeof name, "%s/%05d.tar", folder, k);
        write_archive(&a, name);
    }
}

static void open_captions(dataset_t* d, const char* folder) {
    char path[TEMPORARY_PATH], spec[TEMPORARY_PATH + 10];
    snprintf(spec, sizeof spec, "captions:%s", temporary_path(path, folder));
    dataset_open(d, spec, SPLIT_TRAIN);
}

static void check_sample(const dataset_t* d, size_t i, int height, int width, int level, const char* caption) {
    image_t image;
    char error[IMAGE_ERROR_SIZE] = "", *text = dataset_caption(d, i);
    int h, w;
    if (strcmp(text, caption)) printf("     sample %zu: \"%s\"\n", i, text);
    check(!strcmp(text, caption), "its caption");
    free(text);
    check(dataset_size(d, i, &h, &w) && h == height && w == width, "its size");
    check(dataset_label(d, i) == 0, "its label");
    if (!dataset_load(d, i, &image, error)) {
        check(0, error);
        return;
    }
    check(image.height == height && image.width == width && image.pixels[7] == level, "it is that image");
    image_free(&image);
}

static void check_archives(const dataset_t* d) {
    char caption[40];
    check(d->count == 20 && d->class_count == 1, "all samples");
    for (int i = 0; i < 20 && d->count == 20; i++) {
        snprintf(caption, sizeof caption, "number %d", i);
        check_sample(d, (size_t)i, 3 + i, 20, 10 * i, caption);
    }
}

static int said(const char* part) {
    char* text = temporary_read("stderr", NULL);
    int found = text && strstr(text, part);
    if (!found) printf("     it did not say \"%s\", but: %s\n", part, text ? text : "nothing");
    free(text);
    return found;
}

// ---------------------------------------------------------------------------------------------------------------------
// Archives

static void test_archives(void) {
    char path[TEMPORARY_PATH], name[1400];
    dataset_t d;
    make_archives("whole");
    for (int pass = 0; pass < 4; pass++) {
        omp_set_num_threads(pass == 1 ? 3 : 1);
        open_captions(&d, "whole");
        check_archives(&d);
        check(strstr(dataset_image_name(&d, 6, name, sizeof name), "whole/00001.tar/000010006.png") == NULL &&
              strstr(name, "whole/00001.tar/000010006") != NULL, "its name in messages");
        check(d.captions.shards[2].is_mapped == (pass > 0 && pass != 2), "from the second time on by its index");
        dataset_close(&d);
        char* index = temporary_read("whole/00002.tar.captions", NULL);
        check(index && !strncmp(index, "aligntok captions 2 ", 20) && strstr(index, " 5\n"), "which is kept");
        check(index && strstr(index, "\t13\t20\t0.25\t-\t-\t000020010\tnumber 10\n"), "a line for each");
        for (size_t cut = 0; pass == 1 && cut < strlen(index); cut += 7) { // a part of one is none
            temporary_write("whole/00002.tar.captions", index, cut);
            open_captions(&d, "whole");
            check(!d.captions.shards[2].is_mapped, "a part of an index is none");
            check_archives(&d);
            dataset_close(&d);
        }
        if (pass == 1) unlink(temporary_path(path, "whole/00002.tar.captions"));
        free(index);
    }
    static const char* const wrong[] = {"-1", "x", "99999999999", "1\n2", "\n", "\t", "-\t9\t"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) { // other numbers in a line
        char* index = temporary_read("whole/00002.tar.captions", NULL);
        char* line = strchr(index, '\n') + 1;
        snprintf(name, sizeof name, "%.*s%s%s", (int)(line - index), index, wrong[i], line + 1);
        temporary_write("whole/00002.tar.captions", name, strlen(name));
        open_captions(&d, "whole");
        check_archives(&d);
        dataset_close(&d);
        free(index);
    }
    struct utimbuf times = {1000000, 1000000};
    utime(temporary_path(path, "whole/00001.tar"), &times);
    open_captions(&d, "whole");
    check(!d.captions.shards[1].is_mapped && d.captions.shards[3].is_mapped, "an archive of another date");
    check_archives(&d);
    dataset_close(&d);
    open_captions(&d, "whole/00002.tar");
    check(d.count == 5, "one archive alone");
    if (d.count == 5) check_sample(&d, 1, 14, 20, 110, "number 11");
    dataset_close(&d);
}

// Three processes, each of which looks first at its own archives: a stopped look goes on, and all see the same.
static void test_processes(void) {
    char path[TEMPORARY_PATH], name[64];
    dataset_t d;
    make_archives("shared");
    log_size = 3;
    for (log_rank = 2; log_rank >= 0; log_rank--) {
        open_captions(&d, "shared");
        check_archives(&d);
        for (int k = 0; k < 4; k++) {
            snprintf(name, sizeof name, "shared/%05d.tar.captions", k);
            int kept = !access(temporary_path(path, name), F_OK);
            check(kept == (k % 3 >= log_rank), "each keeps the indexes of its own");
            check(d.captions.shards[k].is_mapped == (k % 3 > log_rank), "and takes those that are there");
        }
        dataset_close(&d);
    }
    log_rank = 0;
    log_size = 1;
}

// Samples that are not whole.
static void test_incomplete(void) {
    archive_t a = {NULL, 0};
    dataset_t d;
    temporary_mkdir("odd");
    put_sample(&a, "a/1", 4, 5, 1, "one", NULL);
    put_sample(&a, "a/2", 4, 5, 2, NULL, NULL);
    put_sample(&a, "a/3", 4, 5, 3, " \r\n ", NULL);
    put_sample(&a, "a/4", 4, 5, 4, NULL, "{\"caption\": \" from \\u00e9 \", \"key\": \"4\", \"exif\": {\"a\": [1, null]}}");
    put_text(&a, "a/5.txt", "no image");
    put_text(&a, "a/6.json", "{}");
    put_text(&a, "a/7.webp", "RIFF");
    put_text(&a, "a/7.txt", "webp");
    put_text(&a, "a/8.png", "this is none");
    put_text(&a, "a/8.txt", "none");
    put_text(&a, "a/8b.jpg", "RIFF1234WEBPVP8 ");
    put_text(&a, "a/8b.TXT", "webp of another name");
    put_sample(&a, "a/9", 4, 5, 9, "\xef\xbb\xbfnine\r\n",
               "{\"punsafe\": NaN, \"pwatermark\": null, \"aesthetic\": \"good\"}");
    put_sample(&a, "a/9b", 4, 5, 9, NULL, "\xef\xbb\xbf{\"caption\": \"strings\", \"punsafe\": \"0.75\"}");
    put_sample(&a, "a/10", 4, 5, 10, "ten", "{\"punsafe\": 0.5");
    put_sample(&a, "a/11\n", 4, 5, 10, "a name", NULL);
    put_sample(&a, "a/12", 4, 5, 12, "tab\there, \xff, line\r\nend \x7f \xc3\xa9", NULL);
    put_sample(&a, "a/12.seg", 4, 5, 14, NULL, NULL); // another image of a sample, not the image
    put_text(&a, "a/readme", "no ending");
    put_text(&a, "a/.hidden.png", "Mac");
    put_text(&a, "a/13.cls", "7");
    put_sample(&a, "a/14.seg", 4, 5, 14, "dots", NULL);
    put_sample(&a, "b/1", 6, 7, 15, "of the same name in another folder", NULL);
    write_archive(&a, "odd/0.tar");
    temporary_write("odd/beside.png", "x", 1);
    for (int pass = 0; pass < 2; pass++) {
        int saved = temporary_catch_stderr();
        memset(&d, 0, sizeof d);
        open_captions(&d, "odd");
        temporary_release_stderr(saved);
        check(d.count == 6, "those that are whole");
        if (d.count == 6) {
            check_sample(&d, 0, 4, 5, 1, "one");
            check_sample(&d, 1, 4, 5, 4, "from \xc3\xa9");
            check_sample(&d, 2, 4, 5, 9, "nine");
            check_sample(&d, 3, 4, 5, 9, "strings");
            check(captions_line(&d.captions, 3).columns.punsafe == 0.75, "a number in a string");
            check_sample(&d, 4, 4, 5, 12, "tab here, \xef\xbf\xbd, line  end   \xc3\xa9");
            check_sample(&d, 5, 6, 7, 15, "of the same name in another folder");
        }
        static const size_t want[CAPTION_REASONS] = {2, 2, 1, 2, 1, 1, 1};
        for (int k = 0; k < CAPTION_REASONS; k++) check(d.captions.left_out[k] == want[k], caption_reasons[k]);
        dataset_close(&d);
        if (pass) continue; // a sentence is said once
        check(said("2 samples have no image and are left out; the first is ") && said("odd/0.tar/a/5"), "they are named");
        check(said("1 samples have a damaged .json") && said("odd/0.tar/a/10"), "for each reason");
        check(said("2 samples have an image of a kind that is not read (webp") && said("odd/0.tar/a/7.webp"), "by kind");
        check(said("odd holds tar archives and 1 images beside them"), "what is beside archives");
    }
}

static void child_open(const char* folder) {
    dataset_t d;
    open_captions(&d, folder);
    printf("%zu\n", d.count);
    dataset_close(&d);
}

// An archive that is cut off at any place: what is before it is there, and what is not is told.
static void test_cut(void) {
    archive_t a = {NULL, 0};
    dataset_t d;
    char path[TEMPORARY_PATH];
    size_t ends[4];
    temporary_mkdir("cut");
    for (int i = 0; i < 4; i++) {
        char key[8], caption[40];
        snprintf(key, sizeof key, "%d", i);
        snprintf(caption, sizeof caption, "number %d", i);
        put_sample(&a, key, 4, 5, i, caption, "{\"punsafe\": 0.1}");
        ends[i] = a.size;
    }
    put_end(&a);
    temporary_write("cut/1.tar", a.bytes, a.size);
    a.bytes[ends[1] + 150] ^= 1; // a damaged header in the middle
    temporary_write("cut/0.tar", a.bytes, a.size);
    int saved = temporary_catch_stderr();
    open_captions(&d, "cut");
    temporary_release_stderr(saved);
    check(d.count == 5 && d.captions.damaged == 1, "what stands before a damaged header, but for the last sample");
    dataset_close(&d);
    snprintf(path, sizeof path, "cut off or damaged at byte %zu", ends[1]);
    check(said(path), "and where it is");
    a.bytes[ends[1] + 150] ^= 1;
    for (size_t size = 100; size < ends[3]; size += 437) {
        temporary_write("cut/0.tar", a.bytes, size);
        saved = temporary_catch_stderr();
        open_captions(&d, "cut");
        temporary_release_stderr(saved);
        size_t whole = 0;
        int found, last_is_text = 0;
        char error[300];
        tar_t t;
        tar_open(&t, a.bytes, size);
        while ((found = tar_next(&t, error, sizeof error)) > 0) whole += last_is_text = strstr(t.name, ".txt") != NULL;
        if (found < 0 && last_is_text) whole--; // nobody can tell that nothing of this sample is missing
        check(d.count == 4 + whole, "what stands before the cut");
        check(d.captions.damaged == 1, "it is counted");
        for (size_t i = 0; i < whole; i++) {
            char caption[40];
            snprintf(caption, sizeof caption, "number %zu", i);
            check_sample(&d, i, 4, 5, (int)i, caption);
        }
        check_sample(&d, d.count - 1, 4, 5, 3, "number 3");
        dataset_close(&d);
        if (size == 100) check(said("0.tar: the tar archive ends inside a header, at byte 0"), "where it is cut");
    }
    temporary_write("cut/0.tar", a.bytes, ends[1]); // between two samples
    saved = temporary_catch_stderr();
    open_captions(&d, "cut");
    temporary_release_stderr(saved);
    check(d.count == 6 && d.captions.damaged == 1 && said("it has no zeros at its end"), "an archive without an end");
    dataset_close(&d);
    temporary_write("cut/0.tar", "", 0);
    saved = temporary_catch_stderr();
    open_captions(&d, "cut");
    temporary_release_stderr(saved);
    check(d.count == 4 && said("0.tar: the file is empty"), "an empty file");
    dataset_close(&d);
    // an archive that becomes shorter later
    temporary_write("cut/0.tar", a.bytes, ends[0]);
    saved = temporary_catch_stderr();
    open_captions(&d, "cut");
    temporary_release_stderr(saved);
    temporary_write("cut/0.tar", a.bytes, 520);
    image_t image;
    char error[IMAGE_ERROR_SIZE];
    check(!dataset_load(&d, 0, &image, error) && strstr(error, "become shorter"), "one that becomes shorter");
    dataset_close(&d);
    free(a.bytes);
    temporary_mkdir("nothing");
    check_message(child_open, "nothing", "holds no images with captions", "img2dataset");
    temporary_write("nothing/0.tar", "nothing", 7);
    check_message(child_open, "nothing", "holds no images with captions", NULL);
    check_message(child_open, "nowhere", "cannot be found", "captions:FOLDER");
}

// A folder that nobody can write to is read each time.
static void test_not_kept(void) {
    dataset_t d;
    make_archives("closed");
    for (int k = 0; k < 4; k++) {
        char name[64];
        snprintf(name, sizeof name, "closed/%05d.tar.captions.tmp", k);
        temporary_mkdir(name);
    }
    int saved = temporary_catch_stderr();
    open_captions(&d, "closed");
    temporary_release_stderr(saved);
    check_archives(&d);
    check(said("4 archives will be looked through again"), "it is said, once");
    dataset_close(&d);
}

// ---------------------------------------------------------------------------------------------------------------------
// Folders

static void write_png(const char* name, int height, int width, int level) {
    size_t size;
    uint8_t* bytes = make_png(height, width, level, &size);
    temporary_write(name, bytes, size);
    free(bytes);
}

static void write_text(const char* name, const char* text) { temporary_write(name, text, strlen(text)); }

static void test_folder(void) {
    dataset_t d;
    size_t counts[CAPTION_FILTERS];
    temporary_mkdir("files");
    temporary_mkdir("files/b");
    write_png("files/b/x.y.png", 4, 6, 1);
    write_text("files/b/x.y.txt", "in a folder\n");
    write_png("files/a.png", 7, 5, 2);
    write_text("files/a.txt", "\xef\xbb\xbf first");
    write_png("files/c.png", 7, 5, 3);
    write_png("files/d.png", 7, 5, 4);
    write_text("files/d.json", "{\"caption\": \"by json\", \"punsafe\": 0.75}");
    write_text("files/e.txt", "no image");
    write_text("files/f.webp", "RIFF");
    char* longer = (char*)malloc(70002);
    for (int i = 0; i < 70001; i++) longer[i] = i % 2 ? '\xc3' : i ? '\xa9' : 'x';
    longer[70001] = 0;
    write_png("files/g.png", 7, 5, 5);
    write_text("files/g.txt", longer);
    longer[65535] = 0; // where the character at 65536 begins
    write_text("files/.f.txt", "hidden");
    int saved = temporary_catch_stderr();
    open_captions(&d, "files");
    temporary_release_stderr(saved);
    check(d.count == 4, "images with captions");
    if (d.count == 4) {
        check_sample(&d, 0, 7, 5, 2, "first");
        check_sample(&d, 1, 4, 6, 1, "in a folder");
        check_sample(&d, 2, 7, 5, 4, "by json");
        check_sample(&d, 3, 7, 5, 5, longer);
    }
    free(longer);
    check(said("1 samples have no caption") && said("files/c.png") && said("files/e.txt") && said("left out: .webp (1);"),
          "the others are named");
    caption_filter_t f = {0.5, 0.8, 4.5, 4, 2.1};
    dataset_filter(&d, &f, counts);
    check(d.count == 3 && counts[0] == 1, "what its json tells is known");
    dataset_close(&d);
}

static void test_list(void) {
    dataset_t d;
    temporary_mkdir("list");
    temporary_mkdir("list/sub");
    write_png("list/2.png", 4, 6, 2);
    write_png("list/1.png", 4, 6, 1);
    write_png("list/sub/3.png", 4, 6, 3);
    write_png("list/4.png", 4, 6, 4);
    write_text("list/1.txt", "not this one");
    write_text("list/captions.jsonl",
               "\xef\xbb\xbf{\"file\": \"sub/3.png\", \"caption\": \"three\", \"aesthetic\": 6.5}\r\n \n{\"caption\": \"one \\n\", "
               "\"file\": \"./1.png\"}\n{\"file\": \"5.png\", \"caption\": \"five\"}\n{\"file\": \"../a.png\", \"caption\": "
               "\"outside\"}\n{\"file\": \"1.png\", \"caption\": \"again\"}\n{\"file\": \"2.png\", \"caption\": \"two\"}");
    int saved = temporary_catch_stderr();
    open_captions(&d, "list");
    temporary_release_stderr(saved);
    check(d.count == 4, "what the list names");
    if (d.count == 4) {
        check_sample(&d, 0, 4, 6, 3, "three");
        check_sample(&d, 1, 4, 6, 1, "one");
        check_sample(&d, 2, 4, 6, 1, "again");
        check_sample(&d, 3, 4, 6, 2, "two");
    }
    check(d.captions.left_out[CAPTION_NO_IMAGE] == 2 && d.captions.left_out[CAPTION_NONE] == 1, "in both directions");
    check(said("list/5.png") && said("list/4.png"), "named");
    dataset_close(&d);
    write_text("list/captions.jsonl", "{\"file\": \"1.png\", \"caption\": \"one\"}\n{\"file\": \"2.png\"}\n");
    check_message(child_open, "list", "captions.jsonl, line 2", "\"file\" and \"caption\"");
    write_text("list/captions.jsonl", "{\"file\": \"1.png\", \"caption\": \"one}\n");
    check_message(child_open, "list", "captions.jsonl, line 1", NULL);
}

// train and val are two splits.
static void test_splits(void) {
    char path[TEMPORARY_PATH], spec[TEMPORARY_PATH + 10];
    dataset_t d;
    temporary_mkdir("splits");
    make_archives("splits/train");
    temporary_mkdir("splits/val");
    write_png("splits/val/a.png", 4, 5, 77);
    write_text("splits/val/a.txt", "held out");
    open_captions(&d, "splits");
    check_archives(&d);
    dataset_close(&d);
    snprintf(spec, sizeof spec, "captions:%s", temporary_path(path, "splits"));
    dataset_open(&d, spec, SPLIT_VAL);
    check(d.count == 1, "val");
    check_sample(&d, 0, 4, 5, 77, "held out");
    dataset_close(&d);
}

// ---------------------------------------------------------------------------------------------------------------------
// Filters and batches

static void child_filter(const char* folder) {
    dataset_t d;
    size_t counts[CAPTION_FILTERS];
    caption_filter_t f = {0, 0, 0, 1000, 2};
    open_captions(&d, folder);
    dataset_filter(&d, &f, counts);
}

static void test_filters(void) {
    archive_t a = {NULL, 0};
    dataset_t d;
    size_t counts[CAPTION_FILTERS];
    temporary_mkdir("filters");
    put_sample(&a, "0", 40, 40, 0, "no json", NULL);
    put_sample(&a, "1", 40, 40, 1, "good", "{\"punsafe\": 0.499, \"pwatermark\": 0.799, \"aesthetic\": 4.5}");
    put_sample(&a, "2", 40, 40, 2, "unsafe", "{\"punsafe\": 0.5, \"pwatermark\": 0.9}");
    put_sample(&a, "3", 40, 40, 3, "mark", "{\"punsafe\": 0.1, \"pwatermark\": 0.8}");
    put_sample(&a, "4", 40, 40, 4, "ugly", "{\"aesthetic\": 4.49}");
    put_sample(&a, "5", 19, 40, 5, "thin", NULL);
    put_sample(&a, "6", 20, 43, 6, "long", NULL);
    put_sample(&a, "7", 42, 20, 7, "still good", "{\"other\": 1}");
    write_archive(&a, "filters/0.tar");
    open_captions(&d, "filters");
    check(d.count == 8, "all");
    caption_filter_t f = {0.5, 0.8, 4.5, 20, 2.1};
    dataset_filter(&d, &f, counts);
    check(d.count == 3, "what passes");
    for (int k = 0; k < CAPTION_FILTERS; k++) check(counts[k] == 1, caption_filters[k]);
    check_sample(&d, 1, 40, 40, 1, "good");
    check_sample(&d, 2, 42, 20, 7, "still good");
    dataset_close(&d);
    check_message(child_filter, "filters", "no image passes", NULL);
}

// Batches by buckets: each image with its caption, damaged ones replaced, the same for threads and ranks; resized by
// Pillow's filter.
static void test_batches(void) {
    enum { BATCH = 6, STEPS = 24, N = 40, MOST = 24 * 48 * 3 };
    static uint8_t whole[STEPS][BATCH][MOST];
    static int64_t ids[STEPS][BATCH];
    archive_t a = {NULL, 0};
    dataset_t d;
    aspect_t aspect;
    temporary_mkdir("batches");
    for (int i = 0; i < N; i++) {
        char key[16];
        snprintf(key, sizeof key, "%02d", i);
        put_sample(&a, key, 30 + i % 5 * 7, 30 + i % 3 * 15, 6 * i, key, NULL);
        if (i == 7) a.bytes[a.size - 3 * TAR_BLOCK + 45] ^= 0x55; // in its pixels: the header is good
    }
    write_archive(&a, "batches/0.tar");
    open_captions(&d, "batches");
    check(d.count == N, "the headers are good");
    int* sizes = image_sizes_create(&d);
    check(!image_sizes_load(sizes, &d), "sizes are in the index");
    image_sizes_read(sizes, &d, 0, d.count, 1, 0);
    aspect_open_area(&aspect, 24, 4, 2.1);
    aspect_fill(&aspect, sizes, d.count);
    free(sizes);
    int saved = temporary_catch_stderr(), shapes = 0;
    for (int world = 1; world <= 3; world++) {
        for (int rank = 0; rank < world; rank++) {
            dataloader_options_t options = {BATCH, 0, 0, 0, 1, rank, world, 2 * (world - 1), 5, &aspect};
            dataloader_t loader;
            dataloader_open(&loader, &d, &options, 0);
            for (int s = 0; s < STEPS; s++) {
                const batch_t* b = dataloader_next(&loader);
                size_t bytes = (size_t)b->H * b->W * 3;
                shapes |= b->H == b->W ? 1 : b->H < b->W ? 2 : 4;
                for (int i = 0; i < b->count; i++) {
                    const uint8_t* one = b->pixels + i * bytes;
                    int at = rank * b->count + i;
                    if (world == 1) memcpy(whole[s][at], one, bytes), ids[s][at] = b->ids[i];
                    check(!memcmp(whole[s][at], one, bytes) && ids[s][at] == b->ids[i], "the same by all");
                    check(b->ids[i] != 7 && one[7] == (uint8_t)(6 * b->ids[i]), "the image of its number");
                }
            }
            dataloader_close(&loader);
        }
    }
    temporary_release_stderr(saved);
    check(shapes == 7, "batches of all shapes");
    check(said("batches/0.tar/07: "), "the damaged one is named");
    aspect_close(&aspect);
    dataset_close(&d);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("archives and their indexes")) { test_archives(); test_end_case(); }
    if (test_case("processes")) { test_processes(); test_end_case(); }
    if (test_case("samples that are not whole")) { test_incomplete(); test_end_case(); }
    if (test_case("archives that are cut off")) { test_cut(); test_end_case(); }
    if (test_case("an index that cannot be written")) { test_not_kept(); test_end_case(); }
    if (test_case("a folder with text files")) { test_folder(); test_end_case(); }
    if (test_case("a folder with a list")) { test_list(); test_end_case(); }
    if (test_case("splits")) { test_splits(); test_end_case(); }
    if (test_case("filters")) { test_filters(); test_end_case(); }
    if (test_case("batches: buckets, threads, ranks, damage")) { test_batches(); test_end_case(); }
    temporary_end();
    return test_finish();
}
