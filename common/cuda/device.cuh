// device.cuh: device memory and the stream of the GPU build, on CUDA's runtime. The emulator (dev/emu) has the same
// runtime calls on ordinary memory. What each function promises is told in common/device.h.
//
// A process uses one GPU and one stream, so operations run one behind the other. Hence one piece of scratch memory
// serves all of them: partial sums live there between two kernels of one operation, never longer.
#pragma once
#ifdef EMU
// defines: the part of the CUDA runtime, cuBLASLt and the kernel language that this project uses
#include "dev/emu/emu.h"
#else
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif

#ifdef FP32
typedef float floatX;
#define PRECISION_NAME "float"
#else
typedef __nv_bfloat16 floatX;
#define PRECISION_NAME "bf16"
#endif
typedef float floatS;

#define DEVICE_SCRATCH_BYTES ((size_t)128 << 20)    // partial sums of reductions and split products
#define DEVICE_BLAS_WORKSPACE ((size_t)32 << 20)    // what cuBLASLt may use: NVIDIA's advice for Hopper
#define DEVICE_LEAST_CAPABILITY 80                  // sm_80: bf16 tensor cores, cp.async

// Ends the program when a CUDA call fails, with the place in our source.
static inline void cuda_check(cudaError_t status, const char* call, const char* file, int line) {
    if (status == cudaSuccess) return;
    fatal("%s failed: %s (%s:%d). If another program uses this GPU, look at nvidia-smi; else run with "
          "CUDA_LAUNCH_BLOCKING=1 to find the kernel", call, cudaGetErrorString(status), file, line);
}
#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)

typedef struct {
    cudaStream_t cuda;
    cublasLtHandle_t blas;
    void* blas_workspace;        // DEVICE_BLAS_WORKSPACE bytes
    char* scratch;               // DEVICE_SCRATCH_BYTES bytes
    int multiprocessors;         // launch shapes follow it
    int shared_bytes;            // the most that one block may have
    struct matmul_cache* matmul; // owned by common/cuda/matmul.cuh
} device_stream_t;
typedef device_stream_t* stream_t;

static inline cudaStream_t cuda_stream(stream_t s) { return s ? s->cuda : 0; }

// A GPU runs what was compiled for it, or its driver compiles the PTX of an older one (GPU_ARCH in the Makefile). Any
// kernel of the program shows whether it does.
#ifdef EMU
static inline cudaError_t device_finds_code(void) { return cudaSuccess; }
#else
static __global__ void device_kernel(void) {}
static inline cudaError_t device_finds_code(void) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, device_kernel);
}
#endif

static inline stream_t device_open(int number) {
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0) {
        fatal("no GPU can be used: %s. Check `nvidia-smi`; a driver older than this program's CUDA toolkit must be "
              "updated. On a machine without a GPU, build with `make CPU=1`",
              status == cudaSuccess ? "CUDA finds none" : cudaGetErrorString(status));
    }
    if (number >= count) {
        fatal("GPU %d was asked for, and this machine has %d; start fewer processes a machine", number, count);
    }
    CUDA_CHECK(cudaSetDevice(number));
    cudaDeviceProp prop;
    CUDA_CHECK(cudaGetDeviceProperties(&prop, number));
    if (prop.major * 10 + prop.minor < DEVICE_LEAST_CAPABILITY) {
        fatal("GPU %d (%s) is of compute capability %d.%d; the kernels need 8.0 (A100) or newer. The CPU build runs "
              "everywhere: `make CPU=1`", number, prop.name, prop.major, prop.minor);
    }
    status = device_finds_code();
    if (status != cudaSuccess) {
        fatal("this program cannot run on GPU %d (%s, compute capability %d.%d): %s. Build it on this machine after `make "
              "clean`, or with `make GPU=1 GPU_ARCH=%d%d`; if that does not help, update the driver",
              number, prop.name, prop.major, prop.minor, cudaGetErrorString(status), prop.major, prop.minor);
    }
    device_stream_t* s = (device_stream_t*)calloc_check(1, sizeof *s, "the device's stream");
    CUDA_CHECK(cudaStreamCreate(&s->cuda));
    if (cublasLtCreate(&s->blas) != CUBLAS_STATUS_SUCCESS) {
        fatal("cuBLASLt cannot be used: its library does not suit this driver; update the driver, or build with the "
              "CUDA toolkit that it came with");
    }
    s->multiprocessors = prop.multiProcessorCount;
    s->shared_bytes = (int)prop.sharedMemPerBlockOptin;
    CUDA_CHECK(cudaMalloc((void**)&s->blas_workspace, DEVICE_BLAS_WORKSPACE));
    CUDA_CHECK(cudaMalloc((void**)&s->scratch, DEVICE_SCRATCH_BYTES));
    return s;
}

