// dit_status.h: the columns of LightningDiT's training:
//
//     MSE, cosine       the two terms of the loss, means over the interval. Published curves show the MSE alone
//     |grad|            norm of the gradient before clipping
//     skip              steps in which the loss guard kept the weights, since the run began
// Look next at common/dit.h, where they are defined, and train_dit.cu.
#pragma once
// defines: status_t, status_column_t, status_line
#include "common/status.h"
// defines: dit_report_t
#include "common/dit.h"

typedef struct {
    status_t line;
    dit_report_t sum; // of the reports since the last line
    int64_t skipped;
} dit_status_t;

void dit_status_add(dit_status_t* status, const dit_report_t* report) {
    status->sum.mse += report->mse;
    status->sum.cosine += report->cosine;
    status->sum.norm += report->norm;
    status->line.steps++;
}

// Prints the means since the last line.
void dit_status_print(dit_status_t* status, int64_t step, int64_t steps, int64_t images, int batch, double waited) {
    double n = status->line.steps ? status->line.steps : 1;
    const status_column_t columns[] = {
        {"MSE", 8, "%8.5f", "mse", status->sum.mse / n, 0},
        {"cosine", 8, "%8.5f", "cosine", status->sum.cosine / n, 0},
        {"|grad|", 9, "%9.3e", "norm", status->sum.norm / n, 0},
        {"skip", 4, "%4.0f", "skipped", (double)status->skipped, 0},
    };
    status_line(&status->line, step, steps, images, batch, waited, columns, sizeof columns / sizeof columns[0]);
    memset(&status->sum, 0, sizeof status->sum);
}
