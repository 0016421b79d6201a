// test_dit.c: training steps of LightningDiT and its files; and those of the text-to-image transformer.
//
//   fixture     ten steps that PyTorch took: losses, norms, weights, averages (tests/fixtures/dit_steps.safetensors)
//   clipping    the update is that of scaled gradients, and is none where the norm is small enough
//   resume      a run that is read back has the same bits, and takes the same next step
//   weights     configuration from the shapes, averaged and raw weights, others' prefixes, export in F32 and F16
//   refusals    foreign files, missing or wrong tensors
//   captions    ten steps of PyTorch's, the path in the network's direction of time, sizes, warm-up, decay, files
//
// Look next at tests/test_lightningdit.c, the network alone, and tests/test_train_dit.sh, the program.

// defines: bed_config, test_normal, test_uniform
#include "tests/lightningdit_bed.h"
// defines: fixture_open, fixture_tensor, fixture_parameters, fixture_check
#include "tests/fixture.h"
// defines: temporary_begin, temporary_end, temporary_path, check_message
#include "tests/temporary.h"
// defines: dit_t and its functions, dit_save, dit_open, dit_resume, dit_describe, dit_read_weights, dit_export
#include "common/training/dit_checkpoint.h"

// A dit_t must not be moved: its plans know its address. Weights are the initialisers', activations NaN.
static void make_dit(dit_t* d, dit_config_t config) {
    dit_register(d, config);
    dit_plan(d);
    dit_allocate(d);
    bed_poison(&d->plan);
    bed_poison(&d->work);
    dit_init(d);
    dit_set_tables(d);
}

// Of either network, for B latents.
static dit_config_t plain_config(int B) {
    dit_config_t c;
    memset(&c, 0, sizeof c);
    c.batch = B;
    c.beta1 = 0.9, c.beta2 = 0.95, c.eps = 1e-8, c.ema = 0.9;
    c.seed = 5;
    return c;
}

// A small network for 3 latents; `options` as for bed_config.
static dit_config_t small_config(const char* id, const char* options) {
    dit_config_t c = plain_config(3);
    c.net = bed_config(id, options);
    c.w_cos = 1, c.lr = 1e-2, c.decay = 0.01;
    return c;
}

// Gradients of a random batch. The same state of the generator gives the same batch.
static dit_report_t random_gradients(dit_t* d, int64_t step) {
    floatS host[16];
    for (size_t i = 0; i < d->config.batch * d->n; i++) d->x1[i] = (floatS)test_normal();
    for (int b = 0; b < d->config.batch; b++) d->t[b] = (floatS)(0.5 * test_uniform() + 0.5);
    for (int b = 0; b < d->config.batch; b++) d->labels[b] = b == 1 ? d->config.net.classes : b;
    dit_gradients(d, step, 0);
    return dit_read(d, host, 0);
}

// Enough steps that every weight has left its initial value, and its average is another number.
static void make_trained(dit_t* d, const char* id, const char* options) {
    make_dit(d, small_config(id, options));
    for (int step = 0; step < 4; step++) dit_update(d, step, random_gradients(d, step).norm, 0);
}

static int same_floats(const floatS* a, const floatS* b, size_t n) { return !memcmp(a, b, n * sizeof(floatS)); }

// Everything that a run carries from step to step.
static void check_same_state(const params_t* a, const params_t* b) {
    size_t n = params_trained(a);
    check(same_floats(a->values, b->values, a->table.total), "same weights");
    check(same_floats(a->m, b->m, n), "same first moments");
    check(same_floats(a->v, b->v, n), "same second moments");
    check(same_floats(a->ema[0], b->ema[0], n), "same averages");
    check(a->t == b->t, "same number of steps");
}

// ---------------------------------------------------------------------------------------------------------------------
// Ten steps of PyTorch's

enum { FIXTURE_STEPS = 10, FIXTURE_BATCH = 4 };

typedef struct {
    floatS* x1;     // (10, B, C, S, S)
    floatS* x0;     // (10, B, C, S, S)
    floatS* t;      // (10, B)
    floatS* labels; // (10, B)
} fixture_steps_t;

