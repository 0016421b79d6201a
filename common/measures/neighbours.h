// neighbours.h: the nearest neighbours of features, found by looking at all pairs; and what is measured by them alone:
// do two representations of the same images see the same images as near to each other (CKNNA)?
//
//     NEAR_BY_PRODUCT         the k largest x_i . x_j           (CKNNA: rows of length one)
//     NEAR_BY_DISTANCE        the k smallest D = max(|x_i|^2 - 2 x_i.x_j + |x_j|^2, 0)   (precision, recall, t-SNE)
//     NEAR_BY_HALF_DISTANCE   the same in half precision, as ADM's evaluator computes it
//
// A row is no neighbour of itself; of two that are equally near the one of lower index comes first.
//
// Pairs come in tiles of PAIR_TILE x PAIR_TILE, one product of matrices each, in double: then no decision depends on
// how the matrix is cut, on the number of threads or on the library, but by a tie of 13 digits. Distances below the
// rounding of double are set to 0, so that copies of an image are at no distance. A tile is kept at a time, never all
// pairs; it serves its rows and its columns. Several processes share the tiles.
//
// Half precision: features, sums of squares, products and the two additions are rounded, and a tile that overflows is
// computed exactly.
//
// CKNNA (centred kernel nearest-neighbour alignment; Huh, Cheung, Wang, Isola 2024, "The Platonic Representation
// Hypothesis", section 2 and its public code) of features A (n, da) and B (n, db), whose rows are scaled to length 1:
//
//   K = A A^T, L = B B^T
//   a_ij = 1 where j is among the k largest of row i of K, j != i; b_ij likewise from L; m = a b
//   CKNNA = H(mK, mL) / (sqrt(H(aK, aK) H(bL, bL)) + 1e-6)
//   H(P, Q) = [sum_ij P_ij Q_ji + sum P sum Q / ((n-1)(n-2)) - 2/(n-2) sum_ij (P Q)_ij] / (n (n-3))
//
// H is the unbiased estimate of HSIC for matrices with zeros on the diagonal. The masks are those of rows and not
// symmetric, and the first term pairs (i, j) with (j, i), as in the public code. So CKNNA(B, A) is not quite
// CKNNA(A, B); the representation that is judged goes first. In
//   sum_ij (P Q)_ij = sum_k (column sum k of P) (row sum k of Q)
// nothing larger than the k neighbours of each row is needed, so no (n, n) matrix is ever stored.
//
// The 1e-6 is not small beside H (about k mean(K^2) / n), so CKNNA(A, A) is 0.998 at n = 10,000, k = 10: the value
// without it is given too. Both fall as n grows at one k, so n and k belong to the number.
// Look next at common/measures/latent_measures.h, which gives it the spatial means of latents and of encoder tokens.
#pragma once
#include <limits.h>

// defines: floatS, fatal, malloc_check, calloc_check
#include "common/device.h"
// defines: matrix_products, matrix_doubles, dot_product
#include "common/measures/linear_algebra.h"
// defines: comm_t, comm_sum_host
#include "common/training/comm.h"

typedef enum { NEAR_BY_PRODUCT, NEAR_BY_DISTANCE, NEAR_BY_HALF_DISTANCE } nearness_t;

// The features of a set of images.
typedef struct {
    const floatS* rows; // (n, dim)
    int n, dim;
} feature_set_t;

