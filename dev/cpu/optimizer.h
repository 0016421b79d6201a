// optimizer.h: from gradients to weights: norms, adaptive weights that balance two losses, Adam, moving averages.
//
// All of it is bound by memory: a value is read once, a few operations are done, and it is written. What matters is
// the number of passes, which is why Adam and both averages are one operation, and that the loops vectorise. The
// square root does so only when the compiler need not set errno for it (-fno-math-errno).
//
// Look next at common/training/ema.h for the betas of the averages.
#pragma once
#include <assert.h>
// defines: adam_t; the contract of each function below
#include "common/ops.h"
// defines: reduce_groups
#include "dev/cpu/reduce.h"
// defines: worth_sharing
#include "dev/cpu/threads.h"

#define UPDATE_BLOCK ((size_t)2048) // values updated together; their arrays stay in the cache between two loops

// ---------------------------------------------------------------------------------------------------------------------
// Norms and adaptive weights

static inline double square_block(const floatX* x, const floatX* unused, size_t n) {
    (void)unused;
    double sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

void sum_squares(floatS* out,     // (groups)
                 const floatS* x, // (groups, n)
                 int groups, size_t n, stream_t s) {
    (void)s;
    reduce_groups(out, x, NULL, square_block, 1, (size_t)groups, n);
}

#define ADAPTIVE_WEIGHT_EPS 1e-4 // VQGAN's; it is felt only where the other loss hardly pulls

// omega is a constant to the rest of the computation: no gradient flows through the ratio. The comparison lets a NaN
// pass into omega, where the training loop finds it.
void adaptive_weight(floatS* omega, floatS* clamped,  // (groups)
                     const floatS* squares_rec,       // (groups)
                     const floatS* squares_other,     // (groups)
                     double weight, double max_ratio, double gradient_scale, int groups, stream_t s) {
    (void)s;
    for (int k = 0; k < groups; k++) {
        double norm_rec = sqrt((double)squares_rec[k]) * gradient_scale;
        double norm_other = sqrt((double)squares_other[k]) * gradient_scale;
        double ratio = norm_rec / (norm_other + ADAPTIVE_WEIGHT_EPS);
        int over = ratio > max_ratio;
        omega[k] = (floatS)(weight * (over ? max_ratio : ratio));
        clamped[k] = (floatS)over;
    }
}

void add_scaled_groups(floatX* out,         // (groups, n)
                       const floatX* a,     // (groups, n)
                       const floatX* b,     // (groups, n)
                       const floatS* omega, // (groups)
                       int groups, size_t n, stream_t s) {
    (void)s;
    for (size_t k = 0; k < (size_t)groups; k++) {
        floatX w = omega[k];
        #pragma omp parallel for simd schedule(static) if (worth_sharing(n))
        for (size_t i = k * n; i < (k + 1) * n; i++) out[i] = a[i] + w * b[i];
    }
}

// Each value takes its groups in order; threads share the values.
void accumulate_scaled_groups(floatS* out,         // (n) +=
                              const floatS* a,     // (groups, n)
                              const floatS* b,     // (groups, n) or NULL
                              const floatS* omega, // (groups) or NULL
                              int groups, size_t n, stream_t s) {
    (void)s;
    assert(!b == !omega);
    #pragma omp parallel for schedule(static) if (worth_sharing((double)groups * n))
    for (size_t begin = 0; begin < n; begin += UPDATE_BLOCK) {
        size_t end = n - begin < UPDATE_BLOCK ? n : begin + UPDATE_BLOCK;
        for (size_t k = 0; k < (size_t)groups; k++) {
            const floatS* ak = a + k * n;
            #pragma omp simd
            for (size_t i = begin; i < end; i++) out[i] += ak[i];
            if (!b) continue;
            const floatS* bk = b + k * n;
            floatS w = omega[k];
            #pragma omp simd
            for (size_t i = begin; i < end; i++) out[i] += w * bk[i];
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Adam and the moving averages

// The numbers of one step. m and v start at zero and therefore are too small by 1 - beta^t in the first steps; the
// step size and the root take that back.
typedef struct {
    floatS beta1, one_minus_beta1, beta2, one_minus_beta2;
    floatS step;       // lr / (1 - beta1^t)
    floatS root_scale; // 1 / sqrt(1 - beta2^t)
    floatS eps;
    floatS keep;       // 1 - lr decay
    floatS grad_scale;
} adam_step_t;

static inline adam_step_t adam_step(adam_t adam) {
    adam_step_t a;
    a.beta1 = (floatS)adam.beta1;
    a.one_minus_beta1 = (floatS)(1 - adam.beta1);
    a.beta2 = (floatS)adam.beta2;
    a.one_minus_beta2 = (floatS)(1 - adam.beta2);
    a.step = (floatS)(adam.lr / (1 - pow(adam.beta1, (double)adam.t)));
    a.root_scale = (floatS)(1 / sqrt(1 - pow(adam.beta2, (double)adam.t)));
    a.eps = (floatS)adam.eps;
    a.keep = (floatS)(1 - adam.lr * adam.decay);
    a.grad_scale = (floatS)adam.grad_scale;
    return a;
}

// `weight` and `master` may be the same memory, which `omp simd` allows: each value meets only itself.
static inline void adam_block(floatX* weight, floatS* master, floatS* m, floatS* v, const floatS* grad, size_t n,
                              adam_step_t a) {
    #pragma omp simd
    for (size_t i = 0; i < n; i++) {
        floatS g = a.grad_scale * grad[i];
        floatS mi = a.beta1 * m[i] + a.one_minus_beta1 * g;
        floatS vi = a.beta2 * v[i] + a.one_minus_beta2 * g * g;
        floatS w = a.keep * master[i] - a.step * mi / (xsqrt(vi) * a.root_scale + a.eps);
        m[i] = mi;
        v[i] = vi;
        master[i] = w;
        weight[i] = (floatX)w;
    }
}

// beta ema + (1 - beta) w, written such that an average that equals the weight stays so exactly, and beta = 0 copies.
static inline void ema_block(floatS* ema, const floatS* w, size_t n, floatS beta) {
    #pragma omp simd
    for (size_t i = 0; i < n; i++) ema[i] = w[i] + beta * (ema[i] - w[i]);
}

// 28 bytes a value to and from memory, 8 more for each average.
void adam_update(floatX* weight,               // (n) what the operations read; may be the memory of master
                 floatS* master,               // (n)
                 floatS* m, floatS* v,         // (n)
                 floatS* ema0, floatS* ema1,   // (n) or NULL
                 const floatS* grad,           // (n)
                 size_t n, adam_t adam, stream_t s) {
    (void)s;
    adam_step_t a = adam_step(adam);
    #pragma omp parallel for schedule(static) if (worth_sharing((double)n * 2))
    for (size_t i = 0; i < n; i += UPDATE_BLOCK) {
        size_t count = n - i < UPDATE_BLOCK ? n - i : UPDATE_BLOCK;
        adam_block(weight + i, master + i, m + i, v + i, grad + i, count, a);
        if (ema0) ema_block(ema0 + i, master + i, count, (floatS)adam.ema_beta[0]);
        if (ema1) ema_block(ema1 + i, master + i, count, (floatS)adam.ema_beta[1]);
    }
}

void exchange_weights(floatX* weight, // (n) written from the new master; may be the memory of master
                      floatS* master, // (n) in place
                      floatS* other,  // (n) in place
                      size_t n, stream_t s) {
    (void)s;
    #pragma omp parallel for simd schedule(static) if (worth_sharing(n))
    for (size_t i = 0; i < n; i++) {
        floatS value = master[i];
        master[i] = other[i];
        other[i] = value;
        weight[i] = (floatX)master[i];
    }
}
