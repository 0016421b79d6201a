// test_tokenizer_gradient.c: the derivative of the tokenizer's composed loss, in double.
//
//   fixture        whole steps of stage 2 and of VA-VAE as PyTorch computes them, to the rounding of their numbers
//   brute force    the one backward against a sum of separate ones, loss by loss and chunk by chunk, through the
//                  models' own backward functions: all stages and variants of the two adaptive weights
//   chunks         chunks in one pass are the average of steps with one chunk each
//   rescaling      the size of the GAN loss does not matter; a discriminator without a gradient adds nothing
//   differences    reconstruction loss through decoder, adapter and encoder against finite differences; of the
//                  baselines the whole loss, with both adaptive weights as they were measured
// defines: check_gradient_h, test_case, ...
#include "tests/gradient.h"
// defines: bed_config, bed_make, bed_randomise, bed_copy, bed_check_gradients, bed_check_stage2_step, ...
#include "tests/tokenizer_bed.h"

#define FIXTURE_ROUNDING 1e-6 // the fixture's numbers are floats
#define EXACT 1e-12           // two ways to the same number
#define STEP_KINKS 1e-8       // of differences, where a ReLU, a maximum or a sign could change on the way
#define BOUND 1e-6

static double* double_buffer(size_t n) { return (double*)calloc_check(n, sizeof(double), "test buffer"); }

// ---------------------------------------------------------------------------------------------------------------------
// Brute force

enum { BRUTE_STEP = 3 };

// Gradients of one loss of one chunk, laid out as the table of encoder, adapter and decoder.
typedef struct {
    double *nll, *gan, *semantic;
} chunk_gradients_t;

// From a gradient at the image to all parameters; or from one at the latent, or at the tokens, which then stands in
// one->dz, or in one->de.
static void brute_backward(tokenizer_t* one, double* gradients, const double* dimage, semantic_place_t from) {
    params_zero_grads(&one->params, 0);
    if (dimage) decoder_backward(&one->decoder, &one->params, one->dz, dimage, 0, 0, 0);
    latent_encoder_t* e = &one->encoder;
    if (dimage || from == SEMANTIC_OF_LATENT) {
        adapter_backward(&e->adapter, &one->params, e->dfeatures, one->dz, e->vit.features, 0);
    }
    vit_backward(&e->vit, &one->params, e->dfeatures, 0);
    memset(gradients, 0, one->params.table.total * sizeof(double));
    memcpy(gradients + one->params.first, one->params.grads, params_trained(&one->params) * sizeof(double));
}

static void brute_semantic(tokenizer_t* one, semantic_kind_t kind) {
    int tokens = one->config.semantic_place == SEMANTIC_OF_TOKENS, channels = tokens ? one->config.encoder.dim : one->z;
    size_t rows = one->config.batch * tokenizer_latents(one), n = rows * channels;
    const double* held = tokens ? one->encoder.vit.features : one->encoder.adapter.z;
    double* gradient = tokens ? one->encoder.dfeatures : one->dz;
    if (kind == SEMANTIC_COSINE) {
        semantic_cosine_backward(gradient, held, one->z0, 1, 1, rows, channels, 0);
        return;
    }
    for (size_t i = 0; i < n; i++) gradient[i] = 2 * (held[i] - one->z0[i]) / (double)n;
}

