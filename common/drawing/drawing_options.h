// drawing_options.h: the flags that say with which transformer is drawn, and how: those of sample.cu and of eval.cu, in
// one table, with the presets that both have.
//
// The tokenizer, the seed and the batch are the program's own. Look next at common/drawing/pipeline.h, which these
// flags open, and at sample.cu.
#pragma once
// defines: cli_flag_t, cli_setting_t
#include "common/program/cli.h"
// defines: pipeline_t, pipeline_open, pipeline_use_scale, pipeline_use_statistics, pipeline_use_text; by
// caption_encoder.h: caption_encoder_options_t, caption_encoder_flags
#include "common/drawing/pipeline.h"

enum { DRAWING_FLAGS = 14, DRAWING_TEXT_FLAGS = 2 + CAPTION_ENCODER_FLAGS };

typedef struct {
    const char *dit, *latent_stats;
    int raw, predicts, steps, solver, process, cfg_channels, cfg_energy;
    double latent_scale, eta, shift, cfg, cfg_start;
    // text to image
    const char *size, *negative;
    caption_encoder_options_t text;
} drawing_options_t;

// DiT and SiT as published, with an autoencoder of Stable Diffusion in LDM's layout.
static const cli_setting_t drawing_preset_dit[] = {{"dit", "DiT-XL-2-256x256.pt"},
    {"tokenizer", "vae-ft-mse-840000-ema-pruned.ckpt"}, {"latent_scale", "0.18215"}, {"predicts", "noise"},
    {"steps", "250"}, {"cfg_channels", "3"}, {NULL, NULL}};
static const cli_setting_t drawing_preset_sit[] = {{"dit", "SiT-XL-2-256x256.pt"},
    {"tokenizer", "vae-ft-mse-840000-ema-pruned.ckpt"}, {"latent_scale", "0.18215"}, {"predicts", "velocity"},
    {"steps", "250"}, {"solver", "dopri5"}, {"shift", "0"}, {"cfg_channels", "3"}, {NULL, NULL}};

// Text to image as the paper draws it: 50 steps of DDIM with noise, guidance 5 that keeps the energy.
static const cli_setting_t drawing_preset_t2i_method[] = {{"process", "ddim"}, {"eta", "1"}, {"steps", "50"},
    {"shift", "-1"}, {"cfg", "5"}, {"cfg_channels", "0"}, {"cfg_energy", "1"}, {NULL, NULL}};

// cfg: the default guidance.
static inline int drawing_flags(drawing_options_t* o, const char* cfg, cli_flag_t out[DRAWING_FLAGS]) {
    const cli_flag_t flags[DRAWING_FLAGS] = {
        {"Diffusion transformer", "dit", CLI_STRING, &o->dit, "", NULL,
         "weights: a checkpoint of train_dit, an exported one, or LightningDiT's, DiT's, SiT's or FLUX's as published "
         "(.pt, .safetensors)", CLI_SAVED},
        {NULL, "raw", CLI_BOOL, &o->raw, "0", NULL, "its raw weights instead of their average", CLI_SAVED},
        {NULL, "latent_stats", CLI_STRING, &o->latent_stats, "", NULL,
         "mean and deviation of the latents where its file has none: LightningDiT's latents_stats.pt", CLI_SAVED},
        {NULL, "latent_scale", CLI_NUMBER, &o->latent_scale, "0", "[0, 1e6]",
         "in place of statistics: latents are so many times the autoencoder's; 0.18215 with Stable Diffusion's",
         CLI_SAVED},
        {NULL, "predicts", CLI_CHOICE, &o->predicts, "unknown", "unknown|velocity|noise",
         "what a network with 2 outputs for a channel says, DiT's noise or SiT's velocity: their files do not tell",
         CLI_SAVED},
        {"Sampler", "steps", CLI_INT, &o->steps, "50", "[2, 100000]",
         "points of the time grid: one step less, as LightningDiT counts; with -process: steps", CLI_SAVED},
        {NULL, "solver", CLI_CHOICE, &o->solver, "euler", "euler|midpoint|heun|heun3|rk4|dopri5",
         "dopri5 chooses its own steps", CLI_SAVED},
        {NULL, "process", CLI_CHOICE, &o->process, "ddpm", DDPM_NAMES,
         "in place of a solver: ddpm or ddim where noise is predicted; ddim (minFM's form), ddim_song (that of its "
         "authors) or sde where a velocity is; ddpm and a velocity: the solver", CLI_SAVED},
        {NULL, "eta", CLI_NUMBER, &o->eta, "0", "[0, 1]", "ddim: share of the noise that is added; 0 and a velocity: "
         "Euler's method", CLI_SAVED},
        {NULL, "shift", CLI_NUMBER, &o->shift, "0.3", "[-1, inf)",
         "time shift: below 1, more steps near the noise; 0: none; -1: as text to image is trained, by the image's "
         "size", CLI_SAVED},
        {NULL, "cfg", CLI_NUMBER, &o->cfg, cfg, "[0, inf)", "guidance scale; 1 or less: none", CLI_SAVED},
        {NULL, "cfg_channels", CLI_INT, &o->cfg_channels, "0", "[0, 1024]",
         "guided channels, the first so many; 0: all; 3: LightningDiT's and the paper's form", CLI_SAVED},
        {NULL, "cfg_energy", CLI_BOOL, &o->cfg_energy, "0", NULL,
         "an image's velocity keeps the length that it has without guidance (EP-CFG)", CLI_SAVED},
        {NULL, "cfg_start", CLI_NUMBER, &o->cfg_start, "0", "[0, 1]", "time from which guidance acts (1 is data)",
         CLI_SAVED},
    };
    memcpy(out, flags, sizeof flags);
    return DRAWING_FLAGS;
}

