// test_ddpm.c: the reversed diffusion process, and the stochastic equation of a flow: times and coefficients beside the
// originals', normal data, whose noise and velocity are known in closed form, images that do not depend on their batch.

// defines: ddpm_sampler_t, ddpm_plan_steps, ddpm_sampler_plan, ddpm_sample, ddpm_sampler_free
#include "common/drawing/ddpm_sampler.h"
// defines: check_gradient and others; random_buffer
#include "tests/gradient.h"

enum { HW = 6, C = 2, N = HW * C };

// A step's share of x and of e, and the deviation that f = -1 and f = 1 give, as p_sample and ddim_sample of
// facebookresearch/DiT answer to x, e, f and noise of 0 and 1 (in float64).
typedef struct { int step, t; double x_share, out_share, least, most; } expected_t;

static void test_coefficients(const char* name, ddpm_kind_t kind, int steps, double eta, int sum,
                              const expected_t* rows, int count) {
    if (!test_case(name)) return;
    ddpm_step_t step[DDPM_TIMES];
    ddpm_plan_steps(step, steps, kind, eta);
    int total = 0;
    for (int i = 0; i < steps; i++) total += (int)step[i].t;
    check(total == sum, "the times");
    for (int i = 0; i < count; i++) {
        const expected_t* e = &rows[i];
        const ddpm_step_t* s = &step[e->step];
        check((int)s->t == e->t, "time");
        check_error("share of x", fabs(s->x_share / e->x_share - 1), 1e-9);
        check_error("share of the noise", fabs(s->out_share / e->out_share - 1), 1e-9);
        check(s->noisy == (e->most > 0), "noise is added");
        if (!s->noisy) continue;
        check_error("least deviation", fabs(exp(s->log_least / 2) / e->least - 1), 1e-9);
        check_error("largest deviation", fabs(exp(s->log_most / 2) / e->most - 1), 1e-9);
    }
    test_end_case();
}

// The same for the equation, as the steps of willisma/SiT's sample_sde (Euler, sigma, Mean, 0.04) answer to x, v and
// noise of 0 and 1 (in float64).
typedef struct { int step; double t, x_share, out_share, deviation; } expected_sde_t;

static void test_equation(const char* name, int steps, const expected_sde_t* rows, int count) {
    if (!test_case(name)) return;
    ddpm_step_t step[DDPM_TIMES];
    ddpm_plan_sde(step, steps);
    for (int i = 0; i < count; i++) {
        const expected_sde_t* e = &rows[i];
        const ddpm_step_t* s = &step[e->step];
        check_error("time", fabs(s->t - e->t), 1e-12);
        check_error("share of x", fabs(s->x_share / e->x_share - 1), 1e-9);
        check_error("share of the velocity", fabs(s->out_share / e->out_share - 1), 1e-9);
        check(s->noisy == (e->deviation > 0), "noise is added");
        if (!s->noisy) continue;
        check_error("least deviation", fabs(exp(s->log_least / 2) / e->deviation - 1), 1e-9);
        check_error("largest deviation", fabs(exp(s->log_most / 2) / e->deviation - 1), 1e-9);
    }
    test_end_case();
}

typedef struct { double deviation; int calls; } normal_data_t;

static double product_at(double time) {
    double product = 1;
    for (int t = 0; t <= (int)time; t++) product *= 1 - (1e-4 + (2e-2 - 1e-4) * t / (DDPM_TIMES - 1));
    return product;
}

// The noise to be expected in x where data are normal with this deviation; f is a number of the place.
static void predict_normal(void* model, floatS* out, const floatS* x, const double* t, int B, stream_t s) {
    (void)s;
    normal_data_t* m = (normal_data_t*)model;
    m->calls++;
    for (int b = 0; b < B; b++) {
        double A = product_at(t[b]), share = sqrt(1 - A) / (A * m->deviation * m->deviation + 1 - A);
        for (int i = 0; i < N; i++) {
            double* at = out + ((size_t)b * HW + i / C) * 2 * C + i % C;
            at[0] = share * x[(size_t)b * N + i];
            at[C] = -1 + 2 * ((i * 7 + 3) % 11) / 10.0;
        }
    }
}

// Where data are normal with this deviation, the velocity to be expected at time t is
//   v = (t d^2 - (1 - t)) / (t^2 d^2 + (1 - t)^2) x
static void velocity_normal(void* model, floatS* v, const floatS* x, const double* t, int B, stream_t s) {
    (void)s;
    normal_data_t* m = (normal_data_t*)model;
    m->calls++;
    for (int i = 0; i < B * N; i++) {
        double at = t[i / N], data = at * m->deviation * m->deviation, rest = 1 - at;
        v[i] = (data - rest) / (at * data + rest * rest) * x[i];
    }
}

