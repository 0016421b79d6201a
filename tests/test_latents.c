// test_latents.c: latents on a disk: ADM's centre crop, shards written and read, statistics, and the batches made of
// them.
//
// Element e of latent i is i * 1000 + e, of its mirrored twin 500 more, e counted in the order of the device (S, S, C):
// so a value tells where it came from. What ends the program is run in a child process, whose message is read.
// The crops and one shard were made by Pillow and by Python's safetensors: dev/reference/make_crop_fixture.py.
// Look next at common/data/latents.h and common/data/latent_loader.h.
// defines: image_centre_crop_adm
#include "common/data/crop.h"
// defines: latent_loader_open, latent_loader_next, latent_loader_close, latent_loader_options_t, latent_batch_t
#include "common/data/latent_loader.h"
// defines: latents_t, latent_shard_t, latents_open, latents_read, latents_statistics
#include "common/data/latents.h"
// defines: fixture_open
#include "tests/fixture.h"
// defines: make_picture
#include "tests/picture.h"
// defines: temporary_begin, temporary_path, temporary_mkdir, temporary_write, check_message, temporary_end
#include "tests/temporary.h"
// defines: test_begin, test_case, check, check_error, test_normal, test_end_case, test_finish
#include "tests/test.h"

#define NAMES "[\"cat\", \"dog\"]" // of classes; nobody counts them here

enum { CHANNELS = 3, SIDE = 4, VALUES = CHANNELS * SIDE * SIDE, CLASSES = 10 };

static const floatS zeros[CHANNELS] = {0, 0, 0}, ones[CHANNELS] = {1, 1, 1};

// ---------------------------------------------------------------------------------------------------------------------
// The crop

static inline void test_crop(void) {
    safetensors_t f;
    fixture_open(&f, "crop");
    check(f.n >= 10, "the cases are there");
    for (int i = 0; i < f.n; i++) {
        int height, width, size;
        if (sscanf(f.tensors[i].name, "crop.%d.%d.%d", &height, &width, &size) != 3) fatal("%s", f.tensors[i].name);
        image_t image = make_picture(height, width);
        uint8_t* out = (uint8_t*)calloc_check((size_t)size * size, 3, "a crop");
        image_centre_crop_adm(out, &image, size);
        check(f.tensors[i].numel == (size_t)size * size * 3, "the size");
        int same = !memcmp(out, f.tensors[i].data, (size_t)size * size * 3);
        if (!same) printf("     %s differs\n", f.tensors[i].name);
        check(same, "every byte is Pillow's");
        free(out);
        image_free(&image);
    }
    safetensors_close(&f);
}

// ---------------------------------------------------------------------------------------------------------------------
// Making shards

static inline int label_of(size_t i) { return (int)(i * 7 % CLASSES); }

// Shard `number` of `rank`: latents first .. first + n - 1, through the writer.
static inline void make_shard(const char* folder, int rank, int number, size_t first, int n, const char* tokenizer) {
    char path[1200], full[TEMPORARY_PATH];
    floatS z[VALUES], flipped[VALUES];
    latent_shard_t shard;
    latent_shard_open(&shard, n + 2, CHANNELS, SIDE, SIDE, 1); // room that stays empty
    for (size_t i = first; i < first + n; i++) {
        for (int e = 0; e < VALUES; e++) z[e] = (floatS)(i * 1000 + e), flipped[e] = z[e] + 500;
        latent_shard_add(&shard, z, flipped, label_of(i));
    }
    latent_shard_path(path, sizeof path, temporary_path(full, folder), rank, number);
    latent_origin_t origin = {tokenizer, "pictures", 16, 16, CLASSES, 2, NAMES, "images", NULL};
    latent_shard_write(&shard, path, &origin, n);
}

// Three shards of 5, 4 and 7 latents, written in another order than that of their names.
static inline void make_folder_of_16(const char* folder) {
    temporary_mkdir(folder);
    make_shard(folder, 1, 0, 9, 7, "0123456789abcdef");
    make_shard(folder, 0, 1, 5, 4, "0123456789abcdef");
    make_shard(folder, 0, 0, 0, 5, "0123456789abcdef");
}

static inline void open_latents(latents_t* l, const char* folder, int classes) {
    char path[TEMPORARY_PATH];
    latents_open(l, temporary_path(path, folder), CHANNELS, SIDE, classes);
}

