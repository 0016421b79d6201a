// pipeline.h: a trained diffusion transformer and the tokenizer whose latents it has learnt, opened as one thing that
// draws.
//
//     pipeline_open(&g, "dit.safetensors", "tokenizer.safetensors", 0, options);   what it is: shapes, classes
//     pipeline_use_statistics(&g, "latents_stats.pt");                             where neither file has them
//     pipeline_use_text(&g, &encoder, "", 0, 0);                                   g.is_text: its captions, sizes
//     pipeline_load(&g);                                                           its weights and memory
//     pipeline_draw(&g, pixels, numbers, labels, n, s);                            of classes, or
//     pipeline_draw_captions(&g, pixels, numbers, captions, n, s);
//     pipeline_close(&g);
//
// The two must belong together: a DiT names the fingerprint of the tokenizer that made its latents, and another one is
// refused; a text-to-image transformer also names the text encoder. The statistics that normalise latents come from the
// DiT's file; a file without them (LightningDiT's own) uses those of the tokenizer's checkpoint; where that has none
// either (VA-VAE's own), a file of them must be named. Which of the two networks a file holds, its tensors tell.
// Opening costs the headers and the tokenizer alone, so that a question that the
// model cannot answer (class 1000) ends before gigabytes are read.
// Users: sample.cu and eval.cu. Look next at common/drawing/dit_sampler.h.
#pragma once
// defines: dit_describe, dit_read_weights, dit_read_statistics, dit_prefix, DIT_FORMAT
#include "common/training/dit_checkpoint.h"
// defines: mmdit_file_holds, mmdit_file_config, mmdit_file_config_behind, mmdit_file_load
#include "common/models/mmdit_file.h"
// defines: caption_encoder_t, caption_encoder_*
#include "common/models/caption_encoder.h"
// defines: dit_sampler_t, dit_sampler_open, dit_sampler_draw, dit_sampler_batch, dit_sampler_pass, dit_sampler_show
#include "common/drawing/dit_sampler.h"
// defines: random_below, RANDOM_LABELS
#include "common/program/rng.h"
// defines: HASH_START, hash_string, hash_word
#include "common/program/hash.h"

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
    int is_text;          // captions are drawn, by `mmdit`; else classes, by `net`
    lightningdit_t net;
    mmdit_t mmdit;
    caption_encoder_t encoder;
    text_batch_t captions; // of the images that are drawn: first what takes the place of no caption
    const char* negative;
    plan_t plan, work;
    autoencoder_t tokenizer;
    dit_sampler_t sampler;
    floatS *mean, *std;   // (C) of the latents
    pipeline_statistics_t statistics;
} pipeline_t;

enum { PIPELINE_LONGEST_SIDE = 4096 }; // pixels

// Channels of the latents.
static inline int pipeline_channels(const pipeline_t* g) { return g->is_text ? g->mmdit.config.C : g->net.config.C; }

static inline void pipeline_read_statistics(pipeline_t* g) {
    int C = pipeline_channels(g);
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
    dit_read_statistics(path, pipeline_channels(g), g->mean, g->std);
    g->statistics = STATISTICS_GIVEN;
}

// Latents are `scale` times what the autoencoder gives, 0.18215 with those of Stable Diffusion.
void pipeline_use_scale(pipeline_t* g, double scale) {
    for (int c = 0; c < pipeline_channels(g); c++) g->mean[c] = 0, g->std[c] = (floatS)(1 / scale);
    g->statistics = STATISTICS_GIVEN;
}

// The average's width in a configuration of train_dit, {"ema": 0.9999, ...}.
static inline double pipeline_ema(const safetensors_t* file) {
    const char* config = safetensors_metadata(file, "config");
    const char* at = config ? strstr(config, "\"ema\": ") : NULL;
    return at ? strtod(at + 7, NULL) : 0;
}

// Is the DiT's file a checkpoint of train_dit, or an exported one?
static inline int pipeline_is_ours(const pipeline_t* g) {
    const char* format = safetensors_metadata(&g->file, "format");
    return format && !strcmp(format, DIT_FORMAT);
}

