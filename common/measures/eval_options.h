// eval_options.h: the flags of eval.cu, in one table, and what every mode of it is handed.
//
// Look next at eval.cu.
#pragma once
// defines: cli_t, cli_flag_t, cli_preset_t, cli_setting_t
#include "common/program/cli.h"
// defines: comm_t
#include "common/training/comm.h"
// defines: AUTOENCODER_WEIGHTS, AUTOENCODER_WEIGHTS_HELP
#include "common/training/tokenizer_checkpoint.h"
// defines: drawing_options_t, drawing_flags, drawing_text_flags, drawing_preset_*; by pipeline.h: pipeline_t
#include "common/drawing/drawing_options.h"
// defines: make_folder
#include "common/files/folder.h"
// defines: report_t
#include "common/measures/report.h"

enum { EVAL_FLAGS = 96, EVAL_BATCH = 4096 }; // at most
enum { EVAL_INPUT_AUTO, EVAL_INPUT_PT, EVAL_INPUT_TF }; // -input

typedef struct {
    drawing_options_t drawing; // -gen, -sweep: the DiT, and how it is used
    const char *preset, *inspect, *tokenizer, *features, *lpips_weights, *encoder;
    const char *encoder_weights, *data, *samples, *reference, *save_reference, *sweep_steps, *sweep_cfg, *pca;
    const char *out, *json;
    const char *image, *captions, *clip, *clip_vocabulary, *hps, *aesthetic, *pick, *pick_model, *geneval;
    int side;
    int recon, gen, probe, latent, sweep, scenes, tokenizer_weights;
    int images, reference_images, crop, force, input, n, balanced;
    int probe_images, probe_epochs, probe_batch, probe_norm, probe_augment, latent_images, cknna_k, cknna_clip;
    int draws, pca_joint, lpips_u8, pr_images, pr_fp16, batch, time_limit;
    double aspect, probe_lr;
    size_t seed;
} eval_options_t;

// What every mode gets.
typedef struct {
    eval_options_t options;
    cli_t cli;
    comm_t comm;
    stream_t stream;
    report_t report;
} eval_t;

// The data set: that of -data, or the one that a tokenizer was trained on, if it says so.
static inline const char* eval_data(const eval_options_t* o, const char* trained_on) {
    if (o->data[0]) return o->data;
    if (!trained_on || !trained_on[0]) fatal("-data: which images shall be measured? The model's file does not say");
    return trained_on;
}

// "OUT/recon_stage3.png" for a measure of runs/mini/stage3.safetensors; the folder is made.
static inline void eval_output_path(const eval_t* e, char* path, size_t size, const char* measure, const char* subject,
                                    const char* suffix) {
    const char *slash = strrchr(subject, '/'), *name = slash ? slash + 1 : subject, *dot = strrchr(name, '.');
    make_folder(e->options.out);
    snprintf(path, size, "%s/%s_%.*s.%s", e->options.out, measure, (int)(dot ? dot - name : (int)strlen(name)), name,
             suffix);
}

// How pictures were drawn, and by what.
static inline void eval_drawing_protocol(const eval_t* e, result_t* result, const pipeline_t* d) {
    const eval_options_t* o = &e->options;
    char hash[17], text[120];
    report_protocol(result, "DiT", "%s, tokenizer %s", d->is_text ? "text to image" : d->net.config.id,
                    d->tokenizer.fingerprint);
    report_protocol(result, "tokenizer's weights", "%s", d->tokenizer.weights);
    report_weights(result, "weights", o->drawing.raw, d->ema);
    if (d->is_text) report_protocol(result, "text encoder", "%s", d->encoder.name);
    else report_protocol(result, "labels", "%s", o->balanced ? "balanced" : "uniform random");
    dit_sampler_text(text, sizeof text, &d->options);
    report_protocol(result, "sampler", "%s, seed %zu", text, o->seed);
    dit_sampler_guidance_text(text, sizeof text, &d->sampler);
    report_protocol(result, "guidance", "%s", text);
    if (d->is_text && d->negative[0]) report_protocol(result, "away from", "%s", d->negative);
    report_protocol(result, "latent statistics", "hash %s", hash_text(hash, pipeline_statistics_hash(d)));
}

static const cli_setting_t eval_preset_mini[] = {{"tokenizer", "miniature/tokenizer.safetensors"},
    {"dit", "miniature/dit.safetensors"}, {"features", "miniature/vgg.safetensors"},
    {"lpips_weights", "miniature/vgg.safetensors"}, {"crop", "tv"}, {"images", "2048"}, {"n", "1000"},
    {"steps", "20"}, {"shift", "1"}, {"probe_images", "10000"}, {"probe_augment", "0"}, {"probe_norm", "1"},
    {"encoder", "mini"}, {"latent_images", "2000"}, {NULL, NULL}};
