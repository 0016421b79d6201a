// From an image to tokens and back: bytes, bilinear resize, patches, position table, prefix tokens, mean over tokens;
// tensors of random numbers, and dropout.
// defines: tensor, random_input, output, check_tensor, check_same, sizes_t, test_shapes, namespace cpu
#include "tests/kernel.h"
// defines: the operations under test
#include "common/cuda/embed.cuh"
#include "common/cuda/random.cuh"

// Every byte many times; n, and by how many bytes and values the pointers are shifted.
static void run_bytes(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    size_t n = v[0], from = v[1], to = v[2];
    uint8_t* host = (uint8_t*)malloc_check(n, "a test's bytes");
    for (size_t i = 0; i < n; i++) host[i] = (uint8_t)(i * 37);
    uint8_t* bytes = (uint8_t*)device_malloc(n + from, "a test's bytes");
    copy_to_device(bytes + from, host, n, 0);
    tensor<floatX> out = output(n + to);
    out.ref += to, out.dev += to, out.n = n;
    image_from_bytes(out.dev, bytes + from, n, s);
    cpu::image_from_bytes(out.ref, host, n, 0);
    check_tensor("out", out, TOLERANCE_X);
    float ends[2] = {NAN, NAN}; // bytes 0 and 255, where the range holds them
    for (size_t i = 0; i < n; i++) {
        floatX value;
        copy_to_host(&value, out.dev + i, sizeof value, 0);
        if (host[i] == 0) ends[0] = (float)value;
        if (host[i] == 255) ends[1] = (float)value;
    }
    check(ends[0] == -1, "0 becomes -1");
    check(ends[1] == 1 || n < 256, "255 becomes 1");
    device_free(bytes);
    free(host);
    free_tensors();
}

// B, H, W, OH, OW
static void run_resize(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], H = v[1], W = v[2], OH = v[3], OW = v[4];
    const channel_affine_t affine = {{2.18, -0.7, 1.3}, {0.06, 0.2, -0.4}}, unit = {{1, 1, 1}, {0, 0, 0}};
    tensor<floatX> x = random_input((size_t)B * H * W * 3), out = output((size_t)B * OH * OW * 3);
    resize_bilinear_forward(out.dev, x.dev, affine, B, H, W, OH, OW, s);
    cpu::resize_bilinear_forward(out.ref, x.ref, affine, B, H, W, OH, OW, 0);
    check_tensor("out", out, TOLERANCE_X);
    if (H == OH && W == OW) {
        resize_bilinear_forward(out.dev, x.dev, unit, B, H, W, OH, OW, s);
        memcpy(out.ref, x.ref, x.n * sizeof(double));
        check_same("equal sizes leave every bit", out);
    }
    free_tensors();
}

// B, H, W, patch
static void run_patchify(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], H = v[1], W = v[2], patch = v[3];
    tensor<floatX> x = random_input((size_t)B * H * W * 3);
    tensor<floatX> out = output((size_t)B * (H / patch) * (W / patch) * 3 * patch * patch);
    patchify_forward(out.dev, x.dev, B, H, W, 3, patch, s);
    cpu::patchify_forward(out.ref, x.ref, B, H, W, 3, patch, 0);
    check_same("out is x, rearranged", out);
    free_tensors();
}

// prefix, grid, GH, GW, C
static void run_position(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int prefix = v[0], grid = v[1], GH = v[2], GW = v[3], C = v[4];
    size_t rows = prefix + grid * grid, out_rows = prefix + GH * GW;
    tensor<floatX> pos = random_input(rows * C), out = output(out_rows * C);
    tensor<float> dpos = random_gradient(rows * C), dout = random_gradient(out_rows * C);
    position_resample_forward(out.dev, pos.dev, prefix, grid, GH, GW, C, s);
    cpu::position_resample_forward(out.ref, pos.ref, prefix, grid, GH, GW, C, 0);
    check_tensor("out", out, TOLERANCE_X);
    for (int i = 0; i < 2; i++) {
        position_resample_backward(dpos.dev, dout.dev, prefix, grid, GH, GW, C, s);
        cpu::position_resample_backward(dpos.ref, dout.ref, prefix, grid, GH, GW, C, 0);
    }
    check_tensor("dpos", dpos, TOLERANCE_S);
    free_tensors();
}

