// train_dit.cu: trains a diffusion transformer on a tokenizer's latents: LightningDiT on classes, or text to image.
//
//     ./train_dit -extract 1                 the miniature world (see `make demo`): images -> latent shards
//     ./train_dit                            trains on them; the same command again resumes, bit for bit
//     ./train_dit -preset imagenet -extract 1 -data IMAGENET -tokenizer TOKENIZER -latents FOLDER
//     ./train_dit -preset imagenet -latents FOLDER -tokenizer TOKENIZER
//     ./train_dit -preset imagenet -latents none -data IMAGENET -tokenizer TOKENIZER      encodes beside the training
//     ./train_dit -preset t2i_mini -extract 1    the miniature world with captions; then without -extract 1
//     ./train_dit -preset t2i_256 -data captions:FOLDER -t5 T5 -t5_vocabulary spiece.model ...
//
// A run writes into one folder (-out): dit.safetensors (the whole state, see common/training/dit_checkpoint.h),
// dit.jsonl (every status line), dit_STEP.png (samples of some classes or prompts, one a row: left by the raw weights,
// right by their average, from the same noise each time), on a GPU algorithms.txt (common/training/algorithms.h).
// Ctrl-C and SIGTERM save and stop; the exit code is then 130 or 143. The latents tell their shape and their classes.
// On several GPUs, one process each, which share -batch:
//     torchrun --no-python --nproc_per_node 8 ./train_dit ...      or srun, or mpirun: see common/training/comm.h
//
// This file is the outermost layer: flags, the loop, files. What a step computes is in common/training/dit.h, where
// latents come from in common/drawing/latent_source.h, the pictures are made by common/drawing/dit_grid.h. Reading
// order here: what it needs and costs; resuming; what is watched and written; the loop; main.
#include <unistd.h>

// defines: cli_t, cli_source, cli_print_configuration
#include "common/program/cli.h"
// defines: cli_to_json
#include "common/program/cli_saved.h"
// defines: clock_seconds
#include "common/program/clock.h"
// defines: algorithms_open, algorithms_step, algorithms_save
#include "common/training/algorithms.h"
// defines: comm_t, comm_options_*, comm_open, comm_attach, comm_close, comm_is_first, comm_sum_host
#include "common/training/comm.h"
// defines: dit_options_t, dit_options_parse, dit_options_config
#include "common/training/dit_options.h"
// defines: dit_t, dit_gradients, dit_read, dit_update
#include "common/training/dit.h"
// defines: dit_save, dit_resume, dit_start, dit_is_exported, dit_export
#include "common/training/dit_checkpoint.h"
// defines: dit_status_t, dit_status_print
#include "common/training/status.h"
// defines: caption_data_extract_text
#include "common/training/caption_data.h"
// defines: latent_source_t, latent_source_*
#include "common/drawing/latent_source.h"
// defines: dit_grid_t, dit_grid_choose_prompts, dit_grid_open, dit_grid_write
#include "common/drawing/dit_grid.h"
// defines: needs_t, needs_add, needs_images, needs_or_else, needs_check
#include "common/training/needs.h"
// defines: run_catch_signals, run_was_stopped, run_exit_code, run_has_checkpoint, run_check_config, run_try_folder, ...
#include "common/training/run.h"

enum {
    GUARD_WINDOW = 100,  // steps that the guard's running mean remembers
    GUARD_FROM = 200,    // steps before it acts
    GUARD_GIVES_UP = 100 // steps skipped one behind the other that end the run
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
    latent_source_t source;
    dit_grid_t grid;
    char checkpoint_path[1024];
    char* config_json;
    int64_t step, steps;       // done, and to do
    floatS* measures;          // host copy of a step's measures
    guard_t guard;
    dit_status_t status;
} run_t;

// ---------------------------------------------------------------------------------------------------------------------
// What it needs and costs

// Takes the latents' shape and number of classes from where they come, and the default of -grid_classes after that.
static void take_shape(run_t* run) {
    dit_options_t* o = &run->options;
    latent_source_take_shape(&run->source);
    int chosen = run->source.with_captions || cli_source(&run->cli, "grid_classes") == CLI_FROM_COMMAND_LINE;
    if (!chosen && o->classes != 1000) o->grid_classes = "all"; // the default ones are ImageNet's
}