// Three backward passes of the chunk in one->x; those of the discriminator go into its own table.
static void brute_chunk(tokenizer_t* one, const tokenizer_config_t* c, chunk_gradients_t g) {
    size_t pixels = tokenizer_pixels(one), logits = one->config.batch * one->fake.logits_count;
    double losses[8];
    latent_encoder_t *e = &one->encoder, *previous = &one->target;
    vit_forward(&previous->vit, &one->target_params, one->x, 0);
    adapter_forward(&previous->adapter, &one->target_params, previous->vit.features, 0);
    size_t tokens = one->config.batch * tokenizer_latents(one);
    int of_tokens = c->semantic_place == SEMANTIC_OF_TOKENS, channels = of_tokens ? c->encoder.dim : one->z;
    const double* target = of_tokens ? previous->vit.features : previous->adapter.z;
    memcpy(one->z0, target, tokens * channels * sizeof(double));
    vit_forward(&e->vit, &one->params, one->x, 0);
    adapter_forward(&e->adapter, &one->params, e->vit.features, 0);
    decoder_forward(&one->decoder, &one->params, e->adapter.z, 0);
    const double* xhat = one->decoder.out;

    lpips_forward(&one->lpips, &one->lpips_params, losses, xhat, one->x, 0);
    lpips_backward(&one->lpips, &one->lpips_params, one->dscaled, 3.0 * pixels * c->w_lpips / one->config.batch, 0);
    for (size_t i = 0; i < 3 * pixels * one->config.batch; i++) {
        double sign = xhat[i] > one->x[i] ? 1 : -1;
        one->a_nll[i] = sign / one->config.batch + one->lpips.scaling.scale[i % 3] * one->dscaled[i];
    }
    brute_backward(one, g.nll, one->a_nll, SEMANTIC_OF_LATENT);

    patchgan_forward(&one->disc, &one->disc_params, &one->fake, xhat, 1, 0);
    for (size_t i = 0; i < logits; i++) one->dfake[i] = -1.0 / (double)logits;
    patchgan_backward(&one->disc, &one->disc_params, &one->fake, one->a_gan, one->dfake, 0, 0);
    brute_backward(one, g.gan, one->a_gan, SEMANTIC_OF_LATENT);

    brute_semantic(one, c->semantic_kind);
    brute_backward(one, g.semantic, NULL, c->semantic_place);

    params_zero_grads(&one->disc_params, 0);
    patchgan_forward(&one->disc, &one->disc_params, &one->real, one->x, 1, 0);
    for (size_t i = 0; i < logits; i++) {
        one->dreal[i] = one->real.logits[i] < 1 ? -0.5 / (double)logits : 0;
        one->dfake[i] = one->fake.logits[i] > -1 ? 0.5 / (double)logits : 0;
    }
    patchgan_backward(&one->disc, &one->disc_params, &one->real, NULL, one->dreal, 1, 0);
    patchgan_backward(&one->disc, &one->disc_params, &one->fake, NULL, one->dfake, 1, 0);
}

// The adaptive weight from the norms at one tensor.
static double brute_weight(const params_t* p, size_t offset, const double* nll, const double* other, double weight,
                           double max) {
    size_t n = 0;
    for (int i = 0; i < p->table.n; i++) n += p->table.items[i].offset == offset ? p->table.items[i].count : 0;
    check(n > 0, "the tensor of the adaptive weight");
    double ratio = bed_norm(nll + offset, n) / (bed_norm(other + offset, n) + 1e-4);
    return weight * (ratio < max ? ratio : max);
}

// The gradients of a step, from scratch, in `want` and `want_disc`; checks the weights on the way.
static void brute_step(const tokenizer_t* t, tokenizer_t* one, double* want, double* want_disc) {
    const tokenizer_config_t* c = &t->config;
    size_t n = t->params.table.total, image = 3 * tokenizer_pixels(t);
    chunk_gradients_t g = {double_buffer(n), double_buffer(n), double_buffer(n)};
    const vit_block_t* last_block = &t->encoder.vit.blocks[c->encoder.depth - 1];
    size_t conv_out = t->decoder.conv_out.weight;
    size_t last = c->semantic_tensor == SEMANTIC_AT_FC2 ? last_block->fc2_weight : t->encoder.adapter.fc2_weight;
    double omega_s = 0;
    for (int k = 0; k < t->chunks; k++) {
        memcpy(one->x, t->x + k * c->chunk * image, c->chunk * image * sizeof(double));
        lora_draw(&one->encoder.vit.lora, c->seed, BRUTE_STEP, (uint64_t)k * c->chunk); // each image has its masks
        brute_chunk(one, c, g);
        double omega_g = c->w_gan != 0 ? brute_weight(&one->params, conv_out, g.nll, g.gan, c->w_gan, 1e4) : 0;
        int measured = k == 0 || c->semantic_measure == SEMANTIC_EXACT;
        if (!tokenizer_has_semantic_loss(c)) omega_s = 0;
        else if (measured) omega_s = brute_weight(&one->params, last, g.nll, g.semantic, c->w_sem, 1e8);
        if (c->w_gan != 0) check_error("omega_g", fabs(t->measures.omega_g[k] / omega_g - 1), EXACT);
        if (omega_s != 0) check_error("omega_s", fabs(t->measures.omega_s[k] / omega_s - 1), EXACT);
        for (size_t i = 0; i < n; i++) {
            want[i] += (g.nll[i] + omega_g * g.gan[i] + omega_s * g.semantic[i]) / t->chunks;
        }
        for (size_t i = 0; i < t->disc_params.table.total; i++) want_disc[i] += one->disc_params.grads[i] / t->chunks;
    }
    free(g.nll), free(g.gan), free(g.semantic);
}

