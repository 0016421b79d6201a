// bench_models.cu: how fast whole models and training steps run on this machine.
//
//     make build/cpu/bench_models && build/cpu/bench_models [-only encode,decode,step1,...] [-json FILE]
//     make GPU=1 build/gpu/bench_models && build/gpu/bench_models -preset imagenet -images 64,8 -json FILE
//
//   encode  DINOv2-L: the tokens of -batch 256x256 images, resize and normalisation included, no gradients
//   decode  the f16d32 decoder: -batch 16x16 latents into 256x256 images, no gradients
//   stepN   one training step of stage N with the configuration of `train_tokenizer -preset` mini or imagenet, GAN on:
//           both networks' gradients, both optimiser steps, two moving averages, and the losses brought to the host
//   dit     one training step of LightningDiT -model on -dit_images latents: noise, gradients, the norm brought to the
//           host, AdamW and a moving average
//   draw    -draw_images images by Euler over -steps points of time with guidance 4 from t = 0.125 on, from noise to a
//           normalised latent. What it counts as an image's work are all evaluations, those without the class included
//   inception  what `eval` asks of the FID network: -feature_images images of 256x256 bytes on the device, resized to
//           299x299, to features, spatial features and logits. In the fp32 build for a GPU, which the figures that are
//           published want, it is called inception_fp32
//   kid, manifold  what follows, in double: 4 subsets of 1000 of -rows features of 2048 (eval: 100), and
//           precision and recall of -rows real and as many generated ones. Only where -only names them
//   tables  the paper's Tables 7 and 8: parameters, GFLOPS as it counts them, latency and peak memory of both encoders
//           and of the decoder, in -table_pixels and -table_images (dev/bench/complexity.h). Likewise only where named
//
// Weights and images are random; the time does not depend on them. With -json each line is an object of its own, and
// the one of a step carries its configuration, with which dev/reference/bench_torch.py, for LightningDiT bench_dit.py
// and for Inception bench_inception.py, take PyTorch's time for the same work. FLOP are two for each
// multiply-accumulate of convolutions, matrix products and attention. The share is that of a large matrix product's
// speed in this build's precision, measured in the same run: what is not arithmetic counts as lost.
// Memory is what the plan and the parameters need. What does not fit is left out, and said so; stage 2 and
// LightningDiT's step are tried with -recompute 1 first.
// Look next at dev/bench/compare.sh and dev/bench/gpu_speed.sh, which set both sides side by side.

// defines: options_t, options_parse, options_tokenizer, cli_*
#include "common/training/tokenizer_options.h"
// defines: dit_t, dit_register, dit_plan, dit_gradients, dit_read, dit_update, dit_step_macs
#include "common/training/dit.h"
// defines: algorithms_step
#include "common/training/algorithms.h"
// defines: dit_sampler_pass; by flow_sampler.h: flow_network_t, flow_sampler_t, flow_noise, flow_sample, ...
#include "common/drawing/dit_sampler.h"
// defines: inception_t, inception_register, inception_plan, inception_forward, inception_macs, INCEPTION_POOL, ...
#include "common/models/inception.h"
// defines: kid_distance, KID_SIZE, KID_SEED, manifold_precision_recall, MANIFOLD_K
#include "common/measures/sample_measures.h"
// defines: bench_measure, bench_measure_limits, bench_memory, bench_fits, bench_fill
#include "dev/bench/bench.h"
// defines: network_t, network_register, network_plan, network_measure, network_macs, complexity_t, complexity_print
#include "dev/bench/complexity.h"

enum { MAX_IMAGES = 8, CAPTION_ROWS = 77 }; // sizes in -images; text rows of a caption
static const double gib = 1073741824.0;

typedef struct {
    FILE* json; // or NULL
    int runs, batch, feature_images, rows, recompute;
    const char *preset, *model;    // of the tokenizer; size of LightningDiT
    const char* t2i_model;         // of the text-to-image transformer
    int t2i_images[2], t2i_sizes;  // its batches at the two sizes of latents
    int images[MAX_IMAGES], sizes; // batches of the steps
    int dit_images[MAX_IMAGES], dit_sizes, draw_images[MAX_IMAGES], draw_sizes, points;
    bench_limits_t limits;
    stream_t stream;
} bench_t;

