// test_cnn.c: the convolutional models against their originals and against themselves.
//
//   counts      parameters, tensors and multiply-accumulates at full size, from the tables alone
//   fixtures    outputs, every gradient and the running statistics of LDM's decoder and encoder, GigaTok's decoder,
//               taming's PatchGAN and lpips' VGG-LPIPS, computed by PyTorch in double
//   identities  linearity of the decoders' backward, two streams against two backwards, gradients of a part of the
//               batch, frozen models, a forward that shares memory, recomputation, chunks of the PatchGAN against
//               calls of their own, LPIPS of equal images
// The derivatives themselves are proved in tests/test_cnn_gradient.c.
// defines: fixture_open, fixture_tensor, fixture_check, fixture_parameters, fixture_check_gradients, test_case, ...
#include "tests/fixture.h"
// defines: temporary_begin, check_message, temporary_end
#include "tests/temporary.h"
// defines: decoder_t and its functions
#include "common/models/decoder.h"
// defines: cnn_encoder_t and its functions
#include "common/models/cnn_encoder.h"
// defines: patchgan_t, patchgan_acts_t and their functions
#include "common/models/patchgan.h"
// defines: lpips_t and their functions
#include "common/models/lpips.h"

#define ORIGINAL 1e-4 // agreement with the PyTorch original in float
#define ROUNDING 2e-5 // of two ways to the same result in float

static floatX* normal_buffer(size_t n) {
    floatX* p = (floatX*)malloc(n * sizeof(floatX));
    for (size_t i = 0; i < n; i++) p[i] = (floatX)test_normal();
    return p;
}

static floatX* nan_buffer(size_t n) {
    floatX* p = (floatX*)malloc(n * sizeof(floatX));
    for (size_t i = 0; i < n; i++) p[i] = (floatX)NAN;
    return p;
}

static floatX* copy_buffer(const floatX* x, size_t n) {
    floatX* p = (floatX*)malloc(n * sizeof(floatX));
    memcpy(p, x, n * sizeof(floatX));
    return p;
}

static void check_near(const char* what, const floatX* got, const floatX* want, size_t n, double bound) {
    check_error(what, relative_error_float(got, want, n), bound);
}

static void check_count(const char* what, double got, double want) {
    if (got != want) printf("     %s: %.0f, wanted %.0f\n", what, got, want);
    check(got == want, what);
}

// ---------------------------------------------------------------------------------------------------------------------
// A model with its memory

typedef struct {
    params_t params;
    plan_t plan;
    decoder_t decoder;
    cnn_encoder_t encoder;
    patchgan_t disc;
    lpips_t lpips;
} bed_t;

// Random values for all parameters (norms near 1), gradients from zero.
static void bed_allocate(bed_t* bed, size_t first) {
    params_allocate(&bed->params, first, 0, "test parameters");
    params_init(&bed->params, 7);
    for (size_t i = 0; i < bed->params.table.total; i++) bed->params.values[i] += (floatX)(0.05 * test_normal());
    plan_allocate(&bed->plan, "test activations");
    memset(bed->plan.memory, 0xFF, bed->plan.peak); // NaN
}

static void bed_free(bed_t* bed) {
    params_free(&bed->params);
    plan_free(&bed->plan);
}

// 16 and 32 channels, factor 2.
static autoencoder_config_t small_autoencoder(int quant_conv) {
    autoencoder_config_t c = {16, 2, {1, 2, 0, 0, 0, 0, 0, 0}, 1, 1u << 1, 4, 8, quant_conv};
    return c;
}

// vit.depth 0: LDM's decoder.
static void bed_decoder(bed_t* bed, autoencoder_config_t config, vit_config_t vit, int recompute, int B, int h, int w,
                        int extra) {
    memset(bed, 0, sizeof *bed);
    bed->decoder.config = config;
    bed->decoder.tokens.vit.config = vit;
    bed->decoder.tokens.vit.recompute = recompute;
    decoder_register(&bed->decoder, &bed->params.table, "");
    decoder_plan(&bed->decoder, &bed->plan, B, h, w);
    decoder_plan_work(&bed->decoder, &bed->plan, extra);
}

static void bed_encoder(bed_t* bed, autoencoder_config_t config, int B, int H, int W) {
    memset(bed, 0, sizeof *bed);
    bed->encoder.config = config;
    cnn_encoder_register(&bed->encoder, &bed->params.table, "");
    cnn_encoder_plan(&bed->encoder, &bed->plan, B, H, W);
    cnn_encoder_plan_work(&bed->encoder, &bed->plan);
}

static void bed_patchgan(bed_t* bed, patchgan_acts_t* acts, int passes, int B, int H, int W, int chunk) {
    patchgan_config_t config = {8, 3};
    memset(bed, 0, sizeof *bed);
    bed->disc.config = config;
    patchgan_register(&bed->disc, &bed->params.table, "");
    for (int i = 0; i < passes; i++) patchgan_plan(&bed->disc, &acts[i], &bed->plan, B, H, W, chunk);
    patchgan_plan_work(&bed->disc, &bed->plan, B, H, W);
    patchgan_allocate_buffers(&bed->disc);
}

static void bed_lpips(bed_t* bed, vgg_config_t config, int B, int H, int W) {
    memset(bed, 0, sizeof *bed);
    bed->lpips.config = config;
    lpips_register(&bed->lpips, &bed->params.table, "");
    lpips_plan(&bed->lpips, &bed->plan, B, H, W);
}

static vgg_config_t narrow_vgg(int slices) {
    vgg_config_t c = {slices, {2, 2, 3, 3, 3}, {4, 8, 16, 32, 32}};
    return c;
}

// ---------------------------------------------------------------------------------------------------------------------
// Counts at full size

typedef struct {
    size_t parameters;
    int tensors;
    double macs;
} size_report_t;

static vit_config_t no_transformer(void) { return large_decoder_vit(0, 0, 0, 0); }

