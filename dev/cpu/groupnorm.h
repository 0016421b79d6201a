// groupnorm.h: GroupNorm (Wu & He 2018) with or without the swish behind it, and the passes over memory that it shares
// with BatchNorm (dev/cpu/batchnorm.h).
//
// A set of n values, here all positions and C/G neighbouring channels of one image, is brought to mean 0 and variance
// 1, then each channel is given a scale and a shift, then an activation f follows:
//
//   mean = (1/n) sum x    var = (1/n) sum (x - mean)^2    rstd = 1 / sqrt(var + eps)
//   xhat = (x - mean) rstd    h = weight_c xhat + bias_c    out = f(h),  f(h) = h sigmoid(h) or h
//
// BatchNorm is the same with another set: one channel of all images of a chunk. As images follow one another in memory,
// a chunk of images with HW positions each is one "image" with chunk HW positions and as many groups as channels.
//
// First come these formulas and their derivatives as loops over values, the truth that tests hold the fast form
// against; then the fast form. Look next at dev/cpu/batchnorm.h.
#pragma once
// defines: floatX, floatS, stream_t
#include "common/device.h"
// defines: activation_t, LEAKY_SLOPE
#include "common/ops.h"
// defines: fast_sigmoid
#include "dev/cpu/fastmath.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"

// For functions whose argument `act` becomes a constant at the call.
#define NORM_INLINE __attribute__((always_inline)) static inline

// ---------------------------------------------------------------------------------------------------------------------
// The truth
//
// x is (sets, rows, C): for GroupNorm a set is an image with its HW positions and G groups of channels, for BatchNorm a
// chunk of images with all their positions, and each channel is a group.

// f(h); `act` is a constant wherever this is called.
NORM_INLINE floatX norm_activate(floatX h, activation_t act) {
    if (act == ACT_SWISH) return h * fast_sigmoid(h);
    if (act == ACT_LEAKY) return h > 0 ? h : (floatX)LEAKY_SLOPE * h;
    return h;
}

// With `fixed` statistics (BatchNorm that does not train) mean and rstd are read, else written.
static inline void norm_forward_naive(floatX* out,                // (sets, rows, C)
                                      floatS* mean, floatS* rstd, // (sets, G)
                                      const floatX* x,            // (sets, rows, C)
                                      const floatX* weight,       // (C)
                                      const floatX* bias,         // (C)
                                      int sets, size_t rows, int C, int G, double eps, activation_t act, int fixed) {
    int width = C / G;
    double n = (double)rows * width;
    for (int k = 0; k < sets * G; k++) {
        size_t first = (size_t)(k / G) * rows * C + k % G * width; // the group's values: `width` in each row
        double sum = 0, squares = 0;
        for (size_t i = 0; i < rows; i++) for (int c = 0; c < width; c++) sum += x[first + i * C + c];
        double m = fixed ? mean[k] : sum / n;
        for (size_t i = 0; i < rows; i++) for (int c = 0; c < width; c++) {
            squares += (x[first + i * C + c] - m) * (x[first + i * C + c] - m);
        }
        mean[k] = (floatS)m;
        if (!fixed) rstd[k] = (floatS)(1 / sqrt(squares / n + eps));
        for (size_t i = 0; i < rows; i++) for (int c = 0; c < width; c++) {
            int channel = k % G * width + c;
            floatX xhat = (x[first + i * C + c] - mean[k]) * rstd[k];
            out[first + i * C + c] = norm_activate(weight[channel] * xhat + bias[channel], act);
        }
    }
}

// Let dy = dout f'(h), the gradient at h = weight xhat + bias. At once
//   dbias_c = sum dy    dweight_c = sum dy xhat    t = weight_c dy, the gradient at xhat.
// x acts on xhat = (x - mean) rstd directly, through the mean (d mean / dx = 1/n), and through rstd: with
// d var / dx = 2 (x - mean) / n and d rstd / d var = -rstd^3 / 2, d rstd / dx = -rstd^2 xhat / n. Adding up over the n
// values:
//   dx = rstd (t - (1/n) sum t - xhat (1/n) sum t xhat)
// The two sums over a group are sums of weight_c dbias_c and weight_c dweight_c of this set. h comes again from x.
//
// Swish: with a = sigmoid(h), f = h a and f' = a + h a (1 - a) = a (1 + h (1 - a)).