// One line of the table, one of the JSON file. `images` a call; `bytes` of device memory; `config` is a JSON object or
// empty.
static void report(const bench_t* bench, const char* name, bench_time_t t, double macs, int images, size_t bytes,
                   const char* config) {
    double flops = 2 * macs / t.seconds, share = flops / bench->limits.flops;
    size_t total, used = bench_memory(&total);
    used = total - used;
    printf("%-14s %6d %10.4f %10.4f %10.4f %10.2f %10.4g %6.0f%% %10.1f %9.2f", name, images, t.seconds, t.best_seconds,
           t.cpu_seconds, macs * 1e-9, flops * 1e-12, 100 * share, images / t.seconds, bytes / gib);
    if (BENCH_IS_GPU) printf(" of %.2f in use", used / gib);
    printf("\n");
    fflush(stdout);
    if (!bench->json) return;
    fprintf(bench->json, "{\"kind\": \"model\", \"name\": \"%s\", \"images\": %d, \"seconds\": %.6f, "
            "\"best_seconds\": %.6f, \"cpu_seconds\": %.6f, \"runs\": %d, \"threads\": %d, \"gmac\": %.4f, "
            "\"gflops\": %.2f, \"images_per_second\": %.3f, \"share\": %.4f, \"planned_gib\": %.3f, "
            "\"used_gib\": %.3f%s%s}\n", name, images, t.seconds, t.best_seconds, t.cpu_seconds, bench->runs,
            omp_get_max_threads(), macs * 1e-9, flops * 1e-9, images / t.seconds, share, bytes / gib,
            BENCH_IS_GPU ? used / gib : 0.0, config[0] ? ", \"config\": " : "", config);
    fflush(bench->json);
}

