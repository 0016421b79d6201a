// clock.h: wall-clock time for status lines, and durations as people read them.
#pragma once
#include <stdio.h>
#include <time.h>

static inline double clock_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// 95 -> "1m35s"
static inline void clock_duration(char* text, size_t size, double seconds) {
    long s = seconds < 0 ? 0 : (long)(seconds + 0.5);
    if (s >= 3600) snprintf(text, size, "%ldh%02ldm", s / 3600, s / 60 % 60);
    else if (s >= 60) snprintf(text, size, "%ldm%02lds", s / 60, s % 60);
    else snprintf(text, size, "%lds", s);
}
