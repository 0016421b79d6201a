// train_tokenizer.cu: trains the AlignTok tokenizer, one stage a run, and its baselines.
//
//     ./train_tokenizer -stage 1            the miniature world: see `make demo`, which prepares it
//     ./train_tokenizer -stage 2            goes on from stage 1's checkpoint, which it finds by itself
//     ./train_tokenizer -stage 3
//     ./train_tokenizer -preset imagenet -data IMAGENET -encoder_weights FILE -lpips_weights FILE
//     ./train_tokenizer -h                  every flag; at its end the paper's ablations, each as a flag
//     ./train_tokenizer -preset vavae -data IMAGENET -teacher_weights FILE -lpips_weights FILE      a baseline, VA-VAE
//
// A run writes into one folder (-out): stageN.safetensors (the whole state, see
// common/training/tokenizer_checkpoint.h), stageN.jsonl (every status line), stageN_STEP.png (held-out images above
// their reconstructions), on a GPU algorithms.txt (common/training/algorithms.h). The same command again resumes where
// it stopped, bit for bit. Ctrl-C and SIGTERM save at once and stop; the exit code is then 130 or 143, so that `&&`
// does not start the next stage. A trained stage becomes one small file for use with
//     ./train_tokenizer -stage 3 -export FILE
//
// On several GPUs, one process each, which share -batch among them:
//     torchrun --no-python --nproc_per_node 8 ./train_tokenizer ...      or srun, or mpirun: see common/training/comm.h
//
// This file is the outermost layer: flags, data, the loop, files. What a step computes is in
// common/training/tokenizer.h. Reading order here: set-up; hand-over between stages; what is watched; the loop; main.
#include <sys/stat.h>
#include <unistd.h>

// defines: clock_seconds
#include "common/program/clock.h"
// defines: cli_t
#include "common/program/cli.h"
// defines: cli_to_json
#include "common/program/cli_saved.h"
// defines: aspect_t, aspect_open
#include "common/data/aspect.h"
// defines: dataset_t, dataset_open
#include "common/data/dataset.h"
// defines: dataloader_t, dataloader_next, dataloader_try_next, dataloader_speed, dataloader_threads_text, ...
#include "common/data/dataloader.h"
// defines: row_picture_t, row_picture_add, row_picture_page; image_write_png
#include "common/data/row_picture.h"
// defines: psnr_bytes
#include "common/measures/reconstruction_measures.h"
// defines: comm_t, comm_options_*, comm_open, comm_attach, comm_close, comm_is_first, comm_sum_host, ...
#include "common/training/comm.h"
// defines: shared_sizes_fill
#include "common/training/shared_sizes.h"
// defines: tokenizer_t, tokenizer_plan, tokenizer_resize, tokenizer_gradients, tokenizer_update
#include "common/training/tokenizer.h"
// defines: checkpoint_save, checkpoint_resume, checkpoint_start_from, checkpoint_start_baseline, checkpoint_file_bytes
#include "common/training/tokenizer_checkpoint.h"
// defines: needs_t, needs_add, needs_file, needs_check
#include "common/training/needs.h"
// defines: run_catch_signals, run_was_stopped, run_exit_code, run_has_checkpoint, run_check_config, run_try_folder, ...
#include "common/training/run.h"
// defines: algorithms_open, algorithms_step, algorithms_save
#include "common/training/algorithms.h"
// defines: autoencoder_export
#include "common/drawing/autoencoder.h"
// defines: weights_load_vit, weights_load_lpips
#include "common/models/weights.h"
// defines: ldm_file_t, ldm_file_read
#include "common/models/ldm_file.h"
// defines: options_t, options_parse, options_read, options_tokenizer
#include "common/training/tokenizer_options.h"
// defines: tokenizer_status_t, tokenizer_status_print, status_open, status_waits
#include "common/training/status.h"

#define DEAD_STEPS 100  // steps with a gradient of exactly zero that end a run
#define HELD_OUT_SEED 0 // the held-out images that are shown, the same in every run and stage
enum { GRID_COLUMNS = 8, HELD_OUT_BATCHES = 4 }; // of squares one batch is held out; of other sizes several

// This process's part of a batch of held-out images, and what becomes of them.
typedef struct {
    int H, W;
    uint8_t *images, *made; // (batch, H, W, 3)
} held_out_t;

typedef struct {
    options_t options;
    cli_t cli;
    comm_t comm;               // the processes that train together; this one's rank
    stream_t stream;           // of the device that this process trains on
    tokenizer_t tokenizer;
    dataset_t train_set, val_set;
    aspect_t train_sizes, val_sizes; // in which their images come; a single one: squares
    char checkpoint_path[1024];
    char* config_json;
    int64_t step, steps;       // done, and to do
    int workers;               // threads that prepare images
    held_out_t held_out[HELD_OUT_BATCHES];
    int held_out_batches;
    floatS* measures;          // host copy of a step's measures
    floatS *latent_mean, *latent_std; // (z)
    int64_t latent_step;       // at which they were measured; 0: not yet
    tokenizer_status_t status;
    int dead_steps[4];         // consecutive steps with a zero gradient: encoder, adapter, decoder, discriminator
} run_t;

// ---------------------------------------------------------------------------------------------------------------------
// Set-up

