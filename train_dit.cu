// train_dit.cu: trains LightningDiT on the latents of a tokenizer.
//
//     ./train_dit -extract 1                 the miniature world (see `make demo`): images -> latent shards
//     ./train_dit                            trains on them; the same command again resumes, bit for bit
//     ./train_dit -preset imagenet -extract 1 -data IMAGENET -tokenizer TOKENIZER -latents FOLDER
//     ./train_dit -preset imagenet -latents FOLDER -tokenizer TOKENIZER
//
// A run writes into one folder (-out): dit.safetensors (the whole state, see common/training/dit_checkpoint.h),
// dit.jsonl (every status line), dit_STEP.png (samples of some classes, one a row: left by the raw weights, right by
// their average, from the same noise each time), on a GPU algorithms.txt (common/training/algorithms.h). Ctrl-C and
// SIGTERM save and stop; the exit code is then 130 or 143. The latents tell their shape and their classes. On several
// GPUs, one process each, which share -batch:
//     torchrun --no-python --nproc_per_node 8 ./train_dit ...      or srun, or mpirun: see common/training/comm.h
//
// This file is the outermost layer: flags, data, the loop, files. What a step computes is in common/training/dit.h.
// Reading order here: what it needs and costs; resuming; pictures and files; what is watched; the loop; main.
#include <unistd.h>

// defines: cli_t, cli_print_configuration, cli_take_from_data
#include "common/program/cli.h"
// defines: cli_to_json
#include "common/program/cli_saved.h"
// defines: clock_seconds
#include "common/program/clock.h"
// defines: algorithms_open, algorithms_step, algorithms_save
#include "common/training/algorithms.h"
// defines: comm_t, comm_open, comm_attach, comm_close, comm_is_first, comm_sum_host
#include "common/training/comm.h"
// defines: dit_options_t, dit_options_parse, dit_options_config
#include "common/training/dit_options.h"
// defines: dit_t, dit_gradients, dit_read, dit_update
#include "common/training/dit.h"
// defines: dit_save, dit_resume, dit_export
#include "common/training/dit_checkpoint.h"
// defines: dit_sampler_t, dit_sampler_draw
#include "common/drawing/dit_sampler.h"
// defines: dit_status_t, dit_status_print
#include "common/training/status.h"
// defines: extract_latents
#include "common/drawing/extract.h"
// defines: class_names_t, class_names_read
#include "common/drawing/class_names.h"
// defines: latents_t, latents_are_there, latents_shape, latents_open, latents_statistics
#include "common/data/latents.h"
// defines: latent_loader_t, latent_loader_next
#include "common/data/latent_loader.h"
// defines: row_picture_t, row_picture_add, row_picture_page; image_write_png
#include "common/data/row_picture.h"
// defines: needs_t, needs_add, needs_or_else, needs_check
#include "common/training/needs.h"
// defines: run_catch_signals, run_was_stopped, run_exit_code, run_has_checkpoint, run_check_config, run_try_folder, ...
#include "common/training/run.h"

enum {
    GUARD_WINDOW = 100,  // steps that the guard's running mean remembers
    GUARD_FROM = 200,    // steps before it acts
    GUARD_GIVES_UP = 100, // steps skipped one behind the other that end the run
    GRID_ROWS = ROW_PICTURE_ROWS // most classes of a picture
};

// Keeps the weights from a step whose loss is far above what losses have been.
typedef struct {
    double mean;   // running mean of the loss of the steps that were taken
    int64_t steps; // taken
    int64_t skipped;
    int in_a_row;  // skipped since the last that was taken
} guard_t;

typedef struct {
    dit_options_t options;
    cli_t cli;
    comm_t comm;
    stream_t stream;
    dit_t dit;
    latents_t latents;
    autoencoder_t tokenizer;       // for the pictures, of the first process
    dit_sampler_t sampler;
    int draws;                     // there are pictures
    class_names_t names;
    char tokenizer_name[17];       // fingerprint of the tokenizer that made the latents, or ""
    char checkpoint_path[1024];
    char* config_json;
    int64_t step, steps;           // done, and to do
    floatS *latent_mean, *latent_std; // (C)
    floatS* measures;              // host copy of a step's measures
    guard_t guard;
    dit_status_t status;
} run_t;

