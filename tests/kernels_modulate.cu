// RMSNorm and LayerNorm with modulation, alone and behind a gated branch, at sizes around a pack, a warp, a block and a strip.
// defines: tensor, random_input, output, shifted, copy_of, same_bits, check_tensor, for_each_shape, namespace cpu
#include "tests/kernel.h"
// defines: the operations under test
#include "common/cuda/modulate.cuh"

enum { PLAIN, GATED, FORMS };

typedef struct {
    int form, B, T, C;
    int centred;     // LayerNorm without a weight; else RMSNorm with one
    int gap;         // values between the vectors of two images that belong to others
    int shift;       // values that the stream is moved by, so that no 16-byte access suits
} norm_case_t;

static tensor<floatX> weight_of(norm_case_t t) {
    return t.centred ? tensor<floatX>{0, nullptr, nullptr} : random_input(t.C);
}

// In place (sum is x) must give the bits of the other form; without shift too.
static void run_forward(stream_t s, void* context) {
    norm_case_t t = *(norm_case_t*)context;
    int B = t.B, T = t.T, C = t.C, gap = t.gap;
    size_t n = (size_t)B * T * C, rows = (size_t)B * T, stride = 3 * (size_t)C + gap;
    tensor<float> x = shifted(random_gradient(n + t.shift), t.shift), sum = output_s(n);
    tensor<float> rstd = output_s(rows), rstd2 = output_s(rows), none = {0, nullptr, nullptr};
    tensor<float> mean = t.centred ? output_s(rows) : none, mean2 = t.centred ? output_s(rows) : none;
    tensor<floatX> branch = random_input(n), weight = weight_of(t), mod = random_input(B * stride);
    tensor<floatX> out = output(n), out2 = output(n);
    if (t.form == PLAIN) {
        norm_modulate_forward(out.dev, mean.dev, rstd.dev, x.dev, weight.dev, mod.dev, mod.dev + C, stride, B, T, C,
                              1e-6, s);
        cpu::norm_modulate_forward(out.ref, mean.ref, rstd.ref, x.ref, weight.ref, mod.ref, mod.ref + C, stride, B, T,
                                   C, 1e-6, 0);
        norm_modulate_forward(out2.dev, mean2.dev, rstd2.dev, x.dev, weight.dev, nullptr, mod.dev + C, stride, B, T, C,
                              1e-6, s);
        cpu::norm_modulate_forward(out2.ref, mean2.ref, rstd2.ref, x.ref, weight.ref, nullptr, mod.ref + C, stride, B,
                                   T, C, 1e-6, 0);
    } else {
        gated_norm_modulate_forward(sum.dev, out.dev, mean.dev, rstd.dev, x.dev, branch.dev, mod.dev + 2 * C,
                                    weight.dev, mod.dev, mod.dev + C, stride, B, T, C, 1e-6, s);
        cpu::gated_norm_modulate_forward(sum.ref, out.ref, mean.ref, rstd.ref, x.ref, branch.ref, mod.ref + 2 * C,
                                         weight.ref, mod.ref, mod.ref + C, stride, B, T, C, 1e-6, 0);
        gated_norm_modulate_forward(x.dev, out2.dev, mean2.dev, rstd2.dev, x.dev, branch.dev, mod.dev + 2 * C,
                                    weight.dev, nullptr, mod.dev + C, stride, B, T, C, 1e-6, s);
        cpu::gated_norm_modulate_forward(x.ref, out2.ref, mean2.ref, rstd2.ref, x.ref, branch.ref, mod.ref + 2 * C,
                                         weight.ref, nullptr, mod.ref + C, stride, B, T, C, 1e-6, 0);
        check_tensor("sum", sum, TOLERANCE_S);
        check_tensor("sum in place", x, TOLERANCE_S);
    }
    check_tensor("out", out, TOLERANCE_X);
    check_tensor("out without shift", out2, TOLERANCE_X);
    check_tensor("rstd", rstd, TOLERANCE_S);
    check_tensor("rstd without shift", rstd2, TOLERANCE_S);
    if (t.centred) check_tensor("mean", mean, TOLERANCE_S);
    if (t.centred) check_tensor("mean without shift", mean2, TOLERANCE_S);
    free_tensors();
}

