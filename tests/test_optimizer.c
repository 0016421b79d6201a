// test_optimizer.c: what happens between gradients and weights: norms, the adaptive weights and their identities, Adam
// against the formulas written out naively, the moving averages, random numbers by row, and dropout.
// defines: random_buffer, poisoned_buffer, check_accumulates
#include "tests/gradient.h"
// defines: check_parameter_gradient
#include "tests/operation.h"
// defines: the operations
#include "common/ops.h"
// defines: RANDOM_POSTERIOR
#include "common/program/rng.h"
// defines: ema_gamma, ema_power_beta
#include "common/training/ema.h"
#include <omp.h>

// ---------------------------------------------------------------------------------------------------------------------
// Norms and adaptive weights

static void test_sum_squares(void) {
    if (!test_case("sum of squares: groups of several blocks")) return;
    enum { groups = 3, n = 20011 };
    double *x = random_buffer(groups * n), out[groups] = {NAN, NAN, NAN}, want[groups];
    for (int k = 0; k < groups; k++) want[k] = dot(x + k * n, x + k * n, n);
    sum_squares(out, x, groups, n, 0);
    check_error("sum", relative_error_double(out, want, groups), 1e-13);
    free(x);
    test_end_case();
}

// omega for gradients of the norms rec and other.
static double omega_of(double rec, double other, double weight, double max_ratio, double gradient_scale,
                       double* clamped) {
    double omega = NAN, squares_rec = rec * rec, squares_other = other * other;
    *clamped = NAN;
    adaptive_weight(&omega, clamped, &squares_rec, &squares_other, weight, max_ratio, gradient_scale, 1, 0);
    return omega;
}

static void test_adaptive_weight(void) {
    if (!test_case("adaptive weight: ratio, scale invariance, clip, silent loss, NaN")) return;
    double clamped;
    check_error("ratio", fabs(omega_of(3, 2, 0.5, 1e4, 1, &clamped) - 0.5 * 3 / 2.0001), 1e-15);
    check(clamped == 0, "no clip");
    double pull = omega_of(3, 2, 0.5, 1e4, 1, &clamped) * 2, pull10 = omega_of(3, 20, 0.5, 1e4, 1, &clamped) * 20;
    check_error("a loss of ten times the size pulls the same, up to 1e-4", fabs(pull10 / pull - 1), 1e-4);
    check_error("both scaled by the batch", fabs(omega_of(3, 2, 0.5, 1e4, 8, &clamped) - 0.5 * 24 / 16.0001), 1e-15);
    check_error("silent loss", fabs(omega_of(0.3, 0, 0.5, 1e4, 1, &clamped) - 0.5 * 0.3 / 1e-4), 1e-9);
    check(clamped == 0, "no clip at 3000");
    check(omega_of(3, 0, 0.5, 1e4, 1, &clamped) == 0.5 * 1e4 && clamped == 1, "clip at 1e4, the weight behind it");
    check(omega_of(0, 2, 0.5, 1e4, 1, &clamped) == 0 && clamped == 0, "no reconstruction gradient");
    check(isnan(omega_of(NAN, 2, 0.5, 1e4, 1, &clamped)), "a NaN is not hidden by the clip");
    double rec[2] = {9, 16}, other[2] = {4, 1}, omega[2], clips[2];
    adaptive_weight(omega, clips, rec, other, 1, 1e8, 1, 2, 0);
    check_error("each group its own", fabs(omega[1] - 4 / 1.0001) + fabs(omega[0] - 3 / 2.0001), 1e-15);
    test_end_case();
}

