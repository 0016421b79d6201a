// eval.cu: measures tokenizers on held-out images, one line a checkpoint.
//
//     ./eval -tokenizers runs/mini/stage1.safetensors,runs/mini/stage2.safetensors,runs/mini/stage3.safetensors
//
// For each checkpoint, with its averaged weights (what ships) unless -raw 1:
//     PSNR, L1     of the reconstruction, from bytes, mean over images
//     probe        accuracy of a linear classifier on the frozen latent: whole map ("flat") and mean over positions
// and a picture: the images, and below them each checkpoint's reconstruction.
//
// Look next at common/metrics.h and common/probe.h for the definitions.
#include <unistd.h>

// defines: json_text_t, json_append, json_append_string
#include "common/json.h"
// defines: cli_t, cli_parse
#include "common/cli.h"
// defines: dataset_t, dataset_open
#include "common/dataset.h"
// defines: dataloader_t, dataloader_next
#include "common/dataloader.h"
// defines: image_grid, image_write_png
#include "common/image.h"
// defines: psnr_bytes, l1_bytes
#include "common/metrics.h"
// defines: probe_set_t, probe_run
#include "common/probe.h"
// defines: autoencoder_t, autoencoder_open, autoencoder_encode, autoencoder_decode, autoencoder_close
#include "common/autoencoder.h"
// defines: clock_seconds
#include "common/clock.h"

enum { MAX_TOKENIZERS = 16, GRID_COLUMNS = 8 };

typedef struct {
    const char *tokenizers, *data, *out, *json;
    int images, probe_images, probe_epochs, probe_batch, batch, raw, workers;
    double probe_lr;
    size_t seed;
    int columns; // of the picture: the first images, at most GRID_COLUMNS
} eval_options_t;

typedef struct {
    int stage;
    int64_t step;
    double psnr, l1, probe_flat, probe_mean;
} scores_t;

// Mean PSNR and L1 over the first images of the held-out set. The first reconstructions go to `cells`.
static void measure_reconstruction(scores_t* scores, autoencoder_t* a, const dataset_t* set, const eval_options_t* e,
                                   uint8_t* cells, stream_t s) {
    size_t image = autoencoder_image_values(a), n = e->batch * image;
    floatS* host = (floatS*)malloc_check(n * sizeof(floatS), "reconstructions");
    uint8_t* bytes = (uint8_t*)malloc_check(n, "reconstructions");
    dataloader_t loader;
    dataloader_options_t options = {e->batch, a->H, 0, 0, 0, 0, 1, e->workers, e->seed};
    dataloader_open(&loader, set, &options, 0);
    int done = 0;
    while (done < e->images) {
        const batch_t* batch = dataloader_next(&loader);
        const floatX* latent = autoencoder_encode(a, batch->pixels, e->batch, s);
        copy_floats_to_host(host, autoencoder_decode(a, latent, e->batch, s), n);
        image_bytes_from_floats(bytes, host, n);
        for (int b = 0; b < e->batch && done < e->images; b++, done++) {
            scores->psnr += psnr_bytes(bytes + b * image, batch->pixels + b * image, image);
            scores->l1 += l1_bytes(bytes + b * image, batch->pixels + b * image, image);
            if (done < e->columns) memcpy(cells + done * image, bytes + b * image, image);
        }
    }
    scores->psnr /= done;
    scores->l1 /= done;
    dataloader_close(&loader);
    free(host);
    free(bytes);
}