// Three times from the same dx: dweight and dshift NULL the last time. dmod holds the gradients of shift, scale, gate;
// it starts with random values, and what lies between the vectors must keep them.
static void run_backward(stream_t s, void* context) {
    norm_case_t t = *(norm_case_t*)context;
    int B = t.B, T = t.T, C = t.C, gap = t.gap;
    size_t n = (size_t)B * T * C, rows = (size_t)B * T, stride = 3 * (size_t)C + gap;
    tensor<float> sum = shifted(random_gradient(n + t.shift), t.shift), start = random_gradient(n);
    tensor<float> rstd = output_s(rows), dweight = random_gradient(C), first = start;
    tensor<float> mean = t.centred ? output_s(rows) : tensor<float>{0, nullptr, nullptr};
    tensor<floatX> branch = random_input(n), weight = weight_of(t), mod = random_input(B * stride), out = output(n);
    tensor<floatX> dout = random_input(n), dmod_start = random_input(B * stride), first_dmod = dmod_start;
    cpu::norm_modulate_forward(out.ref, mean.ref, rstd.ref, sum.ref, weight.ref, nullptr, mod.ref + C, stride, B, T, C,
                               1e-6, 0);
    upload(rstd);
    if (t.centred) upload(mean);
    if (C > 1 && !t.centred) weight.ref[C / 2] = 0, upload(weight); // dscale is 0 there, and dweight is not
    for (int round = 0; round < 3; round++) {
        tensor<float> dx = copy_of(start), dw = dweight;
        tensor<floatX> dmod = copy_of(dmod_start), dbranch = output(n), dshift = dmod;
        if (t.centred || round == 2) dw = {0, nullptr, nullptr};
        if (round == 2) dshift = {0, nullptr, nullptr};
        if (t.form == PLAIN) {
            norm_modulate_backward(dx.dev, dw.dev, dshift.dev, dmod.dev + C, dout.dev, sum.dev, weight.dev,
                                   mod.dev + C, mean.dev, rstd.dev, stride, B, T, C, s);
            cpu::norm_modulate_backward(dx.ref, dw.ref, dshift.ref, dmod.ref + C, dout.ref, sum.ref, weight.ref,
                                        mod.ref + C, mean.ref, rstd.ref, stride, B, T, C, 0);
        } else {
            gated_norm_modulate_backward(dx.dev, dbranch.dev, dmod.dev + 2 * C, dw.dev, dshift.dev, dmod.dev + C,
                                         dout.dev, sum.dev, branch.dev, mod.dev + 2 * C, weight.dev, mod.dev + C,
                                         mean.dev, rstd.dev, stride, B, T, C, s);
            cpu::gated_norm_modulate_backward(dx.ref, dbranch.ref, dmod.ref + 2 * C, dw.ref, dshift.ref, dmod.ref + C,
                                              dout.ref, sum.ref, branch.ref, mod.ref + 2 * C, weight.ref, mod.ref + C,
                                              mean.ref, rstd.ref, stride, B, T, C, 0);
            check_tensor("dbranch", dbranch, TOLERANCE_X);
        }
        check_tensor("dx", dx, TOLERANCE_S);
        check_tensor("gradients of shift, scale, gate", dmod, TOLERANCE_X);
        if (round == 0) first = dx, first_dmod = dmod;
        if (round > 0) check(same_bits(dx, first), "dx: the same bits every time");
        if (round == 1) check(same_bits(dmod, first_dmod), "shift, scale, gate: the same bits every time");
    }
    if (!t.centred) check_tensor("dweight", dweight, TOLERANCE_S);
    free_tensors();
}

