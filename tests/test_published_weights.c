// test_published_weights.c: files in the layouts in which others publish weights, opened as downloaded.
//
//   vavae          a checkpoint of PyTorch Lightning: latent and reconstruction against the original's
//   draws          mu + sigma eps: moments of the draws; the same whatever the batch; either half alone
//   lightningdit   {"ema": ...}: what the shapes tell, the velocity against the original's; the latent statistics
//   dinov2, mae    facebook's files: tokens against timm's
//   layouts        the same weights behind other prefixes, and training checkpoints of LightningDiT
//   refusals       what is missing, unexpected and of another shape, by name
//
// The files are tests/fixtures/published*, made by dev/reference/make_published_formats.py.

// defines: pipeline_t, pipeline_open, pipeline_use_statistics, pipeline_load, pipeline_close
#include "common/drawing/pipeline.h"
// defines: published_vavae, published_lightningdit, published_vit
#include "tests/published.h"
// defines: temporary_begin, temporary_path, temporary_read, check_message, temporary_end
#include "tests/temporary.h"

#define FOLDER "tests/fixtures/"
#define VAVAE FOLDER "published_vavae.pt"
#define LIGHTNINGDIT FOLDER "published_lightningdit.pt"
#define STATISTICS FOLDER "published_latents_stats.pt"

// The originals' answers were computed in double and stored as float32; ours are float32 throughout. LightningDiT's are
// float32 on both sides, because the original makes its tables of rotation and its norms in it.
#define BOUND_CNN 2e-5
#define BOUND_VIT 1e-5
#define BOUND_DIT 1e-5

static safetensors_t answers;

// ---------------------------------------------------------------------------------------------------------------------
// Autoencoders

static void test_vavae(void) {
    static autoencoder_t a;
    published_vavae_t e = published_vavae(&a, VAVAE, &answers);
    check_error("mean", e.mean, BOUND_CNN);
    check_error("deviation", e.std, BOUND_CNN);
    check_error("reconstruction", e.image, BOUND_CNN);
    check(a.ldm && a.z == 2 && a.GH == 3 && a.GW == 3 && a.H == 48 && a.W == 48, "sizes");
    const cnn_encoder_config_t* c = &a.encoder.cnn.config;
    check(c->ch == 4 && c->levels == 5 && c->ch_mult[4] == 4 && c->res_blocks == 2 && c->groups == 4, "channels");
    check(c->attn_levels == 1u << 4 && c->quant_conv, "attention and quant_conv of the encoder");
    check(a.decoder.config.attn_levels == 1u << 4 && a.decoder.config.quant_conv, "those of the decoder");
    check(a.decoder.config.res_blocks == 2, "ResBlocks of the decoder");
    check(!a.statistics && a.mean[0] == 0 && a.std[1] == 1, "the file has no latent statistics");
    check(a.others == 49, "tensors of the training: 39 weights, 6 of optimisers, 4 scores");
    check(strlen(a.fingerprint) == 16 && !a.exported && !a.data[0], "a name of its own");
    autoencoder_close(&a);
}

// Draws of many seeds: their mean is the mean, their deviation the deviation.
static void test_draws(void) {
    static autoencoder_t a;
    enum { DRAWS = 400 };
    published_vavae(&a, VAVAE, &answers);
    int B, H;
    uint8_t* pixels = published_pixels(&answers, "input.vavae.pixels", &B, &H);
    size_t n = B * autoencoder_latent_values(&a), image = autoencoder_image_values(&a);
    floatS* mean = fixture_tensor(&answers, "output.vavae.mean");
    floatS* std = fixture_tensor(&answers, "output.vavae.std");
    uint64_t numbers[16]; // of the images
    for (int b = 0; b < 16; b++) numbers[b] = 10 + (uint64_t)b;
    double sum = 0, squares = 0;
    for (int k = 0; k < DRAWS; k++) {
        // the encoder is run once: the noise is what differs
        const floatX* z = k ? a.latent : autoencoder_sample(&a, pixels, B, 3, 0, numbers, 0);
        for (size_t i = 0; k && i < n; i++) {
            a.encoder.noise[i] = random_normal(3, RANDOM_POSTERIOR, (uint64_t)k, 10 * n / B + i);
        }
        const latent_encoder_t* e = &a.encoder;
        if (k) posterior_forward(a.latent, e->kl, e->cnn.moments, e->noise, B, a.GH * a.GW, a.z, 0);
        for (size_t i = 0; i < n; i++) {
            double e = (z[i] - mean[i]) / std[i];
            sum += e;
            squares += e * e;
        }
    }
    double count = (double)DRAWS * (double)n; // 14400: five deviations of mean and variance
    check(fabs(sum / count) < 5 / sqrt(count), "mean of the noise");
    check(fabs(squares / count - 1) < 5 * sqrt(2 / count), "variance of the noise");
    floatX* kept = (floatX*)malloc_check(n * sizeof(floatX), "latents");
    memcpy(kept, autoencoder_sample(&a, pixels, B, 3, 2, numbers, 0), n * sizeof(floatX));
    for (int b = 0; b < B; b++) {
        const floatX* z = autoencoder_sample(&a, pixels + b * image, 1, 3, 2, numbers + b, 0);
        check_error("one by one", relative_error_float(z, kept + b * n / B, n / B), 1e-5);
    }
    check(relative_error_float(autoencoder_sample(&a, pixels, B, 4, 2, numbers, 0), kept, n) > 1e-2, "another seed");
    check(relative_error_float(autoencoder_sample(&a, pixels, B, 3, 1, numbers, 0), kept, n) > 1e-2, "another draw");
    check(relative_error_float(autoencoder_encode(&a, pixels, B, 0), mean, n) < BOUND_CNN, "the mean again");
    autoencoder_close(&a);
    free(pixels);
    free(mean);
    free(std);
    free(kept);
}

