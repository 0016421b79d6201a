// tokenizer_status.h: the columns of a tokenizer's training (a dash where a stage has no such term):
//
//     L1, LPIPS         mean |x - xhat| a value in [-1, 1] units; perceptual distance
//     semantic          L_sem, distance of z from the latent of the frozen stage-1 encoder (stage 2)
//     real, fake        mean logits of the discriminator; `hinge` its loss
//     |rec|W, |gan|W    gradient norms of reconstruction and GAN loss at the decoder's last layer; w_gan: the adaptive
//                       weight
//     |rec|z, |sem|z    the same at the encoder's last layer for the semantic loss; w_sem its adaptive weight
//     clip              chunks in which an adaptive weight was clipped since the last line
// Losses are means over the interval, norms and weights too.
// Look next at train_tokenizer.cu, the loop that fills it, and common/tokenizer.h, where each number is defined.
#pragma once
// defines: status_t, status_column_t, status_line
#include "common/status.h"
// defines: tokenizer_report_t
#include "common/tokenizer.h"

typedef struct {
    status_t line;
    tokenizer_report_t sum; // of the reports since the last line
} tokenizer_status_t;

void tokenizer_status_add(tokenizer_status_t* status, const tokenizer_report_t* report) {
    double* sum = (double*)&status->sum; // a report is doubles only
    const double* value = (const double*)report;
    for (size_t i = 0; i < sizeof *report / sizeof(double); i++) sum[i] += value[i];
    status->line.steps++;
}

// Prints the means since the last line.
void tokenizer_status_print(tokenizer_status_t* status, int64_t step, int64_t steps, int64_t images, int batch,
                            double waited, int gan, int semantic) {
    tokenizer_report_t r = status->sum;
    double n = status->line.steps ? status->line.steps : 1;
    int no_gan = !gan, no_sem = !semantic;
    const status_column_t columns[] = {
        {"L1", 7, "%7.4f", "l1", r.l1 / n, 0},
        {"LPIPS", 7, "%7.4f", "lpips", r.lpips / n, 0},
        {NULL, 0, NULL, "nll", r.nll / n, 0},
        {"semantic", 8, "%8.2e", "semantic", r.semantic / n, no_sem},
        {NULL, 0, NULL, "generator", r.generator / n, 0},
        {"real", 7, "%7.2f", "real", r.real / n, no_gan},
        {"fake", 7, "%7.2f", "fake", r.fake / n, no_gan},
        {"hinge", 7, "%7.3f", "discriminator", r.discriminator / n, no_gan},
        {"|rec|W", 8, "%8.2e", "norm_rec_out", r.norm_rec_out / n, 0},
        {"|gan|W", 8, "%8.2e", "norm_gan", r.norm_gan / n, no_gan},
        {"w_gan", 8, "%8.3g", "w_gan", r.omega_g / n, no_gan},
        {"|rec|z", 8, "%8.2e", "norm_rec_latent", r.norm_rec_latent / n, no_sem},
        {"|sem|z", 8, "%8.2e", "norm_semantic", r.norm_sem / n, no_sem},
        {"w_sem", 8, "%8.2e", "w_semantic", r.omega_s / n, no_sem},
        {"clip", 4, "%4.0f", "clipped", r.clamped, 0},
        {NULL, 0, NULL, "norm_encoder", r.norm[0] / n, 0},
        {NULL, 0, NULL, "norm_adapter", r.norm[1] / n, 0},
        {NULL, 0, NULL, "norm_decoder", r.norm[2] / n, 0},
        {NULL, 0, NULL, "norm_discriminator", r.norm[3] / n, 0},
    };
    status_line(&status->line, step, steps, images, batch, waited, columns, sizeof columns / sizeof columns[0]);
    memset(&status->sum, 0, sizeof status->sum);
}
