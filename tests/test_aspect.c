// test_aspect.c: images that keep their aspect ratio: sizes read from headers and kept in an index, buckets, the order
// of their batches, and the batches themselves.
//
// The heart is, as in test_dataloader.c, that a batch is a function of (seed, step), for any number of threads and
// ranks and from any first step; and here that each image is seen as often as any other, however few have its shape.
// Look next at common/data/aspect.h and common/data/image_sizes.h.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// defines: aspect_t, aspect_open, aspect_fill, aspect_bucket, aspect_of_step
#include "common/data/aspect.h"
// defines: dataloader_t, dataloader_open, dataloader_next, dataloader_close
#include "common/data/dataloader.h"
// defines: dataset_t, dataset_open, dataset_close
#include "common/data/dataset.h"
// defines: image_sizes_create, image_sizes_load, image_sizes_read, image_sizes_save
#include "common/data/image_sizes.h"
// defines: temporary_*
#include "tests/temporary.h"
// defines: test_begin, test_case, check, test_uniform, test_end_case, test_finish
#include "tests/test.h"

// ---------------------------------------------------------------------------------------------------------------------
// Buckets

// Sorted, sizes rise, each has images, and each image is found in its own.
static void check_sorted(aspect_t* a, const int* sizes, size_t count) { // (count, 2)
    aspect_sort(a);
    for (int k = 0; k < a->count; k++) {
        const aspect_bucket_t* b = &a->buckets[k];
        check(b->count > 0 && (!k || b[-1].H < b->H || (b[-1].H == b->H && b[-1].W < b->W)), "rising sizes of images");
    }
    for (size_t i = 0; i < count; i++) {
        if (!sizes[2 * i]) continue;
        const aspect_bucket_t* b = &a->buckets[aspect_bucket(a, sizes[2 * i], sizes[2 * i + 1])];
        size_t at = 0;
        while (at < b->count && a->members[b->first + at] != i) at++;
        check(at < b->count, "its image");
    }
}

static void test_buckets(void) {
    static const struct { int height, width, H, W, cut; } cases[] = {
        {256, 256, 256, 256, 0}, {1, 1, 256, 256, 0},      {3000, 4000, 256, 336, 0}, {4000, 3000, 336, 256, 0},
        {480, 270, 448, 256, 0}, {1000, 2000, 256, 512, 0}, {2000, 1000, 512, 256, 0}, {100, 2000, 256, 512, 1},
        {20, 1, 512, 256, 1},    {256, 271, 256, 256, 0},  {256, 272, 256, 272, 0},   {527, 256, 512, 256, 0},
        {528, 256, 512, 256, 1}, {5, 7, 256, 352, 0}};
    enum { CASES = sizeof cases / sizeof *cases };
    int sizes[2 * CASES + 2] = {0};
    aspect_t a;
    aspect_open(&a, 256, 16, 2);
    check(a.count == 33 && a.longest == 512 && aspect_pixels(&a) == 256 * 512, "33 sizes up to 2 : 1");
    for (int i = 0; i < CASES; i++) {
        const aspect_bucket_t* b = &a.buckets[aspect_bucket(&a, cases[i].height, cases[i].width)];
        int height, width;
        if (b->H != cases[i].H || b->W != cases[i].W) printf("     case %d: %d x %d\n", i, b->H, b->W);
        check(b->H == cases[i].H && b->W == cases[i].W, "the size of an image");
        cover_size(cases[i].height, cases[i].width, b->H, b->W, &height, &width);
        check(height >= b->H && width >= b->W, "the resized image covers it");
        check(cases[i].cut || (height - b->H < 16 && width - b->W < 16), "and loses less than a step");
        check(height == b->H || width == b->W, "on one side nothing");
        sizes[2 * i] = cases[i].height;
        sizes[2 * i + 1] = cases[i].width;
    }
    aspect_fill(&a, sizes, CASES + 1);
    check(a.images == CASES && a.cut == 3, "all but the one without a size; three lose their ends");
    size_t seen = 0;
    for (int k = 0; k < a.count; k++) {
        const aspect_bucket_t* b = &a.buckets[k];
        check(b->first == seen, "one bucket behind the other");
        for (size_t i = 0; i < b->count; i++) {
            uint32_t m = a.members[b->first + i];
            check(cases[m].H == b->H && cases[m].W == b->W && (!i || a.members[b->first + i - 1] < m), "in order");
        }
        seen += b->count;
    }
    check(seen == a.images, "each in one bucket");
    check_sorted(&a, sizes, CASES + 1);
    check(a.count == 8 && aspect_bucket(&a, 256, 500) == a.count, "a size that no image has is left out");
    aspect_close(&a);
    aspect_open(&a, 32, 8, 1.2);
    check(a.count == 1 && a.longest == 32 && a.buckets[0].H == 32 && a.buckets[0].W == 32,
          "too little for another size");
    aspect_close(&a);
}

