// check_text_models.c: T5 or CLIP as transformers saves them, loaded and compared.
//
//     build/cpu/check_text_models WEIGHTS ANSWERS.safetensors      # made by check_text_models.py
//
// WEIGHTS is a file, an index or a folder. Not part of `make test`: it needs Python, and gigabytes at full size.
#include <math.h>

// defines: t5_load, clip_load_text, clip_load_image, *_config_of_file
#include "common/models/text_weights.h"
// defines: clock_seconds
#include "common/program/clock.h"

static floatS* answer(const safetensors_t* f, const char* name, size_t* n) {
    const st_tensor_t* t = safetensors_find(f, name);
    if (!t) fatal("%s: there is no %s; make the file with check_text_models.py", f->path, name);
    floatS* values = (floatS*)malloc_check(t->numel * sizeof(floatS), name);
    safetensors_read(t, values);
    *n = t->numel;
    return values;
}

static int* integers(const safetensors_t* f, const char* name, size_t* n) {
    floatS* values = answer(f, name, n);
    int* out = (int*)malloc_check(*n * sizeof(int), name);
    for (size_t i = 0; i < *n; i++) out[i] = (int)values[i];
    free(values);
    return out;
}

static double compare(const char* what, double difference, double norm) {
    double error = sqrt(difference / norm);
    printf("  %-8s differs by %.2e (bound 1e-5)\n", what, error);
    return error;
}

static double compare_all(const safetensors_t* f, const char* name, const floatS* got) {
    size_t n;
    floatS* want = answer(f, name, &n);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += (double)want[i] * want[i];
    }
    free(want);
    return compare(name, difference, norm);
}

// The answers' rows are left-aligned.
static double check_t5(const char* weights, const safetensors_t* f) {
    static t5_t t;
    params_t params;
    plan_t plan = {0};
    size_t B, n, values;
    int *counts = integers(f, "t5.counts", &B), *ids = integers(f, "t5.ids", &n), T = (int)(n / B);
    floatS* want = answer(f, "t5.rows", &values);
    memset(&params, 0, sizeof params);
    t.config = t5_config_of_file(weights);
    t5_register(&t, &params.table, "");
    params_allocate(&params, params.table.total, 0, "parameters");
    t5_plan(&t, &plan, (int)B, T);
    plan_allocate(&plan, "activations");
    t5_load(&params, "", weights);
    double start = clock_seconds(), difference = 0, norm = 0;
    t5_forward(&t, &params, ids, counts, 0);
    printf("%s: %s, %zu parameters, %.2f s\n", weights, t.config.id, param_count(&params.table, 0, params.table.total),
           clock_seconds() - start);
    size_t D = (size_t)t.config.dim;
    for (size_t b = 0; b < B; b++) {
        for (size_t i = 0; i < counts[b] * D; i++) {
            double got = t.rows[(b * T + T - counts[b]) * D + i], wanted = want[b * T * D + i];
            difference += (got - wanted) * (got - wanted);
            norm += wanted * wanted;
        }
    }
    return compare("t5.rows", difference, norm);
}

static clip_config_t clip_config(const char* weights, const safetensors_t* f) {
    if (!safetensors_find(f, "clip.config")) return *clip_config_of_file(weights);
    size_t n;
    int* v = integers(f, "clip.config", &n);
    clip_config_t c = {"small", v[0], v[1] ? ACT_QUICK_GELU : ACT_GELU, v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9],
                       v[10], v[11], v[12], v[13]};
    return c;
}

// A file without an image tower has no answers for one.
static double check_clip(const char* weights, const safetensors_t* f) {
    static clip_text_t text;
    static clip_image_t image;
    params_t params;
    plan_t plan = {0};
    size_t n, pixels;
    int *ids = integers(f, "clip.ids", &n), whole = safetensors_find(f, "clip.pixels") != NULL;
    clip_config_t config = clip_config(weights, f);
    int T = config.context, B = (int)(n / T);
    memset(&params, 0, sizeof params);
    text.project = whole;
    clip_register_text(&text, &config, &params.table, "text.");
    if (whole) clip_register_image(&image, &config, &params.table, "image.");
    params_allocate(&params, params.table.total, 0, "parameters");
    clip_plan_text(&text, &plan, B, T);
    if (whole) clip_plan_image(&image, &plan, B);
    plan_allocate(&plan, "activations");
    clip_load_text(&params, "text.", weights);
    double start = clock_seconds();
    clip_text_forward(&text, &params, ids, 0);
    printf("%s: %s, %zu parameters, %.2f s for the text\n", weights, config.id,
           param_count(&params.table, 0, params.table.total), clock_seconds() - start);
    double error = compare_all(f, "clip.pooled", text.pooled);
    if (!whole) return error;
    clip_load_image(&params, "image.", weights);
    clip_image_forward(&image, &params, answer(f, "clip.pixels", &pixels), 0);
    error = fmax(error, compare_all(f, "clip.text", text.projected));
    return fmax(error, compare_all(f, "clip.image", image.projected));
}

int main(int argc, char** argv) {
    if (argc != 3) fatal("usage: check_text_models WEIGHTS ANSWERS.safetensors (see check_text_models.py)");
    safetensors_t f;
    safetensors_open_or_die(&f, argv[2]);
    double error = safetensors_find(&f, "t5.ids") ? check_t5(argv[1], &f) : check_clip(argv[1], &f);
    return error <= 1e-5 ? 0 : 1;
}
