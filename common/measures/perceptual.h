// perceptual.h: the LPIPS of images and their reconstructions, to report: the network of lpips.h with its memory, run
// forward only, any number of images up to `batch` at a time.
//
// LightningDiT feeds the decoder's output as it comes, unclamped, beside the original in [-1, 1] (perceptual_distance).
// RAE goes through bytes first (perceptual_distance_bytes). The score of a set is the mean over its images
// (score_mean), which LightningDiT's mean of batch means only is where all batches are full.
//
//     perceptual_open(&p, vgg16_config(), batch, H, W);
//     weights_load_lpips(&p.params, path);             // p.params has the names of the lpips package
//     perceptual_distance(&p, distances, xhat, x, n, stream);
//
// In the GPU build in bf16 activations have 8 bits: report from PRECISION=FP32, which agrees with PyTorch to 1e-6.
// Look next at common/models/lpips.h.
#pragma once
// defines: lpips_t, lpips_register, lpips_plan_forward, lpips_forward
#include "common/models/lpips.h"

typedef struct {
    lpips_t lpips;
    params_t params;
    plan_t plan;
    int batch, H, W;
    floatS* distance;  // (batch)
    floatX* images[2]; // (batch, H, W, 3) from bytes
    uint8_t* bytes;    // (batch, H, W, 3)
} perceptual_t;

// The weights are to be filled in afterwards.
void perceptual_open(perceptual_t* p, lpips_config_t config, int batch, int H, int W) {
    size_t values = (size_t)batch * H * W * 3;
    memset(p, 0, sizeof *p);
    p->batch = batch;
    p->H = H;
    p->W = W;
    p->lpips.config = config;
    lpips_register(&p->lpips, &p->params.table, "");
    params_allocate(&p->params, p->params.table.total, 0, "LPIPS's parameters");
    lpips_plan_forward(&p->lpips, &p->plan, batch, H, W);
    plan_floatS(&p->plan, &p->distance, batch, "LPIPS");
    for (int i = 0; i < 2; i++) plan_floatX(&p->plan, &p->images[i], values, "LPIPS's images");
    plan_uint8(&p->plan, &p->bytes, values, "LPIPS's images");
    plan_allocate(&p->plan, "LPIPS");
}

void perceptual_close(perceptual_t* p) {
    params_free(&p->params);
    plan_free(&p->plan);
    memset(p, 0, sizeof *p);
}

// LPIPS of each of n <= batch pairs on the device, in [-1, 1] or beyond.
void perceptual_distance(perceptual_t* p, double* distance, // (n) host
                         const floatX* xhat,                // (n, H, W, 3)
                         const floatX* x,                   // (n, H, W, 3)
                         int n, stream_t s) {
    assert(n >= 1 && n <= p->batch);
    floatS* host = (floatS*)malloc_check(n * sizeof(floatS), "LPIPS");
    p->lpips.xhat.B = p->lpips.x.B = n;
    lpips_forward(&p->lpips, &p->params, p->distance, xhat, x, s);
    copy_to_host(host, p->distance, n * sizeof(floatS), s);
    stream_wait(s);
    for (int b = 0; b < n; b++) distance[b] = host[b];
    free(host);
}

// The same of bytes on the host.
void perceptual_distance_bytes(perceptual_t* p, double* distance,       // (n) host
                               const uint8_t* xhat, const uint8_t* x,   // (n, H, W, 3) host
                               int n, stream_t s) {
    assert(n >= 1 && n <= p->batch);
    size_t values = (size_t)n * p->H * p->W * 3;
    for (int i = 0; i < 2; i++) {
        copy_to_device(p->bytes, i ? x : xhat, values, s);
        image_from_bytes(p->images[i], p->bytes, values, s);
    }
    stream_wait(s);
    perceptual_distance(p, distance, p->images[0], p->images[1], n, s);
}
