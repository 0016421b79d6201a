// The small operations of the diffusion transformer: QK-norm and rotary embedding, SiLU and SwiGLU, time and label, the
// ends of the residual stream, patches of many channels and back.
// defines: tensor, random_input, output, check_tensor, check_same, sizes_t, test_shapes, namespace cpu
#include "tests/kernel.h"
// defines: the operations under test
#include "common/cuda/condition.cuh"
#include "common/cuda/embed.cuh"
#include "common/cuda/rope.cuh"
#include "common/cuda/swiglu.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// QK-norm and rotary embedding: B, T, NH, HS, by how many values qkv and dqkv are shifted, which values are pairs

// Some angle for every token and pair.
static tensor<float> random_rope(int T, int HS) {
    tensor<float> rope = random_gradient((size_t)T * HS);
    for (size_t i = 0; i < rope.n; i += 2) {
        double angle = 4 * test_uniform();
        rope.ref[i] = cos(angle), rope.ref[i + 1] = sin(angle);
    }
    upload(rope);
    return rope;
}

static void run_rope(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], T = v[1], NH = v[2], HS = v[3], shift = v[4];
    rope_pairs_t pairs = (rope_pairs_t)v[5];
    size_t n = (size_t)B * T * 3 * NH * HS;
    tensor<float> rope = random_rope(T, HS);
    tensor<floatX> qkv = shifted(random_input(n + shift), shift), dqkv = shifted(random_input(n + shift), shift);
    qknorm_rope_forward(qkv.dev, nullptr, nullptr, nullptr, nullptr, rope.dev, B, T, NH, HS, pairs, 1e-6, s);
    cpu::qknorm_rope_forward(qkv.ref, NULL, NULL, NULL, NULL, rope.ref, B, T, NH, HS, pairs, 1e-6, 0);
    check_tensor("qkv", qkv, TOLERANCE_X);
    qknorm_rope_backward(dqkv.dev, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, rope.dev, B, T, NH, HS, pairs,
                         s);
    cpu::qknorm_rope_backward(dqkv.ref, NULL, NULL, NULL, NULL, NULL, NULL, rope.ref, B, T, NH, HS, pairs, 0);
    check_tensor("dqkv", dqkv, TOLERANCE_X);
    free_tensors();
}

// Backward twice, from the same gradient, with gradients of the weights: they then hold their start and the sum twice.
// Then with one of them, and with none.
static void check_qknorm_backward(stream_t s, const int* v, tensor<float> rope, tensor<floatX> raw, tensor<float> rstd,
                                  tensor<floatX> q_weight, tensor<floatX> k_weight) {
    int B = v[0], T = v[1], NH = v[2], HS = v[3], shift = v[4];
    rope_pairs_t pairs = (rope_pairs_t)v[5];
    size_t n = (size_t)B * T * 3 * NH * HS;
    tensor<float> dq_weight = random_gradient(HS), dk_weight = random_gradient(HS);
    tensor<floatX> start = random_input(n + shift), first = start;
    for (int round = 0; round < 4; round++) {
        tensor<floatX> dqkv = shifted(copy_of(start), shift);
        qknorm_rope_backward(dqkv.dev, round < 2 ? dq_weight.dev : nullptr, round < 3 ? dk_weight.dev : nullptr,
                             raw.dev, rstd.dev, q_weight.dev, k_weight.dev, rope.dev, B, T, NH, HS, pairs, s);
        cpu::qknorm_rope_backward(dqkv.ref, round < 2 ? dq_weight.ref : NULL, round < 3 ? dk_weight.ref : NULL,
                                  raw.ref, rstd.ref, q_weight.ref, k_weight.ref, rope.ref, B, T, NH, HS, pairs, 0);
        check_tensor("dqkv", dqkv, TOLERANCE_X);
        if (round == 0) first = dqkv;
        check(same_bits(dqkv, first), "the same bits every time");
    }
    check_tensor("dq_weight", dq_weight, TOLERANCE_S);
    check_tensor("dk_weight", dk_weight, TOLERANCE_S);
}

