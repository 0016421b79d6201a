// Flow matching: path, loss, guidance, Runge-Kutta stages, latents for the decoder; every corner of the cosine.
// defines: tensor, random_input, output, output_s, shifted, check_tensor, sizes_t, test_shapes, namespace cpu
#include "tests/kernel.h"
// the shipped file
#include "common/cuda/flow.cuh"

// B, n, first row, far into the stream, shift
static void run_path(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0];
    size_t n = v[1], size = B * n, shift = v[4];
    uint64_t seed = 0x123456789abcdefull, step = ((uint64_t)1 << 40) + 17, first = v[2];
    if (v[3]) first += (uint64_t)1 << 33; // elements beyond 2^32
    tensor<float> x1 = shifted(random_gradient(size + shift), shift), t = random_gradient(B);
    tensor<float> u = shifted(output_s(size + shift), shift);
    tensor<floatX> xt = shifted(output(size + shift), shift);
    for (int b = 0; b < B; b++) set_value(t, b, b == 0 ? 0 : b == 1 ? 1 : 0.5 + 0.5 * test_uniform());
    flow_path(xt.dev, u.dev, x1.dev, t.dev, B, n, seed, RANDOM_NOISE, step, first, s);
    cpu::flow_path(xt.ref, u.ref, x1.ref, t.ref, B, n, seed, RANDOM_NOISE, step, first, 0);
    check_tensor("xt", xt, TOLERANCE_X);
    check_tensor("u", u, TOLERANCE_S);
    free_tensors();
}

static const double SCALE_MSE = 0.7, SCALE_COSINE = 1.3;

// The error of the position that is worst: gradients of positions at the clamp are 1e8 times those of the others.
static void check_positions(tensor<floatX> dv, int C) {
    for (size_t at = 0; at < dv.n; at += C) {
        tensor<floatX> position = {(size_t)C, dv.ref + at, dv.dev + at};
        check_tensor("dv of a position", position, TOLERANCE_X);
    }
}

static void compare_loss(stream_t s, tensor<floatX> dv, tensor<floatX> v, tensor<float> u, tensor<float> weight, int B,
                         int HW, int C) {
    tensor<float> mse = output_s(B), cosine = output_s(B);
    flow_loss(mse.dev, cosine.dev, dv.dev, v.dev, u.dev, weight.dev, SCALE_MSE, SCALE_COSINE, B, HW, C, s);
    cpu::flow_loss(mse.ref, cosine.ref, dv.ref, v.ref, u.ref, weight.ref, SCALE_MSE, SCALE_COSINE, B, HW, C, 0);
    check_tensor("mse", mse, TOLERANCE_S);
    check_tensor("cosine", cosine, TOLERANCE_S);
    if (dv.dev) check_tensor("dv", dv, TOLERANCE_X);
}

// B, HW, C, shift
static void run_loss(stream_t s, void* context) {
    const int* z = ((sizes_t*)context)->v;
    int B = z[0], HW = z[1], C = z[2];
    size_t n = (size_t)B * HW * C, shift = z[3];
    tensor<floatX> v = shifted(random_input(n + shift), shift), dv = shifted(output(n + shift), shift);
    tensor<float> u = shifted(random_gradient(n + shift), shift);
    compare_loss(s, dv, v, u, {0, NULL, NULL}, B, HW, C);
    compare_loss(s, dv, v, u, random_gradient(B), B, HW, C);
    compare_loss(s, {0, NULL, NULL}, v, u, {0, NULL, NULL}, B, HW, C);
    free_tensors();
}

