// RMSNorm with modulation, alone and behind a gated branch, at sizes around a pack, a warp, a step and a strip.
#define OPS_DECLARATIONS_ONLY
// defines: tensor, random_input, output, check_tensor, for_each_shape, namespace cpu
#include "tests/kernel.h"
// defines: the operations under test
#include "common/cuda/rmsnorm.cuh"

typedef struct {
    int B, T, C, gap, shift; // gap: values between the vectors of two images; shift: of branch and dout, in values
    int gated, frozen;       // frozen: without shift and without the gradients that may be missing
} norm_case_t;

static const double EPS = 1e-2; // large enough to be seen beside a mean square of one

// The same tensor without its first values: at an address that suits no 16-byte access.
template <typename T> static tensor<T> shifted(tensor<T> t, int shift) {
    return {t.n - shift, t.ref + shift, t.dev + shift};
}

template <typename T> static int same_bits(tensor<T> a, tensor<T> b) {
    size_t bytes = a.n * sizeof(T);
    void *x = malloc_check(bytes, "a test's tensor"), *y = malloc_check(bytes, "a test's tensor");
    copy_to_host(x, a.dev, bytes, 0);
    copy_to_host(y, b.dev, bytes, 0);
    int same = !memcmp(x, y, bytes);
    free(x), free(y);
    return same;
}

template <typename T> static tensor<T> copy_of(tensor<T> t) {
    tensor<T> copy = new_tensor<T>(t.n);
    memcpy(copy.ref, t.ref, t.n * sizeof(double));
    upload(copy);
    return copy;
}

// The vectors of all images without the poisoned values between them, which must still be poison.
static tensor<floatX> vectors_of(const char* what, tensor<floatX> all, size_t stride, int B, int C) {
    floatX* host = (floatX*)malloc_check(all.n * sizeof(floatX), "a test's tensor");
    copy_to_host(host, all.dev, all.n * sizeof(floatX), 0);
    tensor<floatX> packed = new_tensor<floatX>((size_t)B * C);
    floatX* mine = (floatX*)malloc_check(packed.n * sizeof(floatX), "a test's tensor");
    int untouched = 1;
    for (size_t i = 0; i < all.n; i++) {
        size_t b = i / stride, c = i % stride;
        if (c >= (size_t)C) {
            untouched &= isnan((float)host[i]);
            continue;
        }
        packed.ref[b * C + c] = all.ref[i];
        mine[b * C + c] = host[i];
    }
    copy_to_device(packed.dev, mine, packed.n * sizeof(floatX), 0);
    check(untouched, what);
    free(host), free(mine);
    return packed;
}
static void check_vectors(const char* what, tensor<floatX> all, size_t stride, int B, int C) {
    check_tensor(what, vectors_of("what lies between the vectors is left alone", all, stride, B, C), TOLERANCE_X);
}

static void run_forward(stream_t s, void* context) {
    norm_case_t t = *(norm_case_t*)context;
    size_t rows = (size_t)t.B * t.T, n = rows * t.C, stride = (size_t)t.C + t.gap, vectors = (t.B - 1) * stride + t.C;
    tensor<float> x = random_gradient(n, 2), sum = output_s(n), rstd = output_s(rows), rstd_in_place = output_s(rows);
    tensor<floatX> branch = shifted(random_input(n + t.shift), t.shift), out = output(n), out_in_place = output(n);
    tensor<floatX> weight = random_input(t.C), gate = random_input(vectors), scale = random_input(vectors);
    tensor<floatX> shift = random_input(vectors);
    if (t.frozen) shift.dev = nullptr, shift.ref = nullptr;
    if (t.gated) {
        gated_rmsnorm_modulate_forward(sum.dev, out.dev, rstd.dev, x.dev, branch.dev, gate.dev, weight.dev, shift.dev,
                                       scale.dev, stride, t.B, t.T, t.C, EPS, s);
        cpu::gated_rmsnorm_modulate_forward(sum.ref, out.ref, rstd.ref, x.ref, branch.ref, gate.ref, weight.ref,
                                            shift.ref, scale.ref, stride, t.B, t.T, t.C, EPS, 0);
        check_tensor("sum", sum, TOLERANCE_S);
        gated_rmsnorm_modulate_forward(x.dev, out_in_place.dev, rstd_in_place.dev, x.dev, branch.dev, gate.dev,
                                       weight.dev, shift.dev, scale.dev, stride, t.B, t.T, t.C, EPS, s);
        check(same_bits(x, sum) && same_bits(out, out_in_place) && same_bits(rstd, rstd_in_place), "the same in place");
    } else {
        rmsnorm_modulate_forward(out.dev, rstd.dev, x.dev, weight.dev, shift.dev, scale.dev, stride, t.B, t.T, t.C, EPS,
                                 s);
        cpu::rmsnorm_modulate_forward(out.ref, rstd.ref, x.ref, weight.ref, shift.ref, scale.ref, stride, t.B, t.T, t.C,
                                      EPS, 0);
    }
    check_tensor("out", out, TOLERANCE_X);
    check_tensor("rstd", rstd, TOLERANCE_S);
    free_tensors();
}

