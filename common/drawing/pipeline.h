// pipeline.h: a trained LightningDiT and the tokenizer whose latents it has learnt, opened as one thing that draws.
//
//     pipeline_open(&g, "dit.safetensors", "tokenizer.safetensors", 0, options);   what it is: shapes, classes
//     pipeline_use_statistics(&g, "latents_stats.pt");                             where neither file has them
//     pipeline_load(&g);                                                           its weights and memory
//     pipeline_draw(&g, pixels, numbers, labels, n, s);
//     pipeline_close(&g);
//
// The two must belong together: a DiT names the fingerprint of the tokenizer that made its latents, and another one is
// refused. The statistics that normalise latents come from the DiT's file; a file without them (LightningDiT's own)
// uses those of the tokenizer's checkpoint; where that has none either (VA-VAE's own), a file of them must be named.
// Opening costs the headers and the tokenizer alone, so that a question that the
// model cannot answer (class 1000) ends before gigabytes are read.
// Users: sample.cu and eval.cu. Look next at common/drawing/dit_sampler.h.
#pragma once
// defines: dit_describe, dit_read_weights, dit_read_statistics
#include "common/training/dit_checkpoint.h"
// defines: dit_sampler_t, dit_sampler_open, dit_sampler_draw, dit_sampler_batch, dit_sampler_pass
#include "common/drawing/dit_sampler.h"
// defines: random_below, RANDOM_LABELS
#include "common/program/rng.h"

// Where mean and deviation of the latents come from.
typedef enum { STATISTICS_NONE, STATISTICS_OF_TOKENIZER, STATISTICS_GIVEN } pipeline_statistics_t;

// The memory plans hold addresses of this struct's members: it must stay where it is once it is open.
typedef struct {
    const char *path, *tokenizer_path;
    int raw;              // the DiT's raw weights instead of their average
    dit_sampler_options_t options;
    double ema;           // what the average of the weights keeps of itself a step; 0: others' files do not say
    safetensors_t file;   // open until the weights are loaded
    params_t params;
    lightningdit_t net;
    plan_t plan, work;
    autoencoder_t tokenizer;
    dit_sampler_t sampler;
    floatS *mean, *std;   // (C) of the latents
    pipeline_statistics_t statistics;
} pipeline_t;

static inline void pipeline_read_statistics(pipeline_t* g) {
    int C = g->net.config.C;
    g->mean = (floatS*)calloc_check(2 * (size_t)C, sizeof(floatS), "latent statistics");
    g->std = g->mean + C;
    if (safetensors_find(&g->file, "latent.mean")) {
        checkpoint_read_vector(&g->file, g->path, "latent.mean", g->mean, C);
        checkpoint_read_vector(&g->file, g->path, "latent.std", g->std, C);
        g->statistics = STATISTICS_GIVEN;
    } else if (g->tokenizer.statistics) {
        if (g->tokenizer.z == C) memcpy(g->mean, g->tokenizer.mean, 2 * C * sizeof(floatS));
        g->statistics = STATISTICS_OF_TOKENIZER;
    }
}

// Takes the statistics from a file of their own: LightningDiT's latents_stats.pt, or latents_stats.st of train_dit.
void pipeline_use_statistics(pipeline_t* g, const char* path) {
    dit_read_statistics(path, g->net.config.C, g->mean, g->std);
    g->statistics = STATISTICS_GIVEN;
}

// Latents are `scale` times what the autoencoder gives, 0.18215 with those of Stable Diffusion.
void pipeline_use_scale(pipeline_t* g, double scale) {
    for (int c = 0; c < g->net.config.C; c++) g->mean[c] = 0, g->std[c] = (floatS)(1 / scale);
    g->statistics = STATISTICS_GIVEN;
}

// The average's width in a configuration of train_dit, {"ema": 0.9999, ...}.
static inline double pipeline_ema(const safetensors_t* file) {
    const char* config = safetensors_metadata(file, "config");
    const char* at = config ? strstr(config, "\"ema\": ") : NULL;
    return at ? strtod(at + 7, NULL) : 0;
}

// Opens both files, checks that they belong together, and reads all but the DiT's weights.
void pipeline_open(pipeline_t* g, const char* dit, int raw, const char* tokenizer, autoencoder_weights_t weights,
                   dit_sampler_options_t options) {
    memset(g, 0, sizeof *g);
    g->path = dit;
    g->tokenizer_path = tokenizer;
    g->raw = raw;
    g->options = options;
    tensor_file_open_or_die(&g->file, dit);
    g->net.config = dit_describe(&g->file, dit, raw);
    dit_sampler_of_noise(&g->net.config, &options);
    g->ema = pipeline_ema(&g->file);
    int side = g->net.config.side, batch = dit_sampler_batch(options.batch, &g->net.config);
    autoencoder_open_sized(&g->tokenizer, tokenizer, weights, -side, batch, 0, 1);
    const char* made_by = safetensors_metadata(&g->file, "tokenizer");
    if (made_by && made_by[0] && strcmp(made_by, g->tokenizer.fingerprint)) {
        fatal("%s was trained on latents of tokenizer %s, but %s is tokenizer %s (weights: %s): its decoder would draw "
              "nonsense; give the tokenizer that made the latents with -tokenizer, or its weights with "
              "-tokenizer_weights", dit, made_by, tokenizer, g->tokenizer.fingerprint, g->tokenizer.weights);
    }
    pipeline_read_statistics(g);
}

