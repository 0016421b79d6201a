// temporary.h: files and child processes for tests: a folder that is removed afterwards, whole-file reads and writes,
// and running a function in a child process to see how it ends the program and what it says.
#pragma once
#include <ftw.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

// defines: check
#include "tests/test.h"

#define TEMPORARY_PATH 512

// The test's folder under $TMPDIR or /tmp, made on the first call of temporary_begin.
static char temporary_folder[TEMPORARY_PATH / 2];

static inline void temporary_begin(void) {
    const char* parent = getenv("TMPDIR");
    snprintf(temporary_folder, sizeof temporary_folder, "%s/aligntok_test_XXXXXX", parent && *parent ? parent : "/tmp");
    if (!mkdtemp(temporary_folder)) {
        perror(temporary_folder);
        exit(1);
    }
}

static inline int temporary_unlink(const char* path, const struct stat* status, int kind, struct FTW* where) {
    (void)status;
    (void)kind;
    (void)where;
    return remove(path);
}

static inline void temporary_end(void) { nftw(temporary_folder, temporary_unlink, 16, FTW_DEPTH | FTW_PHYS); }

// The path of `name` inside the folder, in `path` (TEMPORARY_PATH bytes), which is returned.
static inline char* temporary_path(char* path, const char* name) {
    snprintf(path, TEMPORARY_PATH, "%s/%s", temporary_folder, name);
    return path;
}

static inline void temporary_mkdir(const char* name) {
    char path[TEMPORARY_PATH];
    if (mkdir(temporary_path(path, name), 0777)) perror(path);
}

static inline void temporary_write(const char* name, const void* bytes, size_t size) {
    char path[TEMPORARY_PATH];
    FILE* file = fopen(temporary_path(path, name), "wb");
    if (!file || fwrite(bytes, 1, size, file) != size || fclose(file)) perror(path);
}

// What a file holds, with a 0 byte after it; the caller frees it. `size` may be NULL.
static inline char* temporary_read(const char* name, size_t* size) {
    char path[TEMPORARY_PATH];
    FILE* file = fopen(temporary_path(path, name), "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    size_t length = (size_t)ftell(file);
    rewind(file);
    char* bytes = (char*)calloc(length + 1, 1);
    if (fread(bytes, 1, length, file) != length) perror(path);
    fclose(file);
    if (size) *size = length;
    return bytes;
}

// Sends stderr to the file "stderr" of the folder, and back. temporary_read("stderr", NULL) tells what stands there.
static inline int temporary_catch_stderr(void) {
    char path[TEMPORARY_PATH];
    fflush(stderr);
    int saved = dup(2);
    if (!freopen(temporary_path(path, "stderr"), "wb", stderr)) exit(1);
    return saved;
}

static inline void temporary_release_stderr(int saved) {
    fflush(stderr);
    dup2(saved, 2);
    close(saved);
}

// Ends a child before a leak checker runs: fatal() frees nothing, and need not.
static inline void temporary_leave(int code, void* unused) {
    (void)unused;
    fflush(NULL);
    _exit(code);
}

// Runs function(argument) in a child and returns its exit code (0 when the function returns), or -1 for a signal. What
// it said on stderr is in the file "stderr".
static inline int temporary_run_child(void (*function)(const char*), const char* argument) {
    fflush(stdout);
    int saved = temporary_catch_stderr();
    pid_t child = fork();
    if (child == 0) {
        on_exit(temporary_leave, NULL);
        omp_set_num_threads(1); // threads are not copied by a fork: one that waits for the parent's waits for ever
        function(argument);
        exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    temporary_release_stderr(saved);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// The child must end with exit code 1 and an error that holds `first` and, unless it is NULL, `second`.
static inline void check_message(void (*function)(const char*), const char* argument, const char* first,
                                 const char* second) {
    int code = temporary_run_child(function, argument);
    char* said = temporary_read("stderr", NULL);
    int right = code == 1 && said && strstr(said, "error: ") && strstr(said, first);
    if (second) right = right && strstr(said, second);
    if (!right) printf("     %s: exit code %d, it said: %s", argument, code, said ? said : "nothing\n");
    check(right, "exit code 1 and a message that names the matter");
    free(said);
}
