// Convolutions with a narrow side: forward and gradient of x, on tensor cores and by the plain kernels.
#include "tests/kernel.h"
#include "common/cuda/conv_narrow.cuh"

enum { BIAS = 1, RESIDUAL = 2, MASK = 4 };

typedef struct {
    int B, H, W;
    conv_t conv;
    activation_t act;
    int with;  // BIAS, RESIDUAL, MASK
    int shift; // elements by which tensors begin behind an aligned address
} narrow_case_t;

static void run_narrow(stream_t s, void* context) {
    narrow_case_t t = *(narrow_case_t*)context;
    conv_t c = t.conv;
    size_t n = (size_t)t.B * t.H * t.W * c.C;
    size_t n_out = (size_t)t.B * conv_out_height(t.H, c) * conv_out_width(t.W, c) * c.OC;
    size_t n_weight = (size_t)c.OC * c.KH * c.KW * c.C;
    tensor<floatX> x = shifted(random_input(n + t.shift), t.shift), dx = shifted(output(n + t.shift), t.shift);
    tensor<floatX> weight = shifted(random_input(n_weight + t.shift), t.shift), bias = random_input(c.OC);
    tensor<floatX> residual = shifted(random_input(n_out + t.shift), t.shift);
    tensor<floatX> dout = shifted(random_input(n_out + t.shift), t.shift);
    tensor<floatX> out = shifted(output(n_out + t.shift), t.shift);
    if (!(t.with & BIAS)) bias.ref = nullptr, bias.dev = nullptr;
    if (!(t.with & RESIDUAL)) residual.ref = nullptr, residual.dev = nullptr;
    const double* mask_ref = t.with & MASK ? x.ref : nullptr;
    const floatX* mask = t.with & MASK ? x.dev : nullptr;
    cpu::conv2d_forward(out.ref, x.ref, weight.ref, bias.ref, residual.ref, t.B, t.H, t.W, c, t.act, 0);
    cpu::conv2d_backward_data(dx.ref, dout.ref, weight.ref, mask_ref, t.B, t.H, t.W, c, t.act, 0);
    auto forward = c.C <= NARROW_MOST ? conv_narrow_in_forward : conv_narrow_out_forward;
    auto backward = c.C <= NARROW_MOST ? conv_narrow_in_backward_data : conv_narrow_out_backward_data;
    forward(out.dev, x.dev, weight.dev, bias.dev, residual.dev, t.B, t.H, t.W, c, t.act, s);
    backward(dx.dev, dout.dev, weight.dev, mask, t.B, t.H, t.W, c, t.act, s);
    check_tensor("out", out, TOLERANCE_X);
    check_tensor("dx", dx, TOLERANCE_X);
    free_tensors();
}

static void check_narrow(stream_t s, int B, int H, int W, conv_t conv, activation_t act, int with, int shift = 0) {
    narrow_case_t t = {B, H, W, conv, act, with, shift};
    for_each_shape(s, run_narrow, &t);
}

// Kernel, stride and paddings: those of the models, and others; both sides narrow in turn.
static void test_shapes(stream_t s) {
    static const int kernels[9][4] = {{3, 1, 1, 1}, {4, 2, 1, 1}, {4, 1, 1, 1}, {1, 1, 0, 0}, {3, 2, 0, 1},
                                      {3, 2, 1, 1}, {1, 2, 0, 0}, {3, 1, 0, 2}, {5, 3, 2, 1}};
    static const int sizes[4][3] = {{2, 5, 7}, {1, 9, 4}, {3, 4, 4}, {1, 18, 37}};
    static const int narrow[4] = {3, 1, 2, 4}, wide[5] = {64, 8, 40, 136, 13};
    for (int k = 0; k < 9; k++) {
        char name[80];
        conv_t conv = conv_square(0, 0, kernels[k][0], kernels[k][1], kernels[k][2], kernels[k][3]);
        snprintf(name, sizeof name, "narrow conv %dx%d stride %d pad (%d,%d)", conv.KH, conv.KW, conv.stride,
                 conv.pad_top, conv.pad_bottom);
        if (!test_case(name)) continue;
        for (int i = 0; i < 10; i++) {
            const int* size = sizes[(i + k) % 4];
            int few = narrow[(i / 2 + k) % 4], many = wide[(i / 2 + k) % 5];
            conv.C = i % 2 ? few : many, conv.OC = i % 2 ? many : few;
            int with = (i & 1 || i % 3 == 0 ? BIAS : 0) | ((i + k) & 2 ? RESIDUAL : 0) | ((i + k) & 1 ? 0 : MASK);
            check_narrow(s, size[0], size[1], size[2], conv, (activation_t)((i + k) % 3), with);
        }
        test_end_case();
    }
}

