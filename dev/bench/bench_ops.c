// bench_ops.c: how fast each operation runs on this machine, at the sizes it has in the models.
//
//     make build/cpu/bench_ops && ./build/cpu/bench_ops [-only conv2d] [-runs 5]
//
// A line is an operation at one size: microseconds a call, GFLOP/s (two a multiply-accumulate) or GB/s, and the share
// of the limit that was measured in the same run: a large matrix product on all threads, or a copy from and to main
// memory on all threads. Bytes are those that have to be moved when each tensor is read or written once; tensors of the
// miniature stay in the cache, which is faster than the limit: more than 100% is no mistake there.
//
// Full sizes are those of one 256x256 image; those of the miniature belong to its batch of 32.
// Look next at dev/bench/bench_models.c.
#include <omp.h>

// defines: cli_t, cli_flag_t, cli_init, cli_parse
#include "common/cli.h"
// defines: every operation
#include "common/ops.h"
// defines: bench_measure, bench_fill
#include "dev/bench/bench.h"

enum { BUFFERS = 8 };
static const size_t buffer_size = (size_t)1 << 25; // elements: a quarter more than 256 x 256 x 384

static floatX* buffer[BUFFERS]; // inputs, outputs, gradients
static floatS* small[8];        // weights' gradients, statistics, losses: of the same type here

// The sizes of a case. What each means stands at the operation's wrapper.
typedef struct {
    int B, H, W, C, OC, K, stride;
} sizes_t;

typedef void (*operation_t)(sizes_t z);
typedef struct {
    double macs, bytes; // one of the two is zero
} cost_t;

static conv_t conv_of(sizes_t z) {
    int pad = z.K == 4 ? 1 : z.K / 2; // PatchGAN's kernels are 4 x 4 with a border of 1
    conv_t c = {z.C, z.OC, z.K, z.stride, pad, pad};
    return c;
}
static size_t elements(sizes_t z) { return (size_t)z.B * z.H * z.W * z.C; }

// Passes over a tensor of (B, H, W, C).
static cost_t passes(sizes_t z, double n) {
    cost_t c = {0, n * (double)elements(z) * sizeof(floatX)};
    return c;
}

// ---------------------------------------------------------------------------------------------------------------------
// Wrappers. Convolutions: (B, H, W, C) -> OC, K x K.

static cost_t conv_cost(sizes_t z) {
    conv_t c = conv_of(z);
    cost_t cost = {(double)z.B * conv_out_size(z.H, c) * conv_out_size(z.W, c) * z.OC * z.K * z.K * z.C, 0};
    return cost;
}
static void run_conv_forward(sizes_t z) {
    conv2d_forward(buffer[0], buffer[1], buffer[2], buffer[3], NULL, z.B, z.H, z.W, conv_of(z), ACT_NONE, 0);
}
static void run_conv_data(sizes_t z) {
    conv2d_backward_data(buffer[0], buffer[1], buffer[2], NULL, z.B, z.H, z.W, conv_of(z), ACT_NONE, 0);
}
static void run_conv_weight(sizes_t z) {
    conv2d_backward_weight(small[0], small[1], buffer[1], buffer[2], z.B, z.H, z.W, conv_of(z), 0);
}

// Matrix products: (B, C) -> OC.
static cost_t matmul_cost(sizes_t z) {
    cost_t cost = {(double)z.B * z.C * z.OC, 0};
    return cost;
}
static cost_t matmul_backward_cost(sizes_t z) {
    cost_t cost = {2.0 * z.B * z.C * z.OC, 0};
    return cost;
}
static void run_matmul(sizes_t z) { matmul_forward(buffer[0], buffer[1], buffer[2], buffer[3], z.B, z.C, z.OC, 0); }
static void run_matmul_gelu(sizes_t z) {
    matmul_gelu_forward(buffer[0], buffer[4], buffer[1], buffer[2], buffer[3], z.B, z.C, z.OC, ACT_GELU, 0);
}
static void run_matmul_backward(sizes_t z) {
    matmul_backward(buffer[0], small[0], small[1], buffer[1], buffer[2], buffer[3], z.B, z.C, z.OC, 0);
}

