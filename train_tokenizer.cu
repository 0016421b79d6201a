// train_tokenizer.cu: trains the AlignTok tokenizer, one stage a run.
//
//     ./train_tokenizer -stage 1            the miniature world: see `make demo`, which prepares it
//     ./train_tokenizer -stage 2            goes on from stage 1's checkpoint, which it finds by itself
//     ./train_tokenizer -stage 3
//     ./train_tokenizer -preset imagenet -data IMAGENET -encoder_weights FILE -lpips_weights FILE
//
// A run writes into one folder (-out): stageN.safetensors (the whole state, see
// common/training/tokenizer_checkpoint.h), stageN.jsonl (every status line), stageN_STEP.png (held-out images above
// their reconstructions), on a GPU algorithms.txt (common/training/algorithms.h). The same command again resumes where
// it stopped, bit for bit. Ctrl-C saves and stops. A trained stage becomes one small file for use with
//     ./train_tokenizer -stage 3 -export FILE
//
// On several GPUs, one process each, which share -batch among them:
//     torchrun --no-python --nproc_per_node 8 ./train_tokenizer ...      or srun, or mpirun: see common/training/comm.h
//
// This file is the outermost layer: flags, data, the loop, files. What a step computes is in
// common/training/tokenizer.h. Reading order here: set-up; hand-over between stages; what is watched; the loop; main.
#include <sys/stat.h>
#include <unistd.h>

// defines: cli_t, cli_flag_t, cli_parse
#include "common/program/cli.h"
// defines: dataset_t, dataset_open
#include "common/data/dataset.h"
// defines: dataloader_t, dataloader_next, dataloader_try_next, dataloader_damaged_files
#include "common/data/dataloader.h"
// defines: image_grid, image_write_png
#include "common/data/image.h"
// defines: psnr_bytes
#include "common/measures/reconstruction_measures.h"
// defines: comm_t, comm_open, comm_attach, comm_close, comm_is_first, comm_sum_host
#include "common/training/comm.h"
// defines: tokenizer_t, tokenizer_gradients, tokenizer_update
#include "common/training/tokenizer.h"
// defines: checkpoint_save, checkpoint_resume, checkpoint_start_from
#include "common/training/tokenizer_checkpoint.h"
// defines: run_catch_signals, run_has_checkpoint, run_check_config, run_way_back, is_due, size_text
#include "common/training/run.h"
// defines: algorithms_open, algorithms_step, algorithms_save
#include "common/training/algorithms.h"
// defines: autoencoder_export
#include "common/drawing/autoencoder.h"
// defines: make_folder
#include "common/files/folder.h"
// defines: weights_load_vit, weights_load_lpips
#include "common/models/weights.h"
// defines: options_t, options_parse, options_read, options_tokenizer
#include "common/training/tokenizer_options.h"
// defines: tokenizer_status_t, tokenizer_status_print, status_open
#include "common/training/status.h"

#define DEAD_STEPS 100 // steps with a gradient of exactly zero that end a run

typedef struct {
    options_t options;
    cli_t cli;
    comm_t comm;               // the processes that train together; this one's rank
    stream_t stream;           // of the device that this process trains on
    tokenizer_t tokenizer;
    dataset_t train_set, val_set;
    char checkpoint_path[1024];
    char* config_json;
    int64_t step, steps;       // done, and to do
    uint8_t* val_pixels;       // (batch, H, W, 3) the held-out images of the grids
    floatS* measures;          // host copy of a step's measures
    floatS *latent_mean, *latent_std; // (z)
    int dead_steps[4];         // consecutive steps with a zero gradient: encoder, adapter, decoder, discriminator
} run_t;

// ---------------------------------------------------------------------------------------------------------------------
// Set-up