// Latents of the first n images: the whole map into flat, its mean over positions into mean.
static void collect_latents(probe_set_t* flat, probe_set_t* mean, autoencoder_t* a, const dataset_t* set, int n,
                            const eval_options_t* e, stream_t s) {
    size_t dim = autoencoder_latent_values(a), latents = dim / a->z;
    probe_set_t f = {n, (int)dim, set->class_count, (floatS*)calloc_check(n * dim, sizeof(floatS), "latents"),
                     (int*)malloc_check(n * sizeof(int), "labels")};
    probe_set_t m = {n, a->z, set->class_count, (floatS*)calloc_check((size_t)n * a->z, sizeof(floatS), "latents"),
                     f.labels};
    floatS* host = (floatS*)malloc_check(e->batch * dim * sizeof(floatS), "latents");
    dataloader_t loader;
    dataloader_options_t options = {e->batch, a->H, 0, 0, 0, 0, 1, e->workers, e->seed};
    dataloader_open(&loader, set, &options, 0);
    for (int done = 0; done < n;) {
        const batch_t* batch = dataloader_next(&loader);
        copy_floats_to_host(host, autoencoder_encode(a, batch->pixels, e->batch, s), e->batch * dim);
        for (int b = 0; b < e->batch && done < n; b++, done++) {
            f.labels[done] = batch->labels[b];
            for (size_t k = 0; k < dim; k++) {
                f.features[done * dim + k] = host[b * dim + k];
                m.features[(size_t)done * a->z + k % a->z] += host[b * dim + k] / latents;
            }
        }
    }
    dataloader_close(&loader);
    free(host);
    *flat = f;
    *mean = m;
}

// Subtracts each latent channel's mean and divides by its deviation, both of the training set `from`.
static void standardise(probe_set_t* set, const double* mean, const double* deviation, int channels) {
    for (size_t i = 0; i < (size_t)set->n * set->dim; i++) {
        int c = (int)(i % channels);
        set->features[i] = (floatS)((set->features[i] - mean[c]) / deviation[c]);
    }
}

static void channel_statistics(const probe_set_t* set, double* mean, double* deviation, int channels) {
    size_t total = (size_t)set->n * set->dim, count = total / channels;
    memset(mean, 0, channels * sizeof(double));
    memset(deviation, 0, channels * sizeof(double));
    for (size_t i = 0; i < total; i++) mean[i % channels] += set->features[i] / count;
    for (size_t i = 0; i < total; i++) {
        double d = set->features[i] - mean[i % channels];
        deviation[i % channels] += d * d / count;
    }
    for (int c = 0; c < channels; c++) deviation[c] = deviation[c] > 0 ? sqrt(deviation[c]) : 1;
}

static void measure_probe(scores_t* scores, autoencoder_t* a, const dataset_t* train_set, const dataset_t* val_set,
                          const eval_options_t* e, stream_t s) {
    probe_set_t train[2], val[2]; // flat, mean
    double* statistics = (double*)malloc_check(2 * a->z * sizeof(double), "statistics");
    double accuracy[2];
    collect_latents(&train[0], &train[1], a, train_set, e->probe_images, e, s);
    collect_latents(&val[0], &val[1], a, val_set, e->images, e, s);
    for (int i = 0; i < 2; i++) {
        channel_statistics(&train[i], statistics, statistics + a->z, a->z);
        standardise(&train[i], statistics, statistics + a->z, a->z);
        standardise(&val[i], statistics, statistics + a->z, a->z);
        probe_options_t o = {e->probe_epochs, e->probe_batch, e->probe_lr, e->seed, NULL};
        accuracy[i] = probe_run(&train[i], &val[i], &o, s).top1;
        free(train[i].features);
        free(val[i].features);
    }
    scores->probe_flat = accuracy[0];
    scores->probe_mean = accuracy[1];
    free(train[0].labels);
    free(val[0].labels);
    free(statistics);
}

// The paths in "a,b,c", cut in place.
static int split_paths(char* text, char** paths) {
    int n = 0;
    for (char* at = strtok(text, ","); at; at = strtok(NULL, ",")) {
        if (n == MAX_TOKENIZERS) fatal("-tokenizers: at most %d files", MAX_TOKENIZERS);
        paths[n++] = at;
    }
    if (!n) fatal("-tokenizers: give one or more checkpoints with commas between them");
    return n;
}