// The path of one step into xt and u, (B, S, S, C), as dit_path would make it from this noise.
static void set_path(dit_t* d, const fixture_steps_t* f, int step) {
    int B = FIXTURE_BATCH, C = d->config.net.C, HW = d->config.net.side * d->config.net.side;
    for (int b = 0; b < B; b++) {
        double t = f->t[step * B + b];
        d->t[b] = f->t[step * B + b];
        d->labels[b] = (int)f->labels[step * B + b];
        for (int i = 0; i < HW; i++) {
            for (int c = 0; c < C; c++) {
                size_t from = (((size_t)step * B + b) * C + c) * HW + i, to = ((size_t)b * HW + i) * C + c;
                d->xt[to] = (floatX)(t * f->x1[from] + (1 - t) * f->x0[from]);
                d->u[to] = f->x1[from] - f->x0[from];
            }
        }
    }
}

// after.* and ema.* of every trained tensor, both within `bound` of the norm.
static void check_after(const safetensors_t* f, const params_t* p, double bound) {
    static const struct { const char* prefix; param_kind_t kind; } states[2] = {{"after.", PARAM_VALUE},
                                                                                {"ema.", PARAM_EMA0}};
    size_t longest = params_longest(&p->table);
    floatS* host = (floatS*)malloc_check(2 * longest * sizeof(floatS), "a tensor");
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        for (int k = 0; k < 2 && params_grad(p, t->offset); k++) {
            char name[200];
            snprintf(name, sizeof name, "%s%s", states[k].prefix, t->name);
            params_get(p, params_state(p, states[k].kind), t, host, host + longest);
            fixture_check(f, name, host, t->count, bound);
        }
    }
    free(host);
}

static void test_steps(double bound, int recompute) {
    static dit_t d;
    safetensors_t f;
    fixture_open(&f, "dit_steps");
    lightningdit_config_t net = {"fixture", 2, 32, 2, 1, 0, 0, 1, 0, 0, 4, 4, 7};
    dit_config_t config = plain_config(FIXTURE_BATCH);
    config.net = net, config.recompute = recompute;
    config.w_cos = 1, config.lr = 1e-3;
    make_dit(&d, config);
    fixture_parameters(&f, &d.params);
    lightningdit_set_tables(&d.net, &d.params);
    params_start_averages(&d.params);
    fixture_steps_t in = {fixture_tensor(&f, "input.x1"), fixture_tensor(&f, "input.x0"),
                          fixture_tensor(&f, "input.t"), fixture_tensor(&f, "input.labels")};
    floatS *mse = fixture_tensor(&f, "output.mse"), *cosine = fixture_tensor(&f, "output.cosine");
    floatS *norm = fixture_tensor(&f, "output.gradient_norm"), host[2 * FIXTURE_BATCH + 1];
    for (int step = 0; step < FIXTURE_STEPS; step++) {
        set_path(&d, &in, step);
        dit_gradients_of_path(&d, 0);
        dit_report_t r = dit_read(&d, host, 0);
        check_error("mse", fabs(r.mse / mse[step] - 1), bound);
        check_error("cosine", fabs(r.cosine / cosine[step] - 1), bound);
        check_error("norm", fabs(r.norm / norm[step] - 1), bound);
        if (step == 0) check(r.cosine == 1 && r.norm > 6e7, "where the output is zero, the cosine is");
        dit_update(&d, step, r.norm, 0);
    }
    check_after(&f, &d.params, bound);
    floatS* all[] = {in.x1, in.x0, in.t, in.labels, mse, cosine, norm};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    dit_free(&d);
    safetensors_close(&f);
}

// ---------------------------------------------------------------------------------------------------------------------
// Clipping

// Adam's first step does not see a factor in the gradient, its moments do; the step after a trained start sees it.
static void test_clipping(void) {
    static dit_t clipped, scaled;
    make_trained(&clipped, "tiny/2", "Q");
    make_dit(&scaled, clipped.config);
    double norm = random_gradients(&clipped, 9).norm;
    size_t n = params_trained(&scaled.params);
    double clip = norm / 7, factor = clip / (norm + 1e-6);
    memcpy(scaled.params.values, clipped.params.values, clipped.params.table.total * sizeof(floatX));
    memcpy(scaled.params.m, clipped.params.m, n * sizeof(floatS));
    memcpy(scaled.params.v, clipped.params.v, n * sizeof(floatS));
    memcpy(scaled.params.ema[0], clipped.params.ema[0], n * sizeof(floatS));
    scaled.params.t = clipped.params.t;
    for (size_t i = 0; i < n; i++) scaled.params.grads[i] = (floatS)(factor * clipped.params.grads[i]);
    clipped.config.clip = clip;
    dit_update(&clipped, 9, norm, 0);
    dit_update(&scaled, 9, norm * factor, 0);
    check_error("first moment", relative_error_float(clipped.params.m, scaled.params.m, n), 1e-6);
    check_error("second moment", relative_error_float(clipped.params.v, scaled.params.v, n), 1e-6);
    check_error("weights", relative_error_float(clipped.params.values, scaled.params.values, n), 1e-6);
    check_error("average", relative_error_float(clipped.params.ema[0], scaled.params.ema[0], n), 1e-6);
    dit_free(&scaled);
    dit_free(&clipped);
}