// B, HW, C. The first positions of v: short, above the clamp, below it, so far below that squares vanish in fp32, 0; of
// u the same, at the next positions. Then v = 0 everywhere, as at the first step of a training.
static void run_corners(stream_t s, void* context) {
    const int* z = ((sizes_t*)context)->v;
    int B = z[0], HW = z[1], C = z[2];
    size_t n = (size_t)B * HW * C;
    const double lengths[6] = {1e-3, 3e-8, 1e-9, 1e-15, 1e-30, 0};
    tensor<floatX> v = random_input(n), dv = output(n), first = output(n);
    tensor<float> u = random_gradient(n);
    for (int i = 0; i < 6 * C; i++) set_value(v, i, lengths[i / C] * v.ref[i]);
    for (int i = 0; i < 6 * C; i++) set_value(u, 6 * C + i, lengths[i / C] * u.ref[6 * C + i]);
    for (int c = 0; c < C; c++) set_value(v, 12 * C + c, 0), set_value(u, 12 * C + c, 0);
    compare_loss(s, dv, v, u, {0, NULL, NULL}, B, HW, C);
    for (int c = 0; c < C; c++) { // where both are 0 there is no gradient
        floatX value;
        copy_to_host(&value, dv.dev + 12 * C + c, sizeof value, 0);
        check((float)value == 0, "dv is 0 where u and v are");
        set_value(dv, 12 * C + c, 1), dv.ref[12 * C + c] = 1;
    }
    check_positions(dv, C);
    for (size_t i = 0; i < n; i++) v.ref[i] = 0;
    upload(v);
    compare_loss(s, first, v, u, {0, NULL, NULL}, B, HW, C);
    free_tensors();
}

// B, HW, C, channels, shift, OC - C. The last image has w = 1, and a null from which cond could not be had back.
static void run_guide(stream_t s, void* context) {
    const int* z = ((sizes_t*)context)->v;
    int B = z[0], HW = z[1], C = z[2], channels = z[3], OC = C + z[5];
    size_t n = (size_t)B * HW * C, N = (size_t)B * HW * OC, shift = z[4];
    tensor<floatX> cond = shifted(random_input(N + shift), shift), null = shifted(random_input(N + shift), shift);
    tensor<float> out = shifted(output_s(n + shift), shift), plain = shifted(output_s(n + shift), shift);
    tensor<float> w = random_gradient(B, 5);
    for (size_t i = N - HW * OC; i < N; i++) set_value(null, i, 1e30);
    set_value(w, B - 1, 1);
    flow_guide(out.dev, cond.dev, null.dev, w.dev, channels, B, HW, C, OC, s);
    cpu::flow_guide(out.ref, cond.ref, null.ref, w.ref, channels, B, HW, C, OC, 0);
    check_tensor("out", out, TOLERANCE_S);
    tensor<float> last = {(size_t)HW * C, out.ref + n - HW * C, out.dev + n - HW * C};
    check_tensor("out where w is 1", last, 0);
    flow_guide(plain.dev, cond.dev, nullptr, nullptr, channels, B, HW, C, OC, s);
    cpu::flow_guide(plain.ref, cond.ref, NULL, NULL, channels, B, HW, C, OC, 0);
    check_tensor("out without null", plain, 0);
    free_tensors();
}

// B, HW, C, shift, OC - C. The last image is cond itself, and stays.
static void run_energy(stream_t s, void* context) {
    const int* z = ((sizes_t*)context)->v;
    int B = z[0], HW = z[1], C = z[2], OC = C + z[4];
    size_t n = (size_t)HW * C, shift = z[3];
    tensor<floatX> cond = random_input((size_t)B * HW * OC);
    tensor<float> out = shifted(random_gradient(B * n + shift, 3), shift);
    for (size_t i = (B - 1) * n; i < B * n; i++) set_value(out, i, cond.ref[i / C * OC + i % C]);
    flow_guide_energy(out.dev, cond.dev, B, HW, C, OC, s);
    cpu::flow_guide_energy(out.ref, cond.ref, B, HW, C, OC, 0);
    check_tensor("out", out, TOLERANCE_S);
    tensor<float> last = {n, out.ref + (B - 1) * n, out.dev + (B - 1) * n};
    check_tensor("out that is cond", last, 0);
    free_tensors();
}

