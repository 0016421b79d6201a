// bench.h: how the programs of this folder take a time: once to warm up, then `runs` times, and the median counts.
//
// Two clocks run: the wall's, which is what a user waits for, and the process's own, the sum over its threads. On a
// machine that others use as well the first suffers more than the second: a wall time that is much more than the CPU
// time divided by the threads was taken in company. (Threads that wait for one another do so awake, and that counts.)
// The shortest run is kept too: it is the least disturbed.
// Look next at dev/bench/bench_ops.c and dev/bench/bench_models.c.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

// defines: floatX
#include "common/device.h"
// defines: clock_seconds
#include "common/clock.h"

enum { BENCH_MAX_RUNS = 1000 };

typedef struct {
    double seconds, cpu_seconds; // medians of a call
    double best_seconds;         // the shortest
} bench_time_t;

typedef void (*bench_work_t)(void* state);

static inline double bench_cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline int bench_compare(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

static inline double bench_median(double* x, int n) {
    qsort(x, n, sizeof *x, bench_compare);
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

// A run is `calls` calls in a row, so that a short piece of work lasts longer than the clock's grain.
static inline bench_time_t bench_measure(bench_work_t work, void* state, int runs, int calls) {
    static double wall[BENCH_MAX_RUNS], cpu[BENCH_MAX_RUNS];
    work(state);
    for (int i = 0; i < runs; i++) {
        double wall_start = clock_seconds(), cpu_start = bench_cpu_seconds();
        for (int k = 0; k < calls; k++) work(state);
        wall[i] = (clock_seconds() - wall_start) / calls;
        cpu[i] = (bench_cpu_seconds() - cpu_start) / calls;
    }
    bench_time_t t = {bench_median(wall, runs), bench_median(cpu, runs), wall[0]}; // bench_median has sorted them
    return t;
}

// Numbers of about +-`amplitude`, cheap to make: what is timed does not depend on them as long as they are ordinary.
static inline void bench_fill(floatX* x, size_t n, double amplitude) {
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)i * 2654435761u;
        bits = (bits ^ bits >> 15) * 0x45D9F3Bu;
        x[i] = (floatX)(amplitude * ((double)(bits >> 8) / (1 << 23) - 1));
    }
}
