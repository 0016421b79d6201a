// Flow matching: the path, the loss and its gradient with all its corners, guidance, Runge-Kutta stages.

// defines: flow_path, flow_loss, flow_guide, flow_guide_energy, flow_combine, latent_denormalise, normal_rows
#include "common/ops.h"
// defines: RANDOM_NOISE, RANDOM_TIMES
#include "common/program/rng.h"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error, relative_error_double
#include "tests/test.h"
// defines: check_gradient, check_gradient_h, random_buffer, poisoned_buffer, dot
#include "tests/gradient.h"
// defines: check_any_thread_count, result_t, copy_of
#include "tests/operation.h"

static const double SMALL = 1e-8; // e of the loss

static int same_bits(const double* a, const double* b, size_t n) { return !memcmp(a, b, n * sizeof(double)); }

// ---------------------------------------------------------------------------------------------------------------------
// The path

typedef struct {
    double *xt, *u, *x1, *t;
    int B;
    size_t n;
    uint64_t first_row;
} path_t;

static void run_path(void* context) {
    path_t* p = (path_t*)context;
    flow_path(p->xt, p->u, p->x1, p->t, p->B, p->n, 42, RANDOM_NOISE, 7, p->first_row, 0);
}

// The ends of the path and its velocity, from the numbers that normal_rows gives.
static void test_path(int B, size_t n, const char* name) {
    if (!test_case(name)) return;
    size_t size = (size_t)B * n;
    path_t p = {poisoned_buffer(size), poisoned_buffer(size), random_buffer(size), random_buffer((size_t)B), B, n, 13};
    double *x0 = poisoned_buffer(size), *want_xt = poisoned_buffer(size), *want_u = poisoned_buffer(size);
    for (int b = 0; b < B; b++) p.t[b] = b == 0 ? 0 : b == 1 ? 1 : 0.5 + 0.5 * test_uniform();
    uint64_t numbers[16];
    for (int b = 0; b < B; b++) numbers[b] = p.first_row + (uint64_t)b;
    normal_rows(x0, numbers, B, n, 42, RANDOM_NOISE, 7, 0);
    for (size_t i = 0; i < size; i++) {
        double t = p.t[i / n];
        want_xt[i] = t * p.x1[i] + (1 - t) * x0[i];
        want_u[i] = p.x1[i] - x0[i];
    }
    result_t results[2] = {{"xt", p.xt, size}, {"u", p.u, size}};
    check_any_thread_count(run_path, &p, results, 2);
    check_error("xt", relative_error_double(p.xt, want_xt, size), 1e-15);
    check_error("u", relative_error_double(p.u, want_u, size), 1e-15);
    check(same_bits(p.xt, x0, n), "at time 0 the path is at the noise");
    if (B > 1) check(same_bits(p.xt + n, p.x1 + n, n), "at time 1 the path is at the data");
    int last = B - 1; // the last image alone, as another process would have it
    path_t one = {poisoned_buffer(n), poisoned_buffer(n), p.x1 + last * n, p.t + last, 1, n, 13 + (uint64_t)last};
    run_path(&one);
    check(same_bits(one.xt, p.xt + last * n, n) && same_bits(one.u, p.u + last * n, n), "an image alone has its bits");
    double* all[] = {p.xt, p.u, p.x1, p.t, x0, want_xt, want_u, one.xt, one.u};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    test_end_case();
}

