// progress.h: a line every few seconds that says how far long work has come and how long it will still take.
//
//     progress_t p = progress_begin("recon", 50000, comm_is_first(&comm));
//     for each batch: progress_say(&p, images_done);
//
// Nothing is printed by work that takes less time than the first interval. Look next at common/program/clock.h.
#pragma once
#include <stdio.h>

// defines: clock_seconds, clock_duration
#include "common/program/clock.h"

#define PROGRESS_EVERY 5.0 // seconds

typedef struct {
    const char* what;
    double total, start, said;
    int speaks; // one process of several does
} progress_t;

static inline progress_t progress_begin(const char* what, double total, int speaks) {
    double now = clock_seconds();
    progress_t p = {what, total, now, now, speaks};
    return p;
}

// `done` may be the end of a batch that is not full.
static inline void progress_say(progress_t* p, double done) {
    double now = clock_seconds();
    if (done > p->total) done = p->total;
    if (!p->speaks || now - p->said < PROGRESS_EVERY || done <= 0) return;
    char left[24];
    clock_duration(left, sizeof left, (now - p->start) * (p->total - done) / done);
    printf("  %-12s %.0f of %.0f   %.3g a second   %s left\n", p->what, done, p->total, done / (now - p->start), left);
    fflush(stdout);
    p->said = now;
}
