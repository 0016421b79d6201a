// runtime.h: the part of the CUDA runtime that common/cuda/device.cuh uses, on ordinary memory.
//
// Device memory begins as bytes of 0xff (NaN) and lies between two zones that may not be touched. It is open to kernels
// and copies, and closed while the host's own code runs. AddressSanitizer stops the program at a forbidden access, also
// to memory that was freed, and the kernel, block and thread are printed with it. (A build without it has none of these
// checks.) Everything is done when it is asked for, except that what is copied to the host arrives when the host has
// waited for it.
// Look next at dev/emu/block.h.
#pragma once
// defines: emu, emu_report, EMU_ASAN
#include "dev/emu/state.h"

typedef enum {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorIllegalAddress = 700
} cudaError_t;
typedef enum { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 } cudaMemcpyKind;
typedef struct emu_stream { int unused; }* cudaStream_t;
typedef struct emu_event { double milliseconds; }* cudaEvent_t;
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem, sharedMemPerBlockOptin;
};

static inline const char* cudaGetErrorString(cudaError_t status) {
    if (status == cudaSuccess) return "no error";
    if (status == cudaErrorIllegalAddress) return "an illegal memory access was encountered";
    return status == cudaErrorMemoryAllocation ? "out of memory" : "invalid argument";
}
static inline cudaError_t cudaGetLastError(void) { return cudaSuccess; }
static inline cudaError_t cudaGetDeviceCount(int* count) { *count = 1; return cudaSuccess; }
static inline cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
// An H100's, or those of another GPU, whose compute capability is in the environment's EMU_CAPABILITY ("8.6"): what a
// block may have of shared memory depends on it (CUDA programming guide, technical specifications per capability).
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int) {
    int major = 9, minor = 0;
    const char* capability = getenv("EMU_CAPABILITY");
    if (capability && sscanf(capability, "%d.%d", &major, &minor) != 2) {
        emu_report("EMU_CAPABILITY is not understood", "\"%s\"; it is a compute capability such as 8.6", capability);
    }
    size_t shared_bytes = EMU_SHARED_BYTES;                                         // 9.0 to 11.0: 227 KiB
    if (major < 8) shared_bytes = 64 << 10;                                         // 7.5: 64 KiB
    else if (major == 8) shared_bytes = minor == 0 || minor == 7 ? 163 << 10 : 99 << 10; // A100; RTX 30 and 40, A10, L40
    else if (major >= 12) shared_bytes = 99 << 10;                                  // RTX 50
    *prop = {"emulator", major, minor, 4, (size_t)16 << 30, shared_bytes};
    return cudaSuccess;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

// How often memory was allocated or freed, and how often the host waited, since the program began: a training step does
// neither.
static inline size_t emu_allocations(void) { return emu.allocations; }
static inline size_t emu_synchronisations(void) { return emu.synchronisations; }

enum { EMU_ZONE = 4096 }; // bytes on either side of a block that may not be touched

struct emu_memory {
    char* p;
    size_t bytes, usable; // the rest is forbidden: emu_fresh
    char* raw;
    bool pinned;          // cudaMallocHost: the host's, never closed
};
inline emu_memory* emu_memories;
inline size_t emu_memory_count, emu_device_bytes;

static inline void emu_forbid(const void* p, size_t bytes) {
#if EMU_ASAN
    __asan_poison_memory_region(p, bytes);
#else
    (void)p, (void)bytes;
#endif
}
static inline void emu_allow(const void* p, size_t bytes) {
#if EMU_ASAN
    __asan_unpoison_memory_region(p, bytes);
#else
    (void)p, (void)bytes;
#endif
}

// Device memory is open between these two. Larger blocks are always open: that takes a millisecond a block otherwise.
enum { EMU_CLOSED_BYTES = 16 << 20 };
inline bool emu_is_open;
static inline void emu_open(void) {
    emu_is_open = true;
    for (size_t i = 0; EMU_ASAN && i < emu_memory_count; i++) {
        emu_memory* b = &emu_memories[i];
        if (!b->pinned && b->usable <= EMU_CLOSED_BYTES) emu_allow(b->p, b->usable);
    }
}
static inline void emu_close(void) {
    emu_is_open = false;
    for (size_t i = 0; EMU_ASAN && i < emu_memory_count; i++) {
        emu_memory* b = &emu_memories[i];
        if (!b->pinned && b->usable <= EMU_CLOSED_BYTES) emu_forbid(b->p, b->usable);
    }
}

// The block that p lies in or within its zones, or NULL.
static inline emu_memory* emu_find_memory(const void* p) {
    for (size_t i = 0; i < emu_memory_count; i++) {
        emu_memory* b = &emu_memories[i];
        if ((const char*)p >= b->p - EMU_ZONE && (const char*)p < b->p + b->bytes + EMU_ZONE) return b;
    }
    return NULL;
}
// Page-locked memory of the host passes: kernels can read it.
static inline bool emu_is_no_device_memory(const void* p) { return p && !emu_find_memory(p); }

struct emu_arrival { // a copy to the host that it has not waited for
    void *to, *data;
    size_t bytes;
};
inline emu_arrival* emu_arrivals;
inline size_t emu_arrival_count;

static inline void emu_arrive(void) {
    for (size_t i = 0; i < emu_arrival_count; i++) {
        memcpy(emu_arrivals[i].to, emu_arrivals[i].data, emu_arrivals[i].bytes);
        free(emu_arrivals[i].data);
    }
    emu_arrival_count = 0;
}

inline size_t emu_memory_limit; // handle for tests: device memory beyond this many bytes is refused; 0: none is
static inline cudaError_t emu_allocate(void** p, size_t bytes, bool pinned) {
    emu.allocations++;
    if (emu_memory_limit && !pinned && emu_device_bytes + bytes > emu_memory_limit) return cudaErrorMemoryAllocation;
    char* raw = (char*)malloc(bytes + 2 * EMU_ZONE + 256);
    if (!raw) return cudaErrorMemoryAllocation;
    char* start = (char*)(((uintptr_t)raw + EMU_ZONE + 255) & ~(uintptr_t)255);
    emu_memories = (emu_memory*)realloc(emu_memories, (emu_memory_count + 1) * sizeof *emu_memories);
    emu_memories[emu_memory_count++] = {start, bytes, bytes, raw, pinned};
    if (!pinned) emu_device_bytes += bytes;
    memset(start, 0xff, bytes);
    emu_forbid(raw, (size_t)(start - raw));
    emu_forbid(start + bytes, (size_t)(raw + bytes + 2 * EMU_ZONE + 256 - (start + bytes)));
    if (!pinned && bytes <= EMU_CLOSED_BYTES) emu_forbid(start, bytes);
    *p = start;
    return cudaSuccess;
}
static inline cudaError_t emu_release(void* p, bool pinned) {
    emu.allocations++;
    emu_arrive();
    if (!p) return cudaSuccess;
    emu_memory* b = emu_find_memory(p);
    if (!b || b->p != p || b->pinned != pinned) return cudaErrorInvalidValue;
    if (!pinned) emu_device_bytes -= b->bytes;
    emu_allow(b->raw, b->bytes + 2 * EMU_ZONE + 256);
    free(b->raw);
    *b = emu_memories[--emu_memory_count];
    return cudaSuccess;
}
static inline cudaError_t cudaMalloc(void** p, size_t bytes) { return emu_allocate(p, bytes, false); }
static inline cudaError_t cudaFree(void* p) { return emu_release(p, false); }
static inline cudaError_t cudaMallocHost(void** p, size_t bytes) { return emu_allocate(p, bytes, true); }
static inline cudaError_t cudaFreeHost(void* p) { return emu_release(p, true); }
static inline cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    *total = (size_t)16 << 30;
    *available = *total > emu_device_bytes ? *total - emu_device_bytes : 0;
    return cudaSuccess;
}