// Buckets of one area: the sizes, and which image belongs to which.
static void test_area_buckets(void) {
    static const struct { int height, width, H, W, cut; } cases[] = {
        {256, 256, 256, 256, 0}, {800, 1200, 208, 304, 0}, {1200, 800, 304, 208, 0}, {1, 1, 256, 256, 0},
        {100, 110, 240, 272, 0}, {600, 1400, 176, 368, 1}, {1400, 600, 368, 176, 1}, {23, 11, 368, 176, 0},
        {1000, 1596, 208, 304, 0}, {1000, 1602, 192, 336, 0}}; // between 19 : 13 and 21 : 12, by the logarithm
    enum { CASES = sizeof cases / sizeof *cases };
    int sizes[2 * CASES + 2] = {0};
    aspect_t a;
    aspect_open_area(&a, 256, 16, 4);
    check(a.count == 17 && a.buckets[8].H == 8 * 16 && a.buckets[8].W == 32 * 16 && a.longest == 512, "17 up to 4 : 1");
    aspect_close(&a);
    for (int times = 1; times <= 2; times++) {
        static const int grids[6][2] = {{16, 16}, {15, 17}, {14, 18}, {13, 19}, {12, 21}, {11, 23}};
        aspect_open_area(&a, 256 * times, 16, 2.1);
        check(a.count == 11 && a.longest == 368 * times, "11 up to 2.1 : 1");
        check(aspect_pixels(&a) == 65536 * (size_t)times * times, "none is larger than the square");
        for (int k = 0; k < 11; k++) {
            const int* grid = grids[k > 5 ? k - 5 : k];
            check(a.buckets[k].H == grid[k > 5] * 16 * times && a.buckets[k].W == grid[k <= 5] * 16 * times, "a size");
        }
        if (times == 1) aspect_close(&a);
    }
    aspect_close(&a);
    aspect_open_area(&a, 48, 8, 2.1);
    check(a.count == 3 && a.buckets[1].H == 40 && a.buckets[1].W == 56 && a.buckets[2].H == 56, "those of the miniature");
    aspect_close(&a);
    aspect_open_area(&a, 16, 16, 2.1);
    check(a.count == 1 && a.longest == 16 && a.buckets[0].H == 16, "one unit has no other shape");
    aspect_close(&a);
    aspect_open_area(&a, 256, 16, 2.1);
    for (int i = 0; i < CASES; i++) {
        const aspect_bucket_t* b = &a.buckets[aspect_bucket(&a, cases[i].height, cases[i].width)];
        int height, width;
        if (b->H != cases[i].H || b->W != cases[i].W) printf("     case %d: %d x %d\n", i, b->H, b->W);
        check(b->H == cases[i].H && b->W == cases[i].W, "the size of an image");
        cover_size(cases[i].height, cases[i].width, b->H, b->W, &height, &width);
        check(height >= b->H && width >= b->W && (height == b->H || width == b->W), "the resized image just covers it");
        check(aspect_cuts(&a, cases[i].height, cases[i].width) == cases[i].cut, "what is longer than any loses its ends");
        sizes[2 * i] = cases[i].height;
        sizes[2 * i + 1] = cases[i].width;
    }
    aspect_fill(&a, sizes, CASES + 1);
    check(a.images == CASES && a.cut == 2, "all but the one without a size");
    check_sorted(&a, sizes, CASES + 1);
    aspect_close(&a);
}

