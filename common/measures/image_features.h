// image_features.h: the features in which sets of images are compared: the network that makes them, and the features of
// a whole set, by one process or several.
//
// The network is the FID Inception, or, where its weights are missing, the miniature world's classifier.
//
//     feature_net_open(&net, path, batch, H, W);
//     feature_net_run(&net, pixels, n, INCEPTION_PT, out, s);     (n, H, W, 3) bytes -> features on the host
//
//                    Inception                              miniature (a VGG trained on the data itself)
//     pool           (n, 2048) mean of the last map         (n, C) mean of the last map
//     spatial        (n, 2023) 7 channels of Mixed_6d       (n, 7 P) the first 7 channels of the last map, P positions
//     logits         (n, 1008) without bias                 (n, classes) without bias, where the file has its head
//
// A score of the miniature is not the score of the same formula in Inception's features, so it never bears its name:
// feature_net_score turns "FID" into "FD-mini", "KID" into "KID-mini". Which of the two a file is shows in its tensors.
// Both sides of a comparison must have been made by one network in one precision: its hash and that of the pixels'
// mode go with every statistics file (common/measures/reference_statistics.h).
//
// Of a set of images: streamed moments, the sums of the Inception Score, and, of the first so many images, the features
// themselves.
//
//     image_features_open(&f, net, images, kept, IMAGE_FEATURES_SPATIAL);
//     image_features_measure(&f, &source, input, batch, &comm, "samples", stream);
//     frechet_distance(net->dim, ...);    from moments_read(&f.pool, ...)
//
// Process r of W takes images r, r + W, ...; afterwards all have everything. Images that cannot be read are left out,
// and the rows close up. Look next at common/models/inception.h and common/measures/eval_gen.h.
#pragma once
// defines: fingerprint_tensor
#include "common/drawing/autoencoder.h"
// defines: tensor_file_open_or_die
#include "common/files/tensor_file.h"
// defines: moments_t, moments_*
#include "common/measures/frechet.h"
// defines: image_source_t, image_source_read, image_batch_t
#include "common/measures/image_source.h"
// defines: result_t, report_protocol
#include "common/measures/report.h"
// defines: inception_score_t, inception_score_*
#include "common/measures/sample_measures.h"
// defines: inception_t, inception_register, inception_load, inception_plan, inception_forward, inception_input_t
#include "common/models/inception.h"
// defines: vgg_t, vgg_register, vgg_plan, vgg_plan_work, vgg_forward, lpips_scaling
#include "common/models/lpips.h"
// defines: progress_t
#include "common/program/progress.h"
// defines: comm_sum_floats_host
#include "common/training/comm.h"
// defines: HASH_START, hash_text
#include "common/program/hash.h"

typedef enum { FEATURES_INCEPTION, FEATURES_MINI } feature_network_t;

typedef struct {
    feature_network_t network;
    const char* path;
    char hash[17];          // of the file's tensors
    int batch, H, W;        // the most images of a call; their size
    int dim, spatial, classes; // features; spatial features, 0: too many; logits, 0: the file has no head
    params_t params;        // of the miniature
    plan_t plan;
    uint8_t* bytes;         // (batch, H, W, 3)
    inception_t inception;
    vgg_t vgg;
    vgg_acts_t acts;
    size_t head;            // offset of head.weight (classes, dim)
    floatX* x;              // (batch, H, W, 3)
    floatS *pool, *map, *logits;   // (batch, dim), (batch, spatial), (batch, classes) on the device
    floatS* host;           // the largest of them
} feature_net_t;

// Features of images on the host. Spatial features and logits may be NULL.
typedef struct {
    float* pool;    // (n, dim)
    float* spatial; // (n, spatial)
    float* logits;  // (n, classes)
} features_t;

// A hash of names and values that does not depend on the kind of file.
static inline uint64_t feature_net_hash(const safetensors_t* file) {
    uint64_t h = HASH_START;
    size_t longest = 1;
    for (int i = 0; i < file->n; i++) {
        if (file->tensors[i].numel > longest) longest = file->tensors[i].numel;
    }
    floatS* values = (floatS*)malloc_check(longest * sizeof(floatS), "a tensor");
    for (int i = 0; i < file->n; i++) {
        const st_tensor_t* t = file->by_name[i];
        if (!st_dtype_is_float(t->dtype)) continue;
        safetensors_read(t, values);
        h = fingerprint_tensor(h, t->name, values, t->numel);
    }
    free(values);
    return h;
}

// ---------------------------------------------------------------------------------------------------------------------
// The miniature: the VGG that dev/pretrain.cu has trained as a classifier

