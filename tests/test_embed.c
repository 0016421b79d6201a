// From an image to tokens and back: bytes, bilinear resize, patches, position table, prefix tokens, mean over tokens.

// defines: image_from_bytes, resize_bilinear_forward, patchify_forward, position_resample_*, tokens_*, drop_prefix_*,
//          concat_*, split_*, mean_tokens_*, embedding_rows
#include "common/ops.h"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error, relative_error_double
#include "tests/test.h"
// defines: check_gradient, random_buffer, poisoned_buffer, dot
#include "tests/gradient.h"
// defines: check_parameter_gradient, check_any_thread_count, result_t
#include "tests/operation.h"

static void test_bytes(void) {
    if (!test_case("image_from_bytes")) return;
    uint8_t bytes[256];
    double out[256];
    for (int i = 0; i < 256; i++) bytes[i] = (uint8_t)i, out[i] = NAN;
    image_from_bytes(out, bytes, 256, 0);
    for (int i = 0; i < 256; i++) check_error("out", fabs(out[i] - (2 * i - 255) / 255.0), 1e-15);
    check(out[0] == -1 && out[255] == 1, "0 and 255 become -1 and 1 exactly");
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Bilinear resize

static const channel_affine_t unit_affine = {{1, 1, 1}, {0, 0, 0}};

// The definition with a real-valued source position.
static double bilinear_at(const double* image, int H, int W, int c, int OH, int OW, int oy, int ox) {
    double sy = fmax((oy + 0.5) * H / OH - 0.5, 0), sx = fmax((ox + 0.5) * W / OW - 0.5, 0);
    int y0 = (int)sy, x0 = (int)sx, y1 = y0 + 1 < H ? y0 + 1 : H - 1, x1 = x0 + 1 < W ? x0 + 1 : W - 1;
    double fy = sy - y0, fx = sx - x0;
    return (1 - fy) * ((1 - fx) * image[(y0 * W + x0) * 3 + c] + fx * image[(y0 * W + x1) * 3 + c])
         + fy * ((1 - fx) * image[(y1 * W + x0) * 3 + c] + fx * image[(y1 * W + x1) * 3 + c]);
}

static void test_resize(const char* name, int B, int H, int W, int OH, int OW) {
    if (!test_case(name)) return;
    const channel_affine_t affine = {{2.18, -0.7, 1.3}, {0.06, 0.2, -0.4}};
    double* x = random_buffer((size_t)B * H * W * 3);
    size_t n = (size_t)B * OH * OW * 3;
    double* out = poisoned_buffer(n);
    double* want = poisoned_buffer(n);
    resize_bilinear_forward(out, x, affine, B, H, W, OH, OW, 0);
    for (size_t i = 0; i < n; i++) {
        int c = (int)(i % 3), ox = (int)(i / 3 % OW), oy = (int)(i / 3 / OW % OH);
        const double* image = x + i / 3 / OW / OH * H * W * 3;
        want[i] = affine.scale[c] * bilinear_at(image, H, W, c, OH, OW, oy, ox) + affine.shift[c];
    }
    check_error("out", relative_error_double(out, want, n), 1e-12);
    free(x), free(out), free(want);
    test_end_case();
}

// Known rows of 256 -> 224, and equal sizes, which must not change a bit.
static void test_resize_known(void) {
    if (!test_case("resize_bilinear 256 -> 224, known weights; identity")) return;
    double* x = random_buffer(256 * 3);
    double* out = poisoned_buffer(256 * 3);
    resize_bilinear_forward(out, x, unit_affine, 1, 1, 256, 1, 224, 0);
    check_error("column 0", fabs(out[0] - (13 * x[0] + 1 * x[3]) / 14), 1e-14);
    check_error("column 1", fabs(out[3] - (11 * x[3] + 3 * x[6]) / 14), 1e-14);
    check_error("column 223", fabs(out[223 * 3] - (1 * x[254 * 3] + 13 * x[255 * 3]) / 14), 1e-14);
    resize_bilinear_forward(out, x, unit_affine, 1, 16, 16, 16, 16, 0);
    check(!memcmp(out, x, 256 * 3 * sizeof(double)), "equal sizes give the image itself");
    free(x), free(out);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Patches

// The columns times a weight [1, 3, patch, patch] are the convolution with it.
static void test_patchify(const char* name, int B, int GH, int GW, int patch) {
    if (!test_case(name)) return;
    int H = GH * patch, W = GW * patch, K = 3 * patch * patch;
    double* x = random_buffer((size_t)B * H * W * 3);
    double* weight = random_buffer(K);
    double* out = poisoned_buffer((size_t)B * GH * GW * K);
    patchify_forward(out, x, B, H, W, 3, patch, 0);
    for (int b = 0; b < B; b++) for (int gy = 0; gy < GH; gy++) for (int gx = 0; gx < GW; gx++) {
        double want = 0;
        for (int ky = 0; ky < patch; ky++) for (int kx = 0; kx < patch; kx++) for (int c = 0; c < 3; c++) {
            int y = gy * patch + ky, column = gx * patch + kx;
            want += x[(((size_t)b * H + y) * W + column) * 3 + c] * weight[(c * patch + ky) * patch + kx];
        }
        double got = dot(out + (((size_t)b * GH + gy) * GW + gx) * K, weight, K);
        check_error("convolution", fabs(got - want) / (fabs(want) + 1), 1e-12);
    }
    free(x), free(weight), free(out);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Position table

// Row `row` of the resampling matrix, read off by resampling tables that are one in a single row, from (grid, grid) to
// (out_size, grid): nothing happens along x then. `last_digit` is half a unit in the last digit of the known values.
static void check_known_row(int grid, int out_size, int row, int first, const double* values, int count,
                            double last_digit) {
    size_t cells = (size_t)grid * grid;
    double* pos = (double*)calloc(cells * grid, sizeof(double)); // channel i: one in all of table row i
    for (size_t cell = 0; cell < cells; cell++) pos[cell * grid + cell / grid] = 1;
    double* out = poisoned_buffer((size_t)out_size * grid * grid);
    position_resample_forward(out, pos, 0, grid, out_size, grid, grid, 0);
    for (int i = 0; i < grid; i++) {
        double want = i >= first && i < first + count ? values[i - first] : 0;
        check_error("weight", fabs(out[(size_t)row * grid * grid + i] - want), last_digit);
    }
    free(pos), free(out);
}

// Values from timm's resampling (PyTorch bicubic with antialias), to eight digits for grid 37 and six for grid 14.
static void test_known_rows(void) {
    if (!test_case("position_resample, rows known from timm")) return;
    static const double row0[] = {.38718638, .44145066, .20925619, -.00305649, -.03181696, -.00301978};
    static const double row8[] = {-.00709339, -.03186975, .01838403, .24359418, .42831403, .32048063, .07406780,
                                  -.02951331, -.01636422};
    static const double row5[] = {-.00135986, -.04650233, .24011267, .63860476, .21680829, -.04715979, -.00050374};
    static const double up0[] = {1.028517, -.028517};
    static const double up5[] = {-.073853, .801636, .305786, -.033569};
    check_known_row(37, 16, 0, 0, row0, 6, 0.5e-8);
    check_known_row(37, 16, 8, 15, row8, 9, 0.5e-8);
    check_known_row(37, 24, 5, 5, row5, 7, 0.5e-8);
    check_known_row(14, 16, 0, 0, up0, 2, 0.5e-6);
    check_known_row(14, 16, 5, 3, up5, 4, 0.5e-6);
    test_end_case();
}

static void test_same_grid(void) {
    if (!test_case("position_resample to the same grid is the identity")) return;
    double* pos = random_buffer(26 * 3);
    double* out = poisoned_buffer(26 * 3);
    position_resample_forward(out, pos, 1, 5, 5, 5, 3, 0);
    check(!memcmp(out, pos, 26 * 3 * sizeof(double)), "the table is unchanged");
    free(pos), free(out);
    test_end_case();
}

typedef struct {
    int prefix, grid, GH, GW, C;
    size_t n_in, n_out;
    double *pos, *out, *dpos, *dout;
} position_t;

static double position_objective(void* context) {
    position_t* p = (position_t*)context;
    position_resample_forward(p->out, p->pos, p->prefix, p->grid, p->GH, p->GW, p->C, 0);
    return dot(p->out, p->dout, p->n_out);
}

static void position_backward(void* context) {
    position_t* p = (position_t*)context;
    position_resample_backward(p->dpos, p->dout, p->prefix, p->grid, p->GH, p->GW, p->C, 0);
}

static void position_both(void* context) {
    position_objective(context);
    position_backward(context);
}

static void test_position(const char* name, int prefix, int grid, int GH, int GW, int C) {
    if (!test_case(name)) return;
    position_t p;
    p.prefix = prefix, p.grid = grid, p.GH = GH, p.GW = GW, p.C = C;
    p.n_in = (size_t)(prefix + grid * grid) * C, p.n_out = (size_t)(prefix + GH * GW) * C;
    p.pos = random_buffer(p.n_in), p.dpos = random_buffer(p.n_in), p.dout = random_buffer(p.n_out);
    p.out = poisoned_buffer(p.n_out);
    check_parameter_gradient("dpos", position_objective, position_backward, &p, p.pos, p.dpos, p.n_in);
    const result_t results[] = {{"out", p.out, p.n_out}, {"dpos", p.dpos, p.n_in}};
    check_any_thread_count(position_both, &p, results, 2);
    free(p.pos), free(p.out), free(p.dpos), free(p.dout);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Tokens

typedef struct {
    int B, N, C, cls, R, pos_class;
    size_t n_out, n_patches, n_pos;
    double *patches, *class_token, *reg, *pos, *out;
    double *dout, *dpatches, *dcls, *dreg, *dpos;
} tokens_t;

static double tokens_objective(void* context) {
    tokens_t* t = (tokens_t*)context;
    tokens_forward(t->out, t->patches, t->cls ? t->class_token : NULL, t->R ? t->reg : NULL, t->n_pos ? t->pos : NULL,
                   t->B, t->N, t->C, t->R, t->pos_class, 0);
    return dot(t->out, t->dout, t->n_out);
}

static void tokens_run_backward(void* context) {
    tokens_t* t = (tokens_t*)context;
    tokens_backward(t->dpatches, t->cls ? t->dcls : NULL, t->R ? t->dreg : NULL, t->n_pos ? t->dpos : NULL, t->dout,
                    t->B, t->N, t->C, t->R, t->pos_class, 0);
}

static void tokens_both(void* context) {
    tokens_objective(context);
    tokens_run_backward(context);
}

// out[b, token, c] by the definition.
static double token_value(const tokens_t* t, int b, int token, int c) {
    int prefix = t->cls + t->R;
    if (token >= prefix) {
        int n = token - prefix;
        double position = t->n_pos ? t->pos[(size_t)(t->pos_class + n) * t->C + c] : 0;
        return t->patches[((size_t)b * t->N + n) * t->C + c] + position;
    }
    if (t->cls && token == 0) return t->class_token[c] + (t->pos_class ? t->pos[c] : 0);
    return t->reg[(size_t)(token - t->cls) * t->C + c];
}

static void test_tokens(const char* name, int B, int N, int C, int cls, int R, int pos_class, int positions) {
    if (!test_case(name)) return;
    tokens_t t;
    int T = cls + R + N;
    t.B = B, t.N = N, t.C = C, t.cls = cls, t.R = R, t.pos_class = pos_class;
    t.n_out = (size_t)B * T * C, t.n_patches = (size_t)B * N * C, t.n_pos = positions ? (size_t)(pos_class + N) * C : 0;
    t.patches = random_buffer(t.n_patches), t.class_token = random_buffer(C), t.reg = random_buffer((size_t)R * C);
    t.pos = random_buffer(t.n_pos), t.dout = random_buffer(t.n_out);
    t.out = poisoned_buffer(t.n_out), t.dpatches = poisoned_buffer(t.n_patches);
    t.dcls = random_buffer(C), t.dreg = random_buffer((size_t)R * C), t.dpos = random_buffer(t.n_pos);
    double* want = poisoned_buffer(t.n_out);
    tokens_both(&t);
    for (size_t i = 0; i < t.n_out; i++) want[i] = token_value(&t, (int)(i / C / T), (int)(i / C % T), (int)(i % C));
    check_error("out", relative_error_double(t.out, want, t.n_out), 1e-15);
    free(want);
    check_gradient("dpatches", tokens_objective, &t, t.patches, t.dpatches, t.n_patches);
    if (positions) check_parameter_gradient("dpos", tokens_objective, tokens_run_backward, &t, t.pos, t.dpos, t.n_pos);
    if (cls) check_parameter_gradient("dcls", tokens_objective, tokens_run_backward, &t, t.class_token, t.dcls, C);
    if (R) check_parameter_gradient("dreg", tokens_objective, tokens_run_backward, &t, t.reg, t.dreg, (size_t)R * C);
    const result_t results[] = {
        {"out", t.out, t.n_out}, {"dpatches", t.dpatches, t.n_patches}, {"dpos", t.dpos, t.n_pos},
        {"dcls", t.dcls, (size_t)C}, {"dreg", t.dreg, (size_t)R * C},
    };
    check_any_thread_count(tokens_both, &t, results, 5);
    double* all[] = {t.patches, t.class_token, t.reg, t.pos, t.out, t.dout, t.dpatches, t.dcls, t.dreg, t.dpos};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    test_end_case();
}

// drop_prefix (P tokens), or the mean over tokens when P is -1.
typedef struct {
    int B, T, P, C;
    size_t n_in, n_out;
    double *x, *out, *dx, *dout;
} select_t;

static double select_objective(void* context) {
    select_t* p = (select_t*)context;
    if (p->P < 0) mean_tokens_forward(p->out, p->x, p->B, p->T, p->C, 0);
    else drop_prefix_forward(p->out, p->x, p->B, p->T, p->P, p->C, 0);
    return dot(p->out, p->dout, p->n_out);
}

static void select_both(void* context) {
    select_t* p = (select_t*)context;
    select_objective(context);
    if (p->P < 0) mean_tokens_backward(p->dx, p->dout, p->B, p->T, p->C, 0);
    else drop_prefix_backward(p->dx, p->dout, p->B, p->T, p->P, p->C, 0);
}

static double select_value(const select_t* p, int b, int t, int c) {
    if (p->P >= 0) return p->x[((size_t)b * p->T + p->P + t) * p->C + c];
    double sum = 0;
    for (int i = 0; i < p->T; i++) sum += p->x[((size_t)b * p->T + i) * p->C + c];
    return sum / p->T;
}

static void test_select(const char* name, int B, int T, int P, int C) {
    if (!test_case(name)) return;
    select_t p;
    p.B = B, p.T = T, p.P = P, p.C = C;
    int kept = P < 0 ? 1 : T - P;
    p.n_in = (size_t)B * T * C, p.n_out = (size_t)B * kept * C;
    p.x = random_buffer(p.n_in), p.dout = random_buffer(p.n_out);
    p.out = poisoned_buffer(p.n_out), p.dx = poisoned_buffer(p.n_in);
    double* want = poisoned_buffer(p.n_out);
    select_both(&p);
    for (size_t i = 0; i < p.n_out; i++) {
        want[i] = select_value(&p, (int)(i / C / kept), (int)(i / C % kept), (int)(i % C));
    }
    check_error("out", relative_error_double(p.out, want, p.n_out), 1e-14);
    free(want);
    check_gradient("dx", select_objective, &p, p.x, p.dx, p.n_in);
    const result_t results[] = {{"out", p.out, p.n_out}, {"dx", p.dx, p.n_in}};
    check_any_thread_count(select_both, &p, results, 2);
    free(p.x), free(p.out), free(p.dx), free(p.dout);
    test_end_case();
}

// Token by token; the way back gives both parts again, of activations and of the stream, which are one type here.
static void test_concat(const char* name, int B, int P, int Q, int C) {
    if (!test_case(name)) return;
    size_t na = (size_t)B * P * C, nb = (size_t)B * Q * C;
    double *a = random_buffer(na), *b = random_buffer(nb);
    double *out = poisoned_buffer(na + nb), *out2 = poisoned_buffer(na + nb);
    double *a2 = poisoned_buffer(na), *b2 = poisoned_buffer(nb);
    concat_tokens(out, a, b, B, P, Q, C, 0);
    concat_stream(out2, a, b, B, P, Q, C, 0);
    int right = 1;
    for (size_t i = 0; i < na + nb; i++) {
        size_t image = i / C / (P + Q), t = i / C % (P + Q), c = i % C, p = (size_t)P;
        right &= out[i] == (t < p ? a[(image * P + t) * C + c] : b[(image * Q + t - P) * C + c]);
    }
    check(right, "tokens of a, then of b");
    check(!memcmp(out, out2, (na + nb) * sizeof(double)), "the stream likewise");
    split_tokens(a2, b2, out, B, P, Q, C, 0);
    check(!memcmp(a, a2, na * sizeof(double)) && !memcmp(b, b2, nb * sizeof(double)), "and back");
    memset(a2, 0xFF, na * sizeof(double)), memset(b2, 0xFF, nb * sizeof(double));
    split_stream(a2, b2, out, B, P, Q, C, 0);
    check(!memcmp(a, a2, na * sizeof(double)) && !memcmp(b, b2, nb * sizeof(double)), "and back, the stream");
    free(a), free(b), free(out), free(out2), free(a2), free(b2);
    test_end_case();
}

static void test_embedding(const char* name, int B, int T, int C, int rows, int has_pos) {
    if (!test_case(name)) return;
    double *table = random_buffer((size_t)rows * C), *pos = random_buffer((size_t)T * C);
    double* out = poisoned_buffer((size_t)B * T * C);
    int *ids = (int*)malloc((size_t)B * T * sizeof(int)), same = 1;
    for (int i = 0; i < B * T; i++) ids[i] = i == 0 ? rows - 1 : i * 7 % rows;
    embedding_rows(out, table, has_pos ? pos : NULL, ids, B, T, C, 0);
    for (int i = 0; i < B * T; i++) {
        for (int c = 0; c < C; c++) {
            same &= out[i * C + c] == table[ids[i] * C + c] + (has_pos ? pos[i % T * C + c] : 0);
        }
    }
    check(same, "rows of the table, and positions");
    free(table), free(pos), free(out), free(ids);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_bytes();
    test_resize("resize_bilinear smaller, 16/14, not square", 2, 64, 48, 56, 42);
    test_resize("resize_bilinear primes", 3, 17, 23, 13, 29);
    test_resize("resize_bilinear from and to one pixel", 1, 1, 1, 3, 5);
    test_resize("resize_bilinear to one pixel", 1, 7, 5, 1, 1);
    test_resize_known();
    test_patchify("patchify 14", 2, 3, 2, 14);
    test_patchify("patchify one pixel", 1, 5, 3, 1);
    test_patchify("patchify 7, one patch", 3, 1, 1, 7);
    test_known_rows();
    test_same_grid();
    test_position("position_resample smaller, not square", 1, 13, 5, 7, 3);
    test_position("position_resample larger", 0, 5, 11, 6, 2);
    test_position("position_resample one cell", 5, 1, 2, 3, 1);
    test_position("position_resample to one cell", 1, 7, 1, 1, 5);
    test_tokens("tokens: class token with position", 3, 11, 7, 1, 0, 1, 1);
    test_tokens("tokens: class token and registers without position", 2, 6, 5, 1, 4, 0, 1);
    test_tokens("tokens: class token with position, and registers", 2, 5, 3, 1, 2, 1, 1);
    test_tokens("tokens: no prefix", 3, 7, 5, 0, 0, 0, 1);
    test_tokens("tokens: one of each size", 1, 1, 1, 1, 1, 0, 1);
    test_tokens("tokens: no positions", 2, 7, 5, 1, 4, 0, 0);
    test_select("drop_prefix", 3, 11, 5, 7);
    test_select("drop_prefix of none", 2, 3, 0, 1);
    test_concat("concat_tokens, split_tokens", 3, 5, 11, 7);
    test_concat("concat_tokens, split_tokens, one value each", 1, 1, 1, 1);
    test_select("mean_tokens", 3, 13, -1, 7);
    test_select("mean_tokens of one", 1, 1, -1, 1);
    test_embedding("embedding_rows", 3, 5, 7, 11, 1);
    test_embedding("embedding_rows without positions", 2, 3, 8, 4, 0);
    test_embedding("embedding_rows, one value", 1, 1, 1, 1, 1);
    return test_finish();
}