// The batches that are left of an epoch are drawn as lots: of each bucket by the number that it still has.
static void test_lots(void) {
    static const size_t counts[3] = {600, 300, 100};
    enum { BATCH = 10, EPOCH = 100, SEEDS = 1000 };
    double drawn[3] = {0}, wanted[3] = {0};
    aspect_t a;
    aspect_open_area(&a, 48, 8, 2.1);
    for (int k = 0; k < 3; k++) a.buckets[k].count = counts[k], a.images += counts[k];
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        double left[3] = {60, 30, 10}, all = EPOCH;
        for (uint64_t s = 0; s < 60; s++, all--) { // the lots r_k move at most one batch of each to another epoch
            aspect_step_t at = aspect_of_step(&a, seed, BATCH, s);
            for (int k = 0; k < 3; k++) wanted[k] += left[k] / all;
            drawn[at.bucket]++;
            left[at.bucket]--;
        }
    }
    for (int k = 0; k < 3; k++) check(fabs(drawn[k] / wanted[k] - 1) < 0.03, "each by what it has left");
    aspect_close(&a);
}

// Buckets of so many images, without their files.
static void make_buckets(aspect_t* a, const size_t* counts, int n) { // (n), the first of the sizes
    aspect_open(a, 32, 8, 2);
    for (int k = 0; k < n; k++) {
        a->buckets[k].count = counts[k];
        a->buckets[k].first = a->images;
        a->images += counts[k];
    }
}

// Steps one behind the other: which batches of which bucket they are.
static void test_order(void) {
    static const size_t counts[7] = {100, 37, 0, 7, 1, 8, 640};
    enum { BATCH = 8, STEPS = 4000 };
    aspect_t a;
    uint64_t next[9] = {0}, late[9] = {0};
    uint8_t* used = (uint8_t*)calloc(9 * STEPS, 1);
    make_buckets(&a, counts, 7);
    for (uint64_t s = 0; s < STEPS; s++) {
        aspect_step_t at = aspect_of_step(&a, 5, BATCH, s);
        check(at.bucket < 7 && counts[at.bucket] > 0, "no empty bucket has a step");
        check(at.batch < STEPS && !used[at.bucket * STEPS + at.batch], "each batch once");
        used[at.bucket * STEPS + at.batch] = 1;
        next[at.bucket]++;
        aspect_step_t again = aspect_of_step(&a, 5, BATCH, s);
        check(again.bucket == at.bucket && again.batch == at.batch, "the step alone decides");
        if (s == STEPS / 20) memcpy(late, next, sizeof late);
    }
    for (int k = 0; k < 7; k++) { // as often as its images ask, at any time, but for what an epoch and the lots leave
        double share = (double)counts[k] / (double)a.images, epoch = (double)a.images / BATCH;
        check(fabs((double)next[k] - STEPS * share) <= epoch * share + 2, "each image as often as any other");
        check(fabs((double)late[k] - STEPS / 20 * share) <= epoch * share + 2, "and early on");
        uint64_t most = 0;
        for (uint64_t q = 0; q < STEPS; q++) most = used[k * STEPS + q] ? q + 1 : most;
        check(most <= next[k] + (uint64_t)(epoch * share) + 1, "the batches of a bucket in order, up to an epoch");
    }
    int differs = 0, mixed = 0;
    for (uint64_t s = 0; s < 50; s++) {
        differs += aspect_of_step(&a, 5, BATCH, s).bucket != aspect_of_step(&a, 6, BATCH, s).bucket;
        mixed += aspect_of_step(&a, 5, BATCH, s).bucket != aspect_of_step(&a, 5, BATCH, s + 1).bucket;
    }
    check(differs > 5 && mixed > 5, "another seed, another order; and buckets take turns");
    aspect_step_t far = aspect_of_step(&a, 5, BATCH, 1000000000000ull);
    check(far.bucket < 7 && counts[far.bucket] > 0, "far ahead");
    free(used);
    aspect_close(&a);
    make_buckets(&a, (const size_t[1]){3}, 1); // less than a batch in all
    for (uint64_t s = 0; s < 20; s++) check(aspect_of_step(&a, 1, BATCH, s).batch == s, "one after the other");
    aspect_close(&a);
}

