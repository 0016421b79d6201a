// psnr.h: how well images are reconstructed, from their bytes.
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
// Look next at common/measures/ssim.h and common/models/lpips.h, the other two distances.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

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