// ---------------------------------------------------------------------------------------------------------------------
// What it needs and costs

// Takes the latents' shape and number of classes from their shards; flags that say otherwise end the program.
static void take_shape(run_t* run) {
    dit_options_t* o = &run->options;
    latents_shape_t shape = latents_shape(o->latents);
    const struct { const char* flag; int* place; int value; } told[3] = {
        {"z_channels", &o->z_channels, shape.C}, {"latent_side", &o->latent_side, shape.side},
        {"classes", &o->classes, o->uncond ? 0 : shape.classes}};
    for (int i = 0; i < 3; i++) {
        if (told[i].value <= 0 || cli_take_from_data(&run->cli, told[i].flag, told[i].value)) continue;
        fatal("-%s %d, but the shards in -latents %s have %d; leave the flag out, or give the right latents",
              told[i].flag, *told[i].place, o->latents, told[i].value);
    }
    int chosen = cli_source(&run->cli, "grid_classes") == CLI_FROM_COMMAND_LINE;
    if (!chosen && o->classes != 1000) o->grid_classes = "all"; // the default ones are ImageNet's
}

// All that this run needs and that is not there, in one message. In the miniature world the tokenizer that comes with
// the repository serves where there is none of one's own.
static void check_needs(run_t* run) {
    dit_options_t* o = &run->options;
    needs_t needs = {{NULL, 0, 0}, 0};
    json_text_t command = {NULL, 0, 0}, flags = {NULL, 0, 0};
    const char* program = run->cli.program;
    int mini = !strcmp(o->run.preset, "mini");
    if (mini) needs_or_else(&run->cli, "tokenizer", &o->tokenizer, "miniature/tokenizer.safetensors");
    int no_latents = !o->extract && !latents_are_there(o->latents);
    if (no_latents) needs_add(&needs, "-latents %s: there are no shards of latents (*.safetensors) in it", o->latents);
    if ((o->extract || (no_latents && !mini)) && o->tokenizer[0]) {
        needs_file(&needs, "tokenizer", o->tokenizer, "train_tokenizer makes it");
    }
    if (o->extract && !o->tokenizer[0]) {
        needs_add(&needs, "-extract 1 needs a tokenizer: give its checkpoint with -tokenizer");
    }
    if (o->extract && !o->data[0]) needs_add(&needs, "-extract 1 needs images: give their folder with -data");
    if (o->extract && o->data[0]) needs_images(&needs, o->data);
    if (no_latents) {
        static const char* const own[] = {"extract", "dry_run", NULL};
        needs_same_flags(&run->cli, own, &flags);
        const char* same = flags.text ? flags.text : "";
        json_append(&command, "%s%s -extract 1%s && %s%s", program, same, o->data[0] ? "" : " -data FOLDER", program,
                    same);
    }
    needs_check(&needs, command.text ? command.text : "");
    json_text_free(&command);
    json_text_free(&flags);
}

static void print_plan(const dit_t* d) {
    const dit_config_t* c = &d->config;
    const param_table_t* table = &d->params.table;
    size_t first = lightningdit_first_trained(&d->net);
    int shares = c->zero && d->comm ? d->comm->size : 1, images = c->batch * (d->comm ? d->comm->size : 1);
    char size[4][32];
    printf("parameters     %s: %.3fM, of which %.3fM are trained (the rest is the position table)\n", c->net.id,
           param_count(table, 0, table->total) * 1e-6, param_count(table, first, table->total) * 1e-6);
    size_t weights = params_bytes(table, first, 1, shares);
    printf("memory         %s: weights, gradients, moments, average %s; activations %s; working memory %s\n",
           size_text(size[0], weights + plan_bytes(&d->plan) + plan_bytes(&d->work)), size_text(size[1], weights),
           size_text(size[2], plan_bytes(&d->plan)), size_text(size[3], plan_bytes(&d->work)));
    double forward = (double)lightningdit_macs(&d->net);
    printf("cost           %s multiply-accumulates an image forward, ", macs_text(size[0], forward));
    printf("%s a step of %d images\n", macs_text(size[1], dit_step_macs(d) / c->batch * images), images);
    if (c->clip > 0) printf("clipping       the gradient's norm is kept at or below %g\n", c->clip);
    else printf("clipping       none (by default: beyond %d steps without -qk_norm 1)\n", CLIP_FROM_STEPS);
    fflush(stdout); // what follows takes its time where the network is large
}

