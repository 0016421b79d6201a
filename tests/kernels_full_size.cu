// kernels_full_size.cu: a case of each family at the size that the models have it, where offsets pass 2^31 bytes, sums
// have millions of terms and every multiprocessor has work.
//
// The reference could not compute that in a test's time, so a batch consists of FEW images over and over: the reference
// computes these few, and each image of the batch is compared with its own. Gradients of parameters, which sum over the
// batch, are those of the few as many times. On a GPU only; in the emulator the same cases run at a small size, which
// stands as the second argument of full(), and the names of the cases say so.
//
// Tensor cores cut what they add to a sum, where a single processor rounds it: that sum is off by up to 2^-24 of itself
// for each 16 terms, always to the same side, which is 1e-5 of 4096 terms and grows with them. Hence sum_bound().
// defines: tensor, random_input, random_gradient, check_tensor, tensor_error, namespace cpu
#include "tests/kernel.h"
// defines: the operations under test
#include "common/cuda/attention.cuh"
#include "common/cuda/batchnorm.cuh"
#include "common/cuda/conv.cuh"
#include "common/cuda/flow.cuh"
#include "common/cuda/groupnorm.cuh"
#include "common/cuda/layernorm.cuh"
#include "common/cuda/loss.cuh"
#include "common/cuda/lpips_tap.cuh"
#include "common/cuda/optimizer.cuh"
#include "common/cuda/resample.cuh"
#include "common/cuda/modulate.cuh"

#ifdef EMU
#define WHERE "small, in the emulator"
static int full(int, int small) { return small; }
#else
#define WHERE "full size"
static int full(int large, int) { return large; }
#endif

enum { FEW = 3, CHUNK = FEW };
static const int B = full(63, 6), TIMES = B / FEW; // images of a batch; how often each occurs

// What a fp32 sum of n terms may be off. Sums of millions are split into parts, each by a block of its own.
static double sum_bound(double n) {
#ifdef EMU
    (void)n;
    return TOLERANCE_S;
#else
    return TOLERANCE_S * fmax(1, n / 4096);
#endif
}
static const int PARTS = 16; // at least, of the sums over a whole batch

static int begin_case(const char* what) {
    static char name[128]; // until the case ends
    snprintf(name, sizeof name, "%s (" WHERE ")", what);
    return test_case(name);
}

// The device's batch of images of n values.
template <typename T> struct batch {
    size_t n;
    T* dev;         // (B, n)
    tensor<T> few;  // (FEW, n): an image's reference
};

template <typename T> static batch<T> new_batch(tensor<T> few) {
    batch<T> x = {few.n / FEW, (T*)device_malloc(few.n * TIMES * sizeof(T), "a batch"), few};
    test_tensors[test_tensor_count].dev = x.dev; // freed by free_tensors
    test_tensors[test_tensor_count++].ref = NULL;
    return x;
}

// An input: the few images, as they are, over and over.
template <typename T> static batch<T> repeated(tensor<T> few) {
    batch<T> x = new_batch(few);
    for (int i = 0; i < TIMES; i++) copy_on_device(x.dev + i * few.n, few.dev, few.n * sizeof(T), 0);
    return x;
}
static batch<floatX> inputs(size_t n) { return repeated(random_input(FEW * n)); }

// An output, all of it NaN.
template <typename T> static batch<T> poisoned_batch(size_t n, stream_t s) {
    batch<T> x = new_batch(poisoned<T>(FEW * n));
    CUDA_CHECK(cudaMemsetAsync(x.dev, 0xff, B * n * sizeof(T), cuda_stream(s)));
    return x;
}
static batch<floatX> outputs(size_t n, stream_t s) { return poisoned_batch<floatX>(n, s); }
static batch<float> outputs_s(size_t n, stream_t s) { return poisoned_batch<float>(n, s); }

// The image that is furthest from its reference.
template <typename T> static void check_batch(const char* what, batch<T> x, double bound) {
    double worst = 0;
    for (int b = 0; b < B; b++) {
        double error = tensor_error(tensor<T>{x.n, x.few.ref + b % FEW * x.n, x.dev + b * x.n});
        if (!(error <= worst)) worst = error;
    }
    check_error(what, worst, bound);
}

