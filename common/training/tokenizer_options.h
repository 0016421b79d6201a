// tokenizer_options.h: the flags of train_tokenizer, its presets, and the configuration that they describe.
//
// One table drives the parser, -h, the printed and the saved configuration. A value that differs from stage to stage is
// written as three values with commas, "1e-4,1e-5,1e-4"; a single one serves all stages. The presets are the paper's
// recipes (AlignTok, App. A and C.2), its baselines, and the miniature world. Where the paper is silent they follow
// VA-VAE, on whose training code it builds: w_gan 0.5, w_lpips 1, Adam (0.5, 0.9) at a constant rate, no flip. Look
// next at common/training/tokenizer.h, which takes the configuration, and train_tokenizer.cu.
//
// VA-VAE as it was released is preset vavae in three runs, each -from the one before:
//     -steps 500000 -w_vf 0.5 -distmat_margin 0 -cos_margin 0
//     -steps 75000 -w_vf 0.1 -distmat_margin 0 -cos_margin 0 -disc_start 0
//     -steps 75000 -disc_start 0
#pragma once
// defines: cli_t, cli_flag_t, cli_preset_t
#include "common/program/cli.h"
// defines: cli_from_json
#include "common/program/cli_saved.h"
// defines: run_options_t, run_options_flags, run_options_check
#include "common/training/run_options.h"
// defines: tokenizer_status_help
#include "common/training/status.h"
// defines: tokenizer_config_t
#include "common/training/tokenizer.h"

typedef struct {
    // what to train, from what
    const char *data, *from, *encoder_weights, *teacher_weights, *lpips_weights;
    int recipe, stage;
    // the models
    const char *encoder, *teacher, *ch_mult, *vgg_channels;
    int image_size, normalise, z_channels, adapter_hidden, ch, res_blocks, groups, ndf;
    int decoder, decoder_dim, decoder_depth, decoder_heads, decoder_grid;
    // the recipe
    const char *steps, *lr, *disc_lr, *disc_start; // one value, or one a stage
    int batch, chunk, flip, sem_loss, sem_at, sem_tensor, sem_measure, lora, ema;
    double aspect, w_lpips, w_gan, w_sem, w_kl, w_vf, distmat_margin, cos_margin, lora_alpha, lora_dropout;
    double beta1, beta2, eps, ema0, ema1;
    int fold, latent_images;
    run_options_t run; // what train_dit has too
    // of this stage, from the lists above
    int64_t stage_steps, stage_disc_start;
    double stage_lr, stage_disc_lr;
} options_t;

enum { NORMALISE_OWN = 0, NORMALISE_OFF = 1 };    // -normalise
enum { DECODER_OF_LDM = 0, DECODER_LARGE = 1 };   // -decoder

// The flags' own defaults are the paper's f16d32 on ImageNet; a preset lists what differs from them.
static const cli_setting_t preset_imagenet[] = {
    {"grid_every", "2000"}, {"latent_images", "10000"}, {"out", "runs/imagenet"}, {NULL, NULL}};
static const cli_setting_t preset_imagenet_d64[] = {
    {"z_channels", "64"},   {"adapter_hidden", "128"},  {"steps", "120000,340000,220000"},
    {"grid_every", "2000"}, {"latent_images", "10000"}, {"out", "runs/imagenet_d64"}, {NULL, NULL}};
static const cli_setting_t preset_imagenet_d64_star[] = {
    {"z_channels", "64"},    {"adapter_hidden", "128"},     {"steps", "120000,220000,200000"}, {"lr", "1e-4"},
    {"disc_lr", "1e-4"},     {"w_sem", "0.5"},              {"grid_every", "2000"},  {"latent_images", "10000"},
    {"out", "runs/imagenet_d64_star"}, {NULL, NULL}};
static const cli_setting_t preset_laion[] = {
    {"encoder", "dinov2-l-reg"}, {"aspect", "2"},       {"batch", "256"},       {"steps", "300000,100000,50000"},
    {"lr", "1e-4"},              {"disc_lr", "1e-4"},   {"w_sem", "3"},         {"grid_every", "2000"},
    {"latent_images", "10000"},  {"out", "runs/laion"}, {NULL, NULL}};