// Attention: B images of H tokens, W heads of C channels.
static cost_t attention_cost(sizes_t z) {
    cost_t cost = {2.0 * z.B * z.W * z.H * z.H * z.C, 0};
    return cost;
}
static cost_t attention_backward_cost(sizes_t z) { // four products, and the scores again
    cost_t cost = {5.0 * z.B * z.W * z.H * z.H * z.C, 0};
    return cost;
}
static void run_attention(sizes_t z) { attention_forward(buffer[0], small[0], buffer[1], z.B, z.H, z.W, z.C, 0); }
static void run_attention_backward(sizes_t z) {
    attention_backward(buffer[0], buffer[1], buffer[2], buffer[3], small[0], z.B, z.H, z.W, z.C, 0);
}

// Norms: B images of H W positions and C channels in K groups (or chunks of K images).
static cost_t cost_2(sizes_t z) { return passes(z, 2); }
static cost_t cost_3(sizes_t z) { return passes(z, 3); }
static cost_t cost_4(sizes_t z) { return passes(z, 4); }
static cost_t cost_5(sizes_t z) { return passes(z, 5); }
static cost_t cost_7(sizes_t z) { return passes(z, 7); }
static void run_layernorm(sizes_t z) {
    residual_layernorm_forward(buffer[0], buffer[1], small[0], small[1], buffer[2], buffer[3], buffer[4], buffer[5],
                               buffer[6], z.B, z.C, 1e-6, 0);
}
static void run_layernorm_backward(sizes_t z) {
    residual_layernorm_backward(buffer[0], buffer[1], small[2], small[3], small[4], buffer[2], buffer[3], buffer[4],
                                buffer[5], buffer[6], small[0], small[1], z.B, z.C, 0);
}
static void run_groupnorm(sizes_t z) {
    groupnorm_forward(buffer[0], small[0], small[1], buffer[1], buffer[2], buffer[3], z.B, z.H * z.W, z.C, z.K, 1e-6,
                      ACT_SWISH, 0);
}
static void run_groupnorm_apply(sizes_t z) {
    groupnorm_apply(buffer[0], buffer[1], buffer[2], buffer[3], small[0], small[1], z.B, z.H * z.W, z.C, z.K, ACT_SWISH,
                    0);
}
static void run_groupnorm_backward(sizes_t z) {
    groupnorm_backward(buffer[0], small[2], small[3], buffer[1], NULL, buffer[2], buffer[3], buffer[4], small[0],
                       small[1], z.B, z.H * z.W, z.C, z.K, ACT_SWISH, 0);
}
static void run_batchnorm(sizes_t z) {
    batchnorm_leaky_forward(buffer[0], small[0], small[1], buffer[1], buffer[2], buffer[3], small[2], small[3], z.B,
                            z.H * z.W, z.C, z.K, 1e-5, 1, 0);
}
static void run_batchnorm_backward(sizes_t z) {
    batchnorm_leaky_backward(buffer[0], small[2], small[3], buffer[1], buffer[2], buffer[3], buffer[4], small[0],
                             small[1], z.B, z.H * z.W, z.C, z.K, 1, 0);
}

// Maps: (B, H, W, C).
static cost_t pool_cost(sizes_t z) { return passes(z, 1.25); }
static cost_t pool_backward_cost(sizes_t z) { return passes(z, 2.25); }
static cost_t upsample_cost(sizes_t z) { return passes(z, 5); }
static void run_maxpool(sizes_t z) { maxpool_forward(buffer[0], buffer[1], z.B, z.H, z.W, z.C, 0); }
static void run_maxpool_backward(sizes_t z) {
    maxpool_relu_backward(buffer[0], buffer[1], NULL, buffer[2], z.B, z.H, z.W, z.C, 0);
}
static void run_upsample(sizes_t z) { upsample_forward(buffer[0], buffer[1], z.B, z.H, z.W, z.C, 0); }
static void run_upsample_backward(sizes_t z) { upsample_backward(buffer[0], buffer[1], z.B, z.H, z.W, z.C, 0); }
static void run_gelu_backward(sizes_t z) { gelu_backward(buffer[0], buffer[0], buffer[1], elements(z), ACT_GELU, 0); }

