// kernels_optimizer.cu: common/cuda/optimizer.cuh against the reference: sums of squares, adaptive weights, scaled
// sums, Adam with its averages, in place, and at pointers that no 16-byte access may use.
// defines: random_input, random_gradient, output_s, check_tensor, for_each_shape; the operations, the reference's as
// cpu::
#include "tests/kernel.h"
// the shipped file
#include "common/cuda/optimizer.cuh"

// Arithmetic in fp32 of a few terms, of constants that are computed in double on both sides.
#define TOLERANCE_STEP 1e-6

static const size_t sizes[] = {0, 1, 7, 1023, 1024, 8193, 20011};

// ---------------------------------------------------------------------------------------------------------------------
// Norms and adaptive weights

static void run_sum_squares(stream_t s, void*) {
    for (int groups = 1; groups <= 3; groups += 2) {
        for (size_t n : sizes) {
            tensor<float> x = random_gradient(groups * n), out = output_s(groups);
            sum_squares(out.dev, x.dev, groups, n, s);
            cpu::sum_squares(out.ref, x.ref, groups, n, 0);
            check_tensor("sum", out, TOLERANCE_S);
            free_tensors();
        }
    }
}

// More than a million values, also from a pointer that is no multiple of 16 bytes: the same bits, since the tree is the
// same.
static void run_sum_squares_large(stream_t s, void*) {
    size_t n = 1300001;
    tensor<float> x = random_gradient(n), moved = output_s(n + 1), out = output_s(2);
    copy_on_device(moved.dev + 1, x.dev, n * sizeof(float), s);
    sum_squares(out.dev, x.dev, 1, n, s);
    sum_squares(out.dev + 1, moved.dev + 1, 1, n, s);
    cpu::sum_squares(out.ref, x.ref, 1, n, 0);
    out.ref[1] = out.ref[0];
    check_tensor("sum", out, 1e-6);
    float bits[2];
    copy_to_host(bits, out.dev, sizeof bits, 0);
    check(bits[0] == bits[1], "the same sum from an odd address");
    free_tensors();
}

// The second kernel of every sum, with more pieces than it has threads.
static void run_finish_sums(stream_t s, void*) {
    const unsigned counts[] = {1, 33, 1024, 2500};
    for (unsigned pieces : counts) {
        tensor<float> partial = random_gradient(2 * pieces), out = random_gradient(2), added = random_gradient(2);
        for (int k = 0; k < 2; k++) {
            out.ref[k] = 0;
            for (unsigned i = 0; i < pieces; i++) out.ref[k] += 0.5 * partial.ref[k * pieces + i];
            added.ref[k] += out.ref[k];
        }
        finish_sums(out.dev, partial.dev, 2, pieces, 0.5, WRITE_SUM, s);
        finish_sums(added.dev, partial.dev, 2, pieces, 0.5, ADD_SUM, s);
        check_tensor("sum", out, TOLERANCE_S);
        check_tensor("added sum", added, TOLERANCE_S);
        free_tensors();
    }
}

// The same input in both launch shapes: the same bits.
static void run_sum_squares_bits(stream_t s, void* context) {
    float* of_first_shape = (float*)context;
    size_t n = 20011;
    tensor<float> x = random_gradient(n), out = output_s(1);
    for (size_t i = 0; i < n; i++) x.ref[i] = sin((double)(i * i % 1000));
    upload(x);
    sum_squares(out.dev, x.dev, 1, n, s);
    float sum;
    copy_to_host(&sum, out.dev, sizeof sum, 0);
    if (isnan(*of_first_shape)) *of_first_shape = sum;
    check(sum == *of_first_shape, "the same bits in every launch shape");
    free_tensors();
}

static void run_adaptive_weight(stream_t s, void*) {
    for (int groups = 1; groups <= 70; groups += 23) {
        tensor<float> rec = random_gradient(groups), other = random_gradient(groups);
        tensor<float> omega = output_s(groups), clamped = output_s(groups);
        for (int k = 0; k < groups; k++) {
            rec.ref[k] *= rec.ref[k];
            other.ref[k] *= other.ref[k];
        }
        if (groups > 1) other.ref[1] = 0; // a silent loss
        if (groups > 1) rec.ref[2] = 0;
        upload(rec);
        upload(other);
        adaptive_weight(omega.dev, clamped.dev, rec.dev, other.dev, 0.5, 20, 3, groups, s);
        cpu::adaptive_weight(omega.ref, clamped.ref, rec.ref, other.ref, 0.5, 20, 3, groups, 0);
        check_tensor("omega", omega, TOLERANCE_S);
        check_tensor("clamped", clamped, 0);
        free_tensors();
    }
    tensor<float> rec = output_s(1), other = random_gradient(1), omega = random_gradient(1), clamped = output_s(1);
    adaptive_weight(omega.dev, clamped.dev, rec.dev, other.dev, 0.5, 20, 3, 1, s);
    float value;
    copy_to_host(&value, omega.dev, sizeof value, 0);
    check(isnan(value), "a NaN is not hidden by the clip");
    free_tensors();
}

