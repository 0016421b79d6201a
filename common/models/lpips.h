// lpips.h: the perceptual distance of two images: VGG16's convolutions, trainable or frozen, and LPIPS on top of them.
//
// VGG16 (Simonyan & Zisserman 2015) is five slices of two or three convolutions 3x3 with ReLU; before each slice but
// the first the map is halved by a 2x2 maximum. Each slice's last output, before that maximum, is a tap.
//
// LPIPS (Zhang et al. 2018; lpips package, version 0.1) compares two images at the taps. With f of xhat and g of x,
// and u, v the same scaled to length 1 over the channels of a position:
//
//   distance = sum over taps of  mean over positions of  sum_c w_c (u_c - v_c)^2
//
// The heads w (lin0 ...) are positive weights, one a channel; VGG and heads are frozen. The images come in [-1, 1] and
// are shifted and scaled to the statistics of ImageNet first. Only xhat gets a gradient, so for x nothing but the taps
// is kept. The dropout in front of the heads is left out, as in evaluation.
//
// Backward, from the top slice to the first: the tap's own gradient and the one that comes from the slice above through
// the maximum meet at the tap, the ReLU masks the sum, and the convolutions carry it down. Everywhere the ReLU's
// derivative is applied where the gradient is written (see conv2d_backward_data).
//
// The same convolutions, all activations kept, are trained as a classifier for the miniature world (dev/pretrain.cu).
// Its head reads `features`, the last slice behind one more maximum, as in VGG itself.
//
// Full size: 14,714,688 + 1,472 parameters, 20.04 G multiply-accumulates for an image of 256 x 256.
// Names: net.slice1.0.weight ... with torchvision's index, lin0.model.1.weight. Look next at
// common/training/tokenizer.h.
#pragma once
// defines: safetensors_t, st_tensor_t
#include "common/files/safetensors.h"
// defines: conv_layer_t, conv_same, conv_layer_forward, conv_layer_backward_weight, conv_layer_backward_data, conv_macs
#include "common/models/blocks.h"

enum { VGG_SLICES = 5, VGG_CONVS = 3 }; // at most; convolutions of one slice

typedef struct {
    int slices;
    int convs[VGG_SLICES];    // convolutions of each slice
    int channels[VGG_SLICES]; // their output channels
} vgg_config_t;
typedef vgg_config_t lpips_config_t; // LPIPS adds nothing that could be chosen

static inline vgg_config_t vgg16_config(void) {
    vgg_config_t c = {5, {2, 2, 3, 3, 3}, {64, 128, 256, 512, 512}};
    return c;
}

// The configuration of a file with the names of the lpips package ("net.slice1.0.weight"), from its shapes.
static inline vgg_config_t vgg_config_of_file(const safetensors_t* file) {
    vgg_config_t c;
    memset(&c, 0, sizeof c);
    for (int i = 0; i < VGG_SLICES; i++) {
        char start[32];
        snprintf(start, sizeof start, "net.slice%d.", i + 1);
        for (int k = 0; k < file->n; k++) {
            const st_tensor_t* t = &file->tensors[k];
            if (strncmp(t->name, start, strlen(start)) || t->ndim != 4) continue;
            c.convs[i]++;
            c.channels[i] = (int)t->shape[0];
        }
        if (!c.convs[i]) break;
        c.slices++;
    }
    return c;
}

typedef struct {
    vgg_config_t config;
    conv_layer_t conv[VGG_SLICES][VGG_CONVS];
    floatX* spare[2]; // (B, h, w, C) of the largest: activations that are not kept, and gradients
} vgg_t;

// What is kept of one pass. A NULL below means that it is not kept.
typedef enum {
    VGG_KEEP_TAPS,    // the taps: to compare with
    VGG_KEEP_OUTPUTS, // all outputs of convolutions: for the gradient of the input
    VGG_KEEP_ALL,     // the maxima too: for the gradients of the weights
} vgg_keep_t;

