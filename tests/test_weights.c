// test_weights.c: public weight files into the parameter table.
//
// A small random ViT is written as each publisher would (names, split or stacked query, key and value, shapes of the
// tokens, tensors that are not wanted), read back and compared bit for bit; so are the plain tables with
// convolutions. Then each way in which a file may not fit must end with its message. The names here are spelled out a
// second time on purpose: they follow the publishers' documented layouts, not the rules that they test. No published
// file is read: none comes with the project.

// defines: weights_load_vit, weights_load_mapped, weights_save, weights_same_names
#include "common/models/weights.h"
// defines: test_begin, test_case, check, check_error, test_uniform
#include "tests/test.h"
// defines: temporary_begin, temporary_path, temporary_write, temporary_run_child, temporary_read, temporary_end
#include "tests/temporary.h"

#ifdef DOUBLE
#define relative_error relative_error_double
#else
#define relative_error relative_error_float
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Models and files to be

typedef struct {
    vit_t vit;
    params_t params;
} model_t;

// Multiples of 1/128 below 1 in size: exact in every float type of a file, and so are their sums and differences.
double coarse(void) { return floor(test_uniform() * 127) / 128; }

void model_make(model_t* m, vit_config_t config, const char* prefix) {
    memset(m, 0, sizeof *m);
    m->vit.config = config;
    vit_register(&m->vit, &m->params.table, prefix);
    params_allocate(&m->params, 0, 0, "parameters");
    for (size_t i = 0; i < m->params.table.total; i++) m->params.values[i] = (floatX)coarse();
}

vit_config_t tiny(const char* id) { return *vit_config_find(id); }
vit_config_t tiny_mae(void) {
    vit_config_t c = tiny("tiny");
    c.layerscale = 0;
    return c;
}

typedef struct {
    char name[128];
    int ndim;
    size_t shape[4], numel;
    floatS* values;
} entry_t;

typedef struct {
    entry_t items[256];
    int n;
} file_t;

entry_t* file_add(file_t* f, const char* name, int ndim, size_t d0, size_t d1, size_t d2, size_t d3) {
    entry_t* e = &f->items[f->n++];
    size_t shape[4] = {d0, d1, d2, d3};
    memset(e, 0, sizeof *e);
    snprintf(e->name, sizeof e->name, "%s", name);
    e->ndim = ndim;
    e->numel = 1;
    for (int i = 0; i < ndim; i++) e->numel *= e->shape[i] = shape[i];
    e->values = (floatS*)malloc_check(e->numel * sizeof(floatS), name);
    for (size_t i = 0; i < e->numel; i++) e->values[i] = (floatS)coarse();
    return e;
}

// The model's tensor `ours` (third 0, 1, 2 of its rows, or all of it with -1) under the name prefix + format.
__attribute__((format(printf, 6, 7))) void file_put(file_t* f, const model_t* m, const char* ours, int third,
                                                    const char* prefix, const char* format, ...) {
    char name[128];
    size_t used = (size_t)snprintf(name, sizeof name, "%s", prefix);
    va_list args;
    va_start(args, format);
    vsnprintf(name + used, sizeof name - used, format, args);
    va_end(args);
    const param_t* t = param_find(&m->params.table, ours);
    if (!t) fatal("the test asks for %s, which the model does not have", ours);
    size_t s[4] = {0, 0, 0, 0};
    for (int i = 0; i < t->ndim; i++) s[i] = (size_t)t->shape[i];
    if (third >= 0) s[0] /= 3;
    entry_t* e = file_add(f, name, t->ndim, s[0], s[1], s[2], s[3]);
    const floatX* values = m->params.values + t->offset + (third > 0 ? (size_t)third * e->numel : 0);
    for (size_t i = 0; i < e->numel; i++) e->values[i] = values[i];
}

// Weight and bias at once.
__attribute__((format(printf, 6, 7))) void file_put_pair(file_t* f, const model_t* m, const char* ours, int third,
                                                         const char* prefix, const char* format, ...) {
    static const char* const kinds[2] = {"weight", "bias"};
    char name[128], full[128];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    for (int i = 0; i < 2; i++) {
        snprintf(full, sizeof full, "%s.%s", ours, kinds[i]);
        file_put(f, m, full, third, prefix, "%s.%s", name, kinds[i]);
    }
}

entry_t* file_find(file_t* f, const char* name) {
    for (int i = 0; i < f->n; i++) {
        if (!strcmp(f->items[i].name, name)) return &f->items[i];
    }
    fatal("the test asks for %s, which it has not put into its file", name);
}

void file_remove(file_t* f, const char* name) {
    entry_t* e = file_find(f, name);
    free(e->values);
    *e = f->items[--f->n];
}

void file_rename(file_t* f, const char* from, const char* to) { snprintf(file_find(f, from)->name, 128, "%s", to); }

// The position table with a row for the class token in front, and a class token that lacks it.
void file_unfold_class_position(file_t* f, const char* cls, const char* pos) {
    entry_t* token = file_find(f, cls);
    entry_t* old = file_find(f, pos);
    entry_t kept = *old;
    size_t D = token->numel, rows = kept.numel / D;
    *old = f->items[--f->n];
    token = file_find(f, cls);
    entry_t* table = file_add(f, pos, 3, 1, rows + 1, D, 0);
    memcpy(table->values + D, kept.values, kept.numel * sizeof(floatS));
    for (size_t i = 0; i < D; i++) token->values[i] -= table->values[i];
    free(kept.values);
}

