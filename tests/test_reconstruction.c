// The metrics of reconstruction: vectors that are formulas (spec V1, V8, V9), what the usual packages answer on
// photographs (dev/reference/make_metric_fixtures.py), identities, and the sheet of best and worst images.

#include <omp.h>

// defines: mse_bytes, psnr_bytes, l1_bytes, colour_error_bytes, step_bytes, ...
#include "common/measures/reconstruction_measures.h"
// defines: image_centre_crop_adm, image_centre_crop_tv, image_centre_crop_tv_floats
#include "common/data/crop.h"
// defines: eval_sheet_t, eval_sheet_open, eval_sheet_offer, eval_sheet_write, eval_sheet_close
#include "common/measures/eval_sheet.h"
// defines: random_buffer, check, check_error (this makes floatX double)
#include "tests/gradient.h"
// defines: fixture_open, fixture_find
#include "tests/fixture.h"
// defines: make_picture
#include "tests/picture.h"
// defines: vector_u, vector_g
#include "tests/vectors.h"
// defines: temporary_begin, temporary_run_child, temporary_read, temporary_end
#include "tests/temporary.h"

// ---------------------------------------------------------------------------------------------------------------------
// Crops

static void check_adm(int height, int width, const int* sums, const int* pixels) {
    static const int at[3][2] = {{0, 0}, {100, 200}, {255, 255}};
    image_t image = image_create(height, width);
    uint8_t* out = (uint8_t*)malloc(256 * 256 * 3);
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            for (int c = 0; c < 3; c++) {
                image.pixels[((size_t)y * width + x) * 3 + c] = (uint8_t)(3 * x + 5 * y + 40 * c + x * y / 7);
            }
        }
    }
    image_centre_crop_adm(out, &image, 256);
    for (int c = 0; c < 3; c++) {
        int sum = 0;
        for (int i = 0; i < 256 * 256; i++) sum += out[i * 3 + c];
        check(sum == sums[c], "sum of a channel");
        for (int i = 0; i < 3; i++) check(out[(at[i][0] * 256 + at[i][1]) * 3 + c] == pixels[i * 3 + c], "a pixel");
    }
    free(out);
    image_free(&image);
}

static void test_adm(void) {
    if (!test_case("ADM's crop: sums and pixels of Pillow's")) return;
    static const int sums[3][3] = {{8384921, 8404306, 8388423},
                                   {8355469, 8371885, 8360657},
                                   {8360237, 8360457, 8354985}};
    static const int pixels[3][9] = {{57, 97, 137, 170, 151, 125, 130, 153, 108},
                                     {196, 37, 77, 146, 203, 176, 94, 104, 155},
                                     {149, 189, 229, 233, 16, 58, 121, 161, 203}};
    check_adm(603, 801, sums[0], pixels[0]);
    check_adm(333, 500, sums[1], pixels[1]);
    check_adm(200, 300, sums[2], pixels[2]);
    test_end_case();
}

