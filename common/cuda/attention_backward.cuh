// attention_backward.cuh: dq, dk and dv from dout, in tiles (attention_tiles.cuh), by five products of T^2 HS.
//
// A block has a whole head, so that everything that is added up is added by one block: no atomics, no second pass.
//
//   a warp owns          32 keys (16 where D is 128): their dk and dv in registers, k and v in shared memory
//   a block is           8 warps, fewer where T is small: up to 256 keys (128 where D is 128)
//   it goes through      queries, in tiles of QT: q and dout in two stages
//
// For each tile, every warp
//   1. S^T = k q^T,  dP^T = v dout^T     (its keys, queries): transposed, so that the result is the left operand of 2
//      P = 2^(S scale - lse),  dS = P (dP - delta)
//   2. dv += P^T dout,  dk += dS^T q     from registers; and leaves dS in shared memory, rounded to bf16
//   then, behind a barrier, all warps together
//   3. dq = dS k                         over all keys of the block, each warp a patch of the tile
//
// So dq of a tile is complete at once and is written where it belongs. Where a head has more keys than a block holds,
// the block goes through the queries once for each holding, a round, and between rounds dq waits in scratch memory, in
// fp32: 8 bytes a value and round.
//
//   delta = dout out, of a query. `out` comes into the place of dout of the stage that is not in use, and each thread
//   multiplies the pieces that it copied itself, so that no barrier is needed between.
//   Edges. Queries beyond T have lse = infinity and dout = 0, which makes P and dS zero. For keys beyond T see
//   attention_weights.
//   Class tokens. 257 to 272 keys would take a second round. Instead the last warp has 16 keys more, whose dk and dv
//   are parked in shared memory while it works on its others.
//   Registers. A multiprocessor has four parts of 16384. dk and dv of 32 keys and 72 channels take 144 of a thread's
//   255, S and dP of 32 x 32 another 64: two warps a part, one block a multiprocessor.
//   Shared memory. QT is 64, or 16 where a block may have less memory (99 KB on sm_86, 89 and 120). The results are the
//   same bits either way.
//
// Cost of a layer of ViT-L at B = 64, T = 257, 16 heads of 64: 8 tensors of 34 MB, 90 us at 3 TB/s; 5 products of
// 272 x 272 x 64, 48.5 GFLOP. 32 queries x 32 keys are 160 mma (an H100's part of a multiprocessor takes 1030 cycles)
// and 72 ldmatrix_x4: 16 each for S and dP, 8 each for dv and dk, 24 for dq (with the stores of dS 1250 cycles, for all
// four parts). So shared memory is the limit: 116 us in all. Look next at common/cuda/attention_products.cuh.
#pragma once
// defines: attention_tile, attention_copy, attention_scores, attention_operand, attention_accumulate, attention_store
#include "common/cuda/attention_tiles.cuh"

enum { ATTENTION_BACKWARD_WARPS = 8, ATTENTION_PARKED_KEYS = 16 };
__host__ __device__ constexpr int attention_own_keys(int D) { return D <= 80 ? 32 : 16; } // of a warp

// How a head's backward is cut.
typedef struct {
    int queries; // of a tile: QT
    int warps;   // of the block
    int keys;    // that the block holds
    int rounds;
    size_t bytes; // of shared memory
} attention_block_t;

// k and v; two stages of q and dout; dS; two stages of two numbers of a query; dk and dv of parked keys.
static inline size_t attention_backward_bytes(int D, int queries, int warps, int keys) {
    size_t columns = attention_columns(D), parked = keys - warps * attention_own_keys(D);
    return (2 * keys * columns + 4 * queries * columns + (size_t)keys * queries) * sizeof(bf16) +
           (4 * queries + 2 * parked * D) * sizeof(float);
}

