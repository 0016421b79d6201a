// test_caches.c: what a text-to-image training keeps on a disk: rows of captions, and latents of several sizes; and the
// batches that it makes of them. Look next at common/data/text_cache.h, common/data/bucket_latents.h and
// common/training/bucket_loader.h.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// defines: bucket_latents_t, bucket_shard_path, captions_fingerprint
#include "common/data/bucket_latents.h"
// defines: bucket_loader_t, bucket_loader_open, bucket_loader_next, bucket_loader_close
#include "common/training/bucket_loader.h"
// defines: text_cache_t, text_cache_writer_t
#include "common/data/text_cache.h"
// defines: temporary_*, check_message
#include "tests/temporary.h"
// defines: test_begin, test_case, check, test_end_case, test_finish
#include "tests/test.h"

// ---------------------------------------------------------------------------------------------------------------------
// Text

enum { DT = 5, DV = 3 };

// Row l, value k of a caption: exact in BF16.
static floatS row_value(const char* caption, int l, int k) {
    return (floatS)((int)(caption_hash(caption) % 64) + 8 * l + k) / 4;
}

static int rows_of(const char* caption) { return 1 + (int)strlen(caption) % 7; }

static void make_cache(const char* name, const string_list_t* captions, const char* encoder) {
    char path[TEMPORARY_PATH];
    text_cache_writer_t w;
    int* lengths = (int*)malloc(captions->count * sizeof(int));
    for (size_t i = 0; i < captions->count; i++) lengths[i] = rows_of(captions->items[i]);
    text_cache_begin(&w, temporary_path(path, name), encoder, lengths, captions->count, DT, DV);
    for (size_t i = 0; i < captions->count; i++) {
        floatS rows[8 * DT], pooled[DV];
        for (int l = 0; l < lengths[i]; l++) {
            for (int k = 0; k < DT; k++) rows[l * DT + k] = row_value(captions->items[i], l, k);
        }
        for (int k = 0; k < DV; k++) pooled[k] = row_value(captions->items[i], 100, k);
        text_cache_add(&w, captions->items[i], rows, pooled);
    }
    text_cache_end(&w);
    free(lengths);
}

static void test_captions(void) {
    dataset_t d;
    dataset_open(&d, "scenes", SPLIT_VAL);
    string_list_t captions = text_cache_captions(&d);
    check(captions.count > 1000 && captions.count < 5500 && !captions.items[0][0], "distinct ones, the empty one first");
    char *first = dataset_caption(&d, 0), *second = dataset_caption(&d, 1);
    check(!strcmp(captions.items[1], first) && !strcmp(captions.items[2], second), "as they come");
    string_list_sort(&captions);
    for (size_t i = 1; i < captions.count; i++) check(strcmp(captions.items[i - 1], captions.items[i]), "each once");
    for (size_t i = 0; i < d.count; i += 97) {
        char* caption = dataset_caption(&d, i);
        check(bsearch(&caption, captions.items, captions.count, sizeof caption, string_list_compare) != NULL, "all");
        free(caption);
    }
    free(first);
    free(second);
    string_list_free(&captions);
    dataset_close(&d);
    check(caption_hash("") == 0xcbf29ce484222325ull && caption_hash("a") == 0xaf63dc4c8601ec8cull &&
          caption_hash("foobar") == 0x85944171f73967e8ull, "FNV-1a's own test vectors");
}

