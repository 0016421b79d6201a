// Metrics of distributions: linear algebra, moments, Frechet distance, KID, inception score, precision and recall.
// V3 to V6 are vectors whose data tests/vectors.h makes, and whose values numpy, scipy and torch-fidelity's formulas
// give.
#include <omp.h>

// defines: comm_t, comm_open, comm_close, comm_any
#include "common/training/comm.h"
// defines: frechet_distance, frechet_trace, moments_*
#include "common/measures/frechet.h"
// defines: kid_distance, kid_of_rows, manifold_precision_recall, manifold_radii, inception_score_*
#include "common/measures/sample_measures.h"
// defines: temporary_begin, temporary_run_child, temporary_read, temporary_end
#include "tests/temporary.h"
#include "tests/test.h"
// defines: vector_g
#include "tests/vectors.h"

static double* normals(size_t n) {
    double* x = matrix_doubles(n, "random numbers");
    for (size_t i = 0; i < n; i++) x[i] = test_normal();
    return x;
}

static double* poisoned(size_t n) {
    double* x = matrix_doubles(n, "poison");
    for (size_t i = 0; i < n; i++) x[i] = NAN;
    return x;
}

static float* to_float(const double* x, size_t n) {
    float* y = (float*)malloc_check(n * sizeof(float), "features");
    for (size_t i = 0; i < n; i++) y[i] = (float)x[i];
    return y;
}

static feature_set_t set_of(const float* rows, int n, int dim) { // (n, dim)
    feature_set_t set = {rows, n, dim};
    return set;
}

static double off(double got, double want) { return fabs(got - want) / fmax(fabs(want), 1e-300); }

// ------------------------------------------------------------------------------------------------------------------
// Linear algebra

static void test_products(void) {
    if (!test_case("products: of two matrices, and of one with itself, added or not")) return;
    static const int sizes[][3] = {{1, 1, 1},     {2, 4, 8},   {3, 5, 7},    {65, 6, 300},
                                   {64, 67, 256}, {1, 9, 513}, {300, 3, 2}, {260, 513, 31}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int M = sizes[s][0], N = sizes[s][1], K = sizes[s][2], lda = K + 3;
        double *A = normals((size_t)M * K), *B = normals((size_t)N * K), *C = poisoned((size_t)M * N);
        double* want = (double*)calloc_check((size_t)M * N, sizeof(double), "a product");
        for (int i = 0; i < M; i++) {
            for (int j = 0; j < N; j++) {
                for (int k = 0; k < K; k++) want[i * N + j] += A[i * K + k] * B[j * K + k];
            }
        }
        matrix_products(M, N, K, A, B, C);
        check_error("A B'", relative_error_double(C, want, (size_t)M * N), 1e-14);
        double *X = normals((size_t)M * lda), *S = poisoned((size_t)M * M), *both = matrix_doubles((size_t)M * M, "S");
        double* upper = (double*)calloc_check((size_t)M * M, sizeof(double), "a product");
        for (int i = 0; i < M; i++) {
            for (int j = i; j < M; j++) {
                for (int k = 0; k < K; k++) upper[i * M + j] += X[i * lda + k] * X[j * lda + k];
            }
        }
        for (int add = 0; add < 2; add++) { // the second time both products are in S
            matrix_squares(M, K, X, lda, S, add);
            for (int i = 0; i < M * M; i++) both[i] = i % M >= i / M ? S[i] / (1 + add) : 0;
            check_error("A A'", relative_error_double(both, upper, (size_t)M * M), 1e-14);
        }
        free(A), free(B), free(C), free(want), free(X), free(S), free(both), free(upper);
    }
    test_end_case();
}

// A = V diag(values) V^T, V orthogonal, values ascending.
static void check_eigen(int n, const double* A, double scale) {
    double *values = poisoned(n), *vectors = poisoned((size_t)n * n), residual = 0, orthogonal = 0;
    double* upper = poisoned((size_t)n * n); // the other triangle is not read
    for (int i = 0; i < n; i++) memcpy(upper + (size_t)i * n + i, A + (size_t)i * n + i, (n - i) * sizeof(double));
    symmetric_eigen(n, upper, values, vectors);
    free(upper);
    for (int i = 0; i < n; i++) {
        const double* v = vectors + (size_t)i * n;
        if (i) check(values[i] >= values[i - 1], "values ascend");
        for (int j = 0; j < n; j++) {
            orthogonal = fmax(orthogonal, fabs(dot_product(v, vectors + (size_t)j * n, n) - (i == j)));
            residual = fmax(residual, fabs(dot_product(A + (size_t)j * n, v, n) - values[i] * v[j]) / scale);
            if (isnan(v[j]) || isnan(values[i])) residual = NAN;
        }
    }
    check_error("A v - value v", residual, 1e-14);
    check_error("v v' - 1", orthogonal, 1e-14);
    free(values), free(vectors);
}