// From here on every parameter has a gradient: W_e has none of its own where it lies frozen beside a low-rank pair.
static void train_all(params_t* p) {
    device_free(p->grads);
    p->grads = (floatS*)params_buffer(p->table.total * sizeof(floatS), "gradients");
    p->first = 0;
}

static const int other_sizes[2][2] = {{20, 16}, {12, 12}}; // (H, W) of steps before

// A step of `config` against brute force. `one` holds a single chunk and trains everything. `turned`: after a step of
// images of another size, in the memory of the largest.
static void test_brute_force(tokenizer_config_t config, int turned) {
    static tokenizer_t t, one;
    tokenizer_config_t single = config;
    single.stage = 2;
    single.batch = config.chunk;
    single.w_sem = 0; // no second stream
    single.recompute = 0;
    bed_make(&one, single);
    train_all(&one.params);
    bed_randomise(&one);
    bed_make_sizes(&t, config, other_sizes, turned ? 2 : 0);
    bed_copy(&t, &one);
    if (turned) {
        tokenizer_resize(&t, other_sizes[0][0], other_sizes[0][1]);
        bed_random_images(&t);
        tokenizer_gradients_of_x(&t, 0, 0);
        tokenizer_resize(&t, config.H, config.W);
        memcpy(t.disc.running, one.disc.running, one.disc.running_table.total * sizeof(double));
    }
    bed_random_images(&t);
    double* want = double_buffer(t.params.table.total);
    double* want_disc = double_buffer(t.disc_params.table.total);
    tokenizer_gradients_of_x(&t, BRUTE_STEP, 0);
    brute_step(&t, &one, want, want_disc);
    bed_check_gradients(&t.params, want, EXACT);
    if (config.w_gan != 0) bed_check_gradients(&t.disc_params, want_disc, EXACT);
    free(want), free(want_disc);
    tokenizer_free(&t);
    tokenizer_free(&one);
}

