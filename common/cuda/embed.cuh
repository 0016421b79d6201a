// embed.cuh: from an image to the tokens of a vision transformer, and back to a feature map. Formulas: dev/cpu/embed.h.
//
// All of it is limited by memory and small beside the blocks: at 64 images of DINOv2-L, (64, 257, 1024), a kernel on
// tokens moves 67 MB, 0.023 ms at 3 TB/s. Unless said otherwise a block owns one row of C channels (one token), so that
// where the row comes from is worked out once a block; a thread owns packs of 16 bytes of it. Rows whose length is not
// a multiple of a pack begin where 16 bytes do not: load_upto and store_upto then take one value at a time.
//
// Nothing is read from tables: positions are integers or exact ratios of integers, and cheaper to compute than to load.
//
// Look next at common/cuda/conv.cuh.
#pragma once
// defines: floatX, floatS, launch, shared_array, pack
#include "common/cuda/launch.cuh"
// defines: channel_affine_t, the operations' contracts
#include "common/ops.h"
// defines: load_upto, store_upto, PACK_THREADS; PACKED, packable, load_values, store_values
#include "common/cuda/access.cuh"

// Threads of a block that owns a row of C values.
static inline unsigned row_threads(int C) {
    unsigned packs = blocks_for(C, pack<floatX>::size), threads = (packs + WARP - 1) / WARP * WARP;
    return threads < 256 ? threads : 256;
}
// The first value of this thread's first pack in a row, and the distance to its next one.
__device__ static inline int row_begin(void) { return threadIdx.x * pack<floatX>::size; }
__device__ static inline int row_step(void) { return blockDim.x * pack<floatX>::size; }

// to = from, one row of C values, by the block
__device__ static inline void copy_row(floatX* to, const floatX* from, int C) {
    for (int c = row_begin(); c < C; c += row_step()) store_upto(to + c, load_upto(from + c, C - c), C - c);
}

// ---------------------------------------------------------------------------------------------------------------------
// Bytes to values

// A thread owns 16 bytes. The division is exact where it can be: 0 and 255 become -1 and 1.
__global__ void image_from_bytes_kernel(floatX* out, const uint8_t* bytes, size_t n) {
    size_t i = pack_begin<uint8_t>();
    if (i >= n) return;
    pack<uint8_t> in = load_upto(bytes + i, n - i);
    for (int part = 0; part < pack<uint8_t>::size && i + part < n; part += pack<floatX>::size) {
        pack<floatX> value;
        for (int k = 0; k < pack<floatX>::size; k++) value[k] = (floatX)((float)in[part + k] / 127.5f - 1.0f);
        store_upto(out + i + part, value, n - i - part);
    }
}

void image_from_bytes(floatX* out, const uint8_t* bytes, size_t n, stream_t s) {
    if (n > 0) launch<image_from_bytes_kernel>(pack_blocks<uint8_t>(n), PACK_THREADS, 0, s, out, bytes, n);
}

// ---------------------------------------------------------------------------------------------------------------------
// Bilinear resize

// An output sample lies between inputs `lo` and `hi`, at `fraction` of the way.
typedef struct {
    int lo, hi;
    float fraction;
} bilinear_tap_t;

// src = ((2 o + 1) size - out_size) / (2 out_size), not below 0. A division of 64 bits takes four times one of 32; the
// latter suffices for images of up to 32767 pixels a side.
__device__ static inline bilinear_tap_t bilinear_tap(int o, int size, int out_size) {
    bilinear_tap_t tap;
    if (size < 32768 && out_size < 32768) {
        unsigned whole = (2 * (unsigned)o + 1) * size, denominator = 2 * (unsigned)out_size;
        unsigned numerator = whole > (unsigned)out_size ? whole - out_size : 0;
        tap.lo = numerator / denominator;
        tap.fraction = (float)(numerator % denominator) / (float)denominator;
    } else {
        uint64_t whole = (2 * (uint64_t)o + 1) * size, denominator = 2 * (uint64_t)out_size;
        uint64_t numerator = whole > (uint64_t)out_size ? whole - out_size : 0;
        tap.lo = (int)(numerator / denominator);
        tap.fraction = (float)(numerator % denominator) / (float)denominator;
    }
    tap.hi = tap.lo + 1 < size ? tap.lo + 1 : size - 1;
    return tap;
}

