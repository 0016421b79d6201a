// Normalisation: LayerNorm, GroupNorm, adaptive GroupNorm and moments, BatchNorm, at sizes around a pack, a warp, a block
// and a slice.
#include "tests/kernel.h"
#include "common/cuda/batchnorm.cuh"
#include "common/cuda/groupnorm.cuh"
#include "common/cuda/layernorm.cuh"
#include "common/cuda/moments.cuh"

// The reference's statistics on both sides, exactly: what a backward reads.
static void share(tensor<float> t) { upload(t); }

// ---------------------------------------------------------------------------------------------------------------------
// LayerNorm

// Values of the residual stream: as random_input, in fp32.
static tensor<float> random_stream(size_t n, double mean) {
    tensor<float> t = random_gradient(n);
    for (size_t i = 0; i < n; i++) t.ref[i] += mean;
    upload(t);
    return t;
}

enum { PLAIN, RESIDUAL, NO_GAMMA }; // what stands before the norm: nothing, a branch with LayerScale, a branch without

typedef struct {
    int kind;
    size_t N;
    int C;
    double mean; // of x
    int shift;
} layernorm_case_t;

static void run_layernorm_forward(stream_t s, void* context) {
    layernorm_case_t t = *(layernorm_case_t*)context;
    size_t n = t.N * t.C;
    tensor<float> x = shifted(random_stream(n + t.shift, t.mean), t.shift), sum = output_s(n);
    tensor<floatX> y = random_input(n), gamma = random_input(t.C), weight = random_input(t.C), bias = random_input(t.C);
    tensor<floatX> out = output(n);
    tensor<float> mean = output_s(t.N), rstd = output_s(t.N);
    if (t.kind == NO_GAMMA) gamma.ref = nullptr, gamma.dev = nullptr;
    if (t.kind == PLAIN) {
        layernorm_forward(out.dev, mean.dev, rstd.dev, x.dev, weight.dev, bias.dev, t.N, t.C, 1e-6, s);
        cpu::layernorm_forward(out.ref, mean.ref, rstd.ref, x.ref, weight.ref, bias.ref, t.N, t.C, 1e-6, 0);
    } else {
        residual_layernorm_forward(sum.dev, out.dev, mean.dev, rstd.dev, x.dev, y.dev, gamma.dev, weight.dev, bias.dev,
                                   t.N, t.C, 1e-6, s);
        cpu::residual_layernorm_forward(sum.ref, out.ref, mean.ref, rstd.ref, x.ref, y.ref, gamma.ref, weight.ref,
                                        bias.ref, t.N, t.C, 1e-6, 0);
        check_tensor("sum", sum, TOLERANCE_S);
    }
    check_tensor("out", out, TOLERANCE_X);
    check_tensor("mean", mean, TOLERANCE_S);
    check_tensor("rstd", rstd, TOLERANCE_S);
    free_tensors();
}

