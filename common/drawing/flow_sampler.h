// flow_sampler.h: from noise to data, along the velocity field that a flow-matching network has learnt.
//
// An image is the solution at t = 1 of dx/dt = v(x, t) that begins at t = 0 in normal noise. Three parts, each usable
// without the others:
//
//   noise     flow_noise: image k begins at numbers that depend on the seed and on k alone, so it comes out the same in
//             whatever batch, process or order it is drawn
//   field     flow_guided_velocity: v by a network, with classifier-free guidance (Ho & Salimans 2022)
//                 v = null + w (cond - null) in the first `channels` channels, cond in the others
//             from the time `start` on; before it, and with w <= 1, only cond is evaluated. With `energy` an image's v
//             is then made as long as its cond (Zhang et al. 2024, EP-CFG). A network that takes fewer images at once
//             than there are is called several times.
//   solver    flow_sample: explicit Runge-Kutta on the whole batch,
//                 k_j = v(x + h sum_(i<j) a_ji k_i, t + c_j h);   x <- x + h sum_j b_j k_j
//             on a grid of times, or with steps that each image chooses for itself (dopri5)
//
// The grid has N points, hence N - 1 steps:  tau_i = i / (N - 1),  t_i = s tau_i / (1 + (s - 1) tau_i), a shift s < 1
// putting more of them near the noise (Esser et al. 2024, whose shift is 1 / s). s = 0 stands for s = 1. The size of
// the images may change from one flow_sample to the next, up to the planned one (flow_network_set_size and its like).
//
// dopri5 (Dormand & Prince 1980; step control of Hairer, Norsett, Wanner I.4) does with every image alone what
// torchdiffeq does with a batch: there, an image depends on its neighbours through the common step. Steps are not cut
// at t = 1: the last one may pass it, and x(1) is read off the quartic through both ends and the middle of that step.
//
// The state is floatS whatever floatX is: 250 steps of a thousandth each would drown in the roundings of bf16. Times
// are double and live on the host. Names of solvers are torchdiffeq's; its rk4 is Kutta's 3/8 rule.
//
// Left out: implicit solvers; stochastic ones are in ddpm_sampler.h. Look next at common/drawing/dit_sampler.h, where
// the networks are, and at sample.cu.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

// defines: plan_t, plan_floatX, plan_floatS
#include "common/models/plan.h"
// defines: flow_guide, flow_guide_energy, flow_combine, diffusion_step, to_floatX, FLOW_STAGES
#include "common/ops.h"
// defines: random_normal, RANDOM_NOISE
#include "common/program/rng.h"

// The velocity of B images, each at its own time. An image at FLOW_DONE is not asked for: what is written as its
// velocity is not used, so long as it is finite.
#define FLOW_DONE (-1.0)
typedef void (*velocity_fn)(void* model,
                            floatS* v,       // (B, n); (B, 2 n) where noise is predicted (ddpm_sampler.h)
                            const floatS* x, // (B, n)
                            const double* t, // (B) host memory
                            int B, stream_t s);

// ---------------------------------------------------------------------------------------------------------------------
// Noise

// x at t = 0 of the images numbered images[0..B): what normal_rows writes as those rows, without rounding to floatX.
static inline void flow_noise(floatS* x,              // (B, n)
                              const uint64_t* images, // (B) host memory
                              int B, size_t n, uint64_t seed, stream_t s) {
    floatS* noise = (floatS*)malloc_check((size_t)B * n * sizeof(floatS), "the noise that images are drawn from");
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < (size_t)B * n; i++) {
        noise[i] = (floatS)random_normal(seed, RANDOM_NOISE, 0, images[i / n] * n + i % n);
    }
    copy_to_device(x, noise, (size_t)B * n * sizeof(floatS), s);
    stream_wait(s);
    free(noise);
}

// ---------------------------------------------------------------------------------------------------------------------
// A network as a velocity field, with guidance

