// test_inception.c: the FID Inception network (common/models/inception.h) and its own operations (dev/cpu/pool.h).
//
// The operations against their definitions, cell by cell. The network against numbers that were computed from
// integer-made weights in double (evaluation vectors V2), for both ways of its input, and against pytorch-fid's own
// module on photographs (tests/fixtures/inception.safetensors, from dev/reference/make_inception_fixture.py). That
// script also writes the module's weights to a folder; INCEPTION_WEIGHTS=<file> build/cpu/test_inception loads them.
#include <omp.h>

// defines: inception_*, INCEPTION_PT, INCEPTION_TF
#include "common/models/inception.h"
// defines: fixture_open, fixture_tensor, safetensors_find
#include "tests/fixture.h"
// defines: temporary_begin, temporary_path, temporary_end
#include "tests/temporary.h"
// defines: random_buffer, poisoned_buffer (tests/gradient.h makes floatX double)
#include "tests/gradient.h"
// defines: copy_of
#include "tests/operation.h"
// defines: vector_u
#include "tests/vectors.h"

// ---------------------------------------------------------------------------------------------------------------------
// Operations

// The maximum, or the mean, of the cells of a window that exist.
static double window_at(const floatX* x, int H, int W, int C, int top, int left, int c, int maximum) {
    double best = -INFINITY, sum = 0;
    int cells = 0;
    for (int h = top; h < top + 3; h++) {
        for (int w = left; w < left + 3; w++) {
            if (h < 0 || h >= H || w < 0 || w >= W) continue;
            double value = x[((size_t)h * W + w) * C + c];
            best = value > best ? value : best;
            sum += value;
            cells++;
        }
    }
    return maximum ? best : sum / cells;
}

static void check_pools(int B, int H, int W, int C) {
    floatX* x = random_buffer((size_t)B * H * W * C);
    for (int kind = 0; kind < 3; kind++) { // the mean; maxima at stride 1, with a border, and 2, without
        int stride = kind == 2 ? 2 : 1, pad = kind == 2 ? 0 : 1, row = kind ? C + 5 : C, first = kind ? 2 : 0;
        int OH = (H + 2 * pad - 3) / stride + 1, OW = (W + 2 * pad - 3) / stride + 1;
        if (H + 2 * pad < 3 || W + 2 * pad < 3) continue;
        size_t n = (size_t)B * OH * OW * row;
        floatX *out = poisoned_buffer(n), *want = poisoned_buffer(n);
        if (kind == 0) avgpool3_forward(out, x, B, H, W, C, 0);
        else maxpool3_forward(out + first, x, B, H, W, C, stride, pad, row, 0);
        double worst = 0;
        for (size_t k = 0; k < (size_t)B * OH * OW * C; k++) {
            int c = (int)(k % C), j = (int)(k / C % OW), i = (int)(k / C / OW % OH), b = (int)(k / C / OW / OH);
            const floatX* image = x + (size_t)b * H * W * C;
            double value = window_at(image, H, W, C, i * stride - pad, j * stride - pad, c, kind > 0);
            size_t at = k / C * row + first + c;
            worst = fmax(worst, isnan(out[at]) ? INFINITY : fabs(out[at] - value));
            want[at] = out[at];
        }
        check_error("a pool", worst, kind ? 0 : 1e-14);
        check(!memcmp(out, want, n * sizeof(floatX)), "other channels of the row are left alone");
        free(out), free(want);
    }
    free(x);
}

static void test_pools(void) {
    if (test_case("3x3 maxima and means")) {
        check_pools(2, 7, 9, 5);
        check_pools(1, 8, 6, 70);
        check_pools(3, 1, 1, 2);
        check_pools(1, 2, 5, 1);
        check_pools(2, 3, 3, 8);
        test_end_case();
    }
    if (test_case("a NaN is the maximum of every window that it lies in")) {
        floatX* x = random_buffer(5 * 5 * 2);
        floatX* out = poisoned_buffer(5 * 5 * 2);
        x[(2 * 5 + 3) * 2 + 1] = NAN;
        maxpool3_forward(out, x, 1, 5, 5, 2, 1, 1, 2, 0);
        for (int k = 0; k < 50; k++) {
            int near = abs(k / 2 / 5 - 2) <= 1 && abs(k / 2 % 5 - 3) <= 1 && k % 2 == 1;
            check(isnan(out[k]) == near, "NaN where one went in, and only there");
        }
        free(x), free(out);
        test_end_case();
    }
    if (test_case("means over positions, first channels, the product of features")) {
        enum { B = 3, HW = 11, C = 131, OC = 7 };
        floatX *x = random_buffer(B * HW * C), *weight = random_buffer(OC * C);
        floatS *mean = poisoned_buffer(B * C), *first = poisoned_buffer(B * HW * 5), *out = poisoned_buffer(B * OC);
        mean_positions_forward(mean, x, B, HW, C, 0);
        first_channels_forward(first, x, B * HW, C, 5, 0);
        features_matmul_forward(out, mean, weight, B, C, OC, 0);
        for (int k = 0; k < B * C; k++) {
            double sum = 0;
            for (int p = 0; p < HW; p++) sum += x[(k / C * HW + p) * C + k % C];
            check_error("a mean", fabs(mean[k] - sum / HW), 1e-14);
        }
        for (int k = 0; k < B * HW * 5; k++) check(first[k] == x[k / 5 * C + k % 5], "the same value");
        for (int k = 0; k < B * OC; k++) {
            double sum = 0;
            for (int c = 0; c < C; c++) sum += mean[k / OC * C + c] * weight[k % OC * C + c];
            check_error("a product", fabs(out[k] - sum), 1e-13);
        }
        free(x), free(weight), free(mean), free(first), free(out);
        test_end_case();
    }
}

