// eval_sweep.h: `./eval -sweep`: gFID against the number of sampling steps and against the guidance scale (AlignTok,
// Figure 4 left and middle), as lines of a table and as a picture.
//
// One axis at a time: -sweep_steps at the guidance of -cfg, and -sweep_cfg at the steps of -steps. Each point draws
// -n images with the same noise and labels, or captions. A point that is done is written to OUT/sweep.txt and not
// measured again: the same command goes on where it was stopped. Each line there begins with a hash of everything
// that the point depends on beside its two numbers, so a changed model, reference or setting begins a new curve.
// Look next at common/measures/eval_gen.h and common/data/chart.h.
#pragma once
#include <sys/stat.h>

// defines: chart_t, chart_series_t, chart_panels
#include "common/data/chart.h"
// defines: cli_numbers
#include "common/program/cli.h"
// defines: cli_to_json
#include "common/program/cli_saved.h"
// defines: eval_gen
#include "common/measures/eval_gen.h"
// defines: compare_doubles
#include "common/measures/linear_algebra.h"

enum { SWEEP_POINTS = 32, SWEEP_LINE = 200 };

typedef struct {
    int steps, done;
    double cfg, value; // gFID, or what it is called here
} sweep_point_t;

typedef struct {
    eval_t* e;
    char key[17], path[1200], name[32]; // of the settings; of the file; of the score
    int count, steps_count;             // points in all; of them, the first so many vary the steps
    sweep_point_t points[SWEEP_POINTS];
} sweep_t;

static inline void sweep_add(sweep_t* w, int steps, double cfg) {
    if (w->count == SWEEP_POINTS) fatal("-sweep: more than %d points; give fewer", SWEEP_POINTS);
    sweep_point_t* p = &w->points[w->count++];
    memset(p, 0, sizeof *p);
    p->steps = steps;
    p->cfg = cfg;
    p->value = NAN;
}

// All that a point depends on, beside steps and guidance scale.
static inline void sweep_key(sweep_t* w, const image_source_t* samples, const feature_net_t* net,
                             const reference_statistics_t* reference) {
    const pipeline_t* g = samples->pipeline;
    const eval_options_t* o = &w->e->options;
    const drawing_options_t* d = &o->drawing;
    struct stat info;
    char text[4000];
    memset(&info, 0, sizeof info);
    stat(g->path, &info);
    int n = snprintf(text, sizeof text, "%s %lld %lld %s %s %d %016llx %d %zu %d %d %g %g %d %d %d %d %g %d %016llx",
                     g->path, (long long)info.st_size, (long long)info.st_mtime, g->tokenizer.fingerprint, net->hash,
                     o->input, (unsigned long long)reference->hash, o->n, o->seed, d->solver, d->cfg_channels, d->cfg_start,
                     d->shift, o->balanced, d->raw, d->predicts, d->process, d->eta, d->cfg_energy,
                     (unsigned long long)pipeline_statistics_hash(g));
    if (g->is_text) {
        n += snprintf(text + n, sizeof text - n, " %s %d %d %s %.2000s", samples->name, samples->H, samples->W,
                      g->encoder.name, g->negative);
    }
    hash_text(w->key, image_hash(0, (const uint8_t*)text, (size_t)n));
}

// Points that the file has already. One process reads, all know.
static inline void sweep_read(sweep_t* w) {
    char line[SWEEP_LINE], key[17];
    int steps;
    double cfg, value;
    FILE* f = comm_is_first(&w->e->comm) ? fopen(w->path, "r") : NULL;
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%16s %d %lf %lf", key, &steps, &cfg, &value) != 4 || strcmp(key, w->key)) continue;
        for (int i = 0; i < w->count; i++) {
            if (w->points[i].steps != steps || w->points[i].cfg != cfg) continue;
            w->points[i].value = value;
            w->points[i].done = 1;
        }
    }
    if (f) fclose(f);
    for (int i = 0; i < w->count; i++) {
        double shared[2] = {(double)w->points[i].done, w->points[i].done ? w->points[i].value : 0};
        comm_sum_host(&w->e->comm, shared, 2);
        w->points[i].done = shared[0] > 0;
        if (w->points[i].done) w->points[i].value = shared[1];
    }
}

static inline void sweep_write(const sweep_t* w, const sweep_point_t* p) {
    if (!comm_is_first(&w->e->comm)) return;
    FILE* f = fopen(w->path, "a");
    if (!f || fprintf(f, "%s %d %.17g %.17g\n", w->key, p->steps, p->cfg, p->value) < 0 || fclose(f)) {
        fatal("cannot write %s: %s; choose another folder with -out", w->path, strerror(errno));
    }
}

