// test_mmdit_gradient.c: a whole text-to-image transformer in double.
//
//   differences   every tensor of the table is moved along random directions, which tests the chain of all derivatives
//   golden        outputs, loss and gradients of the published model with given numbers, executed elsewhere in float64
//   padding       an image in a batch gives what it gives alone; what stands in padding does not matter
//   symmetry      text rows have no order; image rows have that of their positions
//
// The single operations have tests of their own. Look next at tests/test_mmdit.c.

// defines: bed_t, bed_config, bed_make, bed_randomise, bed_forward, bed_backward, bed_free
#include "tests/mmdit_bed.h"
// defines: check_gradient_h, check_model_accumulates, dot
#include "tests/gradient.h"

double objective(void* context) {
    bed_t* m = (bed_t*)context;
    bed_forward(m);
    return dot(m->net.v, m->dv, m->values);
}

void backward(void* context) { bed_backward((bed_t*)context); }

void test_chain(mmdit_config_t config, int L, int recompute) {
    bed_t m;
    bed_make(&m, config, 3, L, 1, recompute);
    bed_randomise(&m);
    params_t* p = &m.params;
    objective(&m);
    bed_backward(&m);
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        const double* grad = params_grad(p, t->offset);
        check(dot(grad, grad, t->stored) > 0, t->name);
        check_gradient_h(t->name, objective, &m, p->values + t->offset, grad, t->stored, 3e-4, 1e-6);
    }
    check_model_accumulates(objective, backward, &m, p->grads, params_trained(p));
    bed_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// The published model

// Its 48 tensors in the order in which they were numbered; "*" stands for weight and bias.
static const char* const golden_names[] = {
    "txt_in.*", "img_in.*", "vector_in.in_layer.*", "vector_in.out_layer.*", "time_in.in_layer.*",
    "time_in.out_layer.*", "double_blocks.0.txt_mod.lin.*", "double_blocks.0.txt_attn.qkv.*",
    "double_blocks.0.txt_attn.norm.query_norm.scale", "double_blocks.0.txt_attn.norm.key_norm.scale",
    "double_blocks.0.txt_attn.proj.*", "double_blocks.0.txt_mlp.0.*", "double_blocks.0.txt_mlp.2.*",
    "double_blocks.0.img_mod.lin.*", "double_blocks.0.img_attn.qkv.*",
    "double_blocks.0.img_attn.norm.query_norm.scale", "double_blocks.0.img_attn.norm.key_norm.scale",
    "double_blocks.0.img_attn.proj.*", "double_blocks.0.img_mlp.0.*", "double_blocks.0.img_mlp.2.*",
    "single_blocks.0.modulation.lin.*", "single_blocks.0.linear1.*", "single_blocks.0.linear2.*",
    "single_blocks.0.norm.query_norm.scale", "single_blocks.0.norm.key_norm.scale", "final_layer.linear.*",
    "final_layer.adaLN_modulation.1.*",
};

// Value i of tensor k, in the file's order, is 0.2 sin(1.7 k + 0.61 i); a norm's scale is 1 more.
static void golden_fill(bed_t* m, const char* name, int k) {
    params_t* p = &m->params;
    const param_t* t = param_find(&p->table, name);
    check(t != NULL, name);
    if (!t) return;
    double* file = (double*)malloc_check(2 * t->stored * sizeof(double), name);
    int scale = strstr(name, "_norm.scale") != NULL;
    for (size_t i = 0; i < t->count; i++) file[i] = 0.2 * sin(1.7 * k + 0.61 * (double)i) + scale;
    params_set(p, PARAM_VALUE, t, file, file + t->stored);
    free(file);
}

static void golden_weights(bed_t* m) {
    int k = 0;
    for (size_t n = 0; n < sizeof golden_names / sizeof golden_names[0]; n++) {
        const char* star = strchr(golden_names[n], '*');
        for (int part = 0; part < (star ? 2 : 1); part++) {
            char name[128];
            int length = star ? (int)(star - golden_names[n]) : (int)strlen(golden_names[n]);
            snprintf(name, sizeof name, "%.*s%s", length, golden_names[n], !star ? "" : part ? "bias" : "weight");
            golden_fill(m, name, ++k);
        }
    }
    check(k == 48 && m->params.table.n == 48, "48 tensors");
}

