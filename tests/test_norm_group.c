// test_norm_group.c: GroupNorm with swish, and BatchNorm with LeakyReLU (dev/cpu/groupnorm.h, dev/cpu/batchnorm.h);
// adaptive GroupNorm, and the moments that it is made from (dev/cpu/moments.h).
//
// The naive loops against finite differences, the fast form against both and against the identities that the formulas
// imply: the gradient behind a norm is orthogonal to what the norm takes out. The adaptive norm against the naive loops
// of each image with its own weights.
#include "common/ops.cu"
#include "tests/gradient.h"
#include <omp.h>

typedef struct {
    int B, HW, C, G;  // G groups: GroupNorm
    int chunk, train; // BatchNorm
    activation_t act;
    double eps;
    size_t n, sets;   // sets of statistics: B G or B / chunk C
    double *x, *weight, *bias, *running_mean, *running_var, *out, *mean, *rstd, *r;
} norm_case_t;

static norm_case_t make_norm(int B, int HW, int C, size_t sets) {
    norm_case_t t;
    memset(&t, 0, sizeof t);
    t.B = B, t.HW = HW, t.C = C, t.sets = sets, t.n = (size_t)B * HW * C;
    t.x = random_buffer(t.n);
    for (size_t i = 0; i < t.n; i++) t.x[i] = 0.5 + 1.5 * t.x[i];
    t.weight = random_buffer(C), t.bias = random_buffer(C);
    t.running_mean = random_buffer(C), t.running_var = random_buffer(C);
    for (int c = 0; c < C; c++) t.running_var[c] = 0.1 + t.running_var[c] * t.running_var[c];
    t.mean = poisoned_buffer(sets), t.rstd = poisoned_buffer(sets);
    t.out = poisoned_buffer(t.n), t.r = random_buffer(t.n);
    return t;
}

static void free_norm(norm_case_t* t) {
    free(t->x), free(t->weight), free(t->bias), free(t->running_mean), free(t->running_var);
    free(t->out), free(t->mean), free(t->rstd), free(t->r);
}

static void run_groupnorm(norm_case_t* t) {
    groupnorm_forward(t->out, t->mean, t->rstd, t->x, t->weight, t->bias, t->B, t->HW, t->C, t->G, t->eps, t->act, 0);
}
static void run_batchnorm(norm_case_t* t) {
    batchnorm_leaky_forward(t->out, t->mean, t->rstd, t->x, t->weight, t->bias, t->running_mean, t->running_var,
                            t->B, t->HW, t->C, t->chunk, t->eps, t->train, 0);
}
static double project_groupnorm(void* context) {
    norm_case_t* t = (norm_case_t*)context;
    run_groupnorm(t);
    return dot(t->out, t->r, t->n);
}
static double project_batchnorm(void* context) {
    norm_case_t* t = (norm_case_t*)context;
    run_batchnorm(t);
    return dot(t->out, t->r, t->n);
}

// Where the statistics of the value at this index stand.
static size_t set_of(const norm_case_t* t, size_t index) {
    size_t c = index % t->C, image = index / t->C / t->HW;
    return t->G ? image * t->G + c / (t->C / t->G) : image / t->chunk * t->C + c;
}

// The naive loops on this case.
static void run_naive(norm_case_t* t, double* out, double* mean, double* rstd) {
    int sets = t->G ? t->B : t->B / t->chunk, fixed = !t->G && !t->train;
    for (size_t k = 0; fixed && k < t->sets; k++) {
        mean[k] = t->running_mean[k % t->C];
        rstd[k] = 1 / sqrt(t->running_var[k % t->C] + t->eps);
    }
    norm_forward_naive(out, mean, rstd, t->x, t->weight, t->bias, sets, (size_t)t->B / sets * t->HW, t->C,
                       t->G ? t->G : t->C, t->eps, t->G ? t->act : ACT_LEAKY, fixed);
}

// Statistics and output by their definitions, value by value.
static void check_definition(norm_case_t* t) {
    double *mean = poisoned_buffer(t->sets), *rstd = poisoned_buffer(t->sets), *want = poisoned_buffer(t->n);
    run_naive(t, want, mean, rstd);
    check_error("mean", relative_error_double(t->mean, mean, t->sets), 1e-13);
    check_error("rstd", relative_error_double(t->rstd, rstd, t->sets), 1e-12);
    check_error("out", relative_error_double(t->out, want, t->n), 1e-12);
    free(mean), free(rstd), free(want);
}

