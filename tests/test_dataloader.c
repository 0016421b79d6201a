// test_dataloader.c: finding data (folders, IDX files, the drawn set) and the stream of batches made from it.
//
// The heart is that the stream is a function of (seed, step): the same bytes for any number of threads, from any
// starting step, and in the slices of any number of ranks, with damaged files among the data too. What ends the program
// is run in a child process, whose message is read. All files are made in a temporary folder.
// Look next at common/data/dataset.h and common/data/dataloader.h.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

// defines: dataloader_open, dataloader_next, dataloader_close, dataloader_options_t, batch_t
#include "common/data/dataloader.h"
// defines: dataset_open, dataset_load, dataset_close, shapes_draw
#include "common/data/dataset.h"
// defines: image_t, image_create, image_free, image_write_png
#include "common/data/image.h"
// defines: temporary_begin, temporary_path, temporary_mkdir, temporary_write, check_message, temporary_end
#include "tests/temporary.h"
// defines: test_begin, test_case, check, check_error, test_uniform, test_end_case, test_finish
#include "tests/test.h"

// ---------------------------------------------------------------------------------------------------------------------
// Making data

// A PNG of noise whose colours depend on `tint`.
static inline void make_png(const char* name, int height, int width, int tint) {
    char path[TEMPORARY_PATH], error[IMAGE_ERROR_SIZE];
    image_t image = image_create(height, width);
    for (int i = 0; i < height * width * 3; i++) image.pixels[i] = (uint8_t)(tint + 60 * (test_uniform() + 1));
    if (!image_write_png(temporary_path(path, name), &image, NULL, 0, error)) printf("%s\n", error);
    image_free(&image);
}

// A folder tree of 3 classes and 23 images of many sizes. With `damage`, 4 of them are no images.
static inline void make_tree(const char* folder, int damage) {
    char name[TEMPORARY_PATH / 2];
    temporary_mkdir(folder);
    for (int k = 0; k < 3; k++) {
        snprintf(name, sizeof name, "%s/class%d", folder, k);
        temporary_mkdir(name);
    }
    for (int i = 0; i < 23; i++) {
        snprintf(name, sizeof name, "%s/class%d/%02d.png", folder, i % 3, i);
        make_png(name, 9 + i, 40 - i, 5 * i);
        if (damage && (i == 4 || i == 5 || i == 11 || i == 20)) temporary_write(name, "not an image", 12);
    }
}

// Writes an IDX file: big-endian header, then `data`; gzipped where the name ends in .gz.
static inline void make_idx(const char* name, int dimensions, const uint32_t* sizes, const uint8_t* data, size_t size) {
    char path[TEMPORARY_PATH];
    uint8_t head[16] = {0, 0, 8, (uint8_t)dimensions};
    for (int i = 0; i < dimensions; i++) image_put_big_endian(head + 4 + 4 * i, sizes[i]);
    gzFile file = gzopen(temporary_path(path, name), strstr(name, ".gz") ? "wb" : "wbT"); // T: not compressed
    gzwrite(file, head, (unsigned)(4 + 4 * dimensions));
    gzwrite(file, data, (unsigned)size);
    gzclose(file);
}

// A folder of 11 training images of 5 x 4 (plain files) and 3 for validation (gzipped), pixel p of image i being 7 i +
// p.
static inline void make_idx_folder(const char* folder) {
    char name[TEMPORARY_PATH / 2];
    uint8_t pixels[11 * 20], labels[11];
    for (int i = 0; i < 11 * 20; i++) pixels[i] = (uint8_t)(i / 20 * 7 + i % 20);
    for (int i = 0; i < 11; i++) labels[i] = (uint8_t)(i % 4);
    uint32_t sizes[3] = {11, 5, 4};
    temporary_mkdir(folder);
    snprintf(name, sizeof name, "%s/train-images-idx3-ubyte", folder);
    make_idx(name, 3, sizes, pixels, sizeof pixels);
    snprintf(name, sizeof name, "%s/train-labels-idx1-ubyte", folder);
    make_idx(name, 1, sizes, labels, 11);
    sizes[0] = 3;
    snprintf(name, sizeof name, "%s/t10k-images-idx3-ubyte.gz", folder);
    make_idx(name, 3, sizes, pixels, 60);
    snprintf(name, sizeof name, "%s/t10k-labels-idx1-ubyte.gz", folder);
    make_idx(name, 1, sizes, labels, 3);
}

// Opens a data set by its path inside the temporary folder.
static inline void open_here(dataset_t* dataset, const char* name, int split) {
    char path[TEMPORARY_PATH];
    dataset_open(dataset, temporary_path(path, name), split);
}

// ---------------------------------------------------------------------------------------------------------------------
// Data sets

static inline void test_folder(void) {
    temporary_mkdir("tree");
    temporary_mkdir("tree/b");
    temporary_mkdir("tree/B");
    temporary_mkdir("tree/b/deep");
    temporary_mkdir("tree/a10");
    temporary_mkdir("tree/.hidden");
    make_png("tree/b/2.PNG", 4, 4, 0);
    make_png("tree/b/deep/1.png", 4, 4, 0);
    make_png("tree/b/10.JpEg", 4, 4, 0);
    make_png("tree/b/.secret.png", 4, 4, 0);
    make_png("tree/B/x.bmp", 4, 4, 0);
    make_png("tree/.hidden/x.png", 4, 4, 0);
    temporary_write("tree/b/notes.txt", "text", 4);
    temporary_write("tree/README", "text", 4);
    char target[TEMPORARY_PATH], link[TEMPORARY_PATH];
    if (symlink(temporary_path(target, "tree/b/2.PNG"), temporary_path(link, "tree/a10/link.png"))) perror(link);
    if (symlink(temporary_path(target, "tree/B"), temporary_path(link, "tree/c"))) perror(link);
    dataset_t dataset;
    open_here(&dataset, "tree", SPLIT_TRAIN);
    static const char* const classes[4] = {"B", "a10", "b", "c"};
    static const char* const files[6] = {"B/x.bmp", "a10/link.png", "b/10.JpEg", "b/2.PNG", "b/deep/1.png", "c/x.bmp"};
    static const int labels[6] = {0, 1, 2, 2, 2, 3};
    check(dataset.class_count == 4 && dataset.count == 6, "4 classes, 6 images");
    for (int k = 0; k < 4; k++) check(!strcmp(dataset.class_names[k], classes[k]), "classes in strcmp order");
    for (int i = 0; i < 6; i++) {
        const char* end = dataset.paths[i] + strlen(dataset.paths[i]) - strlen(files[i]);
        check(!strcmp(end, files[i]), "files in order, hidden and other ones left out, links followed");
        check(dataset_label(&dataset, (size_t)i) == labels[i], "labels");
    }
    dataset_close(&dataset);
    temporary_mkdir("many");
    char name[64];
    for (int i = 0; i < 50; i++) { // not in order
        snprintf(name, sizeof name, "many/%03d.png", i * 37 % 50);
        temporary_write(name, "", 0);
    }
    open_here(&dataset, "many", SPLIT_TRAIN);
    for (int i = 1; i < 50; i++) check(strcmp(dataset.paths[i - 1], dataset.paths[i]) < 0, "sorted");
    dataset_close(&dataset);
    open_here(&dataset, "tree/b/deep", SPLIT_TRAIN);
    check(dataset.class_count == 1 && dataset.count == 1, "a folder of plain images is one class");
    dataset_close(&dataset);
}

