// weights.h: public weight files into a parameter table, and a table into a file.
//
// The same ViT is published under four sets of names. The table of parameters uses timm's; a format below is a list
// of rules "name in the file -> name here", tried from the top:
//
//     {"encoder.layer.{i}.attention.attention.key.*", "blocks.{i}.attn.qkv.*", PART_MIDDLE}
//
// {i} stands for a number and a final * for any rest; both are carried over. A rule may fill a part of a tensor:
// timm stacks the weights of query, key and value, Hugging Face keeps them apart; or a matrix that stands transposed in
// the file. A rule without a name here says that the tensor is known and not wanted (a classifier, the text tower), or
// that it must be zero, since the model here has nothing in its place (DINOv3's biases). Which format a file has shows
// in one tensor, its anchor; what stands before the anchor's name is the prefix of the whole model in that file
// ("dinov2.", "encoder.", ...).
//
// Nothing is half loaded: every tensor of the table must be filled exactly once, by a tensor of the same shape (up to
// dimensions of size 1), and every tensor of the file must be accounted for. Otherwise the program ends with what is
// missing, unexpected and of the wrong shape, and for a ViT also with what the file seems to be.
//
// Two differences are arithmetic (weights_take_positions): facebook and Hugging Face keep a position for the class
// token in models with registers, timm adds it to the class token; and a table of positions of another grid is
// resampled.
//
// A file may be safetensors or PyTorch's own (.pth, .bin), whose nested dictionaries are prefixes: "model.", "ema.".
// Where several models of the kind stand in it, averages and teachers are preferred, and that is said.
// Look next at common/files/tensor_file.h, which opens them, and
// common/models/vit.h, which registers the names.
#pragma once
// defines: params_t, param_t, param_find, params_longest, params_store, params_from_file_order
#include "common/models/params.h"
// defines: safetensors_*, st_tensor_t, st_shape_text
#include "common/files/safetensors.h"
// defines: st_writer_t, safetensors_writer_*
#include "common/files/safetensors_writer.h"
// defines: tensor_file_open_or_die
#include "common/files/tensor_file.h"
// defines: position_table_resample
#include "common/models/position_table.h"
// defines: vit_config_t, vit_configs
#include "common/models/vit.h"

typedef enum {
    PART_WHOLE, PART_FIRST, PART_MIDDLE, PART_LAST,
    PART_TRANSPOSED,
    PART_ZERO, // without a name here: must be zero; of stacked biases those of the keys do not count, which are masked
    PART_SEVENTH_1, PART_SEVENTH_2, PART_SEVENTH_3, PART_SEVENTHS_4_TO_7,
    PART_HALVES_SWAPPED, // whole, its halves in the other order
} weights_part_t;

// Rows `begin` to `begin + length` of every `of`; and the bits that such a part fills of a tensor's eight.
static const struct { int begin, length, of; unsigned char bits; const char* text; } weights_parts[] = {
    {0, 1, 1, 0xFF, ""},
    {0, 1, 3, 0x01, "a third of "}, {1, 1, 3, 0x02, "a third of "}, {2, 1, 3, 0xFC, "a third of "},
    {0, 1, 1, 0xFF, "transposed "},
    {0, 1, 1, 0xFF, ""},
    {0, 1, 7, 0x01, "a seventh of "}, {1, 1, 7, 0x02, "a seventh of "}, {2, 1, 7, 0x04, "a seventh of "},
    {3, 4, 7, 0xF8, "four sevenths of "},
    {0, 1, 1, 0xFF, ""},
};

typedef struct {
    const char* file; // NULL ends a list
    const char* ours; // NULL: known and not wanted, or zero
    weights_part_t part;
} weights_rule_t;

// ---------------------------------------------------------------------------------------------------------------------
// The formats

static const weights_rule_t weights_same_names[] = {{"*", "*", PART_WHOLE}, {NULL, NULL, PART_WHOLE}};

