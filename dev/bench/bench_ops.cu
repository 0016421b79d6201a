// bench_ops.cu: how fast each operation runs on this machine, at the sizes it has in the models.
//
//     make build/cpu/bench_ops && build/cpu/bench_ops [-only conv2d] [-runs 5]
//     make GPU=1 build/gpu/bench_ops && build/gpu/bench_ops -batch 32 -json ops.json
//
// A line is an operation at one size: microseconds a call, TFLOP/s (two a multiply-accumulate), GB/s, and both as
// shares of the limits measured in the same run. Bytes are those that have to be moved when each tensor is read or
// written once. Neither limit can be passed, so the larger of the two shares says how much of what the machine could do
// is done: the roofline. (In the CPU build tensors of the miniature stay in the cache, which is faster than memory.)
//
// Tensors lie in one arena of random numbers. A call takes the next ones of it, and on a GPU the next call those behind
// them, and so on, before it begins again at the front: between two uses of a tensor more bytes are touched than the
// level-2 cache holds. Full sizes are those of one 256x256 image times -batch; those of the miniature belong to its
// batch of 32. `AT_ONCE` marks what has the same size at every batch.
// Look next at dev/bench/bench_models.cu.

// defines: cli_t, cli_flag_t, cli_init, cli_parse
#include "common/program/cli.h"
// defines: RANDOM_NOISE
#include "common/program/rng.h"
// defines: bench_measure_short, bench_measure_limits, bench_fill; every operation
#include "dev/bench/bench.h"

enum { CHUNK = 8 }; // images of a group
enum { MOST_IMAGES = 1024, CLASSES = 1000, TIME_FREQUENCIES = 128 };
static const size_t cache_bytes = (size_t)256 << 20; // five times the level-2 cache of an H100

// The sizes of a case. What each means stands at the operation's wrapper.
typedef struct {
    int B, H, W, C, OC, K, stride;
} sizes_t;
typedef void (*operation_t)(sizes_t z, stream_t s);

typedef enum { PER_IMAGE, AT_ONCE } scaling_t; // is B multiplied by -batch?
typedef struct {
    const char *name, *where;
    operation_t run;
    scaling_t scaling;
    sizes_t z;
} case_t;

// ---------------------------------------------------------------------------------------------------------------------
// Tensors from the arena, and what a call costs

typedef struct {
    char* memory;
    size_t size, at;      // bytes of it; of the next tensor
    size_t begin, set;    // of this call's tensors, and how many bytes they are
    size_t sets, next;    // how often they fit; the next one
    int dry;              // only count: the operation is not to be run
    double macs, bytes;   // of a call
    int* labels;          // (MOST_IMAGES) classes below 1000: numbers that are an index cannot be random bits
} arena_t;
static arena_t arena;

static void* take(size_t bytes) {
    void* p = arena.memory + arena.begin + arena.at;
    arena.at += (bytes + 255) / 256 * 256;
    return p;
}
// The next tensor, which the operation reads or writes once; `_twice` both. Those of floatS are half of a bf16's number
// each, with random bits behind it: numbers of the same size.
static floatX* once(size_t n) {
    arena.bytes += (double)n * sizeof(floatX);
    return (floatX*)take(n * sizeof(floatX));
}
static floatX* twice(size_t n) {
    arena.bytes += (double)n * sizeof(floatX);
    return once(n);
}
static floatS* sums_once(size_t n) {
    arena.bytes += (double)n * sizeof(floatS);
    return (floatS*)take(n * sizeof(floatS));
}
static floatS* sums_twice(size_t n) {
    arena.bytes += (double)n * sizeof(floatS);
    return sums_once(n);
}
static void count_macs(double n) { arena.macs += n; }

// Whether to run: the operation stands behind `if (ready())`, its tensors before it.
static int ready(void) { return !arena.dry; }

// ---------------------------------------------------------------------------------------------------------------------
// Wrappers. Convolutions: (B, H, W, C) -> OC, K x K.

static conv_t conv_of(sizes_t z) {
    int pad = z.K == 4 ? 1 : z.K / 2; // PatchGAN's kernels are 4 x 4 with a border of 1
    return conv_square(z.C, z.OC, z.K, z.stride, pad, pad);
}
static size_t elements(sizes_t z) { return (size_t)z.B * z.H * z.W * z.C; }
static size_t conv_out_elements(sizes_t z) {
    return (size_t)z.B * conv_out_height(z.H, conv_of(z)) * conv_out_width(z.W, conv_of(z)) * z.OC;
}
static size_t conv_weights(sizes_t z) { return (size_t)z.OC * z.K * z.K * z.C; }
static void count_conv(sizes_t z) { count_macs((double)conv_out_elements(z) * z.K * z.K * z.C); }

static void run_conv_forward(sizes_t z, stream_t s) {
    floatX *out = once(conv_out_elements(z)), *x = once(elements(z)), *weight = once(conv_weights(z));
    floatX* bias = once(z.OC);
    count_conv(z);
    if (ready()) conv2d_forward(out, x, weight, bias, NULL, z.B, z.H, z.W, conv_of(z), ACT_NONE, s);
}
static void run_conv_data(sizes_t z, stream_t s) {
    floatX *dx = once(elements(z)), *dout = once(conv_out_elements(z)), *weight = once(conv_weights(z));
    count_conv(z);
    if (ready()) conv2d_backward_data(dx, dout, weight, NULL, z.B, z.H, z.W, conv_of(z), ACT_NONE, s);
}
static void run_conv_weight(sizes_t z, stream_t s) {
    floatS *dweight = sums_twice(conv_weights(z)), *dbias = sums_twice(z.OC);
    floatX *dout = once(conv_out_elements(z)), *x = once(elements(z));
    count_conv(z);
    if (ready()) conv2d_backward_weight(dweight, dbias, dout, x, z.B, z.H, z.W, conv_of(z), s);
}

// Matrix products: (B H, C) -> OC.
static void run_matmul(sizes_t z, stream_t s) {
    size_t N = (size_t)z.B * z.H;
    floatX *out = once(N * z.OC), *x = once(N * z.C), *weight = once((size_t)z.OC * z.C), *bias = once(z.OC);
    count_macs((double)N * z.C * z.OC);
    if (ready()) matmul_forward(out, x, weight, bias, N, z.C, z.OC, s);
}
static void run_matmul_gelu(sizes_t z, stream_t s) {
    size_t N = (size_t)z.B * z.H;
    floatX *out = once(N * z.OC), *pre = once(N * z.OC), *x = once(N * z.C), *weight = once((size_t)z.OC * z.C);
    floatX* bias = once(z.OC);
    count_macs((double)N * z.C * z.OC);
    if (ready()) matmul_gelu_forward(out, pre, x, weight, bias, N, z.C, z.OC, ACT_GELU, s);
}
static void run_matmul_backward(sizes_t z, stream_t s) {
    size_t N = (size_t)z.B * z.H, weights = (size_t)z.OC * z.C;
    floatX *dx = once(N * z.C), *dout = once(N * z.OC), *x = once(N * z.C), *weight = once(weights);
    floatS *dweight = sums_twice(weights), *dbias = sums_twice(z.OC);
    count_macs(2.0 * N * z.C * z.OC);
    if (ready()) matmul_backward(dx, dweight, dbias, dout, x, weight, N, z.C, z.OC, s);
}

