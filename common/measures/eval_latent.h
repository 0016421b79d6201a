// eval_latent.h: `./eval -latent`: the latent space itself (AlignTok, Table 16 and Figure 7).
//
//     CKNNA with the tokens of the pretrained encoder, spatial variance, total variation, density CV, Gini, normalised
//     entropy of the val split's first images, for each tokenizer;
//     a picture of principal components: the images, a row for each tokenizer, and the encoder's tokens at the bottom.
//
// The encoder is -encoder with -encoder_weights, such as the original DINOv2, which the paper compares with. Without
// it, the tokenizer's own encoder is taken: the same as long as that is frozen. A CNN has none, and gets no CKNNA then.
// Latents are raw; an autoencoder with a posterior gives its mean. Look next at common/measures/latent_measures.h and
// pca.h.
#pragma once
// defines: eval_t
#include "common/measures/eval_options.h"
// defines: image_source_t, image_source_read
#include "common/measures/image_source.h"
// defines: latent_measures_t, latent_measures_*, latent_scores_t
#include "common/measures/latent_measures.h"
// defines: pca_colours_t, pca_colours_fit, pca_colours_picture
#include "common/measures/pca.h"
// defines: progress_t
#include "common/program/progress.h"
// defines: row_picture_t, row_picture_*
#include "common/data/row_picture.h"
// defines: weights_load_vit
#include "common/models/weights.h"

enum { SPACE_IMAGES = 16 }; // columns of the picture, at most

// The pretrained encoder; of no file: not there.
typedef struct {
    vit_t vit;
    params_t params;
    plan_t plan, work;
    uint8_t* bytes; // (batch, H, W, 3)
    floatX* x;
} space_encoder_t;

// The picture, which grows by a row for each tokenizer; no columns: none is wanted.
typedef struct {
    row_picture_t rows;
    int columns, images[SPACE_IMAGES];
    int H[SPACE_IMAGES], W[SPACE_IMAGES]; // of each image, as the first tokenizer takes it
} space_picture_t;

typedef struct {
    eval_t* e;
    autoencoder_t* tokenizer;
    space_encoder_t encoder;
    int has_encoder, D;           // of the tokens
    image_source_t set;
    latent_measures_t measures;
    floatS *latents, *flipped, *tokens; // of a batch, on the host
    uint8_t* mirrored;
    size_t latent, token;         // room for the largest image's latent, and for its tokens
    floatS *shown, *shown_tokens; // (columns, ...) of the picture's images, each in that room
} space_t;

// Turns to the tokenizer's size of images.
static inline void space_encoder_resize(space_encoder_t* n, const eval_options_t* o, const autoencoder_t* a) {
    size_t values = (size_t)o->batch * a->H * a->W * 3;
    plan_again(&n->plan), plan_again(&n->work);
    vit_plan(&n->vit, &n->plan, o->batch, a->H, a->W, a->H / a->GH, 0);
    vit_plan_work(&n->vit, &n->work);
    plan_uint8(&n->plan, &n->bytes, values, "images (bytes)");
    plan_floatX(&n->plan, &n->x, values, "images");
    plan_allocate(&n->plan, "the encoder");
    plan_allocate(&n->work, "the encoder");
}

static inline void space_encoder_open(space_encoder_t* n, const eval_options_t* o, const autoencoder_t* a) {
    memset(n, 0, sizeof *n);
    n->vit.config = *vit_config_find(o->encoder);
    vit_register(&n->vit, &n->params.table, "");
    params_allocate(&n->params, n->params.table.total, 0, "the encoder");
    weights_load_vit(&n->params, &n->vit.config, "", o->encoder_weights);
    space_encoder_resize(n, o, a);
}

static inline void space_encoder_close(space_encoder_t* n) {
    params_free(&n->params);
    plan_free(&n->plan);
    plan_free(&n->work);
}

// Tokens of n images, on the host.
static inline void space_encoder_run(space_encoder_t* n, floatS* tokens, const uint8_t* pixels, int count, stream_t s) {
    const vit_t* v = &n->vit;
    size_t values = (size_t)count * v->H * v->W * 3;
    copy_to_device(n->bytes, pixels, values, s);
    image_from_bytes(n->x, n->bytes, values, s);
    n->vit.B = count;
    vit_forward(&n->vit, &n->params, n->x, s);
    stream_wait(s);
    copy_floats_to_host(tokens, v->features, (size_t)count * v->GH * v->GW * v->config.dim);
}

