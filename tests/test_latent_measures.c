// The latent-space measures: vectors of numbers made from integers, identities, independence of the number of threads.
// Expected values are those that independent programs print; a bound of 1e-11 or so means all of their digits.

#include <omp.h>

// defines: latent_measures_*, latent_scores_t, roughness
#include "common/measures/latent_measures.h"
// defines: cknna_measure
#include "common/measures/neighbours.h"
// defines: pca_fit, pca_colours_fit, pca_colours_values, pca_colours_picture
#include "common/measures/pca.h"
// defines: tsne_open, tsne_gradient, tsne_step, tsne_divergence, tsne_map, density_estimate, density_measure
#include "common/measures/tsne.h"
// defines: check_error, relative_error_double (this makes floatX double)
#include "tests/gradient.h"
// defines: vector_g
#include "tests/vectors.h"

static void close_to(const char* what, double got, double want, double bound) {
    check_error(what, fabs(got - want) / (fabs(want) > 1e-3 ? fabs(want) : 1e-3), bound);
}

static double* numbers(size_t n) { return (double*)malloc_check(n * sizeof(double), "numbers"); }

// A (n, d) of stream s
static void fill_vector(double* x, uint32_t s, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = vector_g(s, (uint32_t)i);
}
static void fill_random(double* x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = test_normal();
}

// ---------------------------------------------------------------------------------------------------------------------
// CKNNA

enum { PAIRS = 60, DA = 8, DB = 6 };

static void make_pair(double* A, double* B) { // (60, 8), (60, 6): B = A M + noise
    double M[DA * DB];
    fill_vector(A, 6, PAIRS * DA);
    fill_vector(M, 7, DA * DB);
    for (int i = 0; i < PAIRS; i++) {
        for (int k = 0; k < DB; k++) {
            double sum = 0;
            for (int j = 0; j < DA; j++) sum += A[i * DA + j] * M[j * DB + k];
            B[i * DB + k] = sum + 0.7 * vector_g(8, DB * i + k);
        }
    }
}

static void test_cknna_vector(void) {
    if (!test_case("CKNNA: vector")) return;
    double A[PAIRS * DA], B[PAIRS * DB];
    make_pair(A, B);
    cknna_t m = cknna_measure(A, DA, B, DB, PAIRS, 10, 0);
    close_to("k = 10", m.value, .551714642909067, 1e-13);
    close_to("H(mK, mL)", m.kl, .02520419038975, 1e-12);
    close_to("H(aK, aK)", m.kk, .03850768982153, 1e-12);
    close_to("H(bL, bL)", m.ll, .05419384982792, 1e-12);
    check(m.mutual == 298, "298 mutual neighbours");
    close_to("without the small number", m.plain, m.kl / sqrt(m.kk * m.ll), 1e-15);
    check(m.clip_a == 0 && m.clip_b == 0, "nothing is clamped");
    close_to("k = 59", cknna_measure(A, DA, B, DB, PAIRS, 59, 0).value, .654018634065686, 1e-13);
    close_to("with itself", cknna_measure(A, DA, A, DA, PAIRS, 10, 0).value, .999974031835, 1e-12);
    m = cknna_measure(A, DA, B, DB, PAIRS, 10, CKNNA_CLIP);
    close_to("clamped", m.value, .546594787673829, 1e-13);
    close_to("where", m.clip_a, 1.837024630588, 1e-12);
    test_end_case();
}

// H from whole matrices, as its formula stands.
static double dense_hsic(const double* P, const double* Q, int n) { // (n, n)
    double trace = 0, sum_p = 0, sum_q = 0, product = 0, N = n;
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) {
            trace += P[i * n + j] * Q[j * n + i];
            sum_p += P[i * n + j];
            sum_q += Q[i * n + j];
            for (int k = 0; k < n; k++) product += P[i * n + k] * Q[k * n + j];
        }
    }
    return (trace + sum_p * sum_q / ((N - 1) * (N - 2)) - 2 / (N - 2) * product) / (N * (N - 3));
}

