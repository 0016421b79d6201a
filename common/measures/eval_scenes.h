// eval_scenes.h: `./eval -scenes`: how many pictures show the scenes that their captions name.
//
//     ./eval -scenes -tokenizer A,B        held-out scenes, drawn, encoded and decoded: the ceiling of all that is
//                                          drawn in this latent space
//     ./eval -scenes -tokenizer A -dit DIT ...    and beside it what a text-to-image transformer draws of their
//                                          captions, one picture of each
//     ./eval -scenes -samples FOLDER       pictures with their prompts (common/measures/prompted.h)
//
// Held-out scenes are the val split of -data (scenes:48:mixed, say; without it, what the tokenizer was trained on), by
// lot if it has more than -images. Each keeps its canvas: none is resized or cropped. A program with no network in it
// judges (common/measures/scenes.h): correct pictures of each kind, their mean as the overall score, and of all
// pictures the share that has the ground, the number of objects, and the colours whatever the shapes. Processes share
// the scenes by number. Look next at common/measures/scenes.h.
#pragma once
// defines: dataset_t, dataset_open, dataset_scene, dataset_close
#include "common/data/dataset.h"
// defines: autoencoder_t, autoencoder_resize, autoencoder_sample, autoencoder_decode
#include "common/drawing/autoencoder.h"
// defines: pipeline_t, pipeline_use_text, pipeline_turn, pipeline_load, pipeline_draw_captions
#include "common/drawing/pipeline.h"
// defines: eval_t, eval_data, eval_drawing_protocol
#include "common/measures/eval_options.h"
// defines: prompted_t, prompted_open, prompted_close
#include "common/measures/prompted.h"
// defines: scene_scores_t, scene_scores_add, scene_score, scene_overall, scene_share
#include "common/measures/scenes.h"
// defines: progress_t, progress_begin, progress_say
#include "common/program/progress.h"

// Makes pictures of scenes of one canvas: draws them from their captions, or reconstructs them.
typedef struct {
    eval_t* e;
    pipeline_t* pipeline;     // NULL: reconstructs
    autoencoder_t* tokenizer; // the pipeline's where there is one
    floatS* values;           // (batch, H, W, 3) of the largest canvas
} scene_maker_t;

// Scenes of one canvas.
typedef struct {
    int n, H, W;
    uint64_t* numbers; // (batch)
    scene_t* scenes;   // (batch)
    uint8_t* pixels;   // (batch, H, W, 3)
} scene_batch_t;

// The pixels of a batch of scenes become their reconstructions.
static inline void scene_reconstruct(scene_maker_t* m, scene_batch_t* b) {
    autoencoder_t* a = m->tokenizer;
    stream_t s = m->e->stream;
    size_t image = autoencoder_image_values(a), n = b->n * image;
    for (int i = 0; i < b->n; i++) scene_draw(b->pixels + i * image, &b->scenes[i]);
    const floatX* latent = autoencoder_sample(a, b->pixels, b->n, m->e->options.seed, 0, b->numbers, s);
    const floatX* made = autoencoder_decode(a, latent, b->n, s);
    stream_wait(s);
    copy_floats_to_host(m->values, made, n);
    size_t bad = first_not_finite(m->values, n);
    if (bad < n) {
        char name[40];
        snprintf(name, sizeof name, "scene %llu", (unsigned long long)b->numbers[bad / image]);
        autoencoder_not_finite(a, "reconstruction", name);
    }
    image_bytes_from_floats(b->pixels, m->values, n);
}

// The pixels of a batch of scenes become what is drawn of their captions. The noise of each has the scene's number.
static inline void scene_draw_captions(scene_maker_t* m, scene_batch_t* b) {
    char(*texts)[SCENE_CAPTION] = (char(*)[SCENE_CAPTION])malloc_check(b->n * sizeof *texts, "captions");
    const char** captions = (const char**)malloc_check(b->n * sizeof *captions, "captions");
    for (int i = 0; i < b->n; i++) captions[i] = scene_caption(texts[i], &b->scenes[i]);
    pipeline_draw_captions(m->pipeline, b->pixels, b->numbers, captions, b->n, m->e->stream);
    free(captions);
    free(texts);
}