// Encoder and decoder alone give what they give together, under one name.
static void test_halves(void) {
    static autoencoder_t a, encoder, decoder;
    published_vavae(&a, VAVAE, &answers);
    int B, H;
    uint8_t* pixels = published_pixels(&answers, "input.vavae.pixels", &B, &H);
    autoencoder_open_sized(&encoder, VAVAE, AUTOENCODER_RAW, H, B, 1, 0);
    autoencoder_open_sized(&decoder, VAVAE, AUTOENCODER_AVERAGED, H, B, 0, 1);
    size_t latents = B * autoencoder_latent_values(&a), values = B * autoencoder_image_values(&a);
    const floatX* z = autoencoder_encode(&encoder, pixels, B, 0);
    check(!memcmp(z, autoencoder_encode(&a, pixels, B, 0), latents * sizeof(floatX)), "the latent");
    memcpy(decoder.latent, z, latents * sizeof(floatX));
    const floatX* image = autoencoder_decode(&decoder, decoder.latent, B, 0);
    check(!memcmp(image, autoencoder_decode(&a, z, B, 0), values * sizeof(floatX)), "the reconstruction");
    check(!strcmp(encoder.fingerprint, a.fingerprint) && !strcmp(decoder.fingerprint, a.fingerprint), "fingerprints");
    check(encoder.params.table.total + decoder.params.table.total == a.params.table.total, "weights of one half");
    autoencoder_close(&a);
    autoencoder_close(&encoder);
    autoencoder_close(&decoder);
    free(pixels);
    autoencoder_open(&a, VAVAE, AUTOENCODER_AVERAGED, 1, 0, 1);
    check(a.H == 256 && a.GH == 16, "the size that such files were trained on");
    autoencoder_close(&a);
}

// ---------------------------------------------------------------------------------------------------------------------
// Files with other prefixes, and with faults

// Writes what stands behind `from` in a file behind `to`, but for the tensor `skip` (its plain name); the one called
// `longer` gets a row of zeros more. `more` is a tensor besides.
static void rewrite(const char* source, const char* target, const char* from, const char* to, const char* skip,
                    const char* longer, const char* more) {
    safetensors_t f;
    st_writer_t w;
    size_t length = strlen(from), one = 1;
    tensor_file_open_or_die(&f, source);
    safetensors_writer_init(&w);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < f.n; i++) {
            const st_tensor_t* t = &f.tensors[i];
            if (strncmp(t->name, from, length) || !strcmp(t->name + length, skip)) continue;
            size_t shape[8] = {0}, row = t->ndim ? t->numel / t->shape[0] : 0;
            int grows = !strcmp(t->name + length, longer);
            if (t->ndim) memcpy(shape, t->shape, sizeof shape);
            shape[0] += (size_t)grows;
            char name[300];
            snprintf(name, sizeof name, "%s%s", to, t->name + length);
            if (pass == 0) {
                safetensors_writer_tensor(&w, name, t->dtype, t->ndim, shape);
                continue;
            }
            safetensors_writer_raw(&w, t->data, t->end - t->begin);
            for (size_t k = 0; grows && k < row; k++) safetensors_writer_raw(&w, "\0\0\0\0", 4);
        }
        if (pass == 0 && more[0]) safetensors_writer_tensor(&w, more, ST_F32, 1, &one);
        if (pass == 0) safetensors_writer_begin(&w, target);
    }
    if (more[0]) safetensors_writer_raw(&w, "\0\0\0\0", 4);
    safetensors_writer_finish_or_die(&w);
    safetensors_close(&f);
}