static inline void child_open(const char* name) {
    dataset_t dataset;
    open_here(&dataset, name, SPLIT_TRAIN);
}

static inline void child_open_val(const char* name) {
    dataset_t dataset;
    open_here(&dataset, name, SPLIT_VAL);
}

static inline void test_splits(void) {
    temporary_mkdir("split");
    make_tree("split/train", 0);
    temporary_mkdir("split/val");
    temporary_mkdir("split/val/class2");
    make_png("split/val/class2/a.png", 4, 4, 0);
    dataset_t train, val;
    int saved = temporary_catch_stderr();
    open_here(&train, "split", SPLIT_TRAIN);
    open_here(&val, "split", SPLIT_VAL);
    dataset_close(&val);
    open_here(&val, "split", SPLIT_VAL);
    temporary_release_stderr(saved);
    check(train.count == 23 && train.class_count == 3 && val.count == 1, "train/ and val/");
    check(val.class_count == 3 && val.labels[0] == 2 && !strcmp(val.class_names[2], "class2"), "numbered as in train");
    char* said = temporary_read("stderr", NULL);
    const char* once = strstr(said, "images of 1 of the 3 classes");
    check(once && !strstr(once + 1, "images of 1"), "it is said once");
    free(said);
    dataset_close(&train);
    dataset_close(&val);
    temporary_mkdir("alone"); // train without val
    make_tree("alone/train", 0);
    saved = temporary_catch_stderr();
    open_here(&train, "alone", SPLIT_TRAIN);
    open_here(&val, "alone", SPLIT_VAL);
    temporary_release_stderr(saved);
    check(train.count == 23 && val.count == 23 && val.class_count == 3, "the images that train validate");
    dataset_close(&train);
    dataset_close(&val);
    temporary_mkdir("vehicles"); // train is a class
    temporary_mkdir("vehicles/bus");
    temporary_mkdir("vehicles/train");
    make_png("vehicles/bus/a.png", 4, 4, 0);
    make_png("vehicles/train/a.png", 4, 4, 0);
    open_here(&train, "vehicles", SPLIT_TRAIN);
    check(train.class_count == 2 && !strcmp(train.class_names[1], "train"), "a class of that name");
    dataset_close(&train);
}

static inline void child_need_labels(const char* name) {
    dataset_t dataset;
    open_here(&dataset, name, SPLIT_VAL);
    dataset_need_labels(&dataset);
}

// ImageNet's val as it is unpacked: images in no class folders, labels in a file.
static inline void test_flat_val(void) {
    static const struct { const char *name, *text; int labels[4]; } files[] = {
        {"val.txt", "ILSVRC2012_val_00000001.JPEG 2\r\nILSVRC2012_val_00000002.JPEG 0\n"
                    "val/ILSVRC2012_val_00000003.JPEG 1\n\nILSVRC2012_val_00000009.JPEG 2", {2, 0, 1, 2}},
        {"val/val_labels.txt", "ILSVRC2012_val_00000009.JPEG class1\nILSVRC2012_val_00000003.JPEG class0\n"
                               "ILSVRC2012_val_00000001.JPEG class1\nILSVRC2012_val_00000002.JPEG class2\n",
         {1, 2, 0, 1}},
        {"LOC_val_solution.csv", "ImageId,PredictionString\n"
                                 "ILSVRC2012_val_00000009,class0 85 1 499 272 class0 1 2 3 4 \n"
                                 "ILSVRC2012_val_00000003,class2 1 1 1 1\nILSVRC2012_val_00000001,class1 1 1 2 2\n"
                                 "ILSVRC2012_val_00000002,class0 0 0 1 1\n", {1, 0, 2, 0}},
        {"imagenet_2012_validation_synset_labels.txt", "class2\nclass1\nclass0\nclass0\n", {2, 1, 0, 0}},
        // the devkit's own numbers; a list that is longer than the images are, which bear their line's number
        {"ILSVRC2012_validation_ground_truth.txt", "3\n1\n2\n9\n9\n9\n9\n9\n3\n", {0, 2, 1, 0}}};
    static const int numbers[4] = {1, 2, 3, 9};
    char name[TEMPORARY_PATH / 2];
    temporary_mkdir("flat");
    make_tree("flat/train", 0);
    temporary_mkdir("flat/val");
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "flat/val/ILSVRC2012_val_%08d.JPEG", numbers[i]);
        temporary_write(name, "x", 1);
    }
    dataset_t val;
    open_here(&val, "flat", SPLIT_VAL);
    check(val.count == 4 && val.class_count == 3 && val.unlabelled && val.labels[0] == -1, "labels are unknown");
    dataset_close(&val);
    check_message(child_need_labels, "flat", "flat/val lie in no class folders", "LOC_val_solution.csv");
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        snprintf(name, sizeof name, "flat/%s", files[f].name);
        temporary_write(name, files[f].text, strlen(files[f].text));
        if (f == 4) {
            check_message(child_need_labels, "flat", "numbers are the ILSVRC devkit's", "map_clsloc.txt");
            temporary_write("flat/map_clsloc.txt", "class1 2 b\nclass0 3 a\nclass2 1 c\n", 33);
        }
        open_here(&val, "flat", SPLIT_VAL);
        dataset_need_labels(&val);
        for (int i = 0; i < 4; i++) check(val.labels[i] == files[f].labels[i], files[f].name);
        dataset_close(&val);
        char path[TEMPORARY_PATH];
        unlink(temporary_path(path, name));
    }
    temporary_write("flat/val.txt", "ILSVRC2012_val_00000001.JPEG 1\n", 31);
    check_message(child_need_labels, "flat", "no label for", "ILSVRC2012_val_00000002.JPEG");
    temporary_write("flat/val.txt", "ILSVRC2012_val_00000001 3\nILSVRC2012_val_00000002 1\n", 52);
    check_message(child_need_labels, "flat", "ILSVRC2012_val_00000001 is \"3\"", "from 0 on");
    temporary_write("flat/val.txt", "ILSVRC2012_val_00000001 dog\nILSVRC2012_val_00000002 1\n", 54);
    check_message(child_need_labels, "flat", "is \"dog\"", "class folder in train");
    temporary_write("flat/val.txt", "ILSVRC2012_val_00000001 1\n2\n", 28);
    check_message(child_need_labels, "flat", "line 2", "another form");
}

