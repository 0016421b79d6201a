// The frozen text encoders: T5's and CLIP's against numbers of the originals, a batch against its texts alone, sizes of
// the published models, and their files under all names, whole and in several files. And what joins them with the
// tokenizers: from a caption to rows, and from pictures with captions to scores.

// defines: caption_encoder_t, caption_encoder_options_t, caption_encoder_*
#include "common/models/caption_encoder.h"
// defines: scene_of, scene_caption
#include "common/data/scenes.h"
// defines: clip_input
#include "common/measures/clip_input.h"
// defines: clip_score_*, aesthetic_*, caption_scores_*, pick_mean
#include "common/measures/clip_score.h"
// defines: caption_data_t, caption_data_take, caption_data_check
#include "common/training/caption_data.h"
// defines: prompted_t, prompted_open, prompted_check_same, prompted_close
#include "common/measures/prompted.h"
// defines: t5_t, clip_text_t, clip_image_t, t5_load, clip_load_text, clip_load_image, *_config_of_file
#include "common/models/text_weights.h"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error
#include "tests/test.h"
// defines: fixture_open, fixture_tensor
#include "tests/fixture.h"
// defines: random_buffer (these tests run in double)
#include "tests/gradient.h"
// defines: make_picture
#include "tests/picture.h"
// defines: temporary_begin, temporary_path, temporary_write, check_message
#include "tests/temporary.h"
// defines: blob_t, put_toy
#include "tests/toy_vocabulary.h"

// ---------------------------------------------------------------------------------------------------------------------
// Numbers of the originals

// Value i of tensor k: 0.2 sin(1.7 k + 0.61 i), and 1 more where it scales a norm.
static void fill(floatX* out, size_t n, int k, int norm) {
    for (size_t i = 0; i < n; i++) out[i] = norm + 0.2 * sin(1.7 * k + 0.61 * (double)i);
}

static const t5_config_t small_t5 = {"small", 8, 12, 2, 2, 4, 10};

typedef struct {
    t5_t t5;
    params_t params;
    plan_t plan;
} t5_bed_t;

static void t5_bed_begin(t5_bed_t* bed, t5_config_t config, int B, int T) {
    memset(bed, 0, sizeof *bed);
    bed->t5.config = config;
    t5_register(&bed->t5, &bed->params.table, "");
    params_allocate(&bed->params, bed->params.table.total, 0, "parameters");
    t5_plan(&bed->t5, &bed->plan, B, T);
    plan_allocate(&bed->plan, "activations");
    memset(bed->plan.memory, 0xFF, plan_bytes(&bed->plan)); // NaN
    for (int k = 0; k < bed->params.table.n; k++) {
        const param_t* t = &bed->params.table.items[k];
        fill(bed->params.values + t->offset, t->count, k + 1, strstr(t->name, "norm") != NULL);
    }
}
static void t5_bed_end(t5_bed_t* bed) {
    params_free(&bed->params);
    plan_free(&bed->plan);
}

static void check_values(const char* what, const double* got, const double* want, int n, double bound) {
    for (int i = 0; i < n; i++) {
        check_error(what, fabs(got[i] - want[i]), bound);
        if (!(fabs(got[i] - want[i]) <= bound)) printf("     value %d is %.9f\n", i, got[i]);
    }
}

// The original's softmax is in 32 bits, whatever the weights are in: its numbers are good to a few 1e-8.
#define T5_BOUND 2e-7

static void test_golden_t5(void) {
    if (!test_case("T5: golden values, masked and unmasked")) return;
    static t5_bed_t bed;
    const int ids[6] = {3, 7, 4, 1, 0, 0}, count = 4;
    const double first[4] = {.095316449, -.692596428, -1.300714872, -1.111622378}, fourth[2] = {-.241646546, .667668042};
    const double unmasked[2] = {.022295367, -.717399582};
    t5_bed_begin(&bed, small_t5, 1, 6);
    t5_forward(&bed.t5, &bed.params, ids, &count, 0);
    check(bed.t5.first[0] == 2, "the text is right-aligned");
    check_values("row 0", bed.t5.rows + 2 * 8, first, 4, T5_BOUND);
    check_values("row 3", bed.t5.rows + 5 * 8, fourth, 2, T5_BOUND);
    for (int i = 0; i < 48; i++) check(isfinite(bed.t5.rows[i]), "rows of padding are finite");
    t5_forward(&bed.t5, &bed.params, ids, NULL, 0);
    check_values("unmasked row 0", bed.t5.rows, unmasked, 2, T5_BOUND);
    t5_bed_end(&bed);
    test_end_case();
}

static void test_t5_batch(void) {
    if (!test_case("T5: a batch of texts of several lengths equals each alone")) return;
    static t5_bed_t bed, alone;
    enum { B = 4, T = 37, D = 8 };
    const int counts[B] = {37, 1, 12, 30};
    int ids[B * T];
    for (int i = 0; i < B * T; i++) ids[i] = i * 7 % 10;
    t5_bed_begin(&bed, small_t5, B, T);
    t5_forward(&bed.t5, &bed.params, ids, counts, 0);
    for (int b = 0; b < B; b++) {
        t5_bed_begin(&alone, small_t5, 1, counts[b]);
        t5_forward(&alone.t5, &alone.params, ids + b * T, NULL, 0);
        const double* rows = bed.t5.rows + ((size_t)b * T + T - counts[b]) * D;
        check(bed.t5.first[b] == T - counts[b], "first");
        check_error("rows", relative_error_double(rows, alone.t5.rows, (size_t)counts[b] * D), 1e-12);
        t5_bed_end(&alone);
    }
    t5_bed_end(&bed);
    test_end_case();
}

// The original's buckets, whose logarithms are of 32 bits.
static void test_buckets(void) {
    if (!test_case("T5: buckets of distances")) return;
    for (int d = -700; d <= 700; d++) {
        int size = abs(d), bucket = size;
        if (size >= 8) {
            bucket = 8 + (int)(logf((float)size / 8) / (float)log(16) * 8);
            if (bucket > 15) bucket = 15;
        }
        check(t5_bucket(d) == bucket + (d > 0 ? 16 : 0), "a bucket");
    }
    check(t5_bucket(0) == 0 && t5_bucket(1) == 17 && t5_bucket(-1) == 1 && t5_bucket(100000) == 31, "known ones");
    test_end_case();
}

// As small as CLIP's parts can be: patches of 2 pixels, 3 x 3 of them.
static const clip_config_t small_clip = {
    "small", 5, ACT_QUICK_GELU, 2, 3, 8, 2, 2, 16, 8, 2, 2, 16, 6, 12};

typedef struct {
    clip_text_t text;
    clip_image_t image;
    params_t params;
    plan_t plan;
} clip_bed_t;

