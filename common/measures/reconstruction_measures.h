// reconstruction_measures.h: how well images are reconstructed: PSNR and L1 of bytes, colour, sharpness, SSIM, LPIPS.
//
// PSNR, from the bytes of an image and its original:
//
//     mse  = mean of (a - b)^2 over the bytes of one image
//     PSNR = 10 log10(255^2 / mse), +inf for equal images;  L1 = mean of |a - b| in units of the range [-1, 1]
//
// The PSNR of a set is the mean over its images (LightningDiT, MAETok). The PSNR of the mean mse is another number,
// lower by about ln(10)/20 times the variance of the PSNRs, a decibel or two, and other papers report that: both come
// from psnr_summary, and are never to be compared with each other. Equal images are counted and left out of the mean.
//
// The errors of one image are sums of integers, so exact; a program keeps the values of each image, by its index, and
// sums them up in that order, so that a mean does not depend on batches, threads or ranks.
//
// Colour and sharpness, from bytes as well, tell apart what PSNR does not. The colour error looks at cells of 1/8 of
// the sides, and at what is left of a cell's mean error e without its brightness, d = e - (e_R + e_G + e_B) / 3: the
// mean of |d| over the cells, in levels of 0..255. Sharpness is the mean step from a pixel to its right and lower
// neighbours, of the reconstructions over that of the originals: below 1 they are smoother.
//
// SSIM, structural similarity of two images (Wang et al., "Image quality assessment", 2004), as torchmetrics 1.4.2 and
// later compute it with data_range=(-1, 1).
//
// Around every value of every channel the two images a and b, clamped to [-1, 1], are averaged with a Gaussian window
// of 11 x 11 (sigma 1.5; images mirrored at their edges, the edge itself not repeated):
//
//     mu_a = E[a],  var_a = E[a^2] - mu_a^2,  cov = E[ab] - mu_a mu_b,  C1 = (0.01 * 2)^2,  C2 = (0.03 * 2)^2
//     S    = (2 mu_a mu_b + C1) (2 cov + C2) / ((mu_a^2 + mu_b^2 + C1) (var_a + var_b + C2)),   SSIM = mean of S
//
// over all positions and channels. torchmetrics up to 1.4.1 left out the 5 pixels at the edges. SSIM(a, a) = 1.
//
// S needs a, b, a^2 + b^2 and ab averaged, four maps; the window is a product of two, so each costs 2 x 11 products a
// value. Everything is double: var and cov are differences of almost equal numbers. Pieces of SSIM_ROWS rows, small
// enough for a core's cache, are summed apart and then in order, so that threads do not show in the result.
//
// LPIPS, to report: the network of common/models/lpips.h with its memory, run forward only, any number of images up to
// `batch` at a time.
//
// LightningDiT feeds the decoder's output as it comes, unclamped, beside the original in [-1, 1] (perceptual_distance).
// RAE goes through bytes first (perceptual_distance_bytes). The score of a set is the mean over its images
// (score_mean), which LightningDiT's mean of batch means only is where all batches are full.
//
//     perceptual_open(&p, vgg16_config(), batch, H, W);
//     weights_load_lpips(&p.params, path);             // p.params has the names of the lpips package
//     perceptual_distance(&p, distances, xhat, x, n, stream);
//     perceptual_resize(&p, H, W);                     // where other sizes follow
//
// In the GPU build in bf16 activations have 8 bits: report from PRECISION=FP32, which agrees with PyTorch to 1e-6.
// Look next at common/measures/eval_recon.h.
#pragma once
// defines: lpips_t, lpips_register, lpips_plan_forward, lpips_forward
#include "common/models/lpips.h"

// ---------------------------------------------------------------------------------------------------------------------
// PSNR, L1

// Mean squared error of one image.
static inline double mse_bytes(const uint8_t* a, const uint8_t* b, size_t n) { // (n)
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        int d = a[i] - b[i];
        sum += (uint64_t)(d * d);
    }
    return (double)sum / (double)n;
}

// dB; +inf for mse = 0
static inline double psnr_from_mse(double mse) { return mse > 0 ? 10 * log10(255.0 * 255.0 / mse) : INFINITY; }

