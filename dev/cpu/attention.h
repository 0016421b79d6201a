// attention.h: softmax attention over packed queries, keys and values.
//
// For each image and head, with rows q_i, k_j, v_j of HS channels and c = 1 / sqrt(HS):
//   S_ij = c q_i k_j,   P_ij = exp(S_ij) / sum_j exp(S_ij) = exp(S_ij - lse_i),   out_i = sum_j P_ij v_j
//
// Backward, from dout_i = dL/d out_i:
//   out_i = sum_j P_ij v_j        gives  dv_j = sum_i P_ij dout_i           and dP_ij = dout_i v_j
//   P_i = softmax(S_i): d P_ij / d S_ik = P_ij ([j = k] - P_ik)
//                                 gives  dS_ij = P_ij (dP_ij - delta_i),  delta_i = sum_k P_ik dP_ik = dout_i out_i
//   S_ij = c q_i k_j              gives  dq_i = c sum_j dS_ij k_j           and dk_j = c sum_i dS_ij q_i
// (delta_i: sum_k P_ik (dout_i v_k) is dout_i times sum_k P_ik v_k.) P comes again from S and lse, so that nothing
// of size T^2 is kept. Five products of T^2 HS against the forward's two.      Vaswani et al. 2017; Dao 2023
//
// Where the first keys of an image are padding, all sums over j begin at its first_key. That is the same attention with
// fewer keys than queries.
//
// attention_forward_naive and attention_backward_naive are these formulas, row by row: the truth, which the tests hold
// the fast forms against. Those treat a tile of query rows at a time, with its whole rows of S in the calling thread's
// scratch, by matrix products. Look next at dev/cpu/embed.h.
#pragma once
// defines: floatX, floatS, stream_t, xsqrt, xexp, xlog
#include "common/device.h"
// defines: fast_exp
#include "dev/cpu/fastmath.h"
// defines: gemm
#include "dev/cpu/gemm.h"
// defines: cpu_scratch, worth_sharing
#include "dev/cpu/threads.h"

// ---------------------------------------------------------------------------------------------------------------------
// The truth

// q, k or v (part 0, 1, 2) of a token of an image; the scalar product of two rows.
static inline size_t attention_row(int b, int t, int part, int h, int T, int NH, int HS) {
    return ((((size_t)b * T + t) * 3 + part) * NH + h) * HS;
}
static inline floatS attention_dot(const floatX* a, const floatX* b, int HS) {
    floatS sum = 0;
    for (int c = 0; c < HS; c++) sum += a[c] * b[c];
    return sum;
}

static inline void attention_forward_naive(floatX* out,          // (B, T, NH, HS)
                                           floatS* lse,          // (B, NH, T)
                                           const floatX* qkv,    // (B, T, 3, NH, HS)
                                           const int* first_key, // (B) or NULL for 0
                                           int B, int T, int NH, int HS) {
    for (int b = 0; b < B; b++) for (int h = 0; h < NH; h++) for (int i = 0; i < T; i++) {
        const int from = first_key ? first_key[b] : 0;
        const floatX* q = qkv + attention_row(b, i, 0, h, T, NH, HS);
        const floatX* k = qkv + attention_row(b, 0, 1, h, T, NH, HS);
        const floatX* v = qkv + attention_row(b, 0, 2, h, T, NH, HS);
        const size_t next = (size_t)3 * NH * HS; // from a key to the next
        floatX* o = out + (((size_t)b * T + i) * NH + h) * HS;
        floatS most = -INFINITY, sum = 0; // of all S; exp(S - most) cannot overflow
        for (int j = from; j < T; j++) {
            floatS S = attention_dot(q, k + j * next, HS) / xsqrt(HS);
            most = S > most ? S : most;
        }
        for (int j = from; j < T; j++) sum += xexp(attention_dot(q, k + j * next, HS) / xsqrt(HS) - most);
        for (int c = 0; c < HS; c++) o[c] = 0;
        for (int j = from; j < T; j++) {
            floatS P = xexp(attention_dot(q, k + j * next, HS) / xsqrt(HS) - most) / sum;
            for (int c = 0; c < HS; c++) o[c] += P * v[j * next + c];
        }
        lse[((size_t)b * NH + h) * T + i] = most + xlog(sum);
    }
}

