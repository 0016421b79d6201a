// train_dit.cu: trains LightningDiT on the latents of a tokenizer.
//
//     ./train_dit -extract 1                 the miniature world (see `make demo`): images -> latent shards
//     ./train_dit                            trains on them; the same command again resumes, bit for bit
//     ./train_dit -preset imagenet -extract 1 -data IMAGENET -tokenizer TOKENIZER -latents FOLDER
//     ./train_dit -preset imagenet -latents FOLDER -tokenizer TOKENIZER
//
// A run writes into one folder (-out): dit.safetensors (the whole state, see common/training/dit_checkpoint.h),
// dit.jsonl (every status line), dit_STEP.png (samples of some classes, one a row: left by the raw weights, right by
// their average, from the same noise each time), on a GPU algorithms.txt (common/training/algorithms.h). Ctrl-C saves
// and stops. On several GPUs, one process each, which share -batch:
//     torchrun --no-python --nproc_per_node 8 ./train_dit ...      or srun, or mpirun: see common/training/comm.h
//
// This file is the outermost layer: flags, data, the loop, files. What a step computes is in common/training/dit.h.
// Reading order here: what it costs; resuming; pictures and files; what is watched; the loop; main.
#include <unistd.h>

// defines: cli_t, cli_print_configuration, cli_to_json, cli_integers
#include "common/program/cli.h"
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
// defines: latents_t, latents_open, latents_statistics
#include "common/data/latents.h"
// defines: latent_loader_t, latent_loader_next
#include "common/data/latent_loader.h"
// defines: image_grid, image_write_png
#include "common/data/image.h"
// defines: make_folder
#include "common/files/folder.h"
// defines: run_catch_signals, run_has_checkpoint, run_check_config, run_way_back, is_due, size_text, macs_text
#include "common/training/run.h"