// ---------------------------------------------------------------------------------------------------------------------
// Resuming

// The guard's state and the sums that the next status line is the mean of, as text that reads back exactly.
static const char* losses_text(const run_t* run, char* text, size_t size) {
    const guard_t* g = &run->guard;
    const dit_status_t* s = &run->status;
    snprintf(text, size, "%a %lld %lld %d %d %a %a %a", g->mean, (long long)g->steps, (long long)g->skipped,
             g->in_a_row, s->line.steps, s->sum.mse, s->sum.cosine, s->sum.norm);
    return text;
}

static void losses_read(run_t* run, const char* text) {
    guard_t* g = &run->guard;
    dit_status_t* s = &run->status;
    long long steps, skipped;
    if (sscanf(text, "%la %lld %lld %d %d %la %la %la", &g->mean, &steps, &skipped, &g->in_a_row, &s->line.steps,
               &s->sum.mse, &s->sum.cosine, &s->sum.norm) != 8) {
        fatal("%s: metadata field \"losses\" is \"%s\", wanted 8 numbers; the file is damaged", run->checkpoint_path,
              text);
    }
    g->steps = steps;
    g->skipped = s->skipped = skipped;
}

// Continues a run that was stopped. Returns 0 when there is none in the folder.
static int resume(run_t* run) {
    const char* path = run->checkpoint_path;
    if (!run_has_checkpoint(path, run->options.run.restart)) return 0;
    safetensors_t file;
    dit_info_t info = dit_open(&file, path);
    if (safetensors_metadata(&file, "weights")) {
        fatal("%s was written by -export: it has no optimiser state to go on from; move it away, or name another "
              "folder with -out", path);
    }
    run_check_config(&run->cli, info.config, path, run->options.run.change);
    if (strcmp(info.tokenizer, run->tokenizer_name)) {
        fatal("%s was trained on latents of tokenizer %s, those in -latents %s are of tokenizer %s; give the same "
              "latents, or another folder with -out",
              path, info.tokenizer[0] ? info.tokenizer : "(unknown)", run->options.latents,
              run->tokenizer_name[0] ? run->tokenizer_name : "(unknown)");
    }
    dit_resume(&file, &info, path, &run->dit);
    checkpoint_read_vector(&file, path, "latent.mean", run->latent_mean, run->dit.config.net.C);
    checkpoint_read_vector(&file, path, "latent.std", run->latent_std, run->dit.config.net.C);
    losses_read(run, info.losses);
    run->step = info.step;
    safetensors_close(&file);
    printf("resume         %s at step %lld\n", path, (long long)run->step);
    return 1;
}