// The resize by its definition.
static double resized_at(const uint8_t* image, int H, int W, double i, double j, int c) {
    int top = (int)i, left = (int)j, low = top + 1 < H ? top + 1 : H - 1, right = left + 1 < W ? left + 1 : W - 1;
    double fy = i - top, fx = j - left;
    double above = (1 - fx) * image[(top * W + left) * 3 + c] + fx * image[(top * W + right) * 3 + c];
    double below = (1 - fx) * image[(low * W + left) * 3 + c] + fx * image[(low * W + right) * 3 + c];
    return (1 - fy) * above + fy * below;
}

static void check_resize(int H, int W, int OH, int OW) {
    enum { B = 2 };
    size_t n = (size_t)B * H * W * 3, n_out = (size_t)B * OH * OW * 3;
    uint8_t* bytes = (uint8_t*)malloc_check(n, "images");
    floatX* out = poisoned_buffer(n_out);
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)((test_uniform() + 1) * 127.9);
    for (int tf = 0; tf < 2; tf++) {
        bytes_resize_forward(out, bytes, tf ? INCEPTION_TF : INCEPTION_PT, B, H, W, OH, OW, 0);
        for (size_t k = 0; k < n_out; k++) {
            int c = (int)(k % 3), j = (int)(k / 3 % OW), i = (int)(k / 3 / OW % OH);
            double ry = tf ? (float)H / (float)OH : (double)H / OH, rx = tf ? (float)W / (float)OW : (double)W / OW;
            double half = tf ? 0 : 0.5, y = (i + half) * ry - half, x = (j + half) * rx - half;
            y = y < 0 ? 0 : y > H - 1 ? H - 1 : y, x = x < 0 ? 0 : x > W - 1 ? W - 1 : x;
            double v = resized_at(bytes + k / 3 / OW / OH * H * W * 3, H, W, y, x, c);
            double want = tf ? (v - 128) / 128 : 2 * v / 255 - 1;
            check_error("the resize", fabs(out[k] - want), 1e-12);
        }
        for (size_t k = 0; H == OH && W == OW && k < n_out; k++) {
            floatX want = tf ? (bytes[k] - (floatX)128) / 128 : 2 * (bytes[k] / (floatX)255) - 1;
            check_error("an image that has the size", fabs((double)(out[k] - want)), 1e-15);
        }
    }
    free(bytes), free(out);
}