static inline void space_open(space_t* p, eval_t* e, autoencoder_t* a) {
    const eval_options_t* o = &e->options;
    memset(p, 0, sizeof *p);
    p->e = e;
    p->tokenizer = a;
    p->has_encoder = o->encoder_weights[0] != 0;
    if (p->has_encoder) space_encoder_open(&p->encoder, o, a);
    p->D = p->has_encoder ? p->encoder.vit.config.dim : a->encoder.is_cnn ? 0 : a->encoder.vit.config.dim;
    image_source_dataset(&p->set, eval_data(o, a->data), SPLIT_VAL, (crop_t)o->crop, a->H);
    image_source_limit(&p->set, (size_t)o->latent_images);
    if (o->crop == CROP_ASPECT) image_source_keep_aspect(&p->set, &e->comm, autoencoder_factor(a), o->aspect);
    size_t n = p->set.count, B = (size_t)o->batch, pixels = image_source_pixels(&p->set);
    size_t positions = pixels / autoencoder_factor(a) / autoencoder_factor(a);
    size_t latent = p->latent = positions * a->z, tokens = p->token = positions * p->D;
    latent_measures_open(&p->measures, (int)n, a->GH, a->GW, a->z, p->D, o->draws, 1, o->seed);
    p->latents = (floatS*)malloc_check(B * latent * sizeof(floatS), "latents");
    p->flipped = (floatS*)malloc_check(B * latent * sizeof(floatS), "latents");
    p->tokens = (floatS*)malloc_check(B * tokens * sizeof(floatS), "tokens");
    p->mirrored = (uint8_t*)malloc_check(B * pixels * 3, "mirrored images");
    p->shown = (floatS*)calloc_check(SPACE_IMAGES * latent, sizeof(floatS), "latents");
    p->shown_tokens = (floatS*)calloc_check(SPACE_IMAGES * tokens, sizeof(floatS), "tokens");
}

static inline void space_close(space_t* p) {
    latent_measures_close(&p->measures);
    image_source_close(&p->set);
    if (p->has_encoder) space_encoder_close(&p->encoder);
    free(p->latents), free(p->flipped), free(p->tokens), free(p->mirrored), free(p->shown), free(p->shown_tokens);
}

// Latents of a batch, of its mirror images, and the encoder's tokens.
static inline void space_encode(space_t* p, const image_batch_t* b) {
    autoencoder_t* a = p->tokenizer;
    stream_t s = p->e->stream;
    size_t image = autoencoder_image_values(a), n = b->count * autoencoder_latent_values(a);
    for (int i = 0; i < b->count; i++) image_mirror(p->mirrored + i * image, b->pixels + i * image, a->H, a->W);
    const floatX* z = autoencoder_encode(a, p->mirrored, b->count, s);
    stream_wait(s);
    copy_floats_to_host(p->flipped, z, n);
    z = autoencoder_encode(a, b->pixels, b->count, s);
    stream_wait(s);
    copy_floats_to_host(p->latents, z, n);
    if (p->has_encoder) space_encoder_run(&p->encoder, p->tokens, b->pixels, b->count, s);
    else if (p->D) copy_floats_to_host(p->tokens, a->encoder.vit.features, (size_t)b->count * a->GH * a->GW * p->D);
}

// Ends the program where a latent or a token of a batch is not finite.
static inline void space_check(space_t* p, const image_batch_t* b) {
    autoencoder_t* a = p->tokenizer;
    char image[1200];
    size_t latent = autoencoder_latent_values(a), tokens = (size_t)a->GH * a->GW * p->D;
    for (int i = 0; i < b->count; i++) {
        int good = first_not_finite(p->latents + i * latent, latent) == latent &&
                   first_not_finite(p->flipped + i * latent, latent) == latent;
        image_source_image(&p->set, b->numbers[i], image, sizeof image);
        if (!good) autoencoder_not_finite(a, "latent", image);
        if (first_not_finite(p->tokens + i * tokens, tokens) == tokens) continue;
        fatal("encoder %s: a token of %s is NaN or infinite; give other weights",
              p->has_encoder ? p->e->options.encoder_weights : a->path, image);
    }
}

// The latents and tokens of a batch, to be measured and some of them shown.
static inline void space_add(space_t* p, const image_batch_t* b, const space_picture_t* picture) {
    autoencoder_t* a = p->tokenizer;
    int positions = a->GH * a->GW;
    size_t latent = autoencoder_latent_values(a), tokens = (size_t)positions * p->D;
    p->measures.GH = a->GH;
    p->measures.GW = a->GW;
    for (int i = 0; i < b->count; i++) {
        latent_measures_add(&p->measures, (int)b->numbers[i], p->latents + i * latent, p->flipped + i * latent,
                            p->tokens + i * tokens, positions);
        for (int k = 0; k < picture->columns; k++) {
            if ((size_t)picture->images[k] != b->numbers[i]) continue;
            memcpy(p->shown + k * p->latent, p->latents + i * latent, latent * sizeof(floatS));
            memcpy(p->shown_tokens + k * p->token, p->tokens + i * tokens, tokens * sizeof(floatS));
        }
    }
}

