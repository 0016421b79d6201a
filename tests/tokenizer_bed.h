// tokenizer_bed.h: what both tests of the tokenizer need: one that is as small as its structure allows, with random
// weights, and the comparison with whole training steps that PyTorch computed, of stage 2 and of VA-VAE.
//
// The small tokenizer has everything of the large one: a ViT with a resized position table, LayerScale and a resized
// image, a decoder with attention and two upsamplings, non-square images, three chunks of two.
// Look next at tests/test_tokenizer.c and tests/test_tokenizer_gradient.c.
#pragma once
// defines: fixture_open, fixture_tensor, fixture_check, fixture_parameters, fixture_check_gradients, test_uniform, ...
#include "tests/fixture.h"
// defines: tokenizer_t and its functions
#include "common/training/tokenizer.h"

static inline tokenizer_config_t bed_config(int stage) {
    tokenizer_config_t c;
    memset(&c, 0, sizeof c);
    c.encoder = *vit_config_find("tiny");
    decoder_config_t decoder = {8, 3, {1, 2, 2, 0, 0, 0, 0, 0}, 1, 1u << 2, 5, 4, 0};
    c.decoder = decoder;
    lpips_config_t lpips = {3, {1, 2, 1, 0, 0}, {4, 6, 8, 0, 0}};
    c.lpips = lpips;
    c.disc.ndf = 4;
    c.disc.layers = 2;
    c.adapter_hidden = 10;
    c.stage = stage;
    c.batch = 6;
    c.chunk = 2;
    c.H = 12;
    c.W = 20;
    c.w_lpips = 1;
    c.w_gan = 0.5;
    c.w_sem = 1;
    c.lr = c.disc_lr = 1e-3;
    c.beta1 = 0.5;
    c.beta2 = 0.9;
    c.eps = 1e-8;
    c.ema_sigma[0] = 0.05;
    c.ema_sigma[1] = 0.10;
    return c;
}

// The same with the larger decoder, whose position table is resampled.
static inline tokenizer_config_t bed_large_config(int stage) {
    tokenizer_config_t c = bed_config(stage);
    c.decoder_vit = large_decoder_vit(12, 2, 3, 4);
    return c;
}

// Low-rank pairs with dropout, for stage 2.
static const lora_config_t bed_lora = {3, 5, 0.25};

// A baseline: `cnn` or the ViT encodes. The teacher's tokens are as wide as the encoder's.
static inline tokenizer_config_t bed_baseline(recipe_t recipe, int cnn) {
    tokenizer_config_t c = bed_config(1);
    c.recipe = recipe;
    c.cnn = c.decoder.quant_conv = cnn;
    c.teacher = *vit_config_find("tiny");
    c.w_kl = 0.3;
    c.w_vf = 0.4;
    c.margin_distance = 0.1;
    c.margin_cosine = 0.2;
    c.seed = 5;
    return c;
}

static inline void bed_poison(tokenizer_t* t) {
    memset(t->plan.memory, 0xFF, plan_bytes(&t->plan)); // NaN
    memset(t->work.memory, 0xFF, plan_bytes(&t->work));
}

// A tokenizer whose activations are poisoned. It must not be moved: the plans know its address.
static inline void bed_make(tokenizer_t* t, tokenizer_config_t config) {
    tokenizer_register(t, config);
    tokenizer_plan(t);
    tokenizer_allocate(t);
    bed_poison(t);
}

// The same with memory for `count` sizes (H, W), as it is after a turn to the config's own.
static inline void bed_make_sizes(tokenizer_t* t, tokenizer_config_t config,
                                  const int (*sizes)[2], int count) { // (count, 2)
    tokenizer_register(t, config);
    tokenizer_plan(t);
    for (int i = 0; i < count; i++) {
        t->config.H = sizes[i][0];
        t->config.W = sizes[i][1];
        tokenizer_plan(t);
    }
    tokenizer_allocate(t);
    bed_poison(t);
    tokenizer_resize(t, config.H, config.W);
}

// The initialisers' values and noise on top, so that nothing is zero or one. Padding stays zero.
static inline void bed_fill(params_t* p, double noise) {
    params_init(p, 11);
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        for (size_t k = 0; k < t->count; k++) p->values[t->offset + k] += (floatX)(noise * test_normal());
    }
}

static inline size_t bed_image_values(const tokenizer_t* t) {
    return (size_t)t->config.batch * tokenizer_pixels(t) * 3;
}

// Noise for a baseline's latents.
static inline void bed_random_noise(tokenizer_t* t) {
    size_t n = t->encoder.gaussian ? t->config.batch * tokenizer_latents(t) * t->z : 0;
    for (size_t i = 0; i < n; i++) t->encoder.noise[i] = (floatS)test_normal();
}

