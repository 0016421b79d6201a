// tokenizer_checkpoint.h: the state of a tokenizer run as one safetensors file.
//
// What stands in it, all F32 under public names, convolutions as (OC, C, K, K):
//     encoder.*, adapter.*, decoder.*        the weights as trained ("raw"); s2ddecoder.* of the larger decoder; of a
//                                            CNN also quant_conv.*, post_quant_conv.*; of VA-VAE linear_proj.weight
//     encoder.*.lora_A.weight, .lora_B.weight    stage 2 with -lora: the low-rank pairs beside a frozen encoder
//     ema.0.NAME, ema.1.NAME                 their two moving averages, for what this stage trains
//     adam.m.NAME, adam.v.NAME               optimiser moments, of the discriminator too
//     loss.discriminator.*                   discriminator with its BatchNorm buffers
//     target.*                               stage 2: the frozen encoder and adapter that define z0
//     latent.mean, latent.std                (z) of each latent channel, with the shipped (averaged) weights
//     metadata                               format, stage, step, images, step counts, steps (to do in all),
//                                            latent_step (at which mean and deviation were measured: a run that is
//                                            stopped saves at once, with those of before; 0: a guess from one batch),
//                                            the configuration as JSON; lora_alpha where there are pairs
// Everything random in a run is a function of (seed, step, image), so this is all that a bit-exact resume needs.
//
// Whoever uses or goes on from a result reads it through checkpoint_read_shipped, which chooses raw or averaged weights
// and merges low-rank pairs into the weights beside them: to all but a resumed run it is an ordinary tokenizer.
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

// Which of a checkpoint's weights make the tokenizer that is used (common/drawing/autoencoder.h), in the order of the
// choices of -tokenizer_weights: the average that the training's -ema names, the raw ones, the average of this number.
typedef enum { AUTOENCODER_AVERAGED, AUTOENCODER_RAW, AUTOENCODER_EMA0, AUTOENCODER_EMA1 } autoencoder_weights_t;
#define AUTOENCODER_WEIGHTS "ema|raw|ema0|ema1"
#define AUTOENCODER_WEIGHTS_HELP \
    "of a tokenizer's checkpoint: the average that its -ema names, raw weights, or the average with this number"

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
    char alpha[32];
    snprintf(alpha, sizeof alpha, "%.17g", t->config.lora.alpha);
    if (t->config.lora.rank) safetensors_writer_metadata(w, "lora_alpha", alpha);
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
        fatal("%s was written by -export: it holds a tokenizer for use, without the discriminator and the state of its "
              "training. No stage can go on from it; give the checkpoint that it was made from (stage%d.safetensors in "
              "the -out of its run), or move this file away", path, info.stage);
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

// The tensor `name`, or the average number `ema` of it (0 or 1) if the file has one; ema = -1: raw.
static inline const st_tensor_t* checkpoint_find_shipped(const safetensors_t* f, const char* name, int ema) {
    char average[200];
    snprintf(average, sizeof average, "ema.%d.%s", ema, name);
    const st_tensor_t* t = ema >= 0 ? safetensors_find(f, average) : NULL;
    return t ? t : safetensors_find(f, name);
}

// Adds the product of a tensor's low-rank pair, if the file has one, to its weights. With averaged weights it is the
// product of the averaged factors.
static inline void checkpoint_merge_lora(const safetensors_t* f, int ema, const param_t* p,
                                         floatS* host) { // (count)
    char layer[120], a_name[160], b_name[160];
    snprintf(layer, sizeof layer, "%s", p->name);
    char* dot = strrchr(layer, '.');
    if (p->ndim != 2 || !dot || strcmp(dot, ".weight")) return;
    *dot = 0;
    snprintf(a_name, sizeof a_name, "%s.lora_A.weight", layer);
    snprintf(b_name, sizeof b_name, "%s.lora_B.weight", layer);
    const st_tensor_t *a = checkpoint_find_shipped(f, a_name, ema), *b = checkpoint_find_shipped(f, b_name, ema);
    if (!a && !b) return;
    const char* alpha = safetensors_metadata(f, "lora_alpha");
    size_t OC = p->shape[0], C = p->shape[1], r = a && a->ndim == 2 ? a->shape[0] : 0;
    int fits = r > 0 && b && b->ndim == 2 && a->shape[1] == C && b->shape[0] == OC && b->shape[1] == r;
    if (!fits || !alpha || !(atof(alpha) > 0) || !st_dtype_is_float(a->dtype) || !st_dtype_is_float(b->dtype)) {
        fatal("%s: %s and %s do not belong to %s, or metadata field \"lora_alpha\" is missing; the file is damaged",
              f->path, a_name, b_name, p->name);
    }
    floatS* pair = (floatS*)malloc_check((a->numel + b->numel) * sizeof(floatS), "a low-rank pair");
    safetensors_read(a, pair);
    safetensors_read(b, pair + a->numel);
    lora_merge(host, pair, pair + a->numel, atof(alpha), (int)OC, (int)C, (int)r);
    free(pair);
}

// host = the weights of `p` in a file of ours, as they are used: averaged where `ema` is 0 or 1 and the file has that
// average, else raw; with its low-rank pair. 1, or 0 when they do not fit: then it stands in *mismatch.
static inline int checkpoint_read_shipped(const safetensors_t* f, int ema, const param_t* p,
                                          floatS* host, // (count)
                                          checkpoint_mismatch_t* mismatch) {
    const st_tensor_t* t = checkpoint_find_shipped(f, p->name, ema);
    if (!checkpoint_read_values(f, t ? t->name : p->name, p, host, mismatch)) return 0;
    checkpoint_merge_lora(f, ema, p, host);
    return 1;
}

// The weights of encoder, adapter, decoder and discriminator of an earlier stage, for the start of the next or for use,
// as checkpoint_read_shipped gives them; the discriminator's are raw. Low-rank pairs of *t keep their initial values:
// stage 1 has none.
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
            if (k == 0 && p->offset >= t->lora_begin && p->offset < t->adapter_begin) continue;
            if (!checkpoint_read_shipped(f, k == 0 ? ema : -1, p, host, &mismatch)) continue;
            params_set(both[k], PARAM_VALUE, p, host, host + longest);
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