// For T tokens, and a GPU that gives a block at most `limit` bytes of shared memory. At least two warps, because each
// thread fetches lse of a query at most.
static inline attention_block_t attention_backward_block(int D, int T, size_t limit) {
    int M = attention_own_keys(D), needed = (T + M - 1) / M, most = ATTENTION_BACKWARD_WARPS, parked = 0;
    if (D <= 64 && T > most * M && T <= most * M + ATTENTION_PARKED_KEYS) needed = most, parked = ATTENTION_PARKED_KEYS;
    attention_block_t block;
    block.rounds = (needed + most - 1) / most;
    block.warps = (needed + block.rounds - 1) / block.rounds;
    if (block.warps < 2) block.warps = 2;
    block.keys = block.warps * M + parked;
    block.queries = attention_backward_bytes(D, 64, block.warps, block.keys) <= limit ? 64 : 16;
    block.bytes = attention_backward_bytes(D, block.queries, block.warps, block.keys);
    if (block.bytes > limit) {
        fatal("attention's gradient needs %zu bytes of shared memory a block and this GPU allows %zu; the CPU build "
              "runs everywhere: `make CPU=1`", block.bytes, limit);
    }
    return block;
}

// Where things lie in shared memory, in elements of bf16: k and v (own, COLS); q and dout of a stage (QT, COLS); dS
// (own, QT). And (lse log2 e, delta) of a stage (QT, 2); parked dk and dv.
template <int D, int QT> struct attention_places {
    static constexpr int COLS = attention_columns(D);
    int own; // keys of the block
    __device__ int k() const { return 0; }
    __device__ int v() const { return own * COLS; }
    __device__ int q(int stage) const { return (2 * own + stage * 2 * QT) * COLS; }
    __device__ int dout(int stage) const { return q(stage) + QT * COLS; }
    __device__ int ds() const { return q(2); }
    __device__ shared<float> stats(int stage) const {
        return shared_array<float>((ds() + own * QT) * sizeof(bf16) + stage * QT * 2 * sizeof(float), QT * 2);
    }
    __device__ shared<float> parked(int i) const { // 0: dk, 1: dv
        size_t count = ATTENTION_PARKED_KEYS * D;
        return shared_array<float>((ds() + own * QT) * sizeof(bf16) + (4 * QT + i * count) * sizeof(float), count);
    }
};