static inline void device_close(stream_t s) {
    cudaFree(s->scratch);
    cudaFree(s->blas_workspace);
    cublasLtDestroy(s->blas);
    cudaStreamDestroy(s->cuda);
    free(s->matmul);
    free(s);
}

// Memory for partial sums, until the next operation asks for it.
static inline void* device_scratch(stream_t s, size_t bytes) {
    if (bytes > DEVICE_SCRATCH_BYTES) {
        fatal("an operation wants %.1f MiB of scratch memory, of %.1f; use a smaller -batch", bytes / 1048576.0,
              DEVICE_SCRATCH_BYTES / 1048576.0);
    }
#ifdef EMU
    emu_fresh(s->scratch, bytes); // reading what was not written since is an error, past the end too
#endif
    return s->scratch;
}

static inline void* device_malloc(size_t bytes, const char* what) {
    void* p = NULL;
    if (cudaMalloc(&p, bytes ? bytes : 256) != cudaSuccess) {
        size_t available = 0, total = 0;
        cudaGetLastError(); // the error is reported here
        cudaMemGetInfo(&available, &total);
        fatal("no memory on the GPU for %s (%.2f GiB; %.2f of %.2f GiB are free); use a smaller -batch (in multiples "
              "of -chunk), or -recompute 1", what, bytes / 1073741824.0, available / 1073741824.0,
              total / 1073741824.0);
    }
    return p;
}
static inline void device_free(void* p) { CUDA_CHECK(cudaFree(p)); }

static inline size_t device_memory_left(void) {
    size_t available = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    return available;
}

static inline void* host_malloc(size_t bytes, const char* what) {
    void* p = NULL;
    if (cudaMallocHost(&p, bytes ? bytes : 64) != cudaSuccess) {
        fatal("no page-locked memory for %s (%.1f MiB); use a smaller -batch", what, bytes / 1048576.0);
    }
    return p;
}
static inline void host_free(void* p) { CUDA_CHECK(cudaFreeHost(p)); }

// Of nothing, neither is asked of CUDA, which may refuse it: the pointer to nothing can be NULL, or just behind a block.
static inline void device_zero(void* p, size_t bytes, stream_t s) {
    if (bytes) CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, cuda_stream(s)));
}

static inline void device_copy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind, stream_t s) {
    if (!bytes) return;
    if (s) CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, kind, s->cuda));
    else CUDA_CHECK(cudaMemcpy(dst, src, bytes, kind));
}
static inline void copy_to_device(void* dst, const void* src, size_t bytes, stream_t s) {
    device_copy(dst, src, bytes, cudaMemcpyHostToDevice, s);
}
static inline void copy_to_host(void* dst, const void* src, size_t bytes, stream_t s) {
    device_copy(dst, src, bytes, cudaMemcpyDeviceToHost, s);
}
static inline void copy_on_device(void* dst, const void* src, size_t bytes, stream_t s) {
    device_copy(dst, src, bytes, cudaMemcpyDeviceToDevice, s);
}
static inline void stream_wait(stream_t s) { CUDA_CHECK(cudaStreamSynchronize(cuda_stream(s))); }