static size_report_t decoder_size_of(vit_config_t vit, int z_channels, int quant_conv, int side) {
    bed_t bed;
    memset(&bed, 0, sizeof bed);
    bed.decoder.config = autoencoder_f16(z_channels, quant_conv);
    bed.decoder.tokens.vit.config = vit;
    decoder_register(&bed.decoder, &bed.params.table, "");
    param_table_t* t = &bed.params.table;
    size_report_t r = {param_count(t, 0, t->total), t->n, (double)decoder_macs(&bed.decoder, side, side)};
    params_free(&bed.params);
    return r;
}

static size_report_t decoder_size(int z_channels, int quant_conv, int side) {
    return decoder_size_of(no_transformer(), z_channels, quant_conv, side);
}

static size_report_t encoder_size(int z_channels, int quant_conv, int side) {
    bed_t bed;
    memset(&bed, 0, sizeof bed);
    bed.encoder.config = autoencoder_f16(z_channels, quant_conv);
    cnn_encoder_register(&bed.encoder, &bed.params.table, "");
    param_table_t* t = &bed.params.table;
    size_report_t r = {param_count(t, 0, t->total), t->n, (double)cnn_encoder_macs(&bed.encoder, side, side)};
    params_free(&bed.params);
    return r;
}

static void check_macs(const char* what, double got, double want_millions) {
    check_error(what, fabs(got / 1e6 - want_millions) / want_millions, 0.0051 / want_millions);
}

// Parameters and multiply-accumulates of the f16 autoencoder: LDM's modules, instantiated and counted.
static void test_autoencoder_counts(void) {
    size_report_t d = decoder_size(32, 0, 256);
    check_count("decoder parameters", d.parameters, 41417603);
    check_count("decoder tensors", d.tensors, 194);
    check_macs("decoder MAC", d.macs, 126093.36);
    check_macs("decoder MAC at 64 channels", decoder_size(64, 0, 256).macs, 126131.11);
    check_count("decoder parameters at 64 channels", decoder_size(64, 0, 256).parameters, 41565059);
    check_count("post_quant_conv", decoder_size(32, 1, 256).parameters - d.parameters, 1056);
    check_count("post_quant_conv at 64 channels", decoder_size(64, 1, 256).parameters - 41565059, 4160);
    // the paper's GFLOPs at 512 are these and 5 for each element of a GroupNorm
    double decoder_512 = decoder_size(32, 0, 512).macs + 20.0 * 83361792;
    check_error("decoder MAC at 512", fabs(decoder_512 - 509.26e9) / 509.26e9, 1e-5);
    // GigaTok's modules, instantiated and counted: make_gigatok_fixture.py
    size_report_t large = decoder_size_of(large_decoder_vit(1024, 24, 16, 16), 32, 0, 256);
    check_count("larger decoder parameters", large.parameters, 302902368 + 48383491);
    size_t stem = 5 + 24 * 12 + 2 + 2, cnn = 2 + 17 * 8 + 2 * 2 + 4 * 2 + 2 + 2 + 5 * 4;
    check_count("larger decoder tensors", large.tensors, stem + cnn);
    // blocks of 12 D^2 a position and 2 T D of attention; the embedding, conv_out and the styles are the rest
    double blocks = 24.0 * 256 * (12 * 1048576.0 + 2 * 256 * 1024), ends = 256 * 32.0 * 1024 * 10 + 2 * 32 * 1664;
    double attention = 4 * (4 * 256 * 512.0 * 512 + 2 * 256 * 256 * 512.0); // LDM's; upsampling costs the same
    check_macs("larger decoder MAC", large.macs, (d.macs - attention + blocks + ends) / 1e6);
    size_report_t e = encoder_size(32, 0, 256);
    check_count("encoder parameters", e.parameters, 28413248);
    check_count("encoder tensors", e.tensors, 144);
    check_macs("encoder MAC", e.macs, 68971.14);
    check_count("encoder parameters at 64 channels", encoder_size(64, 0, 256).parameters, 28708224);
    check_count("quant_conv", encoder_size(32, 1, 256).parameters - e.parameters, 4160);
    check_count("quant_conv at 64 channels", encoder_size(64, 1, 256).parameters - 28708224, 16512);
    double encoder_512 = encoder_size(32, 0, 512).macs + 20.0 * 48168960;
    check_error("encoder MAC at 512", fabs(encoder_512 - 279.26e9) / 279.26e9, 2e-5);
}

static void test_judge_counts(void) {
    bed_t bed;
    memset(&bed, 0, sizeof bed);
    patchgan_config_t config = {64, 3};
    bed.disc.config = config;
    patchgan_register(&bed.disc, &bed.params.table, "");
    size_t disc = param_count(&bed.params.table, 0, bed.params.table.total);
    check_count("discriminator parameters", disc, 2765633);
    check_count("discriminator tensors", bed.params.table.n, 13);
    check_count("running statistics", bed.disc.running_table.n, 6);
    check_macs("discriminator MAC", (double)patchgan_macs(&bed.disc, 256, 256), 3146.81);
    patchgan_acts_t acts;
    patchgan_plan(&bed.disc, &acts, &bed.plan, 2, 256, 256, 2);
    check_count("logits of an image", acts.logits_count, 30 * 30);
    plan_free(&bed.plan);
    params_free(&bed.params);
    patchgan_free_buffers(&bed.disc);

    bed.lpips.config = vgg16_config();
    lpips_register(&bed.lpips, &bed.params.table, "");
    size_t lpips = param_count(&bed.params.table, 0, bed.params.table.total);
    size_t heads = param_count(&bed.params.table, bed.lpips.head[0], bed.params.table.total);
    check_count("VGG parameters", lpips - heads, 14714688);
    check_count("LPIPS heads", heads, 1472);
    check_count("LPIPS tensors", bed.params.table.n, 2 * 13 + 5);
    check_macs("VGG MAC", (double)vgg_macs(&bed.lpips.vgg, 256, 256), 20044.58);
    params_free(&bed.params);

    size_t autoencoder = decoder_size(32, 1, 256).parameters + encoder_size(32, 1, 256).parameters;
    check_count("a vanilla VAE trains 72.60 M", (double)((autoencoder + disc) / 10000), 7260);
    check_count("an autoencoder has 69,836,067 parameters", autoencoder, 69836067);
    check_count("stage 3 trains 44.18 M", decoder_size(32, 0, 256).parameters + disc, 44183236);
}

