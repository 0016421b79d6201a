// device.h: what memory, a stream and a number are in each build.
//
// The programs and the models are the same text in every build. What differs stands here: the CPU build has ordinary
// memory and no streams; the GPU build has device memory, CUDA streams and bfloat16. A model only ever calls the
// functions below and the operations of common/ops.h.
//
//   floatX   weights and activations: float; double in the gradient tests (-DDOUBLE=1)
//   floatS   statistics, losses, parameter gradients, master weights, moments: float; double in the gradient tests
//
// Look next at common/ops.h, the catalogue of operations.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// defines: fatal, malloc_check, calloc_check
#include "common/log.h"

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

// Device memory. It is not zeroed. `what` names the buffer in the message that reports a lack of memory.
static inline void* device_malloc(size_t bytes, const char* what) {
    void* p = NULL;
    if (posix_memalign(&p, 64, bytes ? bytes : 64)) {
        fatal("no memory for %s (%.1f MiB); use a smaller batch (-batch) or a smaller preset", what, bytes / 1048576.0);
    }
    return p;
}

static inline void device_free(void* p) { free(p); }
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