// The baselines ship the weights as they are trained: their authors average none. disc_start: theirs is 5001, counted
// in steps of two optimisers.
static const cli_setting_t preset_vae[] = {
    {"recipe", "vae"},       {"encoder", "cnn"},     {"batch", "256"},           {"steps", "250000"},
    {"lr", "1e-4"},          {"disc_lr", "1e-4"},    {"disc_start", "2500"},     {"ema", "-1"},
    {"grid_every", "2000"},  {"latent_images", "10000"}, {"out", "runs/vae"},    {NULL, NULL}};
static const cli_setting_t preset_vavae[] = {
    {"preset", "vae"}, {"recipe", "vavae"}, {"out", "runs/vavae"}, {NULL, NULL}};
static const cli_setting_t preset_vavae_vit[] = {
    {"preset", "vavae"},     {"encoder", "dinov2-l"}, {"batch", "64"},           {"steps", "440000"},
    {"disc_start", "5000"},  {"out", "runs/vavae_vit"}, {NULL, NULL}};
// Garments at 32 pixels. w_gan is below the paper's 0.5. In stages 1 and 2 the discriminator is ahead of what is blurred
// still; in stage 3 it has to keep up with a decoder that learns fast, and its rate is ten times as large.
static const cli_setting_t preset_mini[] = {
    {"data", "auto"},        {"out", "runs/mini"},
    {"encoder_weights", "runs/mini/encoder.safetensors"}, {"lpips_weights", "runs/mini/vgg.safetensors"},
    {"encoder", "mini"},     {"image_size", "32"},       {"z_channels", "16"},    {"adapter_hidden", "32"},
    {"ch", "16"},            {"ch_mult", "1,2,4,4"},     {"res_blocks", "1"},     {"groups", "8"},
    {"decoder_dim", "96"},   {"decoder_depth", "2"},     {"decoder_heads", "3"},  {"decoder_grid", "4"},
    {"ndf", "16"},           {"vgg_channels", "16,32,64"}, {"batch", "32"},       {"steps", "600,800,400"},
    {"lr", "1e-3"},          {"disc_lr", "2e-4,2e-4,2e-3"}, {"disc_start", "100,0,0"}, {"w_gan", "0.1"},
    {"log_every", "50"},     {"grid_every", "200"},      {"save_every", "200"},   {"latent_images", "512"},
    {NULL, NULL}};

// As many steps as the three stages of mini have together.
static const cli_setting_t preset_mini_vae[] = {
    {"preset", "mini"},      {"recipe", "vae"},      {"encoder", "cnn"},         {"encoder_weights", ""},
    {"steps", "1600"},       {"lr", "1e-3"},         {"disc_start", "100"},      {"ema", "-1"},
    {"out", "runs/mini_vae"}, {NULL, NULL}};
static const cli_setting_t preset_mini_vavae[] = {
    {"preset", "mini_vae"},  {"recipe", "vavae"},    {"teacher", "mini"},
    {"teacher_weights", "runs/mini/encoder.safetensors"}, {"out", "runs/mini_vavae"}, {NULL, NULL}};
static const cli_setting_t preset_mini_vavae_vit[] = {
    {"preset", "mini_vavae"}, {"encoder", "mini"},   {"out", "runs/mini_vavae_vit"}, {NULL, NULL}};