// The names that are easy to get wrong; all others are compared by the fixtures, which are found by name.
static void test_names(void) {
    static const char* const large_names[] = {
        "s2ddecoder.ln_pre.weight", "s2ddecoder.positional_embedding", "s2ddecoder.transformer.23.linear2.bias",
        "s2ddecoder.transformer.0.self_attn.in_proj_weight", "s2ddecoder.conv_out.weight", "decoder.mid.1.conv2.bias",
        "decoder.adaptive.4.gamma.weight", "decoder.conv_blocks.1.res.0.nin_shortcut.weight",
        "decoder.conv_blocks.3.upsample.conv1.weight", "decoder.norm_out.bias", "decoder.conv_out.weight"};
    static const char* const names[] = {
        "post_quant_conv.weight", "decoder.conv_in.bias", "decoder.mid.block_2.conv1.weight",
        "decoder.mid.attn_1.k.bias", "decoder.up.4.attn.2.proj_out.weight", "decoder.up.3.block.0.nin_shortcut.weight",
        "decoder.up.1.upsample.conv.bias", "encoder.down.2.block.0.nin_shortcut.bias",
        "encoder.down.4.attn.1.norm.weight", "encoder.down.0.downsample.conv.weight", "encoder.norm_out.weight",
        "quant_conv.bias", "loss.discriminator.main.0.bias", "loss.discriminator.main.9.weight",
        "loss.discriminator.main.11.weight", "net.slice5.28.weight", "net.slice2.5.bias", "lin4.model.1.weight"};
    bed_t bed;
    memset(&bed, 0, sizeof bed);
    patchgan_config_t disc = {64, 3};
    bed.decoder.config = bed.encoder.config = autoencoder_f16(32, 1);
    bed.disc.config = disc;
    bed.lpips.config = vgg16_config();
    param_table_t* table = &bed.params.table;
    decoder_register(&bed.decoder, table, "");
    cnn_encoder_register(&bed.encoder, table, "");
    patchgan_register(&bed.disc, table, "loss.discriminator.");
    lpips_register(&bed.lpips, table, "");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) check(param_find(table, names[i]) != NULL, names[i]);
    check(param_find(table, "decoder.up.0.upsample.conv.weight") == NULL, "no upsampling behind the last level");
    check(param_find(table, "loss.discriminator.main.2.bias") == NULL, "no bias before a norm");
    check(param_find(&bed.disc.running_table, "loss.discriminator.main.6.running_var") != NULL, "running_var");
    const param_t* q = param_find(table, "decoder.up.4.attn.0.q.weight");
    check(q && q->ndim == 4 && q->shape[0] == 512 && q->shape[2] == 1, "q is a 1x1 convolution");
    patchgan_free_buffers(&bed.disc);
    params_free(&bed.params);
    bed.decoder.config = autoencoder_f16(32, 0);
    bed.decoder.tokens.vit.config = large_decoder_vit(1024, 24, 16, 16);
    decoder_register(&bed.decoder, table, "");
    for (size_t i = 0; i < sizeof large_names / sizeof large_names[0]; i++) {
        check(param_find(table, large_names[i]) != NULL, large_names[i]);
    }
    check(param_find(table, "decoder.conv_blocks.4.upsample.conv1.weight") == NULL, "no upsampling at the end");
    params_free(&bed.params);
}

// ---------------------------------------------------------------------------------------------------------------------
// Fixtures

static void test_decoder_fixture(const char* name, autoencoder_config_t config, vit_config_t vit, int h, int w) {
    safetensors_t f;
    bed_t bed;
    int B = 2, factor = 1 << (config.levels - 1);
    size_t latents = (size_t)B * h * w * config.z_channels;
    fixture_open(&f, name);
    bed_decoder(&bed, config, vit, 0, B, h, w, 0);
    bed_allocate(&bed, 0);
    fixture_parameters(&f, &bed.params);
    floatX* z = fixture_tensor(&f, "input.z");
    floatX* dout = fixture_tensor(&f, "dout.image");
    floatX* dz = nan_buffer(latents);
    decoder_forward(&bed.decoder, &bed.params, z, 0);
    if (vit.depth) fixture_check(&f, "output.tokens", bed.decoder.tokens.out, latents, ORIGINAL);
    fixture_check(&f, "output.image", bed.decoder.out, (size_t)B * h * w * factor * factor * 3, ORIGINAL);
    decoder_backward(&bed.decoder, &bed.params, dz, dout, 0, 0, 0);
    fixture_check(&f, "dinput.z", dz, latents, ORIGINAL);
    fixture_check_gradients(&f, &bed.params, ORIGINAL);
    free(z); free(dout); free(dz);
    bed_free(&bed);
    safetensors_close(&f);
}

static void test_encoder_fixture(const char* name, autoencoder_config_t config, int H, int W) {
    safetensors_t f;
    bed_t bed;
    int B = 2, factor = 1 << (config.levels - 1);
    fixture_open(&f, name);
    bed_encoder(&bed, config, B, H, W);
    bed_allocate(&bed, 0);
    fixture_parameters(&f, &bed.params);
    floatX* image = fixture_tensor(&f, "input.image");
    floatX* dout = fixture_tensor(&f, "dout.moments");
    cnn_encoder_forward(&bed.encoder, &bed.params, image, 0);
    size_t moments = (size_t)B * (H / factor) * (W / factor) * 2 * config.z_channels;
    fixture_check(&f, "output.moments", bed.encoder.moments, moments, ORIGINAL);
    cnn_encoder_backward(&bed.encoder, &bed.params, dout, 0, 0);
    fixture_check_gradients(&f, &bed.params, ORIGINAL);
    free(image); free(dout);
    bed_free(&bed);
    safetensors_close(&f);
}