// All images of this process, one size after the other.
static inline void space_measure(space_t* p, const space_picture_t* picture) {
    const eval_options_t* o = &p->e->options;
    comm_t* c = &p->e->comm;
    autoencoder_t* a = p->tokenizer;
    int H = a->H, W = a->W;
    size_t begin, end, step = (size_t)o->batch * c->size;
    image_batch_t b = image_batch_create(&p->set, o->batch);
    progress_t progress = progress_begin("latent", (double)p->set.count, comm_is_first(c));
    for (int k = 0; k < image_source_sizes(&p->set); k++) {
        if (!image_source_turn(&p->set, k, &begin, &end)) continue;
        autoencoder_resize(a, p->set.H, p->set.W);
        if (p->has_encoder) space_encoder_resize(&p->encoder, o, a);
        for (size_t first = begin + c->rank; first < end; first += step) {
            if (!image_source_read(&p->set, &b, first, o->batch, c->size)) continue;
            space_encode(p, &b);
            space_check(p, &b);
            space_add(p, &b, picture);
            progress_say(&progress, (double)(first + step));
        }
    }
    autoencoder_resize(a, H, W);
    latent_measures_combine(&p->measures, c);
    comm_sum_floats_host(c, p->shown, SPACE_IMAGES * p->latent);
    comm_sum_floats_host(c, p->shown_tokens, SPACE_IMAGES * p->token);
    image_batch_free(&b);
}

// t-SNE takes minutes at 10,000 vectors: a line every few seconds.
static inline void space_tsne_progress(void* said, int draw, int draws, int iteration, int iterations,
                                       double seconds_left) {
    double now = clock_seconds();
    char left[24];
    if (now - *(double*)said < PROGRESS_EVERY) return;
    clock_duration(left, sizeof left, seconds_left);
    printf("  %-12s draw %d of %d, iteration %d of %d   %s left\n", "t-SNE", draw + 1, draws, iteration, iterations,
           left);
    fflush(stdout);
    *(double*)said = now;
}

// ---------------------------------------------------------------------------------------------------------------------
// The picture

// A row: what a tokenizer, or the encoder, makes of the columns' images. maps: each with room for the largest.
static inline void space_picture_row(space_picture_t* t, const char* name, const space_t* p,
                                     const floatS* maps, size_t room, int d, int joint) { // (columns, room)
    size_t cell = (size_t)t->rows.H * t->rows.W * 3, all = 0;
    int GH[SPACE_IMAGES], GW[SPACE_IMAGES], factor = autoencoder_factor(p->tokenizer);
    uint8_t* row = row_picture_add(&t->rows, name);
    uint8_t* drawn = (uint8_t*)malloc_check(cell, "a picture");
    floatS* packed = (floatS*)malloc_check(t->columns * room * sizeof(floatS), "maps"); // without the room between them
    pca_colours_t colours;
    for (int k = 0; k < t->columns; k++) {
        image_source_size(&p->set, (size_t)t->images[k], &GH[k], &GW[k]);
        GH[k] /= factor, GW[k] /= factor;
        size_t n = (size_t)GH[k] * GW[k];
        memcpy(packed + all * d, maps + k * room, n * d * sizeof(floatS));
        all += n;
    }
    if (joint) pca_colours_fit(&colours, packed, (int)all, d, PCA_PERCENT);
    for (int k = 0; k < t->columns; k++) {
        int high = t->H[k] / GH[k], wide = t->W[k] / GW[k], side = high < wide ? high : wide;
        if (!joint) pca_colours_fit(&colours, maps + k * room, GH[k] * GW[k], d, PCA_PERCENT);
        pca_colours_picture(drawn, &colours, maps + k * room, GH[k], GW[k], side);
        row_picture_centre(row + k * cell, t->rows.H, t->rows.W, drawn, GH[k] * side, GW[k] * side);
        if (!joint) pca_colours_close(&colours);
    }
    if (joint) pca_colours_close(&colours);
    free(packed);
    free(drawn);
}

