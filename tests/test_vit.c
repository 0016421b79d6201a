// test_vit.c: the vision transformer against numbers from elsewhere, and against itself.
//
//   golden      four small models whose parameters are a hash of the index; features and gradient norms were computed
//               in double by an independent transcription that agrees with timm's VisionTransformer under autograd
//   fixtures    tests/fixtures/vit_*.safetensors: timm's own outputs and gradients for every parameter
//   itself      inference, recomputation and accumulation give what they must; the gradient of one weight by chunk
//   low rank    vit_lora.safetensors: PEFT's pairs on timm's ViT; masks of dropout; merged weights
//   sizes       parameters, tensors and multiply-accumulates of every public model
//
// Look next at tests/test_vit_gradient.c, the finite differences.

// defines: vit_t, vit_register, vit_plan, vit_plan_work, vit_forward, vit_backward, vit_last_fc2_gradient, vit_macs;
// lora_config_t, lora_draw, lora_merge, vit_register_lora
#include "common/models/vit.h"
// defines: safetensors_t, safetensors_open_or_die, safetensors_find, safetensors_read, safetensors_metadata
#include "common/files/safetensors.h"
// defines: test_begin, test_case, check, check_error, test_normal
#include "tests/test.h"
// defines: temporary_begin, check_message, temporary_end
#include "tests/temporary.h"

#ifdef DOUBLE
#define relative_error relative_error_double
#else
#define relative_error relative_error_float
#endif

// ---------------------------------------------------------------------------------------------------------------------
// A model with its memory

typedef struct {
    vit_t vit;
    params_t params;
    plan_t plan;
    size_t pixels, features; // sizes of image and output
    floatX* image;
    floatX* dfeatures;
} model_t;

// All activations are poisoned, so that a number that was never written shows. With low-rank pairs these alone are
// trained.
void model_make_lora(model_t* m, vit_config_t config, lora_config_t lora, int B, int H, int W, int factor, int train,
                     int recompute, int fold) {
    memset(m, 0, sizeof *m);
    m->vit.config = config;
    m->vit.lora.config = lora;
    m->vit.recompute = recompute;
    m->vit.fold = fold;
    vit_register(&m->vit, &m->params.table, "");
    size_t first = train && !lora.rank ? 0 : m->params.table.total;
    if (lora.rank) vit_register_lora(&m->vit, &m->params.table, "");
    params_allocate(&m->params, first, 0, "parameters");
    vit_plan(&m->vit, &m->plan, B, H, W, factor, train);
    vit_plan_folded(&m->vit, &m->plan);
    vit_plan_work(&m->vit, &m->plan);
    m->pixels = (size_t)B * H * W * 3;
    m->features = (size_t)B * m->vit.GH * m->vit.GW * config.dim;
    plan_floatX(&m->plan, &m->image, m->pixels, "image");
    plan_floatX(&m->plan, &m->dfeatures, m->features, "dfeatures");
    plan_allocate(&m->plan, "activations");
    memset(m->plan.memory, 0xFF, plan_bytes(&m->plan)); // a NaN in every type
}

void model_make(model_t* m, vit_config_t config, int B, int H, int W, int factor, int train, int recompute, int fold) {
    lora_config_t none = {0, 0, 0};
    model_make_lora(m, config, none, B, H, W, factor, train, recompute, fold);
}

void model_free(model_t* m) {
    params_free(&m->params);
    plan_free(&m->plan);
}

static inline int ends_with(const char* name, const char* end) {
    size_t a = strlen(name), b = strlen(end);
    return a >= b && !strcmp(name + a - b, end);
}

// Random parameters, image and upstream gradient; the same numbers for the same case.
void model_randomise(model_t* m) {
    for (int i = 0; i < m->params.table.n; i++) {
        const param_t* t = &m->params.table.items[i];
        int scale = strstr(t->name, "norm") && ends_with(t->name, "weight");
        double base = scale ? 1 : strstr(t->name, "gamma") ? 0.5 : 0, amplitude = t->ndim >= 2 ? 0.3 : 0.1;
        floatX* values = m->params.values + t->offset;
        for (size_t j = 0; j < t->count; j++) values[j] = (floatX)(base + amplitude * test_normal());
    }
    for (size_t i = 0; i < m->pixels; i++) m->image[i] = (floatX)test_uniform();
    for (size_t i = 0; i < m->features; i++) m->dfeatures[i] = (floatX)test_normal();
}

void model_copy(model_t* to, const model_t* from) {
    memcpy(to->params.values, from->params.values, from->params.table.total * sizeof(floatX));
    memcpy(to->image, from->image, from->pixels * sizeof(floatX));
    memcpy(to->dfeatures, from->dfeatures, from->features * sizeof(floatX));
}

// ---------------------------------------------------------------------------------------------------------------------
// Golden numbers

double golden_value(uint32_t k, uint32_t i) {
    uint32_t u = i * 2654435761u + k * 40503u + 12345u;
    u ^= u >> 16;
    u *= 0x45d9f3bu;
    u ^= u >> 16;
    return u / 2147483648.0 - 1;
}