// Those of text to image alone, for who draws captions. A picture's settings name the encoder itself.
static inline int drawing_text_flags(drawing_options_t* o, cli_flag_t out[DRAWING_TEXT_FLAGS]) {
    const cli_flag_t flags[] = {
        {"Text to image", "size", CLI_STRING, &o->size, "", NULL,
         "WIDTHxHEIGHT in pixels, such as 512x384; empty: as the tokenizer was trained", CLI_SAVED},
        {NULL, "negative", CLI_STRING, &o->negative, "", NULL,
         "what pictures are guided away from, in place of the empty caption", CLI_NOT_SAVED},
    };
    int n = (int)(sizeof flags / sizeof flags[0]);
    memcpy(out, flags, sizeof flags);
    caption_encoder_flags(&o->text, out + n);
    while (n < DRAWING_TEXT_FLAGS) out[n++].saving = CLI_NOT_SAVED;
    return n;
}

// What the flags say of the sampler.
static inline dit_sampler_options_t drawing_sampler(const drawing_options_t* o, int batch, size_t seed) {
    dit_sampler_options_t s = {(flow_solver_t)o->solver, o->steps, o->shift,
                               {o->cfg, o->cfg_start, o->cfg_channels, o->cfg_energy}, batch, seed,
                               (dit_prediction_t)o->predicts, (ddpm_kind_t)o->process, o->eta};
    return s;
}

// pipeline_open, with the statistics that are given.
static inline void drawing_open(pipeline_t* g, const drawing_options_t* o, const char* tokenizer,
                                autoencoder_weights_t weights, dit_sampler_options_t sampler) {
    pipeline_open(g, o->dit, o->raw, tokenizer, weights, sampler);
    if (o->latent_scale > 0) pipeline_use_scale(g, o->latent_scale);
    if (o->latent_stats[0]) pipeline_use_statistics(g, o->latent_stats);
}

// After drawing_open, by who draws captions too: the text encoder and the size of a text-to-image transformer.
static inline void drawing_open_text(pipeline_t* g, const drawing_options_t* o) {
    int W = 0, H = 0;
    char rest;
    if (!g->is_text && !o->size[0] && !o->negative[0]) return;
    if (!g->is_text) {
        fatal("-%s: %s draws classes, which have no caption, in the size it was trained on; leave it out",
              o->size[0] ? "size" : "negative", o->dit);
    }
    if (o->negative[0] && o->cfg <= 1) {
        fatal("-negative: pictures are guided away from it, and with -cfg %g nothing is; give a -cfg above 1", o->cfg);
    }
    if (o->size[0] && (sscanf(o->size, "%5dx%5d%c", &W, &H, &rest) != 2 || W < 1 || H < 1)) {
        fatal("-size %s: want WIDTHxHEIGHT in pixels, such as 512x384", o->size);
    }
    pipeline_use_text(g, &o->text, o->negative, H, W);
}
