// folder.h: makes the folder that a run writes into.
#pragma once
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

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
