// test_lightningdit.c: the diffusion transformer against numbers from elsewhere, and against itself.
//
//   fixtures    tests/fixtures/dit_*.safetensors: PyTorch's velocities and gradients of every trained parameter
//   sizes       parameters and multiply-accumulates of every published size; initial values; the padding of SwiGLU
//   support     which gradients are zero in the first, second and third step from the initial weights
//   itself      inference, recomputation, accumulation and a smaller batch give what they must
//
// Look next at tests/test_lightningdit_gradient.c, the finite differences.

// defines: bed_t, bed_config, bed_make, bed_randomise, bed_copy, bed_forward, bed_backward, bed_padding_is_zero, ...
#include "tests/lightningdit_bed.h"
// defines: fixture_open, fixture_tensor, fixture_parameters, fixture_check_gradients
#include "tests/fixture.h"
// defines: temporary_begin, check_message, temporary_end
#include "tests/temporary.h"

// ---------------------------------------------------------------------------------------------------------------------
// Fixtures

// Value of "key" in the flat JSON object that is a fixture's config; true is 1. -1 where it is missing.
int fixture_field(const safetensors_t* f, const char* key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char* text = safetensors_metadata(f, "config");
    const char* at = text ? strstr(text, quoted) : NULL;
    if (!at) return -1;
    at += strlen(quoted);
    return !strncmp(at, "true", 4) ? 1 : !strncmp(at, "false", 5) ? 0 : atoi(at);
}
int fixture_integer(const safetensors_t* f, const char* key) {
    int value = fixture_field(f, key);
    if (value < 0) fatal("%s: no field %s in its config; make the fixtures again", f->path, key);
    return value;
}

lightningdit_config_t fixture_config(const safetensors_t* f) {
    lightningdit_config_t c;
    memset(&c, 0, sizeof c);
    c.id = "fixture";
    c.depth = fixture_integer(f, "depth");
    c.dim = fixture_integer(f, "dim");
    c.heads = fixture_integer(f, "heads");
    c.patch = fixture_integer(f, "patch");
    c.mlp_gelu = !fixture_integer(f, "swiglu");
    c.no_shift = !fixture_integer(f, "shift");
    c.qk_norm = fixture_integer(f, "qk_norm");
    c.classic = fixture_field(f, "classic") == 1;
    c.sigma = fixture_field(f, "sigma") == 1;
    c.C = fixture_integer(f, "channels");
    c.side = fixture_integer(f, "side");
    c.classes = fixture_integer(f, "classes");
    check(lightningdit_hidden(&c) == fixture_integer(f, "hidden"), "width of the MLP");
    return c;
}

// A tensor (B, C, S, S) of the file as (B, S, S, C).
floatS* fixture_latent(const safetensors_t* f, const char* name, const bed_t* m, int C) {
    int HW = m->dit.config.side * m->dit.config.side;
    size_t values = (size_t)m->B * HW * C;
    floatS* file = fixture_tensor(f, name);
    floatS* out = (floatS*)malloc_check(values * sizeof(floatS), name);
    check(safetensors_find(f, name)->numel == values, name);
    for (int b = 0; b < m->B; b++) {
        for (int i = 0; i < HW; i++) {
            for (int c = 0; c < C; c++) {
                out[((size_t)b * HW + i) * C + c] = file[((size_t)b * C + c) * HW + i];
            }
        }
    }
    free(file);
    return out;
}

void fixture_inputs(bed_t* m, const safetensors_t* f) {
    floatS* xt = fixture_latent(f, "input.x", m, m->dit.config.C);
    floatS* dv = fixture_latent(f, "dout.v", m, lightningdit_out_channels(&m->dit.config));
    floatS* t = fixture_tensor(f, "input.t");
    floatS* labels = fixture_tensor(f, "input.labels");
    for (size_t i = 0; i < m->values; i++) m->xt[i] = (floatX)xt[i];
    for (size_t i = 0; i < m->outputs; i++) m->dv[i] = (floatX)dv[i];
    for (int b = 0; b < m->B; b++) m->t[b] = t[b];
    for (int b = 0; b < m->B; b++) m->labels[b] = (int)labels[b];
    free(xt);
    free(dv);
    free(t);
    free(labels);
}

