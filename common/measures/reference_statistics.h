// reference_statistics.h: what samples are compared with, their reference: mean and covariance of the features of real
// images, from a file or from images, and what these are statistics of.
//
//     .npz of ADM        arr_0 (10,000 images, for precision and recall), mu, sigma, mu_s, sigma_s   (TensorFlow input)
//     .npz of pytorch-fid  mu, sigma                                                                 (PyTorch input)
//     .npz of ours       mu, sigma, mu_s, sigma_s, n, protocol
//     images             a folder, a data set's train split, or the arr_0 of an .npz without statistics
//
// Two uses of a reference must not be mixed: an rFID compares reconstructions with their own originals (the val split),
// a gFID compares samples with the training set. Measured by the training statistics, a good tokenizer gets 2.7 instead
// of 0.9. So a file of ours names its use, its network, the mode of the input and the precision; what does not fit is
// refused unless -force 1. Look next at common/measures/eval_gen.h.
#pragma once
// defines: eval_t, EVAL_INPUT_AUTO
#include "common/measures/eval_options.h"
// defines: image_features_t, image_features_open, image_features_measure
#include "common/measures/image_features.h"
// defines: npz_reader_t, npz_array_t, npz_need, npz_find, npz_read_doubles, npz_read_text
#include "common/files/npz.h"
// defines: npz_item_t, npz_values, npz_string, npz_write_arrays
#include "common/files/npz_writer.h"
// defines: HASH_START, hash_text, hash_word
#include "common/program/hash.h"

#define REFERENCE_USE "gFID" // what a file of ours says that it is for
#define STATISTICS_OF " images of "

typedef struct {
    char name[500];          // for the protocol: the data set, or the file and what it says that it is of
    uint64_t hash;           // of the images, or of the statistics' values
    double n;                // images behind the statistics; 0: the file does not say
    double *mu, *sigma;      // (dim), (dim, dim)
    double *mu_s, *sigma_s;  // of the spatial features, or NULL
    int has_images;
    image_source_t images;   // for precision, recall, KID
    image_features_t features; // of those images
} reference_statistics_t;

// ---------------------------------------------------------------------------------------------------------------------
// Statistics files

static inline double* statistics_array(const npz_reader_t* file, const char* name, int dim, int square) {
    const npz_array_t* a = npz_need(file, name);
    size_t wanted = square ? (size_t)dim * dim : (size_t)dim;
    if (a->numel != wanted || a->ndim != 1 + square) {
        fatal("%s: %s has %zu numbers, features of this network need %s%d%s; give statistics of the network that "
              "-features names", file->path, name, a->numel, square ? "(" : "", dim, square ? " squared)" : "");
    }
    double* values = (double*)malloc_check(wanted * sizeof(double), name);
    npz_read_doubles(a, values);
    for (size_t i = 0; i < wanted; i++) {
        if (!isfinite(values[i])) fatal("%s: element %zu of %s is NaN or infinite; make the file again", file->path, i,
                                        name);
    }
    return values;
}

static inline uint64_t statistics_hash_values(uint64_t h, const double* values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint64_t bits;
        memcpy(&bits, values + i, sizeof bits);
        h = hash_word(hash_word(h, (uint32_t)bits), (uint32_t)(bits >> 32));
    }
    return h;
}

// "network 0123456789abcdef; input tf; precision fp32": what both sides of a comparison share.
static inline const char* statistics_made_with(char* text, size_t size, const feature_net_t* net,
                                              inception_input_t input) {
    const char* mode = net->network == FEATURES_MINI ? "own" : input == INCEPTION_TF ? "tf" : "pt";
    snprintf(text, size, "network %s; input %s; precision %s", net->hash, mode, PRECISION_NAME);
    return text;
}

// A file of ours says what it is for and how it was made.
static inline void statistics_check_protocol(const eval_t* e, const npz_reader_t* file, const feature_net_t* net,
                                             inception_input_t input) {
    char made_with[200];
    const npz_array_t* a = npz_find(file, "protocol");
    if (!a || e->options.force) return;
    char* protocol = npz_read_text(a);
    if (!strstr(protocol, "use " REFERENCE_USE ";")) {
        fatal("%s holds reference statistics for another score (\"%s\"); a gFID by them would be wrong. -force 1 does "
              "it all the same", file->path, protocol);
    }
    statistics_made_with(made_with, sizeof made_with, net, input);
    if (!strstr(protocol, made_with)) {
        fatal("%s was made with another network, input or precision (\"%s\"; here: %s). Make it again with "
              "-save_reference, or -force 1", file->path, protocol, made_with);
    }
    free(protocol);
}

// The input that statistics were made with, where -input does not say: ADM's files have spatial statistics, and are of
// TensorFlow's graph; pytorch-fid's have none.
static inline inception_input_t statistics_input(const eval_t* e, const npz_reader_t* file) {
    if (e->options.input != EVAL_INPUT_AUTO) return e->options.input == EVAL_INPUT_TF ? INCEPTION_TF : INCEPTION_PT;
    if (!file || !npz_find(file, "mu")) return INCEPTION_TF;
    const npz_array_t* a = npz_find(file, "protocol");
    if (!a) return npz_find(file, "mu_s") ? INCEPTION_TF : INCEPTION_PT;
    char* protocol = npz_read_text(a);
    inception_input_t input = strstr(protocol, "input pt") ? INCEPTION_PT : INCEPTION_TF;
    free(protocol);
    return input;
}

