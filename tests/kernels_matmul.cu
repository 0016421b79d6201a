// Matrix products and GELU: matmul_forward, _add_forward, _gelu_forward, _backward, gelu_forward, gelu_backward; and
// what matmul.cuh offers to other families: products with a residual, batched products, sums over rows.
//
// Every product runs in three ways: by the library, by its algorithm that is measured to be the fastest, and by our own
// kernel, which stands in for it. In the emulator the library is dev/emu/cublaslt.h, which can be told to fail and
// counts the questions it is asked.
// defines: tensor, random_input, output, check_tensor, for_each_shape, namespace cpu
#include "tests/kernel.h"
// defines: temporary_begin, temporary_end, temporary_read, temporary_write, temporary_catch_stderr, temporary_run_child
#include "tests/temporary.h"
// defines: the operations under test
#include "common/cuda/matmul.cuh"
// defines: algorithms_open, algorithms_step, algorithms_save
#include "common/training/algorithms.h"

typedef struct {
    size_t N;
    int C, OC, has_bias;
    activation_t act;
    int offset; // values by which x, weight and dout are shifted from a multiple of 16 bytes; the bias too where it is
                // odd
} linear_t;

#ifdef EMU
// As a new process has it.
static void forget_products(stream_t s) {
    free(s->matmul);
    s->matmul = NULL;
}
#endif

// Runs `run` with the library, its algorithms measured and not, and, where that can be arranged, without it.
static void with_and_without_library(stream_t s, void (*run)(stream_t s, void* context), void* context) {
    for_each_shape(s, run, context);
    algorithms_step(s, 1);
    for_each_shape(s, run, context);
    algorithms_step(s, 0);
#ifdef EMU
    emu_blas_answer = CUBLAS_STATUS_NOT_SUPPORTED;
    forget_products(s);
    for_each_shape(s, run, context);
    emu_blas_answer = CUBLAS_STATUS_SUCCESS;
    forget_products(s);
#endif
}

static void run_linear(stream_t s, void* context) {
    const linear_t* l = (const linear_t*)context;
    size_t N = l->N, at = l->offset, bias_at = at % 2;
    int C = l->C, OC = l->OC;
    size_t weights = (size_t)OC * C;
    tensor<floatX> x = random_input(N * C + at), weight = random_input(weights + at, 0.5),
                   bias = random_input(OC + bias_at);
    tensor<floatX> dout = random_input(N * OC + at), out = output(N * OC), dx = output(N * C);
    tensor<float> dweight = random_gradient(weights), dbias = random_gradient(OC);
    floatX* b = l->has_bias ? bias.dev + bias_at : NULL;
    double* b_ref = l->has_bias ? bias.ref + bias_at : NULL;
    matmul_forward(out.dev, x.dev + at, weight.dev + at, b, N, C, OC, s);
    cpu::matmul_forward(out.ref, x.ref + at, weight.ref + at, b_ref, N, C, OC, 0);
    check_tensor("out", out, TOLERANCE_X);
    for (int i = 0; i < 2; i++) { // gradients of parameters accumulate
        matmul_backward(dx.dev, dweight.dev, dbias.dev, dout.dev + at, x.dev + at, weight.dev + at, N, C, OC, s);
        cpu::matmul_backward(dx.ref, dweight.ref, dbias.ref, dout.ref + at, x.ref + at, weight.ref + at, N, C, OC, 0);
    }
    check_tensor("dx", dx, TOLERANCE_X);
    check_tensor("dweight", dweight, TOLERANCE_S);
    check_tensor("dbias", dbias, TOLERANCE_S);
    // each gradient alone, without the inputs that it does not need
    dx = output(N * C);
    matmul_backward(dx.dev, NULL, NULL, dout.dev + at, NULL, weight.dev + at, N, C, OC, s);
    matmul_backward(NULL, dweight.dev, NULL, dout.dev + at, x.dev + at, NULL, N, C, OC, s);
    matmul_backward(NULL, NULL, dbias.dev, dout.dev + at, NULL, NULL, N, C, OC, s);
    cpu::matmul_backward(dx.ref, dweight.ref, dbias.ref, dout.ref + at, x.ref + at, weight.ref + at, N, C, OC, 0);
    check_tensor("dx alone", dx, TOLERANCE_X);
    check_tensor("dweight alone", dweight, TOLERANCE_S);
    check_tensor("dbias alone", dbias, TOLERANCE_S);
    free_tensors();
}

static void test_linear(stream_t s, const char* name, size_t N, int C, int OC, int has_bias, int offset) {
    if (!test_case(name)) return;
    linear_t l = {N, C, OC, has_bias, ACT_NONE, offset};
    with_and_without_library(s, run_linear, &l);
    test_end_case();
}

