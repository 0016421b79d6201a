// folder.h: makes the folder that a run, or a file, is written into.
#pragma once
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// defines: fatal
#include "common/program/log.h"

// Makes a folder and those above it. What cannot be made ends the program with a message.
static inline void make_folder(const char* path) {
    char part[900]; // room for the names of files behind it, in the buffers of those who write them
    if (strlen(path) >= sizeof part) {
        fatal("the name of the folder %.40s... has over %zu letters; choose a shorter one with -out", path,
              sizeof part - 1);
    }
    snprintf(part, sizeof part, "%s", path);
    for (char* c = part + 1;; c++) {
        if (*c != '/' && *c != 0) continue;
        char end = *c;
        *c = 0;
        if (mkdir(part, 0777) && errno != EEXIST) {
            fatal("cannot make the folder %s: %s; choose another one with -out", part, strerror(errno));
        }
        *c = end;
        if (!end) return;
    }
}

// Makes the folder of a file that is written later. Where that cannot be, it ends the program now, before the work.
static inline void make_folder_of(const char* path) {
    char folder[1200];
    struct stat status;
    const char* slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash + 1 - path) : 1, slash ? path : ".");
    make_folder(folder);
    int is_folder = !stat(path, &status) && S_ISDIR(status.st_mode);
    if (is_folder || access(folder, W_OK)) {
        fatal("%s: cannot be written: %s; choose another place", path, strerror(is_folder ? EISDIR : errno));
    }
}
