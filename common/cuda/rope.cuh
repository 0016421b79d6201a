// rope.cuh: QK-norm and rotary embedding of queries and keys, in place. Formulas and derivation: dev/cpu/rope.h.
//
//   n = z rstd weight;   (a, b) -> (a cos - b sin, b cos + a sin)
//   (da, db) -> (da cos + db sin, db cos - da sin);   dz = rstd (h - z rstd^2 mean(h z)),   h = dn weight
//
// Who owns what. A head vector is short, 64 or 72 values, so a thread owns one 16-byte access of it, and a few
// neighbouring lanes of a warp own a head: 8 lanes, 4 heads a warp for HS 64; 9 lanes, 3 heads and 5 idle lanes for
// HS 72. Pairs lie inside an access. Where a pair has a value of either half of the head, an access is twice 8 bytes,
// and in registers the two values stand side by side, like neighbours. The sum over a head is taken by every lane from
// its fellows, one after the other; 9 exchanges for 8 values are nothing beside the memory. blockIdx.y is 0 for queries
// and 1 for keys, so that a block knows one weight only. Where 16-byte accesses do not fit, a lane takes pairs, up to
// four of them.
//
// The cosines and sines of a token are read once a head: from the cache, where 2 NH heads find them.
//
// Bytes at 128 images of 256 tokens, 16 heads of 72, in bf16, 151 MB for queries and keys, and the time at 3 TB/s:
//   forward    read and write: 302 MB, 0.10 ms; with QK-norm raw is written too: 453 MB, 0.15 ms
//   backward   as much, 0.10 and 0.15 ms
//
// Look next at common/cuda/attention.cuh.
#pragma once
// defines: floatX, floatS, launch, shared_array, load16, blocks_for, UNROLL
#include "common/cuda/launch.cuh"
// defines: qknorm_rope_forward, qknorm_rope_backward
#include "common/ops.h"
// defines: PACKED, packable, load_values, store_values, add_parts
#include "common/cuda/rows.cuh"

constexpr int ROPE_WARPS = 8;      // of a block
constexpr int ROPE_BLOCKS = 4;     // that a multiprocessor holds of the backward: half for queries, half for keys
constexpr int ROPE_HEAD_MAX = 256; // values: 32 lanes with four pairs each

// A lane owns `units` accesses of N values: one of 16 bytes, or up to four pairs.
template <int N> constexpr int rope_units = N == PACKED ? 1 : 4;

// Half of an access.
template <int N> struct alignas(N / 2 * sizeof(floatX)) rope_half { floatX v[N / 2]; };

// N / 2 pairs, from the one on that begins at c where pairs are neighbours, from and to a head of HS values.
template <int N, rope_pairs_t pairs>
__device__ static inline void rope_load(float to[N], const floatX* head, int c, int HS) {
    if constexpr (pairs == ROPE_HALVES) {
        rope_half<N> first = *(const rope_half<N>*)(head + c / 2);
        rope_half<N> second = *(const rope_half<N>*)(head + HS / 2 + c / 2);
        for (int k = 0; k < N; k++) to[k] = (float)(k % 2 ? second : first).v[k / 2];
    } else if constexpr (N == PACKED) {
        load_values<N>(to, head + c);
    } else {
        for (int k = 0; k < N; k++) to[k] = (float)head[c + k];
    }
}
template <int N, rope_pairs_t pairs>
__device__ static inline void rope_store(floatX* head, const float from[N], int c, int HS) {
    if constexpr (pairs == ROPE_HALVES) {
        rope_half<N> first, second;
        for (int k = 0; k < N; k++) (k % 2 ? second : first).v[k / 2] = (floatX)from[k];
        *(rope_half<N>*)(head + c / 2) = first;
        *(rope_half<N>*)(head + HS / 2 + c / 2) = second;
    } else if constexpr (N == PACKED) {
        store_values<N>(head + c, from);
    } else {
        for (int k = 0; k < N; k++) head[c + k] = (floatX)from[k];
    }
}

