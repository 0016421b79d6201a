// embed.h: from an image to the tokens of a vision transformer, and from its output tokens back to a feature map.
//
//   bytes -> [-1, 1] -> resized and normalised -> patches as rows -> (a matmul) -> + positions, behind class and
//   register tokens -> (the blocks) -> without those prefix tokens: row gy GW + gx of an image is pixel (gy, gx) of its
//   feature map
//
// Both resizes interpolate along y and x separately: out = R_y in R_x^T with a small matrix R (output, input) an axis.
// For the image, R is bilinear: two entries a row, at an index computed in integers, exact for any size. For the
// position table, R is bicubic with antialias; as out is linear in pos, the backward is the transpose,
// dpos = R_y^T dout R_x. The image needs no gradient.
//
// Look next at dev/cpu/conv.h.
#pragma once
#include <assert.h>

// defines: floatX, floatS, stream_t
#include "common/device.h"
// defines: channel_affine_t
#include "common/ops.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"

void image_from_bytes(floatX* out, const uint8_t* bytes, size_t n, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing(n))
    for (size_t i = 0; i < n; i++) out[i] = bytes[i] / (floatX)127.5 - 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Bilinear resize

// An output sample lies between inputs `lo` and `hi`, at `fraction` of the way.
typedef struct {
    int lo, hi;
    floatX fraction;
} bilinear_tap_t;

// src = (o + 1/2) size / out_size - 1/2 = ((2 o + 1) size - out_size) / (2 out_size), not below 0.
static inline bilinear_tap_t bilinear_tap(int o, int size, int out_size) {
    int64_t numerator = (2 * (int64_t)o + 1) * size - out_size, denominator = 2 * (int64_t)out_size;
    if (numerator < 0) numerator = 0;
    bilinear_tap_t tap;
    tap.lo = (int)(numerator / denominator);
    tap.hi = tap.lo + 1 < size ? tap.lo + 1 : size - 1;
    tap.fraction = (floatX)(numerator % denominator) / (floatX)denominator;
    return tap;
}

void resize_bilinear_forward(floatX* out,     // (B, OH, OW, 3)
                             const floatX* x, // (B, H, W, 3)
                             channel_affine_t affine, int B, int H, int W, int OH, int OW, stream_t s) {
    (void)s;
    bilinear_tap_t* columns = (bilinear_tap_t*)cpu_scratch(0, OW * sizeof(bilinear_tap_t));
    for (int i = 0; i < OW; i++) columns[i] = bilinear_tap(i, W, OW);
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * OH * OW * 6))
    for (size_t row = 0; row < (size_t)B * OH; row++) {
        bilinear_tap_t ty = bilinear_tap((int)(row % OH), H, OH);
        const floatX* image = x + row / OH * H * W * 3;
        const floatX* upper = image + (size_t)ty.lo * W * 3;
        const floatX* lower = image + (size_t)ty.hi * W * 3;
        for (int i = 0; i < OW; i++) {
            bilinear_tap_t tx = columns[i];
            for (int c = 0; c < 3; c++) {
                floatX above = (1 - tx.fraction) * upper[tx.lo * 3 + c] + tx.fraction * upper[tx.hi * 3 + c];
                floatX below = (1 - tx.fraction) * lower[tx.lo * 3 + c] + tx.fraction * lower[tx.hi * 3 + c];
                floatX value = (1 - ty.fraction) * above + ty.fraction * below;
                out[(row * OW + i) * 3 + c] = (floatX)affine.scale[c] * value + (floatX)affine.shift[c];
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Patches

void patchify_forward(floatX* out,     // (B, (H/patch) (W/patch), C patch^2)
                      const floatX* x, // (B, H, W, C)
                      int B, int H, int W, int C, int patch, stream_t s) {
    (void)s;
    int GH = H / patch, GW = W / patch;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * H * W * C))
    for (size_t grid_row = 0; grid_row < (size_t)B * GH; grid_row++) {
        size_t b = grid_row / GH, gy = grid_row % GH;
        for (int gx = 0; gx < GW; gx++) {
            floatX* o = out + (grid_row * GW + gx) * C * patch * patch;
            for (int c = 0; c < C; c++) {
                for (int ky = 0; ky < patch; ky++) {
                    const floatX* line = x + ((b * H + gy * patch + ky) * W + (size_t)gx * patch) * C + c;
                    for (int kx = 0; kx < patch; kx++) *o++ = line[(size_t)C * kx];
                }
            }
        }
    }
}

// The line ky of a token, patch pixels of C channels, is a piece of line gy patch + ky of the map: where it lies there.
static inline size_t unpatchify_place(size_t line, int H, int W, int C, int patch) {
    size_t GW = (size_t)(W / patch), token = line / patch, ky = line % patch, GH = (size_t)(H / patch);
    size_t b = token / (GH * GW), gy = token / GW % GH, gx = token % GW;
    return ((b * H + gy * patch + ky) * W + gx * patch) * C;
}

void unpatchify_forward(floatX* out,     // (B, H, W, C)
                        const floatX* x, // (B, (H/patch) (W/patch), patch^2 C)
                        int B, int H, int W, int C, int patch, stream_t s) {
    (void)s;
    size_t lines = (size_t)B * (H / patch) * (W / patch) * patch, length = (size_t)patch * C;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * H * W * C))
    for (size_t i = 0; i < lines; i++) {
        memcpy(out + unpatchify_place(i, H, W, C, patch), x + i * length, length * sizeof(floatX));
    }
}

