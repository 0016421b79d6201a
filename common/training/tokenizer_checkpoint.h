// tokenizer_checkpoint.h: the state of a tokenizer run as one safetensors file.
//
// What stands in it, all F32 under public names, convolutions as (OC, C, K, K):
//     encoder.*, adapter.*, decoder.*        the weights as trained ("raw"); s2ddecoder.* of the larger decoder; of a
//                                            CNN quant_conv.*, post_quant_conv.*; of VA-VAE linear_proj.weight
//     ema.0.NAME, ema.1.NAME                 their two moving averages, for what this stage trains
//     adam.m.NAME, adam.v.NAME               optimiser moments, of the discriminator too
//     loss.discriminator.*                   discriminator with its BatchNorm buffers
//     target.*                               stage 2: the frozen encoder and adapter that define z0
//     latent.mean, latent.std                (z) of each latent channel, with the shipped (averaged) weights
//     metadata                               format, stage, step, images, step counts, steps (to do in all),
//                                            latent_step (at which mean and deviation were measured: a run that is
//                                            stopped saves at once, with those of before; 0: a guess from one batch),
//                                            the configuration as JSON
// Everything random in a run is a function of (seed, step, image), so this is all that a bit-exact resume needs.
//
// A file is written under a temporary name, flushed, then renamed: whatever happens, the last good one stays. A file
// that is torn, foreign, of another stage or configuration is refused with a message that names the field.
// Look next at common/files/safetensors.h (the format), train_tokenizer.cu (when it is written and read) and
// common/drawing/autoencoder.h (the tokenizer in it put to use).
#pragma once
// defines: checkpoint_section_t, checkpoint_declare_section, checkpoint_write_section, checkpoint_read_section
#include "common/training/state_file.h"
// defines: tokenizer_t
#include "common/training/tokenizer.h"

#define CHECKPOINT_FORMAT "aligntok-tokenizer-1"

// What a checkpoint knows besides tensors.
typedef struct {
    int stage;
    int64_t step;        // steps done
    int64_t images;      // images seen
    int64_t t, disc_t;   // optimiser steps of both networks
    int64_t disc_batches; // batches that the discriminator's running statistics have seen
    const char* config;  // JSON; while reading, points into the open file
    int64_t steps;       // to do in all; 0: the file does not say
    int64_t latent_step; // at which mean and deviation of the latent were measured; 0: never, a guess from one batch
} checkpoint_info_t;

enum { CHECKPOINT_SECTIONS = 9 };

// The sections of a tokenizer. Returns how many.
static inline int checkpoint_sections(tokenizer_t* t, checkpoint_section_t sections[CHECKPOINT_SECTIONS]) {
    checkpoint_section_t all[CHECKPOINT_SECTIONS] = {
        {&t->params, PARAM_VALUE, ""},          {&t->params, PARAM_EMA0, "ema.0."},
        {&t->params, PARAM_EMA1, "ema.1."},     {&t->params, PARAM_ADAM_M, "adam.m."},
        {&t->params, PARAM_ADAM_V, "adam.v."},  {&t->disc_params, PARAM_VALUE, ""},
        {&t->disc_params, PARAM_ADAM_M, "adam.m."}, {&t->disc_params, PARAM_ADAM_V, "adam.v."},
        {&t->target_params, PARAM_VALUE, ""},
    };
    memcpy(sections, all, sizeof all);
    return t->config.stage == 2 ? CHECKPOINT_SECTIONS : CHECKPOINT_SECTIONS - 1;
}

