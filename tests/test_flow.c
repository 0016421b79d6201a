// The samplers of flow matching, on fields whose solutions are known, and against torchdiffeq.

#include <omp.h>

// defines: flow_noise, flow_guided_velocity, flow_network_t, flow_sampler_t, flow_sample, flow_grid, flow_evaluations
#include "common/drawing/flow_sampler.h"
// defines: lightningdit_t, lightningdit_register, lightningdit_plan, lightningdit_set_tables, lightningdit_forward
#include "common/models/lightningdit.h"
// defines: mmdit_time_shift
#include "common/models/mmdit.h"
// defines: fixture_open, fixture_tensor, fixture_parameters
#include "tests/fixture.h"
// defines: random_buffer, poisoned_buffer (this makes floatX double)
#include "tests/gradient.h"
// defines: temporary_begin, check_message, temporary_end
#include "tests/temporary.h"

enum { N = 6 }; // numbers an image in most cases

// A field given by a function of one number; images and numbers do not touch each other.
typedef double (*scalar_fn)(double x, double t);
typedef struct {
    scalar_fn f;
    int calls, asked; // calls of the field, and the images in them that were not done
    double least, most; // times it was called at
} scalar_field_t;

static void scalar_velocity(void* model, floatS* v, const floatS* x, const double* t, int B, stream_t s) {
    scalar_field_t* field = (scalar_field_t*)model;
    (void)s;
    field->calls++;
    for (int b = 0; b < B; b++) {
        field->asked += t[b] != FLOW_DONE;
        if (t[b] != FLOW_DONE) field->least = fmin(field->least, t[b]), field->most = fmax(field->most, t[b]);
        for (int i = 0; i < N; i++) v[b * N + i] = t[b] == FLOW_DONE ? 1e3 : field->f(x[b * N + i], t[b]);
    }
}

// A sampler with its memory.
typedef struct {
    flow_sampler_t sampler;
    plan_t plan;
} sampler_t;

static void sampler_open(sampler_t* m, flow_solver_t solver, int points, double shift, int max_batch, size_t n) {
    memset(m, 0, sizeof *m);
    flow_sampler_plan(&m->sampler, &m->plan, solver, points, shift, max_batch, n);
    plan_allocate(&m->plan, "sampler");
    memset(m->plan.memory, 0xFF, plan_bytes(&m->plan)); // NaN everywhere
}
static void sampler_close(sampler_t* m) {
    flow_sampler_free(&m->sampler);
    plan_free(&m->plan);
}

// x(1) of B images, in place; returns the field's counts.
static scalar_field_t draw(flow_solver_t solver, int points, double shift, double rtol, scalar_fn f, double* x, int B) {
    sampler_t m;
    int counted = 0;
    sampler_open(&m, solver, points, shift, B, N);
    if (rtol > 0) m.sampler.rtol = rtol, m.sampler.atol = rtol * 1e-3;
    scalar_field_t field = {f, 0, 0, 1, 0};
    flow_sample(&m.sampler, x, B, scalar_velocity, &field, 0);
    for (int b = 0; b < B; b++) counted += m.sampler.images[b].evaluations;
    check(counted == field.asked, "evaluations are counted for each image");
    sampler_close(&m);
    return field;
}

static double flow_linear(double x, double t) { (void)t; return -1.7 * x; }
static double flow_cubic(double x, double t) { (void)x; return 1 - 2 * t + 3 * t * t - 4 * t * t * t; }
static double flow_quadratic(double x, double t) { (void)x; return 1 - 2 * t + 3 * t * t; }
static double flow_line(double x, double t) { (void)x; return 1 - 2 * t; }
static double flow_constant(double x, double t) { (void)x, (void)t; return 0.75; }
static double flow_straight(double x, double t) { return (2.5 - x) / (1 - t); } // all of it ends at 2.5

// dx/dt = g(t) x (1 - x):  x(1) = 1 / (1 + (1 / x0 - 1) exp(-G)), G the integral of g = 1 + 4t, which is 3.
static double flow_logistic(double x, double t) { return (1 + 4 * t) * x * (1 - x); }
static double logistic_end(double x0) { return 1 / (1 + (1 / x0 - 1) * exp(-3.0)); }