// Data 0 at time 1/2: xt is half the noise, u its negative. Mean, variance, and independence of everything else.
static void test_path_moments(void) {
    if (!test_case("flow_path: mean 0, variance 1; another seed, stream or step is independent")) return;
    enum { B = 5, n = 2003, size = B * n };
    double *xt = poisoned_buffer(size), *u = poisoned_buffer(size), *other = poisoned_buffer(size);
    double zero[size] = {0}, t[B] = {0.5, 0.5, 0.5, 0.5, 0.5}, sum = 0;
    flow_path(xt, u, zero, t, B, n, 42, RANDOM_NOISE, 7, 3, 0);
    for (int i = 0; i < size; i++) sum += u[i], check(xt[i] == -0.5 * u[i], "xt is half the noise");
    check(fabs(sum / size) < 4 / sqrt(size), "mean 0");
    check(fabs(dot(u, u, size) / size - 1) < 4 * sqrt(2.0 / size), "variance 1");
    uint64_t seeds[3] = {43, 42, 42}, steps[3] = {7, 7, 8};
    uint32_t streams[3] = {RANDOM_NOISE, RANDOM_TIMES, RANDOM_NOISE};
    for (int k = 0; k < 3; k++) {
        flow_path(xt, other, zero, t, B, n, seeds[k], streams[k], steps[k], 3, 0);
        check(fabs(dot(u, other, size) / size) < 4 / sqrt(size), "another seed, stream or step is independent");
    }
    free(xt), free(u), free(other);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// The loss

typedef struct {
    int B, HW, C;
    double *v, *u, *mse, *cosine, *dv, *weight;
    double scale_mse, scale_cosine;
} loss_t;

static loss_t loss_new(int B, int HW, int C) {
    size_t n = (size_t)B * HW * C;
    return (loss_t){B, HW, C, random_buffer(n), random_buffer(n), poisoned_buffer((size_t)B),
                    poisoned_buffer((size_t)B), poisoned_buffer(n), NULL, 0.7, 1.3};
}
static void loss_free(loss_t* l) { free(l->v), free(l->u), free(l->mse), free(l->cosine), free(l->dv); }
static size_t loss_size(const loss_t* l) { return (size_t)l->B * l->HW * l->C; }

static void run_loss(void* context) {
    loss_t* l = (loss_t*)context;
    flow_loss(l->mse, l->cosine, l->dv, l->v, l->u, l->weight, l->scale_mse, l->scale_cosine, l->B, l->HW, l->C, 0);
}

static double loss_objective(void* context) {
    loss_t* l = (loss_t*)context;
    flow_loss(l->mse, l->cosine, NULL, l->v, l->u, l->weight, l->scale_mse, l->scale_cosine, l->B, l->HW, l->C, 0);
    double sum = 0;
    for (int b = 0; b < l->B; b++) sum += l->scale_mse * l->mse[b] + l->scale_cosine * l->cosine[b];
    return sum;
}

// Section 4 of the specification, term by term: values, and the gradient case by case.
static void loss_by_formula(const loss_t* l, double* mse, double* cosine, double* dv) {
    int HW = l->HW, C = l->C;
    for (int b = 0; b < l->B; b++) {
        mse[b] = cosine[b] = 0;
        for (int i = 0; i < HW; i++) {
            size_t at = ((size_t)b * HW + i) * C;
            const double *v = l->v + at, *u = l->u + at;
            double V = sqrt(dot(v, v, C)), U = fmax(sqrt(dot(u, u, C)), SMALL), M = fmax(V, SMALL), vu = dot(v, u, C);
            cosine[b] += (1 - vu / (M * U)) / HW;
            for (int c = 0; c < C; c++) {
                mse[b] += (v[c] - u[c]) * (v[c] - u[c]) / ((double)HW * C);
                double d = V == 0       ? -(u[c] / U) / SMALL
                           : V <= SMALL ? -(u[c] / U / SMALL - vu / U * v[c] / (V * SMALL * SMALL))
                                        : -(u[c] / U - vu / (V * U) * v[c] / V) / V;
                dv[at + c] = l->scale_mse * 2 * (v[c] - u[c]) / ((double)HW * C) + l->scale_cosine * d / HW;
            }
        }
    }
}

static void check_loss_formula(loss_t* l) {
    size_t n = loss_size(l), B = (size_t)l->B;
    double *mse = poisoned_buffer(B), *cosine = poisoned_buffer(B), *dv = poisoned_buffer(n);
    loss_by_formula(l, mse, cosine, dv);
    run_loss(l);
    check_error("mse", relative_error_double(l->mse, mse, B), 1e-13);
    check_error("cosine", relative_error_double(l->cosine, cosine, B), 1e-13);
    check_error("dv against the formula", relative_error_double(l->dv, dv, n), 1e-13);
    free(mse), free(cosine), free(dv);
}

static void test_loss(int B, int HW, int C, const char* name) {
    if (!test_case(name)) return;
    loss_t l = loss_new(B, HW, C);
    size_t n = loss_size(&l);
    check_loss_formula(&l);
    double *mse = copy_of(l.mse, (size_t)B), *cosine = copy_of(l.cosine, (size_t)B);
    loss_objective(&l);
    check(same_bits(mse, l.mse, (size_t)B) && same_bits(cosine, l.cosine, (size_t)B), "without dv the same losses");
    check_gradient("dv", loss_objective, &l, l.v, l.dv, n);
    result_t results[3] = {{"mse", l.mse, (size_t)B}, {"cosine", l.cosine, (size_t)B}, {"dv", l.dv, n}};
    check_any_thread_count(run_loss, &l, results, 3);
    l.scale_cosine = 0;
    run_loss(&l);
    check_gradient("dv of the squares alone", loss_objective, &l, l.v, l.dv, n);
    l.scale_cosine = 1.3, l.scale_mse = 0;
    run_loss(&l);
    check_gradient("dv of the cosine alone", loss_objective, &l, l.v, l.dv, n);
    free(mse), free(cosine);
    loss_free(&l);
    test_end_case();
}

// An image's weight multiplies its losses and its gradient.
static void test_loss_weight(void) {
    if (!test_case("flow_loss: weights of images")) return;
    loss_t l = loss_new(4, 7, 5);
    size_t n = loss_size(&l);
    double weight[4] = {2.5, 0, 1, -0.3};
    run_loss(&l);
    double *mse = copy_of(l.mse, 4), *cosine = copy_of(l.cosine, 4), *one = copy_of(l.dv + 2 * n / 4, n / 4);
    l.weight = weight;
    run_loss(&l);
    for (int b = 0; b < 4; b++) {
        check_error("mse", fabs(l.mse[b] - weight[b] * mse[b]), 1e-14);
        check_error("cosine", fabs(l.cosine[b] - weight[b] * cosine[b]), 1e-14);
    }
    check(same_bits(one, l.dv + 2 * n / 4, n / 4), "weight 1: the bits without weights");
    check_gradient("dv", loss_objective, &l, l.v, l.dv, n);
    free(mse), free(cosine), free(one);
    loss_free(&l);
    test_end_case();
}

// Short velocities, above the clamp. The steps of the differences are a thousandth of them.
static void test_loss_short(double length, const char* name) {
    if (!test_case(name)) return;
    loss_t l = loss_new(2, 3, 5);
    size_t n = loss_size(&l);
    for (size_t i = 0; i < n; i++) l.v[i] *= length;
    check_loss_formula(&l);
    check_gradient_h("dv", loss_objective, &l, l.v, l.dv, n, 1e-3 * length, 1e-6);
    loss_free(&l);
    test_end_case();
}

// The first step of a network whose output layer is zero. Inside the clamp the cosine is linear in v, so differences
// with tiny steps are right.
static void test_loss_zero(void) {
    if (!test_case("flow_loss: v = 0 has the gradient -(u / U) / e, not 0")) return;
    loss_t l = loss_new(2, 3, 5);
    size_t n = loss_size(&l);
    memset(l.v, 0, n * sizeof(double));
    check_loss_formula(&l);
    for (size_t i = 0; i < n; i += 5) {
        double U = sqrt(dot(l.u + i, l.u + i, 5));
        double d = -l.scale_cosine / 3 * l.u[i] / U * 1e8 - l.scale_mse * 2 * l.u[i] / 15;
        check_error("dv in figures", fabs(l.dv[i] / d - 1), 1e-13);
    }
    for (int b = 0; b < l.B; b++) check(l.cosine[b] == 1, "the cosine of nothing is 0");
    check_gradient_h("dv", loss_objective, &l, l.v, l.dv, n, 1e-12, 1e-6);
    loss_free(&l);
    test_end_case();
}

// Below the clamp, beside ordinary positions: the derivative is PyTorch's, not that of the clamped function.
static void test_loss_clamped(void) {
    if (!test_case("flow_loss: 0 < |v| <= e, and targets of length 0 and below e")) return;
    loss_t l = loss_new(2, 7, 5);
    size_t n = loss_size(&l);
    for (size_t i = 0; i < 5; i++) l.v[i] *= 1e-9, l.v[5 + i] *= 1e-12, l.v[10 + i] *= 1e-200, l.v[15 + i] = 0;
    check_loss_formula(&l);
    for (size_t i = 0; i < 5; i++) l.u[20 + i] = 0, l.u[25 + i] *= 1e-9, l.u[35 + i] = l.v[35 + i] = 0;
    check_loss_formula(&l);
    for (size_t i = 0; i < n; i++) check(isfinite(l.dv[i]), "dv is finite");
    for (size_t i = 20; i < 25; i++) {
        check(fabs(l.dv[i] - l.scale_mse * 2 * l.v[i] / 35) < 1e-15, "without a direction of u, dv is that of the mse");
    }
    loss_free(&l);
    test_end_case();
}

// v = (3, 4), u = (0, 5): |v - u|^2 = 10, cosine 20 / 25; d cosine / dv = ((0, 1) - 0.8 (0.6, 0.8)) / 5.
static void test_loss_by_hand(void) {
    if (!test_case("flow_loss: by hand")) return;
    double v[2] = {3, 4}, u[2] = {0, 5}, mse = NAN, cosine = NAN, dv[2] = {NAN, NAN};
    flow_loss(&mse, &cosine, dv, v, u, NULL, 1, 10, 1, 1, 2, 0);
    check_error("mse", fabs(mse - 5), 1e-14);
    check_error("cosine", fabs(cosine - 0.2), 1e-14);
    check_error("dv", fabs(dv[0] - (3 + 0.96)) + fabs(dv[1] - (-1 - 0.72)), 1e-14);
    flow_loss(&mse, &cosine, dv, v, v, NULL, 1, 1, 1, 1, 2, 0);
    check(mse == 0 && fabs(cosine) < 1e-15 && fabs(dv[0]) + fabs(dv[1]) < 1e-15, "no loss where v is u");
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Sampling

static void test_guide(void) {
    if (!test_case("flow_guide: three channels, all channels, w = 0 and 1, no null, by hand")) return;
    enum { B = 3, HW = 2, C = 4, n = B * HW * C };
    double cond[n] = {1, 2, 3, 4, -1, 0.5, 0, 8, 1, 2, 3, 4, -1, 0.5, 0, 8, 1, 2, 3, 4, -1, 0.5, 0, 8};
    double null[n] = {.5, 1, 1, 0, 1, 0, -2, 3, .5, 1, 1, 0, 1, 0, -2, 3, 1e30, 1, 1, 0, 1, -1e30, -2, 3};
    double w[B] = {1.5, 0, 1};
    double three[n] = {1.25, 2.5, 4, 4, -2, 0.75, 1, 8, .5, 1, 1, 4, 1, 0, -2, 8, 1, 2, 3, 4, -1, 0.5, 0, 8};
    double all[n] = {1.25, 2.5, 4, 6, -2, 0.75, 1, 10.5, .5, 1, 1, 0, 1, 0, -2, 3, 1, 2, 3, 4, -1, 0.5, 0, 8};
    double* out = poisoned_buffer(n);
    flow_guide(out, cond, null, w, 3, B, HW, C, C, 0);
    check(same_bits(out, three, n), "three channels; where w is 1, exactly cond");
    flow_guide(out, cond, null, w, C, B, HW, C, C, 0);
    check(same_bits(out, all, n), "all channels; where w is 1, exactly cond");
    for (int i = 0; i < n; i++) out[i] = NAN;
    flow_guide(out, cond, NULL, NULL, 3, B, HW, C, C, 0);
    check(same_bits(out, cond, n), "without null, cond");
    for (int i = 0; i < n; i++) out[i] = NAN;
    flow_guide(out, cond, null, w, 0, B, HW, C, C, 0);
    check(same_bits(out, cond, n), "with no guided channel, cond");
    double first[n / 2];
    for (int i = 0; i < n / 2; i++) first[i] = three[i / 2 * 4 + i % 2];
    flow_guide(out, cond, null, w, 3, B, HW, 2, C, 0);
    check(same_bits(out, first, n / 2), "the first two of four channels");
    free(out);
    test_end_case();
}

// cond = (1, 2), null = (0, 1), w = 5: out = (5, 6), and with the energy of cond (5, 6) sqrt(5 / 61).
static void test_guide_energy(void) {
    if (!test_case("flow_guide_energy: by hand, norms, w = 1, a zero")) return;
    double cond[2] = {1, 2}, null[2] = {0, 1}, w[1] = {5}, out[2], want[2] = {1.431497, 1.717796}, zero[2] = {0, 0};
    flow_guide(out, cond, null, w, 1, 1, 2, 1, 1, 0);
    flow_guide_energy(out, cond, 1, 2, 1, 1, 0);
    check_error("by hand", relative_error_double(out, want, 2), 1e-6);
    flow_guide_energy(zero, cond, 1, 2, 1, 1, 0);
    check(zero[0] == 0 && zero[1] == 0, "zero stays");
    enum { B = 3, HW = 7, C = 5, OC = 8, n = HW * C };
    double *x = random_buffer(B * n), *v = random_buffer(B * HW * OC), *before = copy_of(x, B * n);
    for (int i = 0; i < n; i++) x[n + i] = v[(HW + i / C) * OC + i % C]; // image 1: out is cond
    memcpy(before + n, x + n, n * sizeof(double));
    flow_guide_energy(x, v, B, HW, C, OC, 0);
    check(same_bits(x + n, before + n, n), "equal norms leave out as it is");
    for (int b = 0; b < B; b++) {
        double energy = 0;
        for (int i = 0; i < n; i++) energy += pow(v[(b * HW + i / C) * OC + i % C], 2);
        check_error("the energy of cond", fabs(dot(x + b * n, x + b * n, n) / energy - 1), 1e-13);
        double along = dot(x + b * n, before + b * n, n), was = dot(before + b * n, before + b * n, n);
        check_error("the direction of out", fabs(along / sqrt(energy * was) - 1), 1e-13);
    }
    free(x), free(v), free(before);
    test_end_case();
}

static void test_diffusion_step(void) {
    if (!test_case("diffusion_step: by hand; least and most variance; without noise")) return;
    double x[4] = {1, 2, -3, 0.5}, noise[4] = {1, -1, 2, 4}, from[4], want[4];
    double out[8] = {2, -4, -1, 1, 1, 3, 0, -1}; // (2 positions, 2 C): e, then f
    double lo = log(0.25), hi = log(4.0);
    for (int i = 0; i < 4; i++) from[i] = 0.5 * x[i] - 0.25 * out[i / 2 * 4 + i % 2];
    double deviation[4] = {0.5, 2, 1, 0.5}; // where f is -1, 1, 0, -1
    for (int i = 0; i < 4; i++) want[i] = from[i] + deviation[i] * noise[i];
    double moved[4] = {1, 2, -3, 0.5};
    diffusion_step(moved, out, noise, 0.5, -0.25, lo, hi, 1, 2, 2, 4, 0);
    check_error("with noise", relative_error_double(moved, want, 4), 1e-15);
    diffusion_step(x, out, NULL, 0.5, -0.25, lo, hi, 1, 2, 2, 4, 0);
    check(same_bits(x, from, 4), "without noise");
    for (int i = 0; i < 4; i++) want[i] = 0.5 * from[i] - 0.25 * out[i] + 0.5 * noise[i];
    diffusion_step(x, out, noise, 0.5, -0.25, lo, NAN, 1, 2, 2, 2, 0);
    check_error("one variance for all", relative_error_double(x, want, 4), 1e-15);
    test_end_case();
}

static void test_combine_by_hand(void) {
    if (!test_case("flow_combine: by hand; a stage with coefficient 0 is not read")) return;
    double x[4] = {1, 2, 3, 4}, h[2] = {0.5, -2}, out[4] = {NAN, NAN, NAN, NAN};
    double k[12] = {1, -1, 2, 0.5, NAN, NAN, NAN, NAN, 4, 8, -1, 0}, euler = 1, a[3] = {2, 0, 0.25};
    flow_combine(out, x, k, h, &euler, 1, 2, 2, 0);
    check(same_bits(out, (double[]){1.5, 1.5, -1, 3}, 4), "one stage");
    flow_combine(out, x, k, h, a, 3, 2, 2, 0);
    check(same_bits(out, (double[]){2.5, 2, -4.5, 2}, 4), "three stages");
    test_end_case();
}

typedef struct {
    double *out, *x, *k, *h, a[FLOW_STAGES];
    int stages, B;
    size_t n;
} combine_t;

static void run_combine(void* context) {
    combine_t* c = (combine_t*)context;
    flow_combine(c->out, c->x, c->k, c->h, c->a, c->stages, c->B, c->n, 0);
}

// Against the formula; in place; and each image alone.
static void test_combine(void) {
    if (!test_case("flow_combine: 1 to 7 stages, in place, one image or many")) return;
    enum { B = 7, n = 131, size = B * n };
    for (int stages = 1; stages <= FLOW_STAGES; stages++) {
        combine_t c = {poisoned_buffer(size), random_buffer(size), random_buffer((size_t)stages * size),
                       random_buffer(B), {0}, stages, B, n};
        double *want = poisoned_buffer(size), *k = poisoned_buffer((size_t)stages * n), *one = poisoned_buffer(n);
        for (int i = 0; i < stages; i++) c.a[i] = test_normal();
        for (size_t i = 0; i < size; i++) {
            want[i] = c.x[i];
            for (int stage = 0; stage < stages; stage++) want[i] += c.h[i / n] * c.a[stage] * c.k[stage * size + i];
        }
        result_t result = {"out", c.out, size};
        check_any_thread_count(run_combine, &c, &result, 1);
        check_error("out", relative_error_double(c.out, want, size), 1e-14);
        for (int b = 0; b < B; b++) {
            for (int stage = 0; stage < stages; stage++) {
                memcpy(k + stage * n, c.k + stage * size + b * n, n * sizeof(double));
            }
            flow_combine(one, c.x + b * n, k, c.h + b, c.a, stages, 1, n, 0);
            check(same_bits(one, c.out + b * n, n), "an image alone has the bits it has among others");
        }
        flow_combine(c.x, c.x, c.k, c.h, c.a, stages, B, n, 0);
        check(same_bits(c.x, c.out, size), "in place");
        free(c.out), free(c.x), free(c.k), free(c.h), free(want), free(k), free(one);
    }
    test_end_case();
}

static void test_denormalise(void) {
    if (!test_case("latent_denormalise: by hand, and undoes the normalisation")) return;
    double x[6] = {1, 2, 3, -1, 0, 0.5}, mean[3] = {10, 20, 30}, std[3] = {2, 0.5, 4}, out[6];
    for (int i = 0; i < 6; i++) out[i] = NAN;
    latent_denormalise(out, x, mean, std, 2, 3, 0);
    check(same_bits(out, (double[]){12, 21, 42, 8, 20, 32}, 6), "x std + mean");
    enum { N = 1001, C = 13 };
    double *z = random_buffer(N * C), *m = random_buffer(C), *d = random_buffer(C), *y = poisoned_buffer(N * C);
    double* back = poisoned_buffer(N * C);
    for (int c = 0; c < C; c++) d[c] = 0.1 + fabs(d[c]);
    for (int i = 0; i < N * C; i++) y[i] = (z[i] - m[i % C]) / d[i % C];
    latent_denormalise(back, y, m, d, N, C, 0);
    check_error("z", relative_error_double(back, z, N * C), 1e-14);
    free(z), free(m), free(d), free(y), free(back);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_path(7, 1003, "flow_path: the numbers of normal_rows, both ends; any first row, any threads");
    test_path(4, 1024, "flow_path: rows of a multiple of four");
    test_path(3, 1, "flow_path: rows of one value");
    test_path_moments();
    test_loss(3, 11, 32, "flow_loss");
    test_loss(2, 5, 7, "flow_loss: primes");
    test_loss(1, 1, 1, "flow_loss: one value");
    test_loss(2, 3, 523, "flow_loss: many channels");
    test_loss_weight();
    test_loss_short(1e-3, "flow_loss: |v| about 1e-3");
    test_loss_short(3e-8, "flow_loss: |v| about 6e-8, close above the clamp");
    test_loss_zero();
    test_loss_clamped();
    test_loss_by_hand();
    test_guide();
    test_guide_energy();
    test_diffusion_step();
    test_combine_by_hand();
    test_combine();
    test_denormalise();
    return test_finish();
}
