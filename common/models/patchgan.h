// patchgan.h: the discriminator, a convolutional network that judges overlapping patches of an image.
//
// NLayerDiscriminator of pix2pix (Isola et al. 2017; taming-transformers discriminator/model.py). Kernels are 4 x 4:
//
//   conv stride 2 with bias, LeakyReLU                          3     -> ndf
//   layers - 1 times: conv stride 2, BatchNorm, LeakyReLU       doubling the channels, at most 8 ndf
//   conv stride 1, BatchNorm, LeakyReLU
//   conv stride 1 with bias                                           -> 1
//
// With ndf 64 and 3 layers (2,765,633 parameters) an image of 256 x 256 gives 30 x 30 logits; each sees 70 x 70 pixels.
//
// In training BatchNorm normalises by the statistics of a chunk of the images, real and fake apart, and its derivative
// goes through those statistics. A step needs the activations of a pass over fakes and of one over real images at the
// same time: so they stand in a struct of their own, patchgan_acts_t.
//   generator pass       patchgan_backward with dimage and without weight gradients
//   discriminator pass   patchgan_backward with weight gradients and without dimage, once for real, once for fake
//
// The running statistics are no parameters: no gradient, no optimiser. They are a small table of their own, used only
// where `train` is 0. Look next at common/models/lpips.h, the other judge.
#pragma once
// defines: conv_layer_t, conv_layer_forward, conv_layer_backward_weight, conv_layer_backward_data, conv_macs, NO_TENSOR
#include "common/models/blocks.h"

#define BATCHNORM_EPS 1e-5
#define BATCHNORM_MOMENTUM 0.1
enum { PATCHGAN_MAX = 8 }; // convolutions

typedef struct {
    int ndf;    // channels of the first convolution
    int layers; // convolutions with stride 2
} patchgan_config_t;

typedef struct {
    patchgan_config_t config;
    int n;                              // convolutions: layers + 2
    conv_layer_t conv[PATCHGAN_MAX];
    size_t norm_weight[PATCHGAN_MAX];   // BatchNorm behind convolution i, for i from 1 to layers
    size_t norm_bias[PATCHGAN_MAX];
    param_table_t running_table;        // names and offsets of the running statistics
    size_t running_mean[PATCHGAN_MAX];  // offsets in `running`
    size_t running_var[PATCHGAN_MAX];
    floatS* running;                    // (running_table.total)
    int64_t batches_tracked;            // updates so far: num_batches_tracked of every norm
    floatX* grad[2];                    // (B, h, w, OC) of the largest output: gradients on their way down
} patchgan_t;

// One pass over a batch.
typedef struct {
    int B, H, W, chunk;
    int train;                  // of the last forward
    int h[PATCHGAN_MAX];        // output size of each convolution
    int w[PATCHGAN_MAX];
    const floatX* image;        // (B, H, W, 3) of the last forward; the backward reads it again
    floatX* conv[PATCHGAN_MAX]; // (B, h, w, OC) outputs of convolutions 1 to layers: inputs of their norms
    floatX* act[PATCHGAN_MAX];  // (B, h, w, OC) behind the LeakyReLU, for convolutions 0 to layers
    floatS* mean[PATCHGAN_MAX]; // (B / chunk, OC)
    floatS* rstd[PATCHGAN_MAX];
    floatX* logits;             // (B, h, w) of the last convolution
    size_t logits_count;        // h w: logits of an image
} patchgan_acts_t;

// Registers the tensors of d->config and, in a table of their own, the running statistics: prefix + "main.".
void patchgan_register(patchgan_t* d, param_table_t* table, const char* prefix) {
    int layers = d->config.layers, C = 3;
    d->n = layers + 2;
    if (layers < 1 || d->n > PATCHGAN_MAX) fatal("a PatchGAN of %d layers; choose 1 to %d", layers, PATCHGAN_MAX - 2);
    for (int i = 0; i < d->n; i++) {
        int last = i == d->n - 1;
        int OC = last ? 1 : d->config.ndf * (i < 3 ? 1 << i : 8);
        int index = i ? 3 * i - 1 : 0; // torch counts norms and activations too
        conv_t shape = conv_square(C, OC, 4, i < layers ? 2 : 1, 1, 1);
        char path[80];
        snprintf(path, sizeof path, "%smain.%d.", prefix, index);
        d->conv[i].shape = shape;
        d->conv[i].weight = param_conv(table, path, "weight", OC, C, 4, init_normal(0, 0.02));
        d->conv[i].bias = i == 0 || last ? param_vector(table, path, "bias", OC, init_fan_in(C * 16)) : NO_TENSOR;
        if (i > 0 && !last) {
            snprintf(path, sizeof path, "%smain.%d.", prefix, index + 1);
            d->norm_weight[i] = param_vector(table, path, "weight", OC, init_normal(1, 0.02));
            d->norm_bias[i] = param_vector(table, path, "bias", OC, init_constant(0));
            d->running_mean[i] = param_vector(&d->running_table, path, "running_mean", OC, init_constant(0));
            d->running_var[i] = param_vector(&d->running_table, path, "running_var", OC, init_constant(1));
        }
        C = OC;
    }
}