void golden_fill(model_t* m) {
    for (int k = 0; k < m->params.table.n; k++) {
        const param_t* t = &m->params.table.items[k];
        double base = 0, amplitude = 0.3;
        if (ends_with(t->name, "bias")) {
            amplitude = 0.1;
        } else if (strstr(t->name, "norm")) {
            base = 1;
            amplitude = 0.1;
        } else if (ends_with(t->name, "gamma")) {
            base = 0.5;
            amplitude = 0.1;
        }
        for (size_t i = 0; i < t->count; i++) {
            m->params.values[t->offset + i] = (floatX)(base + amplitude * golden_value((uint32_t)k, (uint32_t)i));
        }
    }
    uint32_t H = (uint32_t)m->vit.H, W = (uint32_t)m->vit.W;
    for (uint32_t i = 0; i < m->pixels; i++) { // numbered as (B, 3, H, W)
        uint32_t x = i % W, y = i / W % H, c = i / (W * H) % 3, b = i / (3 * W * H);
        m->image[((b * H + y) * W + x) * 3 + c] = (floatX)golden_value(1000, i);
    }
    for (uint32_t i = 0; i < m->features; i++) m->dfeatures[i] = (floatX)golden_value(2000, i);
}

enum { GOLDEN_NORMS = 20 };
static const char* const golden_norm_names[GOLDEN_NORMS] = {
    "cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "blocks.0.norm1.weight",
    "blocks.0.norm1.bias", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "blocks.0.attn.proj.weight",
    "blocks.0.attn.proj.bias", "blocks.0.ls1.gamma", "blocks.0.norm2.weight", "blocks.0.mlp.fc1.weight",
    "blocks.0.mlp.fc2.weight", "blocks.0.ls2.gamma", "blocks.1.attn.qkv.weight", "norm.weight", "norm.bias", ""};

typedef struct {
    const char* name;
    vit_config_t config;
    int H, W, tensors;
    double features[3], sum, squares; // F[0,0,0,0], F[0,0,0,1], F[1,last,last,7]; sum of F and of its squares
    double norms[GOLDEN_NORMS];       // |gradient|, in the order of golden_norm_names; 0 where there is no such tensor
    double first[2];                  // first element of the gradient of pos_embed and of patch_embed.proj.weight
} golden_t;

static const golden_t golden_cases[4] = {
    {"golden A: class token, LayerScale",
     {"A", 14, 8, 2, 2, 32, 1, 0, 1, 5, 1, ACT_GELU, NORMALISE_NONE, 1, 1e-6}, 42, 56, 34,
     {-1.321833, -0.341828, -1.321974}, -1.789470, 191.260958,
     {0.110562, 0, 2.513816, 54.829348, 4.317312, 0.169656, 0.451765, 0.901756, 1.058253, 0.778781, 2.092765, 0.193990,
      0.354818, 2.728389, 2.478012, 0.811451, 0.661104, 7.270119, 8.460413, 0},
     {-0.043741, -0.629777}},
    {"golden B: registers without positions",
     {"B", 14, 8, 2, 2, 32, 1, 4, 0, 5, 1, ACT_GELU, NORMALISE_NONE, 1, 1e-6}, 42, 56, 35,
     {0.632270, 0.668864, 0.853310}, -4.939816, 192.846165,
     {0.185791, 0.325287, 2.454501, 54.851308, 3.993052, 0.130822, 0.466380, 0.939018, 1.281287, 0.815369, 2.269208,
      0.254961, 0.418128, 3.523458, 2.907473, 0.713153, 0.989712, 8.506668, 8.460413, 0},
     {-0.041157, -0.528063}},
    {"golden C: patch 16, no LayerScale",
     {"C", 16, 8, 2, 2, 32, 1, 0, 1, 3, 0, ACT_GELU, NORMALISE_NONE, 1, 1e-6}, 64, 80, 30,
     {0.714938, 2.065712, -0.256004}, -11.439340, 337.659996,
     {0.168373, 0, 3.338145, 68.964748, 4.089238, 0.202599, 0.800715, 1.384858, 2.055403, 1.061315, 3.831165, 0,
      1.250327, 5.533986, 5.225930, 0, 1.673276, 7.967902, 7.515088, 0},
     {-0.061676, 0.211901}},
    {"golden D: no prefix tokens, tanh GELU",
     {"D", 16, 8, 2, 2, 32, 0, 0, 0, 3, 0, ACT_GELU_TANH, NORMALISE_NONE, 1, 1e-6}, 48, 48, 29,
     {-0.054416, -0.414388, 0.084058}, 4.327202, 144.353630,
     {0, 0, 2.863216, 44.758801, 2.422539, 0.565906, 0.532831, 1.890426, 1.219802, 1.585648, 2.402033, 0,
      0.798374, 4.177469, 5.173961, 0, 1.416525, 5.732221, 6.040466, 0},
     {0.170495, -0.441893}},
};

