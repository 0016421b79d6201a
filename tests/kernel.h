// kernel.h: what tests of kernels need: tensors that exist twice, and a stream in several shapes.
//
// A test program is tests/kernels_<family>.cu. It is built for the GPU and for the emulator, in bf16 and in fp32, and
// holds each operation's kernel against the CPU reference in double (namespace cpu):
//
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

// Makes value i of a tensor v, on both sides.
template <typename T> static void set_value(tensor<T> t, size_t i, double v) {
    T value = (T)(float)v;
    t.ref[i] = (double)(float)value;
    copy_to_device(t.dev + i, &value, sizeof value, 0);
}

// The same numbers in a tensor of their own.
template <typename T> static tensor<T> copy_of(tensor<T> t) {
    tensor<T> copy = new_tensor<T>(t.n);
    memcpy(copy.ref, t.ref, t.n * sizeof(double));
    upload(copy);
    return copy;
}

// The same tensor without its first values: at an address that suits no 16-byte access.
template <typename T> static tensor<T> shifted(tensor<T> t, size_t shift) {
    return {t.n - shift, t.ref + shift, t.dev + shift};
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

// The same bits as the reference, rounded to T once.
template <typename T> static void check_same(const char* what, tensor<T> t) {
    T* host = (T*)malloc_check(t.n * sizeof(T), "a test's tensor");
    copy_to_host(host, t.dev, t.n * sizeof(T), 0);
    int same = 1;
    for (size_t i = 0; i < t.n; i++) same &= (float)host[i] == (float)(T)(float)t.ref[i];
    check(same, what);
    free(host);
}

// Whether the device holds the same bits in both.
template <typename T> static int same_bits(tensor<T> a, tensor<T> b) {
    size_t bytes = a.n * sizeof(T);
    void *x = malloc_check(bytes, "a test's tensor"), *y = malloc_check(bytes, "a test's tensor");
    copy_to_host(x, a.dev, bytes, 0);
    copy_to_host(y, b.dev, bytes, 0);
    int same = !memcmp(x, y, bytes);
    free(x), free(y);
    return same;
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

// A case of a few sizes, in every launch shape.
typedef struct { int v[8]; } sizes_t; // what they mean is said where they are used

static inline void test_shapes(stream_t s, const char* name, void (*run)(stream_t s, void* context), sizes_t sizes) {
    if (!test_case(name)) return;
    for_each_shape(s, run, &sizes);
    test_end_case();
}