// From here on [p, p + bytes) is scratch memory that nobody has written, and what lies behind it in its block is
// forbidden. The cost follows what changes, not the block.
static inline void emu_fresh(void* p, size_t bytes) {
    emu_memory* b = emu_find_memory(p);
    size_t usable = (size_t)((char*)p - b->p) + bytes;
    emu_open();
    if (usable > b->usable) emu_allow(b->p + b->usable, usable - b->usable);
    if (usable < b->usable) emu_forbid(b->p + usable, b->usable - usable);
    b->usable = usable;
    memset(p, 0xff, bytes);
    emu_close();
}

// ---- copies ---------------------------------------------------------------------------------------------------------

static inline void emu_check_copy(const void* dst, const void* src, size_t bytes, cudaMemcpyKind kind) {
    emu_memory *to = emu_find_memory(dst), *from = emu_find_memory(src);
    bool to_device = to && !to->pinned, from_device = from && !from->pinned;
    if (to_device != (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) ||
        from_device != (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice)) {
        emu_report("copy of the wrong kind", "kind %d, to %p (%s), from %p (%s), %zu bytes", (int)kind, dst,
                   to_device ? "device" : "host", src, from_device ? "device" : "host", bytes);
    }
}
// Copies and memsets of nothing are refused, as a GPU's runtime may do.
static inline cudaError_t cudaMemcpy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind) {
    if (!bytes) return cudaErrorInvalidValue;
    emu.synchronisations++;
    emu_arrive();
    emu_check_copy(dst, src, bytes, kind);
    emu_open();
    memmove(dst, src, bytes);
    emu_close();
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind,
                                          cudaStream_t = 0) {
    if (!bytes) return cudaErrorInvalidValue;
    emu_check_copy(dst, src, bytes, kind);
    emu_open();
    if (kind == cudaMemcpyDeviceToHost) {
        void* data = malloc(bytes);
        memcpy(data, src, bytes);
        memset(dst, 0xff, bytes); // not there yet
        emu_arrivals = (emu_arrival*)realloc(emu_arrivals, (emu_arrival_count + 1) * sizeof *emu_arrivals);
        emu_arrivals[emu_arrival_count++] = {dst, data, bytes};
    } else {
        memmove(dst, src, bytes);
    }
    emu_close();
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t = 0) {
    if (!bytes) return cudaErrorInvalidValue;
    emu_open();
    memset(p, value, bytes);
    emu_close();
    return cudaSuccess;
}
static inline cudaError_t cudaMemset(void* p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes); }