// -dry_run and the start of every run: what is trained and what it costs.
static void print_plan(const tokenizer_t* t) {
    const tokenizer_config_t* c = &t->config;
    const param_table_t* table = &t->params.table;
    size_t first = tokenizer_first_trained(t), all = table->total;
    size_t encoder = param_count(table, 0, t->decoder_begin), decoder = param_count(table, t->decoder_begin, all);
    size_t disc = param_count(&t->disc_params.table, 0, t->disc_params.table.total);
    size_t lpips = param_count(&t->lpips_params.table, 0, t->lpips_params.table.total);
    // the frozen copy A0 of stage 2 is not counted, as in the paper's Table 6
    size_t target = c->stage == 2 ? param_count(&t->target_params.table, 0, t->adapter_begin) : 0;
    printf("parameters     encoder with adapter %.2fM, decoder %.2fM, discriminator %.2fM\n", encoder * 1e-6,
           decoder * 1e-6, disc * 1e-6);
    printf("stage %d        trainable %.2fM, frozen %.2fM (LPIPS %.2fM%s)\n", c->stage,
           (param_count(table, first, all) + disc) * 1e-6, (param_count(table, 0, first) + lpips + target) * 1e-6,
           lpips * 1e-6, c->stage == 2 ? ", encoder of stage 1" : ", encoder");
    int shares = c->zero && t->comm ? t->comm->size : 1;
    size_t weights = params_bytes(table, first, 2, shares) + params_bytes(&t->disc_params.table, 0, 0, shares) +
                     params_bytes(&t->lpips_params.table, t->lpips_params.table.total, 0, 1) +
                     (c->stage == 2 ? params_bytes(&t->target_params.table, t->target_params.table.total, 0, 1) : 0);
    char size[4][32];
    printf("memory         %s: weights, gradients, moments, averages %s; activations %s; working memory %s\n",
           size_text(size[0], weights + plan_bytes(&t->plan) + plan_bytes(&t->work)), size_text(size[1], weights),
           size_text(size[2], plan_bytes(&t->plan)), size_text(size[3], plan_bytes(&t->work)));
    double macs = (double)tokenizer_step_macs(t);
    printf("cost           %.1f %s multiply-accumulates an image, %.2f %s a step of %d images\n",
           macs / c->batch * (macs < 1e11 ? 1e-6 : 1e-9), macs < 1e11 ? "M" : "G", macs * (macs < 1e12 ? 1e-9 : 1e-12),
           macs < 1e12 ? "G" : "T", c->batch);
}

// Weights that are not there are what a newcomer meets first: says how to come by them.
static void need_weights(const options_t* o, const char* flag, const char* path) {
    if (!access(path, F_OK)) return;
    fatal("-%s %s: there is no such file; %s", flag, path,
          !strcmp(o->preset, "mini") ? "`make demo` makes those of the miniature world first (with build/cpu/pretrain)"
                                     : "give the path of the published weights (.safetensors, .pt, .pth)");
}

// The frozen networks and, at the start of stage 1, the encoder.
static void load_pretrained(run_t* run) {
    const options_t* o = &run->options;
    tokenizer_t* t = &run->tokenizer;
    if (o->lpips_weights[0]) {
        if (!strchr(o->lpips_weights, ',')) need_weights(o, "lpips_weights", o->lpips_weights);
        weights_load_lpips(&t->lpips_params, o->lpips_weights);
        printf("LPIPS          %s\n", o->lpips_weights);
    } else {
        warn("no -lpips_weights: LPIPS compares random features. Good for a test of speed, not for training");
    }
    if (o->stage != 1 || run->step) return;
    if (o->encoder_weights[0]) {
        need_weights(o, "encoder_weights", o->encoder_weights);
        weights_load_vit(&t->params, &t->config.encoder, "encoder.", o->encoder_weights);
        printf("encoder        %s\n", o->encoder_weights);
    } else {
        warn("no -encoder_weights: the encoder is random. Good for a test of speed, not for training");
    }
}

