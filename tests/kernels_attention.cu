// kernels_attention.cu: attention, in tiles and through matrix products. Each case runs in two launch shapes with two
// orders of the threads, and where it is in tiles in each of these with the tiles of GPUs that give a block 99 KB of
// shared memory: the bits are the same in all four.
//
// Bounds. out = P v is rounded to floatX, and in bf16 so was P before the product (P and dS in the backward): two
// roundings, each of which turns a value by at most 2^-9, at random from value to value. A sum of terms with such
// errors is off, in norm, by no more than its terms are; two independent roundings give sqrt(2) times the bound of one.
// lse is fp32.
// Scores are fp32 sums: of size M they are off by a few M 2^-24, and exp makes this a relative error of P: score_error.
// defines: tensor, random_input, output, check_tensor, for_each_shape
#include "tests/kernel.h"
// defines: attention_forward, attention_backward, attention_products_*, attention_tiles_*
#include "common/cuda/attention.cuh"
// defines: text_attention_forward, text_attention_products
#include "common/cuda/attention_text.cuh"

#ifdef FP32
#define TOLERANCE_P TOLERANCE_X
#else
#define TOLERANCE_P (1.5 * TOLERANCE_X)
#endif

// What attention_forward chooses, or matrix products in little scratch memory.
typedef enum { BY_SIZE, BY_PRODUCTS } way_t;

typedef struct {
    int B, T, NH, HS;
    double scale = 1, mean = 0; // queries N(mean, scale^2), keys N(-mean, scale^2); scale 1: neither flat nor one-hot
    size_t offset = 0;          // of every tensor from a multiple of 16 bytes, in values
    way_t way = BY_SIZE;
    size_t scratch = 0;         // bytes of scratch memory, BY_PRODUCTS
    int padding = 0;            // 1: the first keys are padding, of each image another number
    floatX* first = nullptr;    // dqkv and out of the first run, to compare bits
} attention_case_t;

static double score_error(const attention_case_t* c) {
    double most = c->mean * c->mean * sqrt(c->HS) + 4 * c->scale * c->scale;
    return most * 0x1p-22;
}

// The values of a tensor behind the first `offset`.
template <typename T> static tensor<T> behind(tensor<T> t, size_t offset) {
    return {t.n - offset, t.ref + offset, t.dev + offset};
}

// What the device computed becomes the reference's input too, so that the backward starts from the same numbers.
template <typename T> static void take_from_device(tensor<T> t) {
    T* host = (T*)malloc_check(t.n * sizeof(T), "a test's tensor");
    copy_to_host(host, t.dev, t.n * sizeof(T), 0);
    for (size_t i = 0; i < t.n; i++) t.ref[i] = (double)(float)host[i];
    free(host);
}

// Compares part 0, 1 or 2 (q, k, v) of dqkv by itself. For one token dq and dk are zero: then dv is the measure of all.
static void check_part(const char* what, tensor<floatX> t, const attention_case_t* c, int part, double bound) {
    floatX* host = (floatX*)malloc_check(t.n * sizeof(floatX), "a test's tensor");
    copy_to_host(host, t.dev, t.n * sizeof(floatX), 0);
    double difference = 0, norm = 0, norm_all = 0;
    size_t C = (size_t)c->NH * c->HS;
    for (size_t i = 0; i < t.n; i++) {
        double d = (double)(float)host[i] - t.ref[i];
        norm_all += t.ref[i] * t.ref[i];
        if (i / C % 3 != (size_t)part) continue;
        difference += d * d;
        norm += t.ref[i] * t.ref[i];
    }
    free(host);
    double error = sqrt(difference) / sqrt(c->T == 1 ? norm_all : norm);
    check_error(what, isfinite(error) ? error : INFINITY, bound);
}