// One pass of a network. A label says what an image is to show: it is the number of a class, or of a caption; the null
// label stands for nothing in particular. OC: channels of the output, of which the first are the velocity.
typedef void (*network_fn)(void* model,
                           floatX* v,         // (B, HW, OC)
                           const floatX* xt,  // (B, HW, C)
                           const floatS* t,   // (B)
                           const int* labels, // (B) host memory, unchanged until the pass is over
                           int B, stream_t s);

typedef struct {
    double w;     // strength; w <= 1: no guidance
    double start; // guidance acts where t >= start
    int channels; // it acts on the first so many channels; 3 in the scores of LightningDiT and of the paper
    int energy;   // 1: an image's velocity keeps the length that it has without guidance
} flow_guidance_t;

static inline int flow_is_guided(const flow_guidance_t* guidance, double t) {
    return guidance && guidance->w > 1 && !(t < guidance->start);
}

typedef struct {
    network_fn run;
    void* model;
    const int* labels;         // (B) host memory: what the images of the batch are to show; set it before flow_sample
    int null_label;
    int reversed;              // 1: the network's time is 1 for noise and 0 for data, its velocity noise - data
    flow_guidance_t guidance;
    int max_batch, pass, HW, C; // largest B; images that the network takes at once
    int OC, taken;             // channels of the output, and how many of them a velocity_fn is asked for
    size_t evaluations;        // images evaluated so far, each with and without its label counted
    floatX *xt, *out;          // (pass, HW, C), (pass, HW, OC)
    floatX* v;                 // (2, B, HW, OC) with the label, with the null label
    floatS *t, *w;             // (2B), (B)
    floatS *host_t, *host_w;   // the same on the host
    int *label, *rows;         // (2B) on the host; rows: which row of v each evaluation belongs to
} flow_network_t;

static inline void flow_network_plan(flow_network_t* f, plan_t* plan, network_fn run, void* model, int null_label,
                                     flow_guidance_t guidance, int max_batch, int pass, int HW, int C, int OC,
                                     int taken) {
    if (max_batch < 1 || pass < 1) fatal("sampling: a batch of %d in passes of %d; both begin at 1", max_batch, pass);
    if (!isfinite(guidance.w) || isnan(guidance.start)) fatal("guidance: strength and start have to be numbers");
    if (guidance.w > 1 && (guidance.channels < 1 || guidance.channels > C)) {
        fatal("guidance on %d channels: the latent has %d, so 1 to %d", guidance.channels, C, C);
    }
    memset(f, 0, sizeof *f);
    f->run = run, f->model = model, f->null_label = null_label, f->guidance = guidance;
    f->max_batch = max_batch, f->pass = pass < 2 * max_batch ? pass : 2 * max_batch, f->HW = HW, f->C = C;
    f->OC = OC, f->taken = taken;
    size_t n = (size_t)HW * OC, twice = 2 * (size_t)max_batch;
    plan_floatX(plan, &f->xt, (size_t)f->pass * HW * C, "flow.xt");
    plan_floatX(plan, &f->out, (size_t)f->pass * n, "flow.out");
    plan_floatX(plan, &f->v, twice * n, "flow.v");
    plan_floatS(plan, &f->t, twice, "flow.t");
    plan_floatS(plan, &f->w, (size_t)max_batch, "flow.w");
    f->host_t = (floatS*)host_malloc(twice * sizeof(floatS), "times of a pass");
    f->host_w = (floatS*)host_malloc((size_t)max_batch * sizeof(floatS), "guidance of a batch");
    f->label = (int*)host_malloc(twice * sizeof(int), "labels of a pass");
    f->rows = (int*)malloc_check(twice * sizeof(int), "rows of a pass");
}

static inline void flow_network_free(flow_network_t* f) {
    host_free(f->host_t), host_free(f->host_w), host_free(f->label);
    free(f->rows);
    memset(f, 0, sizeof *f);
}

// Images of HW positions from here on, at most as many as planned.
static inline void flow_network_set_size(flow_network_t* f, int HW) { f->HW = HW; }