// Length of the longest tensor of all sections.
static inline size_t checkpoint_longest(const tokenizer_t* t) {
    size_t longest = params_longest(&t->params.table), longest_disc = params_longest(&t->disc_params.table);
    return longest > longest_disc ? longest : longest_disc;
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing

static inline void checkpoint_declare_all(st_writer_t* w, tokenizer_t* t, const checkpoint_info_t* info) {
    safetensors_writer_metadata(w, "format", CHECKPOINT_FORMAT);
    checkpoint_number(w, "stage", info->stage);
    checkpoint_number(w, "step", info->step);
    checkpoint_number(w, "images", info->images);
    checkpoint_number(w, "adam_steps", t->params.t);
    checkpoint_number(w, "disc_adam_steps", t->disc_params.t);
    checkpoint_number(w, "disc_batches_tracked", t->disc.batches_tracked);
    checkpoint_number(w, "steps", info->steps);
    checkpoint_number(w, "latent_step", info->latent_step);
    safetensors_writer_metadata(w, "config", info->config);
    checkpoint_section_t sections[CHECKPOINT_SECTIONS];
    int n = checkpoint_sections(t, sections);
    for (int k = 0; k < n; k++) checkpoint_declare_section(w, &sections[k]);
    const param_table_t* running = &t->disc.running_table;
    for (int i = 0; i < running->n; i++) {
        checkpoint_declare(w, "", running->items[i].name, running->items[i].ndim, running->items[i].shape);
    }
    checkpoint_declare(w, "", "latent.mean", 1, &t->z);
    checkpoint_declare(w, "", "latent.std", 1, &t->z);
}

// Bytes of the file, but for its header.
static inline size_t checkpoint_file_bytes(tokenizer_t* t) {
    checkpoint_section_t sections[CHECKPOINT_SECTIONS];
    size_t values = 0;
    int n = checkpoint_sections(t, sections);
    for (int k = 0; k < n; k++) values += checkpoint_section_values(&sections[k]);
    return values * sizeof(float);
}

// Writes the whole state; where several processes train, all of them call it, between two steps. On failure the old
// file stays and `error` says what happened and what to do; returns 1 on success.
int checkpoint_save(const char* path, tokenizer_t* t, const checkpoint_info_t* info, const floatS* latent_mean,
                    const floatS* latent_std, char* error, size_t error_size, stream_t s) {
    st_writer_t w;
    int writes = !t->comm || comm_is_first(t->comm);
    if (writes) {
        safetensors_writer_init(&w);
        checkpoint_declare_all(&w, t, info);
        safetensors_writer_begin(&w, path);
    }
    checkpoint_section_t sections[CHECKPOINT_SECTIONS];
    int n = checkpoint_sections(t, sections);
    size_t longest = checkpoint_longest(t);
    floatS* host = (floatS*)malloc_check(2 * longest * sizeof(floatS), "a checkpoint's tensor");
    for (int k = 0; k < n; k++) checkpoint_write_section(&w, t->comm, &sections[k], host, longest, s);
    const param_table_t* running = &t->disc.running_table;
    for (int i = 0; writes && i < running->n; i++) {
        copy_to_host(host, t->disc.running + running->items[i].offset, running->items[i].count * sizeof(floatS), 0);
        safetensors_writer_data(&w, host, running->items[i].count);
    }
    free(host);
    if (!writes) return 1;
    safetensors_writer_data(&w, latent_mean, t->z);
    safetensors_writer_data(&w, latent_std, t->z);
    return safetensors_writer_finish(&w, error, error_size);
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

// Was the file written by -export? Such a one has weights for use and no state of a training
// (common/drawing/autoencoder.h).
static inline int checkpoint_is_exported(const safetensors_t* f) { return safetensors_metadata(f, "weights") != NULL; }

// Was an open file written by train_tokenizer?
static inline int checkpoint_is_ours(const safetensors_t* f) {
    const char* format = safetensors_metadata(f, "format");
    return format && !strcmp(format, CHECKPOINT_FORMAT);
}

// The metadata that checkpoints and exported files have; ends with a message when the open file is none of ours. The
// optimiser's counts are left at zero.
checkpoint_info_t checkpoint_read_info(const safetensors_t* f, const char* path) {
    if (!checkpoint_is_ours(f)) {
        const char* format = safetensors_metadata(f, "format");
        fatal("%s: not a tokenizer checkpoint: its metadata field \"format\" is %s, wanted " CHECKPOINT_FORMAT
              "; give a file that train_tokenizer wrote, or move this one away", path, format ? format : "missing");
    }
    checkpoint_info_t info;
    memset(&info, 0, sizeof info);
    info.stage = (int)checkpoint_metadata_number(f, path, "stage");
    info.step = checkpoint_metadata_number(f, path, "step");
    info.images = checkpoint_metadata_number(f, path, "images");
    if (safetensors_metadata(f, "steps")) info.steps = checkpoint_metadata_number(f, path, "steps");
    if (safetensors_metadata(f, "latent_step")) info.latent_step = checkpoint_metadata_number(f, path, "latent_step");
    info.config = safetensors_metadata(f, "config");
    if (!info.config) fatal("%s: metadata field \"config\" is missing; the file is damaged", path);
    return info;
}

// Opens a checkpoint that a training can go on from.
checkpoint_info_t checkpoint_open(safetensors_t* f, const char* path) {
    safetensors_open_or_die(f, path);
    checkpoint_info_t info = checkpoint_read_info(f, path);
    if (checkpoint_is_exported(f)) {
        fatal("%s was written by -export: it holds a tokenizer for use, without the state of its training. No training "
              "can go on from it; give the checkpoint that it was made from (stage%d.safetensors in the -out of its "
              "run), or move this file away", path, info.stage);
    }
    info.t = checkpoint_metadata_number(f, path, "adam_steps");
    info.disc_t = checkpoint_metadata_number(f, path, "disc_adam_steps");
    info.disc_batches = checkpoint_metadata_number(f, path, "disc_batches_tracked");
    return info;
}

// The discriminator's running statistics.
static inline void checkpoint_read_running(const safetensors_t* f, const char* prefix, const char* path,
                                           tokenizer_t* t) {
    const param_table_t* running = &t->disc.running_table;
    char name[400];
    floatS* host = (floatS*)malloc_check(params_longest(running) * sizeof(floatS), "running statistics");
    for (int i = 0; i < running->n; i++) {
        const param_t* p = &running->items[i];
        snprintf(name, sizeof name, "%s%s", prefix, p->name);
        checkpoint_read_vector(f, path, name, host, (int)p->count);
        copy_to_device(t->disc.running + p->offset, host, p->count * sizeof(floatS), 0);
    }
    free(host);
}

// Restores a run of the same stage and configuration in the middle.
void checkpoint_resume(const safetensors_t* f, const checkpoint_info_t* info, const char* path, tokenizer_t* t) {
    checkpoint_mismatch_t mismatch = {0, 0, "", ""};
    checkpoint_section_t sections[CHECKPOINT_SECTIONS];
    int n = checkpoint_sections(t, sections);
    size_t longest = checkpoint_longest(t);
    floatS* host = (floatS*)malloc_check(2 * longest * sizeof(floatS), "a checkpoint's tensor");
    for (int k = 0; k < n; k++) checkpoint_read_section(f, &sections[k], host, longest, &mismatch);
    free(host);
    checkpoint_report(path, &mismatch);
    checkpoint_read_running(f, "", path, t);
    t->disc.batches_tracked = info->disc_batches;
    t->params.t = info->t;
    t->disc_params.t = info->disc_t;
}

// The weights of encoder, adapter, decoder and discriminator of an earlier stage, for the start of the next or for use:
// the average number `ema` (0 or 1) where that stage trained and averaged a tensor, else the raw weights; ema = -1: all
// raw. The discriminator is always raw.
void checkpoint_start_from(const safetensors_t* f, const checkpoint_info_t* info, const char* path, tokenizer_t* t,
                           int ema) {
    checkpoint_mismatch_t mismatch = {0, 0, "", ""};
    params_t* both[2] = {&t->params, &t->disc_params};
    for (int k = 0; k < 2; k++) {
        const param_table_t* table = &both[k]->table;
        size_t longest = params_longest(table);
        floatS* host = (floatS*)malloc_check(2 * longest * sizeof(floatS), "a checkpoint's tensor");
        for (int i = 0; i < table->n; i++) {
            const param_t* p = &table->items[i];
            char average[200];
            snprintf(average, sizeof average, "ema.%d.%s", ema, p->name);
            const char* name = k == 0 && ema >= 0 && safetensors_find(f, average) ? average : p->name;
            checkpoint_read_tensor(f, name, both[k], PARAM_VALUE, p, host, longest, &mismatch);
        }
        free(host);
    }
    checkpoint_report(path, &mismatch);
    checkpoint_read_running(f, "", path, t);
    t->disc.batches_tracked = info->disc_batches;
}

// The weights that a baseline starts from, in a file of public names behind `prefix`: a checkpoint of ours, or an
// autoencoder of LDM's or VA-VAE's. Discriminator and projection keep theirs where the file has none; the return value
// tells what it had.
enum { START_DISCRIMINATOR = 1, START_PROJECTION = 2 };
int checkpoint_start_baseline(const safetensors_t* f, const char* prefix, const char* path, tokenizer_t* t) {
    checkpoint_mismatch_t mismatch = {0, 0, "", ""};
    params_t* both[2] = {&t->params, &t->disc_params};
    char name[400];
    int has = 0;
    snprintf(name, sizeof name, "%sloss.discriminator.main.0.weight", prefix);
    if (safetensors_find(f, name)) has |= START_DISCRIMINATOR;
    snprintf(name, sizeof name, "%slinear_proj.weight", prefix);
    if (tokenizer_has_vf_loss(&t->config) && safetensors_find(f, name)) has |= START_PROJECTION;
    size_t longest = checkpoint_longest(t);
    floatS* host = (floatS*)malloc_check(2 * longest * sizeof(floatS), "a file's tensor");
    for (int k = 0; k < (has & START_DISCRIMINATOR ? 2 : 1); k++) {
        for (int i = 0; i < both[k]->table.n; i++) {
            const param_t* p = &both[k]->table.items[i];
            if (!strcmp(p->name, "linear_proj.weight") && !(has & START_PROJECTION)) continue;
            snprintf(name, sizeof name, "%s%s", prefix, p->name);
            checkpoint_read_tensor(f, name, both[k], PARAM_VALUE, p, host, longest, &mismatch);
        }
    }
    free(host);
    checkpoint_report(path, &mismatch);
    if (has & START_DISCRIMINATOR) checkpoint_read_running(f, prefix, path, t);
    return has;
}
