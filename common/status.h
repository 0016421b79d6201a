// status.h: what a training run shows: one line an interval for people, the same as a JSON line for programs.
//
// Columns (a dash where a stage has no such term):
//     step, images      steps done; images seen
//     L1, LPIPS         mean |x - xhat| a value in [-1, 1] units; perceptual distance
//     semantic          L_sem, distance of z from the latent of the frozen stage-1 encoder (stage 2)
//     real, fake        mean logits of the discriminator; `hinge` its loss
//     |rec|W, |gan|W    gradient norms of reconstruction and GAN loss at the decoder's last layer; w_gan: the adaptive
//                       weight
//     |rec|z, |sem|z    the same at the encoder's last layer for the semantic loss; w_sem its adaptive weight
//     clip              chunks in which an adaptive weight was clipped since the last line
//     img/s, wait       images a second; share of the time spent waiting for data
//     left              time to the end of the stage at this speed
// Losses are means over the interval, norms and weights too.
// Look next at train_tokenizer.cu, the loop that fills it, and common/tokenizer.h, where each number is defined.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

// defines: clock_seconds, clock_duration
#include "common/clock.h"
// defines: fatal, warn
#include "common/log.h"
// defines: tokenizer_report_t
#include "common/tokenizer.h"

enum { STATUS_HEADER_EVERY = 20 }; // lines between two headers

typedef struct {
    tokenizer_report_t sum; // of the reports since the last line
    int reports, lines;
    double time, waited;    // when the last line was printed; seconds waited for data until then
    const char* json_path;
    int json, json_lost;    // descriptor; lines that could not be written
} status_t;

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
    status->time = clock_seconds();
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

void status_add(status_t* status, const tokenizer_report_t* report) {
    double* sum = (double*)&status->sum; // a report is doubles only
    const double* value = (const double*)report;
    for (size_t i = 0; i < sizeof *report / sizeof(double); i++) sum[i] += value[i];
    status->reports++;
}

// A number in a column, or a dash. The format pads to `width`; a number that is too long for it gets an exponent
// instead.
static inline const char* status_cell(char* text, int width, const char* format, double value, int present) { // (32)
    int digits = width - 6 - (value < 0);
    if (!present) snprintf(text, 32, "%*s", width, "-");
    else if (snprintf(text, 32, format, value) > width) snprintf(text, 32, "%.*e", digits > 0 ? digits : 0, value);
    return text;
}

// Prints the means since the last line. step counts from 1; waited is the loader's total of seconds waited.
void status_print(status_t* status, int64_t step, int64_t steps, int64_t images, int batch, double waited, int gan,
                  int semantic) {
    double now = clock_seconds(), elapsed = now - status->time, n = status->reports ? status->reports : 1;
    tokenizer_report_t r = status->sum;
    double speed = elapsed > 0 ? n * batch / elapsed : 0, wait = elapsed > 0 ? (waited - status->waited) / elapsed : 0;
    double left = speed > 0 ? (double)(steps - step) * batch / speed : 0;
    if (status->lines++ % STATUS_HEADER_EVERY == 0) {
        printf("%13s %9s %7s %7s %8s %7s %7s %7s %8s %8s %8s %8s %8s %8s %4s %7s %4s %7s\n", "step", "images", "L1",
               "LPIPS", "semantic", "real", "fake", "hinge", "|rec|W", "|gan|W", "w_gan", "|rec|z", "|sem|z", "w_sem",
               "clip", "img/s", "wait", "left");
    }
    char place[48], time_left[24], c[11][32];
    snprintf(place, sizeof place, "%lld/%lld", (long long)step, (long long)steps);
    clock_duration(time_left, sizeof time_left, left);
    printf("%13s %9lld %s %s %s %s %s %s %8.2e %s %s %s %s %s %4.0f %7.1f %3.0f%% %7s\n", place, (long long)images,
           status_cell(c[9], 7, "%7.4f", r.l1 / n, 1), status_cell(c[10], 7, "%7.4f", r.lpips / n, 1),
           status_cell(c[0], 8, "%8.2e", r.semantic / n, semantic), status_cell(c[1], 7, "%7.2f", r.real / n, gan),
           status_cell(c[2], 7, "%7.2f", r.fake / n, gan), status_cell(c[3], 7, "%7.3f", r.discriminator / n, gan),
           r.norm_rec_out / n, status_cell(c[4], 8, "%8.2e", r.norm_gan / n, gan),
           status_cell(c[5], 8, "%8.3g", r.omega_g / n, gan),
           status_cell(c[6], 8, "%8.2e", r.norm_rec_latent / n, semantic),
           status_cell(c[7], 8, "%8.2e", r.norm_sem / n, semantic),
           status_cell(c[8], 8, "%8.2e", r.omega_s / n, semantic), r.clamped, speed, 100 * wait, time_left);
    fflush(stdout);
    char line[2048];
    snprintf(line, sizeof line,
             "{\"step\": %lld, \"images\": %lld, \"l1\": %.6g, \"lpips\": %.6g, \"nll\": %.6g, \"semantic\": %.6g, "
             "\"generator\": %.6g, \"discriminator\": %.6g, \"real\": %.6g, \"fake\": %.6g, \"norm_rec_out\": %.6g, "
             "\"norm_gan\": %.6g, \"w_gan\": %.6g, \"norm_rec_latent\": %.6g, \"norm_semantic\": %.6g, \"w_semantic\": "
             "%.6g, "
             "\"clipped\": %.0f, \"norm_encoder\": %.6g, \"norm_adapter\": %.6g, \"norm_decoder\": %.6g, "
             "\"norm_discriminator\": %.6g, \"images_per_second\": %.6g, \"wait\": %.4f, \"seconds_left\": %.1f}\n",
             (long long)step, (long long)images, r.l1 / n, r.lpips / n, r.nll / n, r.semantic / n, r.generator / n,
             r.discriminator / n, r.real / n, r.fake / n, r.norm_rec_out / n, r.norm_gan / n, r.omega_g / n,
             r.norm_rec_latent / n, r.norm_sem / n, r.omega_s / n, r.clamped, r.norm[0] / n, r.norm[1] / n,
             r.norm[2] / n, r.norm[3] / n, speed, wait, left);
    status_append(status, line);
    memset(&status->sum, 0, sizeof status->sum);
    status->reports = 0;
    status->time = now;
    status->waited = waited;
}