static void test_grid(void) {
    if (!test_case("time grid: ends, shift, none")) return;
    double t[250];
    flow_grid(t, 250, 0.3);
    check(t[0] == 0 && t[249] == 1, "ends are exactly 0 and 1");
    check_error("first step", fabs(t[1] - 0.00121), 5e-6);
    check_error("last step", fabs(1 - t[248] - 0.01326), 5e-6);
    int below = 0, below11 = 0, below125 = 0;
    for (int i = 0; i < 249; i++) {
        check(t[i] < t[i + 1], "times grow");
        below += t[i] < 0.10, below11 += t[i] < 0.11, below125 += t[i] < 0.125;
        double tau = t[i] / (0.3 + 0.7 * t[i]);
        check_error("inverse of the shift", fabs(tau - i / 249.0), 1e-14);
    }
    check(below == 68 && below11 == 73 && below125 == 81, "68, 73 and 81 times before 0.10, 0.11 and 0.125");
    for (int shift = 0; shift < 2; shift++) {
        flow_grid(t, 11, shift);
        for (int i = 0; i < 11; i++) check_error("no shift", fabs(t[i] - i / 10.0), 1e-15);
    }
    flow_grid(t, 2, 0.3);
    check(t[0] == 0 && t[1] == 1, "two points");
    test_end_case();
    if (!test_case("time grid of the text-to-image transformer")) return; // minFM's, of 256 tokens; its 1 is our 0
    flow_grid(t, 51, 1 / mmdit_time_shift(256));
    check_error("first step", fabs(1 - t[1] - 0.987773), 5e-7);
    check_error("middle", fabs(1 - t[25] - 0.622459), 5e-7);
    check_error("last step", fabs(1 - t[49] - 0.032552), 5e-7);
    check_error("1024 tokens", fabs(mmdit_time_shift(1024) - 1.87761), 5e-6);
    check_error("64 tokens", fabs(log(mmdit_time_shift(64)) - 0.4675), 1e-12);
    test_end_case();
}

static void test_names(void) {
    if (!test_case("solvers by name")) return;
    for (int i = 0; i < FLOW_SOLVERS; i++) check((int)flow_solver_by_name(flow_methods[i].name) == i, "own name");
    check(flow_solver_by_name("heun2") == FLOW_HEUN, "heun2 is heun");
    check(flow_solver_by_name("rk5") == FLOW_SOLVERS && flow_solver_by_name("") == FLOW_SOLVERS, "others are none");
    test_end_case();
}

// Weights of a stage add up to its time, those of a step to 1.
static void test_tables(void) {
    if (!test_case("tables: rows add up to their times")) return;
    double lower = 0, middle = 0;
    for (int m = 0; m < FLOW_SOLVERS; m++) {
        const flow_method_t* method = &flow_methods[m];
        double step = 0;
        for (int j = 0; j < method->stages; j++) {
            double row = 0;
            for (int i = 0; i < j; i++) row += method->a[j][i];
            check_error(method->name, fabs(row - method->c[j]), 2e-15);
            step += method->b[j];
        }
        check_error(method->name, fabs(step - 1), 1e-15);
    }
    for (int i = 0; i < FLOW_STAGES; i++) lower += flow_dopri5_lower[i], middle += flow_dopri5_middle[i];
    check_error("dopri5, order 4", fabs(lower - 1), 1e-15);
    check_error("dopri5, middle", fabs(middle - 0.5), 1e-15);
    test_end_case();
}

// On dx/dt = lambda x a method with as many stages as its order multiplies by the first terms of exp(lambda h).
static void test_linear(flow_solver_t solver) {
    char name[80];
    snprintf(name, sizeof name, "%s: a linear field, exactly", flow_methods[solver].name);
    if (!test_case(name)) return;
    double *x = random_buffer(3 * N), *want = random_buffer(3 * N), t[14];
    memcpy(want, x, 3 * N * sizeof(double));
    flow_grid(t, 14, 0.3);
    for (int step = 0; step < 13; step++) {
        double term = 1, factor = 1;
        for (int k = 1; k <= flow_methods[solver].order; k++) {
            term *= -1.7 * (t[step + 1] - t[step]) / k;
            factor += term;
        }
        for (int i = 0; i < 3 * N; i++) want[i] *= factor;
    }
    scalar_field_t field = draw(solver, 14, 0.3, 0, flow_linear, x, 3);
    check_error("x(1)", relative_error_double(x, want, 3 * N), 1e-14);
    check(field.calls == 13 * flow_methods[solver].stages, "calls of the field");
    free(x), free(want);
    test_end_case();
}