static const struct { const char* name; double norm; } golden_norms[] = {
    {"txt_in.weight", .087820579}, {"img_in.weight", .748408655}, {"vector_in.in_layer.weight", .109242367},
    {"time_in.in_layer.weight", 1.052080403}, {"double_blocks.0.txt_mod.lin.weight", .051591963},
    {"double_blocks.0.img_attn.qkv.weight", .508026125}, {"double_blocks.0.txt_attn.norm.key_norm.scale", .064460423},
    {"double_blocks.0.img_mlp.0.weight", .410436123}, {"single_blocks.0.linear1.weight", .707248256},
    {"single_blocks.0.linear2.weight", 2.152631805}, {"single_blocks.0.norm.query_norm.scale", .000447933},
    {"final_layer.adaLN_modulation.1.weight", 1.015160665}, {"final_layer.linear.bias", .971764334},
};

// Two images of 2 x 3 positions, captions of 3 and of 2 rows.
void test_golden(void) {
    mmdit_config_t config = {"golden", 16, 2, 1, 1, {2, 2, 4}, 6, 5, 0, 4, 2, 3};
    const double first_row[4] = {1.338409291, -1.154471544, 0.653682733, -0.624033795};
    const double last_row[4] = {1.440934735, -1.289082959, 0.805394448, -0.775956437};
    bed_t m;
    bed_make(&m, config, 2, 3, 1, 0);
    golden_weights(&m);
    double loss = 0, *target = (double*)malloc_check(m.values * sizeof(double), "the target");
    for (size_t i = 0; i < m.values; i++) m.xt[i] = sin(.7 * (double)i + .2), target[i] = sin(.4 * (double)i + .5);
    for (int i = 0; i < 18; i++) m.text[i] = sin(.3 * i + .1), m.text[18 + i] = i < 6 ? 7.5 : sin(.3 * (12 + i) + .1);
    for (int i = 0; i < 10; i++) m.pooled[i] = sin(.9 * i + .3);
    m.t[0] = .25, m.t[1] = .75, m.first[0] = 0, m.first[1] = 1;
    bed_forward(&m);
    for (int c = 0; c < 4; c++) {
        check_error("v, first row", fabs(m.net.v[c] - first_row[c]), 1e-9);
        check_error("v, last row", fabs(m.net.v[11 * 4 + c] - last_row[c]), 1e-9);
    }
    for (size_t i = 0; i < m.values; i++) {
        double d = m.net.v[i] - target[i];
        loss += d * d / (double)m.values;
        m.dv[i] = 2 * d / (double)m.values;
    }
    check_error("loss", fabs(loss - 1.456594844), 1e-9);
    bed_backward(&m);
    for (size_t i = 0; i < sizeof golden_norms / sizeof golden_norms[0]; i++) {
        const param_t* t = param_find(&m.params.table, golden_norms[i].name);
        const double* grad = params_grad(&m.params, t->offset);
        check_error(t->name, fabs(sqrt(dot(grad, grad, t->count)) - golden_norms[i].norm), 1e-9);
    }
    free(target);
    bed_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// Padding and order

// Each image of `all` alone, without padding: its velocity, and the sum of all gradients.
static void check_alone(const bed_t* all) {
    const mmdit_config_t* c = &all->net.config;
    size_t trained = params_trained(&all->params), image = all->values / all->in.B;
    double* sum = (double*)calloc_check(trained, sizeof(double), "gradients");
    for (int b = 0; b < all->in.B; b++) {
        int rows = all->in.L - all->first[b], text = c->text;
        bed_t one;
        bed_make(&one, *c, 1, rows, 1, 0);
        memcpy(one.params.values, all->params.values, all->params.table.total * sizeof(double));
        memcpy(one.xt, all->xt + b * image, image * sizeof(double));
        memcpy(one.dv, all->dv + b * image, image * sizeof(double));
        memcpy(one.text, all->text + (b * all->in.L + all->first[b]) * text, rows * text * sizeof(double));
        memcpy(one.pooled, all->pooled + b * c->vector, c->vector * sizeof(double));
        one.t[0] = all->t[b], one.guidance[0] = all->guidance[b];
        one.in.first = NULL;
        bed_forward(&one);
        bed_backward(&one);
        check_error("velocity", relative_error_double(one.net.v, all->net.v + b * image, image), 1e-12);
        for (size_t i = 0; i < trained; i++) sum[i] += one.params.grads[i];
        bed_free(&one);
    }
    check_error("gradients", relative_error_double(all->params.grads, sum, trained), 1e-12);
    free(sum);
}

void test_padding(void) {
    bed_t m;
    bed_make(&m, bed_config(2, 2, 6, 1), 3, 4, 1, 0);
    bed_randomise(&m);
    bed_forward(&m);
    bed_backward(&m);
    check_alone(&m);
    int D = m.net.config.dim, L = m.in.L, text = m.net.config.text, padding = 0;
    for (int b = 0; b < m.in.B; b++) for (int t = 0; t < m.first[b]; t++, padding++) {
        for (int i = 0; i < D; i++) check(m.net.streams[(b * L + t) * D + i] == 0, "padding has no gradient");
        for (int i = 0; i < text; i++) m.text[(b * L + t) * text + i] = 100 * test_normal();
    }
    check(padding == 3, "padding in two images");
    size_t trained = params_trained(&m.params);
    double* v = (double*)malloc_check((m.values + trained) * sizeof(double), "the velocity");
    memcpy(v, m.net.v, m.values * sizeof(double));
    memcpy(v + m.values, m.params.grads, trained * sizeof(double));
    params_zero_grads(&m.params, 0);
    bed_forward(&m);
    bed_backward(&m);
    check(!memcmp(v, m.net.v, m.values * sizeof(double)), "what stands in padding changes no velocity");
    check_error("nor a gradient", relative_error_double(m.params.grads, v + m.values, trained), 1e-15);
    free(v);
    bed_free(&m);
}

static void swap_rows(double* a, double* b, int n) {
    for (int i = 0; i < n; i++) { double x = a[i]; a[i] = b[i], b[i] = x; }
}

void test_order(void) {
    bed_t m;
    bed_make(&m, bed_config(1, 2, 6, 0), 1, 4, 1, 0);
    bed_randomise(&m);
    bed_forward(&m);
    int text = m.net.config.text, C = m.net.config.C, HS = m.net.config.dim / m.net.config.heads;
    double* v = (double*)malloc_check(m.values * sizeof(double), "the velocity");
    memcpy(v, m.net.v, m.values * sizeof(double));
    swap_rows(m.text, m.text + 2 * text, text);
    bed_forward(&m);
    check_error("another order of text rows", relative_error_double(m.net.v, v, m.values), 1e-12);
    swap_rows(m.xt, m.xt + 4 * C, C);
    swap_rows(v, v + 4 * C, C);
    bed_forward(&m);
    check(relative_error_double(m.net.v, v, m.values) > 1e-4, "image rows have places");
    swap_rows(m.net.rope + 4 * HS, m.net.rope + 8 * HS, HS); // behind 4 text rows
    bed_forward(&m);
    check_error("another order of image rows and their places", relative_error_double(m.net.v, v, m.values), 1e-12);
    free(v);
    bed_free(&m);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    if (test_case("golden numbers")) { test_golden(); test_end_case(); }
    if (test_case("differences")) { test_chain(bed_config(1, 1, 6, 0), 3, 0); test_end_case(); }
    if (test_case("differences, guidance, more blocks, recompute")) {
        test_chain(bed_config(2, 2, 6, 1), 4, 1);
        test_end_case();
    }
    if (test_case("differences, no pooled vector, one text row")) {
        test_chain(bed_config(2, 1, 0, 0), 1, 0);
        test_end_case();
    }
    if (test_case("a batch with padding equals its images alone")) { test_padding(); test_end_case(); }
    if (test_case("order of text rows and image rows")) { test_order(); test_end_case(); }
    return test_finish();
}
