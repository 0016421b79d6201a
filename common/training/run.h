// run.h: what both training programs need around their loop: saying what a run costs, being asked to stop, resuming,
// writing.
//
// Look next at train_tokenizer.cu and train_dit.cu.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

// defines: cli_t
#include "common/program/cli.h"
// defines: cli_differences
#include "common/program/cli_saved.h"
// defines: clock_seconds
#include "common/program/clock.h"
// defines: make_folder
#include "common/files/folder.h"
// defines: comm_t, comm_sum_host
#include "common/training/comm.h"
// defines: safetensors_t, safetensors_open, safetensors_close
#include "common/files/safetensors.h"

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

// ---------------------------------------------------------------------------------------------------------------------
// Stopping

static volatile sig_atomic_t stop_signal = 0; // the signal that asked this process to stop; 0: none
static inline void request_stop(int signal_number) {
    static const char text[] = "stopping: what has been learnt is saved first. More SIGTERMs change nothing; a second "
                               "Ctrl-C ends this at once\n";
    static volatile time_t first;
    int error = errno; // of what was interrupted
    if (!stop_signal) {
        first = time(NULL);
        ssize_t said = log_rank == 0 ? write(STDERR_FILENO, text, sizeof text - 1) : 0;
        (void)said;
    }
    if (signal_number == SIGINT && time(NULL) > first + 1) { // not the same once more: timeout(1) sends one twice
        signal(signal_number, SIG_DFL);
        raise(signal_number);
    }
    stop_signal = signal_number;
    errno = error;
}

// Ctrl-C and SIGTERM ask the loop to save and stop. Schedulers send SIGTERM again while a save is written, which goes
// on; Ctrl-C two seconds after the first signal ends the program whatever it waits for. A limit on the size of files
// shows as a write that fails, which has a message.
static inline void run_catch_signals(void) {
    signal(SIGINT, request_stop);
    signal(SIGTERM, request_stop);
    signal(SIGXFSZ, SIG_IGN);
}

// Has the loop ended before its last step? Says so.
static inline int run_was_stopped(int64_t step, int64_t steps) {
    if (step == steps) return 0;
    printf("stopped        at step %lld of %lld; the same command goes on\n", (long long)step, (long long)steps);
    return 1;
}

// The exit code of a run that was stopped before its last step, so that `&&` goes no further: 128 and the number of the
// signal, as shells count. A process that heard of it from another one takes SIGTERM's.
static inline int run_exit_code(int stopped) { return stopped ? 128 + (stop_signal ? stop_signal : SIGTERM) : 0; }

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

// ---------------------------------------------------------------------------------------------------------------------
// Writing

// Makes the folder that a run writes into, and tries it before hours of work: a file can be made there, and `bytes`
// more fit. Returns 1, or 0 with a sentence.
static inline int run_try_folder(const char* folder, size_t bytes, char* error, size_t error_size) {
    make_folder(folder);
    char path[1024];
    snprintf(path, sizeof path, "%.900s/.writable_%d", folder, (int)getpid());
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) {
        snprintf(error, error_size, "cannot write into %s: %s; choose another folder", folder, strerror(errno));
        return 0;
    }
    close(file);
    unlink(path);
    struct statvfs disk;
    if (statvfs(folder, &disk)) return 1;
    double room = (double)disk.f_bavail * (double)disk.f_frsize;
    if (room >= (double)bytes) return 1;
    snprintf(error, error_size, "%s has room for %.2f GiB, and what will be written needs %.2f GiB; make room, or "
             "choose another folder", folder, room / 1073741824.0, (double)bytes / 1073741824.0);
    return 0;
}

// "4.10 GiB in 3.2 s", of a file that was begun at `start`
static inline const char* run_written(char* text, const char* path, double start) { // (64)
    struct stat file;
    char size[32];
    size_t bytes = stat(path, &file) ? 0 : (size_t)file.st_size;
    snprintf(text, 64, "%s in %.1f s", size_text(size, bytes), clock_seconds() - start);
    return text;
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