// A gradient of parameters: what it held, and `few`, the sum over the few images, as often as they occur.
struct gradient {
    tensor<float> sum;
    double* few; // (n)
};
static gradient new_gradient(size_t n) {
    gradient g = {random_gradient(n), (double*)calloc_check(n, sizeof(double), "a gradient")};
    test_tensors[test_tensor_count].dev = NULL; // freed by free_tensors
    test_tensors[test_tensor_count++].ref = g.few;
    return g;
}
static void check_gradient(const char* what, gradient g, double bound) {
    for (size_t i = 0; i < g.sum.n; i++) g.sum.ref[i] += TIMES * g.few[i];
    check_tensor(what, g.sum, bound);
}

// ---------------------------------------------------------------------------------------------------------------------

static void test_conv(stream_t s, const char* name, conv_t c, int side) {
    if (!begin_case(name)) return;
    int OH = conv_out_height(side, c), OW = conv_out_width(side, c);
    size_t n = (size_t)side * side * c.C, n_out = (size_t)OH * OW * c.OC, taps = (size_t)c.KH * c.KW;
    tensor<floatX> weight = random_input(c.OC * taps * c.C, 1 / sqrt((double)taps * c.C)), bias = random_input(c.OC);
    batch<floatX> x = inputs(n), dout = inputs(n_out), out = outputs(n_out, s);
    gradient dweight = new_gradient(weight.n), dbias = new_gradient(c.OC);
    conv2d_forward(out.dev, x.dev, weight.dev, bias.dev, NULL, B, side, side, c, ACT_RELU, s);
    cpu::conv2d_forward(out.few.ref, x.few.ref, weight.ref, bias.ref, NULL, FEW, side, side, c, ACT_RELU, 0);
    check_batch("out", out, fmax(TOLERANCE_X, sum_bound(taps * c.C)));
    batch<floatX> dx = outputs(n, s);
    conv2d_backward_data(dx.dev, dout.dev, weight.dev, x.dev, B, side, side, c, ACT_LEAKY, s);
    cpu::conv2d_backward_data(dx.few.ref, dout.few.ref, weight.ref, x.few.ref, FEW, side, side, c, ACT_LEAKY, 0);
    check_batch("dx", dx, fmax(TOLERANCE_X, sum_bound(taps * c.OC)));
    conv2d_backward_weight(dweight.sum.dev, dbias.sum.dev, dout.dev, x.dev, B, side, side, c, s);
    cpu::conv2d_backward_weight(dweight.few, dbias.few, dout.few.ref, x.few.ref, FEW, side, side, c, 0);
    check_gradient("dweight", dweight, sum_bound((double)B * OH * OW / PARTS));
    check_gradient("dbias", dbias, TOLERANCE_S);
    free_tensors();
    test_end_case();
}

static void test_matmul(stream_t s, const char* name, int T, int C, int OC) {
    if (!begin_case(name)) return;
    tensor<floatX> weight = random_input((size_t)OC * C, 1 / sqrt(C)), bias = random_input(OC);
    batch<floatX> x = inputs((size_t)T * C), dout = inputs((size_t)T * OC);
    batch<floatX> out = outputs((size_t)T * OC, s), dx = outputs((size_t)T * C, s);
    gradient dweight = new_gradient(weight.n), dbias = new_gradient(OC);
    matmul_forward(out.dev, x.dev, weight.dev, bias.dev, (size_t)B * T, C, OC, s);
    cpu::matmul_forward(out.few.ref, x.few.ref, weight.ref, bias.ref, FEW * T, C, OC, 0);
    check_batch("out", out, fmax(TOLERANCE_X, sum_bound(C)));
    matmul_backward(dx.dev, dweight.sum.dev, dbias.sum.dev, dout.dev, x.dev, weight.dev, (size_t)B * T, C, OC, s);
    cpu::matmul_backward(dx.few.ref, dweight.few, dbias.few, dout.few.ref, x.few.ref, weight.ref, FEW * T, C, OC, 0);
    check_batch("dx", dx, fmax(TOLERANCE_X, sum_bound(OC)));
    check_gradient("dweight", dweight, sum_bound((double)B * T));
    check_gradient("dbias", dbias, TOLERANCE_S);
    free_tensors();
    test_end_case();
}