// B, HW, C, with noise and without, and with one variance for all.
static void run_diffusion_step(stream_t s, void* context) {
    const int* z = ((sizes_t*)context)->v;
    int B = z[0], HW = z[1], C = z[2];
    size_t n = (size_t)B * HW * C;
    tensor<float> x = random_gradient(n), out = random_gradient(2 * n), noise = random_gradient(n);
    diffusion_step(x.dev, out.dev, noise.dev, 1.01, -0.1, -9, -4, B, HW, C, 2 * C, s);
    cpu::diffusion_step(x.ref, out.ref, noise.ref, 1.01, -0.1, -9, -4, B, HW, C, 2 * C, 0);
    check_tensor("x", x, TOLERANCE_S);
    diffusion_step(x.dev, out.dev, nullptr, 0.99, -0.3, 0, 0, B, HW, C, 2 * C, s);
    cpu::diffusion_step(x.ref, out.ref, nullptr, 0.99, -0.3, 0, 0, B, HW, C, 2 * C, 0);
    check_tensor("x without noise", x, TOLERANCE_S);
    diffusion_step(x.dev, out.dev, noise.dev, 0.97, 0.2, -3, 0, B, HW, C, C, s);
    cpu::diffusion_step(x.ref, out.ref, noise.ref, 0.97, 0.2, -3, 0, B, HW, C, C, 0);
    check_tensor("x with one variance", x, TOLERANCE_S);
    free_tensors();
}

// B, n, shift. All numbers of stages; the second and the fifth have coefficient 0 and hold NaN.
static void run_combine(stream_t s, void* context) {
    const int* z = ((sizes_t*)context)->v;
    int B = z[0];
    size_t n = z[1], size = B * n, shift = z[2];
    for (int stages = 1; stages <= FLOW_STAGES; stages++) {
        tensor<float> x = shifted(random_gradient(size + shift), shift), out = shifted(output_s(size + shift), shift);
        tensor<float> k = shifted(random_gradient(stages * size + shift), shift), h = random_gradient(B);
        double a[FLOW_STAGES];
        for (int i = 0; i < stages; i++) {
            a[i] = i == 1 || i == 4 ? 0 : (double)(float)test_normal();
            for (size_t j = 0; a[i] == 0 && j < size; j++) set_value(k, i * size + j, NAN);
        }
        flow_combine(out.dev, x.dev, k.dev, h.dev, a, stages, B, n, s);
        cpu::flow_combine(out.ref, x.ref, k.ref, h.ref, a, stages, B, n, 0);
        check_tensor("out", out, TOLERANCE_S);
        flow_combine(x.dev, x.dev, k.dev, h.dev, a, stages, B, n, s);
        cpu::flow_combine(x.ref, x.ref, k.ref, h.ref, a, stages, B, n, 0);
        check_tensor("in place", x, TOLERANCE_S);
        free_tensors();
    }
}