// Images to tokens. resize: H W pixels to OC x OC. positions: a table of K x K to H x W.
static cost_t resize_cost(sizes_t z) {
    cost_t cost = {0, 3.0 * z.B * ((double)z.H * z.W + (double)z.OC * z.OC) * sizeof(floatX)};
    return cost;
}
static cost_t bytes_cost(sizes_t z) { return passes(z, 1.25); }
static cost_t position_cost(sizes_t z) {
    cost_t cost = {0, ((double)z.K * z.K + (double)z.H * z.W) * z.C * sizeof(floatX)};
    return cost;
}
static void run_bytes(sizes_t z) { image_from_bytes(buffer[0], (const uint8_t*)buffer[1], elements(z), 0); }
static void run_resize(sizes_t z) {
    channel_affine_t affine = {{2, 2, 2}, {1, 1, 1}};
    resize_bilinear_forward(buffer[0], buffer[1], affine, z.B, z.H, z.W, z.OC, z.OC, 0);
}
static void run_patchify(sizes_t z) { patchify_forward(buffer[0], buffer[1], z.B, z.H, z.W, z.K, 0); }
static void run_positions(sizes_t z) {
    position_resample_forward(buffer[0], buffer[1], 1, z.K, z.H, z.W, z.C, 0);
}
static void run_tokens(sizes_t z) {
    tokens_forward(buffer[0], buffer[1], buffer[2], NULL, buffer[3], z.B, z.H * z.W, z.C, 0, 1, 0);
}

