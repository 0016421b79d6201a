// test_mmdit.c: the text-to-image transformer against numbers from elsewhere, and against itself.
//
//   fixture     tests/fixtures/mmdit.safetensors: minFM's velocities and gradients of every parameter
//   sizes       parameters, tensors and multiply-accumulates of every configuration; initial values; layout in memory
//   files       weights under FLUX's names and under diffusers', with something in front of them
//   support     which gradients are zero in the first, second and third step from the initial weights
//   itself      inference, recomputation, a smaller batch and fewer text rows give what they must
//
// Look next at tests/test_mmdit_gradient.c: finite differences, golden numbers, padding.

// defines: bed_t, bed_config, bed_make, bed_randomise, bed_copy, bed_forward, bed_backward, bed_free
#include "tests/mmdit_bed.h"
// defines: mmdit_file_config, mmdit_file_load, mmdit_diffusers_rules, weights_*
#include "common/models/mmdit_file.h"
// defines: fixture_open, fixture_tensor, fixture_parameters, fixture_check_gradients
#include "tests/fixture.h"
// defines: temporary_begin, check_message, temporary_end
#include "tests/temporary.h"

// ---------------------------------------------------------------------------------------------------------------------
// Fixture

// Copies a tensor of the fixture, `n` values.
static void fixture_copy(const safetensors_t* f, const char* name, floatX* to, size_t n) {
    floatS* values = fixture_tensor(f, name);
    check(safetensors_find(f, name)->numel == n, name);
    for (size_t i = 0; i < n; i++) to[i] = (floatX)values[i];
    free(values);
}

