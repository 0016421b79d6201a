// latent_statistics.h: how rough is a latent map? Three numbers of one image's (H, W, C) map; a set's are their means.
//
//   SV     spatial variance: mean over channels of the (population) variance over the H W positions
//   TV     total variation: mean over channels of  sum |z(y+1, x) - z(y, x)| + sum |z(y, x+1) - z(y, x)|
//   TV_sq  the same with squares
//
// AlignTok's Table 16 gives the first two without formulas. Sums over positions and means over channels are what its
// magnitudes fit (11.41 and 957.6 for a VAE, 2.141 and 487.9 for the 1024 channels of DINOv2, 16 x 16 positions); the
// text fits |.| or squares, so both are computed. Latents are raw: a normalised one has a variance near 1.
// Look next at common/measures/latent_measures.h.
#pragma once
// defines: floatS
#include "common/device.h"

typedef struct {
    double sv, tv, tv_sq;
} latent_statistics_t;

static inline latent_statistics_t latent_statistics(const floatS* z, int H, int W, int C) { // (H, W, C)
    latent_statistics_t out = {0, 0, 0};
    double positions = (double)H * W;
    for (int c = 0; c < C; c++) {
        double mean = 0, variance = 0;
        for (int p = 0; p < H * W; p++) mean += (double)z[(size_t)p * C + c];
        mean /= positions;
        for (int y = 0; y < H; y++) {
            for (int x = 0; x < W; x++) {
                const floatS* at = z + ((size_t)y * W + x) * C + c;
                double v = (double)*at;
                double down = y + 1 < H ? (double)at[(size_t)W * C] - v : 0, right = x + 1 < W ? (double)at[C] - v : 0;
                variance += (v - mean) * (v - mean);
                out.tv += fabs(down) + fabs(right);
                out.tv_sq += down * down + right * right;
            }
        }
        out.sv += variance / positions;
    }
    out.sv /= C;
    out.tv /= C;
    out.tv_sq /= C;
    return out;
}