static double project_naive(void* context) {
    norm_case_t* t = (norm_case_t*)context;
    run_naive(t, t->out, t->mean, t->rstd);
    return dot(t->out, t->r, t->n);
}

// Calls the backward twice on parameter gradients that hold something; leaves the gradients of one call.
typedef struct {
    double *dx, *dweight, *dbias;
} norm_gradients_t;

static void call_backward(norm_case_t* t, double* dx, double* dweight, double* dbias, const double* add) {
    if (t->G) {
        groupnorm_backward(dx, dweight, dbias, t->r, add, t->x, t->weight, t->bias, t->mean, t->rstd,
                           t->B, t->HW, t->C, t->G, t->act, 0);
    } else {
        batchnorm_leaky_backward(dx, dweight, dbias, t->r, t->x, t->weight, t->bias, t->mean, t->rstd,
                                 t->B, t->HW, t->C, t->chunk, t->train, 0);
    }
}

static norm_gradients_t norm_gradients(norm_case_t* t) {
    int C = t->C;
    norm_gradients_t g = {poisoned_buffer(t->n), random_buffer(2 * C), NULL};
    double *start = (double*)malloc(2 * C * sizeof(double)), *once = (double*)malloc(2 * C * sizeof(double));
    g.dbias = g.dweight + C;
    memcpy(start, g.dweight, 2 * C * sizeof(double));
    call_backward(t, g.dx, g.dweight, g.dbias, NULL);
    memcpy(once, g.dweight, 2 * C * sizeof(double));
    call_backward(t, g.dx, g.dweight, g.dbias, NULL);
    check_accumulates("dweight, dbias twice", g.dweight, once, start, 2 * C);
    for (int c = 0; c < 2 * C; c++) g.dweight[c] = once[c] - start[c];
    double* alone = poisoned_buffer(t->n);
    call_backward(t, alone, NULL, NULL, NULL);
    check(!memcmp(alone, g.dx, t->n * sizeof(double)), "the same dx without parameter gradients");
    free(start), free(once), free(alone);
    return g;
}

// The naive backward against differences of the naive forward, then the fast gradients against it.
static void check_naive_gradients(norm_case_t* t, const norm_gradients_t* g, double h) {
    int sets = t->G ? t->B : t->B / t->chunk, C = t->C;
    double *dx = poisoned_buffer(t->n), *dweight = (double*)calloc(2 * C, sizeof(double));
    project_naive(t);
    norm_backward_naive(dx, dweight, dweight + C, t->r, t->x, t->weight, t->bias, t->mean, t->rstd, sets,
                        (size_t)t->B / sets * t->HW, C, t->G ? t->G : C, t->G ? t->act : ACT_LEAKY,
                        !t->G && !t->train);
    check_gradient_h("naive dx", project_naive, t, t->x, dx, t->n, h, 1e-6);
    check_gradient_h("naive dweight", project_naive, t, t->weight, dweight, C, h, 1e-6);
    check_gradient_h("naive dbias", project_naive, t, t->bias, dweight + C, C, h, 1e-6);
    check_error("dx and the naive dx", relative_error_double(g->dx, dx, t->n), 1e-10);
    check_error("dweight, dbias and the naive", relative_error_double(g->dweight, dweight, 2 * C), 1e-10);
    free(dx), free(dweight);
}

static void check_norm_gradients(norm_case_t* t, objective_t objective, double h) {
    norm_gradients_t g = norm_gradients(t);
    check_naive_gradients(t, &g, h);
    check_gradient_h("dx", objective, t, t->x, g.dx, t->n, h, 1e-6);
    check_gradient_h("dweight", objective, t, t->weight, g.dweight, t->C, h, 1e-6);
    check_gradient_h("dbias", objective, t, t->bias, g.dbias, t->C, h, 1e-6);
    free(g.dx), free(g.dweight);
}