static const cli_setting_t eval_preset_imagenet[] = {{"tokenizer", "runs/imagenet/stage3.safetensors"},
    {"dit", "runs/dit_imagenet/dit.safetensors"}, {"data", "imagenet"}, {NULL, NULL}};
static const cli_setting_t eval_preset_paper[] = {{"tokenizer", "runs/imagenet/stage3.safetensors"},
    {"dit", "runs/dit_imagenet/dit.safetensors"}, {"data", "imagenet"}, {"n", "50000"}, {"steps", "250"},
    {"cfg", "10"}, {"cfg_channels", "3"}, {"cfg_start", "0.11"},
    {"reference", "VIRTUAL_imagenet256_labeled.npz"}, {NULL, NULL}};

static const cli_setting_t eval_preset_t2i_mini[] = {{"preset", "t2i_method"}, {"dit", "miniature/t2i.safetensors"},
    {"tokenizer", "miniature/t2i_tokenizer.safetensors"}, {"data", "scenes:48:mixed"}, {"images", "1000"},
    {"features", "miniature/vgg.safetensors"}, {"crop", "tv"}, {"n", "1000"}, {NULL, NULL}};

static const cli_preset_t eval_presets[] = {
    {"mini", "the trained miniature that comes with this repository (garments, 32 pixels)", eval_preset_mini},
    {"imagenet", "what train_tokenizer and train_dit -preset imagenet leave", eval_preset_imagenet},
    {"paper", "the same by the paper's protocol: 50,000 samples, 250 steps, ADM's reference", eval_preset_paper},
    {"t2i_mini", "the trained miniature of text to image (drawn scenes, 48 pixels), for -scenes and -gen",
     eval_preset_t2i_mini},
    {"t2i_method", "how text to image is drawn, with another -dit and -tokenizer", drawing_preset_t2i_method},
    {"dit", "DiT-XL/2 and Stable Diffusion's autoencoder, files as published, in this folder", drawing_preset_dit},
    {"sit", "SiT-XL/2, likewise", drawing_preset_sit},
};
enum { EVAL_PRESETS = sizeof eval_presets / sizeof eval_presets[0] };