static void test_eigen(void) {
    if (!test_case("symmetric eigenvectors")) return;
    static const int sizes[] = {1, 2, 3, 4, 17, 64, 65, 130, 400}; // 400: the threads share rows
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int n = sizes[s];
        double* A = normals((size_t)n * n);
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < i; j++) A[i * n + j] = A[j * n + i];
        }
        check_eigen(n, A, 2 * sqrt(n)); // the largest eigenvalue, about
        if (n > 130) {
            free(A);
            continue;
        }
        for (int i = 0; i < n * n; i++) A[i] *= 1e-100;
        check_eigen(n, A, 2e-100 * sqrt(n));
        double* X = normals((size_t)n * (n / 3)); // of rank n / 3
        memset(A, 0, (size_t)n * n * sizeof(double));
        if (n >= 3) matrix_products(n, n, n / 3, X, X, A);
        check_eigen(n, A, n / 3 + 1);
        for (int i = 0; i < n * n; i++) A[i] = i % (n + 1) == 0 ? 3 : 0; // all values equal
        check_eigen(n, A, 3);
        memset(A, 0, (size_t)n * n * sizeof(double));
        check_eigen(n, A, 1);
        free(A), free(X);
    }
    enum { n = 90 }; // the second difference: 2 - 2 cos(pi k / (n + 1))
    double A[n * n] = {0}, values[n], vectors[n * n], want[n];
    for (int i = 0; i < n; i++) {
        A[i * n + i] = 2;
        if (i) A[i * n + i - 1] = A[(i - 1) * n + i] = -1;
        want[i] = 2 - 2 * cos(M_PI * (i + 1) / (n + 1));
    }
    symmetric_eigen(n, A, values, vectors);
    check_error("second difference", relative_error_double(values, want, n), 1e-14);
    test_end_case();
}

// U diag(want) V of orthogonal U, V gives `want` back, which descends.
static void check_singular(int n, const double* want) {
    double *X = normals((size_t)n * n), *U = poisoned((size_t)n * n), *V = poisoned((size_t)n * n);
    double *A = (double*)calloc_check((size_t)n * n, sizeof(double), "A"), *values = poisoned(n);
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < i; j++) X[i * n + j] = X[j * n + i];
    }
    symmetric_eigen(n, X, values, U);
    for (int i = 0; i < n * n; i++) X[i] = (i % 7 + 1) * X[i] * X[i];
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < i; j++) X[i * n + j] = X[j * n + i];
    }
    symmetric_eigen(n, X, values, V);
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < n; k++) U[i * n + k] *= want[k];
    }
    matrix_products(n, n, n, U, V, A);
    for (int i = 0; i < n; i++) values[i] = NAN;
    singular_values(n, A, values);
    double worst = 0;
    for (int k = 0; k < n; k++) {
        worst = fmax(worst, fabs(values[k] - want[k]) / fmax(want[0], 1e-300));
        if (!(values[k] >= 0) || (k && !(values[k] <= values[k - 1]))) worst = NAN;
    }
    check_error("singular values", worst, 1e-14);
    free(X), free(U), free(V), free(A), free(values);
}

static void test_singular(void) {
    if (!test_case("singular values")) return;
    static const int sizes[] = {1, 2, 3, 5, 33, 129, 400};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int n = sizes[s];
        double* want = matrix_doubles(n, "values");
        for (int k = 0; k < n; k++) want[k] = n - k;
        check_singular(n, want);
        if (n > 129) {
            free(want);
            continue;
        }
        for (int k = 0; k < n; k++) want[k] = 1e80 * pow(10, -0.3 * k); // down to nothing beside the first
        check_singular(n, want);
        for (int k = 0; k < n; k++) want[k] = k < (n + 1) / 3; // equal ones, and zeros
        check_singular(n, want);
        for (int k = 0; k < n; k++) want[k] = 0;
        check_singular(n, want);
        free(want);
    }
    test_end_case();
}

// ------------------------------------------------------------------------------------------------------------------
// Moments and Frechet distance

enum { D3 = 16, N3 = 200 };

static void vector_v3(double* X, double* Y) { // (N3, D3)
    for (int i = 0; i < N3; i++) {
        for (int j = 0; j < D3; j++) {
            X[i * D3 + j] = vector_g(1, 16 * i + j) * (1 + .1 * j) + .05 * j;
            Y[i * D3 + j] = vector_g(2, 16 * i + j) * (1.2 - .04 * j) + .05 * j + .2;
        }
    }
}

// A set's statistics.
typedef struct { double *mean, *covariance; } statistics_t;

static void add_rows(moments_t* m, const double* x, int n) { // (n, dim)
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < m->dim; j++) moments_put(m, j, x[(size_t)i * m->dim + j]);
        moments_row_complete(m);
    }
}

static statistics_t statistics_of(const double* x, int n, int dim) { // (n, dim)
    statistics_t s = {poisoned(dim), poisoned((size_t)dim * dim)};
    moments_t m;
    moments_open(&m, dim);
    add_rows(&m, x, n);
    moments_read(&m, s.mean, s.covariance);
    moments_free(&m);
    return s;
}
static void statistics_free(statistics_t s) { free(s.mean), free(s.covariance); }

static double frechet_of(const double* x, int nx, const double* y, int ny, int dim) {
    statistics_t a = statistics_of(x, nx, dim), b = statistics_of(y, ny, dim);
    double distance = frechet_distance(dim, a.mean, a.covariance, b.mean, b.covariance);
    statistics_free(a), statistics_free(b);
    return distance;
}