// What a file says of a text-to-image transformer.
static inline void pipeline_describe_text(pipeline_t* g) {
    char place[DIT_PREFIX];
    if (g->raw && !pipeline_is_ours(g)) fatal("-raw is for checkpoints of train_dit, and %s is none", g->path);
    g->mmdit.config = pipeline_is_ours(g)
        ? mmdit_file_config_behind(&g->file, &mmdit_formats[0], dit_prefix(place, &g->file, g->path, g->raw))
        : mmdit_file_config(&g->file);
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
    g->ema = pipeline_ema(&g->file);
    g->is_text = mmdit_file_holds(&g->file);
    if (g->is_text) {
        pipeline_describe_text(g);
        autoencoder_open_sized(&g->tokenizer, tokenizer, weights, 0, 1, 0, 1); // till pipeline_set_size knows more
    } else {
        g->net.config = dit_describe(&g->file, dit, raw);
        dit_sampler_of_noise(&g->net.config, &options);
        int batch = dit_sampler_batch(options.batch, lightningdit_tokens(&g->net.config));
        autoencoder_open_sized(&g->tokenizer, tokenizer, weights, -g->net.config.side, batch, 0, 1);
    }
    const char* made_by = safetensors_metadata(&g->file, "tokenizer");
    if (made_by && made_by[0] && strcmp(made_by, g->tokenizer.fingerprint)) {
        fatal("%s was trained on latents of tokenizer %s, but %s is tokenizer %s (weights: %s): its decoder would draw "
              "nonsense; give the tokenizer that made the latents with -tokenizer, or its weights with "
              "-tokenizer_weights", dit, made_by, tokenizer, g->tokenizer.fingerprint, g->tokenizer.weights);
    }
    pipeline_read_statistics(g);
}

// Images of H x W pixels (0 x 0: as the tokenizer was trained on), in batches.
static inline void pipeline_set_size(pipeline_t* g, int H, int W) {
    autoencoder_t* a = &g->tokenizer;
    mmdit_config_t* c = &g->mmdit.config;
    int factor = autoencoder_factor(a);
    if (!H) H = a->H, W = a->W;
    int longest = H > W ? H : W, shortest = H + W - longest;
    if (shortest < factor || longest > PIPELINE_LONGEST_SIDE || H % factor || W % factor) {
        fatal("-size %dx%d: with tokenizer %s width and height have to be multiples of %d from %d to %d", W, H, a->path,
              factor, factor, PIPELINE_LONGEST_SIDE);
    }
    c->h = H / factor;
    c->w = W / factor;
    g->options.batch = dit_sampler_batch(g->options.batch, g->encoder.options.length + c->h * c->w);
    a->batch = g->options.batch;
    autoencoder_plan_size(a, H, W);
    autoencoder_place(a);
}

// Before pipeline_load, where captions are drawn: opens the text encoder, of which the DiT's file, if it is ours, tells
// all but the paths, and sets the size of the images (0 x 0: as the tokenizer was trained on). `negative` says what
// they are guided away from; "": nothing in particular.
void pipeline_use_text(pipeline_t* g, const caption_encoder_options_t* options, const char* negative, int H, int W) {
    caption_encoder_options_t o = *options;
    const char *saved = safetensors_metadata(&g->file, "text"), *name = safetensors_metadata(&g->file, "text_encoder");
    if (saved) caption_encoder_take_saved(&o, saved, g->path);
    g->negative = negative;
    g->encoder.options = o;
    pipeline_set_size(g, H, W);
    caption_encoder_open(&g->encoder, &o, g->options.batch + 1);
    caption_encoder_check_widths(&g->encoder, g->mmdit.config.text, g->mmdit.config.vector, g->path);
    if (name && name[0] && strcmp(name, g->encoder.name)) {
        fatal("%s was trained with the text encoder \"%s\", and the one given is \"%s\": it would read other words; "
              "give the files it was trained with (-t5, -text_clip and their vocabularies)", g->path, name,
              g->encoder.name);
    }
}

