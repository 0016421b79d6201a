// test_conv.c: convolution, 2x2 maximum and nearest-neighbour upsampling (dev/cpu/conv.h, dev/cpu/resample.h).
//
// The naive loops are the truth: their backward is compared with finite differences, and the fast forms with both.
// Sizes are chosen to be odd, prime or 1, and to leave every kind of remainder in tiles, panels and blocks.
#include "common/ops.cu"
#include "tests/gradient.h"
#include <omp.h>

typedef struct {
    int B, H, W, OH, OW;
    conv_t conv;
    activation_t act;
    size_t nx, nw, ny;
    double *x, *weight, *bias, *residual, *out, *r; // r: the random projection
} conv_case_t;

static conv_case_t make_case(int B, int H, int W, conv_t conv, activation_t act, int with_bias, int with_residual) {
    conv_case_t t;
    memset(&t, 0, sizeof t);
    t.B = B, t.H = H, t.W = W, t.conv = conv, t.act = act;
    t.OH = conv_out_height(H, conv), t.OW = conv_out_width(W, conv);
    t.nx = (size_t)B * H * W * conv.C;
    t.nw = (size_t)conv.OC * conv.KH * conv.KW * conv.C;
    t.ny = (size_t)B * t.OH * t.OW * conv.OC;
    t.x = random_buffer(t.nx), t.weight = random_buffer(t.nw);
    t.bias = with_bias ? random_buffer(conv.OC) : NULL;
    t.residual = with_residual ? random_buffer(t.ny) : NULL;
    t.out = poisoned_buffer(t.ny), t.r = random_buffer(t.ny);
    return t;
}

static void free_case(conv_case_t* t) {
    free(t->x), free(t->weight), free(t->bias), free(t->residual), free(t->out), free(t->r);
}

static void check_forward(conv_case_t* t) {
    double* want = poisoned_buffer(t->ny);
    conv2d_forward_naive(want, t->x, t->weight, t->bias, t->residual, t->B, t->H, t->W, t->conv, t->act);
    conv2d_forward(t->out, t->x, t->weight, t->bias, t->residual, t->B, t->H, t->W, t->conv, t->act, 0);
    check_error("out", relative_error_double(t->out, want, t->ny), 1e-13);
    free(want);
}

// The naive loops' own derivatives against differences, then both fast ones against the naive.
static double project_naive(void* context) {
    conv_case_t* t = (conv_case_t*)context;
    conv2d_forward_naive(t->out, t->x, t->weight, t->bias, t->residual, t->B, t->H, t->W, t->conv, ACT_NONE);
    return dot(t->out, t->r, t->ny);
}

static void check_backward_naive(conv_case_t* t) {
    int OC = t->conv.OC;
    double *dx = poisoned_buffer(t->nx), *fast_dx = poisoned_buffer(t->nx);
    double *dw = (double*)calloc(t->nw + OC, sizeof(double)), *fast_dw = (double*)calloc(t->nw + OC, sizeof(double));
    conv2d_backward_naive(dx, dw, dw + t->nw, t->r, t->x, t->weight, t->B, t->H, t->W, t->conv);
    check_gradient("naive dx", project_naive, t, t->x, dx, t->nx);
    check_gradient("naive dweight", project_naive, t, t->weight, dw, t->nw);
    if (t->bias) check_gradient("naive dbias", project_naive, t, t->bias, dw + t->nw, OC);
    conv2d_backward_data(fast_dx, t->r, t->weight, NULL, t->B, t->H, t->W, t->conv, ACT_RELU, 0);
    conv2d_backward_weight(fast_dw, fast_dw + t->nw, t->r, t->x, t->B, t->H, t->W, t->conv, 0);
    check_error("dx and the naive dx", relative_error_double(fast_dx, dx, t->nx), 1e-12);
    check_error("dweight, dbias and the naive", relative_error_double(fast_dw, dw, t->nw + OC), 1e-12);
    free(dx), free(fast_dx), free(dw), free(fast_dw);
}

static double project_conv(void* context) { // without activation: dout is the gradient before it
    conv_case_t* t = (conv_case_t*)context;
    conv2d_forward(t->out, t->x, t->weight, t->bias, t->residual, t->B, t->H, t->W, t->conv, ACT_NONE, 0);
    return dot(t->out, t->r, t->ny);
}

