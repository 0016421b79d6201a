// sample_measures.h: what is measured of generated images beside the Frechet distance, from the features and logits of
// a classifier: KID, precision and recall, Inception Score.
//
// KID, the kernel inception distance (Binkowski, Sutherland, Arbel, Gretton, 2018): the squared maximum mean
// discrepancy of two sets of m rows under the kernel k(a, b) = (a.b / d + 1)^3, estimated without bias: a row is not
// compared with itself.
//
//     KID = [sum_{i != j} k(x_i, x_j) + sum_{i != j} k(y_i, y_j)] / (m (m - 1)) - 2 sum_{i, j} k(x_i, y_j) / m^2
//
// Of large sets, 100 random subsets of 1000 rows each, drawn without replacement, give a mean and a deviation
// (population), as in torch-fidelity and clean-fid. Values near 0 may be negative, and are printed as they are. Other
// programs draw other subsets; that moves the mean by about a tenth of the deviation. Unlike the Frechet distance it is
// unbiased for any number of images. Rows are drawn by common/program/rng.h, and all sums are in double: the bits
// depend on the features and the seed alone. Several processes share the subsets.
//
// Precision and recall (Kynkaanniemi et al. 2019): around each image of a set lies a ball in feature space that reaches
// its k-th nearest neighbour in the same set (k = 3). The balls of the real images are where real images may be, those
// of the generated where generated may be.
//
//     precision   share of the generated images that lie in a ball of the real ones: do they look real?
//     recall      share of the real images that lie in a ball of the generated ones: is everything generated?
//
// The measure depends on both counts: ADM's evaluator compares 10,000 real with all 50,000 generated images. It
// computes distances in half precision, which gives values that are larger by about .001 (precision) and .0025
// (recall); `half` imitates that. Products in double cost twice the time of float32: minutes on two cores at 10,000 x
// 50,000 x 2048, where the features took hours. Several processes share the tiles of pairs
// (common/measures/neighbours.h).
//
// Inception Score (Salimans et al. 2016), from the logits:
//
//     p = softmax(logits),  pbar = mean_i p_i,  IS of a block of images = exp(mean_i sum_c p_ic log(p_ic / pbar_c))
//
// It is the exponential of how much an image tells about its class: 1 if all images look alike to the classifier, the
// number of classes if each is of one class for certain and all classes are as frequent.
//
// Convention of ADM's evaluator: images in stored order are cut into blocks of 5,000, the last may be shorter, and IS
// is the mean over blocks. The logits have no bias. A block must hold classes as they come: where images are stored
// class by class the score collapses, and inception_score_check_order refuses that. The value of the whole set as one
// block is given too; it is larger, since a block's own pbar fits it too well.
//
// Since sum_i p_ic (log p_ic - log pbar_c) = sum_i p_ic log p_ic - n pbar_c log pbar_c, a block needs the sums of
// p log p and of p alone. They are kept in double for each block: rows may come in any order, from any rank. An
// image that could not be read is missing from its block. Look next at common/measures/frechet.h.
#pragma once
// defines: pair_tile_t, neighbours_find, feature_set_t, matrix_products, comm_t, comm_sum_host
#include "common/measures/neighbours.h"
// defines: random_permute, RANDOM_SUBSETS
#include "common/program/rng.h"

// ---------------------------------------------------------------------------------------------------------------------
// KID

#define KID_SUBSETS 100
#define KID_SIZE 1000
#define KID_SEED 2020

typedef struct {
    double mean, deviation; // over the subsets
    int subsets, size;      // rows in each: less than asked for, if a set has fewer
} kid_t;

// Sum of k over the products p (m, m); `above`: over those above the diagonal alone.
static inline double kid_kernel_sum(const double* p, int m, int dim, int above) {
    double *rows = matrix_doubles(m, "a kernel's sums"), total = 0;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < m; i++) {
        rows[i] = 0;
        for (int j = above ? i + 1 : 0; j < m; j++) {
            double k = p[(size_t)i * m + j] / dim + 1;
            rows[i] += k * k * k;
        }
    }
    for (int i = 0; i < m; i++) total += rows[i];
    free(rows);
    return total;
}