// Kaggle's ImageNet as it is unpacked: the labels of val lie four folders above it.
static inline void test_kaggle(void) {
    static const char* const folders[] = {"kaggle", "kaggle/ILSVRC", "kaggle/ILSVRC/Data"};
    const char* labels = "ImageId,PredictionString\nILSVRC2012_val_00000001,class2 85 1 499 272 \n";
    for (int i = 0; i < 3; i++) temporary_mkdir(folders[i]);
    temporary_mkdir("kaggle/ILSVRC/Data/CLS-LOC");
    make_tree("kaggle/ILSVRC/Data/CLS-LOC/train", 0);
    temporary_mkdir("kaggle/ILSVRC/Data/CLS-LOC/val");
    temporary_write("kaggle/ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG", "x", 1);
    temporary_write("kaggle/LOC_val_solution.csv", labels, strlen(labels));
    dataset_t val;
    open_here(&val, "kaggle/ILSVRC/Data/CLS-LOC", SPLIT_VAL);
    dataset_need_labels(&val);
    check(val.count == 1 && val.labels[0] == 2, "the class of the image");
    dataset_close(&val);
}

// Other kinds of images, a named pipe, what a Mac leaves: left out, and named once; numbers that are sorted as text.
static inline void test_left_out(void) {
    char path[TEMPORARY_PATH], name[64];
    dataset_t dataset;
    temporary_mkdir("kinds");
    for (int k = 0; k < 12; k++) {
        snprintf(name, sizeof name, "kinds/%d", k);
        temporary_mkdir(name);
        snprintf(name, sizeof name, "kinds/%d/a.jfif", k);
        make_png(name, 4, 4, 0);
    }
    for (int i = 0; i < 9; i++) {
        snprintf(name, sizeof name, "kinds/0/%d.webp", i);
        temporary_write(name, "x", 1);
    }
    temporary_write("kinds/3/b.tif", "x", 1);
    temporary_write("kinds/3/._b.png", "x", 1);
    temporary_mkdir("kinds/__MACOSX");
    if (mkfifo(temporary_path(path, "kinds/3/pipe.png"), 0666)) perror(path);
    int saved = temporary_catch_stderr();
    open_here(&dataset, "kinds", SPLIT_TRAIN);
    dataset_close(&dataset);
    open_here(&dataset, "kinds", SPLIT_TRAIN);
    temporary_release_stderr(saved);
    check(dataset.count == 12 && dataset.class_count == 12, "a JPEG by its other ending is one; a pipe is none");
    check(!strcmp(dataset.class_names[4], "2"), "in strcmp order");
    dataset_close(&dataset);
    char* said = temporary_read("stderr", NULL);
    const char* left = strstr(said, "left out: .webp (9), .tif (1), no ordinary files (1); read are jpg, jpeg, jpe, ");
    check(left && !strstr(left + 1, "left out"), "they are counted and named once");
    const char* sorted = strstr(said, "folder 2 is class 4");
    check(sorted && !strstr(sorted + 1, "folder 2 is"), "and so is the order of numbers");
    free(said);
    image_t image;
    char error[IMAGE_ERROR_SIZE];
    check(!image_load(&image, path, error), "and a pipe that is asked for is not waited for");
}

static inline void test_idx(void) {
    make_idx_folder("idx");
    for (int split = 0; split < 2; split++) {
        dataset_t dataset;
        open_here(&dataset, "idx", split);
        check(dataset.count == (split == SPLIT_TRAIN ? 11 : 3) && dataset.rows == 5 && dataset.columns == 4, "sizes");
        check(dataset.class_count == (split == SPLIT_TRAIN ? 4 : 3), "classes");
        for (size_t i = 0; i < dataset.count; i++) {
            image_t image;
            char error[IMAGE_ERROR_SIZE];
            check(dataset_load(&dataset, i, &image, error), "an image is read");
            check(dataset_label(&dataset, i) == (int)i % 4, "a label");
            for (int p = 0; p < 60; p++) check(image.pixels[p] == (int)i * 7 + p / 3, "grey becomes RGB");
            image_free(&image);
        }
        dataset_close(&dataset);
    }
}

static inline void test_shapes(void) {
    dataset_t train, val;
    dataset_open(&train, "shapes", SPLIT_TRAIN);
    dataset_open(&val, "shapes", SPLIT_VAL);
    check(train.count == 60000 && val.count == 10000 && train.class_count == 10, "sizes");
    uint8_t a[32 * 32 * 3], b[32 * 32 * 3];
    char error[IMAGE_ERROR_SIZE];
    for (size_t i = 0; i < 200; i++) {
        image_t image, again;
        int drawn = dataset_load(&train, i, &image, error);
        drawn += dataset_load(&train, i, &again, error);
        check(drawn == 2, "it is drawn");
        check(!memcmp(image.pixels, again.pixels, sizeof a), "the same each time");
        check(dataset_label(&train, i) == (int)(i % 10), "the label");
        int smallest = 255, largest = 0;
        for (int p = 0; p < 32 * 32 * 3; p++) {
            if (image.pixels[p] < smallest) smallest = image.pixels[p];
            if (image.pixels[p] > largest) largest = image.pixels[p];
        }
        check(largest - smallest > 60, "there is something to see");
        shapes_draw(a, SPLIT_TRAIN, i + 10);
        shapes_draw(b, SPLIT_VAL, i);
        check(memcmp(a, image.pixels, sizeof a) && memcmp(b, image.pixels, sizeof b), "samples and splits differ");
        image_free(&image);
        image_free(&again);
    }
    dataset_close(&train);
    dataset_close(&val);
}

