// eval_captions.h: `./eval -captions FOLDER`: how well drawn pictures suit their prompts (AlignTok, Tables 5 and 11 to
// 15), and `./eval -pick A,B`, which of two systems' pictures of the same prompts would be chosen.
//
//     -clip FILE -clip_vocabulary FILE          CLIP score; with -aesthetic FILE, of an L/14, the aesthetic score
//     -hps FILE                                 HPSv2
//     -pick A,B -pick_model FILE                PickScore, the mean of softmax over the pictures of A and B
//
// One network after the other goes through all pictures; processes share these by number. A picture that cannot be read
// is named, counted and left out. Look next at common/measures/clip_score.h for the scores and prompted.h there for the
// folders.
#pragma once
// defines: prompted_t, prompted_open, prompted_check_same, prompted_close
#include "common/measures/prompted.h"
// defines: clip_input_t, clip_input, clip_inputs
#include "common/measures/clip_input.h"
// defines: clip_score_*, aesthetic_*, caption_scores_*, pick_mean
#include "common/measures/clip_score.h"
// defines: eval_t
#include "common/measures/eval_options.h"
// defines: progress_t, progress_begin, progress_say
#include "common/program/progress.h"

// A batch on its way through a network.
typedef struct {
    int n;
    uint8_t* ok;                     // (batch) could the picture be read?
    size_t* numbers;                 // (batch) of the pictures
    const char** prompts;            // (batch)
    floatS *pixels, *images, *texts; // (batch, side, side, 3), (batch, embed) twice
} caption_batch_t;

// Pictures first, first + stride, ..., at most `batch` of them; those that cannot be read are left out.
static inline void caption_batch_read(caption_batch_t* b, const clip_score_t* net, const prompted_t* p,
                                      clip_input_t how, size_t first, size_t stride) {
    size_t values = (size_t)net->side * net->side * 3, count = p->pictures.count;
    int n = 0;
    while (n < net->batch && first + n * stride < count) n++;
    #pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < n; i++) {
        image_t image;
        char error[IMAGE_ERROR_SIZE];
        b->ok[i] = (uint8_t)image_load(&image, p->pictures.items[first + i * stride], error);
        if (!b->ok[i]) {
            warn("%s; it is left out", error);
            continue;
        }
        clip_input(b->pixels + i * values, &image, net->side, how);
        image_free(&image);
    }
    b->n = 0;
    for (int i = 0; i < n; i++) {
        if (!b->ok[i]) continue;
        if (b->n < i) memcpy(b->pixels + b->n * values, b->pixels + i * values, values * sizeof(floatS));
        b->numbers[b->n] = first + i * stride;
        b->prompts[b->n++] = p->prompts.items[first + i * stride];
    }
}

static inline void caption_batch_score(caption_batch_t* b, clip_score_t* net, const prompted_t* p,
                                       const aesthetic_t* aesthetic, caption_scores_t* out, stream_t s) {
    int E = net->config->embed;
    if (!b->n) return;
    int images = clip_score_images(net, b->images, b->pixels, b->n, s);
    if (images < b->n) {
        fatal("%s makes no finite vector of %s; copy the file again", net->path, p->pictures.items[b->numbers[images]]);
    }
    int texts = clip_score_texts(net, b->texts, b->prompts, b->n, s);
    if (texts < b->n) {
        fatal("%s makes no finite vector of the prompt \"%.80s\"; copy the file again", net->path, b->prompts[texts]);
    }
    for (int i = 0; i < b->n; i++) {
        size_t k = b->numbers[i];
        out->read[k] = 1;
        for (int e = 0; e < E; e++) {
            out->cosine[k] += (double)b->images[(size_t)i * E + e] * b->texts[(size_t)i * E + e];
        }
        if (aesthetic) out->aesthetic[k] = aesthetic_score(aesthetic, b->images + (size_t)i * E);
    }
}

// All pictures through a network, and what all processes have put together.
static inline void captions_measure(eval_t* e, clip_score_t* net, const prompted_t* p, clip_input_t how,
                                    const aesthetic_t* aesthetic, caption_scores_t* out) {
    comm_t* c = &e->comm;
    size_t batch = (size_t)net->batch, values = (size_t)net->side * net->side * 3, E = (size_t)net->config->embed;
    size_t step = batch * (size_t)c->size;
    caption_batch_t b = {0, NULL, NULL, NULL, NULL, NULL, NULL};
    b.ok = (uint8_t*)malloc_check(batch, "pictures");
    b.numbers = (size_t*)malloc_check(batch * sizeof(size_t), "pictures");
    b.prompts = (const char**)malloc_check(batch * sizeof(char*), "prompts");
    b.pixels = (floatS*)malloc_check(batch * (values + 2 * E) * sizeof(floatS), "pictures");
    b.images = b.pixels + batch * values;
    b.texts = b.images + batch * E;
    caption_scores_open(out, p->pictures.count);
    progress_t progress = progress_begin("captions", (double)out->count, comm_is_first(c));
    for (size_t first = (size_t)c->rank; first < out->count; first += step) {
        caption_batch_read(&b, net, p, how, first, (size_t)c->size);
        caption_batch_score(&b, net, p, aesthetic, out, e->stream);
        progress_say(&progress, (double)(first + step));
    }
    free(b.ok);
    free(b.numbers);
    free(b.prompts);
    free(b.pixels);
    out->cut = (double)net->cut;
    comm_sum_host(c, &out->cut, 1);
    comm_sum_host(c, out->read, (int)(3 * out->count));
}