// KID of two sets of m rows each; y may be x, which gives a negative number.
static inline double kid_of_rows(const double* x, const double* y, int m, int dim) { // (m, dim), (m, dim)
    double *p = matrix_doubles((size_t)m * m, "a kernel's values"), within = 0;
    for (int set = 0; set < 2; set++) {
        matrix_squares(m, dim, set ? y : x, dim, p, 0);
        within += 2 * kid_kernel_sum(p, m, dim, 1);
    }
    matrix_products(m, m, dim, x, y, p);
    double across = kid_kernel_sum(p, m, dim, 0);
    free(p);
    return within / ((double)m * (m - 1)) - 2 * across / ((double)m * m);
}

// rows (m, dim) <- m different ones of the set; `draw` numbers the drawings.
static inline void kid_draw(double* rows, int m, feature_set_t set, uint64_t seed, uint64_t draw) {
#pragma omp parallel for schedule(static)
    for (int i = 0; i < m; i++) {
        const floatS* from = set.rows + (size_t)random_permute(seed, RANDOM_SUBSETS, draw, i, set.n) * set.dim;
        for (int j = 0; j < set.dim; j++) rows[(size_t)i * set.dim + j] = from[j];
    }
}

// With `c` (or NULL) a collective.
static inline kid_t kid_distance(feature_set_t x, feature_set_t y, int subsets, int size, uint64_t seed, comm_t* c) {
    int least = x.n < y.n ? x.n : y.n, ranks = c && c->size > 1 ? c->size : 1;
    kid_t kid = {0, 0, subsets, size < least ? size : least};
    if (subsets < 1) fatal("KID needs at least one subset, not %d", subsets);
    if (kid.size < 2) fatal("KID needs at least two images in each set; there are %d and %d", x.n, y.n);
    if (kid.size < size)
        warn("KID: the subsets have %d images, not %d, since one set has no more; name the size when you compare",
             kid.size, size);
    double* values = (double*)calloc_check(subsets, sizeof(double), "the subsets' values");
    double* a = matrix_doubles((size_t)kid.size * x.dim, "a subset's features");
    double* b = matrix_doubles((size_t)kid.size * y.dim, "a subset's features");
    for (int s = ranks > 1 ? c->rank : 0; s < subsets; s += ranks) {
        kid_draw(a, kid.size, x, seed, (uint64_t)2 * s);
        kid_draw(b, kid.size, y, seed, (uint64_t)2 * s + 1);
        values[s] = kid_of_rows(a, b, kid.size, x.dim);
    }
    if (ranks > 1) comm_sum_host(c, values, subsets);
    double variance = 0;
    for (int s = 0; s < subsets; s++) kid.mean += values[s] / subsets;
    for (int s = 0; s < subsets; s++) variance += (values[s] - kid.mean) * (values[s] - kid.mean) / subsets;
    kid.deviation = sqrt(variance);
    free(a), free(b), free(values);
    return kid;
}

// ---------------------------------------------------------------------------------------------------------------------
// Precision and recall

enum { MANIFOLD_K = 3, MANIFOLD_MAX_K = 100 };

typedef struct { double precision, recall; } manifold_t;

// radius (n) <- the squared radius of each point's ball.
static inline void manifold_radii(feature_set_t set, int k, nearness_t nearness, double* radius, comm_t* c) {
    int* index = (int*)malloc_check((size_t)set.n * k * sizeof(int), "neighbours");
    double* value = matrix_doubles((size_t)set.n * k, "distances of neighbours");
    neighbours_find(index, value, nearness, set, k, c);
    for (int i = 0; i < set.n; i++) radius[i] = value[(size_t)i * k + k - 1];
    free(index);
    free(value);
}

