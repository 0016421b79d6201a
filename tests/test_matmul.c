// Linear layers and GELU: matmul_forward, matmul_backward, matmul_add_*, matmul_gelu_forward, gelu_*.
// defines: matmul_forward, matmul_backward, the naive loops of both, matmul_add_*, matmul_gelu_forward, gelu_forward, gelu_backward
#include "common/ops.cu"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error, relative_error_double
#include "tests/test.h"
// defines: check_gradient, random_buffer, poisoned_buffer, dot
#include "tests/gradient.h"
// defines: check_parameter_gradient, check_any_thread_count, copy_of
#include "tests/operation.h"

typedef struct {
    size_t N;
    int C, OC;
    activation_t act;
    double *x, *weight, *bias;         // bias may be NULL
    double *out, *pre, *dout;
    double *dx, *dpre, *dweight, *dbias;
} linear_t;

static linear_t linear_new(size_t N, int C, int OC, int has_bias, activation_t act) {
    linear_t l;
    l.N = N, l.C = C, l.OC = OC, l.act = act;
    l.x = random_buffer(N * C);
    l.weight = random_buffer((size_t)OC * C);
    l.bias = has_bias ? random_buffer(OC) : NULL;
    l.dout = random_buffer(N * OC);
    l.dweight = random_buffer((size_t)OC * C);
    l.dbias = random_buffer(OC);
    l.out = poisoned_buffer(N * OC);
    l.pre = poisoned_buffer(N * OC);
    l.dpre = poisoned_buffer(N * OC);
    l.dx = poisoned_buffer(N * C);
    return l;
}