typedef struct { float scale[3], shift[3]; } channel_affine_float_t;

// A thread owns an output pixel: block x is its column, y its row, z its image. Its four pixels come through the cache,
// in which neighbours have them too.
enum { RESIZE_THREADS = 128 };
__global__ void resize_bilinear_kernel(floatX* out, const floatX* x, channel_affine_float_t affine, int H, int W,
                                       int OH, int OW) {
    int column = blockIdx.x * RESIZE_THREADS + threadIdx.x;
    if (column >= OW) return;
    bilinear_tap_t tx = bilinear_tap(column, W, OW);
    for (int row = blockIdx.y; row < OH; row += gridDim.y) {
        bilinear_tap_t ty = bilinear_tap(row, H, OH);
        const floatX* upper = x + ((size_t)blockIdx.z * H + ty.lo) * W * 3;
        const floatX* lower = x + ((size_t)blockIdx.z * H + ty.hi) * W * 3;
        floatX* to = out + (((size_t)blockIdx.z * OH + row) * OW + column) * 3;
        for (int c = 0; c < 3; c++) {
            size_t left = (size_t)tx.lo * 3 + c, right = (size_t)tx.hi * 3 + c;
            float above = (1 - tx.fraction) * (float)upper[left] + tx.fraction * (float)upper[right];
            float below = (1 - tx.fraction) * (float)lower[left] + tx.fraction * (float)lower[right];
            float value = (1 - ty.fraction) * above + ty.fraction * below;
            to[c] = (floatX)(affine.scale[c] * value + affine.shift[c]);
        }
    }
}

