// kernel.h: what tests of kernels need: tensors that exist twice, and a stream in several shapes.
//
// A test program is tests/kernels_<family>.cu. It is built for the GPU and for the emulator, in bf16 and in fp32, and
// holds each operation's kernel against the CPU reference in double (namespace cpu):
//
//     #define OPS_DECLARATIONS_ONLY
//     #include "tests/kernel.h"
//     #include "common/cuda/layernorm.cuh"          // the shipped file
//
//     tensor<floatX> x = random_input(n);           // the same numbers on both sides, exactly
//     tensor<floatX> out = output(n);               // poisoned on both sides: what is not written stays NaN
//     tensor<float> dweight = random_gradient(n);   // operations add to it
//     layernorm_forward(out.dev, ..., x.dev, ..., s);
//     cpu::layernorm_forward(out.ref, ..., x.ref, ..., 0);
//     check_tensor("out", out, TOLERANCE_X);        // ||dev - ref|| / ||ref||
//
// Each case runs in every shape of for_each_shape(): launch shapes follow the stream's number of multiprocessors, and
// in the emulator the order of the threads changes too.
#pragma once
#include "tests/test.h"
#include "tests/reference.h"

// One rounding to floatX of the output, of inputs that both sides share exactly; and sums in fp32.
#ifdef FP32
#define TOLERANCE_X 1e-5
#else
#define TOLERANCE_X 4e-3
#endif
#define TOLERANCE_S 1e-5

template <typename T> struct tensor {
    size_t n;
    double* ref; // on the host, for the reference
    T* dev;      // on the device
};

static struct { void* dev; void* ref; } test_tensors[512];
static int test_tensor_count;

template <typename T> static tensor<T> new_tensor(size_t n) {
    tensor<T> t = {n, (double*)malloc_check(n * sizeof(double), "a test's tensor"),
                   (T*)device_malloc(n * sizeof(T), "a test's tensor")};
    if (test_tensor_count == 512) fatal("a test has more than 512 tensors; call free_tensors between cases");
    test_tensors[test_tensor_count].dev = t.dev;
    test_tensors[test_tensor_count++].ref = t.ref;
    return t;
}

// Frees the tensors of a case.
static inline void free_tensors(void) {
    while (test_tensor_count) {
        test_tensor_count--;
        device_free(test_tensors[test_tensor_count].dev);
        free(test_tensors[test_tensor_count].ref);
    }
}

// Puts t.ref on the device, rounded to T, and takes the rounded values back.
template <typename T> static void upload(tensor<T> t) {
    T* host = (T*)malloc_check(t.n * sizeof(T), "a test's tensor");
    for (size_t i = 0; i < t.n; i++) {
        host[i] = (T)(float)t.ref[i];
        t.ref[i] = (double)(float)host[i];
    }
    copy_to_device(t.dev, host, t.n * sizeof(T), 0);
    free(host);
}

// Random normal numbers: scale * N(0, 1) + mean.
static inline tensor<floatX> random_input(size_t n, double scale = 1, double mean = 0) {
    tensor<floatX> t = new_tensor<floatX>(n);
    for (size_t i = 0; i < n; i++) t.ref[i] = mean + scale * test_normal();
    upload(t);
    return t;
}
static inline tensor<float> random_gradient(size_t n, double scale = 1) {
    tensor<float> t = new_tensor<float>(n);
    for (size_t i = 0; i < n; i++) t.ref[i] = scale * test_normal();
    upload(t);
    return t;
}

// Bytes of 0xff: NaN in every floating-point type.
template <typename T> static tensor<T> poisoned(size_t n) {
    tensor<T> t = new_tensor<T>(n);
    memset(t.ref, 0xff, n * sizeof(double));
    unsigned char* host = (unsigned char*)malloc_check(n * sizeof(T), "a test's tensor");
    memset(host, 0xff, n * sizeof(T));
    copy_to_device(t.dev, host, n * sizeof(T), 0);
    free(host);
    return t;
}
static inline tensor<floatX> output(size_t n) { return poisoned<floatX>(n); }
static inline tensor<float> output_s(size_t n) { return poisoned<float>(n); }

// ||dev - ref|| / ||ref||, infinite where either holds a NaN.
template <typename T> static double tensor_error(tensor<T> t) {
    T* host = (T*)malloc_check(t.n * sizeof(T), "a test's tensor");
    copy_to_host(host, t.dev, t.n * sizeof(T), 0);
    double difference = 0, norm = 0;
#pragma omp parallel for reduction(+ : difference, norm) if (t.n > 1000000)
    for (size_t i = 0; i < t.n; i++) {
        double d = (double)(float)host[i] - t.ref[i];
        difference += d * d;
        norm += t.ref[i] * t.ref[i];
    }
    free(host);
    double error = sqrt(difference) / (norm > 0 ? sqrt(norm) : 1);
    return isfinite(error) ? error : INFINITY;
}
template <typename T> static void check_tensor(const char* what, tensor<T> t, double bound) {
    check_error(what, tensor_error(t), bound);
}

// Every launch shape that a case runs in: `run` is called with the stream, after the stream was given another number of
// multiprocessors: few, and on a GPU its own. In the emulator each shape has its own order of threads.
static inline void for_each_shape(stream_t s, void (*run)(stream_t s, void* context), void* context) {
    int real = s->multiprocessors;
#ifdef EMU
    int shapes[] = {1, 5};
#else
    int shapes[] = {1, 5, real};
#endif
    for (int i = 0; i < (int)(sizeof shapes / sizeof *shapes); i++) {
        s->multiprocessors = shapes[i];
#ifdef EMU
        emu_set_order(i ? 12345 : 0);
#endif
        run(s, context);
        stream_wait(s);
    }
    s->multiprocessors = real;
}
