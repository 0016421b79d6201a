// complexity.h: what encoders and decoder cost to run, as Tables 7 and 8 of the AlignTok paper ask: parameters, GFLOPS,
// latency, and peak memory at 256, 512 and 1024 pixels, in batches of 1, 4 and 8.
//
// The paper's GFLOPS are those of a counter of PyTorch's operators. It takes each multiply-accumulate of a convolution
// or a matrix product once, 5 for each element that LayerNorm or GroupNorm see, and nothing for activations. The ViT's
// attention is one fused operator, of which it knows nothing; the CNNs' is two matrix products, which it counts. The
// ViT's work is thus more than its figure: by 4% at 256 pixels, by two thirds at 1024 (vit_macs has all of it).
//
// A network is made from a configuration of `train_tokenizer`; the models' tables give the counts, and the forward alone
// is planned and run. Look next at dev/bench/bench_models.cu, which calls this.
#pragma once
// defines: adapter_t, adapter_register, adapter_plan, adapter_forward, adapter_macs
#include "common/models/adapter.h"
// defines: cnn_encoder_t, cnn_encoder_register, cnn_encoder_plan_forward, cnn_encoder_forward, cnn_encoder_macs
#include "common/models/cnn_encoder.h"
// defines: decoder_t, decoder_register, decoder_plan_forward, decoder_forward, decoder_macs
#include "common/models/decoder.h"
// defines: vit_t, vit_register, vit_plan, vit_plan_work, vit_forward, vit_macs
#include "common/models/vit.h"
// defines: tokenizer_config_t, tokenizer_factor
#include "common/training/tokenizer.h"
// defines: bench_measure, bench_fill, bench_fits, bench_peak_forget, bench_peak
#include "dev/bench/bench.h"

typedef enum {
    NETWORK_VIT,         // the encoder alone
    NETWORK_ALIGNED,     // the encoder and its adapter
    NETWORK_CNN_ENCODER, // the autoencoder's, as in VA-VAE
    NETWORK_DECODER
} network_kind_t;

typedef struct {
    network_kind_t kind;
    int factor; // pixels of a latent position each way
    params_t params;
    plan_t plan;
    vit_t vit;
    adapter_t adapter;
    cnn_encoder_t cnn;
    decoder_t decoder;
    floatX* input; // (B, H, W, 3) images, or (B, H / factor, W / factor, z_channels) latents
    size_t input_values;
} network_t;

static inline void network_register(network_t* n, network_kind_t kind, const tokenizer_config_t* c) {
    param_table_t* table = &n->params.table;
    memset(n, 0, sizeof *n);
    n->kind = kind;
    n->factor = tokenizer_factor(c);
    n->vit.config = c->encoder;
    n->adapter.in = c->encoder.dim;
    n->adapter.hidden = c->adapter_hidden;
    n->adapter.out = c->decoder.z_channels;
    n->cnn.config = n->decoder.config = c->decoder;
    if (kind == NETWORK_ALIGNED) adapter_register(&n->adapter, table, "");
    switch (kind) {
    case NETWORK_ALIGNED:
    case NETWORK_VIT: vit_register(&n->vit, table, ""); break;
    case NETWORK_CNN_ENCODER: cnn_encoder_register(&n->cnn, table, ""); break;
    case NETWORK_DECODER: decoder_register(&n->decoder, table, ""); break;
    }
}

// Plans the forward of B images of `side` pixels each way.
static inline void network_plan(network_t* n, int B, int side) {
    int latent = side / n->factor;
    size_t latents = (size_t)B * latent * latent;
    n->input_values = (size_t)B * side * side * 3;
    if (n->kind == NETWORK_ALIGNED) adapter_plan(&n->adapter, &n->plan, latents);
    switch (n->kind) {
    case NETWORK_ALIGNED:
    case NETWORK_VIT:
        vit_plan(&n->vit, &n->plan, B, side, side, n->factor, 0);
        vit_plan_work(&n->vit, &n->plan);
        break;
    case NETWORK_CNN_ENCODER: cnn_encoder_plan_forward(&n->cnn, &n->plan, &n->plan, B, side, side); break;
    case NETWORK_DECODER:
        n->input_values = latents * n->decoder.config.z_channels;
        decoder_plan_forward(&n->decoder, &n->plan, &n->plan, B, latent, latent);
        break;
    }
    plan_floatX(&n->plan, &n->input, n->input_values, "input");
}

