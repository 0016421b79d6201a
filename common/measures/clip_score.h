// clip_score.h: how well pictures suit their captions, by one network of CLIP's kind at a time: both become vectors of
// length 1, and their product, the cosine, is what every such score is made of.
//
//     CLIP score        100 max(cosine, 0), the mean over pictures (Hessel et al. 2021, torchmetrics); of any CLIP
//     HPSv2             the cosine of an H/14 that learnt people's choices (Wu et al. 2023)
//     PickScore         exp(logit_scale) cosine of another such H/14 (Kirstain et al. 2023). Of two systems' pictures
//                       of one prompt, softmax of both scores is how probably each would be chosen
//     aesthetic score   w . f + b of the picture's vector f alone, by OpenAI's L/14 (Schuhmann et al. 2022). Published
//                       are five linear layers without anything between them: they are folded into one
//
// A caption of more than 77 numbers is cut, and counted.
// Look next at common/measures/clip_input.h, a picture's way to the network, and eval_captions.h, the user.
#pragma once
// defines: clip_text_t, clip_image_t, clip_load_text, clip_load_image, clip_config_of_file, clip_scale_of_file
#include "common/models/text_weights.h"
// defines: clip_bpe_t, clip_bpe_open, clip_bpe_encode, CLIP_LENGTH
#include "common/text/clip_bpe.h"

// It must stay where it is: memory plans point into it.
typedef struct {
    const char* path;
    const clip_config_t* config;
    double scale;    // exp(logit_scale)
    int batch, side; // pictures at a time; their pixels a side
    size_t cut;      // captions
    clip_bpe_t bpe;
    clip_text_t text;
    clip_image_t image;
    params_t params;
    plan_t plan;
    int* ids;        // (batch, CLIP_LENGTH + 1)
    floatX* pixels;  // (batch, side, side, 3) on the device
} clip_score_t;

static inline void clip_score_open(clip_score_t* c, const char* path, const char* vocabulary, int batch) {
    memset(c, 0, sizeof *c);
    c->path = path;
    c->config = clip_config_of_file(path);
    c->scale = clip_scale_of_file(path);
    c->batch = batch;
    c->text.project = 1;
    clip_bpe_open(&c->bpe, vocabulary);
    if (c->bpe.end + 1 != c->config->vocabulary) {
        fatal("-clip_vocabulary %s has %d numbers, and %s has rows for %d; give CLIP's own whole vocabulary",
              vocabulary, c->bpe.end + 1, path, c->config->vocabulary);
    }
    clip_register_text(&c->text, c->config, &c->params.table, "text.");
    clip_register_image(&c->image, c->config, &c->params.table, "image.");
    c->side = clip_image_side(&c->image);
    params_allocate(&c->params, c->params.table.total, 0, "CLIP's weights");
    clip_plan_text(&c->text, &c->plan, batch, CLIP_LENGTH);
    clip_plan_image(&c->image, &c->plan, batch);
    plan_allocate(&c->plan, "CLIP's activations");
    clip_load_text(&c->params, "text.", path);
    clip_load_image(&c->params, "image.", path);
    c->ids = (int*)malloc_check((size_t)batch * (CLIP_LENGTH + 1) * sizeof(int), "captions");
    c->pixels = (floatX*)device_malloc((size_t)batch * c->side * c->side * 3 * sizeof(floatX), "pictures");
}

static inline void clip_score_close(clip_score_t* c) {
    clip_bpe_close(&c->bpe);
    params_free(&c->params);
    plan_free(&c->plan);
    device_free(c->pixels);
    free(c->ids);
    memset(c, 0, sizeof *c);
}

// Vectors from the device, each divided by its length. Returns how many of them, from the first on, are finite.
static inline int clip_score_take(const clip_score_t* c, floatS* vectors, const floatS* projected, int n, stream_t s) {
    int E = c->config->embed;
    stream_wait(s);
    copy_to_host(vectors, projected, (size_t)n * E * sizeof(floatS), 0);
    for (int i = 0; i < n; i++) {
        floatS* v = vectors + (size_t)i * E;
        double square = 0;
        for (int k = 0; k < E; k++) square += (double)v[k] * v[k];
        if (!isfinite(square) || square == 0) return i;
        for (int k = 0; k < E; k++) v[k] = (floatS)(v[k] / sqrt(square));
    }
    return n;
}

// The vectors of n pictures; returns how many, from the first on, have one.
static inline int clip_score_images(clip_score_t* c, floatS* vectors, // (n, embed)
                                    const floatS* pixels,             // (n, side, side, 3) in [-1, 1]
                                    int n, stream_t s) {
    assert(n > 0 && n <= c->batch);
    copy_floats_to_device(c->pixels, pixels, (size_t)n * c->side * c->side * 3);
    c->image.blocks.B = n;
    clip_image_forward(&c->image, &c->params, c->pixels, s);
    return clip_score_take(c, vectors, c->image.projected, n, s);
}

