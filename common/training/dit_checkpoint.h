// dit_checkpoint.h: the state of a run of train_dit as one safetensors file, and the weights of anybody's LightningDiT.
//
// What stands in ours, all F32 under the published names:
//     NAME                       the weights as trained
//     ema.NAME                   their average, for what is trained: what is sampled from
//     adam.m.NAME, adam.v.NAME   optimiser moments
//     latent.mean, latent.std    (C) by which latents were normalised
//     metadata                   format, step, images, optimiser steps, how many images the set has, the tokenizer's
//                                fingerprint, the names of the classes, the losses so far, the configuration as JSON;
//                                where captions are read, text_encoder and text: what
//                                common/models/caption_encoder.h calls name and saved
// An exported file (-export) holds the averaged weights under their plain names and the latent statistics.
//
// Files by others are read as they are: LightningDiT's own, {"ema": ...} as published, {"model", "ema", "opt",
// "config"} as its training leaves them, or the weights alone. Before the names may stand "module." or "_orig_mod.", of
// a model wrapped for several processes or compiled. The averages are taken where there are any. What the network is
// like is read from the shapes, but for the number of heads, which the published sizes tell. DiT's and SiT's published
// files have the same tensors, twice the latent's channels come out of both, and nothing in them tells which it is. The
// rotation's tables, feat_rope.*, are computed here. LightningDiT's latent statistics are a file of their own
// (dit_read_statistics). Text-to-image transformers of others are read by common/models/mmdit_file.h. Look next at
// common/training/state_file.h, of which this is made, and train_dit.cu and sample.cu.
#pragma once
// defines: checkpoint_section_t, checkpoint_declare_section, checkpoint_write_section, checkpoint_read_section, ...
#include "common/training/state_file.h"
// defines: dit_t
#include "common/training/dit.h"
// defines: tensor_file_open_or_die
#include "common/files/tensor_file.h"
// defines: mmdit_file_config_behind, mmdit_formats
#include "common/models/mmdit_file.h"
// defines: weights_rule_t, weights_check_file
#include "common/models/weights.h"

#define DIT_FORMAT "aligntok-dit-1"

// What a checkpoint knows besides tensors. Texts point into the open file while reading.
typedef struct {
    int64_t step, images;  // done, seen
    int64_t t;             // optimiser steps: `step` without those that were skipped
    int64_t set;           // how many images it learns from; 0 where nobody knows
    const char* tokenizer; // fingerprint of the tokenizer that made the latents; "" where nobody knows
    const char* losses;    // the loss guard's state and the sums of the status line, exactly
    const char* config;    // JSON
    const char* class_names; // a JSON array; "" where nobody knows
    const char *text_encoder, *text; // its fingerprint, and how it is opened again; "" where there are no captions
} dit_info_t;

