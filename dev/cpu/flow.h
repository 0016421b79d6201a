// flow.h: flow matching: the path from noise to data, the loss of a velocity, and the arithmetic of sampling.
//
// A sample at time t lies on the straight line from noise x0 (t = 0) to data x1 (t = 1), and moves along it at constant
// velocity:
//   xt = t x1 + (1 - t) x0,   u = d xt / dt = x1 - x0                                          Lipman et al. 2023
// The network sees xt and t and predicts the velocity v. Knowing neither end it learns the mean of u over all lines
// through xt; following that mean field from t = 0 to 1 turns noise into data.
//
// Loss. Let V = |v|, U = max(|u|, e) and M = max(V, e) at one position, norms over the C channels:
//   mse = mean over positions and channels of (v_c - u_c)^2
//   cosine = mean over positions of 1 - v.u / (M U)                                             Yao et al. 2025
// Backward. u is data. With dV/dv_c = v_c / V the quotient rule gives, per position,
//   d (v.u / (M U)) / dv_c = (u_c / U - (v.u / (M U)) v_c / V) / M                     v_c / V is 0 where V is 0
// The second term stands there also below the clamp, where M = e does not depend on V: that is how PyTorch
// differentiates its cosine_similarity. A network whose output layer starts at zero has V = 0 everywhere at its first
// step, and the gradient is then 1 / e = 1e8 times the direction of u. The reference's training curve contains this
// step, so nothing here softens it.
//
// Look next at common/cuda/flow.cuh, or for the noise at common/program/rng.h.
#pragma once
// defines: FLOW_STAGES; the contract of each function below
#include "common/ops.h"
// defines: philox, normal4_from_bits
#include "common/program/rng.h"
// defines: worth_sharing
#include "dev/cpu/threads.h"

#define FLOW_SMALL 1e-8 // e: the least norm that the cosine divides by

// One call of the generator makes four neighbouring numbers of the stream, as in normal_rows.
void flow_path(floatX* xt,       // (B, n)
               floatS* u,        // (B, n)
               const floatS* x1, // (B, n)
               const floatS* t,  // (B)
               int B, size_t n, uint64_t seed, uint32_t stream_id, uint64_t step, uint64_t first_row, stream_t s) {
    (void)s;
    uint64_t begin = first_row * n, end = begin + (uint64_t)B * n;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * n * 20))
    for (uint64_t four = begin / 4; four < (end + 3) / 4; four++) {
        normal4_t x0 = normal4_from_bits(philox(seed, stream_id, step, four));
        for (uint64_t word = 0; word < 4; word++) {
            uint64_t element = 4 * four + word;
            if (element < begin || element >= end) continue;
            uint64_t i = element - begin;
            floatS time = t[i / n], noise = (floatS)x0.v[word];
            xt[i] = (floatX)(time * x1[i] + (1 - time) * noise);
            u[i] = x1[i] - noise;
        }
    }
}

// One position: adds to the two sums, and writes dv. The shares are what one squared difference, and one cosine, weigh
// in the objective.
static inline void flow_position(double* squares, double* cosines, floatX* dv, const floatX* v, const floatS* u,
                                 double share_mse, double share_cosine, int C) {
    double square = 0, vv = 0, uu = 0, vu = 0;
    #pragma omp simd reduction(+ : square, vv, uu, vu)
    for (int c = 0; c < C; c++) {
        double a = v[c], b = u[c];
        square += (a - b) * (a - b);
        vv += a * a;
        uu += b * b;
        vu += a * b;
    }
    double V = sqrt(vv), M = fmax(V, FLOW_SMALL), U = fmax(sqrt(uu), FLOW_SMALL), cosine = vu / (M * U);
    *squares += square;
    *cosines += 1 - cosine;
    if (!dv) return;
    double of_u = share_cosine / (U * M), of_v = V > 0 ? share_cosine * cosine / V / M : 0;
    #pragma omp simd
    for (int c = 0; c < C; c++) dv[c] = (floatX)(2 * share_mse * (v[c] - u[c]) - (of_u * u[c] - of_v * v[c]));
}

void flow_loss(floatS* mse, floatS* cosine,             // (B)
               floatX* dv,                              // (B, HW, C) or NULL
               const floatX* v,                         // (B, HW, C)
               const floatS* u,                         // (B, HW, C)
               const floatS* weight,                    // (B) or NULL for 1
               double scale_mse, double scale_cosine, int B, int HW, int C, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * HW * C * 3))
    for (int b = 0; b < B; b++) {
        double squares = 0, cosines = 0, w = weight ? weight[b] : 1;
        double share_mse = w * scale_mse / ((double)HW * C), share_cosine = w * scale_cosine / HW;
        for (int i = 0; i < HW; i++) {
            size_t at = ((size_t)b * HW + i) * C;
            flow_position(&squares, &cosines, dv ? dv + at : NULL, v + at, u + at, share_mse, share_cosine, C);
        }
        mse[b] = (floatS)(w * squares / ((double)HW * C));
        cosine[b] = (floatS)(w * cosines / HW);
    }
}