void resize_bilinear_forward(floatX* out,     // (B, OH, OW, 3)
                             const floatX* x, // (B, H, W, 3)
                             channel_affine_t affine, int B, int H, int W, int OH, int OW, stream_t s) {
    channel_affine_float_t a;
    for (int c = 0; c < 3; c++) {
        a.scale[c] = (float)affine.scale[c];
        a.shift[c] = (float)affine.shift[c];
    }
    for (int first = 0; first < B; first += 65535) { // the most that a grid has along z
        int images = B - first < 65535 ? B - first : 65535;
        dim3 grid(blocks_for(OW, RESIZE_THREADS), OH < 65535 ? OH : 65535, images);
        launch<resize_bilinear_kernel>(grid, RESIZE_THREADS, 0, s, out + (size_t)first * OH * OW * 3,
                                       x + (size_t)first * H * W * 3, a, H, W, OH, OW);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Patches

// A block owns a patch: one row of the output. The channels of a line of pixels lie together, and are read one behind
// the other by the same block: once from memory, then from the cache.
__global__ void patchify_kernel(floatX* out, const floatX* x, int H, int W, int C, int patch) {
    int GH = H / patch, GW = W / patch, length = C * patch * patch;
    size_t index = blockIdx.x, image = index / ((size_t)GH * GW);
    int place = (int)(index % ((size_t)GH * GW)), top = place / GW * patch, left = place % GW * patch;
    for (int i = threadIdx.x; i < length; i += blockDim.x) {
        int kx = i % patch, line = i / patch, ky = line % patch, c = line / patch;
        out[index * length + i] = x[((image * H + top + ky) * W + left + kx) * C + c];
    }
}

void patchify_forward(floatX* out,     // (B, (H/patch) (W/patch), C patch^2)
                      const floatX* x, // (B, H, W, C)
                      int B, int H, int W, int C, int patch, stream_t s) {
    size_t patches = (size_t)B * (H / patch) * (W / patch);
    int length = C * patch * patch;
    unsigned threads = length < 192 ? (length + WARP - 1) / WARP * WARP : 192;
    if (patches > 0) launch<patchify_kernel>((unsigned)patches, threads, 0, s, out, x, H, W, C, patch);
}

// A line of a token, patch pixels of C channels, is a piece of a line of the map. A thread owns a pack of one; `back`
// copies from the map to the tokens.
template <bool back>
__global__ void unpatchify_kernel(floatX* to, const floatX* from, size_t lines, int H, int W, int C, int patch) {
    int length = patch * C, packs = (length + pack<floatX>::size - 1) / pack<floatX>::size;
    size_t index = (size_t)blockIdx.x * PACK_THREADS + threadIdx.x, line = index / packs;
    int i = (int)(index % packs) * pack<floatX>::size;
    if (line >= lines) return;
    size_t GH = H / patch, GW = W / patch, token = line / patch, ky = line % patch;
    size_t image = token / (GH * GW), top = token / GW % GH * patch + ky, left = token % GW * patch;
    size_t in_tokens = line * length + i, in_map = ((image * H + top) * W + left) * C + i;
    store_upto(to + (back ? in_tokens : in_map), load_upto(from + (back ? in_map : in_tokens), length - i), length - i);
}

// The lines of all tokens, and the blocks for their packs.
static inline size_t unpatchify_lines(int B, int H, int W, int patch) {
    return (size_t)B * (H / patch) * (W / patch) * patch;
}
static inline unsigned unpatchify_blocks(size_t lines, int C, int patch) {
    return blocks_for(lines * blocks_for((size_t)patch * C, pack<floatX>::size), PACK_THREADS);
}

void unpatchify_forward(floatX* out,     // (B, H, W, C)
                        const floatX* x, // (B, (H/patch) (W/patch), patch^2 C)
                        int B, int H, int W, int C, int patch, stream_t s) {
    size_t lines = unpatchify_lines(B, H, W, patch);
    launch<unpatchify_kernel<false>>(unpatchify_blocks(lines, C, patch), PACK_THREADS, 0, s, out, x, lines, H, W, C,
                                     patch);
}

void unpatchify_backward(floatX* dx,         // (B, (H/patch) (W/patch), patch^2 C)
                         const floatX* dout, // (B, H, W, C)
                         int B, int H, int W, int C, int patch, stream_t s) {
    size_t lines = unpatchify_lines(B, H, W, patch);
    launch<unpatchify_kernel<true>>(unpatchify_blocks(lines, C, patch), PACK_THREADS, 0, s, dx, dout, lines, H, W, C,
                                    patch);
}

// ---------------------------------------------------------------------------------------------------------------------
// Position table

// Keys' cubic kernel with a = -0.5.
__device__ static inline float cubic_kernel(float t) {
    t = fabsf(t);
    if (t < 1) return (1.5f * t - 2.5f) * t * t + 1;
    if (t < 2) return ((-0.5f * t + 2.5f) * t - 4) * t + 2;
    return 0;
}

// Output i lies at centre = size (2 i + 1) / (2 out_size) on the input axis, and input j at j + 1/2. With the kernel's
// width max(size / out_size, 1), the distance in the kernel's units is
//     ((2 j + 1) out_size - size (2 i + 1)) / (2 max(size, out_size))
// whose numerator is an integer, so that it is exact but for one rounding.
__device__ static inline float cubic_weight(int i, int j, int size, int out_size) {
    int64_t numerator = (2 * (int64_t)j + 1) * out_size - (2 * (int64_t)i + 1) * size;
    return cubic_kernel((float)numerator / (2.0f * (float)(size > out_size ? size : out_size)));
}

// The inputs [lo, hi) that output i takes from: those within two widths of its centre that lie on the table.
typedef struct { int lo, hi; } cubic_range_t;
__device__ static inline cubic_range_t cubic_range(int i, int size, int out_size) {
    int64_t centre = (2 * (int64_t)i + 1) * size, reach = 4 * (int64_t)(size > out_size ? size : out_size);
    int64_t lo = (centre - reach + out_size) / (2 * (int64_t)out_size);
    int64_t hi = (centre + reach + out_size) / (2 * (int64_t)out_size);
    cubic_range_t range = {lo > 0 ? (int)lo : 0, hi < size ? (int)hi : size};
    return range;
}

// One entry of the matrix R (out_size, size): the taps of a row of R sum to one.
__device__ static inline float cubic_entry(int i, int j, int size, int out_size) {
    cubic_range_t range = cubic_range(i, size, out_size);
    if (j < range.lo || j >= range.hi) return 0;
    float sum = 0;
    for (int k = range.lo; k < range.hi; k++) sum += cubic_weight(i, k, size, out_size);
    return cubic_weight(i, j, size, out_size) / sum;
}

// out = R_y pos R_x^T. A block owns one row of the output: one place, all channels. It works out its rows of R_y and
// R_x in shared memory and sums the places that have a weight (100 at 37 -> 16), along x first.
__global__ void position_resample_kernel(floatX* out, const floatX* pos, int prefix, int grid, int GH, int GW, int C) {
    shared<float> weight_y = shared_array<float>(0, grid), weight_x = shared_array<float>(grid * sizeof(float), grid);
    int row = blockIdx.x;
    if (row < prefix) {
        copy_row(out + (size_t)row * C, pos + (size_t)row * C, C);
        return;
    }
    int y = (row - prefix) / GW, x = (row - prefix) % GW;
    for (int j = threadIdx.x; j < grid; j += blockDim.x) {
        weight_y[j] = cubic_entry(y, j, grid, GH);
        weight_x[j] = cubic_entry(x, j, grid, GW);
    }
    __syncthreads();
    cubic_range_t rows = cubic_range(y, grid, GH), columns = cubic_range(x, grid, GW);
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float sum = 0;
        for (int i = rows.lo; i < rows.hi; i++) {
            const floatX* line = pos + ((size_t)prefix + (size_t)i * grid) * C + c;
            float along = 0;
            for (int j = columns.lo; j < columns.hi; j++) along += weight_x[j] * (float)line[(size_t)j * C];
            sum += weight_y[i] * along;
        }
        out[(size_t)row * C + c] = (floatX)sum;
    }
}

// dpos += R_y^T dout R_x. A block owns one row of the table: what of it went to each output row y and column x.
__global__ void position_resample_backward_kernel(float* dpos, const float* dout, int prefix, int grid, int GH, int GW,
                                                  int C) {
    shared<float> weight_y = shared_array<float>(0, GH), weight_x = shared_array<float>(GH * sizeof(float), GW);
    int row = blockIdx.x;
    if (row < prefix) {
        for (int c = threadIdx.x; c < C; c += blockDim.x) dpos[(size_t)row * C + c] += dout[(size_t)row * C + c];
        return;
    }
    int i = (row - prefix) / grid, j = (row - prefix) % grid;
    for (int y = threadIdx.x; y < GH; y += blockDim.x) weight_y[y] = cubic_entry(y, i, grid, GH);
    for (int x = threadIdx.x; x < GW; x += blockDim.x) weight_x[x] = cubic_entry(x, j, grid, GW);
    __syncthreads();
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float sum = 0;
        for (int y = 0; y < GH; y++) {
            if (weight_y[y] == 0) continue;
            const float* line = dout + ((size_t)prefix + (size_t)y * GW) * C + c;
            float along = 0;
            for (int x = 0; x < GW; x++) {
                if (weight_x[x] != 0) along += weight_x[x] * line[(size_t)x * C];
            }
            sum += weight_y[y] * along;
        }
        dpos[(size_t)row * C + c] += sum;
    }
}