static inline void bed_random_images(tokenizer_t* t) {
    for (size_t i = 0; i < bed_image_values(t); i++) {
        t->x[i] = (floatX)test_uniform();
        t->bytes[i] = (uint8_t)(127.5 * (test_uniform() + 1));
    }
}

// Random weights and images; the frozen copy of stage 2 is another network than the one that is trained. The
// discriminator's logits are large enough that the hinge cuts some of them off.
static inline void bed_randomise(tokenizer_t* t) {
    bed_fill(&t->params, 0.1);
    bed_fill(&t->disc_params, 0.4);
    bed_fill(&t->lpips_params, 0.1);
    if (t->target_params.values) bed_fill(&t->target_params, 0.1);
    bed_random_images(t);
    bed_random_noise(t);
}

// The weights of one tokenizer into another; images only where the batch is the same.
static inline void bed_copy(tokenizer_t* to, const tokenizer_t* from) {
    memcpy(to->params.values, from->params.values, from->params.table.total * sizeof(floatX));
    memcpy(to->disc_params.values, from->disc_params.values, from->disc_params.table.total * sizeof(floatX));
    memcpy(to->lpips_params.values, from->lpips_params.values, from->lpips_params.table.total * sizeof(floatX));
    if (to->target_params.values && from->target_params.values) {
        memcpy(to->target_params.values, from->target_params.values, from->target_params.table.total * sizeof(floatX));
    }
    memcpy(to->disc.running, from->disc.running, from->disc.running_table.total * sizeof(floatS));
    if (to->config.batch != from->config.batch) return;
    memcpy(to->x, from->x, bed_image_values(from) * sizeof(floatX));
    memcpy(to->bytes, from->bytes, bed_image_values(from));
}

static inline double bed_norm(const floatS* x, size_t n) {
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += (double)x[i] * x[i];
    return sqrt(squares);
}

// ||got - want|| / ||want||
static inline double bed_error(const floatS* got, const floatS* want, size_t n) {
    double squares = 0, norm = bed_norm(want, n);
    for (size_t i = 0; i < n; i++) squares += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
    return sqrt(squares) / (norm > 0 ? norm : 1);
}