// Which evaluations the times ask for: first with the labels, then, of guided images, with the null label. Row b is
// image b with its label, row B + b without. Returns how many there are; *guided counts the second kind.
static inline int flow_network_rows(flow_network_t* f, const double* t, int B, int* guided, stream_t s) {
    stream_wait(s); // the host arrays may still be on their way from the call before
    int count = 0;
    *guided = 0;
    for (int row = 0; row < 2 * B; row++) {
        int b = row % B, is_guided = t[b] != FLOW_DONE && flow_is_guided(&f->guidance, t[b]);
        f->host_w[b] = (floatS)(is_guided ? f->guidance.w : 1);
        if (t[b] == FLOW_DONE || (row >= B && !is_guided)) continue;
        f->rows[count] = row;
        f->host_t[count] = (floatS)(f->reversed ? 1 - t[b] : t[b]);
        f->label[count++] = row < B ? f->labels[b] : f->null_label;
        *guided += row >= B;
    }
    copy_to_device(f->t, f->host_t, (size_t)count * sizeof(floatS), s);
    copy_to_device(f->w, f->host_w, (size_t)B * sizeof(floatS), s);
    return count;
}

// How many of the rows, from the first on, are neighbours in memory, both in x (B, n) and in v (2B, n).
static inline int flow_neighbours(const int* rows, int limit, int B) {
    int length = 1;
    while (length < limit && rows[length] == rows[0] + length && rows[length] != B) length++;
    return length;
}

// A velocity_fn whose model is a flow_network_t.
static inline void flow_guided_velocity(void* network, floatS* v, const floatS* x, const double* t, int B, stream_t s) {
    flow_network_t* f = (flow_network_t*)network;
    if (B > f->max_batch) fatal("sampling: %d images where memory was planned for %d", B, f->max_batch);
    size_t n = (size_t)f->HW * f->C, out = (size_t)f->HW * f->OC;
    int guided, count = flow_network_rows(f, t, B, &guided, s);
    for (int first = 0; first < count; first += f->pass) {
        const int* rows = f->rows + first;
        int length, N = count - first < f->pass ? count - first : f->pass;
        for (int i = 0; i < N; i += length) {
            length = flow_neighbours(rows + i, N - i, B);
            to_floatX(f->xt + (size_t)i * n, x + (size_t)(rows[i] % B) * n, (size_t)length * n, s);
        }
        f->run(f->model, f->out, f->xt, f->t + first, f->label + first, N, s);
        for (int i = 0; i < N; i += length) {
            length = flow_neighbours(rows + i, N - i, B);
            copy_on_device(f->v + rows[i] * out, f->out + i * out, (size_t)length * out * sizeof(floatX), s);
        }
    }
    f->evaluations += (size_t)count;
    const floatX* null = guided ? f->v + B * out : NULL;
    flow_guide(v, f->v, null, guided ? f->w : NULL, f->guidance.channels, B, f->HW, f->taken, f->OC, s);
    if (guided && f->guidance.energy) flow_guide_energy(v, f->v, B, f->HW, f->taken, f->OC, s);
    if (f->reversed) diffusion_step(v, x, NULL, -1, 0, 0, 0, B, f->HW, f->C, f->C, s); // v <- -v
}

// ---------------------------------------------------------------------------------------------------------------------
// Solvers

typedef enum { FLOW_EULER, FLOW_MIDPOINT, FLOW_HEUN, FLOW_HEUN3, FLOW_RK4, FLOW_DOPRI5, FLOW_SOLVERS } flow_solver_t;

typedef struct {
    const char* name;
    int stages, order;
    double c[FLOW_STAGES];              // time of a stage within the step
    double a[FLOW_STAGES][FLOW_STAGES]; // stage j stands at x + h sum_(i<j) a_ji k_i
    double b[FLOW_STAGES];              // the step: x + h sum b_j k_j
} flow_method_t;