// What tensor shapes do not show: flags that must be the same in all stages.
static void check_same_model(const options_t* o, const checkpoint_info_t* info, const char* path) {
    static options_t saved;
    options_read(&saved, info->config, path);
    if (strcmp(saved.encoder, o->encoder)) {
        fatal("%s has encoder %s, this run %s; give -encoder %s", path, saved.encoder, o->encoder, saved.encoder);
    }
    if (saved.groups != o->groups) {
        fatal("%s was trained with -groups %d, this run has %d; give the same", path, saved.groups, o->groups);
    }
    if (saved.normalise != o->normalise) {
        fatal("%s was trained with another -normalise than this run; give the same in all stages", path);
    }
}

// Stage 2 starts from stage 1's raw weights; stage 3 from stage 2's averages, which are what the tokenizer ships with
// (AlignTok applies its averages from the second stage on).
static void hand_over(run_t* run) {
    const options_t* o = &run->options;
    char path[1024];
    int previous = o->stage - 1;
    if (o->from[0]) snprintf(path, sizeof path, "%s", o->from);
    else snprintf(path, sizeof path, "%s/stage%d.safetensors", o->out, previous);
    if (access(path, R_OK)) {
        fatal("stage %d starts from stage %d's checkpoint, and there is none at %s; run `%s -stage %d` with the same "
              "flags first, or name a file with -from",
              o->stage, previous, path, run->cli.program, previous);
    }
    safetensors_t file;
    checkpoint_info_t info = checkpoint_open(&file, path);
    if (info.stage != previous) {
        fatal("%s is a checkpoint of stage %d; stage %d starts from one of stage %d", path, info.stage, o->stage,
              previous);
    }
    check_same_model(o, &info, path);
    int which = o->stage == 3 ? o->ema : -1;
    checkpoint_start_from(&file, &info, path, &run->tokenizer, which);
    printf("start          %s after %lld steps, %s weights\n", path, (long long)info.step,
           which < 0 ? "raw" : "averaged");
    safetensors_close(&file);
    if (o->stage == 2) tokenizer_set_target(&run->tokenizer, run->stream);
}

// Continues a run that was stopped. Returns 0 when there is none in the folder.
static int resume(run_t* run) {
    if (!run_has_checkpoint(run->checkpoint_path, run->options.restart)) return 0;
    safetensors_t file;
    checkpoint_info_t info = checkpoint_open(&file, run->checkpoint_path);
    if (info.stage != run->options.stage) {
        fatal(
            "%s is a checkpoint of stage %d, not %d; give it its own name back (stage%d.safetensors), or name another "
            "folder with -out",
            run->checkpoint_path, info.stage, run->options.stage, info.stage);
    }
    run_check_config(&run->cli, info.config, run->checkpoint_path, run->options.change);
    checkpoint_resume(&file, &info, run->checkpoint_path, &run->tokenizer);
    safetensors_close(&file);
    run->step = info.step;
    printf("resume         %s at step %lld\n", run->checkpoint_path, (long long)run->step);
    return 1;
}

static void set_up(run_t* run) {
    options_t* o = &run->options;
    tokenizer_t* t = &run->tokenizer;
    dataset_open(&run->train_set, o->data, SPLIT_TRAIN);
    dataset_open(&run->val_set, o->data, SPLIT_VAL);
    printf("data           %s: %zu training images, %zu held out, %d classes\n", run->train_set.folder,
           run->train_set.count, run->val_set.count, run->train_set.class_count);
    tokenizer_allocate(t);
    params_init(&t->params, o->seed);
    params_init(&t->disc_params, o->seed);
    params_init(&t->lpips_params, o->seed);
    int resumed = resume(run);
    load_pretrained(run);
    if (!resumed && o->stage > 1) hand_over(run);
    if (!resumed) params_start_averages(&t->params);
    run_check_same_start(&run->comm, run->step, o->out);
    tokenizer_freeze(t);
    algorithms_open(o->out, &run->comm, run->stream);

    int batch = t->config.batch;
    size_t bytes = (size_t)batch * tokenizer_pixels(t) * 3;
    run->val_pixels = (uint8_t*)malloc_check(bytes, "held-out images");
    dataloader_t loader;
    dataloader_options_t options = {batch, o->image_size, 0, 0, 1, 0, 1, 0, o->seed}; // by lot, centre crops
    dataloader_open(&loader, &run->val_set, &options, 0);
    memcpy(run->val_pixels, dataloader_next(&loader)->pixels, bytes);
    dataloader_close(&loader);
    run->measures = (floatS*)host_malloc(tokenizer_measure_count(t) * sizeof(floatS), "measures");
    run->latent_mean = (floatS*)calloc_check(2 * t->z, sizeof(floatS), "latent statistics");
    run->latent_std = run->latent_mean + t->z;
}

