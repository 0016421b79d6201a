// latent_encoder.h: from an image (B, H, W, 3) to the tokenizer's latent (B, GH, GW, z), whatever encodes.
//
//     what encodes                gives                        whose
//     ViT and adapter             the latent                   AlignTok
//     CNN and quant_conv          the moments of a Gaussian    VAE, VA-VAE, the autoencoders of LDM
//     ViT and wider adapter       the moments of a Gaussian    VA-VAE with a ViT
//
// Of a Gaussian, the latent is a draw  z = mu + sigma noise  (posterior_forward in common/ops.h), whose noise the
// caller puts into `noise`, or mu. Its distance from N(0, 1), the KL divergence, is a loss of variational autoencoders.
//
// The gradient of the last layer alone can be had for each chunk of images: an adaptive weight compares the pull of two
// losses there (common/training/tokenizer.h). It is the adapter's fc2, the CNN's conv_out, or the mlp.fc2 of the ViT's
// last block.
//
// Look next at common/models/vit.h, adapter.h and cnn_encoder.h.
#pragma once
// defines: vit_t, vit_register, vit_register_lora, vit_plan, vit_plan_work, vit_forward, vit_last_fc2_gradient
#include "common/models/vit.h"
// defines: adapter_t, adapter_register, adapter_plan, adapter_forward, adapter_backward, adapter_backward_data
#include "common/models/adapter.h"
// defines: cnn_encoder_t, cnn_encoder_register, cnn_encoder_plan, cnn_encoder_forward, cnn_encoder_backward, ...
#include "common/models/cnn_encoder.h"

typedef struct {
    int is_cnn;          // the CNN encodes, else ViT and adapter
    int gaussian;        // what encodes gives moments: z means, then z logarithms of variances
    int z;               // channels of the latent
    vit_t vit;
    adapter_t adapter;
    cnn_encoder_t cnn;
    size_t pairs_begin;  // offset behind the ViT or CNN: of the ViT's low-rank pairs (vit.lora), where it has some
    int B;               // images of the plan
    int T;               // latent vectors of an image, GH GW
    floatX* drawn;       // (B, GH, GW, z) of a Gaussian the output
    floatS* noise;       // (B, GH, GW, z) of a draw
    floatS* kl;          // (B) KL divergence of each image's Gaussian from N(0, 1)
    floatX* dmoments;    // (B, GH, GW, 2 z)
    floatX* dfeatures;   // (B, GH, GW, D) gradient at the ViT's features
} latent_encoder_t;

// ---------------------------------------------------------------------------------------------------------------------
// Building

// What encodes. A CNN gives moments always.
void latent_encoder_configure(latent_encoder_t* e, const vit_config_t* vit, int adapter_hidden, int z, int gaussian) {
    e->z = z;
    e->gaussian = gaussian;
    e->vit.config = *vit;
    e->adapter.in = vit->dim;
    e->adapter.hidden = adapter_hidden;
    e->adapter.out = gaussian ? 2 * z : z;
}
void latent_encoder_configure_cnn(latent_encoder_t* e, const cnn_encoder_config_t* cnn) {
    e->z = cnn->z_channels;
    e->is_cnn = e->gaussian = 1;
    e->cnn.config = *cnn;
}

// Registers prefix + "encoder." and "adapter.", or "encoder." and "quant_conv.". Low-rank pairs stand between the first
// two.
void latent_encoder_register(latent_encoder_t* e, param_table_t* table, const char* prefix) {
    char name[80];
    if (e->is_cnn) {
        cnn_encoder_register(&e->cnn, table, prefix);
        e->pairs_begin = table->total;
        return;
    }
    snprintf(name, sizeof name, "%sencoder.", prefix);
    vit_register(&e->vit, table, name);
    e->pairs_begin = table->total;
    if (e->vit.lora.config.rank) vit_register_lora(&e->vit, table, name);
    adapter_register(&e->adapter, table, prefix);
}

// The latent and what makes it of moments.
static inline void latent_encoder_plan_latent(latent_encoder_t* e, plan_t* keep, int B, int T, int train) {
    size_t n = (size_t)B * T * e->z;
    e->B = B;
    e->T = T;
    if (!e->gaussian) return; // then the adapter's output is the latent
    plan_floatX(keep, &e->drawn, n, "latent");
    plan_floatS(keep, &e->noise, n, "noise of the latent");
    plan_floatS(keep, &e->kl, B, "KL divergence");
    if (train) plan_floatX(keep, &e->dmoments, 2 * n, "d moments");
}

// Plans what outlives the forward, for B images of H x W pixels, factor x factor of which make a latent vector. train:
// gradients go down into the ViT or the CNN.
void latent_encoder_plan(latent_encoder_t* e, plan_t* keep, int B, int H, int W, int factor, int train) {
    int T = (H / factor) * (W / factor);
    latent_encoder_plan_latent(e, keep, B, T, train);
    if (e->is_cnn) {
        cnn_encoder_plan(&e->cnn, keep, B, H, W);
        return;
    }
    vit_plan(&e->vit, keep, B, H, W, factor, train);
    adapter_plan(&e->adapter, keep, (size_t)B * T);
    if (train) plan_floatX(keep, &e->dfeatures, (size_t)B * T * e->vit.config.dim, "d tokens");
}

// Plans what lives only while it runs.
void latent_encoder_plan_work(latent_encoder_t* e, plan_t* work) {
    if (e->is_cnn) {
        cnn_encoder_plan_work(&e->cnn, work);
        return;
    }
    vit_plan_work(&e->vit, work);
    adapter_plan_work(&e->adapter, work);
}