// The gradient of every trained tensor, each by itself, so that a small one can't hide behind a large one. The bias of
// an attention's keys has none: softmax does not see it, and what stands there is rounding, small against all others.
// `want` is laid out as the whole table.
static inline void bed_check_gradients(const params_t* p, const floatS* want, double bound) {
    double largest = 0;
    for (size_t i = p->first; i < p->table.total; i++) largest = fmax(largest, fabs((double)want[i]));
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        const floatS* got = params_grad(p, t->offset);
        if (!got) continue;
        if (strstr(t->name, ".k.bias")) {
            check_error(t->name, bed_norm(got, t->count) / largest, bound);
            continue;
        }
        check(bed_norm(want + t->offset, t->count) > 0, t->name);
        check_error(t->name, bed_error(got, want + t->offset, t->count), bound);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The fixture stage2_step

// What both fixtures of a step have alike.
static inline void bed_fixture_sizes(tokenizer_config_t* c) {
    lpips_config_t lpips = {5, {2, 2, 3, 3, 3}, {4, 8, 16, 32, 32}};
    c->lpips = lpips;
    c->disc.ndf = 8;
    c->disc.layers = 3;
    c->batch = 4;
    c->H = 32;
    c->W = 48;
}

static inline tokenizer_config_t bed_fixture_config(semantic_place_t place, semantic_tensor_t semantic_tensor) {
    tokenizer_config_t c = bed_config(2);
    vit_config_t encoder = {"fixture", 7, 24, 2, 3, 96, 1, 0, 1, 4, 1, ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6};
    decoder_config_t decoder = {32, 4, {1, 1, 1, 1, 0, 0, 0, 0}, 1, 1u << 3, 8, 32, 0};
    bed_fixture_sizes(&c);
    c.encoder = encoder;
    c.decoder = decoder;
    c.adapter_hidden = 16;
    c.semantic_place = place;
    c.semantic_tensor = semantic_tensor;
    return c;
}

// Names that begin with `from` begin with `to` instead.
static inline void bed_rename(param_table_t* table, const char* from, const char* to) {
    for (int i = 0; i < table->n; i++) {
        char rest[sizeof table->items[i].name];
        if (strncmp(table->items[i].name, from, strlen(from))) continue;
        snprintf(rest, sizeof rest, "%s", table->items[i].name + strlen(from));
        snprintf(table->items[i].name, sizeof rest, "%.30s%.80s", to, rest);
    }
}

// Makes the fixture's tokenizer; its tables bear the fixture's names. Where the latent is held, E0 is E.
static inline void bed_make_fixture(tokenizer_t* t, const safetensors_t* f, semantic_place_t place,
                                    semantic_tensor_t semantic_tensor) {
    bed_make(t, bed_fixture_config(place, semantic_tensor));
    bed_rename(&t->params.table, "encoder.", "vit.");
    bed_rename(&t->disc_params.table, "loss.", "");
    bed_rename(&t->disc.running_table, "loss.", "");
    bed_rename(&t->lpips_params.table, "", "lpips.");
    const char* target = place == SEMANTIC_OF_TOKENS ? "previous.vit." : "vit.";
    bed_rename(&t->target_params.table, "target.encoder.", target);
    bed_rename(&t->target_params.table, "target.", "previous.");
    params_t running;
    memset(&running, 0, sizeof running);
    running.table = t->disc.running_table;
    running.values = t->disc.running;
    params_t* tables[5] = {&t->params, &t->disc_params, &t->lpips_params, &t->target_params, &running};
    for (int i = 0; i < 5; i++) fixture_parameters(f, tables[i]);
    floatS* image = fixture_tensor(f, "input.image");
    memcpy(t->x, image, bed_image_values(t) * sizeof(floatX));
    free(image);
}

// Norms of chunk-local gradients; the tokenizer's are of gradients that are averaged over the chunks.
static inline void bed_check_norms(const safetensors_t* f, const char* name, const floatS* squares, int chunks,
                                   double bound) {
    floatX norms[8];
    for (int k = 0; k < chunks; k++) norms[k] = (floatX)(sqrt((double)squares[k]) * chunks);
    fixture_check(f, name, norms, (size_t)chunks, bound);
}

static inline double bed_fixture_mean(const safetensors_t* f, const char* name) {
    floatS* values = fixture_tensor(f, name);
    size_t n = safetensors_find(f, name)->numel;
    double mean = tokenizer_mean(values, (int)n);
    free(values);
    return mean;
}

// What the step measured: losses, norms and weights of each chunk, and the summary for the status line.
static inline void bed_check_measures(const safetensors_t* f, const tokenizer_t* t, double bound) {
    const tokenizer_measures_t* m = &t->measures;
    floatX l1[2], nll[2], loss_g[2];
    double values = 3.0 * tokenizer_pixels(t);
    for (int k = 0; k < 2; k++) {
        l1[k] = (m->l1[2 * k] + m->l1[2 * k + 1]) / 2;
        nll[k] = (floatX)(l1[k] + values * (m->lpips[2 * k] + m->lpips[2 * k + 1]) / 2);
        loss_g[k] = -m->fake_mean[k];
    }
    fixture_check(f, "output.l1", l1, 2, bound);
    fixture_check(f, "output.lpips", m->lpips, 4, bound);
    fixture_check(f, "output.nll", nll, 2, bound);
    fixture_check(f, "output.loss_g", loss_g, 2, bound);
    fixture_check(f, "output.loss_sem", m->semantic, 2, bound);
    fixture_check(f, "output.loss_d", m->hinge, 2, bound);
    fixture_check(f, "output.omega_g", m->omega_g, 2, bound);
    fixture_check(f, "output.omega_s", m->omega_s, 2, bound);
    bed_check_norms(f, "output.norm_nll_g", m->squares_rec_out, 2, bound);
    bed_check_norms(f, "output.norm_g", m->squares_gan, 2, bound);
    bed_check_norms(f, "output.norm_nll_s", m->squares_rec_latent, 2, bound);
    bed_check_norms(f, "output.norm_s", m->squares_sem, 2, bound);

    floatS* host = (floatS*)malloc_check(tokenizer_measure_count(t) * sizeof(floatS), "measures");
    tokenizer_report_t r = tokenizer_read(t, host, 0);
    const struct { const char* name; double got, scale; } summary[] = {
        {"output.l1", r.l1, values}, {"output.lpips", r.lpips, 1}, {"output.nll", r.nll, 1},
        {"output.loss_g", r.generator, 1}, {"output.loss_d", r.discriminator, 1}, {"output.loss_sem", r.semantic, 1},
        {"output.logits_real", r.real, 1}, {"output.logits_fake", r.fake, 1}, {"output.omega_g", r.omega_g, 1},
        {"output.omega_s", r.omega_s, 1}, {"output.norm_nll_g", r.norm_rec_out, 1}, {"output.norm_g", r.norm_gan, 1},
        {"output.norm_nll_s", r.norm_rec_latent, 1}, {"output.norm_s", r.norm_sem, 1}};
    for (size_t i = 0; i < sizeof summary / sizeof summary[0]; i++) {
        double want = bed_fixture_mean(f, summary[i].name);
        check_error(summary[i].name, fabs(summary[i].got * summary[i].scale / want - 1), bound);
    }
    check(r.clamped == 0, "no weight is clipped");
    free(host);
}

// The whole step against the fixture: everything that the reference tells, and the gradient of every parameter.
static inline void bed_check_stage2_step(double bound) {
    static tokenizer_t t;
    safetensors_t f;
    fixture_open(&f, "stage2_step");
    bed_make_fixture(&t, &f, SEMANTIC_OF_LATENT, SEMANTIC_AT_ADAPTER);
    tokenizer_gradients_of_x(&t, 0, 0);
    size_t latent = 4 * tokenizer_latents(&t) * (size_t)t.z, logits = 4 * t.fake.logits_count;
    fixture_check(&f, "output.z", latent_encoder_output(&t.encoder), latent, bound);
    fixture_check(&f, "output.z0", t.z0, latent, bound);
    fixture_check(&f, "output.image", t.decoder.out, bed_image_values(&t), bound);
    fixture_check(&f, "output.logits_fake", t.fake.logits, logits, bound);
    fixture_check(&f, "output.logits_real", t.real.logits, logits, bound);
    bed_check_measures(&f, &t, bound);
    fixture_check_gradients(&f, &t.params, bound);
    fixture_check_gradients(&f, &t.disc_params, bound);
    const size_t begin[4] = {0, t.adapter_begin, t.decoder_begin, t.params.table.total};
    for (int i = 0; i < 3; i++) {
        double norm = bed_norm(t.params.grads + begin[i], begin[i + 1] - begin[i]);
        check_error("norm of a model's gradient", fabs(sqrt((double)t.measures.squares[i]) / norm - 1), bound);
    }
    for (int i = 0; i < t.disc.running_table.n; i++) {
        const param_t* p = &t.disc.running_table.items[i];
        char name[200];
        snprintf(name, sizeof name, "after.%.120s", p->name);
        fixture_check(&f, name, t.disc.running + p->offset, p->count, bound);
    }
    tokenizer_free(&t);
    safetensors_close(&f);
}

// A step whose semantic loss compares the encoder's tokens.
static inline void bed_check_stage2_tokens(double bound) {
    static tokenizer_t t;
    safetensors_t f;
    fixture_open(&f, "stage2_tokens");
    bed_make_fixture(&t, &f, SEMANTIC_OF_TOKENS, SEMANTIC_AT_FC2);
    tokenizer_gradients_of_x(&t, 0, 0);
    size_t tokens = 4 * tokenizer_latents(&t) * (size_t)t.config.encoder.dim;
    fixture_check(&f, "output.tokens0", t.z0, tokens, bound);
    fixture_check(&f, "output.z", latent_encoder_output(&t.encoder), 4 * tokenizer_latents(&t) * (size_t)t.z, bound);
    fixture_check(&f, "output.image", t.decoder.out, bed_image_values(&t), bound);
    bed_check_measures(&f, &t, bound);
    fixture_check_gradients(&f, &t.params, bound);
    tokenizer_free(&t);
    safetensors_close(&f);
}

// omega_s measured at the last ViT block's mlp.fc2.weight.
static inline void bed_check_stage2_fc2(double bound) {
    static tokenizer_t t;
    safetensors_t f;
    fixture_open(&f, "stage2_step");
    bed_make_fixture(&t, &f, SEMANTIC_OF_LATENT, SEMANTIC_AT_FC2);
    tokenizer_gradients_of_x(&t, 0, 0);
    fixture_check(&f, "output.omega_s_vit", t.measures.omega_s, 2, bound);
    tokenizer_free(&t);
    safetensors_close(&f);
}

// ---------------------------------------------------------------------------------------------------------------------
// The fixture vavae_step

static inline tokenizer_config_t bed_vavae_config(void) {
    tokenizer_config_t c = bed_baseline(RECIPE_VAVAE, 1);
    vit_config_t teacher = {"fixture", 16, 24, 2, 3, 96, 1, 0, 1, 3, 0, ACT_GELU, NORMALISE_IMAGENET, 1, 1e-6};
    decoder_config_t decoder = {32, 5, {1, 1, 1, 1, 2, 0, 0, 0}, 1, 1u << 4, 4, 32, 1};
    bed_fixture_sizes(&c);
    c.teacher = teacher;
    c.decoder = decoder;
    c.w_kl = 1;
    c.w_vf = 0.1;
    c.margin_distance = 0.25;
    c.margin_cosine = 0.5;
    return c;
}

// Every parameter of the original is one of ours, under its name.
static inline void bed_check_names(const safetensors_t* f, params_t* const* tables, int n) {
    for (int i = 0; i < f->n; i++) {
        const char* name = f->tensors[i].name;
        if (strncmp(name, "generate.", 9)) continue;
        const param_t* found = NULL;
        for (int k = 0; k < n && !found; k++) found = param_find(&tables[k]->table, name + 9);
        check(found != NULL, name);
    }
}

static inline void bed_check_vavae_measures(const safetensors_t* f, const tokenizer_t* t, double bound) {
    const tokenizer_measures_t* m = &t->measures;
    double values = 3.0 * tokenizer_pixels(t);
    floatX nll[2], kl[2], loss_g[2], total[2];
    for (int k = 0; k < 2; k++) {
        nll[k] = (floatX)((m->l1[2 * k] + m->l1[2 * k + 1] + values * (m->lpips[2 * k] + m->lpips[2 * k + 1])) / 2);
        kl[k] = (m->kl[2 * k] + m->kl[2 * k + 1]) / 2;
        loss_g[k] = -m->fake_mean[k];
        total[k] = (floatX)(nll[k] + t->config.w_kl * kl[k] + m->omega_g[k] * loss_g[k] +
                            m->omega_s[k] * m->semantic[k]);
    }
    fixture_check(f, "output.nll", nll, 2, bound);
    fixture_check(f, "output.kl", kl, 2, bound);
    fixture_check(f, "output.vf", m->semantic, 2, bound);
    fixture_check(f, "output.loss_g", loss_g, 2, bound);
    fixture_check(f, "output.loss_d", m->hinge, 2, bound);
    fixture_check(f, "output.logits_real", m->real_mean, 2, bound);
    fixture_check(f, "output.logits_fake", m->fake_mean, 2, bound);
    fixture_check(f, "output.omega_g", m->omega_g, 2, bound);
    fixture_check(f, "output.omega_vf", m->omega_s, 2, bound);
    fixture_check(f, "output.total", total, 2, bound);
    floatS* host = (floatS*)malloc_check(tokenizer_measure_count(t) * sizeof(floatS), "measures");
    tokenizer_report_t r = tokenizer_read(t, host, 0);
    check_error("kl in the report", fabs(r.kl / bed_fixture_mean(f, "output.kl") - 1), bound);
    check_error("vf in the report", fabs(r.semantic / bed_fixture_mean(f, "output.vf") - 1), bound);
    free(host);
}

// The whole step against the fixture.
static inline void bed_check_vavae_step(double bound) {
    static tokenizer_t t;
    safetensors_t f;
    fixture_open(&f, "vavae_step");
    bed_make(&t, bed_vavae_config());
    bed_rename(&t.lpips_params.table, "", "loss.perceptual_loss.");
    params_t running;
    memset(&running, 0, sizeof running);
    running.table = t.disc.running_table;
    running.values = t.disc.running;
    params_t* tables[5] = {&t.params, &t.disc_params, &t.lpips_params, &t.target_params, &running};
    for (int i = 0; i < 5; i++) fixture_parameters(&f, tables[i]);
    bed_check_names(&f, tables, 5);
    size_t latent = 4 * tokenizer_latents(&t) * (size_t)t.z;
    floatS *image = fixture_tensor(&f, "input.image"), *noise = fixture_tensor(&f, "input.noise");
    memcpy(t.x, image, bed_image_values(&t) * sizeof(floatX));
    memcpy(t.encoder.noise, noise, latent * sizeof(floatS));
    tokenizer_gradients_of_x(&t, 0, 0);
    fixture_check(&f, "output.moments", latent_encoder_moments(&t.encoder), 2 * latent, bound);
    fixture_check(&f, "output.z", latent_encoder_output(&t.encoder), latent, bound);
    fixture_check(&f, "output.image", t.decoder.out, bed_image_values(&t), bound);
    bed_check_vavae_measures(&f, &t, bound);
    fixture_check_gradients(&f, &t.params, bound);
    fixture_check_gradients(&f, &t.disc_params, bound);
    for (int i = 0; i < t.disc.running_table.n; i++) {
        const param_t* p = &t.disc.running_table.items[i];
        char name[200];
        snprintf(name, sizeof name, "after.%.120s", p->name);
        fixture_check(&f, name, t.disc.running + p->offset, p->count, bound);
    }
    free(image);
    free(noise);
    tokenizer_free(&t);
    safetensors_close(&f);
}
