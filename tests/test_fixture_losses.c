// test_fixture_losses.c: losses, Adam and moving averages in float against PyTorch, from the files loss_*.safetensors,
// optimizers.safetensors and ema.safetensors (see tests/fixtures/README.md for what their tensors are).
//
// Run from the repository root. The derivatives themselves are proved in tests/test_loss.c; here it is the conventions
// that are compared: which mean, which clamp, which floor. defines: test_case, check_error, relative_error_float
#include "tests/test.h"
// defines: the operations
#include "common/ops.h"
// defines: ema_gamma, ema_power_beta
#include "common/training/ema.h"
// defines: safetensors_open_or_die, safetensors_find, safetensors_read
#include "common/files/safetensors.h"

#define BOUND 2e-6 // of relative errors in the norm: inputs, outputs and arithmetic are float

// A tensor of the file as floats, which the caller frees.
static float* tensor(const safetensors_t* file, const char* name, size_t numel) {
    const st_tensor_t* t = safetensors_find(file, name);
    if (!t || t->numel != numel) {
        fatal("%s: no tensor %s of %zu values; run dev/reference/make_fixtures.py", file->path, name, numel);
    }
    float* values = (float*)malloc_check(numel * sizeof(float), name);
    safetensors_read(t, values);
    return values;
}

static float* poisoned(size_t n) {
    float* p = (float*)malloc_check(n * sizeof(float), "a test");
    for (size_t i = 0; i < n; i++) p[i] = NAN;
    return p;
}

static float* zeros(size_t n) { return (float*)calloc_check(n, sizeof(float), "a test"); }

// Compares with a tensor of the file, and frees what was computed.
static void compare(const safetensors_t* file, const char* name, float* got, size_t numel) {
    float* want = tensor(file, name, numel);
    check_error(name, relative_error_float(got, want, numel), BOUND);
    free(want);
    free(got);
}

// The same value by value, for tensors whose largest values would hide the others.
static void compare_each(const safetensors_t* file, const char* name, float* got, size_t numel) {
    float* want = tensor(file, name, numel);
    for (size_t i = 0; i < numel; i++) check_error(name, fabs(got[i] - want[i]) / (1 + fabs(want[i])), BOUND);
    free(want);
    free(got);
}

static void compare_scalar(const safetensors_t* file, const char* name, double got) {
    float* want = tensor(file, name, 1);
    check_error(name, fabs(got - want[0]) / fabs(want[0]), BOUND);
    free(want);
}

static void test_l1(void) {
    if (!test_case("l1")) return;
    enum { B = 2, HW = 35, n = B * HW * 3 };
    safetensors_t file;
    safetensors_open_or_die(&file, "tests/fixtures/loss_l1.safetensors");
    float *xhat = tensor(&file, "input.reconstruction", n), *x = tensor(&file, "input.target", n), *dxhat = poisoned(n);
    float loss[B];
    channel_affine_t none = {{1, 1, 1}, {0, 0, 0}};
    l1_forward(loss, xhat, x, B, HW * 3, 0);
    compare_scalar(&file, "output.l1", (loss[0] + loss[1]) / 2);
    l1_backward(dxhat, xhat, x, NULL, none, 0.5, B, HW, 0);
    compare(&file, "dinput.reconstruction", dxhat, n);
    free(xhat);
    free(x);
    safetensors_close(&file);
    test_end_case();
}

static void test_semantic(void) {
    if (!test_case("semantic preservation, l2 and cosine")) return;
    enum { rows = 24, C = 7, n = rows * C };
    safetensors_t file;
    safetensors_open_or_die(&file, "tests/fixtures/loss_semantic.safetensors");
    float *z = tensor(&file, "input.z", n), *z0 = tensor(&file, "input.z0", n);
    float *dz = poisoned(n), *dcosine = poisoned(n), loss;
    semantic_l2_forward(&loss, z, z0, 1, n, 0);
    compare_scalar(&file, "output.l2", loss);
    semantic_l2_backward(dz, z, z0, 1, 1, n, 0);
    compare(&file, "dinput.z_l2", dz, n);
    semantic_cosine_forward(&loss, z, z0, 1, rows, C, 0);
    compare_scalar(&file, "output.cosine", loss);
    semantic_cosine_backward(dcosine, z, z0, 1, 1, rows, C, 0);
    compare(&file, "dinput.z_cosine", dcosine, n);
    free(z);
    free(z0);
    safetensors_close(&file);
    test_end_case();
}

static void test_posterior(void) {
    if (!test_case("posterior: sample, kl and both gradients, with clamped log variances")) return;
    enum { B = 2, T = 15, C = 4, n = B * T * C };
    safetensors_t file;
    safetensors_open_or_die(&file, "tests/fixtures/loss_kl.safetensors");
    float *moments = tensor(&file, "input.moments", 2 * n), *noise = tensor(&file, "input.noise", n);
    float *dz = tensor(&file, "dout.z", n), *no_dz = zeros(n), *z = poisoned(n), kl[B];
    float *dmoments_kl = poisoned(2 * n), *dmoments_sample = poisoned(2 * n);
    posterior_forward(z, kl, moments, noise, B, T, C, 0);
    compare_each(&file, "output.z", z, n);
    compare_scalar(&file, "output.kl", ((double)kl[0] + kl[1]) / 2);
    posterior_backward(dmoments_kl, no_dz, moments, noise, 0.5, B, T, C, 0);
    compare_each(&file, "dinput.moments_kl", dmoments_kl, 2 * n);
    posterior_backward(dmoments_sample, dz, moments, noise, 0, B, T, C, 0);
    compare_each(&file, "dinput.moments_sample", dmoments_sample, 2 * n);
    free(moments);
    free(noise);
    free(dz);
    free(no_dz);
    safetensors_close(&file);
    test_end_case();
}