// The tokenizer decodes the pictures; it must be the one that made the latents.
static void open_pictures(run_t* run) {
    const dit_options_t* o = &run->options;
    if (!comm_is_first(&run->comm)) return;
    if (!o->tokenizer[0] || access(o->tokenizer, R_OK)) {
        warn("%s%s: no pictures of samples are drawn",
             o->tokenizer[0] ? "no tokenizer at -tokenizer " : "no -tokenizer", o->tokenizer);
        return;
    }
    dit_sampler_options_t s = {FLOW_EULER, o->sample_steps, o->sample_shift, {o->cfg, o->cfg_start, o->cfg_channels, 0},
                               run->dit.config.batch / 2 > 1 ? run->dit.config.batch / 2 : 1, o->run.seed, PREDICTS_VELOCITY,
                               DDPM_ANCESTRAL, 0};
    autoencoder_open(&run->tokenizer, o->tokenizer, (autoencoder_weights_t)o->tokenizer_weights,
                     dit_sampler_batch(s.batch, lightningdit_tokens(&run->dit.config.net)), 0, 1);
    if (run->tokenizer_name[0] && strcmp(run->tokenizer_name, run->tokenizer.fingerprint)) {
        fatal("-tokenizer %s has fingerprint %s (weights: %s), the latents in %s were made by %s; give the tokenizer "
              "that made them, or its weights with -tokenizer_weights", o->tokenizer, run->tokenizer.fingerprint,
              run->tokenizer.weights, o->latents, run->tokenizer_name);
    }
    if (o->uncond) s.guidance.w = 1;
    dit_sampler_open(&run->sampler, &run->dit.net, &run->dit.params, &run->tokenizer, run->latent_mean,
                     run->latent_std, s);
    run->draws = 1;
}

static void set_up(run_t* run) {
    dit_options_t* o = &run->options;
    dit_t* d = &run->dit;
    int C = d->config.net.C;
    latents_open(&run->latents, o->latents, C, d->config.net.side, o->uncond ? 0 : o->classes);
    snprintf(run->tokenizer_name, sizeof run->tokenizer_name, "%s", run->latents.tokenizer);
    printf("latents        %s: %zu of %d x %d with %d channels, %d classes%s%s\n", o->latents, run->latents.count,
           run->latents.side, run->latents.side, C, o->classes, run->tokenizer_name[0] ? ", of tokenizer " : "",
           run->tokenizer_name);
    class_names_read(&run->names, o->uncond ? "" : run->latents.class_names, o->classes, 0);
    run->latent_mean = (floatS*)calloc_check(2 * C, sizeof(floatS), "latent statistics");
    run->latent_std = run->latent_mean + C;
    dit_allocate(d);
    char error[1200];
    if (comm_is_first(&run->comm) && !run_try_folder(o->run.out, dit_file_bytes(d), error, sizeof error)) {
        fatal("%s", error);
    }
    int resumed = resume(run);
    if (!resumed) {
        latents_statistics(&run->latents, o->run.seed, o->stats_images, run->latent_mean, run->latent_std);
        lightningdit_init(&d->net, &d->params, o->run.seed);
        params_start_averages(&d->params);
    }
    lightningdit_set_tables(&d->net, &d->params);
    run_check_same_start(&run->comm, run->step, o->run.out);
    algorithms_open(o->run.out, &run->comm, run->stream);
    open_pictures(run);
    run->measures = (floatS*)host_malloc(dit_measure_count(d) * sizeof(floatS), "measures");
}

// ---------------------------------------------------------------------------------------------------------------------
// Pictures and files

// Draws `columns` samples of each class into one half of its row, from the place `offset` on: 0 or `columns`. Says how
// far it is if that takes long. 0 where a sample is none (a NaN, an infinity).
static int draw_half(run_t* run, row_picture_t* picture, const int* classes, int columns, int offset) {
    size_t image = autoencoder_image_values(&run->tokenizer);
    uint64_t* numbers = (uint64_t*)malloc_check(columns * sizeof(uint64_t), "a row of samples");
    int* labels = (int*)malloc_check(columns * sizeof(int), "a row of samples");
    double said = clock_seconds();
    int good = 1;
    for (int r = 0; r < picture->rows && good; r++) {
        for (int c = 0; c < columns; c++) {
            numbers[c] = (uint64_t)r * columns + c;
            labels[c] = classes[r];
        }
        uint8_t* at = picture->cells + ((size_t)r * 2 * columns + offset) * image;
        good = dit_sampler_draw(&run->sampler, at, numbers, labels, columns, run->stream) == columns;
        if (clock_seconds() - said < 10) continue;
        said = clock_seconds();
        printf("drawing        row %d of %d with the %s weights\n", r + 1, picture->rows, offset ? "averaged" : "raw");
        fflush(stdout);
    }
    free(numbers);
    free(labels);
    return good;
}