static void run_qknorm(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], T = v[1], NH = v[2], HS = v[3], shift = v[4];
    rope_pairs_t pairs = (rope_pairs_t)v[5];
    size_t heads = (size_t)B * T * NH;
    tensor<float> rope = random_rope(T, HS), rstd = output_s(heads * 2);
    tensor<floatX> x = random_input(heads * 3 * HS + shift), qkv = shifted(copy_of(x), shift);
    tensor<floatX> again = shifted(copy_of(x), shift), raw = output(heads * 2 * HS);
    tensor<floatX> q_weight = random_input(HS), k_weight = random_input(HS);
    qknorm_rope_forward(qkv.dev, raw.dev, rstd.dev, q_weight.dev, k_weight.dev, rope.dev, B, T, NH, HS, pairs, 1e-6, s);
    cpu::qknorm_rope_forward(qkv.ref, raw.ref, rstd.ref, q_weight.ref, k_weight.ref, rope.ref, B, T, NH, HS, pairs,
                             1e-6, 0);
    check_tensor("qkv", qkv, TOLERANCE_X);
    check_same("raw holds queries and keys as they came", raw);
    check_tensor("rstd", rstd, TOLERANCE_S);
    qknorm_rope_forward(again.dev, nullptr, nullptr, q_weight.dev, k_weight.dev, rope.dev, B, T, NH, HS, pairs, 1e-6,
                        s);
    check(same_bits(qkv, again), "qkv is the same when nothing is kept");
    upload(rstd); // the backward reads the same on both sides
    check_qknorm_backward(s, v, rope, raw, rstd, q_weight, k_weight);
    free_tensors();
}

// ---------------------------------------------------------------------------------------------------------------------
// SiLU and SwiGLU

// n, by how many values all are shifted
static void run_silu(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    size_t n = v[0];
    int shift = v[1];
    tensor<floatX> x = shifted(random_input(n + shift, 3), shift), out = shifted(output(n + shift), shift);
    tensor<floatX> dout = shifted(random_input(n + shift), shift), dx = output(n);
    silu_forward(out.dev, x.dev, n, s);
    cpu::silu_forward(out.ref, x.ref, n, 0);
    check_tensor("out", out, TOLERANCE_X);
    silu_backward(dx.dev, dout.dev, x.dev, n, s);
    cpu::silu_backward(dx.ref, dout.ref, x.ref, n, 0);
    check_tensor("dx", dx, TOLERANCE_X);
    silu_backward(dout.dev, dout.dev, x.dev, n, s);
    check(same_bits(dx, dout), "in place it is the same");
    free_tensors();
}

// N, F, by how many values x is shifted
static void run_swiglu(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    size_t N = v[0];
    int F = v[1], shift = v[2];
    tensor<floatX> x = shifted(random_input(N * 2 * F + shift, 3), shift), out = output(N * F);
    tensor<floatX> dout = random_input(N * F), dx = output(N * 2 * F), frozen = output(N * 2 * F);
    tensor<float> dbias = random_gradient(2 * F);
    swiglu_forward(out.dev, x.dev, N, F, s);
    cpu::swiglu_forward(out.ref, x.ref, N, F, 0);
    check_tensor("out", out, TOLERANCE_X);
    for (int i = 0; i < 2; i++) { // the bias's gradient accumulates
        swiglu_backward(dx.dev, dbias.dev, dout.dev, x.dev, N, F, s);
        cpu::swiglu_backward(dx.ref, dbias.ref, dout.ref, x.ref, N, F, 0);
    }
    check_tensor("dx", dx, TOLERANCE_X);
    check_tensor("dbias", dbias, TOLERANCE_S);
    swiglu_backward(frozen.dev, NULL, dout.dev, x.dev, N, F, s);
    memcpy(frozen.ref, dx.ref, dx.n * sizeof(double));
    check_tensor("dx without dbias", frozen, TOLERANCE_X);
    free_tensors();
}

// N, F, by how many values x is shifted
static void run_geglu(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    size_t N = v[0];
    int F = v[1], shift = v[2];
    tensor<floatX> x = shifted(random_input(N * 2 * F + shift, 3), shift), out = output(N * F);
    geglu_forward(out.dev, x.dev, N, F, s);
    cpu::geglu_forward(out.ref, x.ref, N, F, 0);
    check_tensor("out", out, TOLERANCE_X);
    free_tensors();
}

