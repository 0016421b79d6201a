// Convolution: forward and gradient of x, every kernel, stride and padding of the models, at sizes around the tiles.
#include "tests/kernel.h"
#include "common/cuda/conv.cuh"

enum { BIAS = 1, RESIDUAL = 2, MASK = 4 };

typedef struct {
    int B, H, W;
    conv_t conv;
    activation_t act;
    int with;  // BIAS, RESIDUAL, MASK
    int shift; // elements by which tensors begin behind an aligned address
} conv_case_t;

typedef struct {
    tensor<floatX> x, weight, bias, residual, dout, out, dx;
} conv_tensors_t;

// Inputs, and the outputs of the reference.
static conv_tensors_t make_case(conv_case_t t) {
    conv_t c = t.conv;
    size_t n = (size_t)t.B * t.H * t.W * c.C, n_weight = (size_t)c.OC * c.KH * c.KW * c.C;
    size_t n_out = (size_t)t.B * conv_out_height(t.H, c) * conv_out_width(t.W, c) * c.OC;
    conv_tensors_t v;
    v.x = shifted(random_input(n + t.shift), t.shift);
    v.weight = shifted(random_input(n_weight + t.shift, 1 / sqrt((double)c.KH * c.KW * c.C)), t.shift);
    v.bias = shifted(random_input(c.OC + t.shift), t.shift);
    v.residual = shifted(random_input(n_out + t.shift), t.shift);
    v.dout = shifted(random_input(n_out + t.shift), t.shift);
    v.out = shifted(output(n_out + t.shift), t.shift);
    v.dx = shifted(output(n + t.shift), t.shift);
    if (!(t.with & BIAS)) v.bias.ref = nullptr, v.bias.dev = nullptr;
    if (!(t.with & RESIDUAL)) v.residual.ref = nullptr, v.residual.dev = nullptr;
    const double* mask = t.with & MASK ? v.x.ref : nullptr;
    cpu::conv2d_forward(v.out.ref, v.x.ref, v.weight.ref, v.bias.ref, v.residual.ref, t.B, t.H, t.W, c, t.act, 0);
    cpu::conv2d_backward_data(v.dx.ref, v.dout.ref, v.weight.ref, mask, t.B, t.H, t.W, c, t.act, 0);
    return v;
}

static void run_conv(stream_t s, void* context) {
    conv_case_t t = *(conv_case_t*)context;
    conv_tensors_t v = make_case(t);
    const floatX* mask = t.with & MASK ? v.x.dev : nullptr;
    conv2d_forward(v.out.dev, v.x.dev, v.weight.dev, v.bias.dev, v.residual.dev, t.B, t.H, t.W, t.conv, t.act, s);
    conv2d_backward_data(v.dx.dev, v.dout.dev, v.weight.dev, mask, t.B, t.H, t.W, t.conv, t.act, s);
    check_tensor("out", v.out, TOLERANCE_X);
    check_tensor("dx", v.dx, TOLERANCE_X);
    free_tensors();
}

static void check_conv(stream_t s, int B, int H, int W, conv_t conv, activation_t act, int with, int shift) {
    conv_case_t t = {B, H, W, conv, act, with, shift};
    for_each_shape(s, run_conv, &t);
}

// Kernel, stride and paddings: those of the models, and others.
static void test_shapes(stream_t s) {
    static const int kernels[9][4] = {{3, 1, 1, 1}, {1, 1, 0, 0}, {4, 2, 1, 1}, {4, 1, 1, 1}, {3, 2, 0, 1},
                                      {3, 2, 1, 1}, {1, 2, 0, 0}, {3, 1, 0, 2}, {1, 1, 1, 2}};
    static const int sizes[4][3] = {{2, 5, 7}, {1, 9, 4}, {3, 4, 4}, {1, 12, 13}};
    static const int channels[5][2] = {{8, 8}, {24, 40}, {40, 24}, {5, 13}, {16, 7}};
    for (int k = 0; k < 9; k++) {
        char name[80];
        conv_t conv = conv_square(0, 0, kernels[k][0], kernels[k][1], kernels[k][2], kernels[k][3]);
        snprintf(name, sizeof name, "conv2d %dx%d stride %d pad (%d,%d)", conv.KH, conv.KW, conv.stride, conv.pad_top,
                 conv.pad_bottom);
        if (!test_case(name)) continue;
        for (int i = 0; i < 5; i++) {
            const int* size = sizes[(i + k) % 4];
            conv.C = channels[i][0], conv.OC = channels[i][1];
            check_conv(s, size[0], size[1], size[2], conv, (activation_t)((i + k) % 3), i + k, 0);
        }
        test_end_case();
    }
}

