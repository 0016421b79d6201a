// RMSNorm and LayerNorm with modulation, alone and behind a gated branch.

// defines: norm_modulate_forward, norm_modulate_backward, and the gated ones
#include "common/ops.h"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error, relative_error_double
#include "tests/test.h"
// defines: check_gradient, random_buffer, poisoned_buffer, dot
#include "tests/gradient.h"
// defines: check_parameter_gradient, check_any_thread_count, result_t, copy_of
#include "tests/operation.h"

enum { ALONE, GATED };
enum { RMSNORM, LAYERNORM, LAYERNORM_ALONE }; // the last without a weight

// An image's row of `mod` holds shift, scale, gate and then values of others, as in the matrix of all blocks.
typedef struct {
    int kind, gated, shifted, B, T, C;
    size_t size, stride;
    double eps;
    double *x, *branch, *weight, *mod;
    double *sum, *out, *mean, *rstd; // mean NULL: RMSNorm
    double *dout, *dx_start; // gradient of out, and what reaches the residual stream from above
    double *dx, *dbranch, *dweight, *dmod;
} norm_case_t;

static norm_case_t norm_new(int kind, int gated, int shifted, int B, int T, int C, double eps) {
    norm_case_t n;
    n.kind = kind, n.gated = gated, n.shifted = shifted, n.B = B, n.T = T, n.C = C, n.eps = eps;
    n.size = (size_t)B * T * C, n.stride = 3 * C + 5;
    n.x = random_buffer(n.size), n.branch = random_buffer(n.size);
    n.weight = kind == LAYERNORM_ALONE ? NULL : random_buffer(C), n.mod = random_buffer(B * n.stride);
    n.sum = poisoned_buffer(n.size), n.out = poisoned_buffer(n.size), n.rstd = poisoned_buffer((size_t)B * T);
    n.mean = kind == RMSNORM ? NULL : poisoned_buffer((size_t)B * T);
    n.dout = random_buffer(n.size), n.dx_start = random_buffer(n.size);
    n.dx = poisoned_buffer(n.size), n.dbranch = poisoned_buffer(n.size);
    n.dweight = random_buffer(C), n.dmod = poisoned_buffer(B * n.stride);
    return n;
}