// A method of order p integrates polynomials of degree p - 1 in t without an error.
static void test_polynomials(flow_solver_t solver) {
    static const scalar_fn fields[] = {NULL, flow_constant, flow_line, flow_quadratic, flow_cubic, flow_cubic};
    static const double ends[] = {0, 0.75, 0, 1, 0, 0};
    const flow_method_t* method = &flow_methods[solver];
    char name[80];
    snprintf(name, sizeof name, "%s: a polynomial of degree %d in t, exactly", method->name, method->order - 1);
    if (!test_case(name)) return;
    double *x = random_buffer(N), *want = random_buffer(N);
    for (int i = 0; i < N; i++) want[i] = x[i] + ends[method->order];
    draw(solver, 5, 0.3, 0, fields[method->order], x, 1);
    check_error("x(1)", relative_error_double(x, want, N), 1e-14);
    free(x), free(want);
    test_end_case();
}

static double logistic_error(flow_solver_t solver, int points, double shift, double rtol, int* evaluations) {
    double x[N], want[N];
    for (int i = 0; i < N; i++) x[i] = 0.05 + 0.12 * i, want[i] = logistic_end(x[i]);
    *evaluations = draw(solver, points, shift, rtol, flow_logistic, x, 1).calls;
    return relative_error_double(x, want, N);
}

// The error falls as the power `order` of the step: slope between 160 and 320 steps.
static void test_order(flow_solver_t solver) {
    char name[80];
    snprintf(name, sizeof name, "%s: order of convergence %d", flow_methods[solver].name, flow_methods[solver].order);
    if (!test_case(name)) return;
    for (int shifted = 0; shifted < 2; shifted++) {
        int calls;
        double coarse = logistic_error(solver, 161, shifted ? 0.3 : 0, 0, &calls);
        double fine = logistic_error(solver, 321, shifted ? 0.3 : 0, 0, &calls);
        check_error("slope", fabs(log2(coarse / fine) - flow_methods[solver].order), 0.1);
    }
    test_end_case();
}

static void test_straight(void) {
    if (!test_case("euler: straight paths end at the image after any steps")) return;
    for (int points = 2; points < 40; points += 7) {
        double *x = random_buffer(N), want[N];
        for (int i = 0; i < N; i++) want[i] = 2.5;
        scalar_field_t field = draw(FLOW_EULER, points, 0.3, 0, flow_straight, x, 1);
        check_error("x(1)", relative_error_double(x, want, N), 1e-14);
        check(field.calls == points - 1 && field.most < 1, "one evaluation a step, none at t = 1");
        free(x);
    }
    test_end_case();
}

static void test_stage_times(void) {
    if (!test_case("stages at the end of the last step stand at exactly t = 1")) return;
    for (int solver = FLOW_HEUN; solver <= FLOW_RK4; solver += FLOW_RK4 - FLOW_HEUN) {
        for (int points = 2; points < 60; points++) {
            double* x = random_buffer(N);
            scalar_field_t field = draw((flow_solver_t)solver, points, 0.3, 0, flow_linear, x, 1);
            check(field.most == 1 && field.least == 0, "times reach from 0 to 1");
            free(x);
        }
    }
    test_end_case();
}

static void test_dopri5(void) {
    if (!test_case("dopri5: within its tolerance, which the work follows")) return;
    double error[4];
    int calls[4];
    for (int i = 0; i < 4; i++) {
        double rtol = pow(10, -3 - 2 * i);
        error[i] = logistic_error(FLOW_DOPRI5, 2, 0, i ? rtol : 0, &calls[i]);
        check_error("error / rtol", error[i] / rtol, 2); // rtol bounds a step's own error, and there are several
        if (i) check(calls[i] > calls[i - 1] && error[i] < error[i - 1], "less tolerance: more work, less error");
    }
    check(calls[0] > 6 && calls[0] < 60, "a few steps at 1e-3");
    int other;
    check(logistic_error(FLOW_DOPRI5, 77, 0.3, 0, &other) == error[0] && other == calls[0], "the grid does not matter");
    test_end_case();
}