static inline void feature_net_open_mini(feature_net_t* f, const safetensors_t* file) {
    static const weights_rule_t rules[] = {
        {"lin*", NULL, PART_WHOLE}, {"head.bias", NULL, PART_WHOLE}, {"*", "*", PART_WHOLE}, {NULL, NULL, PART_WHOLE}};
    f->vgg.config = vgg_config_of_file(file);
    int C = f->vgg.config.channels[f->vgg.config.slices - 1];
    vgg_register(&f->vgg, &f->params.table, "");
    const st_tensor_t* head = safetensors_find(file, "head.weight");
    f->dim = C;
    if (head && head->ndim == 2) f->classes = (int)head->shape[0];
    if (f->classes) f->head = param_matrix(&f->params.table, "head.", "weight", f->classes, C, init_constant(0));
    params_allocate(&f->params, f->params.table.total, 0, "the feature network");
    weights_load_mapped(&f->params, "", f->path, "", rules);
}

// What depends on the size of the images.
static inline void feature_net_plan_mini(feature_net_t* f) {
    int slices = f->vgg.config.slices, positions = (f->H >> slices) * (f->W >> slices);
    if (!positions) {
        fatal("-features %s halves images %d times: those of %d x %d are too small for it", f->path, slices, f->W,
              f->H);
    }
    f->spatial = positions * (f->dim < INCEPTION_CHANNELS ? f->dim : INCEPTION_CHANNELS);
    if (f->spatial > INCEPTION_SPATIAL) f->spatial = 0;
    vgg_plan(&f->vgg, &f->acts, &f->plan, f->batch, f->H, f->W, VGG_KEEP_ALL);
    vgg_plan_work(&f->vgg, &f->plan, f->batch, f->H, f->W);
    plan_floatX(&f->plan, &f->x, (size_t)f->batch * f->H * f->W * 3, "images");
}