// The tensors of a backward.
typedef struct {
    tensor<float> dsum, dweight, sum, rstd;
    tensor<floatX> dbranch, dgate, dshift, dscale, dout, branch, gate, weight, scale;
} backward_t;

static void both_backwards(norm_case_t t, backward_t b, size_t stride, stream_t s) {
    if (t.gated) {
        gated_rmsnorm_modulate_backward(b.dsum.dev, b.dbranch.dev, b.dgate.dev, b.dweight.dev, b.dshift.dev,
                                        b.dscale.dev, b.dout.dev, b.sum.dev, b.branch.dev, b.gate.dev, b.weight.dev,
                                        b.scale.dev, b.rstd.dev, stride, t.B, t.T, t.C, s);
        cpu::gated_rmsnorm_modulate_backward(b.dsum.ref, b.dbranch.ref, b.dgate.ref, b.dweight.ref, b.dshift.ref,
                                             b.dscale.ref, b.dout.ref, b.sum.ref, b.branch.ref, b.gate.ref,
                                             b.weight.ref, b.scale.ref, b.rstd.ref, stride, t.B, t.T, t.C, 0);
    } else {
        rmsnorm_modulate_backward(b.dsum.dev, b.dweight.dev, b.dshift.dev, b.dscale.dev, b.dout.dev, b.sum.dev,
                                  b.weight.dev, b.scale.dev, b.rstd.dev, stride, t.B, t.T, t.C, s);
        cpu::rmsnorm_modulate_backward(b.dsum.ref, b.dweight.ref, b.dshift.ref, b.dscale.ref, b.dout.ref, b.sum.ref,
                                       b.weight.ref, b.scale.ref, b.rstd.ref, stride, t.B, t.T, t.C, 0);
    }
}

// Twice: dsum starts anew, dweight collects. One weight is 0, where dscale says nothing of dweight.
static void run_backward(stream_t s, void* context) {
    norm_case_t t = *(norm_case_t*)context;
    size_t rows = (size_t)t.B * t.T, n = rows * t.C, stride = (size_t)t.C + t.gap, vectors = (t.B - 1) * stride + t.C;
    backward_t b = {}, first = {};
    b.sum = random_gradient(n, 2), b.rstd = random_gradient(rows);
    b.dout = shifted(random_input(n + t.shift), t.shift), b.branch = shifted(random_input(n + t.shift), t.shift);
    b.gate = random_input(vectors), b.weight = random_input(t.C), b.scale = random_input(vectors);
    if (t.C > 1) b.weight.ref[t.C / 2] = 0, upload(b.weight);
    for (size_t i = 0; i < rows; i++) b.rstd.ref[i] = 0.3 + 0.2 * test_uniform();
    upload(b.rstd);
    tensor<float> start = random_gradient(n), dweight = random_gradient(t.C);
    if (!t.frozen) b.dweight = dweight;
    for (int round = 0; round < 2; round++) {
        b.dsum = copy_of(start), b.dbranch = output(n), b.dgate = output(vectors), b.dscale = output(vectors);
        if (!t.frozen) b.dshift = output(vectors);
        both_backwards(t, b, stride, s);
        check_tensor("dsum", b.dsum, TOLERANCE_S);
        check_vectors("dscale", b.dscale, stride, t.B, t.C);
        if (b.dshift.dev) check_vectors("dshift", b.dshift, stride, t.B, t.C);
        if (t.gated) check_vectors("dgate", b.dgate, stride, t.B, t.C);
        if (t.gated) check_tensor("dbranch", b.dbranch, TOLERANCE_X);
        if (round == 0) first = b;
        check(same_bits(b.dsum, first.dsum) && same_bits(b.dbranch, first.dbranch) && same_bits(b.dgate, first.dgate) &&
              same_bits(b.dscale, first.dscale), "the same bits every time");
    }
    if (b.dweight.dev) check_tensor("dweight", b.dweight, TOLERANCE_S);
    free_tensors();
}