static inline void test_round_trip(void) {
    latents_t l;
    char path[1200], folder[TEMPORARY_PATH];
    make_folder_of_16("trip");
    temporary_write("trip/latents_stats.st", "not read here", 13);
    temporary_write("trip/notes.txt", "x", 1);
    open_latents(&l, "trip", CLASSES);
    check(l.count == 16 && l.n_files == 3 && !strcmp(l.tokenizer, "0123456789abcdef"), "16 latents in 3 shards");
    for (size_t i = 0; i < l.count; i++) {
        check(l.labels[i] == label_of(i), "labels");
        for (int flip = 0; flip < 2; flip++) {
            floatS out[VALUES], first, last;
            float stored[VALUES];
            latents_read(&l, i, flip, zeros, ones, out);
            for (int e = 0; e < VALUES; e++) check(out[e] == (floatS)(i * 1000 + flip * 500 + e), "values");
            memcpy(stored, latents_at(&l, i, flip), sizeof stored);
            for (int c = 0; c < CHANNELS; c++) {
                first = out[c], last = out[VALUES - CHANNELS + c];
                check(stored[c * 16] == first && stored[c * 16 + 15] == last, "files are (C, S, S)");
            }
        }
    }
    latents_close(&l);
    safetensors_t f;
    safetensors_open_or_die(&f, latent_shard_path(path, sizeof path, temporary_path(folder, "trip"), 1, 0));
    check(strstr(path, "/latents_rank01_shard000.safetensors") != NULL, "LightningDiT's name");
    const char* keys[5] = {"total_size", "dtype", "device", "tokenizer", "classes"};
    const char* values[5] = {"7", "torch.float32", "cpu", "0123456789abcdef", "10"};
    for (int i = 0; i < 5; i++) {
        const char* value = safetensors_metadata(&f, keys[i]);
        check(value && !strcmp(value, values[i]), keys[i]);
    }
    safetensors_close(&f);
}

// Copies a fixture into a folder of its own.
static inline void copy_fixture(const char* from, const char* to) {
    FILE* file = fopen(from, "rb");
    static char bytes[1 << 16];
    if (!file) fatal("%s is missing; make the fixtures again", from);
    size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    temporary_write(to, bytes, size);
}

static inline void test_python(void) {
    static const int labels[5] = {3, 0, 9, 9, 1};
    latents_t l;
    temporary_mkdir("python");
    copy_fixture("tests/fixtures/latents_python.safetensors", "python/latents_rank00_shard000.safetensors");
    open_latents(&l, "python", CLASSES);
    check(l.count == 5 && !l.tokenizer[0], "5 latents, of a tokenizer that is not named");
    for (size_t i = 0; i < l.count; i++) {
        check(l.labels[i] == labels[i], "labels");
        for (int flip = 0; flip < 2; flip++) {
            floatS out[VALUES];
            latents_read(&l, i, flip, zeros, ones, out);
            for (int e = 0; e < VALUES; e++) { // e = p C + c here, c S S + p there
                size_t there = ((flip * l.count + i) * CHANNELS + e % CHANNELS) * 16 + e / CHANNELS;
                check(out[e] == (floatS)there / 8 - 20, "values");
            }
        }
    }
    latents_close(&l);
}

// ---------------------------------------------------------------------------------------------------------------------
// What is refused

// A shard of 2 zero latents, with one thing wrong, in a folder of its own behind a good shard.
typedef struct {
    const char* folder;
    const char *latents, *flipped, *labels; // names of the tensors
    st_dtype_t dtype, label_dtype;
    size_t n_flipped, n_labels, C, height, side;
    int64_t label;
} strange_t;

static inline strange_t strange(const char* folder) {
    strange_t s = {folder, "latents", "latents_flip", "labels", ST_F32, ST_I64, 2, 2, CHANNELS, SIDE, SIDE, 3};
    return s;
}