// Marks the rows of u that a tile shows in a ball of v, or, with `columns`, those of v in a ball of u.
static inline void manifold_mark(const pair_tile_t* t, int columns, const double* radius, double* inside) {
    int pieces = ((columns ? t->columns : t->rows) + PAIR_PIECE - 1) / PAIR_PIECE;
#pragma omp parallel for schedule(static)
    for (int piece = 0; piece < pieces; piece++) {
        pair_range_t in = pair_range(t, columns, piece);
        for (int r = in.row; r < in.row_end; r++) {
            for (int c = in.column; c < in.column_end; c++) {
                int point = columns ? t->j + c : t->i + r, centre = columns ? t->i + r : t->j + c;
                if (t->near[(size_t)r * t->columns + c] <= radius[centre]) inside[point] = 1;
            }
        }
    }
}

static inline double manifold_share(double* inside, int n, comm_t* c) { // (n) of each process
    int sum = 0;
    if (c) comm_sum_host(c, inside, n);
    for (int i = 0; i < n; i++) sum += inside[i] > 0;
    return (double)sum / n;
}

// With `c` (or NULL) a collective.
static inline manifold_t manifold_precision_recall(feature_set_t real, feature_set_t generated, int k, int half,
                                                   comm_t* c) {
    feature_set_t u = generated, v = real;
    nearness_t nearness = half ? NEAR_BY_HALF_DISTANCE : NEAR_BY_DISTANCE;
    if (u.n <= k || v.n <= k || k < 1 || k > MANIFOLD_MAX_K)
        fatal("precision and recall with k = %d need 1 to %d for k, and more images than that in each set; there are "
              "%d real and %d generated ones", k, MANIFOLD_MAX_K, v.n, u.n);
    feature_set_check(&u, "the generated set");
    feature_set_check(&v, "the real set");
    double *radius_u = matrix_doubles(u.n, "radii"), *radius_v = matrix_doubles(v.n, "radii");
    double* inside_u = (double*)calloc_check(u.n, sizeof(double), "marks");
    double* inside_v = (double*)calloc_check(v.n, sizeof(double), "marks");
    manifold_radii(u, k, nearness, radius_u, c);
    manifold_radii(v, k, nearness, radius_v, c);
    int across = (v.n + PAIR_TILE - 1) / PAIR_TILE, down = (u.n + PAIR_TILE - 1) / PAIR_TILE;
    pair_tile_t t = pair_tile_open(nearness, u, v);
    for (long b = 0; b < (long)down * across; b++) {
        if (!pair_tile_mine(c, b)) continue;
        pair_tile_fill(&t, (int)(b / across) * PAIR_TILE, (int)(b % across) * PAIR_TILE);
        manifold_mark(&t, 0, radius_v, inside_u);
        manifold_mark(&t, 1, radius_u, inside_v);
    }
    pair_tile_close(&t);
    manifold_t result = {manifold_share(inside_u, u.n, c), manifold_share(inside_v, v.n, c)};
    free(radius_u), free(radius_v), free(inside_u), free(inside_v);
    return result;
}

// ---------------------------------------------------------------------------------------------------------------------
// Inception Score

#define INCEPTION_SCORE_BLOCK 5000

typedef struct {
    int classes, block, blocks;
    size_t n;     // images in all
    double* sums; // (blocks, classes + 2): sums of p_c; then that of p log p; then the number of images
} inception_score_t;

typedef struct { double mean, deviation, whole; } inception_score_result_t; // over blocks (population); one block

static inline void inception_score_open(inception_score_t* s, size_t n, int block, int classes) {
    if (n < 1 || block < 1 || classes < 2 || n / block >= 1u << 20)
        fatal("an inception score of %zu images of %d classes in blocks of %d cannot be computed", n, classes, block);
    s->classes = classes;
    s->block = block;
    s->blocks = (int)((n + block - 1) / block);
    s->n = n;
    s->sums = (double*)calloc_check((size_t)s->blocks * (classes + 2), sizeof(double), "class probabilities");
}

static inline void inception_score_free(inception_score_t* s) { free(s->sums); }

static inline double* inception_score_sums(const inception_score_t* s, int block) { // (classes + 2)
    return s->sums + (size_t)block * (s->classes + 2);
}