// The sizes that images come in, and memory for each of them. The largest is planned last, and stays.
static void plan_sizes(run_t* run) {
    tokenizer_t* t = &run->tokenizer;
    const options_t* o = &run->options;
    int factor = tokenizer_factor(&t->config);
    aspect_open(&run->train_sizes, o->image_size, factor, o->aspect);
    aspect_open(&run->val_sizes, o->image_size, factor, o->aspect);
    for (int k = 0; k < run->train_sizes.count; k++) {
        t->config.H = run->train_sizes.buckets[k].H;
        t->config.W = run->train_sizes.buckets[k].W;
        tokenizer_plan(t);
    }
}

// Parameters: of each model, and of what is trained and frozen in this stage.
static void print_parameters(const tokenizer_t* t) {
    const tokenizer_config_t* c = &t->config;
    const param_table_t* table = &t->params.table;
    size_t first = tokenizer_first_trained(t), all = table->total;
    size_t pairs = param_count(table, t->lora_begin, t->adapter_begin);
    size_t decoder = param_count(table, t->decoder_begin, all);
    size_t encoder = param_count(table, 0, t->decoder_begin) - pairs;
    size_t cnn = param_count(table, 0, c->cnn ? t->encoder.cnn.quant_conv.weight : 0);
    size_t disc = param_count(&t->disc_params.table, 0, t->disc_params.table.total);
    size_t lpips = param_count(&t->lpips_params.table, 0, t->lpips_params.table.total);
    // the frozen copy A0 of stage 2 is not counted, as in the paper's Table 6
    size_t target = param_count(&t->target_params.table, 0, c->stage == 2 ? t->lora_begin : SIZE_MAX);
    if (c->cnn) printf("parameters     encoder %.2fM, 1x1 layers around the latent %.3fM", cnn * 1e-6,
                       (encoder - cnn) * 1e-6);
    else printf("parameters     encoder with adapter %.2fM", encoder * 1e-6);
    printf(", decoder %.2fM, discriminator %.2fM\n", decoder * 1e-6, disc * 1e-6);
    if (pairs) {
        printf("low-rank pairs %zu parameters: rank %d, alpha %g, dropout %g, at qkv, proj, fc1, fc2 of %d blocks\n",
               pairs, c->lora.rank, c->lora.alpha, c->lora.dropout, c->encoder.depth);
    }
    const char* also = tokenizer_has_vf_loss(c) ? ", teacher" : tokenizer_is_baseline(c) ? ""
                       : c->stage != 2 ? ", encoder" : pairs ? ", encoder, that of stage 1" : ", encoder of stage 1";
    if (tokenizer_is_baseline(c)) printf("baseline      ");
    else printf("stage %d       ", c->stage);
    printf(" trainable %.2fM, frozen %.2fM (LPIPS %.2fM%s)\n", (param_count(table, first, all) + disc) * 1e-6,
           (param_count(table, 0, first) + lpips + target) * 1e-6, lpips * 1e-6, also);
}

// -dry_run and the start of every run: what is trained and what it costs.
static void print_plan(const run_t* run) {
    const tokenizer_t* t = &run->tokenizer;
    const tokenizer_config_t* c = &t->config;
    const aspect_t* sizes = &run->train_sizes;
    const param_table_t* table = &t->params.table;
    size_t first = tokenizer_first_trained(t);
    if (sizes->count > 1) {
        printf("sizes          %d, from %d x %d to %d x %d and %d x %d; memory and cost are of the largest\n",
               sizes->count, sizes->side, sizes->side, sizes->longest, sizes->side, sizes->side, sizes->longest);
    }
    print_parameters(t);
    int shares = c->zero && t->comm ? t->comm->size : 1;
    size_t weights = params_bytes(table, first, 2, shares) + params_bytes(&t->disc_params.table, 0, 0, shares) +
                     params_bytes(&t->lpips_params.table, t->lpips_params.table.total, 0, 1) +
                     params_bytes(&t->target_params.table, t->target_params.table.total, 0, 1) + plan_bytes(&t->folded);
    char size[4][32];
    printf("memory         %s: weights, gradients, moments, averages %s; activations %s; working memory %s\n",
           size_text(size[0], weights + plan_bytes(&t->plan) + plan_bytes(&t->work)), size_text(size[1], weights),
           size_text(size[2], plan_bytes(&t->plan)), size_text(size[3], plan_bytes(&t->work)));
    double macs = (double)tokenizer_step_macs(t);
    printf("cost           %.1f %s multiply-accumulates an image, %.2f %s a step of %d images\n",
           macs / c->batch * (macs < 1e11 ? 1e-6 : 1e-9), macs < 1e11 ? "M" : "G", macs * (macs < 1e12 ? 1e-9 : 1e-12),
           macs < 1e12 ? "G" : "T", c->batch);
}

// Where a stage starts: the checkpoint of the one before.
static void previous_path(const options_t* o, char* path, size_t size) {
    if (o->from[0]) snprintf(path, size, "%s", o->from);
    else snprintf(path, size, "%s/stage%d.safetensors", o->run.out, o->stage - 1);
}