// The last stage of dopri5 stands at the end of the step, so it is the first one of the next step.
static const flow_method_t flow_methods[FLOW_SOLVERS] = {
    {"euler", 1, 1, {0}, {{0}}, {1}},
    {"midpoint", 2, 2, {0, 1.0 / 2}, {{0}, {1.0 / 2}}, {0, 1}},
    {"heun", 2, 2, {0, 1}, {{0}, {1}}, {1.0 / 2, 1.0 / 2}},
    {"heun3", 3, 3, {0, 1.0 / 3, 2.0 / 3}, {{0}, {1.0 / 3}, {0, 2.0 / 3}}, {1.0 / 4, 0, 3.0 / 4}},
    {"rk4", 4, 4, {0, 1.0 / 3, 2.0 / 3, 1}, {{0}, {1.0 / 3}, {-1.0 / 3, 1}, {1, -1, 1}},
     {1.0 / 8, 3.0 / 8, 3.0 / 8, 1.0 / 8}},
    {"dopri5", 7, 5, {0, 1.0 / 5, 3.0 / 10, 4.0 / 5, 8.0 / 9, 1, 1},
     {{0},
      {1.0 / 5},
      {3.0 / 40, 9.0 / 40},
      {44.0 / 45, -56.0 / 15, 32.0 / 9},
      {19372.0 / 6561, -25360.0 / 2187, 64448.0 / 6561, -212.0 / 729},
      {9017.0 / 3168, -355.0 / 33, 46732.0 / 5247, 49.0 / 176, -5103.0 / 18656},
      {35.0 / 384, 0, 500.0 / 1113, 125.0 / 192, -2187.0 / 6784, 11.0 / 84}},
     {35.0 / 384, 0, 500.0 / 1113, 125.0 / 192, -2187.0 / 6784, 11.0 / 84, 0}},
};

// dopri5: weights of the embedded method of order 4, and of the state in the middle of a step (of order 4 too).
static const double flow_dopri5_lower[FLOW_STAGES] = {
    1951.0 / 21600, 0, 22642.0 / 50085, 451.0 / 720, -12231.0 / 42400, 649.0 / 6300, 1.0 / 60};
static const double flow_dopri5_middle[FLOW_STAGES] = {
    6025192743.0 / 30085553152.0 / 2, 0, 51252292925.0 / 65400821598.0 / 2, -2691868925.0 / 45128329728.0 / 2,
    187940372067.0 / 1594534317056.0 / 2, -1776094331.0 / 19743644256.0 / 2, 11237099.0 / 235043384.0 / 2};

// FLOW_SOLVERS where there is none of that name. heun2 is torchdiffeq's name of heun.
static inline flow_solver_t flow_solver_by_name(const char* name) {
    if (!strcmp(name, "heun2")) return FLOW_HEUN;
    int i = 0;
    while (i < FLOW_SOLVERS && strcmp(name, flow_methods[i].name)) i++;
    return (flow_solver_t)i;
}

// The times of a grid: t[0] = 0, t[points - 1] = 1 exactly.
static inline void flow_grid(double* t, int points, double shift) {
    if (points < 2) fatal("-steps %d: a grid of times has at least 2 points, noise and image", points);
    if (!isfinite(shift)) fatal("the time shift has to be a number; 0 for none, 0.3 as LightningDiT has it");
    for (int i = 0; i < points; i++) {
        double tau = (double)i / (points - 1);
        t[i] = shift > 0 ? shift * tau / (1 + (shift - 1) * tau) : tau;
    }
    t[points - 1] = 1;
}

// The time of stage j in a step from t to `end`. No stage passes the end of the grid: t + (1 - t) rounds to 1.
static inline double flow_stage_time(const flow_method_t* method, int j, double t, double end) {
    return t + method->c[j] * (end - t);
}

// Where an image stands: what it has reached, the step it tries and its end.
typedef struct {
    double t, h, end;
    int done, evaluations;
} flow_image_t;

typedef void (*flow_progress_fn)(void* context, int step, int steps, double t); // steps 0: not known; t: the least

