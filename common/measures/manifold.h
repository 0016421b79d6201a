// manifold.h: precision and recall of generated images (Kynkaanniemi et al. 2019).
//
// Around each image of a set lies a ball in feature space that reaches its k-th nearest neighbour in the same set
// (k = 3). The balls of the real images are where real images may be, those of the generated where generated may be.
//
//     precision   share of the generated images that lie in a ball of the real ones: do they look real?
//     recall      share of the real images that lie in a ball of the generated ones: is everything generated?
//
//     D(u, v) = max(|u|^2 - 2 u.v + |v|^2, 0),  r_i = the (k + 1)-th smallest of D(u_i, u_j), j = i included
//
// The measure depends on both counts: ADM's evaluator compares 10,000 real with all 50,000 generated images. It
// computes D in half precision, which gives values that are larger by about .001 (precision) and .0025 (recall);
// `half` imitates that: features, sums of squares, products and the two additions are rounded to half precision, and a
// tile that overflows is computed exactly.
//
// Products are in double: then no decision D <= r depends on how the matrix is cut, on the number of threads or on the
// library, but by a tie of 13 digits. That costs twice the time of float32: minutes on two cores at 10,000 x 50,000 x
// 2048, where the features took hours. Distances below the rounding of double are set to 0, so that copies of an image
// lie in each other's balls, even if their radius is 0. A tile of D is kept at a time, never all of it.
// Look next at common/measures/kid.h.
#pragma once
#include <stdint.h>

// defines: matrix_products, matrix_doubles, fatal
#include "common/measures/linear_algebra.h"

enum { MANIFOLD_K = 3, MANIFOLD_MAX_K = 100, MANIFOLD_TILE = 256 };

typedef struct { double precision, recall; } manifold_t;

// A set of features, with the precision that distances have.
typedef struct {
    const float* features; // (n, dim)
    int n, dim, half;
} manifold_set_t;

// The nearest number of half precision: 11 bits, or a multiple of 2^-24 below 2^-14; ties to even; infinite from 65520.
static inline double manifold_half(double x) {
    const uint64_t dropped = ((uint64_t)1 << 42) - 1; // of the 52 bits of a double's fraction, 10 stay
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + (dropped >> 1) + (bits >> 42 & 1)) & ~dropped;
    double rounded;
    memcpy(&rounded, &bits, sizeof rounded);
    if (fabs(x) < 0x1p-14) rounded = x + 0x1.8p28 - 0x1.8p28; // near 0x1.8p28 doubles lie 2^-24 apart
    return fabs(rounded) > 65504 ? copysign(INFINITY, x) : rounded;
}

// One tile of distances between rows of two sets, and the memory that it is computed in.
typedef struct {
    double *u, *v;               // (TILE, dim)
    double *square_u, *square_v; // (TILE)
    double* distance;            // (TILE, TILE)
    int i, j, rows, columns;     // where the tile lies
} manifold_tile_t;

static inline void manifold_tile_open(manifold_tile_t* t, int dim) {
    t->u = matrix_doubles((size_t)MANIFOLD_TILE * dim, "features");
    t->v = matrix_doubles((size_t)MANIFOLD_TILE * dim, "features");
    t->square_u = matrix_doubles(MANIFOLD_TILE, "squares");
    t->square_v = matrix_doubles(MANIFOLD_TILE, "squares");
    t->distance = matrix_doubles((size_t)MANIFOLD_TILE * MANIFOLD_TILE, "distances");
}
static inline void manifold_tile_free(manifold_tile_t* t) {
    free(t->u), free(t->v), free(t->square_u), free(t->square_v), free(t->distance);
}

static inline void manifold_load(const manifold_set_t* s, int half, int first, int rows, double* x, double* square) {
    for (int i = 0; i < rows; i++) {
        const float* from = s->features + (size_t)(first + i) * s->dim;
        double* row = x + (size_t)i * s->dim;
        for (int c = 0; c < s->dim; c++) row[c] = half ? manifold_half(from[c]) : from[c];
        double sum = dot_product(row, row, s->dim);
        square[i] = half ? manifold_half(sum) : sum;
    }
}

// Returns whether all distances are finite.
static inline int manifold_tile_compute(manifold_tile_t* t, const manifold_set_t* u, const manifold_set_t* v,
                                        int half) {
    int dim = u->dim, finite = 1;
    manifold_load(u, half, t->i, t->rows, t->u, t->square_u);
    manifold_load(v, half, t->j, t->columns, t->v, t->square_v);
    memset(t->distance, 0, (size_t)t->rows * t->columns * sizeof(double));
    matrix_products(t->rows, t->columns, dim, t->u, dim, t->v, dim, t->distance, t->columns);
    for (int i = 0; i < t->rows; i++) {
        for (int j = 0; j < t->columns; j++) {
            double *to = &t->distance[(size_t)i * t->columns + j], squares = t->square_u[i] + t->square_v[j];
            double d = half ? manifold_half(manifold_half(t->square_u[i] - 2 * manifold_half(*to)) + t->square_v[j])
                            : squares - 2 * *to;
            finite &= isfinite(d) != 0;
            *to = d > (half ? 0 : 1e-13 * squares) ? d : 0;
        }
    }
    return finite;
}