// All are finite, or the program ends; `what` names the set.
static inline void feature_set_check(const feature_set_t* set, const char* what) {
    size_t bad = first_not_finite(set->rows, (size_t)set->n * set->dim);
    if (bad == (size_t)set->n * set->dim) return;
    fatal("feature %zu of image %zu of %s is %g", bad % set->dim, bad / set->dim, what, (double)set->rows[bad]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Pairs

enum { PAIR_TILE = 1024 };

// One tile of pairs of rows of two sets.
typedef struct {
    nearness_t nearness;
    feature_set_t u, v;
    double *x, *y;               // (TILE, dim) the rows of u and v
    double *square_x, *square_y; // (TILE)
    double* near;                // (rows, columns) products or distances
    int i, j, rows, columns;     // where the tile lies
} pair_tile_t;

static inline pair_tile_t pair_tile_open(nearness_t nearness, feature_set_t u, feature_set_t v) {
    pair_tile_t t = {nearness, u, v, NULL, NULL, NULL, NULL, NULL, 0, 0, 0, 0};
    t.x = matrix_doubles((size_t)PAIR_TILE * u.dim, "features");
    t.y = matrix_doubles((size_t)PAIR_TILE * u.dim, "features");
    t.square_x = matrix_doubles(PAIR_TILE, "squares");
    t.square_y = matrix_doubles(PAIR_TILE, "squares");
    t.near = matrix_doubles((size_t)PAIR_TILE * PAIR_TILE, "distances");
    return t;
}
static inline void pair_tile_close(pair_tile_t* t) {
    free(t->x), free(t->y), free(t->square_x), free(t->square_y), free(t->near);
}

// The nearest number of half precision: 11 bits, or a multiple of 2^-24 below 2^-14; ties to even; infinite from 65520.
static inline double half_precision(double x) {
    const uint64_t dropped = ((uint64_t)1 << 42) - 1; // of the 52 bits of a double's fraction, 10 stay
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + (dropped >> 1) + (bits >> 42 & 1)) & ~dropped;
    double rounded;
    memcpy(&rounded, &bits, sizeof rounded);
    if (fabs(x) < 0x1p-14) rounded = x + 0x1.8p28 - 0x1.8p28; // near 0x1.8p28 doubles lie 2^-24 apart
    return fabs(rounded) > 65504 ? copysign(INFINITY, x) : rounded;
}

static inline void pair_tile_load(double* x, double* square, feature_set_t set, int first, int rows, int half) {
#pragma omp parallel for schedule(static)
    for (int i = 0; i < rows; i++) {
        const floatS* from = set.rows + (size_t)(first + i) * set.dim;
        double *row = x + (size_t)i * set.dim, sum;
        for (int c = 0; c < set.dim; c++) row[c] = half ? half_precision((double)from[c]) : (double)from[c];
        sum = dot_product(row, row, set.dim);
        square[i] = half ? half_precision(sum) : sum;
    }
}

// Returns whether all distances are finite.
static inline int pair_tile_compute(pair_tile_t* t, int half) {
    int finite = 1;
    pair_tile_load(t->x, t->square_x, t->u, t->i, t->rows, half);
    pair_tile_load(t->y, t->square_y, t->v, t->j, t->columns, half);
    matrix_products(t->rows, t->columns, t->u.dim, t->x, t->y, t->near);
    if (t->nearness == NEAR_BY_PRODUCT) return 1;
#pragma omp parallel for schedule(static) reduction(& : finite)
    for (int i = 0; i < t->rows; i++) {
        double* row = t->near + (size_t)i * t->columns;
        for (int j = 0; j < t->columns; j++) {
            double a = t->square_x[i], b = t->square_y[j];
            double d = half ? half_precision(half_precision(a - 2 * half_precision(row[j])) + b) : a + b - 2 * row[j];
            finite &= isfinite(d) != 0;
            row[j] = d > (half ? 0 : 1e-13 * (a + b)) ? d : 0;
        }
    }
    return finite;
}

// The pairs of rows i, i + 1, ... of u with rows j, j + 1, ... of v.
static inline void pair_tile_fill(pair_tile_t* t, int i, int j) {
    int half = t->nearness == NEAR_BY_HALF_DISTANCE;
    t->i = i, t->rows = t->u.n - i < PAIR_TILE ? t->u.n - i : PAIR_TILE;
    t->j = j, t->columns = t->v.n - j < PAIR_TILE ? t->v.n - j : PAIR_TILE;
    if (!pair_tile_compute(t, half) && half) pair_tile_compute(t, 0);
}

// What one thread looks at: a piece of the rows and all columns, or all rows and a piece of the columns.
enum { PAIR_PIECE = 64 };
typedef struct { int row, row_end, column, column_end; } pair_range_t;
static inline pair_range_t pair_range(const pair_tile_t* t, int columns, int piece) {
    pair_range_t in = {0, t->rows, 0, t->columns};
    int *begin = columns ? &in.column : &in.row, *end = columns ? &in.column_end : &in.row_end;
    *begin = piece * PAIR_PIECE;
    if (*end > *begin + PAIR_PIECE) *end = *begin + PAIR_PIECE;
    return in;
}

// Is tile number b one of this process' own? `c` may be NULL: there is one process.
static inline int pair_tile_mine(const comm_t* c, long b) { return !c || c->size <= 1 || b % c->size == c->rank; }

// ---------------------------------------------------------------------------------------------------------------------
// The k nearest

// A list of the k smallest keys so far (a distance, or minus a product), ascending, with their indices.
typedef struct {
    double* key; // (k)
    int* index;  // (k)
    int k;
} nearest_t;

static inline int nearest_before(double key, int index, double other_key, int other_index) {
    return key < other_key || (key == other_key && index < other_index);
}

static inline void nearest_insert(nearest_t l, double key, int index) {
    int at = l.k - 1;
    if (!nearest_before(key, index, l.key[at], l.index[at])) return;
    for (; at > 0 && nearest_before(key, index, l.key[at - 1], l.index[at - 1]); at--) {
        l.key[at] = l.key[at - 1];
        l.index[at] = l.index[at - 1];
    }
    l.key[at] = key;
    l.index[at] = index;
}

// A tile's pairs go into the lists of its rows, or, with `columns`, into those of its columns. Threads share pieces of
// these; each reads the tile along its rows.
static inline void nearest_take(const pair_tile_t* t, int columns, double* key, int* index, int k) { // (n, k)
    double sign = t->nearness == NEAR_BY_PRODUCT ? -1 : 1;
    int pieces = ((columns ? t->columns : t->rows) + PAIR_PIECE - 1) / PAIR_PIECE;
#pragma omp parallel for schedule(static)
    for (int piece = 0; piece < pieces; piece++) {
        pair_range_t in = pair_range(t, columns, piece);
        for (int r = in.row; r < in.row_end; r++) {
            for (int c = in.column; c < in.column_end; c++) {
                int list = columns ? t->j + c : t->i + r, other = columns ? t->i + r : t->j + c;
                nearest_t nearest = {key + (size_t)list * k, index + (size_t)list * k, k};
                if (other != list) nearest_insert(nearest, sign * t->near[(size_t)r * t->columns + c], other);
            }
        }
    }
}

// Every process has the lists of its own tiles; afterwards all have those of all.
static inline void nearest_merge(double* key, int* index, int n, int k, comm_t* c) { // (n, k)
    if (!c || c->size <= 1) return;
    size_t own = (size_t)n * k;
    double *keys = matrix_doubles(own, "neighbours"), *indices = matrix_doubles(own, "neighbours");
    double* mine = matrix_doubles(2 * own, "neighbours");
    for (size_t e = 0; e < own; e++) mine[e] = key[e], mine[own + e] = index[e];
    for (int rank = 0; rank < c->size; rank++) {
        for (size_t e = 0; e < own; e++) keys[e] = rank == c->rank ? mine[e] : 0;
        for (size_t e = 0; e < own; e++) indices[e] = rank == c->rank ? mine[own + e] : 0;
        comm_sum_host(c, keys, (int)own);
        comm_sum_host(c, indices, (int)own);
        for (size_t e = 0; e < own && rank != c->rank; e++) {
            nearest_t list = {key + e / k * k, index + e / k * k, k};
            nearest_insert(list, keys[e], (int)indices[e]);
        }
    }
    free(keys), free(indices), free(mine);
}

// The k nearest neighbours of each row among the others. Values are products, or squared distances. 1 <= k < n; all
// features are finite. With `c` (or NULL) a collective.
static inline void neighbours_find(int* index, double* value, // (n, k), nearest first
                                   nearness_t nearness, feature_set_t set, int k, comm_t* c) {
    int n = set.n, blocks = (n + PAIR_TILE - 1) / PAIR_TILE;
    if (k < 1 || k >= n) fatal("%d neighbours of each of %d points: there must be more points than neighbours", k, n);
    feature_set_check(&set, "a set whose neighbours are looked for");
    for (size_t e = 0; e < (size_t)n * k; e++) value[e] = INFINITY, index[e] = INT_MAX;
    pair_tile_t t = pair_tile_open(nearness, set, set);
    for (long b = 0; b < (long)blocks * blocks; b++) {
        int i = (int)(b / blocks), j = (int)(b % blocks);
        if (i > j || !pair_tile_mine(c, b)) continue;
        pair_tile_fill(&t, i * PAIR_TILE, j * PAIR_TILE);
        nearest_take(&t, 0, value, index, k);
        if (i < j) nearest_take(&t, 1, value, index, k);
    }
    pair_tile_close(&t);
    nearest_merge(value, index, n, k, c);
    for (size_t e = 0; nearness == NEAR_BY_PRODUCT && e < (size_t)n * k; e++) value[e] = -value[e];
}

// ---------------------------------------------------------------------------------------------------------------------
// CKNNA

#define CKNNA_NEIGHBOURS 10 // k
#define CKNNA_CLIP 0.95     // features beyond this quantile of their sizes are clamped, where that is asked for
#define CKNNA_EPSILON 1e-6  // in the denominator

typedef struct {
    double value;        // with CKNNA_EPSILON, as published
    double plain;        // without
    double kl, kk, ll;   // H(mK, mL), H(aK, aK), H(bL, bL)
    size_t mutual;       // pairs (i, j) in m
    double clip_a, clip_b; // where the features were clamped, or 0
} cknna_t;

// A matrix of n rows with at most k entries each.
typedef struct {
    int n, k;
    int* count;    // (n) entries of each row
    int* column;   // (n, k)
    double* value; // (n, k)
} sparse_rows_t;

static inline void sparse_rows_open(sparse_rows_t* s, int n, int k) {
    s->n = n;
    s->k = k;
    s->count = (int*)calloc_check((size_t)n, sizeof(int), "neighbours");
    s->column = (int*)malloc_check((size_t)n * k * sizeof(int), "neighbours");
    s->value = (double*)malloc_check((size_t)n * k * sizeof(double), "neighbours");
}
static inline void sparse_rows_close(sparse_rows_t* s) {
    free(s->count);
    free(s->column);
    free(s->value);
}

// Entry (i, j), or NULL.
static inline const double* sparse_rows_at(const sparse_rows_t* s, int i, int j) {
    for (size_t e = (size_t)i * s->k, end = e + s->count[i]; e < end; e++) {
        if (s->column[e] == j) return s->value + e;
    }
    return NULL;
}

// The entries of P that Q has too.
static inline void sparse_rows_common(sparse_rows_t* out, const sparse_rows_t* P, const sparse_rows_t* Q) {
    sparse_rows_open(out, P->n, P->k);
    for (int i = 0; i < P->n; i++) {
        for (int e = 0; e < P->count[i]; e++) {
            size_t from = (size_t)i * P->k + e, to = (size_t)i * out->k + out->count[i];
            if (!sparse_rows_at(Q, i, P->column[from])) continue;
            out->column[to] = P->column[from];
            out->value[to] = P->value[from];
            out->count[i]++;
        }
    }
}

// H(P, Q) of (n, n) matrices with zero diagonals.
static inline double cknna_hsic(const sparse_rows_t* P, const sparse_rows_t* Q) {
    double n = P->n, trace = 0, total_p = 0, total_q = 0, product = 0;
    double* column_p = (double*)calloc_check((size_t)P->n, sizeof(double), "column sums");
    for (int i = 0; i < P->n; i++) {
        for (int e = 0; e < P->count[i]; e++) {
            int j = P->column[(size_t)i * P->k + e];
            double p = P->value[(size_t)i * P->k + e];
            const double* q = sparse_rows_at(Q, j, i);
            column_p[j] += p;
            total_p += p;
            if (q) trace += p * *q;
        }
    }
    for (int i = 0; i < Q->n; i++) {
        double row_q = 0;
        for (int e = 0; e < Q->count[i]; e++) row_q += Q->value[(size_t)i * Q->k + e];
        total_q += row_q;
        product += column_p[i] * row_q;
    }
    free(column_p);
    return (trace + total_p * total_q / ((n - 1) * (n - 2)) - 2 / (n - 2) * product) / (n * (n - 3));
}

static inline int cknna_compare(const void* a, const void* b) {
    floatS x = *(const floatS*)a, y = *(const floatS*)b;
    return (x > y) - (x < y);
}

// The size at place floor(quantile * count) of the sorted sizes of all features.
static inline double cknna_clip_at(const floatS* x, size_t count, double quantile) {
    floatS* sizes = (floatS*)malloc_check(count * sizeof(floatS), "sizes of features");
    for (size_t i = 0; i < count; i++) sizes[i] = (floatS)fabs((double)x[i]);
    qsort(sizes, count, sizeof(floatS), cknna_compare);
    size_t at = (size_t)(quantile * (double)count);
    double clip = (double)sizes[at < count ? at : count - 1];
    free(sizes);
    return clip;
}

// Rows of x, clamped to +-clip (0: as they are) and divided by their length (at least 1e-12).
static inline floatS* cknna_unit_rows(const floatS* x, int n, int d, double clip) {
    floatS* unit = (floatS*)malloc_check((size_t)n * d * sizeof(floatS), "features of length one");
    for (size_t i = 0; i < (size_t)n; i++) {
        double sum = 0;
        for (size_t f = i * d; f < (i + 1) * d; f++) {
            double v = (double)x[f];
            if (clip > 0) v = v < -clip ? -clip : v > clip ? clip : v;
            unit[f] = (floatS)v;
            sum += v * v;
        }
        double length = sqrt(sum) > 1e-12 ? sqrt(sum) : 1e-12;
        for (size_t f = i * d; f < (i + 1) * d; f++) unit[f] = (floatS)((double)unit[f] / length);
    }
    return unit;
}

// The k largest products of each row.
static inline void cknna_kernel(sparse_rows_t* out, const floatS* x, int n, int d, int k, double clip) {
    floatS* unit = cknna_unit_rows(x, n, d, clip);
    sparse_rows_open(out, n, k);
    feature_set_t set = {unit, n, d};
    neighbours_find(out->column, out->value, NEAR_BY_PRODUCT, set, k, NULL);
    for (int i = 0; i < n; i++) out->count[i] = k;
    free(unit);
}

// `clip` is a quantile, CKNNA_CLIP, or 0: no clamping.
static inline cknna_t cknna_measure(const floatS* a, int da, // (n, da)
                                    const floatS* b, int db, // (n, db)
                                    int n, int k, double clip) {
    if (n < 4 || k < 1 || k >= n) fatal("CKNNA with k = %d needs at least %d images, not %d", k, k > 2 ? k + 1 : 4, n);
    feature_set_t first = {a, n, da}, second = {b, n, db};
    feature_set_check(&first, "CKNNA's first set");
    feature_set_check(&second, "CKNNA's second set");
    cknna_t out;
    memset(&out, 0, sizeof out);
    if (clip > 0) {
        out.clip_a = cknna_clip_at(a, (size_t)n * da, clip);
        out.clip_b = cknna_clip_at(b, (size_t)n * db, clip);
    }
    sparse_rows_t K, L, mK, mL;
    cknna_kernel(&K, a, n, da, k, out.clip_a);
    cknna_kernel(&L, b, n, db, k, out.clip_b);
    sparse_rows_common(&mK, &K, &L);
    sparse_rows_common(&mL, &L, &K);
    for (int i = 0; i < n; i++) out.mutual += (size_t)mK.count[i];
    out.kl = cknna_hsic(&mK, &mL);
    out.kk = cknna_hsic(&K, &K);
    out.ll = cknna_hsic(&L, &L);
    double scale = sqrt(out.kk > 0 && out.ll > 0 ? out.kk * out.ll : 0);
    out.value = out.kl / (scale + CKNNA_EPSILON);
    out.plain = scale > 0 ? out.kl / scale : 0;
    sparse_rows_close(&K);
    sparse_rows_close(&L);
    sparse_rows_close(&mK);
    sparse_rows_close(&mL);
    return out;
}
