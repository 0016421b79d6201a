// eval.cu: measures tokenizers and what is generated in their latent space, as the paper does.
//
//     ./eval -recon  -tokenizer runs/mini/stage3.safetensors       rFID, PSNR, SSIM, LPIPS
//     ./eval -recon  -tokenizer A -image PHOTO.jpg -out BESIDE.png one image of any size and what becomes of it
//     ./eval -probe  -tokenizer A,B,C                              linear probe on the frozen latent
//     ./eval -latent -tokenizer A,B,C                              Table 16, PCA pictures
//     ./eval -gen    -dit runs/mini/dit.safetensors                gFID, sFID, IS, precision, recall, KID
//     ./eval -sweep  -dit runs/mini/dit.safetensors                gFID against steps and guidance, plotted
//     ./eval -preset t2i_mini -gen -data scenes:48                 both also of held-out captions, by text to image
//     ./eval -scenes -tokenizer A,B [-dit DIT]                     do pictures show the scenes that captions name?
//     ./eval -captions FOLDER -clip FILE ...                       CLIP score, aesthetic score, HPSv2 of pictures
//     ./eval -pick A,B -pick_model FILE ...                        PickScore of two systems
//     ./eval -geneval RESULTS.jsonl                                GenEval's scores
//     ./eval -inspect FILE                                         the tensors in a file of weights
//     ./eval -preset imagenet -recon -data IMAGENET -features pt_inception-2015-12-05-6726825d.pth ...
//
// Several may be asked for at once; a table of all scores ends the output. Every score is printed with its protocol,
// and written as a JSON line with -json. Without Inception's weights the miniature world's classifier is the feature
// network, and its scores have other names (FD-mini). On several GPUs, one process each (torchrun, srun, mpirun),
// images are shared among all, and the scores are those of one.
//
// Reading order: here what is opened and in which order; then a mode of interest: common/measures/eval_recon.h,
// eval_gen.h, eval_probe.h, eval_latent.h, eval_sweep.h, eval_scenes.h, eval_captions.h. What they print and
// log: common/measures/report.h.
#include <unistd.h>

// defines: eval_t, eval_flags, eval_presets
#include "common/measures/eval_options.h"
// defines: eval_captions, eval_pick
#include "common/measures/eval_captions.h"
// defines: eval_gen
#include "common/measures/eval_gen.h"
// defines: eval_geneval
#include "common/measures/eval_geneval.h"
// defines: eval_image
#include "common/measures/eval_image.h"
// defines: eval_latent
#include "common/measures/eval_latent.h"
// defines: eval_probe
#include "common/measures/eval_probe.h"
// defines: eval_recon
#include "common/measures/eval_recon.h"
// defines: eval_scenes_tokenizer, eval_scenes_dit, eval_scenes_folder
#include "common/measures/eval_scenes.h"
// defines: eval_sweep, eval_sweep_check
#include "common/measures/eval_sweep.h"
// defines: inspect_file
#include "common/files/inspect.h"

enum { MAX_TOKENIZERS = 16 };

// The paths in "a,b,c", cut in place.
static int split_paths(const char* flag, char* text, char** paths) {
    int n = 0;
    for (char* at = strtok(text, ","); at; at = strtok(NULL, ",")) {
        if (n == MAX_TOKENIZERS) fatal("-%s: at most %d paths", flag, MAX_TOKENIZERS);
        paths[n++] = at;
    }
    if (!n) fatal("-%s: give one or more paths with commas between them", flag);
    return n;
}

static void need_file(const eval_t* e, const char* flag, const char* path, const char* what) {
    if (path[0] && !access(path, R_OK)) return;
    fatal("-%s %s: there is no such file; give %s%s", flag, path[0] ? path : "(empty)", what,
          strstr(e->options.preset, "mini") ? ". The miniature comes with this repository: run in its folder" : "");
}

// The feature network for images of H x W, or NULL where -recon may do without.
static feature_net_t* open_features(eval_t* e, int H, int W, int needed) {
    static feature_net_t net;
    static int is_open;
    const eval_options_t* o = &e->options;
    if (!o->features[0] && !needed) {
        warn("no -features: rFID is not measured; give pytorch-fid's pt_inception-2015-12-05-6726825d.pth");
        return NULL;
    }
    if (is_open && net.H == H && net.W == W) return &net;
    need_file(e, "features", o->features,
              "pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or the vgg.safetensors of the miniature world");
    if (is_open) feature_net_close(&net);
    feature_net_open(&net, o->features, o->batch, H, W);
    is_open = 1;
    return &net;
}

// The configuration of LPIPS' network: the miniature's shows in its file; every other file holds VGG16.
static lpips_config_t lpips_config_of(const char* path) {
    safetensors_t file;
    if (strchr(path, ',')) return vgg16_config();
    tensor_file_open_or_die(&file, path);
    lpips_config_t config = vgg_config_of_file(&file);
    safetensors_close(&file);
    return config.slices ? config : vgg16_config();
}