// ---------------------------------------------------------------------------------------------------------------------
// Pictures and files

// Reconstructs the held-out images into `pixels` and returns the mean PSNR of bytes, in dB; NaN where a value is not
// finite.
static double reconstruct_held_out(run_t* run, uint8_t* pixels) {
    tokenizer_t* t = &run->tokenizer;
    int batch = t->config.batch;
    size_t image = tokenizer_pixels(t) * 3, n = batch * image;
    copy_to_device(t->bytes, run->val_pixels, n, run->stream);
    image_from_bytes(t->x, t->bytes, n, run->stream);
    floatS* host = (floatS*)malloc_check(n * sizeof(floatS), "reconstructions");
    copy_floats_to_host(host, tokenizer_reconstruct(t, run->stream), n);
    image_bytes_from_floats(pixels, host, n);
    int finite = first_not_finite(host, n) == n;
    free(host);
    if (!finite) return NAN;
    double sum = 0; // equal images have no finite PSNR; they count as 100 dB
    for (int b = 0; b < batch; b++) {
        sum += fmin(psnr_bytes(pixels + b * image, run->val_pixels + b * image, image), 100);
    }
    return sum / batch;
}

// The averaged weights take the place of the raw ones; a second call puts those back.
static void exchange_ema(run_t* run) {
    replicas_exchange_ema(&run->tokenizer.params, run->options.ema, &run->comm, run->stream);
}

__attribute__((noreturn)) static void stop_not_finite(run_t* run, int64_t step, const char* consequence);

// stageN_STEP.png: held-out images, their reconstruction by the raw and by the averaged weights.
static void write_grid(run_t* run) {
    const options_t* o = &run->options;
    tokenizer_t* t = &run->tokenizer;
    int batch = t->config.batch, columns = batch < 8 ? batch : 8;
    size_t image = tokenizer_pixels(t) * 3, n = batch * image;
    uint8_t* pixels = (uint8_t*)malloc_check(2 * n, "reconstructions");
    uint8_t* cells = (uint8_t*)malloc_check(3 * columns * image, "picture");
    double raw = reconstruct_held_out(run, pixels);
    exchange_ema(run);
    double averaged = reconstruct_held_out(run, pixels + n);
    exchange_ema(run);
    if (isnan(raw) || isnan(averaged)) stop_not_finite(run, run->step, "The weights after this step are not saved");
    memcpy(cells, run->val_pixels, columns * image);
    memcpy(cells + columns * image, pixels, columns * image);
    memcpy(cells + 2 * columns * image, pixels + n, columns * image);
    image_t grid = image_grid(cells, 3, columns, o->image_size, o->image_size, o->image_size < 100 ? 3 : 1);
    char path[1200], error[IMAGE_ERROR_SIZE], step[32];
    snprintf(step, sizeof step, "%lld", (long long)run->step);
    snprintf(path, sizeof path, "%s/stage%d_%06lld.png", o->out, o->stage, (long long)run->step);
    image_text_t texts[4] = {{"Rows", "held-out images; reconstruction, raw weights; reconstruction, averaged weights"},
                             {"Program", "train_tokenizer"}, {"Step", step}, {"Configuration", run->config_json}};
    int writes = comm_is_first(&run->comm);
    if (writes && image_write_png(path, &grid, texts, 4, error)) {
        printf("held out: PSNR %.2f dB raw, %.2f dB averaged (%d images)  %s\n", raw, averaged, batch, path);
    } else if (writes) {
        warn("%s; training goes on", error);
    }
    image_free(&grid);
    free(pixels);
    free(cells);
}