typedef struct {
    flow_solver_t solver;
    int points;
    double shift;
    double rtol, atol;           // dopri5's tolerances: may be set after flow_sampler_plan
    flow_progress_fn progress;   // called after each step, or NULL
    void* progress_context;
    int steps;                   // steps that the last flow_sample tried
    int max_batch;
    size_t n;
    double* grid;                // (points) host memory
    flow_image_t* images;        // (B) host memory
    double* times;               // (B) host memory
    floatS *next, *k;            // (B, n), (stages, B, n): the state of a stage, and its velocities
    floatS *zero, *error;        // (B, n), dopri5 alone
    floatS *h, *host_h;          // (rows, B): step sizes, on the device and on the host
    floatS *host_a, *host_b, *host_c; // (B, n), dopri5 alone: what norms are taken of
} flow_sampler_t;

enum { FLOW_DENSE = 4 };         // dopri5: powers of the quartic, each with its row of h
#define FLOW_MAX_STEPS 10000     // dopri5: tries before it gives up

static inline int flow_h_rows(const flow_sampler_t* f) {
    return f->solver == FLOW_DOPRI5 ? FLOW_DENSE : f->points - 1;
}

// Plans memory for up to max_batch images of n values. The arguments of the grid do not matter to dopri5.
static inline void flow_sampler_plan(flow_sampler_t* f, plan_t* plan, flow_solver_t solver, int points, double shift,
                                     int max_batch, size_t n) {
    if ((unsigned)solver >= FLOW_SOLVERS) fatal("sampling: solvers are euler, midpoint, heun, heun3, rk4 and dopri5");
    if (max_batch < 1 || n < 1) fatal("sampling: %d images of %zu numbers; at least one of one", max_batch, n);
    memset(f, 0, sizeof *f);
    f->solver = solver, f->points = points, f->shift = shift, f->max_batch = max_batch, f->n = n;
    f->rtol = 1e-3, f->atol = 1e-6;
    f->grid = (double*)malloc_check((points < 2 ? 2 : (size_t)points) * sizeof(double), "grid of times");
    flow_grid(f->grid, points, shift);
    size_t B = (size_t)max_batch, h = (size_t)flow_h_rows(f) * B, bytes = B * n * sizeof(floatS);
    plan_floatS(plan, &f->next, B * n, "flow.next");
    plan_floatS(plan, &f->k, (size_t)flow_methods[solver].stages * B * n, "flow.k");
    plan_floatS(plan, &f->h, h, "flow_sampler.h");
    f->host_h = (floatS*)host_malloc(h * sizeof(floatS), "step sizes");
    f->images = (flow_image_t*)malloc_check(B * sizeof(flow_image_t), "states of images");
    f->times = (double*)malloc_check(B * sizeof(double), "times of images");
    if (solver != FLOW_DOPRI5) return;
    plan_floatS(plan, &f->zero, B * n, "flow.zero");
    plan_floatS(plan, &f->error, B * n, "flow.error");
    f->host_a = (floatS*)host_malloc(bytes, "states on the host");
    f->host_b = (floatS*)host_malloc(bytes, "states on the host");
    f->host_c = (floatS*)host_malloc(bytes, "errors on the host");
}

// Images of n values from here on, at most as many as planned, on a grid with this shift.
static inline void flow_sampler_set_size(flow_sampler_t* f, size_t n, double shift) {
    f->n = n, f->shift = shift;
    flow_grid(f->grid, f->points, shift);
}

static inline void flow_sampler_free(flow_sampler_t* f) {
    free(f->grid), free(f->images), free(f->times);
    host_free(f->host_h), host_free(f->host_a), host_free(f->host_b), host_free(f->host_c);
    memset(f, 0, sizeof *f);
}

// Evaluations of the network that an image costs, those with the null label included; guidance NULL: none.
// 0 for dopri5, which decides as it goes (images[b].evaluations, afterwards, without those with the null label).
static inline int flow_evaluations(const flow_sampler_t* f, const flow_guidance_t* guidance) {
    const flow_method_t* method = &flow_methods[f->solver];
    int count = 0;
    for (int i = 0; f->solver != FLOW_DOPRI5 && i + 1 < f->points; i++) {
        for (int j = 0; j < method->stages; j++) {
            double t = flow_stage_time(method, j, f->grid[i], f->grid[i + 1]);
            count += 1 + flow_is_guided(guidance, t);
        }
    }
    return count;
}