static void test_rmsnorm(stream_t s, const char* name, int B, int T, int C, int gap, int shift) {
    for (int kind = 0; kind < 4; kind++) {
        norm_case_t t = {B, T, C, gap, shift, kind / 2, kind % 2};
        char title[120];
        snprintf(title, sizeof title, "%srmsnorm%s, (%d, %d, %d), %s", t.gated ? "gated " : "",
                 t.frozen ? " without shift and weight's gradient" : "", B, T, C, name);
        if (!test_case(title)) continue;
        for_each_shape(s, run_forward, &t);
        for_each_shape(s, run_backward, &t);
        test_end_case();
    }
}

// Strips cover an image's tokens once, whatever the sizes; and at full size the scratch memory suffices.
static void test_strips(stream_t s) {
    if (!test_case("rmsnorm, strips of every size")) return;
    static const int channels[6] = {1, 128, 768, 1152, 1792, 4096};
    int real = s->multiprocessors;
    s->multiprocessors = 132;
    for (int i = 0; i < 6; i++) {
        for (int T = 1; T <= 5000; T += 1 + T / 3) {
            for (int B = 1; B <= 1024; B *= 2) {
                norm_strips_t z = norm_strips(0, B, T, channels[i], s);
                check((size_t)z.strips * z.tokens >= (size_t)T, "strips reach the last token");
                check((z.strips - 1) * z.tokens < T, "no strip is empty");
                check(z.tokens % NORM_TOKENS == 0 && z.threads * NORM_COLUMNS >= channels[i], "a block holds a row");
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
    test_rmsnorm(s, "one value", 1, 1, 1, 0, 0);
    test_rmsnorm(s, "primes", 3, 37, 13, 5, 0);
    test_rmsnorm(s, "one token an image, many images", 67, 1, 24, 8, 0);
    test_rmsnorm(s, "an odd number of tokens, part of a warp", 2, 41, 128, 768, 0);
    test_rmsnorm(s, "the small model's", 3, 16, 128, 128 * 6, 0);
    test_rmsnorm(s, "two warps or more", 2, 7, 264, 16, 0);
    test_rmsnorm(s, "two warps or more, prime", 2, 5, 263, 2, 0);
    test_rmsnorm(s, "the large model's, one image", 1, 5, 1152, 0, 0);
    test_rmsnorm(s, "vectors at odd places", 3, 9, 96, 3, 0);
    test_rmsnorm(s, "shifted", 2, 13, 96, 8, 1);
    test_rmsnorm(s, "the longest row", 1, 3, 4096, 0, 0);
    if (test_case("rmsnorm on 40 multiprocessors")) {
        norm_case_t t = {2, 301, 24, 8, 0, 1, 0};
        int real = s->multiprocessors;
        s->multiprocessors = 40;
        run_forward(s, &t);
        run_backward(s, &t);
        s->multiprocessors = real;
        test_end_case();
    }
    test_strips(s);
    device_close(s);
    return test_finish();
}