static const cli_preset_t options_presets[] = {
    {"mini", "the miniature world: garments of 32 pixels, encoder and VGG trained by this project (dev/pretrain.cu)",
     preset_mini},
    {"imagenet", "the paper's f16d32: DINOv2-L, 42M decoder, 6 + 11 + 5 epochs of ImageNet", preset_imagenet},
    {"imagenet_d64", "f16d64: 64 latent channels, 6 + 17 + 11 epochs", preset_imagenet_d64},
    {"imagenet_d64_star", "the paper's Table 10 (Ours*): d64, stage 2 at 1e-4, w_sem 0.5, 6 + 11 + 10 epochs",
     preset_imagenet_d64_star},
    {"laion", "the paper's LAION tokenizer: images of every aspect ratio, DINOv2-L with registers, batches of 256",
     preset_laion},
    {"vae", "baseline: a variational autoencoder with a CNN as encoder (LDM's), 50 epochs of ImageNet", preset_vae},
    {"vavae", "baseline: VA-VAE, the same aligned with DINOv2-L; the paper's setting of 50 epochs", preset_vavae},
    {"vavae_vit", "baseline: VA-VAE whose encoder is a ViT-L with an adapter, from random weights; 22 epochs",
     preset_vavae_vit},
    {"mini_vae", "preset vae in the miniature world", preset_mini_vae},
    {"mini_vavae", "preset vavae in the miniature world", preset_mini_vavae},
    {"mini_vavae_vit", "preset vavae_vit in the miniature world", preset_mini_vavae_vit},
};
enum { OPTIONS_PRESETS = sizeof options_presets / sizeof options_presets[0], OPTIONS_MAX = 96 };

