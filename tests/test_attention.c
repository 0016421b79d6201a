// Attention over packed queries, keys and values: the naive loops against finite differences, and where the answer is
// known; the fast forms against the naive loops, and against differences once more; all also where keys are padding.

// defines: attention_forward, attention_backward, attention_forward_naive, attention_backward_naive,
//          text_attention_forward
#include "common/ops.cu"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error, relative_error_double
#include "tests/test.h"
// defines: check_gradient, random_buffer, poisoned_buffer, dot
#include "tests/gradient.h"
// defines: check_any_thread_count, result_t
#include "tests/operation.h"

typedef struct {
    int B, T, NH, HS;
    size_t n;    // B T NH HS
    int* first_key; // (B) or NULL
    double *qkv, *out, *lse, *dout, *dqkv;
} attention_t;

static attention_t attention_new(int B, int T, int NH, int HS) {
    attention_t a;
    a.B = B, a.T = T, a.NH = NH, a.HS = HS, a.first_key = NULL;
    a.n = (size_t)B * T * NH * HS;
    a.qkv = random_buffer(3 * a.n), a.dout = random_buffer(a.n);
    a.out = poisoned_buffer(a.n), a.lse = poisoned_buffer((size_t)B * NH * T), a.dqkv = poisoned_buffer(3 * a.n);
    return a;
}

static void attention_free(attention_t* a) { free(a->qkv), free(a->out), free(a->lse), free(a->dout), free(a->dqkv); }

static double attention_objective(void* context) {
    attention_t* a = (attention_t*)context;
    attention_forward(a->out, a->lse, a->qkv, a->first_key, a->B, a->T, a->NH, a->HS, 0);
    return dot(a->out, a->dout, a->n);
}

static void attention_both(void* context) {
    attention_t* a = (attention_t*)context;
    attention_objective(context);
    attention_backward(a->dqkv, a->dout, a->qkv, a->out, a->lse, a->first_key, a->B, a->T, a->NH, a->HS, 0);
}

// Row `part` (0 q, 1 k, 2 v) of token t in qkv.
static double* row_of(const attention_t* a, double* qkv, int b, int t, int part, int h) {
    return qkv + ((((size_t)b * a->T + t) * 3 + part) * a->NH + h) * a->HS;
}

static double naive_objective(void* context) {
    attention_t* a = (attention_t*)context;
    attention_forward_naive(a->out, a->lse, a->qkv, a->first_key, a->B, a->T, a->NH, a->HS);
    return dot(a->out, a->dout, a->n);
}

static void naive_both(attention_t* a) {
    naive_objective(a);
    attention_backward_naive(a->dqkv, a->dout, a->qkv, a->out, a->lse, a->first_key, a->B, a->T, a->NH, a->HS);
}

static void test_naive(const char* name, int B, int T, int NH, int HS) {
    if (!test_case(name)) return;
    attention_t a = attention_new(B, T, NH, HS);
    naive_both(&a);
    check_gradient("dqkv", naive_objective, &a, a.qkv, a.dqkv, 3 * a.n);
    attention_free(&a);
    test_end_case();
}

// Queries of zero see all keys alike: out is the mean of the values, lse the logarithm of their number.
static void test_naive_mean(void) {
    if (!test_case("attention naive, queries of zero")) return;
    attention_t a = attention_new(1, 6, 2, 5);
    double mean[10] = {0};
    for (int t = 0; t < 6; t++) {
        for (int i = 0; i < 10; i++) {
            row_of(&a, a.qkv, 0, t, 0, 0)[i] = 0;
            mean[i] += row_of(&a, a.qkv, 0, t, 2, 0)[i] / 6;
        }
    }
    naive_objective(&a);
    for (int t = 0; t < 6; t++) check_error("out", relative_error_double(a.out + t * 10, mean, 10), 1e-15);
    for (int i = 0; i < 12; i++) check_error("lse", fabs(a.lse[i] - log(6)), 1e-15);
    attention_free(&a);
    test_end_case();
}