static void check_backward_data(conv_case_t* t) {
    double *dx = poisoned_buffer(t->nx), *masked = poisoned_buffer(t->nx), *mask = random_buffer(t->nx);
    conv2d_backward_data(dx, t->r, t->weight, NULL, t->B, t->H, t->W, t->conv, ACT_RELU, 0);
    check_gradient("dx", project_conv, t, t->x, dx, t->nx);
    mask[0] = 0; // the derivative at zero is that of the negative side
    for (int k = 0; k < 2; k++) {
        activation_t act = k ? ACT_LEAKY : ACT_RELU;
        conv2d_backward_data(masked, t->r, t->weight, mask, t->B, t->H, t->W, t->conv, act, 0);
        double worst = 0;
        for (size_t i = 0; i < t->nx; i++) {
            double want = dx[i] * (mask[i] > 0 ? 1 : act == ACT_RELU ? 0 : LEAKY_SLOPE);
            worst = fabs(masked[i] - want) <= worst ? worst : fabs(masked[i] - want);
        }
        check_error("masked dx", worst, 0);
    }
    free(dx), free(masked), free(mask);
}

static void check_backward_weight(conv_case_t* t) {
    int OC = t->conv.OC;
    double *dw = random_buffer(t->nw), *db = random_buffer(OC);
    double *dw_start = (double*)malloc(t->nw * sizeof(double)), *db_start = (double*)malloc(OC * sizeof(double));
    double *dw_once = (double*)malloc(t->nw * sizeof(double)), *db_once = (double*)malloc(OC * sizeof(double));
    memcpy(dw_start, dw, t->nw * sizeof(double)), memcpy(db_start, db, OC * sizeof(double));
    conv2d_backward_weight(dw, t->bias ? db : NULL, t->r, t->x, t->B, t->H, t->W, t->conv, 0);
    memcpy(dw_once, dw, t->nw * sizeof(double)), memcpy(db_once, db, OC * sizeof(double));
    conv2d_backward_weight(dw, t->bias ? db : NULL, t->r, t->x, t->B, t->H, t->W, t->conv, 0);
    check_accumulates("dweight twice", dw, dw_once, dw_start, t->nw);
    for (size_t i = 0; i < t->nw; i++) dw[i] = dw_once[i] - dw_start[i];
    check_gradient("dweight", project_conv, t, t->weight, dw, t->nw);
    if (t->bias) {
        check_accumulates("dbias twice", db, db_once, db_start, OC);
        for (int i = 0; i < OC; i++) db[i] = db_once[i] - db_start[i];
        check_gradient("dbias", project_conv, t, t->bias, db, OC);
    }
    free(dw), free(db), free(dw_start), free(db_start), free(dw_once), free(db_once);
}

static void check_conv(int B, int H, int W, conv_t conv, activation_t act, int with_bias, int with_residual) {
    conv_case_t t = make_case(B, H, W, conv, act, with_bias, with_residual);
    check_forward(&t);
    check_backward_naive(&t);
    check_backward_data(&t);
    check_backward_weight(&t);
    free_case(&t);
}

// Every kernel, stride and padding at several sizes and channel counts, down to maps of one pixel where there is an
// output.
static void test_shapes(void) {
    static const int sizes[6][3] = {{2, 5, 7}, {1, 9, 4}, {3, 1, 1}, {1, 2, 3}, {2, 12, 17}, {1, 3, 65}};
    static const int channels[6][2] = {{3, 5}, {1, 1}, {16, 3}, {6, 33}, {5, 12}, {10, 2}};
    static const int pads[4][2] = {{0, 0}, {1, 1}, {0, 1}, {2, 1}};
    static const int kernels[3] = {1, 3, 4};
    for (int k = 0; k < 3; k++) {
        for (int stride = 1; stride <= 2; stride++) {
            for (int p = 0; p < 4; p++) {
                char name[80];
                int K = kernels[k], lo = pads[p][0], hi = pads[p][1];
                snprintf(name, sizeof name, "conv2d %dx%d stride %d pad (%d,%d)", K, K, stride, lo, hi);
                if (!test_case(name)) continue;
                for (int i = 0; i < 36; i++) {
                    const int *size = sizes[i % 6], *channel = channels[i / 6];
                    conv_t conv = conv_square(channel[0], channel[1], K, stride, lo, hi);
                    if (size[1] + lo + hi < K || size[2] + lo + hi < K) continue;
                    check_conv(size[0], size[1], size[2], conv, (activation_t)(i % 3), i % 2, i / 2 % 2);
                }
                test_end_case();
            }
        }
    }
}