// LPIPS's network for so many images of H x W at a time; NULL where its weights are not given.
static perceptual_t* open_lpips(eval_t* e, int batch, int H, int W) {
    static perceptual_t p;
    static int is_open;
    const eval_options_t* o = &e->options;
    if (!o->lpips_weights[0]) return NULL;
    if (is_open && p.batch == batch) {
        perceptual_resize(&p, H, W);
        return &p;
    }
    if (!strchr(o->lpips_weights, ',')) need_file(e, "lpips_weights", o->lpips_weights, "VGG16 and LPIPS' heads");
    if (is_open) perceptual_close(&p);
    perceptual_open(&p, lpips_config_of(o->lpips_weights), batch, H, W);
    weights_load_lpips(&p.params, o->lpips_weights);
    is_open = 1;
    return &p;
}

// -recon -image of all tokenizers, by the first process. LPIPS's network turns to the image's size by itself.
static void measure_image(eval_t* e, char** paths, int n) {
    const eval_options_t* o = &e->options;
    if (!comm_is_first(&e->comm)) return;
    need_file(e, "image", o->image, "a JPEG, PNG, BMP or PPM");
    for (int i = 0; i < n; i++) {
        need_file(e, "tokenizer", paths[i], "a checkpoint of train_tokenizer, an exported file, or VA-VAE's");
    }
    eval_image(e, paths, n, open_lpips(e, 1, 32, 32));
}

// -recon, -probe, -latent, -scenes of each tokenizer.
static void measure_tokenizers(eval_t* e, char** paths, int n) {
    static autoencoder_t a;
    static space_picture_t picture;
    static recon_shared_t shared;
    const eval_options_t* o = &e->options;
    for (int i = 0; i < n; i++) {
        need_file(e, "tokenizer", paths[i], "a checkpoint of train_tokenizer, an exported file, or VA-VAE's");
        autoencoder_open(&a, paths[i], (autoencoder_weights_t)o->tokenizer_weights, o->batch, 1,
                         o->recon || o->scenes);
        if (o->recon) {
            eval_recon(e, paths[i], &a, open_features(e, a.H, a.W, 0), open_lpips(e, o->batch, a.H, a.W), &shared);
        }
        if (o->scenes && !o->samples[0]) eval_scenes_tokenizer(e, paths[i], &a);
        if (o->probe) eval_probe(e, paths[i], &a);
        if (o->latent) eval_latent(e, paths[i], &a, &picture, i == 0, i == n - 1);
        autoencoder_close(&a);
    }
    if (o->recon) recon_shared_close(&shared, e);
    if (o->latent) space_picture_close(&picture, e);
}

// The samples of -gen and -sweep: files, or what the DiT draws.
static const char* open_samples(eval_t* e, image_source_t* samples, pipeline_t* g, const char* tokenizer) {
    const eval_options_t* o = &e->options;
    if (o->samples[0]) {
        if (o->sweep) fatal("-sweep draws its samples; leave -samples out");
        if (image_source_is_npz(o->samples)) image_source_npz(samples, o->samples);
        else image_source_images(samples, o->samples);
        image_source_limit(samples, (size_t)o->n);
        return o->samples;
    }
    need_file(e, "dit", o->drawing.dit, "a diffusion transformer, or -samples");
    need_file(e, "tokenizer", tokenizer, "the tokenizer that the DiT draws with");
    dit_sampler_options_t sampler = drawing_sampler(&o->drawing, o->batch, o->seed);
    if (o->sweep) sampler.guidance.w = 2; // there is room for guidance
    drawing_open(g, &o->drawing, tokenizer, (autoencoder_weights_t)o->tokenizer_weights, sampler);
    drawing_open_text(g, &o->drawing);
    pipeline_load(g);
    sampler.guidance.w = o->drawing.cfg;
    pipeline_use(g, sampler);
    if (g->is_text) image_source_captions(samples, g, eval_data(o, g->tokenizer.data), (size_t)o->n, e->stream);
    else image_source_pipeline(samples, g, (size_t)o->n, o->balanced, e->stream);
    return o->drawing.dit;
}

static void measure_samples(eval_t* e, const char* tokenizer) {
    static pipeline_t g;
    static image_source_t samples;
    static reference_statistics_t reference;
    const eval_options_t* o = &e->options;
    const char* subject = open_samples(e, &samples, &g, tokenizer);
    feature_net_t* net = open_features(e, samples.H, samples.W, 1);
    inception_input_t input = reference_statistics_open(&reference, e, net, o->data[0] ? o->data : g.tokenizer.data);
    if (o->gen) eval_gen(e, "gen", subject, &samples, net, &reference, input, 1);
    if (o->sweep) eval_sweep(e, subject, &samples, net, &reference, input);
    reference_statistics_free(&reference);
    image_source_close(&samples);
    if (g.path) pipeline_close(&g);
}

