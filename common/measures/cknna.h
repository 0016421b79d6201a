// cknna.h: do two representations of the same images see the same images as near to each other?
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
// defines: neighbours_find, NEAREST_BY_PRODUCT
#include "common/measures/neighbours.h"

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
    neighbours_find(out->column, out->value, NEAREST_BY_PRODUCT, unit, n, d, k);
    for (int i = 0; i < n; i++) out->count[i] = k;
    free(unit);
}

// `clip` is a quantile, CKNNA_CLIP, or 0: no clamping.
static inline cknna_t cknna_measure(const floatS* a, int da, // (n, da)
                                    const floatS* b, int db, // (n, db)
                                    int n, int k, double clip) {
    if (n < 4 || k < 1 || k >= n) fatal("CKNNA with k = %d needs at least %d images, not %d", k, k > 2 ? k + 1 : 4, n);
    size_t bad_a = first_not_finite(a, (size_t)n * da), bad_b = first_not_finite(b, (size_t)n * db);
    if (bad_a < (size_t)n * da) fatal("CKNNA: the first features of image %zu are not finite", bad_a / da);
    if (bad_b < (size_t)n * db) fatal("CKNNA: the second features of image %zu are not finite", bad_b / db);
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
