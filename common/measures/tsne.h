// tsne.h: a map of points of many dimensions in the plane, and how evenly the points fill it.
//
// The map is t-SNE (van der Maaten, Hinton 2008), as scikit-learn draws it.
//
//   P_j|i = exp(-beta_i d_ij) / sum,  d squared distances to the k = 3 perplexity + 1 nearest neighbours of i;
//           beta_i such that the entropy of P_.|i is ln(perplexity), found by bisection
//   P = (P_j|i + P_i|j) / 2n,   q_ij = 1 / (1 + |y_i - y_j|^2),   Z = sum_{i != j} q_ij
//   gradient_i = 4 sum_j (e P_ij - q_ij / Z) q_ij (y_i - y_j)     of KL(P || q / Z) where e = 1
//
// Gradient descent with momentum and a gain for each coordinate; iterations 1 to 250 exaggerate the attraction, e = 12,
// and velocities and gains start again after them. Start: the first two principal components, scaled so that the first
// has a deviation of 1e-4. Learning rate max(n / 48, 50).
//
// The repulsion is summed over all n^2 pairs, where scikit-learn approximates it by a tree (Barnes, Hut): a plain loop
// that a compiler vectorises, in floats as scikit-learn's. It runs over lanes of LANES points, so each sum has one
// order; threads share rows. The result does not depend on their number. With a single seed-free start there is one
// map of a set of points; but t-SNE is chaotic, so another compiler's rounding gives another map, with measures as far
// apart as another start's. scikit-learn's early ends (a gradient below 1e-7, no progress in 300 iterations) are left
// out: they do not happen with data of this kind.
//
// Evenness: a Gaussian kernel density estimate at the n points y themselves, with Scott's bandwidth, j = i included:
//
//   S = n^(-1/3) cov(y)      (unbiased covariance)
//   p_i = sum_j exp(-1/2 (y_i - y_j)^T S^-1 (y_i - y_j)) / (n 2 pi sqrt(det S))
//
// and three numbers of it: even points have a small CV and Gini coefficient and an entropy near 1.
//
//   CV = std(p) / mean(p)    (population)
//   Gini = sum_i (2i - n - 1) p_(i) / (n sum p),  p_(1) <= ... <= p_(n)
//   entropy = -sum q log2(q + 1e-10) / log2 n,  q = p / sum p
//
// (VA-VAE's "uniformity": Yao, Yang, Wang 2025, figure 6 and tools/latent_vis.py, on a t-SNE map of latents; SciPy's
// gaussian_kde.) Look next at common/measures/latent_measures.h.
#pragma once
// defines: clock_seconds
#include "common/program/clock.h"
// defines: neighbours_find, NEAR_BY_DISTANCE, compare_doubles
#include "common/measures/neighbours.h"
// defines: pca_t, pca_fit, pca_project, pca_close
#include "common/measures/pca.h"
// defines: random_normal, RANDOM_INIT
#include "common/program/rng.h"

enum { TSNE_LANES = 16 };
#define TSNE_PERPLEXITY 30
#define TSNE_ITERATIONS 1000
#define TSNE_EXAGGERATED 250 // the first iterations
#define TSNE_EXAGGERATION 12
#define TSNE_START 1e-4
#define TSNE_PROGRESS 50   // iterations between two calls of the progress function
#define TSNE_FAR 1e15      // coordinates of the points that fill the last lanes: their q is nothing

typedef struct {
    int n, padded;                  // points; rounded up to whole lanes
    int k;                          // neighbours of each
    double* beta;                   // (n)
    size_t* row;                    // (n + 1) where each point's entries of P begin
    int* column;                    // (row[n]) rising within a row
    floatS* p;                      // (row[n])
    floatS *x, *y;                  // (padded)
    floatS *velocity, *gain, *slope; // (n, 2); slope: the gradient
    double* repulsion;              // (n, 3): sum q, sum q^2 (x_i - x_j), sum q^2 (y_i - y_j)
} tsne_t;