static inline void scene_batch_judge(scene_batch_t* b, scene_maker_t* m, scene_scores_t* scores) {
    if (!b->n) return;
    if (m->pipeline) scene_draw_captions(m, b);
    else scene_reconstruct(m, b);
    for (int i = 0; i < b->n; i++) {
        scene_scores_add(scores, b->pixels + (size_t)i * b->H * b->W * 3, &b->scenes[i]);
    }
    b->n = 0;
}

// The sum over all processes.
static inline void scenes_merge(comm_t* c, scene_scores_t* s) {
    enum { N = sizeof(scene_scores_t) / sizeof(size_t) }; // all of it are counts
    size_t* counts = (size_t*)s;
    double sums[N];
    for (int i = 0; i < N; i++) sums[i] = (double)counts[i];
    comm_sum_host(c, sums, N);
    for (int i = 0; i < N; i++) counts[i] = (size_t)sums[i];
}

// The held-out scenes. Returns how many of them are looked at.
static inline size_t scenes_open(dataset_t* set, const eval_options_t* o, const char* data) {
    dataset_open(set, data, SPLIT_VAL);
    if (set->kind != DATASET_SCENES) fatal("-scenes: %s are no scenes; give -data scenes:48:mixed, say", data);
    return (size_t)o->images < set->count ? (size_t)o->images : set->count;
}

// The first `count` scenes of a permutation, one canvas after the other; what all processes have seen of them.
static inline void scenes_measure(scene_maker_t* m, const dataset_t* set, size_t count, scene_scores_t* scores) {
    comm_t* c = &m->e->comm;
    int batch = m->e->options.batch, side = set->rows;
    size_t room = (size_t)batch * side * side * 3; // no canvas has more pixels than the square
    scene_batch_t b = {0, 0, 0, NULL, NULL, NULL};
    b.numbers = (uint64_t*)malloc_check(batch * sizeof(uint64_t), "scenes");
    b.scenes = (scene_t*)malloc_check(batch * sizeof(scene_t), "scenes");
    b.pixels = (uint8_t*)malloc_check(room, "pictures");
    m->values = (floatS*)malloc_check(room * sizeof(floatS), "pictures");
    memset(scores, 0, sizeof *scores);
    progress_t p = progress_begin("scenes", (double)count, comm_is_first(c));
    size_t done = 0;
    for (int canvas = 0; canvas < (set->mixed ? SCENE_CANVASES : 1); canvas++) {
        b.H = scene_canvas_height(side, canvas);
        b.W = 2 * side - b.H;
        if (m->pipeline) pipeline_turn(m->pipeline, b.H, b.W);
        else autoencoder_resize(m->tokenizer, b.H, b.W);
        for (size_t place = c->rank; place < count; place += c->size) {
            size_t number = random_permute(0, RANDOM_DATA_ORDER, 0, place, set->count);
            scene_t scene = dataset_scene(set, number);
            if (scene.H != b.H) continue;
            b.numbers[b.n] = number;
            b.scenes[b.n++] = scene;
            done += c->size;
            if (b.n < batch) continue;
            scene_batch_judge(&b, m, scores);
            progress_say(&p, (double)done);
        }
        scene_batch_judge(&b, m, scores);
    }
    free(b.numbers);
    free(b.scenes);
    free(b.pixels);
    free(m->values);
    scenes_merge(c, scores);
}

static inline void scenes_report(result_t* result, const scene_scores_t* s) {
    for (int k = 0; k < SCENE_KINDS; k++) report_score(result, scene_kinds[k], "%.3f", scene_score(s, k));
    report_score(result, "overall", "%.3f", scene_overall(s));
    report_detail(result, "ground", "%.3f", scene_share(s, s->ground));
    report_detail(result, "number", "%.3f", scene_share(s, s->number));
    report_detail(result, "colours", "%.3f", scene_share(s, s->colours));
}

