// status.h: what a training run shows: one line an interval for people, the same as a JSON line for programs.
// The texts below, which -h prints, say what each column is. The JSON file is locked, and every line in it is whole.
//
// Look next at common/training/tokenizer.h and common/training/dit.h, where each number is defined, and at the programs
// train_tokenizer.cu and train_dit.cu, the loops that fill the lines.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

// defines: dit_report_t
#include "common/training/dit.h"
// defines: tokenizer_report_t
#include "common/training/tokenizer.h"
// defines: clock_seconds, clock_duration
#include "common/program/clock.h"
// defines: json_text_t, json_append
#include "common/program/json.h"
// defines: fatal, warn
#include "common/program/log.h"

enum { STATUS_HEADER_EVERY = 20 }; // lines between two headers

// Lines that have waited for data for this part of their time, and took so long together, are worth a warning.
#define STATUS_WAITS 0.2
#define STATUS_WAITS_FROM 2.0 // seconds

// What the columns are. -h prints it.
#define STATUS_COLUMNS_HELP                                                                                           \
    "step, images     done, of all; seen\n"                                                                           \
    "img/s, wait      images a second; share of the time spent waiting for data\n"                                    \
    "left             time to the end of the run at this speed\n"                                                     \
    "Losses, norms and weights are means since the line before. The .jsonl file has more of them."
static inline const char* tokenizer_status_help(void) {
    return
        "Columns of a status line (a dash: this stage has no such term)\n"
        "L1, LPIPS        mean |x - xhat| a value, in units of [-1, 1]; perceptual distance\n"
        "semantic         distance of the latent from that of the frozen encoder of stage 1 (stage 2)\n"
        "KL, VF           baselines: divergence of an image's latent from N(0, 1); its distance from the\n"
        "                 teacher's tokens\n"
        "real, fake       mean logits of the discriminator; hinge: its loss\n"
        "|rec|W, |gan|W   gradient norms of reconstruction and GAN at the decoder's last layer; omega_g: the\n"
        "                 adaptive weight that they give\n"
        "|rec|z, |sem|z   the same at the encoder's last layer for the semantic loss; omega_s: its weight\n"
        "|vf|z, omega_vf  the same for VF\n"
        "clip             chunks in which an adaptive weight was clipped\n" STATUS_COLUMNS_HELP;
}
static inline const char* dit_status_help(void) {
    return
        "Columns of a status line\n"
        "MSE, cosine      the two terms of the loss; published curves show the MSE alone\n"
        "|grad|           norm of the gradient before clipping\n"
        "skip             steps in which -guard kept the weights, since the run began\n" STATUS_COLUMNS_HELP;
}

typedef struct {
    int steps, lines;       // steps since the last line; lines printed
    double time, waited;    // when the last line was printed; seconds waited for data until then
    const char* json_path;
    int json, json_lost;    // descriptor; lines that could not be written
    double since, waited_since; // time, and seconds waited, from which on waiting is judged
    double wait;            // share of the time that went by in waiting for data, when it was last judged
    int warned;             // of waiting
} status_t;

// A number of a line: a column for people, a field for programs, or both.
typedef struct {
    const char* header; // NULL: not printed
    int width;
    const char* format; // printf's, for a double of this width
    const char* json;   // NULL: not in the file
    double value;
    int absent;         // this run, or this line, has no such number: a dash, or a field that is left out
} status_column_t;