static void test_moments(void) {
    if (!test_case("moments: two passes, batches of any size, any order, means far from 0")) return;
    enum { n = 2500, dim = 37 };
    double *x = normals((size_t)n * dim), *mean = matrix_doubles(dim, "mu");
    double *covariance = matrix_doubles(dim * dim, "S"), *got_mean = poisoned(dim), *got = poisoned(dim * dim);
    for (int i = 0; i < n * dim; i++) x[i] = (float)(x[i] * (1 + i % dim) + 1000 * (i % dim));
    for (int j = 0; j < dim; j++) {
        mean[j] = 0;
        for (int i = 0; i < n; i++) mean[j] += x[i * dim + j] / (double)n;
    }
    for (int p = 0; p < dim * dim; p++) {
        covariance[p] = 0;
        for (int i = 0; i < n; i++)
            covariance[p] += (x[i * dim + p / dim] - mean[p / dim]) * (x[i * dim + p % dim] - mean[p % dim]) / (n - 1);
    }
    statistics_t one = statistics_of(x, n, dim);
    check_error("mean", relative_error_double(one.mean, mean, dim), 1e-14);
    check_error("covariance", relative_error_double(one.covariance, covariance, dim * dim), 1e-12);
    float* rows = to_float(x, (size_t)n * dim);
    static const int batches[] = {1, 3, 100, MOMENTS_ROWS, MOMENTS_ROWS + 1, n - 1};
    for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
        moments_t m;
        moments_open(&m, dim);
        for (int i = 0; i < n; i += batches[b])
            moments_add(&m, rows + (size_t)i * dim, n - i < batches[b] ? n - i : batches[b]);
        check(m.n + m.waiting == (double)n, "rows are counted");
        moments_read(&m, got_mean, got);
        check(!memcmp(got_mean, one.mean, dim * sizeof(double)), "means are the same bits");
        check(!memcmp(got, one.covariance, dim * dim * sizeof(double)), "covariances are the same bits");
        moments_free(&m);
    }
    for (int i = 0; i < n / 2 * dim; i++) { // rows from last to first
        int to = (n - 1 - i / dim) * dim + i % dim;
        double swap = x[i];
        x[i] = x[to], x[to] = swap;
    }
    statistics_t other = statistics_of(x, n, dim);
    check_error("mean of another order", relative_error_double(other.mean, one.mean, dim), 1e-14);
    check_error("covariance of another order", relative_error_double(other.covariance, one.covariance, dim * dim),
                1e-12);
    statistics_free(one), statistics_free(other);
    free(x), free(mean), free(covariance), free(got_mean), free(got), free(rows);
    test_end_case();
}

static void test_moments_blocks(void) {
    if (!test_case("moments: several blocks of dimensions, reading in between, two rows, one dimension")) return;
    enum { n = 300, dim = 517 };
    double* x = normals((size_t)n * dim);
    moments_t m;
    statistics_t half = {poisoned(dim), poisoned((size_t)dim * dim)};
    statistics_t full = {poisoned(dim), poisoned((size_t)dim * dim)};
    moments_open(&m, dim);
    add_rows(&m, x, 2);
    moments_read(&m, half.mean, half.covariance);
    check_error("2 rows", off(half.covariance[1], (x[0] - x[dim]) * (x[1] - x[dim + 1]) / 2), 1e-13);
    add_rows(&m, x + 2 * dim, n - 2);
    moments_read(&m, full.mean, full.covariance);
    statistics_t once = statistics_of(x, n, dim);
    check_error("mean", relative_error_double(full.mean, once.mean, dim), 1e-13);
    check_error("covariance", relative_error_double(full.covariance, once.covariance, (size_t)dim * dim), 1e-13);
    int i = dim - 1, j = 3;
    double sum = 0;
    for (int r = 0; r < n; r++) sum += (x[r * dim + i] - once.mean[i]) * (x[r * dim + j] - once.mean[j]);
    check_error("one of them", off(once.covariance[(size_t)i * dim + j], sum / (n - 1)), 1e-12);
    check(once.covariance[(size_t)i * dim + j] == once.covariance[(size_t)j * dim + i], "symmetry");
    moments_free(&m);
    statistics_free(half), statistics_free(full), statistics_free(once);
    enum { constants = 60 }; // features that never vary
    double still[601 * constants];
    for (int p = 0; p < 601 * constants; p++) still[p] = p < constants ? 10 * test_normal() : still[p - constants];
    once = statistics_of(still, 601, constants);
    for (int p = 0; p < constants; p++) {
        double variance = once.covariance[(constants + 1) * p];
        check(variance >= 0 && variance < 1e-24, "a variance of 0");
    }
    statistics_free(once);
    double line[3] = {1, 2, 4};
    statistics_t s = statistics_of(line, 3, 1);
    check_error("variance of 1, 2, 4", off(s.covariance[0], 7.0 / 3), 1e-15);
    statistics_free(s);
    free(x);
    test_end_case();
}

static void test_v3(void) {
    if (!test_case("V3: moments and FID")) return;
    double X[N3 * D3], Y[N3 * D3], trace1 = 0, trace2 = 0, means = 0;
    vector_v3(X, Y);
    statistics_t a = statistics_of(X, N3, D3), b = statistics_of(Y, N3, D3);
    for (int j = 0; j < D3; j++) {
        trace1 += a.covariance[j * (D3 + 1)], trace2 += b.covariance[j * (D3 + 1)];
        means += (a.mean[j] - b.mean[j]) * (a.mean[j] - b.mean[j]);
    }
    check_error("mu1[0]", off(a.mean[0], -.004972904914579), 1e-12); // digits printed
    check_error("mu1[15]", off(a.mean[15], .753011544035741), 1e-14);
    check_error("S1[0][1]", off(a.covariance[1], -.138494040245760), 1e-14);
    check_error("tr S1", off(trace1, 50.8548255976196), 1e-14);
    check_error("tr S2", off(trace2, 14.2309398717138), 1e-14);
    check_error("|mu1 - mu2|^2", off(means, .649499977998668), 1e-14);
    check_error("tr sqrt", off(frechet_trace(D3, a.covariance, b.covariance), 23.4300991565365), 1e-14);
    check_error("FID", off(frechet_of(X, N3, Y, N3, D3), 18.8750671342590), 1e-14);
    // eigenvalues that should be 0 are 1e-15 of the largest, and their roots count: which 1e-7 it is depends on the
    // library
    check_error("FID of few rows", fabs(frechet_of(X, 10, Y, 12, D3) - 37.80456278), 1e-6);
    statistics_free(a), statistics_free(b);
    test_end_case();
}