// Where keys and values are padding their gradient is exactly zero.
static void check_padding_gradient(tensor<floatX> dqkv, const int* padding, const attention_case_t* c) {
    size_t C = (size_t)c->NH * c->HS, token = 3 * C;
    floatX* host = (floatX*)malloc_check(dqkv.n * sizeof(floatX), "a test's tensor");
    copy_to_host(host, dqkv.dev, dqkv.n * sizeof(floatX), 0);
    int zero = 1;
    for (int b = 0; b < c->B; b++) for (int t = 0; t < padding[b]; t++) for (size_t i = C; i < token; i++) {
        zero &= (float)host[((size_t)b * c->T + t) * token + i] == 0;
    }
    check(zero, "padding has no gradient");
    free(host);
}

static void attention_run(stream_t s, void* context) {
    attention_case_t* c = (attention_case_t*)context;
    int B = c->B, T = c->T, NH = c->NH, HS = c->HS;
    size_t C = (size_t)NH * HS, n = (size_t)B * T * C, rows = (size_t)B * NH * T, o = c->offset;
    test_state.random = 12345; // the same inputs in every shape
    tensor<floatX> qkv = random_input(3 * n + o, c->scale);
    for (size_t i = 0; i < 3 * n; i++) qkv.ref[o + i] += i / C % 3 == 0 ? c->mean : i / C % 3 == 1 ? -c->mean : 0;
    upload(qkv);
    tensor<floatX> dout = behind(random_input(n + o), o), out = behind(output(n + o), o);
    tensor<floatX> dqkv = behind(output(3 * n + o), o);
    tensor<float> lse = output_s(rows);
    qkv = behind(qkv, o);

    int numbers[3] = {T / 2, T - 1, T > 67 ? 67 : 0}, *first_key = NULL;
    if (c->padding) {
        first_key = (int*)device_malloc(B * sizeof(int), "a test's padding");
        copy_to_device(first_key, numbers, B * sizeof(int), 0);
    }
    const int* ref_key = c->padding ? numbers : NULL;

    cpu::attention_forward(out.ref, lse.ref, qkv.ref, ref_key, B, T, NH, HS, 0);
    if (c->way == BY_PRODUCTS) {
        attention_products_forward(out.dev, lse.dev, qkv.dev, first_key, B, T, NH, HS, c->scratch, s);
    } else {
        attention_forward(out.dev, lse.dev, qkv.dev, first_key, B, T, NH, HS, s);
    }
    check_tensor("out", out, TOLERANCE_P + score_error(c));
    check_tensor("lse", lse, TOLERANCE_S);

    take_from_device(out);
    take_from_device(lse);
    cpu::attention_backward(dqkv.ref, dout.ref, qkv.ref, out.ref, lse.ref, ref_key, B, T, NH, HS, 0);
    if (c->way == BY_PRODUCTS) {
        attention_products_backward(dqkv.dev, dout.dev, qkv.dev, out.dev, lse.dev, first_key, B, T, NH, HS, c->scratch,
                                    s);
    } else {
        attention_backward(dqkv.dev, dout.dev, qkv.dev, out.dev, lse.dev, first_key, B, T, NH, HS, s);
    }
    if (c->padding) check_padding_gradient(dqkv, numbers, c);
    // Blocks of queries add dk and dv up in floatX: a third rounding. A row of dS sums to zero, so the mean of the keys
    // adds nothing to dq, but its rounding errors do not sum to zero; likewise the mean of the queries in dk.
    double bound = (c->way == BY_SIZE ? TOLERANCE_P : 1.25 * TOLERANCE_P) + score_error(c);
    double with_mean = bound * (1 + c->mean / c->scale);
    check_part("dq", dqkv, c, 0, with_mean);
    check_part("dk", dqkv, c, 1, with_mean);
    check_part("dv", dqkv, c, 2, bound);

    floatX* bits = (floatX*)malloc_check(4 * n * sizeof(floatX), "a test's tensor");
    copy_to_host(bits, dqkv.dev, 3 * n * sizeof(floatX), 0);
    copy_to_host(bits + 3 * n, out.dev, n * sizeof(floatX), 0);
    if (c->first) {
        check(!memcmp(bits, c->first, 4 * n * sizeof(floatX)), "the same bits in all launch shapes");
        free(bits);
    } else {
        c->first = bits;
    }
    device_free(first_key);
    free_tensors();
}