// IDX files of 28 x 28 and ten classes; the first garment is a white block in the middle, the others are noise.
static inline void make_garments(const char* folder) {
    enum { N = 40, SIDE = GARMENTS_SOURCE, AREA = SIDE * SIDE };
    static uint8_t pixels[N * AREA], labels[N];
    uint32_t sizes[3] = {N, SIDE, SIDE};
    char name[64];
    temporary_mkdir(folder);
    for (int i = 0; i < N; i++) labels[i] = (uint8_t)((i + 3) % 10);
    for (uint64_t k = 0; k < N * AREA; k++) pixels[k] = (uint8_t)random_below(7, RANDOM_INIT, 1, k, 256);
    for (int k = 0; k < AREA; k++) pixels[k] = abs(k % SIDE - 14) < 6 && abs(k / SIDE - 14) < 6 ? 255 : 0;
    for (int split = 0; split < 2; split++) {
        snprintf(name, sizeof name, "%s/%s-images-idx3-ubyte", folder, split ? "t10k" : "train");
        make_idx(name, 3, sizes, pixels, sizeof pixels);
        snprintf(name, sizeof name, "%s/%s-labels-idx1-ubyte", folder, split ? "t10k" : "train");
        make_idx(name, 1, sizes, labels, N);
    }
}

static inline void open_garments(dataset_t* dataset, const char* folder, int split) {
    char path[TEMPORARY_PATH], spec[TEMPORARY_PATH + 16];
    snprintf(spec, sizeof spec, "garments:%s", temporary_path(path, folder));
    dataset_open(dataset, spec, split);
}

static inline void child_open_garments(const char* folder) {
    dataset_t dataset;
    open_garments(&dataset, folder, SPLIT_TRAIN);
}

// The colours are as garment_style tells them, on the garment and beside it; hues are spread evenly and know nothing of
// each other; brightness keeps garment and ground apart.
static inline void test_garments(void) {
    dataset_t sets[2];
    char error[IMAGE_ERROR_SIZE];
    enum { SIDE = GARMENTS_SIZE, MIDDLE = (SIDE / 2 * SIDE + SIDE / 2) * 3, N = 4000 };
    make_garments("garments");
    for (int split = 0; split < 2; split++) open_garments(&sets[split], "garments", split);
    const dataset_t* d = &sets[0];
    check(d->count == 40 && d->class_count == 10 && !strcmp(d->class_names[9], "ankle boot"), "sizes, names");
    image_t first[2], again;
    for (int split = 0; split < 2; split++) {
        garment_style_t style = garment_style(split, 0);
        int drawn = dataset_load(&sets[split], 0, &first[split], error);
        check(drawn && first[split].height == SIDE && first[split].width == SIDE, "32 x 32");
        const uint8_t* pixels = first[split].pixels;
        for (int c = 0; c < 3; c++) {
            check(fabsf(pixels[MIDDLE + c] - style.dye[c]) <= 0.51f, "the dye, where the garment is white");
            float most = GARMENTS_WEAVE + GARMENTS_GRAIN + 0.51f, sum = 0;
            for (int p = 0; p < 3 * SIDE; p++) { // three rows above the garment
                check(fabsf(pixels[p * 3 + c] - style.ground[c]) <= most, "the ground, beside it");
                sum += pixels[p * 3 + c] / (3.0f * SIDE);
            }
            check(fabsf(sum - style.ground[c]) < 4, "the ground's mean");
        }
        check(dataset_label(&sets[split], 0) == 3, "the label");
    }
    check(memcmp(first[0].pixels, first[1].pixels, SIDE * SIDE * 3), "splits have colours of their own");
    int same = dataset_load(d, 0, &again, error) && !memcmp(first[0].pixels, again.pixels, SIDE * SIDE * 3);
    check(same, "the same again");
    double hue[4] = {0}, low = 255, high = 0, together = 0;
    for (uint64_t i = 0; i < N; i++) {
        garment_style_t style = garment_style(SPLIT_TRAIN, i);
        double angle[2], brightness[2];
        for (int k = 0; k < 2; k++) {
            const float* rgb = k ? style.ground : style.dye;
            brightness[k] = (rgb[0] + rgb[1] + rgb[2]) / 3;
            angle[k] = atan2((rgb[1] - rgb[2]) / sqrt(3.0), rgb[0] - brightness[k]);
            hue[2 * k] += cos(angle[k]) / N, hue[2 * k + 1] += sin(angle[k]) / N;
            for (int c = 0; c < 3; c++) low = fmin(low, rgb[c]), high = fmax(high, rgb[c]);
        }
        together += cos(angle[0] - angle[1]) / N;
        check(brightness[0] - brightness[1] > 59, "the garment is the brighter one");
    }
    check(low > 0 && high < 255, "no colour is cut off");
    for (int k = 0; k < 4; k++) check(fabs(hue[k]) < 0.05, "all hues"); // 4.5 deviations
    check(fabs(together) < 0.05, "hues that are independent");
    image_free(&first[0]), image_free(&first[1]), image_free(&again);
    dataset_close(&sets[0]), dataset_close(&sets[1]);
    make_idx_folder("small");
    check_message(child_open_garments, "small", "garments are Fashion-MNIST's, 28 x 28", "garments:FOLDER");
}

// The areas of the shapes tell that each is drawn where its formula says: share of the square [-1.5, 1.5]^2 inside.
static inline void test_shape_areas(void) {
    const double pi = 3.14159265358979;
    // star: a pentagram, ten triangles of sides 1 and .382 with 36 degrees between; crescent: a disc of radius .95 less
    // its lens with a disc of radius .75 at distance .5; stripes and checker: half, up to where the pattern is cut
    const double areas[10] = {pi * 0.81, pi * (0.92 * 0.92 - 0.52 * 0.52), 2.56, 1.32, 0.895 * 1.55,
                              1.08 * 2 - 0.54 * 0.54, 1.12267, 1.44345, pi / 2, 1.9 * 1.9 / 2};
    for (int label = 0; label < 10; label++) {
        const int n = 600;
        int inside = 0;
        for (int i = 0; i < n * n; i++) {
            float x = ((float)(i % n) + 0.5f) / n * 3 - 1.5f, y = ((float)(i / n) + 0.5f) / n * 3 - 1.5f;
            inside += shape_distance(label, x, y) < 0;
        }
        double area = 9.0 * inside / n / n;
        check_error("area", fabs(area / areas[label] - 1), label >= 8 ? 0.06 : 0.02);
    }
}

