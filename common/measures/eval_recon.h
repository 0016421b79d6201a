// eval_recon.h: `./eval -recon`: how well a tokenizer reproduces images (AlignTok, Tables 1 to 9).
//
//     rFID    Frechet distance between the features of the originals and of the reconstructions, both as bytes
//     PSNR    mean over images, of bytes; "PSNR(mse)" is the PSNR of the mean error, another number
//     SSIM    mean over images, torchmetrics' definition
//     LPIPS   mean over images, of the decoder's output as it comes
//     colour  error of low-pass colours without brightness; sharpness: beside the originals' (both of bytes)
//
// Originals are the images of the val split, cut to the tokenizer's square, or with -crop aspect in their own shape,
// whose shorter side is that of the square; they are the rFID's own reference. Images are shared among the processes by
// number and summed up in their order, so that scores do not depend on batches or ranks. Of several tokenizers the
// originals' features are made once. With the scores comes a picture of the worst, the median and the best
// reconstructions, by PSNR. Look next at common/measures/reconstruction_measures.h and common/measures/frechet.h for
// the definitions.
#pragma once
// defines: row_picture_t, row_picture_*
#include "common/data/row_picture.h"
// defines: eval_t
#include "common/measures/eval_options.h"
// defines: eval_sheet_t, eval_sheet_open, eval_sheet_offer, eval_sheet_merge, eval_sheet_write, sheet_share
#include "common/measures/eval_sheet.h"
// defines: moments_t, moments_add, moments_merge, moments_read_new, frechet_of_moments
#include "common/measures/frechet.h"
// defines: feature_net_t, feature_net_run, feature_net_score
#include "common/measures/image_features.h"
// defines: image_source_t, image_source_keep_aspect, image_source_turn, image_source_read, image_batch_t
#include "common/measures/image_source.h"
// defines: mse_bytes, psnr_summary, score_mean, ssim, perceptual_t, perceptual_distance, ...
#include "common/measures/reconstruction_measures.h"
// defines: progress_t, progress_begin, progress_say
#include "common/program/progress.h"

// What the tokenizers of a run share: a picture, and the moments of the originals' features while these are the same.
typedef struct {
    row_picture_t rows;
    char set[400]; // the originals' name
    int H, W;
    uint64_t hash;
    double *mean, *covariance; // (dim), (dim, dim); NULL: none yet
} recon_shared_t;

typedef struct {
    eval_t* e;
    autoencoder_t* tokenizer;
    recon_shared_t* shared;
    int known;           // the originals' features are
    image_source_t set;
    size_t images;       // of which each process reads its share
    feature_net_t* net;  // NULL: no rFID
    perceptual_t* lpips; // NULL: no LPIPS
    double *read, *mse, *l1, *ssim, *distance; // (images) one after another: sums over ranks are one call
    double *colour, *step, *original_step;     // (images) behind them; steps of a reconstruction, of its original
    moments_t original, reconstructed;
    uint64_t hash;       // of the originals
    int H, W;            // what every image fits into: a cell of the pictures
    uint8_t* cells;      // (2, H, W, 3) one image and its reconstruction
    uint8_t *first_originals, *first; // (RECON_FIRST, H, W, 3) of the set, and their reconstructions
    eval_sheet_t sheet;
} recon_t;

enum { RECON_VALUES = 8, RECON_COLUMNS = 4, RECON_FIRST = 8 }; // columns: worst, median and best of the sheet

