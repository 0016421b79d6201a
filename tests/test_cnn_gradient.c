// test_cnn_gradient.c: the derivatives of whole convolutional models against finite differences, in double.
//
// Each model is as small as its structure allows: an autoencoder of two levels with attention at both, a larger decoder
// of two blocks and two levels whose position table is resampled, a PatchGAN of two layers in training and evaluation,
// a VGG of three slices as a classifier's trunk and inside LPIPS. Every tensor of a model is moved along random
// directions by itself, so that a small gradient can't hide behind a large one. Every backward runs twice: parameter
// gradients must accumulate, and the others must be written whole over poison.
// defines: check_gradient_h, check_accumulates, random_buffer, poisoned_buffer, dot, test_case, ...
#include "tests/gradient.h"
// defines: decoder_t and its functions
#include "common/models/decoder.h"
// defines: cnn_encoder_t and its functions
#include "common/models/cnn_encoder.h"
// defines: patchgan_t, patchgan_acts_t and their functions
#include "common/models/patchgan.h"
// defines: lpips_t and their functions
#include "common/models/lpips.h"

#define STEP_SMOOTH 1e-4 // finite difference
#define STEP_KINKS 1e-6  // where a ReLU or a maximum could change its branch on the way
#define BOUND 1e-6

// A model between its input and a random projection of its output.
typedef struct model_t {
    params_t params;
    plan_t plan;
    decoder_t decoder;
    cnn_encoder_t encoder;
    patchgan_t disc;
    lpips_t lpips;
    vgg_acts_t vgg_acts;
    patchgan_acts_t disc_acts;
    int train;               // of the PatchGAN
    double *input, *dinput;  // (n_input)
    double *reference;       // LPIPS: the other image
    double *projection;      // (n_output)
    size_t n_input, n_output;
    const double* (*forward)(struct model_t* m); // returns the output
    void (*backward)(struct model_t* m, double* dinput); // from the projection
} model_t;

static double model_objective(void* context) {
    model_t* m = (model_t*)context;
    return dot(m->projection, m->forward(m), m->n_output);
}

// After planning: memory, random parameters around their initial values, random data.
static void model_allocate(model_t* m, size_t n_input, size_t n_output) {
    params_allocate(&m->params, 0, 0, "test parameters");
    params_init(&m->params, 3);
    for (size_t i = 0; i < m->params.table.total; i++) m->params.values[i] += 0.1 * test_normal();
    plan_allocate(&m->plan, "test activations");
    memset(m->plan.memory, 0xFF, m->plan.peak); // NaN
    m->n_input = n_input;
    m->n_output = n_output;
    m->input = random_buffer(n_input);
    m->reference = random_buffer(n_input);
    m->dinput = poisoned_buffer(n_input);
    m->projection = random_buffer(n_output);
}

static void model_free(model_t* m) {
    params_free(&m->params);
    plan_free(&m->plan);
    free(m->input);
    free(m->reference);
    free(m->dinput);
    free(m->projection);
}

// One parameter tensor. The bias of an attention's keys has no gradient: softmax does not see it.
static void model_check_tensor(model_t* m, const param_t* t, double h) {
    const char* k_bias = strstr(t->name, ".k.bias");
    const double* grad = params_grad(&m->params, t->offset);
    double norm = sqrt(dot(grad, grad, t->count));
    if (k_bias) {
        check_error(t->name, norm, 1e-12);
        return;
    }
    check(norm > 1e-6, t->name);
    check_gradient_h(t->name, model_objective, m, m->params.values + t->offset, grad, t->count, h, BOUND);
}

