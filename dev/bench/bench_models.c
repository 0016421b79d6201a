// bench_models.c: how fast whole models run on this machine.
//
//     make build/cpu/bench_models && ./build/cpu/bench_models [-only encode,decode,step1,step2,step3] [-json FILE]
//
//   encode  DINOv2-L: the tokens of one 256x256 image, resize and normalisation included, no gradients
//   decode  the f16d32 decoder: one 16x16 latent into a 256x256 image, no gradients
//   stepN   one training step of stage N with the configuration of `train_tokenizer -preset mini`, GAN on: both
//           networks' gradients, both optimiser steps and two moving averages
//
// Weights are random; the time does not depend on them. With -json each line is an object of its own, and the one of a
// step carries its configuration, with which dev/reference/bench_torch.py takes PyTorch's time for the same work.
// GFLOP/s are two for each multiply-accumulate of convolutions, matrix products and attention, over the wall time.
// Look next at dev/bench/compare.sh, which sets both side by side, and docs/speed.md, which explains the numbers.
#include <omp.h>

// defines: options_t, options_parse, options_tokenizer, cli_*
#include "common/options.h"
// defines: bench_measure, bench_fill
#include "dev/bench/bench.h"

typedef struct {
    FILE* json; // or NULL
    int runs;
} bench_t;

// One line of the table, one of the JSON file. `images` a call; `config` is a JSON object or empty.
static void report(const bench_t* bench, const char* name, bench_time_t t, double macs, int images,
                   const char* config) {
    double gflops = 2e-9 * macs / t.seconds;
    printf("%-8s %10.4f %10.4f %10.4f %10.2f %10.1f %10.1f\n", name, t.seconds, t.best_seconds, t.cpu_seconds,
           macs * 1e-9, gflops, images / t.seconds);
    fflush(stdout);
    if (!bench->json) return;
    fprintf(bench->json, "{\"name\": \"%s\", \"seconds\": %.6f, \"best_seconds\": %.6f, \"cpu_seconds\": %.6f, "
            "\"runs\": %d, \"threads\": %d, \"gmac\": %.4f, \"gflops\": %.2f%s%s}\n", name, t.seconds,
            t.best_seconds, t.cpu_seconds, bench->runs, omp_get_max_threads(), macs * 1e-9, gflops,
            config[0] ? ", \"config\": " : "", config);
    fflush(bench->json);
}

// ---------------------------------------------------------------------------------------------------------------------
// Encoder and decoder at full size

typedef struct {
    params_t params;
    plan_t plan;
    vit_t vit;
    decoder_t decoder;
    floatX* input; // the image or the latent
} model_t;

static void model_allocate(model_t* m, size_t input) {
    plan_floatX(&m->plan, &m->input, input, "input");
    params_allocate(&m->params, m->params.table.total, 0, "the model's parameters");
    plan_allocate(&m->plan, "activations");
    bench_fill(m->params.values, m->params.table.total, 0.05);
    bench_fill(m->input, input, 1);
}

static void model_free(model_t* m) {
    params_free(&m->params);
    plan_free(&m->plan);
    memset(m, 0, sizeof *m);
}

static void encode(void* state) {
    model_t* m = (model_t*)state;
    vit_forward(&m->vit, &m->params, m->input, 0);
}

static void decode(void* state) {
    model_t* m = (model_t*)state;
    decoder_forward(&m->decoder, &m->params, m->input, 0);
}

static void bench_encode(const bench_t* bench) {
    static model_t m;
    m.vit.config = *vit_config_find("dinov2-l");
    vit_register(&m.vit, &m.params.table, "");
    vit_plan(&m.vit, &m.plan, 1, 256, 256, 16, 0);
    vit_plan_work(&m.vit, &m.plan);
    model_allocate(&m, 3 * 256 * 256);
    bench_time_t time = bench_measure(encode, &m, bench->runs, 1);
    report(bench, "encode", time, (double)vit_macs(&m.vit, 256, 256, 16), 1, "");
    model_free(&m);
}