// A field that a step of full size overshoots: some tries fail, and the result is right all the same.
static double flow_bump(double x, double t) { return x * 8 / (1 + 64 * (t - 0.6) * (t - 0.6)); }
static void test_dopri5_rejects(void) {
    if (!test_case("dopri5: steps that fail are tried again smaller")) return;
    double x[N], want[N];
    double G = atan(8 * 0.4) + atan(8 * 0.6);
    for (int i = 0; i < N; i++) x[i] = 1 + i, want[i] = x[i] * exp(G);
    sampler_t m;
    sampler_open(&m, FLOW_DOPRI5, 2, 0, 1, N);
    scalar_field_t field = {flow_bump, 0, 0, 1, 0};
    flow_sample(&m.sampler, x, 1, scalar_velocity, &field, 0);
    check_error("x(1)", relative_error_double(x, want, N), 1e-2); // torchdiffeq errs by 8.63e-3 in 56 evaluations
    check(field.calls == 56, "as many evaluations");
    check(field.calls == 2 + 6 * m.sampler.steps && field.calls == field.asked, "six evaluations a try");
    check(m.sampler.images[0].evaluations == field.calls, "counted");
    check(field.most > 1, "the last step may pass t = 1");
    sampler_close(&m);
    test_end_case();
}

static double flow_zero(double x, double t) { (void)x, (void)t; return 0; }
static void test_dopri5_edges(void) {
    if (!test_case("dopri5: no velocity; a state of zeros")) return;
    double *x = random_buffer(2 * N), *want = random_buffer(2 * N);
    memcpy(want, x, 2 * N * sizeof(double));
    draw(FLOW_DOPRI5, 2, 0, 0, flow_zero, x, 2);
    check(!memcmp(x, want, 2 * N * sizeof(double)), "x stays");
    for (int i = 0; i < 2 * N; i++) x[i] = 0, want[i] = 0.75;
    draw(FLOW_DOPRI5, 2, 0, 0, flow_constant, x, 2);
    check_error("from zero", relative_error_double(x, want, 2 * N), 1e-9);
    test_end_case();
    free(x), free(want);
}

// One image, and the same image third of seven: the same bits.
static double flow_pendulum(double x, double t) { return 5 * sin(3 * x) + cos(7 * t) - 0.3 * x; }
static void test_batches(flow_solver_t solver) {
    char name[80];
    snprintf(name, sizeof name, "%s: an image does not depend on its batch", flow_methods[solver].name);
    if (!test_case(name)) return;
    enum { B = 7 };
    uint64_t images[B] = {5, 0, 1000000007, 3, 2, 77, 1}, one[1] = {1000000007};
    double *x = poisoned_buffer(B * N), *alone = poisoned_buffer(N);
    flow_noise(x, images, B, N, 99, 0);
    flow_noise(alone, one, 1, N, 99, 0);
    for (int i = 0; i < N; i++) x[5 * N + i] *= 100, x[1 * N + i] *= 1e-3; // others that need other steps
    check(!memcmp(alone, x + 2 * N, N * sizeof(double)), "noise");
    scalar_field_t seven = draw(solver, 20, 0.3, 0, flow_pendulum, x, B);
    scalar_field_t single = draw(solver, 20, 0.3, 0, flow_pendulum, alone, 1);
    check(!memcmp(alone, x + 2 * N, N * sizeof(double)), "x(1)");
    if (solver == FLOW_DOPRI5) check(seven.asked < B * seven.calls && seven.calls > single.calls, "images end apart");
    free(x), free(alone);
    test_end_case();
}