static void check_groupnorm(int B, int HW, int C, int G, activation_t act) {
    norm_case_t t = make_norm(B, HW, C, (size_t)B * G);
    t.G = G, t.act = act, t.eps = 1e-6;
    run_groupnorm(&t);
    check_definition(&t);
    double *again = poisoned_buffer(t.n), *add = random_buffer(t.n);
    double *dx = poisoned_buffer(t.n), *sum = poisoned_buffer(t.n);
    groupnorm_apply(again, t.x, t.weight, t.bias, t.mean, t.rstd, B, HW, C, G, act, 0);
    check(!memcmp(again, t.out, t.n * sizeof(double)), "groupnorm_apply repeats the forward");
    check_norm_gradients(&t, project_groupnorm, 1e-3);
    run_groupnorm(&t);
    call_backward(&t, dx, NULL, NULL, NULL);
    for (size_t i = 0; i < t.n; i++) sum[i] = dx[i] + add[i];
    call_backward(&t, dx, NULL, NULL, add);
    check_error("dx with add", relative_error_double(dx, sum, t.n), 1e-14);
    call_backward(&t, add, NULL, NULL, add);
    check(!memcmp(add, dx, t.n * sizeof(double)), "the same in place");
    free(again), free(add), free(dx), free(sum);
    free_norm(&t);
}

// The size of the decoder's last stage: the gradient sums to zero over each group, alone and against xhat (up to eps /
// var).
static void check_groupnorm_identities(void) {
    norm_case_t t = make_norm(1, 65536, 128, 32);
    t.G = 32, t.act = ACT_SWISH, t.eps = 1e-6;
    run_groupnorm(&t);
    double* dx = poisoned_buffer(t.n);
    call_backward(&t, dx, NULL, NULL, NULL);
    double sum[32] = {0}, product[32] = {0}, norm[32] = {0};
    for (size_t i = 0; i < t.n; i++) {
        size_t g = set_of(&t, i);
        sum[g] += dx[i];
        product[g] += dx[i] * (t.x[i] - t.mean[g]) * t.rstd[g];
        norm[g] += fabs(dx[i]);
    }
    for (int g = 0; g < 32; g++) {
        check_error("sum dx", fabs(sum[g]) / norm[g], 1e-12);
        check_error("sum dx xhat", fabs(product[g]) / norm[g], 1e-6);
    }
    free(dx);
    free_norm(&t);
}

// Moves x until no h lies within `margin` of the LeakyReLU's kink; statistics follow.
static void leave_kinks(norm_case_t* t, double margin) {
    for (int round = 0; round < 100; round++) {
        run_batchnorm(t);
        int near = 0;
        for (size_t i = 0; i < t->n; i++) {
            size_t k = set_of(t, i);
            double h = (t->x[i] - t->mean[k]) * t->rstd[k] * t->weight[i % t->C] + t->bias[i % t->C];
            if (fabs(h) > margin) continue;
            t->x[i] += 5 * margin / (t->rstd[k] * fabs(t->weight[i % t->C]) + margin);
            near++;
        }
        if (!near) return;
    }
    check(0, "inputs away from the kink");
}

static void check_batchnorm(int B, int HW, int C, int chunk, int train) {
    norm_case_t t = make_norm(B, HW, C, (size_t)(B / chunk) * C);
    t.chunk = chunk, t.train = train, t.eps = 1e-5;
    leave_kinks(&t, 1e-3);
    check_definition(&t);
    check_norm_gradients(&t, project_batchnorm, 1e-5);
    free_norm(&t);
}

static void check_batchnorm_identities(void) {
    norm_case_t t = make_norm(8, 35, 5, 2 * 5);
    t.chunk = 4, t.train = 1, t.eps = 1e-5;
    run_batchnorm(&t);
    double *dx = poisoned_buffer(t.n), sum[10] = {0}, product[10] = {0}, norm[10] = {0};
    call_backward(&t, dx, NULL, NULL, NULL);
    for (size_t i = 0; i < t.n; i++) {
        size_t k = set_of(&t, i);
        sum[k] += dx[i];
        product[k] += dx[i] * (t.x[i] - t.mean[k]) * t.rstd[k];
        norm[k] += fabs(dx[i]);
    }
    for (int k = 0; k < 10; k++) {
        check_error("sum dx", fabs(sum[k]) / norm[k], 1e-12);
        check_error("sum dx xhat", fabs(product[k]) / norm[k], 1e-5);
    }
    free(dx);
    free_norm(&t);
}