// Features of the images in f->bytes, in f->pool, f->map, f->logits.
static inline void feature_net_forward_mini(feature_net_t* f, int n, stream_t s) {
    int slices = f->vgg.config.slices, positions = (f->H >> slices) * (f->W >> slices);
    f->acts.B = n;
    image_from_bytes(f->x, f->bytes, (size_t)n * f->H * f->W * 3, s);
    resize_bilinear_forward(f->vgg.spare[0], f->x, lpips_scaling(), n, f->H, f->W, f->H, f->W, s);
    vgg_forward(&f->vgg, &f->params, &f->acts, f->vgg.spare[0], s);
    mean_positions_forward(f->pool, f->acts.features, n, positions, f->dim, s);
    if (f->spatial) {
        first_channels_forward(f->map, f->acts.features, (size_t)n * positions, f->dim, f->spatial / positions, s);
    }
    if (f->classes) {
        features_matmul_forward(f->logits, f->pool, params_at(&f->params, f->head), n, f->dim, f->classes, s);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The network

// Turns to images of H x W.
void feature_net_resize(feature_net_t* f, int H, int W) {
    size_t B = (size_t)f->batch;
    if (f->H == H && f->W == W) return;
    f->H = H;
    f->W = W;
    plan_again(&f->plan);
    if (f->network == FEATURES_MINI) feature_net_plan_mini(f);
    else inception_plan(&f->inception, &f->plan, f->batch);
    size_t most = f->dim > f->spatial ? f->dim : f->spatial;
    if ((size_t)f->classes > most) most = f->classes;
    plan_uint8(&f->plan, &f->bytes, B * H * W * 3, "images (bytes)");
    plan_floatS(&f->plan, &f->pool, B * f->dim, "features");
    plan_floatS(&f->plan, &f->map, B * f->spatial, "spatial features");
    plan_floatS(&f->plan, &f->logits, B * f->classes, "logits");
    plan_allocate(&f->plan, "the feature network");
    free(f->host);
    f->host = (floatS*)malloc_check(B * most * sizeof(floatS), "features");
}

// `f` must stay where it is.
void feature_net_open(feature_net_t* f, const char* path, int batch, int H, int W) {
    safetensors_t file;
    memset(f, 0, sizeof *f);
    f->path = path;
    f->batch = batch;
    tensor_file_open_or_die(&file, path);
    hash_text(f->hash, feature_net_hash(&file));
    if (safetensors_find(&file, "Mixed_7c.branch_pool.conv.weight")) {
        f->network = FEATURES_INCEPTION;
        f->dim = INCEPTION_POOL, f->spatial = INCEPTION_SPATIAL, f->classes = INCEPTION_CLASSES;
        inception_register(&f->inception);
        inception_load(&f->inception, path);
    } else if (safetensors_find(&file, "net.slice1.0.weight")) {
        f->network = FEATURES_MINI;
        feature_net_open_mini(f, &file);
    } else {
        fatal("-features %s is no feature network: it has %d tensors, the first is %s. Give pytorch-fid's "
              "pt_inception-2015-12-05-6726825d.pth, or the vgg.safetensors of the miniature world",
              path, file.n, file.n ? file.tensors[0].name : "none");
    }
    safetensors_close(&file);
    feature_net_resize(f, H, W);
    if (f->spatial) return;
    warn("images of %d x %d have over %d spatial features in %s, the miniature's network: the sFD-mini is not measured "
         "(it would take the roots of matrices of that size; images of its own size, 32, have 112)", W, H,
         INCEPTION_SPATIAL, path);
}

void feature_net_close(feature_net_t* f) {
    params_free(&f->params);
    params_free(&f->inception.params);
    plan_free(&f->plan);
    free(f->host);
    memset(f, 0, sizeof *f);
}

static inline void feature_net_take(feature_net_t* f, float* out, const floatS* device, size_t n, stream_t s) {
    if (!out || !n) return;
    copy_to_host(f->host, device, n * sizeof(floatS), s);
    stream_wait(s);
    if (first_not_finite(f->host, n) < n) {
        fatal("-features %s: a feature of an image is NaN or infinite; the file is damaged, give it again", f->path);
    }
    for (size_t i = 0; i < n; i++) out[i] = (float)f->host[i];
}

// Features of n <= batch images.
void feature_net_run(feature_net_t* f, features_t out,
                     const uint8_t* pixels, // (n, H, W, 3) on the host
                     int n, inception_input_t input, stream_t s) {
    assert(n >= 0 && n <= f->batch);
    if (n == 0) return;
    copy_to_device(f->bytes, pixels, (size_t)n * f->H * f->W * 3, s);
    if (f->network == FEATURES_MINI) {
        feature_net_forward_mini(f, n, s);
    } else {
        inception_features_t wanted = {f->pool, out.spatial ? f->map : NULL, out.logits ? f->logits : NULL, NULL, NULL,
                                       NULL};
        inception_forward(&f->inception, wanted, f->bytes, input, n, f->H, f->W, s);
    }
    feature_net_take(f, out.pool, f->pool, (size_t)n * f->dim, s);
    feature_net_take(f, out.spatial, f->map, (size_t)n * f->spatial, s);
    feature_net_take(f, out.logits, f->logits, (size_t)n * f->classes, s);
}

// The name of a score in this network's features: "FID" and the others are Inception's alone.
static inline const char* feature_net_score(const feature_net_t* f, const char* name, char text[32]) {
    if (f->network == FEATURES_INCEPTION) snprintf(text, 32, "%s", name);
    else if (!strcmp(name, "rFID") || !strcmp(name, "gFID")) snprintf(text, 32, "FD-mini");
    else if (!strcmp(name, "sFID")) snprintf(text, 32, "sFD-mini");
    else snprintf(text, 32, "%s-mini", name);
    return text;
}

// What the features are, for the protocol of a score.
static inline void feature_net_protocol(result_t* result, const feature_net_t* f, inception_input_t input) {
    if (f->network == FEATURES_INCEPTION) {
        report_protocol(result, "features", "Inception %s, %s", f->hash,
                        input == INCEPTION_TF ? "TF input (ADM)" : "PT input (pytorch-fid)");
    } else {
        report_protocol(result, "features", "miniature classifier %s, %d channels", f->hash, f->dim);
    }
    report_protocol(result, "precision", "%s", PRECISION_NAME);
}

// ---------------------------------------------------------------------------------------------------------------------
// The features of a set

enum { IMAGE_FEATURES_SPATIAL = 1, IMAGE_FEATURES_CLASSES = 2 };

typedef struct {
    feature_net_t* net;
    int wanted;        // of the flags above
    size_t images, n;  // asked for; read
    size_t kept, rows_n; // images whose features are kept; those of them that could be read
    moments_t pool, spatial;
    float* rows;       // (rows_n, dim)
    inception_score_t score; // IMAGE_FEATURES_CLASSES: of the logits,
    double recognised;       // and images whose largest logit is their label's
    int* labels;       // (n) -1: unknown
    double* read;      // (images) 1: this image could be read
    uint64_t hash;     // of the images
} image_features_t;

void image_features_open(image_features_t* f, feature_net_t* net, size_t images, size_t kept, int wanted) {
    memset(f, 0, sizeof *f);
    f->net = net;
    f->images = images;
    f->kept = kept < images ? kept : images;
    f->wanted = net->spatial ? wanted : wanted & ~IMAGE_FEATURES_SPATIAL;
    wanted = f->wanted;
    moments_open(&f->pool, net->dim);
    if (wanted & IMAGE_FEATURES_SPATIAL) moments_open(&f->spatial, net->spatial);
    if (f->kept) f->rows = (float*)calloc_check(f->kept * net->dim, sizeof(float), "features");
    if (wanted & IMAGE_FEATURES_CLASSES) inception_score_open(&f->score, images, INCEPTION_SCORE_BLOCK, net->classes);
    f->labels = (int*)calloc_check(images, sizeof(int), "labels");
    f->read = (double*)calloc_check(images, sizeof(double), "flags");
}

void image_features_close(image_features_t* f) {
    moments_free(&f->pool);
    if (f->wanted & IMAGE_FEATURES_SPATIAL) moments_free(&f->spatial);
    if (f->wanted & IMAGE_FEATURES_CLASSES) inception_score_free(&f->score);
    free(f->rows);
    free(f->labels);
    free(f->read);
    memset(f, 0, sizeof *f);
}

// Is the largest logit that of the label?
static inline int image_features_recognised(const float* logits, int classes, int label) { // (classes)
    int best = 0;
    for (int c = 1; c < classes; c++) best = logits[c] > logits[best] ? c : best;
    return best == label;
}

static inline void image_features_batch(image_features_t* f, const image_batch_t* b, features_t at,
                                        inception_input_t input, stream_t s) {
    size_t dim = (size_t)f->net->dim;
    int classes = f->net->classes;
    feature_net_run(f->net, at, b->pixels, b->count, input, s);
    moments_add(&f->pool, at.pool, b->count);
    if (at.spatial) moments_add(&f->spatial, at.spatial, b->count);
    for (int i = 0; i < b->count; i++) {
        size_t k = b->numbers[i];
        f->read[k] = 1;
        f->labels[k] = b->labels[i];
        if (k < f->kept) memcpy(f->rows + k * dim, at.pool + i * dim, dim * sizeof(float));
        if (!at.logits) continue;
        inception_score_add(&f->score, k, at.logits + i * classes, 1);
        f->recognised += image_features_recognised(at.logits + i * classes, classes, b->labels[i]);
    }
}

// All processes get all rows; those of images that could not be read are taken out.
static inline void image_features_merge(image_features_t* f, comm_t* c) {
    size_t dim = (size_t)f->net->dim;
    moments_merge(&f->pool, c);
    if (f->wanted & IMAGE_FEATURES_SPATIAL) moments_merge(&f->spatial, c);
    f->hash = image_hash_of_all(c, f->hash);
    comm_sum_host(c, f->read, (int)f->images);
    if (f->rows) comm_sum_floats_host(c, f->rows, f->kept * dim);
    if (f->wanted & IMAGE_FEATURES_CLASSES) inception_score_merge(&f->score, c);
    comm_sum_host(c, &f->recognised, 1);
    double* labels = (double*)malloc_check(f->images * sizeof(double), "labels");
    for (size_t i = 0; i < f->images; i++) labels[i] = f->labels[i];
    comm_sum_host(c, labels, (int)f->images);
    for (size_t i = 0; i < f->images; i++) {
        if (f->read[i] == 0) continue;
        size_t to = f->n++;
        f->labels[to] = (int)labels[i];
        if (i < f->kept && f->rows_n++ != i) memcpy(f->rows + to * dim, f->rows + i * dim, dim * sizeof(float));
    }
    free(labels);
}

// All images of the source, f->images. A collective.
void image_features_measure(image_features_t* f, image_source_t* set, inception_input_t input, int batch, comm_t* c,
                            const char* what, stream_t s) {
    const feature_net_t* net = f->net;
    size_t B = (size_t)batch, image = (size_t)set->H * set->W * 3;
    if (set->H != net->H || set->W != net->W) {
        fatal("%s has images of %d x %d, the other side of %d x %d: compare images of one size", set->name, set->W,
              set->H, net->W, net->H);
    }
    assert(set->count == f->images);
    image_batch_t b = image_batch_create(set, batch);
    features_t at = {(float*)malloc_check(B * net->dim * sizeof(float), "features"), NULL, NULL};
    if (f->wanted & IMAGE_FEATURES_SPATIAL) {
        at.spatial = (float*)malloc_check(B * net->spatial * sizeof(float), "spatial features");
    }
    if (f->wanted & IMAGE_FEATURES_CLASSES) {
        at.logits = (float*)malloc_check(B * net->classes * sizeof(float), "logits");
    }
    progress_t progress = progress_begin(what, (double)f->images, comm_is_first(c));
    for (size_t first = c->rank; first < f->images; first += B * c->size) {
        if (!image_source_read(set, &b, first, batch, c->size)) continue;
        f->hash += image_batch_hash(&b, image);
        image_features_batch(f, &b, at, input, s);
        progress_say(&progress, (double)(first + B * c->size));
    }
    image_features_merge(f, c);
    image_batch_free(&b);
    free(at.pool);
    free(at.spatial);
    free(at.logits);
}