static void test_noise(void) {
    if (!test_case("noise: the rows of normal_rows, in any order")) return;
    enum { n = 37 }; // rows that begin within a block of four
    double rows[9 * n], x[4 * n];
    uint64_t images[4] = {8, 3, 4, 3}, all[9] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    normal_rows(rows, all, 9, n, 1234, RANDOM_NOISE, 0, 0);
    flow_noise(x, images, 4, n, 1234, 0);
    for (int b = 0; b < 4; b++) check(!memcmp(x + b * n, rows + images[b] * n, n * sizeof(double)), "row");
    images[0] = 9;
    flow_noise(x, images, 4, n, 1234, 0);
    check(memcmp(x, rows + 8 * n, n * sizeof(double)) != 0, "another image, another noise");
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// torchdiffeq on a small LightningDiT: tests/fixtures/sampler.safetensors

typedef struct {
    safetensors_t file;
    lightningdit_t dit;
    params_t params;
    plan_t plan;
    int labels[2];
} dit_t;

static void dit_network(void* model, floatX* v, const floatX* xt, const floatS* t, const int* labels, int B,
                        stream_t s) {
    dit_t* m = (dit_t*)model;
    const lightningdit_config_t* c = &m->dit.config;
    lightningdit_forward(&m->dit, &m->params, xt, t, labels, B, s); // the host's memory is the device's
    copy_on_device(v, m->dit.v, (size_t)B * c->side * c->side * c->C * sizeof(floatX), s);
}

// The model of the file, for passes of up to 3 images.
static void dit_open(dit_t* m) {
    memset(m, 0, sizeof *m);
    fixture_open(&m->file, "sampler");
    lightningdit_config_t config = {"fixture", 2, 32, 2, 1, 0, 0, 0, 0, 0, 5, 4, 7};
    m->dit.config = config;
    lightningdit_register(&m->dit, &m->params.table, "");
    params_allocate(&m->params, m->params.table.total, 0, "parameters");
    lightningdit_plan(&m->dit, &m->plan, 3, 0);
    lightningdit_plan_work(&m->dit, &m->plan);
    plan_allocate(&m->plan, "activations");
    fixture_parameters(&m->file, &m->params);
    lightningdit_set_tables(&m->dit, &m->params);
    floatS* labels = fixture_tensor(&m->file, "input.labels");
    for (int b = 0; b < 2; b++) m->labels[b] = (int)labels[b];
    free(labels);
}
static void dit_close(dit_t* m) {
    safetensors_close(&m->file);
    params_free(&m->params), plan_free(&m->plan);
}

// A state (B, C, HW) of the file as (B, HW, C).
enum { DIT_C = 5, DIT_HW = 16, DIT_IMAGE = DIT_C * DIT_HW };
static void channels_last(floatS* out, const floatS* file, int B) {
    for (int i = 0; i < B * DIT_IMAGE; i++) {
        out[i] = file[i / DIT_IMAGE * DIT_IMAGE + i % DIT_C * DIT_HW + i % DIT_IMAGE / DIT_C];
    }
}

// Compares the state after each step with the row of the file.
typedef struct {
    const floatS *x, *rows; // (B, HW, C), (points, B, C, HW)
    int B;
} trajectory_t;

static void check_state(void* context, int step, int steps, double t) {
    const trajectory_t* m = (const trajectory_t*)context;
    floatS want[2 * DIT_IMAGE];
    (void)t;
    if (!steps && t < 1) return; // dopri5 stops between the times of the file; the last row is x(1)
    size_t row = steps ? (size_t)step : 6;
    channels_last(want, m->rows + row * m->B * DIT_IMAGE, m->B);
    check_error("state", relative_error_double(m->x, want, (size_t)m->B * DIT_IMAGE), 1e-6);
}

typedef struct {
    const char *name, *solver;
    int B;
    flow_guidance_t guidance;
    int evaluations; // of an image, as the file's config has them
} reference_t;

static void check_trajectory(dit_t* dit, const reference_t* r) {
    char name[64];
    floatS x[2 * DIT_IMAGE];
    sampler_t m;
    flow_network_t network;
    plan_t plan = {0};
    snprintf(name, sizeof name, "output.%s", r->name);
    floatS *rows = fixture_tensor(&dit->file, name), *noise = fixture_tensor(&dit->file, "input.noise");
    check(safetensors_find(&dit->file, name)->numel == (size_t)7 * r->B * DIT_IMAGE, name);
    channels_last(x, noise, r->B);
    sampler_open(&m, flow_solver_by_name(r->solver), 7, 0.3, r->B, DIT_IMAGE);
    flow_network_plan(&network, &plan, dit_network, dit, 7, r->guidance, r->B, 3, DIT_HW, DIT_C, DIT_C, DIT_C);
    plan_allocate(&plan, "network");
    network.labels = dit->labels;
    trajectory_t trajectory = {x, rows, r->B};
    m.sampler.progress = check_state, m.sampler.progress_context = &trajectory;
    flow_sample(&m.sampler, x, r->B, flow_guided_velocity, &network, 0);
    for (int b = 0; b < r->B; b++) check(m.sampler.images[b].evaluations == r->evaluations, "as many evaluations");
    free(rows), free(noise);
    flow_network_free(&network), plan_free(&plan), sampler_close(&m);
}

static void test_trajectories(void) {
    static const reference_t references[] = {
        {"euler", "euler", 2, {1, 0, 0, 0}, 6},           {"midpoint", "midpoint", 2, {1, 0, 0, 0}, 12},
        {"heun2", "heun", 2, {1, 0, 0, 0}, 12},           {"heun3", "heun3", 2, {1, 0, 0, 0}, 18},
        {"rk4", "rk4", 2, {1, 0, 0, 0}, 24},              {"euler_cfg", "euler", 2, {3, 0.3, 3, 0}, 6},
        {"midpoint_cfg", "midpoint", 2, {3, 0.3, 3, 0}, 12}, {"euler_cfg_all", "euler", 2, {3, 0.3, 5, 0}, 6},
        {"dopri5", "dopri5", 1, {1, 0, 0, 0}, 20},        {"dopri5_cfg", "dopri5", 1, {3, 0.3, 3, 0}, 62},
    };
    dit_t dit;
    dit_open(&dit);
    for (size_t i = 0; i < sizeof references / sizeof *references; i++) {
        char name[80];
        snprintf(name, sizeof name, "torchdiffeq on a LightningDiT: %s", references[i].name);
        if (!test_case(name)) continue;
        check_trajectory(&dit, &references[i]);
        test_end_case();
    }
    dit_close(&dit);
}

// ---------------------------------------------------------------------------------------------------------------------
// Guidance: a network that is a formula, of images of HW = 2 positions and C = 5 channels.

enum { HW = 2, C = 5, IMAGE = HW * C, NULL_LABEL = 10 };
typedef struct {
    int passes, rows, largest; // what it was called for
    int null_rows;
    int reversed; // it counts time from data to noise, and its velocity points there
} formula_t;

static double formula(int label, int channel, double x, double t) {
    return (1 + label) * (0.5 + channel) - x * t + (label == NULL_LABEL ? 3 * x : 0);
}

static void formula_network(void* model, floatX* v, const floatX* xt, const floatS* t, const int* labels, int B,
                            stream_t s) {
    formula_t* f = (formula_t*)model;
    (void)s;
    f->passes++, f->rows += B;
    if (B > f->largest) f->largest = B;
    for (int b = 0; b < B; b++) {
        f->null_rows += labels[b] == NULL_LABEL;
        double time = f->reversed ? 1 - t[b] : t[b], sign = f->reversed ? -1 : 1;
        for (int i = 0; i < IMAGE; i++) v[b * IMAGE + i] = sign * formula(labels[b], i % C, xt[b * IMAGE + i], time);
    }
}

// The velocity of one image by hand.
static void guide(double* v, const flow_guidance_t* guidance, int label, const double* x, double t) { // (IMAGE)
    double wanted = 0, energy = 0;
    int guided = guidance->w > 1 && t >= guidance->start;
    for (int i = 0; i < IMAGE; i++) {
        double cond = formula(label, i % C, x[i], t), null = formula(NULL_LABEL, i % C, x[i], t);
        v[i] = guided && i % C < guidance->channels ? null + guidance->w * (cond - null) : cond;
        wanted += cond * cond, energy += v[i] * v[i];
    }
    for (int i = 0; guided && guidance->energy && i < IMAGE; i++) v[i] *= sqrt(wanted / energy);
}

// Each image's velocity, for B images at their own times and a network that takes `pass` at once, whichever way it
// counts time.
static void check_guidance(flow_guidance_t guidance, int B, int pass, const double* t, int null_rows, int passes) {
    int labels[8] = {3, 0, 9, 4, 4, 1, 7, 2}, asked = 0;
    plan_t plan = {0};
    flow_network_t network;
    formula_t count = {0};
    flow_network_plan(&network, &plan, formula_network, &count, NULL_LABEL, guidance, 8, pass, HW, C, C, C);
    plan_allocate(&plan, "network");
    memset(plan.memory, 0xFF, plan_bytes(&plan));
    network.labels = labels;
    double *x = random_buffer((size_t)B * IMAGE), *v = poisoned_buffer((size_t)B * IMAGE), want[IMAGE];
    for (int b = 0; b < B; b++) asked += t[b] != FLOW_DONE;
    for (int reversed = 0; reversed < 2; reversed++) {
        count.reversed = network.reversed = reversed;
        flow_guided_velocity(&network, v, x, t, B, 0);
        for (int b = 0; b < B; b++) {
            if (t[b] == FLOW_DONE) continue;
            guide(want, &guidance, labels[b], x + b * IMAGE, t[b]);
            for (int i = 0; i < IMAGE; i++) check_error("v", fabs(v[b * IMAGE + i] - want[i]), 1e-12);
        }
    }
    check(count.null_rows == 2 * null_rows && count.rows == 2 * (asked + null_rows), "evaluations");
    check(network.evaluations == (size_t)count.rows && count.passes == 2 * passes, "passes");
    check(count.largest <= pass, "no pass is too large");
    free(x), free(v);
    flow_network_free(&network), plan_free(&plan);
}

static void test_guidance(void) {
    double half[8] = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5};
    double mixed[7] = {0.125, 0.2, FLOW_DONE, 0.1249, 0.9, FLOW_DONE, 0.124};
    flow_guidance_t three = {10, 0, 3, 0}, all = {4, 0, C, 0}, interval = {10, 0.125, 3, 0};
    flow_guidance_t none = {1, 0, 3, 0}, less = {0.3, 0, 0, 0}, late = {10, 0.51, 3, 0};
    if (test_case("guidance: three channels, all, none")) {
        check_guidance(three, 7, 16, half, 7, 1);
        check_guidance(all, 7, 16, half, 7, 1);
        check_guidance(none, 7, 16, half, 0, 1);
        check_guidance(less, 7, 16, half, 0, 1);
        check_guidance(all, 1, 1, half, 1, 2);
        test_end_case();
    }
    if (test_case("guidance: an image keeps its energy; from a time on; in some channels")) {
        flow_guidance_t keep = {4, 0, C, 1}, partly = {10, 0.125, 3, 1}, off = {1, 0, C, 1};
        check_guidance(keep, 7, 16, half, 7, 1);
        check_guidance(partly, 7, 4, mixed, 3, 2);
        check_guidance(off, 7, 16, half, 0, 1);
        test_end_case();
    }
    if (test_case("guidance: from a time on, each image by its own")) {
        check_guidance(interval, 7, 16, half, 7, 1);
        check_guidance(interval, 7, 16, mixed, 3, 1); // times 0.125, 0.2 and 0.9: the comparison is strict
        check_guidance(late, 8, 16, half, 0, 1);
        test_end_case();
    }
    if (test_case("guidance: a network that takes fewer images at once")) {
        for (int pass = 1; pass < 16; pass++) {
            check_guidance(three, 7, pass, half, 7, (14 + pass - 1) / pass);
            check_guidance(interval, 7, pass, mixed, 3, (8 + pass - 1) / pass);
        }
        test_end_case();
    }
}