// The difference between what the network expects with and without knowing the class, w times as large. w = 1 is a case
// of its own because null + (cond - null) need not round to cond.
void flow_guide(floatS* out,        // (B, HW, C)
                const floatX* cond, // (B, HW, OC)
                const floatX* null, // (B, HW, OC) or NULL
                const floatS* w,    // (B) or NULL
                int channels, int B, int HW, int C, int OC, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * HW * C))
    for (size_t row = 0; row < (size_t)B * HW; row++) {
        size_t at = row * C, from = row * OC;
        floatS weight = w && null ? w[row / HW] : 1;
        int guided = weight == 1 ? 0 : channels < C ? channels : C;
        for (int c = 0; c < guided; c++) out[at + c] = null[from + c] + weight * (cond[from + c] - null[from + c]);
        for (int c = guided; c < C; c++) out[at + c] = cond[from + c];
    }
}

void flow_guide_energy(floatS* out,        // (B, HW, C) in place
                       const floatX* cond, // (B, HW, OC)
                       int B, int HW, int C, int OC, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * HW * C))
    for (int b = 0; b < B; b++) {
        floatS* image = out + (size_t)b * HW * C;
        double wanted = 0, energy = 0;
        for (int i = 0; i < HW; i++) {
            const floatX* v = cond + ((size_t)b * HW + i) * OC;
            for (int c = 0; c < C; c++) {
                wanted += (double)v[c] * v[c];
                energy += (double)image[i * C + c] * image[i * C + c];
            }
        }
        floatS factor = energy > 0 ? (floatS)sqrt(wanted / energy) : 1;
        for (size_t i = 0; i < (size_t)HW * C; i++) image[i] *= factor;
    }
}

// Euler is one stage with a = 1; dopri5 has seven, some with coefficient 0: those are not read.
void flow_combine(floatS* out,       // (B, n)
                  const floatS* x,   // (B, n)
                  const floatS* k,   // (stages, B, n)
                  const floatS* h,   // (B)
                  const double* a,   // (stages)
                  int stages, int B, size_t n, stream_t s) {
    (void)s;
    if (stages < 1 || stages > FLOW_STAGES) fatal("a Runge-Kutta step of %d stages; 1 to %d", stages, FLOW_STAGES);
    size_t size = (size_t)B * n;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)size * stages))
    for (size_t i = 0; i < size; i++) {
        floatS sum = 0;
        for (int stage = 0; stage < stages; stage++) {
            if (a[stage] != 0) sum += (floatS)a[stage] * k[stage * size + i];
        }
        out[i] = x[i] + h[i / n] * sum;
    }
}

// The network says the noise e and, by f, the logarithm of the variance, between those of two known variances.
void diffusion_step(floatS* x,           // (B, HW, C) in place
                    const floatS* out,   // (B, HW, OC)
                    const floatS* noise, // (B, HW, C) or NULL
                    double x_share, double out_share, double log_least, double log_most, int B, int HW, int C, int OC,
                    stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static)
    for (size_t row = 0; row < (size_t)B * HW; row++) {
        size_t at = row * C, from = row * OC;
        for (int c = 0; c < C; c++) {
            floatS next = (floatS)x_share * x[at + c] + (floatS)out_share * out[from + c];
            if (noise) {
                floatS f = OC > C ? out[from + C + c] : 0, l = (floatS)log_least;
                if (OC > C) l = (1 - f) / 2 * (floatS)log_least + (1 + f) / 2 * (floatS)log_most;
                next += xexp(l / 2) * noise[at + c];
            }
            x[at + c] = next;
        }
    }
}

void latent_denormalise(floatX* z,                             // (N, C)
                        const floatS* x,                       // (N, C)
                        const floatS* mean, const floatS* std, // (C)
                        size_t N, int C, stream_t s) {
    (void)s;
    #pragma omp parallel for schedule(static) if (worth_sharing((double)N * C))
    for (size_t i = 0; i < N; i++) {
        size_t at = i * C;
        for (int c = 0; c < C; c++) z[at + c] = (floatX)(x[at + c] * std[c] + mean[c]);
    }
}