// How many pictures could be read; none is the end.
static inline size_t captions_read(const caption_scores_t* c, const char* folder) {
    size_t n = 0;
    for (size_t i = 0; i < c->count; i++) n += c->read[i] != 0;
    if (!n) fatal("%s: none of its %zu pictures can be read", folder, c->count);
    return n;
}

static inline void captions_protocol(result_t* result, const clip_score_t* net, const char* whose, clip_input_t how,
                                     const caption_scores_t* c) {
    char hash[17], key[REPORT_NAME];
    snprintf(key, sizeof key, "%s network", whose);
    report_protocol(result, key, "%s, %.100s, hash %s", net->config->id, net->path,
                    hash_text(hash, caption_encoder_hash(net->path)));
    snprintf(key, sizeof key, "%s input", whose);
    report_protocol(result, key, "%d x %d, %s", net->side, net->side, clip_inputs[how]);
    if (c->cut == 0) return;
    snprintf(key, sizeof key, "%s cut", whose);
    report_protocol(result, key, "%.0f captions to %d numbers", c->cut, CLIP_LENGTH);
}

static inline void captions_pictures(result_t* result, const prompted_t* p, size_t read) {
    report_protocol(result, "pictures", "%zu of %zu prompts", read, p->distinct);
    if (read < p->pictures.count) {
        report_protocol(result, "unreadable", "%zu pictures left out", p->pictures.count - read);
    }
    report_protocol(result, "precision", "%s", PRECISION_NAME);
}

// CLIP score, and the aesthetic score where it is asked for.
static inline void captions_clip(eval_t* e, result_t* result, const prompted_t* p) {
    static clip_score_t net;
    const eval_options_t* o = &e->options;
    aesthetic_t aesthetic;
    caption_scores_t c;
    clip_score_open(&net, o->clip, o->clip_vocabulary, o->batch);
    if (o->aesthetic[0]) aesthetic_open(&aesthetic, o->aesthetic, net.config->embed);
    captions_measure(e, &net, p, CLIP_INPUT_CROP, o->aesthetic[0] ? &aesthetic : NULL, &c);
    size_t read = captions_read(&c, o->captions);
    report_score(result, "CLIP score", "%.3f", 100 * caption_scores_mean(&c, c.cosine, 1));
    if (o->aesthetic[0]) report_score(result, "aesthetic", "%.3f", caption_scores_mean(&c, c.aesthetic, 0));
    captions_protocol(result, &net, "CLIP", CLIP_INPUT_CROP, &c);
    if (o->aesthetic[0]) report_protocol(result, "aesthetic head", "%.180s, folded", o->aesthetic);
    if (!o->hps[0]) captions_pictures(result, p, read);
    if (o->aesthetic[0]) aesthetic_close(&aesthetic);
    clip_score_close(&net);
    free(c.read);
}

static inline void captions_hps(eval_t* e, result_t* result, const prompted_t* p) {
    static clip_score_t net;
    const eval_options_t* o = &e->options;
    caption_scores_t c;
    clip_score_open(&net, o->hps, o->clip_vocabulary, o->batch);
    captions_measure(e, &net, p, CLIP_INPUT_PAD, NULL, &c);
    size_t read = captions_read(&c, o->captions);
    report_score(result, "HPSv2", "%.4f", caption_scores_mean(&c, c.cosine, 0));
    captions_protocol(result, &net, "HPSv2", CLIP_INPUT_PAD, &c);
    captions_pictures(result, p, read);
    clip_score_close(&net);
    free(c.read);
}

// -captions
static inline void eval_captions(eval_t* e) {
    const eval_options_t* o = &e->options;
    prompted_t p;
    prompted_open(&p, o->captions);
    result_t* result = report_begin(&e->report, "captions", "pictures", o->captions);
    if (o->clip[0]) captions_clip(e, result, &p);
    if (o->hps[0]) captions_hps(e, result, &p);
    report_end(&e->report, result);
    prompted_close(&p);
}

// ---------------------------------------------------------------------------------------------------------------------
// Two systems

// -pick A,B
static inline void eval_pick(eval_t* e, const char* const path[2]) {
    static clip_score_t net;
    const eval_options_t* o = &e->options;
    prompted_t p[2];
    caption_scores_t c[2];
    result_t* result[2];
    size_t pairs;
    for (int k = 0; k < 2; k++) {
        prompted_open(&p[k], path[k]);
        result[k] = report_begin(&e->report, "pick", "pictures", path[k]);
    }
    prompted_check_same(&p[0], path[0], &p[1], path[1]);
    clip_score_open(&net, o->pick_model, o->clip_vocabulary, o->batch);
    if (net.scale == 0) fatal("-pick_model %s has no logit_scale; give PickScore_v1's whole file", o->pick_model);
    for (int k = 0; k < 2; k++) {
        net.cut = 0;
        captions_measure(e, &net, &p[k], CLIP_INPUT_CROP, NULL, &c[k]);
        captions_read(&c[k], path[k]);
    }
    double first = pick_mean(&c[0], &c[1], net.scale, &pairs);
    for (int k = 0; k < 2; k++) {
        report_score(result[k], "PickScore", "%.4f", k ? 1 - first : first);
        report_detail(result[k], "PickScore raw", "%.3f", net.scale * caption_scores_mean(&c[k], c[k].cosine, 0));
        report_protocol(result[k], "against", "%s", path[1 - k]);
        report_protocol(result[k], "pairs", "%zu of %zu prompts", pairs, p[k].distinct);
        captions_protocol(result[k], &net, "PickScore", CLIP_INPUT_CROP, &c[k]);
        report_protocol(result[k], "precision", "%s", PRECISION_NAME);
        report_end(&e->report, result[k]);
        free(c[k].read);
        prompted_close(&p[k]);
    }
    clip_score_close(&net);
}