static inline unsigned channel_threads(int C) { return C < 256 ? (C + WARP - 1) / WARP * WARP : 256; }

void position_resample_forward(floatX* out,       // (prefix + GH GW, C)
                               const floatX* pos, // (prefix + grid grid, C)
                               int prefix, int grid, int GH, int GW, int C, stream_t s) {
    unsigned rows = prefix + GH * GW;
    launch<position_resample_kernel>(rows, channel_threads(C), 2 * grid * sizeof(float), s, out, pos, prefix, grid, GH,
                                     GW, C);
}

void position_resample_backward(floatS* dpos,       // (prefix + grid grid, C) +=
                                const floatS* dout, // (prefix + GH GW, C)
                                int prefix, int grid, int GH, int GW, int C, stream_t s) {
    unsigned rows = prefix + grid * grid;
    launch<position_resample_backward_kernel>(rows, channel_threads(C), (GH + GW) * sizeof(float), s, dpos, dout,
                                              prefix, grid, GH, GW, C);
}

// ---------------------------------------------------------------------------------------------------------------------
// Tokens

// A block owns a row of the output. One read of the patches and one write; cls, reg and pos stay in the cache.
template <int K> // values that a thread takes at once
__global__ static void tokens_kernel(floatS* out, const floatX* patches, const floatX* cls, const floatX* reg,
                                     const floatX* pos, int N, int C, int R, int pos_class) {
    int prefix = (cls ? 1 : 0) + R, T = prefix + N;
    size_t row = blockIdx.x, image = row / T;
    int t = (int)(row % T);
    const floatX *value, *position = nullptr;
    if (t >= prefix) {
        value = patches + (image * N + t - prefix) * C;
        if (pos) position = pos + (size_t)(pos_class + t - prefix) * C;
    } else if (cls && t == 0) {
        value = cls;
        if (pos_class) position = pos;
    } else {
        value = reg + (size_t)(t - (cls ? 1 : 0)) * C;
    }
    for (int c = threadIdx.x * K; c < C; c += blockDim.x * K) {
        float sum[K], add[K] = {};
        load_values<K>(sum, value + c);
        if (position) load_values<K>(add, position + c);
        for (int k = 0; k < K; k++) sum[k] += add[k];
        store_values<K>(out + row * C + c, sum);
    }
}