enum { DIT_SECTIONS = 4 };
static inline void dit_sections(dit_t* d, checkpoint_section_t sections[DIT_SECTIONS]) {
    checkpoint_section_t all[DIT_SECTIONS] = {{&d->params, PARAM_VALUE, ""}, {&d->params, PARAM_EMA0, "ema."},
                                              {&d->params, PARAM_ADAM_M, "adam.m."},
                                              {&d->params, PARAM_ADAM_V, "adam.v."}};
    memcpy(sections, all, sizeof all);
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing

static inline void dit_declare_texts(st_writer_t* w, const dit_info_t* info) {
    safetensors_writer_metadata(w, "tokenizer", info->tokenizer);
    if (info->class_names[0]) safetensors_writer_metadata(w, "class_names", info->class_names);
    if (info->text_encoder[0]) safetensors_writer_metadata(w, "text_encoder", info->text_encoder);
    if (info->text[0]) safetensors_writer_metadata(w, "text", info->text);
    safetensors_writer_metadata(w, "losses", info->losses);
    safetensors_writer_metadata(w, "config", info->config);
}

// Bytes of the file, but for its header.
static inline size_t dit_file_bytes(dit_t* d) {
    checkpoint_section_t sections[DIT_SECTIONS];
    size_t values = 0;
    dit_sections(d, sections);
    for (int k = 0; k < DIT_SECTIONS; k++) values += checkpoint_section_values(&sections[k]);
    return values * sizeof(float);
}

// Writes the whole state; where several processes train, all of them call it, between two steps. On failure the old
// file stays and `error` says what happened and what to do; returns 1 on success.
int dit_save(const char* path, dit_t* d, const dit_info_t* info, const floatS* latent_mean, const floatS* latent_std,
             char* error, size_t error_size, stream_t s) {
    st_writer_t w;
    checkpoint_section_t sections[DIT_SECTIONS];
    dit_sections(d, sections);
    int writes = !d->comm || comm_is_first(d->comm), C = d->C;
    if (writes) {
        safetensors_writer_init(&w);
        safetensors_writer_metadata(&w, "format", DIT_FORMAT);
        checkpoint_number(&w, "step", info->step);
        checkpoint_number(&w, "images", info->images);
        checkpoint_number(&w, "adam_steps", d->params.t);
        checkpoint_number(&w, "set", info->set);
        dit_declare_texts(&w, info);
        for (int k = 0; k < DIT_SECTIONS; k++) checkpoint_declare_section(&w, &sections[k]);
        checkpoint_declare(&w, "", "latent.mean", 1, &C);
        checkpoint_declare(&w, "", "latent.std", 1, &C);
        safetensors_writer_begin(&w, path);
    }
    size_t longest = params_longest(&d->params.table);
    floatS* host = (floatS*)malloc_check(2 * longest * sizeof(floatS), "a checkpoint's tensor");
    for (int k = 0; k < DIT_SECTIONS; k++) {
        checkpoint_write_section(&w, d->comm, &sections[k], host, longest, s);
    }
    free(host);
    if (!writes) return 1;
    safetensors_writer_data(&w, latent_mean, C);
    safetensors_writer_data(&w, latent_std, C);
    return safetensors_writer_finish(&w, error, error_size);
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

static inline const char* dit_text_or_none(const safetensors_t* f, const char* key) {
    const char* text = safetensors_metadata(f, key);
    return text ? text : "";
}

// Opens a checkpoint of train_dit and reads its metadata; ends with a message when it is not one.
dit_info_t dit_open(safetensors_t* f, const char* path) {
    safetensors_open_or_die(f, path);
    const char* format = safetensors_metadata(f, "format");
    if (!format || strcmp(format, DIT_FORMAT)) {
        fatal("%s: not a checkpoint of train_dit: its metadata field \"format\" is %s, wanted " DIT_FORMAT
              "; give a file that train_dit wrote, or move this one away", path, format ? format : "missing");
    }
    dit_info_t info;
    info.step = checkpoint_metadata_number(f, path, "step");
    info.images = checkpoint_metadata_number(f, path, "images");
    info.t = checkpoint_metadata_number(f, path, "adam_steps");
    info.set = safetensors_metadata(f, "set") ? checkpoint_metadata_number(f, path, "set") : 0;
    info.tokenizer = safetensors_metadata(f, "tokenizer");
    info.losses = safetensors_metadata(f, "losses");
    info.config = safetensors_metadata(f, "config");
    info.class_names = dit_text_or_none(f, "class_names");
    info.text_encoder = dit_text_or_none(f, "text_encoder");
    info.text = dit_text_or_none(f, "text");
    if (!info.tokenizer) fatal("%s: metadata field \"tokenizer\" is missing; the file is damaged", path);
    if (!info.losses) fatal("%s: metadata field \"losses\" is missing; the file is damaged", path);
    if (!info.config) fatal("%s: metadata field \"config\" is missing; the file is damaged", path);
    return info;
}

// Reads the first `count` sections, of which the first are the weights.
static inline void dit_read_sections(const safetensors_t* f, const char* path, dit_t* d, int count) {
    checkpoint_mismatch_t mismatch = {0, 0, "", ""};
    checkpoint_section_t sections[DIT_SECTIONS];
    dit_sections(d, sections);
    size_t longest = params_longest(&d->params.table);
    floatS* host = (floatS*)malloc_check(2 * longest * sizeof(floatS), "a checkpoint's tensor");
    for (int k = 0; k < count; k++) checkpoint_read_section(f, &sections[k], host, longest, &mismatch);
    free(host);
    checkpoint_report(path, &mismatch);
}

// Was the file written by -export? Such a one has weights and no state of a training.
static inline int dit_is_exported(const safetensors_t* f) { return safetensors_metadata(f, "weights") != NULL; }

// Restores a run in the middle.
void dit_resume(const safetensors_t* f, const dit_info_t* info, const char* path, dit_t* d) {
    dit_read_sections(f, path, d, DIT_SECTIONS);
    d->params.t = info->t;
}

// The weights of an exported file, of any type of numbers, where a training begins: its averages are the same.
void dit_start(const safetensors_t* f, const char* path, dit_t* d) {
    dit_read_sections(f, path, d, 1);
    params_start_averages(&d->params);
}

// ---------------------------------------------------------------------------------------------------------------------
// Weights for use: ours, exported ones, published ones

// What else may stand in a file with a LightningDiT.
static const weights_rule_t dit_rules[] = {
    {"feat_rope.*", NULL, PART_WHOLE}, // tables of the rotation
    {"ema.*", NULL, PART_WHOLE},       // the other weights: raw or averaged
    {"model.*", NULL, PART_WHOLE},
    {"opt.*", NULL, PART_WHOLE},       // moments of an optimiser
    {"adam.*", NULL, PART_WHOLE},
    {"latent.*", NULL, PART_WHOLE},
    {"*", "*", PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};

enum { DIT_PREFIX = 64 };

// Where a file keeps the weights that are to be used, in `prefix`, which is returned. The first place that fits is
// taken: averages before raw weights.
static inline const char* dit_prefix(char prefix[DIT_PREFIX], const safetensors_t* f, const char* path, int raw) {
    static const char* const places[] = {"ema.", "", "model.", "state_dict."};
    enum { PLACES = sizeof places / sizeof places[0] };
    char name[200];
    int averages = 0;
    for (int i = 0; i < PLACES; i++) {
        snprintf(prefix, DIT_PREFIX, "%s", places[i]);
        snprintf(name, sizeof name, "%sfinal_layer.linear.weight", prefix);
        if (!safetensors_find(f, name)) continue;
        if (i || !raw) return prefix;
        averages = 1;
    }
    if (averages) fatal("%s holds averaged weights only, and raw ones are asked for; leave -raw out", path);
    fatal("%s holds no LightningDiT: there is no tensor final_layer.linear.weight in it, also not behind ema., model. "
          "or state_dict.; give a file of train_dit or one with LightningDiT's names", path);
}

// A tensor of the network by its plain name, behind the prefix or, where that lacks it (what is frozen has no average),
// without.
static inline const st_tensor_t* dit_tensor(const safetensors_t* f, const char* prefix, const char* plain) {
    char name[200];
    snprintf(name, sizeof name, "%s%s", prefix, plain);
    const st_tensor_t* tensor = safetensors_find(f, name);
    return tensor ? tensor : safetensors_find(f, plain);
}

static inline const st_tensor_t* dit_need(const safetensors_t* f, const char* path, const char* prefix,
                                          const char* plain, int ndim) {
    const st_tensor_t* tensor = dit_tensor(f, prefix, plain);
    if (!tensor) fatal("%s: tensor %s%s is missing; the file is damaged or of another model", path, prefix, plain);
    if (tensor->ndim != ndim) {
        fatal("%s: tensor %s%s has %d dimensions, wanted %d; the file is of another model", path, prefix, plain,
              tensor->ndim, ndim);
    }
    return tensor;
}

// The configuration that the shapes tell; the number of heads, which they do not, from the table of sizes.
lightningdit_config_t dit_describe(const safetensors_t* f, const char* path, int raw) {
    char place[DIT_PREFIX];
    const char* prefix = dit_prefix(place, f, path, raw);
    const st_tensor_t* embed = dit_need(f, path, prefix, "x_embedder.proj.weight", 4); // (D, C, P, P)
    const st_tensor_t* pos = dit_need(f, path, prefix, "pos_embed", 3);                // (1, T, D)
    const st_tensor_t* labels = dit_need(f, path, prefix, "y_embedder.embedding_table.weight", 2);
    const st_tensor_t* ada = dit_need(f, path, prefix, "blocks.0.adaLN_modulation.1.weight", 2);
    const st_tensor_t* linear = dit_need(f, path, prefix, "final_layer.linear.weight", 2);
    int classic = !dit_tensor(f, prefix, "blocks.0.norm1.weight");
    int D = (int)embed->shape[0], P = (int)embed->shape[2], depth = 0, grid = (int)lround(sqrt((double)pos->shape[1]));
    for (char name[80]; depth < LIGHTNINGDIT_MAX_DEPTH; depth++) {
        snprintf(name, sizeof name, "blocks.%d.attn.qkv.weight", depth);
        if (!dit_tensor(f, prefix, name)) break;
    }
    if ((size_t)grid * grid != pos->shape[1]) {
        fatal("%s: pos_embed has %zu rows, no square; the file is of another model", path, pos->shape[1]);
    }
    for (int i = 0; i < LIGHTNINGDIT_CONFIGS; i++) {
        lightningdit_config_t c = lightningdit_configs[i];
        if (c.depth != depth || c.dim != D || c.patch != P || c.classic != classic) continue;
        c.C = (int)embed->shape[1];
        c.side = grid * P;
        c.classes = (int)labels->shape[0] - 1;
        c.qk_norm = dit_tensor(f, prefix, "blocks.0.attn.q_norm.weight") != NULL;
        c.mlp_gelu = dit_tensor(f, prefix, "blocks.0.mlp.fc1.weight") != NULL;
        c.no_shift = ada->shape[0] == 4 * (size_t)D;
        c.sigma = linear->shape[0] == 2 * (size_t)P * P * c.C;
        return c;
    }
    fatal("%s holds %d blocks of width %d with patches of %d: none of the sizes known here (-h lists them)",
          path, depth, D, P);
}

// Reads the weights of a network that was registered as dit_describe said. Frozen tensors have no average in ours: they
// stand under their plain names.
void dit_read_weights(const safetensors_t* f, const char* path, params_t* params, int raw) {
    char place[DIT_PREFIX];
    const char* prefix = dit_prefix(place, f, path, raw);
    weights_check_file(f, &params->table, prefix, "", dit_rules, ": it is a LightningDiT");
    checkpoint_mismatch_t mismatch = {0, 0, "", ""};
    size_t longest = params_longest(&params->table);
    floatS* host = (floatS*)malloc_check(2 * longest * sizeof(floatS), "a checkpoint's tensor");
    for (int i = 0; i < params->table.n; i++) {
        const param_t* p = &params->table.items[i];
        char name[200];
        snprintf(name, sizeof name, "%s%s", prefix, p->name);
        if (!safetensors_find(f, name)) snprintf(name, sizeof name, "%s", p->name);
        checkpoint_read_tensor(f, name, params, PARAM_VALUE, p, host, longest, &mismatch);
    }
    free(host);
    checkpoint_report(path, &mismatch);
}

// Mean and deviation of each latent channel from a file of their own: LightningDiT's latents_stats.pt, {"mean", "std"}
// of shape (1, C, 1, 1), or the latent.mean and latent.std of any file of ours.
void dit_read_statistics(const char* path, int C,
                         floatS* mean, floatS* std) { // (C)
    safetensors_t f;
    tensor_file_open_or_die(&f, path);
    int plain = safetensors_find(&f, "mean") != NULL;
    checkpoint_read_vector(&f, path, plain ? "mean" : "latent.mean", mean, C);
    checkpoint_read_vector(&f, path, plain ? "std" : "latent.std", std, C);
    for (int c = 0; c < C; c++) {
        if (isfinite((double)mean[c]) && isfinite((double)std[c]) && std[c] > 0) continue;
        fatal("%s: channel %d has mean %g and deviation %g; want finite numbers and a deviation above 0", path, c,
              (double)mean[c], (double)std[c]);
    }
    safetensors_close(&f);
}

// Values beyond F16 end the program before a file is begun.
static inline void dit_check_f16(const safetensors_t* f, const char* path, const param_table_t* table, floatS* host) {
    for (int i = 0; i < table->n; i++) {
        const st_tensor_t* t = dit_tensor(f, "ema.", table->items[i].name);
        safetensors_read(t, host);
        for (size_t k = 0; k < t->numel; k++) {
            unsigned char half[2];
            uint16_t bits;
            st_store(ST_F16, (double)host[k], half);
            memcpy(&bits, half, 2);
            if (isfinite((double)st_from_f16(bits))) continue;
            fatal("%s: a value of %s is beyond F16; give -export_type f32", path, table->items[i].name);
        }
    }
}

// The table of the network that a checkpoint of ours holds, for the caller to free; returns its latents' channels.
static inline int dit_table_of_file(const safetensors_t* f, const dit_info_t* info, const char* path,
                                    param_table_t* table) {
    static dit_t d;
    dit_config_t config;
    memset(&config, 0, sizeof config);
    if (info->text_encoder[0]) {
        config.mmdit = mmdit_file_config_behind(f, &mmdit_formats[0], "ema.");
        config.mmdit.h = config.mmdit.w = 1; // no tensor depends on them
    } else {
        config.net = dit_describe(f, path, 0);
    }
    dit_register(&d, config);
    *table = d.params.table;
    return d.C;
}

// Writes the weights that are to be used, and nothing else: what `from`, a checkpoint of ours, holds as averages.
void dit_export(const char* from, const char* path, st_dtype_t dtype) {
    safetensors_t f;
    dit_info_t info = dit_open(&f, from);
    st_writer_t w;
    safetensors_writer_init(&w);
    safetensors_writer_metadata(&w, "format", DIT_FORMAT);
    checkpoint_number(&w, "step", info.step);
    checkpoint_number(&w, "images", info.images);
    checkpoint_number(&w, "adam_steps", info.t);
    safetensors_writer_metadata(&w, "weights", "averaged");
    dit_declare_texts(&w, &info);
    param_table_t table;
    size_t C = (size_t)dit_table_of_file(&f, &info, from, &table), longest = params_longest(&table);
    floatS* host = (floatS*)malloc_check((longest > C ? longest : C) * sizeof(floatS), "a tensor");
    if (dtype == ST_F16) dit_check_f16(&f, from, &table, host);
    for (int i = 0; i < table.n; i++) {
        const st_tensor_t* t = dit_tensor(&f, "ema.", table.items[i].name);
        safetensors_writer_tensor(&w, table.items[i].name, dtype, t->ndim, t->shape);
    }
    safetensors_writer_tensor(&w, "latent.mean", ST_F32, 1, &C);
    safetensors_writer_tensor(&w, "latent.std", ST_F32, 1, &C);
    safetensors_writer_begin(&w, path);
    for (int i = 0; i < table.n; i++) {
        const st_tensor_t* t = dit_tensor(&f, "ema.", table.items[i].name);
        safetensors_read(t, host);
        safetensors_writer_data(&w, host, t->numel);
    }
    checkpoint_read_vector(&f, from, "latent.mean", host, (int)C);
    safetensors_writer_data(&w, host, C);
    checkpoint_read_vector(&f, from, "latent.std", host, (int)C);
    safetensors_writer_data(&w, host, C);
    free(host);
    free(table.items);
    safetensors_close(&f);
    safetensors_writer_finish_or_die(&w);
}