static inline double psnr_bytes(const uint8_t* a, const uint8_t* b, size_t n) { // (n)
    return psnr_from_mse(mse_bytes(a, b, n));
}

// Mean absolute difference in units of the image's range [-1, 1].
static inline double l1_bytes(const uint8_t* a, const uint8_t* b, size_t n) { // (n)
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += (uint64_t)(a[i] > b[i] ? a[i] - b[i] : b[i] - a[i]);
    return (double)sum / (double)n / 127.5;
}

// Mean over COLOUR_CELLS x COLOUR_CELLS cells of the length of the cell's mean error without its brightness.
enum { COLOUR_CELLS = 8 };
static inline double colour_error_bytes(const uint8_t* a, const uint8_t* b, int H, int W) { // (H, W, 3)
    double total = 0;
    int rows = H < COLOUR_CELLS ? H : COLOUR_CELLS, columns = W < COLOUR_CELLS ? W : COLOUR_CELLS;
    for (int cell = 0; cell < rows * columns; cell++) {
        int top = cell / columns * H / rows, end = (cell / columns + 1) * H / rows;
        int left = cell % columns * W / columns, right = (cell % columns + 1) * W / columns;
        int64_t error[3] = {0, 0, 0};
        for (int y = top; y < end; y++) {
            size_t row = (size_t)y * W * 3;
            for (int i = left * 3; i < right * 3; i++) error[i % 3] += a[row + i] - b[row + i];
        }
        double mean = (double)(error[0] + error[1] + error[2]) / 3, square = 0;
        for (int c = 0; c < 3; c++) square += (error[c] - mean) * (error[c] - mean);
        total += sqrt(square) / ((double)(end - top) * (right - left));
    }
    return total / (rows * columns);
}

// Mean step to the right and the lower neighbour.
static inline double step_bytes(const uint8_t* a, int H, int W) { // (H, W, 3)
    uint64_t sum = 0;
    for (int y = 0; y < H; y++) {
        for (int i = 0; i < W * 3; i++) {
            const uint8_t* at = a + (size_t)y * W * 3 + i;
            if (i + 3 < W * 3) sum += (uint64_t)abs(at[3] - at[0]);
            if (y + 1 < H) sum += (uint64_t)abs(at[(size_t)W * 3] - at[0]);
        }
    }
    return (double)sum / ((double)H * W * 3);
}

// Mean of the values of a set; NaN of none.
static inline double score_mean(const double* values, size_t n) { // (n)
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += values[i];
    return sum / (double)n;
}

typedef struct {
    double psnr;             // mean over the images that differ; +inf where none does
    double psnr_of_mean_mse; // over all images; +inf where none differs
    size_t images, equal;    // all, and those that equal their original
} psnr_summary_t;

static inline psnr_summary_t psnr_summary(const double* mse, size_t n) { // (n) of each image
    psnr_summary_t s = {0, psnr_from_mse(score_mean(mse, n)), n, 0};
    for (size_t i = 0; i < n; i++) {
        if (mse[i] > 0) s.psnr += psnr_from_mse(mse[i]);
        else s.equal++;
    }
    s.psnr = s.equal < n ? s.psnr / (double)(n - s.equal) : n ? INFINITY : NAN;
    return s;
}

// ---------------------------------------------------------------------------------------------------------------------
// SSIM

enum { SSIM_REACH = 5, SSIM_TAPS = 2 * SSIM_REACH + 1, SSIM_ROWS = 16, SSIM_MAPS = 4 };

static inline void ssim_window(double* taps) { // (SSIM_TAPS)
    double sum = 0;
    for (int i = 0; i < SSIM_TAPS; i++) {
        int d = i - SSIM_REACH;
        sum += taps[i] = exp(-d * d / (2 * 1.5 * 1.5));
    }
    for (int i = 0; i < SSIM_TAPS; i++) taps[i] /= sum;
}

// Mirrored at the edges: -1 is 1, n is n - 2.
static inline int ssim_mirror(int i, int n) { return i < 0 ? -i : i >= n ? 2 * (n - 1) - i : i; }