static inline void make_strange(strange_t s) {
    static const char nothing[2 * VALUES * 8];
    char path[1200], folder[TEMPORARY_PATH];
    size_t shape[4] = {2, s.C, s.height, s.side}, flipped_shape[4] = {s.n_flipped, s.C, s.height, s.side};
    size_t values = s.C * s.height * s.side * (st_dtype_info(s.dtype).bits / 8);
    int64_t wide[2] = {0, s.label};
    st_writer_t w;
    temporary_mkdir(s.folder);
    make_shard(s.folder, 0, 0, 0, 3, "");
    safetensors_writer_init(&w);
    safetensors_writer_tensor(&w, s.latents, s.dtype, 4, shape);
    safetensors_writer_tensor(&w, s.flipped, ST_F32, 4, flipped_shape);
    safetensors_writer_tensor(&w, s.labels, s.label_dtype, 1, &s.n_labels);
    safetensors_writer_begin(&w, latent_shard_path(path, sizeof path, temporary_path(folder, s.folder), 0, 1));
    safetensors_writer_raw(&w, nothing, 2 * values);
    safetensors_writer_raw(&w, nothing, s.n_flipped * s.C * s.height * s.side * 4);
    if (s.label_dtype == ST_I64) safetensors_writer_raw(&w, wide, s.n_labels * 8);
    else safetensors_writer_raw(&w, nothing, s.n_labels * 4);
    safetensors_writer_finish_or_die(&w);
}

static inline void child_open(const char* folder) {
    latents_t l;
    open_latents(&l, folder, CLASSES);
}

static inline void child_open_any_class(const char* folder) {
    latents_t l;
    open_latents(&l, folder, 0);
}

static inline void test_strange_tensors(void) {
    strange_t s = strange("right");
    make_strange(s);
    check(temporary_run_child(child_open, "right") == 0, "the shard without a fault is read");
    s = strange("no_latents"), s.latents = "latent", make_strange(s);
    check_message(child_open, s.folder, "shard001", "tensor latents is missing");
    s = strange("no_flip"), s.flipped = "flip", make_strange(s);
    check_message(child_open, s.folder, "shard001", "tensor latents_flip is missing");
    s = strange("no_labels"), s.labels = "y", make_strange(s);
    check_message(child_open, s.folder, "shard001", "tensor labels is missing");
    s = strange("half"), s.dtype = ST_F16, make_strange(s);
    check_message(child_open, s.folder, "latents is F16 [2, 3, 4, 4]", "wanted F32");
    s = strange("channels"), s.C = 2, make_strange(s);
    check_message(child_open, s.folder, "[2, 2, 4, 4]", "wanted 3 channels and side 4");
    s = strange("side"), s.side = s.height = 2, make_strange(s);
    check_message(child_open, s.folder, "[2, 3, 2, 2]", "wanted 3 channels and side 4");
    s = strange("oblong"), s.height = 2, make_strange(s);
    check_message(child_open, s.folder, "[2, 3, 2, 4]", "(n, channels, side, side)");
    s = strange("less_flip"), s.n_flipped = 1, make_strange(s);
    check_message(child_open, s.folder, "2 latents", "1 of mirrored images");
    s = strange("less_labels"), s.n_labels = 1, make_strange(s);
    check_message(child_open, s.folder, "labels", "one for each latent");
    s = strange("short_labels"), s.label_dtype = ST_I32, make_strange(s);
    check_message(child_open, s.folder, "labels", "not I64");
}

static inline void test_strange_labels(void) {
    strange_t s = strange("negative");
    s.label = -1, make_strange(s);
    check_message(child_open, s.folder, "label -1 of latent 1", "damaged");
    check_message(child_open_any_class, s.folder, "label -1 of latent 1", "damaged");
    s = strange("too_large"), s.label = CLASSES, make_strange(s);
    check_message(child_open, s.folder, "label 10 of latent 1", "not below 10");
    check(temporary_run_child(child_open_any_class, s.folder) == 0, "unless labels are of no interest");
    s = strange("largest"), s.label = CLASSES - 1, make_strange(s);
    check(temporary_run_child(child_open, s.folder) == 0, "the last class is one");
    s = strange("beyond_int"), s.label = (int64_t)1 << 32, make_strange(s);
    check_message(child_open_any_class, s.folder, "label 4294967296", "damaged");
}