// Fills the table. The texts are static; the values go into *o.
int options_flags(options_t* o, cli_flag_t* out) {
    const cli_flag_t flags[] = {
        {"What to train", "recipe", CLI_CHOICE, &o->recipe, "aligntok", "aligntok|vae|vavae",
         "the three stages, or a baseline, which has one: variational autoencoder, or the same aligned with a frozen "
         "vision model", CLI_SAVED},
        {NULL, "stage", CLI_INT, &o->stage, "1", "[1, 3]",
         "1: adapter and decoder, encoder frozen; 2: all, with the semantic loss; 3: decoder alone", CLI_SAVED},
        {NULL, "data", CLI_STRING, &o->data, "", NULL,
         "folder of class folders with images, folder with IDX files, garments (Fashion-MNIST in drawn colours), "
         "fashion-mnist, captions:FOLDER (images with captions), scenes (drawn, with captions), shapes (drawn), or "
         "auto: garments where Fashion-MNIST is installed, else shapes",
         CLI_SAVED},
        {NULL, "from", CLI_STRING, &o->from, "", NULL,
         "stages 2 and 3: checkpoint of the stage before; without it, the one in -out. Baselines: weights to start "
         "from, a checkpoint of one or an autoencoder as LDM and VA-VAE publish them; without it, random",
         CLI_NOT_SAVED},
        {NULL, "encoder_weights", CLI_STRING, &o->encoder_weights, "", NULL,
         "stage 1: pretrained encoder, safetensors (timm, facebook or Hugging Face names); without it, random",
         CLI_NOT_SAVED},
        {NULL, "teacher_weights", CLI_STRING, &o->teacher_weights, "", NULL,
         "recipe vavae: the vision model that the latent is aligned with, such a file too; without it, random",
         CLI_NOT_SAVED},
        {NULL, "lpips_weights", CLI_STRING, &o->lpips_weights, "", NULL,
         "VGG16 and LPIPS heads, one file or two (VGG16.pth,HEADS.pth); without it, random", CLI_NOT_SAVED},

        {"Models", "encoder", CLI_STRING, &o->encoder, "dinov2-l", NULL,
         "dinov2-s|b|l[-reg], dinov3-s|b|l, mae-b|l, siglip2-b|l, mini; baselines also cnn, the decoder's mirror image",
         CLI_SAVED},
        {NULL, "teacher", CLI_STRING, &o->teacher, "dinov2-l", NULL, "recipe vavae: one of the same, but for cnn",
         CLI_SAVED},
        {NULL, "normalise", CLI_CHOICE, &o->normalise, "own", "own|none",
         "encoder input: normalised as the encoder was trained, or left in [-1, 1] as VA-VAE does", CLI_SAVED},
        {NULL, "image_size", CLI_INT, &o->image_size, "256", "[8, 4096]",
         "pixels of the square crop; of the shorter side, where -aspect keeps the other", CLI_SAVED},
        {NULL, "aspect", CLI_NUMBER, &o->aspect, "1", "[1, 8]",
         "images keep their aspect ratio up to this one, in batches of one size; 1: square crops", CLI_SAVED},
        {NULL, "z_channels", CLI_INT, &o->z_channels, "32", "[1, 1024]", "channels of the latent", CLI_SAVED},
        {NULL, "adapter_hidden", CLI_INT, &o->adapter_hidden, "64", "[1, 8192]", "hidden width of the adapter",
         CLI_SAVED},
        {NULL, "ch", CLI_INT, &o->ch, "128", "[1, 1024]", "channels of the decoder, and of a cnn, at full resolution",
         CLI_SAVED},
        {NULL, "ch_mult", CLI_STRING, &o->ch_mult, "1,1,2,2,4", NULL, "multiples of -ch, full resolution first",
         CLI_SAVED},
        {NULL, "res_blocks", CLI_INT, &o->res_blocks, "2", "[1, 8]",
         "ResBlocks a level, of which the decoder has one more", CLI_SAVED},
        {NULL, "groups", CLI_INT, &o->groups, "32", "[1, 128]", "groups of every GroupNorm", CLI_SAVED},
        {NULL, "decoder", CLI_CHOICE, &o->decoder, "ldm", "ldm|large",
         "LDM's CNN, or the paper's larger decoder (GigaTok's): a transformer before a CNN without attention",
         CLI_SAVED},
        {NULL, "decoder_dim", CLI_INT, &o->decoder_dim, "1024", "[1, 4096]", "larger decoder: width of its transformer",
         CLI_SAVED},
        {NULL, "decoder_depth", CLI_INT, &o->decoder_depth, "24", "[1, 48]", "and its blocks", CLI_SAVED},
        {NULL, "decoder_heads", CLI_INT, &o->decoder_heads, "16", "[1, 128]", "and its attention's heads", CLI_SAVED},
        {NULL, "decoder_grid", CLI_INT, &o->decoder_grid, "16", "[1, 256]",
         "and rows and columns of its position table, which is resampled to latents of other sizes", CLI_SAVED},
        {NULL, "ndf", CLI_INT, &o->ndf, "64", "[1, 512]", "discriminator channels of the first layer", CLI_SAVED},
        {NULL, "vgg_channels", CLI_STRING, &o->vgg_channels, "64,128,256,512,512", NULL,
         "channels of the slices of LPIPS's VGG16; fewer slices for small images", CLI_SAVED},

        {"Recipe (a,b,c: one value a stage)", "steps", CLI_STRING, &o->steps, "120000,220000,100000", NULL,
         "batches to train in all", CLI_NOT_SAVED},
        {NULL, "batch", CLI_INT, &o->batch, "64", "[1, 65536]", "images a step, over all processes", CLI_SAVED},
        {NULL, "chunk", CLI_INT, &o->chunk, "8", "[1, 65536]",
         "images that share BatchNorm statistics and adaptive weights", CLI_SAVED},
        {NULL, "lr", CLI_STRING, &o->lr, "1e-4,1e-5,1e-4", NULL, "learning rate, constant", CLI_SAVED},
        {NULL, "disc_lr", CLI_STRING, &o->disc_lr, "1e-4,1e-5,1e-4", NULL, "learning rate of the discriminator",
         CLI_SAVED},
        {NULL, "disc_start", CLI_STRING, &o->disc_start, "5000,0,0", NULL,
         "step, counted from 0, from which the GAN acts", CLI_SAVED},
        {NULL, "w_lpips", CLI_NUMBER, &o->w_lpips, "1", "[0, inf)", "weight of LPIPS", CLI_SAVED},
        {NULL, "w_gan", CLI_NUMBER, &o->w_gan, "0.5", "[0, inf)",
         "weight of the GAN after rescaling; 0: no discriminator", CLI_SAVED},
        {NULL, "w_sem", CLI_NUMBER, &o->w_sem, "1", "[0, inf)",
         "stage 2: weight of the semantic loss after rescaling; where it is not given, 3 with SigLIP 2", CLI_SAVED},
        {NULL, "sem_loss", CLI_CHOICE, &o->sem_loss, "l2", "l2|cosine", "stage 2: distance from the frozen copy",
         CLI_SAVED},
        {NULL, "sem_at", CLI_CHOICE, &o->sem_at, "latent", "latent|tokens",
         "stage 2: of what, of the latent z or, before the adapter, of the encoder's tokens", CLI_SAVED},
        {NULL, "sem_tensor", CLI_CHOICE, &o->sem_tensor, "adapter", "adapter|fc2",
         "where gradient norms are compared for it: adapter.fc2, or the last ViT block's mlp.fc2, which -sem_at tokens "
         "needs and takes by itself",
         CLI_SAVED},
        {NULL, "sem_measure", CLI_CHOICE, &o->sem_measure, "exact", "exact|first_chunk",
         "its adaptive weight, and that of recipe vavae: for each chunk, or for all of a process from its first (12% "
         "less work at batch 64)", CLI_SAVED},
        {NULL, "lora", CLI_INT, &o->lora, "0", "[0, 1024]",
         "stage 2: rank of the low-rank pairs through which alone the encoder learns; 0: all of it learns", CLI_SAVED},
        {NULL, "lora_alpha", CLI_NUMBER, &o->lora_alpha, "32", "(0, inf)", "their product is scaled by alpha / rank",
         CLI_SAVED},
        {NULL, "lora_dropout", CLI_NUMBER, &o->lora_dropout, "0.1", "[0, 1)",
         "probability that an input of theirs is dropped while training", CLI_SAVED},
        {NULL, "w_kl", CLI_NUMBER, &o->w_kl, "1e-6", "[0, inf)",
         "baselines: weight of the latent's divergence from N(0, 1)", CLI_SAVED},
        {NULL, "w_vf", CLI_NUMBER, &o->w_vf, "0.1", "(0, inf)",
         "recipe vavae: weight of the alignment after rescaling", CLI_SAVED},
        {NULL, "distmat_margin", CLI_NUMBER, &o->distmat_margin, "0.25", "[0, 2]",
         "recipe vavae: by so much the likeness of two latent vectors may differ from that of the teacher's tokens",
         CLI_SAVED},
        {NULL, "cos_margin", CLI_NUMBER, &o->cos_margin, "0.5", "[0, 2]",
         "recipe vavae: by so much the cosine of a latent vector with the teacher's token may be below 1", CLI_SAVED},
        {NULL, "beta1", CLI_NUMBER, &o->beta1, "0.5", "[0, 1)", "Adam: memory of the mean gradient", CLI_SAVED},
        {NULL, "beta2", CLI_NUMBER, &o->beta2, "0.9", "[0, 1)", "Adam: memory of its square", CLI_SAVED},
        {NULL, "eps", CLI_NUMBER, &o->eps, "1e-8", "(0, 1]", "Adam: added to the denominator", CLI_SAVED},
        {NULL, "ema0", CLI_NUMBER, &o->ema0, "0.05", "[0.01, 0.25]",
         "relative width of the weights' first moving average", CLI_SAVED},
        {NULL, "ema1", CLI_NUMBER, &o->ema1, "0.10", "[0.01, 0.25]", "relative width of the second", CLI_SAVED},
        {NULL, "ema", CLI_INT, &o->ema, "0", "[-1, 1]",
         "number of the average that ships, and that starts stage 3; -1: the weights as they are trained", CLI_SAVED},
        {NULL, "flip", CLI_BOOL, &o->flip, "0", NULL, "mirror half of the training images", CLI_SAVED},

        {NULL, "fold", CLI_BOOL, &o->fold, "1", NULL,
         "frozen encoder: fold resize, colours and LayerScale into its weights (less work, the same up to rounding)",
         CLI_SAVED},
        {NULL, "latent_images", CLI_INT, &o->latent_images, "512", "[1, inf)",
         "training images for the latent's mean and deviation in the checkpoint", CLI_SAVED},
    };
    int n = (int)(sizeof flags / sizeof flags[0]);
    memcpy(out, flags, sizeof flags);
    return n + run_options_flags(&o->run, out + n);
}