NORM_INLINE floatX norm_activation_slope(floatX h, activation_t act) {
    if (act == ACT_SWISH) {
        floatX a = fast_sigmoid(h);
        return a * (1 + h * (1 - a));
    }
    if (act == ACT_LEAKY) return h > 0 ? 1 : (floatX)LEAKY_SLOPE;
    return 1;
}

// With `fixed` statistics the two means are left out.
static inline void norm_backward_naive(floatX* dx,                             // (sets, rows, C)
                                       floatS* dweight, floatS* dbias,         // (C) +=
                                       const floatX* dout,                     // (sets, rows, C)
                                       const floatX* x,                        // (sets, rows, C)
                                       const floatX* weight,                   // (C)
                                       const floatX* bias,                     // (C)
                                       const floatS* mean, const floatS* rstd, // (sets, G)
                                       int sets, size_t rows, int C, int G, activation_t act, int fixed) {
    int width = C / G;
    for (int k = 0; k < sets * G; k++) {
        size_t first = (size_t)(k / G) * rows * C + k % G * width;
        double sum = 0, sum_xhat = 0, n = fixed ? INFINITY : (double)rows * width;
        for (int pass = 0; pass < 2; pass++) for (size_t i = 0; i < rows; i++) for (int c = 0; c < width; c++) {
            size_t at = first + i * C + c;
            int channel = k % G * width + c;
            floatX xhat = (x[at] - mean[k]) * rstd[k];
            floatX dy = dout[at] * norm_activation_slope(weight[channel] * xhat + bias[channel], act);
            if (pass == 0) {
                dbias[channel] += dy;
                dweight[channel] += dy * xhat;
                sum += weight[channel] * dy;
                sum_xhat += weight[channel] * dy * xhat;
            } else {
                dx[at] = (floatX)(rstd[k] * (weight[channel] * dy - sum / n - xhat * sum_xhat / n));
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The fast form
//
// Rows (positions) are cut into pieces of NORM_ROWS, which threads share. A piece is small enough to stay in the cache,
// so its variance is computed around its own mean, in a second look at it; no digits cancel as they would in E[x^2] -
// E[x]^2. The pieces are combined in order, in double.

enum { NORM_ROWS = 64, NORM_AT_ONCE = 4 }; // rows of a piece; rows that are added up in registers

// The sizes of a normalisation: `sets` images or chunks of `rows` rows, cut into `pieces` each.
typedef struct {
    int sets, C, G;
    size_t rows, pieces;
    size_t own; // weight and bias of a set begin so many values behind those of the set before; 0: all share them
} norm_sizes_t;

static inline norm_sizes_t norm_sizes(int sets, size_t rows, int C, int G) {
    norm_sizes_t z = {sets, C, G, rows, (rows + NORM_ROWS - 1) / NORM_ROWS, 0};
    return z;
}

// One piece: its set and its rows as a range over all sets' rows.
typedef struct {
    size_t set, begin, rows;
} norm_piece_t;

static inline norm_piece_t norm_piece(norm_sizes_t z, size_t index) {
    size_t first = index % z.pieces * NORM_ROWS, left = z.rows - first;
    norm_piece_t p = {index / z.pieces, index / z.pieces * z.rows + first, left < NORM_ROWS ? left : (size_t)NORM_ROWS};
    return p;
}

// The work of one pass over all values, for worth_sharing.
static inline double norm_work(norm_sizes_t z, activation_t act) {
    return (double)z.sets * z.rows * z.C * (act == ACT_SWISH ? WORK_OF_EXP : 1);
}

// Slots of cpu_scratch.
enum { NORM_SCRATCH_CHANNELS = 0, NORM_SCRATCH_PIECES = 1, NORM_SCRATCH_SUMS = 2, NORM_SCRATCH_WORK = 3 };

// ---------------------------------------------------------------------------------------------------------------------
// Statistics

// sum_c += the values, or with `squares` the squared distances from mean_c, of n rows; n is a constant at the call, and
// so are the sums of n rows in registers: with few channels a sum in memory would wait for its own last store.
NORM_INLINE void norm_add_few_rows(floatS* sum, const floatX* x, const floatS* mean, int C, const int n,
                                   const int squares) {
    #pragma omp simd
    for (int c = 0; c < C; c++) {
        floatS total = 0;
        #pragma GCC unroll 4
        for (int k = 0; k < n; k++) {
            floatS value = x[(size_t)k * C + c];
            total += squares ? (value - mean[c]) * (value - mean[c]) : value;
        }
        sum[c] += total;
    }
}

// group_g = the sum over the rows and the channels of group g, of x or of (x - mean)^2.
NORM_INLINE void norm_group_sums(double* group,      // (G), `step` apart
                                 size_t step,
                                 const floatX* x,    // (rows, C)
                                 floatS* sum,        // (C) working space
                                 const floatS* mean, // (C)
                                 size_t rows, int C, int G, const int squares) {
    enum { N = NORM_AT_ONCE };
    size_t i = 0;
    memset(sum, 0, C * sizeof(floatS));
    for (; i + N <= rows; i += N) norm_add_few_rows(sum, x + i * C, mean, C, N, squares);
    for (; i < rows; i++) norm_add_few_rows(sum, x + i * C, mean, C, 1, squares);
    for (int g = 0; g < G; g++) {
        double total = 0;
        for (int c = g * (C / G); c < (g + 1) * (C / G); c++) total += sum[c];
        group[g * step] = total;
    }
}

// Mean and sum of squared deviations of each group in one piece.
static inline void norm_piece_moments(double* moments,  // (G, 2)
                                      const floatX* x,  // (rows, C)
                                      floatS* work,     // (2, C)
                                      size_t rows, int C, int G) {
    floatS *sum = work, *mean = work + C;
    int width = C / G;
    norm_group_sums(moments, 2, x, sum, mean, rows, C, G, 0);
    for (int g = 0; g < G; g++) {
        moments[2 * g] /= (double)rows * width;
        for (int c = g * width; c < (g + 1) * width; c++) mean[c] = (floatS)moments[2 * g];
    }
    norm_group_sums(moments + 1, 2, x, sum, mean, rows, C, G, 1);
}

// Pieces p of n_p values with mean m_p and squared deviations q_p from it make up a set with mean m = sum n_p m_p / n
// and squared deviations sum q_p + n_p (m_p - m)^2 (Chan, Golub & LeVeque 1979).
static inline void norm_combine(floatS* mean, floatS* rstd, const double* moments, norm_sizes_t z, size_t set, int g,
                                double eps) {
    double width = (double)z.C / z.G, n = width * (double)z.rows, total = 0, squares = 0;
    const double* m = moments + (set * z.pieces * z.G + g) * 2;
    size_t stride = (size_t)z.G * 2;
    for (size_t p = 0; p < z.pieces; p++) total += width * (double)norm_piece(z, p).rows * m[p * stride];
    for (size_t p = 0; p < z.pieces; p++) {
        double off = m[p * stride] - total / n;
        squares += m[p * stride + 1] + width * (double)norm_piece(z, p).rows * off * off;
    }
    *mean = (floatS)(total / n);
    *rstd = (floatS)(1 / sqrt(squares / n + eps));
}

// mean, rstd (sets, G) of x (sets, rows, C).
static inline void norm_statistics(floatS* mean, floatS* rstd, const floatX* x, norm_sizes_t z, double eps) {
    size_t pieces = z.sets * z.pieces;
    double* moments = (double*)cpu_scratch(NORM_SCRATCH_PIECES, pieces * z.G * 2 * sizeof(double));
    #pragma omp parallel for schedule(static) if (worth_sharing(2 * norm_work(z, ACT_NONE)))
    for (size_t i = 0; i < pieces; i++) {
        norm_piece_t p = norm_piece(z, i);
        floatS* work = (floatS*)cpu_scratch(NORM_SCRATCH_WORK, 2 * z.C * sizeof(floatS));
        norm_piece_moments(moments + i * z.G * 2, x + p.begin * z.C, work, p.rows, z.C, z.G);
    }
    #pragma omp parallel for schedule(static) if (worth_sharing((double)pieces * z.G * 4))
    for (int i = 0; i < z.sets * z.G; i++) norm_combine(mean + i, rstd + i, moments, z, i / z.G, i % z.G, eps);
}

// The statistics repeated for each channel, (sets, 2, C), so that loops over channels read them in order.
static inline const floatS* norm_channels(const floatS* mean, const floatS* rstd, norm_sizes_t z) {
    int C = z.C, G = z.G;
    floatS* channels = (floatS*)cpu_scratch(NORM_SCRATCH_CHANNELS, (size_t)z.sets * 2 * C * sizeof(floatS));
    for (int k = 0; k < z.sets; k++) {
        floatS* m = channels + (size_t)k * 2 * C;
        for (int c = 0; c < C; c++) {
            m[c] = mean[(size_t)k * G + c / (C / G)];
            m[C + c] = rstd[(size_t)k * G + c / (C / G)];
        }
    }
    return channels;
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

NORM_INLINE void norm_apply_rows(floatX* out, const floatX* x, const floatX* weight, const floatX* bias,
                                 const floatS* mean, const floatS* rstd, size_t rows, int C, const activation_t act) {
    for (size_t i = 0; i < rows; i++) {
        #pragma omp simd
        for (int c = 0; c < C; c++) {
            out[i * C + c] = norm_activate((x[i * C + c] - mean[c]) * rstd[c] * weight[c] + bias[c], act);
        }
    }
}

// out = f(weight xhat + bias) from given statistics.
static inline void norm_apply(floatX* out, const floatX* x, const floatX* weight, const floatX* bias,
                              const floatS* mean, const floatS* rstd, norm_sizes_t z, activation_t act) {
    const floatS* channels = norm_channels(mean, rstd, z);
    int C = z.C;
    #pragma omp parallel for schedule(static) if (worth_sharing(norm_work(z, act)))
    for (size_t i = 0; i < z.sets * z.pieces; i++) {
        norm_piece_t p = norm_piece(z, i);
        size_t at = p.begin * C;
        const floatS* m = channels + p.set * 2 * C;
        const floatX *w = weight + p.set * z.own, *b = bias + p.set * z.own;
        if (act == ACT_SWISH) norm_apply_rows(out + at, x + at, w, b, m, m + C, p.rows, C, ACT_SWISH);
        else if (act == ACT_LEAKY) norm_apply_rows(out + at, x + at, w, b, m, m + C, p.rows, C, ACT_LEAKY);
        else norm_apply_rows(out + at, x + at, w, b, m, m + C, p.rows, C, ACT_NONE);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward: a pass that finds the four sums and one that writes dx

// What both passes of the backward read for one piece. `mean`, `rstd` are those of each channel.
typedef struct {
    const floatX *dout, *x;                // (rows, C)
    const floatX *weight, *bias;           // (C)
    const floatS *mean, *rstd;             // (C)
    size_t rows;
    int C;
} norm_rows_t;

// sums (2, C) += the sums of dy and of dy xhat over the n rows from `first` on; n is a constant at the call.
NORM_INLINE void norm_sum_few_rows(floatS* sums, norm_rows_t r, size_t first, const int n, const activation_t act) {
    int C = r.C;
    const floatX *dout = r.dout + first * C, *x = r.x + first * C;
    #pragma omp simd
    for (int c = 0; c < C; c++) {
        floatS sum = 0, sum_xhat = 0;
        #pragma GCC unroll 4
        for (int k = 0; k < n; k++) {
            size_t at = (size_t)k * C + c;
            floatX xhat = (x[at] - r.mean[c]) * r.rstd[c];
            floatX dy = dout[at] * norm_activation_slope(xhat * r.weight[c] + r.bias[c], act);
            sum += dy;
            sum_xhat += dy * xhat;
        }
        sums[c] += sum;
        sums[C + c] += sum_xhat;
    }
}

// sums (2, C) = sum over rows of dy and of dy xhat.
NORM_INLINE void norm_sum_rows(floatS* sums, norm_rows_t r, const activation_t act) {
    size_t i = 0;
    memset(sums, 0, 2 * r.C * sizeof(floatS));
    for (; i + NORM_AT_ONCE <= r.rows; i += NORM_AT_ONCE) norm_sum_few_rows(sums, r, i, NORM_AT_ONCE, act);
    for (; i < r.rows; i++) norm_sum_few_rows(sums, r, i, 1, act);
}

// dx = add + rstd (weight dy - offset - xhat slope); offset and slope (C) are the two means over the group. Rows of
// `add` are add_step apart: 0 where one row of zeros stands for all.
NORM_INLINE void norm_dx_rows(floatX* dx, const floatX* add, size_t add_step, norm_rows_t r, const floatS* offset,
                              const floatS* slope, const activation_t act) {
    int C = r.C;
    for (size_t i = 0; i < r.rows; i++) {
        const floatX *dout = r.dout + i * C, *x = r.x + i * C, *a = add + i * add_step;
        #pragma omp simd
        for (int c = 0; c < C; c++) {
            floatX xhat = (x[c] - r.mean[c]) * r.rstd[c];
            floatX dy = dout[c] * norm_activation_slope(xhat * r.weight[c] + r.bias[c], act);
            dx[i * C + c] = r.rstd[c] * (r.weight[c] * dy - offset[c] - xhat * slope[c]) + a[c];
        }
    }
}

// totals (sets, 2, C) = the sums of each set's pieces, added in order.
static inline void norm_add_pieces(double* totals, const floatS* sums, norm_sizes_t z) {
    enum { COLUMNS = 64 };
    int width = 2 * z.C, blocks = (width + COLUMNS - 1) / COLUMNS;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)z.sets * z.pieces * width))
    for (int i = 0; i < z.sets * blocks; i++) {
        int set = i / blocks, begin = i % blocks * COLUMNS, end = begin + COLUMNS < width ? begin + COLUMNS : width;
        double* total = totals + (size_t)set * width;
        for (int c = begin; c < end; c++) total[c] = 0;
        for (size_t p = 0; p < z.pieces; p++) {
            const floatS* sum = sums + (set * z.pieces + p) * width;
            for (int c = begin; c < end; c++) total[c] += sum[c];
        }
    }
}

// means (sets, 2, C): for each channel the means of t and of t xhat over its group.
static inline void norm_group_means(floatS* means, const double* totals, const floatX* weight, norm_sizes_t z) {
    int C = z.C, width = C / z.G;
    for (int k = 0; k < z.sets * 2; k++) {
        const double* total = totals + (size_t)k * C;
        const floatX* w = weight + k / 2 * z.own;
        for (int g = 0; g < z.G; g++) {
            double sum = 0;
            for (int c = g * width; c < (g + 1) * width; c++) sum += w[c] * total[c];
            floatS mean = (floatS)(sum / ((double)z.rows * width));
            for (int c = g * width; c < (g + 1) * width; c++) means[(size_t)k * C + c] = mean;
        }
    }
}

// The two passes of one piece, with the activation made a constant.
static inline void norm_sum_piece(floatS* sums, norm_rows_t r, activation_t act) {
    if (act == ACT_SWISH) norm_sum_rows(sums, r, ACT_SWISH);
    else if (act == ACT_LEAKY) norm_sum_rows(sums, r, ACT_LEAKY);
    else norm_sum_rows(sums, r, ACT_NONE);
}
static inline void norm_dx_piece(floatX* dx, const floatX* add, size_t add_step, norm_rows_t r, const floatS* means,
                                 activation_t act) {
    const floatS *offset = means, *slope = means + r.C;
    if (act == ACT_SWISH) norm_dx_rows(dx, add, add_step, r, offset, slope, ACT_SWISH);
    else if (act == ACT_LEAKY) norm_dx_rows(dx, add, add_step, r, offset, slope, ACT_LEAKY);
    else norm_dx_rows(dx, add, add_step, r, offset, slope, ACT_NONE);
}

// dx = add + gradient. With `fixed` statistics (BatchNorm that does not train) mean and rstd do not depend on x, and
// the two means are left out. Returns the sums (sets, 2, C) of dy and of dy xhat over each set, in scratch memory.
static inline const double* norm_backward(floatX* dx, const floatX* dout, const floatX* add, const floatX* x,
                                          const floatX* weight, const floatX* bias, const floatS* mean,
                                          const floatS* rstd, norm_sizes_t z, activation_t act, int fixed) {
    int C = z.C;
    size_t pieces = z.sets * z.pieces, width = (size_t)2 * C;
    const floatS* channels = norm_channels(mean, rstd, z);
    floatS* sums = (floatS*)cpu_scratch(NORM_SCRATCH_PIECES, pieces * width * sizeof(floatS));
    double* totals = (double*)cpu_scratch(NORM_SCRATCH_SUMS, (z.sets * width + C) * (sizeof(double) + sizeof(floatS)));
    floatS* means = (floatS*)(totals + z.sets * width + C);
    floatX* zeros = (floatX*)memset(totals + z.sets * width, 0, C * sizeof(floatX));
    for (int pass = 0; pass < 2; pass++) {
        #pragma omp parallel for schedule(static) if (worth_sharing(2 * norm_work(z, act)))
        for (size_t i = 0; i < pieces; i++) {
            norm_piece_t p = norm_piece(z, i);
            size_t at = p.begin * C;
            const floatS* m = channels + p.set * width;
            norm_rows_t r = {dout + at, x + at, weight + p.set * z.own, bias + p.set * z.own, m, m + C, p.rows, C};
            if (pass == 0) norm_sum_piece(sums + i * width, r, act);
            else norm_dx_piece(dx + at, add ? add + at : zeros, add ? C : 0, r, means + p.set * width, act);
        }
        if (pass == 1) break;
        norm_add_pieces(totals, sums, z);
        if (fixed) memset(means, 0, z.sets * width * sizeof(floatS));
        else norm_group_means(means, totals, weight, z);
    }
    return totals;
}

// dweight, dbias += the sums over all sets, unless NULL.
static inline void norm_add_totals(floatS* dweight, floatS* dbias, const double* totals, norm_sizes_t z) {
    for (int k = 0; dweight && k < z.sets; k++) {
        const double* total = totals + (size_t)k * 2 * z.C;
        for (int c = 0; c < z.C; c++) dbias[c] += (floatS)total[c];
        for (int c = 0; c < z.C; c++) dweight[c] += (floatS)total[z.C + c];
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// GroupNorm

void groupnorm_forward(floatX* out,                // (B, HW, C)
                       floatS* mean, floatS* rstd, // (B, G)
                       const floatX* x,            // (B, HW, C)
                       const floatX* weight,       // (C)
                       const floatX* bias,         // (C)
                       int B, int HW, int C, int G, double eps, activation_t act, stream_t s) {
    (void)s;
    norm_sizes_t z = norm_sizes(B, HW, C, G);
    norm_statistics(mean, rstd, x, z, eps);
    norm_apply(out, x, weight, bias, mean, rstd, z, act);
}

void groupnorm_apply(floatX* out,                            // (B, HW, C)
                     const floatX* x,                        // (B, HW, C)
                     const floatX* weight,                   // (C)
                     const floatX* bias,                     // (C)
                     const floatS* mean, const floatS* rstd, // (B, G)
                     int B, int HW, int C, int G, activation_t act, stream_t s) {
    (void)s;
    norm_apply(out, x, weight, bias, mean, rstd, norm_sizes(B, HW, C, G), act);
}

void groupnorm_backward(floatX* dx,                             // (B, HW, C)
                        floatS* dweight, floatS* dbias,         // (C) or both NULL
                        const floatX* dout,                     // (B, HW, C)
                        const floatX* add,                      // (B, HW, C) or NULL
                        const floatX* x,                        // (B, HW, C)
                        const floatX* weight,                   // (C)
                        const floatX* bias,                     // (C)
                        const floatS* mean, const floatS* rstd, // (B, G)
                        int B, int HW, int C, int G, activation_t act, stream_t s) {
    (void)s;
    norm_sizes_t z = norm_sizes(B, HW, C, G);
    norm_add_totals(dweight, dbias, norm_backward(dx, dout, add, x, weight, bias, mean, rstd, z, act, 0), z);
}

// ---------------------------------------------------------------------------------------------------------------------
// Adaptive GroupNorm: each image has its own weight and bias, which then are activations with a gradient of their own

void adaptive_groupnorm_forward(floatX* out,                // (B, HW, C)
                                floatS* mean, floatS* rstd, // (B, G)
                                const floatX* x,            // (B, HW, C)
                                const floatX* scale,        // (B, C)
                                const floatX* shift,        // (B, C)
                                size_t stride, int B, int HW, int C, int G, double eps, stream_t s) {
    (void)s;
    norm_sizes_t z = norm_sizes(B, HW, C, G);
    z.own = stride;
    norm_statistics(mean, rstd, x, z, eps);
    norm_apply(out, x, scale, shift, mean, rstd, z, ACT_NONE);
}

void adaptive_groupnorm_backward(floatX* dx,                             // (B, HW, C)
                                 floatX* dscale, floatX* dshift,         // (B, C)
                                 const floatX* dout,                     // (B, HW, C)
                                 const floatX* x,                        // (B, HW, C)
                                 const floatX* scale,                    // (B, C)
                                 const floatS* mean, const floatS* rstd, // (B, G)
                                 size_t stride, int B, int HW, int C, int G, stream_t s) {
    (void)s;
    norm_sizes_t z = norm_sizes(B, HW, C, G);
    z.own = stride;
    const floatX* shift = scale; // only an activation's slope would depend on it
    const double* totals = norm_backward(dx, dout, NULL, x, scale, shift, mean, rstd, z, ACT_NONE, 0);
    for (size_t b = 0; b < (size_t)B; b++) {
        for (int c = 0; c < C; c++) dshift[b * stride + c] = (floatX)totals[b * 2 * C + c];
        for (int c = 0; c < C; c++) dscale[b * stride + c] = (floatX)totals[(b * 2 + 1) * C + c];
    }
}

// defines: batchnorm_leaky_forward, batchnorm_leaky_backward, batchnorm_update_running
#include "dev/cpu/batchnorm.h"
