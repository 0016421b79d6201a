// rope.h: what queries and keys go through on their way to attention: QK-norm, then the rotary embedding.
//
// Rotation. A head vector of HS values is HS / 2 pairs (a, b), points of a plane: neighbours, or a value of either half
// (rope_pairs_t). Pair p of token t is turned by an angle that depends on the token's place:
//   (a, b) -> (a cos - b sin, b cos + a sin)                                             Su et al. 2021
// The product of a query turned by u and a key turned by v is that of the query and the key turned by v - u: attention
// sees where tokens lie to each other. The table `rope` holds cosine and sine for every token and pair, so nothing is
// known of rows and columns but in rope_grid, which writes DINOv3's. A rotation is orthogonal: the way back is the
// rotation by the negative angle,
//   (da, db) -> (da cos + db sin, db cos - da sin)
//
// QK-norm. Before, each head vector z may pass an RMSNorm of its own, with a weight that all heads share:
//   rstd = 1 / sqrt(mean over HS of z^2 + eps),   n_c = z_c rstd weight_c
// It bounds the products of queries and keys, which otherwise grow in long trainings. Backward, with
// h_c = dn_c weight_c and d rstd / d z_c = -rstd^3 z_c / HS:
//   dz_c = rstd (h_c - z_c rstd^2 mean(h z)),   dweight_c = sum over all heads of dn_c z_c rstd
// Forward and backward work in place, so z is kept in `raw` where there is a norm.
//
// Look next at dev/cpu/attention.h.
#pragma once
#include <assert.h>

// defines: floatX, floatS, stream_t, xsqrt
#include "common/device.h"
// defines: rope_pairs_t
#include "common/op_types.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"
// defines: ROW_BLOCK, row_blocks, row_block_end, add_row_blocks
#include "dev/cpu/rows.h"

// z <- z rstd weight; returns rstd.
static inline floatS qknorm_head(floatX* z, const floatX* weight, int HS, double eps) { // (HS), (HS)
    floatS squares = 0;
    #pragma omp simd reduction(+ : squares)
    for (int c = 0; c < HS; c++) squares += z[c] * z[c];
    floatS rstd = 1 / xsqrt(squares / HS + (floatS)eps);
    for (int c = 0; c < HS; c++) z[c] = z[c] * rstd * weight[c];
    return rstd;
}

// d: the gradient of n on entry, of z on return. dweight collects.
static inline void qknorm_head_backward(floatX* d,            // (HS) in place
                                        floatS* dweight,      // (HS) +=
                                        const floatX* z,      // (HS)
                                        const floatX* weight, // (HS)
                                        floatS rstd, int HS) {
    floatS sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int c = 0; c < HS; c++) sum += d[c] * weight[c] * z[c];
    floatS along = rstd * rstd * (sum / HS);
    for (int c = 0; c < HS; c++) {
        dweight[c] += d[c] * z[c] * rstd;
        d[c] = rstd * (d[c] * weight[c] - z[c] * along);
    }
}

// Turns the pairs of a head by the angles of a token, or, with sign -1, back.
static inline void rope_head(floatX* z, const floatS* turn, int HS, rope_pairs_t pairs, int sign) { // (HS), (HS / 2, 2)
    int stride = pairs == ROPE_HALVES ? 1 : 2, partner = pairs == ROPE_HALVES ? HS / 2 : 1;
    for (int p = 0; p < HS / 2; p++) {
        floatX *first = z + stride * p, *second = first + partner;
        floatS cosine = turn[2 * p], sine = sign * turn[2 * p + 1], a = *first, b = *second;
        *first = a * cosine - b * sine;
        *second = b * cosine + a * sine;
    }
}