// The fixtures start from random running statistics, as from a checkpoint.
static void load_running(const safetensors_t* f, patchgan_t* d) {
    params_t running;
    memset(&running, 0, sizeof running);
    running.table = d->running_table;
    running.values = d->running;
    fixture_parameters(f, &running);
}

static void check_running(const safetensors_t* f, const patchgan_t* d) {
    for (int i = 0; i < d->running_table.n; i++) {
        const param_t* t = &d->running_table.items[i];
        char name[200];
        snprintf(name, sizeof name, "after.%s", t->name);
        fixture_check(f, name, d->running + t->offset, t->count, ORIGINAL);
    }
}

static void test_patchgan_fixture(void) {
    safetensors_t f;
    bed_t bed;
    patchgan_acts_t acts;
    int B = 3, H = 40, W = 48;
    fixture_open(&f, "patchgan");
    bed_patchgan(&bed, &acts, 1, B, H, W, B);
    bed_allocate(&bed, 0);
    fixture_parameters(&f, &bed.params);
    load_running(&f, &bed.disc);
    floatX* image = fixture_tensor(&f, "input.image");
    floatX* dout = fixture_tensor(&f, "dout.logits");
    floatX* dimage = nan_buffer((size_t)B * H * W * 3);
    patchgan_forward(&bed.disc, &bed.params, &acts, image, 1, 0);
    patchgan_update_running(&bed.disc, &acts, 0);
    fixture_check(&f, "output.logits", acts.logits, B * acts.logits_count, ORIGINAL);
    patchgan_backward(&bed.disc, &bed.params, &acts, dimage, dout, 0, 0);
    for (size_t i = 0; i < bed.params.table.total; i++) check(bed.params.grads[i] == 0, "no weight gradients");
    patchgan_backward(&bed.disc, &bed.params, &acts, NULL, dout, 1, 0);
    fixture_check(&f, "dinput.image", dimage, (size_t)B * H * W * 3, ORIGINAL);
    fixture_check_gradients(&f, &bed.params, ORIGINAL);
    check_running(&f, &bed.disc);
    check_count("batches tracked", (double)bed.disc.batches_tracked, 1);
    free(image); free(dout); free(dimage);
    patchgan_free_buffers(&bed.disc);
    bed_free(&bed);
    safetensors_close(&f);
}

// Generator pass, then the discriminator pass on stored activations: fake, real, and fake again for the statistics.
static void test_patchgan_step_fixture(void) {
    safetensors_t f;
    bed_t bed;
    patchgan_acts_t acts[2]; // fake, real
    int B = 2, H = 32, W = 40;
    fixture_open(&f, "patchgan_hinge");
    bed_patchgan(&bed, acts, 2, B, H, W, B);
    bed_allocate(&bed, 0);
    fixture_parameters(&f, &bed.params);
    load_running(&f, &bed.disc);
    floatX* fake = fixture_tensor(&f, "input.fake");
    floatX* real = fixture_tensor(&f, "input.real");
    size_t n = B * acts[0].logits_count, image = (size_t)B * H * W * 3;
    floatX *dfake = nan_buffer(n), *dreal = nan_buffer(n), *dimage = nan_buffer(image);
    floatS loss[2];
    patchgan_forward(&bed.disc, &bed.params, &acts[0], fake, 1, 0);
    group_mean_forward(&loss[0], acts[0].logits, 1, n, 0);
    group_mean_backward(dfake, -1, 1, n, 0);
    patchgan_backward(&bed.disc, &bed.params, &acts[0], dimage, dfake, 0, 0);
    patchgan_forward(&bed.disc, &bed.params, &acts[1], real, 1, 0);
    hinge_forward(&loss[1], acts[1].logits, acts[0].logits, 1, n, 0);
    hinge_backward(dreal, dfake, acts[1].logits, acts[0].logits, 1, 1, n, 0);
    patchgan_backward(&bed.disc, &bed.params, &acts[1], NULL, dreal, 1, 0);
    patchgan_backward(&bed.disc, &bed.params, &acts[0], NULL, dfake, 1, 0);
    for (int i = 0; i < 3; i++) patchgan_update_running(&bed.disc, &acts[i == 1], 0);
    loss[0] = -loss[0];
    fixture_check(&f, "output.logits_fake", acts[0].logits, n, ORIGINAL);
    fixture_check(&f, "output.logits_real", acts[1].logits, n, ORIGINAL);
    fixture_check(&f, "output.loss_g", &loss[0], 1, ORIGINAL);
    fixture_check(&f, "output.loss_d", &loss[1], 1, ORIGINAL);
    fixture_check(&f, "dinput.fake", dimage, image, ORIGINAL);
    fixture_check_gradients(&f, &bed.params, ORIGINAL);
    check_running(&f, &bed.disc);
    free(fake); free(real); free(dfake); free(dreal); free(dimage);
    patchgan_free_buffers(&bed.disc);
    bed_free(&bed);
    safetensors_close(&f);
}