// Where exp overflows, SiLU is 0 and so is its slope; far above zero it is x, with slope 1.
static void run_silu_far(stream_t s, void* context) {
    (void)context;
    const double far[4] = {100, -100, 30000, -30000}, slopes[4] = {1, 0, 1, 0};
    tensor<floatX> x = random_input(4), one = random_input(4), out = output(4), dx = output(4);
    for (int i = 0; i < 4; i++) x.ref[i] = far[i], one.ref[i] = 1;
    upload(x), upload(one);
    for (int i = 0; i < 4; i++) out.ref[i] = x.ref[i] * slopes[i], dx.ref[i] = slopes[i]; // out.dev, dx.dev: poison
    silu_forward(out.dev, x.dev, 4, s);
    silu_backward(dx.dev, one.dev, x.dev, 4, s);
    check_tensor("out", out, TOLERANCE_X);
    check_tensor("dx", dx, TOLERANCE_X);
    free_tensors();
}

// ---------------------------------------------------------------------------------------------------------------------
// Time and label

// B, half, scale of the times
static void run_features(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], half = v[1];
    tensor<float> t = random_gradient(B);
    for (int b = 0; b < B; b++) t.ref[b] = b == 0 ? 0 : b == 1 ? 1 : fabs(test_uniform());
    upload(t);
    tensor<floatX> out = output((size_t)B * 2 * half);
    timestep_features(out.dev, t.dev, v[2], B, half, s);
    cpu::timestep_features(out.ref, t.ref, v[2], B, half, 0);
    check_tensor("out", out, TOLERANCE_X);
    free_tensors();
}

// rows, B, C. Labels are squares: some occur often, some never.
static void run_condition(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int rows = v[0], B = v[1], C = v[2];
    size_t n = (size_t)B * C;
    int host[64];
    for (int b = 0; b < B; b++) host[b] = b * b % rows;
    int* labels = (int*)device_malloc(B * sizeof(int), "a test's labels");
    copy_to_device(labels, host, B * sizeof(int), 0);
    tensor<floatX> time = random_input(n), table = random_input((size_t)rows * C), out = output(n);
    tensor<floatX> dout = random_input(n), dtime = output(n), frozen = output(n);
    tensor<float> c = output_s(n), dtable = random_gradient((size_t)rows * C);
    condition_forward(out.dev, c.dev, time.dev, table.dev, labels, rows, B, C, s);
    cpu::condition_forward(out.ref, c.ref, time.ref, table.ref, host, rows, B, C, 0);
    check_tensor("out", out, TOLERANCE_X);
    check_tensor("c", c, TOLERANCE_S);
    upload(c);
    for (int i = 0; i < 2; i++) {
        condition_backward(dtime.dev, dtable.dev, dout.dev, c.dev, labels, rows, B, C, s);
        cpu::condition_backward(dtime.ref, dtable.ref, dout.ref, c.ref, host, rows, B, C, 0);
    }
    check_tensor("dtime", dtime, TOLERANCE_X);
    check_tensor("dtable", dtable, TOLERANCE_S);
    condition_backward(frozen.dev, nullptr, dout.dev, c.dev, labels, rows, B, C, s);
    check(same_bits(dtime, frozen), "dtime is the same when the table is frozen");
    device_free(labels);
    free_tensors();
}

// B, C
static void run_condition_sum(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], C = v[1];
    size_t n = (size_t)B * C;
    tensor<floatX> in[3] = {random_input(n), random_input(n), random_input(n)}, out = output(n), dout = random_input(n);
    tensor<floatX> dsum = output(n);
    tensor<float> c = output_s(n);
    for (int vectors = 1; vectors <= 3; vectors++) {
        tensor<floatX> none = {0, nullptr, nullptr}, b = vectors > 1 ? in[1] : none, g = vectors > 2 ? in[2] : none;
        condition_sum_forward(out.dev, c.dev, in[0].dev, b.dev, g.dev, B, C, s);
        cpu::condition_sum_forward(out.ref, c.ref, in[0].ref, b.ref, g.ref, B, C, 0);
        check_tensor("out", out, TOLERANCE_X);
        check_tensor("c", c, TOLERANCE_S);
    }
    upload(c);
    condition_sum_backward(dsum.dev, dout.dev, c.dev, B, C, s);
    cpu::condition_sum_backward(dsum.ref, dout.ref, c.ref, B, C, 0);
    check_tensor("dsum", dsum, TOLERANCE_X);
    free_tensors();
}