void unpatchify_backward(floatX* dx,         // (B, (H/patch) (W/patch), patch^2 C)
                         const floatX* dout, // (B, H, W, C)
                         int B, int H, int W, int C, int patch, stream_t s) {
    (void)s;
    size_t lines = (size_t)B * (H / patch) * (W / patch) * patch, length = (size_t)patch * C;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * H * W * C))
    for (size_t i = 0; i < lines; i++) {
        memcpy(dx + i * length, dout + unpatchify_place(i, H, W, C, patch), length * sizeof(floatX));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Position table

// Keys' cubic kernel with a = -0.5.
static inline double cubic_kernel(double t) {
    t = fabs(t);
    if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
    if (t < 2) return ((-0.5 * t + 2.5) * t - 4) * t + 2;
    return 0;
}

// R (out_size, size): output i lies at `centre` on the input axis. Where the table shrinks, the kernel is widened by as
// much (antialias). Taps outside the table are left out, and the rest are scaled to sum to one.
static inline void cubic_matrix(floatS* R, int size, int out_size) {
    double scale = (double)size / out_size, width = scale > 1 ? scale : 1;
    for (int i = 0; i < out_size; i++) {
        double centre = scale * (i + 0.5), sum = 0;
        int lo = (int)(centre - 2 * width + 0.5), hi = (int)(centre + 2 * width + 0.5);
        lo = lo < 0 ? 0 : lo;
        hi = hi > size ? size : hi;
        for (int j = lo; j < hi; j++) sum += cubic_kernel((j - centre + 0.5) / width);
        for (int j = 0; j < size; j++) {
            R[(size_t)i * size + j] = j < lo || j >= hi ? 0 : (floatS)(cubic_kernel((j - centre + 0.5) / width) / sum);
        }
    }
}

// The matrices R_y (GH, grid), R_x (GW, grid), and room for the table resampled along one axis (GH, grid, C).
typedef struct { floatS *y, *x, *half; } position_scratch_t;

static inline position_scratch_t position_scratch(int grid, int GH, int GW, int C) {
    position_scratch_t p;
    size_t y_size = (size_t)GH * grid, x_size = (size_t)GW * grid;
    p.y = (floatS*)cpu_scratch(0, (y_size + x_size + y_size * C) * sizeof(floatS));
    p.x = p.y + y_size;
    p.half = p.x + x_size;
    cubic_matrix(p.y, grid, GH);
    cubic_matrix(p.x, grid, GW);
    return p;
}

// out += weight x, for one entry of R; most of them are zero.
static inline void add_weighted(floatS* out, floatS weight, const floatS* x, size_t n) {
    if (weight == 0) return;
    for (size_t i = 0; i < n; i++) out[i] += weight * x[i];
}

void position_resample_forward(floatX* out,       // (prefix + GH GW, C)
                               const floatX* pos, // (prefix + grid grid, C)
                               int prefix, int grid, int GH, int GW, int C, stream_t s) {
    (void)s;
    position_scratch_t R = position_scratch(grid, GH, GW, C);
    size_t line = (size_t)grid * C, head = (size_t)prefix * C;
    memcpy(out, pos, head * sizeof(floatX));
    #pragma omp parallel for schedule(static) if (worth_sharing((double)GH * (grid + GW) * grid * C))
    for (int y = 0; y < GH; y++) {
        floatS* half = R.half + y * line;
        memset(half, 0, line * sizeof(floatS));
        for (int i = 0; i < grid; i++) add_weighted(half, R.y[y * grid + i], pos + head + i * line, line);
        for (int x = 0; x < GW; x++) {
            floatX* o = out + head + ((size_t)y * GW + x) * C;
            memset(o, 0, C * sizeof(floatX));
            for (int j = 0; j < grid; j++) add_weighted(o, R.x[x * grid + j], half + (size_t)j * C, C);
        }
    }
}

void position_resample_backward(floatS* dpos,       // (prefix + grid grid, C) +=
                                const floatS* dout, // (prefix + GH GW, C)
                                int prefix, int grid, int GH, int GW, int C, stream_t s) {
    (void)s;
    position_scratch_t R = position_scratch(grid, GH, GW, C);
    size_t line = (size_t)grid * C, head = (size_t)prefix * C;
    add_weighted(dpos, 1, dout, head);
    #pragma omp parallel for schedule(static) if (worth_sharing((double)GH * GW * grid * C))
    for (int y = 0; y < GH; y++) {
        floatS* half = R.half + y * line;
        memset(half, 0, line * sizeof(floatS));
        for (int x = 0; x < GW; x++) {
            const floatS* d = dout + head + ((size_t)y * GW + x) * C;
            for (int j = 0; j < grid; j++) add_weighted(half + (size_t)j * C, R.x[x * grid + j], d, C);
        }
    }
    #pragma omp parallel for schedule(static) if (worth_sharing((double)GH * grid * grid * C))
    for (int i = 0; i < grid; i++) {
        for (int y = 0; y < GH; y++) add_weighted(dpos + head + i * line, R.y[y * grid + i], R.half + y * line, line);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Tokens

// The order is class token, registers, patches. Only patches and, with pos_class, the class token have positions.
void tokens_forward(floatS* out,           // (B, T, C)
                    const floatX* patches, // (B, N, C)
                    const floatX* cls,     // (C) or NULL
                    const floatX* reg,     // (R, C) or NULL when R is 0
                    const floatX* pos,     // (pos_class + N, C) or NULL
                    int B, int N, int C, int R, int pos_class, stream_t s) {
    (void)s;
    assert((cls && pos) || !pos_class);
    size_t prefix = (cls ? 1 : 0) + R, T = prefix + N;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C))
    for (size_t row = 0; row < B * T; row++) {
        size_t b = row / T, t = row % T;
        floatS* o = out + row * C;
        const floatX* value;
        const floatX* position = NULL;
        if (t >= prefix) {
            value = patches + (b * N + t - prefix) * C;
            if (pos) position = pos + (pos_class + t - prefix) * C;
        } else if (cls && t == 0) {
            value = cls;
            if (pos_class) position = pos;
        } else {
            value = reg + (t - (cls ? 1 : 0)) * C;
        }
        for (int c = 0; c < C; c++) o[c] = value[c];
        for (int c = 0; position && c < C; c++) o[c] += position[c];
    }
}

void embedding_rows(floatS* out,         // (B, T, C)
                    const floatX* table, // (rows, C)
                    const floatX* pos,   // (T, C) or NULL
                    const int* ids,      // (B, T)
                    int B, int T, int C, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C))
    for (size_t row = 0; row < (size_t)B * T; row++) {
        const floatX *value = table + (size_t)ids[row] * C, *position = pos ? pos + row % T * C : NULL;
        for (int c = 0; c < C; c++) out[row * C + c] = value[c] + (position ? position[c] : 0);
    }
}