// `side` images and texts at once; T numbers a text.
static void clip_bed_begin(clip_bed_t* bed, const clip_config_t* config, int project, int B, int T) {
    memset(bed, 0, sizeof *bed);
    bed->text.project = project;
    clip_register_text(&bed->text, config, &bed->params.table, "text.");
    if (project) clip_register_image(&bed->image, config, &bed->params.table, "image.");
    params_allocate(&bed->params, bed->params.table.total, 0, "parameters");
    clip_plan_text(&bed->text, &bed->plan, B, T);
    if (project) clip_plan_image(&bed->image, &bed->plan, B);
    plan_allocate(&bed->plan, "activations");
    memset(bed->plan.memory, 0xFF, plan_bytes(&bed->plan)); // NaN
    for (size_t i = 0; i < bed->params.table.total; i++) bed->params.values[i] = 0.3 * test_normal();
}
static void clip_bed_end(clip_bed_t* bed) {
    params_free(&bed->params);
    plan_free(&bed->plan);
}

// The original counts weight and bias of queries, keys and values apart.
static void fill_clip(params_t* p) {
    int k = 1;
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        floatX* values = p->values + t->offset;
        int weight = strstr(t->name, "qkv.weight") != NULL, bias = strstr(t->name, "qkv.bias") != NULL;
        if (!weight && !bias) {
            fill(values, t->count, k++, strstr(t->name, "norm") && strstr(t->name, "weight"));
            continue;
        }
        size_t n = t->count / 3;
        for (int third = 0; third < 3; third++) fill(values + third * n, n, k + 2 * third + bias, 0);
        if (bias) k += 6;
    }
}

static void test_golden_clip(void) {
    if (!test_case("CLIP: golden values of the text tower")) return;
    static clip_bed_t bed;
    const int ids[6] = {10, 4, 2, 11, 11, 11}, cut[4] = {10, 4, 2, 11};
    const double pooled[4] = {-1.836096254, .735318777, -.313287430, .936754713};
    clip_bed_begin(&bed, &small_clip, 0, 1, 6);
    fill_clip(&bed.params);
    clip_text_forward(&bed.text, &bed.params, ids, 0);
    check_values("pooled", bed.text.pooled, pooled, 4, 1e-9);
    clip_bed_end(&bed);
    clip_bed_begin(&bed, &small_clip, 0, 1, 4);
    fill_clip(&bed.params);
    clip_text_forward(&bed.text, &bed.params, cut, 0);
    check_values("pooled, without what stands behind the end", bed.text.pooled, pooled, 4, 1e-9);
    clip_bed_end(&bed);
    test_end_case();
}

// transformers' CLIPVisionModelWithProjection on an image of sin(0.7 i + 0.2), in double, with both forms of GELU.
static void test_golden_clip_image(void) {
    if (!test_case("CLIP: golden values of the image tower")) return;
    static clip_image_t image;
    static const double want[2][5] = {{-.192233256, -.922631956, -.115607188, .884059080, .410577613},
                                      {-.193790745, -.924161178, -.114559931, .885937724, .410157174}};
    floatX pixels[6 * 6 * 3];
    for (int i = 0; i < 6 * 6 * 3; i++) pixels[i] = sin(0.7 * i + 0.2);
    for (int exact = 0; exact < 2; exact++) {
        clip_config_t config = small_clip;
        params_t params;
        plan_t plan = {0};
        memset(&params, 0, sizeof params);
        memset(&image, 0, sizeof image);
        config.gelu = exact ? ACT_GELU : ACT_QUICK_GELU;
        clip_register_image(&image, &config, &params.table, "image.");
        params_allocate(&params, params.table.total, 0, "parameters");
        clip_plan_image(&image, &plan, 1);
        plan_allocate(&plan, "activations");
        fill_clip(&params);
        clip_image_forward(&image, &params, pixels, 0);
        check_values("projected", image.projected, want[exact], 5, 1e-9);
        params_free(&params);
        plan_free(&plan);
    }
    test_end_case();
}