// The commands that make what is missing in the miniature world, and this one again.
static void make_command(const run_t* run, int encoder, int stage_before, json_text_t* text) {
    const options_t* o = &run->options;
    json_text_t flags = {NULL, 0, 0};
    static const char* const own[] = {"stage", "from", "lora", NULL}; // of this stage alone
    needs_same_flags(&run->cli, own, &flags);
    if (encoder) json_append(text, "make " NEEDS_PRETRAIN " && " NEEDS_PRETRAIN " && ");
    for (int stage = stage_before ? 1 : o->stage; stage <= o->stage; stage++) {
        char done[1024];
        snprintf(done, sizeof done, "%s/stage%d.safetensors", o->run.out, stage);
        if (stage < o->stage && !access(done, F_OK)) continue;
        const char* from = stage == 1 && !o->encoder_weights[0] ? " -encoder_weights FILE" : "";
        json_append(text, "%s -stage %d%s%s", run->cli.program, stage, from, flags.text ? flags.text : "");
        if (stage == 2 && o->lora) json_append(text, " -lora %d", o->lora);
        if (stage < o->stage) json_append(text, " && ");
    }
    json_text_free(&flags);
}

// All that this run needs and that is not there, in one message.
static void check_needs(run_t* run) {
    options_t* o = &run->options;
    int mini = !strncmp(o->run.preset, "mini", 4), going_on = run_has_checkpoint(run->checkpoint_path, o->run.restart);
    char previous[1024] = "", encoder[1024];
    needs_t needs = {{NULL, 0, 0}, 0};
    if (!o->data[0]) {
        needs_add(&needs, "preset %s needs images: -data FOLDER with one folder a class (or -data shapes to try the "
                  "program)", o->run.preset);
    } else {
        needs_images(&needs, o->data);
    }
    if (mini) needs_or_else(&run->cli, "lpips_weights", &o->lpips_weights, "miniature/vgg.safetensors");
    int before = needs.count;
    if (o->lpips_weights[0]) needs_file(&needs, "lpips_weights", o->lpips_weights, "VGG16 and heads, for LPIPS");
    snprintf(encoder, sizeof encoder, "%s", o->encoder_weights);
    if (!going_on && o->stage == 1 && encoder[0]) {
        needs_file(&needs, "encoder_weights", encoder, "the pretrained encoder");
    }
    if (o->recipe == RECIPE_VAVAE && o->teacher_weights[0]) {
        needs_file(&needs, "teacher_weights", o->teacher_weights, "the vision model that the latent is aligned with");
    }
    int pretrained = needs.count > before, baseline = o->recipe != RECIPE_ALIGNTOK;
    if (!going_on && baseline && o->from[0]) needs_file(&needs, "from", o->from, "weights to start from");
    if (!going_on && o->stage > 1) {
        previous_path(o, previous, sizeof previous);
        if (access(previous, R_OK)) {
            needs_add(&needs, "stage %d starts from stage %d's checkpoint, and there is none at %s (-from names "
                      "another)", o->stage, o->stage - 1, previous);
            char first[1024]; // which needs the encoder, unless it is there itself
            snprintf(first, sizeof first, "%s/stage1.safetensors", o->run.out);
            if (mini && access(first, R_OK) && access(encoder, R_OK)) pretrained = 1;
        } else {
            previous[0] = 0;
        }
    }
    if (needs.count && o->recipe == RECIPE_VAVAE && !o->teacher_weights[0]) {
        needs_add(&needs, "-teacher_weights FILE: without, the teacher is random (DINOv2-L: model.safetensors of "
                  "huggingface.co/timm/vit_large_patch14_dinov2.lvd142m)");
    }
    if (needs.count && !mini && !baseline && o->stage == 1 && !going_on && !encoder[0]) {
        needs_add(&needs, "-encoder_weights FILE: without, the encoder is random (DINOv2-L: model.safetensors of "
                  "huggingface.co/timm/vit_large_patch14_dinov2.lvd142m)");
    }
    if (needs.count && !mini && !o->lpips_weights[0]) {
        needs_add(&needs, "-lpips_weights VGG16.pth,HEADS.pth: without, LPIPS is random (download.pytorch.org/models/"
                  "vgg16-397923af.pth, and lpips/weights/v0.1/vgg.pth of github.com/richzhang/PerceptualSimilarity)");
    }
    json_text_t command = {NULL, 0, 0};
    if (mini || previous[0]) make_command(run, mini && pretrained, previous[0], &command);
    needs_check(&needs, command.text && !(needs.count && !o->data[0]) ? command.text : "");
    json_text_free(&command);
}

// The frozen networks and, at the start of stage 1, the encoder.
static void load_pretrained(run_t* run) {
    const options_t* o = &run->options;
    tokenizer_t* t = &run->tokenizer;
    if (o->lpips_weights[0]) {
        weights_load_lpips(&t->lpips_params, o->lpips_weights);
        printf("LPIPS          %s\n", o->lpips_weights);
    } else {
        warn("no -lpips_weights: LPIPS compares random features. Good for a test of speed, not for training");
    }
    if (o->recipe == RECIPE_VAVAE && o->teacher_weights[0]) {
        weights_load_vit(&t->target_params, &t->config.teacher, VF_TEACHER_PREFIX, o->teacher_weights);
        printf("teacher        %s\n", o->teacher_weights);
    } else if (o->recipe == RECIPE_VAVAE) {
        warn("no -teacher_weights: the latent is aligned with a random network. Good for a test of speed, not for "
             "training");
    }
    if (o->stage != 1 || run->step) return;
    if (o->encoder_weights[0]) {
        weights_load_vit(&t->params, &t->config.encoder, "encoder.", o->encoder_weights);
        printf("encoder        %s\n", o->encoder_weights);
    } else if (o->recipe == RECIPE_ALIGNTOK) {
        warn("no -encoder_weights: the encoder is random. Good for a test of speed, not for training");
    }
}