// Rows and columns that differ in kernel and padding: Inception's 1x7 and 7x1, and others.
static void test_rectangles(void) {
    static const conv_t shapes[7] = {{5, 6, 1, 7, 1, 0, 0, 3, 3, 0},   {40, 7, 7, 1, 1, 3, 3, 0, 0, 0},
                                     {24, 35, 1, 3, 1, 0, 0, 1, 1, 0}, {3, 2, 3, 1, 1, 1, 1, 0, 0, 0},
                                     {8, 3, 2, 5, 2, 1, 0, 0, 2, 0},   {1, 4, 3, 4, 1, 0, 2, 3, 0, 0},
                                     {6, 9, 1, 1, 1, 0, 0, 1, 0, 0}};
    static const int sizes[3][3] = {{2, 5, 7}, {1, 17, 18}, {3, 8, 3}};
    for (int k = 0; k < 7; k++) {
        char name[80];
        conv_t c = shapes[k];
        snprintf(name, sizeof name, "conv2d %dx%d stride %d pad (%d,%d), (%d,%d)", c.KH, c.KW, c.stride, c.pad_top,
                 c.pad_bottom, c.pad_left, c.pad_right);
        if (!test_case(name)) continue;
        for (int i = 0; i < 3; i++) check_conv(sizes[i][0], sizes[i][1], sizes[i][2], c, (activation_t)i, i % 2, i < 2);
        test_end_case();
    }
}

// Channels of a wider map: the same bits as in a map of their own, and nothing else is touched.
static void test_side_by_side(void) {
    if (!test_case("conv2d into some channels of a wider map")) return;
    enum { ROW = 61, FIRST = 7 };
    static const conv_t shapes[4] = {{5, 37, 3, 3, 1, 1, 1, 1, 1, 0}, {9, 20, 1, 1, 1, 0, 0, 0, 0, 0},
                                     {16, 3, 3, 3, 1, 1, 1, 1, 1, 0}, {4, 33, 1, 7, 1, 0, 0, 3, 3, 0}};
    for (int k = 0; k < 4; k++) {
        conv_case_t t = make_case(2, 9, 11, shapes[k], ACT_RELU, 1, 0);
        size_t pixels = t.ny / t.conv.OC;
        double *wide = random_buffer(pixels * ROW), *before = random_buffer(pixels * ROW);
        memcpy(before, wide, pixels * ROW * sizeof(double));
        conv_t conv = t.conv;
        conv.out_row = ROW;
        conv2d_forward(t.out, t.x, t.weight, t.bias, NULL, t.B, t.H, t.W, t.conv, t.act, 0);
        conv2d_forward(wide + FIRST, t.x, t.weight, t.bias, NULL, t.B, t.H, t.W, conv, t.act, 0);
        for (size_t i = 0; i < pixels; i++) {
            memcpy(before + i * ROW + FIRST, t.out + i * conv.OC, conv.OC * sizeof(double));
        }
        check(!memcmp(before, wide, pixels * ROW * sizeof(double)), "equality of all bits");
        free(wide), free(before);
        free_case(&t);
    }
    test_end_case();
}

// Sizes that need several tiles across and down, several slots and several groups of channels.
static void test_large(void) {
    if (test_case("conv2d several tiles, slots and groups")) {
        conv_t narrow = conv_square(3, 4, 3, 1, 1, 1), wide = conv_square(40, 70, 3, 1, 1, 1);
        conv_t half = conv_square(9, 20, 4, 2, 1, 1);
        conv_t matrix = conv_square(12, 34, 1, 1, 0, 0), lower = conv_square(8, 8, 3, 2, 0, 1);
        check_conv(2, 70, 131, narrow, ACT_LEAKY, 1, 1);
        check_conv(3, 13, 15, wide, ACT_RELU, 1, 0);
        check_conv(9, 31, 30, half, ACT_NONE, 0, 1);
        check_conv(2, 37, 41, matrix, ACT_RELU, 1, 1);
        check_conv(1, 66, 130, lower, ACT_NONE, 1, 0);
        test_end_case();
    }
    if (test_case("conv2d large maps and channels (dev/cpu/winograd.h)")) {
        check_conv(1, 17, 19, conv_square(80, 64, 3, 1, 1, 1), ACT_LEAKY, 1, 1);
        check_conv(2, 18, 17, conv_square(64, 112, 3, 1, 2, 0), ACT_NONE, 0, 0);
        test_end_case();
    }
}