// Products of unit rows where j is among the k largest of row i; `other` masks too where it is not NULL.
static void dense_kernel(double* K, char* mask, const double* x, int n, int d, int k) {
    double* unit = numbers((size_t)n * d);
    for (int i = 0; i < n; i++) {
        double length = sqrt(dot(x + i * d, x + i * d, d));
        for (int f = 0; f < d; f++) unit[i * d + f] = x[i * d + f] / length;
    }
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) K[i * n + j] = dot(unit + i * d, unit + j * d, d);
        for (int j = 0; j < n; j++) {
            int before = 0;
            for (int q = 0; q < n; q++) {
                double difference = K[i * n + q] - K[i * n + j];
                before += q != i && q != j && (difference > 0 || (difference == 0 && q < j));
            }
            mask[i * n + j] = j != i && before < k;
        }
    }
    free(unit);
}

static void test_cknna_dense(void) {
    if (!test_case("CKNNA: whole matrices, odd sizes, ties")) return;
    static const int sizes[][4] = {{4, 1, 1, 1}, {5, 3, 2, 4}, {37, 5, 9, 3}, {65, 33, 2, 7}};
    for (int c = 0; c < 4; c++) {
        int n = sizes[c][0], da = sizes[c][1], db = sizes[c][2], k = sizes[c][3];
        double *a = numbers((size_t)n * da), *b = numbers((size_t)n * db), *K = numbers(n * n), *L = numbers(n * n);
        char *ma = (char*)malloc(n * n), *mb = (char*)malloc(n * n);
        fill_random(a, (size_t)n * da);
        fill_random(b, (size_t)n * db);
        if (n > 30) memcpy(a + 7 * da, a + 19 * da, da * sizeof(double)); // two rows that nobody can tell apart
        dense_kernel(K, ma, a, n, da, k);
        dense_kernel(L, mb, b, n, db, k);
        double *P = numbers(n * n), *Q = numbers(n * n), *R = numbers(n * n), *S = numbers(n * n);
        for (int i = 0; i < n * n; i++) {
            P[i] = ma[i] ? K[i] : 0;
            Q[i] = mb[i] ? L[i] : 0;
            R[i] = mb[i] ? P[i] : 0;
            S[i] = ma[i] ? Q[i] : 0;
        }
        cknna_t m = cknna_measure(a, da, b, db, n, k, 0);
        close_to("H(mK, mL)", m.kl, dense_hsic(R, S, n), 1e-12);
        close_to("H(aK, aK)", m.kk, dense_hsic(P, P, n), 1e-12);
        close_to("H(bL, bL)", m.ll, dense_hsic(Q, Q, n), 1e-12);
        free(a), free(b), free(K), free(L), free(ma), free(mb), free(P), free(Q), free(R), free(S);
    }
    test_end_case();
}

