// eval_gen.h: `./eval -gen`: how close generated images come to real ones (AlignTok, Tables 10 to 15).
//
//     gFID        Frechet distance of the features of samples and reference (common/measures/frechet.h)
//     sFID        the same of spatial features
//     IS          Inception Score, blocks of 5,000 samples in their order (common/measures/sample_measures.h)
//     precision, recall    of balls around 3 nearest neighbours (there)
//     KID         kernel distance, 100 subsets of 1,000 (there)
//
// Samples are images that exist (-samples: a folder, an .npz) or are drawn as they are needed: of classes by a
// LightningDiT; by a text-to-image transformer, of held-out captions of -data, all in one size (-size). The
// reference is images, or their statistics (common/measures/reference_statistics.h); precision, recall and KID need
// its images. Means, covariances and the Inception Score are streamed. Precision, recall and KID compare images with
// images, so the features of the samples and of -pr_images of the reference stay in memory of every process: 8 KB an
// image, 400 MB at 50,000. Processes share the samples by number, and the work on these features. Look next at
// common/measures/reference_statistics.h and common/drawing/pipeline.h.
#pragma once
// defines: eval_t, eval_drawing_protocol
#include "common/measures/eval_options.h"
// defines: frechet_of_moments
#include "common/measures/frechet.h"
// defines: image_features_t, image_features_open, image_features_measure
#include "common/measures/image_features.h"
// defines: reference_statistics_t, reference_statistics_*
#include "common/measures/reference_statistics.h"
// defines: kid_distance, manifold_precision_recall, inception_score_*
#include "common/measures/sample_measures.h"

typedef struct {
    eval_t* e;
    feature_net_t* net;
    const reference_statistics_t* reference;
    inception_input_t input;
    image_features_t features; // of the samples
} gen_t;

// Inception Score; labels that are known must not be in order.
static inline inception_score_result_t gen_inception_score(const gen_t* g) {
    const image_features_t* f = &g->features;
    if (f->n && f->labels[0] >= 0) inception_score_check_order(f->labels, f->n, INCEPTION_SCORE_BLOCK);
    return inception_score_read(&f->score, f->n);
}

// Samples whose class the miniature's classifier recognises, in percent; NaN where it cannot tell.
static inline double gen_recognised(const gen_t* g, const image_source_t* set) {
    if (g->net->network != FEATURES_MINI || set->kind != SOURCE_PIPELINE) return NAN;
    if (set->pipeline->net.config.classes != g->net->classes) return NAN;
    return 100 * g->features.recognised / (double)g->features.n;
}

// A line before what takes long without telling how far it is.
static inline void gen_say(const gen_t* g, const char* what, size_t size) {
    if (!comm_is_first(&g->e->comm) || size < 1000) return;
    printf("  %s %zu features, %zu samples\n", what, size, g->features.n);
    fflush(stdout);
}

// The scores, in the order of the paper's tables.
static inline void gen_scores(gen_t* g, result_t* result, const image_source_t* set) {
    const reference_statistics_t* r = g->reference;
    const feature_net_t* net = g->net;
    image_features_t* f = &g->features;
    char name[32];
    gen_say(g, "Frechet distances of", (size_t)net->dim);
    report_score(result, feature_net_score(net, "gFID", name), "%.3f",
                 frechet_of_moments(&f->pool, r->mu, r->sigma));
    if (r->mu_s) {
        report_score(result, feature_net_score(net, "sFID", name), "%.3f",
                     frechet_of_moments(&f->spatial, r->mu_s, r->sigma_s));
    }
    if (f->wanted & IMAGE_FEATURES_CLASSES) {
        inception_score_result_t is = gen_inception_score(g);
        report_score(result, feature_net_score(net, "IS", name), "%.2f", is.mean);
        report_detail(result, "IS deviation", "%.2f", is.deviation);
        report_detail(result, "IS one block", "%.2f", is.whole);
    }
    double recognised = f->wanted & IMAGE_FEATURES_CLASSES ? gen_recognised(g, set) : NAN;
    if (!isnan(recognised)) report_score(result, "recognised %", "%.1f", recognised);
    if (!r->has_images || !f->rows) return;
    gen_say(g, "precision, recall and KID of", (size_t)net->dim);
    feature_set_t real = {r->features.rows, (int)r->features.rows_n, net->dim};
    feature_set_t generated = {f->rows, (int)f->n, net->dim};
    manifold_t m = manifold_precision_recall(real, generated, MANIFOLD_K, g->e->options.pr_fp16, &g->e->comm);
    report_score(result, feature_net_score(net, "precision", name), "%.4f", m.precision);
    report_score(result, feature_net_score(net, "recall", name), "%.4f", m.recall);
    kid_t kid = kid_distance(generated, real, KID_SUBSETS, KID_SIZE, KID_SEED, &g->e->comm);
    report_score(result, feature_net_score(net, "KID", name), "%.5f", kid.mean);
    report_detail(result, "KID deviation", "%.5f", kid.deviation);
    report_protocol(result, "KID by", "%d subsets of %d", kid.subsets, kid.size);
}

static inline void gen_protocol(gen_t* g, result_t* result, const image_source_t* set) {
    const reference_statistics_t* r = g->reference;
    char hash[17];
    report_protocol(result, "samples", "%zu, hash %s", g->features.n, hash_text(hash, g->features.hash));
    if (r->n > 0) report_protocol(result, "gFID reference", "%s, %.0f images, hash %s", r->name, r->n,
                                  hash_text(hash, r->hash));
    else report_protocol(result, "gFID reference", "%s, hash %s", r->name, hash_text(hash, r->hash));
    if (r->has_images) report_protocol(result, "precision, recall, KID", "against %zu images", r->features.rows_n);
    feature_net_protocol(result, g->net, g->input);
    if (set->kind == SOURCE_PIPELINE) eval_drawing_protocol(g->e, result, set->pipeline);
    if (set->kind == SOURCE_PIPELINE && set->pipeline->is_text) {
        report_protocol(result, "drawn", "%s, in %d x %d pixels", set->name, set->W, set->H);
    }
    if (set->damaged) report_protocol(result, "unreadable", "%zu images left out", set->damaged);
    if (g->features.n < (size_t)g->net->dim) {
        report_protocol(result, "note", "fewer samples than the %d features: biased upward, compare at equal numbers",
                        g->net->dim);
    }
}

// Measures the samples of a source. `all`: every score; else the Frechet distances alone.
static inline result_t* eval_gen(eval_t* e, const char* measure, const char* subject, image_source_t* samples,
                                 feature_net_t* net, const reference_statistics_t* reference,
                                 inception_input_t input, int all) {
    static gen_t g;
    memset(&g, 0, sizeof g);
    g.e = e;
    g.net = net;
    g.reference = reference;
    g.input = input;
    result_t* result = report_begin(&e->report, measure, "generator", subject);
    int wanted = IMAGE_FEATURES_SPATIAL | (all && net->classes ? IMAGE_FEATURES_CLASSES : 0);
    image_features_open(&g.features, net, samples->count, all && reference->has_images ? samples->count : 0, wanted);
    image_features_measure(&g.features, samples, input, e->options.batch, &e->comm, "samples", e->stream);
    gen_scores(&g, result, samples);
    gen_protocol(&g, result, samples);
    report_end(&e->report, result);
    image_features_close(&g.features);
    return result;
}