// What a run calls its field, so that the functions below need not carry it apart.
typedef struct {
    velocity_fn velocity;
    void* model;
    int B;
    stream_t stream;
} flow_field_t;

// k_j of all images from the state `x` of stage j.
static inline void flow_stage_velocity(flow_sampler_t* f, const flow_field_t* field, int j, const floatS* x) {
    for (int b = 0; b < field->B; b++) {
        flow_image_t* image = &f->images[b];
        f->times[b] = image->done ? FLOW_DONE : flow_stage_time(&flow_methods[f->solver], j, image->t, image->end);
        image->evaluations += !image->done;
    }
    floatS* k = f->k + (size_t)j * field->B * f->n;
    field->velocity(field->model, k, x, f->times, field->B, field->stream);
}

// The stages from `first` on, of a step from x; `next` ends as the state of the last stage.
static inline void flow_stages(flow_sampler_t* f, const flow_field_t* field, int first, const floatS* x,
                               const floatS* h) {
    const flow_method_t* method = &flow_methods[f->solver];
    for (int j = first; j < method->stages; j++) {
        if (j) flow_combine(f->next, x, f->k, h, method->a[j], j, field->B, f->n, field->stream);
        flow_stage_velocity(f, field, j, j ? f->next : x);
    }
}

static inline void flow_upload_h(flow_sampler_t* f, int rows, const flow_field_t* field) {
    copy_to_device(f->h, f->host_h, (size_t)rows * field->B * sizeof(floatS), field->stream);
}

static inline void flow_sample_grid(flow_sampler_t* f, const flow_field_t* field, floatS* x) {
    const flow_method_t* method = &flow_methods[f->solver];
    int B = field->B, steps = f->points - 1;
    for (int i = 0; i < steps; i++) {
        for (int b = 0; b < B; b++) f->host_h[(size_t)i * B + b] = (floatS)(f->grid[i + 1] - f->grid[i]);
    }
    flow_upload_h(f, steps, field);
    for (int i = 0; i < steps; i++) {
        const floatS* h = f->h + (size_t)i * B;
        for (int b = 0; b < B; b++) f->images[b].t = f->grid[i], f->images[b].end = f->grid[i + 1];
        flow_stages(f, field, 0, x, h);
        flow_combine(x, x, f->k, h, method->b, method->stages, B, f->n, field->stream);
        f->steps = i + 1;
        if (f->progress) f->progress(f->progress_context, i + 1, steps, f->grid[i + 1]);
    }
    stream_wait(field->stream); // host_h may be written again
}

// ---------------------------------------------------------------------------------------------------------------------
// dopri5

// Root mean square over an image of (a - b) / (atol + rtol max(|x|, |y|)); b and y NULL: without them.
static inline double flow_norm(const flow_sampler_t* f, const floatS* a, const floatS* b, const floatS* x,
                               const floatS* y) {
    double sum = 0;
    for (size_t i = 0; i < f->n; i++) {
        double size = fabs((double)x[i]);
        if (y) size = fmax(size, fabs((double)y[i]));
        double value = ((double)a[i] - (b ? (double)b[i] : 0)) / (f->atol + f->rtol * size);
        sum += value * value;
    }
    return sqrt(sum / (double)f->n);
}

static inline void flow_to_host(const flow_sampler_t* f, const flow_field_t* field, floatS* host, const floatS* x) {
    copy_to_host(host, x, (size_t)field->B * f->n * sizeof(floatS), field->stream);
}