static void test_evaluations(void) {
    if (!test_case("evaluations of an image, counted ahead")) return;
    static const int grids[4] = {250, 30, 50, 120}, early[4] = {73, 9, 15, 35}; // of them before 0.11
    flow_guidance_t guidance = {10, 0.11, 3, 0}, off = {1, 0, 3, 0};
    for (int i = 0; i < 4; i++) {
        sampler_t m;
        sampler_open(&m, FLOW_EULER, grids[i], 0.3, 1, N);
        check(flow_evaluations(&m.sampler, NULL) == grids[i] - 1, "without guidance");
        check(flow_evaluations(&m.sampler, &off) == grids[i] - 1, "w = 1");
        check(flow_evaluations(&m.sampler, &guidance) == 2 * (grids[i] - 1) - early[i], "with guidance");
        sampler_close(&m);
    }
    for (int solver = 0; solver < FLOW_DOPRI5; solver++) {
        sampler_t m;
        plan_t plan = {0};
        flow_network_t network;
        formula_t count = {0};
        int label = 1;
        sampler_open(&m, (flow_solver_t)solver, 12, 0.3, 1, IMAGE);
        flow_network_plan(&network, &plan, formula_network, &count, NULL_LABEL, guidance, 1, 1, HW, C, C, C);
        plan_allocate(&plan, "network");
        network.labels = &label;
        double* x = random_buffer(IMAGE);
        flow_sample(&m.sampler, x, 1, flow_guided_velocity, &network, 0);
        check(count.rows == flow_evaluations(&m.sampler, &guidance), flow_methods[solver].name);
        check(count.rows - count.null_rows == 11 * flow_methods[solver].stages, "one a stage");
        free(x), flow_network_free(&network), plan_free(&plan), sampler_close(&m);
    }
    test_end_case();
}