// tr (S1 S2)^(1/2) is also the sum of the singular values of Xc Yc^T / sqrt((n1 - 1)(n2 - 1)), whatever the ranks.
static double trace_of_rows(const double* x, int nx, const double* y, int ny, int dim) {
    int n = nx > ny ? nx : ny;
    double* A = (double*)calloc_check((size_t)n * n, sizeof(double), "a product");
    double *values = matrix_doubles(n, "values"), sum = 0;
    statistics_t a = statistics_of(x, nx, dim), b = statistics_of(y, ny, dim);
    for (int i = 0; i < nx; i++) {
        for (int j = 0; j < ny; j++) {
            for (int k = 0; k < dim; k++) A[i * n + j] += (x[i * dim + k] - a.mean[k]) * (y[j * dim + k] - b.mean[k]);
            A[i * n + j] /= sqrt((nx - 1.0) * (ny - 1));
        }
    }
    singular_values(n, A, values);
    for (int i = 0; i < n; i++) sum += values[i];
    statistics_free(a), statistics_free(b);
    free(A), free(values);
    return sum;
}

static void test_frechet_rank(void) {
    if (!test_case("Frechet: fewer rows than dimensions, beside an exact evaluation")) return;
    static const int sizes[][3] = {{2, 2, 5}, {3, 40, 20}, {20, 30, 64}, {50, 9, 64}, {60, 60, 7}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int nx = sizes[s][0], ny = sizes[s][1], dim = sizes[s][2];
        double *x = normals((size_t)nx * dim), *y = normals((size_t)ny * dim);
        statistics_t a = statistics_of(x, nx, dim), b = statistics_of(y, ny, dim);
        double exact = trace_of_rows(x, nx, y, ny, dim);
        // an eigenvalue of 0 is known to 1e-16, so that its root is known to 1e-8
        check_error("trace", off(frechet_trace(dim, a.covariance, b.covariance), exact), nx > dim ? 1e-13 : 3e-7);
        statistics_free(a), statistics_free(b);
        free(x), free(y);
    }
    test_end_case();
}

static void test_frechet_identities(void) {
    if (!test_case("Frechet: itself, symmetry, shift, rotation, scale, diagonals")) return;
    double X[N3 * D3], Y[N3 * D3], U[D3 * D3], S[D3 * D3] = {0}, values[D3], moved[N3 * D3], X2[N3 * D3], Y2[N3 * D3];
    vector_v3(X, Y);
    double fid = frechet_of(X, N3, Y, N3, D3);
    check(fabs(frechet_of(X, N3, X, N3, D3)) < 1e-12, "FID of a set with itself");
    check(fabs(frechet_of(X, 10, X, 10, D3)) < 1e-12, "FID of a small set with itself");
    check_error("symmetry", off(frechet_of(Y, N3, X, N3, D3), fid), 1e-13);
    for (int i = 0; i < N3 * D3; i++) moved[i] = X[i] + .5;
    check_error("shift", off(frechet_of(moved, N3, X, N3, D3), D3 / 4), 1e-12);
    matrix_squares(D3, N3, X, N3, S, 0);
    symmetric_eigen(D3, S, values, U); // some rotation
    matrix_products(N3, D3, D3, X, U, X2);
    matrix_products(N3, D3, D3, Y, U, Y2);
    for (int i = 0; i < N3 * D3; i++) X2[i] = 3 * X2[i] + 7, Y2[i] = 3 * Y2[i] + 7;
    check_error("rotation, scale and shift of both", off(frechet_of(X2, N3, Y2, N3, D3), 9 * fid), 1e-12);
    double m1[3] = {0}, m2[3] = {1, 1, 1}, s1[9] = {1, 0, 0, 0, 4, 0, 0, 0, 9}, s2[9] = {4, 0, 0, 0, 4, 0, 0, 0, 1};
    check_error("diagonals", off(frechet_distance(3, m1, s1, m2, s2), 8), 1e-15);
    double zero[9] = {0};
    check_error("against a point", off(frechet_distance(3, m1, s1, m2, zero), 17), 1e-15);
    check_error("one dimension", off(frechet_distance(1, m1, s1 + 4, m2, s1), 2), 1e-15);
    test_end_case();
}

// ------------------------------------------------------------------------------------------------------------------
// KID

static void test_kid(void) {
    if (!test_case("V4: KID")) return;
    double X[N3 * D3], Y[N3 * D3], value[4], mean = 0, variance = 0;
    vector_v3(X, Y);
    check_error("X, Y", off(kid_of_rows(X, Y, N3, D3), 1.837471643861), 1e-12); // digits printed
    check_error("X, X", off(kid_of_rows(X, X, N3, D3), -.993084793133981), 1e-13);
    check_error("halves", off(kid_of_rows(X, X + N3 / 2 * D3, N3 / 2, D3), -.344747884582300), 1e-11); // cancels
    for (int b = 0; b < 4; b++) mean += (value[b] = kid_of_rows(X + b * 50 * D3, Y + b * 50 * D3, 50, D3)) / 4;
    for (int b = 0; b < 4; b++) variance += (value[b] - mean) * (value[b] - mean) / 4;
    check_error("mean of blocks", off(mean, 1.91215634680364), 1e-13);
    check_error("deviation of blocks", off(sqrt(variance), .197751883885606), 1e-12);
    test_end_case();
}