typedef struct {
    int iterations; // TSNE_ITERATIONS
    // called every TSNE_PROGRESS iterations, or NULL
    void (*progress)(void* context, int iteration, int iterations, double seconds_left);
    void* context;
} tsne_options_t;

// ---------------------------------------------------------------------------------------------------------------------
// Attraction: P

// P_.|i and beta_i from k squared distances, nearest first.
static inline double tsne_bisect(double* p, const double* distance, int k, double perplexity) { // (k)
    double beta = 1, low = -INFINITY, high = INFINITY, sum = 0;
    for (int step = 0; step < 100; step++) {
        double mean = 0;
        sum = 0;
        for (int j = 0; j < k; j++) {
            double excess = distance[j] - distance[0]; // e^(-beta d_0) cancels in P and in H
            p[j] = exp(-beta * excess);
            sum += p[j];
            mean += excess * p[j];
        }
        double difference = log(sum) + beta * mean / sum - log(perplexity);
        if (fabs(difference) <= 1e-5) break;
        if (difference > 0) {
            low = beta;
            beta = isinf(high) ? beta * 2 : (beta + high) / 2;
        } else {
            high = beta;
            beta = isinf(low) ? beta / 2 : (beta + low) / 2;
        }
    }
    for (int j = 0; j < k; j++) p[j] /= sum;
    return beta;
}

typedef struct {
    int column;
    double value;
} tsne_entry_t;

static inline int tsne_compare(const void* a, const void* b) {
    return ((const tsne_entry_t*)a)->column - ((const tsne_entry_t*)b)->column;
}

// P from the neighbours of each point. Row i has i's neighbours and the points that have i as a neighbour.
static inline void tsne_symmetrise(tsne_t* t, const int* index, const double* p) { // (n, k)
    int n = t->n, k = t->k;
    size_t* end = (size_t*)calloc_check((size_t)n + 1, sizeof(size_t), "rows of P");
    tsne_entry_t* entry = (tsne_entry_t*)malloc_check((size_t)n * k * 2 * sizeof(tsne_entry_t), "entries of P");
    for (size_t e = 0; e < (size_t)n * k; e++) end[index[e] + 1]++;
    for (int i = 0; i < n; i++) end[i + 1] += end[i] + (size_t)k; // where row i + 1 begins
    size_t* begin = (size_t*)malloc_check(((size_t)n + 1) * sizeof(size_t), "rows of P");
    memcpy(begin, end, ((size_t)n + 1) * sizeof(size_t));
    for (int i = 0; i < n; i++) {
        for (size_t e = (size_t)i * k; e < (size_t)(i + 1) * k; e++) {
            tsne_entry_t own = {index[e], p[e]}, other = {i, p[e]};
            entry[end[i]++] = own;
            entry[end[index[e]]++] = other;
        }
    }
    t->column = (int*)malloc_check((size_t)n * k * 2 * sizeof(int), "columns of P");
    t->p = (floatS*)malloc_check((size_t)n * k * 2 * sizeof(floatS), "values of P");
    size_t at = 0;
    for (int i = 0; i < n; i++) {
        t->row[i] = at;
        qsort(entry + begin[i], begin[i + 1] - begin[i], sizeof *entry, tsne_compare);
        for (size_t e = begin[i]; e < begin[i + 1]; e++) {
            double value = entry[e].value;
            if (e + 1 < begin[i + 1] && entry[e + 1].column == entry[e].column) value += entry[++e].value;
            t->column[at] = entry[e].column;
            t->p[at++] = (floatS)(value / (2.0 * n)); // the sum over all pairs of P_j|i + P_i|j is 2n
        }
    }
    t->row[n] = at;
    free(begin);
    free(entry);
    free(end);
}

static inline floatS* tsne_floats(size_t n, double value) {
    floatS* x = (floatS*)malloc_check(n * sizeof(floatS), "points of a map");
    for (size_t i = 0; i < n; i++) x[i] = (floatS)value;
    return x;
}

