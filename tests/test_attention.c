// Attention over packed queries, keys and values.

// defines: attention_forward, attention_backward
#include "common/ops.h"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error, relative_error_double
#include "tests/test.h"
// defines: check_gradient, random_buffer, poisoned_buffer, dot
#include "tests/gradient.h"
// defines: check_any_thread_count, result_t
#include "tests/operation.h"

typedef struct {
    int B, T, NH, HS;
    size_t n;    // B T NH HS
    double *qkv, *out, *lse, *dout, *dqkv;
} attention_t;

static attention_t attention_new(int B, int T, int NH, int HS) {
    attention_t a;
    a.B = B, a.T = T, a.NH = NH, a.HS = HS;
    a.n = (size_t)B * T * NH * HS;
    a.qkv = random_buffer(3 * a.n), a.dout = random_buffer(a.n);
    a.out = poisoned_buffer(a.n), a.lse = poisoned_buffer((size_t)B * NH * T), a.dqkv = poisoned_buffer(3 * a.n);
    return a;
}

static void attention_free(attention_t* a) { free(a->qkv), free(a->out), free(a->lse), free(a->dout), free(a->dqkv); }

static double attention_objective(void* context) {
    attention_t* a = (attention_t*)context;
    attention_forward(a->out, a->lse, a->qkv, a->B, a->T, a->NH, a->HS, 0);
    return dot(a->out, a->dout, a->n);
}

static void attention_both(void* context) {
    attention_t* a = (attention_t*)context;
    attention_objective(context);
    attention_backward(a->dqkv, a->dout, a->qkv, a->out, a->lse, a->B, a->T, a->NH, a->HS, 0);
}

// Row `part` (0 q, 1 k, 2 v) of token t in qkv.
static double* row_of(const attention_t* a, double* qkv, int b, int t, int part, int h) {
    return qkv + ((((size_t)b * a->T + t) * 3 + part) * a->NH + h) * a->HS;
}

// One query's scores as probabilities; returns their lse. Scores must be small enough not to overflow.
static double probabilities(const attention_t* a, double* P, int b, int i, int h) {
    double sum = 0;
    for (int j = 0; j < a->T; j++) {
        P[j] = exp(dot(row_of(a, a->qkv, b, i, 0, h), row_of(a, a->qkv, b, j, 1, h), a->HS) / sqrt(a->HS));
        sum += P[j];
    }
    for (int j = 0; j < a->T; j++) P[j] /= sum;
    return log(sum);
}

// out, lse and dqkv against sums written out.
static void check_values(const attention_t* a) {
    double* P = (double*)malloc(a->T * sizeof(double));
    double* out = (double*)calloc(a->n, sizeof(double));
    double* dqkv = (double*)calloc(3 * a->n, sizeof(double));
    for (int b = 0; b < a->B; b++) for (int h = 0; h < a->NH; h++) for (int i = 0; i < a->T; i++) {
        size_t at = (((size_t)b * a->T + i) * a->NH + h) * a->HS;
        double lse = probabilities(a, P, b, i, h), mean_dP = 0;
        check_error("lse", fabs(a->lse[((size_t)b * a->NH + h) * a->T + i] - lse), 1e-12);
        for (int j = 0; j < a->T; j++) {
            const double* v = row_of(a, a->qkv, b, j, 2, h);
            for (int c = 0; c < a->HS; c++) out[at + c] += P[j] * v[c];
            mean_dP += P[j] * dot(a->dout + at, v, a->HS);
        }
        for (int j = 0; j < a->T; j++) {
            double dS = P[j] * (dot(a->dout + at, row_of(a, a->qkv, b, j, 2, h), a->HS) - mean_dP) / sqrt(a->HS);
            for (int c = 0; c < a->HS; c++) {
                row_of(a, dqkv, b, i, 0, h)[c] += dS * row_of(a, a->qkv, b, j, 1, h)[c];
                row_of(a, dqkv, b, j, 1, h)[c] += dS * row_of(a, a->qkv, b, i, 0, h)[c];
                row_of(a, dqkv, b, j, 2, h)[c] += P[j] * a->dout[at + c];
            }
        }
    }
    check_error("out", relative_error_double(a->out, out, a->n), 1e-12);
    check_error("dqkv", relative_error_double(a->dqkv, dqkv, 3 * a->n), 1e-11);
    free(P), free(out), free(dqkv);
}

static void test_gradients(const char* name, int B, int T, int NH, int HS) {
    if (!test_case(name)) return;
    attention_t a = attention_new(B, T, NH, HS);
    attention_both(&a);
    check_values(&a);
    check_gradient("dqkv", attention_objective, &a, a.qkv, a.dqkv, 3 * a.n);
    attention_free(&a);
    test_end_case();
}

// Sizes at which queries are cut into tiles and tiles into groups: too large for many differences.
static void test_values(const char* name, int B, int T, int NH, int HS) {
    if (!test_case(name)) return;
    attention_t a = attention_new(B, T, NH, HS);
    attention_both(&a);
    check_values(&a);
    attention_free(&a);
    test_end_case();
}

// Adding one vector to all keys shifts each row of scores by a constant: the output must not move, even where the
// scores are so large that exp overflows.
static void test_shift(void) {
    if (!test_case("attention with huge scores")) return;
    attention_t a = attention_new(1, 29, 2, 8);
    attention_objective(&a);
    double* before = copy_of(a.out, a.n);
    for (int t = 0; t < a.T; t++) {
        for (int i = 0; i < 16; i++) row_of(&a, a.qkv, 0, t, 1, 0)[i] += 3e4;
    }
    attention_both(&a);
    check_error("out", relative_error_double(a.out, before, a.n), 1e-9);
    for (size_t i = 0; i < 3 * a.n; i++) check(isfinite(a.dqkv[i]), "a finite gradient");
    free(before);
    attention_free(&a);
    test_end_case();
}

static void test_threads(const char* name, int B, int T, int NH, int HS) {
    if (!test_case(name)) return;
    attention_t a = attention_new(B, T, NH, HS);
    const result_t results[] = {{"out", a.out, a.n}, {"lse", a.lse, (size_t)B * NH * T}, {"dqkv", a.dqkv, 3 * a.n}};
    check_any_thread_count(attention_both, &a, results, 3);
    attention_free(&a);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_gradients("attention one token", 2, 1, 3, 4);
    test_gradients("attention head size 1", 1, 5, 1, 1);
    test_gradients("attention head size 4", 2, 7, 2, 4);
    test_gradients("attention primes", 3, 23, 3, 13);
    test_gradients("attention T=17 NH=3 HS=32", 2, 17, 3, 32);
    test_gradients("attention one wide head", 1, 31, 1, 512);
    test_values("attention T=257", 1, 257, 2, 64);
    test_values("attention one head, in tiles and groups", 1, 509, 1, 16);
    test_values("attention in tiles", 4, 389, 2, 5);
    test_shift();
    test_threads("attention, any number of threads", 3, 61, 3, 8);
    test_threads("attention one head, any number of threads", 1, 509, 1, 16);
    return test_finish();
}