static inline void recon_open(recon_t* r, eval_t* e, autoencoder_t* tokenizer, feature_net_t* net,
                              perceptual_t* lpips, recon_shared_t* shared) {
    const eval_options_t* o = &e->options;
    memset(r, 0, sizeof *r);
    r->e = e;
    r->tokenizer = tokenizer;
    r->net = net;
    r->lpips = lpips;
    r->shared = shared;
    image_source_dataset(&r->set, eval_data(o, tokenizer->data), SPLIT_VAL, (crop_t)o->crop, tokenizer->H);
    image_source_limit(&r->set, (size_t)o->images);
    if (o->crop == CROP_ASPECT) {
        image_source_keep_aspect(&r->set, &e->comm, autoencoder_factor(tokenizer), o->aspect);
    }
    image_source_cell(&r->set, &r->H, &r->W);
    r->known = shared->mean && shared->H == tokenizer->H && shared->W == tokenizer->W &&
               !strcmp(shared->set, r->set.name);
    r->images = r->set.count;
    r->read = (double*)calloc_check(RECON_VALUES * r->images, sizeof(double), "scores");
    r->mse = r->read + r->images;
    r->l1 = r->mse + r->images;
    r->ssim = r->l1 + r->images;
    r->distance = r->ssim + r->images;
    r->colour = r->distance + r->images;
    r->step = r->colour + r->images;
    r->original_step = r->step + r->images;
    size_t cell = (size_t)r->H * r->W * 3;
    r->first_originals = (uint8_t*)calloc_check(2 * RECON_FIRST + 2, cell, "a picture");
    r->first = r->first_originals + RECON_FIRST * cell;
    r->cells = r->first + RECON_FIRST * cell;
    if (net && !r->known) moments_open(&r->original, net->dim);
    if (net) moments_open(&r->reconstructed, net->dim);
    eval_sheet_open(&r->sheet, RECON_COLUMNS, r->H, r->W, 1);
}

static inline void recon_close(recon_t* r) {
    if (r->net && !r->known) moments_free(&r->original);
    if (r->net) moments_free(&r->reconstructed);
    eval_sheet_close(&r->sheet);
    image_source_close(&r->set);
    free(r->first_originals);
    free(r->read);
}

// Latents of a batch. Where an encoder gives a distribution one is drawn for each image, by its number.
static inline const floatX* recon_encode(recon_t* r, const image_batch_t* b) {
    autoencoder_t* a = r->tokenizer;
    if (!a->encoder.gaussian) return autoencoder_encode(a, b->pixels, b->count, r->e->stream);
    uint64_t numbers[EVAL_BATCH];
    for (int i = 0; i < b->count; i++) numbers[i] = b->numbers[i];
    return autoencoder_sample(a, b->pixels, b->count, r->e->options.seed, 0, numbers, r->e->stream);
}

// Ends the program: the reconstruction of image i of a batch, or its distance by a network, is not finite.
__attribute__((noreturn)) static inline void recon_not_finite(const recon_t* r, const image_batch_t* b, size_t i,
                                                              const char* network) {
    char image[1200];
    image_source_image(&r->set, b->numbers[i], image, sizeof image);
    if (network) fatal("%s: the distance of %s from its reconstruction is NaN or infinite; give other weights", network,
                       image);
    autoencoder_not_finite(r->tokenizer, "reconstruction", image);
}

// Reconstructions of a batch, as floats and as bytes; returns those on the device.
static inline const floatX* recon_images(recon_t* r, const image_batch_t* b, floatS* floats, uint8_t* bytes) {
    size_t n = b->count * autoencoder_image_values(r->tokenizer);
    const floatX* latent = recon_encode(r, b);
    const floatX* image = autoencoder_decode(r->tokenizer, latent, b->count, r->e->stream);
    stream_wait(r->e->stream);
    copy_floats_to_host(floats, image, n);
    image_bytes_from_floats(bytes, floats, n);
    size_t bad = first_not_finite(floats, n);
    if (bad < n) recon_not_finite(r, b, bad / (n / b->count), NULL);
    return image;
}

// Originals in [-1, 1] on the host.
static inline void recon_originals(floatS* out, const uint8_t* bytes, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = (floatS)(bytes[i] / 127.5 - 1);
}

static inline void recon_features(recon_t* r, const uint8_t* pixels, int n, moments_t* moments, float* pool) {
    features_t out = {pool, NULL, NULL};
    inception_input_t input = r->e->options.input == EVAL_INPUT_TF ? INCEPTION_TF : INCEPTION_PT;
    feature_net_run(r->net, out, pixels, n, input, r->e->stream);
    moments_add(moments, pool, n);
}