// ---------------------------------------------------------------------------------------------------------------------
// The ends of the network

// B, T, C
static void run_position_add(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], T = v[1], C = v[2];
    size_t n = (size_t)B * T * C;
    tensor<floatX> x = random_input(n), back = output(n);
    tensor<float> pos = random_gradient((size_t)T * C), out = output_s(n), dout = random_gradient(n);
    position_add_forward(out.dev, x.dev, pos.dev, B, T, C, s);
    cpu::position_add_forward(out.ref, x.ref, pos.ref, B, T, C, 0);
    check_same("out = x + pos", out);
    to_floatX(back.dev, dout.dev, n, s);
    cpu::to_floatX(back.ref, dout.ref, n, 0);
    check_same("to_floatX rounds", back);
    free_tensors();
}

// B, GH, GW, C, patch, by how many values the tokens are shifted
static void run_patches(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    int B = v[0], H = v[1] * v[4], W = v[2] * v[4], C = v[3], patch = v[4], shift = v[5];
    size_t n = (size_t)B * H * W * C;
    tensor<floatX> x = shifted(random_input(n + shift), shift), out = output(n), columns = output(n);
    tensor<floatX> dout = random_input(n), dx = shifted(output(n + shift), shift);
    unpatchify_forward(out.dev, x.dev, B, H, W, C, patch, s);
    cpu::unpatchify_forward(out.ref, x.ref, B, H, W, C, patch, 0);
    check_same("out is x, rearranged", out);
    unpatchify_backward(dx.dev, dout.dev, B, H, W, C, patch, s);
    cpu::unpatchify_backward(dx.ref, dout.ref, B, H, W, C, patch, 0);
    check_same("dx is dout, rearranged", dx);
    patchify_forward(columns.dev, out.dev, B, H, W, C, patch, s);
    cpu::patchify_forward(columns.ref, out.ref, B, H, W, C, patch, 0);
    check_same("columns are out, rearranged", columns);
    free_tensors();
}

