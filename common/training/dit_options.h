// dit_options.h: the flags of train_dit, its presets, and the configuration that they describe.
//
// One table drives the parser, -h, the printed and the saved configuration. The presets are the paper's recipes on
// ImageNet (LightningDiT configs/reproductions) and the miniature world. Look next at common/training/dit.h, which
// takes the configuration, and train_dit.cu.
#pragma once
// defines: cli_t, cli_flag_t, cli_preset_t
#include "common/program/cli.h"
// defines: run_options_t, run_options_flags, run_options_check
#include "common/training/run_options.h"
// defines: dit_status_help
#include "common/training/status.h"
// defines: dit_config_t
#include "common/training/dit.h"
// defines: AUTOENCODER_WEIGHTS, AUTOENCODER_WEIGHTS_HELP
#include "common/training/tokenizer_checkpoint.h"

#define CLIP_FROM_STEPS 200000 // runs of more steps than this, without QK-norm, are clipped unless told otherwise

typedef struct {
    // what to do, with what
    const char *latents, *tokenizer, *data;
    int tokenizer_weights, extract, images, shard_images, extract_batch;
    // the network
    const char* model;
    int z_channels, latent_side, classes, uncond, qk_norm, mlp, shift;
    // the recipe
    int steps, batch, flip, shuffle_labels, uniform_from, stats_images;
    double lr, beta1, beta2, eps, decay, ema, clip, w_cos, label_drop, guard;
    // pictures
    const char* grid_classes;
    int grid_columns, sample_steps, cfg_channels;
    double cfg, cfg_start, sample_shift;
    run_options_t run; // what train_tokenizer has too
} dit_options_t;

static const cli_setting_t dit_preset_imagenet[] = {{"out", "runs/dit_imagenet"}, {"latents", "runs/imagenet/latents"},
    {"tokenizer", "runs/imagenet/stage3.safetensors"}, {NULL, NULL}};
static const cli_setting_t dit_preset_imagenet_800[] = {
    {"steps", "1000000"}, {"qk_norm", "1"}, {"out", "runs/dit_imagenet_800"}, {"latents", "runs/imagenet/latents"},
    {"tokenizer", "runs/imagenet/stage3.safetensors"}, {NULL, NULL}};
// A run of a few hundred steps: a larger rate, a shorter average, and the first step's huge gradient is clipped.
static const cli_setting_t dit_preset_mini[] = {
    {"model", "mini"},       {"latents", "runs/mini/latents"}, {"out", "runs/mini"}, {"data", "auto"},
    {"tokenizer", "runs/mini/stage3.safetensors"},
    {"z_channels", "16"},    {"latent_side", "4"},  {"classes", "10"},   {"steps", "1500"},      {"batch", "128"},
    {"lr", "1e-3"},          {"ema", "0.995"},      {"clip", "1"},       {"stats_images", "10000"},
    {"images", "10000"},     {"extract_batch", "64"}, {"grid_classes", "all"}, {"grid_columns", "4"},
    {"cfg", "2"},            {"cfg_channels", "0"}, {"sample_steps", "30"}, {"sample_shift", "1"},
    {"log_every", "50"},     {"grid_every", "300"}, {"save_every", "300"}, {NULL, NULL}};

static const cli_preset_t dit_presets[] = {
    {"mini", "the miniature world: the latents of `make demo`'s tokenizer", dit_preset_mini},
    {"imagenet", "the paper's 64 epochs: XL/1, 80,000 steps of 1024 latents", dit_preset_imagenet},
    {"imagenet_800", "the paper's 800 epochs: 1,000,000 steps, with QK-norm", dit_preset_imagenet_800},
};
enum { DIT_PRESETS = sizeof dit_presets / sizeof dit_presets[0], DIT_OPTIONS_MAX = 64 };