// The scores of each image of a batch.
static inline void recon_scores(recon_t* r, const image_batch_t* b, const floatS* original, const floatS* floats,
                                const uint8_t* bytes, double* distance) {
    const autoencoder_t* a = r->tokenizer;
    size_t image = autoencoder_image_values(a), cell = (size_t)r->H * r->W * 3;
    for (int i = 0; i < b->count; i++) {
        size_t k = b->numbers[i];
        const uint8_t *from = b->pixels + i * image, *to = bytes + i * image;
        r->read[k] = 1;
        r->mse[k] = mse_bytes(to, from, image);
        r->l1[k] = l1_bytes(to, from, image);
        r->colour[k] = colour_error_bytes(to, from, a->H, a->W);
        r->step[k] = step_bytes(to, a->H, a->W);
        r->original_step[k] = step_bytes(from, a->H, a->W);
        r->ssim[k] = ssim(floats + i * image, original + i * image, a->H, a->W);
        if (r->lpips) r->distance[k] = distance[i];
        row_picture_centre(r->cells, r->H, r->W, from, a->H, a->W);
        row_picture_centre(r->cells + cell, r->H, r->W, to, a->H, a->W);
        if (k < RECON_FIRST) {
            memcpy(r->first_originals + k * cell, r->cells, cell);
            memcpy(r->first + k * cell, r->cells + cell, cell);
        }
        eval_sheet_offer(&r->sheet, k, psnr_from_mse(r->mse[k]), r->cells, r->cells + cell);
    }
}

// LPIPS of a batch: of the decoder's output as it comes, or of bytes.
static inline void recon_lpips(recon_t* r, const image_batch_t* b, const floatX* image, const uint8_t* bytes,
                               floatX* device, const floatS* original, double* distance) {
    if (!r->lpips || !b->count) return;
    if (r->e->options.lpips_u8) {
        perceptual_distance_bytes(r->lpips, distance, bytes, b->pixels, b->count, r->e->stream);
    } else {
        copy_floats_to_device(device, original, b->count * autoencoder_image_values(r->tokenizer));
        perceptual_distance(r->lpips, distance, image, device, b->count, r->e->stream);
    }
    for (int i = 0; i < b->count; i++) {
        if (!isfinite(distance[i])) recon_not_finite(r, b, (size_t)i, r->e->options.lpips_weights);
    }
}

// All networks turn to images of H x W.
static inline void recon_turn(recon_t* r, int H, int W) {
    autoencoder_resize(r->tokenizer, H, W);
    if (r->net) feature_net_resize(r->net, H, W);
    if (r->lpips) perceptual_resize(r->lpips, H, W);
}

// All images of this process, one size after the other.
static inline void recon_measure(recon_t* r) {
    const eval_options_t* o = &r->e->options;
    const comm_t* c = &r->e->comm;
    int H = r->tokenizer->H, W = r->tokenizer->W;
    size_t room = o->batch * image_source_pixels(&r->set) * 3, begin, end, step = (size_t)o->batch * c->size;
    image_batch_t b = image_batch_create(&r->set, o->batch);
    floatS* floats = (floatS*)malloc_check(2 * room * sizeof(floatS), "reconstructions");
    uint8_t* bytes = (uint8_t*)malloc_check(room, "reconstructions");
    double* distance = (double*)malloc_check(o->batch * sizeof(double), "LPIPS");
    float* pool = (float*)malloc_check((size_t)o->batch * (r->net ? r->net->dim : 1) * sizeof(float), "features");
    floatX* device = (floatX*)device_malloc(room * sizeof(floatX), "images");
    progress_t p = progress_begin("recon", (double)r->images, comm_is_first(c));
    for (int k = 0; k < image_source_sizes(&r->set); k++) {
        if (!image_source_turn(&r->set, k, &begin, &end)) continue;
        recon_turn(r, r->set.H, r->set.W);
        size_t image = autoencoder_image_values(r->tokenizer);
        for (size_t first = begin + c->rank; first < end; first += step) {
            if (!image_source_read(&r->set, &b, first, o->batch, c->size)) continue;
            r->hash += image_batch_hash(&b, image);
            const floatX* reconstructed = recon_images(r, &b, floats, bytes);
            recon_originals(floats + room, b.pixels, b.count * image);
            recon_lpips(r, &b, reconstructed, bytes, device, floats + room, distance);
            recon_scores(r, &b, floats + room, floats, bytes, distance);
            if (r->net && !r->known) recon_features(r, b.pixels, b.count, &r->original, pool);
            if (r->net) recon_features(r, bytes, b.count, &r->reconstructed, pool);
            progress_say(&p, (double)(first + step));
        }
    }
    recon_turn(r, H, W);
    device_free(device);
    image_batch_free(&b);
    free(floats);
    free(bytes);
    free(distance);
    free(pool);
}