// delta of the tile's queries, from the pieces of dout and out that this thread copied (attention_copy).
template <int COLS, int QT>
__device__ static inline void attention_delta(shared<float> stats, shared<const bf16> dout, shared<const bf16> out) {
    constexpr int lanes = attention_lanes<COLS>;
    for (int i = opaque_thread(); i < QT * lanes; i += blockDim.x) {
        float sum = 0;
        for (int piece = i % lanes; piece < COLS / 8; piece += lanes) {
            int at = tile_at<COLS>(i / lanes, piece);
            pack<bf16> a = load16(dout + at), b = load16(out + at);
            for (int c = 0; c < 8; c++) sum += (float)a[c] * (float)b[c];
        }
        for (int lane = 1; lane < lanes; lane *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
        if (i % lanes == 0) stats[i / lanes * 2 + 1] = sum;
    }
}

// lse log2 e of a tile's queries, a thread each: from device memory, which takes a while, and later into its place.
template <int QT> __device__ static inline float attention_get_lse(const float* lse, int first, int T) {
    int i = opaque_thread();
    return i < QT && first + i < T ? lse[first + i] * (float)ATTENTION_LOG2E : INFINITY;
}
template <int QT> __device__ static inline void attention_put_lse(shared<float> stats, float lse_log2) {
    if (threadIdx.x < QT) stats[2 * (int)threadIdx.x] = lse_log2;
}

// P = 2^(S scale - lse), dS = P (dP - delta), in place of S and dP, for 16 queries: columns [8 first, 8 first + 16).
// P is at most 1; of a key beyond T, whose S is 0, it could be infinite, and then 0 dS, its part in dq, no number.
template <int M, int N8>
__device__ static inline void attention_weights(float p[M / 16][N8][4], float ds[M / 16][N8][4],
                                                shared<const float> stats, int first, float scale_log2) {
    for (int j = 0; j < 2; j++) {
        pack<float> of = load16(stats + 2 * (8 * j + threadIdx.x % 4 * 2)); // two queries
        for (int i = 0; i < M / 4; i++) {
            float *weight = &p[i / 4][first + j][i % 4], *change = &ds[i / 4][first + j][i % 4];
            *weight = fminf(exp2_fast(fmaf(*weight, scale_log2, -of[i % 2 * 2])), 2);
            *change = *weight * (*change - of[i % 2 * 2 + 1]);
        }
    }
}

// Steps 1 and 2 for the M keys from own_row on, and queries [row, row + N) of the tile.
template <int D, int QT, int M, int N>
__device__ static inline void attention_backward_step(float dk[][D / 8][4], float dv[][D / 8][4],
                                                      attention_places<D, QT> at, int own_row, int stage, int row,
                                                      float scale_log2) {
    constexpr int COLS = attention_columns(D);
    const int lane = threadIdx.x % WARP;
    shared<bf16> q = attention_tile<COLS>(at.q(stage), QT), dout = attention_tile<COLS>(at.dout(stage), QT);
    shared<uint32_t> pairs = attention_pairs<QT>(at.ds(), at.own);
    float p[M / 16][N / 8][4] = {}, ds[M / 16][N / 8][4] = {};
    own_row = opaque(own_row), row = opaque(row);
    attention_scores<COLS, M, N>(p, attention_tile<COLS>(at.k(), at.own), own_row, q, row);
    attention_scores<COLS, M, N>(ds, attention_tile<COLS>(at.v(), at.own), own_row, dout, row);
    UNROLL
    for (int k = 0; k < N / 16; k++) { // 16 queries
        uint32_t operand[2][M / 16][4]; // P^T, dS^T
        attention_weights<M, N / 8>(p, ds, at.stats(stage) + 2 * (row + 16 * k), 2 * k, scale_log2);
        attention_operand<M, N>(operand[0], p, k);
        attention_operand<M, N>(operand[1], ds, k);
        attention_accumulate<D, M>(dv, operand[0], dout, opaque(row) + 16 * k);
        for (int i = 0; i < M / 4; i++) {
            int key = own_row + i / 4 * 16 + i % 2 * 8 + lane / 4, piece = (row + 16 * k) / 8 + i % 4 / 2;
            pairs[tile_at<QT>(key, piece) / 2 + lane % 4] = operand[1][i / 4][i % 4];
        }
        attention_accumulate<D, M>(dk, operand[1], q, row + 16 * k);
    }
}

// The same for the warp's keys, if any of the block's `keys` are, and all `queries` of the tile that lie before T.
template <int D, int QT>
__device__ static inline void attention_backward_tile(float dk[][D / 8][4], float dv[][D / 8][4],
                                                      attention_places<D, QT> at, int keys, int stage, int queries,
                                                      float scale_log2) {
    constexpr int M = attention_own_keys(D), N = QT < 32 || D == 80 ? 16 : 32; // as registers allow
    int own_row = opaque_thread() / WARP * M, row = 0;
    keys -= own_row;
    for (; keys > 0 && row + N - 16 < queries; row += N) {
        attention_backward_step<D, QT, M, N>(dk, dv, at, own_row, stage, row, scale_log2);
    }
    if (N > 16 && keys > 0 && row < queries) {
        attention_backward_step<D, QT, M, 16>(dk, dv, at, own_row, stage, row, scale_log2);
    }
}

// Parked dk or dv, (D / 8, WARP, 4): to registers and back. A lane finds what it put there itself.
template <int D> __device__ static inline void attention_unpark(float d[1][D / 8][4], shared<const float> parked) {
    for (int j = 0; j < D / 8; j++) {
        pack<float> of = load16(parked + (j * (int)WARP + (int)threadIdx.x % WARP) * 4);
        for (int i = 0; i < 4; i++) d[0][j][i] = of[i];
    }
}
template <int D> __device__ static inline void attention_park(shared<float> parked, const float d[1][D / 8][4]) {
    for (int j = 0; j < D / 8; j++) {
        pack<float> of;
        for (int i = 0; i < 4; i++) of[i] = d[0][j][i];
        store16(parked + (j * (int)WARP + (int)threadIdx.x % WARP) * 4, of);
    }
}

// Steps 1 and 2 for parked keys, from row parked_row on.
template <int D, int QT>
__device__ static inline void attention_backward_parked(attention_places<D, QT> at, int parked_row, int stage,
                                                        int queries, float scale_log2) {
    float dk[1][D / 8][4], dv[1][D / 8][4];
    attention_unpark<D>(dk, at.parked(0)), attention_unpark<D>(dv, at.parked(1));
    for (int row = 0; row < queries; row += 16) {
        attention_backward_step<D, QT, ATTENTION_PARKED_KEYS, 16>(dk, dv, at, parked_row, stage, row, scale_log2);
    }
    attention_park<D>(at.parked(0), dk), attention_park<D>(at.parked(1), dv);
}

// What the kernel is given; and the same for one head, from its first channel in the image's first token on.
typedef struct {
    bf16* dqkv;       // (B, T, 3, NH, HS)
    float* sums;      // (B, NH, T, HS): dq between rounds; of a single round NULL
    const bf16* dout; // (B, T, NH, HS)
    const bf16* qkv;  // (B, T, 3, NH, HS)
    const bf16* out;  // (B, T, NH, HS)
    const float* lse; // (B, NH, T)
    int T, NH, HS;
    int keys; // of a block
    float scale_log2, scale;
    int K;                // keys of a head: the last ones of its T tokens, behind padding
    const int* first_key; // (B) or NULL for 0
} attention_backward_t;

// Made anew wherever it is used (opaque): the registers are dk's and dv's. With heads of 72 channels there is none left for
// K: they come here without padding, where K is T (those with it take the kernel of 80).
template <int D> __device__ static inline attention_backward_t attention_head(attention_backward_t of) {
    int head = opaque(blockIdx.x);
    size_t in_qkv = attention_head_at(head, 3, of.T, of.NH, of.HS);
    size_t in_out = attention_head_at(head, 1, of.T, of.NH, of.HS);
    of.dqkv += in_qkv, of.qkv += in_qkv, of.dout += in_out, of.out += in_out;
    of.lse += (size_t)head * of.T;
    of.K = D == 72 ? of.T : of.T - attention_padding(of.first_key, head, of.NH);
    if (of.sums) of.sums += (size_t)head * of.T * of.HS;
    return of;
}

// A patch (16, W) of sums, from query `row` and `channel` on: calls of(pointer, j, i) for what a thread has of it, the
// pairs d[j][i], d[j][i + 1] of a product.
template <int W, typename F>
__device__ static inline void attention_each_pair(float* sums, int HS, int row, int channel, int queries, F of) {
    int lane = threadIdx.x % WARP;
    for (int j = 0; j < W / 8; j++) {
        for (int r = 0; r < 2; r++) {
            int query = lane / 4 + 8 * r, c = channel + 8 * j + lane % 4 * 2;
            if (query < queries && c < HS) of((float2*)(sums + (size_t)(row + query) * HS + c), j, 2 * r);
        }
    }
}

// Step 3: dq of the `queries` queries from `first` on, over the block's keys from `first_key` on. A warp's patch is 16
// queries and half of the channels, or 16 channels where the tile is small.
template <int D, int QT>
__device__ static inline void attention_backward_queries(attention_backward_t head, attention_places<D, QT> at,
                                                         int first_key, int stage, int first) {
    constexpr int COLS = attention_columns(D), W = QT == 64 ? COLS / 2 : 16, patches = COLS / W;
    shared<bf16> ds = attention_tile<QT>(at.ds(), at.own), k = attention_tile<COLS>(at.k(), at.own);
    int keys = min(head.K - first_key, at.own), stride = 3 * head.NH * head.HS;
    for (int patch = threadIdx.x / WARP; patch < QT / 16 * patches; patch += blockDim.x / WARP) {
        int row = patch / patches * 16, channel = patch % patches * W, rows = head.T - first - row;
        if (rows <= 0) continue;
        float d[1][W / 8][4] = {}, scales[2] = {head.scale, head.scale};
        if (first_key > 0) {
            attention_each_pair<W>(head.sums, head.HS, first + row, channel, rows, [&](float2* pair, int j, int i) {
                d[0][j][i] = pair->x, d[0][j][i + 1] = pair->y;
            });
        }
        for (int key = 0; key < keys; key += 16) {
            uint32_t a[1][4], b[(W + 15) / 16][4];
            tile_load_a_transposed<16, QT>(a, ds, row, key);
            tile_load_b_transposed<W, COLS>(b, k, channel, key);
            tile_multiply<16, W>(d, a, b);
        }
        if (first_key + at.own >= head.K) { // nobody reads q of this tile any more: there dq is gathered
            attention_store<COLS, 16, W>(head.dqkv + (size_t)(first + row) * stride, stride, at.q(stage), row, channel,
                                         d, scales, rows, head.HS);
        } else {
            attention_each_pair<W>(head.sums, head.HS, first + row, channel, rows, [&](float2* pair, int j, int i) {
                *pair = make_float2(d[0][j][i], d[0][j][i + 1]);
            });
        }
    }
}

// Writes dk and dv of the warp's M keys from own_row on, of the block's from first_key on.
template <int D, int QT, int M>
__device__ static inline void attention_store_keys(attention_backward_t head, attention_places<D, QT> at, int first_key,
                                                   int own_row, const float dk[][D / 8][4],
                                                   const float dv[][D / 8][4]) {
    constexpr int COLS = attention_columns(D);
    float scales[M / 8], ones[M / 8];
    for (int i = 0; i < M / 8; i++) scales[i] = head.scale, ones[i] = 1;
    int C = head.NH * head.HS, rows = head.K - first_key - own_row;
    bf16* to = head.dqkv + (size_t)(head.T - head.K + first_key + own_row) * 3 * C + C;
    attention_store<COLS, M, D>(to, 3 * C, at.k(), own_row, 0, dk, scales, rows, head.HS);
    attention_store<COLS, M, D>(to + C, 3 * C, at.v(), own_row, 0, dv, ones, rows, head.HS);
}

// A tile's q and dout to their stage; or its out to the place of dout in that stage.
template <int D, int QT>
__device__ static inline void attention_copy_queries(attention_backward_t head, attention_places<D, QT> at, int stage,
                                                     int first) {
    constexpr int COLS = attention_columns(D);
    int C = head.NH * head.HS;
    attention_copy<COLS>(attention_tile<COLS>(at.q(stage), QT), head.qkv, 3 * C, first, QT, head.T, head.HS);
    attention_copy<COLS>(attention_tile<COLS>(at.dout(stage), QT), head.dout, C, first, QT, head.T, head.HS);
}
template <int D, int QT>
__device__ static inline void attention_copy_out(attention_backward_t head, attention_places<D, QT> at, int stage,
                                                 int first) {
    constexpr int COLS = attention_columns(D);
    attention_copy<COLS>(attention_tile<COLS>(at.dout(stage), QT), head.out, head.NH * head.HS, first, QT, head.T,
                         head.HS);
}
template <int D, int QT>
__device__ static inline void attention_copy_keys(attention_backward_t head, attention_places<D, QT> at, int first) {
    constexpr int COLS = attention_columns(D);
    int C = head.NH * head.HS;
    head.qkv += (size_t)(head.T - head.K) * 3 * C;
    attention_copy<COLS>(attention_tile<COLS>(at.k(), at.own), head.qkv + C, 3 * C, first, at.own, head.K, head.HS);
    attention_copy<COLS>(attention_tile<COLS>(at.v(), at.own), head.qkv + 2 * C, 3 * C, first, at.own, head.K, head.HS);
}

// dk and dv of padding are zero.
__device__ static inline void attention_clear_padding(attention_backward_t head) {
    int C = head.NH * head.HS, pieces = head.HS / 8;
    pack<bf16> zero;
    for (int c = 0; c < 8; c++) zero[c] = (bf16)0.0f;
    for (int i = opaque_thread(); i < (head.T - head.K) * pieces; i += blockDim.x) {
        bf16* dk = head.dqkv + (size_t)(i / pieces) * 3 * C + C + i % pieces * 8;
        store16(dk, zero);
        store16(dk + C, zero);
    }
}

template <int D, int QT>
__global__ __launch_bounds__(ATTENTION_BACKWARD_WARPS * WARP, 1)
void attention_backward_kernel(attention_backward_t of) {
    constexpr int M = attention_own_keys(D), COLS = attention_columns(D), PARKED = ATTENTION_PARKED_KEYS;
    const int own_row = threadIdx.x / WARP * M, parked_row = blockDim.x / WARP * M, T = of.T;
    const attention_places<D, QT> at = {of.keys};
    const bool has_parked = D <= 64 && parked_row < of.keys && own_row + M == parked_row;
    attention_clear_padding(attention_head<D>(of));
    for (int first_key = 0; first_key < attention_head<D>(of).K; first_key += of.keys) {
        attention_backward_t head = attention_head<D>(of);
        attention_copy_keys<D, QT>(head, at, first_key);
        attention_copy_queries<D, QT>(head, at, 0, 0);
        attention_copy_out<D, QT>(head, at, 1, 0);
        cp_async_commit();
        attention_put_lse<QT>(at.stats(0), attention_get_lse<QT>(head.lse, 0, T));
        float dk[M / 16][D / 8][4] = {}, dv[M / 16][D / 8][4] = {};
        if (has_parked) attention_park<D>(at.parked(0), dk), attention_park<D>(at.parked(1), dv);
        for (int first = 0; first < T; first += QT) {
            int stage = first / QT % 2, next = first + QT, queries = min(T - first, QT);
            cp_async_wait<0>();
            attention_delta<COLS, QT>(at.stats(stage), attention_tile<COLS>(at.dout(stage), QT),
                                      attention_tile<COLS>(at.dout(!stage), QT)); // where out is
            __syncthreads(); // this tile is there, and every warp is done with the one before it
            if (next < T) {
                attention_copy_queries<D, QT>(attention_head<D>(of), at, !stage, next);
                cp_async_commit();
            }
            int keys = attention_head<D>(of).K - first_key;
            attention_backward_tile<D, QT>(dk, dv, at, keys, stage, queries, of.scale_log2);
            if (has_parked) attention_backward_parked<D, QT>(at, parked_row, stage, queries, of.scale_log2);
            __syncthreads(); // dS is there, and every warp is done with q and dout
            head = attention_head<D>(of);
            if (next < T) {
                attention_copy_out<D, QT>(head, at, stage, next);
                cp_async_commit();
            }
            float next_lse = attention_get_lse<QT>(head.lse, next, T);
            attention_backward_queries<D, QT>(head, at, first_key, stage, first);
            attention_put_lse<QT>(at.stats(!stage), next_lse);
        }
        __syncthreads(); // every warp is done with k
        head = attention_head<D>(of);
        attention_store_keys<D, QT, M>(head, at, first_key, own_row, dk, dv);
        if (has_parked) {
            attention_unpark<D>(dk, at.parked(0)), attention_unpark<D>(dv, at.parked(1));
            attention_store_keys<D, QT, PARKED>(head, at, first_key, parked_row, dk, dv);
        }
        __syncthreads(); // the places of k and v are free
    }
}

// Images go together whose sums fit the scratch memory.
template <int D>
static void attention_tiles_backward(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                                     const int* first_key, int B, int T, int NH, int HS, size_t scratch_bytes,
                                     stream_t s) {
    attention_block_t block = attention_backward_block(D, T, s->shared_bytes);
    size_t image = (size_t)T * NH * HS, most = block.rounds > 1 ? scratch_bytes / (image * sizeof(float)) : B;
    int images = most < 1 ? 1 : most < (size_t)B ? (int)most : B;
    double scale = 1 / sqrt(HS);
    attention_backward_t of = {dqkv, NULL, dout, qkv, out, lse, T, NH, HS, block.keys,
                               (float)(scale * ATTENTION_LOG2E), (float)scale, T, first_key};
    if (block.rounds > 1) of.sums = (float*)device_scratch(s, images * image * sizeof(float));
    for (int b = 0; b < B; b += images) {
        size_t heads = (size_t)(B - b < images ? B - b : images) * NH;
        int threads = block.warps * WARP;
        if (block.queries == 64) launch<attention_backward_kernel<D, 64>>(heads, threads, block.bytes, s, of);
        else launch<attention_backward_kernel<D, 16>>(heads, threads, block.bytes, s, of);
        of.dqkv += 3 * images * image, of.qkv += 3 * images * image;
        of.dout += images * image, of.out += images * image, of.lse += (size_t)images * NH * T;
        if (first_key) of.first_key += images;
    }
}