static void test_not_clipped(void) {
    static dit_t a, b;
    uint64_t state = test_state.random;
    make_trained(&a, "tiny/1", "");
    test_state.random = state;
    make_trained(&b, "tiny/1", "");
    state = test_state.random;
    double norm = random_gradients(&a, 9).norm;
    test_state.random = state;
    random_gradients(&b, 9);
    a.config.clip = norm;
    dit_update(&a, 9, norm, 0);
    dit_update(&b, 9, norm, 0);
    check_same_state(&a.params, &b.params);
    dit_free(&a);
    dit_free(&b);
}

// ---------------------------------------------------------------------------------------------------------------------
// Checkpoints

// Writes d's state as the file `name`; statistics count from 1.
static char* save_dit(dit_t* d, char path[TEMPORARY_PATH], const char* name) {
    char error[1024];
    floatS statistics[16];
    for (int i = 0; i < 16; i++) statistics[i] = (floatS)(i + 1);
    int captions = dit_has_captions(&d->config);
    dit_info_t info = {11, 44, 0, 9, "0123456789abcdef", "1 2 3", "{\"a\": 1}",
                       captions ? "" : "[\"cat\", \"dog\"]", captions ? "words" : "", captions ? "fixed 8 1" : ""};
    int saved = dit_save(temporary_path(path, name), d, &info, statistics, statistics + d->C, error, sizeof error, 0);
    check(saved, "the checkpoint is written");
    return path;
}

static void test_resume(const char* id, const char* options) {
    static dit_t a, b;
    char path[TEMPORARY_PATH];
    safetensors_t f;
    make_trained(&a, id, options);
    save_dit(&a, path, "run");
    dit_config_t config = small_config(id, options);
    config.seed = 6;
    make_dit(&b, config);
    check(!same_floats(a.params.values, b.params.values, a.params.table.total), "another network before");
    dit_info_t info = dit_open(&f, path);
    check(info.step == 11 && info.images == 44 && info.t == 4 && info.set == 9, "numbers");
    check(!strcmp(info.tokenizer, "0123456789abcdef") && !strcmp(info.losses, "1 2 3"), "texts");
    check(!strcmp(info.config, "{\"a\": 1}"), "configuration");
    check(!strcmp(info.class_names, "[\"cat\", \"dog\"]"), "names of the classes");
    floatS mean[5];
    checkpoint_read_vector(&f, path, "latent.mean", mean, 5);
    check(mean[0] == 1 && mean[4] == 5, "statistics");
    dit_resume(&f, &info, path, &b);
    safetensors_close(&f);
    check_same_state(&a.params, &b.params);
    b.config.seed = a.config.seed;
    uint64_t state = test_state.random;
    double norm = random_gradients(&a, 4).norm;
    test_state.random = state;
    check(random_gradients(&b, 4).norm == norm, "the same gradient");
    dit_update(&a, 9, norm, 0);
    dit_update(&b, 9, norm, 0);
    check_same_state(&a.params, &b.params);
    dit_free(&a);
    dit_free(&b);
}

static void test_describe(const char* id, const char* options) {
    static dit_t d;
    char path[TEMPORARY_PATH];
    safetensors_t f;
    make_dit(&d, small_config(id, options));
    safetensors_open_or_die(&f, save_dit(&d, path, "run"));
    lightningdit_config_t want = d.config.net;
    for (int raw = 0; raw < 2; raw++) {
        lightningdit_config_t c = dit_describe(&f, path, raw);
        check(!strcmp(c.id, id) && c.heads == want.heads && c.depth == want.depth, "size");
        check(c.C == want.C && c.side == want.side && c.classes == want.classes, "latents and classes");
        check(c.qk_norm == want.qk_norm && c.mlp_gelu == want.mlp_gelu && c.no_shift == want.no_shift, "variant");
    }
    safetensors_close(&f);
    dit_free(&d);
}