// Makes P. The points of the map are still to be placed.
static inline void tsne_open(tsne_t* t, const floatS* data, int n, int d, double perplexity) { // (n, d)
    if (n < 4 || !(perplexity >= 1) || perplexity >= n) {
        fatal("t-SNE of %d points with perplexity %g: at least 4 points, and more than the perplexity", n, perplexity);
    }
    t->n = n;
    t->padded = (n + TSNE_LANES - 1) / TSNE_LANES * TSNE_LANES;
    t->k = (int)(3 * perplexity + 1) < n - 1 ? (int)(3 * perplexity + 1) : n - 1;
    t->beta = (double*)malloc_check((size_t)n * sizeof(double), "beta");
    t->row = (size_t*)malloc_check(((size_t)n + 1) * sizeof(size_t), "rows of P");
    t->x = tsne_floats((size_t)t->padded, TSNE_FAR);
    t->y = tsne_floats((size_t)t->padded, TSNE_FAR);
    t->velocity = tsne_floats((size_t)n * 2, 0);
    t->gain = tsne_floats((size_t)n * 2, 1);
    t->slope = tsne_floats((size_t)n * 2, 0);
    t->repulsion = (double*)malloc_check((size_t)n * 3 * sizeof(double), "repulsion");
    int* index = (int*)malloc_check((size_t)n * t->k * sizeof(int), "neighbours");
    double* distance = (double*)malloc_check((size_t)n * t->k * sizeof(double), "distances");
    double* p = (double*)malloc_check((size_t)n * t->k * sizeof(double), "probabilities");
    feature_set_t set = {data, n, d};
    neighbours_find(index, distance, NEAR_BY_DISTANCE, set, t->k, NULL);
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++) {
        t->beta[i] = tsne_bisect(p + (size_t)i * t->k, distance + (size_t)i * t->k, t->k, perplexity);
    }
    tsne_symmetrise(t, index, p);
    free(p);
    free(distance);
    free(index);
}

static inline void tsne_close(tsne_t* t) {
    free(t->beta);
    free(t->row);
    free(t->column);
    free(t->p);
    free(t->x);
    free(t->y);
    free(t->velocity);
    free(t->gain);
    free(t->slope);
    free(t->repulsion);
}

// Places the points at their first two principal components; without a second one, at random along the second axis, as
// no force leads off a line.
static inline void tsne_start(tsne_t* t, const floatS* data, int d) { // (n, d)
    pca_t pca;
    pca_fit(&pca, data, t->n, d, 2);
    if (!(pca.values[0] > 0)) fatal("t-SNE: all %d points are the same", t->n);
    double* at = (double*)malloc_check((size_t)t->n * 2 * sizeof(double), "components");
    double scale = TSNE_START / sqrt(pca.values[0]);
    pca_project(at, &pca, data, t->n);
    for (int i = 0; i < t->n; i++) {
        t->x[i] = (floatS)(at[2 * (size_t)i] * scale);
        t->y[i] = (floatS)(at[2 * (size_t)i + 1] * scale);
        if (!(pca.values[1] > 0)) t->y[i] = (floatS)(TSNE_START * random_normal(0, RANDOM_INIT, 0, (uint64_t)i));
    }
    free(at);
    pca_close(&pca);
}

// ---------------------------------------------------------------------------------------------------------------------
// Descent

// Point i against all points, itself included (q = 1, no force).
static inline void tsne_repel(double* out, const tsne_t* t, int i) { // (3)
    floatS q[TSNE_LANES] = {0}, fx[TSNE_LANES] = {0}, fy[TSNE_LANES] = {0};
    const floatS *x = t->x, *y = t->y, xi = x[i], yi = y[i];
    for (int j = 0; j < t->padded; j += TSNE_LANES) {
        for (int l = 0; l < TSNE_LANES; l++) {
            floatS dx = xi - x[j + l], dy = yi - y[j + l];
            floatS near = 1 / (1 + dx * dx + dy * dy), near2 = near * near;
            q[l] += near;
            fx[l] += near2 * dx;
            fy[l] += near2 * dy;
        }
    }
    out[0] = out[1] = out[2] = 0;
    for (int l = 0; l < TSNE_LANES; l++) {
        out[0] += (double)q[l];
        out[1] += (double)fx[l];
        out[2] += (double)fy[l];
    }
    out[0] -= 1;
}