// Rows stand at the right end, whatever the batch; those before them are zeros.
static void check_batch(const text_cache_t* c, const char* const* captions, int B, int Lm) {
    floatS* rows = (floatS*)malloc((size_t)B * Lm * DT * sizeof *rows);
    floatS* pooled = (floatS*)malloc((size_t)B * DV * sizeof *pooled);
    int sets[8], first[8];
    memset(rows, 0xFF, (size_t)B * Lm * DT * sizeof *rows);
    for (int b = 0; b < B; b++) sets[b] = (int)text_cache_find(c, captions[b]);
    text_cache_batch(c, sets, B, Lm, rows, first, pooled);
    for (int b = 0; b < B; b++) {
        int length = rows_of(captions[b]), L = length < Lm ? length : Lm;
        check(sets[b] >= 0 && first[b] == Lm - L, "where they begin");
        for (int l = 0; l < Lm; l++) {
            int row = l - first[b];
            if (row == L - 1) row = length - 1; // the end mark stays
            for (int k = 0; k < DT; k++) {
                floatS want = l < first[b] ? 0 : row_value(captions[b], row, k);
                check(rows[((size_t)b * Lm + l) * DT + k] == want, "rows");
            }
        }
        for (int k = 0; k < DV; k++) check(pooled[b * DV + k] == row_value(captions[b], 100, k), "the vector");
    }
    free(rows);
    free(pooled);
}

static void test_cache(void) {
    char path[TEMPORARY_PATH];
    static const char* const some[5] = {"", "a cat", "two dogs, and a cat", "\xc3\xa9", "twelve chars"};
    dataset_t d;
    text_cache_t c;
    string_list_t captions = {NULL, 0, 0};
    for (int i = 0; i < 5; i++) string_list_add(&captions, string_copy(some[i]));
    make_cache("five.st", &captions, "mine");
    text_cache_open(&c, temporary_path(path, "five.st"), "mine");
    check(c.n == 5, "all");
    for (int i = 0; i < 5; i++) {
        check(text_cache_find(&c, some[i]) == i && text_cache_length(&c, i) == rows_of(some[i]), "by its text");
    }
    check(text_cache_find(&c, "a dog") == -1, "another one is not there");
    int sets[5] = {4, 0, 2, 1, 3};
    check(text_cache_longest(&c, sets, 5) == 6 && text_cache_longest(&c, sets + 1, 1) == 1, "the longest of a batch");
    for (int Lm = 1; Lm < 9; Lm++) {
        for (int B = 1; B <= 5; B++) check_batch(&c, some, B, Lm);
    }
    text_cache_close(&c);
    string_list_free(&captions);
    dataset_open(&d, "scenes", SPLIT_VAL);
    captions = text_cache_captions(&d);
    make_cache("scenes.st", &captions, "mine");
    text_cache_open(&c, temporary_path(path, "scenes.st"), "mine");
    int* of = text_cache_sets(&c, &d);
    for (size_t i = 0; i < d.count; i += 83) {
        char* caption = dataset_caption(&d, i);
        check(!strcmp(captions.items[of[i]], caption), "the set of an image is that of its caption");
        free(caption);
    }
    free(of);
    text_cache_close(&c);
    string_list_free(&captions);
    dataset_close(&d);
}

static void child_cache(const char* name) {
    char path[TEMPORARY_PATH];
    text_cache_t c;
    text_cache_open(&c, temporary_path(path, name), "mine");
}

static void child_other_captions(const char* name) {
    char path[TEMPORARY_PATH];
    text_cache_t c;
    dataset_t d;
    text_cache_open(&c, temporary_path(path, name), "mine");
    dataset_open(&d, "scenes", SPLIT_TRAIN);
    text_cache_sets(&c, &d);
}

static void child_no_captions(const char* spec) {
    dataset_t d;
    dataset_open(&d, spec, SPLIT_TRAIN);
    text_cache_captions(&d);
}

