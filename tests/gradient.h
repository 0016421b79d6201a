// gradient.h: derivatives against finite differences. For tests compiled with -DDOUBLE=1.
//
// An operation's outputs are projected on a random vector r: L = sum_i r_i out_i. Calling the backward with dout = r
// then gives dL/dx, and for a random direction d
//     (8 [L(x + h d) - L(x - h d)] - [L(x + 2h d) - L(x - 2h d)]) / 12 h  =  <dL/dx, d>  up to O(h^4).
// The test of a backward is: fill inputs, run forward, poison outputs, run backward, then check_gradient for each
// input and parameter. Parameter gradients accumulate: run the backward twice from a random start, see
// check_accumulates.
#pragma once
#include <stdlib.h>

#include "tests/test.h"

#ifndef DOUBLE
#error "gradient tests are compiled with -DDOUBLE=1"
#endif

typedef double (*objective_t)(void* context); // runs the forward on the buffers in context, returns the projection L

static inline double dot(const double* a, const double* b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// Compares dx with differences of `objective` along random directions of x. The error is relative to the size that
// a directional derivative of this gradient typically has, |dx| |d| / sqrt(n), or to its value where that is larger.
static inline void check_gradient_h(const char* what, objective_t objective, void* context, double* x, const double* dx,
                                    size_t n, double h, double bound) {
    double* saved = (double*)malloc(n * sizeof(double));
    double* direction = (double*)malloc(n * sizeof(double));
    memcpy(saved, x, n * sizeof(double));
    for (int trial = 0; trial < 4; trial++) {
        for (size_t i = 0; i < n; i++) direction[i] = test_uniform();
        static const double steps[4] = {1, -1, 2, -2};
        double value[4];
        for (int k = 0; k < 4; k++) {
            for (size_t i = 0; i < n; i++) x[i] = saved[i] + steps[k] * h * direction[i];
            value[k] = objective(context);
        }
        memcpy(x, saved, n * sizeof(double));
        double difference = (8 * (value[0] - value[1]) - (value[2] - value[3])) / (12 * h);
        double analytic = dot(dx, direction, n);
        double typical = sqrt(dot(dx, dx, n) * dot(direction, direction, n) / (double)n);
        double size = fabs(analytic) > typical ? fabs(analytic) : typical;
        check_error(what, fabs(difference - analytic) / (size > 0 ? size : 1), bound);
    }
    free(saved);
    free(direction);
}

static inline void check_gradient(const char* what, objective_t objective, void* context, double* x, const double* dx,
                                  size_t n) {
    check_gradient_h(what, objective, context, x, dx, n, 1e-3, 1e-6);
}

// After a second backward that started from `once`, the buffer must hold once + (once - start).
static inline void check_accumulates(const char* what, const double* twice, const double* once, const double* start,
                                     size_t n) {
    double* want = (double*)malloc(n * sizeof(double));
    for (size_t i = 0; i < n; i++) want[i] = 2 * once[i] - start[i];
    check_error(what, relative_error_double(twice, want, n), 1e-12);
    free(want);
}

// Buffers: random values, and poison for outputs that must be written whole.
static inline double* random_buffer(size_t n) {
    double* p = (double*)malloc((n ? n : 1) * sizeof(double));
    for (size_t i = 0; i < n; i++) p[i] = test_normal();
    return p;
}
static inline double* poisoned_buffer(size_t n) {
    double* p = (double*)malloc((n ? n : 1) * sizeof(double));
    for (size_t i = 0; i < n; i++) p[i] = NAN;
    return p;
}

// check_accumulates of a model: its backward adds to n gradients in `grads`; `objective` runs its forward.
static inline void check_model_accumulates(objective_t objective, void (*backward)(void* context), void* context,
                                           double* grads, size_t n) {
    double *start = random_buffer(n), *once = (double*)malloc(n * sizeof(double));
    objective(context);
    memcpy(grads, start, n * sizeof(double));
    backward(context);
    memcpy(once, grads, n * sizeof(double));
    backward(context);
    check_accumulates("all gradients", grads, once, start, n);
    free(start);
    free(once);
}
