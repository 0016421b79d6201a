// vf_head.h: what aligns the latent of VA-VAE with a vision foundation model: the frozen model, a projection of the
// latent to the width of its tokens, and the loss between the two (vf_forward in common/ops.h).
//
//     tokens t = teacher(x)        z' = P z        loss = L_vf(z', t)
//
// The projection goes from the latent to the tokens ("reverse"), is linear without bias, learns with the encoder, and
// is thrown away afterwards. The teacher sees the image in [-1, 1], resized but not normalised, as in the reference.
// All its memory but the folded weights is working memory.
//
// Backward:  dz = dz' P;  dP = dz'^T z, where the loss counts omega_k in chunk k: dP = sum_k dz'_k^T (omega_k z_k).
//
// (Yao et al. 2025; LightningDiT, vavae/ldm/models/foundation_models.py and autoencoder.py.) Names are those of
// VA-VAE's files: linear_proj.weight (D, z, 1, 1), foundation_model.model.*. Look next at common/training/tokenizer.h.
#pragma once
// defines: vit_t, vit_register, vit_plan, vit_plan_folded, vit_plan_work, vit_forward, vit_macs
#include "common/models/vit.h"

#define VF_TEACHER_PREFIX "foundation_model.model."

typedef struct {
    int z;               // channels of the latent; set before registering, as are teacher.config and both margins
    vit_t teacher;
    double margin_distance, margin_cosine;
    size_t projection;   // offset of P in the tokenizer's table
    int B, T;            // images; latent vectors of each
    floatX* projected;   // (B, T, D) z'
    floatX* dprojected;  // (B, T, D)
} vf_head_t;

// P goes into the table of what is trained, the teacher into one of its own.
void vf_head_register(vf_head_t* h, param_table_t* trained, param_table_t* frozen) {
    h->teacher.config.normalise = NORMALISE_NONE;
    h->projection = param_conv(trained, "", "linear_proj.weight", h->teacher.config.dim, h->z, 1, init_fan_in(h->z));
    vit_register(&h->teacher, frozen, VF_TEACHER_PREFIX);
}

// Plans what lives only while it runs. The teacher's folded weights outlive a step and have a plan of their own.
void vf_head_plan(vf_head_t* h, plan_t* work, plan_t* folded, int B, int H, int W, int factor) {
    h->B = B;
    h->T = (H / factor) * (W / factor);
    size_t n = (size_t)B * h->T * h->teacher.config.dim;
    vit_plan(&h->teacher, work, B, H, W, factor, 0);
    vit_plan_folded(&h->teacher, folded);
    vit_plan_work(&h->teacher, work);
    plan_floatX(work, &h->projected, n, "projected latent");
    plan_floatX(work, &h->dprojected, n, "d projected latent");
}

// The loss of each chunk, and dz = scale times the gradient of their sum, for omega still to be found.
void vf_head_loss(vf_head_t* h, const params_t* p, const params_t* teacher,
                  floatS* loss,        // (B / chunk)
                  floatX* dz,          // (B, T, z)
                  const floatX* image, // (B, H, W, 3) in [-1, 1]
                  const floatX* z,     // (B, T, z)
                  double scale, int chunk, stream_t s) {
    int D = h->teacher.config.dim;
    size_t rows = (size_t)h->B * h->T;
    vit_forward(&h->teacher, teacher, image, s);
    matmul_forward(h->projected, z, params_at(p, h->projection), NULL, rows, h->z, D, s);
    vf_forward(loss, h->projected, h->teacher.features, h->margin_distance, h->margin_cosine, h->B, h->T, D, chunk, s);
    vf_backward(h->dprojected, h->projected, h->teacher.features, h->margin_distance, h->margin_cosine, scale, h->B,
                h->T, D, chunk, s);
    matmul_backward(dz, NULL, NULL, h->dprojected, NULL, params_at(p, h->projection), rows, h->z, D, s);
}

// dP += the gradient, behind vf_head_loss.
void vf_head_projection_gradient(const vf_head_t* h, const params_t* p,
                                 const floatX* scaled_z, // (B, T, z) omega_k z
                                 stream_t s) {
    matmul_backward(NULL, params_grad(p, h->projection), NULL, h->dprojected, scaled_z, NULL, (size_t)h->B * h->T, h->z,
                    h->teacher.config.dim, s);
}

// Multiply-accumulates of one image: teacher; P forward, for dz and for dP; the loss, forward and backward.
uint64_t vf_head_macs(const vf_head_t* h, int H, int W, int factor) {
    uint64_t T = (uint64_t)(H / factor) * (W / factor), D = h->teacher.config.dim;
    return vit_macs(&h->teacher, H, W, factor) + 3 * T * D * h->z + 5 * T * T * D;
}