// ---------------------------------------------------------------------------------------------------------------------
// Scaled sums

static void run_add_scaled(stream_t s, void*) {
    for (int groups = 1; groups <= 3; groups += 2) {
        for (size_t n : sizes) {
            size_t all = groups * n;
            tensor<floatX> a = random_input(all), b = random_input(all), out = output(all);
            tensor<float> omega = random_gradient(groups, 3);
            add_scaled_groups(out.dev, a.dev, b.dev, omega.dev, groups, n, s);
            cpu::add_scaled_groups(out.ref, a.ref, b.ref, omega.ref, groups, n, 0);
            check_tensor("out", out, TOLERANCE_X);
            copy_on_device(out.dev, a.dev, all * sizeof(floatX), s);
            memcpy(out.ref, a.ref, all * sizeof(double));
            add_scaled_groups(out.dev, out.dev, b.dev, omega.dev, groups, n, s);
            cpu::add_scaled_groups(out.ref, out.ref, b.ref, omega.ref, groups, n, 0);
            check_tensor("out, in place of a", out, TOLERANCE_X);
            add_scaled_groups(b.dev, a.dev, b.dev, omega.dev, groups, n, s);
            cpu::add_scaled_groups(b.ref, a.ref, b.ref, omega.ref, groups, n, 0);
            check_tensor("out, in place of b", b, TOLERANCE_X);
            free_tensors();
        }
    }
}