static void test_brute_forces(void) {
    tokenizer_config_t c = bed_config(2);
    if (test_case("brute force, stage 2")) { test_brute_force(c, 0); test_end_case(); }
    if (test_case("brute force, stage 1")) { test_brute_force(bed_config(1), 0); test_end_case(); }
    if (test_case("brute force, stage 3")) { test_brute_force(bed_config(3), 0); test_end_case(); }
    c.semantic_kind = SEMANTIC_COSINE;
    c.w_sem = 3;
    if (test_case("brute force, stage 2, cosine, w_sem 3")) { test_brute_force(c, 0); test_end_case(); }
    c.semantic_tensor = SEMANTIC_AT_FC2;
    c.recompute = 1;
    if (test_case("brute force, stage 2, cosine, at mlp.fc2, recompute")) { test_brute_force(c, 0); test_end_case(); }
    c = bed_config(2);
    c.semantic_tensor = SEMANTIC_AT_FC2;
    if (test_case("brute force, stage 2, at mlp.fc2")) { test_brute_force(c, 0); test_end_case(); }
    c.semantic_measure = SEMANTIC_FIRST_CHUNK;
    if (test_case("brute force, stage 2, at mlp.fc2 of the first chunk")) { test_brute_force(c, 0); test_end_case(); }
    c = bed_config(2);
    c.semantic_measure = SEMANTIC_FIRST_CHUNK;
    if (test_case("brute force, stage 2, first chunk")) { test_brute_force(c, 0); test_end_case(); }
    c = bed_config(2);
    c.w_lpips = 0;
    c.chunk = 3;
    if (test_case("brute force, stage 2, chunks of 3, without LPIPS")) { test_brute_force(c, 0); test_end_case(); }
    c = bed_config(2);
    c.w_gan = 0;
    if (test_case("brute force, stage 2, without GAN")) { test_brute_force(c, 0); test_end_case(); }
    c = bed_config(2);
    c.w_sem = 0;
    if (test_case("brute force, stage 2, without semantic loss")) { test_brute_force(c, 0); test_end_case(); }
    c = bed_config(2);
    c.semantic_place = SEMANTIC_OF_TOKENS;
    c.semantic_tensor = SEMANTIC_AT_FC2;
    if (test_case("brute force, stage 2, tokens")) { test_brute_force(c, 0); test_end_case(); }
    c.semantic_kind = SEMANTIC_COSINE;
    c.semantic_measure = SEMANTIC_FIRST_CHUNK;
    c.recompute = 1;
    if (test_case("brute force, stage 2, tokens, cosine, first chunk, recompute")) {
        test_brute_force(c, 0);
        test_end_case();
    }
    c = bed_config(2);
    c.lora = bed_lora;
    if (test_case("brute force, stage 2, low-rank pairs")) { test_brute_force(c, 0); test_end_case(); }
    c.recompute = 1;
    if (test_case("brute force, stage 2, low-rank pairs, recompute")) { test_brute_force(c, 0); test_end_case(); }
    c.semantic_tensor = SEMANTIC_AT_FC2;
    if (test_case("brute force, stage 2, low-rank pairs, at mlp.fc2, recompute")) {
        test_brute_force(c, 0);
        test_end_case();
    }
    c.semantic_place = SEMANTIC_OF_TOKENS;
    c.recompute = 0;
    if (test_case("brute force, stage 2, low-rank pairs, tokens")) { test_brute_force(c, 0); test_end_case(); }
    c.semantic_kind = SEMANTIC_COSINE;
    c.semantic_measure = SEMANTIC_FIRST_CHUNK;
    if (test_case("brute force, stage 2, low-rank pairs, tokens, cosine, first chunk")) {
        test_brute_force(c, 0);
        test_end_case();
    }
    c = bed_config(2);
    c.encoder = *vit_config_find("tiny-reg");
    if (test_case("brute force, stage 2, registers, after a step of another size")) {
        test_brute_force(c, 1);
        test_end_case();
    }
    c.decoder.quant_conv = 1;
    if (test_case("brute force, stage 2, registers, post_quant_conv")) { test_brute_force(c, 0); test_end_case(); }
    c = bed_large_config(2);
    if (test_case("brute force, stage 2, larger decoder")) { test_brute_force(c, 0); test_end_case(); }
    c.semantic_measure = SEMANTIC_FIRST_CHUNK;
    c.recompute = 1;
    if (test_case("brute force, stage 2, larger decoder, first chunk, recompute")) {
        test_brute_force(c, 0);
        test_end_case();
    }
    c = bed_large_config(3);
    if (test_case("brute force, stage 3, larger decoder")) { test_brute_force(c, 0); test_end_case(); }
}

// ---------------------------------------------------------------------------------------------------------------------
// Identities

// Two chunks in one pass against two steps with one chunk: averaged gradients, and each chunk's measures.
static void test_chunks(tokenizer_config_t config) {
    static tokenizer_t both, one;
    config.batch = 2 * config.chunk;
    bed_make(&both, config);
    bed_randomise(&both);
    config.batch = config.chunk;
    bed_make(&one, config);
    bed_copy(&one, &both);
    tokenizer_gradients_of_x(&both, 0, 0);
    size_t n = both.params.table.total, n_disc = both.disc_params.table.total, image = 3 * tokenizer_pixels(&both);
    double *want = double_buffer(n), *want_disc = double_buffer(n_disc);
    for (int k = 0; k < 2; k++) {
        memcpy(one.x, both.x + k * config.chunk * image, config.chunk * image * sizeof(double));
        size_t latent = config.chunk * tokenizer_latents(&one) * one.z;
        if (one.encoder.gaussian) {
            memcpy(one.encoder.noise, both.encoder.noise + k * latent, latent * sizeof(double));
        }
        tokenizer_gradients_of_x(&one, 0, 0);
        for (size_t i = one.params.first; i < n; i++) want[i] += one.params.grads[i - one.params.first] / 2;
        for (size_t i = 0; i < n_disc; i++) want_disc[i] += one.disc_params.grads[i] / 2;
        check_error("l1", bed_error(both.measures.l1 + k * config.chunk, one.measures.l1, config.chunk), EXACT);
        check_error("omega_g", fabs(both.measures.omega_g[k] / one.measures.omega_g[0] - 1), EXACT);
        check_error("hinge", fabs(both.measures.hinge[k] / one.measures.hinge[0] - 1), EXACT);
        double omega_s = both.measures.omega_s[k];
        if (tokenizer_is_aligned(&config)) check_error("omega_s", fabs(omega_s / one.measures.omega_s[0] - 1), EXACT);
        if (k) continue; // the running statistics are those of the first chunk
        check_error("running", bed_error(both.disc.running, one.disc.running, one.disc.running_table.total), EXACT);
    }
    bed_check_gradients(&both.params, want, EXACT);
    bed_check_gradients(&both.disc_params, want_disc, EXACT);
    free(want), free(want_disc);
    tokenizer_free(&both);
    tokenizer_free(&one);
}