static inline int eval_flags(eval_options_t* o, cli_flag_t out[EVAL_FLAGS]) {
    const cli_flag_t what[] = {
        {"What to measure", "recon", CLI_BOOL, &o->recon, "0", NULL,
         "a tokenizer's reconstructions: rFID, PSNR, SSIM, LPIPS, and a sheet of the worst, median and best",
         CLI_NOT_SAVED},
        {NULL, "gen", CLI_BOOL, &o->gen, "0", NULL,
         "samples: gFID, sFID, Inception Score, precision, recall, KID against a reference", CLI_NOT_SAVED},
        {NULL, "probe", CLI_BOOL, &o->probe, "0", NULL, "a linear classifier on the frozen latent", CLI_NOT_SAVED},
        {NULL, "latent", CLI_BOOL, &o->latent, "0", NULL,
         "the latent space: CKNNA, spatial variance, total variation, density, and PCA pictures", CLI_NOT_SAVED},
        {NULL, "sweep", CLI_BOOL, &o->sweep, "0", NULL, "gFID against sampling steps and against guidance, as a plot",
         CLI_NOT_SAVED},
        {NULL, "scenes", CLI_BOOL, &o->scenes, "0", NULL,
         "whether pictures show the drawn scenes that their captions name: reconstructions of held-out ones by each "
         "tokenizer, and what a text-to-image -dit draws of their captions; or the pictures in the folder -samples",
         CLI_NOT_SAVED},
        {NULL, "captions", CLI_STRING, &o->captions, "", NULL,
         "a folder of pictures with their prompts, as ./sample -prompts writes it: CLIP score, aesthetic score, HPSv2",
         CLI_NOT_SAVED},
        {NULL, "pick", CLI_STRING, &o->pick, "", NULL,
         "A,B: two such folders, of the same prompts: PickScore, how probably each one's pictures are chosen",
         CLI_NOT_SAVED},
        {NULL, "geneval", CLI_STRING, &o->geneval, "", NULL,
         "sum up GenEval's file of results (.jsonl), or judge the boxes that a detector wrote", CLI_NOT_SAVED},
        {NULL, "inspect", CLI_STRING, &o->inspect, "", NULL,
         "list the tensors of a file: safetensors, PyTorch (.pt, .pth, .ckpt), NumPy (.npz, .npy)", CLI_NOT_SAVED},
        {NULL, "preset", CLI_PRESET, &o->preset, "mini", NULL,
         "sets the flags listed at the end, unless they are given", CLI_NOT_SAVED},
        {"Models", "tokenizer", CLI_STRING, &o->tokenizer, "", NULL,
         "checkpoints of train_tokenizer, exported files, or VA-VAE's, with commas between them; a DiT uses the last",
         CLI_SAVED},
        {NULL, "tokenizer_weights", CLI_CHOICE, &o->tokenizer_weights, "ema", AUTOENCODER_WEIGHTS,
         AUTOENCODER_WEIGHTS_HELP, CLI_SAVED},
        {NULL, "features", CLI_STRING, &o->features, "", NULL,
         "pytorch-fid's Inception weights (pt_inception-2015-12-05-6726825d.pth), or a miniature classifier, whose "
         "scores have other names", CLI_SAVED},
        {NULL, "lpips_weights", CLI_STRING, &o->lpips_weights, "", NULL,
         "VGG16 with LPIPS' heads, as for train_tokenizer; empty: no LPIPS", CLI_SAVED},
        {NULL, "clip", CLI_STRING, &o->clip, "", NULL,
         "-captions: CLIP as published by OpenAI, OpenCLIP or Hugging Face, of any size; its score is named with it",
         CLI_SAVED},
        {NULL, "clip_vocabulary", CLI_STRING, &o->clip_vocabulary, "", NULL,
         "its merges.txt or bpe_simple_vocab_16e6.txt.gz, also for the following", CLI_SAVED},
        {NULL, "aesthetic", CLI_STRING, &o->aesthetic, "", NULL,
         "-captions: sac+logos+ava1-l14-linearMSE.pth, with OpenAI's L/14 as -clip", CLI_SAVED},
        {NULL, "hps", CLI_STRING, &o->hps, "", NULL,
         "-captions: HPS_v2.1_compressed.pt, or v2.0's HPS_v2_compressed.pt", CLI_SAVED},
        {NULL, "pick_model", CLI_STRING, &o->pick_model, "", NULL, "-pick: PickScore_v1's weights", CLI_SAVED},
        {"Images", "data", CLI_STRING, &o->data, "", NULL,
         "data set, as for train_tokenizer; its val split is what -recon, -probe and -latent measure on, and whose "
         "captions a text-to-image -dit draws", CLI_SAVED},
        {NULL, "images", CLI_INT, &o->images, "50000", "[2, inf)", "of the val split, by lot if it has more",
         CLI_SAVED},
        {NULL, "crop", CLI_CHOICE, &o->crop, "adm", "adm|tv|aspect",
         "how an image is cut to a square: ADM's way, or torchvision's Resize and CenterCrop; aspect: it is not, as in "
         "train_tokenizer -preset laion (-recon and -latent)", CLI_SAVED},
        {NULL, "aspect", CLI_NUMBER, &o->aspect, "2", "[1, 8]",
         "-crop aspect: the largest ratio of the sides; longer images lose their ends", CLI_SAVED},
        {NULL, "image", CLI_STRING, &o->image, "", NULL,
         "-recon of one image, whole, of any size: it and its reconstruction beside each other, to -out FILE.png",
         CLI_SAVED},
        {NULL, "side", CLI_INT, &o->side, "0", "[0, 16384]",
         "-image: pixels that its shorter side is resized to; 0: its own size", CLI_SAVED},
        {NULL, "samples", CLI_STRING, &o->samples, "", NULL,
         "-gen: an .npz file or a folder of images instead of drawing them; -scenes: a folder, with their prompts",
         CLI_SAVED},
        {NULL, "reference", CLI_STRING, &o->reference, "train", NULL,
         "-gen: train (the training split of -data), another folder, or an .npz: ADM's, pytorch-fid's, ours",
         CLI_SAVED},
        {NULL, "reference_images", CLI_INT, &o->reference_images, "0", "[0, inf)",
         "of a reference that is images, by lot; 0: all", CLI_SAVED},
        {NULL, "save_reference", CLI_STRING, &o->save_reference, "", NULL,
         "-gen: write the reference's statistics here (.npz), for the next time", CLI_NOT_SAVED},
        {NULL, "force", CLI_BOOL, &o->force, "0", NULL,
         "allow a reference that was made for another score, or with another network", CLI_SAVED},
        {NULL, "input", CLI_CHOICE, &o->input, "auto", "auto|pt|tf",
         "Inception's input: pt as pytorch-fid (rFID), tf as ADM's graph (gFID); auto: each score its own", CLI_SAVED},
        {"Drawing", "n", CLI_INT, &o->n, "50000", "[2, inf)",
         "samples; of captions one each, by lot, and no more than are held out", CLI_SAVED},
        {NULL, "class", CLI_CHOICE, &o->balanced, "random", "random|balanced", "their classes: drawn, or in turn",
         CLI_SAVED},
        {NULL, "seed", CLI_SIZE, &o->seed, "0", NULL, "of the noise, the labels, and the probe", CLI_SAVED},
    };
    const cli_flag_t how[] = {
        {"Sweep", "sweep_steps", CLI_STRING, &o->sweep_steps, "30,50,80,120,250", NULL,
         "sampling steps, with commas; empty: none", CLI_SAVED},
        {NULL, "sweep_cfg", CLI_STRING, &o->sweep_cfg, "1,1.5,2,3,4", NULL,
         "guidance scales, with commas; empty: none", CLI_SAVED},
        {"Linear probe", "probe_images", CLI_INT, &o->probe_images, "0", "[0, inf)",
         "training images, by lot; 0: all", CLI_SAVED},
        {NULL, "probe_epochs", CLI_INT, &o->probe_epochs, "3", "[1, 1000]", "passes over them", CLI_SAVED},
        {NULL, "probe_batch", CLI_INT, &o->probe_batch, "256", "[1, 65536]", "images a step", CLI_SAVED},
        {NULL, "probe_lr", CLI_NUMBER, &o->probe_lr, "1e-3", "(0, 1)", "learning rate of Adam", CLI_SAVED},
        {NULL, "probe_norm", CLI_BOOL, &o->probe_norm, "0", NULL,
         "scale each latent channel to unit deviation first; the paper does not say", CLI_SAVED},
        {NULL, "probe_augment", CLI_BOOL, &o->probe_augment, "1", NULL,
         "random crops and mirrored images, encoded anew each epoch; 0: centre crops, encoded once and kept in memory",
         CLI_SAVED},
        {"Latent space", "encoder_weights", CLI_STRING, &o->encoder_weights, "", NULL,
         "the pretrained encoder whose tokens CKNNA compares with; empty: the tokenizer's own encoder", CLI_SAVED},
        {NULL, "encoder", CLI_STRING, &o->encoder, "dinov2-l", NULL, "its configuration, as for train_tokenizer",
         CLI_SAVED},
        {NULL, "latent_images", CLI_INT, &o->latent_images, "10000", "[4, inf)",
         "of the val split, by lot if it has more", CLI_SAVED},
        {NULL, "cknna_k", CLI_INT, &o->cknna_k, "10", "[1, 100000]", "neighbours of CKNNA", CLI_SAVED},
        {NULL, "cknna_clip", CLI_BOOL, &o->cknna_clip, "0", NULL, "clamp features at their 95th percentile first",
         CLI_SAVED},
        {NULL, "draws", CLI_INT, &o->draws, "3", "[1, 100]", "repetitions of the density measures", CLI_SAVED},
        {NULL, "pca", CLI_STRING, &o->pca, "0,1,2,3,4,5", NULL, "images of the PCA picture, with commas; empty: none",
         CLI_SAVED},
        {NULL, "pca_joint", CLI_BOOL, &o->pca_joint, "0", NULL, "one basis for all images of a tokenizer", CLI_SAVED},
        {"Variants", "lpips_u8", CLI_BOOL, &o->lpips_u8, "0", NULL, "LPIPS of the rounded images", CLI_SAVED},
        {NULL, "pr_images", CLI_INT, &o->pr_images, "10000", "[4, inf)",
         "images of the reference for precision, recall and KID, at most, by lot", CLI_SAVED},
        {NULL, "pr_fp16", CLI_BOOL, &o->pr_fp16, "0", NULL, "precision and recall with ADM's 16-bit distances",
         CLI_SAVED},
        {"Output", "out", CLI_STRING, &o->out, "runs/eval", NULL,
         "folder for pictures and for what a sweep has done; with -image, the picture if it ends in .png",
         CLI_NOT_SAVED},
        {NULL, "json", CLI_STRING, &o->json, "", NULL, "file to append a JSON line to for each result", CLI_NOT_SAVED},
        {"Machine", "batch", CLI_INT, &o->batch, "64", "[1, 4096]", "images at a time; results do not depend on it",
         CLI_NOT_SAVED},
        {NULL, "time_limit", CLI_INT, &o->time_limit, "86400", "[1, inf)",
         "several processes: seconds to wait for one another before giving up", CLI_NOT_SAVED},
    };
    int n = sizeof what / sizeof what[0];
    memcpy(out, what, sizeof what);
    n += drawing_flags(&o->drawing, "1", out + n);
    n += drawing_text_flags(&o->drawing, out + n);
    memcpy(out + n, how, sizeof how);
    return n + (int)(sizeof how / sizeof how[0]);
}