// Puts together what all processes have; images that could not be read are taken out. Returns how many are left.
static inline size_t recon_merge(recon_t* r) {
    comm_t* c = &r->e->comm;
    for (int v = 0; v < RECON_VALUES; v++) comm_sum_host(c, r->read + v * r->images, (int)r->images);
    if (r->net && !r->known) moments_merge(&r->original, c);
    if (r->net) moments_merge(&r->reconstructed, c);
    r->hash = image_hash_of_all(c, r->hash);
    eval_sheet_merge(&r->sheet, c);
    size_t n = 0;
    for (size_t k = 0; k < r->images; k++) {
        if (r->read[k] == 0) continue;
        for (int v = 1; v < RECON_VALUES; v++) r->read[v * r->images + n] = r->read[v * r->images + k];
        n++;
    }
    if (n < 2) fatal("-recon: only %zu of %zu images of %s could be read", n, r->images, r->set.name);
    return n;
}

// The originals' statistics are read once and kept for the next tokenizer.
static inline double recon_frechet(recon_t* r) {
    recon_shared_t* shared = r->shared;
    if (!r->known) {
        free(shared->mean), free(shared->covariance);
        moments_read_new(&r->original, &shared->mean, &shared->covariance);
        snprintf(shared->set, sizeof shared->set, "%s", r->set.name);
        shared->H = r->tokenizer->H, shared->W = r->tokenizer->W, shared->hash = r->hash;
    }
    if (shared->hash != r->hash) fatal("%s: the images changed between two tokenizers; run again", r->set.name);
    return frechet_of_moments(&r->reconstructed, shared->mean, shared->covariance);
}

static inline void recon_protocol(recon_t* r, result_t* result, size_t n) {
    const eval_options_t* o = &r->e->options;
    const autoencoder_t* a = r->tokenizer;
    char hash[17];
    report_protocol(result, "images", "%zu", n);
    report_protocol(result, "originals", "%s, hash %s", r->set.name, hash_text(hash, r->hash));
    static const char* const crops[3] = {"ADM centre crop", "torchvision Resize, CenterCrop",
                                         "none: bilinear to the shorter side, then the ends to a multiple of the step"};
    if (o->crop == CROP_ASPECT) report_protocol(result, "size", "shorter side %d, aspect up to %g", a->H, o->aspect);
    else report_protocol(result, "size", "%d x %d", a->W, a->H);
    report_protocol(result, "crop", "%s", crops[o->crop]);
    report_protocol(result, "tokenizer", "%s, stage %d, step %lld", a->fingerprint, a->info.stage,
                    (long long)a->info.step);
    if (a->encoder.gaussian) report_protocol(result, "latent", "drawn from the posterior, seed %zu", o->seed);
    report_protocol(result, "weights", "%s", a->weights);
    if (!r->net) report_protocol(result, "precision", "%s", PRECISION_NAME);
    if (r->net) feature_net_protocol(result, r->net, o->input == EVAL_INPUT_TF ? INCEPTION_TF : INCEPTION_PT);
    if (r->net) report_protocol(result, "rFID reference", "the originals themselves");
    if (r->lpips) report_protocol(result, "LPIPS input", "%s", o->lpips_u8 ? "bytes" : "float, unclamped");
    if (r->set.damaged) report_protocol(result, "unreadable", "%zu images left out", r->images - n);
}