static inline void test_folder_errors(void) {
    char target[TEMPORARY_PATH], link[TEMPORARY_PATH];
    check_message(child_open, "nowhere", "nowhere", "cannot be found");
    temporary_write("plain_file", "x", 1);
    check_message(child_open, "plain_file", "plain_file", "not a folder");
    temporary_mkdir("void");
    check_message(child_open, "void", "void", "holds no images");
    temporary_mkdir("text_only");
    temporary_write("text_only/a.txt", "x", 1);
    check_message(child_open, "text_only", "text_only", "holds no images");
    make_tree("hollow", 0);
    temporary_mkdir("hollow/class1b");
    temporary_write("hollow/class1b/a.txt", "x", 1);
    check_message(child_open, "hollow", "hollow/class1b", "holds no images");
    temporary_mkdir("half");
    temporary_mkdir("half/val");
    check_message(child_open, "half", "half", "none called train");
    temporary_mkdir("foreign");
    make_tree("foreign/train", 0);
    make_tree("foreign/val", 0);
    temporary_mkdir("foreign/val/class1b");
    make_png("foreign/val/class1b/a.png", 4, 4, 0);
    check_message(child_open_val, "foreign", "foreign/val/class1b", "no class of this name");
    temporary_mkdir("root");
    temporary_mkdir("root/ILSVRC");
    temporary_mkdir("root/ILSVRC/Data");
    temporary_mkdir("root/ILSVRC/Data/CLS-LOC");
    make_tree("root/ILSVRC/Data/CLS-LOC/train", 0);
    make_tree("root/ILSVRC/Data/CLS-LOC/test", 0);
    check_message(child_open, "root", "give -data", "root/ILSVRC/Data/CLS-LOC");
    make_tree("root/ILSVRC/Data/CLS-LOC/val", 0);
    check_message(child_open_val, "root/ILSVRC", "give -data", "root/ILSVRC/Data/CLS-LOC");
    temporary_mkdir("modern");
    temporary_mkdir("modern/a");
    temporary_write("modern/a/1.webp", "x", 1);
    temporary_write("modern/a/2.WEBP", "x", 1);
    check_message(child_open, "modern", "modern/a holds no images (jpg, jpeg, jpe, jfif", ".webp (2)");
    make_tree("loop", 0);
    if (symlink(temporary_path(target, "loop/class1"), temporary_path(link, "loop/class1/again"))) perror(link);
    check_message(child_open, "loop", "loop/class1/again", "link back");
}

static inline void test_idx_errors(void) {
    static const uint8_t data[240] = {0};
    uint32_t sizes[3] = {11, 5, 4};
    make_idx_folder("bad");
    make_idx("bad/train-labels-idx1-ubyte", 1, sizes, data, 10);
    check_message(child_open, "bad", "train-labels-idx1-ubyte", "after 10 of 11 bytes");
    make_idx("bad/train-labels-idx1-ubyte", 1, sizes, data, 12);
    check_message(child_open, "bad", "train-labels-idx1-ubyte", "longer than its header");
    sizes[0] = 10;
    make_idx("bad/train-labels-idx1-ubyte", 1, sizes, data, 10);
    check_message(child_open, "bad", "11 images", "10 labels");
    make_idx("bad/train-labels-idx1-ubyte", 3, sizes, data, 200);
    check_message(child_open, "bad", "train-labels-idx1-ubyte", "not an IDX file");
    sizes[1] = 0;
    make_idx("bad/train-images-idx3-ubyte", 3, sizes, data, 0);
    check_message(child_open, "bad", "train-images-idx3-ubyte", "dimension 1 of its header is 0");
    sizes[0] = 0xffffffffu;
    make_idx("bad/train-images-idx3-ubyte", 3, sizes, data, 0);
    check_message(child_open, "bad", "train-images-idx3-ubyte", "dimension 0 of its header is 4294967295");
    temporary_write("bad/train-images-idx3-ubyte", "\0\0\10", 3);
    check_message(child_open, "bad", "train-images-idx3-ubyte", "ends inside its header");
    // a gzip file cut in its middle
    size_t size;
    char* whole = temporary_read("bad/t10k-images-idx3-ubyte.gz", &size);
    temporary_write("bad/t10k-images-idx3-ubyte.gz", whole, size / 2);
    check_message(child_open_val, "bad", "t10k-images-idx3-ubyte.gz", "ends inside");
    free(whole);
    char path[TEMPORARY_PATH];
    unlink(temporary_path(path, "bad/train-images-idx3-ubyte"));
    check_message(child_open, "bad", "train-images-idx3-ubyte", "put it there");
}

// ---------------------------------------------------------------------------------------------------------------------
// Batches

static inline dataloader_options_t default_options(void) {
    dataloader_options_t options;
    memset(&options, 0, sizeof options);
    options.batch = 6;
    options.size = 8;
    options.crop = options.flip = options.shuffle = 1;
    options.world = 1;
    options.seed = 77;
    return options;
}

// Appends the bytes of a batch (pixels, labels, sample numbers) to `out`; returns the byte after them.
static inline uint8_t* save_batch(uint8_t* out, const batch_t* batch, int size) {
    size_t pixels = (size_t)batch->count * size * size * 3, labels = batch->count * sizeof(int);
    memcpy(out, batch->pixels, pixels);
    memcpy(out + pixels, batch->labels, labels);
    memcpy(out + pixels + labels, batch->ids, batch->count * sizeof(int64_t));
    return out + pixels + labels + batch->count * sizeof(int64_t);
}

static inline size_t saved_size(const dataloader_options_t* options) {
    size_t image = (size_t)options->size * options->size * 3;
    return (size_t)options->batch / options->world * (image + sizeof(int) + sizeof(int64_t));
}

