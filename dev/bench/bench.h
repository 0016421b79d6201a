// bench.h: how the programs of this folder take a time: once to warm up, then `runs` times, and the median counts.
//
// A run is several calls in a row, so that short work lasts longer than a clock's grain. On a GPU the time lies between
// two events on the stream, so that the host's way there and back does not count; gaps in which the GPU waits for the
// host to launch do, as they do in training. Elsewhere it is the wall's.
// On the host a second clock runs, the process's own, the sum over its threads. On a machine that others use as well
// the first suffers more than the second: a wall time that is much more than the CPU time divided by the threads was
// taken in company. (Threads that wait for one another do so awake, and that counts.) The shortest run is kept too: it
// is the least disturbed.
//
// Limits, measured in the same run as what is compared with them: a large matrix product, and a large copy on the
// device, bytes read and bytes written. No program reaches a GPU's printed numbers; these can be reached.
// Look next at dev/bench/bench_ops.cu and dev/bench/bench_models.cu.
#pragma once
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

// defines: floatX, floatS, stream_t, device_malloc, copy_on_device, stream_wait
#include "common/device.h"
// defines: clock_seconds
#include "common/program/clock.h"
// defines: matmul_forward
#include "common/ops.h"

enum { BENCH_MAX_RUNS = 1000 };

#if defined(USE_CUDA) && !defined(EMU)
enum { BENCH_IS_GPU = 1, BENCH_LIMIT_SIDE = 8192 };
static const size_t bench_copy_bytes = (size_t)1 << 30;
#elif defined(EMU)
enum { BENCH_IS_GPU = 0, BENCH_LIMIT_SIDE = 128 };
static const size_t bench_copy_bytes = (size_t)1 << 20;
#else
enum { BENCH_IS_GPU = 0, BENCH_LIMIT_SIDE = 2048 };
static const size_t bench_copy_bytes = (size_t)64 << 20;
#endif

typedef struct {
    double seconds, cpu_seconds; // medians of a call
    double best_seconds;         // the shortest
} bench_time_t;

typedef struct {
    double flops, bytes; // a second
} bench_limits_t;

typedef void (*bench_work_t)(void* state, stream_t s);

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

// ---------------------------------------------------------------------------------------------------------------------
// A clock around work on the stream

#ifdef USE_CUDA
typedef struct {
    cudaEvent_t begin, end;
} bench_clock_t;
static inline void bench_clock_open(bench_clock_t* c) {
    CUDA_CHECK(cudaEventCreate(&c->begin));
    CUDA_CHECK(cudaEventCreate(&c->end));
}
static inline void bench_clock_start(bench_clock_t* c, stream_t s) { CUDA_CHECK(cudaEventRecord(c->begin, s->cuda)); }
static inline double bench_clock_stop(bench_clock_t* c, stream_t s) {
    float milliseconds = 0;
    CUDA_CHECK(cudaEventRecord(c->end, s->cuda));
    CUDA_CHECK(cudaEventSynchronize(c->end));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, c->begin, c->end));
    return 1e-3 * milliseconds;
}
static inline void bench_clock_close(bench_clock_t* c) {
    cudaEventDestroy(c->begin);
    cudaEventDestroy(c->end);
}
// Device memory: free now, and all of it.
static inline size_t bench_memory(size_t* total) {
    size_t available = 0;
    CUDA_CHECK(cudaMemGetInfo(&available, total));
    return available;
}
// The most memory that was in use at once since bench_peak_forget(). The device's: all is allocated before work begins,
// and what libraries take stays.
static inline void bench_peak_forget(void) {}
static inline size_t bench_peak(void) {
    size_t total, available = bench_memory(&total);
    return total - available;
}
static inline void bench_machine(char* text, size_t size) {
    cudaDeviceProp prop;
    CUDA_CHECK(cudaGetDeviceProperties(&prop, 0));
    snprintf(text, size, "%s, %d multiprocessors", prop.name, prop.multiProcessorCount);
}
#else
#include <unistd.h>
typedef struct {
    double begin;
} bench_clock_t;
static inline void bench_clock_open(bench_clock_t* c) { c->begin = 0; }
static inline void bench_clock_start(bench_clock_t* c, stream_t s) {
    (void)s;
    c->begin = clock_seconds();
}
static inline double bench_clock_stop(bench_clock_t* c, stream_t s) {
    (void)s;
    return clock_seconds() - c->begin;
}
static inline void bench_clock_close(bench_clock_t* c) { (void)c; }
static inline size_t bench_memory(size_t* total) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    *total = page * (size_t)sysconf(_SC_PHYS_PAGES);
    return page * (size_t)sysconf(_SC_AVPHYS_PAGES); // what others have cached counts as used
}
// Of the host: the most that was resident; 0 where the kernel does not say.
static inline void bench_peak_forget(void) {
    FILE* f = fopen("/proc/self/clear_refs", "w");
    if (!f) return;
    fputs("5", f); // the peak becomes what is resident
    fclose(f);
}
static inline size_t bench_peak(void) {
    char line[256];
    size_t kib = 0;
    FILE* f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "VmHWM: %zu kB", &kib) == 1) break;
    }
    if (f) fclose(f);
    return kib * 1024;
}
static inline void bench_machine(char* text, size_t size) { snprintf(text, size, "%d threads", omp_get_max_threads()); }
#endif

// Whether so much device memory is there.
static inline int bench_fits(size_t bytes) {
    size_t total;
    return bytes < bench_memory(&total) / 100 * 98;
}