// The numbers are given to 6 decimals (half a unit: 5e-7). A float computation adds its own rounding.
void check_golden(const char* what, double got, double want) {
    double bound = sizeof(floatX) == 8 ? 1.2e-6 : 5e-6;
    double size = fabs(want) > 0.5 ? fabs(want) : 0.5;
    check_error(what, fabs(got - want) / size, bound);
}

void test_golden(const golden_t* g) {
    model_t m;
    model_make(&m, g->config, 2, g->H, g->W, g->config.patch, 1, 0, 0);
    golden_fill(&m);
    check(m.params.table.n == g->tensors, "number of tensors");
    vit_forward(&m.vit, &m.params, m.image, 0);
    vit_backward(&m.vit, &m.params, m.dfeatures, 0);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < m.features; i++) {
        sum += m.vit.features[i];
        squares += (double)m.vit.features[i] * m.vit.features[i];
    }
    check_golden("first feature", m.vit.features[0], g->features[0]);
    check_golden("second feature", m.vit.features[1], g->features[1]);
    check_golden("last feature", m.vit.features[m.features - 1], g->features[2]);
    check_golden("sum of features", sum, g->sum);
    check_golden("squares of features", squares, g->squares);
    for (int k = 0; k < GOLDEN_NORMS; k++) {
        if (g->norms[k] == 0) continue;
        const param_t* t = param_find(&m.params.table, golden_norm_names[k]);
        check(t != NULL, golden_norm_names[k]);
        if (!t) continue;
        const floatS* grad = params_grad(&m.params, t->offset);
        double square = 0;
        for (size_t i = 0; i < t->count; i++) square += (double)grad[i] * grad[i];
        check_golden(t->name, sqrt(square), g->norms[k]);
    }
    check_golden("pos_embed[0]", params_grad(&m.params, m.vit.pos_embed)[0], g->first[0]);
    check_golden("patch_embed.proj.weight[0]", params_grad(&m.params, m.vit.patch_weight)[0], g->first[1]);
    model_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// Fixtures: what timm answers (dev/reference/make_fixtures.py; tests/fixtures/README.md)

// Value of "key" in a flat JSON object; true is 1.
double fixture_number(const safetensors_t* f, const char* key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char* text = safetensors_metadata(f, "config");
    const char* at = text ? strstr(text, quoted) : NULL;
    if (!at) fatal("%s: no field %s in its config; make the fixtures again", f->path, key);
    at += strlen(quoted);
    return !strncmp(at, "true", 4) ? 1 : !strncmp(at, "false", 5) ? 0 : atof(at);
}
int fixture_integer(const safetensors_t* f, const char* key) { return (int)fixture_number(f, key); }

vit_config_t fixture_config(const safetensors_t* f) {
    vit_config_t c;
    memset(&c, 0, sizeof c);
    c.id = "fixture";
    c.patch = fixture_integer(f, "patch");
    c.dim = fixture_integer(f, "embed");
    c.depth = fixture_integer(f, "depth");
    c.heads = fixture_integer(f, "heads");
    c.mlp_dim = fixture_integer(f, "mlp");
    c.cls = fixture_integer(f, "class_token");
    c.registers = fixture_integer(f, "registers");
    c.pos_class = fixture_integer(f, "pos_prefix");
    c.pos_grid = fixture_integer(f, "pos_grid");
    c.layerscale = fixture_integer(f, "layerscale");
    c.gelu = strstr(safetensors_metadata(f, "config"), "\"tanh\"") ? ACT_GELU_TANH : ACT_GELU;
    c.normalise = NORMALISE_NONE;
    c.qkv_bias = c.pos_grid > 0;
    c.norm_eps = fixture_number(f, "eps");
    return c;
}

// Element `index` of the tensor that the fixtures' script calls `name`: its hash.
double fixture_hash(const char* name, uint32_t index) {
    uint32_t u = 2166136261u;
    for (const char* c = name; *c; c++) u = (u ^ (unsigned char)*c) * 16777619u;
    u += index * 2654435761u;
    for (int i = 0; i < 2; i++) u = (u ^ u >> 16) * 0x45D9F3Bu;
    u ^= u >> 16;
    return (u >> 8) / 8388608.0 - 1;
}

// The tensor "kind" + "name", converted, or NULL; the caller frees it.
floatS* fixture_tensor(const safetensors_t* f, const char* kind, const char* name, size_t* n) {
    char full[256];
    snprintf(full, sizeof full, "%s%s", kind, name);
    const st_tensor_t* t = safetensors_find(f, full);
    if (!t) return NULL;
    floatS* values = (floatS*)malloc_check(t->numel * sizeof(floatS), full);
    safetensors_read(t, values);
    if (n) *n = t->numel;
    return values;
}

void fixture_parameter(model_t* m, const safetensors_t* f, const param_t* t) {
    size_t n = 0;
    floatS* stored = fixture_tensor(f, "param.", t->name, &n);
    floatS* rule = fixture_tensor(f, "generate.", t->name, NULL);
    floatX* values = m->params.values + t->offset;
    check((stored && n == t->count) || (rule && (size_t)rule[2] == t->count), t->name);
    for (size_t i = 0; i < t->count; i++) {
        values[i] = (floatX)(stored ? stored[i] : (float)(rule[0] + rule[1] * fixture_hash(t->name, (uint32_t)i)));
    }
    free(stored);
    free(rule);
}