// Along a velocity (with eta 1) or along noise.
static void draw(ddpm_kind_t kind, int steps, double deviation, int velocity, floatS* x, const uint64_t* images,
                 int B) {
    ddpm_sampler_t d;
    plan_t plan = {0};
    normal_data_t model = {deviation, 0};
    ddpm_sampler_plan(&d, &plan, kind, steps, velocity, 0.6, B, HW, C, velocity ? C : 2 * C);
    plan_allocate(&plan, "sampling");
    memset(plan.memory, 0xFF, plan_bytes(&plan)); // NaN
    ddpm_sample(&d, x, images, B, velocity ? velocity_normal : predict_normal, &model, 5, 0);
    check(model.calls == steps, "one evaluation a step");
    ddpm_sampler_free(&d);
    plan_free(&plan);
}

// Without noise the process is an equation that carries a normal variable into another: x(0) / x(T) is the ratio of
// their deviations.
static void test_normal_data(void) {
    if (!test_case("ddim carries normal noise into normal data")) return;
    double A = product_at(DDPM_TIMES - 1), last = product_at(0);
    for (double deviation = 0.3; deviation < 2; deviation *= 2) {
        double* x = random_buffer(N);
        double* start = (double*)malloc_check(N * sizeof(double), "x");
        memcpy(start, x, N * sizeof(double));
        uint64_t image = 3;
        draw(DDPM_DDIM, DDPM_TIMES, deviation, 0, x, &image, 1);
        double ratio = deviation / sqrt(A * deviation * deviation + 1 - A);
        for (int i = 0; i < N; i++) start[i] *= ratio;
        check_error("x", relative_error_double(x, start, N), 5 * (1 - last) / deviation + 0.01);
        free(x), free(start);
    }
    test_end_case();
}

// The equation makes normal data of normal noise, whatever it adds on the way: their deviation is that of the data.
static void test_normal_equation(void) {
    if (!test_case("sde: normal noise becomes normal data (error of the deviation)")) return;
    enum { IMAGES = 400 };
    for (double deviation = 0.5; deviation < 2; deviation *= 2) {
        double* x = random_buffer(IMAGES * N);
        uint64_t images[IMAGES];
        for (int b = 0; b < IMAGES; b++) images[b] = (uint64_t)b * 3;
        draw(DDPM_SDE, 400, deviation, 1, x, images, IMAGES);
        double found = sqrt(dot(x, x, IMAGES * N) / (IMAGES * N));
        check_error("deviation", fabs(found / deviation - 1), 0.05); // 4800 numbers: 0.01; the last step: 0.02
        free(x);
    }
    test_end_case();
}

// Along the velocity of normal data with deviation 1, DDIM's steps multiply a variance and add to it, which gives the
// variance of what is drawn. As 50 steps of minFM, whose times are those for 256 tokens (in float64).
static void test_velocity(void) {
    if (!test_case("ddim along a velocity: one step; the variance of normal data, drawn")) return;
    static const struct { ddpm_kind_t kind; double eta, variance, drawn, deviation; } cases[] = {
        {DDPM_DDIM, 0, 0.946073, 0.9, 0},             {DDPM_DDIM, 0.5, 0.929787, NAN, 0},
        {DDPM_DDIM, 1, 0.910497, 0.735, 0.396863},    {DDPM_DDIM_SONG, 0.5, 0.934259, NAN, 0},
        {DDPM_DDIM_SONG, 1, 0.890702, 0.4875, 0.556215},
    };
    ddpm_step_t step[50];
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        double variance = 1;
        ddpm_plan_velocity(step, 50, cases[k].kind, cases[k].eta, exp(-0.5));
        for (int i = 0; i < 50; i++) {
            double t = step[i].t, share = step[i].x_share + step[i].out_share * (2 * t - 1) / (1 - 2 * t + 2 * t * t);
            variance = share * share * variance + (step[i].noisy ? exp(step[i].log_least) : 0);
        }
        check_error("variance", fabs(variance - cases[k].variance), 5e-7);
        check(!step[49].noisy && step[49].x_share == 1, "the last step ends in the data");
        if (isnan(cases[k].drawn)) continue;
        ddpm_plan_velocity(step, 5, cases[k].kind, cases[k].eta, 0); // step 1, from 0.2 to 0.4: 0.8 to 0.6 in minFM
        double drawn = step[1].x_share - step[1].out_share * 0.5; // of x = 1 and minFM's velocity 0.5
        check_error("a step", fabs(drawn - cases[k].drawn), 1e-12);
        check(step[1].noisy == (cases[k].eta > 0), "with noise");
        if (step[1].noisy) check_error("its deviation", fabs(exp(step[1].log_most / 2) - cases[k].deviation), 5e-7);
    }
    test_end_case();
}