// Plans one of which only the forward will run: the latent and the ViT's features outlive it.
void latent_encoder_plan_forward(latent_encoder_t* e, plan_t* keep, plan_t* work, int B, int H, int W, int factor) {
    int T = (H / factor) * (W / factor);
    latent_encoder_plan_latent(e, keep, B, T, 0);
    if (e->is_cnn) {
        cnn_encoder_plan_forward(&e->cnn, keep, work, B, H, W);
        return;
    }
    vit_plan(&e->vit, keep, B, H, W, factor, 0);
    adapter_plan(&e->adapter, keep, (size_t)B * T);
    vit_plan_work(&e->vit, work);
}

// From here on a pass takes n images, at most those of the plan.
void latent_encoder_take(latent_encoder_t* e, int n) {
    e->B = n;
    e->vit.B = n;
    e->adapter.N = (size_t)n * e->T;
    e->cnn.B = e->cnn.stack.B = n;
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward and backward

static inline const floatX* latent_encoder_moments(const latent_encoder_t* e) {
    return e->is_cnn ? e->cnn.moments : e->adapter.z;
}

// The latent, (B, GH, GW, z).
static inline floatX* latent_encoder_output(const latent_encoder_t* e) { return e->gaussian ? e->drawn : e->adapter.z; }

// Writes it. draw: where it is Gaussian, a draw with e->noise; else its mean.
void latent_encoder_forward(latent_encoder_t* e, const params_t* p,
                            const floatX* image, // (B, H, W, 3) in [-1, 1]
                            int draw, stream_t s) {
    if (e->is_cnn) {
        cnn_encoder_forward(&e->cnn, p, image, s);
    } else {
        vit_forward(&e->vit, p, image, s);
        adapter_forward(&e->adapter, p, e->vit.features, s);
    }
    if (!e->gaussian) return;
    posterior_forward(e->drawn, e->kl, latent_encoder_moments(e), draw ? e->noise : NULL, e->B, e->T, e->z, s);
}

// The gradient at what the last layer gives, for the first `images`: dz itself, or the moments' with kl_scale sum kl.
static inline const floatX* latent_encoder_upstream(latent_encoder_t* e, const floatX* dz, double kl_scale, int images,
                                                    stream_t s) {
    if (!e->gaussian) return dz;
    posterior_backward(e->dmoments, dz, latent_encoder_moments(e), e->noise, kl_scale, images, e->T, e->z, s);
    return e->dmoments;
}

// Gradients of the parameters of a CNN or an adapter, from dz and from kl_scale times the sum of the KL divergences,
// behind a forward with draw = 1. down: leaves the gradient at the ViT's features in e->dfeatures, from which
// vit_backward goes on.
void latent_encoder_backward(latent_encoder_t* e, params_t* p,
                             const floatX* dz, // (B, GH, GW, z)
                             double kl_scale, int down, stream_t s) {
    const floatX* dout = latent_encoder_upstream(e, dz, kl_scale, e->B, s);
    if (e->is_cnn) {
        cnn_encoder_backward(&e->cnn, p, dout, 0, s);
        return;
    }
    adapter_backward(&e->adapter, p, down ? e->dfeatures : NULL, dout, e->vit.features, s);
}

// Values of the last layer's weight. at_fc2: of the ViT's last block's mlp.fc2, else of adapter.fc2 or conv_out.
static inline size_t latent_encoder_last_size(const latent_encoder_t* e, int at_fc2) {
    if (e->is_cnn) return (size_t)9 * e->cnn.conv_out.shape.C * e->cnn.conv_out.shape.OC;
    if (at_fc2) return (size_t)e->vit.config.dim * e->vit.config.mlp_dim;
    return (size_t)e->adapter.out * e->adapter.hidden;
}

// What dz would add to the gradient of the last layer's weight, for each of the first `chunks` groups of `chunk`
// images. Between latent_encoder_forward and _backward; leaves p->grads alone.
void latent_encoder_last_gradients(latent_encoder_t* e, const params_t* p,
                                   floatS* dweight,  // (chunks, its values) +=
                                   const floatX* dz, // (chunks, chunk, GH, GW, z)
                                   int at_fc2, int chunk, int chunks, stream_t s) {
    const floatX* dout = latent_encoder_upstream(e, dz, 0, chunks * chunk, s);
    size_t rows = (size_t)chunk * e->T, n = latent_encoder_last_size(e, at_fc2);
    int OC = e->gaussian ? 2 * e->z : e->z, hidden = e->adapter.hidden;
    if (!e->is_cnn && at_fc2) {
        adapter_backward_data(&e->adapter, p, e->dfeatures, dout, chunks * rows, s);
        vit_last_fc2_gradient(&e->vit, p, dweight, e->dfeatures, chunk, chunks, s);
        return;
    }
    for (int k = 0; k < chunks; k++) {
        const floatX* of_chunk = dout + k * rows * OC;
        if (e->is_cnn) {
            cnn_encoder_conv_out_gradient(&e->cnn, p, dweight + k * n, NULL, of_chunk, k * chunk, chunk, s);
        } else {
            matmul_backward(NULL, dweight + k * n, NULL, of_chunk, e->adapter.hidden_out + k * rows * hidden, NULL,
                            rows, hidden, OC, s);
        }
    }
}

// Multiply-accumulates of the forward of one image.
uint64_t latent_encoder_macs(const latent_encoder_t* e, int H, int W, int factor) {
    if (e->is_cnn) return cnn_encoder_macs(&e->cnn, H, W);
    return vit_macs(&e->vit, H, W, factor) + adapter_macs(&e->adapter) * (H / factor) * (W / factor);
}