// The paper's Table 1, below the flags in -h.
static const char options_ablations[] =
    "The paper's ablations (Table 1): stage 1, then stage 2 with these; the full model has a stage 3\n"
    "  stage 1, 1 + 2, full model  the checkpoint that the stage leaves\n"
    "  weight 0, 5, 10             -w_sem 0, -w_sem 5, -w_sem 10\n"
    "  cosine loss                 -sem_loss cosine\n"
    "  applied pre-adapter         -sem_at tokens\n"
    "  LoRA fine-tuning            -lora 16 (-lora_alpha 32 -lora_dropout 0.1)\n"
    "  larger decoder              in all stages -decoder large\n"
    "  without EMA                 of any checkpoint: -tokenizer_weights raw in eval, train_dit, sample\n"
    "  MAE, SigLIP 2               in both stages -encoder mae-l, -encoder siglip2-l, which takes\n"
    "                              -w_sem 3 by itself, and their -encoder_weights\n"
    "  f16d64                      -preset imagenet_d64";

// The value for `stage` in "a" or "a,b,c". Ends with a message when it is not as wanted.
static inline double options_for_stage(const char* name, const char* text, int stage, double low, int whole) {
    double values[3];
    int n = 0;
    for (const char* at = text; n < 3; at++) {
        char* end;
        values[n++] = strtod(at, &end);
        if (end == at || (*end && *end != ',') || !(values[n - 1] >= low) || !cli_is_float(values[n - 1])) break;
        if (whole && (values[n - 1] > 1e15 || values[n - 1] != floor(values[n - 1]))) break;
        at = end;
        if (!*at && (n == 1 || n == 3)) return n == 1 ? values[0] : values[stage - 1];
        if (!*at) break;
    }
    fatal("-%s %s: want one %s (at least %g), or three with commas, one a stage", name, text,
          whole ? "whole number" : "number", low);
}