// The gradient at the image of sum_b dout_b distance_b. lpips_backward has one factor for all images, so each image's
// is scaled afterwards.
static void test_lpips_fixture(void) {
    safetensors_t f;
    bed_t bed;
    int B = 2, H = 32, W = 48;
    size_t image = (size_t)H * W * 3;
    fixture_open(&f, "lpips_narrow");
    bed_lpips(&bed, narrow_vgg(5), B, H, W);
    bed_allocate(&bed, bed.params.table.total);
    fixture_parameters(&f, &bed.params);
    floatX* xhat = fixture_tensor(&f, "input.first");
    floatX* x = fixture_tensor(&f, "input.second");
    floatX* dout = fixture_tensor(&f, "dout.distance");
    floatX* dscaled = nan_buffer(B * image);
    floatS distance[2] = {(floatS)NAN, (floatS)NAN};
    lpips_forward(&bed.lpips, &bed.params, distance, xhat, x, 0);
    fixture_check(&f, "output.distance", distance, B, ORIGINAL);
    lpips_backward(&bed.lpips, &bed.params, dscaled, 1, 0);
    for (size_t i = 0; i < B * image; i++) dscaled[i] *= (floatX)(dout[i / image] * bed.lpips.scaling.scale[i % 3]);
    fixture_check(&f, "dinput.first", dscaled, B * image, ORIGINAL);
    free(xhat); free(x); free(dout); free(dscaled);
    bed_free(&bed);
    safetensors_close(&f);
}

// ---------------------------------------------------------------------------------------------------------------------
// Identities of the autoencoder

// A decoder at work: two images of 3 x 5 latents.
enum { D_B = 2, D_H = 3, D_W = 5, D_LATENT = D_H * D_W * 4, D_IMAGE = D_H * D_W * 4 * 3 };
typedef enum { OF_LDM, QUANT_CONV, LARGE, RECOMPUTE } decoder_kind_t; // the last two are the larger decoder

static floatX* decoder_run(bed_t* bed, decoder_kind_t kind, int extra) {
    floatX* z = normal_buffer(D_B * D_LATENT);
    vit_config_t vit = kind >= LARGE ? large_decoder_vit(12, 2, 3, 4) : no_transformer();
    bed_decoder(bed, small_autoencoder(kind == QUANT_CONV), vit, kind == RECOMPUTE, D_B, D_H, D_W, extra);
    bed_allocate(bed, 0);
    decoder_forward(&bed->decoder, &bed->params, z, 0);
    return z;
}

// dz(a + b) = dz(a) + dz(b), and the same for the parameters.
static void test_decoder_linear(decoder_kind_t kind) {
    bed_t bed;
    floatX* z = decoder_run(&bed, kind, 0);
    floatX *a = normal_buffer(D_B * D_IMAGE), *b = normal_buffer(D_B * D_IMAGE), *sum = normal_buffer(D_B * D_IMAGE);
    floatX *dz_a = nan_buffer(D_B * D_LATENT), *dz_b = nan_buffer(D_B * D_LATENT), *dz = nan_buffer(D_B * D_LATENT);
    for (int i = 0; i < D_B * D_IMAGE; i++) sum[i] = a[i] + b[i];
    decoder_backward(&bed.decoder, &bed.params, dz_a, a, 0, 0, 0);
    decoder_backward(&bed.decoder, &bed.params, dz_b, b, 0, 0, 0);
    floatX* separate = copy_buffer(bed.params.grads, bed.params.table.total);
    params_zero_grads(&bed.params, 0);
    decoder_backward(&bed.decoder, &bed.params, dz, sum, 0, 0, 0);
    for (int i = 0; i < D_B * D_LATENT; i++) dz_a[i] += dz_b[i];
    check_near("dz", dz, dz_a, D_B * D_LATENT, ROUNDING);
    check_near("parameters", bed.params.grads, separate, bed.params.table.total, ROUNDING);
    free(z); free(a); free(b); free(sum); free(dz_a); free(dz_b); free(dz); free(separate);
    bed_free(&bed);
}

// `extra` images of one gradient and all of another, together and apart.
static void test_decoder_streams(int extra, decoder_kind_t kind) {
    bed_t bed;
    floatX* z = decoder_run(&bed, kind, D_B);
    floatX* dout = normal_buffer(2 * D_B * D_IMAGE); // extra stream and main stream
    floatX *dz = nan_buffer(2 * D_B * D_LATENT), *dz_main = nan_buffer(D_B * D_LATENT);
    floatX* dz_extra = nan_buffer(D_B * D_LATENT);
    floatX* dout_extra = normal_buffer(D_B * D_IMAGE);
    memcpy(dout_extra, dout, extra * D_IMAGE * sizeof(floatX));
    decoder_backward(&bed.decoder, &bed.params, dz, dout, extra, 0, 0);
    floatX* grads = copy_buffer(bed.params.grads, bed.params.table.total);
    params_zero_grads(&bed.params, 0);
    decoder_backward(&bed.decoder, &bed.params, dz_main, dout + extra * D_IMAGE, 0, 0, 0);
    check_near("parameters", grads, bed.params.grads, bed.params.table.total, ROUNDING);
    decoder_backward(&bed.decoder, &bed.params, dz_extra, dout_extra, 0, 0, 0);
    check_near("dz of the extra stream", dz, dz_extra, extra * D_LATENT, ROUNDING);
    check_near("dz of the main stream", dz + extra * D_LATENT, dz_main, D_B * D_LATENT, ROUNDING);
    free(z); free(dout); free(dz); free(dz_main); free(dz_extra); free(dout_extra); free(grads);
    bed_free(&bed);
}

// conv_out's gradient image by image gives what the backward forms itself, and the backward can leave it out.
static void test_decoder_conv_out(decoder_kind_t kind) {
    bed_t bed;
    floatX* z = decoder_run(&bed, kind, 0);
    floatX* dout = normal_buffer(D_B * D_IMAGE);
    decoder_backward(&bed.decoder, &bed.params, NULL, dout, 0, 0, 0);
    floatX* whole = copy_buffer(bed.params.grads, bed.params.table.total);
    params_zero_grads(&bed.params, 0);
    decoder_backward(&bed.decoder, &bed.params, NULL, dout, 0, 1, 0);
    floatS* dweight = params_grad(&bed.params, bed.decoder.conv_out.weight);
    floatS* dbias = params_grad(&bed.params, bed.decoder.conv_out.bias);
    for (int i = 0; i < 27 * 16; i++) check(dweight[i] == 0, "conv_out's gradient is left to the caller");
    for (int b = 0; b < D_B; b++) {
        decoder_conv_out_gradient(&bed.decoder, dweight, dbias, dout + b * D_IMAGE, b, 1, 0);
    }
    check_near("parameters", bed.params.grads, whole, bed.params.table.total, ROUNDING);
    free(z); free(dout); free(whole);
    bed_free(&bed);
}