// ---------------------------------------------------------------------------------------------------------------------
// Headers and the index

static void write_image(const char* name, int height, int width, int tint) {
    char path[TEMPORARY_PATH], error[IMAGE_ERROR_SIZE];
    image_t image = image_create(height, width);
    for (int i = 0; i < height * width * 3; i++) image.pixels[i] = (uint8_t)(tint + 60 * (test_uniform() + 1));
    if (!image_write_png(temporary_path(path, name), &image, NULL, 0, error)) printf("%s\n", error);
    image_free(&image);
}

static int header_of(const char* path, int* height, int* width) {
    FILE* file = fopen(path, "rb");
    if (!file) return 0;
    int known = image_read_size(file, height, width);
    fclose(file);
    return known;
}

static void test_headers(void) {
    static const char* const names[10] = {"alpha.png", "cmyk.jpg", "colour.jpg", "grey.jpg", "grey.png",
                                          "grey_16bit.png", "grey_alpha.png", "one_pixel.png", "palette.png",
                                          "rgb_16bit.png"};
    char path[TEMPORARY_PATH], error[IMAGE_ERROR_SIZE];
    int height, width;
    for (int i = 0; i < 10; i++) {
        image_t image;
        snprintf(path, sizeof path, "tests/images/%s", names[i]);
        check(image_load(&image, path, error), names[i]);
        check(header_of(path, &height, &width) && height == image.height && width == image.width, names[i]);
        image_free(&image);
    }
    // a JPEG with a table before its frame, padding, and a comment longer than a buffer
    uint8_t jpeg[70100] = {0xFF, 0xD8, 0xFF, 0xC4, 0, 4, 9, 9, 0xFF, 0xFF, 0xFF, 0xFE, 0xFF, 0xFF};
    static const uint8_t frame[19] = {0xFF, 0xC2, 0, 17, 8, 0x01, 0x02, 0x03, 0x04, 3, 1, 17, 0, 2, 17, 1, 3, 17, 1};
    memcpy(jpeg + 12 + 65535, frame, sizeof frame);
    temporary_write("far.jpg", jpeg, sizeof jpeg);
    check(header_of(temporary_path(path, "far.jpg"), &height, &width) && height == 0x102 && width == 0x304, "far in");
    for (size_t cut = 0; cut < 24; cut++) {
        temporary_write("cut.jpg", jpeg, cut < 20 ? cut : 12 + 65535 + cut - 20);
        check(!header_of(temporary_path(path, "cut.jpg"), &height, &width), "cut off");
    }
    jpeg[12 + 65535 + 5] = jpeg[12 + 65535 + 6] = 0;
    temporary_write("zero.jpg", jpeg, sizeof jpeg);
    check(!header_of(temporary_path(path, "zero.jpg"), &height, &width), "a height of zero");
    temporary_write("large.ppm", "P6 40000 3 255\n", 15);
    check(!header_of(temporary_path(path, "large.ppm"), &height, &width), "an absurd width");
    temporary_write("text.png", "not an image", 12);
    check(!header_of(temporary_path(path, "text.png"), &height, &width), "no image");
    static const uint8_t bitmap[54] = {'B', 'M', [10] = 54, [14] = 40, [18] = 7, [22] = 5, [26] = 1, [28] = 24};
    temporary_write("bitmap.bmp", bitmap, sizeof bitmap);
    check(header_of(temporary_path(path, "bitmap.bmp"), &height, &width) && height == 5 && width == 7, "BMP");
}