// Attention: B images of H tokens, W heads of C channels.
static void run_attention(sizes_t z, stream_t s) {
    floatX *out = once(elements(z)), *qkv = once(3 * elements(z));
    floatS* lse = sums_once((size_t)z.B * z.H * z.W);
    count_macs(2.0 * elements(z) * z.H);
    if (ready()) attention_forward(out, lse, qkv, NULL, z.B, z.H, z.W, z.C, s);
}
static void run_attention_backward(sizes_t z, stream_t s) { // four products, and the scores again
    floatX *dqkv = once(3 * elements(z)), *dout = once(elements(z)), *qkv = once(3 * elements(z));
    floatX* out = once(elements(z));
    floatS* lse = sums_once((size_t)z.B * z.H * z.W);
    count_macs(5.0 * elements(z) * z.H);
    if (ready()) attention_backward(dqkv, dout, qkv, out, lse, NULL, z.B, z.H, z.W, z.C, s);
}

// Norms: B images of H W positions and C channels in K groups.
static void run_layernorm(sizes_t z, stream_t s) {
    size_t N = (size_t)z.B * z.H;
    floatS *sum = sums_once(N * z.C), *x = sums_once(N * z.C);
    floatX *out = once(N * z.C), *y = once(N * z.C), *gamma = once(z.C), *weight = once(z.C), *bias = once(z.C);
    floatS *mean = sums_once(N), *rstd = sums_once(N);
    if (ready()) residual_layernorm_forward(sum, out, mean, rstd, x, y, gamma, weight, bias, N, z.C, 1e-6, s);
}
static void run_layernorm_backward(sizes_t z, stream_t s) {
    size_t N = (size_t)z.B * z.H;
    floatS *dsum = sums_twice(N * z.C), *sum = sums_once(N * z.C);
    floatX *dy = once(N * z.C), *dout = once(N * z.C), *y = once(N * z.C), *gamma = once(z.C), *weight = once(z.C);
    floatS *dgamma = sums_twice(z.C), *dweight = sums_twice(z.C), *dbias = sums_twice(z.C);
    floatS *mean = sums_once(N), *rstd = sums_once(N);
    if (!ready()) return;
    residual_layernorm_backward(dsum, dy, dgamma, dweight, dbias, dout, sum, y, gamma, weight, mean, rstd, N, z.C, s);
}
static void run_groupnorm(sizes_t z, stream_t s) {
    floatX *out = once(elements(z)), *x = twice(elements(z)), *weight = once(z.C), *bias = once(z.C);
    floatS *mean = sums_once((size_t)z.B * z.K), *rstd = sums_once((size_t)z.B * z.K);
    if (!ready()) return;
    groupnorm_forward(out, mean, rstd, x, weight, bias, z.B, z.H * z.W, z.C, z.K, 1e-6, ACT_SWISH, s);
}
static void run_groupnorm_apply(sizes_t z, stream_t s) {
    floatX *out = once(elements(z)), *x = once(elements(z)), *weight = once(z.C), *bias = once(z.C);
    floatS *mean = sums_once((size_t)z.B * z.K), *rstd = sums_once((size_t)z.B * z.K);
    if (!ready()) return;
    groupnorm_apply(out, x, weight, bias, mean, rstd, z.B, z.H * z.W, z.C, z.K, ACT_SWISH, s);
}
static void run_groupnorm_backward(sizes_t z, stream_t s) { // the sums need all of dout and x before dx
    floatX *dx = once(elements(z)), *dout = twice(elements(z)), *x = twice(elements(z)), *weight = once(z.C);
    floatX* bias = once(z.C);
    floatS *mean = sums_once((size_t)z.B * z.K), *rstd = sums_once((size_t)z.B * z.K);
    floatS *dweight = sums_twice(z.C), *dbias = sums_twice(z.C);
    if (!ready()) return;
    groupnorm_backward(dx, dweight, dbias, dout, NULL, x, weight, bias, mean, rstd, z.B, z.H * z.W, z.C, z.K, ACT_SWISH,
                       s);
}
static int chunk_of(sizes_t z) { return z.B % CHUNK ? z.B : CHUNK; }
static void run_batchnorm(sizes_t z, stream_t s) {
    size_t groups = (size_t)(z.B / chunk_of(z)) * z.C;
    floatX *out = once(elements(z)), *x = twice(elements(z)), *weight = once(z.C), *bias = once(z.C);
    floatS *mean = sums_once(groups), *rstd = sums_once(groups);
    if (!ready()) return;
    batchnorm_leaky_forward(out, mean, rstd, x, weight, bias, NULL, NULL, z.B, z.H * z.W, z.C, chunk_of(z), 1e-5, 1, s);
}
static void run_batchnorm_backward(sizes_t z, stream_t s) {
    size_t groups = (size_t)(z.B / chunk_of(z)) * z.C;
    floatX *dx = once(elements(z)), *dout = twice(elements(z)), *x = twice(elements(z)), *weight = once(z.C);
    floatX* bias = once(z.C);
    floatS *mean = sums_once(groups), *rstd = sums_once(groups), *dweight = sums_twice(z.C), *dbias = sums_twice(z.C);
    if (!ready()) return;
    batchnorm_leaky_backward(dx, dweight, dbias, dout, x, weight, bias, mean, rstd, z.B, z.H * z.W, z.C, chunk_of(z), 1,
                             s);
}

// Maps: (B, H, W, C).
static void run_maxpool(sizes_t z, stream_t s) {
    floatX *out = once(elements(z) / 4), *x = once(elements(z));
    if (ready()) maxpool_forward(out, x, z.B, z.H, z.W, z.C, s);
}
static void run_maxpool_backward(sizes_t z, stream_t s) { // with the gradient of a tap of LPIPS
    floatX *dx = once(elements(z)), *dout = once(elements(z) / 4), *add = once(elements(z)), *x = once(elements(z));
    if (ready()) maxpool_relu_backward(dx, dout, add, x, z.B, z.H, z.W, z.C, s);
}
static void run_upsample(sizes_t z, stream_t s) {
    floatX *out = once(4 * elements(z)), *x = once(elements(z));
    if (ready()) upsample_forward(out, x, z.B, z.H, z.W, z.C, s);
}
static void run_upsample_backward(sizes_t z, stream_t s) {
    floatX *dx = once(elements(z)), *dout = once(4 * elements(z));
    if (ready()) upsample_backward(dx, dout, z.B, z.H, z.W, z.C, s);
}
static void run_gelu_backward(sizes_t z, stream_t s) {
    floatX *dpre = once(elements(z)), *dout = once(elements(z)), *pre = once(elements(z));
    if (ready()) gelu_backward(dpre, dout, pre, elements(z), ACT_GELU, s);
}

