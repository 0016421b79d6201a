// The gradients of a convolution's weights and bias: every kernel, stride and padding of the models, one split and
// several.
#include "tests/kernel.h"
#include "common/cuda/conv_weight.cuh"

typedef struct {
    int B, H, W;
    conv_t conv;
    int with_bias, first; // images before the part of the batch that the gradient is of
    int shift;            // elements by which tensors begin behind an aligned address
} weight_case_t;

static void run_weight(stream_t s, void* context) {
    weight_case_t t = *(weight_case_t*)context;
    conv_t c = t.conv;
    size_t n = (size_t)t.H * t.W * c.C, n_out = (size_t)conv_out_height(t.H, c) * conv_out_width(t.W, c) * c.OC;
    tensor<floatX> x = random_input((t.first + t.B) * n + t.shift);
    tensor<floatX> dout = random_input((t.first + t.B) * n_out + t.shift);
    size_t at = t.first * n + t.shift, at_out = t.first * n_out + t.shift;
    tensor<float> dweight = random_gradient((size_t)c.OC * c.KH * c.KW * c.C), dbias = random_gradient(c.OC);
    double* dbias_ref = t.with_bias ? dbias.ref : nullptr;
    float* dbias_dev = t.with_bias ? dbias.dev : nullptr;
    for (int k = 0; k < 2; k++) {
        cpu::conv2d_backward_weight(dweight.ref, dbias_ref, dout.ref + at_out, x.ref + at, t.B, t.H, t.W, c, 0);
        conv2d_backward_weight(dweight.dev, dbias_dev, dout.dev + at_out, x.dev + at, t.B, t.H, t.W, c, s);
    }
    check_tensor("dweight", dweight, TOLERANCE_S);
    check_tensor("dbias", dbias, TOLERANCE_S);
    free_tensors();
}

static void check_weight(stream_t s, int B, int H, int W, conv_t conv, int with_bias, int first = 0, int shift = 0) {
    weight_case_t t = {B, H, W, conv, with_bias, first, shift};
    for_each_shape(s, run_weight, &t);
}

// With as many multiprocessors as it takes for several splits.
static void check_splits(stream_t s, int B, int H, int W, conv_t conv, int with_bias) {
    weight_case_t t = {B, H, W, conv, with_bias, 0, 0};
    int real = s->multiprocessors;
    s->multiprocessors = 8;
    run_weight(s, &t);
    s->multiprocessors = real;
}

// Kernel, stride and paddings: those of the models, and others.
static void test_shapes(stream_t s) {
    static const int kernels[10][4] = {{3, 1, 1, 1}, {4, 2, 1, 1}, {4, 1, 1, 1}, {1, 1, 0, 0}, {3, 2, 0, 1},
                                       {3, 2, 1, 1}, {1, 2, 0, 0}, {3, 1, 0, 2}, {1, 1, 1, 1}, {5, 3, 2, 1}};
    static const int sizes[5][3] = {{2, 5, 7}, {1, 9, 4}, {3, 4, 4}, {1, 6, 19}, {1, 9, 16}};
    static const int channels[10][2] = {{8, 8},  {24, 40}, {40, 24}, {5, 13}, {16, 70},
                                         {72, 8}, {3, 64},  {40, 3},  {64, 1}, {3, 5}};
    for (int k = 0; k < 10; k++) {
        char name[80];
        conv_t conv = conv_square(0, 0, kernels[k][0], kernels[k][1], kernels[k][2], kernels[k][3]);
        snprintf(name, sizeof name, "dweight %dx%d stride %d pad (%d,%d)", conv.KH, conv.KW, conv.stride, conv.pad_top,
                 conv.pad_bottom);
        if (!test_case(name)) continue;
        for (int i = k % 2; i < 10; i += 2) { // each pair of channels with every second kernel
            const int* size = sizes[(i / 2 + k) % 5];
            conv.C = channels[i][0], conv.OC = channels[i][1];
            check_weight(s, size[0], size[1], size[2], conv, (i / 2 + k) % 3 != 0);
        }
        test_end_case();
    }
}

// Rows and columns that differ in kernel and padding.
static void test_rectangles(stream_t s) {
    static const conv_t shapes[4] = {{16, 24, 1, 7, 1, 0, 0, 3, 3, 0}, {24, 16, 7, 1, 1, 3, 3, 0, 0, 0},
                                     {8, 9, 2, 5, 2, 1, 0, 0, 2, 0}, {3, 16, 3, 4, 2, 0, 2, 1, 0, 0}};
    if (!test_case("dweight of rectangles")) return;
    for (int k = 0; k < 4; k++) check_weight(s, 2, 5, 9, shapes[k], 1);
    test_end_case();
}