static void run_accumulate_scaled(stream_t s, void*) {
    for (int groups = 1; groups <= 3; groups += 2) {
        for (size_t n : sizes) {
            tensor<float> a = random_gradient(groups * n), b = random_gradient(groups * n);
            tensor<float> omega = random_gradient(groups), out = random_gradient(n);
            for (int twice = 0; twice < 2; twice++) {
                accumulate_scaled_groups(out.dev, a.dev, b.dev, omega.dev, groups, n, s);
                cpu::accumulate_scaled_groups(out.ref, a.ref, b.ref, omega.ref, groups, n, 0);
            }
            check_tensor("out", out, TOLERANCE_S);
            for (int twice = 0; twice < 2; twice++) {
                accumulate_scaled_groups(out.dev, a.dev, nullptr, nullptr, groups, n, s);
                cpu::accumulate_scaled_groups(out.ref, a.ref, NULL, NULL, groups, n, 0);
            }
            check_tensor("out, of a alone", out, TOLERANCE_S);
            free_tensors();
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Adam

// Five steps on values [offset, offset + n) of tensors that are a little longer: what lies around must stay.
static void check_adam(adam_t adam, int same, int averages, size_t offset, size_t n, stream_t s) {
    size_t all = n + 4;
    tensor<floatX> weight = random_input(all);
    tensor<float> master = random_gradient(all), m = random_gradient(all, 0.1), v = random_gradient(all), ema[2];
    for (size_t i = 0; i < all; i++) {
        master.ref[i] = weight.ref[i];
        v.ref[i] *= v.ref[i];
    }
    upload(master);
    upload(v);
    for (int k = 0; k < 2; k++) ema[k] = random_gradient(all);
    floatX* read = same ? (floatX*)(void*)(master.dev + offset) : weight.dev + offset;
    double* read_ref = same ? master.ref + offset : weight.ref + offset;
    for (int step = 0; step < 5; step++, adam.t++) {
        tensor<float> grad = random_gradient(n);
        if (n > 0) grad.ref[step % n] = 0;
        upload(grad);
        adam_update(read, master.dev + offset, m.dev + offset, v.dev + offset,
                    averages > 0 ? ema[0].dev + offset : nullptr, averages > 1 ? ema[1].dev + offset : nullptr,
                    grad.dev, n, adam, s);
        cpu::adam_update(read_ref, master.ref + offset, m.ref + offset, v.ref + offset,
                         averages > 0 ? ema[0].ref + offset : NULL, averages > 1 ? ema[1].ref + offset : NULL, grad.ref,
                         n, adam, 0);
    }
    check_tensor("master", master, TOLERANCE_STEP);
    check_tensor("m", m, TOLERANCE_STEP);
    check_tensor("v", v, TOLERANCE_STEP);
    check_tensor("weight", weight, TOLERANCE_X);
    check_tensor("average 0", ema[0], TOLERANCE_STEP);
    check_tensor("average 1", ema[1], TOLERANCE_STEP);
    free_tensors();
}

static void run_adam(stream_t s, void*) {
    adam_t first = {0.01, 0.9, 0.999, 1e-8, 0.1, 1, {0.5, 0.999}, 1};
    adam_t later = {1e-3, 0.5, 0.9, 1e-8, 0, 1000, {0.9, 0.99}, 0.5};
    for (size_t n : sizes) {
        for (int averages = 0; averages <= 2; averages++) {
            check_adam(n % 2 ? first : later, 0, averages, 0, n, s);
            if (sizeof(floatX) == sizeof(floatS)) check_adam(first, 1, averages, 0, n, s);
        }
    }
    for (size_t offset = 1; offset < 4; offset++) check_adam(first, 0, 2, offset, 2050, s);
}

// An average of beta 0 is the weight, and one that equals the weight stays so.
static void run_averages(stream_t s, void*) {
    size_t n = 2051;
    adam_t adam = {0, 0.9, 0.999, 1e-8, 0, 1, {0, 0.9}, 1};
    tensor<floatX> weight = output(n);
    tensor<float> master = random_gradient(n), m = random_gradient(n), v = random_gradient(n);
    tensor<float> grad = random_gradient(n), copy = output_s(n), constant = output_s(n);
    for (size_t i = 0; i < n; i++) v.ref[i] *= v.ref[i];
    upload(v);
    copy_on_device(constant.dev, master.dev, n * sizeof(float), s);
    adam_update(weight.dev, master.dev, m.dev, v.dev, copy.dev, constant.dev, grad.dev, n, adam, s);
    check_tensor("a step of size 0 leaves the weights", master, 0);
    memcpy(constant.ref, master.ref, n * sizeof(double));
    check_tensor("a constant stays constant", constant, 0);
    copy = random_gradient(n);
    adam.lr = 0.1;
    adam_update(weight.dev, master.dev, m.dev, v.dev, copy.dev, nullptr, grad.dev, n, adam, s);
    float *a = (float*)malloc_check(2 * n * sizeof(float), "values"), *b = a + n;
    copy_to_host(a, master.dev, n * sizeof(float), 0);
    copy_to_host(b, copy.dev, n * sizeof(float), 0);
    check(!memcmp(a, b, n * sizeof(float)), "an average of beta 0 equals the weights");
    free(a);
    free_tensors();
}

static void run_exchange(stream_t s, void*) {
    for (size_t n : sizes) {
        for (size_t offset = 0; offset < 3; offset++) {
            tensor<floatX> weight = random_input(n + 4);
            tensor<float> master = random_gradient(n + 4), other = random_gradient(n + 4);
            exchange_weights(weight.dev + offset, master.dev + offset, other.dev + offset, n, s);
            cpu::exchange_weights(weight.ref + offset, master.ref + offset, other.ref + offset, n, 0);
            check_tensor("weight", weight, TOLERANCE_X);
            check_tensor("master", master, 0);
            check_tensor("other", other, 0);
            if (sizeof(floatX) == sizeof(floatS)) {
                exchange_weights((floatX*)(void*)master.dev, master.dev, other.dev, n, s);
                cpu::exchange_weights(master.ref, master.ref, other.ref, n, 0);
                check_tensor("master that is the weight", master, 0);
                check_tensor("other", other, 0);
            }
            free_tensors();
        }
    }
}

int main(int argc, char** argv) {
    float bits = NAN;
    const struct {
        const char* name;
        void (*run)(stream_t s, void* context);
        void* context;
    } cases[] = {
        {"sum of squares: groups of several pieces", run_sum_squares, NULL},
        {"sum of squares: a million values, odd address", run_sum_squares_large, NULL},
        {"sums of pieces", run_finish_sums, NULL},
        {"sum of squares: the same bits in every launch shape", run_sum_squares_bits, &bits},
        {"adaptive weight: ratio, clip, silent loss, NaN", run_adaptive_weight, NULL},
        {"scaled groups: sum, in place of either", run_add_scaled, NULL},
        {"scaled groups: accumulation, of one or two gradients", run_accumulate_scaled, NULL},
        {"adam: averages, shared memory of the weight, odd addresses", run_adam, NULL},
        {"adam: averages that copy or stay", run_averages, NULL},
        {"exchange of weights", run_exchange, NULL},
    };
    test_begin(argc, argv);
    stream_t s = device_open(0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (!test_case(cases[i].name)) continue;
        for_each_shape(s, cases[i].run, cases[i].context);
        test_end_case();
    }
    device_close(s);
    return test_finish();
}
