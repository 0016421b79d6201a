// run_options.h: the flags that train_tokenizer and train_dit share: where a run writes, how it goes on, what it says
// and saves when, and how it uses the machine. Each program appends them to its own table. Look next at
// common/training/tokenizer_options.h and common/training/dit_options.h.
#pragma once
// defines: cli_flag_t
#include "common/program/cli.h"
// defines: machine_cores
#include "common/training/rendezvous.h"

typedef struct {
    const char *preset, *out, *export_path;
    int dry_run, restart, change, export_type, log_every, grid_every, save_every;
    size_t seed;
    int workers, recompute, zero, reduce_bf16, time_limit;
} run_options_t;

enum { EXPORT_F32 = 0, EXPORT_F16 = 1 };     // -export_type
enum { WORKERS_CHOSEN = -1, WORKERS_MOST = 8 }; // -workers: chosen by the program, at most so many

// Writes the shared flags to the end of a program's table. Returns how many. The texts are static.
static inline int run_options_flags(run_options_t* o, cli_flag_t* out) {
    const cli_flag_t flags[] = {
        {"Run", "preset", CLI_PRESET, &o->preset, "mini", NULL,
         "sets the flags listed at the end, unless they are given", CLI_NOT_SAVED},
        {NULL, "out", CLI_STRING, &o->out, "runs/out", NULL, "folder for checkpoints, logs and pictures",
         CLI_NOT_SAVED},
        {NULL, "dry_run", CLI_BOOL, &o->dry_run, "0", NULL, "print parameters, memory and cost, then stop",
         CLI_NOT_SAVED},
        {NULL, "restart", CLI_BOOL, &o->restart, "0", NULL, "begin again although there is a checkpoint",
         CLI_NOT_SAVED},
        {NULL, "change", CLI_BOOL, &o->change, "0", NULL,
         "resume although flags differ from the checkpoint's, such as a lower -lr", CLI_NOT_SAVED},
        {NULL, "export", CLI_STRING, &o->export_path, "", NULL,
         "write what ships of the checkpoint in -out, its averaged weights, alone to this file, then stop",
         CLI_NOT_SAVED},
        {NULL, "export_type", CLI_CHOICE, &o->export_type, "f32", "f32|f16", "numbers of that file", CLI_NOT_SAVED},
        {NULL, "seed", CLI_SIZE, &o->seed, "1", NULL, "seed of everything random", CLI_SAVED},
        {NULL, "log_every", CLI_INT, &o->log_every, "100", "[0, inf)", "steps between status lines; 0: at the end only",
         CLI_NOT_SAVED},
        {NULL, "grid_every", CLI_INT, &o->grid_every, "5000", "[0, inf)", "steps between pictures; 0: at the end only",
         CLI_NOT_SAVED},
        {NULL, "save_every", CLI_INT, &o->save_every, "5000", "[0, inf)",
         "steps between checkpoints; 0: at the end only", CLI_NOT_SAVED},

        {"Machine", "workers", CLI_INT, &o->workers, "-1", "[-1, 256]",
         "threads that prepare images ahead (latents need one); 0: the training thread does it; -1: one for each core "
         "of this process but one, at most 8", CLI_NOT_SAVED},
        {NULL, "recompute", CLI_BOOL, &o->recompute, "0", NULL,
         "less memory for activations (of a ViT that the tokenizer trains and of its larger decoder, of all blocks of "
         "a transformer), a third more work there", CLI_NOT_SAVED},
        {NULL, "zero", CLI_BOOL, &o->zero, "0", NULL,
         "several processes: spread moments, averages and full-precision weights over them (ZeRO-1)", CLI_NOT_SAVED},
        {NULL, "reduce_bf16", CLI_BOOL, &o->reduce_bf16, "0", NULL,
         "several GPUs: average gradients in bf16, for slow links between machines; not with -zero 1", CLI_NOT_SAVED},
        {NULL, "time_limit", CLI_INT, &o->time_limit, "600", "[1, inf)",
         "several processes: seconds to wait for one another, also while one writes a checkpoint, before giving up",
         CLI_NOT_SAVED},
    };
    memcpy(out, flags, sizeof flags);
    return (int)(sizeof flags / sizeof flags[0]);
}

// Ends the program when shared flags contradict each other.
static inline void run_options_check(const run_options_t* o) {
    if (o->zero && o->reduce_bf16) fatal("-zero 1 sends gradients in fp32; leave -reduce_bf16 out, or -zero");
}

// The threads of a loader in a process that shares its machine with `local_size` - 1 others.
static inline int workers_chosen(int local_size) {
    int spare = machine_cores(local_size) - 1;
    return spare < 1 ? 1 : spare < WORKERS_MOST ? spare : WORKERS_MOST;
}

// The same, if -workers says nothing else.
static inline int run_options_workers(const run_options_t* o, int local_size) {
    return o->workers == WORKERS_CHOSEN ? workers_chosen(local_size) : o->workers;
}