// The classes of the picture's rows. Returns how many.
static int grid_classes(const run_t* run, int classes[GRID_ROWS]) {
    const dit_options_t* o = &run->options;
    int n = o->classes < GRID_ROWS ? o->classes : GRID_ROWS;
    for (int i = 0; i < n; i++) classes[i] = i;
    if (o->uncond || !strcmp(o->grid_classes, "all")) return n;
    char list[1024];
    snprintf(list, sizeof list, "%s", o->grid_classes);
    n = 0;
    for (char* at = strtok(list, ","); at && n < GRID_ROWS; at = strtok(NULL, ",")) {
        char* end;
        long value = strtol(at, &end, 10);
        if (end == at || *end || value < 0 || value >= o->classes) {
            fatal("-grid_classes %s: %s is no class; they are 0 to %d", o->grid_classes, at, o->classes - 1);
        }
        classes[n++] = (int)value;
    }
    return n;
}

// dit_STEP.png. All processes exchange the weights with their average; the first one draws.
static void write_grid(run_t* run) {
    const dit_options_t* o = &run->options;
    int classes[GRID_ROWS], n = grid_classes(run, classes), columns = o->grid_columns, good = 1;
    row_picture_t picture;
    if (run->draws) {
        row_picture_open(&picture, 2 * columns, run->tokenizer.H, run->tokenizer.W);
        picture.halves[0] = "raw weights";
        picture.halves[1] = "averaged, the same noise";
        for (int r = 0; r < n; r++) {
            char name[80];
            snprintf(name, sizeof name, "%d %s", classes[r], class_name(&run->names, classes[r]));
            row_picture_add(&picture, name);
        }
        good = draw_half(run, &picture, classes, columns, 0);
    }
    replicas_exchange_ema(&run->dit.params, 0, &run->comm, run->stream);
    if (run->draws) good &= draw_half(run, &picture, classes, columns, columns);
    replicas_exchange_ema(&run->dit.params, 0, &run->comm, run->stream);
    if (!run->draws) return;
    if (!good) {
        warn("step %lld: a sample holds a NaN or an infinity, no picture is drawn; training goes on",
             (long long)run->step);
        row_picture_close(&picture);
        return;
    }
    image_t page = row_picture_page(&picture);
    char path[1200], error[IMAGE_ERROR_SIZE], step[32];
    snprintf(step, sizeof step, "%lld", (long long)run->step);
    snprintf(path, sizeof path, "%s/dit_%06lld.png", o->run.out, (long long)run->step);
    image_text_t texts[4] = {{"Rows", "one class each; left half: raw weights, right half: averaged, same noise"},
                             {"Program", "train_dit"}, {"Step", step}, {"Configuration", run->config_json}};
    if (image_write_png(path, &page, texts, 4, error)) printf("samples        %s\n", path);
    else warn("%s; training goes on", error);
    image_free(&page);
    row_picture_close(&picture);
}

static void save(run_t* run) {
    const dit_options_t* o = &run->options;
    char losses[400], error[1024], written[64];
    const params_t* tables[1] = {&run->dit.params};
    replicas_check_same(tables, 1, &run->comm, run->step);
    dit_info_t info = {run->step, run->step * o->batch, 0, run->tokenizer_name,
                       losses_text(run, losses, sizeof losses), run->config_json,
                       o->uncond ? "" : run->latents.class_names};
    algorithms_save(o->run.out, &run->comm, run->stream);
    double start = clock_seconds();
    if (!dit_save(run->checkpoint_path, &run->dit, &info, run->latent_mean, run->latent_std, error, sizeof error,
                  run->stream)) {
        fatal("%s. The run ends at step %lld; the same command will go on from the last checkpoint, or begin where "
              "there is none", error, (long long)run->step);
    }
    printf("saved          %s at step %lld: %s\n", run->checkpoint_path, (long long)run->step,
           run_written(written, run->checkpoint_path, start));
    fflush(stdout);
}