// The weights of d alone, behind a prefix, as others write them.
static void save_foreign(const dit_t* d, const char* path, const char* prefix) {
    st_writer_t w;
    const params_t* p = &d->params;
    size_t longest = params_longest(&p->table);
    floatS* host = (floatS*)malloc_check(2 * longest * sizeof(floatS), "a tensor");
    checkpoint_section_t section = {&((dit_t*)d)->params, PARAM_VALUE, prefix};
    safetensors_writer_init(&w);
    checkpoint_declare_section(&w, &section);
    safetensors_writer_begin(&w, path);
    checkpoint_write_section(&w, NULL, &section, host, longest, 0);
    safetensors_writer_finish_or_die(&w);
    free(host);
}

// What dit_read_weights reads from a file: `want` for the trained tensors, and d's position table.
static void check_weights(const char* path, int raw, const dit_t* d, const floatS* want, double bound) {
    safetensors_t f;
    lightningdit_t net;
    params_t p;
    memset(&net, 0, sizeof net);
    memset(&p, 0, sizeof p);
    tensor_file_open_or_die(&f, path);
    net.config = dit_describe(&f, path, raw);
    lightningdit_register(&net, &p.table, "");
    params_allocate(&p, p.table.total, 0, "weights");
    dit_read_weights(&f, path, &p, raw);
    size_t first = d->params.first, n = params_trained(&d->params);
    check(p.table.total == d->params.table.total, "the same tensors");
    check_error("positions", relative_error_float(p.values, d->params.values, first), bound);
    check_error("weights", relative_error_float(p.values + first, want, n), bound);
    params_free(&p);
    safetensors_close(&f);
}

static void test_weights(const char* id, const char* options) {
    static dit_t d;
    char run[TEMPORARY_PATH], path[TEMPORARY_PATH];
    make_trained(&d, id, options);
    const floatS *raw = d.params.values + d.params.first, *average = d.params.ema[0];
    size_t n = params_trained(&d.params);
    check(relative_error_float(average, raw, n) > 1e-2, "average and weights differ");
    save_dit(&d, run, "run");
    check_weights(run, 0, &d, average, 0);
    check_weights(run, 1, &d, raw, 0);
    static const char* const prefixes[] = {"", "model.", "module.", "model.module."};
    for (int i = 0; i < 4; i++) {
        save_foreign(&d, temporary_path(path, "foreign"), prefixes[i]);
        for (int k = 0; k < 2; k++) check_weights(path, k, &d, raw, 0);
    }
    dit_export(run, temporary_path(path, "f32"), ST_F32);
    check_weights(path, 0, &d, average, 0);
    safetensors_t f;
    dit_info_t info = dit_open(&f, path);
    check(f.n == d.params.table.n + 2 && info.step == 11 && info.t == 4, "what an exported file holds");
    check(!strcmp(info.class_names, "[\"cat\", \"dog\"]"), "it keeps the names of the classes");
    safetensors_close(&f);
    dit_export(run, temporary_path(path, "f16"), ST_F16);
    check_weights(path, 0, &d, average, ldexp(1, -11));
    dit_free(&d);
}

// ---------------------------------------------------------------------------------------------------------------------
// Refusals

// A file of zeros with the metadata fields that are named and every tensor that dit_describe needs but `missing`.
static void write_stub(const char* name, const char* metadata, const char* missing, int D, int rows) {
    static const char* const names[] = {"final_layer.linear.weight", "x_embedder.proj.weight", "pos_embed",
        "y_embedder.embedding_table.weight", "blocks.0.adaLN_modulation.1.weight", "blocks.0.norm1.weight",
        "blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight"};
    enum { NAMES = sizeof names / sizeof names[0] };
    size_t w = (size_t)D, shapes[NAMES][4] = {{5, w}, {w, 5, 1, 1}, {1, (size_t)rows, w}, {5, w}, {6 * w, w}, {w},
                                              {3 * w, w}, {3 * w, w}};
    int dims[NAMES] = {2, 4, 3, 2, 2, 1, 2, 2};
    char path[TEMPORARY_PATH];
    st_writer_t writer;
    floatS* zeros = (floatS*)calloc(6 * w * w + (size_t)rows * w, sizeof(floatS));
    safetensors_writer_init(&writer);
    static const char* const keys[] = {"format", "step", "images", "adam_steps", "tokenizer", "losses", "config"};
    for (int i = 0; i < 7; i++) {
        int given = strstr(metadata, keys[i]) != NULL;
        if (given) safetensors_writer_metadata(&writer, keys[i], i ? "1" : DIT_FORMAT);
    }
    for (int i = 0; i < NAMES; i++) {
        if (strcmp(names[i], missing)) safetensors_writer_tensor(&writer, names[i], ST_F32, dims[i], shapes[i]);
    }
    safetensors_writer_begin(&writer, temporary_path(path, name));
    for (int i = 0; i < NAMES; i++) {
        size_t n = 1;
        for (int k = 0; k < dims[i]; k++) n *= shapes[i][k];
        if (strcmp(names[i], missing)) safetensors_writer_data(&writer, zeros, n);
    }
    safetensors_writer_finish_or_die(&writer);
    free(zeros);
}