static void test_models(stream_t s) {
    conv_t vgg = conv_square(3, 64, 3, 1, 1, 1), out = conv_square(128, 3, 3, 1, 1, 1);
    conv_t first = conv_square(3, 64, 4, 2, 1, 1), logits = conv_square(512, 1, 4, 1, 1, 1);
    if (test_case("narrow conv of the models: several tiles")) {
        check_narrow(s, 1, 35, 70, vgg, ACT_RELU, BIAS);
        check_narrow(s, 1, 19, 41, out, ACT_NONE, BIAS);
        check_narrow(s, 1, 40, 68, first, ACT_LEAKY, BIAS | MASK);
        check_narrow(s, 2, 7, 8, logits, ACT_NONE, BIAS | MASK);
        test_end_case();
    }
    if (test_case("narrow conv with a stride: tiles that begin between two outputs")) {
        conv_t half = conv_square(3, 16, 3, 2, 1, 1), third = conv_square(2, 16, 5, 3, 1, 2);
        check_narrow(s, 1, 19, 71, half, ACT_LEAKY, BIAS | MASK);
        check_narrow(s, 1, 22, 101, third, ACT_NONE, 0);
        test_end_case();
    }
    if (test_case("narrow conv of one pixel; both sides narrow; tensors at odd addresses")) {
        conv_t both = conv_square(3, 4, 3, 1, 1, 1), one = conv_square(1, 1, 4, 2, 1, 1);
        check_narrow(s, 1, 1, 1, vgg, ACT_RELU, BIAS | RESIDUAL | MASK);
        check_narrow(s, 1, 1, 1, out, ACT_RELU, RESIDUAL | MASK);
        check_narrow(s, 2, 2, 2, first, ACT_LEAKY, 0);
        check_narrow(s, 2, 6, 5, both, ACT_LEAKY, BIAS | RESIDUAL | MASK);
        check_narrow(s, 1, 2, 3, one, ACT_NONE, BIAS);
        check_narrow(s, 2, 5, 6, vgg, ACT_LEAKY, BIAS | RESIDUAL | MASK, 1);
        check_narrow(s, 2, 5, 6, out, ACT_LEAKY, BIAS | RESIDUAL | MASK, 3);
        test_end_case();
    }
}

// A device that has 99 KB of shared memory a block: tiles are smaller, the kernels the same.
static void test_small_memory(stream_t s) {
    if (!test_case("narrow conv with 99 KB of shared memory: 512 -> 3 and 128 -> 3")) return;
    int real = s->shared_bytes;
    s->shared_bytes = 99 * 1024;
    check_narrow(s, 1, 17, 35, conv_square(512, 3, 3, 1, 1, 1), ACT_NONE, BIAS);
    check_narrow(s, 1, 17, 35, conv_square(128, 3, 3, 1, 1, 1), ACT_NONE, BIAS | MASK);
    s->shared_bytes = real;
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    test_shapes(s);
    test_models(s);
    test_small_memory(s);
    device_close(s);
    return test_finish();
}