// A frozen decoder passes the gradient on and touches no parameter's; a decoder with nothing below forms no dz.
static void test_decoder_frozen(decoder_kind_t kind) {
    bed_t bed;
    floatX* z = decoder_run(&bed, kind, 0);
    floatX* dout = normal_buffer(D_B * D_IMAGE);
    floatX *dz = nan_buffer(D_B * D_LATENT), *dz_frozen = nan_buffer(D_B * D_LATENT);
    decoder_backward(&bed.decoder, &bed.params, dz, dout, 0, 0, 0);
    floatX* grads = copy_buffer(bed.params.grads, bed.params.table.total);
    params_zero_grads(&bed.params, 0);
    decoder_backward(&bed.decoder, &bed.params, NULL, dout, 0, 0, 0);
    check_near("parameters without dz", bed.params.grads, grads, bed.params.table.total, 0);
    params_zero_grads(&bed.params, 0);
    bed.params.first = bed.params.table.total;
    decoder_backward(&bed.decoder, &bed.params, dz_frozen, dout, 0, 0, 0);
    check_near("dz when frozen", dz_frozen, dz, D_B * D_LATENT, 0);
    for (size_t i = 0; i < bed.params.table.total; i++) check(bed.params.grads[i] == 0, "a frozen gradient stays");
    free(z); free(dout); free(dz); free(dz_frozen); free(grads);
    bed_free(&bed);
}

// The plan of a forward that no backward follows, with fewer images than planned, gives the same image; recomputation
// keeps less and gives the same gradients.
static void test_large_decoder_memory(void) {
    bed_t bed, other;
    floatX *z = decoder_run(&bed, LARGE, D_B), *dout = normal_buffer(2 * D_B * D_IMAGE);
    floatX *dz = nan_buffer(2 * D_B * D_LATENT), *dz_again = nan_buffer(2 * D_B * D_LATENT);
    decoder_backward(&bed.decoder, &bed.params, dz, dout, D_B, 0, 0);
    size_t total = bed.params.table.total;

    free(decoder_run(&other, RECOMPUTE, D_B));
    memcpy(other.params.values, bed.params.values, total * sizeof(floatX));
    decoder_forward(&other.decoder, &other.params, z, 0);
    check_near("image", other.decoder.out, bed.decoder.out, D_B * D_IMAGE, 0);
    decoder_backward(&other.decoder, &other.params, dz_again, dout, D_B, 0, 0);
    check_near("dz when recomputed", dz_again, dz, 2 * D_B * D_LATENT, 0);
    check_near("parameters when recomputed", other.params.grads, bed.params.grads, total, 0);
    check(other.plan.peak < bed.plan.peak, "recomputation keeps less");
    bed_free(&other);

    memset(&other, 0, sizeof other);
    other.decoder.config = bed.decoder.config;
    other.decoder.tokens.vit.config = bed.decoder.tokens.vit.config;
    decoder_register(&other.decoder, &other.params.table, "");
    plan_t work;
    memset(&work, 0, sizeof work);
    decoder_plan_forward(&other.decoder, &other.plan, &work, D_B + 1, D_H, D_W);
    bed_allocate(&other, 0);
    plan_allocate(&work, "test activations");
    memset(work.memory, 0xFF, work.peak); // NaN
    memcpy(other.params.values, bed.params.values, total * sizeof(floatX));
    decoder_set_batch(&other.decoder, D_B);
    decoder_forward(&other.decoder, &other.params, z, 0);
    check_near("image of a forward alone", other.decoder.out, bed.decoder.out, D_B * D_IMAGE, ROUNDING);
    check(other.plan.peak + work.peak < bed.plan.peak / 2, "it takes less than half of the memory");
    plan_free(&work);
    bed_free(&other);
    free(z); free(dout); free(dz); free(dz_again);
    bed_free(&bed);
}

static void test_encoder_conv_out(int quant_conv) {
    enum { B = 3, H = 6, W = 10, MOMENTS = 3 * 5 * 8 };
    bed_t bed;
    bed_encoder(&bed, small_autoencoder(quant_conv), B, H, W);
    bed_allocate(&bed, 0);
    floatX *image = normal_buffer(B * H * W * 3), *dmoments = normal_buffer(B * MOMENTS);
    cnn_encoder_forward(&bed.encoder, &bed.params, image, 0);
    cnn_encoder_backward(&bed.encoder, &bed.params, dmoments, 0, 0);
    floatX* whole = copy_buffer(bed.params.grads, bed.params.table.total);
    params_zero_grads(&bed.params, 0);
    cnn_encoder_backward(&bed.encoder, &bed.params, dmoments, 1, 0);
    floatS* dweight = params_grad(&bed.params, bed.encoder.conv_out.weight);
    floatS* dbias = params_grad(&bed.params, bed.encoder.conv_out.bias);
    check(dweight[0] == 0, "conv_out's gradient is left to the caller");
    cnn_encoder_conv_out_gradient(&bed.encoder, &bed.params, dweight, dbias, dmoments, 0, 1, 0);
    cnn_encoder_conv_out_gradient(&bed.encoder, &bed.params, dweight, dbias, dmoments + MOMENTS, 1, 2, 0);
    check_near("parameters", bed.params.grads, whole, bed.params.table.total, ROUNDING);
    free(image); free(dmoments); free(whole);
    bed_free(&bed);
}

// ---------------------------------------------------------------------------------------------------------------------
// Identities of the judges