// The saved batches of `steps` steps from `first` on; the caller frees them.
static inline uint8_t* record(const dataset_t* dataset, const dataloader_options_t* options, uint64_t first,
                              int steps) {
    dataloader_t loader;
    uint8_t* bytes = (uint8_t*)malloc(saved_size(options) * steps);
    uint8_t* at = bytes;
    dataloader_open(&loader, dataset, options, first);
    for (int s = 0; s < steps; s++) {
        const batch_t* batch = dataloader_next(&loader);
        check(batch->step == first + (uint64_t)s && batch->count == options->batch / options->world, "step and count");
        at = save_batch(at, batch, options->size);
    }
    dataloader_close(&loader);
    return bytes;
}

// Threads, resume and ranks on one data set.
static inline void check_invariance(const dataset_t* dataset) {
    enum { STEPS = 12, RESUME = 7 };
    dataloader_options_t options = default_options();
    size_t size = saved_size(&options);
    uint8_t* want = record(dataset, &options, 0, STEPS);
    static const int threads[3] = {1, 2, 5};
    for (int k = 0; k < 3; k++) {
        options.threads = threads[k];
        uint8_t* got = record(dataset, &options, 0, STEPS);
        check(!memcmp(got, want, size * STEPS), "the same bytes with any number of threads");
        free(got);
        got = record(dataset, &options, RESUME, STEPS - RESUME);
        check(!memcmp(got, want + size * RESUME, size * (STEPS - RESUME)), "the same bytes when resumed");
        free(got);
    }
    options.world = 3;
    size_t slice_pixels = (size_t)2 * 8 * 8 * 3;
    for (options.rank = 0; options.rank < 3; options.rank++) {
        uint8_t* got = record(dataset, &options, 0, STEPS);
        for (int s = 0; s < STEPS; s++) {
            const uint8_t* whole = want + size * s;
            const uint8_t* slice = got + saved_size(&options) * s;
            const uint8_t* ids = whole + 3 * slice_pixels + 6 * sizeof(int) + options.rank * 2 * sizeof(int64_t);
            check(!memcmp(slice, whole + options.rank * slice_pixels, slice_pixels), "the slices unite to the batch");
            check(!memcmp(slice + slice_pixels + 2 * sizeof(int), ids, 2 * sizeof(int64_t)), "sample numbers too");
        }
        free(got);
    }
    options = default_options();
    options.seed = 78;
    uint8_t* other = record(dataset, &options, 0, STEPS);
    check(memcmp(other, want, size * STEPS) != 0, "another seed gives another stream");
    free(other);
    free(want);
}

// What was caught from stderr must be warnings of ours and nothing else, such as a sanitizer's report.
static inline void check_only_warnings(void) {
    char* said = temporary_read("stderr", NULL);
    for (char* line = said; line && *line; line = strchr(line, '\n') + 1) {
        check(!strncmp(line, "warning: ", 9), "nothing but warnings on stderr");
        if (!strchr(line, '\n')) break;
    }
    free(said);
}

static inline void test_invariance(const char* name, int damage) {
    dataset_t dataset;
    if (damage >= 0) make_tree(name, damage);
    if (damage >= 0) open_here(&dataset, name, SPLIT_TRAIN);
    if (damage == -1) dataset_open(&dataset, "shapes", SPLIT_TRAIN);
    if (damage == -2) open_garments(&dataset, name, SPLIT_TRAIN);
    int saved = temporary_catch_stderr();
    check_invariance(&dataset);
    temporary_release_stderr(saved);
    check_only_warnings();
    dataset_close(&dataset);
}

// Each epoch holds each sample once, in another order; sequential order is 0, 1, 2, ...; labels belong to their
// samples.
static inline void test_epochs(void) {
    make_tree("epochs", 0);
    dataset_t dataset;
    open_here(&dataset, "epochs", SPLIT_TRAIN);
    dataloader_options_t options = default_options();
    options.threads = 2;
    for (options.shuffle = 0; options.shuffle < 2; options.shuffle++) {
        dataloader_t loader;
        dataloader_open(&loader, &dataset, &options, 0);
        int64_t order[4 * 23];
        int n = 0;
        while (n < 4 * 23) {
            const batch_t* batch = dataloader_next(&loader);
            for (int i = 0; i < batch->count && n < 4 * 23; i++) {
                check(batch->labels[i] == dataset.labels[batch->ids[i]], "the label of the sample");
                order[n++] = batch->ids[i];
            }
        }
        for (int epoch = 0; epoch < 4; epoch++) {
            int seen[23] = {0}, moved = 0;
            for (int i = 0; i < 23; i++) {
                seen[order[epoch * 23 + i]]++;
                moved += order[epoch * 23 + i] != (epoch && options.shuffle ? order[i] : i);
            }
            for (int i = 0; i < 23; i++) check(seen[i] == 1, "every sample once");
            check(options.shuffle ? moved > 15 : moved == 0, "the order");
        }
        dataloader_close(&loader);
    }
    dataset_close(&dataset);
}

// A part of a set that is in the order of its classes: with `shuffle` it is of all of them, and the same images for any
// number of ranks and threads. The loader knows how fast it is.
static inline void test_part_of_a_set(void) {
    dataset_t dataset;
    dataset_open(&dataset, "shapes", SPLIT_VAL);
    int* sorted = (int*)malloc(dataset.count * sizeof(int)); // 1000 images of a class behind one another
    for (size_t i = 0; i < dataset.count; i++) sorted[i] = (int)(i / 1000);
    dataset.labels = sorted;
    int64_t ids[3][100];
    int seen[10] = {0}, classes = 0;
    for (int way = 0; way < 3; way++) { // alone, with threads, two ranks
        int world = way == 2 ? 2 : 1;
        for (int rank = 0; rank < world; rank++) {
            dataloader_options_t options = {100, 32, 0, 0, 1, rank, world, way, 7, NULL};
            dataloader_t loader;
            dataloader_open(&loader, &dataset, &options, 0);
            const batch_t* batch = dataloader_next(&loader);
            for (int i = 0; i < batch->count; i++) ids[way][rank * batch->count + i] = batch->ids[i];
            for (int i = 0; way == 0 && i < batch->count; i++) seen[batch->labels[i]]++;
            check(dataloader_speed(&loader) > 0 && loader.made >= (size_t)batch->count, "the speed is known");
            dataloader_close(&loader);
        }
        check(!memcmp(ids[way], ids[0], sizeof ids[0]), "the same images");
    }
    for (int c = 0; c < 10; c++) classes += seen[c] > 0;
    check(classes == 10, "a hundred images are of all ten classes");
    dataset_close(&dataset);
}

