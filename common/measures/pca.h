// pca.h: principal components, and the pictures of feature maps in their colours (AlignTok, figure 7).
//
//   C = (1/n) sum (x - mean)(x - mean)^T,   C v = lambda v,   components in the order of falling lambda
//
// The entry of largest size in each v is positive: eigenvectors have no sign of their own. With fewer rows than
// features the (n, n) matrix of products has the same eigenvalues, and v = X^T u / |X^T u|: so one image's 256 tokens
// of 1024 features cost an eigenproblem of 256.
//
// A picture's red, green and blue are the first three components, each mapped linearly so that its 1st and 99th
// percentile become 0 and 1, clamped. Components and ranges are those of one image, or of all images that are to be
// compared (then a colour means the same in each). A component that does not vary is grey, 0.5.
// Look next at common/measures/tsne.h, which starts from two components, and at common/measures/eval_latent.h, which
// makes the pictures.
#pragma once
// defines: floatS, fatal, malloc_check, calloc_check
#include "common/device.h"
// defines: symmetric_eigen, matrix_squares, matrix_doubles, compare_doubles
#include "common/measures/linear_algebra.h"

#define PCA_PERCENT 1.0       // of the values of a component that may be clamped at each end of its range
#define PCA_NO_VARIANCE 1e-12 // of the whole: a component with less is rounding, and counts as zero

typedef struct {
    int d, count;
    double* mean;    // (d)
    double* vectors; // (count, d), rows of length one; of zeros where there are no more components
    double* values;  // (count) eigenvalues
} pca_t;

// Scales v (d) to length one, with its largest entry positive.
static inline void pca_unit(double* v, int d) {
    double sum = 0, largest = 0;
    for (int f = 0; f < d; f++) {
        sum += v[f] * v[f];
        if (fabs(v[f]) > fabs(largest)) largest = v[f];
    }
    double scale = sum > 0 ? (largest < 0 ? -1 : 1) / sqrt(sum) : 0;
    for (int f = 0; f < d; f++) v[f] *= scale;
}

static inline void pca_fit(pca_t* p, const floatS* x, int rows, int d, int count) { // x: (rows, d)
    size_t bad = first_not_finite(x, (size_t)rows * d);
    if (bad < (size_t)rows * d) fatal("principal components: value %zu of row %zu is not finite", bad % d, bad / d);
    const int dual = rows < d, size = dual ? rows : d, length = dual ? d : rows;
    p->d = d;
    p->count = count;
    p->mean = (double*)calloc_check((size_t)d, sizeof(double), "a mean");
    p->vectors = (double*)calloc_check((size_t)count * d, sizeof(double), "components");
    p->values = (double*)calloc_check((size_t)count, sizeof(double), "eigenvalues");
    double* centred = matrix_doubles((size_t)rows * d, "centred features"); // (size, length)
    double* matrix = matrix_doubles((size_t)size * size, "a covariance");
    double* vectors = matrix_doubles((size_t)size * size, "eigenvectors");
    double* values = matrix_doubles((size_t)size, "eigenvalues");
    for (size_t r = 0; r < (size_t)rows; r++) {
        for (int f = 0; f < d; f++) p->mean[f] += (double)x[r * d + f];
    }
    for (int f = 0; f < d; f++) p->mean[f] /= rows;
    for (size_t r = 0; r < (size_t)rows; r++) {
        for (size_t f = 0; f < (size_t)d; f++) {
            centred[dual ? r * d + f : f * rows + r] = (double)x[r * d + f] - p->mean[f];
        }
    }
    matrix_squares(size, length, centred, length, matrix, 0);
    double trace = 0;
    for (size_t i = 0; i < (size_t)size; i++) trace += matrix[i * size + i];
    symmetric_eigen(size, matrix, values, vectors); // in rising order
    for (int c = 0; c < count && c < size && values[size - 1 - c] > PCA_NO_VARIANCE * trace; c++) {
        const double* u = vectors + (size_t)(size - 1 - c) * size;
        double* v = p->vectors + (size_t)c * d;
        p->values[c] = values[size - 1 - c] / rows;
        if (!dual) memcpy(v, u, (size_t)d * sizeof(double));
        for (size_t r = 0; dual && r < (size_t)rows; r++) {
            for (size_t f = 0; f < (size_t)d; f++) v[f] += u[r] * centred[r * d + f];
        }
        pca_unit(v, d);
    }
    free(values);
    free(vectors);
    free(matrix);
    free(centred);
}

