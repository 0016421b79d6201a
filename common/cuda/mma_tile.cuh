// mma_tile.cuh: matrices of bf16 in shared memory, and their product by a warp's tensor cores. What convolutions and
// attention share.
//
// A tile is rows of COLS bf16, COLS a power of two and at least 16. Its unit is the piece: 8 columns, 16 bytes, what a
// thread copies by cp_async and names for ldmatrix. Piece p of row r lies in that row's place p ^ tile_swizzle(r):
//
//   Banks. Shared memory has 32 banks of 4 bytes: 128 bytes at once, 8 slots of one piece each. Eight threads are
//   served at once if and only if their pieces lie in different slots. Eight threads that copy neighbouring pieces
//   (half a row of 128, a row of 64, two rows of 32) fill 128 aligned bytes, in whatever order: all slots. ldmatrix
//   reads piece p of eight consecutive rows. Of these,
//     COLS >= 64: a row fills the 8 slots once or more, so unswizzled all eight would meet in slot p mod 8. With
//                 p ^ (r mod 8) they lie in eight slots.
//     COLS = 32:  two rows share the 8 slots: row r has the four from 4 (r mod 2) on. Rows of one parity are told apart
//                 by p ^ (r / 2 mod 4).
//     COLS = 16:  four rows share the 8 slots; p ^ (r / 4 mod 2).
//
// An operand lies in one of two ways, and ldmatrix turns what lies the other way round:
//
//   tile_load_a             tile (M, K): K runs along a row         e.g. x of a convolution, q of q k^T
//   tile_load_a_transposed  tile (K, M)                             e.g. dout of a weight gradient dout^T x
//   tile_load_b             tile (N, K): K runs along a row         e.g. weights (OC, C) of a forward, k of q k^T
//   tile_load_b_transposed  tile (K, N)                             e.g. weights (OC, C) of a data gradient, v of p v
//
// Each loads what the warp needs for 16 steps of K; tile_multiply then adds their product, with the fragments of
// mma_m16n8k16 (common/cuda/launch.cuh): thread t has, with g = t / 4 and q = t % 4,
//   a[i]       rows 16 i + g and 16 i + g + 8
//   b[j]       [0], [1]: column 16 j + g;  [2], [3]: column 16 j + 8 + g
//   d[i][j]    [0], [1]: row 16 i + g, columns 8 j + 2 q and the next;  [2], [3]: the same of row 16 i + g + 8
//
//   uint32_t a[M / 16][4], b[N / 16][4];
//   float d[M / 16][N / 8][4] = {};
//   for (int k = 0; k < K; k += 16) {
//       tile_load_a<M, COLS>(a, x, row, k);
//       tile_load_b<N, COLS>(b, w, column, k);
//       tile_multiply<M, N>(d, a, b);
//   }
//
// For M = 64, N = 32 that is 6 ldmatrix_x4 for 16 mma: 3 KB from shared memory for 32 K MAC.
// Look next at common/cuda/conv_gemm.cuh.
#pragma once
// defines: bf16, shared, ldmatrix_x4, ldmatrix_x4_transposed, mma_m16n8k16
#include "common/cuda/launch.cuh"

template <int COLS> __device__ static inline int tile_swizzle(int row) {
    constexpr int pieces = COLS / 8;
    return pieces >= 8 ? row & 7 : (unsigned)row / (8 / pieces) & (pieces - 1);
}

// The first element of a piece, from the beginning of the tile. Eight rows further on it is 8 COLS elements further on.
template <int COLS> __device__ static inline int tile_at(int row, int piece) {
    return row * COLS + (piece ^ tile_swizzle<COLS>(row)) * 8;
}

// Rows [row, row + M) and columns [k, k + 16) of a tile (M, K). The four matrices of an ldmatrix, in the order of the
// fragment's registers: rows 0-7, rows 8-15, then the same of the next 8 columns.
template <int M, int COLS>
__device__ static inline void tile_load_a(uint32_t a[M / 16][4], shared<const bf16> tile, int row, int k) {
    int lane = threadIdx.x % WARP, at = tile_at<COLS>(row + lane % 16, k / 8 + lane / 16);
    for (int i = 0; i < M / 16; i++) ldmatrix_x4(a[i], tile + at + 16 * i * COLS);
}

// Rows [k, k + 16) and columns [column, column + M) of a tile (K, M): columns 0-7 and 8-15 of the first 8 rows, then of
// the other 8.
template <int M, int COLS>
__device__ static inline void tile_load_a_transposed(uint32_t a[M / 16][4], shared<const bf16> tile, int column,
                                                     int k) {
    int lane = threadIdx.x % WARP, row = k + lane / 16 * 8 + lane % 8;
    for (int i = 0; i < M / 16; i++) {
        ldmatrix_x4_transposed(a[i], tile + tile_at<COLS>(row, column / 8 + 2 * i + lane / 8 % 2));
    }
}

// Rows [row, row + N) and columns [k, k + 16) of a tile (N, K): of 8 rows the two halves in k, then of the next 8 rows.
template <int N, int COLS>
__device__ static inline void tile_load_b(uint32_t b[N / 16][4], shared<const bf16> tile, int row, int k) {
    int lane = threadIdx.x % WARP, at = tile_at<COLS>(row + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2);
    for (int j = 0; j < N / 16; j++) ldmatrix_x4(b[j], tile + at + 16 * j * COLS);
}

// Rows [k, k + 16) and columns [column, column + N) of a tile (K, N): of 8 columns the two halves in k, then of the
// next 8 columns. N is a multiple of 8: of the last 8 columns alone, two halves.
template <int N, int COLS>
__device__ static inline void tile_load_b_transposed(uint32_t b[(N + 15) / 16][4], shared<const bf16> tile, int column,
                                                     int k) {
    int lane = threadIdx.x % WARP;
    for (int j = 0; j < N / 16; j++) {
        ldmatrix_x4_transposed(b[j], tile + tile_at<COLS>(k + lane % 16, column / 8 + 2 * j + lane / 16));
    }
    if constexpr (N % 16 == 8) {
        ldmatrix_x2_transposed(b[N / 16], tile + tile_at<COLS>(k + lane % 16, column / 8 + N / 8 - 1));
    }
}

// d (M, N) += a (M, 16) b (16, N)
template <int M, int N>
__device__ static inline void tile_multiply(float d[M / 16][N / 8][4], const uint32_t a[M / 16][4],
                                            const uint32_t b[N / 16][4]) {
    for (int i = 0; i < M / 16; i++) {
        for (int j = 0; j < N / 8; j++) mma_m16n8k16(d[i][j], a[i], b[j / 2] + 2 * (j % 2));
    }
}