// The residual is added before the only rounding. Last, in place.
static void run_residual(stream_t s, void* context) {
    const linear_t* l = (const linear_t*)context;
    size_t N = l->N;
    int C = l->C, OC = l->OC;
    tensor<floatX> x = random_input(N * C), weight = random_input((size_t)OC * C, 0.5), bias = random_input(OC);
    tensor<floatX> residual = random_input(N * OC), out = output(N * OC);
    cpu::matmul_forward(out.ref, x.ref, weight.ref, bias.ref, N, C, OC, 0);
    for (size_t i = 0; i < out.n; i++) out.ref[i] += residual.ref[i];
    matmul_residual_forward(out.dev, x.dev, weight.dev, bias.dev, residual.dev, N, C, OC, s);
    check_tensor("out", out, TOLERANCE_X);
    matmul_residual_forward(residual.dev, x.dev, weight.dev, bias.dev, residual.dev, N, C, OC, s);
    memcpy(residual.ref, out.ref, out.n * sizeof(double));
    check_tensor("in place", residual, TOLERANCE_X);
    free_tensors();
}

static void test_residual(stream_t s, const char* name, size_t N, int C, int OC) {
    if (!test_case(name)) return;
    linear_t l = {N, C, OC, 1, ACT_NONE, 0};
    with_and_without_library(s, run_residual, &l);
    test_end_case();
}

// What is there counts, forward and backward; a sum of few terms, as behind a low-rank matrix; and GELU by itself.
static void run_add(stream_t s, void* context) {
    const linear_t* l = (const linear_t*)context;
    size_t N = l->N;
    int C = l->C, OC = l->OC;
    tensor<floatX> x = random_input(N * C), weight = random_input((size_t)OC * C, 0.5), out = random_input(N * OC);
    tensor<floatX> pre = random_input(N * OC, 2.5), activated = output(N * OC);
    matmul_add_forward(out.dev, x.dev, weight.dev, N, C, OC, s);
    cpu::matmul_add_forward(out.ref, x.ref, weight.ref, N, C, OC, 0);
    check_tensor("out", out, TOLERANCE_X);
    gelu_forward(activated.dev, pre.dev, N * OC, l->act, s);
    cpu::gelu_forward(activated.ref, pre.ref, N * OC, l->act, 0);
    check_tensor("gelu", activated, TOLERANCE_X);
    tensor<floatX> dout = random_input(N * OC), dx = random_input(N * C);
    tensor<float> dweight = random_gradient((size_t)OC * C), dbias = random_gradient(OC);
    matmul_add_backward(dx.dev, dweight.dev, dbias.dev, dout.dev, x.dev, weight.dev, N, C, OC, s);
    cpu::matmul_add_backward(dx.ref, dweight.ref, dbias.ref, dout.ref, x.ref, weight.ref, N, C, OC, 0);
    check_tensor("dx", dx, TOLERANCE_X);
    check_tensor("dweight", dweight, TOLERANCE_S);
    check_tensor("dbias", dbias, TOLERANCE_S);
    free_tensors();
}

static void test_add(stream_t s, const char* name, size_t N, int C, int OC, activation_t act) {
    if (!test_case(name)) return;
    linear_t l = {N, C, OC, 0, act, 0};
    with_and_without_library(s, run_add, &l);
    test_end_case();
}

// `out` is rounded once where the product and GELU are one kernel. Else it is the GELU of a rounded `pre`: two
// roundings, each of about 1.7e-3 as ||error|| / ||value|| with normal values; together still below TOLERANCE_X.
static void run_gelu(stream_t s, void* context) {
    const linear_t* l = (const linear_t*)context;
    size_t N = l->N;
    int C = l->C, OC = l->OC;
    tensor<floatX> x = random_input(N * C), weight = random_input((size_t)OC * C, 1.5 / sqrt(C)),
                   bias = random_input(OC);
    tensor<floatX> out = output(N * OC), pre = output(N * OC);
    matmul_gelu_forward(out.dev, pre.dev, x.dev, weight.dev, l->has_bias ? bias.dev : NULL, N, C, OC, l->act, s);
    cpu::matmul_gelu_forward(out.ref, pre.ref, x.ref, weight.ref, l->has_bias ? bias.ref : NULL, N, C, OC, l->act, 0);
    check_tensor("pre", pre, TOLERANCE_X);
    check_tensor("out", out, TOLERANCE_X);
    free_tensors();
}

static void test_gelu(stream_t s, const char* name, size_t N, int C, int OC, int has_bias, activation_t act) {
    if (!test_case(name)) return;
    linear_t l = {N, C, OC, has_bias, act, 0};
    with_and_without_library(s, run_gelu, &l);
    test_end_case();
}