static inline void statistics_read(reference_statistics_t* r, const npz_reader_t* file, const feature_net_t* net) {
    size_t dim = (size_t)net->dim, spatial = (size_t)net->spatial;
    r->mu = statistics_array(file, "mu", net->dim, 0);
    r->sigma = statistics_array(file, "sigma", net->dim, 1);
    r->hash = statistics_hash_values(statistics_hash_values(HASH_START, r->mu, dim), r->sigma, dim * dim);
    if (net->spatial && npz_find(file, "mu_s") && npz_find(file, "sigma_s")) {
        r->mu_s = statistics_array(file, "mu_s", net->spatial, 0);
        r->sigma_s = statistics_array(file, "sigma_s", net->spatial, 1);
        r->hash = statistics_hash_values(statistics_hash_values(r->hash, r->mu_s, spatial), r->sigma_s,
                                        spatial * spatial);
    }
    if (npz_find(file, "n")) npz_read_doubles(npz_find(file, "n"), &r->n);
}

// Writes mean and covariance of the features, and what they are of.
static inline void statistics_save(const reference_statistics_t* r, const char* path, const feature_net_t* net,
                                  inception_input_t input) {
    char protocol[1000], made_with[200], hash[17];
    snprintf(protocol, sizeof protocol, "use " REFERENCE_USE "; %s; %.0f" STATISTICS_OF "%s, hash %s",
             statistics_made_with(made_with, sizeof made_with, net, input), r->n, r->name,
             hash_text(hash, r->hash));
    size_t dim = (size_t)net->dim, spatial = (size_t)net->spatial;
    npz_item_t items[6] = {
        npz_values("mu", r->mu, 1, dim, 0),           npz_values("sigma", r->sigma, 2, dim, dim),
        npz_values("mu_s", r->mu_s, 1, spatial, 0),   npz_values("sigma_s", r->sigma_s, 2, spatial, spatial),
        npz_values("n", &r->n, 0, 0, 0),              npz_string("protocol", protocol)};
    npz_write_arrays(path, items, 6);
}

// ---------------------------------------------------------------------------------------------------------------------
// References

static inline void reference_statistics_free(reference_statistics_t* r) {
    free(r->mu), free(r->sigma), free(r->mu_s), free(r->sigma_s);
    if (r->has_images) image_features_close(&r->features);
    image_source_close(&r->images);
    memset(r, 0, sizeof *r);
}

// Features of the reference's images; and their statistics, where no file has them.
static inline void statistics_measure(reference_statistics_t* r, eval_t* e, feature_net_t* net,
                                      inception_input_t input) {
    int statistics = !r->mu;
    image_source_limit(&r->images, (size_t)e->options.reference_images);
    image_features_open(&r->features, net, r->images.count, (size_t)e->options.pr_images,
                        statistics ? IMAGE_FEATURES_SPATIAL : 0);
    image_features_measure(&r->features, &r->images, input, e->options.batch, &e->comm, "reference", e->stream);
    if (!statistics) return;
    moments_read_new(&r->features.pool, &r->mu, &r->sigma);
    if (net->spatial) moments_read_new(&r->features.spatial, &r->mu_s, &r->sigma_s);
    r->n = (double)r->features.n;
    r->hash = r->features.hash;
}

// "FILE", or, of a file of ours, "FILE (imagenet, train split, hash 0123456789abcdef)".
static inline void statistics_name(reference_statistics_t* r, const npz_reader_t* file) {
    const npz_array_t* a = npz_find(file, "protocol");
    char *protocol = a ? npz_read_text(a) : NULL, *of = protocol ? strstr(protocol, STATISTICS_OF) : NULL;
    if (of) snprintf(r->name, sizeof r->name, "%.240s (%.240s)", file->path, of + strlen(STATISTICS_OF));
    else snprintf(r->name, sizeof r->name, "%s", file->path);
    free(protocol);
}

// Opens what -reference names. Returns the mode of Inception's input.
static inline inception_input_t reference_statistics_open(reference_statistics_t* r, eval_t* e, feature_net_t* net,
                                                          const char* data) { // the pipeline's, or NULL
    const eval_options_t* o = &e->options;
    const char* spec = o->reference;
    inception_input_t input = statistics_input(e, NULL);
    memset(r, 0, sizeof *r);
    if (!strcmp(spec, "val") && !o->force) {
        fatal("-reference val: a gFID compares samples with the training set; the val split is for rFIDs (-recon). "
              "-force 1 does it all the same");
    }
    if (image_source_is_npz(spec)) {
        npz_reader_t* file = &r->images.npz;
        npz_open_or_die(file, spec);
        input = statistics_input(e, file);
        statistics_check_protocol(e, file, net, input);
        if (npz_find(file, "mu")) statistics_read(r, file, net);
        r->images.kind = SOURCE_NPZ;
        r->has_images = npz_find(file, "arr_0") != NULL;
        if (r->has_images) image_source_use_npz(&r->images);
        if (!r->mu && !r->has_images) fatal("%s has neither images (arr_0) nor statistics (mu, sigma)", spec);
    } else {
        int split = !strcmp(spec, "train") ? SPLIT_TRAIN : !strcmp(spec, "val") ? SPLIT_VAL : -1;
        image_source_dataset(&r->images, split < 0 ? spec : eval_data(o, data), split < 0 ? SPLIT_TRAIN : split,
                             (crop_t)o->crop, net->H);
        r->images.permuted = 1; // the first of them are kept, and folders are in the order of classes
        r->has_images = 1;
    }
    int statistics_file = r->mu != NULL;
    if (r->has_images) statistics_measure(r, e, net, input);
    if (statistics_file) statistics_name(r, &r->images.npz);
    else snprintf(r->name, sizeof r->name, "%s", r->images.name);
    if (o->save_reference[0] && comm_is_first(&e->comm)) {
        if (!r->mu_s) fatal("-save_reference: %s has no spatial statistics to save", spec);
        statistics_save(r, o->save_reference, net, input);
        printf("  reference statistics saved: %s\n", o->save_reference);
    }
    return input;
}
