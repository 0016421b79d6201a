// test_norm_group.c: GroupNorm with swish, and BatchNorm with LeakyReLU (dev/cpu/groupnorm.h, dev/cpu/batchnorm.h).
//
// The naive loops against finite differences, the fast form against both and against the identities that the formulas
// imply: the gradient behind a norm is orthogonal to what the norm takes out.
#include "common/ops.h"
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
    return test_finish();
}