static inline void manifold_tile_distances(manifold_tile_t* t, const manifold_set_t* u, const manifold_set_t* v,
                                           int i, int j) {
    t->i = i, t->rows = u->n - i < MANIFOLD_TILE ? u->n - i : MANIFOLD_TILE;
    t->j = j, t->columns = v->n - j < MANIFOLD_TILE ? v->n - j : MANIFOLD_TILE;
    if (!manifold_tile_compute(t, u, v, u->half) && u->half) manifold_tile_compute(t, u, v, 0);
}

// nearest (count), ascending, takes d if it is smaller than the last.
static inline void manifold_insert(double* nearest, int count, double d) {
    if (d >= nearest[count - 1]) return;
    int at = count - 1;
    for (; at > 0 && nearest[at - 1] > d; at--) nearest[at] = nearest[at - 1];
    nearest[at] = d;
}

// radius (n) <- the squared radius of each point's ball. D is symmetric: a tile serves its rows and its columns. What
// is kept are the smallest k + 1 distances, which do not depend on the order in which threads bring them.
static inline void manifold_radii(const manifold_set_t* s, int k, double* radius) {
    int blocks = (s->n + MANIFOLD_TILE - 1) / MANIFOLD_TILE, kept = k + 1;
    double* nearest = matrix_doubles((size_t)s->n * kept, "nearest distances");
    for (size_t i = 0; i < (size_t)s->n * kept; i++) nearest[i] = INFINITY;
#pragma omp parallel
    {
        manifold_tile_t t;
        manifold_tile_open(&t, s->dim);
#pragma omp for schedule(dynamic)
        for (long b = 0; b < (long)blocks * blocks; b++) {
            int i = (int)(b / blocks), j = (int)(b % blocks);
            if (i > j) continue;
            manifold_tile_distances(&t, s, s, i * MANIFOLD_TILE, j * MANIFOLD_TILE);
#pragma omp critical(manifold)
            for (int r = 0; r < t.rows; r++) {
                for (int c = 0; c < t.columns; c++) {
                    double d = t.distance[(size_t)r * t.columns + c];
                    manifold_insert(nearest + (size_t)(t.i + r) * kept, kept, d);
                    if (i < j) manifold_insert(nearest + (size_t)(t.j + c) * kept, kept, d);
                }
            }
        }
        manifold_tile_free(&t);
    }
    for (int i = 0; i < s->n; i++) radius[i] = nearest[(size_t)i * kept + k];
    free(nearest);
}

static inline double manifold_share(const char* inside, int n) { // (n)
    size_t sum = 0;
    for (int i = 0; i < n; i++) sum += inside[i];
    return (double)sum / n;
}

static inline void manifold_check(const manifold_set_t* s, const char* what) {
    for (size_t i = 0; i < (size_t)s->n * s->dim; i++) {
        if (!isfinite(s->features[i]))
            fatal("feature %zu of image %zu of the %s set is %g", i % s->dim, i / s->dim, what, s->features[i]);
    }
}

static inline manifold_t manifold_precision_recall(const float* real, int n_real,           // (n_real, dim)
                                                   const float* generated, int n_generated, // (n_generated, dim)
                                                   int dim, int k, int half) {
    manifold_set_t u = {generated, n_generated, dim, half}, v = {real, n_real, dim, half};
    if (u.n <= k || v.n <= k || k < 1 || k > MANIFOLD_MAX_K)
        fatal("precision and recall with k = %d need 1 to %d for k, and more images than that in each set; there are "
              "%d real and %d generated ones", k, MANIFOLD_MAX_K, v.n, u.n);
    manifold_check(&u, "generated");
    manifold_check(&v, "real");
    double* radius_u = matrix_doubles(u.n, "radii");
    double* radius_v = matrix_doubles(v.n, "radii");
    manifold_radii(&u, k, radius_u);
    manifold_radii(&v, k, radius_v);
    char *inside_u = (char*)calloc_check(u.n, 1, "marks"), *inside_v = (char*)calloc_check(v.n, 1, "marks");
    int across = (v.n + MANIFOLD_TILE - 1) / MANIFOLD_TILE, down = (u.n + MANIFOLD_TILE - 1) / MANIFOLD_TILE;
#pragma omp parallel
    {
        manifold_tile_t t;
        manifold_tile_open(&t, dim);
#pragma omp for schedule(dynamic)
        for (long b = 0; b < (long)down * across; b++) {
            manifold_tile_distances(&t, &u, &v, (int)(b / across) * MANIFOLD_TILE, (int)(b % across) * MANIFOLD_TILE);
#pragma omp critical(manifold)
            for (int r = 0; r < t.rows; r++) {
                for (int c = 0; c < t.columns; c++) {
                    double d = t.distance[(size_t)r * t.columns + c];
                    inside_u[t.i + r] |= d <= radius_v[t.j + c];
                    inside_v[t.j + c] |= d <= radius_u[t.i + r];
                }
            }
        }
        manifold_tile_free(&t);
    }
    manifold_t result = {manifold_share(inside_u, u.n), manifold_share(inside_v, v.n)};
    free(radius_u), free(radius_v), free(inside_u), free(inside_v);
    return result;
}