// Both curves so far.
static inline void sweep_picture(const sweep_t* w) {
    if (!comm_is_first(&w->e->comm)) return;
    const eval_options_t* o = &w->e->options;
    double x[SWEEP_POINTS], y[SWEEP_POINTS];
    chart_t charts[2];
    chart_series_t series[2];
    char titles[2][100], path[1200], error[IMAGE_ERROR_SIZE];
    int panels = 0, begin[3] = {0, w->steps_count, w->count};
    memset(charts, 0, sizeof charts);
    memset(series, 0, sizeof series);
    for (int i = 0; i < w->count; i++) {
        x[i] = i < w->steps_count ? w->points[i].steps : w->points[i].cfg;
        y[i] = w->points[i].done ? w->points[i].value : NAN;
    }
    snprintf(titles[0], sizeof titles[0], "guidance %g", o->drawing.cfg > 1 ? o->drawing.cfg : 1);
    snprintf(titles[1], sizeof titles[1], "%d steps", o->drawing.steps);
    for (int k = 0; k < 2; k++) {
        if (begin[k] == begin[k + 1]) continue;
        chart_t* c = &charts[panels];
        series[panels].x = x + begin[k];
        series[panels].y = y + begin[k];
        series[panels].count = begin[k + 1] - begin[k];
        c->title = titles[k];
        c->x_label = k ? "guidance scale" : "sampling steps";
        c->y_label = w->name;
        c->series = &series[panels];
        c->series_count = 1;
        c->logarithmic = c->ticks_at_points = k == 0;
        panels++;
    }
    image_t picture = chart_panels(charts, panels, 520, 600 * panels);
    char* settings = cli_to_json(&w->e->cli);
    image_text_t texts[2] = {{"Program", "eval (aligntok.c)"}, {"Settings", settings}};
    snprintf(path, sizeof path, "%s/sweep.png", o->out);
    if (!image_write_png(path, &picture, texts, 2, error)) fatal("%s; choose another folder with -out", error);
    image_free(&picture);
    free(settings);
}

// The points of -sweep_steps and -sweep_cfg, each in ascending order.
static inline void sweep_points(sweep_t* w) {
    const eval_options_t* o = &w->e->options;
    double values[SWEEP_POINTS];
    for (int axis = 0; axis < 2; axis++) {
        const char* list = axis ? o->sweep_cfg : o->sweep_steps;
        int n = list[0] ? cli_numbers(axis ? "sweep_cfg" : "sweep_steps", list, values, SWEEP_POINTS) : 0;
        qsort(values, n, sizeof values[0], compare_doubles);
        for (int i = 0; i < n; i++) {
            if (!axis && (values[i] < 2 || values[i] != floor(values[i]))) {
                fatal("-sweep_steps %s: %g is no number of steps from 2 on", list, values[i]);
            }
            sweep_add(w, axis ? o->drawing.steps : (int)values[i], axis ? values[i] : o->drawing.cfg);
        }
        if (!axis) w->steps_count = w->count;
    }
    if (!w->count) fatal("-sweep: nothing to vary; give -sweep_steps or -sweep_cfg");
}

// Refuses lists that are none, before hours of work.
static inline void eval_sweep_check(eval_t* e) {
    sweep_t w;
    memset(&w, 0, sizeof w);
    w.e = e;
    sweep_points(&w);
}

static inline void eval_sweep(eval_t* e, const char* subject, image_source_t* samples, feature_net_t* net,
                              const reference_statistics_t* reference, inception_input_t input) {
    static sweep_t w;
    pipeline_t* g = samples->pipeline;
    dit_sampler_options_t options = g->options;
    memset(&w, 0, sizeof w);
    w.e = e;
    make_folder(e->options.out);
    snprintf(w.path, sizeof w.path, "%s/sweep.txt", e->options.out);
    feature_net_score(net, "gFID", w.name);
    sweep_points(&w);
    sweep_key(&w, samples, net, reference);
    sweep_read(&w);
    for (int i = 0; i < w.count; i++) {
        sweep_point_t* p = &w.points[i];
        if (p->done) continue;
        options.points = p->steps;
        options.guidance.w = p->cfg;
        pipeline_use(g, options);
        char name[REPORT_TEXT];
        snprintf(name, sizeof name, "%.150s, %d steps, guidance %g", subject, p->steps, p->cfg);
        result_t* result = eval_gen(e, "sweep", name, samples, net, reference, input, 0);
        for (int k = i; k < w.count; k++) { // both axes may have this point
            if (w.points[k].steps != p->steps || w.points[k].cfg != p->cfg) continue;
            w.points[k].value = result->score[0].value;
            w.points[k].done = 1;
        }
        sweep_write(&w, p);
        sweep_picture(&w);
    }
    sweep_picture(&w);
    printf("\n%-10s %8s %9s\n", "sweep", "steps", "guidance");
    for (int i = 0; i < w.count; i++) {
        printf("%-10s %8d %9g %9.3f\n", i ? "" : w.name, w.points[i].steps, w.points[i].cfg, w.points[i].value);
    }
    printf("  picture: %s/sweep.png\n", e->options.out);
}
