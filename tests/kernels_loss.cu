// kernels_loss.cu: the losses of common/cuda/loss.cuh against the reference: values, gradients, the corners of the
// formulas, groups that begin anywhere in memory, sizes from 1 to several blocks.
// defines: random_input, output, check_tensor, for_each_shape; the operations, the reference's as cpu::
#include "tests/kernel.h"
// the shipped file
#include "common/cuda/loss.cuh"

static const double SCALE = 0.7; // of every backward

// Largest magnitude on the device.
template <typename T> static double largest(tensor<T> t) {
    T* host = (T*)malloc_check(t.n * sizeof(T), "a test's tensor");
    copy_to_host(host, t.dev, t.n * sizeof(T), 0);
    double most = 0;
    for (size_t i = 0; i < t.n; i++) most = fabs((double)(float)host[i]) <= most ? most : fabs((double)(float)host[i]);
    free(host);
    return most;
}

// ---------------------------------------------------------------------------------------------------------------------
// L1

static void run_l1(stream_t s, void*) {
    const size_t sizes[] = {1, 35, 1000, 4001};
    channel_affine_t affine = {{2.1, -0.3, 1.7}, {5, 5, 5}};
    for (int B = 1; B <= 3; B += 2) {
        for (size_t HW : sizes) {
            size_t n = B * HW * 3;
            tensor<floatX> xhat = random_input(n), x = random_input(n), dscaled = random_input(n), dxhat = output(n);
            tensor<float> loss = output_s(B);
            set_value(xhat, 1, 0.25); // a corner: the difference is 0
            set_value(x, 1, 0.25);
            l1_forward(loss.dev, xhat.dev, x.dev, B, 3 * HW, s);
            cpu::l1_forward(loss.ref, xhat.ref, x.ref, B, 3 * HW, 0);
            check_tensor("loss", loss, TOLERANCE_S);
            l1_backward(dxhat.dev, xhat.dev, x.dev, dscaled.dev, affine, SCALE, B, HW, s);
            cpu::l1_backward(dxhat.ref, xhat.ref, x.ref, dscaled.ref, affine, SCALE, B, HW, 0);
            check_tensor("dxhat", dxhat, TOLERANCE_X);
            dxhat = output(n);
            l1_backward(dxhat.dev, xhat.dev, x.dev, nullptr, affine, SCALE, B, HW, s);
            cpu::l1_backward(dxhat.ref, xhat.ref, x.ref, NULL, affine, SCALE, B, HW, 0);
            check_tensor("dxhat without the second branch", dxhat, TOLERANCE_X);
            free_tensors();
        }
    }
}

// An image of full size: nearly 200,000 values in one sum.
static void run_l1_image(stream_t s, void*) {
    size_t n = 256 * 256 * 3;
    tensor<floatX> xhat = random_input(n), x = random_input(n, 0.5);
    tensor<float> loss = output_s(1);
    l1_forward(loss.dev, xhat.dev, x.dev, 1, n, s);
    cpu::l1_forward(loss.ref, xhat.ref, x.ref, 1, n, 0);
    check_tensor("loss", loss, 1e-6);
    free_tensors();
}

// ---------------------------------------------------------------------------------------------------------------------
// LPIPS

// A feature map as a ReLU leaves it; `silent` is a position that is zero in all channels, or -1.
static tensor<floatX> feature_map(size_t positions, int C, int silent) {
    tensor<floatX> f = random_input(positions * C);
    for (size_t i = 0; i < f.n; i++) f.ref[i] = f.ref[i] > 0 && (int)(i / C) != silent ? f.ref[i] : 0;
    upload(f);
    return f;
}