// Losses and the optimiser.
static void run_l1(sizes_t z) { l1_forward(small[0], buffer[0], buffer[1], z.B, (size_t)z.H * z.W * z.C, 0); }
static void run_l1_backward(sizes_t z) {
    channel_affine_t affine = {{2, 2, 2}, {1, 1, 1}};
    l1_backward(buffer[0], buffer[1], buffer[2], buffer[3], affine, 1, z.B, (size_t)z.H * z.W, 0);
}
static void run_lpips_tap(sizes_t z) {
    lpips_tap_forward(small[0], buffer[0], buffer[1], buffer[2], z.B, z.H * z.W, z.C, 0);
}
static void run_lpips_tap_backward(sizes_t z) {
    lpips_tap_backward(buffer[3], buffer[0], buffer[1], buffer[2], 1, z.B, z.H * z.W, z.C, 0);
}
static void run_semantic(sizes_t z) {
    semantic_l2_forward(small[0], buffer[0], buffer[1], z.B, (size_t)z.H * z.W * z.C, 0);
}
static cost_t cost_1(sizes_t z) { return passes(z, 1); }
static void run_sum_squares(sizes_t z) { sum_squares(small[0], small[1], z.B, (size_t)z.H * z.W * z.C, 0); }
static cost_t adam_cost(sizes_t z) { return passes(z, 11); } // reads of 6 buffers, writes of 5
static void run_adam(sizes_t z) {
    adam_t adam = {0, 0.5, 0.9, 1e-8, 0, 1, {0.9, 0.9}};
    adam_update(small[1], small[1], small[2], small[3], small[4], small[5], small[6], elements(z), adam, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// The list: name, where in the models, wrapper, cost, sizes

typedef struct {
    const char *name, *where;
    operation_t run;
    cost_t (*cost)(sizes_t z);
    sizes_t z;
} case_t;

#define CONVS(WHERE, ...)                                                    \
    {"conv2d_forward", WHERE, run_conv_forward, conv_cost, __VA_ARGS__},     \
    {"conv2d_backward_data", WHERE, run_conv_data, conv_cost, __VA_ARGS__},  \
    {"conv2d_backward_weight", WHERE, run_conv_weight, conv_cost, __VA_ARGS__}
#define MATMULS(WHERE, ...)                                       \
    {"matmul_forward", WHERE, run_matmul, matmul_cost, __VA_ARGS__}, \
    {"matmul_backward", WHERE, run_matmul_backward, matmul_backward_cost, __VA_ARGS__}
#define ATTENTIONS(WHERE, ...)                                                   \
    {"attention_forward", WHERE, run_attention, attention_cost, __VA_ARGS__},    \
    {"attention_backward", WHERE, run_attention_backward, attention_backward_cost, __VA_ARGS__}
#define GROUPNORMS(WHERE, ...)                                               \
    {"groupnorm_forward", WHERE, run_groupnorm, cost_3, __VA_ARGS__},        \
    {"groupnorm_apply", WHERE, run_groupnorm_apply, cost_2, __VA_ARGS__},    \
    {"groupnorm_backward", WHERE, run_groupnorm_backward, cost_5, __VA_ARGS__}

static const case_t cases[] = {
    CONVS("decoder 16x16", {1, 16, 16, 512, 512, 3, 1}),
    CONVS("decoder 64x64", {1, 64, 64, 256, 256, 3, 1}),
    CONVS("decoder 256x256", {1, 256, 256, 128, 128, 3, 1}),
    CONVS("decoder conv_out", {1, 256, 256, 128, 3, 3, 1}),
    CONVS("VGG slice 1", {1, 256, 256, 64, 64, 3, 1}),
    CONVS("PatchGAN 2", {1, 128, 128, 64, 128, 4, 2}),
    CONVS("mini decoder 4x4", {32, 4, 4, 64, 64, 3, 1}),
    CONVS("mini decoder 16x16", {32, 16, 16, 32, 32, 3, 1}),
    CONVS("mini decoder 32x32", {32, 32, 32, 16, 16, 3, 1}),
    CONVS("mini conv_out", {32, 32, 32, 16, 3, 3, 1}),
    CONVS("mini VGG 1.1", {32, 32, 32, 3, 16, 3, 1}),
    CONVS("mini PatchGAN 1", {32, 32, 32, 3, 16, 4, 2}),
    CONVS("mini PatchGAN 3", {32, 8, 8, 32, 64, 4, 2}),
    CONVS("mini PatchGAN 5", {32, 3, 3, 128, 1, 4, 1}),
    MATMULS("DINOv2-L qkv", {257, 1, 1, 1024, 3072, 0, 0}),
    MATMULS("DINOv2-L fc2", {257, 1, 1, 4096, 1024, 0, 0}),
    {"matmul_gelu_forward", "DINOv2-L fc1", run_matmul_gelu, matmul_cost, {257, 1, 1, 1024, 4096, 0, 0}},
    MATMULS("mini ViT qkv", {544, 1, 1, 96, 288, 0, 0}),
    MATMULS("mini ViT fc2", {544, 1, 1, 384, 96, 0, 0}),
    {"matmul_gelu_forward", "mini ViT fc1", run_matmul_gelu, matmul_cost, {544, 1, 1, 96, 384, 0, 0}},
    ATTENTIONS("DINOv2-L", {1, 257, 16, 64, 0, 0, 0}),
    ATTENTIONS("decoder", {1, 256, 1, 512, 0, 0, 0}),
    ATTENTIONS("mini ViT", {32, 17, 3, 32, 0, 0, 0}),
    ATTENTIONS("mini decoder", {32, 16, 1, 64, 0, 0, 0}),
    {"residual_layernorm_forward", "DINOv2-L", run_layernorm, cost_4, {257, 1, 1, 1024, 0, 0, 0}},
    {"residual_layernorm_backward", "DINOv2-L", run_layernorm_backward, cost_7, {257, 1, 1, 1024, 0, 0, 0}},
    {"residual_layernorm_forward", "mini ViT", run_layernorm, cost_4, {544, 1, 1, 96, 0, 0, 0}},
    {"residual_layernorm_backward", "mini ViT", run_layernorm_backward, cost_7, {544, 1, 1, 96, 0, 0, 0}},
    {"gelu_backward", "DINOv2-L", run_gelu_backward, cost_3, {257, 1, 1, 4096, 0, 0, 0}},
    {"gelu_backward", "mini ViT", run_gelu_backward, cost_3, {544, 1, 1, 384, 0, 0, 0}},
    GROUPNORMS("decoder 16x16", {1, 16, 16, 512, 0, 32, 0}),
    GROUPNORMS("decoder 256x256", {1, 256, 256, 128, 0, 32, 0}),
    GROUPNORMS("mini decoder 8x8", {32, 8, 8, 64, 0, 8, 0}),
    GROUPNORMS("mini decoder 32x32", {32, 32, 32, 16, 0, 8, 0}),
    {"batchnorm_leaky_forward", "PatchGAN 2", run_batchnorm, cost_3, {1, 64, 64, 128, 0, 1, 0}},
    {"batchnorm_leaky_backward", "PatchGAN 2", run_batchnorm_backward, cost_5, {1, 64, 64, 128, 0, 1, 0}},
    {"batchnorm_leaky_forward", "mini PatchGAN 2", run_batchnorm, cost_3, {32, 8, 8, 32, 0, 8, 0}},
    {"batchnorm_leaky_backward", "mini PatchGAN 2", run_batchnorm_backward, cost_5, {32, 8, 8, 32, 0, 8, 0}},
    {"maxpool_forward", "VGG slice 1", run_maxpool, pool_cost, {1, 256, 256, 64, 0, 0, 0}},
    {"maxpool_relu_backward", "VGG slice 1", run_maxpool_backward, pool_backward_cost, {1, 256, 256, 64, 0, 0, 0}},
    {"maxpool_forward", "mini VGG 1", run_maxpool, pool_cost, {32, 32, 32, 16, 0, 0, 0}},
    {"maxpool_relu_backward", "mini VGG 1", run_maxpool_backward, pool_backward_cost, {32, 32, 32, 16, 0, 0, 0}},
    {"upsample_forward", "decoder 128x128", run_upsample, upsample_cost, {1, 128, 128, 128, 0, 0, 0}},
    {"upsample_backward", "decoder 128x128", run_upsample_backward, upsample_cost, {1, 128, 128, 128, 0, 0, 0}},
    {"upsample_forward", "mini 16x16", run_upsample, upsample_cost, {32, 16, 16, 32, 0, 0, 0}},
    {"upsample_backward", "mini 16x16", run_upsample_backward, upsample_cost, {32, 16, 16, 32, 0, 0, 0}},
    {"image_from_bytes", "256x256", run_bytes, bytes_cost, {1, 256, 256, 3, 0, 0, 0}},
    {"resize_bilinear_forward", "DINOv2-L", run_resize, resize_cost, {1, 256, 256, 3, 224, 0, 0}},
    {"patchify_forward", "DINOv2-L", run_patchify, cost_2, {1, 224, 224, 3, 0, 14, 0}},
    {"position_resample_forward", "DINOv2-L", run_positions, position_cost, {1, 16, 16, 1024, 0, 37, 0}},
    {"tokens_forward", "DINOv2-L", run_tokens, cost_2, {1, 16, 16, 1024, 0, 0, 0}},
    {"l1_forward", "256x256", run_l1, cost_2, {1, 256, 256, 3, 0, 0, 0}},
    {"l1_backward", "256x256", run_l1_backward, cost_4, {1, 256, 256, 3, 0, 0, 0}},
    {"lpips_tap_forward", "VGG slice 1", run_lpips_tap, cost_2, {1, 256, 256, 64, 0, 0, 0}},
    {"lpips_tap_backward", "VGG slice 1", run_lpips_tap_backward, cost_3, {1, 256, 256, 64, 0, 0, 0}},
    {"lpips_tap_forward", "mini VGG 1", run_lpips_tap, cost_2, {32, 32, 32, 16, 0, 0, 0}},
    {"lpips_tap_backward", "mini VGG 1", run_lpips_tap_backward, cost_3, {32, 32, 32, 16, 0, 0, 0}},
    {"semantic_l2_forward", "64 latents", run_semantic, cost_2, {8, 8, 256, 32, 0, 0, 0}},
    {"sum_squares", "16M values", run_sum_squares, cost_1, {1, 1, 1 << 14, 1 << 10, 0, 0, 0}},
    {"adam_update, two averages", "16M values", run_adam, adam_cost, {1, 1, 1 << 14, 1 << 10, 0, 0, 0}},
    {"adam_update, two averages", "mini 1M values", run_adam, adam_cost, {1, 1, 1 << 10, 1 << 10, 0, 0, 0}},
};
enum { CASES = sizeof cases / sizeof cases[0] };

// ---------------------------------------------------------------------------------------------------------------------
// Limits and table

static void run_case(void* state) {
    const case_t* c = (const case_t*)state;
    c->run(c->z);
}

static void run_copy(sizes_t z) {
    size_t n = elements(z), piece = (size_t)1 << 16;
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += piece) memcpy(buffer[0] + i, buffer[1] + i, piece * sizeof(floatX));
}

// Seconds of a call; short ones are repeated until a run lasts a few milliseconds.
static double seconds_of(const case_t* c, int runs) {
    double once = bench_measure(run_case, (void*)c, 1, 1).seconds;
    int calls = once > 0.005 ? 1 : (int)(0.005 / once) + 1;
    return bench_measure(run_case, (void*)c, runs, calls).seconds;
}

static void print_case(const case_t* c, double gflops_limit, double gb_limit, int runs) {
    double seconds = seconds_of(c, runs);
    cost_t cost = c->cost(c->z);
    double rate = (cost.macs > 0 ? 2 * cost.macs : cost.bytes) / seconds * 1e-9;
    printf("%-28s%-20s%11.1f%9.1f %-8s%5.0f%%\n", c->name, c->where, seconds * 1e6, rate,
           cost.macs > 0 ? "GFLOP/s" : "GB/s", 100 * rate / (cost.macs > 0 ? gflops_limit : gb_limit));
    fflush(stdout);
}

int main(int argc, char** argv) {
    static cli_t cli;
    static const char* only;
    static int runs;
    const cli_flag_t flags[] = {
        {"What to time", "only", CLI_STRING, &only, "", NULL, "operations or places with this in their name",
         CLI_SAVED},
        {NULL, "runs", CLI_INT, &runs, "5", "[1, 1000]", "how many, after one to warm up", CLI_SAVED},
    };
    cli_init(&cli, "bench_ops", "Times each operation at its sizes in the models.", flags, 2, NULL, 0);
    cli_parse(&cli, argc, argv);
    for (int i = 0; i < BUFFERS; i++) {
        buffer[i] = (floatX*)device_malloc(buffer_size * sizeof(floatX), "the benchmark's tensors");
        small[i] = (floatS*)device_malloc(buffer_size * sizeof(floatS), "the benchmark's sums");
        bench_fill(buffer[i], buffer_size, 1);
        for (size_t k = 0; k < buffer_size; k++) small[i][k] = (floatS)(1 + (k & 7));
    }
    const case_t gemm_limit = {"", "", run_matmul, matmul_cost, {2048, 1, 1, 2048, 2048, 0, 0}};
    const case_t copy_limit = {"", "", run_copy, cost_2, {1, 1, 1 << 14, 1 << 10, 0, 0, 0}};
    double gflops = 2e-9 * matmul_cost(gemm_limit.z).macs / seconds_of(&gemm_limit, runs);
    double gb = 1e-9 * cost_2(copy_limit.z).bytes / seconds_of(&copy_limit, runs);
    printf("%d threads, median of %d runs; limits: %.1f GFLOP/s (2048^3 matrix product), %.1f GB/s (64 MiB copied)\n",
           omp_get_max_threads(), runs, gflops, gb);
    printf("%-28s%-20s%11s%9s %-8s%6s\n", "operation", "where", "us", "rate", "", "limit");
    for (int i = 0; i < CASES; i++) {
        if (strstr(cases[i].name, only) || strstr(cases[i].where, only)) print_case(&cases[i], gflops, gb, runs);
    }
    cli_free(&cli);
    return 0;
}
