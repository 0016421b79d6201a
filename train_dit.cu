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
// defines: dit_options_t, dit_options_parse, dit_options_config, dit_options_captions, dit_options_encodes
#include "common/training/dit_options.h"
// defines: dit_t, dit_gradients, dit_read, dit_update
#include "common/training/dit.h"
// defines: dit_save, dit_resume, dit_start, dit_is_exported, dit_export
#include "common/training/dit_checkpoint.h"
// defines: dit_sampler_t, dit_sampler_open, dit_sampler_open_captions, dit_sampler_show, dit_sampler_draw
#include "common/drawing/dit_sampler.h"
// defines: dit_status_t, dit_status_print
#include "common/training/status.h"
// defines: extract_latents, extract_options_t, extract_class_names
#include "common/drawing/extract.h"
// defines: image_latents_t, image_latents_describe, _open, _start, _encode, _stop
#include "common/drawing/image_latents.h"
// defines: class_names_t, class_names_read
#include "common/drawing/class_names.h"
// defines: caption_data_t, caption_data_open_set, _open_latents, _open_text, _start, _next, _extract_text
#include "common/training/caption_data.h"
// defines: latents_t, latents_are_there, latents_shape, latents_open, latents_statistics
#include "common/data/latents.h"
// defines: latent_loader_t, latent_loader_next
#include "common/data/latent_loader.h"
// defines: row_picture_t, row_picture_add, row_picture_centre, row_picture_page; image_write_png
#include "common/data/row_picture.h"
// defines: needs_t, needs_add, needs_images, needs_or_else, needs_check
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
    int with_captions;             // text to image: one of the two
    latents_t latents;             // where images are encoded, only what describes them
    latent_loader_t loader;
    caption_data_t captions;
    int encodes;                   // -latents none: images are encoded beside the training
    dataset_t images;              // then, of classes
    image_latents_t beside;
    autoencoder_t tokenizer;       // for the pictures, of the first process
    dit_sampler_t sampler;
    int draws;                     // there are pictures
    class_names_t names;
    int rows;                      // of a picture: classes or prompts
    int classes[GRID_ROWS];
    char* prompts[1 + GRID_ROWS];  // the first is the empty one
    text_batch_t prompt_rows;
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

// What is encoded by what, so many images at once: by -extract 1, or beside the training. `set`: images with captions.
static extract_options_t extraction(const run_t* run, const dataset_t* set, int batch) {
    const dit_options_t* o = &run->options;
    int threads = o->run.workers > 0 ? o->run.workers : machine_cores(run->comm.local_size);
    extract_options_t e = {o->data, o->tokenizer, o->latents, (autoencoder_weights_t)o->tokenizer_weights, o->images,
                           o->shard_images, threads, batch, set, o->image_size, o->buckets == BUCKETS_AREA, o->aspect};
    return e;
}

// The same beside the training, of at most a step's images.
static extract_options_t extraction_beside(const run_t* run, const dataset_t* set) {
    int B = run->options.batch / (int)run->comm.size;
    return extraction(run, set, B && B < run->options.extract_batch ? B : run->options.extract_batch);
}

// The shape of latents that the tokenizer will make, and the classes of the images.
static latents_shape_t describe_images(run_t* run) {
    const dit_options_t* o = &run->options;
    extract_options_t e = extraction_beside(run, NULL);
    image_latents_describe(&run->beside, &e, run->with_captions);
    if (!run->with_captions && !o->run.dry_run) dataset_open(&run->images, o->data, SPLIT_TRAIN);
    latents_shape_t shape = {run->beside.tokenizer.z, run->beside.tokenizer.GH, run->images.class_count};
    return shape;
}