// Opens the JSON-lines file for appending. A run that is resumed goes on in the same file. The lock on it, which ends
// with the process, keeps two runs from writing the same checkpoint.
void status_open(status_t* status, const char* json_path) {
    memset(status, 0, sizeof *status);
    status->json_path = json_path;
    status->json = open(json_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (status->json < 0) fatal("cannot write %s: %s; choose another folder with -out", json_path, strerror(errno));
    if (flock(status->json, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) {
        fatal("%s is being written by another run; let that one end, or choose another folder with -out", json_path);
    }
    status->time = status->since = clock_seconds();
}

void status_close(status_t* status) {
    if (status->json_lost) warn("%s lacks %d lines that could not be written", status->json_path, status->json_lost);
    close(status->json);
}

// Appends a line, or nothing: what a full disk has cut off is taken back, so that every line of the file is whole.
static inline void status_append(status_t* status, const char* line) {
    size_t size = strlen(line);
    off_t end = lseek(status->json, 0, SEEK_END);
    ssize_t written = write(status->json, line, size);
    if (written == (ssize_t)size) return;
    const char* reason = strerror(written < 0 ? errno : ENOSPC);
    if (written > 0 && ftruncate(status->json, end)) warn("%s ends in half a line", status->json_path);
    if (status->json_lost++) return;
    warn("cannot write %s: %s; make room. Training goes on", status->json_path, reason);
}

// A number in a column, or a dash. The format pads to `width`; a number that is too long for it gets an exponent
// instead, and one that rounds to zero has no sign.
static inline const char* status_cell(char* text, int width, const char* format, double value, int present) { // (32)
    int digits = width - 6 - (value < 0);
    snprintf(text, 32, format, value);
    if (strtod(text, NULL) == 0) value = 0;
    if (!present) snprintf(text, 32, "%*s", width, "-");
    else if (snprintf(text, 32, format, value) > width) snprintf(text, 32, "%.*e", digits > 0 ? digits : 0, value);
    return text;
}

// Prints a line. step counts from 1; batch: images a step; waited is the loader's total of seconds waited.
void status_line(status_t* status, int64_t step, int64_t steps, int64_t images, int batch, double waited,
                 const status_column_t* columns, int n) {
    double now = clock_seconds(), elapsed = now - status->time, count = status->steps ? status->steps : 1;
    double speed = elapsed > 0 ? count * batch / elapsed : 0;
    double wait = elapsed > 0 ? (waited - status->waited) / elapsed : 0;
    double left = speed > 0 ? (double)(steps - step) * batch / speed : 0;
    if (status->lines++ % STATUS_HEADER_EVERY == 0) {
        printf("%13s %9s", "step", "images");
        for (int i = 0; i < n; i++) {
            if (columns[i].header) printf(" %*s", columns[i].width, columns[i].header);
        }
        printf(" %7s %4s %7s\n", "img/s", "wait", "left");
    }
    char place[48], time_left[24], cell[32];
    json_text_t json = {NULL, 0, 0};
    snprintf(place, sizeof place, "%lld/%lld", (long long)step, (long long)steps);
    clock_duration(time_left, sizeof time_left, left);
    printf("%13s %9lld", place, (long long)images);
    json_append(&json, "{\"step\": %lld, \"images\": %lld", (long long)step, (long long)images);
    for (int i = 0; i < n; i++) {
        const status_column_t* c = &columns[i];
        if (c->header) printf(" %s", status_cell(cell, c->width, c->format, c->value, !c->absent));
        if (!c->json || (!c->header && c->absent)) continue;
        json_append(&json, ", \"%s\": %.6g", c->json, c->value + 0.0); // no -0
    }
    printf(" %7.*f %3.0f%% %7s\n", speed < 1 ? 3 : 1, speed, 100 * wait, time_left);
    fflush(stdout);
    json_append(&json, ", \"images_per_second\": %.6g, \"wait\": %.4f, \"seconds_left\": %.1f}\n", speed, wait, left);
    status_append(status, json.text);
    json_text_free(&json);
    status->steps = 0;
    status->time = now;
    status->waited = waited;
    if (status->lines == 1) { // the first batches are always waited for
        status->since = now;
        status->waited_since = waited;
    }
}

// Has training waited for data so much that the user should know? Once in a run, and not for the first batches.
static inline int status_waits(status_t* status) {
    double elapsed = status->time - status->since;
    if (status->warned || elapsed < STATUS_WAITS_FROM) return 0;
    status->wait = (status->waited - status->waited_since) / elapsed;
    status->since = status->time;
    status->waited_since = status->waited;
    return status->warned = status->wait >= STATUS_WAITS;
}

// ---------------------------------------------------------------------------------------------------------------------
// A tokenizer's columns

typedef struct {
    status_t line;
    tokenizer_report_t sum; // of the reports since the last line
    double psnr[2];         // of held-out images, by raw and averaged weights
    int has_psnr;           // measured since the last line
} tokenizer_status_t;

void tokenizer_status_add(tokenizer_status_t* status, const tokenizer_report_t* report) {
    double* sum = (double*)&status->sum; // a report is doubles only
    const double* value = (const double*)report;
    for (size_t i = 0; i < sizeof *report / sizeof(double); i++) sum[i] += value[i];
    status->line.steps++;
}

// Prints the means since the last line.
void tokenizer_status_print(tokenizer_status_t* status, int64_t step, int64_t steps, int64_t images, int batch,
                            double waited, int gan, const tokenizer_config_t* c) {
    tokenizer_report_t r = status->sum;
    double n = status->line.steps ? status->line.steps : 1;
    int no_gan = !gan, no_sem = !tokenizer_is_aligned(c), vf = tokenizer_has_vf_loss(c);
    int kl = tokenizer_is_baseline(c);
    const status_column_t columns[] = {
        {"L1", 7, "%7.4f", "l1", r.l1 / n, 0},
        {"LPIPS", 7, "%7.4f", "lpips", r.lpips / n, 0},
        {NULL, 0, NULL, "nll", r.nll / n, 0},
        {kl ? "KL" : NULL, 8, "%8.2e", "kl", r.kl / n, !kl},
        {vf ? "VF" : kl ? NULL : "semantic", 8, "%8.2e", vf ? "vf" : "semantic", r.semantic / n, no_sem},
        {NULL, 0, NULL, "generator", r.generator / n, 0},
        {"real", 7, "%7.2f", "real", r.real / n, no_gan},
        {"fake", 7, "%7.2f", "fake", r.fake / n, no_gan},
        {"hinge", 7, "%7.3f", "hinge", r.discriminator / n, no_gan},
        {"|rec|W", 8, "%8.2e", "norm_rec_out", r.norm_rec_out / n, 0},
        {"|gan|W", 8, "%8.2e", "norm_gan", r.norm_gan / n, no_gan},
        {"omega_g", 8, "%8.3g", "omega_g", r.omega_g / n, no_gan},
        {kl && !vf ? NULL : "|rec|z", 8, "%8.2e", "norm_rec_latent", r.norm_rec_latent / n, no_sem},
        {vf ? "|vf|z" : kl ? NULL : "|sem|z", 8, "%8.2e", vf ? "norm_vf" : "norm_semantic", r.norm_sem / n, no_sem},
        {vf ? "omega_vf" : kl ? NULL : "omega_s", 8, "%8.2e", vf ? "omega_vf" : "omega_s", r.omega_s / n, no_sem},
        {"clip", 4, "%4.0f", "clipped", r.clamped, 0},
        {NULL, 0, NULL, "norm_encoder", r.norm[0] / n, 0},
        {NULL, 0, NULL, "norm_adapter", r.norm[1] / n, 0},
        {NULL, 0, NULL, "norm_decoder", r.norm[2] / n, 0},
        {NULL, 0, NULL, "norm_discriminator", r.norm[3] / n, 0},
        {NULL, 0, NULL, "psnr_raw", status->psnr[0], !status->has_psnr},
        {NULL, 0, NULL, "psnr_averaged", status->psnr[1], !status->has_psnr},
    };
    status_line(&status->line, step, steps, images, batch, waited, columns, sizeof columns / sizeof columns[0]);
    memset(&status->sum, 0, sizeof status->sum);
    status->has_psnr = 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// LightningDiT's columns

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
