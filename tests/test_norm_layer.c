// LayerNorm, alone and behind a residual branch.

// defines: layernorm_forward, layernorm_backward, residual_layernorm_forward, residual_layernorm_backward
#include "common/ops.h"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error, relative_error_double
#include "tests/test.h"
// defines: check_gradient, random_buffer, poisoned_buffer, dot
#include "tests/gradient.h"
// defines: check_parameter_gradient, check_any_thread_count, result_t, copy_of
#include "tests/operation.h"

enum { PLAIN_NORM, RESIDUAL, RESIDUAL_NO_GAMMA };

typedef struct {
    int kind, C;
    size_t N;
    double eps;
    double *x, *y, *gamma, *weight, *bias;           // y and gamma belong to the residual forms
    double *sum, *out, *mean, *rstd;
    double *dout, *dsum_start;                       // gradient of out, and what reaches the residual stream from above
    double *dx, *dy, *dgamma, *dweight, *dbias;
} layernorm_t;

static layernorm_t layernorm_new(int kind, size_t N, int C, double eps) {
    layernorm_t n;
    n.kind = kind, n.N = N, n.C = C, n.eps = eps;
    n.x = random_buffer(N * C), n.y = random_buffer(N * C), n.gamma = random_buffer(C);
    n.weight = random_buffer(C), n.bias = random_buffer(C);
    n.sum = poisoned_buffer(N * C), n.out = poisoned_buffer(N * C);
    n.mean = poisoned_buffer(N), n.rstd = poisoned_buffer(N);
    n.dout = random_buffer(N * C), n.dsum_start = random_buffer(N * C);
    n.dx = poisoned_buffer(N * C), n.dy = poisoned_buffer(N * C);
    n.dgamma = random_buffer(C), n.dweight = random_buffer(C), n.dbias = random_buffer(C);
    return n;
}