static inline double ssim_clamp(floatS x) { return x < -1 ? -1 : x > 1 ? 1 : (double)x; }

// One row of the four maps: a, b, a^2 + b^2, ab.
static inline void ssim_row(double* out,                        // (SSIM_MAPS, n)
                            const floatS* a, const floatS* b, size_t n) { // (n)
    double *sum = out + 2 * n, *product = out + 3 * n;
    for (size_t i = 0; i < n; i++) {
        double p = ssim_clamp(a[i]), q = ssim_clamp(b[i]);
        out[i] = p;
        out[n + i] = q;
        sum[i] = p * p + q * q;
        product[i] = p * q;
    }
}

// out = the window across SSIM_TAPS lines that begin `step` values apart, the first one at x.
static inline void ssim_blur(double* out, const double* x, size_t step, const double* taps, size_t n) { // (n)
    for (size_t i = 0; i < n; i++) {
        double sum = taps[SSIM_REACH] * x[SSIM_REACH * step + i];
        for (int k = 0; k < SSIM_REACH; k++) sum += taps[k] * (x[k * step + i] + x[(SSIM_TAPS - 1 - k) * step + i]);
        out[i] = sum;
    }
}

// Sum of S over a row of blurred maps.
static inline double ssim_row_sum(const double* maps, size_t n) { // (SSIM_MAPS, n)
    const double C1 = 0.02 * 0.02, C2 = 0.06 * 0.06;
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        double a = maps[i], b = maps[n + i], squares = a * a + b * b, product = a * b;
        double variances = maps[2 * n + i] - squares, covariance = maps[3 * n + i] - product;
        if (variances < 0) variances = 0; // by rounding only
        total += (2 * product + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2));
    }
    return total;
}

// Sum of S over the output rows [first, end). `work` holds ssim_work values.
static inline size_t ssim_work(int W) {
    size_t line = SSIM_MAPS * (size_t)W * 3, padded = (size_t)(W + 2 * SSIM_REACH) * 3;
    return (SSIM_ROWS + 2 * SSIM_REACH) * line + 2 * line + padded;
}
static inline double ssim_piece(double* work, const floatS* a, const floatS* b, // (H, W, 3)
                                int H, int W, int first, int end, const double* taps) {
    size_t n = (size_t)W * 3, line = SSIM_MAPS * n;
    double* rows = work; // (end - first + 2 SSIM_REACH, SSIM_MAPS, n)
    double* down = rows + (SSIM_ROWS + 2 * SSIM_REACH) * line;
    double *both = down + line, *padded = both + line;
    double total = 0;
    for (int y = first - SSIM_REACH; y < end + SSIM_REACH; y++) {
        size_t from = ssim_mirror(y, H) * n;
        ssim_row(rows + (y - first + SSIM_REACH) * line, a + from, b + from, n);
    }
    for (int y = first; y < end; y++) {
        ssim_blur(down, rows + (y - first) * line, line, taps, line);
        for (int map = 0; map < SSIM_MAPS; map++) {
            const double* in = down + map * n;
            memcpy(padded + SSIM_REACH * 3, in, n * sizeof(double));
            for (int x = 1; x <= SSIM_REACH; x++) {
                memcpy(padded + (SSIM_REACH - x) * 3, in + x * 3, 3 * sizeof(double));
                memcpy(padded + (SSIM_REACH + W - 1 + x) * 3, in + (W - 1 - x) * 3, 3 * sizeof(double));
            }
            ssim_blur(both + map * n, padded, 3, taps, n);
        }
        total += ssim_row_sum(both, n);
    }
    return total;
}