// Running statistics 0 and 1, one update with momentum 0.1: 0.1 m and 0.9 + 0.1 var n / (n - 1).
static void check_running(void) {
    enum { C = 7 };
    norm_case_t t = make_norm(6, 35, C, 3 * C);
    t.chunk = 2, t.train = 1, t.eps = 1e-5;
    run_batchnorm(&t);
    size_t n = 2 * 35;
    double mean[C], var[C], want_mean[C], want_var[C];
    for (int c = 0; c < C; c++) {
        double sum = 0, squares = 0;
        for (size_t i = 0; i < n; i++) sum += t.x[i * C + c];
        for (size_t i = 0; i < n; i++) squares += pow(t.x[i * C + c] - sum / n, 2);
        want_mean[c] = 0.1 * sum / n;
        want_var[c] = 0.9 + 0.1 * squares / (n - 1);
        mean[c] = 0, var[c] = 1;
    }
    batchnorm_update_running(mean, var, t.mean, t.rstd, n, C, t.eps, 0.1, 0);
    check_error("running mean", relative_error_double(mean, want_mean, C), 1e-12);
    check_error("running variance", relative_error_double(var, want_var, C), 1e-12);
    free_norm(&t);
}

// Values around 1000 with deviation 1: sums of squares would lose 6 digits.
static void check_large_mean(void) {
    norm_case_t t = make_norm(2, 333, 6, 2 * 3);
    t.G = 3, t.act = ACT_NONE, t.eps = 1e-6;
    for (size_t i = 0; i < t.n; i++) t.x[i] += 1000;
    run_groupnorm(&t);
    check_definition(&t);
    free_norm(&t);
}

// Forward, backward and parameter gradients of both norms, with this many threads, one behind the other.
static double* norm_outputs(norm_case_t* t, int threads) {
    omp_set_num_threads(threads);
    double* all = (double*)calloc(2 * t->n + 2 * t->C, sizeof(double));
    if (t->G) run_groupnorm(t);
    else run_batchnorm(t);
    memcpy(all, t->out, t->n * sizeof(double));
    call_backward(t, all + t->n, all + 2 * t->n, all + 2 * t->n + t->C, NULL);
    return all;
}

static void check_threads(void) {
    int most = omp_get_max_threads();
    for (int k = 0; k < 2; k++) {
        norm_case_t t = make_norm(3, 1001, 12, k ? 3 * 4 : 12);
        t.G = k ? 4 : 0, t.act = ACT_SWISH, t.eps = 1e-6, t.chunk = 3, t.train = 1;
        double* one = norm_outputs(&t, 1);
        for (int threads = 2; threads <= 3; threads++) {
            double* several = norm_outputs(&t, threads);
            check(!memcmp(one, several, (2 * t.n + 2 * t.C) * sizeof(double)), "equality of all bits");
            free(several);
        }
        free(one);
        free_norm(&t);
    }
    omp_set_num_threads(most);
}

// ---------------------------------------------------------------------------------------------------------------------
// Adaptive GroupNorm, whose rows of scale and shift are pieces of longer ones

typedef struct {
    int B, HW, C, G;
    size_t stride, n;
    double *x, *scale, *shift, *out, *mean, *rstd, *r, *dx, *dscale, *dshift;
} adaptive_case_t;

static void run_adaptive(adaptive_case_t* t) {
    adaptive_groupnorm_forward(t->out, t->mean, t->rstd, t->x, t->scale, t->shift, t->stride, t->B, t->HW, t->C, t->G,
                               1e-6, 0);
}
static void run_adaptive_backward(adaptive_case_t* t) {
    adaptive_groupnorm_backward(t->dx, t->dscale, t->dshift, t->r, t->x, t->scale, t->mean, t->rstd, t->stride, t->B,
                                t->HW, t->C, t->G, 0);
}
static double project_adaptive(void* context) {
    adaptive_case_t* t = (adaptive_case_t*)context;
    run_adaptive(t);
    return dot(t->out, t->r, t->n);
}