static void run_lpips(stream_t s, void*) {
    const int channels[] = {1, 3, 5, 32, 64, 70, 128, 256, 333, 512, LPIPS_MOST_CHANNELS};
    const int sizes[] = {1, 7, 31, 300};
    for (int C : channels) {
        for (int HW : sizes) {
            if (C > 256 && HW == 300) continue;
            int B = HW == 300 ? 2 : 3;
            size_t positions = (size_t)B * HW;
            tensor<floatX> f = feature_map(positions, C, HW > 1 ? 2 : -1);
            tensor<floatX> g = feature_map(positions, C, HW > 1 ? 3 : -1);
            tensor<floatX> weight = random_input(C), df = output(positions * C);
            for (int c = 0; c < C; c++) weight.ref[c] = fabs(weight.ref[c]);
            upload(weight);
            tensor<float> loss = random_gradient(B);
            for (int twice = 0; twice < 2; twice++) {
                lpips_tap_forward(loss.dev, f.dev, g.dev, weight.dev, B, HW, C, s);
                cpu::lpips_tap_forward(loss.ref, f.ref, g.ref, weight.ref, B, HW, C, 0);
            }
            check_tensor("loss", loss, TOLERANCE_S);
            lpips_tap_backward(df.dev, f.dev, g.dev, weight.dev, SCALE, B, HW, C, s);
            cpu::lpips_tap_backward(df.ref, f.ref, g.ref, weight.ref, SCALE, B, HW, C, 0);
            if (C > 1) check_tensor("df", df, TOLERANCE_X);
            else check(largest(df) < 1e-5, "a single channel has no direction"); // u = 1 or 0: the two terms cancel
            free_tensors();
        }
    }
}

// 64 channels, where no 16-byte access is possible: the maps begin one value further.
static void run_lpips_odd_address(stream_t s, void*) {
    int B = 2, HW = 5, C = 64;
    size_t n = (size_t)B * HW * C;
    tensor<floatX> f = random_input(n + 1), g = random_input(n + 1), weight = random_input(C), df = random_input(n + 1);
    tensor<float> loss = random_gradient(B);
    set_value(df, 0, 0); // stays so
    lpips_tap_forward(loss.dev, f.dev + 1, g.dev + 1, weight.dev, B, HW, C, s);
    cpu::lpips_tap_forward(loss.ref, f.ref + 1, g.ref + 1, weight.ref, B, HW, C, 0);
    check_tensor("loss", loss, TOLERANCE_S);
    lpips_tap_backward(df.dev + 1, f.dev + 1, g.dev + 1, weight.dev, SCALE, B, HW, C, s);
    cpu::lpips_tap_backward(df.ref + 1, f.ref + 1, g.ref + 1, weight.ref, SCALE, B, HW, C, 0);
    check_tensor("df", df, TOLERANCE_X);
    free_tensors();
}

// ---------------------------------------------------------------------------------------------------------------------
// The adversarial pair, and the semantic loss in its plain variant

static const size_t group_sizes[] = {1, 7, 900, 8192, 20011};

static void run_group_mean(stream_t s, void*) {
    for (int groups = 1; groups <= 3; groups += 2) {
        for (size_t n : group_sizes) {
            tensor<floatX> x = random_input(groups * n, 1, 0.5), dx = output(groups * n);
            tensor<float> mean = output_s(groups);
            group_mean_forward(mean.dev, x.dev, groups, n, s);
            cpu::group_mean_forward(mean.ref, x.ref, groups, n, 0);
            check_tensor("mean", mean, TOLERANCE_S);
            group_mean_backward(dx.dev, -SCALE, groups, n, s);
            cpu::group_mean_backward(dx.ref, -SCALE, groups, n, 0);
            check_tensor("dx", dx, TOLERANCE_X);
            free_tensors();
        }
    }
}

static void run_hinge(stream_t s, void*) {
    for (int groups = 1; groups <= 3; groups += 2) {
        for (size_t n : group_sizes) {
            tensor<floatX> real = random_input(groups * n), fake = random_input(groups * n);
            tensor<floatX> dreal = output(groups * n), dfake = output(groups * n);
            tensor<float> loss = output_s(groups);
            if (n > 1) {
                set_value(real, 1, 1); // the corners
                set_value(fake, 2, -1);
            }
            hinge_forward(loss.dev, real.dev, fake.dev, groups, n, s);
            cpu::hinge_forward(loss.ref, real.ref, fake.ref, groups, n, 0);
            check_tensor("loss", loss, TOLERANCE_S);
            hinge_backward(dreal.dev, dfake.dev, real.dev, fake.dev, SCALE, groups, n, s);
            cpu::hinge_backward(dreal.ref, dfake.ref, real.ref, fake.ref, SCALE, groups, n, 0);
            check_tensor("dreal", dreal, TOLERANCE_X);
            check_tensor("dfake", dfake, TOLERANCE_X);
            free_tensors();
        }
    }
}