typedef struct {
    int B;
    int h[VGG_SLICES];                    // size of each slice
    int w[VGG_SLICES];
    vgg_keep_t kept;
    const floatX* image;                  // (B, H, W, 3) input of the last forward
    floatX* pooled[VGG_SLICES];           // (B, h, w, C of the slice before) input of slices 1 and up
    floatX* out[VGG_SLICES][VGG_CONVS];   // (B, h, w, C) behind the ReLU
    floatX* features;                     // (B, h/2, w/2, C) of the last slice behind a maximum
} vgg_acts_t;

// ---------------------------------------------------------------------------------------------------------------------
// The convolutions

static inline floatX* vgg_tap(const vgg_t* v, const vgg_acts_t* a, int slice) {
    return a->out[slice][v->config.convs[slice] - 1];
}
static inline size_t vgg_tap_positions(const vgg_acts_t* a, int slice) { return (size_t)a->h[slice] * a->w[slice]; }

// Registers the tensors of v->config behind `prefix`, initialised as torchvision does.
void vgg_register(vgg_t* v, param_table_t* table, const char* prefix) {
    const vgg_config_t* c = &v->config;
    int C = 3, index = 0; // torchvision counts ReLUs and maxima too
    if (c->slices < 1 || c->slices > VGG_SLICES) fatal("a VGG of %d slices; choose 1 to %d", c->slices, VGG_SLICES);
    for (int i = 0; i < c->slices; i++) {
        int convs = c->convs[i], OC = c->channels[i];
        if (convs < 1 || convs > VGG_CONVS) fatal("a VGG slice of %d convolutions; choose 1 to %d", convs, VGG_CONVS);
        for (int k = 0; k < convs; k++) {
            char path[120];
            snprintf(path, sizeof path, "%snet.slice%d.%d.", prefix, i + 1, index);
            v->conv[i][k].shape = conv_same(C, OC, 3);
            v->conv[i][k].weight = param_conv(table, path, "weight", OC, C, 3, init_normal(0, sqrt(2.0 / (9 * OC))));
            v->conv[i][k].bias = param_vector(table, path, "bias", OC, init_constant(0));
            C = OC;
            index += 2;
        }
        index++;
    }
}

// Plans what a pass over B images of H x W pixels keeps.
void vgg_plan(const vgg_t* v, vgg_acts_t* a, plan_t* plan, int B, int H, int W, vgg_keep_t kept) {
    const vgg_config_t* c = &v->config;
    int least = 1 << (c->slices - (kept == VGG_KEEP_ALL ? 0 : 1));
    if (H < least || W < least) {
        fatal("an image of %d x %d is too small for a VGG with %d slices, which needs %d x %d; use larger images or "
              "fewer slices", H, W, c->slices, least, least);
    }
    memset(a, 0, sizeof *a);
    a->B = B;
    a->kept = kept;
    for (int i = 0; i < c->slices; i++) {
        a->h[i] = H >> i;
        a->w[i] = W >> i;
        size_t positions = B * vgg_tap_positions(a, i);
        if (i && kept == VGG_KEEP_ALL) plan_floatX(plan, &a->pooled[i], positions * c->channels[i - 1], "VGG maximum");
        for (int k = 0; k < c->convs[i]; k++) {
            if (kept == VGG_KEEP_TAPS && k < c->convs[i] - 1) continue;
            plan_floatX(plan, &a->out[i][k], positions * c->channels[i], "VGG output");
        }
    }
    size_t last = (size_t)B * (H >> c->slices) * (W >> c->slices) * c->channels[c->slices - 1];
    if (kept == VGG_KEEP_ALL) plan_floatX(plan, &a->features, last, "VGG features");
}

// Plans what lives only while the model runs, the same for all passes over B images of H x W pixels.
void vgg_plan_work(vgg_t* v, plan_t* work, int B, int H, int W) {
    size_t largest = (size_t)B * H * W * 3;
    for (int i = 0; i < v->config.slices; i++) {
        size_t in = i ? v->config.channels[i - 1] : 0, out = v->config.channels[i];
        size_t n = (size_t)B * (H >> i) * (W >> i) * (in > out ? in : out);
        if (n > largest) largest = n;
    }
    for (int i = 0; i < 2; i++) plan_floatX(work, &v->spare[i], largest, "VGG passing");
}

// The spare buffer that x does not lie in.
static inline floatX* vgg_other(const vgg_t* v, const floatX* x) {
    return x == v->spare[0] ? v->spare[1] : v->spare[0];
}