static void test_kid_subsets(void) {
    if (!test_case("KID of subsets: drawn without replacement, seeds, threads, small sets, no bias")) return;
    double X[N3 * D3], Y[N3 * D3];
    vector_v3(X, Y);
    float *x = to_float(X, N3 * D3), *y = to_float(Y, N3 * D3);
    for (int i = 0; i < N3 * D3; i++) X[i] = x[i], Y[i] = y[i];
    feature_set_t a = set_of(x, N3, D3), b = set_of(y, N3, D3);
    kid_t all = kid_distance(a, b, 3, N3, 1, NULL); // a subset of all rows is all rows
    check_error("all rows", off(all.mean, kid_of_rows(X, Y, N3, D3)), 1e-12);
    check(all.deviation < 1e-12 && all.size == N3 && all.subsets == 3, "all subsets of all rows are equal");
    kid_t some = kid_distance(a, b, 60, 50, KID_SEED, NULL), other = kid_distance(a, b, 60, 50, 1, NULL);
    check(fabs(some.mean - all.mean) < 4 * some.deviation / sqrt(60), "subsets scatter around the value of all");
    check(some.mean != other.mean && some.deviation > .05 && some.deviation < .5, "another seed draws others");
    omp_set_num_threads(3);
    kid_t threads = kid_distance(a, b, 60, 50, KID_SEED, NULL);
    omp_set_num_threads(1);
    check(threads.mean == some.mean && threads.deviation == some.deviation, "threads do not matter");
    feature_set_t few_a = set_of(x, 50, D3), few_b = set_of(y, 50, D3);
    check(kid_distance(few_a, b, 20, 50, 1, NULL).deviation > .01, "each subset has other rows of the second set");
    check(kid_distance(a, few_b, 20, 50, 1, NULL).deviation > .01, "each subset has other rows of the first set");
    kid_t halves = kid_distance(set_of(x, N3 / 2, D3), set_of(x + N3 / 2 * D3, N3 / 2, D3), 100, 50, 1, NULL);
    check(fabs(halves.mean) < 2 * halves.deviation + .4, "halves of a set are alike");
    double same = 0;
    for (int s = 0; s < 50; s++) { // pairs of rows: each row as often as any other
        double rows[2 * D3];
        kid_draw(rows, 2, set_of(x, 5, D3), 7, s);
        same += !memcmp(rows, rows + D3, sizeof rows / 2);
    }
    check(same == 0, "the rows of a subset differ");
    free(x), free(y);
    test_end_case();
}

// ------------------------------------------------------------------------------------------------------------------
// Inception score

static inception_score_result_t score_v5(int block, int seed) { // seed: another order of adding
    enum { n = 1000, C = 50 };
    inception_score_t s;
    inception_score_open(&s, n, block, C);
    for (int k = 0; k < n; k++) {
        int i = seed ? (int)random_permute(seed, 0, 0, k, n) : k;
        double row[C];
        for (int c = 0; c < C; c++) row[c] = 3 * vector_g(3, 50 * i + c) + (seed ? 100 : 0); // softmax does not mind
        inception_score_add_row(&s, i, row);
    }
    inception_score_result_t result = inception_score_read(&s, n);
    inception_score_free(&s);
    return result;
}

static void test_inception_score(void) {
    if (!test_case("V5: inception score")) return;
    inception_score_result_t hundreds = score_v5(100, 0), shuffled = score_v5(100, 9), uneven = score_v5(600, 0);
    check_error("blocks", off(hundreds.mean, 7.51936287481917), 1e-14);
    check_error("deviation", off(hundreds.deviation, .334401377190758), 1e-12);
    check_error("whole", off(hundreds.whole, 8.03055887715708), 1e-14);
    check_error("whole as a block", off(score_v5(1000, 0).mean, 8.03055887715708), 1e-14);
    check_error("larger block", off(score_v5(5000, 0).mean, 8.03055887715708), 1e-14);
    check_error("any order", off(shuffled.mean, hundreds.mean), 1e-13);
    check_error("short last block", off(uneven.whole, hundreds.whole), 1e-13);
    test_end_case();
}

static double score_of(const float* logits, int n, int classes, int batch) {
    inception_score_t s;
    inception_score_open(&s, n, n, classes);
    for (int i = 0; i < n; i += batch)
        inception_score_add(&s, i, logits + (size_t)i * classes, n - i < batch ? n - i : batch);
    double mean = inception_score_read(&s, n).mean;
    inception_score_free(&s);
    return mean;
}

static void test_inception_score_limits(void) {
    if (!test_case("inception score: rows all equal, certain classes, batches")) return;
    enum { n = 60, C = 12 };
    float equal[n * C], certain[n * C], third[n * C], some[n * C];
    for (int i = 0; i < n * C; i++) {
        equal[i] = (float)vector_g(1, i % C);
        certain[i] = i % C == i / C % C ? 1e4f : -1e4f;
        third[i] = i % C == i / C % (C / 3) ? 1e4f : -1e4f;
        some[i] = (float)test_normal();
    }
    check_error("classes that never come", off(score_of(third, n, C, 60), C / 3), 1e-14);
    check_error("equal rows", off(score_of(equal, n, C, 7), 1), 1e-14);
    check_error("one class each", off(score_of(certain, n, C, 60), C), 1e-14);
    double score = score_of(some, n, C, 60);
    check(score > 1 && score < (double)C, "between 1 and the number of classes");
    check(score_of(some, n, C, 1) == score && score_of(some, n, C, 13) == score, "batches do not matter");
    int shuffled[n], sorted[n];
    for (int i = 0; i < n; i++) shuffled[i] = i % C, sorted[i] = i / 5;
    inception_score_check_order(shuffled, n, 20);
    inception_score_check_order(sorted, n, 60); // one block
    inception_score_check_order(sorted, 0, 20);
    test_end_case();
}