// Rows and columns that differ in kernel and padding: Inception's, a stride, and a narrow side.
static void test_rectangles(stream_t s) {
    static const conv_t shapes[6] = {{40, 24, 1, 7, 1, 0, 0, 3, 3, 0}, {24, 40, 7, 1, 1, 3, 3, 0, 0, 0},
                                     {16, 24, 1, 3, 1, 0, 0, 1, 1, 0}, {8, 16, 2, 5, 2, 1, 0, 0, 2, 0},
                                     {3, 16, 3, 4, 2, 0, 2, 1, 0, 0},  {13, 2, 3, 1, 1, 1, 1, 0, 0, 0}};
    for (int k = 0; k < 6; k++) {
        char name[80];
        conv_t c = shapes[k];
        snprintf(name, sizeof name, "conv2d %dx%d stride %d pad (%d,%d), (%d,%d)", c.KH, c.KW, c.stride, c.pad_top,
                 c.pad_bottom, c.pad_left, c.pad_right);
        if (!test_case(name)) continue;
        check_conv(s, 2, 5, 9, c, ACT_RELU, BIAS | (k % 2 ? RESIDUAL : MASK), 0);
        check_conv(s, 1, 17, 18, c, ACT_LEAKY, k % 2 ? MASK : BIAS, 0);
        test_end_case();
    }
}

typedef struct {
    conv_t conv;
    int row, first; // where the channels go
} side_case_t;

// The channels of a wider map hold the bits of a map of their own, and nothing else is touched.
static void run_side_by_side(stream_t s, void* context) {
    side_case_t t = *(side_case_t*)context;
    int B = 2, H = 6, W = 19, OC = t.conv.OC;
    size_t pixels = (size_t)B * conv_out_height(H, t.conv) * conv_out_width(W, t.conv);
    tensor<floatX> x = random_input((size_t)B * H * W * t.conv.C), bias = random_input(OC);
    tensor<floatX> weight = random_input((size_t)OC * t.conv.KH * t.conv.KW * t.conv.C);
    tensor<floatX> own = output(pixels * OC), wide = random_input(pixels * t.row);
    conv_t conv = t.conv;
    conv.out_row = t.row;
    conv2d_forward(own.dev, x.dev, weight.dev, bias.dev, nullptr, B, H, W, t.conv, ACT_RELU, s);
    conv2d_forward(wide.dev + t.first, x.dev, weight.dev, bias.dev, nullptr, B, H, W, conv, ACT_RELU, s);
    floatX* got = (floatX*)malloc_check(pixels * OC * sizeof(floatX), "a map");
    copy_to_host(got, own.dev, pixels * OC * sizeof(floatX), 0);
    for (size_t i = 0; i < pixels; i++) {
        for (int o = 0; o < OC; o++) wide.ref[i * t.row + t.first + o] = (double)(float)got[i * OC + o];
    }
    check_tensor("out", wide, 0);
    free(got);
    free_tensors();
}

static void test_side_by_side(stream_t s) {
    if (!test_case("conv2d into some channels of a wider map")) return;
    side_case_t cases[4] = {{conv_square(16, 72, 3, 1, 1, 1), 96, 16}, {conv_square(24, 40, 1, 1, 0, 0), 56, 8},
                            {conv_square(16, 24, 3, 2, 0, 0), 31, 5}, {conv_square(9, 13, 3, 1, 1, 1), 30, 8}};
    for (int k = 0; k < 4; k++) for_each_shape(s, run_side_by_side, &cases[k]);
    test_end_case();
}

