// operation.h: what the test of an operation asks of every gradient, beyond gradient.h's comparison with differences.
//
//   check_parameter_gradient   right against differences, and accumulating
//   check_any_thread_count     the same bits from one, two and three threads
//
// Look next at tests/test_matmul.c.
#pragma once
#include <omp.h>

// defines: check_gradient, check_accumulates, objective_t
#include "tests/gradient.h"

typedef void (*run_t)(void* context);

static inline double* copy_of(const double* x, size_t n) {
    double* copy = (double*)calloc(n ? n : 1, sizeof(double));
    memcpy(copy, x, n * sizeof(double));
    return copy;
}

// `gradient`, which the backward adds to, against differences of `objective` in `parameter`; then the backward again.
// Begins with a forward, so that what it saves is there.
static inline void check_parameter_gradient(const char* what, objective_t objective, run_t backward, void* context,
                                            double* parameter, const double* gradient, size_t n) {
    double* start = copy_of(gradient, n);
    objective(context);
    backward(context);
    double* once = copy_of(gradient, n);
    double* added = copy_of(once, n);
    for (size_t i = 0; i < n; i++) added[i] -= start[i];
    check_gradient(what, objective, context, parameter, added, n);
    objective(context);
    backward(context);
    check_accumulates(what, gradient, once, start, n);
    free(start), free(once), free(added);
}

typedef struct {
    const char* name;
    double* data;
    size_t n;
} result_t;

// Runs the operation with one, two and three threads, each time from the same contents of its results.
static inline void check_any_thread_count(run_t run, void* context, const result_t* results, int count) {
    int usual = omp_get_max_threads();
    double* start[16];
    double* first[16];
    for (int i = 0; i < count; i++) start[i] = copy_of(results[i].data, results[i].n);
    for (int threads = 1; threads <= 3; threads++) {
        for (int i = 0; i < count; i++) memcpy(results[i].data, start[i], results[i].n * sizeof(double));
        omp_set_num_threads(threads);
        run(context);
        for (int i = 0; i < count; i++) {
            if (threads == 1) first[i] = copy_of(results[i].data, results[i].n);
            else if (memcmp(first[i], results[i].data, results[i].n * sizeof(double))) {
                check_error(results[i].name, INFINITY, 0);
            }
        }
    }
    omp_set_num_threads(usual);
    for (int i = 0; i < count; i++) free(start[i]), free(first[i]);
}