// ---------------------------------------------------------------------------------------------------------------------
// What is watched

// Ends the run with the first tensor, in the order of the computation, that holds a number that is not finite.
static void stop_on_nan(run_t* run, const dit_report_t* r) {
    if (isfinite(r->mse) && isfinite(r->cosine) && isfinite(r->norm)) return;
    char name[200] = "the measures", way[1400];
    size_t where = 0;
    dit_find_not_finite(&run->dit, name, sizeof name, &where);
    fatal("step %lld: NaN or infinity in %s (element %zu). The weights were not changed by this step. %s",
          (long long)run->step + 1, name, where,
          run_way_back(run->checkpoint_path, "a lower -lr, -clip 1 or, from the start, -qk_norm 1", way, sizeof way));
}

// Is this step to be skipped?
static int guard_skips(run_t* run, double loss) {
    guard_t* g = &run->guard;
    double factor = run->options.guard;
    char way[1400];
    if (factor > 0 && g->steps >= GUARD_FROM && loss > factor * g->mean) {
        g->skipped++;
        if (++g->in_a_row < GUARD_GIVES_UP) return 1;
        fatal("step %lld: %d steps, one behind the other, had a loss of more than %g times the running mean %g and "
              "were skipped. %s", (long long)run->step + 1, GUARD_GIVES_UP, factor, g->mean,
              run_way_back(run->checkpoint_path, "a lower -lr, or -guard 0 to take such steps", way, sizeof way));
    }
    g->in_a_row = 0;
    g->steps++;
    g->mean += (loss - g->mean) / (double)(g->steps < GUARD_WINDOW ? g->steps : (int64_t)GUARD_WINDOW);
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// The loop

// The means of all processes' reports, so that all see the same; and whether any of them was asked to stop.
static int share_report(run_t* run, dit_report_t* report, int stop) {
    double values[3] = {report->mse, report->cosine, (double)stop}, ranks = run->comm.size;
    comm_sum_host(&run->comm, values, 3);
    report->mse = values[0] / ranks;
    report->cosine = values[1] / ranks;
    return values[2] > 0;
}

static void take_batch(dit_t* d, const latent_batch_t* batch, stream_t s) {
    size_t B = (size_t)d->config.batch;
    copy_to_device(d->x1, batch->x1, B * d->n * sizeof(floatS), s);
    copy_to_device(d->t, batch->t, B * sizeof(floatS), s);
    copy_to_device(d->labels, batch->labels, B * sizeof(int), s);
}

// Says that the latents come too slowly.
static void watch_loader(run_t* run) {
    if (!comm_is_first(&run->comm) || !status_waits(&run->status.line)) return;
    warn("training waits for latents %.0f%% of the time; put -latents %s on a faster disk, or make room in memory for "
         "it%s", 100 * run->status.line.wait, run->options.latents,
         run->options.run.workers ? "" : ", and leave -workers 0 out");
}

// What is due after a step. A run that is to stop saves at once; behind the last step the picture is still made.
static void after_step(run_t* run, int stop, double waited) {
    const dit_options_t* o = &run->options;
    if (comm_is_first(&run->comm) && is_due(run->step, o->run.log_every, run->steps)) {
        dit_status_print(&run->status, run->step, run->steps, run->step * o->batch, o->batch, waited);
    }
    if (stop || is_due(run->step, o->run.save_every, run->steps)) save(run);
    if ((!stop || run->step == run->steps) && is_due(run->step, o->run.grid_every, run->steps)) write_grid(run);
}

// Returns 1 if the run was stopped before its last step.
static int train(run_t* run) {
    const dit_options_t* o = &run->options;
    dit_t* d = &run->dit;
    char path[1200];
    int talks = comm_is_first(&run->comm), stop = 0;
    snprintf(path, sizeof path, "%s/dit.jsonl", o->run.out);
    if (talks) {
        int steps = run->status.line.steps; // since the last line, where a run goes on
        status_open(&run->status.line, path);
        run->status.line.steps = steps;
    }
    latent_loader_t loader;
    latent_loader_options_t options = {o->batch, run->comm.rank, run->comm.size, o->run.workers, o->run.seed, o->flip,
                                       run->latent_mean, run->latent_std, 1.0, o->label_drop, o->uncond,
                                       o->classes, (uint64_t)o->uniform_from, o->shuffle_labels};
    latent_loader_open(&loader, &run->latents, &options, (uint64_t)run->step);
    while (run->step < run->steps && !stop) {
        take_batch(d, latent_loader_next(&loader), run->stream);
        algorithms_step(run->stream, 1);
        dit_gradients(d, run->step, run->stream);
        algorithms_step(run->stream, 0);
        dit_report_t report = dit_read(d, run->measures, run->stream);
        stop_on_nan(run, &report); // the process in which a number went wrong finds it first, and names the tensor
        stop = share_report(run, &report, stop_signal != 0);
        stop_on_nan(run, &report);
        if (!guard_skips(run, report.mse + o->w_cos * report.cosine)) dit_update(d, report.norm, run->stream);
        run->step++;
        run->status.skipped = run->guard.skipped;
        dit_status_add(&run->status, &report);
        after_step(run, stop, loader.seconds_waited);
        watch_loader(run);
    }
    latent_loader_close(&loader);
    if (talks) status_close(&run->status.line);
    return run_was_stopped(run->step, run->steps);
}

// -extract 1: images become latents.
static int extract(run_t* run) {
    const dit_options_t* o = &run->options;
    run->stream = device_open(run->comm.local_rank);
    comm_attach(&run->comm, run->stream);
    int threads = o->run.workers > 0 ? o->run.workers : machine_cores(run->comm.local_size);
    extract_options_t e = {o->data, o->tokenizer, o->latents, (autoencoder_weights_t)o->tokenizer_weights, o->images,
                           o->shard_images, threads, o->extract_batch};
    extract_latents(&e, &run->comm, run->stream);
    comm_close(&run->comm);
    device_close(run->stream);
    return 0;
}

int main(int argc, char** argv) {
    static run_t run; // tables of a megabyte: not for the stack
    dit_options_t* o = &run.options;
    dit_options_parse(o, &run.cli, argc, argv);
    snprintf(run.checkpoint_path, sizeof run.checkpoint_path, "%s/dit.safetensors", o->run.out);
    if (o->run.export_path[0]) {
        st_dtype_t type = o->run.export_type == 0 ? ST_F32 : ST_F16;
        dit_export(run.checkpoint_path, o->run.export_path, type);
        printf("exported       %s -> %s\n", run.checkpoint_path, o->run.export_path);
        return 0;
    }
    run.comm.time_limit = o->run.time_limit;
    run.comm.bf16 = o->run.reduce_bf16;
    comm_open(&run.comm);
    if (!comm_is_first(&run.comm) && !freopen("/dev/null", "w", stdout)) warn("this rank's output is not silenced");
    int untold = o->run.dry_run && !latents_are_there(o->latents); // then the flags say the shape
    if (!o->run.dry_run) check_needs(&run);
    if (!o->extract && !untold) take_shape(&run);
    cli_print_configuration(&run.cli, stdout);
    if (o->extract) return extract(&run);
    dit_register(&run.dit, dit_options_config(o, run.comm.size));
    run.dit.comm = &run.comm;
    dit_plan(&run.dit);
    run.steps = o->steps;
    run.config_json = cli_to_json(&run.cli);
    print_plan(&run.dit);
    if (o->run.dry_run) {
        comm_close(&run.comm);
        return 0;
    }
    run.stream = device_open(run.comm.local_rank);
    comm_attach(&run.comm, run.stream);
    set_up(&run);
    run_catch_signals();
    int stopped = 0;
    if (run.step < run.steps) {
        stopped = train(&run);
    } else {
        printf("training is complete (%lld steps); -restart 1 trains again, a larger -steps goes on\n",
               (long long)run.step);
    }
    comm_close(&run.comm);
    device_close(run.stream);
    return run_exit_code(stopped);
}