// The vectors of n captions; returns how many, from the first on, have one.
static inline int clip_score_texts(clip_score_t* c, floatS* vectors, // (n, embed)
                                   const char* const* captions, int n, stream_t s) {
    int longest = 1;
    assert(n > 0 && n <= c->batch);
    for (int i = 0; i < n; i++) {
        int* ids = c->ids + i * (CLIP_LENGTH + 1); // room for one number too many tells whether a caption is cut
        int count = clip_bpe_encode(&c->bpe, captions[i], ids, CLIP_LENGTH + 1);
        ids[CLIP_LENGTH - 1] = c->bpe.end;
        c->cut += count > CLIP_LENGTH;
        if (count > CLIP_LENGTH) count = CLIP_LENGTH;
        longest = count > longest ? count : longest;
    }
    for (int i = 0; i < n; i++) memmove(c->ids + i * longest, c->ids + i * (CLIP_LENGTH + 1), longest * sizeof(int));
    c->text.blocks.B = n;
    c->text.blocks.T = longest;
    clip_text_forward(&c->text, &c->params, c->ids, s);
    return clip_score_take(c, vectors, c->text.projected, n, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// The aesthetic score

typedef struct {
    int width;
    double* weight; // (width)
    double bias;
} aesthetic_t;

static inline const st_tensor_t* aesthetic_layer(const safetensors_t* f, int layer, const char* what) {
    char name[40];
    snprintf(name, sizeof name, "layers.%d.%s", layer, what);
    return safetensors_find(f, name);
}

// Folds the file's layers, from the last to the first: w <- W^T w, b <- b + w . bias.
static inline void aesthetic_open(aesthetic_t* a, const char* path, int width) {
    enum { LAYERS = 64 };
    safetensors_t f;
    memset(a, 0, sizeof *a);
    tensor_file_open_or_die(&f, path);
    a->width = 1;
    a->weight = (double*)malloc_check(sizeof(double), "the aesthetic score's weights");
    a->weight[0] = 1;
    int found = 0;
    for (int layer = LAYERS; layer >= 0; layer--) {
        const st_tensor_t *w = aesthetic_layer(&f, layer, "weight"), *b = aesthetic_layer(&f, layer, "bias");
        if (!w) continue;
        if (w->ndim != 2 || (int)w->shape[0] != a->width || !b || (int)b->numel != a->width || w->shape[1] > 1 << 20) {
            fatal("%s: layers.%d is no linear layer to %d values; give sac+logos+ava1-l14-linearMSE.pth", path, layer,
                  a->width);
        }
        int in = (int)w->shape[1];
        floatS* values = (floatS*)malloc_check((w->numel + a->width) * sizeof(floatS), "a layer");
        double* folded = (double*)calloc_check((size_t)in, sizeof(double), "the aesthetic score's weights");
        safetensors_read(w, values);
        safetensors_read(b, values + w->numel);
        for (int o = 0; o < a->width; o++) {
            for (int i = 0; i < in; i++) folded[i] += a->weight[o] * values[(size_t)o * in + i];
            a->bias += a->weight[o] * values[w->numel + o];
        }
        free(values);
        free(a->weight);
        a->weight = folded;
        a->width = in;
        found++;
    }
    safetensors_close(&f);
    if (!found) fatal("%s has no layers.0.weight; give sac+logos+ava1-l14-linearMSE.pth", path);
    if (a->width != width) {
        fatal("%s scores vectors of %d values, and those of -clip have %d; give OpenAI's L/14 with -clip", path,
              a->width, width);
    }
}

static inline double aesthetic_score(const aesthetic_t* a, const floatS* vector) { // (width)
    double sum = a->bias;
    for (int i = 0; i < a->width; i++) sum += a->weight[i] * vector[i];
    return sum;
}

static inline void aesthetic_close(aesthetic_t* a) {
    free(a->weight);
    memset(a, 0, sizeof *a);
}

// ---------------------------------------------------------------------------------------------------------------------
// A folder of pictures

// What a network says of each picture of a folder.
typedef struct {
    size_t count;
    double *read, *cosine, *aesthetic; // (count) one after another: sums over ranks are one call
    double cut;                        // captions that are longer than the network reads
} caption_scores_t;

static inline void caption_scores_open(caption_scores_t* c, size_t count) {
    c->count = count;
    c->read = (double*)calloc_check(3 * count, sizeof(double), "scores");
    c->cosine = c->read + count;
    c->aesthetic = c->cosine + count;
    c->cut = 0;
}

// The mean of values over the pictures that could be read.
static inline double caption_scores_mean(const caption_scores_t* c, const double* values, int above_zero) { // (count)
    double sum = 0, n = 0;
    for (size_t i = 0; i < c->count; i++) {
        if (c->read[i] != 0) sum += above_zero && values[i] < 0 ? 0 : values[i];
        n += c->read[i];
    }
    return sum / n;
}

// The mean probability that the picture of the first is chosen; *n: pairs that both could be read.
static inline double pick_mean(const caption_scores_t* a, const caption_scores_t* b, double scale, size_t* n) {
    double sum = 0;
    *n = 0;
    for (size_t i = 0; i < a->count; i++) {
        if (a->read[i] == 0 || b->read[i] == 0) continue;
        sum += 1 / (1 + exp(scale * (b->cosine[i] - a->cosine[i])));
        ++*n;
    }
    return sum / (double)*n;
}