static void write_picture(const eval_options_t* e, const dataset_t* val_set, uint8_t* cells, int rows, int size) {
    if (!e->out[0]) return;
    dataloader_t loader;
    dataloader_options_t options = {e->columns, size, 0, 0, 0, 0, 1, 0, e->seed};
    dataloader_open(&loader, val_set, &options, 0);
    memcpy(cells, dataloader_next(&loader)->pixels, (size_t)e->columns * size * size * 3);
    dataloader_close(&loader);
    image_t grid = image_grid(cells, rows, e->columns, size, size, size < 100 ? 3 : 1);
    image_text_t texts[2] = {{"Rows", "held-out images, then each tokenizer's reconstruction"},
                             {"Tokenizers", e->tokenizers}};
    char error[IMAGE_ERROR_SIZE];
    if (!image_write_png(e->out, &grid, texts, 2, error)) fatal("%s; choose another file with -out", error);
    printf("picture: %s (top row: the images)\n", e->out);
    image_free(&grid);
}

static void print_json(const char* path, const char* file, const scores_t* s, const eval_options_t* e) {
    if (!path[0]) return;
    FILE* f = fopen(path, "a");
    if (!f) fatal("cannot write %s: %s; choose another file with -json", path, strerror(errno));
    json_text_t line = {NULL, 0, 0};
    json_append(&line, "{\"tokenizer\": ");
    json_append_string(&line, file);
    json_append(&line, ", \"stage\": %d, \"step\": %lld, \"images\": %d, \"psnr\": %.6g, \"l1\": %.6g", s->stage,
                (long long)s->step, e->images, s->psnr, s->l1);
    if (e->probe_images)
        json_append(&line, ", \"probe_flat\": %.6g, \"probe_mean\": %.6g", s->probe_flat, s->probe_mean);
    json_append(&line, ", \"probe_images\": %d, \"raw\": %d}\n", e->probe_images, e->raw);
    fputs(line.text, f);
    json_text_free(&line);
    if (fclose(f)) fatal("cannot write %s: %s; make room or choose another file with -json", path, strerror(errno));
}

static eval_options_t parse(int argc, char** argv) {
    static eval_options_t e;
    static cli_t cli;
    static const cli_flag_t flags[] = {
        {"What to measure", "tokenizers", CLI_STRING, &e.tokenizers, "", NULL,
         "checkpoints of train_tokenizer or exported files, with commas between them", CLI_NOT_SAVED},
        {NULL, "data", CLI_STRING, &e.data, "", NULL,
         "data set, as for train_tokenizer; without it, that of the first tokenizer", CLI_NOT_SAVED},
        {NULL, "images", CLI_INT, &e.images, "2048", "[1, inf)", "held-out images, from the first on", CLI_NOT_SAVED},
        {NULL, "raw", CLI_BOOL, &e.raw, "0", NULL, "measure the raw weights instead of the averaged ones",
         CLI_NOT_SAVED},
        {NULL, "out", CLI_STRING, &e.out, "", NULL, "picture to write (PNG): images above their reconstructions",
         CLI_NOT_SAVED},
        {NULL, "json", CLI_STRING, &e.json, "", NULL, "file to append a JSON line to for each checkpoint",
         CLI_NOT_SAVED},
        {NULL, "batch", CLI_INT, &e.batch, "64", "[1, 4096]", "images at a time; results do not depend on it",
         CLI_NOT_SAVED},
        {NULL, "workers", CLI_INT, &e.workers, "1", "[0, 64]", "threads that prepare images", CLI_NOT_SAVED},
        {"Linear probe", "probe_images", CLI_INT, &e.probe_images, "10000", "[0, inf)",
         "training images, from the first on; 0: no probe", CLI_NOT_SAVED},
        {NULL, "probe_epochs", CLI_INT, &e.probe_epochs, "3", "[1, 1000]", "passes over them", CLI_NOT_SAVED},
        {NULL, "probe_batch", CLI_INT, &e.probe_batch, "256", "[1, 65536]", "images a step", CLI_NOT_SAVED},
        {NULL, "probe_lr", CLI_NUMBER, &e.probe_lr, "1e-3", "(0, 1)", "learning rate of Adam", CLI_NOT_SAVED},
        {NULL, "seed", CLI_SIZE, &e.seed, "1", NULL, "seed of the probe's start and order", CLI_NOT_SAVED},
    };
    cli_init(&cli, "./eval", "Measures tokenizers on held-out images.", flags, sizeof flags / sizeof flags[0], NULL, 0);
    cli_parse(&cli, argc, argv);
    return e;
}