// A gated branch that no norm follows; in place too. Only the gate's gradient is written.
static void run_no_norm(stream_t s, void* context) {
    norm_case_t t = *(norm_case_t*)context;
    int B = t.B, T = t.T, C = t.C;
    size_t n = (size_t)B * T * C, stride = 3 * (size_t)C + t.gap;
    tensor<float> x = shifted(random_gradient(n + t.shift), t.shift), sum = output_s(n), dsum = random_gradient(n);
    tensor<floatX> branch = random_input(n), mod = random_input(B * stride), dmod = random_input(B * stride);
    tensor<floatX> dbranch = output(n);
    tensor<float> before = copy_of(dsum);
    gated_norm_modulate_forward(sum.dev, nullptr, nullptr, nullptr, x.dev, branch.dev, mod.dev + 2 * C, nullptr,
                                nullptr, nullptr, stride, B, T, C, 1e-6, s);
    cpu::gated_norm_modulate_forward(sum.ref, NULL, NULL, NULL, x.ref, branch.ref, mod.ref + 2 * C, NULL, NULL, NULL,
                                     stride, B, T, C, 1e-6, 0);
    check_tensor("sum", sum, TOLERANCE_S);
    gated_norm_modulate_backward(dsum.dev, dbranch.dev, dmod.dev + 2 * C, nullptr, nullptr, nullptr, nullptr, nullptr,
                                 branch.dev, mod.dev + 2 * C, nullptr, nullptr, nullptr, nullptr, stride, B, T, C, s);
    cpu::gated_norm_modulate_backward(dsum.ref, dbranch.ref, dmod.ref + 2 * C, NULL, NULL, NULL, NULL, NULL,
                                      branch.ref, mod.ref + 2 * C, NULL, NULL, NULL, NULL, stride, B, T, C, 0);
    check(same_bits(dsum, before), "dsum stays");
    check_tensor("dbranch", dbranch, TOLERANCE_X);
    check_tensor("dgate, and what stands beside it", dmod, TOLERANCE_X);
    free_tensors();
}

static void test_norm(stream_t s, const char* name, int B, int T, int C, int gap, int shift) {
    for (int form = 0; form < 2 * FORMS; form++) {
        char title[120];
        norm_case_t t = {form % FORMS, B, T, C, form / FORMS, gap, shift};
        snprintf(title, sizeof title, "%s%s, (%d, %d, %d), %s", t.form ? "gated " : "",
                 t.centred ? "layernorm" : "rmsnorm", B, T, C, name);
        if (!test_case(title)) continue;
        for_each_shape(s, run_forward, &t);
        for_each_shape(s, run_backward, &t);
        if (t.form == GATED && t.centred) for_each_shape(s, run_no_norm, &t);
        test_end_case();
    }
}

// Strips cover an image's tokens once, whatever the sizes; and at full size the scratch memory suffices.
static void test_strips(stream_t s) {
    if (!test_case("strips of every size")) return;
    static const int channels[6] = {1, 128, 768, 1152, 1792, 3072};
    int real = s->multiprocessors;
    s->multiprocessors = 132;
    for (int i = 0; i < 6; i++) {
        for (int T = 1; T <= 5000; T += 1 + T / 3) {
            for (int B = 1; B <= 1024; B *= 2) {
                norm_strips_t z = norm_strips(0, B, T, channels[i], s);
                check((size_t)z.strips * z.tokens >= (size_t)T, "strips reach the last token");
                check((z.strips - 1) * z.tokens < T, "no strip is empty");
                check(z.threads <= NORM_BLOCK && z.threads * NORM_COLUMNS >= channels[i], "a block holds a row");
                size_t values = ((size_t)z.strips * 3 + 1) * B * channels[i];
                check(values * sizeof(float) <= DEVICE_SCRATCH_BYTES, "parts fit");
            }
        }
    }
    s->multiprocessors = real;
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    test_norm(s, "one value", 1, 1, 1, 0, 0);
    test_norm(s, "primes", 3, 37, 13, 5, 0);
    test_norm(s, "many images", 41, 3, 24, 8, 0);
    test_norm(s, "many tokens", 2, 101, 40, 0, 0);
    test_norm(s, "the miniature", 2, 16, 128, 2 * 128, 0);
    test_norm(s, "a stride that suits no pack", 2, 19, 64, 3, 0);
    test_norm(s, "shifted", 2, 19, 64, 8, 1);
    test_norm(s, "a warp more", 1, 5, 264, 0, 0);
    test_norm(s, "XL", 2, 17, 1152, 8, 0);
    test_norm(s, "prime, several warps", 1, 7, 1031, 1, 0);
    test_norm(s, "the longest of all builds", 1, 3, 3072, 0, 0);
    test_strips(s);
    device_close(s);
    return test_finish();
}