// The vectors of a batch are those of each text and image alone; a projection is a product with the pooled row.
static void test_clip_batch(void) {
    if (!test_case("CLIP: a batch of texts and images equals each alone")) return;
    static clip_bed_t bed, alone;
    enum { B = 3, T = 6, S = 6, PIXELS = S * S * 3 };
    const int ids[B * T] = {10, 4, 2, 11, 11, 11, 10, 11, 0, 0, 0, 0, 10, 1, 2, 3, 4, 11};
    double* images = random_buffer(B * PIXELS);
    clip_bed_begin(&bed, &small_clip, 1, B, T);
    check(clip_image_side(&bed.image) == S, "the images' size");
    clip_text_forward(&bed.text, &bed.params, ids, 0);
    clip_image_forward(&bed.image, &bed.params, images, 0);
    clip_bed_begin(&alone, &small_clip, 1, 1, T);
    memcpy(alone.params.values, bed.params.values, bed.params.table.total * sizeof(floatX));
    for (int b = 0; b < B; b++) {
        clip_text_forward(&alone.text, &alone.params, ids + b * T, 0);
        clip_image_forward(&alone.image, &alone.params, images + b * PIXELS, 0);
        check_error("text", relative_error_double(bed.text.projected + b * 5, alone.text.projected, 5), 1e-12);
        check_error("image", relative_error_double(bed.image.projected + b * 5, alone.image.projected, 5), 1e-12);
        for (int e = 0; e < 5; e++) {
            double by_hand = dot(alone.text.pooled, params_at(&alone.params, alone.text.projection) + e * 8, 8);
            check_error("projection", fabs(by_hand - alone.text.projected[e]), 1e-12);
        }
    }
    free(images);
    clip_bed_end(&bed);
    clip_bed_end(&alone);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Sizes

static void test_counts(void) {
    if (!test_case("sizes of the published models")) return;
    static const size_t t5_counts[T5_CONFIGS] = {35332800, 109628544, 341231104, 1223527424, 4762310656};
    static const size_t clip_counts[CLIP_CONFIGS] = {151277313, 149620737, 427616513, 427944193, 986109441, 19809};
    for (int i = 0; i < T5_CONFIGS; i++) {
        static t5_t t;
        param_table_t table = {NULL, 0, 0, 0};
        t.config = t5_configs[i];
        t5_register(&t, &table, "");
        size_t count = param_count(&table, 0, table.total);
        printf("     %-14s %11zu parameters in %d tensors\n", t.config.id, count, table.n);
        check(count == t5_counts[i], "the published number");
        check(i + 1 < T5_CONFIGS || table.n == 219, "XXL's tensors");
        free(table.items);
    }
    for (int i = 0; i < CLIP_CONFIGS; i++) {
        static clip_text_t text;
        static clip_image_t image;
        param_table_t table = {NULL, 0, 0, 0};
        text.project = 1;
        clip_register_text(&text, &clip_configs[i], &table, "text.");
        size_t of_text = param_count(&table, 0, table.total) - (size_t)text.embed * text.blocks.config.dim;
        clip_register_image(&image, &clip_configs[i], &table, "image.");
        size_t count = param_count(&table, 0, table.total) + 1; // the temperature
        printf("     %-14s %11zu parameters, %zu of them the text's without projection\n", clip_configs[i].id, count, of_text);
        check(count == clip_counts[i], "the published number");
        check(i != 2 || of_text == 123060480, "L/14's text tower");
        free(table.items);
    }
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Files

// Writes tensors [begin, end) of a table under `names`, or their own behind `prefix`.
static void write_table(const char* file, const params_t* p, int begin, int end, const char* prefix) {
    char path[TEMPORARY_PATH], name[256];
    st_writer_t w;
    safetensors_writer_init(&w);
    for (int i = begin; i < end; i++) {
        const param_t* t = &p->table.items[i];
        size_t shape[4];
        for (int k = 0; k < t->ndim; k++) shape[k] = (size_t)t->shape[k];
        snprintf(name, sizeof name, "%s%s", prefix, t->name);
        safetensors_writer_tensor(&w, name, ST_F32, t->ndim, shape);
    }
    safetensors_writer_begin(&w, temporary_path(path, file));
    for (int i = begin; i < end; i++) {
        safetensors_writer_data(&w, p->values + p->table.items[i].offset, p->table.items[i].count);
    }
    safetensors_writer_finish_or_die(&w);
}

static void write_index(const char* file, const params_t* p, int middle, const char* prefix, const char* second) {
    json_text_t text = {NULL, 0, 0};
    json_append(&text, "{\"metadata\": {\"total_size\": 7}, \"weight_map\": {");
    for (int i = 0; i < p->table.n; i++) {
        json_append(&text, "%s\"%s%s\": \"%s\"", i ? ", " : "", prefix, p->table.items[i].name,
                    i < middle ? "a.safetensors" : second);
    }
    json_append(&text, "}}");
    temporary_write(file, text.text, text.length);
    json_text_free(&text);
}

static void load_t5(const char* path) {
    static t5_t t;
    params_t params;
    memset(&params, 0, sizeof params);
    t.config = t5_config_of_file(path);
    t5_register(&t, &params.table, "");
    params_allocate(&params, params.table.total, 0, "parameters");
    t5_load(&params, "", path);
    params_free(&params);
}

static void check_same_t5(const t5_bed_t* bed, const char* path) {
    static t5_t t;
    params_t params;
    memset(&params, 0, sizeof params);
    t.config = t5_config_of_file(path);
    const t5_config_t *a = &t.config, *b = &bed->t5.config;
    check(a->dim == b->dim && a->mlp_dim == b->mlp_dim && a->depth == b->depth && a->heads == b->heads &&
          a->head_size == b->head_size && a->vocabulary == b->vocabulary, "sizes");
    t5_register(&t, &params.table, "");
    params_allocate(&params, params.table.total, 0, "parameters");
    t5_load(&params, "", path);
    double error = 0;
    for (size_t i = 0; i < params.table.total; i++) error = fmax(error, fabs(params.values[i] - bed->params.values[i]));
    check_error("weights", error, 1e-6); // files are in float
    params_free(&params);
}

static void test_t5_files(void) {
    if (!test_case("T5: one file, several with an index, a folder; what does not fit")) return;
    static t5_bed_t bed;
    t5_config_t config = small_t5;
    config.mlp_dim = 16;
    t5_bed_begin(&bed, config, 1, 1);
    int n = bed.params.table.n;
    char path[TEMPORARY_PATH];
    write_table("t5.safetensors", &bed.params, 0, n, "");
    check_same_t5(&bed, temporary_path(path, "t5.safetensors"));
    write_table("t5.safetensors", &bed.params, 0, n, "text_encoders.t5.");
    check_same_t5(&bed, temporary_path(path, "t5.safetensors"));
    temporary_mkdir("t5");
    write_table("t5/a.safetensors", &bed.params, 0, 5, "");
    write_table("t5/b.safetensors", &bed.params, 5, n, "");
    write_index("t5/model.safetensors.index.json", &bed.params, 5, "", "b.safetensors");
    check_same_t5(&bed, temporary_path(path, "t5/model.safetensors.index.json"));
    check_same_t5(&bed, temporary_path(path, "t5"));
    write_index("t5/model.safetensors.index.json", &bed.params, 4, "", "b.safetensors");
    check_same_t5(&bed, temporary_path(path, "t5")); // a tensor may be found in another of the files
    write_index("t5/model.safetensors.index.json", &bed.params, 5, "", "c.safetensors");
    check_message(load_t5, temporary_path(path, "t5"), "its file c.safetensors", "cannot be opened");
    write_index("t5/model.safetensors.index.json", &bed.params, 5, "", "../b.safetensors");
    check_message(load_t5, temporary_path(path, "t5"), "lies in another folder", NULL);
    write_index("t5/model.safetensors.index.json", &bed.params, n, "", "b.safetensors");
    check_message(load_t5, temporary_path(path, "t5"), "is not in its file a.safetensors", NULL);
    write_table("t5/b.safetensors", &bed.params, 4, n, "");
    write_index("t5/model.safetensors.index.json", &bed.params, 5, "", "b.safetensors");
    check_message(load_t5, temporary_path(path, "t5"), "stands in two of its files", NULL);
    temporary_write("t5/model.safetensors.index.json", "{\"weight_map\": {}}", 18);
    check_message(load_t5, temporary_path(path, "t5"), "no weight_map with files", NULL);
    temporary_write("t5/model.safetensors.index.json", "{\"weight_map\": {\"a\":", 20);
    check_message(load_t5, temporary_path(path, "t5"), "the text ends", NULL);
    write_table("t5.safetensors", &bed.params, 0, n - 1, "");
    check_message(load_t5, temporary_path(path, "t5.safetensors"), "missing: 1", "encoder.final_layer_norm.weight");
    write_table("t5.safetensors", &bed.params, 0, 2, "");
    check_message(load_t5, temporary_path(path, "t5.safetensors"), "holds no T5 encoder", "T5 v1.1");
    t5_bed_end(&bed);
    test_end_case();
}

static void far_number(const char* unused) {
    static t5_bed_t bed;
    const int ids[1] = {10};
    (void)unused;
    t5_bed_begin(&bed, small_t5, 1, 1);
    t5_forward(&bed.t5, &bed.params, ids, NULL, 0);
}
static void far_clip_number(const char* unused) {
    static clip_bed_t bed;
    const int ids[1] = {-1};
    (void)unused;
    clip_bed_begin(&bed, &small_clip, 0, 1, 1);
    clip_text_forward(&bed.text, &bed.params, ids, 0);
}
static void test_far_numbers(void) {
    if (!test_case("numbers beyond the vocabulary")) return;
    check_message(far_number, "", "number 10 of a text is beyond", "of one model");
    check_message(far_clip_number, "", "number -1 of a text is beyond CLIP's vocabulary of 12", NULL);
    test_end_case();
}

// CLIP's towers under the names of others: `ours` stands for a third of a tensor where `third` is not -1, transposed
// where `flip` is set.
typedef struct { const char *ours, *theirs; int third, flip; } clip_name_t;

static const clip_name_t hugging_face[] = {
    {"text.token_embedding", "text_model.embeddings.token_embedding.weight", -1, 0},
    {"text.pos_embed", "text_model.embeddings.position_embedding.weight", -1, 0},
    {"text.norm.", "text_model.final_layer_norm.", -1, 0},
    {"text.projection", "text_projection.weight", -1, 0},
    {"image.cls_token", "vision_model.embeddings.class_embedding", -1, 0},
    {"image.patch_embed.weight", "vision_model.embeddings.patch_embedding.weight", -1, 0},
    {"image.pos_embed", "vision_model.embeddings.position_embedding.weight", -1, 0},
    {"image.norm_pre.", "vision_model.pre_layrnorm.", -1, 0},
    {"image.norm.", "vision_model.post_layernorm.", -1, 0},
    {"image.projection", "visual_projection.weight", -1, 0}};
static const clip_name_t openai[] = {
    {"text.token_embedding", "token_embedding.weight", -1, 0},
    {"text.pos_embed", "positional_embedding", -1, 0},
    {"text.norm.", "ln_final.", -1, 0},
    {"text.projection", "text_projection", -1, 1},
    {"image.cls_token", "visual.class_embedding", -1, 0},
    {"image.patch_embed.weight", "visual.conv1.weight", -1, 0},
    {"image.pos_embed", "visual.positional_embedding", -1, 0},
    {"image.norm_pre.", "visual.ln_pre.", -1, 0},
    {"image.norm.", "visual.ln_post.", -1, 0},
    {"image.projection", "visual.proj", -1, 1}};
static const clip_name_t hugging_face_block[] = {
    {"norm1.", "layer_norm1.", -1, 0}, {"norm2.", "layer_norm2.", -1, 0}, {"mlp.", "mlp.", -1, 0},
    {"attn.proj.", "self_attn.out_proj.", -1, 0}, {"attn.qkv.", "self_attn.q_proj.", 0, 0},
    {"attn.qkv.", "self_attn.k_proj.", 1, 0}, {"attn.qkv.", "self_attn.v_proj.", 2, 0}};
static const clip_name_t openai_block[] = {
    {"norm1.", "ln_1.", -1, 0}, {"norm2.", "ln_2.", -1, 0}, {"mlp.fc1.", "mlp.c_fc.", -1, 0},
    {"mlp.fc2.", "mlp.c_proj.", -1, 0}, {"attn.proj.", "attn.out_proj.", -1, 0},
    {"attn.qkv.weight", "attn.in_proj_weight", -1, 0}, {"attn.qkv.bias", "attn.in_proj_bias", -1, 0}};

// One tensor under another name: what follows `ours` in its name is carried over.
static void put_clip(st_writer_t* w, int data, const params_t* p, const param_t* t, const char* rest,
                     const char* prefix, const clip_name_t* as) {
    char name[256];
    size_t shape[4], n = as->third >= 0 ? t->count / 3 : t->count;
    for (int k = 0; k < t->ndim; k++) shape[k] = (size_t)t->shape[k];
    if (as->third >= 0) shape[0] /= 3;
    const floatX* values = p->values + t->offset + (as->third > 0 ? as->third * n : 0);
    floatX* flipped = (floatX*)malloc(n * sizeof(floatX));
    for (size_t i = 0, rows = shape[0]; as->flip && i < n; i++) flipped[i] = values[i % rows * shape[1] + i / rows];
    if (as->flip) shape[0] = (size_t)t->shape[1], shape[1] = (size_t)t->shape[0];
    snprintf(name, sizeof name, "%s%s%s", prefix, as->theirs, rest);
    if (data) safetensors_writer_data(w, as->flip ? flipped : values, n);
    else safetensors_writer_tensor(w, name, ST_F32, t->ndim, shape);
    free(flipped);
}

// A file of the whole model with `before` in front of all names; `text` alone leaves the image out, and the text's
// projection too.
static void write_clip(const char* file, const params_t* p, const clip_name_t* names, const clip_name_t* blocks,
                       const char* before, int text) {
    char path[TEMPORARY_PATH], prefix[128];
    st_writer_t w;
    safetensors_writer_init(&w);
    for (int data = 0; data < 2; data++) {
        if (data) safetensors_writer_begin(&w, temporary_path(path, file));
        for (int i = 0; i < p->table.n; i++) {
            const param_t* t = &p->table.items[i];
            int image = !strncmp(t->name, "image.", 6), number = -1, used = 0;
            if (text && (image || strstr(t->name, "projection"))) continue;
            const char* block = strstr(t->name, "blocks.");
            if (block) sscanf(block, "blocks.%d.%n", &number, &used);
            for (int k = 0; k < 10 - 3 * (block != NULL); k++) {
                const clip_name_t* as = block ? &blocks[k] : &names[k];
                const char* own = block ? block + used : t->name;
                if (strncmp(own, as->ours, strlen(as->ours))) continue;
                if (names == openai) snprintf(prefix, sizeof prefix, "%s%stransformer.resblocks.%d.", before,
                                              image ? "visual." : "", number);
                else snprintf(prefix, sizeof prefix, "%s%s.encoder.layers.%d.", before,
                              image ? "vision_model" : "text_model", number);
                put_clip(&w, data, p, t, own + strlen(as->ours), block ? prefix : before, as);
            }
        }
    }
    safetensors_writer_finish_or_die(&w);
}

static void check_same_clip(const clip_bed_t* bed, const char* file, int project) {
    static clip_bed_t read;
    char path[TEMPORARY_PATH];
    double error = 0;
    clip_bed_begin(&read, &small_clip, project, 1, 1);
    clip_load_text(&read.params, "text.", temporary_path(path, file));
    if (project) clip_load_image(&read.params, "image.", path);
    for (int i = 0; i < read.params.table.n; i++) {
        const param_t *t = &read.params.table.items[i], *same = param_find(&bed->params.table, t->name);
        for (size_t k = 0; k < t->count; k++) {
            error = fmax(error, fabs(read.params.values[t->offset + k] - bed->params.values[same->offset + k]));
        }
    }
    check_error(file, error, 1e-6); // files are in float
    clip_bed_end(&read);
}

static void load_unknown_clip(const char* path) { clip_config_of_file(path); }
static void load_small_clip(const char* path) {
    static clip_bed_t bed;
    clip_bed_begin(&bed, &small_clip, 1, 1, 1);
    clip_load_text(&bed.params, "text.", path);
    clip_load_image(&bed.params, "image.", path);
}

static void test_clip_files(void) {
    if (!test_case("CLIP: files under all names; what does not fit")) return;
    static clip_bed_t bed;
    char path[TEMPORARY_PATH];
    clip_bed_begin(&bed, &small_clip, 1, 1, 1);
    write_clip("hugging_face.safetensors", &bed.params, hugging_face, hugging_face_block, "", 0);
    check_same_clip(&bed, "hugging_face.safetensors", 1);
    check_same_clip(&bed, "hugging_face.safetensors", 0); // the text alone, of the whole model
    write_clip("nested.safetensors", &bed.params, hugging_face, hugging_face_block, "clip.", 0);
    check_same_clip(&bed, "nested.safetensors", 1);
    write_clip("text.safetensors", &bed.params, hugging_face, hugging_face_block, "", 1);
    check_same_clip(&bed, "text.safetensors", 0);
    write_clip("openai.safetensors", &bed.params, openai, openai_block, "", 0);
    check_same_clip(&bed, "openai.safetensors", 1);
    check_same_clip(&bed, "openai.safetensors", 0);
    write_clip("state_dict.safetensors", &bed.params, openai, openai_block, "state_dict.", 0);
    check_same_clip(&bed, "state_dict.safetensors", 1);
    temporary_path(path, "openai.safetensors");
    check_message(load_unknown_clip, path, "CLIP of other sizes", "patch 2, 10 position");
    check_message(load_small_clip, temporary_path(path, "text.safetensors"), "missing: 1", "text.projection");
    static t5_bed_t t5;
    t5_bed_begin(&t5, small_t5, 1, 1);
    write_table("t5.safetensors", &t5.params, 0, 5, "");
    check_message(load_small_clip, temporary_path(path, "t5.safetensors"), "holds no text tower of CLIP", NULL);
    t5_bed_end(&t5);
    clip_bed_end(&bed);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// From captions to rows

static caption_encoder_options_t captions_fixed(void) {
    caption_encoder_options_t o = {TEXT_FIXED, "", "", "", "", 16, 1};
    return o;
}

static caption_encoder_options_t captions_t5(char paths[2][TEMPORARY_PATH]) {
    caption_encoder_options_t o = {TEXT_T5, temporary_path(paths[0], "captions_t5.safetensors"),
                                   temporary_path(paths[1], "toy.model"), "", "", 40, 1};
    return o;
}

// A batch equals its captions alone, padding in front and all.
static void check_captions(caption_encoder_t* e, const char* const* captions, int n) {
    text_batch_t batch, alone;
    caption_encoder_batch(e, captions, n, &batch, 0);
    int L = batch.L, dt = e->dt, dv = e->dv;
    double *rows = random_buffer((size_t)n * L * dt), *pooled = random_buffer((size_t)n * (dv + 1));
    int* first = (int*)malloc(n * sizeof(int));
    check(batch.B == n && (L % CAPTION_ROWS_STEP == 0 || L == e->options.length), "the batch's size");
    memcpy(rows, batch.rows, (size_t)n * L * dt * sizeof *rows);
    if (dv) memcpy(pooled, batch.pooled, (size_t)n * dv * sizeof *pooled);
    memcpy(first, batch.first, n * sizeof *first);
    for (int b = 0; b < n; b++) {
        caption_encoder_batch(e, captions + b, 1, &alone, 0);
        int count = L - first[b];
        check(count > 0 && alone.L - alone.first[0] == count, "a caption's length");
        check_error("rows", relative_error_double(rows + ((size_t)b * L + first[b]) * dt,
                    alone.rows + (size_t)alone.first[0] * dt, (size_t)count * dt), 1e-12);
        if (dv) check_error("pooled", relative_error_double(pooled + (size_t)b * dv, alone.pooled, dv), 1e-12);
        for (size_t i = 0; i < (size_t)L * dt; i++) check(isfinite(rows[(size_t)b * L * dt + i]), "padding is finite");
    }
    free(rows);
    free(pooled);
    free(first);
}

static char* repeat(const char* word, int times) {
    size_t length = strlen(word);
    char* text = (char*)malloc(length * times + 1);
    for (int i = 0; i < times; i++) memcpy(text + length * i, word, length);
    text[length * times] = 0;
    return text;
}

static void encode_fixed(const char* caption) {
    caption_encoder_t e;
    text_batch_t batch;
    caption_encoder_options_t o = captions_fixed();
    caption_encoder_open(&e, &o, 2);
    const char* twice[2] = {caption, caption};
    caption_encoder_batch(&e, twice, 2, &batch, 0);
    caption_encoder_close(&e);
}

// What is said of a caption on stderr, in a run that goes on; `times` that often.
static void check_warning(void (*function)(const char*), const char* caption, const char* said, int times) {
    int code = temporary_run_child(function, caption), found = 0;
    char* text = temporary_read("stderr", NULL);
    for (const char* at = text; (at = strstr(at, said)); at++) found++;
    check(code == 0 && found == times, "a warning, as often as it should be");
    if (code || found != times) printf("     exit code %d, said %d times in: %s\n", code, found, text);
    free(text);
}

static void test_fixed_captions(void) {
    if (!test_case("captions: the miniature world's table of words")) return;
    caption_encoder_t e;
    caption_encoder_options_t o = captions_fixed();
    caption_encoder_open(&e, &o, 5);
    const char* const some[5] = {"", "a red circle on a gray background", "Two  RED, circles!", "two red circles",
                                 "red two circles"};
    text_batch_t batch;
    check_captions(&e, some, 5);
    caption_encoder_batch(&e, some, 5, &batch, 0);
    const int counts[5] = {1, 8, 4, 4, 4};
    for (int b = 0; b < 5; b++) check(batch.L == 16 && batch.first[b] == 16 - counts[b], "words and the end");
    const double* row = batch.rows + 2 * 16 * 64;
    check(!memcmp(row, row + 16 * 64, 16 * 64 * sizeof *row), "case, blanks and commas say nothing");
    check(memcmp(row, row + 2 * 16 * 64, 16 * 64 * sizeof *row), "order does");
    check_error("the order of words is not in the vector",
                relative_error_double(batch.pooled + 3 * 64, batch.pooled + 4 * 64, 64), 1e-12);
    const word_rows_t* w = e.words;
    for (int k = 0; k < 64; k++) {
        // two (word 25) red (18) circles (9) and the end: what is before and after the first word, and the second
        int two = WORD_FIRST + 24, red = WORD_FIRST + 17, circles = WORD_FIRST + 8;
        double first = w->table[two][k] + w->before[WORD_PAD][k] + (k >= 32) + w->after[red][k] + w->after[circles][k] / 2 +
                       w->after[WORD_END][k] / 4 + w->after[WORD_PAD][k] / 8;
        double second = w->table[red][k] + w->before[two][k] + w->before[WORD_PAD][k] / 2 + w->waves[1][k] +
                        w->after[circles][k] + w->after[WORD_END][k] / 2 + w->after[WORD_PAD][k] / 4;
        check_error("the first row", fabs(row[12 * 64 + k] - first), 1e-12);
        check_error("the second row", fabs(row[13 * 64 + k] - second), 1e-12);
    }
    char used[WORDS] = "", caption[SCENE_CAPTION], word[WORD_LONGEST];
    int id;
    for (int i = 0; i < 2000; i++) {
        scene_t scene = scene_of(1, (uint64_t)i, SCENES_SIDE, 0);
        for (const char* at = scene_caption(caption, &scene); (id = word_next(&at, word));) {
            check(id >= WORD_FIRST, "a word of a scene is in the table");
            used[id - WORD_FIRST] = 1;
        }
    }
    for (int i = 0; i < WORDS; i++) check(used[i], "each word is used");
    caption_encoder_close(&e);
    char* long_text = repeat("red ", 10000);
    check_warning(encode_fixed, long_text, "longer than the 16 rows", 1);
    free(long_text);
    check_warning(encode_fixed, "a dog, a dog", "\"dog\" is no word", 1);
    check_warning(encode_fixed, "a red \xF0\x9F\x99\x82 \xFF", "is no word", 2);
    check_warning(encode_fixed, "", "warning", 0);
    test_end_case();
}

static void encode_t5(const char* caption) {
    static caption_encoder_t e;
    char paths[2][TEMPORARY_PATH];
    text_batch_t batch;
    caption_encoder_options_t o = captions_t5(paths);
    caption_encoder_open(&e, &o, 1);
    caption_encoder_batch(&e, &caption, 1, &batch, 0);
    check(batch.L == 40 && batch.first[0] == 0 && e.ids[39] == 1, "cut to -text_len, with the mark of the end");
}
static void train_t5(const char* caption) { // the text of a training's step
    static caption_data_t data;
    static dit_t d;
    char paths[2][TEMPORARY_PATH], *captions[1] = {string_copy(caption)};
    bucket_batch_t batch;
    memset(&batch, 0, sizeof batch);
    batch.captions = captions;
    d.config.batch = 1;
    caption_encoder_options_t o = captions_t5(paths);
    caption_encoder_open(&data.encoder, &o, 1);
    caption_data_take(&data, &batch, &d, 0);
    check(d.captions.L == 16 && d.captions.text == data.encoder.t5.rows && !d.captions.pooled, "what the step reads");
    caption_data_check(&data);
}
static void open_captions(const char* change) { // the name of a flag, and its value
    static caption_encoder_t e;
    char paths[2][TEMPORARY_PATH];
    caption_encoder_options_t o = captions_t5(paths);
    const char* value = strchr(change, ' ') + 1;
    if (!strncmp(change, "t5 ", 3)) o.t5 = value;
    else if (!strncmp(change, "t5_vocabulary ", 14)) o.t5_vocabulary = value;
    else o.clip = value, o.clip_vocabulary = value;
    caption_encoder_open(&e, &o, 1);
    caption_encoder_check_widths(&e, 4096, 0, "dit.safetensors");
}
static void take_saved(const char* saved) {
    caption_encoder_options_t o;
    caption_encoder_take_saved(&o, saved, "dit.safetensors");
}

static void test_t5_captions(void) {
    if (!test_case("captions: T5 with its vocabulary; what does not fit")) return;
    static t5_bed_t bed;
    static caption_encoder_t e, whole;
    static blob_t toy;
    char paths[2][TEMPORARY_PATH], name[CAPTION_ENCODER_NAME];
    t5_config_t config = {"small", 8, 16, 2, 2, 4, 14};
    t5_bed_begin(&bed, config, 1, 7);
    write_table("captions_t5.safetensors", &bed.params, 0, bed.params.table.n, "");
    put_toy(&toy, NULL, 0);
    temporary_write("toy.model", toy.bytes, toy.size);
    caption_encoder_options_t o = captions_t5(paths);
    caption_encoder_open(&e, &o, 4);
    check(e.dt == 8 && e.dv == 0, "widths");
    const char* const some[4] = {"abcabc", "", "a \xFF \xF0\x9F\x99\x82", "aaaaaaaaaaaaaaaaaaaaaaaaa"};
    check_captions(&e, some, 4);
    text_batch_t batch;
    caption_encoder_batch(&e, some, 2, &batch, 0);
    const int ids[7] = {7, 10, 4, 10, 1, 0, 0};
    t5_forward(&bed.t5, &bed.params, ids, NULL, 0);
    check(batch.L == 16 && batch.first[0] == 11 && batch.first[1] == 15, "where captions begin");
    int five = 5;
    t5_forward(&bed.t5, &bed.params, ids, &five, 0);
    check_error("T5's rows", relative_error_double(batch.rows + 11 * 8, bed.t5.rows + 2 * 8, 5 * 8), 1e-5);
    snprintf(name, sizeof name, "%s", e.name);
    o.mask = 0;
    o.length = 7;
    caption_encoder_open(&whole, &o, 1);
    caption_encoder_batch(&whole, some, 1, &batch, 0);
    t5_forward(&bed.t5, &bed.params, ids, NULL, 0);
    check(batch.L == 7 && batch.first[0] == 0, "without a mask all rows count");
    check_error("T5's rows", relative_error_double(batch.rows, bed.t5.rows, 7 * 8), 1e-5);
    check(strcmp(name, whole.name) && strstr(name, "at most 40 rows"), "the name tells the encoders apart");
    caption_encoder_options_t again = {TEXT_FIXED, "", "", "", "", 0, 1};
    caption_encoder_take_saved(&again, whole.saved, "x");
    check(again.kind == TEXT_T5 && again.length == 7 && again.mask == 0, "the saved options");
    caption_encoder_close(&whole);
    caption_encoder_close(&e);
    char* long_text = repeat("a ", 10000);
    check_warning(encode_t5, long_text, "longer than the 40 rows", 1);
    free(long_text);
    check(temporary_run_child(train_t5, "abcabc") == 0, "in training");
    check_message(open_captions, "t5 ", "-text t5 needs T5 v1.1's encoder", "-t5");
    check_message(open_captions, "t5_vocabulary /nowhere", "No such file", "spiece.model");
    check_message(open_captions, "none none", "CLIP's weights", "No such file");
    char change[TEMPORARY_PATH + 32];
    snprintf(change, sizeof change, "t5_vocabulary %s", paths[0]);
    check_message(open_captions, change, "spiece.model", NULL);
    snprintf(change, sizeof change, "clip %s", paths[0]);
    check_message(open_captions, change, "holds a CLIP of other sizes", "OpenAI's B/32");
    snprintf(change, sizeof change, "t5 %s", paths[0]);
    check_message(open_captions, change, "reads text rows of 4096 values, and the encoder's have 8", "-t5");
    t5_bed_end(&bed);
    t5_bed_begin(&bed, config, 1, 1);
    bed.params.values[0] = NAN;
    write_table("captions_t5.safetensors", &bed.params, 0, bed.params.table.n, "");
    check_message(encode_t5, "<pad> zz", "makes a NaN", "zz");
    check_message(train_t5, "<pad> zz", "makes a NaN", "zz");
    t5_bed_end(&bed);
    config.vocabulary = 10;
    t5_bed_begin(&bed, config, 1, 1);
    write_table("captions_t5.safetensors", &bed.params, 0, bed.params.table.n, "");
    check_message(open_captions, change, "has 14 pieces", "rows for 10");
    t5_bed_end(&bed);
    check_message(take_saved, "t5 0 1", "is no text encoder of ours", NULL);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Scores of pictures with captions

#define CAPTIONS_FIXTURE "tests/fixtures/captions.safetensors"
enum { SHOTS = 5, SHOT_SIDE = 12 };
static const int shot_sizes[SHOTS][2] = {{12, 12}, {40, 30}, {17, 64}, {9, 7}, {97, 131}}; // height, width
static const char toy_merges[] = "#version: 0.2\na b\nab c</w>\n";

// Both ways of a picture to CLIP against Pillow's and torchvision's. Bytes are equal; floats are summed in another
// order there.
static void test_clip_input(void) {
    if (!test_case("scores: a picture's way to CLIP, by Pillow and by torchvision")) return;
    static double got[SHOT_SIDE * SHOT_SIDE * 3];
    safetensors_t f;
    fixture_open(&f, "captions");
    for (int i = 0; i < SHOTS; i++) {
        image_t image = make_picture(shot_sizes[i][0], shot_sizes[i][1]);
        for (int how = 0; how < 2; how++) {
            char name[64];
            double worst = 0;
            snprintf(name, sizeof name, "answer.%s.%d.%d", how ? "pad" : "crop", image.height, image.width);
            double* want = fixture_tensor(&f, name);
            memset(got, 0xFF, sizeof got);
            clip_input(got, &image, SHOT_SIDE, (clip_input_t)how);
            for (int k = 0; k < SHOT_SIDE * SHOT_SIDE * 3; k++) {
                worst = fmax(worst, fabs((got[k] + 1) / 2 - want[k]));
                if (!isfinite(got[k])) worst = INFINITY;
            }
            check_error(name, worst, how ? 1e-6 : 1e-7);
            free(want);
        }
        image_free(&image);
    }
    safetensors_close(&f);
    test_end_case();
}

// Cosines and the aesthetic score of transformers' CLIPModel, in one batch and one by one.
static void test_scores(void) {
    if (!test_case("scores: cosines and aesthetic score of the originals")) return;
    static clip_score_t net;
    static double pixels[SHOTS * SHOT_SIDE * SHOT_SIDE * 3], images[SHOTS * 12], texts[SHOTS * 12];
    static const char* const captions[4] = {"abc", "A red CIRCLE, on a gray background!", "ab abab don't 42", ""};
    char path[TEMPORARY_PATH], *long_text = repeat("word ", 100);
    aesthetic_t aesthetic;
    safetensors_t f;
    fixture_open(&f, "captions");
    temporary_write("toy_merges.txt", toy_merges, sizeof toy_merges - 1);
    temporary_path(path, "toy_merges.txt");
    double* want_aesthetic = fixture_tensor(&f, "answer.aesthetic");
    for (int how = 0; how < 2; how++) {
        double* want = fixture_tensor(&f, how ? "answer.cosine.pad" : "answer.cosine.crop");
        for (int batch = SHOTS; batch >= 1; batch -= SHOTS - 1) {
            clip_score_open(&net, CAPTIONS_FIXTURE, path, batch);
            aesthetic_open(&aesthetic, CAPTIONS_FIXTURE, 12);
            check_error("the scale", fabs(net.scale - exp(3.25)), 1e-12);
            memset(net.plan.memory, 0xFF, plan_bytes(&net.plan)); // NaN
            for (int i = 0; i < SHOTS; i++) {
                image_t image = make_picture(shot_sizes[i][0], shot_sizes[i][1]);
                clip_input(pixels + i * SHOT_SIDE * SHOT_SIDE * 3, &image, SHOT_SIDE, (clip_input_t)how);
                image_free(&image);
            }
            for (int i = 0; i < SHOTS; i += batch) {
                const char* all[SHOTS] = {captions[0], captions[1], captions[2], captions[3], long_text};
                check(clip_score_images(&net, images + i * 12, pixels + i * SHOT_SIDE * SHOT_SIDE * 3, batch, 0) == batch,
                      "all have a vector");
                check(clip_score_texts(&net, texts + i * 12, all + i, batch, 0) == batch, "all have a vector");
            }
            check(net.cut == 1, "one caption is cut");
            for (int i = 0; i < SHOTS; i++) {
                check_error("cosine", fabs(dot(images + i * 12, texts + i * 12, 12) - want[i]), 1e-6);
                if (how) continue;
                check_error("aesthetic", fabs(aesthetic_score(&aesthetic, images + i * 12) - want_aesthetic[i]), 1e-6);
            }
            aesthetic_close(&aesthetic);
            clip_score_close(&net);
        }
        free(want);
    }
    free(want_aesthetic);
    free(long_text);
    safetensors_close(&f);
    test_end_case();
}

static void write_shot(const char* file, const char* prompt) {
    char path[TEMPORARY_PATH], error[IMAGE_ERROR_SIZE];
    image_t image = make_picture(8, 8);
    image_text_t text = {"Prompt", prompt};
    check(image_write_png(temporary_path(path, file), &image, &text, prompt != NULL, error), error);
    image_free(&image);
}
static void write_words(const char* file, const char* words) { temporary_write(file, words, strlen(words)); }

static void open_prompted(const char* folder) {
    prompted_t p;
    prompted_open(&p, folder);
    prompted_close(&p);
}

// The prompts of a folder, one behind the other.
static void check_prompts(const char* folder, const char* want, size_t distinct) {
    prompted_t p;
    char path[TEMPORARY_PATH], all[400] = "";
    prompted_open(&p, temporary_path(path, folder));
    for (size_t i = 0; i < p.prompts.count; i++) {
        size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, "%s=%s;", path_name(p.pictures.items[i]), p.prompts.items[i]);
    }
    check(!strcmp(all, want) && p.distinct == distinct, "pictures and their prompts");
    if (strcmp(all, want)) printf("     %s\n", all);
    prompted_close(&p);
}

static void pick_folders(const char* folders) { // "A B"
    char first[TEMPORARY_PATH], second[TEMPORARY_PATH], a[32], b[32];
    prompted_t p[2];
    sscanf(folders, "%31s %31s", a, b);
    prompted_open(&p[0], temporary_path(first, a));
    prompted_open(&p[1], temporary_path(second, b));
    prompted_check_same(&p[0], first, &p[1], second);
}

static void test_prompted(void) {
    if (!test_case("scores: folders of pictures with prompts; what does not fit")) return;
    char path[TEMPORARY_PATH];
    temporary_mkdir("plain");
    write_shot("plain/00001_0.png", "two \xC3\xA9");
    write_shot("plain/00000_1.png", "one");
    write_shot("plain/00000_0.png", "one");
    write_shot("plain/other.png", NULL);
    write_words("plain/other.txt", "  with a text\nof two lines \n");
    check_prompts("plain", "00000_0.png=one;00000_1.png=one;00001_0.png=two \xC3\xA9;other.png=with a text of two lines;", 3);
    temporary_mkdir("geneval"), temporary_mkdir("geneval/00000"), temporary_mkdir("geneval/00000/samples");
    temporary_mkdir("geneval/00001"), temporary_mkdir("geneval/00001/samples");
    write_words("geneval/00000/metadata.jsonl", "{\"tag\": \"x\", \"include\": [1], \"prompt\": \"a \\u00e9\"}\n");
    write_words("geneval/00001/metadata.jsonl", "{\"prompt\": \"b\"}");
    write_shot("geneval/00000/samples/0000.png", NULL);
    write_shot("geneval/00000/samples/0001.png", NULL);
    check_message(open_prompted, temporary_path(path, "geneval"), "holds no pictures of its prompt \"b\"", "00001");
    write_shot("geneval/00001/samples/0000.png", "another");
    check_prompts("geneval", "0000.png=a \xC3\xA9;0001.png=a \xC3\xA9;0000.png=b;", 2);
    check_message(pick_folders, "plain geneval", "has 4 pictures and", "the same prompts");
    write_words("geneval/00001/metadata.jsonl", "{\"tag\": \"b\"}");
    check_message(open_prompted, temporary_path(path, "geneval"), "metadata.jsonl", "no \"prompt\"");
    temporary_mkdir("geneval/more");
    check_message(open_prompted, temporary_path(path, "geneval"), "metadata.jsonl", NULL);
    write_words("geneval/00001/metadata.jsonl", "{\"prompt\": \"b\"}");
    check_message(open_prompted, temporary_path(path, "geneval"), "1 of its 3 folders have no metadata.jsonl", NULL);
    temporary_mkdir("second");
    write_shot("second/a.png", "one"), write_shot("second/b.png", "one"), write_shot("second/c.png", "three");
    write_shot("second/d.png", "one");
    check_message(pick_folders, "plain second", "picture 2 of", "three");
    write_words("plain/lonely.txt", "a prompt");
    check_message(open_prompted, temporary_path(path, "plain"), "lonely.txt is a prompt without a picture", NULL);
    write_shot("plain/lonely.png", NULL);
    write_words("plain/lonely.txt", " \n");
    check_message(open_prompted, temporary_path(path, "plain"), "lonely.png: its prompt is empty", NULL);
    write_shot("plain/silent.png", NULL);
    write_words("plain/lonely.txt", "x");
    check_message(open_prompted, temporary_path(path, "plain"), "silent.png has no prompt", "sample");
    temporary_mkdir("empty");
    check_message(open_prompted, temporary_path(path, "empty"), "holds no pictures", NULL);
    check_message(open_prompted, "/nowhere", "is no folder", NULL);
    test_end_case();
}

static void test_pick(void) {
    if (!test_case("scores: PickScore of two systems sums to 1, and leaves out what one of them lacks")) return;
    double read_a[3] = {1, 1, 0}, read_b[3] = {1, 1, 1}, a[3] = {.2, .1, .3}, b[3] = {.1, .3, .1};
    caption_scores_t A = {3, read_a, a, NULL, 0}, B = {3, read_b, b, NULL, 0};
    size_t n;
    double first = pick_mean(&A, &B, 10, &n), second = pick_mean(&B, &A, 10, &n);
    check(n == 2, "pairs");
    check_error("softmax", fabs(first - (exp(2) / (exp(2) + exp(1)) + exp(1) / (exp(1) + exp(3))) / 2), 1e-12);
    check_error("the sum", fabs(first + second - 1), 1e-12);
    check_error("CLIP score", fabs(caption_scores_mean(&A, a, 1) - .15), 1e-12);
    a[1] = -.1;
    check_error("no cosine below zero counts", fabs(caption_scores_mean(&A, a, 1) - .1), 1e-12);
    check_error("in HPSv2 it does", fabs(caption_scores_mean(&A, a, 0) - .05), 1e-12);
    test_end_case();
}

static void open_score(const char* path) {
    static clip_score_t net;
    char merges[TEMPORARY_PATH];
    clip_score_open(&net, path, temporary_path(merges, "toy_merges.txt"), 1);
}
static void open_aesthetic(const char* path) {
    aesthetic_t a;
    aesthetic_open(&a, path, 768);
}

static void test_score_files(void) {
    if (!test_case("scores: files that do not fit")) return;
    static clip_bed_t bed;
    char path[TEMPORARY_PATH];
    clip_bed_begin(&bed, &clip_configs[CLIP_CONFIGS - 1], 1, 1, 1);
    temporary_write("toy_merges.txt", toy_merges, sizeof toy_merges - 1);
    write_clip("text.safetensors", &bed.params, hugging_face, hugging_face_block, "", 1);
    check_message(open_score, temporary_path(path, "text.safetensors"), "missing", "projection");
    write_clip("whole.safetensors", &bed.params, hugging_face, hugging_face_block, "", 0);
    write_words("toy_merges.txt", "#version: 0.2\na b\n");
    check_message(open_score, temporary_path(path, "whole.safetensors"), "has 515 numbers", "rows for 516");
    check_message(open_aesthetic, CAPTIONS_FIXTURE, "scores vectors of 12 values, and those of -clip have 768", "L/14");
    check_message(open_aesthetic, temporary_path(path, "whole.safetensors"), "no layers.0.weight", NULL);
    clip_bed_end(&bed);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    test_golden_t5();
    test_t5_batch();
    test_buckets();
    test_golden_clip();
    test_golden_clip_image();
    test_clip_batch();
    test_counts();
    test_t5_files();
    test_far_numbers();
    test_clip_files();
    test_fixed_captions();
    test_t5_captions();
    test_clip_input();
    test_scores();
    test_prompted();
    test_pick();
    test_score_files();
    temporary_end();
    return test_finish();
}
