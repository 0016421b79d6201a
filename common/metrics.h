// metrics.h: how well an image is reconstructed, from bytes.
//
// PSNR of one image is 10 log10(255^2 / mean squared error of its bytes); that of a set is the mean over its images,
// not the PSNR of the mean error (the usual protocol of reconstruction papers). Look next at eval.cu, which reports it.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define PSNR_MAX 100.0 // dB, of two equal images

static inline double psnr_bytes(const uint8_t* a, const uint8_t* b, size_t n) { // (n)
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)(a[i] - b[i]) * (a[i] - b[i]);
    double psnr = sum > 0 ? 10 * log10(255.0 * 255.0 * (double)n / sum) : PSNR_MAX;
    return psnr < PSNR_MAX ? psnr : PSNR_MAX;
}

// Mean absolute difference in units of the image's range [-1, 1].
static inline double l1_bytes(const uint8_t* a, const uint8_t* b, size_t n) { // (n)
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += fabs((double)a[i] - b[i]);
    return sum / (double)n / 127.5;
}