static void test_resize(void) {
    if (!test_case("bytes to the network's input, both modes")) return;
    check_resize(256, 256, 299, 299);
    check_resize(32, 17, 29, 31);
    check_resize(1, 5, 4, 3);
    check_resize(37, 41, 37, 41);
    // of the row 0, 1, ..., 255 the value tells the place that it was read at
    uint8_t row[256 * 3];
    floatX pt[299 * 3], tf[299 * 3];
    for (int i = 0; i < 256 * 3; i++) row[i] = (uint8_t)(i / 3);
    bytes_resize_forward(pt, row, INCEPTION_PT, 1, 1, 256, 1, 299, 0);
    bytes_resize_forward(tf, row, INCEPTION_TF, 1, 1, 256, 1, 299, 0);
    static const int at[4] = {1, 2, 149, 298};
    static const double want[4][2] = {{.784280936, .856187291}, {1.640468227, 1.712374582}, {127.5, 127.571906355}, {255, 255}};
    for (int k = 0; k < 4; k++) {
        check_error("a place", fabs((pt[at[k] * 3] + 1) / 2 * 255 - want[k][0]), 5e-10);
        check_error("a place", fabs(tf[at[k] * 3] * 128 + 128 - want[k][1]), 1e-5); // the ratio is a float
    }
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// The network with weights from integers

// The parameters of V2, in the file's order.
static void hash_weights(const inception_t* m, params_t* file) {
    inception_register_file(m, &file->table);
    params_allocate(file, file->table.total, 0, "the weights");
    for (int k = 0; k < file->table.n; k++) {
        const param_t* t = &file->table.items[k];
        uint32_t conv = (uint32_t)(k / 5);
        int fc = k >= 5 * INCEPTION_CONVS, kind = k % 5;
        floatS* host = (floatS*)malloc_check(2 * t->count * sizeof(floatS), "a tensor");
        double bound = sqrt(6.0 / ((double)t->count / t->shape[0]));
        uint32_t s = fc ? (kind == 0 ? 1100 : 1101) : (uint32_t)(kind == 0 ? 100 : 100 + 200 * kind) + conv;
        #pragma omp parallel for
        for (size_t i = 0; i < t->count; i++) {
            double u = vector_u(s, (uint32_t)i);
            if (kind == 0) host[i] = (floatS)((2 * u - 1) * bound);
            else if (fc || kind == 2 || kind == 3) host[i] = (floatS)(0.2 * u - 0.1);
            else host[i] = (floatS)(0.5 + u);
        }
        params_from_file_order(host + t->count, host, t);
        params_store(file, t->offset, host + t->count, t->count);
        free(host);
    }
}

typedef struct {
    params_t file; // the weights as a file has them
    inception_t net;
    plan_t plan;
    inception_features_t out;
} bed_t;

enum { BED_IMAGES = 3 };

static void bed_open(bed_t* b) {
    memset(b, 0, sizeof *b);
    inception_register(&b->net);
    hash_weights(&b->net, &b->file);
    inception_fold(&b->net, &b->file);
    inception_plan(&b->net, &b->plan, BED_IMAGES);
    plan_floatS(&b->plan, &b->out.pool, BED_IMAGES * INCEPTION_POOL, "pool");
    plan_floatS(&b->plan, &b->out.spatial, BED_IMAGES * INCEPTION_SPATIAL, "spatial");
    plan_floatS(&b->plan, &b->out.logits, BED_IMAGES * INCEPTION_CLASSES, "logits");
    plan_floatS(&b->plan, &b->out.early64, BED_IMAGES * 64, "64");
    plan_floatS(&b->plan, &b->out.early192, BED_IMAGES * 192, "192");
    plan_floatS(&b->plan, &b->out.early768, BED_IMAGES * 768, "768");
    plan_allocate(&b->plan, "the network");
}
static void bed_close(bed_t* b) {
    plan_free(&b->plan);
    params_free(&b->file);
    inception_free(&b->net);
}
static void bed_poison(bed_t* b) { memset(b->plan.memory, 0xff, plan_bytes(&b->plan)); }

// Mean and root mean square of n numbers, then single ones, against a row of V2: { mean, rms, x_0, x_1, x_2, x_(n-1) };
// NaN: not given.
static void check_row(const char* what, const floatS* x, size_t n, const double want[6], double bound) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += x[i], squares += (double)x[i] * x[i];
    double rms = sqrt(squares / (double)n), got[6] = {sum / (double)n, rms, x[0], x[1], x[2], x[n - 1]};
    for (int k = 0; k < 6; k++) {
        if (!isnan(want[k])) check_error(what, fabs(got[k] - want[k]) / (k < 2 ? fabs(want[k]) : rms), bound);
    }
}

static uint8_t* vector_image(void) {
    uint8_t* bytes = (uint8_t*)malloc_check(256 * 256 * 3, "an image");
    size_t sum = 0;
    for (int k = 0; k < 256 * 256 * 3; k++) {
        int c = k % 3, x = k / 3 % 256, y = k / 3 / 256;
        sum += bytes[k] = (uint8_t)(7 * x + 13 * y + 29 * c + x * y % 31);
    }
    check(sum == 25062610, "the image's sum");
    return bytes;
}

#define V2_BOUND 5e-9      // the table has nine digits, fewer behind zeros
#define FIXTURE_BOUND 1e-6 // the originals' input is a float map