// A thread owns K columns of one place t in all images: it sums their gradients in order and copies those of patches on
// the way. 257 places of 128 packs are 33 thousand threads, only 250 a multiprocessor: so each asks for four images at
// once.
enum { TOKENS_AHEAD = 4 };
template <int K>
__global__ static void tokens_backward_kernel(floatX* dpatches, float* dcls, float* dreg, float* dpos,
                                              const floatS* dout, int B, int N, int C, int R, int pos_class) {
    int prefix = (dcls ? 1 : 0) + R, T = prefix + N, t = blockIdx.x, c = (blockIdx.y * blockDim.x + threadIdx.x) * K;
    if (c >= C) return;
    float *token = nullptr, *position = nullptr;
    if (t >= prefix) {
        if (dpos) position = dpos + (size_t)(pos_class + t - prefix) * C;
    } else if (dcls && t == 0) {
        token = dcls;
        if (pos_class) position = dpos;
    } else {
        token = dreg + (size_t)(t - (dcls ? 1 : 0)) * C;
    }
    float sum[K] = {};
    size_t from = (size_t)t * C + c, to = ((size_t)t - prefix) * C + c; // of image 0; `to` counts only for patches
    for (int first = 0; first < B; first += TOKENS_AHEAD) {
        float d[TOKENS_AHEAD][K] = {};
        UNROLL
        for (int i = 0; i < TOKENS_AHEAD; i++) {
            if (first + i < B) load_values<K>(d[i], dout + (size_t)(first + i) * T * C + from);
        }
        UNROLL
        for (int i = 0; i < TOKENS_AHEAD; i++) {
            if (first + i >= B) continue;
            if (t >= prefix) store_values<K>(dpatches + (size_t)(first + i) * N * C + to, d[i]);
            for (int k = 0; k < K; k++) sum[k] += d[i][k];
        }
    }
    for (int k = 0; k < K; k++) {
        if (token) token[c + k] += sum[k];
        if (position) position[c + k] += sum[k];
    }
}

void tokens_forward(floatS* out,           // (B, T, C)
                    const floatX* patches, // (B, N, C)
                    const floatX* cls,     // (C) or NULL
                    const floatX* reg,     // (R, C) or NULL when R is 0
                    const floatX* pos,     // (pos_class + N, C) or NULL
                    int B, int N, int C, int R, int pos_class, stream_t s) {
    unsigned rows = (unsigned)((size_t)B * ((cls ? 1 : 0) + R + N));
    if (packable(C, out, patches, cls, reg, pos)) {
        launch<tokens_kernel<PACKED>>(rows, row_threads(C), 0, s, out, patches, cls, reg, pos, N, C, R, pos_class);
    } else {
        launch<tokens_kernel<1>>(rows, row_threads(C), 0, s, out, patches, cls, reg, pos, N, C, R, pos_class);
    }
}

