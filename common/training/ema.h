// ema.h: how fast a moving average of the weights forgets.
//
// An average that is updated after each optimiser step t = 1, 2, ... by  ema <- beta_t ema + (1 - beta_t) w  is what
// the tokenizer ships: it is better than the last weights. The operation is part of adam_update; here are its beta_t.
//
// Power function (Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3):
// weights of step k count in proportion to k^gamma, so that the average's memory grows with the run and the noise of
// the start is forgotten for good:
//
//   beta_t = (1 - 1/t)^(gamma + 1)                        beta_1 = 0: the average starts as a copy of the weights
//
// Its width is named by sigma_rel, the standard deviation of the profile k^gamma on [0, t], divided by t:
//
//   sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))
//
// Look next at adam_update in common/ops.h.
#pragma once
#include <math.h>
#include <stdint.h>

// defines: fatal
#include "common/program/log.h"

// The gamma of a relative width: the largest root of p(g) = g^3 + 7 g^2 + (16 - r) g + 12 - r with r = sigma_rel^-2.
//
// Newton's method from g = 1/sigma_rel. There p = 6 r + 16 / sigma_rel + 12 > 0, and p is convex from the root on
// (p'' = 6 g + 14), so every iterate lies above the root and below the one before, until rounding ends the descent.
double ema_gamma(double sigma_rel) {
    if (!(sigma_rel > 0 && sigma_rel < sqrt(1.0 / 12))) {
        fatal("the relative width of a power-function average is %g; it must be above 0 and below 0.2886, the plain "
              "mean of all steps: choose a value such as 0.05", sigma_rel);
    }
    double r = 1 / (sigma_rel * sigma_rel);
    double gamma = 1 / sigma_rel, previous;
    do {
        previous = gamma;
        double p = ((gamma + 7) * gamma + (16 - r)) * gamma + (12 - r);
        double slope = (3 * gamma + 14) * gamma + (16 - r);
        gamma -= p / slope;
    } while (gamma < previous);
    return previous;
}

// The beta of step t, counted from 1.
double ema_power_beta(double gamma, int64_t t) { return pow(1 - 1 / (double)t, gamma + 1); }