static void test_vectors(bed_t* b) {
    uint8_t* image = vector_image();
    if (test_case("V2: every feature, weights from integers, PT input")) {
        static const double rows[6][6] = {
            {.718455026, NAN, .227102906, 1.11597378, 1.22274289, .863675024},
            {1.3676926, NAN, 2.96748771, 1.83475538, 0, .576132685},
            {4.64594603, NAN, .588191909, .734349839, 4.11263101, 2.07275616},
            {4.50645046, 9.6791363, 0, 2.63426514, .18503878, 7.84878223},
            {9.13141869, 15.5854957, 0, .879074189, 11.0451728, 0},
            {-1.59590563, 21.6708018, 21.3629772, -6.10402603, -15.3100129, 8.42720723}};
        bed_poison(b);
        inception_forward(&b->net, b->out, image, INCEPTION_PT, 1, 256, 256, 0);
        check_row("tap 64", b->out.early64, 64, rows[0], V2_BOUND);
        check_row("tap 192", b->out.early192, 192, rows[1], V2_BOUND);
        check_row("tap 768", b->out.early768, 768, rows[2], V2_BOUND);
        check_row("spatial", b->out.spatial, INCEPTION_SPATIAL, rows[3], V2_BOUND);
        check(b->out.spatial[7] == 0, "entry 7 of the spatial features is 0");
        check_row("pool", b->out.pool, INCEPTION_POOL, rows[4], V2_BOUND);
        check_row("logits", b->out.logits, INCEPTION_CLASSES, rows[5], V2_BOUND);
        test_end_case();
    }
    if (test_case("V2: TF input")) {
        static const double rows[5][6] = {{.715505751, NAN, NAN, NAN, NAN, NAN},
                                          {4.62233005, NAN, NAN, NAN, NAN, NAN},
                                          {NAN, NAN, NAN, 2.78077854, .0669418391, 8.05326273},
                                          {9.07978207, 15.497353, 0, .832649758, 10.9005534, NAN},
                                          {NAN, NAN, 21.220456, -5.9715336, -15.2959148, NAN}};
        bed_poison(b);
        inception_forward(&b->net, b->out, image, INCEPTION_TF, 1, 256, 256, 0);
        check_row("tap 64", b->out.early64, 64, rows[0], V2_BOUND);
        check_row("tap 768", b->out.early768, 768, rows[1], V2_BOUND);
        check_row("spatial", b->out.spatial, INCEPTION_SPATIAL, rows[2], V2_BOUND);
        check_row("pool", b->out.pool, INCEPTION_POOL, rows[3], V2_BOUND);
        check_row("logits", b->out.logits, INCEPTION_CLASSES, rows[4], V2_BOUND);
        test_end_case();
    }
    free(image);
}

// ---------------------------------------------------------------------------------------------------------------------
// Photographs

static uint8_t* fixture_pictures(const safetensors_t* f, int* B, int* size) {
    const st_tensor_t* t = safetensors_find(f, "bytes"); // (B, size, size, 3)
    if (!t || t->ndim != 4 || t->dtype != ST_U8) fatal("%s holds no pictures; make the fixture again", f->path);
    *B = (int)t->shape[0], *size = (int)t->shape[1];
    uint8_t* bytes = (uint8_t*)malloc_check(t->numel, "pictures");
    memcpy(bytes, t->data, t->numel);
    return bytes;
}

// Rows of `got` against the first values of each row that the file has.
static void check_features(const safetensors_t* f, const char* name, const floatS* got, int B, int n) {
    const st_tensor_t* t = safetensors_find(f, name);
    floatS* want = fixture_tensor(f, name);
    size_t shown = t->numel / t->shape[0];
    for (int b = 0; b < B; b++) {
        check_error(name, relative_error_double(got + (size_t)b * n, want + b * shown, shown), FIXTURE_BOUND);
    }
    free(want);
}

// Both pictures, and the first in the other mode; then the second alone, with one thread: the same bits.
static void check_pictures(bed_t* b) {
    safetensors_t f;
    int B, size;
    fixture_open(&f, "inception");
    uint8_t* pictures = fixture_pictures(&f, &B, &size);
    check(B <= BED_IMAGES, "room for the pictures");
    bed_poison(b);
    inception_forward(&b->net, b->out, pictures, INCEPTION_TF, 1, size, size, 0);
    check_features(&f, "tf.pool", b->out.pool, 1, INCEPTION_POOL);
    check_features(&f, "tf.spatial", b->out.spatial, 1, INCEPTION_SPATIAL);
    check_features(&f, "tf.logits", b->out.logits, 1, INCEPTION_CLASSES);
    bed_poison(b);
    inception_forward(&b->net, b->out, pictures, INCEPTION_PT, B, size, size, 0);
    check_features(&f, "pt.pool", b->out.pool, B, INCEPTION_POOL);
    check_features(&f, "pt.spatial", b->out.spatial, B, INCEPTION_SPATIAL);
    check_features(&f, "pt.logits", b->out.logits, B, INCEPTION_CLASSES);
    double* pool = copy_of(b->out.pool + INCEPTION_POOL, INCEPTION_POOL);
    double* logits = copy_of(b->out.logits + INCEPTION_CLASSES, INCEPTION_CLASSES);
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    bed_poison(b);
    inception_forward(&b->net, b->out, pictures + (size_t)size * size * 3, INCEPTION_PT, 1, size, size, 0);
    omp_set_num_threads(threads);
    check(!memcmp(pool, b->out.pool, INCEPTION_POOL * sizeof(floatS)), "the same features alone");
    check(!memcmp(logits, b->out.logits, INCEPTION_CLASSES * sizeof(floatS)), "the same logits alone");
    free(pool), free(logits), free(pictures);
    safetensors_close(&f);
}