// A block owns a row.
template <int K>
__global__ static void embedding_rows_kernel(floatS* out, const floatX* table, const floatX* pos, const int* ids, int T,
                                             int C) {
    size_t row = blockIdx.x, from = (size_t)ids[row] * C, place = row % T * C;
    for (int c = threadIdx.x * K; c < C; c += blockDim.x * K) {
        float value[K], add[K] = {};
        load_values<K>(value, table + from + c);
        if (pos) load_values<K>(add, pos + place + c);
        for (int k = 0; k < K; k++) value[k] += add[k];
        store_values<K>(out + row * C + c, value);
    }
}

void embedding_rows(floatS* out,         // (B, T, C)
                    const floatX* table, // (rows, C)
                    const floatX* pos,   // (T, C) or NULL
                    const int* ids,      // (B, T)
                    int B, int T, int C, stream_t s) {
    unsigned rows = (unsigned)((size_t)B * T);
    if (rows == 0) return;
    if (packable(C, out, table, pos)) {
        launch<embedding_rows_kernel<PACKED>>(rows, row_threads(C), 0, s, out, table, pos, ids, T, C);
    } else {
        launch<embedding_rows_kernel<1>>(rows, row_threads(C), 0, s, out, table, pos, ids, T, C);
    }
}

void tokens_backward(floatX* dpatches,           // (B, N, C)
                     floatS* dcls, floatS* dreg, // (C), (R, C) += or NULL
                     floatS* dpos,               // (pos_class + N, C) += or NULL
                     const floatS* dout,         // (B, T, C)
                     int B, int N, int C, int R, int pos_class, stream_t s) {
    unsigned threads = row_threads(C) < 64 ? WARP : 64, places = (dcls ? 1 : 0) + R + N; // small blocks, to spread
    if (packable(C, dpatches, dout)) {
        launch<tokens_backward_kernel<PACKED>>(dim3(places, blocks_for(C, threads * PACKED)), threads, 0, s, dpatches,
                                               dcls, dreg, dpos, dout, B, N, C, R, pos_class);
    } else {
        launch<tokens_backward_kernel<1>>(dim3(places, blocks_for(C, threads)), threads, 0, s, dpatches, dcls, dreg,
                                          dpos, dout, B, N, C, R, pos_class);
    }
}

// A block owns a kept row.
__global__ void drop_prefix_kernel(floatX* out, const floatX* x, int T, int P, int C) {
    size_t row = blockIdx.x, image = row / (T - P), t = row % (T - P);
    copy_row(out + row * C, x + (image * T + P + t) * C, C);
}

// A block owns a row of dx.
__global__ void drop_prefix_backward_kernel(floatX* dx, const floatX* dout, int T, int P, int C) {
    size_t row = blockIdx.x, image = row / T;
    int t = (int)(row % T);
    if (t >= P) {
        copy_row(dx + row * C, dout + (image * (T - P) + t - P) * C, C);
        return;
    }
    pack<floatX> zero;
    for (int k = 0; k < pack<floatX>::size; k++) zero[k] = (floatX)0.0f;
    for (int c = row_begin(); c < C; c += row_step()) store_upto(dx + row * C + c, zero, C - c);
}

void drop_prefix_forward(floatX* out,     // (B, T - P, C)
                         const floatX* x, // (B, T, C)
                         int B, int T, int P, int C, stream_t s) {
    size_t rows = (size_t)B * (T - P);
    if (rows > 0) launch<drop_prefix_kernel>((unsigned)rows, row_threads(C), 0, s, out, x, T, P, C);
}

void drop_prefix_backward(floatX* dx,         // (B, T, C)
                          const floatX* dout, // (B, T - P, C)
                          int B, int T, int P, int C, stream_t s) {
    launch<drop_prefix_backward_kernel>((unsigned)((size_t)B * T), row_threads(C), 0, s, dx, dout, T, P, C);
}