// B, N, C, R, whether there is a class token, whether it has a position, 1 without any positions
static void run_tokens(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], N = v[1], C = v[2], R = v[3], has_cls = v[4], pos_class = v[5], none = v[6], T = has_cls + R + N;
    tensor<floatX> patches = random_input((size_t)B * N * C), cls = random_input(C),
                   reg = random_input((size_t)(R + 1) * C);
    tensor<floatX> pos = random_input((size_t)(pos_class + N) * C), dpatches = output((size_t)B * N * C);
    tensor<float> out = output_s((size_t)B * T * C), dout = random_gradient((size_t)B * T * C);
    tensor<float> dcls = random_gradient(C), dreg = random_gradient((size_t)(R + 1) * C);
    tensor<float> dpos = random_gradient((size_t)(pos_class + N) * C);
    tokens_forward(out.dev, patches.dev, has_cls ? cls.dev : NULL, R ? reg.dev : NULL, none ? NULL : pos.dev, B, N, C,
                   R, pos_class, s);
    cpu::tokens_forward(out.ref, patches.ref, has_cls ? cls.ref : NULL, R ? reg.ref : NULL, none ? NULL : pos.ref, B, N,
                        C, R, pos_class, 0);
    check_tensor("out", out, TOLERANCE_S);
    for (int i = 0; i < 2; i++) {
        tokens_backward(dpatches.dev, has_cls ? dcls.dev : NULL, R ? dreg.dev : NULL, none ? NULL : dpos.dev, dout.dev,
                        B, N, C, R, pos_class, s);
        cpu::tokens_backward(dpatches.ref, has_cls ? dcls.ref : NULL, R ? dreg.ref : NULL, none ? NULL : dpos.ref,
                             dout.ref, B, N, C, R, pos_class, 0);
    }
    check_tensor("dpatches", dpatches, TOLERANCE_X);
    check_tensor("dcls", dcls, TOLERANCE_S);
    check_tensor("dreg", dreg, TOLERANCE_S);
    check_tensor("dpos", dpos, TOLERANCE_S);
    free_tensors();
}

// B, T, C, rows of the table, whether there are positions
static void run_embedding(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], T = v[1], C = v[2], rows = v[3];
    tensor<floatX> table = random_input((size_t)rows * C), pos = random_input((size_t)T * C);
    tensor<float> out = output_s((size_t)B * T * C);
    int* ids = (int*)malloc_check((size_t)B * T * sizeof(int), "a test's rows");
    int* dev = (int*)device_malloc((size_t)B * T * sizeof(int), "a test's rows");
    for (int i = 0; i < B * T; i++) ids[i] = i == 0 ? rows - 1 : i * 7 % rows;
    copy_to_device(dev, ids, (size_t)B * T * sizeof(int), 0);
    embedding_rows(out.dev, table.dev, v[4] ? pos.dev : NULL, dev, B, T, C, s);
    cpu::embedding_rows(out.ref, table.ref, v[4] ? pos.ref : NULL, ids, B, T, C, 0);
    check_tensor("out", out, TOLERANCE_S);
    device_free(dev);
    free(ids);
    free_tensors();
}

// B, T, P, C
static void run_prefix(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], T = v[1], P = v[2], C = v[3];
    tensor<floatX> x = random_input((size_t)B * T * C), out = output((size_t)B * (T - P) * C);
    tensor<floatX> dout = random_input((size_t)B * (T - P) * C), dx = output((size_t)B * T * C);
    drop_prefix_forward(out.dev, x.dev, B, T, P, C, s);
    cpu::drop_prefix_forward(out.ref, x.ref, B, T, P, C, 0);
    check_same("out is x without its prefix", out);
    drop_prefix_backward(dx.dev, dout.dev, B, T, P, C, s);
    cpu::drop_prefix_backward(dx.ref, dout.ref, B, T, P, C, 0);
    check_same("dx is dout behind zeros", dx);
    free_tensors();
}

// B, P, Q, C, by how many values the whole is shifted
static void run_concat(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], P = v[1], Q = v[2], C = v[3], shift = v[4];
    size_t na = (size_t)B * P * C, nb = (size_t)B * Q * C, n = na + nb + shift;
    tensor<floatX> a = random_input(na), b = random_input(nb), whole = shifted(output(n), shift), a2 = output(na);
    tensor<floatX> b2 = output(nb);
    tensor<float> as = random_gradient(na), bs = random_gradient(nb), whole_s = shifted(output_s(n), shift);
    tensor<float> as2 = output_s(na), bs2 = output_s(nb);
    concat_tokens(whole.dev, a.dev, b.dev, B, P, Q, C, s);
    cpu::concat_tokens(whole.ref, a.ref, b.ref, B, P, Q, C, 0);
    check_same("tokens of a, then of b", whole);
    split_tokens(a2.dev, b2.dev, whole.dev, B, P, Q, C, s);
    check(same_bits(a2, a) && same_bits(b2, b), "and back");
    concat_stream(whole_s.dev, as.dev, bs.dev, B, P, Q, C, s);
    cpu::concat_stream(whole_s.ref, as.ref, bs.ref, B, P, Q, C, 0);
    check_same("the stream likewise", whole_s);
    split_stream(as2.dev, bs2.dev, whole_s.dev, B, P, Q, C, s);
    check(same_bits(as2, as) && same_bits(bs2, bs), "and back, the stream");
    free_tensors();
}