#ifndef FP32 // whose kernels have one size
// What a block may have: on an H100, an A100, and on sm_86, 89 and 120.
static const size_t shared_limits[] = {232448, 166912, 101376};
#endif

static void attention_both_limits(stream_t s, void* context) {
    attention_run(s, context);
#ifndef FP32
    if (((attention_case_t*)context)->way == BY_PRODUCTS) return;
    int real = s->shared_bytes;
    s->shared_bytes = (int)shared_limits[2];
    attention_run(s, context);
    s->shared_bytes = real;
#endif
}

static void attention_case(const char* name, stream_t s, attention_case_t c) {
    char full[128];
    snprintf(full, sizeof full, "%s: B %d, T %d, NH %d, HS %d", name, c.B, c.T, c.NH, c.HS);
    if (!test_case(full)) return;
    for_each_shape(s, attention_both_limits, &c);
    free(c.first);
    test_end_case();
}

#ifndef FP32
// Images in groups, because the sums of all do not fit the scratch memory.
static void check_image_groups(stream_t s) {
    if (!test_case("attention: images in groups")) return;
    const int B = 3, T = 300, NH = 1, HS = 32;
    const int padding[3] = {0, 290, 3};
    int* first_key = (int*)device_malloc(sizeof padding, "a test's padding");
    copy_to_device(first_key, padding, sizeof padding, 0);
    size_t n = (size_t)B * T * NH * HS;
    tensor<floatX> qkv = random_input(3 * n), dout = random_input(n), out = output(n), dqkv = output(3 * n);
    tensor<float> lse = output_s((size_t)B * NH * T);
    attention_forward(out.dev, lse.dev, qkv.dev, first_key, B, T, NH, HS, s);
    take_from_device(out);
    take_from_device(lse);
    cpu::attention_backward(dqkv.ref, dout.ref, qkv.ref, out.ref, lse.ref, padding, B, T, NH, HS, 0);
    size_t two_images = 2 * n / B * sizeof(float);
    attention_tiles_backward<32>(dqkv.dev, dout.dev, qkv.dev, out.dev, lse.dev, first_key, B, T, NH, HS, two_images, s);
    check_tensor("dqkv", dqkv, TOLERANCE_P);
    device_free(first_key);
    free_tensors();
    test_end_case();
}

// How the backward is cut, for every head size and length: it fits, it covers the keys, and where memory allows it
// takes the large tile and a single round.
static void check_blocks(void) {
    if (!test_case("attention: the backward's blocks")) return;
    const int sizes[] = {32, 64, 72, 80, 128};
    for (size_t limit : shared_limits) {
        for (int D : sizes) {
            for (int T = 1; T <= 1500; T++) {
                attention_block_t block = attention_backward_block(D, T, limit);
                check(block.bytes <= limit, "a block fits the limit");
                check(block.warps >= 2 && block.warps <= 8, "a block has 2 to 8 warps");
                check(block.keys * block.rounds >= T && block.keys * (block.rounds - 1) < T, "the keys are covered");
                check(block.queries == 64 || (block.queries == 16 && limit == shared_limits[2] && T > 48),
                      "tiles are as large as memory allows");
                int most = D <= 64 ? 272 : D <= 80 ? 256 : 128;
                check(T > most || block.rounds == 1, "a head that fits takes one round");
            }
        }
    }
    test_end_case();
}
#endif