static void test_layouts(void) {
    static autoencoder_t a;
    static const char* const autoencoders[] = {"", "model.", "state_dict.", "first_stage_model.",
                                               "state_dict.first_stage_model."};
    static const char* const models[] = {"", "model.", "model.module.", "module.", "_orig_mod.", "ema.module.",
                                         "model._orig_mod.", "model.module._orig_mod."};
    char path[TEMPORARY_PATH], name[17] = "";
    lightningdit_config_t c;
    temporary_begin();
    temporary_path(path, "copy");
    for (size_t i = 0; i < sizeof autoencoders / sizeof autoencoders[0]; i++) {
        rewrite(VAVAE, path, "state_dict.", autoencoders[i], "", "", "");
        published_vavae_t e = published_vavae(&a, path, &answers);
        check_error(autoencoders[i], fmax(e.mean, e.image), BOUND_CNN);
        check(!name[0] || !strcmp(name, a.fingerprint), "the same weights, the same name");
        memcpy(name, a.fingerprint, sizeof name);
        autoencoder_close(&a);
    }
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        rewrite(LIGHTNINGDIT, path, "ema.", models[i], "", "", "opt.state.0.exp_avg");
        int raw = strncmp(models[i], "ema", 3) != 0;
        check_error(models[i], published_lightningdit(path, &answers, raw, &c), BOUND_DIT);
        check_error(models[i], published_lightningdit(path, &answers, 0, &c), BOUND_DIT);
    }
    temporary_end();
}

static void open_autoencoder(const char* name) {
    static autoencoder_t a;
    char path[TEMPORARY_PATH];
    autoencoder_open_sized(&a, temporary_path(path, name), AUTOENCODER_AVERAGED, !strcmp(name, "size") ? 40 : 48, 1, 1,
                           1);
}

static void open_lightningdit(const char* name) {
    lightningdit_config_t c;
    char path[TEMPORARY_PATH];
    published_lightningdit(temporary_path(path, name), &answers, !strcmp(name, "raw"), &c);
}

// In a child.
static void draw_without_statistics(const char* unused) {
    (void)unused;
    static pipeline_t g;
    dit_sampler_options_t options = {FLOW_EULER, 5, 0.3, {2, 0, 0, 0}, 1, 7, PREDICTS_UNKNOWN, DDPM_ANCESTRAL, 0};
    pipeline_open(&g, LIGHTNINGDIT, 0, VAVAE, AUTOENCODER_AVERAGED, options);
    pipeline_load(&g);
}

static void check_refused(void (*function)(const char*), const char* name, const char* first, const char* second) {
    check_message(function, name, first, second);
    char* said = temporary_read("stderr", NULL);
    check(said && (strstr(said, name) != NULL || strstr(said, VAVAE) != NULL), "the file is named");
    free(said);
}

static void test_refusals(void) {
    char path[TEMPORARY_PATH];
    temporary_begin();
    rewrite(VAVAE, temporary_path(path, "missing"), "state_dict.", "", "decoder.up.3.block.1.conv2.bias", "", "");
    check_refused(open_autoencoder, "missing", "missing: 1\n      decoder.up.3.block.1.conv2.bias", "unexpected: 0");
    rewrite(VAVAE, temporary_path(path, "more"), "state_dict.", "", "", "", "encoder.down.0.attn.7.q.weight");
    check_refused(open_autoencoder, "more", "unexpected: 1\n      encoder.down.0.attn.7.q.weight", "missing: 0");
    rewrite(VAVAE, temporary_path(path, "shape"), "state_dict.", "state_dict.", "", "decoder.norm_out.weight", "");
    check_refused(open_autoencoder, "shape", "wrong shape: 1", "decoder.norm_out.weight is [5], wanted [4]");
    rewrite(VAVAE, temporary_path(path, "channels"), "state_dict.", "", "", "decoder.up.0.block.0.conv1.weight", "");
    check_refused(open_autoencoder, "channels", "level 0 of decoder.up has 5 channels", "no multiple of 4");
    rewrite(VAVAE, temporary_path(path, "no_end"), "state_dict.", "", "decoder.conv_out.weight", "", "");
    check_refused(open_autoencoder, "no_end", "tensor decoder.conv_out.weight is missing", "damaged");
    rewrite(VAVAE, temporary_path(path, "half"), "state_dict.encoder.", "encoder.", "", "", "");
    check_refused(open_autoencoder, "half", "tensor decoder.conv_out.weight is missing", "damaged");
    rewrite(VAVAE, temporary_path(path, "size"), "state_dict.", "", "", "", "");
    check_refused(open_autoencoder, "size", "images of 40 x 40 do not suit", "multiples of 16");
    rewrite(VAVAE, temporary_path(path, "other"), "state_dict.loss.", "loss.", "", "", "");
    check_refused(open_autoencoder, "other", "not a tokenizer checkpoint, and no autoencoder in LDM's", "VA-VAE");
    rewrite(LIGHTNINGDIT, temporary_path(path, "raw"), "", "", "", "", "");
    check_refused(open_lightningdit, "raw", "holds averaged weights only", "leave -raw out");
    rewrite(LIGHTNINGDIT, temporary_path(path, "block"), "ema.", "ema.", "blocks.1.mlp.w3.bias", "", "ema.blocks.2.x");
    check_refused(open_lightningdit, "block", "missing: 1\n      blocks.1.mlp.w3.bias",
                  "unexpected: 1\n      ema.blocks.2.x");
    check_refused(draw_without_statistics, "no statistics", "tells mean and deviation of the latents", "-latent_stats");
    temporary_end();
}