// Six images in chunks of two against three calls with two images each: everything must be the same.
static void test_patchgan_chunks(void) {
    enum { B = 6, CHUNK = 2, H = 26, W = 33, IMAGE = H * W * 3 };
    bed_t bed, one;
    patchgan_acts_t acts, small;
    bed_patchgan(&bed, &acts, 1, B, H, W, CHUNK);
    bed_patchgan(&one, &small, 1, CHUNK, H, W, CHUNK);
    bed_allocate(&bed, 0);
    bed_allocate(&one, 0);
    memcpy(one.params.values, bed.params.values, bed.params.table.total * sizeof(floatX));
    floatX *image = normal_buffer(B * IMAGE), *dimage = nan_buffer(B * IMAGE), *dimage_one = nan_buffer(B * IMAGE);
    size_t n = CHUNK * acts.logits_count;
    floatX *logits = nan_buffer(B / CHUNK * n), *dlogits = normal_buffer(B / CHUNK * n);
    patchgan_forward(&bed.disc, &bed.params, &acts, image, 1, 0);
    patchgan_backward(&bed.disc, &bed.params, &acts, dimage, dlogits, 1, 0);
    patchgan_update_running(&bed.disc, &acts, 0);
    for (int k = 0; k < B / CHUNK; k++) {
        patchgan_forward(&one.disc, &one.params, &small, image + k * CHUNK * IMAGE, 1, 0);
        if (k == 0) patchgan_update_running(&one.disc, &small, 0);
        patchgan_backward(&one.disc, &one.params, &small, dimage_one + k * CHUNK * IMAGE, dlogits + k * n, 1, 0);
        memcpy(logits + k * n, small.logits, n * sizeof(floatX));
    }
    check_near("logits", acts.logits, logits, B / CHUNK * n, ROUNDING);
    check_near("dimage", dimage, dimage_one, B * IMAGE, ROUNDING);
    check_near("parameters", bed.params.grads, one.params.grads, bed.params.table.total, ROUNDING);
    check_near("running statistics", bed.disc.running, one.disc.running, bed.disc.running_table.total, ROUNDING);
    free(image); free(dimage); free(dimage_one); free(logits); free(dlogits);
    patchgan_free_buffers(&bed.disc);
    patchgan_free_buffers(&one.disc);
    bed_free(&bed);
    bed_free(&one);
}

// In evaluation an image's logits do not depend on the others.
static void test_patchgan_evaluation(void) {
    enum { H = 24, W = 25, IMAGE = H * W * 3 };
    bed_t bed;
    patchgan_acts_t acts;
    bed_patchgan(&bed, &acts, 1, 2, H, W, 2);
    bed_allocate(&bed, 0);
    floatX *image = normal_buffer(2 * IMAGE), *other = normal_buffer(2 * IMAGE);
    memcpy(other, image, IMAGE * sizeof(floatX));
    patchgan_forward(&bed.disc, &bed.params, &acts, image, 1, 0);
    patchgan_update_running(&bed.disc, &acts, 0);
    patchgan_forward(&bed.disc, &bed.params, &acts, image, 0, 0);
    floatX* logits = copy_buffer(acts.logits, acts.logits_count);
    patchgan_forward(&bed.disc, &bed.params, &acts, other, 0, 0);
    check_near("logits of the same image", acts.logits, logits, acts.logits_count, 0);
    patchgan_forward(&bed.disc, &bed.params, &acts, other, 1, 0);
    check(relative_error_float(acts.logits, logits, acts.logits_count) > 1e-3, "in training they depend on the others");
    free(image); free(other); free(logits);
    patchgan_free_buffers(&bed.disc);
    bed_free(&bed);
}

static void test_lpips_identities(void) {
    enum { B = 2, H = 21, W = 18, IMAGE = H * W * 3 };
    bed_t bed;
    bed_lpips(&bed, narrow_vgg(4), B, H, W);
    bed_allocate(&bed, bed.params.table.total);
    floatX *x = normal_buffer(B * IMAGE), *y = normal_buffer(B * IMAGE), *dscaled = nan_buffer(B * IMAGE);
    floatX* again = nan_buffer(B * IMAGE);
    floatS xy[B], yx[B], xx[B], reused[B];
    lpips_forward(&bed.lpips, &bed.params, xx, x, x, 0);
    lpips_backward(&bed.lpips, &bed.params, dscaled, 1, 0);
    for (int b = 0; b < B; b++) check(xx[b] == 0, "LPIPS(x, x) = 0");
    for (int i = 0; i < B * IMAGE; i++) check(dscaled[i] == 0, "and its gradient is 0");
    lpips_forward(&bed.lpips, &bed.params, yx, y, x, 0);
    lpips_backward(&bed.lpips, &bed.params, dscaled, 3, 0);
    lpips_forward(&bed.lpips, &bed.params, xy, x, y, 0);
    check_near("symmetry", xy, yx, B, ROUNDING);
    check(xy[0] > 1e-3 && xy[1] > 1e-3, "different images have a distance");
    lpips_forward(&bed.lpips, &bed.params, xy, x, x, 0);
    lpips_forward(&bed.lpips, &bed.params, reused, y, NULL, 0);
    lpips_backward(&bed.lpips, &bed.params, again, 3, 0);
    check_near("distance to the reference of the call before", reused, yx, B, 0);
    check_near("gradient after that", again, dscaled, B * IMAGE, 0);
    free(x); free(y); free(dscaled); free(again);
    bed_free(&bed);
}

// ---------------------------------------------------------------------------------------------------------------------
// What users may ask for that cannot be