// The first step of every image (Hairer, Norsett, Wanner, II.4): such that an Euler step of a hundredth of it changes x
// little, and that the second derivative, from one more evaluation there, allows the tolerance. Leaves k_0 at t = 0.
static inline void flow_first_steps(flow_sampler_t* f, const flow_field_t* field, const floatS* x) {
    static const double whole[1] = {1};
    int B = field->B;
    size_t n = f->n;
    flow_stage_velocity(f, field, 0, x);
    flow_to_host(f, field, f->host_a, x);
    flow_to_host(f, field, f->host_b, f->k);
    stream_wait(field->stream);
    for (int b = 0; b < B; b++) {
        const floatS *x0 = f->host_a + b * n, *k0 = f->host_b + b * n;
        double d0 = flow_norm(f, x0, NULL, x0, NULL), d1 = flow_norm(f, k0, NULL, x0, NULL);
        f->images[b].h = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
        f->host_h[b] = (floatS)f->images[b].h;
        f->times[b] = f->images[b].h;
        f->images[b].evaluations++;
    }
    flow_upload_h(f, 1, field);
    flow_combine(f->next, x, f->k, f->h, whole, 1, B, n, field->stream);
    floatS* k1 = f->k + (size_t)B * n;
    field->velocity(field->model, k1, f->next, f->times, B, field->stream);
    flow_to_host(f, field, f->host_c, k1);
    stream_wait(field->stream);
    for (int b = 0; b < B; b++) {
        const floatS *x0 = f->host_a + b * n, *k0 = f->host_b + b * n;
        double h0 = f->images[b].h, d1 = flow_norm(f, k0, NULL, x0, NULL);
        double d2 = flow_norm(f, f->host_c + b * n, k0, x0, NULL) / h0, d = fmax(d1, d2);
        double h1 = d <= 1e-15 ? fmax(1e-6, 1e-3 * h0) : pow(0.01 / d, 1.0 / 5);
        f->images[b].h = fmin(100 * h0, h1);
    }
}

// The next step after one of size h with this ratio of error to tolerance.
static inline double flow_next_h(double h, double ratio) {
    if (ratio == 0) return 10 * h;
    return h * fmin(10, fmax(0.9 * pow(ratio, -1.0 / 5), ratio < 1 ? 1 : 0.2));
}

// x(1) of the images whose step passes it, h_b r_b^p in row p of h (0: x_b stays). With f, f' the velocities at both
// ends, B_i and M_i the weights of the state x' at the end and in the middle, a point of the quartic is
//   x + h sum_i k_i (d r + c r^2 + b r^3 + a r^4),  d = F,  c = F' - 4F - 5B + 16M,  b = 5F - 3F' + 14B - 32M,
//   a = 2(F' - F) - 8B + 16M,  where F_i is 1 for the first stage alone and F'_i for the last.
static inline void flow_dense_output(flow_sampler_t* f, const flow_field_t* field, floatS* x) {
    double weights[FLOW_DENSE][FLOW_STAGES];
    for (int i = 0; i < FLOW_STAGES; i++) {
        double first = i == 0, last = i == FLOW_STAGES - 1;
        double end = flow_methods[FLOW_DOPRI5].b[i], middle = flow_dopri5_middle[i];
        weights[0][i] = first;
        weights[1][i] = last - 4 * first - 5 * end + 16 * middle;
        weights[2][i] = 5 * first - 3 * last + 14 * end - 32 * middle;
        weights[3][i] = 2 * (last - first) - 8 * end + 16 * middle;
    }
    flow_upload_h(f, FLOW_DENSE, field);
    for (int p = 0; p < FLOW_DENSE; p++) {
        const floatS* h = f->h + (size_t)p * field->B;
        flow_combine(x, x, f->k, h, weights[p], FLOW_STAGES, field->B, f->n, field->stream);
    }
}

// Sizes and ends of the steps that are tried next.
static inline void flow_try_steps(flow_sampler_t* f, const flow_field_t* field) {
    for (int b = 0; b < field->B; b++) {
        flow_image_t* image = &f->images[b];
        image->end = image->t + image->h;
        f->host_h[b] = (floatS)(image->done ? 0 : image->h);
        if (!image->done && !(image->end > image->t)) {
            fatal("dopri5: the step of image %d of the batch fell to %g at t = %g; the velocity is not smooth, or not"
                  " finite: try -solver euler, and look at the weights", b, image->h, image->t);
        }
    }
    flow_upload_h(f, 1, field);
}