// L_g and its gradient times 10, by the discriminator's last layer: omega_g dL_g stays but for the 1e-4 in omega_g.
// With n = |dL_g / dW_c| the two products are to each other as 10 (n + 1e-4) to 10 n + 1e-4.
static void test_gan_size(void) {
    static tokenizer_t t;
    bed_make(&t, bed_config(1));
    bed_randomise(&t);
    size_t image = (size_t)t.config.chunk * 3 * tokenizer_pixels(&t);
    double* before = double_buffer(t.chunks * image);
    double norm[3];
    tokenizer_gradients_of_x(&t, 0, 0);
    for (int k = 0; k < t.chunks; k++) {
        norm[k] = sqrt(t.measures.squares_gan[k]) * t.chunks;
        for (size_t i = 0; i < image; i++) before[k * image + i] = t.measures.omega_g[k] * t.a_gan[k * image + i];
    }
    const conv_layer_t* last = &t.disc.conv[t.disc.n - 1];
    size_t weights = (size_t)16 * last->shape.C;
    for (size_t i = 0; i < weights; i++) t.disc_params.values[last->weight + i] *= 10;
    t.disc_params.values[last->bias] *= 10;
    tokenizer_gradients_of_x(&t, 0, 0);
    for (int k = 0; k < t.chunks; k++) {
        double factor = 10 * (norm[k] + 1e-4) / (10 * norm[k] + 1e-4);
        check(factor - 1 < 0.9e-4 / norm[k] && factor - 1 < 0.05, "the floor is small here");
        for (size_t i = 0; i < image; i++) {
            t.a_gan[k * image + i] *= t.measures.omega_g[k];
            before[k * image + i] *= factor;
        }
    }
    check_error("omega_g dL_g", bed_error(t.a_gan, before, t.chunks * image), EXACT);
    free(before);
    tokenizer_free(&t);
}

// A discriminator that sees nothing: its gradient is zero, so omega_g is at its clip and the GAN adds exactly nothing.
static void test_gan_zero(void) {
    static tokenizer_t t, without;
    tokenizer_config_t config = bed_config(1);
    bed_make(&t, config);
    bed_randomise(&t);
    const conv_layer_t* last = &t.disc.conv[t.disc.n - 1];
    for (int i = 0; i < 16 * last->shape.C; i++) t.disc_params.values[last->weight + i] = 0;
    config.w_gan = 0;
    bed_make(&without, config);
    bed_copy(&without, &t);
    tokenizer_gradients_of_x(&t, 0, 0);
    tokenizer_gradients_of_x(&without, 0, 0);
    for (int k = 0; k < t.chunks; k++) {
        double ratio = sqrt(t.measures.squares_rec_out[k]) * t.chunks / 1e-4;
        check(t.measures.squares_gan[k] == 0, "no gradient of the GAN loss");
        check(t.measures.clamped_g[k] == (ratio > 1e4), "the clip is reported");
        check_error("omega_g", fabs(t.measures.omega_g[k] / (0.5 * fmin(ratio, 1e4)) - 1), EXACT);
    }
    check(!memcmp(t.dxhat, t.a_nll, bed_image_values(&t) * sizeof(double)), "the GAN adds nothing at the image");
    check(!memcmp(t.params.grads, without.params.grads, params_trained(&t.params) * sizeof(double)), "nor anywhere");
    tokenizer_free(&t);
    tokenizer_free(&without);
}

// ---------------------------------------------------------------------------------------------------------------------
// Finite differences

// L1 and LPIPS of a batch: what stage 2 minimises where both other weights are 0.
static double reconstruction_objective(void* context) {
    tokenizer_t* t = (tokenizer_t*)context;
    const tokenizer_config_t* c = &t->config;
    double sum = 0, l1[8], lpips[8], values = 3.0 * tokenizer_pixels(t);
    const double* xhat = tokenizer_reconstruct(t, 0);
    l1_forward(l1, xhat, t->x, c->batch, (size_t)values, 0);
    lpips_forward(&t->lpips, &t->lpips_params, lpips, xhat, t->x, 0);
    for (int b = 0; b < c->batch; b++) sum += l1[b] + values * c->w_lpips * lpips[b];
    return sum / c->batch;
}