static void refuse(const char* what) {
    bed_t bed;
    patchgan_acts_t acts;
    autoencoder_config_t odd = small_autoencoder(0);
    odd.groups = 5;
    if (!strcmp(what, "too small for a PatchGAN")) bed_patchgan(&bed, &acts, 1, 2, 64, 23, 2);
    if (!strcmp(what, "chunks of 2")) bed_patchgan(&bed, &acts, 1, 3, 64, 64, 2);
    if (!strcmp(what, "too small for a VGG")) bed_lpips(&bed, narrow_vgg(5), 1, 15, 64);
    if (!strcmp(what, "multiples of 2")) bed_encoder(&bed, small_autoencoder(0), 1, 8, 7);
    if (!strcmp(what, "cut into 5 groups")) bed_decoder(&bed, odd, no_transformer(), 0, 1, 2, 2, 0);
    odd.groups = 2;
    odd.ch = 6;
    vit_config_t vit = large_decoder_vit(12, 2, 3, 4);
    if (!strcmp(what, "a multiple of 8")) bed_decoder(&bed, odd, vit, 0, 1, 2, 2, 0);
    if (!strcmp(what, "a latent of one position")) bed_decoder(&bed, small_autoencoder(0), vit, 0, 2, 1, 1, 0);
    vit.depth = VIT_MAX_DEPTH + 1;
    if (!strcmp(what, "choose at most 48")) bed_decoder(&bed, small_autoencoder(0), vit, 0, 1, 2, 2, 0);
}

static void test_refusals(void) {
    static const char* const asked[] = {"too small for a PatchGAN", "chunks of 2", "too small for a VGG",
                                        "multiples of 2", "cut into 5 groups", "a multiple of 8",
                                        "a latent of one position", "choose at most 48"};
    temporary_begin();
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) check_message(refuse, asked[i], asked[i], NULL);
    temporary_end();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    autoencoder_config_t small = {32, 2, {1, 1, 0, 0, 0, 0, 0, 0}, 1, 1u << 1, 4, 32, 1};
    autoencoder_config_t two = {32, 2, {1, 2, 0, 0, 0, 0, 0, 0}, 2, 1u << 1, 8, 32, 0};
    autoencoder_config_t two_encoder = {32, 2, {1, 2, 0, 0, 0, 0, 0, 0}, 1, 1u << 1, 4, 32, 1};
    autoencoder_config_t five = {32, 5, {1, 1, 2, 2, 4, 0, 0, 0}, 2, 1u << 4, 8, 32, 1};
    if (test_case("counts of the f16 autoencoder")) { test_autoencoder_counts(); test_end_case(); }
    if (test_case("counts of PatchGAN, VGG and LPIPS")) { test_judge_counts(); test_end_case(); }
    if (test_case("names")) { test_names(); test_end_case(); }
    autoencoder_config_t wide = {64, 2, {1, 2, 0, 0, 0, 0, 0, 0}, 1, 0, 8, 32, 0};
    if (test_case("fixture decoder_small")) {
        test_decoder_fixture("decoder_small", small, no_transformer(), 3, 2);
        test_end_case();
    }
    if (test_case("fixture decoder_two_levels")) {
        test_decoder_fixture("decoder_two_levels", two, no_transformer(), 2, 3);
        test_end_case();
    }
    if (test_case("fixture decoder_five_levels")) {
        test_decoder_fixture("decoder_five_levels", five, no_transformer(), 3, 2);
        test_end_case();
    }
    if (test_case("fixture decoder_large")) {
        test_decoder_fixture("decoder_large", wide, large_decoder_vit(24, 2, 3, 4), 4, 4);
        test_end_case();
    }
    if (test_case("fixture encoder_two_levels")) {
        test_encoder_fixture("encoder_two_levels", two_encoder, 6, 10);
        test_end_case();
    }
    if (test_case("fixture encoder_five_levels")) {
        test_encoder_fixture("encoder_five_levels", five, 32, 48);
        test_end_case();
    }
    if (test_case("fixture patchgan")) { test_patchgan_fixture(); test_end_case(); }
    if (test_case("fixture patchgan_hinge")) { test_patchgan_step_fixture(); test_end_case(); }
    if (test_case("fixture lpips_narrow")) { test_lpips_fixture(); test_end_case(); }
    if (test_case("decoder backward is linear")) { test_decoder_linear(QUANT_CONV); test_end_case(); }
    if (test_case("decoder two streams, whole batch")) { test_decoder_streams(2, OF_LDM); test_end_case(); }
    if (test_case("decoder two streams, first image, post_quant_conv")) {
        test_decoder_streams(1, QUANT_CONV);
        test_end_case();
    }
    if (test_case("decoder conv_out gradient in parts")) { test_decoder_conv_out(OF_LDM); test_end_case(); }
    if (test_case("decoder frozen, or nothing below")) { test_decoder_frozen(QUANT_CONV); test_end_case(); }
    if (test_case("larger decoder's backward is linear")) { test_decoder_linear(LARGE); test_end_case(); }
    if (test_case("larger decoder, two streams, whole batch")) { test_decoder_streams(2, LARGE); test_end_case(); }
    if (test_case("larger decoder, two streams, first image, recompute")) {
        test_decoder_streams(1, RECOMPUTE);
        test_end_case();
    }
    if (test_case("larger decoder, conv_out gradient in parts")) { test_decoder_conv_out(LARGE); test_end_case(); }
    if (test_case("larger decoder frozen, or nothing below")) { test_decoder_frozen(LARGE); test_end_case(); }
    if (test_case("larger decoder's memory")) { test_large_decoder_memory(); test_end_case(); }
    if (test_case("encoder conv_out gradient in parts")) { test_encoder_conv_out(0); test_end_case(); }
    if (test_case("encoder conv_out gradient in parts, quant_conv")) { test_encoder_conv_out(1); test_end_case(); }
    if (test_case("patchgan chunks are calls of their own")) { test_patchgan_chunks(); test_end_case(); }
    if (test_case("patchgan in evaluation")) { test_patchgan_evaluation(); test_end_case(); }
    if (test_case("lpips identities")) { test_lpips_identities(); test_end_case(); }
    if (test_case("refusals")) { test_refusals(); test_end_case(); }
    return test_finish();
}