// A token's gradient goes to all that was added up in it. Parameters sum over the images, in order.
void tokens_backward(floatX* dpatches,           // (B, N, C)
                     floatS* dcls, floatS* dreg, // (C), (R, C) += or NULL
                     floatS* dpos,               // (pos_class + N, C) += or NULL
                     const floatS* dout,         // (B, T, C)
                     int B, int N, int C, int R, int pos_class, stream_t s) {
    (void)s;
    assert((dcls && dpos) || !pos_class);
    size_t prefix = (dcls ? 1 : 0) + R, T = prefix + N;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C))
    for (size_t t = 0; t < T; t++) {
        floatS* token = NULL;
        floatS* position = NULL;
        if (t >= prefix) {
            if (dpos) position = dpos + (pos_class + t - prefix) * C;
        } else if (dcls && t == 0) {
            token = dcls;
            if (pos_class) position = dpos;
        } else {
            token = dreg + (t - (dcls ? 1 : 0)) * C;
        }
        for (size_t b = 0; b < (size_t)B; b++) {
            const floatS* d = dout + (b * T + t) * C;
            for (int c = 0; t >= prefix && c < C; c++) dpatches[(b * N + t - prefix) * C + c] = d[c];
            if (token) add_weighted(token, 1, d, C);
            if (position) add_weighted(position, 1, d, C);
        }
    }
}