static inline void test_strange_folders(void) {
    char path[TEMPORARY_PATH];
    check_message(child_open, "nowhere", "no such folder", "-extract 1");
    temporary_mkdir("void");
    temporary_write("void/latents_stats.st", "x", 1);
    check_message(child_open, "void", "void", "`./train_dit -extract 1`");
    temporary_mkdir("hollow");
    make_shard("hollow", 0, 0, 0, 0, "");
    check_message(child_open, "hollow", "hollow", "empty");
    temporary_mkdir("two");
    make_shard("two", 0, 0, 0, 3, "aaaa");
    make_shard("two", 0, 1, 3, 3, "bbbb");
    check_message(child_open, "two", "made by tokenizer bbbb", "by aaaa");
    temporary_mkdir("same_start"); // fingerprints of any length are compared whole
    make_shard("same_start", 0, 0, 0, 3, "a_long_name_of_a_tokenizer");
    make_shard("same_start", 0, 1, 3, 3, "a_long_name_of_a_tokenizer");
    check(temporary_run_child(child_open, "same_start") == 0, "a long fingerprint");
    make_shard("same_start", 0, 1, 3, 3, "a_long_name_of_another_one");
    check_message(child_open, "same_start", "shard001", "a_long_name_of_another_one");
    make_folder_of_16("cut");
    temporary_path(path, "cut/latents_rank00_shard001.safetensors");
    if (truncate(path, 1500)) perror(path);
    check_message(child_open, "cut", "shard001", "truncated");
}

// Other people's shard in which one number, the k-th of the images or of their mirror images, is none. What a Mac
// leaves beside it is no shard.
static inline void make_hole(const char* folder, int flip, size_t k, float value, int ours) {
    float values[2][3 * VALUES] = {{0}};
    int64_t labels[3] = {4, 5, 6};
    char path[1200], where[TEMPORARY_PATH];
    size_t shape[4] = {3, CHANNELS, SIDE, SIDE};
    st_writer_t w;
    values[flip][k] = value;
    temporary_mkdir(folder);
    snprintf(where, sizeof where, "%s/._latents_rank00_shard000.safetensors", folder);
    temporary_write(where, "\0\5\26\7", 4);
    safetensors_writer_init(&w);
    if (ours) safetensors_writer_metadata(&w, "finite", "1");
    safetensors_writer_tensor(&w, "latents", ST_F32, 4, shape);
    safetensors_writer_tensor(&w, "latents_flip", ST_F32, 4, shape);
    safetensors_writer_tensor(&w, "labels", ST_I64, 1, shape);
    safetensors_writer_begin(&w, latent_shard_path(path, sizeof path, temporary_path(where, folder), 0, 0));
    safetensors_writer_raw(&w, values[0], sizeof values[0]);
    safetensors_writer_raw(&w, values[1], sizeof values[1]);
    safetensors_writer_raw(&w, labels, sizeof labels);
    safetensors_writer_finish_or_die(&w);
}

static inline void test_holes(void) {
    make_hole("hole0", 0, 0, 1e38f, 0);
    check(temporary_run_child(child_open, "hole0") == 0, "large numbers are numbers");
    make_hole("hole1", 0, 2 * VALUES - 1, NAN, 0);
    check_message(child_open, "hole1", "shard000.safetensors: the latents of image 1 (label 5)",
                "channel 2 at position 15");
    make_hole("hole2", 1, 2 * VALUES, -INFINITY, 0);
    check_message(child_open, "hole2", "the latents_flip of image 2 (label 6)", "channel 0 at position 0");
    make_hole("hole3", 0, 7, NAN, 1);
    check(temporary_run_child(child_open, "hole3") == 0, "shards of ours were looked at when they were written");
}

// ---------------------------------------------------------------------------------------------------------------------
// Going on with an extraction

static inline int is_made_from_some(const char* name, size_t total, const char* tokenizer, const char* data,
                                    size_t images, size_t chosen) {
    char path[TEMPORARY_PATH];
    latent_origin_t origin = {tokenizer, data, images, chosen, CLASSES, 2, NAMES, "images", NULL};
    return latent_shard_is_made(temporary_path(path, name), total, CHANNELS, SIDE, SIDE, &origin);
}
static inline int is_made_from(const char* name, size_t total, const char* tokenizer, const char* data, size_t images) {
    return is_made_from_some(name, total, tokenizer, data, images, images);
}
static inline int is_made(const char* name, size_t total, const char* tokenizer) {
    return is_made_from(name, total, tokenizer, "pictures", 16);
}

static inline void child_of_another(const char* name) { is_made(name, 5, "fedcba9876543210"); }
static inline void child_of_other_images(const char* name) { is_made_from(name, 5, "0123456789abcdef", "photos", 16); }
static inline void child_of_more(const char* name) { is_made_from(name, 5, "0123456789abcdef", "pictures", 17); }
static inline void child_of_some(const char* name) {
    is_made_from_some(name, 5, "0123456789abcdef", "pictures", 16, 8);
}
static inline void child_of_another_split(const char* name) { is_made(name, 6, "0123456789abcdef"); }