// -samples: the pictures of a folder whose prompts are captions of scenes. Every process looks at all.
static inline void eval_scenes_folder(eval_t* e) {
    const char* folder = e->options.samples;
    char error[IMAGE_ERROR_SIZE];
    scene_scores_t scores;
    prompted_t p;
    size_t unreadable = 0;
    memset(&scores, 0, sizeof scores);
    result_t* result = report_begin(&e->report, "scenes", "samples", folder);
    prompted_open(&p, folder);
    for (size_t i = 0; i < p.pictures.count; i++) {
        scene_t scene;
        image_t image;
        if (!scene_of_caption(&scene, p.prompts.items[i])) {
            fatal("-scenes: %s was drawn from \"%.80s\", which is no caption of a scene; want one such as \"a red "
                  "circle and a blue square on a black background\"", p.pictures.items[i], p.prompts.items[i]);
        }
        if (!image_load(&image, p.pictures.items[i], error)) {
            warn("%s; it is left out", error);
            unreadable++;
            continue;
        }
        scene.H = image.height;
        scene.W = image.width;
        scene_scores_add(&scores, image.pixels, &scene);
        image_free(&image);
    }
    if (unreadable == p.pictures.count) fatal("%s: none of its %zu pictures can be read", folder, unreadable);
    scenes_report(result, &scores);
    report_protocol(result, "pictures", "%zu of %zu prompts", p.pictures.count - unreadable, p.distinct);
    report_protocol(result, "judge", "common/measures/scenes.h");
    if (unreadable) report_protocol(result, "unreadable", "%zu pictures left out", unreadable);
    report_end(&e->report, result);
    prompted_close(&p);
}

// Reconstructions by one tokenizer, whose file is `path`.
static inline void eval_scenes_tokenizer(eval_t* e, const char* path, autoencoder_t* a) {
    const eval_options_t* o = &e->options;
    const char* data = eval_data(o, a->data);
    int H = a->H, W = a->W;
    dataset_t set;
    scene_scores_t scores;
    scene_maker_t maker = {e, NULL, a, NULL};
    size_t count = scenes_open(&set, o, data);
    result_t* result = report_begin(&e->report, "scenes", "tokenizer", path);
    scenes_measure(&maker, &set, count, &scores);
    scenes_report(result, &scores);
    report_protocol(result, "pictures", "%zu reconstructions", count);
    report_protocol(result, "scenes", "%s, val split, by lot", data);
    report_protocol(result, "judge", "common/measures/scenes.h");
    report_protocol(result, "tokenizer", "%s, stage %d, step %lld", a->fingerprint, a->info.stage,
                    (long long)a->info.step);
    if (a->encoder.gaussian) report_protocol(result, "latent", "drawn from the posterior, seed %zu", o->seed);
    report_protocol(result, "weights", "%s", a->weights);
    report_protocol(result, "precision", "%s", PRECISION_NAME);
    report_end(&e->report, result);
    dataset_close(&set);
    autoencoder_resize(a, H, W);
}

// What -dit draws of the captions of held-out scenes.
static inline void eval_scenes_dit(eval_t* e, const char* tokenizer) {
    static pipeline_t g;
    const eval_options_t* o = &e->options;
    dataset_t set;
    scene_scores_t scores;
    drawing_open(&g, &o->drawing, tokenizer, (autoencoder_weights_t)o->tokenizer_weights,
                 drawing_sampler(&o->drawing, o->batch, o->seed));
    if (!g.is_text) fatal("-scenes: %s draws classes and reads no captions; give a text-to-image transformer", g.path);
    size_t count = scenes_open(&set, o, eval_data(o, g.tokenizer.data));
    pipeline_use_text(&g, &o->drawing.text, o->drawing.negative, set.rows, set.columns); // no canvas has more pixels
    pipeline_load(&g);
    scene_maker_t maker = {e, &g, &g.tokenizer, NULL};
    result_t* result = report_begin(&e->report, "scenes", "generator", g.path);
    scenes_measure(&maker, &set, count, &scores);
    scenes_report(result, &scores);
    report_protocol(result, "pictures", "%zu, one of each caption", count);
    report_protocol(result, "captions", "%s, val split, by lot", set.folder);
    report_protocol(result, "judge", "common/measures/scenes.h");
    eval_drawing_protocol(e, result, &g);
    report_protocol(result, "precision", "%s", PRECISION_NAME);
    report_end(&e->report, result);
    dataset_close(&set);
    pipeline_close(&g);
}