void qknorm_rope_forward(floatX* qkv,            // (B, T, 3, NH, HS) in place
                         floatX* raw,            // (B, T, 2, NH, HS) or NULL
                         floatS* rstd,           // (B, T, 2, NH) or NULL, as raw
                         const floatX* q_weight, // (HS) or NULL: no QK-norm
                         const floatX* k_weight, // (HS) or NULL, as q_weight
                         const floatS* rope,     // (T, HS / 2, 2)
                         int B, int T, int NH, int HS, rope_pairs_t pairs, double eps, stream_t s) {
    (void)s;
    size_t kept = 2 * (size_t)NH * HS; // queries and keys of a token: they lie in front of the values
    #pragma omp parallel for schedule(static) if (worth_sharing((double)B * T * NH * HS * 2))
    for (size_t row = 0; row < (size_t)B * T; row++) {
        floatX* token = qkv + row * 3 * NH * HS;
        if (raw) memcpy(raw + row * kept, token, kept * sizeof(floatX));
        for (int head = 0; head < 2 * NH; head++) {
            floatX* z = token + (size_t)head * HS;
            if (q_weight) {
                floatS r = qknorm_head(z, head < NH ? q_weight : k_weight, HS, eps);
                if (rstd) rstd[row * 2 * NH + head] = r;
            }
            rope_head(z, rope + row % T * HS, HS, pairs, 1);
        }
    }
}

// A block of rows collects (dq_weight, dk_weight) in a row of its own, and the blocks are added in order.
void qknorm_rope_backward(floatX* dqkv,           // (B, T, 3, NH, HS) in place
                          floatS* dq_weight,      // (HS) or NULL
                          floatS* dk_weight,      // (HS) or NULL
                          const floatX* raw,      // (B, T, 2, NH, HS) or NULL: no QK-norm
                          const floatS* rstd,     // (B, T, 2, NH)
                          const floatX* q_weight, // (HS)
                          const floatX* k_weight, // (HS)
                          const floatS* rope,     // (T, HS / 2, 2)
                          int B, int T, int NH, int HS, rope_pairs_t pairs, stream_t s) {
    (void)s;
    size_t rows = (size_t)B * T, blocks = row_blocks(rows), stride = 2 * (size_t)HS;
    floatS* partial = (floatS*)cpu_scratch(0, blocks * stride * sizeof(floatS));
    #pragma omp parallel for schedule(static) if (worth_sharing((double)rows * NH * HS * 3))
    for (size_t k = 0; k < blocks; k++) {
        floatS* p = partial + k * stride;
        memset(p, 0, stride * sizeof(floatS));
        for (size_t row = k * ROW_BLOCK; row < row_block_end(k, rows); row++) {
            for (int head = 0; head < 2 * NH; head++) {
                floatX* d = dqkv + (row * 3 * NH + head) * HS;
                rope_head(d, rope + row % T * HS, HS, pairs, -1);
                if (!raw) continue;
                size_t at = row * 2 * NH + head;
                qknorm_head_backward(d, head < NH ? p : p + HS, raw + at * HS, head < NH ? q_weight : k_weight,
                                     rstd[at], HS);
            }
        }
    }
    if (raw && dq_weight) add_row_blocks(dq_weight, partial, blocks, stride, HS);
    if (raw && dk_weight) add_row_blocks(dk_weight, partial + HS, blocks, stride, HS);
}

void rope_grid(floatS* rope, // (P + GH GW, HS / 2, 2)
               int P, int GH, int GW, int HS, double base, stream_t s) {
    (void)s;
    assert(HS % 4 == 0);
    int quarter = HS / 4;
    for (int t = 0; t < P + GH * GW; t++) {
        for (int p = 0; p < 2 * quarter; p++) {
            int n = t - P, place = p < quarter ? n / GW : n % GW, size = p < quarter ? GH : GW;
            double turns = pow(base, -(double)(p % quarter) / quarter) * (2 * place + 1 - size) / size;
            double angle = t < P ? 0 : 2 * 3.14159265358979323846 * turns;
            rope[((size_t)t * 2 * quarter + p) * 2] = (floatS)cos(angle);
            rope[((size_t)t * 2 * quarter + p) * 2 + 1] = (floatS)sin(angle);
        }
    }
}