// All outputs of one case, one behind the other, computed with this many threads.
static double* conv_outputs(conv_case_t* t, int threads, size_t* n) {
    omp_set_num_threads(threads);
    *n = t->ny + t->nx + t->nw + t->conv.OC;
    double *all = (double*)calloc(*n, sizeof(double)), *dx = all + t->ny, *dw = dx + t->nx;
    conv2d_forward(all, t->x, t->weight, t->bias, t->residual, t->B, t->H, t->W, t->conv, t->act, 0);
    conv2d_backward_data(dx, t->r, t->weight, t->x, t->B, t->H, t->W, t->conv, ACT_LEAKY, 0);
    conv2d_backward_weight(dw, dw + t->nw, t->r, t->x, t->B, t->H, t->W, t->conv, 0);
    return all;
}

static void test_threads(void) {
    if (!test_case("conv2d: the same bits with 1, 2 and 3 threads")) return;
    int most = omp_get_max_threads();
    const conv_t shapes[5] = {conv_square(16, 16, 3, 1, 1, 1), conv_square(16, 40, 4, 2, 1, 1),
                              conv_square(16, 3, 3, 1, 1, 1), conv_square(24, 20, 1, 1, 0, 0),
                              conv_square(64, 80, 3, 1, 1, 1)};
    for (int k = 0; k < 5; k++) {
        conv_case_t t = make_case(5, 24, 33, shapes[k], ACT_LEAKY, 1, 1);
        size_t n;
        double* one = conv_outputs(&t, 1, &n);
        for (int threads = 2; threads <= 3; threads++) {
            double* several = conv_outputs(&t, threads, &n);
            check(!memcmp(one, several, n * sizeof(double)), "equality of all bits");
            free(several);
        }
        free(one);
        free_case(&t);
    }
    omp_set_num_threads(most);
    test_end_case();
}

typedef struct {
    int B, H, W, C;
    double *x, *out, *r;
    size_t n_out;
} resample_case_t;

static double project_maxpool(void* context) {
    resample_case_t* t = (resample_case_t*)context;
    maxpool_forward(t->out, t->x, t->B, t->H, t->W, t->C, 0);
    return dot(t->out, t->r, t->n_out);
}
static double project_upsample(void* context) {
    resample_case_t* t = (resample_case_t*)context;
    upsample_forward(t->out, t->x, t->B, t->H, t->W, t->C, 0);
    return dot(t->out, t->r, t->n_out);
}

// Values at least 1e-2 away from zero and, being spread over a lattice in random order, from each other.
static double* separated_buffer(size_t n) {
    double* p = (double*)malloc(n * sizeof(double));
    for (size_t i = 0; i < n; i++) p[i] = 0.02 * ((double)i - (double)(n / 2)) + 0.01;
    for (size_t i = n; i > 1; i--) {
        size_t k = (size_t)((test_uniform() + 1) / 2 * (double)i);
        double swap = p[i - 1];
        p[i - 1] = p[k], p[k] = swap;
    }
    return p;
}

// The objective is the pool of relu(v) as a function of v; x = relu(v) is what the operation sees.
static double project_relu_maxpool(void* context) {
    resample_case_t* t = (resample_case_t*)context;
    resample_case_t inner = *t;
    size_t n = (size_t)t->B * t->H * t->W * t->C;
    inner.x = (double*)malloc(n * sizeof(double));
    for (size_t i = 0; i < n; i++) inner.x[i] = t->x[i] > 0 ? t->x[i] : 0;
    double value = project_maxpool(&inner);
    free(inner.x);
    return value;
}