static inline void test_is_made(void) {
    const char* name = "made/latents_rank00_shard000.safetensors";
    char path[TEMPORARY_PATH];
    make_folder_of_16("made");
    check(is_made(name, 5, "0123456789abcdef"), "it is there");
    check(!is_made("made/latents_rank00_shard002.safetensors", 5, "0123456789abcdef"), "it is not there");
    check_message(child_of_another, name, "0123456789abcdef", "tokenizer fedcba9876543210");
    check_message(child_of_another_split, name, "shard000", "6 images");
    check_message(child_of_other_images, name, "16 images of pictures", "16 images of photos");
    check_message(child_of_more, name, "16 images of pictures", "17 images of pictures");
    check_message(child_of_some, name, "all of the 16 images", "8 of 16 images of pictures");
    if (truncate(temporary_path(path, name), 1500)) perror(path);
    int saved = temporary_catch_stderr();
    int made = is_made(name, 5, "0123456789abcdef");
    temporary_release_stderr(saved);
    char* said = temporary_read("stderr", NULL);
    check(!made && strstr(said, "warning: ") && strstr(said, "made again"), "a damaged shard is made again");
    free(said);
}

// ---------------------------------------------------------------------------------------------------------------------
// Statistics

static inline void test_statistics(void) {
    enum { N = 50 };
    static floatS z[N][VALUES], flipped[VALUES];
    latents_t l;
    latent_shard_t shard;
    char path[1200], folder[TEMPORARY_PATH];
    floatS mean[CHANNELS], std[CHANNELS], again[CHANNELS], again_std[CHANNELS];
    temporary_mkdir("stats");
    latent_shard_open(&shard, N, CHANNELS, SIDE, SIDE, 1);
    for (int i = 0; i < N; i++) {
        for (int e = 0; e < VALUES; e++) z[i][e] = (floatS)(100 * (e % CHANNELS) + (1 + e % CHANNELS) * test_normal());
        latent_shard_add(&shard, z[i], flipped, 0);
    }
    latent_shard_path(path, sizeof path, temporary_path(folder, "stats"), 0, 0);
    latent_origin_t origin = {"", "pictures", N, N, 1, 1, "[\"all\"]", "images", NULL};
    latent_shard_write(&shard, path, &origin, N);
    open_latents(&l, "stats", 1);
    latents_statistics(&l, 1, 10000, mean, std);
    for (int c = 0; c < CHANNELS; c++) {
        double n = N * SIDE * SIDE, sum = 0, squares = 0;
        for (int i = 0; i < N; i++) for (int p = 0; p < 16; p++) sum += z[i][p * CHANNELS + c];
        for (int i = 0; i < N; i++) {
            for (int p = 0; p < 16; p++) squares += pow(z[i][p * CHANNELS + c] - sum / n, 2);
        }
        check_error("mean", fabs(mean[c] - sum / n) / sqrt(squares / (n - 1)), 1e-5);
        check_error("std, divisor n - 1", fabs(std[c] / sqrt(squares / (n - 1)) - 1), 1e-6);
    }
    // a part, by the seed: another seed draws others
    latents_statistics(&l, 1, 7, mean, std);
    latents_statistics(&l, 2, 7, again, again_std);
    check(memcmp(mean, again, sizeof mean) != 0, "another seed, another choice");
    latents_statistics(&l, 1, 7, again, again_std);
    check(!memcmp(mean, again, sizeof mean) && !memcmp(std, again_std, sizeof std), "the same seed, the same bits");
    // kept: what the file says is believed as long as it is about this folder
    floatS marked[CHANNELS] = {1, 2, 3};
    char* kept = dataset_join(l.folder, LATENT_STATS);
    latents_save_statistics(&l, kept, 1, 7, marked, marked);
    latents_statistics(&l, 1, 7, again, again_std);
    check(!memcmp(again, marked, sizeof marked) && !memcmp(again_std, marked, sizeof marked), "it is reused");
    l.count--;
    latents_save_statistics(&l, kept, 1, 7, marked, marked);
    l.count++;
    latents_statistics(&l, 1, 7, again, again_std);
    check(!memcmp(again, mean, sizeof mean), "but not for another number of latents");
    const char* made_by = l.tokenizer;
    l.tokenizer = "another";
    latents_save_statistics(&l, kept, 1, 7, marked, marked);
    l.tokenizer = made_by;
    latents_statistics(&l, 1, 7, again, again_std);
    check(!memcmp(again, mean, sizeof mean), "nor for latents of another tokenizer");
    temporary_write("stats/latents_stats.st", "damaged", 7);
    latents_statistics(&l, 1, 7, again, again_std);
    check(!memcmp(again, mean, sizeof mean), "nor when it is damaged");
    safetensors_t f;
    safetensors_open_or_die(&f, kept);
    const st_tensor_t* t = safetensors_find(&f, "std");
    check(t && t->dtype == ST_F32 && t->ndim == 4 && t->shape[0] == 1 && t->shape[1] == CHANNELS, "F32 (1, C, 1, 1)");
    safetensors_close(&f);
    free(kept);
    latents_close(&l);
}