static void read_all(int* sizes, const dataset_t* set, int threads) {
    image_sizes_read(sizes, set, 0, set->count, threads, 0);
}

static void test_index(void) {
    char path[TEMPORARY_PATH];
    temporary_mkdir("set");
    temporary_mkdir("set/a b");
    temporary_mkdir("set/c");
    for (int i = 0; i < 9; i++) {
        char name[64];
        snprintf(name, sizeof name, "set/%s/%d x.png", i % 2 ? "a b" : "c", i);
        write_image(name, 3 + i, 20 - i, 0);
    }
    temporary_write("set/c/broken.png", "x", 1);
    dataset_t set;
    dataset_open(&set, temporary_path(path, "set"), SPLIT_TRAIN);
    int *sizes = image_sizes_create(&set), *again = image_sizes_create(&set);
    size_t bytes = 2 * set.count * sizeof(int);
    check(!image_sizes_load(sizes, &set), "there is none at first");
    read_all(sizes, &set, 1);
    for (size_t i = 0; i < set.count; i++) {
        int number = atoi(strrchr(set.paths[i], '/') + 1), broken = strstr(set.paths[i], "broken") != NULL;
        check(sizes[2 * i] == (broken ? 0 : 3 + number) && sizes[2 * i + 1] == (broken ? 0 : 20 - number), "sizes");
    }
    read_all(again, &set, 5);
    check(!memcmp(sizes, again, bytes), "the same by five threads");
    image_sizes_save(sizes, &set);
    memset(again, 7, bytes);
    check(image_sizes_load(again, &set) && !memcmp(sizes, again, bytes), "the index tells the same");
    dataset_close(&set);
    dataset_open(&set, path, SPLIT_TRAIN);
    check(set.count == 10, "the index is no image");
    char* text = temporary_read("set/.image_sizes", NULL);
    for (size_t cut = 0; cut < strlen(text); cut += 9) { // any part of it, and other numbers
        temporary_write("set/.image_sizes", text, cut);
        check(!image_sizes_load(again, &set), "cut off");
    }
    text[strlen("aligntok image sizes 1 10\n")] = '-';
    temporary_write("set/.image_sizes", text, strlen(text));
    check(!image_sizes_load(again, &set), "damaged");
    free(text);
    image_sizes_save(sizes, &set);
    write_image("set/c/more.png", 4, 4, 0);
    dataset_close(&set);
    dataset_open(&set, path, SPLIT_TRAIN);
    free(again);
    again = image_sizes_create(&set);
    check(!image_sizes_load(again, &set), "another image makes it another set");
    free(sizes);
    sizes = image_sizes_create(&set);
    read_all(sizes, &set, 2);
    temporary_mkdir("set/.image_sizes.tmp"); // which cannot be written
    char left[TEMPORARY_PATH];
    unlink(temporary_path(left, "set/.image_sizes"));
    int saved = temporary_catch_stderr();
    image_sizes_save(sizes, &set);
    temporary_release_stderr(saved);
    char* said = temporary_read("stderr", NULL);
    check(strstr(said, "headers will be read again") && !image_sizes_load(again, &set),
          "what cannot be written is said");
    free(said);
    free(sizes);
    free(again);
    dataset_close(&set);
    dataset_open(&set, "shapes", SPLIT_VAL);
    sizes = image_sizes_create(&set);
    read_all(sizes, &set, 2);
    check(!image_sizes_load(sizes, &set) && sizes[0] == 32 && sizes[2 * set.count - 1] == 32,
          "drawn images have a size");
    free(sizes);
    dataset_close(&set);
}

// ---------------------------------------------------------------------------------------------------------------------
// Batches

