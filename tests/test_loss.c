// test_loss.c: every loss of dev/cpu/loss.h: its value against the formula written out naively, its gradient against
// differences of the value, and the points where a formula could go wrong: corners, clamps, zero vectors, equal
// arguments. defines: random_buffer, poisoned_buffer, check_gradient
#include "tests/gradient.h"
// defines: the operations
#include "common/ops.h"
#include <omp.h>

// What the objectives need; each case fills its part. The projection is L = sum_k r_k loss_k (+ sum_i q_i out_i).
typedef struct {
    double *x, *y, *w, *noise, *out; // inputs and outputs of the operation
    double *q;                       // projection of `out`
    double loss[8];
    double scale; // projection of the losses: the same for each, as backwards take one number
    int B, N, C, chunk;
    double margin[2];
    int labels[8];
} case_t;

static double loss_sum(const case_t* c, int n) {
    double sum = 0;
    for (int k = 0; k < n; k++) sum += c->loss[k];
    return c->scale * sum;
}

static void poison_losses(case_t* c) {
    for (int k = 0; k < 8; k++) c->loss[k] = NAN;
}

// ---------------------------------------------------------------------------------------------------------------------
// L1

static double l1_objective(void* context) {
    case_t* c = (case_t*)context;
    l1_forward(c->loss, c->x, c->y, c->B, (size_t)c->N * 3, 0);
    return loss_sum(c, c->B);
}

