// optimizer.cuh: from gradients to weights: norms, adaptive weights that balance two losses, Adam, moving averages.
// Formulas: dev/cpu/optimizer.h.
//
// All of it is bound by memory. A thread owns one pack of 16 bytes of each fp32 array, four values, reads all that it
// needs at once, and writes everything once. At full size (348.62 M trained parameters) and 3 TB/s:
//
//   sum_squares       4 bytes a value                                                            1.4 GB    0.46 ms
//   adam_update      30 bytes a value: gradient 4, master, m and v 8 each, bf16 weight 2        10.5 GB    3.5 ms
//                    46 with two averages of 8 each                                             16.0 GB    5.3 ms
//   exchange_weights 18 bytes a value                                                            6.3 GB    2.1 ms
//
// The adaptive weight stays on the device: its norms, the ratio and the scaled sum are kernels one behind the other,
// and the host waits for none. Look next at common/training/ema.h for the betas of the averages.
#pragma once
// defines: reduce_groups, load_upto, store_upto, pack_begin, pack_blocks; launch, pack
#include "common/cuda/reduce.cuh"
// defines: adam_t; the contract of each function below
#include "common/ops.h"

// ---------------------------------------------------------------------------------------------------------------------
// Norms and adaptive weights

__device__ static inline float square_term(float a, float) { return a * a; }

void sum_squares(floatS* out,     // (groups)
                 const floatS* x, // (groups, n)
                 int groups, size_t n, stream_t s) {
    reduce_groups<square_term, 1>(out, x, x, 1, groups, n, s);
}

#define ADAPTIVE_WEIGHT_EPS 1e-4f // VQGAN's; it is felt only where the other loss hardly pulls
enum { ADAPTIVE_WEIGHT_THREADS = 32 };

// A thread a group. The comparison lets a NaN pass into omega, where the training loop finds it.
__global__ static void adaptive_weight_kernel(float* omega, float* clamped, // (groups)
                                              const float* squares_rec,     // (groups)
                                              const float* squares_other,   // (groups)
                                              float weight, float max_ratio, float gradient_scale, int groups) {
    int k = (int)(blockIdx.x * ADAPTIVE_WEIGHT_THREADS + threadIdx.x);
    if (k >= groups) return;
    float norm_rec = sqrtf(squares_rec[k]) * gradient_scale;
    float norm_other = sqrtf(squares_other[k]) * gradient_scale;
    float ratio = norm_rec / (norm_other + ADAPTIVE_WEIGHT_EPS);
    bool over = ratio > max_ratio;
    omega[k] = weight * (over ? max_ratio : ratio);
    clamped[k] = over ? 1 : 0;
}

void adaptive_weight(floatS* omega, floatS* clamped,  // (groups)
                     const floatS* squares_rec,       // (groups)
                     const floatS* squares_other,     // (groups)
                     double weight, double max_ratio, double gradient_scale, int groups, stream_t s) {
    unsigned grid = blocks_for((size_t)groups, ADAPTIVE_WEIGHT_THREADS);
    launch<adaptive_weight_kernel>(grid, ADAPTIVE_WEIGHT_THREADS, 0, s, omega, clamped, squares_rec, squares_other,
                                   (float)weight, (float)max_ratio, (float)gradient_scale, groups);
}

// A pack of every group a thread. 3 passes.
__global__ static void add_scaled_groups_kernel(floatX* out,         // (groups, n)
                                                const floatX* a,     // (groups, n)
                                                const floatX* b,     // (groups, n)
                                                const floatS* omega, // (groups)
                                                int groups, size_t n) {
    size_t i = pack_begin<floatX>();
    if (i >= n) return;
    for (int k = 0; k < groups; k++) {
        size_t at = k * n + i;
        pack<floatX> x = load_upto(a + at, n - i), y = load_upto(b + at, n - i), sum;
        for (int j = 0; j < pack<floatX>::size; j++) sum[j] = (floatX)((float)x[j] + omega[k] * (float)y[j]);
        store_upto(out + at, sum, n - i);
    }
}

void add_scaled_groups(floatX* out,         // (groups, n)
                       const floatX* a,     // (groups, n)
                       const floatX* b,     // (groups, n)
                       const floatS* omega, // (groups)
                       int groups, size_t n, stream_t s) {
    if (n == 0) return;
    launch<add_scaled_groups_kernel>(pack_blocks<floatX>(n), PACK_THREADS, 0, s, out, a, b, omega, groups, n);
}

// A pack a thread, which adds the groups in order.
__global__ static void accumulate_scaled_groups_kernel(floatS* out,         // (n) +=
                                                       const floatS* a,     // (groups, n)
                                                       const floatS* b,     // (groups, n) or NULL
                                                       const floatS* omega, // (groups) or NULL
                                                       int groups, size_t n) {
    size_t i = pack_begin<floatS>();
    if (i >= n) return;
    pack<floatS> sum = load_upto(out + i, n - i);
    for (int k = 0; k < groups; k++) {
        pack<floatS> x = load_upto(a + k * n + i, n - i);
        for (int j = 0; j < pack<floatS>::size; j++) sum[j] += x[j];
        if (!b) continue;
        x = load_upto(b + k * n + i, n - i);
        for (int j = 0; j < pack<floatS>::size; j++) sum[j] += omega[k] * x[j];
    }
    store_upto(out + i, sum, n - i);
}

void accumulate_scaled_groups(floatS* out,         // (n) +=
                              const floatS* a,     // (groups, n)
                              const floatS* b,     // (groups, n) or NULL
                              const floatS* omega, // (groups) or NULL
                              int groups, size_t n, stream_t s) {
    if (n == 0) return;
    launch<accumulate_scaled_groups_kernel>(pack_blocks<floatS>(n), PACK_THREADS, 0, s, out, a, b, omega, groups, n);
}