// Images to tokens. resize: H W pixels to OC x OC. positions: a table of K x K to H x W.
static void run_bytes(sizes_t z, stream_t s) {
    floatX* out = once(elements(z));
    const uint8_t* bytes = (const uint8_t*)take(elements(z));
    arena.bytes += (double)elements(z);
    if (ready()) image_from_bytes(out, bytes, elements(z), s);
}
static void run_resize(sizes_t z, stream_t s) {
    channel_affine_t affine = {{2, 2, 2}, {1, 1, 1}};
    floatX *out = once((size_t)z.B * z.OC * z.OC * 3), *x = once(elements(z));
    if (ready()) resize_bilinear_forward(out, x, affine, z.B, z.H, z.W, z.OC, z.OC, s);
}
static void run_patchify(sizes_t z, stream_t s) {
    floatX *out = once(elements(z)), *x = once(elements(z));
    if (ready()) patchify_forward(out, x, z.B, z.H, z.W, z.C, z.K, s);
}
static void run_positions(sizes_t z, stream_t s) {
    floatX *out = once(((size_t)z.H * z.W + 1) * z.C), *pos = once(((size_t)z.K * z.K + 1) * z.C);
    if (ready()) position_resample_forward(out, pos, 1, z.K, z.H, z.W, z.C, s);
}
static void run_positions_backward(sizes_t z, stream_t s) {
    floatS *dpos = sums_twice(((size_t)z.K * z.K + 1) * z.C), *dout = sums_once(((size_t)z.H * z.W + 1) * z.C);
    if (ready()) position_resample_backward(dpos, dout, 1, z.K, z.H, z.W, z.C, s);
}
static void run_tokens(sizes_t z, stream_t s) {
    size_t N = (size_t)z.H * z.W;
    floatS* out = sums_once(z.B * (N + 1) * z.C);
    floatX *patches = once(elements(z)), *cls = once(z.C), *pos = once((N + 1) * z.C);
    if (ready()) tokens_forward(out, patches, cls, NULL, pos, z.B, (int)N, z.C, 0, 1, s);
}
static void run_tokens_backward(sizes_t z, stream_t s) {
    size_t N = (size_t)z.H * z.W;
    floatX* dpatches = once(elements(z));
    floatS* dout = sums_once(z.B * (N + 1) * z.C);
    floatS *dcls = sums_twice(z.C), *dpos = sums_twice((N + 1) * z.C);
    if (ready()) tokens_backward(dpatches, dcls, NULL, dpos, dout, z.B, (int)N, z.C, 0, 1, s);
}

// Losses.
static void run_l1(sizes_t z, stream_t s) {
    floatS* loss = sums_once(z.B);
    floatX *xhat = once(elements(z)), *x = once(elements(z));
    if (ready()) l1_forward(loss, xhat, x, z.B, elements(z) / z.B, s);
}
static void run_l1_backward(sizes_t z, stream_t s) {
    channel_affine_t affine = {{2, 2, 2}, {1, 1, 1}};
    floatX *dxhat = once(elements(z)), *xhat = once(elements(z)), *x = once(elements(z)), *dscaled = once(elements(z));
    if (ready()) l1_backward(dxhat, xhat, x, dscaled, affine, 1, z.B, (size_t)z.H * z.W, s);
}
static void run_lpips_tap(sizes_t z, stream_t s) {
    floatS* loss = sums_twice(z.B);
    floatX *f = once(elements(z)), *g = once(elements(z)), *weight = once(z.C);
    if (ready()) lpips_tap_forward(loss, f, g, weight, z.B, z.H * z.W, z.C, s);
}
static void run_lpips_tap_backward(sizes_t z, stream_t s) {
    floatX *df = once(elements(z)), *f = once(elements(z)), *g = once(elements(z)), *weight = once(z.C);
    if (ready()) lpips_tap_backward(df, f, g, weight, 1, z.B, z.H * z.W, z.C, s);
}
static void run_semantic(sizes_t z, stream_t s) {
    int groups = z.B / chunk_of(z);
    floatS* loss = sums_once(groups);
    floatX *latent = once(elements(z)), *z0 = once(elements(z));
    if (ready()) semantic_l2_forward(loss, latent, z0, groups, elements(z) / groups, s);
}
static void run_hinge(sizes_t z, stream_t s) {
    int groups = z.B / chunk_of(z);
    floatS* loss = sums_once(groups);
    floatX *real = once(elements(z)), *fake = once(elements(z));
    if (ready()) hinge_forward(loss, real, fake, groups, elements(z) / groups, s);
}
static void run_add_scaled(sizes_t z, stream_t s) {
    int groups = z.B / chunk_of(z);
    floatX *out = once(elements(z)), *a = once(elements(z)), *b = once(elements(z));
    floatS* omega = sums_once(groups);
    if (ready()) add_scaled_groups(out, a, b, omega, groups, elements(z) / groups, s);
}