static void linear_free(linear_t* l) {
    double* all[] = {l->x, l->weight, l->bias, l->out, l->pre, l->dout, l->dx, l->dpre, l->dweight, l->dbias};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void linear_forward(linear_t* l) {
    if (l->act == ACT_NONE) matmul_forward(l->out, l->x, l->weight, l->bias, l->N, l->C, l->OC, 0);
    else matmul_gelu_forward(l->out, l->pre, l->x, l->weight, l->bias, l->N, l->C, l->OC, l->act, 0);
}

static void linear_backward(void* context) {
    linear_t* l = (linear_t*)context;
    const double* dout = l->dout;
    if (l->act != ACT_NONE) {
        gelu_backward(l->dpre, l->dout, l->pre, l->N * l->OC, l->act, 0);
        dout = l->dpre;
    }
    matmul_backward(l->dx, l->dweight, l->dbias, dout, l->x, l->weight, l->N, l->C, l->OC, 0);
}

static double linear_objective(void* context) {
    linear_t* l = (linear_t*)context;
    linear_forward(l);
    return dot(l->out, l->dout, l->N * l->OC);
}

static void check_values(const linear_t* l) {
    double* want = (double*)malloc(l->N * l->OC * sizeof(double));
    matmul_forward_naive(want, l->x, l->weight, l->bias, l->N, l->C, l->OC);
    for (size_t i = 0; l->act != ACT_NONE && i < l->N * l->OC; i++) {
        double u = want[i], with_tanh = 0.5 * u * (1 + tanh(sqrt(2 / M_PI) * (u + 0.044715 * u * u * u)));
        want[i] = l->act == ACT_GELU ? 0.5 * u * (1 + erf(u / sqrt(2.0))) : with_tanh;
        if (l->act == ACT_QUICK_GELU) want[i] = u / (1 + exp(-1.702 * u));
    }
    check_error("out", relative_error_double(l->out, want, l->N * l->OC), 1e-12);
    free(want);
}

static void test_linear(const char* name, size_t N, int C, int OC, int has_bias, activation_t act) {
    if (!test_case(name)) return;
    linear_t l = linear_new(N, C, OC, has_bias, act);
    linear_forward(&l);
    check_values(&l);
    linear_backward(&l);
    check_gradient("dx", linear_objective, &l, l.x, l.dx, N * C);
    check_parameter_gradient("dweight", linear_objective, linear_backward, &l, l.weight, l.dweight, (size_t)OC * C);
    if (has_bias) check_parameter_gradient("dbias", linear_objective, linear_backward, &l, l.bias, l.dbias, OC);
    linear_free(&l);
    test_end_case();
}

// The truth itself: the naive loops' derivatives against differences of their forward.
static double naive_objective(void* context) {
    linear_t* l = (linear_t*)context;
    matmul_forward_naive(l->out, l->x, l->weight, l->bias, l->N, l->C, l->OC);
    return dot(l->out, l->dout, l->N * l->OC);
}

static void naive_backward(void* context) {
    linear_t* l = (linear_t*)context;
    matmul_backward_naive(l->dx, l->dweight, l->dbias, l->dout, l->x, l->weight, l->N, l->C, l->OC);
}

static void test_naive(void) {
    if (!test_case("matmul, the naive loops")) return;
    linear_t l = linear_new(37, 13, 23, 1, ACT_NONE);
    naive_backward(&l);
    check_gradient("dx", naive_objective, &l, l.x, l.dx, 37 * 13);
    check_parameter_gradient("dweight", naive_objective, naive_backward, &l, l.weight, l.dweight, 23 * 13);
    check_parameter_gradient("dbias", naive_objective, naive_backward, &l, l.bias, l.dbias, 23);
    linear_free(&l);
    test_end_case();
}

// Sizes at which outputs and rows are cut into several pieces.
static void test_backward_values(const char* name, size_t N, int C, int OC) {
    if (!test_case(name)) return;
    linear_t l = linear_new(N, C, OC, 1, ACT_NONE);
    linear_forward(&l);
    check_values(&l);
    double* dx = poisoned_buffer(N * C);
    double* dweight = copy_of(l.dweight, (size_t)OC * C);
    double* dbias = copy_of(l.dbias, OC);
    matmul_backward_naive(dx, dweight, dbias, l.dout, l.x, l.weight, N, C, OC);
    linear_backward(&l);
    check_error("dx", relative_error_double(l.dx, dx, N * C), 1e-12);
    check_error("dweight", relative_error_double(l.dweight, dweight, (size_t)OC * C), 1e-12);
    check_error("dbias", relative_error_double(l.dbias, dbias, OC), 1e-12);
    free(dx), free(dweight), free(dbias);
    linear_free(&l);
    test_end_case();
}

// NULL gradients are left alone, and the others are what they are with all present.
static void test_null_gradients(void) {
    if (!test_case("matmul_backward with NULL gradients")) return;
    linear_t l = linear_new(5, 7, 3, 1, ACT_NONE);
    double* dweight = copy_of(l.dweight, 21);
    double* dbias = copy_of(l.dbias, 3);
    linear_backward(&l);
    matmul_forward(l.out, l.x, l.weight, l.bias, 0, 7, 3, 0); // no rows: nothing is read or written
    matmul_backward(l.dx, l.dweight, l.dbias, l.dout, l.x, l.weight, 0, 7, 3, 0);
    double* dx = poisoned_buffer(35);
    matmul_backward(dx, NULL, NULL, l.dout, NULL, l.weight, 5, 7, 3, 0);
    matmul_backward(NULL, dweight, NULL, l.dout, l.x, NULL, 5, 7, 3, 0);
    matmul_backward(NULL, NULL, dbias, l.dout, NULL, NULL, 5, 7, 3, 0);
    check(!memcmp(dx, l.dx, 35 * sizeof(double)), "dx alone equals dx");
    check(!memcmp(dweight, l.dweight, 21 * sizeof(double)), "dweight alone equals dweight");
    check(!memcmp(dbias, l.dbias, 3 * sizeof(double)), "dbias alone equals dbias");
    free(dx), free(dweight), free(dbias);
    linear_free(&l);
    test_end_case();
}

// What matmul_add_forward adds is what matmul_forward writes, at sizes with one piece and with several, and so in the
// backward; and GELU by itself is the GELU behind the product.
static void test_add(size_t N, int C, int OC) {
    linear_t l = linear_new(N, C, OC, 0, ACT_GELU);
    double *start = random_buffer(N * OC), *sum = copy_of(start, N * OC), *gelu = poisoned_buffer(N * OC);
    linear_forward(&l);
    matmul_add_forward(sum, l.x, l.weight, N, C, OC, 0);
    gelu_forward(gelu, l.pre, N * OC, ACT_GELU, 0);
    for (size_t i = 0; i < N * OC; i++) start[i] += l.pre[i];
    check_error("sum", relative_error_double(sum, start, N * OC), 1e-13);
    check_error("GELU by itself", relative_error_double(gelu, l.out, N * OC), 1e-14);
    double *dx = random_buffer(N * C), *dx_start = copy_of(dx, N * C), *dweight = copy_of(l.dweight, (size_t)OC * C);
    matmul_add_backward(dx, dweight, NULL, l.dout, l.x, l.weight, N, C, OC, 0);
    matmul_backward(l.dx, l.dweight, NULL, l.dout, l.x, l.weight, N, C, OC, 0);
    for (size_t i = 0; i < N * C; i++) dx_start[i] += l.dx[i];
    check_error("dx", relative_error_double(dx, dx_start, N * C), 1e-13);
    check(!memcmp(dweight, l.dweight, (size_t)OC * C * sizeof(double)), "dweight as of matmul_backward");
    free(start), free(sum), free(gelu), free(dx), free(dx_start), free(dweight);
    linear_free(&l);
}

// Spot values of both forms, and the backward in place.
static void test_gelu(void) {
    if (!test_case("gelu' spot values, in place")) return;
    static const double u[2] = {0.7, -1.5};
    static const double exact[2] = {0.97661410, -0.12746919}, with_tanh[2] = {0.97635722, -0.12771079};
    double d[2] = {1, 1};
    gelu_backward(d, d, u, 2, ACT_GELU, 0);
    for (int i = 0; i < 2; i++) check_error("exact", fabs(d[i] - exact[i]), 1e-8);
    d[0] = d[1] = 1;
    gelu_backward(d, d, u, 2, ACT_GELU_TANH, 0);
    for (int i = 0; i < 2; i++) check_error("tanh", fabs(d[i] - with_tanh[i]), 1e-8);
    test_end_case();
}

static void linear_both(void* context) {
    linear_objective(context);
    linear_backward(context);
}

static void test_threads(const char* name, size_t N, int C, int OC, activation_t act) {
    if (!test_case(name)) return;
    linear_t l = linear_new(N, C, OC, 1, act);
    const result_t results[] = {
        {"out", l.out, N * OC}, {"dx", l.dx, N * C},
        {"dweight", l.dweight, (size_t)OC * C}, {"dbias", l.dbias, (size_t)OC},
    };
    check_any_thread_count(linear_both, &l, results, 4);
    linear_free(&l);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_naive();
    test_linear("matmul N=1 C=1 OC=1", 1, 1, 1, 1, ACT_NONE);
    test_linear("matmul one row", 1, 13, 7, 1, ACT_NONE);
    test_linear("matmul one channel", 11, 1, 5, 1, ACT_NONE);
    test_linear("matmul primes", 37, 13, 23, 1, ACT_NONE);
    test_linear("matmul primes, no bias", 37, 13, 23, 0, ACT_NONE);
    test_linear("matmul + gelu", 37, 13, 23, 1, ACT_GELU);
    test_linear("matmul + gelu, no bias", 5, 3, 1, 0, ACT_GELU);
    test_linear("matmul + gelu tanh", 37, 13, 23, 1, ACT_GELU_TANH);
    test_linear("matmul + quick gelu", 37, 13, 23, 1, ACT_QUICK_GELU);
    test_backward_values("matmul 544 x 96 x 288", 544, 96, 288);
    test_backward_values("matmul in many pieces: 401 x 307 x 521", 401, 307, 521);
    test_backward_values("matmul many rows, few weights: 12007 x 61 x 31", 12007, 61, 31);
    if (test_case("matmul_add, gelu by itself")) {
        test_add(5, 3, 7);
        test_add(401, 17, 521);
        test_end_case();
    }
    test_null_gradients();
    test_gelu();
    test_threads("matmul, any number of threads", 401, 307, 521, ACT_GELU);
    test_threads("matmul many rows, any number of threads", 12007, 61, 31, ACT_GELU_TANH);
    return test_finish();
}