// Defaults that follow from other flags, and what contradicts them.
static inline void options_follow(options_t* o, cli_t* cli) {
    if (!strncmp(o->encoder, "siglip2", 7)) cli_follow(cli, "w_sem", "3");
    if (o->sem_at == SEMANTIC_OF_TOKENS) cli_follow(cli, "sem_tensor", "fc2");
    if (o->sem_at == SEMANTIC_OF_TOKENS && o->sem_tensor == SEMANTIC_AT_ADAPTER) {
        fatal("-sem_at tokens: the loss does not reach the adapter, so its gradient cannot be measured there; leave "
              "-sem_tensor adapter out, or give -sem_tensor fc2");
    }
    if (o->lora && o->stage != 2) {
        fatal("-lora %d: low-rank pairs are trained in stage 2, this is stage %d; leave -lora out%s", o->lora, o->stage,
              o->stage == 3 ? " (the encoder of stage 2 comes with its pairs merged in)" : "");
    }
}

// What belongs to one recipe only.
static inline void options_check_recipe(const options_t* o, const cli_t* cli) {
    static const char* const names[] = {"aligntok", "vae", "vavae"};
    static const char* const of_vavae[] = {"teacher", "teacher_weights", "w_vf", "distmat_margin", "cos_margin"};
    static const char* const of_aligntok[] = {"w_sem", "sem_loss", "sem_at"};
    int baseline = o->recipe != RECIPE_ALIGNTOK, cnn = !strcmp(o->encoder, "cnn");
    for (int i = 0; i < 5; i++) {
        if (o->recipe == RECIPE_VAVAE || cli_source(cli, of_vavae[i]) != CLI_FROM_COMMAND_LINE) continue;
        fatal("-%s belongs to recipe vavae, and this is recipe %s, which aligns its latent with no teacher; leave it "
              "out, or give -preset vavae", of_vavae[i], names[o->recipe]);
    }
    if (!baseline && cli_source(cli, "w_kl") == CLI_FROM_COMMAND_LINE) {
        fatal("-w_kl belongs to the baselines: AlignTok's latent is no distribution; leave it out, or give "
              "-preset vae");
    }
    if (!baseline && cnn) {
        fatal("-encoder cnn belongs to the baselines: AlignTok starts from a pretrained vision transformer; give "
              "another -encoder, or -preset vae");
    }
    for (int i = 0; i < 3; i++) {
        if (!baseline || cli_source(cli, of_aligntok[i]) != CLI_FROM_COMMAND_LINE) continue;
        fatal("-%s belongs to AlignTok's stage 2; recipe %s has no semantic loss, leave it out", of_aligntok[i],
              names[o->recipe]);
    }
    if (baseline && o->stage != 1) fatal("-stage %d: recipe %s has one stage, number 1", o->stage, names[o->recipe]);
    if (cnn && o->encoder_weights[0] && cli_source(cli, "encoder_weights") == CLI_FROM_COMMAND_LINE) {
        fatal("-encoder_weights %s: there are no such weights for -encoder cnn; leave it out, or give an autoencoder "
              "to start from with -from", o->encoder_weights);
    }
    if (cnn && o->decoder == DECODER_LARGE) {
        fatal("-decoder large: -encoder cnn is the mirror image of the decoder ldm; leave -decoder out");
    }
    if (cnn && o->sem_tensor == SEMANTIC_AT_FC2) {
        fatal("-sem_tensor fc2: -encoder cnn has no mlp.fc2; its gradients are compared at conv_out");
    }
}

