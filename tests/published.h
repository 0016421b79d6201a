// published.h: opens weight files in the layouts of others and compares what our models make of them with what the
// originals answered (dev/reference/make_published_formats.py). Used by tests/test_published_weights.c on narrow files
// and by dev/reference/check_published_formats.c on files of full size.
#pragma once
#include <math.h>

// defines: autoencoder_t, autoencoder_open_sized, autoencoder_encode, autoencoder_decode
#include "common/drawing/autoencoder.h"
// defines: dit_describe, dit_read_weights
#include "common/training/dit_checkpoint.h"
// defines: fixture_tensor
#include "tests/fixture.h"

// ||got - want|| / ||want|| against a tensor of the answers.
static inline double published_error(const safetensors_t* answers, const char* name, const floatX* got, size_t n) {
    const st_tensor_t* t = safetensors_find(answers, name);
    if (!t || t->numel != n) fatal("%s: there are no %zu values %s; make the files again", answers->path, n, name);
    floatS* want = fixture_tensor(answers, name);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += (double)want[i] * want[i];
    }
    free(want);
    return sqrt(difference / norm);
}

// The image of the answers, (B, H, W, 3), as bytes. Its size goes to *B and *H.
static inline uint8_t* published_pixels(const safetensors_t* answers, const char* name, int* B, int* H) {
    floatS* values = fixture_tensor(answers, name);
    const st_tensor_t* t = safetensors_find(answers, name);
    uint8_t* pixels = (uint8_t*)malloc_check(t->numel, "pixels");
    for (size_t i = 0; i < t->numel; i++) pixels[i] = (uint8_t)values[i];
    free(values);
    *B = (int)t->shape[0];
    *H = (int)t->shape[1];
    return pixels;
}

typedef struct { double mean, std, image; } published_vavae_t;

// The open tokenizer `a` stays with the caller.
static inline published_vavae_t published_vavae(autoencoder_t* a, const char* path, const safetensors_t* answers) {
    published_vavae_t e;
    int B, H;
    uint8_t* pixels = published_pixels(answers, "input.vavae.pixels", &B, &H);
    autoencoder_open_sized(a, path, AUTOENCODER_AVERAGED, H, B, 1, 1);
    memset(a->work.memory, 0xFF, plan_bytes(&a->work)); // a NaN in every type
    const floatX* z = autoencoder_encode(a, pixels, B, 0);
    size_t n = B * autoencoder_latent_values(a);
    e.mean = published_error(answers, "output.vavae.mean", z, n);
    floatX* std = (floatX*)malloc_check(n * sizeof(floatX), "deviations");
    for (size_t i = 0; i < n; i++) {
        size_t row = i / a->z, c = i % a->z;
        std[i] = (floatX)exp(0.5 * fmin(fmax((double)a->encoder.cnn.moments[(2 * row + 1) * a->z + c], -30), 20));
    }
    e.std = published_error(answers, "output.vavae.std", std, n);
    e.image = published_error(answers, "output.vavae.image", autoencoder_decode(a, z, B, 0),
                              B * autoencoder_image_values(a));
    free(std);
    free(pixels);
    return e;
}

// The same memory order as the answers', which are (B, C, S, S).
static inline void published_transpose(floatX* out, const floatX* in, int B, int rows, int columns) {
    for (int b = 0; b < B; b++) {
        for (int i = 0; i < rows * columns; i++) {
            out[(size_t)b * rows * columns + (size_t)(i % columns) * rows + i / columns] =
                in[(size_t)b * rows * columns + i];
        }
    }
}

// Error of the velocity. *config receives what the file tells.
static inline double published_lightningdit(const char* path, const safetensors_t* answers, int raw,
                                            lightningdit_config_t* config) {
    static lightningdit_t net;
    params_t params;
    plan_t plan;
    safetensors_t file;
    memset(&net, 0, sizeof net);
    memset(&params, 0, sizeof params);
    memset(&plan, 0, sizeof plan);
    tensor_file_open_or_die(&file, path);
    *config = net.config = dit_describe(&file, path, raw);
    lightningdit_register(&net, &params.table, "");
    params_allocate(&params, params.table.total, 0, "LightningDiT's weights");
    lightningdit_plan(&net, &plan, 2, 0);
    lightningdit_plan_work(&net, &plan);
    plan_allocate(&plan, "activations");
    dit_read_weights(&file, path, &params, raw);
    safetensors_close(&file);
    lightningdit_set_tables(&net, &params);
    int labels[2], C = net.config.C, HW = net.config.side * net.config.side;
    size_t n = (size_t)2 * HW * C;
    floatS* x = fixture_tensor(answers, "input.dit.x");
    floatS* t = fixture_tensor(answers, "input.dit.t");
    floatS* given = fixture_tensor(answers, "input.dit.labels");
    for (int b = 0; b < 2; b++) labels[b] = (int)given[b];
    floatX* xt = (floatX*)malloc_check(n * sizeof(floatX), "latents");
    published_transpose(xt, x, 2, C, HW);
    lightningdit_forward(&net, &params, xt, t, labels, 2, 0);
    published_transpose(xt, net.v, 2, HW, C);
    double error = published_error(answers, "output.dit.v", xt, n);
    free(x);
    free(t);
    free(given);
    free(xt);
    params_free(&params);
    plan_free(&plan);
    return error;
}

// Error of the tokens of a ViT for an image of its own size. `kind` names it in the answers.
static inline double published_vit(const char* path, const safetensors_t* answers, const char* kind,
                                   const vit_config_t* config) {
    static vit_t vit;
    params_t params;
    plan_t plan;
    char name[64];
    int B, H;
    memset(&vit, 0, sizeof vit);
    memset(&params, 0, sizeof params);
    memset(&plan, 0, sizeof plan);
    snprintf(name, sizeof name, "input.%s.pixels", kind);
    uint8_t* pixels = published_pixels(answers, name, &B, &H);
    vit.config = *config;
    vit_register(&vit, &params.table, "");
    params_allocate(&params, params.table.total, 0, "ViT");
    vit_plan(&vit, &plan, B, H, H, config->patch, 0);
    vit_plan_work(&vit, &plan);
    plan_allocate(&plan, "activations");
    weights_load_vit(&params, config, "", path);
    size_t n = (size_t)B * H * H * 3;
    floatX* image = (floatX*)malloc_check(n * sizeof(floatX), "image");
    image_from_bytes(image, pixels, n, 0);
    vit_forward(&vit, &params, image, 0);
    snprintf(name, sizeof name, "output.%s.tokens", kind);
    double error = published_error(answers, name, vit.features, (size_t)B * vit.GH * vit.GW * config->dim);
    free(image);
    free(pixels);
    params_free(&params);
    plan_free(&plan);
    return error;
}
