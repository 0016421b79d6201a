// log.h: how a program talks to people. Errors that a user can mend go through fatal(); warnings through warn().
//
// A message says what was wrong, where, and what to do about it. The exit code of every such end is 1. Where a program
// runs as several processes (common/training/comm.h), a message names its own, and fatal() ends the others too.
// Look next at common/program/cli.h (flags) and common/training/status.h (the line a training run prints at each
// interval).
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

// defines: HASH_START, hash_string
#include "common/program/hash.h"

static int log_rank, log_size = 1;    // this process, of how many: set by comm_who_am_i
static void (*log_on_fatal)(void);    // what fatal() does before it ends this process: it ends the others
static int log_alike;                 // all processes meet the same errors, and rank 0 says them
enum { LOG_ALIKE_WAIT = 5 };          // seconds that the others give it

static inline void log_message(const char* kind, const char* format, va_list args) {
    char text[8192]; // written at once, so that the messages of several processes do not mix
    int n = log_size > 1 ? snprintf(text, sizeof text, "%s (rank %d of %d): ", kind, log_rank, log_size)
                         : snprintf(text, sizeof text, "%s: ", kind);
    vsnprintf(text + n, sizeof text - (size_t)n, format, args);
    fflush(stdout); // so that the message stands after whatever led to it
    fprintf(stderr, "%s\n", text);
}

// Ends the program with exit code 1 and the message "error: ...". Where all processes meet the same errors, rank 0's
// end is that of all; if it does not come, the error was this process's own, and is said.
__attribute__((noreturn, format(printf, 1, 2))) static inline void fatal(const char* format, ...) {
    va_list args;
    if (log_alike && log_rank > 0) sleep(LOG_ALIKE_WAIT);
    va_start(args, format);
    log_message("error", format, args);
    va_end(args);
    if (log_on_fatal) log_on_fatal();
    exit(1);
}

// Prints "warning: ..." and goes on.
__attribute__((format(printf, 1, 2))) static inline void warn(const char* format, ...) {
    va_list args;
    va_start(args, format);
    log_message("warning", format, args);
    va_end(args);
}

// The same once: a sentence that has been said is not said again. For what several parts of a program find out.
__attribute__((format(printf, 1, 2))) static inline void warn_once(const char* format, ...) {
    enum { SAID = 64 };
    static uint64_t said[SAID]; // hashes
    static int count;
    char text[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    uint64_t h = hash_string(HASH_START, text);
    for (int i = 0; i < count; i++) {
        if (said[i] == h) return;
    }
    if (count < SAID) said[count++] = h;
    warn("%s", text);
}

// malloc and calloc that end the program with a message when there is no memory. `what` names the buffer.
static inline void* malloc_check(size_t bytes, const char* what) {
    void* p = malloc(bytes ? bytes : 1);
    if (!p) fatal("no memory for %s (%.1f MiB); use a smaller batch or a smaller preset", what, bytes / 1048576.0);
    return p;
}

static inline void* calloc_check(size_t count, size_t size, const char* what) {
    void* p = calloc(count ? count : 1, size);
    if (!p)
        fatal("no memory for %s (%.1f MiB); use a smaller batch or a smaller preset", what,
              (double)count * size / 1048576.0);
    return p;
}