static void test_l1(void) {
    if (!test_case("l1: value; gradient with a second branch; sign(0) = 0")) return;
    enum { B = 3, HW = 35, n = B * HW * 3 };
    case_t c;
    memset(&c, 0, sizeof c);
    c.B = B;
    c.N = HW;
    c.scale = 0.7;
    c.x = random_buffer(n);
    c.y = random_buffer(n);
    c.w = random_buffer(n);
    for (int i = 0; i < n; i++) {
        if (fabs(c.x[i] - c.y[i]) < 0.02) c.x[i] = c.y[i] + 0.02;
    }
    channel_affine_t affine = {{2.1, -0.3, 1.7}, {5, 5, 5}};
    double channels[3] = {2.1, -0.3, 1.7};
    poison_losses(&c);
    l1_forward(c.loss, c.x, c.y, B, HW * 3, 0);
    for (int b = 0; b < B; b++) {
        double want = 0;
        for (int i = b * HW * 3; i < (b + 1) * HW * 3; i++) want += fabs(c.x[i] - c.y[i]);
        check_error("loss", fabs(c.loss[b] - want) / want, 1e-14);
    }
    double* dx = poisoned_buffer(n);
    l1_backward(dx, c.x, c.y, c.w, affine, c.scale, B, HW, 0);
    double* want = (double*)malloc(n * sizeof(double));
    for (int i = 0; i < n; i++) want[i] = c.scale * (c.x[i] > c.y[i] ? 1 : -1) + channels[i % 3] * c.w[i];
    check_error("dxhat", relative_error_double(dx, want, n), 1e-14);
    double* dplain = poisoned_buffer(n);
    l1_backward(dplain, c.x, c.y, NULL, affine, c.scale, B, HW, 0);
    check_gradient("dxhat without the second branch", l1_objective, &c, c.x, dplain, n);
    c.x[4] = c.y[4];
    l1_backward(dplain, c.x, c.y, NULL, affine, c.scale, B, HW, 0);
    check(dplain[4] == 0, "sign(0) = 0");
    free(c.x);
    free(c.y);
    free(c.w);
    free(dx);
    free(dplain);
    free(want);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// LPIPS

// c->x holds values before the ReLU whose output the tap is.
static double lpips_objective(void* context) {
    case_t* c = (case_t*)context;
    size_t n = (size_t)c->B * c->N * c->C;
    for (size_t i = 0; i < n; i++) c->out[i] = c->x[i] > 0 ? c->x[i] : 0;
    for (int b = 0; b < c->B; b++) c->loss[b] = 0;
    lpips_tap_forward(c->loss, c->out, c->y, c->w, c->B, c->N, c->C, 0);
    return loss_sum(c, c->B);
}

static double lpips_naive(const double* f, const double* g, const double* w, int HW, int C) {
    double sum = 0;
    for (int p = 0; p < HW; p++) {
        double ff = 0, gg = 0;
        for (int k = 0; k < C; k++) {
            ff += f[p * C + k] * f[p * C + k];
            gg += g[p * C + k] * g[p * C + k];
        }
        for (int k = 0; k < C; k++) {
            double d = f[p * C + k] / (sqrt(ff) + 1e-10) - g[p * C + k] / (sqrt(gg) + 1e-10);
            sum += w[k] * d * d;
        }
    }
    return sum / HW;
}

// Feature maps as a ReLU leaves them, with one position of each that is zero in all channels.
static case_t lpips_case(int B, int HW, int C) {
    case_t c;
    memset(&c, 0, sizeof c);
    size_t n = (size_t)B * HW * C;
    c.B = B;
    c.N = HW;
    c.C = C;
    c.scale = 1.3;
    c.x = random_buffer(n);
    c.y = random_buffer(n);
    c.w = random_buffer((size_t)C);
    c.out = random_buffer(n);
    for (size_t i = 0; i < n; i++) {
        if (fabs(c.x[i]) < 0.02) c.x[i] = 0.02;
        c.y[i] = c.y[i] > 0 ? c.y[i] : 0;
    }
    for (int k = 0; k < C; k++) {
        c.w[k] = fabs(c.w[k]);
        c.x[2 * C + k] = -fabs(c.x[2 * C + k]);
        c.y[3 * C + k] = 0;
    }
    return c;
}

static void free_case(case_t* c) {
    free(c->x);
    free(c->y);
    free(c->w);
    free(c->noise);
    free(c->out);
    free(c->q);
}

static void test_lpips(int B, int HW, int C, const char* name) {
    if (!test_case(name)) return;
    case_t c = lpips_case(B, HW, C);
    size_t n = (size_t)B * HW * C, image = (size_t)HW * C;
    lpips_objective(&c);
    for (int b = 0; b < B; b++) {
        double want = lpips_naive(c.out + b * image, c.y + b * image, c.w, HW, C);
        check_error("loss", fabs(c.loss[b] - want) / want, 1e-13);
        c.loss[b] = 2;
    }
    lpips_tap_forward(c.loss, c.out, c.y, c.w, B, HW, C, 0);
    check_error("loss accumulates", fabs(c.loss[0] - 2 - lpips_naive(c.out, c.y, c.w, HW, C)), 1e-13);
    double* df = poisoned_buffer(n);
    lpips_tap_backward(df, c.out, c.y, c.w, c.scale, B, HW, C, 0);
    check_gradient("df", lpips_objective, &c, c.x, df, n);
    for (int k = 0; k < C; k++) check(df[2 * C + k] == 0, "no gradient where f is zero in all channels");
    free(df);
    free_case(&c);
    test_end_case();
}

static void test_lpips_identities(void) {
    if (!test_case("lpips tap: zero at f = g, symmetric, features of any scale")) return;
    enum { B = 2, HW = 7, C = 13, n = B * HW * C };
    case_t c = lpips_case(B, HW, C);
    double* df = poisoned_buffer(n);
    lpips_objective(&c);
    double same[B] = {0}, there[B] = {0}, back[B] = {0}, scaled[B] = {0};
    lpips_tap_forward(same, c.out, c.out, c.w, B, HW, C, 0);
    lpips_tap_backward(df, c.out, c.out, c.w, 1, B, HW, C, 0);
    for (int b = 0; b < B; b++) check(same[b] == 0, "zero distance");
    for (int i = 0; i < n; i++) check(df[i] == 0, "zero gradient");
    lpips_tap_forward(there, c.out, c.y, c.w, B, HW, C, 0);
    lpips_tap_forward(back, c.y, c.out, c.w, B, HW, C, 0);
    check_error("symmetry", relative_error_double(there, back, B), 1e-14);
    for (int i = 0; i < n; i++) c.out[i] *= 1000;
    lpips_tap_forward(scaled, c.out, c.y, c.w, B, HW, C, 0);
    check_error("scale of f does not count", relative_error_double(scaled, there, B), 1e-9);
    memset(c.out, 0, n * sizeof(double));
    memset(c.y, 0, n * sizeof(double));
    memset(there, 0, sizeof there);
    lpips_tap_forward(there, c.out, c.y, c.w, B, HW, C, 0);
    lpips_tap_backward(df, c.out, c.y, c.w, 1, B, HW, C, 0);
    check(there[0] == 0 && there[1] == 0, "zero features: zero distance");
    for (int i = 0; i < n; i++) check(df[i] == 0, "zero features: zero gradient");
    free(df);
    free_case(&c);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// The adversarial pair

static double hinge_objective(void* context) {
    case_t* c = (case_t*)context;
    hinge_forward(c->loss, c->x, c->y, c->B, (size_t)c->N, 0);
    return loss_sum(c, c->B);
}

static double mean_objective(void* context) {
    case_t* c = (case_t*)context;
    group_mean_forward(c->loss, c->x, c->B, (size_t)c->N, 0);
    return loss_sum(c, c->B);
}

static void test_hinge(void) {
    if (!test_case("hinge: gradients; exact values; zero gradient at the corner")) return;
    enum { groups = 3, n = 37, all = groups * n };
    case_t c;
    memset(&c, 0, sizeof c);
    c.B = groups;
    c.N = n;
    c.scale = -0.6;
    c.x = random_buffer(all);
    c.y = random_buffer(all);
    for (int i = 0; i < all; i++) {
        if (fabs(c.x[i] - 1) < 0.02) c.x[i] = 1.02;
        if (fabs(c.y[i] + 1) < 0.02) c.y[i] = -1.02;
    }
    double *dreal = poisoned_buffer(all), *dfake = poisoned_buffer(all);
    hinge_backward(dreal, dfake, c.x, c.y, c.scale, groups, n, 0);
    check_gradient("dreal", hinge_objective, &c, c.x, dreal, all);
    check_gradient("dfake", hinge_objective, &c, c.y, dfake, all);

    double real[4] = {1, 2, 0, -1}, fake[4] = {-1, -2, 0, 1}, dr[4], df[4], loss;
    hinge_forward(&loss, real, fake, 1, 4, 0);
    check(loss == 0.5 * ((0 + 0 + 1 + 2) / 4.0 + (0 + 0 + 1 + 2) / 4.0), "value at chosen points");
    hinge_backward(dr, df, real, fake, 1, 1, 4, 0);
    check(dr[0] == 0 && dr[1] == 0 && dr[2] == -0.125 && dr[3] == -0.125, "dreal at chosen points");
    check(df[0] == 0 && df[1] == 0 && df[2] == 0.125 && df[3] == 0.125, "dfake at chosen points");
    free(dreal);
    free(dfake);
    free_case(&c);
    test_end_case();
}

static void test_group_mean(void) {
    if (!test_case("group mean: value and gradient")) return;
    enum { groups = 3, n = 41, all = groups * n };
    case_t c;
    memset(&c, 0, sizeof c);
    c.B = groups;
    c.N = n;
    c.scale = -1.7;
    c.x = random_buffer(all);
    double* dx = poisoned_buffer(all);
    poison_losses(&c);
    mean_objective(&c);
    double want = 0;
    for (int i = 2 * n; i < all; i++) want += c.x[i] / (int)n;
    check_error("mean", fabs(c.loss[2] - want), 1e-14);
    group_mean_backward(dx, c.scale, groups, n, 0);
    check_gradient("dx", mean_objective, &c, c.x, dx, all);
    free(dx);
    free_case(&c);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Semantic preservation

static double semantic_l2_objective(void* context) {
    case_t* c = (case_t*)context;
    semantic_l2_forward(c->loss, c->x, c->y, c->B, (size_t)c->N, 0);
    return loss_sum(c, c->B);
}

static void test_semantic_l2(void) {
    if (!test_case("semantic l2: value, gradient, zero at z = z0")) return;
    enum { groups = 2, n = 53, all = groups * n };
    case_t c;
    memset(&c, 0, sizeof c);
    c.B = groups;
    c.N = n;
    c.scale = 2.3;
    c.x = random_buffer(all);
    c.y = random_buffer(all);
    double* dz = poisoned_buffer(all);
    poison_losses(&c);
    semantic_l2_objective(&c);
    double want = 0;
    for (int i = n; i < all; i++) want += (c.x[i] - c.y[i]) * (c.x[i] - c.y[i]) / (int)n;
    check_error("loss", fabs(c.loss[1] - want) / want, 1e-14);
    semantic_l2_backward(dz, c.x, c.y, c.scale, groups, n, 0);
    check_gradient("dz", semantic_l2_objective, &c, c.x, dz, all);
    semantic_l2_forward(c.loss, c.x, c.x, groups, n, 0);
    semantic_l2_backward(dz, c.x, c.x, c.scale, groups, n, 0);
    check(c.loss[0] == 0 && c.loss[1] == 0, "zero loss at z = z0");
    for (int i = 0; i < all; i++) check(dz[i] == 0, "zero gradient at z = z0");
    free(dz);
    free_case(&c);
    test_end_case();
}

static double semantic_cosine_objective(void* context) {
    case_t* c = (case_t*)context;
    semantic_cosine_forward(c->loss, c->x, c->y, c->B, (size_t)c->N, c->C, 0);
    return loss_sum(c, c->B);
}

static void test_semantic_cosine(void) {
    if (!test_case("semantic cosine: value, gradient, z = z0, z = -z0, zero rows")) return;
    enum { groups = 2, rows = 5, C = 11, all = groups * rows * C };
    case_t c;
    memset(&c, 0, sizeof c);
    c.B = groups;
    c.N = rows;
    c.C = C;
    c.scale = 0.9;
    c.x = random_buffer(all);
    c.y = random_buffer(all);
    double* dz = poisoned_buffer(all);
    poison_losses(&c);
    semantic_cosine_objective(&c);
    double want = 0;
    for (int r = rows; r < 2 * rows; r++) {
        const double *a = c.x + r * C, *b = c.y + r * C;
        want += (1 - dot(a, b, C) / sqrt(dot(a, a, C) * dot(b, b, C))) / (int)rows;
    }
    check_error("loss", fabs(c.loss[1] - want) / want, 1e-14);
    semantic_cosine_backward(dz, c.x, c.y, c.scale, groups, rows, C, 0);
    check_gradient("dz", semantic_cosine_objective, &c, c.x, dz, all);
    semantic_cosine_forward(c.loss, c.x, c.x, groups, rows, C, 0);
    semantic_cosine_backward(dz, c.x, c.x, c.scale, groups, rows, C, 0);
    check(c.loss[0] == 0 && c.loss[1] == 0, "zero loss at z = z0");
    for (int i = 0; i < all; i++) check(dz[i] == 0, "zero gradient at z = z0");
    for (int i = 0; i < all; i++) c.y[i] = -c.x[i];
    semantic_cosine_objective(&c);
    check_error("loss at z = -z0", fabs(c.loss[0] - 2), 1e-14);
    memset(c.x, 0, C * sizeof(double));
    semantic_cosine_objective(&c);
    semantic_cosine_backward(dz, c.x, c.y, c.scale, groups, rows, C, 0);
    check_error("a zero row counts 1", fabs(c.loss[0] - (1 + 2.0 * (rows - 1)) / (int)rows), 1e-14);
    for (int i = 0; i < all; i++) check(isfinite(dz[i]), "finite gradient at a zero row");
    free(dz);
    free_case(&c);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Posterior

static double posterior_objective(void* context) {
    case_t* c = (case_t*)context;
    posterior_forward(c->out, c->loss, c->x, c->noise, c->B, c->N, c->C, 0);
    return loss_sum(c, c->B) + dot(c->q, c->out, (size_t)c->B * c->N * c->C);
}

static void test_posterior(int with_noise, const char* name) {
    if (!test_case(name)) return;
    enum { B = 3, T = 5, C = 7, n = B * T * C };
    case_t c;
    memset(&c, 0, sizeof c);
    c.B = B;
    c.N = T;
    c.C = C;
    c.scale = 0.4;
    c.x = random_buffer(2 * n);
    c.q = random_buffer(n);
    c.out = poisoned_buffer(n);
    c.noise = with_noise ? random_buffer(n) : NULL;
    c.x[C] = -31; // two log variances outside the clamp's range, on both sides
    c.x[C + 1] = 20.5;
    poison_losses(&c);
    posterior_objective(&c);
    double kl = 0, worst_z = 0;
    for (int i = 0; i < T; i++) {
        for (int k = 0; k < C; k++) {
            double mu = c.x[i * 2 * C + k], lambda = fmin(fmax(c.x[i * 2 * C + C + k], -30), 20);
            double z = mu + (with_noise ? exp(lambda / 2) * c.noise[i * C + k] : 0);
            kl += 0.5 * (mu * mu + exp(lambda) - 1 - lambda);
            worst_z = fmax(worst_z, fabs(c.out[i * C + k] - z) / (1 + fabs(z)));
        }
    }
    check_error("kl", fabs(c.loss[0] - kl) / kl, 1e-13);
    check_error("z", worst_z, 1e-14);
    c.x[C + 1] = 2; // exp(20) would drown the differences of everything else
    c.x[3] = 1.5;
    double* dmoments = poisoned_buffer(2 * n);
    posterior_backward(dmoments, c.q, c.x, c.noise, c.scale, B, T, C, 0);
    check(dmoments[C] == 0, "no gradient below the clamp");
    check_gradient("dmoments", posterior_objective, &c, c.x, dmoments, 2 * n);
    c.x[C + 1] = 20.5;
    posterior_backward(dmoments, c.q, c.x, c.noise, c.scale, B, T, C, 0);
    check(dmoments[C + 1] == 0, "no gradient above the clamp");
    check(dmoments[C + 2] != 0, "gradient inside the clamp");
    free(dmoments);
    free_case(&c);
    test_end_case();
}

static void test_kl_zero(void) {
    if (!test_case("posterior: N(0, 1) has KL 0 and no KL gradient")) return;
    double moments[6] = {0}, dz[3] = {0}, z[3], kl[1], dmoments[6], noise[3] = {0.5, -1, 2};
    posterior_forward(z, kl, moments, noise, 1, 1, 3, 0);
    posterior_backward(dmoments, dz, moments, noise, 1, 1, 1, 3, 0);
    check(kl[0] == 0, "kl = 0");
    check(z[0] == 0.5 && z[1] == -1 && z[2] == 2, "z is the noise");
    for (int i = 0; i < 6; i++) check(dmoments[i] == 0, "no gradient");
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// VF

static double vf_objective(void* context) {
    case_t* c = (case_t*)context;
    vf_forward(c->loss, c->x, c->y, c->margin[0], c->margin[1], c->B, c->N, c->C, c->chunk, 0);
    return loss_sum(c, c->B / c->chunk);
}

// cos of rows i and j of one image.
static double row_cosine(const double* a, const double* b, int C) {
    return dot(a, b, (size_t)C) / sqrt(dot(a, a, (size_t)C) * dot(b, b, (size_t)C));
}

static double vf_naive(const double* z, const double* t, double margin_distance, double margin_cosine, int N, int C) {
    double loss = 0;
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < N; j++) {
            double d = row_cosine(z + i * C, z + j * C, C) - row_cosine(t + i * C, t + j * C, C);
            loss += fmax(fabs(d) - margin_distance, 0) / (N * N);
        }
        loss += fmax(1 - margin_cosine - row_cosine(t + i * C, z + i * C, C), 0) / N;
    }
    return loss;
}

// A small step keeps differences on one side of every corner.
static void test_vf(double margin_distance, double margin_cosine, const char* name) {
    if (!test_case(name)) return;
    enum { B = 4, N = 7, C = 5, chunk = 2, n = B * N * C };
    case_t c;
    memset(&c, 0, sizeof c);
    c.B = B;
    c.N = N;
    c.C = C;
    c.chunk = chunk;
    c.scale = 1.9;
    c.margin[0] = margin_distance;
    c.margin[1] = margin_cosine;
    c.x = random_buffer(n);
    c.y = random_buffer(n);
    poison_losses(&c);
    vf_objective(&c);
    for (int k = 0; k < B / chunk; k++) {
        double want = 0;
        for (int b = k * chunk; b < (k + 1) * chunk; b++) {
            want += vf_naive(c.x + b * N * C, c.y + b * N * C, margin_distance, margin_cosine, N, C) / (int)chunk;
        }
        check_error("loss", fabs(c.loss[k] - want) / want, 1e-13);
    }
    double* dz = poisoned_buffer(n);
    vf_backward(dz, c.x, c.y, margin_distance, margin_cosine, c.scale, B, N, C, chunk, 0);
    check_gradient_h("dz", vf_objective, &c, c.x, dz, n, 1e-6, 1e-6);
    for (int i = 0; i < B * N; i++) {
        double along = dot(dz + i * C, c.x + i * C, C) / sqrt(dot(c.x + i * C, c.x + i * C, C));
        check_error("gradient is perpendicular to z", fabs(along), 1e-14);
    }
    free(dz);
    free_case(&c);
    test_end_case();
}

static void test_vf_identities(void) {
    if (!test_case("vf: zero for z parallel to the teacher; zero rows stay finite")) return;
    enum { N = 6, C = 9, n = N * C };
    double *z = random_buffer(n), *teacher = random_buffer(n), *dz = poisoned_buffer(n), loss;
    for (int i = 0; i < n; i++) z[i] = 3 * teacher[i];
    vf_forward(&loss, z, teacher, 0.25, 0.5, 1, N, C, 1, 0);
    vf_backward(dz, z, teacher, 0.25, 0.5, 1, 1, N, C, 1, 0);
    check(loss == 0, "zero loss");
    for (int i = 0; i < n; i++) check(dz[i] == 0, "zero gradient");
    memset(z, 0, C * sizeof(double));
    vf_forward(&loss, z, teacher, 0.25, 0.5, 1, N, C, 1, 0);
    vf_backward(dz, z, teacher, 0.25, 0.5, 1, 1, N, C, 1, 0);
    check(isfinite(loss), "finite loss with a zero row");
    for (int i = 0; i < n; i++) check(isfinite(dz[i]), "finite gradient with a zero row");
    free(z);
    free(teacher);
    free(dz);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Cross entropy

static double cross_entropy_objective(void* context) {
    case_t* c = (case_t*)context;
    cross_entropy(c->loss, NULL, c->x, c->labels, 1, c->B, c->C, 0);
    return loss_sum(c, c->B);
}

static void test_cross_entropy(void) {
    if (!test_case("cross entropy: value, gradient, logits of 1000")) return;
    enum { B = 5, C = 11, n = B * C };
    case_t c;
    memset(&c, 0, sizeof c);
    c.B = B;
    c.C = C;
    c.scale = 0.8;
    c.x = random_buffer(n);
    for (int b = 0; b < B; b++) c.labels[b] = (b * 7) % C;
    double* dlogits = poisoned_buffer(n);
    poison_losses(&c);
    cross_entropy(c.loss, dlogits, c.x, c.labels, c.scale, B, C, 0);
    for (int b = 0; b < B; b++) {
        double sum = 0;
        for (int k = 0; k < C; k++) sum += exp(c.x[b * C + k]);
        double want = -log(exp(c.x[b * C + c.labels[b]]) / sum);
        check_error("loss", fabs(c.loss[b] - want) / want, 1e-13);
    }
    check_gradient("dlogits", cross_entropy_objective, &c, c.x, dlogits, n);
    double logits[3] = {1000, 0, -1000}, d[3], loss;
    int labels[2] = {2, 0};
    cross_entropy(&loss, d, logits, labels, 1, 1, 3, 0);
    check(loss == 2000 && d[0] == 1 && d[1] == 0 && d[2] == -1, "no overflow at a wrong label");
    cross_entropy(&loss, d, logits, labels + 1, 1, 1, 3, 0);
    check(loss == 0 && d[0] == 0, "no loss at a sure and right one");
    free(dlogits);
    free_case(&c);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Threads

// Every loss and gradient on `threads` threads; sizes of several blocks that do not divide evenly.
enum { THREAD_B = 4, THREAD_N = 150, THREAD_C = 63, THREAD_n = THREAD_B * THREAD_N * THREAD_C };

static void run_all_losses(double* loss, double* gradient, const double* x, const double* y, int threads) {
    omp_set_num_threads(threads);
    size_t n = THREAD_n / THREAD_B, rows = THREAD_N;
    channel_affine_t affine = {{1, 2, 3}, {0, 0, 0}};
    int labels[THREAD_B] = {1, 2, 3, 4}, B = THREAD_B, C = THREAD_C;
    memset(loss, 0, 9 * THREAD_B * sizeof(double));
    l1_forward(loss, x, y, B, n, 0);
    l1_backward(gradient, x, y, y, affine, 1, B, n / 3, 0);
    lpips_tap_forward(loss + B, x, y, x, B, THREAD_N, C, 0);
    lpips_tap_backward(gradient + THREAD_n, x, y, x, 1, B, THREAD_N, C, 0);
    group_mean_forward(loss + 2 * B, x, B, n, 0);
    hinge_forward(loss + 3 * B, x, y, B, n, 0);
    semantic_l2_forward(loss + 4 * B, x, y, B, n, 0);
    semantic_l2_backward(gradient + 2 * THREAD_n, x, y, 1, B, n, 0);
    semantic_cosine_forward(loss + 5 * B, x, y, B, rows, C, 0);
    semantic_cosine_backward(gradient + 3 * THREAD_n, x, y, 1, B, rows, C, 0);
    vf_forward(loss + 6 * B, x, y, 0.1, 0.5, B, THREAD_N, C, 1, 0);
    vf_backward(gradient + 4 * THREAD_n, x, y, 0.1, 0.5, 1, B, THREAD_N, C, 1, 0);
    posterior_forward(gradient + 5 * THREAD_n, loss + 7 * B, x, y, B, THREAD_N, C / 2, 0);
    cross_entropy(loss + 8 * B, NULL, x, labels, 1, B, C, 0);
}

static void test_threads(void) {
    if (!test_case("all losses: the same bits on 1 and on 3 threads")) return;
    double *x = random_buffer(THREAD_n), *y = random_buffer(THREAD_n);
    double loss[2][9 * THREAD_B];
    double* gradient[2] = {random_buffer(6 * THREAD_n), NULL};
    gradient[1] = (double*)malloc(6 * THREAD_n * sizeof(double));
    memcpy(gradient[1], gradient[0], 6 * THREAD_n * sizeof(double));
    int threads = omp_get_max_threads();
    run_all_losses(loss[0], gradient[0], x, y, 1);
    run_all_losses(loss[1], gradient[1], x, y, 3);
    omp_set_num_threads(threads);
    check(!memcmp(loss[0], loss[1], sizeof loss[0]), "equal losses");
    check(!memcmp(gradient[0], gradient[1], 6 * THREAD_n * sizeof(double)), "equal gradients");
    free(x);
    free(y);
    free(gradient[0]);
    free(gradient[1]);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_l1();
    test_lpips(2, 35, 13, "lpips tap: value, gradient, 5x7 positions, 13 channels");
    test_lpips(1, 70, 64, "lpips tap: value, gradient, more than one block, 64 channels");
    test_lpips_identities();
    test_group_mean();
    test_hinge();
    test_semantic_l2();
    test_semantic_cosine();
    test_posterior(1, "posterior with noise: value, gradient, clamp");
    test_posterior(0, "posterior without noise: z is the mean");
    test_kl_zero();
    test_vf(0.25, 0.5, "vf: margins 0.25 and 0.5");
    test_vf(0, 0, "vf: no margins");
    test_vf_identities();
    test_cross_entropy();
    test_threads();
    return test_finish();
}