static inline size_t network_bytes(const network_t* n) {
    return plan_bytes(&n->plan) + params_bytes(&n->params.table, n->params.table.total, 0, 1);
}

static inline void network_forward(void* network, stream_t s) {
    network_t* n = (network_t*)network;
    switch (n->kind) {
    case NETWORK_VIT: vit_forward(&n->vit, &n->params, n->input, s); break;
    case NETWORK_ALIGNED:
        vit_forward(&n->vit, &n->params, n->input, s);
        adapter_forward(&n->adapter, &n->params, n->vit.features, s);
        break;
    case NETWORK_CNN_ENCODER: cnn_encoder_forward(&n->cnn, &n->params, n->input, s); break;
    case NETWORK_DECODER: decoder_forward(&n->decoder, &n->params, n->input, s); break;
    }
}

// Allocates what was planned and times the forward on random numbers. bench_peak() is then the forward's.
static inline bench_time_t network_measure(network_t* n, int runs, stream_t s) {
    params_allocate(&n->params, n->params.table.total, 0, "the network's parameters");
    plan_allocate(&n->plan, "activations");
    bench_fill(n->params.values, n->params.table.total, 0.05, s);
    bench_fill(n->input, n->input_values, 1, s);
    bench_peak_forget();
    return bench_measure(network_forward, n, runs, 1, s);
}

static inline void network_free(network_t* n) {
    params_free(&n->params);
    plan_free(&n->plan);
}

// ---------------------------------------------------------------------------------------------------------------------
// Counts of one image of `side` pixels each way

// Multiply-accumulates.
static inline double network_macs(const network_t* n, int side) {
    double latents = (double)(side / n->factor) * (side / n->factor);
    switch (n->kind) {
    case NETWORK_VIT: return (double)vit_macs(&n->vit, side, side, n->factor);
    case NETWORK_ALIGNED:
        return (double)vit_macs(&n->vit, side, side, n->factor) + latents * (double)adapter_macs(&n->adapter);
    case NETWORK_CNN_ENCODER: return (double)cnn_encoder_macs(&n->cnn, side, side);
    case NETWORK_DECODER: break;
    }
    return (double)decoder_macs(&n->decoder, side, side);
}

// Elements that the GroupNorms of a stack see when a map of `side` each way enters, and those of `last` behind it.
static inline double stack_normalised(const layer_stack_t* stack, const groupnorm_layer_t* last, int side) {
    double sum = 0;
    for (int i = 0; i < stack->n; i++) {
        const layer_t* layer = &stack->layers[i];
        double positions = (double)side * side;
        if (layer->kind == LAYER_RES) sum += positions * (layer->res.norm1.C + layer->res.norm2.C);
        if (layer->kind == LAYER_ATTN) sum += positions * layer->attn.norm.C;
        side = layer_out_size(layer, side);
    }
    return sum + (double)side * side * last->C;
}

// As the paper counts them.
static inline double network_paper_flops(const network_t* n, int side) {
    const vit_config_t* c = &n->vit.config;
    double macs = network_macs(n, side);
    if (n->kind == NETWORK_CNN_ENCODER) return macs + 5 * stack_normalised(&n->cnn.stack, &n->cnn.norm_out, side);
    if (n->kind == NETWORK_DECODER) {
        return macs + 5 * stack_normalised(&n->decoder.stack, &n->decoder.norm_out, side / n->factor);
    }
    double T = (double)(side / n->factor) * (side / n->factor) + c->cls + c->registers;
    double attention = 2 * T * T * c->dim * c->depth, normalised = T * c->dim * (2 * c->depth + 1);
    return macs - attention + 5 * normalised;
}