// P is rounded to floatX between two products: tests/kernels_attention.cu.
static void test_attention(stream_t s, const char* name, int T, int NH, int HS) {
    if (!begin_case(name)) return;
    size_t C = (size_t)NH * HS;
    double bound = (sizeof(floatX) == 2 ? 1.5 : 1) * TOLERANCE_X;
    batch<floatX> qkv = inputs(3 * T * C), dout = inputs(T * C), out = outputs(T * C, s), dqkv = outputs(3 * T * C, s);
    batch<float> lse = outputs_s((size_t)NH * T, s);
    attention_forward(out.dev, lse.dev, qkv.dev, NULL, B, T, NH, HS, s);
    cpu::attention_forward(out.few.ref, lse.few.ref, qkv.few.ref, NULL, FEW, T, NH, HS, 0);
    check_batch("out", out, bound);
    check_batch("lse", lse, TOLERANCE_S);
    upload(out.few), upload(lse.few); // the backward's inputs, the same on both sides
    out = repeated(out.few), lse = repeated(lse.few);
    attention_backward(dqkv.dev, dout.dev, qkv.dev, out.dev, lse.dev, NULL, B, T, NH, HS, s);
    cpu::attention_backward(dqkv.few.ref, dout.few.ref, qkv.few.ref, out.few.ref, lse.few.ref, NULL, FEW, T, NH, HS, 0);
    check_batch("dqkv", dqkv, bound);
    free_tensors();
    test_end_case();
}

static void test_layernorm(stream_t s, int T, int C) {
    if (!begin_case("residual_layernorm, DINOv2-L's tokens")) return;
    size_t n = (size_t)T * C;
    tensor<floatX> gamma = random_input(C), weight = random_input(C), bias = random_input(C);
    batch<floatX> y = inputs(n), dout = inputs(n), out = outputs(n, s);
    batch<float> x = repeated(random_gradient(FEW * n)), sum = outputs_s(n, s); // the residual stream
    batch<float> mean = outputs_s(T, s), rstd = outputs_s(T, s);
    residual_layernorm_forward(sum.dev, out.dev, mean.dev, rstd.dev, x.dev, y.dev, gamma.dev, weight.dev, bias.dev,
                               (size_t)B * T, C, 1e-6, s);
    cpu::residual_layernorm_forward(sum.few.ref, out.few.ref, mean.few.ref, rstd.few.ref, x.few.ref, y.few.ref,
                                    gamma.ref, weight.ref, bias.ref, FEW * T, C, 1e-6, 0);
    check_batch("sum", sum, TOLERANCE_S);
    check_batch("out", out, TOLERANCE_X);
    check_batch("rstd", rstd, TOLERANCE_S);
    upload(sum.few), upload(mean.few), upload(rstd.few);
    sum = repeated(sum.few), mean = repeated(mean.few), rstd = repeated(rstd.few);
    batch<float> dsum = repeated(random_gradient(FEW * n));
    batch<floatX> dy = outputs(n, s);
    gradient dgamma = new_gradient(C), dweight = new_gradient(C), dbias = new_gradient(C);
    residual_layernorm_backward(dsum.dev, dy.dev, dgamma.sum.dev, dweight.sum.dev, dbias.sum.dev, dout.dev, sum.dev,
                                y.dev, gamma.dev, weight.dev, mean.dev, rstd.dev, (size_t)B * T, C, s);
    cpu::residual_layernorm_backward(dsum.few.ref, dy.few.ref, dgamma.few, dweight.few, dbias.few, dout.few.ref,
                                     sum.few.ref, y.few.ref, gamma.ref, weight.ref, mean.few.ref, rstd.few.ref, FEW * T,
                                     C, 0);
    check_batch("dsum", dsum, TOLERANCE_S);
    check_batch("dy", dy, TOLERANCE_X);
    check_gradient("dgamma", dgamma, TOLERANCE_S);
    check_gradient("dweight", dweight, TOLERANCE_S);
    check_gradient("dbias", dbias, TOLERANCE_S);
    free_tensors();
    test_end_case();
}