// ------------------------------------------------------------------------------------------------------------------
// Precision and recall

static void test_manifold_v6(void) {
    if (!test_case("V6: precision and recall")) return;
    enum { n = 300, dim = 8 };
    float real[n * dim], generated[n * dim];
    double radius[n];
    for (int i = 0; i < n * dim; i++) real[i] = (float)vector_g(4, i), generated[i] = (float)(.8 * vector_g(5, i) + .1);
    manifold_t m = manifold_precision_recall(set_of(real, n, dim), set_of(generated, n, dim), MANIFOLD_K, 0, NULL);
    check(m.precision == 286. / 300, "precision is 286 of 300");
    check(m.recall == 207. / 300, "recall is 207 of 300");
    manifold_radii(set_of(real, n, dim), MANIFOLD_K, NEAR_BY_DISTANCE, radius, NULL);
    check_error("radius, real", off(radius[0], 4.749215533787), 1e-7); // features are float32
    manifold_radii(set_of(generated, n, dim), MANIFOLD_K, NEAR_BY_DISTANCE, radius, NULL);
    check_error("radius, generated", off(radius[0], 1.578216518764), 1e-7);
    test_end_case();
}

static int compare_descending(const void* a, const void* b) { return compare_doubles(b, a); }

// The definition, with differences in place of the three products.
static double distance_plain(const float* a, const float* b, int dim) {
    double sum = 0;
    for (int c = 0; c < dim; c++) sum += ((double)a[c] - b[c]) * ((double)a[c] - b[c]);
    return sum;
}
static void radii_plain(const float* x, int n, int dim, int k, double* radius) {
    double* d = matrix_doubles(n, "distances");
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) d[j] = distance_plain(x + (size_t)i * dim, x + (size_t)j * dim, dim);
        qsort(d, n, sizeof(double), compare_descending);
        radius[i] = d[n - 1 - k];
    }
    free(d);
}
static double share_plain(const float* points, int n, const float* centres, const double* radius, int m, int dim) {
    int inside = 0;
    for (int i = 0; i < n; i++) {
        int found = 0;
        for (int j = 0; j < m && !found; j++)
            found = distance_plain(points + (size_t)i * dim, centres + (size_t)j * dim, dim) <= radius[j];
        inside += found;
    }
    return (double)inside / n;
}

static void test_manifold_tiles(void) {
    if (!test_case("precision and recall: several tiles, sets of unlike size, k, threads")) return;
    enum { n = 2 * PAIR_TILE + 3, m = PAIR_TILE + 70, dim = 5 };
    double *a = normals(n * dim), *b = normals(m * dim), *got = poisoned(n), *ra = poisoned(n), *rb = poisoned(m);
    for (int i = 0; i < m * dim; i++) b[i] = .7 * b[i] + 1;
    float *x = to_float(a, n * dim), *y = to_float(b, m * dim);
    for (int k = 1; k <= 5; k += 2) {
        radii_plain(x, n, dim, k, ra);
        radii_plain(y, m, dim, k, rb);
        omp_set_num_threads(3);
        manifold_radii(set_of(x, n, dim), k, NEAR_BY_DISTANCE, got, NULL);
        manifold_t p = manifold_precision_recall(set_of(x, n, dim), set_of(y, m, dim), k, 0, NULL);
        omp_set_num_threads(1);
        check_error("radii", relative_error_double(got, ra, n), 1e-13);
        check(p.precision == share_plain(y, m, x, ra, n, dim), "precision");
        check(p.recall == share_plain(x, n, y, rb, m, dim), "recall");
        manifold_t swapped = manifold_precision_recall(set_of(y, m, dim), set_of(x, n, dim), k, 0, NULL);
        check(swapped.precision == p.recall && swapped.recall == p.precision, "exchanged sets");
        check(p.precision > 0 && p.precision < 1 && p.recall > 0 && p.recall < 1, "the case says something");
    }
    free(a), free(b), free(got), free(ra), free(rb), free(x), free(y);
    test_end_case();
}