// A folder of 41 images of all shapes, the buckets of which are 16 pixels high and multiples of 4. With `damage`, four
// have a good header and no image behind it, one of them the only one of its shape.
static void make_photographs(const char* folder, int damage) {
    char name[TEMPORARY_PATH / 2];
    temporary_mkdir(folder);
    for (int i = 0; i < 41; i++) {
        int long_side = 16 + i % 5 * 4 + i % 3, tall = i % 2;
        if (i == 40) long_side = 300; // 1 : 19
        snprintf(name, sizeof name, "%s/%02d.png", folder, i);
        write_image(name, tall ? long_side : 16, tall ? 16 : long_side, 3 * i);
        if (i == 39) write_image(name, 1, 2, 0);
        if (i == 38) write_image(name, 1, 1, 0);
        if (!damage || (i != 3 && i != 8 && i != 20 && i != 40)) continue;
        size_t size;
        char* bytes = temporary_read(name, &size);
        temporary_write(name, bytes, 40); // signature and header
        free(bytes);
    }
}

static void open_photographs(dataset_t* set, aspect_t* aspect, const char* folder) {
    char path[TEMPORARY_PATH];
    dataset_open(set, temporary_path(path, folder), SPLIT_TRAIN);
    int* sizes = image_sizes_create(set);
    read_all(sizes, set, 1);
    aspect_open(aspect, 16, 4, 2);
    aspect_fill(aspect, sizes, set->count);
    free(sizes);
}

enum { STEPS = 40, MOST = 6 * 16 * 32 * 3 };

// What a stream gives, in room for the largest batch.
typedef struct {
    int H[STEPS], W[STEPS];
    uint8_t pixels[STEPS][MOST];
    int64_t ids[STEPS][6];
} stream_record_t;

static void record(stream_record_t* out, const dataset_t* set, dataloader_options_t options, uint64_t first,
                   int steps) {
    dataloader_t loader;
    dataloader_open(&loader, set, &options, first);
    memset(out, 0, sizeof *out);
    for (int s = 0; s < steps; s++) {
        const batch_t* batch = dataloader_next(&loader);
        out->H[s] = batch->H;
        out->W[s] = batch->W;
        memcpy(out->pixels[s], batch->pixels, (size_t)batch->count * batch->H * batch->W * 3);
        memcpy(out->ids[s], batch->ids, batch->count * sizeof(int64_t));
    }
    dataloader_close(&loader);
}

// Threads, ranks, a start in the middle.
static void check_stream(const char* folder) {
    static stream_record_t want, got;
    dataset_t set;
    aspect_t aspect;
    open_photographs(&set, &aspect, folder);
    dataloader_options_t options = {6, 0, 1, 1, 1, 0, 1, 0, 77, &aspect};
    record(&want, &set, options, 0, STEPS);
    int shapes = 0;
    for (int s = 1; s < STEPS; s++) shapes += want.H[s] != want.H[s - 1] || want.W[s] != want.W[s - 1];
    check(shapes > STEPS / 3, "steps of several sizes");
    for (options.threads = 1; options.threads < 6; options.threads += 2) {
        record(&got, &set, options, 0, STEPS);
        check(!memcmp(&got, &want, sizeof got), "the same with any number of threads");
        record(&got, &set, options, 23, STEPS - 23);
        for (int s = 23; s < STEPS; s++) {
            check(got.H[s - 23] == want.H[s] && !memcmp(got.pixels[s - 23], want.pixels[s], MOST), "and when resumed");
        }
    }
    options.world = 3;
    for (options.rank = 0; options.rank < 3; options.rank++) {
        record(&got, &set, options, 0, STEPS);
        for (int s = 0; s < STEPS; s++) {
            size_t share = (size_t)2 * want.H[s] * want.W[s] * 3;
            check(got.H[s] == want.H[s] && got.W[s] == want.W[s], "all ranks have images of one size");
            check(!memcmp(got.pixels[s], want.pixels[s] + options.rank * share, share),
                  "their parts unite to the batch");
            check(!memcmp(got.ids[s], want.ids[s] + 2 * options.rank, 2 * sizeof(int64_t)), "sample numbers too");
        }
    }
    aspect_close(&aspect);
    dataset_close(&set);
}