void drop_prefix_forward(floatX* out,     // (B, T - P, C)
                         const floatX* x, // (B, T, C)
                         int B, int T, int P, int C, stream_t s) {
    (void)s;
    size_t kept = (size_t)(T - P) * C;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C))
    for (size_t b = 0; b < (size_t)B; b++) memcpy(out + b * kept, x + (b * T + P) * C, kept * sizeof(floatX));
}

void drop_prefix_backward(floatX* dx,         // (B, T, C)
                          const floatX* dout, // (B, T - P, C)
                          int B, int T, int P, int C, stream_t s) {
    (void)s;
    size_t kept = (size_t)(T - P) * C;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C))
    for (size_t b = 0; b < (size_t)B; b++) {
        memset(dx + b * T * C, 0, (size_t)P * C * sizeof(floatX));
        memcpy(dx + (b * T + P) * C, dout + b * kept, kept * sizeof(floatX));
    }
}

// Between the rows of a whole and those of its two parts, in bytes.
typedef enum { TOKENS_CONCAT, TOKENS_SPLIT } tokens_way_t;
static inline void move_tokens(void* whole, void* a, void* b, tokens_way_t way, size_t B, size_t a_row, size_t b_row) {
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * (a_row + b_row) / sizeof(floatX)))
    for (size_t i = 0; i < B; i++) {
        char *row = (char*)whole + i * (a_row + b_row), *of_a = (char*)a + i * a_row, *of_b = (char*)b + i * b_row;
        memcpy(way == TOKENS_CONCAT ? row : of_a, way == TOKENS_CONCAT ? of_a : row, a_row);
        memcpy(way == TOKENS_CONCAT ? row + a_row : of_b, way == TOKENS_CONCAT ? of_b : row + a_row, b_row);
    }
}

void concat_tokens(floatX* out,     // (B, P + Q, C)
                   const floatX* a, // (B, P, C)
                   const floatX* b, // (B, Q, C)
                   int B, int P, int Q, int C, stream_t s) {
    (void)s;
    size_t token = (size_t)C * sizeof(floatX);
    move_tokens(out, (void*)a, (void*)b, TOKENS_CONCAT, (size_t)B, P * token, Q * token);
}
void split_tokens(floatX* a,       // (B, P, C)
                  floatX* b,       // (B, Q, C)
                  const floatX* x, // (B, P + Q, C)
                  int B, int P, int Q, int C, stream_t s) {
    (void)s;
    size_t token = (size_t)C * sizeof(floatX);
    move_tokens((void*)x, a, b, TOKENS_SPLIT, (size_t)B, P * token, Q * token);
}
void concat_stream(floatS* out,     // (B, P + Q, C)
                   const floatS* a, // (B, P, C)
                   const floatS* b, // (B, Q, C)
                   int B, int P, int Q, int C, stream_t s) {
    (void)s;
    size_t token = (size_t)C * sizeof(floatS);
    move_tokens(out, (void*)a, (void*)b, TOKENS_CONCAT, (size_t)B, P * token, Q * token);
}
void split_stream(floatS* a,       // (B, P, C)
                  floatS* b,       // (B, Q, C)
                  const floatS* x, // (B, P + Q, C)
                  int B, int P, int Q, int C, stream_t s) {
    (void)s;
    size_t token = (size_t)C * sizeof(floatS);
    move_tokens((void*)x, a, b, TOKENS_SPLIT, (size_t)B, P * token, Q * token);
}

void mean_tokens_forward(floatX* out, const floatX* x, int B, int T, int C, stream_t s) { // (B, C) <- (B, T, C)
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C))
    for (size_t b = 0; b < (size_t)B; b++) {
        double* sum = (double*)cpu_scratch(0, C * sizeof(double));
        memset(sum, 0, C * sizeof(double));
        for (size_t t = 0; t < (size_t)T; t++) {
            for (int c = 0; c < C; c++) sum[c] += x[(b * T + t) * C + c];
        }
        for (int c = 0; c < C; c++) out[b * C + c] = (floatX)(sum[c] / T);
    }
}

void mean_tokens_backward(floatX* dx, const floatX* dout, int B, int T, int C, stream_t s) { // (B, T, C) <- (B, C)
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * C))
    for (size_t row = 0; row < (size_t)B * T; row++) {
        for (int c = 0; c < C; c++) dx[row * C + c] = dout[row / T * C + c] / T;
    }
}
