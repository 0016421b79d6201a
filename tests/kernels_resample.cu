// Maximum over 2x2 windows and nearest-neighbour upsampling, both ways; the pools of Inception and its input.
#include "tests/kernel.h"
#include "common/cuda/resample.cuh"
#include "common/cuda/pool.cuh"

typedef struct {
    int B, H, W, C;
    int shift; // elements by which the inputs begin behind an aligned address
} resample_case_t;

// Bit for bit: what is only moved, not rounded.
static void check_equal(const char* what, tensor<floatX> t) { check_tensor(what, t, 0); }

// The input of the maximum is a ReLU's output: there are zeros among it; and small whole numbers, so that windows often
// hold their maximum more than once.
static tensor<floatX> pooled_input(size_t n) {
    tensor<floatX> x = random_input(n);
    for (size_t i = 0; i < n; i++) x.ref[i] = fmax(0, round(x.ref[i]));
    upload(x);
    return x;
}

static void run_maxpool(stream_t s, void* context) {
    resample_case_t t = *(resample_case_t*)context;
    size_t n = (size_t)t.B * t.H * t.W * t.C, pooled = (size_t)t.B * (t.H / 2) * (t.W / 2) * t.C;
    for (int ties = 0; ties < 2; ties++) {
        tensor<floatX> x = ties ? pooled_input(n + t.shift) : random_input(n + t.shift), out = output(pooled);
        tensor<floatX> dout = random_input(pooled), add = random_input(n), dx = output(n), dx_alone = output(n);
        x = shifted(x, t.shift);
        maxpool_forward(out.dev, x.dev, t.B, t.H, t.W, t.C, s);
        cpu::maxpool_forward(out.ref, x.ref, t.B, t.H, t.W, t.C, 0);
        check_equal("out", out);
        maxpool_relu_backward(dx_alone.dev, dout.dev, nullptr, x.dev, t.B, t.H, t.W, t.C, s);
        cpu::maxpool_relu_backward(dx_alone.ref, dout.ref, nullptr, x.ref, t.B, t.H, t.W, t.C, 0);
        check_equal("dx without add", dx_alone);
        maxpool_relu_backward(dx.dev, dout.dev, add.dev, x.dev, t.B, t.H, t.W, t.C, s);
        cpu::maxpool_relu_backward(dx.ref, dout.ref, add.ref, x.ref, t.B, t.H, t.W, t.C, 0);
        check_tensor("dx", dx, TOLERANCE_X);
        maxpool_relu_backward(add.dev, dout.dev, add.dev, x.dev, t.B, t.H, t.W, t.C, s);
        cpu::maxpool_relu_backward(add.ref, dout.ref, add.ref, x.ref, t.B, t.H, t.W, t.C, 0);
        check_tensor("dx in place", add, TOLERANCE_X);
        free_tensors();
    }
}

// A NaN anywhere in a window is its maximum.
static void run_nan(stream_t s, void* context) {
    (void)context;
    enum { C = 5 };
    for (int place = 0; place < 4; place++) {
        tensor<floatX> x = random_input(4 * C), out = output(C);
        x.ref[place * C + 2] = NAN;
        upload(x);
        maxpool_forward(out.dev, x.dev, 1, 2, 2, C, s);
        floatX host[C];
        copy_to_host(host, out.dev, sizeof host, 0);
        for (int c = 0; c < C; c++) check(isnan((float)host[c]) == (c == 2), "NaN where one went in, and only there");
        free_tensors();
    }
}

static void run_upsample(stream_t s, void* context) {
    resample_case_t t = *(resample_case_t*)context;
    size_t n = (size_t)t.B * t.H * t.W * t.C;
    tensor<floatX> x = shifted(random_input(n + t.shift), t.shift), out = output(4 * n);
    tensor<floatX> dout = random_input(4 * n), dx = output(n);
    upsample_forward(out.dev, x.dev, t.B, t.H, t.W, t.C, s);
    upsample_backward(dx.dev, dout.dev, t.B, t.H, t.W, t.C, s);
    cpu::upsample_forward(out.ref, x.ref, t.B, t.H, t.W, t.C, 0);
    cpu::upsample_backward(dx.ref, dout.ref, t.B, t.H, t.W, t.C, 0);
    check_equal("out", out);
    check_tensor("dx", dx, TOLERANCE_X);
    free_tensors();
}

// 3x3 windows: maxima with stride 1 and a border, or stride 2 without, into some channels of a wider map; the mean.
static void run_pools(stream_t s, void* context) {
    resample_case_t t = *(resample_case_t*)context;
    size_t n = (size_t)t.B * t.H * t.W * t.C;
    tensor<floatX> x = shifted(random_input(n + t.shift), t.shift), mean = output(n);
    avgpool3_forward(mean.dev, x.dev, t.B, t.H, t.W, t.C, s);
    cpu::avgpool3_forward(mean.ref, x.ref, t.B, t.H, t.W, t.C, 0);
    check_tensor("mean", mean, TOLERANCE_X);
    for (int stride = 1; stride <= 2; stride++) {
        int pad = stride == 1, row = t.C + (t.shift ? 3 : 16), first = t.shift ? 1 : 8;
        if (t.H + 2 * pad < 3 || t.W + 2 * pad < 3) continue;
        size_t pixels = (size_t)t.B * ((t.H + 2 * pad - 3) / stride + 1) * ((t.W + 2 * pad - 3) / stride + 1);
        tensor<floatX> wide = random_input(pixels * row);
        maxpool3_forward(wide.dev + first, x.dev, t.B, t.H, t.W, t.C, stride, pad, row, s);
        cpu::maxpool3_forward(wide.ref + first, x.ref, t.B, t.H, t.W, t.C, stride, pad, row, 0);
        check_equal("maximum, and the channels beside it", wide);
    }
    free_tensors();
}