// Fills the table. The texts are static; the values go into *o.
int dit_options_flags(dit_options_t* o, cli_flag_t* out) {
    const cli_flag_t flags[] = {
        {"What to do", "extract", CLI_BOOL, &o->extract, "0", NULL,
         "encode the images of -data with -tokenizer into latent shards in -latents, then stop", CLI_NOT_SAVED},
        {NULL, "latents", CLI_STRING, &o->latents, "runs/latents", NULL,
         "folder of latent shards, ours or LightningDiT's", CLI_NOT_SAVED},
        {NULL, "tokenizer", CLI_STRING, &o->tokenizer, "", NULL,
         "checkpoint of train_tokenizer: makes the latents, and decodes the pictures; without it, no pictures",
         CLI_NOT_SAVED},
        {NULL, "tokenizer_weights", CLI_CHOICE, &o->tokenizer_weights, "ema", AUTOENCODER_WEIGHTS,
         AUTOENCODER_WEIGHTS_HELP, CLI_NOT_SAVED},

        {"Extraction", "data", CLI_STRING, &o->data, "", NULL,
         "images: folder of class folders, folder with IDX files, captions:FOLDER, garments, fashion-mnist, scenes, "
         "shapes, or auto",
         CLI_NOT_SAVED},
        {NULL, "images", CLI_INT, &o->images, "0", "[0, inf)", "so many of them, by lot; 0: all", CLI_NOT_SAVED},
        {NULL, "shard_images", CLI_INT, &o->shard_images, "10000", "[1, 10000000]", "images a shard", CLI_NOT_SAVED},
        {NULL, "extract_batch", CLI_INT, &o->extract_batch, "64", "[1, 4096]", "images encoded at once",
         CLI_NOT_SAVED},

        {"Network", "model", CLI_STRING, &o->model, "XL/1", NULL,
         "B/1, B/2, L/2, XL/1, XL/2, 1p0B/1, 1p0B/2, 1p6B/1, 1p6B/2, mini; behind the slash pixels a token and axis",
         CLI_SAVED},
        {NULL, "z_channels", CLI_INT, &o->z_channels, "32", "[1, 1024]",
         "channels of the latent; the latents tell them", CLI_SAVED},
        {NULL, "latent_side", CLI_INT, &o->latent_side, "16", "[1, 256]",
         "its rows and columns; the latents tell them", CLI_SAVED},
        {NULL, "classes", CLI_INT, &o->classes, "1000", "[1, 1000000]",
         "number of classes; the latents tell it, but for those of LightningDiT's own tools", CLI_SAVED},
        {NULL, "uncond", CLI_BOOL, &o->uncond, "0", NULL, "every image is of class 0: unconditional", CLI_SAVED},
        {NULL, "qk_norm", CLI_BOOL, &o->qk_norm, "0", NULL,
         "normalise queries and keys: for runs beyond 200,000 steps, from the first one on", CLI_SAVED},
        {NULL, "mlp", CLI_CHOICE, &o->mlp, "swiglu", "swiglu|gelu", "what a block's MLP is", CLI_SAVED},
        {NULL, "shift", CLI_BOOL, &o->shift, "1", NULL, "modulation has a shift", CLI_SAVED},

        {"Recipe", "steps", CLI_INT, &o->steps, "80000", "[1, inf)", "batches to train in all", CLI_NOT_SAVED},
        {NULL, "batch", CLI_INT, &o->batch, "1024", "[1, 1048576]", "latents a step, over all processes", CLI_SAVED},
        {NULL, "lr", CLI_NUMBER, &o->lr, "2e-4", "[0, inf)", "learning rate, constant", CLI_SAVED},
        {NULL, "beta1", CLI_NUMBER, &o->beta1, "0.9", "[0, 1)", "AdamW: memory of the mean gradient", CLI_SAVED},
        {NULL, "beta2", CLI_NUMBER, &o->beta2, "0.95", "[0, 1)", "AdamW: memory of its square", CLI_SAVED},
        {NULL, "eps", CLI_NUMBER, &o->eps, "1e-8", "(0, 1]", "AdamW: added to the denominator", CLI_SAVED},
        {NULL, "decay", CLI_NUMBER, &o->decay, "0", "[0, 1]", "AdamW: weight decay", CLI_SAVED},
        {NULL, "ema", CLI_NUMBER, &o->ema, "0.9999", "[0, 1)", "the average keeps this part of itself each step",
         CLI_SAVED},
        {NULL, "clip", CLI_NUMBER, &o->clip, "-1", "[-1, inf)",
         "largest norm of the gradient; 0: none; -1: 1 where more than 200,000 steps run without -qk_norm 1, else none",
         CLI_SAVED},
        {NULL, "w_cos", CLI_NUMBER, &o->w_cos, "1", "[0, inf)", "weight of the cosine term of the loss", CLI_SAVED},
        {NULL, "label_drop", CLI_NUMBER, &o->label_drop, "0.1", "[0, 1]",
         "part of the labels that become the null class, for guidance", CLI_SAVED},
        {NULL, "uniform_from", CLI_INT, &o->uniform_from, "0", "[0, inf)",
         "from this step on times are uniform instead of logit-normal; 0: never", CLI_SAVED},
        {NULL, "guard", CLI_NUMBER, &o->guard, "3", "[0, inf)",
         "skip a step whose loss is this many times its running mean (after 200 steps); 0: never", CLI_SAVED},
        {NULL, "flip", CLI_BOOL, &o->flip, "1", NULL, "half of the latents are those of the mirrored image",
         CLI_SAVED},
        {NULL, "shuffle_labels", CLI_BOOL, &o->shuffle_labels, "0", NULL,
         "a control: each image has another one's label, so that labels say nothing", CLI_SAVED},
        {NULL, "stats_images", CLI_INT, &o->stats_images, "10000", "[1, inf)",
         "latents whose mean and deviation normalise all", CLI_SAVED},

        {"Pictures", "grid_classes", CLI_STRING, &o->grid_classes, "207,360,387,974,88,979,417,279", NULL,
         "rows of the sample grid: classes with commas, or all", CLI_NOT_SAVED},
        {NULL, "grid_columns", CLI_INT, &o->grid_columns, "8", "[1, 64]", "samples of each", CLI_NOT_SAVED},
        {NULL, "sample_steps", CLI_INT, &o->sample_steps, "50", "[2, 10000]", "points of the time grid (Euler)",
         CLI_NOT_SAVED},
        {NULL, "cfg", CLI_NUMBER, &o->cfg, "4", "[0, inf)", "guidance scale; 1: none", CLI_NOT_SAVED},
        {NULL, "cfg_channels", CLI_INT, &o->cfg_channels, "0", "[0, 1024]",
         "guided channels, the first so many; 0: all; 3: LightningDiT's form", CLI_NOT_SAVED},
        {NULL, "cfg_start", CLI_NUMBER, &o->cfg_start, "0", "[0, 1]", "time from which guidance acts", CLI_NOT_SAVED},
        {NULL, "sample_shift", CLI_NUMBER, &o->sample_shift, "0.3", "[0, inf)",
         "time shift: below 1, more steps near the noise; 0: none", CLI_NOT_SAVED},

    };
    int n = (int)(sizeof flags / sizeof flags[0]);
    memcpy(out, flags, sizeof flags);
    return n + run_options_flags(&o->run, out + n);
}