static void test_add_scaled(void) {
    if (!test_case("scaled groups: add, accumulate, in place, zero gradient")) return;
    enum { groups = 3, n = 4099, all = groups * n };
    double *a = random_buffer(all), *b = random_buffer(all), *out = poisoned_buffer(all);
    double omega[groups] = {0.5, -2, 1e3};
    double *want = poisoned_buffer(all);
    double *start = random_buffer(n), *once = poisoned_buffer(n), *twice = poisoned_buffer(n);
    for (int i = 0; i < all; i++) want[i] = a[i] + omega[i / n] * b[i];
    add_scaled_groups(out, a, b, omega, groups, n, 0);
    check_error("out", relative_error_double(out, want, all), 1e-15);
    memcpy(once, start, n * sizeof(double));
    accumulate_scaled_groups(once, a, b, omega, groups, n, 0);
    memcpy(twice, once, n * sizeof(double));
    accumulate_scaled_groups(twice, a, b, omega, groups, n, 0);
    check_accumulates("sum over groups", twice, once, start, n);
    for (int i = 0; i < n; i++) want[i] += start[i] + want[n + i] + want[2 * n + i];
    check_error("sum over groups", relative_error_double(once, want, n), 1e-14);
    memcpy(once, start, n * sizeof(double));
    accumulate_scaled_groups(once, a, NULL, NULL, groups, n, 0);
    for (int i = 0; i < n; i++) want[i] = start[i] + a[i] + a[n + i] + a[2 * n + i];
    check_error("sum of a alone", relative_error_double(once, want, n), 1e-14);
    memcpy(out, a, all * sizeof(double));
    add_scaled_groups(out, out, b, omega, groups, n, 0);
    memset(b, 0, all * sizeof(double));
    add_scaled_groups(a, a, b, omega, groups, n, 0);
    for (int i = 0; i < all; i++) check(out[i] == out[i], "in place");
    memcpy(want, a, all * sizeof(double));
    add_scaled_groups(b, a, b, omega, groups, n, 0);
    check(!memcmp(want, b, all * sizeof(double)), "a zero gradient adds exactly nothing, in place");
    free(a);
    free(b);
    free(out);
    free(want);
    free(start);
    free(once);
    free(twice);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Adam

// One step of one value, as the papers write it.
static void adam_naive(double* w, double* m, double* v, double g, adam_t a) {
    g *= a.grad_scale;
    *w -= a.lr * a.decay * *w;
    *m = a.beta1 * *m + (1 - a.beta1) * g;
    *v = a.beta2 * *v + (1 - a.beta2) * g * g;
    double m_hat = *m / (1 - pow(a.beta1, (double)a.t));
    double v_hat = *v / (1 - pow(a.beta2, (double)a.t));
    *w -= a.lr * m_hat / (sqrt(v_hat) + a.eps);
}

static void test_adam(adam_t adam, const char* name) {
    if (!test_case(name)) return;
    enum { n = 5003 };
    double *w = random_buffer(n), *m = random_buffer(n), *v = random_buffer(n), *want[3];
    double *ema[2] = {random_buffer(n), random_buffer(n)}, *want_ema = random_buffer(n);
    for (int i = 0; i < n; i++) {
        m[i] *= adam.t > 1 ? 0.1 : 0;
        v[i] *= adam.t > 1 ? v[i] : 0;
    }
    double* live[3] = {w, m, v};
    for (int k = 0; k < 3; k++) {
        want[k] = poisoned_buffer(n);
        memcpy(want[k], live[k], n * sizeof(double));
    }
    memcpy(want_ema, ema[1], n * sizeof(double));
    for (int step = 0; step < 5; step++, adam.t++) {
        double* grad = random_buffer(n);
        grad[step] = 0;
        adam_update(w, w, m, v, ema[0], ema[1], grad, n, adam, 0);
        for (int i = 0; i < n; i++) {
            adam_naive(want[0] + i, want[1] + i, want[2] + i, grad[i], adam);
            want_ema[i] = adam.ema_beta[1] * want_ema[i] + (1 - adam.ema_beta[1]) * want[0][i];
        }
        free(grad);
    }
    const char* what[3] = {"weights", "m", "v"};
    for (int k = 0; k < 3; k++) check_error(what[k], relative_error_double(live[k], want[k], n), 1e-14);
    check_error("average", relative_error_double(ema[1], want_ema, n), 1e-14);
    check(!memcmp(ema[0], w, n * sizeof(double)), "an average of beta 0 equals the weights");
    for (int k = 0; k < 3; k++) {
        free(live[k]);
        free(want[k]);
    }
    free(ema[0]);
    free(ema[1]);
    free(want_ema);
    test_end_case();
}

static void test_adam_variants(void) {
    if (!test_case("adam: master, no averages, zero gradient, first step, threads")) return;
    enum { n = 6007 };
    adam_t adam = {0.01, 0.5, 0.9, 1e-8, 0, 1, {0.9, 0.99}, 1};
    double *start = random_buffer(n), *grad = random_buffer(n), *w[2] = {poisoned_buffer(n), poisoned_buffer(n)};
    double *master = poisoned_buffer(n), *ema = random_buffer(n);
    int threads = omp_get_max_threads();
    for (int k = 0; k < 2; k++) {
        omp_set_num_threads(k ? 3 : 1);
        memcpy(k ? w[k] : master, start, n * sizeof(double));
        double *m = (double*)calloc(n, sizeof(double)), *v = (double*)calloc(n, sizeof(double));
        adam_update(w[k], k ? w[k] : master, m, v, k ? NULL : ema, NULL, grad, n, adam, 0);
        free(m);
        free(v);
    }
    omp_set_num_threads(threads);
    check(!memcmp(w[0], w[1], n * sizeof(double)), "the same weights with and without master, on 1 and 3 threads");
    check(!memcmp(w[0], master, n * sizeof(double)), "weight is a copy of master");
    for (int i = 0; i < n; i++) {
        double length = fabs(w[0][i] - start[i]);
        if (fabs(grad[i]) > 1e-3) check_error("first step is lr long", fabs(length / adam.lr - 1), 1e-4);
    }
    double weight = 2, m = 0, v = 0, zero = 0;
    adam.t = 1000000000000;
    adam_update(&weight, &weight, &m, &v, NULL, NULL, &zero, 1, adam, 0);
    check(weight == 2 && m == 0 && v == 0, "a gradient that was always zero moves nothing");
    adam.decay = 0.1;
    adam_update(&weight, &weight, &m, &v, NULL, NULL, &zero, 1, adam, 0);
    check_error("decay alone", fabs(weight - 2 * (1 - 0.01 * 0.1)), 1e-15);
    free(start);
    free(grad);
    free(w[0]);
    free(w[1]);
    free(master);
    free(ema);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Moving averages

static void test_ema_gamma(void) {
    if (!test_case("ema: gamma of a width, betas of the power function")) return;
    check_error("gamma(0.05)", fabs(ema_gamma(0.05) - 16.9721986023) / 16.97, 1e-11);
    check_error("gamma(0.10)", fabs(ema_gamma(0.10) - 6.9372039376) / 6.94, 1e-11);
    double widths[6] = {0.001, 0.05, 0.1, 0.2, 0.28, 0.2886};
    for (int i = 0; i < 6; i++) {
        double g = ema_gamma(widths[i]), width = sqrt((g + 1) / ((g + 2) * (g + 2) * (g + 3)));
        check_error("width of gamma(width)", fabs(width / widths[i] - 1), 4e-15);
    }
    check(ema_power_beta(ema_gamma(0.05), 1) == 0, "beta_1 = 0");
    double want[2][3] = {{1.78205e-2, 1.79707e-4, 8.16887e-5}, {7.90973e-3, 7.93693e-5, 3.60776e-5}};
    int64_t steps[3] = {1000, 100000, 220000};
    for (int i = 0; i < 6; i++) {
        double beta = ema_power_beta(ema_gamma(i / 3 ? 0.10 : 0.05), steps[i % 3]);
        check_error("1 - beta", fabs((1 - beta) / want[i / 3][i % 3] - 1), 5e-6);
    }
    test_end_case();
}

// Three sequences of weights: w_t = t, t^2 and a constant. The average of the first is the mean of the profile
// k^gamma, in the limit of large t equal to t (gamma + 1) / (gamma + 2); with the second comes its standard deviation,
// sigma_rel t. With lr 0 Adam leaves the weights as they are.
static void test_ema_profile(void) {
    if (!test_case("ema: copy after one step, constants stay, width of the profile")) return;
    enum { steps = 5000 };
    adam_t still = {0, 0.9, 0.9, 1, 0, 1, {0, 0}, 1};
    double gammas[2] = {ema_gamma(0.05), ema_gamma(0.10)};
    double ema[2][3] = {{123, 55, 3}, {-7, 66, 4}}, m[3] = {0}, v[3] = {0}, zero[3] = {0};
    for (int64_t t = 1; t <= steps; t++) {
        for (int i = 0; i < 2; i++) still.ema_beta[i] = ema_power_beta(gammas[i], t);
        still.t = t;
        double weight[3] = {(double)t, (double)t * (double)t, 0.1};
        adam_update(weight, weight, m, v, ema[0], ema[1], zero, 3, still, 0);
        if (t == 1) check(!memcmp(ema[0], weight, sizeof weight) && !memcmp(ema[1], weight, sizeof weight), "copy");
        check(ema[0][2] == 0.1 && ema[1][2] == 0.1, "a constant weight has itself as average");
    }
    for (int i = 0; i < 2; i++) {
        double gamma = gammas[i], deviation = sqrt(ema[i][1] - ema[i][0] * ema[i][0]);
        double mean = (gamma + 1) / (gamma + 2), width = i ? 0.10 : 0.05, bound = 2.0 / (int)steps;
        check_error("mean of the profile", fabs(ema[i][0] / (int)steps / mean - 1), bound);
        check_error("width of the profile", fabs(deviation / (int)steps / width - 1), bound);
    }
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Random numbers by row

static void test_normal_rows(void) {
    if (!test_case("normal_rows: any rows, any threads; mean 0, variance 1")) return;
    enum { B = 5, n = 1003 };
    double *all = poisoned_buffer(B * n), *rows = poisoned_buffer(2 * n), *other = poisoned_buffer(B * n);
    int threads = omp_get_max_threads();
    uint64_t numbers[B] = {16, 17, 18, 19, 20}, some[2] = {19, 17};
    normal_rows(all, numbers, B, n, 42, RANDOM_POSTERIOR, 7, 0);
    omp_set_num_threads(3);
    normal_rows(rows, some, 2, n, 42, RANDOM_POSTERIOR, 7, 0);
    omp_set_num_threads(threads);
    check(!memcmp(rows, all + 3 * n, n * sizeof(double)), "row 19 alone is the same numbers");
    check(!memcmp(rows + n, all + n, n * sizeof(double)), "row 17 alone is the same numbers");
    for (size_t i = 0; i < B * n; i++) {
        check(all[i] == (double)random_normal(42, RANDOM_POSTERIOR, 7, 16 * n + i), "the numbers of the generator");
    }
    double sum = 0, squares = dot(all, all, B * n);
    for (int i = 0; i < B * n; i++) sum += all[i];
    check(fabs(sum / (B * n)) < 4 / sqrt(B * n), "mean 0");
    check(fabs(squares / (B * n) - 1) < 4 * sqrt(2.0 / (B * n)), "variance 1");
    uint64_t seeds[3] = {43, 42, 42}, steps[3] = {7, 7, 8};
    uint32_t streams[3] = {RANDOM_POSTERIOR, RANDOM_NOISE, RANDOM_POSTERIOR};
    for (int k = 0; k < 3; k++) {
        normal_rows(other, numbers, B, n, seeds[k], streams[k], steps[k], 0);
        check(fabs(dot(all, other, B * n) / (B * n)) < 4 / sqrt(B * n), "another seed, stream or step is independent");
    }
    free(all);
    free(rows);
    free(other);
    test_end_case();
}

typedef struct {
    double *x, *out, *dout, *dx;
} dropout_t;

enum { DROPOUT_B = 3, DROPOUT_N = 1003, DROPOUT_ALL = DROPOUT_B * DROPOUT_N };

static double dropout_objective(void* context) {
    dropout_t* d = (dropout_t*)context;
    dropout_forward(d->out, d->x, 0.3, 1.75, DROPOUT_B, DROPOUT_N, 42, RANDOM_DROPOUT, 7, 5, 0);
    return dot(d->out, d->dout, DROPOUT_ALL);
}

static void dropout_run_backward(void* context) {
    dropout_t* d = (dropout_t*)context;
    dropout_backward(d->dx, d->dout, 0.3, 1.75, DROPOUT_B, DROPOUT_N, 42, RANDOM_DROPOUT, 7, 5, 0);
}

static void test_dropout(void) {
    if (!test_case("dropout: the generator's mask, any first row, any threads; its derivative")) return;
    dropout_t d = {random_buffer(DROPOUT_ALL), poisoned_buffer(DROPOUT_ALL), random_buffer(DROPOUT_ALL),
                   random_buffer(DROPOUT_ALL)};
    dropout_objective(&d);
    int kept = 0, right = 1;
    for (size_t i = 0; i < DROPOUT_ALL; i++) {
        int keep = random_uniform(42, RANDOM_DROPOUT, 7, 5 * DROPOUT_N + i) >= 0.3f;
        kept += keep;
        right = right && fabs(d.out[i] - (keep ? 1.75 / 0.7 * d.x[i] : 0)) < 1e-14;
    }
    check(right, "kept and scaled, or 0, as the generator has it");
    check(fabs(kept / (double)DROPOUT_ALL - 0.7) < 4 * sqrt(0.3 * 0.7 / DROPOUT_ALL), "a share of 1 - p is kept");
    check_parameter_gradient("dx", dropout_objective, dropout_run_backward, &d, d.x, d.dx, DROPOUT_ALL);
    double* row = poisoned_buffer(DROPOUT_N);
    omp_set_num_threads(3);
    dropout_forward(row, d.x + DROPOUT_N, 0.3, 1.75, 1, DROPOUT_N, 42, RANDOM_DROPOUT, 7, 6, 0);
    check(!memcmp(row, d.out + DROPOUT_N, DROPOUT_N * sizeof(double)), "row 6 alone is the same");
    dropout_forward(row, d.x, 0, 1.75, 1, DROPOUT_N, 42, RANDOM_DROPOUT, 7, 6, 0);
    for (size_t i = 0; i < DROPOUT_N; i++) check(row[i] == 1.75 * d.x[i], "p = 0 drops nothing");
    free(d.x), free(d.out), free(d.dout), free(d.dx), free(row);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_sum_squares();
    test_adaptive_weight();
    test_add_scaled();
    adam_t plain = {0.01, 0.5, 0.9, 1e-8, 0, 1, {0, 0.97}, 1};
    adam_t decayed = {0.01, 0.9, 0.95, 1e-8, 0.05, 1, {0, 0.97}, 1};
    adam_t late = {0.003, 0.9, 0.999, 1e-8, 0.05, 1000000, {0, 0.9999}, 1};
    test_adam(plain, "adam: five steps against the formulas");
    test_adam(decayed, "adam: five steps with decoupled decay");
    test_adam(late, "adam: five steps from step 1,000,000");
    test_adam_variants();
    test_ema_gamma();
    test_ema_profile();
    test_normal_rows();
    test_dropout();
    return test_finish();
}