// Features on their way out, in full precision.
static void run_features(stream_t s, void* context) {
    resample_case_t t = *(resample_case_t*)context;
    int HW = t.H * t.W, few = t.C < 7 ? t.C : 7, OC = 9;
    size_t n = (size_t)t.B * HW * t.C;
    tensor<floatX> x = random_input(n), weight = random_input((size_t)OC * t.C);
    tensor<float> mean = output_s((size_t)t.B * t.C), first = output_s((size_t)t.B * HW * few);
    tensor<float> input = random_gradient((size_t)t.B * t.C), product = output_s((size_t)t.B * OC);
    mean_positions_forward(mean.dev, x.dev, t.B, HW, t.C, s);
    first_channels_forward(first.dev, x.dev, (size_t)t.B * HW, t.C, few, s);
    features_matmul_forward(product.dev, input.dev, weight.dev, t.B, t.C, OC, s);
    cpu::mean_positions_forward(mean.ref, x.ref, t.B, HW, t.C, 0);
    cpu::first_channels_forward(first.ref, x.ref, (size_t)t.B * HW, t.C, few, 0);
    cpu::features_matmul_forward(product.ref, input.ref, weight.ref, t.B, t.C, OC, 0);
    check_tensor("mean over positions", mean, TOLERANCE_S);
    check_tensor("first channels", first, 0);
    check_tensor("product", product, TOLERANCE_S);
    free_tensors();
}

// Bytes from (H, W) to (H + 3, W + C), both modes. Sample places are computed in fp32: off by up to 2^-24 W of a cell
// whose ends are up to 2 apart.
static void run_bytes(stream_t s, void* context) {
    resample_case_t t = *(resample_case_t*)context;
    size_t n = (size_t)t.B * t.H * t.W * 3;
    int OH = t.H + 3, OW = t.W + t.C;
    uint8_t *host = (uint8_t*)malloc_check(n, "bytes"), *bytes = (uint8_t*)device_malloc(n, "bytes");
    for (size_t i = 0; i < n; i++) host[i] = (uint8_t)((test_uniform() + 1) * 127.9);
    copy_to_device(bytes, host, n, 0);
    for (int tf = 0; tf < 2; tf++) {
        inception_input_t input = tf ? INCEPTION_TF : INCEPTION_PT;
        tensor<floatX> out = output((size_t)t.B * OH * OW * 3);
        bytes_resize_forward(out.dev, bytes, input, t.B, t.H, t.W, OH, OW, s);
        cpu::bytes_resize_forward(out.ref, host, input, t.B, t.H, t.W, OH, OW, 0);
        check_tensor("input", out, TOLERANCE_X);
    }
    device_free(bytes);
    free(host);
    free_tensors();
}

static void test_inception(stream_t s, const char* name, int B, int H, int W, int C, int shift) {
    resample_case_t t = {B, H, W, C, shift};
    char title[120];
    snprintf(title, sizeof title, "Inception's pools, (%d, %d, %d, %d), %s", B, H, W, C, name);
    if (!test_case(title)) return;
    for_each_shape(s, run_pools, &t);
    for_each_shape(s, run_features, &t);
    for_each_shape(s, run_bytes, &t);
    test_end_case();
}

static void test_sizes(stream_t s, const char* name, int B, int H, int W, int C, int shift) {
    resample_case_t t = {B, H, W, C, shift};
    char title[120];
    snprintf(title, sizeof title, "maxpool, (%d, %d, %d, %d), %s", B, H, W, C, name);
    if (test_case(title)) {
        for_each_shape(s, run_maxpool, &t);
        test_end_case();
    }
    snprintf(title, sizeof title, "upsample, (%d, %d, %d, %d), %s", B, H, W, C, name);
    if (test_case(title)) {
        for_each_shape(s, run_upsample, &t);
        test_end_case();
    }
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    test_sizes(s, "one value", 1, 1, 1, 1, 0);
    test_sizes(s, "one row", 2, 1, 6, 8, 0);
    test_sizes(s, "one column", 2, 6, 1, 3, 0);
    test_sizes(s, "one window", 1, 2, 2, 8, 0);
    test_sizes(s, "odd sizes", 3, 7, 5, 3, 0);
    test_sizes(s, "odd sizes, packs", 2, 5, 7, 24, 0);
    test_sizes(s, "even sizes, packs", 2, 6, 8, 64, 0);
    test_sizes(s, "several blocks a row", 1, 3, 44, 136, 0);
    test_sizes(s, "several blocks a row, one by one", 1, 5, 90, 13, 0);
    test_sizes(s, "shifted", 2, 4, 6, 16, 1);
    test_inception(s, "one value", 1, 1, 1, 1, 0);
    test_inception(s, "odd sizes", 2, 5, 7, 13, 0);
    test_inception(s, "packs", 3, 8, 6, 32, 0);
    test_inception(s, "several blocks a row", 1, 3, 35, 136, 0);
    test_inception(s, "shifted", 2, 6, 9, 16, 1);
    if (test_case("maxpool keeps a NaN")) {
        for_each_shape(s, run_nan, NULL);
        test_end_case();
    }
    device_close(s);
    return test_finish();
}