// A file of three sets with one thing wrong.
static void make_strange(const char* name, int64_t change_offset, int64_t change_hash, const char* tensor) {
    char path[TEMPORARY_PATH];
    int64_t offsets[4] = {0, 1, 3, 4 + change_offset}, hash[3] = {(int64_t)caption_hash("") + (change_hash == 1), 7, 8};
    if (change_hash == 2) hash[2] = hash[1];
    if (change_offset < -1) offsets[3] = 4, offsets[2] = 1;
    uint16_t t5[4 * DT] = {0};
    float clip[3 * DV] = {0};
    size_t rows[2] = {4, DT}, four[1] = {4}, three[2] = {3, DV};
    st_writer_t w;
    safetensors_writer_init(&w);
    safetensors_writer_metadata(&w, "encoder", "mine");
    safetensors_writer_tensor(&w, tensor, ST_BF16, 2, rows);
    safetensors_writer_tensor(&w, "offsets", ST_I64, 1, four);
    safetensors_writer_tensor(&w, "clip", ST_F32, 2, three);
    safetensors_writer_tensor(&w, "hash", ST_I64, 1, three);
    safetensors_writer_begin(&w, temporary_path(path, name));
    safetensors_writer_raw(&w, t5, sizeof t5);
    safetensors_writer_raw(&w, offsets, sizeof offsets);
    safetensors_writer_raw(&w, clip, sizeof clip);
    safetensors_writer_raw(&w, hash, sizeof hash);
    safetensors_writer_finish_or_die(&w);
}

static void test_refused(void) {
    string_list_t captions = {NULL, 0, 0};
    string_list_add(&captions, string_copy(""));
    make_cache("other.st", &captions, "another");
    check_message(child_cache, "other.st", "by text encoder another", "this is mine");
    make_cache("lone.st", &captions, "mine");
    check_message(child_other_captions, "lone.st", "is the cache of other captions", "image 0 of scenes");
    string_list_free(&captions);
    make_strange("good.st", 0, 0, "t5");
    check(temporary_run_child(child_cache, "good.st") == 0, "without a fault");
    make_strange("offset.st", 1, 0, "t5");
    check_message(child_cache, "offset.st", "offsets or hashes", NULL);
    make_strange("still.st", -2, 0, "t5");
    check_message(child_cache, "still.st", "offsets or hashes", NULL);
    make_strange("first.st", 0, 1, "t5");
    check_message(child_cache, "first.st", "offsets or hashes", "the first of which is empty");
    make_strange("twice.st", 0, 2, "t5");
    check_message(child_cache, "twice.st", "offsets or hashes", NULL);
    make_strange("name.st", 0, 0, "t6");
    check_message(child_cache, "name.st", "tensor t5 is missing", NULL);
    check_message(child_no_captions, "shapes", "shapes has no captions", "-data scenes");
}

// ---------------------------------------------------------------------------------------------------------------------
// Latents

enum { C = 3, IMAGES = 60 };

static float latent_value(int64_t id, int c, int p) { return (float)(id * 4 + c) + 0.125f * (float)(p % 8); }

// Writes the shard again with latents of 16 bits, as other programs may.
static void halve(const char* path) {
    safetensors_t f;
    st_writer_t w;
    floatS values[IMAGES * 16 * C];
    safetensors_open_or_die(&f, path);
    const st_tensor_t *t = safetensors_find(&f, "latents"), *ids = safetensors_find(&f, "caption_id");
    memcpy(values, t->data, t->numel * sizeof(float));
    safetensors_writer_init(&w);
    safetensors_writer_metadata(&w, "tokenizer", latent_metadata(&f, "tokenizer"));
    safetensors_writer_metadata(&w, "captions", latent_metadata(&f, "captions"));
    safetensors_writer_tensor(&w, "latents", ST_F16, 4, t->shape);
    safetensors_writer_tensor(&w, "caption_id", ST_I64, 1, ids->shape);
    safetensors_writer_begin(&w, path);
    safetensors_writer_data(&w, values, t->numel);
    safetensors_writer_raw(&w, ids->data, ids->numel * sizeof(int64_t));
    safetensors_writer_finish_or_die(&w);
    safetensors_close(&f);
}