// Allocates the running statistics: mean 0, variance 1.
void patchgan_allocate_buffers(patchgan_t* d) {
    size_t bytes = d->running_table.total * sizeof(floatS);
    floatS* values = (floatS*)calloc_check(d->running_table.total, sizeof(floatS), "discriminator running statistics");
    for (int i = 0; i < d->running_table.n; i++) {
        const param_t* t = &d->running_table.items[i];
        for (size_t j = 0; j < t->count; j++) values[t->offset + j] = (floatS)t->init.value;
    }
    d->running = (floatS*)device_malloc(bytes, "discriminator running statistics");
    copy_to_device(d->running, values, bytes, 0);
    free(values);
    d->batches_tracked = 0;
}

// Frees the running statistics and their table.
void patchgan_free_buffers(patchgan_t* d) {
    device_free(d->running);
    free(d->running_table.items);
    d->running = NULL;
    memset(&d->running_table, 0, sizeof d->running_table);
}

// Plans the activations of a pass over B images of H x W pixels; B is a multiple of `chunk`.
void patchgan_plan(const patchgan_t* d, patchgan_acts_t* a, plan_t* keep, int B, int H, int W, int chunk) {
    int least = 3 << d->config.layers;
    if (H < least || W < least) {
        fatal("an image of %d x %d is too small for a PatchGAN with %d convolutions of stride 2, which needs %d x %d; "
              "use larger images or fewer layers", H, W, d->config.layers, least, least);
    }
    if (chunk < 1 || B % chunk) fatal("a batch of %d images cannot be cut into chunks of %d; use a divisor", B, chunk);
    a->B = B;
    a->H = H;
    a->W = W;
    a->chunk = chunk;
    for (int i = 0; i < d->n; i++) {
        H = a->h[i] = conv_out_height(H, d->conv[i].shape);
        W = a->w[i] = conv_out_width(W, d->conv[i].shape);
        int OC = d->conv[i].shape.OC;
        size_t n = (size_t)B * H * W * OC;
        plan_floatX(keep, i == d->n - 1 ? &a->logits : &a->act[i], n, "discriminator activation");
        if (i == 0 || i == d->n - 1) continue;
        plan_floatX(keep, &a->conv[i], n, "discriminator convolution");
        plan_floatS(keep, &a->mean[i], (size_t)(B / chunk) * OC, "discriminator mean");
        plan_floatS(keep, &a->rstd[i], (size_t)(B / chunk) * OC, "discriminator rstd");
    }
    a->logits_count = (size_t)H * W;
}

// Plans what lives only during a backward over B images of H x W pixels; passes over real and fake images share it.
void patchgan_plan_work(patchgan_t* d, plan_t* work, int B, int H, int W) {
    size_t largest = 0;
    for (int i = 0; i < d->n; i++) {
        H = conv_out_height(H, d->conv[i].shape);
        W = conv_out_width(W, d->conv[i].shape);
        size_t n = (size_t)B * H * W * d->conv[i].shape.OC;
        if (n > largest) largest = n;
    }
    for (int i = 0; i < 2; i++) plan_floatX(work, &d->grad[i], largest, "discriminator gradient");
}