// In a child. Files whose name begins with "open" are a checkpoint's, the others are described and read.
static void use_wrong(const char* name) {
    char path[TEMPORARY_PATH];
    safetensors_t f;
    temporary_path(path, name);
    if (!strncmp(name, "open", 4)) {
        dit_open(&f, path);
        return;
    }
    lightningdit_t net;
    params_t p;
    memset(&net, 0, sizeof net);
    memset(&p, 0, sizeof p);
    safetensors_open_or_die(&f, path);
    net.config = dit_describe(&f, path, 0);
    lightningdit_register(&net, &p.table, "");
    params_allocate(&p, p.table.total, 0, "weights");
    dit_read_weights(&f, path, &p, 0);
}

static void test_refusals(void) {
    static const struct { const char *name, *metadata, *missing; int D, rows; const char *first, *second; } cases[] = {
        {"open0", "", "", 40, 9, "open0: not a checkpoint of train_dit", "is missing, wanted aligntok-dit-1"},
        {"open1", "format images", "", 40, 9, "open1", "\"step\""},
        {"open2", "format step images adam_steps losses config", "", 40, 9, "\"tokenizer\" is missing", "open2"},
        {"open3", "format step images adam_steps tokenizer config", "", 40, 9, "\"losses\" is missing", "open3"},
        {"open4", "format step images adam_steps tokenizer losses", "", 40, 9, "\"config\" is missing", "open4"},
        {"none", "", "final_layer.linear.weight", 40, 9, "none holds no LightningDiT", "final_layer.linear.weight"},
        {"embed", "", "x_embedder.proj.weight", 40, 9, "tensor x_embedder.proj.weight is missing", "damaged"},
        {"square", "", "", 40, 8, "pos_embed has 8 rows, no square", "another model"},
        {"width", "", "", 24, 9, "2 blocks of width 24 with patches of 1", "none of the sizes known here"},
        {"depth", "", "blocks.1.attn.qkv.weight", 40, 9, "1 blocks of width 40", "none of the sizes known here"},
        {"rest", "", "", 40, 9, "rest does not fit the model: it is a LightningDiT", "missing: "}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_stub(cases[i].name, cases[i].metadata, cases[i].missing, cases[i].D, cases[i].rows);
        check_message(use_wrong, cases[i].name, cases[i].first, cases[i].second);
    }
}

static void export_huge(const char* name) {
    char from[TEMPORARY_PATH], to[TEMPORARY_PATH];
    dit_export(temporary_path(from, name), temporary_path(to, "half"), ST_F16);
}

static void test_huge(void) {
    static dit_t d;
    char path[TEMPORARY_PATH];
    make_dit(&d, small_config("tiny/1", ""));
    d.params.ema[0][d.net.linear_weight - d.params.first] = 1e9f;
    save_dit(&d, path, "huge");
    check_message(export_huge, "huge", "a value of final_layer.linear.weight is beyond F16", "give -export_type f32");
    check(access(temporary_path(path, "half"), F_OK) != 0, "a refused export leaves no file");
    dit_free(&d);
}

// A file as DiT and SiT are published: what its shapes tell, its weights, and that its meaning has to be said.
static void write_classic(const char* path, lightningdit_t* net, param_table_t* table) {
    net->config = *lightningdit_config_find("SiT-S/2");
    net->config.C = 2, net->config.side = 4, net->config.classes = 3;
    lightningdit_register(net, table, "");
    st_writer_t w;
    safetensors_writer_init(&w);
    for (int i = 0; i < table->n; i++) {
        const param_t* p = &table->items[i];
        size_t shape[4];
        for (int k = 0; k < p->ndim; k++) shape[k] = (size_t)p->shape[k];
        safetensors_writer_tensor(&w, p->name, ST_F32, p->ndim, shape);
    }
    safetensors_writer_begin(&w, path);
    floatS* host = (floatS*)malloc_check(params_longest(table) * sizeof(floatS), "a tensor");
    for (int i = 0; i < table->n; i++) {
        for (size_t k = 0; k < table->items[i].count; k++) host[k] = (floatS)(0.001 * (i + 1) + 1e-6 * (double)k);
        safetensors_writer_data(&w, host, table->items[i].count);
    }
    free(host);
    safetensors_writer_finish_or_die(&w);
}

