// run.h: what both training programs need around their loop: being asked to stop, resuming, saying what a run costs.
//
// Look next at train_tokenizer.cu and train_dit.cu.
#pragma once
#include <signal.h>
#include <time.h>
#include <unistd.h>

// defines: cli_t, cli_differences, cli_find
#include "common/program/cli.h"
// defines: comm_t, comm_sum_host
#include "common/training/comm.h"
// defines: safetensors_t, safetensors_open, safetensors_close
#include "common/files/safetensors.h"

// ---------------------------------------------------------------------------------------------------------------------
// Stopping

static volatile sig_atomic_t stop_requested = 0;
static inline void request_stop(int signal_number) {
    static volatile time_t first;
    if (!stop_requested) first = time(NULL);
    if (time(NULL) > first + 1) { // not the same once more: timeout(1) and launchers send one twice
        signal(signal_number, SIG_DFL);
        raise(signal_number);
    }
    stop_requested = 1;
}

// Ctrl-C and SIGTERM ask the loop to save and stop; another one, two seconds later, ends the program whatever it waits
// for. A limit on the size of files shows as a write that fails, which has
// a message.
static inline void run_catch_signals(void) {
    signal(SIGINT, request_stop);
    signal(SIGTERM, request_stop);
    signal(SIGXFSZ, SIG_IGN);
}

// Is something that happens every so many steps due after this one? The last step has everything.
static inline int is_due(int64_t step, int every, int64_t steps) {
    return (every && step % every == 0) || step == steps;
}

// ---------------------------------------------------------------------------------------------------------------------
// Resuming

// Is there a whole checkpoint to go on from? A damaged one ends the run; -restart 1 is the way round it.
static inline int run_has_checkpoint(const char* path, int restart) {
    if (restart || access(path, F_OK)) return 0;
    safetensors_t file;
    char damage[1280];
    if (!safetensors_open(&file, path, damage, sizeof damage)) {
        fatal("%s: %s, or begin again with -restart 1", path, damage);
    }
    safetensors_close(&file);
    return 1;
}

// Compares the flags with those that a checkpoint was made with. They must be the same, unless -change 1 is given.
static inline void run_check_config(const cli_t* cli, const char* config, const char* path, int change) {
    json_text_t differences = {NULL, 0, 0};
    char error[512];
    int n = cli_differences(cli, config, &differences, error, sizeof error);
    if (n < 0) fatal("%s: metadata field \"config\": %s", path, error);
    if (n > 0 && !change) {
        fatal("%s was made with other settings:\n%sgive the same flags to resume it, -change 1 to resume it with "
              "these, -restart 1 to begin again, or another folder with -out", path, differences.text);
    }
    if (n > 0) printf("changed since the checkpoint:\n%s", differences.text);
    json_text_free(&differences);
}

// Processes that go on from different states would not notice it.
static inline void run_check_same_start(comm_t* comm, int64_t step, const char* out) {
    double values[2] = {(double)step, (double)step * (double)step}, ranks = comm->size;
    comm_sum_host(comm, values, 2);
    if (values[1] * ranks == values[0] * values[0]) return;
    fatal("this process begins at step %lld, others elsewhere; -out %s must be one folder that all of them see",
          (long long)step, out);
}

// Where a run that had to end goes on, for messages.
static inline const char* run_way_back(const char* checkpoint, const char* remedy, char* text, size_t size) {
    if (access(checkpoint, F_OK)) {
        snprintf(text, size, "This run has no checkpoint yet (-save_every): begin again with %s", remedy);
    } else {
        snprintf(text, size, "The last good checkpoint is %s: the same command with -change 1 and %s goes on from it",
                 checkpoint, remedy);
    }
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// Sizes

// "1.50 GiB" or "23.1 MiB"
static inline const char* size_text(char* text, size_t bytes) { // (32)
    if (bytes < (size_t)1 << 30) snprintf(text, 32, "%.1f MiB", bytes / 1048576.0);
    else snprintf(text, 32, "%.2f GiB", bytes / 1073741824.0);
    return text;
}

// "118.63 G" multiply-accumulates
static inline const char* macs_text(char* text, double macs) { // (32)
    const char* unit = macs < 1e12 ? (macs < 1e9 ? "M" : "G") : "T";
    snprintf(text, 32, "%.2f %s", macs * (macs < 1e12 ? (macs < 1e9 ? 1e-6 : 1e-9) : 1e-12), unit);
    return text;
}