static void test_groupnorm(stream_t s, int HW, int C, int G) {
    if (!begin_case("groupnorm, the decoder's last level")) return;
    size_t n = (size_t)HW * C;
    tensor<floatX> weight = random_input(C), bias = random_input(C);
    batch<floatX> x = inputs(n), dout = inputs(n), out = outputs(n, s);
    batch<float> mean = outputs_s(G, s), rstd = outputs_s(G, s);
    gradient dweight = new_gradient(C), dbias = new_gradient(C);
    groupnorm_forward(out.dev, mean.dev, rstd.dev, x.dev, weight.dev, bias.dev, B, HW, C, G, 1e-6, ACT_SWISH, s);
    cpu::groupnorm_forward(out.few.ref, mean.few.ref, rstd.few.ref, x.few.ref, weight.ref, bias.ref, FEW, HW, C, G,
                           1e-6, ACT_SWISH, 0);
    check_batch("out", out, TOLERANCE_X);
    check_batch("rstd", rstd, TOLERANCE_S);
    upload(mean.few), upload(rstd.few);
    mean = repeated(mean.few), rstd = repeated(rstd.few);
    groupnorm_backward(out.dev, dweight.sum.dev, dbias.sum.dev, dout.dev, NULL, x.dev, weight.dev, bias.dev, mean.dev,
                       rstd.dev, B, HW, C, G, ACT_SWISH, s);
    cpu::groupnorm_backward(out.few.ref, dweight.few, dbias.few, dout.few.ref, NULL, x.few.ref, weight.ref, bias.ref,
                            mean.few.ref, rstd.few.ref, FEW, HW, C, G, ACT_SWISH, 0);
    check_batch("dx", out, TOLERANCE_X);
    check_gradient("dweight", dweight, TOLERANCE_S);
    check_gradient("dbias", dbias, TOLERANCE_S);
    free_tensors();
    test_end_case();
}

static void test_batchnorm(stream_t s, int HW, int C) {
    if (!begin_case("batchnorm_leaky, PatchGAN's")) return;
    size_t n = (size_t)HW * C;
    tensor<floatX> weight = random_input(C), bias = random_input(C);
    batch<floatX> x = inputs(n), dout = inputs(n), out = outputs(n, s);
    tensor<float> mean = output_s(TIMES * C), rstd = output_s(TIMES * C);
    gradient dweight = new_gradient(C), dbias = new_gradient(C);
    batchnorm_leaky_forward(out.dev, mean.dev, rstd.dev, x.dev, weight.dev, bias.dev, NULL, NULL, B, HW, C, CHUNK, 1e-5,
                            1, s);
    cpu::batchnorm_leaky_forward(out.few.ref, mean.ref, rstd.ref, x.few.ref, weight.ref, bias.ref, NULL, NULL, FEW, HW,
                                 C, CHUNK, 1e-5, 1, 0);
    for (int i = C; i < TIMES * C; i++) mean.ref[i] = mean.ref[i - C], rstd.ref[i] = rstd.ref[i - C]; // of each chunk
    check_batch("out", out, TOLERANCE_X);
    check_tensor("rstd", rstd, TOLERANCE_S);
    upload(mean), upload(rstd);
    batchnorm_leaky_backward(out.dev, dweight.sum.dev, dbias.sum.dev, dout.dev, x.dev, weight.dev, bias.dev, mean.dev,
                             rstd.dev, B, HW, C, CHUNK, 1, s);
    cpu::batchnorm_leaky_backward(out.few.ref, dweight.few, dbias.few, dout.few.ref, x.few.ref, weight.ref, bias.ref,
                                  mean.ref, rstd.ref, FEW, HW, C, CHUNK, 1, 0);
    check_batch("dx", out, TOLERANCE_X);
    check_gradient("dweight", dweight, TOLERANCE_S);
    check_gradient("dbias", dbias, TOLERANCE_S);
    free_tensors();
    test_end_case();
}

static void test_rmsnorm(stream_t s, int T, int C) {
    if (!begin_case("gated_norm_modulate, LightningDiT-XL's tokens")) return;
    size_t n = (size_t)T * C, stride = 3 * (size_t)C;
    tensor<floatX> weight = random_input(C);
    batch<float> x = repeated(random_gradient(FEW * n)), sum = outputs_s(n, s), rstd = outputs_s(T, s);
    batch<floatX> branch = inputs(n), mod = inputs(stride), out = outputs(n, s), dout = inputs(n); // shift, scale, gate
    gated_norm_modulate_forward(sum.dev, out.dev, nullptr, rstd.dev, x.dev, branch.dev, mod.dev + 2 * C, weight.dev,
                                mod.dev, mod.dev + C, stride, B, T, C, 1e-6, s);
    cpu::gated_norm_modulate_forward(sum.few.ref, out.few.ref, nullptr, rstd.few.ref, x.few.ref, branch.few.ref,
                                     mod.few.ref + 2 * C, weight.ref, mod.few.ref, mod.few.ref + C, stride, FEW, T, C,
                                     1e-6, 0);
    check_batch("sum", sum, TOLERANCE_S);
    check_batch("out", out, TOLERANCE_X);
    check_batch("rstd", rstd, TOLERANCE_S);
    upload(sum.few), upload(rstd.few);
    sum = repeated(sum.few), rstd = repeated(rstd.few);
    batch<floatX> dbranch = outputs(n, s), dmod = outputs(stride, s);
    gradient dweight = new_gradient(C);
    gated_norm_modulate_backward(x.dev, dbranch.dev, dmod.dev + 2 * C, dweight.sum.dev, dmod.dev, dmod.dev + C,
                                 dout.dev, sum.dev, branch.dev, mod.dev + 2 * C, weight.dev, mod.dev + C, nullptr,
                                 rstd.dev, stride, B, T, C, s);
    cpu::gated_norm_modulate_backward(x.few.ref, dbranch.few.ref, dmod.few.ref + 2 * C, dweight.few, dmod.few.ref,
                                      dmod.few.ref + C, dout.few.ref, sum.few.ref, branch.few.ref,
                                      mod.few.ref + 2 * C, weight.ref, mod.few.ref + C, nullptr, rstd.few.ref, stride,
                                      FEW, T, C, 0);
    check_batch("dsum", x, TOLERANCE_S);
    check_batch("dbranch", dbranch, TOLERANCE_X);
    check_batch("gradients of shift, scale, gate", dmod, TOLERANCE_X);
    check_gradient("dweight", dweight, TOLERANCE_S);
    free_tensors();
    test_end_case();
}