// All that this run needs and that is not there, in one message. In the miniature world the tokenizer that comes with
// the repository serves where there is none of one's own.
static void check_needs(run_t* run) {
    dit_options_t* o = &run->options;
    needs_t needs = {{NULL, 0, 0}, 0};
    json_text_t command = {NULL, 0, 0}, flags = {NULL, 0, 0};
    const char* program = run->cli.program;
    int mini = !strcmp(o->run.preset, "mini"), mini_t2i = !strcmp(o->run.preset, "t2i_mini");
    if (mini_t2i) needs_or_else(&run->cli, "tokenizer", &o->tokenizer, "miniature/t2i_tokenizer.safetensors");
    if (mini) needs_or_else(&run->cli, "tokenizer", &o->tokenizer, "miniature/tokenizer.safetensors");
    int extracts = o->extract || o->extract_text, beside = run->source.encodes;
    int no_latents = !extracts && !beside && !latent_source_is_there(&run->source);
    int encodes = o->extract || (beside && !o->extract_text);
    if (no_latents) needs_add(&needs, "-latents %s: there are no shards of latents (*.safetensors) in it", o->latents);
    if ((encodes || (no_latents && !mini && !mini_t2i)) && o->tokenizer[0]) {
        needs_file(&needs, "tokenizer", o->tokenizer, "train_tokenizer makes it");
    }
    if (encodes && !o->tokenizer[0]) {
        needs_add(&needs, "-%s needs a tokenizer: give its checkpoint with -tokenizer",
                  o->extract ? "extract 1" : "latents none");
    }
    int reads_data = encodes || o->extract_text || run->source.with_captions;
    if (reads_data && !o->data[0]) needs_add(&needs, "images are needed: give their folder with -data");
    if (reads_data && o->data[0]) needs_images(&needs, o->data);
    if (o->extract_text && !o->text_cache[0]) {
        needs_add(&needs, "-extract_text 1 needs a file to write: name it with -text_cache");
    } else if (o->text_cache[0] && !o->extract_text && !o->extract && access(o->text_cache, R_OK)) {
        needs_add(&needs, "-text_cache %s: there is no such file; -extract_text 1 makes it", o->text_cache);
    }
    int begins = !extracts && access(run->checkpoint_path, F_OK); // else it resumes
    if (begins && o->from[0]) needs_file(&needs, "from", o->from, "the run to begin from");
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

static void print_plan(const run_t* run) {
    const dit_t* d = &run->dit;
    const dit_config_t* c = &d->config;
    const param_table_t* table = &d->params.table;
    size_t first = dit_first_trained(d);
    int shares = c->zero ? (int)d->comm->size : 1, images = run->options.batch;
    char size[4][32];
    if (dit_has_captions(c)) {
        printf("parameters     %s: %zu\n", dit_model_id(c), param_count(table, 0, table->total));
    } else {
        printf("parameters     %s: %.3fM, of which %.3fM are trained (the rest is the position table)\n",
               dit_model_id(c), param_count(table, 0, table->total) * 1e-6,
               param_count(table, first, table->total) * 1e-6);
    }
    size_t weights = params_bytes(table, first, 1, shares);
    printf("memory         %s: weights, gradients, moments, average %s; activations %s; working memory %s\n",
           size_text(size[0], weights + plan_bytes(&d->plan) + plan_bytes(&d->work)), size_text(size[1], weights),
           size_text(size[2], plan_bytes(&d->plan)), size_text(size[3], plan_bytes(&d->work)));
    double forward = dit_forward_macs(d, c->text_rows);
    printf("cost           %s multiply-accumulates an image forward, ", macs_text(size[0], forward));
    printf("%s a step of %d images", macs_text(size[1], dit_step_macs(d, c->text_rows) / c->batch * images), images);
    if (dit_has_captions(c)) printf(", of %d x %d positions and captions of %d rows", d->h, d->w, c->text_rows);
    printf("\n");
    if (dit_has_captions(c) && run->options.run.dry_run && run->options.text.kind == TEXT_T5) {
        size_t encoders = caption_encoder_published_bytes(c->mmdit.text, c->mmdit.vector);
        printf("text           T5 with rows of %d values and CLIP with vectors of %d: %s of weights on top, beside the "
               "training, or none with -text_cache\n", c->mmdit.text, c->mmdit.vector, size_text(size[0], encoders));
    }
    latent_source_print_tokenizer(&run->source);
    if (c->clip > 0) printf("clipping       the gradient's norm is kept at or below %g\n", c->clip);
    else printf("clipping       none (by default: beyond %d steps without -qk_norm 1)\n", CLIP_FROM_STEPS);
    fflush(stdout); // what follows takes its time where the network is large
}

// What cannot be held is said before hours of work, and before a system ends the process for it.
static void check_memory(const dit_t* d) {
    int shares = d->config.zero ? (int)d->comm->size : 1;
    size_t weights = params_bytes(&d->params.table, dit_first_trained(d), 1, shares), left = device_memory_left();
    size_t needs = weights + plan_bytes(&d->plan) + plan_bytes(&d->work);
    char size[3][32];
    if (needs <= left) return;
    fatal("-model %s needs %s, of which weights and the optimiser's state are %s, and %s are left; give a smaller "
          "-batch, -recompute 1, several processes with -zero 1, or a smaller -model", dit_model_id(&d->config),
          size_text(size[0], needs), size_text(size[1], weights), size_text(size[2], left));
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

// Weights, averages, moments and latent statistics of a checkpoint, or what an exported file has of them. It must be of
// this network and text encoder.
static void read_state(run_t* run, const safetensors_t* file, const dit_info_t* info, const char* path) {
    const latent_source_t* l = &run->source;
    const char* encoder = l->text_encoder;
    if (strcmp(info->text_encoder, encoder)) {
        fatal("%s was trained with text encoder %s, and this is %s; give the same one", path,
              info->text_encoder[0] ? info->text_encoder : "(none: it reads classes)",
              encoder[0] ? encoder : "(none: -model reads classes)");
    }
    if (dit_is_exported(file)) dit_start(file, path, &run->dit);
    else dit_resume(file, info, path, &run->dit);
    checkpoint_read_vector(file, path, "latent.mean", l->mean, run->dit.C);
    checkpoint_read_vector(file, path, "latent.std", l->std, run->dit.C);
}

// Continues a run that was stopped. Returns 0 when there is none in the folder.
static int resume(run_t* run) {
    const char* path = run->checkpoint_path;
    if (!run_has_checkpoint(path, run->options.run.restart)) return 0;
    safetensors_t file;
    dit_info_t info = dit_open(&file, path);
    if (dit_is_exported(&file)) {
        fatal("%s was written by -export: it has no optimiser state to go on from; name it with -from, for a run in "
              "another -out that begins with its weights, or move it away", path);
    }
    run_check_config(&run->cli, info.config, path, run->options.run.change);
    if (strcmp(info.tokenizer, run->source.tokenizer)) {
        fatal("%s was trained on latents of tokenizer %s, those in -latents %s are of tokenizer %s; give the same "
              "latents, or another folder with -out",
              path, info.tokenizer[0] ? info.tokenizer : "(unknown)", run->options.latents,
              run->source.tokenizer[0] ? run->source.tokenizer : "(unknown)");
    }
    read_state(run, &file, &info, path);
    losses_read(run, info.losses);
    run->step = info.step;
    safetensors_close(&file);
    printf("resume         %s at step %lld\n", path, (long long)run->step);
    if (comm_is_first(&run->comm) && info.set && info.set != (int64_t)run->source.count) {
        warn("%s has learnt from %lld images, and these are %zu: from here on they come in another order", path,
             (long long)info.set, run->source.count);
    }
    return 1;
}

// -from: another run's state, or exported weights, are where this one begins, at its own step 0.
static int begin_from(run_t* run) {
    const char* path = run->options.from;
    safetensors_t file;
    if (!path[0]) return 0;
    dit_info_t info = dit_open(&file, path);
    if (strcmp(info.tokenizer, run->source.tokenizer)) {
        fatal("-from %s was trained on latents of tokenizer %s, those in -latents %s are of tokenizer %s; give latents "
              "of the same one", path, info.tokenizer, run->options.latents, run->source.tokenizer);
    }
    read_state(run, &file, &info, path);
    printf("from           %s at its step %lld%s\n", path, (long long)info.step,
           dit_is_exported(&file) ? ", the averaged weights alone" : "");
    safetensors_close(&file);
    return 1;
}

static void set_up(run_t* run) {
    dit_options_t* o = &run->options;
    dit_t* d = &run->dit;
    if (!run->source.with_captions) latent_source_open_classes(&run->source);
    check_memory(d);
    dit_allocate(d);
    char error[1200];
    if (comm_is_first(&run->comm) && !run_try_folder(o->run.out, dit_file_bytes(d), error, sizeof error)) {
        fatal("%s", error);
    }
    if (!resume(run) && !begin_from(run)) {
        latent_source_measure(&run->source);
        dit_init(d);
    }
    dit_set_tables(d);
    run_check_same_start(&run->comm, run->step, o->run.out);
    algorithms_open(o->run.out, &run->comm, run->stream);
    dit_grid_open(&run->grid, o, d, &run->source, run->stream);
    run->measures = (floatS*)host_malloc(dit_measure_count(d) * sizeof(floatS), "measures");
}

// ---------------------------------------------------------------------------------------------------------------------
// What is watched and written

// Ends the run with the first tensor, in the order of the computation, that holds a number that is not finite, or with
// the caption whose text does.
static void stop_on_nan(run_t* run, const dit_report_t* r) {
    if (isfinite(r->mse) && isfinite(r->cosine) && isfinite(r->norm)) return;
    char name[200] = "the measures", way[1400];
    size_t where = 0;
    latent_source_check(&run->source);
    dit_find_not_finite(&run->dit, name, sizeof name, &where);
    fatal("step %lld: NaN or infinity in %s (element %zu). The weights were not changed by this step. %s",
          (long long)run->step + 1, name, where,
          run_way_back(run->checkpoint_path, "a lower -lr, -clip 1 or, from the start, -qk_norm 1", way, sizeof way));
}

// Is this step to be skipped?
static int guard_skips(run_t* run, double loss, double norm) {
    guard_t* g = &run->guard;
    const dit_options_t* o = &run->options;
    char way[1400];
    int far = o->guard > 0 && g->steps >= GUARD_FROM && loss > o->guard * g->mean;
    int steep = o->skip_norm > 0 && run->step >= o->warmup && norm > o->skip_norm;
    if (far || steep) {
        g->skipped++;
        if (++g->in_a_row < GUARD_GIVES_UP) return 1;
        fatal("step %lld: %d steps, one behind the other, were skipped for a loss of more than %g times its running "
              "mean %g (-guard), or a gradient's norm above %g (-skip_norm); the last had %g and %g. %s",
              (long long)run->step + 1, GUARD_GIVES_UP, o->guard, g->mean, o->skip_norm, loss, norm,
              run_way_back(run->checkpoint_path, "a lower -lr, or -guard 0 -skip_norm 0 to take such steps", way,
                           sizeof way));
    }
    g->in_a_row = 0;
    g->steps++;
    g->mean += (loss - g->mean) / (double)(g->steps < GUARD_WINDOW ? g->steps : (int64_t)GUARD_WINDOW);
    return 0;
}

static void save(run_t* run) {
    const dit_options_t* o = &run->options;
    const latent_source_t* l = &run->source;
    char losses[400], error[1024], written[64];
    const params_t* tables[1] = {&run->dit.params};
    replicas_check_same(tables, 1, &run->comm, run->step);
    dit_info_t info = {run->step, run->step * o->batch, 0, (int64_t)l->count, l->tokenizer,
                       losses_text(run, losses, sizeof losses), run->config_json, l->class_names, l->text_encoder,
                       l->text};
    algorithms_save(o->run.out, &run->comm, run->stream);
    double start = clock_seconds();
    if (!dit_save(run->checkpoint_path, &run->dit, &info, l->mean, l->std, error, sizeof error, run->stream)) {
        fatal("%s. The run ends at step %lld; the same command will go on from the last checkpoint, or begin where "
              "there is none", error, (long long)run->step);
    }
    printf("saved          %s at step %lld: %s\n", run->checkpoint_path, (long long)run->step,
           run_written(written, run->checkpoint_path, start));
    fflush(stdout);
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

// What is due after a step. A run that is to stop saves at once; behind the last step the picture is still made.
static void after_step(run_t* run, int stop) {
    const dit_options_t* o = &run->options;
    if (comm_is_first(&run->comm) && is_due(run->step, o->run.log_every, run->steps)) {
        dit_status_print(&run->status, run->step, run->steps, run->step * o->batch, o->batch,
                         run->source.ring->seconds_waited);
    }
    if (stop || is_due(run->step, o->run.save_every, run->steps)) save(run);
    if ((!stop || run->step == run->steps) && is_due(run->step, o->run.grid_every, run->steps)) {
        dit_grid_write(&run->grid, run->step, run->config_json);
    }
    if (comm_is_first(&run->comm) && status_waits(&run->status.line)) {
        latent_source_warn(&run->source, run->status.line.wait);
    }
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
    int64_t first = run->step;
    latent_source_start(&run->source, first);
    while (run->step < run->steps && !stop) {
        latent_source_next(&run->source, d, run->stream);
        algorithms_step(run->stream, 1);
        dit_gradients(d, run->step, run->stream);
        algorithms_step(run->stream, 0);
        dit_report_t report = dit_read(d, run->measures, run->stream);
        stop_on_nan(run, &report); // the process in which a number went wrong finds it first, and names the tensor
        stop = share_report(run, &report, stop_signal != 0);
        stop_on_nan(run, &report);
        if (!guard_skips(run, report.mse + o->w_cos * report.cosine, report.norm)) {
            dit_update(d, run->step, report.norm, run->stream);
        }
        run->step++;
        run->status.skipped = run->guard.skipped;
        dit_status_add(&run->status, &report);
        after_step(run, stop);
        if (run->step == first + 1) latent_source_print_speed(&run->source);
    }
    latent_source_stop(&run->source);
    if (talks) status_close(&run->status.line);
    return run_was_stopped(run->step, run->steps);
}

// -extract 1: images become latents. -extract_text 1: captions become rows.
static void extract(run_t* run) {
    const dit_options_t* o = &run->options;
    if (o->extract_text && run->comm.size > 1) fatal("-extract_text 1 is the work of one process; start it alone");
    comm_options_end();
    if (o->extract_text) caption_data_extract_text(o, run->stream);
    if (o->extract) latent_source_extract(&run->source, run->stream);
}

// Trains to the last step, or until it is stopped; -dry_run says what that would need and cost. Returns the exit code.
static int plan_and_train(run_t* run) {
    const dit_options_t* o = &run->options;
    dit_config_t config = dit_options_config(o, run->comm.size);
    if (run->source.with_captions && !o->run.dry_run) {
        dit_grid_choose_prompts(&run->grid, o->grid_prompts);
        latent_source_open_captions(&run->source, &config, 1 + run->grid.rows);
    }
    dit_register(&run->dit, config);
    run->dit.comm = &run->comm;
    dit_plan(&run->dit);
    run->steps = o->steps;
    run->config_json = cli_to_json(&run->cli);
    print_plan(run);
    if (o->run.dry_run) return 0;
    set_up(run);
    comm_options_end();
    run_catch_signals();
    if (run->step < run->steps) return run_exit_code(train(run));
    printf("training is complete (%lld steps); -restart 1 trains again, a larger -steps goes on\n",
           (long long)run->step);
    return 0;
}

int main(int argc, char** argv) {
    static run_t run; // tables of a megabyte: not for the stack
    dit_options_t* o = &run.options;
    comm_options_begin(&run.comm);
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
    latent_source_choose(&run.source, o, &run.cli, &run.comm);
    int there = latent_source_is_there(&run.source), extracts = o->extract || o->extract_text, code = 0;
    if (!o->run.dry_run) check_needs(&run);
    if (!extracts && (there || !o->run.dry_run)) take_shape(&run); // else the flags say it
    cli_print_configuration(&run.cli, stdout);
    if (!o->run.dry_run) {
        run.stream = device_open(run.comm.local_rank);
        comm_attach(&run.comm, run.stream);
    }
    if (extracts && !o->run.dry_run) extract(&run);
    else code = plan_and_train(&run);
    comm_close(&run.comm);
    if (!o->run.dry_run) device_close(run.stream);
    return code;
}