static inline bench_time_t bench_measure(bench_work_t work, void* state, int runs, int calls, stream_t s) {
    static double wall[BENCH_MAX_RUNS], cpu[BENCH_MAX_RUNS];
    bench_clock_t clock;
    bench_clock_open(&clock);
    work(state, s);
    stream_wait(s);
    for (int i = 0; i < runs; i++) {
        double cpu_start = bench_cpu_seconds();
        bench_clock_start(&clock, s);
        for (int k = 0; k < calls; k++) work(state, s);
        wall[i] = bench_clock_stop(&clock, s) / calls;
        cpu[i] = (bench_cpu_seconds() - cpu_start) / calls;
    }
    bench_clock_close(&clock);
    bench_time_t t = {bench_median(wall, runs), bench_median(cpu, runs), wall[0]}; // bench_median has sorted them
    return t;
}

// Seconds of a call; short ones are repeated until a run lasts a few milliseconds.
static inline bench_time_t bench_measure_short(bench_work_t work, void* state, int runs, stream_t s) {
    double once = bench_measure(work, state, 1, 1, s).seconds;
    int calls = once > 0.004 ? 1 : (int)(0.004 / (once > 1e-6 ? once : 1e-6)) + 1;
    return bench_measure(work, state, runs, calls, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Numbers to compute with

// n random numbers within +-`amplitude`, on the device. What is timed does not depend on them as long as they are
// ordinary; zeros would cost a GPU less power, and it would run faster. The first 2^24 are made, the rest are copies.
static inline void bench_fill(floatX* x, size_t n, double amplitude, stream_t s) {
    size_t made = n < (size_t)1 << 24 ? n : (size_t)1 << 24;
    floatS* host = (floatS*)malloc_check(made * sizeof(floatS), "random numbers");
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < made; i++) {
        uint32_t bits = (uint32_t)i * 2654435761u;
        bits = (bits ^ bits >> 15) * 0x45D9F3Bu;
        host[i] = (floatS)(amplitude * ((double)(bits >> 8) / (1 << 23) - 1 + 0x1p-24)); // never 0
    }
    copy_floats_to_device(x, host, made);
    free(host);
    while (made < n) {
        size_t more = made < n - made ? made : n - made;
        copy_on_device(x + made, x, more * sizeof(floatX), s);
        made += more;
    }
    stream_wait(s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Limits

typedef struct {
    floatX *out, *x, *weight;
    size_t bytes;
} bench_limit_t;

static inline void bench_limit_product(void* state, stream_t s) {
    bench_limit_t* b = (bench_limit_t*)state;
    matmul_forward(b->out, b->x, b->weight, NULL, BENCH_LIMIT_SIDE, BENCH_LIMIT_SIDE, BENCH_LIMIT_SIDE, s);
}
static inline void bench_limit_copy(void* state, stream_t s) {
    bench_limit_t* b = (bench_limit_t*)state;
    if (BENCH_IS_GPU) {
        copy_on_device(b->out, b->x, b->bytes, s);
        return;
    }
    size_t piece = (size_t)1 << 18; // all threads
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < b->bytes; i += piece) {
        copy_on_device((char*)b->out + i, (const char*)b->x + i, b->bytes - i < piece ? b->bytes - i : piece, s);
    }
}

// Three tensors are allocated and freed again.
static inline bench_limits_t bench_measure_limits(int runs, stream_t s) {
    size_t product = (size_t)BENCH_LIMIT_SIDE * BENCH_LIMIT_SIDE * sizeof(floatX);
    size_t bytes = product > bench_copy_bytes ? product : bench_copy_bytes;
    bench_limit_t b = {NULL, NULL, NULL, bench_copy_bytes};
    floatX** tensors[3] = {&b.out, &b.x, &b.weight};
    for (int i = 0; i < 3; i++) {
        *tensors[i] = (floatX*)device_malloc(bytes, "the tensors of the limits");
        bench_fill(*tensors[i], bytes / sizeof(floatX), 1, s);
    }
    bench_limits_t limits;
    double side = BENCH_LIMIT_SIDE;
    limits.flops = 2 * side * side * side / bench_measure_short(bench_limit_product, &b, runs, s).seconds;
    limits.bytes = 2 * (double)bench_copy_bytes / bench_measure_short(bench_limit_copy, &b, runs, s).seconds;
    for (int i = 0; i < 3; i++) device_free(*tensors[i]);
    return limits;
}

// As the programs print them, and as the first line of their JSON files.
static inline void bench_print_limits(FILE* json, bench_limits_t limits, int runs) {
    char machine[300];
    bench_machine(machine, sizeof machine);
    printf("%s, %s, median of %d runs; limits: %.4g TFLOP/s (matrix product of %d^3), %.4g GB/s (%.0f MiB copied, "
           "bytes read and written)\n", machine, PRECISION_NAME, runs, limits.flops * 1e-12, BENCH_LIMIT_SIDE,
           limits.bytes * 1e-9, (double)bench_copy_bytes / 1048576);
    if (!json) return;
    fprintf(json, "{\"kind\": \"limits\", \"machine\": \"%s\", \"precision\": \"%s\", \"tflops\": %.4g, \"gbs\": %.4g, "
            "\"runs\": %d}\n", machine, PRECISION_NAME, limits.flops * 1e-12, limits.bytes * 1e-9, runs);
    fflush(json);
}