typedef struct { int calls, step, steps; double t; } progress_t;
static void remember_progress(void* context, int step, int steps, double t) {
    progress_t* p = (progress_t*)context;
    check(step == p->calls + 1 && t >= p->t, "steps count up and times grow");
    p->calls++, p->step = step, p->steps = steps, p->t = t;
}
static void test_progress(void) {
    if (!test_case("progress is told after each step")) return;
    for (int adaptive = 0; adaptive < 2; adaptive++) {
        sampler_t m;
        progress_t progress = {0};
        scalar_field_t field = {flow_pendulum, 0, 0, 1, 0};
        double* x = random_buffer(3 * N);
        sampler_open(&m, adaptive ? FLOW_DOPRI5 : FLOW_HEUN3, 9, 0.3, 3, N);
        m.sampler.progress = remember_progress, m.sampler.progress_context = &progress;
        flow_sample(&m.sampler, x, 3, scalar_velocity, &field, 0);
        check(progress.calls == m.sampler.steps && progress.t == 1, "it ends at 1");
        check(progress.steps == (adaptive ? 0 : 8), "how many there are");
        free(x), sampler_close(&m);
    }
    test_end_case();
}

// Each ends the program; which one is chosen by its message.
static double flow_not_a_number(double x, double t) { return t < 0.5 ? x : NAN; }
static double flow_explodes(double x, double t) { (void)t; return 30 * x * x; } // infinite at t = 1/30, from 1
static void refuse(const char* message) {
    double x[N] = {1, 1, 1, 1, 1, 1}, t[2];
    int B = !strcmp(message, "images of 6 numbers") ? 0 : 1, points = !strcmp(message, "-steps 1") ? 1 : 5;
    plan_t plan = {0};
    flow_network_t network;
    flow_guidance_t guidance = {2, 0, !strcmp(message, "guidance on 0 channels") ? 0 : 6, 0};
    if (!strcmp(message, "time shift")) flow_grid(t, 2, NAN);
    if (!strcmp(message, "strength and start")) guidance.w = NAN;
    if (strstr(message, "channels") || strstr(message, "strength")) {
        flow_network_plan(&network, &plan, formula_network, NULL, NULL_LABEL, guidance, 1, 1, HW, C, C, C);
    }
    if (!strcmp(message, "solvers are")) flow_sampler_plan(&(flow_sampler_t){0}, &plan, FLOW_SOLVERS, 2, 0, 1, 1);
    sampler_t m;
    scalar_field_t field = {!strcmp(message, "not a number") ? flow_not_a_number : flow_explodes, 0, 0, 1, 0};
    sampler_open(&m, FLOW_DOPRI5, points, 0.3, B, N);
    flow_sample(&m.sampler, x, strstr(message, "planned for") ? 2 : 1, scalar_velocity, &field, 0);
}