// The gradients of a step against differences, model by model and together.
static void check_differences(tokenizer_t* t) {
    tokenizer_gradients_of_x(t, 0, 0);
    size_t total = t->params.table.total;
    double* gradient = double_buffer(total);
    memcpy(gradient, t->params.grads, total * sizeof(double));
    const struct { const char* name; size_t begin, end; } parts[4] = {
        {"encoder", 0, t->adapter_begin}, {"adapter", t->adapter_begin, t->decoder_begin},
        {"decoder", t->decoder_begin, total}, {"all", 0, total}};
    for (int i = 0; i < 4; i++) {
        check_gradient_h(parts[i].name, reconstruction_objective, t, t->params.values + parts[i].begin,
                         gradient + parts[i].begin, parts[i].end - parts[i].begin, STEP_KINKS, BOUND);
    }
    free(gradient);
}

static void test_differences(void) {
    static tokenizer_t t;
    tokenizer_config_t config = bed_config(2);
    config.batch = 2;
    config.w_gan = config.w_sem = 0;
    config.w_lpips = 0.7;
    bed_make_sizes(&t, config, other_sizes, 2);
    bed_randomise(&t);
    for (int i = 1; i >= 0; i--) { // tall, then wide: both are checked in the memory of the largest
        if (i) tokenizer_resize(&t, other_sizes[0][0], other_sizes[0][1]);
        else tokenizer_resize(&t, config.H, config.W);
        bed_random_images(&t);
        check_differences(&t);
    }
    tokenizer_free(&t);
}

// The loss of a baseline's single chunk, with adaptive weights that stay what they were.
typedef struct { tokenizer_t* t; double omega_g, omega_s; } baseline_objective_t;

static double baseline_loss(void* context) {
    const baseline_objective_t* o = (const baseline_objective_t*)context;
    tokenizer_t* t = o->t;
    const tokenizer_config_t* c = &t->config;
    double sum = reconstruction_objective(t), generator[1], vf[1];
    for (int b = 0; b < c->batch; b++) sum += c->w_kl * t->encoder.kl[b] / c->batch;
    patchgan_forward(&t->disc, &t->disc_params, &t->fake, t->decoder.out, 1, 0);
    group_mean_forward(generator, t->fake.logits, 1, c->batch * t->fake.logits_count, 0);
    sum -= o->omega_g * generator[0];
    if (!tokenizer_has_vf_loss(c)) return sum;
    vf_head_loss(&t->vf, &t->params, &t->target_params, vf, t->dz_sem, t->x, latent_encoder_output(&t->encoder), 1,
                 c->chunk, 0);
    return sum + o->omega_s * vf[0];
}

static void test_baseline_differences(tokenizer_config_t config) {
    static tokenizer_t t;
    config.batch = config.chunk;
    bed_make(&t, config);
    bed_randomise(&t);
    tokenizer_gradients_of_x(&t, 0, 0);
    baseline_objective_t o = {&t, t.measures.omega_g[0], t.measures.omega_s[0]};
    check(o.omega_g > 0 && (o.omega_s > 0) == tokenizer_has_vf_loss(&config), "adaptive weights");
    if (o.omega_s > 0) { // so that it does not drown in the reconstruction's gradient
        double ratio = sqrt(t.measures.squares_rec_latent[0]) / (sqrt(t.measures.squares_sem[0]) + 1e-4);
        check_error("omega_vf", fabs(o.omega_s / (config.w_vf * ratio) - 1), EXACT);
    }
    size_t total = t.params.table.total;
    double* gradient = double_buffer(total);
    memcpy(gradient, t.params.grads, total * sizeof(double));
    const struct { const char* name; size_t begin, end; } parts[4] = {
        {"encoder", 0, t.adapter_begin}, {"adapter, projection", t.adapter_begin, t.decoder_begin},
        {"decoder", t.decoder_begin, total}, {"all", 0, total}};
    for (int i = 0; i < 4; i++) {
        if (parts[i].begin == parts[i].end) continue;
        check_gradient_h(parts[i].name, baseline_loss, &o, t.params.values + parts[i].begin, gradient + parts[i].begin,
                         parts[i].end - parts[i].begin, STEP_KINKS, BOUND);
    }
    if (o.omega_s > 0) {
        const param_t* p = param_find(&t.params.table, "linear_proj.weight");
        check_gradient_h("projection", baseline_loss, &o, t.params.values + p->offset, gradient + p->offset, p->count,
                         STEP_KINKS, BOUND);
    }
    free(gradient);
    tokenizer_free(&t);
}