static void test_sizes(stream_t s) {
    if (test_case("conv2d several tiles of windows and channels, more channels than a slab")) {
        conv_t same = conv_square(72, 136, 3, 1, 1, 1), half = conv_square(64, 80, 4, 2, 1, 1);
        conv_t matrix = conv_square(48, 200, 1, 1, 0, 0);
        conv_t wide = conv_square(8, 64, 3, 1, 1, 1);
        check_conv(s, 3, 7, 9, same, ACT_LEAKY, BIAS | RESIDUAL | MASK, 0);
        check_conv(s, 2, 18, 15, half, ACT_LEAKY, BIAS | MASK, 0);
        check_conv(s, 2, 11, 13, matrix, ACT_NONE, BIAS | RESIDUAL, 0);
        check_conv(s, 1, 17, 19, wide, ACT_RELU, BIAS | MASK, 0);
        test_end_case();
    }
    if (test_case("conv2d one pixel, one window, one channel; tensors at odd addresses")) {
        conv_t same = conv_square(16, 24, 3, 1, 1, 1), half = conv_square(16, 24, 4, 2, 1, 1);
        conv_t one = conv_square(1, 1, 3, 1, 1, 1), thin = conv_square(9, 1, 4, 1, 1, 1);
        check_conv(s, 1, 1, 1, same, ACT_RELU, BIAS | RESIDUAL | MASK, 0);
        check_conv(s, 1, 2, 2, half, ACT_NONE, 0, 0);
        check_conv(s, 2, 3, 5, one, ACT_LEAKY, BIAS | RESIDUAL | MASK, 0);
        check_conv(s, 1, 6, 5, thin, ACT_NONE, BIAS, 0);
        check_conv(s, 2, 5, 6, same, ACT_LEAKY, BIAS | RESIDUAL | MASK, 1);
        test_end_case();
    }
}

// A device that has 99 KB of shared memory a block, where a larger one would take the large tile; one that has less
// than any tile needs; and more taps than the tensor cores' table holds.
static void test_small_memory(stream_t s) {
    if (!test_case("conv2d with 99 KB and with 16 KB of shared memory; 9 x 9 taps")) return;
    conv_t same = conv_square(16, 64, 3, 1, 1, 1), half = conv_square(24, 32, 3, 2, 0, 1);
    conv_t wide = conv_square(8, 8, 9, 1, 4, 4);
    int real = s->shared_bytes;
    s->shared_bytes = 99 * 1024;
    check_conv(s, 1, 33, 31, same, ACT_RELU, BIAS | RESIDUAL | MASK, 0);
    check_conv(s, 2, 19, 17, half, ACT_LEAKY, BIAS | MASK, 0);
    s->shared_bytes = 16 * 1024;
    check_conv(s, 1, 9, 7, same, ACT_LEAKY, BIAS | MASK, 0);
    s->shared_bytes = real;
    check_conv(s, 1, 9, 7, wide, ACT_LEAKY, BIAS | MASK, 0);
    test_end_case();
}

// The models' channels with a narrow side.
static void test_narrow(stream_t s) {
    if (!test_case("conv2d images and logits: 3 -> 64, 128 -> 3, 512 -> 1")) return;
    conv_t vgg = conv_square(3, 64, 3, 1, 1, 1), first = conv_square(3, 64, 4, 2, 1, 1);
    conv_t out = conv_square(128, 3, 3, 1, 1, 1), logits = conv_square(512, 1, 4, 1, 1, 1);
    check_conv(s, 2, 5, 6, vgg, ACT_RELU, BIAS | MASK, 0);
    check_conv(s, 2, 6, 8, first, ACT_LEAKY, BIAS, 0);
    check_conv(s, 2, 5, 6, out, ACT_NONE, BIAS, 0);
    check_conv(s, 1, 5, 4, logits, ACT_LEAKY, BIAS | MASK, 0);
    test_end_case();
}

#ifndef FP32
static void poison(tensor<floatX> t) {
    unsigned char* host = (unsigned char*)malloc_check(t.n * sizeof(floatX), "a test's tensor");
    memset(host, 0xff, t.n * sizeof(floatX));
    copy_to_device(t.dev, host, t.n * sizeof(floatX), 0);
    free(host);
}