// Without noise DDIM along a velocity is Euler's method, in both forms, whatever the grid.
static void test_velocity_euler(void) {
    if (!test_case("ddim along a velocity, eta 0: Euler's method")) return;
    ddpm_step_t step[13];
    double t[14];
    for (int form = 0; form < 4; form++) {
        double shift = form / 2 ? 0.3 : 0;
        flow_grid(t, 14, shift);
        ddpm_plan_velocity(step, 13, form % 2 ? DDPM_DDIM_SONG : DDPM_DDIM, 0, shift);
        for (int i = 0; i < 13; i++) {
            check(step[i].t == t[i] && !step[i].noisy, "the same times, no noise");
            check_error("share of x", fabs(step[i].x_share - 1), 1e-15);
            check_error("share of the velocity", fabs(step[i].out_share - (t[i + 1] - t[i])), 1e-15);
        }
    }
    test_end_case();
}

static void test_batches(ddpm_kind_t kind, int velocity, const char* name) {
    if (!test_case(name)) return;
    uint64_t images[3] = {11, 4, 900};
    double* start = random_buffer(3 * N);
    double* together = (double*)malloc_check(3 * N * sizeof(double), "x");
    memcpy(together, start, 3 * N * sizeof(double));
    draw(kind, 20, 0.5, velocity, together, images, 3);
    for (int b = 0; b < 3; b++) {
        draw(kind, 20, 0.5, velocity, start + b * N, images + b, 1);
        check(!memcmp(start + b * N, together + b * N, N * sizeof(double)), "the same bits");
    }
    free(start), free(together);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    const expected_t ddpm[] = {
        {0, 999, 1.0411693294, -0.0807123931653, 0.278422488457, 0.278422960606},
        {1, 995, 1.04100004901, -0.0803870592402, 0.277883109853, 0.277883618546},
        {100, 598, 1.02440217257, -0.0488673400848, 0.216822033545, 0.216966235371},
        {248, 4, 1.00029966743, -0.0226654389929, 0.00925756633277, 0.0244758159103},
        {249, 0, 1.00005000375, -0.0100005000375, 0, 0},
    };
    const expected_t ddim[] = {
        {0, 999, 1.22152040398, -0.263639214074, 0.287142175392, 0.287142175392},
        {25, 489, 1.10184370165, -0.130208759634, 0.207802409367, 0.207802409367},
        {48, 20, 1.00309692118, -0.0707110419172, 0.00496018051499, 0.00496018051499},
        {49, 0, 1.00005000375, -0.0100005000375, 0, 0},
    };
    const expected_t few[] = {
        {0, 999, 4.69365811023, -3.69400804936, 0, 0},
        {3, 500, 2.02376161316, -1.11799248415, 0, 0},
        {6, 0, 1.00005000375, -0.0100005000375, 0, 0},
    };
    test_coefficients("ddpm, 250 of 1000 times", DDPM_ANCESTRAL, 250, 0, 124875, ddpm, 5);
    test_coefficients("ddim, 50 times, eta 0.5", DDPM_DDIM, 50, 0.5, 24975, ddim, 4);
    test_coefficients("ddim, 7 times", DDPM_DDIM, 7, 0, 3496, few, 3);
    const expected_sde_t sde[] = {
        {0, 0, 0.996144578313, 0.00385542168675, 0.0878114079918},
        {1, 0.00385542168675, 0.996144578313, 0.00387028596313, 0.0876419695165},
        {125, 0.481927710843, 0.996144578313, 0.00571345623458, 0.0632042267403},
        {248, 0.956144578313, 0.996144578313, 0.00754176222964, 0.0183891894249},
        {249, 0.96, 0.96, 0.0784, 0},
    };
    const expected_sde_t short_sde[] = {
        {0, 0, 0.76, 0.24, 0.692820323028},
        {3, 0.72, 0.76, 0.4128, 0.366606055596},
        {4, 0.96, 0.96, 0.0784, 0},
    };
    test_equation("sde, 250 steps", 250, sde, 5);
    test_equation("sde, 5 steps", 5, short_sde, 3);
    test_normal_data();
    test_normal_equation();
    test_velocity();
    test_velocity_euler();
    test_batches(DDPM_ANCESTRAL, 0, "ddpm: an image does not depend on its batch");
    test_batches(DDPM_SDE, 1, "sde: an image does not depend on its batch");
    test_batches(DDPM_DDIM, 1, "ddim along a velocity: an image does not depend on its batch");
    return test_finish();
}