// One gradient with the stored whole, or with its samples, norm and projection. Returns 0 where the file has none.
int fixture_gradient(const model_t* m, const safetensors_t* f, const param_t* t, double bound) {
    const floatS* got = params_grad(&m->params, t->offset);
    floatS* whole = fixture_tensor(f, "grad.", t->name, NULL);
    size_t samples = 0;
    floatS* sample = fixture_tensor(f, "gradsample.", t->name, &samples);
    floatS* summary = fixture_tensor(f, "gradcheck.", t->name, NULL);
    int found = whole || (sample && summary);
    if (whole) check_error(t->name, relative_error(got, whole, t->count), bound);
    if (sample && summary) {
        char name[160];
        snprintf(name, sizeof name, "grad.%s", t->name);
        double difference = 0, size = 0, square = 0, projection = 0, norm = summary[1];
        for (size_t i = 0; i < samples; i++) {
            double d = got[i * (size_t)summary[0]] - sample[i];
            difference += d * d;
            size += (double)sample[i] * sample[i];
        }
        for (size_t i = 0; i < t->count; i++) {
            square += (double)got[i] * got[i];
            projection += got[i] * fixture_hash(name, (uint32_t)i);
        }
        check_error(t->name, sqrt(difference / size), bound);
        check_error(t->name, fabs(sqrt(square) - norm) / norm, bound);
        check_error(t->name, fabs(projection - summary[2]) / norm, bound);
    }
    free(whole);
    free(sample);
    free(summary);
    return found;
}

void test_fixture(const char* path) {
    const double bound = 1e-4;
    safetensors_t f;
    safetensors_open_or_die(&f, path);
    vit_config_t config = fixture_config(&f);
    int B = fixture_integer(&f, "batch"), H = fixture_integer(&f, "height"), W = fixture_integer(&f, "width");
    model_t m;
    model_make(&m, config, B, H, W, config.patch, 1, 0, 0);
    for (int i = 0; i < m.params.table.n; i++) fixture_parameter(&m, &f, &m.params.table.items[i]);
    size_t n = 0;
    floatS* image = fixture_tensor(&f, "input.", "image", &n);
    floatS* output = fixture_tensor(&f, "output.", "tokens", NULL);
    floatS* dout = fixture_tensor(&f, "dout.", "tokens", NULL);
    check(image && output && dout && n == m.pixels, "input, output and dout are there");
    if (image && output && dout && n == m.pixels) {
        for (size_t i = 0; i < m.pixels; i++) m.image[i] = (floatX)image[i];
        for (size_t i = 0; i < m.features; i++) m.dfeatures[i] = (floatX)dout[i];
        vit_forward(&m.vit, &m.params, m.image, 0);
        vit_backward(&m.vit, &m.params, m.dfeatures, 0);
        check_error("features", relative_error(m.vit.features, output, m.features), bound);
        int compared = 0;
        int n_tensors = m.params.table.n;
        for (int i = 0; i < n_tensors; i++) compared += fixture_gradient(&m, &f, &m.params.table.items[i], bound);
        check(compared == n_tensors, "every gradient is in the file");
    }
    free(image);
    free(output);
    free(dout);
    model_free(&m);
    safetensors_close(&f);
}

// ---------------------------------------------------------------------------------------------------------------------
// The model against itself

void test_frozen(const char* id, int H, int W) {
    model_t trained, frozen;
    model_make(&trained, *vit_config_find(id), 3, H, W, 8, 1, 0, 0);
    model_make(&frozen, *vit_config_find(id), 3, H, W, 8, 0, 0, 0);
    model_randomise(&trained);
    model_copy(&frozen, &trained);
    vit_forward(&trained.vit, &trained.params, trained.image, 0);
    vit_forward(&frozen.vit, &frozen.params, frozen.image, 0);
    check_error("features", relative_error(frozen.vit.features, trained.vit.features, trained.features), 1e-30);
    size_t bytes = trained.features * sizeof(floatX);
    check(!memcmp(frozen.vit.features, trained.vit.features, bytes), "same bits without train");
    check(plan_bytes(&frozen.plan) * 3 < plan_bytes(&trained.plan) * 2, "less memory without train");
    model_free(&trained);
    model_free(&frozen);
}

// A folded encoder computes the same function, for any number of pixels a token from `patch` on.
void test_folded(const char* id, int factor) {
    model_t plain, folded;
    vit_config_t config = *vit_config_find(id);
    model_make(&plain, config, 2, 3 * factor, 2 * factor, factor, 0, 0, 0);
    model_make(&folded, config, 2, 3 * factor, 2 * factor, factor, 0, 0, 1);
    model_randomise(&plain);
    model_copy(&folded, &plain);
    vit_fold(&folded.vit, &folded.params);
    vit_forward(&plain.vit, &plain.params, plain.image, 0);
    memset(folded.vit.features, 0xFF, folded.features * sizeof(floatX));
    vit_forward(&folded.vit, &folded.params, folded.image, 0);
    check(folded.vit.fold == (factor >= config.patch), "folded, unless the image is to be enlarged");
    check_error("features", relative_error(folded.vit.features, plain.vit.features, plain.features), 1e-5);
    model_free(&plain);
    model_free(&folded);
}