// The naive loops, image by image; what lies between the pieces of a row stays as it was.
static void check_adaptive_definition(const adaptive_case_t* t) {
    double *out = poisoned_buffer(t->n), *dx = poisoned_buffer(t->n), *sums = (double*)calloc(2 * t->C, sizeof(double));
    double *mean = poisoned_buffer((size_t)t->B * t->G), *rstd = poisoned_buffer((size_t)t->B * t->G);
    for (int b = 0; b < t->B; b++) {
        size_t at = (size_t)b * t->HW * t->C, row = b * t->stride, group = (size_t)b * t->G;
        norm_forward_naive(out + at, mean + group, rstd + group, t->x + at, t->scale + row, t->shift + row, 1, t->HW,
                           t->C, t->G, 1e-6, ACT_NONE, 0);
        memset(sums, 0, 2 * t->C * sizeof(double));
        norm_backward_naive(dx + at, sums, sums + t->C, t->r + at, t->x + at, t->scale + row, t->shift + row,
                            mean + group, rstd + group, 1, t->HW, t->C, t->G, ACT_NONE, 0);
        check_error("dscale", relative_error_double(t->dscale + row, sums, t->C), 1e-10);
        check_error("dshift", relative_error_double(t->dshift + row, sums + t->C, t->C), 1e-10);
        for (size_t i = t->C; b + 1 < t->B && i < t->stride; i++) {
            check(isnan(t->dscale[row + i]) && isnan(t->dshift[row + i]), "the other norms' pieces");
        }
    }
    check_error("out", relative_error_double(t->out, out, t->n), 1e-12);
    check_error("dx", relative_error_double(t->dx, dx, t->n), 1e-10);
    check_error("mean", relative_error_double(t->mean, mean, (size_t)t->B * t->G), 1e-13);
    check_error("rstd", relative_error_double(t->rstd, rstd, (size_t)t->B * t->G), 1e-12);
    free(out), free(dx), free(sums), free(mean), free(rstd);
}

static void check_adaptive(int B, int HW, int C, int G, size_t stride) {
    size_t n = (size_t)B * HW * C, rows = (B - 1) * stride + C, groups = (size_t)B * G;
    adaptive_case_t t = {B, HW, C, G, stride, n, random_buffer(n), random_buffer(rows), random_buffer(rows),
                         poisoned_buffer(n), poisoned_buffer(groups), poisoned_buffer(groups), random_buffer(n),
                         poisoned_buffer(n), poisoned_buffer(rows), poisoned_buffer(rows)};
    run_adaptive(&t);
    run_adaptive_backward(&t);
    check_adaptive_definition(&t);
    check_gradient("dx", project_adaptive, &t, t.x, t.dx, n);
    for (int b = 0; b < B; b++) {
        check_gradient("dscale", project_adaptive, &t, t.scale + b * stride, t.dscale + b * stride, C);
        check_gradient("dshift", project_adaptive, &t, t.shift + b * stride, t.dshift + b * stride, C);
    }
    double *out = (double*)malloc(n * sizeof(double)), *dx = (double*)malloc(n * sizeof(double));
    int most = omp_get_max_threads();
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        run_adaptive(&t);
        run_adaptive_backward(&t);
        check(threads == 1 || (!memcmp(out, t.out, n * sizeof(double)) && !memcmp(dx, t.dx, n * sizeof(double))),
              "the same bits with any number of threads");
        memcpy(out, t.out, n * sizeof(double));
        memcpy(dx, t.dx, n * sizeof(double));
    }
    omp_set_num_threads(most);
    free(t.x), free(t.scale), free(t.shift), free(t.out), free(t.mean), free(t.rstd), free(t.r), free(t.dx);
    free(t.dscale), free(t.dshift), free(out), free(dx);
}

// ---------------------------------------------------------------------------------------------------------------------
// Moments of the channels

typedef struct {
    int B, HW, C;
    size_t k; // B C
    double *x, *mean, *deviation, *r; // r (2, k): of mean and of deviation
} moments_case_t;