// P, GH, GW, HS, base
static void run_rope_grid(stream_t s, void* context) {
    const int* v = ((sizes_t*)context)->v;
    tensor<float> rope = output_s(((size_t)v[0] + v[1] * v[2]) * v[3]);
    rope_grid(rope.dev, v[0], v[1], v[2], v[3], v[4], s);
    cpu::rope_grid(rope.ref, v[0], v[1], v[2], v[3], v[4], 0);
    check_tensor("rope", rope, TOLERANCE_S);
    free_tensors();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    test_shapes(s, "rotary embedding, heads of 64", run_rope, {{2, 5, 3, 64}});
    test_shapes(s, "rotary embedding, heads of 72", run_rope, {{2, 3, 4, 72}});
    test_shapes(s, "rotary embedding, heads of 72, shifted", run_rope, {{1, 3, 2, 72, 1}});
    test_shapes(s, "rotary embedding, one pair", run_rope, {{1, 1, 1, 2}});
    test_shapes(s, "rotary embedding, 7 pairs", run_rope, {{3, 5, 7, 14}});
    test_shapes(s, "rotary embedding, pairs of halves", run_rope, {{2, 5, 3, 64, 0, ROPE_HALVES}});
    test_shapes(s, "rotary embedding, pairs of halves, shifted", run_rope, {{1, 3, 2, 64, 1, ROPE_HALVES}});
    test_shapes(s, "rotary embedding, 7 pairs of halves", run_rope, {{3, 5, 7, 14, 0, ROPE_HALVES}});
    test_shapes(s, "rotary embedding, one pair of halves", run_rope, {{1, 2, 1, 2, 0, ROPE_HALVES}});
    test_shapes(s, "QK-norm, pairs of halves", run_qknorm, {{2, 37, 3, 72, 0, ROPE_HALVES}});
    test_shapes(s, "QK-norm, 67 pairs of halves", run_qknorm, {{1, 7, 3, 134, 0, ROPE_HALVES}});
    test_shapes(s, "rotations of a grid", run_rope_grid, {{5, 16, 16, 64, 100}});
    test_shapes(s, "rotations of a grid, oblong", run_rope_grid, {{1, 3, 11, 12, 100}});
    test_shapes(s, "rotations of one patch", run_rope_grid, {{0, 1, 1, 4, 10000}});
    test_shapes(s, "QK-norm, heads of 64", run_qknorm, {{2, 37, 3, 64}});
    test_shapes(s, "QK-norm, heads of 72", run_qknorm, {{2, 41, 4, 72}});
    test_shapes(s, "QK-norm, heads of 72, shifted", run_qknorm, {{1, 13, 2, 72, 3}});
    test_shapes(s, "QK-norm, one pair", run_qknorm, {{2, 3, 5, 2}});
    test_shapes(s, "QK-norm, heads of 8, many", run_qknorm, {{3, 43, 7, 8}});
    test_shapes(s, "QK-norm, 67 pairs", run_qknorm, {{1, 7, 3, 134}});
    test_shapes(s, "QK-norm, heads of 256", run_qknorm, {{1, 3, 2, 256}});
    test_shapes(s, "silu, several blocks", run_silu, {{4099}});
    test_shapes(s, "silu, shifted", run_silu, {{1009, 1}});
    test_shapes(s, "silu, one value", run_silu, {{1}});
    test_shapes(s, "silu, far from zero", run_silu_far, {{0}});
    test_shapes(s, "swiglu", run_swiglu, {{5, 64}});
    test_shapes(s, "swiglu, rows longer than a block", run_swiglu, {{2, 3080}});
    test_shapes(s, "swiglu, primes", run_swiglu, {{7, 131}});
    test_shapes(s, "swiglu, many rows", run_swiglu, {{301, 24}});
    test_shapes(s, "swiglu, several blocks a row, primes", run_swiglu, {{67, 523}});
    test_shapes(s, "swiglu, shifted", run_swiglu, {{3, 40, 1}});
    test_shapes(s, "swiglu, one value", run_swiglu, {{1, 1}});
    test_shapes(s, "geglu", run_geglu, {{5, 64}});
    test_shapes(s, "geglu, primes, rows longer than a block", run_geglu, {{3, 3083}});
    test_shapes(s, "geglu, shifted", run_geglu, {{3, 40, 1}});
    test_shapes(s, "timestep_features", run_features, {{5, 128, 1}});
    test_shapes(s, "timestep_features, odd, several blocks", run_features, {{3, 131, 1000}});
    test_shapes(s, "condition, a label several times", run_condition, {{7, 23, 40}});
    test_shapes(s, "condition, several blocks", run_condition, {{5, 9, 261}});
    test_shapes(s, "condition, one label", run_condition, {{1, 5, 3}});
    test_shapes(s, "condition, one value", run_condition, {{3, 1, 1}});
    test_shapes(s, "condition_sum", run_condition_sum, {{5, 261}});
    test_shapes(s, "condition_sum, one value", run_condition_sum, {{1, 1}});
    test_shapes(s, "position_add, to_floatX", run_position_add, {{3, 17, 136}});
    test_shapes(s, "position_add, to_floatX, primes", run_position_add, {{5, 7, 13}});
    test_shapes(s, "position_add, to_floatX, one value", run_position_add, {{1, 1, 1}});
    test_shapes(s, "unpatchify, 32 channels, one pixel", run_patches, {{2, 4, 4, 32, 1}});
    test_shapes(s, "unpatchify, 32 channels, 2 by 2", run_patches, {{3, 5, 2, 32, 2}});
    test_shapes(s, "unpatchify, primes", run_patches, {{2, 3, 2, 5, 3}});
    test_shapes(s, "unpatchify, shifted", run_patches, {{1, 3, 2, 16, 2, 1}});
    test_shapes(s, "unpatchify, one value", run_patches, {{1, 1, 1, 1, 1}});
    device_close(s);
    return test_finish();
}