static inline void child_constant(const char* folder) {
    latents_t l;
    floatS mean[CHANNELS], std[CHANNELS];
    open_latents(&l, folder, CLASSES);
    latents_statistics(&l, 1, 2, mean, std);
}

static inline void test_constant(void) {
    strange_t s = strange("constant");
    make_strange(s);
    char path[TEMPORARY_PATH];
    unlink(temporary_path(path, "constant/latents_rank00_shard000.safetensors"));
    check_message(child_constant, "constant", "constant", "channel 0");
}

// ---------------------------------------------------------------------------------------------------------------------
// Batches

enum { BATCH = 6, STEPS = 9 };

static inline latent_loader_options_t default_options(void) {
    latent_loader_options_t o;
    memset(&o, 0, sizeof o);
    o.batch = BATCH;
    o.world = 1;
    o.seed = 77;
    o.flip = 1;
    o.mean = zeros;
    o.std = ones;
    o.mult = 1;
    o.drop = 0.3;
    o.null_label = CLASSES;
    o.uniform_from = 6;
    return o;
}

typedef struct { floatS x1[STEPS][BATCH][VALUES], t[STEPS][BATCH]; int labels[STEPS][BATCH]; } stored_t;

// Steps first .. STEPS - 1 as rank o.rank sees them, into its rows.
static inline void read_stream(stored_t* out, const latents_t* l, latent_loader_options_t o, int first) {
    static latent_loader_t loader;
    int rows = BATCH / o.world;
    latent_loader_open(&loader, l, &o, (uint64_t)first);
    for (int step = first; step < STEPS; step++) {
        const latent_batch_t* b = latent_loader_next(&loader);
        if (step % 3 == 0) usleep(1000); // lets the thread run into its limit
        memcpy(out->x1[step][o.rank * rows], b->x1, rows * VALUES * sizeof(floatS));
        memcpy(&out->t[step][o.rank * rows], b->t, rows * sizeof(floatS));
        memcpy(&out->labels[step][o.rank * rows], b->labels, rows * sizeof(int));
    }
    check(loader.ring.seconds_waited >= 0 && loader.ring.seconds_waited < 10, "seconds waited");
    latent_loader_close(&loader);
}

static inline void test_invariance(void) {
    static stored_t want, got;
    latents_t l;
    open_latents(&l, "stream", CLASSES);
    read_stream(&want, &l, default_options(), 0);
    for (int workers = 0; workers <= 2; workers++) {
        for (int world = 1; world <= 3; world++) {
            memset(&got, 0xff, sizeof got);
            for (int rank = 0; rank < world; rank++) {
                latent_loader_options_t o = default_options();
                o.workers = workers, o.world = world, o.rank = rank;
                read_stream(&got, &l, o, 0);
            }
            check(!memcmp(&got, &want, sizeof got), "any number of ranks and workers");
        }
        for (int first = 1; first < STEPS; first += 3) {
            latent_loader_options_t o = default_options();
            o.workers = workers;
            got = want;
            memset(got.x1[first], 0xff, (STEPS - first) * sizeof got.x1[0]);
            memset(got.t[first], 0xff, (STEPS - first) * sizeof got.t[0]);
            memset(got.labels[first], 0xff, (STEPS - first) * sizeof got.labels[0]);
            read_stream(&got, &l, o, first);
            check(!memcmp(&got, &want, sizeof got), "a stream that goes on at a later step");
        }
    }
    latent_loader_options_t o = default_options();
    o.seed = 78;
    read_stream(&got, &l, o, 0);
    check(memcmp(got.x1, want.x1, sizeof got.x1) && memcmp(got.t, want.t, sizeof got.t), "another seed, other batches");
    latents_close(&l);
}