// The latent's noise is that of the seed and the step, and a place in the batch of all processes.
static void test_noise(void) {
    static tokenizer_t t;
    tokenizer_config_t config = bed_baseline(RECIPE_VAE, 1);
    bed_make(&t, config);
    bed_randomise(&t);
    size_t image = tokenizer_latents(&t) * t.z, n = config.batch * image;
    double* kept = double_buffer(n);
    tokenizer_gradients(&t, 3, 0);
    memcpy(kept, t.encoder.noise, n * sizeof(double));
    for (size_t i = 0; i < n; i++) check(kept[i] == random_normal(5, RANDOM_POSTERIOR, 3, i), "noise of a step");
    for (int b = 0; b < config.batch; b++) t.rows[b] += (uint64_t)config.batch;
    tokenizer_draw_noise(&t, 5, 3, 0);
    check(t.encoder.noise[0] == random_normal(5, RANDOM_POSTERIOR, 3, n), "of the second process");
    for (int b = 0; b < config.batch; b++) t.rows[b] -= (uint64_t)config.batch;
    tokenizer_draw_noise(&t, 5, 4, 0);
    check(memcmp(kept, t.encoder.noise, n * sizeof(double)) != 0, "of the next step");
    free(kept);
    tokenizer_free(&t);
}

static void test_baselines(void) {
    tokenizer_config_t c = bed_baseline(RECIPE_VAVAE, 0);
    if (test_case("fixture vavae_step")) { bed_check_vavae_step(FIXTURE_ROUNDING); test_end_case(); }
    if (test_case("two chunks are two steps, VA-VAE")) { test_chunks(bed_baseline(RECIPE_VAVAE, 1)); test_end_case(); }
    if (test_case("two chunks are two steps, VA-VAE whose encoder is a ViT")) { test_chunks(c); test_end_case(); }
    if (test_case("finite differences of a whole step, VAE")) {
        test_baseline_differences(bed_baseline(RECIPE_VAE, 1));
        test_end_case();
    }
    if (test_case("finite differences of a whole step, VA-VAE")) {
        test_baseline_differences(bed_baseline(RECIPE_VAVAE, 1));
        test_end_case();
    }
    if (test_case("finite differences of a whole step, VA-VAE with a ViT")) {
        test_baseline_differences(c);
        test_end_case();
    }
    c.semantic_tensor = SEMANTIC_AT_FC2;
    c.recompute = 1;
    if (test_case("finite differences of a whole step, VA-VAE with a ViT, at mlp.fc2, recompute")) {
        test_baseline_differences(c);
        test_end_case();
    }
    if (test_case("noise of the latent")) { test_noise(); test_end_case(); }
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    if (test_case("fixture stage2_step")) { bed_check_stage2_step(FIXTURE_ROUNDING); test_end_case(); }
    if (test_case("fixture stage2_step, omega_s at mlp.fc2")) {
        bed_check_stage2_fc2(FIXTURE_ROUNDING);
        test_end_case();
    }
    if (test_case("fixture stage2_tokens")) { bed_check_stage2_tokens(FIXTURE_ROUNDING); test_end_case(); }
    test_brute_forces();
    if (test_case("two chunks are two steps, stage 1")) { test_chunks(bed_config(1)); test_end_case(); }
    if (test_case("two chunks are two steps, stage 2")) { test_chunks(bed_config(2)); test_end_case(); }
    if (test_case("two chunks are two steps, stage 3")) { test_chunks(bed_config(3)); test_end_case(); }
    if (test_case("the size of the GAN loss does not matter")) { test_gan_size(); test_end_case(); }
    if (test_case("a blind discriminator adds nothing")) { test_gan_zero(); test_end_case(); }
    if (test_case("finite differences of the reconstruction loss")) { test_differences(); test_end_case(); }
    test_baselines();
    return test_finish();
}