void pipeline_load(pipeline_t* g) {
    if (g->statistics == STATISTICS_OF_TOKENIZER) {
        warn("%s has no latent statistics; those of the tokenizer's checkpoint are taken (-latent_stats names others)",
             g->path);
    } else if (g->statistics == STATISTICS_NONE) {
        fatal("neither %s nor %s tells mean and deviation of the latents; give LightningDiT's latents_stats.pt with "
              "-latent_stats, or -latent_scale", g->path, g->tokenizer_path);
    }
    lightningdit_register(&g->net, &g->params.table, "");
    lightningdit_plan(&g->net, &g->plan, dit_sampler_pass(g->options.batch, &g->net.config, &g->options.guidance), 0);
    lightningdit_plan_work(&g->net, &g->work);
    params_allocate(&g->params, g->params.table.total, 0, "LightningDiT's weights");
    plan_allocate(&g->plan, "activations");
    plan_allocate(&g->work, "working memory");
    dit_read_weights(&g->file, g->path, &g->params, g->raw);
    lightningdit_set_tables(&g->net, &g->params);
    dit_sampler_open(&g->sampler, &g->net, &g->params, &g->tokenizer, g->mean, g->std, g->options);
    safetensors_close(&g->file);
}

// Draws in another way from here on. Guidance needs that pipeline_load has planned for it, with a scale above 1.
void pipeline_use(pipeline_t* g, dit_sampler_options_t options) {
    dit_sampler_close(&g->sampler);
    g->options = options;
    dit_sampler_open(&g->sampler, &g->net, &g->params, &g->tokenizer, g->mean, g->std, options);
}

// Draws `count` images. One that is none (a NaN, an infinity) ends the program: nothing of it is shown or measured.
void pipeline_draw(pipeline_t* g,
                   uint8_t* pixels,         // (count, H, W, 3)
                   const uint64_t* numbers, // (count)
                   const int* labels,       // (count)
                   int count, stream_t s) {
    int good = dit_sampler_draw(&g->sampler, pixels, numbers, labels, count, s);
    if (good == count) return;
    char blame[300];
    size_t C = 2 * (size_t)g->net.config.C, bad = first_not_finite(g->mean, C);
    params_blame(&g->params, blame, sizeof blame);
    if (bad < C) snprintf(blame, sizeof blame, " (the statistics of its latents hold one)");
    fatal("%s, with tokenizer %s, draws NaN or infinity as image %llu, of class %d%s", g->path, g->tokenizer_path,
          (unsigned long long)numbers[good], labels[good], blame);
}

void pipeline_close(pipeline_t* g) {
    dit_sampler_close(&g->sampler);
    autoencoder_close(&g->tokenizer);
    plan_free(&g->plan);
    plan_free(&g->work);
    params_free(&g->params);
    free(g->mean);
    memset(g, 0, sizeof *g);
}

// A hash of the latents' mean and deviation.
static inline uint64_t pipeline_statistics_hash(const pipeline_t* g) {
    return fingerprint_tensor(FINGERPRINT_START, "latent", g->mean, 2 * (size_t)g->net.config.C);
}

// A hash of the DiT's file: of all of its tensors. Before pipeline_load, which closes it.
static inline uint64_t pipeline_hash(const pipeline_t* g) {
    uint64_t h = FINGERPRINT_START;
    for (int i = 0; i < g->file.n; i++) {
        const st_tensor_t* t = &g->file.tensors[i];
        size_t bytes = t->numel * st_dtype_info(t->dtype).bits / 8;
        for (const char* c = t->name; *c; c++) h = fingerprint_word(h, (unsigned char)*c);
        for (size_t k = 0; k < bytes; k += 4) {
            uint32_t word = 0;
            memcpy(&word, t->data + k, bytes - k < 4 ? bytes - k : 4);
            h = fingerprint_word(h, word);
        }
    }
    return h;
}

// The class of image k where each image has its own: balanced takes them in turn, else each is drawn.
static inline int pipeline_label(const pipeline_t* g, int balanced, uint64_t seed, size_t k) {
    size_t classes = (size_t)g->net.config.classes;
    return balanced ? (int)(k % classes) : (int)random_below(seed, RANDOM_LABELS, 0, k, (uint32_t)classes);
}