// The other model's work on the shared memory between forward and backward is simulated by poison.
void poison_work(model_t* m) {
    vit_block_t* b = &m->vit.blocks[0];
    size_t rows = (size_t)m->vit.B * m->vit.T;
    floatX* buffers[5] = {b->norm1, b->attention, b->proj, b->norm2, b->fc2};
    for (int i = 0; i < 5; i++) memset(buffers[i], 0xFF, rows * m->vit.config.dim * sizeof(floatX));
    memset(b->qkv, 0xFF, rows * 3 * m->vit.config.dim * sizeof(floatX));
    memset(b->hidden, 0xFF, rows * m->vit.config.mlp_dim * sizeof(floatX));
}

void test_recompute(const char* id) {
    model_t kept, again;
    model_make(&kept, *vit_config_find(id), 3, 24, 32, 8, 1, 0, 0);
    model_make(&again, *vit_config_find(id), 3, 24, 32, 8, 1, 1, 0);
    model_randomise(&kept);
    model_copy(&again, &kept);
    vit_forward(&kept.vit, &kept.params, kept.image, 0);
    vit_forward(&again.vit, &again.params, again.image, 0);
    check(!memcmp(kept.vit.features, again.vit.features, kept.features * sizeof(floatX)), "same features");
    poison_work(&again);
    vit_backward(&kept.vit, &kept.params, kept.dfeatures, 0);
    vit_backward(&again.vit, &again.params, again.dfeatures, 0);
    size_t total = kept.params.table.total;
    check_error("gradients", relative_error(again.params.grads, kept.params.grads, total), 1e-30);
    check(!memcmp(kept.params.grads, again.params.grads, total * sizeof(floatS)), "same bits in all gradients");
    check(plan_bytes(&again.plan) < plan_bytes(&kept.plan), "less memory with recompute");
    model_free(&kept);
    model_free(&again);
}

void test_accumulates(void) {
    model_t m;
    model_make(&m, *vit_config_find("tiny-reg"), 2, 16, 40, 8, 1, 0, 0);
    model_randomise(&m);
    size_t total = m.params.table.total;
    floatS* twice = (floatS*)malloc_check(total * sizeof(floatS), "gradients");
    vit_forward(&m.vit, &m.params, m.image, 0);
    vit_backward(&m.vit, &m.params, m.dfeatures, 0);
    for (size_t i = 0; i < total; i++) twice[i] = 2 * m.params.grads[i];
    vit_backward(&m.vit, &m.params, m.dfeatures, 0);
    for (int i = 0; i < m.params.table.n; i++) {
        const param_t* t = &m.params.table.items[i];
        check_error(t->name, relative_error(m.params.grads + t->offset, twice + t->offset, t->count), 1e-6);
    }
    free(twice);
    model_free(&m);
}