static void run_semantic_l2(stream_t s, void*) {
    for (int groups = 1; groups <= 3; groups += 2) {
        for (size_t n : group_sizes) {
            tensor<floatX> z = random_input(groups * n), z0 = random_input(groups * n), dz = output(groups * n);
            tensor<float> loss = output_s(groups);
            semantic_l2_forward(loss.dev, z.dev, z0.dev, groups, n, s);
            cpu::semantic_l2_forward(loss.ref, z.ref, z0.ref, groups, n, 0);
            check_tensor("loss", loss, TOLERANCE_S);
            semantic_l2_backward(dz.dev, z.dev, z0.dev, SCALE, groups, n, s);
            cpu::semantic_l2_backward(dz.ref, z.ref, z0.ref, SCALE, groups, n, 0);
            check_tensor("dz", dz, TOLERANCE_X);
            free_tensors();
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Semantic preservation by the cosine

static void check_cosine(tensor<floatX> z, tensor<floatX> z0, int groups, size_t rows, int C, stream_t s) {
    tensor<floatX> dz = output(z.n);
    tensor<float> loss = output_s(groups);
    semantic_cosine_forward(loss.dev, z.dev, z0.dev, groups, rows, C, s);
    cpu::semantic_cosine_forward(loss.ref, z.ref, z0.ref, groups, rows, C, 0);
    semantic_cosine_backward(dz.dev, z.dev, z0.dev, SCALE, groups, rows, C, s);
    cpu::semantic_cosine_backward(dz.ref, z.ref, z0.ref, SCALE, groups, rows, C, 0);
    if (C > 1) {
        check_tensor("loss", loss, TOLERANCE_S);
        check_tensor("dz", dz, TOLERANCE_X);
        return;
    }
    double difference = 0; // a single channel: cos is 1 or -1, and the gradient 0
    float host[3];
    copy_to_host(host, loss.dev, groups * sizeof(float), 0);
    for (int k = 0; k < groups; k++) difference = fmax(difference, fabs(host[k] - loss.ref[k]));
    check(difference < 1e-6 && largest(dz) < 1e-4, "a single channel");
}

static void run_cosine(stream_t s, void*) {
    const int channels[] = {1, 3, 5, 32, 64, 70};
    const size_t sizes[] = {1, 33, 70};
    for (int groups = 1; groups <= 3; groups += 2) {
        for (int C : channels) {
            for (size_t rows : sizes) {
                size_t n = groups * rows * C;
                check_cosine(random_input(n), random_input(n), groups, rows, C, s);
                free_tensors();
            }
        }
    }
}

// Where training starts: z is near z0, up to 1%, and 1 - cos is 1e-4. In bf16 more, by the rounding of the inputs. A
// unit row has fp32 errors of 1e-7, so that z - z0, and with it the loss and the gradient, keep 5 digits.
static void run_cosine_near(stream_t s, void*) {
    size_t n = 2 * 50 * 64;
    tensor<floatX> z = random_input(n), z0 = random_input(n);
    for (size_t i = 0; i < n; i++) z.ref[i] = z0.ref[i] + 0.01 * test_normal();
    upload(z);
    check_cosine(z, z0, 2, 50, 64, s);
    tensor<floatX> dz = output(n);
    tensor<float> loss = output_s(2);
    semantic_cosine_forward(loss.dev, z.dev, z.dev, 2, 50, 64, s);
    semantic_cosine_backward(dz.dev, z.dev, z.dev, SCALE, 2, 50, 64, s);
    check(largest(loss) == 0 && largest(dz) == 0, "equal rows have distance 0 and gradient 0, exactly");
    free_tensors();
}

// Rows below the floor of the norm (their gradients are enormous, so each kind by itself).
static void run_cosine_floor(stream_t s, void*) {
    int C = 32;
    for (int kind = 0; kind < 3; kind++) {
        double of_z = kind == 1 ? 1 : 1e-10, of_z0 = kind == 0 ? 1 : 1e-10;
        check_cosine(random_input(C, of_z), random_input(C, of_z0), 1, 1, C, s);
        free_tensors();
    }
    tensor<floatX> z = random_input(C, 0), z0 = random_input(C);
    check_cosine(z, z0, 1, 1, C, s);
    free_tensors();
}

// ---------------------------------------------------------------------------------------------------------------------
// Posterior

// lambda of the first two values is set to these.
static void check_posterior(double first, double second, int B, int T, int C, stream_t s) {
    size_t n = (size_t)B * T * C;
    tensor<floatX> moments = random_input(2 * n), dz = random_input(n);
    tensor<float> noise = random_gradient(n);
    set_value(moments, C, first);
    if (C > 1) set_value(moments, C + 1, second);
    for (int with_noise = 0; with_noise < 2; with_noise++) {
        tensor<floatX> z = output(n), dmoments = output(2 * n);
        tensor<float> kl = output_s(B);
        posterior_forward(z.dev, kl.dev, moments.dev, with_noise ? noise.dev : nullptr, B, T, C, s);
        cpu::posterior_forward(z.ref, kl.ref, moments.ref, with_noise ? noise.ref : NULL, B, T, C, 0);
        check_tensor("z", z, TOLERANCE_X);
        check_tensor("kl", kl, TOLERANCE_S);
        posterior_backward(dmoments.dev, dz.dev, moments.dev, with_noise ? noise.dev : nullptr, SCALE, B, T, C, s);
        cpu::posterior_backward(dmoments.ref, dz.ref, moments.ref, with_noise ? noise.ref : NULL, SCALE, B, T, C, 0);
        check_tensor("dmoments", dmoments, TOLERANCE_X);
    }
    free_tensors();
}

static void run_posterior(stream_t s, void*) {
    const int channels[] = {1, 3, 5, 32, 70};
    for (int C : channels) {
        check_posterior(0.5, -0.5, 1, 1, C, s);
        check_posterior(0.5, -40, 3, 37, C, s);
        check_posterior(0.01, 25, 2, 5, C, s); // its variance of e^20 drowns the others
    }
}

// kl is (mu^2 + lambda^2 / 2) / 2 for small lambda, of which 1 + lambda - sigma^2 must leave something.
static void run_posterior_small(stream_t s, void*) {
    int C = 32, T = 9;
    tensor<floatX> moments = random_input(2 * T * C, 1e-3), z = output(T * C);
    tensor<float> kl = output_s(1);
    posterior_forward(z.dev, kl.dev, moments.dev, nullptr, 1, T, C, s);
    cpu::posterior_forward(z.ref, kl.ref, moments.ref, NULL, 1, T, C, 0);
    check_tensor("kl", kl, 1e-4); // expm1(lambda) - lambda has an error of 6e-8 lambda, beside lambda^2 / 2
    free_tensors();
}

// ---------------------------------------------------------------------------------------------------------------------
// VF

static void check_vf(double margin_distance, double margin_cosine, int B, int N, int C, int chunk, stream_t s) {
    size_t n = (size_t)B * N * C;
    tensor<floatX> z = random_input(n), teacher = random_input(n), dz = output(n);
    if (N > 2) {
        for (int c = 0; c < C; c++) {
            set_value(z, 1 * C + c, 1e-13 * test_normal()); // below the floor of the norm
            set_value(teacher, 2 * C + c, z.ref[2 * C + c]);
        }
    }
    tensor<float> loss = output_s(B / chunk);
    vf_forward(loss.dev, z.dev, teacher.dev, margin_distance, margin_cosine, B, N, C, chunk, s);
    cpu::vf_forward(loss.ref, z.ref, teacher.ref, margin_distance, margin_cosine, B, N, C, chunk, 0);
    check_tensor("loss", loss, TOLERANCE_S);
    vf_backward(dz.dev, z.dev, teacher.dev, margin_distance, margin_cosine, SCALE, B, N, C, chunk, s);
    cpu::vf_backward(dz.ref, z.ref, teacher.ref, margin_distance, margin_cosine, SCALE, B, N, C, chunk, 0);
    if (C == 1 && N <= 2) check(largest(dz) < 1e-5, "a single channel has no direction");
    else check_tensor("dz", dz, TOLERANCE_X);
    // the row below the floor has a gradient of 1e12 times the others': these by themselves
    for (int c = 0; N > 2 && c < C; c++) {
        for (int b = 0; b < B; b++) set_value(dz, ((size_t)b * N + 1) * C + c, 0);
    }
    if (C > 1) check_tensor("dz of the other rows", dz, TOLERANCE_X);
    free_tensors();
}

static void run_vf(stream_t s, void*) {
    const int channels[] = {1, 3, 5, 64, 70};
    for (int C : channels) {
        check_vf(0.25, 0.5, 1, 1, C, 1, s);
        check_vf(0.1, 0.5, 4, 7, C, 2, s);
    }
    check_vf(0.05, 1.5, 2, 70, 5, 1, s);
    check_vf(0.05, 0, 1, 130, 70, 1, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Cross entropy

static void run_cross_entropy(stream_t s, void*) {
    const int classes[] = {1, 2, 3, 10, 70, 1000};
    for (int C : classes) {
        for (double scale = 1; scale <= 30; scale += 29) {
            int B = 5, host[5];
            tensor<floatX> logits = random_input((size_t)B * C, scale), dlogits = output((size_t)B * C);
            tensor<float> loss = output_s(B);
            for (int b = 0; b < B; b++) host[b] = b ? (int)((test_uniform() + 1) / 2 * C) : C - 1;
            int* labels = (int*)device_malloc(sizeof host, "labels");
            copy_to_device(labels, host, sizeof host, 0);
            cross_entropy(loss.dev, dlogits.dev, logits.dev, labels, SCALE, B, C, s);
            cpu::cross_entropy(loss.ref, dlogits.ref, logits.ref, host, SCALE, B, C, 0);
            check_tensor("loss", loss, TOLERANCE_S);
            check_tensor("dlogits", dlogits, TOLERANCE_X);
            loss = output_s(B);
            cross_entropy(loss.dev, nullptr, logits.dev, labels, SCALE, B, C, s);
            cpu::cross_entropy(loss.ref, NULL, logits.ref, host, SCALE, B, C, 0);
            check_tensor("loss alone", loss, TOLERANCE_S);
            loss = output_s(B);
            cross_entropy(loss.dev, logits.dev, logits.dev, labels, SCALE, B, C, s);
            cpu::cross_entropy(loss.ref, logits.ref, logits.ref, host, SCALE, B, C, 0);
            check_tensor("loss in place", loss, TOLERANCE_S);
            check_tensor("dlogits in place", logits, TOLERANCE_X);
            device_free(labels);
            free_tensors();
        }
    }
}

int main(int argc, char** argv) {
    static const struct {
        const char* name;
        void (*run)(stream_t s, void* context);
    } cases[] = {
        {"l1: value, gradient with and without a second branch, sign(0)", run_l1},
        {"l1: an image of full size", run_l1_image},
        {"lpips: every number of lanes, zero vectors, accumulation", run_lpips},
        {"lpips: odd address", run_lpips_odd_address},
        {"mean of groups", run_group_mean},
        {"hinge", run_hinge},
        {"semantic l2", run_semantic_l2},
        {"semantic cosine", run_cosine},
        {"semantic cosine: near z0, and at z0", run_cosine_near},
        {"semantic cosine: rows below the floor", run_cosine_floor},
        {"posterior: with noise and without, clamped variances", run_posterior},
        {"posterior: near the prior", run_posterior_small},
        {"vf: one tile and several, chunks, a latent below the floor", run_vf},
        {"cross entropy: with gradient, without, in place", run_cross_entropy},
    };
    test_begin(argc, argv);
    stream_t s = device_open(0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (!test_case(cases[i].name)) continue;
        for_each_shape(s, cases[i].run, NULL);
        test_end_case();
    }
    device_close(s);
    return test_finish();
}