// Reads the command line. Ends with a message when flags contradict each other.
void dit_options_parse(dit_options_t* o, cli_t* cli, int argc, char** argv) {
    static cli_flag_t flags[DIT_OPTIONS_MAX]; // as long-lived as *cli, which points to it
    int n = dit_options_flags(o, flags);
    cli_init(cli, "./train_dit", "Trains LightningDiT on the latents of a tokenizer; the same command resumes.", flags,
             n, dit_presets, DIT_PRESETS);
    cli->notes = dit_status_help();
    cli_parse(cli, argc, argv);
    run_options_check(&o->run);
    if (o->uncond) o->classes = 1;
    if (o->uncond && o->label_drop > 0) o->label_drop = 0;
}

// The limit of the gradient's norm that the flags mean; 0: none.
static inline double dit_options_clip(const dit_options_t* o) {
    if (o->clip >= 0) return o->clip;
    return o->steps > CLIP_FROM_STEPS && !o->qk_norm ? 1 : 0;
}

// What the flags describe, in one of `ranks` processes that share the batch.
dit_config_t dit_options_config(const dit_options_t* o, int ranks) {
    dit_config_t c;
    memset(&c, 0, sizeof c);
    c.net = *lightningdit_config_find(o->model);
    c.net.mlp_gelu = o->mlp || c.net.classic;
    c.net.sigma = 0; // the velocity is all that is learnt
    c.net.no_shift = !o->shift;
    c.net.qk_norm = o->qk_norm;
    c.net.C = o->z_channels;
    c.net.side = o->latent_side;
    c.net.classes = o->classes;
    if (o->latent_side % c.net.patch) {
        fatal("-latent_side %d is no multiple of %d, the patch of -model %s", o->latent_side, c.net.patch, o->model);
    }
    if (o->batch % ranks) {
        fatal("-batch %d cannot be shared equally by %d processes; give a multiple of %d", o->batch, ranks, ranks);
    }
    c.batch = o->batch / ranks;
    c.recompute = o->run.recompute;
    c.zero = o->run.zero;
    c.w_cos = o->w_cos;
    c.lr = o->lr;
    c.beta1 = o->beta1;
    c.beta2 = o->beta2;
    c.eps = o->eps;
    c.decay = o->decay;
    c.ema = o->ema;
    c.clip = dit_options_clip(o);
    c.seed = o->run.seed;
    return c;
}
