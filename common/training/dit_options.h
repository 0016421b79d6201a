// dit_options.h: the flags of train_dit, its presets, and the configuration that they describe.
//
// One table drives the parser, -h, the printed and the saved configuration. The presets are the paper's recipes on
// ImageNet (LightningDiT configs/reproductions), those of its text-to-image system, and two miniature worlds. Which of
// the two kinds of networks is trained the model's name tells. Look next at common/training/dit.h, which takes the
// configuration, and train_dit.cu.
#pragma once
// defines: cli_t, cli_flag_t, cli_preset_t
#include "common/program/cli.h"
// defines: run_options_t, run_options_flags, run_options_check
#include "common/training/run_options.h"
// defines: dit_status_help
#include "common/training/status.h"
// defines: dit_config_t
#include "common/training/dit.h"
// defines: caption_encoder_options_t, caption_encoder_flags
#include "common/models/caption_encoder.h"
// defines: AUTOENCODER_WEIGHTS, AUTOENCODER_WEIGHTS_HELP
#include "common/training/tokenizer_checkpoint.h"

#define CLIP_FROM_STEPS 200000 // runs of more steps than this, without QK-norm, are clipped unless told otherwise

typedef struct {
    // what to do, with what
    const char *latents, *tokenizer, *data;
    int tokenizer_weights, extract, images, shard_images, extract_batch;
    // captions
    const char *text_cache, *from;
    caption_encoder_options_t text;
    int extract_text, image_size, buckets, short_side;
    double aspect, punsafe, pwatermark, aesthetic;
    // the network
    const char* model;
    int z_channels, latent_side, classes, uncond, qk_norm, mlp, shift;
    // the recipe
    int steps, batch, warmup, flip, shuffle_labels, uniform_from, stats_images;
    double lr, beta1, beta2, eps, decay, ema, clip, w_cos, label_drop, guard, skip_norm;
    // pictures
    const char *grid_classes, *grid_prompts;
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

// The paper's text-to-image system. What it leaves open is as in FLUX and minFM: times, warm-up, clipping.
static const cli_setting_t dit_preset_t2i_256[] = {
    {"model", "2B"},         {"lr", "1e-4"},        {"decay", "0.01"},   {"clip", "1"},          {"skip_norm", "2"},
    {"guard", "0"},          {"w_cos", "0"},        {"text", "t5"},      {"steps", "200000"},    {"batch", "2048"},
    {"warmup", "2000"},      {"image_size", "256"}, {"latent_side", "16"}, {"sample_shift", "-1"}, {"cfg", "5"},
    {"grid_columns", "2"},   {"recompute", "1"},    {"latents", "runs/t2i/latents_256"}, {"out", "runs/t2i_256"},
    {"tokenizer", "runs/laion/stage3.safetensors"},
    {"grid_prompts", "a photo of a cat|a red cube on a blue sphere|a mountain lake at dawn, oil painting"},
    {NULL, NULL}};
static const cli_setting_t dit_preset_t2i_512[] = {
    {"preset", "t2i_256"},   {"from", "runs/t2i_256/dit.safetensors"},   {"steps", "90000"},     {"batch", "512"},
    {"warmup", "500"},       {"image_size", "512"}, {"latent_side", "32"}, {"latents", "runs/t2i/latents_512"},
    {"out", "runs/t2i_512"}, {NULL, NULL}};
static const cli_setting_t dit_preset_t2i_mini[] = {
    {"model", "t2i-mini"}, {"text", "fixed"}, {"text_len", "16"}, {"data", "scenes:48:mixed"},
    {"image_size", "48"},
    {"latents", "runs/t2i_mini/latents"}, {"tokenizer", "runs/t2i_mini/stage3.safetensors"}, {"out", "runs/t2i_mini"},
    {"z_channels", "16"}, {"latent_side", "6"}, {"steps", "1400"}, {"batch", "64"}, {"lr", "1e-3"},
    {"warmup", "100"}, {"ema", "0.995"}, {"clip", "1"}, {"skip_norm", "0"}, {"guard", "0"}, {"w_cos", "0"},
    {"extract_batch", "64"}, {"stats_images", "10000"}, {"sample_shift", "-1"}, {"cfg", "3"}, {"sample_steps", "30"},
    {"grid_columns", "4"}, {"log_every", "50"}, {"grid_every", "350"}, {"save_every", "350"},
    {"grid_prompts", "a red circle on a gray background|three blue squares on a white background|"
                     "a green triangle and a yellow circle on a black background|"
                     "a purple square left of a cyan circle on a gray background"},
    {NULL, NULL}};

static const cli_preset_t dit_presets[] = {
    {"mini", "the miniature world: the latents of `make demo`'s tokenizer", dit_preset_mini},
    {"imagenet", "the paper's 64 epochs: XL/1, 80,000 steps of 1024 latents", dit_preset_imagenet},
    {"imagenet_800", "the paper's 800 epochs: 1,000,000 steps, with QK-norm", dit_preset_imagenet_800},
    {"t2i_mini", "the miniature world with captions: drawn scenes", dit_preset_t2i_mini},
    {"t2i_256", "the paper's text to image: 2B, 200,000 steps of 2048 at 256 pixels", dit_preset_t2i_256},
    {"t2i_512", "and 90,000 steps of 512 at 512 pixels, from the weights of the former", dit_preset_t2i_512},
};
enum { DIT_PRESETS = sizeof dit_presets / sizeof dit_presets[0], DIT_OPTIONS_MAX = 96 };

enum { BUCKETS_AREA, BUCKETS_SHORT }; // -buckets

// Fills the table. The texts are static; the values go into *o.
int dit_options_flags(dit_options_t* o, cli_flag_t* out) {
    const cli_flag_t flags[] = {
        {"What to do", "extract", CLI_BOOL, &o->extract, "0", NULL,
         "encode the images of -data with -tokenizer into latent shards in -latents, then stop", CLI_NOT_SAVED},
        {NULL, "extract_text", CLI_BOOL, &o->extract_text, "0", NULL,
         "encode the captions of -data into -text_cache, then stop", CLI_NOT_SAVED},
        {NULL, "latents", CLI_STRING, &o->latents, "runs/latents", NULL,
         "folder of latent shards, ours or LightningDiT's; none: -tokenizer encodes the images of -data beside the "
         "training, which begins with its latent statistics", CLI_NOT_SAVED},
        {NULL, "tokenizer", CLI_STRING, &o->tokenizer, "", NULL,
         "checkpoint of train_tokenizer: makes the latents, and decodes the pictures; without it, no pictures",
         CLI_NOT_SAVED},
        {NULL, "tokenizer_weights", CLI_CHOICE, &o->tokenizer_weights, "ema", AUTOENCODER_WEIGHTS,
         AUTOENCODER_WEIGHTS_HELP, CLI_NOT_SAVED},

        {"Extraction", "data", CLI_STRING, &o->data, "", NULL,
         "images: folder of class folders, folder with IDX files, captions:FOLDER, garments, fashion-mnist, scenes, "
         "shapes, or auto; training reads it too with -latents none, and text to image for the captions",
         CLI_NOT_SAVED},
        {NULL, "images", CLI_INT, &o->images, "0", "[0, inf)", "so many of them, by lot; 0: all", CLI_NOT_SAVED},
        {NULL, "shard_images", CLI_INT, &o->shard_images, "10000", "[1, 10000000]", "images a shard", CLI_NOT_SAVED},
        {NULL, "extract_batch", CLI_INT, &o->extract_batch, "64", "[1, 4096]", "images encoded at once",
         CLI_NOT_SAVED},

        {"Network", "model", CLI_STRING, &o->model, "XL/1", NULL,
         "B/1, B/2, L/2, XL/1, XL/2, 1p0B/1, 1p0B/2, 1p6B/1, 1p6B/2, mini; behind the slash pixels a token and axis. "
         "Text to image: 2B, 2B-deep, 2B-short, tiny, flux, t2i-mini", CLI_SAVED},
        {NULL, "z_channels", CLI_INT, &o->z_channels, "32", "[1, 1024]",
         "channels of the latent; the latents tell them", CLI_SAVED},
        {NULL, "latent_side", CLI_INT, &o->latent_side, "16", "[1, 256]",
         "its rows and columns, of the square; the latents tell them", CLI_SAVED},
        {NULL, "classes", CLI_INT, &o->classes, "1000", "[1, 1000000]",
         "number of classes; the latents tell it, but for those of LightningDiT's own tools", CLI_SAVED},
        {NULL, "uncond", CLI_BOOL, &o->uncond, "0", NULL, "every image is of class 0: unconditional", CLI_SAVED},
        {NULL, "qk_norm", CLI_BOOL, &o->qk_norm, "0", NULL,
         "normalise queries and keys: for runs beyond 200,000 steps, from the first one on", CLI_SAVED},
        {NULL, "mlp", CLI_CHOICE, &o->mlp, "swiglu", "swiglu|gelu", "what a block's MLP is", CLI_SAVED},
        {NULL, "shift", CLI_BOOL, &o->shift, "1", NULL, "modulation has a shift", CLI_SAVED},

        {"Recipe", "steps", CLI_INT, &o->steps, "80000", "[1, inf)", "batches to train in all", CLI_NOT_SAVED},
        {NULL, "batch", CLI_INT, &o->batch, "1024", "[1, 1048576]", "latents a step, over all processes", CLI_SAVED},
        {NULL, "lr", CLI_NUMBER, &o->lr, "2e-4", "[0, inf)", "learning rate, constant behind -warmup", CLI_SAVED},
        {NULL, "warmup", CLI_INT, &o->warmup, "0", "[0, inf)", "steps in which the learning rate grows to it",
         CLI_SAVED},
        {NULL, "beta1", CLI_NUMBER, &o->beta1, "0.9", "[0, 1)", "AdamW: memory of the mean gradient", CLI_SAVED},
        {NULL, "beta2", CLI_NUMBER, &o->beta2, "0.95", "[0, 1)", "AdamW: memory of its square", CLI_SAVED},
        {NULL, "eps", CLI_NUMBER, &o->eps, "1e-8", "(0, 1]", "AdamW: added to the denominator", CLI_SAVED},
        {NULL, "decay", CLI_NUMBER, &o->decay, "0", "[0, 1]", "AdamW: weight decay; text to image: of matrices alone",
         CLI_SAVED},
        {NULL, "ema", CLI_NUMBER, &o->ema, "0.9999", "[0, 1)", "the average keeps this part of itself each step",
         CLI_SAVED},
        {NULL, "clip", CLI_NUMBER, &o->clip, "-1", "[-1, inf)",
         "largest norm of the gradient; 0: none; -1: 1 where more than 200,000 steps run without -qk_norm 1, else none",
         CLI_SAVED},
        {NULL, "w_cos", CLI_NUMBER, &o->w_cos, "1", "[0, inf)", "weight of the cosine term of the loss", CLI_SAVED},
        {NULL, "label_drop", CLI_NUMBER, &o->label_drop, "0.1", "[0, 1]",
         "part of the labels, or captions, that become the null class, or empty, for guidance", CLI_SAVED},
        {NULL, "uniform_from", CLI_INT, &o->uniform_from, "0", "[0, inf)",
         "from this step on times are uniform instead of logit-normal; 0: never", CLI_SAVED},
        {NULL, "guard", CLI_NUMBER, &o->guard, "3", "[0, inf)",
         "skip a step whose loss is this many times its running mean (after 200 steps); 0: never", CLI_SAVED},
        {NULL, "skip_norm", CLI_NUMBER, &o->skip_norm, "0", "[0, inf)",
         "skip a step behind the warm-up whose gradient's norm is larger; 0: never", CLI_SAVED},
        {NULL, "flip", CLI_BOOL, &o->flip, "1", NULL, "half of the latents are those of the mirrored image",
         CLI_SAVED},
        {NULL, "shuffle_labels", CLI_BOOL, &o->shuffle_labels, "0", NULL,
         "a control: each image has another one's label, so that labels say nothing", CLI_SAVED},
        {NULL, "stats_images", CLI_INT, &o->stats_images, "10000", "[1, inf)",
         "latents whose mean and deviation normalise all", CLI_SAVED},

        {NULL, "from", CLI_STRING, &o->from, "", NULL,
         "begin with weights, averages, moments and latent statistics of this checkpoint, or with an exported file's "
         "weights and statistics", CLI_NOT_SAVED},

        {"Images with captions", "image_size", CLI_INT, &o->image_size, "256", "[16, 4096]",
         "pixels of the square; the other sizes have its area", CLI_NOT_SAVED},
        {NULL, "buckets", CLI_CHOICE, &o->buckets, "area", "area|short",
         "sizes of one area, or of one shorter side", CLI_NOT_SAVED},
        {NULL, "aspect", CLI_NUMBER, &o->aspect, "2.1", "[1, 4]", "most of the long side to the short one",
         CLI_NOT_SAVED},
        {NULL, "short_side", CLI_INT, &o->short_side, "-1", "[-1, 100000]",
         "images with a shorter side below it are left out; -1: half of -image_size", CLI_NOT_SAVED},
        {NULL, "punsafe", CLI_NUMBER, &o->punsafe, "0.5", "[0, 2]",
         "and those whose column punsafe is not below it; an image without the column passes", CLI_NOT_SAVED},
        {NULL, "pwatermark", CLI_NUMBER, &o->pwatermark, "0.8", "[0, 2]", "likewise", CLI_NOT_SAVED},
        {NULL, "aesthetic", CLI_NUMBER, &o->aesthetic, "4.5", "[0, 100]", "and those of less in the column aesthetic",
         CLI_NOT_SAVED},
        {NULL, "text_cache", CLI_STRING, &o->text_cache, "", NULL,
         "file of encoded captions; none: they are encoded beside the training", CLI_NOT_SAVED},

        {"Pictures", "grid_classes", CLI_STRING, &o->grid_classes, "207,360,387,974,88,979,417,279", NULL,
         "rows of the sample grid: classes with commas, or all", CLI_NOT_SAVED},
        {NULL, "grid_prompts", CLI_STRING, &o->grid_prompts, "", NULL,
         "text to image: the rows' prompts, with | between them; they take turns with the sizes", CLI_NOT_SAVED},
        {NULL, "grid_columns", CLI_INT, &o->grid_columns, "8", "[1, 64]", "samples of each", CLI_NOT_SAVED},
        {NULL, "sample_steps", CLI_INT, &o->sample_steps, "50", "[2, 10000]", "points of the time grid (Euler)",
         CLI_NOT_SAVED},
        {NULL, "cfg", CLI_NUMBER, &o->cfg, "4", "[0, inf)",
         "guidance scale; 1: none; in text to image the guided velocity keeps its length", CLI_NOT_SAVED},
        {NULL, "cfg_channels", CLI_INT, &o->cfg_channels, "0", "[0, 1024]",
         "guided channels, the first so many; 0: all; 3: LightningDiT's form", CLI_NOT_SAVED},
        {NULL, "cfg_start", CLI_NUMBER, &o->cfg_start, "0", "[0, 1]", "time from which guidance acts", CLI_NOT_SAVED},
        {NULL, "sample_shift", CLI_NUMBER, &o->sample_shift, "0.3", "[-1, inf)",
         "time shift: below 1, more steps near the noise; 0: none; -1, of text to image: by the size", CLI_NOT_SAVED},

    };
    int n = (int)(sizeof flags / sizeof flags[0]);
    memcpy(out, flags, sizeof flags);
    n += caption_encoder_flags(&o->text, out + n);
    return n + run_options_flags(&o->run, out + n);
}

// Does -model name a text-to-image transformer?
static inline int dit_options_captions(const dit_options_t* o) {
    for (int i = 0; i < MMDIT_CONFIGS; i++) if (!strcmp(mmdit_configs[i].id, o->model)) return 1;
    return 0;
}

// Are images encoded beside the training?
static inline int dit_options_encodes(const dit_options_t* o) { return !strcmp(o->latents, "none"); }

// A flag that is given and means nothing to this kind of network ends the program.
static inline void dit_options_check_kind(const dit_options_t* o, const cli_t* cli) {
    static const char* const of_classes[] = {"classes", "uncond", "qk_norm", "mlp", "shift", "flip", "shuffle_labels",
                                             "uniform_from", "grid_classes", NULL};
    static const char* const of_captions[] = {
        "extract_text", "text_cache", "image_size", "buckets", "aspect", "short_side", "punsafe", "pwatermark",
        "aesthetic", "grid_prompts", "text", "t5", "t5_vocabulary", "text_clip", "text_clip_vocabulary",
        "text_len", "text_mask", NULL};
    int captions = dit_options_captions(o);
    for (const char* const* flag = captions ? of_classes : of_captions; *flag; flag++) {
        if (cli_source(cli, *flag) != CLI_FROM_COMMAND_LINE) continue;
        fatal("-%s is for %s, and -model %s is one of %s; leave it out, or choose another -model or -preset", *flag,
              captions ? "LightningDiT" : "text to image", o->model, captions ? "text to image" : "LightningDiT");
    }
}

// Reads the command line. Ends with a message when flags contradict each other.
void dit_options_parse(dit_options_t* o, cli_t* cli, int argc, char** argv) {
    static cli_flag_t flags[DIT_OPTIONS_MAX]; // as long-lived as *cli, which points to it
    int n = dit_options_flags(o, flags);
    cli_init(cli, "./train_dit",
             "Trains a diffusion transformer on the latents of a tokenizer: LightningDiT on classes, or text to image "
             "on captions, as -model says. The same command resumes.", flags, n, dit_presets, DIT_PRESETS);
    cli->notes = dit_status_help();
    cli_parse(cli, argc, argv);
    run_options_check(&o->run);
    dit_options_check_kind(o, cli);
    if (o->extract && dit_options_encodes(o)) {
        fatal("-extract 1 writes latents into the folder -latents, and -latents none is to have none; give a folder, "
              "or leave -extract out to encode beside the training");
    }
    if (o->uncond) o->classes = 1;
    if (o->uncond && o->label_drop > 0) o->label_drop = 0;
}

// The limit of the gradient's norm that the flags mean; 0: none.
static inline double dit_options_clip(const dit_options_t* o) {
    if (o->clip >= 0) return o->clip;
    return o->steps > CLIP_FROM_STEPS && !o->qk_norm && !dit_options_captions(o) ? 1 : 0;
}

static inline void dit_options_lightningdit(const dit_options_t* o, lightningdit_config_t* c) {
    *c = *lightningdit_config_find(o->model);
    c->mlp_gelu = o->mlp || c->classic;
    c->sigma = 0; // the velocity is all that is learnt
    c->no_shift = !o->shift;
    c->qk_norm = o->qk_norm;
    c->C = o->z_channels;
    c->side = o->latent_side;
    c->classes = o->classes;
    if (o->latent_side % c->patch) {
        fatal("-latent_side %d is no multiple of %d, the patch of -model %s", o->latent_side, c->patch, o->model);
    }
}

// The widths of rows and vectors are the table's; a training takes those of its text encoder (latent_source.h).
static inline void dit_options_mmdit(const dit_options_t* o, dit_config_t* c) {
    c->mmdit = *mmdit_config_find(o->model);
    c->mmdit.guidance = 0; // it is for distilled models
    c->mmdit.C = o->z_channels;
    c->mmdit.h = c->mmdit.w = o->latent_side;
    c->text_rows = o->text.length;
}

// What the flags describe, in one of `ranks` processes that share the batch.
dit_config_t dit_options_config(const dit_options_t* o, int ranks) {
    dit_config_t c;
    memset(&c, 0, sizeof c);
    if (dit_options_captions(o)) dit_options_mmdit(o, &c);
    else dit_options_lightningdit(o, &c.net);
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
    c.warmup = o->warmup;
    c.clip = dit_options_clip(o);
    c.seed = o->run.seed;
    return c;
}