// out, lse and dqkv of the fast form against the naive loops.
static void check_values(attention_t* a) {
    attention_t fast = *a;
    a->out = poisoned_buffer(a->n), a->lse = poisoned_buffer((size_t)a->B * a->NH * a->T);
    a->dqkv = poisoned_buffer(3 * a->n);
    naive_both(a);
    check_error("out", relative_error_double(fast.out, a->out, a->n), 1e-12);
    check_error("lse", relative_error_double(fast.lse, a->lse, (size_t)a->B * a->NH * a->T), 1e-12);
    check_error("dqkv", relative_error_double(fast.dqkv, a->dqkv, 3 * a->n), 1e-11);
    free(a->out), free(a->lse), free(a->dqkv);
    *a = fast;
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

// Padding in front, of another length in each image: against the naive loops and differences; what stands there changes
// nothing and has no gradient; and where nothing is padding, the usual bits.
static void test_first_key(const char* name, int B, int T, int NH, int HS, int differences) {
    if (!test_case(name)) return;
    attention_t a = attention_new(B, T, NH, HS), none = a;
    int first_key[8] = {T / 2, 0, T - 1, 1}, zeros[8] = {0};
    a.first_key = first_key;
    attention_both(&a);
    check_values(&a);
    if (differences) check_gradient("dqkv", attention_objective, &a, a.qkv, a.dqkv, 3 * a.n);
    if (differences) naive_both(&a), check_gradient("dqkv naive", naive_objective, &a, a.qkv, a.dqkv, 3 * a.n);
    attention_both(&a);
    double* before = copy_of(a.out, a.n);
    for (int b = 0; b < B; b++) for (int t = 0; t < first_key[b]; t++) for (int i = 0; i < 2 * NH * HS; i++) {
        check(row_of(&a, a.dqkv, b, t, 1, 0)[i] == 0, "padding's keys and values have no gradient");
        row_of(&a, a.qkv, b, t, 1, 0)[i] = 1e3;
    }
    attention_objective(&a);
    check(!memcmp(before, a.out, a.n * sizeof(double)), "padding's keys and values change nothing");
    a.first_key = zeros;
    none.out = poisoned_buffer(a.n), none.lse = poisoned_buffer((size_t)B * NH * T);
    none.dqkv = poisoned_buffer(3 * a.n);
    attention_both(&a);
    attention_forward(none.out, none.lse, a.qkv, NULL, B, T, NH, HS, 0);
    attention_backward(none.dqkv, a.dout, a.qkv, none.out, none.lse, NULL, B, T, NH, HS, 0);
    check(!memcmp(none.out, a.out, a.n * sizeof(double)), "out: the bits of attention without padding");
    check(!memcmp(none.dqkv, a.dqkv, 3 * a.n * sizeof(double)), "dqkv: the bits of attention without padding");
    free(before), free(none.out), free(none.lse), free(none.dqkv);
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

// A text encoder's attention by its formula. has_bias, has_first, causal: what there is.
static void text_naive(const attention_t* a, double* out, const double* bias, const int* first, double scale,
                       int causal) {
    int T = a->T, NH = a->NH, HS = a->HS;
    memset(out, 0, a->n * sizeof(double));
    for (int b = 0; b < a->B; b++) for (int h = 0; h < NH; h++) for (int i = 0; i < T; i++) {
        double sum = 0, *o = out + (((size_t)b * T + i) * NH + h) * HS;
        for (int j = first ? first[b] : 0; j < (causal ? i + 1 : T); j++) {
            double S = scale * dot(row_of(a, a->qkv, b, i, 0, h), row_of(a, a->qkv, b, j, 1, h), (size_t)HS);
            double P = exp(S + (bias ? bias[(T - 1 + j - i) * NH + h] : 0));
            for (int c = 0; c < HS; c++) o[c] += P * row_of(a, a->qkv, b, j, 2, h)[c];
            sum += P;
        }
        for (int c = 0; c < HS && sum > 0; c++) o[c] /= sum;
    }
}

static void test_text(const char* name, int B, int T, int NH, int HS, int has_bias, int has_first, int causal) {
    if (!test_case(name)) return;
    attention_t a = attention_new(B, T, NH, HS);
    double *table = random_buffer((size_t)(2 * T - 1) * NH), *want = poisoned_buffer(a.n), scale = 0.7;
    int* starts = (int*)malloc(B * sizeof(int));
    for (int b = 0; b < B; b++) starts[b] = b == 0 ? T - 1 : b == 1 ? 0 : T * b / (b + 1);
    const double* bias = has_bias ? table : NULL;
    const int* first = has_first ? starts : NULL;
    text_attention_forward(a.out, a.qkv, bias, first, scale, causal, B, T, NH, HS, 0);
    text_naive(&a, want, bias, first, scale, causal);
    check_error("out", relative_error_double(a.out, want, a.n), 1e-12);
    if (!has_bias && !has_first && !causal) {
        attention_forward(want, a.lse, a.qkv, NULL, B, T, NH, HS, 0);
        text_attention_forward(a.out, a.qkv, NULL, NULL, 1 / sqrt(HS), 0, B, T, NH, HS, 0);
        check_error("attention_forward", relative_error_double(a.out, want, a.n), 1e-14);
    }
    free(table), free(want), free(starts);
    attention_free(&a);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_naive("attention naive, one token", 2, 1, 3, 4);
    test_naive("attention naive", 2, 7, 3, 5);
    test_naive("attention naive T=17 NH=2 HS=32", 1, 17, 2, 32);
    test_naive_mean();
    test_gradients("attention one token", 2, 1, 3, 4);
    test_gradients("attention head size 1", 1, 5, 1, 1);
    test_gradients("attention head size 4", 2, 7, 2, 4);
    test_gradients("attention primes", 3, 23, 3, 13);
    test_gradients("attention T=17 NH=3 HS=32", 2, 17, 3, 32);
    test_gradients("attention one wide head", 1, 31, 1, 512);
    test_values("attention T=63", 1, 63, 1, 72);
    test_values("attention T=257", 1, 257, 2, 64);
    test_values("attention T=300", 2, 300, 1, 7);
    test_values("attention one head, in tiles and groups", 1, 509, 1, 16);
    test_values("attention in tiles", 4, 389, 2, 5);
    test_shift();
    test_first_key("attention with padding", 3, 11, 2, 5, 1);
    test_first_key("attention with padding, one token", 1, 1, 1, 3, 1);
    test_first_key("attention with padding, in tiles", 4, 389, 2, 5, 0);
    test_first_key("attention with padding, one head, in tiles and groups", 2, 509, 1, 16, 0);
    test_threads("attention, any number of threads", 3, 61, 3, 8);
    test_threads("attention one head, any number of threads", 1, 509, 1, 16);
    test_text("text attention, nothing of it", 2, 17, 3, 4, 0, 0, 0);
    test_text("text attention, a bias", 2, 23, 3, 5, 1, 0, 0);
    test_text("text attention, keys from the first on", 3, 13, 2, 4, 0, 1, 0);
    test_text("text attention, causal", 2, 31, 2, 7, 0, 0, 1);
    test_text("text attention, all of it, queries without keys", 4, 19, 3, 8, 1, 1, 1);
    test_text("text attention, one token", 2, 1, 1, 1, 1, 1, 1);
    test_text("text attention, one head", 3, 11, 1, 5, 1, 1, 0);
    test_text("text attention in tiles", 2, 389, 1, 5, 1, 1, 1);
    return test_finish();
}