static inline void attention_backward_naive(floatX* dqkv,         // (B, T, 3, NH, HS)
                                            const floatX* dout,   // (B, T, NH, HS)
                                            const floatX* qkv,    // (B, T, 3, NH, HS)
                                            const floatX* out,    // (B, T, NH, HS)
                                            const floatS* lse,    // (B, NH, T)
                                            const int* first_key, // (B) or NULL for 0
                                            int B, int T, int NH, int HS) {
    memset(dqkv, 0, (size_t)B * T * 3 * NH * HS * sizeof(floatX));
    for (int b = 0; b < B; b++) for (int h = 0; h < NH; h++) for (int i = 0; i < T; i++) {
        size_t at = (((size_t)b * T + i) * NH + h) * HS, q = attention_row(b, i, 0, h, T, NH, HS);
        floatS delta = attention_dot(dout + at, out + at, HS);
        for (int j = first_key ? first_key[b] : 0; j < T; j++) {
            size_t k = attention_row(b, j, 1, h, T, NH, HS), v = attention_row(b, j, 2, h, T, NH, HS);
            floatS S = attention_dot(qkv + q, qkv + k, HS) / xsqrt(HS);
            floatS P = xexp(S - lse[((size_t)b * NH + h) * T + i]);
            floatS dS = P * (attention_dot(dout + at, qkv + v, HS) - delta);
            for (int c = 0; c < HS; c++) {
                dqkv[q + c] += dS * qkv[k + c] / xsqrt(HS);
                dqkv[k + c] += dS * qkv[q + c] / xsqrt(HS);
                dqkv[v + c] += P * dout[at + c];
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The fast forms. q, k and v are read where they stand in qkv, as matrices with row stride 3 NH HS.

// Query rows of an image are cut into tiles of `rows`: as many as keep a tile's S near 1 MiB, at most about 256, and
// fewer (not below 64) where there are so few heads that threads would have nothing to do. Depends on the sizes alone.
enum { ATTENTION_TILE_VALUES = 1 << 18, ATTENTION_TASKS = 8 };

typedef struct { int rows, tiles; } attention_tiles_t;

// Depends on the heads of one image, not on how many images there are: an image's numbers do not depend on its batch.
static inline attention_tiles_t attention_tiles(int NH, int T) {
    int rows = ATTENTION_TILE_VALUES / T;
    rows = rows > 256 ? 256 : rows < 16 ? 16 : rows;
    int tiles = (T + rows / 2) / rows > 1 ? (T + rows / 2) / rows : 1;
    while (NH * tiles < ATTENTION_TASKS && T / tiles >= 128) tiles *= 2;
    attention_tiles_t t = {(T + tiles - 1) / tiles, 0};
    t.tiles = (T + t.rows - 1) / t.rows;
    return t;
}

// Two products and an exponential, for worth_sharing.
static inline double attention_work(size_t heads, int T, int HS) {
    return (double)heads * T * T * (2.0 * HS / MACS_OF_WORK + WORK_OF_EXP);
}

// S <- S - max_j S_j, so that exp cannot overflow. Returns the maximum.
static inline floatX subtract_max(floatX* S, int T) {
    floatX max = S[0];
    #pragma omp simd reduction(max : max)
    for (int j = 0; j < T; j++) max = S[j] > max ? S[j] : max;
    #pragma omp simd
    for (int j = 0; j < T; j++) S[j] -= max;
    return max;
}

// P <- P / sum_j P_j. Returns the sum.
static inline floatS divide_by_sum(floatX* P, int T) {
    floatS sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int j = 0; j < T; j++) sum += P[j];
    floatX scale = 1 / sum;
    #pragma omp simd
    for (int j = 0; j < T; j++) P[j] *= scale;
    return sum;
}

// S (rows, T) <- softmax of each row;  lse_i = log sum_j exp(S_ij). Several short rows at a time share the loop of the
// exponentials (a row of 17 would leave most of its vector instructions empty), as many as fit the level-1 cache.
static inline void softmax_rows(floatX* S, floatS* lse, int rows, int T) {
    const int together = T < 2048 ? 2048 / T : 1;
    for (int first = 0; first < rows; first += together) {
        int n = rows - first < together ? rows - first : together;
        floatX* block = S + (size_t)first * T;
        for (int i = 0; i < n; i++) lse[first + i] = subtract_max(block + (size_t)i * T, T);
        #pragma omp simd
        for (size_t j = 0; j < (size_t)n * T; j++) block[j] = fast_exp(block[j]);
        for (int i = 0; i < n; i++) lse[first + i] += xlog(divide_by_sum(block + (size_t)i * T, T));
    }
}

void attention_forward(floatX* out,          // (B, T, NH, HS)
                       floatS* lse,          // (B, NH, T)
                       const floatX* qkv,    // (B, T, 3, NH, HS)
                       const int* first_key, // (B) or NULL for 0
                       int B, int T, int NH, int HS, stream_t s) {
    (void)s;
    size_t heads = (size_t)B * NH;
    attention_tiles_t tile = attention_tiles(NH, T);
    int C = NH * HS;
    floatX scale = 1 / xsqrt(HS);
    #pragma omp parallel for schedule(static) if (worth_sharing(attention_work(heads, T, HS)))
    for (size_t task = 0; task < heads * tile.tiles; task++) {
        size_t head = task / tile.tiles, b = head / NH, h = head % NH;
        int first = (int)(task % tile.tiles) * tile.rows, rows = T - first < tile.rows ? T - first : tile.rows;
        int from = first_key ? first_key[b] : 0, keys = T - from;
        const floatX* q = qkv + b * T * 3 * C + h * HS;
        const floatX* k = q + C + (size_t)from * 3 * C;
        const floatX* v = k + C;
        floatX* S = (floatX*)cpu_scratch(0, (size_t)rows * keys * sizeof(floatX));
        gemm(PLAIN, TRANSPOSED, rows, keys, HS, scale, q + (size_t)first * 3 * C, 3 * C, k, 3 * C, 0, S, keys);
        softmax_rows(S, lse + head * T + first, rows, keys);
        gemm(PLAIN, PLAIN, rows, HS, keys, 1, S, keys, v, 3 * C, 0, out + (b * T + first) * C + h * HS, C);
    }
}

// One row of a text encoder's scores: a bias of each key's distance, whose rows are `stride` values apart and of which
// the first belongs to key 0; then the softmax over the keys [begin, end), and zeros elsewhere.
static inline void text_softmax_row(floatX* S, const floatS* bias, size_t stride, int begin, int end, int T) {
    for (int j = 0; bias && j < T; j++) S[j] += bias[j * stride];
    for (int j = 0; j < T; j++) {
        if (j < begin || j >= end) S[j] = 0;
    }
    if (begin >= end) return;
    subtract_max(S + begin, end - begin);
    #pragma omp simd
    for (int j = begin; j < end; j++) S[j] = fast_exp(S[j]);
    divide_by_sum(S + begin, end - begin);
}

void text_attention_forward(floatX* out,        // (B, T, NH, HS)
                            const floatX* qkv,  // (B, T, 3, NH, HS)
                            const floatS* bias, // (2 T - 1, NH) or NULL
                            const int* first,   // (B) or NULL
                            double scale, int causal, int B, int T, int NH, int HS, stream_t s) {
    (void)s;
    size_t heads = (size_t)B * NH;
    attention_tiles_t tile = attention_tiles(NH, T);
    int C = NH * HS;
    #pragma omp parallel for schedule(static) if (worth_sharing(attention_work(heads, T, HS)))
    for (size_t task = 0; task < heads * tile.tiles; task++) {
        size_t head = task / tile.tiles, b = head / NH, h = head % NH;
        int top = (int)(task % tile.tiles) * tile.rows, rows = T - top < tile.rows ? T - top : tile.rows;
        const floatX* q = qkv + b * T * 3 * C + h * HS;
        const floatX* k = q + C;
        const floatX* v = k + C;
        floatX* S = (floatX*)cpu_scratch(0, (size_t)rows * T * sizeof(floatX));
        gemm(PLAIN, TRANSPOSED, rows, T, HS, (floatX)scale, q + (size_t)top * 3 * C, 3 * C, k, 3 * C, 0, S, T);
        for (int i = top; i < top + rows; i++) {
            const floatS* of_key_0 = bias ? bias + (size_t)(T - 1 - i) * NH + h : NULL;
            text_softmax_row(S + (size_t)(i - top) * T, of_key_0, NH, first ? first[b] : 0, causal ? i + 1 : T, T);
        }
        gemm(PLAIN, PLAIN, rows, HS, T, 1, S, T, v, 3 * C, 0, out + (b * T + top) * C + h * HS, C);
    }
}

// One row: P <- exp(S - lse), dS <- P (dP - delta), where S and dP are overwritten.
static inline void softmax_row_backward(floatX* P, floatX* dS, floatS lse, floatS delta, int T) {
    #pragma omp simd
    for (int j = 0; j < T; j++) {
        P[j] = fast_exp(P[j] - lse);
        dS[j] = P[j] * (dS[j] - delta);
    }
}

static inline floatS attention_delta(const floatX* dout, const floatX* out, int HS) {
    floatS sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int c = 0; c < HS; c++) sum += dout[c] * out[c];
    return sum;
}

// The backward of query rows first .. first + rows - 1 of one head: dq =; dk and dv = when `fresh`, else +=.
// Pointers are at the head's first channel, of k, dk and dv in the first of `keys` keys, of the others in the image's
// first token. v is C behind k. Takes scratch slot 1.
static inline void attention_tile_backward(floatX* dq, floatX* dk, floatX* dv, int ld, // row stride of dk and dv
                                           const floatX* dout, const floatX* q, const floatX* k, const floatX* out,
                                           const floatS* lse, int first, int rows, int fresh, int keys, int C,
                                           int HS) {
    const floatX* v = k + C;
    const floatX* q_tile = q + (size_t)first * 3 * C;
    const floatX* dout_tile = dout + (size_t)first * C;
    floatX scale = 1 / xsqrt(HS), keep = fresh ? 0 : 1;
    floatX* P = (floatX*)cpu_scratch(1, 2 * (size_t)rows * keys * sizeof(floatX));
    floatX* dS = P + (size_t)rows * keys;
    gemm(PLAIN, TRANSPOSED, rows, keys, HS, scale, q_tile, 3 * C, k, 3 * C, 0, P, keys);
    gemm(PLAIN, TRANSPOSED, rows, keys, HS, 1, dout_tile, C, v, 3 * C, 0, dS, keys);
    for (int i = 0; i < rows; i++) {
        floatS delta = attention_delta(dout_tile + (size_t)i * C, out + (size_t)(first + i) * C, HS);
        softmax_row_backward(P + (size_t)i * keys, dS + (size_t)i * keys, lse[first + i], delta, keys);
    }
    gemm(PLAIN, PLAIN, rows, HS, keys, scale, dS, keys, k, 3 * C, 0, dq + (size_t)first * 3 * C, 3 * C);
    gemm(TRANSPOSED, PLAIN, keys, HS, rows, scale, dS, keys, q_tile, 3 * C, keep, dk, ld);
    gemm(TRANSPOSED, PLAIN, keys, HS, rows, 1, P, keys, dout_tile, C, keep, dv, ld);
}

// dk and dv of a head are sums over all query tiles, so one thread goes through the tiles of a head. Where there are
// few heads, the tiles form `groups`: the first group of a head sums in dqkv, each other one in scratch (T, 2 HS), and
// these are added in order.
void attention_backward(floatX* dqkv,         // (B, T, 3, NH, HS)
                        const floatX* dout,   // (B, T, NH, HS)
                        const floatX* qkv,    // (B, T, 3, NH, HS)
                        const floatX* out,    // (B, T, NH, HS)
                        const floatS* lse,    // (B, NH, T)
                        const int* first_key, // (B) or NULL for 0
                        int B, int T, int NH, int HS, stream_t s) {
    (void)s;
    size_t heads = (size_t)B * NH, slot = (size_t)T * 2 * HS;
    attention_tiles_t tile = attention_tiles(NH, T);
    int C = NH * HS, groups = 1;
    while (heads * groups < ATTENTION_TASKS && 2 * groups <= tile.tiles) groups *= 2;
    floatX* sums = (floatX*)cpu_scratch(0, heads * (groups - 1) * slot * sizeof(floatX));
    #pragma omp parallel for schedule(static) if (worth_sharing(3 * attention_work(heads, T, HS)))
    for (size_t task = 0; task < heads * groups; task++) {
        size_t head = task / groups, b = head / NH, channel = head % NH * HS;
        size_t at = b * T * C + channel, at3 = b * T * 3 * C + channel;
        int group = (int)(task % groups), from = first_key ? first_key[b] : 0;
        size_t key = at3 + C + (size_t)from * 3 * C;
        floatX* dk = group ? sums + (head * (groups - 1) + group - 1) * slot : dqkv + key;
        floatX* dv = dk + (group ? HS : C);
        for (int j = 0; j < from && group == 0; j++) {
            memset(dqkv + at3 + C + (size_t)j * 3 * C, 0, HS * sizeof(floatX));
            memset(dqkv + at3 + 2 * C + (size_t)j * 3 * C, 0, HS * sizeof(floatX));
        }
        int begin = group * tile.tiles / groups, end = (group + 1) * tile.tiles / groups;
        for (int t = begin; t < end; t++) {
            int first = t * tile.rows, rows = T - first < tile.rows ? T - first : tile.rows;
            attention_tile_backward(dqkv + at3, dk, dv, group ? 2 * HS : 3 * C, dout + at, qkv + at3, qkv + key,
                                    out + at, lse + head * T, first, rows, t == begin, T - from, C, HS);
        }
    }
    if (groups == 1) return;
    #pragma omp parallel for collapse(2) schedule(static) if (worth_sharing((double)B * T * C * groups))
    for (size_t head = 0; head < heads; head++) {
        for (int t = 0; t < T; t++) {
            floatX* dk = dqkv + (head / NH * T + t) * 3 * C + C + head % NH * HS;
            int j = t - (first_key ? first_key[head / NH] : 0); // the key's number in the sums
            for (int group = 1; j >= 0 && group < groups; group++) {
                const floatX* sum = sums + (head * (groups - 1) + group - 1) * slot + (size_t)j * 2 * HS;
                for (int c = 0; c < HS; c++) {
                    dk[c] += sum[c];
                    dk[C + c] += sum[HS + c];
                }
            }
        }
    }
}