// PyTorch sums floats in another order: 4e-7 of the range. Of all these bytes one differs, at a tie between two.
static void test_torchvision(void) {
    if (!test_case("torchvision's crop of a float tensor")) return;
    safetensors_t f;
    int cases = 0;
    fixture_open(&f, "metrics");
    for (int i = 0; i < f.n; i++) {
        int height, width, size;
        if (sscanf(f.tensors[i].name, "crop.%d.%d.%d", &height, &width, &size) != 3) continue;
        size_t n = (size_t)size * size * 3;
        image_t image = make_picture(height, width);
        double *want = fixture_tensor(&f, f.tensors[i].name), *got = poisoned_buffer(n), worst = 0;
        uint8_t *bytes = (uint8_t*)malloc(n), theirs;
        int differ = 0;
        image_centre_crop_tv_floats(got, &image, size);
        image_centre_crop_tv(bytes, &image, size);
        for (size_t k = 0; k < n; k++) {
            floatS value = want[k % 3 * size * size + k / 3];
            double exact = 127.5 * got[k] + 127.5, tie = fabs(exact - floor(exact) - 0.5);
            worst = fmax(worst, fabs(got[k] - value));
            image_bytes_from_floats(&theirs, &value, 1);
            differ += theirs != bytes[k] && tie > 1e-4;
        }
        check_error(f.tensors[i].name, worst, 4e-7);
        check(differ == 0, "every byte that is no tie");
        cases++;
        free(want), free(got), free(bytes);
        image_free(&image);
    }
    check(cases == 8, "eight sizes");
    safetensors_close(&f);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// PSNR and L1

// A brightness that is wrong everywhere is no error of colour; a channel that is wrong by e is one of e sqrt(2/3);
// errors that cancel inside a cell are none; each cell counts alike, also where 8 does not divide the sides.
static void test_colour_and_sharpness(void) {
    if (!test_case("colour and sharpness: brightness, one channel, one cell, stripes")) return;
    enum { H = 19, W = 33, N = H * W * 3 };
    static uint8_t a[N], b[N];
    for (int i = 0; i < N; i++) a[i] = (uint8_t)(40 + i * 7 % 150), b[i] = (uint8_t)(a[i] + 30);
    check_error("brightness alone", colour_error_bytes(a, b, H, W), 1e-12);
    for (int i = 0; i < N; i++) b[i] = (uint8_t)(a[i] + (i % 3 == 1 ? 30 : 0));
    check_error("one channel", fabs(colour_error_bytes(a, b, H, W) / (30 * sqrt(2.0 / 3)) - 1), 1e-12);
    check_error("the other way round", fabs(colour_error_bytes(b, a, H, W) / (30 * sqrt(2.0 / 3)) - 1), 1e-12);
    memcpy(b, a, N);
    for (int y = 0; y < 2; y++) { // rows [0, 2) and columns [4, 8) are a cell: 19 / 8 is 2, 33 / 8 is 4
        for (int x = 4; x < 8; x++) b[(y * W + x) * 3 + 2] += 60;
    }
    check_error("one cell of 64", fabs(colour_error_bytes(a, b, H, W) / (60 * sqrt(2.0 / 3) / 64) - 1), 1e-12);
    memcpy(b, a, N);
    b[4 * 3] += 20, b[5 * 3] -= 20;
    check_error("what cancels inside a cell", colour_error_bytes(a, b, H, W), 1e-12);
    for (int i = 0; i < N; i++) a[i] = i / 3 % W % 2 ? 10 : 4; // stripes: a step of 6 to the right, none down
    check_error("steps", fabs(step_bytes(a, H, W) - 6.0 * (W - 1) / W), 1e-12);
    check(step_bytes(a, 1, 1) == 0, "one pixel has no neighbours");
    check(colour_error_bytes(a, b, 1, 1) > 0, "one pixel is one cell");
    test_end_case();
}

static void test_psnr(void) {
    if (!test_case("PSNR and L1: a step of one; equal images; means of a set")) return;
    enum { N = 3 * 17 * 5 };
    uint8_t a[N], b[N];
    for (int i = 0; i < N; i++) a[i] = (uint8_t)(i % 255), b[i] = (uint8_t)(a[i] + (i % 2 ? 1 : a[i] > 0 ? -1 : 1));
    check_error("one off everywhere", fabs(psnr_bytes(a, b, N) - 48.13080360867910), 1e-13);
    check_error("L1 of it", fabs(l1_bytes(a, b, N) - 1 / 127.5), 1e-16);
    check(psnr_bytes(a, a, N) == INFINITY && l1_bytes(a, a, N) == 0 && mse_bytes(a, a, N) == 0, "equal images");
    memset(a, 0, N), memset(b, 255, N);
    check(psnr_bytes(a, b, N) == 0 && l1_bytes(a, b, N) == 2 && mse_bytes(b, a, N) == 65025, "black and white");
    double mse[5] = {65.025, 0, 650.25, 0, 6502.5};
    psnr_summary_t s = psnr_summary(mse, 5);
    check(s.images == 5 && s.equal == 2, "equal ones are counted");
    check_error("mean of 30, 20 and 10", fabs(s.psnr - 20), 1e-14);
    check_error("of the mean error", fabs(s.psnr_of_mean_mse - 10 * log10(65025 / (7217.775 / 5))), 1e-14);
    s = psnr_summary(mse + 1, 1);
    check(s.psnr == INFINITY && s.psnr_of_mean_mse == INFINITY && s.equal == 1, "only equal ones");
    check(isnan(psnr_summary(mse, 0).psnr), "none");
    test_end_case();
}

static void test_bytes(void) {
    if (!test_case("bytes: -1, 0, 1 are 0, 128, 255; every byte comes back")) return;
    double x[259] = {-1, 0, 1};
    uint8_t out[259];
    for (int v = 0; v < 256; v++) x[3 + v] = 2.0 * v / 255 - 1;
    image_bytes_from_floats(out, x, 259);
    check(out[0] == 0 && out[1] == 128 && out[2] == 255, "-1, 0, 1");
    for (int v = 0; v < 256; v++) check(out[3 + v] == v, "a byte");
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// The vector of two images, and photographs

enum { SIDE = 64, VALUES = SIDE * SIDE * 3 };
typedef struct { double a0[VALUES], b0[VALUES], a[VALUES], b[VALUES]; } pair_t; // (SIDE, SIDE, 3); a, b clamped

static double clamp_one(double x) { return x < -1 ? -1 : x > 1 ? 1 : x; }

static void fill_pair(pair_t* p) {
    for (int i = 0; i < VALUES; i++) {
        int c = i / (SIDE * SIDE), y = i / SIDE % SIDE, x = i % SIDE, k = (y * SIDE + x) * 3 + c;
        p->a0[k] = 0.6 * sin(0.20 * x + 0.31 * y + c) + 0.15 * vector_g(12, i);
        p->b0[k] = 0.9 * p->a0[k] + 0.05 + 0.12 * vector_g(13, i);
        p->a[k] = clamp_one(p->a0[k]);
        p->b[k] = clamp_one(p->b0[k]);
    }
}

static double sum_of(const double* x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

static void test_pair(void) {
    if (!test_case("SSIM and PSNR of two images given by formulas")) return;
    static pair_t p;
    uint8_t a[VALUES], b[VALUES];
    int sums[2] = {0, 0};
    fill_pair(&p);
    check_error("sum of a", fabs(sum_of(p.a, VALUES) - 24.0955085651511), 1e-11);
    check_error("sum of b", fabs(sum_of(p.b, VALUES) - 620.049999123964), 1e-11);
    check_error("SSIM", fabs(ssim(p.b, p.a, SIDE, SIDE) - 0.792672490189171), 2e-15);
    check(ssim(p.b0, p.a0, SIDE, SIDE) == ssim(p.b, p.a, SIDE, SIDE), "it clamps");
    check_error("symmetric", fabs(ssim(p.a, p.b, SIDE, SIDE) - ssim(p.b, p.a, SIDE, SIDE)), 1e-15);
    image_bytes_from_floats(a, p.a, VALUES);
    image_bytes_from_floats(b, p.b0, VALUES);
    for (int i = 0; i < VALUES; i++) sums[0] += a[i], sums[1] += b[i];
    check(sums[0] == 1569852 && sums[1] == 1645763, "sums of the bytes");
    check_error("mse", fabs(mse_bytes(a, b, VALUES) - 302.767008463542), 1e-12);
    check_error("PSNR", fabs(psnr_bytes(a, b, VALUES) - 23.3197181111928), 1e-13);
    test_end_case();
}

static double ssim_plainly(const double* a, const double* b, int H, int W) { // every window whole, no shortcut
    double taps[SSIM_TAPS], total = 0;
    ssim_window(taps);
    for (int i = 0; i < H * W * 3; i++) {
        double m[5] = {0, 0, 0, 0, 0}; // a, b, aa, bb, ab
        for (int dy = -5; dy <= 5; dy++) {
            for (int dx = -5; dx <= 5; dx++) {
                int y = ssim_mirror(i / 3 / W + dy, H), x = ssim_mirror(i / 3 % W + dx, W), k = (y * W + x) * 3 + i % 3;
                double w = taps[dy + 5] * taps[dx + 5];
                m[0] += w * a[k], m[1] += w * b[k];
                m[2] += w * a[k] * a[k], m[3] += w * b[k] * b[k], m[4] += w * a[k] * b[k];
            }
        }
        double aa = fmax(m[2] - m[0] * m[0], 0), bb = fmax(m[3] - m[1] * m[1], 0), ab = m[4] - m[0] * m[1];
        double below = (m[0] * m[0] + m[1] * m[1] + 4e-4) * (aa + bb + 3.6e-3);
        total += (2 * m[0] * m[1] + 4e-4) * (2 * ab + 3.6e-3) / below;
    }
    return total / (H * W * 3);
}

static void ask_small(const char* what) {
    double x[5 * 9 * 3] = {0};
    (void)what;
    ssim(x, x, 5, 9);
}

static void test_ssim(void) {
    if (!test_case("SSIM: any size, any threads, as written down plainly; equal images are 1")) return;
    static const double window[6] = {0.26601172, 0.21300554, 0.10936069, 0.03600077, 0.00759876, 0.00102838};
    static const int sizes[5][2] = {{6, 6}, {7, 31}, {17, 6}, {33, 19}, {50, 40}};
    double taps[SSIM_TAPS];
    ssim_window(taps);
    for (int i = 0; i < 6; i++) check_error("window", fabs(taps[5 + i] - window[i]), 5.1e-9);
    for (int i = 0; i < 6; i++) check(taps[5 + i] == taps[5 - i], "symmetric");
    int usual = omp_get_max_threads();
    for (int i = 0; i < 5; i++) {
        int H = sizes[i][0], W = sizes[i][1], n = H * W * 3;
        double *a = random_buffer(n), *b = random_buffer(n), first = 0;
        for (int k = 0; k < n; k++) a[k] = clamp_one(0.4 * a[k]), b[k] = clamp_one(0.7 * a[k] + 0.2 * b[k]);
        for (int threads = 1; threads <= 3; threads++) {
            omp_set_num_threads(threads);
            double got = ssim(a, b, H, W);
            if (threads == 1) first = got;
            check(got == first, "the same bits from any number of threads");
        }
        check_error("plainly", fabs(first - ssim_plainly(a, b, H, W)), 1e-14);
        check_error("equal", fabs(ssim(a, a, H, W) - 1), 1e-15);
        free(a), free(b);
    }
    omp_set_num_threads(usual);
    check(temporary_run_child(ask_small, "") == 1, "5 x 9 pixels are refused");
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// LPIPS

// VGG16 and heads from hashes; element i of a tensor counts in the order of files.
static void fill_lpips(perceptual_t* p) {
    int conv = 0, head = 0;
    double* file = (double*)malloc(2 * params_longest(&p->params.table) * sizeof(double));
    double* memory = file + params_longest(&p->params.table);
    for (int i = 0; i < p->params.table.n; i++) {
        const param_t* t = &p->params.table.items[i];
        int lin = !strncmp(t->name, "lin", 3), bias = t->ndim == 1;
        uint32_t stream = (uint32_t)(lin ? 1240 + head++ : bias ? 1220 + conv++ : 1200 + conv);
        double bound = lin || bias ? 0.1 : sqrt(6.0 / (9 * t->shape[1]));
        for (size_t k = 0; k < t->count; k++) {
            double u = vector_u(stream, (uint32_t)k);
            file[k] = lin ? bound * u : bias ? 2 * bound * u - bound : (2 * u - 1) * bound;
        }
        params_from_file_order(memory, file, t);
        params_store(&p->params, t->offset, memory, t->stored);
    }
    check(conv == 13 && head == 5, "13 convolutions, 5 heads");
    free(file);
}

// Mean of a tap over its values.
static double tap_mean(const vgg_t* v, const vgg_acts_t* a, int slice) {
    size_t n = a->B * vgg_tap_positions(a, slice) * v->config.channels[slice];
    return sum_of(vgg_tap(v, a, slice), n) / (double)n;
}

static void test_lpips_vector(perceptual_t* p) {
    static const double layers[5] = {0.00421634285952, 0.00246841969928, 0.00130713238252, 0.000843681319225,
                                     0.00045977354989};
    static const double means[5] = {0.5297356964, 0.6564127959, 0.8854815699, 0.8488776191, 0.7782112755};
    static pair_t pair;
    lpips_t* m = &p->lpips;
    double total = 0;
    fill_pair(&pair);
    perceptual_distance(p, &total, pair.b, pair.a, 1, 0);
    check_error("LPIPS", fabs(total / 0.00929534981044 - 1), 1e-12);
    for (int l = 0; l < 5; l++) {
        double layer = 0;
        lpips_tap_forward(&layer, vgg_tap(&m->vgg, &m->xhat, l), vgg_tap(&m->vgg, &m->x, l),
                          params_at(&p->params, m->head[l]), 1, (int)vgg_tap_positions(&m->x, l),
                          m->config.channels[l], 0);
        check_error("layer", fabs(layer / layers[l] - 1), 1e-11);
        check_error("mean of a tap", fabs(tap_mean(&m->vgg, &m->x, l) - means[l]), 1e-10);
    }
}

static void test_lpips(void) {
    if (!test_case("LPIPS of VGG16 with weights from hashes: layers and taps")) return;
    static perceptual_t p;
    perceptual_open(&p, vgg16_config(), 1, SIDE, SIDE);
    memset(p.plan.memory, 0xFF, plan_bytes(&p.plan)); // NaN everywhere
    fill_lpips(&p);
    test_lpips_vector(&p);
    perceptual_close(&p);
    test_end_case();
}

// Batches of any size give the same; bytes are the colours they stand for. A narrow network, to be quick.
static void test_lpips_batches(void) {
    if (!test_case("LPIPS: batches, bytes, equal images")) return;
    static perceptual_t p;
    lpips_config_t narrow = {3, {2, 2, 3, 0, 0}, {4, 6, 8, 0, 0}};
    enum { N = 5, H = 11, W = 13, IMAGE = H * W * 3 };
    double *xhat = random_buffer(N * IMAGE), *x = random_buffer(N * IMAGE), whole[N], parts[N], colours[2 * N * IMAGE];
    uint8_t bytes[2 * N * IMAGE];
    perceptual_open(&p, narrow, N, H, W);
    params_init(&p.params, 7);
    memset(p.plan.memory, 0xFF, plan_bytes(&p.plan));
    perceptual_distance(&p, whole, xhat, x, N, 0);
    memset(p.plan.memory, 0xFF, plan_bytes(&p.plan));
    for (int at = 0; at < N; at += 2) {
        perceptual_distance(&p, parts + at, xhat + at * IMAGE, x + at * IMAGE, at + 2 < N ? 2 : N - at, 0);
    }
    check_error("two at a time", relative_error_double(parts, whole, N), 1e-14);
    image_bytes_from_floats(bytes, xhat, N * IMAGE);
    image_bytes_from_floats(bytes + N * IMAGE, x, N * IMAGE);
    for (int i = 0; i < 2 * N * IMAGE; i++) colours[i] = bytes[i] / 127.5 - 1;
    perceptual_distance(&p, whole, colours, colours + N * IMAGE, N, 0);
    perceptual_distance_bytes(&p, parts, bytes, bytes + N * IMAGE, N, 0);
    check_error("bytes", relative_error_double(parts, whole, N), 1e-13);
    perceptual_distance(&p, whole, x, x, N, 0);
    for (int i = 0; i < N; i++) check(whole[i] == 0, "equal images");
    perceptual_close(&p);
    free(xhat), free(x);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Photographs

static void check_photograph(const safetensors_t* f, const st_tensor_t* score, perceptual_t* p) {
    char name[80];
    double want[3], *a, *b, lpips;
    snprintf(name, sizeof name, "%s", score->name + strlen("score."));
    safetensors_read(score, want);
    const st_tensor_t* copy = fixture_find(f, "image.", name);
    *strchr(name, '.') = 0;
    const st_tensor_t* image = fixture_find(f, "image.", name);
    int H = (int)image->shape[0], W = (int)image->shape[1], n = H * W * 3;
    const uint8_t *original = (const uint8_t*)image->data, *changed = (const uint8_t*)copy->data;
    a = random_buffer(n), b = random_buffer(n);
    for (int i = 0; i < n; i++) a[i] = original[i] / 127.5 - 1, b[i] = changed[i] / 127.5 - 1;
    double psnr = psnr_bytes(original, changed, n);
    if (want[0] < 0) check(psnr == INFINITY, "equal images");
    else check_error("PSNR of scikit-image", fabs(psnr - want[0]), 1e-12);
    check_error("SSIM of torchmetrics", fabs(ssim(b, a, H, W) - want[1]), 1e-12);
    if (want[2] >= 0) {
        if (!p->batch) {
            perceptual_open(p, vgg16_config(), 1, H, W);
            fill_lpips(p);
        }
        perceptual_distance_bytes(p, &lpips, changed, original, 1, 0);
        check_error("LPIPS of lpips", fabs(lpips / want[2] - 1), 1e-11);
    }
    free(a), free(b);
}

static void test_photographs(void) {
    if (!test_case("photographs: scikit-image, torchmetrics and lpips")) return;
    static perceptual_t p;
    safetensors_t f;
    int pairs = 0;
    fixture_open(&f, "metrics");
    for (int i = 0; i < f.n; i++) {
        if (strncmp(f.tensors[i].name, "score.", 6)) continue;
        check_photograph(&f, &f.tensors[i], &p);
        pairs++;
    }
    check(pairs == 24, "24 pairs");
    if (p.batch) perceptual_close(&p);
    safetensors_close(&f);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// The sheet

enum { SHEET_H = 3, SHEET_W = 4, SHEET_BYTES = SHEET_H * SHEET_W * 3 };

// Image `index` is grey, and its reconstruction differs by as many levels as its score says.
static void offer_grey(eval_sheet_t* sheet, size_t index, double score) {
    uint8_t original[SHEET_BYTES], reconstruction[SHEET_BYTES];
    memset(original, (int)(index % 200), SHEET_BYTES);
    memset(reconstruction, (int)(index % 200) + (int)fmin(score, 20), SHEET_BYTES);
    eval_sheet_offer(sheet, index, score, original, reconstruction);
}

// Offers n images in an order and writes the picture to `name`.
static void draw_sheet(const char* name, const double* scores, int n, int columns, int higher, int stride) {
    char path[TEMPORARY_PATH], error[IMAGE_ERROR_SIZE];
    eval_sheet_t sheet;
    eval_sheet_open(&sheet, columns, SHEET_H, SHEET_W, higher);
    for (int i = 0; i < n; i++) offer_grey(&sheet, (size_t)i * stride % n, scores[(size_t)i * stride % n]);
    check(eval_sheet_write(&sheet, temporary_path(path, name), "score", scores, n, error), "written");
    eval_sheet_close(&sheet);
}

static const char* find_text(const char* bytes, size_t size, const char* key) { // of a PNG's tEXt chunk
    const char* at = (const char*)memmem(bytes, size, key, strlen(key) + 1);
    return at ? at + strlen(key) + 1 : "";
}

static void check_same_files(const char* one, const char* other) {
    size_t n = 0, m = 0;
    char *a = temporary_read(one, &n), *b = temporary_read(other, &m);
    check(a && b && n == m && !memcmp(a, b, n), "the order of the images does not show");
    free(a), free(b);
}

static void check_cells(const char* name) { // of columns: two worst, two middling, two best
    char path[TEMPORARY_PATH], error[IMAGE_ERROR_SIZE];
    image_t image;
    check(image_load(&image, temporary_path(path, name), error), "a PNG");
    check(image.height == 3 * (3 * SHEET_H + 2) + 2 && image.width == 6 * (3 * SHEET_W + 2) + 2, "its size");
    static const int index[2] = {700, 5}, change[2] = {1, 20}; // the worst; the best, whose change is clamped to 20
    for (int i = 0; i < 2; i++) {
        const uint8_t* cell = image.pixels + (2 * image.width + 2 + i * 5 * (3 * SHEET_W + 2)) * 3;
        int row = (3 * SHEET_H + 2) * image.width * 3;
        check(cell[0] == index[i] % 200 && cell[row] == index[i] % 200 + change[i], "original and reconstruction");
        check(cell[2 * row] == 128 + 4 * change[i], "difference, four times");
    }
    image_free(&image);
}

static void test_sheet(void) {
    if (!test_case("sheet of worst, middling and best images")) return;
    enum { N = 1001 };
    double scores[N];
    size_t size = 0, index;
    double score, quantile;
    for (int i = 0; i < N; i++) scores[i] = 10 + (i * 37 % N) * 1e-3; // all different
    scores[700] = 1, scores[701] = 2, scores[6] = 25, scores[5] = INFINITY;
    draw_sheet("one.png", scores, N, 2, 1, 1);
    draw_sheet("other.png", scores, N, 2, 1, 123);
    check_same_files("one.png", "other.png");
    check_cells("one.png");
    char* png = temporary_read("one.png", &size);
    const char* text = find_text(png, size, "Images");
    check(!strncmp(text, "700: 1 (0.0%), 701: 2 (0.1%), ", 30), "the worst");
    check(strstr(text, ", 6: 25 (99.9%), 5: inf (100.0%)") != NULL, "the best, equal to its original");
    for (int i = 0; i < 4; i++) {
        check(sscanf(text, "%zu: %lf (%lf", &index, &score, &quantile) == 3, "three numbers");
        if (i >= 2) check(fabs(quantile - 50) < 4 && fabs(score - scores[index]) < 1e-4, "near the median");
        text = strchr(text, ',') + 2;
    }
    text = find_text(png, size, "Columns");
    check(!strncmp(text, "2 worst, 2 near the median, 2 best of 1001 images", 49), "title");
    free(png);
    draw_sheet("low.png", scores, N, 1, 0, 1);
    png = temporary_read("low.png", &size);
    text = find_text(png, size, "Images");
    check(!strncmp(text, "5: inf (0.0%)", 13) && strstr(text, ", 700: 1 (100.0%)"), "where lower is better");
    free(png);
    for (int n = 1; n < 9; n++) { // few images: all of them are in the sample
        draw_sheet("few.png", scores, n, 4, 1, 1);
        png = temporary_read("few.png", &size);
        text = find_text(png, size, "Columns");
        check(atoi(text) == (n < 3 ? 1 : n / 3), "columns");
        free(png);
    }
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    test_adm();
    test_torchvision();
    test_psnr();
    test_colour_and_sharpness();
    test_bytes();
    test_pair();
    test_ssim();
    test_lpips();
    test_lpips_batches();
    test_photographs();
    test_sheet();
    temporary_end();
    return test_finish();
}