static void check_maxpool(int B, int H, int W, int C) {
    size_t n = (size_t)B * H * W * C, n_out = (size_t)B * (H / 2) * (W / 2) * C;
    resample_case_t t = {B, H, W, C, separated_buffer(n), poisoned_buffer(n_out), random_buffer(n_out), n_out};
    double *dx = poisoned_buffer(n), *add = random_buffer(n), *both = poisoned_buffer(n);
    double* x = (double*)malloc(n * sizeof(double));
    for (size_t i = 0; i < n; i++) x[i] = t.x[i] > 0 ? t.x[i] : 0;
    maxpool_relu_backward_naive(dx, t.r, NULL, x, B, H, W, C);
    check_gradient_h("naive dx", project_relu_maxpool, &t, t.x, dx, n, 1e-3, 1e-6);
    maxpool_relu_backward_naive(dx, t.r, add, x, B, H, W, C);
    maxpool_relu_backward(both, t.r, add, x, B, H, W, C, 0);
    check_error("dx and the naive dx", relative_error_double(both, dx, n), 1e-15);
    maxpool_relu_backward(dx, t.r, NULL, x, B, H, W, C, 0);
    check_gradient_h("dx", project_relu_maxpool, &t, t.x, dx, n, 1e-3, 1e-6);
    maxpool_relu_backward(both, t.r, add, x, B, H, W, C, 0);
    for (size_t i = 0; i < n; i++) check_error("dx with a tap", fabs(both[i] - (x[i] > 0 ? dx[i] + add[i] : 0)), 1e-15);
    maxpool_relu_backward(add, t.r, add, x, B, H, W, C, 0);
    check(!memcmp(add, both, n * sizeof(double)), "the same in place");
    free(t.x), free(t.out), free(t.r), free(dx), free(add), free(both), free(x);
}

static void check_upsample(int B, int H, int W, int C) {
    size_t n = (size_t)B * H * W * C;
    resample_case_t t = {B, H, W, C, random_buffer(n), poisoned_buffer(4 * n), random_buffer(4 * n), 4 * n};
    double* dx = poisoned_buffer(n);
    upsample_forward(t.out, t.x, B, H, W, C, 0);
    int equal = 1;
    for (size_t k = 0; k < 4 * n; k++) {
        size_t c = k % C, j = k / C % (2 * W), i = k / C / (2 * W) % (2 * H), b = k / C / (2 * W) / (2 * H);
        equal &= t.out[k] == t.x[((b * H + i / 2) * W + j / 2) * C + c];
    }
    check(equal, "out[2i + a, 2j + b] = x[i, j]");
    upsample_backward(dx, t.r, B, H, W, C, 0);
    check_gradient("dx", project_upsample, &t, t.x, dx, n);
    free(t.x), free(t.out), free(t.r), free(dx);
}

static void test_maxpool_forward(void) {
    enum { B = 2, H = 5, W = 7, C = 3, OH = H / 2, OW = W / 2 };
    double *x = random_buffer(B * H * W * C), *out = poisoned_buffer(B * OH * OW * C);
    maxpool_forward(out, x, B, H, W, C, 0);
    int equal = 1;
    for (int k = 0; k < B * OH * OW * C; k++) {
        int c = k % C, j = k / C % OW, i = k / C / OW % OH, b = k / C / OW / OH;
        double best = -INFINITY;
        for (int a = 0; a < 4; a++) best = fmax(best, x[((b * H + 2 * i + a / 2) * W + 2 * j + a % 2) * C + c]);
        equal &= out[k] == best;
    }
    check(equal, "the maximum of each window");
    free(x), free(out);
}

// Equal maxima: the first in reading order takes the whole gradient. Where the ReLU is off, none passes.
static void test_maxpool_ties(void) {
    static const double windows[5][4] = {{2, 3, 3, 3}, {3, 3, 1, 3}, {3, 1, 3, 2}, {1, 2, 3, 3}, {0, 0, 0, 0}};
    static const int first[5] = {1, 0, 0, 2, -1};
    for (int k = 0; k < 5; k++) {
        double dout[1] = {5}, dx[4];
        maxpool_relu_backward(dx, dout, NULL, windows[k], 1, 2, 2, 1, 0);
        for (int i = 0; i < 4; i++) check(dx[i] == (i == first[k] ? 5 : 0), "gradient at the first maximum only");
    }
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_shapes();
    test_rectangles();
    test_side_by_side();
    test_large();
    test_threads();
    static const int sizes[5][4] = {{2, 5, 7, 3}, {1, 8, 6, 17}, {3, 2, 2, 1}, {2, 4, 9, 5}, {1, 1, 3, 2}};
    if (test_case("maxpool 2x2")) {
        test_maxpool_forward();
        test_end_case();
    }
    if (test_case("maxpool and ReLU backward, odd sizes, tap, in place")) {
        for (int k = 0; k < 5; k++) check_maxpool(sizes[k][0], sizes[k][1], sizes[k][2], sizes[k][3]);
        test_maxpool_ties();
        test_end_case();
    }
    if (test_case("upsample x2")) {
        for (int k = 0; k < 5; k++) check_upsample(sizes[k][0], sizes[k][1], sizes[k][2], sizes[k][3]);
        test_end_case();
    }
    return test_finish();
}