static inline void pca_close(pca_t* p) {
    free(p->mean);
    free(p->vectors);
    free(p->values);
}

static inline void pca_project(double* out, const pca_t* p, const floatS* x, int rows) { // (rows, count), (rows, d)
    for (size_t r = 0; r < (size_t)rows; r++) {
        for (size_t c = 0; c < (size_t)p->count; c++) {
            double sum = 0;
            for (size_t f = 0; f < (size_t)p->d; f++) {
                sum += p->vectors[c * p->d + f] * ((double)x[r * p->d + f] - p->mean[f]);
            }
            out[r * p->count + c] = sum;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Pictures

typedef struct {
    pca_t pca;              // three components
    double low[3], high[3]; // what becomes 0 and 1
} pca_colours_t;

// Of n sorted values, by linear interpolation between the two nearest.
static inline double pca_percentile(const double* sorted, int n, double percent) {
    double at = percent / 100 * (n - 1);
    int below = (int)at;
    if (below >= n - 1) return sorted[n - 1];
    return sorted[below] + (at - below) * (sorted[below + 1] - sorted[below]);
}

// Components and ranges of the tokens of one image, or of several.
static inline void pca_colours_fit(pca_colours_t* c,
                                   const floatS* tokens, // (rows, d)
                                   int rows, int d, double percent) {
    pca_fit(&c->pca, tokens, rows, d, 3);
    double* values = (double*)malloc_check((size_t)rows * 3 * sizeof(double), "components");
    double* sorted = (double*)malloc_check((size_t)rows * sizeof(double), "components in order");
    pca_project(values, &c->pca, tokens, rows);
    for (int i = 0; i < 3; i++) {
        for (int r = 0; r < rows; r++) sorted[r] = values[3 * (size_t)r + i];
        qsort(sorted, (size_t)rows, sizeof(double), compare_doubles);
        c->low[i] = pca_percentile(sorted, rows, percent);
        c->high[i] = pca_percentile(sorted, rows, 100 - percent);
    }
    free(sorted);
    free(values);
}

static inline void pca_colours_close(pca_colours_t* c) { pca_close(&c->pca); }

// Red, green and blue of tokens, in [0, 1].
static inline void pca_colours_values(double* rgb,          // (rows, 3)
                                      const pca_colours_t* c,
                                      const floatS* tokens, // (rows, d)
                                      int rows) {
    pca_project(rgb, &c->pca, tokens, rows);
    for (size_t v = 0; v < (size_t)rows * 3; v++) {
        double low = c->low[v % 3], range = c->high[v % 3] - low, value = (rgb[v] - low) / range;
        rgb[v] = range > 0 ? (value < 0 ? 0 : value > 1 ? 1 : value) : 0.5;
    }
}

// The picture of one image's tokens, each a square of side x side pixels.
static inline void pca_colours_picture(uint8_t* picture, // (GH side, GW side, 3)
                                       const pca_colours_t* c,
                                       const floatS* tokens, // (GH, GW, d)
                                       int GH, int GW, int side) {
    double* rgb = (double*)malloc_check((size_t)GH * GW * 3 * sizeof(double), "colours");
    pca_colours_values(rgb, c, tokens, GH * GW);
    for (size_t y = 0; y < (size_t)GH * side; y++) {
        for (size_t x = 0; x < (size_t)GW * side; x++) {
            const double* from = rgb + (y / side * GW + x / side) * 3;
            uint8_t* to = picture + (y * GW * side + x) * 3;
            for (int i = 0; i < 3; i++) to[i] = (uint8_t)(from[i] * 255 + 0.5);
        }
    }
    free(rgb);
}