// The diffusion transformer: B images of H tokens and C channels. The modulation of an image is a row of six vectors.
enum { MODULATIONS = 6 };
static floatX* modulation(sizes_t z, int used) { // the rows, of which `used` vectors are read or written
    arena.bytes += (double)z.B * used * z.C * sizeof(floatX);
    return (floatX*)take((size_t)z.B * MODULATIONS * z.C * sizeof(floatX));
}
static void run_rmsnorm(sizes_t z, stream_t s) {
    size_t N = (size_t)z.B * z.H;
    floatX *out = once(N * z.C), *weight = once(z.C), *mod = modulation(z, 2);
    floatS *rstd = sums_once(N), *x = sums_once(N * z.C);
    if (!ready()) return;
    norm_modulate_forward(out, NULL, rstd, x, weight, mod, mod + z.C, (size_t)MODULATIONS * z.C, z.B, z.H, z.C, 1e-6, s);
}
static void run_rmsnorm_backward(sizes_t z, stream_t s) {
    size_t N = (size_t)z.B * z.H;
    floatX *dout = once(N * z.C), *weight = once(z.C), *mod = modulation(z, 1), *dmod = modulation(z, 2);
    floatS *dx = sums_twice(N * z.C), *x = sums_once(N * z.C), *rstd = sums_once(N), *dweight = sums_twice(z.C);
    if (!ready()) return;
    norm_modulate_backward(dx, dweight, dmod, dmod + z.C, dout, x, weight, mod, NULL, rstd,
                           (size_t)MODULATIONS * z.C, z.B, z.H, z.C, s);
}
static void run_gated(sizes_t z, stream_t s) {
    size_t N = (size_t)z.B * z.H;
    floatX *out = once(N * z.C), *branch = once(N * z.C), *weight = once(z.C), *mod = modulation(z, 3);
    floatS *sum = sums_once(N * z.C), *x = sums_once(N * z.C), *rstd = sums_once(N);
    if (!ready()) return;
    gated_norm_modulate_forward(sum, out, NULL, rstd, x, branch, mod, weight, mod + z.C, mod + 2 * z.C,
                                (size_t)MODULATIONS * z.C, z.B, z.H, z.C, 1e-6, s);
}
static void run_gated_backward(sizes_t z, stream_t s) {
    size_t N = (size_t)z.B * z.H;
    floatX *dbranch = once(N * z.C), *dout = once(N * z.C), *branch = once(N * z.C), *weight = once(z.C);
    floatX *mod = modulation(z, 2), *dmod = modulation(z, 3);
    floatS *dsum = sums_twice(N * z.C), *sum = sums_once(N * z.C), *rstd = sums_once(N), *dweight = sums_twice(z.C);
    if (!ready()) return;
    gated_norm_modulate_backward(dsum, dbranch, dmod, dweight, dmod + z.C, dmod + 2 * z.C, dout, sum, branch, mod,
                                 weight, mod + z.C, NULL, rstd, (size_t)MODULATIONS * z.C, z.B, z.H, z.C, s);
}
// W heads of C channels: queries and keys, two thirds of what is there, turn in place. K: 1 with QK-norm; 2 without,
// and with pairs of halves.
static floatX* queries_and_keys(sizes_t z) {
    arena.bytes += 4.0 * elements(z) * sizeof(floatX);
    return (floatX*)take(3 * elements(z) * sizeof(floatX));
}
static void run_rope(sizes_t z, stream_t s) {
    rope_pairs_t pairs = z.K == 2 ? ROPE_HALVES : ROPE_NEIGHBOURS;
    int norm = z.K == 1;
    floatX *qkv = queries_and_keys(z), *raw = norm ? once(2 * elements(z)) : NULL, *weight = norm ? once(z.C) : NULL;
    floatS *rstd = norm ? sums_once((size_t)z.B * z.H * 2 * z.W) : NULL, *rope = sums_once((size_t)z.H * z.C);
    if (ready()) qknorm_rope_forward(qkv, raw, rstd, weight, weight, rope, z.B, z.H, z.W, z.C, pairs, 1e-6, s);
}
static void run_rope_backward(sizes_t z, stream_t s) {
    rope_pairs_t pairs = z.K == 2 ? ROPE_HALVES : ROPE_NEIGHBOURS;
    int norm = z.K == 1;
    floatX *dqkv = queries_and_keys(z), *raw = norm ? once(2 * elements(z)) : NULL, *weight = norm ? once(z.C) : NULL;
    floatS *rstd = norm ? sums_once((size_t)z.B * z.H * 2 * z.W) : NULL, *rope = sums_once((size_t)z.H * z.C);
    floatS *dq = norm ? sums_twice(z.C) : NULL, *dk = norm ? sums_twice(z.C) : NULL;
    if (ready()) qknorm_rope_backward(dqkv, dq, dk, raw, rstd, weight, weight, rope, z.B, z.H, z.W, z.C, pairs, s);
}
static void run_swiglu(sizes_t z, stream_t s) {
    size_t N = (size_t)z.B * z.H;
    floatX *out = once(N * z.C), *x = once(2 * N * z.C);
    if (ready()) swiglu_forward(out, x, N, z.C, s);
}
static void run_swiglu_backward(sizes_t z, stream_t s) {
    size_t N = (size_t)z.B * z.H;
    floatX *dx = once(2 * N * z.C), *dout = once(N * z.C), *x = once(2 * N * z.C);
    floatS* dbias = sums_twice(2 * z.C);
    if (ready()) swiglu_backward(dx, dbias, dout, x, N, z.C, s);
}
static void run_time_features(sizes_t z, stream_t s) {
    floatX* out = once((size_t)z.B * 2 * TIME_FREQUENCIES);
    floatS* t = sums_once(z.B);
    if (ready()) timestep_features(out, t, 1, z.B, TIME_FREQUENCIES, s);
}
static void run_condition(sizes_t z, stream_t s) { // of the class table a row an image counts
    size_t n = (size_t)z.B * z.C;
    floatX *out = once(n), *time = twice(n), *table = (floatX*)take((size_t)CLASSES * z.C * sizeof(floatX));
    floatS* c = sums_once(n);
    if (ready()) condition_forward(out, c, time, table, arena.labels, CLASSES, z.B, z.C, s);
}
static void run_condition_backward(sizes_t z, stream_t s) {
    size_t n = (size_t)z.B * z.C;
    floatX *dtime = once(n), *dout = once(n);
    floatS *c = sums_once(n), *dtable = (floatS*)take((size_t)CLASSES * z.C * sizeof(floatS));
    arena.bytes += 2.0 * n * sizeof(floatS);
    if (ready()) condition_backward(dtime, dtable, dout, c, arena.labels, CLASSES, z.B, z.C, s);
}
static void run_position_add(sizes_t z, stream_t s) {
    floatS *out = sums_once((size_t)z.B * z.H * z.C), *pos = sums_once((size_t)z.H * z.C);
    floatX* x = once((size_t)z.B * z.H * z.C);
    if (ready()) position_add_forward(out, x, pos, z.B, z.H, z.C, s);
}
static void run_to_floatX(sizes_t z, stream_t s) {
    floatX* out = once(elements(z));
    floatS* x = sums_once(elements(z));
    if (ready()) to_floatX(out, x, elements(z), s);
}
static void run_unpatchify(sizes_t z, stream_t s) {
    floatX *out = once(elements(z)), *x = once(elements(z));
    if (ready()) unpatchify_forward(out, x, z.B, z.H, z.W, z.C, z.K, s);
}
static void run_unpatchify_backward(sizes_t z, stream_t s) {
    floatX *dx = once(elements(z)), *dout = once(elements(z));
    if (ready()) unpatchify_backward(dx, dout, z.B, z.H, z.W, z.C, z.K, s);
}

// Flow matching on latents (B, H, W, C).
static void run_flow_path(sizes_t z, stream_t s) {
    floatX* xt = once(elements(z));
    floatS *u = sums_once(elements(z)), *x1 = sums_once(elements(z)), *t = sums_once(z.B);
    if (ready()) flow_path(xt, u, x1, t, z.B, elements(z) / z.B, 1, RANDOM_NOISE, 0, 0, s);
}
static void run_flow_loss(sizes_t z, stream_t s) { // with its gradient
    floatS *mse = sums_once(z.B), *cosine = sums_once(z.B), *u = sums_once(elements(z));
    floatX *dv = once(elements(z)), *v = once(elements(z));
    if (ready()) flow_loss(mse, cosine, dv, v, u, NULL, 1.0 / z.B, 1.0 / z.B, z.B, z.H * z.W, z.C, s);
}
static void run_flow_guide(sizes_t z, stream_t s) {
    floatS *out = sums_once(elements(z)), *w = sums_once(z.B);
    floatX *cond = once(elements(z)), *null = once(elements(z));
    if (ready()) flow_guide(out, cond, null, w, z.C, z.B, z.H * z.W, z.C, z.C, s);
}
static void run_flow_combine(sizes_t z, stream_t s) { // a step of Euler's
    static const double one[1] = {1};
    floatS *out = sums_once(elements(z)), *x = sums_once(elements(z)), *k = sums_once(elements(z)), *h = sums_once(z.B);
    if (ready()) flow_combine(out, x, k, h, one, 1, z.B, elements(z) / z.B, s);
}
static void run_denormalise(sizes_t z, stream_t s) {
    floatX* out = once(elements(z));
    floatS *x = sums_once(elements(z)), *mean = sums_once(z.C), *std = sums_once(z.C);
    if (ready()) latent_denormalise(out, x, mean, std, elements(z) / z.C, z.C, s);
}