// 16 latents in batches of 6: an epoch is 2 steps and leaves 4 out, others each time.
static inline void test_rows(void) {
    static stored_t s;
    latents_t l;
    int epoch_seen[16], ever[16] = {0}, flipped = 0, dropped = 0;
    open_latents(&l, "stream", CLASSES);
    read_stream(&s, &l, default_options(), 0);
    for (int step = 0; step < STEPS; step++) {
        if (step % 2 == 0) memset(epoch_seen, 0, sizeof epoch_seen);
        for (int row = 0; row < BATCH; row++) {
            int value = (int)s.x1[step][row][0], i = value / 1000, flip = value % 1000 == 500;
            check(i >= 0 && i < 16 && value % 500 == 0, "it is one of the latents");
            for (int e = 0; e < VALUES; e++) check(s.x1[step][row][e] == (floatS)(value + e), "all of it");
            check(!epoch_seen[i]++, "no latent twice in an epoch");
            ever[i] = 1;
            flipped += flip;
            dropped += s.labels[step][row] == CLASSES;
            check(s.labels[step][row] == CLASSES || s.labels[step][row] == label_of((size_t)i), "its label, or none");
            uint64_t g = (uint64_t)step * BATCH + row;
            double t = 1 / (1 + exp(-(double)random_normal(77, RANDOM_TIMES, 0, g)));
            if (step >= 6) t = random_uniform(77, RANDOM_TIMES, 1, g);
            check(s.t[step][row] == (floatS)t, "its time");
        }
    }
    for (int i = 0; i < 16; i++) check(ever[i], "none is left out for ever");
    check(flipped > 12 && flipped < 42, "about half are mirrored"); // of 54: 4 deviations
    check(dropped > 3 && dropped < 30, "about three of ten labels are dropped");
    latents_close(&l);
}

static inline void test_options(void) {
    static stored_t plain, s;
    static const floatS mean[CHANNELS] = {10, -20, 30}, std[CHANNELS] = {2, 4, 0.5f};
    latents_t l;
    latent_loader_options_t o = default_options();
    open_latents(&l, "stream", CLASSES);
    o.flip = 0, o.drop = 0, o.uniform_from = 0;
    read_stream(&plain, &l, o, 0);
    o.mean = mean, o.std = std, o.mult = 0.25, o.unconditional = 1;
    read_stream(&s, &l, o, 0);
    check(!memcmp(s.t, plain.t, sizeof s.t), "times do not depend on them");
    for (int step = 0; step < STEPS; step++) {
        for (int row = 0; row < BATCH; row++) {
            int i = (int)plain.x1[step][row][0] / 1000;
            check(plain.x1[step][row][0] == (floatS)(1000 * i), "without flip none is mirrored");
            check(plain.labels[step][row] == label_of((size_t)i), "without drop none is dropped");
            check(s.labels[step][row] == 0, "unconditional: label 0");
            for (int e = 0; e < VALUES; e++) {
                floatS want = (plain.x1[step][row][e] - mean[e % 3]) / std[e % 3] * (floatS)0.25;
                check(s.x1[step][row][e] == want, "normalised, then times mult");
            }
        }
    }
    o.drop = 1, o.unconditional = 0;
    read_stream(&s, &l, o, 0);
    for (int i = 0; i < STEPS * BATCH; i++) check(s.labels[i / BATCH][i % BATCH] == CLASSES, "drop 1: all");
    latents_close(&l);
}

// Shuffled labels: the same images, each with the label of another one, in every epoch the same.
static inline void test_shuffled_labels(void) {
    static stored_t plain, s;
    latents_t l;
    latent_loader_options_t o = default_options();
    open_latents(&l, "stream", CLASSES);
    int label_of_image[64], moved = 0;
    memset(label_of_image, -1, sizeof label_of_image);
    o.flip = 0, o.drop = 0;
    read_stream(&plain, &l, o, 0);
    o.shuffle_labels = 1;
    read_stream(&s, &l, o, 0);
    check(!memcmp(s.x1, plain.x1, sizeof s.x1) && !memcmp(s.t, plain.t, sizeof s.t), "images and times are the same");
    for (int step = 0; step < STEPS; step++) {
        for (int row = 0; row < BATCH; row++) {
            int i = (int)s.x1[step][row][0] / 1000, label = s.labels[step][row];
            check(i < 64 && label >= 0 && label < CLASSES, "a label");
            check(label_of_image[i] < 0 || label_of_image[i] == label, "an image keeps its label");
            label_of_image[i] = label;
            moved += label != plain.labels[step][row];
        }
    }
    check(moved > 0, "labels have moved");
    latents_close(&l);
}