// Takes the latents' shape and number of classes from where they come; flags that say otherwise end the program.
static void take_shape(run_t* run) {
    dit_options_t* o = &run->options;
    latents_shape_t shape = run->encodes ? describe_images(run) : latents_shape(o->latents);
    const struct { const char* flag; int* place; int value; } told[3] = {
        {"z_channels", &o->z_channels, shape.C}, {"latent_side", &o->latent_side, shape.side},
        {"classes", &o->classes, o->uncond ? 0 : shape.classes}};
    for (int i = 0; i < (run->with_captions ? 1 : 3); i++) { // latents with captions have many sizes
        if (told[i].value <= 0 || cli_take_from_data(&run->cli, told[i].flag, told[i].value)) continue;
        fatal("-%s %d, but %s %s have %d; leave the flag out, or give the right latents", told[i].flag, *told[i].place,
              run->encodes ? "the images encoded by -tokenizer" : "the shards in -latents",
              run->encodes ? o->tokenizer : o->latents, told[i].value);
    }
    if (run->with_captions) return;
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
    int mini = !strcmp(o->run.preset, "mini"), mini_t2i = !strcmp(o->run.preset, "t2i_mini");
    if (mini_t2i) needs_or_else(&run->cli, "tokenizer", &o->tokenizer, "miniature/t2i_tokenizer.safetensors");
    if (mini) needs_or_else(&run->cli, "tokenizer", &o->tokenizer, "miniature/tokenizer.safetensors");
    int no_latents = !o->extract && !o->extract_text && !run->encodes && !latents_are_there(o->latents);
    int encodes = o->extract || (run->encodes && !o->extract_text);
    if (no_latents) needs_add(&needs, "-latents %s: there are no shards of latents (*.safetensors) in it", o->latents);
    if ((encodes || (no_latents && !mini && !mini_t2i)) && o->tokenizer[0]) {
        needs_file(&needs, "tokenizer", o->tokenizer, "train_tokenizer makes it");
    }
    if (encodes && !o->tokenizer[0]) {
        needs_add(&needs, "-%s needs a tokenizer: give its checkpoint with -tokenizer",
                  o->extract ? "extract 1" : "latents none");
    }
    int reads_data = encodes || o->extract_text || run->with_captions;
    if (reads_data && !o->data[0]) needs_add(&needs, "images are needed: give their folder with -data");
    if (reads_data && o->data[0]) needs_images(&needs, o->data);
    if (o->extract_text && !o->text_cache[0]) {
        needs_add(&needs, "-extract_text 1 needs a file to write: name it with -text_cache");
    } else if (o->text_cache[0] && !o->extract_text && !o->extract && access(o->text_cache, R_OK)) {
        needs_add(&needs, "-text_cache %s: there is no such file; -extract_text 1 makes it", o->text_cache);
    }
    int begins = !o->extract && !o->extract_text && access(run->checkpoint_path, F_OK); // else it resumes
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

// The tokenizer that encodes beside the training takes memory of its own.
static void print_tokenizer(const run_t* run) {
    const autoencoder_t* a = &run->beside.tokenizer;
    char size[2][32];
    if (!a->path) { // a dry run without it
        printf("tokenizer      none at -tokenizer %s: what encodes beside the training takes memory on top\n",
               run->options.tokenizer);
        return;
    }
    printf("tokenizer      %s: encodes %d images at once beside the training, in %s of weights and %s of activations "
           "on top\n", a->path, a->batch, size_text(size[0], a->params.table.total * sizeof(floatX)),
           size_text(size[1], autoencoder_plan_bytes(a)));
}

static void print_plan(const run_t* run) {
    const dit_t* d = &run->dit;
    const dit_config_t* c = &d->config;
    const param_table_t* table = &d->params.table;
    size_t first = dit_first_trained(d);
    int shares = c->zero && d->comm ? d->comm->size : 1, images = c->batch * (d->comm ? d->comm->size : 1);
    char size[4][32];
    if (run->with_captions) {
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
    if (run->with_captions) printf(", of %d x %d positions and captions of %d rows", d->h, d->w, c->text_rows);
    printf("\n");
    if (run->with_captions && run->options.run.dry_run && run->options.text.kind == TEXT_T5) {
        size_t encoders = caption_encoder_published_bytes(c->mmdit.text, c->mmdit.vector);
        printf("text           T5 with rows of %d values and CLIP with vectors of %d: %s of weights on top, beside the "
               "training, or none with -text_cache\n", c->mmdit.text, c->mmdit.vector, size_text(size[0], encoders));
    }
    if (run->encodes) print_tokenizer(run);
    if (c->clip > 0) printf("clipping       the gradient's norm is kept at or below %g\n", c->clip);
    else printf("clipping       none (by default: beyond %d steps without -qk_norm 1)\n", CLIP_FROM_STEPS);
    fflush(stdout); // what follows takes its time where the network is large
}

// Where the text encoder runs beside the training, its memory comes on top.
static void print_text(const run_t* run) {
    const caption_encoder_t* e = &run->captions.encoder;
    char size[2][32];
    printf("text           %s\n", run->captions.text_encoder);
    if (run->captions.cached || e->words) return;
    printf("               beside the training, in %s of weights and %s of activations\n",
           size_text(size[0], e->params.table.total * sizeof(floatX)), size_text(size[1], plan_bytes(&e->plan)));
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
    const char* encoder = run->with_captions ? run->captions.text_encoder : "";
    if (strcmp(info->text_encoder, encoder)) {
        fatal("%s was trained with text encoder %s, and this is %s; give the same one", path,
              info->text_encoder[0] ? info->text_encoder : "(none: it reads classes)",
              encoder[0] ? encoder : "(none: -model reads classes)");
    }
    if (dit_is_exported(file)) dit_start(file, path, &run->dit);
    else dit_resume(file, info, path, &run->dit);
    checkpoint_read_vector(file, path, "latent.mean", run->latent_mean, run->dit.C);
    checkpoint_read_vector(file, path, "latent.std", run->latent_std, run->dit.C);
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
    if (strcmp(info.tokenizer, run->tokenizer_name)) {
        fatal("%s was trained on latents of tokenizer %s, those in -latents %s are of tokenizer %s; give the same "
              "latents, or another folder with -out",
              path, info.tokenizer[0] ? info.tokenizer : "(unknown)", run->options.latents,
              run->tokenizer_name[0] ? run->tokenizer_name : "(unknown)");
    }
    read_state(run, &file, &info, path);
    losses_read(run, info.losses);
    run->step = info.step;
    safetensors_close(&file);
    printf("resume         %s at step %lld\n", path, (long long)run->step);
    return 1;
}

// -from: another run's state, or exported weights, are where this one begins, at its own step 0.
static int begin_from(run_t* run) {
    const char* path = run->options.from;
    safetensors_t file;
    if (!path[0]) return 0;
    dit_info_t info = dit_open(&file, path);
    if (strcmp(info.tokenizer, run->tokenizer_name)) {
        fatal("-from %s was trained on latents of tokenizer %s, those in -latents %s are of tokenizer %s; give latents "
              "of the same one", path, info.tokenizer, run->options.latents, run->tokenizer_name);
    }
    read_state(run, &file, &info, path);
    printf("from           %s at its step %lld%s\n", path, (long long)info.step,
           dit_is_exported(&file) ? ", the averaged weights alone" : "");
    safetensors_close(&file);
    return 1;
}

// The classes of the picture's rows.
static void choose_classes(run_t* run) {
    const dit_options_t* o = &run->options;
    run->rows = o->classes < GRID_ROWS ? o->classes : GRID_ROWS;
    for (int i = 0; i < run->rows; i++) run->classes[i] = i;
    if (o->uncond || !strcmp(o->grid_classes, "all")) return;
    char list[1024];
    snprintf(list, sizeof list, "%s", o->grid_classes);
    run->rows = 0;
    for (char* at = strtok(list, ","); at && run->rows < GRID_ROWS; at = strtok(NULL, ",")) {
        char* end;
        long value = strtol(at, &end, 10);
        if (end == at || *end || value < 0 || value >= o->classes) {
            fatal("-grid_classes %s: %s is no class; they are 0 to %d", o->grid_classes, at, o->classes - 1);
        }
        run->classes[run->rows++] = (int)value;
    }
}

// The prompts of the picture's rows, as -grid_prompts names them, behind the empty one.
static void choose_prompts(run_t* run) {
    const char* at = run->options.grid_prompts;
    run->prompts[0] = string_copy("");
    while (*at && run->rows < GRID_ROWS) {
        size_t length = strcspn(at, "|");
        char* prompt = string_copy(at);
        prompt[length] = 0;
        run->prompts[++run->rows] = prompt;
        at += length + (at[length] == '|');
    }
}

// The prompts as text rows, by the encoder that runs beside the training, or by one for them alone. 0: there is none.
static int encode_prompts(run_t* run) {
    static caption_encoder_t own;
    const dit_options_t* o = &run->options;
    const caption_data_t* data = &run->captions;
    caption_encoder_t* e = data->cached ? &own : &run->captions.encoder;
    text_batch_t made, *kept = &run->prompt_rows;
    if (data->cached && o->text.kind == TEXT_T5 && !o->text.t5[0]) {
        warn("no -t5, which would encode -grid_prompts: no pictures of samples are drawn");
        return 0;
    }
    if (data->cached) caption_encoder_open(&own, &o->text, 1 + run->rows);
    if (strcmp(e->name, data->text_encoder)) {
        fatal("-text_cache %s was made by text encoder %s, and this is %s; give that one", o->text_cache,
              data->text_encoder, e->name);
    }
    caption_encoder_batch(e, (const char* const*)run->prompts, 1 + run->rows, &made, run->stream);
    size_t rows = (size_t)made.B * made.L * e->dt * sizeof(floatX), vectors = (size_t)made.B * e->dv * sizeof(floatX);
    *kept = made;
    kept->rows = (floatX*)device_malloc(rows, "the prompts of pictures");
    kept->first = (int*)device_malloc(made.B * sizeof(int), "the prompts of pictures");
    kept->pooled = e->dv ? (floatX*)device_malloc(vectors, "the prompts of pictures") : NULL;
    copy_on_device(kept->rows, made.rows, rows, run->stream);
    copy_on_device(kept->first, made.first, made.B * sizeof(int), run->stream);
    if (e->dv) copy_on_device(kept->pooled, made.pooled, vectors, run->stream);
    stream_wait(run->stream);
    if (data->cached) caption_encoder_close(&own);
    return 1;
}

// The tokenizer decodes the pictures; it must be the one that made the latents.
static void open_pictures(run_t* run) {
    const dit_options_t* o = &run->options;
    dit_t* d = &run->dit;
    if (!comm_is_first(&run->comm)) return;
    if (!o->tokenizer[0] || access(o->tokenizer, R_OK)) {
        warn("%s%s: no pictures of samples are drawn",
             o->tokenizer[0] ? "no tokenizer at -tokenizer " : "no -tokenizer", o->tokenizer);
        return;
    }
    if (run->with_captions && (!run->rows || !encode_prompts(run))) return;
    int tokens = run->with_captions ? d->mmdit.text_rows + d->mmdit.image_rows : lightningdit_tokens(&d->config.net);
    dit_sampler_options_t s = {FLOW_EULER, o->sample_steps, o->sample_shift,
                               {o->cfg, o->cfg_start, o->cfg_channels, run->with_captions},
                               d->config.batch / 2 > 1 ? d->config.batch / 2 : 1, o->run.seed, PREDICTS_VELOCITY,
                               DDPM_ANCESTRAL, 0};
    autoencoder_open(&run->tokenizer, o->tokenizer, (autoencoder_weights_t)o->tokenizer_weights,
                     dit_sampler_batch(s.batch, tokens), 0, 1);
    if (run->tokenizer_name[0] && strcmp(run->tokenizer_name, run->tokenizer.fingerprint)) {
        fatal("-tokenizer %s has fingerprint %s (weights: %s), the latents in %s were made by %s; give the tokenizer "
              "that made them, or its weights with -tokenizer_weights", o->tokenizer, run->tokenizer.fingerprint,
              run->tokenizer.weights, o->latents, run->tokenizer_name);
    }
    if (o->uncond) s.guidance.w = 1;
    if (run->with_captions) {
        dit_sampler_open_captions(&run->sampler, &d->mmdit, &d->params, &run->tokenizer, run->latent_mean,
                                  run->latent_std, s);
    } else {
        choose_classes(run);
        dit_sampler_open(&run->sampler, &d->net, &d->params, &run->tokenizer, run->latent_mean, run->latent_std, s);
    }
    run->draws = 1;
}

// Opens images that are encoded beside the training: those of classes, or, where it is given, a set with captions.
static void open_images(run_t* run, const dataset_t* with_captions) {
    extract_options_t e = extraction_beside(run, with_captions);
    image_latents_open(&run->beside, &e, with_captions ? with_captions : &run->images,
                       run->options.batch / (int)run->comm.size, &run->comm);
}

// Where latents come from, for status lines.
static const char* latents_name(const run_t* run) {
    return run->encodes ? "encoded beside the training" : run->options.latents;
}

// What describes the latents that images of classes will have.
static void open_latents_of_images(run_t* run) {
    latents_t* l = &run->latents;
    open_images(run, NULL);
    l->count = run->beside.sizes.images;
    l->side = run->beside.tokenizer.GH;
    l->C = run->beside.tokenizer.z;
    l->tokenizer = run->beside.tokenizer.fingerprint;
    l->class_names = extract_class_names(&run->images);
}

// Are latents of classes those of the images that the command line names? Training needs no images: a preset's -data is
// not asked, and neither are images that are gone.
static void check_images(run_t* run) {
    const char* data = run->options.data;
    needs_t gone = {{NULL, 0, 0}, 0};
    dataset_t set;
    if (!comm_is_first(&run->comm) || cli_source(&run->cli, "data") != CLI_FROM_COMMAND_LINE || !data[0]) return;
    needs_images(&gone, data);
    json_text_free(&gone.list);
    if (gone.count) return;
    dataset_open(&set, data, SPLIT_TRAIN);
    latent_files_check_images(run->latents.files, run->latents.n_files, &set);
    dataset_close(&set);
}

// Opens latents of classes, and names the classes.
static void open_latents(run_t* run) {
    const dit_options_t* o = &run->options;
    int C = run->dit.C;
    if (run->encodes) {
        open_latents_of_images(run);
    } else {
        latents_open(&run->latents, o->latents, C, run->dit.config.net.side, o->uncond ? 0 : o->classes);
        check_images(run);
    }
    snprintf(run->tokenizer_name, sizeof run->tokenizer_name, "%s", run->latents.tokenizer);
    printf("latents        %s: %zu of %d x %d with %d channels, %d classes%s%s\n", latents_name(run),
           run->latents.count, run->latents.side, run->latents.side, C, o->classes,
           run->tokenizer_name[0] ? ", of tokenizer " : "", run->tokenizer_name);
    class_names_read(&run->names, o->uncond ? "" : run->latents.class_names, o->classes, 0);
}

// Opens what text to image reads, and takes the latents' largest size and the text's widths from it.
static void open_captions(run_t* run, dit_config_t* config) {
    const dit_options_t* o = &run->options;
    caption_data_t* data = &run->captions;
    choose_prompts(run);
    caption_data_open_set(&data->set, o);
    if (run->encodes) {
        const autoencoder_t* a = &run->beside.tokenizer;
        open_images(run, &data->set);
        bucket_latents_open_sizes(&data->latents, &run->beside.sizes, autoencoder_factor(a), a->z, a->fingerprint);
    } else {
        caption_data_open_latents(data, o, o->z_channels);
    }
    caption_data_open_text(data, o, config->batch > 1 + run->rows ? config->batch : 1 + run->rows);
    const aspect_t* sizes = &data->latents.sizes;
    const aspect_bucket_t* largest = aspect_largest(sizes);
    config->mmdit.h = largest->H;
    config->mmdit.w = largest->W;
    config->mmdit.text = data->dt;
    config->mmdit.vector = data->dv;
    snprintf(run->tokenizer_name, sizeof run->tokenizer_name, "%s", data->latents.tokenizer);
    printf("latents        %s: %zu of %d sizes up to %d x %d with %d channels, of tokenizer %s\n", latents_name(run),
           sizes->images, sizes->count, largest->H, largest->W, o->z_channels, run->tokenizer_name);
    print_text(run);
}

// The statistics that images are encoded with: those that the tokenizer's training has measured.
static void take_statistics(run_t* run) {
    const autoencoder_t* a = &run->beside.tokenizer;
    int good = a->statistics;
    for (int c = 0; c < a->z; c++) {
        run->latent_mean[c] = a->mean[c];
        run->latent_std[c] = a->std[c];
        good = good && isfinite((double)a->mean[c]) && isfinite((double)a->std[c]) && a->std[c] > 0;
    }
    if (good) return;
    fatal("-latents none: tokenizer %s tells no mean and deviation of its latents, by which training normalises them; "
          "begin with those of a checkpoint (-from), or measure them: latents of -extract 1 in -latents FOLDER",
          a->path);
}

static void measure_latents(run_t* run) {
    const dit_options_t* o = &run->options;
    if (run->encodes) {
        take_statistics(run);
    } else if (run->with_captions) {
        bucket_latents_statistics(&run->captions.latents, o->run.seed, (size_t)o->stats_images, run->latent_mean,
                                  run->latent_std);
    } else {
        latents_statistics(&run->latents, o->run.seed, o->stats_images, run->latent_mean, run->latent_std);
    }
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

static void set_up(run_t* run) {
    dit_options_t* o = &run->options;
    dit_t* d = &run->dit;
    int C = d->C;
    if (!run->with_captions) open_latents(run);
    run->latent_mean = (floatS*)calloc_check(2 * C, sizeof(floatS), "latent statistics");
    run->latent_std = run->latent_mean + C;
    check_memory(d);
    dit_allocate(d);
    char error[1200];
    if (comm_is_first(&run->comm) && !run_try_folder(o->run.out, dit_file_bytes(d), error, sizeof error)) {
        fatal("%s", error);
    }
    if (!resume(run) && !begin_from(run)) {
        measure_latents(run);
        dit_init(d);
    }
    dit_set_tables(d);
    run_check_same_start(&run->comm, run->step, o->run.out);
    algorithms_open(o->run.out, &run->comm, run->stream);
    open_pictures(run);
    run->measures = (floatS*)host_malloc(dit_measure_count(d) * sizeof(floatS), "measures");
}

// ---------------------------------------------------------------------------------------------------------------------
// Pictures and files

// The size of the picture's cells: the largest height and width of what is drawn.
static void cell_size(const run_t* run, int* H, int* W) {
    *H = run->tokenizer.H;
    *W = run->tokenizer.W;
    if (!run->with_captions) return;
    const aspect_t* sizes = &run->captions.latents.sizes;
    int factor = autoencoder_factor(&run->tokenizer);
    *H = *W = 0;
    for (int k = 0; k < sizes->count && k < run->rows; k++) {
        if (sizes->buckets[k].H * factor > *H) *H = sizes->buckets[k].H * factor;
        if (sizes->buckets[k].W * factor > *W) *W = sizes->buckets[k].W * factor;
    }
}

// Draws `columns` samples of each class or prompt into one half of its row, from the place `offset` on: 0 or `columns`.
// Prompts take turns with the sizes of the latents. Says how far it is if that takes long. 0 where a sample is none (a
// NaN, an infinity).
static int draw_half(run_t* run, row_picture_t* picture, int columns, int offset) {
    size_t cell = (size_t)picture->H * picture->W * 3;
    uint8_t* made = (uint8_t*)malloc_check(columns * cell, "a row of samples");
    uint64_t* numbers = (uint64_t*)malloc_check(columns * sizeof(uint64_t), "a row of samples");
    int* labels = (int*)malloc_check(columns * sizeof(int), "a row of samples");
    double said = clock_seconds();
    int good = 1;
    for (int r = 0; r < picture->rows && good; r++) {
        for (int c = 0; c < columns; c++) {
            numbers[c] = (uint64_t)r * columns + c;
            labels[c] = run->with_captions ? 1 + r : run->classes[r];
        }
        if (run->with_captions) {
            const aspect_t* sizes = &run->captions.latents.sizes;
            const aspect_bucket_t* b = &sizes->buckets[r % sizes->count];
            dit_sampler_show(&run->sampler, &run->prompt_rows, b->H, b->W);
        }
        good = dit_sampler_draw(&run->sampler, made, numbers, labels, columns, run->stream) == columns;
        uint8_t* at = picture->cells + ((size_t)r * 2 * columns + offset) * cell;
        for (int c = 0; c < columns; c++) {
            row_picture_centre(at + c * cell, picture->H, picture->W,
                               made + c * autoencoder_image_values(&run->tokenizer), run->tokenizer.H,
                               run->tokenizer.W);
        }
        if (clock_seconds() - said < 10) continue;
        said = clock_seconds();
        printf("drawing        row %d of %d with the %s weights\n", r + 1, picture->rows, offset ? "averaged" : "raw");
        fflush(stdout);
    }
    free(made);
    free(numbers);
    free(labels);
    return good;
}

// dit_STEP.png. All processes exchange the weights with their average; the first one draws.
static void write_grid(run_t* run) {
    const dit_options_t* o = &run->options;
    int columns = o->grid_columns, good = 1, H, W;
    row_picture_t picture;
    if (run->draws) {
        cell_size(run, &H, &W);
        row_picture_open(&picture, 2 * columns, H, W);
        picture.halves[0] = "raw weights";
        picture.halves[1] = "averaged, the same noise";
        for (int r = 0; r < run->rows; r++) {
            char name[80];
            if (run->with_captions) snprintf(name, sizeof name, "%s", run->prompts[1 + r]);
            else snprintf(name, sizeof name, "%d %s", run->classes[r], class_name(&run->names, run->classes[r]));
            row_picture_add(&picture, name);
        }
        good = draw_half(run, &picture, columns, 0);
    }
    replicas_exchange_ema(&run->dit.params, 0, &run->comm, run->stream);
    if (run->draws) good &= draw_half(run, &picture, columns, columns);
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
    image_text_t texts[4] = {{"Rows", run->with_captions ? "one prompt each; left half: raw weights, right half: "
                                                           "averaged, same noise"
                                                         : "one class each; left half: raw weights, right half: "
                                                           "averaged, same noise"},
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
                       o->uncond || run->with_captions ? "" : run->latents.class_names,
                       run->with_captions ? run->captions.text_encoder : "",
                       run->with_captions ? run->captions.text : ""};
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

// Returns the batch's images where they are yet to be encoded, or NULL.
static const batch_t* take_batch(dit_t* d, const latent_batch_t* batch, stream_t s) {
    size_t B = (size_t)d->config.batch;
    if (!batch->images) copy_to_device(d->x1, batch->x1, B * d->n * sizeof(floatS), s);
    copy_to_device(d->t, batch->t, B * sizeof(floatS), s);
    copy_to_device(d->labels, batch->labels, B * sizeof(int), s);
    return batch->images;
}

// The next step's batch, into the dit_t.
static void next_batch(run_t* run) {
    dit_t* d = &run->dit;
    const batch_t* images = run->with_captions ? caption_data_next(&run->captions, d, run->stream)
                                               : take_batch(d, latent_loader_next(&run->loader), run->stream);
    if (!images) return;
    const floatS* x1 = image_latents_encode(&run->beside, images, run->latent_mean, run->latent_std, run->stream);
    copy_to_device(d->x1, x1, d->config.batch * d->n * sizeof(floatS), run->stream);
}

// Batches from here on are prepared ahead. Returns the ring that they lie in.
static const batch_ring_t* open_loader(run_t* run) {
    const dit_options_t* o = &run->options;
    const comm_t* c = &run->comm;
    dataloader_t* images = run->encodes ? &run->beside.loader : NULL;
    if (run->encodes) {
        image_latents_start(&run->beside, o->batch, o->flip, run_options_workers(&o->run, c->local_size), o->run.seed,
                            c, (uint64_t)run->step);
    }
    if (run->with_captions) {
        bucket_loader_options_t options = {o->batch, c->rank, c->size, o->run.workers, o->run.seed, run->latent_mean,
                                           run->latent_std, o->label_drop, o->text.length, images};
        caption_data_start(&run->captions, &options, (uint64_t)run->step);
        return &run->captions.loader.ring;
    }
    latent_loader_options_t options = {o->batch, c->rank, c->size, o->run.workers, o->run.seed, o->flip,
                                       run->latent_mean, run->latent_std, 1.0, o->label_drop, o->uncond,
                                       o->classes, (uint64_t)o->uniform_from, o->shuffle_labels, images};
    latent_loader_open(&run->loader, &run->latents, &options, (uint64_t)run->step);
    return &run->loader.ring;
}

static void close_loader(run_t* run) {
    if (run->with_captions) bucket_loader_close(&run->captions.loader);
    else latent_loader_close(&run->loader);
    if (run->encodes) image_latents_stop(&run->beside);
}

// Says that the latents, or images, come too slowly.
static void watch_loader(run_t* run) {
    if (!comm_is_first(&run->comm) || !status_waits(&run->status.line)) return;
    if (run->encodes) {
        warn("training waits for images %.0f%% of the time: %.0f a second can be read. Give more -workers, or put "
             "smaller images on a faster disk", 100 * run->status.line.wait, dataloader_speed(&run->beside.loader));
        return;
    }
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
    const batch_ring_t* ring = open_loader(run);
    while (run->step < run->steps && !stop) {
        next_batch(run);
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
        after_step(run, stop, ring->seconds_waited);
        watch_loader(run);
    }
    close_loader(run);
    if (talks) status_close(&run->status.line);
    return run_was_stopped(run->step, run->steps);
}

// -extract 1: images become latents. -extract_text 1: captions become rows.
static int extract(run_t* run) {
    const dit_options_t* o = &run->options;
    dataset_t set;
    if (o->extract_text && run->comm.size > 1) fatal("-extract_text 1 is the work of one process; start it alone");
    if (o->extract_text) caption_data_extract_text(o, run->stream);
    if (!o->extract) return 0;
    if (run->with_captions) caption_data_open_set(&set, o);
    extract_options_t e = extraction(run, run->with_captions ? &set : NULL, o->extract_batch);
    extract_latents(&e, &run->comm, run->stream);
    if (run->with_captions) dataset_close(&set);
    return 0;
}

// Trains to the last step, or until it is stopped; the exit code.
static int train_or_say(run_t* run) {
    set_up(run);
    run_catch_signals();
    if (run->step < run->steps) return run_exit_code(train(run));
    printf("training is complete (%lld steps); -restart 1 trains again, a larger -steps goes on\n",
           (long long)run->step);
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
    run.with_captions = dit_options_captions(o);
    run.encodes = dit_options_encodes(o);
    int there = run.encodes ? !access(o->tokenizer, R_OK) : latents_are_there(o->latents);
    int untold = o->run.dry_run && !there; // then the flags say the shape
    int extracts = o->extract || o->extract_text;
    if (!o->run.dry_run) check_needs(&run);
    if (!extracts && !untold) take_shape(&run);
    cli_print_configuration(&run.cli, stdout);
    if (!o->run.dry_run) {
        run.stream = device_open(run.comm.local_rank);
        comm_attach(&run.comm, run.stream);
    }
    int code = 0;
    if (extracts && !o->run.dry_run) {
        code = extract(&run);
    } else {
        dit_config_t config = dit_options_config(o, run.comm.size);
        if (run.with_captions && !o->run.dry_run) open_captions(&run, &config);
        dit_register(&run.dit, config);
        run.dit.comm = &run.comm;
        dit_plan(&run.dit);
        run.steps = o->steps;
        run.config_json = cli_to_json(&run.cli);
        print_plan(&run);
        if (!o->run.dry_run) code = train_or_say(&run);
    }
    comm_close(&run.comm);
    if (!o->run.dry_run) device_close(run.stream);
    return code;
}