// Reads the command line. Ends with a message when flags contradict each other.
void options_parse(options_t* o, cli_t* cli, int argc, char** argv) {
    static cli_flag_t flags[OPTIONS_MAX]; // as long-lived as *cli, which points to it
    int n = options_flags(o, flags);
    cli_init(cli, "./train_tokenizer", "Trains the AlignTok tokenizer, one stage a run; the same command resumes.",
             flags, n, options_presets, OPTIONS_PRESETS);
    static char notes[8192];
    snprintf(notes, sizeof notes, "%s\n\n%s", tokenizer_status_help(), options_ablations);
    cli->notes = notes;
    cli_parse(cli, argc, argv);
    options_follow(o, cli);
    o->stage_steps = (int64_t)options_for_stage("steps", o->steps, o->stage, 1, 1);
    o->stage_lr = options_for_stage("lr", o->lr, o->stage, 0, 0);
    o->stage_disc_lr = options_for_stage("disc_lr", o->disc_lr, o->stage, 0, 0);
    o->stage_disc_start = (int64_t)options_for_stage("disc_start", o->disc_start, o->stage, 0, 1);
    if (o->batch < o->chunk) o->chunk = o->batch; // a single, smaller chunk
    if (o->batch % o->chunk) {
        fatal("-batch %d is not a multiple of -chunk %d; BatchNorm statistics and adaptive weights are taken per "
              "chunk, so give "
              "a batch of whole chunks",
              o->batch, o->chunk);
    }
    options_check_recipe(o, cli);
    if (!strcmp(o->encoder, "cnn")) o->encoder_weights = ""; // a preset's
    if (o->recipe == RECIPE_ALIGNTOK && o->stage == 1 && o->from[0]) {
        fatal("-from %s: stage 1 starts from -encoder_weights, not from a checkpoint; leave -from out, or give -stage "
              "2 or 3",
              o->from);
    }
    run_options_check(&o->run);
}

// The options of a saved configuration (a checkpoint's metadata). `path` is for messages.
void options_read(options_t* o, const char* json, const char* path) {
    static cli_flag_t flags[OPTIONS_MAX];
    static cli_t cli; // keeps the strings that *o points to
    char error[512];
    cli_free(&cli);
    int n = options_flags(o, flags);
    cli_init(&cli, "./train_tokenizer", "", flags, n, options_presets, OPTIONS_PRESETS);
    if (!cli_from_json(&cli, json, error, sizeof error)) fatal("%s: metadata field \"config\": %s", path, error);
}