// All slices. The image must stay unchanged until a backward that forms weight gradients.
void vgg_forward(const vgg_t* v, const params_t* p, vgg_acts_t* a,
                 const floatX* image, // (B, H, W, 3), scaled; may lie in spare[0]
                 stream_t s) {
    const vgg_config_t* c = &v->config;
    const floatX* x = image;
    a->image = image;
    for (int i = 0; i < c->slices; i++) {
        if (i) {
            floatX* pooled = a->pooled[i] ? a->pooled[i] : vgg_other(v, x);
            maxpool_forward(pooled, x, a->B, a->h[i - 1], a->w[i - 1], c->channels[i - 1], s);
            x = pooled;
        }
        for (int k = 0; k < c->convs[i]; k++) {
            floatX* out = a->out[i][k] ? a->out[i][k] : vgg_other(v, x);
            conv_layer_forward(out, x, NULL, &v->conv[i][k], p, a->B, a->h[i], a->w[i], ACT_RELU, s);
            x = out;
        }
    }
    int last = c->slices - 1;
    if (a->features) maxpool_forward(a->features, x, a->B, a->h[last], a->w[last], c->channels[last], s);
}

// One slice backwards, from the gradient `d` at its tap before the ReLU, which lies in a spare buffer. Returns where
// the gradient at the slice's input is: a spare buffer; for the first slice dimage, and NULL where that is not wanted.
// After a pass that kept everything the weight gradients accumulate.
const floatX* vgg_slice_backward(const vgg_t* v, const params_t* p, const vgg_acts_t* a, int slice, const floatX* d,
                                 floatX* dimage, // (B, H, W, 3) or NULL
                                 stream_t s) {
    int B = a->B, H = a->h[slice], W = a->w[slice];
    for (int k = v->config.convs[slice] - 1; k >= 0; k--) {
        const conv_layer_t* conv = &v->conv[slice][k];
        const floatX* x = k ? a->out[slice][k - 1] : slice ? a->pooled[slice] : a->image;
        if (a->kept == VGG_KEEP_ALL) conv_layer_backward_weight(conv, p, d, x, B, H, W, s);
        floatX* dx = slice || k ? vgg_other(v, d) : dimage;
        if (dx) conv_layer_backward_data(dx, d, k ? x : NULL, conv, p, B, H, W, k ? ACT_RELU : ACT_NONE, s);
        d = dx;
    }
    return d;
}

// The weight gradients (+=) of a pass that kept everything, from the gradient at its features.
void vgg_backward(const vgg_t* v, const params_t* p, const vgg_acts_t* a,
                  const floatX* dfeatures, // (B, h/2, w/2, C)
                  stream_t s) {
    const floatX* above = dfeatures;
    assert(a->kept == VGG_KEEP_ALL);
    for (int i = v->config.slices - 1; i >= 0; i--) {
        floatX* d = vgg_other(v, above);
        maxpool_relu_backward(d, above, NULL, vgg_tap(v, a, i), a->B, a->h[i], a->w[i], v->config.channels[i], s);
        above = vgg_slice_backward(v, p, a, i, d, NULL, s);
    }
}

// Multiply-accumulates of one forward of an image of H x W pixels.
uint64_t vgg_macs(const vgg_t* v, int H, int W) {
    uint64_t macs = 0;
    for (int i = 0; i < v->config.slices; i++) {
        for (int k = 0; k < v->config.convs[i]; k++) macs += conv_macs(v->conv[i][k].shape, H >> i, W >> i);
    }
    return macs;
}

// ---------------------------------------------------------------------------------------------------------------------
// LPIPS

typedef struct {
    lpips_config_t config;
    vgg_t vgg;
    size_t head[VGG_SLICES];  // offsets of lin0.model.1.weight, ...
    channel_affine_t scaling; // from an image in [-1, 1] to VGG's input
    vgg_acts_t xhat, x;
} lpips_t;