static double project_moments(void* context) {
    moments_case_t* t = (moments_case_t*)context;
    channel_moments_forward(t->mean, t->deviation, t->x, t->B, t->HW, t->C, 1e-6, 0);
    return dot(t->mean, t->r, t->k) + dot(t->deviation, t->r + t->k, t->k);
}

static void check_moments(int B, int HW, int C) {
    size_t n = (size_t)B * HW * C, k = (size_t)B * C;
    moments_case_t t = {B, HW, C, k, random_buffer(n), poisoned_buffer(k), poisoned_buffer(k), random_buffer(2 * k)};
    double *add = random_buffer(n), *alone = poisoned_buffer(n), *dx = poisoned_buffer(n);
    project_moments(&t);
    for (size_t i = 0; i < k; i++) { // by their definitions
        double sum = 0, squares = 0, *x = t.x + i / C * HW * C + i % C;
        for (int j = 0; j < HW; j++) sum += x[j * C];
        for (int j = 0; j < HW; j++) squares += (x[j * C] - sum / HW) * (x[j * C] - sum / HW);
        check_error("mean", fabs(t.mean[i] - sum / HW), 1e-13);
        check_error("deviation", fabs(t.deviation[i] / sqrt(squares / (HW - 1) + 1e-6) - 1), 1e-12);
    }
    channel_moments_backward(alone, t.r, t.r + k, NULL, t.x, t.mean, t.deviation, B, HW, C, 0);
    check_gradient_h("dx", project_moments, &t, t.x, alone, n, 1e-4, 1e-6);
    project_moments(&t);
    channel_moments_backward(dx, t.r, t.r + k, add, t.x, t.mean, t.deviation, B, HW, C, 0);
    for (size_t i = 0; i < n; i++) alone[i] += add[i];
    check_error("dx with add", relative_error_double(dx, alone, n), 1e-14);
    channel_moments_backward(add, t.r, t.r + k, add, t.x, t.mean, t.deviation, B, HW, C, 0);
    check(!memcmp(add, dx, n * sizeof(double)), "the same in place");
    free(t.x), free(t.mean), free(t.deviation), free(t.r), free(add), free(alone), free(dx);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    static const int shapes[7][4] = {{2, 35, 12, 4}, {1, 131, 6, 3}, {3, 1, 8, 2},  {2, 64, 5, 5},
                                     {1, 65, 7, 1},  {4, 2, 34, 17}, {1, 700, 4, 2}}; // B, HW, C, G
    static const activation_t activations[2] = {ACT_NONE, ACT_SWISH};
    for (int k = 0; k < 2; k++) {
        if (!test_case(k ? "groupnorm and swish" : "groupnorm")) continue;
        for (int i = 0; i < 7; i++) {
            check_groupnorm(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], activations[k]);
        }
        test_end_case();
    }
    if (test_case("groupnorm: gradient sums at 65536 x 128")) {
        check_groupnorm_identities();
        test_end_case();
    }
    if (test_case("groupnorm: mean much larger than deviation")) {
        check_large_mean();
        test_end_case();
    }
    for (int train = 0; train < 2; train++) {
        if (!test_case(train ? "batchnorm and leaky, training" : "batchnorm and leaky, running statistics")) continue;
        check_batchnorm(6, 35, 7, 2, train);
        check_batchnorm(4, 1, 3, 4, train);
        check_batchnorm(3, 131, 1, 1, train);
        check_batchnorm(2, 9, 33, 2, train);
        test_end_case();
    }
    if (test_case("batchnorm: gradient sums")) {
        check_batchnorm_identities();
        test_end_case();
    }
    if (test_case("batchnorm: update of the running statistics")) {
        check_running();
        test_end_case();
    }
    if (test_case("norms: the same bits with 1, 2 and 3 threads")) {
        check_threads();
        test_end_case();
    }
    if (test_case("adaptive groupnorm")) {
        for (int i = 0; i < 7; i++) {
            check_adaptive(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], shapes[i][2] + 5 * (i % 3));
        }
        test_end_case();
    }
    if (test_case("moments of the channels")) {
        check_moments(3, 35, 7);
        check_moments(2, 2, 5);
        check_moments(1, 131, 40);
        test_end_case();
    }
    return test_finish();
}