// Attention of text encoders: B, T, NH, HS, whether there is a bias, a first key, a causal mask; bytes of scratch
// memory, 0 for all. `first` leaves one text a single key.
static void text_run(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], T = v[1], NH = v[2], HS = v[3], causal = v[6];
    size_t n = (size_t)B * T * NH * HS;
    tensor<floatX> qkv = random_input(3 * n), out = output(n);
    tensor<float> bias = random_gradient((size_t)(2 * T - 1) * NH);
    int* starts = (int*)malloc_check(B * sizeof(int), "a test's keys");
    int* dev = (int*)device_malloc(B * sizeof(int), "a test's keys");
    for (int b = 0; b < B; b++) starts[b] = b == 0 ? T - 1 : T / (b + 1);
    copy_to_device(dev, starts, B * sizeof(int), 0);
    const double scale = 1 / sqrt(HS);
    const double* ref_bias = v[4] ? bias.ref : NULL;
    const float* dev_bias = v[4] ? bias.dev : NULL;
    cpu::text_attention_forward(out.ref, qkv.ref, ref_bias, v[5] ? starts : NULL, scale, causal, B, T, NH, HS, 0);
    const int* first = v[5] ? dev : NULL;
    if (v[7]) text_attention_products(out.dev, qkv.dev, dev_bias, first, scale, causal, B, T, NH, HS, v[7], s);
    else text_attention_forward(out.dev, qkv.dev, dev_bias, first, scale, causal, B, T, NH, HS, s);
    attention_case_t c = {.B = B, .T = T, .NH = NH, .HS = HS};
    check_tensor("out", out, TOLERANCE_P + score_error(&c));
    device_free(dev);
    free(starts);
    free_tensors();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);

    const int tokens[] = {1, 5, 16, 17, 63, 64, 65, 130};
    const int sizes[] = {64, 72, 32, 16, 5};
    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < 5; j++) {
            int B = 1 + (i + j) % 2, NH = 1 + (i + 2 * j) % 3;
            attention_case("attention", s, {.B = B, .T = tokens[i], .NH = NH, .HS = sizes[j]});
        }
    }
    // several blocks forward, several tiles; parked keys, two rounds
    const struct { int T, HS; } longer[] = {{257, 64}, {261, 32}, {300, 64}, {300, 32}, {257, 72}, {256, 72}, {257, 80},
                                            {257, 128}, {300, 128}};
    for (auto z : longer) attention_case("longer", s, {.B = 1, .T = z.T, .NH = 1, .HS = z.HS});
    attention_case("attention", s, {.B = 2, .T = 19, .NH = 1, .HS = 128});
    attention_case("attention", s, {.B = 1, .T = 63, .NH = 2, .HS = 128});
    attention_case("attention", s, {.B = 3, .T = 20, .NH = 1, .HS = 512});
    attention_case("attention", s, {.B = 1, .T = 9, .NH = 2, .HS = 96});
    attention_case("attention", s, {.B = 2, .T = 37, .NH = 2, .HS = 80});
    attention_case("attention", s, {.B = 2, .T = 37, .NH = 3, .HS = 8});
    attention_case("attention", s, {.B = 2, .T = 37, .NH = 3, .HS = 1});
    const int padded[] = {32, 64, 72, 128, 5};
    for (int HS : padded) {
        attention_case("padding", s, {.B = 2, .T = 70, .NH = 2, .HS = HS, .padding = 1});
        attention_case("padding", s, {.B = 3, .T = 140, .NH = 1, .HS = HS, .padding = 1});
    }
    attention_case("padding, parked keys", s, {.B = 1, .T = 261, .NH = 1, .HS = 32, .padding = 1});
    attention_case("padding, two rounds become one", s, {.B = 2, .T = 300, .NH = 1, .HS = 64, .padding = 1});
    attention_case("padding, three rounds become two", s, {.B = 1, .T = 330, .NH = 1, .HS = 128, .padding = 1});
    attention_case("unaligned", s, {.B = 2, .T = 37, .NH = 2, .HS = 64, .offset = 3});

    // scores of up to a few hundred; and all of them near -500, where a key of zeros would outweigh every real one
    attention_case("large scores", s, {.B = 1, .T = 70, .NH = 2, .HS = 64, .scale = 8});
    attention_case("large scores", s, {.B = 1, .T = 40, .NH = 1, .HS = 5, .scale = 8});
    attention_case("negative scores", s, {.B = 1, .T = 70, .NH = 2, .HS = 64, .scale = 0.5, .mean = 8});
    attention_case("negative scores", s, {.B = 1, .T = 70, .NH = 2, .HS = 72, .scale = 0.5, .mean = 8});
    attention_case("negative scores", s, {.B = 1, .T = 70, .NH = 1, .HS = 128, .scale = 0.5, .mean = 8});
    attention_case("negative scores", s, {.B = 1, .T = 70, .NH = 1, .HS = 5, .scale = 0.5, .mean = 15});

    // (T, T) scores of 2 of 3 images, or 2 of 3 heads; then less than one (T, T)
    const size_t bytes = 2 * (sizeof(float) + sizeof(floatX)), two = 2 * 33 * 33 * bytes + 8 * bytes;
    attention_case("products, part of the images", s,
                   {.B = 3, .T = 33, .NH = 1, .HS = 40, .way = BY_PRODUCTS, .scratch = two});
    attention_case("products, part of the heads", s,
                   {.B = 2, .T = 33, .NH = 3, .HS = 24, .way = BY_PRODUCTS, .scratch = two});
    attention_case("products, part of the queries", s,
                   {.B = 2, .T = 33, .NH = 1, .HS = 40, .way = BY_PRODUCTS, .scratch = 15 * 33 * bytes});
    attention_case("products, part of the queries", s,
                   {.B = 2, .T = 33, .NH = 2, .HS = 24, .way = BY_PRODUCTS, .scratch = 15 * 33 * bytes});
    attention_case("products, part of the images, padding", s,
                   {.B = 3, .T = 33, .NH = 1, .HS = 40, .way = BY_PRODUCTS, .scratch = two, .padding = 1});
    attention_case("products, part of the heads, padding", s,
                   {.B = 2, .T = 33, .NH = 3, .HS = 24, .way = BY_PRODUCTS, .scratch = two, .padding = 1});
    attention_case("products, part of the queries, padding", s,
                   {.B = 2, .T = 33, .NH = 1, .HS = 40, .way = BY_PRODUCTS, .scratch = 15 * 33 * bytes, .padding = 1});
    test_shapes(s, "text attention, nothing of it", text_run, {{2, 17, 3, 16}});
    test_shapes(s, "text attention, a bias", text_run, {{2, 23, 2, 64, 1}});
    test_shapes(s, "text attention, keys from the first on", text_run, {{3, 37, 2, 8, 0, 1}});
    test_shapes(s, "text attention, causal", text_run, {{2, 77, 2, 32, 0, 0, 1}});
    test_shapes(s, "text attention, all of it", text_run, {{3, 19, 3, 5, 1, 1, 1}});
    test_shapes(s, "text attention, one head", text_run, {{3, 19, 1, 16, 1, 1, 0}});
    test_shapes(s, "text attention, one token", text_run, {{2, 1, 1, 8, 1, 1, 1}});
    const int score = sizeof(float) + sizeof(floatX);
    test_shapes(s, "text attention, part of the images", text_run, {{3, 33, 1, 40, 1, 1, 1, 2 * 33 * 33 * score + 48}});
    test_shapes(s, "text attention, part of the heads", text_run, {{2, 33, 3, 24, 1, 1, 1, 2 * 33 * 33 * score + 48}});
    test_shapes(s, "text attention, part of the queries", text_run, {{2, 33, 2, 24, 1, 1, 1, 15 * 33 * score}});
#ifndef FP32
    check_image_groups(s);
    check_blocks();
#endif

    device_close(s);
    return test_finish();
}