// Gradients of the input (where `input` is set) and of every parameter tensor (where `parameters` is set).
static void model_check(model_t* m, double h, int input, int parameters) {
    size_t n = m->params.table.total;
    double* start = random_buffer(n);
    model_objective(m);
    memcpy(m->params.grads, start, n * sizeof(double));
    m->backward(m, input ? m->dinput : NULL);
    double* once = (double*)malloc(n * sizeof(double));
    memcpy(once, m->params.grads, n * sizeof(double));
    m->backward(m, input ? m->dinput : NULL);
    check_accumulates("parameter gradients", m->params.grads, once, start, n);
    for (size_t i = 0; i < n; i++) m->params.grads[i] = once[i] - start[i];
    if (input) check_gradient_h("input", model_objective, m, m->input, m->dinput, m->n_input, h, BOUND);
    for (int i = 0; parameters && i < m->params.table.n; i++) model_check_tensor(m, &m->params.table.items[i], h);
    free(start);
    free(once);
}

// ---------------------------------------------------------------------------------------------------------------------
// Autoencoder

static autoencoder_config_t tiny_autoencoder(int quant_conv) {
    autoencoder_config_t c = {8, 2, {1, 2, 0, 0, 0, 0, 0, 0}, 1, 3u, 3, 2, quant_conv};
    return c;
}

static const double* decoder_output(model_t* m) {
    decoder_forward(&m->decoder, &m->params, m->input, 0);
    return m->decoder.out;
}
static void decoder_gradients(model_t* m, double* dinput) {
    decoder_backward(&m->decoder, &m->params, dinput, m->projection, 0, 0, 0);
}

// depth: blocks of the larger decoder; 0: LDM's.
static void test_decoder(int quant_conv, int depth, int recompute) {
    enum { B = 2, h = 2, w = 3 };
    static model_t m;
    memset(&m, 0, sizeof m);
    m.forward = decoder_output;
    m.backward = decoder_gradients;
    m.decoder.config = tiny_autoencoder(quant_conv);
    m.decoder.tokens.vit.config = large_decoder_vit(12, depth, 3, 4);
    m.decoder.tokens.vit.recompute = recompute;
    decoder_register(&m.decoder, &m.params.table, "");
    decoder_plan(&m.decoder, &m.plan, B, h, w);
    decoder_plan_work(&m.decoder, &m.plan, 0);
    model_allocate(&m, B * h * w * 3, B * 4 * h * w * 3);
    model_check(&m, STEP_SMOOTH, 1, 1);
    model_free(&m);
}

static const double* encoder_output(model_t* m) {
    cnn_encoder_forward(&m->encoder, &m->params, m->input, 0);
    return m->encoder.moments;
}
static void encoder_gradients(model_t* m, double* dinput) {
    (void)dinput;
    cnn_encoder_backward(&m->encoder, &m->params, m->projection, 0, 0);
}