// a->logits = discriminator(image). The image must stay unchanged until the backward. train: BatchNorm by the
// statistics of each chunk, else by the running ones.
void patchgan_forward(const patchgan_t* d, const params_t* p, patchgan_acts_t* a,
                      const floatX* image, // (B, H, W, 3)
                      int train, stream_t s) {
    int H = a->H, W = a->W;
    const floatX* x = image;
    a->image = image;
    a->train = train;
    for (int i = 0; i < d->n; i++) {
        int last = i == d->n - 1;
        floatX* out = last ? a->logits : i ? a->conv[i] : a->act[0];
        conv_layer_forward(out, x, NULL, &d->conv[i], p, a->B, H, W, i ? ACT_NONE : ACT_LEAKY, s);
        H = a->h[i];
        W = a->w[i];
        if (i > 0 && !last) {
            batchnorm_leaky_forward(a->act[i], a->mean[i], a->rstd[i], a->conv[i], params_at(p, d->norm_weight[i]),
                                    params_at(p, d->norm_bias[i]), d->running + d->running_mean[i],
                                    d->running + d->running_var[i], a->B, H * W, d->conv[i].shape.OC, a->chunk,
                                    BATCHNORM_EPS, train, s);
        }
        x = a->act[i];
    }
}

// The gradient at the output of norm and LeakyReLU i, d->grad[0], becomes that at the convolution before, d->grad[1].
void patchgan_norm_backward(const patchgan_t* d, const params_t* p, const patchgan_acts_t* a, int i,
                            int weight_gradients, stream_t s) {
    floatS* dweight = weight_gradients ? params_grad(p, d->norm_weight[i]) : NULL;
    floatS* dbias = weight_gradients ? params_grad(p, d->norm_bias[i]) : NULL;
    batchnorm_leaky_backward(d->grad[1], dweight, dbias, d->grad[0], a->conv[i], params_at(p, d->norm_weight[i]),
                             params_at(p, d->norm_bias[i]), a->mean[i], a->rstd[i], a->B, a->h[i] * a->w[i],
                             d->conv[i].shape.OC, a->chunk, a->train, s);
}

// From the gradient at the logits: the gradient at the image, or those of the parameters (+=), or both.
void patchgan_backward(const patchgan_t* d, const params_t* p, const patchgan_acts_t* a,
                       floatX* dimage,        // (B, H, W, 3) or NULL
                       const floatX* dlogits, // (B, h, w)
                       int weight_gradients, stream_t s) {
    const floatX* dout = dlogits;
    for (int i = d->n - 1; i > 0; i--) {
        int H = a->h[i - 1], W = a->w[i - 1];
        if (i < d->n - 1) {
            patchgan_norm_backward(d, p, a, i, weight_gradients, s);
            dout = d->grad[1];
        }
        if (weight_gradients) conv_layer_backward_weight(&d->conv[i], p, dout, a->act[i - 1], a->B, H, W, s);
        // The norms apply the LeakyReLU's derivative themselves; the first activation has none and needs the mask.
        const floatX* mask = i == 1 ? a->act[0] : NULL;
        conv_layer_backward_data(d->grad[0], dout, mask, &d->conv[i], p, a->B, H, W, i == 1 ? ACT_LEAKY : ACT_NONE, s);
    }
    if (weight_gradients) conv_layer_backward_weight(&d->conv[0], p, d->grad[0], a->image, a->B, a->H, a->W, s);
    if (dimage) conv_layer_backward_data(dimage, d->grad[0], NULL, &d->conv[0], p, a->B, a->H, a->W, ACT_NONE, s);
}

// Moves the running statistics towards those of a pass in training mode.
void patchgan_update_running(patchgan_t* d, const patchgan_acts_t* a, stream_t s) {
    for (int i = 1; i < d->n - 1; i++) {
        size_t n = (size_t)a->chunk * a->h[i] * a->w[i];
        floatS* mean = d->running + d->running_mean[i];
        floatS* var = d->running + d->running_var[i];
        batchnorm_update_running(mean, var, a->mean[i], a->rstd[i], n, d->conv[i].shape.OC, BATCHNORM_EPS,
                                 BATCHNORM_MOMENTUM, s);
    }
    d->batches_tracked++;
}

// Multiply-accumulates of judging one image of H x W pixels.
uint64_t patchgan_macs(const patchgan_t* d, int H, int W) {
    uint64_t macs = 0;
    for (int i = 0; i < d->n; i++) {
        macs += conv_macs(d->conv[i].shape, H, W);
        H = conv_out_height(H, d->conv[i].shape);
        W = conv_out_width(W, d->conv[i].shape);
    }
    return macs;
}