// B, T, C
static void run_mean(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], T = v[1], C = v[2];
    tensor<floatX> x = random_input((size_t)B * T * C, 1, 0.5), out = output((size_t)B * C);
    tensor<floatX> dout = random_input((size_t)B * C), dx = output((size_t)B * T * C);
    mean_tokens_forward(out.dev, x.dev, B, T, C, s);
    cpu::mean_tokens_forward(out.ref, x.ref, B, T, C, 0);
    check_tensor("out", out, TOLERANCE_X);
    mean_tokens_backward(dx.dev, dout.dev, B, T, C, s);
    cpu::mean_tokens_backward(dx.ref, dout.ref, B, T, C, 0);
    check_tensor("dx", dx, TOLERANCE_X);
    free_tensors();
}

// B, n, first row. The same bits as the CPU's fp32.
static void run_normal(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0];
    size_t n = v[1];
    uint64_t seed = 0x123456789abcdefull, step = ((uint64_t)1 << 40) + 17, first = v[2];
    if (v[3]) first += (uint64_t)1 << 33; // elements beyond 2^32
    uint64_t rows[8], *rows_dev = (uint64_t*)device_malloc(B * sizeof(uint64_t), "rows");
    for (int b = 0; b < B; b++) rows[b] = first + (b * 5) % 7;
    copy_to_device(rows_dev, rows, B * sizeof(uint64_t), 0);
    tensor<float> out = output_s(B * n);
    normal_rows(out.dev, rows_dev, B, n, seed, RANDOM_POSTERIOR, step, s);
    cpu::normal_rows(out.ref, rows, B, n, seed, RANDOM_POSTERIOR, step, 0);
    check_same("out has the bits of the CPU build", out);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < out.n; i++) sum += out.ref[i], squares += out.ref[i] * out.ref[i];
    check(out.n < 1000 || (fabs(sum / out.n) < 0.1 && fabs(squares / out.n - 1) < 0.1), "mean 0, variance 1");
    device_free(rows_dev);
    free_tensors();
}