static void test_stream(const char* folder, int damage) {
    make_photographs(folder, damage);
    int saved = temporary_catch_stderr();
    check_stream(folder);
    temporary_release_stderr(saved);
    char* said = temporary_read("stderr", NULL);
    int named = 0;
    for (const char* at = said; (at = strstr(at, "another image takes its place")); at++) named++;
    check(named == (damage ? 4 : 0), "damaged files are named once, and no others");
    free(said);
}

// Each image is seen as often as any other, in the pixels that its shape asks for; a panorama gives its middle.
static void test_pixels(void) {
    dataset_t set;
    aspect_t aspect;
    char error[IMAGE_ERROR_SIZE];
    int seen[41] = {0};
    make_photographs("pixels", 0);
    open_photographs(&set, &aspect, "pixels");
    check(aspect.images == 41 && aspect.cut == 1, "one loses its ends");
    dataloader_options_t options = {6, 0, 0, 0, 1, 0, 1, 2, 5, &aspect};
    dataloader_t loader;
    dataloader_open(&loader, &set, &options, 0);
    for (int s = 0; s < 41 * 8; s++) {
        const batch_t* batch = dataloader_next(&loader);
        size_t values = (size_t)batch->H * batch->W * 3;
        uint8_t* want = (uint8_t*)malloc(values);
        for (int i = 0; i < batch->count; i++) {
            image_t image;
            int height, width;
            check(dataset_load(&set, (size_t)batch->ids[i], &image, error), "it is read");
            const aspect_bucket_t* b = &aspect.buckets[aspect_bucket(&aspect, image.height, image.width)];
            check(b->H == batch->H && b->W == batch->W, "an image of the batch's shape");
            cover_size(image.height, image.width, batch->H, batch->W, &height, &width);
            image_resize_crop(want, &image, height, width, (height - batch->H) / 2, (width - batch->W) / 2, batch->H,
                              batch->W, 0);
            check(!memcmp(want, batch->pixels + i * values, values), "its middle");
            seen[batch->ids[i]]++;
            image_free(&image);
        }
        free(want);
    }
    dataloader_close(&loader);
    for (int i = 0; i < 41; i++) check(seen[i] >= 48 - 6 && seen[i] <= 48 + 6, "as often as any other");
    aspect_close(&aspect);
    dataset_close(&set);
}

// An image that was exchanged after the sizes were read.
static void test_exchanged(void) {
    dataset_t set;
    aspect_t aspect;
    make_photographs("exchanged", 0);
    open_photographs(&set, &aspect, "exchanged");
    write_image("exchanged/05.png", 30, 16, 0);
    dataloader_options_t options = {6, 0, 1, 0, 1, 0, 1, 3, 5, &aspect};
    dataloader_t loader;
    int saved = temporary_catch_stderr();
    dataloader_open(&loader, &set, &options, 0);
    for (int s = 0; s < 60; s++) dataloader_next(&loader);
    dataloader_close(&loader);
    temporary_release_stderr(saved);
    char* said = temporary_read("stderr", NULL);
    const char* once = strstr(said, "05.png is of 16 x 30 and was of another shape");
    check(once && !strstr(once + 20, "05.png"), "it is named once, and the run goes on");
    free(said);
    aspect_close(&aspect);
    dataset_close(&set);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("sizes and buckets")) { test_buckets(); test_end_case(); }
    if (test_case("buckets of one area")) { test_area_buckets(); test_end_case(); }
    if (test_case("the order of batches")) { test_order(); test_end_case(); }
    if (test_case("buckets drawn by what they have left")) { test_lots(); test_end_case(); }
    if (test_case("sizes from headers")) { test_headers(); test_end_case(); }
    if (test_case("the index of sizes")) { test_index(); test_end_case(); }
    if (test_case("stream: threads, resume, ranks")) { test_stream("whole", 0); test_end_case(); }
    if (test_case("stream: the same with damaged files")) { test_stream("damaged", 1); test_end_case(); }
    if (test_case("an image's pixels, and how often it is seen")) { test_pixels(); test_end_case(); }
    if (test_case("an image that was exchanged")) { test_exchanged(); test_end_case(); }
    temporary_end();
    return test_finish();
}