// Each tile size, in rows of 16 and of 8 windows, whatever conv_gemm() would choose.
static void run_tiles(stream_t s, void* context) {
    conv_case_t t = *(conv_case_t*)context;
    conv_tensors_t v = make_case(t);
    const floatX* mask = t.with & MASK ? v.x.dev : nullptr;
    void (*tiles[3])(const conv_job_t& job, int columns, bool data, stream_t s) = {
        conv_gemm_tile<256, 64, 64>, conv_gemm_tile<128, 64, 32>, conv_gemm_tile<64, 32, 32>};
    for (int k = 0; k < 6; k++) {
        poison(v.out), poison(v.dx);
        conv_job_t forward = conv_forward_job(v.out.dev, v.x.dev, v.weight.dev, v.bias.dev, v.residual.dev, t.B, t.H,
                                              t.W, t.conv, t.act);
        conv_job_t data = conv_data_job(v.dx.dev, v.dout.dev, v.weight.dev, mask, t.B, t.H, t.W, t.conv, t.act);
        int columns = k % 2 ? 8 : 16;
        tiles[k / 2](forward, columns, false, s);
        tiles[k / 2](data, columns, true, s);
        check_tensor("out", v.out, TOLERANCE_X);
        check_tensor("dx", v.dx, TOLERANCE_X);
    }
    free_tensors();
}

static void test_tiles(stream_t s) {
    if (!test_case("conv2d every tile size")) return;
    conv_case_t same = {2, 9, 18, conv_square(40, 72, 3, 1, 1, 1), ACT_LEAKY, BIAS | RESIDUAL | MASK, 0};
    conv_case_t half = {1, 37, 21, conv_square(40, 64, 3, 2, 0, 1), ACT_RELU, BIAS | MASK, 0};
    conv_case_t matrix = {1, 11, 17, conv_square(72, 40, 1, 1, 0, 0), ACT_RELU, BIAS | RESIDUAL | MASK, 0};
    for_each_shape(s, run_tiles, &same);
    for_each_shape(s, run_tiles, &half);
    for_each_shape(s, run_tiles, &matrix);
    test_end_case();
}

static conv_choice_t choice(int B, int H, int W, conv_t conv, bool data, size_t shared_bytes) {
    conv_job_t job = data ? conv_data_job(NULL, NULL, NULL, NULL, B, H, W, conv, ACT_NONE)
                          : conv_forward_job(NULL, NULL, NULL, NULL, NULL, B, H, W, conv, ACT_NONE);
    return conv_gemm_choose(job, 132, shared_bytes);
}
static int is_tile(conv_choice_t tile, int windows, int columns) {
    return tile.windows == windows && (windows == 0 || tile.columns == columns);
}

// The tile by the shared memory of a block: 227 KB (H100), 163 KB (A100), 99 KB (RTX 30, 40, 50, A10, L4, L40S).
static void test_choice(void) {
    if (!test_case("conv2d tile by shared memory and size of the map")) return;
    conv_t decoder = conv_square(128, 128, 3, 1, 1, 1), half = conv_square(128, 128, 3, 2, 0, 1);
    size_t limits[3] = {227 * 1024, 163 * 1024, 99 * 1024};
    for (int k = 0; k < 3; k++) {
        for (int data = 0; data < 2; data++) {
            int large = limits[k] > 99 * 1024 ? 256 : 128;
            check(is_tile(choice(64, 256, 256, decoder, data, limits[k]), large, 16), "large maps");
            check(choice(64, 256, 256, half, data, limits[k]).windows > 0, "stride 2");
            check(is_tile(choice(64, 8, 8, decoder, data, limits[k]), 64, 8), "maps of 8 x 8");
            check(choice(64, 64, 24, decoder, data, limits[k]).columns == 8, "maps 24 wide");
            check(choice(1, 16, 16, decoder, data, limits[k]).windows == 64, "one small image");
        }
    }
    check(is_tile(choice(64, 256, 256, decoder, false, 48 * 1024), 128, 16), "48 KB");
    check(is_tile(choice(64, 256, 256, decoder, false, 32 * 1024), 64, 16), "32 KB");
    check(is_tile(choice(64, 256, 256, decoder, false, 16 * 1024), 0, 0), "no tile fits");
    test_end_case();
}
#endif

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    test_shapes(s);
    test_rectangles(s);
    test_side_by_side(s);
    test_sizes(s);
    test_small_memory(s);
    test_narrow(s);
#ifndef FP32
    test_tiles(s);
    test_choice();
#endif
    device_close(s);
    return test_finish();
}