// The latent reaches the loss through a projection without bias.
static void test_vf(void) {
    if (!test_case("vf: value, gradients of latent and projection")) return;
    enum { B = 2, N = 12, d = 8, C = 24, rows = B * N };
    safetensors_t file;
    safetensors_open_or_die(&file, "tests/fixtures/loss_vf.safetensors");
    float *z = tensor(&file, "input.z", rows * d), *teacher = tensor(&file, "input.feature", rows * C);
    float *weight = tensor(&file, "param.linear_proj.weight", C * d), *projected = poisoned(rows * C);
    float *dprojected = poisoned(rows * C), *dz = poisoned(rows * d), *dweight = zeros(C * d), loss;
    matmul_forward(projected, z, weight, NULL, rows, d, C, 0);
    vf_forward(&loss, projected, teacher, 0.25, 0.5, B, N, C, B, 0);
    float *distance = tensor(&file, "output.distmat", 1), *cosine = tensor(&file, "output.cos", 1);
    check_error("output.distmat + output.cos", fabs(loss / (distance[0] + cosine[0]) - 1), BOUND);
    vf_backward(dprojected, projected, teacher, 0.25, 0.5, 1, B, N, C, B, 0);
    matmul_backward(dz, dweight, NULL, dprojected, z, weight, rows, d, C, 0);
    compare(&file, "dinput.z", dz, rows * d);
    compare(&file, "grad.linear_proj.weight", dweight, C * d);
    free(z);
    free(teacher);
    free(weight);
    free(projected);
    free(dprojected);
    free(distance);
    free(cosine);
    safetensors_close(&file);
    test_end_case();
}

static void test_adam(const char* output, adam_t adam, const char* name) {
    if (!test_case(name)) return;
    enum { steps = 5, n = 257 };
    safetensors_t file;
    safetensors_open_or_die(&file, "tests/fixtures/optimizers.safetensors");
    float *w = tensor(&file, "input.parameters", n), *grads = tensor(&file, "input.gradients", steps * n);
    float *m = zeros(n), *v = zeros(n), *history = poisoned(steps * n);
    for (int step = 0; step < steps; step++, adam.t++) {
        adam_update(w, w, m, v, NULL, NULL, grads + step * n, n, adam, 0);
        memcpy(history + step * n, w, n * sizeof(float));
    }
    compare_each(&file, output, history, steps * n);
    free(w);
    free(grads);
    free(m);
    free(v);
    safetensors_close(&file);
    test_end_case();
}

// Five values of a vector of weights, averaged from step `first` on. With lr 0 Adam leaves the weights as they are.
static void test_ema(const char* early_or_late, int64_t first, double width) {
    char name[64], output[64];
    snprintf(name, sizeof name, "power-function average of width %.2f from step %d", width, (int)first);
    snprintf(output, sizeof output, "output.%s_%.2f", early_or_late, width);
    if (!test_case(name)) return;
    enum { steps = 5, n = 131 };
    safetensors_t file;
    safetensors_open_or_die(&file, "tests/fixtures/ema.safetensors");
    float *values = tensor(&file, "input.values", steps * n), *average = tensor(&file, "input.start", n);
    float *m = zeros(n), *v = zeros(n), *grad = zeros(n), *history = poisoned(steps * n);
    adam_t still = {0, 0.9, 0.9, 1, 0, 1, {0, 0}, 1};
    for (int step = 0; step < steps; step++) {
        float* w = values + step * n;
        still.ema_beta[1] = ema_power_beta(ema_gamma(width), first + step);
        adam_update(w, w, m, v, NULL, average, grad, n, still, 0);
        memcpy(history + step * n, average, n * sizeof(float));
    }
    compare_each(&file, output, history, steps * n);
    free(values);
    free(average);
    free(m);
    free(v);
    free(grad);
    safetensors_close(&file);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_l1();
    test_semantic();
    test_posterior();
    test_vf();
    adam_t adam = {0.0625, 0.5, 0.9, 1e-8, 0, 1, {0, 0}, 1};
    adam_t adamw = {0.0625, 0.9, 0.999, 1e-8, 0.5, 1, {0, 0}, 1};
    test_adam("output.adam", adam, "adam, five steps");
    test_adam("output.adamw", adamw, "adamw, five steps");
    for (int i = 0; i < 2; i++) {
        test_ema("early", 1, i ? 0.10 : 0.05);
        test_ema("late", 1001, i ? 0.10 : 0.05);
    }
    return test_finish();
}