// Three images of 3 x 2 positions, captions of 4, 1 and 3 rows, all numbers random.
void test_fixture(void) {
    const double bound = 1e-4;
    mmdit_config_t config = {"fixture", 48, 3, 2, 2, {4, 6, 6}, 10, 7, 1, 5, 3, 2};
    safetensors_t f;
    bed_t m;
    fixture_open(&f, "mmdit");
    bed_make(&m, config, 3, 4, 1, 0);
    fixture_parameters(&f, &m.params);
    fixture_copy(&f, "input.xt", m.xt, m.values);
    fixture_copy(&f, "input.text", m.text, 3 * 4 * 10);
    fixture_copy(&f, "input.pooled", m.pooled, 3 * 7);
    fixture_copy(&f, "input.t", m.t, 3);
    fixture_copy(&f, "input.guidance", m.guidance, 3);
    fixture_copy(&f, "dout.v", m.dv, m.values);
    m.first[0] = 0, m.first[1] = 3, m.first[2] = 1;
    bed_forward(&m);
    bed_backward(&m);
    fixture_check(&f, "output.v", m.net.v, m.values, bound);
    fixture_check_gradients(&f, &m.params, bound);
    bed_free(&m);
    safetensors_close(&f);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sizes

// Parameters as counted by instantiating the originals.
static const struct { const char* id; int C, vector, guidance, tensors; size_t count; } size_rows[] = {
    {"2B", 32, 768, 0, 336, 2242863136},        {"2B", 32, 0, 0, 332, 2237091872},
    {"2B-deep", 32, 768, 0, 536, 2042739744},   {"2B-short", 32, 768, 0, 296, 1965931552},
    {"tiny", 64, 768, 0, 336, 560246848},       {"flux", 64, 768, 1, 780, 11901408320},
    {"flux", 64, 768, 0, 776, 11891178560},     {"t2i-mini", 16, 64, 0, 96, 2296336},
};

void test_sizes(void) {
    for (size_t i = 0; i < sizeof size_rows / sizeof size_rows[0]; i++) {
        param_table_t table;
        mmdit_t* m = (mmdit_t*)calloc_check(1, sizeof *m, "a model");
        memset(&table, 0, sizeof table);
        m->config = *mmdit_config_find(size_rows[i].id);
        m->config.C = size_rows[i].C, m->config.h = m->config.w = 16;
        m->config.vector = size_rows[i].vector, m->config.guidance = size_rows[i].guidance;
        mmdit_register(m, &table, "");
        check(param_count(&table, 0, table.total) == size_rows[i].count, size_rows[i].id);
        check(table.n == size_rows[i].tensors, "tensors");
        const mmdit_stream_t* first = &m->doubles[0].streams[0];
        size_t M = mmdit_modulations(&m->config);
        check(first->mod_weight == 0 && first->mod_bias == M * m->config.dim, "modulation: weights, then biases");
        check(param_find(&table, "txt_in.weight")->offset == first->mod_bias + M, "the rest follows");
        free(table.items);
        free(m);
    }
}

// 10^9 multiply-accumulates of a pass of 2B, by pixels and text rows; of the miniature's, 10^6.
void test_macs(void) {
    static const struct { int side, L; double giga; } rows[] = {
        {16, 512, 990.6}, {16, 77, 414.5}, {16, 16, 336.6}, {32, 512, 2092.4}, {32, 77, 1450.5}, {32, 16, 1363.5},
    };
    mmdit_config_t c = *mmdit_config_find("2B");
    c.C = 32;
    for (int i = 0; i < 6; i++) {
        c.h = c.w = rows[i].side;
        check_error("2B", fabs(mmdit_macs(&c, rows[i].L) / 1e9 - rows[i].giga) / 0.051, 1);
    }
    c = *mmdit_config_find("t2i-mini");
    c.C = 16, c.h = c.w = 6;
    check_error("mini", fabs(mmdit_macs(&c, 14) / 1e6 - 63.8) / 0.051, 1);
}

// Normal with deviation 0.02, zero, or one.
void test_initial(void) {
    mmdit_config_t c = *mmdit_config_find("t2i-mini");
    bed_t m;
    c.C = 16, c.h = c.w = 2, c.guidance = 1;
    bed_make(&m, c, 1, 1, 0, 0);
    for (int i = 0; i < m.params.table.n; i++) {
        const param_t* t = &m.params.table.items[i];
        int zero = strstr(t->name, ".bias") || strstr(t->name, "mod.lin") || strstr(t->name, "modulation");
        int one = strstr(t->name, ".scale") != NULL;
        double sum = 0, squares = 0;
        for (size_t k = 0; k < t->count; k++) {
            double value = m.params.values[t->offset + k];
            if (zero || one) check(value == one, t->name);
            sum += value, squares += value * value;
        }
        if (zero || one) continue;
        check_error(t->name, fabs(sum / t->count) / (0.02 / sqrt(t->count)), 5);
        check_error(t->name, fabs(sqrt(squares / t->count) / 0.02 - 1) * sqrt(2.0 * t->count), 5);
    }
    bed_free(&m);
}

// linear2, file to memory and back: the columns that read the attention are a matrix of their own.
void test_layout(void) {
    bed_t m;
    bed_make(&m, bed_config(1, 1, 6, 0), 1, 1, 1, 0);
    const param_t* t = param_find(&m.params.table, "single_blocks.0.linear2.weight");
    floatS* file = (floatS*)malloc_check(3 * t->count * sizeof(floatS), "a tensor");
    floatS *back = file + t->count, *memory = back + t->count;
    for (size_t k = 0; k < t->count; k++) file[k] = (floatS)test_normal();
    params_set(&m.params, PARAM_VALUE, t, file, memory);
    params_get(&m.params, params_state(&m.params, PARAM_VALUE), t, back, memory);
    check(!memcmp(file, back, t->count * sizeof(floatS)), "back again");
    const floatX* weight = m.params.values + t->offset;
    check(weight[24 + 1] == file[5 * 24 + 1], "row 1 of what reads the attention");
    check(weight[24 * 24 + 4 * 24 + 2] == file[5 * 24 + 24 + 2], "row 1 of what reads the MLP");
    free(file);
    bed_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// Files

// What of a tensor, in the file's order, a rule's tensor holds.
static void rule_values(const param_t* t, weights_part_t part, const floatS* values, floatS* out, size_t* n) {
    size_t rows = t->shape[0], row = t->count / rows;
    size_t begin = rows * weights_parts[part].begin / weights_parts[part].of;
    size_t length = rows * weights_parts[part].length / weights_parts[part].of;
    for (size_t r = 0; r < length; r++) {
        size_t from = part == PART_HALVES_SWAPPED ? (r + rows / 2) % rows : begin + r;
        memcpy(out + r * row, values + from * row, row * sizeof(floatS));
    }
    *n = length;
}

// Writes a model's weights under diffusers' names, by the rules the other way round.
static void write_diffusers(const bed_t* m, const char* path) {
    const param_table_t* table = &m->params.table;
    size_t longest = params_longest(table);
    floatS* values = (floatS*)malloc_check(3 * longest * sizeof(floatS), "a tensor");
    floatS *memory = values + longest, *out = memory + longest;
    st_writer_t w;
    safetensors_writer_init(&w);
    for (int pass = 0; pass < 2; pass++) {
        if (pass) safetensors_writer_begin(&w, path);
        const weights_rule_t* rule = mmdit_diffusers_rules;
        for (int i = 0; i < table->n; i++) for (rule = mmdit_diffusers_rules; rule->file; rule++) {
            char number[WEIGHTS_NAME], rest[WEIGHTS_NAME], name[WEIGHTS_NAME];
            const param_t* t = &table->items[i];
            size_t rows;
            if (!weights_match(rule->ours, t->name, number, rest)) continue;
            params_get(&m->params, params_state(&m->params, PARAM_VALUE), t, values, memory);
            rule_values(t, rule->part, values, out, &rows);
            size_t shape[2] = {rows, t->count / t->shape[0]};
            weights_expand(name, "transformer.", rule->file, number, rest);
            if (pass) safetensors_writer_data(&w, out, rows * shape[1]);
            else safetensors_writer_tensor(&w, name, ST_F32, t->ndim, shape);
        }
    }
    safetensors_writer_finish_or_die(&w);
    free(values);
}

static void check_file(const bed_t* m, const char* path, mmdit_config_t want) {
    safetensors_t f;
    bed_t read;
    tensor_file_open_or_die(&f, path);
    mmdit_config_t c = mmdit_file_config(&f);
    safetensors_close(&f);
    c.id = want.id, c.h = want.h, c.w = want.w;
    check(!memcmp(&c, &want, offsetof(mmdit_config_t, w) + sizeof c.w), "the configuration shows in the shapes");
    bed_make(&read, c, 1, 1, 1, 0);
    bed_poison(&read.keep);
    mmdit_file_load(&read.params, "", path);
    check(!memcmp(read.params.values, m->params.values, m->params.table.total * sizeof(floatX)), "the same weights");
    bed_free(&read);
}

void test_files(void) {
    char path[TEMPORARY_PATH];
    for (int i = 0; i < 2; i++) { // heads of 32
        mmdit_config_t config = {"file", 64, 2, 2, 3, {8, 12, 12}, 7, i ? 6 : 0, i, 5, 1, 1};
        bed_t m;
        bed_make(&m, config, 1, 1, 1, 0);
        bed_randomise(&m);
        weights_save(&m.params, "", temporary_path(path, "flux.safetensors"), "model.module.");
        check_file(&m, path, config);
        write_diffusers(&m, temporary_path(path, "diffusers.safetensors"));
        check_file(&m, path, config);
        bed_free(&m);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Gradient support

// One of Adam's steps.
void bed_update(bed_t* m) {
    params_t* p = &m->params;
    adam_t adam = {0.01, 0.9, 0.95, 1e-8, 0, ++p->t, {0, 0}, 1};
    adam_update(p->values, p->master, p->m, p->v, NULL, NULL, p->grads, params_trained(p), adam, 0);
    params_zero_grads(p, 0);
}

// Is one of n values not zero?
int is_any(const floatS* values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (values[i] != 0) return 1;
    }
    return 0;
}

// Which of `parts` equal pieces of a tensor's gradient have to be zero, as the bits of `pieces` say.
void check_pieces(const bed_t* m, const param_t* t, int parts, int pieces) {
    size_t n = t->count / parts;
    for (int k = 0; k < parts; k++) {
        check(is_any(params_grad(&m->params, t->offset) + k * n, n) == (pieces >> k & 1), t->name);
    }
}

// Blocks start as the identity. In the first step the gradient reaches image tokens, final layer and the gates that
// image tokens pass; in the second all but what only shows in the text stream behind its own gates.
void check_support(const bed_t* m, const param_t* t, int step) {
    int text = strstr(t->name, "txt_") && !strstr(t->name, "txt_in"), image_in = strstr(t->name, "img_in") != NULL;
    int final = strstr(t->name, "final_layer") != NULL;
    if (strstr(t->name, "_mod.lin")) {
        check_pieces(m, t, 6, step == 1 ? (text ? 0 : 044) : step == 2 && text ? 047 : 077);
    } else if (strstr(t->name, "modulation.lin")) {
        check_pieces(m, t, 3, step == 1 ? 4 : 7);
    } else if (step == 1) {
        check_pieces(m, t, 1, final || image_in);
    } else if (step == 2 && text && strstr(t->name, "qkv")) {
        check_pieces(m, t, 3, 6); // its queries show in text rows alone
    } else {
        int behind = text && (strstr(t->name, "query_norm") || strstr(t->name, "proj") || strstr(t->name, "mlp"));
        check_pieces(m, t, 1, step == 3 || !behind);
    }
}

void test_support(void) {
    bed_t m;
    bed_make(&m, bed_config(2, 2, 6, 1), 3, 4, 1, 0);
    for (int step = 1; step <= 3; step++) {
        bed_forward(&m);
        bed_backward(&m);
        for (int i = 0; i < m.params.table.n; i++) check_support(&m, &m.params.table.items[i], step);
        bed_update(&m);
    }
    bed_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// The model against itself

void test_inference(mmdit_config_t config) {
    bed_t trained, frozen;
    bed_make(&trained, config, 3, 4, 1, 0);
    bed_make(&frozen, config, 3, 4, 0, 0);
    bed_randomise(&trained);
    bed_copy(&frozen, &trained);
    bed_forward(&trained);
    bed_forward(&frozen);
    check(isfinite(trained.net.v[0]), "a number");
    check(!memcmp(frozen.net.v, trained.net.v, trained.values * sizeof(floatX)), "same bits without train");
    size_t without = plan_bytes(&frozen.keep) + plan_bytes(&frozen.work);
    check(without * 2 < plan_bytes(&trained.keep) + plan_bytes(&trained.work), "less memory without train");
    bed_free(&trained);
    bed_free(&frozen);
}

void test_recompute(mmdit_config_t config) {
    bed_t kept, again;
    bed_make(&kept, config, 3, 4, 1, 0);
    bed_make(&again, config, 3, 4, 1, 1);
    bed_randomise(&kept);
    bed_copy(&again, &kept);
    bed_forward(&kept);
    bed_forward(&again);
    check(!memcmp(kept.net.v, again.net.v, kept.values * sizeof(floatX)), "same velocity");
    bed_backward(&kept);
    bed_backward(&again);
    size_t n = params_trained(&kept.params);
    check(is_any(kept.params.grads, n), "there are gradients");
    check(!memcmp(kept.params.grads, again.params.grads, n * sizeof(floatS)), "same bits in all gradients");
    check(plan_bytes(&again.keep) * 2 < plan_bytes(&kept.keep), "less memory with recompute");
    bed_free(&kept);
    bed_free(&again);
}

// A pass over fewer and smaller latents and fewer text rows than were planned is that of a model of just such ones. The
// size may be set again.
void test_smaller(void) {
    bed_t large, small;
    mmdit_config_t config = bed_config(2, 2, 6, 1), wide = config;
    wide.h = 4, wide.w = 5;
    bed_make(&large, wide, 5, 7, 1, 0);
    bed_make(&small, config, 2, 4, 1, 0);
    mmdit_set_size(&large.net, 6, 1);
    mmdit_set_size(&large.net, config.h, config.w);
    bed_randomise(&large);
    bed_copy(&small, &large);
    large.in.B = 2, large.in.L = 4;
    bed_forward(&large);
    bed_forward(&small);
    check(!memcmp(large.net.v, small.net.v, small.values * sizeof(floatX)), "same velocity");
    check(isnan(large.net.v[small.values]), "nothing behind it");
    bed_backward(&large);
    bed_backward(&small);
    size_t n = params_trained(&small.params);
    check(!memcmp(large.params.grads, small.params.grads, n * sizeof(floatS)), "same gradients");
    bed_free(&large);
    bed_free(&small);
}

// ---------------------------------------------------------------------------------------------------------------------
// Messages

// Children of a process that has used OpenMP must not: they end before anything is computed.
void run_unknown(const char* id) { mmdit_config_find(id); }
void run_wrong_axes(const char* id) {
    mmdit_t* m = (mmdit_t*)calloc_check(1, sizeof *m, "a model");
    param_table_t table = {NULL, 0, 0, 0};
    m->config = *mmdit_config_find(id);
    m->config.C = m->config.h = m->config.w = 4, m->config.axes[1] = 8;
    mmdit_register(m, &table, "");
}
void run_no_channels(const char* id) {
    mmdit_t* m = (mmdit_t*)calloc_check(1, sizeof *m, "a model");
    param_table_t table = {NULL, 0, 0, 0};
    m->config = *mmdit_config_find(id);
    mmdit_register(m, &table, "");
}
void run_long_text(const char* id) {
    mmdit_t* m = (mmdit_t*)calloc_check(1, sizeof *m, "a model");
    plan_t keep = {NULL, 0, 0, 0, 0, 0, 0, NULL};
    (void)id;
    m->config = bed_config(1, 1, 6, 0);
    mmdit_plan(m, &keep, 2, 5, 1);
    mmdit_forward(m, NULL, (mmdit_input_t){2, 6, NULL, NULL, NULL, NULL, NULL, NULL}, 0);
}
void run_large_size(const char* id) {
    mmdit_t* m = (mmdit_t*)calloc_check(1, sizeof *m, "a model");
    plan_t keep = {NULL, 0, 0, 0, 0, 0, 0, NULL};
    (void)id;
    m->config = bed_config(1, 1, 6, 0);
    mmdit_plan(m, &keep, 2, 5, 1);
    mmdit_set_size(m, 7, 1);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("fixture against minFM")) { test_fixture(); test_end_case(); }
    if (test_case("parameters")) { test_sizes(); test_end_case(); }
    if (test_case("multiply-accumulates (in half units of the last digit)")) { test_macs(); test_end_case(); }
    if (test_case("initial values (in standard deviations)")) { test_initial(); test_end_case(); }
    if (test_case("two matrices in one tensor")) { test_layout(); test_end_case(); }
    if (test_case("files of FLUX and of diffusers")) { test_files(); test_end_case(); }
    if (test_case("which gradients are zero in steps 1, 2, 3")) { test_support(); test_end_case(); }
    for (int i = 0; i < 2; i++) {
        mmdit_config_t config = i ? bed_config(1, 3, 0, 0) : bed_config(3, 2, 6, 1);
        if (test_case(i ? "inference equals training, 1 + 3 blocks" : "inference equals training, 3 + 2 blocks")) {
            test_inference(config);
            test_end_case();
        }
        if (test_case(i ? "recompute equals keeping, 1 + 3 blocks" : "recompute equals keeping, 3 + 2 blocks")) {
            test_recompute(config);
            test_end_case();
        }
    }
    if (test_case("fewer and smaller latents and fewer text rows than planned")) { test_smaller(); test_end_case(); }
    if (test_case("messages for bad input")) {
        check_message(run_unknown, "3B", "no text-to-image transformer named '3B'", "2B, 2B-deep");
        check_message(run_wrong_axes, "t2i-mini", "8, 8 and 12 channels", "a head of 32");
        check_message(run_no_channels, "t2i-mini", "0 x 0 x 0", "text rows of 64");
        check_message(run_long_text, "", "6 text rows", "up to 2 with 5");
        check_message(run_large_size, "", "latents of 7 x 1", "up to 6 positions");
        test_end_case();
    }
    temporary_end();
    return test_finish();
}