static void test_encoder(int quant_conv) {
    enum { B = 2, H = 4, W = 6 };
    static model_t m;
    memset(&m, 0, sizeof m);
    m.forward = encoder_output;
    m.backward = encoder_gradients;
    m.encoder.config = tiny_autoencoder(quant_conv);
    cnn_encoder_register(&m.encoder, &m.params.table, "");
    cnn_encoder_plan(&m.encoder, &m.plan, B, H, W);
    cnn_encoder_plan_work(&m.encoder, &m.plan);
    model_allocate(&m, B * H * W * 3, B * H / 2 * W / 2 * 6);
    model_check(&m, STEP_SMOOTH, 0, 1);
    model_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// PatchGAN

static const double* patchgan_output(model_t* m) {
    patchgan_forward(&m->disc, &m->params, &m->disc_acts, m->input, m->train, 0);
    return m->disc_acts.logits;
}
static void patchgan_gradients(model_t* m, double* dinput) {
    patchgan_backward(&m->disc, &m->params, &m->disc_acts, dinput, m->projection, 1, 0);
}

static void test_patchgan(int train) {
    enum { B = 4, CHUNK = 2, H = 13, W = 14 };
    static model_t m;
    patchgan_config_t config = {4, 2};
    memset(&m, 0, sizeof m);
    m.forward = patchgan_output;
    m.backward = patchgan_gradients;
    m.train = train;
    m.disc.config = config;
    patchgan_register(&m.disc, &m.params.table, "");
    patchgan_plan(&m.disc, &m.disc_acts, &m.plan, B, H, W, CHUNK);
    patchgan_plan_work(&m.disc, &m.plan, B, H, W);
    patchgan_allocate_buffers(&m.disc);
    for (size_t i = 0; i < m.disc.running_table.total; i++) m.disc.running[i] += 0.5 * fabs(test_normal());
    model_allocate(&m, B * H * W * 3, B * m.disc_acts.logits_count);
    model_check(&m, STEP_KINKS, 1, 1);
    patchgan_free_buffers(&m.disc);
    model_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// VGG and LPIPS

enum { V_B = 2, V_H = 13, V_W = 10 };

static vgg_config_t tiny_vgg(void) {
    vgg_config_t c = {3, {2, 1, 3, 0, 0}, {4, 6, 5, 0, 0}};
    return c;
}

static const double* vgg_output(model_t* m) {
    vgg_forward(&m->lpips.vgg, &m->params, &m->vgg_acts, m->input, 0);
    return m->vgg_acts.features;
}
static void vgg_gradients(model_t* m, double* dinput) {
    (void)dinput;
    vgg_backward(&m->lpips.vgg, &m->params, &m->vgg_acts, m->projection, 0);
}

static void test_vgg(void) {
    static model_t m;
    memset(&m, 0, sizeof m);
    m.forward = vgg_output;
    m.backward = vgg_gradients;
    m.lpips.vgg.config = tiny_vgg();
    vgg_register(&m.lpips.vgg, &m.params.table, "");
    vgg_plan(&m.lpips.vgg, &m.vgg_acts, &m.plan, V_B, V_H, V_W, VGG_KEEP_ALL);
    vgg_plan_work(&m.lpips.vgg, &m.plan, V_B, V_H, V_W);
    model_allocate(&m, V_B * V_H * V_W * 3, V_B * (V_H / 8) * (V_W / 8) * 5);
    model_check(&m, STEP_KINKS, 0, 1);
    model_free(&m);
}

#define LPIPS_SCALE 0.7 // every image's distance counts this much

static const double* lpips_output(model_t* m) {
    static double distance[V_B];
    lpips_forward(&m->lpips, &m->params, distance, m->input, m->reference, 0);
    return distance;
}
static void lpips_gradients(model_t* m, double* dinput) {
    lpips_backward(&m->lpips, &m->params, dinput, LPIPS_SCALE, 0);
    for (size_t i = 0; i < m->n_input; i++) dinput[i] *= m->lpips.scaling.scale[i % 3];
}

static void test_lpips(void) {
    static model_t m;
    memset(&m, 0, sizeof m);
    m.forward = lpips_output;
    m.backward = lpips_gradients;
    m.lpips.config = tiny_vgg();
    lpips_register(&m.lpips, &m.params.table, "");
    lpips_plan(&m.lpips, &m.plan, V_B, V_H, V_W);
    model_allocate(&m, V_B * V_H * V_W * 3, V_B);
    for (int b = 0; b < V_B; b++) m.projection[b] = LPIPS_SCALE;
    model_check(&m, STEP_KINKS, 1, 0);
    model_free(&m);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    if (test_case("decoder")) { test_decoder(0, 0, 0); test_end_case(); }
    if (test_case("decoder with post_quant_conv")) { test_decoder(1, 0, 0); test_end_case(); }
    if (test_case("larger decoder")) { test_decoder(0, 2, 0); test_end_case(); }
    if (test_case("larger decoder with recompute")) { test_decoder(0, 2, 1); test_end_case(); }
    if (test_case("encoder")) { test_encoder(0); test_end_case(); }
    if (test_case("encoder with quant_conv")) { test_encoder(1); test_end_case(); }
    if (test_case("patchgan in training, two chunks")) { test_patchgan(1); test_end_case(); }
    if (test_case("patchgan in evaluation")) { test_patchgan(0); test_end_case(); }
    if (test_case("vgg with weight gradients")) { test_vgg(); test_end_case(); }
    if (test_case("lpips at the image")) { test_lpips(); test_end_case(); }
    return test_finish();
}