// One image: its number in the stored order, and its logits, which are lost.
static inline void inception_score_add_row(inception_score_t* s, size_t image, double* logits) { // (classes)
    int classes = s->classes;
    if (image >= s->n) fatal("image %zu for an inception score of %zu images", image, s->n);
    double *sums = inception_score_sums(s, (int)(image / s->block)), largest = logits[0], total = 0, p_log_p = 0;
    for (int c = 0; c < classes; c++) {
        if (!isfinite(logits[c]))
            fatal("logit %d of image %zu is %g; the network's weights are not finite", c, image, logits[c]);
        largest = fmax(largest, logits[c]);
    }
    for (int c = 0; c < classes; c++) total += exp(logits[c] - largest);
    double log_total = largest + log(total);
    for (int c = 0; c < classes; c++) {
        double log_p = logits[c] - log_total, p = exp(log_p);
        sums[c] += p;
        p_log_p += p * log_p;
    }
    sums[classes] += p_log_p;
    sums[classes + 1]++;
}

static inline void inception_score_add(inception_score_t* s, size_t first,
                                       const float* logits, // (N, classes) of images first, first + 1, ...
                                       int N) {
    double* row = (double*)malloc_check((size_t)s->classes * sizeof(double), "an image's logits");
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < s->classes; c++) row[c] = logits[(size_t)i * s->classes + c];
        inception_score_add_row(s, first + i, row);
    }
    free(row);
}

// Every rank has added its images; afterwards all have all. A collective.
static inline void inception_score_merge(inception_score_t* s, comm_t* c) {
    for (int b = 0; b < s->blocks; b++) comm_sum_host(c, inception_score_sums(s, b), s->classes + 2);
}

static inline double inception_score_of(const double* sums, int classes) { // (classes + 2)
    double n = sums[classes + 1], information = sums[classes] / n;
    for (int c = 0; c < classes; c++) {
        double p = sums[c] / n;
        if (p > 0) information -= p * log(p);
    }
    return exp(information);
}

// The score of the n images that were added.
static inline inception_score_result_t inception_score_read(const inception_score_t* s, size_t n) {
    inception_score_result_t result = {0, 0, 0};
    double* all = (double*)calloc_check((size_t)s->classes + 2, sizeof(double), "class probabilities");
    double variance = 0;
    int blocks = 0; // that have images
    for (int b = 0; b < s->blocks; b++) {
        const double* sums = inception_score_sums(s, b);
        for (int c = 0; c < s->classes + 2; c++) all[c] += sums[c];
        if (sums[s->classes + 1] == 0) continue;
        result.mean += inception_score_of(sums, s->classes);
        blocks++;
    }
    if (n < 1 || all[s->classes + 1] != (double)n)
        fatal("the inception score has %.0f images in place of %zu", all[s->classes + 1], n);
    result.mean /= blocks;
    for (int b = 0; b < s->blocks; b++) {
        const double* sums = inception_score_sums(s, b);
        if (sums[s->classes + 1] == 0) continue;
        double difference = inception_score_of(sums, s->classes) - result.mean;
        variance += difference * difference / blocks;
    }
    result.deviation = sqrt(variance);
    result.whole = inception_score_of(all, s->classes);
    free(all);
    return result;
}

// Refuses images that are stored class by class, where they fall into several blocks.
static inline void inception_score_check_order(const int* labels, size_t n, int block) { // (n)
    size_t runs = n > 0, different = 0;
    int most = 0;
    for (size_t i = 0; i < n; i++) {
        if (labels[i] < 0) fatal("label %zu is %d", i, labels[i]);
        most = labels[i] > most ? labels[i] : most;
        runs += i > 0 && labels[i] != labels[i - 1];
    }
    char* seen = (char*)calloc_check((size_t)most + 1, 1, "classes");
    for (size_t i = 0; i < n; i++) different += !seen[labels[i]], seen[labels[i]] = 1;
    free(seen);
    if (n > (size_t)block && different > 1 && runs == different && n > different)
        fatal("the images are stored class by class: the inception score of blocks of %d would collapse. Store them in "
              "random order of class, or leave the inception score out", block);
}
