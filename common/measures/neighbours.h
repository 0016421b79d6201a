// neighbours.h: the k rows nearest to each row of a matrix, found by looking at all pairs.
//
//   NEAREST_BY_PRODUCT    the k largest x_i . x_j          (CKNNA: rows of length one)
//   NEAREST_BY_DISTANCE   the k smallest |x_i - x_j|^2     (t-SNE)
//
// A row is no neighbour of itself; of two that are equally near the one of lower index comes first. Features are
// floats, sums are double: which rows are neighbours then hardly depends on rounding.
//
// n^2 d multiplications and no n^2 memory: threads share blocks of ROWS rows. For each, columns come in tiles of LANES,
// laid out so that the lanes of a tile lie side by side (d, LANES) and one vector instruction serves several columns;
// four rows use a tile's values while they are in registers. Each sum runs over the features in their order, whatever
// the number of threads. Look next at common/measures/cknna.h and common/measures/tsne.h.
#pragma once
// defines: floatS, fatal, malloc_check
#include "common/device.h"

typedef enum { NEAREST_BY_PRODUCT, NEAREST_BY_DISTANCE } nearest_t;

enum { NEIGHBOUR_LANES = 16, NEIGHBOUR_ROWS = 32 };

// Nearness (larger is nearer) of 4 rows to the LANES columns of a tile: the product, or minus the squared distance.
static inline void neighbours_tile(double* out, // (4, LANES)
                                   nearest_t nearest,
                                   const double* rows, // (4, d)
                                   const double* tile, // (d, LANES)
                                   int d) {
    enum { LANES = NEIGHBOUR_LANES };
    const double *ra = rows, *rb = ra + d, *rc = rb + d, *re = rc + d;
    double a[LANES] = {0}, b[LANES] = {0}, c[LANES] = {0}, e[LANES] = {0};
    if (nearest == NEAREST_BY_PRODUCT) {
        for (int f = 0; f < d; f++) {
            const double* t = tile + (size_t)f * LANES;
            for (int l = 0; l < LANES; l++) {
                a[l] += ra[f] * t[l];
                b[l] += rb[f] * t[l];
                c[l] += rc[f] * t[l];
                e[l] += re[f] * t[l];
            }
        }
    } else {
        for (int f = 0; f < d; f++) {
            const double* t = tile + (size_t)f * LANES;
            for (int l = 0; l < LANES; l++) {
                a[l] -= (ra[f] - t[l]) * (ra[f] - t[l]);
                b[l] -= (rb[f] - t[l]) * (rb[f] - t[l]);
                c[l] -= (rc[f] - t[l]) * (rc[f] - t[l]);
                e[l] -= (re[f] - t[l]) * (re[f] - t[l]);
            }
        }
    }
    memcpy(out, a, sizeof a);
    memcpy(out + LANES, b, sizeof b);
    memcpy(out + 2 * LANES, c, sizeof c);
    memcpy(out + 3 * LANES, e, sizeof e);
}

// The k nearest of n, nearest first, without `self`.
static inline void neighbours_select(int* index, double* value, // (k)
                                     const double* nearness,    // (n)
                                     int n, int self, int k) {
    int found = 0;
    for (int j = 0; j < n; j++) {
        if (j == self || (found == k && !(nearness[j] > value[k - 1]))) continue;
        int at = found < k ? found++ : k - 1;
        for (; at > 0 && nearness[j] > value[at - 1]; at--) {
            value[at] = value[at - 1];
            index[at] = index[at - 1];
        }
        value[at] = nearness[j];
        index[at] = j;
    }
}

// Lays n rows out in tiles of LANES columns; columns past the end are zero.
static inline floatS* neighbours_pack(const floatS* x, int n, int d) {
    size_t tiles = ((size_t)n + NEIGHBOUR_LANES - 1) / NEIGHBOUR_LANES;
    floatS* packed = (floatS*)calloc_check(tiles * d * NEIGHBOUR_LANES, sizeof(floatS), "features in tiles");
    for (size_t i = 0; i < (size_t)n; i++) {
        floatS* tile = packed + i / NEIGHBOUR_LANES * NEIGHBOUR_LANES * d + i % NEIGHBOUR_LANES;
        for (size_t f = 0; f < (size_t)d; f++) tile[f * NEIGHBOUR_LANES] = x[i * d + f];
    }
    return packed;
}

// Values are products, or squared distances. 1 <= k < n; all features are finite.
static inline void neighbours_find(int* index, double* value, // (n, k), nearest first
                                   nearest_t nearest,
                                   const floatS* x, // (n, d)
                                   int n, int d, int k) {
    if (k < 1 || k >= n) fatal("%d neighbours of each of %d points: there must be more points than neighbours", k, n);
    size_t bad = first_not_finite(x, (size_t)n * d);
    if (bad < (size_t)n * d) fatal("neighbours: feature %zu of point %zu is not finite", bad % d, bad / d);
    const int tiles = (n + NEIGHBOUR_LANES - 1) / NEIGHBOUR_LANES, columns = tiles * NEIGHBOUR_LANES;
    const int blocks = (n + NEIGHBOUR_ROWS - 1) / NEIGHBOUR_ROWS;
    const size_t tile_size = (size_t)d * NEIGHBOUR_LANES;
    floatS* packed = neighbours_pack(x, n, d);
    #pragma omp parallel
    {
        double* rows = (double*)calloc_check((size_t)NEIGHBOUR_ROWS * d, sizeof(double), "rows");
        double* tile = (double*)malloc_check(tile_size * sizeof(double), "a tile");
        double* near = (double*)malloc_check((size_t)NEIGHBOUR_ROWS * columns * sizeof(double), "nearness");
        #pragma omp for schedule(dynamic)
        for (int block = 0; block < blocks; block++) {
            int first = block * NEIGHBOUR_ROWS, count = n - first < NEIGHBOUR_ROWS ? n - first : NEIGHBOUR_ROWS;
            for (size_t v = 0; v < (size_t)count * d; v++) rows[v] = x[(size_t)first * d + v];
            for (int t = 0; t < tiles; t++) {
                for (size_t v = 0; v < tile_size; v++) tile[v] = packed[t * tile_size + v];
                for (int r = 0; r < count; r += 4) {
                    double out[4 * NEIGHBOUR_LANES];
                    neighbours_tile(out, nearest, rows + (size_t)r * d, tile, d);
                    for (int q = 0; q < 4; q++) {
                        memcpy(near + (size_t)(r + q) * columns + t * NEIGHBOUR_LANES, out + q * NEIGHBOUR_LANES,
                               NEIGHBOUR_LANES * sizeof(double));
                    }
                }
            }
            for (int r = 0; r < count; r++) {
                size_t at = (size_t)(first + r) * k;
                neighbours_select(index + at, value + at, near + (size_t)r * columns, n, first + r, k);
                for (int q = 0; nearest == NEAREST_BY_DISTANCE && q < k; q++) value[at + q] = -value[at + q];
            }
        }
        free(near);
        free(tile);
        free(rows);
    }
    free(packed);
}