// sum_j P_ij q_ij (y_i - y_j)
static inline void tsne_attract(double* out, const tsne_t* t, int i) { // (2)
    out[0] = out[1] = 0;
    for (size_t e = t->row[i]; e < t->row[i + 1]; e++) {
        floatS dx = t->x[i] - t->x[t->column[e]], dy = t->y[i] - t->y[t->column[e]];
        floatS force = t->p[e] / (1 + dx * dx + dy * dy);
        out[0] += (double)(force * dx);
        out[1] += (double)(force * dy);
    }
}

// Fills t->slope; returns Z.
static inline double tsne_gradient(tsne_t* t, double exaggeration) {
    double Z = 0;
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < t->n; i++) tsne_repel(t->repulsion + 3 * (size_t)i, t, i);
    for (int i = 0; i < t->n; i++) Z += t->repulsion[3 * (size_t)i];
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < t->n; i++) {
        const double* r = t->repulsion + 3 * (size_t)i;
        double a[2];
        tsne_attract(a, t, i);
        t->slope[2 * (size_t)i] = (floatS)(4 * (exaggeration * a[0] - r[1] / Z));
        t->slope[2 * (size_t)i + 1] = (floatS)(4 * (exaggeration * a[1] - r[2] / Z));
    }
    return Z;
}

// One step along the gradient.
static inline void tsne_step(tsne_t* t, double rate, double momentum) {
    for (int i = 0; i < t->n; i++) {
        for (int axis = 0; axis < 2; axis++) {
            size_t c = 2 * (size_t)i + axis;
            double v = (double)t->velocity[c], g = (double)t->slope[c], gain = (double)t->gain[c];
            gain = v * g < 0 ? gain + 0.2 : gain * 0.8;
            if (gain < 0.01) gain = 0.01;
            v = momentum * v - rate * gain * g;
            t->gain[c] = (floatS)gain;
            t->velocity[c] = (floatS)v;
            floatS* at = (axis ? t->y : t->x) + i;
            *at = (floatS)((double)*at + v);
        }
    }
}

// KL(P || q / Z)
static inline double tsne_divergence(tsne_t* t) {
    double Z = tsne_gradient(t, 1), sum = 0;
    for (int i = 0; i < t->n; i++) {
        for (size_t e = t->row[i]; e < t->row[i + 1]; e++) {
            double dx = (double)t->x[i] - (double)t->x[t->column[e]], dy = (double)t->y[i] - (double)t->y[t->column[e]];
            double p = (double)t->p[e], q = 1 / (1 + dx * dx + dy * dy) / Z;
            if (p > 0) sum += p * log(p / q);
        }
    }
    return sum;
}

// All iterations from where the points are; returns the divergence.
static inline double tsne_run(tsne_t* t, const tsne_options_t* o) {
    double start = clock_seconds(), rate = t->n / 12.0 / 4 > 50 ? t->n / 12.0 / 4 : 50;
    for (int iteration = 0; iteration < o->iterations; iteration++) {
        int exaggerated = iteration < TSNE_EXAGGERATED;
        if (iteration == TSNE_EXAGGERATED) {
            for (size_t c = 0; c < 2 * (size_t)t->n; c++) t->velocity[c] = 0, t->gain[c] = 1;
        }
        tsne_gradient(t, exaggerated ? TSNE_EXAGGERATION : 1);
        tsne_step(t, rate, exaggerated ? 0.5 : 0.8);
        int done = iteration + 1;
        if (o->progress && done % TSNE_PROGRESS == 0) {
            double left = (clock_seconds() - start) / done * (o->iterations - done);
            o->progress(o->context, done, o->iterations, left);
        }
    }
    return tsne_divergence(t);
}