// What tensor shapes do not show: flags that must be the same in all stages.
static void check_same_model(const options_t* o, const checkpoint_info_t* info, const char* path) {
    static options_t saved;
    options_read(&saved, info->config, path);
    if ((saved.recipe == RECIPE_ALIGNTOK) != (o->recipe == RECIPE_ALIGNTOK)) {
        fatal("%s is %s, and this run is %s; give a file of the same kind, or the same -recipe", path,
              saved.recipe == RECIPE_ALIGNTOK ? "a checkpoint of AlignTok's stages" : "a baseline's checkpoint",
              o->recipe == RECIPE_ALIGNTOK ? "a stage of AlignTok" : "a baseline");
    }
    if (strcmp(saved.encoder, o->encoder)) {
        fatal("%s has encoder %s, this run %s; give -encoder %s", path, saved.encoder, o->encoder, saved.encoder);
    }
    if (saved.decoder == DECODER_LARGE && saved.decoder_heads != o->decoder_heads) {
        fatal("%s was trained with -decoder_heads %d, this run has %d; give the same", path, saved.decoder_heads,
              o->decoder_heads);
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
    previous_path(o, path, sizeof path);
    safetensors_t file;
    checkpoint_info_t info = checkpoint_open(&file, path);
    if (info.stage != previous) {
        fatal("%s is a checkpoint of stage %d; stage %d starts from one of stage %d", path, info.stage, o->stage,
              previous);
    }
    check_same_model(o, &info, path);
    if (info.step < info.steps) {
        char said[2048];
        snprintf(said, sizeof said, "%s has only %lld of %lld steps of stage %d. `%s -stage %d` with the same flags "
                 "finishes them", path, (long long)info.step, (long long)info.steps, previous, run->cli.program,
                 previous);
        if (!o->from[0]) fatal("%s; to start from it as it is, name it: -from %s", said, path);
        warn("%s", said);
    }
    int which = o->stage == 3 ? o->ema : -1;
    checkpoint_start_from(&file, &info, path, &run->tokenizer, which);
    printf("start          %s after %lld steps, %s weights\n", path, (long long)info.step,
           which < 0 ? "raw" : "averaged");
    safetensors_close(&file);
    if (o->stage == 2) tokenizer_set_target(&run->tokenizer, run->stream);
}

// Others' files show in their shapes what they are.
static void check_same_autoencoder(const run_t* run, const ldm_file_t* l, const char* path) {
    const autoencoder_config_t *e = &l->encoder, *want = &run->tokenizer.config.decoder;
    if (run->tokenizer.config.cnn && !memcmp(e, want, sizeof *e) && !memcmp(&l->decoder, want, sizeof *e)) return;
    char ch_mult[100] = "";
    for (int i = 0; i < e->levels; i++) {
        size_t used = strlen(ch_mult);
        snprintf(ch_mult + used, sizeof ch_mult - used, "%s%d", i ? "," : "", e->ch_mult[i]);
    }
    fatal("%s is an autoencoder of -encoder cnn -ch %d -ch_mult %s -res_blocks %d -groups %d -z_channels %d, and this "
          "run trains another%s; give these flags, or another file", path, e->ch, ch_mult, e->res_blocks, e->groups,
          e->z_channels, e->attn_levels != 1u << (e->levels - 1) || !e->quant_conv
          ? " (which has attention at the lowest resolution alone, and 1x1 convolutions around the latent)" : "");
}

// A baseline starts from the raw weights of another, ours or as LDM and VA-VAE publish them; as in VA-VAE's own phases
// the optimisers begin anew.
static void start_baseline(run_t* run) {
    const char* path = run->options.from;
    safetensors_t file;
    ldm_file_t l;
    memset(&l, 0, sizeof l);
    tensor_file_open_or_die(&file, path);
    if (checkpoint_is_ours(&file)) {
        checkpoint_info_t info = checkpoint_read_info(&file, path);
        check_same_model(&run->options, &info, path);
    } else if (ldm_file_read(&l, &file)) {
        check_same_autoencoder(run, &l, path);
    } else {
        fatal("%s: no checkpoint of a baseline, and no autoencoder in LDM's layout either (VA-VAE); give one of these",
              path);
    }
    int has = checkpoint_start_baseline(&file, l.prefix, path, &run->tokenizer);
    int vf = tokenizer_has_vf_loss(&run->tokenizer.config);
    printf("start          %s; discriminator %s%s%s\n", path, has & START_DISCRIMINATOR ? "too" : "random",
           !vf ? "" : ", projection ", !vf ? "" : has & START_PROJECTION ? "too" : "random");
    safetensors_close(&file);
}

// Continues a run that was stopped. Returns 0 when there is none in the folder.
static int resume(run_t* run) {
    if (!run_has_checkpoint(run->checkpoint_path, run->options.run.restart)) return 0;
    safetensors_t file;
    checkpoint_info_t info = checkpoint_open(&file, run->checkpoint_path);
    if (info.stage != run->options.stage) {
        fatal(
            "%s is a checkpoint of stage %d, not %d; give it its own name back (stage%d.safetensors), or name another "
            "folder with -out",
            run->checkpoint_path, info.stage, run->options.stage, info.stage);
    }
    run_check_config(&run->cli, info.config, run->checkpoint_path, run->options.run.change);
    checkpoint_resume(&file, &info, run->checkpoint_path, &run->tokenizer);
    checkpoint_read_vector(&file, run->checkpoint_path, "latent.mean", run->latent_mean, run->tokenizer.z);
    checkpoint_read_vector(&file, run->checkpoint_path, "latent.std", run->latent_std, run->tokenizer.z);
    safetensors_close(&file);
    run->step = info.step;
    run->latent_step = info.latent_step;
    printf("resume         %s at step %lld\n", run->checkpoint_path, (long long)run->step);
    return 1;
}

// The stream of images of a data set for all processes: training images, or by lot for looking at, from the middle.
static void open_loader(run_t* run, dataloader_t* loader, int split, int trains, uint64_t seed, uint64_t first) {
    const options_t* o = &run->options;
    const aspect_t* sizes = split == SPLIT_TRAIN ? &run->train_sizes : &run->val_sizes;
    dataloader_options_t options = {o->batch,       o->image_size, trains, trains && o->flip, 1, run->comm.rank,
                                    run->comm.size, run->workers,  seed,   sizes->count > 1 ? sizes : NULL};
    dataloader_open(loader, split == SPLIT_TRAIN ? &run->train_set : &run->val_set, &options, first);
}

// This process's part of the held-out images, by lot, for the grids and their PSNR.
static void read_held_out(run_t* run) {
    dataloader_t loader;
    open_loader(run, &loader, SPLIT_VAL, 0, HELD_OUT_SEED, 0);
    run->held_out_batches = run->val_sizes.count > 1 ? HELD_OUT_BATCHES : 1;
    for (int i = 0; i < run->held_out_batches; i++) {
        const batch_t* batch = dataloader_next(&loader);
        held_out_t* h = &run->held_out[i];
        h->H = batch->H;
        h->W = batch->W;
        size_t bytes = (size_t)batch->count * h->H * h->W * 3;
        h->images = (uint8_t*)malloc_check(bytes, "held-out images");
        h->made = (uint8_t*)malloc_check(bytes, "reconstructions");
        memcpy(h->images, batch->pixels, bytes);
    }
    dataloader_close(&loader);
}

// Which image has which size; what that leaves out or cuts off is said.
static void read_sizes(run_t* run) {
    const aspect_t* a = &run->train_sizes;
    size_t batch = (size_t)run->options.batch;
    int used = 0, few = 0, fewest = 0;
    if (a->count == 1) return;
    shared_sizes_fill(&run->comm, &run->train_sizes, &run->train_set, run->workers);
    shared_sizes_fill(&run->comm, &run->val_sizes, &run->val_set, run->workers);
    for (int k = 0; k < a->count; k++) {
        size_t n = a->buckets[k].count;
        if (n && (!used++ || n < a->buckets[fewest].count)) fewest = k;
        few += n && n < batch;
    }
    printf("sizes          %d of the %d have images; %zu images are longer than %d:%d and lose their ends\n", used,
           a->count, a->cut, a->longest, a->side);
    if (!few) return;
    printf("sizes          %d with fewer images than a batch of %zu, in which some then come more than once; %d x %d "
           "has the fewest, %zu\n", few, batch, a->buckets[fewest].W, a->buckets[fewest].H, a->buckets[fewest].count);
}

static void set_up(run_t* run) {
    options_t* o = &run->options;
    tokenizer_t* t = &run->tokenizer;
    dataset_open(&run->train_set, o->data, SPLIT_TRAIN);
    dataset_open(&run->val_set, o->data, SPLIT_VAL);
    printf("data           %s: %zu training images, %zu held out, %d classes\n", run->train_set.folder,
           run->train_set.count, run->val_set.count, run->train_set.class_count);
    read_sizes(run);
    tokenizer_allocate(t);
    char error[1200];
    if (comm_is_first(&run->comm) && !run_try_folder(o->run.out, checkpoint_file_bytes(t), error, sizeof error)) {
        fatal("%s", error);
    }
    run->measures = (floatS*)host_malloc(tokenizer_measure_count(t) * sizeof(floatS), "measures");
    run->latent_mean = (floatS*)calloc_check(2 * t->z, sizeof(floatS), "latent statistics");
    run->latent_std = run->latent_mean + t->z;
    params_init(&t->params, o->run.seed);
    params_init(&t->disc_params, o->run.seed);
    params_init(&t->lpips_params, o->run.seed);
    if (o->recipe == RECIPE_VAVAE) params_init(&t->target_params, o->run.seed);
    int resumed = resume(run);
    load_pretrained(run);
    if (!resumed && o->stage > 1) hand_over(run);
    if (!resumed && o->recipe != RECIPE_ALIGNTOK && o->from[0]) start_baseline(run);
    if (!resumed) params_start_averages(&t->params);
    run_check_same_start(&run->comm, run->step, o->run.out);
    tokenizer_freeze(t);
    algorithms_open(o->run.out, &run->comm, run->stream);
    read_held_out(run);
}

// ---------------------------------------------------------------------------------------------------------------------
// Pictures and files

// Reconstructs this process's held-out images and returns the mean PSNR of all processes', in dB of bytes; NaN where a
// value is not finite.
static double reconstruct_held_out(run_t* run) {
    tokenizer_t* t = &run->tokenizer;
    int batch = t->config.batch;
    double sum = 0;
    for (int i = 0; i < run->held_out_batches; i++) {
        held_out_t* h = &run->held_out[i];
        tokenizer_resize(t, h->H, h->W);
        size_t image = tokenizer_pixels(t) * 3, n = batch * image;
        copy_to_device(t->bytes, h->images, n, run->stream);
        tokenizer_draw_noise(t, HELD_OUT_SEED, i, run->stream);
        image_from_bytes(t->x, t->bytes, n, run->stream);
        floatS* host = (floatS*)malloc_check(n * sizeof(floatS), "reconstructions");
        copy_floats_to_host(host, tokenizer_reconstruct(t, run->stream), n);
        image_bytes_from_floats(h->made, host, n);
        int finite = first_not_finite(host, n) == n;
        free(host);
        if (!finite) {
            sum = NAN;
            break;
        }
        for (int b = 0; b < batch; b++) { // equal images have no finite PSNR; they count as 100 dB
            sum += fmin(psnr_bytes(h->made + b * image, h->images + b * image, image), 100);
        }
    }
    comm_sum_host(&run->comm, &sum, 1);
    return sum / run->options.batch / run->held_out_batches;
}

// The averaged weights take the place of the raw ones; a second call puts those back. Of a run that ships raw weights
// the first average is shown.
static void exchange_ema(run_t* run) {
    int which = run->options.ema < 0 ? 0 : run->options.ema;
    replicas_exchange_ema(&run->tokenizer.params, which, &run->comm, run->stream);
}

__attribute__((noreturn)) static void stop_not_finite(run_t* run, int64_t step, const char* consequence);

// A row of held-out images, or with `made` of their reconstructions: the first ones of each batch.
static void add_row(run_t* run, row_picture_t* rows, const char* name, int made) {
    size_t cell = (size_t)rows->H * rows->W * 3, n = rows->columns * cell, batch = (size_t)run->tokenizer.config.batch;
    size_t first = (size_t)run->comm.rank * batch, each = (size_t)(rows->columns / run->held_out_batches);
    floatS* values = (floatS*)calloc_check(n, sizeof(floatS), "a row of images");
    uint8_t* row = row_picture_add(rows, name);
    for (int c = 0; c < rows->columns; c++) {
        const held_out_t* h = &run->held_out[c / each];
        size_t i = c % each, image = (size_t)h->H * h->W * 3; // of the whole batch
        if (i < first || i >= first + batch) continue;
        const uint8_t* pixels = (made ? h->made : h->images) + (i - first) * image;
        row_picture_centre(row + c * cell, rows->H, rows->W, pixels, h->H, h->W);
        for (size_t k = c * cell; k < (c + 1) * cell; k++) values[k] = row[k];
    }
    comm_sum_floats_host(&run->comm, values, n);
    for (size_t k = 0; k < n; k++) row[k] = (uint8_t)values[k];
    free(values);
}

// stageN_STEP.png: held-out images, their reconstruction by the raw and by the averaged weights.
static void write_grid(run_t* run) {
    const options_t* o = &run->options;
    row_picture_t rows;
    int each = GRID_COLUMNS / run->held_out_batches, H = 0, W = 0;
    for (int i = 0; i < run->held_out_batches; i++) {
        if (run->held_out[i].H > H) H = run->held_out[i].H;
        if (run->held_out[i].W > W) W = run->held_out[i].W;
    }
    row_picture_open(&rows, (o->batch < each ? o->batch : each) * run->held_out_batches, H, W);
    add_row(run, &rows, "original", 0);
    double* psnr = run->status.psnr;
    psnr[0] = reconstruct_held_out(run);
    add_row(run, &rows, "raw weights", 1);
    exchange_ema(run);
    psnr[1] = reconstruct_held_out(run);
    exchange_ema(run);
    add_row(run, &rows, "averaged", 1);
    if (isnan(psnr[0]) || isnan(psnr[1])) {
        stop_not_finite(run, run->step, "The weights after this step are not saved");
    }
    run->status.has_psnr = 1;
    char path[1200], error[IMAGE_ERROR_SIZE], step[32];
    snprintf(step, sizeof step, "%lld", (long long)run->step);
    snprintf(path, sizeof path, "%s/stage%d_%06lld.png", o->run.out, o->stage, (long long)run->step);
    image_text_t texts[4] = {{"Rows", "held-out images; reconstruction, raw weights; reconstruction, averaged weights"},
                             {"Program", "train_tokenizer"}, {"Step", step}, {"Configuration", run->config_json}};
    if (comm_is_first(&run->comm)) {
        image_t page = row_picture_page(&rows);
        if (image_write_png(path, &page, texts, 4, error)) {
            printf("held out: PSNR %.2f dB raw, %.2f dB averaged (%d images)  %s\n", psnr[0], psnr[1],
                   o->batch * run->held_out_batches, path);
        } else {
            warn("%s; training goes on", error);
        }
        image_free(&page);
    }
    row_picture_close(&rows);
}

// Mean and standard deviation of each latent channel over training images, by lot, centre crops, by the weights that
// ship: what a diffusion model trained on the latents normalises by. All processes share the images, the same for
// any number of them. Where they cannot be read, a trained state is not lost for that: 0 and 1 are kept. Whoever asks
// the run to stop does not wait for it: the last statistics stay, and where there are none, those of fewer images are
// taken. Returns 1 if all images were measured.
static int measure_latents(run_t* run, int images) {
    const options_t* o = &run->options;
    tokenizer_t* t = &run->tokenizer;
    int may_stop = run->step < run->steps; // behind the last step nothing else measures them
    double* sums = (double*)calloc_check(2 * t->z + 2, sizeof(double), "latent statistics"); // then: of how many, stops
    size_t factor = (size_t)tokenizer_factor(&t->config), most = aspect_pixels(&run->train_sizes) / factor / factor;
    floatS* host = (floatS*)malloc_check(t->config.batch * most * t->z * sizeof(floatS), "latents");
    dataloader_t loader;
    open_loader(run, &loader, SPLIT_TRAIN, 0, o->run.seed, 0);
    int batches = (images + o->batch - 1) / o->batch;
    if (o->ema >= 0) exchange_ema(run);
    char error[IMAGE_ERROR_SIZE] = "";
    for (int i = 0; i < batches && !(i && may_stop && stop_signal); i++) {
        const batch_t* batch = dataloader_try_next(&loader, error);
        if (!batch) break;
        tokenizer_resize(t, batch->H, batch->W);
        size_t bytes = (size_t)t->config.batch * tokenizer_pixels(t) * 3;
        size_t tokens = t->config.batch * tokenizer_latents(t), n = tokens * t->z;
        copy_to_device(t->bytes, batch->pixels, bytes, run->stream);
        tokenizer_draw_noise(t, o->run.seed, i, run->stream);
        image_from_bytes(t->x, t->bytes, bytes, run->stream);
        copy_floats_to_host(host, tokenizer_encode(t, run->stream), n);
        for (size_t j = 0; j < n; j++) {
            sums[j % t->z] += host[j];
            sums[t->z + j % t->z] += (double)host[j] * host[j];
        }
        sums[2 * t->z] += (double)tokens;
    }
    if (o->ema >= 0) exchange_ema(run);
    dataloader_close(&loader);
    if (error[0]) warn("the mean and deviation of the latents, over too few images: %s", error);
    sums[2 * t->z + 1] = may_stop && stop_signal;
    comm_sum_host(&run->comm, sums, 2 * t->z + 2);
    double count = sums[2 * t->z];
    int stopped = sums[2 * t->z + 1] > 0, keeps = stopped && run->latent_step;
    for (int c = 0; c < t->z && !keeps; c++) run->latent_mean[c] = 0, run->latent_std[c] = 1;
    for (int c = 0; c < t->z && count > 0 && !keeps; c++) {
        double mean = sums[c] / count, variance = sums[t->z + c] / count - mean * mean;
        run->latent_mean[c] = (floatS)mean;
        run->latent_std[c] = (floatS)sqrt(variance > 0 ? variance : 0);
    }
    free(sums);
    free(host);
    return !stopped;
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
    int has_adapter = run->tokenizer.adapter_begin < run->tokenizer.decoder_begin;
    const int trained[4] = {tokenizer_trains_encoder(c), has_adapter && tokenizer_trains_adapter(c), 1, gan};
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

// Saves the state, unless it can no longer reconstruct an image: then the file before it is the last good one. In a
// hurry (who sends SIGTERM waits for seconds) the latent's statistics stay those of before.
static void save(run_t* run, int in_a_hurry) {
    const options_t* o = &run->options;
    tokenizer_t* t = &run->tokenizer;
    double start = clock_seconds();
    double psnr = reconstruct_held_out(run);
    if (isnan(psnr)) stop_not_finite(run, run->step, "The weights after this step are not saved");
    if (in_a_hurry && !run->latent_step) measure_latents(run, o->batch);
    else if (!in_a_hurry && measure_latents(run, o->latent_images)) run->latent_step = run->step;
    const params_t* tables[2] = {&t->params, &t->disc_params};
    replicas_check_same(tables, 2, &run->comm, run->step);
    checkpoint_info_t info = {o->stage, run->step, run->step * o->batch, 0, 0, 0, run->config_json,
                              run->steps, run->latent_step};
    char error[1024], written[64];
    double measured = clock_seconds();
    algorithms_save(o->run.out, &run->comm, run->stream);
    if (!checkpoint_save(run->checkpoint_path, t, &info, run->latent_mean, run->latent_std, error, sizeof error,
                         run->stream)) {
        fatal(
            "%s. The run ends at step %lld; the same command will go on from the last checkpoint, or begin where there "
            "is none",
            error, (long long)run->step);
    }
    printf("saved          %s at step %lld: %s, after %.1f s of measuring\n", run->checkpoint_path,
           (long long)run->step, run_written(written, run->checkpoint_path, measured), measured - start);
    fflush(stdout);
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

// What the loader can give, said once it has made some batches; and, later, that it gives too little.
static void watch_loader(run_t* run, dataloader_t* loader, int64_t first) {
    char who[DATALOADER_THREADS_TEXT];
    if (run->step == first + 1) dataloader_print_speed(loader);
    if (!comm_is_first(&run->comm) || !status_waits(&run->status.line)) return;
    int cores = machine_cores(run->comm.local_size);
    warn("training waits for images %.0f%% of the time: %.0f a second come from %s. Give more -workers (this process "
         "has %d core%s), or put smaller images on a faster disk", 100 * run->status.line.wait,
         dataloader_speed(loader), dataloader_threads_text(loader, who), cores, cores == 1 ? "" : "s");
}

// What is due after a step. When the run is to stop it saves at once; behind the last step the rest is made up for.
static void after_step(run_t* run, int stop, int gan, double waited) {
    const options_t* o = &run->options;
    int last = run->step == run->steps;
    if (stop) save(run, 1);
    int goes_on = !stop || last;
    if (goes_on && is_due(run->step, o->run.grid_every, run->steps)) write_grid(run);
    if (comm_is_first(&run->comm) && is_due(run->step, o->run.log_every, run->steps)) {
        tokenizer_status_print(&run->status, run->step, run->steps, run->step * o->batch, o->batch, waited, gan,
                               &run->tokenizer.config);
    }
    if (goes_on && is_due(run->step, o->run.save_every, run->steps)) save(run, 0);
}

// Returns 1 if the run was stopped before its last step.
static int train(run_t* run) {
    const options_t* o = &run->options;
    tokenizer_t* t = &run->tokenizer;
    char path[1200];
    int talks = comm_is_first(&run->comm);
    snprintf(path, sizeof path, "%s/stage%d.jsonl", o->run.out, o->stage);
    if (talks) status_open(&run->status.line, path);
    dataloader_t loader;
    int64_t first = run->step;
    open_loader(run, &loader, SPLIT_TRAIN, 1, o->run.seed, (uint64_t)first);
    int stop = 0; // what stop_signal was when this step ended, anywhere: it may change at any time
    while (run->step < run->steps && !stop) {
        const batch_t* batch = dataloader_next(&loader);
        tokenizer_resize(t, batch->H, batch->W);
        copy_to_device(t->bytes, batch->pixels, (size_t)batch->count * tokenizer_pixels(t) * 3, run->stream);
        algorithms_step(run->stream, 1);
        tokenizer_gradients(t, run->step, run->stream);
        algorithms_step(run->stream, 0);
        tokenizer_report_t report = tokenizer_read(t, run->measures, run->stream);
        int gan = tokenizer_gan_is_on(t, run->step);
        // Norms of gradients are the same everywhere; what comes before them is this process's own. So the process in
        // which a number went wrong finds it first, and names the tensor.
        stop_on_nan(run, &report, offsetof(tokenizer_report_t, norm) / sizeof(double));
        stop = share_report(run, &report, stop_signal != 0);
        stop_on_nan(run, &report, sizeof report / sizeof(double));
        stop_when_dead(run, &report, gan);
        tokenizer_update(t, run->step, run->stream);
        run->step++;
        tokenizer_status_add(&run->status, &report);
        after_step(run, stop, gan, loader.seconds_waited);
        watch_loader(run, &loader, first);
    }
    size_t damaged = dataloader_damaged_files(&loader);
    if (damaged) warn("%zu files could not be read and were replaced by others", damaged);
    dataloader_close(&loader);
    if (talks) status_close(&run->status.line);
    return run_was_stopped(run->step, run->steps);
}

// -export: the checkpoint in -out as one file for use.
static void export_tokenizer(const options_t* o) {
    char checkpoint[1024];
    snprintf(checkpoint, sizeof checkpoint, "%s/stage%d.safetensors", o->run.out, o->stage);
    if (access(checkpoint, R_OK)) {
        fatal("-export %s: stage %d has no checkpoint at %s; give the -out and the -stage of a run that has one",
              o->run.export_path, o->stage, checkpoint);
    }
    struct stat from, to;
    int both = !stat(checkpoint, &from) && !stat(o->run.export_path, &to);
    if (both && from.st_dev == to.st_dev && from.st_ino == to.st_ino) {
        fatal("-export %s is the checkpoint itself, which would lose the state of its training; give another file",
              o->run.export_path);
    }
    autoencoder_export(checkpoint, o->run.export_path, o->run.export_type == EXPORT_F16 ? ST_F16 : ST_F32);
    printf("exported       %s to %s\n", checkpoint, o->run.export_path);
}

int main(int argc, char** argv) {
    static run_t run; // a run is a megabyte of tables: not for the stack
    options_t* o = &run.options;
    comm_options_begin(&run.comm);
    options_parse(o, &run.cli, argc, argv);
    snprintf(run.checkpoint_path, sizeof run.checkpoint_path, "%s/stage%d.safetensors", o->run.out, o->stage);
    run.comm.time_limit = o->run.time_limit;
    run.comm.bf16 = o->run.reduce_bf16;
    comm_open(&run.comm);
    if (!comm_is_first(&run.comm) && !freopen("/dev/null", "w", stdout)) warn("this rank's output is not silenced");
    if (o->run.export_path[0]) {
        if (comm_is_first(&run.comm)) export_tokenizer(o);
        comm_close(&run.comm);
        return 0;
    }
    tokenizer_register(&run.tokenizer, options_tokenizer(o, run.comm.size));
    run.tokenizer.comm = &run.comm;
    plan_sizes(&run);
    run.steps = o->stage_steps;
    run.config_json = cli_to_json(&run.cli);
    cli_print_configuration(&run.cli, stdout);
    print_plan(&run);
    if (o->run.dry_run) {
        comm_close(&run.comm);
        return 0;
    }
    check_needs(&run);
    run.workers = run_options_workers(&o->run, run.comm.local_size);
    run.stream = device_open(run.comm.local_rank);
    comm_attach(&run.comm, run.stream);
    set_up(&run);
    comm_options_end();
    run_catch_signals();
    int stopped = 0;
    if (run.step < run.steps) {
        stopped = train(&run);
    } else if (run.latent_step < run.step) { // it was stopped in its last step, before the end was made
        save(&run, 0);
    } else {
        printf("stage %d is complete (%lld steps); -restart 1 trains it again, a larger -steps goes on\n", o->stage,
               (long long)run.step);
    }
    comm_close(&run.comm);
    device_close(run.stream);
    return run_exit_code(stopped);
}
