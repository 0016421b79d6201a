// needs.h: what a run needs and does not find, collected so that one message tells all of it before any work is done,
// and the command that makes it.
//
//     needs_t needs = {0};
//     needs_file(&needs, "lpips_weights", path, "VGG16 for LPIPS");
//     needs_check(&needs, "make build/cpu/pretrain && build/cpu/pretrain");
//
// Look next at train_tokenizer.cu and train_dit.cu, which say what they need.
#pragma once
#include <unistd.h>

// defines: cli_t, cli_text, cli_load
#include "common/program/cli.h"

// Where `make` puts pretrain, which has no place in the root.
#ifdef USE_CUDA
#define NEEDS_PRETRAIN "build/gpu/pretrain"
#else
#define NEEDS_PRETRAIN "build/cpu/pretrain"
#endif

typedef struct {
    json_text_t list; // a line each
    int count;
} needs_t;

// Adds a line of its own to what is missing.
__attribute__((format(printf, 2, 3))) static inline void needs_add(needs_t* needs, const char* format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    json_append(&needs->list, "  %s\n", text);
    needs->count++;
}

// A file, or several with commas between them, each of which must be there.
static inline void needs_file(needs_t* needs, const char* flag, const char* paths, const char* what) {
    char list[2048];
    snprintf(list, sizeof list, "%s", paths);
    for (char *rest = list, *path; (path = strsep(&rest, ",")) != NULL;) {
        if (access(path, R_OK)) needs_add(needs, "-%s %s: there is no such file (%s)", flag, path, what);
    }
}

// The images that -data names.
static inline void needs_images(needs_t* needs, const char* data) {
    int named = !strcmp(data, "auto") || !strcmp(data, "shapes") || !strcmp(data, "fashion-mnist") ||
                !strcmp(data, "garments") || !strcmp(data, "scenes") || !strncmp(data, "scenes:", 7);
    if (!strncmp(data, "garments:", 9) || !strncmp(data, "captions:", 9)) data += 9;
    if (named || !access(data, F_OK)) return;
    needs_add(needs, "the data folder %s cannot be found: %s; -data takes a folder, captions:FOLDER, garments, "
              "fashion-mnist, scenes, shapes or auto", data, strerror(errno));
}

// Takes `other` for the file of a flag that the command line does not give and that is not there. Says so.
static inline void needs_or_else(const cli_t* cli, const char* flag, const char** path, const char* other) {
    if (cli_source(cli, flag) == CLI_FROM_COMMAND_LINE || !access(*path, R_OK) || access(other, R_OK)) return;
    printf("-%-14s %s, which comes with this repository: there is no %s\n", flag, other, *path);
    *path = other;
}

// Ends the program where something is missing. `command` makes it; "" where there is none.
static inline void needs_check(needs_t* needs, const char* command) {
    if (!needs->count) {
        json_text_free(&needs->list);
        return;
    }
    needs->list.text[needs->list.length - 1] = 0; // the last newline
    fatal("nothing was done, because this is missing:\n%s%s%s", needs->list.text,
          command[0] ? "\nThis makes what can be made, and goes on:\n    " : "", command);
}

// The flags that the command line gives, but for some, as they would be written again: " -data shapes -lr 1".
static inline void needs_same_flags(const cli_t* cli, const char* const* without, // ends with NULL
                                    json_text_t* text) {
    char buffer[CLI_TEXT_SIZE];
    for (int i = 0; i < cli->n_flags; i++) {
        const cli_flag_t* flag = &cli->flags[i];
        const char* const* other = without;
        while (*other && strcmp(flag->name, *other)) other++;
        if (cli->source[i] != CLI_FROM_COMMAND_LINE || *other) continue;
        const char* value = cli_text(cli, flag, cli_load(flag), buffer);
        int plain = *value && strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./,:=+-") ==
                                  strlen(value);
        json_append(text, plain ? " -%s %s" : " -%s '%s'", flag->name, value);
    }
}
