// ddpm_sampler.h: from noise to data by a stochastic process: diffusion reversed, along the noise that DiT's networks
// predict; along a velocity, DDIM (text to image) or a stochastic differential equation (SiT).
//
// The process has 1000 times. At time t an image is x_t = sqrt(A_t) x_0 + sqrt(1 - A_t) noise, A_t = product of
// (1 - beta_s) for s <= t, beta from 1e-4 to 2e-2 in equal steps. A network is given x_t and t (0 to 999) and says the
// noise e in it and, by a number f between about -1 and 1, how wide the step is to be.
//
// n of the times are used, in equal distances rounded to whole numbers, 0 and 999 among them. With A and A' at a time
// and at the one used before it (A' = 1 before the first), beta = 1 - A / A':
//
//   x_0 = (x - sqrt(1 - A) e) / sqrt(A)                                  what the network thinks the image is
//   ddpm   x' = sqrt(A') beta / (1 - A) x_0 + (1 - A') sqrt(1 - beta) / (1 - A) x + exp(l / 2) noise
//          l between log (beta (1 - A') / (1 - A)) and log beta, as f says    (Ho et al. 2020; Nichol & Dhariwal 2021)
//   ddim   x' = sqrt(A') x_0 + sqrt(1 - A' - s^2) e + s noise,   s = eta sqrt((1 - A') beta / (1 - A))
//                                                                     (Song et al. 2021; eta 0: no noise, f not used)
// No noise is added at the first time, whose x' is the image.
//
// The equation has the marginals of the flow (flow_sampler.h: x = t x_1 + (1 - t) noise), whose velocity v tells the
// score, (t v - x) / (1 - t), so that a Langevin term may be added, here of strength 1 - t:
//   sde    x' = x + h (v + t v - x) + sqrt(2 (1 - t) h) noise,   n - 1 equal steps h from 0 to 0.96
//          and a last one of 0.04 without noise        (Ma et al. 2024, SiT: Euler-Maruyama, "sigma", last step "Mean")
//
// Along a velocity v, x = t x_1 + (1 - t) e says both ends: x_1 = x + (1 - t) v and e = x - t v. From t to t' of the
// grid of flow_sampler.h, n steps,
//   ddim       x' = t' x_1 + b e + s noise,   s^2 = (1 - t')^2 - b^2,   b = (1 - t') (1 - eta (t' - t) / (1 - t))
//   ddim_song  the same with s = eta (1 - t') sqrt(1 - r^2),   r = t (1 - t') / (t' (1 - t))
// The second is the eta of Song et al., who keep the correlation of two times that a diffusion has; the first one,
// minFM's, adds more. With eta 0 both are Euler's method, and the last step ends in x_1, without noise.
//
// Each step of all of them is x' = a x + b e + deviation noise, e what the network says, one operation: diffusion_step.
//
// The noise of image k at a step depends on (seed, step, k) alone. The state is floatS. Guidance is that of
// common/drawing/flow_sampler.h; f is always the network's with the label. Numbers: facebookresearch/DiT, diffusion/,
// and willisma/SiT, transport/.
// Look next at common/drawing/dit_sampler.h, the user.
#pragma once
#include <math.h>

// defines: velocity_fn, flow_progress_fn, flow_grid
#include "common/drawing/flow_sampler.h"

enum { DDPM_TIMES = 1000 };
#define DDPM_SDE_LAST 0.04 // of the time: the last step of the equation

typedef enum { DDPM_ANCESTRAL, DDPM_DDIM, DDPM_SDE, DDPM_DDIM_SONG, DDPM_KINDS } ddpm_kind_t;
#define DDPM_NAMES "ddpm|ddim|sde|ddim_song" // in the order of the kinds

// One step.
typedef struct {
    double t;                          // what the network is told
    double x_share, out_share;         // of x and of e in the next x
    double log_least, log_most;        // between these f chooses; the same in ddim and sde
    int noisy;
} ddpm_step_t;

typedef struct {
    ddpm_kind_t kind;
    double eta;
    int steps, max_batch, HW, C, OC;
    ddpm_step_t* step; // (steps) in the order in which they are taken
    double* times;     // (B) host memory
    uint64_t* images;  // (B) their numbers
    floatS* out;       // (B, HW, OC) what the network says
    floatS* noise;     // (B, HW, C)
    flow_progress_fn progress; // called after each step, or NULL
    void* progress_context;
} ddpm_sampler_t;

// The times that are used, upwards. The sum, its roundings and those to even are Python's, as the original has them.
static inline void ddpm_times(int* times, int n) { // (n)
    double at = 0, distance = n > 1 ? (DDPM_TIMES - 1) / (double)(n - 1) : 1;
    for (int i = 0; i < n; i++, at += distance) times[i] = (int)nearbyint(at);
}

// The coefficients of all steps, the last time first.
static inline void ddpm_plan_steps(ddpm_step_t* steps, int n, ddpm_kind_t kind, double eta) { // (n)
    double product[DDPM_TIMES], before = 1;
    int times[DDPM_TIMES];
    for (int t = 0; t < DDPM_TIMES; t++) {
        product[t] = (t ? product[t - 1] : 1) * (1 - (1e-4 + (2e-2 - 1e-4) * t / (DDPM_TIMES - 1)));
    }
    ddpm_times(times, n);
    for (int i = 0; i < n; i++) {
        ddpm_step_t* s = &steps[n - 1 - i];
        double A = product[times[i]], beta = 1 - A / before, least = beta * (1 - before) / (1 - A), of_image, rest, e;
        if (kind == DDPM_ANCESTRAL) {
            of_image = sqrt(before) * beta / (1 - A), rest = (1 - before) * sqrt(1 - beta) / (1 - A), e = 0;
            s->log_least = log(least), s->log_most = log(beta); // of the first step: not used
        } else {
            double variance = eta * eta * least;
            of_image = sqrt(before), rest = 0, e = sqrt(1 - before - variance);
            s->log_least = s->log_most = log(variance);
        }
        s->t = times[i];
        s->x_share = of_image / sqrt(A) + rest;
        s->out_share = e - of_image * sqrt((1 - A) / A);
        s->noisy = i > 0 && (kind == DDPM_ANCESTRAL || eta > 0);
        before = A;
    }
}