void file_write(const file_t* f, const char* name, st_dtype_t dtype) {
    char path[TEMPORARY_PATH];
    st_writer_t w;
    safetensors_writer_init(&w);
    safetensors_writer_metadata(&w, "format", "pt");
    for (int i = 0; i < f->n; i++) {
        safetensors_writer_tensor(&w, f->items[i].name, dtype, f->items[i].ndim, f->items[i].shape);
    }
    safetensors_writer_begin(&w, temporary_path(path, name));
    for (int i = 0; i < f->n; i++) {
        if (st_dtype_is_float(dtype)) safetensors_writer_data(&w, f->items[i].values, f->items[i].numel);
        else safetensors_writer_raw(&w, f->items[i].values, f->items[i].numel * st_dtype_info(dtype).bits / 8);
    }
    safetensors_writer_finish_or_die(&w);
}

void file_free(file_t* f) {
    for (int i = 0; i < f->n; i++) free(f->items[i].values);
    f->n = 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// The formats

void put_timm(file_t* f, const model_t* m, const char* prefix) {
    for (int i = 0; i < m->params.table.n; i++) {
        file_put(f, m, m->params.table.items[i].name, -1, prefix, "%s", m->params.table.items[i].name);
    }
}

void put_hf_attention(file_t* f, const model_t* m, const char* prefix, int i) {
    static const char* const names[3] = {"query", "key", "value"};
    char ours[64];
    snprintf(ours, sizeof ours, "blocks.%d.attn.qkv", i);
    for (int k = 0; k < 3; k++) {
        file_put_pair(f, m, ours, k, prefix, "encoder.layer.%d.attention.attention.%s", i, names[k]);
    }
    snprintf(ours, sizeof ours, "blocks.%d.attn.proj", i);
    file_put_pair(f, m, ours, -1, prefix, "encoder.layer.%d.attention.output.dense", i);
}

// What the two ViTs of Hugging Face have in common.
void put_hf_frame(file_t* f, const model_t* m, const char* prefix) {
    file_put(f, m, "cls_token", -1, prefix, "embeddings.cls_token");
    file_put(f, m, "pos_embed", -1, prefix, "embeddings.position_embeddings");
    file_put_pair(f, m, "patch_embed.proj", -1, prefix, "embeddings.patch_embeddings.projection");
    file_put_pair(f, m, "norm", -1, prefix, "layernorm");
}

void put_hf_dinov2(file_t* f, const model_t* m, const char* prefix) {
    char ours[64], name[128];
    put_hf_frame(f, m, prefix);
    snprintf(name, sizeof name, "%sembeddings.mask_token", prefix);
    file_add(f, name, 2, 1, (size_t)m->vit.config.dim, 0, 0);
    if (m->vit.config.registers) file_put(f, m, "reg_token", -1, prefix, "embeddings.register_tokens");
    for (int i = 0; i < m->vit.config.depth; i++) {
        put_hf_attention(f, m, prefix, i);
        for (int k = 1; k <= 2; k++) {
            snprintf(ours, sizeof ours, "blocks.%d.norm%d", i, k);
            file_put_pair(f, m, ours, -1, prefix, "encoder.layer.%d.norm%d", i, k);
            snprintf(ours, sizeof ours, "blocks.%d.mlp.fc%d", i, k);
            file_put_pair(f, m, ours, -1, prefix, "encoder.layer.%d.mlp.fc%d", i, k);
            snprintf(ours, sizeof ours, "blocks.%d.ls%d.gamma", i, k);
            file_put(f, m, ours, -1, prefix, "encoder.layer.%d.layer_scale%d.lambda1", i, k);
        }
    }
}

void put_hf_mae(file_t* f, const model_t* m, const char* prefix) {
    char ours[64];
    put_hf_frame(f, m, prefix);
    for (int i = 0; i < m->vit.config.depth; i++) {
        put_hf_attention(f, m, prefix, i);
        static const char* const names[4][2] = {{"norm1", "layernorm_before"}, {"norm2", "layernorm_after"},
                                                {"mlp.fc1", "intermediate.dense"}, {"mlp.fc2", "output.dense"}};
        for (int k = 0; k < 4; k++) {
            snprintf(ours, sizeof ours, "blocks.%d.%s", i, names[k][0]);
            file_put_pair(f, m, ours, -1, prefix, "encoder.layer.%d.%s", i, names[k][1]);
        }
    }
    file_add(f, "decoder.decoder_embed.weight", 2, 4, (size_t)m->vit.config.dim, 0, 0);
}

void put_hf_siglip(file_t* f, const model_t* m) {
    const char* prefix = "vision_model.";
    static const char* const projections[3] = {"q_proj", "k_proj", "v_proj"};
    char ours[64];
    size_t D = (size_t)m->vit.config.dim;
    file_put_pair(f, m, "patch_embed.proj", -1, prefix, "embeddings.patch_embedding");
    file_put(f, m, "pos_embed", -1, prefix, "embeddings.position_embedding.weight");
    entry_t* pos = file_find(f, "vision_model.embeddings.position_embedding.weight");
    pos->ndim = 2; // without the leading 1
    pos->shape[0] = pos->shape[1];
    pos->shape[1] = D;
    file_put_pair(f, m, "norm", -1, prefix, "post_layernorm");
    for (int i = 0; i < m->vit.config.depth; i++) {
        snprintf(ours, sizeof ours, "blocks.%d.attn.qkv", i);
        for (int k = 0; k < 3; k++) {
            file_put_pair(f, m, ours, k, prefix, "encoder.layers.%d.self_attn.%s", i, projections[k]);
        }
        snprintf(ours, sizeof ours, "blocks.%d.attn.proj", i);
        file_put_pair(f, m, ours, -1, prefix, "encoder.layers.%d.self_attn.out_proj", i);
        for (int k = 1; k <= 2; k++) {
            snprintf(ours, sizeof ours, "blocks.%d.norm%d", i, k);
            file_put_pair(f, m, ours, -1, prefix, "encoder.layers.%d.layer_norm%d", i, k);
            snprintf(ours, sizeof ours, "blocks.%d.mlp.fc%d", i, k);
            file_put_pair(f, m, ours, -1, prefix, "encoder.layers.%d.mlp.fc%d", i, k);
        }
    }
    file_add(f, "vision_model.head.probe", 3, 1, 1, D, 0);
    file_add(f, "vision_model.embeddings.position_ids", 2, 1, 9, 0, 0);
    file_add(f, "text_model.encoder.layers.0.mlp.fc1.weight", 2, 5, 6, 0, 0);
    file_add(f, "logit_scale", 1, 1, 0, 0, 0);
    file_add(f, "logit_bias", 1, 1, 0, 0, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Loading what fits

static file_t file; // the one file of the test that runs

// Writes the file, reads it into a second model behind another prefix and compares all tensors.
void check_loads(const model_t* m, st_dtype_t dtype) {
    char path[TEMPORARY_PATH], name[160];
    model_t loaded;
    file_write(&file, "model.safetensors", dtype);
    model_make(&loaded, m->vit.config, "encoder.model.");
    memset(loaded.params.values, 0xFF, loaded.params.table.total * sizeof(floatX));
    weights_load_vit(&loaded.params, &loaded.vit.config, "encoder.model.", temporary_path(path, "model.safetensors"));
    for (int i = 0; i < m->params.table.n; i++) {
        const param_t* want = &m->params.table.items[i];
        snprintf(name, sizeof name, "encoder.model.%s", want->name);
        const param_t* got = param_find(&loaded.params.table, name);
        const floatX* a = loaded.params.values + got->offset;
        const floatX* b = m->params.values + want->offset;
        check_error(want->name, relative_error(a, b, want->count), 0);
    }
    params_free(&loaded.params);
    file_free(&file);
}

void test_timm(void) {
    model_t m;
    model_make(&m, tiny("tiny"), "");
    put_timm(&file, &m, "");
    file_add(&file, "head.weight", 2, 10, 24, 0, 0);
    check_loads(&m, ST_F32);
    put_timm(&file, &m, "model.encoder."); // within a larger model
    file_add(&file, "model.decoder.conv_in.weight", 4, 2, 3, 3, 3);
    check_loads(&m, ST_F32);
    put_timm(&file, &m, "");
    entry_t* cls = file_find(&file, "cls_token");
    cls->ndim = 1;
    cls->shape[0] = 24;
    entry_t* gamma = file_find(&file, "blocks.1.ls2.gamma");
    gamma->ndim = 3;
    gamma->shape[0] = gamma->shape[1] = 1;
    gamma->shape[2] = 24;
    check_loads(&m, ST_F32);
    params_free(&m.params);
    model_make(&m, tiny("tiny-siglip"), "");
    put_timm(&file, &m, "");
    file_add(&file, "attn_pool.latent", 3, 1, 1, 24, 0);
    file_add(&file, "attn_pool.mlp.fc1.weight", 2, 48, 24, 0, 0);
    check_loads(&m, ST_F32);
    params_free(&m.params);
}

void test_registers(void) {
    model_t m;
    model_make(&m, tiny("tiny-reg"), "");
    put_timm(&file, &m, ""); // timm's own, already converted
    check_loads(&m, ST_F32);
    put_timm(&file, &m, ""); // facebook
    file_rename(&file, "reg_token", "register_tokens");
    file_unfold_class_position(&file, "cls_token", "pos_embed");
    file_add(&file, "mask_token", 2, 1, 24, 0, 0);
    check_loads(&m, ST_F32);
    put_hf_dinov2(&file, &m, "dinov2_with_registers.");
    file_unfold_class_position(&file, "dinov2_with_registers.embeddings.cls_token",
                               "dinov2_with_registers.embeddings.position_embeddings");
    check_loads(&m, ST_F32);
    params_free(&m.params);
}

void test_facebook(void) {
    model_t m;
    model_make(&m, tiny("tiny"), ""); // without registers the class token's position stays in its row
    put_timm(&file, &m, "");
    file_add(&file, "mask_token", 2, 1, 24, 0, 0);
    check_loads(&m, ST_F32);
    params_free(&m.params);
    model_make(&m, tiny_mae(), "");
    put_timm(&file, &m, "");
    file_add(&file, "mask_token", 3, 1, 1, 16, 0);
    file_add(&file, "decoder_pos_embed", 3, 1, 10, 16, 0);
    file_add(&file, "decoder_blocks.0.attn.qkv.weight", 2, 48, 16, 0, 0);
    check_loads(&m, ST_F32);
    params_free(&m.params);
}

void test_hugging_face(void) {
    model_t m;
    model_make(&m, tiny("tiny"), "");
    put_hf_dinov2(&file, &m, "");
    check_loads(&m, ST_F32);
    put_hf_dinov2(&file, &m, "dinov2.");
    file_add(&file, "classifier.weight", 2, 10, 48, 0, 0);
    check_loads(&m, ST_F32);
    params_free(&m.params);
    model_make(&m, tiny_mae(), "");
    put_hf_mae(&file, &m, "");
    check_loads(&m, ST_F32);
    put_hf_mae(&file, &m, "vit.");
    check_loads(&m, ST_F32);
    params_free(&m.params);
    model_make(&m, tiny("tiny-siglip"), "");
    put_hf_siglip(&file, &m);
    check_loads(&m, ST_F32);
    params_free(&m.params);
}

// Replaces `from` by `to` in the names that hold it.
void file_rename_all(file_t* f, const char* from, const char* to) {
    for (int i = 0; i < f->n; i++) {
        char name[128], *at = strstr(f->items[i].name, from);
        if (!at) continue;
        snprintf(name, sizeof name, "%.*s%s%s", (int)(at - f->items[i].name), f->items[i].name, to, at + strlen(from));
        snprintf(f->items[i].name, sizeof name, "%s", name);
    }
}

// Names since transformers 5, and DINOv2's own training: blocks in chunks, teacher beside student.
void test_newer_names(void) {
    static const char* const attention[4][2] = {{"attention.attention.query", "attention.q_proj"},
                                                {"attention.attention.key", "attention.k_proj"},
                                                {"attention.attention.value", "attention.v_proj"},
                                                {"attention.output.dense", "attention.o_proj"}};
    model_t m, student;
    model_make(&m, tiny("tiny"), "");
    put_hf_dinov2(&file, &m, "dinov2.");
    for (int k = 0; k < 4; k++) file_rename_all(&file, attention[k][0], attention[k][1]);
    check_loads(&m, ST_F32);
    put_timm(&file, &m, "teacher.backbone.");
    file_rename_all(&file, "blocks.0.", "blocks.0.0.");
    file_rename_all(&file, "blocks.1.", "blocks.1.1.");
    file_add(&file, "teacher.dino_head.mlp.0.weight", 2, 3, 24, 0, 0);
    check_loads(&m, ST_F32);
    model_make(&student, tiny("tiny"), "");
    static const char* const places[4][2] = {{"student.backbone.", "teacher.backbone."},
                                             {"state_dict.", "state_dict_ema."},
                                             {"model.", "model_ema."},
                                             {"ema.", "student."}};
    for (int k = 0; k < 4; k++) {
        put_timm(&file, k == 3 ? &m : &student, places[k][0]);
        put_timm(&file, k == 3 ? &student : &m, places[k][1]);
        check_loads(&m, ST_F32);
    }
    put_timm(&file, &m, "module._orig_mod.");
    check_loads(&m, ST_F32);
    params_free(&student.params);
    params_free(&m.params);
    model_make(&m, tiny_mae(), "");
    put_hf_mae(&file, &m, "vit.");
    for (int k = 0; k < 4; k++) file_rename_all(&file, attention[k][0], attention[k][1]);
    file_rename_all(&file, "encoder.layer.", "layers.");
    file_rename_all(&file, "intermediate.dense", "mlp.fc1");
    file_rename_all(&file, "output.dense", "mlp.fc2");
    check_loads(&m, ST_F32);
    params_free(&m.params);
    model_make(&m, tiny("tiny-siglip"), "");
    put_hf_siglip(&file, &m); // and the vision tower alone
    for (int i = file.n; i--;) {
        if (strncmp(file.items[i].name, "vision_model.", 13)) file_remove(&file, file.items[i].name);
    }
    file_rename_all(&file, "vision_model.", "");
    check_loads(&m, ST_F32);
    params_free(&m.params);
}

// The vectors of zeros that stand for biases which the model lacks; a stacked one is not zero for the keys.
entry_t* file_add_zeros(file_t* f, const char* name, size_t n) {
    entry_t* e = file_add(f, name, 1, n, 0, 0, 0);
    int stacked = strstr(name, "qkv") != NULL;
    for (size_t i = 0; i < n; i++) e->values[i] = stacked && i >= n / 3 && i < n / 3 * 2 ? 0.5f : 0;
    return e;
}

void put_facebook_dinov3(file_t* f, const model_t* m) {
    char name[64];
    put_timm(f, m, "");
    file_rename(f, "reg_token", "storage_tokens");
    file_add(f, "mask_token", 2, 1, 24, 0, 0);
    file_add(f, "rope_embed.periods", 1, 2, 0, 0, 0);
    file_add(f, "local_cls_norm.weight", 1, 24, 0, 0, 0);
    for (int i = 0; i < 2; i++) {
        file_rename_all(f, "gamma_1", "ls1.gamma");
        file_rename_all(f, "gamma_2", "ls2.gamma");
        snprintf(name, sizeof name, "blocks.%d.attn.qkv.bias", i);
        file_add_zeros(f, name, 72);
        snprintf(name, sizeof name, "blocks.%d.attn.qkv.bias_mask", i);
        file_add(f, name, 1, 72, 0, 0, 0);
    }
}

void put_hf_dinov3(file_t* f, const model_t* m, const char* prefix) {
    static const char* const parts[3] = {"q", "k", "v"};
    static const char* const mlp[2] = {"up", "down"};
    char ours[64], name[128];
    file_put(f, m, "cls_token", -1, prefix, "embeddings.cls_token");
    file_put(f, m, "reg_token", -1, prefix, "embeddings.register_tokens");
    file_put_pair(f, m, "patch_embed.proj", -1, prefix, "embeddings.patch_embeddings");
    file_put_pair(f, m, "norm", -1, prefix, "norm");
    snprintf(name, sizeof name, "%sembeddings.mask_token", prefix);
    file_add(f, name, 3, 1, 1, 24, 0);
    for (int i = 0; i < m->vit.config.depth; i++) {
        for (int k = 0; k < 3; k++) {
            snprintf(ours, sizeof ours, "blocks.%d.attn.qkv.weight", i);
            file_put(f, m, ours, k, prefix, "layer.%d.attention.%s_proj.weight", i, parts[k]);
            snprintf(name, sizeof name, "%slayer.%d.attention.%s_proj.bias", prefix, i, parts[k]);
            if (k != 1) file_add_zeros(f, name, 24);
        }
        snprintf(ours, sizeof ours, "blocks.%d.attn.proj", i);
        file_put_pair(f, m, ours, -1, prefix, "layer.%d.attention.o_proj", i);
        for (int k = 1; k <= 2; k++) {
            snprintf(ours, sizeof ours, "blocks.%d.norm%d", i, k);
            file_put_pair(f, m, ours, -1, prefix, "layer.%d.norm%d", i, k);
            snprintf(ours, sizeof ours, "blocks.%d.mlp.fc%d", i, k);
            file_put_pair(f, m, ours, -1, prefix, "layer.%d.mlp.%s_proj", i, mlp[k - 1]);
            snprintf(ours, sizeof ours, "blocks.%d.gamma_%d", i, k);
            file_put(f, m, ours, -1, prefix, "layer.%d.layer_scale%d.lambda1", i, k);
        }
    }
}

void test_dinov3(void) {
    model_t m;
    model_make(&m, tiny("tiny-rope"), "");
    put_timm(&file, &m, "");
    check_loads(&m, ST_F32);
    put_timm(&file, &m, "model.");
    file_add_zeros(&file, "model.blocks.0.attn.q_bias", 24);
    file_add_zeros(&file, "model.blocks.1.attn.v_bias", 24);
    check_loads(&m, ST_F32);
    put_facebook_dinov3(&file, &m);
    check_loads(&m, ST_F32);
    put_hf_dinov3(&file, &m, "");
    check_loads(&m, ST_F32);
    put_hf_dinov3(&file, &m, "dinov3_vit.");
    check_loads(&m, ST_F32);
    params_free(&m.params);
}

// A table of positions of another grid gives its positions again where the tokens have that grid.
void test_position_grid(const char* id, int grid) {
    enum { D = 24 };
    char path[TEMPORARY_PATH];
    model_t m, loaded;
    model_make(&m, tiny(id), "");
    int row = m.vit.config.cls, own = m.vit.config.pos_class, n = grid * grid;
    put_timm(&file, &m, "");
    file_remove(&file, "pos_embed");
    entry_t* table = file_add(&file, "pos_embed", 3, 1, (size_t)(n + row), D, 0);
    file_write(&file, "grid.safetensors", ST_F32);
    model_make(&loaded, m.vit.config, "");
    weights_load_vit(&loaded.params, &loaded.vit.config, "", temporary_path(path, "grid.safetensors"));
    floatX* out = (floatX*)malloc_check((size_t)(n + 1) * D * sizeof(floatX), "positions");
    const floatX* pos = loaded.params.values + param_find(&loaded.params.table, "pos_embed")->offset;
    position_resample_forward(out, pos, own, m.vit.config.pos_grid, grid, grid, D, 0);
    const floatS* want = table->values + (row - own) * D;
    if (grid < m.vit.config.pos_grid) check_error(id, relative_error(out, want, (size_t)(n + own) * D), 2e-6);
    else check(relative_error(out, want, (size_t)(n + own) * D) < 0.9, "a larger table is only approached");
    for (int d = 0; d < D && row && !own; d++) { // the position of the class token is part of it
        const floatX* cls = loaded.params.values + param_find(&loaded.params.table, "cls_token")->offset;
        check_error("cls", fabs(cls[d] - file_find(&file, "cls_token")->values[d] - table->values[d]), 1e-6);
    }
    free(out);
    params_free(&loaded.params);
    params_free(&m.params);
    file_free(&file);
}

// DINOv2's table, 37 x 37, from one of 16 x 16.
void test_position_table(void) {
    enum { G = 37, SMALL = 16, D = 3 };
    static floatS table[SMALL * SMALL * D], large[G * G * D];
    static floatX pos[G * G * D], out[SMALL * SMALL * D];
    for (int i = 0; i < SMALL * SMALL * D; i++) table[i] = (floatS)coarse();
    position_table_resample(large, table, SMALL, G, D);
    for (int i = 0; i < G * G * D; i++) pos[i] = (floatX)large[i];
    position_resample_forward(out, pos, 0, G, SMALL, SMALL, D, 0);
    check_error("16 x 16", relative_error(out, table, SMALL * SMALL * D), 2e-6);
}

void test_types(void) {
    static const st_dtype_t types[4] = {ST_F64, ST_F32, ST_F16, ST_BF16};
    model_t m;
    model_make(&m, tiny("tiny"), "");
    for (int i = 0; i < 4; i++) {
        put_hf_dinov2(&file, &m, "");
        check_loads(&m, types[i]);
    }
    params_free(&m.params);
}

// ---------------------------------------------------------------------------------------------------------------------
// Plain tables and saving

void table_make(params_t* p, const char* prefix) {
    memset(p, 0, sizeof *p);
    param_conv(&p->table, prefix, "conv_in.weight", 5, 3, 2, init_normal(0, 1));
    param_vector(&p->table, prefix, "conv_in.bias", 5, init_normal(0, 1));
    param_conv(&p->table, prefix, "mid.attn.q.weight", 4, 6, 1, init_normal(0, 1));
    param_matrix(&p->table, "other.", "weight", 3, 4, init_normal(0, 1));
    params_allocate(p, p->table.total, 0, "parameters");
    for (size_t i = 0; i < p->table.total; i++) p->values[i] = (floatX)coarse();
}

void test_save(void) {
    char path[TEMPORARY_PATH];
    params_t p, q;
    table_make(&p, "decoder.");
    table_make(&q, "first_stage.");
    weights_save(&p, "decoder.", temporary_path(path, "decoder.safetensors"), "model.decoder.");
    safetensors_t f;
    safetensors_open_or_die(&f, path);
    const st_tensor_t* t = safetensors_find(&f, "model.decoder.conv_in.weight");
    check(f.n == 3, "the chosen tensors alone");
    check(t && t->ndim == 4 && t->shape[0] == 5 && t->shape[1] == 3 && t->shape[3] == 2, "shape of a convolution");
    const char* format = safetensors_metadata(&f, "format");
    check(format && !strcmp(format, "pt"), "metadata that PyTorch libraries ask for");
    floatS values[60];
    safetensors_read(t, values);
    int same = 1;
    for (int o = 0; o < 5; o++) {
        for (int k = 0; k < 4; k++) {
            for (int c = 0; c < 3; c++) same &= values[(o * 3 + c) * 4 + k] == p.values[(o * 4 + k) * 3 + c];
        }
    }
    check(same, "convolutions are (OC, C, K, K) in the file");
    safetensors_close(&f);
    floatX kept = q.values[param_find(&q.table, "other.weight")->offset];
    weights_load_mapped(&q, "first_stage.", path, "model.decoder.", weights_same_names);
    for (int i = 0; i < 3; i++) {
        const param_t* a = &p.table.items[i];
        check_error(a->name, relative_error(q.values + a->offset, p.values + a->offset, a->count), 0);
    }
    check(q.values[param_find(&q.table, "other.weight")->offset] == kept, "tensors of another prefix are left alone");
    params_free(&p);
    params_free(&q);
}

// A 1x1 convolution may come as a matrix.
void test_squeezed(void) {
    char path[TEMPORARY_PATH];
    params_t p;
    table_make(&p, "");
    file_add(&file, "conv_in.weight", 4, 5, 3, 2, 2);
    file_add(&file, "conv_in.bias", 1, 5, 0, 0, 0);
    file_add(&file, "other.weight", 2, 3, 4, 0, 0);
    entry_t* q = file_add(&file, "mid.attn.q.weight", 2, 4, 6, 0, 0);
    file_write(&file, "plain.safetensors", ST_F32);
    weights_load_mapped(&p, "", temporary_path(path, "plain.safetensors"), "", weights_same_names);
    const floatX* loaded = p.values + param_find(&p.table, "mid.attn.q.weight")->offset;
    check_error("matrix", relative_error(loaded, q->values, 24), 0);
    file_free(&file);
    params_free(&p);
}

void test_vgg(void) {
    static const int layers[13] = {0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28};
    static const int slices[13] = {1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5};
    char path[TEMPORARY_PATH], name[128];
    params_t p;
    memset(&p, 0, sizeof p);
    for (int i = 0; i < 13; i++) {
        snprintf(name, sizeof name, "net.slice%d.%d.", slices[i], layers[i]);
        param_vector(&p.table, name, "bias", 4, init_constant(0));
        snprintf(name, sizeof name, "features.%d.bias", layers[i]);
        file_add(&file, name, 1, 4, 0, 0, 0);
    }
    param_vector(&p.table, "lin0.", "model.1.weight", 7, init_constant(0)); // the heads have a file of their own
    param_vector(&p.table, "lin1.", "model.1.weight", 3, init_constant(0));
    file_add(&file, "classifier.6.weight", 2, 3, 5, 0, 0);
    params_allocate(&p, p.table.total, 0, "parameters");
    file_write(&file, "vgg.safetensors", ST_F32);
    char both[2 * TEMPORARY_PATH];
    file_t heads;
    memset(&heads, 0, sizeof heads);
    file_add(&heads, "lin0.model.1.weight", 4, 1, 7, 1, 1);
    file_add(&heads, "lin1.model.1.weight", 4, 1, 3, 1, 1);
    file_write(&heads, "heads.safetensors", ST_F32);
    int length = snprintf(both, sizeof both, "%s,", temporary_path(path, "vgg.safetensors"));
    snprintf(both + length, sizeof both - (size_t)length, "%s", temporary_path(path, "heads.safetensors"));
    weights_load_lpips(&p, both);
    for (int i = 0; i < 13; i++) {
        check_error(file.items[i].name, relative_error(p.values + p.table.items[i].offset, file.items[i].values, 4), 0);
    }
    for (int i = 0; i < 2; i++) {
        check_error("heads", relative_error(p.values + p.table.items[13 + i].offset, heads.items[i].values, 3), 0);
    }
    file_free(&heads);
    file_free(&file);
    params_free(&p);
}

// ---------------------------------------------------------------------------------------------------------------------
// Refusing what does not fit

// Loads the named file of the temporary folder into a "tiny" model.
void load_tiny(const char* name) {
    char path[TEMPORARY_PATH];
    model_t m;
    const char* id = strstr(name, "siglip") ? "tiny-siglip" : strstr(name, "reg") ? "tiny-reg" : "tiny";
    if (strstr(name, "rope")) id = "tiny-rope";
    model_make(&m, tiny(id), "encoder.");
    weights_load_vit(&m.params, &m.vit.config, "encoder.", temporary_path(path, name));
}

void load_mini(const char* name) {
    char path[TEMPORARY_PATH];
    model_t m;
    model_make(&m, tiny("mini"), "");
    weights_load_vit(&m.params, &m.vit.config, "", temporary_path(path, name));
}

void load_dinov3(const char* name) {
    char path[TEMPORARY_PATH];
    model_t m;
    model_make(&m, tiny("dinov3-s"), "");
    weights_load_vit(&m.params, &m.vit.config, "", temporary_path(path, name));
}

// The program must end with exit code 1 and say every one of the texts.
void check_refused(void (*load)(const char*), const char* name, const char* a, const char* b, const char* c) {
    const char* texts[3] = {a, b, c};
    check(temporary_run_child(load, name) == 1, "exit code 1");
    char* said = temporary_read("stderr", NULL);
    for (int i = 0; i < 3; i++) {
        if (said && texts[i] && !strstr(said, texts[i])) printf("     it said: %s\n", said);
        check(said && (!texts[i] || strstr(said, texts[i])), texts[i]);
    }
    free(said);
}

void test_missing(void) {
    model_t m;
    model_make(&m, tiny("tiny"), "");
    put_timm(&file, &m, "");
    file_remove(&file, "blocks.1.norm2.bias");
    file_write(&file, "missing.safetensors", ST_F32);
    check_refused(load_tiny, "missing.safetensors", "missing: 1\n      encoder.blocks.1.norm2.bias", "unexpected: 0",
                  "wrong shape: 0");
    file_free(&file);
    put_timm(&file, &m, "");
    for (int i = 0; i < 7; i++) file_remove(&file, m.params.table.items[4 + i].name);
    file_write(&file, "seven.safetensors", ST_F32);
    check_refused(load_tiny, "seven.safetensors", "missing: 7\n", "encoder.blocks.0.attn.proj.weight\n  unexpected",
                  NULL);
    file_free(&file);
    put_hf_dinov2(&file, &m, "");
    file_remove(&file, "encoder.layer.1.attention.attention.key.weight");
    file_write(&file, "third.safetensors", ST_F32);
    check_refused(load_tiny, "third.safetensors", "missing: 1\n", "encoder.blocks.1.attn.qkv.weight (", NULL);
    file_free(&file);
    params_free(&m.params);
}

void test_unexpected(void) {
    model_t m;
    model_make(&m, tiny("tiny"), "");
    put_timm(&file, &m, "");
    file_add(&file, "blocks.0.attn.q_norm.weight", 1, 8, 0, 0, 0);
    file_add(&file, "blocks.2.norm1.weight", 1, 24, 0, 0, 0);
    file_write(&file, "more.safetensors", ST_F32);
    check_refused(load_tiny, "more.safetensors", "missing: 0", "unexpected: 2\n", "blocks.0.attn.q_norm.weight");
    file_free(&file);
    params_free(&m.params);
    model_make(&m, tiny("tiny-reg"), "");
    put_timm(&file, &m, "");
    file_add(&file, "register_tokens", 3, 1, 4, 24, 0);
    file_write(&file, "twice_reg.safetensors", ST_F32);
    check_refused(load_tiny, "twice_reg.safetensors", "unexpected: 1\n", "(a second encoder.reg_token)", NULL);
    file_free(&file);
    params_free(&m.params);
}

void test_wrong_shape(void) {
    model_t m;
    model_make(&m, tiny("tiny"), "");
    put_timm(&file, &m, "");
    file_write(&file, "tiny.safetensors", ST_F32);
    check_refused(load_mini, "tiny.safetensors",
                  "patch 7, depth 2, MLP 56, LayerScale, a class token, 0 registers, 10 position rows, as tiny",
                  "pos_embed is [1, 10, 24], wanted [1, 17, 96]", "unexpected: 0");
    file_free(&file);
    put_hf_dinov2(&file, &m, "");
    file_find(&file, "encoder.layer.0.attention.attention.query.bias")->shape[0] = 12;
    file_find(&file, "encoder.layer.0.attention.attention.query.bias")->numel = 12;
    file_write(&file, "query.safetensors", ST_F32);
    check_refused(load_tiny, "query.safetensors", "missing: 0", "unexpected: 0",
                  "query.bias is [12], wanted a third of [72]");
    file_free(&file);
    params_free(&m.params);
    model_make(&m, tiny("tiny-siglip"), "");
    put_hf_siglip(&file, &m); // the variant for any aspect ratio has a matrix here, with its pixels in another order
    entry_t* patch = file_find(&file, "vision_model.embeddings.patch_embedding.weight");
    patch->ndim = 2;
    patch->shape[1] = 3 * 8 * 8;
    file_write(&file, "siglip_naflex.safetensors", ST_F32);
    check_refused(load_tiny, "siglip_naflex.safetensors", "wrong shape: 1\n", "is [24, 192], wanted [24, 3, 8, 8]",
                  NULL);
    file_free(&file);
    params_free(&m.params);
}

// DINOv2 for DINOv3 and the reverse, another size, and biases that the model does not have.
void test_wrong_dinov3(void) {
    static const char* const biases[3] = {"blocks.0.attn.q_bias", "blocks.1.attn.qkv.bias",
                                          "layer.0.attention.v_proj.bias"};
    model_t m;
    model_make(&m, tiny("tiny-reg"), "");
    put_timm(&file, &m, "");
    file_write(&file, "dinov2_for_rope.safetensors", ST_F32);
    check_refused(load_tiny, "dinov2_for_rope.safetensors", "does not fit the model tiny-rope: it is a timm",
                  "9 position rows, as tiny-reg; give the file", "pos_embed");
    file_free(&file);
    params_free(&m.params);
    model_make(&m, tiny("tiny-rope"), "");
    for (int i = 0; i < 3; i++) {
        if (i == 0) put_timm(&file, &m, "");
        if (i == 1) put_facebook_dinov3(&file, &m);
        if (i == 2) put_hf_dinov3(&file, &m, "");
        file_write(&file, "dinov3.safetensors", ST_F32);
        check_refused(load_tiny, "dinov3.safetensors", "does not fit the model tiny: it is a",
                      "4 registers, 0 position rows, as tiny-rope; give the file", "encoder.pos_embed");
        check_refused(load_dinov3, "dinov3.safetensors", "does not fit the model dinov3-s: it is a",
                      "of width 24, patch 8, depth 2, MLP 56", "as tiny-rope; give the file");
        if (i == 0) file_add_zeros(&file, biases[i], 24);
        file_find(&file, biases[i])->values[23] = 1e-9f;
        file_write(&file, "bias_rope.safetensors", ST_F32);
        check_refused(load_tiny, "bias_rope.safetensors", "missing: 0", "unexpected: 1\n", biases[i]);
        file_free(&file);
    }
    params_free(&m.params);
}

void test_wrong_file(void) {
    model_t m;
    model_make(&m, tiny("tiny"), "");
    put_timm(&file, &m, "encoder.");
    put_timm(&file, &m, "target.");
    file_write(&file, "two.safetensors", ST_F32);
    check_refused(load_tiny, "two.safetensors", "two vision transformers", "encoder.", "target.");
    file_free(&file);
    file_add(&file, "conv1.weight", 4, 2, 3, 3, 3);
    file_write(&file, "resnet.safetensors", ST_F32);
    check_refused(load_tiny, "resnet.safetensors", "no vision transformer", "the first is conv1.weight", "give DINOv2");
    file_free(&file);
    put_timm(&file, &m, "");
    file_write(&file, "integers.safetensors", ST_I32);
    check_refused(load_tiny, "integers.safetensors", "integers.safetensors", "dtype: I32", NULL);
    file_free(&file);
    temporary_write("dinov2_vitl14_pretrain.pth", "PK\3\4", 4);
    check_refused(load_tiny, "dinov2_vitl14_pretrain.pth", "zip archive", "dinov2_vitl14_pretrain.pth", NULL);
    temporary_write("torn.safetensors", "abcdefghij", 10);
    check_refused(load_tiny, "torn.safetensors", "torn.safetensors: ", NULL, NULL);
    check_refused(load_tiny, "absent.safetensors", "absent.safetensors: ", NULL, NULL);
    params_free(&m.params);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("timm files, whole and inside a larger model")) { test_timm(); test_end_case(); }
    if (test_case("registers: timm, facebook and Hugging Face")) { test_registers(); test_end_case(); }
    if (test_case("facebook DINOv2 and MAE")) { test_facebook(); test_end_case(); }
    if (test_case("Hugging Face DINOv2, ViT-MAE and SigLIP")) { test_hugging_face(); test_end_case(); }
    if (test_case("names since transformers 5, chunks, averages, module.")) { test_newer_names(); test_end_case(); }
    if (test_case("DINOv3: timm, facebook and Hugging Face")) { test_dinov3(); test_end_case(); }
    if (test_case("a position table of another grid")) {
        test_position_grid("tiny", 2);
        test_position_grid("tiny", 5);
        test_position_grid("tiny-reg", 2);
        test_position_grid("tiny-siglip", 2);
        test_position_table();
        test_end_case();
    }
    if (test_case("F64, F32, F16 and BF16")) { test_types(); test_end_case(); }
    if (test_case("a plain table, saved and loaded under other names")) { test_save(); test_end_case(); }
    if (test_case("a 1x1 convolution that comes as a matrix")) { test_squeezed(); test_end_case(); }
    if (test_case("LPIPS from torchvision's VGG16 and a file of heads")) { test_vgg(); test_end_case(); }
    if (test_case("refused: missing tensors")) { test_missing(); test_end_case(); }
    if (test_case("refused: unexpected and doubled tensors")) { test_unexpected(); test_end_case(); }
    if (test_case("refused: another configuration")) { test_wrong_shape(); test_end_case(); }
    if (test_case("refused: DINOv2 for DINOv3, another size, a bias")) { test_wrong_dinov3(); test_end_case(); }
    if (test_case("refused: another kind of file")) { test_wrong_file(); test_end_case(); }
    temporary_end();
    return test_finish();
}