// Shards of three sizes by two processes: image i has size i % 3.
static void make_latents(const char* folder, st_dtype_t dtype, const char* captions) {
    static const int sizes[3][2] = {{4, 4}, {3, 5}, {5, 3}};
    latent_origin_t origin = {"tok", "pictures", IMAGES, IMAGES, 1, 2, "[\"all\"]", "images", captions};
    char path[1200], where[TEMPORARY_PATH];
    temporary_mkdir(folder);
    for (int rank = 0; rank < 2; rank++) {
        for (int k = 0; k < 3; k++) {
            latent_shard_t s;
            int h = sizes[k][0], w = sizes[k][1];
            latent_shard_open(&s, IMAGES, C, h, w, 0);
            for (int i = rank; i < IMAGES; i += 2) {
                floatS z[15 * C + C];
                if (i % 3 != k) continue;
                for (int e = 0; e < h * w * C; e++) z[e] = (floatS)latent_value(i, e % C, e / C);
                latent_shard_add(&s, z, NULL, i);
            }
            size_t n = (size_t)s.n;
            bucket_shard_path(path, sizeof path, temporary_path(where, folder), h, w, rank, 0);
            check(!latent_shard_is_made(path, n, C, h, w, &origin), "it is not there yet");
            latent_shard_write(&s, path, &origin, n);
            check(latent_shard_is_made(path, n, C, h, w, &origin), "and then it is");
            if (dtype == ST_F16) halve(path);
        }
    }
}

static void open_latents(bucket_latents_t* l, const char* folder) {
    char path[TEMPORARY_PATH];
    bucket_latents_open(l, temporary_path(path, folder), C, "c0ffee", IMAGES);
}

static void test_latents(const char* folder, st_dtype_t dtype) {
    enum { BATCH = 4, STEPS = 45 * 4 };
    static floatS whole[STEPS][BATCH * 16 * C];
    static int64_t ids[STEPS][BATCH];
    bucket_latents_t l;
    floatS zero[C] = {0}, one[C] = {1, 1, 1}, mean[C], std[C], x[BATCH * 16 * C];
    int seen[IMAGES] = {0};
    make_latents(folder, dtype, "c0ffee");
    open_latents(&l, folder);
    check(l.sizes.count == 3 && l.sizes.images == IMAGES && !strcmp(l.tokenizer, "tok"), "three sizes");
    for (uint64_t s = 0; s < STEPS; s++) {
        const aspect_bucket_t* b = bucket_latents_size(&l, 9, BATCH, s);
        bucket_latents_batch(&l, 9, BATCH, 0, 1, s, zero, one, whole[s], ids[s]);
        for (int i = 0; i < BATCH; i++) {
            int64_t id = ids[s][i];
            seen[id]++;
            check(b->H == 4 + (id % 3 == 2) - (id % 3 == 1) && b->H + b->W == 8, "of the size of the step");
            for (int e = 0; e < b->H * b->W * C; e++) {
                check(whole[s][i * b->H * b->W * C + e] == latent_value(id, e % C, e / C), "the latent of its number");
            }
        }
    }
    for (int i = 0; i < IMAGES; i++) check(abs(seen[i] - STEPS * BATCH / IMAGES) <= 2, "each as often as any other");
    for (int rank = 0; rank < 2; rank++) {
        for (uint64_t s = 0; s < STEPS; s++) {
            int64_t got[BATCH / 2];
            const aspect_bucket_t* b = bucket_latents_size(&l, 9, BATCH, s);
            size_t share = (size_t)BATCH / 2 * b->H * b->W * C;
            bucket_latents_batch(&l, 9, BATCH, rank, 2, s, zero, one, x, got);
            check(!memcmp(got, ids[s] + rank * BATCH / 2, sizeof got), "two processes share a batch");
            check(!memcmp(x, whole[s] + rank * share, share * sizeof *x), "and its latents");
        }
    }
    bucket_latents_statistics(&l, 1, IMAGES, mean, std);
    for (int c = 0; c < C; c++) { // over all values, one by one
        double sum = 0, square = 0, n = 0;
        for (int i = 0; i < IMAGES; i++) {
            for (int p = 0; p < (i % 3 ? 15 : 16); p++, n++) sum += latent_value(i, c, p);
        }
        for (int i = 0; i < IMAGES; i++) {
            for (int p = 0; p < (i % 3 ? 15 : 16); p++) square += pow(latent_value(i, c, p) - sum / n, 2);
        }
        check_error("mean", fabs(mean[c] - sum / n) / (sum / n), 1e-6);
        check_error("deviation", fabs(std[c] - sqrt(square / (n - 1))) / std[c], 1e-6);
    }
    bucket_latents_batch(&l, 9, BATCH, 0, 1, 0, mean, std, x, ids[0]);
    for (int c = 0; c < C; c++) check_error("normalised", fabs(x[c] - (whole[0][c] - mean[c]) / std[c]), 1e-6);
    bucket_latents_close(&l);
}