// From deep in the tail on the left, where gelu' is nearly 0, to the right, where it is nearly 1. Last, in place.
static void run_gelu_backward(stream_t s, void* context) {
    const linear_t* l = (const linear_t*)context;
    size_t n = l->N, at = l->offset;
    tensor<floatX> pre = random_input(n + at, 2.5), dout = random_input(n + at), dpre = output(n + at);
    gelu_backward(dpre.dev + at, dout.dev + at, pre.dev + at, n, l->act, s);
    cpu::gelu_backward(dpre.ref + at, dout.ref + at, pre.ref + at, n, l->act, 0);
    tensor<floatX> result = {n, dpre.ref + at, dpre.dev + at};
    check_tensor("dpre", result, TOLERANCE_X);
    gelu_backward(dout.dev + at, dout.dev + at, pre.dev + at, n, l->act, s);
    result.dev = dout.dev + at;
    check_tensor("dpre in place", result, TOLERANCE_X);
    free_tensors();
}

static void test_gelu_backward(stream_t s, const char* name, size_t n, int offset, activation_t act) {
    if (!test_case(name)) return;
    linear_t l = {n, 0, 0, 0, act, offset};
    for_each_shape(s, run_gelu_backward, &l);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Batched products

static double* batched_reference(const double* d, const double* a, const double* b, matmul_shape_t m, size_t n) {
    double* want = (double*)malloc_check(n * sizeof(double), "a test's tensor");
    memcpy(want, d, n * sizeof(double));
    for (int i = 0; i < m.batch; i++) {
        for (int row = 0; row < m.M; row++) {
            for (int column = 0; column < m.N; column++) {
                double sum = 0;
                for (int k = 0; k < m.K; k++) {
                    size_t left = m.transpose_a ? k * m.lda + row : row * m.lda + k;
                    size_t right = m.transpose_b ? column * m.ldb + k : k * m.ldb + column;
                    sum += a[i * m.stride_a + left] * b[i * m.stride_b + right];
                }
                double* to = &want[i * m.stride_d + row * m.ldd + column];
                *to = m.alpha * sum + (m.beta != 0 ? m.beta * *to : 0);
            }
        }
    }
    return want;
}

// Counts the values between D's rows and matrices that are not what they were; compares the rest.
template <typename T> static void check_batched(const char* what, tensor<T> d, const double* before, double* want,
                                                matmul_shape_t m, double bound) {
    T* host = (T*)malloc_check(d.n * sizeof(T), "a test's tensor");
    copy_to_host(host, d.dev, d.n * sizeof(T), 0);
    double difference = 0, norm = 0;
    int gaps = 0;
    for (size_t at = 0; at < d.n; at++) {
        size_t inside = at % m.stride_d, value_row = inside / m.ldd, value_column = inside % m.ldd;
        double got = (double)(float)host[at];
        if (value_row >= (size_t)m.M || value_column >= (size_t)m.N) {
            gaps += got != before[at];
            continue;
        }
        difference += (got - want[at]) * (got - want[at]);
        norm += want[at] * want[at];
    }
    check_error(what, isfinite(difference) ? sqrt(difference / norm) : INFINITY, bound);
    check(gaps == 0, "what lies between the rows and matrices of D is left alone");
    free(host);
}

static void run_batched(stream_t s, void* context) {
    matmul_shape_t m = *(matmul_shape_t*)context;
    size_t n_a = m.batch * m.stride_a, n_b = m.batch * m.stride_b, n_d = m.batch * m.stride_d;
    tensor<floatX> a = random_input(n_a), b = random_input(n_b), d = random_input(n_d);
    tensor<float> d_float = random_gradient(n_d);
    double* want = batched_reference(d.ref, a.ref, b.ref, m, n_d);
    double* want_float = batched_reference(d_float.ref, a.ref, b.ref, m, n_d);
    if (m.beta == 0) { // D need not be initialised: NaN where the product goes
        float nan = NAN;
        floatX nan_x = (floatX)nan;
        for (int i = 0; i < m.batch; i++) {
            size_t at = i * m.stride_d;
            copy_to_device(d.dev + at, &nan_x, sizeof nan_x, 0);
            copy_to_device(d_float.dev + at, &nan, sizeof nan, 0);
        }
    }
    matmul_batched(d.dev, a.dev, b.dev, m, s);
    matmul_batched_float(d_float.dev, a.dev, b.dev, m, s);
    check_batched("D in floatX", d, d.ref, want, m, TOLERANCE_X);
    check_batched("D in float", d_float, d_float.ref, want_float, m, TOLERANCE_S);
    free(want), free(want_float);
    free_tensors();
}

// All four pairs of transposes, beta 0 and 1; `gap` values behind every row, as many rows and `extra` values behind
// every matrix.
static void test_batched(stream_t s, const char* name, int M, int N, int K, int batch, int gap, int extra) {
    if (!test_case(name)) return;
    for (int i = 0; i < 8; i++) {
        matmul_shape_t m = matmul_shape(M, N, K, i & 1, i >> 1 & 1);
        m.lda += gap, m.ldb += gap, m.ldd += gap;
        m.batch = batch;
        m.stride_a = m.lda * ((m.transpose_a ? K : M) + gap) + extra;
        m.stride_b = m.ldb * ((m.transpose_b ? N : K) + gap) + extra;
        m.stride_d = m.ldd * (M + gap) + extra;
        m.alpha = 0.5f, m.beta = i >> 2 ? 1 : 0;
        with_and_without_library(s, run_batched, &m);
    }
    test_end_case();
}

// One tensor as both operands of every image: scores of an attention, out of (B, T, 3, C).
static void run_scores(stream_t s, void* context) {
    (void)context;
    const int B = 3, T = 21, C = 24;
    tensor<floatX> qkv = random_input((size_t)B * T * 3 * C);
    tensor<float> scores = output_s((size_t)B * T * T);
    matmul_shape_t m = matmul_shape(T, T, C, 0, 1);
    m.lda = m.ldb = 3 * C, m.alpha = 0.25f;
    m.batch = B, m.stride_a = m.stride_b = (size_t)T * 3 * C, m.stride_d = (size_t)T * T;
    matmul_batched_float(scores.dev, qkv.dev, qkv.dev + C, m, s);
    double* want = batched_reference(scores.ref, qkv.ref, qkv.ref + C, m, scores.n);
    memcpy(scores.ref, want, scores.n * sizeof(double));
    check_tensor("scores", scores, TOLERANCE_S);
    free(want);
    free_tensors();
}

// ---------------------------------------------------------------------------------------------------------------------

// Sums of many rows; the second call adds to the first's.
static void run_column_sums(stream_t s, void* context) {
    const linear_t* l = (const linear_t*)context;
    tensor<floatX> x = random_input(l->N * l->C + l->offset, 1, 0.1);
    tensor<float> sums = random_gradient(l->C);
    for (int i = 0; i < 2; i++) {
        add_column_sums(sums.dev, x.dev + l->offset, l->N, l->C, s);
        for (size_t at = 0; at < l->N * l->C; at++) sums.ref[at % l->C] += x.ref[at + l->offset];
    }
    check_tensor("sums", sums, TOLERANCE_S);
    free_tensors();
}

static void test_column_sums(stream_t s, const char* name, size_t N, int C, int offset) {
    if (!test_case(name)) return;
    linear_t l = {N, C, 0, 0, ACT_NONE, offset};
    for_each_shape(s, run_column_sums, &l);
    test_end_case();
}

#ifdef EMU
// A problem is asked for once, whatever its pointers; another shape, epilogue or alignment is another problem.
static void test_cache(stream_t s) {
    if (!test_case("the library is asked once for each problem")) return;
    const int N = 24, C = 16, OC = 32;
    tensor<floatX> x = random_input(2 * N * C), weight = random_input(OC * C + 8), bias = random_input(OC),
                   out = output(N * OC);
    int before = emu_blas_queries;
    matmul_forward(out.dev, x.dev, weight.dev, bias.dev, N, C, OC, s);
    check(emu_blas_queries == before + 1, "the first call asks");
    matmul_forward(out.dev, x.dev, weight.dev, bias.dev, N, C, OC, s);
    matmul_forward(out.dev, x.dev + N * C, weight.dev, bias.dev, N, C, OC, s);
    check(emu_blas_queries == before + 1, "the same problem does not ask again");
    matmul_forward(out.dev, x.dev, weight.dev, NULL, N, C, OC, s);
    check(emu_blas_queries == before + 2, "no bias: another problem");
    matmul_forward(out.dev, x.dev, weight.dev, bias.dev, N - 1, C, OC, s);
    check(emu_blas_queries == before + 3, "fewer rows: another problem");
    matmul_forward(out.dev, x.dev, weight.dev + 4, bias.dev, N, C, OC, s);
    check(emu_blas_queries == before + 4 - (sizeof(floatX) == 4),
          "another alignment (4 bf16 are 8 bytes): another problem");
    matmul_shape_t m = matmul_shape(8, 8, 8, 0, 0);
    before = emu_blas_queries;
    for (int i = 0; i < 3; i++) {
        size_t* ld[3] = {&m.lda, &m.ldb, &m.ldd};
        *ld[i] += 8;
        matmul_batched(out.dev, x.dev, weight.dev, m, s);
    }
    check(emu_blas_queries == before + 3, "another distance between rows: another problem");
    emu_blas_answer = CUBLAS_STATUS_NOT_SUPPORTED;
    matmul_forward(out.dev, x.dev, weight.dev, bias.dev, N - 2, C, OC, s);
    before = emu_blas_queries;
    matmul_forward(out.dev, x.dev, weight.dev, bias.dev, N - 2, C, OC, s);
    check(emu_blas_queries == before, "what the library does not have is not asked for again");
    emu_blas_answer = CUBLAS_STATUS_SUCCESS;
    free_tensors();
    test_end_case();
}

// More problems than the table holds: answers make room for others, and every product is right.
static void test_full_cache(stream_t s) {
    if (!test_case("more problems than the table holds")) return;
    const int N = 1200, C = 8, OC = 8;
    tensor<floatX> x = random_input(N * C), weight = random_input(OC * C), out = output(N * OC);
    cpu::matmul_forward(out.ref, x.ref, weight.ref, NULL, N, C, OC, 0);
    int before = emu_blas_queries;
    for (int n = 1; n <= N; n++) matmul_forward(out.dev, x.dev, weight.dev, NULL, n, C, OC, s);
    check(emu_blas_queries == before + N, "each is asked for");
    check_tensor("out", out, TOLERANCE_X);
    free_tensors();
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// What the library may answer

typedef struct {
    size_t N;
    int C, OC;
    tensor<floatX> x, weight, bias, out, residual;
    tensor<float> dweight;
} product_t;

// The reference takes what the device wrote, as the input of what follows.
static void share_output(tensor<floatX> t) {
    floatS* host = (floatS*)malloc_check(t.n * sizeof(floatS), "a test's tensor");
    copy_floats_to_host(host, t.dev, t.n);
    for (size_t i = 0; i < t.n; i++) t.ref[i] = host[i];
    free(host);
}

static product_t new_product(size_t N, int C, int OC) {
    size_t n = N * OC;
    return {N, C, OC, random_input(N * C), random_input((size_t)OC * C), random_input(OC), output(n), random_input(n),
            random_gradient((size_t)OC * C)};
}

// A product that writes, one that adds to its own output, twice, and a gradient that adds up; all against the
// reference.
static void check_products(product_t p, stream_t s) {
    cpu::matmul_forward(p.out.ref, p.x.ref, p.weight.ref, p.bias.ref, p.N, p.C, p.OC, 0);
    for (int twice = 0; twice < 2; twice++) {
        matmul_forward(p.out.dev, p.x.dev, p.weight.dev, p.bias.dev, p.N, p.C, p.OC, s);
        check_tensor("out", p.out, TOLERANCE_X);
        matmul_residual_forward(p.residual.dev, p.x.dev, p.weight.dev, p.bias.dev, p.residual.dev, p.N, p.C, p.OC, s);
        for (size_t i = 0; i < p.out.n; i++) p.residual.ref[i] += p.out.ref[i];
        check_tensor("residual, in place", p.residual, TOLERANCE_X);
        matmul_backward(NULL, p.dweight.dev, NULL, p.out.dev, p.x.dev, NULL, p.N, p.C, p.OC, s);
        share_output(p.out);
        cpu::matmul_backward(NULL, p.dweight.ref, NULL, p.out.ref, p.x.ref, NULL, p.N, p.C, p.OC, 0);
        check_tensor("dweight", p.dweight, TOLERANCE_S);
    }
}

static int occurrences(const char* text, const char* what) {
    int n = 0;
    for (const char* at = text; (at = strstr(at, what)); at++) n++;
    return n;
}

// Whatever goes wrong in the library, the products are right; what is not to be expected is told once for each product,
// with its shape and the library's own words.
static void test_failures(stream_t s) {
    typedef struct {
        const char* name;
        cublasStatus_t answer;
        int empty;
        unsigned broken;
        const char* words; // NULL: it says nothing
    } failure_t;
    static const failure_t failures[] = {
        {"has no algorithm", CUBLAS_STATUS_NOT_SUPPORTED, 0, 0, NULL},
        {"refuses a value", CUBLAS_STATUS_INVALID_VALUE, 0, 0, "an unsupported value or parameter"},
        {"wants another GPU", CUBLAS_STATUS_ARCH_MISMATCH, 0, 0, "another architecture"},
        {"fails when asked", CUBLAS_STATUS_EXECUTION_FAILED, 0, 0, "failed to launch on the GPU"},
        {"finds nothing", CUBLAS_STATUS_SUCCESS, 1, 0, "it finds no algorithm"},
        {"fails in all its algorithms", CUBLAS_STATUS_SUCCESS, 0, ~0u, NULL},
        {"fails in the first of its algorithms", CUBLAS_STATUS_SUCCESS, 0, 1, NULL},
    };
    for (size_t i = 0; i < 2 * sizeof failures / sizeof *failures; i++) {
        failure_t f = failures[i / 2];
        int in_step = i % 2, survives = in_step && f.broken == 1; // another algorithm takes its place
        char title[120], path[TEMPORARY_PATH];
        snprintf(title, sizeof title, "the library %s%s", f.name, in_step ? ", in a step" : "");
        if (!test_case(title)) continue;
        const char* words = f.words;
        if (f.broken) words = survives ? NULL : in_step ? "none of its algorithms runs" : "failed to launch on the GPU";
        emu_blas_answer = f.answer, emu_blas_empty = f.empty, emu_blas_broken = f.broken;
        forget_products(s);
        algorithms_step(s, in_step);
        int saved = temporary_catch_stderr();
        check_products(new_product(70, 40, 72), s);
        temporary_release_stderr(saved);
        char* said = temporary_read("stderr", NULL);
        check(occurrences(said, "warning: ") == (words ? 3 : 0), "a warning for each product, not for each call");
        check(!words || occurrences(said, words) == 3, "the library's words");
        check(!words || strstr(said, "a product of (70, 40) and (40, 72), batch 1, with bias: "), "its shape");
        check(!words || strstr(said, "30 to 50 times slower"), "what it costs");
        free(said);
        unlink(temporary_path(path, "stderr"));
        emu_blas_answer = CUBLAS_STATUS_SUCCESS, emu_blas_empty = 0, emu_blas_broken = 0;
        forget_products(s);
        free_tensors();
        test_end_case();
    }
}

// An error of a kernel before shows in the library first, and looks like one of its own. Nothing can go on after it.
static stream_t failing_stream;
static void fail_behind_an_error(const char* unused) {
    (void)unused;
    emu_sticky_error = cudaErrorIllegalAddress, emu_blas_broken = ~0u;
    product_t p = new_product(8, 8, 8);
    matmul_forward(p.out.dev, p.x.dev, p.weight.dev, p.bias.dev, p.N, p.C, p.OC, failing_stream);
}
static void test_error_before(stream_t s) {
    if (!test_case("an error of CUDA is none of the library's")) return;
    failing_stream = s;
    int code = temporary_run_child(fail_behind_an_error, "");
    char* said = temporary_read("stderr", NULL);
    check(code == 1 && strstr(said, "illegal memory access"), "it ends the program with its own name");
    check(!strstr(said, "warning"), "and no warning");
    free(said);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Which algorithm

// Products of steps that the library's first algorithm computes.
static int count_first(stream_t s) {
    int n = 0;
    for (int i = 0; i < MATMUL_CACHE_SIZE; i++) {
        const matmul_entry_t* entry = &s->matmul->tables[1].entries[i];
        emu_blas_algo_t taken;
        memcpy(&taken, &entry->algo, sizeof taken);
        n += entry->answer == MATMUL_FOUND && taken.number == 0;
    }
    return n;
}

// The fastest is taken, by what the emulated library says that its algorithms take; it is measured once, and what was
// in D stays there. Outside of steps it is the first, unmeasured.
static void test_fastest(stream_t s) {
    if (!test_case("the fastest algorithm is measured once")) return;
    product_t p = new_product(30, 24, 40);
    forget_products(s);
    algorithms_step(s, 1);
    check_products(p, s);
    int queries = emu_blas_queries, found = 0;
    size_t waits = emu_synchronisations(), allocations = emu_allocations();
    for (int i = 0; i < 3; i++) matmul_forward(p.out.dev, p.x.dev, p.weight.dev, p.bias.dev, p.N, p.C, p.OC, s);
    check(emu_blas_queries == queries && emu_synchronisations() == waits && emu_allocations() == allocations,
          "from then on nothing is asked, waited for or allocated");
    for (int i = 0; i < MATMUL_CACHE_SIZE; i++) {
        const matmul_entry_t* entry = &s->matmul->tables[1].entries[i];
        if (entry->answer != MATMUL_FOUND) continue;
        emu_blas_algo_t taken, other;
        memcpy(&taken, &entry->algo, sizeof taken);
        other = taken;
        for (other.number = 0; other.number < EMU_BLAS_ALGORITHMS; other.number++) {
            check(emu_blas_milliseconds(&taken) <= emu_blas_milliseconds(&other), "no other is faster");
        }
        found++;
    }
    check(found == 3 && count_first(s) == 0, "three products, none by the first algorithm");
    algorithms_step(s, 0);
    waits = emu_synchronisations();
    matmul_forward(p.out.dev, p.x.dev, p.weight.dev, p.bias.dev, p.N, p.C, p.OC, s);
    check(emu_blas_queries == queries + 1 && emu_synchronisations() == waits, "elsewhere it is asked for one");
    const matmul_entry_t* entry = s->matmul->tables[0].entries;
    while (entry->answer != MATMUL_FOUND) entry++;
    emu_blas_algo_t first;
    memcpy(&first, &entry->algo, sizeof first);
    check(first.number == 0, "which is its first");
    forget_products(s);
    free_tensors();
    test_end_case();
}

// Where D is to be put aside and there is no memory, the first algorithm is taken.
static void test_no_memory(stream_t s) {
    if (!test_case("no memory to measure in")) return;
    product_t p = new_product(30, 24, 40);
    forget_products(s);
    algorithms_step(s, 1);
    emu_memory_limit = 1;
    check_products(p, s);
    emu_memory_limit = 0;
    algorithms_step(s, 0);
    check(count_first(s) == 2, "the two that add to D; the other was measured");
    forget_products(s);
    free_tensors();
    test_end_case();
}

// The times of another process, which is twice as fast in what is the slowest here.
static void add_other_process(void* context, double* values, int n) {
    *(int*)context += n == MATMUL_CANDIDATES;
    for (int i = 0; i < n; i++) values[i] += i == 0 ? 0 : 100;
}
static void test_processes(stream_t s) {
    if (!test_case("processes add up their times")) return;
    product_t p = new_product(30, 24, 40);
    int sums = 0;
    forget_products(s);
    matmul_cache(s)->add_up = add_other_process;
    matmul_cache(s)->context = &sums;
    algorithms_step(s, 1);
    check_products(p, s);
    check(sums == 3, "once for each product");
    check(count_first(s) == 3, "the sum decides");
    forget_products(s);
    free_tensors();
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// The file of choices

static size_t measured_waits; // of the products of run_with_file

// A process with this file in its folder: what it writes, after its products; and whether it had to measure.
static char* run_with_file(product_t p, stream_t s) {
    comm_t comm = {};
    comm.size = 1;
    forget_products(s);
    algorithms_open(temporary_folder, &comm, s);
    algorithms_step(s, 1);
    size_t before = emu_synchronisations();
    for (int i = 0; i < 2; i++) matmul_forward(p.out.dev, p.x.dev, p.weight.dev, p.bias.dev, p.N, p.C, p.OC, s);
    matmul_backward(NULL, p.dweight.dev, NULL, p.out.dev, p.x.dev, NULL, p.N, p.C, p.OC, s);
    measured_waits = emu_synchronisations() - before;
    algorithms_step(s, 0);
    algorithms_save(temporary_folder, &comm, s);
    return temporary_read("algorithms.txt", NULL);
}

static void test_file(stream_t s) {
    if (!test_case("choices go on from one process to the next")) return;
    product_t p = new_product(30, 24, 40);
    char* first = run_with_file(p, s);
    check(measured_waits > 0 && occurrences(first, "\n") == 4, "two lines of heading, and one for each product");
    char* second = run_with_file(p, s);
    check(measured_waits == 0 && !strcmp(first, second), "taken as they are");
    // not the fastest, but what the file says
    char* number = strrchr(first, ' ');
    while (number[-1] != ' ') number--; // the last word but one: the algorithm's number
    *number = *number == '0' ? '1' : '0';
    temporary_write("algorithms.txt", first, strlen(first));
    char* third = run_with_file(p, s);
    check(measured_waits == 0 && !strcmp(first, third), "another choice is taken too");
    free(first), free(second), free(third);
    // what cannot be used: another GPU, another format, a damaged line, an algorithm that the library does not take
    char* good = run_with_file(p, s);
    for (int damage = 0; damage < 5; damage++) {
        char* bad = strdup(good);
        if (damage == 0) strstr(bad, "emulator")[0] = 'E';
        if (damage == 1) bad[0] = 'A';
        if (damage == 2) strrchr(bad, ' ')[0] = 'x';
        if (damage == 3) bad[strlen(bad) - 4] = 0;
        if (damage == 4) number = strrchr(bad, ' ') - 1, *number = '9';
        temporary_write("algorithms.txt", bad, strlen(bad));
        char* mended = run_with_file(p, s);
        check(measured_waits > 0 && occurrences(mended, "\n") == 4, "what cannot be used is measured anew");
        free(bad), free(mended);
    }
    free(good);
    forget_products(s);
    free_tensors();
    test_end_case();
}

// One call of each form takes the library's epilogue where it exists.
static void test_fused(stream_t s) {
    if (!test_case("the tanh form is one kernel in bf16")) return;
    const int N = 24, C = 16, OC = 32;
    tensor<floatX> x = random_input(N * C), weight = random_input(OC * C), bias = random_input(OC);
    tensor<floatX> out = output(N * OC), pre = output(N * OC);
    size_t before = emu.launches;
    matmul_gelu_forward(out.dev, pre.dev, x.dev, weight.dev, bias.dev, N, C, OC, ACT_GELU_TANH, s);
    check(emu.launches == before + (sizeof(floatX) == 4), "kernels besides the library's");
    matmul_gelu_forward(out.dev, pre.dev, x.dev, weight.dev, bias.dev, N, C, OC, ACT_GELU, s);
    check(emu.launches == before + 1 + (sizeof(floatX) == 4), "one kernel behind the erf form's product");
    free_tensors();
    test_end_case();
}
#endif

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    test_linear(s, "linear 1 x 1 x 1", 1, 1, 1, 1, 0);
    test_linear(s, "linear, one row", 1, 13, 7, 1, 0);
    test_linear(s, "linear, one channel in, one out", 67, 1, 1, 1, 0);
    test_linear(s, "linear, primes", 37, 13, 23, 1, 0);
    test_linear(s, "linear, no bias", 37, 13, 23, 0, 0);
    test_linear(s, "linear, multiples of 8", 48, 64, 32, 1, 0);
    test_linear(s, "linear, one tile", 64, 64, 64, 1, 0);
    test_linear(s, "linear, several tiles", 130, 72, 136, 1, 0);
    test_linear(s, "linear, more columns than a block of sums has", 70, 24, 264, 1, 0);
    test_linear(s, "linear, more columns, prime", 70, 24, 269, 1, 0);
    test_linear(s, "linear, pointers shifted by one value", 70, 40, 72, 1, 1);
    test_linear(s, "linear, pointers shifted by four values", 33, 40, 24, 1, 4);
    test_residual(s, "linear + residual", 70, 40, 72);
    test_residual(s, "linear + residual, primes", 37, 13, 23);
    test_add(s, "linear added, gelu", 70, 16, 72, ACT_GELU);
    test_add(s, "linear added, gelu tanh, primes", 37, 3, 23, ACT_GELU_TANH);
    test_gelu(s, "linear + gelu", 67, 32, 72, 1, ACT_GELU);
    test_gelu(s, "linear + gelu, primes, no bias", 37, 13, 23, 0, ACT_GELU);
    test_gelu(s, "linear + gelu tanh", 67, 32, 72, 1, ACT_GELU_TANH);
    test_gelu(s, "linear + gelu tanh, no bias", 67, 32, 72, 0, ACT_GELU_TANH);
    test_gelu(s, "linear + gelu tanh, primes", 37, 13, 23, 1, ACT_GELU_TANH);
    test_gelu(s, "linear + quick gelu", 67, 32, 72, 1, ACT_QUICK_GELU);
    test_gelu_backward(s, "gelu', one value", 1, 0, ACT_GELU);
    test_gelu_backward(s, "gelu', several blocks", 3 * 2048, 0, ACT_GELU);
    test_gelu_backward(s, "gelu', prime", 4099, 0, ACT_GELU);
    test_gelu_backward(s, "gelu', shifted by one value", 4096, 1, ACT_GELU);
    test_gelu_backward(s, "quick gelu', prime", 4099, 0, ACT_QUICK_GELU);
    test_gelu_backward(s, "gelu' tanh, several blocks", 3 * 2048, 0, ACT_GELU_TANH);
    test_gelu_backward(s, "gelu' tanh, prime, shifted", 4099, 3, ACT_GELU_TANH);
    test_batched(s, "batched, 1 x 1 x 1", 1, 1, 1, 2, 0, 0);
    test_batched(s, "batched, multiples of 8", 24, 40, 32, 3, 0, 0);
    test_batched(s, "batched, only the matrices are unaligned", 24, 16, 8, 3, 0, 1);
    test_batched(s, "batched, primes with gaps", 29, 19, 37, 3, 5, 0);
    test_batched(s, "batched, several tiles with gaps", 67, 72, 40, 2, 8, 0);
    if (test_case("batched, both operands of one tensor")) {
        with_and_without_library(s, run_scores, NULL);
        test_end_case();
    }
    test_column_sums(s, "column sums, one value", 1, 1, 0);
    test_column_sums(s, "column sums, many rows", 5003, 8, 0);
    test_column_sums(s, "column sums, many rows, prime columns", 3001, 37, 0);
    test_column_sums(s, "column sums, many columns", 9, 1037, 0);
    test_column_sums(s, "column sums, shifted", 300, 264, 1);
#ifdef EMU
    test_cache(s);
    test_full_cache(s);
    test_fused(s);
    temporary_begin();
    test_failures(s);
    test_error_before(s);
    test_fastest(s);
    test_no_memory(s);
    test_processes(s);
    test_file(s);
    temporary_end();
#endif
    device_close(s);
    return test_finish();
}