// Each chunk's gradient of the last fc2 is what the whole backward gives when the other chunks' dfeatures are zero.
void test_last_fc2(const char* id, int recompute) {
    enum { B = 4, CHUNK = 2, CHUNKS = 2 };
    model_t m;
    model_make(&m, *vit_config_find(id), B, 16, 24, 8, 1, recompute, 0);
    model_randomise(&m);
    int last = m.vit.config.depth - 1;
    size_t n = (size_t)m.vit.config.dim * m.vit.config.mlp_dim, half = m.features / CHUNKS;
    floatS* dweight = (floatS*)calloc_check(CHUNKS * n, sizeof(floatS), "dweight");
    floatX* dfeatures = (floatX*)malloc_check(m.features * sizeof(floatX), "dfeatures");
    vit_forward(&m.vit, &m.params, m.image, 0);
    if (recompute) poison_work(&m);
    vit_last_fc2_gradient(&m.vit, &m.params, dweight, m.dfeatures, CHUNK, CHUNKS, 0);
    for (int k = 0; k < CHUNKS; k++) {
        for (size_t i = 0; i < m.features; i++) dfeatures[i] = i / half == (size_t)k ? m.dfeatures[i] : 0;
        params_zero_grads(&m.params, 0);
        vit_backward(&m.vit, &m.params, dfeatures, 0);
        const floatS* want = params_grad(&m.params, m.vit.blocks[last].fc2_weight);
        check_error("dweight of a chunk", relative_error(dweight + k * n, want, n), 1e-5);
    }
    floatS* second = dweight + n;
    memset(second, 0xFF, n * sizeof(floatS));
    for (size_t i = half; i < m.features; i++) m.dfeatures[i] = (floatX)NAN; // not to be read
    memset(dweight, 0, n * sizeof(floatS));
    vit_last_fc2_gradient(&m.vit, &m.params, dweight, m.dfeatures, CHUNK, 1, 0);
    check(isfinite(dweight[0]) && dweight[n - 1] != 0 && isnan(second[0]), "one chunk alone");
    free(dweight);
    free(dfeatures);
    model_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------------
// Low-rank pairs

// The weights of `from`, whose pairs are merged into a model that has none.
static void merge_pairs(model_t* to, const model_t* from) {
    const lora_t* l = &from->vit.lora;
    memcpy(to->params.values, from->params.values, to->params.table.total * sizeof(floatX));
    for (int i = 0; i < from->vit.config.depth; i++) {
        const vit_block_t* b = &from->vit.blocks[i];
        const lora_pair_t* pairs[4] = {&b->qkv_lora, &b->proj_lora, &b->fc1_lora, &b->fc2_lora};
        const size_t weights[4] = {b->qkv_weight, b->proj_weight, b->fc1_weight, b->fc2_weight};
        for (int k = 0; k < 4; k++) {
            lora_merge(to->params.values + weights[k], params_at(&from->params, pairs[k]->a),
                       params_at(&from->params, pairs[k]->b), l->config.alpha, pairs[k]->OC, pairs[k]->C,
                       l->config.rank);
        }
    }
}

void test_lora_fixture(const char* path) {
    const double bound = 1e-4;
    safetensors_t f;
    safetensors_open_or_die(&f, path);
    vit_config_t config = fixture_config(&f);
    lora_config_t lora = {fixture_integer(&f, "rank"), fixture_integer(&f, "alpha"),
                          fixture_integer(&f, "dropout_percent") / 100.0};
    int B = fixture_integer(&f, "batch"), H = fixture_integer(&f, "height"), W = fixture_integer(&f, "width");
    model_t m, merged;
    model_make_lora(&m, config, lora, B, H, W, config.patch, 1, 0, 0);
    for (int i = 0; i < m.params.table.n; i++) fixture_parameter(&m, &f, &m.params.table.items[i]);
    floatS *image = fixture_tensor(&f, "input.", "image", NULL), *dout = fixture_tensor(&f, "dout.", "tokens", NULL);
    floatS *output = fixture_tensor(&f, "output.", "tokens", NULL);
    floatS* plain = fixture_tensor(&f, "output.", "eval_tokens", NULL);
    for (size_t i = 0; i < m.pixels; i++) m.image[i] = (floatX)image[i];
    for (size_t i = 0; i < m.features; i++) m.dfeatures[i] = (floatX)dout[i];
    vit_forward(&m.vit, &m.params, m.image, 0);
    check_error("features without dropout", relative_error(m.vit.features, plain, m.features), bound);
    lora_draw(&m.vit.lora, fixture_integer(&f, "seed"), fixture_integer(&f, "step"),
              fixture_integer(&f, "first_image"));
    vit_forward(&m.vit, &m.params, m.image, 0);
    vit_backward(&m.vit, &m.params, m.dfeatures, 0);
    check_error("features with dropout", relative_error(m.vit.features, output, m.features), bound);
    check(relative_error(m.vit.features, plain, m.features) > 1e-2, "dropout does something");
    int compared = 0;
    for (int i = 0; i < m.params.table.n; i++) {
        const param_t* t = &m.params.table.items[i];
        if (t->offset >= m.params.first) compared += fixture_gradient(&m, &f, t, bound);
    }
    check(compared == 4 * 2 * config.depth, "the gradient of every pair is in the file");
    model_make(&merged, config, B, H, W, config.patch, 0, 0, 0);
    memcpy(merged.image, m.image, m.pixels * sizeof(floatX));
    merge_pairs(&merged, &m);
    vit_forward(&merged.vit, &merged.params, merged.image, 0);
    check_error("features with merged weights", relative_error(merged.vit.features, plain, m.features), bound);
    free(image), free(dout), free(output), free(plain);
    model_free(&m);
    model_free(&merged);
    safetensors_close(&f);
}

// Recomputation draws the same masks; so does a pass that holds a part of the images; another step draws others. The
// frozen weights have no gradient, the gradients of the pairs accumulate.
void test_lora(const char* id) {
    lora_config_t lora = {3, 5, 0.3};
    model_t kept, again, part;
    model_make_lora(&kept, *vit_config_find(id), lora, 3, 24, 32, 8, 1, 0, 0);
    model_make_lora(&again, *vit_config_find(id), lora, 3, 24, 32, 8, 1, 1, 0);
    model_make_lora(&part, *vit_config_find(id), lora, 1, 24, 32, 8, 1, 0, 0);
    model_randomise(&kept);
    model_copy(&again, &kept);
    memcpy(part.params.values, kept.params.values, kept.params.table.total * sizeof(floatX));
    memcpy(part.image, kept.image + 2 * part.pixels, part.pixels * sizeof(floatX));
    model_t* both[2] = {&kept, &again};
    for (int i = 0; i < 2; i++) {
        lora_draw(&both[i]->vit.lora, 7, 100, 4);
        vit_forward(&both[i]->vit, &both[i]->params, both[i]->image, 0);
        if (i) poison_work(&again);
        vit_backward(&both[i]->vit, &both[i]->params, both[i]->dfeatures, 0);
    }
    size_t trained = params_trained(&kept.params), bytes = kept.features * sizeof(floatX);
    check(!memcmp(kept.vit.features, again.vit.features, bytes), "recomputed: same features");
    check(!memcmp(kept.params.grads, again.params.grads, trained * sizeof(floatS)), "recomputed: same gradients");
    check(params_grad(&kept.params, kept.vit.blocks[0].qkv_weight) == NULL, "the frozen weights have no gradient");
    floatS* twice = (floatS*)malloc_check(trained * sizeof(floatS), "gradients");
    for (size_t i = 0; i < trained; i++) twice[i] = 2 * kept.params.grads[i];
    vit_backward(&kept.vit, &kept.params, kept.dfeatures, 0);
    check_error("gradients accumulate", relative_error(kept.params.grads, twice, trained), 1e-6);
    lora_draw(&part.vit.lora, 7, 100, 6);
    vit_forward(&part.vit, &part.params, part.image, 0);
    const floatX* third = kept.vit.features + 2 * part.features;
    check_error("an image alone has its own masks", relative_error(part.vit.features, third, part.features), 1e-5);
    lora_draw(&part.vit.lora, 7, 101, 6);
    vit_forward(&part.vit, &part.params, part.image, 0);
    check(relative_error(part.vit.features, third, part.features) > 1e-2, "another step has others");
    free(twice);
    model_free(&kept);
    model_free(&again);
    model_free(&part);
}

// ViT-L/14 with rank 16, and a start at the function that is there.
void test_lora_start(void) {
    vit_t vit;
    param_table_t table;
    memset(&vit, 0, sizeof vit);
    memset(&table, 0, sizeof table);
    vit.config = *vit_config_find("dinov2-l");
    vit.lora.config.rank = 16;
    vit_register_lora(&vit, &table, "");
    check(param_count(&table, 0, table.total) == 6291456 && table.n == 192, "6,291,456 parameters in 192 tensors");
    check(vit.lora.macs == 24 * 16 * (4 * (3 * 1024 + 4096) + 3 * (5 * 1024 + 4096)), "multiply-accumulates a token");
    free(table.items);
    lora_config_t lora = {4, 8, 0.1};
    model_t m, plain;
    model_make_lora(&m, *vit_config_find("tiny-siglip"), lora, 2, 24, 24, 8, 1, 0, 0);
    model_make(&plain, *vit_config_find("tiny-siglip"), 2, 24, 24, 8, 0, 0, 0);
    model_randomise(&plain);
    params_init(&m.params, 5);
    memcpy(m.params.values, plain.params.values, plain.params.table.total * sizeof(floatX));
    memcpy(m.image, plain.image, m.pixels * sizeof(floatX));
    const floatX* a = params_at(&m.params, m.vit.blocks[0].fc2_lora.a);
    double largest = 0, width = m.vit.config.mlp_dim, n = lora.rank * width;
    for (size_t i = 0; i < (size_t)n; i++) largest = fmax(largest, fabs((double)a[i]));
    check(largest <= 1 / sqrt(width) && largest > 0.9 / sqrt(width), "A starts in +-1/sqrt(C)");
    lora_draw(&m.vit.lora, 1, 0, 0);
    vit_forward(&m.vit, &m.params, m.image, 0);
    vit_forward(&plain.vit, &plain.params, plain.image, 0);
    check_error("features at the start", relative_error(m.vit.features, plain.vit.features, m.features), 1e-6);
    model_free(&m);
    model_free(&plain);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sizes

typedef struct {
    const char* id;
    size_t parameters;
    int tensors;
} size_row_t;

static const size_row_t size_rows[] = {
    {"dinov2-l", 304367616, 342},    {"dinov2-l-reg", 304370688, 343}, {"mae-l", 303301632, 294},
    {"siglip2-l", 303361024, 293},   {"dinov2-s", 22056192, 174},      {"dinov2-b", 86579712, 174},
    {"dinov2-s-reg", 22057344, 175}, {"dinov2-b-reg", 86582016, 175},  {"mae-b", 85798656, 150},
    {"siglip2-b", 85843200, 149},    {"dinov3-l", 303079424, 318},     {"dinov3-s", 21586944, 162},
    {"dinov3-b", 85641216, 162}};

void test_sizes(void) {
    for (size_t i = 0; i < sizeof size_rows / sizeof size_rows[0]; i++) {
        vit_t vit;
        param_table_t table;
        memset(&vit, 0, sizeof vit);
        memset(&table, 0, sizeof table);
        vit.config = *vit_config_find(size_rows[i].id);
        vit_register(&vit, &table, "encoder.");
        check(param_count(&table, 0, table.total) == size_rows[i].parameters, size_rows[i].id);
        check(table.n == size_rows[i].tensors, size_rows[i].id);
        check(!strcmp(table.items[0].name, vit.config.cls ? "encoder.cls_token" : "encoder.pos_embed"), "prefix");
        free(table.items);
    }
}

typedef struct {
    const char* id;
    int size;
    double giga, half_unit; // 10^9 multiply-accumulates, published or counted by PyTorch, and half of their last digit
} macs_row_t;

static const macs_row_t macs_rows[] = {
    {"dinov2-l", 256, 81.01, 0.0051},     {"dinov2-l", 512, 361.80, 0.0051},    {"dinov2-l", 1024, 2064.76, 0.0051},
    {"dinov2-s", 256, 6.124, 0.00051},    {"dinov2-b", 256, 23.161, 0.00051},   {"dinov2-l-reg", 256, 82.322, 0.00051},
    {"mae-l", 256, 81.059, 0.00051},      {"siglip2-l", 256, 80.732, 0.00051},
    {"dinov3-s", 256, 6.245, 0.00051},    {"dinov3-b", 256, 23.575, 0.00051},   {"dinov3-l", 256, 82.369, 0.00051}};

void test_macs(void) {
    for (size_t i = 0; i < sizeof macs_rows / sizeof macs_rows[0]; i++) {
        vit_t vit;
        memset(&vit, 0, sizeof vit);
        vit.config = *vit_config_find(macs_rows[i].id);
        double giga = (double)vit_macs(&vit, macs_rows[i].size, macs_rows[i].size, 16) / 1e9;
        check_error(macs_rows[i].id, fabs(giga - macs_rows[i].giga) / macs_rows[i].half_unit, 1);
    }
}

void run_unknown_encoder(const char* id) { vit_config_find(id); }
void run_wrong_size(const char* id) {
    vit_t vit;
    plan_t plan;
    memset(&vit, 0, sizeof vit);
    memset(&plan, 0, sizeof plan);
    vit.config = *vit_config_find(id);
    vit_plan(&vit, &plan, 1, 256, 250, 16, 0);
}

int main(int argc, char** argv) {
    static const char* const fixtures[8] = {"dinov2", "dinov2_reg4", "mae", "siglip2", "mini", "head64", "dinov3",
                                            "dinov3_head64"};
    static const char* const models[4] = {"tiny", "tiny-reg", "tiny-siglip", "tiny-rope"};
    char name[128], path[128];
    test_begin(argc, argv);
    temporary_begin();
    for (int i = 0; i < 4; i++) {
        if (test_case(golden_cases[i].name)) { test_golden(&golden_cases[i]); test_end_case(); }
    }
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "fixture %s against timm", fixtures[i]);
        snprintf(path, sizeof path, "tests/fixtures/vit_%s.safetensors", fixtures[i]);
        if (test_case(name)) { test_fixture(path); test_end_case(); }
    }
    if (test_case("fixture lora against PEFT on timm, and merged")) {
        test_lora_fixture("tests/fixtures/vit_lora.safetensors");
        test_end_case();
    }
    if (test_case("low-rank pairs at the start, and of ViT-L")) { test_lora_start(); test_end_case(); }
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "low-rank pairs: recompute, masks, accumulation, %s", models[i]);
        if (test_case(name)) { test_lora(models[i]); test_end_case(); }
        snprintf(name, sizeof name, "inference equals training, %s", models[i]);
        if (test_case(name)) { test_frozen(models[i], 24, 40); test_end_case(); }
        snprintf(name, sizeof name, "recompute equals keeping, %s", models[i]);
        if (test_case(name)) { test_recompute(models[i]); test_end_case(); }
        snprintf(name, sizeof name, "gradient of the last fc2 by chunk, %s", models[i]);
        if (test_case(name)) { test_last_fc2(models[i], 0); test_last_fc2(models[i], 1); test_end_case(); }
    }
    static const int factors[6] = {7, 8, 9, 10, 14, 6};
    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "folded equals plain, %d pixels for 7", factors[i]);
        if (test_case(name)) { test_folded("tiny-reg", factors[i]); test_folded("tiny", factors[i]); test_end_case(); }
    }
    if (test_case("folded equals plain, no LayerScale")) { test_folded("tiny-siglip", 8); test_end_case(); }
    if (test_case("folded equals plain, rotary positions")) {
        test_folded("tiny-rope", 8);
        test_folded("tiny-rope", 11);
        test_folded("tiny-rope", 7);
        test_end_case();
    }
    if (test_case("inference of a single token, mini")) { test_frozen("mini", 8, 8); test_end_case(); }
    if (test_case("backward accumulates, tiny-reg")) { test_accumulates(); test_end_case(); }
    if (test_case("parameters and tensors of the public models")) { test_sizes(); test_end_case(); }
    if (test_case("multiply-accumulates (error in half units of the last digit)")) { test_macs(); test_end_case(); }
    if (test_case("messages for bad input")) {
        check_message(run_unknown_encoder, "dinov2-xl", "no encoder named 'dinov2-xl'", "dinov2-l-reg, dinov3-s");
        check_message(run_wrong_size, "dinov2-l", "256 x 250", "multiples of 16");
        test_end_case();
    }
    temporary_end();
    return test_finish();
}