static void bench_decode(const bench_t* bench) {
    static model_t m;
    m.decoder.config = autoencoder_f16(32, 0);
    decoder_register(&m.decoder, &m.params.table, "");
    decoder_plan(&m.decoder, &m.plan, 1, 16, 16);
    decoder_plan_work(&m.decoder, &m.plan, 0);
    model_allocate(&m, 32 * 16 * 16);
    bench_time_t time = bench_measure(decode, &m, bench->runs, 1);
    report(bench, "decode", time, (double)decoder_macs(&m.decoder, 256, 256), 1, "");
    model_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// Training steps of the miniature

typedef struct {
    tokenizer_t tokenizer;
    floatS* measures;
    int64_t step;
} training_t;

// As in train_tokenizer.cu's loop: the losses are read before the weights change.
static void train_step(void* state) {
    training_t* training = (training_t*)state;
    tokenizer_t* t = &training->tokenizer;
    tokenizer_gradients(t, training->step, 0);
    tokenizer_report_t report = tokenizer_read(t, training->measures, 0);
    if (!isfinite(report.nll)) fatal("the reconstruction loss of step %lld is not finite", (long long)training->step);
    tokenizer_update(t, training->step++, 0);
}

// "[1,2,4]"
static void print_integers(char* text, size_t size, const int* values, int n) {
    size_t used = 0;
    for (int i = 0; i < n; i++) {
        used += snprintf(text + used, size - used, "%c%d", i ? ',' : '[', values[i]);
    }
    snprintf(text + used, size - used, "]");
}

// What bench_torch.py takes as --config.
static void print_config(char* text, size_t size, const tokenizer_config_t* c) {
    char ch_mult[64], lpips_channels[64];
    print_integers(ch_mult, sizeof ch_mult, c->decoder.ch_mult, c->decoder.levels);
    print_integers(lpips_channels, sizeof lpips_channels, c->lpips.channels, c->lpips.slices);
    snprintf(text, size, "{\"stage\": %d, \"batch\": %d, \"chunk\": %d, \"image\": %d, \"patch\": %d, \"embed\": %d, "
             "\"depth\": %d, \"heads\": %d, \"adapter_hidden\": %d, \"z_channels\": %d, \"ch\": %d, \"ch_mult\": %s, "
             "\"num_res_blocks\": %d, \"groups\": %d, \"lpips_channels\": %s, \"ndf\": %d, \"lr\": %g}", c->stage,
             c->batch, c->chunk, c->H, c->encoder.patch, c->encoder.dim, c->encoder.depth, c->encoder.heads,
             c->adapter_hidden, c->decoder.z_channels, c->decoder.ch, ch_mult, c->decoder.res_blocks,
             c->decoder.groups, lpips_channels, c->disc.ndf, c->lr);
}

static void bench_step(const bench_t* bench, int stage) {
    static training_t training;
    static options_t options;
    static cli_t cli;
    tokenizer_t* t = &training.tokenizer;
    char number[8], name[8], config[600];
    snprintf(number, sizeof number, "%d", stage);
    snprintf(name, sizeof name, "step%d", stage);
    char* arguments[] = {(char*)"bench_models", (char*)"-preset", (char*)"mini", (char*)"-stage", number};
    options_parse(&options, &cli, 5, arguments);
    tokenizer_register(t, options_tokenizer(&options, 1));
    tokenizer_plan(t);
    tokenizer_allocate(t);
    params_init(&t->params, 1);
    params_init(&t->disc_params, 1);
    params_init(&t->lpips_params, 1);
    params_start_averages(&t->params);
    if (stage == 2) tokenizer_set_target(t, 0);
    size_t bytes = t->config.batch * 3 * tokenizer_pixels(t);
    for (size_t i = 0; i < bytes; i++) t->bytes[i] = (uint8_t)((uint32_t)i * 2654435761u >> 24);
    training.measures = (floatS*)malloc_check(tokenizer_measure_count(t) * sizeof(floatS), "measures");
    training.step = t->config.disc_start;
    print_config(config, sizeof config, &t->config);
    bench_time_t time = bench_measure(train_step, &training, bench->runs, 1);
    report(bench, name, time, (double)tokenizer_step_macs(t), t->config.batch, config);
    tokenizer_free(t);
    free(training.measures);
    cli_free(&cli);
}

// ---------------------------------------------------------------------------------------------------------------------

// Whether `name` is in the list "a,b,c"; an empty list holds everything.
static int is_chosen(const char* list, const char* name) {
    size_t length = strlen(name);
    for (const char* at = list; (at = strstr(at, name)); at += length) {
        if ((at == list || at[-1] == ',') && (!at[length] || at[length] == ',')) return 1;
    }
    return !list[0];
}

int main(int argc, char** argv) {
    static cli_t cli;
    static const char *only, *path;
    static int runs;
    bench_t bench;
    const cli_flag_t flags[] = {
        {"What to time", "only", CLI_STRING, &only, "", NULL, "of encode,decode,step1,step2,step3; default all",
         CLI_SAVED},
        {NULL, "runs", CLI_INT, &runs, "5", "[1, 1000]", "how many, after one to warm up", CLI_SAVED},
        {NULL, "json", CLI_STRING, &path, "", NULL, "file for the numbers, one JSON object a line", CLI_SAVED},
    };
    cli_init(&cli, "bench_models", "Times whole models and training steps.", flags, 3, NULL, 0);
    cli_parse(&cli, argc, argv);
    bench.runs = runs;
    bench.json = path[0] ? fopen(path, "w") : NULL;
    if (path[0] && !bench.json) fatal("cannot write %s; choose another file with -json", path);
    printf("%d threads, median of %d runs\n", omp_get_max_threads(), runs);
    printf("%-8s %10s %10s %10s %10s %10s %10s\n", "", "seconds", "best", "CPU s", "GMAC", "GFLOP/s", "images/s");
    if (is_chosen(only, "encode")) bench_encode(&bench);
    if (is_chosen(only, "decode")) bench_decode(&bench);
    for (int stage = 1; stage <= 3; stage++) {
        char name[8];
        snprintf(name, sizeof name, "step%d", stage);
        if (is_chosen(only, name)) bench_step(&bench, stage);
    }
    if (bench.json) fclose(bench.json);
    cli_free(&cli);
    return 0;
}