// The sheet of worst, median and best images, named after the tokenizer's file.
static inline void recon_picture(recon_t* r, const char* tokenizer, size_t n) {
    char path[1200], error[IMAGE_ERROR_SIZE];
    if (!r->e->options.out[0] || !comm_is_first(&r->e->comm)) return;
    double* psnr = (double*)malloc_check(n * sizeof(double), "PSNRs");
    for (size_t i = 0; i < n; i++) psnr[i] = psnr_from_mse(r->mse[i]);
    eval_output_path(r->e, path, sizeof path, "recon", tokenizer, "png");
    if (!eval_sheet_write(&r->sheet, path, "PSNR in dB", psnr, n, error)) {
        fatal("%s; choose another folder with -out", error);
    }
    printf("  picture: %s (worst, median, best by PSNR; original, reconstruction, %d times the difference)\n", path,
           SHEET_GAIN);
    free(psnr);
}

// The first images of the set, and below them what each tokenizer of this size makes of them.
static inline void recon_add_row(const recon_t* r, row_picture_t* rows, const char* path) {
    size_t row = RECON_FIRST * (size_t)r->H * r->W * 3;
    if (!rows->rows) {
        row_picture_open(rows, RECON_FIRST, r->H, r->W);
        memcpy(row_picture_add(rows, "image"), r->first_originals, row);
    }
    if (rows->H == r->H && rows->W == r->W) memcpy(row_picture_add(rows, path), r->first, row);
}

// OUT/reconstructions.png
static inline void recon_shared_close(recon_shared_t* shared, const eval_t* e) {
    char path[1200];
    row_picture_t* rows = &shared->rows;
    free(shared->mean), free(shared->covariance);
    if (rows->rows && e->options.out[0] && comm_is_first(&e->comm)) {
        snprintf(path, sizeof path, "%s/reconstructions.png", e->options.out);
        row_picture_write(rows, path, "held-out images, then each tokenizer's reconstruction");
        printf("picture: %s (rows: images, tokenizers)\n", path);
    }
    row_picture_close(rows);
}

// Measures one tokenizer, whose file is `path`, and adds a row to the picture.
static inline void eval_recon(eval_t* e, const char* path, autoencoder_t* tokenizer, feature_net_t* net,
                              perceptual_t* lpips, recon_shared_t* shared) {
    static recon_t r;
    char name[32];
    result_t* result = report_begin(&e->report, "recon", "tokenizer", path);
    recon_open(&r, e, tokenizer, net, lpips, shared);
    recon_measure(&r);
    size_t n = recon_merge(&r);
    psnr_summary_t psnr = psnr_summary(r.mse, n);
    if (net) report_score(result, feature_net_score(net, "rFID", name), "%.3f", recon_frechet(&r));
    report_score(result, "PSNR", "%.2f", psnr.psnr);
    report_score(result, "SSIM", "%.4f", score_mean(r.ssim, n));
    if (lpips) report_score(result, perceptual_name(lpips), "%.4f", score_mean(r.distance, n));
    report_detail(result, "L1", "%.4f", score_mean(r.l1, n));
    report_detail(result, "colour", "%.2f", score_mean(r.colour, n));
    report_detail(result, "sharpness", "%.3f", score_mean(r.step, n) / score_mean(r.original_step, n));
    report_detail(result, "PSNR(mse)", "%.2f", psnr.psnr_of_mean_mse);
    recon_protocol(&r, result, n);
    if (psnr.equal) report_protocol(result, "equal to the original", "%zu images, not in the PSNR", psnr.equal);
    report_end(&e->report, result);
    recon_picture(&r, path, n);
    sheet_share(&e->comm, r.first_originals, 2 * RECON_FIRST * (size_t)r.H * r.W * 3);
    recon_add_row(&r, &shared->rows, path);
    recon_close(&r);
}