// Turns N / 2 pairs by the angles whose cosines and sines are turn, or, with sign -1, back.
template <int N> __device__ static inline void rope_turn(float z[N], const float* turn, float sign) {
    float t[N];
    if constexpr (N == PACKED) {
        for (int part = 0; part < N; part += pack<float>::size) {
            pack<float> p = load16(turn + part);
            for (int k = 0; k < pack<float>::size; k++) t[part + k] = p[k];
        }
    } else {
        for (int k = 0; k < N; k++) t[k] = turn[k];
    }
    for (int k = 0; k < N; k += 2) {
        float a = z[k], b = z[k + 1], cosine = t[k], sine = sign * t[k + 1];
        z[k] = a * cosine - b * sine;
        z[k + 1] = b * cosine + a * sine;
    }
}

// Where a thread works: with its group of `lanes` lanes, which begins at lane `first`, on one head vector at a time.
// Lanes that are left over have lane = lanes: they own nothing, but take part in the exchanges.
typedef struct {
    int lanes, per_warp; // lanes of a group, groups of a warp
    int group, lane;     // this thread's group in its warp, and lane in its group
    int first;
} rope_place_t;

template <int N> static __host__ __device__ inline int rope_lanes(int HS) {
    int accesses = HS / N;
    return accesses < WARP ? accesses : (int)WARP;
}

template <int N> __device__ static inline rope_place_t rope_place(int HS) {
    rope_place_t p;
    int lane = threadIdx.x % WARP;
    p.lanes = rope_lanes<N>(HS);
    p.per_warp = WARP / p.lanes;
    p.group = lane / p.lanes;
    p.lane = lane % p.lanes;
    p.first = p.group * p.lanes;
    if (p.group >= p.per_warp) p.lane = p.lanes, p.first = 0;
    return p;
}

// The sum over a group, the same bits in each of its lanes. The whole warp calls.
__device__ static inline float rope_group_sum(float x, rope_place_t p) {
    float sum = 0;
    for (int i = 0; i < p.lanes; i++) sum += __shfl_sync(0xffffffffu, x, p.first + i);
    return sum;
}