static void test_manifold_limits(void) {
    if (!test_case("precision and recall: one set twice, far sets, copies, half precision")) return;
    enum { n = 301, dim = 11, wide = 200, few = 7 };
    double* a = normals(n * dim);
    float *x = to_float(a, n * dim), *far = to_float(a, n * dim), copies[n * dim];
    for (int i = 0; i < n * dim; i++) far[i] += 100;
    for (int half = 0; half < 2; half++) {
        manifold_t same = manifold_precision_recall(set_of(x, n, dim), set_of(x, n, dim), 3, half, NULL);
        check(same.precision == 1 && same.recall == 1, "a set against itself");
        manifold_t none = manifold_precision_recall(set_of(x, n, dim), set_of(far, n, dim), 3, half, NULL);
        check(none.precision == 0 && none.recall == 0, "far sets");
    }
    double* b = normals(n * wide); // images that are there 43 times: all radii are 0
    float* repeated = to_float(b, n * wide);
    for (int i = 0; i < n * wide; i++) repeated[i] = repeated[i % (few * wide)] * 50;
    manifold_t copied = manifold_precision_recall(set_of(repeated, n, wide), set_of(repeated, n / 2, wide), 3, 0, NULL);
    check(copied.precision == 1 && copied.recall == 1, "copies lie in each other's balls");
    free(b), free(repeated);
    manifold_t least = manifold_precision_recall(set_of(x, 4, dim), set_of(x, 4, dim), 3, 0, NULL);
    check(least.precision == 1 && least.recall == 1, "four images");
    static const double table[][2] = {
        {1 / 3., 0.333251953125}, {65519, 65504}, {65520, INFINITY}, {-65520, -INFINITY}, {0x1p-25, 0},
        {0x3p-25, 0x1p-23}, {0x1.01p-24, 0x1p-24}, {2049, 2048}, {2051, 2052}, {-2051, -2052}, {0, 0}, {1, 1},
        {0x1.ff8p-15, 0x1.ff8p-15}, {0x1.ffcp-15, 0x1p-14}, {0x1.fffp-15, 0x1p-14}, {0x1p-14, 0x1p-14}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        check(half_precision(table[i][0]) == table[i][1], "rounding to half precision");
    for (int i = 0; i < n * dim; i++) far[i] = x[i] * 200 + 150 * (float)test_normal(), copies[i] = x[i] * 200;
    manifold_t overflow = manifold_precision_recall(set_of(copies, n, dim), set_of(far, n, dim), 3, 1, NULL);
    manifold_t exact = manifold_precision_recall(set_of(copies, n, dim), set_of(far, n, dim), 3, 0, NULL);
    check(overflow.precision == exact.precision && overflow.recall == exact.recall, "overflow is computed exactly");
    check(exact.precision > 0 && exact.precision < 1 && exact.recall > 0, "the case says something");
    free(a), free(x), free(far);
    test_end_case();
}

// ------------------------------------------------------------------------------------------------------------------
// Wrong inputs, and several ranks

static void refuse(const char* m) {
    float x[64] = {0};
    double d[64] = {0}, s[16] = {0};
    int labels[64];
    feature_set_t five = set_of(x, 5, 2), eight = set_of(x, 8, 2);
    moments_t moments;
    inception_score_t score;
    omp_set_num_threads(1);
    moments_open(&moments, 4);
    inception_score_open(&score, 8, 4, 4);
    for (int i = 0; i < 64; i++) labels[i] = i / 8;
    if (!strcmp(m, "0 dimensions")) moments_open(&moments, 0);
    if (!strcmp(m, "feature 2 of row 3 is nan")) x[14] = NAN, moments_add(&moments, x, 5);
    if (!strcmp(m, "at least two images; there are 1")) moments_add(&moments, x, 1), moments_read(&moments, d, s);
    if (!strcmp(m, "second set's statistics: mean 1")) d[1] = INFINITY, frechet_distance(2, s, s, d, s);
    if (!strcmp(m, "first set's statistics: variance 1 is -1")) d[3] = -1, frechet_distance(2, s, d, s, s);
    if (!strcmp(m, "is not symmetric: 0 in row 1, column 0, but 0.5"))
        d[0] = d[3] = 1, d[1] = .5, frechet_distance(2, s, d, s, s);
    if (!strcmp(m, "in row 1, column 1")) d[3] = NAN, symmetric_eigen(2, d, s, s + 4);
    if (!strcmp(m, "at least two images in each set; there are 5 and 1"))
        kid_distance(five, set_of(x, 1, 2), 3, 4, 1, NULL);
    if (!strcmp(m, "at least one subset")) kid_distance(five, five, 0, 4, 1, NULL);
    if (!strcmp(m, "image 8 for an inception score of 8")) inception_score_add_row(&score, 8, d);
    if (!strcmp(m, "logit 1 of image 0 is inf")) d[1] = INFINITY, inception_score_add_row(&score, 0, d);
    if (!strcmp(m, "the inception score has 5 images in place of 8"))
        inception_score_add(&score, 0, x, 5), inception_score_read(&score, 8);
    if (!strcmp(m, "stored class by class")) inception_score_check_order(labels, 64, 20);
    if (!strcmp(m, "label 2 is -1")) labels[2] = -1, inception_score_check_order(labels, 64, 20);
    if (!strcmp(m, "0 images of 4 classes")) inception_score_open(&score, 0, 4, 4);
    if (!strcmp(m, "3 real and 8 generated")) manifold_precision_recall(set_of(x, 3, 2), eight, 3, 0, NULL);
    if (!strcmp(m, "k = 0")) manifold_precision_recall(eight, eight, 0, 0, NULL);
    if (!strcmp(m, "feature 1 of image 2 of the real set"))
        x[37] = INFINITY, manifold_precision_recall(set_of(x + 32, 8, 2), eight, 3, 0, NULL);
    if (!strcmp(m, "the subsets have 5 images, not 9")) kid_distance(five, eight, 3, 9, 1, NULL), exit(1); // warns
}

static void test_refusals(void) {
    static const char* messages[] = {"0 dimensions", "feature 2 of row 3 is nan", "at least two images; there are 1",
        "second set's statistics: mean 1", "first set's statistics: variance 1 is -1",
        "is not symmetric: 0 in row 1, column 0, but 0.5", "in row 1, column 1",
        "at least two images in each set; there are 5 and 1", "at least one subset",
        "image 8 for an inception score of 8", "logit 1 of image 0 is inf",
        "the inception score has 5 images in place of 8", "stored class by class", "label 2 is -1",
        "0 images of 4 classes", "3 real and 8 generated", "k = 0", "feature 1 of image 2 of the real set",
        "the subsets have 5 images, not 9"};
    if (!test_case("what cannot be computed is refused")) return;
    temporary_begin();
    for (size_t i = 0; i < sizeof messages / sizeof *messages; i++) {
        check(temporary_run_child(refuse, messages[i]) == 1, messages[i]);
        char* text = temporary_read("stderr", NULL);
        check(text && strstr(text, messages[i]), messages[i]);
        free(text);
    }
    temporary_end();
    test_end_case();
}

// KID, precision and recall, whose subsets and tiles several ranks share.
static int rank_agrees_on_pairs(comm_t* c) {
    enum { dim = 6, n = PAIR_TILE + 200, m = PAIR_TILE + 9 };
    float* x = (float*)malloc_check((n + m) * dim * sizeof(float), "features");
    for (int i = 0; i < (n + m) * dim; i++) x[i] = (float)(vector_g(4, i) + (i < n * dim ? 0 : .3));
    feature_set_t a = set_of(x, n, dim), b = set_of(x + n * dim, m, dim);
    kid_t kid = kid_distance(a, b, 7, 100, 1, c), kid_alone = kid_distance(a, b, 7, 100, 1, NULL);
    manifold_t found = manifold_precision_recall(a, b, 3, 0, c), alone = manifold_precision_recall(a, b, 3, 0, NULL);
    free(x);
    int agrees = kid.mean == kid_alone.mean && kid.deviation == kid_alone.deviation;
    agrees &= found.precision == alone.precision && found.recall == alone.recall;
    if (!agrees) printf("rank %d: %g %g %g\n", c->rank, kid.mean, found.precision, found.recall);
    return agrees && alone.precision > 0 && alone.precision < 1 && alone.recall > 0 && alone.recall < 1;
}

// One of several ranks: rows are dealt out, the last rank gets none. Returns whether all ranks have the sums of one.
static int rank_agrees(comm_t* c) {
    enum { dim = D3, C = 8, n = N3 };
    double X[N3 * D3], Y[N3 * D3], logits[C];
    statistics_t got = {poisoned(dim), poisoned(dim * dim)};
    moments_t m;
    inception_score_t s;
    vector_v3(X, Y);
    for (int i = 0; i < n * dim; i++) X[i] += 100;
    moments_open(&m, dim);
    inception_score_open(&s, n, 64, C);
    for (int i = 0; i < n; i++) {
        if (i % (c->size - 1) != c->rank) continue;
        add_rows(&m, X + i * dim, 1);
        memcpy(logits, Y + i * dim, sizeof logits);
        inception_score_add_row(&s, i, logits);
    }
    moments_merge(&m, c);
    inception_score_merge(&s, c);
    moments_read(&m, got.mean, got.covariance);
    statistics_t want = statistics_of(X, n, dim);
    inception_score_t alone;
    inception_score_open(&alone, n, 64, C);
    for (int i = 0; i < n; i++) memcpy(logits, Y + i * dim, sizeof logits), inception_score_add_row(&alone, i, logits);
    double errors[4] = {relative_error_double(got.mean, want.mean, dim),
                        relative_error_double(got.covariance, want.covariance, dim * dim),
                        off(inception_score_read(&s, n).mean, inception_score_read(&alone, n).mean),
                        off(inception_score_read(&s, n).deviation, inception_score_read(&alone, n).deviation)};
    int agrees = errors[0] < 1e-14 && errors[1] < 1e-12 && errors[2] < 1e-13 && errors[3] < 1e-11;
    if (!agrees) printf("rank %d: %g %g %g %g\n", c->rank, errors[0], errors[1], errors[2], errors[3]);
    statistics_free(got), statistics_free(want);
    moments_free(&m), inception_score_free(&s), inception_score_free(&alone);
    return agrees;
}

// M of more values than go at once: the sums of the ranks in their order, bit for bit; three pieces, and the means.
static int rank_agrees_on_pieces(comm_t* c) {
    enum { dim = 400 };
    moments_t m;
    moments_open(&m, dim);
    m.n = 1; // its row is 0, and so is the mean
    for (int k = 0; k < dim * dim; k++) m.product[k] = vector_g(5 + c->rank, k);
    uint64_t before = c->number;
    moments_merge(&m, c);
    int agrees = c->number - before == 4 && m.n == c->size;
    for (int k = 0; k < dim * dim; k++) {
        double want = 0;
        for (int rank = 0; rank < c->size; rank++) want += vector_g(5 + rank, k);
        if (k % dim >= k / dim) agrees &= m.product[k] == want;
    }
    if (!agrees) printf("rank %d: the pieces of M\n", c->rank);
    moments_free(&m);
    return agrees;
}

static void test_ranks(const char* program) {
#ifdef MPI
    if (!test_case("moments, KID, precision, recall, inception score of three ranks")) return;
    char command[TEMPORARY_PATH + 300];
    snprintf(command, sizeof command,
             "command -v mpirun >/dev/null || exit 0; export ASAN_OPTIONS=detect_leaks=0 OMPI_ALLOW_RUN_AS_ROOT=1 "
             "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none "
             "OMPI_MCA_btl_vader_single_copy_mechanism=none; mpirun --oversubscribe -n 3 %s", program);
    check(system(command) == 0, "all ranks have the sums of one");
    test_end_case();
#else
    (void)program;
#endif
}

int main(int argc, char** argv) {
    comm_t comm;
    memset(&comm, 0, sizeof comm);
    comm_open(&comm);
    omp_set_num_threads(1); // children of this process would lack its other threads
    if (comm.size > 1) {
        int agrees = rank_agrees(&comm) & rank_agrees_on_pieces(&comm) & rank_agrees_on_pairs(&comm);
        int failed = comm_any(&comm, !agrees);
        comm_close(&comm);
        return failed;
    }
    test_begin(argc, argv);
    test_products();
    test_eigen();
    test_singular();
    test_moments();
    test_moments_blocks();
    test_v3();
    test_frechet_rank();
    test_frechet_identities();
    test_kid();
    test_inception_score();
    test_inception_score_limits();
    test_manifold_v6();
    test_manifold_limits();
    test_refusals();
    test_ranks(argv[0]);
    test_kid_subsets(); // these start threads
    test_manifold_tiles();
    return test_finish();
}