static void test_classic(void) {
    static lightningdit_t net;
    char path[TEMPORARY_PATH];
    params_t params;
    memset(&params, 0, sizeof params);
    temporary_begin();
    write_classic(temporary_path(path, "DiT-S-2.pt"), &net, &params.table);
    safetensors_t f;
    tensor_file_open_or_die(&f, path);
    lightningdit_config_t c = dit_describe(&f, path, 0);
    check(!strcmp(c.id, "SiT-S/2") && c.classic && c.sigma && c.mlp_gelu && !c.qk_norm && !c.no_shift, "variant");
    check(c.C == 2 && c.side == 4 && c.classes == 3 && c.heads == 6 && c.depth == 12, "size");
    params_allocate(&params, params.table.total, 0, "weights");
    dit_read_weights(&f, path, &params, 0);
    const param_t* last = &params.table.items[params.table.n - 1];
    double got = (double)params_at(&params, last->offset)[1];
    check_error("a weight", fabs(got - (0.001 * params.table.n + 1e-6)), 1e-6);
    params_free(&params);
    safetensors_close(&f);
    temporary_end();
}

// ---------------------------------------------------------------------------------------------------------------------
// Captions

enum { ROWS = 6 };

static dit_config_t caption_config(void) {
    dit_config_t c = plain_config(3);
    c.mmdit = *mmdit_config_find("t2i-nano");
    c.mmdit.text = 5, c.mmdit.vector = 4;
    c.mmdit.C = 5, c.mmdit.h = c.mmdit.w = 4;
    c.text_rows = ROWS;
    c.lr = 1e-2;
    return c;
}

typedef struct {
    floatX text[3 * ROWS * 5], pooled[3 * 4];
    int first[3];
} caption_rows_t;

// Gradients of a random batch of 3 latents of h x w with captions of 6, 5 and 2 rows.
static dit_report_t caption_gradients(dit_t* d, caption_rows_t* in, int h, int w, int64_t step) {
    static const int first[3] = {0, 1, 4};
    floatS host[16];
    dit_set_size(d, h, w);
    for (size_t i = 0; i < 3 * d->n; i++) d->x1[i] = (floatS)test_normal();
    for (int b = 0; b < 3; b++) d->t[b] = (floatS)(0.4 * test_uniform() + 0.5);
    for (int i = 0; i < 3 * ROWS * 5; i++) in->text[i] = (floatX)test_normal();
    for (int i = 0; i < 3 * 4; i++) in->pooled[i] = (floatX)test_normal();
    memcpy(in->first, first, sizeof first);
    d->captions.L = ROWS, d->captions.text = in->text, d->captions.first = in->first, d->captions.pooled = in->pooled;
    dit_gradients(d, step, 0);
    return dit_read(d, host, 0);
}

// The path of one step of the fixture, and its captions: 4, 1 and 3 rows.
static void set_caption_path(dit_t* d, caption_rows_t* in, floatS* const all[5], int step) {
    static const int first[3] = {0, 3, 1};
    const floatS *x1 = all[0] + step * 3 * d->n, *x0 = all[1] + step * 3 * d->n;
    for (size_t i = 0; i < 3 * d->n; i++) {
        floatS t = all[2][step * 3 + i / d->n];
        d->t[i / d->n] = t;
        d->xt[i] = (floatX)(t * x1[i] + (1 - t) * x0[i]);
        d->u[i] = x1[i] - x0[i];
    }
    for (int i = 0; i < 3 * 4 * 5; i++) in->text[i] = (floatX)all[3][step * 3 * 4 * 5 + i];
    for (int i = 0; i < 3 * 4; i++) in->pooled[i] = (floatX)all[4][step * 3 * 4 + i];
    memcpy(in->first, first, sizeof first);
    d->captions.L = 4, d->captions.text = in->text, d->captions.first = in->first, d->captions.pooled = in->pooled;
}