static inline void pipeline_plan(pipeline_t* g) {
    const flow_guidance_t* guidance = &g->options.guidance;
    if (g->is_text) {
        const mmdit_config_t* c = &g->mmdit.config;
        int L = g->encoder.options.length, pass = dit_sampler_pass(g->options.batch, L + c->h * c->w, guidance);
        mmdit_register(&g->mmdit, &g->params.table, "");
        mmdit_plan(&g->mmdit, &g->plan, pass, L, 0);
        mmdit_plan_work(&g->mmdit, &g->work);
    } else {
        lightningdit_register(&g->net, &g->params.table, "");
        int pass = dit_sampler_pass(g->options.batch, lightningdit_tokens(&g->net.config), guidance);
        lightningdit_plan(&g->net, &g->plan, pass, 0);
        lightningdit_plan_work(&g->net, &g->work);
    }
    params_allocate(&g->params, g->params.table.total, 0, "the transformer's weights");
    plan_allocate(&g->plan, "activations");
    plan_allocate(&g->work, "working memory");
}

static inline void pipeline_read(pipeline_t* g) {
    if (!g->is_text || pipeline_is_ours(g)) dit_read_weights(&g->file, g->path, &g->params, g->raw);
    else mmdit_file_load(&g->params, "", g->path);
    if (g->is_text) mmdit_set_size(&g->mmdit, g->mmdit.config.h, g->mmdit.config.w);
    else lightningdit_set_tables(&g->net, &g->params);
}

static inline void pipeline_open_sampler(pipeline_t* g) {
    dit_sampler_t* d = &g->sampler;
    if (g->is_text) {
        dit_sampler_open_captions(d, &g->mmdit, &g->params, &g->tokenizer, g->mean, g->std, g->options);
    } else {
        dit_sampler_open(d, &g->net, &g->params, &g->tokenizer, g->mean, g->std, g->options);
    }
}

void pipeline_load(pipeline_t* g) {
    if (g->statistics == STATISTICS_OF_TOKENIZER) {
        warn("%s has no latent statistics; those of the tokenizer's checkpoint are taken (-latent_stats names others)",
             g->path);
    } else if (g->statistics == STATISTICS_NONE) {
        fatal("neither %s nor %s tells mean and deviation of the latents; give LightningDiT's latents_stats.pt with "
              "-latent_stats, or -latent_scale", g->path, g->tokenizer_path);
    }
    pipeline_plan(g);
    pipeline_read(g);
    pipeline_open_sampler(g);
    safetensors_close(&g->file);
}

// The next captions are drawn as images of H x W pixels, no more than it was loaded for.
void pipeline_turn(pipeline_t* g, int H, int W) {
    mmdit_config_t* c = &g->mmdit.config;
    int factor = autoencoder_factor(&g->tokenizer);
    if (H % factor || W % factor) {
        fatal("images of %d x %d pixels do not suit tokenizer %s: want multiples of %d", W, H, g->tokenizer_path,
              factor);
    }
    c->h = H / factor;
    c->w = W / factor;
}

// Draws in another way from here on. Guidance needs that pipeline_load has planned for it, with a scale above 1.
void pipeline_use(pipeline_t* g, dit_sampler_options_t options) {
    dit_sampler_close(&g->sampler);
    g->options = options;
    pipeline_open_sampler(g);
}

// Ends the program: image `number` is none (a NaN, an infinity), and nothing of it is shown or measured.
__attribute__((noreturn)) static inline void pipeline_not_finite(const pipeline_t* g, uint64_t number,
                                                                 const char* what) {
    char blame[300];
    size_t C = 2 * (size_t)pipeline_channels(g), bad = first_not_finite(g->mean, C);
    params_blame(&g->params, blame, sizeof blame);
    if (bad < C) snprintf(blame, sizeof blame, " (the statistics of its latents hold one)");
    fatal("%s, with tokenizer %s, draws NaN or infinity as image %llu, of %s%s", g->path, g->tokenizer_path,
          (unsigned long long)number, what, blame);
}