// timm vision_transformer.py; facebookresearch/dinov2 and mae use the same names but for the registers.
static const weights_rule_t weights_timm[] = {
    {"blocks.{i}.{i}.*", "blocks.{i}.*", PART_WHOLE}, // DINOv2's own training: in chunks, and numbered through
    {"register_tokens", "reg_token", PART_WHOLE},
    {"blocks.{i}.attn.q_bias", NULL, PART_ZERO}, // timm's DINOv3 models named ..._qkvb
    {"blocks.{i}.attn.v_bias", NULL, PART_ZERO},
    {"mask_token", NULL, PART_WHOLE},  // of DINOv2's and MAE's own training
    {"decoder_*", NULL, PART_WHOLE},   // MAE's decoder
    {"attn_pool.*", NULL, PART_WHOLE}, // SigLIP's pooling head
    {"head.*", NULL, PART_WHOLE},      // classifiers
    {"head_drop.*", NULL, PART_WHOLE},
    {"fc_norm.*", NULL, PART_WHOLE},
    {"*", "*", PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};

// facebookresearch/dinov3
static const weights_rule_t weights_dinov3[] = {
    {"storage_tokens", "reg_token", PART_WHOLE},
    {"mask_token", NULL, PART_WHOLE},
    {"rope_embed.periods", NULL, PART_WHOLE},           // computed here
    {"blocks.{i}.attn.qkv.bias", NULL, PART_ZERO},
    {"blocks.{i}.attn.qkv.bias_mask", NULL, PART_WHOLE},
    {"blocks.{i}.ls1.gamma", "blocks.{i}.gamma_1", PART_WHOLE},
    {"blocks.{i}.ls2.gamma", "blocks.{i}.gamma_2", PART_WHOLE},
    {"local_cls_norm.*", NULL, PART_WHOLE},             // of its training
    {"*", "*", PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};

// transformers modeling_dinov3_vit.py
static const weights_rule_t weights_hf_dinov3[] = {
    {"embeddings.cls_token", "cls_token", PART_WHOLE},
    {"embeddings.register_tokens", "reg_token", PART_WHOLE},
    {"embeddings.mask_token", NULL, PART_WHOLE},
    {"embeddings.patch_embeddings.*", "patch_embed.proj.*", PART_WHOLE},
    {"layer.{i}.norm1.*", "blocks.{i}.norm1.*", PART_WHOLE},
    {"layer.{i}.attention.q_proj.weight", "blocks.{i}.attn.qkv.weight", PART_FIRST},
    {"layer.{i}.attention.k_proj.weight", "blocks.{i}.attn.qkv.weight", PART_MIDDLE},
    {"layer.{i}.attention.v_proj.weight", "blocks.{i}.attn.qkv.weight", PART_LAST},
    {"layer.{i}.attention.q_proj.bias", NULL, PART_ZERO},
    {"layer.{i}.attention.v_proj.bias", NULL, PART_ZERO},
    {"layer.{i}.attention.o_proj.*", "blocks.{i}.attn.proj.*", PART_WHOLE},
    {"layer.{i}.layer_scale1.lambda1", "blocks.{i}.gamma_1", PART_WHOLE},
    {"layer.{i}.norm2.*", "blocks.{i}.norm2.*", PART_WHOLE},
    {"layer.{i}.mlp.up_proj.*", "blocks.{i}.mlp.fc1.*", PART_WHOLE},
    {"layer.{i}.mlp.down_proj.*", "blocks.{i}.mlp.fc2.*", PART_WHOLE},
    {"layer.{i}.layer_scale2.lambda1", "blocks.{i}.gamma_2", PART_WHOLE},
    {"norm.*", "norm.*", PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};

// transformers modeling_dinov2.py and modeling_dinov2_with_registers.py
static const weights_rule_t weights_hf_dinov2[] = {
    {"embeddings.cls_token", "cls_token", PART_WHOLE},
    {"embeddings.register_tokens", "reg_token", PART_WHOLE},
    {"embeddings.mask_token", NULL, PART_WHOLE},
    {"embeddings.position_embeddings", "pos_embed", PART_WHOLE},
    {"embeddings.patch_embeddings.projection.*", "patch_embed.proj.*", PART_WHOLE},
    {"encoder.layer.{i}.norm1.*", "blocks.{i}.norm1.*", PART_WHOLE},
    {"encoder.layer.{i}.attention.attention.query.*", "blocks.{i}.attn.qkv.*", PART_FIRST},
    {"encoder.layer.{i}.attention.attention.key.*", "blocks.{i}.attn.qkv.*", PART_MIDDLE},
    {"encoder.layer.{i}.attention.attention.value.*", "blocks.{i}.attn.qkv.*", PART_LAST},
    {"encoder.layer.{i}.attention.output.dense.*", "blocks.{i}.attn.proj.*", PART_WHOLE},
    {"encoder.layer.{i}.attention.q_proj.*", "blocks.{i}.attn.qkv.*", PART_FIRST}, // transformers 5
    {"encoder.layer.{i}.attention.k_proj.*", "blocks.{i}.attn.qkv.*", PART_MIDDLE},
    {"encoder.layer.{i}.attention.v_proj.*", "blocks.{i}.attn.qkv.*", PART_LAST},
    {"encoder.layer.{i}.attention.o_proj.*", "blocks.{i}.attn.proj.*", PART_WHOLE},
    {"encoder.layer.{i}.layer_scale1.lambda1", "blocks.{i}.ls1.gamma", PART_WHOLE},
    {"encoder.layer.{i}.norm2.*", "blocks.{i}.norm2.*", PART_WHOLE},
    {"encoder.layer.{i}.mlp.*", "blocks.{i}.mlp.*", PART_WHOLE},
    {"encoder.layer.{i}.layer_scale2.lambda1", "blocks.{i}.ls2.gamma", PART_WHOLE},
    {"layernorm.*", "norm.*", PART_WHOLE},
    {"classifier.*", NULL, PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};

// transformers modeling_vit_mae.py
static const weights_rule_t weights_hf_mae[] = {
    {"embeddings.cls_token", "cls_token", PART_WHOLE},
    {"embeddings.position_embeddings", "pos_embed", PART_WHOLE},
    {"embeddings.patch_embeddings.projection.*", "patch_embed.proj.*", PART_WHOLE},
    {"encoder.layer.{i}.layernorm_before.*", "blocks.{i}.norm1.*", PART_WHOLE},
    {"encoder.layer.{i}.attention.attention.query.*", "blocks.{i}.attn.qkv.*", PART_FIRST},
    {"encoder.layer.{i}.attention.attention.key.*", "blocks.{i}.attn.qkv.*", PART_MIDDLE},
    {"encoder.layer.{i}.attention.attention.value.*", "blocks.{i}.attn.qkv.*", PART_LAST},
    {"encoder.layer.{i}.attention.output.dense.*", "blocks.{i}.attn.proj.*", PART_WHOLE},
    {"encoder.layer.{i}.layernorm_after.*", "blocks.{i}.norm2.*", PART_WHOLE},
    {"encoder.layer.{i}.intermediate.dense.*", "blocks.{i}.mlp.fc1.*", PART_WHOLE},
    {"encoder.layer.{i}.output.dense.*", "blocks.{i}.mlp.fc2.*", PART_WHOLE},
    {"layernorm.*", "norm.*", PART_WHOLE},
    {"decoder.*", NULL, PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};

// the same since transformers 5
static const weights_rule_t weights_hf_mae5[] = {
    {"embeddings.cls_token", "cls_token", PART_WHOLE},
    {"embeddings.position_embeddings", "pos_embed", PART_WHOLE},
    {"embeddings.patch_embeddings.projection.*", "patch_embed.proj.*", PART_WHOLE},
    {"layers.{i}.layernorm_before.*", "blocks.{i}.norm1.*", PART_WHOLE},
    {"layers.{i}.attention.q_proj.*", "blocks.{i}.attn.qkv.*", PART_FIRST},
    {"layers.{i}.attention.k_proj.*", "blocks.{i}.attn.qkv.*", PART_MIDDLE},
    {"layers.{i}.attention.v_proj.*", "blocks.{i}.attn.qkv.*", PART_LAST},
    {"layers.{i}.attention.o_proj.*", "blocks.{i}.attn.proj.*", PART_WHOLE},
    {"layers.{i}.layernorm_after.*", "blocks.{i}.norm2.*", PART_WHOLE},
    {"layers.{i}.mlp.*", "blocks.{i}.mlp.*", PART_WHOLE},
    {"layernorm.*", "norm.*", PART_WHOLE},
    {"decoder.*", NULL, PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};

// transformers modeling_siglip.py; the fixed-size SigLIP 2 checkpoints use it too. The names stand behind
// vision_model., beside those of the text tower, or, in a file of the vision tower alone since transformers 5, as they
// are.
static const weights_rule_t weights_hf_siglip[] = {
    {"embeddings.patch_embedding.*", "patch_embed.proj.*", PART_WHOLE},
    {"embeddings.position_embedding.weight", "pos_embed", PART_WHOLE},
    {"embeddings.position_ids", NULL, PART_WHOLE},
    {"encoder.layers.{i}.layer_norm1.*", "blocks.{i}.norm1.*", PART_WHOLE},
    {"encoder.layers.{i}.self_attn.q_proj.*", "blocks.{i}.attn.qkv.*", PART_FIRST},
    {"encoder.layers.{i}.self_attn.k_proj.*", "blocks.{i}.attn.qkv.*", PART_MIDDLE},
    {"encoder.layers.{i}.self_attn.v_proj.*", "blocks.{i}.attn.qkv.*", PART_LAST},
    {"encoder.layers.{i}.self_attn.out_proj.*", "blocks.{i}.attn.proj.*", PART_WHOLE},
    {"encoder.layers.{i}.layer_norm2.*", "blocks.{i}.norm2.*", PART_WHOLE},
    {"encoder.layers.{i}.mlp.*", "blocks.{i}.mlp.*", PART_WHOLE},
    {"post_layernorm.*", "norm.*", PART_WHOLE},
    {"head.*", NULL, PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};

// LPIPS: torchvision's VGG16 (vgg16-397923af.pth) and the heads of the lpips package (v0.1/vgg.pth), which come in two
// files, or its whole module in one, which holds the heads twice
static const weights_rule_t weights_lpips[] = {
    {"features.0.*", "net.slice1.0.*", PART_WHOLE},   {"features.2.*", "net.slice1.2.*", PART_WHOLE},
    {"features.5.*", "net.slice2.5.*", PART_WHOLE},   {"features.7.*", "net.slice2.7.*", PART_WHOLE},
    {"features.10.*", "net.slice3.10.*", PART_WHOLE}, {"features.12.*", "net.slice3.12.*", PART_WHOLE},
    {"features.14.*", "net.slice3.14.*", PART_WHOLE}, {"features.17.*", "net.slice4.17.*", PART_WHOLE},
    {"features.19.*", "net.slice4.19.*", PART_WHOLE}, {"features.21.*", "net.slice4.21.*", PART_WHOLE},
    {"features.24.*", "net.slice5.24.*", PART_WHOLE}, {"features.26.*", "net.slice5.26.*", PART_WHOLE},
    {"features.28.*", "net.slice5.28.*", PART_WHOLE}, {"classifier.*", NULL, PART_WHOLE},
    {"net.*", "net.*", PART_WHOLE},                   {"lin{i}.*", "lin{i}.*", PART_WHOLE},
    {"lins.*", NULL, PART_WHOLE},                     {"scaling_layer.*", NULL, PART_WHOLE},
    {"head.*", NULL, PART_WHOLE}, // the miniature's network is a classifier too (dev/pretrain.cu)
    {NULL, NULL, PART_WHOLE}};

typedef struct {
    const char* name;
    const char* anchor; // a file that holds this tensor is of this format
    const weights_rule_t* rules;
} weights_format_t;

static const weights_format_t weights_vit_formats[] = {
    {"Hugging Face SigLIP", "embeddings.patch_embedding.weight", weights_hf_siglip},
    {"Hugging Face DINOv2", "encoder.layer.0.norm1.weight", weights_hf_dinov2},
    {"Hugging Face DINOv3", "embeddings.patch_embeddings.weight", weights_hf_dinov3},
    {"facebook DINOv3", "storage_tokens", weights_dinov3},
    {"Hugging Face ViT-MAE", "encoder.layer.0.layernorm_before.weight", weights_hf_mae},
    {"Hugging Face ViT-MAE", "layers.0.layernorm_before.weight", weights_hf_mae5},
    {"timm or facebook", "patch_embed.proj.weight", weights_timm},
};
enum { WEIGHTS_VIT_FORMATS = sizeof weights_vit_formats / sizeof weights_vit_formats[0], WEIGHTS_NAME = 256 };

// ---------------------------------------------------------------------------------------------------------------------
// Names

// Does `name` fit the pattern? `number` and `rest` receive what {i} and * stand for.
int weights_match(const char* pattern, const char* name, char* number, char* rest) {
    number[0] = rest[0] = 0;
    while (*pattern) {
        if (*pattern == '*') {
            snprintf(rest, WEIGHTS_NAME, "%s", name);
            return 1;
        }
        if (!strncmp(pattern, "{i}", 3)) {
            size_t digits = strspn(name, "0123456789");
            if (digits == 0 || digits > 9) return 0;
            snprintf(number, WEIGHTS_NAME, "%.*s", (int)digits, name);
            name += digits;
            pattern += 3;
        } else if (*pattern++ != *name++) {
            return 0;
        }
    }
    return *name == 0;
}

// out = prefix + pattern, with {i} and * replaced.
void weights_expand(char* out, const char* prefix, const char* pattern, const char* number, const char* rest) {
    size_t used = (size_t)snprintf(out, WEIGHTS_NAME, "%s", prefix);
    while (*pattern && used < WEIGHTS_NAME) {
        size_t room = WEIGHTS_NAME - used;
        if (*pattern == '*') {
            used += (size_t)snprintf(out + used, room, "%s", rest);
            pattern++;
        } else if (!strncmp(pattern, "{i}", 3)) {
            used += (size_t)snprintf(out + used, room, "%s", number);
            pattern += 3;
        } else {
            used += (size_t)snprintf(out + used, room, "%c", *pattern++);
        }
    }
}

static inline int weights_has_prefix(const char* name, const char* prefix) {
    return !strncmp(name, prefix, strlen(prefix));
}

// ---------------------------------------------------------------------------------------------------------------------
// The report of what does not fit

typedef struct {
    int count;
    char text[1600]; // the first five, one a line
} weights_list_t;

__attribute__((format(printf, 2, 3))) static inline void weights_note(weights_list_t* list, const char* format, ...) {
    if (++list->count > 5) return;
    size_t used = strlen(list->text);
    va_list args;
    va_start(args, format);
    used += (size_t)snprintf(list->text + used, sizeof list->text - used, "\n      ");
    if (used < sizeof list->text) vsnprintf(list->text + used, sizeof list->text - used, format, args);
    va_end(args);
}

typedef struct {
    params_t* params;
    const char* our_prefix;
    const char* file_prefix;
    const weights_rule_t* rules;
    const char* path; // as it was given, for messages
    safetensors_t file;
    unsigned char* filled;  // (tensors of the table) the bits of the parts that have been filled
    floatS* values;         // room for one tensor, in the file's order
    floatS* reordered;      // and in memory order
    const st_tensor_t* position_table; // one of another grid than ours, or with a row that ours lacks
    weights_list_t missing, unexpected, wrong;
} weights_loader_t;

// The rule that a file's tensor falls under; NULL where there is none, and for tensors of other models in the same
// file, which lack the prefix. `ours` receives its name in the table.
const weights_rule_t* weights_find_rule(const weights_loader_t* l, const st_tensor_t* t, char* ours) {
    char number[WEIGHTS_NAME], rest[WEIGHTS_NAME];
    if (!weights_has_prefix(t->name, l->file_prefix)) return NULL;
    for (const weights_rule_t* rule = l->rules; rule->file; rule++) {
        if (!weights_match(rule->file, t->name + strlen(l->file_prefix), number, rest)) continue;
        if (rule->ours) weights_expand(ours, l->our_prefix, rule->ours, number, rest);
        return rule;
    }
    return NULL;
}

// "[3, 4]", as st_shape_text
static inline const char* weights_shape_text(const param_t* t, char* text, size_t size) {
    size_t used = (size_t)snprintf(text, size, "[");
    for (int i = 0; i < t->ndim && used < size; i++) {
        used += (size_t)snprintf(text + used, size - used, "%s%d", i ? ", " : "", t->shape[i]);
    }
    if (used < size) snprintf(text + used, size - used, "]");
    return text;
}

// Ends the program unless everything fitted. `hint` says what the file seems to be.
void weights_check(weights_loader_t* l, const char* hint) {
    for (int i = 0; i < l->params->table.n; i++) {
        const param_t* t = &l->params->table.items[i];
        if (weights_has_prefix(t->name, l->our_prefix) && l->filled[i] == 0) weights_note(&l->missing, "%s", t->name);
        if (l->filled[i] && l->filled[i] != 0xFF) weights_note(&l->missing, "%s (a part of it)", t->name);
    }
    if (l->missing.count + l->unexpected.count + l->wrong.count == 0) return;
    fatal("%s does not fit the model%s; give the file of the model that is configured, or configure that of the file.\n"
          "  missing: %d%s\n  unexpected: %d%s\n  wrong shape: %d%s",
          l->path, hint, l->missing.count, l->missing.text, l->unexpected.count, l->unexpected.text,
          l->wrong.count, l->wrong.text);
}

// ---------------------------------------------------------------------------------------------------------------------
// Loading

// The same shape, where the file's is `part` of ours? Dimensions of size 1 do not count: [D], [1, D] and [1, 1, D]
// are one.
int weights_same_shape(const param_t* ours, const st_tensor_t* file, weights_part_t part) {
    int i = 0, j = 0;
    if (part == PART_TRANSPOSED) {
        return ours->ndim == 2 && file->ndim == 2 && file->shape[0] == (size_t)ours->shape[1] &&
               file->shape[1] == (size_t)ours->shape[0];
    }
    while (i < ours->ndim || j < file->ndim) {
        size_t wanted = i < ours->ndim ? (size_t)ours->shape[i] : 0;
        if (i == 0) wanted = wanted * weights_parts[part].length / weights_parts[part].of;
        if (i < ours->ndim && wanted == 1) i++;
        else if (j < file->ndim && file->shape[j] == 1) j++;
        else if (i < ours->ndim && j < file->ndim && file->shape[j] == wanted) { i++; j++; }
        else return 0;
    }
    return 1;
}

// One tensor of the file, whose place has been found and whose shape fits.
void weights_copy(weights_loader_t* l, const param_t* t, const st_tensor_t* source, weights_part_t part) {
    safetensors_read(source, l->values);
    const floatS* values = l->values;
    for (size_t i = 0; part == PART_HALVES_SWAPPED && i < t->count / 2; i++) {
        floatS value = l->values[i];
        l->values[i] = l->values[t->count / 2 + i];
        l->values[t->count / 2 + i] = value;
    }
    if (t->layout != LAYOUT_PLAIN) {
        params_from_file_order(l->reordered, l->values, t);
        values = l->reordered;
    }
    if (part == PART_TRANSPOSED) {
        for (size_t i = 0, rows = source->shape[0]; i < source->numel; i++) {
            l->reordered[i] = l->values[i % rows * source->shape[1] + i / rows];
        }
        values = l->reordered;
    }
    int whole = weights_parts[part].of == 1; // parts are those of tensors in the file's order
    size_t begin = t->count / weights_parts[part].of * weights_parts[part].begin;
    params_store(l->params, t->offset + begin, values, whole ? t->stored : source->numel);
}

// The tensor of the table that a tensor of the file fills, by *rule; NULL where it is not wanted, has been taken
// otherwise, or does not fit, which is noted.
const param_t* weights_place(weights_loader_t* l, const st_tensor_t* source, const weights_rule_t** rule) {
    char ours[WEIGHTS_NAME], wanted[128], found[256];
    if (!weights_has_prefix(source->name, l->file_prefix)) return NULL; // of another model in the same file
    *rule = weights_find_rule(l, source, ours);
    if (*rule && !(*rule)->ours) return NULL;
    const param_t* t = *rule ? param_find(&l->params->table, ours) : NULL;
    if (!t) {
        weights_note(&l->unexpected, "%s", source->name);
        return NULL;
    }
    weights_part_t part = (*rule)->part;
    unsigned char* filled = &l->filled[t - l->params->table.items];
    unsigned char bits = weights_parts[part].bits;
    if (*filled & bits) {
        weights_note(&l->unexpected, "%s (a second %s)", source->name, ours);
        return NULL;
    }
    *filled |= bits; // also where the shape is wrong: a tensor is named once
    if (source == l->position_table) return NULL; // weights_take_positions does
    if (weights_same_shape(t, source, part)) return t;
    weights_note(&l->wrong, "%s is %s, wanted %s%s", source->name, st_shape_text(source, found, sizeof found),
                 weights_parts[part].text, weights_shape_text(t, wanted, sizeof wanted));
    return NULL;
}

// Notes a tensor that should be zero and is not.
static inline void weights_take_zero(weights_loader_t* l, const st_tensor_t* source) {
    size_t n = source->numel, i = 0;
    int stacked = strstr(source->name, "qkv") != NULL;
    safetensors_read(source, l->values);
    while (i < n && (l->values[i] == 0 || (stacked && 3 * i / n == 1))) i++;
    if (i < n) weights_note(&l->unexpected, "%s (only zeros would fit)", source->name);
}

// Copies one tensor of the file to its place, if it has one.
void weights_take(weights_loader_t* l, const st_tensor_t* source) {
    const weights_rule_t* rule = NULL;
    const param_t* t = weights_place(l, source, &rule);
    if (t) weights_copy(l, t, source, rule->part);
    else if (rule && rule->part == PART_ZERO) weights_take_zero(l, source);
}

// Opens the first file, or the next.
void weights_open(weights_loader_t* l, const char* path) {
    safetensors_close(&l->file);
    free(l->values);
    free(l->reordered);
    tensor_file_open_or_die(&l->file, path);
    // Nothing of a wrong shape is read, but a position table may have a row too many.
    size_t largest = params_longest(&l->params->table);
    for (int i = 0; i < l->file.n; i++) {
        if (l->file.tensors[i].numel > largest) largest = l->file.tensors[i].numel;
    }
    l->values = (floatS*)malloc_check(largest * sizeof(floatS), "a tensor");
    l->reordered = (floatS*)malloc_check(largest * sizeof(floatS), "a tensor");
}

void weights_begin(weights_loader_t* l, params_t* p, const char* our_prefix, const char* path) {
    memset(l, 0, sizeof *l);
    l->path = path;
    l->params = p;
    l->our_prefix = our_prefix;
    l->file_prefix = "";
    weights_open(l, path);
    l->filled = (unsigned char*)calloc_check((size_t)p->table.n, 1, "the list of loaded tensors");
}

void weights_end(weights_loader_t* l) {
    safetensors_close(&l->file);
    free(l->values);
    free(l->reordered);
    free(l->filled);
}

// Fills every tensor whose name begins with our_prefix from the tensors that begin with file_prefix, by `rules` for
// what follows the prefixes. With an empty file_prefix every tensor of the file must have a rule.
void weights_load_mapped(params_t* p, const char* our_prefix, const char* path, const char* file_prefix,
                         const weights_rule_t* rules) {
    weights_loader_t l;
    weights_begin(&l, p, our_prefix, path);
    l.file_prefix = file_prefix;
    l.rules = rules;
    for (int i = 0; i < l.file.n; i++) weights_take(&l, &l.file.tensors[i]);
    weights_check(&l, "");
    weights_end(&l);
}

// Ends the program unless the tensors of an open file behind `prefix` fit a table one to one, by `rules`. A tensor that
// is not there may stand under its own name behind `second` (NULL: nowhere). Copies nothing. Returns how many tensors
// of the file are not the table's.
int weights_check_file(const safetensors_t* file, const param_table_t* table, const char* prefix, const char* second,
                       const weights_rule_t* rules, const char* hint) {
    weights_loader_t l;
    params_t params;
    memset(&l, 0, sizeof l);
    memset(&params, 0, sizeof params);
    params.table = *table;
    l.params = &params;
    l.our_prefix = "";
    l.file_prefix = prefix;
    l.rules = rules;
    l.path = file->path;
    l.file = *file;
    l.filled = (unsigned char*)calloc_check((size_t)table->n, 1, "the list of found tensors");
    int others = file->n;
    for (int i = 0; i < file->n; i++) {
        const weights_rule_t* rule = NULL;
        if (weights_place(&l, &file->tensors[i], &rule)) others--;
    }
    for (int i = 0; second && i < table->n; i++) {
        char name[WEIGHTS_NAME];
        snprintf(name, sizeof name, "%s%s", second, table->items[i].name);
        const st_tensor_t* t = l.filled[i] ? NULL : safetensors_find(file, name);
        if (!t || !weights_same_shape(&table->items[i], t, PART_WHOLE)) continue;
        l.filled[i] = 0xFF;
        others--;
    }
    weights_check(&l, hint);
    free(l.filled);
    return others;
}

// ---------------------------------------------------------------------------------------------------------------------
// Where a model stands in a file

// How much a place is preferred: averages and teachers (2) to others (1) to students (0).
static inline int weights_rank(const char* prefix) {
    char words[WEIGHTS_NAME];
    int rank = 1;
    snprintf(words, sizeof words, "%s", prefix);
    for (char *rest = NULL, *word = strtok_r(words, "._", &rest); word; word = strtok_r(NULL, "._", &rest)) {
        if (!strcmp(word, "ema") || !strcmp(word, "teacher")) return 2;
        if (!strcmp(word, "student")) rank = 0;
    }
    return rank;
}

// What stands before `anchor` in the names that end with it, in `prefix`: the preferred of several, which is said. 0
// where there is none. Two that are equally good end the program; `what` they are is for messages.
int weights_find_anchor(const safetensors_t* file, const char* anchor, const char* what, char* prefix) {
    char other[WEIGHTS_NAME] = "", place[WEIGHTS_NAME];
    int best = -1, found = 0, equal = 0;
    for (int i = 0; i < file->n; i++) {
        const char* name = file->tensors[i].name;
        size_t length = strlen(name), tail = strlen(anchor);
        if (length < tail || strcmp(name + length - tail, anchor) || length - tail >= WEIGHTS_NAME) continue;
        if (length > tail && name[length - tail - 1] != '.') continue;
        snprintf(place, sizeof place, "%.*s", (int)(length - tail), name);
        int rank = weights_rank(place);
        if (found++) snprintf(other, sizeof other, "%s", rank > best ? prefix : place);
        equal = rank == best || (equal && rank < best);
        if (rank <= best) continue;
        snprintf(prefix, WEIGHTS_NAME, "%s", place);
        best = rank;
    }
    if (equal) fatal("%s holds two %s, %s... and %s...; give a file that holds one", file->path, what, prefix, other);
    if (found > 1) {
        printf("weights        %s holds %d %s: %s* is taken, %s* is not\n", file->path, found, what, prefix, other);
    }
    return found > 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// LPIPS

// One of its files: VGG16, the heads, or both.
static inline void weights_take_lpips(weights_loader_t* l) {
    static const char* const anchors[] = {"features.0.weight", "net.slice1.0.weight", "lin0.model.1.weight"};
    char prefix[WEIGHTS_NAME] = "";
    for (int i = 0; i < 3 && !weights_find_anchor(&l->file, anchors[i], "networks for LPIPS", prefix); i++) {}
    l->file_prefix = prefix;
    for (int i = 0; i < l->file.n; i++) weights_take(l, &l->file.tensors[i]);
    l->file_prefix = "";
}

// From one file or from two with a comma between: "vgg16-397923af.pth,vgg.pth".
void weights_load_lpips(params_t* p, const char* paths) {
    weights_loader_t l;
    const char* comma = strchr(paths, ',');
    char* first = strdup(paths);
    if (comma) first[comma - paths] = 0;
    weights_begin(&l, p, "", first);
    l.path = paths;
    l.rules = weights_lpips;
    weights_take_lpips(&l);
    if (comma) weights_open(&l, comma + 1);
    if (comma) weights_take_lpips(&l);
    weights_check(&l, comma ? "" : " (the heads may come in a second file: -lpips_weights VGG16.pth,HEADS.pth)");
    weights_end(&l);
    free(first);
}

// ---------------------------------------------------------------------------------------------------------------------
// Vision transformers

const weights_format_t* weights_vit_format(const safetensors_t* file, char* prefix) {
    for (int i = 0; i < WEIGHTS_VIT_FORMATS; i++) {
        const weights_format_t* f = &weights_vit_formats[i];
        if (weights_find_anchor(file, f->anchor, "vision transformers", prefix)) return f;
    }
    fatal("%s holds no vision transformer that is known here (%d tensors, the first is %s); give DINOv2, DINOv3, MAE "
          "or SigLIP 2 weights as published by timm, facebook or Hugging Face", file->path, file->n,
          file->n ? file->tensors[0].name : "none");
}

// What a file's tensors say about its model. The number of heads does not show.
typedef struct { int dim, patch, depth, mlp_dim, cls, registers, layerscale, position_rows; } weights_vit_facts_t;

weights_vit_facts_t weights_vit_facts(const weights_loader_t* l) {
    weights_vit_facts_t f;
    memset(&f, 0, sizeof f);
    for (int i = 0; i < l->file.n; i++) {
        const st_tensor_t* t = &l->file.tensors[i];
        char ours_with_prefix[WEIGHTS_NAME], number[WEIGHTS_NAME], rest[WEIGHTS_NAME];
        const weights_rule_t* rule = weights_find_rule(l, t, ours_with_prefix);
        const char* ours = ours_with_prefix + strlen(l->our_prefix);
        if (!rule || !rule->ours || t->ndim == 0) continue;
        int first = (int)t->shape[0], last = (int)t->shape[t->ndim - 1];
        int rows = last ? (int)(t->numel / (size_t)last) : 0;
        if (!strcmp(ours, "patch_embed.proj.bias")) f.dim = first;
        if (!strcmp(ours, "patch_embed.proj.weight")) f.patch = t->ndim == 4 ? last : 0;
        if (weights_match("blocks.{i}.norm1.weight", ours, number, rest)) f.depth++;
        if (!strcmp(ours, "blocks.0.mlp.fc1.bias")) f.mlp_dim = first;
        if (!strcmp(ours, "blocks.0.ls1.gamma") || !strcmp(ours, "blocks.0.gamma_1")) f.layerscale = 1;
        if (!strcmp(ours, "cls_token")) f.cls = 1;
        if (!strcmp(ours, "reg_token")) f.registers = rows;
        if (!strcmp(ours, "pos_embed")) f.position_rows = rows;
    }
    return f;
}

// Rows and columns of the grid in a table of so many rows, one of which may be the class token's; 0: no square.
static inline int weights_position_grid(size_t rows, int* class_row) {
    int grid = (int)lround(sqrt((double)rows));
    *class_row = 0;
    if ((size_t)grid * grid == rows) return grid;
    *class_row = 1;
    grid = (int)lround(sqrt((double)rows - 1));
    return (size_t)grid * grid == rows - 1 ? grid : 0;
}

// Can a table of the file become ours, although it has another number of rows?
static inline int weights_positions_serve(size_t rows, const vit_config_t* config) {
    int class_row, grid = weights_position_grid(rows, &class_row);
    if (grid == 0 || grid > 256 || vit_is_rotary(config)) return 0;
    return (class_row || !config->pos_class) && (config->cls || !class_row);
}

// The configuration that these facts fit, or NULL.
const vit_config_t* weights_vit_guess(weights_vit_facts_t f) {
    for (int i = 0; i < VIT_CONFIGS; i++) {
        const vit_config_t* c = &vit_configs[i];
        int positions_fit = f.position_rows ? weights_positions_serve((size_t)f.position_rows, c) : vit_is_rotary(c);
        int blocks_fit = c->dim == f.dim && c->depth == f.depth && c->mlp_dim == f.mlp_dim;
        int tokens_fit = c->patch == f.patch && c->cls == f.cls && c->registers == f.registers;
        if (blocks_fit && tokens_fit && positions_fit && (c->layerscale != 0) == f.layerscale) return c;
    }
    return NULL;
}

// " 'dinov2-l' (...): it is a ... of width ...", for weights_check.
void weights_vit_hint(char* hint, size_t size, const weights_loader_t* l, const char* format,
                      const vit_config_t* config) {
    weights_vit_facts_t f = weights_vit_facts(l);
    const vit_config_t* guess = weights_vit_guess(f);
    snprintf(hint, size,
             " %s: it is a %s file of width %d, patch %d, depth %d, MLP %d, %s, %s, %d registers, %d position rows%s%s",
             config->id, format, f.dim, f.patch, f.depth, f.mlp_dim, f.layerscale ? "LayerScale" : "no LayerScale",
             f.cls ? "a class token" : "no class token", f.registers, f.position_rows, guess ? ", as " : "",
             guess ? guess->id : "");
}

// The file's tensor that goes to this name of the table, or NULL.
const st_tensor_t* weights_find_source(const weights_loader_t* l, const char* wanted) {
    char ours[WEIGHTS_NAME];
    for (int i = 0; i < l->file.n; i++) {
        const weights_rule_t* rule = weights_find_rule(l, &l->file.tensors[i], ours);
        if (rule && rule->ours && !strcmp(ours, wanted)) return &l->file.tensors[i];
    }
    return NULL;
}

// Takes a table of another grid, or with a row that ours has not. Models with registers have no position for the class
// token in timm; the class token holds it already:
//   pos_embed = the rows behind the first;  cls_token += the first row
// This is exact: the others add the position to the class token before they put the registers in between.
void weights_take_positions(weights_loader_t* l, const vit_config_t* config, const param_t* cls, const param_t* pos) {
    int class_row, own = config->pos_class, G = config->pos_grid;
    size_t D = (size_t)config->dim;
    int grid = weights_position_grid(l->position_table->numel / D, &class_row);
    safetensors_read(l->position_table, l->values);
    floatS* table = (floatS*)malloc_check(pos->count * sizeof(floatS), "a position table");
    const floatS* rows = l->values + class_row * D;
    if (own) memcpy(table, l->values, D * sizeof(floatS));
    if (grid == G) {
        memcpy(table + own * D, rows, G * G * D * sizeof(floatS));
    } else {
        position_table_resample(table + own * D, rows, grid, G, (int)D);
        printf("weights        %s: positions of %d x %d tokens, resampled to %d x %d%s\n", l->path, grid, grid, G, G,
               grid < G ? " so that they come out again" : "");
    }
    params_store(l->params, pos->offset, table, pos->count);
    free(table);
    if (!class_row || own) return;
    safetensors_read(weights_find_source(l, cls->name), l->reordered);
    for (size_t i = 0; i < D; i++) l->values[i] += l->reordered[i];
    params_store(l->params, cls->offset, l->values, D);
}

// Reads the public weights of a ViT into the tensors that vit_register put behind our_prefix.
void weights_load_vit(params_t* p, const vit_config_t* config, const char* our_prefix, const char* path) {
    weights_loader_t l;
    char prefix[WEIGHTS_NAME], name[WEIGHTS_NAME], hint[512];
    weights_begin(&l, p, our_prefix, path);
    const weights_format_t* format = weights_vit_format(&l.file, prefix);
    l.file_prefix = prefix;
    l.rules = format->rules;
    snprintf(name, sizeof name, "%spos_embed", our_prefix);
    const param_t* pos = param_find(&p->table, name);
    assert((pos || vit_is_rotary(config)) && "vit_register has put the model behind our_prefix");
    snprintf(name, sizeof name, "%scls_token", our_prefix);
    const param_t* cls = param_find(&p->table, name);
    const st_tensor_t* source = pos ? weights_find_source(&l, pos->name) : NULL;
    size_t D = (size_t)config->dim;
    int others = source && source->numel != pos->count && source->ndim > 1 && source->shape[source->ndim - 1] == D;
    if (others && weights_positions_serve(source->numel / D, config)) l.position_table = source;
    for (int i = 0; i < l.file.n; i++) weights_take(&l, &l.file.tensors[i]);
    weights_vit_hint(hint, sizeof hint, &l, format->name, config);
    weights_check(&l, hint);
    if (l.position_table) weights_take_positions(&l, config, cls, pos);
    weights_end(&l);
}

// ---------------------------------------------------------------------------------------------------------------------
// Saving

// Writes the tensors whose names begin with our_prefix, under file_prefix instead, in the order and layout of public
// files.
void weights_save(const params_t* p, const char* our_prefix, const char* path, const char* file_prefix) {
    st_writer_t w;
    char name[WEIGHTS_NAME];
    size_t largest = 0;
    safetensors_writer_init(&w);
    safetensors_writer_metadata(&w, "format", "pt");
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        if (!weights_has_prefix(t->name, our_prefix)) continue;
        size_t shape[4];
        for (int j = 0; j < t->ndim; j++) shape[j] = (size_t)t->shape[j];
        snprintf(name, sizeof name, "%s%s", file_prefix, t->name + strlen(our_prefix));
        safetensors_writer_tensor(&w, name, ST_F32, t->ndim, shape);
        largest = t->stored > largest ? t->stored : largest;
    }
    safetensors_writer_begin(&w, path);
    floatS* memory = (floatS*)malloc_check(largest * sizeof(floatS), "a tensor");
    floatS* file = (floatS*)malloc_check(largest * sizeof(floatS), "a tensor");
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        if (!weights_has_prefix(t->name, our_prefix)) continue;
        params_get(p, params_state(p, PARAM_VALUE), t, file, memory);
        safetensors_writer_data(&w, file, t->count);
    }
    free(memory);
    free(file);
    safetensors_writer_finish_or_die(&w);
}