// The same for the equation.
static inline void ddpm_plan_sde(ddpm_step_t* steps, int n) { // (n)
    for (int i = 0; i < n; i++) {
        ddpm_step_t* s = &steps[i];
        double h = i < n - 1 ? (1 - DDPM_SDE_LAST) / (n - 1) : DDPM_SDE_LAST;
        s->t = (1 - DDPM_SDE_LAST) * i / (n - 1);
        s->x_share = 1 - h;
        s->out_share = h * (1 + s->t);
        s->log_least = s->log_most = log(2 * (1 - s->t) * h);
        s->noisy = i < n - 1;
    }
}

// The same for DDIM along a velocity.
static inline void ddpm_plan_velocity(ddpm_step_t* steps, int n, ddpm_kind_t kind, double eta, double shift) { // (n)
    double* t = (double*)malloc_check(((size_t)n + 1) * sizeof(double), "times of the steps");
    flow_grid(t, n + 1, shift);
    for (int i = 0; i < n; i++) {
        ddpm_step_t* s = &steps[i];
        double noise = 1 - t[i], next = 1 - t[i + 1], b = next - eta * (noise - next) * next / noise; // shares
        double r = t[i] * next / (t[i + 1] * noise), variance = eta * eta * next * next * (1 - r * r);
        if (kind == DDPM_DDIM_SONG) b = sqrt(next * next - variance);
        else variance = next * next - b * b;
        s->t = t[i];
        s->x_share = t[i + 1] + b;
        s->out_share = t[i + 1] * noise - b * t[i];
        s->log_least = s->log_most = log(variance);
        s->noisy = variance > 0;
    }
    free(t);
}

// Images of HW C values from here on, at most as many as planned; `shift` is that of DDIM's grid along a velocity.
static inline void ddpm_sampler_set_size(ddpm_sampler_t* d, int HW, double shift) {
    d->HW = HW;
    if (d->kind == DDPM_SDE) ddpm_plan_sde(d->step, d->steps);
    else if (d->OC == d->C) ddpm_plan_velocity(d->step, d->steps, d->kind, d->eta, shift);
    else ddpm_plan_steps(d->step, d->steps, d->kind, d->eta);
}

// Plans memory for up to max_batch images of HW C values. OC: channels of what the network says: C for a velocity, 2 C
// for noise.
static inline void ddpm_sampler_plan(ddpm_sampler_t* d, plan_t* plan, ddpm_kind_t kind, int steps, double eta,
                                     double shift, int max_batch, int HW, int C, int OC) {
    if (kind == DDPM_SDE && steps < 2) fatal("-steps %d: -process sde has at least 2", steps);
    if (OC > C && (steps < 1 || steps > DDPM_TIMES)) {
        fatal("-steps %d: the diffusion process has %d times, so 1 to %d", steps, DDPM_TIMES, DDPM_TIMES);
    }
    if (!(eta >= 0 && eta <= 1)) fatal("-eta %g: want a number from 0 (no noise) to 1", eta);
    memset(d, 0, sizeof *d);
    d->kind = kind, d->eta = eta;
    d->steps = steps, d->max_batch = max_batch, d->C = C, d->OC = OC;
    d->step = (ddpm_step_t*)malloc_check((size_t)steps * sizeof(ddpm_step_t), "steps of the diffusion process");
    d->times = (double*)malloc_check((size_t)max_batch * sizeof(double), "times of images");
    ddpm_sampler_set_size(d, HW, shift);
    size_t positions = (size_t)max_batch * HW;
    plan_bytes_for(plan, &d->images, (size_t)max_batch * sizeof(uint64_t), "ddpm.images");
    plan_floatS(plan, &d->out, positions * OC, "ddpm.out");
    plan_floatS(plan, &d->noise, positions * C, "ddpm.noise");
}

static inline void ddpm_sampler_free(ddpm_sampler_t* d) {
    free(d->step), free(d->times);
    memset(d, 0, sizeof *d);
}

// From noise to data, in place. `predict` writes (B, HW, OC): the noise and f, or a velocity.
static inline void ddpm_sample(ddpm_sampler_t* d,
                               floatS* x,              // (B, HW, C)
                               const uint64_t* images, // (B) their numbers, host memory
                               int B, velocity_fn predict, void* model, uint64_t seed, stream_t s) {
    if (B < 1 || B > d->max_batch) fatal("sampling: %d images where memory was planned for %d", B, d->max_batch);
    copy_to_device(d->images, images, (size_t)B * sizeof(uint64_t), s);
    for (int i = 0; i < d->steps; i++) {
        const ddpm_step_t* step = &d->step[i];
        for (int b = 0; b < B; b++) d->times[b] = step->t;
        predict(model, d->out, x, d->times, B, s);
        if (step->noisy) { // step 0 of this stream is the noise that x began as
            normal_rows(d->noise, d->images, B, (size_t)d->HW * d->C, seed, RANDOM_NOISE, (uint64_t)i + 1, s);
        }
        diffusion_step(x, d->out, step->noisy ? d->noise : NULL, step->x_share, step->out_share, step->log_least,
                       step->log_most, B, d->HW, d->C, d->OC, s);
        if (d->progress) d->progress(d->progress_context, i + 1, d->steps, (double)(i + 1) / d->steps);
    }
}