static void test_losses(stream_t s, int HW, int C, int tokens, int channels) {
    if (begin_case("l1 of images")) {
        batch<floatX> xhat = inputs((size_t)HW * 3), x = inputs((size_t)HW * 3), dxhat = outputs((size_t)HW * 3, s);
        batch<float> loss = outputs_s(1, s);
        channel_affine_t affine = {{1, 1, 1}, {0, 0, 0}};
        l1_forward(loss.dev, xhat.dev, x.dev, B, (size_t)HW * 3, s);
        cpu::l1_forward(loss.few.ref, xhat.few.ref, x.few.ref, FEW, (size_t)HW * 3, 0);
        check_batch("loss", loss, TOLERANCE_S);
        l1_backward(dxhat.dev, xhat.dev, x.dev, NULL, affine, 0.3, B, HW, s);
        cpu::l1_backward(dxhat.few.ref, xhat.few.ref, x.few.ref, NULL, affine, 0.3, FEW, HW, 0);
        check_batch("dxhat", dxhat, TOLERANCE_X);
        free_tensors();
        test_end_case();
    }
    if (begin_case("lpips_tap, the first")) {
        size_t n = (size_t)HW * C;
        tensor<floatX> weight = random_input(C);
        batch<floatX> f = inputs(n), g = inputs(n), df = outputs(n, s);
        batch<float> loss = repeated(random_gradient(FEW));
        lpips_tap_forward(loss.dev, f.dev, g.dev, weight.dev, B, HW, C, s);
        cpu::lpips_tap_forward(loss.few.ref, f.few.ref, g.few.ref, weight.ref, FEW, HW, C, 0);
        check_batch("loss", loss, TOLERANCE_S);
        lpips_tap_backward(df.dev, f.dev, g.dev, weight.dev, 0.3, B, HW, C, s);
        cpu::lpips_tap_backward(df.few.ref, f.few.ref, g.few.ref, weight.ref, 0.3, FEW, HW, C, 0);
        check_batch("df", df, TOLERANCE_X);
        free_tensors();
        test_end_case();
    }
    if (begin_case("flow_loss of latents")) {
        size_t n = (size_t)tokens * channels;
        batch<floatX> v = inputs(n), dv = outputs(n, s);
        batch<float> u = repeated(random_gradient(FEW * n)), mse = outputs_s(1, s), cosine = outputs_s(1, s);
        flow_loss(mse.dev, cosine.dev, dv.dev, v.dev, u.dev, nullptr, 0.3, 0.7, B, tokens, channels, s);
        cpu::flow_loss(mse.few.ref, cosine.few.ref, dv.few.ref, v.few.ref, u.few.ref, NULL, 0.3, 0.7, FEW, tokens,
                       channels, 0);
        check_batch("mse", mse, TOLERANCE_S);
        check_batch("cosine", cosine, TOLERANCE_S);
        check_batch("dv", dv, TOLERANCE_X);
        free_tensors();
        test_end_case();
    }
}

