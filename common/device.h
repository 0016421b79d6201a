// device.h: what memory, a stream and a number are in each build.
//
// The programs and the models are the same text in every build. What differs stands here and in common/cuda/device.cuh:
//
//   build            operations       floatX                       memory, streams
//   CPU              dev/cpu          float (-DDOUBLE=1: double)   ordinary memory, no streams
//   GPU (USE_CUDA)   common/cuda      bfloat16 (-DFP32=1: float)   device memory, CUDA streams
//   EMU (USE_CUDA)   common/cuda      as GPU                       ordinary memory; dev/emu runs the kernels
//
//   floatX   weights and activations
//   floatS   statistics, losses, parameter gradients, master weights, moments: float (double where floatX is double)
//
// A model only ever calls the functions below and the operations of common/ops.h, the catalogue: look there next.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>

// defines: fatal, malloc_check
#include "common/program/log.h"

#ifdef USE_CUDA
// defines: floatX, floatS, PRECISION_NAME, stream_t, device_open, device_close, device_malloc, copy_to_device, ...
#include "common/cuda/device.cuh"
#else

#ifdef DOUBLE
typedef double floatX;
typedef double floatS;
#define PRECISION_NAME "double"
static inline floatS xsqrt(floatS x) { return sqrt(x); }
static inline floatS xexp(floatS x) { return exp(x); }
static inline floatS xlog(floatS x) { return log(x); }
static inline floatS xerf(floatS x) { return erf(x); }
static inline floatS xtanh(floatS x) { return tanh(x); }
static inline floatS xabs(floatS x) { return fabs(x); }
#else
typedef float floatX;
typedef float floatS;
#define PRECISION_NAME "float"
static inline floatS xsqrt(floatS x) { return sqrtf(x); }
static inline floatS xexp(floatS x) { return expf(x); }
static inline floatS xlog(floatS x) { return logf(x); }
static inline floatS xerf(floatS x) { return erff(x); }
static inline floatS xtanh(floatS x) { return tanhf(x); }
static inline floatS xabs(floatS x) { return fabsf(x); }
#endif

typedef int stream_t; // the CPU build has a single, synchronous stream

// The device that this process computes on, by its number on this machine, and the stream that everything runs on.
static inline stream_t device_open(int number) { (void)number; return 0; }
static inline void device_close(stream_t s) { (void)s; }

// Device memory. It is not zeroed. `what` names the buffer in the message that reports a lack of memory.
static inline void* device_malloc(size_t bytes, const char* what) {
    void* p = NULL;
    if (posix_memalign(&p, 64, bytes ? bytes : 64)) {
        fatal("no memory for %s (%.1f MiB); use a smaller batch (-batch) or a smaller preset", what, bytes / 1048576.0);
    }
    return p;
}
static inline void device_free(void* p) { free(p); }

// Bytes that may still be allocated: those that the system has, or that ulimit -v allows where it is less.
static inline size_t device_memory_left(void) {
    struct rlimit limit;
    char line[200];
    unsigned long long kilobytes = SIZE_MAX / 1024;
    FILE* f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f) && sscanf(line, "MemAvailable: %llu kB", &kilobytes) != 1) {}
    if (f) fclose(f);
    size_t left = (size_t)kilobytes * 1024;
    return !getrlimit(RLIMIT_AS, &limit) && limit.rlim_cur < left ? (size_t)limit.rlim_cur : left;
}

// Host memory that copies to and from the device run at full speed from (page-locked, where that matters).
static inline void* host_malloc(size_t bytes, const char* what) { return malloc_check(bytes, what); }
static inline void host_free(void* p) { free(p); }

// In the order of the stream. The host's memory may be used again when a copy returns from stream 0, else after
// stream_wait.
static inline void device_zero(void* p, size_t bytes, stream_t s) { (void)s; memset(p, 0, bytes); }
static inline void copy_to_device(void* dst, const void* src, size_t bytes, stream_t s) {
    (void)s;
    memcpy(dst, src, bytes);
}
static inline void copy_to_host(void* dst, const void* src, size_t bytes, stream_t s) {
    (void)s;
    memcpy(dst, src, bytes);
}
static inline void copy_on_device(void* dst, const void* src, size_t bytes, stream_t s) {
    (void)s;
    memmove(dst, src, bytes);
}
static inline void stream_wait(stream_t s) { (void)s; } // returns when everything queued on the stream is done
#endif

// Values between the device, as floatX, and the host, as floatS. For set-up and files: they wait.
static inline void copy_floats_to_host(floatS* host, const floatX* x, size_t n) {
    floatX* values = (floatX*)malloc_check(n * sizeof(floatX), "values on their way to the host");
    copy_to_host(values, x, n * sizeof(floatX), 0);
    for (size_t i = 0; i < n; i++) host[i] = (floatS)values[i];
    free(values);
}
static inline void copy_floats_to_device(floatX* x, const floatS* host, size_t n) {
    floatX* values = (floatX*)malloc_check(n * sizeof(floatX), "values on their way to the device");
    for (size_t i = 0; i < n; i++) values[i] = (floatX)host[i];
    copy_to_device(x, values, n * sizeof(floatX), 0);
    free(values);
}

// Position of the first of n values that is not finite, or n.
static inline size_t first_not_finite(const floatS* values, size_t n) {
    size_t i = 0;
    while (i < n && isfinite(values[i])) i++;
    return i;
}

// The same on the device, piece by piece: weights and activations, or gradients.
static inline size_t device_first_not_finite(const floatX* x, const floatS* gradient, size_t n) {
    const size_t piece = 1 << 20;
    floatS* host = (floatS*)malloc_check(piece * sizeof(floatS), "values to look through");
    size_t found = n;
    for (size_t begin = 0; begin < n && found == n; begin += piece) {
        size_t count = n - begin < piece ? n - begin : piece;
        if (x) copy_floats_to_host(host, x + begin, count);
        else copy_to_host(host, gradient + begin, count * sizeof(floatS), 0);
        size_t at = first_not_finite(host, count);
        if (at < count) found = begin + at;
    }
    free(host);
    return found;
}
