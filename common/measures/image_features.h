// image_features.h: the features of a set of images, by one process or several: their streamed moments, and, of the
// first so many images, the features themselves.
//
//     image_features_open(&f, net, images, kept, IMAGE_FEATURES_SPATIAL);
//     image_features_measure(&f, &source, input, batch, &comm, "samples", stream);
//     frechet_distance(net->dim, ...);    from moments_read(&f.pool, ...)
//
// Process r of W takes images r, r + W, ...; afterwards all have everything. Images that cannot be read are left out,
// and the rows close up. Look next at common/measures/moments.h and common/measures/eval_gen.h.
#pragma once
// defines: comm_sum_floats_host
#include "common/training/comm.h"
// defines: feature_net_t, features_t, feature_net_run
#include "common/measures/feature_net.h"
// defines: image_source_t, image_source_read, image_batch_t
#include "common/measures/image_source.h"
// defines: moments_t, moments_*
#include "common/measures/moments.h"
// defines: progress_t
#include "common/program/progress.h"

enum { IMAGE_FEATURES_SPATIAL = 1, IMAGE_FEATURES_LOGITS = 2 };

typedef struct {
    feature_net_t* net;
    int wanted;        // of the flags above
    size_t images, n;  // asked for; read
    size_t kept, rows_n; // images whose features are kept; those of them that could be read
    moments_t pool, spatial;
    float* rows;       // (rows_n, dim)
    float* logits;     // (n, classes)
    int* labels;       // (n) -1: unknown
    double* read;      // (images) 1: this image could be read
    uint64_t hash;     // of the images
} image_features_t;

void image_features_open(image_features_t* f, feature_net_t* net, size_t images, size_t kept, int wanted) {
    memset(f, 0, sizeof *f);
    f->net = net;
    f->images = images;
    f->kept = kept < images ? kept : images;
    f->wanted = wanted;
    moments_open(&f->pool, net->dim);
    if (wanted & IMAGE_FEATURES_SPATIAL) moments_open(&f->spatial, net->spatial);
    if (f->kept) f->rows = (float*)calloc_check(f->kept * net->dim, sizeof(float), "features");
    if (wanted & IMAGE_FEATURES_LOGITS) {
        f->logits = (float*)calloc_check(images * net->classes, sizeof(float), "logits");
    }
    f->labels = (int*)calloc_check(images, sizeof(int), "labels");
    f->read = (double*)calloc_check(images, sizeof(double), "flags");
}

void image_features_close(image_features_t* f) {
    moments_free(&f->pool);
    if (f->wanted & IMAGE_FEATURES_SPATIAL) moments_free(&f->spatial);
    free(f->rows);
    free(f->logits);
    free(f->labels);
    free(f->read);
    memset(f, 0, sizeof *f);
}

static inline void image_features_batch(image_features_t* f, const image_batch_t* b, features_t at,
                                        inception_input_t input, stream_t s) {
    size_t dim = (size_t)f->net->dim, classes = (size_t)f->net->classes;
    feature_net_run(f->net, at, b->pixels, b->count, input, s);
    moments_add(&f->pool, at.pool, b->count);
    if (at.spatial) moments_add(&f->spatial, at.spatial, b->count);
    for (int i = 0; i < b->count; i++) {
        size_t k = b->numbers[i];
        f->read[k] = 1;
        f->labels[k] = b->labels[i];
        if (k < f->kept) memcpy(f->rows + k * dim, at.pool + i * dim, dim * sizeof(float));
        if (f->logits) memcpy(f->logits + k * classes, at.logits + i * classes, classes * sizeof(float));
    }
}

// All processes get all rows; those of images that could not be read are taken out.
static inline void image_features_merge(image_features_t* f, comm_t* c) {
    size_t dim = (size_t)f->net->dim, classes = (size_t)f->net->classes;
    moments_merge(&f->pool, c);
    if (f->wanted & IMAGE_FEATURES_SPATIAL) moments_merge(&f->spatial, c);
    f->hash = image_hash_of_all(c, f->hash);
    comm_sum_host(c, f->read, (int)f->images);
    if (f->rows) comm_sum_floats_host(c, f->rows, f->kept * dim);
    if (f->logits) comm_sum_floats_host(c, f->logits, f->images * classes);
    double* labels = (double*)malloc_check(f->images * sizeof(double), "labels");
    for (size_t i = 0; i < f->images; i++) labels[i] = f->labels[i];
    comm_sum_host(c, labels, (int)f->images);
    for (size_t i = 0; i < f->images; i++) {
        if (f->read[i] == 0) continue;
        size_t to = f->n++;
        f->labels[to] = (int)labels[i];
        if (i < f->kept && f->rows_n++ != i) memcpy(f->rows + to * dim, f->rows + i * dim, dim * sizeof(float));
        if (f->logits && to != i) memcpy(f->logits + to * classes, f->logits + i * classes, classes * sizeof(float));
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
    if (f->logits) at.logits = (float*)malloc_check(B * net->classes * sizeof(float), "logits");
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