static void test_caption_steps(double bound) {
    static const char* const names[5] = {"input.x1", "input.x0", "input.t", "input.text", "input.pooled"};
    static const mmdit_config_t net = {"fixture", 16, 2, 1, 1, {2, 2, 4}, 5, 4, 0, 3, 3, 2};
    static dit_t d;
    static caption_rows_t in;
    safetensors_t f;
    floatS *all[5], host[7];
    fixture_open(&f, "mmdit_steps");
    dit_config_t config = plain_config(3);
    config.mmdit = net, config.text_rows = 4;
    config.lr = 1e-3, config.warmup = 4, config.decay = 0.1, config.clip = 4;
    make_dit(&d, config);
    fixture_parameters(&f, &d.params);
    params_start_averages(&d.params);
    for (int i = 0; i < 5; i++) all[i] = fixture_tensor(&f, names[i]);
    floatS *mse = fixture_tensor(&f, "output.mse"), *norm = fixture_tensor(&f, "output.gradient_norm");
    int clipped = 0;
    for (int step = 0; step < FIXTURE_STEPS; step++) {
        set_caption_path(&d, &in, all, step);
        dit_gradients_of_path(&d, 0);
        dit_report_t r = dit_read(&d, host, 0);
        check_error("mse", fabs(r.mse / mse[step] - 1), bound);
        check_error("norm", fabs(r.norm / norm[step] - 1), bound);
        clipped += r.norm > 4;
        dit_update(&d, step, r.norm, 0);
    }
    check(clipped > 0 && clipped < FIXTURE_STEPS, "some steps are clipped, some are not");
    check_after(&f, &d.params, bound);
    for (int i = 0; i < 5; i++) free(all[i]);
    free(mse);
    free(norm);
    dit_free(&d);
    safetensors_close(&f);
}

// The loss by hand, from the network's own output; time and velocity in FLUX's direction.
static void check_caption_path(const dit_t* d, const dit_report_t* r) {
    double mse = 0, off = 0;
    for (size_t i = 0; i < 3 * d->n; i++) {
        double t = (double)d->flux_time[i / d->n], v = (double)d->mmdit.v[i], u = (double)d->u[i];
        mse += (v - u) * (v - u) / (double)(3 * d->n);
        off = fmax(off, fabs((double)d->xt[i] - ((double)d->x1[i] + t * u)));
    }
    for (int b = 0; b < 3; b++) check(d->flux_time[b] == 1 - d->t[b], "time 0 is data");
    check_error("xt = data + time velocity", off, 1e-6);
    check_error("the loss", fabs(r->mse / mse - 1), 1e-5);
    check(d->mmdit.in.t == d->flux_time && d->mmdit.N * d->C == (int)d->n, "what the network has seen");
}

static void test_caption_step(void) {
    static dit_t d;
    static caption_rows_t in;
    make_dit(&d, caption_config());
    for (int step = 0; step < 3; step++) { // several sizes with one plan
        dit_report_t r = caption_gradients(&d, &in, 4 - step, 3 + step / 2, step);
        check_caption_path(&d, &r);
        check(isfinite(r.norm) && r.norm > 0, "a gradient");
        dit_update(&d, step, r.norm, 0);
    }
    // the loss falls along the gradient as fast as its norm says
    uint64_t state = test_state.random;
    dit_report_t before = caption_gradients(&d, &in, 3, 4, 7);
    size_t n = params_trained(&d.params);
    double step = 2e-3 / before.norm;
    for (size_t i = 0; i < n; i++) d.params.values[i] -= (floatX)(step / before.norm * d.params.grads[i] / 2);
    test_state.random = state;
    double low = caption_gradients(&d, &in, 3, 4, 7).mse;
    check_error("descent", fabs((before.mse - low) / (step / 2 * before.norm) - 1), 0.05);
    dit_free(&d);
}

// Without a gradient Adam's step is its decay alone.
static void test_caption_decay(void) {
    static dit_t d;
    dit_config_t config = caption_config();
    config.decay = 0.5, config.warmup = 4;
    make_dit(&d, config);
    const params_t* p = &d.params;
    for (size_t i = 0; i < p->table.total; i++) d.params.values[i] = 1;
    dit_update(&d, 1, 0, 0); // half of the warm-up: half of the rate
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        floatX want = t->ndim >= 2 ? (floatX)(1 - 0.5 * 1e-2 * 0.5) : 1;
        for (size_t k = 0; k < t->count; k++) check(p->values[t->offset + k] == want, "matrices decay, vectors do not");
    }
    check(dit_learning_rate(&config, 0) == 1e-2 / 4 && dit_learning_rate(&config, 3) == 1e-2, "warm-up");
    check(dit_learning_rate(&config, 1000) == 1e-2, "and then constant");
    dit_free(&d);
}