enum { LOADED = 40, LOADED_BATCH = 6, LOADED_ROWS = 6 };

// What a loader of rank `rank` of `world` gives in steps [first, LOADED), compared with the batches themselves. Returns
// how many captions were dropped.
static int check_loader(const bucket_latents_t* l, const dataset_t* d, const text_cache_t* cache, const int* sets,
                        int rank, int world, int workers, uint64_t first) {
    static bucket_loader_t loader;
    floatS zero[C] = {0}, one[C] = {1, 1, 1}, x[LOADED_BATCH * 16 * C];
    int64_t ids[LOADED_BATCH];
    int B = LOADED_BATCH / world, dropped = 0;
    bucket_loader_options_t o = {LOADED_BATCH, rank, world, workers, 9, zero, one, 0.25, LOADED_ROWS, NULL};
    bucket_loader_open(&loader, l, d, cache, sets, &o, first);
    for (uint64_t s = first; s < LOADED; s++) {
        const bucket_batch_t* batch = bucket_loader_next(&loader);
        const aspect_bucket_t* size = bucket_latents_size(l, 9, LOADED_BATCH, s);
        bucket_latents_batch(l, 9, LOADED_BATCH, rank, world, s, zero, one, x, ids);
        check(batch->h == size->H && batch->w == size->W, "the size of the step, in all processes");
        check(!memcmp(batch->x1, x, (size_t)B * size->H * size->W * C * sizeof *x), "latents");
        for (int b = 0; b < B; b++) {
            uint64_t g = s * LOADED_BATCH + (uint64_t)(rank * B + b);
            double z = 1 / (1 + exp(-(double)random_normal(9, RANDOM_TIMES, 0, g))), mu = 0.5;
            mu += 0.65 * (size->H * size->W - 256) / 3840;
            check_error("times", fabs(1 - batch->t[b] - exp(mu) / (exp(mu) + 1 / z - 1)), 1e-6);
            int drop = random_uniform(9, RANDOM_LABEL_DROP, 0, g) < 0.25, set = drop ? 0 : sets[ids[b]];
            char* caption = drop ? string_copy("") : dataset_caption(d, (size_t)ids[b]);
            dropped += drop;
            if (!cache) {
                check(!strcmp(batch->captions[b], caption), "captions");
            } else {
                int length = text_cache_length(cache, set), L = length < batch->L ? length : batch->L;
                const floatX* last = batch->rows + ((size_t)b * batch->L + batch->L - 1) * DT;
                check(batch->L <= LOADED_ROWS && batch->first[b] == batch->L - L, "text of the caption's length");
                check(last[1] == row_value(caption, length - 1, 1), "the mark of the end is the last row");
                check(batch->pooled[b * DV] == row_value(caption, 100, 0), "its vector");
            }
            free(caption);
        }
    }
    bucket_loader_close(&loader);
    return dropped;
}