// Judges the steps tried: those within the tolerance count. Rows of h become those of flow_dense_output; returns how
// many images come to their end.
static inline int flow_judge_steps(flow_sampler_t* f, const flow_field_t* field, int* accepted) {
    int B = field->B, finished = 0;
    for (int b = 0; b < B; b++) {
        flow_image_t* image = &f->images[b];
        size_t row = (size_t)b * f->n;
        accepted[b] = 0;
        for (int p = 0; p < FLOW_DENSE; p++) f->host_h[(size_t)p * B + b] = 0;
        if (image->done) continue;
        double ratio = flow_norm(f, f->host_c + row, NULL, f->host_a + row, f->host_b + row);
        if (!isfinite(ratio)) {
            fatal("dopri5: the velocity of image %d of the batch is not a number near t = %g; look at the weights and"
                  " the guidance", b, image->t);
        }
        double h = image->h;
        image->h = flow_next_h(h, ratio);
        if (ratio > 1) continue;
        if (image->end >= 1) {
            double r = (1 - image->t) / h, scale = h;
            for (int p = 0; p < FLOW_DENSE; p++) f->host_h[(size_t)p * B + b] = (floatS)(scale *= r);
            image->done = 1, image->t = 1, finished++;
        } else {
            accepted[b] = 1, image->t = image->end;
        }
    }
    return finished;
}

static inline void flow_sample_dopri5(flow_sampler_t* f, const flow_field_t* field, floatS* x) {
    stream_t s = field->stream;
    int B = field->B, left = B;
    size_t n = f->n, bytes = n * sizeof(floatS);
    double difference[FLOW_STAGES];
    for (int i = 0; i < FLOW_STAGES; i++) difference[i] = flow_methods[FLOW_DOPRI5].b[i] - flow_dopri5_lower[i];
    int* accepted = (int*)calloc_check((size_t)B, sizeof(int), "accepted steps");
    device_zero(f->zero, (size_t)B * bytes, s);
    flow_first_steps(f, field, x);
    while (left) {
        if (f->steps == FLOW_MAX_STEPS) fatal("dopri5: not at the end after %d steps; try -solver euler", f->steps);
        f->steps++;
        flow_try_steps(f, field);
        flow_stages(f, field, 1, x, f->h);
        flow_combine(f->error, f->zero, f->k, f->h, difference, FLOW_STAGES, B, n, s);
        flow_to_host(f, field, f->host_a, x);
        flow_to_host(f, field, f->host_b, f->next);
        flow_to_host(f, field, f->host_c, f->error);
        stream_wait(s);
        int finished = flow_judge_steps(f, field, accepted);
        if (finished) flow_dense_output(f, field, x);
        const floatS* last = f->k + (size_t)(FLOW_STAGES - 1) * B * n;
        double least = 1;
        for (int b = 0; b < B; b++) {
            least = fmin(least, f->images[b].t);
            if (!accepted[b]) continue;
            copy_on_device(x + (size_t)b * n, f->next + (size_t)b * n, bytes, s);
            copy_on_device(f->k + (size_t)b * n, last + (size_t)b * n, bytes, s);
        }
        stream_wait(s); // host_h may be written again
        left -= finished;
        if (f->progress) f->progress(f->progress_context, f->steps, 0, least);
    }
    free(accepted);
}

// ---------------------------------------------------------------------------------------------------------------------

// From noise at t = 0 to data at t = 1, in place.
static inline void flow_sample(flow_sampler_t* f,
                               floatS* x, // (B, n)
                               int B, velocity_fn velocity, void* model, stream_t s) {
    if (B < 1 || B > f->max_batch) fatal("sampling: %d images where memory was planned for %d", B, f->max_batch);
    flow_field_t field = {velocity, model, B, s};
    memset(f->images, 0, (size_t)B * sizeof *f->images);
    f->steps = 0;
    if (f->solver == FLOW_DOPRI5) flow_sample_dopri5(f, &field, x);
    else flow_sample_grid(f, &field, x);
}