// Says that something was left out and returns 0 when `bytes` of device memory are not there.
static int fits(const char* name, int images, size_t bytes, int says_so) {
    if (bench_fits(bytes)) return 1;
    if (says_so) {
        size_t total, available = bench_memory(&total);
        printf("%-14s %6d left out: wants %.2f GiB, %.2f are free\n", name, images, bytes / gib, available / gib);
        fflush(stdout);
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Configurations of train_tokenizer; encoder and decoder at full size

static tokenizer_config_t preset_config(const char* preset, int stage) {
    static options_t options;
    cli_t cli;
    char number[8];
    snprintf(number, sizeof number, "%d", stage);
    char* arguments[] = {(char*)"bench_models", (char*)"-preset", (char*)preset, (char*)"-stage", number,
                         (char*)"-dry_run", (char*)"1"}; // no images are read
    options_parse(&options, &cli, sizeof arguments / sizeof arguments[0], arguments);
    tokenizer_config_t config = options_tokenizer(&options, 1);
    cli_free(&cli);
    return config;
}

static void bench_network(const bench_t* bench, const char* name, network_kind_t kind) {
    static network_t n;
    tokenizer_config_t config = preset_config("imagenet", 1);
    network_register(&n, kind, &config);
    network_plan(&n, bench->batch, config.H);
    size_t bytes = network_bytes(&n);
    if (fits(name, bench->batch, bytes, 1)) {
        bench_time_t time = network_measure(&n, bench->runs, bench->stream);
        report(bench, name, time, network_macs(&n, config.H) * bench->batch, bench->batch, bytes, "");
    }
    network_free(&n);
}

// Tables 7 and 8 of the paper.
static void bench_tables(const bench_t* bench, const char* pixels, const char* batches) {
    tokenizer_config_t config = preset_config("imagenet", 1);
    int sides[MAX_IMAGES], images[MAX_IMAGES], factor = tokenizer_factor(&config);
    int n_sides = cli_integers("table_pixels", pixels, sides, MAX_IMAGES);
    int n_images = cli_integers("table_images", batches, images, MAX_IMAGES);
    for (int i = 0; i < n_sides; i++) {
        if (sides[i] % factor) fatal("-table_pixels %d: want multiples of %d, a latent's pixels", sides[i], factor);
    }
    complexity_t tables = {bench->json, sides, images, n_sides, n_images, bench->runs, bench->stream};
    complexity_print(&tables, &config);
}

// Random pixels on the device.
static void fill_pixels(uint8_t* pixels, size_t n) {
    uint8_t* bytes = (uint8_t*)malloc_check(n, "random images");
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)((uint32_t)i * 2654435761u >> 24);
    copy_to_device(pixels, bytes, n, 0);
    free(bytes);
}

// ---------------------------------------------------------------------------------------------------------------------
// Training steps

typedef struct {
    tokenizer_t tokenizer;
    floatS* measures; // page-locked, as in train_tokenizer.cu
    int64_t step;
} training_t;

// As in train_tokenizer.cu's loop: the losses are read before the weights change.
static void train_step(void* state, stream_t s) {
    training_t* training = (training_t*)state;
    tokenizer_t* t = &training->tokenizer;
    algorithms_step(s, 1);
    tokenizer_gradients(t, training->step, s);
    algorithms_step(s, 0);
    tokenizer_report_t report = tokenizer_read(t, training->measures, s);
    if (!isfinite(report.nll)) fatal("the reconstruction loss of step %lld is not finite", (long long)training->step);
    tokenizer_update(t, training->step++, s);
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
    snprintf(text, size, "{\"stage\": %d, \"batch\": %d, \"chunk\": %d, \"image\": %d, \"patch\": %d, "
             "\"pos_grid\": %d, \"embed\": %d, \"depth\": %d, \"heads\": %d, \"adapter_hidden\": %d, "
             "\"z_channels\": %d, \"ch\": %d, \"ch_mult\": %s, \"num_res_blocks\": %d, \"groups\": %d, "
             "\"lpips_channels\": %s, \"ndf\": %d, \"lr\": %g}", c->stage, c->batch, c->chunk, c->H,
             c->encoder.patch, c->encoder.pos_grid, c->encoder.dim, c->encoder.depth, c->encoder.heads,
             c->adapter_hidden, c->decoder.z_channels, c->decoder.ch, ch_mult, c->decoder.res_blocks,
             c->decoder.groups, lpips_channels, c->disc.ndf, c->lr);
}

static size_t weights_bytes(const tokenizer_t* t) {
    size_t frozen = params_bytes(&t->lpips_params.table, t->lpips_params.table.total, 0, 1);
    if (t->config.stage == 2) frozen += params_bytes(&t->target_params.table, t->target_params.table.total, 0, 1);
    return params_bytes(&t->params.table, tokenizer_first_trained(t), 2, 1) +
           params_bytes(&t->disc_params.table, 0, 0, 1) + frozen;
}

// Plans a step of `images` images. Returns the bytes of its activations and working memory.
static size_t plan_step(tokenizer_t* t, int images, int recompute) {
    plan_t* plans[2] = {&t->plan, &t->work};
    for (int i = 0; i < 2; i++) {
        if (plans[i]->memory) plan_free(plans[i]);
        free(plans[i]->items);
        memset(plans[i], 0, sizeof *plans[i]);
    }
    t->config.batch = images;
    t->config.recompute = recompute;
    tokenizer_plan(t);
    return plan_bytes(&t->plan) + plan_bytes(&t->work);
}

// The weights serve all batches: they are allocated and filled with the first that fits.
static void allocate_step(training_t* training, stream_t s) {
    tokenizer_t* t = &training->tokenizer;
    if (!t->params.values) {
        tokenizer_allocate(t);
        params_init(&t->params, 1);
        params_init(&t->disc_params, 1);
        params_init(&t->lpips_params, 1);
        params_start_averages(&t->params);
        if (t->config.stage == 2) tokenizer_set_target(t, s);
    } else {
        plan_allocate(&t->plan, "activations");
        plan_allocate(&t->work, "working memory");
        tokenizer_plan_measures(t);
    }
    tokenizer_freeze(t);
    fill_pixels(t->bytes, t->config.batch * 3 * tokenizer_pixels(t));
    training->measures = (floatS*)host_malloc(tokenizer_measure_count(t) * sizeof(floatS), "measures");
}

static void bench_step_at(const bench_t* bench, training_t* training, const char* name, int images) {
    tokenizer_t* t = &training->tokenizer;
    char config[700];
    int recompute = bench->recompute;
    size_t weights = weights_bytes(t), allocated = t->params.values ? weights : 0;
    size_t bytes = weights + plan_step(t, images, recompute);
    if (t->config.stage == 2 && !recompute && !fits(name, images, bytes - allocated, 0)) {
        printf("%-14s %6d wants %.2f GiB: tried with -recompute 1\n", name, images, bytes / gib);
        bytes = weights + plan_step(t, images, recompute = 1);
    }
    if (!fits(name, images, bytes - allocated, 1)) return;
    allocate_step(training, bench->stream);
    print_config(config, sizeof config, &t->config);
    bench_time_t time = bench_measure(train_step, training, bench->runs, 1, bench->stream);
    // what is computed twice counts once: the share is that of the work asked for
    t->config.recompute = 0;
    report(bench, name, time, (double)tokenizer_step_macs(t), images, bytes, config);
    host_free(training->measures);
}

static void bench_step(const bench_t* bench, int stage) {
    static training_t training;
    char name[8];
    snprintf(name, sizeof name, "step%d", stage);
    tokenizer_register(&training.tokenizer, preset_config(bench->preset, stage));
    training.step = training.tokenizer.config.disc_start;
    int chunk = training.tokenizer.config.chunk;
    for (int i = 0; i < bench->sizes; i++) {
        int images = bench->images[i];
        if (images > chunk && images % chunk) fatal("-images %d: no multiple of chunks of %d images", images, chunk);
        training.tokenizer.config.chunk = images < chunk ? images : chunk;
        bench_step_at(bench, &training, name, images);
    }
    tokenizer_free(&training.tokenizer);
    memset(&training, 0, sizeof training);
}

// ---------------------------------------------------------------------------------------------------------------------
// LightningDiT

// The mini one takes the miniature's latents, all others those of ImageNet at 256 pixels.
static lightningdit_config_t dit_network(const bench_t* bench) {
    lightningdit_config_t c = *lightningdit_config_find(bench->model);
    int mini = !strcmp(bench->model, "mini");
    c.C = mini ? 16 : 32;
    c.side = mini ? 4 : 16;
    c.classes = mini ? 10 : 1000;
    return c;
}

// What bench_dit.py takes as arguments: of LightningDiT, and with batch and recompute as an object.
static void print_dit_config(char* text, size_t size, const bench_t* bench) {
    snprintf(text, size, "\"size\": \"%s\", \"steps\": %d, \"cfg\": 4, \"cfg_start\": 0.125, \"shift\": 0.3",
             bench->model, bench->points);
}
static void print_training(char* text, size_t size, int images, int recompute, const char* rest) {
    snprintf(text, size, "{\"batch\": %d, \"recompute\": %d, %s}", images, recompute, rest);
}

// Random weights everywhere: at the start of a training gates and output are zero.
static void fill_weights(params_t* params) {
    size_t longest = params_longest(&params->table);
    floatS* values = (floatS*)malloc_check(longest * sizeof(floatS), "random weights");
    for (size_t i = 0; i < longest; i++) values[i] = (floatS)(0.04 * (random_uniform(1, RANDOM_INIT, 0, i) - 0.5));
    for (int i = 0; i < params->table.n; i++) {
        const param_t* p = &params->table.items[i];
        params_store(params, p->offset, values, p->stored);
    }
    free(values);
}

// Labels and times on the device, latents beside them.
static void fill_batch(dit_t* d, stream_t s) {
    int B = d->config.batch, *labels = (int*)malloc_check(B * sizeof(int), "labels");
    floatS* t = (floatS*)malloc_check(B * sizeof(floatS), "times");
    for (int b = 0; b < B; b++) {
        labels[b] = dit_has_captions(&d->config) ? 0 : b * 37 % d->config.net.classes;
        t[b] = (floatS)((b + 0.5) / B);
    }
    copy_to_device(d->labels, labels, B * sizeof(int), 0);
    copy_to_device(d->t, t, B * sizeof(floatS), 0);
    bench_fill((floatX*)d->x1, B * d->n * sizeof(floatS) / sizeof(floatX), 1, s);
    free(labels);
    free(t);
}

typedef struct {
    dit_t dit;
    floatS* measures; // page-locked, as in train_dit.cu
    int64_t step;
} dit_training_t;

// As in train_dit.cu's loop.
static void dit_step(void* state, stream_t s) {
    dit_training_t* training = (dit_training_t*)state;
    algorithms_step(s, 1);
    dit_gradients(&training->dit, training->step++, s);
    algorithms_step(s, 0);
    dit_report_t report = dit_read(&training->dit, training->measures, s);
    if (!isfinite(report.norm)) fatal("the gradient of step %lld is not finite", (long long)training->step);
    dit_update(&training->dit, training->step, report.norm, s);
}

static size_t plan_dit(dit_t* d, dit_config_t config, int recompute) {
    free(d->params.table.items);
    free(d->plan.items);
    free(d->work.items);
    config.recompute = recompute;
    dit_register(d, config);
    dit_plan(d);
    size_t weights = params_bytes(&d->params.table, dit_first_trained(d), 1, 1);
    return plan_bytes(&d->plan) + plan_bytes(&d->work) + weights;
}

// Captions of CAPTION_ROWS rows each, without padding.
static void fill_captions(dit_t* d, stream_t s) {
    const mmdit_config_t* c = &d->config.mmdit;
    size_t rows = (size_t)d->config.batch * CAPTION_ROWS * c->text, vectors = (size_t)d->config.batch * c->vector;
    floatX* text = (floatX*)device_malloc((rows + vectors) * sizeof(floatX), "captions");
    bench_fill(text, rows + vectors, 1, s);
    d->captions.L = CAPTION_ROWS;
    d->captions.text = text;
    d->captions.pooled = text + rows;
}

static dit_config_t training_config(int images) {
    dit_config_t c;
    memset(&c, 0, sizeof c);
    c.batch = images;
    c.lr = 2e-4, c.beta1 = 0.9, c.beta2 = 0.95, c.eps = 1e-8, c.ema = 0.9999;
    return c;
}

// Training steps of either network. `text` tells PyTorch's side the rest of the configuration.
static void bench_training(const bench_t* bench, const char* name, dit_config_t config, const char* text) {
    static dit_training_t training;
    dit_t* d = &training.dit;
    int recompute = bench->recompute, images = config.batch;
    char whole[400];
    memset(&training, 0, sizeof training);
    size_t bytes = plan_dit(d, config, recompute);
    if (!recompute && !fits(name, images, bytes, 0)) {
        printf("%-14s %6d wants %.2f GiB: tried with -recompute 1\n", name, images, bytes / gib);
        bytes = plan_dit(d, config, recompute = 1);
    }
    if (!fits(name, images, bytes, 1)) return;
    dit_allocate(d);
    fill_weights(&d->params);
    dit_set_tables(d);
    params_start_averages(&d->params);
    fill_batch(d, bench->stream);
    if (dit_has_captions(&config)) fill_captions(d, bench->stream);
    training.measures = (floatS*)host_malloc(dit_measure_count(d) * sizeof(floatS), "measures");
    print_training(whole, sizeof whole, images, recompute, text);
    bench_time_t time = bench_measure(dit_step, &training, bench->runs, 1, bench->stream);
    d->config.recompute = 0; // what is computed twice counts once
    report(bench, name, time, dit_step_macs(d, CAPTION_ROWS), images, bytes, whole);
    host_free(training.measures);
    device_free((void*)d->captions.text);
    dit_free(d);
}

static void bench_dit_at(const bench_t* bench, int images) {
    char text[300];
    dit_config_t config = training_config(images);
    config.net = dit_network(bench);
    config.w_cos = 1;
    print_dit_config(text, sizeof text, bench);
    bench_training(bench, "dit", config, text);
}

// Text to image at 256 pixels, or `large` at 512: latents of 16 or 32 positions a side; the mini one's of 6 or 12.
static void bench_t2i(const bench_t* bench, int large) {
    char text[300];
    dit_config_t config = training_config(bench->t2i_images[large]);
    config.mmdit = *mmdit_config_find(bench->t2i_model);
    config.mmdit.guidance = 0;
    int mini = !strcmp(config.mmdit.id, "t2i-mini"), side = (mini ? 6 : 16) << large;
    config.mmdit.C = mini ? 16 : 32;
    config.mmdit.h = config.mmdit.w = side;
    config.text_rows = CAPTION_ROWS;
    snprintf(text, sizeof text, "\"size\": \"%s\", \"side\": %d, \"rows\": %d", config.mmdit.id, side, CAPTION_ROWS);
    bench_training(bench, large ? "t2i_512" : "t2i_256", config, text);
}

typedef struct {
    params_t params;
    lightningdit_t net;
    plan_t plan, work;
    flow_network_t network;
    flow_sampler_t sampler;
    size_t n;
    int images;
    uint64_t* numbers; // (images)
    int* labels;       // (images) on the host
    int* label;        // (pass) of a pass, on the device
    floatS* x;         // (images, S, S, C)
} drawing_t;

static void drawing_evaluate(void* drawing, floatX* v, const floatX* xt, const floatS* t, const int* labels, int B,
                             stream_t s) {
    drawing_t* d = (drawing_t*)drawing;
    copy_to_device(d->label, labels, B * sizeof(int), s);
    lightningdit_forward(&d->net, &d->params, xt, t, d->label, B, s);
    copy_on_device(v, d->net.v, (size_t)B * d->n * sizeof(floatX), s);
}

static void draw(void* state, stream_t s) {
    drawing_t* d = (drawing_t*)state;
    d->network.labels = d->labels;
    flow_noise(d->x, d->numbers, d->images, d->n, 1, s);
    flow_sample(&d->sampler, d->x, d->images, flow_guided_velocity, &d->network, s);
}

static void plan_drawing(drawing_t* d, const bench_t* bench, int images, flow_guidance_t guidance) {
    const lightningdit_config_t* c = &d->net.config;
    int pass = dit_sampler_pass(images, lightningdit_tokens(c), &guidance);
    d->images = images;
    d->n = (size_t)c->side * c->side * c->C;
    lightningdit_register(&d->net, &d->params.table, "");
    lightningdit_plan(&d->net, &d->plan, pass, 0);
    lightningdit_plan_work(&d->net, &d->work);
    flow_network_plan(&d->network, &d->plan, drawing_evaluate, d, c->classes, guidance, images, pass,
                      c->side * c->side, c->C, c->C, c->C);
    flow_sampler_plan(&d->sampler, &d->plan, FLOW_EULER, bench->points, 0.3, images, d->n);
    plan_floatS(&d->plan, &d->x, images * d->n, "noise");
    plan_int(&d->plan, &d->label, (size_t)pass, "labels");
}

static void bench_draw_at(const bench_t* bench, int images) {
    static drawing_t d;
    flow_guidance_t guidance = {4, 0.125, dit_network(bench).C, 0};
    char text[300], whole[400];
    memset(&d, 0, sizeof d);
    d.net.config = dit_network(bench);
    plan_drawing(&d, bench, images, guidance);
    size_t weights = params_bytes(&d.params.table, d.params.table.total, 0, 1);
    size_t bytes = plan_bytes(&d.plan) + plan_bytes(&d.work) + weights;
    if (!fits("draw", images, bytes, 1)) return;
    params_allocate(&d.params, d.params.table.total, 0, "LightningDiT's weights");
    plan_allocate(&d.plan, "activations");
    plan_allocate(&d.work, "working memory");
    fill_weights(&d.params);
    lightningdit_set_tables(&d.net, &d.params);
    d.numbers = (uint64_t*)malloc_check(images * sizeof(uint64_t), "images");
    d.labels = (int*)malloc_check(images * sizeof(int), "labels");
    for (int b = 0; b < images; b++) {
        d.numbers[b] = (uint64_t)b;
        d.labels[b] = b * 37 % d.net.config.classes;
    }
    print_dit_config(text, sizeof text, bench);
    print_training(whole, sizeof whole, images, 0, text);
    bench_time_t time = bench_measure(draw, &d, bench->runs < 3 ? bench->runs : 3, 1, bench->stream);
    double macs = (double)lightningdit_macs(&d.net) * flow_evaluations(&d.sampler, &guidance) * images;
    report(bench, "draw", time, macs, images, bytes, whole);
    flow_network_free(&d.network);
    flow_sampler_free(&d.sampler);
    params_free(&d.params);
    plan_free(&d.plan);
    plan_free(&d.work);
    free(d.numbers);
    free(d.labels);
}

// ---------------------------------------------------------------------------------------------------------------------
// Measuring: the feature network, and scores of its features

typedef struct {
    inception_t net;
    plan_t plan;
    uint8_t* pixels; // (images, 256, 256, 3)
    inception_features_t out;
    int images;
} features_job_t;

static const char* inception_work(void) {
    return BENCH_IS_GPU && sizeof(floatX) == sizeof(float) ? "inception_fp32" : "inception";
}

static void extract(void* state, stream_t s) {
    features_job_t* job = (features_job_t*)state;
    inception_forward(&job->net, job->out, job->pixels, INCEPTION_PT, job->images, 256, 256, s);
}

static void bench_inception(const bench_t* bench) {
    static features_job_t job;
    char config[80];
    size_t B = (size_t)bench->feature_images, pixels = B * 256 * 256 * 3;
    job.images = bench->feature_images;
    inception_register(&job.net); // with its weights
    inception_plan(&job.net, &job.plan, job.images);
    plan_uint8(&job.plan, &job.pixels, pixels, "images");
    plan_floatS(&job.plan, &job.out.pool, B * INCEPTION_POOL, "features");
    plan_floatS(&job.plan, &job.out.spatial, B * INCEPTION_SPATIAL, "spatial features");
    plan_floatS(&job.plan, &job.out.logits, B * INCEPTION_CLASSES, "logits");
    params_t* params = &job.net.params;
    size_t weights = params_bytes(&params->table, params->table.total, 0, 1), bytes = plan_bytes(&job.plan);
    if (fits(inception_work(), job.images, bytes, 1)) {
        plan_allocate(&job.plan, "activations");
        bench_fill(params->values, params->table.total, 0.05, bench->stream);
        fill_pixels(job.pixels, pixels);
        snprintf(config, sizeof config, "{\"batch\": %d, \"precision\": \"%s\"}", job.images, PRECISION_NAME);
        bench_time_t time = bench_measure(extract, &job, bench->runs, 1, bench->stream);
        report(bench, inception_work(), time, (double)inception_macs(&job.net) * job.images, job.images,
               weights + bytes, config);
        plan_free(&job.plan);
    }
    inception_free(&job.net);
}

enum { BENCH_KID_SUBSETS = 4 };

typedef struct {
    float *real, *generated; // (rows, INCEPTION_POOL)
    int rows;
} scores_t;

static feature_set_t score_set(const scores_t* f, const float* rows) { // (f->rows, INCEPTION_POOL)
    feature_set_t set = {rows, f->rows, INCEPTION_POOL};
    return set;
}

static void score_kid(void* state, stream_t s) {
    scores_t* f = (scores_t*)state;
    (void)s;
    kid_distance(score_set(f, f->generated), score_set(f, f->real), BENCH_KID_SUBSETS, KID_SIZE, KID_SEED, NULL);
}

static void score_manifold(void* state, stream_t s) {
    scores_t* f = (scores_t*)state;
    (void)s;
    manifold_precision_recall(score_set(f, f->real), score_set(f, f->generated), MANIFOLD_K, 0, NULL);
}

// Both look at all pairs of two sets of n, and at half of those within each: 2 n^2 products.
static void bench_scores(const bench_t* bench, const char* name, bench_work_t work, int sets, int n) {
    size_t values = (size_t)bench->rows * INCEPTION_POOL;
    scores_t f = {NULL, NULL, bench->rows};
    f.real = (float*)malloc_check(2 * values * sizeof(float), "random features");
    f.generated = f.real + values;
    for (size_t i = 0; i < 2 * values; i++) f.real[i] = (float)random_uniform(1, RANDOM_INIT, 0, i);
    bench_time_t time = bench_measure(work, &f, bench->runs, 1, bench->stream);
    report(bench, name, time, 2.0 * sets * n * n * (double)INCEPTION_POOL, sets * n, 2 * values * sizeof(float), "");
    free(f.real);
}

// ---------------------------------------------------------------------------------------------------------------------

// Whether `name` is in the list "a,b,c"; an empty list holds everything.
static int is_chosen(const char* list, const char* name) {
    size_t length = strlen(name);
    for (const char* at = list; (at = strstr(at, name)) != NULL; at += length) {
        if ((at == list || at[-1] == ',') && (!at[length] || at[length] == ',')) return 1;
    }
    return !list[0];
}

int main(int argc, char** argv) {
    static cli_t cli;
    static const char *only, *path, *images, *dit_images, *draw_images, *t2i_images, *table_pixels, *table_images;
    static int preset;
    static bench_t bench;
    const cli_flag_t flags[] = {
        {"What to time", "only", CLI_STRING, &only, "", NULL,
         "of encode,decode,step1,step2,step3,dit,draw,t2i,inception; default all; and kid,manifold,tables", CLI_SAVED},
        {NULL, "batch", CLI_INT, &bench.batch, BENCH_IS_GPU ? "32" : "1", "[1, 1024]", "images of encode and decode",
         CLI_SAVED},
        {NULL, "feature_images", CLI_INT, &bench.feature_images, BENCH_IS_GPU ? "64" : "8", "[1, 1024]",
         "images of inception", CLI_SAVED},
        {NULL, "table_pixels", CLI_STRING, &table_pixels, "256,512,1024", NULL, "sides of the images of tables",
         CLI_SAVED},
        {NULL, "table_images", CLI_STRING, &table_images, "1,4,8", NULL, "batches of tables", CLI_SAVED},
        {NULL, "rows", CLI_INT, &bench.rows, "4096", "[1000, 1000000]", "features of kid and manifold", CLI_SAVED},
        {NULL, "preset", CLI_CHOICE, &preset, BENCH_IS_GPU ? "imagenet" : "mini", "mini|imagenet",
         "configuration of the steps", CLI_SAVED},
        {NULL, "images", CLI_STRING, &images, "", NULL, "batches of the steps; default 32, for imagenet 8,32,64",
         CLI_SAVED},
        {NULL, "model", CLI_STRING, &bench.model, BENCH_IS_GPU ? "XL/1" : "mini", NULL, "size of LightningDiT",
         CLI_SAVED},
        {NULL, "dit_images", CLI_STRING, &dit_images, BENCH_IS_GPU ? "64,32,128" : "32", NULL, "batches of its steps",
         CLI_SAVED},
        {NULL, "draw_images", CLI_STRING, &draw_images, BENCH_IS_GPU ? "64" : "2", NULL, "batches that it draws",
         CLI_SAVED},
        {NULL, "t2i_model", CLI_STRING, &bench.t2i_model, BENCH_IS_GPU ? "2B" : "t2i-mini", NULL,
         "size of the text-to-image transformer", CLI_SAVED},
        {NULL, "t2i_images", CLI_STRING, &t2i_images, BENCH_IS_GPU ? "32,8" : "64,16", NULL,
         "batches of its steps at 256 and at 512 pixels", CLI_SAVED},
        {NULL, "steps", CLI_INT, &bench.points, "50", "[2, 10000]", "points of time from noise to image", CLI_SAVED},
        {NULL, "recompute", CLI_BOOL, &bench.recompute, "0", NULL, "steps of stage 2 and dit with -recompute 1",
         CLI_SAVED},
        {NULL, "runs", CLI_INT, &bench.runs, "5", "[1, 1000]", "how many, after one to warm up", CLI_SAVED},
        {NULL, "json", CLI_STRING, &path, "", NULL, "file for the numbers, one JSON object a line", CLI_SAVED},
    };
    cli_init(&cli, "bench_models", "Times whole models and training steps.", flags, sizeof flags / sizeof flags[0],
             NULL, 0);
    cli_parse(&cli, argc, argv);
    bench.preset = preset ? "imagenet" : "mini";
    bench.sizes = cli_integers("images", images[0] ? images : preset ? "8,32,64" : "32", bench.images, MAX_IMAGES);
    bench.dit_sizes = cli_integers("dit_images", dit_images, bench.dit_images, MAX_IMAGES);
    bench.draw_sizes = cli_integers("draw_images", draw_images, bench.draw_images, MAX_IMAGES);
    bench.t2i_sizes = cli_integers("t2i_images", t2i_images, bench.t2i_images, 2);
    bench.json = path[0] ? fopen(path, "w") : NULL;
    if (path[0] && !bench.json) fatal("cannot write %s; choose another file with -json", path);
    bench.stream = device_open(0);
    bench.limits = bench_measure_limits(bench.runs, bench.stream);
    bench_print_limits(bench.json, bench.limits, bench.runs);
    printf("%-14s %6s %10s %10s %10s %10s %10s %7s %10s %9s\n", "", "images", "seconds", "best", "CPU s", "GMAC",
           "TFLOP/s", "share", "images/s", "GiB");
    for (int stage = 1; stage <= 3; stage++) {
        char name[8];
        snprintf(name, sizeof name, "step%d", stage);
        if (is_chosen(only, name)) bench_step(&bench, stage);
    }
    for (int i = 0; i < bench.dit_sizes && is_chosen(only, "dit"); i++) bench_dit_at(&bench, bench.dit_images[i]);
    for (int i = 0; i < bench.draw_sizes && is_chosen(only, "draw"); i++) bench_draw_at(&bench, bench.draw_images[i]);
    for (int i = 0; i < bench.t2i_sizes && is_chosen(only, "t2i"); i++) bench_t2i(&bench, i);
    if (is_chosen(only, "encode")) bench_network(&bench, "encode", NETWORK_VIT);
    if (is_chosen(only, "decode")) bench_network(&bench, "decode", NETWORK_DECODER);
    if (is_chosen(only, "inception")) bench_inception(&bench);
    if (only[0] && is_chosen(only, "kid")) bench_scores(&bench, "kid", score_kid, BENCH_KID_SUBSETS, KID_SIZE);
    if (only[0] && is_chosen(only, "manifold")) bench_scores(&bench, "manifold", score_manifold, 1, bench.rows);
    if (only[0] && is_chosen(only, "tables")) bench_tables(&bench, table_pixels, table_images);
    if (bench.json) fclose(bench.json);
    device_close(bench.stream);
    cli_free(&cli);
    return 0;
}