static void layernorm_free(layernorm_t* n) {
    double* all[] = {n->x, n->y, n->gamma, n->weight, n->bias, n->sum, n->out, n->mean, n->rstd,
                     n->dout, n->dsum_start, n->dx, n->dy, n->dgamma, n->dweight, n->dbias};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void run_forward(layernorm_t* n) {
    if (n->kind == PLAIN_NORM) {
        layernorm_forward(n->out, n->mean, n->rstd, n->x, n->weight, n->bias, n->N, n->C, n->eps, 0);
    } else {
        residual_layernorm_forward(n->sum, n->out, n->mean, n->rstd, n->x, n->y, n->kind == RESIDUAL ? n->gamma : NULL,
                                   n->weight, n->bias, n->N, n->C, n->eps, 0);
    }
}

// The gradient from above reaches x (plain form) or sum (residual forms) beside the norm, as in a residual stream.
static double objective(void* context) {
    layernorm_t* n = (layernorm_t*)context;
    run_forward(n);
    size_t size = n->N * n->C;
    return dot(n->out, n->dout, size) + dot(n->kind == PLAIN_NORM ? n->x : n->sum, n->dsum_start, size);
}

static void run_backward(void* context) {
    layernorm_t* n = (layernorm_t*)context;
    memcpy(n->dx, n->dsum_start, n->N * n->C * sizeof(double));
    if (n->kind == PLAIN_NORM) {
        layernorm_backward(n->dx, n->dweight, n->dbias, n->dout, n->x, n->weight, n->mean, n->rstd, n->N, n->C, 0);
    } else {
        int scaled = n->kind == RESIDUAL;
        residual_layernorm_backward(n->dx, n->dy, scaled ? n->dgamma : NULL, n->dweight, n->dbias, n->dout, n->sum,
                                    n->y, scaled ? n->gamma : NULL, n->weight, n->mean, n->rstd, n->N, n->C, 0);
    }
}

static void run_both(void* context) {
    objective(context);
    run_backward(context);
}

// Mean and variance by their definitions, in long double.
static void check_values(const layernorm_t* n) {
    size_t size = n->N * n->C;
    double* sum = copy_of(n->x, size);
    double* out = poisoned_buffer(size);
    double* mean_of = poisoned_buffer(n->N);
    double* rstd_of = poisoned_buffer(n->N);
    for (size_t i = 0; n->kind != PLAIN_NORM && i < size; i++) {
        sum[i] += (n->kind == RESIDUAL ? n->gamma[i % n->C] : 1) * n->y[i];
    }
    for (size_t i = 0; i < n->N; i++) {
        const double* x = sum + i * n->C;
        long double mean = 0, variance = 0;
        for (int c = 0; c < n->C; c++) mean += x[c];
        mean /= n->C;
        for (int c = 0; c < n->C; c++) variance += (x[c] - mean) * (x[c] - mean);
        mean_of[i] = (double)mean;
        rstd_of[i] = (double)(1 / sqrtl(variance / n->C + n->eps));
        for (int c = 0; c < n->C; c++) {
            out[i * n->C + c] = (double)(x[c] - mean) * rstd_of[i] * n->weight[c] + n->bias[c];
        }
    }
    check_error("mean", relative_error_double(n->mean, mean_of, n->N), 1e-12);
    check_error("rstd", relative_error_double(n->rstd, rstd_of, n->N), 1e-12);
    check_error("out", relative_error_double(n->out, out, size), 1e-12);
    if (n->kind != PLAIN_NORM) check_error("sum", relative_error_double(n->sum, sum, size), 1e-15);
    free(sum), free(out), free(mean_of), free(rstd_of);
}

// With one channel or two, a small eps makes an output that hardly depends on x; a large one keeps its derivative
// visible.
static void test_norm(const char* name, int kind, size_t N, int C, double eps) {
    if (!test_case(name)) return;
    layernorm_t n = layernorm_new(kind, N, C, eps);
    run_both(&n);
    check_values(&n);
    check_gradient("dx", objective, &n, n.x, n.dx, N * C);
    if (kind != PLAIN_NORM) check_gradient("dy", objective, &n, n.y, n.dy, N * C);
    if (kind == RESIDUAL) check_parameter_gradient("dgamma", objective, run_backward, &n, n.gamma, n.dgamma, C);
    check_parameter_gradient("dweight", objective, run_backward, &n, n.weight, n.dweight, C);
    check_parameter_gradient("dbias", objective, run_backward, &n, n.bias, n.dbias, C);
    layernorm_free(&n);
    test_end_case();
}

// A frozen model has no parameter gradients; dx and dy are the same without them.
static void test_frozen(void) {
    if (!test_case("layernorm backward without parameter gradients")) return;
    layernorm_t n = layernorm_new(RESIDUAL, 37, 13, 1e-6);
    run_both(&n);
    double* dx = copy_of(n.dsum_start, 37 * 13);
    double* dy = poisoned_buffer(37 * 13);
    residual_layernorm_backward(dx, dy, NULL, NULL, NULL, n.dout, n.sum, NULL, n.gamma, n.weight, n.mean, n.rstd,
                                37, 13, 0);
    check(!memcmp(dx, n.dx, 37 * 13 * sizeof(double)), "dsum is the same");
    check(!memcmp(dy, n.dy, 37 * 13 * sizeof(double)), "dy is the same");
    memcpy(dx, n.dsum_start, 37 * 13 * sizeof(double));
    layernorm_backward(dx, NULL, NULL, n.dout, n.sum, n.weight, n.mean, n.rstd, 37, 13, 0);
    check(!memcmp(dx, n.dx, 37 * 13 * sizeof(double)), "the plain form's dx is the same");
    free(dx), free(dy);
    layernorm_free(&n);
    test_end_case();
}

// Without mean and bias: RMSNorm, by its definition, alone and behind a branch.
static void test_rms(const char* name, size_t N, int C) {
    if (!test_case(name)) return;
    layernorm_t n = layernorm_new(RESIDUAL, N, C, 1e-6);
    double *out = poisoned_buffer(N * C), *want = poisoned_buffer(N * C);
    for (int branch = 0; branch < 2; branch++) {
        for (size_t i = 0; i < N; i++) {
            double squares = 0;
            for (size_t k = i * C; k < (i + 1) * C; k++) {
                n.sum[k] = n.x[k] + (branch ? n.y[k] : 0);
                squares += n.sum[k] * n.sum[k];
            }
            for (size_t k = i * C; k < (i + 1) * C; k++) {
                want[k] = n.sum[k] / sqrt(squares / C + 1e-6) * n.weight[k % C];
            }
        }
        if (branch) residual_layernorm_forward(n.dx, out, NULL, n.rstd, n.x, n.y, NULL, n.weight, NULL, N, C, 1e-6, 0);
        else layernorm_forward(out, NULL, n.rstd, n.x, n.weight, NULL, N, C, 1e-6, 0);
        check_error("out", relative_error_double(out, want, N * C), 1e-13);
    }
    check(!memcmp(n.dx, n.sum, N * C * sizeof(double)), "the sum");
    free(out), free(want);
    layernorm_free(&n);
    test_end_case();
}

static void test_threads(void) {
    if (!test_case("layernorm, any number of threads")) return;
    size_t N = 211;
    int C = 67;
    layernorm_t n = layernorm_new(RESIDUAL, N, C, 1e-6);
    const result_t results[] = {
        {"sum", n.sum, N * C}, {"out", n.out, N * C}, {"mean", n.mean, N}, {"rstd", n.rstd, N},
        {"dsum", n.dx, N * C}, {"dy", n.dy, N * C}, {"dgamma", n.dgamma, (size_t)C},
        {"dweight", n.dweight, (size_t)C}, {"dbias", n.dbias, (size_t)C},
    };
    check_any_thread_count(run_both, &n, results, 9);
    layernorm_free(&n);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_norm("layernorm one row", PLAIN_NORM, 1, 17, 1e-6);
    test_norm("layernorm one channel", PLAIN_NORM, 5, 1, 0.3);
    test_norm("layernorm two channels, large eps", PLAIN_NORM, 7, 2, 0.3);
    test_norm("layernorm primes", PLAIN_NORM, 101, 67, 1e-6);
    test_norm("residual + layernorm", RESIDUAL, 37, 13, 1e-6);
    test_norm("residual + layernorm, one row, one channel", RESIDUAL, 1, 1, 0.3);
    test_norm("residual + layernorm, many rows", RESIDUAL, 131, 7, 1e-2);
    test_norm("residual + layernorm without LayerScale", RESIDUAL_NO_GAMMA, 37, 13, 1e-6);
    test_frozen();
    test_rms("rmsnorm", 37, 13);
    test_rms("rmsnorm, one value", 1, 1);
    test_threads();
    return test_finish();
}