// Mean and standard deviation of each latent channel over images of the training set by lot, centre crops, by the
// averaged weights: what a diffusion model trained on the latents normalises by. All processes share the images. Where
// they cannot be read, a trained state is not lost for that: 0 and 1 are kept.
static void measure_latents(run_t* run) {
    const options_t* o = &run->options;
    tokenizer_t* t = &run->tokenizer;
    size_t bytes = (size_t)t->config.batch * tokenizer_pixels(t) * 3;
    size_t tokens = t->config.batch * tokenizer_latents(t), n = tokens * t->z;
    double* sums = (double*)calloc_check(2 * t->z + 1, sizeof(double), "latent statistics"); // the last: how many
    floatS* host = (floatS*)malloc_check(n * sizeof(floatS), "latents");
    dataloader_t loader;
    dataloader_options_t options = {o->batch,       o->image_size, 0, 0,      1, run->comm.rank,
                                    run->comm.size, 0,             o->seed};
    dataloader_open(&loader, &run->train_set, &options, 0);
    int batches = (o->latent_images + o->batch - 1) / o->batch;
    exchange_ema(run);
    char error[IMAGE_ERROR_SIZE] = "";
    for (int i = 0; i < batches; i++) {
        const batch_t* batch = dataloader_try_next(&loader, error);
        if (!batch) break;
        copy_to_device(t->bytes, batch->pixels, bytes, run->stream);
        image_from_bytes(t->x, t->bytes, bytes, run->stream);
        copy_floats_to_host(host, tokenizer_encode(t, run->stream), n);
        for (size_t j = 0; j < n; j++) {
            sums[j % t->z] += host[j];
            sums[t->z + j % t->z] += (double)host[j] * host[j];
        }
        sums[2 * t->z] += (double)tokens;
    }
    exchange_ema(run);
    dataloader_close(&loader);
    if (error[0]) warn("the mean and deviation of the latents, over too few images: %s", error);
    comm_sum_host(&run->comm, sums, 2 * t->z + 1);
    double count = sums[2 * t->z];
    for (int c = 0; c < t->z; c++) run->latent_mean[c] = 0, run->latent_std[c] = 1;
    for (int c = 0; c < t->z && count > 0; c++) {
        double mean = sums[c] / count, variance = sums[t->z + c] / count - mean * mean;
        run->latent_mean[c] = (floatS)mean;
        run->latent_std[c] = (floatS)sqrt(variance > 0 ? variance : 0);
    }
    free(sums);
    free(host);
}

// ---------------------------------------------------------------------------------------------------------------------
// What is watched

// Ends the run with the first tensor, in the order of the computation, that holds a number that is not finite.
__attribute__((noreturn)) static void stop_not_finite(run_t* run, int64_t step, const char* consequence) {
    char name[200] = "the measures", way[1400];
    size_t where = 0;
    tokenizer_find_not_finite(&run->tokenizer, name, sizeof name, &where);
    fatal("step %lld: NaN or infinity in %s (element %zu). %s. %s", (long long)step, name, where, consequence,
          run_way_back(run->checkpoint_path, "a lower -lr or -disc_lr", way, sizeof way));
}

// Looks at the first `count` numbers of a report.
static void stop_on_nan(run_t* run, const tokenizer_report_t* r, size_t count) {
    const double* values = (const double*)r;
    int finite = 1;
    for (size_t i = 0; i < count; i++) finite = finite && isfinite(values[i]);
    if (!finite) stop_not_finite(run, run->step + 1, "The weights were not changed by this step");
}

