// Large convolutions in float, as programs run them: by dev/cpu/winograd.h, against the naive loop of dev/cpu/conv.h.
// tests/test_conv.c has their gradients in double.
// defines: conv2d_forward; by its parts conv2d_forward_naive, conv_forward_job, winograd_suits; the operations with what is inside them
#include "common/ops.cu"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error, relative_error_float, test_normal
#include "tests/test.h"
#include <omp.h>

static float* random_floats(size_t n) {
    float* p = (float*)malloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++) p[i] = (float)test_normal();
    return p;
}

typedef struct {
    int B, H, W;
    conv_t conv;
    size_t nx, nw, ny;
    float *x, *weight, *bias, *residual, *out;
} large_t;

static large_t make_large(int B, int H, int W, conv_t conv) {
    size_t taps = (size_t)conv.KH * conv.KW;
    large_t t = {B, H, W, conv, (size_t)B * H * W * conv.C, taps * conv.OC * conv.C, 0, 0, 0, 0, 0, 0};
    t.ny = (size_t)B * conv_out_height(H, conv) * conv_out_width(W, conv) * conv.OC;
    t.x = random_floats(t.nx), t.weight = random_floats(t.nw), t.bias = random_floats(conv.OC);
    t.residual = random_floats(t.ny), t.out = random_floats(t.ny);
    return t;
}

static void free_large(large_t* t) { free(t->x), free(t->weight), free(t->bias), free(t->residual), free(t->out); }

static void check_large(int B, int H, int W, conv_t conv, double tolerance) {
    large_t t = make_large(B, H, W, conv);
    float* want = random_floats(t.ny);
    for (size_t i = 0; i < t.ny; i++) t.out[i] = NAN;
    conv_job_t job = conv_forward_job(t.x, B, H, W, conv);
    check(winograd_suits(&job), "the sizes are those of the form that is tested");
    conv2d_forward_naive(want, t.x, t.weight, t.bias, t.residual, B, H, W, conv, ACT_RELU);
    conv2d_forward(t.out, t.x, t.weight, t.bias, t.residual, B, H, W, conv, ACT_RELU, 0);
    check_error("out", relative_error_float(t.out, want, t.ny), tolerance);
    free(want);
    free_large(&t);
}

// An image alone, in a batch, with one thread and with three: the same bits.
static void test_bits(conv_t conv) {
    char name[100];
    snprintf(name, sizeof name, "winograd %dx%d: the bits of an image depend on no other image and on no thread",
             conv.KH, conv.KW);
    if (!test_case(name)) return;
    large_t t = make_large(3, 33, 34, conv);
    size_t of_x = t.nx / 3, of_out = t.ny / 3;
    float* all = random_floats(t.ny);
    int usual = omp_get_max_threads();
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        conv2d_forward(all, t.x, t.weight, t.bias, NULL, 3, t.H, t.W, t.conv, ACT_NONE, 0);
        conv2d_forward(t.out, t.x + 2 * of_x, t.weight, t.bias, NULL, 1, t.H, t.W, t.conv, ACT_NONE, 0);
        check(!memcmp(all + 2 * of_out, t.out, of_out * sizeof(float)), "equality of all bits");
        if (threads == 1) memcpy(t.residual, all, t.ny * sizeof(float));
        check(!memcmp(all, t.residual, t.ny * sizeof(float)), "equality of all bits");
    }
    omp_set_num_threads(usual);
    free(all);
    free_large(&t);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    static const int sizes[6][5] = {{2, 33, 35, 64, 64}, {1, 32, 32, 80, 144}, {1, 47, 131, 64, 80},
                                    {1, 33, 32, 400, 64}, {1, 9, 151, 64, 96}, {1, 16, 16, 96, 336}};
    for (int i = 0; i < 6; i++) {
        char name[80];
        const int* s = sizes[i];
        snprintf(name, sizeof name, "winograd %d images of %dx%d, %d -> %d channels", s[0], s[1], s[2], s[3], s[4]);
        if (!test_case(name)) continue;
        check_large(s[0], s[1], s[2], conv_square(s[3], s[4], 3, 1, 1, 1), 2e-6);
        check_large(s[0], s[1] + 3, s[2], conv_square(s[3], s[4], 3, 1, 0, 2), 2e-6);
        test_end_case();
    }
    static const conv_t lines[] = {{48, 64, 5, 5, 1, 2, 2, 2, 2, 0},  {32, 80, 5, 5, 1, 0, 1, 0, 3, 0},
                                   {64, 96, 1, 7, 1, 0, 0, 3, 3, 0},  {400, 32, 1, 7, 1, 0, 0, 1, 6, 0},
                                   {96, 144, 7, 1, 1, 3, 3, 0, 0, 0}, {400, 32, 7, 1, 1, 5, 0, 0, 0, 0},
                                   {64, 96, 1, 3, 1, 0, 0, 1, 1, 0},  {400, 48, 3, 1, 1, 2, 1, 0, 0, 0}};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char name[80];
        const conv_t c = lines[i];
        snprintf(name, sizeof name, "winograd %dx%d, %d -> %d channels", c.KH, c.KW, c.C, c.OC);
        if (!test_case(name)) continue;
        check_large(2, 23, 22, c, 2e-6);
        check_large(1, 17, 137, c, 2e-6);
        test_end_case();
    }
    test_bits(conv_square(64, 80, 3, 1, 1, 1));
    test_bits(lines[0]);
    test_bits(lines[2]);
    test_bits(lines[4]);
    test_bits(lines[7]);
    return test_finish();
}