// ---------------------------------------------------------------------------------------------------------------------
// Adam and the moving averages

// Four weights as the operations read them: the floatX counterpart of a pack of four floats, 8 bytes in bf16.
typedef struct alignas(4 * sizeof(floatX)) { floatX v[4]; } four_weights_t;

// Writes the weights of a thread's pack, as far as there are any. Called behind the store of master, which may be the
// same memory.
__device__ static inline void store_weights(floatX* weight, pack<floatS> value, size_t count) {
    if (count >= 4 && (uintptr_t)weight % sizeof(four_weights_t) == 0) {
        four_weights_t four;
        for (int j = 0; j < 4; j++) four.v[j] = (floatX)value[j];
        *(four_weights_t*)weight = four;
        return;
    }
    for (int j = 0; j < 4; j++) {
        if ((size_t)j < count) weight[j] = (floatX)value[j];
    }
}

// The numbers of one step, computed by the host in double. m and v start at zero and therefore are too small by
// 1 - beta^t in the first steps; the step size and the root take that back.
typedef struct {
    float beta1, one_minus_beta1, beta2, one_minus_beta2;
    float step;       // lr / (1 - beta1^t)
    float root_scale; // 1 / sqrt(1 - beta2^t)
    float eps;
    float keep;       // 1 - lr decay
    float grad_scale;
    float ema_beta[2];
} adam_step_t;

static inline adam_step_t adam_step(adam_t adam) {
    adam_step_t a;
    a.beta1 = (float)adam.beta1;
    a.one_minus_beta1 = (float)(1 - adam.beta1);
    a.beta2 = (float)adam.beta2;
    a.one_minus_beta2 = (float)(1 - adam.beta2);
    a.step = (float)(adam.lr / (1 - pow(adam.beta1, (double)adam.t)));
    a.root_scale = (float)(1 / sqrt(1 - pow(adam.beta2, (double)adam.t)));
    a.eps = (float)adam.eps;
    a.keep = (float)(1 - adam.lr * adam.decay);
    a.grad_scale = (float)adam.grad_scale;
    for (int i = 0; i < 2; i++) a.ema_beta[i] = (float)adam.ema_beta[i];
    return a;
}

// beta ema + (1 - beta) w, written such that an average that equals the weight stays so exactly, and beta = 0 copies.
__device__ static inline pack<floatS> ema_step(pack<floatS> ema, pack<floatS> w, float beta) {
    for (int j = 0; j < pack<floatS>::size; j++) ema[j] = w[j] + beta * (ema[j] - w[j]);
    return ema;
}

__global__ static void adam_update_kernel(floatX* weight,             // (n) may be the memory of master
                                          floatS* master,             // (n)
                                          floatS* m, floatS* v,       // (n)
                                          floatS* ema0, floatS* ema1, // (n) or NULL
                                          const floatS* grad,         // (n)
                                          size_t n, adam_step_t a) {
    size_t i = pack_begin<floatS>(), count = n - i;
    if (i >= n) return;
    pack<floatS> g = load_upto(grad + i, count), w = load_upto(master + i, count);
    pack<floatS> mi = load_upto(m + i, count), vi = load_upto(v + i, count), average0 = {}, average1 = {};
    if (ema0) average0 = load_upto(ema0 + i, count);
    if (ema1) average1 = load_upto(ema1 + i, count);
    for (int j = 0; j < pack<floatS>::size; j++) {
        float gj = a.grad_scale * g[j];
        mi[j] = a.beta1 * mi[j] + a.one_minus_beta1 * gj;
        vi[j] = a.beta2 * vi[j] + a.one_minus_beta2 * gj * gj;
        w[j] = a.keep * w[j] - a.step * mi[j] / (sqrtf(vi[j]) * a.root_scale + a.eps);
    }
    store_upto(m + i, mi, count);
    store_upto(v + i, vi, count);
    store_upto(master + i, w, count);
    store_weights(weight + i, w, count);
    if (ema0) store_upto(ema0 + i, ema_step(average0, w, a.ema_beta[0]), count);
    if (ema1) store_upto(ema1 + i, ema_step(average1, w, a.ema_beta[1]), count);
}

void adam_update(floatX* weight,               // (n) what the operations read; may be the memory of master
                 floatS* master,               // (n)
                 floatS* m, floatS* v,         // (n)
                 floatS* ema0, floatS* ema1,   // (n) or NULL
                 const floatS* grad,           // (n)
                 size_t n, adam_t adam, stream_t s) {
    if (n == 0) return;
    launch<adam_update_kernel>(pack_blocks<floatS>(n), PACK_THREADS, 0, s, weight, master, m, v, ema0, ema1, grad, n,
                               adam_step(adam));
}

// 18 bytes a value: both sets read and written, and the bf16 weight.
__global__ static void exchange_weights_kernel(floatX* weight, // (n) may be the memory of master
                                               floatS* master, // (n)
                                               floatS* other,  // (n)
                                               size_t n) {
    size_t i = pack_begin<floatS>(), count = n - i;
    if (i >= n) return;
    pack<floatS> before = load_upto(master + i, count), after = load_upto(other + i, count);
    store_upto(other + i, before, count);
    store_upto(master + i, after, count);
    store_weights(weight + i, after, count);
}

void exchange_weights(floatX* weight, // (n) written from the new master; may be the memory of master
                      floatS* master, // (n) in place
                      floatS* other,  // (n) in place
                      size_t n, stream_t s) {
    if (n == 0) return;
    launch<exchange_weights_kernel>(pack_blocks<floatS>(n), PACK_THREADS, 0, s, weight, master, other, n);
}