enum {
    GUARD_WINDOW = 100,  // steps that the guard's running mean remembers
    GUARD_FROM = 200,    // steps before it acts
    GUARD_GIVES_UP = 100, // steps skipped one behind the other that end the run
    GRID_ROWS = 64       // most classes of a picture
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
// What it costs

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
    if (!run_has_checkpoint(path, run->options.restart)) return 0;
    safetensors_t file;
    dit_info_t info = dit_open(&file, path);
    if (safetensors_metadata(&file, "weights")) {
        fatal("%s was written by -export: it has no optimiser state to go on from; move it away, or name another "
              "folder with -out", path);
    }
    run_check_config(&run->cli, info.config, path, run->options.change);
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
    dit_sampler_options_t s = {FLOW_EULER, o->sample_steps, o->sample_shift, {o->cfg, o->cfg_start, o->cfg_channels},
                               run->dit.config.batch / 2 > 1 ? run->dit.config.batch / 2 : 1, o->seed};
    autoencoder_open(&run->tokenizer, o->tokenizer, AUTOENCODER_AVERAGED,
                     dit_sampler_batch(s.batch, &run->dit.config.net), 0, 1);
    if (run->tokenizer_name[0] && strcmp(run->tokenizer_name, run->tokenizer.fingerprint)) {
        fatal("-tokenizer %s has fingerprint %s, the latents in %s were made by %s; give the tokenizer that made them",
              o->tokenizer, run->tokenizer.fingerprint, o->latents, run->tokenizer_name);
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
    printf("latents        %s: %zu of %d x %d with %d channels%s%s\n", o->latents, run->latents.count,
           run->latents.side, run->latents.side, C, run->tokenizer_name[0] ? ", of tokenizer " : "",
           run->tokenizer_name);
    run->latent_mean = (floatS*)calloc_check(2 * C, sizeof(floatS), "latent statistics");
    run->latent_std = run->latent_mean + C;
    dit_allocate(d);
    int resumed = resume(run);
    if (!resumed) {
        latents_statistics(&run->latents, o->seed, o->stats_images, run->latent_mean, run->latent_std);
        lightningdit_init(&d->net, &d->params, o->seed);
        params_start_averages(&d->params);
    }
    lightningdit_set_tables(&d->net, &d->params);
    run_check_same_start(&run->comm, run->step, o->out);
    algorithms_open(o->out, &run->comm, run->stream);
    open_pictures(run);
    run->measures = (floatS*)host_malloc(dit_measure_count(d) * sizeof(floatS), "measures");
}

// ---------------------------------------------------------------------------------------------------------------------
// Pictures and files

// Draws `columns` samples of each class into every second half row: offset 0 or `columns`. Says how far it is if that
// takes long. 0 where a sample is none (a NaN, an infinity).
static int draw_half(run_t* run, uint8_t* cells, const int* classes, int rows, int columns, int offset) {
    size_t image = autoencoder_image_values(&run->tokenizer);
    uint64_t* numbers = (uint64_t*)malloc_check(columns * sizeof(uint64_t), "a row of samples");
    int* labels = (int*)malloc_check(columns * sizeof(int), "a row of samples");
    double said = clock_seconds();
    int good = 1;
    for (int r = 0; r < rows && good; r++) {
        for (int c = 0; c < columns; c++) {
            numbers[c] = (uint64_t)r * columns + c;
            labels[c] = classes[r];
        }
        uint8_t* at = cells + ((size_t)r * 2 * columns + offset) * image;
        good = dit_sampler_draw(&run->sampler, at, numbers, labels, columns, run->stream) == columns;
        if (clock_seconds() - said < 10) continue;
        said = clock_seconds();
        printf("drawing        row %d of %d with the %s weights\n", r + 1, rows, offset ? "averaged" : "raw");
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
    int classes[GRID_ROWS], rows = grid_classes(run, classes), columns = o->grid_columns;
    int H = run->tokenizer.H, W = run->tokenizer.W;
    uint8_t* cells = NULL;
    int good = 1;
    if (run->draws) {
        size_t image = autoencoder_image_values(&run->tokenizer);
        cells = (uint8_t*)malloc_check((size_t)rows * 2 * columns * image, "samples");
        good = draw_half(run, cells, classes, rows, columns, 0);
    }
    replicas_exchange_ema(&run->dit.params, 0, &run->comm, run->stream);
    if (run->draws) good &= draw_half(run, cells, classes, rows, columns, columns);
    replicas_exchange_ema(&run->dit.params, 0, &run->comm, run->stream);
    if (!run->draws) return;
    if (!good) {
        warn("step %lld: a sample holds a NaN or an infinity, no picture is drawn; training goes on",
             (long long)run->step);
        free(cells);
        return;
    }
    image_t grid = image_grid(cells, rows, 2 * columns, H, W, H < 100 ? 3 : 1);
    char path[1200], error[IMAGE_ERROR_SIZE], step[32];
    snprintf(step, sizeof step, "%lld", (long long)run->step);
    snprintf(path, sizeof path, "%s/dit_%06lld.png", o->out, (long long)run->step);
    image_text_t texts[4] = {{"Rows", "one class each; left half: raw weights, right half: averaged, same noise"},
                             {"Program", "train_dit"}, {"Step", step}, {"Configuration", run->config_json}};
    if (image_write_png(path, &grid, texts, 4, error)) printf("samples        %s\n", path);
    else warn("%s; training goes on", error);
    image_free(&grid);
    free(cells);
}

static void save(run_t* run) {
    const dit_options_t* o = &run->options;
    char losses[400], error[1024];
    dit_info_t info = {run->step, run->step * o->batch, 0, run->tokenizer_name,
                       losses_text(run, losses, sizeof losses), run->config_json};
    algorithms_save(o->out, &run->comm, run->stream);
    if (!dit_save(run->checkpoint_path, &run->dit, &info, run->latent_mean, run->latent_std, error, sizeof error,
                  run->stream)) {
        fatal("%s. The run ends at step %lld; the same command will go on from the last checkpoint, or begin where "
              "there is none", error, (long long)run->step);
    }
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

static void train(run_t* run) {
    const dit_options_t* o = &run->options;
    dit_t* d = &run->dit;
    char path[1200];
    int talks = comm_is_first(&run->comm), stop = 0;
    snprintf(path, sizeof path, "%s/dit.jsonl", o->out);
    if (talks) {
        int steps = run->status.line.steps; // since the last line, where a run goes on
        status_open(&run->status.line, path);
        run->status.line.steps = steps;
    }
    latent_loader_t loader;
    latent_loader_options_t options = {o->batch, run->comm.rank, run->comm.size, o->workers, o->seed, o->flip,
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
        stop = share_report(run, &report, stop_requested);
        stop_on_nan(run, &report);
        if (!guard_skips(run, report.mse + o->w_cos * report.cosine)) dit_update(d, report.norm, run->stream);
        run->step++;
        run->status.skipped = run->guard.skipped;
        dit_status_add(&run->status, &report);
        if (talks && is_due(run->step, o->log_every, run->steps)) {
            dit_status_print(&run->status, run->step, run->steps, run->step * o->batch, o->batch,
                             loader.seconds_waited);
        }
        if (is_due(run->step, o->grid_every, run->steps)) write_grid(run);
        if (is_due(run->step, o->save_every, run->steps) || stop) save(run);
    }
    latent_loader_close(&loader);
    if (talks) status_close(&run->status.line);
    printf("%s %s at step %lld\n", run->step < run->steps ? "stopped; saved" : "saved", run->checkpoint_path,
           (long long)run->step);
}

int main(int argc, char** argv) {
    static run_t run; // tables of a megabyte: not for the stack
    dit_options_t* o = &run.options;
    dit_options_parse(o, &run.cli, argc, argv);
    snprintf(run.checkpoint_path, sizeof run.checkpoint_path, "%s/dit.safetensors", o->out);
    if (o->export_file[0]) {
        st_dtype_t type = o->export_type == 0 ? ST_F32 : ST_F16;
        dit_export(run.checkpoint_path, o->export_file, type);
        printf("exported       %s -> %s\n", run.checkpoint_path, o->export_file);
        return 0;
    }
    run.comm.time_limit = o->time_limit;
    run.comm.bf16 = o->reduce_bf16;
    comm_open(&run.comm);
    if (!comm_is_first(&run.comm) && !freopen("/dev/null", "w", stdout)) warn("this rank's output is not silenced");
    cli_print_configuration(&run.cli, stdout);
    if (o->extract) {
        run.stream = device_open(run.comm.local_rank);
        comm_attach(&run.comm, run.stream);
        extract_options_t e = {o->data, o->tokenizer, o->latents, o->images, o->shard_images, o->extract_batch};
        extract_latents(&e, &run.comm, run.stream);
        comm_close(&run.comm);
        device_close(run.stream);
        return 0;
    }
    dit_register(&run.dit, dit_options_config(o, run.comm.size));
    run.dit.comm = &run.comm;
    dit_plan(&run.dit);
    run.steps = o->steps;
    run.config_json = cli_to_json(&run.cli);
    print_plan(&run.dit);
    if (o->dry_run) {
        comm_close(&run.comm);
        return 0;
    }
    run.stream = device_open(run.comm.local_rank);
    comm_attach(&run.comm, run.stream);
    make_folder(o->out);
    set_up(&run);
    run_catch_signals();
    if (run.step < run.steps) {
        train(&run);
    } else {
        printf("training is complete (%lld steps); -restart 1 trains again, a larger -steps goes on\n",
               (long long)run.step);
    }
    comm_close(&run.comm);
    device_close(run.stream);
    return 0;
}