// Validation pixels are the centre crop of the resized image; and an image of the right size passes unchanged.
static inline void test_centre_crop(void) {
    temporary_mkdir("centre");
    make_png("centre/a.png", 16, 30, 0);
    make_png("centre/b.png", 8, 8, 99);
    dataset_t dataset;
    open_here(&dataset, "centre", SPLIT_TRAIN);
    dataloader_options_t options = default_options();
    options.crop = options.flip = options.shuffle = 0;
    dataloader_t loader;
    dataloader_open(&loader, &dataset, &options, 0);
    const batch_t* batch = dataloader_next(&loader);
    image_t a, b;
    char error[IMAGE_ERROR_SIZE];
    check(dataset_load(&dataset, 0, &a, error) && dataset_load(&dataset, 1, &b, error), "both are read");
    image_t resized = image_resize_short_side(&a, 8);
    check(resized.width == 15, "16 x 30 to 8 x 15");
    for (int y = 0; y < 8; y++) {
        check(!memcmp(batch->pixels + y * 24, resized.pixels + (y * 15 + 3) * 3, 24), "the centre: columns 3 to 10");
    }
    check(!memcmp(batch->pixels + 8 * 8 * 3, b.pixels, 8 * 8 * 3), "an image of the right size is left as it is");
    image_free(&a);
    image_free(&b);
    image_free(&resized);
    dataloader_close(&loader);
    dataset_close(&dataset);
}

// A picture of 8 x 12 or 12 x 8 whose value is ten times its column (row): the crops tell their own offset, and whether
// they are mirrored. Columns are mirrored, rows are not.
static inline void check_crops(int is_tall) {
    char path[TEMPORARY_PATH], error[IMAGE_ERROR_SIZE];
    const char* folder = is_tall ? "tall" : "wide";
    image_t image = image_create(is_tall ? 12 : 8, is_tall ? 8 : 12);
    for (int p = 0; p < 96; p++) memset(image.pixels + p * 3, is_tall ? p / 8 * 10 : p % 12 * 10, 3);
    temporary_mkdir(folder);
    temporary_path(path, is_tall ? "tall/a.png" : "wide/a.png");
    check(image_write_png(path, &image, NULL, 0, error), "it is written");
    image_free(&image);
    dataset_t dataset;
    open_here(&dataset, folder, SPLIT_TRAIN);
    dataloader_options_t options = default_options();
    options.batch = 100;
    dataloader_t loader;
    dataloader_open(&loader, &dataset, &options, 0);
    int counts[2][5] = {{0}};
    for (int s = 0; s < 20; s++) {
        const batch_t* batch = dataloader_next(&loader);
        for (int i = 0; i < 100; i++) {
            const uint8_t* first = batch->pixels + i * 8 * 8 * 3;
            const uint8_t* last = first + (is_tall ? 7 * 8 : 7) * 3;
            int flip = *first > *last, offset = (flip ? *last : *first) / 10;
            check((flip ? *first : *last) == (offset + 7) * 10 && offset < 5, "eight columns or rows in order");
            if (offset < 5) counts[flip][offset]++;
        }
    }
    int outcomes = is_tall ? 5 : 10;
    double chi = 0, expected = 2000.0 / outcomes;
    for (int k = 0; k < outcomes; k++) chi += pow(counts[k / 5][k % 5] - expected, 2) / expected;
    check(chi < outcomes - 1 + 5 * sqrt(2.0 * (outcomes - 1)), "offset and flip are uniform and independent");
    dataloader_close(&loader);
    dataset_close(&dataset);
}

// Damaged files: named once, counted, replaced by lot.
static inline void test_damaged(void) {
    make_tree("damaged", 1);
    dataset_t dataset;
    open_here(&dataset, "damaged", SPLIT_TRAIN);
    dataloader_options_t options = default_options();
    options.threads = 2;
    dataloader_t loader;
    int saved = temporary_catch_stderr();
    dataloader_open(&loader, &dataset, &options, 0);
    uint64_t g = 0;
    for (int s = 0; s < 16; s++) {
        const batch_t* batch = dataloader_next(&loader);
        for (int i = 0; i < batch->count; i++, g++) {
            uint64_t id = random_permute(options.seed, RANDOM_DATA_ORDER, g / 23, g % 23, 23);
            for (uint64_t k = 0; loader.is_damaged[id]; k++) { // the workers have seen it, so that the flag is set
                id = random_permute(options.seed, RANDOM_REPLACEMENT, g, k, 23);
            }
            check(batch->ids[i] == (int64_t)id, "the first drawn that can be read");
        }
    }
    check(dataloader_damaged_files(&loader) == 4, "four files are counted");
    dataloader_close(&loader);
    temporary_release_stderr(saved);
    check_only_warnings();
    char* said = temporary_read("stderr", NULL);
    static const char* const names[4] = {"class1/04.png", "class2/05.png", "class2/11.png", "class2/20.png"};
    for (int k = 0; k < 4; k++) {
        const char* first = strstr(said, names[k]);
        check(first && !strstr(first + 1, names[k]), "each is named once");
    }
    free(said);
    dataset_close(&dataset);
}

// A clump of damaged files, read in order: each counts once, those that take their place are of all classes, and the
// set is not given up, whatever the size of the clump below half.
static inline void test_clump(int clump) {
    enum { N = 200 };
    char name[64], folder[32];
    snprintf(folder, sizeof folder, "clump%d", clump);
    temporary_mkdir(folder);
    for (int k = 0; k < 2; k++) {
        snprintf(name, sizeof name, "%s/%d", folder, k);
        temporary_mkdir(name);
    }
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "%s/%d/%03d.png", folder, i / (N / 2), i);
        if (i < clump) temporary_write(name, "", 0); else make_png(name, 8, 8, 0);
    }
    dataset_t dataset;
    open_here(&dataset, folder, SPLIT_TRAIN);
    dataloader_options_t options = default_options();
    options.shuffle = 0;
    options.batch = 10;
    dataloader_t loader;
    int saved = temporary_catch_stderr(), others = 0;
    dataloader_open(&loader, &dataset, &options, 0);
    for (int s = 0; s < 2 * N / 10; s++) { // twice through
        const batch_t* batch = dataloader_next(&loader);
        for (int i = 0; i < 10; i++) {
            int position = (s * 10 + i) % N;
            check(position < clump || batch->ids[i] == position, "sound files keep their place");
            check(batch->ids[i] >= clump, "damaged ones do not");
            others += position < clump && batch->labels[i] == 1;
        }
    }
    check(dataloader_damaged_files(&loader) == (size_t)clump, "each counts once");
    check(others > clump / 2, "replaced by images of the other class too");
    dataloader_close(&loader);
    temporary_release_stderr(saved);
    dataset_close(&dataset);
}