// The map of n points; returns its divergence.
static inline double tsne_map(double* map,        // (n, 2)
                              const floatS* data, // (n, d)
                              int n, int d, double perplexity, const tsne_options_t* o) {
    tsne_t t;
    tsne_open(&t, data, n, d, perplexity);
    tsne_start(&t, data, d);
    double divergence = tsne_run(&t, o);
    for (int i = 0; i < n; i++) {
        map[2 * (size_t)i] = (double)t.x[i];
        map[2 * (size_t)i + 1] = (double)t.y[i];
    }
    tsne_close(&t);
    return divergence;
}

// ---------------------------------------------------------------------------------------------------------------------
// Evenness

typedef struct {
    double cv, gini, entropy;
} density_t;

// Unbiased covariance of points in the plane: xx, xy, yy.
static inline void density_covariance(double* xx, double* xy, double* yy, const double* y, int n) { // y: (n, 2)
    double mean[2] = {0, 0};
    *xx = *xy = *yy = 0;
    for (int i = 0; i < n; i++) mean[0] += y[2 * (size_t)i], mean[1] += y[2 * (size_t)i + 1];
    mean[0] /= n;
    mean[1] /= n;
    for (size_t i = 0; i < (size_t)n; i++) {
        double a = y[2 * i] - mean[0], b = y[2 * i + 1] - mean[1];
        *xx += a * a;
        *xy += a * b;
        *yy += b * b;
    }
    *xx /= n - 1.0;
    *xy /= n - 1.0;
    *yy /= n - 1.0;
}

// Density at each point. The points must span the plane.
static inline void density_estimate(double* p,       // (n)
                                    const double* y, // (n, 2)
                                    int n) {
    if (n < 3) fatal("the density of %d points: at least 3 are needed", n);
    double xx, xy, yy, scott = pow(n, -1.0 / 3);
    density_covariance(&xx, &xy, &yy, y, n);
    double determinant = xx * yy - xy * xy;
    if (!(determinant > 1e-14 * xx * yy)) {
        fatal("the density of %d points that lie on a line (or are not finite) is not defined", n);
    }
    // -1/2 d^T S^-1 d = a dx^2 + b dx dy + c dy^2
    double a = -0.5 * yy / determinant / scott, b = xy / determinant / scott, c = -0.5 * xx / determinant / scott;
    double norm = 1 / (n * 6.283185307179586 * scott * sqrt(determinant));
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < n; j++) {
            double dx = y[2 * (size_t)i] - y[2 * (size_t)j], dy = y[2 * (size_t)i + 1] - y[2 * (size_t)j + 1];
            sum += exp(a * dx * dx + b * dx * dy + c * dy * dy);
        }
        p[i] = sum * norm;
    }
}

// p > 0
static inline density_t density_measure(const double* p, int n) { // (n)
    density_t out = {0, 0, 0};
    double sum = 0, squares = 0;
    double* sorted = (double*)malloc_check((size_t)n * sizeof(double), "densities in order");
    memcpy(sorted, p, (size_t)n * sizeof(double));
    qsort(sorted, (size_t)n, sizeof(double), compare_doubles);
    for (int i = 0; i < n; i++) sum += sorted[i];
    double mean = sum / n;
    for (int i = 0; i < n; i++) {
        double q = sorted[i] / sum;
        squares += (sorted[i] - mean) * (sorted[i] - mean);
        out.gini += (2.0 * (i + 1) - n - 1) * sorted[i];
        out.entropy -= q * log2(q + 1e-10);
    }
    free(sorted);
    out.cv = sqrt(squares / n) / mean;
    out.gini /= n * sum;
    out.entropy = n > 1 ? out.entropy / log2(n) : 1;
    return out;
}