// The first row: the images themselves.
static inline void space_picture_open(space_picture_t* t, const eval_options_t* o, image_source_t* set) {
    double numbers[SPACE_IMAGES];
    int H, W;
    size_t begin, end;
    memset(t, 0, sizeof *t);
    if (!o->pca[0] || !o->out[0]) return;
    t->columns = cli_numbers("pca", o->pca, numbers, SPACE_IMAGES);
    image_source_cell(set, &H, &W);
    row_picture_open(&t->rows, t->columns, H, W);
    size_t cell = (size_t)H * W * 3;
    uint8_t* row = row_picture_add(&t->rows, "image");
    image_batch_t b = image_batch_create(set, 1);
    for (int k = 0; k < t->columns; k++) {
        if (numbers[k] < 0 || numbers[k] >= (double)set->count) {
            fatal("-pca %s: image %g is not among the %zu that are measured", o->pca, numbers[k], set->count);
        }
        t->images[k] = (int)numbers[k];
        image_source_size(set, (size_t)t->images[k], &t->H[k], &t->W[k]);
    }
    for (int s = 0; s < image_source_sizes(set); s++) {
        if (!image_source_turn(set, s, &begin, &end)) continue;
        for (size_t place = begin; place < end; place++) {
            for (int k = 0; k < t->columns; k++) {
                if ((size_t)t->images[k] != image_source_number(set, place)) continue;
                if (!image_source_read(set, &b, place, 1, 1)) continue;
                row_picture_centre(row + k * cell, H, W, b.pixels, set->H, set->W);
            }
        }
    }
    image_batch_free(&b);
}

// Writes OUT/pca.png.
static inline void space_picture_close(space_picture_t* t, const eval_t* e) {
    char path[1200];
    if (!t->columns) return;
    if (comm_is_first(&e->comm)) {
        make_folder(e->options.out);
        snprintf(path, sizeof path, "%s/pca.png", e->options.out);
        row_picture_write(&t->rows, path, "images; principal components of each map in red, green and blue");
        printf("picture: %s (rows: images, tokenizers, encoder)\n", path);
    }
    row_picture_close(&t->rows);
}

// ---------------------------------------------------------------------------------------------------------------------

static inline void space_scores(result_t* result, const latent_scores_t* m) {
    if (m->k) report_score(result, "CKNNA", "%.3f", m->cknna.value);
    report_score(result, "spatial var", "%.3f", m->roughness.sv);
    report_score(result, "total var", "%.1f", m->roughness.tv);
    report_score(result, "density CV", "%.3f", m->density.cv);
    report_score(result, "Gini", "%.3f", m->density.gini);
    report_score(result, "entropy", "%.4f", m->density.entropy);
    if (m->k) report_detail(result, "CKNNA without 1e-6", "%.3f", m->cknna.plain);
    report_detail(result, "total var squared", "%.1f", m->roughness.tv_sq);
    report_detail(result, "CV spread", "%.3f", m->spread.cv);
    report_detail(result, "Gini spread", "%.3f", m->spread.gini);
    report_detail(result, "entropy spread", "%.4f", m->spread.entropy);
}

static inline void space_protocol(const space_t* p, result_t* result, const latent_scores_t* m) {
    const eval_options_t* o = &p->e->options;
    const autoencoder_t* a = p->tokenizer;
    report_protocol(result, "images", "%d of %s", m->n, p->set.name);
    if (o->crop == CROP_ASPECT) report_protocol(result, "latents", "raw, aspect up to %g, %d", o->aspect, a->z);
    else report_protocol(result, "latents", "raw, %d x %d x %d", a->GH, a->GW, a->z);
    report_protocol(result, "encoder", "%s", p->has_encoder ? o->encoder_weights
                                             : p->D ? "the tokenizer's own" : "none: no CKNNA");
    if (m->k) report_protocol(result, "neighbours", "%d, %s", m->k, o->cknna_clip ? "clipped at .95" : "not clipped");
    report_protocol(result, "density", "%d draws of one vector an image, t-SNE of perplexity %g, seed %zu", m->draws,
                    m->perplexity, o->seed);
    report_protocol(result, "tokenizer", "%s, stage %d, step %lld", a->fingerprint, a->info.stage,
                    (long long)a->info.step);
    report_protocol(result, "weights", "%s", a->weights);
    report_protocol(result, "precision", "%s", PRECISION_NAME);
}

// Measures one tokenizer and adds its row to the picture, which begins with the first and ends with the last's encoder.
static inline void eval_latent(eval_t* e, const char* path, autoencoder_t* tokenizer, space_picture_t* picture,
                               int first, int last) {
    static space_t p;
    const eval_options_t* o = &e->options;
    result_t* result = report_begin(&e->report, "latent", "tokenizer", path);
    space_open(&p, e, tokenizer);
    if (first) space_picture_open(picture, o, &p.set);
    space_measure(&p, picture);
    latent_scores_t scores;
    double said = clock_seconds();
    latent_measures_finish(&scores, &p.measures, o->cknna_k, o->cknna_clip ? CKNNA_CLIP : 0,
                           comm_is_first(&e->comm) ? space_tsne_progress : NULL, &said);
    space_scores(result, &scores);
    space_protocol(&p, result, &scores);
    report_end(&e->report, result);
    if (picture->columns) {
        space_picture_row(picture, path, &p, p.shown, p.latent, tokenizer->z, o->pca_joint);
        if (last && p.D) space_picture_row(picture, "encoder", &p, p.shown_tokens, p.token, p.D, o->pca_joint);
    }
    space_close(&p);
}