// ---------------------------------------------------------------------------------------------------------------------
// Transformers

static void test_lightningdit(void) {
    lightningdit_config_t c;
    check_error("velocity", published_lightningdit(LIGHTNINGDIT, &answers, 0, &c), BOUND_DIT);
    check(!strcmp(c.id, "tiny/1") && c.heads == 2 && c.depth == 2 && c.C == 2 && c.side == 3 && c.classes == 7, "size");
    check(c.qk_norm && !c.mlp_gelu && !c.no_shift, "variant");
    floatS mean[2], std[2];
    dit_read_statistics(STATISTICS, 2, mean, std);
    for (int i = 0; i < 2; i++) {
        check(mean[i] == (floatS)(float)fixture_uniform("dit.mean", (size_t)i), "mean of the latents");
        check(std[i] == (floatS)(float)(2 + fixture_uniform("dit.std", (size_t)i)), "their deviation");
    }
}

// The three files together draw an image: the latent of the noise, in the statistics' units, decoded.
static void test_generator(void) {
    static pipeline_t g;
    dit_sampler_options_t options = {FLOW_EULER, 5, 0.3, {2, 0, 0, 0}, 1, 7, PREDICTS_UNKNOWN, DDPM_ANCESTRAL, 0};
    uint8_t pixels[48 * 48 * 3], again[48 * 48 * 3];
    uint64_t number = 3;
    int label = 2;
    pipeline_open(&g, LIGHTNINGDIT, 0, VAVAE, AUTOENCODER_AVERAGED, options);
    check(!g.statistics && g.tokenizer.H == 48, "images of the DiT's size");
    pipeline_use_statistics(&g, STATISTICS);
    pipeline_load(&g);
    dit_sampler_draw(&g.sampler, pixels, &number, &label, 1, 0);
    const floatX* z = g.sampler.z; // (3, 3, 2) what the decoder was given
    for (int i = 0; i < 18; i++) {
        check_error("the statistics", fabs((double)g.sampler.x[i] * g.std[i % 2] + g.mean[i % 2] - z[i]), 1e-5);
    }
    image_bytes_from_floats(again, autoencoder_decode(&g.tokenizer, z, 1, 0), sizeof again);
    check(!memcmp(pixels, again, sizeof again), "the picture is the decoded latent");
    pipeline_close(&g);
}

static void test_vits(void) {
    vit_config_t dinov2 = *vit_config_find("tiny"), registers = *vit_config_find("tiny-reg"), mae = dinov2;
    mae.layerscale = 0;
    check_error("DINOv2", published_vit(FOLDER "published_dinov2.pth", &answers, "dinov2", &dinov2), BOUND_VIT);
    check_error("registers", published_vit(FOLDER "published_dinov2_reg.pth", &answers, "dinov2_reg", &registers),
                BOUND_VIT);
    check_error("MAE", published_vit(FOLDER "published_mae.pth", &answers, "mae", &mae), BOUND_VIT);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    fixture_open(&answers, "published");
    if (test_case("VA-VAE against the original")) { test_vavae(); test_end_case(); }
    if (test_case("draws of the latent")) { test_draws(); test_end_case(); }
    if (test_case("either half alone")) { test_halves(); test_end_case(); }
    if (test_case("LightningDiT against the original; latent statistics")) { test_lightningdit(); test_end_case(); }
    if (test_case("DINOv2 and MAE as facebook publishes them, against timm")) { test_vits(); test_end_case(); }
    if (test_case("LightningDiT draws with VA-VAE")) { test_generator(); test_end_case(); }
    if (test_case("layouts: prefixes, training checkpoints")) { test_layouts(); test_end_case(); }
    if (test_case("refusals")) { test_refusals(); test_end_case(); }
    safetensors_close(&answers);
    return test_finish();
}