// Twice, from the same dx: gradients of parameters then hold their start and the sum twice. Then without gradients of
// parameters, where y is not needed and dx and dy are the same.
static void run_layernorm_backward(stream_t s, void* context) {
    layernorm_case_t t = *(layernorm_case_t*)context;
    size_t n = t.N * t.C;
    tensor<float> x = random_stream(n, t.mean), start = random_stream(n, 0), first_dx = output_s(n);
    tensor<floatX> dout = shifted(random_input(n + t.shift), t.shift), first_dy = output(n);
    tensor<floatX> y = random_input(n), out = output(n);
    tensor<floatX> gamma = random_input(t.C), weight = random_input(t.C), bias = random_input(t.C);
    tensor<float> dgamma = random_gradient(t.C), dweight = random_gradient(t.C), dbias = random_gradient(t.C);
    tensor<float> mean = output_s(t.N), rstd = output_s(t.N), none = {0, nullptr, nullptr};
    cpu::layernorm_forward(out.ref, mean.ref, rstd.ref, x.ref, weight.ref, bias.ref, t.N, t.C, 1e-6, 0);
    share(mean), share(rstd);
    if (t.kind == NO_GAMMA) gamma.ref = nullptr, gamma.dev = nullptr;
    for (int round = 0; round < 3; round++) {
        int with = round < 2;
        tensor<float> dw = with ? dweight : none, db = with ? dbias : none;
        tensor<float> dg = with && t.kind == RESIDUAL ? dgamma : none;
        tensor<float> dx = copy_of(start);
        tensor<floatX> dy = output(n);
        if (!dg.dev) y.dev = nullptr, y.ref = nullptr;
        if (t.kind == PLAIN) {
            layernorm_backward(dx.dev, dw.dev, db.dev, dout.dev, x.dev, weight.dev, mean.dev, rstd.dev, t.N, t.C, s);
            cpu::layernorm_backward(dx.ref, dw.ref, db.ref, dout.ref, x.ref, weight.ref, mean.ref, rstd.ref, t.N, t.C,
                                    0);
        } else {
            residual_layernorm_backward(dx.dev, dy.dev, dg.dev, dw.dev, db.dev, dout.dev, x.dev, y.dev, gamma.dev,
                                        weight.dev, mean.dev, rstd.dev, t.N, t.C, s);
            cpu::residual_layernorm_backward(dx.ref, dy.ref, dg.ref, dw.ref, db.ref, dout.ref, x.ref, y.ref, gamma.ref,
                                             weight.ref, mean.ref, rstd.ref, t.N, t.C, 0);
            check_tensor("dy", dy, TOLERANCE_X);
        }
        check_tensor("dx", dx, TOLERANCE_S);
        if (round == 0) first_dx = dx, first_dy = dy;
        check(same_bits(dx, first_dx) && (t.kind == PLAIN || same_bits(dy, first_dy)), "the same bits every time");
    }
    if (t.kind == RESIDUAL) check_tensor("dgamma", dgamma, TOLERANCE_S);
    check_tensor("dweight", dweight, TOLERANCE_S);
    check_tensor("dbias", dbias, TOLERANCE_S);
    free_tensors();
}

// Without mean and bias: RMSNorm, alone and behind a branch.
static void run_rmsnorm(stream_t s, void* context) {
    layernorm_case_t t = *(layernorm_case_t*)context;
    size_t n = t.N * t.C;
    tensor<float> x = shifted(random_stream(n + t.shift, t.mean), t.shift), sum = output_s(n), rstd = output_s(t.N);
    tensor<floatX> y = random_input(n), weight = random_input(t.C), out = output(n), behind = output(n);
    layernorm_forward(out.dev, NULL, rstd.dev, x.dev, weight.dev, NULL, t.N, t.C, 1e-6, s);
    cpu::layernorm_forward(out.ref, NULL, rstd.ref, x.ref, weight.ref, NULL, t.N, t.C, 1e-6, 0);
    check_tensor("out", out, TOLERANCE_X);
    check_tensor("rstd", rstd, TOLERANCE_S);
    residual_layernorm_forward(sum.dev, behind.dev, NULL, rstd.dev, x.dev, y.dev, NULL, weight.dev, NULL, t.N, t.C,
                               1e-6, s);
    cpu::residual_layernorm_forward(sum.ref, behind.ref, NULL, rstd.ref, x.ref, y.ref, NULL, weight.ref, NULL, t.N,
                                    t.C, 1e-6, 0);
    check_tensor("sum", sum, TOLERANCE_S);
    check_tensor("out behind a branch", behind, TOLERANCE_X);
    free_tensors();
}

static void test_rmsnorm(stream_t s, const char* name, size_t N, int C, double mean, int shift) {
    layernorm_case_t t = {PLAIN, N, C, mean, shift};
    if (!test_case(name)) return;
    for_each_shape(s, run_rmsnorm, &t);
    test_end_case();
}