// The decoder that the flags describe.
static inline void options_decoder(const options_t* o, tokenizer_config_t* c) {
    decoder_config_t* d = &c->decoder;
    d->ch = o->ch;
    d->levels = cli_integers("ch_mult", o->ch_mult, d->ch_mult, 8);
    d->res_blocks = o->res_blocks;
    d->attn_levels = 1u << (d->levels - 1); // of LDM's
    d->z_channels = o->z_channels;
    d->groups = o->groups;
    d->quant_conv = c->cnn;
    for (int l = 0; l < d->levels; l++) {
        if (d->ch * d->ch_mult[l] % d->groups) {
            fatal("level %d of the decoder has %d channels, no multiple of -groups %d; change -ch, -ch_mult or -groups",
                  l, d->ch * d->ch_mult[l], d->groups);
        }
    }
    if (o->decoder == DECODER_LARGE) {
        if (o->decoder_dim % o->decoder_heads) {
            fatal("-decoder_dim %d is no multiple of -decoder_heads %d; change one of them", o->decoder_dim,
                  o->decoder_heads);
        }
        c->decoder_vit = large_decoder_vit(o->decoder_dim, o->decoder_depth, o->decoder_heads, o->decoder_grid);
    }
}

// Ends the program: the batch is no whole number of chunks for each process. Says what would be.
static void options_refuse_batch(const options_t* o, int ranks) {
    char smaller[32] = "";
    int chunk = o->chunk - 1, share = o->batch / ranks;
    while (chunk > 1 && share % chunk) chunk--;
    if (o->batch % ranks == 0) snprintf(smaller, sizeof smaller, ", or -chunk %d", chunk);
    fatal("-batch %d is %d chunks of %d images, which %d processes cannot share equally; give a multiple of %d%s",
          o->batch, o->batch / o->chunk, o->chunk, ranks, ranks * o->chunk, smaller);
}

// The tokenizer that the flags describe, in one of `ranks` processes that share the batch.
tokenizer_config_t options_tokenizer(const options_t* o, int ranks) {
    tokenizer_config_t c;
    memset(&c, 0, sizeof c);
    c.recipe = (recipe_t)o->recipe;
    c.cnn = !strcmp(o->encoder, "cnn");
    if (!c.cnn) c.encoder = *vit_config_find(o->encoder);
    if (c.recipe == RECIPE_VAVAE) c.teacher = *vit_config_find(o->teacher);
    if (o->normalise == NORMALISE_OFF) c.encoder.normalise = NORMALISE_NONE;
    options_decoder(o, &c);
    int factor = tokenizer_factor(&c);
    if (o->image_size % factor) {
        fatal("-image_size %d is no multiple of %d, the pixels of a latent position each way; choose one, or another "
              "-ch_mult",
              o->image_size, factor);
    }
    c.lpips = vgg16_config();
    c.lpips.slices = cli_integers("vgg_channels", o->vgg_channels, c.lpips.channels, VGG_SLICES);
    c.disc.ndf = o->ndf;
    c.disc.layers = 3;
    c.adapter_hidden = o->adapter_hidden;
    c.stage = o->stage;
    if (o->batch / o->chunk % ranks) options_refuse_batch(o, ranks);
    c.batch = o->batch / ranks;
    c.chunk = o->chunk;
    c.H = c.W = o->image_size;
    c.disc_start = o->stage_disc_start;
    c.w_lpips = o->w_lpips;
    c.w_gan = o->w_gan;
    c.w_sem = o->w_sem;
    c.w_kl = o->w_kl;
    c.w_vf = o->w_vf;
    c.margin_distance = o->distmat_margin;
    c.margin_cosine = o->cos_margin;
    c.semantic_kind = (semantic_kind_t)o->sem_loss;
    c.semantic_place = (semantic_place_t)o->sem_at;
    c.semantic_tensor = (semantic_tensor_t)o->sem_tensor;
    c.semantic_measure = (semantic_measure_t)o->sem_measure;
    if (o->stage == 2) {
        c.lora.rank = o->lora;
        c.lora.alpha = o->lora_alpha;
        c.lora.dropout = o->lora_dropout;
    }
    c.seed = o->run.seed;
    c.recompute = o->run.recompute;
    c.fold = o->fold;
    c.zero = o->run.zero;
    c.lr = o->stage_lr;
    c.disc_lr = o->stage_disc_lr;
    c.beta1 = o->beta1;
    c.beta2 = o->beta2;
    c.eps = o->eps;
    c.ema_sigma[0] = o->ema0;
    c.ema_sigma[1] = o->ema1;
    return c;
}