// Weights from a file give those that were folded from memory, up to the file's float32; the file may hold
// num_batches_tracked or not.
static void check_file(const inception_t* net, const char* path) {
    inception_t loaded;
    inception_register(&loaded);
    inception_load(&loaded, path);
    check_error("weights", relative_error_double(loaded.params.values, net->params.values, net->params.table.total),
                1e-7);
    inception_free(&loaded);
}

static void test_file(const bed_t* b) {
    const char* given = getenv("INCEPTION_WEIGHTS");
    char path[TEMPORARY_PATH];
    if (given && test_case("the file of INCEPTION_WEIGHTS")) {
        check_file(&b->net, given);
        test_end_case();
    }
    if (!test_case("weights go to a file and come back")) return;
    temporary_begin();
    temporary_path(path, "inception.safetensors");
    weights_save(&b->file, "", path, "");
    check_file(&b->net, path);
    temporary_end();
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// The table

static void check_tensor_of(const param_table_t* table, const char* name, int d0, int d1, int d2, int d3) {
    const param_t* t = param_find(table, name);
    int shape[4] = {d0, d1, d2, d3};
    check(t != NULL, name);
    for (int i = 0; t && i < 4; i++) check((i < t->ndim ? t->shape[i] : 0) == shape[i], name);
}

static void test_table(void) {
    if (!test_case("names, shapes, and the count of numbers and multiplications")) return;
    inception_t net;
    params_t file;
    memset(&file, 0, sizeof file);
    inception_register(&net);
    inception_register_file(&net, &file.table);
    const param_table_t* t = &file.table;
    check(t->n == 472, "472 tensors");
    check(param_count(t, 0, t->total) == 23885392, "23,885,392 numbers");
    check(inception_macs(&net) == 5711168096u + 2064384u, "5.713 G multiply-accumulates");
    check_tensor_of(t, "Conv2d_1a_3x3.conv.weight", 32, 3, 3, 3);
    check_tensor_of(t, "Conv2d_4a_3x3.bn.running_var", 192, 0, 0, 0);
    check_tensor_of(t, "Mixed_5b.branch5x5_2.conv.weight", 64, 48, 5, 5);
    check_tensor_of(t, "Mixed_5c.branch_pool.conv.weight", 64, 256, 1, 1);
    check_tensor_of(t, "Mixed_6a.branch3x3dbl_3.bn.bias", 96, 0, 0, 0);
    check_tensor_of(t, "Mixed_6b.branch7x7_2.conv.weight", 128, 128, 1, 7);
    check_tensor_of(t, "Mixed_6d.branch7x7dbl_4.conv.weight", 160, 160, 7, 1);
    check_tensor_of(t, "Mixed_6e.branch7x7dbl_5.conv.weight", 192, 192, 1, 7);
    check_tensor_of(t, "Mixed_7a.branch7x7x3_4.bn.running_mean", 192, 0, 0, 0);
    check_tensor_of(t, "Mixed_7b.branch3x3_2b.conv.weight", 384, 384, 3, 1);
    check_tensor_of(t, "Mixed_7c.branch3x3dbl_1.conv.weight", 448, 2048, 1, 1);
    check_tensor_of(t, "Mixed_7c.branch_pool.bn.weight", 192, 0, 0, 0);
    check_tensor_of(t, "fc.weight", 1008, 2048, 0, 0);
    check_tensor_of(t, "fc.bias", 1008, 0, 0, 0);
    params_free(&file);
    inception_free(&net);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_pools();
    test_resize();
    test_table();
    bed_t bed;
    bed_open(&bed);
    test_vectors(&bed);
    if (test_case("photographs, as pytorch-fid sees them; alone the same bits")) {
        check_pictures(&bed);
        test_end_case();
    }
    test_file(&bed);
    bed_close(&bed);
    return test_finish();
}