static inline void child_run(const char* name) {
    dataset_t dataset;
    open_here(&dataset, name, SPLIT_TRAIN);
    dataloader_options_t options = default_options();
    options.threads = 2;
    dataloader_t loader;
    dataloader_open(&loader, &dataset, &options, 0);
    for (int s = 0; s < 50; s++) dataloader_next(&loader);
}

static inline void test_hopeless(void) {
    char name[64];
    temporary_mkdir("hopeless");
    temporary_mkdir("mostly");
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "hopeless/%02d.jpg", i);
        temporary_write(name, "nothing", 7);
        snprintf(name, sizeof name, "mostly/%02d.jpg", i);
        if (i % 3) temporary_write(name, "nothing", 7); else make_png(name, 9, 9, 0);
    }
    check_message(child_run, "hopeless", "64 images in a row", "hopeless");
    check_message(child_run, "mostly", "by lot, cannot be read", "mostly");
}

static inline void child_bad_batch(const char* name) {
    dataset_t dataset;
    open_here(&dataset, name, SPLIT_TRAIN);
    dataloader_options_t options = default_options();
    options.world = 4;
    dataloader_t loader;
    dataloader_open(&loader, &dataset, &options, 0);
}

// Stopping with the ring full, empty, or never read.
static inline void test_early_close(void) {
    dataset_t dataset;
    dataset_open(&dataset, "shapes", SPLIT_TRAIN);
    for (int threads = 0; threads < 4; threads++) {
        for (int steps = 0; steps < 6; steps += 2) {
            dataloader_options_t options = default_options();
            options.threads = threads;
            dataloader_t loader;
            dataloader_open(&loader, &dataset, &options, 1000000007);
            for (int s = 0; s < steps; s++) dataloader_next(&loader);
            check(loader.seconds_waited >= 0 && loader.seconds_waited < 60, "the time waited");
            dataloader_close(&loader);
        }
    }
    dataset_close(&dataset);
    make_tree("odd", 0);
    check_message(child_bad_batch, "odd", "batch of 6", "4 ranks");
}

// ---------------------------------------------------------------------------------------------------------------------

// Real data, where it is installed; also says how fast the loader is on one thread.
static inline void test_fashion(void) {
    if (!dataset_has_idx(FASHION_MNIST_FOLDER)) {
        printf("     Fashion-MNIST is not installed: not tested\n");
        return;
    }
    dataset_t train, val;
    dataset_open(&train, "fashion-mnist", SPLIT_TRAIN);
    dataset_open(&val, "auto", SPLIT_VAL);
    check(train.count == 60000 && val.count == 10000 && train.rows == 28 && train.columns == 28, "sizes");
    check(train.class_count == 10 && !strcmp(train.class_names[9], "ankle boot"), "classes");
    int histogram[10] = {0};
    for (size_t i = 0; i < train.count; i++) histogram[train.labels[i]]++;
    for (int k = 0; k < 10; k++) check(histogram[k] == 6000, "6000 of each class");
    check(train.labels[0] == 9, "the first is an ankle boot");
    dataloader_options_t options = default_options();
    options.batch = 64;
    options.size = 32;
    for (options.threads = 0; options.threads < 2; options.threads++) {
        dataloader_t loader;
        dataloader_open(&loader, &train, &options, 0);
        double start = clock_seconds();
        for (int s = 0; s < 100; s++) dataloader_next(&loader);
        printf("     Fashion-MNIST at 32 x 32, %s: %.0f images/s\n",
               options.threads ? "one worker thread" : "no worker thread", 6400 / (clock_seconds() - start));
        dataloader_close(&loader);
    }
    dataset_close(&train);
    dataset_close(&val);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("folder tree")) { test_folder(); test_end_case(); }
    if (test_case("folders train and val")) { test_splits(); test_end_case(); }
    if (test_case("what is left out, and numbers")) { test_left_out(); test_end_case(); }
    if (test_case("a val without class folders")) { test_flat_val(); test_end_case(); }
    if (test_case("the labels of Kaggle's val")) { test_kaggle(); test_end_case(); }
    if (test_case("folders that are refused")) { test_folder_errors(); test_end_case(); }
    if (test_case("IDX files, plain and gzipped")) { test_idx(); test_end_case(); }
    if (test_case("IDX files that are refused")) { test_idx_errors(); test_end_case(); }
    if (test_case("shapes")) { test_shapes(); test_end_case(); }
    if (test_case("garments")) { test_garments(); test_end_case(); }
    if (test_case("shapes areas")) { test_shape_areas(); test_end_case(); }
    if (test_case("stream: threads, resume, ranks, of a folder")) { test_invariance("plain", 0); test_end_case(); }
    if (test_case("stream: the same with damaged files")) { test_invariance("broken", 1); test_end_case(); }
    if (test_case("stream: the same of shapes")) { test_invariance("shapes", -1); test_end_case(); }
    if (test_case("stream: the same of garments")) {
        make_garments("dyed");
        test_invariance("dyed", -2);
        test_end_case();
    }
    if (test_case("stream: epochs and order")) { test_epochs(); test_end_case(); }
    if (test_case("stream: a part of a set")) { test_part_of_a_set(); test_end_case(); }
    if (test_case("stream: centre crop")) { test_centre_crop(); test_end_case(); }
    if (test_case("stream: random crop and flip")) { check_crops(0); check_crops(1); test_end_case(); }
    if (test_case("damaged files are named once, counted, replaced")) { test_damaged(); test_end_case(); }
    if (test_case("a clump of damaged files")) { test_clump(9); test_clump(60); test_end_case(); }
    if (test_case("too many damaged files end the program")) { test_hopeless(); test_end_case(); }
    if (test_case("closing at any moment")) { test_early_close(); test_end_case(); }
    if (test_case("Fashion-MNIST")) { test_fashion(); test_end_case(); }
    temporary_end();
    return test_finish();
}