// SSIM of two images of colours in [-1, 1] (what lies outside is clamped).
static inline double ssim(const floatS* a, const floatS* b, int H, int W) { // (H, W, 3)
    if (H <= SSIM_REACH || W <= SSIM_REACH) {
        fatal("SSIM of an image of %d x %d: its window needs %d x %d pixels at least; use larger images", H, W,
              SSIM_REACH + 1, SSIM_REACH + 1);
    }
    int pieces = (H + SSIM_ROWS - 1) / SSIM_ROWS;
    double taps[SSIM_TAPS], total = 0;
    double* sums = (double*)malloc_check(pieces * sizeof(double), "SSIM");
    ssim_window(taps);
    #pragma omp parallel
    {
        double* work = (double*)malloc_check(ssim_work(W) * sizeof(double), "SSIM");
        #pragma omp for schedule(static)
        for (int i = 0; i < pieces; i++) {
            int first = i * SSIM_ROWS, end = first + SSIM_ROWS < H ? first + SSIM_ROWS : H;
            sums[i] = ssim_piece(work, a, b, H, W, first, end, taps);
        }
        free(work);
    }
    for (int i = 0; i < pieces; i++) total += sums[i];
    free(sums);
    return total / ((double)H * W * 3);
}

// ---------------------------------------------------------------------------------------------------------------------
// LPIPS

typedef struct {
    lpips_t lpips;
    params_t params;
    plan_t plan;
    int batch, H, W;
    floatS* distance;  // (batch)
    floatX* images[2]; // (batch, H, W, 3) from bytes
    uint8_t* bytes;    // (batch, H, W, 3)
} perceptual_t;

// Turns to images of H x W.
void perceptual_resize(perceptual_t* p, int H, int W) {
    size_t values = (size_t)p->batch * H * W * 3;
    if (p->H == H && p->W == W) return;
    p->H = H;
    p->W = W;
    plan_again(&p->plan);
    lpips_plan_forward(&p->lpips, &p->plan, p->batch, H, W);
    plan_floatS(&p->plan, &p->distance, p->batch, "LPIPS");
    for (int i = 0; i < 2; i++) plan_floatX(&p->plan, &p->images[i], values, "LPIPS's images");
    plan_uint8(&p->plan, &p->bytes, values, "LPIPS's images");
    plan_allocate(&p->plan, "LPIPS");
}

// The weights are to be filled in afterwards.
void perceptual_open(perceptual_t* p, lpips_config_t config, int batch, int H, int W) {
    memset(p, 0, sizeof *p);
    p->batch = batch;
    p->lpips.config = config;
    lpips_register(&p->lpips, &p->params.table, "");
    params_allocate(&p->params, p->params.table.total, 0, "LPIPS's parameters");
    perceptual_resize(p, H, W);
}

void perceptual_close(perceptual_t* p) {
    params_free(&p->params);
    plan_free(&p->plan);
    memset(p, 0, sizeof *p);
}

// VGG16's distance is LPIPS; that of the miniature's network has another name.
static inline const char* perceptual_name(const perceptual_t* p) {
    lpips_config_t full = vgg16_config();
    return !memcmp(&p->lpips.config, &full, sizeof full) ? "LPIPS" : "LPIPS-mini";
}

// LPIPS of each of n <= batch pairs on the device, in [-1, 1] or beyond.
void perceptual_distance(perceptual_t* p, double* distance, // (n) host
                         const floatX* xhat,                // (n, H, W, 3)
                         const floatX* x,                   // (n, H, W, 3)
                         int n, stream_t s) {
    assert(n >= 1 && n <= p->batch);
    floatS* host = (floatS*)malloc_check(n * sizeof(floatS), "LPIPS");
    p->lpips.xhat.B = p->lpips.x.B = n;
    lpips_forward(&p->lpips, &p->params, p->distance, xhat, x, s);
    copy_to_host(host, p->distance, n * sizeof(floatS), s);
    stream_wait(s);
    for (int b = 0; b < n; b++) distance[b] = host[b];
    free(host);
}

// The same of bytes on the host.
void perceptual_distance_bytes(perceptual_t* p, double* distance,       // (n) host
                               const uint8_t* xhat, const uint8_t* x,   // (n, H, W, 3) host
                               int n, stream_t s) {
    assert(n >= 1 && n <= p->batch);
    size_t values = (size_t)n * p->H * p->W * 3;
    for (int i = 0; i < 2; i++) {
        copy_to_device(p->bytes, i ? x : xhat, values, s);
        image_from_bytes(p->images[i], p->bytes, values, s);
    }
    stream_wait(s);
    perceptual_distance(p, distance, p->images[0], p->images[1], n, s);
}
