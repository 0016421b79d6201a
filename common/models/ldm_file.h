// ldm_file.h: autoencoders as others publish them, in LDM's layout: a CNN encoder and a CNN decoder under the names
//
//     encoder.*  quant_conv.*  post_quant_conv.*  decoder.*          (common/models/cnn_encoder.h,
//     common/models/decoder.h)
//
//     file                                        behind         what it is
//     vavae-imagenet256-f16d32-dinov2.pt          state_dict.    VA-VAE, with the state of its training
//     ldm-imagenet256-f16d{16,32,64}-50ep.ckpt    state_dict.    the same autoencoder without alignment
//     kl16.ckpt                                   model.         MAR's, whose decoder has attention in the middle only
//     latent diffusion models (LDM)               state_dict.first_stage_model.
//
// What else stands in the file is left alone, as LightningDiT's own loader does: loss.* (LPIPS, discriminator),
// foundation_model.*, linear_proj.weight, moments of optimisers. What belongs to the autoencoder must fit to the last
// tensor.
//
// The shapes tell nearly everything: channels of conv_in, a level for each down.{i}, ResBlocks of down.0, attention by
// presence, latent channels. Two things they do not tell. Every GroupNorm has 32 groups in LDM; a network whose
// narrowest level has no multiple of 32 channels takes their greatest common divisor. And the size of the images: any
// multiple of 2^(levels - 1) will do for a convolution, 256 is what these files were trained on.
//
// Names: ldm/models/autoencoder.py. Look next at common/drawing/autoencoder.h, the user.
#pragma once
// defines: decoder_config_t
#include "common/models/decoder.h"
// defines: cnn_encoder_config_t
#include "common/models/cnn_encoder.h"
// defines: weights_rule_t, weights_find_anchor; safetensors_t, safetensors_find
#include "common/models/weights.h"

enum { LDM_IMAGE_SIZE = 256, LDM_GROUPS = 32, LDM_MAX_LEVELS = 8, LDM_MAX_BLOCKS = 8, LDM_MAX_CHANNELS = 8192 };

static const weights_rule_t ldm_rules[] = {
    {"encoder.*", "encoder.*", PART_WHOLE},
    {"quant_conv.*", "quant_conv.*", PART_WHOLE},
    {"post_quant_conv.*", "post_quant_conv.*", PART_WHOLE},
    {"decoder.*", "decoder.*", PART_WHOLE},
    {"*", NULL, PART_WHOLE}, // its training's
    {NULL, NULL, PART_WHOLE}};

// What a file says.
typedef struct {
    char prefix[WEIGHTS_NAME];
    cnn_encoder_config_t encoder;
    decoder_config_t decoder;
} ldm_file_t;

// The tensor of a printf-like name behind the prefix, or NULL.
__attribute__((format(printf, 3, 4))) static inline const st_tensor_t* ldm_find(const safetensors_t* f,
                                                                                 const char* prefix,
                                                                                 const char* format, ...) {
    char name[200];
    size_t used = (size_t)snprintf(name, sizeof name, "%s", prefix);
    va_list args;
    va_start(args, format);
    vsnprintf(name + used, sizeof name - used, format, args);
    va_end(args);
    return safetensors_find(f, name);
}

// Number of channels `i` of a convolution (0: output, 1: input); ends with a message where there is no such tensor.
static inline int ldm_channels(const safetensors_t* f, const char* prefix, const char* name, int i) {
    const st_tensor_t* t = ldm_find(f, prefix, "%s", name);
    if (!t) fatal("%s: tensor %s%s is missing; the file is damaged or of another model", f->path, prefix, name);
    if (t->ndim != 4 || t->shape[i] < 1 || t->shape[i] > LDM_MAX_CHANNELS) {
        fatal("%s: tensor %s is no convolution of up to %d channels; the file is of another model", f->path, t->name,
              LDM_MAX_CHANNELS);
    }
    return (int)t->shape[i];
}

static inline int ldm_greatest_divisor(int a, int b) { return b ? ldm_greatest_divisor(b, a % b) : a; }

// Levels, multipliers, ResBlocks and attention of one half, whose levels are named side + ".{i}.". ch and z_channels
// are set.
static inline void ldm_read_levels(autoencoder_config_t* c, const safetensors_t* f, const char* prefix,
                                   const char* side) {
    while (c->levels < LDM_MAX_LEVELS && ldm_find(f, prefix, "%s.%d.block.0.conv1.weight", side, c->levels)) {
        char name[100];
        snprintf(name, sizeof name, "%s.%d.block.0.conv1.weight", side, c->levels);
        int channels = ldm_channels(f, prefix, name, 0);
        if (channels % c->ch) {
            fatal("%s: level %d of %s%s has %d channels, no multiple of %d, the channels at full size; the file is of "
                  "another model", f->path, c->levels, prefix, side, channels, c->ch);
        }
        if (ldm_find(f, prefix, "%s.%d.attn.0.q.weight", side, c->levels)) c->attn_levels |= 1u << c->levels;
        c->ch_mult[c->levels++] = channels / c->ch;
    }
    while (c->res_blocks < LDM_MAX_BLOCKS && ldm_find(f, prefix, "%s.0.block.%d.conv1.weight", side, c->res_blocks)) {
        c->res_blocks++;
    }
    c->groups = ldm_greatest_divisor(LDM_GROUPS, c->ch);
}

// Reads off what the autoencoder is. 0 where the file holds none.
int ldm_file_read(ldm_file_t* l, const safetensors_t* f) {
    memset(l, 0, sizeof *l);
    char* prefix = l->prefix;
    if (!weights_find_anchor(f, "encoder.down.0.block.0.conv1.weight", "autoencoders", prefix)) return 0;
    cnn_encoder_config_t* e = &l->encoder;
    decoder_config_t* d = &l->decoder;
    e->ch = ldm_channels(f, prefix, "encoder.conv_in.weight", 0);
    e->z_channels = ldm_channels(f, prefix, "encoder.conv_out.weight", 0) / 2;
    e->quant_conv = ldm_find(f, prefix, "quant_conv.weight") != NULL;
    ldm_read_levels(e, f, prefix, "encoder.down");
    d->ch = ldm_channels(f, prefix, "decoder.conv_out.weight", 1);
    d->z_channels = ldm_channels(f, prefix, "decoder.conv_in.weight", 1);
    d->quant_conv = ldm_find(f, prefix, "post_quant_conv.weight") != NULL;
    ldm_read_levels(d, f, prefix, "decoder.up");
    d->res_blocks--; // the decoder has one more a level
    if (e->levels != d->levels || d->levels < 1 || e->res_blocks < 1 || d->res_blocks < 0 ||
        e->z_channels != d->z_channels) {
        fatal("%s: the encoder has %d levels and makes %d channels, the decoder has %d levels and takes %d; the file "
              "is of another model (wanted: an autoencoder with a Gaussian latent, as LDM and VA-VAE have)", f->path,
              e->levels, e->z_channels, d->levels, d->z_channels);
    }
    return 1;
}