// B, n, first row, p in percent. The same values are dropped as in the reference; rows may begin inside a four.
static void run_dropout(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0];
    size_t n = v[1];
    uint64_t seed = 0x123456789abcdefull, step = ((uint64_t)1 << 40) + 17, first = v[2];
    double p = v[3] / 100.0, scale = 1.75;
    tensor<floatX> x = random_input(B * n), dout = random_input(B * n), out = output(B * n), dx = random_input(B * n);
    dropout_forward(out.dev, x.dev, p, scale, B, n, seed, RANDOM_DROPOUT, step, first, s);
    cpu::dropout_forward(out.ref, x.ref, p, scale, B, n, seed, RANDOM_DROPOUT, step, first, 0);
    check_tensor("out", out, TOLERANCE_X);
    dropout_backward(dx.dev, dout.dev, p, scale, B, n, seed, RANDOM_DROPOUT, step, first, s);
    cpu::dropout_backward(dx.ref, dout.ref, p, scale, B, n, seed, RANDOM_DROPOUT, step, first, 0);
    check_tensor("dx", dx, TOLERANCE_X);
    free_tensors();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    test_shapes(s, "image_from_bytes, one", run_bytes, {{1}});
    test_shapes(s, "image_from_bytes, several blocks", run_bytes, {{3 * 4096}});
    test_shapes(s, "image_from_bytes, prime", run_bytes, {{4099}});
    test_shapes(s, "image_from_bytes, bytes shifted", run_bytes, {{512, 3, 0}});
    test_shapes(s, "image_from_bytes, values shifted", run_bytes, {{523, 0, 1}});
    test_shapes(s, "resize_bilinear 1 x 1 to 1 x 1", run_resize, {{1, 1, 1, 1, 1}});
    test_shapes(s, "resize_bilinear 32 to 28", run_resize, {{2, 32, 32, 28, 28}});
    test_shapes(s, "resize_bilinear 256 to 224", run_resize, {{1, 16, 256, 14, 224}});
    test_shapes(s, "resize_bilinear, primes, up and down", run_resize, {{3, 13, 29, 31, 11}});
    test_shapes(s, "resize_bilinear from one pixel", run_resize, {{2, 1, 1, 5, 7}});
    test_shapes(s, "resize_bilinear to one pixel", run_resize, {{2, 6, 9, 1, 1}});
    test_shapes(s, "resize_bilinear, equal sizes", run_resize, {{2, 9, 17, 9, 17}});
    test_shapes(s, "resize_bilinear, sizes whose product exceeds 2^32", run_resize, {{1, 1, 40000, 1, 60000}});
    test_shapes(s, "patchify 28 by 14", run_patchify, {{2, 28, 42, 14}});
    test_shapes(s, "patchify, sizes that patches do not fill", run_patchify, {{3, 11, 17, 5}});
    test_shapes(s, "patchify, patches of one pixel", run_patchify, {{1, 3, 5, 1}});
    test_shapes(s, "position_resample 37 to 16", run_position, {{1, 37, 16, 16, 24}});
    test_shapes(s, "position_resample up, oblong", run_position, {{1, 5, 7, 13, 37}});
    test_shapes(s, "position_resample, many channels", run_position, {{0, 4, 3, 2, 523}});
    test_shapes(s, "position_resample, equal sizes", run_position, {{5, 6, 6, 6, 16}});
    test_shapes(s, "position_resample, one place", run_position, {{1, 1, 1, 1, 1}});
    test_shapes(s, "position_resample to one place", run_position, {{1, 9, 1, 1, 8}});
    test_shapes(s, "tokens, class token with a position", run_tokens, {{6, 16, 64, 0, 1, 1}});
    test_shapes(s, "tokens, class token without, registers", run_tokens, {{3, 9, 24, 4, 1, 0}});
    test_shapes(s, "tokens, patches alone", run_tokens, {{5, 7, 40, 0, 0, 0}});
    test_shapes(s, "tokens, primes", run_tokens, {{7, 11, 13, 3, 1, 1}});
    test_shapes(s, "tokens, no positions", run_tokens, {{3, 9, 24, 4, 1, 0, 1}});
    test_shapes(s, "tokens, no positions, primes", run_tokens, {{2, 7, 13, 3, 0, 0, 1}});
    test_shapes(s, "tokens, one of each", run_tokens, {{1, 1, 1, 1, 1, 1}});
    test_shapes(s, "tokens, rows longer than a block", run_tokens, {{2, 3, 2184, 1, 1, 1}});
    test_shapes(s, "tokens, long rows, prime", run_tokens, {{2, 3, 2179, 0, 1, 0}});
    test_shapes(s, "concat_tokens, split_tokens", run_concat, {{3, 5, 17, 64}});
    test_shapes(s, "concat_tokens, split_tokens, primes", run_concat, {{2, 13, 3, 37}});
    test_shapes(s, "concat_tokens, split_tokens, long rows, shifted", run_concat, {{1, 1, 2, 2176, 1}});
    test_shapes(s, "drop_prefix", run_prefix, {{3, 17, 1, 64}});
    test_shapes(s, "drop_prefix, primes", run_prefix, {{5, 13, 3, 37}});
    test_shapes(s, "drop_prefix of nothing", run_prefix, {{2, 3, 0, 8}});
    test_shapes(s, "drop_prefix, long rows", run_prefix, {{1, 3, 1, 2179}});
    test_shapes(s, "embedding_rows", run_embedding, {{3, 5, 64, 11, 1}});
    test_shapes(s, "embedding_rows, primes, no positions", run_embedding, {{2, 3, 37, 5, 0}});
    test_shapes(s, "embedding_rows, long rows", run_embedding, {{2, 2, 2184, 3, 1}});
    test_shapes(s, "mean_tokens", run_mean, {{3, 64, 64}});
    test_shapes(s, "mean_tokens, primes", run_mean, {{5, 13, 37}});
    test_shapes(s, "mean_tokens, one token", run_mean, {{2, 1, 8}});
    test_shapes(s, "normal_rows", run_normal, {{4, 1024, 0}});
    test_shapes(s, "normal_rows, rows that begin inside a four", run_normal, {{3, 1031, 5}});
    test_shapes(s, "normal_rows, one number", run_normal, {{1, 1, 2}});
    test_shapes(s, "normal_rows, far into the stream", run_normal, {{3, 37, 1, 1}});
    test_shapes(s, "dropout", run_dropout, {{4, 1024, 0, 10}});
    test_shapes(s, "dropout, rows that begin inside a four", run_dropout, {{3, 1031, 5, 40}});
    test_shapes(s, "dropout of nothing", run_dropout, {{2, 77, 3, 0}});
    device_close(s);
    return test_finish();
}