static void test_loader(void) {
    char path[TEMPORARY_PATH], fingerprint[17];
    dataset_t d;
    bucket_latents_t l;
    text_cache_t cache;
    dataset_open(&d, "scenes", SPLIT_VAL);
    string_list_t captions = text_cache_captions(&d);
    make_cache("loaded.st", &captions, "mine");
    text_cache_open(&cache, temporary_path(path, "loaded.st"), "mine");
    check(cache.dt == DT && cache.dv == DV && !strcmp(cache.encoder, "mine"), "what a cache tells");
    int* sets = text_cache_sets(&cache, &d);
    make_latents("loaded", ST_F32, captions_fingerprint(fingerprint, &d));
    bucket_latents_open(&l, temporary_path(path, "loaded"), C, fingerprint, d.count);
    int all = check_loader(&l, &d, NULL, sets, 0, 1, 0, 0);
    check(all > 30 && all < 90, "a quarter is dropped");
    check(check_loader(&l, &d, &cache, sets, 0, 1, 1, 0) == all, "the same ones");
    int halves = check_loader(&l, &d, &cache, sets, 0, 2, 1, 0) + check_loader(&l, &d, NULL, sets, 1, 2, 1, 0);
    check(halves == all, "and in two processes");
    check_loader(&l, &d, &cache, sets, 0, 3, 1, 17);
    free(sets);
    text_cache_close(&cache);
    string_list_free(&captions);
    bucket_latents_close(&l);
    dataset_close(&d);
    check(bucket_warp(0.5, 256) > 0.6224 && bucket_warp(0.5, 256) < 0.6225, "half of the way at 256 positions");
    check(bucket_warp(1, 64) == 1 && bucket_warp(0, 64) == 0, "the ends stay");
}

static void child_latents(const char* folder) {
    bucket_latents_t l;
    open_latents(&l, folder);
}

// One more shard, of one latent of one position, under the name of another size.
static void make_lone(const char* folder, int side, const char* tokenizer, int64_t image) {
    latent_origin_t origin = {tokenizer, "pictures", IMAGES, IMAGES, 1, 2, "[\"all\"]", "images", "c0ffee"};
    char path[1200], where[TEMPORARY_PATH];
    floatS z[C] = {0};
    latent_shard_t s;
    latent_shard_open(&s, 1, C, 1, 1, 0);
    latent_shard_add(&s, z, NULL, image);
    bucket_shard_path(path, sizeof path, temporary_path(where, folder), side, side, 0, 0);
    latent_shard_write(&s, path, &origin, 1);
}

static void child_is_made(const char* path) {
    latent_origin_t origin = {"tok", "pictures", IMAGES, IMAGES, 1, 2, "[\"all\"]", "images", "c0ffee"};
    char where[TEMPORARY_PATH];
    latent_shard_is_made(temporary_path(where, path), 10, C, 4, 4, &origin);
}

static void test_refused_latents(void) {
    dataset_t d;
    char text[17], other[17];
    make_latents("others", ST_F32, "beef");
    check_message(child_latents, "others", "is of other captions (beef)", "(c0ffee)");
    check_message(child_is_made, "others/latents_004x004_rank00_shard000.safetensors", "is of other captions (beef)",
                  "give another -latents folder");
    make_latents("numbers", ST_F32, "c0ffee");
    make_lone("numbers", 9, "tok", IMAGES);
    check_message(child_latents, "numbers", "caption_id 60 is of no image", NULL);
    make_latents("another", ST_F32, "c0ffee");
    make_lone("another", 1, "kot", 0);
    check_message(child_latents, "another", "was made by tokenizer tok", "by kot");
    check_message(child_latents, "nowhere", "there is no such folder", NULL);
    temporary_mkdir("void");
    check_message(child_latents, "void", "holds no latents", NULL);
    dataset_open(&d, "scenes", SPLIT_VAL);
    captions_fingerprint(text, &d);
    d.split = SPLIT_TRAIN;
    check(strlen(text) == 16 && strcmp(text, captions_fingerprint(other, &d)), "other captions, another fingerprint");
    dataset_close(&d);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("distinct captions")) { test_captions(); test_end_case(); }
    if (test_case("text cache")) { test_cache(); test_end_case(); }
    if (test_case("text caches that are refused")) { test_refused(); test_end_case(); }
    if (test_case("latents of several sizes, F32")) { test_latents("f32", ST_F32); test_end_case(); }
    if (test_case("latents of several sizes, F16")) { test_latents("f16", ST_F16); test_end_case(); }
    if (test_case("batches of latents and text")) { test_loader(); test_end_case(); }
    if (test_case("latents that are refused")) { test_refused_latents(); test_end_case(); }
    temporary_end();
    return test_finish();
}
