// test_drawing.c: whole drawings, from noise to latents, beside DiT's and SiT's own loops on a network of their kind:
// times, guidance on three channels, learned variance, noise, solvers, in the order in which a drawing has them.
//
// The answers are tests/fixtures/drawing.safetensors. Look next at test_ddpm.c and test_flow.c, where each part is
// tested by itself.

// defines: dit_sampler_t, dit_sampler_open, dit_sampler_latents, dit_sampler_close
#include "common/drawing/dit_sampler.h"
// defines: fixture_open, fixture_tensor, fixture_parameters
#include "tests/fixture.h"
// makes this a test in double
#include "tests/gradient.h"

enum { B = 2, C = 4, HW = 16, IMAGE = HW * C };

typedef struct {
    safetensors_t file;
    lightningdit_t net;
    params_t params;
    plan_t plan;
    int labels[B];
} classic_t;

static void classic_open(classic_t* m) {
    memset(m, 0, sizeof *m);
    fixture_open(&m->file, "drawing");
    lightningdit_config_t config = {"fixture", 2, 40, 2, 2, 1, 0, 0, 1, 1, C, 4, 7};
    m->net.config = config;
    lightningdit_register(&m->net, &m->params.table, "");
    params_allocate(&m->params, m->params.table.total, 0, "parameters");
    lightningdit_plan(&m->net, &m->plan, 2 * B, 0);
    lightningdit_plan_work(&m->net, &m->plan);
    plan_allocate(&m->plan, "activations");
    fixture_parameters(&m->file, &m->params);
    lightningdit_set_tables(&m->net, &m->params);
    floatS* labels = fixture_tensor(&m->file, "input.labels");
    for (int b = 0; b < B; b++) m->labels[b] = (int)labels[b];
    free(labels);
}

static void classic_close(classic_t* m) {
    safetensors_close(&m->file);
    params_free(&m->params), plan_free(&m->plan);
}

// What is drawn, and how `sample -preset dit` or sit says it.
typedef struct {
    const char* name;
    int count; // images: the file's numbers, from the first on
    dit_prediction_t predicts;
    flow_solver_t solver;
    ddpm_kind_t process;
    int points;
    double w;
    double rtol; // 0: the sampler's own
} drawing_t;

static void check_drawing(classic_t* m, const drawing_t* r) {
    static const uint64_t images[B] = {3, 8};
    static dit_sampler_t d;
    static autoencoder_t tokenizer; // of which only the shape of the latent is asked for
    tokenizer.z = C, tokenizer.GH = 4;
    floatS mean[C] = {0}, std[C] = {1, 1, 1, 1}, want[B * IMAGE];
    dit_sampler_options_t options = {r->solver, r->points, 0, {r->w, 0, 3, 0}, B, 11, r->predicts, r->process, 0};
    dit_sampler_open(&d, &m->net, &m->params, &tokenizer, mean, std, options);
    memset(d.plan.memory, 0xFF, plan_bytes(&d.plan)); // NaN
    if (r->rtol > 0) d.sampler.rtol = r->rtol, d.sampler.atol = r->rtol / 100;
    dit_sampler_latents(&d, images, m->labels, r->count, 0);
    char name[64];
    snprintf(name, sizeof name, "output.%s", r->name);
    floatS* file = fixture_tensor(&m->file, name); // (count, C, HW)
    check(safetensors_find(&m->file, name)->numel == (size_t)r->count * IMAGE, name);
    for (int i = 0; i < r->count * IMAGE; i++) want[i] = file[i / IMAGE * IMAGE + i % C * HW + i % IMAGE / C];
    check_error(name, relative_error_double(d.x, want, (size_t)r->count * IMAGE), 1e-6);
    free(file);
    dit_sampler_close(&d);
}

int main(int argc, char** argv) {
    static const drawing_t drawings[] = {
        {"dit_ddpm_250_cfg", 2, PREDICTS_NOISE, FLOW_EULER, DDPM_ANCESTRAL, 250, 4, 0},
        {"dit_ddpm_20", 2, PREDICTS_NOISE, FLOW_EULER, DDPM_ANCESTRAL, 20, 1, 0},
        {"dit_ddim_20_cfg", 2, PREDICTS_NOISE, FLOW_EULER, DDPM_DDIM, 20, 4, 0},
        {"sit_euler_50_cfg", 2, PREDICTS_VELOCITY, FLOW_EULER, DDPM_ANCESTRAL, 50, 4, 0},
        {"sit_dopri5", 1, PREDICTS_VELOCITY, FLOW_DOPRI5, DDPM_ANCESTRAL, 2, 1, 0},
        {"sit_dopri5_cfg", 2, PREDICTS_VELOCITY, FLOW_DOPRI5, DDPM_ANCESTRAL, 2, 4, 1e-9},
        {"sit_sde_250_cfg", 2, PREDICTS_VELOCITY, FLOW_EULER, DDPM_SDE, 250, 4, 0},
        {"sit_sde_20", 2, PREDICTS_VELOCITY, FLOW_EULER, DDPM_SDE, 20, 1, 0},
    };
    static classic_t m;
    test_begin(argc, argv);
    classic_open(&m);
    for (size_t i = 0; i < sizeof drawings / sizeof *drawings; i++) {
        char name[80];
        snprintf(name, sizeof name, "as the originals draw: %s", drawings[i].name);
        if (!test_case(name)) continue;
        check_drawing(&m, &drawings[i]);
        test_end_case();
    }
    classic_close(&m);
    return test_finish();
}