// The column of a thread's i-th access, or HS where it has none.
template <int N> __device__ static inline int rope_column(rope_place_t p, int i, int HS) {
    int access = p.lane + i * p.lanes;
    return p.lane < p.lanes && access * N < HS ? access * N : HS;
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

// `heads` is B T NH. A group of lanes takes head vector `head` of the queries, or of the keys; all of a warp leave or
// go on together.
template <int N, rope_pairs_t pairs>
__global__ static void qknorm_rope_kernel(floatX* qkv,            // (B, T, 3, NH, HS) in place
                                          floatX* raw,            // (B, T, 2, NH, HS) or NULL
                                          floatS* rstd,           // (B, T, 2, NH) or NULL
                                          const floatX* q_weight, // (HS) or NULL
                                          const floatX* k_weight, // (HS) or NULL
                                          const floatS* rope,     // (T, HS / 2, 2)
                                          unsigned heads, int T, int NH, int HS, float eps) {
    rope_place_t p = rope_place<N>(HS);
    unsigned from = (blockIdx.x * ROPE_WARPS + threadIdx.x / WARP) * p.per_warp, head = from + p.group;
    if (from >= heads) return;
    const floatX* weight = blockIdx.y ? k_weight : q_weight;
    bool mine = head < heads && p.lane < p.lanes;
    unsigned row = mine ? head / NH : 0, at = mine ? head % NH : 0;
    size_t place = (size_t)row * 3 * NH + blockIdx.y * NH + at, kept = (size_t)row * 2 * NH + blockIdx.y * NH + at;
    float z[rope_units<N>][N], squares = 0;
    UNROLL for (int i = 0; i < rope_units<N>; i++) {
        int c = rope_column<N>(p, i, HS);
        if (!mine || c >= HS) continue;
        rope_load<N, pairs>(z[i], qkv + place * HS, c, HS);
        if (raw) rope_store<N, pairs>(raw + kept * HS, z[i], c, HS);
        for (int k = 0; k < N; k++) squares += z[i][k] * z[i][k];
    }
    float r = 1;
    if (weight) r = 1 / sqrtf(rope_group_sum(squares, p) / HS + eps);
    if (!mine) return;
    if (rstd && p.lane == 0) rstd[kept] = r;
    UNROLL for (int i = 0; i < rope_units<N>; i++) {
        int c = rope_column<N>(p, i, HS);
        if (c >= HS) continue;
        if (weight) {
            float w[N];
            rope_load<N, pairs>(w, weight, c, HS);
            for (int k = 0; k < N; k++) z[i][k] *= r * w[k];
        }
        rope_turn<N>(z[i], rope + (size_t)(row % T) * HS + c, 1);
        rope_store<N, pairs>(qkv + place * HS, z[i], c, HS);
    }
}

// Blocks for all head vectors of the queries, or of the keys.
template <int N> static inline unsigned rope_blocks(size_t heads, int HS) {
    return blocks_for(heads, ROPE_WARPS * (WARP / rope_lanes<N>(HS)));
}

// Whether heads can be read 16 bytes at a time; all sizes are checked here.
static inline int rope_packable(const floatX* qkv, const floatX* raw, const floatX* q_weight, const floatX* k_weight,
                                const floatS* rope, size_t heads, int HS) {
    if (HS % 2 || HS > ROPE_HEAD_MAX) {
        fatal("heads of %d values in the rotary embedding; they must be even, and %d are the most", HS, ROPE_HEAD_MAX);
    }
    if (heads >= (size_t)1 << 31) fatal("%zu heads in the rotary embedding; use a smaller -batch", heads);
    return packable(HS, qkv, raw, q_weight, k_weight) && (uintptr_t)rope % 16 == 0 && HS <= WARP * PACKED;
}

template <int N, rope_pairs_t pairs>
static inline void rope_launch(floatX* qkv, floatX* raw, floatS* rstd, const floatX* q_weight, const floatX* k_weight,
                               const floatS* rope, size_t heads, int T, int NH, int HS, float eps, stream_t s) {
    launch<qknorm_rope_kernel<N, pairs>>(dim3(rope_blocks<N>(heads, HS), 2), ROPE_WARPS * WARP, 0, s, qkv, raw, rstd,
                                         q_weight, k_weight, rope, (unsigned)heads, T, NH, HS, eps);
}

void qknorm_rope_forward(floatX* qkv,            // (B, T, 3, NH, HS) in place
                         floatX* raw,            // (B, T, 2, NH, HS) or NULL
                         floatS* rstd,           // (B, T, 2, NH) or NULL, as raw
                         const floatX* q_weight, // (HS) or NULL: no QK-norm
                         const floatX* k_weight, // (HS) or NULL, as q_weight
                         const floatS* rope,     // (T, HS / 2, 2)
                         int B, int T, int NH, int HS, rope_pairs_t pairs, double eps, stream_t s) {
    size_t heads = (size_t)B * T * NH;
    int packed = rope_packable(qkv, raw, q_weight, k_weight, rope, heads, HS), halves = pairs == ROPE_HALVES;
    auto with_pairs = halves ? rope_launch<2, ROPE_HALVES> : rope_launch<2, ROPE_NEIGHBOURS>;
    auto with_packs = halves ? rope_launch<PACKED, ROPE_HALVES> : rope_launch<PACKED, ROPE_NEIGHBOURS>;
    (packed ? with_packs : with_pairs)(qkv, raw, rstd, q_weight, k_weight, rope, heads, T, NH, HS, (float)eps, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward

// The block's part of the weight's gradient: its groups put their sums side by side, and they are added in order.
template <int N, rope_pairs_t pairs>
__device__ static inline void rope_write_part(float* part,                        // (HS)
                                              const float sum[rope_units<N>][N],
                                              rope_place_t p, int HS) {
    int groups = ROPE_WARPS * p.per_warp, mine = threadIdx.x / WARP * p.per_warp + p.group;
    shared<float> sums = shared_array<float>(0, (size_t)groups * HS);
    UNROLL for (int i = 0; i < rope_units<N>; i++) {
        int c = rope_column<N>(p, i, HS);
        if (c >= HS) continue;
        for (int k = 0; k < N; k++) sums[mine * HS + c + k] = sum[i][k];
    }
    __syncthreads();
    for (int c = threadIdx.x; c < HS; c += blockDim.x) {
        float total = 0;
        for (int g = 0; g < groups; g++) total += sums[g * HS + c];
        part[pairs == ROPE_HALVES ? c / 2 + c % 2 * (HS / 2) : c] = total;
    }
}

// A group of lanes takes a head vector and then every (groups of the grid)-th.
template <int N, rope_pairs_t pairs>
__launch_bounds__(ROPE_WARPS * WARP, N == PACKED ? ROPE_BLOCKS : 1)
__global__ static void qknorm_rope_backward_kernel(floatX* dqkv,           // (B, T, 3, NH, HS) in place
                                                   float* parts,           // (gridDim.x, 2, HS) or NULL
                                                   const floatX* raw,      // (B, T, 2, NH, HS) or NULL
                                                   const floatS* rstd,     // (B, T, 2, NH)
                                                   const floatX* q_weight, // (HS)
                                                   const floatX* k_weight, // (HS)
                                                   const floatS* rope,     // (T, HS / 2, 2)
                                                   unsigned heads, int T, int NH, int HS) {
    rope_place_t p = rope_place<N>(HS);
    const floatX* weight = blockIdx.y ? k_weight : q_weight;
    float sum[rope_units<N>][N] = {}, w[rope_units<N>][N] = {};
    UNROLL for (int i = 0; i < rope_units<N>; i++) {
        int c = rope_column<N>(p, i, HS);
        if (raw && c < HS) rope_load<N, pairs>(w[i], weight, c, HS);
    }
    unsigned begin = (blockIdx.x * ROPE_WARPS + threadIdx.x / WARP) * p.per_warp;
    unsigned step = gridDim.x * ROPE_WARPS * p.per_warp;
    for (unsigned from = begin; from < heads; from += step) { // the same for all of a warp
        unsigned head = from + p.group;
        bool mine = head < heads && p.lane < p.lanes;
        unsigned row = mine ? head / NH : 0, at = mine ? head % NH : 0;
        size_t place = (size_t)row * 3 * NH + blockIdx.y * NH + at, kept = (size_t)row * 2 * NH + blockIdx.y * NH + at;
        float d[rope_units<N>][N], z[rope_units<N>][N], along = 0;
        UNROLL for (int i = 0; i < rope_units<N>; i++) {
            int c = rope_column<N>(p, i, HS);
            if (!mine || c >= HS) continue;
            rope_load<N, pairs>(d[i], dqkv + place * HS, c, HS);
            if (raw) rope_load<N, pairs>(z[i], raw + kept * HS, c, HS);
            rope_turn<N>(d[i], rope + (size_t)(row % T) * HS + c, -1);
            for (int k = 0; raw && k < N; k++) along += d[i][k] * w[i][k] * z[i][k];
        }
        float r = raw && mine ? rstd[kept] : 0;
        if (raw) along = r * r * (rope_group_sum(along, p) / HS);
        UNROLL for (int i = 0; i < rope_units<N>; i++) {
            int c = rope_column<N>(p, i, HS);
            if (!mine || c >= HS) continue;
            for (int k = 0; raw && k < N; k++) {
                sum[i][k] += d[i][k] * z[i][k] * r;
                d[i][k] = r * (d[i][k] * w[i][k] - z[i][k] * along);
            }
            rope_store<N, pairs>(dqkv + place * HS, d[i], c, HS);
        }
    }
    if (parts) rope_write_part<N, pairs>(parts + ((size_t)blockIdx.x * 2 + blockIdx.y) * HS, sum, p, HS);
}

template <int N, rope_pairs_t pairs>
static inline void rope_launch_backward(floatX* dqkv, floatS* dq_weight, floatS* dk_weight, const floatX* raw,
                                        const floatS* rstd, const floatX* q_weight, const floatX* k_weight,
                                        const floatS* rope, size_t heads, int T, int NH, int HS, stream_t s) {
    unsigned blocks = rope_blocks<N>(heads, HS), machine = ROPE_BLOCKS / 2 * s->multiprocessors;
    float* parts = NULL;
    size_t shared_bytes = 0;
    if (raw && (dq_weight || dk_weight)) {
        if (blocks > machine) blocks = machine;
        parts = (float*)device_scratch(s, (size_t)blocks * 2 * HS * sizeof(float));
        shared_bytes = (size_t)ROPE_WARPS * (WARP / rope_lanes<N>(HS)) * HS * sizeof(float);
    }
    launch<qknorm_rope_backward_kernel<N, pairs>>(dim3(blocks, 2), ROPE_WARPS * WARP, shared_bytes, s, dqkv, parts, raw,
                                                  rstd, q_weight, k_weight, rope, (unsigned)heads, T, NH, HS);
    if (parts) add_parts(dq_weight, dk_weight, NULL, parts, blocks, 2, HS, s);
}

void qknorm_rope_backward(floatX* dqkv,           // (B, T, 3, NH, HS) in place
                          floatS* dq_weight,      // (HS) or NULL
                          floatS* dk_weight,      // (HS) or NULL
                          const floatX* raw,      // (B, T, 2, NH, HS) or NULL: no QK-norm
                          const floatS* rstd,     // (B, T, 2, NH)
                          const floatX* q_weight, // (HS)
                          const floatX* k_weight, // (HS)
                          const floatS* rope,     // (T, HS / 2, 2)
                          int B, int T, int NH, int HS, rope_pairs_t pairs, stream_t s) {
    size_t heads = (size_t)B * T * NH;
    int packed = rope_packable(dqkv, raw, q_weight, k_weight, rope, heads, HS), halves = pairs == ROPE_HALVES;
    auto with_pairs = halves ? rope_launch_backward<2, ROPE_HALVES> : rope_launch_backward<2, ROPE_NEIGHBOURS>;
    auto with_packs =
        halves ? rope_launch_backward<PACKED, ROPE_HALVES> : rope_launch_backward<PACKED, ROPE_NEIGHBOURS>;
    (packed ? with_packs : with_pairs)(dqkv, dq_weight, dk_weight, raw, rstd, q_weight, k_weight, rope, heads, T, NH,
                                       HS, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// The table of a grid

// A thread owns a pair of a token.
enum { ROPE_GRID_THREADS = 256 };
__global__ static void rope_grid_kernel(floatS* rope, // (P + GH GW, HS / 2, 2)
                                        int P, int GH, int GW, int HS, float log2_base) {
    int quarter = HS / 4, i = blockIdx.x * ROPE_GRID_THREADS + threadIdx.x;
    int t = i / (2 * quarter), p = i % (2 * quarter);
    if (t >= P + GH * GW) return;
    int n = t - P, place = p < quarter ? n / GW : n % GW, size = p < quarter ? GH : GW;
    float at = (float)(2 * place + 1 - size) / (float)size;
    float angle = t < P ? 0 : 6.283185307f * at * exp2f(-log2_base * (float)(p % quarter) / (float)quarter);
    rope[2 * (size_t)i] = cosf(angle);
    rope[2 * (size_t)i + 1] = sinf(angle);
}

void rope_grid(floatS* rope, // (P + GH GW, HS / 2, 2)
               int P, int GH, int GW, int HS, double base, stream_t s) {
    size_t pairs = ((size_t)P + (size_t)GH * GW) * (HS / 2);
    launch<rope_grid_kernel>(blocks_for(pairs, ROPE_GRID_THREADS), ROPE_GRID_THREADS, 0, s, rope, P, GH, GW, HS,
                             (float)log2(base));
}