// N, C, shift
static void run_denormalise(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int C = v[1];
    size_t N = v[0], shift = v[2];
    tensor<float> x = random_gradient(N * C), mean = random_gradient(C), std = random_gradient(C);
    tensor<floatX> z = shifted(output(N * C + shift), shift);
    latent_denormalise(z.dev, x.dev, mean.dev, std.dev, N, C, s);
    cpu::latent_denormalise(z.ref, x.ref, mean.ref, std.ref, N, C, 0);
    check_tensor("z", z, TOLERANCE_X);
    free_tensors();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    test_shapes(s, "flow_path", run_path, {{3, 4096, 0}});
    test_shapes(s, "flow_path, rows that begin inside a four", run_path, {{3, 1031, 5}});
    test_shapes(s, "flow_path, rows that begin at half a pack", run_path, {{3, 1028, 5}});
    test_shapes(s, "flow_path, one value", run_path, {{3, 1, 2}});
    test_shapes(s, "flow_path, far into the stream", run_path, {{3, 40, 1, 1}});
    test_shapes(s, "flow_path, prime and far", run_path, {{3, 37, 1, 1}});
    test_shapes(s, "flow_path, shifted", run_path, {{2, 64, 1, 0, 1}});
    test_shapes(s, "flow_loss (256, 32)", run_loss, {{2, 256, 32}});
    test_shapes(s, "flow_loss (256, 64), more than one step", run_loss, {{1, 256, 64}});
    test_shapes(s, "flow_loss (64, 16)", run_loss, {{3, 64, 16}});
    test_shapes(s, "flow_loss (1100, 8), more than one step", run_loss, {{1, 1100, 8}});
    test_shapes(s, "flow_loss, channels that leave a gap", run_loss, {{2, 13, 24}});
    test_shapes(s, "flow_loss, more channels than a warp's", run_loss, {{2, 5, 264}});
    test_shapes(s, "flow_loss, many channels, prime", run_loss, {{1, 3, 523}});
    test_shapes(s, "flow_loss, primes", run_loss, {{2, 7, 5}});
    test_shapes(s, "flow_loss, one channel", run_loss, {{3, 7, 1}});
    test_shapes(s, "flow_loss, one position", run_loss, {{5, 1, 2}});
    test_shapes(s, "flow_loss, shifted", run_loss, {{3, 11, 32, 1}});
    test_shapes(s, "flow_loss, velocities and targets at the clamp", run_corners, {{2, 16, 32}});
    test_shapes(s, "flow_loss, the same, primes", run_corners, {{1, 17, 11}});
    test_shapes(s, "flow_guide, three channels", run_guide, {{3, 64, 32, 3}});
    test_shapes(s, "flow_guide, all channels", run_guide, {{3, 64, 16, 16}});
    test_shapes(s, "flow_guide, eleven channels", run_guide, {{2, 9, 24, 11}});
    test_shapes(s, "flow_guide, no channel", run_guide, {{2, 9, 16, 0}});
    test_shapes(s, "flow_guide, primes", run_guide, {{3, 17, 5, 3}});
    test_shapes(s, "flow_guide, shifted", run_guide, {{2, 9, 16, 3, 1}});
    test_shapes(s, "flow_guide, one value", run_guide, {{2, 1, 1, 3}});
    test_shapes(s, "flow_guide, half of the output", run_guide, {{2, 9, 16, 3, 0, 16}});
    test_shapes(s, "flow_guide, 4 of 8 channels", run_guide, {{3, 17, 4, 3, 0, 4}});
    test_shapes(s, "flow_guide_energy", run_energy, {{3, 256, 32}});
    test_shapes(s, "flow_guide_energy, primes", run_energy, {{2, 17, 5}});
    test_shapes(s, "flow_guide_energy, shifted, half of the output", run_energy, {{2, 9, 16, 1, 16}});
    test_shapes(s, "flow_guide_energy, one value", run_energy, {{2, 1, 1}});
    test_shapes(s, "diffusion_step", run_diffusion_step, {{3, 64, 4}});
    test_shapes(s, "diffusion_step, primes", run_diffusion_step, {{3, 17, 5}});
    test_shapes(s, "flow_combine", run_combine, {{3, 1024}});
    test_shapes(s, "flow_combine, prime", run_combine, {{3, 257}});
    test_shapes(s, "flow_combine, shifted", run_combine, {{2, 64, 1}});
    test_shapes(s, "flow_combine, one value", run_combine, {{2, 1}});
    test_shapes(s, "latent_denormalise", run_denormalise, {{256, 32}});
    test_shapes(s, "latent_denormalise, primes", run_denormalise, {{131, 7}});
    test_shapes(s, "latent_denormalise, shifted", run_denormalise, {{17, 16, 1}});
    test_shapes(s, "latent_denormalise, one value", run_denormalise, {{1, 1}});
    device_close(s);
    return test_finish();
}