// The quantiles that the logit-normal distribution has: 10% below 0.217, 90% below 0.783 (z = -1.2816, 1.2816).
static inline void test_times(void) {
    enum { MANY = 4000 };
    int low = 0, high = 0;
    latents_t l;
    latent_loader_t loader;
    latent_loader_options_t o = default_options();
    o.uniform_from = 0, o.workers = 1;
    open_latents(&l, "stream", CLASSES);
    latent_loader_open(&loader, &l, &o, 0);
    for (int step = 0; step < MANY; step++) {
        const latent_batch_t* b = latent_loader_next(&loader);
        for (int row = 0; row < BATCH; row++) low += b->t[row] < 0.217, high += b->t[row] > 0.783;
    }
    latent_loader_close(&loader);
    latents_close(&l);
    double n = MANY * BATCH; // 4 deviations of a count are 0.008 n
    check(fabs(low / n - 0.1) < 0.008 && fabs(high / n - 0.1) < 0.008, "logit-normal");
}

// 16 latents in batches of 40: an epoch ends within a batch, and leaves none out.
static inline void test_few(void) {
    enum { LARGE = 40 };
    latents_t l;
    latent_loader_t loader;
    latent_loader_options_t o = default_options();
    int seen[16] = {0};
    o.batch = LARGE, o.flip = 0;
    open_latents(&l, "stream", CLASSES);
    latent_loader_open(&loader, &l, &o, 0);
    const latent_batch_t* b = NULL;
    for (int g = 0; g < 2 * LARGE; g++) {
        if (g % LARGE == 0) b = latent_loader_next(&loader);
        int i = (int)b->x1[(size_t)(g % LARGE) * VALUES] / 1000;
        check(i >= 0 && i < 16 && seen[i]++ == g / 16, "each latent once in 16 rows");
    }
    latent_loader_close(&loader);
    latents_close(&l);
}

static inline void child_ranks(const char* folder) {
    latents_t l;
    latent_loader_t loader;
    latent_loader_options_t o = default_options();
    o.world = 4;
    open_latents(&l, folder, CLASSES);
    latent_loader_open(&loader, &l, &o, 0);
}

static inline void test_early_close(void) {
    latents_t l;
    latent_loader_t loader;
    latent_loader_options_t o = default_options();
    o.workers = 1;
    open_latents(&l, "stream", CLASSES);
    for (int i = 0; i < 50; i++) {
        latent_loader_open(&loader, &l, &o, 5);
        if (i % 2) latent_loader_next(&loader);
        latent_loader_close(&loader);
    }
    latents_close(&l);
    check_message(child_ranks, "stream", "batch of 6", "4 ranks");
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("ADM's centre crop is Pillow's to the bit")) { test_crop(); test_end_case(); }
    if (test_case("shards come back")) { test_round_trip(); test_end_case(); }
    if (test_case("a shard of Python's safetensors")) { test_python(); test_end_case(); }
    if (test_case("tensors that are refused")) { test_strange_tensors(); test_end_case(); }
    if (test_case("labels that are refused")) { test_strange_labels(); test_end_case(); }
    if (test_case("folders that are refused")) { test_strange_folders(); test_end_case(); }
    if (test_case("a number that is none; a Mac's file beside")) { test_holes(); test_end_case(); }
    if (test_case("going on with an extraction")) { test_is_made(); test_end_case(); }
    if (test_case("statistics")) { test_statistics(); test_end_case(); }
    if (test_case("statistics of constant latents")) { test_constant(); test_end_case(); }
    make_folder_of_16("stream");
    if (test_case("batches: ranks, workers, a later start")) { test_invariance(); test_end_case(); }
    if (test_case("batches: rows, epochs, labels, times")) { test_rows(); test_end_case(); }
    if (test_case("batches: options")) { test_options(); test_end_case(); }
    if (test_case("batches: shuffled labels")) { test_shuffled_labels(); test_end_case(); }
    if (test_case("batches: quantiles of the times")) { test_times(); test_end_case(); }
    if (test_case("batches larger than the folder")) { test_few(); test_end_case(); }
    if (test_case("batches: closing at any moment, ranks that do not fit")) { test_early_close(); test_end_case(); }
    temporary_end();
    return test_finish();
}