void test_fixture(const char* name) {
    const double bound = 1e-4;
    safetensors_t f;
    bed_t m;
    fixture_open(&f, name);
    bed_make(&m, fixture_config(&f), fixture_integer(&f, "batch"), 1, 0);
    fixture_check(&f, "param.pos_embed", params_at(&m.params, m.dit.pos_embed),
                  (size_t)m.dit.T * m.dit.config.dim, 1e-7); // what lightningdit_init wrote
    fixture_parameters(&f, &m.params);
    lightningdit_set_tables(&m.dit, &m.params);
    fixture_inputs(&m, &f);
    bed_forward(&m);
    bed_backward(&m);
    floatS* want = fixture_latent(&f, "output.v", &m, lightningdit_out_channels(&m.dit.config));
    check_error("velocity", relative_error_float(m.dit.v, want, m.outputs), bound);
    fixture_check_gradients(&f, &m.params, bound);
    free(want);
    bed_free(&m);
    safetensors_close(&f);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sizes

typedef struct {
    const char* id;
    double all, trained, giga; // million parameters, million trained, 10^9 multiply-accumulates: C = 32, S = 16
} size_row_t;

static const size_row_t size_rows[] = {
    {"B/1", 130.556, 130.360, 23.01},       {"B/2", 130.556, 130.507, 5.57},
    {"L/2", 458.153, 458.088, 19.70},       {"XL/1", 675.257, 674.962, 118.63},
    {"XL/2", 675.257, 675.183, 29.05},      {"1p0B/1", 1029.401, 1029.008, 179.15},
    {"1p0B/2", 1029.401, 1029.303, 44.16},  {"1p6B/1", 1631.767, 1631.308, 283.35},
    {"1p6B/2", 1631.767, 1631.653, 70.04},
};

// DiT-XL/2 and SiT-XL/2 for latents of 32 x 32 x 4: parameters and names as the original's
// (dev/reference/check_dit.py).
void test_dit_size(void) {
    lightningdit_t m;
    param_table_t table;
    memset(&m, 0, sizeof m);
    memset(&table, 0, sizeof table);
    m.config = *lightningdit_config_find("SiT-XL/2");
    m.config.C = 4, m.config.side = 32, m.config.classes = 1000;
    lightningdit_register(&m, &table, "");
    check(param_count(&table, 0, table.total) == 675129632, "parameters");
    check(!param_find(&table, "blocks.0.norm1.weight"), "norms have no weights");
    check(!param_find(&table, "final_layer.norm_final.weight"), "nor has the last");
    check(param_find(&table, "final_layer.linear.weight")->shape[0] == 32, "eight channels of 2 x 2 positions");
    free(table.items);
}

// Registers a model for the latents that the table is about; free(table->items).
void size_register(lightningdit_t* m, param_table_t* table, const char* id, int qk_norm) {
    memset(m, 0, sizeof *m);
    memset(table, 0, sizeof *table);
    m->config = *lightningdit_config_find(id);
    m->config.C = 32;
    m->config.side = 16;
    m->config.classes = 1000;
    m->config.qk_norm = qk_norm;
    lightningdit_register(m, table, "");
}

void test_sizes(void) {
    lightningdit_t m;
    param_table_t table;
    for (size_t i = 0; i < sizeof size_rows / sizeof size_rows[0]; i++) {
        const size_row_t* row = &size_rows[i];
        size_register(&m, &table, row->id, 0);
        size_t all = param_count(&table, 0, table.total);
        size_t trained = param_count(&table, lightningdit_first_trained(&m), table.total);
        check_error(row->id, fabs(all / 1e6 - row->all) / 0.00051, 1);
        check_error(row->id, fabs(trained / 1e6 - row->trained) / 0.00051, 1);
        check_error(row->id, fabs(lightningdit_macs(&m) / 1e9 - row->giga) / 0.0051, 1);
        if (!strcmp(row->id, "XL/1")) check(all == 675256736 && table.n == 13 + 28 * 12, "XL/1 to the last parameter");
        free(table.items);
        size_register(&m, &table, row->id, 1);
        size_t more = param_count(&table, 0, table.total) - all;
        check(more == 2 * (size_t)m.config.dim / m.config.heads * m.config.depth, "QK-norm's parameters");
        free(table.items);
    }
}

// All modulation weights are one matrix, all biases one vector, and the position table is in front of what is trained.
void test_order(void) {
    lightningdit_t m;
    param_table_t table;
    size_register(&m, &table, "XL/1", 0);
    size_t D = m.config.dim, M = lightningdit_modulations(&m.config), first = lightningdit_first_trained(&m);
    check(m.pos_embed == 0 && first == 256 * D, "the position table comes first");
    check(m.blocks[0].adaln_bias == m.blocks[0].adaln_weight + M * D, "biases follow the weights");
    check(param_find(&table, "x_embedder.proj.weight")->offset == m.blocks[0].adaln_bias + M, "the rest follows");
    const param_t* final = param_find(&table, "final_layer.adaLN_modulation.1.weight");
    check(final && final->offset == first + 28 * 6 * D * D, "the final layer's comes last");
    free(table.items);
}

// ---------------------------------------------------------------------------------------------------------------------
// Initial values

typedef struct {
    const char* name;
    double bound, std, constant; // a uniform's bound, or a normal's standard deviation, or neither
} initial_row_t;

// Values of a tensor in file order; free() them.
floatS* bed_values(const bed_t* m, const param_t* t) {
    floatS* values = (floatS*)malloc_check((t->count + t->stored) * sizeof(floatS), t->name);
    params_get(&m->params, params_state(&m->params, PARAM_VALUE), t, values, values + t->count);
    return values;
}

void check_initial(const bed_t* m, const initial_row_t* row) {
    const param_t* t = param_find(&m->params.table, row->name);
    check(t != NULL, row->name);
    if (!t) return;
    floatS* values = bed_values(m, t);
    double largest = 0, squares = 0;
    for (size_t i = 0; i < t->count; i++) {
        double value = values[i] - row->constant;
        largest = fmax(largest, fabs(value));
        squares += value * value;
    }
    double std = row->bound > 0 ? row->bound / sqrt(3) : row->std, n = (double)t->count;
    if (std > 0) check_error(row->name, fabs(sqrt(squares / n) / std - 1) * sqrt(n), 4); // in standard deviations
    else check(largest == 0, row->name);
    if (row->bound > 0) check(largest <= row->bound * (1 + 1e-6) && largest > row->bound * (1 - 20 / n), row->name);
    check(bed_padding_is_zero(t, m->params.values + t->offset), row->name);
    free(values);
}

// XL/1's own bounds, from the table of its sizes.
void test_bounds(void) {
    static const initial_row_t rows[] = {
        {"blocks.3.attn.qkv.weight", 0.036084, 0, 0}, {"blocks.27.attn.proj.weight", 0.051031, 0, 0},
        {"blocks.0.mlp.w12.weight", 0.028677, 0, 0},  {"blocks.9.mlp.w3.weight", 0.037689, 0, 0},
        {"x_embedder.proj.weight", 0.071187, 0, 0},
    };
    lightningdit_t m;
    param_table_t table;
    size_register(&m, &table, "XL/1", 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        init_t init = param_find(&table, rows[i].name)->init;
        check(init.kind == INIT_UNIFORM, rows[i].name);
        check_error(rows[i].name, fabs(init.value - rows[i].bound) / 5.1e-7, 1);
    }
    free(table.items);
}

void test_initial(void) {
    double D = 40, F = 106;
    const initial_row_t rows[] = {
        {"blocks.0.attn.qkv.weight", sqrt(6 / (4 * D)), 0, 0},     {"blocks.1.attn.qkv.bias", 0, 0, 0},
        {"blocks.0.attn.proj.weight", sqrt(6 / (2 * D)), 0, 0},    {"blocks.1.attn.proj.bias", 0, 0, 0},
        {"blocks.1.mlp.w12.weight", sqrt(6 / (D + 2 * F)), 0, 0},  {"blocks.1.mlp.w12.bias", 0, 0, 0},
        {"blocks.0.mlp.w3.weight", sqrt(6 / (F + D)), 0, 0},       {"blocks.1.mlp.w3.bias", 0, 0, 0},
        {"x_embedder.proj.weight", sqrt(6 / (4 * 5 + D)), 0, 0},   {"x_embedder.proj.bias", 0, 0, 0},
        {"t_embedder.mlp.0.weight", 0, 0.02, 0},                   {"t_embedder.mlp.0.bias", 0, 0, 0},
        {"t_embedder.mlp.2.weight", 0, 0.02, 0},                   {"t_embedder.mlp.2.bias", 0, 0, 0},
        {"y_embedder.embedding_table.weight", 0, 0.02, 0},         {"blocks.1.adaLN_modulation.1.weight", 0, 0, 0},
        {"blocks.0.adaLN_modulation.1.bias", 0, 0, 0},             {"final_layer.adaLN_modulation.1.weight", 0, 0, 0},
        {"final_layer.adaLN_modulation.1.bias", 0, 0, 0},          {"final_layer.linear.weight", 0, 0, 0},
        {"final_layer.linear.bias", 0, 0, 0},                      {"blocks.0.norm1.weight", 0, 0, 1},
        {"blocks.1.norm2.weight", 0, 0, 1},                        {"final_layer.norm_final.weight", 0, 0, 1},
        {"blocks.0.attn.q_norm.weight", 0, 0, 1},                  {"blocks.1.attn.k_norm.weight", 0, 0, 1},
    };
    bed_t m;
    bed_make(&m, bed_config("tiny/2", "Q"), 3, 1, 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) check_initial(&m, &rows[i]);
    bed_forward(&m);
    for (size_t i = 0; i < m.values; i++) check(m.dit.v[i] == 0, "the velocity is exactly 0");
    bed_free(&m);
}

// The tables at one token by hand: of 3 x 3, token 5 is row 1, column 2; width 40 has 10 frequencies an axis, a head of
// 20 has 5.
void test_tables(void) {
    bed_t m;
    bed_make(&m, bed_config("tiny/1", ""), 1, 1, 0);
    const floatS* row = m.dit.positions + 5 * 40;
    const floatS* turn = m.dit.rope + 5 * 20;
    for (int k = 0; k < 10; k++) {
        double w = pow(10000, -k / 10.0), want[4] = {sin(2 * w), cos(2 * w), sin(w), cos(w)};
        for (int part = 0; part < 4; part++) check_error("positions", fabs(row[part * 10 + k] - want[part]), 1e-7);
    }
    for (int k = 0; k < 5; k++) {
        double w = pow(10000, -k / 5.0), want[4] = {cos(w), sin(w), cos(2 * w), sin(2 * w)};
        for (int i = 0; i < 4; i++) check_error("rope", fabs(turn[(i / 2 * 5 + k) * 2 + i % 2] - want[i]), 1e-7);
    }
    floatS* stored = m.params.values + m.dit.pos_embed;
    for (int i = 0; i < 9 * 40; i++) stored[i] += (floatS)0.25;
    lightningdit_set_tables(&m.dit, &m.params);
    check(m.dit.positions[17] == stored[17], "what is stored is used, whatever it is");
    bed_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// Padding

// File -> memory -> file, for all tensors: 106 hidden values are 112 in memory.
void test_round_trip(const char* options) {
    bed_t m;
    bed_make(&m, bed_config("tiny/1", options), 1, 1, 0);
    params_t* p = &m.params;
    size_t longest = params_longest(&p->table), padding = 0;
    floatS* file = (floatS*)malloc_check(3 * longest * sizeof(floatS), "a tensor");
    floatS *back = file + longest, *memory = back + longest;
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        padding += t->stored - t->count;
        for (size_t k = 0; k < t->count; k++) file[k] = (floatS)test_normal();
        memset(p->values + t->offset, 0xFF, t->stored * sizeof(floatX));
        params_set(p, PARAM_VALUE, t, file, memory);
        memset(back, 0xFF, longest * sizeof(floatS));
        params_get(p, params_state(p, PARAM_VALUE), t, back, memory);
        check(!memcmp(file, back, t->count * sizeof(floatS)), t->name);
        check(bed_padding_is_zero(t, p->values + t->offset), t->name);
        check(t->count % 8 || t->stored % 8 == 0, "whole pieces of 16 bytes");
    }
    int gelu = m.dit.config.mlp_gelu; // whose 160 need no padding
    check(padding == (gelu ? 0 : 2 * (12 * 40 + 12 + 40 * 6)), "padding of both blocks");
    if (!gelu) { // the second half of w12 begins behind the padding of the first
        const param_t* t = param_find(&p->table, "blocks.1.mlp.w12.weight");
        params_get(p, params_state(p, PARAM_VALUE), t, file, memory);
        check(p->values[t->offset + 112 * 40 + 3] == file[106 * 40 + 3], "two halves");
    }
    free(file);
    bed_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// Gradient support

// One of Adam's steps on everything that is trained.
void bed_update(bed_t* m) {
    params_t* p = &m->params;
    adam_t adam = {0.01, 0.9, 0.95, 1e-8, 0.1, ++p->t, {0, 0}, 1};
    adam_update(p->values + p->first, p->master, p->m, p->v, NULL, NULL, p->grads, params_trained(p), adam, 0);
    params_zero_grads(p, 0);
}

// Is one of n values not zero?
int is_any(const floatS* values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (values[i] != 0) return 1;
    }
    return 0;
}

// In step 2, of a block's modulation the gates alone have a gradient: the third and the sixth piece, without shifts the
// second and the fourth.
void check_gates(const bed_t* m, const param_t* t) {
    int vectors = lightningdit_block_vectors(&m->dit.config), half = vectors / 2;
    size_t n = t->count / vectors;
    for (int k = 0; k < vectors; k++) {
        int gate = k % half == half - 1;
        check(is_any(params_grad(&m->params, t->offset) + k * n, n) == gate, t->name);
    }
}

// Everything starts as the identity, so the gradient reaches one layer of meaning more with every step.
void test_support(const char* options) {
    bed_t m;
    bed_make(&m, bed_config("tiny/2", options), 3, 1, 0);
    const params_t* p = &m.params;
    for (int step = 1; step <= 3; step++) {
        bed_forward(&m);
        bed_backward(&m);
        for (int i = 0; i < p->table.n; i++) {
            const param_t* t = &p->table.items[i];
            const floatS* grad = params_grad(p, t->offset);
            if (!grad) continue;
            int final = !strncmp(t->name, "final_layer.", 12), linear = !strncmp(t->name, "final_layer.linear", 18);
            int gates = step == 2 && !final && strstr(t->name, "adaLN") != NULL;
            int second = final || !strncmp(t->name, "x_embedder", 10);
            if (gates) check_gates(&m, t);
            else check(is_any(grad, t->stored) == (step == 1 ? linear : step == 2 ? second : 1), t->name);
        }
        bed_update(&m);
        for (int i = 0; i < p->table.n; i++) {
            const param_t* t = &p->table.items[i];
            check(bed_padding_is_zero(t, p->values + t->offset), "padding stays zero while training");
        }
    }
    bed_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// The model against itself

void test_inference(const char* id, const char* options) {
    bed_t trained, frozen;
    bed_make(&trained, bed_config(id, options), 3, 1, 0);
    bed_make(&frozen, bed_config(id, options), 3, 0, 0);
    bed_randomise(&trained);
    bed_copy(&frozen, &trained);
    bed_forward(&trained);
    bed_forward(&frozen);
    check(isfinite(trained.dit.v[0]), "a number");
    check(!memcmp(frozen.dit.v, trained.dit.v, trained.values * sizeof(floatX)), "same bits without train");
    size_t without = plan_bytes(&frozen.keep) + plan_bytes(&frozen.work);
    check(without * 3 < (plan_bytes(&trained.keep) + plan_bytes(&trained.work)) * 2, "less memory without train");
    bed_free(&trained);
    bed_free(&frozen);
}

void test_recompute(const char* id, const char* options) {
    bed_t kept, again;
    bed_make(&kept, bed_config(id, options), 3, 1, 0);
    bed_make(&again, bed_config(id, options), 3, 1, 1);
    bed_randomise(&kept);
    bed_copy(&again, &kept);
    bed_forward(&kept);
    bed_forward(&again);
    check(!memcmp(kept.dit.v, again.dit.v, kept.values * sizeof(floatX)), "same velocity");
    bed_backward(&kept);
    bed_backward(&again);
    size_t n = params_trained(&kept.params);
    check(is_any(kept.params.grads, n), "there are gradients");
    check(!memcmp(kept.params.grads, again.params.grads, n * sizeof(floatS)), "same bits in all gradients");
    check(plan_bytes(&again.keep) * 2 < plan_bytes(&kept.keep), "less memory with recompute");
    bed_free(&kept);
    bed_free(&again);
}

void test_accumulates(void) {
    bed_t m;
    bed_make(&m, bed_config("tiny/2", "Q"), 3, 1, 0);
    bed_randomise(&m);
    params_t* p = &m.params;
    size_t n = params_trained(p);
    floatS* twice = (floatS*)malloc_check(n * sizeof(floatS), "gradients");
    bed_forward(&m);
    bed_backward(&m);
    for (size_t i = 0; i < n; i++) twice[i] = 2 * p->grads[i];
    bed_backward(&m);
    check_error("gradients", relative_error_float(p->grads, twice, n), 1e-6);
    free(twice);
    bed_free(&m);
}

// A pass over fewer latents than were planned is that of a model of just so many: the first ones of the batch.
void test_smaller_batch(const char* id) {
    bed_t large, small;
    bed_make(&large, bed_config(id, "Q"), 5, 1, 0);
    bed_make(&small, bed_config(id, "Q"), 2, 1, 0);
    bed_randomise(&large);
    bed_copy(&small, &large);
    large.B = 2;
    bed_forward(&large);
    bed_forward(&small);
    check(!memcmp(large.dit.v, small.dit.v, small.values * sizeof(floatX)), "same velocity");
    check(isnan(large.dit.v[small.values]), "nothing behind it");
    bed_backward(&large);
    bed_backward(&small);
    size_t n = params_trained(&small.params);
    check(!memcmp(large.params.grads, small.params.grads, n * sizeof(floatS)), "same gradients");
    large.B = 5;
    bed_forward(&large);
    check_error("in a larger batch", relative_error_float(large.dit.v, small.dit.v, small.values), 1e-5);
    bed_free(&large);
    bed_free(&small);
}

// ---------------------------------------------------------------------------------------------------------------------
// Messages

// Children of a process that has used OpenMP must not: they end before anything is computed.
void run_unknown(const char* id) { lightningdit_config_find(id); }
void run_wrong_side(const char* id) {
    lightningdit_config_t c = bed_config(id, "");
    bed_t m;
    c.side = 7;
    bed_make(&m, c, 1, 1, 0);
}
void run_wrong_width(const char* id) {
    lightningdit_config_t c = bed_config(id, "");
    bed_t m;
    c.heads = 4; // heads of 10
    bed_make(&m, c, 1, 1, 0);
}
void run_large_batch(const char* id) {
    lightningdit_t m;
    plan_t keep = {NULL, 0, 0, 0, 0, 0, 0, NULL};
    memset(&m, 0, sizeof m);
    m.config = bed_config(id, "");
    lightningdit_plan(&m, &keep, 2, 1);
    lightningdit_forward(&m, NULL, NULL, NULL, NULL, 3, 0);
}

int main(int argc, char** argv) {
    static const char* const fixtures[] = {"dit_p1", "dit_p2_qk", "dit_p1_noshift", "dit_p2_gelu_qk",
                                           "dit_classic"};
    static const char* const models[4][2] = {{"tiny/1", ""}, {"tiny/2", "Q"}, {"tiny/1", "GNQ"}, {"mini", ""}};
    char name[128];
    test_begin(argc, argv);
    temporary_begin();
    for (size_t i = 0; i < sizeof fixtures / sizeof fixtures[0]; i++) {
        snprintf(name, sizeof name, "fixture %s against PyTorch", fixtures[i]);
        if (test_case(name)) { test_fixture(fixtures[i]); test_end_case(); }
    }
    if (test_case("DiT-XL/2")) { test_dit_size(); test_end_case(); }
    if (test_case("parameters and multiply-accumulates (in half units of the last digit)")) {
        test_sizes();
        test_end_case();
    }
    if (test_case("order in memory")) { test_order(); test_end_case(); }
    if (test_case("initial bounds of XL/1 (in half units of the last digit)")) { test_bounds(); test_end_case(); }
    if (test_case("initial values (in standard deviations)")) { test_initial(); test_end_case(); }
    if (test_case("position tables")) { test_tables(); test_end_case(); }
    if (test_case("padded tensors, file to memory to file")) { test_round_trip(""); test_end_case(); }
    if (test_case("GELU needs no padding")) { test_round_trip("G"); test_end_case(); }
    if (test_case("which gradients are zero in steps 1, 2, 3")) { test_support(""); test_end_case(); }
    if (test_case("the same with QK-norm, without shift")) { test_support("NQ"); test_end_case(); }
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "inference equals training, %s %s", models[i][0], models[i][1]);
        if (test_case(name)) { test_inference(models[i][0], models[i][1]); test_end_case(); }
        snprintf(name, sizeof name, "recompute equals keeping, %s %s", models[i][0], models[i][1]);
        if (test_case(name)) { test_recompute(models[i][0], models[i][1]); test_end_case(); }
    }
    if (test_case("backward accumulates")) { test_accumulates(); test_end_case(); }
    if (test_case("fewer latents than planned, patch 1")) { test_smaller_batch("tiny/1"); test_end_case(); }
    if (test_case("fewer latents than planned, patch 2")) { test_smaller_batch("tiny/2"); test_end_case(); }
    if (test_case("messages for bad input")) {
        check_message(run_unknown, "XXL/1", "no diffusion transformer named 'XXL/1'", "XL/1, XL/2");
        check_message(run_wrong_side, "tiny/2", "7 x 7 x 5", "multiple of 2");
        check_message(run_wrong_width, "tiny/1", "40 wide with 4 heads", "multiple of 4");
        check_message(run_large_batch, "tiny/1", "3 latents", "up to 2");
        test_end_case();
    }
    temporary_end();
    return test_finish();
}