static void norm_free(norm_case_t* n) {
    double* all[] = {n->x, n->branch, n->weight, n->mod, n->sum, n->out, n->mean, n->rstd, n->dout,
                     n->dx_start, n->dx, n->dbranch, n->dweight, n->dmod};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void run_forward(norm_case_t* n) {
    const double *shift = n->shifted ? n->mod : NULL, *scale = n->mod + n->C, *gate = n->mod + 2 * n->C;
    if (n->gated) {
        gated_norm_modulate_forward(n->sum, n->out, n->mean, n->rstd, n->x, n->branch, gate, n->weight, shift, scale,
                                    n->stride, n->B, n->T, n->C, n->eps, 0);
    } else {
        norm_modulate_forward(n->out, n->mean, n->rstd, n->x, n->weight, shift, scale, n->stride, n->B, n->T, n->C,
                              n->eps, 0);
    }
}

// The gradient from above reaches x (plain form) or sum (gated form) beside the norm, as in a residual stream.
static double objective(void* context) {
    norm_case_t* n = (norm_case_t*)context;
    run_forward(n);
    return dot(n->out, n->dout, n->size) + dot(n->gated ? n->sum : n->x, n->dx_start, n->size);
}

static void run_backward(void* context) {
    norm_case_t* n = (norm_case_t*)context;
    double *dshift = n->shifted ? n->dmod : NULL, *dscale = n->dmod + n->C, *dgate = n->dmod + 2 * n->C;
    memcpy(n->dx, n->dx_start, n->size * sizeof(double));
    for (size_t i = 0; i < n->B * n->stride; i++) n->dmod[i] = 0; // what the operation leaves alone is in no derivative
    double* dweight = n->weight ? n->dweight : NULL;
    if (n->gated) {
        gated_norm_modulate_backward(n->dx, n->dbranch, dgate, dweight, dshift, dscale, n->dout, n->sum, n->branch,
                                     n->mod + 2 * n->C, n->weight, n->mod + n->C, n->mean, n->rstd, n->stride, n->B,
                                     n->T, n->C, 0);
    } else {
        norm_modulate_backward(n->dx, dweight, dshift, dscale, n->dout, n->x, n->weight, n->mod + n->C, n->mean,
                               n->rstd, n->stride, n->B, n->T, n->C, 0);
    }
}

static void run_both(void* context) {
    objective(context);
    run_backward(context);
}

// By the definitions, in long double.
static void check_values(const norm_case_t* n) {
    double *sum = copy_of(n->x, n->size), *out = poisoned_buffer(n->size), *rstd = poisoned_buffer((size_t)n->B * n->T);
    for (size_t row = 0; row < (size_t)n->B * n->T; row++) {
        const double* mod = n->mod + row / n->T * n->stride;
        double* x = sum + row * n->C;
        long double squares = 0, mean = 0;
        for (int c = 0; n->gated && c < n->C; c++) x[c] += mod[2 * n->C + c] * n->branch[row * n->C + c];
        for (int c = 0; n->mean && c < n->C; c++) mean += (long double)x[c] / n->C;
        for (int c = 0; c < n->C; c++) squares += (x[c] - mean) * (x[c] - mean);
        rstd[row] = (double)(1 / sqrtl(squares / n->C + n->eps));
        for (int c = 0; c < n->C; c++) {
            double normed = (double)((x[c] - mean) * rstd[row]) * (n->weight ? n->weight[c] : 1);
            out[row * n->C + c] = normed * (1 + mod[n->C + c]) + (n->shifted ? mod[c] : 0);
        }
    }
    check_error("rstd", relative_error_double(n->rstd, rstd, (size_t)n->B * n->T), 1e-12);
    check_error("out", relative_error_double(n->out, out, n->size), 1e-12);
    if (n->gated) check_error("sum", relative_error_double(n->sum, sum, n->size), 1e-14);
    free(sum), free(out), free(rstd);
}

// With few channels a small eps makes an output that hardly depends on x; a large one keeps its derivative visible.
static void test_norm(const char* norm, const char* name, int kind, int gated, int shifted, int B, int T, int C,
                      double eps) {
    char title[80];
    snprintf(title, sizeof title, "%s, %s", norm, name);
    if (!test_case(title)) return;
    norm_case_t n = norm_new(kind, gated, shifted, B, T, C, eps);
    run_both(&n);
    check_values(&n);
    check_gradient("dx", objective, &n, n.x, n.dx, n.size);
    if (gated) check_gradient("dbranch", objective, &n, n.branch, n.dbranch, n.size);
    check_gradient("dshift, dscale, dgate", objective, &n, n.mod, n.dmod, B * n.stride);
    if (n.weight) check_parameter_gradient("dweight", objective, run_backward, &n, n.weight, n.dweight, C);
    norm_free(&n);
    test_end_case();
}

// sum may be x; dweight and dshift may be NULL, and the rest is the same; values between the vectors stay.
static void test_variants(void) {
    if (!test_case("in place, and without gradients of weight and shift")) return;
    norm_case_t n = norm_new(LAYERNORM, GATED, 1, 3, 5, 11, 1e-6);
    run_both(&n);
    double *x = copy_of(n.x, n.size), *out = poisoned_buffer(n.size), *dx = copy_of(n.dx_start, n.size);
    double *dbranch = poisoned_buffer(n.size), *dmod = random_buffer(3 * n.stride);
    double* before = copy_of(dmod, 3 * n.stride);
    gated_norm_modulate_forward(x, out, n.mean, n.rstd, x, n.branch, n.mod + 22, n.weight, n.mod, n.mod + 11, n.stride,
                                3, 5, 11, 1e-6, 0);
    check(!memcmp(x, n.sum, n.size * sizeof(double)), "sum is the same in place");
    check(!memcmp(out, n.out, n.size * sizeof(double)), "out is the same in place");
    gated_norm_modulate_backward(dx, dbranch, dmod + 22, NULL, NULL, dmod + 11, n.dout, n.sum, n.branch, n.mod + 22,
                                 n.weight, n.mod + 11, n.mean, n.rstd, n.stride, 3, 5, 11, 0);
    check(!memcmp(dx, n.dx, n.size * sizeof(double)), "dsum is the same");
    check(!memcmp(dbranch, n.dbranch, n.size * sizeof(double)), "dbranch is the same");
    for (size_t i = 0; i < 3 * n.stride; i++) {
        int written = i % n.stride >= 11 && i % n.stride < 33;
        check(dmod[i] == (written ? n.dmod[i] : before[i]), "dscale and dgate are the same, and nothing else written");
    }
    free(x), free(out), free(dx), free(dbranch), free(dmod), free(before);
    norm_free(&n);
    test_end_case();
}

// A gated branch that no norm follows: L = <sum, dx_start>.
static double plain_objective(void* context) {
    norm_case_t* n = (norm_case_t*)context;
    gated_norm_modulate_forward(n->sum, NULL, NULL, NULL, n->x, n->branch, n->mod + 2 * n->C, NULL, NULL, NULL,
                                n->stride, n->B, n->T, n->C, n->eps, 0);
    return dot(n->sum, n->dx_start, n->size);
}
static void test_no_norm(int B, int T, int C) {
    if (!test_case("a gated branch without a norm")) return;
    norm_case_t n = norm_new(LAYERNORM_ALONE, GATED, 0, B, T, C, 1e-6);
    run_forward(&n);
    double *sum = copy_of(n.sum, n.size), *before = copy_of(n.dmod, B * n.stride);
    memset(n.sum, 0xFF, n.size * sizeof(double));
    plain_objective(&n);
    check(!memcmp(sum, n.sum, n.size * sizeof(double)), "sum: the bits of the form with a norm");
    memcpy(n.dx, n.dx_start, n.size * sizeof(double));
    gated_norm_modulate_backward(n.dx, n.dbranch, n.dmod + 2 * C, NULL, NULL, NULL, NULL, NULL, n.branch,
                                 n.mod + 2 * C, NULL, NULL, NULL, NULL, n.stride, B, T, C, 0);
    check(!memcmp(n.dx, n.dx_start, n.size * sizeof(double)), "dsum stays");
    check_gradient("dbranch", plain_objective, &n, n.branch, n.dbranch, n.size);
    for (size_t i = 0; i < B * n.stride; i++) {
        int gate = i % n.stride >= 2 * (size_t)C && i % n.stride < 3 * (size_t)C;
        if (gate) continue;
        check(!memcmp(&n.dmod[i], &before[i], sizeof(double)), "nothing but dgate is written");
        n.dmod[i] = 0;
    }
    check_gradient("dgate", plain_objective, &n, n.mod, n.dmod, B * n.stride);
    free(sum), free(before);
    norm_free(&n);
    test_end_case();
}

static void test_threads(void) {
    if (!test_case("any number of threads")) return;
    norm_case_t n = norm_new(LAYERNORM, GATED, 1, 7, 31, 67, 1e-6);
    const result_t results[] = {
        {"sum", n.sum, n.size}, {"out", n.out, n.size}, {"mean", n.mean, 7 * 31}, {"rstd", n.rstd, 7 * 31}, {"dsum", n.dx, n.size},
        {"dbranch", n.dbranch, n.size}, {"dmod", n.dmod, 7 * n.stride}, {"dweight", n.dweight, 67},
    };
    check_any_thread_count(run_both, &n, results, 8);
    norm_free(&n);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    static const char* const names[] = {"rmsnorm", "layernorm", "layernorm without weight"};
    for (int kind = RMSNORM; kind <= LAYERNORM_ALONE; kind++) {
        test_norm(names[kind], "one token", kind, ALONE, 1, 1, 1, 17, 1e-6);
        test_norm(names[kind], "one channel", kind, ALONE, 1, 2, 5, 1, 0.3);
        test_norm(names[kind], "primes", kind, ALONE, 1, 5, 37, 13, 1e-6);
        test_norm(names[kind], "without shift", kind, ALONE, 0, 3, 7, 19, 1e-6);
        test_norm(names[kind], "gated", kind, GATED, 1, 5, 37, 13, 1e-6);
        test_norm(names[kind], "gated, one value", kind, GATED, 1, 1, 1, 1, 0.3);
        test_norm(names[kind], "gated, without shift", kind, GATED, 0, 2, 11, 29, 1e-2);
    }
    test_variants();
    test_no_norm(3, 7, 11);
    test_threads();
    return test_finish();
}