// -captions and -pick: pictures and their prompts.
static void measure_prompted(eval_t* e) {
    const eval_options_t* o = &e->options;
    need_file(e, "clip_vocabulary", o->clip_vocabulary, "CLIP's merges.txt or bpe_simple_vocab_16e6.txt.gz");
    if (o->captions[0]) {
        if (!o->clip[0] && !o->hps[0]) fatal("-captions: by which network? Give -clip FILE or -hps FILE, or both");
        if (o->clip[0]) need_file(e, "clip", o->clip, "CLIP's weights");
        if (o->hps[0]) need_file(e, "hps", o->hps, "HPS_v2.1_compressed.pt");
        if (o->aesthetic[0]) need_file(e, "aesthetic", o->aesthetic, "sac+logos+ava1-l14-linearMSE.pth");
        if (o->aesthetic[0] && !o->clip[0]) fatal("-aesthetic needs the vectors of OpenAI's L/14: give it with -clip");
        eval_captions(e);
    }
    if (o->pick[0]) {
        char *text = strdup(o->pick), *paths[MAX_TOKENIZERS];
        if (split_paths("pick", text, paths) != 2) fatal("-pick %s: give two folders, A,B", o->pick);
        need_file(e, "pick_model", o->pick_model, "PickScore_v1's weights");
        const char* folders[2] = {paths[0], paths[1]};
        eval_pick(e, folders);
        free(text);
    }
}

// -scenes: of the pictures in a folder, or of what a text-to-image transformer draws, where one is named.
static void measure_scenes(eval_t* e, const char* tokenizer) {
    const eval_options_t* o = &e->options;
    int drawn = cli_source(&e->cli, "dit") == CLI_FROM_COMMAND_LINE || !strcmp(o->preset, "t2i_mini");
    if (o->samples[0]) {
        eval_scenes_folder(e);
    } else if (drawn) {
        need_file(e, "dit", o->drawing.dit, "a text-to-image transformer");
        eval_scenes_dit(e, tokenizer);
    }
}

static void parse(eval_t* e, int argc, char** argv) {
    static cli_flag_t flags[EVAL_FLAGS];
    const eval_options_t* o = &e->options;
    cli_init(&e->cli, "./eval", "Measures tokenizers, latents and samples.", flags, eval_flags(&e->options, flags),
             eval_presets, EVAL_PRESETS);
    cli_parse(&e->cli, argc, argv);
    int others = o->gen || o->probe || o->latent || o->sweep || o->scenes || o->captions[0] || o->pick[0] ||
                 o->geneval[0];
    if (!o->recon && !others && !o->inspect[0]) {
        fatal("what shall be measured? Give -recon, -probe, -latent, -gen, -sweep, -scenes, -captions FOLDER, -pick "
              "A,B, -geneval FILE or -inspect FILE (-h explains them)");
    }
    if (o->drawing.raw && !o->gen && !o->sweep && !o->scenes) {
        fatal("-raw is about the weights of a DiT, and none is measured; a tokenizer's: -tokenizer_weights raw");
    }
    if (o->image[0] && (!o->recon || others)) fatal("-image %s is for -recon alone; leave the other out", o->image);
    if (o->drawing.size[0] && !o->gen && !o->sweep) {
        fatal("-size %s: pictures are drawn for -gen and -sweep in this size; -scenes draws them in that of -data",
              o->drawing.size);
    }
    if (o->crop == CROP_ASPECT && (o->gen || o->probe || o->sweep)) {
        fatal("-crop aspect is for -recon and -latent: -gen, -sweep and -probe compare images of one size");
    }
    if (o->sweep) eval_sweep_check(e);
    e->report.json_path = o->json;
}

int main(int argc, char** argv) {
    static eval_t e;
    comm_options_begin(&e.comm); // and without an end: most that can go wrong are files that all read
    parse(&e, argc, argv);
    const eval_options_t* o = &e.options;
    if (o->inspect[0]) {
        inspect_file(o->inspect);
        return 0;
    }
    e.comm.time_limit = o->time_limit;
    comm_open(&e.comm);
    if (!comm_is_first(&e.comm)) {
        e.report.json_path = "";
        if (!freopen("/dev/null", "w", stdout)) warn("this rank's output is not silenced");
    }
    e.stream = device_open(e.comm.local_rank);
    comm_attach(&e.comm, e.stream);
    char *text = strdup(o->tokenizer), *paths[MAX_TOKENIZERS];
    int n = split_paths("tokenizer", text, paths), ceiling = o->scenes && !o->samples[0];
    if (o->image[0]) measure_image(&e, paths, n);
    else if (o->recon || o->probe || o->latent || ceiling) measure_tokenizers(&e, paths, n);
    if (o->scenes) measure_scenes(&e, paths[n - 1]);
    if (o->gen || o->sweep) measure_samples(&e, paths[n - 1]);
    if (o->captions[0] || o->pick[0]) measure_prompted(&e);
    if (o->geneval[0]) eval_geneval(&e);
    report_tables(&e.report);
    report_free(&e.report);
    free(text);
    comm_close(&e.comm);
    device_close(e.stream);
    return 0;
}