// The optimiser: B groups of H W C values; of a whole network as one.
static void run_sum_squares(sizes_t z, stream_t s) {
    floatS *out = sums_once(z.B), *x = sums_once(elements(z));
    if (ready()) sum_squares(out, x, z.B, elements(z) / z.B, s);
}
static void run_accumulate_scaled(sizes_t z, stream_t s) {
    floatS *out = sums_twice(elements(z) / z.B), *a = sums_once(elements(z)), *b = sums_once(elements(z));
    floatS* omega = sums_once(z.B);
    if (ready()) accumulate_scaled_groups(out, a, b, omega, z.B, elements(z) / z.B, s);
}
// Weights are kept twice where the operations read bf16.
static floatX* weights_of(size_t n) { return sizeof(floatX) == sizeof(floatS) ? NULL : once(n); }
static void run_adam(sizes_t z, stream_t s) {
    size_t n = elements(z);
    adam_t adam = {0, 0.5, 0, 1e-8, 0, 1, {0.9, 0.9}, 1}; // beta2 0: v is random at first, then a square
    floatX* weight = weights_of(n);
    floatS *master = sums_twice(n), *m = sums_twice(n), *v = sums_twice(n), *grad = sums_once(n);
    floatS *ema0 = sums_twice(n), *ema1 = sums_twice(n);
    if (ready()) adam_update(weight ? weight : (floatX*)master, master, m, v, ema0, ema1, grad, n, adam, s);
}
// With one average: that of the diffusion transformer.
static void run_adamw(sizes_t z, stream_t s) {
    size_t n = elements(z);
    adam_t adam = {0, 0.9, 0, 1e-8, 0, 1, {0.9, 0}, 1};
    floatX* weight = weights_of(n);
    floatS *master = sums_twice(n), *m = sums_twice(n), *v = sums_twice(n), *grad = sums_once(n), *ema = sums_twice(n);
    if (ready()) adam_update(weight ? weight : (floatX*)master, master, m, v, ema, NULL, grad, n, adam, s);
}
static void run_exchange(sizes_t z, stream_t s) {
    size_t n = elements(z);
    floatX* weight = weights_of(n);
    floatS *master = sums_twice(n), *other = sums_twice(n);
    if (ready()) exchange_weights(weight ? weight : (floatX*)master, master, other, n, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// The list: name, where in the models, wrapper, scaling, sizes

#define CONVS(WHERE, SCALING, ...)                                              \
    {"conv2d_forward", WHERE, run_conv_forward, SCALING, __VA_ARGS__},          \
    {"conv2d_backward_data", WHERE, run_conv_data, SCALING, __VA_ARGS__},       \
    {"conv2d_backward_weight", WHERE, run_conv_weight, SCALING, __VA_ARGS__}
#define MATMULS(WHERE, SCALING, ...)                                            \
    {"matmul_forward", WHERE, run_matmul, SCALING, __VA_ARGS__},                \
    {"matmul_backward", WHERE, run_matmul_backward, SCALING, __VA_ARGS__}
#define ATTENTIONS(WHERE, SCALING, ...)                                         \
    {"attention_forward", WHERE, run_attention, SCALING, __VA_ARGS__},          \
    {"attention_backward", WHERE, run_attention_backward, SCALING, __VA_ARGS__}
#define LAYERNORMS(WHERE, SCALING, ...)                                         \
    {"residual_layernorm_forward", WHERE, run_layernorm, SCALING, __VA_ARGS__}, \
    {"residual_layernorm_backward", WHERE, run_layernorm_backward, SCALING, __VA_ARGS__}
#define GROUPNORMS(WHERE, SCALING, ...)                                         \
    {"groupnorm_forward", WHERE, run_groupnorm, SCALING, __VA_ARGS__},          \
    {"groupnorm_apply", WHERE, run_groupnorm_apply, SCALING, __VA_ARGS__},      \
    {"groupnorm_backward", WHERE, run_groupnorm_backward, SCALING, __VA_ARGS__}
#define BATCHNORMS(WHERE, SCALING, ...)                                         \
    {"batchnorm_leaky_forward", WHERE, run_batchnorm, SCALING, __VA_ARGS__},    \
    {"batchnorm_leaky_backward", WHERE, run_batchnorm_backward, SCALING, __VA_ARGS__}
#define MAXPOOLS(WHERE, SCALING, ...)                                           \
    {"maxpool_forward", WHERE, run_maxpool, SCALING, __VA_ARGS__},              \
    {"maxpool_relu_backward", WHERE, run_maxpool_backward, SCALING, __VA_ARGS__}
#define UPSAMPLES(WHERE, SCALING, ...)                                          \
    {"upsample_forward", WHERE, run_upsample, SCALING, __VA_ARGS__},            \
    {"upsample_backward", WHERE, run_upsample_backward, SCALING, __VA_ARGS__}
#define TAPS(WHERE, SCALING, ...)                                               \
    {"lpips_tap_forward", WHERE, run_lpips_tap, SCALING, __VA_ARGS__},          \
    {"lpips_tap_backward", WHERE, run_lpips_tap_backward, SCALING, __VA_ARGS__}
#define RMSNORMS(WHERE, SCALING, ...)                                           \
    {"norm_modulate_forward", WHERE, run_rmsnorm, SCALING, __VA_ARGS__},     \
    {"norm_modulate_backward", WHERE, run_rmsnorm_backward, SCALING, __VA_ARGS__}, \
    {"gated_norm_modulate_forward", WHERE, run_gated, SCALING, __VA_ARGS__}, \
    {"gated_norm_modulate_backward", WHERE, run_gated_backward, SCALING, __VA_ARGS__}
#define ROPES(WHERE, SCALING, ...)                                              \
    {"qknorm_rope_forward", WHERE, run_rope, SCALING, __VA_ARGS__},             \
    {"qknorm_rope_backward", WHERE, run_rope_backward, SCALING, __VA_ARGS__}
#define SWIGLUS(WHERE, SCALING, ...)                                            \
    {"swiglu_forward", WHERE, run_swiglu, SCALING, __VA_ARGS__},                \
    {"swiglu_backward", WHERE, run_swiglu_backward, SCALING, __VA_ARGS__}

static const case_t cases[] = {
    // decoder, from the latent up
    CONVS("decoder conv_in", PER_IMAGE, {1, 16, 16, 32, 512, 3, 1}),
    CONVS("decoder 16x16", PER_IMAGE, {1, 16, 16, 512, 512, 3, 1}),
    CONVS("decoder 16x16 1x1", PER_IMAGE, {1, 16, 16, 512, 512, 1, 1}),
    CONVS("decoder 32x32", PER_IMAGE, {1, 32, 32, 512, 512, 3, 1}),
    CONVS("decoder 32x32 down", PER_IMAGE, {1, 32, 32, 512, 256, 3, 1}),
    CONVS("decoder 32x32 1x1", PER_IMAGE, {1, 32, 32, 512, 256, 1, 1}),
    CONVS("decoder 64x64", PER_IMAGE, {1, 64, 64, 256, 256, 3, 1}),
    CONVS("decoder 128x128 up", PER_IMAGE, {1, 128, 128, 256, 256, 3, 1}),
    CONVS("decoder 128x128", PER_IMAGE, {1, 128, 128, 128, 128, 3, 1}),
    CONVS("decoder 256x256", PER_IMAGE, {1, 256, 256, 128, 128, 3, 1}),
    CONVS("decoder conv_out", PER_IMAGE, {1, 256, 256, 128, 3, 3, 1}),
    GROUPNORMS("decoder 16x16", PER_IMAGE, {1, 16, 16, 512, 0, 32, 0}),
    GROUPNORMS("decoder 64x64", PER_IMAGE, {1, 64, 64, 256, 0, 32, 0}),
    GROUPNORMS("decoder 256x256", PER_IMAGE, {1, 256, 256, 128, 0, 32, 0}),
    ATTENTIONS("decoder", PER_IMAGE, {1, 256, 1, 512, 0, 0, 0}),
    UPSAMPLES("decoder 16x16", PER_IMAGE, {1, 16, 16, 512, 0, 0, 0}),
    UPSAMPLES("decoder 128x128", PER_IMAGE, {1, 128, 128, 128, 0, 0, 0}),
    // VGG16 and LPIPS
    CONVS("VGG 1.1", PER_IMAGE, {1, 256, 256, 3, 64, 3, 1}),
    CONVS("VGG slice 1", PER_IMAGE, {1, 256, 256, 64, 64, 3, 1}),
    CONVS("VGG slice 2", PER_IMAGE, {1, 128, 128, 128, 128, 3, 1}),
    CONVS("VGG slice 3", PER_IMAGE, {1, 64, 64, 256, 256, 3, 1}),
    CONVS("VGG slice 4", PER_IMAGE, {1, 32, 32, 512, 512, 3, 1}),
    CONVS("VGG slice 5", PER_IMAGE, {1, 16, 16, 512, 512, 3, 1}),
    MAXPOOLS("VGG slice 1", PER_IMAGE, {1, 256, 256, 64, 0, 0, 0}),
    MAXPOOLS("VGG slice 3", PER_IMAGE, {1, 64, 64, 256, 0, 0, 0}),
    TAPS("VGG slice 1", PER_IMAGE, {1, 256, 256, 64, 0, 0, 0}),
    TAPS("VGG slice 3", PER_IMAGE, {1, 64, 64, 256, 0, 0, 0}),
    TAPS("VGG slice 5", PER_IMAGE, {1, 16, 16, 512, 0, 0, 0}),
    // PatchGAN
    CONVS("PatchGAN 1", PER_IMAGE, {1, 256, 256, 3, 64, 4, 2}),
    CONVS("PatchGAN 2", PER_IMAGE, {1, 128, 128, 64, 128, 4, 2}),
    CONVS("PatchGAN 3", PER_IMAGE, {1, 64, 64, 128, 256, 4, 2}),
    CONVS("PatchGAN 4", PER_IMAGE, {1, 32, 32, 256, 512, 4, 1}),
    CONVS("PatchGAN 5", PER_IMAGE, {1, 31, 31, 512, 1, 4, 1}),
    BATCHNORMS("PatchGAN 2", PER_IMAGE, {1, 64, 64, 128, 0, 0, 0}),
    BATCHNORMS("PatchGAN 4", PER_IMAGE, {1, 31, 31, 512, 0, 0, 0}),
    {"hinge_forward", "PatchGAN", run_hinge, PER_IMAGE, {1, 30, 30, 1, 0, 0, 0}},
    // DINOv2-L and the adapter
    MATMULS("DINOv2-L qkv", PER_IMAGE, {1, 257, 1, 1024, 3072, 0, 0}),
    MATMULS("DINOv2-L proj", PER_IMAGE, {1, 257, 1, 1024, 1024, 0, 0}),
    {"matmul_gelu_forward", "DINOv2-L fc1", run_matmul_gelu, PER_IMAGE, {1, 257, 1, 1024, 4096, 0, 0}},
    {"matmul_backward", "DINOv2-L fc1", run_matmul_backward, PER_IMAGE, {1, 257, 1, 1024, 4096, 0, 0}},
    MATMULS("DINOv2-L fc2", PER_IMAGE, {1, 257, 1, 4096, 1024, 0, 0}),
    MATMULS("DINOv2-L patches", PER_IMAGE, {1, 256, 1, 588, 1024, 0, 0}),
    MATMULS("adapter fc1", PER_IMAGE, {1, 256, 1, 1024, 64, 0, 0}),
    MATMULS("adapter fc2", PER_IMAGE, {1, 256, 1, 64, 32, 0, 0}),
    ATTENTIONS("DINOv2-L", PER_IMAGE, {1, 257, 16, 64, 0, 0, 0}),
    LAYERNORMS("DINOv2-L", PER_IMAGE, {1, 257, 1, 1024, 0, 0, 0}),
    {"gelu_backward", "DINOv2-L", run_gelu_backward, PER_IMAGE, {1, 257, 1, 4096, 0, 0, 0}},
    {"image_from_bytes", "256x256", run_bytes, PER_IMAGE, {1, 256, 256, 3, 0, 0, 0}},
    {"resize_bilinear_forward", "DINOv2-L", run_resize, PER_IMAGE, {1, 256, 256, 3, 224, 0, 0}},
    {"patchify_forward", "DINOv2-L", run_patchify, PER_IMAGE, {1, 224, 224, 3, 0, 14, 0}},
    {"position_resample_forward", "DINOv2-L", run_positions, AT_ONCE, {1, 16, 16, 1024, 0, 37, 0}},
    {"position_resample_backward", "DINOv2-L", run_positions_backward, AT_ONCE, {1, 16, 16, 1024, 0, 37, 0}},
    {"tokens_forward", "DINOv2-L", run_tokens, PER_IMAGE, {1, 16, 16, 1024, 0, 0, 0}},
    {"tokens_backward", "DINOv2-L", run_tokens_backward, PER_IMAGE, {1, 16, 16, 1024, 0, 0, 0}},
    ROPES("DINOv3-L", PER_IMAGE, {1, 261, 16, 64, 0, 2, 0}),
    // losses and optimiser
    {"l1_forward", "256x256", run_l1, PER_IMAGE, {1, 256, 256, 3, 0, 0, 0}},
    {"l1_backward", "256x256", run_l1_backward, PER_IMAGE, {1, 256, 256, 3, 0, 0, 0}},
    {"semantic_l2_forward", "latents", run_semantic, PER_IMAGE, {1, 16, 16, 32, 0, 0, 0}},
    {"add_scaled_groups", "256x256", run_add_scaled, PER_IMAGE, {1, 256, 256, 3, 0, 0, 0}},
    {"accumulate_scaled_groups", "conv_out, 8 groups", run_accumulate_scaled, AT_ONCE, {8, 9, 128, 3, 0, 0, 0}},
    {"sum_squares", "conv_out, 8 groups", run_sum_squares, AT_ONCE, {8, 9, 128, 3, 0, 0, 0}},
    {"sum_squares", "decoder 41.42M", run_sum_squares, AT_ONCE, {1, 1, 1, 41417603, 0, 0, 0}},
    {"sum_squares", "stage 2 348.62M", run_sum_squares, AT_ONCE, {1, 1, 1, 348620000, 0, 0, 0}},
    {"adam_update", "decoder 41.42M", run_adam, AT_ONCE, {1, 1, 1, 41417600, 0, 0, 0}},
    {"adam_update", "stage 2 348.62M", run_adam, AT_ONCE, {1, 1, 1, 348620000, 0, 0, 0}},
    {"exchange_weights", "decoder 41.42M", run_exchange, AT_ONCE, {1, 1, 1, 41417600, 0, 0, 0}},
    {"exchange_weights", "stage 2 348.62M", run_exchange, AT_ONCE, {1, 1, 1, 348620000, 0, 0, 0}},
    // LightningDiT-XL/1 on 16x16 latents with 32 channels: 28 blocks, the modulation of all of them in one product
    MATMULS("XL/1 qkv", PER_IMAGE, {1, 256, 1, 1152, 3456, 0, 0}),
    MATMULS("XL/1 proj", PER_IMAGE, {1, 256, 1, 1152, 1152, 0, 0}),
    MATMULS("XL/1 w12", PER_IMAGE, {1, 256, 1, 1152, 6144, 0, 0}),
    MATMULS("XL/1 w3", PER_IMAGE, {1, 256, 1, 3072, 1152, 0, 0}),
    MATMULS("XL/1 patches", PER_IMAGE, {1, 256, 1, 32, 1152, 0, 0}),
    MATMULS("XL/1 output", PER_IMAGE, {1, 256, 1, 1152, 32, 0, 0}),
    MATMULS("XL/1 modulation", PER_IMAGE, {1, 1, 1, 1152, 195840, 0, 0}),
    ATTENTIONS("XL/1", PER_IMAGE, {1, 256, 16, 72, 0, 0, 0}),
    ATTENTIONS("B/1", PER_IMAGE, {1, 256, 12, 64, 0, 0, 0}),
    ATTENTIONS("2B, 256 px, 77 text rows", PER_IMAGE, {1, 333, 16, 128, 0, 0, 0}),
    RMSNORMS("XL/1", PER_IMAGE, {1, 256, 1, 1152, 0, 0, 0}),
    ROPES("XL/1", PER_IMAGE, {1, 256, 16, 72, 0, 0, 0}),
    ROPES("XL/1, QK-norm", PER_IMAGE, {1, 256, 16, 72, 0, 1, 0}),
    SWIGLUS("XL/1", PER_IMAGE, {1, 256, 1, 3072, 0, 0, 0}),
    {"timestep_features", "XL/1", run_time_features, PER_IMAGE, {1, 1, 1, 256, 0, 0, 0}},
    {"condition_forward", "XL/1", run_condition, PER_IMAGE, {1, 1, 1, 1152, 0, 0, 0}},
    {"condition_backward", "XL/1", run_condition_backward, PER_IMAGE, {1, 1, 1, 1152, 0, 0, 0}},
    {"position_add_forward", "XL/1", run_position_add, PER_IMAGE, {1, 256, 1, 1152, 0, 0, 0}},
    {"to_floatX", "XL/1", run_to_floatX, PER_IMAGE, {1, 256, 1, 1152, 0, 0, 0}},
    {"patchify_forward", "XL/2", run_patchify, PER_IMAGE, {1, 16, 16, 32, 0, 2, 0}},
    {"unpatchify_forward", "XL/2", run_unpatchify, PER_IMAGE, {1, 16, 16, 32, 0, 2, 0}},
    {"unpatchify_backward", "XL/2", run_unpatchify_backward, PER_IMAGE, {1, 16, 16, 32, 0, 2, 0}},
    {"flow_path", "latents", run_flow_path, PER_IMAGE, {1, 16, 16, 32, 0, 0, 0}},
    {"flow_loss", "latents", run_flow_loss, PER_IMAGE, {1, 16, 16, 32, 0, 0, 0}},
    {"flow_guide", "latents", run_flow_guide, PER_IMAGE, {1, 16, 16, 32, 0, 0, 0}},
    {"flow_combine", "latents", run_flow_combine, PER_IMAGE, {1, 16, 16, 32, 0, 0, 0}},
    {"latent_denormalise", "latents", run_denormalise, PER_IMAGE, {1, 16, 16, 32, 0, 0, 0}},
    {"sum_squares", "XL/1 674.96M", run_sum_squares, AT_ONCE, {1, 1, 1, 674961696, 0, 0, 0}},
    {"adam_update", "XL/1 674.96M", run_adamw, AT_ONCE, {1, 1, 1, 674961696, 0, 1, 0}},
    // the miniature, its batch of 32
    CONVS("mini decoder 4x4", AT_ONCE, {32, 4, 4, 64, 64, 3, 1}),
    CONVS("mini decoder 16x16", AT_ONCE, {32, 16, 16, 32, 32, 3, 1}),
    CONVS("mini decoder 32x32", AT_ONCE, {32, 32, 32, 16, 16, 3, 1}),
    CONVS("mini conv_out", AT_ONCE, {32, 32, 32, 16, 3, 3, 1}),
    CONVS("mini VGG 1.1", AT_ONCE, {32, 32, 32, 3, 16, 3, 1}),
    CONVS("mini PatchGAN 1", AT_ONCE, {32, 32, 32, 3, 16, 4, 2}),
    CONVS("mini PatchGAN 3", AT_ONCE, {32, 8, 8, 32, 64, 4, 2}),
    CONVS("mini PatchGAN 5", AT_ONCE, {32, 3, 3, 128, 1, 4, 1}),
    MATMULS("mini ViT qkv", AT_ONCE, {32, 17, 1, 96, 288, 0, 0}),
    MATMULS("mini ViT fc2", AT_ONCE, {32, 17, 1, 384, 96, 0, 0}),
    {"matmul_gelu_forward", "mini ViT fc1", run_matmul_gelu, AT_ONCE, {32, 17, 1, 96, 384, 0, 0}},
    ATTENTIONS("mini ViT", AT_ONCE, {32, 17, 3, 32, 0, 0, 0}),
    ATTENTIONS("mini decoder", AT_ONCE, {32, 16, 1, 64, 0, 0, 0}),
    LAYERNORMS("mini ViT", AT_ONCE, {32, 17, 1, 96, 0, 0, 0}),
    {"gelu_backward", "mini ViT", run_gelu_backward, AT_ONCE, {32, 17, 1, 384, 0, 0, 0}},
    GROUPNORMS("mini decoder 8x8", AT_ONCE, {32, 8, 8, 64, 0, 8, 0}),
    GROUPNORMS("mini decoder 32x32", AT_ONCE, {32, 32, 32, 16, 0, 8, 0}),
    BATCHNORMS("mini PatchGAN 2", AT_ONCE, {32, 8, 8, 32, 0, 0, 0}),
    MAXPOOLS("mini VGG 1", AT_ONCE, {32, 32, 32, 16, 0, 0, 0}),
    UPSAMPLES("mini 16x16", AT_ONCE, {32, 16, 16, 32, 0, 0, 0}),
    TAPS("mini VGG 1", AT_ONCE, {32, 32, 32, 16, 0, 0, 0}),
    {"adam_update", "mini 1M values", run_adam, AT_ONCE, {1, 1, 1 << 10, 1 << 10, 0, 0, 0}},
    // LightningDiT mini, its batch of 128
    MATMULS("mini DiT qkv", AT_ONCE, {128, 16, 1, 128, 384, 0, 0}),
    MATMULS("mini DiT w12", AT_ONCE, {128, 16, 1, 128, 688, 0, 0}),
    MATMULS("mini DiT w3", AT_ONCE, {128, 16, 1, 344, 128, 0, 0}),
    MATMULS("mini DiT modulation", AT_ONCE, {128, 1, 1, 128, 4864, 0, 0}),
    ATTENTIONS("mini DiT", AT_ONCE, {128, 16, 4, 32, 0, 0, 0}),
    RMSNORMS("mini DiT", AT_ONCE, {128, 16, 1, 128, 0, 0, 0}),
    ROPES("mini DiT", AT_ONCE, {128, 16, 4, 32, 0, 0, 0}),
    ROPES("mini DiT, QK-norm", AT_ONCE, {128, 16, 4, 32, 0, 1, 0}),
    SWIGLUS("mini DiT", AT_ONCE, {128, 16, 1, 344, 0, 0, 0}),
    {"condition_forward", "mini DiT", run_condition, AT_ONCE, {128, 1, 1, 128, 0, 0, 0}},
    {"condition_backward", "mini DiT", run_condition_backward, AT_ONCE, {128, 1, 1, 128, 0, 0, 0}},
    {"flow_path", "mini DiT", run_flow_path, AT_ONCE, {128, 4, 4, 16, 0, 0, 0}},
    {"flow_loss", "mini DiT", run_flow_loss, AT_ONCE, {128, 4, 4, 16, 0, 0, 0}},
};
enum { CASES = sizeof cases / sizeof cases[0] };

// ---------------------------------------------------------------------------------------------------------------------
// Measuring a case, and its line

// One call, on the next set of tensors.
static void run_case(void* state, stream_t s) {
    const case_t* c = (const case_t*)state;
    arena.begin = arena.next * arena.set;
    arena.next = arena.next + 1 == arena.sets ? 0 : arena.next + 1;
    arena.at = 0;
    c->run(c->z, s);
}

// How much a call needs and costs. Returns 0 when the arena is too small for it.
static int prepare(const case_t* c, stream_t s) {
    arena.dry = 1;
    arena.begin = arena.at = arena.next = 0;
    arena.macs = arena.bytes = 0;
    c->run(c->z, s);
    arena.dry = 0;
    arena.set = arena.at;
    size_t fit = arena.size / arena.set, wanted = BENCH_IS_GPU ? cache_bytes / arena.set + 1 : 1;
    arena.sets = fit < wanted ? fit : wanted;
    return arena.sets > 0;
}

typedef struct {
    FILE* json; // or NULL
    bench_limits_t limits;
    int runs;
    stream_t stream;
} bench_t;

static void bench_case(const bench_t* bench, const case_t* c) {
    const sizes_t* z = &c->z;
    if (!prepare(c, bench->stream)) {
        printf("%-32s%-20s  left out: wants %.2f GiB, -memory is %.2f\n", c->name, c->where, arena.set / 1073741824.0,
               arena.size / 1073741824.0);
        return;
    }
    double macs = arena.macs, bytes = arena.bytes; // of one call: they go on counting
    bench_time_t t = bench_measure_short(run_case, (void*)c, bench->runs, bench->stream);
    double flops = 2 * macs / t.seconds, rate = bytes / t.seconds;
    double compute = flops / bench->limits.flops, memory = rate / bench->limits.bytes;
    printf("%-32s%-20s%11.1f", c->name, c->where, t.seconds * 1e6);
    if (macs > 0) printf("%10.4g", flops * 1e-12);
    else printf("%10s", "");
    printf("%9.1f", rate * 1e-9);
    if (macs > 0) printf("%8.0f%%", 100 * compute);
    else printf("%9s", "");
    printf("%7.0f%%\n", 100 * memory);
    fflush(stdout);
    if (!bench->json) return;
    fprintf(bench->json, "{\"kind\": \"op\", \"name\": \"%s\", \"where\": \"%s\", \"B\": %d, \"H\": %d, \"W\": %d, "
            "\"C\": %d, \"OC\": %d, \"K\": %d, \"stride\": %d, \"chunk\": %d, \"us\": %.2f, \"best_us\": %.2f, "
            "\"gflop\": %.6g, \"mbytes\": %.6g, \"tflops\": %.4g, \"gbs\": %.4g, \"compute_share\": %.4f, "
            "\"memory_share\": %.4f, \"share\": %.4f, \"sets\": %zu}\n", c->name, c->where, z->B, z->H, z->W, z->C,
            z->OC, z->K, z->stride, chunk_of(*z), t.seconds * 1e6, t.best_seconds * 1e6, 2e-9 * macs, 1e-6 * bytes,
            flops * 1e-12, rate * 1e-9, compute, memory, compute > memory ? compute : memory, arena.sets);
    fflush(bench->json);
}

int main(int argc, char** argv) {
    static cli_t cli;
    static const char *only, *path;
    static int batch;
    static double memory;
    static bench_t bench;
    const cli_flag_t flags[] = {
        {"What to time", "only", CLI_STRING, &only, "", NULL, "operations or places with this in their name",
         CLI_SAVED},
        {NULL, "batch", CLI_INT, &batch, BENCH_IS_GPU ? "32" : "1", "[1, 1024]", "images of the full-size cases",
         CLI_SAVED},
        {NULL, "runs", CLI_INT, &bench.runs, "5", "[1, 1000]", "how many, after one to warm up", CLI_SAVED},
        {NULL, "memory", CLI_NUMBER, &memory, BENCH_IS_GPU ? "24" : "1", "(0, inf)",
         "GiB for the tensors, of what is free", CLI_SAVED},
        {NULL, "json", CLI_STRING, &path, "", NULL, "file for the numbers, one JSON object a line", CLI_SAVED},
    };
    cli_init(&cli, "bench_ops", "Times each operation at its sizes in the models.", flags,
             sizeof flags / sizeof flags[0], NULL, 0);
    cli_parse(&cli, argc, argv);
    bench.json = path[0] ? fopen(path, "w") : NULL;
    if (path[0] && !bench.json) fatal("cannot write %s; choose another file with -json", path);
    bench.stream = device_open(0);
    bench.limits = bench_measure_limits(bench.runs, bench.stream);
    bench_print_limits(bench.json, bench.limits, bench.runs);
    size_t total, available = bench_memory(&total), most = available / 10 * 9;
    arena.size = memory * 1073741824.0 < (double)most ? (size_t)(memory * 1073741824.0) : most;
    arena.memory = (char*)device_malloc(arena.size, "the benchmark's tensors");
    bench_fill((floatX*)arena.memory, arena.size / sizeof(floatX), 1, bench.stream);
    int labels[MOST_IMAGES];
    for (int i = 0; i < MOST_IMAGES; i++) labels[i] = i * 37 % CLASSES;
    arena.labels = (int*)device_malloc(sizeof labels, "labels");
    copy_to_device(arena.labels, labels, sizeof labels, 0);
    printf("%-32s%-20s%11s%10s%9s%9s%8s\n", "operation", "where", "us", "TFLOP/s", "GB/s", "compute", "memory");
    for (int i = 0; i < CASES; i++) {
        case_t c = cases[i];
        if (!strstr(c.name, only) && !strstr(c.where, only)) continue;
        if (c.scaling == PER_IMAGE) c.z.B *= batch;
        bench_case(&bench, &c);
    }
    if (bench.json) fclose(bench.json);
    device_free(arena.memory);
    device_free(arena.labels);
    device_close(bench.stream);
    cli_free(&cli);
    return 0;
}