// ---------------------------------------------------------------------------------------------------------------------
// The tables

typedef struct {
    const char* title; // of a table that begins here, or NULL
    const char *name, *key;
    network_kind_t kind;
} complexity_row_t;

static const complexity_row_t complexity_rows[] = {
    {"encoder", "DINOv2-L and adapter", "aligned_encoder", NETWORK_ALIGNED},
    {NULL, "CNN, as VA-VAE's", "cnn_encoder", NETWORK_CNN_ENCODER},
    {"decoder", "CNN, of both", "decoder", NETWORK_DECODER},
};
enum { COMPLEXITY_ROWS = sizeof complexity_rows / sizeof complexity_rows[0] };

typedef struct {
    FILE* json; // or NULL
    const int *pixels, *batches;
    int n_pixels, n_batches, runs;
    stream_t stream;
} complexity_t;

static inline void complexity_print_head(const complexity_t* t, const char* title) {
    printf("\n%-24s %10s %7s %9s", title, "parameters", "pixels", "GFLOPS");
    for (int i = 0; i < t->n_batches; i++) printf("   batch %-4d ms      GiB", t->batches[i]);
    printf("\n");
}

// One cell: latency of a batch and peak memory, or what it would take.
static inline void complexity_measure(const complexity_t* t, const complexity_row_t* row, network_t* n, int side,
                                      int B) {
    const double gib = 1073741824.0;
    network_plan(n, B, side);
    size_t bytes = network_bytes(n);
    if (!bench_fits(bytes)) {
        char text[32];
        snprintf(text, sizeof text, "wants %.1f GiB", bytes / gib);
        printf(" %21s", text);
        plan_free(&n->plan);
        return;
    }
    bench_time_t time = network_measure(n, t->runs, t->stream);
    double peak = bench_peak() / gib;
    printf(" %12.2f %8.2f", 1e3 * time.seconds, peak);
    fflush(stdout);
    if (t->json) {
        fprintf(t->json, "{\"kind\": \"complexity\", \"name\": \"%s\", \"pixels\": %d, \"images\": %d, "
                "\"parameters\": %zu, \"paper_gflops\": %.4f, \"gmac\": %.4f, \"seconds\": %.6f, "
                "\"best_seconds\": %.6f, \"planned_gib\": %.4f, \"peak_gib\": %.4f}\n", row->key, side, B,
                param_count(&n->params.table, 0, n->params.table.total), 1e-9 * network_paper_flops(n, side),
                1e-9 * network_macs(n, side), time.seconds, time.best_seconds, bytes / gib, peak);
        fflush(t->json);
    }
}

static inline void complexity_print(const complexity_t* t, const tokenizer_config_t* config) {
    static network_t n;
    for (int r = 0; r < COMPLEXITY_ROWS; r++) {
        const complexity_row_t* row = &complexity_rows[r];
        if (row->title) complexity_print_head(t, row->title);
        for (int i = 0; i < t->n_pixels; i++) {
            int side = t->pixels[i];
            for (int k = 0; k < t->n_batches; k++) {
                network_register(&n, row->kind, config);
                if (!k) {
                    printf("%-24s %8.2f M %7d %9.4g", row->name,
                           1e-6 * (double)param_count(&n.params.table, 0, n.params.table.total), side,
                           1e-9 * network_paper_flops(&n, side));
                }
                complexity_measure(t, row, &n, side, t->batches[k]);
                network_free(&n);
            }
            printf("\n");
        }
    }
    printf("GFLOPS as the paper counts them: of an image, multiply-accumulates once and 5 for each normalised element, "
           "without the ViT's attention.\nms: median of %d runs of a batch. GiB: the most that was %s.\n", t->runs,
           BENCH_IS_GPU ? "in use on the device, what CUDA itself takes included" : "resident");
}
