// mmdit_file.h: published weights of FLUX-style transformers: what a file's tensors say of the model, and reading them.
//
// Two sets of names are known: FLUX's own (flux1-dev.safetensors; minFM's are the same), and those of diffusers'
// FluxTransformer2DModel, which keeps queries, keys, values and the MLP's input apart, and has the scale of the last
// modulation in front of its shift. What stands before them ("model.", "module.", "_orig_mod.", "ema.") is found and
// dropped. The rotary axes do not show in a file: they are those of a table's configuration with the same head.
//
// Look next at common/models/weights.h, whose rules these are.
#pragma once
// defines: mmdit_config_t, mmdit_configs
#include "common/models/mmdit.h"
// defines: weights_rule_t, weights_format_t, weights_find_anchor, weights_load_mapped, WEIGHTS_NAME
#include "common/models/weights.h"

// diffusers FluxTransformer2DModel
static const weights_rule_t mmdit_diffusers_rules[] = {
    {"x_embedder.*", "img_in.*", PART_WHOLE},
    {"context_embedder.*", "txt_in.*", PART_WHOLE},
    {"time_text_embed.timestep_embedder.linear_1.*", "time_in.in_layer.*", PART_WHOLE},
    {"time_text_embed.timestep_embedder.linear_2.*", "time_in.out_layer.*", PART_WHOLE},
    {"time_text_embed.text_embedder.linear_1.*", "vector_in.in_layer.*", PART_WHOLE},
    {"time_text_embed.text_embedder.linear_2.*", "vector_in.out_layer.*", PART_WHOLE},
    {"time_text_embed.guidance_embedder.linear_1.*", "guidance_in.in_layer.*", PART_WHOLE},
    {"time_text_embed.guidance_embedder.linear_2.*", "guidance_in.out_layer.*", PART_WHOLE},
    {"transformer_blocks.{i}.norm1.linear.*", "double_blocks.{i}.img_mod.lin.*", PART_WHOLE},
    {"transformer_blocks.{i}.norm1_context.linear.*", "double_blocks.{i}.txt_mod.lin.*", PART_WHOLE},
    {"transformer_blocks.{i}.attn.to_q.*", "double_blocks.{i}.img_attn.qkv.*", PART_FIRST},
    {"transformer_blocks.{i}.attn.to_k.*", "double_blocks.{i}.img_attn.qkv.*", PART_MIDDLE},
    {"transformer_blocks.{i}.attn.to_v.*", "double_blocks.{i}.img_attn.qkv.*", PART_LAST},
    {"transformer_blocks.{i}.attn.add_q_proj.*", "double_blocks.{i}.txt_attn.qkv.*", PART_FIRST},
    {"transformer_blocks.{i}.attn.add_k_proj.*", "double_blocks.{i}.txt_attn.qkv.*", PART_MIDDLE},
    {"transformer_blocks.{i}.attn.add_v_proj.*", "double_blocks.{i}.txt_attn.qkv.*", PART_LAST},
    {"transformer_blocks.{i}.attn.norm_q.weight", "double_blocks.{i}.img_attn.norm.query_norm.scale", PART_WHOLE},
    {"transformer_blocks.{i}.attn.norm_k.weight", "double_blocks.{i}.img_attn.norm.key_norm.scale", PART_WHOLE},
    {"transformer_blocks.{i}.attn.norm_added_q.weight", "double_blocks.{i}.txt_attn.norm.query_norm.scale", PART_WHOLE},
    {"transformer_blocks.{i}.attn.norm_added_k.weight", "double_blocks.{i}.txt_attn.norm.key_norm.scale", PART_WHOLE},
    {"transformer_blocks.{i}.attn.to_out.0.*", "double_blocks.{i}.img_attn.proj.*", PART_WHOLE},
    {"transformer_blocks.{i}.attn.to_add_out.*", "double_blocks.{i}.txt_attn.proj.*", PART_WHOLE},
    {"transformer_blocks.{i}.ff.net.0.proj.*", "double_blocks.{i}.img_mlp.0.*", PART_WHOLE},
    {"transformer_blocks.{i}.ff.net.2.*", "double_blocks.{i}.img_mlp.2.*", PART_WHOLE},
    {"transformer_blocks.{i}.ff_context.net.0.proj.*", "double_blocks.{i}.txt_mlp.0.*", PART_WHOLE},
    {"transformer_blocks.{i}.ff_context.net.2.*", "double_blocks.{i}.txt_mlp.2.*", PART_WHOLE},
    {"single_transformer_blocks.{i}.norm.linear.*", "single_blocks.{i}.modulation.lin.*", PART_WHOLE},
    {"single_transformer_blocks.{i}.attn.to_q.*", "single_blocks.{i}.linear1.*", PART_SEVENTH_1},
    {"single_transformer_blocks.{i}.attn.to_k.*", "single_blocks.{i}.linear1.*", PART_SEVENTH_2},
    {"single_transformer_blocks.{i}.attn.to_v.*", "single_blocks.{i}.linear1.*", PART_SEVENTH_3},
    {"single_transformer_blocks.{i}.proj_mlp.*", "single_blocks.{i}.linear1.*", PART_SEVENTHS_4_TO_7},
    {"single_transformer_blocks.{i}.attn.norm_q.weight", "single_blocks.{i}.norm.query_norm.scale", PART_WHOLE},
    {"single_transformer_blocks.{i}.attn.norm_k.weight", "single_blocks.{i}.norm.key_norm.scale", PART_WHOLE},
    {"single_transformer_blocks.{i}.proj_out.*", "single_blocks.{i}.linear2.*", PART_WHOLE},
    {"norm_out.linear.*", "final_layer.adaLN_modulation.1.*", PART_HALVES_SWAPPED},
    {"proj_out.*", "final_layer.linear.*", PART_WHOLE},
    {NULL, NULL, PART_WHOLE}};