// Opens both splits. No image is measured twice: a data set that has fewer than were asked for sets the numbers.
static void open_data(dataset_t* train_set, dataset_t* val_set, eval_options_t* e, const char* data) {
    dataset_open(val_set, data, SPLIT_VAL);
    dataset_open(train_set, data, SPLIT_TRAIN);
    if ((size_t)e->images > val_set->count) e->images = (int)val_set->count;
    if ((size_t)e->probe_images > train_set->count) e->probe_images = (int)train_set->count;
    e->columns = e->images < GRID_COLUMNS ? e->images : GRID_COLUMNS;
}

static void print_header(const eval_options_t* e) {
    printf("%d held-out images, %s weights; ", e->images, e->raw ? "raw" : "averaged");
    if (e->probe_images) {
        printf("probe: %d training images, %d epochs, batch %d, lr %g\n", e->probe_images, e->probe_epochs,
               e->probe_batch, e->probe_lr);
    } else {
        printf("no probe\n");
    }
    printf("%-44s %5s %7s %8s %7s %11s %11s %6s\n", "tokenizer", "stage", "step", "PSNR", "L1", "probe flat",
           "probe mean", "time");
}

static void print_scores(const char* path, const scores_t* s, int probed, double seconds) {
    char flat[32] = "-", mean[32] = "-";
    if (probed) snprintf(flat, sizeof flat, "%.2f%%", 100 * s->probe_flat);
    if (probed) snprintf(mean, sizeof mean, "%.2f%%", 100 * s->probe_mean);
    printf("%-44s %5d %7lld %5.2f dB %7.4f %11s %11s %5.0fs\n", path, s->stage, (long long)s->step, s->psnr, s->l1,
           flat, mean, seconds);
    fflush(stdout);
}

int main(int argc, char** argv) {
    eval_options_t e = parse(argc, argv);
    char* paths[MAX_TOKENIZERS];
    char* text = strdup(e.tokenizers);
    int n = split_paths(text, paths), size = 0;
    uint8_t* cells = NULL; // (1 + n, columns, size, size, 3)
    dataset_t val_set, train_set;
    stream_t s = device_open(0);
    for (int i = 0; i < n; i++) {
        static autoencoder_t a;
        autoencoder_open(&a, paths[i], e.raw ? AUTOENCODER_RAW : AUTOENCODER_AVERAGED, e.batch, 1, 1);
        scores_t scores = {a.info.stage, a.info.step, 0, 0, 0, 0};
        if (i == 0) {
            size = a.H;
            open_data(&train_set, &val_set, &e, e.data[0] ? e.data : a.data);
            cells = (uint8_t*)calloc_check((size_t)(1 + n) * e.columns * size * size, 3, "picture");
            print_header(&e);
        }
        if (a.H != size) fatal("%s works at %d pixels, the first one at %d; measure them apart", paths[i], a.H, size);
        double start = clock_seconds();
        measure_reconstruction(&scores, &a, &val_set, &e, cells + (size_t)(1 + i) * e.columns * size * size * 3, s);
        if (e.probe_images) measure_probe(&scores, &a, &train_set, &val_set, &e, s);
        print_scores(paths[i], &scores, e.probe_images > 0, clock_seconds() - start);
        print_json(e.json, paths[i], &scores, &e);
        autoencoder_close(&a);
    }
    write_picture(&e, &val_set, cells, 1 + n, size);
    free(cells);
    free(text);
    dataset_close(&val_set);
    dataset_close(&train_set);
    device_close(s);
    return 0;
}