// A block owns a token of the whole, of C values, and moves it from or to its place in a or b.
template <typename T, bool CONCAT>
__global__ void move_tokens_kernel(T* whole, T* a, T* b, int P, int Q, int C) {
    constexpr int size = pack<T>::size;
    size_t row = blockIdx.x, image = row / (P + Q);
    int t = (int)(row % (P + Q));
    T* in_whole = whole + row * C;
    T* in_part = t < P ? a + (image * P + t) * C : b + (image * Q + t - P) * C;
    T* to = CONCAT ? in_whole : in_part;
    const T* from = CONCAT ? in_part : in_whole;
    for (int c = threadIdx.x * size; c < C; c += blockDim.x * size) {
        store_upto(to + c, load_upto(from + c, C - c), C - c);
    }
}

template <bool CONCAT, typename T>
static inline void move_tokens(const T* whole, const T* a, const T* b, int B, int P, int Q, int C, stream_t s) {
    size_t rows = (size_t)B * (P + Q);
    if (rows == 0) return;
    launch<move_tokens_kernel<T, CONCAT>>((unsigned)rows, row_threads(C), 0, s, (T*)whole, (T*)a, (T*)b, P, Q, C);
}

void concat_tokens(floatX* out,     // (B, P + Q, C)
                   const floatX* a, // (B, P, C)
                   const floatX* b, // (B, Q, C)
                   int B, int P, int Q, int C, stream_t s) {
    move_tokens<true, floatX>(out, a, b, B, P, Q, C, s);
}
void split_tokens(floatX* a,       // (B, P, C)
                  floatX* b,       // (B, Q, C)
                  const floatX* x, // (B, P + Q, C)
                  int B, int P, int Q, int C, stream_t s) {
    move_tokens<false, floatX>(x, a, b, B, P, Q, C, s);
}
void concat_stream(floatS* out,     // (B, P + Q, C)
                   const floatS* a, // (B, P, C)
                   const floatS* b, // (B, Q, C)
                   int B, int P, int Q, int C, stream_t s) {
    move_tokens<true, floatS>(out, a, b, B, P, Q, C, s);
}
void split_stream(floatS* a,       // (B, P, C)
                  floatS* b,       // (B, Q, C)
                  const floatS* x, // (B, P + Q, C)
                  int B, int P, int Q, int C, stream_t s) {
    move_tokens<false, floatS>(x, a, b, B, P, Q, C, s);
}

// A block owns 32 channels of an image: a lane a channel, the 8 warps every eighth token, added up in order at the end.
enum { MEAN_WARPS = 8, MEAN_THREADS = MEAN_WARPS * WARP };
__global__ void mean_tokens_kernel(floatX* out, const floatX* x, int T, int C) {
    shared<float> work = shared_array<float>(0, MEAN_THREADS);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.y * WARP + lane;
    size_t image = blockIdx.x;
    float sum = 0;
    for (int t = warp; t < T && c < C; t += MEAN_WARPS) sum += (float)x[(image * T + t) * C + c];
    work[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || c >= C) return;
    float total = 0;
    for (int w = 0; w < MEAN_WARPS; w++) total += work[w * WARP + lane];
    out[image * C + c] = (floatX)(total / (float)T);
}

// A block owns a row of dx.
__global__ void mean_tokens_backward_kernel(floatX* dx, const floatX* dout, int T, int C) {
    size_t row = blockIdx.x, image = row / T;
    for (int c = row_begin(); c < C; c += row_step()) {
        pack<floatX> d = load_upto(dout + image * C + c, C - c);
        for (int k = 0; k < pack<floatX>::size; k++) d[k] = (floatX)((float)d[k] / (float)T);
        store_upto(dx + row * C + c, d, C - c);
    }
}

void mean_tokens_forward(floatX* out, const floatX* x, int B, int T, int C, stream_t s) { // (B, C) <- (B, T, C)
    dim3 grid(B, blocks_for(C, WARP));
    launch<mean_tokens_kernel>(grid, MEAN_THREADS, MEAN_THREADS * sizeof(float), s, out, x, T, C);
}

void mean_tokens_backward(floatX* dx, const floatX* dout, int B, int T, int C, stream_t s) { // (B, T, C) <- (B, C)
    launch<mean_tokens_backward_kernel>((unsigned)((size_t)B * T), row_threads(C), 0, s, dx, dout, T, C);
}