static void test_layernorm(stream_t s, const char* name, size_t N, int C, double mean, int shift) {
    static const char* kinds[3] = {"layernorm", "residual layernorm", "residual layernorm without gamma"};
    for (int kind = PLAIN; kind <= NO_GAMMA; kind++) {
        char title[120];
        layernorm_case_t t = {kind, N, C, mean, shift};
        snprintf(title, sizeof title, "%s, (%zu, %d), %s", kinds[kind], N, C, name);
        if (!test_case(title)) continue;
        for_each_shape(s, run_layernorm_forward, &t);
        for_each_shape(s, run_layernorm_backward, &t);
        test_end_case();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// GroupNorm

typedef struct {
    int B, HW, C, G;
    activation_t act;
    double mean; // of x
    int shift;
} groupnorm_case_t;

static void run_groupnorm_forward(stream_t s, void* context) {
    groupnorm_case_t t = *(groupnorm_case_t*)context;
    size_t n = (size_t)t.B * t.HW * t.C, groups = (size_t)t.B * t.G;
    tensor<floatX> x = shifted(random_input(n + t.shift, 1, t.mean), t.shift), out = output(n), again = output(n);
    tensor<floatX> weight = random_input(t.C), bias = random_input(t.C);
    tensor<float> mean = output_s(groups), rstd = output_s(groups);
    groupnorm_forward(out.dev, mean.dev, rstd.dev, x.dev, weight.dev, bias.dev, t.B, t.HW, t.C, t.G, 1e-6, t.act, s);
    groupnorm_apply(again.dev, x.dev, weight.dev, bias.dev, mean.dev, rstd.dev, t.B, t.HW, t.C, t.G, t.act, s);
    cpu::groupnorm_forward(out.ref, mean.ref, rstd.ref, x.ref, weight.ref, bias.ref, t.B, t.HW, t.C, t.G, 1e-6, t.act,
                           0);
    check_tensor("out", out, TOLERANCE_X);
    check_tensor("mean", mean, TOLERANCE_S);
    check_tensor("rstd", rstd, TOLERANCE_S);
    check(same_bits(out, again), "groupnorm_apply gives the forward's output");
    free_tensors();
}

static void both_groupnorm_backwards(groupnorm_case_t t, tensor<floatX> dx, tensor<float> dweight, tensor<float> dbias,
                                     tensor<floatX> dout, tensor<floatX> add, tensor<floatX> x, tensor<floatX> weight,
                                     tensor<floatX> bias, tensor<float> mean, tensor<float> rstd, stream_t s) {
    groupnorm_backward(dx.dev, dweight.dev, dbias.dev, dout.dev, add.dev, x.dev, weight.dev, bias.dev, mean.dev,
                       rstd.dev, t.B, t.HW, t.C, t.G, t.act, s);
    cpu::groupnorm_backward(dx.ref, dweight.ref, dbias.ref, dout.ref, add.ref, x.ref, weight.ref, bias.ref, mean.ref,
                            rstd.ref, t.B, t.HW, t.C, t.G, t.act, 0);
}

// First without `add` and parameter gradients, then with both twice, the second time in place.
static void run_groupnorm_backward(stream_t s, void* context) {
    groupnorm_case_t t = *(groupnorm_case_t*)context;
    size_t n = (size_t)t.B * t.HW * t.C, groups = (size_t)t.B * t.G;
    tensor<floatX> x = random_input(n, 1, t.mean), dout = shifted(random_input(n + t.shift), t.shift), out = output(n);
    tensor<floatX> add = random_input(n), dx = output(n), dx_alone = output(n), no_add = {0, nullptr, nullptr};
    tensor<floatX> weight = random_input(t.C), bias = random_input(t.C);
    tensor<float> dweight = random_gradient(t.C), dbias = random_gradient(t.C), none = {0, nullptr, nullptr};
    tensor<float> mean = output_s(groups), rstd = output_s(groups);
    cpu::groupnorm_forward(out.ref, mean.ref, rstd.ref, x.ref, weight.ref, bias.ref, t.B, t.HW, t.C, t.G, 1e-6, t.act,
                           0);
    share(mean), share(rstd);
    both_groupnorm_backwards(t, dx_alone, none, none, dout, no_add, x, weight, bias, mean, rstd, s);
    both_groupnorm_backwards(t, dx, dweight, dbias, dout, add, x, weight, bias, mean, rstd, s);
    both_groupnorm_backwards(t, add, dweight, dbias, dout, add, x, weight, bias, mean, rstd, s);
    check_tensor("dx without add", dx_alone, TOLERANCE_X);
    check_tensor("dx", dx, TOLERANCE_X);
    check(same_bits(dx, add), "the same bits in place");
    check_tensor("dweight", dweight, TOLERANCE_S);
    check_tensor("dbias", dbias, TOLERANCE_S);
    free_tensors();
}

static void test_groupnorm(stream_t s, const char* name, int B, int HW, int C, int G, double mean, int shift) {
    for (int swish = 0; swish < 2; swish++) {
        char title[120];
        groupnorm_case_t t = {B, HW, C, G, swish ? ACT_SWISH : ACT_NONE, mean, shift};
        snprintf(title, sizeof title, "groupnorm%s, (%d, %d, %d) in %d, %s", swish ? " swish" : "", B, HW, C, G, name);
        if (!test_case(title)) continue;
        for_each_shape(s, run_groupnorm_forward, &t);
        for_each_shape(s, run_groupnorm_backward, &t);
        test_end_case();
    }
}

// Rows of scale and shift that are pieces of longer ones, beginning `shift` values in.
typedef struct {
    int B, HW, C, G;
    size_t stride;
    double mean; // of x
    int shift;
} adaptive_case_t;

static void run_adaptive(stream_t s, void* context) {
    adaptive_case_t t = *(adaptive_case_t*)context;
    size_t n = (size_t)t.B * t.HW * t.C, groups = (size_t)t.B * t.G, rows = (t.B - 1) * t.stride + t.C;
    tensor<floatX> x = random_input(n, 1, t.mean), dout = random_input(n), out = output(n), dx = output(n);
    tensor<floatX> scale = shifted(random_input(rows + t.shift), t.shift);
    tensor<floatX> shift = shifted(random_input(rows + t.shift), t.shift);
    tensor<floatX> dscale = shifted(random_input(rows + t.shift), t.shift); // what lies between the pieces stays
    tensor<floatX> dshift = shifted(random_input(rows + t.shift), t.shift);
    tensor<float> mean = output_s(groups), rstd = output_s(groups);
    adaptive_groupnorm_forward(out.dev, mean.dev, rstd.dev, x.dev, scale.dev, shift.dev, t.stride, t.B, t.HW, t.C, t.G,
                               1e-6, s);
    cpu::adaptive_groupnorm_forward(out.ref, mean.ref, rstd.ref, x.ref, scale.ref, shift.ref, t.stride, t.B, t.HW, t.C,
                                    t.G, 1e-6, 0);
    check_tensor("out", out, TOLERANCE_X);
    check_tensor("mean", mean, TOLERANCE_S);
    check_tensor("rstd", rstd, TOLERANCE_S);
    share(mean), share(rstd);
    adaptive_groupnorm_backward(dx.dev, dscale.dev, dshift.dev, dout.dev, x.dev, scale.dev, mean.dev, rstd.dev,
                                t.stride, t.B, t.HW, t.C, t.G, s);
    cpu::adaptive_groupnorm_backward(dx.ref, dscale.ref, dshift.ref, dout.ref, x.ref, scale.ref, mean.ref, rstd.ref,
                                     t.stride, t.B, t.HW, t.C, t.G, 0);
    check_tensor("dx", dx, TOLERANCE_X);
    check_tensor("dscale", dscale, TOLERANCE_X);
    check_tensor("dshift", dshift, TOLERANCE_X);
    free_tensors();
}

static void test_adaptive(stream_t s, const char* name, int B, int HW, int C, int G, size_t stride, double mean,
                          int shift) {
    char title[120];
    adaptive_case_t t = {B, HW, C, G, stride, mean, shift};
    snprintf(title, sizeof title, "adaptive groupnorm, (%d, %d, %d) in %d, rows of %zu, %s", B, HW, C, G, stride, name);
    if (!test_case(title)) return;
    for_each_shape(s, run_adaptive, &t);
    test_end_case();
}

// Without `add`, with it, and in place.
static void run_moments(stream_t s, void* context) {
    (void)context;
    static const int sizes[5][3] = {{1, 2, 1}, {3, 7, 5}, {2, 67, 32}, {2, 300, 33}, {1, 12, 100}};
    for (int i = 0; i < 5; i++) {
        int B = sizes[i][0], HW = sizes[i][1], C = sizes[i][2];
        size_t n = (size_t)B * HW * C, k = (size_t)B * C;
        tensor<floatX> x = random_input(n, 1, 10 * (i % 2)), add = random_input(n), dx = output(n), alone = output(n);
        tensor<floatX> dmean = random_input(k), ddeviation = random_input(k);
        tensor<float> mean = output_s(k), deviation = output_s(k);
        channel_moments_forward(mean.dev, deviation.dev, x.dev, B, HW, C, 1e-6, s);
        cpu::channel_moments_forward(mean.ref, deviation.ref, x.ref, B, HW, C, 1e-6, 0);
        check_tensor("mean", mean, TOLERANCE_S);
        check_tensor("deviation", deviation, TOLERANCE_S);
        share(mean), share(deviation);
        channel_moments_backward(alone.dev, dmean.dev, ddeviation.dev, nullptr, x.dev, mean.dev, deviation.dev, B, HW,
                                 C, s);
        cpu::channel_moments_backward(alone.ref, dmean.ref, ddeviation.ref, nullptr, x.ref, mean.ref, deviation.ref, B,
                                      HW, C, 0);
        channel_moments_backward(dx.dev, dmean.dev, ddeviation.dev, add.dev, x.dev, mean.dev, deviation.dev, B, HW, C,
                                 s);
        cpu::channel_moments_backward(dx.ref, dmean.ref, ddeviation.ref, add.ref, x.ref, mean.ref, deviation.ref, B, HW,
                                      C, 0);
        channel_moments_backward(add.dev, dmean.dev, ddeviation.dev, add.dev, x.dev, mean.dev, deviation.dev, B, HW, C,
                                 s);
        check_tensor("dx without add", alone, TOLERANCE_X);
        check_tensor("dx", dx, TOLERANCE_X);
        check(same_bits(dx, add), "the same bits in place");
        free_tensors();
    }
}

// The first value of each channel is a thread's origin: here the first row lies 1000 standard deviations off.
static void run_outlier(stream_t s, void* context) {
    (void)context;
    enum { HW = 1500, C = 24, G = 3 };
    tensor<floatX> x = random_input(HW * C), out = output(HW * C), weight = random_input(C), bias = random_input(C);
    tensor<float> mean = output_s(G), rstd = output_s(G);
    for (int c = 0; c < C; c++) x.ref[c] = 1000;
    upload(x);
    groupnorm_forward(out.dev, mean.dev, rstd.dev, x.dev, weight.dev, bias.dev, 1, HW, C, G, 1e-6, ACT_NONE, s);
    cpu::groupnorm_forward(out.ref, mean.ref, rstd.ref, x.ref, weight.ref, bias.ref, 1, HW, C, G, 1e-6, ACT_NONE, 0);
    check_tensor("out", out, TOLERANCE_X);
    check_tensor("mean", mean, TOLERANCE_S);
    check_tensor("rstd", rstd, TOLERANCE_S);
    free_tensors();
}

// Slices cover all rows once, whatever the sizes; and at full size the scratch memory suffices.
static void test_slices(stream_t s) {
    if (!test_case("groupnorm, slices of every size")) return;
    static const int channels[6] = {1, 7, 24, 128, 512, 4096};
    int real = s->multiprocessors;
    for (int i = 0; i < 6; i++) {
        for (size_t rows = 1; rows < 3000000; rows = rows * 3 + i) {
            for (int sets = 1; sets <= 128; sets *= 8) {
                s->multiprocessors = 132;
                norm_sizes_t z = norm_sizes(sets, rows, channels[i], 1, channels[i] % PACKED == 0, s);
                check((size_t)z.slices * z.slice_rows >= rows, "slices reach the last row");
                check((size_t)(z.slices - 1) * z.slice_rows < rows, "no slice is empty");
                check((z.slices + 2) * (size_t)sets * 2 * z.C * sizeof(float) <= DEVICE_SCRATCH_BYTES, "parts fit");
                dim3 block = norm_block(z);
                check(block.x * block.y <= NORM_THREADS, "a block is not too large");
            }
        }
    }
    s->multiprocessors = real;
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// BatchNorm

typedef struct {
    int B, HW, C, chunk, train;
    double mean; // of x
    int shift;
} batchnorm_case_t;

// The backward runs twice, and once without gradients of the parameters.
static void run_batchnorm(stream_t s, void* context) {
    batchnorm_case_t t = *(batchnorm_case_t*)context;
    int B = t.B, HW = t.HW, C = t.C;
    size_t n = (size_t)B * HW * C, groups = (size_t)B / t.chunk * C;
    tensor<floatX> x = shifted(random_input(n + t.shift, 1, t.mean), t.shift), dout = random_input(n), out = output(n);
    tensor<floatX> weight = random_input(C), bias = random_input(C), dx = output(n), dx_frozen = output(n);
    tensor<float> mean = output_s(groups), rstd = output_s(groups);
    tensor<float> dweight = random_gradient(C), dbias = random_gradient(C);
    tensor<float> running_mean = random_gradient(C), running_var = random_gradient(C);
    for (int c = 0; c < C; c++) running_var.ref[c] = 0.1 + running_var.ref[c] * running_var.ref[c];
    upload(running_var);
    batchnorm_leaky_forward(out.dev, mean.dev, rstd.dev, x.dev, weight.dev, bias.dev, running_mean.dev, running_var.dev,
                            B, HW, C, t.chunk, 1e-5, t.train, s);
    cpu::batchnorm_leaky_forward(out.ref, mean.ref, rstd.ref, x.ref, weight.ref, bias.ref, running_mean.ref,
                                 running_var.ref, B, HW, C, t.chunk, 1e-5, t.train, 0);
    check_tensor("out", out, TOLERANCE_X);
    check_tensor("mean", mean, TOLERANCE_S);
    check_tensor("rstd", rstd, TOLERANCE_S);
    share(mean), share(rstd);
    batchnorm_leaky_backward(dx_frozen.dev, nullptr, nullptr, dout.dev, x.dev, weight.dev, bias.dev, mean.dev, rstd.dev,
                             B, HW, C, t.chunk, t.train, s);
    for (int twice = 0; twice < 2; twice++) {
        batchnorm_leaky_backward(dx.dev, dweight.dev, dbias.dev, dout.dev, x.dev, weight.dev, bias.dev, mean.dev,
                                 rstd.dev, B, HW, C, t.chunk, t.train, s);
        cpu::batchnorm_leaky_backward(dx.ref, dweight.ref, dbias.ref, dout.ref, x.ref, weight.ref, bias.ref, mean.ref,
                                      rstd.ref, B, HW, C, t.chunk, t.train, 0);
    }
    check_tensor("dx", dx, TOLERANCE_X);
    check(same_bits(dx, dx_frozen), "dx is the same without gradients of the parameters");
    check_tensor("dweight", dweight, TOLERANCE_S);
    check_tensor("dbias", dbias, TOLERANCE_S);
    free_tensors();
}

static void test_batchnorm(stream_t s, const char* name, int B, int HW, int C, int chunk, double mean, int shift) {
    for (int train = 1; train >= 0; train--) {
        char title[120];
        batchnorm_case_t t = {B, HW, C, chunk, train, mean, shift};
        const char* running = train ? "" : " running";
        snprintf(title, sizeof title, "batchnorm%s, (%d, %d, %d) in chunks of %d, %s", running, B, HW, C, chunk, name);
        if (!test_case(title)) continue;
        for_each_shape(s, run_batchnorm, &t);
        test_end_case();
    }
}

static void run_update_running(stream_t s, void* context) {
    (void)context;
    static const int channels[3] = {1, 13, 300};
    for (int i = 0; i < 3; i++) {
        int C = channels[i];
        size_t n = i == 0 ? 1 : 77;
        tensor<float> running_mean = random_gradient(C), running_var = random_gradient(C), mean = random_gradient(C);
        tensor<float> rstd = random_gradient(C);
        for (int c = 0; c < C; c++) running_var.ref[c] = fabs(running_var.ref[c]);
        for (int c = 0; c < C; c++) rstd.ref[c] = 0.1 + fabs(rstd.ref[c]);
        upload(running_var), upload(rstd);
        for (int twice = 0; twice < 2; twice++) {
            batchnorm_update_running(running_mean.dev, running_var.dev, mean.dev, rstd.dev, n, C, 1e-5, 0.1, s);
            cpu::batchnorm_update_running(running_mean.ref, running_var.ref, mean.ref, rstd.ref, n, C, 1e-5, 0.1, 0);
        }
        check_tensor("running mean", running_mean, TOLERANCE_S);
        check_tensor("running variance", running_var, TOLERANCE_S);
        free_tensors();
    }
}

// More parts and slices than the kernels that add them take at once; on small machines there are few.
static void test_large_machine(stream_t s) {
    if (!test_case("layernorm and groupnorm on 40 multiprocessors")) return;
    int real = s->multiprocessors;
    layernorm_case_t layernorm = {RESIDUAL, 331, 24, 0, 0};
    groupnorm_case_t groupnorm = {1, 403, 128, 32, ACT_SWISH, 0, 1};
    s->multiprocessors = 40;
    run_layernorm_backward(s, &layernorm);
    run_groupnorm_forward(s, &groupnorm);
    run_groupnorm_backward(s, &groupnorm);
    s->multiprocessors = real;
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    test_layernorm(s, "one value", 1, 1, 0, 0);
    test_layernorm(s, "primes", 37, 13, 0, 0);
    test_layernorm(s, "part of a warp", 67, 24, 0, 0);
    test_layernorm(s, "a last group of columns that is not whole", 11, 264, 0, 0);
    test_layernorm(s, "large mean", 19, 96, 100, 0);
    test_layernorm(s, "one warp in bf16", 11, 1024, 0, 0);
    test_layernorm(s, "two warps or three", 23, 1032, 0, 0);
    test_layernorm(s, "prime, three warps", 5, 1031, 0, 0);
    test_layernorm(s, "the longest of all builds", 2, 4096, 0, 0);
    test_layernorm(s, "shifted", 13, 96, 0, 1);
    test_rmsnorm(s, "rmsnorm", 37, 24, 3, 0);
    test_rmsnorm(s, "rmsnorm, prime, three warps", 5, 1031, 0, 0);
    test_rmsnorm(s, "rmsnorm, the longest of all builds", 2, 4096, 0, 0);
    test_rmsnorm(s, "rmsnorm, shifted", 13, 96, 0, 1);
    test_groupnorm(s, "one value", 1, 1, 1, 1, 0, 0);
    test_groupnorm(s, "odd sizes", 2, 5, 3, 1, 0, 0);
    test_groupnorm(s, "a group a channel", 3, 7, 5, 5, 0, 0);
    test_groupnorm(s, "groups across packs", 2, 67, 24, 4, 0, 0);
    test_groupnorm(s, "groups across packs", 2, 37, 96, 32, 0, 0);
    test_groupnorm(s, "the decoder's", 1, 301, 128, 32, 0, 0);
    test_groupnorm(s, "the decoder's", 3, 16, 512, 32, 0, 0);
    test_groupnorm(s, "many rows", 2, 2311, 8, 2, 0, 0);
    test_groupnorm(s, "large mean", 2, 997, 24, 3, 100, 0);
    test_groupnorm(s, "wide groups, several blocks a row", 2, 3, 263, 1, 0, 0);
    test_groupnorm(s, "packs, several blocks a row", 1, 3, 2312, 17, 0, 0);
    test_groupnorm(s, "shifted", 2, 19, 32, 4, 0, 1);
    test_adaptive(s, "odd sizes", 3, 5, 3, 1, 3, 0, 0);
    test_adaptive(s, "a piece of a row", 3, 67, 24, 4, 56, 0, 0);
    test_adaptive(s, "pieces that no pack fits", 2, 35, 16, 4, 27, 0, 0);
    test_adaptive(s, "the decoder's", 3, 16, 512, 32, 1664, 0, 0);
    test_adaptive(s, "many rows", 2, 2311, 8, 2, 8, 0, 0);
    test_adaptive(s, "large mean", 2, 997, 24, 3, 24, 100, 0);
    test_adaptive(s, "shifted", 2, 19, 32, 4, 40, 0, 1);
    if (test_case("moments of the channels")) {
        for_each_shape(s, run_moments, NULL);
        test_end_case();
    }
    test_large_machine(s);
    test_slices(s);
    if (test_case("groupnorm, origins far from the mean")) {
        for_each_shape(s, run_outlier, NULL);
        test_end_case();
    }
    test_batchnorm(s, "one value", 1, 1, 1, 1, 0, 0);
    test_batchnorm(s, "odd sizes", 6, 7, 5, 3, 0, 0);
    test_batchnorm(s, "many chunks", 37, 3, 5, 1, 0, 0);
    test_batchnorm(s, "many rows", 4, 333, 24, 2, 0, 0);
    test_batchnorm(s, "PatchGAN's", 4, 31, 128, 2, 0, 0);
    test_batchnorm(s, "large mean", 2, 100, 16, 1, 100, 0);
    test_batchnorm(s, "shifted", 2, 21, 16, 2, 0, 1);
    if (test_case("batchnorm_update_running")) {
        for_each_shape(s, run_update_running, NULL);
        test_end_case();
    }
    device_close(s);
    return test_finish();
}