static void test_sizes(stream_t s) {
    if (test_case("dweight several tiles of channels")) {
        conv_t same = conv_square(72, 136, 3, 1, 1, 1), half = conv_square(136, 72, 4, 2, 1, 1);
        conv_t odd = conv_square(67, 71, 3, 1, 1, 1);
        check_weight(s, 2, 7, 9, same, 1);
        check_weight(s, 1, 12, 10, half, 1);
        check_weight(s, 1, 5, 6, odd, 1);
        test_end_case();
    }
    if (test_case("dweight pieces of 1, 2, 4 and 8 rows, several splits")) {
        conv_t same = conv_square(16, 24, 3, 1, 1, 1), half = conv_square(16, 24, 4, 2, 1, 1);
        conv_t odd = conv_square(7, 9, 3, 1, 1, 1);
        check_splits(s, 1, 5, 130, same, 1);
        check_splits(s, 1, 4, 128, half, 1);
        check_splits(s, 1, 13, 30, same, 0);
        check_splits(s, 2, 21, 30, half, 1);
        check_splits(s, 3, 8, 8, same, 1);
        check_splits(s, 1, 9, 13, odd, 1);
        test_end_case();
    }
    if (test_case("dweight of a narrow side: several tiles, a part of the batch")) {
        conv_t vgg = conv_square(3, 64, 3, 1, 1, 1), out = conv_square(128, 3, 3, 1, 1, 1);
#ifdef FP32 // no tiles, and slow here
        check_weight(s, 1, 9, 11, vgg, 1);
        check_weight(s, 1, 5, 7, out, 1, 1);
#else
        conv_t first = conv_square(3, 64, 4, 2, 1, 1), logits = conv_square(512, 1, 4, 1, 1, 1);
        check_weight(s, 2, 35, 41, vgg, 1);
        check_weight(s, 2, 33, 37, out, 1, 3);
        check_weight(s, 2, 36, 70, first, 1);
        check_weight(s, 3, 9, 8, logits, 1, 1);
#endif
        test_end_case();
    }
    if (test_case("dweight of one pixel, a part of the batch, odd addresses")) {
        conv_t same = conv_square(16, 24, 3, 1, 1, 1), half = conv_square(16, 24, 4, 2, 1, 1);
        conv_t out = conv_square(40, 3, 3, 1, 1, 1), one = conv_square(1, 1, 3, 1, 1, 1);
        check_weight(s, 1, 1, 1, same, 1);
        check_weight(s, 1, 2, 2, half, 1);
        check_weight(s, 3, 1, 1, one, 1);
        check_weight(s, 1, 1, 1, out, 0);
        check_weight(s, 2, 5, 6, same, 1, 3);
        check_weight(s, 2, 5, 6, same, 1, 0, 1);
        check_weight(s, 2, 5, 6, out, 1, 1, 3);
        test_end_case();
    }
}

// A device that has 99 KB of shared memory a block: the kernels of all strides and kernels fit.
static void test_small_memory(stream_t s) {
    if (!test_case("dweight with 99 KB of shared memory")) return;
    int real = s->shared_bytes;
    s->shared_bytes = 99 * 1024;
    for (int K = 3; K <= 4; K++) {
        for (int stride = 1; stride <= 2; stride++) check_splits(s, 1, 13, 40, conv_square(16, 24, K, stride, 1, 1), 1);
    }
    check_splits(s, 1, 9, 20, conv_square(512, 3, 3, 1, 1, 1), 1);
    check_weight(s, 1, 5, 6, conv_square(7, 9, 3, 1, 1, 1), 1);
    s->shared_bytes = real;
    test_end_case();
}

// The number of splits: one in which sums go to the gradients at once, several, more than there is work for.
static void test_splits(void) {
    if (!test_case("dweight splits")) return;
    check(conv_weight_splits(1, 6, 132, 0.5, 1000) == 1, "one step, one split");
    check(conv_weight_splits(100000, 6, 132, 0.5, 1) == 1, "no room, one split");
    check(conv_weight_splits(100000, 6, 132, 0.5, 1000) == 22, "long sums fill 132 multiprocessors");
    check(conv_weight_splits(1000, 600, 132, 10, 1000) == 1, "enough blocks without");
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    test_shapes(s);
    test_rectangles(s);
    test_sizes(s);
    test_small_memory(s);
    test_splits();
    device_close(s);
    return test_finish();
}