static const weights_format_t mmdit_formats[] = {
    {"FLUX", "double_blocks.0.img_attn.qkv.weight", weights_same_names},
    {"diffusers", "single_transformer_blocks.0.proj_mlp.weight", mmdit_diffusers_rules},
};
enum { MMDIT_FORMATS = sizeof mmdit_formats / sizeof mmdit_formats[0] };

// The names that a file has, and what stands before them in `prefix`; ends the program where it holds no such model.
const weights_format_t* mmdit_file_format(const safetensors_t* file, char* prefix) { // (WEIGHTS_NAME)
    for (int i = 0; i < MMDIT_FORMATS; i++) {
        const weights_format_t* f = &mmdit_formats[i];
        if (weights_find_anchor(file, f->anchor, "text-to-image transformers", prefix)) return f;
    }
    fatal("%s holds no FLUX-style transformer (%d tensors, the first is %s); give a file with the names of FLUX, minFM "
          "or diffusers", file->path, file->n, file->n ? file->tensors[0].name : "none");
}

// Does a file hold such a model, behind whatever prefix?
int mmdit_file_holds(const safetensors_t* file) {
    for (int i = 0; i < MMDIT_FORMATS; i++) {
        const char* anchor = mmdit_formats[i].anchor;
        for (int k = 0; k < file->n; k++) {
            size_t length = strlen(file->tensors[k].name), tail = strlen(anchor);
            if (length >= tail && !strcmp(file->tensors[k].name + length - tail, anchor)) return 1;
        }
    }
    return 0;
}

// Rows (0) or columns (1) of the file's tensor that is `ours` in the model; 0 where there is none.
static inline int mmdit_file_size(const safetensors_t* file, const weights_format_t* format, const char* prefix,
                                  const char* ours, int column) {
    for (int i = 0; i < file->n; i++) {
        char name[WEIGHTS_NAME], number[WEIGHTS_NAME], rest[WEIGHTS_NAME];
        const st_tensor_t* t = &file->tensors[i];
        if (!weights_has_prefix(t->name, prefix)) continue;
        for (const weights_rule_t* rule = format->rules; rule->file; rule++) {
            if (!weights_match(rule->file, t->name + strlen(prefix), number, rest)) continue;
            weights_expand(name, "", rule->ours, number, rest);
            if (!strcmp(name, ours) && column < t->ndim) return (int)t->shape[column];
            break;
        }
    }
    return 0;
}

// How many blocks of a kind there are: numbers in front of `rest` from 0 on.
static inline int mmdit_file_blocks(const safetensors_t* file, const weights_format_t* format, const char* prefix,
                                    const char* kind, const char* rest) {
    char name[WEIGHTS_NAME];
    int n = 0;
    do snprintf(name, sizeof name, "%s.%d.%s", kind, n, rest);
    while (mmdit_file_size(file, format, prefix, name, 0) && ++n);
    return n;
}

// The model that a file holds behind `prefix`, by the shapes of its tensors. Sides of the latent are the caller's.
mmdit_config_t mmdit_file_config_behind(const safetensors_t* file, const weights_format_t* format, const char* prefix) {
    mmdit_config_t c;
    memset(&c, 0, sizeof c);
    c.id = "of the file";
    c.dim = mmdit_file_size(file, format, prefix, "img_in.weight", 0);
    c.C = mmdit_file_size(file, format, prefix, "img_in.weight", 1);
    c.text = mmdit_file_size(file, format, prefix, "txt_in.weight", 1);
    c.vector = mmdit_file_size(file, format, prefix, "vector_in.in_layer.weight", 1);
    c.guidance = mmdit_file_size(file, format, prefix, "guidance_in.in_layer.weight", 1) > 0;
    c.doubles = mmdit_file_blocks(file, format, prefix, "double_blocks", "img_mod.lin.weight");
    c.singles = mmdit_file_blocks(file, format, prefix, "single_blocks", "modulation.lin.weight");
    int HS = mmdit_file_size(file, format, prefix, "double_blocks.0.img_attn.norm.query_norm.scale", 0);
    if (c.dim < 1 || HS < 1 || c.dim % HS) {
        fatal("%s: a text-to-image transformer %d wide with heads of %d; the file is not whole", file->path, c.dim, HS);
    }
    c.heads = c.dim / HS;
    for (int i = 0; i < MMDIT_CONFIGS; i++) {
        const mmdit_config_t* known = &mmdit_configs[i];
        if (known->dim / known->heads == HS) memcpy(c.axes, known->axes, sizeof c.axes);
    }
    if (!c.axes[1]) fatal("%s has heads of %d; rotary axes are known for heads of 128, 64 and 32", file->path, HS);
    return c;
}

// The model that a file holds, wherever in it.
mmdit_config_t mmdit_file_config(const safetensors_t* file) {
    char prefix[WEIGHTS_NAME];
    const weights_format_t* format = mmdit_file_format(file, prefix);
    return mmdit_file_config_behind(file, format, prefix);
}

// Fills every tensor that mmdit_register put behind our_prefix.
void mmdit_file_load(params_t* p, const char* our_prefix, const char* path) {
    char prefix[WEIGHTS_NAME];
    safetensors_t file;
    tensor_file_open_or_die(&file, path);
    const weights_format_t* format = mmdit_file_format(&file, prefix);
    safetensors_close(&file);
    weights_load_mapped(p, our_prefix, path, prefix, format->rules);
}