static void test_refusals(void) {
    static const char* const messages[] = {
        "-steps 1", "time shift", "strength and start", "guidance on 0 channels", "guidance on 6 channels",
        "solvers are", "images of 6 numbers", "2 images where memory was planned for 1", "not a number", "fell to"};
    if (!test_case("what cannot be drawn is refused")) return;
    temporary_begin();
    for (size_t i = 0; i < sizeof messages / sizeof *messages; i++) {
        check_message(refuse, messages[i], messages[i], NULL);
    }
    temporary_end();
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    omp_set_num_threads(1); // images of six numbers; and children of this process would lack its other threads
    test_grid();
    test_names();
    test_tables();
    for (int solver = 0; solver < FLOW_DOPRI5; solver++) test_linear((flow_solver_t)solver);
    for (int solver = 0; solver < FLOW_SOLVERS; solver++) test_polynomials((flow_solver_t)solver);
    for (int solver = 0; solver < FLOW_DOPRI5; solver++) test_order((flow_solver_t)solver);
    test_straight();
    test_stage_times();
    test_dopri5();
    test_dopri5_rejects();
    test_dopri5_edges();
    for (int solver = 0; solver < FLOW_SOLVERS; solver++) test_batches((flow_solver_t)solver);
    test_noise();
    test_guidance();
    test_evaluations();
    test_progress();
    test_refusals();
    test_trajectories();
    return test_finish();
}