static void test_cknna_identities(void) {
    if (!test_case("CKNNA: with itself, rotated, scaled, shuffled")) return;
    enum { N = 45, D = 4 };
    double a[N * D], b[N * 3], turned[N * D], moved_a[N * D], moved_b[N * 3];
    fill_random(a, N * D);
    fill_random(b, N * 3);
    cknna_t m = cknna_measure(a, D, a, D, N, 6, 0), ab = cknna_measure(a, D, b, 3, N, 6, 0);
    close_to("A, A", m.value, m.kk / (m.kk + 1e-6), 1e-13);
    close_to("A, A without the small number", m.plain, 1, 1e-13);
    for (int i = 0; i < N; i++) { // a reflection, a rotation, and a length for each row
        double c = cos(0.7), s = sin(0.7), *to = turned + i * D;
        const double* from = a + i * D;
        to[0] = -from[0] * (1 + i);
        to[1] = from[3] * (1 + i);
        to[2] = (c * from[1] - s * from[2]) * (1 + i);
        to[3] = (s * from[1] + c * from[2]) * (1 + i);
        int at = (i * 7 + 3) % N;
        memcpy(moved_a + at * D, from, D * sizeof(double));
        memcpy(moved_b + at * 3, b + i * 3, 3 * sizeof(double));
    }
    close_to("rotated", cknna_measure(turned, D, b, 3, N, 6, 0).value, ab.value, 1e-12);
    close_to("in another order", cknna_measure(moved_a, D, moved_b, 3, N, 6, 0).value, ab.value, 1e-12);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Statistics, density

enum { SIDE = 16, CHANNELS = 4, TOKENS = SIDE * SIDE };

static void make_maps(double* z) { // (2, 16, 16, 4)
    for (int n = 0; n < 2; n++) {
        for (int t = 0; t < TOKENS; t++) {
            for (int c = 0; c < CHANNELS; c++) {
                z[(n * TOKENS + t) * CHANNELS + c] =
                    vector_g(11, ((4 * n + c) * SIDE + t / SIDE) * SIDE + t % SIDE) + 0.1 * (t % SIDE) * (c + 1);
            }
        }
    }
}

static void test_statistics(void) {
    if (!test_case("spatial variance and total variation: vector, small maps")) return;
    double z[2 * TOKENS * CHANNELS], sum = 0, sv = 0, tv = 0, tv_sq = 0;
    make_maps(z);
    for (int i = 0; i < 2 * TOKENS * CHANNELS; i++) sum += z[i];
    close_to("sum", sum, 3834.69113073055, 1e-14);
    for (int n = 0; n < 2; n++) {
        roughness_t s = roughness(z + n * TOKENS * CHANNELS, SIDE, SIDE, CHANNELS);
        sv += s.sv / 2;
        tv += s.tv / 2;
        tv_sq += s.tv_sq / 2;
    }
    close_to("SV", sv, 2.55734537083289, 1e-14);
    close_to("TV", tv, 552.306789670911, 1e-14);
    close_to("TV_sq", tv_sq, 996.615001047354, 1e-14);
    double small[6] = {1, 4, 2, 0, -1, 3}; // 3 rows, 2 columns: mean 1.5
    roughness_t s = roughness(small, 3, 2, 1);
    close_to("SV by hand", s.sv, 17.5 / 6, 1e-15);
    close_to("TV by hand", s.tv, 3 + 2 + 4 + 1 + 4 + 3 + 3, 1e-15);
    s = roughness(small, 1, 1, 6);
    check(s.sv == 0 && s.tv == 0 && s.tv_sq == 0, "one position varies over nothing");
    test_end_case();
}

static void test_density(void) {
    if (!test_case("density: vectors, constants")) return;
    double p[100], y[100], even[7] = {3, 3, 3, 3, 3, 3, 3};
    for (int i = 0; i < 100; i++) p[i] = 1 + 0.5 * sin(i);
    density_t m = density_measure(p, 100);
    close_to("CV", m.cv, .352921535671454, 1e-14);
    close_to("Gini", m.gini, .202253889912128, 1e-14);
    close_to("entropy", m.entropy, .985992752265492, 1e-14);
    for (int i = 0; i < 50; i++) y[2 * i] = 2 * vector_g(8, 2 * i), y[2 * i + 1] = vector_g(8, 2 * i + 1) + 0.5;
    double xx, xy, yy, mean = 0;
    density_covariance(&xx, &xy, &yy, y, 50);
    double scott = pow(50, -1.0 / 3);
    close_to("Scott's factor", sqrt(scott), .521000730958691, 1e-14);
    close_to("S xx", xx * scott, 1.13747211, 5e-9);
    close_to("S xy", xy * scott, .06818932, 1e-7);
    close_to("S yy", yy * scott, .25602904, 2e-8);
    density_estimate(p, y, 50);
    for (int i = 0; i < 50; i++) mean += p[i] / 50;
    close_to("p 0", p[0], .0271029632941534, 1e-13);
    close_to("p 1", p[1], .0290256939805933, 1e-13);
    close_to("mean p", mean, .0361119425286097, 1e-13);
    m = density_measure(p, 50);
    close_to("CV of the estimate", m.cv, .399280760110249, 1e-13);
    close_to("Gini of the estimate", m.gini, .229960434753110, 1e-13);
    close_to("entropy of the estimate", m.entropy, .978282051711460, 1e-13);
    m = density_measure(even, 7);
    close_to("constants", m.cv + fabs(m.gini) + m.entropy, 1, 1e-8); // 1e-10 stands in the logarithm
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Principal components

static void test_pca_vector(void) {
    if (!test_case("principal components: vector")) return;
    double z[2 * TOKENS * CHANNELS], rgb[TOKENS * 3];
    static const double values[4] = {7.10314233, 1.25383549, 1.05167268, .93437797};
    static const double vectors[3][4] = {{.209895217, .387880459, .514256407, .735549519},
                                         {-.223842648, -.433305831, .825302275, -.284634292},
                                         {.054886497, .779489462, .223162331, -.58273684}};
    static const double colours[2][3] = {{.05607173, .49380202, .4574255}, {.79444601, .79626354, .46455946}};
    make_maps(z);
    pca_t p;
    pca_fit(&p, z, TOKENS, CHANNELS, 4);
    for (int c = 0; c < 4; c++) {
        close_to("eigenvalue", p.values[c], values[c], 6e-9);
        for (int f = 0; c < 3 && f < 4; f++) {
            check_error("loading", fabs(p.vectors[c * 4 + f] - vectors[c][f]), 6e-10);
        }
    }
    pca_close(&p);
    pca_colours_t colour;
    pca_colours_fit(&colour, z, TOKENS, CHANNELS, 0);
    pca_colours_values(rgb, &colour, z, TOKENS);
    for (int i = 0; i < 3; i++) {
        check_error("token 0", fabs(rgb[i] - colours[0][i]), 6e-9);
        check_error("token 255", fabs(rgb[765 + i] - colours[1][i]), 6e-9);
    }
    pca_colours_close(&colour);
    test_end_case();
}

// Fewer rows than features is computed from the other matrix: C v = lambda v must hold all the same.
static void test_pca_definition(void) {
    if (!test_case("principal components: C v = lambda v, more or fewer rows than features")) return;
    static const int sizes[][2] = {{40, 7}, {9, 23}, {12, 12}, {2, 5}, {3, 1}};
    for (int s = 0; s < 5; s++) {
        int rows = sizes[s][0], d = sizes[s][1];
        double *x = numbers((size_t)rows * d), *projected = numbers((size_t)rows * 3);
        fill_random(x, (size_t)rows * d);
        pca_t p;
        pca_fit(&p, x, rows, d, 3);
        pca_project(projected, &p, x, rows);
        int most = rows - 1 < d ? rows - 1 : d;
        for (int c = 0; c < 3; c++) {
            const double* v = p.vectors + (size_t)c * d;
            if (c >= most) {
                check(p.values[c] == 0 && dot(v, v, d) == 0, "no more components");
                continue;
            }
            close_to("length", dot(v, v, d), 1, 1e-13);
            double largest = 0, sum = 0;
            for (int f = 0; f < d; f++) {
                double cv = 0; // C v
                for (int r = 0; r < rows; r++) cv += (x[r * d + f] - p.mean[f]) * projected[r * 3 + c] / rows;
                check_error("C v", fabs(cv - p.values[c] * v[f]) / p.values[0], 1e-12);
                if (fabs(v[f]) > fabs(largest)) largest = v[f];
            }
            for (int r = 0; r < rows; r++) sum += projected[r * 3 + c];
            check(largest > 0, "the largest entry is positive");
            check_error("centred", fabs(sum), 1e-11);
            check(!c || p.values[c] <= p.values[c - 1], "falling");
        }
        pca_close(&p);
        free(x), free(projected);
    }
    test_end_case();
}

static void test_pca_pictures(void) {
    if (!test_case("pictures: percentiles, squares, grey")) return;
    double line[5] = {3, 5, 9, 11, 12};
    close_to("percentile", pca_percentile(line, 5, 30), 5 + 0.2 * 4, 1e-14);
    check(pca_percentile(line, 5, 0) == 3 && pca_percentile(line, 5, 100) == 12, "ends");
    enum { GH = 3, GW = 5, D = 2, PIXELS = 4 };
    double tokens[GH * GW * D], rgb[GH * GW * 3];
    uint8_t picture[GH * PIXELS * GW * PIXELS * 3];
    for (int t = 0; t < GH * GW; t++) tokens[2 * t] = 10 * t, tokens[2 * t + 1] = 1e6; // one component, no second
    pca_colours_t c;
    pca_colours_fit(&c, tokens, GH * GW, D, PCA_PERCENT);
    pca_colours_values(rgb, &c, tokens, GH * GW);
    for (int t = 0; t < GH * GW; t++) {
        double want = fmin(fmax((t - 0.14) / (14 - 0.28), 0), 1); // percentiles of 0 .. 14
        close_to("red", rgb[3 * t], want, 1e-12);
        check(rgb[3 * t + 1] == 0.5 && rgb[3 * t + 2] == 0.5, "grey where nothing varies");
    }
    memset(picture, 77, sizeof picture);
    pca_colours_picture(picture, &c, tokens, GH, GW, PIXELS);
    for (int y = 0; y < GH * PIXELS; y++) {
        for (int x = 0; x < GW * PIXELS; x++) {
            const uint8_t* at = picture + (y * GW * PIXELS + x) * 3;
            check(at[0] == (uint8_t)floor(rgb[(y / PIXELS * GW + x / PIXELS) * 3] * 255 + 0.5), "a square of pixels");
            check(at[1] == 128 && at[2] == 128, "grey bytes");
        }
    }
    pca_colours_close(&c);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// t-SNE

enum { POINTS = 60, FEATURES = 5 };

static void test_tsne_vector(void) {
    if (!test_case("t-SNE: vector")) return;
    double X[POINTS * FEATURES], most = 0, P_01 = 0, sum = 0;
    fill_vector(X, 9, POINTS * FEATURES);
    tsne_t t;
    tsne_open(&t, X, POINTS, FEATURES, 10);
    check(t.k == 31, "31 neighbours");
    check(t.beta[0] == .704345703125 && t.beta[1] == 1.1373138427734375, "beta of points 0 and 1");
    check(t.row[POINTS] == 2328, "2328 entries of P");
    for (size_t e = 0; e < t.row[POINTS]; e++) sum += t.p[e];
    for (size_t e = t.row[0]; e < t.row[1]; e++) {
        if (t.column[e] == 1) P_01 = t.p[e];
        most = fmax(most, t.p[e]);
    }
    close_to("sum of P", sum, 1, 1e-14);
    check_error("P 0 1", fabs(P_01 / 8.609650475803e-06 - 1), 1e-12);
    check_error("largest P 0 j", fabs(most / .003792920902533 - 1), 1e-12);
    for (int i = 0; i < POINTS; i++) t.x[i] = 0.01 * vector_g(10, 2 * i), t.y[i] = 0.01 * vector_g(10, 2 * i + 1);
    close_to("KL at the start", tsne_divergence(&t), 1.613900199649, 1e-12);
    for (int step = 1; step <= 10; step++) {
        tsne_gradient(&t, 12);
        tsne_step(&t, 50, 0.5);
        double squares = dot(t.x, t.x, POINTS) + dot(t.y, t.y, POINTS);
        if (step == 1) {
            check_error("x 0", fabs(t.x[0] + .12090239), 6e-9);
            check_error("y 0", fabs(t.y[0] + .27088263), 6e-9);
            close_to("squares", squares, 13.967683650123, 1e-12);
            close_to("KL after a step", tsne_divergence(&t), 1.771879946537, 1e-12);
        }
        if (step == 10) {
            check_error("x 0 after ten", fabs(t.x[0] - 1.32655654), 6e-9);
            check_error("y 0 after ten", fabs(t.y[0] - 1.0931945), 6e-8);
            close_to("squares after ten", squares, 1387.3594006, 1e-10);
            close_to("KL after ten", tsne_divergence(&t), 2.68711417, 5e-9);
        }
    }
    tsne_close(&t);
    test_end_case();
}

static void fill_clusters(double* x, int n, int d) {
    double centres[5 * 8];
    fill_random(centres, 5 * 8);
    for (int i = 0; i < n; i++) {
        for (int f = 0; f < d; f++) x[i * d + f] = 3 * centres[i % 5 * 8 + f] + test_normal();
    }
}

// The gradient against differences of the divergence, and a map that is no worse than its start.
static void test_tsne_gradient(void) {
    if (!test_case("t-SNE: gradient, descent, few points, a line")) return;
    enum { N = 37, D = 3 };
    double X[N * D], map[N * 2], direction[2 * N], slope = 0, value[2];
    fill_clusters(X, N, D);
    tsne_t t;
    tsne_open(&t, X, N, D, 7);
    for (int i = 0; i < N; i++) t.x[i] = test_normal(), t.y[i] = test_normal();
    for (int c = 0; c < 2 * N; c++) direction[c] = test_normal();
    double before = tsne_divergence(&t);
    tsne_gradient(&t, 1);
    for (int c = 0; c < 2 * N; c++) slope += t.slope[c] * direction[c];
    for (int side = 0; side < 2; side++) {
        for (int c = 0; c < 2 * N; c++) (c % 2 ? t.y : t.x)[c / 2] += (side ? -2e-5 : 1e-5) * direction[c];
        value[side] = tsne_divergence(&t);
    }
    close_to("slope", (value[0] - value[1]) / 2e-5, slope, 1e-6);
    tsne_close(&t);
    tsne_options_t o = {300, NULL, NULL};
    check(tsne_map(map, X, N, D, 7, &o) < 0.5 * before, "the divergence falls");
    for (int n = 4; n < 9; n++) {
        check(tsne_map(map, X, n, 1, 1 + 0.2 * (n - 4), &o) >= 0, "few points of one feature");
        double low = map[1], high = map[1];
        for (int i = 0; i < n; i++) {
            check(isfinite(map[2 * i]) && isfinite(map[2 * i + 1]), "finite");
            low = fmin(low, map[2 * i + 1]), high = fmax(high, map[2 * i + 1]);
        }
        check(high > low, "points leave the line");
    }
    test_end_case();
}

// 250 steps with e = 12 and momentum 0.5; then velocities of 0, gains of 1, e = 1, momentum 0.8.
static void test_tsne_schedule(void) {
    if (!test_case("t-SNE: start and schedule")) return;
    enum { N = 33, D = 3, STEPS = 257 };
    double X[N * D], map[N * 2];
    fill_clusters(X, N, D);
    tsne_options_t o = {STEPS, NULL, NULL};
    double divergence = tsne_map(map, X, N, D, 6, &o), spread = 0, centre = 0;
    tsne_t t;
    tsne_open(&t, X, N, D, 6);
    tsne_start(&t, X, D);
    for (int i = 0; i < N; i++) centre += t.x[i] / N, spread += t.x[i] * t.x[i] / N;
    close_to("deviation of the start", sqrt(spread), 1e-4, 1e-10);
    check(fabs(centre) < 1e-12 && fabs(dot(t.x, t.y, N)) < 1e-15, "components are centred and unrelated");
    for (int step = 1; step <= STEPS; step++) {
        for (int c = 0; step == 251 && c < 2 * N; c++) t.velocity[c] = 0, t.gain[c] = 1;
        tsne_gradient(&t, step <= 250 ? 12 : 1);
        tsne_step(&t, 50, step <= 250 ? 0.5 : 0.8);
    }
    for (int i = 0; i < N; i++) check(t.x[i] == map[2 * i] && t.y[i] == map[2 * i + 1], "the same map");
    check(tsne_divergence(&t) == divergence, "its divergence");
    tsne_close(&t);
    test_end_case();
}

static void test_threads(void) {
    if (!test_case("one, two or three threads: the same bits")) return;
    enum { N = 131, D = 7 };
    static double X[N * D], map[3][N * 2], p[3][N];
    double value[3], divergence[3];
    fill_clusters(X, N, D);
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        tsne_options_t o = {40, NULL, NULL};
        divergence[threads - 1] = tsne_map(map[threads - 1], X, N, D, 30, &o);
        density_estimate(p[threads - 1], map[threads - 1], N);
        value[threads - 1] = cknna_measure(X, D, X + 1, 3, N, 10, 0).value;
    }
    omp_set_num_threads(1);
    for (int c = 1; c < 3; c++) {
        check(!memcmp(map[c], map[0], sizeof map[0]), "map");
        check(!memcmp(p[c], p[0], sizeof p[0]), "density");
        check(divergence[c] == divergence[0] && value[c] == value[0], "divergence, CKNNA");
    }
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// All of it, image by image

enum { IMAGES = 41, GH = 3, GW = 5, Z = 4, D = 6, ROWS = 7, DRAWS = 2, MISSING = 13 };

typedef struct {
    double latent[IMAGES][GH * GW * Z], flipped[IMAGES][GH * GW * Z], tokens[IMAGES][ROWS * D];
} images_t;

static latent_scores_t measure_images(const images_t* x, int stride, latent_measures_t* keep) {
    latent_measures_t m;
    latent_scores_t scores;
    latent_measures_open(&m, IMAGES, GH, GW, Z, D, DRAWS, 1, 7);
    for (int i = 0; i < IMAGES; i++) {
        int at = i * stride % IMAGES;
        if (at == MISSING) continue;
        latent_measures_add(&m, at, x->latent[at], x->flipped[at], x->tokens[at], ROWS);
    }
    latent_measures_finish(&scores, &m, CKNNA_NEIGHBOURS, 0, NULL, NULL);
    if (keep) *keep = m;
    else latent_measures_close(&m);
    return scores;
}

static void test_images(void) {
    if (!test_case("a set image by image: any order, one missing, against whole arrays")) return;
    enum { N = IMAGES - 1 };
    static images_t x;
    fill_random(&x.latent[0][0], sizeof x / sizeof(double));
    for (int i = 0; i < IMAGES; i++) {
        for (int v = 0; v < GH * GW * Z; v++) x.latent[i][v] += 2 * sin(i * 0.3 + v % Z) + v % Z;
        for (int r = 0; r < ROWS * D; r++) x.tokens[i][r] += 2 * sin(i * 0.3 + r % D);
    }
    latent_measures_t m;
    latent_scores_t s = measure_images(&x, 1, &m), other = measure_images(&x, 7, NULL);
    check(!memcmp(&s, &other, sizeof s), "the same bits in another order");
    check(s.n == N && s.k == 10 && s.draws == DRAWS, "numbers of images, neighbours, draws");
    double mean[N * Z], tokens[N * D], drawn[DRAWS][N * Z], map[N * 2], p[N], sv = 0, sums[Z] = {0}, squares[Z] = {0};
    memset(mean, 0, sizeof mean);
    memset(tokens, 0, sizeof tokens);
    int mirrored_count = 0;
    for (int i = 0, row = 0; i < IMAGES; i++) {
        if (i == MISSING) continue;
        for (int v = 0; v < GH * GW * Z; v++) {
            mean[row * Z + v % Z] += x.latent[i][v] / (GH * GW);
            sums[v % Z] += x.latent[i][v];
            squares[v % Z] += x.latent[i][v] * x.latent[i][v];
        }
        for (int v = 0; v < ROWS * D; v++) tokens[row * D + v % D] += x.tokens[i][v] / ROWS;
        sv += roughness(x.latent[i], GH, GW, Z).sv / N;
        for (int draw = 0; draw < DRAWS; draw++) {
            int mirrored, at = latent_measures_position(&m, i, draw, &mirrored);
            check(at >= 0 && at < GH * GW, "a position of the map");
            mirrored_count += mirrored;
            memcpy(drawn[draw] + row * Z, (mirrored ? x.flipped[i] : x.latent[i]) + at * Z, Z * sizeof(double));
        }
        row++;
    }
    check(mirrored_count > DRAWS * N / 4 && mirrored_count < DRAWS * N * 3 / 4, "half of them are mirrored");
    close_to("SV", s.roughness.sv, sv, 1e-13);
    close_to("CKNNA", s.cknna.value, cknna_measure(mean, Z, tokens, D, N, 10, 0).value, 1e-11);
    double scale[Z], centre[Z], count = (double)N * GH * GW, deviation;
    latent_measures_scale(centre, scale, &m, N);
    for (int c = 0; c < Z; c++) {
        deviation = sqrt((squares[c] - sums[c] * sums[c] / count) / (count - 1));
        close_to("mean of a channel", centre[c], sums[c] / count, 1e-12);
        close_to("deviation of a channel", 1 / scale[c], deviation, 1e-12);
    }
    density_t d[DRAWS];
    tsne_options_t o = {TSNE_ITERATIONS, NULL, NULL};
    for (int draw = 0; draw < DRAWS; draw++) {
        for (int v = 0; v < N * Z; v++) drawn[draw][v] = (drawn[draw][v] - centre[v % Z]) * scale[v % Z];
        tsne_map(map, drawn[draw], N, Z, (N - 1) / 3.0, &o);
        density_estimate(p, map, N);
        d[draw] = density_measure(p, N);
    }
    close_to("CV", s.density.cv, (d[0].cv + d[1].cv) / 2, 1e-13);
    close_to("Gini", s.density.gini, (d[0].gini + d[1].gini) / 2, 1e-13);
    close_to("entropy", s.density.entropy, (d[0].entropy + d[1].entropy) / 2, 1e-13);
    close_to("spread of CV", s.spread.cv, fabs(d[0].cv - d[1].cv) / sqrt(2), 1e-12);
    latent_measures_close(&m);
    test_end_case();
}

static void test_images_equal(void) {
    if (!test_case("a set of equal images")) return;
    static images_t x;
    for (int i = 0; i < IMAGES; i++) {
        for (int v = 0; v < GH * GW * Z; v++) x.latent[i][v] = x.flipped[i][v] = 0.3 * (1 + v % Z);
        for (int v = 0; v < ROWS * D; v++) x.tokens[i][v] = test_normal();
    }
    latent_scores_t s = measure_images(&x, 1, NULL);
    check(s.density.cv == 0 && s.density.gini == 0 && s.density.entropy == 1, "an even density");
    check(s.roughness.tv == 0 && s.roughness.sv < 1e-25, "nothing varies");
    check(isfinite(s.cknna.value) && isfinite(s.cknna.plain), "CKNNA is a number");
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    omp_set_num_threads(1); // sets are small here
    test_cknna_vector();
    test_cknna_dense();
    test_cknna_identities();
    test_statistics();
    test_density();
    test_pca_vector();
    test_pca_definition();
    test_pca_pictures();
    test_tsne_vector();
    test_tsne_gradient();
    test_tsne_schedule();
    test_threads();
    test_images();
    test_images_equal();
    return test_finish();
}