// Ends the run when a network has had a gradient of exactly zero for DEAD_STEPS steps: it no longer learns.
static void stop_when_dead(run_t* run, const tokenizer_report_t* r, int gan) {
    static const char* const names[4] = {"encoder", "adapter", "decoder", "discriminator"};
    const tokenizer_config_t* c = &run->tokenizer.config;
    const int trained[4] = {tokenizer_trains_encoder(c), tokenizer_trains_adapter(c), 1, gan};
    char way[1400];
    for (int i = 0; i < 4; i++) {
        run->dead_steps[i] = trained[i] && r->norm[i] == 0 ? run->dead_steps[i] + 1 : 0;
        if (run->dead_steps[i] < DEAD_STEPS) continue;
        const char* remedy = i == 3 ? "a lower -disc_lr or a later -disc_start" : "a lower -lr or -w_gan";
        fatal("step %lld: the gradient of the %s has been exactly zero for %d steps, so it has stopped learning. %s",
              (long long)run->step + 1, names[i], DEAD_STEPS,
              run_way_back(run->checkpoint_path, remedy, way, sizeof way));
    }
}

// Saves the state, unless it can no longer reconstruct an image: then the file before it is the last good one.
static void save(run_t* run) {
    const options_t* o = &run->options;
    uint8_t* pixels =
        (uint8_t*)malloc_check(run->tokenizer.config.batch * tokenizer_pixels(&run->tokenizer) * 3, "reconstructions");
    double psnr = reconstruct_held_out(run, pixels);
    free(pixels);
    if (isnan(psnr)) stop_not_finite(run, run->step, "The weights after this step are not saved");
    measure_latents(run);
    checkpoint_info_t info = {o->stage, run->step, run->step * o->batch, 0, 0, 0, run->config_json};
    char error[1024];
    algorithms_save(o->out, &run->comm, run->stream);
    if (!checkpoint_save(run->checkpoint_path, &run->tokenizer, &info, run->latent_mean, run->latent_std, error,
                         sizeof error, run->stream)) {
        fatal(
            "%s. The run ends at step %lld; the same command will go on from the last checkpoint, or begin where there "
            "is none",
            error, (long long)run->step);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The loop

// The means of all processes' reports, so that all see the same; and whether any of them was asked to stop.
static int share_report(run_t* run, tokenizer_report_t* report, int stop) {
    enum { N = sizeof *report / sizeof(double) };
    double values[N + 1], ranks = run->comm.size;
    memcpy(values, report, sizeof *report);
    values[N] = stop;
    comm_sum_host(&run->comm, values, N + 1);
    for (int i = 0; i < N; i++) values[i] /= ranks;
    memcpy(report, values, sizeof *report);
    report->clamped *= ranks; // a number of chunks
    return values[N] > 0;
}

static void train(run_t* run) {
    const options_t* o = &run->options;
    tokenizer_t* t = &run->tokenizer;
    char path[1200];
    tokenizer_status_t status;
    memset(&status, 0, sizeof status);
    int talks = comm_is_first(&run->comm);
    snprintf(path, sizeof path, "%s/stage%d.jsonl", o->out, o->stage);
    if (talks) status_open(&status.line, path);
    dataloader_t loader;
    dataloader_options_t options = {o->batch,       o->image_size, 1,      o->flip, 1, run->comm.rank,
                                    run->comm.size, o->workers,    o->seed};
    dataloader_open(&loader, &run->train_set, &options, (uint64_t)run->step);
    int stop = 0; // what stop_requested was when this step ended, anywhere: it may change at any time
    while (run->step < run->steps && !stop) {
        const batch_t* batch = dataloader_next(&loader);
        copy_to_device(t->bytes, batch->pixels, (size_t)batch->count * tokenizer_pixels(t) * 3, run->stream);
        algorithms_step(run->stream, 1);
        tokenizer_gradients(t, run->step, run->stream);
        algorithms_step(run->stream, 0);
        tokenizer_report_t report = tokenizer_read(t, run->measures, run->stream);
        int gan = tokenizer_gan_is_on(t, run->step);
        // Norms of gradients are the same everywhere; what comes before them is this process's own. So the process in
        // which a number went wrong finds it first, and names the tensor.
        stop_on_nan(run, &report, offsetof(tokenizer_report_t, norm) / sizeof(double));
        stop = share_report(run, &report, stop_requested);
        stop_on_nan(run, &report, sizeof report / sizeof(double));
        stop_when_dead(run, &report, gan);
        tokenizer_update(t, run->step, run->stream);
        run->step++;
        if (talks) tokenizer_status_add(&status, &report);
        if (talks && is_due(run->step, o->log_every, run->steps)) {
            tokenizer_status_print(&status, run->step, run->steps, run->step * o->batch, o->batch,
                                   loader.seconds_waited, gan, tokenizer_has_semantic_loss(&t->config));
        }
        if (is_due(run->step, o->grid_every, run->steps)) write_grid(run);
        if (is_due(run->step, o->save_every, run->steps) || stop) save(run);
    }
    size_t damaged = dataloader_damaged_files(&loader);
    if (damaged) warn("%zu files could not be read and were replaced by others", damaged);
    dataloader_close(&loader);
    if (talks) status_close(&status.line);
    printf("%s %s at step %lld\n", run->step < run->steps ? "stopped; saved" : "saved", run->checkpoint_path,
           (long long)run->step);
}

// -export: the checkpoint in -out as one file for use.
static void export_tokenizer(const options_t* o) {
    char checkpoint[1024];
    snprintf(checkpoint, sizeof checkpoint, "%s/stage%d.safetensors", o->out, o->stage);
    if (access(checkpoint, R_OK)) {
        fatal("-export %s: stage %d has no checkpoint at %s; give the -out and the -stage of a run that has one",
              o->export_path, o->stage, checkpoint);
    }
    struct stat from, to;
    int both = !stat(checkpoint, &from) && !stat(o->export_path, &to);
    if (both && from.st_dev == to.st_dev && from.st_ino == to.st_ino) {
        fatal("-export %s is the checkpoint itself, which would lose the state of its training; give another file",
              o->export_path);
    }
    autoencoder_export(checkpoint, o->export_path, o->export_type == EXPORT_F16 ? ST_F16 : ST_F32);
    printf("exported       %s to %s\n", checkpoint, o->export_path);
}

int main(int argc, char** argv) {
    static run_t run; // a run is a megabyte of tables: not for the stack
    options_t* o = &run.options;
    options_parse(o, &run.cli, argc, argv);
    run.comm.time_limit = o->time_limit;
    run.comm.bf16 = o->reduce_bf16;
    comm_open(&run.comm);
    if (!comm_is_first(&run.comm) && !freopen("/dev/null", "w", stdout)) warn("this rank's output is not silenced");
    if (o->export_path[0]) {
        if (comm_is_first(&run.comm)) export_tokenizer(o);
        comm_close(&run.comm);
        return 0;
    }
    tokenizer_register(&run.tokenizer, options_tokenizer(o, run.comm.size));
    run.tokenizer.comm = &run.comm;
    tokenizer_plan(&run.tokenizer);
    run.steps = o->stage_steps;
    run.config_json = cli_to_json(&run.cli);
    cli_print_configuration(&run.cli, stdout);
    print_plan(&run.tokenizer);
    if (o->dry_run) {
        comm_close(&run.comm);
        return 0;
    }
    run.stream = device_open(run.comm.local_rank);
    comm_attach(&run.comm, run.stream);
    make_folder(o->out);
    snprintf(run.checkpoint_path, sizeof run.checkpoint_path, "%s/stage%d.safetensors", o->out, o->stage);
    set_up(&run);
    run_catch_signals();
    if (run.step < run.steps) {
        train(&run);
    } else {
        printf("stage %d is complete (%lld steps); -restart 1 trains it again, a larger -steps goes on\n", o->stage,
               (long long)run.step);
    }
    comm_close(&run.comm);
    device_close(run.stream);
    return 0;
}