static void test_resample(stream_t s, int side, int C) {
    if (!begin_case("upsample, maxpool")) return;
    size_t n = (size_t)side * side * C;
    batch<floatX> small = inputs(n), large = inputs(4 * n), up = outputs(4 * n, s), down = outputs(n, s);
    upsample_forward(up.dev, small.dev, B, side, side, C, s);
    cpu::upsample_forward(up.few.ref, small.few.ref, FEW, side, side, C, 0);
    check_batch("upsample", up, 0);
    upsample_backward(down.dev, large.dev, B, side, side, C, s);
    cpu::upsample_backward(down.few.ref, large.few.ref, FEW, side, side, C, 0);
    check_batch("upsample backward", down, TOLERANCE_X);
    maxpool_forward(down.dev, large.dev, B, 2 * side, 2 * side, C, s);
    cpu::maxpool_forward(down.few.ref, large.few.ref, FEW, 2 * side, 2 * side, C, 0);
    check_batch("maxpool", down, 0);
    maxpool_relu_backward(up.dev, small.dev, NULL, large.dev, B, 2 * side, 2 * side, C, s);
    cpu::maxpool_relu_backward(up.few.ref, small.few.ref, NULL, large.few.ref, FEW, 2 * side, 2 * side, C, 0);
    check_batch("maxpool backward", up, 0);
    free_tensors();
    test_end_case();
}

// The parameters are n times B.
static void test_optimizer(stream_t s, size_t n) {
    if (!begin_case("adam_update and sum_squares of 340 million parameters")) return;
    adam_t adam = {1e-3, 0.9, 0.999, 1e-8, 0.1, 7, {0.99, 0}, 0.5};
    tensor<float> square = random_gradient(FEW * n);
    for (size_t i = 0; i < square.n; i++) square.ref[i] *= square.ref[i];
    upload(square);
    batch<float> v = repeated(square), m = repeated(random_gradient(FEW * n, 0.1));
    batch<float> master = repeated(random_gradient(FEW * n)), grad = repeated(random_gradient(FEW * n));
    batch<float> ema = repeated(random_gradient(FEW * n));
    batch<floatX> weight = outputs(n, s);
    batch<float> squares = outputs_s(1, s);
    sum_squares(squares.dev, grad.dev, B, n, s);
    cpu::sum_squares(squares.few.ref, grad.few.ref, FEW, n, 0);
    check_batch("squares", squares, TOLERANCE_S);
    adam_update(weight.dev, master.dev, m.dev, v.dev, ema.dev, NULL, grad.dev, B * n, adam, s);
    cpu::adam_update(weight.few.ref, master.few.ref, m.few.ref, v.few.ref, ema.few.ref, NULL, grad.few.ref, FEW * n,
                     adam, 0);
    check_batch("weight", weight, TOLERANCE_X);
    check_batch("master", master, TOLERANCE_S);
    check_batch("m", m, TOLERANCE_S);
    check_batch("v", v, TOLERANCE_S);
    check_batch("average", ema, TOLERANCE_S);
    free_tensors();
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    int wide = full(512, 40), level = full(128, 24), side = full(256, 10);
    test_conv(s, "conv2d 3x3, the decoder's last level", conv_square(level, level, 3, 1, 1, 1), side);
    test_conv(s, "conv2d 3x3, the decoder's first level", conv_square(wide, wide, 3, 1, 1, 1), full(32, 5));
    test_conv(s, "conv2d 3x3 of images, VGG's first", conv_square(3, full(64, 16), 3, 1, 1, 1), side);
    test_conv(s, "conv2d 3x3 to images, the decoder's last", conv_square(level, 3, 3, 1, 1, 1), side);
    test_conv(s, "conv2d 4x4 stride 2, PatchGAN's second", conv_square(full(64, 16), level, 4, 2, 1, 1), full(128, 8));
    test_matmul(s, "matmul, LightningDiT-XL's queries, keys, values", full(256, 7), full(1152, 40), full(3456, 72));
    test_attention(s, "attention, LightningDiT-XL's", full(256, 9), full(16, 2), full(72, 24));
    test_attention(s, "attention, DINOv2-L's", full(261, 9), full(16, 2), full(64, 16));
    test_attention(s, "attention, the decoder's", full(256, 7), 1, wide);
    test_layernorm(s, full(261, 7), full(1024, 40));
    test_groupnorm(s, side * side, level, full(32, 4));
    test_batchnorm(s, full(64 * 64, 9), level);
    test_rmsnorm(s, full(256, 7), full(1152, 40));
    test_losses(s, side * side, full(64, 16), full(256, 9), full(32, 8));
    test_resample(s, full(128, 4), level);
    test_optimizer(s, (size_t)full(5400001, 1031));
    device_close(s);
    return test_finish();
}