static void test_caption_files(void) {
    static dit_t a, b;
    static caption_rows_t in;
    char path[TEMPORARY_PATH], exported[TEMPORARY_PATH];
    safetensors_t f;
    make_dit(&a, caption_config());
    for (int step = 0; step < 4; step++) dit_update(&a, step, caption_gradients(&a, &in, 3, 4, step).norm, 0);
    save_dit(&a, path, "captions");
    dit_config_t config = caption_config();
    config.seed = 6;
    make_dit(&b, config);
    dit_info_t info = dit_open(&f, path);
    check(!strcmp(info.text_encoder, "words") && !strcmp(info.text, "fixed 8 1") && !info.class_names[0], "texts");
    dit_resume(&f, &info, path, &b);
    safetensors_close(&f);
    check_same_state(&a.params, &b.params);
    b.config.seed = a.config.seed;
    uint64_t state = test_state.random;
    double norm = caption_gradients(&a, &in, 4, 4, 4).norm;
    test_state.random = state;
    check(caption_gradients(&b, &in, 4, 4, 4).norm == norm, "the same gradient");
    dit_export(path, temporary_path(exported, "captions_export"), ST_F32);
    info = dit_open(&f, exported);
    mmdit_config_t c = mmdit_file_config(&f);
    check(f.n == a.params.table.n + 2 && !strcmp(info.text, "fixed 8 1"), "what an exported file holds");
    check(c.dim == 32 && c.heads == 2 && c.text == 5 && c.vector == 4 && c.C == 5 && c.axes[2] == 8, "its shapes");
    params_t p;
    mmdit_t net;
    memset(&p, 0, sizeof p);
    memset(&net, 0, sizeof net);
    net.config = c;
    net.config.h = net.config.w = 1;
    mmdit_register(&net, &p.table, "");
    params_allocate(&p, p.table.total, 0, "weights");
    dit_read_weights(&f, exported, &p, 0);
    safetensors_close(&f);
    check(same_floats(p.values, a.params.ema[0], p.table.total), "the averages");
    params_free(&p);
    dit_free(&a);
    dit_free(&b);
}

int main(int argc, char** argv) {
    static const char* const models[4][2] = {{"tiny/1", ""}, {"tiny/2", "Q"}, {"tiny/1", "N"}, {"tiny/2", "GQ"}};
    char name[128];
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("ten steps against PyTorch")) { test_steps(1e-4, 0); test_end_case(); }
    if (test_case("ten steps against PyTorch, recomputing")) { test_steps(1e-4, 1); test_end_case(); }
    if (test_case("a clipped step is that of scaled gradients")) { test_clipping(); test_end_case(); }
    if (test_case("a norm below the bound is not clipped")) { test_not_clipped(); test_end_case(); }
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "saved and resumed, %s %s", models[i][0], models[i][1]);
        if (test_case(name)) { test_resume(models[i][0], models[i][1]); test_end_case(); }
        snprintf(name, sizeof name, "configuration from a file, %s %s", models[i][0], models[i][1]);
        if (test_case(name)) { test_describe(models[i][0], models[i][1]); test_end_case(); }
        snprintf(name, sizeof name, "weights, averages, prefixes, export, %s %s", models[i][0], models[i][1]);
        if (test_case(name)) { test_weights(models[i][0], models[i][1]); test_end_case(); }
    }
    if (test_case("captions: ten steps against PyTorch")) { test_caption_steps(1e-4); test_end_case(); }
    if (test_case("captions: a step's path, loss and gradient")) { test_caption_step(); test_end_case(); }
    if (test_case("captions: decay of matrices, warm-up")) { test_caption_decay(); test_end_case(); }
    if (test_case("captions: saved, resumed, exported")) { test_caption_files(); test_end_case(); }
    if (test_case("refusals")) { test_refusals(); test_end_case(); }
    if (test_case("an average beyond F16 is not exported in it")) { test_huge(); test_end_case(); }
    temporary_end();
    if (test_case("DiT and SiT as published")) { test_classic(); test_end_case(); }
    return test_finish();
}