// ---- streams and events ---------------------------------------------------------------------------------------------

static inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = (cudaStream_t)calloc(1, sizeof **stream);
    return cudaSuccess;
}
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
static inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { emu_arrive(); free(stream); return cudaSuccess; }
// Handle for tests: what a kernel before has left behind, on a GPU. Every wait from then on returns it.
inline cudaError_t emu_sticky_error;
static inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    emu.synchronisations++;
    emu_arrive();
    return emu_sticky_error;
}
static inline cudaError_t cudaDeviceSynchronize(void) { return cudaStreamSynchronize(0); }
static inline cudaError_t cudaStreamQuery(cudaStream_t) { emu_arrive(); return cudaSuccess; }
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned = 0) { return cudaSuccess; }

static inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
    *event = (cudaEvent_t)calloc(1, sizeof **event);
    return cudaSuccess;
}
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
static inline cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
// The device's clock is not the host's: so that what is measured is the same every time, a kernel takes a microsecond,
// and a product what dev/emu/cublaslt.h says.
inline double emu_milliseconds;
static inline void emu_elapse(double milliseconds) { emu_milliseconds += milliseconds; }
static inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t = 0) {
    event->milliseconds = emu_milliseconds + 1e-3 * (double)emu.launches;
    return cudaSuccess;
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaStreamSynchronize(0); }
static inline cudaError_t cudaEventQuery(cudaEvent_t) { emu_arrive(); return cudaSuccess; }
static inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = (float)(to->milliseconds - from->milliseconds);
    return cudaSuccess;
}

// ---- the sanitizers' reports ----------------------------------------------------------------------------------------

// Called at the start of a report: these add what the sanitizers cannot know.
#if EMU_ASAN
extern "C" __attribute__((used)) void __asan_on_error(void) {
    const char* p = (const char*)__asan_get_report_address();
    fprintf(stderr, "emulator: memory error");
    emu_print_place(stderr);
    fprintf(stderr, ": address %p", (const void*)p);
    emu_memory* b = p ? emu_find_memory(p) : NULL;
    if (b) {
        const char* end = b->p + b->bytes;
        bool inside = p >= b->p && p < end;
        const char* where = inside ? "bytes into" : p < b->p ? "bytes before" : "bytes behind the end of";
        ptrdiff_t distance = inside ? p - b->p : p < b->p ? b->p - p : p - end;
        const char* kind = b->pinned ? "page-locked host" : "device";
        fprintf(stderr, ", %td %s a block of %zu bytes of %s memory", distance, where, b->bytes, kind);
        if (inside && p >= b->p + b->usable) {
            fprintf(stderr, "; scratch memory was asked for up to byte %zu", b->usable);
        } else if (inside && !b->pinned && !emu_is_open) {
            fprintf(stderr, "; the host's code may not touch device memory");
        }
    }
    fprintf(stderr, "\n");
}
extern "C" __attribute__((used)) void __ubsan_on_report(void) {
    fprintf(stderr, "emulator: undefined behaviour");
    emu_print_place(stderr);
    fprintf(stderr, "\n");
}
#endif