// Draws `count` images of classes.
void pipeline_draw(pipeline_t* g,
                   uint8_t* pixels,         // (count, H, W, 3)
                   const uint64_t* numbers, // (count)
                   const int* labels,       // (count)
                   int count, stream_t s) {
    int good = dit_sampler_draw(&g->sampler, pixels, numbers, labels, count, s);
    if (good == count) return;
    char what[32];
    snprintf(what, sizeof what, "class %d", labels[good]);
    pipeline_not_finite(g, numbers[good], what);
}

// Draws `count` images of captions, which are encoded batch by batch; neighbours with the same one share it.
void pipeline_draw_captions(pipeline_t* g,
                            uint8_t* pixels,             // (count, H, W, 3)
                            const uint64_t* numbers,     // (count)
                            const char* const* captions, // (count)
                            int count, stream_t s) {
    int batch = g->sampler.options.batch, h = g->mmdit.config.h, w = g->mmdit.config.w;
    const char** texts = (const char**)malloc_check((batch + 1) * sizeof *texts, "captions");
    int* labels = (int*)malloc_check(batch * sizeof(int), "captions");
    texts[0] = g->negative;
    for (int first = 0; first < count; first += batch) {
        int B = count - first < batch ? count - first : batch, n = 0;
        for (int b = 0; b < B; b++) {
            const char* caption = captions[first + b];
            if (!b || strcmp(caption, texts[n])) texts[++n] = caption;
            labels[b] = n;
        }
        caption_encoder_batch(&g->encoder, texts, n + 1, &g->captions, s);
        dit_sampler_show(&g->sampler, &g->captions, h, w);
        uint8_t* at = pixels + first * autoencoder_image_values(&g->tokenizer);
        int good = dit_sampler_draw(&g->sampler, at, numbers + first, labels, B, s);
        if (good == B) continue;
        char what[CAPTION_SHOWN + 16];
        snprintf(what, sizeof what, "\"%.*s\"", CAPTION_SHOWN, texts[labels[good]]);
        pipeline_not_finite(g, numbers[first + good], what);
    }
    free(texts);
    free(labels);
}

void pipeline_close(pipeline_t* g) {
    dit_sampler_close(&g->sampler);
    if (g->is_text) caption_encoder_close(&g->encoder);
    autoencoder_close(&g->tokenizer);
    plan_free(&g->plan);
    plan_free(&g->work);
    params_free(&g->params);
    free(g->mean);
    memset(g, 0, sizeof *g);
}

// A hash of the latents' mean and deviation.
static inline uint64_t pipeline_statistics_hash(const pipeline_t* g) {
    return fingerprint_tensor(HASH_START, "latent", g->mean, 2 * (size_t)pipeline_channels(g));
}

// A hash of the DiT's file: of all of its tensors. Before pipeline_load, which closes it.
static inline uint64_t pipeline_hash(const pipeline_t* g) {
    uint64_t h = HASH_START;
    for (int i = 0; i < g->file.n; i++) {
        const st_tensor_t* t = &g->file.tensors[i];
        size_t bytes = t->numel * st_dtype_info(t->dtype).bits / 8;
        h = hash_string(h, t->name);
        for (size_t k = 0; k < bytes; k += 4) {
            uint32_t word = 0;
            memcpy(&word, t->data + k, bytes - k < 4 ? bytes - k : 4);
            h = hash_word(h, word);
        }
    }
    return h;
}

// The class of image k where each image has its own: balanced takes them in turn, else each is drawn.
static inline int pipeline_label(const pipeline_t* g, int balanced, uint64_t seed, size_t k) {
    size_t classes = (size_t)g->net.config.classes;
    return balanced ? (int)(k % classes) : (int)random_below(seed, RANDOM_LABELS, 0, k, (uint32_t)classes);
}