// (image - shift) / scale of the lpips package, as one affine map.
static inline channel_affine_t lpips_scaling(void) {
    const double shift[3] = {-0.030, -0.088, -0.188}, scale[3] = {0.458, 0.448, 0.450};
    channel_affine_t affine;
    for (int c = 0; c < 3; c++) {
        affine.scale[c] = 1 / scale[c];
        affine.shift[c] = -shift[c] / scale[c];
    }
    return affine;
}

// Registers the tensors of m->config behind `prefix`. Heads of 1 compare the features without weighting.
void lpips_register(lpips_t* m, param_table_t* table, const char* prefix) {
    m->vgg.config = m->config;
    m->scaling = lpips_scaling();
    vgg_register(&m->vgg, table, prefix);
    for (int i = 0; i < m->config.slices; i++) {
        char path[120];
        snprintf(path, sizeof path, "%slin%d.model.1.", prefix, i);
        m->head[i] = param_conv(table, path, "weight", 1, m->config.channels[i], 1, init_constant(1));
    }
}

// Plans all that lies between an lpips_forward and its lpips_backward, for B images of H x W pixels.
void lpips_plan(lpips_t* m, plan_t* plan, int B, int H, int W) {
    vgg_plan(&m->vgg, &m->xhat, plan, B, H, W, VGG_KEEP_OUTPUTS);
    vgg_plan(&m->vgg, &m->x, plan, B, H, W, VGG_KEEP_TAPS);
    vgg_plan_work(&m->vgg, plan, B, H, W);
}

// Plans an lpips_forward alone, with no backward to follow.
void lpips_plan_forward(lpips_t* m, plan_t* plan, int B, int H, int W) {
    vgg_plan(&m->vgg, &m->xhat, plan, B, H, W, VGG_KEEP_TAPS);
    vgg_plan(&m->vgg, &m->x, plan, B, H, W, VGG_KEEP_TAPS);
    vgg_plan_work(&m->vgg, plan, B, H, W);
}

// The taps of one of the two images.
void lpips_features(lpips_t* m, const params_t* p, vgg_acts_t* a,
                    const floatX* image, // (B, H, W, 3) in [-1, 1]
                    stream_t s) {
    int H = a->h[0], W = a->w[0];
    resize_bilinear_forward(m->vgg.spare[0], image, m->scaling, a->B, H, W, H, W, s);
    vgg_forward(&m->vgg, p, a, m->vgg.spare[0], s);
}

// distance_b = LPIPS(xhat_b, x_b). x NULL: the reference images are those of the call before.
void lpips_forward(lpips_t* m, const params_t* p,
                   floatS* distance,   // (B)
                   const floatX* xhat, // (B, H, W, 3)
                   const floatX* x,    // (B, H, W, 3) or NULL
                   stream_t s) {
    if (x) lpips_features(m, p, &m->x, x, s);
    lpips_features(m, p, &m->xhat, xhat, s);
    device_zero(distance, m->x.B * sizeof *distance, s);
    for (int i = 0; i < m->config.slices; i++) {
        lpips_tap_forward(distance, vgg_tap(&m->vgg, &m->xhat, i), vgg_tap(&m->vgg, &m->x, i), params_at(p, m->head[i]),
                          m->x.B, (int)vgg_tap_positions(&m->x, i), m->config.channels[i], s);
    }
}

// dscaled = scale * gradient of the sum of all distances, at VGG's scaled input of xhat. l1_backward takes it through
// the scaling, with m->scaling.
void lpips_backward(lpips_t* m, const params_t* p,
                    floatX* dscaled, // (B, H, W, 3)
                    double scale, stream_t s) {
    const vgg_t* v = &m->vgg;
    const vgg_acts_t* a = &m->xhat;
    const floatX* above = NULL;
    for (int i = m->config.slices - 1; i >= 0; i--) {
        const floatX* f = vgg_tap(v, a, i);
        int positions = (int)vgg_tap_positions(a, i), C = m->config.channels[i];
        floatX* d = vgg_other(v, above);
        lpips_tap_backward(d, f, vgg_tap(v, &m->x, i), params_at(p, m->head[i]), scale, a->B, positions, C, s);
        if (above) maxpool_relu_backward(d, above, d, f, a->B, a->h[i], a->w[i], C, s);
        above = vgg_slice_backward(v, p, a, i, d, dscaled, s);
    }
}
